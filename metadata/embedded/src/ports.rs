//! What the embedded engine needs from outside: a replicated log above, an ordered key-value base below.

use async_trait::async_trait;
use bytes::Bytes;

/// The replicated log, which region-master implements with Raft.
#[async_trait]
pub trait CommitLog: Send + Sync + 'static {
    /// Proposes a batch (an encoded `CommitBatch`) in `term`. Resolves once this master has applied it ([`super::Embedded::apply`] was
    /// called with it and its outcome is returned), or once it is known or feared that it won't be.
    async fn propose(&self, term: u64, batch: Bytes) -> Result<ApplyOutcome, ProposeError>;

    /// Whether this master surely leads at this moment (its lease is valid), so that what it has applied is the newest state there is.
    /// Asked when a transaction takes its read version.
    fn may_read(&self) -> bool {
        true
    }
}

/// What applying a batch did. The same on every master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyOutcome {
    /// Its changes hold.
    Applied,
    /// It was resolved against another term or version than it met: nothing was changed.
    Mismatch,
}

/// Why a proposal wasn't applied.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProposeError {
    /// It never entered the log.
    #[error("this master doesn't lead")]
    NotLeader,
    /// It may have entered the log, and may yet be applied.
    #[error("leadership ended while the batch was in flight")]
    Unknown,
}
