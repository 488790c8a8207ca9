//! The leader's side: one task that checks, orders and resolves commits, and proposes them in batches.
//!
//! What it knows (conflicts, pending changes) is about one chain: applied, then its own batches in flight, in order. As soon as anything
//! else may have happened (an outcome other than applied, a change of leadership, an applied version that isn't the chain's), it waits until
//! nothing is in flight and begins a new chain at the applied version; read versions older than that are too old from then on.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::Poll;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use mooseng_ports::plant::{self, Plant};
use mooseng_store::mvcc::{Change, CommitRequest, Conflicts, Seen, Window, stamp};
use mooseng_store::{Committed, ReadVersion, StoreError, key_range};
use mooseng_trace::{self as trace, Span, TRACE};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::engine::Inner;
use crate::state::{Lead, Reach};
use crate::{ApplyOutcome, BaseError, CommitBatch, CommitLog, ProposeError};

type Answer = oneshot::Sender<Result<Committed, StoreError>>;

/// A commit that waits.
pub(crate) struct Queued {
    pub request: CommitRequest,
    pub answer: Answer,
    pub traced: Traced,
}

/// A commit's place in a sampled trace; empty outside one.
#[derive(Default)]
pub(crate) struct Traced {
    /// Of the commit.
    context: Bytes,
    /// Its time in the queue, and in the checks.
    _queued: Span,
}

impl Traced {
    pub fn new(commit: &Span) -> Self {
        let context = commit.context();
        Self { _queued: trace::within("commit.queue", &context), context }
    }
}

/// A batch in flight.
struct Flight {
    serial: u64,
    /// Its last version.
    last: u64,
    commits: Vec<(u64, Answer)>,
    /// Those of its transactions that are traced and whose trace isn't the one that the batch is proposed in: that one is linked.
    beside: Vec<Span>,
    /// Transactions that conflict with it. They hear of it when it is applied: before that, their next try would conflict again.
    losers: Vec<Answer>,
}

type Outcome = (u64, Result<ApplyOutcome, ProposeError>);
type Proposal = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Starts the engine's tasks. They end with its last handle.
pub(crate) fn spawn(inner: &Arc<Inner>, queue: mpsc::Receiver<Queued>) {
    let epoch = inner.epoch.subscribe();
    let sequencer = Sequencer::new(Arc::downgrade(inner)).run(queue, epoch);
    tokio::spawn(guarded(Arc::downgrade(inner), "order commits", sequencer));
    tokio::spawn(guarded(Arc::downgrade(inner), "move commits into the base", upkeep(Arc::downgrade(inner))));
}

/// Runs a task without which the engine does its work only in part: one that panics fails the engine, which another master's is to follow.
async fn guarded(inner: Weak<Inner>, action: &'static str, task: impl Future<Output = ()>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err()
        && let Some(inner) = inner.upgrade()
    {
        let reason = "a bug ended the task that does that; the log says where".to_owned();
        inner.fail(BaseError::Failed { action, place: "memory".into(), reason });
    }
}

/// Ages read versions, moves the window into the base, flushes the base.
async fn upkeep(inner: Weak<Inner>) {
    let start = Instant::now();
    let mut flushed = start;
    loop {
        let Some(interval) = inner.upgrade().map(|inner| inner.options.move_interval) else { return };
        tokio::time::sleep(interval).await;
        let Some(inner) = inner.upgrade() else { return };
        let reach = {
            let mut state = inner.state();
            if state.failed.is_some() {
                return;
            }
            let (version, held) = (state.version, state.leases.oldest());
            state.aged = state.life.tick(start.elapsed(), version, held);
            if state.window.bytes() > inner.options.window_bytes_soft { Reach::Unheld } else { Reach::Aged }
        };
        let flush = flushed.elapsed() >= inner.options.flush_interval;
        let (worker, offload) = (inner.clone(), inner.options.offload.clone());
        let ran = offload.run(move || {
            worker.move_window(reach)?;
            if flush { worker.flush_base() } else { Ok(()) }
        });
        // An error was logged and remembered where it came up.
        if !matches!(ran.await, Some(Ok(()))) {
            return;
        }
        if flush {
            flushed = Instant::now();
        }
    }
}

struct Sequencer {
    inner: Weak<Inner>,
    chain: Chain,
    flights: VecDeque<Flight>,
    proposals: FuturesUnordered<Proposal>,
    /// Nothing may be added to the chain: it begins anew once nothing is in flight.
    broken: bool,
    serial: u64,
    /// The highest version that this leader ever gave out.
    assigned: u64,
}

/// What is known along the chain of batches.
struct Chain {
    lead: Option<Lead>,
    epoch: u64,
    /// The version behind the last batch.
    tail: u64,
    conflicts: Conflicts,
    /// Changes in flight.
    pending: Window,
}

impl Chain {
    fn new(lead: Option<Lead>, epoch: u64, applied: u64) -> Self {
        Self { lead, epoch, tail: applied, conflicts: Conflicts::new(applied), pending: Window::default() }
    }
}

