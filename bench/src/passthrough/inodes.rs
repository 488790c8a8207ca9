//! What the kernel knows: an O_PATH descriptor for each inode that it holds, under the backing file's own number.
//!
//! The descriptor keeps the backing inode, so its number can't be given to another file while the kernel still uses it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use fuser::INodeNo;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, Result};

/// Inodes that the kernel holds.
#[derive(Debug)]
pub struct Inodes {
    root: Arc<OwnedFd>,
    root_number: u64,
    /// Files of other filesystems mounted below have numbers that clash: they are refused.
    device: u64,
    held: RwLock<HashMap<u64, Held>>,
}

#[derive(Debug)]
struct Held {
    fd: Arc<OwnedFd>,
    lookups: u64,
}

const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Inodes {
    /// Those below `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let root = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&root)?;
        Ok(Self {
            root: Arc::new(root),
            root_number: stat.st_ino,
            device: stat.st_dev,
            held: RwLock::default(),
        })
    }

    /// The descriptor of an inode that the kernel names.
    pub fn get(&self, ino: INodeNo) -> Result<Arc<OwnedFd>> {
        if ino == INodeNo::ROOT {
            return Ok(self.root.clone());
        }
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.get(&ino.0).map(|held| held.fd.clone()).ok_or(Errno::STALE)
    }

    /// The number by which the kernel knows a backing inode.
    pub fn number(&self, backing: u64) -> INodeNo {
        if backing == self.root_number { INodeNo::ROOT } else { INodeNo(backing) }
    }

    /// Looks a name up and counts that the kernel holds it from now on.
    pub fn look_up(&self, dir: impl AsFd, name: &OsStr) -> Result<Stat> {
        let fd = openat(dir, name, HANDLE, Mode::empty())?;
        let stat = fstat(&fd)?;
        if stat.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        if stat.st_ino != self.root_number {
            let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
            held.entry(stat.st_ino).or_insert_with(|| Held { fd: Arc::new(fd), lookups: 0 }).lookups += 1;
        }
        Ok(stat)
    }

    /// The kernel has let go of `lookups` of its holds.
    pub fn forget(&self, ino: INodeNo, lookups: u64) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = held.get_mut(&ino.0) {
            known.lookups = known.lookups.saturating_sub(lookups);
            if known.lookups == 0 {
                held.remove(&ino.0);
            }
        }
    }

    /// Attributes now.
    pub fn stat(&self, ino: INodeNo) -> Result<Stat> {
        statat(self.get(ino)?, "", AtFlags::EMPTY_PATH)
    }
}
