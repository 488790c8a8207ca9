//! What a run of several regions is like.

use std::time::Duration;

use mooseng_master::{GlobalConfig, GlobalRaftConfig, RegionConfig, RegionMasterConfig};
use rand::Rng;
use rand::rngs::StdRng;

use crate::hosts;

/// A region's lease, and a session's: a third of what they are by default, so that a run sees several failovers.
pub const LEASE_MS: u64 = 3_000;

/// The longest way from one host to another of its region.
pub const LATENCY_MAX: Duration = Duration::from_millis(3);

/// A region.
#[derive(Clone, Debug)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// Its masters' hosts.
    pub masters: Vec<String>,
    /// The host of the master that takes a lost one's place, where one is lost.
    pub substitute: Option<String>,
    /// Its chunkservers'; none of a witness.
    pub chunkservers: Vec<String>,
    /// Its mounts'.
    pub clients: Vec<String>,
}

impl Region {
    /// Masters, with the one that takes a lost one's place.
    pub fn all_masters(&self) -> impl Iterator<Item = &String> {
        self.masters.iter().chain(&self.substitute)
    }

    /// Masters and chunkservers.
    pub fn servers(&self) -> Vec<String> {
        self.all_masters().chain(&self.chunkservers).cloned().collect()
    }

    /// All of its hosts.
    pub fn hosts(&self) -> Vec<String> {
        self.servers().into_iter().chain(self.clients.iter().cloned()).collect()
    }

    /// Whether it has a voice and no data.
    pub fn is_witness(&self) -> bool {
        self.chunkservers.is_empty()
    }
}

/// A run.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The regions; the first one is the home at first.
    pub regions: Vec<Region>,
    /// The root volume is a `geo` one.
    pub geo: bool,
    /// A home that is left alone lets fsync wait.
    pub blocks_alone: bool,
    /// One way from one region to another takes so long, and up to half as long again.
    pub wan: Duration,
    /// The most a clock is fast or slow.
    pub drift_ppm: i32,
    /// Entries between snapshots, and those kept behind one.
    pub snapshots: (u64, u64),
    /// House-keeping doesn't wait long.
    pub hasty: bool,
    /// What a home's chunkservers send to other regions comes, now and then, when another region is the home.
    pub late_pushes: bool,
    /// Homes are deposed now and then with changes under way, and hear of it at once.
    pub deposes: bool,
    /// Mounts make names alone, and tell them afterwards.
    pub alone: bool,
}

impl Shape {
    /// A seed's.
    pub fn of(rng: &mut StdRng) -> Self {
        let masters = if rng.random_range(0..4) == 0 { 3 } else { 1 };
        let witness = rng.random::<bool>();
        let third = if rng.random() { 1 } else { 0 };
        let region = |(at, name): (usize, &str)| {
            let is_witness = at == 2 && witness;
            let of = |kind: &str, n: usize| (1..=n).map(|i| format!("{name}-{kind}{i}")).collect();
            Region {
                name: name.to_owned(),
                masters: of("m", if is_witness { 1 } else { masters }),
                substitute: None,
                chunkservers: of("c", if is_witness { 0 } else { 2 }),
                clients: of("client", if at < 2 { 1 + usize::from(at == third) } else { 0 }),
            }
        };
        let often = rng.random_range(0..10) < 4;
        Self {
            regions: ["a", "b", "c"].into_iter().enumerate().map(region).collect(),
            geo: rng.random_range(0..4) > 0,
            blocks_alone: rng.random_range(0..3) == 0,
            wan: Duration::from_millis(rng.random_range(5..40)),
            // Of what a lease allows for, which is a hundredth, most.
            drift_ppm: if rng.random() { 9_000 } else { 200 },
            snapshots: if often {
                (rng.random_range(50..300), rng.random_range(2..60))
            } else {
                (10_000, 5_000)
            },
            hasty: rng.random(),
            late_pushes: false,
            deposes: false,
            alone: false,
        }
    }

    /// The region of a host.
    pub fn region_of(&self, host: &str) -> &Region {
        let of = |region: &&Region| region.hosts().iter().any(|name| name == host);
        self.regions.iter().find(of).unwrap_or(&self.regions[0])
    }

    /// How old what the home of a `region` volume has alone may be before writers wait, in milliseconds.
    pub fn lag_max_ms(&self) -> u64 {
        if self.hasty { 1_000 } else { 60_000 }
    }

    /// Regions with data.
    pub fn with_data(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().filter(|region| !region.is_witness())
    }

    /// What a master is told of the regions. A substitute is in its own configuration alone: the others were started before it was thought of.
    pub fn global(&self, own: &str) -> GlobalConfig {
        let master = |(i, name): (usize, &String)| RegionMasterConfig {
            id: i as u64 + 1,
            name: name.clone(),
            address: hosts::address(name),
            zone: format!("z{}", i + 1),
        };
        let region = |(i, region): (usize, &Region)| RegionConfig {
            name: region.name.clone(),
            number: i as u16 + 1,
            witness: region.is_witness(),
            masters: {
                let listed = |name: &&String| region.masters.contains(name) || name.as_str() == own;
                region.all_masters().enumerate().filter(|(_, name)| listed(name)).map(master).collect()
            },
        };
        GlobalConfig {
            join: None,
            root_home: None,
            lease_ms: LEASE_MS,
            raft: GlobalRaftConfig { heartbeat_ms: 150, election_min_ms: 700, election_max_ms: 1_200 },
            regions: self.regions.iter().enumerate().map(region).collect(),
        }
    }
}
