//! One run: a region, its clients, and what goes wrong, all from one seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mooseng_ports::disk::sim::{Fault, SimDisk};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::history;
use crate::hosts::{self, SERVERS};
use crate::workload::{self, Shared};

/// How long faults go on.
const FAULTS: Duration = Duration::from_secs(40);
/// How long everything may take to be served again afterwards.
const HEALING: Duration = Duration::from_secs(200);
const CLIENTS: u8 = 2;

/// A bug that is planted to see whether the simulation finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Plant {
    /// Flushes of every disk do nothing.
    LostFlush,
}

/// What a run came to.
#[derive(Debug)]
pub struct Summary {
    /// Operations in the history.
    pub operations: usize,
    /// Of them, without a known outcome.
    pub unknown: usize,
    /// Hosts that were crashed.
    pub crashes: usize,
    /// Cuts between hosts.
    pub cuts: usize,
    /// Simulated time.
    pub simulated: Duration,
}

struct Nemesis {
    rng: StdRng,
    hosts: Vec<String>,
    disks: BTreeMap<String, SimDisk>,
    down: Vec<(String, Duration)>,
    cut: Vec<(String, String, Duration)>,
    next: Duration,
    crashes: usize,
    cuts: usize,
}

impl Nemesis {
    fn crash(&mut self, sim: &mut turmoil::Sim<'_>, host: &str, until: Duration) {
        tracing::info!(host, "crash");
        sim.crash(host);
        let rng = &mut self.rng;
        self.disks[host].crash(|n| rng.random_range(0..=n));
        self.down.push((host.to_owned(), until));
        self.crashes += 1;
    }

    fn heal(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        for (host, _) in self.down.extract_if(.., |(_, until)| *until <= now) {
            tracing::info!(host, "restart");
            sim.bounce(host);
        }
        for (a, b, _) in self.cut.extract_if(.., |(_, _, until)| *until <= now) {
            tracing::info!(a, b, "repair");
            sim.repair(a.as_str(), b.as_str());
        }
    }

    /// At random times: a crash with power loss of one host, of all; a cut in both directions or one; slow links.
    fn act(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        if now < self.next {
            return;
        }
        self.next = now + Duration::from_millis(self.rng.random_range(300..4000));
        let until = now + Duration::from_millis(self.rng.random_range(50..6000));
        let host = self.hosts[self.rng.random_range(0..self.hosts.len())].clone();
        let is_down = |host: &String| self.down.iter().any(|(down, _)| down == host);
        match self.rng.random_range(0..10) {
            0..=3 if !is_down(&host) => self.crash(sim, &host, until),
            4 => {
                for host in self.hosts.clone() {
                    if !self.down.iter().any(|(down, _)| *down == host) {
                        self.crash(sim, &host, now + Duration::from_millis(500));
                    }
                }
            }
            5..=7 => {
                let other = self.hosts[self.rng.random_range(0..self.hosts.len())].clone();
                let other = if other == host { "client0".to_owned() } else { other };
                if self.cut.iter().any(|(a, b, _)| (a, b) == (&host, &other) || (b, a) == (&host, &other)) {
                    return;
                }
                tracing::info!(host, other, "cut");
                if self.rng.random() {
                    sim.partition(host.as_str(), other.as_str());
                } else {
                    sim.partition_oneway(host.as_str(), other.as_str());
                }
                self.cut.push((host, other, until));
                self.cuts += 1;
            }
            _ => {
                let latency = Duration::from_millis(self.rng.random_range(2..120));
                tracing::info!(?latency, "slower");
                sim.set_max_message_latency(latency);
            }
        }
    }
}

/// Runs a seed. The caller has seeded randomness and clocks for the whole process.
pub fn run(seed: u64, plant: Option<Plant>) -> Result<Summary> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sim = turmoil::Builder::new()
        .rng_seed(rng.random())
        .simulation_duration(FAULTS + HEALING + Duration::from_secs(100))
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(5))
        .tcp_capacity(4096)
        .enable_random_order()
        .build();
    let mut disks = BTreeMap::new();
    for i in 1..=SERVERS {
        for kind in ["m", "c"] {
            let disk = SimDisk::new(256 << 20);
            if plant == Some(Plant::LostFlush) {
                disk.set_fault(Fault::Lying);
            }
            disks.insert(format!("{kind}{i}"), disk.clone());
            let host = format!("{kind}{i}");
            if kind == "m" {
                sim.host(host, move || hosts::master(i, disk.clone()));
            } else {
                sim.host(host, move || hosts::chunkserver(i, disk.clone()));
            }
        }
    }
    let shared = Shared::default();
    for number in 0..CLIENTS {
        sim.client(format!("client{number}"), workload::client(number, seed, shared.clone()));
    }
    let hosts = hosts::masters().into_iter().chain(hosts::chunkservers()).collect();
    let mut nemesis = Nemesis {
        rng: StdRng::seed_from_u64(seed.wrapping_mul(31)),
        hosts,
        disks,
        down: Vec::new(),
        cut: Vec::new(),
        next: Duration::from_secs(6),
        crashes: 0,
        cuts: 0,
    };
    let mut healed = false;
    loop {
        let now = sim.elapsed();
        if now < FAULTS {
            nemesis.heal(&mut sim, now);
            nemesis.act(&mut sim, now);
        } else if !healed {
            nemesis.heal(&mut sim, Duration::MAX);
            sim.set_max_message_latency(Duration::from_millis(5));
            shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).healed = true;
            healed = true;
        }
        if now > FAULTS + HEALING {
            bail!(
                "seed {seed}: the clients weren't served again within {HEALING:?} after everything was healed"
            );
        }
        let done = sim.step().map_err(|e| anyhow::anyhow!("seed {seed}: a host failed: {e}"))?;
        if done {
            break;
        }
    }
    let simulated = sim.elapsed();
    drop(sim);
    let notes = Arc::try_unwrap(shared).map_err(|_| anyhow::anyhow!("a client kept its notes"))?;
    let notes = notes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(violation) = notes.violations.first() {
        bail!("seed {seed}: {violation} (and {} more)", notes.violations.len() - 1);
    }
    history::check(&notes.operations)
        .with_context(|| format!("seed {seed}: the history isn't linearizable"))?;
    Ok(Summary {
        operations: notes.operations.len(),
        unknown: notes.operations.iter().filter(|o| o.returned.is_none()).count(),
        crashes: nemesis.crashes,
        cuts: nemesis.cuts,
        simulated,
    })
}
