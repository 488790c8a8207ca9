//! What a dev cluster consists of: decided once, kept in its directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mooseng_otlp::OtlpConfig;
use mooseng_transport::wan::WanRules;
use mooseng_wire::Role;
use serde::{Deserialize, Serialize};

use super::namespaces;
use crate::args::{DevUp, Durability};
use crate::exit::Failure;

/// The cluster's name in certificates.
pub const CLUSTER: &str = "dev";
/// The first region's name, and that of the only one.
pub const REGION: &str = "region-1";
/// The name of a region without data.
pub const WITNESS: &str = "witness";
/// The name of the process that serves a region's mount, in that region.
pub const CLIENT: &str = "client-1";
/// The name of a region's administrator.
pub const ADMIN: &str = "admin";
/// Most regions with data.
const REGIONS_MAX: u32 = 4;
/// Round trip between regions where none was asked for.
const ROUND_TRIP_MS: u64 = 60;

/// Settings of a cluster and its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Copies of each chunk in each region.
    pub copies: u32,
    /// Where it is mounted, if it is: with several regions the directory of their mounts.
    pub mount: Option<PathBuf>,
    /// How long leaves live.
    pub leaf_lifetime_ms: u64,
    /// How long deleted files are kept, as the region began; none for the masters' own default.
    #[serde(default)]
    pub trash_retention_s: Option<u64>,
    /// The collector that spans and metrics go to, if they do.
    #[serde(default)]
    pub otlp: Option<String>,
    /// Whether the directory goes when the cluster ends.
    pub temporary: bool,
    /// In the order of their numbers, the witness last.
    #[serde(default = "only_region")]
    pub regions: Vec<Region>,
    /// Round trip between regions, in milliseconds; 0 with one region.
    #[serde(default)]
    pub round_trip_ms: u64,
    /// The root volume is still to be made `geo`, or not, once all regions are there.
    #[serde(default)]
    pub geo_due: Option<bool>,
    /// What the names of the regions' network namespaces begin with, if they have some.
    #[serde(default)]
    pub namespaces: Option<String>,
    /// Masters, then chunkservers.
    pub daemons: Vec<Daemon>,
}

/// A region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// Its number, from 1.
    pub number: u16,
    /// It has a master and no data.
    pub witness: bool,
}

/// A master or a chunkserver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its name, which no other process of the cluster has.
    pub name: String,
    /// Its region.
    #[serde(default = "first_region")]
    pub region: String,
    /// What it is.
    pub role: Role,
    /// Its Raft id; 0 for chunkservers.
    pub id: u64,
    /// Its zone.
    pub zone: String,
    /// Its address, that of its region's network namespace if it has one.
    #[serde(default = "loopback")]
    pub host: String,
    /// Its port for peers and clients.
    pub port: u16,
    /// Its port for /metrics, /healthz and /readyz, on 127.0.0.1 (that of its network namespace).
    pub http_port: u16,
}

/// A process that serves a region's mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its name, which no other process of the cluster has.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Where it mounts, if it does.
    pub mount: Option<PathBuf>,
}

fn first_region() -> String {
    REGION.to_owned()
}

fn loopback() -> String {
    "127.0.0.1".to_owned()
}

fn only_region() -> Vec<Region> {
    vec![Region { name: REGION.to_owned(), number: 1, witness: false }]
}

/// Regions with data, and with several of them a witness, so that a majority of the global group survives the loss of any region.
fn regions(count: u32) -> Vec<Region> {
    if count == 1 {
        return only_region();
    }
    let mut regions: Vec<Region> = (1..=count as u16)
        .map(|number| Region { name: format!("region-{number}"), number, witness: false })
        .collect();
    regions.push(Region { name: WITNESS.to_owned(), number: count as u16 + 1, witness: true });
    regions
}

/// A process's name within the cluster: with one region that within the region.
fn unique(regions: &[Region], region: &str, own: &str) -> String {
    if regions.len() == 1 { own.to_owned() } else { format!("{region}.{own}") }
}

