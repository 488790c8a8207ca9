//! Ten thousand empty files in a hundred directories: stat, readdir, `ls -lR`, cold and warm.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::{PROGRAM_MAX, Stage};
use crate::process;
use crate::worker::{self, Job, Limit};

const FILES_PER_DIR: u64 = 100;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let dirs: Vec<PathBuf> = (0..stage.sizes.tree_dirs).map(|n| stage.path(format!("d{n}"))).collect();
    // Made once; all rounds look at the same.
    if !stage.path("made").exists() {
        make(&dirs)?;
        std::fs::write(stage.path("made"), "")?;
    }
    let quarters = || dirs.chunks(dirs.len().div_ceil(4)).map(<[PathBuf]>::to_vec);
    let limit = stage.sizes.limit(u64::MAX);
    let stat = |dirs: Vec<PathBuf>, limit| Job::Stat { dirs, files: FILES_PER_DIR, limit };
    if stage.wants("stat-cold-4") {
        stage.target.make_cold()?;
        let done = worker::run(&quarters().map(|dirs| stat(dirs, limit)).collect::<Vec<_>>())?;
        stage.record("stat-cold-4", done.rate());
    }
    if stage.wants_any(&["stat-cold-1", "stat-warm-1"]) {
        stage.target.make_cold()?;
        let done = worker::run(&[stat(dirs.clone(), limit)])?;
        stage.record("stat-cold-1", done.rate());
        // Warm are those that were just looked at, and no others.
        let seen = Limit { count: done.count(), ..limit };
        if stage.wants("stat-warm-1") {
            let done = worker::run(&[stat(dirs.clone(), seen)])?;
            stage.record("stat-warm-1", done.rate());
        }
    }
    if stage.wants("readdir-cold-1") {
        stage.target.make_cold()?;
        let done = worker::run(&[Job::List { dirs: dirs.clone() }])?;
        ensure!(done.count() == dirs.len() as u64 * FILES_PER_DIR, "{} entries were listed", done.count());
        stage.record("readdir-cold-1", done.rate());
    }
    if stage.wants("readdir-cold-4") {
        stage.target.make_cold()?;
        let done = worker::run(&quarters().map(|dirs| Job::List { dirs }).collect::<Vec<_>>())?;
        stage.record("readdir-cold-4", done.rate());
    }
    if stage.wants_any(&["ls-cold", "ls-warm"]) {
        stage.target.make_cold()?;
        for metric in ["ls-cold", "ls-warm"] {
            let mut command = Command::new("ls");
            command.args(["-lR", "--color=never"]).arg(stage.path("")).stdout(Stdio::null());
            let took = process::timed(&mut command, PROGRAM_MAX)?;
            stage.record(metric, took.as_secs_f64());
        }
    }
    Ok(())
}

fn make(dirs: &[PathBuf]) -> Result<()> {
    for dir in dirs {
        std::fs::create_dir(dir)?;
    }
    let limit = Limit { count: FILES_PER_DIR, seconds: f64::MAX };
    for four in dirs.chunks(4) {
        worker::run(&four.iter().map(|d| Job::Create { dir: d.clone(), limit }).collect::<Vec<_>>())?;
    }
    Ok(())
}
