//! Writes the configurations of a dev cluster's daemons and clients. They are written anew at each `up`: the plan is what is kept.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use mooseng_otlp::OtlpConfig;
use mooseng_transport::wan::DevConfig;
use mooseng_wire::Role;
use serde::Serialize;

use super::plan::{ADMIN, CLIENT, CLUSTER, Daemon, Plan};
use super::state::Cluster;
use super::{certs, wan, write_atomically};
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
    #[serde(skip_serializing_if = "Option::is_none")]
    global: Option<Global<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dev: Option<DevConfig>,
}

/// The regions, as every master of each of them is told.
#[derive(Serialize)]
struct Global<'a> {
    regions: Vec<GlobalRegion<'a>>,
}

#[derive(Serialize)]
struct GlobalRegion<'a> {
    name: &'a str,
    number: u16,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    witness: bool,
    masters: Vec<Member<'a>>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    dev: Option<DevConfig>,
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
            Role::Master => encode(&master(cluster, daemon, &state_dir, tls)),
            _ => {
                let data = state_dir.join("data");
                make_dir(&data)?;
                encode(&chunkserver(cluster, daemon, &state_dir, &data, tls))
            }
        }?;
        put(&cluster.config_path(&daemon.name), &text)?;
    }
    for of in plan.clients() {
        make_private_dir(&cluster.state_dir(&of.name))?;
        put(&cluster.config_path(&of.name), &encode(&client(cluster, &of.region, CLIENT, &of.name))?)?;
    }
    for region in &plan.regions {
        let name = plan.admin(&region.name);
        put(&cluster.config_path(&name), &encode(&client(cluster, &region.name, ADMIN, &name))?)?;
    }
    Ok(())
}

fn members<'a>(plan: &'a Plan, region: &'a str) -> Vec<Member<'a>> {
    let member = |d: &'a Daemon| Member { id: d.id, name: d.own_name(), address: d.address(), zone: &d.zone };
    plan.masters_of(region).map(member).collect()
}

/// None where there is one region.
fn global(plan: &Plan) -> Option<Global<'_>> {
    let regions = plan.regions.iter().map(|region| GlobalRegion {
        name: &region.name,
        number: region.number,
        witness: region.witness,
        masters: members(plan, &region.name),
    });
    plan.is_wide().then(|| Global { regions: regions.collect() })
}

fn master<'a>(cluster: &'a Cluster, daemon: &'a Daemon, state_dir: &'a Path, tls: TlsSection) -> Master<'a> {
    let plan = &cluster.state.plan;
    Master {
        name: daemon.own_name(),
        id: daemon.id,
        region: &daemon.region,
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
        members: members(plan, &daemon.region),
        otlp: otlp(plan),
        global: global(plan),
        dev: dev(cluster, &daemon.region),
    }
}

fn chunkserver<'a>(
    cluster: &'a Cluster,
    daemon: &'a Daemon,
    state_dir: &'a Path,
    data: &Path,
    tls: TlsSection,
) -> Chunkserver<'a> {
    let plan = &cluster.state.plan;
    Chunkserver {
        name: daemon.own_name(),
        region: &daemon.region,
        cluster: CLUSTER,
        zone: &daemon.zone,
        rack: "rack-1",
        listen: daemon.address(),
        advertise: daemon.address(),
        data_dirs: vec![data.display().to_string()],
        state_dir,
        http_listen: daemon.http(),
        masters: plan.master_addresses(&daemon.region),
        trash_s: TRASH_S,
        tls,
        otlp: otlp(plan),
        dev: dev(cluster, &daemon.region),
    }
}

/// `own` is the name in the certificate, `name` that within the cluster.
fn client(cluster: &Cluster, region: &str, own: &str, name: &str) -> ClientFile {
    ClientFile {
        cluster: CLUSTER.into(),
        region: region.into(),
        name: own.into(),
        zone: "zone-1".into(),
        masters: cluster.state.plan.master_addresses(region),
        retry_timeout_s: 60,
        write_buffer_mb: 64,
        same_host_reads: true,
        same_host_writes: true,
        delegate: true,
        http_listen: Some("127.0.0.1:0".into()),
        log_dir: Some(cluster.dir.join("log")),
        log_json: true,
        tls: certs::files(&cluster.dir, name),
        otlp: otlp(&cluster.state.plan),
        dev: dev(cluster, region).unwrap_or_default(),
    }
}

