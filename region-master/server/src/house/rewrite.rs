//! The rewriter: chunks of which little is still used, and small ones, are made into a new one, which files then name instead; the old ones are collected.
//!
//! ```text
//!   scan -> Choice -> group -> pieces of files -> build on one chunkserver -> pulls by the others -> record -> swaps through the gate
//!                                                          \-> sent to the sync set of a `geo` volume      \-> not before they may have it
//! ```
//! The new chunk has no record before as many copies of it are durable as a chunk needs, and nothing names it before it has one. Until then its
//! copies are strays, which are deleted unless this keeper is at work on them; with a record and without a user it is collected like any
//! unused chunk. So whatever ends this - a failure, a new leader - needs no cleaning up, and nothing is ever done twice: each try takes a new id.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mooseng_namespace::rewrite::{self as swapping, Moved, Piece, SWAP_EXTENTS_MAX, Swapped};
use mooseng_namespace::upkeep::{self, ChunkListing};
use mooseng_ports::clock::BootTime;
use mooseng_region::class::Class;
use mooseng_region::placement::{self, Wish};
use mooseng_region::registry::CopyFacts;
use mooseng_region::rewrite::{Choice, Gathering, Group, Limits, Suspects, Used};
use mooseng_schema::chunk::ChunkRecord;
use mooseng_schema::ids::IdKind;
use mooseng_schema::location::{Layout, LocationRecord};
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Build, BuildPiece, BuildSource, Built, ChainMember, Pull, Pulled};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, InodeId, Role};
use tokio::time::Instant;

use super::Keeper;
use crate::desk::Desk;
use crate::errors::record_failed;
use crate::geo::push;
use crate::master::Master;
use crate::own::{self, Changes, Repeat};
use crate::records::transact;
use crate::{seals, tickets};

/// Files of one chunk.
const USERS_MAX: usize = upkeep::USES_MAX;
/// Extents read in one transaction.
const PAGE: usize = 4_096;
/// How long a chunk may take to be made, or copied, beyond what its pace allows.
const BUILD_WITHIN: Duration = Duration::from_secs(60);
/// The slowest pace that is waited for where none is set: 1 MiB in a second.
const PACE_MIN: u64 = 1 << 20;
/// A swap waits for sessions: at most for the lease of one that is gone.
const BEYOND_LEASE: Duration = Duration::from_secs(5);
/// Tries of one swap before fewer extents are swapped at once.
const SWAP_TRIES: u32 = 3;
/// Chunks whose rewriting failed, or brought nothing, are left alone for so long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Those of a group that failed are tried again in smaller ones a little later.
const SMALLER_AFTER: Duration = Duration::from_secs(5);

/// What the rewriter remembers within a term.
#[derive(Default)]
pub(super) struct Rewriter {
    gathering: Gathering,
    choice: Choice,
    /// Old and new chunks at work.
    busy: BTreeSet<ChunkId>,
    under_way: usize,
    waits: BTreeMap<ChunkId, BootTime>,
    suspects: Suspects,
}

/// A rewrite to be done.
pub(super) struct Plan {
    group: Group,
    to: ChunkId,
}

/// What came of one.
pub(super) struct Done {
    plan: Plan,
    result: Result<Swapped, CallError>,
}

