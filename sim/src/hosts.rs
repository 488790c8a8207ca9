//! The simulated hosts: the daemons' own code over simulated disks and sockets.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooseng_chunkserver::{ChunkserverConfig, ChunkserverServer};
use mooseng_embedded::MemoryBase;
use mooseng_master::{HouseConfig, MasterConfig, MasterServer, MemberConfig, Ports, RaftConfig};
use mooseng_ports::clock::{BootTime, Clock};
use mooseng_ports::disk::Disk;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_transport::Blocking;
use mooseng_transport::observe::LogConfig;
use mooseng_wire::Role;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::network::{Gate, network};
use crate::swapped::{self, OtherData};
use crate::watch::Watch;

/// Masters and chunkservers, each, that a region begins with.
pub const SERVERS: usize = 3;
/// The master that takes the place of a lost one.
pub const SUBSTITUTE: usize = SERVERS + 1;
const PORT: u16 = 7000;
/// The region's name, where there is one.
pub const REGION: &str = "here";
/// The cluster's name.
pub const CLUSTER: &str = "sim";
/// Where a daemon keeps what it must remember.
pub const STATE_DIR: &str = "/state";
/// Where a chunkserver keeps chunks.
pub const DATA_DIR: &str = "/data";

thread_local! {
    /// Simulated time for whoever asks from outside of a host.
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Tells those outside of hosts what time it is.
pub fn set_now(now: Duration) {
    NOW.set(now);
}

/// Simulated time, on a host or outside of all.
pub fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_else(|| NOW.get())
}

/// A host's clocks: simulated time at a rate of its own, and wall time that is off by a little, and may be stepped.
#[derive(Clone, Debug)]
pub struct SimClock {
    /// Parts per million by which its clock is fast.
    drift_ppm: i32,
    /// How far its wall clock is off. Clones share it.
    off_ms: Arc<AtomicI64>,
}

impl SimClock {
    /// A clock that is fast by parts per million, and a wall clock that is off by so much.
    pub fn new(drift_ppm: i32, off_ms: i32) -> Self {
        Self { drift_ppm, off_ms: Arc::new(i64::from(off_ms).into()) }
    }

    /// Sets the wall clock ahead, or back.
    pub fn step(&self, by_ms: i64) {
        self.off_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// How far the wall clock is off, in milliseconds.
    pub fn off_ms(&self) -> i64 {
        self.off_ms.load(Ordering::Relaxed)
    }

    fn elapsed(&self) -> Duration {
        now().mul_f64(1.0 + f64::from(self.drift_ppm) / 1e6)
    }
}

impl Clock for SimClock {
    fn boot(&self) -> BootTime {
        BootTime(self.elapsed())
    }
    fn unix_ns(&self) -> i64 {
        1_700_000_000_000_000_000
            + self.elapsed().as_nanos() as i64
            + self.off_ms.load(Ordering::Relaxed) * 1_000_000
    }
}

/// A host, as the simulation handles it.
#[derive(Clone)]
pub struct Host {
    /// Its disk.
    pub disk: SimDisk,
    /// Closed while it stalls.
    pub gate: Gate,
    /// Its clocks.
    pub clock: SimClock,
    /// Rung to hang it: none of its tasks runs any more, and its connections stay.
    pub hang: Arc<Notify>,
    /// Its disk misbehaves.
    pub faulty: Arc<AtomicBool>,
    /// It does, or did since the host was restarted last: failing is no fault of the host's then.
    pub excused: Arc<AtomicBool>,
    /// The disk with the data that is in the place of its own, where it was swapped for another host's.
    data: Arc<Mutex<Option<SimDisk>>>,
}

impl Host {
    /// A host with an empty disk.
    pub fn new(clock: SimClock) -> Self {
        let (gate, hang) = (Gate::default(), Arc::new(Notify::new()));
        let (faulty, excused, data) = (Arc::default(), Arc::default(), Arc::default());
        Self { disk: SimDisk::new(256 << 20), gate, clock, hang, faulty, excused, data }
    }

    /// Puts another host's data disk into the place of its own, or its own there again. Its daemon sees it when it starts.
    pub fn put_data(&self, other: Option<SimDisk>) {
        *self.data.lock().unwrap_or_else(PoisonError::into_inner) = other;
    }

