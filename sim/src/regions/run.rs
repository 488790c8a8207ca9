//! One run of several regions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mooseng_chunkserver::ChunkserverConfig;
use mooseng_master::{MasterConfig, RaftConfig};
use mooseng_ports::plant;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::administrator;
use super::audit;
use super::clients::{Notes, with};
use super::disks::LostDisk;
use super::epochs::Epochs;
use super::faults::Nemesis;
use super::kept::Kept;
use super::mount;
use super::shape::{LATENCY_MAX, LEASE_MS, Shape};
use super::volumes::{self, Second, Volume};
use crate::hosts::{self, Host, SimClock};
use crate::kinds;
use crate::machines::Counts;
use crate::watch::{self, Watch};

/// How long faults go on.
const FAULTS: Duration = Duration::from_secs(40);
/// How long everything may take to be served again afterwards, replicas equal to their home.
const HEALING: Duration = Duration::from_secs(120);
/// How long chunks may take to be whole everywhere once mounts are done.
const SETTLING: Duration = Duration::from_secs(90);
/// Copies that a chunk has in each region.
const COPIES: usize = 2;
/// One seed in so many has pushes that come after a failover.
const LATE_PUSHES: u64 = 5;
/// One seed in so many has homes that are deposed with changes under way, and hear of it at once.
const DEPOSES: u64 = 6;
/// One seed in so many has mounts that make names alone.
const ALONE: u64 = 3;
/// How often states are compared.
const COMPARE_EVERY: Duration = Duration::from_millis(500);

/// What was done in a volume.
#[derive(Debug)]
struct Done {
    geo: bool,
    changes: usize,
    operations: usize,
    looks: usize,
    at_home: usize,
    told_lost: usize,
    locked: usize,
    locked_by_one: usize,
    sequences: usize,
    epochs: u64,
    moves: usize,
    taken_out: usize,
    crossed: usize,
    made_alone: u64,
    lost: u64,
    appended: (usize, usize),
    listings: usize,
}

impl Done {
    fn of(volume: &Volume) -> Self {
        let of_notes = |notes: &mut Notes| Self {
            geo: volume.geo,
            changes: notes.changes,
            operations: notes.histories.operations(),
            looks: notes.looks,
            at_home: notes.at_home,
            told_lost: notes.told_lost,
            locked: notes.locked.times,
            locked_by_one: notes.locked_by_one.times,
            sequences: notes.sequences.len(),
            epochs: volume.homes.newest(),
            moves: notes.moves.made.len(),
            taken_out: notes.moves.taken_out,
            crossed: notes.crossed,
            made_alone: notes.made_alone.values().sum(),
            lost: notes.lost.values().sum(),
            appended: notes.appended.counts(),
            listings: notes.histories.listings(),
        };
        with(&volume.notes, of_notes)
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} epochs, {} changes in {} sequences, {} operations on the same files, {} looks ({} at home), {} fsyncs told of losses, {} times locked",
            self.epochs,
            self.changes,
            self.sequences,
            self.operations,
            self.looks,
            self.at_home,
            self.told_lost,
            self.locked,
        )?;
        if self.made_alone > 0 {
            write!(f, ", {} made alone ({} lost)", self.made_alone, self.lost)?;
        }
        let (appended, durable) = self.appended;
        if appended > 0 {
            write!(f, ", {appended} records appended ({durable} synced), {} listings", self.listings)?;
        }
        if self.locked_by_one > 0 {
            write!(f, ", {} times locked the file that is mostly one's", self.locked_by_one)?;
        }
        if self.crossed > 0 {
            write!(f, ", crossed into {} times", self.crossed)?;
        }
        if self.moves > 0 {
            write!(f, ", home moved {} times", self.moves)?;
        }
        if self.taken_out > 0 {
            write!(f, ", a region taken out {} times", self.taken_out)?;
        }
        Ok(())
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Summary {
    shape: Arc<Shape>,
    volumes: Vec<Done>,
    faults: Counts,
    simulated: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |geo: bool| if geo { "geo" } else { "region" };
        let masters = self.shape.regions.iter().map(|region| region.masters.len()).sum::<usize>();
        for (at, done) in self.volumes.iter().enumerate() {
            match at {
                0 => write!(f, "{}, {masters} masters, {done}, ", word(done.geo))?,
                _ => write!(f, "a second volume: {}, {done}, ", word(done.geo))?,
            }
        }
        let faults: Vec<String> = self.faults.0.iter().map(|(what, n)| format!("{n} {what}")).collect();
        write!(f, "{}, {:.0} s simulated", faults.join(", "), self.simulated.as_secs_f64())
    }
}

struct Run<'a> {
    sim: turmoil::Sim<'a>,
    shape: Arc<Shape>,
    nemesis: Nemesis,
    watches: BTreeMap<String, Watch>,
    volumes: Vec<Volume>,
    epochs: Epochs,
    kept: Kept,
    compared: Duration,
}

