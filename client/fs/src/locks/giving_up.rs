//! Giving locks up: on request, with a close, and what was taken or asked for and isn't wanted.

use std::sync::Weak;
use std::time::Duration;

use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Lock, LockKind, LockState, Unlock};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{LockRequest, UNDO_PAUSE};
use crate::error::FsError;
use crate::files::HandleId;
use crate::fs::{FileSystem, Inner, daemon};
use crate::held::{Held, Level, Part};
use crate::owners::{Key, Leaving, Owner, Tenure, is_lost};
use crate::read::unexpected;

/// How long a close waits until its locks are given up. They are also given up later.
const CLOSE_WAITS: Duration = Duration::from_secs(10);

/// Looks after owners who may have more at the home than they know of, until the session ends.
pub(crate) async fn keep(inner: Weak<Inner>, shutdown: CancellationToken) {
    loop {
        let Some(fs) = inner.upgrade().map(|inner| FileSystem { inner }) else { return };
        let locks = fs.inner.locks.clone();
        for key in locks.take_strays() {
            fs.settle(key);
        }
        drop(fs);
        tokio::select! {
            () = locks.strayed.notified() => {}
            () = shutdown.cancelled() => return,
        }
    }
}

impl FileSystem {
    /// Brings a range back to what the owner was last told that it holds of it: that nobody knows whether more was done, or that nobody wants
    /// it, takes nothing away from what was held before. Until that is answered, or can't be had any more. The caller has the owner's order.
    pub(super) async fn undo(&self, key: Key, owner: &Owner, request: &LockRequest) {
        let kept = loop {
            let Some(tenure) = owner.state(|state| state.held_in) else { return };
            if self.is_here(key.0, tenure).await {
                if owner.state(|state| state.held.is_empty()) {
                    self.inner.locks.clear(key, owner);
                }
                return;
            }
            let parts = owner.state(|state| state.held.parts(request.range()));
            // Others may be reading by now what it believes to be its own.
            let lowered = |part: &Part| !request.exclusive && part.level.is_some_and(|level| level.exclusive);
            if parts.iter().any(lowered) {
                owner.state(|state| state.lost = true);
            }
            let mut kept = true;
            for part in parts {
                kept &= self.bring_back(key, request, part, tenure).await;
            }
            // The next home may have been asked for more than is held by now.
            if kept || owner.state(|state| state.held_in == Some(tenure)) {
                break kept;
            }
        };
        // Whatever can't be brought back is lost, as after a lapse.
        owner.state(|state| state.lost = !kept);
        if kept && owner.state(|state| state.held.is_empty()) {
            self.inner.locks.clear(key, owner);
        }
    }

    /// False if the owner can't have it any more, or nobody is there to ask.
    async fn bring_back(&self, key: Key, request: &LockRequest, part: Part, tenure: Tenure) -> bool {
        let Part { start, end, level } = part;
        let wanted = LockRequest { start, end, ..*request };
        loop {
            let error = match level {
                None => match self.give_up(key, &wanted, tenure).await {
                    Ok(_) => return true,
                    Err(error) => error,
                },
                Some(Level { exclusive, pid }) => {
                    let lock = Some(LockRequest { exclusive, pid, ..wanted }.spec());
                    self.takes_away(key);
                    let op = Op::Lock(Lock { inode: key.0, lock, wait: 0 });
                    match self.inner.region.change_in_life(&daemon(), op, tenure.for_locks()).await {
                        Ok(Reply::Locked(locked)) if locked.state() == LockState::Held => return true,
                        Ok(_) | Err(FsError::Answered(_) | FsError::Lapsed | FsError::SessionLost) => {
                            return false;
                        }
                        Err(error) => error,
                    }
                }
            };
            if self.inner.session.is_shut_down() {
                return false;
            }
            tracing::debug!(inode = key.0, %error, "a lock isn't undone yet");
            tokio::time::sleep(UNDO_PAUSE).await;
        }
    }

    /// Gives up all that the owner holds, until that is answered. The caller has the owner's order.
    async fn give_up_all(&self, key: Key, owner: &Owner) {
        let (_, kind, number) = key;
        let all =
            LockRequest { handle: 0, kind, owner: number, start: 0, end: u64::MAX, exclusive: true, pid: 0 };
        owner.state(|state| state.held = Held::default());
        self.undo(key, owner, &all).await;
        self.inner.locks.clear(key, owner);
    }

    /// What the owner waits for may be granted before this is done at the home, and be told before it is answered here: then it is asked for again.
    fn takes_away(&self, key: Key) {
        if let Some(owner) = self.inner.locks.known(key) {
            owner.state(|state| state.taken_away += 1);
        }
    }

