//! Where in the replicated log a state stands, and what the log hands over.

use bytes::Bytes;

/// The last log entry that a state contains.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Position {
    /// Its index; zero before the first entry.
    pub index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// The master that proposed it.
    pub node: u64,
    /// The log's own state as of this entry (Raft's membership), which the engine keeps without reading it.
    pub meta: Bytes,
}

/// An entry of the log, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its index.
    pub index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// The master that proposed it.
    pub node: u64,
    /// What it holds.
    pub payload: Payload,
}

/// What a log entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    Blank,
    /// The new value of [`Position::meta`].
    Meta(Bytes),
    /// An encoded [`CommitBatch`](crate::CommitBatch).
    Batch(Bytes),
}
