//! Reads and writes that go past the page cache (O_DIRECT), where the filesystem has them.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What disks want memory, places and lengths to be multiples of, at most.
pub const ALIGNMENT: usize = 4096;
/// Buffers kept for what comes next, in all; each is as large as the largest it served for.
const BUFFERS_MAX: usize = 16;
/// A buffer that is larger isn't kept.
const BUFFER_BYTES_MAX: usize = 2 << 20;
/// Nor is one that is smaller: it would have to grow for most of what comes.
const BUFFER_BYTES_MIN: usize = 64 << 10;

static BUFFERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Memory that direct I/O takes. What it holds at first is anything: memory that was used before costs less than what must be cleared.
#[derive(Debug)]
pub struct Aligned {
    buffer: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Aligned {
    /// Of so many bytes.
    pub fn of(bytes: usize) -> Self {
        let kept = if bytes < BUFFER_BYTES_MIN {
            None
        } else {
            BUFFERS.lock().unwrap_or_else(PoisonError::into_inner).pop()
        };
        let mut buffer = kept.unwrap_or_default();
        if buffer.len() < bytes + ALIGNMENT {
            buffer.resize(bytes + ALIGNMENT, 0);
        }
        // Bytes have no alignment of their own, so this is always found.
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        Self { buffer, start, bytes }
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.bytes]
    }
}

impl AsMut<[u8]> for Aligned {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + self.bytes]
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        let fits = BUFFER_BYTES_MIN + ALIGNMENT..=BUFFER_BYTES_MAX + ALIGNMENT;
        if !fits.contains(&self.buffer.len()) {
            return;
        }
        let mut buffers = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < BUFFERS_MAX {
            buffers.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// A file's second description, opened when it is first wanted.
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
        let opened = self.0.get_or_init(|| open(file, OpenOptions::new().write(true)));
        let Some(direct) = opened else { return Ok(false) };
        // Where they lie so that the disk can take them from there, they aren't copied.
        let lies_well = |part: &&[u8]| {
            part.as_ptr().addr().is_multiple_of(ALIGNMENT) && part.len().is_multiple_of(ALIGNMENT)
        };
        if parts.iter().all(lies_well) {
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            match rustix::io::pwritev(direct, &slices, offset) {
                Ok(written) if written == bytes => return Ok(true),
                // In part, or wanting other multiples: all of it is written as anything else is.
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) if is_refused(&error.into()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut buffer = Aligned::of(bytes);
        let mut at = 0;
        for part in parts {
            buffer.as_mut()[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        match direct.write_all_at(buffer.as_ref(), offset) {
            Ok(()) => Ok(true),
            Err(e) if is_refused(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether it can be read so, as far as known.
    pub(super) fn reads(&self, file: &File) -> bool {
        self.0.get_or_init(|| open(file, OpenOptions::new().read(true))).is_some()
    }

    /// Fills all parts, one behind the other; each must be aligned. False where that isn't possible, of which anything may be filled then.
    pub(super) fn read(&self, file: &File, parts: &mut [&mut [u8]], offset: u64) -> io::Result<bool> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let opened = self.0.get_or_init(|| open(file, OpenOptions::new().read(true)));
        let Some(direct) = opened else { return Ok(false) };
        let mut slices: Vec<IoSliceMut<'_>> = parts.iter_mut().map(|part| IoSliceMut::new(part)).collect();
        loop {
            match rustix::io::preadv(direct, &mut slices, offset) {
                // The file ends within, or a signal came: whoever reads otherwise finds out.
                Ok(read) => return Ok(read == bytes),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) if is_refused(&e.into()) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// A filesystem that only says so when it is asked for bytes, or wants other multiples.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// The same file; none where it can't be opened so.
fn open(file: &File, options: &mut OpenOptions) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    options.custom_flags(libc::O_DIRECT).open(path).ok()
}
