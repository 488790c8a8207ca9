//! What goes wrong between regions, and in them, at random times and from one seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use super::shape::Shape;
use super::volumes::Volume;
use crate::hosts::Host;
use crate::machines::{Counts, Machines};
use crate::watch::Watch;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// What ends a fault between regions.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Undo {
    /// Two regions reach each other again.
    Join(usize, usize),
    /// What was held back between two regions arrives.
    Release(usize, usize),
    /// The way between two regions is as long as usual.
    Speed(usize, usize),
    /// Not an end, but a beginning: a host stalls until then.
    Stall(String, Duration),
}

/// Makes things go wrong.
pub struct Nemesis {
    machines: Machines,
    shape: Arc<Shape>,
    volumes: Vec<Volume>,
    undo: Vec<(Duration, Undo)>,
    next: Duration,
}

impl Nemesis {
    /// For these hosts.
    pub fn new(
        seed: u64,
        shape: Arc<Shape>,
        hosts: BTreeMap<String, Host>,
        watches: Vec<Watch>,
        volumes: Vec<Volume>,
    ) -> Self {
        let machines = Machines::new(seed, hosts, Default::default(), watches);
        Self { machines, shape, volumes, undo: Vec::new(), next: MS(8_000) }
    }

    /// What happened.
    pub fn counts(&self) -> Counts {
        self.machines.counts.clone()
    }

    /// Whether a host may fail on account of its disk.
    pub fn is_excused(&self, host: &str) -> bool {
        self.machines.host(host).is_excused()
    }

    /// Each way between two regions takes its time.
    pub fn set_ways(&self, sim: &turmoil::Sim<'_>) {
        for a in 0..self.shape.regions.len() {
            for b in 0..a {
                self.set_way(sim, a, b, self.shape.wan);
            }
        }
    }

    fn pairs(&self, a: usize, b: usize) -> Vec<(String, String)> {
        let (a, b) = (self.shape.regions[a].hosts(), self.shape.regions[b].hosts());
        a.iter().flat_map(|a| b.iter().map(move |b| (a.clone(), b.clone()))).collect()
    }

    fn set_way(&self, sim: &turmoil::Sim<'_>, a: usize, b: usize, way: Duration) {
        for (a, b) in self.pairs(a, b) {
            sim.set_link_latency(a.as_str(), b.as_str(), way);
            sim.set_link_max_message_latency(a.as_str(), b.as_str(), way.mul_f64(1.5));
        }
    }

    fn between(&mut self, from: u64, to: u64) -> Duration {
        self.machines.between(from, to)
    }

    fn end(&mut self, sim: &turmoil::Sim<'_>, undo: &Undo) {
        tracing::info!(?undo, "between regions");
        match *undo {
            Undo::Stall(ref host, until) => self.machines.stop(host, until),
            Undo::Join(a, b) => {
                self.pairs(a, b).iter().for_each(|(a, b)| sim.repair(a.as_str(), b.as_str()));
            }
            Undo::Release(a, b) => {
                self.pairs(a, b).iter().for_each(|(a, b)| sim.release(a.as_str(), b.as_str()));
            }
            Undo::Speed(a, b) => self.set_way(sim, a, b, self.shape.wan),
        }
    }

    /// Ends what is due.
    pub fn heal(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        self.machines.heal(sim, now);
        let due: Vec<Undo> = self.undo.extract_if(.., |(at, _)| *at <= now).map(|(_, undo)| undo).collect();
        due.iter().for_each(|undo| self.end(sim, undo));
    }

    /// Ends everything.
    pub fn heal_all(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let servers: Vec<String> = self.shape.regions.iter().flat_map(|region| region.servers()).collect();
        self.machines.heal_all(sim, &servers, now);
        let all = std::mem::take(&mut self.undo);
        let ends = all.iter().filter(|(_, undo)| !matches!(undo, Undo::Stall(..)));
        ends.for_each(|(_, undo)| self.end(sim, undo));
    }