/// What lies between regions, and the network of this one; none where there is neither.
fn dev(cluster: &Cluster, region: &str) -> Option<DevConfig> {
    let plan = &cluster.state.plan;
    let wan = plan.is_wide().then(|| wan::path(&cluster.dir));
    let dev = DevConfig { wan, namespace: plan.namespace_of(region) };
    (dev != DevConfig::default()).then_some(dev)
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

#[cfg(test)]
mod tests {
    use super::super::plan::tests::up;
    use super::*;
    use crate::args::DevUp;

    fn table(cluster: &Cluster, name: &str) -> toml::Table {
        std::fs::read_to_string(cluster.config_path(name)).unwrap().parse().unwrap()
    }

    fn written(args: &DevUp) -> (tempfile::TempDir, Cluster) {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::open_or(dir.path(), || Plan::new(args, dir.path())).unwrap();
        make_dir(&dir.path().join("etc")).unwrap();
        write(&cluster).unwrap();
        (dir, cluster)
    }

    #[test]
    fn one_region_knows_nothing_of_others() {
        let (_dir, cluster) = written(&up());
        for name in ["master-1", "chunkserver-1", "client-1", "admin"] {
            let table = table(&cluster, name);
            assert!(!table.contains_key("global") && !table.contains_key("dev"), "{name}: {table}");
            assert_eq!(table["name"].as_str(), Some(name));
        }
    }

    #[test]
    fn each_master_of_several_regions_is_told_of_all_of_them() {
        let (_dir, cluster) = written(&DevUp { regions: Some(2), ..up() });
        let plan = &cluster.state.plan;
        let global = |name: &str| table(&cluster, name)["global"].clone();
        let of_all = global("region-1.master-1");
        for name in plan.regions.iter().flat_map(|r| plan.masters_of(&r.name)).map(|d| &d.name) {
            assert_eq!(global(name), of_all, "{name}");
        }
        let regions = of_all["regions"].as_array().unwrap();
        let shape: Vec<(&str, i64, bool, usize)> = regions
            .iter()
            .map(|r| {
                let witness = r.get("witness").is_some_and(|w| w.as_bool().unwrap());
                let masters = r["masters"].as_array().unwrap().len();
                (r["name"].as_str().unwrap(), r["number"].as_integer().unwrap(), witness, masters)
            })
            .collect();
        assert_eq!(shape, [("region-1", 1, false, 3), ("region-2", 2, false, 3), ("witness", 3, true, 1)]);
        let second = &regions[1]["masters"][2];
        let daemon = cluster.daemon("region-2.master-3").unwrap();
        assert_eq!(second["name"].as_str(), Some("master-3"));
        assert_eq!(second["address"].as_str(), Some(&*daemon.address()));
        assert_eq!((second["id"].as_integer(), second["zone"].as_str()), (Some(3), Some("zone-3")));

        let master = table(&cluster, "region-2.master-3");
        assert_eq!(
            (master["name"].as_str(), master["region"].as_str()),
            (Some("master-3"), Some("region-2"))
        );
        assert_eq!(master["members"], regions[1]["masters"]);
        let wan = cluster.dir.join("wan.toml");
        for name in ["region-2.master-3", "region-1.chunkserver-2", "region-2.client-1", "witness.admin"] {
            assert_eq!(table(&cluster, name)["dev"]["wan"].as_str(), wan.to_str(), "{name}");
        }
        let chunkserver = table(&cluster, "region-2.chunkserver-1");
        let masters: Vec<&str> =
            chunkserver["masters"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
        assert_eq!(masters, plan.master_addresses("region-2"));
        let client = ClientFile::read(&cluster.config_path("region-2.client-1")).unwrap();
        assert_eq!((client.name.as_str(), client.region.as_str()), ("client-1", "region-2"));
        assert_eq!(client.dev.wan, Some(wan));
    }

    #[test]
    fn everybody_of_a_region_is_told_of_its_network_namespace() {
        let (_dir, cluster) = written(&DevUp { regions: Some(2), isolate: true, ..up() });
        for region in ["region-1", "region-2"] {
            let namespace = cluster.state.plan.namespace_of(region).unwrap();
            for own in ["master-1", "chunkserver-1", "client-1", "admin"] {
                let table = table(&cluster, &format!("{region}.{own}"));
                assert_eq!(table["dev"]["namespace"].as_str(), namespace.to_str(), "{own}");
            }
        }
        let master = table(&cluster, "region-2.master-1");
        assert!(master["listen"].as_str().unwrap().starts_with("10.213.0.2:"), "{master}");
        assert!(master["http_listen"].as_str().unwrap().starts_with("127.0.0.1:"), "{master}");
    }
}
