//! Requests to the region: numbering, retries, exactly-once.
//!
//! A change keeps its number through every retry, so that the region answers a repeated one with the first outcome. A change
//! whose caller stops waiting is settled in the background until its retry time is over; only then is its number given up. From
//! then on `oldest_unanswered` lies above it, and the region refuses it: an abandoned change can't happen later.
//!
//! How a request is sent until there is an answer is in `attempts`, what becomes of one whose caller has gone in `abandoned`.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use mooseng_transport::trace;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, FsRequest, Release};
use mooseng_wire::method::Method;
use mooseng_wire::{InodeId, VolumeId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::FsError;
use crate::facts;
use crate::fs::daemon;
use crate::journal::SentOwned;
use crate::opens::Opens;
use crate::owners::Within;
use crate::recalls::Recalls;
use crate::session::Session;
use crate::status::Counters;
use crate::waits::{self, What};
use crate::window::Window;

mod abandoned;
mod attempts;

/// How long a close waits for a request that takes it along.
const CLOSES_WAIT: Duration = Duration::from_millis(20);
/// What was made alone is told however long that takes.
const TELL_PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The region as a place to send requests to.
pub(crate) struct Region {
    pub session: Arc<Session>,
    recalls: Arc<Recalls>,
    pub counters: Counters,
    window: Mutex<Window>,
    room: Notify,
    runtime: tokio::runtime::Handle,
}

/// One request under way.
struct Flight {
    what: &'static str,
    method: Method,
    request: FsRequest,
    /// 0 for reads.
    number: u64,
    /// Whose number it is, once it was sent.
    sent_as: Option<(u64, u64)>,
    deadline: Instant,
    patience: Duration,
    /// The last attempt's place in the session's order.
    order: u64,
    /// Others may wait for it.
    urgent: bool,
    /// The only life of the session in which it may be done, or only home under which.
    within: Option<Within>,
    /// Nobody is shown its answer: it says nothing of the volume.
    unshown: bool,
    /// Of a read: from when on what is made alone may be missing in its answer ([`crate::facts::Facts::begin_behind`]).
    since: Option<u64>,
}

impl Region {
    pub fn new(session: Arc<Session>, recalls: Arc<Recalls>) -> Arc<Self> {
        Arc::new(Self {
            session,
            recalls,
            counters: Counters::default(),
            window: Mutex::default(),
            room: Notify::new(),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    fn window<T>(&self, f: impl FnOnce(&mut Window) -> T) -> T {
        f(&mut self.window.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn unanswered(&self) -> usize {
        self.window(|w| w.unanswered())
    }

    /// How long operations are retried.
    pub fn patience(&self) -> Duration {
        self.session.config.retry_timeout
    }

    /// Runs a read.
    pub async fn read(&self, caller: &Caller, op: Op) -> Result<Reply, FsError> {
        self.read_as(caller, op, true, false).await
    }

    /// Runs a read that the replica isn't asked about.
    pub async fn read_at_home(&self, caller: &Caller, op: Op) -> Result<Reply, FsError> {
        self.read_as(caller, op, false, false).await
    }

    /// Tells the home something that is answered like a read, and whose answer nobody is shown: what it may show isn't seen by it, and it promises nothing.
    pub async fn tell_home(&self, caller: &Caller, op: Op) -> Result<Reply, FsError> {
        self.read_as(caller, op, false, true).await
    }

    async fn read_as(&self, caller: &Caller, op: Op, near: bool, unshown: bool) -> Result<Reply, FsError> {
        let started = Instant::now();
        let what = name(&op);
        let patience = self.patience();
        // Kept until the answer is taken in: what is made alone from now on isn't waited for.
        let since = self.session.facts.begin();
        let mut flight = Flight {
            what,
            method: Method::FsRead,
            request: FsRequest { caller: Some(caller.clone()), op: Some(op) },
            number: 0,
            sent_as: None,
            deadline: started + patience,
            patience,
            order: 0,
            urgent: false,
            within: None,
            unshown,
            since: Some(since.tick()),
        };
        let near = near && self.session.near.is_away();
        let answered = tokio::time::timeout_at(flight.deadline, async {
            let Some(op) = &flight.request.op else { return Err(FsError::Closed) };
            if near && let Some(reply) = self.near_in_time(op, &flight.request).await {
                return Ok(Some(reply));
            }
            waits::on(|| What::Earlier, self.session.journal.enter(op)).await;
            Ok(None)
        });
        let reply = match answered.await {
            Ok(Ok(Some(reply))) => Ok(reply),
            Ok(Ok(None)) => self.fly(&mut flight).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.unanswered_error(what, patience, "changes that come first aren't told yet")),
        };
        self.counters.took(what, started.elapsed());
        reply
    }

    /// What the replica answers, where nothing that this mount made alone is newer. It is told first of what is about the inodes that are asked for; what
    /// else is in the answer (what a name stands for, what a list names) is known afterwards.
    async fn near_in_time(&self, op: &Op, request: &FsRequest) -> Option<Reply> {
        let journal = &self.session.journal;
        let told = waits::on(|| What::Earlier, journal.enter_near(op)).await;
        let reply = self.near(request).await?;
        let is_older = told.is_some_and(|told| journal.overtakes(told, facts::attrs_of(&reply).keys()));
        (!is_older).then_some(reply)
    }

    /// What the replica in this host's region answers, where there is one and it may.
    pub fn near<'a>(&'a self, request: &'a FsRequest) -> BoxFuture<'a, Option<Reply>> {
        let session = &self.session;
        // As with `fly`.
        session.near.read(&*session.peers, &session.config.masters, request).boxed()
    }

    /// Tells of changes that were made alone, in that life of the session. Tries until there is an answer, or that life is over.
    pub async fn tell(self: &Arc<Self>, caller: &Caller, op: Op, life: (u64, u64)) -> Result<Reply, FsError> {
        self.change_of(caller, op, TELL_PATIENCE, Some(life.into())).await.map(|(reply, _)| reply)
    }

    /// Runs a change.
    pub async fn change(self: &Arc<Self>, caller: &Caller, op: Op) -> Result<Reply, FsError> {
        self.change_within(caller, op, self.patience()).await
    }

    /// Runs a change that is given up after `patience`.
    pub async fn change_within(
        self: &Arc<Self>,
        caller: &Caller,
        op: Op,
        patience: Duration,
    ) -> Result<Reply, FsError> {
        self.change_of(caller, op, patience, None).await.map(|(reply, _)| reply)
    }

    /// Runs a change that others may wait for, and that waits for nobody: it passes those that do. It is done in that life of the session (its id
    /// and incarnation), and under that home if one is said, or not at all ([`FsError::Lapsed`]).
    pub async fn change_in_life(
        self: &Arc<Self>,
        caller: &Caller,
        op: Op,
        within: impl Into<Within>,
    ) -> Result<Reply, FsError> {
        self.change_of(caller, op, self.patience(), Some(within.into())).await.map(|(reply, _)| reply)
    }

    /// The last number that was given to a change.
    pub fn last_number(&self) -> u64 {
        self.window(|w| w.last())
    }

    /// Every change below this number is over.
    pub fn oldest_unanswered(&self) -> u64 {
        self.window(|w| w.oldest_unanswered())
    }

    /// [`Self::change`]; answers, too, the place in the session's order of the attempt that was answered.
    pub async fn ordered_change(self: &Arc<Self>, caller: &Caller, op: Op) -> Result<(Reply, u64), FsError> {
        self.change_of(caller, op, self.patience(), None).await
    }

    async fn change_of(
        self: &Arc<Self>,
        caller: &Caller,
        op: Op,
        patience: Duration,
        within: Option<Within>,
    ) -> Result<(Reply, u64), FsError> {
        let started = Instant::now();
        let what = name(&op);
        let deadline = started + patience;
        let urgent = within.is_some() || matches!(op, Op::AllocateChunk(_) | Op::SealChunk(_));
        // Who asks for locks may wait for another mount that is to record its own, which may wait so for this one: the places that are kept are for what is recorded.
        let takes_kept = urgent && !matches!(op, Op::Lock(_) | Op::HoldLocks(_));
        // Its place is taken before it waits for what was made alone before it.
        let journal = self.session.journal.clone();
        let entering = async {
            let sent = journal.enter_owned(&op).await;
            // What others may wait for was buffered or made alone when nothing of it was abandoned.
            if !urgent {
                journal.behind_abandoned_of(&op).await;
            }
            sent
        };
        let sent = tokio::time::timeout_at(deadline, waits::on(|| What::Earlier, entering)).await;
        let sent = sent
            .map_err(|_| self.unanswered_error(what, patience, "changes that come first aren't told yet"))?;
        let number = self.begin(what, deadline, patience, takes_kept).await?;
        let mut settling = Settling {
            region: self.clone(),
            sent: Some(sent),
            flight: Some(Flight {
                what,
                method: Method::FsChange,
                request: FsRequest { caller: Some(caller.clone()), op: Some(op) },
                number,
                sent_as: None,
                deadline,
                patience,
                order: 0,
                urgent: takes_kept,
                within,
                unshown: false,
                since: None,
            }),
        };
        let reply = match &mut settling.flight {
            Some(flight) => self.fly(flight).await.map(|reply| (reply, flight.order)),
            None => Err(FsError::Closed),
        };
        settling.answered();
        self.counters.took(what, started.elapsed());
        reply
    }

    async fn begin(
        &self,
        what: &'static str,
        deadline: Instant,
        patience: Duration,
        urgent: bool,
    ) -> Result<u64, FsError> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if let Some(number) = self.window(|window| window.begin(urgent)) {
                return Ok(number);
            }
            let room = waits::on(|| What::Unanswered, room);
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(self.unanswered_error(
                    what,
                    patience,
                    "too many changes of this host are unanswered",
                ));
            }
        }
    }

    /// Runs something that outlives its caller; also from where no runtime is entered.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(trace::carried(work));
    }

    fn finish(&self, number: u64) {
        if number != 0 {
            let oldest = self.window(|w| {
                w.finish(number);
                w.oldest_unanswered()
            });
            self.session.settled.fetch_max(oldest, Ordering::AcqRel);
            self.room.notify_waiters();
        }
    }

    pub fn unanswered_error(&self, what: &'static str, after: Duration, last: &str) -> FsError {
        if self.session.is_gone() {
            return FsError::NoVolume(self.session.config.volume);
        }
        if self.session.is_shut_down() {
            return FsError::Closed;
        }
        self.counters.update(|c| c.timeouts += 1);
        let session = self.session.last_error();
        let last = if session.is_empty() { last.to_owned() } else { session };
        FsError::Unanswered { what: what.to_owned(), after, last }
    }
}

/// Tells the master of closes that no request took along, as long as the client lives.
pub(crate) async fn send_closes(region: Weak<Region>, opens: Arc<Opens>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = opens.closing() => {}
        }
        tokio::time::sleep(CLOSES_WAIT).await;
        let Some(region) = region.upgrade() else { return };
        // Of no inode: it takes along what was closed.
        let inode = InodeId::new(VolumeId(region.session.config.volume), 0).0;
        if opens.any_closed()
            && let Err(error) = region.read(&daemon(), Op::Release(Release { inode })).await
        {
            tracing::debug!(%error, "the region wasn't told of closed files yet");
        }
    }
}

