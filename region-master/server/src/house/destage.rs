//! Destaging: small writes to large files, which a commit has put into the metadata store, are moved into chunks.
//!
//! ```text
//!   counts of all files -> Destager -> files -> their staged bytes -> built on one chunkserver -> pulls by the others -> record -> swaps
//! ```
//! It goes as a rewrite does ([`super::rewrite`]), and needs as little cleaning up. But nobody has to give up a promise for it: what sessions know
//! of these extents, their bytes, stays true. So it goes on beneath a file that is written all the while; what was written anew since it was read is
//! left for the next time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use mooseng_namespace::rewrite::{self as swapping, Destaged, StagedPiece, Swapped};
use mooseng_ports::clock::BootTime;
use mooseng_region::destage::{Destager, Limits, Staged};
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

/// Counts read in one transaction.
const PAGE: usize = 1_024;
/// Pages read in one tick.
const PAGES: usize = 4;
/// Pieces read in one transaction.
const PIECES: usize = 512;
/// Pieces of one new chunk.
const PIECES_MAX: usize = 8_192;
/// Pieces swapped in one transaction: it must be over before somebody has written one of them.
const SWAP_PIECES: usize = 128;
/// Tries of one swap before fewer pieces are swapped at once.
const SWAP_TRIES: u32 = 3;
/// Files that couldn't be destaged are left alone for so long.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What is remembered of it within a term.
#[derive(Default)]
pub(super) struct Stage {
    destager: Destager,
    /// Where the scan goes on.
    after: Option<InodeId>,
    busy: BTreeSet<InodeId>,
    making: BTreeSet<ChunkId>,
    waits: BTreeMap<InodeId, BootTime>,
}

/// A chunk to be made.
pub(super) struct Plan {
    files: Vec<Staged>,
    to: ChunkId,
}

/// What came of it.
pub(super) struct Done {
    plan: Plan,
    result: Result<Swapped, CallError>,
}

impl Keeper<'_> {
    fn destage_limits(&self) -> Limits {
        let (house, limits) = (&self.master.config.house, Limits::default());
        let bytes = house.destage_above_kib << 10;
        Limits {
            at_once: house.destages_at_once,
            quiet: Duration::from_millis(house.destage_after_ms),
            bytes,
            // Tiny pieces are as much a burden as a few large ones.
            pieces: limits.pieces.min((bytes >> 12).max(16)),
            ..limits
        }
    }

    /// Whether a chunk is being made: it is neither a stray nor unused.
    pub(super) fn is_destaging_to(&self, chunk: ChunkId) -> bool {
        self.stage.making.contains(&chunk)
    }

    /// Goes on with the scan over what files have staged.
    pub(super) async fn look_at_staged(&mut self) -> Result<(), CallError> {
        let limits = self.destage_limits();
        for _ in 0..PAGES {
            let (volume, after) = (self.volume, self.stage.after);
            let page = transact(&self.master.store, |tx| async move {
                let page = swapping::staged_files(&tx, volume, after, PAGE).await?;
                Ok((tx, page))
            })
            .await
            .map_err(|e| record_failed(&e))?;
            let now = self.master.clock.boot();
            for file in &page {
                let (inode, staged) = (file.inode, file.staged);
                if staged.is_zero() {
                    self.forget_staged(inode).await?;
                    continue;
                }
                let count = |n: i64| u64::try_from(n).unwrap_or(0);
                let staged = Staged { inode, bytes: count(staged.bytes), pieces: count(staged.pieces) };
                self.stage.destager.see(staged, now, &limits);
            }
            self.stage.after = page.last().map(|file| file.inode).filter(|_| page.len() == PAGE);
            if self.stage.after.is_none() {
                self.stage.destager.passed();
                return Ok(());
            }
        }
        Ok(())
    }

    async fn forget_staged(&self, inode: InodeId) -> Result<(), CallError> {
        let forgotten = transact(&self.master.store, |tx| async move {
            swapping::forget_staged(&tx, inode).await?;
            Ok((tx, ()))
        });
        forgotten.await.map_err(|e| record_failed(&e))
    }

    /// Chunks to be made now.
    pub(super) fn destages(&mut self) -> Vec<Plan> {
        let (limits, now) = (self.destage_limits(), self.master.clock.boot());
        let stage = &mut self.stage;
        stage.waits.retain(|_, until| *until > now);
        let mut plans = Vec::new();
        loop {
            let left_alone: BTreeSet<InodeId> =
                stage.busy.iter().chain(stage.waits.keys()).copied().collect();
            let Some(files) = stage.destager.next(stage.making.len(), &left_alone, &limits) else {
                return plans;
            };
            let id = self.master.desk(|desk| desk.seat_mut(self.volume).ids.take(IdKind::Chunk, 1));
            let Some(number) = id.and_then(|ids| ids.first().copied()) else {
                self.master.ids_low.notify_waiters();
                return plans;
            };
            let to = ChunkId::new(self.volume, number);
            stage.making.insert(to);
            stage.busy.extend(files.iter().map(|file| file.inode));
            plans.push(Plan { files, to });
        }
    }

    /// One has ended.
    pub(super) fn destaged(&mut self, done: Done) {
        let Done { plan, result } = done;
        self.stage.making.remove(&plan.to);
        let again = self.master.clock.boot().after(AGAIN_AFTER);
        let nothing = !matches!(&result, Ok(swapped) if swapped.bytes > 0);
        for file in &plan.files {
            self.stage.busy.remove(&file.inode);
            if nothing {
                self.stage.waits.insert(file.inode, again);
            }
        }
        let metrics = &self.master.metrics;
        match result {
            Ok(Swapped { bytes, left }) => {
                tracing::debug!(
                    to = plan.to.0,
                    files = plan.files.len(),
                    bytes,
                    left,
                    "moved staged data into a chunk"
                );
                metrics.destaged_bytes.inc_by(bytes);
                metrics.destaged_chunks.inc();
            }
            Err(error) => {
                tracing::info!(to = plan.to.0, files = plan.files.len(), error = %error.message, "staged data wasn't moved into a chunk; trying again later");
                metrics.destages_failed.inc();
            }
        }
    }

    /// How many bytes are staged, and whether that is all that the volume carries.
    pub(super) fn staged(&self) -> (u64, bool) {
        let bytes = self.stage.destager.bytes();
        (bytes, bytes > self.destage_limits().closed_bytes)
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
    let order = Order { master, term, to: plan.to, class, length, pace: 0 };
    let copies = order.make_copies(vec![source], vec![BuildPiece { source: 0, offset: 0, length }]).await?;
    order.put_on_record(inode, copies).await?;
    let mut sum = Swapped::default();
    for file in moved.chunk_by(|a, b| a.piece.inode == b.piece.inode) {
        let swapped = swap(&order, file).await?;
        sum.bytes += swapped.bytes;
        sum.left += swapped.left;
    }
    Ok(sum)
}

