//! The campaign: round by round, faults strike, are healed, and everything is compared.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::cut_off::Holdings;
use super::damage::{self, Wound};
use super::disk::Trouble;
use super::plan::{self, CHUNKSERVERS, Damage, DiskFailure, Fault, Kind, MOUNTS, Round, Who};
use super::region::Region;
use super::summary::{Stalls, Summary, exceeded, limit};
use super::synced::Synced;
use super::work::Work;
use crate::cluster::wait_for;
use crate::network::Way;

/// How long the workload may take to come to rest once everything is healed.
const REST: Duration = Duration::from_secs(150);
/// Errors of a mount that was killed may come so long after it is back.
const AFTER_KILL: Duration = Duration::from_secs(2);
/// A mount that hung for longer than its lease learns it only then.
const AFTER_HANG: Duration = Duration::from_secs(20);
/// How long a damaged copy may take to be found and replaced.
const REPAIRED_WITHIN: Duration = Duration::from_secs(120);
/// Limits on stalls are asserted only below this load.
const LOAD_MAX: f64 = 2.0;

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where every choice starts.
    pub seed: u64,
    /// How many rounds.
    pub rounds: usize,
    /// Threads of the workload.
    pub threads: usize,
    /// A bug to plant in the daemons, which must have been built for it.
    pub plant: Option<String>,
}

/// Runs a campaign: an error tells what was found, and how to see it again.
pub fn run(settings: &Settings) -> Result<()> {
    let plan = plan::plan(settings.seed, settings.rounds);
    println!("{} rounds with seed {}:", plan.len(), settings.seed);
    for (n, round) in (1..).zip(&plan) {
        println!("  {n:3}  {round}");
    }
    let mut campaign = Campaign::start(settings)?;
    for (n, round) in (1..).zip(&plan) {
        if let Err(error) = campaign.round(n, round) {
            println!("{}", campaign.summary);
            return Err(error.context(format!(
                "round {n} failed ({round}); to see it again: make test-faults SEED={} ROUNDS={n}",
                settings.seed
            )));
        }
    }
    campaign.finish()
}

struct Campaign {
    work: Work,
    region: Region,
    summary: Summary,
    wounds: Vec<Wound>,
    synced: Synced,
    /// Of a mount that is cut off.
    holdings: Option<Holdings>,
    earlier: Vec<(String, Vec<u8>)>,
    operations: usize,
    slow: Vec<String>,
}

/// Something to do at its time.
#[derive(Clone, Copy)]
enum Act {
    Strike(usize),
    Heal(usize),
}

/// A fault that struck, and whom.
struct Struck {
    fault: Fault,
    names: Vec<String>,
}

impl Campaign {
    fn start(settings: &Settings) -> Result<Self> {
        let began = Instant::now();
        let region = Region::start(settings.plant.clone())?;
        println!("the region is up after {:.1} s", began.elapsed().as_secs_f64());
        let mounts: Vec<PathBuf> = (1..=MOUNTS).map(|n| region.mount_path(n)).collect();
        let work = Work::start(&mounts, settings.threads, settings.seed)?;
        let (summary, wounds, earlier) = (Summary::default(), Vec::new(), Vec::new());
        let (synced, holdings, slow) = (Synced::default(), None, Vec::new());
        Ok(Self { work, region, summary, wounds, synced, holdings, earlier, operations: 0, slow })
    }

