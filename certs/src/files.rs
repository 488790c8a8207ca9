//! Files of the authority: written whole, with the right mode, never over something unasked.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use crate::Error;

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

/// Replaces a file whole, flushed, with that mode. One that was there stays whose it was.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(failed("creating", &temporary))?;
    // A daemon goes on reading what root renews for it. Whoever may not give files away keeps what it makes, as before.
    if let Ok(before) = fs::metadata(path) {
        let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
    }
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(failed("replacing", path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("flushing", dir))
}

/// Whether files may be written: none of them exists, or `force`. Asked before the first is written.
pub(crate) fn check_absent(paths: &[&Path], force: bool) -> Result<(), Error> {
    match paths.iter().find(|path| !force && path.exists()) {
        Some(path) => Err(Error::Exists { path: path.to_path_buf() }),
        None => Ok(()),
    }
}

/// Makes a directory that only its owner enters: keys lie in it.
pub(crate) fn create_private_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("creating", path))
}

/// Locks an authority against other processes, until the file is dropped.
pub(crate) fn lock(dir: &Path) -> Result<fs::File, Error> {
    let path = dir.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed("opening", &path))?;
    file.lock().map_err(failed("locking", &path))?;
    Ok(file)
}

pub(crate) fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(failed("creating", path))
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(failed("reading", path))
}