impl Keeper<'_> {
    fn rewrite_limits(&self) -> Limits {
        let house = &self.master.config.house;
        Limits {
            at_once: house.rewrites_at_once,
            quiet: Duration::from_millis(house.rewrite_after_ms),
            gain_min: house.rewrite_gain_kib << 10,
            merge_quiet: Duration::from_millis(house.merge_after_ms),
            merge_chunks_min: match house.merge_chunks {
                0 => usize::MAX,
                _ if self.master.config.confines_mounts() => usize::MAX,
                chunks => chunks,
            },
            merge_bytes_min: house.merge_fill_kib << 10,
            ..Limits::default()
        }
    }

    /// Whether the rewriter is at work on a chunk: it is neither a stray nor unused.
    pub(super) fn is_rewriting(&self, chunk: ChunkId) -> bool {
        self.rewriter.busy.contains(&chunk)
            || self.is_destaging_to(chunk)
            || self.is_packing_to(chunk)
            || self.elsewhere.is_making(chunk)
    }

    /// Chunks that rewrites are made of, or make.
    pub(super) fn busy_chunks(&self) -> BTreeSet<ChunkId> {
        self.rewriter.busy.clone()
    }

    /// The scan comes across a sealed chunk that is in use.
    pub(super) fn note_used(&mut self, listing: &ChunkListing) {
        let record = &listing.record;
        let sealed_for = self.age(listing.chunk, record.sealed_ns);
        let used = Used {
            chunk: listing.chunk,
            inode: InodeId(record.inode),
            storage_class: record.storage_class,
            length: record.length,
            live: listing.used.bytes,
            extents: listing.used.extents,
            users: listing.users,
            sealed_for,
        };
        let limits = self.rewrite_limits();
        self.rewriter.gathering.see(used, &limits);
        self.note_extents(listing);
    }

    /// The scan has seen all chunks.
    pub(super) fn choose_rewrites(&mut self) {
        let gathering = std::mem::take(&mut self.rewriter.gathering);
        let (choice, seen) = gathering.finish(&self.rewrite_limits());
        self.rewriter.choice = choice;
        self.rewriter.gathering = Gathering::after(seen);
    }

    /// Rewrites to begin now.
    pub(super) fn rewrites(&mut self) -> Vec<Plan> {
        let (limits, now) = (self.rewrite_limits(), self.master.clock.boot());
        self.rewriter.waits.retain(|_, until| *until > now);
        let mut plans = Vec::new();
        loop {
            let rewriter = &mut self.rewriter;
            let left_alone: BTreeSet<ChunkId> = rewriter
                .busy
                .iter()
                .chain(rewriter.waits.keys())
                .chain(self.elsewhere.chunks())
                .copied()
                .collect();
            let Some(group) =
                rewriter.choice.next(rewriter.under_way, &left_alone, &rewriter.suspects, &limits)
            else {
                return plans;
            };
            let id = self.master.desk(|desk| desk.seat_mut(self.volume).ids.take(IdKind::Chunk, 1));
            let Some(number) = id.and_then(|ids| ids.first().copied()) else {
                self.master.ids_low.notify_waiters();
                return plans;
            };
            let to = ChunkId::new(self.volume, number);
            rewriter.busy.insert(to);
            rewriter.busy.extend(group.victims.iter().map(|used| used.chunk));
            rewriter.under_way += 1;
            self.tell_under_way();
            plans.push(Plan { group, to });
        }
    }

    /// One has ended.
    pub(super) fn rewritten(&mut self, done: Done) {
        let Done { plan, result } = done;
        let rewriter = &mut self.rewriter;
        rewriter.under_way -= 1;
        rewriter.busy.remove(&plan.to);
        self.tell_under_way();
        let rewriter = &mut self.rewriter;
        let (victims, gain) = (plan.group.victims.len() as u64, plan.group.gain());
        let smaller_may_do = match &result {
            Ok(_) => {
                rewriter.suspects.done(&plan.group);
                false
            }
            Err(_) => rewriter.suspects.failed(&plan.group),
        };
        let again = if smaller_may_do { SMALLER_AFTER } else { AGAIN_AFTER };
        let again = self.master.clock.boot().after(again);
        for used in plan.group.victims {
            rewriter.busy.remove(&used.chunk);
            // Also after a success: what the next scan knows of them may be old.
            rewriter.waits.insert(used.chunk, again);
        }
        let metrics = &self.master.metrics;
        match result {
            Ok(Swapped { bytes, left }) => {
                let merged = plan.group.merges;
                tracing::info!(to = plan.to.0, chunks = victims, bytes, left, gain, merged, "rewrote chunks");
                self.figures.rewritten_bytes += bytes;
                metrics.rewritten_bytes.inc_by(bytes);
                if merged {
                    self.figures.merged += victims;
                    metrics.chunks_merged.inc_by(victims);
                } else {
                    self.figures.rewritten += victims;
                    metrics.chunks_rewritten.inc_by(victims);
                }
            }
            Err(error) => {
                tracing::info!(to = plan.to.0, chunks = victims, error = %error.message, "chunks weren't rewritten; trying again later");
                self.figures.rewrites_failed += 1;
                metrics.rewrites_failed.inc();
            }
        }
    }

    pub(super) fn rewrites_under_way(&self) -> u64 {
        self.rewriter.under_way as u64
    }

    pub(super) fn tell_under_way(&self) {
        let under_way = self.master.desk(|desk| {
            desk.seat_mut(self.volume).house.status.rewriting = self.rewriter.under_way as u64;
            desk.house_status().rewriting
        });
        self.master.metrics.rewrites_under_way.set(i64::try_from(under_way).unwrap_or(i64::MAX));
    }
}

