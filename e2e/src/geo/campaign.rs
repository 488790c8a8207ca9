//! The campaign: round by round the home is lost, another region takes over, the lost one comes back by itself, and everything is compared.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::cluster::GeoCluster;
use super::plan::{self, Kind, Round};
use super::probe::{Probe, Probed};
use super::seen::{Must, Seen};
use crate::cluster::wait_for;
use crate::held::Held;
use crate::load;

/// How soon another region must take changes.
const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(15);
/// How long that is waited for: how much too late it was is worth knowing.
const PATIENCE: Duration = Duration::from_secs(90);
/// How soon the mount beside the lost home must take changes once everything is whole again.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(60);
/// How long a call may take to return once everything is healed: a mount tries for a minute.
const REST: Duration = Duration::from_secs(120);
/// How long a mount may take to show what was acknowledged elsewhere.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);
/// Threads of the workload on each mount.
const THREADS: usize = 2;

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where every choice starts.
    pub seed: u64,
    /// How many rounds of each kind.
    pub rounds: usize,
    /// Which kinds.
    pub kinds: Vec<Kind>,
    /// How many regions with data.
    pub regions: usize,
    /// Goes on with the next round after one that failed.
    pub keep_going: bool,
    /// Removes a file behind the workload's back, which the first round must find.
    pub plant_loss: bool,
}

/// Runs a campaign: an error tells what was found, and how to see it again.
pub fn run(settings: &Settings) -> Result<()> {
    let plan = plan::plan(settings.seed, settings.rounds, &settings.kinds);
    println!("{} rounds with seed {} in {} regions:", plan.len(), settings.seed, settings.regions);
    for (n, round) in (1..).zip(&plan) {
        println!("  {n:3}  {round}");
    }
    let began = Instant::now();
    let cluster = GeoCluster::start(settings.regions)?;
    println!("the regions are up after {:.1} s", began.elapsed().as_secs_f64());
    let mut campaign = Campaign { cluster, plant_loss: settings.plant_loss, takeovers: Vec::new() };
    let (mut kept, mut failed) = (Vec::new(), Vec::new());
    for (n, round) in (1..).zip(&plan) {
        let done = campaign.round(n, round).with_context(|| {
            format!(
                "round {n} failed ({round}); to see it again: make test-geo SEED={} ROUNDS={} REGIONS={}",
                settings.seed, settings.rounds, settings.regions
            )
        });
        match done {
            Ok(round) => kept.push(round),
            Err(error) if settings.keep_going => {
                println!("  {n:3}  FAILED: {error:#}");
                failed.push(n.to_string());
            }
            Err(error) => {
                campaign.print_takeovers();
                return Err(error);
            }
        }
    }
    if !failed.is_empty() {
        campaign.print_takeovers();
        bail!("{} of {} rounds failed: {}", failed.len(), plan.len(), failed.join(", "));
    }
    campaign.finish(&kept)
}

struct Campaign {
    cluster: GeoCluster,
    plant_loss: bool,
    takeovers: Vec<(Kind, Duration)>,
}

/// A workload on a mount.
struct Working {
    dir: PathBuf,
    journals: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<load::Outcome>>>,
}