    /// A volume's home more often than not, else any region.
    fn a_region(&mut self) -> usize {
        let any = self.machines.rng.random_range(0..self.shape.regions.len());
        let of = match self.volumes.len() {
            1 => 0,
            several => self.machines.rng.random_range(0..several),
        };
        let home = self.volumes[of].homes.home();
        let home = self.shape.regions.iter().position(|region| Some(&region.name) == home.as_ref());
        if self.machines.rng.random_range(0..10) < 6 { home.unwrap_or(any) } else { any }
    }

    /// Whether something is wrong already with the way between two regions.
    fn is_busy(&self, a: usize, b: usize) -> bool {
        self.undo.iter().any(|(_, undo)| match undo {
            Undo::Join(x, y) | Undo::Release(x, y) => (*x == a && *y == b) || (*x == b && *y == a),
            Undo::Speed(..) | Undo::Stall(..) => false,
        })
    }

    /// Two regions don't reach each other; or the first one doesn't reach the second.
    fn cut(&mut self, sim: &turmoil::Sim<'_>, from: usize, to: usize, until: Duration, both_ways: bool) {
        if from == to || self.is_busy(from, to) {
            return;
        }
        tracing::info!(from, to, both_ways, ?until, "regions are cut");
        for (from, to) in self.pairs(from, to) {
            if both_ways {
                sim.partition(from.as_str(), to.as_str());
            } else {
                sim.partition_oneway(from.as_str(), to.as_str());
            }
        }
        self.undo.push((until, Undo::Join(from, to)));
        self.machines.counts.one(if both_ways { "WAN cuts" } else { "one-way WAN cuts" });
    }

    /// A region and all others.
    fn isolate(&mut self, sim: &turmoil::Sim<'_>, region: usize, until: Duration) {
        let way = self.machines.rng.random_range(0..5);
        if way == 4 {
            return self.hold(sim, region, until);
        }
        for other in 0..self.shape.regions.len() {
            match way {
                0 => self.cut(sim, region, other, until, false),
                1 => self.cut(sim, other, region, until, false),
                _ => self.cut(sim, region, other, until, true),
            }
        }
    }

    /// A home's chunkservers send what is appended, and it is on its way until another region is the home: its masters are cut off meanwhile.
    fn push_late(&mut self, sim: &turmoil::Sim<'_>, region: usize, now: Duration) {
        let others: Vec<usize> = (0..self.shape.regions.len()).filter(|other| *other != region).collect();
        if others.iter().any(|other| self.is_busy(region, *other)) {
            return;
        }
        let until = now + self.between(8_000, 12_000);
        let shape = self.shape.clone();
        let of = &shape.regions[region];
        for other in others {
            let there = &shape.regions[other];
            for a in &of.chunkservers {
                there.chunkservers.iter().for_each(|b| sim.hold(a.as_str(), b.as_str()));
            }
            // Nor is there a way around for anybody else of the region.
            for a in of.masters.iter().chain(&of.clients) {
                there.hosts().iter().for_each(|b| sim.partition(a.as_str(), b.as_str()));
            }
            self.undo.push((until, Undo::Join(region, other)));
            self.undo.push((until, Undo::Release(region, other)));
        }
        tracing::info!(region, ?until, "what a region's chunkservers send to others comes late");
        self.machines.counts.one("late pushes");
    }

    /// What leaves a region, or comes to it, arrives much later, all at once.
    fn hold(&mut self, sim: &turmoil::Sim<'_>, region: usize, until: Duration) {
        for other in 0..self.shape.regions.len() {
            if other == region || self.is_busy(region, other) {
                continue;
            }
            self.pairs(region, other).iter().for_each(|(a, b)| sim.hold(a.as_str(), b.as_str()));
            self.undo.push((until, Undo::Release(region, other)));
        }
        tracing::info!(region, ?until, "what crosses a region's border is held back");
        self.machines.counts.one("held regions");
    }

