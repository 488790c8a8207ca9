//! Directories that a process takes for itself alone, as long as it lives.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// The file in the directory that is locked.
pub const LOCK: &str = "LOCK";

/// Takes a directory, which is made where there is none, for this process: until the file is dropped, or the process ends in whatever way. None where another process
/// has it.
///
/// Before anything in it is opened: opening mends what a crash left, which must never happen to the files of a process that runs, or hangs.
///
/// # Errors
/// The file can't be made and opened, or the filesystem knows no locks.
pub fn take(directory: &Path) -> io::Result<Option<File>> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_processs_until_it_lets_go() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("a/b");
        let taken = take(&directory).unwrap();
        assert!(taken.is_some() && take(&directory).unwrap().is_none());
        drop(taken);
        assert!(take(&directory).unwrap().is_some());
    }
}
