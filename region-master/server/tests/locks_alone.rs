//! Locks that sessions give by themselves (docs/decisions/0048-locks-alone.md), at real masters: of clients that answer recalls by hand, and of mounts whose
//! processes hear what a small model of POSIX' locks says, while leaders are killed.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Client, Cluster, identity, until};
use mooseng_client::{Caller, ClientConfig, FileSystem, FsError, HandleId, LockKind, LockRequest};
use mooseng_namespace::sessions::load_session;
use mooseng_ports::clock::{ManualClock, OsClock};
use mooseng_region::promises::Recall;
use mooseng_store::Store;
use mooseng_transport::PlainNetwork;
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Create, HoldLocks, Lock, LockSpec, LockState, RecordLocks, SetAttr, TestLock};
use mooseng_wire::method::Method;
use mooseng_wire::session::{AnswerRecalls, RecallsAnswered, Response};
use mooseng_wire::{InodeId, ROOT_INODE, Role, SessionId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Linux' EAGAIN.
const EAGAIN: u32 = 11;
/// Linux' EDEADLK.
const EDEADLK: i32 = 35;
/// Linux' O_RDWR.
const READ_WRITE: i32 = 0o2;

async fn created(client: &Client, name: &str) -> u64 {
    let name = name.to_owned().into();
    let create = Create { parent: ROOT_INODE.0, name, mode: 0o644, exclusive: true, truncate: false };
    match client.change(Op::Create(create)).await.unwrap() {
        Reply::Created(created) => created.attr.unwrap().inode,
        other => panic!("not created: {other:?}"),
    }
}

fn spec(owner: u64, start: u64, end: u64) -> LockSpec {
    LockSpec { kind: LockKind::Range.into(), owner, start, end, exclusive: true, pid: 1 }
}

fn lock(inode: u64, owner: u64, (start, end): (u64, u64)) -> Op {
    Op::Lock(Lock { inode, lock: Some(spec(owner, start, end)), wait: 0 })
}

fn state(reply: &Reply) -> Option<LockState> {
    match reply {
        Reply::Locked(locked) => Some(locked.state()),
        _ => None,
    }
}

/// Asks for a file's locks. Answers whether they are given.
async fn hold(client: &Client, inode: u64) -> bool {
    let number = client.number.fetch_add(1, Ordering::SeqCst) + 1;
    let request = client.request(number, Op::HoldLocks(HoldLocks { inode })).await;
    let response: Response = client.call(Method::FsChange, &request).await.unwrap();
    let facts = response.granted.iter().filter_map(|granted| granted.fact.as_ref());
    facts.filter_map(Fact::from_message).any(|fact| fact == Fact::Locks(InodeId(inode)))
}

/// Waits until something is recalled from a session.
async fn recalled(cluster: &Cluster, session: u64) -> Vec<Recall> {
    let master = cluster.running[0].as_ref().unwrap().master();
    let unanswered = || master.desk(|desk| desk.promises.unanswered(SessionId(session)));
    until("something is recalled", async || !unanswered().is_empty()).await;
    unanswered()
}

async fn answer(client: &Client, recalls: &[Recall]) {
    let s = client.session.lock().await.clone();
    let answer = AnswerRecalls {
        session: s.session,
        incarnation: s.incarnation,
        custody_epoch: s.custody_epoch,
        numbers: recalls.iter().map(|recall| recall.number).collect(),
        locks: vec![],
        oldest_unanswered: 1,
    };
    let _: RecallsAnswered = client.call(Method::AnswerRecalls, &answer).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_waits_until_what_another_session_has_given_by_itself_is_on_record() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let (ours, theirs) = (cluster.client("ours").await, cluster.client("theirs").await);
    let opened = ours.open(&[]).await.unwrap();
    assert!(opened.locks_alone);
    theirs.open(&[]).await.unwrap();
    let (one, two) = (created(&ours, "one").await, created(&ours, "two").await);
    for inode in [one, two] {
        assert!(hold(&ours, inode).await);
    }
    // What it gives, nobody hears of before it gives that up.
    let give_up = async |inode: u64| {
        let recalls = recalled(&cluster, opened.session).await;
        assert_eq!(
            recalls.iter().map(|recall| &recall.fact).collect::<Vec<_>>(),
            [&Fact::Locks(InodeId(inode))]
        );
        let record = RecordLocks { inode, locks: vec![spec(5, 0, 9)] };
        let recorded = ours.change(Op::RecordLocks(record)).await.unwrap();
        assert!(matches!(recorded, Reply::Done(_)), "{recorded:?}");
        answer(&ours, &recalls).await;
    };
    let (refused, ()) = tokio::join!(theirs.change(lock(one, 5, (9, 9))), give_up(one));
    assert_eq!(refused.unwrap(), Reply::Errno(EAGAIN));
    let test = Op::TestLock(TestLock { inode: two, lock: Some(spec(7, 5, 20)) });
    let (tested, ()) = tokio::join!(theirs.read(test), give_up(two));
    let Reply::LockHolder(holder) = tested.unwrap() else { panic!("no holder") };
    assert_eq!(holder.lock.map(|lock| (lock.owner, lock.start, lock.end)), Some((5, 0, 9)));
    // From then on the region gives them, to whoever asks first.
    assert!(!hold(&ours, one).await && !hold(&theirs, one).await);
    let locked = theirs.change(lock(one, 5, (10, 10))).await.unwrap();
    assert_eq!(state(&locked), Some(LockState::Held));
}

/// A file's locks are for one session that has it open alone, and whom nobody waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_are_given_to_who_is_alone_with_the_file() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let (ours, theirs) = (cluster.client("ours").await, cluster.client("theirs").await);
    ours.open(&[]).await.unwrap();
    theirs.open(&[]).await.unwrap();
    let inode = created(&ours, "f").await;
    theirs.open(&[inode]).await.unwrap();
    assert!(!hold(&ours, inode).await, "another session has it open");
    theirs.open(&[]).await.unwrap();
    assert!(hold(&ours, inode).await && hold(&ours, inode).await);
    // Its own locks are on record as any are; then it doesn't give them by itself.
    let locked = ours.change(lock(inode, 1, (0, 9))).await.unwrap();
    assert_eq!(state(&locked), Some(LockState::Held));
    assert!(!hold(&ours, inode).await);
    let wait = Op::Lock(Lock { inode, lock: Some(spec(2, 0, 0)), wait: 3 });
    assert_eq!(state(&ours.change(wait).await.unwrap()), Some(LockState::Queued));
    assert!(!hold(&ours, inode).await, "somebody waits");
}