/// Runs a seed. The caller has seeded randomness and clocks for the whole process.
pub fn run(seed: u64) -> Result<Summary> {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x3e6_10e5);
    let mut sim = turmoil::Builder::new()
        .rng_seed(rng.random())
        .simulation_duration(FAULTS + HEALING + SETTLING + Duration::from_secs(100))
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(LATENCY_MAX)
        .tcp_capacity(4096)
        .enable_random_order()
        .build();
    let mut shape = Shape {
        late_pushes: seed % LATE_PUSHES == LATE_PUSHES - 1,
        // None of those with mounts that make names alone, which don't wait for each other.
        deposes: seed % DEPOSES == 3,
        alone: seed % ALONE == ALONE - 1,
        ..Shape::of(&mut rng)
    };
    let lost = LostDisk::of(seed, &shape);
    let replaced = lost.and_then(|lost| lost.master());
    if let Some((region, _)) = replaced {
        let region = &mut shape.regions[region];
        region.substitute = Some(format!("{}-m{}", region.name, region.masters.len() + 1));
    }
    let shape = Arc::new(shape);
    tracing::info!(?shape, ?lost, "shape");
    let second = Second::of(seed, &shape);
    let volumes = volumes::all(&shape, second.as_ref());
    if let Some(second) = &second {
        tracing::info!(?second, "a second volume");
    }
    // What is in a region while the volume's log isn't kept there has no place in it.
    let takes_out = second.as_ref().is_some_and(|second| second.takes_out);
    let mut clock = || {
        let drift_ppm = rng.random_range(-shape.drift_ppm..=shape.drift_ppm);
        SimClock::new(drift_ppm, rng.random_range(-200..=200))
    };
    let (mut all, mut watches, mut mounts) = (BTreeMap::new(), BTreeMap::new(), 0);
    let house = if shape.hasty { hosts::hasty() } else { hosts::patient() };
    let raft = RaftConfig {
        entries_between_snapshots: shape.snapshots.0,
        entries_kept: shape.snapshots.1,
        segment_bytes: 256 << 10,
        defer_ms: kinds::defer_ms(seed),
        ..RaftConfig::default()
    };
    for region in &shape.regions {
        let watch = Watch::default();
        watches.insert(region.name.clone(), watch.clone());
        let members: Vec<_> =
            region.masters.iter().zip(1..).map(|(name, id)| hosts::member(name, id)).collect();
        for (name, id) in region.all_masters().zip(1..) {
            // A substitute's clock is drawn by nobody.
            let is_first = region.masters.contains(name);
            let clock = if is_first { clock() } else { SimClock::new(0, 0) };
            let (host, watch) = (Host::new(clock), watch.clone());
            all.insert(name.clone(), host.clone());
            let config = MasterConfig {
                session_lease_ms: LEASE_MS,
                house: house.clone(),
                global: Some(shape.global(name)),
                ..hosts::master_config(&region.name, name, id, raft.clone(), members.clone())
            };
            sim.host(name.as_str(), move || hosts::run_master(config.clone(), host.clone(), watch.clone()));
            if !is_first {
                sim.crash(name.as_str());
            }
        }
        let masters: Vec<String> = region.all_masters().map(|name| hosts::address(name)).collect();
        for (name, i) in region.chunkservers.iter().zip(1..) {
            let (host, watch) = (Host::new(clock()), watch.clone());
            all.insert(name.clone(), host.clone());
            let config: ChunkserverConfig = hosts::chunkserver_config(&region.name, name, i, masters.clone());
            sim.host(name.as_str(), move || {
                hosts::run_chunkserver(config.clone(), host.clone(), watch.clone())
            });
        }
        for name in &region.clients {
            let host = Host::new(clock());
            all.insert(name.clone(), host.clone());
            let mount = mount::client(mounts as u8, name.clone(), seed, shape.clone(), host, volumes.clone());
            sim.client(name.as_str(), mount);
            mounts += 1;
        }
    }
    sim.client("admin", audit::set_up(seed, shape.clone(), volumes.clone(), second));
    if let (Some(LostDisk { at, .. }), Some((region, id))) = (lost, replaced) {
        let region = shape.regions[region].clone();
        sim.client("replacer", administrator::replace_master(region, id, at));
    }
    sim.client("auditor", audit::compare(shape.clone(), volumes.clone(), mounts));
    let is_chunkserver =
        |name: &String| shape.regions.iter().any(|region| region.chunkservers.contains(name));
    let disks = all.iter().filter(|(name, _)| is_chunkserver(name));
    let disks = disks.map(|(name, host)| (name.clone(), host.disk.clone())).collect();
    let epochs = Epochs::new(disks, volumes.iter().map(|volume| volume.id).collect());
    let kept =
        Kept::new(if takes_out { Vec::new() } else { volumes.iter().map(|volume| volume.id).collect() });
    let nemesis =
        Nemesis::new(seed, shape.clone(), all, watches.values().cloned().collect(), volumes.clone(), lost);
    nemesis.set_ways(&sim);
    let run = Run { sim, shape, nemesis, watches, volumes, epochs, kept, compared: Duration::ZERO };
    run.finish().with_context(|| format!("seed {seed}"))
}

