//! The engine's handle: the log's state machine, and the store over it.

use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mooseng_ports::plant::{self, Plant};
use mooseng_store::mvcc::{
    Buffered, CommitRequest, Derive, Engine, Life, Page, ReadLease, Seen, WatchSender, Window, covered, rest,
};
use mooseng_store::{Committed, KeyRange, RangeLimit, ReadVersion, Store, StoreError};
use mooseng_trace as trace;
use tokio::sync::{mpsc, oneshot, watch};

use crate::base::Replacement;
use crate::sequencer::{self, Queued, Traced};
use crate::snapshot::VERSION_KEY;
use crate::state::{Lead, Reach, State};
use crate::{
    ApplyOutcome, Base, BaseError, BasePosition, CommitBatch, CommitLog, LogEntry, Options, Payload, Pin,
    Position,
};

/// Pairs of a range that are read in place at most.
const SHORT_PAIRS: usize = 64;
/// A read that took longer has waited for a disk.
const SLOW: Duration = Duration::from_millis(1);
/// A disk that keeps one waiting so long isn't well.
const VERY_SLOW: Duration = Duration::from_millis(20);
/// Reads that are handed to another thread after a slow one.
const OFFLOADED_AFTER_SLOW: u32 = 32;
/// And after a very slow one.
const OFFLOADED_AFTER_VERY_SLOW: u32 = 4096;

/// The embedded engine. Clones share it.
#[derive(Clone)]
pub struct Embedded {
    pub(crate) inner: Arc<Inner>,
}

/// A transaction of [`Embedded`].
pub type EmbeddedTransaction = Buffered<Embedded>;

pub(crate) struct Inner {
    pub base: Arc<dyn Base>,
    pub options: Options,
    state: Mutex<State>,
    /// Held while the base is written, flushed or replaced. Taken before `state`, never inside it.
    base_work: Mutex<()>,
    queue: mpsc::Sender<Queued>,
    /// The queue's other end, until the sequencer runs.
    waiting: Mutex<Option<mpsc::Receiver<Queued>>>,
    /// Counts changes of leadership.
    pub epoch: watch::Sender<u64>,
    /// Why nothing works any more.
    failure: watch::Sender<Option<String>>,
    flushed: AtomicU64,
    /// How many short reads are yet to be handed to another thread.
    slow: AtomicU32,
    install: Mutex<Option<Install>>,
    seals: Mutex<Arc<Vec<Seal>>>,
}

/// What isn't changed for now, but by who changes a certain key, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Transactions that change anything in here are refused with [`StoreError::NotLeader`],
    pub ranges: Vec<KeyRange>,
    /// unless they change this key.
    pub pass: Bytes,
}

impl Seal {
    /// Whether it keeps a transaction from being committed.
    pub(crate) fn refuses(&self, request: &CommitRequest) -> bool {
        self.ranges.iter().any(|range| request.writes.touches(range))
            && !request.writes.touches(&mooseng_store::key_range(&self.pass))
    }
}