impl Daemon {
    /// host:port for peers and clients.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
    /// host:port for health and metrics.
    pub fn http(&self) -> String {
        format!("127.0.0.1:{}", self.http_port)
    }
    /// Its name within its region, as in its certificate.
    pub fn own_name(&self) -> &str {
        self.name.strip_prefix(&self.region).and_then(|rest| rest.strip_prefix('.')).unwrap_or(&self.name)
    }
    /// The binary that it runs.
    pub fn binary(&self) -> &'static str {
        match self.role {
            Role::Master => "mooseng-master",
            _ => "mooseng-chunkserver",
        }
    }
}

impl Plan {
    /// A new cluster's plan.
    pub fn new(args: &DevUp, dir: &Path) -> Result<Self, Failure> {
        let (masters, chunkservers, copies) =
            (args.masters.unwrap_or(3), args.chunkservers.unwrap_or(3), args.copies.unwrap_or(2));
        check_sizes(masters, chunkservers, copies)?;
        let count = args.regions.unwrap_or(2);
        if !(1..=REGIONS_MAX).contains(&count) {
            return Err(Failure::usage(format!(
                "--regions {count}: a dev cluster has 1 to {REGIONS_MAX} regions with data."
            )));
        }
        let regions = regions(count);
        let members = |role: Role, n: u32| {
            regions.iter().flat_map(move |region| {
                let here = match (region.witness, role) {
                    (false, _) => n,
                    (true, Role::Master) => 1,
                    (true, _) => 0,
                };
                (1..=here).map(move |n| (region, role, n))
            })
        };
        let members: Vec<(&Region, Role, u32)> =
            members(Role::Master, masters).chain(members(Role::Chunkserver, chunkservers)).collect();
        let mut ports = free_ports(2 * members.len())?.into_iter();
        let mut port = || ports.next().unwrap_or_default();
        let daemons = members.into_iter().map(|(region, role, n)| Daemon {
            name: unique(&regions, &region.name, &format!("{role}-{n}")),
            region: region.name.clone(),
            role,
            id: if role == Role::Master { u64::from(n) } else { 0 },
            zone: format!("zone-{n}"),
            host: if args.isolate { namespaces::address(region) } else { loopback() },
            port: port(),
            http_port: port(),
        });
        let daemons = daemons.collect();
        let otlp = args.otlp.as_deref().map(otlp).transpose()?.flatten();
        check_reach(args.isolate, otlp.as_deref())?;
        Ok(Self {
            copies,
            mount: mount_path(args, dir)?,
            leaf_lifetime_ms: lifetime_ms(args.leaf_lifetime.unwrap_or(Duration::from_secs(86_400)))?,
            trash_retention_s: args.trash_retention.map(|retention| retention.as_secs()),
            otlp,
            temporary: args.dir.is_none(),
            round_trip_ms: round_trip_ms(args.wan, regions.len())?.unwrap_or(if regions.len() > 1 {
                ROUND_TRIP_MS
            } else {
                0
            }),
            geo_due: geo(args.durability, regions.len())?.or((regions.len() > 1).then_some(true)),
            namespaces: args.isolate.then(|| namespaces::tag(dir)),
            regions,
            daemons,
        })
    }

