//! Masters of several regions in one process, with connections between regions that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use async_trait::async_trait;
use mooseng_embedded::MemoryBase;
use mooseng_global::View;
use mooseng_master::global::Global;
use mooseng_master::{
    GlobalConfig, GlobalRaftConfig, HouseConfig, MasterConfig, MasterServer, MemberConfig, Ports, RaftConfig,
    RegionConfig, RegionMasterConfig, StartError,
};
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_transport::observe::LogConfig;
use mooseng_transport::{Blocking, ConnectError, Connection, Io, Listener, Network, PlainNetwork, Protocol};
use mooseng_wire::level::Levels;
use mooseng_wire::{Identity, Role};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::{free_address, until};

pub const LEASE_MS: u64 = 1_500;

/// Regions that are cut off from all others.
pub type Cuts = Arc<Mutex<BTreeSet<String>>>;

/// The network as a master sees it: what leads to or from a region that is cut off breaks.
pub struct Wan {
    inner: PlainNetwork,
    /// Regions by address.
    regions: BTreeMap<String, String>,
    cuts: Cuts,
    levels: Arc<Mutex<Levels>>,
}

struct Severable {
    io: Box<dyn Io>,
    ends: [String; 2],
    cuts: Cuts,
}

fn is_cut(cuts: &Cuts, ends: &[String; 2]) -> bool {
    let cuts = cuts.lock().unwrap();
    ends[0] != ends[1] && ends.iter().any(|end| cuts.contains(end))
}

fn severed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the regions are cut off from each other")
}