/// What these files have staged, as far as one chunk is to have it, and its storage class: that of the first of them. Those of another one wait.
async fn gather(master: &Master, files: &[Staged]) -> Result<(Vec<Destaged>, u32), CallError> {
    let most = Limits::default().order_bytes;
    let mut all: Vec<Destaged> = Vec::new();
    let (mut length, mut class) = (0, None);
    for file in files {
        let (inode, mut from) = (file.inode, Some(0));
        while let Some(at) = from
            && length < most
            && all.len() < PIECES_MAX
        {
            let room = most - length;
            let page = transact(&master.store, |tx| async move {
                let page = swapping::staged_pieces(&tx, inode, at, PIECES, room).await?;
                Ok((tx, page))
            })
            .await
            .map_err(|e| record_failed(&e))?;
            let Some((pieces, next, of)) = page else { break };
            if *class.get_or_insert(of) != of {
                break;
            }
            for piece in pieces {
                let to_offset = length;
                length += piece.bytes.len() as u64;
                all.push(Destaged { piece, to_offset });
            }
            from = next;
        }
    }
    Ok((all, class.unwrap_or(0)))
}

/// Some pieces at a time, fewer where somebody writes them all the while.
async fn swap(order: &Order<'_>, mut file: &[Destaged]) -> Result<Swapped, CallError> {
    let mut sum = Swapped::default();
    let Some(Destaged { piece: StagedPiece { inode, .. }, .. }) = file.first() else { return Ok(sum) };
    let (inode, to) = (*inode, order.to);
    let mut changes = Changes::begin(order.master, order.to.volume(), order.term, order.deadline()).await?;
    let mut at_once = SWAP_PIECES;
    while !file.is_empty() {
        let (now, later) = file.split_at(at_once.min(file.len()));
        let part: Arc<[Destaged]> = now.into();
        let changed = changes.change(Repeat::Harmless, SWAP_TRIES, order.deadline(), |tx, _| {
            let part = part.clone();
            Box::pin(async move { swapping::destage(tx, inode, to, &part).await })
        });
        match changed.await? {
            Some(swapped) => {
                sum.bytes += swapped.bytes;
                sum.left += swapped.left;
                file = later;
                at_once = (at_once * 2).min(SWAP_PIECES);
            }
            None if at_once > 1 => at_once = (at_once / 4).max(1),
            None => return Err(failed("its pieces change faster than they can be swapped")),
        }
    }
    changes.end();
    Ok(sum)
}
