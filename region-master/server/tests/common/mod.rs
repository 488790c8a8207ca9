//! Masters in one process: plain loopback connections, simulated disks, bases in memory.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
#![allow(dead_code, reason = "each test file uses its part")]

pub mod regions;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use mooseng_embedded::MemoryBase;
use mooseng_master::{HouseConfig, MasterConfig, MasterServer, MemberConfig, Ports, RaftConfig, StartError};
use mooseng_ports::clock::{BootTime, Clock, OsClock};
use mooseng_ports::disk::sim::SimDisk;
use mooseng_transport::grpc::registry_client::RegistryClient;
use mooseng_transport::observe::LogConfig;
use mooseng_transport::{Blocking, CallFailure, Link, LinkOptions, PlainNetwork, grpc_channel};
use mooseng_wire::admin::{DiskReport, HeartbeatReply, HeartbeatRequest};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, Escrow, FsRequest};
use mooseng_wire::method::Method;
use mooseng_wire::session::{OpenInode, OpenSession, Renew, Renewed, Request, Response, SessionOpened};
use mooseng_wire::{Identity, Role};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub const WAIT: Duration = Duration::from_secs(30);
const CALL: Duration = Duration::from_secs(10);

pub fn identity(role: Role, name: &str) -> Identity {
    Identity { cluster: "test".into(), region: "eu".into(), role, name: name.into() }
}

/// An address that nobody listens at, and that stays free while a master that had it is down: the system gives none of these ports to whoever connects somewhere, as
/// it does with those that are free at the moment when one asks it for any.
fn free_address() -> String {
    const PORTS: std::ops::Range<u16> = 10_000..32_000;
    static GIVEN: std::sync::Mutex<BTreeSet<u16>> = std::sync::Mutex::new(BTreeSet::new());
    loop {
        let port = rand::random_range(PORTS);
        let is_free = std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free && GIVEN.lock().unwrap().insert(port) {
            return format!("127.0.0.1:{port}");
        }
    }
}

/// The machine's clocks, of which the wall clock can be set. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SetClock(Arc<AtomicI64>);

impl SetClock {
    /// Sets it forward, or back.
    pub fn step(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1_000_000_000, Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn boot(&self) -> BootTime {
        OsClock.boot()
    }
    fn unix_ns(&self) -> i64 {
        OsClock.unix_ns() + self.0.load(Ordering::SeqCst)
    }
}

/// What a master keeps when its process dies.
pub struct Site {
    pub config: MasterConfig,
    pub disk: SimDisk,
    /// The disk of the store.
    pub store: SimDisk,
    pub base: MemoryBase,
}

pub struct Cluster {
    pub sites: Vec<Site>,
    pub running: Vec<Option<MasterServer>>,
    pub clock: Arc<dyn Clock>,
}

impl Cluster {
    pub async fn start(n: u64, clock: Arc<dyn Clock>) -> Self {
        Self::start_with(n, clock, |_| ()).await
    }

    pub async fn start_with(n: u64, clock: Arc<dyn Clock>, change: impl Fn(&mut MasterConfig)) -> Self {
        let members: Vec<MemberConfig> = (1..=n)
            .map(|id| MemberConfig {
                id,
                name: format!("m{id}"),
                address: free_address(),
                zone: format!("z{id}"),
            })
            .collect();
        let site = |member: &MemberConfig| {
            let store = SimDisk::default();
            let base = MemoryBase::on_disk(Arc::new(store.clone()), Path::new("/store")).unwrap();
            let config = MasterConfig {
                name: member.name.clone(),
                id: member.id,
                region: "eu".into(),
                cluster: "test".into(),
                zone: member.zone.clone(),
                listen: member.address.clone(),
                advertise: member.address.clone(),
                state_dir: PathBuf::from("/state"),
                reserve_bytes: 64 << 20,
                http_listen: None,
                tls: None,
                members: members.clone(),
                copies: 2,
                min_copies: 2,
                session_lease_ms: 10_000,
                memory_max_mib: 2_048,
                // Tests of what is freed don't wait for the trash.
                house: HouseConfig { trash_retention_s: 0, ..HouseConfig::default() },
                mounts: Vec::new(),
                raft: RaftConfig::default(),
                global: None,
                log: LogConfig::default(),
                otlp: None,
                dev: Default::default(),
            };
            Site { config, disk: SimDisk::default(), store, base }
        };
        let mut sites: Vec<Site> = members.iter().map(site).collect();
        sites.iter_mut().for_each(|site| change(&mut site.config));
        let mut cluster = Self { running: sites.iter().map(|_| None).collect(), sites, clock };
        for i in 0..cluster.sites.len() {
            cluster.run(i).await;
        }
        cluster
    }

