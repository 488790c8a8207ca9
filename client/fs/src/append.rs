//! Appending file data to chunks: one open chunk for an inode, replaced when it is full or a chunkserver fails.
//!
//! ```text
//!   no chunk -> AllocateChunk -> append ... append -> full/closed -> SealChunk
//!                                   | failed or hung
//!                                   v
//!                  SealChunk(acknowledged, failed) beside AllocateChunk(exclude) -> append the unacknowledged rest
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use mooseng_wire::CHUNK_BYTES_MAX;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{AllocateChunk, Caller, ChunkLocation, ChunkRun, SealChunk};
use tokio::time::Instant;

use crate::chunkservers::{Chunkservers, Packet, ticket_expires_ms};
use crate::error::FsError;
use crate::packets::Packets;
use crate::read::unexpected;
use crate::region::Region;
use crate::retry::Backoff;
use crate::waits::{self, What};

/// Packets of one write that may be unacknowledged.
const PIPELINE: usize = 8;
/// So many bytes ask for a flush while the ones behind them are on their way: with the last little is left to flush.
const FLUSH_BYTES: usize = 4 << 20;
/// Chunks open at once; beyond it the least recently used one is sealed.
const OPEN_CHUNKS_MAX: usize = 1024;
/// A chunk whose ticket ends sooner than this gets no more packets.
const TICKET_MARGIN_MS: u64 = 10_000;
/// An allocation that leaves chunkservers out is given up after this long: better a suspected one than none.
const PICKY_ALLOCATION: Duration = Duration::from_secs(3);
/// A seal that takes longer goes on in the background.
const SEAL_WAIT: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
struct OpenChunk {
    chunk: u64,
    epoch: u64,
    locations: Vec<ChunkLocation>,
    ticket: Bytes,
    ticket_expires_ms: Option<u64>,
    /// The session and the life of it that the chunk was made for: the region seals it when that lapses.
    life: (u64, u64),
    /// Acknowledged by the whole chain.
    length: u64,
    length_max: u64,
    /// An append was started whose answer nobody waited for: the chain may be longer than `length`.
    unsure: bool,
}

#[derive(Debug, Default)]
struct Appender {
    used: AtomicU64,
    chunk: tokio::sync::Mutex<Option<OpenChunk>>,
}

/// The chunks that this client appends to.
pub(crate) struct Appenders {
    region: Arc<Region>,
    chunkservers: Arc<Chunkservers>,
    tick: AtomicU64,
    by_inode: Mutex<BTreeMap<u64, Arc<Appender>>>,
}