    fn round(&mut self, n: usize, round: &Round) -> Result<()> {
        let began = Instant::now();
        if round.faults.iter().any(|f| f.kind.needs_whole_copies()) {
            self.wait_mended()?;
        }
        self.work.take_events();
        let started = Instant::now();
        let mut acts: Vec<(u64, Act)> = Vec::new();
        let over = round.faults.iter().map(|f| f.after_ms + f.for_ms).max().unwrap_or_default();
        for (i, fault) in round.faults.iter().enumerate() {
            acts.push((fault.after_ms, Act::Strike(i)));
            // A mount needs the region to be started, and is waited for: whatever else is struck must be healed before.
            let heals = match (fault.who, fault.kind) {
                (Who::Mount(_), Kind::Kill | Kind::PowerLoss) => over + 1,
                _ => fault.after_ms + fault.for_ms,
            };
            acts.push((heals, Act::Heal(i)));
        }
        acts.sort_by_key(|(at, _)| *at);
        let first = acts.first().map_or(0, |(at, _)| *at);
        let mut struck: Vec<Option<Struck>> = round.faults.iter().map(|_| None).collect();
        for (at, act) in acts {
            self.watch_until(started + Duration::from_millis(at))?;
            match act {
                Act::Strike(i) => struck[i] = self.strike(&round.faults[i], &struck)?,
                Act::Heal(i) => {
                    if let Some(struck) = struck[i].take() {
                        self.heal(&struck)?;
                    }
                }
            }
        }
        self.region.wait_whole()?;
        // Checks go on a little in a region that has just healed.
        self.watch_until(Instant::now() + Duration::from_millis(500))?;
        self.rest()?;
        let events = self.work.take_events();
        let struck_at = started + Duration::from_millis(first);
        let calm = Stalls::before(&events, struck_at);
        // One that is away waits itself: what it costs is what others wait.
        let counted: Vec<_> = events.iter().copied().filter(|e| round.away() != Some(e.mount)).collect();
        let stalls = Stalls::between(&counted, struck_at, Instant::now());
        self.summary.calm(calm);
        self.summary.add(round, stalls);
        self.operations += events.len();
        let files = self.verify()?;
        if round.fsck {
            self.region.fsck()?;
        }
        self.look()?;
        let led_twice = self.region.led_twice()?;
        ensure!(led_twice.is_empty(), "{}", led_twice.join("\n"));
        self.work.resume();
        self.judge_stalls(n, round, stalls, calm)?;
        println!(
            "round {n}: {} operations, {files} files compared, {} errors excused so far, {:.1} s",
            events.len(),
            self.work.excused(),
            began.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// What a hung process cost, where that is promised. On a machine with other work it is told, not asserted.
    fn judge_stalls(&mut self, n: usize, round: &Round, stalls: Stalls, calm: Stalls) -> Result<()> {
        let Some(limit) = limit(round) else { return Ok(()) };
        let load = load();
        for over in exceeded(stalls, limit, calm) {
            let told = format!("round {n} ({round}): {over}; the machine's load is {load:.1}");
            println!("  slow: {told}");
            ensure!(load > LOAD_MAX, "a hung process cost too much: {told}");
            self.slow.push(told);
        }
        Ok(())
    }

    /// Waits, with an eye on the daemons and on the workload.
    fn watch_until(&mut self, moment: Instant) -> Result<()> {
        loop {
            self.look()?;
            let left = moment.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// Nothing was violated so far.
    fn look(&mut self) -> Result<()> {
        let violations = self.work.violations();
        ensure!(violations.is_empty(), "{}", violations.join("\n"));
        let ended = self.region.ended();
        ensure!(ended.is_empty(), "{}", ended.join("\n"));
        let panics = self.region.panics()?;
        ensure!(panics.is_empty(), "daemons panicked: {}", panics.join("\n"));
        Ok(())
    }

    /// Brings the workload to rest: everything healed, each operation must be answered.
    fn rest(&mut self) -> Result<()> {
        let rested = self.work.pause(REST);
        self.look()?;
        rested
    }

    /// Compares everything, as a mount shows it that has cached nothing. The workload rests.
    fn verify(&mut self) -> Result<usize> {
        let (work, synced) = (&self.work, &self.synced);
        let verified = self.region.with_fresh_mount(|path| {
            let mut verified = work.verify(path)?;
            verified.problems.extend(synced.differences(path));
            Ok(verified)
        })?;
        ensure!(verified.problems.is_empty(), "lost, torn or unreadable: {:#?}", verified.problems);
        Ok(verified.files)
    }

    /// Waits until every copy is whole, as far as one can see.
    fn wait_mended(&mut self) -> Result<()> {
        self.region.wait_whole()?;
        let (wounds, region) = (&self.wounds, &self.region);
        let left = || -> Vec<&Wound> {
            wounds.iter().filter(|w| region.disk(&w.name).is_ok_and(|disk| !w.is_replaced(disk))).collect()
        };
        wait_for("damaged copies to be replaced", REPAIRED_WITHIN, || {
            ensure!(left().is_empty(), "these are still there: {:?}", left());
            Ok(())
        })?;
        self.wounds.clear();
        self.region.fsck()
    }

    /// Lets a fault strike. One whose victim is struck already is left out.
    fn strike(&mut self, fault: &Fault, others: &[Option<Struck>]) -> Result<Option<Struck>> {
        let name = self.region.resolve(fault.who, fault.seed);
        let mut names = match fault.kind {
            Kind::AllMasters => self.region.names("master"),
            Kind::Everything => self.region.daemons(),
            Kind::LastCopy | Kind::LastCopyAfterBadFlushes => vec![name, beside(fault.who)],
            _ => vec![name],
        };
        if let Kind::Cut(other) | Kind::CutOneWay(other) = fault.kind {
            // Of two followers, another one.
            let seed = fault.seed.wrapping_add(u64::from(other == fault.who));
            names.push(self.region.resolve(other, seed));
        }
        let taken: BTreeSet<&String> = others.iter().flatten().flat_map(|s| &s.names).collect();
        if names.iter().any(|n| taken.contains(n)) {
            println!("  {fault} is left out: {names:?} is struck already");
            return Ok(None);
        }
        println!("  {} strikes {}", fault.label(), names.join(", "));
        self.strike_at(fault, &names).with_context(|| format!("letting {fault} strike {names:?}"))?;
        Ok(Some(Struck { fault: *fault, names }))
    }

    fn strike_at(&mut self, fault: &Fault, names: &[String]) -> Result<()> {
        if let (Who::Mount(n), Kind::Kill | Kind::PowerLoss | Kind::StopLong | Kind::CutOff) =
            (fault.who, fault.kind)
        {
            self.work.excuse(n - 1);
        }
        match fault.kind {
            Kind::Kill => self.region.kill(names),
            Kind::PowerLoss | Kind::AllMasters | Kind::Everything => self.lose_power(names, fault.seed),
            Kind::StopShort | Kind::StopLong => self.region.signal(names, Signal::SIGSTOP),
            Kind::LastCopy => {
                let mount = self.region.mount_path(1 + fault.seed as usize % MOUNTS);
                self.synced.write(&mount, fault.seed)?;
                self.leave_one(names, fault.seed)
            }
            Kind::LastCopyAfterBadFlushes => {
                // Names are well: a chunkserver that doesn't see what is wrong goes on with the disk.
                self.trouble(&names[0], Trouble { flushes: Some(libc::EIO), ..Trouble::default() })
            }
            Kind::Disk(failure) => {
                self.region.process(&names[0])?.may_end = true;
                self.trouble(&names[0], trouble(failure))
            }
            Kind::Damage(damage) => {
                if damage == Damage::Old {
                    self.earlier = damage::remember(self.region.disk(&names[0])?);
                    // Chunks grow meanwhile.
                    self.watch_until(Instant::now() + Duration::from_secs(2))?;
                }
                self.region.kill(names)?;
                let disk = self.region.disk(&names[0])?;
                let wounds = damage::inflict(damage, &names[0], disk, &self.earlier, fault.seed)?;
                for wound in &wounds {
                    println!("    {damage:?}: {} of {}", wound.path, wound.name);
                }
                self.wounds.extend(wounds);
                Ok(())
            }
            Kind::Cut(_) => self.region.network().cut(&names[0], &names[1]),
            Kind::CutOneWay(_) => self.region.network().cut_one_way(&names[0], &names[1]),
            Kind::CutOff => {
                let Who::Mount(n) = fault.who else { bail!("only mounts are cut off from all") };
                let (mount, others) = (self.region.mount_path(n), self.region.mount_path(n % MOUNTS + 1));
                self.holdings = Some(Holdings::take(&mount, &others)?);
                self.region.network().isolate(&names[0], Way::Both)
            }
        }
    }

    fn heal(&mut self, struck: &Struck) -> Result<()> {
        let Struck { fault, names } = struck;
        match fault.kind {
            Kind::StopShort | Kind::StopLong => self.region.signal(names, Signal::SIGCONT)?,
            Kind::Cut(_) | Kind::CutOneWay(_) => self.region.network().mend(&names[0], &names[1])?,
            Kind::CutOff => {
                let mut holdings = self.holdings.take().context("nothing is known of what it had")?;
                holdings.lose()?;
                self.region.network().restore(&names[0])?;
                holdings.told().with_context(|| format!("{} was cut off from all", names[0]))?;
            }
            Kind::LastCopy => self.check_and_return(names)?,
            Kind::LastCopyAfterBadFlushes => {
                // What was written meanwhile stays: the workload would have replaced most of it before anybody looks.
                self.rest()?;
                self.trouble(&names[0], Trouble::default())?;
                // What the failed flushes concern is copied elsewhere first: until then one copy may be all there is.
                self.watch_until(Instant::now() + Duration::from_secs(1))?;
                self.region.fsck()?;
                self.leave_one(names, fault.seed)?;
                self.watch_until(Instant::now() + Duration::from_millis(fault.for_ms))?;
                self.check_and_return(names)?;
            }
            Kind::Disk(failure) => {
                self.trouble(&names[0], Trouble::default())?;
                // A daemon that gave its disk up takes it up again when it is started.
                match failure {
                    DiskFailure::Writes | DiskFailure::Flushes => self.lose_power(names, fault.seed)?,
                    _ => self.region.kill(names)?,
                }
                self.region.process(&names[0])?.may_end = false;
                self.region.start_one(&names[0])?;
            }
            _ => names.iter().try_for_each(|name| self.region.start_one(name))?,
        }
        if let Who::Mount(n) = fault.who {
            let after = match fault.kind {
                Kind::StopLong | Kind::CutOff => AFTER_HANG,
                _ => AFTER_KILL,
            };
            self.work.excuse_no_more(n - 1, after);
        }
        Ok(())
    }

    fn lose_power(&mut self, names: &[String], seed: u64) -> Result<()> {
        self.region.kill(names)?;
        for name in names {
            let lost = self.region.disk(name)?.lose_power(seed)?;
            println!("    {name} lost {lost}");
        }
        Ok(())
    }

    /// The second is gone; the first loses its power and comes back.
    fn leave_one(&mut self, names: &[String], seed: u64) -> Result<()> {
        self.region.kill(names)?;
        let lost = self.region.disk(&names[0])?.lose_power(seed)?;
        println!("    {} lost {lost}", names[0]);
        self.region.start_one(&names[0])
    }

    /// Everything must be readable while the second is gone; then it comes back.
    fn check_and_return(&mut self, names: &[String]) -> Result<()> {
        self.rest()?;
        self.verify()
            .with_context(|| format!("while {} was gone, after {} had lost its power", names[1], names[0]))?;
        self.work.resume();
        self.region.start_one(&names[1])?;
        self.synced.remove()
    }

    fn trouble(&self, name: &str, trouble: Trouble) -> Result<()> {
        self.region.disk(name)?.set(trouble);
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.wait_mended().context("at the end of the campaign")?;
        self.work.stop(Duration::from_secs(90))?;
        let violations = self.region.panics()?;
        if !violations.is_empty() {
            bail!("daemons panicked: {}", violations.join("\n"));
        }
        self.region.forget_logs();
        println!("{}", self.summary);
        println!("{} operations; nothing acknowledged was lost", self.operations);
        if !self.slow.is_empty() {
            println!(
                "{} times a hung process cost more than it should, on a loaded machine:",
                self.slow.len()
            );
            self.slow.iter().for_each(|slow| println!("  {slow}"));
        }
        Ok(())
    }
}

/// Another chunkserver.
fn beside(who: Who) -> String {
    match who {
        Who::Chunkserver(n) => format!("chunkserver-{}", n % CHUNKSERVERS + 1),
        _ => "chunkserver-1".into(),
    }
}

fn trouble(failure: DiskFailure) -> Trouble {
    let none = Trouble::default();
    match failure {
        DiskFailure::Reads => Trouble { reads: Some(libc::EIO), ..none },
        DiskFailure::Writes => Trouble { changes: Some(libc::EIO), ..none },
        DiskFailure::Flushes => Trouble { flushes: Some(libc::EIO), name_flushes: Some(libc::EIO), ..none },
        DiskFailure::Full => Trouble { full: true, ..none },
        DiskFailure::ReadOnly => Trouble { changes: Some(libc::EROFS), ..none },
    }
}

/// Processes that want to run, averaged over a minute.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|l| l.parse().ok()).unwrap_or(f64::MAX)
}
