//! A mount whose region isn't the home: what its region's replica promises, and when that isn't shown any more. The home is a region in memory; the replica
//! is told by the test what it has.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_client::fake::FakeRegion;
use mooseng_client::peers::{Answered, Failure, Peers};
use mooseng_client::{Caller, ClientConfig, FileSystem, FsError, Invalidate};
use mooseng_ports::clock::{Clock, ManualClock};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, DirPage, Entry, FileKind, FsReply};
use mooseng_wire::geo::{Home, NearNews, NearRead, NearRecall, NearRenew, NearRenewed, NearReply, Place};
use mooseng_wire::method::Method;
use mooseng_wire::session::Response;
use mooseng_wire::{InodeId, Role};
use prost::Message;
use tokio::sync::broadcast;

const ROOT: u64 = 1;
const NEAR: &str = "near";
const ENOENT: u32 = 2;

fn me() -> Caller {
    Caller { kernel_checked: true, ..Caller::default() }
}

fn refuse(code: ErrorCode, detail: Bytes) -> Failure {
    Failure::Refused(CallError { code: code.into(), detail, ..CallError::default() })
}

/// The replica, and what the home's answers may show.
struct State {
    /// Which volume it is asked about.
    volume: u16,
    names: BTreeMap<Bytes, Attr>,
    at: u64,
    session: u64,
    recalls: Vec<(u64, Fact)>,
    last: u64,
    /// What the home's next answers may show.
    home_at: u64,
    behind_us: Option<u64>,
    lease_ms: u32,
    /// Reads, renewals, and those that waited for a place.
    reads: u64,
    renewals: u64,
    followed: u64,
}

struct Regions {
    home: FakeRegion,
    near: Mutex<State>,
    notices: broadcast::Sender<(Method, Bytes)>,
}

fn place(version: u64) -> Option<Place> {
    Some(Place { epoch: 1, version })
}

