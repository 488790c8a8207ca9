//! What goes wrong between regions, and in them, at random times and from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mooseng_master::master::Master;
use mooseng_schema::location::LocationRecord;
use mooseng_wire::{ChunkId, VolumeId};
use rand::Rng;

use super::disks::{LostDisk, Of};
use super::shape::{Region, Shape};
use super::volumes::Volume;
use super::within::Within;
use crate::copies::known;
use crate::hosts::Host;
use crate::machines::{self, Counts, Machines};
use crate::swapped::Swaps;
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

/// A home that is cut off from the leader of the global group until a volume's epoch is over.
#[derive(Clone, Copy)]
struct Deposing {
    home: usize,
    leader: usize,
    volume: VolumeId,
    epoch: u64,
}

/// Makes things go wrong.
pub struct Nemesis {
    machines: Machines,
    shape: Arc<Shape>,
    volumes: Vec<Volume>,
    undo: Vec<(Duration, Undo)>,
    deposing: Option<Deposing>,
    /// The disk that is to be lost.
    losing: Option<LostDisk>,
    /// Whose disk was.
    lost: Option<String>,
    /// What goes wrong in a region as in a run of one.
    within: Option<Within>,
    /// Chunkservers with each other's disks.
    swaps: Option<Swaps>,
    next: Duration,
}

/// Pairs of chunkservers of different regions.
fn pairs_across(shape: &Shape) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    for (at, region) in shape.regions.iter().enumerate() {
        for other in &shape.regions[..at] {
            for a in &region.chunkservers {
                pairs.extend(other.chunkservers.iter().map(|b| (a.clone(), b.clone())));
            }
        }
    }
    pairs
}

impl Nemesis {
    /// For these hosts.
    pub fn new(
        seed: u64,
        shape: Arc<Shape>,
        hosts: BTreeMap<String, Host>,
        watches: Vec<Watch>,
        volumes: Vec<Volume>,
        losing: Option<LostDisk>,
    ) -> Self {
        let down = shape.regions.iter().filter_map(|region| region.substitute.clone()).collect();
        let machines = Machines::new(seed, hosts, down, watches);
        let next = MS(8_000);
        let within = Within::of(seed, &shape, losing.is_some());
        // What a region has stays on its other chunkserver; where one is lost, that is all there is.
        let pairs = if losing.is_some() { Vec::new() } else { pairs_across(&shape) };
        let swaps = Swaps::of(seed, pairs);
        let (undo, deposing, lost) = (Vec::new(), None, None);
        Self { machines, shape, volumes, undo, deposing, losing, lost, within, swaps, next }
    }

    /// What a host has done that it mustn't, if one has.
    pub fn broken(&self) -> Option<&String> {
        self.machines.broken()
    }

    /// Chunkservers whose copies may be damaged.
    pub fn damaged(&self) -> BTreeSet<String> {
        self.within.as_ref().map(Within::damaged).unwrap_or_default()
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
        if let Some(within) = &mut self.within {
            within.heal(sim, &self.shape, now);
        }
        self.tell_deposed(now);
        let due: Vec<Undo> = self.undo.extract_if(.., |(at, _)| *at <= now).map(|(_, undo)| undo).collect();
        due.iter().for_each(|undo| self.end(sim, undo));
    }

    /// Ends everything.
    pub fn heal_all(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let mut servers: Vec<String> =
            self.shape.regions.iter().flat_map(|region| region.servers()).collect();
        servers.retain(|name| !self.is_gone(name));
        self.machines.heal_all(sim, &servers, now);
        if let Some(within) = &mut self.within {
            within.heal_all(sim, &self.shape);
        }
        self.deposing = None;
        let all = std::mem::take(&mut self.undo);
        let ends = all.iter().filter(|(_, undo)| !matches!(undo, Undo::Stall(..)));
        ends.for_each(|(_, undo)| self.end(sim, undo));
    }

    /// Whether a host is never to run again: a master whose place another one has taken.
    fn is_gone(&self, host: &str) -> bool {
        self.lost.as_deref() == Some(host)
            && self.shape.regions.iter().any(|region| region.masters.iter().any(|name| name == host))
    }

