//! Reading: extents, then inline data and chunk runs side by side; read-ahead for handles that read in order.
//!
//! An extent map is kept as long as the file is promised, and over what this mount writes to it alone ([`crate::facts`]); else it is used within one call only. What
//! read-ahead leaves behind are blocks of chunks, which can't change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use mooseng_ports::disk::lent::Keep;
use mooseng_transport::trace;
use mooseng_wire::BULK_BYTES_MAX;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, Caller, ChunkPlace, ExtentMap, ReadExtents};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::borrow::Lent;
use crate::cache::{BLOCK, BlockCache, Part};
use crate::caches::Cache;
use crate::chunkservers::{Chunkservers, ticket_expires_ms};
use crate::error::FsError;
use crate::neighbours::Neighbours;
use crate::plan::{Piece, Source, pieces};
use crate::region::Region;
use crate::retry::Backoff;
use crate::waits::{self, What};

/// Chunk reads at once for one call.
const PARALLEL: usize = 8;
/// Blocks fetched ahead at once, of a volume.
const AHEAD_PARALLEL: usize = 16;
/// A ticket that ends sooner than this isn't used for a further read.
const TICKET_MARGIN_MS: u64 = 10_000;
/// Reads of at least so many bytes, in order, leave no pages of chunk files behind.
const UNCACHED_MIN: u64 = 256 << 10;
/// The first window of read-ahead.
const AHEAD_MIN: u64 = 512 << 10;

/// How a handle reads.
#[derive(Debug, Default)]
pub(crate) struct Pattern {
    next: u64,
    in_order: u32,
    window: u64,
    /// The kernel was told up to here what will be read of files that were lent.
    told: u64,
}

impl Pattern {
    /// A read comes; answers how many bytes behind it to fetch ahead.
    pub fn read(&mut self, offset: u64, length: u64, window_max: u64) -> u64 {
        // The kernel reads ahead itself and asynchronously, so neighbours may swap places.
        let slack = 1 << 20;
        let ordered = offset <= self.next.saturating_add(slack) && offset.saturating_add(slack) >= self.next;
        if ordered {
            self.in_order = self.in_order.saturating_add(1);
        } else {
            *self = Self::default();
        }
        self.next = self.next.max(offset.saturating_add(length));
        if !ordered {
            self.next = offset.saturating_add(length);
        }
        // One small read at the start of a file (a header, a magic number) isn't a reason to read ahead yet.
        if self.in_order >= 2 {
            self.window = (self.window * 2).clamp(AHEAD_MIN, window_max.max(AHEAD_MIN));
        }
        self.window.min(window_max)
    }

    /// Where to go on telling the kernel what will be read up to `to`; none while it knows of enough.
    fn tell(&mut self, from: u64, to: u64) -> Option<u64> {
        let from = from.max(self.told);
        if to.saturating_sub(from) < self.window / 2 {
            return None;
        }
        self.told = to;
        Some(from)
    }
}

/// What is fetched for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// What was asked for.
    Asked,
    /// That, and what lies behind it will be, too.
    InOrder,
    /// A file as a whole: others may lie beside it.
    Whole,
}

/// Reads files.
pub(crate) struct Reader {
    pub region: Arc<Region>,
    pub chunkservers: Arc<Chunkservers>,
    pub cache: Arc<BlockCache>,
    pub ahead: Arc<Semaphore>,
    pub ahead_bytes: u64,
    pub neighbours: Mutex<Neighbours>,
}

impl Reader {
    pub fn new(region: Arc<Region>, chunkservers: Arc<Chunkservers>, cache: Arc<BlockCache>) -> Self {
        let config = &region.session.config;
        // Read-ahead beyond half of the cache would push out its own blocks.
        let ahead_bytes = config.read_ahead_bytes.min(config.cache_bytes as u64 / 2);
        Self {
            region,
            chunkservers,
            cache,
            ahead: Arc::new(Semaphore::new(AHEAD_PARALLEL)),
            ahead_bytes,
            neighbours: Mutex::default(),
        }
    }

