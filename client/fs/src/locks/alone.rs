//! Locks of files that nobody else has open: given here, without a request, as long as the region promises the inode's locks (docs/decisions/0048-locks-alone.md).
//! What becomes of a wish, [`crate::owners`] decides; here the region is asked for an inode's locks, and told of those that were given before they are given up.

use std::sync::Arc;
use std::time::Duration;

use mooseng_ports::plant::{self, Plant};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{HoldLocks, LockSpec, RecordLocks};
use tokio::time::Instant;

use super::{LockRequest, UNDO_PAUSE};
use crate::error::FsError;
use crate::fs::{FileSystem, daemon};
use crate::held::Held;
use crate::owners::{Key, Locks, Owner, Release, Tenure, Test, ToRecord, Wish};
use crate::read::unexpected;
use crate::region::Region;
use crate::writeback::WriteBack;

/// An inode's locks aren't asked for again for so long after they weren't given, or were recalled: another session locks it, too.
const SHARED_FOR: Duration = Duration::from_secs(2);

/// The region is being asked for an inode's locks.
struct Asking<'a> {
    locks: &'a Locks,
    inode: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.locks.asked(self.inode);
    }
}

impl FileSystem {
    fn may_ask_for_locks(&self, inode: u64) -> bool {
        let session = &self.inner.session;
        let is_shared = || self.inner.opens.get(inode).is_none_or(|open| open.shares_locks());
        session.config.delegate && session.knows_locks_alone() && !is_shared()
    }

    /// Gives a lock here. None where the region is to be asked for it; then it is noted that the owner may hold something. The caller has the owner's order.
    pub(super) async fn give_here(
        &self,
        key: Key,
        owner: &Owner,
        request: &LockRequest,
        waits: bool,
        tenure: Tenure,
    ) -> Option<Result<Held, FsError>> {
        let inner = &self.inner;
        let mut asked = false;
        // As long as the region answers nobody, nothing is recorded.
        let deadline = Instant::now() + inner.region.patience();
        loop {
            let may_ask = !asked && self.may_ask_for_locks(key.0);
            let promised = || inner.facts.has_locks(key.0);
            match inner.locks.wish(key, owner, request, (tenure, waits, may_ask), promised) {
                Wish::Given(before) => return Some(Ok(before)),
                Wish::Away => {
                    // The region may give the lock to who waits there, later, when nobody is noted to hold anything: nothing may be given beside that by what was
                    // promised before.
                    inner.facts.leave_locks(key.0);
                    return None;
                }
                Wish::InTheWay if !waits => return Some(Err(FsError::Answered(libc::EAGAIN))),
                // Who waits does so at the region, which knows of all who do.
                Wish::InTheWay | Wish::Leave => {
                    let left = tokio::time::timeout_at(deadline, leave(&inner.region, key.0)).await;
                    if left.is_err() {
                        return Some(Err(self.unrecorded("lock")));
                    }
                }
                Wish::Wait => {
                    let rested = tokio::time::timeout_at(deadline, inner.locks.rest(key.0)).await;
                    if rested.is_err() {
                        return Some(Err(self.unrecorded("lock")));
                    }
                }
                Wish::Ask => {
                    asked = true;
                    match self.ask_for_locks(key.0, tenure).await {
                        // Whoever waits for the lock waits on.
                        Err(error @ FsError::Unanswered { .. }) if !waits => return Some(Err(error)),
                        Err(FsError::Closed) => return Some(Err(FsError::Closed)),
                        _ => {}
                    }
                }
            }
        }
    }

    /// What was given here didn't come to be on record in time.
    fn unrecorded(&self, what: &'static str) -> FsError {
        let region = &self.inner.region;
        region.unanswered_error(what, region.patience(), "locks that this mount gave aren't recorded yet")
    }

    async fn ask_for_locks(&self, inode: u64, tenure: Tenure) -> Result<(), FsError> {
        let inner = &self.inner;
        let _asking = Asking { locks: &inner.locks, inode };
        let op = Op::HoldLocks(HoldLocks { inode });
        let answered = inner.region.change_in_life(&daemon(), op, tenure.for_locks()).await;
        if !inner.facts.has_locks(inode)
            && let Some(open) = inner.opens.get(inode)
        {
            open.share_locks_for(SHARED_FOR);
        }
        match answered {
            Ok(Reply::Locked(_)) => Ok(()),
            Ok(other) => Err(unexpected("hold_locks", &other)),
            Err(error) => Err(error),
        }
    }