    /// The sealed chunks of a region that files use, if all of its chunkservers are there and have every chunk that files use: one of them may lose what it has.
    fn whole(&self, region: &Region) -> Option<Vec<ChunkId>> {
        let is_there = |name: &String| {
            let host = self.machines.host(name);
            let is_well = !host.is_excused() && !host.is_swapped();
            is_well && !self.machines.is_down(name)
        };
        let on_all = |location: &LocationRecord| {
            location.partial.is_none() && location.copies.len() >= region.chunkservers.len()
        };
        let of_volume = |master: &Master, volume: &Volume| {
            let mut used = known(master, volume.id).ok()?;
            used.retain(|known| known.named > 0);
            let is_whole = used.iter().all(|known| known.listing.location.as_ref().is_some_and(on_all));
            let sealed = used.into_iter().filter(|known| known.listing.record.sealed);
            is_whole.then(|| sealed.map(|known| known.listing.chunk).collect::<Vec<_>>())
        };
        let mut whole = None;
        self.machines.each_master(|name, master| {
            if region.all_masters().any(|of| of == name) && master.serving().is_ok() {
                let of_all = self.volumes.iter().map(|volume| of_volume(master, volume));
                whole = of_all.collect::<Option<Vec<_>>>().map(|chunks| chunks.concat());
            }
        });
        whole.filter(|_| region.chunkservers.iter().all(is_there))
    }

