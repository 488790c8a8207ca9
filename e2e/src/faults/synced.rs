//! Files that were fsynced at the last moment before a power loss: what that promises is at its most delicate then.
//!
//! They stay open until the fault is healed: closing a file has its chunk sealed, which flushes it once more.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::load::worker::sync_dir;

/// The directory on each mount.
const DIR: &str = "synced";
/// Files at a time: of three chunkservers any two share the chunks of a third of them.
const FILES: u64 = 8;
/// More than what goes into the metadata. Not a number of whole blocks.
const BYTES: usize = 200_001;

/// Files that were fsynced, and are open.
#[derive(Default)]
pub struct Synced {
    files: Vec<(PathBuf, File, Vec<u8>)>,
}

impl Synced {
    /// Makes files below a mount. With the answer all of them are flushed.
    pub fn write(&mut self, mount: &Path, seed: u64) -> Result<()> {
        let dir = mount.join(DIR);
        fs::create_dir_all(&dir)?;
        for n in 0..FILES {
            let path = dir.join(format!("f{n}"));
            let mut bytes = vec![0; BYTES];
            SmallRng::seed_from_u64(seed.wrapping_add(n)).fill(&mut bytes[..]);
            let mut file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
            file.write_all(&bytes)?;
            self.files.push((path, file, bytes));
        }
        sync_dir(&dir)?;
        sync_dir(mount)?;
        self.files
            .iter()
            .try_for_each(|(_, file, _)| file.sync_all())
            .context("flushing files before a power loss")
    }

    /// What a mount doesn't show as it was flushed. The first that can't be read ends it: each is waited for.
    pub fn differences(&self, mount: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for (path, _, bytes) in &self.files {
            let name = Path::new(DIR).join(path.file_name().unwrap_or_default());
            match fs::read(mount.join(&name)) {
                Ok(read) if read == *bytes => {}
                Ok(read) => {
                    let same = read.iter().zip(bytes).take_while(|(is, was)| is == was).count();
                    found.push(format!(
                        "{}: fsynced with {} bytes, it has {}, the first {same} of them right",
                        name.display(),
                        bytes.len(),
                        read.len()
                    ));
                }
                Err(error) => {
                    found.push(format!("{}: fsynced, and can't be read: {error}", name.display()));
                    break;
                }
            }
        }
        found
    }

    /// Closes and removes them.
    pub fn remove(&mut self) -> Result<()> {
        for (path, file, _) in self.files.drain(..) {
            drop(file);
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }
}