impl Sequencer {
    fn new(inner: Weak<Inner>) -> Self {
        Self {
            inner,
            chain: Chain::new(None, 0, 0),
            flights: VecDeque::new(),
            proposals: FuturesUnordered::new(),
            broken: false,
            serial: 0,
            assigned: 0,
        }
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Queued>, mut epoch: tokio::sync::watch::Receiver<u64>) {
        let Some((proposals_max, bytes_max)) = self
            .inner
            .upgrade()
            .map(|inner| (inner.options.proposals_max.max(1), inner.options.batch_bytes_max))
        else {
            return;
        };
        loop {
            let open = !self.broken && self.proposals.len() < proposals_max;
            tokio::select! {
                biased;
                changed = epoch.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.turn();
                }
                Some(outcome) = self.proposals.next(), if !self.proposals.is_empty() => self.landed(outcome),
                first = queue.recv(), if open => {
                    let Some(first) = first else { break };
                    let mut bytes = first.request.bytes;
                    let mut batch = vec![first];
                    while bytes < bytes_max && let Ok(next) = queue.try_recv() {
                        bytes += next.request.bytes;
                        batch.push(next);
                    }
                    self.sequence(batch).await;
                }
            }
        }
        self.abandon();
    }

    /// Leadership changed, perhaps: what is in flight belongs to the past.
    fn turn(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let epoch = *inner.epoch.borrow();
        if epoch != self.chain.epoch {
            self.abandon();
            self.restart(&inner);
        }
    }

    /// Gives up what is in flight without knowing what becomes of it.
    fn abandon(&mut self) {
        self.proposals.clear();
        for flight in self.flights.drain(..) {
            flight.end(&Err(ProposeError::Unknown));
        }
    }

    /// Begins a chain at the applied version. Nothing is in flight.
    fn restart(&mut self, inner: &Inner) {
        let epoch = *inner.epoch.borrow();
        let state = inner.state();
        self.chain = Chain::new(state.lead, epoch, state.version);
        self.broken = false;
    }

    /// A proposal has an outcome.
    fn landed(&mut self, (serial, outcome): Outcome) {
        let Some(at) = self.flights.iter().position(|flight| flight.serial == serial) else { return };
        let Some(flight) = self.flights.remove(at) else { return };
        if outcome == Ok(ApplyOutcome::Applied) {
            self.chain.pending.prune(flight.last);
        } else {
            self.broken = true;
        }
        flight.end(&outcome);
        if self.broken
            && self.flights.is_empty()
            && let Some(inner) = self.inner.upgrade()
        {
            self.restart(&inner);
        }
    }

    /// Checks, orders, resolves and proposes commits.
    async fn sequence(&mut self, commits: Vec<Queued>) {
        let Some(inner) = self.inner.upgrade() else { return };
        self.turn();
        let applied = inner.state().version;
        if self.flights.is_empty() && applied != self.chain.tail {
            // Something was applied that isn't of this chain: an earlier batch whose outcome was unknown.
            self.restart(&inner);
        }
        let stored = stored_values(&inner, &self.chain.pending, &commits).await;
        let (lead, log, applied, floor) = {
            let state = inner.state();
            (state.lead, state.log.clone(), state.version, state.floor)
        };
        let fresh = *inner.epoch.borrow() == self.chain.epoch;
        let (Some(lead), Some(log), true) = (lead.filter(|lead| Some(*lead) == self.chain.lead), log, fresh)
        else {
            return refuse(commits, &StoreError::NotLeader);
        };
        let stored = match stored {
            Ok(stored) => stored,
            Err(error) => return refuse(commits, &error),
        };
        self.chain.conflicts.raise_floor(floor);
        let mut transactions = Vec::new();
        let mut flight = Flight {
            serial: self.serial,
            last: 0,
            commits: Vec::new(),
            beside: Vec::new(),
            losers: Vec::new(),
        };
        let mut contexts = Vec::new();
        let base_version = self.chain.tail;
        let seals = inner.seals();
        for Queued { request, answer, traced } in commits {
            if seals.iter().any(|seal| seal.refuses(&request)) {
                let _ = answer.send(Err(StoreError::NotLeader));
                continue;
            }
            match self.check(&request) {
                Ok(()) => {}
                Err((error, rival)) if rival > applied => {
                    let later =
                        if flight.commits.is_empty() { self.flights.back_mut() } else { Some(&mut flight) };
                    match later {
                        Some(later) => later.losers.push(answer),
                        None => drop(answer.send(Err(error))),
                    }
                    continue;
                }
                Err((error, _)) => {
                    let _ = answer.send(Err(error));
                    continue;
                }
            }
            let version = self.assigned.max(self.chain.tail) + 1;
            self.assigned = version;
            self.chain.tail = version;
            transactions.push((version, self.resolve(version, &request, &stored)));
            flight.last = version;
            flight.commits.push((version, answer));
            if !traced.context.is_empty() {
                contexts.push(traced.context);
            }
        }
        if transactions.is_empty() {
            return;
        }
        let batch = CommitBatch { term: lead.term, base_version, transactions }.encode();
        // One entry for many transactions: it is a part of the first sampled one, to which the others point.
        let mut contexts = contexts.into_iter();
        let first = contexts.next().unwrap_or_default();
        flight.beside = contexts.map(|context| shared(&context, &first)).collect();
        self.flights.push_back(flight);
        self.propose(&inner, log, lead.term, batch, first).await;
    }

    async fn propose(
        &mut self,
        inner: &Inner,
        log: Arc<dyn CommitLog>,
        term: u64,
        batch: Bytes,
        context: Bytes,
    ) {
        let (serial, timeout) = (self.serial, inner.options.propose_timeout);
        self.serial += 1;
        let mut proposal: Proposal = Box::pin(async move {
            let proposed = TRACE.scope(context, log.propose(term, batch));
            let outcome = tokio::time::timeout(timeout, proposed).await;
            (serial, outcome.unwrap_or(Err(ProposeError::Unknown)))
        });
        // Polled at once, so that batches enter the log in their order.
        match futures::poll!(&mut proposal) {
            Poll::Ready(outcome) => self.landed(outcome),
            Poll::Pending => self.proposals.push(proposal),
        }
    }

    /// Whether a transaction may commit behind the chain; else why not, and the version that it lost against.
    fn check(&self, request: &CommitRequest) -> Result<(), (StoreError, u64)> {
        if request.reads.is_empty() || plant::is(Plant::ConflictUnchecked) {
            return Ok(());
        }
        if request.read_version < self.chain.conflicts.floor() {
            return Err((StoreError::TooOld, 0));
        }
        let rival = request.reads.iter().map(|range| self.chain.conflicts.newest(range)).max().unwrap_or(0);
        if rival > request.read_version { Err((StoreError::Conflict, rival)) } else { Ok(()) }
    }

    fn resolve(
        &mut self,
        version: u64,
        request: &CommitRequest,
        stored: &BTreeMap<Bytes, Option<Bytes>>,
    ) -> Vec<Change> {
        let pending = &self.chain.pending;
        let changes = request.writes.resolve(version, |key| match pending.get(key, u64::MAX) {
            Seen::Value(value) => Some(value),
            Seen::Absent => None,
            Seen::Base => stored.get(key).cloned().flatten(),
        });
        let written = changes.iter().map(Change::range);
        let atomics = request.writes.lookups().map(|key| key_range(key));
        for range in written.chain(atomics).chain(request.conflicts.iter().cloned()) {
            self.chain.conflicts.write(&range, version);
        }
        self.chain.pending.insert(version, changes.clone());
        changes
    }
}

