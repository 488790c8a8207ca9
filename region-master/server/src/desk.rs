//! What a master keeps in memory beside the store: sessions, chunkservers, fresh ids, ticket keys, seals to be told. One mutex with short
//! sections and no waiting inside owns it.
//!
//! Chunkservers' heartbeats are in `heartbeats`, what they are told in `commands`, volumes that this region lets go of in `letting_go`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_chunk::ticket::Key;
use mooseng_namespace::classes::is_of_cluster;
use mooseng_ports::clock::BootTime;
use mooseng_region::class::Class;
use mooseng_region::findings::TrashFacts;
use mooseng_region::locks::LockWaits;
use mooseng_region::promises::PromiseTable;
use mooseng_region::quotas::Ledger;
use mooseng_region::registry::{self, Registry};
use mooseng_region::sessions::{self, SessionTable};
use mooseng_wire::admin::{HouseStatus, TrashStatus};
use mooseng_wire::founding::Founding;
use mooseng_wire::{ChunkId, InodeId, SessionId, VolumeId};

use crate::founding::{self, NotOurs, Strangers};
use crate::geo::ROOT_VOLUME;
use crate::seat::together;
pub use crate::seat::{ChunkCounts, House, VolumeSeat};

mod commands;
mod heartbeats;
mod letting_go;

use commands::Deletion;
pub use commands::Seal;
pub use heartbeats::HeartbeatRefused;

/// A master's memory.
pub struct Desk {
    /// The region's founding mark. It stays known once this master has led: it never changes.
    founding: Option<Founding>,
    /// The marks that chunkservers told while this master didn't know its own.
    marks: BTreeMap<String, Founding>,
    /// Who was refused as of another founding.
    pub strangers: Strangers,
    /// The root volume's seat.
    pub root: VolumeSeat,
    /// Those of the other volumes that this region has, served or not.
    pub(crate) others: BTreeMap<VolumeId, VolumeSeat>,
    /// Of a volume that it doesn't have.
    nobody: VolumeSeat,
    /// The default storage class.
    pub(crate) by_default: Class,
    /// The root volume isn't in this region.
    rootless: bool,
    /// When this master began to serve.
    pub serving_since: BootTime,
    /// Sessions, of all volumes, as all that follows: their ids say of which. Only a leader's are true.
    pub sessions: SessionTable,
    /// What sessions are promised.
    pub promises: PromiseTable,
    /// Sessions of which an earlier custodian knew and that haven't answered this one yet.
    pub unanswered: BTreeSet<SessionId>,
    /// Those of them that are given up at this moment ([`Desk::give_up_waiting`], in [`crate::custody`]).
    pub(crate) overdue: BTreeSet<SessionId>,
    /// Who waits for locks.
    pub lock_waits: LockWaits,
    /// The roots of the subtrees that sessions are confined to, as far as they were looked for.
    pub roots: BTreeMap<SessionId, InodeId>,
    /// Sessions of whose ended lives locks may still be held.
    pub lock_debts: BTreeSet<SessionId>,
    /// Chunkservers. Every master's own.
    pub registry: Registry,
    /// Ticket keys, newest first.
    pub keys: Vec<Key>,
    /// How often drainings were set: a scan that began before the last time doesn't count for them.
    drainings_set: u64,
    /// Copies to be deleted, by chunkserver.
    deletions: BTreeMap<String, BTreeMap<ChunkId, Deletion>>,
    /// Volumes that this region lets go of, with the custody epoch in which it does.
    letting_go: BTreeMap<VolumeId, u64>,
    /// Chunkservers that were told to delete copies of a volume's chunks while this region was something else to that, when, and in which custody epoch.
    obeying: BTreeMap<VolumeId, BTreeMap<String, (BootTime, u64)>>,
    /// Copies whose chunkserver has said that they are gone, since house-keeping last asked.
    gone: Vec<(ChunkId, String)>,
    /// Seals by chunkserver.
    seals: BTreeMap<String, BTreeMap<ChunkId, Seal>>,
    /// Copies that an inventory calls unsealed.
    unsealed: BTreeSet<(String, ChunkId)>,
    /// Chunkservers of whose present inventory something found no room there.
    left_out: BTreeSet<String>,
    /// Chunkservers whose whole inventory came in this leadership.
    compared: BTreeSet<String>,
}

