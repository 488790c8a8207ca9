//! Why the log can't do what was asked.

use std::io;
use std::path::{Path, PathBuf};

use crate::recovery;

/// Why the log can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// A file operation failed. Nothing was appended.
    #[error("{action} {path} failed: {source}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// More than one frame may hold.
    #[error(
        "{bytes} bytes were to be appended to the log in {path} at once; at most {most} can be, so nothing was"
    )]
    TooLarge {
        /// The log's directory.
        path: PathBuf,
        /// How many.
        bytes: usize,
        /// How many may be.
        most: usize,
    },
    /// A flush failed earlier: what is on disk isn't known.
    #[error(
        "the log in {path} doesn't take more since a write or flush failed; restart the master once the disk is well, it then reads what is there"
    )]
    Poisoned {
        /// The log's directory.
        path: PathBuf,
    },
    /// A frame is damaged although later ones are whole.
    #[error(
        "the log file {path} is damaged at byte {offset}; the disk lost flushed bytes. Replace this master (`mooseng members`) rather than delete the file"
    )]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
    /// A later version wrote it.
    #[error("the log file {path} has format {found}, this program knows up to {known}; upgrade it")]
    NewerFormat {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// An entry isn't there.
    #[error("the log has no entry {index}; it holds {first} to {last}")]
    Missing {
        /// Asked for.
        index: u64,
        /// The first that is there.
        first: u64,
        /// The last that is there.
        last: u64,
    },
}

impl WalError {
    /// The disk is full: nothing was appended, and the same call may work later.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Disk { source, .. } if is_full(source))
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalError {
    let path = recovery::owned(path);
    move |source| WalError::Disk { action, path, source }
}
