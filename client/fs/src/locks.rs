//! Locks of this host's processes. The region decides and remembers; here is known which owners may hold something, through which handles, and
//! in which tenure of the session they got it.
//!
//! ```text
//!   lock -> held | EAGAIN            lock_waiting -> queued -> granted (a notice) | asked anew at another custodian
//!                                                       \-> interrupted -> cancelled | had been granted
//! ```
//! An owner's requests go one after the other, in tasks that outlive their callers: none overtakes what came before it, and what isn't wanted
//! any more is undone before the owner's next request. A tenure that is over has lost its locks: operations on handles through which they
//! were taken fail until their owner gives the locks up or closes.
//!
//! How they are given up, and how what isn't wanted is undone, is in `giving_up`; that locks of files which nobody else has open are given here, without the
//! region, and how they come to be on record there, in `alone`.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{CancelLock, Lock, LockKind, LockSpec, LockState, TestLock};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio_util::sync::CancellationToken;

use crate::error::FsError;
use crate::files::HandleId;
use crate::fs::{FileSystem, daemon};
use crate::held::{Held, Level};
use crate::owners::{Key, Owner, Tenure, is_lost};
use crate::read::unexpected;

mod alone;
mod giving_up;

pub(crate) use alone::{close_for_recall, reopen};
pub(crate) use giving_up::keep;

/// Waits of one mount at once.
const WAITS_MAX: usize = 4096;
/// A wait is asked for anew this often, should the custodian have lost it.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// The pause before a lock that isn't wanted any more is given up again, where that wasn't answered.
const UNDO_PAUSE: Duration = Duration::from_millis(200);
/// The last byte of a file, for the kernel.
const LAST_BYTE: u64 = i64::MAX as u64;

/// A lock of a handle's inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    /// Through which handle.
    pub handle: HandleId,
    /// Ranges (fcntl) or the whole file (flock).
    pub kind: LockKind,
    /// Whose: what the kernel calls the process's files, or the open file.
    pub owner: u64,
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
    /// Whether nobody else may hold any of it.
    pub exclusive: bool,
    /// The process.
    pub pid: u32,
}

impl LockRequest {
    fn spec(&self) -> LockSpec {
        LockSpec {
            kind: self.kind.into(),
            owner: self.owner,
            start: self.start,
            end: self.end,
            exclusive: self.exclusive,
            pid: self.pid,
        }
    }
    fn is_everything(&self) -> bool {
        self.kind == LockKind::File || (self.start == 0 && self.end >= LAST_BYTE)
    }
    /// What the region takes it for.
    pub(crate) fn range(&self) -> (u64, u64) {
        if self.kind == LockKind::File { (0, u64::MAX) } else { (self.start, self.end) }
    }
    pub(crate) fn level(&self) -> Level {
        Level { exclusive: self.exclusive, pid: self.pid }
    }
}

/// A lock that is waited for. Dropped, it isn't wanted any more.
#[derive(Debug)]
pub struct LockWait {
    outcome: oneshot::Receiver<Result<(), FsError>>,
    interrupted: CancellationToken,
    /// The owner, while the wait isn't over.
    shared: Arc<Mutex<Option<Weak<Owner>>>>,
}

impl LockWait {
    /// How it ended.
    pub async fn outcome(&mut self) -> Result<(), FsError> {
        (&mut self.outcome).await.unwrap_or(Err(FsError::Closed))
    }

    /// Nobody wants it any more. Returns once it is undone.
    pub async fn abandon(mut self) {
        self.leave();
        // Its sender is dropped when all is done.
        let _ = (&mut self.outcome).await;
    }

    fn leave(&self) {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(owner) = shared.and_then(|owner| owner.upgrade()) {
            owner.state(|state| state.abandoned += 1);
        }
        self.interrupted.cancel();
    }

    /// A signal came: the wait ends with EINTR soon, or with the lock if that was granted before.
    pub fn interrupt(&self) {
        self.interrupted.cancel();
    }
}

impl Drop for LockWait {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What an attempt at a lock came to.
enum Came {
    /// What was held before, should nobody hear of it.
    Held(Held),
    Queued(u64),
    Refused(FsError),
    /// Nobody knows.
    Unknown(FsError),
}

impl FileSystem {
    /// What the region would refuse is refused here: this mount gives locks by itself, too, and what isn't fit to be recorded would be lost later.
    fn key(&self, request: &LockRequest) -> Result<Key, FsError> {
        let (start, end) = request.range();
        if start > end {
            return Err(FsError::Answered(libc::EINVAL));
        }
        if request.kind == LockKind::Unspecified {
            return Err(FsError::Invalid("a lock is fcntl's or flock's".into()));
        }
        Ok((self.inode_of(request.handle)?, request.kind, request.owner))
    }