impl Desk {
    /// An empty one, of a cluster with this default storage class.
    pub fn new(sessions: sessions::Limits, by_default: Class) -> Self {
        Self {
            founding: None,
            marks: BTreeMap::new(),
            strangers: Strangers::default(),
            root: VolumeSeat::new(by_default.clone()),
            others: BTreeMap::new(),
            nobody: VolumeSeat::new(by_default.clone()),
            by_default,
            rootless: false,
            serving_since: BootTime::default(),
            sessions: SessionTable::new(sessions),
            promises: PromiseTable::new(mooseng_region::promises::Limits::default()),
            unanswered: BTreeSet::new(),
            overdue: BTreeSet::new(),
            lock_waits: LockWaits::new(mooseng_region::locks::Limits::default()),
            lock_debts: BTreeSet::new(),
            roots: BTreeMap::new(),
            registry: Registry::new(registry::Limits::default()),
            keys: Vec::new(),
            drainings_set: 0,
            deletions: BTreeMap::new(),
            letting_go: BTreeMap::new(),
            obeying: BTreeMap::new(),
            gone: Vec::new(),
            seals: BTreeMap::new(),
            unsealed: BTreeSet::new(),
            left_out: BTreeSet::new(),
            compared: BTreeSet::new(),
        }
    }

    /// What is known of a volume.
    pub fn seat(&self, volume: VolumeId) -> &VolumeSeat {
        match volume {
            ROOT_VOLUME => &self.root,
            other => self.others.get(&other).unwrap_or(&self.nobody),
        }
    }

    /// What is known of a volume that this region has: of another one nothing is kept.
    pub fn seat_mut(&mut self, volume: VolumeId) -> &mut VolumeSeat {
        if volume == ROOT_VOLUME {
            return &mut self.root;
        }
        if let Some(seat) = self.others.get_mut(&volume) {
            return seat;
        }
        self.nobody = VolumeSeat::new(self.by_default.clone());
        &mut self.nobody
    }

    /// Takes note of whether this region has a volume.
    pub fn note_here(&mut self, volume: VolumeId, here: bool) {
        match volume {
            ROOT_VOLUME => self.rootless = !here,
            other if here => {
                self.others.entry(other).or_insert_with(|| VolumeSeat::new(self.by_default.clone()));
            }
            other => self.drop_volume(other),
        }
    }

    /// There is no such volume any more, or not in this region: nothing of it is served here again in this term.
    fn drop_volume(&mut self, volume: VolumeId) {
        if self.others.remove(&volume).is_some() {
            self.forget_sessions(volume);
        }
    }

    /// Forgets the volumes besides the root that aren't among these: deleted, while another master led.
    pub fn keep_volumes(&mut self, is_there: impl Fn(VolumeId) -> bool) {
        let gone: Vec<VolumeId> = self.others.keys().copied().filter(|volume| !is_there(*volume)).collect();
        gone.into_iter().for_each(|volume| self.drop_volume(volume));
    }

    /// The custody epoch in which a volume is served.
    pub fn serving_of(&self, volume: VolumeId) -> Option<u64> {
        self.seat(volume).serving
    }

    /// The custody epochs in which volumes are served, or let go of.
    pub fn served(&self) -> impl Iterator<Item = u64> {
        let seats = std::iter::once(&self.root).chain(self.others.values());
        seats.filter_map(|seat| seat.serving).chain(self.letting_go.values().copied())
    }

    /// The seats of all volumes of which this region has chunks.
    fn seats(&self) -> impl Iterator<Item = &VolumeSeat> {
        std::iter::once(&self.root).filter(|_| !self.rootless).chain(self.others.values())
    }

    /// The region's chunks.
    pub fn counts(&self) -> ChunkCounts {
        self.seats().map(|seat| seat.counts).fold(ChunkCounts::default(), ChunkCounts::plus)
    }

    /// Bytes of staged data in the region.
    pub fn staged_bytes(&self) -> u64 {
        self.seats().map(|seat| seat.house.staged_bytes).sum()
    }