    /// True if the tenure that had the lock was over.
    async fn give_up(&self, key: Key, request: &LockRequest, tenure: Tenure) -> Result<bool, FsError> {
        self.takes_away(key);
        let op = Op::Unlock(Unlock { inode: key.0, lock: Some(request.spec()) });
        match self.inner.region.change_in_life(&daemon(), op, tenure.for_locks()).await {
            Ok(Reply::Done(_)) => Ok(false),
            Ok(other) => Err(unexpected("unlock", &other)),
            Err(FsError::Lapsed | FsError::SessionLost) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Gives up what the owner holds of a range. Says, once, that what it held was lost before.
    pub async fn unlock(&self, request: LockRequest) -> Result<(), FsError> {
        let key = self.key(&request)?;
        let Some(owner) = self.inner.locks.known(key) else { return Ok(()) };
        let fs = self.clone();
        let (answer, answered) = oneshot::channel();
        self.inner.region.spawn(async move {
            let _order = owner.order().await;
            let _ = answer.send(fs.unlock_in_order(key, &owner, &request).await);
            if owner.state(|state| state.lost) {
                fs.give_up_all(key, &owner).await;
            }
            drop(_order);
            fs.inner.locks.forget(key, owner);
        });
        answered.await.unwrap_or(Err(FsError::Closed))
    }

    async fn unlock_in_order(&self, key: Key, owner: &Owner, request: &LockRequest) -> Result<(), FsError> {
        let inner = &self.inner;
        let given_up = loop {
            let Some(tenure) = owner.state(|state| state.held_in) else { return Ok(()) };
            if is_lost(owner, inner.session.tenure()) {
                // What may be left of it is given up behind this answer.
                owner.state(|state| state.lost = true);
                return Err(FsError::LockLost(key.0));
            }
            self.tell_what_was_guarded(key.0).await;
            match self.release_here(key, owner, request, tenure).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => break Err(error),
            }
            let given_up = self.give_up(key, request, tenure).await;
            // Under another home by now, which has what was held before: also where the one before has given it up.
            let moved_on = owner.state(|state| {
                let moved_on = state.held_in != Some(tenure);
                if given_up == Ok(false) && !moved_on {
                    state.held.give_up(request.range());
                }
                moved_on
            });
            if given_up.is_err() || !moved_on {
                break given_up;
            }
        };
        match given_up {
            Ok(false) => {
                // Also part by part: as long as an owner may hold something, the inode's locks aren't asked for.
                if request.is_everything() || owner.state(|state| state.held.is_empty()) {
                    inner.locks.clear(key, owner);
                }
                Ok(())
            }
            Ok(true) => {
                inner.locks.clear(key, owner);
                Err(FsError::LockLost(key.0))
            }
            Err(FsError::Answered(errno)) => Err(FsError::Answered(errno)),
            Err(error) => {
                // Nobody knows what it holds: everything is given up, and the owner has been told that something is wrong.
                owner.state(|state| state.lost = true);
                Err(error)
            }
        }
    }

    /// In a cluster of several regions who gets the lock next may read at a replica, which doesn't recall what is buffered here: it goes to the home first.
    async fn tell_what_was_guarded(&self, inode: u64) {
        let inner = &self.inner;
        if !inner.session.has_elsewhere() {
            return;
        }
        let told = async {
            inner.session.journal.told_and_still().await;
            if let Err(error) = inner.writer.flush(inode).await {
                tracing::debug!(inode, %error, "what was buffered under a lock isn't sent; fsync tells");
                inner.writer.give_up_kept(inode).await;
            }
        };
        // No longer than a change is tried, for which it waits here.
        if tokio::time::timeout(inner.region.patience(), told).await.is_err() {
            tracing::info!(
                inode,
                "a lock is given up before all that was done under it is at the home, which doesn't answer"
            );
        }
    }

    /// Has the home keep for an owner what the owner knows of, and no more. A task that ends.
    fn settle(&self, key: Key) {
        let fs = self.clone();
        self.inner.region.spawn(async move {
            let (_, kind, number) = key;
            let all = LockRequest {
                handle: 0,
                kind,
                owner: number,
                start: 0,
                end: u64::MAX,
                exclusive: true,
                pid: 0,
            };
            let owner = fs.inner.locks.owner(key);
            let order = owner.order().await;
            match owner.state(|state| (state.held_in, state.lost)) {
                (Some(_), false) => fs.undo(key, &owner, &all).await,
                // Whoever has lost something holds nothing, and is told when it asks.
                (held_in, _) => {
                    let nothing = Part { start: 0, end: u64::MAX, level: None };
                    let tenure = held_in.unwrap_or_else(|| fs.inner.session.tenure());
                    fs.bring_back(key, &all, nothing, tenure).await;
                }
            }
            drop(order);
            fs.inner.locks.forget(key, owner);
        });
    }

    /// A descriptor of the owner's is closed: all that the owner holds of the inode is given up.
    pub async fn unlock_owner(&self, handle: HandleId, kind: LockKind, owner: u64) {
        if let Ok(inode) = self.inode_of(handle) {
            self.unlock_all([(inode, kind, owner)]).await;
        }
    }

    /// A handle is released: what was taken through it alone is given up.
    pub(crate) async fn unlock_handle(&self, handle: HandleId) {
        if self.inner.locks.is_unused() {
            return;
        }
        let alone = self.inner.locks.release(handle);
        self.unlock_all(alone).await;
    }

    async fn unlock_all(&self, keys: impl IntoIterator<Item = Key>) {
        let tasks = keys.into_iter().filter_map(|key| {
            let owner = self.inner.locks.known(key)?;
            let fs = self.clone();
            let leaving = Leaving::new(self, key.0);
            Some(tokio::spawn(async move {
                owner.quiet().await;
                let order = owner.order().await;
                fs.tell_what_was_guarded(key.0).await;
                fs.give_up_all(key, &owner).await;
                drop((order, leaving));
                fs.inner.locks.forget(key, owner);
            }))
        });
        let all = futures::future::join_all(tasks);
        if tokio::time::timeout(CLOSE_WAITS, all).await.is_err() {
            tracing::info!("locks of a closed file aren't given up yet; the region doesn't answer");
        }
    }
}
