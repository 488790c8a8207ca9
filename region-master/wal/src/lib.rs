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
//! Invariants. A frame is written only after every earlier frame was flushed; so after a crash at most the last frame is torn, and a damaged
//! frame with a valid one behind it is corruption, which is an error and never skipped. A failed flush poisons the log: what the disk has
//! is unknown until the process starts again and reads it (FAILURES 5).

pub mod frame;
pub mod record;
mod recovery;
mod wal;

pub use record::{Entry, LogId, Record, Vote};
pub use wal::{Options, Wal, WalError};
