//! A file's bytes, and what they were when they were flushed last.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rand::Rng;
use rand::rngs::SmallRng;

const PAGE: u64 = 4096;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// A file.
#[derive(Debug)]
pub struct Bytes {
    file: File,
    len: u64,
    /// The length at the last flush.
    flushed_len: u64,
    /// What pages held at the last flush, of those that were written since. Pages of zeros are empty.
    before: BTreeMap<u64, Vec<u8>>,
    /// The same of pages whose flush failed: the kernel takes them for clean then, and they are never written unless they change again.
    doomed: BTreeMap<u64, Vec<u8>>,
}

/// How much of what isn't flushed survives a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// Nothing.
    Nothing,
    /// Any sector or none.
    Some,
    /// All that a flush didn't fail on.
    All,
}

impl Bytes {
    /// An empty file over `file`, which is empty and nobody else's.
    pub fn new(file: File) -> Self {
        Self { file, len: 0, flushed_len: 0, before: BTreeMap::new(), doomed: BTreeMap::new() }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a power loss would change it.
    pub fn is_dirty(&self) -> bool {
        !self.before.is_empty() || !self.doomed.is_empty() || self.len != self.flushed_len
    }

    /// Bytes on the backing disk, as `stat` counts them.
    pub fn blocks(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().map_or(0, |m| m.blocks())
    }

    /// Reads up to `size` bytes.
    pub fn read(&self, offset: u64, size: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; size.min(self.len.saturating_sub(offset) as usize)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Writes bytes, which may go behind the end.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.keep(offset, offset + bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset)?;
        self.len = self.len.max(offset + bytes.len() as u64);
        Ok(())
    }

    /// Cuts it, or extends it with zeros.
    pub fn set_len(&mut self, len: u64) -> io::Result<()> {
        if len < self.len {
            self.keep(len, self.len)?;
        }
        self.file.set_len(len)?;
        self.len = len;
        Ok(())
    }

    /// Keeps what pages held at the last flush, unless that is kept already.
    fn keep(&mut self, from: u64, to: u64) -> io::Result<()> {
        for page in from / PAGE..to.div_ceil(PAGE) {
            if self.before.contains_key(&page) {
                continue;
            }
            let was = match self.doomed.remove(&page) {
                Some(was) => was,
                None if page * PAGE >= self.flushed_len => Vec::new(),
                None => self.read(page * PAGE, PAGE as usize)?,
            };
            self.before.insert(page, was);
        }
        Ok(())
    }

    /// Everything written so far survives from now on.
    pub fn flush(&mut self) {
        self.before.clear();
        self.flushed_len = self.len;
    }

    /// A flush that failed: what it was to write is lost at the next power loss, whatever later flushes say.
    pub fn fail_flush(&mut self) {
        for (page, was) in std::mem::take(&mut self.before) {
            self.doomed.entry(page).or_insert(was);
        }
    }

    /// The power goes. Answers how many sectors were lost.
    pub fn lose_power(&mut self, survival: Survival, rng: &mut SmallRng) -> io::Result<u64> {
        let len = match survival {
            Survival::Nothing => self.flushed_len,
            Survival::All => self.len,
            Survival::Some if self.len > self.flushed_len => rng.random_range(self.flushed_len..=self.len),
            Survival::Some => [self.len, self.flushed_len][rng.random_range(0..2)],
        };
        // A length that shrank comes back before the bytes behind it do.
        self.file.set_len(self.len.max(self.flushed_len))?;
        let mut lost = 0;
        for (pages, doomed) in
            [(std::mem::take(&mut self.before), false), (std::mem::take(&mut self.doomed), true)]
        {
            for (page, mut was) in pages {
                was.resize(PAGE as usize, 0);
                for (n, sector) in was.chunks(SECTOR).enumerate() {
                    let survives = !doomed
                        && match survival {
                            Survival::Nothing => false,
                            Survival::Some => rng.random(),
                            Survival::All => true,
                        };
                    if !survives {
                        self.file.write_all_at(sector, page * PAGE + (n * SECTOR) as u64)?;
                        lost += 1;
                    }
                }
            }
        }
        self.file.set_len(len)?;
        (self.len, self.flushed_len) = (len, len);
        Ok(lost)
    }

    /// Changes the backing file behind everybody's back.
    pub fn damage<T>(&mut self, change: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let done = change(&self.file)?;
        self.len = self.file.metadata()?.len();
        self.flushed_len = self.len;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn file() -> Bytes {
        Bytes::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn what_is_not_flushed_is_lost() {
        let mut f = file();
        f.write(0, &[1; 10_000]).unwrap();
        f.flush();
        f.write(5_000, &[2; 10_000]).unwrap();
        f.set_len(3_000).unwrap();
        f.write(2_900, &[3; 10]).unwrap();
        assert!(f.is_dirty());
        f.lose_power(Survival::Nothing, &mut SmallRng::seed_from_u64(1)).unwrap();
        assert_eq!(f.read(0, 20_000).unwrap(), [1; 10_000]);
        assert!(!f.is_dirty());
    }

    #[test]
    fn what_a_failed_flush_was_to_write_is_lost_although_later_ones_are_well() {
        let mut f = file();
        f.write(0, &[1; 4096]).unwrap();
        f.flush();
        f.write(0, &[2; 4096]).unwrap();
        f.fail_flush();
        f.write(4096, &[3; 4096]).unwrap();
        f.flush();
        assert_eq!(f.read(0, 1).unwrap(), [2]);
        f.lose_power(Survival::All, &mut SmallRng::seed_from_u64(1)).unwrap();
        assert_eq!((f.read(0, 1).unwrap(), f.read(4096, 1).unwrap()), (vec![1], vec![3]));
    }

    #[test]
    fn a_sector_survives_whole_or_not_at_all() {
        let mut f = file();
        f.write(0, &[1; 64 << 10]).unwrap();
        f.flush();
        f.write(0, &[2; 64 << 10]).unwrap();
        let lost = f.lose_power(Survival::Some, &mut SmallRng::seed_from_u64(3)).unwrap();
        assert!(lost > 10 && lost < 118, "{lost}");
        let bytes = f.read(0, 64 << 10).unwrap();
        assert!(bytes.chunks(SECTOR).all(|s| s.iter().all(|b| *b == s[0])));
    }
}