    /// Gives a range up that is held here. False where that is the region's; an error where it isn't known in time what is on record there.
    pub(super) async fn release_here(
        &self,
        key: Key,
        owner: &Owner,
        request: &LockRequest,
        tenure: Tenure,
    ) -> Result<bool, FsError> {
        let inner = &self.inner;
        let decided = self.until_decided(key.0, || {
            let promised = || inner.facts.has_locks(key.0);
            inner.locks.release_here(key, owner, request.range(), tenure, promised)
        });
        let decided = tokio::time::timeout(inner.region.patience(), decided).await;
        decided.map_err(|_| self.unrecorded("unlock"))
    }

    /// Takes back a lock that was given here. False where that is the region's.
    pub(super) async fn take_back_here(
        &self,
        key: Key,
        owner: &Owner,
        request: &LockRequest,
        before: &Held,
    ) -> bool {
        let inner = &self.inner;
        self.until_decided(key.0, || {
            let promised = || inner.facts.has_locks(key.0);
            inner.locks.take_back_here(key, owner, request.range(), before, promised)
        })
        .await
    }

    async fn until_decided(&self, inode: u64, decide: impl Fn() -> Release) -> bool {
        loop {
            match decide() {
                Release::Done => return true,
                Release::Away => return false,
                Release::Leave => leave(&self.inner.region, inode).await,
                Release::Wait => self.inner.locks.rest(inode).await,
            }
        }
    }

    /// Whether nothing is at the region of what owners hold of an inode in that tenure.
    pub(super) async fn is_here(&self, inode: u64, tenure: Tenure) -> bool {
        loop {
            match self.inner.locks.is_here(inode, tenure) {
                Some(is_here) => return is_here,
                None => self.inner.locks.rest(inode).await,
            }
        }
    }

    /// Who is in the way of a lock, where that is known here.
    #[allow(clippy::option_option, reason = "whether it is known, and whether anybody is in the way")]
    pub(super) async fn test_here(
        &self,
        key: Key,
        request: &LockRequest,
    ) -> Result<Option<Option<LockSpec>>, FsError> {
        let inner = &self.inner;
        let tested = async {
            loop {
                let promised = || inner.facts.has_locks(key.0);
                match inner.locks.test_here(key, request, inner.session.tenure(), promised) {
                    Test::Here(found) => return Some(found),
                    Test::Away => return None,
                    Test::Leave => leave(&inner.region, key.0).await,
                    Test::Wait => inner.locks.rest(key.0).await,
                }
            }
        };
        let tested = tokio::time::timeout(inner.region.patience(), tested).await;
        tested.map_err(|_| self.unrecorded("test_lock"))
    }
}

/// Returns once nothing of an inode is held here alone: it is on record at the region, or lost.
async fn leave(region: &Arc<Region>, inode: u64) {
    if let Some(record) = region.session.locks.begin_recording(inode) {
        let of_task = region.clone();
        // It goes on when the caller stops waiting.
        region.spawn(async move {
            let lost = !is_recorded(&of_task, &record).await;
            of_task.session.locks.end_recording(&record, lost);
        });
    }
    region.session.locks.recorded(inode).await;
}

/// Records what was given here. False if it can't be had, although its tenure goes on: the region refuses it for good (the file isn't there for this session any more,
/// or somebody else has a lock that conflicts, which is a bug). Whatever may pass is waited for: its tenure's end is waited for, too.
async fn is_recorded(region: &Arc<Region>, record: &ToRecord) -> bool {
    let ToRecord { inode, tenure, locks } = record;
    if locks.is_empty() {
        return true;
    }
    let session = &region.session;
    // Whoever had the locks recalled waits for this.
    let _hurry = session.journal.hurry();
    loop {
        let op = Op::RecordLocks(RecordLocks { inode: *inode, locks: locks.clone() });
        let error = match region.change_in_life(&daemon(), op, tenure.for_locks()).await {
            Ok(Reply::Done(_)) => return true,
            Ok(other) => unexpected("record_locks", &other),
            Err(error) => error,
        };
        // With its tenure they are lost, or were asked of the next home.
        if session.is_shut_down() || session.tenure() != *tenure {
            return true;
        }
        // Masters that were made anew beside the region's own may be gone again before the session's end.
        if !matches!(error, FsError::Unanswered { .. } | FsError::Internal(_) | FsError::MadeAnew(_)) {
            // What was promised didn't hold.
            session.facts.leave_locks(*inode);
            tracing::error!(
                inode,
                locks = locks.len(),
                %error,
                "locks that this mount had given couldn't be recorded, and are lost; reads, writes and locks through their descriptors say so"
            );
            return false;
        }
        tracing::debug!(inode, %error, "locks that this mount has given aren't recorded yet");
        tokio::time::sleep(UNDO_PAUSE).await;
    }
}

