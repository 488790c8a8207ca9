//! The calls of the chunk data stream.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_chunk::chain::{Event, NextFailure, Round, refusal};
use mooseng_chunk::{Admission, ChunkError, ChunkStore, Sums, Written, checksum};
use mooseng_ports::clock::Clock;
use mooseng_ports::plant::{self, Plant};
use mooseng_transport::{Answer, Blocking, Incoming, Service, call_error, trace};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{
    Append, Appended, AskDigest, AskMemory, Build, ChunkStat, Close, Digested, Follow, Lend, LendRefusal,
    Pull, Push, Read, ReadDone, Seal, Sealed, StatChunk,
};
use mooseng_wire::method::Method;
use mooseng_wire::{BULK_BYTES_MAX, ChunkId, Epoch, Identity, Role};
use tokio::sync::{MutexGuard, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::access::{self, KeyRing};
use crate::epochs::Epochs;
use crate::gates::Gates;
use crate::lend::{self, Lender};
use crate::members::Members;
use crate::metrics::Metrics;
use crate::order::{Order, Turns};
use crate::pull::Pulls;
use crate::push::Pushes;
use crate::scrub::unix_s;

/// Longest chain behind us.
pub(crate) const CHAIN_MAX: usize = 8;
/// How long an append that overtook its forerunner waits for it.
const EARLY_WAIT: Duration = Duration::from_secs(1);
/// How often it looks again without having been told: whoever should tell it may have been cut off.
const EARLY_LOOK: Duration = Duration::from_millis(50);
/// What each further member adds to the time that a chain waits.
const HOP: Duration = Duration::from_millis(500);
/// Most calls that work on disks at a time.
const AT_WORK_MAX: usize = 512;

/// Serves chunks.
pub struct ChunkService {
    ours: Identity,
    store: Arc<ChunkStore>,
    blocking: Blocking,
    gates: Arc<Gates>,
    clock: Arc<dyn Clock>,
    keys: Arc<KeyRing>,
    members: Arc<Members>,
    epochs: Arc<Epochs>,
    order: Order,
    pulls: Pulls,
    pushes: Pushes,
    lender: Option<Arc<Lender>>,
    metrics: Metrics,
    chain_timeout: Duration,
    at_work: Semaphore,
}

/// What a service is made of.
pub struct Parts {
    /// Who we are.
    pub ours: Identity,
    /// The chunks.
    pub store: Arc<ChunkStore>,
    /// Where disk work is done.
    pub blocking: Blocking,
    /// For the expiry of tickets.
    pub clock: Arc<dyn Clock>,
    /// The ticket keys.
    pub keys: Arc<KeyRing>,
    /// What masters have told of home epochs.
    pub epochs: Arc<Epochs>,
    /// Chains' next members.
    pub members: Members,
    /// Counters.
    pub metrics: Metrics,
    /// How long a chain waits for its next member.
    pub chain_timeout: Duration,
    /// Lends files to clients on this host.
    pub lender: Option<Arc<Lender>>,
}

fn too_late() -> CallError {
    call_error(
        ErrorCode::DeadlineExceeded,
        "the chunkserver didn't finish within the caller's deadline; whether it took effect isn't known",
    )
}

impl ChunkService {
    /// A service.
    pub fn new(parts: Parts) -> Self {
        let Parts { ours, store, blocking, clock, keys, epochs, members, metrics, chain_timeout, lender } =
            parts;
        let at_work = Semaphore::new(AT_WORK_MAX);
        let gates = Arc::new(Gates::new(store.clone(), blocking));
        let pulls = Pulls::new(store.clone(), gates.clone(), metrics.clone());
        let members = Arc::new(members);
        let pushes = Pushes::new(store.clone(), blocking, gates.clone(), members.clone(), metrics.clone());
        Self {
            ours,
            store,
            blocking,
            gates,
            clock,
            keys,
            members,
            epochs,
            order: Order::default(),
            pulls,
            pushes,
            lender,
            metrics,
            chain_timeout,
            at_work,
        }
    }

    /// Closes the links to other chunkservers.
    pub fn close(&self) {
        self.members.close();
    }

    async fn dispatch(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let _permit = trace::internal("queue")
            .watch(self.at_work.acquire())
            .await
            .map_err(|_| call_error(ErrorCode::Unavailable, "the chunkserver stops"))?;
        match incoming.method {
            Method::ChunkAppend => self.append(incoming).await,
            Method::ChunkRead => self.read(incoming).await,
            Method::ChunkLend => self.lend(incoming).await,
            Method::ChunkMemory => self.share_memory(&incoming),
            Method::ChunkSeal => self.seal(incoming).await,
            Method::ChunkStat => self.stat(incoming).await,
            Method::ChunkPull => self.pull(incoming).await,
            Method::ChunkFollow => self.follow(incoming).await,
            Method::ChunkPush => self.push(incoming).await,
            Method::ChunkBuild => self.build(incoming).await,
            Method::ChunkDigest => self.digest(incoming).await,
            Method::ChunkClose => self.end(incoming).await,
            other => Err(call_error(
                ErrorCode::InvalidRequest,
                format!("a chunkserver doesn't serve {}; ask a master", other.as_str()),
            )),
        }
    }

    fn check(&self, incoming: &Incoming, chunk: u64, ticket: &[u8]) -> Result<ChunkId, CallError> {
        let chunk = ChunkId(chunk);
        let now_ms = u64::try_from(self.clock.unix_ns() / 1_000_000).unwrap_or(0);
        access::check(
            &self.ours,
            &incoming.peer.identity,
            incoming.method,
            chunk,
            ticket,
            &self.keys,
            now_ms,
        )?;
        Ok(chunk)
    }

    /// Runs work on a chunk where it may block, in a span of its own.
    async fn work<T: Send + 'static>(
        &self,
        name: &'static str,
        chunk: ChunkId,
        f: impl FnOnce(&ChunkStore) -> Result<T, ChunkError> + Send + 'static,
    ) -> Result<T, ChunkError> {
        trace::internal(name).watch(self.gates.run(chunk, f)).await
    }

    async fn append(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let append: Append = incoming.decode()?;
        let chunk = self.check(&incoming, append.chunk, &append.ticket)?;
        if append.chain.len() > CHAIN_MAX || append.chain.iter().any(|m| m.chunkserver == self.ours.name) {
            return Err(call_error(
                ErrorCode::InvalidRequest,
                format!("a chain of chunk {chunk} is too long, or comes back to {}", self.ours.name),
            ));
        }
        if incoming.bulk.len() > BULK_BYTES_MAX {
            return Err(call_error(
                ErrorCode::InvalidRequest,
                format!("an append has {BULK_BYTES_MAX} bytes at most"),
            ));
        }
        if incoming.was_shared {
            self.metrics.bytes_shared.inc_by(incoming.bulk.len() as u64);
        }
        let sums = Sums::of(&incoming.bulk);
        if sums.total() != append.crc {
            return Err(refusal(&ChunkError::PacketCorrupt { chunk }));
        }
        self.see_epoch(&incoming.peer.identity, chunk, Epoch(append.epoch)).await?;
        let Some(entered) = self.order.enter(chunk) else {
            return Err(call_error(
                ErrorCode::Busy,
                format!("too many appends to chunk {chunk} are in flight; wait for answers"),
            ));
        };
        let turn = self.admitted(&entered.turns, &append, incoming.bulk.len() as u64).await?;
        let ours = self.write_ours(turn, &entered.turns, &append, incoming.bulk.clone(), sums);
        let next = self.forward(&append, incoming.bulk.clone(), incoming.deadline);
        let mut round = Round::new(append.chain.first().map(|m| m.chunkserver.clone()));
        tokio::pin!(ours, next);
        let (mut ours_due, mut next_due) = (true, !append.chain.is_empty());
        loop {
            // Ours first: its write is under way before anything can end this call.
            let event = tokio::select! {
                biased;
                result = &mut ours, if ours_due => { ours_due = false; Event::Ours(result) }
                result = &mut next, if next_due => { next_due = false; Event::Next(result) }
                else => return Err(call_error(ErrorCode::Internal, "an append ended without an outcome")),
            };
            if let Some(outcome) = round.step(event) {
                return outcome.map(|appended| Answer::of(&appended));
            }
        }
    }

    /// Refuses an old epoch; a new one that a master tells of is made durable, which blocks.
    async fn see_epoch(&self, caller: &Identity, chunk: ChunkId, epoch: Epoch) -> Result<(), CallError> {
        let volume = chunk.volume().0;
        if self.store.knows_epoch(volume, epoch) {
            return Ok(());
        }
        if caller.role != Role::Master {
            self.epochs.known(chunk, epoch).await?;
        }
        let store = self.store.clone();
        // On the disk of the state directory, not on the chunk's.
        let seen = self.blocking.run(move || store.see_epoch(volume, epoch));
        trace::internal("chunk.epoch").watch(seen).await.map_err(|e| refusal(&e))
    }

    /// Waits until the append is the next of its chunk, or one that came before, and takes its turn.
    async fn admitted<'a>(
        &self,
        turns: &'a Turns,
        append: &Append,
        bytes: u64,
    ) -> Result<MutexGuard<'a, ()>, CallError> {
        let chunk = ChunkId(append.chunk);
        let patience = Instant::now() + EARLY_WAIT;
        loop {
            let turn = turns.write.lock().await;
            let grown = turns.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            let admission = self
                .store
                .admit(chunk, Epoch(append.epoch), append.offset, bytes)
                .map_err(|e| refusal(&e))?;
            let Admission::Early { length } = admission else { return Ok(turn) };
            drop(turn);
            let now = Instant::now();
            if now >= patience {
                return Err(refusal(&ChunkError::OffsetMismatch {
                    chunk,
                    length,
                    offset: append.offset,
                    bytes,
                }));
            }
            // Told or not: it looks again.
            let _ = timeout_at(patience.min(now + EARLY_LOOK), grown).await;
        }
    }

    async fn write_ours(
        &self,
        turn: MutexGuard<'_, ()>,
        turns: &Turns,
        append: &Append,
        bytes: Bytes,
        sums: Sums,
    ) -> Result<Written, ChunkError> {
        let chunk = ChunkId(append.chunk);
        let end = append.offset + bytes.len() as u64;
        let (empty, count) = (bytes.is_empty(), bytes.len() as u64);
        let sent_on = bytes.clone();
        let ours = mooseng_chunk::Append { chunk, epoch: Epoch(append.epoch), offset: append.offset, bytes };
        let written = self.work("chunk.write", chunk, move |store| store.write_summed(&ours, &sums)).await;
        if written.is_ok() {
            // In its turn, so that pieces come in their order.
            self.pushes.appended(chunk, append.offset, &sent_on);
        }
        drop(turn);
        turns.grown.notify_waiters();
        let written = written?;
        self.metrics.bytes_written.inc_by(count);
        if !append.flush {
            return Ok(written);
        }
        if plant::is(Plant::AnswerBeforeTailFlush) && append.chain.is_empty() {
            return Ok(Written { flushed: written.length, ..written });
        }
        let _one_for_all = turns.flush.lock().await;
        match self.store.stat(chunk)? {
            // Whoever flushed before us flushed our bytes, too.
            stat if stat.flushed >= end && !empty => {
                Ok(Written { length: stat.length, flushed: stat.flushed })
            }
            _ => {
                self.metrics.flushes.inc();
                self.work("chunk.flush", chunk, move |store| store.flush(chunk)).await
            }
        }
    }

    async fn forward(
        &self,
        append: &Append,
        bytes: Bytes,
        deadline: Instant,
    ) -> Result<Appended, NextFailure> {
        let Some((next, rest)) = append.chain.split_first() else {
            return Err(NextFailure::Silent("there is no next member".into()));
        };
        let onward = Append { chain: rest.to_vec(), ..append.clone() };
        // Somewhat before our caller's deadline, so that the answer still names who is at fault.
        let left = deadline.saturating_duration_since(Instant::now()).mul_f32(0.9);
        let timeout = (self.chain_timeout + HOP * rest.len() as u32).min(left);
        self.members.append(&next.address, &onward, bytes, timeout).await
    }

    async fn read(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let read: Read = incoming.decode()?;
        let chunk = self.check(&incoming, read.chunk, &read.ticket)?;
        if read.length as usize > BULK_BYTES_MAX {
            return Err(call_error(
                ErrorCode::InvalidRequest,
                format!("a read has {BULK_BYTES_MAX} bytes at most"),
            ));
        }
        let work = move |store: &ChunkStore| {
            let bytes = store.read(chunk, read.offset, u64::from(read.length))?;
            Ok((checksum(&bytes), bytes))
        };
        let (crc, bytes) = self.work("chunk.read", chunk, work).await.map_err(|e| refusal(&e))?;
        self.metrics.bytes_read.inc_by(bytes.len() as u64);
        Ok(Answer::with_bulk(&ReadDone { crc }, bytes))
    }

    async fn lend(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let lend: Lend = incoming.decode()?;
        // On the same host or not: who is of another region is far.
        if incoming.peer.identity.region != self.ours.region {
            return Ok(Answer::of(&lend::refused(LendRefusal::NotHere)));
        }
        let chunk = self.check(&incoming, lend.chunk, &lend.ticket)?;
        let Some(lender) = self.lender.as_ref().filter(|lender| lender.is_here(&lend.boot_id)) else {
            return Ok(Answer::of(&lend::refused(LendRefusal::NotHere)));
        };
        let loan = self.work("chunk.lend", chunk, move |store| store.lend(chunk)).await;
        let loan = loan.map_err(|e| refusal(&e))?;
        let Some(loan) = loan else { return Ok(Answer::of(&lend::refused(LendRefusal::NotSealed))) };
        let lent = lender.offer(&incoming.peer.uri, loan);
        if lent.refused() == LendRefusal::Unspecified {
            self.metrics.lent.inc();
        }
        Ok(Answer::of(&lent))
    }

    /// Shares memory with whoever writes here: it lets nobody do anything, so that no ticket is asked for.
    fn share_memory(&self, incoming: &Incoming) -> Result<Answer, CallError> {
        let asked: AskMemory = incoming.decode()?;
        let peer = &incoming.peer.identity;
        if (&peer.cluster, &peer.region) != (&self.ours.cluster, &self.ours.region)
            || !matches!(peer.role, Role::Client | Role::Chunkserver)
        {
            return Ok(Answer::of(&lend::no_memory(LendRefusal::NotHere)));
        }
        let lender = self.lender.as_ref().filter(|lender| lender.is_here(&asked.boot_id));
        Ok(Answer::of(&match lender {
            Some(lender) => lender.share(&incoming.connection),
            None => lend::no_memory(LendRefusal::NotHere),
        }))
    }

    async fn seal(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let seal: Seal = incoming.decode()?;
        let chunk = self.check(&incoming, seal.chunk, &seal.ticket)?;
        self.see_epoch(&incoming.peer.identity, chunk, Epoch(seal.epoch)).await?;
        self.work("chunk.seal", chunk, move |store| store.seal(chunk, Epoch(seal.epoch), seal.length))
            .await
            .map_err(|e| refusal(&e))?;
        self.pushes.ended(chunk);
        Ok(Answer::of(&Sealed { length: seal.length }))
    }

    async fn stat(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let stat: StatChunk = incoming.decode()?;
        let chunk = self.check(&incoming, stat.chunk, &stat.ticket)?;
        let store = self.store.clone();
        // What is known, without its disk.
        let known = self.blocking.run(move || store.stat(chunk));
        let is = trace::internal("chunk.stat").watch(known).await.map_err(|e| refusal(&e))?;
        let is = ChunkStat { length: is.length, flushed: is.flushed, sealed: is.sealed, epoch: is.epoch.0 };
        Ok(Answer::of(&is))
    }

    async fn pull(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let pull: Pull = incoming.decode()?;
        self.check(&incoming, pull.chunk, &[])?;
        let pulled = self.pulls.pull(pull, &self.members, unix_s(&*self.clock)).await?;
        Ok(Answer::of(&pulled))
    }

    async fn follow(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let follow: Follow = incoming.decode()?;
        self.check(&incoming, follow.chunk, &[])?;
        // An order of its leader and one of the leader before may cross: appends have their turns.
        let followed = self.pulls.follow(follow, &self.members, &self.order).await?;
        Ok(Answer::of(&followed))
    }

    async fn push(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let push: Push = incoming.decode()?;
        self.check(&incoming, push.chunk, &[])?;
        Ok(Answer::of(&self.pushes.begin(push).await?))
    }

    async fn build(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let build: Build = incoming.decode()?;
        self.check(&incoming, build.chunk, &[])?;
        let built = self.pulls.build(build, &self.members, unix_s(&*self.clock)).await?;
        Ok(Answer::of(&built))
    }

    async fn digest(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let asked: AskDigest = incoming.decode()?;
        let chunk = self.check(&incoming, asked.chunk, &asked.ticket)?;
        if asked.read {
            for offset in (0..asked.length).step_by(BULK_BYTES_MAX) {
                let length = (asked.length - offset).min(BULK_BYTES_MAX as u64);
                let read = move |store: &ChunkStore| store.read(chunk, offset, length).map(drop);
                self.work("chunk.read", chunk, read).await.map_err(|e| refusal(&e))?;
            }
        }
        let digest = self
            .work("chunk.digest", chunk, move |store| store.digest(chunk, asked.length))
            .await
            .map_err(|e| refusal(&e))?;
        Ok(Answer::of(&Digested { digest: Bytes::copy_from_slice(&digest) }))
    }

    async fn end(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let close: Close = incoming.decode()?;
        let chunk = self.check(&incoming, close.chunk, &[])?;
        let length = self
            .work("chunk.close", chunk, move |store| store.seal_here(chunk, Epoch(close.epoch)))
            .await
            .map_err(|e| refusal(&e))?;
        self.pushes.ended(chunk);
        Ok(Answer::of(&Sealed { length }))
    }
}

#[async_trait]
impl Service for ChunkService {
    async fn call(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let (method, started) = (incoming.method.as_str(), Instant::now());
        let deadline = incoming.deadline;
        let result = timeout_at(deadline, self.dispatch(incoming)).await.unwrap_or_else(|_| Err(too_late()));
        self.metrics.answered(
            method,
            result.as_ref().err().map(CallError::code),
            started.elapsed().as_secs_f64(),
        );
        if let Err(e) = &result {
            tracing::debug!(
                method,
                code = e.code().as_str_name(),
                message = e.message,
                "answered with an error"
            );
        }
        result
    }
}