    /// The kept plan with what may change between two starts; what may not is refused.
    pub fn adapt(&mut self, args: &DevUp, dir: &Path) -> Result<(), Failure> {
        let of =
            |role: Role| self.daemons.iter().filter(|d| d.region == REGION && d.role == role).count() as u32;
        let (masters, chunkservers) = (of(Role::Master), of(Role::Chunkserver));
        let with_data = self.regions.iter().filter(|r| !r.witness).count() as u32;
        for (flag, asked, kept) in [
            ("--regions", args.regions, with_data),
            ("--masters", args.masters, masters),
            ("--chunkservers", args.chunkservers, chunkservers),
            ("--copies", args.copies, self.copies),
        ] {
            if asked.is_some_and(|a| a != kept) {
                return Err(Failure::usage(format!(
                    "The cluster in {} was made with {flag} {kept}, which can't be changed; leave it out, or make another in a new --dir.",
                    dir.display()
                )));
            }
        }
        if args.isolate && self.namespaces.is_none() {
            return Err(Failure::usage(format!(
                "The cluster in {} was made without --isolate, which can't be changed; leave it out, or make another in a new --dir.",
                dir.display()
            )));
        }
        if args.trash_retention.is_some_and(|asked| Some(asked.as_secs()) != self.trash_retention_s) {
            return Err(Failure::usage(format!(
                "The cluster in {} exists: --trash-retention is for new ones. `mooseng trash retention` changes it.",
                dir.display()
            )));
        }
        if args.mount.is_some() || args.no_mount {
            self.mount = mount_path(args, dir)?;
        }
        if let Some(endpoint) = &args.otlp {
            let otlp = otlp(endpoint)?;
            check_reach(self.namespaces.is_some(), otlp.as_deref())?;
            self.otlp = otlp;
        }
        if let Some(round_trip_ms) = round_trip_ms(args.wan, self.regions.len())? {
            self.round_trip_ms = round_trip_ms;
        }
        self.geo_due = geo(args.durability, self.regions.len())?.or(self.geo_due);
        if let Some(lifetime) = args.leaf_lifetime {
            self.leaf_lifetime_ms = lifetime_ms(lifetime)?;
        }
        Ok(())
    }

    /// Whether there are several regions, which delays and cuts lie between.
    pub fn is_wide(&self) -> bool {
        self.regions.len() > 1
    }

    /// The network namespace of the region of that name, if it has one.
    pub fn namespace_of(&self, region: &str) -> Option<PathBuf> {
        self.namespaces.as_ref().map(|tag| namespaces::path(tag, region))
    }

    /// The region of that name.
    pub fn region(&self, name: &str) -> Option<&Region> {
        self.regions.iter().find(|r| r.name == name)
    }

    /// The masters of a region.
    pub fn masters_of(&self, region: &str) -> impl Iterator<Item = &Daemon> {
        self.daemons.iter().filter(move |d| d.role == Role::Master && d.region == region)
    }

    /// Their addresses.
    pub fn master_addresses(&self, region: &str) -> Vec<String> {
        self.masters_of(region).map(Daemon::address).collect()
    }

    /// Whether there is something to mount in a region: the root volume, at home in the first one, or its replica.
    pub fn has_tree(&self, region: &Region) -> bool {
        !region.witness
    }

    /// The clients of the regions with data, each with where it mounts, if there is something to mount.
    pub fn clients(&self) -> Vec<Client> {
        let client = |region: &Region| {
            let base = self.mount.as_ref().filter(|_| self.has_tree(region));
            Client {
                name: unique(&self.regions, &region.name, CLIENT),
                region: region.name.clone(),
                mount: base.map(|base| if self.is_wide() { base.join(&region.name) } else { base.clone() }),
            }
        };
        self.regions.iter().filter(|r| !r.witness).map(client).collect()
    }

    /// The client of that name.
    pub fn client(&self, name: &str) -> Option<Client> {
        self.clients().into_iter().find(|c| c.name == name)
    }

    /// The name of a region's administrator within the cluster.
    pub fn admin(&self, region: &str) -> String {
        unique(&self.regions, region, ADMIN)
    }

    /// How long leaves live.
    pub fn leaf_lifetime(&self) -> Duration {
        Duration::from_millis(self.leaf_lifetime_ms)
    }
}

fn check_sizes(masters: u32, chunkservers: u32, copies: u32) -> Result<(), Failure> {
    if !(1..=9).contains(&masters) {
        return Err(Failure::usage(format!("--masters {masters}: a region has 1 to 9 masters.")));
    }
    if !(1..=64).contains(&chunkservers) {
        return Err(Failure::usage(format!(
            "--chunkservers {chunkservers}: a dev cluster has 1 to 64 chunkservers."
        )));
    }
    if !(1..=chunkservers).contains(&copies) {
        return Err(Failure::usage(format!(
            "--copies {copies}: there must be at least one copy, and no more than chunkservers ({chunkservers})."
        )));
    }
    Ok(())
}

