//! An archive of small files: unpacked, read cold, removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{PROGRAM_MAX, Stage};
use crate::process;
use crate::worker::{self, Job};

const FILES_PER_DIR: u64 = 30;

pub(super) fn run(stage: &mut Stage<'_>) -> Result<()> {
    let archive = archive(stage.scratch, stage.sizes.tar_files)?;
    let into = stage.path("into");
    fs::create_dir(&into)?;
    let took = process::timed(Command::new("tar").arg("xf").arg(&archive).arg("-C").arg(&into), PROGRAM_MAX)?;
    stage.record("untar", took.as_secs_f64());
    if stage.wants("read-tree-cold") {
        stage.target.make_cold()?;
        let read = worker::run(&[Job::ReadTree { dir: into.clone() }])?;
        ensure!(read.count() == stage.sizes.tar_files, "{} files were read", read.count());
        stage.record("read-tree-cold", read.seconds());
    }
    let took = process::timed(Command::new("rm").arg("-rf").arg(&into), PROGRAM_MAX)?;
    stage.record("rm-rf", took.as_secs_f64());
    stage.clear()
}

/// Made once for all targets and rounds.
fn archive(scratch: &Path, files: u64) -> Result<PathBuf> {
    let archive = scratch.join("small.tar");
    if !archive.exists() {
        let dir = scratch.join("small");
        small_files(&dir, files)?;
        process::timed(
            Command::new("tar").arg("cf").arg(&archive).arg("-C").arg(&dir).arg("."),
            PROGRAM_MAX,
        )?;
        fs::remove_dir_all(&dir)?;
    }
    // From memory, for each target alike.
    fs::read(&archive)?;
    Ok(archive)
}

/// Files as sources have them: a few hundred bytes to 16 KiB, most of them small, 30 to a directory.
pub(super) fn small_files(dir: &Path, files: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(3);
    for n in 0..files {
        let sub = dir.join(format!("d{}", n / FILES_PER_DIR));
        if n % FILES_PER_DIR == 0 {
            fs::create_dir_all(&sub)?;
        }
        let length = 200usize << random.random_range(0..7);
        let text: Vec<u8> = (0..length).map(|_| random.random_range(b' '..=b'~')).collect();
        fs::write(sub.join(format!("f{n}")), text)?;
    }
    Ok(())
}
