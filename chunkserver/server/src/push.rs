//! Sending on what is appended to a growing chunk to chunkservers of another region, as a master orders it: as soon as it is appended, and not only once
//! the log names it (DESIGN section 8). Nobody waits for it here and nothing rests on it. What doesn't arrive the other region reads
//! ([`crate::follow`]), which compares the whole chunk once it is sealed. After a failure it goes on where the chunkservers there are by then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use mooseng_chunk::chain::{NextFailure, refusal};
use mooseng_chunk::{ChunkError, ChunkStore, checksum};
use mooseng_transport::{Blocking, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Append, ChainMember, Push, PushBegun, StatChunk};
use mooseng_wire::{BULK_BYTES_MAX, ChunkId, Epoch};
use tokio::sync::Notify;

use crate::gates::Gates;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::service::CHAIN_MAX;

/// Chunks that are sent on at a time, each to each region: more aren't begun.
const PUSHES_MAX: usize = 1_024;
/// Bytes of one chunk that are kept for sending; what has to go is read again.
const KEPT_MAX: usize = 8 << 20;
/// Pieces under way before those before them are answered: the other region is a round trip away.
const AHEAD: usize = 16;
/// How long the other region may take for a piece.
const PIECE_WITHIN: Duration = Duration::from_secs(5);
/// A chunk to which nothing is appended for so long isn't sent on any more.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Regions that one chunk is sent to.
const REGIONS_MAX: usize = 8;
/// How long after a first failure is gone on; twice as long after each that follows at once, and up to twice that by chance.
const AGAIN_MIN: Duration = Duration::from_millis(100);
/// So often is tried anew without a piece that arrives.
const TRIES_MAX: u32 = 6;

/// What is to be sent.
#[derive(Default)]
struct Queue {
    /// What was appended and isn't sent, with its offset, in order.
    pieces: VecDeque<(u64, Bytes)>,
    bytes: usize,
    /// So much of the chunk is here.
    upto: u64,
    /// Nothing is appended any more.
    ended: bool,
}

impl Queue {
    fn append(&mut self, offset: u64, bytes: Bytes) {
        let end = offset + bytes.len() as u64;
        if end <= self.upto || bytes.is_empty() {
            return;
        }
        self.upto = end;
        self.bytes += bytes.len();
        self.pieces.push_back((offset, bytes));
        while self.bytes > KEPT_MAX {
            self.forget_first();
        }
    }

    /// Whether nothing comes behind `at` any more.
    fn is_sent(&self, at: u64) -> bool {
        self.ended && at >= self.upto
    }

    fn forget_first(&mut self) {
        if let Some((_, bytes)) = self.pieces.pop_front() {
            self.bytes -= bytes.len();
        }
    }

    /// What follows `at`, up to `edge` at most: bytes, or how many of them are to be read.
    fn next(&mut self, at: u64, edge: u64) -> Option<Result<Bytes, u64>> {
        while self.pieces.front().is_some_and(|(offset, _)| *offset < at) {
            self.forget_first();
        }
        let to = match self.pieces.front() {
            Some((offset, bytes)) if *offset == at && at + bytes.len() as u64 <= edge => {
                let bytes = bytes.clone();
                self.forget_first();
                return Some(Ok(bytes));
            }
            Some((offset, _)) if *offset > at => *offset,
            _ => self.upto,
        };
        (at < to).then(|| Err((to.min(edge) - at).min(BULK_BYTES_MAX as u64)))
    }
}

/// A chunk and where it goes.
struct Target {
    chunk: ChunkId,
    epoch: u64,
    chain: Vec<ChainMember>,
    ticket: Bytes,
    queue: Mutex<Queue>,
    grown: Notify,
}

/// Why sending stops.
enum Stop {
    /// It may do better later.
    Passing(String),
    /// It isn't wanted, or can't be had.
    Final(String),
}

impl Stop {
    fn of(error: &CallError, what: &str) -> Self {
        let reason = format!("{what}: {}", error.message);
        match error.code() {
            ErrorCode::StaleEpoch
            | ErrorCode::ChunkSealed
            | ErrorCode::PermissionDenied
            | ErrorCode::InvalidRequest
            | ErrorCode::NoSpace
            | ErrorCode::DiskFailed => Self::Final(reason),
            _ => Self::Passing(reason),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends chunks on.
#[derive(Clone)]
pub struct Pushes {
    store: Arc<ChunkStore>,
    blocking: Blocking,
    gates: Arc<Gates>,
    members: Arc<Members>,
    metrics: Metrics,
    targets: Arc<Targets>,
}

#[derive(Default)]
struct Targets {
    of: Mutex<BTreeMap<ChunkId, Vec<Arc<Target>>>>,
    /// Chunks that are sent on, so that appends where none is needn't take the lock.
    chunks: AtomicUsize,
}

impl Targets {
    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<ChunkId, Vec<Arc<Target>>>) -> T) -> T {
        let of = &mut *lock(&self.of);
        let changed = change(of);
        self.chunks.store(of.len(), Ordering::SeqCst);
        changed
    }
}

impl Pushes {
    /// Nothing is sent yet.
    pub fn new(
        store: Arc<ChunkStore>,
        blocking: Blocking,
        gates: Arc<Gates>,
        members: Arc<Members>,
        metrics: Metrics,
    ) -> Self {
        Self { store, blocking, gates, members, metrics, targets: Arc::default() }
    }

