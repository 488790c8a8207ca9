//! What engines of our own share. Nothing here has a clock, a lock held over I/O, or a task.
//!
//! ```text
//!  Transaction calls -> transaction::Buffered (own writes, conflict ranges, limits)
//!                          |                  \
//!                   Engine::get/page        Engine::commit(CommitRequest)
//!                          |                    |
//!              window::Window over a base    conflicts::Conflicts, buffer::WriteBuffer::resolve -> Vec<Change>
//! ```

mod atomic;
mod buffer;
pub mod codec;
mod conflicts;
mod derive;
mod life;
mod ranges;
mod transaction;
mod watches;
mod window;

pub use atomic::apply as apply_atomic;
pub use buffer::{Own, WriteBuffer, stamp};
pub use conflicts::Conflicts;
pub use derive::Derive;
pub use life::{Leases, Life, ReadLease};
pub use ranges::RangeSet;
pub use transaction::{Buffered, CommitRequest, Engine, WatchSender};
pub use watches::{WATCHES_MAX, Watches};
pub use window::{Seen, Slice, Window};

use bytes::Bytes;

use crate::KeyRange;

/// A change whose outcome doesn't depend on anything: what logs and bases hold. Changes are made in order, also within one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has this value.
    Set(Bytes, Bytes),
    /// The key has none.
    Clear(Bytes),
    /// No key of the range has one.
    ClearRange(KeyRange),
}

impl Change {
    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Set(key, value) => key.len() + value.len(),
            Self::Clear(key) => key.len(),
            Self::ClearRange(range) => range.begin.len() + range.end.len(),
        }
    }
    /// The keys that it changes.
    pub fn range(&self) -> KeyRange {
        match self {
            Self::Set(key, _) | Self::Clear(key) => crate::key_range(key),
            Self::ClearRange(range) => range.clone(),
        }
    }
}

/// Part of a range, as an engine reads it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Page {
    /// Keys and values, in order of reading.
    pub pairs: Vec<(Bytes, Bytes)>,
    /// Forwards the page covers everything before this key, backwards everything from it on; without it the whole range.
    pub boundary: Option<Bytes>,
}

/// The key that follows `key` at once.
pub fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The part of `range` that a page with `boundary` covers.
pub fn covered(range: &KeyRange, boundary: Option<&Bytes>, reverse: bool) -> KeyRange {
    match (boundary, reverse) {
        (None, _) => range.clone(),
        (Some(end), false) => KeyRange { begin: range.begin.clone(), end: end.clone() },
        (Some(begin), true) => KeyRange { begin: begin.clone(), end: range.end.clone() },
    }
}

/// The part of `range` that is left to read behind a page with `boundary`.
pub fn rest(range: &KeyRange, boundary: &Bytes, reverse: bool) -> KeyRange {
    if reverse {
        KeyRange { begin: range.begin.clone(), end: boundary.clone() }
    } else {
        KeyRange { begin: boundary.clone(), end: range.end.clone() }
    }
}

/// Bounds for the ordered maps of keys, which take slices only in this form. Begin and end must be in order.
pub mod bounds {
    use std::ops::Bound;

    /// Bounds of a map of byte strings.
    pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

    /// From `begin` to before `end`.
    pub fn between<'a>(begin: &'a [u8], end: &'a [u8]) -> Bounds<'a> {
        (Bound::Included(begin), Bound::Excluded(end))
    }
    /// From `begin` to `end`.
    pub fn closed<'a>(begin: &'a [u8], end: &'a [u8]) -> Bounds<'a> {
        (Bound::Included(begin), Bound::Included(end))
    }
    /// Up to `end`.
    pub fn up_to(end: &[u8]) -> Bounds<'_> {
        (Bound::Unbounded, Bound::Included(end))
    }
    /// Up to before `end`.
    pub fn before(end: &[u8]) -> Bounds<'_> {
        (Bound::Unbounded, Bound::Excluded(end))
    }
}