    /// Reads up to `length` bytes; fewer at the end of the file. Answers the attributes, too, if they came along.
    pub async fn read(
        &self,
        caller: &Caller,
        inode: u64,
        mut offset: u64,
        mut length: u64,
        pattern: &Mutex<Pattern>,
    ) -> Result<(Bytes, Option<Attr>), FsError> {
        let started = Instant::now();
        let patience = self.region.patience();
        let ahead =
            pattern.lock().unwrap_or_else(PoisonError::into_inner).read(offset, length, self.ahead_bytes);
        let mut backoff = Backoff::default();
        let mut before = BytesMut::new();
        loop {
            let map = self
                .extents(caller, inode, offset, length.saturating_add(ahead), backoff.attempts() > 0)
                .await?;
            // Behind `covered` the map says nothing; an older master covers all that was asked for, and leaves the field out.
            let covered = if map.covered == 0 { u64::MAX } else { map.covered };
            let known = length.min(covered.saturating_sub(offset));
            let (total, found) = pieces(&map, offset, known)?;
            let places: BTreeMap<u64, &ChunkPlace> =
                map.chunks.iter().map(|place| (place.chunk, place)).collect();
            let reach = match ahead {
                0 if offset == 0 && total == map.size => Reach::Whole,
                0 => Reach::Asked,
                _ => Reach::InOrder,
            };
            let last = match self.fetch(&found, &places, total, reach).await {
                Ok(bytes) if known < length && offset.saturating_add(total) < map.size => {
                    if total == 0 {
                        return Err(FsError::Malformed(format!(
                            "an extent map for offset {offset} that covers nothing"
                        )));
                    }
                    // Too many extents for one answer: the rest comes with the next.
                    before.extend_from_slice(&bytes);
                    offset += total;
                    length -= total;
                    continue;
                }
                Ok(bytes) => {
                    if ahead > 0 {
                        // Reads of one window may come in any order: what the last of them covers isn't ahead of anybody.
                        let read_to = pattern.lock().unwrap_or_else(PoisonError::into_inner).next;
                        let from = offset.saturating_add(length).max(read_to);
                        let uncached = length >= UNCACHED_MIN;
                        self.fetch_ahead(
                            &map,
                            from,
                            ahead.min(covered.saturating_sub(from)),
                            uncached,
                            pattern,
                        )?;
                    }
                    self.region.counters.took("read", started.elapsed());
                    if before.is_empty() {
                        return Ok((bytes, map.attr));
                    }
                    before.extend_from_slice(&bytes);
                    return Ok((before.freeze(), map.attr));
                }
                Err(last) => last,
            };
            // Every known copy failed. The map may be out of date by now (a repair, a rewrite), its tickets too: ask again.
            let pause = self.region.session.pause(&mut backoff);
            if started.elapsed() + pause >= patience {
                self.region.counters.update(|c| c.timeouts += 1);
                return Err(FsError::Data { inode, what: "read", after: patience, last });
            }
            tracing::debug!(inode, offset, length, error = %last, "a read failed on every replica; trying again");
            waits::on(|| What::Pause, tokio::time::sleep(pause)).await;
        }
    }

    async fn extents(
        &self,
        caller: &Caller,
        inode: u64,
        offset: u64,
        length: u64,
        afresh: bool,
    ) -> Result<ExtentMap, FsError> {
        // The places of chunks aren't promised: after a failure they are asked for again.
        let known = if afresh { None } else { self.known_extents(inode, offset) };
        self.region.counters.caches.asked(Cache::Extents, known.is_some());
        if let Some(map) = known {
            return Ok(map);
        }
        match self.region.read(caller, Op::ReadExtents(ReadExtents { inode, offset, length })).await? {
            Reply::Extents(map) => Ok(map),
            other => Err(unexpected("read_extents", &other)),
        }
    }

    /// The extents from `offset` on, if they are promised and the tickets to their chunks are good for a while.
    fn known_extents(&self, inode: u64, offset: u64) -> Option<ExtentMap> {
        let session = &self.region.session;
        let known = session.known_inode(inode)?;
        if offset >= known.attr.size {
            return Some(ExtentMap {
                size: known.attr.size,
                covered: u64::MAX,
                attr: Some(known.attr),
                ..ExtentMap::default()
            });
        }
        let map = known.extents.lock().unwrap_or_else(PoisonError::into_inner).find(offset)?;
        let now_ms = u64::try_from(session.clock.unix_ns() / 1_000_000).unwrap_or(0);
        let good = |place: &ChunkPlace| {
            ticket_expires_ms(&place.ticket)
                .is_none_or(|expires| expires > now_ms.saturating_add(TICKET_MARGIN_MS))
        };
        if !map.chunks.iter().all(good) {
            return None;
        }
        Some(ExtentMap { size: known.attr.size, attr: Some(known.attr), ..map })
    }