    fn kill(&mut self, sim: &mut turmoil::Sim<'_>, region: usize, until: Duration) {
        tracing::info!(region, ?until, "a region is killed");
        for host in self.shape.regions[region].servers() {
            let until = until + self.between(0, 500);
            self.machines.crash(sim, &host, until);
        }
        self.machines.counts.one("killed regions");
    }

    fn stall(&mut self, region: usize, until: Duration) {
        tracing::info!(region, ?until, "a region stalls");
        let all = self.shape.regions[region].clone();
        let hosts = if self.machines.rng.random() { all.hosts() } else { all.servers() };
        hosts.iter().for_each(|host| self.machines.stop(host, until));
        self.machines.counts.one("stalled regions");
    }

    /// A home is deposed while it has changes under way: it isn't heard of any more, but hears, and one of its mounts, which others' changes have to wait
    /// for, stalls for as long as its promises last, or longer, with what it has written on its way.
    fn depose(&mut self, sim: &turmoil::Sim<'_>, region: usize, now: Duration) {
        let mounts = self.shape.regions[region].clients.clone();
        if !mounts.is_empty() {
            let mount = self.machines.one_of(&mounts).to_owned();
            let from = self.between(500, 3_500);
            let until = now + from + self.between(1_500, 6_000);
            self.undo.push((now + from, Undo::Stall(mount, until)));
        }
        let until = now + self.between(4_000, 9_000);
        for other in 0..self.shape.regions.len() {
            self.cut(sim, region, other, until, false);
        }
        self.machines.counts.one("deposed homes");
    }

    fn step_clock(&mut self) {
        let hosts: Vec<String> = self.shape.regions.iter().flat_map(|region| region.hosts()).collect();
        let host = self.machines.one_of(&hosts).to_owned();
        let by = self.machines.rng.random_range(-30_000..30_000);
        tracing::info!(host, by, "its wall clock is stepped");
        self.machines.host(&host).clock.step(by);
        self.machines.counts.one("stepped clocks");
    }

    /// Now and then something goes wrong.
    pub fn act(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        if now < self.next {
            return;
        }
        self.next = now + self.between(500, 5_000);
        let region = self.a_region();
        if self.shape.late_pushes && self.machines.rng.random_range(0..3) == 0 {
            return self.push_late(sim, region, now);
        }
        let other = self.machines.rng.random_range(0..self.shape.regions.len());
        // Beyond a lease as often as not.
        let until = now + self.between(300, 12_000);
        let servers = self.shape.regions[region].servers();
        match self.machines.rng.random_range(0..100) {
            0..14 => self.isolate(sim, region, until),
            14..20 => self.depose(sim, region, now),
            20..26 => {
                let both_ways = self.machines.rng.random();
                self.cut(sim, region, other, until, both_ways);
            }
            26..38 => self.kill(sim, region, until),
            38..48 => self.stall(region, until),
            48..54 => self.hold(sim, region, until),
            54..62 => {
                let way = self.between(2, 400);
                if region != other {
                    tracing::info!(region, other, ?way, "the way is longer");
                    self.set_way(sim, region, other, way);
                    self.undo.push((until, Undo::Speed(region, other)));
                    self.machines.counts.one("long ways");
                }
            }
            62..70 => self.step_clock(),
            70..84 => {
                let host = self.machines.one_of(&servers).to_owned();
                let until = now + self.between(50, 4_000);
                self.machines.crash(sim, &host, until);
            }
            84..92 => {
                let host = self.machines.one_of(&servers).to_owned();
                let after = self.machines.rng.random_range(0..80);
                self.machines.host(&host).disk.lose_power_after(after);
            }
            92..96 => {
                let (a, b) =
                    (self.machines.one_of(&servers).to_owned(), self.machines.one_of(&servers).to_owned());
                self.machines.cut(sim, &a, &b, until, true);
            }
            _ => {
                let hosts = self.shape.regions[region].hosts();
                let host = self.machines.one_of(&hosts).to_owned();
                self.machines.stop(&host, until);
            }
        }
    }
}
