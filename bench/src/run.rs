//! A whole run: the targets made, the scenarios by turns, the report.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::metric;
use crate::process::check_interrupt;
use crate::report::{Host, Report, VERSION, Values};
use crate::scenario::{SCENARIOS, Sizes};
use crate::target::{Kind, Target};
use crate::{disk, flushes, memory};

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where everything is kept while it runs.
    pub dir: PathBuf,
    /// How much.
    pub sizes: Sizes,
    /// Names of measures or scenarios; empty for all.
    pub only: Vec<String>,
    /// Whether flushes are counted, where overwrites are measured and strace works.
    pub strace: bool,
    /// Whether memory is measured.
    pub memory: bool,
    /// Whether nothing is read from files of chunkservers on this host.
    pub over_network: bool,
    /// Whether the directory stays.
    pub keep: bool,
}

/// Runs it.
pub fn run(plan: &Plan) -> Result<Report> {
    ensure!(nix::unistd::geteuid().is_root(), "this needs root: it mounts, and drops the kernel's caches");
    let wanted = wanted(&plan.only)?;
    let counts = plan.strace && wanted.iter().any(|metric| metric.starts_with("overwrite-"));
    let flushes_uncounted = counts.then(flushes::hindered).flatten();
    if let Some(why) = &flushes_uncounted {
        eprintln!("FLUSHES ARE NOT COUNTED: {why}");
    }
    let load_before = load()?;
    let dir = Directory::make(&plan.dir, plan.keep)?;
    disk::refuse_memory(&dir.path)?;
    let filesystem = filesystem(&dir.path)?;
    let scratch = dir.path.join("scratch");
    fs::create_dir(&scratch)?;
    let began = Instant::now();
    eprintln!("starting a cluster in {}", dir.path.display());
    let mut targets =
        Kind::ALL.into_iter().map(|kind| Target::new(kind, &dir.path, plan)).collect::<Result<Vec<_>>>()?;
    let values = scenarios(&mut targets, plan, &wanted, &scratch)?;
    let ours = targets.iter().find(|t| t.kind == Kind::MooseNG).context("no MooseNG target")?;
    let flushes = (counts && flushes_uncounted.is_none()).then(|| {
        eprintln!("counting flushes");
        flushes::count(ours, &plan.sizes, &scratch)
    });
    let memory = plan.memory.then(|| {
        eprintln!("measuring memory");
        memory::measure(ours)
    });
    Ok(Report {
        version: VERSION,
        host: Host {
            began: SystemTime::now().duration_since(UNIX_EPOCH)?.saturating_sub(began.elapsed()).as_secs(),
            took_seconds: began.elapsed().as_secs(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            processors: std::thread::available_parallelism()?.get(),
            filesystem,
            load_before,
        },
        sizes: plan.sizes,
        metrics: values.lines(),
        flushes: flushes.transpose()?,
        flushes_uncounted,
        memory: memory.transpose()?,
    })
}

fn scenarios(targets: &mut [Target], plan: &Plan, wanted: &BTreeSet<&str>, scratch: &Path) -> Result<Values> {
    let mut values = Values::default();
    for scenario in SCENARIOS {
        if !scenario.metrics.iter().any(|m| wanted.contains(m)) {
            continue;
        }
        let started = Instant::now();
        for round in 1..=plan.sizes.rounds {
            if started.elapsed().as_secs() > plan.sizes.scenario_seconds {
                eprintln!("{:<11} is slow: no round {round}", scenario.name);
                break;
            }
            for target in &mut *targets {
                check_interrupt()?;
                let began = Instant::now();
                for (metric, value) in scenario.run(target, &plan.sizes, scratch, wanted)? {
                    values.add(metric, target.kind, value);
                }
                eprintln!(
                    "{:<11} round {round}  {:<12} {:.1} s",
                    scenario.name,
                    target.kind.name(),
                    began.elapsed().as_secs_f64()
                );
            }
        }
    }
    Ok(values)
}

/// The measures that are meant by these names.
fn wanted(only: &[String]) -> Result<BTreeSet<&'static str>> {
    let mut wanted = BTreeSet::new();
    for name in only {
        if let Some(scenario) = SCENARIOS.iter().find(|s| s.name == name) {
            wanted.extend(scenario.metrics);
        } else if let Some(metric) = metric::find(name) {
            wanted.insert(metric.name);
        } else {
            let names = SCENARIOS.iter().flat_map(|s| [s.name].into_iter().chain(s.metrics.iter().copied()));
            let known: Vec<&str> = names.collect::<BTreeSet<_>>().into_iter().collect();
            bail!("there is no measure or scenario {name:?}; there are {}", known.join(", "));
        }
    }
    if only.is_empty() {
        wanted.extend(metric::METRICS.iter().map(|m| m.name));
    }
    Ok(wanted)
}

/// A new directory that goes with the value.
struct Directory {
    path: PathBuf,
    keep: bool,
}

impl Directory {
    fn make(path: &Path, keep: bool) -> Result<Self> {
        let path = std::path::absolute(path)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        let made = fs::DirBuilder::new().mode(0o755).create(&path);
        made.with_context(|| {
            format!(
                "making {}: it must be new; remove what an earlier run left, or choose another --dir",
                path.display()
            )
        })?;
        let path = fs::canonicalize(path)?;
        Ok(Self { path, keep })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("{} is kept", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} can't be removed: {error}", self.path.display());
        }
    }
}

/// The kind of filesystem that a path is on.
fn filesystem(path: &Path) -> Result<String> {
    let device = nix::sys::stat::stat(path)?.st_dev;
    let device = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let line = table.lines().find(|l| l.split(' ').nth(2) == Some(device.as_str()));
    let kind = line.and_then(|l| l.split(" - ").nth(1)?.split(' ').next().map(str::to_owned));
    Ok(kind.unwrap_or_else(|| "an unknown filesystem".into()))
}

fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    text.split(' ').next().and_then(|l| l.parse().ok()).context("/proc/loadavg has no load")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_measures() {
        let names = |list: &[&str]| wanted(&list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&[]).unwrap().len(), metric::METRICS.len());
        assert_eq!(names(&["sqlite", "stat-warm-1"]).unwrap().len(), 2);
        assert_eq!(names(&["names", "create-1"]).unwrap().len(), 6);
        assert!(names(&["nonsense"]).unwrap_err().to_string().contains("overwrite-1"));
    }
}
