//! One run: a region, its clients, and what goes wrong, all from one seed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mooseng_master::RaftConfig;
use mooseng_ports::plant;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::administrator;
use crate::copies::Copies;
use crate::faults::{Nemesis, Shape};
use crate::history::{self, Call};
use crate::hosts::{self, Host, SERVERS, SUBSTITUTE, SimClock};
use crate::kinds;
use crate::machines::Counts;
use crate::watch::Watch;
use crate::workload::{self, Shared};

/// How long faults go on.
const FAULTS: Duration = Duration::from_secs(40);
/// How long everything may take to be served again afterwards.
const HEALING: Duration = Duration::from_secs(200);
/// How long chunks may take to be sealed everywhere once the clients are done.
const SETTLING: Duration = Duration::from_secs(90);
/// How often states and chunks are compared.
const COMPARE_EVERY: Duration = Duration::from_millis(250);
/// How often copies are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How many clients there are.
pub const CLIENTS: u8 = 2;

/// What a run came to.
#[derive(Debug)]
pub struct Summary {
    /// Operations in the history.
    pub operations: usize,
    /// Changes of names that were made alone.
    pub made_alone: u64,
    /// Some of them were lost with a lease: the history isn't judged.
    pub lost_names: bool,
    /// Of them, without a known outcome.
    pub unknown: usize,
    /// Records that were appended, and those of them that fsync was answered for.
    pub appended: (usize, usize),
    /// How often a directory was listed.
    pub listings: usize,
    /// How often the file was locked that is mostly one client's, and how many locks clients gave by themselves.
    pub locked_by_one: (usize, u64),
    /// Chunks that extents named at some time.
    pub chunks: usize,
    /// How often a copy of one had changed on a disk and was looked at.
    pub looks: usize,
    /// What the rewriter did.
    pub rewritten: crate::watch::Rewritten,
    /// Chunks that were left in the end.
    pub left: usize,
    /// What went wrong, how often.
    pub faults: Counts,
    /// Simulated time.
    pub simulated: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.0.iter().map(|(what, n)| format!("{n} {what}")).collect();
        write!(
            f,
            "{} operations ({} unknown), {} changes alone{}, {} chunks ({} left, {} looks; {} sparse ones rewritten, {} merged, {} packs, {} extents joined), {}, {:.0} s simulated",
            self.operations,
            self.unknown,
            self.made_alone,
            if self.lost_names { " (some lost, not judged)" } else { "" },
            self.chunks,
            self.left,
            self.looks,
            self.rewritten.sparse,
            self.rewritten.merged,
            self.rewritten.packs,
            self.rewritten.joined,
            faults.join(", "),
            self.simulated.as_secs_f64()
        )?;
        let (appended, durable) = self.appended;
        if appended > 0 {
            write!(f, ", {appended} records appended ({durable} synced), {} listings", self.listings)?;
        }
        let (times, given) = self.locked_by_one;
        if times > 0 {
            write!(
                f,
                ", {times} times locked the file that is mostly one's ({given} locks were given by clients)"
            )?;
        }
        Ok(())
    }
}

struct Run<'a> {
    sim: turmoil::Sim<'a>,
    nemesis: Nemesis,
    watch: Watch,
    shared: Shared,
    copies: Copies,
    compared: Duration,
    looked: Duration,
}

