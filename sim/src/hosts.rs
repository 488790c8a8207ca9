//! The simulated hosts: the daemons' own code over simulated disks and sockets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mooseng_chunkserver::{ChunkserverConfig, ChunkserverServer};
use mooseng_embedded::MemoryBase;
use mooseng_master::{MasterConfig, MasterServer, MemberConfig, Ports, RaftConfig};
use mooseng_ports::clock::{BootTime, Clock};
use mooseng_ports::disk::sim::SimDisk;
use mooseng_transport::Blocking;
use mooseng_transport::observe::LogConfig;
use mooseng_wire::Role;
use tokio_util::sync::CancellationToken;

use crate::network::network;

/// Masters and chunkservers, each.
pub const SERVERS: usize = 3;
const PORT: u16 = 7000;

/// Simulated time. Every host's clock runs at the same rate.
pub struct SimClock;

impl Clock for SimClock {
    fn boot(&self) -> BootTime {
        BootTime(turmoil::sim_elapsed().unwrap_or_default())
    }
    fn unix_ns(&self) -> i64 {
        1_700_000_000_000_000_000 + turmoil::sim_elapsed().unwrap_or_default().as_nanos() as i64
    }
}

/// A host's address.
pub fn address(host: &str) -> String {
    format!("{host}:{PORT}")
}

/// The masters' names.
pub fn masters() -> Vec<String> {
    (1..=SERVERS).map(|i| format!("m{i}")).collect()
}

/// The chunkservers' names.
pub fn chunkservers() -> Vec<String> {
    (1..=SERVERS).map(|i| format!("c{i}")).collect()
}

/// Runs a master until its host crashes.
pub async fn master(i: usize, disk: SimDisk) -> turmoil::Result {
    let name = format!("m{i}");
    let member = |i: usize| MemberConfig {
        id: i as u64,
        name: format!("m{i}"),
        address: address(&format!("m{i}")),
        zone: format!("z{i}"),
    };
    let config = MasterConfig {
        name: name.clone(),
        id: i as u64,
        region: "here".into(),
        cluster: "sim".into(),
        zone: format!("z{i}"),
        listen: address(&name),
        advertise: address(&name),
        state_dir: PathBuf::from("/state"),
        http_listen: None,
        tls: None,
        members: (1..=SERVERS).map(member).collect(),
        copies: 2,
        min_copies: 2,
        session_lease_ms: 10_000,
        raft: RaftConfig::default(),
        log: LogConfig::default(),
    };
    let disk: Arc<dyn mooseng_ports::disk::Disk> = Arc::new(disk);
    let base = Arc::new(MemoryBase::on_disk(disk.clone(), Path::new("/state/store"))?);
    let ports = Ports {
        network: network(Role::Master, &name),
        disk,
        blocking: Blocking::Inline,
        clock: Arc::new(SimClock),
        base,
    };
    let server = MasterServer::start(config, ports, CancellationToken::new()).await?;
    server.stopped().await;
    Ok(())
}

/// Runs a chunkserver until its host crashes.
pub async fn chunkserver(i: usize, disk: SimDisk) -> turmoil::Result {
    let name = format!("c{i}");
    let config = ChunkserverConfig {
        name: name.clone(),
        region: "here".into(),
        cluster: "sim".into(),
        zone: format!("z{i}"),
        rack: String::new(),
        listen: address(&name),
        advertise: address(&name),
        data_dirs: vec![PathBuf::from("/data")],
        state_dir: PathBuf::from("/state"),
        http_listen: None,
        masters: masters().iter().map(|m| address(m)).collect(),
        reserve_bytes: 1 << 20,
        open_files_max: 64,
        chain_timeout_ms: 1000,
        tls: None,
        log: LogConfig::default(),
        labels: BTreeMap::new(),
    };
    let server = ChunkserverServer::start(
        config,
        network(Role::Chunkserver, &name),
        Arc::new(disk),
        Blocking::Inline,
        Arc::new(SimClock),
        CancellationToken::new(),
    )
    .await?;
    server.stopped().await;
    Ok(())
}

/// How long a client's operation is retried: longer than any fault lasts, so that few outcomes stay unknown.
pub const RETRY: Duration = Duration::from_secs(40);
