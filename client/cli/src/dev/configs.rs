//! Writes the configurations of a dev cluster's daemons and clients. They are written anew at each `up`: the plan is what is kept.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use mooseng_otlp::OtlpConfig;
use mooseng_wire::Role;
use serde::Serialize;

use super::plan::{CLIENT, CLUSTER, Daemon, Plan, REGION};
use super::state::Cluster;
use super::{certs, write_atomically};
use crate::config::{ClientFile, TlsSection};
use crate::exit::Failure;

#[derive(Serialize)]
struct Master<'a> {
    name: &'a str,
    id: u64,
    region: &'a str,
    cluster: &'a str,
    zone: &'a str,
    listen: String,
    advertise: String,
    state_dir: &'a Path,
    http_listen: String,
    copies: u32,
    min_copies: u32,
    tls: TlsSection,
    house: House,
    members: Vec<Member<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp: Option<OtlpConfig>,
}

#[derive(Serialize)]
struct House {
    #[serde(skip_serializing_if = "Option::is_none")]
    trash_retention_s: Option<u64>,
}

#[derive(Serialize)]
struct Member<'a> {
    id: u64,
    name: &'a str,
    address: String,
    zone: &'a str,
}

#[derive(Serialize)]
struct Chunkserver<'a> {
    name: &'a str,
    region: &'a str,
    cluster: &'a str,
    zone: &'a str,
    rack: &'a str,
    listen: String,
    advertise: String,
    data_dirs: Vec<String>,
    state_dir: &'a Path,
    http_listen: String,
    masters: Vec<String>,
    trash_s: u64,
    tls: TlsSection,
    #[serde(skip_serializing_if = "Option::is_none")]
    otlp: Option<OtlpConfig>,
}

/// How long files of deleted chunks wait in a dev cluster: one machine's disk is small.
const TRASH_S: u64 = 60;

/// How often metrics of a dev cluster go to a collector.
const OTLP_METRICS_EVERY_S: u64 = 5;

/// Takes on the ids that somebody gave to masters in their configurations: who replaces a lost master gives the new one another id.
pub fn adopt_ids(cluster: &mut Cluster) {
    for n in 0..cluster.state.plan.daemons.len() {
        let daemon = &cluster.state.plan.daemons[n];
        if daemon.role != Role::Master {
            continue;
        }
        let text = std::fs::read_to_string(cluster.config_path(&daemon.name)).unwrap_or_default();
        let id = text.parse::<toml::Table>().ok().and_then(|t| t.get("id")?.as_integer());
        if let Some(id) = id.and_then(|id| u64::try_from(id).ok()).filter(|id| *id > 0) {
            cluster.state.plan.daemons[n].id = id;
        }
    }
}

/// Writes all of them.
pub fn write(cluster: &Cluster) -> Result<(), Failure> {
    let plan = &cluster.state.plan;
    for daemon in &plan.daemons {
        let state_dir = cluster.state_dir(&daemon.name);
        make_private_dir(&state_dir)?;
        let tls = certs::files(&cluster.dir, &daemon.name);
        let text = match daemon.role {
            Role::Master => encode(&master(plan, daemon, &state_dir, tls)),
            _ => {
                let data = state_dir.join("data");
                make_dir(&data)?;
                encode(&chunkserver(plan, daemon, &state_dir, &data, tls))
            }
        }?;
        put(&cluster.config_path(&daemon.name), &text)?;
    }
    make_private_dir(&cluster.state_dir(CLIENT))?;
    put(&cluster.config_path(CLIENT), &encode(&client(cluster, CLIENT))?)?;
    put(&cluster.config_path("admin"), &encode(&client(cluster, "admin"))?)
}

fn master<'a>(plan: &'a Plan, daemon: &'a Daemon, state_dir: &'a Path, tls: TlsSection) -> Master<'a> {
    let member = |d: &'a Daemon| Member { id: d.id, name: &d.name, address: d.address(), zone: &d.zone };
    Master {
        name: &daemon.name,
        id: daemon.id,
        region: REGION,
        cluster: CLUSTER,
        zone: &daemon.zone,
        listen: daemon.address(),
        advertise: daemon.address(),
        state_dir,
        http_listen: daemon.http(),
        copies: plan.copies,
        min_copies: plan.copies.min(2),
        tls,
        house: House { trash_retention_s: plan.trash_retention_s },
        members: plan.masters().map(member).collect(),
        otlp: otlp(plan),
    }
}

fn chunkserver<'a>(
    plan: &'a Plan,
    daemon: &'a Daemon,
    state_dir: &'a Path,
    data: &Path,
    tls: TlsSection,
) -> Chunkserver<'a> {
    Chunkserver {
        name: &daemon.name,
        region: REGION,
        cluster: CLUSTER,
        zone: &daemon.zone,
        rack: "rack-1",
        listen: daemon.address(),
        advertise: daemon.address(),
        data_dirs: vec![data.display().to_string()],
        state_dir,
        http_listen: daemon.http(),
        masters: plan.master_addresses(),
        trash_s: TRASH_S,
        tls,
        otlp: otlp(plan),
    }
}

fn client(cluster: &Cluster, name: &str) -> ClientFile {
    ClientFile {
        cluster: CLUSTER.into(),
        region: REGION.into(),
        name: name.into(),
        zone: "zone-1".into(),
        masters: cluster.state.plan.master_addresses(),
        retry_timeout_s: 60,
        write_buffer_mb: 64,
        same_host_reads: true,
        delegate: true,
        http_listen: Some("127.0.0.1:0".into()),
        log_dir: Some(cluster.dir.join("log")),
        log_json: true,
        tls: certs::files(&cluster.dir, name),
        otlp: otlp(&cluster.state.plan),
    }
}

/// Everything is recorded: a developer looks at single operations.
fn otlp(plan: &Plan) -> Option<OtlpConfig> {
    let endpoint = plan.otlp.clone()?;
    Some(OtlpConfig { sample: 1.0, metrics_every_s: OTLP_METRICS_EVERY_S, ..OtlpConfig::to(endpoint) })
}

fn encode(config: &impl Serialize) -> Result<String, Failure> {
    toml::to_string(config)
        .map_err(|e| Failure::failed(format!("A daemon's configuration can't be written as TOML: {e}.")))
}

fn put(path: &Path, text: &str) -> Result<(), Failure> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    write_atomically(path, text.as_bytes())
        .map_err(|e| Failure::failed(format!("{} can't be written: {e}.", path.display())))
}

/// Makes a directory that only its owner may enter: users' data and keys.
pub fn make_private_dir(dir: &Path) -> Result<(), Failure> {
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Failure::failed(format!("The directory {} can't be made: {e}.", dir.display())))
}

/// Makes a directory of the cluster.
pub fn make_dir(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)
        .map_err(|e| Failure::failed(format!("The directory {} can't be made: {e}.", dir.display())))
}