/// A next leader that knew nothing of the lapse would take what the session says that it holds for true, though others have got it since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_was_promised_others_get_once_its_lapse_is_on_record() {
    let clock = ManualClock::default();
    let cluster = Cluster::start(1, Arc::new(clock.clone())).await;
    let (ours, theirs) = (cluster.client("ours").await, cluster.client("theirs").await);
    let session = ours.open(&[]).await.unwrap().session;
    let inode = created(&ours, "f").await;
    theirs.open(&[]).await.unwrap();
    clock.advance(Duration::from_secs(6));
    theirs.renew().await.unwrap();
    clock.advance(Duration::from_secs(5));
    let set = SetAttr { inode, mode: Some(0o600), ..SetAttr::default() };
    // A master whose own lease was interrupted waits for the session once more.
    let time_goes_on = async {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            clock.advance(Duration::from_millis(500));
            theirs.renew().await.unwrap();
        }
    };
    let changed = tokio::select! {
        changed = theirs.change(Op::SetAttr(set)) => changed.unwrap(),
        () = time_goes_on => panic!("it waits for ever"),
    };
    assert!(matches!(changed, Reply::Entry(_)), "{changed:?}");
    let tx = cluster.running[0].as_ref().unwrap().master().store.begin();
    let record = load_session(&tx, SessionId(session)).await.unwrap();
    assert!(record.is_some_and(|record| record.lapsed_ns.is_some()));
}

const MOUNTS: usize = 2;
/// Of each mount.
const OWNERS: usize = 2;
const BYTES: usize = 8;

/// What an owner holds: of each byte, and of the file.
#[derive(Clone, Copy, Debug, Default)]
struct Holds {
    bytes: [Option<bool>; BYTES],
    file: Option<bool>,
}

#[derive(Debug, Default)]
struct Model([Holds; MOUNTS * OWNERS]);