    async fn fetch(
        &self,
        found: &[Piece],
        places: &BTreeMap<u64, &ChunkPlace>,
        total: u64,
        reach: Reach,
    ) -> Result<Bytes, String> {
        let total = usize::try_from(total).map_err(|_| "a read of more bytes than memory".to_owned())?;
        let runs: Vec<(u64, u64, u64, u64)> = found
            .iter()
            .filter_map(|piece| match piece.source {
                Source::Chunk { chunk, offset } => Some((piece.at, chunk, offset, piece.length)),
                Source::Inline(_) => None,
            })
            .flat_map(|(at, chunk, offset, length)| {
                split(offset, length).map(move |(from, len)| (at + (from - offset), chunk, from, len))
            })
            .collect();
        // The common case: one piece is the whole answer, and isn't copied.
        if let [piece] = found
            && piece.at == 0
            && piece.length == total as u64
        {
            match &piece.source {
                Source::Inline(bytes) => return Ok(bytes.clone()),
                Source::Chunk { .. } if runs.len() == 1 => {
                    let (_, chunk, offset, length) = runs[0];
                    return self.part(place_of(places, chunk)?, offset, length, reach).await;
                }
                Source::Chunk { .. } => {}
            }
        }
        let fetched: Vec<(u64, Bytes)> = stream::iter(runs)
            .map(|(at, chunk, offset, length)| async move {
                let bytes = self.part(place_of(places, chunk)?, offset, length, reach).await?;
                Ok::<_, String>((at, bytes))
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let mut answer = BytesMut::zeroed(total);
        let inline = found.iter().filter_map(|piece| match &piece.source {
            Source::Inline(bytes) => Some((piece.at, bytes.clone())),
            Source::Chunk { .. } => None,
        });
        for (at, bytes) in fetched.into_iter().chain(inline) {
            let at = at as usize;
            answer[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(answer.freeze())
    }

    /// What of a block is fetched into the cache for a part of it: that part, where more will be read behind it; the block, where its files are read one
    /// by one.
    fn worth_keeping(
        &self,
        place: &ChunkPlace,
        offset: u64,
        length: u64,
        reach: Reach,
    ) -> Option<(u64, u64)> {
        match reach {
            Reach::Asked => None,
            Reach::InOrder => Some((offset, offset + length)),
            Reach::Whole if place.sealed && offset + length <= place.length => {
                let mut neighbours = self.neighbours.lock().unwrap_or_else(PoisonError::into_inner);
                neighbours.read(place.chunk, offset, place.length)
            }
            Reach::Whole => None,
        }
    }

    /// A range that doesn't cross a block's border.
    async fn part(
        &self,
        place: &ChunkPlace,
        offset: u64,
        length: u64,
        reach: Reach,
    ) -> Result<Bytes, String> {
        // The kernel keeps what a mount's programs read: in order, and in large pieces, nobody comes back for the chunk file's pages below that.
        let keep =
            if reach == Reach::InOrder && length >= UNCACHED_MIN { Keep::Nothing } else { Keep::Pages };
        let passing = keep == Keep::Nothing && reads_uncached(&self.chunkservers.lent(place));
        let counters = &self.region.counters;
        let kept = self.cache.get(place.chunk, offset, length);
        counters.caches.asked(Cache::Chunks, kept.is_some());
        if let Some(bytes) = kept {
            if passing {
                self.cache.passed(place.chunk, offset + length);
            }
            return Ok(bytes);
        }
        // A look at what the kernel has in memory makes it read what it hasn't, beside the read that goes past it.
        if !passing && let Some(bytes) = self.chunkservers.read_at_once(place, offset, length, keep, counters)
        {
            return Ok(bytes);
        }
        // What was lent is in the kernel's memory soon, if that keeps it: a second copy of it here would only take up room.
        if let Some((start, end)) = self.worth_keeping(place, offset, length, reach)
            && (passing || matches!(self.chunkservers.lent(place), Lent::Not))
        {
            // It may be on its way already.
            let slot = self.cache.slot(place.chunk, offset, length);
            let part = slot
                .get_or_try_init(|| async {
                    let wanted = (end - start) as u32;
                    let bytes = self.chunkservers.read(place, start, wanted, keep, counters).await?;
                    Ok::<_, String>(Part { start, bytes })
                })
                .await;
            match part {
                Ok(part) => {
                    if let Some(bytes) = part.get(offset, length) {
                        if passing {
                            self.cache.passed(place.chunk, offset + length);
                        }
                        return Ok(bytes);
                    }
                }
                Err(error) if reach == Reach::InOrder => return Err(error),
                // A neighbour that can't be read mustn't keep this file from being read.
                Err(_) => {}
            }
        }
        self.chunkservers.read(place, offset, length as u32, keep, counters).await
    }

    /// Starts to fetch the blocks of [from, from + length) into the cache.
    fn fetch_ahead(
        &self,
        map: &ExtentMap,
        from: u64,
        length: u64,
        uncached: bool,
        pattern: &Mutex<Pattern>,
    ) -> Result<(), FsError> {
        let (_, found) = pieces(map, from, length)?;
        let tell = |from| pattern.lock().unwrap_or_else(PoisonError::into_inner).tell(from, from + length);
        let untold = tell(from).map_or(u64::MAX, |untold| untold.saturating_sub(from));
        let mut lent = Vec::new();
        for piece in found {
            let Source::Chunk { chunk, offset } = piece.source else { continue };
            let Some(place) = map.chunks.iter().find(|place| place.chunk == chunk) else { continue };
            let lent_chunk = self.chunkservers.lent(place);
            let passing = uncached && reads_uncached(&lent_chunk);
            let keep = if passing { Keep::Nothing } else { Keep::Pages };
            match lent_chunk {
                // Pages that the kernel is told of would stay.
                Lent::Here(_) if passing => {}
                Lent::Here(chunk) => {
                    let skip = untold.saturating_sub(piece.at);
                    if skip < piece.length {
                        lent.push((chunk, offset + skip, piece.length - skip));
                    }
                    continue;
                }
                Lent::Soon => continue,
                Lent::Not => {}
            }
            for (start, len) in split(offset, piece.length) {
                if self.cache.get(chunk, start, len).is_some() {
                    continue;
                }
                let slot = self.cache.slot(chunk, start, len);
                if slot.initialized() {
                    continue;
                }
                // No permit: enough is on its way.
                let Ok(permit) = self.ahead.clone().try_acquire_owned() else { break };
                let (chunkservers, region, place) =
                    (self.chunkservers.clone(), self.region.clone(), place.clone());
                tokio::spawn(trace::carried(async move {
                    let _permit = permit;
                    let fetched = slot
                        .get_or_try_init(|| async {
                            let bytes =
                                chunkservers.read(&place, start, len as u32, keep, &region.counters).await?;
                            Ok::<_, String>(Part { start, bytes })
                        })
                        .await;
                    if let Err(error) = fetched {
                        tracing::debug!(chunk = place.chunk, start, %error, "read-ahead failed; the read itself will tell");
                    }
                }));
            }
        }
        self.chunkservers.will_need(lent);
        Ok(())
    }
}

/// Whether a file was lent of which the kernel keeps nothing when asked to.
fn reads_uncached(lent: &Lent) -> bool {
    matches!(lent, Lent::Here(chunk) if chunk.reads_uncached())
}

fn place_of<'a>(places: &BTreeMap<u64, &'a ChunkPlace>, chunk: u64) -> Result<&'a ChunkPlace, String> {
    places.get(&chunk).copied().ok_or_else(|| format!("the region didn't say where chunk {chunk} lies"))
}

/// Cuts a run at the borders of blocks.
fn split(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    const { assert!(BLOCK <= BULK_BYTES_MAX as u64) };
    let end = offset.saturating_add(length);
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let from = at;
            at = end.min((from / BLOCK + 1) * BLOCK);
            (from, at - from)
        })
    })
}

