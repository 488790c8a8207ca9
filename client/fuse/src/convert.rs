//! Between the kernel's words and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use mooseng_client::{Attr, FileKind};

/// What stat(2) shows as the best size of a read or write.
const BLOCK_SIZE: u32 = 128 << 10;

pub(crate) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.inode),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime_ns),
        mtime: time(attr.mtime_ns),
        ctime: time(attr.ctime_ns),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

pub(crate) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::Unspecified | FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind in a mode as mknod(2) has it.
pub(crate) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => FileKind::Regular,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return None,
    })
}

fn time(ns: i64) -> SystemTime {
    let magnitude = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { UNIX_EPOCH + magnitude } else { UNIX_EPOCH - magnitude }
}

/// A time that is to be set, as nanoseconds since the epoch; one beyond what 64 bits hold (years 1677 to 2262) becomes the nearest.
///
/// fuser 0.18 takes the fraction off where the kernel adds it: of (-2 s, 0.5 s), which is 1.5 s before the epoch, it makes 2.5 s. So the fraction is added
/// here. What is answered it converts well.
pub(crate) fn nanoseconds_to_set(time: SystemTime) -> i64 {
    let (seconds, fraction) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i128::from(after.as_secs()), after.subsec_nanos()),
        Err(before) => (-i128::from(before.duration().as_secs()), before.duration().subsec_nanos()),
    };
    let ns = seconds * 1_000_000_000 + i128::from(fraction);
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser hands over of a time that the kernel says (`system_time_from_time`).
    fn handed_over(seconds: i64, fraction: u32) -> SystemTime {
        match u64::try_from(seconds) {
            Ok(seconds) => UNIX_EPOCH + Duration::new(seconds, fraction),
            Err(_) => UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), fraction),
        }
    }

    /// Found by review: one with a fraction came to be a time before it.
    #[test]
    fn times_before_the_epoch_round_trip() {
        for ns in [0, 1, -1, -1_500_000_000, 1_700_000_000_123_456_789, -62_135_596_800_000_000, i64::MAX] {
            // As the kernel has it: the fraction is added.
            let (seconds, fraction) =
                (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000).unsigned_abs() as u32);
            assert_eq!(nanoseconds_to_set(handed_over(seconds, fraction)), ns);
            let shown = match time(ns).duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(shown, i128::from(ns));
        }
        assert_eq!(nanoseconds_to_set(handed_over(-2, 500_000_000)), -1_500_000_000);
        assert_eq!(nanoseconds_to_set(handed_over(i64::from(i32::MAX) * 1000, 1)), i64::MAX);
        assert_eq!(nanoseconds_to_set(handed_over(i64::from(i32::MIN) * 1000, 1)), i64::MIN);
    }

    #[test]
    fn kinds_of_modes() {
        assert_eq!(kind_of_mode(0o644), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(libc::S_IFCHR | 0o600), Some(FileKind::CharDevice));
        assert_eq!(kind_of_mode(libc::S_IFDIR), None);
    }
}
