//! Runs requests to their end: retries, exactly-once outcomes, epochs and the commit.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use mooseng_ports::plant::{self, Plant};
use mooseng_schema::dirent::HashKey;
use mooseng_schema::session::{self, OutcomeRecord, SessionRecord};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_schema::{Record, SchemaError, number};
use mooseng_store::{Atomic, Read, ReadVersion, Store, StoreError, Transaction};
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{FsReply, FsRequest};
use mooseng_wire::{Epoch, Incarnation, InodeId, RequestNumber, SessionId, VolumeId};
use prost::Message;
use siphasher::sip::SipHasher13;
use tokio::time::Instant;

use crate::context::OpContext;
use crate::errno::Errno;
use crate::error::OpError;
use crate::ops::{execute, execute_noting};
use crate::request::{is_change, needs_room, volume_of};
use crate::together::InOrder;
use crate::touched::{Charges, Touched};
use crate::trash::Terms;
use crate::upkeep;

/// Outcomes that a session's record keeps at most.
pub const OUTCOMES_MAX: u64 = 1024;
/// Answered outcomes are forgotten when there are so many, for forgetting each by itself would cost a write for each.
const FORGET_EVERY: u64 = 64;
/// How far a session's numbers may run ahead of its oldest unanswered one.
pub const NUMBERS_AHEAD_MAX: u64 = OUTCOMES_MAX - FORGET_EVERY;

/// Runs of one request at most, whatever its deadline is.
const ATTEMPTS_MAX: u32 = 256;
/// Retries without a pause at first: most conflicts are with something that is done by then.
const ATTEMPTS_AT_ONCE: u32 = 2;
/// Changes of one [`mooseng_wire::fs::Tell`] that may be refused one by one.
const REFUSED_MAX: usize = 16;
/// Longest pause before a retry, before jitter.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Whose change it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCall {
    /// The session; 0 for the master itself, whose changes have no outcome records.
    pub session: SessionId,
    /// Its life.
    pub incarnation: Incarnation,
    /// The change's number, from 1; 0 for reads.
    pub number: RequestNumber,
    /// All changes below this have been answered.
    pub oldest_unanswered: RequestNumber,
}

/// Why a request has no answer. POSIX errors are answers.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DriverError {
    /// The store. With [`StoreError::NotLeader`] or [`StoreError::CommitUnknown`] the session retries, under the same number.
    #[error(transparent)]
    Store(StoreError),
    /// Time ran out. The change may have been committed: only a retry under the same number is safe.
    #[error("the request's time ran out before its outcome was known; retry it under the same number")]
    Deadline,
    /// It conflicted with other changes too often. Nothing was changed.
    #[error("the request conflicted with others {0} times; retry it later")]
    Contended(u32),
    /// The session was never made, or was closed, or its records are gone.
    #[error("session {0} doesn't exist; open a new one")]
    SessionExpired(SessionId),
    /// The session has another life by now.
    #[error("session {session} is in its incarnation {current}, not in {asked}; open it again")]
    StaleIncarnation {
        /// The session.
        session: SessionId,
        /// The incarnation that asked.
        asked: Incarnation,
        /// The present one.
        current: Incarnation,
    },
    /// The session's lease ran out, and it hasn't come back yet.
    #[error("the lease of session {0} ran out; open it again")]
    SessionLapsed(SessionId),
    /// The outcome was forgotten, as the session had said that it knows it.
    #[error("the outcome of change {0} is forgotten, for the session had said that it was answered")]
    OutcomeForgotten(RequestNumber),
    /// The number is that of another request.
    #[error("change {0} was another request; give each change a number of its own")]
    NumberReused(RequestNumber),
    /// The session has too many unanswered changes.
    #[error(
        "change {number} is too far ahead of the oldest unanswered one, {oldest}; wait for answers first"
    )]
    TooManyUnanswered {
        /// The change.
        number: RequestNumber,
        /// The session's oldest unanswered change.
        oldest: RequestNumber,
    },
    /// A change needs a number.
    #[error("a change needs a number from 1 on")]
    NoNumber,
    /// The master works under another home epoch than the volume has.
    #[error("the volume's home epoch is {current}, not {asked}: another master may change it")]
    StaleEpoch {
        /// The master's.
        asked: Epoch,
        /// The volume's.
        current: Epoch,
    },
    /// The volume's home is about to be another region, or goes on in a moment. Nothing was changed.
    #[error("the volume's home epoch {0} is being ended for a planned move of the home")]
    Moving(Epoch),
    /// A record is damaged or newer than this release, or something wasn't handed in.
    #[error(transparent)]
    Op(OpError),
}

