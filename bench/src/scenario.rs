//! Scenarios: what is done to a target so that its measures can be taken. One file each.
//!
//! A scenario runs on one target after the other, and so on round after round, so that what the machine does besides hits all of
//! them alike. It works in a directory of its own, prepares what it needs outside the measured time, and leaves nothing behind
//! but what the next round needs again.

mod dbench;
mod git;
mod names;
mod overwrite;
mod sequential;
mod sqlite;
mod tree;
mod untar;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::disk;
use crate::target::Target;
use crate::worker::Limit;

/// No single program may take longer.
const PROGRAM_MAX: Duration = Duration::from_secs(300);

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sizes {
    /// How often each scenario runs on each target.
    pub rounds: u32,
    /// A scenario that has taken so long, all targets together, gets no further round.
    pub scenario_seconds: u64,
    /// A single stream's file.
    pub stream_mib: u64,
    /// Each of four streams' files.
    pub streams_mib: u64,
    /// Each job's file for random reads and overwrites.
    pub random_mib: u64,
    /// Random reads of each job.
    pub random_reads: u64,
    /// Overwrites of each job.
    pub overwrites: u64,
    /// Names that each process creates, renames, removes; files of a client as dbench has them.
    pub names: u64,
    /// What is measured by rate ends after this many seconds at the latest.
    pub seconds_max: f64,
    /// Directories of the tree that is listed; 100 files each.
    pub tree_dirs: u64,
    /// Files in the archive.
    pub tar_files: u64,
    /// Files in the repository.
    pub git_files: u64,
    /// Transactions.
    pub transactions: u64,
}

impl Sizes {
    /// Under ten minutes in a release build on two cores.
    pub const DEFAULT: Self = Self {
        rounds: 3,
        scenario_seconds: 45,
        stream_mib: 256,
        streams_mib: 64,
        random_mib: 32,
        random_reads: 4000,
        overwrites: 600,
        names: 1500,
        seconds_max: 2.5,
        tree_dirs: 100,
        tar_files: 3000,
        git_files: 1000,
        transactions: 150,
    };
    /// About two minutes.
    pub const QUICK: Self = Self {
        rounds: 1,
        scenario_seconds: 45,
        stream_mib: 128,
        streams_mib: 32,
        random_mib: 16,
        random_reads: 2000,
        overwrites: 300,
        names: 800,
        seconds_max: 1.5,
        tree_dirs: 30,
        tar_files: 1000,
        git_files: 400,
        transactions: 60,
    };

    /// So many, and no longer than a measure may take.
    pub(crate) fn limit(&self, count: u64) -> Limit {
        Limit { count, seconds: self.seconds_max }
    }
}

/// A scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// The measures that it takes.
    pub metrics: &'static [&'static str],
    /// Whether what one round makes is used by the next.
    keeps: bool,
    run: fn(&mut Stage<'_>) -> Result<()>,
}

/// All of them, in the order in which they run.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "sequential",
        metrics: &[
            "seq-write-1",
            "seq-write-4",
            "seq-read-cold-1",
            "seq-read-warm-1",
            "seq-read-cold-4",
            "cpu-write",
            "cpu-read",
        ],
        keeps: false,
        run: sequential::run,
    },
    Scenario {
        name: "overwrite",
        metrics: &["rand-read-4", "overwrite-1", "overwrite-4"],
        keeps: true,
        run: overwrite::run,
    },
    Scenario {
        name: "names",
        metrics: &["create-1", "create-4", "rename-1", "rename-4", "unlink-1", "unlink-4"],
        keeps: false,
        run: names::run,
    },
    Scenario {
        name: "tree",
        metrics: &[
            "stat-cold-1",
            "stat-cold-4",
            "stat-warm-1",
            "readdir-cold-1",
            "readdir-cold-4",
            "ls-cold",
            "ls-warm",
        ],
        keeps: true,
        run: tree::run,
    },
    Scenario { name: "untar", metrics: &["untar", "read-tree-cold", "rm-rf"], keeps: false, run: untar::run },
    Scenario {
        name: "git",
        metrics: &["git-clone", "git-status-warm", "git-status-cold"],
        keeps: false,
        run: git::run,
    },
    Scenario { name: "sqlite", metrics: &["sqlite"], keeps: false, run: sqlite::run },
    Scenario { name: "dbench", metrics: &["dbench-4"], keeps: false, run: dbench::run },
];

impl Scenario {
    /// Runs it once on a target; answers the values of the wanted measures.
    pub fn run(
        &self,
        target: &mut Target,
        sizes: &Sizes,
        scratch: &Path,
        wanted: &BTreeSet<&str>,
    ) -> Result<Vec<(&'static str, f64)>> {
        let dir = target.root().join(if self.keeps { self.name.to_owned() } else { unique(self.name) });
        disk::settle()?;
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let mut stage = Stage { target, sizes, scratch, wanted, dir, values: Vec::new() };
        (self.run)(&mut stage).with_context(|| format!("{} on {}", self.name, stage.target.kind.name()))?;
        Ok(stage.values)
    }
}

/// A name that was never used. ext4 chooses by its hash where on the disk a directory's files begin, doesn't give an inode away for
/// minutes after it was freed, and searches past all of those: a name used again would measure that search.
fn unique(name: &str) -> String {
    format!("{name}-{:08x}", rand::random::<u32>())
}

/// What a scenario works with.
pub struct Stage<'a> {
    /// What is measured.
    pub target: &'a mut Target,
    /// How much.
    pub sizes: &'a Sizes,
    /// A directory on the disk itself, for what is read from elsewhere.
    scratch: &'a Path,
    wanted: &'a BTreeSet<&'a str>,
    dir: PathBuf,
    values: Vec<(&'static str, f64)>,
}

impl Stage<'_> {
    fn wants(&self, metric: &str) -> bool {
        self.wanted.contains(metric)
    }

    fn wants_any(&self, metrics: &[&str]) -> bool {
        metrics.iter().any(|m| self.wants(m))
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    fn record(&mut self, metric: &'static str, value: f64) {
        if self.wants(metric) {
            self.values.push((metric, value));
        }
    }

    /// Removes everything of this scenario from the target.
    fn clear(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::METRICS;

    #[test]
    fn each_measure_is_taken_by_one_scenario() {
        let mut taken: Vec<&str> = SCENARIOS.iter().flat_map(|s| s.metrics.iter().copied()).collect();
        let mut known: Vec<&str> = METRICS.iter().map(|m| m.name).collect();
        taken.sort_unstable();
        known.sort_unstable();
        assert_eq!(taken, known);
    }
}