/// Runs a seed. The caller has seeded randomness and clocks for the whole process.
pub fn run(seed: u64) -> Result<Summary> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sim = turmoil::Builder::new()
        .rng_seed(rng.random())
        .simulation_duration(FAULTS + HEALING + SETTLING + Duration::from_secs(100))
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(5))
        .tcp_capacity(4096)
        .enable_random_order()
        .build();
    let shape = Shape::of(&mut rng);
    tracing::info!(?shape, "shape");
    let watch = Watch::default();
    let mut clock = || {
        let drift_ppm = rng.random_range(-shape.drift_ppm..=shape.drift_ppm);
        SimClock::new(drift_ppm, rng.random_range(-200..=200))
    };
    let mut all = BTreeMap::new();
    let raft = RaftConfig {
        entries_between_snapshots: shape.snapshots.0,
        entries_kept: shape.snapshots.1,
        segment_bytes: 256 << 10,
        defer_ms: kinds::defer_ms(seed),
        ..RaftConfig::default()
    };
    let house = if shape.hasty { hosts::hasty() } else { hosts::patient() };
    for i in 1..=SUBSTITUTE {
        let (name, host, raft, watch) = (format!("m{i}"), Host::new(clock()), raft.clone(), watch.clone());
        let house = house.clone();
        all.insert(name.clone(), host.clone());
        sim.host(name, move || hosts::master(i, host.clone(), raft.clone(), house.clone(), watch.clone()));
    }
    sim.crash(format!("m{SUBSTITUTE}"));
    for i in 1..=SERVERS {
        let (name, host, watch) = (format!("c{i}"), Host::new(clock()), watch.clone());
        all.insert(name.clone(), host.clone());
        sim.host(name, move || hosts::chunkserver(i, host.clone(), watch.clone()));
    }
    let shared = Shared::default();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let (name, host) = (format!("client{number}"), Host::new(clock()));
        all.insert(name.clone(), host.clone());
        sim.client(name.clone(), workload::client(number, seed, host, watch.clone(), shared.clone()));
        clients.push(name);
    }
    if let Some((at, lost)) = shape.lost {
        sim.client("admin", administrator::replace_master(at, lost, shared.clone()));
    }
    if seed % 5 == 4 {
        sim.client("classes", administrator::assign_classes(seed, shared.clone()));
    }
    let disks = all.iter().filter(|(name, _)| name.starts_with('c') && !clients.contains(name));
    let disks = disks.filter(|(name, _)| shape.rotten.as_ref() != Some(name));
    let copies = Copies::new(disks.map(|(name, host)| (name.clone(), host.disk.clone())).collect());
    let nemesis = Nemesis::new(seed, shape, all, clients, watch.clone());
    let (compared, looked) = (Duration::ZERO, Duration::ZERO);
    let run = Run { sim, nemesis, watch, shared, copies, compared, looked };
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
                workload::with(&self.shared, |notes| notes.healed = true);
                healed = true;
            }
            if now > FAULTS + HEALING {
                bail!("the clients weren't served again within {HEALING:?} after everything was healed");
            }
            if self.step()? {
                break;
            }
        }
        let left = self.settle()?;
        let simulated = self.sim.elapsed();
        let Self { sim, nemesis, watch, shared, copies, .. } = self;
        let (chunks, looks) = copies.seen();
        let rewritten = watch.rewritten();
        drop((sim, watch));
        let notes = Arc::try_unwrap(shared).map_err(|_| anyhow::anyhow!("a client kept its notes"))?;
        let notes = notes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(violation) = notes.violations.first() {
            bail!("{violation} (and {} more)", notes.violations.len() - 1);
        }
        let lapses = |client: u8| notes.lapses.get(&client).copied().unwrap_or_default();
        notes.appended.judge(lapses, u64::from(notes.lost_names)).map_err(anyhow::Error::msg)?;
        let mut operations = notes.operations.clone();
        if notes.lapsed {
            operations.retain(|o| !matches!(o.call, Call::Write(..) | Call::Read(_)));
        }
        // What nobody was told of may be gone, although the client that made it saw it.
        if !notes.lost_names {
            history::check(&operations).context("the history isn't linearizable")?;
        }
        Ok(Summary {
            operations: notes.operations.len(),
            made_alone: notes.made_alone,
            lost_names: notes.lost_names,
            unknown: notes.operations.iter().filter(|o| o.returned.is_none()).count(),
            appended: notes.appended.counts(),
            listings: notes.listings,
            locked_by_one: (notes.locked_by_one.times, notes.given_alone),
            chunks,
            looks,
            rewritten,
            left,
            faults: nemesis.counts(),
            simulated,
        })
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
        self.watch.check_leaders().map_err(at)?;
        if now >= self.looked + LOOK_EVERY {
            self.looked = now;
            self.watch.check_copies(&mut self.copies).map_err(at)?;
        }
        if now >= self.compared + COMPARE_EVERY {
            self.compared = now;
            self.watch.check_states().map_err(at)?;
            self.watch.check_records(false, true).map_err(at)?;
            for (name, why) in self.watch.failed() {
                if !self.nemesis.is_excused(&name) {
                    bail!("at {now:?}: {name} takes no part any more: {why}");
                }
            }
        }
        Ok(done)
    }

    /// Waits until every chunk is sealed on each of its chunkservers.
    fn settle(&mut self) -> Result<usize> {
        let deadline = self.sim.elapsed() + SETTLING;
        loop {
            let until = self.sim.elapsed() + Duration::from_secs(1);
            while self.sim.elapsed() < until {
                self.step()?;
            }
            match self.watch.audit_chunks(&self.nemesis.damaged(), &self.copies) {
                Ok(chunks) => {
                    let inodes = self
                        .watch
                        .check_records(true, true)
                        .map_err(|what| anyhow::anyhow!("in the end {what}"))?;
                    tracing::info!(chunks, inodes, "in the end every record agrees");
                    return Ok(chunks);
                }
                Err(what) if self.sim.elapsed() >= deadline => bail!("in the end {what}"),
                Err(what) => tracing::debug!(what, "the chunks aren't settled yet"),
            }
        }
    }
}
