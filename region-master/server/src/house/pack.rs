//! Packing: inline data of small files that nobody changes any more is moved into chunks that they share.
//!
//! ```text
//!   lists of all files -> Packer -> files -> their inline bytes -> built on one chunkserver -> pulls by the others -> record -> swaps
//! ```
//! It goes as destaging does ([`super::destage`]): nobody has to give up a promise, and what was changed since it was read stays inline. Whatever ends it
//! leaves at most a chunk that no file names, which is collected like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use mooseng_namespace::pack::{self as packing, PackableFile};
use mooseng_namespace::rewrite::{Destaged, StagedPiece, Swapped};
use mooseng_ports::clock::BootTime;
use mooseng_region::pack::{Limits, Packable, Packer};
use mooseng_schema::ids::IdKind;
use mooseng_wire::call::CallError;
use mooseng_wire::chunk::{BuildPiece, BuildSource};
use mooseng_wire::{ChunkId, InodeId};

use super::Keeper;
use super::rewrite::{Order, failed};
use crate::errors::record_failed;
use crate::master::Master;
use crate::own::{Changes, Repeat};
use crate::records::transact;

/// Pieces of the list that are read in one tick.
const PAGE: usize = 1_024;
/// Files whose pieces are read in one transaction.
const FILES: usize = 32;
/// Pieces of one new chunk.
const PIECES_MAX: usize = 4_096;
/// Pieces swapped in one transaction, of several files.
const SWAP_PIECES: usize = 128;
/// Tries of one swap before fewer pieces are swapped at once.
const SWAP_TRIES: u32 = 3;
/// Files that couldn't be packed are left alone for so long.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What is remembered of it within a term.
#[derive(Default)]
pub(super) struct Packs {
    packer: Packer,
    /// Where the scan goes on.
    after: Option<InodeId>,
    /// The next scan doesn't begin before.
    next: Option<BootTime>,
    busy: BTreeSet<InodeId>,
    making: BTreeSet<ChunkId>,
    waits: BTreeMap<InodeId, BootTime>,
}

/// A chunk to be made.
pub(super) struct Plan {
    files: Vec<InodeId>,
    to: ChunkId,
}

/// What came of it.
pub(super) struct Done {
    plan: Plan,
    result: Result<Swapped, CallError>,
}

impl Keeper<'_> {
    fn pack_limits(&self) -> Limits {
        let house = &self.master.config.house;
        Limits {
            // A ticket opens a whole chunk.
            at_once: if self.master.config.confines_mounts() { 0 } else { house.packs_at_once },
            quiet: Duration::from_millis(house.pack_after_ms),
            bytes_min: house.pack_above_kib << 10,
            fill_min: house.pack_fill_kib << 10,
            ..Limits::default()
        }
    }

    /// Whether a chunk is being made: it is neither a stray nor unused.
    pub(super) fn is_packing_to(&self, chunk: ChunkId) -> bool {
        self.packs.making.contains(&chunk)
    }

    /// Goes on with the scan over what files have packable.
    pub(super) async fn look_at_packable(&mut self) -> Result<(), CallError> {
        let (limits, now) = (self.pack_limits(), self.master.clock.boot());
        if self.packs.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        let (volume, after) = (self.volume, self.packs.after);
        let page = transact(&self.master.store, |tx| async move {
            let page = packing::packable_files(&tx, volume, after, PAGE).await?;
            Ok((tx, page))
        });
        let (files, next) = page.await.map_err(|e| record_failed(&e))?;
        let now_ns = self.now_ns();
        for file in files {
            let PackableFile { inode, storage_class, bytes, changed_ns } = file;
            // A clock that was wrong by years mustn't keep a file from it; a swap is safe at any time.
            let quiet_for = Duration::from_nanos(now_ns.abs_diff(changed_ns));
            self.packs.packer.see(Packable { inode, storage_class, bytes, quiet_for }, &limits);
        }
        self.packs.after = next;
        if next.is_none() {
            self.packs.packer.passed();
            let pause = Duration::from_millis(self.master.config.house.scan_every_ms);
            self.packs.next = Some(now.after(pause));
            let (files, bytes) = self.packs.packer.waiting();
            self.master.metrics.packable_files.set(i64::try_from(files).unwrap_or(i64::MAX));
            self.master.metrics.packable_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        Ok(())
    }

    /// Chunks to be made now.
    pub(super) fn packs(&mut self) -> Vec<Plan> {
        let (limits, now) = (self.pack_limits(), self.master.clock.boot());
        let packs = &mut self.packs;
        packs.waits.retain(|_, until| *until > now);
        let mut plans = Vec::new();
        loop {
            let left_alone: BTreeSet<InodeId> =
                packs.busy.iter().chain(packs.waits.keys()).copied().collect();
            let Some(files) = packs.packer.next(packs.making.len(), &left_alone, &limits) else {
                return plans;
            };
            let id = self.master.desk(|desk| desk.seat_mut(self.volume).ids.take(IdKind::Chunk, 1));
            let Some(number) = id.and_then(|ids| ids.first().copied()) else {
                self.master.ids_low.notify_waiters();
                return plans;
            };
            let to = ChunkId::new(self.volume, number);
            packs.making.insert(to);
            packs.busy.extend(files.iter().copied());
            plans.push(Plan { files, to });
        }
    }

    /// One has ended.
    pub(super) fn packed(&mut self, done: Done) {
        let Done { plan, result } = done;
        self.packs.making.remove(&plan.to);
        let again = self.master.clock.boot().after(AGAIN_AFTER);
        let nothing = !matches!(&result, Ok(swapped) if swapped.bytes > 0);
        for inode in &plan.files {
            self.packs.busy.remove(inode);
            if nothing {
                self.packs.waits.insert(*inode, again);
            }
        }
        let metrics = &self.master.metrics;
        match result {
            Ok(Swapped { bytes, left }) => {
                let files = plan.files.len();
                tracing::debug!(to = plan.to.0, files, bytes, left, "packed small files into a chunk");
                self.figures.packed_bytes += bytes;
                self.figures.packed_chunks += u64::from(bytes > 0);
                metrics.packed_bytes.inc_by(bytes);
                metrics.packed_chunks.inc_by(u64::from(bytes > 0));
            }
            Err(error) => {
                tracing::info!(to = plan.to.0, files = plan.files.len(), error = %error.message, "small files weren't packed into a chunk; trying again later");
                metrics.packs_failed.inc();
            }
        }
    }
}