/// A round that failed doesn't work on.
impl Drop for Working {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// What a round left on the mounts, by names below them.
struct Kept {
    loads: Vec<(PathBuf, PathBuf)>,
    seen: Vec<(PathBuf, Vec<Must>)>,
    probes: Vec<PathBuf>,
}

impl Campaign {
    fn round(&mut self, n: usize, round: &Round) -> Result<Kept> {
        let began = Instant::now();
        let before = self.cluster.wait_whole().context("before the loss")?;
        let (lost, others) = self.cluster.parted(&before.home)?;
        let working: Vec<Working> =
            self.cluster.regions().iter().map(|region| self.work(n, region, round.seed)).collect();
        let here = self.cluster.mount(lost);
        let there: Vec<PathBuf> = others.iter().map(|region| self.cluster.mount(region)).collect();
        let pair = |from: &Path, to: &Path, name: &str| {
            let dir = PathBuf::from(format!("r{n}-seen-{name}"));
            Seen::start(from, to, &dir, SHOWN_WITHIN)
        };
        let (mut seen, mut held) = (Vec::new(), Vec::new());
        for (region, mount) in others.iter().zip(&there) {
            seen.push(pair(&here, mount, &format!("in-{region}"))?);
            seen.push(pair(mount, &here, &format!("of-{region}"))?);
            held.push(Held::make(mount, &format!("r{n}-held-{region}"))?);
        }
        std::thread::sleep(round.before);
        let struck = Instant::now();
        self.cluster.strike(lost, round.kind)?;
        let taken = all_take_changes(&others, &there, n);
        let first = taken.as_ref().ok().and_then(|taken| taken.iter().filter_map(|p| p.first).min());
        let taken_over = first.map(|first| first - struck);
        println!("  {n:3}  {lost} is {}; another region took changes after {taken_over:?}", round.kind);
        let held = match &taken {
            Ok(_) => held.iter_mut().try_for_each(|held| {
                held.settled()?;
                held.write_on()
            }),
            Err(_) => Ok(()),
        };
        if taken.is_ok() {
            std::thread::sleep(round.after);
        }
        let known = self.cluster.volume(others[0]);
        self.cluster.heal(lost, round.kind)?;
        let mut probes: Vec<PathBuf> = taken?.into_iter().flat_map(|probed| probed.made).collect();
        held.context("a file that was open without a name while the home was lost")?;
        let taken_over = taken_over.context("the probes made nothing")?;
        self.takeovers.push((round.kind, taken_over));
        let healed = Instant::now();
        let whole = self.cluster.wait_in_sync().context("after it came back")?;
        let rejoined = healed.elapsed();
        let followed = Probe::start(&here, &format!("r{n}-probe-back")).wait(FOLLOWED_WITHIN);
        probes.extend(followed.with_context(|| format!("the mount in {lost} doesn't follow"))?.made);
        let mut errors = Vec::new();
        let loads = working.into_iter().map(|w| w.finish(&mut errors)).collect::<Result<Vec<_>>>()?;
        let seen =
            seen.into_iter().map(|s| Ok((s.dir.clone(), s.finish(REST)?))).collect::<Result<Vec<_>>>()?;
        let kept = Kept { loads, seen, probes };
        self.cluster.wait_whole().context("after it came back, nothing at work any more")?;
        errors.extend(kept.seen.iter().flat_map(|(_, musts)| musts.iter().flat_map(|m| m.errors.clone())));
        let problems: Vec<&String> =
            kept.seen.iter().flat_map(|(_, m)| m).flat_map(|m| &m.problems).collect();
        ensure!(problems.is_empty(), "what was seen: {problems:#?}");
        let wrong: Vec<&String> = errors.iter().filter(|e| e.contains("WRONG CONTENT")).collect();
        ensure!(wrong.is_empty(), "{wrong:#?}");
        if self.plant_loss {
            plant_loss(&there[0], &kept)?;
        }
        for region in self.cluster.regions() {
            kept.verify(&self.cluster.mount(region))
                .with_context(|| format!("as the mount in {region} shows it"))?;
        }
        let (home, replicas) = self.cluster.parted(&whole.home)?;
        replicas.iter().try_for_each(|region| self.cluster.verify(region))?;
        ensure!(self.cluster.panics().is_empty(), "{:#?}", self.cluster.panics());
        let known = known.with_context(|| format!("{} can't be asked", others[0]))?;
        let follows = others.contains(&known.home.as_str()) && known.epoch > before.epoch;
        ensure!(follows, "{before:?} was followed by {known:?}");
        ensure!(taken_over <= TAKEN_OVER_WITHIN, "{} took changes only after {taken_over:?}", known.home);
        println!(
            "       in sync {:.1} s after it came back, home {home}, {} errors seen, {} files seen or fsynced; {:.0} s in all",
            rejoined.as_secs_f64(),
            errors.len(),
            kept.seen.iter().flat_map(|(_, m)| m).map(|m| m.files.len()).sum::<usize>(),
            began.elapsed().as_secs_f64()
        );
        Ok(kept)
    }

    fn work(&self, n: usize, region: &str, seed: u64) -> Working {
        let name = PathBuf::from(format!("r{n}-load-{region}"));
        let journals = self.cluster.scratch().join("journals").join(&name);
        let settings = load::Settings {
            dir: self.cluster.mount(region).join(&name),
            journals: journals.clone(),
            threads: THREADS,
            time: Duration::from_secs(3_600),
            seed,
            go_on: true,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || load::run(&settings, || stopped.load(Ordering::SeqCst)));
        Working { dir: name, journals, stop, thread: Some(thread) }
    }

