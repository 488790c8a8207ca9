//! What goes wrong, at random times and from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::hosts::{self, Host, SUBSTITUTE};
use crate::machines::{Counts, Machines, Undo};
use crate::swapped::Swaps;
use crate::watch::Watch;

const MS: fn(u64) -> Duration = Duration::from_millis;
/// The leader's lease: stalls are measured in it.
const LEASE: Duration = Duration::from_millis(400);

/// What a run is like, drawn from its seed.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Entries between snapshots, and those kept behind one.
    pub snapshots: (u64, u64),
    /// When one master is lost for good, and which.
    pub lost: Option<(Duration, usize)>,
    /// The one chunkserver whose disk loses bits.
    pub rotten: Option<String>,
    /// The most a clock is fast or slow.
    pub drift_ppm: i32,
    /// House-keeping doesn't wait long: copies are made, chunks ended and collected all the time.
    pub hasty: bool,
}

impl Shape {
    /// A seed's.
    pub fn of(rng: &mut StdRng) -> Self {
        let often = rng.random_range(0..10) < 7;
        Self {
            snapshots: if often {
                (rng.random_range(20..300), rng.random_range(2..60))
            } else {
                (10_000, 5_000)
            },
            lost: (rng.random_range(0..3) == 0)
                .then(|| (MS(rng.random_range(8_000..25_000)), rng.random_range(1..=hosts::SERVERS))),
            rotten: rng.random::<bool>().then(|| format!("c{}", rng.random_range(1..=hosts::SERVERS))),
            drift_ppm: if rng.random() { 20_000 } else { 200 },
            hasty: rng.random_range(0..4) > 0,
        }
    }
}

/// Makes things go wrong.
pub struct Nemesis {
    machines: Machines,
    shape: Shape,
    /// All hosts with a disk; the substitute only once it is there.
    servers: Vec<String>,
    clients: Vec<String>,
    watch: Watch,
    swaps: Option<Swaps>,
    next: Duration,
    lost: bool,
}

impl Nemesis {
    /// For these hosts.
    pub fn new(
        seed: u64,
        shape: Shape,
        hosts: BTreeMap<String, Host>,
        clients: Vec<String>,
        watch: Watch,
    ) -> Self {
        let servers = hosts::masters().into_iter().chain(hosts::chunkservers()).collect();
        let down = BTreeSet::from([format!("m{SUBSTITUTE}")]);
        let machines = Machines::new(seed, hosts, down, vec![watch.clone()]);
        let [first, second, third] = ["c1", "c2", "c3"].map(str::to_owned);
        let pairs = vec![(first.clone(), second.clone()), (first, third.clone()), (second, third)];
        let swaps = Swaps::of(seed, pairs);
        Self { machines, shape, servers, clients, watch, swaps, next: MS(6_000), lost: false }
    }

    /// What a host has done that it mustn't, if one has.
    pub fn broken(&self) -> Option<&String> {
        self.machines.broken()
    }

    /// What happened.
    pub fn counts(&self) -> Counts {
        self.machines.counts.clone()
    }

    fn between(&mut self, from: u64, to: u64) -> Duration {
        self.machines.between(from, to)
    }

    fn any(&mut self) -> String {
        self.machines.one_of(&self.servers).to_owned()
    }

    fn masters(&self) -> Vec<String> {
        self.servers.iter().filter(|s| s.starts_with('m')).cloned().collect()
    }

    /// Ends what is due, and what a power loss in the midst of an operation hit.
    pub fn heal(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        self.machines.heal(sim, now);
    }

    /// Ends everything.
    pub fn heal_all(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        self.machines.heal_all(sim, &self.servers, now);
        sim.set_max_message_latency(MS(5));
    }

    /// Whether a host may fail on account of its disk.
    pub fn is_excused(&self, host: &str) -> bool {
        self.machines.host(host).is_excused()
    }

    /// Chunkservers whose copies may be damaged.
    pub fn damaged(&self) -> BTreeSet<String> {
        self.shape.rotten.iter().cloned().collect()
    }

