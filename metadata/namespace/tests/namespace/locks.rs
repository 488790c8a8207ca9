//! Locks in the store: taken, refused, waited for, lost with a session's life.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use mooseng_namespace::held::{self, Verdict};
use mooseng_namespace::locks::Want;
use mooseng_namespace::touched::Touched;
use mooseng_namespace::{OpContext, execute_noting, reclaim, sessions};
use mooseng_schema::lock::LockOwner;
use mooseng_store::Store;
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{Epoch, Incarnation, InodeId, SessionId, VolumeId};

use crate::harness::*;

const EAGAIN: u32 = 11;

fn spec(owner: u64, start: u64, end: u64, exclusive: bool) -> LockSpec {
    LockSpec { kind: LockKind::Range.into(), owner, start, end, exclusive, pid: 7 }
}

fn flock(owner: u64, exclusive: bool) -> LockSpec {
    LockSpec { kind: LockKind::File.into(), ..spec(owner, 0, 0, exclusive) }
}

async fn lock(client: &Client<'_>, inode: u64, lock: LockSpec, wait: u64) -> Result<LockState, u32> {
    match client.ask(Op::Lock(Lock { inode, lock: Some(lock), wait })).await {
        Reply::Locked(locked) => Ok(locked.state()),
        other => Err(errno(&other)),
    }
}

async fn unlock(client: &Client<'_>, inode: u64, lock: LockSpec) {
    assert_eq!(client.errno(Op::Unlock(Unlock { inode, lock: Some(lock) })).await, 0);
}

async fn holder(client: &Client<'_>, inode: u64, lock: LockSpec) -> LockHolder {
    match client.ask(Op::TestLock(TestLock { inode, lock: Some(lock) })).await {
        Reply::LockHolder(holder) => holder,
        other => panic!("{other:?}"),
    }
}

fn want(client: &Client<'_>, spec: LockSpec, wait: u64) -> Want {
    let life = Incarnation(client.incarnation.load(Ordering::Relaxed));
    Want::new(SessionId(client.id), life, Some(&spec), wait).unwrap()
}

async fn grant(volume: &Volume, inode: u64, wants: &[Want]) -> Vec<Verdict> {
    let wants = wants.to_vec();
    let granted = volume.driver.transact(deadline(), |tx| {
        let wants = wants.clone();
        Box::pin(async move { held::grant(tx, InodeId(inode), &wants).await })
    });
    granted.await.unwrap().0
}

async fn free(volume: &Volume, session: u64) -> Vec<InodeId> {
    let freed =
        volume.driver.transact(deadline(), |tx| Box::pin(held::free_dead(tx, SessionId(session), None)));
    freed.await.unwrap().0.0
}

async fn come_back(volume: &Volume, session: SessionId) {
    let back = volume.driver.transact(deadline(), |tx| Box::pin(sessions::bump_incarnation(tx, session)));
    back.await.unwrap();
}

/// What is left in the store of locks.
fn records(volume: &Volume, inode: u64) -> usize {
    let (dump, range) = (volume.store.inner.dump(), mooseng_schema::lock::range(InodeId(inode)));
    let held = mooseng_schema::lock::all_held_range(None);
    dump.range(range.begin..range.end).count() + dump.range(held.begin..held.end).count()
}

#[tokio::test]
async fn locks_are_taken_told_and_given_up() {
    let volume = Volume::new().await;
    let (one, two) = (volume.client(1).await, volume.client(2).await);
    let inode = one.create(ROOT, "f").await;
    assert_eq!(lock(&one, inode, spec(5, 10, 19, true), 0).await, Ok(LockState::Held));
    assert_eq!(
        lock(&two, inode, spec(5, 19, 30, false), 0).await,
        Err(EAGAIN),
        "an owner of another session"
    );
    assert_eq!(lock(&two, inode, spec(5, 20, 30, true), 0).await, Ok(LockState::Held));
    assert_eq!(lock(&two, inode, flock(5, true), 0).await, Ok(LockState::Held), "another kind");
    let found = holder(&two, inode, spec(5, 0, 50, true)).await;
    assert_eq!((found.session, found.lock), (1, Some(spec(5, 10, 19, true))));
    unlock(&one, inode, spec(5, 0, u64::MAX, false)).await;
    assert_eq!(holder(&two, inode, spec(5, 0, 50, true)).await, LockHolder::default());
    unlock(&two, inode, spec(5, 0, u64::MAX, false)).await;
    unlock(&two, inode, flock(5, false)).await;
    assert_eq!(records(&volume, inode), 0);
    let gone = one.create(ROOT, "gone").await;
    one.ask(Op::Unlink(Unlink { parent: ROOT, name: name("gone") })).await;
    volume.own(Op::Reap(Reap { inodes: vec![gone] })).await;
    assert_eq!(lock(&one, gone, spec(5, 0, 0, true), 0).await, Err(116));
    volume.check();
}

