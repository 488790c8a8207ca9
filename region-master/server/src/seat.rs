//! What a leader keeps in memory for one volume that it serves, as its home or with a replica of it, beside what [`crate::geo`] keeps.

use std::collections::BTreeMap;

use mooseng_ports::clock::BootTime;
use mooseng_region::class::{Class, Classes};
use mooseng_region::quotas::Ledger;
use mooseng_region::wall::Steady;
use mooseng_schema::quota::Account;
use mooseng_wire::admin::{HouseStatus, TrashStatus};
use mooseng_wire::founding::Founding;

use crate::ids::IdPool;

/// Chunks by how many of their copies can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkCounts {
    /// All.
    pub chunks: u64,
    /// Fewer than `copies`, those without any included.
    pub endangered: u64,
    /// None.
    pub unavailable: u64,
    /// A copy of them is on a chunkserver without the labels of their storage class.
    pub misplaced: u64,
}

impl ChunkCounts {
    /// Of several volumes together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            chunks: self.chunks + other.chunks,
            endangered: self.endangered + other.endangered,
            unavailable: self.unavailable + other.unavailable,
            misplaced: self.misplaced + other.misplaced,
        }
    }
}

/// What the leader's house-keeping tells of itself.
#[derive(Clone, Debug, Default)]
pub struct House {
    /// Figures.
    pub status: HouseStatus,
    /// By chunkserver, how many chunks' locations name it, as of the last complete scan.
    pub located: BTreeMap<String, u64>,
    /// Bytes of the volume's staged data.
    pub staged_bytes: u64,
    /// It carries as much of that as it may.
    pub staging_closed: bool,
}

/// Figures of several volumes together.
pub fn together(one: HouseStatus, other: HouseStatus) -> HouseStatus {
    HouseStatus {
        waiting: one.waiting + other.waiting,
        copying: one.copying + other.copying,
        endangered_oldest_s: one.endangered_oldest_s.max(other.endangered_oldest_s),
        copied: one.copied + other.copied,
        copied_bytes: one.copied_bytes + other.copied_bytes,
        dropped: one.dropped + other.dropped,
        copies_failed: one.copies_failed + other.copies_failed,
        dead: one.dead + other.dead,
        bytes: one.bytes + other.bytes,
        bytes_live: one.bytes_live + other.bytes_live,
        rewritten: one.rewritten + other.rewritten,
        rewritten_bytes: one.rewritten_bytes + other.rewritten_bytes,
        rewrites_failed: one.rewrites_failed + other.rewrites_failed,
        rewriting: one.rewriting + other.rewriting,
        merged: one.merged + other.merged,
        packed_chunks: one.packed_chunks + other.packed_chunks,
        packed_bytes: one.packed_bytes + other.packed_bytes,
        joined_extents: one.joined_extents + other.joined_extents,
    }
}

/// One volume's part of [`crate::desk::Desk`].
pub struct VolumeSeat {
    /// The custody epoch in which this master leads and has read what it needs of the volume; none while it doesn't serve it.
    pub serving: Option<u64>,
    /// The custody epoch that its sessions and promises are of.
    pub custody: Option<u64>,
    /// Until when sessions that are unanswered are waited for, if that isn't as long as their leases may last.
    pub(crate) answer_by: Option<BootTime>,
    /// Limits, what may commit and doesn't count yet, and what sessions were promised of it.
    pub ledger: Ledger<Account>,
    /// The mark by which mounts know the volume, where several regions have it: the same in each.
    pub(crate) founding: Option<Founding>,
    /// The volume's storage classes. Only a leader's are all of them.
    pub classes: Classes,
    /// Fresh ids.
    pub ids: IdPool,
    /// The result of the last complete scan.
    pub counts: ChunkCounts,
    /// What house-keeping tells.
    pub house: House,
    /// What the trash holds; none where nobody has looked in this leadership.
    pub trash: Option<TrashStatus>,
    /// How the clock has gone by which files in it are old; none where nobody has looked in this leadership.
    pub(crate) trash_clock: Option<Steady>,
    /// Files in it whose time is over by the clock, and that stay for that was set forward.
    pub(crate) trash_held: u64,
    /// A scan was completed since the volume is served.
    pub(crate) scanned: bool,
    /// How often drainings had been set when the last complete scan began; 0 before that.
    pub(crate) counted: u64,
}

impl VolumeSeat {
    /// Of a volume whose default class is that one: nobody has sat down.
    pub fn new(class: Class) -> Self {
        Self {
            serving: None,
            custody: None,
            answer_by: None,
            ledger: Ledger::default(),
            founding: None,
            classes: Classes::new(class),
            ids: IdPool::default(),
            counts: ChunkCounts::default(),
            house: House::default(),
            trash: None,
            trash_clock: None,
            trash_held: 0,
            scanned: false,
            counted: 0,
        }
    }

    /// Forgets what only a leader may know, apart from the classes. Sessions and promises stay, and what hangs on them: if this master leads again in the
    /// same term, nobody else was custodian in between, and what it promised under that custody epoch still stands.
    pub fn leave(&mut self) {
        self.serving = None;
        self.ids = IdPool::default();
        self.counts = ChunkCounts::default();
        self.house = House::default();
        (self.trash, self.trash_clock, self.trash_held) = (None, None, 0);
        self.scanned = false;
        self.counted = 0;
    }
}