    pub async fn run(&mut self, i: usize) {
        self.try_run(i).await.unwrap();
    }

    pub async fn try_run(&mut self, i: usize) -> Result<(), StartError> {
        let site = &self.sites[i];
        let ports = Ports {
            network: Arc::new(PlainNetwork::new(identity(Role::Master, &site.config.name))),
            disk: Arc::new(site.disk.clone()),
            blocking: Blocking::Pool,
            clock: self.clock.clone(),
            base: Arc::new(site.base.clone()),
            global_base: None,
        };
        let server = MasterServer::start(site.config.clone(), ports, CancellationToken::new()).await?;
        self.running[i] = Some(server);
        Ok(())
    }

    pub fn addresses(&self) -> Vec<String> {
        self.sites.iter().map(|s| s.config.advertise.clone()).collect()
    }

    /// The one that leads and serves.
    pub async fn leader(&self) -> usize {
        let found = async {
            loop {
                let serving = |s: &Option<MasterServer>| s.as_ref().is_some_and(MasterServer::is_serving);
                if let Some(i) = self.running.iter().position(serving) {
                    return i;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WAIT, found).await.expect("a master leads")
    }

    /// Ends a master without a goodbye to anyone.
    pub async fn kill(&mut self, i: usize) {
        let server = self.running[i].take().expect("it runs");
        server.master().shutdown.cancel();
        server.stopped().await;
    }

    pub async fn client(&self, name: &str) -> Client {
        let network = Arc::new(PlainNetwork::new(identity(Role::Client, name)));
        let link = |a: &String| Link::new(network.clone(), a.clone(), Role::Master, LinkOptions::default());
        Client {
            links: self.addresses().iter().map(link).collect(),
            seat: AtomicU64::new(self.leader().await as u64),
            order: AtomicU64::new(0),
            session: Mutex::default(),
            number: AtomicU64::new(0),
            escrow: Vec::new(),
        }
    }

    /// One heartbeat of a chunkserver to each running master.
    pub async fn beat(&self, name: &str, change: impl Fn(&mut HeartbeatRequest)) -> Vec<HeartbeatReply> {
        let network = Arc::new(PlainNetwork::new(identity(Role::Chunkserver, name)));
        let disk = DiskReport {
            path: "/d".into(),
            bytes_total: 2 << 40,
            bytes_free: 1 << 40,
            writable: true,
            ..DiskReport::default()
        };
        let mut request = HeartbeatRequest {
            chunkserver: name.into(),
            address: format!("{name}:1"),
            zone: format!("zone-{name}"),
            disks: vec![disk],
            incarnation: 1,
            ..HeartbeatRequest::default()
        };
        change(&mut request);
        let mut replies = Vec::new();
        for (i, address) in self.addresses().iter().enumerate() {
            if self.running[i].is_some() {
                let channel = grpc_channel(network.clone(), address, Role::Master).await;
                let reply = RegistryClient::new(channel).heartbeat(request.clone()).await;
                replies.push(reply.unwrap().into_inner());
            }
        }
        replies
    }
}

impl Client {
    /// One that finds its leader itself.
    pub fn over(network: Arc<dyn mooseng_transport::Network>, addresses: &[String]) -> Self {
        let link = |a: &String| Link::new(network.clone(), a.clone(), Role::Master, LinkOptions::default());
        Self {
            links: addresses.iter().map(link).collect(),
            seat: AtomicU64::new(0),
            order: AtomicU64::new(0),
            session: Mutex::default(),
            number: AtomicU64::new(0),
            escrow: Vec::new(),
        }
    }
}

/// A small client: follows the leader, repeats what isn't known.
pub struct Client {
    links: Vec<Link>,
    seat: AtomicU64,
    order: AtomicU64,
    pub session: Mutex<SessionOpened>,
    pub number: AtomicU64,
    /// What it declares of limited accounts.
    pub escrow: Vec<Escrow>,
}

impl Client {
    pub fn link(&self) -> &Link {
        &self.links[self.seat.load(Ordering::SeqCst) as usize]
    }

    /// Calls whoever leads, until there is an answer that isn't of a passing kind.
    pub async fn call<Q: prost::Message, A: prost::Message + Default>(
        &self,
        method: Method,
        request: &Q,
    ) -> Result<A, (ErrorCode, String)> {
        let tried = async {
            loop {
                match self.link().request(method, request, CALL).await {
                    Ok(answer) => return Ok(answer),
                    Err(CallFailure::Remote(e)) => match e.code() {
                        ErrorCode::NotLeader => self.next(),
                        ErrorCode::Unavailable | ErrorCode::OutcomeUnknown | ErrorCode::DeadlineExceeded => {}
                        code => return Err((code, e.message)),
                    },
                    Err(_) => self.next(),
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        };
        tokio::time::timeout(WAIT, tried).await.expect("a master answers")
    }

    fn next_order(&self) -> u64 {
        self.order.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn next(&self) {
        let n = self.links.len() as u64;
        let next = (self.seat.load(Ordering::SeqCst) + 1) % n;
        self.seat.store(next, Ordering::SeqCst);
    }

    pub async fn open(&self, opens: &[u64]) -> Result<SessionOpened, (ErrorCode, String)> {
        let deadline = Instant::now() + WAIT;
        loop {
            let opened = self.open_once(opens).await?;
            // It shows nothing that an earlier custodian promised.
            match self.renew().await {
                // A busy machine took longer than its lease lasts.
                Err((ErrorCode::SessionExpired, _)) if Instant::now() < deadline => {}
                renewed => return renewed.map(|_| opened),
            }
        }
    }

    async fn open_once(&self, opens: &[u64]) -> Result<SessionOpened, (ErrorCode, String)> {
        let known = self.session.lock().await.clone();
        let request = OpenSession {
            session: known.session,
            incarnation: known.incarnation,
            opens: opens.iter().map(|inode| OpenInode { inode: *inode }).collect(),
            host: "host".into(),
            mount_path: "/mnt".into(),
            custody_epoch: known.custody_epoch,
            order: self.next_order(),
            founding: known.founding,
            escrow: self.escrow.clone(),
            ..OpenSession::default()
        };
        let opened: SessionOpened = self.call(Method::OpenSession, &request).await?;
        *self.session.lock().await = opened.clone();
        Ok(opened)
    }

    /// What a renewal says of it.
    pub async fn session(&self) -> Renew {
        let s = self.session.lock().await.clone();
        Renew {
            session: s.session,
            incarnation: s.incarnation,
            custody_epoch: s.custody_epoch,
            founding: s.founding,
            ..Renew::default()
        }
    }

    pub async fn renew(&self) -> Result<Renewed, (ErrorCode, String)> {
        let s = self.session.lock().await.clone();
        let renew = Renew {
            session: s.session,
            incarnation: s.incarnation,
            custody_epoch: s.custody_epoch,
            founding: s.founding,
            ..Renew::default()
        };
        self.call(Method::Renew, &renew).await
    }

    pub async fn request(&self, number: u64, op: Op) -> Request {
        let s = self.session.lock().await.clone();
        Request {
            session: s.session,
            incarnation: s.incarnation,
            number,
            order: self.next_order(),
            releases: vec![],
            oldest_unanswered: 1,
            custody_epoch: s.custody_epoch,
            op: Some(FsRequest {
                caller: Some(Caller { kernel_checked: true, ..Caller::default() }),
                op: Some(op),
            }),
        }
    }

    pub async fn read(&self, op: Op) -> Result<Reply, (ErrorCode, String)> {
        let request = self.request(0, op).await;
        let response: Response = self.call(Method::FsRead, &request).await?;
        Ok(response.reply.unwrap().reply.unwrap())
    }

    pub async fn change(&self, op: Op) -> Result<Reply, (ErrorCode, String)> {
        let number = self.number.fetch_add(1, Ordering::SeqCst) + 1;
        self.change_as(number, op).await
    }

    /// A change of one that has no other under way, and so may make any number of them.
    pub async fn change_alone(&self, op: Op) -> Result<Reply, (ErrorCode, String)> {
        let number = self.number.fetch_add(1, Ordering::SeqCst) + 1;
        let request = Request { oldest_unanswered: number, ..self.request(number, op).await };
        self.send(&request).await
    }

    pub async fn change_as(&self, number: u64, op: Op) -> Result<Reply, (ErrorCode, String)> {
        let request = self.request(number, op).await;
        self.send(&request).await
    }

    pub async fn send(&self, request: &Request) -> Result<Reply, (ErrorCode, String)> {
        let response: Response = self.call(Method::FsChange, request).await?;
        Ok(response.reply.unwrap().reply.unwrap())
    }
}

/// Runs what needs its sessions to last. Where leases are short and the machine is busy one may lapse on the way: then it answers none, and is begun anew.
pub async fn unlapsed(mut scenario: impl AsyncFnMut() -> Option<()>) {
    for _ in 0..5 {
        if scenario().await.is_some() {
            return;
        }
    }
    panic!("a session lapses on the way again and again");
}

/// Waits until `done` says so.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let tried = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    tokio::time::timeout(WAIT, tried).await.unwrap_or_else(|_| panic!("in vain waited until {what}"));
}
