//! Files of the authority: written whole, with the right mode, never over something unasked.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::Error;

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

/// Replaces a file whole, flushed, with that mode.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(failed("creating", &temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(failed("replacing", path))
}

/// Writes a file that must not exist, unless `force`.
pub(crate) fn create(path: &Path, bytes: &[u8], mode: u32, force: bool) -> Result<(), Error> {
    if !force && path.exists() {
        return Err(Error::Exists { path: path.to_owned() });
    }
    replace(path, bytes, mode)
}

pub(crate) fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(failed("creating", path))
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(failed("reading", path))
}