/// Carries a plan out.
pub(super) async fn make(master: &Arc<Master>, term: u64, plan: Plan) -> Done {
    let result = try_make(master, term, &plan).await;
    Done { plan, result }
}

pub(super) fn failed(message: impl Into<String>) -> CallError {
    call_error(ErrorCode::Unavailable, message)
}

async fn try_make(master: &Arc<Master>, term: u64, plan: &Plan) -> Result<Swapped, CallError> {
    let mut victims = Vec::new();
    for used in &plan.group.victims {
        let listing = seals::load(master, used.chunk).await?;
        // One whose files were assigned another storage class since goes with its like.
        let of_the_group = |listing: &ChunkListing| {
            let record = &listing.record;
            record.sealed && listing.used.extents > 0 && record.storage_class == plan.group.storage_class
        };
        victims.extend(listing.filter(of_the_group));
    }
    let moved = pieces(master, &victims, None).await?;
    if moved.is_empty() {
        let what = "no file names these chunks any more; if it stays so, `mooseng fsck` tells what counts them as used";
        return if victims.is_empty() { Ok(Swapped::default()) } else { Err(failed(what)) };
    }
    carry(master, term, (plan.to, plan.group.storage_class), &victims, &moved).await
}

/// Makes a chunk, of that storage class, of pieces of these ones, and has files name it.
pub(super) async fn carry(
    master: &Arc<Master>,
    term: u64,
    (to, class): (ChunkId, u32),
    victims: &[ChunkListing],
    moved: &[Moved],
) -> Result<Swapped, CallError> {
    let length = moved.iter().map(|m| m.to_offset + m.piece.length).max().unwrap_or(0);
    let pace = master.config.house.rewrite_mib_per_s << 20;
    let order = Order { master, term, to, class, length, pace };
    let sources =
        master.desk(|desk| victims.iter().map(|v| source(master, desk, v)).collect::<Vec<BuildSource>>());
    let numbers: BTreeMap<ChunkId, u32> = victims.iter().map(|v| v.chunk).zip(0..).collect();
    let piece = |m: &Moved| {
        let Piece { chunk, chunk_offset, length, .. } = m.piece;
        let source = numbers.get(&chunk).copied().unwrap_or(u32::MAX);
        BuildPiece { source, offset: chunk_offset, length }
    };
    let copies = order.make_copies(sources, copied(moved).map(piece).collect()).await?;
    let inode = moved.first().map_or(InodeId(0), |m| m.piece.inode);
    order.put_on_record(inode, copies).await?;
    order.swap(moved).await
}