    /// Takes a lock, or answers EAGAIN.
    pub async fn lock(&self, request: LockRequest) -> Result<(), FsError> {
        let key = self.key(&request)?;
        let (fs, owner) = (self.clone(), self.inner.locks.owner(key));
        let (answer, answered) = oneshot::channel();
        self.inner.region.spawn(async move {
            let order = owner.quiet_order().await;
            let once = || async { fs.attempt(key, &owner, &request, 0, fs.inner.session.tenure()).await };
            let mut came = once().await;
            let mut waited = false;
            loop {
                match &came {
                    Came::Refused(FsError::Lapsed) => {}
                    // The kernel doesn't wait for a release: whoever closed before this may still be in the way.
                    Came::Refused(FsError::Answered(libc::EAGAIN)) if !waited => {
                        waited = true;
                        if !fs.inner.locks.left(key.0).await {
                            break;
                        }
                    }
                    _ => break,
                }
                came = once().await;
            }
            let outcome = match came {
                Came::Held(before) => Ok(before),
                Came::Queued(_) => Err(FsError::Malformed("a lock was queued that nobody waits for".into())),
                Came::Refused(error) => Err(error),
                Came::Unknown(error) => {
                    // The caller needn't wait until it is undone; its next request does.
                    if answer.send(Err(error)).is_err() {
                        tracing::debug!(inode = key.0, "nobody waits for a lock that wasn't answered");
                    }
                    fs.undo(key, &owner, &request).await;
                    drop(order);
                    return fs.inner.locks.forget(key, owner);
                }
            };
            fs.answer(key, &owner, &request, outcome, answer).await;
            drop(order);
            fs.inner.locks.forget(key, owner);
        });
        answered.await.unwrap_or(Err(FsError::Closed))
    }

    /// Takes a lock as soon as nobody is in the way.
    pub fn lock_waiting(&self, request: LockRequest) -> Result<LockWait, FsError> {
        let key = self.key(&request)?;
        if self.inner.session.grants.len() >= WAITS_MAX {
            return Err(FsError::Answered(libc::ENOLCK));
        }
        let (answer, outcome) = oneshot::channel();
        let interrupted = CancellationToken::new();
        let (fs, owner) = (self.clone(), self.inner.locks.owner(key));
        let shared = Arc::new(Mutex::new(Some(Arc::downgrade(&owner))));
        let wait = LockWait { outcome, interrupted: interrupted.clone(), shared: shared.clone() };
        self.inner.region.spawn(async move {
            let outcome = fs.wait(key, &owner, &request, &interrupted).await;
            let wanted = shared.lock().unwrap_or_else(PoisonError::into_inner).take().is_some();
            // With the order, so that nothing of the owner's comes between the lock and what becomes of it.
            let (outcome, order) = match outcome {
                Ok((order, before)) => (Ok(before), Some(order)),
                Err(error) => (Err(error), None),
            };
            if wanted {
                fs.answer(key, &owner, &request, outcome, answer).await;
                drop(order);
                return fs.inner.locks.forget(key, owner);
            }
            if let Ok(before) = outcome {
                fs.take_back(key, &owner, &request, before).await;
            }
            drop(order);
            owner.state(|state| state.abandoned -= 1);
            owner.quiet.notify_waiters();
            fs.inner.locks.forget(key, owner);
            // Now only: whoever left may wait for this end.
            drop(answer);
        });
        Ok(wait)
    }

    /// Tells the caller. A lock of which nobody hears is undone. The caller has the owner's order.
    async fn answer(
        &self,
        key: Key,
        owner: &Owner,
        request: &LockRequest,
        outcome: Result<Held, FsError>,
        answer: oneshot::Sender<Result<(), FsError>>,
    ) {
        let (before, outcome) = match outcome {
            Ok(before) => (Some(before), Ok(())),
            Err(error) => (None, Err(error)),
        };
        if let (Err(_), Some(before)) = (answer.send(outcome), before) {
            self.take_back(key, owner, request, before).await;
        }
    }

    /// A lock that was taken isn't wanted: the owner has what it had before. The caller has the owner's order.
    async fn take_back(&self, key: Key, owner: &Owner, request: &LockRequest, before: Held) {
        if self.take_back_here(key, owner, request, &before).await {
            return;
        }
        owner.state(|state| state.held = before);
        self.undo(key, owner, request).await;
    }