impl From<StoreError> for DriverError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<SchemaError> for DriverError {
    fn from(error: SchemaError) -> Self {
        Self::Op(OpError::Schema(error))
    }
}

impl From<OpError> for DriverError {
    fn from(error: OpError) -> Self {
        match error {
            OpError::Store(error) => Self::Store(error),
            other => Self::Op(other),
        }
    }
}

/// Runs requests on a store.
#[derive(Clone)]
pub struct Driver<S> {
    store: S,
    /// Volumes' secrets never change, so that reads needn't read them.
    hash_keys: Arc<Mutex<BTreeMap<VolumeId, HashKey>>>,
}

/// How one attempt at a change ended.
enum Attempt {
    Done(FsReply, ReadVersion),
    /// The operation's verdict, not recorded yet.
    Refused(Errno),
    /// Others had to give up what they were promised, and have: the operation runs again, for they may have written meanwhile.
    Again,
    /// One of several changes is refused: the others run again without it.
    Without(usize, Errno),
}

/// What a gate says of a change that ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may commit as it ran, and may have committed from then on, whatever its future comes to.
    Commit,
    /// Others had to give something up, and have: it must run again.
    Again,
    /// It mustn't, as it is.
    Refused(Errno),
    /// Whoever let the request in isn't in office any more, nor in a later term of its own.
    Deposed,
}

/// What stands between a change's run and its commit.
#[async_trait]
pub trait Gate: Send + Sync {
    /// The change would touch these facts, and add that to accounts. Waits where others have to give them up.
    async fn admit(&self, facts: BTreeSet<Fact>, charges: Charges) -> Admission;

    /// A run begins: what it sees is as old as that.
    fn run_begins(&self) {}

    /// The change is refused so, as it ran, after a look at these facts. Waits where others hold back what they changed of them.
    async fn admit_refusal(&self, looked: BTreeSet<Fact>, errno: Errno) -> Admission {
        let _ = (looked, errno);
        Admission::Commit
    }

    /// Whether the session has called the change over meanwhile: then it mustn't commit, for nobody waits for it any more.
    fn is_given_up(&self) -> bool {
        false
    }
}

/// Lets everything through: no promises exist.
#[derive(Clone, Copy, Debug)]
pub struct Open;

#[async_trait]
impl Gate for Open {
    async fn admit(&self, _facts: BTreeSet<Fact>, _charges: Charges) -> Admission {
        Admission::Commit
    }
}

impl<S: Store> Driver<S> {
    /// A driver on that store.
    pub fn new(store: S) -> Self {
        Self { store, hash_keys: Arc::default() }
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Runs a request. The answer, which may be a POSIX error, is true at the version: a change's own, or the one that
    /// a read saw. A change that was answered before gets the same answer again.
    pub async fn run(
        &self,
        call: SessionCall,
        ctx: &OpContext,
        request: &FsRequest,
        deadline: Instant,
    ) -> Result<(FsReply, ReadVersion), DriverError> {
        self.run_through(call, ctx, request, &Open, deadline).await
    }

    /// [`Self::run`], where a session's change passes a gate before its commit.
    pub async fn run_through(
        &self,
        call: SessionCall,
        ctx: &OpContext,
        request: &FsRequest,
        gate: &dyn Gate,
        deadline: Instant,
    ) -> Result<(FsReply, ReadVersion), DriverError> {
        let mut ctx = ctx.clone();
        ctx.session = call.session;
        ctx.incarnation = call.incarnation;
        let work = async {
            if !is_change(request) {
                self.run_read(&mut ctx, request).await
            } else if call.session.0 == 0 {
                self.run_own(&mut ctx, request).await
            } else {
                self.run_change(call, &mut ctx, request, gate).await
            }
        };
        tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(DriverError::Deadline))
    }