/// An inode's locks are recalled: none is given here until [`reopen`]. Returns once those that were are on record, or lost.
pub(crate) async fn close_for_recall(writer: &Arc<WriteBack>, inode: u64) {
    let session = &writer.region.session;
    session.locks.close(inode);
    if !plant::is(Plant::RecallAnsweredUnrecorded) {
        leave(&writer.region, inode).await;
    }
    // Whoever gets a lock may read at a replica, which doesn't recall what is buffered here: it goes to the home first, as before an unlock.
    if session.has_elsewhere() {
        let told = async {
            if let Err(error) = writer.flush(inode).await {
                tracing::debug!(inode, %error, "what was buffered under a lock isn't sent; fsync tells");
                writer.give_up_kept(inode).await;
            }
        };
        if tokio::time::timeout(writer.region.patience(), told).await.is_err() {
            tracing::info!(
                inode,
                "an inode's locks are given up before all that was done under them is at the home"
            );
        }
    }
}

/// The recall has been acted on.
pub(crate) fn reopen(writer: &Arc<WriteBack>, inode: u64) {
    if let Some(open) = writer.opens.get(inode) {
        open.share_locks_for(SHARED_FOR);
    }
    writer.region.session.locks.open(inode);
}

#[cfg(all(test, feature = "fake"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use mooseng_ports::clock::ManualClock;
    use mooseng_wire::InodeId;
    use mooseng_wire::fact::Fact;
    use mooseng_wire::fs::{Caller, Lock, LockKind};

    use super::*;
    use crate::ClientConfig;
    use crate::facts::Recalled;
    use crate::fake::{FakeRegion, Fault};

    async fn connect(region: &Arc<FakeRegion>) -> FileSystem {
        region.with(|s| s.locks_alone = true);
        let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
        let clock = Arc::new(ManualClock::default());
        FileSystem::connect_through(config, region.clone(), clock).await.unwrap()
    }

    async fn open(fs: &FileSystem) -> (u64, u64) {
        let me = Caller { kernel_checked: true, ..Caller::default() };
        let made = fs.create(&me, 1, b"f", 0o644, libc::O_RDWR).await.unwrap();
        (made.handle, made.attr.inode)
    }

    fn range(handle: u64, owner: u64, start: u64, end: u64) -> LockRequest {
        LockRequest { handle, kind: LockKind::Range, owner, start, end, exclusive: true, pid: 1 }
    }

    fn held(region: &FakeRegion) -> usize {
        region.with(|s| s.locks.held())
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_is_on_record_before_a_recall_is_answered() {
        let region = Arc::new(FakeRegion::new());
        let fs = connect(&region).await;
        let (handle, inode) = open(&fs).await;
        fs.lock(range(handle, 1, 0, 9)).await.unwrap();
        fs.lock(range(handle, 2, 20, 29)).await.unwrap();
        assert_eq!(held(&region), 0);
        let (fact, recalls) = (Fact::Locks(InodeId(inode)), fs.inner.recalls.clone());
        assert!(recalls.has_buffered(&fact), "it keeps no other recall waiting");
        // As long as the region doesn't answer, the recall isn't, nor is anything given or released here.
        region.fault("m1", Some(Fault::Hung));
        let recall = tokio::spawn({
            let (recalls, fact) = (recalls.clone(), fact.clone());
            async move { recalls.before(&fact, None).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let unlock = tokio::spawn({
            let fs = fs.clone();
            async move { fs.unlock(range(handle, 2, 20, 29)).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!recall.is_finished() && !unlock.is_finished());
        region.fault("m1", None);
        recall.await.unwrap();
        unlock.await.unwrap().unwrap();
        assert_eq!(held(&region), 1, "both were recorded, and one was given up there");
        // The promise stands yet, and nothing is given under it.
        assert!(fs.inner.facts.has_locks(inode));
        fs.lock(range(handle, 3, 50, 59)).await.unwrap();
        assert_eq!(held(&region), 2);
        fs.inner.facts.recall(1_000, &fact, None);
        recalls.after(&fact, None).await;
        for owner in [1, 3] {
            fs.unlock(range(handle, owner, 0, 99)).await.unwrap();
        }
        assert_eq!(held(&region), 0);
        // Its locks aren't asked for again at once.
        fs.lock(range(handle, 1, 0, 9)).await.unwrap();
        assert_eq!(held(&region), 1);
        fs.unlock(range(handle, 1, 0, 9)).await.unwrap();
        tokio::time::sleep(SHARED_FOR).await;
        fs.lock(range(handle, 1, 0, 9)).await.unwrap();
        assert_eq!(held(&region), 0);
    }

    /// What the region doesn't record its owners have lost, and hear so; and the promise that didn't hold is gone by no more.
    #[tokio::test(start_paused = true)]
    async fn what_cant_be_recorded_is_lost_and_told() {
        let region = Arc::new(FakeRegion::new());
        let fs = connect(&region).await;
        let ((one, inode), (two, _)) = (open(&fs).await, open(&fs).await);
        fs.lock(range(one, 1, 0, 9)).await.unwrap();
        fs.lock(range(two, 2, 20, 29)).await.unwrap();
        let lock = Some(range(one, 7, 5, 5).spec());
        let theirs = Op::Lock(Lock { inode, lock, wait: 0 });
        region.with(|s| s.locks.answer(u64::MAX, &theirs));
        let (fact, recalls) = (Fact::Locks(InodeId(inode)), fs.inner.recalls.clone());
        recalls.before(&fact, None).await;
        recalls.after(&fact, None).await;
        assert_eq!(held(&region), 1);
        for (handle, owner) in [(one, 1), (two, 2)] {
            let lost = Err(FsError::LockLost(inode));
            assert!(fs.has_lost_locks(handle));
            assert_eq!(fs.lock(range(handle, owner, 50, 59)).await, lost);
            assert_eq!(fs.unlock(range(handle, owner, 0, 99)).await, lost, "once");
        }
        // Its locks aren't asked for again before.
        tokio::time::sleep(2 * SHARED_FOR).await;
        assert!(!fs.has_lost_locks(one) && !fs.has_lost_locks(two));
        assert_eq!(fs.lock(range(one, 1, 5, 5)).await, Err(FsError::Answered(libc::EAGAIN)));
        fs.lock(range(two, 2, 0, 4)).await.unwrap();
        assert_eq!(held(&region), 2);
    }

    /// Whoever has the locks recalled holds up whoever asks for them: the recall mustn't wait for that in turn.
    #[tokio::test(start_paused = true)]
    async fn a_recall_doesnt_wait_for_who_asks() {
        let region = Arc::new(FakeRegion::new());
        let fs = connect(&region).await;
        let (handle, inode) = open(&fs).await;
        region.fault("m1", Some(Fault::Hung));
        let lock = tokio::spawn({
            let fs = fs.clone();
            async move { fs.lock(range(handle, 1, 0, 9)).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (fact, recalls) = (Fact::Locks(InodeId(inode)), fs.inner.recalls.clone());
        recalls.before(&fact, None).await;
        assert!(!lock.is_finished());
        region.fault("m1", None);
        // It is closed: what comes of the question counts for nothing.
        lock.await.unwrap().unwrap();
        assert_eq!(held(&region), 1);
        recalls.after(&fact, None).await;
    }

    /// An owner that lowers its lock, of which nobody hears, has again what it had, unless another one has got a part of it.
    #[tokio::test(start_paused = true)]
    async fn what_is_taken_back_may_be_somebody_elses_by_now() {
        let region = Arc::new(FakeRegion::new());
        let fs = connect(&region).await;
        let (handle, inode) = open(&fs).await;
        let key = |owner| (inode, LockKind::Range, owner);
        let shared = |request| LockRequest { exclusive: false, ..request };
        for taken in [false, true] {
            fs.lock(range(handle, 1, 0, 9)).await.unwrap();
            let owner = fs.inner.locks.known(key(1)).unwrap();
            let before = owner.state(|state| state.held.clone());
            fs.lock(shared(range(handle, 1, 0, 9))).await.unwrap();
            if taken {
                fs.lock(shared(range(handle, 2, 5, 5))).await.unwrap();
            }
            let request = shared(range(handle, 1, 0, 9));
            assert!(fs.take_back_here(key(1), &owner, &request, &before).await);
            assert_eq!(fs.has_lost_locks(handle), taken);
            let third = fs.lock(shared(range(handle, 3, 0, 0))).await;
            assert_eq!(third.is_ok(), taken, "the first has lost all of it");
            for owner in [1, 2, 3] {
                let _ = fs.unlock(range(handle, owner, 0, 99)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!fs.has_lost_locks(handle));
        assert_eq!(held(&region), 0);
    }
}
