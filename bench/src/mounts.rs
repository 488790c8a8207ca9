//! The kernel's table of mounts, and taking one down.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

const TABLE: &str = "/proc/self/mountinfo";
/// A mount that was just used may be busy for a moment, until the last process's files are closed.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// The device number, as `major:minor`, of what is mounted on exactly this path. The path has no spaces: we made it.
pub fn device_of(path: &Path) -> io::Result<Option<String>> {
    let table = std::fs::read_to_string(TABLE)?;
    Ok(table.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?;
        (Path::new(fields.nth(1)?) == path).then(|| device.to_owned())
    }))
}

/// Takes a mount down; it is gone when this returns.
pub fn unmount(path: &Path) -> Result<()> {
    let deadline = Instant::now() + BUSY_MAX;
    while device_of(path)?.is_some() {
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::errno::Errno::EBUSY) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(errno) => return Err(errno).with_context(|| format!("unmounting {}", path.display())),
        }
    }
    Ok(())
}

/// Takes a mount out of the tree whoever uses it: for ends that must not fail.
pub fn detach(path: &Path) {
    if device_of(path).is_ok_and(|device| device.is_some()) {
        let _ = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_found() {
        assert!(device_of(Path::new("/proc")).unwrap().is_some());
        assert!(device_of(Path::new("/nowhere")).unwrap().is_none());
    }
}