    /// Begins to send a chunk on, from its first byte, whether there is one yet or not. Of one that is sealed all that there is.
    pub async fn begin(&self, push: Push) -> Result<PushBegun, CallError> {
        let chunk = ChunkId(push.chunk);
        // The first is who it is sent to, and sends it to the others.
        if push.chain.is_empty() || push.chain.len() > CHAIN_MAX + 1 {
            let message = format!("the order to send chunk {chunk} on names no chunkserver, or too many");
            return Err(call_error(ErrorCode::InvalidRequest, message));
        }
        let (epoch, custody) = (Epoch(push.epoch), push.custody);
        let begin = move |store: &ChunkStore| {
            store.see_epoch(chunk.volume().0, epoch)?;
            store.see_custody(custody)?;
            match store.stat(chunk) {
                Ok(stat) => Ok((stat.length, stat.sealed)),
                Err(ChunkError::NotFound { .. }) => Ok((0, false)),
                Err(error) => Err(error),
            }
        };
        let target = Arc::new(Target {
            chunk,
            epoch: push.epoch,
            chain: push.chain,
            ticket: push.ticket,
            queue: Mutex::default(),
            grown: Notify::new(),
        });
        self.targets.change(|targets| {
            if targets.len() >= PUSHES_MAX && !targets.contains_key(&chunk) {
                let message = format!("{PUSHES_MAX} chunks are sent on already");
                return Err(call_error(ErrorCode::Busy, message));
            }
            let of = targets.entry(chunk).or_default();
            // The same order again, or a newer one.
            of.retain(|known| known.chain != target.chain && known.epoch == target.epoch);
            if of.len() >= REGIONS_MAX {
                let message = format!("chunk {chunk} is sent to {REGIONS_MAX} regions already");
                return Err(call_error(ErrorCode::Busy, message));
            }
            of.push(target.clone());
            Ok(())
        })?;
        // Known before the length is looked at: what is appended between the two is told.
        let is_here = {
            let store = self.store.clone();
            self.blocking.run(move || begin(&store)).await
        };
        match is_here {
            Ok((length, sealed)) => {
                let mut queue = lock(&target.queue);
                queue.upto = queue.upto.max(length);
                // It was told before this was known, or made whole: nobody says so again.
                queue.ended |= sealed;
            }
            Err(error) => {
                self.forget(&target);
                return Err(refusal(&error));
            }
        }
        let pushes = self.clone();
        tokio::spawn(async move {
            if let Err(reason) = pushes.send_on(&target).await {
                tracing::debug!(chunk = target.chunk.0, reason, "a chunk isn't sent on any more");
            }
            pushes.forget(&target);
        });
        Ok(PushBegun {})
    }

    fn forget(&self, target: &Arc<Target>) {
        self.targets.change(|targets| {
            if let Some(of) = targets.get_mut(&target.chunk) {
                of.retain(|known| !Arc::ptr_eq(known, target));
                if of.is_empty() {
                    targets.remove(&target.chunk);
                }
            }
        });
    }

    fn tell(&self, chunk: ChunkId, tell: impl Fn(&mut Queue)) {
        // Whoever begins to send is counted before it looks at the chunk's length: what was written before that look it sees there.
        if self.targets.chunks.load(Ordering::SeqCst) == 0 {
            return;
        }
        for target in lock(&self.targets.of).get(&chunk).into_iter().flatten() {
            tell(&mut lock(&target.queue));
            target.grown.notify_one();
        }
    }

    /// Bytes were appended here.
    pub fn appended(&self, chunk: ChunkId, offset: u64, bytes: &Bytes) {
        self.tell(chunk, |queue| queue.append(offset, bytes.clone()));
    }

    /// Nothing is appended to a chunk any more.
    pub fn ended(&self, chunk: ChunkId) {
        self.tell(chunk, |queue| queue.ended = true);
    }

    /// Sends until nothing comes any more, and goes on after failures where the others are by then.
    async fn send_on(&self, target: &Target) -> Result<(), String> {
        let (mut at, mut edges, mut tries) = (0, Vec::new(), 0);
        loop {
            let before = at;
            let reason = match self.send(target, &mut at, &edges).await {
                Ok(()) => return Ok(()),
                Err(Stop::Final(reason)) => return Err(reason),
                Err(Stop::Passing(reason)) => reason,
            };
            tries = if at > before { 1 } else { tries + 1 };
            loop {
                if tries > TRIES_MAX {
                    return Err(reason);
                }
                let wait = AGAIN_MIN * (1 << (tries - 1));
                tokio::time::sleep(wait + wait.mul_f64(rand::random())).await;
                match self.lengths(target).await {
                    Ok(lengths) => {
                        edges = lengths;
                        break;
                    }
                    Err(Stop::Final(reason)) => return Err(reason),
                    Err(Stop::Passing(_)) => tries += 1,
                }
            }
            at = edges.iter().copied().min().unwrap_or(0);
        }
    }

