//! Figures of a cluster of several regions (`mooseng-bench-geo`, `make bench-geo`; docs/bench.md): real processes, each region in a network namespace of
//! its own, 60 ms from the others by delays in the daemons' own transport.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::cluster::{GeoCluster, REGIONS};
use super::plan::Kind;
use super::probe::Probe;
use crate::load::worker::sync_dir;

/// The JSON's form; counted up when a field changes its meaning or goes.
pub const VERSION: u32 = 1;
/// Round trip between regions, as the cluster is started.
const ROUND_TRIP_MS: f64 = 60.0;
/// A region's lease, as the cluster is started.
const LEASE_S: f64 = 10.0;
const MIB: usize = 1 << 20;
/// How long something may take to come to the other region.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);
/// Before and behind a move of the home.
const SETTLE: Duration = Duration::from_secs(1);

/// How much is done.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sizes {
    /// Of what is compared between regions: rounds, each region once in each.
    pub rounds: usize,
    /// MiB that are read, and that are written where bytes are counted.
    pub mib: usize,
    /// Files that are looked at, and that are made where age is measured.
    pub files: usize,
    /// Calls of fsync of each kind.
    pub fsyncs: usize,
    /// Homes that are moved.
    pub moves: usize,
    /// Homes that are lost.
    pub failovers: usize,
}

impl Sizes {
    /// As the figures in docs/bench.md.
    pub const WHOLE: Self = Self { rounds: 3, mib: 256, files: 2_000, fsyncs: 100, moves: 4, failovers: 3 };
    /// A few minutes less.
    pub const QUICK: Self = Self { rounds: 1, mib: 64, files: 400, fsyncs: 20, moves: 2, failovers: 1 };
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// That, or more.
    AtLeast(f64),
    /// That, or less.
    AtMost(f64),
}

/// A figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Of what `value` is.
    pub unit: &'static str,
    /// The figure.
    pub value: f64,
    /// What it is to be, where that is said.
    pub goal: Option<Goal>,
    /// What it is made of.
    pub of: String,
}

impl Figure {
    /// Whether the goal is met, where there is one.
    pub fn is_met(&self) -> Option<bool> {
        self.goal.map(|goal| match goal {
            Goal::AtLeast(least) => self.value >= least,
            Goal::AtMost(most) => self.value <= most,
        })
    }

    fn line(&self) -> String {
        let goal = match (self.goal, self.is_met()) {
            (Some(Goal::AtLeast(goal)), Some(met)) => format!(">= {goal} {}", word(met)),
            (Some(Goal::AtMost(goal)), Some(met)) => format!("<= {goal} {}", word(met)),
            _ => String::new(),
        };
        format!("{:34} {:>10.3} {:14} {goal:16} {}", self.name, self.value, self.unit, self.of)
    }
}

fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Of this form.
    pub version: u32,
    /// How much was done.
    pub sizes: Sizes,
    /// debug or release.
    pub build: &'static str,
    /// Processors.
    pub processors: usize,
    /// The load (of one minute) before anything was started: what else the machine did.
    pub load_before: f64,
    /// In the order in which they were measured.
    pub figures: Vec<Figure>,
}

struct Bench {
    cluster: GeoCluster,
    sizes: Sizes,
    figures: Vec<Figure>,
}

/// Measures everything, and prints each figure when it is there.
pub fn run(sizes: Sizes) -> Result<Report> {
    let load_before = fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or_default().parse()?;
    let cluster = GeoCluster::start(REGIONS.len())?;
    let mut bench = Bench { cluster, sizes, figures: Vec::new() };
    bench.compare_reads()?;
    for durability in ["region", "geo"] {
        bench.cluster.set_durability(durability)?;
        bench.fsyncs(durability)?;
        bench.age(durability)?;
    }
    bench.bytes()?;
    bench.moves()?;
    bench.failovers()?;
    bench.cluster.forget_logs();
    Ok(Report {
        version: VERSION,
        sizes,
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        processors: std::thread::available_parallelism()?.get(),
        load_before,
        figures: bench.figures,
    })
}

