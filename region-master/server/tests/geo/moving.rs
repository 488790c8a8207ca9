//! Planned moves of the home: nothing that was acknowledged is lost, there is one home, and whatever dies in the midst somebody serves in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mooseng_master::geo::{ROOT_VOLUME, moving, verify};
use mooseng_master::master::Master;
use mooseng_transport::{CallFailure, Link, LinkOptions, PlainNetwork};
use mooseng_wire::admin::{MoveHomeReply, MoveHomeRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Lock, LockKind, LockSpec, LockState, Lookup, Mkdir, Unlock};
use mooseng_wire::global::SetVolume;
use mooseng_wire::global::change::Change;
use mooseng_wire::method::Method;
use mooseng_wire::session::{OpenSession, Renew, Renewed, Request, Response, SessionOpened};
use mooseng_wire::{Epoch, InodeId, Role, VolumeId};
use tokio::time::Instant;

use super::common::regions::{Regions, identity_of};
use super::common::{unlapsed, until};
use super::{addresses, caught_up, lookup, serves_as_home, serving};

const ONE: Duration = Duration::from_secs(2);

/// A mount that follows the home wherever it is.
pub(super) struct Mount {
    /// Of which it is a session.
    pub volume: VolumeId,
    links: Vec<Link>,
    at: usize,
    pub session: SessionOpened,
    pub number: u64,
    order: u64,
    /// What it says that it has.
    pub locks: Vec<Lock>,
    /// What the last other home didn't give it of that; none if it gave nothing.
    pub lost: Option<Vec<u32>>,
}

impl Mount {
    pub fn new(regions: &Regions, name: &str, of: &[&str]) -> Self {
        let network = Arc::new(PlainNetwork::new(identity_of(of[0], Role::Client, name)));
        let all = of.iter().flat_map(|region| addresses(regions, region));
        let links =
            all.map(|a| Link::new(network.clone(), a, Role::Master, LinkOptions::default())).collect();
        Self {
            volume: ROOT_VOLUME,
            links,
            at: 0,
            session: SessionOpened::default(),
            number: 0,
            order: 0,
            locks: Vec::new(),
            lost: None,
        }
    }

    pub async fn open(&mut self) -> Result<(), CallFailure> {
        self.order += 1;
        let known = self.session.clone();
        let open = OpenSession {
            session: known.session,
            incarnation: known.incarnation,
            custody_epoch: known.custody_epoch,
            founding: known.founding,
            order: self.order,
            host: "host".into(),
            mount_path: "/mnt".into(),
            locks_home: known.home_epoch,
            locks: self.locks.clone(),
            volume: self.volume.0.into(),
            ..OpenSession::default()
        };
        let link = &self.links[self.at];
        self.session = link.request(Method::OpenSession, &open, ONE).await?;
        if self.session.home_epoch != open.locks_home {
            self.lost = self.session.locks_reclaimed.then(|| self.session.locks_lost.clone());
        }
        self.renew().await
    }

    pub async fn renew(&self) -> Result<(), CallFailure> {
        let renew = Renew {
            session: self.session.session,
            incarnation: self.session.incarnation,
            custody_epoch: self.session.custody_epoch,
            founding: self.session.founding.clone(),
            ..Renew::default()
        };
        self.links[self.at].request::<_, Renewed>(Method::Renew, &renew, ONE).await.map(drop)
    }

    /// Renews its lease. None where that ran out on the way, or the machine is too busy to say.
    pub async fn kept(&self) -> Option<()> {
        match self.renew().await {
            Ok(()) => Some(()),
            Err(CallFailure::Timeout(_)) => None,
            Err(CallFailure::Remote(e))
                if matches!(e.code(), ErrorCode::SessionExpired | ErrorCode::Unavailable) =>
            {
                None
            }
            Err(failure) => panic!("it can't renew its lease: {failure}"),
        }
    }

    /// None where its lease has run out since it was of that incarnation: what it had then isn't its own any more.
    pub async fn lasts(&self, incarnation: u64) -> Option<()> {
        self.kept().await.filter(|()| self.session.incarnation == incarnation)
    }

