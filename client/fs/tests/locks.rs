//! Locks in the client against a region in memory: what a lapse takes, what isn't wanted any more, what isn't answered.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_client::fake::{FakeRegion, Fault};
use mooseng_client::{
    Caller, ClientConfig, FileSystem, FsError, HandleId, LockKind, LockRequest, SetAttr, WriteOptions,
};
use mooseng_ports::clock::{Clock, ManualClock};

const ROOT: u64 = 1;
const EAGAIN: FsError = FsError::Answered(libc::EAGAIN);
const EINTR: FsError = FsError::Answered(libc::EINTR);
const EINVAL: FsError = FsError::Answered(libc::EINVAL);

fn me() -> Caller {
    Caller { kernel_checked: true, ..Caller::default() }
}

async fn connect(region: &Arc<FakeRegion>) -> FileSystem {
    let retry_timeout = Duration::from_secs(5);
    let config = ClientConfig { masters: region.masters(), retry_timeout, ..ClientConfig::default() };
    FileSystem::connect_through(config, region.clone(), Arc::new(ManualClock::default()) as Arc<dyn Clock>)
        .await
        .unwrap()
}

async fn open(fs: &FileSystem) -> HandleId {
    fs.create(&me(), ROOT, b"f", 0o644, libc::O_RDWR).await.unwrap().handle
}

async fn write(fs: &FileSystem, handle: HandleId) -> Result<(), FsError> {
    let data = Bytes::from_static(b"x");
    fs.write(&me(), handle, 0, data, WriteOptions::default()).await.map(drop)
}

fn range(handle: HandleId, owner: u64, start: u64, end: u64) -> LockRequest {
    LockRequest { handle, kind: LockKind::Range, owner, start, end, exclusive: true, pid: 1 }
}

fn all(handle: HandleId, owner: u64) -> LockRequest {
    range(handle, owner, 0, u64::MAX)
}

fn held(region: &FakeRegion) -> usize {
    region.with(|s| s.locks.held())
}

/// Lets tasks in the background end.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(20)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lapse_is_told_until_the_lock_is_given_up_or_the_file_closed() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (one, two, free) = (open(&fs).await, open(&fs).await, open(&fs).await);
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    fs.lock(range(two, 2, 10, 19)).await.unwrap();
    region.lapse();
    // Whoever asks the region first hears of it.
    fs.getattr(&me(), ROOT).await.unwrap();
    let inode = fs.inode_of(one).unwrap();
    let lost = || FsError::LockLost(inode);
    assert_eq!(lost().errno(), libc::EIO);
    assert_eq!(write(&fs, one).await, Err(lost()));
    assert_eq!(fs.read(&me(), one, 0, 1).await, Err(lost()));
    assert_eq!(fs.lock(range(one, 1, 50, 59)).await, Err(lost()));
    assert_eq!(write(&fs, free).await, Ok(()), "no lock was taken through it");
    assert_eq!(fs.unlock(range(one, 1, 0, 9)).await, Err(lost()), "once");
    assert_eq!(write(&fs, one).await, Ok(()));
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    assert_eq!(write(&fs, two).await, Err(lost()));
    fs.unlock_owner(two, LockKind::Range, 2).await;
    assert_eq!(write(&fs, two).await, Ok(()));
    assert_eq!(held(&region), 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_under_a_lock_isnt_done_in_another_life() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let handle = open(&fs).await;
    write(&fs, handle).await.unwrap();
    fs.lock(all(handle, 1)).await.unwrap();
    let before = region.with(|s| s.executed);
    region.lapse();
    let lost = write(&fs, handle).await.unwrap_err();
    assert_eq!(lost.errno(), libc::EIO);
    assert_eq!(region.with(|s| s.executed), before, "it was done without the lock");
}