/// The stored values that atomic changes need and pending changes don't tell.
async fn stored_values(
    inner: &Inner,
    pending: &Window,
    commits: &[Queued],
) -> Result<BTreeMap<Bytes, Option<Bytes>>, StoreError> {
    let mut stored = BTreeMap::new();
    for key in commits.iter().flat_map(|commit| commit.request.writes.lookups()) {
        if stored.contains_key(key) || pending.get(key, u64::MAX) != Seen::Base {
            continue;
        }
        // Read at the version of this moment: what is applied meanwhile is pending, and wins, or breaks the chain.
        let value = loop {
            let (version, leads) = {
                let state = inner.state();
                (state.version, state.lead.is_some())
            };
            match inner.read(version, key).await {
                Err(StoreError::TooOld) if leads => continue,
                Err(StoreError::TooOld) => return Err(StoreError::NotLeader),
                other => break other?,
            }
        };
        stored.insert(key.clone(), value);
    }
    Ok(stored)
}

/// The span of a transaction that is committed in the entry of another trace's.
fn shared(context: &[u8], first: &[u8]) -> Span {
    let mut span = trace::within("commit.shared", context);
    span.link(first);
    span
}

fn refuse(commits: Vec<Queued>, error: &StoreError) {
    for commit in commits {
        let _ = commit.answer.send(Err(error.clone()));
    }
}

impl Flight {
    fn end(self, outcome: &Result<ApplyOutcome, ProposeError>) {
        drop(self.beside);
        for (version, answer) in self.commits {
            let _ = answer.send(match outcome {
                Ok(ApplyOutcome::Applied) => {
                    Ok(Committed { version: ReadVersion(version), versionstamp: Some(stamp(version)) })
                }
                Ok(ApplyOutcome::Mismatch) => Err(StoreError::Conflict),
                Err(ProposeError::NotLeader) => Err(StoreError::NotLeader),
                Err(ProposeError::Unknown) => Err(StoreError::CommitUnknown),
            });
        }
        for answer in self.losers {
            let _ = answer.send(Err(StoreError::Conflict));
        }
    }
}