    /// Runs `work` in transactions until one commits. It may run several times, also after a commit whose outcome isn't
    /// known: it must be such that having run twice does no harm. What its future needs besides the transaction it owns:
    /// `|tx| { let x = x.clone(); Box::pin(async move { .. }) }`.
    pub async fn transact<R, F>(&self, deadline: Instant, work: F) -> Result<(R, ReadVersion), DriverError>
    where
        R: Send,
        F: for<'t> Fn(&'t S::Transaction) -> BoxFuture<'t, Result<R, OpError>> + Send + Sync,
    {
        let work = async {
            let mut attempts = Attempts::default();
            loop {
                let tx = self.store.begin();
                let result = match work(&tx).await {
                    Ok(result) => tx.commit().await.map(|done| (result, done.version)),
                    Err(OpError::Store(error)) => Err(error),
                    Err(other) => return Err(other.into()),
                };
                match result {
                    Ok(done) => return Ok(done),
                    Err(error) => attempts.after(error).await?,
                }
            }
        };
        tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(DriverError::Deadline))
    }

    /// Runs a read; answers, too, the facts on which its answer rests.
    pub async fn look(
        &self,
        call: SessionCall,
        ctx: &OpContext,
        request: &FsRequest,
        deadline: Instant,
    ) -> Result<(FsReply, ReadVersion, BTreeSet<Fact>), DriverError> {
        let mut ctx = OpContext { session: call.session, incarnation: call.incarnation, ..ctx.clone() };
        if is_change(request) {
            return Err(DriverError::NoNumber);
        }
        let touched = Touched::default();
        let work = self.run_read_noting(&mut ctx, request, &touched);
        let done = tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(DriverError::Deadline));
        done.map(|(reply, version)| (reply, version, touched.looked()))
    }

    async fn run_read(
        &self,
        ctx: &mut OpContext,
        request: &FsRequest,
    ) -> Result<(FsReply, ReadVersion), DriverError> {
        self.run_read_noting(ctx, request, &Touched::default()).await
    }

    async fn run_read_noting(
        &self,
        ctx: &mut OpContext,
        request: &FsRequest,
        touched: &Touched,
    ) -> Result<(FsReply, ReadVersion), DriverError> {
        let volume = volume_of(request);
        let known = self.hash_keys.lock().unwrap_or_else(PoisonError::into_inner).get(&volume).copied();
        ctx.hash_key = ctx.hash_key.or(known);
        let mut attempts = Attempts::default();
        loop {
            let tx = self.store.begin();
            let result = execute_noting(&tx, ctx, request, touched).await;
            let result = match result {
                Err(OpError::Errno(errno)) => Ok(refusal(errno)),
                other => other,
            };
            match result {
                Ok(reply) => match tx.read_version().await {
                    Ok(version) => return Ok((reply, version)),
                    Err(error) => attempts.after(error).await?,
                },
                Err(OpError::Store(error)) => attempts.after(error).await?,
                Err(other) => return Err(other.into()),
            }
        }
    }

    /// A change of the master itself. All of these may run twice.
    async fn run_own(
        &self,
        ctx: &mut OpContext,
        request: &FsRequest,
    ) -> Result<(FsReply, ReadVersion), DriverError> {
        let mut attempts = Attempts::default();
        loop {
            let tx = self.store.begin();
            let result = match self.enter_volume(&tx, ctx, volume_of(request)).await {
                Ok(_) => execute(&tx, ctx, request).await,
                Err(DriverError::Store(error)) => Err(error.into()),
                Err(other) => return Err(other),
            };
            let failed = match result {
                Ok(reply) => match tx.commit().await {
                    Ok(done) => return Ok((reply, done.version)),
                    Err(error) => error,
                },
                Err(OpError::Errno(errno)) => match tx.read_version().await {
                    Ok(version) => return Ok((refusal(errno), version)),
                    Err(error) => error,
                },
                Err(OpError::Drain { inode, from }) => {
                    self.drain(inode, from).await?;
                    continue;
                }
                Err(OpError::Store(error)) => error,
                Err(other) => return Err(other.into()),
            };
            attempts.after(failed).await?;
        }
    }

    async fn run_change(
        &self,
        call: SessionCall,
        ctx: &mut OpContext,
        request: &FsRequest,
        gate: &dyn Gate,
    ) -> Result<(FsReply, ReadVersion), DriverError> {
        if call.number.0 == 0 {
            return Err(DriverError::NoNumber);
        }
        let request_hash = hash_of(request);
        let mut refused = None;
        let mut attempts = Attempts::default();
        loop {
            match self.attempt(call, ctx, request, request_hash, refused, gate).await {
                Ok(Attempt::Again) => {}
                Ok(Attempt::Done(reply, version)) => return Ok((reply, version)),
                // The refusal is recorded in a transaction of its own, which holds none of the operation's changes. It
                // was true at a version after the request came.
                Ok(Attempt::Refused(errno)) => refused = Some(errno),
                // Each of them costs a run of all the others: told of fewer at a time, they cost less.
                Ok(Attempt::Without(..)) if ctx.refused.len() >= REFUSED_MAX => refused = Some(Errno::E2BIG),
                Ok(Attempt::Without(at, errno)) => drop(ctx.refused.insert(at, errno)),
                // No limit of the store's is the session's to know: it tells of fewer at a time.
                Err(DriverError::Store(StoreError::TransactionTooLarge { .. })) if is_tell(request) => {
                    refused = Some(Errno::E2BIG);
                }
                Err(DriverError::Op(OpError::Drain { inode, from })) => self.drain(inode, from).await?,
                // A commit that isn't known to have failed is looked for by the next attempt: its outcome record
                // is either there, or makes this attempt's commit conflict when it comes.
                Err(DriverError::Store(error)) => attempts.after(error).await?,
                Err(other) => return Err(other),
            }
        }
    }

    async fn attempt(
        &self,
        call: SessionCall,
        ctx: &mut OpContext,
        request: &FsRequest,
        request_hash: u64,
        refused: Option<Errno>,
        gate: &dyn Gate,
    ) -> Result<Attempt, DriverError> {
        gate.run_begins();
        let tx = self.store.begin();
        let outcome_key = session::outcome_key(call.session, call.number);
        let (session_key, floor_key) = (session::key(call.session), session::floor_key(call.session));
        let (outcome, session, floor, entered) = futures::join!(
            async { Ok(tx.get(&outcome_key, Read::Conflicting).await?) },
            async { Ok(tx.get(&session_key, Read::Conflicting).await?) },
            // Read without a conflict, for each change may raise it. What it forgets was there at the same version.
            async { Ok(tx.get(&floor_key, Read::Snapshot).await?) },
            self.enter_volume(&tx, ctx, call.session.volume())
        )
        .in_order()?;
        if let Some(value) = outcome {
            let outcome = OutcomeRecord::from_value(&value)?;
            if outcome.request_hash != request_hash {
                return Err(DriverError::NumberReused(call.number));
            }
            let reply =
                FsReply::decode(outcome.reply).map_err(|e| SchemaError::damaged("outcome", e.to_string()))?;
            return Ok(Attempt::Done(reply, tx.read_version().await?));
        }
        let floor = number::decode(floor.as_ref())?;
        let touched = Touched::default();
        check_session(&call, session.map(|s| SessionRecord::from_value(&s)).transpose()?, floor)?;
        let reply = match refused {
            Some(errno) => refusal(errno),
            None => match execute_noting(&tx, ctx, request, &touched).await {
                // Only now: what was done before has its outcome, and what can't be done its own refusal.
                Ok(reply) if ctx.room > needs_room(request, &reply) => {
                    return Ok(Attempt::Refused(Errno::ENOSPC));
                }
                Ok(reply) => reply,
                Err(OpError::Errno(errno)) => {
                    return judged(
                        gate.admit_refusal(touched.looked(), errno).await,
                        Attempt::Refused(errno),
                    );
                }
                Err(OpError::Told { at, errno }) => {
                    return judged(
                        gate.admit_refusal(touched.looked(), errno).await,
                        Attempt::Without(at, errno),
                    );
                }
                Err(other) => return Err(other.into()),
            },
        };
        let outcome = OutcomeRecord { request_hash, reply: reply.encode_to_vec().into() };
        if !plant::is(Plant::OutcomeMissing) {
            tx.set(&outcome_key, &outcome.to_value());
        }
        if call.oldest_unanswered.0 >= floor.saturating_add(FORGET_EVERY) {
            tx.clear_range(session::outcome_range_below(call.session, call.oldest_unanswered));
            tx.atomic(&floor_key, &number::encode(call.oldest_unanswered.0), Atomic::Max);
        }
        let charges = touched.charges();
        match gate.admit(touched.into_facts(), charges).await {
            Admission::Commit => {}
            Admission::Refused(errno) => return Ok(Attempt::Refused(errno)),
            Admission::Again => return Ok(Attempt::Again),
            Admission::Deposed => return Err(StoreError::NotLeader.into()),
        }
        if gate.is_given_up() {
            return Err(DriverError::OutcomeForgotten(call.number));
        }
        let done = tx.commit().await?;
        plant::look(|| {
            let Epoch(asked) = ctx.epoch;
            (entered == ctx.epoch).then_some(()).ok_or_else(|| {
                format!("a change of the home of epoch {asked} was committed in epoch {entered}")
            })
        });
        Ok(Attempt::Done(reply, done.version))
    }

    /// Reads the volume's record, so that a change of its home epoch makes this transaction fail. Answers that epoch.
    async fn enter_volume(
        &self,
        tx: &S::Transaction,
        ctx: &mut OpContext,
        id: VolumeId,
    ) -> Result<Epoch, DriverError> {
        let value = tx.get(&volume::key(id), Read::Conflicting).await?;
        let record = VolumeRecord::from_value(&value.ok_or(OpError::NoVolume(id.0))?)?;
        if record.epoch != ctx.epoch.0 && !plant::is(Plant::CommitEpochUnchecked) {
            return Err(DriverError::StaleEpoch { asked: ctx.epoch, current: Epoch(record.epoch) });
        }
        if record.moving_from == ctx.epoch.0 {
            return Err(DriverError::Moving(ctx.epoch));
        }
        let key = record.hash_key()?;
        ctx.hash_key = Some(key);
        ctx.trash = Terms::of(&record);
        self.hash_keys.lock().unwrap_or_else(PoisonError::into_inner).insert(id, key);
        Ok(Epoch(record.epoch))
    }

    /// Frees an inode's extents from an offset on, a page at a time.
    async fn drain(&self, inode: InodeId, from: u64) -> Result<(), DriverError> {
        let mut attempts = Attempts::default();
        loop {
            let tx = self.store.begin();
            let result = match upkeep::drain(&tx, inode, from).await {
                Ok(done) => tx.commit().await.map(|_| done),
                Err(OpError::Store(error)) => Err(error),
                Err(other) => return Err(other.into()),
            };
            match result {
                Ok(true) => return Ok(()),
                Ok(false) => attempts = Attempts::default(),
                Err(error) => attempts.after(error).await?,
            }
        }
    }
}