async fn reclaim(volume: &Volume, client: &Client<'_>, epoch: u64, locks: &[Lock]) -> Option<Vec<u32>> {
    let context = OpContext {
        session: SessionId(client.id),
        incarnation: Incarnation(client.incarnation.load(Ordering::Relaxed)),
        epoch: Epoch(epoch),
        ..OpContext::default()
    };
    let locks = locks.to_vec();
    let lost = volume.driver.transact(deadline(), |tx| {
        let (context, locks) = (context.clone(), locks.clone());
        Box::pin(async move { reclaim::reclaim(tx, VolumeId(0), &context, &locks).await })
    });
    lost.await.unwrap().0
}

#[tokio::test]
async fn a_new_home_takes_locks_from_their_holders_until_they_change_them() {
    let volume = Volume::new().await;
    let (one, two) = (volume.client(1).await, volume.client(2).await);
    let inode = one.create(ROOT, "f").await;
    let named = |spec| Lock { inode, lock: Some(spec), wait: 0 };
    let had = [named(spec(5, 0, 9, true)), named(spec(6, 20, 29, false)), named(flock(5, true))];
    let epoch = volume.epoch.load(Ordering::Relaxed);
    assert_eq!(reclaim(&volume, &one, epoch + 1, &had).await, None, "it isn't the home's");
    assert_eq!(reclaim(&volume, &one, epoch, &had).await, Some(vec![]));
    assert_eq!(reclaim(&volume, &one, epoch, &had).await, Some(vec![]), "the answer was lost");
    // Another one has less than it says.
    let others = [named(spec(5, 9, 9, false)), named(spec(5, 20, 21, false)), Lock { inode: 999, ..had[0] }];
    assert_eq!(reclaim(&volume, &two, epoch, &others).await, Some(vec![0, 2]));
    assert_eq!(lock(&two, inode, spec(5, 25, 26, true), 0).await, Err(EAGAIN));
    assert_eq!(lock(&two, inode, spec(5, 20, 21, false), 0).await, Ok(LockState::Held));
    // What it gave up it doesn't get by an old request.
    unlock(&one, inode, spec(5, 0, 4, true)).await;
    assert_eq!(reclaim(&volume, &one, epoch, &had).await, None);
    assert_eq!(lock(&two, inode, spec(5, 0, 4, true), 0).await, Ok(LockState::Held));
    // Another life has nothing of the one before, and the locks go with it.
    come_back(&volume, SessionId(1)).await;
    assert_eq!(reclaim(&volume, &one, epoch, &had).await, None);
    assert_eq!(free(&volume, 1).await, vec![InodeId(inode)]);
    assert_eq!(lock(&two, inode, spec(5, 5, 50, true), 0).await, Ok(LockState::Held));
    volume.check();
}

/// As many as may be, and those of one transaction: a database has many ranges of one file.
#[tokio::test]
async fn thousands_of_locks_are_taken_again_at_once() {
    let volume = Volume::new().await;
    let one = volume.client(1).await;
    let (inode, other) = (one.create(ROOT, "f").await, one.create(ROOT, "g").await);
    let range = |inode: u64, n: u64| {
        let lock = Some(spec(n % 3, 10 * n, 10 * n + 5, n.is_multiple_of(2)));
        Lock { inode, lock, wait: 0 }
    };
    let mut had: Vec<Lock> = (0..2_001).map(|n| range(inode, n)).collect();
    had.push(range(other, 0));
    had.push(Lock { lock: None, ..had[0] });
    let epoch = volume.epoch.load(Ordering::Relaxed);
    // One more than an inode has, and one that is none.
    assert_eq!(reclaim(&volume, &one, epoch, &had).await, Some(vec![2_000, 2_002]));
    // Each, and the session's note of either inode, which both ranges of the count have.
    assert_eq!((records(&volume, inode), records(&volume, other)), (2_000 + 2, 1 + 2));
    volume.check();
}