    /// The storage classes of all volumes that this region has, the default one apart: the cluster's once. Of volumes besides the root the names of those of their
    /// own say whose they are.
    pub fn classes(&self) -> Vec<Class> {
        let of_root = self.root.classes.iter().skip(1).filter(|_| !self.rootless).cloned();
        let of_others = self.others.iter().flat_map(|(volume, seat)| {
            let named = move |class: &Class| match is_of_cluster(class.id) {
                true => class.clone(),
                false => Class { name: format!("{} of volume {volume}", class.name), ..class.clone() },
            };
            seat.classes.iter().skip(1).map(named)
        });
        let mut told = BTreeSet::new();
        let is_new = |class: &Class| !is_of_cluster(class.id) || told.insert(class.id);
        of_root.chain(of_others).filter(is_new).collect()
    }

    /// What the trashes of all volumes hold.
    pub fn trash(&self) -> TrashStatus {
        let held = self.seats().filter_map(|seat| seat.trash);
        held.fold(TrashStatus::default(), |sum, held| TrashStatus {
            files: sum.files + held.files,
            bytes: sum.bytes + held.bytes,
            ..sum
        })
    }

    /// Of volumes in whose trash there are files whose time is over by the clock, and that stay for that was set forward.
    pub fn trash_held(&self) -> Vec<TrashFacts> {
        let root = std::iter::once((ROOT_VOLUME, &self.root)).filter(|_| !self.rootless);
        let seats = root.chain(self.others.iter().map(|(volume, seat)| (*volume, seat)));
        let held = seats.filter(|(_, seat)| seat.trash_held > 0);
        let facts = held.filter_map(|(volume, seat)| {
            let clock = seat.trash_clock?;
            let steady_s = clock.steady()?.as_secs();
            Some(TrashFacts {
                volume: format!("volume {volume}"),
                held: seat.trash_held,
                step_s: clock.step().as_secs(),
                steady_s,
            })
        });
        facts.collect()
    }

    /// Accounts with limits, and bytes of them that sessions are promised.
    pub fn promised_of_quotas(&self) -> (usize, u64) {
        let ledgers = || self.seats().map(|seat| &seat.ledger);
        (ledgers().map(Ledger::limited).sum(), ledgers().map(Ledger::escrow).sum())
    }

    /// Figures of the region's house-keeping.
    pub fn house_status(&self) -> HouseStatus {
        self.seats().map(|seat| seat.house.status).fold(HouseStatus::default(), together)
    }

    /// The region's founding mark, once this master has led.
    pub fn founding(&self) -> Option<Founding> {
        self.founding
    }

    /// The mark by which mounts know a volume.
    pub fn volume_founding(&self, volume: VolumeId) -> Option<Founding> {
        let region = self.founding.filter(|_| volume == ROOT_VOLUME);
        self.seat(volume).founding.or(region)
    }

    /// Refuses a mount that tells another mark than the volume's, and remembers it under that name.
    pub fn let_in_to_volume(
        &mut self,
        volume: VolumeId,
        now: BootTime,
        who: &str,
        told: &[u8],
    ) -> Result<Option<Founding>, NotOurs> {
        founding::check(self.volume_founding(volume), told).inspect_err(|not_ours| {
            if let NotOurs::Other { told, own } = not_ours {
                self.strangers.refused(now, who.to_owned(), *told, *own);
            }
        })
    }

    /// Learns the region's founding mark, before it serves.
    pub fn found(&mut self, founding: Founding) {
        self.founding = Some(founding);
        if std::mem::take(&mut self.marks).values().any(|mark| *mark != founding) {
            // What came from chunkservers of another founding is told apart from the rest by their next heartbeats: within a second.
            self.registry = Registry::new(registry::Limits::default());
            self.unsealed.clear();
            self.left_out.clear();
            self.compared.clear();
        }
    }