/// Nothing outside of a region's network namespace is reached from it but the other regions.
fn check_reach(isolated: bool, otlp: Option<&str>) -> Result<(), Failure> {
    match otlp {
        Some(endpoint) if isolated => Err(Failure::usage(format!(
            "--otlp {endpoint}: the regions of a cluster that was made with --isolate reach no collector outside of their network namespaces; leave one of the two out."
        ))),
        _ => Ok(()),
    }
}

fn mount_path(args: &DevUp, dir: &Path) -> Result<Option<PathBuf>, Failure> {
    match &args.mount {
        _ if args.no_mount => Ok(None),
        Some(path) => crate::config::absolute(path).map(Some),
        None => Ok(Some(dir.join("mnt"))),
    }
}

/// A round trip between regions that was asked for.
fn round_trip_ms(asked: Option<Duration>, regions: usize) -> Result<Option<u64>, Failure> {
    let Some(asked) = asked else { return Ok(None) };
    if regions == 1 {
        return Err(Failure::usage(
            "--wan is the round trip between regions, but there is one only: leave --regions 1 out.",
        ));
    }
    let ms = u64::try_from(asked.as_millis()).unwrap_or(u64::MAX);
    WanRules { default_round_trip_ms: ms, ..WanRules::default() }
        .check()
        .map_err(|reason| Failure::usage(format!("--wan: {reason}.")))?;
    Ok(Some(ms))
}

/// Whether the root volume is to be `geo`, where it was asked for.
fn geo(asked: Option<Durability>, regions: usize) -> Result<Option<bool>, Failure> {
    match asked {
        Some(Durability::Geo) if regions == 1 => {
            let why =
                "--durability geo waits for another region, but there is one only: leave --regions 1 out.";
            Err(Failure::usage(why))
        }
        // One region has nothing to agree on.
        _ if regions == 1 => Ok(None),
        asked => Ok(asked.map(|asked| asked == Durability::Geo)),
    }
}

/// The endpoint of a collector; none where nothing is to be sent any more.
fn otlp(endpoint: &str) -> Result<Option<String>, Failure> {
    if endpoint == "off" {
        return Ok(None);
    }
    OtlpConfig::to(endpoint).check().map_err(|e| {
        Failure::usage(format!(
            "--otlp {endpoint}: {e}. A dev cluster speaks in clear to a collector, as in http://127.0.0.1:4317."
        ))
    })?;
    Ok(Some(endpoint.to_owned()))
}

fn lifetime_ms(lifetime: Duration) -> Result<u64, Failure> {
    if lifetime < Duration::from_secs(10) {
        return Err(Failure::usage(
            "--leaf-lifetime: certificates that live less than 10 s can't be renewed in time.",
        ));
    }
    Ok(lifetime.as_millis() as u64)
}