impl Run<'_> {
    fn finish(mut self) -> Result<Summary> {
        let mut healed = false;
        loop {
            let now = self.sim.elapsed();
            if now < FAULTS {
                self.nemesis.heal(&mut self.sim, now);
                self.nemesis.act(&mut self.sim, now);
            } else if !healed {
                tracing::info!("healed");
                self.nemesis.heal_all(&mut self.sim, now);
                self.volumes.iter().for_each(|volume| with(&volume.notes, |notes| notes.healed = true));
                healed = true;
            }
            if now > FAULTS + HEALING {
                bail!("not everything was served again within {HEALING:?} after everything was healed");
            }
            if self.step()? {
                break;
            }
        }
        if let Some(violation) =
            self.volumes.iter().find_map(|of| with(&of.notes, |notes| notes.judge(&of.homes)))
        {
            bail!("{violation}");
        }
        self.settle()?;
        for volume in &self.volumes {
            with(&volume.notes, |notes| notes.histories.judge(notes.lost.values().sum()))
                .map_err(|why| anyhow::anyhow!("of volume {}: {why}", volume.id))?;
        }
        let (faults, simulated) = (self.nemesis.counts(), self.sim.elapsed());
        let (shape, volumes) = (self.shape.clone(), self.volumes.clone());
        drop(self);
        Ok(Summary { shape, volumes: volumes.iter().map(Done::of).collect(), faults, simulated })
    }

    /// Waits until every chunk that files use is sealed and whole on two chunkservers of each region, and counts every record again.
    fn settle(&mut self) -> Result<()> {
        let deadline = self.sim.elapsed() + SETTLING;
        let regions: Vec<String> = self.shape.with_data().map(|region| region.name.clone()).collect();
        let damaged = self.nemesis.damaged();
        for region in &regions {
            loop {
                let audit = |of: &Volume| watch::audit_region(&self.watches[region], of.id, COPIES, &damaged);
                match self.volumes.iter().map(audit).sum::<Result<usize, String>>() {
                    Ok(chunks) => {
                        tracing::info!(region, chunks, "in the end every copy is whole");
                        break;
                    }
                    Err(what) if self.sim.elapsed() >= deadline => {
                        bail!("in the end, in region {region}, {what}")
                    }
                    Err(what) => tracing::debug!(region, what, "the chunks aren't settled yet"),
                }
                let until = self.sim.elapsed() + Duration::from_millis(500);
                while self.sim.elapsed() < until {
                    self.step()?;
                }
            }
            let counted = self.watches[region].check_records(true, false);
            let inodes = counted.map_err(|what| anyhow::anyhow!("in the end, in region {region}, {what}"))?;
            tracing::info!(region, inodes, "in the end every record agrees");
        }
        Ok(())
    }

    /// One tick, and what must hold behind it. Answers whether the clients are done.
    fn step(&mut self) -> Result<bool> {
        let done = self.sim.step().map_err(|e| anyhow::anyhow!("a host failed: {e}"))?;
        let now = self.sim.elapsed();
        hosts::set_now(now);
        let at = |what: String| anyhow::anyhow!("at {now:?}: {what}");
        if let Some(what) = plant::broken().or_else(|| self.nemesis.broken().cloned()) {
            return Err(at(what));
        }
        for volume in &self.volumes {
            volume.homes.check(&self.watches, now).map_err(at)?;
            if let Some(violation) = with(&volume.notes, |notes| notes.violations.first().cloned()) {
                if violation.contains(audit::DIFFERS) {
                    audit::tell_differences(&self.watches, volume.id);
                }
                bail!("of volume {}: {violation}", volume.id);
            }
        }
        for (region, watch) in &self.watches {
            watch.check_leaders().map_err(at)?;
            self.epochs.check(watch).map_err(at)?;
            self.kept.check(region, watch, now).map_err(at)?;
        }
        if now >= self.compared + COMPARE_EVERY {
            self.compared = now;
            for watch in self.watches.values() {
                watch.check_states().map_err(at)?;
                for (name, why) in watch.failed() {
                    if !self.nemesis.is_excused(&name) {
                        bail!("at {now:?}: {name} takes no part any more: {why}");
                    }
                }
            }
        }
        Ok(done)
    }
}
