//! Does an acknowledged fsync mean that something was flushed? Seen by strace, from outside.
//!
//! While jobs overwrite and fsync, each master and chunkserver is traced. Between the beginning of a write and the answer to its fsync, a
//! flush must begin and end in at least two of them: the copies, or a majority of masters. Several fsyncs may share one (a group), so
//! that there may be fewer flushes than fsyncs, but none without.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::process::{self, Process};
use crate::scenario::Sizes;
use crate::target::Target;
use crate::worker::{self, Job};

const CALLS: &str = "fsync,fdatasync,sync_file_range,syncfs,msync";
const ATTACHED_WITHIN: Duration = Duration::from_secs(10);
/// Daemons in which a flush must fall into an fsync's time.
const WITNESSES: usize = 2;

/// What was counted during one workload.
#[derive(Debug, Serialize)]
pub struct Flushes {
    /// Jobs at once.
    pub jobs: usize,
    /// fsyncs that were acknowledged.
    pub acknowledged: u64,
    /// Of these, those without a flush in two daemons between the write's begin and the answer.
    pub without: u64,
    /// Flushes of each daemon.
    pub by_daemon: BTreeMap<String, Count>,
}

/// Flushes of a daemon.
#[derive(Debug, Serialize)]
pub struct Count {
    /// How many.
    pub flushes: u64,
    /// What one took on average, in microseconds; tracing adds some ten to it.
    pub mean_us: f64,
}

impl Count {
    fn new(spans: &[Span]) -> Self {
        let total: f64 = spans.iter().map(|(began, ended)| ended - began).sum();
        Self { flushes: spans.len() as u64, mean_us: total * 1e6 / spans.len().max(1) as f64 }
    }
}

impl Flushes {
    /// All flushes for each acknowledged fsync.
    pub fn per_fsync(&self) -> f64 {
        self.by_daemon.values().map(|c| c.flushes).sum::<u64>() as f64 / self.acknowledged.max(1) as f64
    }
    /// Whether each acknowledged fsync had its flushes.
    pub fn kept(&self) -> bool {
        self.acknowledged > 0 && self.without == 0
    }
}

impl fmt::Display for Flushes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let daemons: Vec<String> = self
            .by_daemon
            .iter()
            .map(|(name, count)| format!("{name} {} of {:.0} us", count.flushes, count.mean_us))
            .collect();
        write!(
            f,
            "Flushes, {} jobs: {} fsyncs acknowledged, {:.2} flushes for each ({}); {}",
            self.jobs,
            self.acknowledged,
            self.per_fsync(),
            daemons.join(", "),
            if self.kept() {
                "each had flushes in two daemons within its time: pass".into()
            } else {
                format!("{} WITHOUT flushes in two daemons within their time: FAIL", self.without)
            }
        )
    }
}

/// A flush: when it began and ended, in seconds since the epoch.
type Span = (f64, f64);

/// Why nothing can be traced here, where that is so: there is no strace, or it may not.
pub fn hindered() -> Option<String> {
    let mut probe = Command::new("strace");
    probe.args(["-f", "--seccomp-bpf", "-e", &format!("trace={CALLS}"), "-o", "/dev/null", "true"]);
    match probe.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Some(format!("strace doesn't work here ({}): {}", output.status, said.trim()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Some("strace isn't installed; scripts/install-deps installs it".into())
        }
        Err(error) => Some(format!("strace can't be started: {error}")),
    }
}

/// Traces the daemons of a MooseNG mount during overwrites by one job and by four.
pub fn count(target: &Target, sizes: &Sizes, scratch: &Path) -> Result<Vec<Flushes>> {
    let dir = target.root().join("flushes");
    std::fs::create_dir(&dir)?;
    let paths: Vec<PathBuf> = (0..4).map(|n| dir.join(format!("file-{n}"))).collect();
    let bytes = sizes.random_mib << 20;
    worker::run(&paths.iter().map(|p| Job::Write { path: p.clone(), bytes }).collect::<Vec<_>>())?;
    let limit = sizes.limit(sizes.overwrites);
    let jobs: Vec<Job> = paths.into_iter().map(|path| Job::Overwrite { path, limit, record: true }).collect();
    let daemons: Vec<Process> =
        target.daemons()?.into_iter().filter(|p| p.role == "master" || p.role == "chunkserver").collect();
    let found = [1, 4].into_iter().map(|n| one(&daemons, &jobs[..n], scratch)).collect();
    std::fs::remove_dir_all(&dir)?;
    found
}

fn one(daemons: &[Process], jobs: &[Job], scratch: &Path) -> Result<Flushes> {
    let traces = daemons.iter().map(|d| Trace::attach(d, scratch)).collect::<Result<Vec<_>>>()?;
    let total = worker::run(jobs)?;
    let mut spans = BTreeMap::new();
    for trace in traces {
        let name = trace.daemon.clone();
        spans.insert(name, trace.detach()?);
    }
    let acknowledged: Vec<Span> = total.each.into_iter().flat_map(|done| done.recorded).collect();
    Ok(judge(jobs.len(), &acknowledged, &spans))
}