impl AsyncRead for Severable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if is_cut(&self.cuts, &self.ends) {
            return Poll::Ready(Err(severed()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Severable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if is_cut(&self.cuts, &self.ends) {
            return Poll::Ready(Err(severed()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[async_trait]
impl Network for Wan {
    async fn connect(
        &self,
        address: &str,
        protocol: Protocol,
        role: Role,
    ) -> Result<Connection, ConnectError> {
        let own = self.identity().region;
        let theirs = self.regions.get(address).cloned().unwrap_or_else(|| own.clone());
        let ends = [own, theirs];
        if is_cut(&self.cuts, &ends) {
            return Err(ConnectError::Unreachable {
                address: address.to_owned(),
                reason: severed().to_string(),
            });
        }
        let connection = self.inner.connect(address, protocol, role).await?;
        let io = Severable { io: connection.io, ends, cuts: self.cuts.clone() };
        Ok(Connection { io: Box::new(io), ..connection })
    }
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        self.inner.listen(address).await
    }
    fn identity(&self) -> Identity {
        self.inner.identity()
    }
    fn levels(&self) -> Levels {
        *self.levels.lock().unwrap()
    }
}

pub fn identity_of(region: &str, role: Role, name: &str) -> Identity {
    Identity { cluster: "test".into(), region: region.into(), role, name: name.into() }
}

/// What a master keeps when its process dies.
pub struct RegionSite {
    pub config: MasterConfig,
    pub disk: SimDisk,
    pub store: SimDisk,
    /// The feature levels that the release supports that it runs.
    pub levels: Arc<Mutex<Levels>>,
}

/// Masters of several regions.
pub struct Regions {
    pub sites: Vec<RegionSite>,
    pub running: Vec<Option<MasterServer>>,
    pub cuts: Cuts,
}

impl Regions {
    /// Regions of so many masters; the last one is a witness if it has one master and there are more than two.
    pub async fn start(masters: &[(&str, u64)]) -> Self {
        Self::start_of(masters, LEASE_MS).await
    }

    /// As [`start`](Self::start), with regions' leases of so many milliseconds.
    pub async fn start_of(masters: &[(&str, u64)], lease_ms: u64) -> Self {
        Self::start_at(masters, lease_ms, Levels::OURS).await
    }

    /// The same, of a release that supports those feature levels.
    pub async fn start_at(masters: &[(&str, u64)], lease_ms: u64, levels: Levels) -> Self {
        if let Ok(filter) = std::env::var("MOOSENG_LOG") {
            let log = LogConfig { filter: Some(filter), ..LogConfig::default() };
            let _ = mooseng_transport::observe::init_logging(&log);
        }
        let region = |(i, (name, n)): (usize, &(&str, u64))| RegionConfig {
            name: (*name).to_owned(),
            number: i as u16 + 1,
            witness: *name == "w",
            masters: (1..=*n)
                .map(|id| RegionMasterConfig {
                    id,
                    name: format!("{name}{id}"),
                    address: free_address(),
                    zone: format!("z{id}"),
                })
                .collect(),
        };
        let global = GlobalConfig {
            root_home: None,
            lease_ms,
            join: None,
            raft: GlobalRaftConfig { heartbeat_ms: 60, election_min_ms: 350, election_max_ms: 600 },
            regions: masters.iter().enumerate().map(region).collect(),
        };
        let sites: Vec<RegionSite> = global
            .regions
            .iter()
            .flat_map(|region| region.masters.iter().map(|m| site(&global, region, m)))
            .collect();
        sites.iter().for_each(|site| *site.levels.lock().unwrap() = levels);
        let mut regions =
            Self { running: sites.iter().map(|_| None).collect(), sites, cuts: Cuts::default() };
        for i in 0..regions.sites.len() {
            regions.run(i).await;
        }
        regions
    }

    fn network(&self, identity: Identity, levels: Arc<Mutex<Levels>>) -> Wan {
        let at = |site: &RegionSite| (site.config.advertise.clone(), site.config.region.clone());
        Wan {
            inner: PlainNetwork::new(identity),
            regions: self.sites.iter().map(at).collect(),
            cuts: self.cuts.clone(),
            levels,
        }
    }

    pub async fn run(&mut self, i: usize) {
        self.try_run(i).await.unwrap();
    }

    /// Starts a master, with a release that supports those feature levels.
    pub async fn run_at(&mut self, i: usize, levels: Levels) -> Result<(), StartError> {
        *self.sites[i].levels.lock().unwrap() = levels;
        self.try_run(i).await
    }

    async fn try_run(&mut self, i: usize) -> Result<(), StartError> {
        let site = &self.sites[i];
        let base = |directory: &str| {
            Arc::new(MemoryBase::on_disk(Arc::new(site.store.clone()), Path::new(directory)).unwrap())
        };
        let ports = Ports {
            network: Arc::new(self.network(
                identity_of(&site.config.region, Role::Master, &site.config.name),
                site.levels.clone(),
            )),
            disk: Arc::new(site.disk.clone()),
            blocking: Blocking::Pool,
            clock: Arc::new(OsClock),
            base: base("/store"),
            global_base: Some(base("/global")),
        };
        let server = MasterServer::start(site.config.clone(), ports, CancellationToken::new()).await?;
        self.running[i] = Some(server);
        Ok(())
    }

    /// A region more, of one master that isn't started yet.
    pub fn prepare(&mut self, name: &str, number: u16) -> RegionMasterConfig {
        let master = RegionMasterConfig {
            id: 1,
            name: format!("{name}1"),
            address: free_address(),
            zone: "z1".into(),
        };
        let region =
            RegionConfig { name: name.to_owned(), number, witness: false, masters: vec![master.clone()] };
        let mut global = self.sites[0].config.global.clone().unwrap();
        global.regions.push(region.clone());
        self.sites.push(site(&global, &region, &master));
        self.running.push(None);
        master
    }

    /// The masters of a region.
    pub fn of(&self, region: &str) -> Vec<usize> {
        (0..self.sites.len()).filter(|i| self.sites[*i].config.region == region).collect()
    }

    /// Ends a master without a goodbye to anyone.
    pub async fn kill(&mut self, i: usize) {
        let server = self.running[i].take().expect("it runs");
        server.master().shutdown.cancel();
        server.stopped().await;
    }

    pub async fn kill_region(&mut self, region: &str) {
        for i in self.of(region) {
            self.kill(i).await;
        }
    }

    pub fn global(&self, i: usize) -> &Arc<Global> {
        self.running[i].as_ref().expect("it runs").master().global.as_ref().expect("it is configured")
    }

    pub fn up(&self) -> Vec<usize> {
        (0..self.running.len()).filter(|i| self.running[*i].is_some()).collect()
    }

    /// The one that leads the global group.
    pub async fn leader(&self) -> usize {
        let leading = || self.up().into_iter().find(|i| self.global(*i).is_leading());
        until("a master leads the global group", async || leading().is_some()).await;
        leading().unwrap()
    }

    /// What all have agreed on, once they have the same.
    pub async fn agreed(&self) -> Arc<View> {
        let same = || {
            let views: Vec<_> = self.up().into_iter().map(|i| self.global(i).view()).collect();
            views[0].version > 0 && views.iter().all(|view| *view == views[0])
        };
        until("all masters have the same view", async || same()).await;
        self.global(self.up()[0]).view()
    }

    /// Which master of a region holds its lease.
    pub async fn holder(&self, region: &str) -> usize {
        let holding = || {
            self.of(region).into_iter().find(|i| self.running[*i].is_some() && self.global(*i).lease_valid())
        };
        until("the region holds its lease", async || holding().is_some()).await;
        holding().unwrap()
    }

    pub fn cut(&self, region: &str) {
        self.cuts.lock().unwrap().insert(region.to_owned());
    }

    pub fn heal(&self) {
        self.cuts.lock().unwrap().clear();
    }
}

fn site(global: &GlobalConfig, region: &RegionConfig, master: &RegionMasterConfig) -> RegionSite {
    let member = |m: &RegionMasterConfig| MemberConfig {
        id: m.id,
        name: m.name.clone(),
        address: m.address.clone(),
        zone: m.zone.clone(),
    };
    let config = MasterConfig {
        name: master.name.clone(),
        id: master.id,
        region: region.name.clone(),
        cluster: "test".into(),
        zone: master.zone.clone(),
        listen: master.address.clone(),
        advertise: master.address.clone(),
        state_dir: PathBuf::from("/state"),
        reserve_bytes: 64 << 20,
        http_listen: None,
        tls: None,
        members: region.masters.iter().map(member).collect(),
        copies: 2,
        min_copies: 2,
        session_lease_ms: 1_000,
        memory_max_mib: 2_048,
        house: HouseConfig { trash_retention_s: 0, let_go_after_s: 0, ..HouseConfig::default() },
        mounts: Vec::new(),
        raft: RaftConfig::default(),
        global: Some(global.clone()),
        log: LogConfig::default(),
        otlp: None,
        dev: Default::default(),
    };
    let levels = Arc::new(Mutex::new(Levels::OURS));
    RegionSite { config, disk: SimDisk::default(), store: SimDisk::default(), levels }
}
