//! Writes that go past the page cache (O_DIRECT), where the filesystem has them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What disks want memory, places and lengths to be multiples of, at most.
const ALIGNMENT: usize = 4096;
/// Buffers kept for the next write, in all; each is as large as the largest write it served.
const BUFFERS_MAX: usize = 8;
/// A buffer that is larger isn't kept.
const BUFFER_BYTES_MAX: usize = 4 << 20;

static BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A file's second description, opened with its first direct write.
#[derive(Debug, Default)]
pub(super) struct Direct(OnceLock<Option<File>>);

impl Direct {
    /// Writes all parts, one behind the other. False where that isn't possible, of which nothing is written then but bytes that a buffered write
    /// of the same writes again.
    pub(super) fn write(&self, file: &File, parts: &[&[u8]], offset: u64) -> io::Result<bool> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let aligned = bytes.is_multiple_of(ALIGNMENT) && offset.is_multiple_of(ALIGNMENT as u64);
        if !aligned || bytes == 0 {
            return Ok(false);
        }
        let Some(direct) = self.0.get_or_init(|| open(file)) else { return Ok(false) };
        let mut buffer = take(bytes);
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let Some(room) = buffer.get_mut(start..start + bytes) else { return Ok(false) };
        let mut at = 0;
        for part in parts {
            room[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let written = direct.write_all_at(room, offset);
        give_back(buffer);
        match written {
            Ok(()) => Ok(true),
            // A filesystem that only says so when it is written to, or wants other multiples.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// The same file; none where it can't be opened so.
fn open(file: &File) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()
}

/// A buffer with room for so many bytes from its first aligned one on.
fn take(bytes: usize) -> Vec<u8> {
    let mut buffer = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
    if buffer.len() < bytes + ALIGNMENT {
        buffer.resize(bytes + ALIGNMENT, 0);
    }
    buffer
}

fn give_back(buffer: Vec<u8>) {
    let mut buffers = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
    if buffers.len() < BUFFERS_MAX && buffer.len() <= BUFFER_BYTES_MAX + ALIGNMENT {
        buffers.push(buffer);
    }
}