#[tokio::test]
async fn a_retry_of_a_lock_is_answered_as_the_first() {
    let volume = Volume::new().await;
    let (one, two) = (volume.client(1).await, volume.client(2).await);
    let inode = one.create(ROOT, "f").await;
    let take = |wait| request(&root(), Op::Lock(Lock { inode, lock: Some(spec(5, 0, 9, true)), wait }));
    one.send(10, &take(0)).await.unwrap();
    let refused = two.send(1, &take(0)).await.unwrap();
    assert_eq!(errno(&refused), EAGAIN);
    unlock_at(&one, 11, inode).await;
    assert_eq!(two.send(1, &take(0)).await.unwrap(), refused);
    // A repeated unlock must not take what was locked since.
    assert!(matches!(one.send(12, &take(0)).await.unwrap(), Reply::Locked(_)));
    unlock_at(&one, 11, inode).await;
    assert_eq!(errno(&two.send(2, &take(0)).await.unwrap()), EAGAIN);
}

async fn unlock_at(client: &Client<'_>, number: u64, inode: u64) {
    let all = spec(5, 0, u64::MAX, false);
    let give_up = request(&root(), Op::Unlock(Unlock { inode, lock: Some(all) }));
    assert!(matches!(client.send(number, &give_up).await.unwrap(), Reply::Done(_)));
}

#[tokio::test]
async fn who_waits_is_granted_in_order_and_a_cancel_says_whether_it_came_too_late() {
    let volume = Volume::new().await;
    let (one, two) = (volume.client(1).await, volume.client(2).await);
    let inode = one.create(ROOT, "f").await;
    let all = |owner, exclusive| spec(owner, 0, 9, exclusive);
    assert_eq!(lock(&one, inode, all(1, true), 0).await, Ok(LockState::Held));
    let waits = [want(&two, all(2, true), 9), want(&two, all(3, false), 10), want(&one, all(4, false), 11)];
    assert_eq!(lock(&two, inode, all(2, true), 9).await, Ok(LockState::Queued));
    let holder = LockOwner { kind: LockKind::Range, session: SessionId(1), owner: 1 };
    assert_eq!(grant(&volume, inode, &waits).await, vec![Verdict::Blocked(vec![holder]); 3]);
    unlock(&one, inode, all(1, true)).await;
    let next = LockOwner { kind: LockKind::Range, session: SessionId(2), owner: 2 };
    let blocked = Verdict::Blocked(vec![next]);
    assert_eq!(grant(&volume, inode, &waits).await, [Verdict::Granted, blocked.clone(), blocked]);
    let cancel =
        |owner, exclusive| Op::CancelLock(CancelLock { inode, lock: Some(all(owner, exclusive)), wait: 9 });
    let state = |reply| match reply {
        Reply::Locked(locked) => locked.state(),
        other => panic!("{other:?}"),
    };
    assert_eq!(state(two.ask(cancel(2, true)).await), LockState::Held);
    assert_eq!(state(two.ask(cancel(3, false)).await), LockState::Gone);
    unlock(&two, inode, all(2, true)).await;
    assert_eq!(grant(&volume, inode, &waits[1..]).await, [Verdict::Granted, Verdict::Granted]);
    // Said again at another custodian: it is held.
    assert_eq!(lock(&two, inode, all(3, false), 10).await, Ok(LockState::Held));
}

#[tokio::test]
async fn flock_takes_another_level_anew() {
    let volume = Volume::new().await;
    let (one, two) = (volume.client(1).await, volume.client(2).await);
    let inode = one.create(ROOT, "f").await;
    assert_eq!(lock(&one, inode, flock(1, false), 0).await, Ok(LockState::Held));
    assert_eq!(lock(&two, inode, flock(2, false), 0).await, Ok(LockState::Held));
    assert_eq!(lock(&one, inode, flock(1, true), 5).await, Ok(LockState::Queued));
    assert_eq!(
        lock(&two, inode, flock(2, true), 0).await,
        Ok(LockState::Held),
        "the first waits without its lock"
    );
    unlock(&two, inode, flock(2, true)).await;
    assert_eq!(lock(&one, inode, flock(1, false), 0).await, Ok(LockState::Held));
    assert_eq!(lock(&two, inode, flock(2, false), 0).await, Ok(LockState::Held));
    assert_eq!(lock(&two, inode, flock(2, true), 0).await, Ok(LockState::Gone), "as Linux has it");
    assert_eq!(lock(&one, inode, flock(1, true), 0).await, Ok(LockState::Held));
}