/// Where bytes of files, of all or of these, lie in these chunks, in the order in which the new chunk is to have them: file by file, as they follow each
/// other.
pub(super) async fn pieces(
    master: &Master,
    victims: &[ChunkListing],
    only: Option<&BTreeSet<InodeId>>,
) -> Result<Vec<Moved>, CallError> {
    let limits = Limits::default();
    let chunks: Arc<BTreeSet<ChunkId>> = Arc::new(victims.iter().map(|listing| listing.chunk).collect());
    let mut files = BTreeSet::new();
    for chunk in chunks.iter().copied() {
        let users = transact(&master.store, |tx| async move {
            let users = upkeep::chunk_users(&tx, chunk, USERS_MAX).await?;
            Ok((tx, users))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        let wanted = |inode: &InodeId| only.is_none_or(|only| only.contains(inode));
        files.extend(users.into_iter().map(|(inode, _)| inode).filter(wanted));
    }
    let mut all: Vec<Moved> = Vec::new();
    let mut length = 0;
    // What several files share they share in the new chunk, too.
    let mut laid: BTreeMap<(ChunkId, u64, u64), u64> = BTreeMap::new();
    for inode in files {
        let mut from = Some(0);
        while let Some(at) = from {
            let (found, next) = transact(&master.store, |tx| {
                let chunks = chunks.clone();
                async move {
                    let page = swapping::pieces(&tx, inode, at, Some(&chunks), PAGE).await?;
                    Ok((tx, page))
                }
            })
            .await
            .map_err(|e| record_failed(&e))?;
            for piece in found {
                // What there is no room for stays where it is.
                let bytes = (piece.chunk, piece.chunk_offset, piece.length);
                let known = laid.get(&bytes).copied();
                let more = if known.is_some() { 0 } else { piece.length };
                if all.len() as u64 >= limits.extents_max || length + more > limits.bytes_max {
                    return Ok(all);
                }
                let to_offset = *laid.entry(bytes).or_insert(length);
                all.push(Moved { piece, to_offset });
                length += more;
            }
            from = next;
            tokio::task::yield_now().await;
        }
    }
    Ok(all)
}

/// The pieces that are copied, in order; the others have the same bytes.
fn copied(moved: &[Moved]) -> impl Iterator<Item = &Moved> {
    let mut end = 0;
    moved.iter().filter(move |m| {
        let new = m.to_offset == end;
        end += if new { m.piece.length } else { 0 };
        new
    })
}

/// A new chunk on its way.
pub(super) struct Order<'a> {
    pub master: &'a Arc<Master>,
    pub term: u64,
    pub to: ChunkId,
    /// Its storage class.
    pub class: u32,
    pub length: u64,
    /// Bytes in one second at most; 0 for as fast as it goes.
    pub pace: u64,
}

impl Order<'_> {
    /// Makes the chunk on one chunkserver and has others copy it, so many as a new chunk gets. Answers who has it, durably.
    pub(super) async fn make_copies(
        &self,
        sources: Vec<BuildSource>,
        pieces: Vec<BuildPiece>,
    ) -> Result<Vec<String>, CallError> {
        let class = self.master.desk(|desk| desk.seat(self.to.volume()).classes.get(self.class).clone());
        let placed = self.master.desk(|desk| self.place(desk, &class))?;
        let Some(((first, first_address), others)) = placed.split_first() else {
            return Err(failed("there is no place for a new chunk"));
        };
        let (ticket, pace) = (self.ticket(), self.pace);
        let build = Build {
            chunk: self.to.0,
            epoch: self.master.epoch(self.to.volume()).0,
            custody: self.master.orders(self.term),
            sources,
            pieces,
            ticket: ticket.clone(),
            bytes_per_s: pace,
        };
        let link = self.master.link(Role::Chunkserver, first_address);
        let built = link.request::<_, Built>(Method::ChunkBuild, &build, self.within()).await;
        let built = built.map_err(|e| failed(format!("{first} made no new chunk: {e}")))?;
        if built.length != self.length {
            return Err(failed(format!("{first} made {} bytes instead of {}", built.length, self.length)));
        }
        let mut copies = vec![first.clone()];
        for (name, address) in others {
            let pull = Pull {
                chunk: self.to.0,
                epoch: self.master.epoch(self.to.volume()).0,
                length: self.length,
                digest: built.digest.clone(),
                custody: self.master.orders(self.term),
                source: Some(ChainMember { chunkserver: first.clone(), address: first_address.clone() }),
                ticket: ticket.clone(),
                bytes_per_s: pace,
            };
            let link = self.master.link(Role::Chunkserver, address);
            match link.request::<_, Pulled>(Method::ChunkPull, &pull, self.within()).await {
                Ok(_) => copies.push(name.clone()),
                Err(error) => {
                    tracing::info!(chunk = self.to.0, name, %error, "a new chunk has a copy less");
                }
            }
        }
        if copies.len() < class.min_copies {
            return Err(failed(format!("the new chunk has {} copies only", copies.len())));
        }
        push::begin(self.master, self.term, self.to, self.class, Some(first.as_str()));
        Ok(copies)
    }

    /// Names and addresses of those that get the new chunk.
    fn place(&self, desk: &Desk, class: &Class) -> Result<Vec<(String, String)>, CallError> {
        let candidates = desk.registry.candidates(self.master.clock.boot());
        let wish = Wish { class, bytes_wanted: self.length, exclude: &BTreeSet::new(), seed: self.to.0 };
        let names = placement::place(&candidates, wish).map_err(|e| failed(e.to_string()))?;
        let address = |name: String| desk.registry.get(&name).map(|s| (name, s.beat.address.clone()));
        Ok(names.into_iter().filter_map(address).collect())
    }

    fn ticket(&self) -> bytes::Bytes {
        let (now_ns, volume) = (self.master.clock.unix_ns(), u64::from(self.to.volume().0));
        // For any chunk: the new one is pulled, the old ones are read.
        self.master.desk(|desk| tickets::for_chunk(&desk.keys, 0, volume, 0, false, now_ns)).into()
    }

    fn within(&self) -> Duration {
        let slowest = if self.pace == 0 { PACE_MIN } else { self.pace.min(PACE_MIN) };
        BUILD_WITHIN + Duration::from_secs(self.length / slowest)
    }

    /// Puts the chunk on record. From then on it lives like any other. Returns once other regions that fsyncs wait for may have it: then files may name it.
    pub(super) async fn put_on_record(&self, inode: InodeId, copies: Vec<String>) -> Result<(), CallError> {
        let now_ns = self.master.clock.unix_ns();
        let record = ChunkRecord {
            length: self.length,
            sealed: true,
            storage_class: self.class,
            birth: self.master.epoch(self.to.volume()).0,
            born_ns: now_ns,
            sealed_ns: now_ns,
            inode: inode.0,
            owner: 0,
        };
        let location = LocationRecord {
            layout: Layout::Copies as u32,
            copies,
            epoch: self.master.epoch(self.to.volume()).0,
            partial: None,
        };
        let (to, deadline) = (self.to, self.deadline());
        let (record, location) = (Arc::new(record), Arc::new(location));
        own::change(self.master, to.volume(), self.term, Repeat::Never, deadline, |tx, _| {
            let (record, location) = (record.clone(), location.clone());
            Box::pin(async move {
                swapping::record(tx, to, &record, &location);
                Ok(())
            })
        })
        .await?;
        let copy = CopyFacts {
            length: self.length,
            sealed: true,
            epoch: self.master.epoch(self.to.volume()).0,
            corrupt: false,
        };
        self.master.desk(|desk| {
            for name in &location.copies {
                desk.registry.changed(name, &[(self.to, copy)], &[]);
            }
        });
        push::go_ahead(self.master, self.to, self.length).await;
        Ok(())
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.master.config.session_lease() + BEYOND_LEASE
    }

    /// Has files name the new chunk, file by file. One that can't be swapped doesn't keep the others from it; none that can is a failure.
    async fn swap(&self, moved: &[Moved]) -> Result<Swapped, CallError> {
        let mut sum = Swapped::default();
        let mut failure = None;
        for file in moved.chunk_by(|a, b| a.piece.inode == b.piece.inode) {
            match self.swap_file(file).await {
                Ok(swapped) => {
                    sum.bytes += swapped.bytes;
                    sum.left += swapped.left;
                }
                Err(error) => {
                    let inode = file.first().map_or(0, |m| m.piece.inode.0);
                    tracing::info!(to = self.to.0, inode, error = %error.message, "a file still names sparse chunks");
                    sum.left += file.iter().map(|m| m.piece.length).sum::<u64>();
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(error) if sum.bytes == 0 => Err(error),
            _ => Ok(sum),
        }
    }

    /// Some extents at a time, fewer where somebody overwrites them all the while. Sessions are asked once for the whole file.
    async fn swap_file(&self, mut file: &[Moved]) -> Result<Swapped, CallError> {
        let mut sum = Swapped::default();
        let Some(inode) = file.first().map(|m| m.piece.inode) else { return Ok(sum) };
        let mut changes = Changes::begin(self.master, self.to.volume(), self.term, self.deadline()).await?;
        let mut at_once = SWAP_EXTENTS_MAX;
        while !file.is_empty() {
            let (now, later) = file.split_at(at_once.min(file.len()));
            let (part, to): (Arc<[Moved]>, ChunkId) = (now.into(), self.to);
            let changed = changes.change(Repeat::Harmless, SWAP_TRIES, self.deadline(), |tx, touched| {
                let part = part.clone();
                Box::pin(async move { swapping::swap(tx, touched, inode, to, &part).await })
            });
            match changed.await? {
                Some(swapped) => {
                    sum.bytes += swapped.bytes;
                    sum.left += swapped.left;
                    file = later;
                    at_once = (at_once * 2).min(SWAP_EXTENTS_MAX);
                }
                None if at_once > 1 => at_once = (at_once / 4).max(1),
                None => return Err(failed("its extents change faster than they can be swapped")),
            }
        }
        changes.end();
        Ok(sum)
    }
}

/// Where an old chunk can be read.
fn source(master: &Master, desk: &Desk, listing: &ChunkListing) -> BuildSource {
    let names = listing.location.iter().flat_map(|l| &l.copies);
    let now = master.clock.boot();
    let here = names.filter_map(|name| {
        let server = desk.registry.get(name)?;
        let alive = server.liveness(now, desk.registry.limits()) == mooseng_region::Liveness::Alive;
        let sound = server.copy(listing.chunk).is_none_or(|copy| !copy.corrupt);
        (alive && sound)
            .then(|| ChainMember { chunkserver: name.clone(), address: server.beat.address.clone() })
    });
    BuildSource { chunk: listing.chunk.0, holders: here.collect(), ..BuildSource::default() }
}
