//! Hosts as a nemesis handles them: crashes, cuts, stalls, disks that fail or are swapped, and what ends each of these.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mooseng_master::master::Master;
use mooseng_ports::disk::sim::Fault;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::hosts::{DATA_DIR, Host};
use crate::swapped::data_checksum;
use crate::watch::Watch;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// How often what went wrong.
#[derive(Clone, Debug, Default)]
pub struct Counts(pub BTreeMap<&'static str, usize>);

impl Counts {
    /// Once more.
    pub fn one(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}

/// What ends a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    /// Restarts a host.
    Start(String),
    /// Crashes one, which restarts soon.
    Kill(String),
    /// Two hosts reach each other again.
    Repair(String, String),
    /// A host that stalled goes on.
    Open(String),
    /// A disk works again.
    DiskWell(String),
    /// Two chunkservers get their own data disks back, and restart.
    SwapBack(String, String),
}

impl Undo {
    fn is_of(&self, name: &str) -> bool {
        match self {
            Self::Start(host) | Self::Kill(host) | Self::Open(host) | Self::DiskWell(host) => host == name,
            Self::Repair(..) | Self::SwapBack(..) => false,
        }
    }
}

/// The hosts of a simulation.
pub struct Machines {
    /// What decides about everything that goes wrong.
    pub rng: StdRng,
    hosts: BTreeMap<String, Host>,
    /// One for each region.
    watches: Vec<Watch>,
    down: BTreeSet<String>,
    undo: Vec<(Duration, Undo)>,
    /// Hosts that will be restarted when their disks are well again.
    ailing: BTreeSet<String>,
    /// Of hosts whose data disk is in another one: a checksum over what it held.
    swapped: BTreeMap<String, u32>,
    /// What hosts have done that they mustn't.
    broken: Vec<String>,
    /// What happened.
    pub counts: Counts,
}

impl Machines {
    /// These hosts, of which some aren't up yet.
    pub fn new(
        seed: u64,
        hosts: BTreeMap<String, Host>,
        down: BTreeSet<String>,
        watches: Vec<Watch>,
    ) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed.wrapping_mul(31)),
            hosts,
            watches,
            down,
            undo: Vec::new(),
            ailing: BTreeSet::new(),
            swapped: BTreeMap::new(),
            broken: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// A host.
    pub fn host(&self, name: &str) -> &Host {
        &self.hosts[name]
    }

    /// What a host has done that it mustn't, if one has.
    pub fn broken(&self) -> Option<&String> {
        self.broken.first()
    }

    /// Does something whose choices are drawn from these instead.
    pub fn drawing<T>(&mut self, rng: &mut StdRng, act: impl FnOnce(&mut Self) -> T) -> T {
        std::mem::swap(&mut self.rng, rng);
        let done = act(self);
        std::mem::swap(&mut self.rng, rng);
        done
    }

    /// Looks at each master that runs.
    pub fn each_master(&self, mut look: impl FnMut(&str, &Arc<Master>)) {
        self.watches.iter().for_each(|watch| watch.each_master(&mut look));
    }

    /// Whether it is down.
    pub fn is_down(&self, name: &str) -> bool {
        self.down.contains(name)
    }

    /// To be done at that time.
    pub fn later(&mut self, at: Duration, undo: Undo) {
        self.undo.push((at, undo));
    }

    /// A time between these, in milliseconds.
    pub fn between(&mut self, from: u64, to: u64) -> Duration {
        MS(self.rng.random_range(from..to))
    }

    /// One of them.
    pub fn one_of<'a>(&mut self, names: &'a [String]) -> &'a str {
        &names[self.rng.random_range(0..names.len())]
    }

    /// Power loss: of what wasn't flushed anything may be gone.
    pub fn crash(&mut self, sim: &mut turmoil::Sim<'_>, host: &str, until: Duration) {
        if !self.down.insert(host.to_owned()) {
            return;
        }
        tracing::info!(host, "crash");
        self.watches.iter().for_each(|watch| watch.is_down(host));
        sim.crash(host);
        let rng = &mut self.rng;
        self.hosts[host].disk.crash(|n| rng.random_range(0..=n));
        self.hosts[host].gate.open();
        self.later(until, Undo::Start(host.to_owned()));
        self.counts.one("crashes");
    }

    /// It never comes back, and neither does its disk.
    pub fn lose(&mut self, sim: &mut turmoil::Sim<'_>, name: &str, now: Duration) {
        self.crash(sim, name, now);
        self.undo.retain(|(_, undo)| !undo.is_of(name));
        self.down.insert(name.to_owned());
        self.hosts[name].disk.replace();
        self.hosts[name].set_fault(Fault::None);
    }

    /// Power loss; it comes back with an empty disk.
    pub fn empty(&mut self, sim: &mut turmoil::Sim<'_>, name: &str, until: Duration) {
        self.crash(sim, name, until);
        self.hosts[name].disk.replace();
        self.hosts[name].set_fault(Fault::None);
    }

    /// Ends a fault.
    pub fn end(&mut self, sim: &mut turmoil::Sim<'_>, undo: Undo, now: Duration) {
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
            Undo::SwapBack(a, b) => {
                tracing::info!(a, b, "data disks are swapped back");
                let pair = [a, b];
                for host in &pair {
                    self.crash(sim, host, now + MS(50));
                    self.hosts[host].put_data(None);
                }
                for host in &pair {
                    let held = data_checksum(&self.hosts[host].disk);
                    if self.swapped.remove(host).is_some_and(|before| before != held) {
                        self.broken.push(format!(
                            "the data disk of {host} was changed while it was in another chunkserver"
                        ));
                    }
                }
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

    /// Ends everything: these hosts run.
    pub fn heal_all(&mut self, sim: &mut turmoil::Sim<'_>, servers: &[String], now: Duration) {
        for host in self.hosts.values() {
            host.disk.keep_power();
        }
        self.heal(sim, now);
        let all = std::mem::take(&mut self.undo).into_iter().map(|(_, undo)| undo);
        for undo in all.filter(|undo| !matches!(undo, Undo::Start(_))) {
            self.end(sim, undo, now);
        }
        self.undo.clear();
        for host in servers {
            self.end(sim, Undo::Start(host.clone()), now);
        }
    }

    /// Two hosts don't reach each other, or one doesn't reach the other.
    pub fn cut(&mut self, sim: &mut turmoil::Sim<'_>, a: &str, b: &str, until: Duration, both_ways: bool) {
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

    /// No byte enters or leaves the host until then.
    pub fn stop(&mut self, host: &str, until: Duration) {
        if self.down.contains(host) || self.undo.iter().any(|(_, undo)| *undo == Undo::Open(host.to_owned()))
        {
            return;
        }
        tracing::info!(host, ?until, "stalls");
        self.hosts[host].gate.close(until);
        self.later(until, Undo::Open(host.to_owned()));
        self.counts.one("stalls");
    }

    /// None of its tasks runs any more, and its connections stay, until it is killed then.
    pub fn hang(&mut self, host: &str, until: Duration) {
        self.hosts[host].hang.notify_waiters();
        self.later(until, Undo::Kill(host.to_owned()));
        self.counts.one("hangs");
    }

    /// A disk loses bits of some of those of its chunk files that may lose some.
    pub fn flip_bits(&mut self, host: &str, may_rot: impl Fn(&Path) -> bool) {
        let host = &self.hosts[host];
        // What is in another host isn't to change there.
        if host.is_swapped() {
            return;
        }
        let disk = host.disk.clone();
        let data = Path::new(DATA_DIR).join("chunks");
        let chunks: Vec<_> = disk
            .files()
            .into_iter()
            .filter(|(path, bytes)| path.starts_with(&data) && *bytes > 0 && may_rot(path))
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

    /// Two chunkservers go down, and come up with each other's data disks, until then.
    pub fn swap_data(
        &mut self,
        sim: &mut turmoil::Sim<'_>,
        (a, b): (&str, &str),
        restarts: Duration,
        until: Duration,
    ) {
        let is_free = |name: &str| {
            let host = &self.hosts[name];
            let is_busy = host.is_swapped() || host.disk.is_dark();
            !is_busy && !self.down.contains(name) && !self.ailing.contains(name)
        };
        if a == b || !is_free(a) || !is_free(b) {
            return;
        }
        tracing::info!(a, b, ?until, "data disks are swapped");
        for (host, other) in [(a, b), (b, a)] {
            self.crash(sim, host, restarts);
            self.hosts[host].put_data(Some(self.hosts[other].disk.clone()));
        }
        for host in [a, b] {
            self.swapped.insert(host.to_owned(), data_checksum(&self.hosts[host].disk));
        }
        self.later(until, Undo::SwapBack(a.to_owned(), b.to_owned()));
        self.counts.one("swapped disks");
    }

    /// A disk misbehaves for a while.
    pub fn disk_fault(&mut self, host: &str, now: Duration) {
        if self.down.contains(host) || !self.ailing.insert(host.to_owned()) {
            return;
        }
        let fault = match self.rng.random_range(0..4) {
            0 => Fault::Failing,
            1 => Fault::Full,
            _ => Fault::FlushFailing,
        };
        tracing::info!(host, ?fault, "disk");
        self.hosts[host].set_fault(fault);
        let until = now + self.between(200, 4000);
        self.later(until, Undo::DiskWell(host.to_owned()));
        self.counts.one("disk faults");
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
