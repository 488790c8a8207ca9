//! A file that is open and has no name any more: as long as somebody has it open it is what was fsynced, also where its volume's home is lost meanwhile.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::load::worker::sync_dir;

/// Bytes of a block, which says whose it is, which one, and of which write.
const BLOCK: usize = 4_096;
/// Blocks that it begins with: too much for the metadata, so that chunks have them.
const BLOCKS: usize = 256;
/// Blocks that are appended later.
const MORE: usize = 64;

/// Such a file. It is closed when it is dropped.
pub struct Held {
    file: File,
    marker: String,
    writes: usize,
    bytes: Vec<u8>,
}

fn block(marker: &str, number: usize, write: usize) -> Vec<u8> {
    format!("{marker}: block {number} of write {write}; ").bytes().cycle().take(BLOCK).collect()
}

impl Held {
    /// Makes one in a directory, under the marker's name for a moment. With the answer its data is safe, and so is it that it has no name.
    pub fn make(directory: &Path, marker: &str) -> Result<Self> {
        let path = directory.join(marker);
        let mut options = File::options();
        // That it is read changes nothing of it: a new access time would still be on its way when the home is lost.
        options.read(true).write(true).create_new(true).custom_flags(libc::O_NOATIME);
        let file = options.open(&path).with_context(|| format!("making {}", path.display()))?;
        let mut held = Self { file, marker: marker.to_owned(), writes: 0, bytes: Vec::new() };
        held.write(0, BLOCKS)?;
        std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        sync_dir(directory)?;
        held.check()?;
        Ok(held)
    }

    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// It has what was fsynced, and no name.
    pub fn check(&self) -> Result<()> {
        let (marker, is) = (&self.marker, self.file.metadata().context("stat of a file without a name")?);
        ensure!(
            (is.nlink(), is.len()) == (0, self.length()),
            "{marker} has {} names and {} bytes instead of none and {}",
            is.nlink(),
            is.len(),
            self.length()
        );
        // The kernel's own pages would hide what the region has.
        // SAFETY: the descriptor is open, and the call touches no memory of this process.
        unsafe { libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        let mut found = vec![0; self.bytes.len()];
        self.file.read_exact_at(&mut found, 0).with_context(|| format!("reading {marker}"))?;
        let same = found.iter().zip(&self.bytes).take_while(|(is, was)| is == was).count();
        ensure!(found == self.bytes, "{marker} has other bytes than were fsynced, from byte {same} on");
        Ok(())
    }

    /// An fsync that may say EIO: a failover may have taken back what else its mount had changed (docs/not-built.md).
    pub fn settled(&self) -> Result<()> {
        match self.file.sync_all() {
            Err(error) if error.raw_os_error() != Some(libc::EIO) => {
                Err(error).with_context(|| format!("fsync of {}", self.marker))
            }
            _ => Ok(()),
        }
    }

    /// It is as it was, is appended to and written over, and has that, too.
    pub fn write_on(&mut self) -> Result<()> {
        self.check()?;
        let end = self.bytes.len() / BLOCK;
        self.write(end, MORE)?;
        self.write(BLOCKS / 2, 1)?;
        self.check()
    }

    /// Writes so many blocks, from that one on, and fsyncs them.
    fn write(&mut self, first: usize, count: usize) -> Result<()> {
        self.writes += 1;
        let new: Vec<u8> =
            (first..first + count).flat_map(|number| block(&self.marker, number, self.writes)).collect();
        let (at, end) = (first * BLOCK, (first + count) * BLOCK);
        self.file.write_all_at(&new, at as u64).with_context(|| format!("writing to {}", self.marker))?;
        self.file.sync_all().with_context(|| format!("fsync of {}", self.marker))?;
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[at..end].copy_from_slice(&new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_name_is_missed_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = Held::make(dir.path(), "held").unwrap();
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
        held.write_on().unwrap();
        assert_eq!(held.length(), ((BLOCKS + MORE) * BLOCK) as u64);
        held.file.write_all_at(b"?", BLOCK as u64 + 7).unwrap();
        let found = held.check().unwrap_err().to_string();
        assert!(found.ends_with(&format!("from byte {} on", BLOCK + 7)), "{found}");
        held.file.set_len(BLOCK as u64).unwrap();
        assert!(held.write_on().is_err());
    }
}