impl Model {
    fn others(&self, owner: usize) -> impl Iterator<Item = &Holds> {
        self.0.iter().enumerate().filter(move |(other, _)| *other != owner).map(|(_, holds)| holds)
    }

    fn is_taken(&self, owner: usize, (start, end): (usize, usize), exclusive: bool) -> bool {
        let in_the_way = |held: &Option<bool>| held.is_some_and(|held| held || exclusive);
        self.others(owner).any(|other| other.bytes[start..=end].iter().any(in_the_way))
    }

    /// Whether it is had afterwards.
    fn lock(&mut self, owner: usize, (start, end): (usize, usize), exclusive: bool) -> bool {
        let free = !self.is_taken(owner, (start, end), exclusive);
        if free {
            self.0[owner].bytes[start..=end].fill(Some(exclusive));
        }
        free
    }

    /// The same of flock, which gives up the other level first.
    fn flock(&mut self, owner: usize, exclusive: bool) -> bool {
        let taken = self.others(owner).any(|other| other.file.is_some_and(|held| held || exclusive));
        self.0[owner].file = (!taken).then_some(exclusive);
        !taken
    }
}

async fn connect(cluster: &Cluster, name: &str) -> FileSystem {
    let config = ClientConfig { masters: cluster.addresses(), host: name.into(), ..ClientConfig::default() };
    let network = Arc::new(PlainNetwork::new(identity(Role::Client, name)));
    FileSystem::connect(config, network, Arc::new(OsClock)).await.unwrap()
}

/// Processes of two mounts, one after the other, each with a descriptor of its own.
struct World {
    mounts: Vec<FileSystem>,
    handles: [Option<HandleId>; MOUNTS * OWNERS],
    inode: u64,
    model: Model,
    rng: StdRng,
}

impl World {
    fn request(&mut self, whose: usize, handle: HandleId) -> (LockRequest, (usize, usize)) {
        let (a, b) = (self.rng.random_range(0..BYTES), self.rng.random_range(0..BYTES));
        let (start, end) = (a.min(b), a.max(b));
        let request = LockRequest {
            handle,
            kind: LockKind::Range,
            owner: (whose % OWNERS) as u64,
            start: start as u64,
            end: end as u64,
            exclusive: self.rng.random(),
            pid: 1,
        };
        (request, (start, end))
    }

    async fn close_all(&mut self) {
        for (whose, handle) in self.handles.iter_mut().enumerate() {
            if let Some(handle) = handle.take() {
                self.mounts[whose / OWNERS].release(handle).await.unwrap();
            }
            self.model.0[whose] = Holds::default();
        }
    }

    /// Somebody of the first so many does something.
    async fn step(&mut self, most: usize) {
        let whose = self.rng.random_range(0..most);
        let fs = self.mounts[whose / OWNERS].clone();
        let Some(handle) = self.handles[whose] else {
            let root = Caller { kernel_checked: true, ..Caller::default() };
            let opened = fs.open(&root, self.inode, READ_WRITE).await.unwrap();
            self.handles[whose] = Some(opened.handle);
            return;
        };
        let (request, range) = self.request(whose, handle);
        let file = LockRequest { kind: LockKind::File, ..request };
        match self.rng.random_range(0..10) {
            0 => {
                fs.release(handle).await.unwrap();
                self.handles[whose] = None;
                self.model.0[whose] = Holds::default();
                return;
            }
            1..=4 => {
                let had = self.model.lock(whose, range, request.exclusive);
                assert_eq!(heard(fs.lock(request).await), had, "{whose}: {request:?} {:?}", self.model);
            }
            5 => {
                let had = self.model.flock(whose, file.exclusive);
                assert_eq!(heard(fs.lock(file).await), had, "{whose}: {file:?} {:?}", self.model);
            }
            6 | 7 => {
                fs.unlock(request).await.unwrap();
                self.model.0[whose].bytes[range.0..=range.1].fill(None);
            }
            8 => {
                fs.unlock(file).await.unwrap();
                self.model.0[whose].file = None;
            }
            _ => {
                let taken = self.model.is_taken(whose, range, request.exclusive);
                let found = fs.test_lock(request).await.unwrap();
                assert_eq!(found.is_some(), taken, "{whose}: {request:?} {found:?} {:?}", self.model);
            }
        }
        assert!(!fs.has_lost_locks(handle));
    }
}