    fn others_data(&self) -> Option<SimDisk> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether another host's data disk is in the place of its own.
    pub fn is_swapped(&self) -> bool {
        self.others_data().is_some()
    }

    /// The disk as a daemon that starts now finds it.
    fn mounted(&self) -> Arc<dyn Disk> {
        let own = self.disk.clone();
        match self.others_data() {
            Some(other) => Arc::new(OtherData { own, other }),
            None => Arc::new(own),
        }
    }

    /// Whether its disk is at fault.
    pub fn is_excused(&self) -> bool {
        self.disk.is_dark() || self.excused.load(Ordering::Relaxed)
    }
}

/// A host's address.
pub fn address(host: &str) -> String {
    format!("{host}:{PORT}")
}

/// The first masters' names.
pub fn masters() -> Vec<String> {
    (1..=SERVERS).map(|i| format!("m{i}")).collect()
}

/// Where masters may be, the substitute included.
pub fn master_addresses() -> Vec<String> {
    (1..=SUBSTITUTE).map(|i| address(&format!("m{i}"))).collect()
}

/// The chunkservers' names.
pub fn chunkservers() -> Vec<String> {
    (1..=SERVERS).map(|i| format!("c{i}")).collect()
}

/// Starts something over and over while its disk is what keeps it from starting, as a supervisor does.
async fn supervised<S, E: std::error::Error + 'static>(
    host: &Host,
    start: impl AsyncFn() -> Result<S, E>,
) -> turmoil::Result<S> {
    loop {
        match start().await {
            Ok(server) => return Ok(server),
            Err(error) if host.is_excused() => tracing::info!(%error, "not started; trying on"),
            Err(error) => return Err(error.to_string().into()),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Runs a daemon; a host whose software has ended is run no further by turmoil, and what it spawned hangs.
async fn until_it_hangs(host: &Host, stopped: impl Future<Output = ()>) {
    let mut stopped = Box::pin(stopped);
    tokio::select! {
        () = host.hang.notified() => {
            tracing::info!("the host hangs");
            // Dropped, it would end its tasks in good order.
            std::mem::forget(stopped);
        }
        () = &mut stopped => {}
    }
}

/// House-keeping that takes its time, but for the rewriter: what there is in a simulation is small, and soon over.
pub fn patient() -> HouseConfig {
    HouseConfig {
        scan_every_ms: 1_000,
        rewrites_at_once: 2,
        rewrite_after_ms: 0,
        destage_above_kib: 0,
        pack_after_ms: 0,
        pack_fill_kib: 0,
        merge_chunks: 3,
        merge_fill_kib: 0,
        merge_after_ms: 1_000,
        join_above_extents: 2,
        join_after_ms: 1_000,
        rewrite_gain_kib: 0,
        trash_retention_s: 5,
        trash_min_age_s: 0,
        let_go_after_s: 3,
        ..HouseConfig::default()
    }
}

/// House-keeping that doesn't wait long.
pub fn hasty() -> HouseConfig {
    HouseConfig {
        grace_ms: 3_000,
        scan_every_ms: 500,
        collect_after_ms: 2_000,
        settle_ms: 2_000,
        // So that copies of volumes are of several ranges.
        copy_kib: 4,
        ..patient()
    }
}

/// What all masters are set to, whatever else they are.
pub fn master_config(
    region: &str,
    name: &str,
    id: u64,
    raft: RaftConfig,
    members: Vec<MemberConfig>,
) -> MasterConfig {
    MasterConfig {
        name: name.to_owned(),
        id,
        region: region.to_owned(),
        cluster: CLUSTER.into(),
        zone: format!("z{id}"),
        listen: address(name),
        advertise: address(name),
        state_dir: PathBuf::from(STATE_DIR),
        reserve_bytes: 0,
        http_listen: None,
        tls: None,
        members,
        copies: 2,
        min_copies: 2,
        session_lease_ms: 10_000,
        memory_max_mib: 2_048,
        house: HouseConfig::default(),
        mounts: Vec::new(),
        raft,
        global: None,
        log: LogConfig::default(),
        otlp: None,
        dev: Default::default(),
    }
}

/// A member of a region's group that listens where its name says.
pub fn member(name: &str, id: u64) -> MemberConfig {
    MemberConfig { id, name: name.to_owned(), address: address(name), zone: format!("z{id}") }
}

/// Runs a master of the one region until its host crashes.
pub async fn master(
    i: usize,
    host: Host,
    raft: RaftConfig,
    house: HouseConfig,
    watch: Watch,
) -> turmoil::Result {
    let members = (1..=SERVERS).map(|i| member(&format!("m{i}"), i as u64)).collect();
    let config = MasterConfig { house, ..master_config(REGION, &format!("m{i}"), i as u64, raft, members) };
    run_master(config, host, watch).await
}

/// Runs a master until its host crashes.
pub async fn run_master(config: MasterConfig, host: Host, watch: Watch) -> turmoil::Result {
    let (region, name) = (config.region.clone(), config.name.clone());
    let server = supervised(&host, async || {
        let disk: Arc<dyn Disk> = Arc::new(host.disk.clone());
        let base = |at: &str| MemoryBase::on_disk(disk.clone(), Path::new(at)).map(Arc::new);
        let global_base = config.global.as_ref().map(|_| base("/state/global/store")).transpose()?;
        let ports = Ports {
            network: network(&region, Role::Master, &name, &host.gate),
            base: base("/state/store")?,
            disk: disk.clone(),
            blocking: Blocking::Inline,
            clock: Arc::new(host.clock.clone()),
            global_base: global_base.map(|base| base as _),
        };
        MasterServer::start(config.clone(), ports, CancellationToken::new()).await
    })
    .await?;
    watch.master_is_up(&name, server.master().clone());
    until_it_hangs(&host, server.stopped()).await;
    Ok(())
}

/// A chunkserver's labels: each of two fits two of three, the second one has both.
fn labels(i: usize) -> BTreeMap<String, String> {
    let has = [("a", i <= 2), ("b", i >= 2)];
    has.into_iter().filter(|(_, has)| *has).map(|(key, _)| (key.to_owned(), "yes".to_owned())).collect()
}

/// Runs a chunkserver of the one region until its host crashes.
pub async fn chunkserver(i: usize, host: Host, watch: Watch) -> turmoil::Result {
    let config = chunkserver_config(REGION, &format!("c{i}"), i, master_addresses());
    run_chunkserver(ChunkserverConfig { labels: labels(i), ..config }, host, watch).await
}

/// What all chunkservers are set to.
pub fn chunkserver_config(region: &str, name: &str, i: usize, masters: Vec<String>) -> ChunkserverConfig {
    ChunkserverConfig {
        name: name.to_owned(),
        region: region.to_owned(),
        cluster: CLUSTER.into(),
        zone: format!("z{i}"),
        rack: String::new(),
        listen: address(name),
        advertise: address(name),
        data_dirs: vec![PathBuf::from(DATA_DIR)],
        state_dir: PathBuf::from(STATE_DIR),
        http_listen: None,
        masters,
        reserve_bytes: 1 << 20,
        open_files_max: 64,
        memory_max_mib: 2_048,
        chain_timeout_ms: 1000,
        trash_s: 5,
        scrub_period_s: 3_600,
        same_host_reads: false,
        same_host_writes: false,
        tls: None,
        log: LogConfig::default(),
        labels: BTreeMap::new(),
        otlp: None,
        dev: Default::default(),
    }
}

/// Runs a chunkserver until its host crashes.
pub async fn run_chunkserver(config: ChunkserverConfig, host: Host, watch: Watch) -> turmoil::Result {
    let (region, name) = (config.region.clone(), config.name.clone());
    let server = supervised(&host, async || {
        ChunkserverServer::start(
            config.clone(),
            network(&region, Role::Chunkserver, &name, &host.gate),
            host.mounted(),
            Blocking::Inline,
            Arc::new(host.clock.clone()),
            CancellationToken::new(),
        )
        .await
    })
    .await?;
    if host.is_swapped() {
        swapped::check_refused(&name, server.store())?;
    }
    watch.chunkserver_is_up(&name, server.store().clone());
    until_it_hangs(&host, server.stopped()).await;
    Ok(())
}

/// How long a client's operation is retried: longer than any fault lasts, so that few outcomes stay unknown.
pub const RETRY: Duration = Duration::from_secs(40);