    fn print_takeovers(&self) {
        for kind in plan::KINDS {
            let mut times: Vec<f64> =
                self.takeovers.iter().filter(|(k, _)| *k == kind).map(|(_, t)| t.as_secs_f64()).collect();
            times.sort_by(f64::total_cmp);
            if let (Some(least), Some(most)) = (times.first(), times.last()) {
                println!("home {kind}: {} takeovers in {least:.1} to {most:.1} s", times.len());
            }
        }
    }

    /// Everything once more, over mounts that have cached nothing.
    fn finish(mut self, kept: &[Kept]) -> Result<()> {
        self.print_takeovers();
        for region in self.cluster.regions() {
            self.cluster
                .with_fresh_mount(region, |mount| kept.iter().try_for_each(|kept| kept.verify(mount)))
                .with_context(|| format!("at the end, as a fresh mount in {region} shows it"))?;
        }
        let ended = self.cluster.ended();
        ensure!(ended.is_empty(), "{}", ended.join("; "));
        self.cluster.forget_logs();
        Ok(())
    }
}

/// Waits until the mounts of all of these regions take changes: that of the one that takes over, and others, which find it.
fn all_take_changes(regions: &[&str], mounts: &[PathBuf], round: usize) -> Result<Vec<Probed>> {
    let begin = |(region, mount): (&&str, &PathBuf)| Probe::start(mount, &format!("r{round}-probe-{region}"));
    let probes: Vec<Probe> = regions.iter().zip(mounts).map(begin).collect();
    // Each is waited for: one that is late would go on when the next round begins.
    let probed: Vec<Result<Probed>> = probes.into_iter().map(|probe| probe.wait(PATIENCE)).collect();
    let named = regions.iter().zip(probed);
    named.map(|(region, probed)| probed.with_context(|| format!("{region} took no changes"))).collect()
}

impl Working {
    /// The directory and its journals, once all threads have ended.
    fn finish(mut self, errors: &mut Vec<String>) -> Result<(PathBuf, PathBuf)> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("the workload has ended already")?;
        let deadline = Instant::now() + REST;
        while !thread.is_finished() {
            ensure!(Instant::now() < deadline, "a call of the workload in {} hangs", self.dir.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        let outcome = thread.join().map_err(|_| anyhow!("the workload panicked"))??;
        ensure!(outcome.operations > 0, "the workload in {} did nothing", self.dir.display());
        errors.extend(outcome.errors);
        Ok((self.dir.clone(), self.journals.clone()))
    }
}

impl Kept {
    /// All of it is there, on a mount that may need a moment to show it.
    fn verify(&self, mount: &Path) -> Result<()> {
        wait_for("what was acknowledged or seen to be there", SHOWN_WITHIN, || {
            let mut problems = Vec::new();
            for (dir, journals) in &self.loads {
                let report = load::verify::verify(&mount.join(dir), journals)?;
                ensure!(report.threads >= THREADS, "{} journals in {}", report.threads, journals.display());
                problems.extend(report.problems.iter().map(|p| format!("{}/{p}", dir.display())));
            }
            for (dir, musts) in &self.seen {
                let lacking = musts.iter().flat_map(|must| must.lacking(&mount.join(dir)));
                problems.extend(lacking.map(|p| format!("{}/{p}", dir.display())));
            }
            let gone = self.probes.iter().filter(|name| !mount.join(name).exists());
            problems.extend(gone.map(|name| format!("{} is LOST", name.display())));
            ensure!(
                problems.is_empty(),
                "{} problems, among them {:#?}",
                problems.len(),
                &problems[..problems.len().min(10)]
            );
            Ok(())
        })
    }
}

/// Removes a file that must be there.
fn plant_loss(mount: &Path, kept: &Kept) -> Result<()> {
    let of = |(dir, musts): &(PathBuf, Vec<Must>)| {
        let number = musts.iter().find_map(|must| must.files.keys().next().copied())?;
        Some(mount.join(dir).join(format!("n{number:06}")))
    };
    let path = kept.seen.iter().find_map(of).context("there is nothing to lose")?;
    println!("       planted: {} is removed", path.display());
    std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
}