/// The value below which this share of them is. They aren't empty.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// What the kernel has cached of any mount is forgotten.
fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("the kernel's caches can't be dropped; root is needed")
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.write_all(bytes)?;
    file.sync_all().with_context(|| format!("fsync of {}", path.display()))
}

/// Overwrites a file's first block and fsyncs it, again and again until it is to stop; how long the slowest took.
fn longest_fsync(path: &Path, stop: &AtomicBool) -> Result<Duration> {
    let (file, mut longest) = (File::create(path)?, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        file.write_all_at(&[3; 4_096], 0)?;
        file.sync_all().with_context(|| format!("fsync of {} while the home moved", path.display()))?;
        longest = longest.max(began.elapsed());
    }
    Ok(longest)
}

/// Waits until a name is shown.
fn shown(path: &Path) -> Result<Instant> {
    let deadline = Instant::now() + SHOWN_WITHIN;
    loop {
        if path.symlink_metadata().is_ok() {
            return Ok(Instant::now());
        }
        ensure!(Instant::now() < deadline, "{} isn't shown", path.display());
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// MiB in a second.
fn read_all(dir: &Path) -> Result<f64> {
    let mut buffer = vec![0; MIB];
    let (began, mut bytes) = (Instant::now(), 0);
    for entry in fs::read_dir(dir)? {
        let mut file = File::open(entry?.path())?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => bytes += count,
            }
        }
    }
    Ok(bytes as f64 / MIB as f64 / began.elapsed().as_secs_f64())
}

/// Files in a second.
fn stat_all(dir: &Path, files: usize) -> Result<f64> {
    let began = Instant::now();
    for n in 0..files {
        let path = dir.join(format!("f{n}"));
        path.symlink_metadata().with_context(|| path.display().to_string())?;
    }
    Ok(files as f64 / began.elapsed().as_secs_f64())
}

