//! openraft behind one adapter: a group of masters - a region's, or the global one -, over our log, our store and our streams.
//!
//! ```text
//!  Embedded --CommitLog--> RaftNode --client_write--> openraft --append--> Wal (flushed, then acknowledged: `flushing`)
//!     ^                       |                          |  \--RaftAppend, RaftVote, RaftSnapshot*--> peers' RaftNode::handle
//!     +------- apply ---------+--------------------------+
//! ```
//! - [`RaftNode`]: starts and drives a member, answers its peers, knows who leads and until when.
//! - [`lease`]: the leader's lease, a pure function of what followers acknowledged.
//! - [`lineage`], [`recover`]: a group that goes on from one master's disk, and what keeps the others out.
//! - [`codec`]: our encoding of openraft's types, on the wire and in the log.

#![allow(clippy::result_large_err, reason = "openraft's traits demand its StorageError")]

mod answers;
mod calls;
pub mod codec;
mod deferring;
mod flushing;
mod leading;
pub mod lease;
pub mod lineage;
mod log;
mod machine;
mod members;
mod network;
mod node;
pub mod recover;
mod settings;
mod snapshot;
mod standing;
mod traced;
mod types;

pub use calls::{GLOBAL_GROUP, is_of_global, is_of_region};
pub use node::RaftNode;
pub use settings::{Leadership, Member, MemberStatus, OnAppend, RaftConfig, RaftError, RaftStatus, Timings};
pub use types::{Batch, Node, Outcome, TypeConfig};
