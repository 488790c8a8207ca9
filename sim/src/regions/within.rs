//! What goes wrong in one of three regions as it does in a run of one: disks that fail or are full, files that lose bits, hosts that hang or are back before anybody
//! misses them, masters that are cut from their group, slow links, and a power loss of everything at once.
//!
//! It comes beside the rest of what goes wrong, in a share of the seeds, from choices of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use mooseng_wire::ChunkId;
use rand::Rng;
use rand::rngs::StdRng;

use super::shape::{LATENCY_MAX, Region, Shape};
use crate::copies;
use crate::kinds;
use crate::machines::Machines;

/// What the choices are drawn from.
const LABEL: u64 = 0x1_7417;
const MS: fn(u64) -> Duration = Duration::from_millis;

/// A chunkserver whose disk loses bits.
#[derive(Clone, Debug)]
struct Rotten {
    region: usize,
    name: String,
}

/// Makes things go wrong within regions.
pub struct Within {
    rng: StdRng,
    next: Duration,
    rotten: Option<Rotten>,
    /// Regions whose links are slow, and until when.
    slow: Vec<(Duration, usize)>,
}

impl Within {
    /// A seed's; none where it has none. `loses_disk`: one is lost besides, so that none rots.
    pub fn of(seed: u64, shape: &Shape, loses_disk: bool) -> Option<Self> {
        if !kinds::faults_within(seed) {
            return None;
        }
        let mut rng = kinds::draws(seed, LABEL);
        let next = MS(rng.random_range(8_000..12_000));
        let with_data = shape.regions.iter().enumerate().filter(|(_, region)| !region.is_witness());
        let with_data: Vec<(usize, &Region)> = with_data.collect();
        let rots = rng.random::<bool>();
        let (region, of) = with_data[rng.random_range(0..with_data.len())];
        let name = of.chunkservers[rng.random_range(0..of.chunkservers.len())].clone();
        let rotten = (rots && !loses_disk).then_some(Rotten { region, name });
        tracing::info!(?rotten, "what goes wrong in one region goes wrong in these, too");
        Some(Self { rng, next, rotten, slow: Vec::new() })
    }

    /// Chunkservers whose copies may be damaged.
    pub fn damaged(&self) -> BTreeSet<String> {
        self.rotten.iter().map(|rotten| rotten.name.clone()).collect()
    }

    /// The region whose chunks may lose bits, if it is time.
    pub fn rots_now(&self, now: Duration) -> Option<usize> {
        self.rotten.as_ref().filter(|_| now >= self.next).map(|rotten| rotten.region)
    }

    fn set_links(sim: &turmoil::Sim<'_>, region: &Region, most: Duration) {
        let hosts = region.hosts();
        for (at, a) in hosts.iter().enumerate() {
            hosts[..at].iter().for_each(|b| sim.set_link_max_message_latency(a.as_str(), b.as_str(), most));
        }
    }

    /// Links that are slow until now are so no more.
    pub fn heal(&mut self, sim: &turmoil::Sim<'_>, shape: &Shape, now: Duration) {
        for (_, region) in self.slow.extract_if(.., |(until, _)| *until <= now) {
            Self::set_links(sim, &shape.regions[region], LATENCY_MAX);
        }
    }

    /// Nor any others.
    pub fn heal_all(&mut self, sim: &turmoil::Sim<'_>, shape: &Shape) {
        self.heal(sim, shape, Duration::MAX);
    }

    /// Something goes wrong, if it is time. `may_rot`: chunks that lie whole on another chunkserver, too.
    pub fn act(
        &mut self,
        machines: &mut Machines,
        sim: &mut turmoil::Sim<'_>,
        shape: &Shape,
        now: Duration,
        may_rot: &[ChunkId],
    ) {
        if now < self.next {
            return;
        }
        let Self { rng, next, rotten, slow } = self;
        machines.drawing(rng, |machines| {
            *next = now + machines.between(1_500, 7_000);
            if let Some(rotten) = rotten
                && !may_rot.is_empty()
                && machines.rng.random_range(0..2) == 0
            {
                let paths: BTreeSet<_> = may_rot.iter().map(|chunk| copies::path(*chunk)).collect();
                machines.flip_bits(&rotten.name, |path| paths.contains(path));
            }
            let at = machines.rng.random_range(0..shape.regions.len());
            go_wrong(machines, sim, shape, at, now, slow);
        });
    }
}

/// The master that serves a region, if one does.
fn leader(machines: &Machines, region: &Region) -> Option<String> {
    let mut leader = None;
    machines.each_master(|name, master| {
        if region.all_masters().any(|of| of == name) && master.serving().is_ok() {
            leader = Some(name.to_owned());
        }
    });
    leader
}

fn go_wrong(
    machines: &mut Machines,
    sim: &mut turmoil::Sim<'_>,
    shape: &Shape,
    at: usize,
    now: Duration,
    slow: &mut Vec<(Duration, usize)>,
) {
    let region = &shape.regions[at];
    let servers = region.servers();
    let host = machines.one_of(&servers).to_owned();
    let until = now + machines.between(50, 6_000);
    let kind = machines.rng.random_range(0..100);
    let group: Vec<String> = region.all_masters().cloned().collect();
    let leader = leader(machines, region);
    match (kind, leader) {
        (0..12, _) => machines.hang(&host, until),
        (12..24, leader) => {
            // Before anybody misses it: the leader more often than not.
            let host = leader.filter(|_| machines.rng.random_range(0..3) > 0).unwrap_or(host);
            let until = now + machines.between(3, 80);
            machines.crash(sim, &host, until);
        }
        (24..31, _) => {
            let most = machines.between(4, 120);
            tracing::info!(region = region.name, ?most, "slower");
            Within::set_links(sim, region, most);
            slow.push((until, at));
            machines.counts.one("slow regions");
        }
        (31..36, _) => {
            let other = machines.one_of(&servers).to_owned();
            machines.cut(sim, &host, &other, until, false);
        }
        (36..40, _) => {
            tracing::info!("everything loses power");
            for host in shape.regions.iter().flat_map(Region::servers) {
                let until = now + machines.between(400, 900);
                machines.crash(sim, &host, until);
            }
            machines.counts.one("power losses of everything");
        }
        (40..50, Some(leader)) if group.len() > 1 => machines.isolate(sim, &leader, &group, until),
        (50..58, Some(leader)) if group.len() > 1 => machines.quick_restart(sim, &leader, &group, now),
        (58..64, Some(leader)) if group.len() > 1 => machines.orphan(sim, &leader, &group, now),
        _ => machines.disk_fault(&host, now),
    }
}
