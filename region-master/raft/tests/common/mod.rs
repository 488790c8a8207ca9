//! Three masters in one process: real Raft, log and store over simulated disks, and sockets on loopback.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_embedded::base::{BasePin, Replacement};
use mooseng_embedded::{
    Base, BaseError, BasePosition, Embedded, EmbeddedTransaction, FjallBase, MemoryBase, Options,
};
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::Disk;
use mooseng_ports::disk::os::OsDisk;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_raft::{Member, RaftConfig, RaftError, RaftNode, Timings};
use mooseng_store::conformance::Harness;
use mooseng_store::mvcc::{Change, Page};
use mooseng_store::{KeyRange, RangeLimit, Store, Transaction};
use mooseng_transport::{
    Answer, Blocking, Incoming, Limits, Network, PlainNetwork, Service, Services, call_error, serve,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::method::Method;
use mooseng_wire::raft as wire;
use mooseng_wire::{Identity, Role};
use tokio_util::sync::CancellationToken;

/// A base that takes its time to put an installed state in place, so that whoever doesn't wait for it is found out.
struct SlowInstall(MemoryBase);

struct Slow(Box<dyn Replacement>);

impl Base for SlowInstall {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, BaseError> {
        self.0.get(key)
    }
    fn range(&self, range: &KeyRange, limit: RangeLimit) -> Result<Page, BaseError> {
        self.0.range(range, limit)
    }
    fn write(&self, changes: &[Change], position: &BasePosition) -> Result<(), BaseError> {
        self.0.write(changes, position)
    }
    fn flush(&self) -> Result<(), BaseError> {
        self.0.flush()
    }
    fn position(&self) -> BasePosition {
        self.0.position()
    }
    fn pin(&self) -> Result<Box<dyn BasePin>, BaseError> {
        self.0.pin()
    }
    fn replace(&self) -> Result<Box<dyn Replacement>, BaseError> {
        Ok(Box::new(Slow(self.0.replace()?)))
    }
}

impl Replacement for Slow {
    fn put(&mut self, pairs: Vec<(Bytes, Bytes)>) -> Result<(), BaseError> {
        self.0.put(pairs)
    }
    fn finish(self: Box<Self>, position: &BasePosition) -> Result<(), BaseError> {
        std::thread::sleep(Duration::from_millis(50));
        self.0.finish(position)
    }
}

/// What a slow machine may take for anything: whoever waits longer has waited in vain.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long entries are kept back that a commit doesn't need a follower for. Machines with much else to do are slow, too.
pub const DEFER: Duration = Duration::from_millis(25);

/// A running master.
#[derive(Clone)]
pub struct Master {
    pub raft: RaftNode,
    pub embedded: Embedded,
    stop: CancellationToken,
}

/// One that may be down.
pub struct Slot {
    pub id: u64,
    pub disk: SimDisk,
    /// Where its log is, if not on `disk`.
    pub log_disk: Option<SimDisk>,
    /// The directory of a master that works on real files: its log, and fjall.
    pub files: Option<Arc<tempfile::TempDir>>,
    pub address: String,
    /// None while it is down.
    pub running: Option<Master>,
}

type Port = Arc<Mutex<Option<RaftNode>>>;

/// Pairs of masters, from and to, between which nothing gets through.
pub type Cuts = Arc<Mutex<BTreeSet<(String, String)>>>;

/// Masters that no append reaches.
pub type Deaf = Arc<Mutex<BTreeSet<u64>>>;

/// How many appends with entries came to each master.
pub type Appends = Arc<Mutex<BTreeMap<u64, usize>>>;

struct Door {
    port: Port,
    id: u64,
    cuts: Cuts,
    deaf: Deaf,
    appends: Appends,
}

#[async_trait]
impl Service for Door {
    async fn call(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let pair = (incoming.peer.identity.name.clone(), format!("m{}", self.id));
        let deaf = incoming.method == Method::RaftAppend && self.deaf.lock().unwrap().contains(&self.id);
        if deaf || self.cuts.lock().unwrap().contains(&pair) {
            std::future::pending::<()>().await;
        }
        if incoming.method == Method::RaftAppend {
            let append: wire::AppendEntries = incoming.decode()?;
            let counted = usize::from(!append.entries.is_empty());
            *self.appends.lock().unwrap().entry(self.id).or_default() += counted;
        }
        let raft = self.port.lock().unwrap().clone();
        match raft {
            Some(raft) => raft.handle(incoming).await,
            None => Err(call_error(ErrorCode::Unavailable, "starting")),
        }
    }
}

/// The group. Clones share it.
#[derive(Clone)]
pub struct Group {
    pub slots: Arc<RwLock<Vec<Slot>>>,
    pub entries_between_snapshots: u64,
    pub cuts: Cuts,
    pub deaf: Deaf,
    pub appends: Appends,
    /// Where their work runs that blocks, from their next start on.
    pub blocking: Blocking,
}

pub fn network(id: u64) -> PlainNetwork {
    PlainNetwork::new(Identity {
        cluster: "t".into(),
        region: "r".into(),
        role: Role::Master,
        name: format!("m{id}"),
    })
}

impl Group {
    /// `n` masters, the first of which begins the group.
    pub async fn new(n: u64) -> Self {
        Self::with(n, 1_000_000).await
    }

    pub async fn with(n: u64, entries_between_snapshots: u64) -> Self {
        Self::made(n, entries_between_snapshots, false).await
    }

    /// As daemons run: logs and stores are files, the store is fjall. Such masters can't be started again in one process.
    pub async fn on_files(n: u64, entries_between_snapshots: u64) -> Self {
        Self::made(n, entries_between_snapshots, true).await
    }

    async fn made(n: u64, entries_between_snapshots: u64, on_files: bool) -> Self {
        let group = Self::unmade(n, entries_between_snapshots, on_files).await;
        group.master(1).raft.initialize(group.members()).await.unwrap();
        group.leader().await;
        group
    }

    /// Masters without a group as yet.
    pub async fn unmade(n: u64, entries_between_snapshots: u64, on_files: bool) -> Self {
        Self::unmade_over(n, entries_between_snapshots, on_files, Blocking::Inline).await
    }

    /// With threads of its own for what blocks, as daemons run.
    pub async fn with_threads(n: u64) -> Self {
        let group = Self::unmade_over(n, 1_000_000, false, Blocking::Pool).await;
        group.master(1).raft.initialize(group.members()).await.unwrap();
        group.leader().await;
        group
    }

    async fn unmade_over(n: u64, entries_between_snapshots: u64, on_files: bool, blocking: Blocking) -> Self {
        let mut slots = Vec::new();
        for id in 1..=n {
            // The port is taken once to learn a free one, and again by whoever starts there.
            let address = network(id).listen("127.0.0.1:0").await.unwrap().local_address();
            let files = on_files.then(|| Arc::new(tempfile::tempdir().unwrap()));
            slots.push(Slot { id, disk: SimDisk::default(), log_disk: None, files, address, running: None });
        }
        let slots = Arc::new(RwLock::new(slots));
        let (cuts, deaf, appends) = (Cuts::default(), Deaf::default(), Appends::default());
        let group = Self { slots, entries_between_snapshots, cuts, deaf, appends, blocking };
        for id in 1..=n {
            group.start(id).await;
        }
        group
    }

    pub fn members(&self) -> BTreeMap<u64, Member> {
        self.slots.read().unwrap().iter().map(|s| (s.id, self.member(s))).collect()
    }

    fn member(&self, slot: &Slot) -> Member {
        Member { name: format!("m{}", slot.id), address: slot.address.clone(), zone: format!("z{}", slot.id) }
    }

    pub fn master(&self, id: u64) -> Master {
        self.slots.read().unwrap()[id as usize - 1].running.clone().unwrap()
    }

    /// Adds a master that is no member yet.
    pub async fn add(&self) -> (u64, Member) {
        let id = self.slots.read().unwrap().len() as u64 + 1;
        let address = network(id).listen("127.0.0.1:0").await.unwrap().local_address();
        let slot = Slot { id, disk: SimDisk::default(), log_disk: None, files: None, address, running: None };
        let member = self.member(&slot);
        self.slots.write().unwrap().push(slot);
        self.start(id).await;
        (id, member)
    }

    pub async fn start(&self, id: u64) {
        self.try_start(id).await.unwrap();
    }

    pub async fn try_start(&self, id: u64) -> Result<(), RaftError> {
        let (disk, log_disk, files, address) = {
            let slots = self.slots.read().unwrap();
            let slot = &slots[id as usize - 1];
            let log_disk = slot.log_disk.clone().unwrap_or(slot.disk.clone());
            (slot.disk.clone(), log_disk, slot.files.clone(), slot.address.clone())
        };
        let (log_disk, log_dir, base): (Arc<dyn Disk>, PathBuf, Arc<dyn Base>) = match files {
            Some(files) => {
                let base = FjallBase::open(&files.path().join("store")).unwrap();
                (Arc::new(OsDisk), files.path().join("raft"), Arc::new(base))
            }
            None => {
                let base = MemoryBase::on_disk(Arc::new(disk), Path::new("/store")).unwrap();
                (Arc::new(log_disk), PathBuf::from("/raft"), Arc::new(SlowInstall(base)))
            }
        };
        let embedded = Embedded::open(base, Options::default()).unwrap();
        let listener = loop {
            match network(id).listen(&address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let port = Port::default();
        let stop = CancellationToken::new();
        let services = Services {
            stream: Arc::new(Door {
                port: port.clone(),
                id,
                cuts: self.cuts.clone(),
                deaf: self.deaf.clone(),
                appends: self.appends.clone(),
            }),
            grpc: None,
            allow: |_, _| Ok(()),
        };
        tokio::spawn(serve(listener, services, Limits::default(), stop.clone()));
        let mut config = RaftConfig::new(id, &format!("m{id}"), &address, &format!("z{id}"), log_dir);
        config.timings = Timings {
            heartbeat: Duration::from_millis(60),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(500),
        };
        config.entries_between_snapshots = self.entries_between_snapshots;
        config.defer = DEFER;
        config.entries_kept = 20;
        config.wal.segment_bytes = 256 << 10;
        let raft = RaftNode::start(
            config,
            log_disk,
            self.blocking,
            Arc::new(OsClock),
            Arc::new(network(id)),
            embedded.clone(),
        );
        let raft = raft.await.inspect_err(|_| stop.cancel())?;
        *port.lock().unwrap() = Some(raft.clone());
        self.slots.write().unwrap()[id as usize - 1].running = Some(Master { raft, embedded, stop });
        Ok(())
    }

    /// Ends a master as kill -9 does; with `power` its disk loses what wasn't flushed, too.
    pub async fn kill(&self, id: u64, power: bool) {
        let (master, disk) = {
            let mut slots = self.slots.write().unwrap();
            (slots[id as usize - 1].running.take().unwrap(), slots[id as usize - 1].disk.clone())
        };
        master.stop.cancel();
        if power {
            disk.crash(|_| 0);
        }
        master.raft.shutdown().await;
    }

    /// Cuts a master off from all others, or ends that.
    pub fn cut(&self, id: u64, off: bool) {
        let others: Vec<u64> =
            self.slots.read().unwrap().iter().map(|s| s.id).filter(|other| *other != id).collect();
        let mut cuts = self.cuts.lock().unwrap();
        for other in others {
            for (from, to) in [(id, other), (other, id)] {
                let pair = (format!("m{from}"), format!("m{to}"));
                if off {
                    cuts.insert(pair)
                } else {
                    cuts.remove(&pair)
                };
            }
        }
    }

    pub fn leader_now(&self) -> Option<u64> {
        let slots = self.slots.read().unwrap();
        let leading = |s: &&Slot| s.running.as_ref().is_some_and(|m| m.raft.is_leading());
        let leaders: Vec<u64> = slots.iter().filter(leading).map(|s| s.id).collect();
        assert!(leaders.len() <= 1, "two masters hold the lease: {leaders:?}");
        leaders.first().copied()
    }

    pub async fn leader(&self) -> u64 {
        for _ in 0..3000 {
            if let Some(id) = self.leader_now() {
                return id;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no leader within 30 s");
    }

    /// Waits until every running master has applied what the leader has, and compares their states.
    pub async fn converge(&self) {
        let leader = self.leader().await;
        let ids: Vec<u64> = {
            let slots = self.slots.read().unwrap();
            slots.iter().filter(|s| s.running.is_some()).map(|s| s.id).collect()
        };
        self.converged(leader, &ids).await;
    }

    /// The same of these masters alone.
    pub async fn converge_among(&self, ids: &[u64]) {
        self.converged(self.leader().await, ids).await;
    }

    async fn converged(&self, leader: u64, ids: &[u64]) {
        let target = self.master(leader).embedded.position().index;
        for id in ids {
            for _ in 0..3000 {
                if self.master(*id).embedded.position().index >= target {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let digest = |id: &u64| self.master(*id).embedded.state_digest().unwrap();
        let digests: Vec<u64> = ids.iter().map(digest).collect();
        assert!(digests.windows(2).all(|w| w[0] == w[1]), "masters differ: {ids:?} {digests:x?}");
    }

    pub async fn put(&self, key: &str, value: &str) {
        let putting = async {
            loop {
                let store = self.begin_somewhere();
                store.set(key.as_bytes(), value.as_bytes());
                match store.commit().await {
                    Ok(_) => return,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(WAIT_MAX, putting).await.expect("nothing could be committed");
    }

    /// Looks each millisecond until it is so, and each time that no two masters hold the lease.
    pub async fn until(&self, what: &str, so: impl Fn() -> bool) {
        let looking = async {
            while !so() {
                self.leader_now();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(WAIT_MAX, looking).await.is_ok(), "{what}: not within {WAIT_MAX:?}");
    }

    fn begin_somewhere(&self) -> EmbeddedTransaction {
        let leader = self.leader_now();
        let slots = self.slots.read().unwrap();
        let running = slots.iter().find(|s| s.running.is_some() && leader.is_none_or(|l| l == s.id));
        running.unwrap().running.as_ref().unwrap().embedded.begin()
    }
}

impl Store for Group {
    type Transaction = EmbeddedTransaction;
    fn begin(&self) -> EmbeddedTransaction {
        self.begin_somewhere()
    }
}

impl Harness for Group {
    type Store = Self;
    fn store(&self) -> Self {
        self.clone()
    }
    async fn expire(&self) {
        let leader = self.leader().await;
        self.master(leader).embedded.expire().unwrap();
    }
}