impl Appenders {
    pub fn new(region: Arc<Region>, chunkservers: Arc<Chunkservers>) -> Self {
        Self { region, chunkservers, tick: AtomicU64::new(0), by_inode: Mutex::default() }
    }

    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Arc<Appender>>) -> T) -> T {
        f(&mut self.by_inode.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn open_chunks(&self) -> usize {
        self.map(|map| map.len())
    }

    /// Whether there is a chunk to which bytes of the inode are appended, or soon will.
    pub fn has(&self, inode: u64) -> bool {
        self.map(|map| map.contains_key(&inode))
    }

    fn appender(&self, inode: u64) -> (Arc<Appender>, Option<u64>) {
        let tick = self.tick.fetch_add(1, Ordering::Relaxed);
        self.map(|map| {
            let appender = map.entry(inode).or_default().clone();
            appender.used.store(tick, Ordering::Relaxed);
            let oldest = (map.len() > OPEN_CHUNKS_MAX)
                .then(|| {
                    map.iter().min_by_key(|(_, a)| a.used.load(Ordering::Relaxed)).map(|(&inode, _)| inode)
                })
                .flatten();
            (appender, oldest.filter(|&oldest| oldest != inode))
        })
    }

    /// Makes `data` durable in chunks and answers where it lies. Only then may metadata name it.
    pub async fn append(
        &self,
        caller: &Caller,
        inode: u64,
        mut data: Packets,
        deadline: Instant,
    ) -> Result<Vec<ChunkRun>, FsError> {
        let started = Instant::now();
        let patience = self.region.patience();
        let (appender, oldest) = self.appender(inode);
        if let Some(oldest) = oldest {
            self.close(caller, oldest).await;
        }
        let mut open = appender.chunk.lock().await;
        let mut backoff = Backoff::default();
        let mut runs: Vec<ChunkRun> = Vec::new();
        while !data.is_empty() {
            if open.as_ref().is_some_and(|chunk| !self.usable(chunk)) {
                self.seal(caller, open.take(), Vec::new()).await;
            }
            let chunk = match &mut *open {
                Some(chunk) => chunk,
                None => open.insert(self.allocate(caller, inode, deadline).await?),
            };
            let before = chunk.length;
            chunk.unsure = true;
            let outcome = self.send(chunk, &data).await;
            let done = chunk.length - before;
            if done > 0 {
                push(&mut runs, ChunkRun { chunk: chunk.chunk, chunk_offset: before, length: done });
                data.advance(done as usize);
                backoff = Backoff::default();
            }
            match outcome {
                Ok(()) => chunk.unsure = false,
                Err((failed, reason)) => {
                    tracing::info!(inode, chunk = chunk.chunk, acknowledged = chunk.length, ?failed, %reason, "an append failed; the rest goes to a fresh chunk");
                    self.region.counters.update(|c| c.chunks_replaced += 1);
                    failed.iter().for_each(|name| self.chunkservers.suspect(name));
                    self.seal(caller, open.take(), failed).await;
                    let pause = self.region.session.pause(&mut backoff);
                    if Instant::now() + pause >= deadline {
                        self.region.counters.update(|c| c.timeouts += 1);
                        return Err(FsError::Data { inode, what: "written", after: patience, last: reason });
                    }
                    // The first replacement comes at once.
                    if backoff.attempts() > 1 {
                        waits::on(|| What::Pause, tokio::time::sleep(pause)).await;
                    }
                }
            }
        }
        self.region.counters.took("append", started.elapsed());
        Ok(runs)
    }

    fn usable(&self, chunk: &OpenChunk) -> bool {
        let now_ms = u64::try_from(self.region.session.clock.unix_ns() / 1_000_000).unwrap_or(0);
        !chunk.unsure
            && chunk.length < chunk.length_max
            && chunk.life == self.region.session.life()
            && chunk.ticket_expires_ms.is_none_or(|expires| expires > now_ms + TICKET_MARGIN_MS)
    }

    /// Sends what fits into the chunk, several packets at a time, in order. `chunk.length` is what was acknowledged. The last packet asks for a
    /// flush, and one now and then before it, each for all up to there: metadata names none of them earlier.
    async fn send(&self, chunk: &mut OpenChunk, data: &Packets) -> Result<(), (Vec<String>, String)> {
        let mut room = usize::try_from(chunk.length_max - chunk.length).unwrap_or(usize::MAX);
        let mut rest = data.clone();
        let mut unflushed = 0;
        let locations = chunk.locations.clone();
        let timeout = self.region.session.config.append_timeout;
        let mut offset = chunk.length;
        let mut waiting: VecDeque<(u64, bool)> = VecDeque::new();
        let mut answers = FuturesOrdered::new();
        loop {
            while answers.len() < PIPELINE && !rest.is_empty() && room > 0 {
                let packet = rest.next(room);
                room -= packet.len();
                unflushed += packet.len();
                let length = packet.len() as u64;
                let flush = rest.is_empty() || room == 0 || unflushed >= FLUSH_BYTES;
                if flush {
                    unflushed = 0;
                }
                waiting.push_back((offset + length, flush));
                answers.push_back(self.chunkservers.append(
                    Packet {
                        chunk: chunk.chunk,
                        epoch: chunk.epoch,
                        offset,
                        flush,
                        ticket: chunk.ticket.clone(),
                        locations: &locations,
                        data: packet,
                    },
                    timeout,
                ));
                offset += length;
            }
            let Some(answer) = answers.next().await else { return Ok(()) };
            let Some((expected, flush)) = waiting.pop_front() else { return Ok(()) };
            match answer {
                Ok(appended) if appended.flushed >= expected => chunk.length = expected,
                Ok(_) if !flush => {}
                Ok(appended) => {
                    let first = locations.first().map(|l| l.chunkserver.clone());
                    return Err((
                        first.into_iter().collect(),
                        format!(
                            "the chain acknowledged {} flushed bytes instead of {expected}",
                            appended.flushed
                        ),
                    ));
                }
                Err(failure) => {
                    let mut failed = failure.failed;
                    if failure.hung {
                        failed = self.chunkservers.silent(chunk.chunk, &chunk.ticket, &locations).await;
                    }
                    return Err((failed, failure.reason));
                }
            }
        }
    }

    async fn allocate(&self, caller: &Caller, inode: u64, deadline: Instant) -> Result<OpenChunk, FsError> {
        let mut backoff = Backoff::default();
        loop {
            let exclude = if backoff.attempts() == 0 { self.chunkservers.suspects() } else { Vec::new() };
            let picky = !exclude.is_empty();
            let left = deadline.saturating_duration_since(Instant::now());
            let patience = if picky { left.min(PICKY_ALLOCATION) } else { left };
            let life = self.region.session.life();
            let error = match self
                .region
                .change_within(caller, Op::AllocateChunk(AllocateChunk { inode, exclude }), patience)
                .await
            {
                Ok(Reply::Allocated(allocated)) => match allocated.place {
                    Some(place) if !place.locations.is_empty() => {
                        return Ok(OpenChunk {
                            chunk: place.chunk,
                            epoch: place.epoch,
                            locations: place.locations,
                            ticket_expires_ms: ticket_expires_ms(&place.ticket),
                            ticket: place.ticket,
                            life,
                            length: place.length,
                            length_max: if allocated.length_max == 0 {
                                CHUNK_BYTES_MAX
                            } else {
                                allocated.length_max.min(CHUNK_BYTES_MAX)
                            },
                            unsure: false,
                        });
                    }
                    _ => FsError::Malformed("a chunk was allocated on no chunkservers".into()),
                },
                Ok(other) => unexpected("allocate_chunk", &other),
                Err(error) => error,
            };
            let temporary = match &error {
                // "Not enough chunkservers" passes when they come back; a full cluster is full.
                FsError::Answered(errno) => picky || matches!(*errno, libc::EAGAIN | libc::EIO | libc::EBUSY),
                FsError::Unanswered { .. } => picky,
                FsError::Malformed(_) | FsError::Internal(_) => true,
                _ => false,
            };
            let pause = self.region.session.pause(&mut backoff);
            if !temporary || Instant::now() + pause >= deadline {
                return Err(match error {
                    FsError::Answered(libc::EAGAIN | libc::EBUSY) => FsError::Data {
                        inode,
                        what: "written",
                        after: self.region.patience(),
                        last: "too few chunkservers can take a chunk".into(),
                    },
                    error => error.on_handle(inode),
                });
            }
            if !picky {
                waits::on(|| What::Pause, tokio::time::sleep(pause)).await;
            }
        }
    }

    /// Ends a chunk. What isn't done soon goes on by itself; a master seals chunks of dead sessions anyway.
    async fn seal(&self, caller: &Caller, chunk: Option<OpenChunk>, failed: Vec<String>) {
        let Some(chunk) = chunk else { return };
        let op = Op::SealChunk(SealChunk { chunk: chunk.chunk, acknowledged: chunk.length, failed });
        let sealed = tokio::time::timeout(SEAL_WAIT, self.region.change(caller, op)).await;
        match sealed {
            Ok(Ok(Reply::Errno(errno))) => {
                tracing::debug!(chunk = chunk.chunk, errno, "a chunk couldn't be sealed")
            }
            Ok(Err(error)) => tracing::debug!(chunk = chunk.chunk, %error, "a chunk couldn't be sealed"),
            Ok(Ok(_)) | Err(_) => {}
        }
    }

    /// The region doesn't let these chunks be named: nothing more is appended to them.
    pub async fn disown(&self, inode: u64, chunks: &[u64]) {
        let Some(appender) = self.map(|map| map.get(&inode).cloned()) else { return };
        appender.chunk.lock().await.take_if(|open| chunks.contains(&open.chunk));
    }

    /// The inode is closed (or its chunk must make room): seals its chunk.
    pub async fn close(&self, caller: &Caller, inode: u64) {
        let Some(appender) = self.map(|map| map.remove(&inode)) else { return };
        let chunk = appender.chunk.lock().await.take();
        self.seal(caller, chunk, Vec::new()).await;
    }

    /// Seals everything.
    pub async fn close_all(&self, caller: &Caller) {
        let inodes: Vec<u64> = self.map(|map| map.keys().copied().collect());
        let seals = inodes.into_iter().map(|inode| self.close(caller, inode));
        futures::stream::iter(seals).buffer_unordered(16).collect::<Vec<()>>().await;
    }
}

/// Adds a run, joined with the one before it when it continues it.
fn push(runs: &mut Vec<ChunkRun>, run: ChunkRun) {
    match runs.last_mut() {
        Some(last) if last.chunk == run.chunk && last.chunk_offset + last.length == run.chunk_offset => {
            last.length += run.length
        }
        _ => runs.push(run),
    }
}
