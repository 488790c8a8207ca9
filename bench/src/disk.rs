//! The disk under all targets, left in the same state before each is measured.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// What was deleted is discarded behind the deleter's back on disks mounted so, and whoever flushes next waits for it.
const QUIET: Duration = Duration::from_millis(200);
const QUIET_WITHIN: Duration = Duration::from_secs(10);

const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// Refuses a directory whose files live in memory: a flush would cost nothing there.
pub fn refuse_memory(dir: &Path) -> Result<()> {
    let asked = rustix::fs::statfs(dir);
    let kind = asked.with_context(|| format!("asking for the filesystem of {}", dir.display()))?.f_type;
    if matches!(kind as u64 & 0xffff_ffff, TMPFS | RAMFS) {
        bail!(
            "{} is on tmpfs, where flushing costs nothing; choose a directory on a disk with --dir",
            dir.display()
        );
    }
    Ok(())
}

/// Empties the kernel's caches of files, names and attributes.
pub fn drop_caches() -> Result<()> {
    // Dirty pages aren't dropped.
    rustix::fs::sync();
    let file = "/proc/sys/vm/drop_caches";
    fs::write(file, "3").with_context(|| format!("writing {file}: cold measurements need root"))
}

/// Waits until everything written is on the disk and nothing is being discarded.
pub fn settle() -> Result<()> {
    rustix::fs::sync();
    let deadline = Instant::now() + QUIET_WITHIN;
    let (mut seen, mut since) = (discards()?, Instant::now());
    while since.elapsed() < QUIET && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        let now = discards()?;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// Discards that all disks have done.
fn discards() -> Result<u64> {
    let table = fs::read_to_string("/proc/diskstats")?;
    Ok(table.lines().filter_map(|l| l.split_whitespace().nth(14)?.parse::<u64>().ok()).sum())
}

/// Has directories in `dir` begin in parts of the disk of their own, by their names. Filesystems without that flag go on as they do.
pub fn spread(dir: &Path) -> Result<()> {
    let file = fs::File::options().read(true).custom_flags(libc::O_DIRECTORY).open(dir)?;
    if let Ok(flags) = ioctl_getflags(&file) {
        let _ = ioctl_setflags(&file, flags | IFlags::TOPDIR);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_refused_and_a_disk_is_not() {
        let shm = Path::new("/dev/shm");
        if shm.is_dir() && rustix::fs::statfs(shm).unwrap().f_type as u64 == TMPFS {
            assert!(refuse_memory(shm).unwrap_err().to_string().contains("--dir"));
        }
        assert!(refuse_memory(Path::new("/proc/self")).is_ok());
    }

    #[test]
    fn a_quiet_disk_is_waited_for_and_not_longer() {
        let began = Instant::now();
        settle().unwrap();
        assert!(began.elapsed() >= QUIET);
    }
}