fn heard(outcome: Result<(), FsError>) -> bool {
    match outcome {
        Ok(()) => true,
        Err(FsError::Answered(errno)) if errno == EAGAIN as i32 => false,
        Err(error) => panic!("a lock ended with {error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_of_two_mounts_are_as_those_of_one_host_also_while_leaders_are_killed() {
    const STEPS: usize = 1_200;
    const KILL_EVERY: usize = 300;
    // In each round one mount is alone with the file at first.
    const ROUND: usize = 60;
    const ALONE: usize = 45;
    let mut cluster = Cluster::start(3, Arc::new(OsClock)).await;
    cluster.leader().await;
    let mounts = vec![connect(&cluster, "one").await, connect(&cluster, "two").await];
    let root = Caller { kernel_checked: true, ..Caller::default() };
    let made = mounts[0].create(&root, mounts[0].root(), b"f", 0o644, READ_WRITE).await.unwrap();
    mounts[0].release(made.handle).await.unwrap();
    let mut world = World {
        mounts,
        handles: [None; MOUNTS * OWNERS],
        inode: made.attr.inode,
        model: Model::default(),
        rng: StdRng::seed_from_u64(48),
    };
    for step in 0..STEPS {
        if step % ROUND == 0 {
            world.close_all().await;
            // The masters are told of closes a moment later.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let most = if step % ROUND < ALONE { OWNERS } else { MOUNTS * OWNERS };
        let stepped = tokio::time::timeout(2 * common::WAIT, world.step(most)).await;
        assert!(stepped.is_ok(), "step {step} hangs");
        if step % KILL_EVERY == ROUND / 2 {
            let old = cluster.leader().await;
            cluster.kill(old).await;
            cluster.leader().await;
            cluster.run(old).await;
        }
    }
    let status: Vec<_> = world.mounts.iter().map(FileSystem::status).collect();
    let alone: u64 = status.iter().map(|status| status.locks_alone).sum();
    let count = |operation: &str| {
        let of = |status: &mooseng_client::FsStatus| status.latencies.get(operation).map_or(0, |l| l.count);
        status.iter().map(of).sum::<u64>()
    };
    let recorded = count("record_locks");
    println!(
        "{alone} locks were given by mounts, and recorded {recorded} times; the region was asked for {}",
        count("lock")
    );
    assert!(alone > 30 && recorded > 3, "{alone} locks were given by mounts, recorded {recorded} times");
    assert!(status.iter().all(|status| status.lapses == 0));
    for fs in &world.mounts {
        fs.close().await;
    }
}

/// Found by a test: who waits at the region was noted nowhere in the mount, which by what it had been promised before gave the lock to another process of its host
/// while the region gave it to the one that waited.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waited_at_the_region_has_the_lock_alone_on_its_own_host_too() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    cluster.leader().await;
    let fs = connect(&cluster, "one").await;
    let root = Caller { kernel_checked: true, ..Caller::default() };
    let made = fs.create(&root, fs.root(), b"f", 0o644, READ_WRITE).await.unwrap();
    let all = |owner| LockRequest {
        handle: made.handle,
        kind: LockKind::Range,
        owner,
        start: 0,
        end: 9,
        exclusive: true,
        pid: 1,
    };
    let mut given = 0;
    until("a lock that was given here is waited for", async || {
        assert!(heard(fs.lock(all(1)).await));
        let is_alone = fs.status().locks_alone > given;
        given = fs.status().locks_alone;
        let mut wait = fs.lock_waiting(all(2)).unwrap();
        // It comes to wait, or not yet: both are to be right.
        tokio::time::sleep(Duration::from_millis(100)).await;
        fs.unlock(all(1)).await.unwrap();
        let third = heard(fs.lock(all(3)).await);
        let waited = tokio::time::timeout(Duration::from_millis(500), wait.outcome()).await;
        assert!(!(third && waited.is_ok()), "two processes have the lock");
        match waited {
            Ok(outcome) => outcome.unwrap(),
            Err(_) => {
                fs.unlock(all(3)).await.unwrap();
                wait.outcome().await.unwrap();
            }
        }
        fs.unlock(all(2)).await.unwrap();
        // The region isn't asked for a file's locks again at once.
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        is_alone
    })
    .await;
    fs.close().await;
}

fn whole(handle: HandleId, owner: u64) -> LockRequest {
    LockRequest { handle, kind: LockKind::Range, owner, start: 0, end: u64::MAX, exclusive: true, pid: 1 }
}

/// Takes a lock that the mount gives by itself.
async fn lock_alone(fs: &FileSystem, request: LockRequest) {
    until("a lock is given by the mount", async || {
        let given = fs.status().locks_alone;
        assert!(heard(fs.lock(request).await));
        let is_alone = fs.status().locks_alone > given;
        if !is_alone {
            fs.unlock(request).await.unwrap();
            // The region isn't asked for a file's locks again at once.
            tokio::time::sleep(Duration::from_millis(2_100)).await;
        }
        is_alone
    })
    .await;
}

/// Opens a file of the root directory, which it makes if it isn't there. Answers its inode, and the handle.
async fn opened(fs: &FileSystem, name: &str) -> (u64, HandleId) {
    let root = Caller { kernel_checked: true, ..Caller::default() };
    let made = fs.create(&root, fs.root(), name.as_bytes(), 0o644, READ_WRITE).await.unwrap();
    (made.attr.inode, made.handle)
}

/// Who waits does so at the region, whichever mount has given the lock: so a circle over two mounts is found, and who came first is given the lock first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_what_mounts_gave_does_so_in_one_queue() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    cluster.leader().await;
    let (one, two) = (connect(&cluster, "one").await, connect(&cluster, "two").await);
    let ((f, f_of_one), (g, g_of_two)) = (opened(&one, "f").await, opened(&two, "g").await);
    lock_alone(&one, whole(f_of_one, 1)).await;
    lock_alone(&two, whole(g_of_two, 1)).await;
    let ((_, g_of_one), (_, f_of_two)) = (opened(&one, "g").await, opened(&two, "f").await);
    let master = cluster.running[0].as_ref().unwrap().master();
    let wait_for = |inode: u64| master.desk(|desk| desk.lock_waits.ids(InodeId(inode)).len());
    let mut first = one.lock_waiting(whole(g_of_one, 1)).unwrap();
    until("the other mount's process waits", async || wait_for(g) == 1).await;
    let circle = two.lock_waiting(whole(f_of_two, 1)).unwrap().outcome().await;
    assert_eq!(circle, Err(FsError::Answered(EDEADLK)));
    assert_eq!(wait_for(f), 0);
    // Of the mount that had the file's locks for itself, and later.
    let mut second = two.lock_waiting(whole(g_of_two, 2)).unwrap();
    until("a process of the same mount waits, too", async || wait_for(g) == 2).await;
    two.unlock(whole(g_of_two, 1)).await.unwrap();
    first.outcome().await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(500), second.outcome()).await;
    assert!(early.is_err(), "two have it");
    one.unlock(whole(g_of_one, 1)).await.unwrap();
    second.outcome().await.unwrap();
    assert!(!two.has_lost_locks(g_of_two) && !one.has_lost_locks(f_of_one));
    for fs in [&one, &two] {
        fs.close().await;
    }
}

/// The masters' clock stands still, so that no lease ends: who dies is followed by the next process of its mount, which ends its session; and who is unmounted ends
/// it itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mount_gave_by_itself_is_free_once_its_session_is_ended() {
    let cluster = Cluster::start(1, Arc::new(ManualClock::default())).await;
    let dead = cluster.client("one").await;
    let session = dead.open(&[]).await.unwrap();
    let inode = created(&dead, "f").await;
    assert!(hold(&dead, inode).await);
    let (one, two) = (connect(&cluster, "one").await, connect(&cluster, "two").await);
    one.end_session_of_dead(session.session, session.incarnation).await;
    let (found, handle) = opened(&one, "f").await;
    assert_eq!(found, inode);
    lock_alone(&one, whole(handle, 1)).await;
    one.close().await;
    let (_, handle) = opened(&two, "f").await;
    let taken = tokio::time::timeout(common::WAIT, two.lock(whole(handle, 1))).await;
    assert!(heard(taken.expect("the lock of a mount that was unmounted is free")));
    two.close().await;
}