/// Free loopback ports, below the range that the kernel takes for outgoing connections: a daemon that is down for a while must find
/// its port free again, and nobody who reconnects to it may by chance be given that very port and connect to himself.
fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    let first_ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|t| t.split_whitespace().next()?.parse::<u16>().ok())
        .unwrap_or(32_768);
    let low = 10_240_u16;
    let high = if first_ephemeral > low + 2048 { first_ephemeral } else { 32_768 };
    let span = usize::from(high - low);
    let start: usize = rand::random_range(0..span);
    // Each is held until all are found, so that none is found twice.
    let mut held = Vec::new();
    for step in 0..span {
        let port = low + ((start + step) % span) as u16;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push((port, listener));
        }
        if held.len() == count {
            return Ok(held.into_iter().map(|(port, _)| port).collect());
        }
    }
    Err(Failure::failed(format!("There are no {count} free ports on 127.0.0.1 between {low} and {high}.")))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// `mooseng dev up --regions 1`.
    pub fn up() -> DevUp {
        DevUp {
            dir: Some("/d".into()),
            masters: None,
            chunkservers: None,
            copies: None,
            mount: None,
            no_mount: false,
            isolate: false,
            detach: false,
            leaf_lifetime: None,
            trash_retention: None,
            otlp: None,
            regions: Some(1),
            wan: None,
            durability: None,
            wait: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_region_is_three_and_three_in_zones_of_their_own() {
        let plan = Plan::new(&up(), Path::new("/d")).unwrap();
        let names: Vec<&str> = plan.daemons.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(
            names,
            ["master-1", "master-2", "master-3", "chunkserver-1", "chunkserver-2", "chunkserver-3"]
        );
        assert_eq!(plan.daemons[4].zone, "zone-2");
        assert_eq!(plan.mount, Some("/d/mnt".into()));
        let client = Client { name: "client-1".into(), region: REGION.into(), mount: Some("/d/mnt".into()) };
        assert_eq!((plan.clients(), plan.admin(REGION)), (vec![client], "admin".into()));
        assert_eq!((plan.daemons[0].own_name(), plan.round_trip_ms), ("master-1", 0));
        let mut ports: Vec<u16> = plan.daemons.iter().flat_map(|d| [d.port, d.http_port]).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 12);
        assert!(ports[0] > 1024);
    }

    #[test]
    fn several_regions_have_daemons_of_their_own_and_a_witness() {
        let two = DevUp { regions: Some(2), chunkservers: Some(2), ..up() };
        let mut plan = Plan::new(&two, Path::new("/d")).unwrap();
        let names: Vec<&str> = plan.daemons.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "region-1.master-1",
                "region-1.master-2",
                "region-1.master-3",
                "region-2.master-1",
                "region-2.master-2",
                "region-2.master-3",
                "witness.master-1",
                "region-1.chunkserver-1",
                "region-1.chunkserver-2",
                "region-2.chunkserver-1",
                "region-2.chunkserver-2",
            ]
        );
        assert_eq!((plan.daemons[3].own_name(), plan.daemons[3].id), ("master-1", 1));
        assert_eq!((plan.masters_of("region-2").count(), plan.masters_of(WITNESS).count()), (3, 1));
        let numbers: Vec<(u16, bool)> = plan.regions.iter().map(|r| (r.number, r.witness)).collect();
        assert_eq!(numbers, [(1, false), (2, false), (3, true)]);
        let clients = plan.clients();
        let mounts: Vec<(&str, Option<&Path>)> =
            clients.iter().map(|c| (c.name.as_str(), c.mount.as_deref())).collect();
        assert_eq!(
            mounts,
            [
                ("region-1.client-1", Some(Path::new("/d/mnt/region-1"))),
                ("region-2.client-1", Some(Path::new("/d/mnt/region-2")))
            ]
        );
        assert_eq!((plan.round_trip_ms, plan.admin("region-2")), (60, "region-2.admin".into()));
        let unsaid = DevUp { regions: None, ..up() };
        plan.adapt(&DevUp { wan: Some(Duration::from_millis(5)), ..unsaid.clone() }, Path::new("/d"))
            .unwrap();
        assert_eq!((plan.round_trip_ms, plan.geo_due), (5, Some(true)));
        plan.adapt(&DevUp { durability: Some(Durability::Region), ..unsaid.clone() }, Path::new("/d"))
            .unwrap();
        assert_eq!(plan.geo_due, Some(false));
        let made = Plan::new(&unsaid, Path::new("/d")).unwrap();
        assert_eq!(
            (made.regions.len(), made.round_trip_ms, made.geo_due),
            (3, 60, Some(true)),
            "the default"
        );
        let other = DevUp { regions: Some(3), ..up() };
        assert_eq!(plan.adapt(&other, Path::new("/d")).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn a_plan_of_before_there_were_regions_is_of_one() {
        let old = r#"{"copies": 2, "mount": "/d/mnt", "leaf_lifetime_ms": 86400000, "temporary": false, "daemons": [
            {"name": "master-1", "role": "master", "id": 1, "zone": "zone-1", "port": 7001, "http_port": 7002},
            {"name": "chunkserver-1", "role": "chunkserver", "id": 0, "zone": "zone-1", "port": 7003, "http_port": 7004}]}"#;
        let mut plan: Plan = serde_json::from_str(old).unwrap();
        assert_eq!((plan.regions.clone(), plan.is_wide()), (only_region(), false));
        assert_eq!(plan.clients()[0].mount, Some("/d/mnt".into()));
        assert_eq!(plan.master_addresses(REGION), ["127.0.0.1:7001"]);
        plan.adapt(&DevUp { masters: Some(1), regions: Some(1), ..up() }, Path::new("/d")).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(), plan);
    }

    #[test]
    fn what_is_kept_can_not_be_changed_and_the_mount_can() {
        let mut plan = Plan::new(&up(), Path::new("/d")).unwrap();
        let other = DevUp { masters: Some(5), ..up() };
        assert_eq!(plan.adapt(&other, Path::new("/d")).unwrap_err().exit_code(), 2);
        let isolated = DevUp { isolate: true, ..up() };
        assert_eq!(plan.adapt(&isolated, Path::new("/d")).unwrap_err().exit_code(), 2);
        let mut in_namespaces = Plan::new(&isolated, Path::new("/d")).unwrap();
        in_namespaces.adapt(&up(), Path::new("/d")).unwrap();
        assert!(in_namespaces.namespace_of(REGION).is_some());
        plan.adapt(&DevUp { masters: Some(3), no_mount: true, ..up() }, Path::new("/d")).unwrap();
        assert_eq!(plan.mount, None);
        let kept = DevUp { trash_retention: Some(Duration::from_secs(60)), ..up() };
        assert_eq!(plan.adapt(&kept, Path::new("/d")).unwrap_err().exit_code(), 2);
        let mut plan = Plan::new(&kept, Path::new("/d")).unwrap();
        plan.adapt(&kept, Path::new("/d")).unwrap();
        assert_eq!(plan.trash_retention_s, Some(60));
    }

    #[test]
    fn a_collector_is_kept_until_it_is_switched_off() {
        let to = |endpoint: &str| DevUp { otlp: Some(endpoint.into()), ..up() };
        let mut plan = Plan::new(&up(), Path::new("/d")).unwrap();
        assert_eq!(plan.otlp, None);
        plan.adapt(&to("http://127.0.0.1:4317"), Path::new("/d")).unwrap();
        plan.adapt(&up(), Path::new("/d")).unwrap();
        assert_eq!(plan.otlp.as_deref(), Some("http://127.0.0.1:4317"));
        plan.adapt(&to("off"), Path::new("/d")).unwrap();
        assert_eq!(plan.otlp, None);
    }

    #[test]
    fn senseless_settings_are_refused() {
        for args in [
            DevUp { masters: Some(0), ..up() },
            DevUp { chunkservers: Some(0), ..up() },
            DevUp { copies: Some(4), ..up() },
            DevUp { copies: Some(0), ..up() },
            DevUp { leaf_lifetime: Some(Duration::from_secs(1)), ..up() },
            DevUp { regions: Some(0), ..up() },
            DevUp { regions: Some(5), ..up() },
            DevUp { wan: Some(Duration::from_millis(60)), ..up() },
            DevUp { durability: Some(Durability::Geo), ..up() },
            DevUp { regions: Some(2), wan: Some(Duration::from_secs(60)), ..up() },
            DevUp { otlp: Some("127.0.0.1:4317".into()), ..up() },
            DevUp { otlp: Some("https://127.0.0.1:4317".into()), ..up() },
            DevUp { otlp: Some("http://127.0.0.1:4317".into()), isolate: true, ..up() },
        ] {
            assert_eq!(Plan::new(&args, Path::new("/d")).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}
