//! Large files: written and flushed, read cold, read warm.

use anyhow::{Result, ensure};

use super::Stage;
use crate::process::{self, Process};
use crate::worker::{self, Job, Total};

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    if stage.wants_any(&["seq-write-1", "seq-read-cold-1", "seq-read-warm-1", "cpu-write", "cpu-read"]) {
        one(stage)?;
    }
    if stage.wants_any(&["seq-write-4", "seq-read-cold-4"]) {
        four(stage)?;
    }
    stage.clear()
}

fn one(stage: &mut Stage<'_>) -> Result<()> {
    let (path, bytes) = (stage.path("one"), stage.sizes.stream_mib << 20);
    let usage = Usage::start(stage.target.daemons()?)?;
    let written = worker::run(&[Job::Write { path: path.clone(), bytes }])?;
    stage.record("seq-write-1", written.mib_per_second());
    stage.record("cpu-write", usage.per_gib(bytes, &written)?);
    let read = Job::Read { path };
    if stage.wants_any(&["seq-read-cold-1", "cpu-read"]) {
        stage.target.make_cold()?;
        let usage = Usage::start(stage.target.daemons()?)?;
        let cold = worker::run(std::slice::from_ref(&read))?;
        ensure!(cold.bytes() == bytes, "{} bytes were read instead of {bytes}", cold.bytes());
        stage.record("seq-read-cold-1", cold.mib_per_second());
        stage.record("cpu-read", usage.per_gib(bytes, &cold)?);
    }
    if stage.wants("seq-read-warm-1") {
        worker::run(std::slice::from_ref(&read))?;
        let warm = worker::run(&[read])?;
        stage.record("seq-read-warm-1", warm.mib_per_second());
    }
    Ok(())
}

fn four(stage: &mut Stage<'_>) -> Result<()> {
    let paths: Vec<_> = (0..4).map(|n| stage.path(format!("four-{n}"))).collect();
    let bytes = stage.sizes.streams_mib << 20;
    let writes: Vec<Job> = paths.iter().map(|p| Job::Write { path: p.clone(), bytes }).collect();
    let written = worker::run(&writes)?;
    stage.record("seq-write-4", written.mib_per_second());
    if stage.wants("seq-read-cold-4") {
        stage.target.make_cold()?;
        let reads: Vec<Job> = paths.into_iter().map(|path| Job::Read { path }).collect();
        let cold = worker::run(&reads)?;
        stage.record("seq-read-cold-4", cold.mib_per_second());
    }
    Ok(())
}

/// CPU time of daemons from now on.
struct Usage {
    daemons: Vec<Process>,
    before: f64,
}

impl Usage {
    fn start(daemons: Vec<Process>) -> Result<Self> {
        Ok(Self { before: process::cpu_seconds(&daemons)?, daemons })
    }
    /// Of the job itself where there are no daemons: there the kernel does the work in its name.
    fn per_gib(&self, bytes: u64, job: &Total) -> Result<f64> {
        let used = match self.daemons.is_empty() {
            true => job.cpu_seconds(),
            false => process::cpu_seconds(&self.daemons)? - self.before,
        };
        Ok(used * f64::from(1 << 30) / bytes as f64)
    }
}