impl Regions {
    fn new() -> Arc<Self> {
        let near = State {
            volume: 0,
            names: BTreeMap::new(),
            at: 10,
            session: 0,
            recalls: Vec::new(),
            last: 0,
            home_at: 10,
            behind_us: None,
            lease_ms: 10_000,
            reads: 0,
            renewals: 0,
            followed: 0,
        };
        Arc::new(Self { home: FakeRegion::new(), near: Mutex::new(near), notices: broadcast::channel(100).0 })
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.near.lock().unwrap())
    }

    /// The replica is at that place, where these names stand for these inodes or for none.
    fn applies(&self, at: u64, names: &[(&'static str, u64)]) {
        self.with(|s| {
            s.at = at;
            for (name, inode) in names {
                let name = Bytes::from_static(name.as_bytes());
                let before = s.names.get(&name).map(|attr| attr.inode);
                let kind = FileKind::Regular.into();
                let attr = Attr {
                    inode: *inode,
                    kind,
                    nlink: 1,
                    ctime_ns: at as i64,
                    no_acls: true,
                    ..Attr::default()
                };
                match inode {
                    0 => drop(s.names.remove(&name)),
                    _ => drop(s.names.insert(name.clone(), attr)),
                }
                let inodes = before.into_iter().chain([*inode]).filter(|inode| *inode != 0);
                let facts = inodes.map(|inode| Fact::Inode(InodeId(inode)));
                for fact in facts.chain([Fact::Entry(InodeId(ROOT), name)]) {
                    s.last += 1;
                    s.recalls.push((s.last, fact));
                }
            }
        });
    }

    /// Says so by itself.
    fn tells(&self) {
        let news = self.with(|s| s.news(0));
        self.notices.send((Method::NearNotice, news.encode_to_vec().into())).unwrap();
    }

    fn replica(&self, method: Method, body: Bytes) -> Result<Bytes, Failure> {
        self.with(|s| match method {
            Method::OpenSession => {
                let home = Home { region: "home".into(), masters: self.home.masters(), epoch: 1 };
                Err(refuse(ErrorCode::NotHome, home.encode_to_vec().into()))
            }
            Method::NearRenew => {
                let renew = NearRenew::decode(body).unwrap();
                s.renewals += 1;
                assert_eq!(renew.volume, u32::from(s.volume));
                if let Some(at) = &renew.at_least {
                    s.followed += 1;
                    if at.version > s.at {
                        return Err(refuse(ErrorCode::Unavailable, Bytes::new()));
                    }
                }
                if renew.session == 0 || renew.session != s.session {
                    (s.session, s.last) = (s.session + 1, 0);
                    s.recalls.clear();
                }
                let news = Some(s.news(renew.have));
                Ok(NearRenewed { session: s.session, lease_ms: s.lease_ms, news }.encode_to_vec().into())
            }
            Method::NearRead => {
                let read = NearRead::decode(body).unwrap();
                assert_eq!(read.volume, u32::from(s.volume));
                // Directories are read ahead, now and then.
                let op = read.op.unwrap().op.unwrap();
                s.reads += u64::from(!matches!(op, Op::ReadDir(_)));
                if read.at_least.is_some_and(|at| at.version > s.at) {
                    return Err(refuse(ErrorCode::Unavailable, Bytes::new()));
                }
                let (reply, facts) = s.look(op);
                let known = read.seat.as_ref().filter(|seat| seat.session == s.session);
                let news = known.map(|seat| s.news(seat.have));
                let granted =
                    if news.is_some() { facts.iter().map(Fact::to_message).collect() } else { vec![] };
                let reply = Some(FsReply { reply: Some(reply) });
                let behind_us = s.behind_us;
                Ok(NearReply { reply, at: place(s.at), news, granted, behind_us }.encode_to_vec().into())
            }
            _ => Err(refuse(ErrorCode::InvalidRequest, Bytes::new())),
        })
    }
}

impl State {
    fn news(&self, have: u64) -> NearNews {
        let fresh = self.recalls.iter().filter(|(number, _)| *number > have);
        let recall =
            |(number, fact): &(u64, Fact)| NearRecall { number: *number, fact: Some(fact.to_message()) };
        NearNews {
            session: self.session,
            upto: self.last,
            recalls: fresh.map(recall).collect(),
            at: place(self.at),
        }
    }

    fn look(&self, op: Op) -> (Reply, Vec<Fact>) {
        match op {
            Op::Lookup(look) => {
                let entry = Fact::Entry(InodeId(look.parent), look.name.clone());
                match self.names.get(&look.name) {
                    Some(attr) => (
                        Reply::Entry(Entry { attr: Some(*attr) }),
                        vec![entry, Fact::Inode(InodeId(attr.inode))],
                    ),
                    None => (Reply::Errno(ENOENT), vec![entry]),
                }
            }
            Op::GetAttr(get) => match self.names.values().find(|attr| attr.inode == get.inode) {
                Some(attr) => {
                    (Reply::Entry(Entry { attr: Some(*attr) }), vec![Fact::Inode(InodeId(get.inode))])
                }
                None => (Reply::Errno(ENOENT), vec![]),
            },
            Op::ReadDir(_) => (Reply::DirPage(DirPage { end: true, ..DirPage::default() }), vec![]),
            _ => (Reply::Errno(libc::EIO as u32), vec![]),
        }
    }
}

#[async_trait]
impl Peers for Regions {
    async fn call(
        &self,
        role: Role,
        address: &str,
        method: Method,
        body: Bytes,
        bulk: Bytes,
        timeout: Duration,
    ) -> Result<Answered, Failure> {
        if address == NEAR {
            tokio::task::yield_now().await;
            return self.replica(method, body).map(|body| Answered { body, bulk: Bytes::new() });
        }
        let answered = self.home.call(role, address, method, body, bulk, timeout).await?;
        if !matches!(method, Method::FsRead | Method::FsChange) {
            return Ok(answered);
        }
        let mut response = Response::decode(answered.body).unwrap();
        (response.log_epoch, response.log_version) = (1, self.with(|s| s.home_at));
        Ok(Answered { body: response.encode_to_vec().into(), bulk: answered.bulk })
    }

    fn notices(&self, _: Role, address: &str) -> Option<broadcast::Receiver<(Method, Bytes)>> {
        (address == NEAR).then(|| self.notices.subscribe())
    }
}

/// What the kernel was told to forget.
#[derive(Default)]
struct Kernel(Mutex<Vec<String>>);

impl Kernel {
    fn take(&self) -> Vec<String> {
        let mut told = std::mem::take(&mut *self.0.lock().unwrap());
        told.sort();
        told
    }

    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

#[async_trait]
impl Invalidate for Kernel {
    async fn entry(&self, _: u64, name: &Bytes) {
        self.note(format!("entry {}", String::from_utf8_lossy(name)));
    }
    async fn inode(&self, inode: u64) {
        self.note(format!("inode {inode}"));
    }
    async fn directory(&self, directory: u64) {
        self.note(format!("directory {directory}"));
    }
    async fn everything(&self) {
        self.note("everything".into());
    }
    async fn entries(&self) {
        self.note("entries".into());
    }
}

struct Rig {
    regions: Arc<Regions>,
    fs: FileSystem,
    kernel: Arc<Kernel>,
    clock: Arc<ManualClock>,
}

impl Rig {
    async fn start(strong: bool) -> Self {
        Self::of(Regions::new(), ClientConfig { strong, ..ClientConfig::default() }).await
    }

    async fn of(regions: Arc<Regions>, config: ClientConfig) -> Self {
        let config = ClientConfig { masters: vec![NEAR.into()], ..config };
        let clock = Arc::new(ManualClock::default());
        let fs = FileSystem::connect_through(config, regions.clone(), clock.clone() as Arc<dyn Clock>);
        let fs = fs.await.unwrap();
        let kernel = Arc::new(Kernel::default());
        fs.show_through(kernel.clone());
        Self { regions, fs, kernel, clock }
    }

    /// Its session with the replica's leader is open.
    async fn promised() -> Self {
        let rig = Self::start(false).await;
        // Whom to ask is known once somebody has answered.
        assert_eq!(rig.find("first").await, None);
        rig.until(|rig| rig.fs.status().near_promises).await;
        rig.kernel.take();
        rig
    }

    async fn until(&self, done: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if done(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("in vain");
    }

    /// A stat by name, of which a kernel is told. Answers when the inode changed.
    async fn find(&self, name: &str) -> Option<i64> {
        let found = self.fs.find(&me(), ROOT, name.as_bytes()).await.unwrap();
        self.fs.validity(found.as_ref(), Some((ROOT, name.as_bytes())));
        found.map(|attr| attr.ctime_ns)
    }

    fn reads(&self) -> u64 {
        self.regions.with(|s| s.reads)
    }

    /// The home answers something that may show the volume so far.
    async fn hears_of(&self, at: u64) {
        self.regions.with(|s| s.home_at = at);
        self.fs.statfs(&me(), ROOT).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_replica_promises_isnt_asked_again_until_it_is_taken_back() {
    let rig = Rig::promised().await;
    rig.regions.applies(11, &[("f", 7), ("g", 8)]);
    let before = rig.reads();
    for _ in 0..5 {
        assert_eq!(
            (rig.find("f").await, rig.find("g").await, rig.find("h").await),
            (Some(11), Some(11), None)
        );
    }
    assert_eq!(rig.reads(), before + 3);
    let attr = rig.fs.known_attr(7).unwrap();
    let validity = rig.fs.validity(Some(&attr), Some((ROOT, b"f")));
    assert!(
        validity.attr > Duration::from_secs(5) && validity.attr < Duration::from_secs(10),
        "{validity:?}"
    );
    assert!(rig.fs.hold(7).is_some_and(|hold| hold > 1 << 62));

    rig.kernel.take();
    // By a notice; a second one of the same does nothing.
    rig.regions.applies(12, &[("f", 9), ("h", 10)]);
    rig.regions.tells();
    rig.until(|rig| rig.fs.known_attr(7).is_none()).await;
    rig.regions.tells();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let told = rig.kernel.take();
    for what in ["entry f", "entry h", "inode 7"] {
        assert_eq!(told.iter().filter(|told| *told == what).count(), 1, "{what} of {told:?}");
    }
    assert!(!told.contains(&"entry g".to_owned()));
    let before = rig.reads();
    assert_eq!(
        (rig.find("f").await, rig.find("g").await, rig.find("h").await),
        (Some(12), Some(11), Some(12))
    );
    assert_eq!(rig.reads(), before + 2, "the other one is promised still");

    // With an answer about something else, before it.
    rig.regions.applies(13, &[("g", 0)]);
    assert_eq!(rig.find("x").await, None);
    assert!(rig.kernel.take().contains(&"entry g".to_owned()));
    assert_eq!(rig.find("g").await, None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_the_home_hides_what_was_promised_before_it() {
    let rig = Rig::promised().await;
    rig.regions.applies(11, &[("f", 7)]);
    assert_eq!((rig.find("f").await, rig.find("n").await), (Some(11), None));
    rig.kernel.take();
    rig.hears_of(11).await;
    assert_eq!(rig.kernel.take(), Vec::<String>::new(), "nothing is shown that the replica doesn't have");
    rig.hears_of(12).await;
    assert_eq!(rig.kernel.take(), ["entries", "inode 7"], "the kernel shows nothing of before");
    assert!(rig.fs.known_attr(7).is_none() && rig.fs.known_entry(ROOT, b"n").is_none());
    assert!(rig.fs.validity(None, Some((ROOT, b"n"))).entry.is_zero() && rig.fs.hold(7).is_none());
    // The replica follows. What wasn't touched is promised still.
    rig.regions.applies(12, &[("n", 8)]);
    let before = rig.reads();
    assert_eq!(rig.find("n").await, Some(12));
    assert_eq!(rig.find("f").await, Some(11));
    assert_eq!(rig.reads(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn where_a_kernel_knows_much_the_replica_is_waited_for_a_little() {
    let rig = Rig::promised().await;
    let names: Vec<&'static str> = (0..100).map(|n| &*Box::leak(format!("f{n}").into_boxed_str())).collect();
    let files: Vec<(&'static str, u64)> =
        names.iter().zip(100..).map(|(name, inode)| (*name, inode)).collect();
    rig.regions.applies(11, &files);
    for name in &names {
        assert_eq!(rig.find(name).await, Some(11));
    }
    rig.kernel.take();
    rig.regions.applies(12, &[]);
    rig.hears_of(12).await;
    assert_eq!((rig.kernel.take(), rig.regions.with(|s| s.followed)), (vec![], 1));
    let before = rig.reads();
    assert_eq!((rig.find("f7").await, rig.reads()), (Some(11), before));
    // It doesn't come.
    rig.hears_of(13).await;
    assert_eq!(rig.kernel.take(), ["everything"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_promised_ends_with_the_session() {
    let rig = Rig::promised().await;
    rig.regions.applies(11, &[("f", 7)]);
    assert_eq!(rig.find("f").await, Some(11));
    rig.kernel.take();
    // Another leader, which knows nobody: the next answer says so.
    rig.regions.with(|s| {
        s.session += 1;
        s.last = 0;
        s.recalls.clear();
    });
    assert_eq!(rig.find("n").await, None);
    assert_eq!(rig.kernel.take(), ["everything"], "before it is answered");
    assert!(rig.fs.known_attr(7).is_none());
    rig.until(|rig| rig.fs.status().near_promises).await;
    assert_eq!((rig.find("f").await, rig.fs.known_attr(7).is_some()), (Some(11), true));

    // Its lease runs out, and with it what anybody shows.
    rig.clock.advance(Duration::from_secs(11));
    assert!(rig.fs.known_attr(7).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_file_tells_how_old_what_is_read_of_it_may_be() {
    const NAME: &[u8] = b"mooseng.staleness";
    let rig = Rig::promised().await;
    rig.regions.applies(11, &[("f", 7)]);
    rig.find("f").await;
    // What is promised still isn't younger than the replica: it is asked each time.
    assert!(matches!(rig.fs.getxattr(&me(), 7, NAME).await, Err(FsError::Answered(libc::ENODATA))));
    rig.regions.with(|s| s.behind_us = Some(61_700));
    assert_eq!(rig.fs.getxattr(&me(), 7, NAME).await.unwrap(), "0.062");
    assert!(matches!(rig.fs.getxattr(&me(), 9, NAME).await, Err(FsError::Answered(libc::ENOENT))));
    assert!(rig.fs.setxattr(&me(), 7, NAME, b"0", false, false).await.is_err());
    // The replica hasn't what was seen: the home answers.
    rig.hears_of(12).await;
    assert_eq!(rig.fs.getxattr(&me(), ROOT, NAME).await.unwrap(), "0.000");
    let strong = Rig::start(true).await;
    strong.regions.with(|s| s.behind_us = Some(61_700));
    assert_eq!(strong.fs.getxattr(&me(), ROOT, NAME).await.unwrap(), "0.000");
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_had_alone_far_from_the_home_too() {
    let regions = Regions::new();
    regions.home.with(|s| (s.exclusive, s.alone) = (true, true));
    let rig = Rig::of(regions, ClientConfig { delegate: true, ..ClientConfig::default() }).await;
    assert_eq!(rig.find("first").await, None);
    rig.until(|rig| rig.fs.status().near_promises).await;
    let directory = rig.fs.mkdir(&me(), ROOT, b"d", 0o755).await.unwrap().inode;
    let executed = || rig.regions.home.with(|s| s.executed);
    let (before, reads) = (executed(), rig.reads());
    let mut made = Vec::new();
    for n in 0..20 {
        let (name, how) = (format!("f{n}"), libc::O_RDWR | libc::O_EXCL);
        let file = rig.fs.create(&me(), directory, name.as_bytes(), 0o644, how).await.unwrap();
        rig.fs.release(file.handle).await.unwrap();
        made.push(file.attr.inode);
    }
    assert_eq!(executed(), before, "nothing was asked for");
    assert_eq!(rig.fs.lookup(&me(), directory, b"f7").await.unwrap().inode, made[7]);
    assert_eq!(rig.fs.find(&me(), directory, b"nothing").await.unwrap(), None);
    assert_eq!(rig.reads(), reads, "nor the replica, which knows nothing of it");
    // Elsewhere it is asked, and nothing must be told before.
    rig.regions.applies(11, &[("other", 7), ("own", made[3])]);
    assert_eq!(rig.find("other").await, Some(11));
    assert_eq!((executed(), rig.reads()), (before, reads + 1), "without a word to the home");
    // What it says of a file that was made alone is older than what this mount knows: the home is asked.
    assert_eq!(rig.find("own").await, None);
    assert!(executed() > before, "which is told first");
    rig.until(|rig| rig.fs.status().untold == 0).await;
    assert_eq!(rig.fs.lookup(&me(), directory, b"f7").await.unwrap().inode, made[7]);
}

#[tokio::test(start_paused = true)]
async fn a_strong_mount_asks_the_home_alone() {
    let rig = Rig::start(true).await;
    let made = rig.fs.create(&me(), ROOT, b"f", 0o644, libc::O_RDWR).await.unwrap();
    assert_eq!(rig.fs.lookup(&me(), ROOT, b"f").await.unwrap().inode, made.attr.inode);
    assert!(matches!(rig.fs.lookup(&me(), ROOT, b"g").await, Err(FsError::Answered(libc::ENOENT))));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(rig.regions.with(|s| (s.reads, s.renewals)), (0, 0));
    assert!(!rig.fs.status().near_promises);
}

#[tokio::test(start_paused = true)]
async fn the_replica_of_another_volume_is_asked_about_that_one() {
    let regions = Regions::new();
    let root = regions.home.make_volume(7, "m1");
    // Sessions carry the volume, as its inodes do.
    regions.with(|s| (s.volume, s.session) = (7, 7 << 48));
    let rig = Rig::of(regions, ClientConfig { volume: 7, ..ClientConfig::default() }).await;
    assert_eq!(rig.fs.find(&me(), root, b"first").await.unwrap(), None);
    rig.until(|rig| rig.fs.status().near_promises).await;
    rig.regions.applies(11, &[("f", root + 100)]);
    let before = rig.reads();
    for _ in 0..3 {
        let found = rig.fs.find(&me(), root, b"f").await.unwrap();
        assert_eq!(found.map(|attr| attr.inode), Some(root + 100));
    }
    assert_eq!(rig.reads(), before + 1);
}

/// A master of an earlier release answers for the root, whatever it is asked: what it promises isn't the volume's.
#[tokio::test(start_paused = true)]
async fn another_volume_isnt_promised_by_a_session_of_the_root() {
    let regions = Regions::new();
    let root = regions.home.make_volume(7, "m1");
    regions.with(|s| s.volume = 7);
    let rig = Rig::of(regions, ClientConfig { volume: 7, ..ClientConfig::default() }).await;
    rig.regions.applies(11, &[("f", root + 100)]);
    for _ in 0..5 {
        assert!(rig.fs.find(&me(), root, b"f").await.unwrap().is_some());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(!rig.fs.status().near_promises);
    assert_eq!(rig.regions.with(|s| s.renewals), 1, "it isn't tried again soon");
}
