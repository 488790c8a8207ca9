//! A repository: cloned, and asked for its state.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use super::{PROGRAM_MAX, Stage, untar};
use crate::process;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let origin = origin(stage.scratch, stage.sizes.git_files)?;
    let clone = stage.path("clone");
    let mut command = git();
    // Through the protocol: a clone of a path would link or copy the pack.
    command.args(["clone", "-q"]).arg(format!("file://{}", origin.display())).arg(&clone);
    let took = process::timed(&mut command, PROGRAM_MAX)?;
    stage.record("git-clone", took.as_secs_f64());
    let mut status = git();
    status.arg("-C").arg(&clone).args(["status", "--porcelain"]).stdout(Stdio::null());
    if stage.wants("git-status-warm") {
        // The first one writes the index anew.
        process::timed(&mut status, PROGRAM_MAX)?;
        let took = process::timed(&mut status, PROGRAM_MAX)?;
        stage.record("git-status-warm", took.as_secs_f64());
    }
    if stage.wants("git-status-cold") {
        stage.target.make_cold()?;
        let took = process::timed(&mut status, PROGRAM_MAX)?;
        stage.record("git-status-cold", took.as_secs_f64());
    }
    stage.clear()
}

/// Without anybody's settings.
fn git() -> Command {
    let mut command = Command::new("git");
    for (name, value) in [("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null")] {
        command.env(name, value);
    }
    command
}

/// Made once for all targets and rounds.
fn origin(scratch: &Path, files: u64) -> Result<PathBuf> {
    let dir = scratch.join("origin");
    if !dir.exists() {
        untar::small_files(&dir, files)?;
        fs::write(dir.join("README"), "what is cloned")?;
        for args in [
            &["init", "-q", "."][..],
            &["add", "-A"],
            &["-c", "user.name=b", "-c", "user.email=b@localhost", "commit", "-q", "-m", "all"],
            &["gc", "-q"],
        ] {
            process::timed(git().args(args).current_dir(&dir), PROGRAM_MAX)?;
        }
    }
    Ok(dir)
}