#[tokio::test]
async fn a_life_takes_its_locks_with_it() {
    let volume = Volume::new().await;
    let (one, two) = (volume.client(1).await, volume.client(2).await);
    let inode = one.create(ROOT, "f").await;
    let other = one.create(ROOT, "g").await;
    assert_eq!(lock(&one, inode, spec(5, 0, 9, true), 0).await, Ok(LockState::Held));
    assert_eq!(lock(&one, other, flock(5, true), 0).await, Ok(LockState::Held));
    assert_eq!(free(&volume, 1).await, [], "it lives");
    let waits = [want(&one, spec(6, 0, 9, true), 9)];
    let session = SessionId(1);
    volume.driver.transact(deadline(), |tx| Box::pin(sessions::lapse_session(tx, session, 7))).await.unwrap();
    // What nobody has freed yet still stands in the way.
    assert_eq!(lock(&two, inode, spec(5, 0, 9, true), 0).await, Err(EAGAIN));
    let freed = free(&volume, 1).await;
    assert_eq!(freed.len(), 2);
    assert_eq!(
        grant(&volume, inode, &waits).await,
        [Verdict::Dead],
        "nothing is granted to a life that is over"
    );
    assert_eq!(records(&volume, inode), 0);
    assert_eq!(lock(&two, inode, spec(5, 0, 9, true), 0).await, Ok(LockState::Held));
    // It comes back before what it held was freed.
    come_back(&volume, session).await;
    one.incarnation.store(2, Ordering::Relaxed);
    assert_eq!(lock(&one, other, flock(5, true), 0).await, Ok(LockState::Held));
    come_back(&volume, session).await;
    one.incarnation.store(3, Ordering::Relaxed);
    assert_eq!(
        lock(&one, other, flock(6, true), 0).await,
        Ok(LockState::Held),
        "its own earlier life is no obstacle"
    );
    assert_eq!(free(&volume, 1).await, [], "nothing of the earlier life is left");
    volume.driver.transact(deadline(), |tx| Box::pin(sessions::close_session(tx, session))).await.unwrap();
    assert_eq!(free(&volume, 1).await, [InodeId(other)]);
    assert_eq!(records(&volume, other), 1, "what session 2 holds is on the other inode");
}

