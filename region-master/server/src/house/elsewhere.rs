//! Files whose data goes elsewhere for their own sake: those that share a chunk with files of another storage class get one of their class, and those
//! whose extents are too many get few long ones.
//!
//! It goes as a rewrite does ([`super::rewrite`]), at the same pace, one at a time and beside at most as many rewrites as there may be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mooseng_namespace::rewrite::{self as swapping, Moved, Piece, Swapped};
use mooseng_namespace::upkeep::ChunkListing;
use mooseng_region::join::{self, Joiner, Run};
use mooseng_region::leave::{Leavers, Leaving};
use mooseng_region::rewrite::Limits as RewriteLimits;
use mooseng_schema::ids::IdKind;
use mooseng_wire::call::CallError;
use mooseng_wire::{ChunkId, InodeId};

use super::Keeper;
use super::rewrite::{carry, pieces};
use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;
use crate::seals;

/// Extents read in one transaction.
const PAGE: usize = 4_096;
/// Chunks that one new one is made of.
const SOURCES_MAX: usize = 1_024;
/// Chunks that are remembered between two scans, each with the file up to which classes were compared.
const COMPARED_MAX: usize = 65_536;

/// What is remembered of it within a term.
#[derive(Default)]
pub(super) struct Elsewhere {
    leavers: Leavers,
    joiner: Joiner,
    /// A file that was joined up to there.
    goes_on: Option<(InodeId, u64)>,
    /// Of chunks with many files: behind which file the next scan compares classes.
    pub compared: Arc<BTreeMap<ChunkId, InodeId>>,
    /// The new chunk, and those that it is made of, as far as they are known.
    making: BTreeSet<ChunkId>,
}

/// A chunk whose files' storage classes were compared with its own.
pub(super) struct Compared {
    pub chunk: ChunkId,
    /// The files that have another one.
    pub misfits: Vec<(InodeId, u32)>,
    /// Behind which the others come.
    pub next: Option<InodeId>,
}

/// What is done.
enum Work {
    Leave(Leaving),
    /// From that offset on.
    Join(InodeId, u64),
}

/// Something to be done.
pub(super) struct Plan {
    work: Work,
    to: ChunkId,
}

/// What came of it.
pub(super) struct Done {
    plan: Plan,
    result: Result<Outcome, CallError>,
}

#[derive(Default)]
struct Outcome {
    swapped: Swapped,
    /// Extents that were joined.
    extents: u64,
    /// Where the file goes on.
    next: Option<u64>,
}

impl Elsewhere {
    /// Whether a chunk is being made, or read for it: it is neither a stray nor unused.
    pub(super) fn is_making(&self, chunk: ChunkId) -> bool {
        self.making.contains(&chunk)
    }

    /// Those chunks.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &ChunkId> {
        self.making.iter()
    }
}

