//! Log files of processes in the background: each is bounded, and the one before it is kept as FILE.1.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The size from which a log is put aside.
const BYTES_MAX: u64 = 64 << 20;

/// How often a log that is written to is looked at.
pub const LOOK: Duration = Duration::from_secs(10);

/// Opens a log for a process that is about to be started, to append to. One that is too long is put aside first.
pub fn open(path: &Path) -> io::Result<File> {
    open_below(path, BYTES_MAX)
}

fn open_below(path: &Path, bytes_max: u64) -> io::Result<File> {
    if length(path) > bytes_max {
        std::fs::rename(path, aside(path))?;
    }
    File::options().create(true).append(true).open(path)
}

/// Puts a log aside to which a process writes, if it is too long: its content is copied, for the process has the file itself open. What is written between copy and
/// cut is lost; the writer goes on at the file's new end, as [`open`] has it append.
pub fn bound(path: &Path) {
    if let Err(error) = bound_below(path, BYTES_MAX) {
        tracing::warn!(path = %path.display(), %error, "the log couldn't be put aside, and grows on");
    }
}

fn bound_below(path: &Path, bytes_max: u64) -> io::Result<()> {
    if length(path) <= bytes_max {
        return Ok(());
    }
    std::fs::copy(path, aside(path))?;
    File::options().write(true).open(path)?.set_len(0)
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn aside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_long_log_is_put_aside_at_a_start_and_while_it_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let mut log = open_below(&path, 4).unwrap();
        log.write_all(b"1234").unwrap();
        open_below(&path, 4).unwrap();
        assert!(!old.exists(), "it isn't too long");
        log.write_all(b"5").unwrap();
        let mut log = open_below(&path, 4).unwrap();
        assert_eq!((read(&old).as_str(), read(&path).as_str()), ("12345", ""));
        log.write_all(b"abcdef").unwrap();
        bound_below(&path, 6).unwrap();
        assert_eq!(read(&path), "abcdef", "it isn't too long");
        bound_below(&path, 5).unwrap();
        // The same process writes on.
        log.write_all(b"g").unwrap();
        assert_eq!((read(&old).as_str(), read(&path).as_str()), ("abcdef", "g"));
    }

    #[test]
    fn a_log_that_is_gone_is_no_failure() {
        bound_below(Path::new("/nonexistent/x.log"), 0).unwrap();
    }
}
