//! `cluster.json`: what runs where, for scripts outside of the project. Its form is fixed.

use mooseng_wire::Role;
use serde::Serialize;

use super::state::Cluster;

/// The whole file.
#[derive(Debug, Serialize)]
pub struct File {
    /// Every process of the cluster, running or not.
    pub processes: Vec<Process>,
    /// Every mount that uses a configuration of this cluster and whose process lives.
    pub mounts: Vec<Mount>,
    /// Configurations that `mooseng mount --config` takes.
    pub clients: Vec<Client>,
}

/// A process.
#[derive(Debug, Serialize)]
pub struct Process {
    /// Its name.
    pub name: String,
    /// master, chunkserver or client.
    pub role: Role,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Its pid; null while it doesn't run.
    pub pid: Option<u32>,
    /// host:port that it serves on; of a client, where it answers about its health. Empty when it has none.
    pub address: String,
    /// Where it keeps its state.
    pub state_dir: String,
    /// How it is started.
    pub argv: Vec<String>,
}

/// A mount.
#[derive(Debug, Serialize)]
pub struct Mount {
    /// Its region.
    pub region: String,
    /// Where.
    pub path: String,
    /// The process that serves it.
    pub pid: u32,
}

/// A client's configuration.
#[derive(Debug, Serialize)]
pub struct Client {
    /// Its region.
    pub region: String,
    /// The file.
    pub config: String,
}

/// What is true now.
pub fn describe(cluster: &Cluster) -> File {
    let process = |name: String| {
        let daemon = cluster.daemon(&name);
        let client = cluster.state.plan.client(&name);
        Process {
            role: daemon.map_or(Role::Client, |d| d.role),
            region: daemon.map(|d| d.region.clone()).or(client.map(|c| c.region)).unwrap_or_default(),
            zone: daemon.map_or_else(|| "zone-1".into(), |d| d.zone.clone()),
            pid: cluster.state.running.get(&name).map(|p| p.pid),
            address: daemon
                .map(|d| d.address())
                .or_else(|| cluster.state.clients_http.get(&name).cloned())
                .unwrap_or_default(),
            state_dir: cluster.state_dir(&name).display().to_string(),
            argv: cluster.argv(&name).unwrap_or_default(),
            name,
        }
    };
    let mount = |m: crate::runtime::MountRecord| Mount {
        region: m.region,
        path: m.path.display().to_string(),
        pid: m.process.pid,
    };
    let client = |c: super::plan::Client| Client {
        region: c.region,
        config: cluster.config_path(&c.name).display().to_string(),
    };
    File {
        processes: cluster.names().into_iter().map(process).collect(),
        mounts: cluster.mounts().into_iter().map(mount).collect(),
        clients: cluster.state.plan.clients().into_iter().map(client).collect(),
    }
}