    /// So much of the chunk has each of those that it is sent to.
    async fn lengths(&self, target: &Target) -> Result<Vec<u64>, Stop> {
        let mut lengths = Vec::new();
        for member in &target.chain {
            let stat = StatChunk { chunk: target.chunk.0, ticket: target.ticket.clone() };
            match self.members.stat(&member.address, &stat, PIECE_WITHIN).await {
                Ok(is) if is.sealed => {
                    return Err(Stop::Final(format!("chunkserver {} has it sealed", member.chunkserver)));
                }
                Ok(is) => lengths.push(is.length),
                Err(error) if error.code() == ErrorCode::NotFound => lengths.push(0),
                Err(error) => {
                    return Err(Stop::of(&error, &format!("looking how much {} has", member.chunkserver)));
                }
            }
        }
        Ok(lengths)
    }

    /// Sends from `at`, which then says up to where all of it arrived. No piece goes over one of the edges: what a member of the chain has in part it refuses.
    async fn send(&self, target: &Target, at: &mut u64, edges: &[u64]) -> Result<(), Stop> {
        let (first, rest) =
            target.chain.split_first().ok_or_else(|| Stop::Final("there is nobody to send it to".into()))?;
        let mut flights = FuturesOrdered::new();
        let mut next_at = *at;
        loop {
            while flights.len() < AHEAD {
                let edge = edges.iter().copied().filter(|edge| *edge > next_at).min().unwrap_or(u64::MAX);
                let Some(next) = lock(&target.queue).next(next_at, edge) else { break };
                let bytes = match next {
                    Ok(bytes) => bytes,
                    Err(length) => self.read(target.chunk, next_at, length).await.map_err(Stop::Final)?,
                };
                let end = next_at + bytes.len() as u64;
                let append = Append {
                    chunk: target.chunk.0,
                    epoch: target.epoch,
                    offset: next_at,
                    // All there is: somebody may wait for it.
                    flush: end >= lock(&target.queue).upto,
                    ticket: target.ticket.clone(),
                    chain: rest.to_vec(),
                    crc: checksum(&bytes),
                };
                self.metrics.bytes_pushed.inc_by(bytes.len() as u64);
                let (members, address) = (&self.members, &first.address);
                flights.push_back(async move {
                    members.append(address, &append, bytes, PIECE_WITHIN).await.map(|_| end)
                });
                next_at = end;
            }
            // Something may have been appended, and the chunk have ended, since there was nothing to send.
            if flights.is_empty() && lock(&target.queue).is_sent(next_at) {
                return Ok(());
            }
            tokio::select! {
                Some(sent) = flights.next(), if !flights.is_empty() => match sent {
                    Ok(end) => *at = end,
                    Err(NextFailure::Answered(error)) => return Err(Stop::of(&error, "sending it")),
                    Err(NextFailure::Silent(reason)) => return Err(Stop::Passing(reason)),
                },
                () = target.grown.notified() => {}
                () = tokio::time::sleep(IDLE_MAX), if flights.is_empty() => return Ok(()),
            }
        }
    }

    async fn read(&self, chunk: ChunkId, offset: u64, length: u64) -> Result<Bytes, String> {
        let read = self.gates.run(chunk, move |store| store.read(chunk, offset, length)).await;
        read.map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(length: usize) -> Bytes {
        vec![1; length].into()
    }

    #[test]
    fn what_is_appended_is_sent_in_order_and_what_isnt_kept_is_read() {
        let mut queue = Queue { upto: 10, ..Queue::default() };
        assert_eq!(queue.next(0, u64::MAX), Some(Err(10)), "what was there before the order came");
        queue.append(10, piece(5));
        assert_eq!(queue.next(4, u64::MAX), Some(Err(6)));
        assert_eq!(queue.next(10, u64::MAX), Some(Ok(piece(5))));
        assert_eq!((queue.next(15, u64::MAX), queue.bytes), (None, 0));
        queue.append(10, piece(5));
        assert_eq!(queue.next(15, u64::MAX), None, "an append that was repeated");
        for n in 0..20 {
            queue.append(15 + (n << 20), piece(1 << 20));
        }
        assert!(queue.bytes <= KEPT_MAX);
        assert_eq!(queue.next(15, u64::MAX), Some(Err(BULK_BYTES_MAX as u64)));
        assert_eq!(queue.next(15 + (19 << 20), u64::MAX), Some(Ok(piece(1 << 20))));
        assert_eq!((queue.next(15 + (20 << 20), u64::MAX), queue.bytes), (None, 0));
    }

    /// Found by review: what was appended last, just before the chunk ended, wasn't sent where the sender had looked a moment before.
    #[test]
    fn all_is_sent_once_nothing_comes_behind() {
        let mut queue = Queue::default();
        assert_eq!((queue.next(0, u64::MAX), queue.is_sent(0)), (None, false));
        queue.append(0, piece(5));
        queue.ended = true;
        assert!(!queue.is_sent(0) && queue.is_sent(5));
    }
}
