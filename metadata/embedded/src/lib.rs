//! The embedded engine: strictly serializable transactions over a replicated log and an ordered base.
//!
//! ```text
//!  begin/get/commit -> EmbeddedStore -> resolver -> CommitLog::propose -> (Raft) -> Embedded::apply on every master
//!                          |                                                  |
//!                          +---- reads: window of recent versions, over Base <+---- applied in the background
//! ```

pub mod ports;
