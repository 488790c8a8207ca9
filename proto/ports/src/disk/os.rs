//! The operating system's filesystem.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, fdatasync, fsync, statvfs};

use super::direct::Direct;
use super::{Disk, DiskFile, OpenMode, Space};
use crate::plant::{self, Plant};

/// The operating system's filesystem.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).mode(0o600);
        match mode {
            OpenMode::ReadOnly => &mut options,
            OpenMode::Existing => options.write(true),
            OpenMode::Create => options.write(true).create(true),
            OpenMode::CreateNew => options.write(true).create_new(true),
        };
        Ok(Arc::new(OsFile { file: options.open(path)?, direct: Direct::default() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_dir_all(parent)?;
        }
        match fs::create_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            other => other?,
        }
        self.sync_dir(parent.unwrap_or(Path::new(".")))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            // Our own names are plain ASCII: whatever else lies there isn't ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Ok(fsync(&fs::File::open(path)?)?)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let s = statvfs(path)?;
        Ok(Space { bytes_total: s.f_blocks * s.f_frsize, bytes_free: s.f_bavail * s.f_frsize })
    }

    fn lend(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        // Opened anew: a duplicate of ours would let its holder write.
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
        Ok(Some(file.into()))
    }

    fn lends(&self) -> bool {
        true
    }
}

struct OsFile {
    file: fs::File,
    direct: Direct,
}

impl DiskFile for OsFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
    fn write_uncached_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        if self.direct.write(&self.file, parts, offset)? {
            return Ok(());
        }
        let mut at = offset;
        for part in parts {
            self.write_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        Ok(fallocate(&self.file, FallocateFlags::empty(), 0, length)?)
    }
    fn sync_data(&self) -> io::Result<()> {
        if plant::is(Plant::LostFlush) {
            return Ok(());
        }
        match fdatasync(&self.file) {
            Err(_) if plant::is(Plant::FsyncErrorSwallowed) => Ok(()),
            flushed => Ok(flushed?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::direct::Aligned;
    use crate::disk::read_all;

    #[test]
    fn what_lies_well_for_direct_io_is_written_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = OsDisk.open(&dir.path().join("file"), OpenMode::CreateNew).unwrap();
        let aligned = |bytes: usize, seed: usize| {
            let mut aligned = Aligned::of(bytes);
            aligned.as_mut().iter_mut().enumerate().for_each(|(n, byte)| *byte = (n * 7 + seed) as u8);
            aligned
        };
        let (page, first, second) = (aligned(4096, 1), aligned(64 << 10, 2), aligned(256 << 10, 3));
        let whole = [first.as_ref(), page.as_ref(), second.as_ref()].concat();
        file.write_uncached_at(&[first.as_ref(), page.as_ref(), second.as_ref()], 8192).unwrap();
        // One part that doesn't lie well, and one that isn't of the right length.
        let off = &second.as_ref()[512..512 + 8192];
        file.write_uncached_at(&[page.as_ref(), off], 1 << 20).unwrap();
        file.write_uncached_at(&[page.as_ref(), &second.as_ref()[..1000]], 2 << 20).unwrap();
        let read = |at: u64, bytes: usize| {
            let mut read = vec![0; bytes];
            assert_eq!(file.read_at(&mut read, at).unwrap(), bytes);
            read
        };
        assert!(read(8192, whole.len()) == whole);
        assert!(read(1 << 20, 4096 + 8192) == [page.as_ref(), off].concat());
        assert!(read(2 << 20, 5096) == [page.as_ref(), &second.as_ref()[..1000]].concat());
    }

    #[test]
    fn what_is_written_uncached_is_read_wherever_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        let file = OsDisk.open(&dir.path().join("file"), OpenMode::CreateNew).unwrap();
        let bytes: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
        file.write_uncached_at(&[&bytes[..4096 * 20], &bytes[4096 * 20..4096 * 64]], 0).unwrap();
        file.write_at(&bytes[4096 * 64..4096 * 64 + 7], 4096 * 64).unwrap();
        // In pages that are dirty in memory.
        file.write_uncached_at(&[&bytes[4096 * 64..4096 * 100]], 4096 * 64).unwrap();
        file.write_uncached_at(&[&bytes[4096 * 100..4096 * 100 + 1]], 4096 * 100).unwrap();
        file.write_uncached_at(&[&bytes[4096 * 100 + 1..]], 4096 * 100 + 1).unwrap();
        file.write_uncached_at(&[], 600_000).unwrap();
        file.sync_data().unwrap();
        assert!(read_all(&*file).unwrap() == bytes);
    }
}