fn judge(jobs: usize, acknowledged: &[Span], spans: &BTreeMap<String, Vec<Span>>) -> Flushes {
    let within = |(began, ended): Span| {
        let flushed = |spans: &&Vec<Span>| spans.iter().any(|s| s.0 >= began && s.1 <= ended);
        spans.values().filter(flushed).count()
    };
    Flushes {
        jobs,
        acknowledged: acknowledged.len() as u64,
        without: acknowledged.iter().filter(|s| within(**s) < WITNESSES).count() as u64,
        by_daemon: spans.iter().map(|(name, s)| (name.clone(), Count::new(s))).collect(),
    }
}

/// strace on a daemon.
struct Trace {
    daemon: String,
    child: Child,
    file: PathBuf,
}

impl Trace {
    fn attach(daemon: &Process, scratch: &Path) -> Result<Self> {
        let file = scratch.join(format!("strace-{}", daemon.name));
        let complaints = std::fs::File::create(scratch.join(format!("strace-{}.log", daemon.name)))?;
        let child = Command::new("strace")
            // Only the traced calls stop the daemon.
            .args(["-f", "--seccomp-bpf", "-ttt", "-T", "-e", &format!("trace={CALLS}"), "-o"])
            .arg(&file)
            .args(["-p", &daemon.pid.to_string()])
            .stdin(Stdio::null())
            .stderr(complaints)
            .spawn()
            .context("starting strace: scripts/install-deps installs it")?;
        let trace = Self { daemon: daemon.name.clone(), child, file };
        trace.wait_attached(daemon.pid)?;
        Ok(trace)
    }

    /// Until each thread of the daemon has its tracer.
    fn wait_attached(&self, pid: i32) -> Result<()> {
        let deadline = Instant::now() + ATTACHED_WITHIN;
        loop {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?;
            let traced = |status: String| {
                status.lines().any(|l| l.strip_prefix("TracerPid:").is_some_and(|t| t.trim() != "0"))
            };
            // A thread that has just ended has no status.
            let all = threads
                .flatten()
                .filter_map(|t| std::fs::read_to_string(t.path().join("status")).ok())
                .all(traced);
            if all {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "strace doesn't attach to {} in time", self.daemon);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn detach(mut self) -> Result<Vec<Span>> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT)?;
        process::reap(&mut self.child, ATTACHED_WITHIN).context("waiting for strace to end")?;
        let text = std::fs::read_to_string(&self.file)?;
        Ok(parse(&text))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of `-f -ttt -T`: `TID BEGAN CALL(ARGS) = 0 <TOOK>`, or two lines with `<unfinished ...>` and `<... CALL resumed>`.
fn parse(text: &str) -> Vec<Span> {
    let mut open: BTreeMap<&str, f64> = BTreeMap::new();
    let mut spans = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(time)) = (words.next(), words.next()) else { continue };
        let Ok(time) = time.parse::<f64>() else { continue };
        if line.contains("<unfinished ...>") {
            open.insert(thread, time);
            continue;
        }
        let began = if line.contains(" resumed>") { open.remove(thread) } else { Some(time) };
        // A failed flush flushes nothing.
        let took =
            line.rsplit_once(" = 0 <").and_then(|(_, took)| took.trim_end_matches('>').parse::<f64>().ok());
        if let (Some(began), Some(took)) = (began, took) {
            spans.push((began, began + took));
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strace_is_understood() {
        let text = "\
12 1700000000.000100 fdatasync(7) = 0 <0.000200>
13 1700000000.000100 fdatasync(8 <unfinished ...>
12 1700000000.000400 fsync(9) = -1 EIO (Input/output error) <0.000100>
13 1700000000.000900 <... fdatasync resumed>) = 0 <0.000800>
12 1700000000.001 +++ exited with 0 +++
";
        let spans = parse(text);
        assert_eq!(spans.len(), 2);
        assert!((spans[0].1 - 1_700_000_000.000_3).abs() < 1e-6);
        assert!((spans[1].0 - 1_700_000_000.000_1).abs() < 1e-6, "{spans:?}");
    }

    #[test]
    fn an_fsync_without_two_flushes_in_its_time_is_found() {
        let spans =
            |a: &[Span], b: &[Span]| BTreeMap::from([("a".into(), a.to_vec()), ("b".into(), b.to_vec())]);
        let acknowledged = [(1.0, 2.0), (1.5, 2.5)];
        // One flush of each serves both.
        let shared = judge(2, &acknowledged, &spans(&[(1.6, 1.7)], &[(1.6, 1.9)]));
        assert!(shared.kept() && shared.per_fsync() == 1.0, "{shared}");
        // Begun before the second one's write.
        let early = judge(2, &acknowledged, &spans(&[(1.6, 1.7)], &[(1.4, 1.9)]));
        assert_eq!((early.without, early.kept()), (1, false));
        // Ended after the first one's answer.
        let late = judge(2, &acknowledged, &spans(&[(1.6, 1.7)], &[(1.6, 2.1)]));
        assert_eq!(late.without, 1);
        assert!(!judge(1, &[], &spans(&[], &[])).kept(), "nothing was acknowledged: nothing is shown");
    }
}