    /// A disk is lost, once everything that is promised lies elsewhere, too.
    fn lose_disk(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let Some(losing) = self.losing.filter(|losing| losing.at <= now) else { return };
        let shape = self.shape.clone();
        let region = &shape.regions[losing.region];
        let name = match losing.of {
            Of::Master(id) => {
                let name = region.masters[id as usize - 1].clone();
                self.machines.lose(sim, &name, now);
                if let Some(substitute) = &region.substitute {
                    self.machines.later(now, machines::Undo::Start(substitute.clone()));
                }
                self.machines.counts.one("lost masters");
                name
            }
            Of::Chunkserver(nth) => {
                let name = region.chunkservers[nth].clone();
                // It is known from its earlier lives by the clock.
                let is_early = self.machines.host(&name).clock.off_ms() < -1_000;
                if is_early || self.whole(region).is_none() {
                    // Looked at again a little later.
                    self.losing = Some(LostDisk { at: now + MS(100), ..losing });
                    return;
                }
                let until = now + MS(3_000);
                self.machines.empty(sim, &name, until);
                self.machines.counts.one("emptied chunkservers");
                name
            }
        };
        tracing::info!(name, "its disk is lost");
        self.losing = None;
        self.lost = Some(name);
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
            for a in of.all_masters().chain(&of.clients) {
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

    /// The master that leads the global group, if one does, and its region.
    fn global_leader(&self) -> Option<(String, usize)> {
        let mut leader = None;
        self.machines.each_master(|name, master| {
            if master.global.as_ref().is_some_and(|global| global.is_leading()) {
                leader = Some(name.to_owned());
            }
        });
        let leader = leader?;
        let leads = |region: &Region| region.all_masters().any(|name| *name == leader);
        let region = self.shape.regions.iter().position(leads)?;
        Some((leader, region))
    }

    /// A home is deposed while it has changes under way, and hears of it at once. It is cut off from the leader of the global group alone, and until its
    /// epoch is over only: what it commits goes on to the other regions, so that it is at a place of the next home's log, and copies nothing anew. One of its
    /// mounts stalls, and others' changes have to wait for that one until its lease runs out. The others stall behind it: they neither hear of the next home nor
    /// give up what they have sent to this one. Answers whether that can be done now.
    fn depose_under_way(&mut self, sim: &mut turmoil::Sim<'_>, home: usize, now: Duration) -> bool {
        let shape = self.shape.clone();
        let is_at_home = |volume: &&Volume| volume.homes.home().as_ref() == Some(&shape.regions[home].name);
        let Some(volume) = self.volumes.iter().find(is_at_home).cloned() else { return false };
        let Some((master, leader)) = self.global_leader() else { return false };
        if self.deposing.is_some() || shape.regions[home].clients.is_empty() {
            return false;
        }
        if leader == home {
            // Somebody else leads it next; the region goes on as the home.
            let until = now + self.between(200, 900);
            self.machines.crash(sim, &master, until);
            return true;
        }
        // Somebody has to have what the home commits meanwhile.
        let follows = |(at, region): (usize, &Region)| at != home && at != leader && !region.is_witness();
        if self.is_busy(home, leader) || !shape.regions.iter().enumerate().any(follows) {
            return false;
        }
        let until = now + MS(7_000);
        self.pairs(home, leader).iter().for_each(|(a, b)| sim.hold(a.as_str(), b.as_str()));
        self.undo.push((until, Undo::Release(home, leader)));
        let stalls = now + self.between(1_000, 1_800);
        let (others_stall, go_on) = (stalls + self.between(200, 600), now + self.between(8_000, 10_000));
        let first = self.machines.one_of(&shape.regions[home].clients).to_owned();
        for mount in shape.regions.iter().flat_map(|region| &region.clients) {
            let at = if *mount == first { stalls } else { others_stall };
            self.undo.push((at, Undo::Stall(mount.clone(), go_on)));
        }
        let epoch = volume.homes.newest();
        tracing::info!(home, leader, volume = %volume.id, epoch, "a home is deposed with changes under way");
        self.deposing = Some(Deposing { home, leader, volume: volume.id, epoch });
        self.next = until;
        self.machines.counts.one("homes deposed with changes under way");
        true
    }

    /// What was held back reaches the home that is deposed as soon as its epoch is over.
    fn tell_deposed(&mut self, now: Duration) {
        let Some(Deposing { home, leader, volume, epoch }) = self.deposing else { return };
        let release = Undo::Release(home, leader);
        let mut is_over = !self.undo.iter().any(|(_, undo)| *undo == release);
        self.machines.each_master(|_, master| {
            let view = master.geo.view();
            let known = view.as_ref().and_then(|view| view.volumes.get(&volume));
            is_over |=
                known.is_some_and(|known| known.epoch.0 > epoch || (known.epoch.0 == epoch && !known.open));
        });
        if !is_over {
            return;
        }
        for (at, _) in self.undo.iter_mut().filter(|(_, undo)| *undo == release) {
            *at = now;
        }
        self.deposing = None;
    }

    fn step_clock(&mut self) {
        let hosts: Vec<String> = self.shape.regions.iter().flat_map(|region| region.hosts()).collect();
        let host = self.machines.one_of(&hosts).to_owned();
        let by = self.machines.rng.random_range(-30_000..30_000);
        // Whoever begins with an empty disk is known from its earlier lives by the clock.
        if self.lost.as_ref() == Some(&host) {
            return;
        }
        tracing::info!(host, by, "its wall clock is stepped");
        self.machines.host(&host).clock.step(by);
        self.machines.counts.one("stepped clocks");
    }

    /// What goes wrong in a region as in a run of one. Not while a home is deposed, which takes hosts that are there.
    fn act_within(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        if self.deposing.is_some() {
            return;
        }
        if let Some(swaps) = &mut self.swaps {
            swaps.act(&mut self.machines, sim, now);
        }
        let Some(mut within) = self.within.take() else { return };
        let rots = within.rots_now(now);
        let may_rot = rots.and_then(|region| self.whole(&self.shape.regions[region])).unwrap_or_default();
        within.act(&mut self.machines, sim, &self.shape, now, &may_rot);
        self.within = Some(within);
    }

    /// Now and then something goes wrong.
    pub fn act(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        self.lose_disk(sim, now);
        self.act_within(sim, now);
        if now < self.next {
            return;
        }
        self.next = now + self.between(500, 5_000);
        let region = self.a_region();
        if self.shape.late_pushes && self.machines.rng.random_range(0..3) == 0 {
            return self.push_late(sim, region, now);
        }
        if self.shape.deposes
            && self.machines.rng.random_range(0..2) == 0
            && self.depose_under_way(sim, region, now)
        {
            return;
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
