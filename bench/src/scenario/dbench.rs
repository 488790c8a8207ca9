//! Four clients that make the kinds of calls that dbench's make, each in a directory of its own.

use anyhow::Result;

use super::Stage;
use crate::worker::{self, Job};

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let dirs: Vec<_> = (0..4).map(|n| stage.path(n.to_string())).collect();
    dirs.iter().try_for_each(std::fs::create_dir)?;
    let limit = stage.sizes.limit(stage.sizes.names);
    let clients: Vec<Job> = dirs.into_iter().map(|dir| Job::Client { dir, limit }).collect();
    let done = worker::run(&clients)?;
    stage.record("dbench-4", done.mb_per_second());
    stage.clear()
}
