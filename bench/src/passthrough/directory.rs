//! An open directory: entries that were read from the backing directory and not yet given to the kernel.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, RawDir, SeekFrom, seek};
use rustix::io::Result;

const BUFFER_BYTES: usize = 64 << 10;

/// An entry.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// The backing inode's number.
    pub ino: u64,
    /// Its kind.
    pub kind: FileType,
    /// Where reading goes on behind it.
    pub next: u64,
}

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    /// The offset of the first entry in `left`.
    at: u64,
    left: VecDeque<Entry>,
}

impl Directory {
    /// `fd` is open for reading, at its start.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, at: 0, left: VecDeque::new() }
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Gives entries from `offset` on to `take` until that answers false or they end. The one that it refused comes again.
    pub fn each(&mut self, offset: u64, mut take: impl FnMut(&Entry) -> bool) -> Result<()> {
        if offset != self.at {
            seek(&self.fd, SeekFrom::Start(offset))?;
            self.left.clear();
            self.at = offset;
        }
        loop {
            while let Some(entry) = self.left.front() {
                if !take(entry) {
                    return Ok(());
                }
                self.at = entry.next;
                self.left.pop_front();
            }
            if !self.fill()? {
                return Ok(());
            }
        }
    }

    fn fill(&mut self) -> Result<bool> {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let mut raw = RawDir::new(&self.fd, buffer.spare_capacity_mut());
        while let Some(entry) = raw.next() {
            let entry = entry?;
            self.left.push_back(Entry {
                name: OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(),
                ino: entry.ino(),
                kind: entry.file_type(),
                next: entry.next_entry_cookie(),
            });
            // One system call's worth: the next would read on.
            if raw.is_buffer_empty() {
                break;
            }
        }
        Ok(!self.left.is_empty())
    }
}