struct Install {
    replacement: Box<dyn Replacement>,
    version: Option<u64>,
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Statistics {
    /// The last applied entry.
    pub applied_index: u64,
    /// The last applied version.
    pub applied_version: u64,
    /// The last entry that is safe in the base.
    pub flushed_index: u64,
    /// Bytes in memory that aren't in the base yet.
    pub window_bytes: usize,
    /// Keys that are watched.
    pub watches: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Embedded {
    /// Opens the engine over a base, at the base's position. It follows until [`lead`](Self::lead). The base is flushed first, since what a
    /// killed process wrote can be read before it is safe.
    pub fn open(base: Arc<dyn Base>, options: Options) -> Result<Self, BaseError> {
        base.flush()?;
        let at = base.position();
        let (queue, waiting) = mpsc::channel(options.queue_max.max(1));
        let flushed = AtomicU64::new(at.position.index);
        let state = Mutex::new(State::new(at, Life::new(options.held_max)));
        Ok(Self {
            inner: Arc::new(Inner {
                base,
                options,
                state,
                base_work: Mutex::new(()),
                queue,
                waiting: Mutex::new(Some(waiting)),
                epoch: watch::channel(0).0,
                failure: watch::channel(None).0,
                flushed,
                slow: AtomicU32::new(0),
                install: Mutex::new(None),
                seals: Mutex::default(),
            }),
        })
    }

    /// Has further changes follow from each transaction's, from the next one on that is applied: before the first, in a store that is to
    /// be the same as others.
    pub fn set_derive(&self, mut derive: Box<dyn Derive>) -> Result<(), BaseError> {
        let mut state = self.inner.state();
        if state.window.bytes() > 0 {
            return Err(BaseError::Misuse(
                "changes were applied before it was known what follows from them".into(),
            ));
        }
        derive.reset(self.inner.governing(&*derive)?);
        state.derive = Some(derive);
        Ok(())
    }

    /// Gives it the log. The first call starts its tasks on the current tokio runtime: the sequencer, and the one that moves the window into
    /// the base.
    pub fn set_log(&self, log: Arc<dyn CommitLog>) {
        self.inner.state().log = Some(log);
        if let Some(queue) = lock(&self.inner.waiting).take() {
            sequencer::spawn(&self.inner, queue);
        }
    }

    /// Lets go of the log and follows for good: a process that ends, or a test.
    pub fn close(&self) {
        self.follow();
        self.inner.state().log = None;
    }

    /// The last applied entry.
    pub fn position(&self) -> Position {
        self.inner.state().position.clone()
    }

    /// The last applied version. On a follower it can be read at with `set_read_version`, without a promise that it is the newest.
    pub fn applied_version(&self) -> ReadVersion {
        ReadVersion(self.inner.state().version)
    }

    /// Applies entries, in the log's order. Those that were applied before are skipped (and answered [`ApplyOutcome::Mismatch`]: this call
    /// changed nothing). Works in memory; it blocks on the base only when the window is far over its bound.
    pub fn apply(&self, entries: Vec<LogEntry>) -> Result<Vec<ApplyOutcome>, BaseError> {
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut state = self.inner.state();
        for entry in entries {
            if state.holds(entry.index) {
                outcomes.push(ApplyOutcome::Mismatch);
                continue;
            }
            if state.position != Position::default() && entry.index != state.position.index + 1 {
                return Err(BaseError::Misuse(format!(
                    "log entry {} was handed over behind entry {}",
                    entry.index, state.position.index
                )));
            }
            let mut meta = state.position.meta.clone();
            outcomes.push(match entry.payload {
                Payload::Blank => ApplyOutcome::Applied,
                Payload::Meta(new) => {
                    meta = new;
                    ApplyOutcome::Applied
                }
                Payload::Batch(bytes) => {
                    let batch = CommitBatch::decode(&bytes).map_err(|error| BaseError::Damaged {
                        place: format!("log entry {}", entry.index),
                        reason: error.to_string(),
                    })?;
                    state.apply(entry.term, batch)
                }
            });
            state.advance(Position { index: entry.index, term: entry.term, node: entry.node, meta });
        }
        let over = state.window.bytes() > self.inner.options.window_bytes_hard;
        drop(state);
        if over {
            self.inner.move_window(Reach::All)?;
        }
        Ok(outcomes)
    }

    /// This master leads from now on. Everything of earlier terms must have been applied.
    pub fn lead(&self, term: u64) {
        let mut state = self.inner.state();
        state.lead = Some(Lead { term, start: state.version });
        drop(state);
        self.inner.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// This master doesn't lead. What is in flight ends with `CommitUnknown`, what wasn't proposed yet and watches with `NotLeader`.
    pub fn follow(&self) {
        self.inner.follow();
    }

    /// From now on, until [`Self::unseal`], nothing that a seal keeps is committed behind what is committed already: of two transactions of which one passes
    /// it and the other one doesn't, none that comes in the order of commits behind the one that passes is let through. It holds on this master, while it
    /// leads. There is one seal for each key that passes.
    pub fn seal(&self, seal: Seal) {
        let mut seals = lock(&self.inner.seals);
        let others = seals.iter().filter(|other| other.pass != seal.pass);
        *seals = Arc::new(others.cloned().chain([seal.clone()]).collect());
    }

    /// Takes the seal off that this key passes.
    pub fn unseal(&self, pass: &[u8]) {
        let mut seals = lock(&self.inner.seals);
        *seals = Arc::new(seals.iter().filter(|seal| seal.pass != pass).cloned().collect());
    }

    /// Waits until the store has failed, and answers why: from then on it leads no more and answers nothing, until the process starts again.
    /// Pending while it works.
    pub async fn failed(&self) -> String {
        let mut failure = self.inner.failure.subscribe();
        match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
            Ok(Some(failure)) => failure,
            _ => std::future::pending().await,
        }
    }

    /// The last entry that is safe in the base: the log may be purged up to it.
    pub fn flushed_index(&self) -> u64 {
        self.inner.flushed.load(Ordering::SeqCst)
    }

    /// Moves the window into the base, up to the oldest version that a running transaction reads at, and flushes the base. Answers
    /// [`flushed_index`](Self::flushed_index). Read versions that nobody holds become too old by it.
    pub async fn flush(&self) -> Result<u64, BaseError> {
        let inner = self.inner.clone();
        let ran = self.inner.options.offload.run(move || {
            inner.move_window(Reach::Unheld)?;
            inner.flush_base()
        });
        ran.await.ok_or_else(lost)??;
        Ok(self.flushed_index())
    }

    /// Makes every read version but the applied one too old, and moves the whole window into the base: what happens by and by to
    /// transactions that run too long. For tests.
    pub fn expire(&self) -> Result<(), BaseError> {
        self.inner.move_window(Reach::All)
    }

    /// A picture of the state as of [`position`](Self::position).
    pub fn pin(&self) -> Result<Pin, BaseError> {
        self.picture(plant::is(Plant::SnapshotWithoutWindow))
    }

    fn picture(&self, without_window: bool) -> Result<Pin, BaseError> {
        loop {
            // The window first: what moves into the base meanwhile is in both.
            let (position, version, window) = {
                let state = self.inner.state();
                (state.position.clone(), state.version, state.window.clone())
            };
            let window = if without_window { Window::default() } else { window };
            let base = self.inner.base.pin()?;
            if base.position().position.index <= position.index {
                return Ok(Pin::new(position, version, window, base));
            }
        }
    }

    /// A hash over all pairs and the version, which masters at the same position share.
    pub fn state_digest(&self) -> Result<u64, BaseError> {
        self.picture(false)?.digest()
    }

    /// Begins to take in a state from another master. The old one stays until [`install_end`](Self::install_end); an unfinished
    /// installation is dropped.
    pub fn install_begin(&self) -> Result<(), BaseError> {
        let mut install = lock(&self.inner.install);
        *install = None;
        *install = Some(Install { replacement: self.inner.base.replace()?, version: None });
        Ok(())
    }

    /// Takes in a page of the other master's [`Pin`].
    pub fn install_page(&self, mut pairs: Vec<(Bytes, Bytes)>) -> Result<(), BaseError> {
        let mut install = lock(&self.inner.install);
        let install =
            install.as_mut().ok_or_else(|| BaseError::Misuse("no installation has begun".into()))?;
        if let Some(at) = pairs.iter().position(|(key, _)| key == VERSION_KEY) {
            let (_, value) = pairs.remove(at);
            let bytes: [u8; 8] = value[..].try_into().map_err(|_| BaseError::Damaged {
                place: "a snapshot".into(),
                reason: "its version doesn't have eight bytes".into(),
            })?;
            install.version = Some(u64::from_be_bytes(bytes));
        }
        if pairs.is_empty() { Ok(()) } else { install.replacement.put(pairs) }
    }

    /// Takes in the version, where it doesn't come with the pages.
    pub fn install_version(&self, version: u64) -> Result<(), BaseError> {
        let mut install = lock(&self.inner.install);
        let install =
            install.as_mut().ok_or_else(|| BaseError::Misuse("no installation has begun".into()))?;
        install.version = Some(version);
        Ok(())
    }

    /// Puts the installed state, as of `position`, in place of the old one. Transactions that read the old one become too old.
    pub fn install_end(&self, position: Position) -> Result<(), BaseError> {
        let install = lock(&self.inner.install).take();
        let install = install.ok_or_else(|| BaseError::Misuse("no installation has begun".into()))?;
        let version = install.version.ok_or_else(|| BaseError::Damaged {
            place: "a snapshot".into(),
            reason: "it came without its version".into(),
        })?;
        self.follow();
        let _work = lock(&self.inner.base_work);
        let old_floor = std::mem::replace(&mut self.inner.state().floor, u64::MAX);
        let target = BasePosition { position, version };
        if let Err(error) = install.replacement.finish(&target) {
            self.inner.state().floor = old_floor;
            return Err(self.inner.fail(error));
        }
        let mut state = self.inner.state();
        let governing = state.derive.as_ref().map(|derive| self.inner.governing(&**derive)).transpose();
        let governing = governing.inspect_err(|error| {
            state.failed.get_or_insert_with(|| error.to_string());
        })?;
        let governing = governing.unwrap_or_default();
        let log = state.log.take();
        let mut derive = state.derive.take();
        let leases = state.leases.clone();
        *state = State::new(target.clone(), Life::new(self.inner.options.held_max));
        state.log = log;
        if let Some(derive) = &mut derive {
            derive.reset(governing);
        }
        state.derive = derive;
        state.leases = leases;
        drop(state);
        self.inner.flushed.store(target.position.index, Ordering::SeqCst);
        Ok(())
    }

    /// Numbers for metrics.
    pub fn statistics(&self) -> Statistics {
        let state = self.inner.state();
        Statistics {
            applied_index: state.position.index,
            applied_version: state.version,
            flushed_index: self.flushed_index(),
            window_bytes: state.window.bytes(),
            watches: state.watches.len(),
        }
    }
}

fn lost() -> BaseError {
    BaseError::Failed {
        action: "finish a call",
        place: "its base".into(),
        reason: "the thread that ran it ended".into(),
    }
}

impl Inner {
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub fn follow(&self) {
        let mut state = self.state();
        state.lead = None;
        state.watches.fail(&StoreError::NotLeader);
        drop(state);
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Remembers an error after which nothing works. Leadership ends with it: what is in flight may be committed all the same, by those
    /// whose disks are well, and is answered as unknown.
    pub fn fail(&self, error: BaseError) -> BaseError {
        let first = {
            let mut state = self.state();
            let first = state.failed.is_none();
            state.failed.get_or_insert_with(|| error.to_string());
            first
        };
        if first {
            tracing::error!(%error, "the metadata store has failed");
            self.follow();
            self.failure.send_replace(Some(error.to_string()));
        }
        error
    }

    /// What the base holds under the keys that say what is derived.
    fn governing(&self, derive: &dyn Derive) -> Result<Vec<(Bytes, Bytes)>, BaseError> {
        let mut pairs = Vec::new();
        let mut left = Some(derive.governed_by());
        while let Some(range) = left {
            let page = self.base.range(&range, RangeLimit::default())?;
            pairs.extend(page.pairs);
            left = page.boundary.map(|boundary| rest(&range, &boundary, false));
        }
        Ok(pairs)
    }

    /// Moves the window into the base, piece by piece.
    pub fn move_window(&self, reach: Reach) -> Result<(), BaseError> {
        let _work = lock(&self.base_work);
        loop {
            let Some((changes, target)) = self.state().next_move(reach) else { return Ok(()) };
            self.base.write(&changes, &target).map_err(|error| self.fail(error))?;
            self.state().moved(&target);
        }
    }

    /// Flushes the base.
    pub fn flush_base(&self) -> Result<(), BaseError> {
        let _work = lock(&self.base_work);
        let index = self.base.position().position.index;
        if index == self.flushed.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.base.flush().map_err(|error| self.fail(error))?;
        self.flushed.store(index, Ordering::SeqCst);
        Ok(())
    }

    /// A key's value at a version, from the window or else the base.
    pub async fn read(&self, version: u64, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        // The window first: what moves into the base meanwhile is in both, and what the base gained beyond `version` shows in the floor.
        {
            let state = self.state();
            state.check(version)?;
            match state.window.get(key, version) {
                Seen::Value(value) => return Ok(Some(value)),
                Seen::Absent => return Ok(None),
                Seen::Base => {}
            }
        }
        let (base, owned) = (self.base.clone(), Bytes::copy_from_slice(key));
        let value = self.short(move || base.get(&owned)).await?;
        self.state().check(version)?;
        Ok(value)
    }

    /// Runs a job that memory answers, as a rule: in place, for handing it to another thread and back costs ten times as much. Where
    /// a disk had to be waited for, the next ones are handed over.
    async fn short<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, BaseError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let left = |left: u32| left.checked_sub(1);
        if self.slow.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok() {
            return self.offload(job).await;
        }
        let started = std::time::Instant::now();
        let ran = job();
        let took = started.elapsed();
        if took > SLOW {
            let next = if took > VERY_SLOW { OFFLOADED_AFTER_VERY_SLOW } else { OFFLOADED_AFTER_SLOW };
            self.slow.fetch_max(next, Ordering::Relaxed);
        }
        ran.map_err(|error| StoreError::Failed(self.fail(error).to_string()))
    }

    async fn offload<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, BaseError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let ran = self.options.offload.run(job).await.unwrap_or_else(|| Err(lost()));
        ran.map_err(|error| StoreError::Failed(self.fail(error).to_string()))
    }
}

impl Inner {
    /// The seals that are on it.
    pub fn seals(&self) -> Arc<Vec<Seal>> {
        lock(&self.seals).clone()
    }
}

impl Store for Embedded {
    type Transaction = EmbeddedTransaction;
    fn begin(&self) -> EmbeddedTransaction {
        Buffered::new(self.clone())
    }
}

impl Engine for Embedded {
    async fn newest(&self) -> Result<ReadLease, StoreError> {
        let (lease, log) = {
            let state = self.inner.state();
            state.check(state.version)?;
            let (Some(_), Some(log)) = (state.lead, &state.log) else { return Err(StoreError::NotLeader) };
            (state.leases.take(state.version), log.clone())
        };
        // Asked after the version was taken: then nobody else had committed by that moment.
        if log.may_read() { Ok(lease) } else { Err(StoreError::NotLeader) }
    }

