//! The write-ahead log under Raft: entries, votes and what goes with them, in preallocated segments.
//!
//! ```text
//!  append(records) --one frame, one flush--> segment 7 [header | checkpoint | frame | frame | 0000...]
//!                                            segment 6 (full)       removed once everything in it is purged
//! ```
//! - [`record`]: records and their encoding.
//! - [`frame`](mod@frame): a group of records under one checksum, the unit of writing and of recovery.
//! - [`Wal`]: the log.
//!
//! Invariants. A frame is written only after every earlier frame was flushed, or says up to where they were: so a damaged frame with a valid
//! one behind it that vouches for it is corruption, which is an error and never skipped; any other damaged frame can't be told from one that was never
//! flushed, and is cut off with all behind it. Entries that are appended early are for who looks at [`Wal::flushed`] before anything is made of them. A failed
//! flush poisons the log: what the disk has is unknown until the process starts again and reads it (FAILURES 5).

pub mod frame;
pub mod record;
mod recovery;
mod wal;

pub use record::{Entry, LogId, Record, Vote};
pub use wal::{Appended, Options, Wal, WalError};