impl Bench {
    fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        goal: Option<Goal>,
        of: String,
    ) {
        let figure = Figure { name: name.into(), unit, value, goal, of };
        println!("{}", figure.line());
        self.figures.push(figure);
    }

    fn home_and_other(&self) -> Result<(&'static str, &'static str)> {
        let home = self.cluster.volume(REGIONS[0])?.home;
        Ok(if home == REGIONS[0] { (REGIONS[0], REGIONS[1]) } else { (REGIONS[1], REGIONS[0]) })
    }

    /// A replica region's mount against the home's: each with a mount that has seen nothing yet, by turns.
    fn compare_reads(&mut self) -> Result<()> {
        let (home, other) = self.home_and_other()?;
        let (mount, files) = (self.cluster.mount(home), self.sizes.files);
        for dir in ["large", "small"] {
            fs::create_dir(mount.join(dir))?;
        }
        let large = vec![0x5a; 64 * MIB];
        for n in 0..(self.sizes.mib / 64).max(1) {
            write_synced(&mount.join(format!("large/f{n}")), &large)?;
        }
        for n in 0..files {
            fs::write(mount.join(format!("small/f{n}")), b"small")?;
        }
        sync_dir(&mount.join("small"))?;
        self.cluster.wait_whole()?;
        self.cluster.verify(other)?;
        let mut ratios: [Vec<f64>; 3] = Default::default();
        let mut values: [Vec<String>; 3] = Default::default();
        for _ in 0..self.sizes.rounds {
            let mut of = Vec::new();
            for region in [home, other] {
                drop_caches()?;
                of.push(self.cluster.with_fresh_mount(region, |mount| {
                    let read = read_all(&mount.join("large"))?;
                    let cold = stat_all(&mount.join("small"), files)?;
                    let warm = stat_all(&mount.join("small"), files)?;
                    Ok([read, cold, warm])
                })?);
            }
            for i in 0..3 {
                ratios[i].push(of[1][i] / of[0][i]);
                values[i].push(format!("{:.0}/{:.0}", of[1][i], of[0][i]));
            }
        }
        let names = [("read-cold", "MiB/s"), ("stat-cold", "/s"), ("stat-warm", "/s")];
        for (((name, unit), ratios), values) in names.into_iter().zip(ratios).zip(values) {
            let of = format!("replica/home, {unit}: {}", values.join(" "));
            self.add(name, "of the home's", quantile(&ratios, 0.5), Some(Goal::AtLeast(0.95)), of);
        }
        Ok(())
    }

    /// At home: a small file that is made, written and fsynced, and 1 MiB that is appended and fsynced.
    fn fsyncs(&mut self, durability: &str) -> Result<()> {
        let (home, _) = self.home_and_other()?;
        let dir = self.cluster.mount(home).join(format!("fsync-{durability}"));
        fs::create_dir(&dir)?;
        let (mut small, mut large) = (Vec::new(), Vec::new());
        let block = vec![0xa5; MIB];
        let appended = File::create(dir.join("appended"))?;
        for n in 0..self.sizes.fsyncs {
            let mut file = File::create(dir.join(format!("f{n}")))?;
            file.write_all(&[1; 4_096])?;
            let began = Instant::now();
            file.sync_all()?;
            small.push(ms(began.elapsed()));
            appended.write_all_at(&block, (n * MIB) as u64)?;
            let began = Instant::now();
            appended.sync_all()?;
            large.push(ms(began.elapsed()));
        }
        let goal = (durability == "geo").then_some(Goal::AtMost(ROUND_TRIP_MS + 3.0));
        for (name, times) in [("4KiB", small), ("1MiB", large)] {
            let of = format!("p99 {:.1} ms, {} of them", quantile(&times, 0.99), times.len());
            self.add(format!("fsync-{name}-{durability}"), "ms p50", quantile(&times, 0.5), goal, of);
        }
        Ok(())
    }

    /// How long after a file was made at home it is shown by the other region's mount, while 256 KiB are written again and again beside it.
    fn age(&mut self, durability: &str) -> Result<()> {
        let (home, other) = self.home_and_other()?;
        let (here, there) = (self.cluster.mount(home), self.cluster.mount(other));
        let name = format!("age-{durability}");
        let dir = here.join(&name);
        fs::create_dir(&dir)?;
        shown(&there.join(&name))?;
        let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
        let files = self.sizes.files / 4;
        let ages = std::thread::scope(|scope| {
            let busy = scope.spawn(|| -> Result<()> {
                let bytes = vec![7; MIB / 4];
                while !stop.load(Ordering::Relaxed) {
                    let n = written.fetch_add(1, Ordering::Relaxed);
                    fs::write(dir.join(format!("busy{}", n % 64)), &bytes)?;
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(())
            });
            let measured = (|| -> Result<Vec<f64>> {
                let mut ages = Vec::new();
                for n in 0..files {
                    File::create(dir.join(format!("f{n}")))?;
                    let made = Instant::now();
                    ages.push(ms(
                        shown(&there.join(&name).join(format!("f{n}")))?.saturating_duration_since(made)
                    ));
                }
                Ok(ages)
            })();
            stop.store(true, Ordering::Relaxed);
            busy.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
            measured
        })?;
        let goal = Some(Goal::AtMost(ROUND_TRIP_MS + 50.0));
        for (word, share) in [("p50", 0.5), ("p99", 0.99)] {
            let of = format!("{} files, beside {} of 256 KiB", ages.len(), written.load(Ordering::Relaxed));
            self.add(format!("age-{durability}-{word}"), "ms", quantile(&ages, share), goal, of);
        }
        Ok(())
    }

    /// Bytes that leave the home's region for each byte that is written there, TLS and headers included; and for each file that is made.
    fn bytes(&mut self) -> Result<()> {
        let (home, other) = self.home_and_other()?;
        let mount = self.cluster.mount(home);
        // What was on its way has come; what goes on while nothing is written is taken off.
        self.cluster.wait_whole()?;
        let before = self.cluster.bytes_sent(home)?;
        let began = Instant::now();
        std::thread::sleep(Duration::from_secs(5));
        let idle_rate = (self.cluster.bytes_sent(home)? - before) as f64 / began.elapsed().as_secs_f64();
        let mib = self.sizes.mib.max(1);
        let mut seed = 1_u64;
        let random: Vec<u8> = (0..mib * MIB / 8)
            .flat_map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                seed.to_le_bytes()
            })
            .collect();
        let measure = |what: &dyn Fn() -> Result<()>| -> Result<f64> {
            let (before, began) = (self.cluster.bytes_sent(home)?, Instant::now());
            // An fsync of a geo volume returns once everything is there, but for what tells so.
            what()?;
            std::thread::sleep(Duration::from_millis(500));
            let sent = (self.cluster.bytes_sent(home)? - before) as f64;
            Ok((sent - idle_rate * began.elapsed().as_secs_f64()).max(0.0))
        };
        let large = measure(&|| write_synced(&mount.join("counted"), &random))?;
        let dir = mount.join("counted-files");
        fs::create_dir(&dir)?;
        let files = self.sizes.files;
        let made = measure(&|| {
            (0..files).try_for_each(|n| File::create(dir.join(format!("f{n}"))).map(drop))?;
            sync_dir(&dir)
        })?;
        self.cluster.verify(other)?;
        let of = format!("{mib} MiB written at once, without the {idle_rate:.0} B/s of an idle cluster");
        self.add("wan-bytes-per-byte", "B/B", large / (mib * MIB) as f64, None, of);
        self.add("wan-bytes-per-create", "B", made / files as f64, None, format!("{files} empty files"));
        Ok(())
    }

    /// The longest that a mount waits for an fsync while the home is moved to another region and back: each region's mount overwrites a file all the time.
    fn moves(&mut self) -> Result<()> {
        let mut pauses = Vec::new();
        for n in 0..self.sizes.moves {
            let (_, other) = self.home_and_other()?;
            let (cluster, stop) = (&self.cluster, AtomicBool::new(false));
            let waited = std::thread::scope(|scope| -> Result<Vec<f64>> {
                let writers = REGIONS.map(|region| {
                    let (path, stop) = (cluster.mount(region).join(format!("moved-{n}-{region}")), &stop);
                    scope.spawn(move || longest_fsync(&path, stop))
                });
                std::thread::sleep(SETTLE);
                let moved = cluster.move_home(other);
                std::thread::sleep(SETTLE);
                stop.store(true, Ordering::Relaxed);
                let joined = writers.map(|writer| {
                    writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?.map(|t| t.as_secs_f64())
                });
                moved?;
                joined.into_iter().collect()
            })?;
            pauses.extend(waited);
            self.cluster.wait_whole()?;
        }
        let of = format!("the slowest fsync of two mounts in {} moves: {pauses:.2?}", self.sizes.moves);
        self.add("move-home-pause", "s", quantile(&pauses, 1.0), Some(Goal::AtMost(1.0)), of);
        Ok(())
    }

    /// From when all daemons of the home are killed until another region's mount has made a file, fsynced, its directory, too.
    fn failovers(&mut self) -> Result<()> {
        let mut times = Vec::new();
        for n in 0..self.sizes.failovers {
            let (home, other) = self.home_and_other()?;
            let mount = self.cluster.mount(other);
            let struck = Instant::now();
            self.cluster.strike(home, Kind::Kill)?;
            let probed = Probe::start(&mount, &format!("failover-{n}")).wait(Duration::from_secs(90))?;
            let first = probed.first.context("no change was taken")?;
            times.push((first - struck).as_secs_f64());
            self.cluster.heal(home, Kind::Kill)?;
            self.cluster.wait_whole()?;
        }
        let (most, goal) = (quantile(&times, 1.0), Some(Goal::AtMost(LEASE_S + 5.0)));
        let of = format!("the slowest of {times:.1?}");
        self.add("failover-killed", "s", most, goal, of);
        Ok(())
    }
}

/// Where the report is written, if anywhere.
pub fn write(report: &Report, path: &PathBuf) -> Result<()> {
    fs::write(path, serde_json::to_string_pretty(report)?)
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_met_or_missed_in_their_direction() {
        let figure = |value, goal| Figure { name: String::new(), unit: "", value, goal, of: String::new() };
        assert_eq!(figure(0.95, Some(Goal::AtLeast(0.95))).is_met(), Some(true));
        assert_eq!(figure(0.94, Some(Goal::AtLeast(0.95))).is_met(), Some(false));
        assert_eq!(figure(63.1, Some(Goal::AtMost(63.0))).is_met(), Some(false));
        assert_eq!(figure(1.0, None).is_met(), None);
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            (quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)),
            (51.0, 100.0, 100.0)
        );
    }
}