/// The session lives on under the next home of the volume, and what it held of locks doesn't.
#[tokio::test(start_paused = true)]
async fn locks_end_with_the_home_and_that_is_told_like_a_lapse() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (one, two, free) = (open(&fs).await, open(&fs).await, open(&fs).await);
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    fs.lock(range(two, 2, 10, 19)).await.unwrap();
    region.move_home("m2");
    let before = region.with(|s| s.executed);
    let inode = fs.inode_of(one).unwrap();
    let lost = || FsError::LockLost(inode);
    // It hears of the next home by this request, which isn't done there.
    assert_eq!(write(&fs, one).await.unwrap_err().errno(), libc::EIO);
    assert_eq!(region.with(|s| s.executed), before, "it was done without the lock");
    assert_eq!(fs.status().lapses, 0);
    assert_eq!(fs.read(&me(), two, 0, 1).await, Err(lost()));
    assert_eq!(fs.lock(range(one, 1, 50, 59)).await, Err(lost()));
    write(&fs, free).await.unwrap();
    assert_eq!(fs.unlock(range(one, 1, 0, 9)).await, Err(lost()), "once");
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    write(&fs, one).await.unwrap();
    assert_eq!(held(&region), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_buffered_under_a_lock_isnt_sent_to_the_next_home() {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| s.exclusive = true);
    let fs = connect(&region).await;
    let (locked, free) = (open(&fs).await, open(&fs).await);
    fs.lock(all(locked, 1)).await.unwrap();
    write(&fs, locked).await.unwrap();
    assert!(fs.status().dirty_bytes > 0);
    region.move_home("m2");
    fs.getattr(&me(), ROOT).await.unwrap();
    assert_eq!(fs.fsync(locked, false).await.unwrap_err().errno(), libc::EIO);
    assert_eq!(fs.status().dirty_bytes, 0);
    assert_eq!(fs.fsync(free, false).await.unwrap_err().errno(), libc::EIO, "each handle hears of it, once");
    assert!(fs.unlock(all(locked, 1)).await.is_err());
    // What was buffered without one outlives the home.
    write(&fs, free).await.unwrap();
    region.move_home("m1");
    fs.fsync(free, false).await.unwrap();
    assert_eq!(fs.status().dirty_bytes, 0);
}

/// What a session holds it has under the next home, too: nobody notices.
#[tokio::test(start_paused = true)]
async fn locks_are_reclaimed_at_the_next_home() {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| (s.reclaims, s.exclusive) = (true, true));
    let fs = connect(&region).await;
    let (one, two) = (open(&fs).await, open(&fs).await);
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    fs.lock(LockRequest { exclusive: false, ..range(one, 1, 20, 29) }).await.unwrap();
    fs.lock(range(two, 2, 10, 19)).await.unwrap();
    write(&fs, one).await.unwrap();
    assert!(fs.status().dirty_bytes > 0);
    region.move_home("m2");
    assert_eq!(held(&region), 0);
    fs.fsync(one, false).await.unwrap();
    assert_eq!(held(&region), 3);
    write(&fs, two).await.unwrap();
    assert_eq!(fs.lock(range(two, 2, 0, 0)).await, Err(EAGAIN));
    fs.unlock(range(one, 1, 0, 9)).await.unwrap();
    // This is heard of by a change of locks.
    region.move_home("m1");
    fs.lock(range(two, 2, 0, 4)).await.unwrap();
    fs.unlock(range(one, 1, 0, 100)).await.unwrap();
    assert_eq!(held(&region), 2);
    region.move_home("m2");
    fs.unlock(range(two, 2, 0, 100)).await.unwrap();
    fs.release(one).await.unwrap();
    fs.release(two).await.unwrap();
    settle().await;
    assert_eq!(held(&region), 0);
}