    /// Takes note of what the home gave in that tenure, whose answer may be old by now. Answers what was held before; none if that tenure is over: the
    /// next one doesn't know of it.
    fn taken(&self, owner: &Owner, request: &LockRequest, tenure: Tenure) -> Option<Held> {
        let is_over = || self.inner.session.tenure() != tenure;
        if is_over() {
            return None;
        }
        let before = owner.take(request.range(), request.level(), tenure)?;
        // It may have ended before this was noted.
        if is_over() {
            owner.state(|state| state.held = before);
            return None;
        }
        Some(before)
    }

    /// [`Self::taken`] of a lock that was waited for.
    fn granted(&self, key: Key, owner: &Owner, request: &LockRequest, tenure: Tenure) -> Option<Held> {
        let held_before = owner.state(|state| state.held_in.is_some());
        self.inner.locks.note(key, owner, request.handle, tenure);
        let before = self.taken(owner, request, tenure);
        if before.is_none() && !held_before {
            self.inner.locks.clear(key, owner);
        }
        before
    }

    /// Waits until the lock is there. Answers the owner's order with it, and what was held before.
    async fn wait(
        &self,
        key: Key,
        owner: &Owner,
        request: &LockRequest,
        interrupted: &CancellationToken,
    ) -> Result<(OwnedMutexGuard<()>, Held), FsError> {
        let session = &self.inner.session;
        let waiting = session.grants.begin();
        let mut asked_in = None;
        loop {
            if session.is_shut_down() {
                return Err(FsError::Closed);
            }
            let order = tokio::select! {
                biased;
                () = interrupted.cancelled() => return match asked_in {
                    Some(tenure) => self.cancel(key, owner, request, waiting.number, tenure).await,
                    None => Err(FsError::Answered(libc::EINTR)),
                },
                order = owner.quiet_order() => order,
            };
            let tenure = session.tenure();
            asked_in = Some(tenure);
            waiting.granted.forget();
            let taken_away = owner.state(|state| state.taken_away);
            let queued_at = match self.attempt(key, owner, request, waiting.number, tenure).await {
                Came::Held(before) => return Ok((order, before)),
                Came::Refused(FsError::Lapsed) => continue,
                Came::Refused(error) => return Err(error),
                Came::Queued(custody_epoch) => Some(custody_epoch),
                Came::Unknown(FsError::Closed) => return Err(FsError::Closed),
                // Whether it is queued isn't known: asked anew, or cancelled.
                Came::Unknown(_) => None,
            };
            drop(order);
            if let Some(custody_epoch) = queued_at {
                tokio::select! {
                    biased;
                    () = waiting.granted.wait() => {
                        // Not beside a request of the same owner, which would take what isn't noted yet for not held.
                        let order = owner.order().await;
                        // As before an answer is shown: what the last holder did may not be at the replica yet, which kernels were told of.
                        session.near.settle(&*session.peers, session.near.seen()).await;
                        // Found by the simulation: an unlock that was settled behind a move of the home took what had just been granted.
                        if session.tenure() == tenure
                            && owner.state(|state| state.taken_away) == taken_away
                            && let Some(before) = self.granted(key, owner, request, tenure)
                        {
                            return Ok((order, before));
                        }
                        continue;
                    }
                    () = interrupted.cancelled() => {}
                    () = session.moved_on(custody_epoch, tenure.life) => continue,
                    () = tokio::time::sleep(ASK_AGAIN) => continue,
                }
            } else if !interrupted.is_cancelled() {
                continue;
            }
            return self.cancel(key, owner, request, waiting.number, tenure).await;
        }
    }