/// Carries a plan out.
pub(super) async fn make(master: &Arc<Master>, term: u64, plan: Plan) -> Done {
    let result = try_make(master, term, &plan).await;
    Done { plan, result }
}

async fn try_make(master: &Arc<Master>, term: u64, plan: &Plan) -> Result<Swapped, CallError> {
    let (moved, class) = gather(master, &plan.files).await?;
    let Some(first) = moved.first() else { return Ok(Swapped::default()) };
    let inode = first.piece.inode;
    let mut data = BytesMut::new();
    moved.iter().for_each(|m| data.extend_from_slice(&m.piece.bytes));
    let length = data.len() as u64;
    let source = BuildSource { data: data.freeze(), ..BuildSource::default() };
    let pace = master.config.house.rewrite_mib_per_s << 20;
    let order = Order { master, term, to: plan.to, class, length, pace };
    let copies = order.make_copies(vec![source], vec![BuildPiece { source: 0, offset: 0, length }]).await?;
    order.put_on_record(inode, copies).await?;
    swap(&order, &moved).await
}

/// What these files have inline, as far as one chunk is to have it, and its storage class: that of the first of them. Those of another one wait.
async fn gather(master: &Master, files: &[InodeId]) -> Result<(Vec<Destaged>, u32), CallError> {
    let most = Limits::default().order_bytes;
    let mut all: Vec<Destaged> = Vec::new();
    let (mut length, mut class) = (0, None);
    for some in files.chunks(FILES) {
        let found = transact(&master.store, |tx| async move {
            let mut found = Vec::new();
            for inode in some {
                found.extend(packing::packable_pieces(&tx, *inode).await?);
            }
            Ok((tx, found))
        });
        for (pieces, of) in found.await.map_err(|e| record_failed(&e))? {
            let bytes: u64 = pieces.iter().map(|piece: &StagedPiece| piece.bytes.len() as u64).sum();
            let room = all.is_empty() || length + bytes <= most && all.len() + pieces.len() <= PIECES_MAX;
            if pieces.is_empty() || !room || *class.get_or_insert(of) != of {
                continue;
            }
            for piece in pieces {
                let to_offset = length;
                length += piece.bytes.len() as u64;
                all.push(Destaged { piece, to_offset });
            }
        }
        tokio::task::yield_now().await;
    }
    Ok((all, class.unwrap_or(0)))
}

/// Some pieces at a time, of several files; fewer where somebody changes them.
async fn swap(order: &Order<'_>, mut moved: &[Destaged]) -> Result<Swapped, CallError> {
    let mut sum = Swapped::default();
    let to = order.to;
    let mut changes = Changes::begin(order.master, order.to.volume(), order.term, order.deadline()).await?;
    let mut at_once = SWAP_PIECES;
    while !moved.is_empty() {
        let (now, later) = moved.split_at(at_once.min(moved.len()));
        let part: Arc<[Destaged]> = now.into();
        let changed = changes.change(Repeat::Harmless, SWAP_TRIES, order.deadline(), |tx, _| {
            let part = part.clone();
            Box::pin(async move { packing::pack(tx, to, &part).await })
        });
        match changed.await? {
            Some(swapped) => {
                sum.bytes += swapped.bytes;
                sum.left += swapped.left;
                moved = later;
                at_once = (at_once * 2).min(SWAP_PIECES);
            }
            None if at_once > 1 => at_once = (at_once / 4).max(1),
            // One that is changed all the while isn't worth the others' time.
            None => {
                sum.left += now.iter().map(|m| m.piece.bytes.len() as u64).sum::<u64>();
                moved = later;
            }
        }
    }
    changes.end();
    match sum.bytes {
        0 => Err(failed("they change faster than they can be packed, or were changed since")),
        _ => Ok(sum),
    }
}