impl Keeper<'_> {
    fn join_limits(&self) -> join::Limits {
        let house = &self.master.config.house;
        let again = Duration::from_millis(house.join_after_ms);
        join::Limits { joints_min: house.join_above_extents, again, ..join::Limits::default() }
    }

    /// The scan comes across files of another class than their chunk's.
    pub(super) fn note_misfits(&mut self, found: Vec<Compared>) {
        if found.is_empty() {
            return;
        }
        let compared = Arc::make_mut(&mut self.elsewhere.compared);
        for Compared { chunk, misfits, next } in found {
            for (inode, class) in misfits {
                self.elsewhere.leavers.see(chunk, inode, class);
            }
            if let Some(next) = next.filter(|_| compared.len() < COMPARED_MAX) {
                compared.insert(chunk, next);
            } else {
                compared.remove(&chunk);
            }
        }
    }

    /// The scan comes across a sealed chunk that is in use.
    pub(super) fn note_extents(&mut self, listing: &ChunkListing) {
        let limits = self.join_limits();
        for (inode, used) in &listing.first_users {
            self.elsewhere.joiner.see(*inode, used.extents, used.bytes, &limits);
        }
    }

    /// The scan has seen all chunks.
    pub(super) fn choose_joins(&mut self) {
        let limits = self.join_limits();
        self.elsewhere.joiner.passed(&limits);
    }

    /// What to begin now.
    pub(super) fn moves(&mut self) -> Option<Plan> {
        if !self.elsewhere.making.is_empty() || self.master.config.house.rewrites_at_once == 0 {
            return None;
        }
        let (limits, now, busy) = (self.join_limits(), self.master.clock.boot(), self.busy_chunks());
        let elsewhere = &mut self.elsewhere;
        let leaving = elsewhere.leavers.next(&busy).map(Work::Leave);
        let work = leaving.or_else(|| {
            let goes_on = elsewhere.goes_on.take();
            let next = goes_on.or_else(|| Some((elsewhere.joiner.next(now, &limits)?, 0)));
            next.map(|(inode, from)| Work::Join(inode, from))
        })?;
        let id = self.master.desk(|desk| desk.seat_mut(self.volume).ids.take(IdKind::Chunk, 1));
        let Some(number) = id.and_then(|ids| ids.first().copied()) else {
            self.master.ids_low.notify_waiters();
            // The next scan finds it again.
            return None;
        };
        let to = ChunkId::new(self.volume, number);
        self.elsewhere.making.insert(to);
        if let Work::Leave(leaving) = &work {
            self.elsewhere.making.extend(&leaving.chunks);
        }
        Some(Plan { work, to })
    }

    /// One has ended.
    pub(super) fn moved(&mut self, done: Done) {
        let Done { plan, result } = done;
        self.elsewhere.making.clear();
        let metrics = &self.master.metrics;
        let to = plan.to.0;
        match (result, plan.work) {
            (Ok(outcome), Work::Leave(leaving)) => {
                let (files, class) = (leaving.inodes.len(), leaving.storage_class);
                let Swapped { bytes, left } = outcome.swapped;
                tracing::info!(to, files, class, bytes, left, "files got a chunk of their storage class");
                metrics.parted_bytes.inc_by(bytes);
            }
            (Ok(outcome), Work::Join(inode, from)) => {
                let Swapped { bytes, left } = outcome.swapped;
                if bytes > 0 {
                    let extents = outcome.extents;
                    tracing::info!(
                        to,
                        inode = inode.0,
                        from,
                        extents,
                        bytes,
                        left,
                        "joined extents of a file"
                    );
                    self.figures.joined_extents += extents;
                    metrics.joined_extents.inc_by(extents);
                    metrics.joined_bytes.inc_by(bytes);
                }
                self.elsewhere.goes_on = outcome.next.map(|next| (inode, next));
            }
            (Err(error), work) => {
                let inode = match work {
                    Work::Join(inode, _) => inode.0,
                    Work::Leave(leaving) => leaving.inodes.first().map_or(0, |inode| inode.0),
                };
                tracing::info!(to, inode, error = %error.message, "files weren't moved elsewhere; trying again later");
                self.figures.rewrites_failed += 1;
                metrics.rewrites_failed.inc();
            }
        }
    }
}

/// Carries a plan out.
pub(super) async fn make(master: &Arc<Master>, term: u64, plan: Plan) -> Done {
    let result = match &plan.work {
        Work::Leave(leaving) => leave(master, term, plan.to, leaving).await,
        Work::Join(inode, from) => join(master, term, plan.to, *inode, *from).await,
    };
    Done { plan, result }
}

async fn sealed(master: &Master, chunks: &BTreeSet<ChunkId>) -> Result<Vec<ChunkListing>, CallError> {
    let mut all = Vec::new();
    for chunk in chunks {
        all.extend(seals::load(master, *chunk).await?.filter(|listing| listing.record.sealed));
    }
    Ok(all)
}

async fn leave(
    master: &Arc<Master>,
    term: u64,
    to: ChunkId,
    leaving: &Leaving,
) -> Result<Outcome, CallError> {
    let class = leaving.storage_class;
    let mut inodes = BTreeSet::new();
    for inode in &leaving.inodes {
        let is = standing(master, *inode).await?;
        if is.is_some_and(|standing| standing.storage_class == class) {
            inodes.insert(*inode);
        }
    }
    let mut victims = sealed(master, &leaving.chunks).await?;
    victims.retain(|listing| listing.record.storage_class != class);
    let moved = pieces(master, &victims, Some(&inodes)).await?;
    if moved.is_empty() {
        return Ok(Outcome::default());
    }
    let swapped = carry(master, term, (to, class), &victims, &moved).await?;
    Ok(Outcome { swapped, ..Outcome::default() })
}

