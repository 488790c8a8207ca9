//! Which line of a group a member belongs to.
//!
//! A group that was recovered from one master's disk ([`crate::recover`]) goes on without the rest of its members. Should they come back with
//! their disks, they are a majority of the group that was: they mustn't decide anything beside the new one, nor be taken in with entries
//! that the new one doesn't have. So each recovery begins a new line, and every message between members names its line. A member takes part
//! in one line; one with an empty log joins the first that takes it in; one that hears of a later line than its own ends.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};

/// The file, in the log's directory: with the log it is lost, and with an empty one there is none.
pub const FILE: &str = "lineage";

/// A line: 0 is the group as it was founded; a later one is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line(pub u32);

impl Line {
    /// The line that a recovery at that time begins.
    pub fn after(self, unix_s: u64) -> Self {
        Self(u32::try_from(unix_s).unwrap_or(u32::MAX).max(self.0.saturating_add(1)))
    }
}

/// A member's line, and where it is kept.
#[derive(Debug)]
pub struct Lineage {
    path: PathBuf,
    line: AtomicU32,
}

impl Lineage {
    /// Reads it from the log's directory. One that is damaged is an error: taken for the first line, it would let a member in where it
    /// doesn't belong.
    pub fn open(disk: &dyn Disk, dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        let line = match disk.open(&path, OpenMode::ReadOnly) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Line::default(),
            Err(error) => return Err(error),
            Ok(file) => decode(&read_all(&*file)?).ok_or_else(|| {
                io::Error::other(
                    "it is damaged: this master's log can't be told from one that was left behind",
                )
            })?,
        };
        Ok(Self { path, line: line.0.into() })
    }

    /// The line.
    pub fn line(&self) -> Line {
        Line(self.line.load(Ordering::Acquire))
    }

    /// Goes over to another line; when it returns, that is flushed.
    pub fn enter(&self, disk: &dyn Disk, line: Line) -> io::Result<()> {
        write_atomically(disk, &self.path, &encode(line))?;
        self.line.store(line.0, Ordering::Release);
        Ok(())
    }
}

fn encode(line: Line) -> Vec<u8> {
    let text = format!("mooseng lineage {:08x}\n", line.0);
    format!("{text}{:08x}\n", crc32fast::hash(text.as_bytes())).into_bytes()
}

fn decode(bytes: &[u8]) -> Option<Line> {
    let text = std::str::from_utf8(bytes).ok()?;
    let digits = text.strip_prefix("mooseng lineage ")?.get(..8)?;
    let line = Line(u32::from_str_radix(digits, 16).ok()?);
    (encode(line) == bytes).then_some(line)
}

#[cfg(test)]
mod tests {
    use mooseng_ports::disk::os::OsDisk;

    use super::*;

    #[test]
    fn a_line_is_kept_and_a_damaged_one_isnt_taken_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let lineage = Lineage::open(&OsDisk, dir.path()).unwrap();
        assert_eq!(lineage.line(), Line(0));
        let later = Line(0).after(1_800_000_000);
        lineage.enter(&OsDisk, later).unwrap();
        assert_eq!(Lineage::open(&OsDisk, dir.path()).unwrap().line(), later);
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for n in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[n] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(Lineage::open(&OsDisk, dir.path()).is_err(), "byte {n}");
            std::fs::write(&path, &whole[..n]).unwrap();
            assert!(Lineage::open(&OsDisk, dir.path()).is_err(), "cut at {n}");
        }
    }

    #[test]
    fn each_recovery_begins_a_later_line() {
        let first = Line(0).after(1_800_000_000);
        assert!(first > Line(0) && first.after(1_800_000_000) > first && first.after(1) > first);
    }
}
