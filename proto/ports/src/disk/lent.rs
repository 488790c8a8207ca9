//! A file of another process, by a descriptor that it handed over: for reading only.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl};

use super::direct::Direct;

/// Which file a descriptor is of, within one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// The device's number.
    pub device: u64,
    /// The inode's number.
    pub inode: u64,
}

impl FileIdentity {
    /// Of an open file.
    pub fn of(descriptor: &OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(descriptor)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Only what the kernel has in memory is read; anything else is [`io::ErrorKind::WouldBlock`].
    Never,
    /// It may.
    ForDisk,
}

/// What becomes of the pages that the kernel reads from the disk for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// They stay in the page cache.
    Pages,
    /// They are given back once they were read, if this kernel and filesystem can do that. Pages that were there before stay.
    Nothing,
}

/// A file that another process lent.
#[derive(Debug)]
pub struct LentFile {
    file: File,
    direct: Direct,
    /// Whether its filesystem takes uncached reads, as far as known.
    uncached: AtomicBool,
    identity: FileIdentity,
    bytes: u64,
}

impl LentFile {
    /// Takes a descriptor on, if it is one of a plain file, for reading only: reading anything else might block for ever or do something.
    pub fn adopt(descriptor: OwnedFd) -> io::Result<Self> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()));
        let flags = fcntl_getfl(&descriptor)?;
        if flags & OFlags::RWMODE != OFlags::RDONLY || flags.contains(OFlags::PATH) {
            return refused("the descriptor isn't for reading only");
        }
        let identity = FileIdentity::of(&descriptor)?;
        let file = File::from(descriptor);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return refused("the descriptor isn't of a plain file");
        }
        Ok(Self {
            file,
            direct: Direct::default(),
            uncached: AtomicBool::new(true),
            identity,
            bytes: metadata.size(),
        })
    }

    /// Which file it is.
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// The file's length in bytes when it was adopted.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends `bytes` bytes of the file, from `offset` on, to `buffer`. Fewer are an error.
    pub fn read_into(
        &self,
        buffer: &mut Vec<u8>,
        bytes: usize,
        offset: u64,
        wait: Wait,
        keep: Keep,
    ) -> io::Result<()> {
        let wanted = buffer.len() + bytes;
        buffer.reserve_exact(bytes);
        let mut at = i64::try_from(offset).map_err(io::Error::other)?;
        while buffer.len() < wanted {
            let left = wanted - buffer.len();
            let room = &mut buffer.spare_capacity_mut()[..left];
            let part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
            let nowait = if wait == Wait::Never { libc::RWF_NOWAIT } else { 0 };
            let uncached = keep == Keep::Nothing && self.uncached.load(Ordering::Relaxed);
            let flags = nowait | if uncached { libc::RWF_DONTCACHE } else { 0 };
            // SAFETY: the one part is `room`, which is exclusively ours and outlives the call, and the descriptor is open.
            let read = unsafe { libc::preadv2(self.file.as_raw_fd(), &part, 1, at, flags) };
            match usize::try_from(read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    // SAFETY: the kernel has filled so many bytes of `room`, which begins where the buffer's bytes end.
                    unsafe { buffer.set_len(buffer.len() + read) };
                    at += read as i64;
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    match error.raw_os_error() {
                        Some(libc::EINTR) => {}
                        // Linux before 6.14, and filesystems that don't have it.
                        Some(libc::EOPNOTSUPP | libc::EINVAL) if uncached => {
                            self.uncached.store(false, Ordering::Relaxed);
                        }
                        // A filesystem that can't tell may wait.
                        Some(libc::EOPNOTSUPP) if wait == Wait::Never => {
                            return Err(io::ErrorKind::WouldBlock.into());
                        }
                        _ => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether [`Keep::Nothing`] has an effect, as far as known.
    pub fn reads_uncached(&self) -> bool {
        self.direct.reads(&self.file) || self.uncached.load(Ordering::Relaxed)
    }

    /// Fills all parts, one behind the other, past the page cache. Places, lengths and memory are multiples of
    /// [`ALIGNMENT`](super::direct::ALIGNMENT). False where that isn't possible, of which anything may be filled then; waits for the disk.
    pub fn read_direct(&self, parts: &mut [&mut [u8]], offset: u64) -> io::Result<bool> {
        self.direct.read(&self.file, parts, offset)
    }

    /// Has the kernel begin to read a range into memory. May wait for the disk's queue.
    pub fn will_need(&self, offset: u64, bytes: u64) -> io::Result<()> {
        Ok(fadvise(&self.file, offset, std::num::NonZeroU64::new(bytes), Advice::WillNeed)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::disk::os::OsDisk;

    #[test]
    fn what_is_lent_is_read_and_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let lent = OsDisk.lend(&path).unwrap().unwrap();
        let identity = FileIdentity::of(&lent).unwrap();
        let file = LentFile::adopt(lent).unwrap();
        assert_eq!((file.identity(), file.bytes()), (identity, 10));
        let mut buffer = b"x".to_vec();
        file.read_into(&mut buffer, 4, 3, Wait::ForDisk, Keep::Pages).unwrap();
        assert_eq!(buffer, b"x3456");
        let short = file.read_into(&mut buffer, 9, 3, Wait::ForDisk, Keep::Pages).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        match file.read_into(&mut Vec::new(), 4, 3, Wait::Never, Keep::Pages) {
            Ok(()) => {}
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock, "{e}"),
        }
        let mut uncached = Vec::new();
        file.read_into(&mut uncached, 10, 0, Wait::ForDisk, Keep::Nothing).unwrap();
        assert_eq!(uncached, b"0123456789");
        file.will_need(0, 10).unwrap();
        assert!(rustix::io::write(&file.file, b"y").is_err());
    }

    #[test]
    fn only_a_plain_file_for_reading_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"x").unwrap();
        let writable = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(LentFile::adopt(writable.into()).is_err());
        assert!(LentFile::adopt(File::open(dir.path()).unwrap().into()).is_err());
        assert!(LentFile::adopt(File::open("/dev/null").unwrap().into()).is_err());
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert!(OsDisk.lend(&dir.path().join("link")).is_err());
    }
}
