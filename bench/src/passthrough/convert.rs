//! Between stat(2) and FUSE's attributes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::fs::{RawMode, Stat};

/// Attributes of the inode that the kernel knows as `ino`.
pub fn attr(ino: INodeNo, stat: &Stat) -> FileAttr {
    FileAttr {
        ino,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind: kind(rustix::fs::FileType::from_raw_mode(stat.st_mode as RawMode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: stat.st_blksize as u32,
        flags: 0,
    }
}

/// The kind of a file. The kernel reads the rest from the attributes, so that an unknown kind in a directory does no harm.
pub fn kind(kind: rustix::fs::FileType) -> FileType {
    use rustix::fs::FileType as Backing;
    match kind {
        Backing::Directory => FileType::Directory,
        Backing::Symlink => FileType::Symlink,
        Backing::Fifo => FileType::NamedPipe,
        Backing::Socket => FileType::Socket,
        Backing::CharacterDevice => FileType::CharDevice,
        Backing::BlockDevice => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn time(seconds: i64, nanoseconds: impl TryInto<u32>) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let at = if seconds >= 0 { UNIX_EPOCH + whole } else { UNIX_EPOCH - whole };
    at + Duration::from_nanos(u64::from(nanoseconds.try_into().unwrap_or(0)))
}

/// A time for utimensat(2).
pub fn timespec(time: SystemTime) -> rustix::fs::Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            rustix::fs::Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) }
        }
        Err(before) => {
            let before = before.duration();
            let borrow = i64::from(before.subsec_nanos() > 0);
            rustix::fs::Timespec {
                tv_sec: -(before.as_secs() as i64) - borrow,
                tv_nsec: borrow * 1_000_000_000 - i64::from(before.subsec_nanos()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip() {
        for (seconds, nanoseconds) in [(0, 0), (1, 5), (-1, 999_999_999), (-7, 0), (1_700_000_000, 123)] {
            let spec = timespec(time(seconds, nanoseconds));
            assert_eq!((spec.tv_sec, spec.tv_nsec), (seconds, i64::from(nanoseconds)));
        }
    }
}
