//! What a dev cluster consists of: decided once, kept in its directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mooseng_otlp::OtlpConfig;
use mooseng_wire::Role;
use serde::{Deserialize, Serialize};

use crate::args::DevUp;
use crate::exit::Failure;

/// The cluster's name in certificates.
pub const CLUSTER: &str = "dev";
/// The only region's name.
pub const REGION: &str = "region-1";
/// The name of the process that serves the mount.
pub const CLIENT: &str = "client-1";

/// Settings of a cluster and its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Copies of each chunk.
    pub copies: u32,
    /// Where it is mounted, if it is.
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
    /// Masters, then chunkservers.
    pub daemons: Vec<Daemon>,
}

/// A master or a chunkserver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its name.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its Raft id; 0 for chunkservers.
    pub id: u64,
    /// Its zone.
    pub zone: String,
    /// Its port for peers and clients, on 127.0.0.1.
    pub port: u16,
    /// Its port for /metrics, /healthz and /readyz, on 127.0.0.1.
    pub http_port: u16,
}

impl Daemon {
    /// host:port for peers and clients.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
    /// host:port for health and metrics.
    pub fn http(&self) -> String {
        format!("127.0.0.1:{}", self.http_port)
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
        let mut ports = free_ports(2 * (masters + chunkservers) as usize)?.into_iter();
        let mut port = || ports.next().unwrap_or_default();
        let mut member = |role: Role, n: u32| Daemon {
            name: format!("{role}-{n}"),
            role,
            id: if role == Role::Master { u64::from(n) } else { 0 },
            zone: format!("zone-{n}"),
            port: port(),
            http_port: port(),
        };
        let daemons = (1..=masters)
            .map(|n| (Role::Master, n))
            .chain((1..=chunkservers).map(|n| (Role::Chunkserver, n)));
        Ok(Self {
            copies,
            mount: mount_path(args, dir)?,
            leaf_lifetime_ms: lifetime_ms(args.leaf_lifetime.unwrap_or(Duration::from_secs(86_400)))?,
            trash_retention_s: args.trash_retention.map(|retention| retention.as_secs()),
            otlp: args.otlp.as_deref().map(otlp).transpose()?.flatten(),
            temporary: args.dir.is_none(),
            daemons: daemons.map(|(role, n)| member(role, n)).collect(),
        })
    }

    /// The kept plan with what may change between two starts; what may not is refused.
    pub fn adapt(&mut self, args: &DevUp, dir: &Path) -> Result<(), Failure> {
        let masters = self.masters().count() as u32;
        let chunkservers = self.daemons.len() as u32 - masters;
        for (flag, asked, kept) in [
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
            self.otlp = otlp(endpoint)?;
        }
        if let Some(lifetime) = args.leaf_lifetime {
            self.leaf_lifetime_ms = lifetime_ms(lifetime)?;
        }
        Ok(())
    }

    /// The masters.
    pub fn masters(&self) -> impl Iterator<Item = &Daemon> {
        self.daemons.iter().filter(|d| d.role == Role::Master)
    }

    /// Addresses of the masters.
    pub fn master_addresses(&self) -> Vec<String> {
        self.masters().map(Daemon::address).collect()
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

fn mount_path(args: &DevUp, dir: &Path) -> Result<Option<PathBuf>, Failure> {
    match &args.mount {
        _ if args.no_mount => Ok(None),
        Some(path) => crate::config::absolute(path).map(Some),
        None => Ok(Some(dir.join("mnt"))),
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
mod tests {
    use super::*;

    fn up() -> DevUp {
        DevUp {
            dir: Some("/d".into()),
            masters: None,
            chunkservers: None,
            copies: None,
            mount: None,
            no_mount: false,
            detach: false,
            leaf_lifetime: None,
            trash_retention: None,
            otlp: None,
            wait: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_default_is_three_and_three_in_zones_of_their_own() {
        let plan = Plan::new(&up(), Path::new("/d")).unwrap();
        let names: Vec<&str> = plan.daemons.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(
            names,
            ["master-1", "master-2", "master-3", "chunkserver-1", "chunkserver-2", "chunkserver-3"]
        );
        assert_eq!(plan.daemons[4].zone, "zone-2");
        assert_eq!(plan.mount, Some("/d/mnt".into()));
        let mut ports: Vec<u16> = plan.daemons.iter().flat_map(|d| [d.port, d.http_port]).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 12);
        assert!(ports[0] > 1024);
    }

    #[test]
    fn what_is_kept_can_not_be_changed_and_the_mount_can() {
        let mut plan = Plan::new(&up(), Path::new("/d")).unwrap();
        let other = DevUp { masters: Some(5), ..up() };
        assert_eq!(plan.adapt(&other, Path::new("/d")).unwrap_err().exit_code(), 2);
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
            DevUp { otlp: Some("127.0.0.1:4317".into()), ..up() },
            DevUp { otlp: Some("https://127.0.0.1:4317".into()), ..up() },
        ] {
            assert_eq!(Plan::new(&args, Path::new("/d")).unwrap_err().exit_code(), 2, "{args:?}");
        }
    }
}