/// What becomes of a refusal that the gate has looked at.
fn judged(admission: Admission, refusal: Attempt) -> Result<Attempt, DriverError> {
    match admission {
        Admission::Commit => Ok(refusal),
        Admission::Again => Ok(Attempt::Again),
        Admission::Refused(errno) => Ok(Attempt::Refused(errno)),
        Admission::Deposed => Err(StoreError::NotLeader.into()),
    }
}

fn is_tell(request: &FsRequest) -> bool {
    matches!(request.op, Some(Op::Tell(_)))
}

fn refusal(errno: Errno) -> FsReply {
    FsReply { reply: Some(Reply::Errno(errno.0)) }
}

fn hash_of(request: &FsRequest) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(&request.encode_to_vec());
    hasher.finish()
}

/// Whether a session may begin a change.
fn check_session(call: &SessionCall, record: Option<SessionRecord>, floor: u64) -> Result<(), DriverError> {
    let record = record.ok_or(DriverError::SessionExpired(call.session))?;
    if call.number.0 < floor.max(call.oldest_unanswered.0) {
        return Err(DriverError::OutcomeForgotten(call.number));
    }
    if record.incarnation != call.incarnation.0 {
        let current = Incarnation(record.incarnation);
        return Err(DriverError::StaleIncarnation {
            session: call.session,
            asked: call.incarnation,
            current,
        });
    }
    if record.lapsed_ns.is_some() {
        return Err(DriverError::SessionLapsed(call.session));
    }
    let oldest = call.oldest_unanswered.max(RequestNumber(floor));
    if call.number.0 >= oldest.0.saturating_add(NUMBERS_AHEAD_MAX) {
        return Err(DriverError::TooManyUnanswered { number: call.number, oldest });
    }
    Ok(())
}

