//! Empty files in a directory of each process's own: created, renamed, removed.

use anyhow::Result;

use super::{Stage, unique};
use crate::disk;
use crate::worker::{self, Job, Limit};

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    for (processes, [create, rename, unlink]) in
        [(1, ["create-1", "rename-1", "unlink-1"]), (4, ["create-4", "rename-4", "unlink-4"])]
    {
        if !stage.wants_any(&[create, rename, unlink]) {
            continue;
        }
        disk::settle()?;
        // Not beside the names that were just removed: see `unique`.
        let top = stage.target.root().join(unique("names"));
        std::fs::create_dir(&top)?;
        let dirs: Vec<_> = (0..processes).map(|n| top.join(n.to_string())).collect();
        dirs.iter().try_for_each(std::fs::create_dir)?;
        let limit = stage.sizes.limit(stage.sizes.names);
        let creates: Vec<Job> = dirs.iter().map(|d| Job::Create { dir: d.clone(), limit }).collect();
        let created = worker::run(&creates)?;
        stage.record(create, created.rate());
        let each = dirs.iter().zip(&created.each);
        // All of them, whatever time it takes: unlink looks for the new names.
        let renames: Vec<Job> = each
            .clone()
            .map(|(d, done)| Job::Rename {
                dir: d.clone(),
                limit: Limit { count: done.count, seconds: f64::MAX },
            })
            .collect();
        let renamed = worker::run(&renames)?;
        stage.record(rename, renamed.rate());
        let unlinks: Vec<Job> =
            each.map(|(d, done)| Job::Unlink { dir: d.clone(), prefix: 'g', files: done.count }).collect();
        let unlinked = worker::run(&unlinks)?;
        stage.record(unlink, unlinked.rate());
        std::fs::remove_dir_all(&top)?;
    }
    stage.clear()
}