/// Somebody else has a part of it at the next home.
#[tokio::test(start_paused = true)]
async fn what_cant_be_reclaimed_is_lost_and_told() {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| s.reclaims = true);
    let (fs, other) = (connect(&region).await, connect(&region).await);
    let (one, two) = (open(&fs).await, open(&fs).await);
    let inode = fs.inode_of(one).unwrap();
    let lost = || FsError::LockLost(inode);
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    fs.lock(range(one, 1, 20, 29)).await.unwrap();
    fs.lock(range(two, 2, 10, 19)).await.unwrap();
    region.move_home("m2");
    let theirs = open(&other).await;
    other.lock(range(theirs, 7, 5, 5)).await.unwrap();
    assert_eq!(write(&fs, one).await.unwrap_err().errno(), libc::EIO);
    settle().await;
    assert_eq!(held(&region), 2, "what it got of a lock that is lost it gives up");
    assert_eq!(fs.read(&me(), one, 0, 1).await, Err(lost()));
    fs.lock(range(two, 2, 30, 39)).await.unwrap();
    write(&fs, two).await.unwrap();
    assert_eq!(fs.unlock(range(one, 1, 0, 9)).await, Err(lost()), "once");
    other.unlock(range(theirs, 7, 0, 9)).await.unwrap();
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    write(&fs, one).await.unwrap();
    assert_eq!(held(&region), 3);
}

/// A change of locks whose answer was lost with the home: the next one has done nothing of it, whatever is recorded of the session's changes.
#[tokio::test(start_paused = true)]
async fn a_lock_that_the_home_before_gave_unheard_is_asked_for_anew() {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| s.reclaims = true);
    let fs = connect(&region).await;
    let one = open(&fs).await;
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    region.fault("m1", Some(Fault::Deaf));
    let taken = tokio::spawn({
        let fs = fs.clone();
        async move { fs.lock(range(one, 1, 20, 29)).await }
    });
    while held(&region) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    region.move_home("m2");
    taken.await.unwrap().unwrap();
    assert_eq!(held(&region), 2);
    write(&fs, one).await.unwrap();
    fs.unlock(range(one, 1, 0, 100)).await.unwrap();
    assert_eq!(held(&region), 0);
}

