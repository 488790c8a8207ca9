//! What goes wrong, at random times and from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use mooseng_ports::disk::sim::Fault;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::hosts::{self, Host, SUBSTITUTE};
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

/// How often what went wrong.
#[derive(Clone, Debug, Default)]
pub struct Counts(pub BTreeMap<&'static str, usize>);

impl Counts {
    fn one(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}

/// What ends a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Undo {
    Start(String),
    Kill(String),
    Repair(String, String),
    Open(String),
    DiskWell(String),
}

/// Makes things go wrong.
pub struct Nemesis {
    rng: StdRng,
    shape: Shape,
    /// All hosts with a disk; the substitute only once it is there.
    servers: Vec<String>,
    clients: Vec<String>,
    hosts: BTreeMap<String, Host>,
    watch: Watch,
    down: BTreeSet<String>,
    undo: Vec<(Duration, Undo)>,
    next: Duration,
    /// A host that will be restarted when its disk is well again.
    ailing: BTreeSet<String>,
    lost: bool,
    /// What happened.
    pub counts: Counts,
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
        Self {
            rng: StdRng::seed_from_u64(seed.wrapping_mul(31)),
            shape,
            servers,
            clients,
            hosts,
            watch,
            down: BTreeSet::from([format!("m{SUBSTITUTE}")]),
            undo: Vec::new(),
            next: MS(6_000),
            ailing: BTreeSet::new(),
            lost: false,
            counts: Counts::default(),
        }
    }

    fn later(&mut self, at: Duration, undo: Undo) {
        self.undo.push((at, undo));
    }

    fn between(&mut self, from: u64, to: u64) -> Duration {
        MS(self.rng.random_range(from..to))
    }

    fn any(&mut self) -> String {
        self.servers[self.rng.random_range(0..self.servers.len())].clone()
    }

    fn masters(&self) -> Vec<String> {
        self.servers.iter().filter(|s| s.starts_with('m')).cloned().collect()
    }

    /// Power loss: of what wasn't flushed anything may be gone.
    fn crash(&mut self, sim: &mut turmoil::Sim<'_>, host: &str, until: Duration) {
        if !self.down.insert(host.to_owned()) {
            return;
        }
        tracing::info!(host, "crash");
        self.watch.is_down(host);
        sim.crash(host);
        let rng = &mut self.rng;
        self.hosts[host].disk.crash(|n| rng.random_range(0..=n));
        self.hosts[host].gate.open();
        self.later(until, Undo::Start(host.to_owned()));
        self.counts.one("crashes");
    }

    fn end(&mut self, sim: &mut turmoil::Sim<'_>, undo: Undo, now: Duration) {
        match undo {
            Undo::Start(host) => {
                if self.down.remove(&host) {
                    tracing::info!(host, "restart");
                    if self.hosts[&host].disk_is_well() {
                        self.hosts[&host].excused.store(false, Ordering::Relaxed);
                    }
                    sim.bounce(host.as_str());
                }
            }
            Undo::Kill(host) => self.crash(sim, &host, now + MS(100)),
            Undo::Repair(a, b) => {
                tracing::info!(a, b, "repair");
                sim.repair(a.as_str(), b.as_str());
            }
            Undo::Open(host) => {
                tracing::info!(host, "goes on");
                self.hosts[&host].gate.open();
            }
            Undo::DiskWell(host) => {
                tracing::info!(host, "its disk is well");
                self.hosts[&host].set_fault(Fault::None);
                self.ailing.remove(&host);
                // What a failed write left behind is read anew.
                self.crash(sim, &host, now + MS(50));
            }
        }
    }

    /// Ends what is due, and what a power loss in the midst of an operation hit.
    pub fn heal(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let dark: Vec<String> =
            self.hosts.iter().filter(|(_, host)| host.disk.is_dark()).map(|(name, _)| name.clone()).collect();
        for host in dark {
            self.counts.one("torn");
            let until = now + self.between(50, 6000);
            self.crash(sim, &host, until);
        }
        let due: Vec<Undo> = self.undo.extract_if(.., |(at, _)| *at <= now).map(|(_, undo)| undo).collect();
        for undo in due {
            self.end(sim, undo, now);
        }
    }

    /// Ends everything.
    pub fn heal_all(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        for host in self.hosts.values() {
            host.disk.keep_power();
        }
        self.heal(sim, now);
        let all = std::mem::take(&mut self.undo).into_iter().map(|(_, undo)| undo);
        for undo in all.filter(|undo| !matches!(undo, Undo::Start(_))) {
            self.end(sim, undo, now);
        }
        self.undo.clear();
        for host in self.servers.clone() {
            self.end(sim, Undo::Start(host), now);
        }
        sim.set_max_message_latency(MS(5));
    }

    /// Whether a host may fail on account of its disk.
    pub fn is_excused(&self, host: &str) -> bool {
        self.hosts[host].is_excused()
    }

    /// Chunkservers whose copies may be damaged.
    pub fn damaged(&self) -> BTreeSet<String> {
        self.shape.rotten.iter().cloned().collect()
    }

    fn cut(&mut self, sim: &mut turmoil::Sim<'_>, a: &str, b: &str, until: Duration, both_ways: bool) {
        let pair =
            |undo: &Undo| matches!(undo, Undo::Repair(x, y) if (x == a && y == b) || (x == b && y == a));
        if a == b || self.undo.iter().any(|(_, undo)| pair(undo)) {
            return;
        }
        tracing::info!(a, b, both_ways, "cut");
        if both_ways {
            sim.partition(a, b);
        } else {
            sim.partition_oneway(a, b);
        }
        self.later(until, Undo::Repair(a.to_owned(), b.to_owned()));
        self.counts.one("cuts");
    }

    /// The leader more often than not, else any master.
    fn a_master(&mut self) -> String {
        let masters = self.masters();
        let any = masters[self.rng.random_range(0..masters.len())].clone();
        if self.rng.random_range(0..10) < 7 { self.watch.leader().unwrap_or(any) } else { any }
    }

    /// A master can't reach the others; clients and chunkservers still reach it.
    fn isolate(&mut self, sim: &mut turmoil::Sim<'_>, until: Duration) {
        let one = self.a_master();
        let both_ways = self.rng.random_range(0..4) > 0;
        for other in self.masters() {
            self.cut(sim, &one, &other, until, both_ways);
        }
    }

    /// The leader and one follower are cut, and the other follower restarts quickly: whoever forgets a promise over that elects a second leader.
    fn quick_restart(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let Some(leader) = self.watch.leader() else { return };
        let mut followers: Vec<String> = self.masters().into_iter().filter(|m| *m != leader).collect();
        if self.rng.random() {
            followers.reverse();
        }
        let [cut_off, restarts] = &followers[..] else { return };
        let until = now + self.between(1500, 4000);
        self.cut(sim, &leader, cut_off, until, true);
        // Again and again while the cut lasts.
        let mut at = now + self.between(300, 900);
        while at < until {
            self.later(at, Undo::Kill(restarts.clone()));
            at += self.between(400, 1200);
        }
    }

    /// All but the leader restart at once: it leads nobody for a while, and then goes on in its term with what it had in flight.
    fn orphan_the_leader(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let Some(leader) = self.watch.leader() else { return };
        for follower in self.masters().into_iter().filter(|m| *m != leader) {
            let until = now + self.between(20, 400);
            self.crash(sim, &follower, until);
        }
    }

    /// A host, the leader more often than not, is back before anybody misses it.
    fn blink(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let host = if self.rng.random_range(0..3) > 0 { self.a_master() } else { self.any() };
        let until = now + self.between(3, 80);
        self.crash(sim, &host, until);
    }

    fn disk_fault(&mut self, now: Duration) {
        let host = self.any();
        if self.down.contains(&host) || !self.ailing.insert(host.clone()) {
            return;
        }
        let fault = match self.rng.random_range(0..4) {
            0 => Fault::Failing,
            1 => Fault::Full,
            _ => Fault::FlushFailing,
        };
        tracing::info!(host, ?fault, "disk");
        self.hosts[&host].set_fault(fault);
        let until = now + self.between(200, 4000);
        self.later(until, Undo::DiskWell(host));
        self.counts.one("disk faults");
    }

    fn flip_bits(&mut self) {
        let Some(host) = self.shape.rotten.clone() else { return };
        let disk = &self.hosts[&host].disk;
        let chunks: Vec<_> = disk
            .files()
            .into_iter()
            .filter(|(path, bytes)| path.starts_with("/data/chunks") && *bytes > 0)
            .collect();
        if chunks.is_empty() {
            return;
        }
        for _ in 0..self.rng.random_range(1..20) {
            let (path, bytes) = &chunks[self.rng.random_range(0..chunks.len())];
            disk.flip_bit(path, self.rng.random_range(0..*bytes));
            self.counts.one("flipped bits");
        }
    }

    /// One master's disk is lost for good, and another master comes for it; a client with rights puts it in the other's place.
    fn lose_master(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let Some((_, lost)) = self.shape.lost.filter(|(at, _)| *at <= now && !self.lost) else { return };
        self.lost = true;
        let name = format!("m{lost}");
        tracing::info!(name, "lost for good");
        self.crash(sim, &name, now);
        self.undo.retain(|(_, undo)| !undo.is_of(&name));
        self.down.insert(name.clone());
        self.hosts[&name].disk.replace();
        self.hosts[&name].set_fault(Fault::None);
        self.servers.retain(|s| *s != name);
        let substitute = format!("m{SUBSTITUTE}");
        self.servers.push(substitute.clone());
        self.later(now, Undo::Start(substitute));
        self.counts.one("lost masters");
    }

    fn crash_all(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let early = self.between(0, 200);
        for host in self.servers.clone() {
            let until = now + MS(400) + early.mul_f64(self.rng.random());
            self.crash(sim, &host, until);
        }
    }

    fn stall(&mut self, now: Duration) {
        if self.rng.random_range(0..6) == 0 {
            // Beyond a session's lease, which is 10 s.
            let client = self.clients[self.rng.random_range(0..self.clients.len())].clone();
            let until = now + self.between(1_000, 14_000);
            self.stop(&client, until);
            return;
        }
        let leases = self.rng.random_range(0.9..5.0);
        let host = if self.rng.random() { self.a_master() } else { self.any() };
        self.stop(&host, now + LEASE.mul_f64(leases));
    }

    fn stop(&mut self, host: &str, until: Duration) {
        if self.down.contains(host) || self.undo.iter().any(|(_, undo)| *undo == Undo::Open(host.to_owned()))
        {
            return;
        }
        tracing::info!(host, ?until, "stalls");
        self.hosts[host].gate.close(until);
        self.later(until, Undo::Open(host.to_owned()));
        self.counts.one("stalls");
    }

    /// Now and then something goes wrong.
    pub fn act(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        self.lose_master(sim, now);
        if now < self.next {
            return;
        }
        self.next = now + self.between(200, 3000);
        let until = now + self.between(50, 6000);
        let host = self.any();
        if self.shape.rotten.is_some() && self.rng.random_range(0..4) == 0 {
            self.flip_bits();
        }
        match self.rng.random_range(0..100) {
            0..15 => self.crash(sim, &host, until),
            15..20 => self.blink(sim, now),
            20..36 => self.hosts[&host].disk.lose_power_after(self.rng.random_range(0..80)),
            36..42 => self.crash_all(sim, now),
            42..54 => {
                let mut others = self.servers.clone();
                others.extend(self.clients.iter().cloned());
                let other = others[self.rng.random_range(0..others.len())].clone();
                let both_ways = self.rng.random();
                self.cut(sim, &host, &other, until, both_ways);
            }
            54..64 => self.isolate(sim, until),
            64..72 => self.quick_restart(sim, now),
            72..76 => self.orphan_the_leader(sim, now),
            76..80 => {
                let latency = self.between(2, 120);
                tracing::info!(?latency, "slower");
                sim.set_max_message_latency(latency);
            }
            80..87 => self.stall(now),
            87..90 => {
                self.hosts[&host].hang.notify_waiters();
                self.later(until, Undo::Kill(host));
                self.counts.one("hangs");
            }
            _ => self.disk_fault(now),
        }
    }
}

impl Undo {
    fn is_of(&self, name: &str) -> bool {
        match self {
            Self::Start(host) | Self::Kill(host) | Self::Open(host) | Self::DiskWell(host) => host == name,
            Self::Repair(..) => false,
        }
    }
}

impl Host {
    fn disk_is_well(&self) -> bool {
        !self.faulty.load(Ordering::Relaxed)
    }
    fn set_fault(&self, fault: Fault) {
        self.disk.set_fault(fault);
        self.faulty.store(fault != Fault::None, Ordering::Relaxed);
        if fault != Fault::None {
            self.excused.store(true, Ordering::Relaxed);
        }
    }
}