    /// The leader more often than not, else any master.
    fn a_master(&mut self) -> String {
        let masters = self.masters();
        let any = self.machines.one_of(&masters).to_owned();
        if self.machines.rng.random_range(0..10) < 7 { self.watch.leader().unwrap_or(any) } else { any }
    }

    /// A master can't reach the others.
    fn isolate(&mut self, sim: &mut turmoil::Sim<'_>, until: Duration) {
        let one = self.a_master();
        let masters = self.masters();
        self.machines.isolate(sim, &one, &masters, until);
    }

    /// A host, the leader more often than not, is back before anybody misses it.
    fn blink(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let host = if self.machines.rng.random_range(0..3) > 0 { self.a_master() } else { self.any() };
        let until = now + self.between(3, 80);
        self.machines.crash(sim, &host, until);
    }

    /// One master's disk is lost for good, and another master comes for it; a client with rights puts it in the other's place.
    fn lose_master(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let Some((_, lost)) = self.shape.lost.filter(|(at, _)| *at <= now && !self.lost) else { return };
        self.lost = true;
        let name = format!("m{lost}");
        tracing::info!(name, "lost for good");
        self.machines.lose(sim, &name, now);
        self.servers.retain(|s| *s != name);
        let substitute = format!("m{SUBSTITUTE}");
        self.servers.push(substitute.clone());
        self.machines.later(now, Undo::Start(substitute));
        self.machines.counts.one("lost masters");
    }

    fn crash_all(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let early = self.between(0, 200);
        for host in self.servers.clone() {
            let until = now + MS(400) + early.mul_f64(self.machines.rng.random());
            self.machines.crash(sim, &host, until);
        }
    }

    fn stall(&mut self, now: Duration) {
        if self.machines.rng.random_range(0..6) == 0 {
            // Beyond a session's lease, which is 10 s.
            let client = self.machines.one_of(&self.clients).to_owned();
            let until = now + self.between(1_000, 14_000);
            self.machines.stop(&client, until);
            return;
        }
        let leases = self.machines.rng.random_range(0.9..5.0);
        let host = if self.machines.rng.random() { self.a_master() } else { self.any() };
        self.machines.stop(&host, now + LEASE.mul_f64(leases));
    }

    /// Now and then something goes wrong.
    pub fn act(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        self.lose_master(sim, now);
        if let Some(swaps) = &mut self.swaps {
            swaps.act(&mut self.machines, sim, now);
        }
        if now < self.next {
            return;
        }
        self.next = now + self.between(200, 3000);
        let until = now + self.between(50, 6000);
        let host = self.any();
        if let Some(rotten) = &self.shape.rotten
            && self.machines.rng.random_range(0..4) == 0
        {
            self.machines.flip_bits(rotten, |_| true);
        }
        match self.machines.rng.random_range(0..100) {
            0..15 => self.machines.crash(sim, &host, until),
            15..20 => self.blink(sim, now),
            20..36 => {
                let after = self.machines.rng.random_range(0..80);
                self.machines.host(&host).disk.lose_power_after(after);
            }
            36..42 => self.crash_all(sim, now),
            42..54 => {
                let mut others = self.servers.clone();
                others.extend(self.clients.iter().cloned());
                let other = others[self.machines.rng.random_range(0..others.len())].clone();
                let both_ways = self.machines.rng.random();
                self.machines.cut(sim, &host, &other, until, both_ways);
            }
            54..64 => self.isolate(sim, until),
            64..72 => {
                if let Some(leader) = self.watch.leader() {
                    let masters = self.masters();
                    self.machines.quick_restart(sim, &leader, &masters, now);
                }
            }
            72..76 => {
                if let Some(leader) = self.watch.leader() {
                    let masters = self.masters();
                    self.machines.orphan(sim, &leader, &masters, now);
                }
            }
            76..80 => {
                let latency = self.between(2, 120);
                tracing::info!(?latency, "slower");
                sim.set_max_message_latency(latency);
            }
            80..87 => self.stall(now),
            87..90 => self.machines.hang(&host, until),
            _ => {
                let host = self.any();
                self.machines.disk_fault(&host, now);
            }
        }
    }
}