/// A reply of the wrong kind.
pub(crate) fn unexpected(what: &str, reply: &Reply) -> FsError {
    match reply {
        Reply::Errno(errno) if *errno == libc::EREMOTE as u32 => FsError::Joined,
        Reply::Errno(errno) => {
            FsError::Answered(i32::try_from(*errno).ok().filter(|&e| e > 0).unwrap_or(libc::EIO))
        }
        _ => FsError::Malformed(format!("a reply of another kind to {what}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_split_at_blocks() {
        assert_eq!(split(BLOCK - 10, 20).collect::<Vec<_>>(), [(BLOCK - 10, 10), (BLOCK, 10)]);
        assert_eq!(split(0, BLOCK).collect::<Vec<_>>(), [(0, BLOCK)]);
        assert_eq!(split(5, 0).count(), 0);
    }

    #[test]
    fn reading_in_order_opens_the_window_and_jumping_closes_it() {
        let mut pattern = Pattern::default();
        assert_eq!(pattern.read(0, 4096, 8 << 20), 0);
        assert_eq!(pattern.read(4096, 4096, 8 << 20), AHEAD_MIN);
        assert_eq!(pattern.read(8192, 4096, 8 << 20), 2 * AHEAD_MIN);
        for n in 3..20u64 {
            assert!(pattern.read(n * 4096, 4096, 8 << 20) <= 8 << 20);
        }
        assert_eq!(pattern.read(1 << 40, 4096, 8 << 20), 0);
        assert_eq!(pattern.read(7, 4096, 0), 0);
    }
}
