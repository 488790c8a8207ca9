//! A disk that can be made to fail: a FUSE filesystem under a daemon's directory.
//!
//! It tells what is flushed from what isn't, as a disk below a page cache does. A write is in its file at once; what its pages held
//! before is kept until the next fsync of that file. [`LossyDisk::lose_power`] brings back what was there at the last fsync, sector by
//! sector as chance has it, and takes back names whose directory wasn't flushed. So a `kill -9`, whose victim's unflushed bytes the kernel
//! would write all the same, becomes a power loss.
//!
//! - [`names`]: directories, and the order in which unflushed names may survive.
//! - [`file`]: a file's bytes, and what they were.
//! - [`store`]: the two together, with the trouble that is asked for.
//! - [`fuse`]: answers the kernel's requests.

pub mod file;
mod fuse;
pub mod names;
pub mod store;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

pub use store::{Lost, Store, Trouble};

/// A mounted disk; it ends with the value.
pub struct LossyDisk {
    path: PathBuf,
    store: Arc<Mutex<Store>>,
    session: Option<fuser::BackgroundSession>,
}

impl LossyDisk {
    /// An empty disk on `path`, its bytes in nameless files below `objects`.
    pub fn mount(objects: &Path, path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let store = Arc::new(Mutex::new(Store::new(objects)?));
        let session = fuse::mount(store.clone(), path)
            .with_context(|| format!("mounting a disk on {}", path.display()))?;
        Ok(Self { path: path.to_owned(), store, session: Some(session) })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    /// Loses what isn't flushed, or some of it, as `seed` has it. Nobody may be using the disk.
    pub fn lose_power(&self, seed: u64) -> io::Result<Lost> {
        self.store().lose_power(seed)
    }

    /// What goes wrong from now on.
    pub fn set(&self, trouble: Trouble) {
        self.store().trouble = trouble;
    }

    /// Changes bytes of a file behind everybody's back, as if they had been flushed so.
    pub fn damage<T>(
        &self,
        path: &str,
        change: impl FnOnce(&std::fs::File) -> io::Result<T>,
    ) -> io::Result<T> {
        self.store().damage(path, change)
    }

    /// The bytes of a file, whatever the disk's trouble is.
    pub fn peek(&self, path: &str) -> io::Result<Vec<u8>> {
        self.store().peek(path)
    }

    /// Removes a file's name, as if that had been flushed.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        self.store().vanish(path)
    }

    /// The files below a directory, as paths from the disk's root.
    pub fn files(&self, dir: &str) -> Vec<String> {
        self.store().files(dir)
    }

    /// The number of a file: another file of the same name has another one.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.store().find(path).ok()
    }
}

impl Drop for LossyDisk {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            // Whoever still uses it is left with a disk that answers nothing.
            let _ = nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH);
            drop(session);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Everything that is kept or lost, through the kernel.
    #[test]
    fn a_mounted_disk_keeps_what_was_flushed() {
        if !Path::new("/dev/fuse").exists() || !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting needs root and /dev/fuse");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = LossyDisk::mount(&dir.path().join("objects"), &dir.path().join("disk")).unwrap();
        let root = disk.path().to_owned();
        std::fs::create_dir(root.join("d")).unwrap();
        let sync = |path: &Path| std::fs::File::open(path).unwrap().sync_all().unwrap();
        let mut kept = std::fs::File::create(root.join("d/kept")).unwrap();
        kept.write_all(b"flushed").unwrap();
        kept.sync_data().unwrap();
        sync(&root.join("d"));
        sync(&root);
        kept.write_all(b" and not").unwrap();
        std::fs::write(root.join("d/nameless"), b"x").unwrap();
        std::fs::rename(root.join("d/kept"), root.join("d/renamed")).unwrap();
        assert_eq!(std::fs::read(root.join("d/renamed")).unwrap(), b"flushed and not");
        drop(kept);
        // A seed that lets nothing survive.
        let seed = (0..100).find(|s| store::Survival::of(*s) == store::Survival::Nothing).unwrap();
        disk.lose_power(seed).unwrap();
        assert_eq!(std::fs::read(root.join("d/kept")).unwrap(), b"flushed");
        let names: Vec<_> =
            std::fs::read_dir(root.join("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["kept"]);
        disk.set(Trouble { flushes: Some(libc::EIO), ..Trouble::default() });
        let mut file = std::fs::OpenOptions::new().append(true).open(root.join("d/kept")).unwrap();
        file.write_all(b"!").unwrap();
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
        disk.set(Trouble { changes: Some(libc::EROFS), ..Trouble::default() });
        assert_eq!(file.write_all(b"?").unwrap_err().raw_os_error(), Some(libc::EROFS));
        disk.set(Trouble { full: true, ..Trouble::default() });
        assert_eq!(file.write_all(b"?").unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    }
}