    /// Refuses a caller that tells another founding mark, and remembers it under that name.
    pub fn let_in(&mut self, now: BootTime, who: &str, told: &[u8]) -> Result<Option<Founding>, NotOurs> {
        founding::check(self.founding, told).inspect_err(|not_ours| {
            if let NotOurs::Other { told, own } = not_ours {
                self.strangers.refused(now, who.to_owned(), *told, *own);
            }
        })
    }

    /// Sets which chunkservers are being drained.
    pub fn set_draining(&mut self, names: BTreeSet<String>) {
        self.drainings_set += 1;
        self.registry.set_draining(names);
    }

    /// To be remembered by a scan that begins, for [`Self::located_as_of`].
    pub fn drainings_set(&self) -> u64 {
        self.drainings_set
    }

    /// Takes what a scan of a volume has counted that began when `drainings_set` was so.
    pub fn located_as_of(&mut self, volume: VolumeId, drainings_set: u64, located: BTreeMap<String, u64>) {
        let seat = self.seat_mut(volume);
        seat.house.located = located;
        seat.scanned = true;
        seat.counted = drainings_set;
    }

    /// Whether every chunkserver that there may be has reported: this master has served for that long, and all those are known that chunks' locations
    /// name. One that isn't known may have any labels.
    pub fn knows_all(&self, now: BootTime, heard_after: Duration) -> bool {
        let unknown = |name: &String| self.registry.get(name).is_none();
        let knows = |seat: &VolumeSeat| seat.scanned && !seat.house.located.keys().any(unknown);
        now.since(self.serving_since) >= heard_after && self.seats().all(knows)
    }

    /// How many chunks' locations name a chunkserver. One that was just set to be drained isn't empty before that was counted: somebody
    /// waits for the zero to stop it. Nor is any while a volume of this region isn't served, whose chunks nobody counts.
    pub fn located(&self, name: &str) -> u64 {
        let counted = self.seats().map(|seat| seat.house.located.get(name).copied().unwrap_or(0)).sum();
        let are_counted = self.seats().all(|seat| seat.counted == self.drainings_set);
        if are_counted || !self.registry.is_draining(name) {
            return counted;
        }
        let told = self.registry.get(name).map_or(0, |server| server.chunks());
        counted.max(told).max(1)
    }

    /// Forgets what only a leader may know.
    pub fn follow(&mut self) {
        self.root.leave();
        self.others.values_mut().for_each(VolumeSeat::leave);
        self.seals.clear();
        self.compared.clear();
        self.deletions.clear();
        self.letting_go.clear();
        // What comes from a leader of another term fences what this one has ordered.
        self.obeying.clear();
        self.gone.clear();
    }

    /// Forgets what only who serves a volume may know: this region isn't to it any more what it was.
    pub fn unseat(&mut self, volume: VolumeId) {
        self.seat_mut(volume).leave();
        let is_other = |chunk: &ChunkId| chunk.volume() != volume;
        self.seals.values_mut().for_each(|waiting| waiting.retain(|chunk, _| is_other(chunk)));
        self.seals.retain(|_, waiting| !waiting.is_empty());
        for (name, waiting) in &self.deletions {
            let told = waiting
                .iter()
                .filter(|(chunk, _)| !is_other(chunk))
                .filter_map(|(_, deletion)| Some((deletion.told?, deletion.custody)));
            if let Some(last) = told.max() {
                self.obeying.entry(volume).or_default().insert(name.clone(), last);
            }
        }
        self.letting_go.remove(&volume);
        self.deletions.values_mut().for_each(|waiting| waiting.retain(|chunk, _| is_other(chunk)));
        self.deletions.retain(|_, waiting| !waiting.is_empty());
        self.gone.retain(|(chunk, _)| is_other(chunk));
        // Whole inventories are compared with what the next part says of this volume's chunks.
        self.compared.clear();
    }

    /// Whether this master serves any volume.
    pub fn is_serving(&self) -> bool {
        self.served().next().is_some()
    }

    /// Names of the chunkservers whose heartbeats come.
    pub fn alive(&self, now: BootTime) -> BTreeSet<String> {
        let alive = |s: &&registry::Chunkserver| {
            s.liveness(now, self.registry.limits()) == mooseng_region::Liveness::Alive
        };
        self.registry.iter().filter(alive).map(|s| s.beat.name.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