    fn hold(&self, version: u64) -> Result<ReadLease, StoreError> {
        let state = self.inner.state();
        state.check(version)?;
        Ok(state.leases.take(version))
    }

    fn get(
        &self,
        version: u64,
        key: &[u8],
    ) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send {
        self.inner.read(version, key)
    }

    async fn page(&self, version: u64, range: &KeyRange, limit: RangeLimit) -> Result<Page, StoreError> {
        let slice = {
            let state = self.inner.state();
            state.check(version)?;
            let most = (limit.pairs_max, limit.pairs_max.saturating_add(16).min(10_000));
            state.window.slice(range, version, most, limit.reverse)
        };
        let part = covered(range, slice.boundary.as_ref(), limit.reverse);
        let limit = RangeLimit { pairs_max: limit.pairs_max.clamp(1, 10_000), ..limit };
        let base = self.inner.base.clone();
        // Most ranges are short, whatever they may be: a name's slots, a directory's counters, a small file's extents.
        let few = RangeLimit { pairs_max: limit.pairs_max.min(SHORT_PAIRS), ..limit };
        let (short_base, short_part) = (base.clone(), part.clone());
        let mut stored = self.inner.short(move || short_base.range(&short_part, few)).await?;
        if stored.boundary.is_some() && limit.pairs_max > few.pairs_max {
            stored = self.inner.offload(move || base.range(&part, limit)).await?;
        }
        self.inner.state().check(version)?;
        Ok(slice.over(range, stored, limit.reverse))
    }

    async fn commit(&self, request: CommitRequest) -> Result<Committed, StoreError> {
        {
            let state = self.inner.state();
            state.check(state.version)?;
            if state.lead.is_none() || state.log.is_none() {
                return Err(StoreError::NotLeader);
            }
        }
        let (answer, outcome) = oneshot::channel();
        let span = trace::internal("commit").noted("bytes", || request.bytes);
        let traced = Traced::new(&span);
        let committed = async {
            if self.inner.queue.send(Queued { request, answer, traced }).await.is_err() {
                return Err(StoreError::NotLeader);
            }
            // The sequencer answers everything that it takes; if it was ended with its runtime, nobody knows.
            outcome.await.unwrap_or(Err(StoreError::CommitUnknown))
        };
        span.watch(committed).await
    }

    fn watch(&self, key: Bytes, version: u64, sender: WatchSender) {
        let mut state = self.inner.state();
        if version < state.floor || state.window.changed_since(&key, version) {
            let _ = sender.send(Ok(()));
        } else {
            state.watches.add(key, sender);
        }
    }
}
