//! The ordered key-value base below the window: everything up to a version, at a position of the log.
//!
//! A base needs no flush per write: the log is flushed, and what a crash takes from the base is replayed from it. It must only never
//! hold part of a write, nor a write without its position.

use bytes::Bytes;
use mooseng_store::mvcc::{Change, Page};
use mooseng_store::{KeyRange, RangeLimit};

use crate::Position;

mod fjall;
mod journal;
mod memory;

pub use self::fjall::{FjallBase, decode_position, encode_position};
pub use journal::end_of_batches;
pub use memory::MemoryBase;

/// Why the base can't go on. Nothing heals it in this process: the daemon stops serving and says so.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BaseError {
    /// The disk or the library below failed.
    #[error(
        "the metadata store could not {action} in {place}: {reason}; check the disk and its free space, then restart"
    )]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Where.
        place: String,
        /// What went wrong.
        reason: String,
    },
    /// Bytes that aren't what was written.
    #[error(
        "the metadata store's bytes in {place} are damaged: {reason}; remove this copy and let it be fetched from another master"
    )]
    Damaged {
        /// Where.
        place: String,
        /// What is wrong with them.
        reason: String,
    },
    /// A call that doesn't fit the state: a mistake of the caller.
    #[error("the metadata store was used out of order: {0}")]
    Misuse(String),
}

/// What a base holds: a position of the log and the commit version there.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BasePosition {
    /// The last log entry.
    pub position: Position,
    /// The last commit version.
    pub version: u64,
}

/// An ordered key-value store at a position. Calls may block; writes, flushes and replacements are made one at a time, reads beside them.
pub trait Base: Send + Sync + 'static {
    /// A key's value.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, BaseError>;
    /// A page of a range.
    fn range(&self, range: &KeyRange, limit: RangeLimit) -> Result<Page, BaseError>;
    /// Makes changes, in order, and moves to the position: both or neither, also after a crash.
    fn write(&self, changes: &[Change], position: &BasePosition) -> Result<(), BaseError>;
    /// Makes what was written so far survive a crash. After a failure the base is finished.
    fn flush(&self) -> Result<(), BaseError>;
    /// Where it stands.
    fn position(&self) -> BasePosition;
    /// A consistent picture of it.
    fn pin(&self) -> Result<Box<dyn BasePin>, BaseError>;
    /// Begins to replace everything; the old state stays until [`Replacement::finish`].
    fn replace(&self) -> Result<Box<dyn Replacement>, BaseError>;
}

/// A picture of a base at one position.
pub trait BasePin: Send + Sync {
    /// Where it was taken.
    fn position(&self) -> BasePosition;
    /// A page of a range.
    fn range(&self, range: &KeyRange, limit: RangeLimit) -> Result<Page, BaseError>;
}

/// A new state on its way. Dropped, it leaves the old one.
pub trait Replacement: Send {
    /// Adds pairs.
    fn put(&mut self, pairs: Vec<(Bytes, Bytes)>) -> Result<(), BaseError>;
    /// Puts the new state, flushed, in place of the old one: after a crash either is there as a whole.
    fn finish(self: Box<Self>, position: &BasePosition) -> Result<(), BaseError>;
}
