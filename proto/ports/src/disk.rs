//! Disks: directories and files with explicit flushes.
//!
//! Calls block; daemons run them on threads of their own, the simulation runs them in place. A file's bytes and length survive a crash once
//! `sync_data` returned, a name (created, renamed, removed) once `sync_dir` of its directory returned. A failed flush leaves
//! the state of unflushed bytes unknown: callers must not retry and believe (FAILURES 5).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub mod direct;
pub mod lent;
pub mod lock;
pub mod os;
pub mod sim;
pub mod watched;

/// A filesystem below the daemons.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a directory and its parents; an existing one is well. The new names are flushed.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Renames a file, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Flushes a directory's names.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Space of the filesystem that holds `path`.
    fn space(&self, path: &Path) -> io::Result<Space>;
    /// A descriptor of a file, for reading only, that another process may be given; none where files have no descriptors.
    fn lend(&self, _path: &Path) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }
    /// Whether [`Disk::lend`] answers descriptors.
    fn lends(&self) -> bool {
        false
    }
    /// For how long a call has been under way below `path`, where that is so long that the disk hangs; none where it doesn't, and where nobody watches
    /// ([`watched`]).
    fn hangs(&self, _path: &Path) -> Option<Duration> {
        None
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// It must exist.
    Existing,
    /// Reading only; it must exist.
    ReadOnly,
    /// It is created where it doesn't exist.
    Create,
    /// It must not exist.
    CreateNew,
}

/// Bytes of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All.
    pub bytes_total: u64,
    /// Free to us.
    pub bytes_free: u64,
}

/// An open file. Positions are explicit, so that readers and a writer share it.
pub trait DiskFile: Send + Sync {
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all bytes.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Writes all parts, one behind the other: many bytes, which nobody is likely to read here soon, so that they needn't be kept in memory. Like
    /// any others they are durable after the next flush only.
    fn write_uncached_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for part in parts {
            self.write_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends with zeros.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Reserves zero-filled space up to `length`, so that later writes need no allocation.
    fn allocate(&self, length: u64) -> io::Result<()>;
    /// Flushes bytes and length (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
}

/// Reads a whole file.
pub fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
    let n = file.read_at(&mut bytes, 0)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// Replaces a file as a whole: after a crash it has either the old bytes or the new ones.
pub fn write_atomically(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::other("a path without a directory"))?;
    let temporary = path.with_extension("new");
    let file = disk.open(&temporary, OpenMode::Create)?;
    file.set_len(0)?;
    file.write_at(bytes, 0)?;
    file.sync_data()?;
    disk.rename(&temporary, path)?;
    disk.sync_dir(parent)
}
