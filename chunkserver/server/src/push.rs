//! Sending on what is appended to a growing chunk to chunkservers of another region, as a master orders it: as soon as it is appended, and not only once
//! the log names it (DESIGN section 8). Nobody waits for it here and nothing rests on it. What doesn't arrive the other region reads
//! ([`crate::follow`]), which compares the whole chunk once it is sealed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_chunk::chain::refusal;
use mooseng_chunk::{ChunkError, ChunkStore, checksum};
use mooseng_transport::{Blocking, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Append, ChainMember, Push, PushBegun};
use mooseng_wire::{BULK_BYTES_MAX, ChunkId, Epoch};
use tokio::sync::Notify;

use crate::members::Members;
use crate::metrics::Metrics;

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

    fn forget_first(&mut self) {
        if let Some((_, bytes)) = self.pieces.pop_front() {
            self.bytes -= bytes.len();
        }
    }

    /// What follows `at`: bytes, or how many of them are to be read.
    fn next(&mut self, at: u64) -> Option<Result<Bytes, u64>> {
        while self.pieces.front().is_some_and(|(offset, _)| *offset < at) {
            self.forget_first();
        }
        match self.pieces.front() {
            Some((offset, bytes)) if *offset == at => {
                let bytes = bytes.clone();
                self.forget_first();
                Some(Ok(bytes))
            }
            Some((offset, _)) => Some(Err((offset - at).min(BULK_BYTES_MAX as u64))),
            None if at < self.upto => Some(Err((self.upto - at).min(BULK_BYTES_MAX as u64))),
            None => None,
        }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends chunks on.
#[derive(Clone)]
pub struct Pushes {
    store: Arc<ChunkStore>,
    blocking: Blocking,
    members: Arc<Members>,
    metrics: Metrics,
    targets: Arc<Mutex<BTreeMap<ChunkId, Vec<Arc<Target>>>>>,
}

impl Pushes {
    /// Nothing is sent yet.
    pub fn new(store: Arc<ChunkStore>, blocking: Blocking, members: Arc<Members>, metrics: Metrics) -> Self {
        Self { store, blocking, members, metrics, targets: Arc::default() }
    }

    /// Begins to send a chunk on, from its first byte, whether there is one yet or not.
    pub async fn begin(&self, push: Push) -> Result<PushBegun, CallError> {
        let chunk = ChunkId(push.chunk);
        if push.chain.is_empty() || push.chain.len() > REGIONS_MAX {
            let message = format!("the order to send chunk {chunk} on names no chunkserver, or too many");
            return Err(call_error(ErrorCode::InvalidRequest, message));
        }
        let (epoch, custody) = (Epoch(push.epoch), push.custody);
        let begin = move |store: &ChunkStore| {
            store.see_epoch(chunk.volume().0, epoch)?;
            store.see_custody(custody)?;
            match store.stat(chunk) {
                Ok(stat) => Ok(stat.length),
                Err(ChunkError::NotFound { .. }) => Ok(0),
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
        {
            let mut targets = lock(&self.targets);
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
        }
        // Known before the length is looked at: what is appended between the two is told.
        let length = {
            let store = self.store.clone();
            self.blocking.run(move || begin(&store)).await
        };
        match length {
            Ok(length) => {
                let mut queue = lock(&target.queue);
                queue.upto = queue.upto.max(length);
            }
            Err(error) => {
                self.forget(&target);
                return Err(refusal(&error));
            }
        }
        let pushes = self.clone();
        tokio::spawn(async move {
            if let Err(reason) = pushes.send(&target).await {
                tracing::debug!(chunk = target.chunk.0, reason, "a chunk isn't sent on any more");
            }
            pushes.forget(&target);
        });
        Ok(PushBegun {})
    }

    fn forget(&self, target: &Arc<Target>) {
        let mut targets = lock(&self.targets);
        if let Some(of) = targets.get_mut(&target.chunk) {
            of.retain(|known| !Arc::ptr_eq(known, target));
            if of.is_empty() {
                targets.remove(&target.chunk);
            }
        }
    }

    fn tell(&self, chunk: ChunkId, tell: impl Fn(&mut Queue)) {
        let targets = lock(&self.targets);
        for target in targets.get(&chunk).into_iter().flatten() {
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

    async fn send(&self, target: &Target) -> Result<(), String> {
        let (first, rest) = target.chain.split_first().ok_or("there is nobody to send it to")?;
        let mut flights = FuturesUnordered::new();
        let mut at = 0;
        loop {
            while flights.len() < AHEAD {
                let Some(next) = lock(&target.queue).next(at) else { break };
                let bytes = match next {
                    Ok(bytes) => bytes,
                    Err(length) => self.read(target.chunk, at, length).await?,
                };
                let end = at + bytes.len() as u64;
                let append = Append {
                    chunk: target.chunk.0,
                    epoch: target.epoch,
                    offset: at,
                    // All there is: somebody may wait for it.
                    flush: end >= lock(&target.queue).upto,
                    ticket: target.ticket.clone(),
                    chain: rest.to_vec(),
                    crc: checksum(&bytes),
                };
                self.metrics.bytes_pushed.inc_by(bytes.len() as u64);
                let (members, address) = (&self.members, &first.address);
                flights.push(async move { members.append(address, &append, bytes, PIECE_WITHIN).await });
                at = end;
            }
            if flights.is_empty() && lock(&target.queue).ended {
                return Ok(());
            }
            tokio::select! {
                Some(sent) = flights.next(), if !flights.is_empty() => {
                    sent.map_err(|failure| format!("{failure:?}"))?;
                }
                () = target.grown.notified() => {}
                () = tokio::time::sleep(IDLE_MAX), if flights.is_empty() => return Ok(()),
            }
        }
    }

    async fn read(&self, chunk: ChunkId, offset: u64, length: u64) -> Result<Bytes, String> {
        let store = self.store.clone();
        self.blocking.run(move || store.read(chunk, offset, length)).await.map_err(|e| e.to_string())
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
        assert_eq!(queue.next(0), Some(Err(10)), "what was there before the order came");
        queue.append(10, piece(5));
        assert_eq!(queue.next(4), Some(Err(6)));
        assert_eq!(queue.next(10), Some(Ok(piece(5))));
        assert_eq!((queue.next(15), queue.bytes), (None, 0));
        queue.append(10, piece(5));
        assert_eq!(queue.next(15), None, "an append that was repeated");
        for n in 0..20 {
            queue.append(15 + (n << 20), piece(1 << 20));
        }
        assert!(queue.bytes <= KEPT_MAX);
        assert_eq!(queue.next(15), Some(Err(BULK_BYTES_MAX as u64)));
        assert_eq!(queue.next(15 + (19 << 20)), Some(Ok(piece(1 << 20))));
        assert_eq!((queue.next(15 + (20 << 20)), queue.bytes), (None, 0));
    }
}