async fn hold(client: &Client<'_>, inode: u64) -> LockState {
    match client.ask(Op::HoldLocks(HoldLocks { inode })).await {
        Reply::Locked(locked) => locked.state(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_a_session_has_given_by_itself_is_recorded_at_once() {
    let volume = Volume::new().await;
    let (one, two) = (volume.client(1).await, volume.client(2).await);
    let inode = one.create(ROOT, "f").await;
    let record = |locks: Vec<LockSpec>| Op::RecordLocks(RecordLocks { inode, locks });
    assert_eq!(hold(&one, inode).await, LockState::Held);
    let given = vec![spec(5, 0, 9, true), spec(6, 20, 29, false), flock(5, true)];
    assert_eq!(one.errno(record(given.clone())).await, 0);
    assert_eq!(one.errno(record(given)).await, 0, "twice does no harm");
    assert_eq!(records(&volume, inode), 3 + 1, "each, and the session's note of the inode");
    assert_eq!(hold(&one, inode).await, LockState::Gone, "its own are on record, too");
    assert_eq!(lock(&two, inode, spec(5, 9, 9, false), 0).await, Err(EAGAIN));
    assert_eq!(lock(&two, inode, spec(5, 20, 21, false), 0).await, Ok(LockState::Held));
    // All or none.
    assert_eq!(one.errno(record(vec![spec(7, 50, 59, true), spec(7, 21, 21, true)])).await, EAGAIN);
    assert_eq!(lock(&two, inode, spec(5, 50, 59, true), 0).await, Ok(LockState::Held));
    assert_eq!(one.errno(Op::RecordLocks(RecordLocks { inode: 999, locks: vec![] })).await, 116);
    volume.check();
}

/// The error number of a change of a session that is confined to a directory.
async fn confined(volume: &Volume, client: &Client<'_>, directory: u64, op: Op) -> u32 {
    let asked = request(&root(), op);
    let context = OpContext { confined: Some(InodeId(directory)), ..volume.context(&asked) };
    let call = client.call_of(client.next_number());
    let (reply, _) = volume.driver.run(call, &context, &asked, deadline()).await.unwrap();
    errno(&reply.reply.unwrap())
}

/// Found by review: nobody could lock a file that was moved out of a subtree as long as a session lived that is confined to that and had it locked.
#[tokio::test]
async fn who_sees_a_subtree_only_gives_up_what_it_holds_of_a_file_that_was_moved_out() {
    const ESTALE: u32 = 116;
    let volume = Volume::new().await;
    let (one, two) = (volume.client(1).await, volume.client(2).await);
    let mine = one.mkdir(ROOT, "mine").await;
    let inode = one.create(mine, "f").await;
    let lock_of = |owner| Lock { inode, lock: Some(spec(owner, 0, 9, true)), wait: 0 };
    assert_eq!(confined(&volume, &one, mine, Op::Lock(lock_of(5))).await, 0);
    let moved =
        Rename { parent: mine, name: name("f"), new_parent: ROOT, new_name: name("f"), ..Rename::default() };
    assert_eq!(two.errno(Op::Rename(moved)).await, 0);
    assert_eq!(confined(&volume, &one, mine, Op::Lock(lock_of(6))).await, ESTALE);
    let record = RecordLocks { inode, locks: vec![spec(6, 20, 29, true)] };
    assert_eq!(confined(&volume, &one, mine, Op::RecordLocks(record)).await, ESTALE);
    assert_eq!(lock(&two, inode, spec(5, 9, 9, true), 0).await, Err(EAGAIN));
    let give_up = || Op::Unlock(Unlock { inode, lock: Some(spec(5, 0, u64::MAX, false)) });
    assert_eq!(confined(&volume, &one, mine, give_up()).await, 0);
    assert_eq!(lock(&two, inode, spec(5, 9, 9, true), 0).await, Ok(LockState::Held));
    assert_eq!(confined(&volume, &one, mine, give_up()).await, ESTALE, "it has none there any more");
    volume.check();
}

/// A transaction that looked for locks before a session was let give them by itself mustn't record one after that.
#[tokio::test]
async fn who_looked_before_a_session_gives_locks_by_itself_conflicts_with_it() {
    let volume = Volume::new().await;
    let (one, two) = (volume.client(1).await, volume.client(2).await);
    let inode = one.create(ROOT, "f").await;
    let tx = volume.store.inner.begin();
    let late = [want(&two, spec(5, 0, 9, true), 3)];
    assert_eq!(held::grant(&tx, InodeId(inode), &late).await.unwrap(), [Verdict::Granted]);
    assert_eq!(hold(&one, inode).await, LockState::Held);
    assert!(mooseng_store::Transaction::commit(tx).await.is_err());
    assert_eq!(records(&volume, inode), 0);
}

/// By that fact the custodian knows that it has to ask first whoever may give the locks by itself.
#[tokio::test]
async fn whoever_changes_or_tests_locks_notes_so() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let lock = Some(spec(5, 0, 9, true));
    let noted = async |op: Op| {
        let (tx, touched) = (volume.store.inner.begin(), Touched::default());
        let asked = request(&root(), op);
        let context = volume.context(&asked);
        let context = OpContext { session: SessionId(1), incarnation: Incarnation(1), ..context };
        execute_noting(&tx, &context, &asked, &touched).await.unwrap();
        (touched.looked().contains(&Fact::Locks(InodeId(inode))), touched.into_facts())
    };
    let locks = BTreeSet::from([Fact::Locks(InodeId(inode))]);
    for op in [
        Op::Lock(Lock { inode, lock, wait: 0 }),
        Op::Unlock(Unlock { inode, lock }),
        Op::HoldLocks(HoldLocks { inode }),
        Op::RecordLocks(RecordLocks { inode, locks: vec![] }),
    ] {
        assert_eq!(noted(op.clone()).await, (false, locks.clone()), "{op:?}");
    }
    assert_eq!(noted(Op::TestLock(TestLock { inode, lock })).await, (true, BTreeSet::new()));
    // It changes nothing: what was granted is on record.
    let cancel = Op::CancelLock(CancelLock { inode, lock, wait: 3 });
    assert_eq!(noted(cancel).await, (false, BTreeSet::new()));
}