    /// Waits for something, while its session and other mounts' are kept: their leases are short.
    pub async fn renewing<T>(&self, others: &[&Self], work: impl Future<Output = T>) -> T {
        let keep = async {
            loop {
                for mount in [self].iter().chain(others) {
                    // A home that is about to move refuses.
                    let _ = mount.renew().await;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            done = work => done,
            never = keep => never,
        }
    }

    async fn attempt(&mut self, method: Method, number: u64, op: &Op) -> Result<Response, CallFailure> {
        if self.session.session == 0 {
            self.open().await?;
        }
        self.order += 1;
        let request = Request {
            session: self.session.session,
            incarnation: self.session.incarnation,
            custody_epoch: self.session.custody_epoch,
            number,
            oldest_unanswered: self.number,
            order: self.order,
            op: Some(mooseng_wire::fs::FsRequest { op: Some(op.clone()), caller: lookup("x").caller }),
            ..Request::default()
        };
        self.links[self.at].request(method, &request, ONE).await
    }

    /// Takes its session up wherever its home is, as soon as somebody there answers.
    pub async fn open_until(&mut self) {
        let tried = async {
            while self.open().await.is_err() {
                self.at = (self.at + 1) % self.links.len();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), tried).await.expect("somebody answers")
    }

    /// Tries until there is an answer.
    pub async fn call(&mut self, method: Method, number: u64, op: Op) -> Response {
        let mut unavailable = 0;
        let tried = async {
            loop {
                let failure = match self.attempt(method, number, &op).await {
                    Ok(response) => return response,
                    Err(failure) => failure,
                };
                match failure {
                    // For a second: a home that is cut off from all others says so as long as it is, and another one has begun meanwhile. Mounts look around, too.
                    CallFailure::Remote(e) if e.code() == ErrorCode::Unavailable && unavailable < 100 => {
                        unavailable += 1;
                    }
                    // It is to be taken up there.
                    CallFailure::Remote(e)
                        if matches!(e.code(), ErrorCode::SessionExpired | ErrorCode::StaleEpoch) =>
                    {
                        let _ = self.open().await;
                    }
                    _ => {
                        unavailable = 0;
                        self.at = (self.at + 1) % self.links.len();
                        let _ = self.open().await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), tried).await.expect("somebody answers")
    }

    /// Answers the inode and the epoch of the log that the answer may show.
    pub async fn make(&mut self, name: &str) -> (u64, u64) {
        self.number += 1;
        let root = InodeId::root_of(self.volume).0;
        let op = Op::Mkdir(Mkdir { parent: root, name: name.to_owned().into(), mode: 0o755, alone: false });
        let response = self.call(Method::FsChange, self.number, op).await;
        match response.reply.unwrap().reply.unwrap() {
            Reply::Entry(entry) => (entry.attr.unwrap().inode, response.log_epoch),
            other => panic!("{name}: {other:?}"),
        }
    }

    pub async fn find(&mut self, name: &str) -> Option<u64> {
        let sought = Lookup { parent: InodeId::root_of(self.volume).0, name: name.to_owned().into() };
        match self.call(Method::FsRead, 0, Op::Lookup(sought)).await.reply.unwrap().reply.unwrap() {
            Reply::Entry(entry) => entry.attr.map(|attr| attr.inode),
            _ => None,
        }
    }
}

/// Makes directories until it is told to end. Answers what was acknowledged, under which epochs, and the longest pause between two answers.
async fn work(
    mut mount: Mount,
    name: &str,
    ends: Arc<AtomicBool>,
) -> (Mount, BTreeMap<String, u64>, Vec<u64>, Duration) {
    let (mut made, mut epochs, mut longest) = (BTreeMap::new(), Vec::new(), Duration::ZERO);
    let (mut n, mut last) = (0, Instant::now());
    while !ends.load(Ordering::SeqCst) {
        let directory = format!("{name}-{n}");
        let (inode, epoch) = mount.make(&directory).await;
        if n > 0 {
            longest = longest.max(last.elapsed());
        }
        last = Instant::now();
        made.insert(directory, inode);
        epochs.push(epoch);
        n += 1;
    }
    (mount, made, epochs, longest)
}

async fn order(master: &Arc<Master>, to: &str, plan: bool) -> Result<MoveHomeReply, CallError> {
    let request = MoveHomeRequest { volume: 0, to: to.into(), plan, ..MoveHomeRequest::default() };
    moving::order(master, request, Instant::now() + Duration::from_secs(25)).await
}

async fn equal(regions: &Regions, region: &str) {
    let mut last = String::new();
    for _ in 0..100 {
        let replica = serving(regions, region).unwrap().clone();
        match verify::compare(&replica, ROOT_VOLUME).await {
            Ok(compared) if compared.different.is_empty() => return,
            other => last = format!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("they aren't equal: {last}");
}

async fn moves_there_and_back(geo: bool) {
    let regions = Regions::start(&[("a", 3), ("b", 3), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    if geo {
        let change = SetVolume { volume: 0, epoch: 1, geo: Some(true), ..SetVolume::default() };
        let leader = regions.leader().await;
        let deadline = Instant::now() + Duration::from_secs(10);
        regions.global(leader).change(Change::SetVolume(change), deadline).await.unwrap();
        let set = || {
            serving(&regions, "a")
                .and_then(|m| m.geo.view())
                .map(|view| view.volumes[&ROOT_VOLUME].sync_set.len())
        };
        until("both regions are in the sync set", async || set() == Some(2)).await;
    }
    let ends = Arc::new(AtomicBool::new(false));
    let mount = |name: &str, of: &[&str]| Mount::new(&regions, name, of);
    let one = tokio::spawn(work(mount("one", &["a", "b"]), "one", ends.clone()));
    let two = tokio::spawn(work(mount("two", &["b", "a"]), "two", ends.clone()));
    caught_up_once(&regions).await;
    let home = serving(&regions, "a").unwrap().clone();
    let plan = order(&home, "b", true).await.unwrap();
    assert_eq!(
        (plan.before.as_ref().unwrap().home.as_str(), plan.after.as_ref().unwrap().home.as_str()),
        ("a", "b")
    );
    assert_eq!(home.geo.view().unwrap().volumes[&ROOT_VOLUME].home, "a", "a plan changes nothing");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let moved = order(&home, "b", false).await.unwrap();
    let cut = moved.cut.unwrap();
    assert!(cut.epoch == 1 && cut.version > 0);
    serves_as_home(&regions, "b", 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The old home follows from where it was: it has nothing of its own, and copies nothing anew.
    until("the old home follows", async || {
        serving(&regions, "a")
            .is_some_and(|m| m.geo.replica(ROOT_VOLUME).readable().is_some_and(|at| at.epoch == Epoch(2)))
    })
    .await;
    assert!(!serving(&regions, "a").unwrap().geo.has_salvage(ROOT_VOLUME));
    let back = order(&serving(&regions, "b").unwrap().clone(), "a", false).await.unwrap();
    serves_as_home(&regions, "a", 3).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ends.store(true, Ordering::SeqCst);
    let mut all = BTreeMap::new();
    for worker in [one, two] {
        let (mut mount, made, epochs, longest) = worker.await.unwrap();
        println!(
            "geo {geo}: {} made, longest pause {longest:?}; stopped for {} and {} ms",
            made.len(),
            moved.stopped_ms,
            back.stopped_ms
        );
        assert!(epochs.is_sorted() && epochs.first() == Some(&1) && epochs.last() == Some(&3), "{epochs:?}");
        for (name, inode) in &made {
            assert_eq!(mount.find(name).await, Some(*inode), "{name} was acknowledged");
        }
        all.extend(made.into_values().map(|inode| (inode, ())));
    }
    assert!(all.len() > 20, "each has an inode of its own");
    assert!(!serving(&regions, "b").unwrap().geo.has_salvage(ROOT_VOLUME));
    equal(&regions, "b").await;
    let known = serving(&regions, "a").unwrap().geo.view().unwrap().volumes[&ROOT_VOLUME].clone();
    assert_eq!((known.lost_home, known.sync_set.len()), (None, if geo { 2 } else { 1 }));
}

/// The replica was whole, and the home has heard so.
async fn caught_up_once(regions: &Regions) {
    until("the replica is near", async || {
        serving(regions, "a").is_some_and(|home| {
            let shipped = home.geo.shipped(ROOT_VOLUME);
            shipped.get("b").is_some_and(|b| !b.copying && b.complete.is_some())
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_volumes_home_moves_under_load_and_nothing_is_lost() {
    moves_there_and_back(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_geo_volumes_home_moves_under_load_and_nothing_is_lost() {
    moves_there_and_back(true).await;
}

/// A home that becomes it again would go on with locks that their owners have given up elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_of_an_earlier_time_as_the_home_are_nobodys() {
    unlapsed(locks_are_nobodys).await;
}

async fn locks_are_nobodys() -> Option<()> {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let mut one = Mount::new(&regions, "one", &["a", "b"]);
    let mut two = Mount::new(&regions, "two", &["a", "b"]);
    let (inode, _) = one.make("d").await;
    two.make("e").await;
    let spec = LockSpec {
        kind: LockKind::File.into(),
        owner: 7,
        end: u64::MAX,
        exclusive: true,
        ..LockSpec::default()
    };
    let lock = Op::Lock(Lock { inode, lock: Some(spec), wait: 0 });
    let take = async |mount: &mut Mount| {
        mount.number += 1;
        match mount.call(Method::FsChange, mount.number, lock.clone()).await.reply.unwrap().reply.unwrap() {
            Reply::Locked(locked) => locked.state() == LockState::Held,
            _ => false,
        }
    };
    assert!(take(&mut one).await);
    let both = take(&mut two).await;
    one.kept().await?;
    assert!(!both, "it is the other one's");
    caught_up_once(&regions).await;
    order(&serving(&regions, "a").unwrap().clone(), "b", false).await.unwrap();
    serves_as_home(&regions, "b", 2).await;
    one.number += 1;
    let unlock = Op::Unlock(Unlock { inode, lock: Some(spec_of(&lock)) });
    one.call(Method::FsChange, one.number, unlock).await;
    two.find("d").await;
    until("the old home is near", async || {
        let shipped = serving(&regions, "b").map(|home| home.geo.shipped(ROOT_VOLUME)).unwrap_or_default();
        shipped.get("a").is_some_and(|a| !a.copying && a.complete.is_some())
    })
    .await;
    order(&serving(&regions, "b").unwrap().clone(), "a", false).await.unwrap();
    serves_as_home(&regions, "a", 3).await;
    one.find("d").await;
    assert!(take(&mut two).await, "nobody has it");
    Some(())
}

fn spec_of(op: &Op) -> LockSpec {
    match op {
        Op::Lock(Lock { lock: Some(spec), .. }) => *spec,
        other => panic!("{other:?}"),
    }
}

fn ranged(inode: u64, owner: u64, start: u64, end: u64) -> Lock {
    let spec = LockSpec { kind: LockKind::Range.into(), owner, start, end, exclusive: true, pid: 1 };
    Lock { inode, lock: Some(spec), wait: 0 }
}

/// A new home gives nobody a lock before all have said what they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_go_along_with_the_home() {
    unlapsed(locks_go_along).await;
}

async fn locks_go_along() -> Option<()> {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let mut one = Mount::new(&regions, "one", &["a", "b"]);
    let mut two = Mount::new(&regions, "two", &["a", "b"]);
    let (inode, _) = one.make("d").await;
    two.make("e").await;
    let take = async |mount: &mut Mount, lock: Lock| {
        mount.number += 1;
        let reply = mount.call(Method::FsChange, mount.number, Op::Lock(lock)).await.reply.unwrap();
        match reply.reply.unwrap() {
            Reply::Locked(locked) => locked.state() == LockState::Held,
            _ => false,
        }
    };
    one.locks = vec![ranged(inode, 1, 0, 9), ranged(inode, 1, 20, 29)];
    two.locks = vec![ranged(inode, 1, 10, 19)];
    for mount in [&mut one, &mut two] {
        for lock in mount.locks.clone() {
            assert!(take(mount, lock).await);
        }
    }
    // Each in its first incarnation: what it had before it came back once wasn't its own any more.
    let lives = (1, 1);
    one.renewing(&[&two], caught_up_once(&regions)).await;
    one.lasts(lives.0).await?;
    two.lasts(lives.1).await?;
    let home = serving(&regions, "a").unwrap().clone();
    one.renewing(&[&two], order(&home, "b", false)).await.unwrap();
    serves_as_home(&regions, "b", 2).await;
    // The first asks for what it has not while the other one hasn't come.
    let (asked, there) = (ranged(inode, 2, 15, 25), ranged(inode, 1, 40, 49));
    let first = async { (take(&mut one, asked).await, take(&mut one, there).await) };
    let second = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        two.find("d").await
    };
    let ((taken, beside), found) = tokio::join!(first, second);
    one.lasts(lives.0).await?;
    two.lasts(lives.1).await?;
    assert!(!taken, "both have a part of it: lost {:?}, in {:?}", one.lost, one.session);
    assert!(beside);
    assert_eq!(found, Some(inode));
    for mount in [&one, &two] {
        assert_eq!(mount.lost, Some(vec![]));
    }
    // What a session says that it had before it has changed anything here is old.
    one.number += 1;
    let unlock = Op::Unlock(Unlock { inode, lock: ranged(inode, 1, 0, 9).lock });
    one.call(Method::FsChange, one.number, unlock).await;
    assert!(take(&mut two, ranged(inode, 1, 0, 5)).await);
    let taken = take(&mut two, ranged(inode, 1, 20, 20)).await;
    one.lasts(lives.0).await?;
    two.lasts(lives.1).await?;
    assert!(!taken, "it is the other one's");
    // Nor does anybody get what others have who say so first.
    two.locks = vec![ranged(inode, 1, 0, 5), ranged(inode, 1, 10, 19), ranged(u64::from(u32::MAX), 1, 0, 0)];
    one.locks = vec![ranged(inode, 1, 20, 29), ranged(inode, 1, 40, 49)];
    let near = until("the old home is near", async || {
        let shipped = serving(&regions, "b").map(|home| home.geo.shipped(ROOT_VOLUME)).unwrap_or_default();
        shipped.get("a").is_some_and(|a| !a.copying && a.complete.is_some())
    });
    one.renewing(&[&two], near).await;
    one.lasts(lives.0).await?;
    two.lasts(lives.1).await?;
    let home = serving(&regions, "b").unwrap().clone();
    one.renewing(&[&two], order(&home, "a", false)).await.unwrap();
    serves_as_home(&regions, "a", 3).await;
    tokio::join!(one.find("d"), two.find("d"));
    one.lasts(lives.0).await?;
    two.lasts(lives.1).await?;
    assert_eq!((&two.lost, &one.lost), (&Some(vec![2]), &Some(vec![])), "no such inode");
    let taken = take(&mut two, ranged(inode, 1, 40, 40)).await;
    one.lasts(lives.0).await?;
    assert!(!taken, "it is the other one's");
    assert!(take(&mut one, ranged(inode, 1, 6, 9)).await, "that was given up");
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_doesnt_move_where_it_would_lose_something() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let mut mount = Mount::new(&regions, "c", &["a", "b"]);
    mount.make("before").await;
    caught_up(&regions, "b").await;
    caught_up_once(&regions).await;
    let home = serving(&regions, "a").unwrap().clone();
    let code =
        |outcome: Result<MoveHomeReply, CallError>| outcome.map_err(|e| (e.code(), e.message)).unwrap_err();
    for plan in [true, false] {
        assert_eq!(code(order(&home, "x", plan).await).0, ErrorCode::NotFound);
        let (refused, why) = code(order(&home, "w", plan).await);
        assert!(refused == ErrorCode::InvalidRequest && why.contains("witness"), "{why}");
        let (refused, why) = code(order(&home, "a", plan).await);
        assert!(refused == ErrorCode::InvalidRequest && why.contains("home already"), "{why}");
    }
    let replica = serving(&regions, "b").unwrap().clone();
    assert_eq!(code(order(&replica, "b", false).await).0, ErrorCode::NotHome, "the home's leader is asked");
    regions.cut("b");
    for plan in [true, false] {
        let began = Instant::now();
        let (refused, why) = code(order(&home, "b", plan).await);
        assert!(refused == ErrorCode::InvalidRequest && why.contains("--force"), "{why}");
        assert!(began.elapsed() < Duration::from_secs(20) && !home.geo.is_sealed(ROOT_VOLUME));
    }
    mount.make("after").await;
    regions.heal();
    assert_eq!(home.geo.view().unwrap().volumes[&ROOT_VOLUME].epoch, Epoch(1));
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    CutTarget,
    CutHome,
    KillLeader,
}

/// In the midst of a move something breaks: by itself one region serves in the end, with all that was acknowledged of a `geo` volume.
async fn breaks(trouble: Trouble, after: Duration) {
    let mut regions = Regions::start(&[("a", 3), ("b", 3), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let change = SetVolume { volume: 0, epoch: 1, geo: Some(true), ..SetVolume::default() };
    let leader = regions.leader().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    regions.global(leader).change(Change::SetVolume(change), deadline).await.unwrap();
    let set = || {
        serving(&regions, "a")
            .and_then(|m| m.geo.view())
            .map(|view| view.volumes[&ROOT_VOLUME].sync_set.len())
    };
    until("both regions are in the sync set", async || set() == Some(2)).await;
    caught_up_once(&regions).await;
    let mut mount = Mount::new(&regions, "c", &["a", "b"]);
    let mut made = Vec::new();
    for n in 0..5 {
        made.push((format!("d{n}"), mount.make(&format!("d{n}")).await.0));
    }
    let home = serving(&regions, "a").unwrap().clone();
    let asked = home.clone();
    let moving = tokio::spawn(async move { order(&asked, "b", false).await });
    let sealed = async {
        while !home.geo.is_sealed(ROOT_VOLUME) && !moving.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(8), sealed).await.unwrap();
    tokio::time::sleep(after).await;
    match trouble {
        Trouble::CutTarget => regions.cut("b"),
        Trouble::CutHome => regions.cut("a"),
        Trouble::KillLeader => {
            let leads = |i: &usize| {
                regions.running[*i]
                    .as_ref()
                    .is_some_and(|server| server.is_serving() || server.master().geo.is_sealed(ROOT_VOLUME))
            };
            if let Some(leader) = regions.of("a").into_iter().find(leads) {
                regions.kill(leader).await;
            }
        }
    }
    // Before it is healed.
    let (inode, epoch) = mount.make("between").await;
    made.push(("between".into(), inode));
    println!("{trouble:?} after {after:?}: goes on in epoch {epoch}");
    regions.heal();
    let (inode, _) = mount.make("healed").await;
    made.push(("healed".into(), inode));
    for (name, inode) in made {
        assert_eq!(mount.find(&name).await, Some(inode), "{name} was acknowledged");
    }
    let outcome = moving.await.unwrap().map_err(|e| (e.code(), e.message));
    println!("{trouble:?} after {after:?}: {outcome:?}");
    // One region serves, the other one follows it.
    until("both have the same", async || {
        let home_of = |region| {
            serving(&regions, region)
                .and_then(|m| m.geo.view())
                .map(|view| view.volumes[&ROOT_VOLUME].clone())
        };
        let (Some(by_a), Some(by_b)) = (home_of("a"), home_of("b")) else { return false };
        by_a == by_b && by_a.open && {
            let other = if by_a.home == "a" { "b" } else { "a" };
            let replica = serving(&regions, other).unwrap().clone();
            verify::compare(&replica, ROOT_VOLUME).await.is_ok_and(|compared| compared.different.is_empty())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_cut_off_in_the_midst_loses_nothing() {
    for ms in [0, 8] {
        breaks(Trouble::CutTarget, Duration::from_millis(ms)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_is_cut_off_in_the_midst_loses_nothing() {
    for ms in [0, 8] {
        breaks(Trouble::CutHome, Duration::from_millis(ms)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_in_the_midst_loses_nothing() {
    for ms in [0, 3, 10] {
        breaks(Trouble::KillLeader, Duration::from_millis(ms)).await;
    }
}
