//! The embedded engine: strictly serializable transactions over a replicated log and an ordered base.
//!
//! ```text
//!  begin/get/commit -> Buffered<Embedded> -> sequencer -> CommitLog::propose -> (Raft) -> Embedded::apply on every master
//!                          |                                                  |
//!                          +---- reads: window of recent versions, over Base <+---- moved in the background
//! ```
//!
//! - [`Embedded`]: the store, the log's state machine, and the snapshots that bring a master up to date.
//! - [`CommitBatch`]: what a log entry holds. The leader computes atomic operations and versionstamps, so that applying is only sets and
//!   clears, the same on every master.
//! - [`base`]: what is below the window, [`FjallBase`] on disk and [`MemoryBase`] in memory.
//! - [`ports`]: the log.
//!
//! Versions: each transaction has one of its own, which the leader assigns, above the version of the batch before. They ascend but may have
//! gaps: a leader never assigns one twice, so that within a term the version that a batch was resolved against names the batch.

pub mod base;
mod batch;
mod engine;
mod options;
pub mod ports;
mod position;
mod sequencer;
mod snapshot;
mod state;
mod view;

pub use base::{Base, BaseError, BasePosition, FjallBase, MemoryBase};
pub use batch::{BatchError, CommitBatch};
pub use engine::{Embedded, EmbeddedTransaction, Seal, Statistics};
pub use options::{Offload, OffloadFn, Options};
pub use ports::{ApplyOutcome, CommitLog, ProposeError};
pub use position::{LogEntry, Payload, Position};
pub use snapshot::Pin;
pub use view::View;