/// Bytes that were buffered under a lock, and a truncation under it.
#[tokio::test(start_paused = true)]
async fn what_was_begun_under_a_lock_isnt_finished_in_another_life() {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| s.exclusive = true);
    let fs = connect(&region).await;
    let handle = open(&fs).await;
    fs.lock(all(handle, 1)).await.unwrap();
    write(&fs, handle).await.unwrap();
    assert!(fs.status().dirty_bytes > 0);
    let before = region.with(|s| s.executed);
    region.lapse();
    // Nobody has changed the file, but somebody may have locked and read it.
    assert_eq!(fs.fsync(handle, false).await.unwrap_err().errno(), libc::EIO);
    let cut =
        SetAttr { inode: fs.inode_of(handle).unwrap(), size: Some(0), by_handle: true, ..SetAttr::default() };
    assert_eq!(fs.setattr_open(&me(), handle, cut).await.unwrap_err().errno(), libc::EIO);
    assert_eq!(region.with(|s| s.executed), before);
    assert_eq!(fs.status().dirty_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn closing_gives_up_what_was_taken_through_it() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (one, two) = (open(&fs).await, open(&fs).await);
    let file = |handle, owner| LockRequest { kind: LockKind::File, ..all(handle, owner) };
    fs.lock(file(one, 1)).await.unwrap();
    assert_eq!(fs.lock(file(two, 2)).await, Err(EAGAIN));
    fs.lock(range(one, 7, 0, 9)).await.unwrap();
    fs.lock(range(two, 7, 20, 29)).await.unwrap();
    assert!(fs.may_hold(two, LockKind::Range, 7) && !fs.may_hold(two, LockKind::Range, 8));
    // The kernel doesn't wait for a release: whoever asks right behind it gets the lock all the same.
    let release = tokio::spawn({
        let fs = fs.clone();
        async move { fs.release(one).await }
    });
    tokio::task::yield_now().await;
    fs.lock(file(two, 2)).await.unwrap();
    release.await.unwrap().unwrap();
    assert_eq!(held(&region), 3, "owner 7 has locks through another handle, too");
    fs.unlock_owner(two, LockKind::Range, 7).await;
    assert_eq!(held(&region), 1);
    fs.release(two).await.unwrap();
    assert_eq!(held(&region), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_asks_again_and_a_signal_ends_the_wait() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let handle = open(&fs).await;
    fs.lock(range(handle, 1, 0, 9)).await.unwrap();
    let mut wait = fs.lock_waiting(range(handle, 2, 5, 6)).unwrap();
    let early = tokio::time::timeout(Duration::from_secs(100), wait.outcome()).await;
    assert!(early.is_err());
    fs.unlock(range(handle, 1, 0, 9)).await.unwrap();
    assert_eq!(wait.outcome().await, Ok(()));

    let mut wait = fs.lock_waiting(range(handle, 3, 0, 9)).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    region.with(|s| assert_eq!(s.locks.waits.len(), 1));
    wait.interrupt();
    assert_eq!(wait.outcome().await, Err(EINTR));
    region.with(|s| assert!(s.locks.waits.is_empty()));

    // Granted before the signal, though nobody has heard of it: the lock is there.
    let mut wait = fs.lock_waiting(range(handle, 3, 0, 9)).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    fs.unlock(range(handle, 2, 5, 6)).await.unwrap();
    let number = region.with(|s| s.locks.waits.first().copied().unwrap());
    let lock = mooseng_client::LockSpec {
        kind: LockKind::Range.into(),
        owner: 3,
        start: 0,
        end: 9,
        exclusive: true,
        pid: 1,
    };
    let inode = fs.inode_of(handle).unwrap();
    let op = mooseng_wire::fs::Lock { inode, lock: Some(lock), wait: number.1 };
    region.with(|s| s.locks.answer(number.0, &mooseng_wire::fs::fs_request::Op::Lock(op)));
    wait.interrupt();
    assert_eq!(wait.outcome().await, Ok(()));
    assert_eq!(held(&region), 1);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_any_more_is_undone_before_the_owners_next_request() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let handle = open(&fs).await;
    fs.lock(range(handle, 1, 0, 9)).await.unwrap();
    // Left while it is in the queue.
    let wait = fs.lock_waiting(range(handle, 2, 0, 9)).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    wait.abandon().await;
    region.with(|s| assert!(s.locks.waits.is_empty()));
    // Left while it is asked for, and granted.
    fs.unlock(range(handle, 1, 0, 9)).await.unwrap();
    region.fault("m1", Some(Fault::Deaf));
    let wait = fs.lock_waiting(range(handle, 2, 0, 9)).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(wait);
    let next = tokio::spawn({
        let fs = fs.clone();
        async move { fs.lock(range(handle, 2, 3, 4)).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    region.fault("m1", None);
    next.await.unwrap().unwrap();
    settle().await;
    assert_eq!(held(&region), 1);
    fs.unlock(all(handle, 2)).await.unwrap();
    assert_eq!(held(&region), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_isnt_answered_in_time_is_given_up_later() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let handle = open(&fs).await;
    region.fault("m1", Some(Fault::Deaf));
    let unanswered = fs.lock(range(handle, 1, 0, 9)).await.unwrap_err();
    assert!(matches!(unanswered, FsError::Unanswered { .. }), "{unanswered:?}");
    assert_eq!(held(&region), 1, "it was done");
    region.fault("m1", None);
    settle().await;
    assert_eq!(held(&region), 0);
    // What was held before is as it was.
    fs.lock(range(handle, 1, 0, 9)).await.unwrap();
    region.fault("m1", Some(Fault::Hung));
    assert!(fs.lock(range(handle, 1, 20, 29)).await.is_err());
    region.fault("m1", None);
    settle().await;
    assert_eq!((held(&region), write(&fs, handle).await), (1, Ok(())));
    assert_eq!(fs.lock(range(handle, 2, 0, 9)).await, Err(EAGAIN));
    fs.unlock(all(handle, 1)).await.unwrap();
    assert_eq!(held(&region), 0);
}

fn shared(request: LockRequest) -> LockRequest {
    LockRequest { exclusive: false, ..request }
}

/// A lock that is raised, or lowered, and nobody hears of it, is what it was before.
#[tokio::test(start_paused = true)]
async fn an_unanswered_conversion_leaves_the_earlier_lock() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let handle = open(&fs).await;
    fs.lock(shared(range(handle, 1, 0, 99))).await.unwrap();
    region.fault("m1", Some(Fault::Deaf));
    assert!(fs.lock(range(handle, 1, 10, 19)).await.is_err());
    region.fault("m1", None);
    settle().await;
    assert_eq!(write(&fs, handle).await, Ok(()));
    for at in [0, 15, 50] {
        assert_eq!(fs.lock(range(handle, 2, at, at)).await, Err(EAGAIN), "{at}");
    }
    assert_eq!(fs.lock(shared(range(handle, 2, 0, 99))).await, Ok(()), "and nobody else is kept out");
    fs.unlock(all(handle, 2)).await.unwrap();

    let file = |owner| LockRequest { kind: LockKind::File, ..all(handle, owner) };
    fs.lock(file(5)).await.unwrap();
    region.fault("m1", Some(Fault::Deaf));
    assert!(fs.lock(shared(file(5))).await.is_err());
    assert!(matches!(write(&fs, handle).await, Err(FsError::LockLost(_))), "others may read by now");
    region.fault("m1", None);
    settle().await;
    assert_eq!(write(&fs, handle).await, Ok(()));
    assert_eq!(fs.lock(shared(file(6))).await, Err(EAGAIN));
}

/// A wait for more than is held, whose process is gone when it is granted: the open file's others have what they had.
#[tokio::test(start_paused = true)]
async fn an_abandoned_conversion_leaves_the_earlier_lock() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let handle = open(&fs).await;
    fs.lock(shared(range(handle, 1, 0, 9))).await.unwrap();
    region.fault("m1", Some(Fault::Deaf));
    let wait = fs.lock_waiting(range(handle, 1, 0, 9)).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(wait);
    region.fault("m1", None);
    settle().await;
    assert_eq!(fs.lock(range(handle, 2, 0, 9)).await, Err(EAGAIN));
    assert_eq!(fs.lock(shared(range(handle, 2, 0, 9))).await, Ok(()));
    assert_eq!(write(&fs, handle).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_has_got_meanwhile_is_lost_and_told() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let handle = open(&fs).await;
    fs.lock(range(handle, 1, 0, 9)).await.unwrap();
    region.fault("m1", Some(Fault::Deaf));
    assert!(fs.lock(shared(range(handle, 1, 0, 9))).await.is_err());
    let lock = mooseng_client::LockSpec {
        kind: LockKind::Range.into(),
        owner: 3,
        start: 5,
        end: 5,
        ..mooseng_client::LockSpec::default()
    };
    let inode = fs.inode_of(handle).unwrap();
    let op = mooseng_wire::fs::Lock { inode, lock: Some(lock), wait: 0 };
    region.with(|s| s.locks.answer(u64::MAX, &mooseng_wire::fs::fs_request::Op::Lock(op)));
    region.fault("m1", None);
    settle().await;
    assert!(matches!(write(&fs, handle).await, Err(FsError::LockLost(_))));
    assert!(matches!(fs.unlock(all(handle, 1)).await, Err(FsError::LockLost(_))), "once");
    settle().await;
    assert_eq!((held(&region), write(&fs, handle).await), (1, Ok(())));
}

async fn alone(region: &Arc<FakeRegion>) -> FileSystem {
    region.with(|s| s.locks_alone = true);
    connect(region).await
}

fn executed(region: &FakeRegion) -> u64 {
    region.with(|s| s.executed)
}

#[tokio::test(start_paused = true)]
async fn locks_of_a_file_that_nobody_else_has_open_cost_no_request() {
    let region = Arc::new(FakeRegion::new());
    let fs = alone(&region).await;
    let (one, two) = (open(&fs).await, open(&fs).await);
    // Once the file's locks are asked for.
    let before = executed(&region) + 1;
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    assert_eq!(fs.lock(range(two, 2, 9, 20)).await, Err(EAGAIN));
    fs.lock(shared(range(two, 2, 10, 20))).await.unwrap();
    let found = fs.test_lock(range(two, 2, 0, 50)).await.unwrap().unwrap();
    assert_eq!((found.owner, found.start, found.end, found.exclusive, found.pid), (1, 0, 9, true, 1));
    assert_eq!(fs.test_lock(range(one, 1, 0, 9)).await, Ok(None), "its own");
    fs.unlock(range(one, 1, 0, 4)).await.unwrap();
    fs.lock_waiting(range(two, 2, 0, 4)).unwrap().outcome().await.unwrap();
    assert_eq!(fs.lock(shared(range(one, 1, 4, 4))).await, Err(EAGAIN));
    // Two that both want to write: the first has lost what it had.
    let file = |handle, owner| LockRequest { kind: LockKind::File, ..all(handle, owner) };
    fs.lock(shared(file(one, 5))).await.unwrap();
    fs.lock(shared(file(two, 6))).await.unwrap();
    assert_eq!(fs.lock(file(one, 5)).await, Err(EAGAIN));
    fs.lock(file(two, 6)).await.unwrap();
    assert_eq!(executed(&region), before);
    write(&fs, one).await.unwrap();
    let before = executed(&region);
    fs.unlock_owner(one, LockKind::Range, 1).await;
    fs.lock(range(two, 2, 5, 9)).await.unwrap();
    fs.release(two).await.unwrap();
    assert_eq!(fs.test_lock(range(one, 1, 0, u64::MAX)).await, Ok(None));
    assert_eq!((executed(&region), held(&region)), (before, 0));
    assert_eq!(fs.status().locks_alone, 7);
}

/// A lock that the region wouldn't record mustn't be given here either: all of the file's would be lost with it.
#[tokio::test(start_paused = true)]
async fn what_is_no_range_is_refused_whoever_gives_the_locks() {
    let region = Arc::new(FakeRegion::new());
    for fs in [connect(&region).await, alone(&region).await] {
        let handle = open(&fs).await;
        let backwards = range(handle, 1, 9, 5);
        assert_eq!(fs.lock(backwards).await, Err(EINVAL));
        assert_eq!(fs.lock_waiting(backwards).map(drop), Err(EINVAL));
        assert_eq!(fs.unlock(backwards).await, Err(EINVAL));
        assert_eq!(fs.test_lock(backwards).await, Err(EINVAL));
        let unspecified = LockRequest { kind: LockKind::Unspecified, ..range(handle, 1, 0, 9) };
        assert!(matches!(fs.lock(unspecified).await, Err(FsError::Invalid(_))));
        assert_eq!(held(&region), 0);
        // Of a whole file the range doesn't matter.
        fs.lock(LockRequest { kind: LockKind::File, ..backwards }).await.unwrap();
        fs.release(handle).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_lock_that_was_given_here_does_so_at_the_region() {
    let region = Arc::new(FakeRegion::new());
    let fs = alone(&region).await;
    let handle = open(&fs).await;
    fs.lock(range(handle, 1, 0, 9)).await.unwrap();
    assert_eq!(held(&region), 0);
    let mut wait = fs.lock_waiting(range(handle, 2, 5, 6)).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((held(&region), region.with(|s| s.locks.waits.len())), (1, 1));
    assert_eq!(fs.lock(range(handle, 3, 0, 0)).await, Err(EAGAIN));
    fs.unlock(range(handle, 1, 0, 9)).await.unwrap();
    assert_eq!(wait.outcome().await, Ok(()));
    assert_eq!(held(&region), 1);
    fs.unlock(range(handle, 2, 5, 6)).await.unwrap();
    // And is given here again, after a while.
    tokio::time::sleep(Duration::from_secs(10)).await;
    fs.lock(range(handle, 2, 5, 6)).await.unwrap();
    assert_eq!(held(&region), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_given_here_is_lost_by_a_lapse_like_any_lock() {
    let region = Arc::new(FakeRegion::new());
    let fs = alone(&region).await;
    let (one, two) = (open(&fs).await, open(&fs).await);
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    fs.lock(range(two, 2, 10, 19)).await.unwrap();
    region.lapse();
    // Whoever asks the region first hears of it.
    fs.getattr(&me(), ROOT).await.unwrap();
    let inode = fs.inode_of(one).unwrap();
    let lost = || FsError::LockLost(inode);
    assert_eq!(write(&fs, one).await, Err(lost()));
    assert_eq!(fs.lock(range(one, 1, 50, 59)).await, Err(lost()));
    assert_eq!(fs.unlock(range(one, 1, 0, 9)).await, Err(lost()), "once");
    write(&fs, one).await.unwrap();
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    assert_eq!(write(&fs, two).await, Err(lost()));
    fs.unlock_owner(two, LockKind::Range, 2).await;
    write(&fs, two).await.unwrap();
}

/// A leader that follows is told of what isn't on record, so that nobody else gets it; the next home takes it as records.
#[tokio::test(start_paused = true)]
async fn what_was_given_here_outlives_leaders_and_homes() {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| s.reclaims = true);
    let fs = alone(&region).await;
    let (one, two) = (open(&fs).await, open(&fs).await);
    let inode = fs.inode_of(one).unwrap();
    fs.lock(range(one, 1, 0, 9)).await.unwrap();
    region.elect("m2");
    fs.getattr(&me(), ROOT).await.unwrap();
    assert_eq!((region.with(|s| s.locks_claimed.clone()), held(&region)), (vec![inode], 0));
    write(&fs, one).await.unwrap();
    assert_eq!(fs.lock(range(two, 2, 9, 9)).await, Err(EAGAIN));
    region.move_home("m1");
    write(&fs, one).await.unwrap();
    assert_eq!(held(&region), 1);
    assert_eq!(fs.lock(range(two, 2, 9, 9)).await, Err(EAGAIN));
    fs.unlock(range(one, 1, 0, 9)).await.unwrap();
    fs.lock(range(two, 2, 9, 9)).await.unwrap();
    fs.release(two).await.unwrap();
    settle().await;
    assert_eq!(held(&region), 0);
}

#[tokio::test(start_paused = true)]
async fn locks_are_the_regions_where_another_session_has_the_file_open_or_nothing_is_delegated() {
    let region = Arc::new(FakeRegion::new());
    let (fs, other) = (alone(&region).await, alone(&region).await);
    let (ours, theirs) = (open(&fs).await, open(&other).await);
    fs.lock(range(ours, 1, 0, 9)).await.unwrap();
    assert_eq!(held(&region), 1);
    assert_eq!(other.lock(range(theirs, 1, 9, 9)).await, Err(EAGAIN));
    // That it isn't given is known for a while.
    let before = executed(&region);
    fs.unlock(range(ours, 1, 0, 9)).await.unwrap();
    fs.lock(range(ours, 1, 0, 9)).await.unwrap();
    assert_eq!((executed(&region), held(&region)), (before + 2, 1));

    let config = ClientConfig { masters: region.masters(), delegate: false, ..ClientConfig::default() };
    let clock = Arc::new(ManualClock::default());
    let plain = FileSystem::connect_through(config, region.clone(), clock).await.unwrap();
    let handle = plain.create(&me(), ROOT, b"g", 0o644, libc::O_RDWR).await.unwrap().handle;
    plain.lock(range(handle, 1, 0, 9)).await.unwrap();
    assert_eq!((held(&region), plain.status().locks_alone), (2, 0));
}