/// A change under way. Dropped before its answer, it is settled in the background.
struct Settling {
    region: Arc<Region>,
    sent: Option<SentOwned>,
    flight: Option<Flight>,
}

impl Settling {
    fn answered(&mut self) {
        if let Some(flight) = self.flight.take() {
            self.region.finish(flight.number);
            self.sent = None;
        }
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        let Some(flight) = self.flight.take() else { return };
        if flight.sent_as.is_none() || flight.number == 0 {
            self.region.finish(flight.number);
            return;
        }
        // At most a window's worth of these exist.
        let (region, mut sent) = (self.region.clone(), self.sent.take());
        if let Some(sent) = &mut sent {
            sent.abandon();
        }
        self.region.spawn(async move { region.settle(flight, sent).await });
    }
}

/// The operation's name in metrics and messages.
fn name(op: &Op) -> &'static str {
    match op {
        Op::Lookup(_) => "lookup",
        Op::GetAttr(_) => "getattr",
        Op::ReadLink(_) => "readlink",
        Op::ReadDir(_) => "readdir",
        Op::ReadExtents(_) => "read_extents",
        Op::Seek(_) => "seek",
        Op::GetXattr(_) => "getxattr",
        Op::ListXattr(_) => "listxattr",
        Op::StatFs(_) => "statfs",
        Op::Access(_) => "access",
        Op::Open(_) => "open",
        Op::Release(_) => "release",
        Op::Describe(_) => "describe",
        Op::Acquire(_) => "acquire",
        Op::Reserve(_) => "reserve",
        Op::ReserveInodes(_) => "reserve_inodes",
        Op::HoldAlone(_) => "hold_alone",
        Op::HoldFiles(_) => "hold_files",
        Op::Sync(_) => "sync",
        Op::Pace(_) => "pace",
        Op::Tell(_) => "tell",
        Op::TestLock(_) => "test_lock",
        Op::Lock(_) => "lock",
        Op::Unlock(_) => "unlock",
        Op::CancelLock(_) => "cancel_lock",
        Op::HoldLocks(_) => "hold_locks",
        Op::RecordLocks(_) => "record_locks",
        Op::SetAttr(_) => "setattr",
        Op::Create(_) => "create",
        Op::Mknod(_) => "mknod",
        Op::Mkdir(_) => "mkdir",
        Op::Symlink(_) => "symlink",
        Op::Link(_) => "link",
        Op::Unlink(_) => "unlink",
        Op::Rmdir(_) => "rmdir",
        Op::Rename(_) => "rename",
        Op::SetXattr(_) => "setxattr",
        Op::RemoveXattr(_) => "removexattr",
        Op::Write(_) => "write_metadata",
        Op::Fallocate(_) => "fallocate",
        Op::CopyRange(_) => "copy_range",
        Op::TouchAtime(_) => "touch_atime",
        Op::AllocateChunk(_) => "allocate_chunk",
        Op::SealChunk(_) => "seal_chunk",
        Op::Reap(_) => "reap",
    }
}
