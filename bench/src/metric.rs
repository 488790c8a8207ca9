//! What is measured: names, units, goals and gates. The figures are those of the project's speed goals; nothing else knows them.

use serde::Serialize;

/// What a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// MiB per second.
    #[serde(rename = "MiB/s")]
    MibPerSecond,
    /// Megabytes, of a million bytes, per second: as dbench counts.
    #[serde(rename = "MB/s")]
    MbPerSecond,
    /// Operations per second.
    #[serde(rename = "/s")]
    PerSecond,
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// CPU seconds of all daemons for each GiB; of the bare directory, which has none, of the job itself.
    #[serde(rename = "CPU s/GiB")]
    CpuPerGib,
}

impl Unit {
    /// As in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::MibPerSecond => "MiB/s",
            Self::MbPerSecond => "MB/s",
            Self::PerSecond => "/s",
            Self::Seconds => "s",
            Self::CpuPerGib => "CPU s/GiB",
        }
    }

    /// How much better `ours` is than `theirs`: above 1 is better, whatever is counted.
    pub fn ratio(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Self::MibPerSecond | Self::MbPerSecond | Self::PerSecond => ours / theirs,
            Self::Seconds | Self::CpuPerGib => theirs / ours,
        }
    }
}

/// A measure.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What a value counts.
    pub unit: Unit,
    /// In words.
    pub what: &'static str,
    /// The ratio to the passthrough that MooseNG is to reach in the end.
    pub goal: Option<f64>,
    /// The ratio below which it isn't good enough.
    pub gate: Option<f64>,
}

const fn metric(
    name: &'static str,
    unit: Unit,
    what: &'static str,
    goal: Option<f64>,
    gate: Option<f64>,
) -> Metric {
    Metric { name, unit, what, goal, gate }
}

use Unit::{CpuPerGib, MbPerSecond, MibPerSecond, PerSecond, Seconds};

/// All of them, in the order of the report.
pub const METRICS: &[Metric] = &[
    metric("seq-write-1", MibPerSecond, "sequential write + fsync, 1 stream", Some(0.85), Some(0.7)),
    metric("seq-write-4", MibPerSecond, "sequential write + fsync, 4 streams", Some(0.75), None),
    metric("seq-read-cold-1", MibPerSecond, "sequential read, cold, 1 stream", Some(1.0), Some(0.8)),
    metric("seq-read-warm-1", MibPerSecond, "sequential read, warm, 1 stream", Some(1.0), None),
    metric("seq-read-cold-4", MibPerSecond, "sequential read, cold, 4 streams", Some(1.0), None),
    metric("rand-read-4", PerSecond, "random 4 KiB read, cold, 4 jobs", Some(0.8), None),
    metric("overwrite-1", PerSecond, "4 KiB overwrite + fsync, 1 job", Some(0.55), Some(0.4)),
    metric("overwrite-4", PerSecond, "4 KiB overwrite + fsync, 4 jobs", Some(0.6), None),
    metric("create-1", PerSecond, "create and close, 1 process", None, None),
    metric("create-4", PerSecond, "create and close, 4 processes", None, Some(0.5)),
    metric("rename-1", PerSecond, "rename, 1 process", None, None),
    metric("rename-4", PerSecond, "rename, 4 processes", None, None),
    metric("unlink-1", PerSecond, "unlink, 1 process", None, None),
    metric("unlink-4", PerSecond, "unlink, 4 processes", None, None),
    metric("stat-cold-1", PerSecond, "stat, cold, 1 process", Some(1.0), None),
    metric("stat-cold-4", PerSecond, "stat, cold, 4 processes", Some(1.0), Some(0.7)),
    metric("stat-warm-1", PerSecond, "stat, warm, 1 process", Some(1.0), Some(0.95)),
    metric("readdir-cold-1", PerSecond, "entries listed, cold, 1 process", Some(2.0), None),
    metric("readdir-cold-4", PerSecond, "entries listed, cold, 4 processes", Some(5.0), None),
    metric("ls-cold", Seconds, "ls -lR of 10,000 files, cold", Some(3.0), None),
    metric("ls-warm", Seconds, "ls -lR of 10,000 files, warm", Some(3.0), None),
    metric("untar", Seconds, "tar x of 3,000 small files", Some(0.25), Some(0.15)),
    metric("read-tree-cold", Seconds, "reading them all, cold", Some(0.8), None),
    metric("rm-rf", Seconds, "rm -rf of them", Some(0.4), None),
    metric("git-clone", Seconds, "git clone", Some(0.4), None),
    metric("git-status-warm", Seconds, "git status, warm", Some(1.0), None),
    metric("git-status-cold", Seconds, "git status, cold", Some(1.0), None),
    metric("sqlite", PerSecond, "sqlite transactions", Some(0.5), None),
    metric("dbench-4", MbPerSecond, "written and read by 4 processes as by dbench's", Some(0.6), None),
    metric("cpu-write", CpuPerGib, "CPU of the daemons (bare: of the job), sequential write", None, None),
    metric("cpu-read", CpuPerGib, "CPU of the daemons (bare: of the job), sequential read, cold", None, None),
];

/// The measure of that name.
pub fn find(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|m| m.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gates_are_those_that_were_agreed() {
        let gates: Vec<(&str, f64)> = METRICS.iter().filter_map(|m| m.gate.map(|g| (m.name, g))).collect();
        assert_eq!(
            gates,
            [
                ("seq-write-1", 0.7),
                ("seq-read-cold-1", 0.8),
                ("overwrite-1", 0.4),
                ("create-4", 0.5),
                ("stat-cold-4", 0.7),
                ("stat-warm-1", 0.95),
                ("untar", 0.15),
            ]
        );
        assert!(METRICS.iter().all(|m| m.goal.zip(m.gate).is_none_or(|(goal, gate)| goal >= gate)));
    }

    #[test]
    fn better_is_above_one() {
        assert_eq!(PerSecond.ratio(200.0, 100.0), 2.0);
        assert_eq!(Seconds.ratio(2.0, 1.0), 0.5);
    }
}
