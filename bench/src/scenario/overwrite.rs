//! Small blocks here and there: read cold, overwritten and flushed one by one.

use anyhow::Result;

use super::Stage;
use crate::worker::{self, Job};

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let paths: Vec<_> = (0..4).map(|n| stage.path(format!("file-{n}"))).collect();
    // Written once; all rounds read and overwrite the same.
    if !paths[3].exists() {
        let bytes = stage.sizes.random_mib << 20;
        let writes: Vec<Job> = paths.iter().map(|p| Job::Write { path: p.clone(), bytes }).collect();
        worker::run(&writes)?;
    }
    if stage.wants("rand-read-4") {
        let limit = stage.sizes.limit(stage.sizes.random_reads);
        stage.target.make_cold()?;
        let reads: Vec<Job> = paths.iter().map(|p| Job::RandomRead { path: p.clone(), limit }).collect();
        let done = worker::run(&reads)?;
        stage.record("rand-read-4", done.rate());
    }
    let limit = stage.sizes.limit(stage.sizes.overwrites);
    let jobs: Vec<Job> =
        paths.into_iter().map(|path| Job::Overwrite { path, limit, record: false }).collect();
    if stage.wants("overwrite-1") {
        let done = worker::run(&jobs[..1])?;
        stage.record("overwrite-1", done.rate());
    }
    if stage.wants("overwrite-4") {
        let done = worker::run(&jobs)?;
        stage.record("overwrite-4", done.rate());
    }
    Ok(())
}