async fn standing(master: &Master, inode: InodeId) -> Result<Option<swapping::Standing>, CallError> {
    let standing = transact(&master.store, |tx| async move {
        let standing = swapping::standing(&tx, inode).await?;
        Ok((tx, standing))
    });
    standing.await.map_err(|e| record_failed(&e))
}

/// Joins the first part of a file from that offset on that has too many joints.
async fn join(
    master: &Arc<Master>,
    term: u64,
    to: ChunkId,
    inode: InodeId,
    from: u64,
) -> Result<Outcome, CallError> {
    let limits = join::Limits::default();
    let cold = Duration::from_millis(master.config.house.join_after_ms);
    let Some(is) = standing(master, inode).await? else { return Ok(Outcome::default()) };
    let age = Duration::from_nanos(master.clock.unix_ns().abs_diff(is.changed_ns));
    if is.goes || age < cold {
        return Ok(Outcome::default());
    }
    let mut from = Some(from);
    while let Some(begin) = from {
        let (mut runs, next) = part(master, inode, begin).await?;
        from = next;
        trim(&mut runs, limits.extent_bytes_max);
        if join::joints(&runs) < master.config.house.join_above_extents {
            continue;
        }
        let chunks = join::chunks(&runs);
        let victims = sealed(master, &chunks).await?;
        if victims.len() < chunks.len() {
            // One that isn't sealed is being written.
            continue;
        }
        let mut to_offset = 0;
        let moved: Vec<Moved> = runs
            .iter()
            .map(|run| {
                let Run { offset, chunk, chunk_offset, length } = *run;
                let at = to_offset;
                to_offset += length;
                Moved { piece: Piece { inode, offset, chunk, chunk_offset, length }, to_offset: at }
            })
            .collect();
        let swapped = carry(master, term, (to, is.storage_class), &victims, &moved).await?;
        return Ok(Outcome { swapped, extents: moved.len() as u64, next });
    }
    Ok(Outcome::default())
}

/// The runs that begin within the part of a file in which that offset lies, behind it, as far as one chunk may have them; and where the next part begins.
async fn part(master: &Master, inode: InodeId, begin: u64) -> Result<(Vec<Run>, Option<u64>), CallError> {
    let limits = RewriteLimits::default();
    let end = join::part_end(begin);
    let (mut runs, mut chunks, mut bytes) = (Vec::new(), BTreeSet::new(), 0);
    let mut from = Some(begin);
    while let Some(at) = from {
        let page = transact(&master.store, |tx| async move {
            let page = swapping::pieces(&tx, inode, at, None, PAGE).await?;
            Ok((tx, page))
        });
        let (found, next) = page.await.map_err(|e| record_failed(&e))?;
        from = next;
        for Piece { offset, chunk, chunk_offset, length, .. } in found {
            if offset >= end {
                // Over a hole, if there is one.
                return Ok((runs, Some(offset)));
            }
            chunks.insert(chunk);
            bytes += length;
            let full = bytes > limits.bytes_max || runs.len() as u64 >= limits.extents_max;
            if full || chunks.len() > SOURCES_MAX {
                // At least one was taken, so it goes on.
                return Ok((runs, Some(offset)));
            }
            runs.push(Run { offset, chunk, chunk_offset, length });
        }
        tokio::task::yield_now().await;
    }
    Ok((runs, None))
}

/// Long runs at the ends stay where they are: moving them would cost much for one joint.
fn trim(runs: &mut Vec<Run>, long: u64) {
    let first = runs.iter().position(|run| run.length < long).unwrap_or(runs.len());
    runs.drain(..first);
    let last = runs.iter().rposition(|run| run.length < long).map_or(0, |last| last + 1);
    runs.truncate(last);
}