    /// Gives the lock here, or asks the region for it once, in that tenure or not at all. The caller has the owner's order.
    async fn attempt(
        &self,
        key: Key,
        owner: &Owner,
        request: &LockRequest,
        wait: u64,
        tenure: Tenure,
    ) -> Came {
        let inner = &self.inner;
        if is_lost(owner, tenure) {
            return Came::Refused(FsError::LockLost(key.0));
        }
        let held_before = owner.state(|state| state.held_in.is_some());
        let refused = |error| {
            if !held_before {
                inner.locks.clear(key, owner);
            }
            Came::Refused(error)
        };
        let answered = match self.give_here(key, owner, request, wait != 0, tenure).await {
            // What the owner had is lost, or is the next home's, since this was looked at first.
            None if held_before && is_lost(owner, tenure) => return Came::Refused(FsError::LockLost(key.0)),
            None => {
                let op = Op::Lock(Lock { inode: key.0, lock: Some(request.spec()), wait });
                inner.region.change_in_life(&daemon(), op, tenure.for_locks()).await
            }
            // Whoever waits for the lock waits on.
            Some(Err(error @ FsError::Unanswered { .. })) if wait != 0 => return Came::Unknown(error),
            Some(Err(error)) => return Came::Refused(error),
            Some(Ok(before)) if inner.session.tenure() == tenure => return Came::Held(before),
            // It has ended before anybody heard of it.
            Some(Ok(before)) => {
                owner.state(|state| state.held = before);
                Err(FsError::Lapsed)
            }
        };
        let is_held = matches!(&answered, Ok(Reply::Locked(locked)) if locked.state() == LockState::Held);
        let answered = match is_held.then(|| self.taken(owner, request, tenure)) {
            Some(Some(before)) => return Came::Held(before),
            Some(None) => Err(FsError::Lapsed),
            None => answered,
        };
        match answered {
            Ok(Reply::Locked(locked)) => match locked.state() {
                LockState::Queued => {
                    // flock gives up the other level before it waits.
                    if !held_before || request.kind == LockKind::File {
                        inner.locks.clear(key, owner);
                    }
                    Came::Queued(locked.custody_epoch)
                }
                LockState::Gone => {
                    inner.locks.clear(key, owner);
                    Came::Refused(FsError::Answered(libc::EAGAIN))
                }
                LockState::Held | LockState::Unspecified => {
                    Came::Unknown(FsError::Malformed("a lock in no state".into()))
                }
            },
            Ok(other) => refused(unexpected("lock", &other)),
            // The next home has what was held before, and nothing of this.
            Err(FsError::Lapsed) if held_before && !is_lost(owner, inner.session.tenure()) => {
                Came::Refused(FsError::Lapsed)
            }
            Err(FsError::Lapsed) if held_before => {
                owner.state(|state| state.lost = true);
                Came::Refused(FsError::LockLost(key.0))
            }
            Err(FsError::Lapsed) => refused(FsError::Lapsed),
            Err(error) => Came::Unknown(error),
        }
    }

    /// Ends a wait: whether it was granted before is for the region to say.
    async fn cancel(
        &self,
        key: Key,
        owner: &Owner,
        request: &LockRequest,
        wait: u64,
        tenure: Tenure,
    ) -> Result<(OwnedMutexGuard<()>, Held), FsError> {
        let inner = &self.inner;
        let interrupted = Err(FsError::Answered(libc::EINTR));
        let order = owner.order().await;
        loop {
            let op = Op::CancelLock(CancelLock { inode: key.0, lock: Some(request.spec()), wait });
            match inner.region.change_in_life(&daemon(), op, tenure.for_locks()).await {
                Ok(Reply::Locked(locked)) if locked.state() == LockState::Held => {
                    return match self.granted(key, owner, request, tenure) {
                        Some(before) => Ok((order, before)),
                        None => interrupted,
                    };
                }
                Ok(_) => return interrupted,
                // Another tenure: nobody waits for the old one.
                Err(FsError::Lapsed | FsError::SessionLost | FsError::Closed) => return interrupted,
                Err(error) => {
                    tracing::debug!(inode = key.0, %error, "a wait for a lock isn't cancelled yet");
                    tokio::time::sleep(UNDO_PAUSE).await;
                }
            }
        }
    }

    /// Who is in the way of a lock, if anybody.
    pub async fn test_lock(&self, request: LockRequest) -> Result<Option<LockSpec>, FsError> {
        let key = self.key(&request)?;
        if let Some(found) = self.test_here(key, &request).await? {
            return Ok(found);
        }
        let inode = key.0;
        let op = Op::TestLock(TestLock { inode, lock: Some(request.spec()) });
        match self.inner.region.read(&daemon(), op).await? {
            Reply::LockHolder(holder) => Ok(holder.lock),
            other => Err(unexpected("test_lock", &other)),
        }
    }

    /// The tenure in which the locks were taken that belong to a handle, to be asked again once the operation is done; an error if it is over.
    pub(crate) fn guard(&self, handle: HandleId) -> Result<Option<Tenure>, FsError> {
        let locks = &self.inner.locks;
        if locks.is_unused() {
            return Ok(None);
        }
        locks.guard(handle, self.inode_of(handle)?, self.inner.session.tenure())
    }

    /// An operation under a lock is well only if it was there to the end.
    pub(crate) fn still_guarded(&self, handle: HandleId, guarded: Option<Tenure>) -> Result<(), FsError> {
        if guarded.is_some() { self.guard(handle).map(|_| ()) } else { Ok(()) }
    }

    /// Whether something was lost of the locks that were taken through a handle: operations through it fail until their owners give them up.
    pub fn has_lost_locks(&self, handle: HandleId) -> bool {
        self.guard(handle).is_err()
    }

    /// Whether an owner may hold anything of a handle's inode.
    pub fn may_hold(&self, handle: HandleId, kind: LockKind, owner: u64) -> bool {
        let Ok(inode) = self.inode_of(handle) else { return false };
        self.inner.locks.known((inode, kind, owner)).is_some()
    }
}