/// Counts attempts and waits between them.
#[derive(Default)]
struct Attempts(u32);

impl Attempts {
    /// Waits before the next attempt after an error that one can help, else gives it back.
    async fn after(&mut self, error: StoreError) -> Result<(), DriverError> {
        if !error.is_retryable() && !error.is_maybe_committed() {
            return Err(error.into());
        }
        self.0 += 1;
        if self.0 >= ATTEMPTS_MAX {
            return Err(match error {
                StoreError::CommitUnknown => error.into(),
                _ => DriverError::Contended(self.0),
            });
        }
        if self.0 <= ATTEMPTS_AT_ONCE {
            tokio::task::yield_now().await;
            return Ok(());
        }
        let ceiling = Duration::from_millis(1 << (self.0 - ATTEMPTS_AT_ONCE).min(8)).min(PAUSE_MAX);
        tokio::time::sleep(ceiling.mul_f64(rand::random::<f64>())).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mooseng_store::memory::MemoryStore;

    fn is_send<F: Send>(future: F) -> F {
        future
    }

    /// Servers run requests on any thread.
    #[tokio::test]
    async fn requests_may_move_between_threads() {
        let driver = Driver::new(MemoryStore::new());
        let (ctx, request) = (OpContext::default(), FsRequest::default());
        let deadline = Instant::now() + Duration::from_secs(60);
        let answer = is_send(driver.run(SessionCall::default(), &ctx, &request, deadline)).await;
        assert_eq!(answer, Err(DriverError::Op(OpError::Malformed("it has no operation"))));
    }
}
