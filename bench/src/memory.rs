//! What a hundred thousand files cost the daemons.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use serde::Serialize;

use crate::target::Target;
use crate::worker::{self, Job, Limit};

/// Files that are made and looked at.
const FILES: u64 = 100_000;
const FILES_PER_DIR: u64 = 500;

/// Memory of each daemon, in bytes of its own (not of files that it has mapped).
#[derive(Debug, Serialize)]
pub struct Memory {
    /// Files.
    pub files: u64,
    /// Before they were made.
    pub before: BTreeMap<String, u64>,
    /// Once they were made and each was looked at.
    pub after: BTreeMap<String, u64>,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Memory for {} files, in MiB (before, after):", self.files)?;
        for (name, after) in &self.after {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let before = self.before.get(name).copied().unwrap_or_default();
            writeln!(f, "  {name:<15} {:>7.1} {:>7.1}", mib(before), mib(*after))?;
        }
        Ok(())
    }
}

/// Makes the files, looks at each, and reads what the daemons hold.
pub fn measure(target: &Target) -> Result<Memory> {
    let read = || -> Result<BTreeMap<String, u64>> {
        target.daemons()?.into_iter().map(|p| Ok((p.name.clone(), p.memory_bytes()?))).collect()
    };
    let before = read()?;
    let dir = target.root().join("memory");
    std::fs::create_dir(&dir)?;
    let dirs: Vec<_> = (0..FILES / FILES_PER_DIR).map(|n| dir.join(format!("d{n}"))).collect();
    let limit = Limit { count: FILES_PER_DIR, seconds: f64::MAX };
    for four in dirs.chunks(4) {
        for dir in four {
            std::fs::create_dir(dir)?;
        }
        worker::run(&four.iter().map(|d| Job::Create { dir: d.clone(), limit }).collect::<Vec<_>>())?;
    }
    worker::run(&[Job::Stat { dirs, files: FILES_PER_DIR, limit: Limit { count: FILES, ..limit } }])?;
    Ok(Memory { files: FILES, before, after: read()? })
}
