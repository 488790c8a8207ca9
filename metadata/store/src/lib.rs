//! The metadata store's port: an ordered, transactional key-value store with FoundationDB's semantics and limits.
//!
//! Every engine (memory, embedded, later fdb) implements [`Store`] and passes the same conformance suite.
//!
//! - [`memory::MemoryStore`]: everything in memory, commits at once. For tests.
//! - [`mvcc`]: what engines of our own share: a transaction's buffer, recent versions, conflict detection, watches.
//! - [`dump`]: a whole store in a file, whatever the engine.
//! - [`limits`]: FoundationDB's limits.
//! - `conformance` (feature of that name): the suite, a wrapper that injects faults, and histories that are checked for serializability.

use std::future::Future;

use bytes::Bytes;

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod dump;
pub mod limits;
pub mod memory;
pub mod mvcc;

/// The version that a transaction reads at. Commits are ordered by version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReadVersion(pub u64);

/// The ten bytes that a commit puts in place of a versionstamp: the commit version and the order within it, big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Versionstamp(pub [u8; 10]);

/// Whether a read joins the transaction's read conflict ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The commit fails if what was read changed since.
    Conflicting,
    /// It doesn't.
    Snapshot,
}

/// Keys from `begin` (inclusive) to `end` (exclusive).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub begin: Bytes,
    /// Behind the last key.
    pub end: Bytes,
}

/// How much of a range is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimit {
    /// Most pairs.
    pub pairs_max: usize,
    /// Stop after this many bytes of keys and values.
    pub bytes_max: usize,
    /// From the end backwards.
    pub reverse: bool,
}

impl Default for RangeLimit {
    fn default() -> Self {
        Self { pairs_max: 10_000, bytes_max: 1 << 20, reverse: false }
    }
}

/// A page of a range.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RangePage {
    /// Keys and values, in order of reading.
    pub pairs: Vec<(Bytes, Bytes)>,
    /// The range may hold more behind the last pair.
    pub more: bool,
}

/// An atomic change whose operand is applied to the value at commit. Integers are little-endian, an absent value is zero bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomic {
    /// Adds, wrapping, at the operand's width.
    Add,
    /// Keeps the larger unsigned number.
    Max,
    /// Keeps the smaller unsigned number; an absent value takes the operand.
    Min,
    /// Keeps the value that sorts last as bytes.
    ByteMax,
}

/// What a commit answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The version that the changes have; for a read-only transaction its read version.
    pub version: ReadVersion,
    /// The stamp that versionstamped keys and values got; none for a read-only transaction.
    pub versionstamp: Option<Versionstamp>,
}

/// Why a read or a commit failed. What to do about it is a method, never a string.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// FDB 1020: something read was changed by another transaction. Nothing was committed; run the transaction again.
    #[error("the transaction conflicts with another one")]
    Conflict,
    /// FDB 1021: whether it was committed isn't known, and it may still be. Only a retry that finds its own outcome record is safe.
    #[error("whether the transaction was committed isn't known")]
    CommitUnknown,
    /// FDB 1007: the read version is older than what the store keeps.
    #[error("the transaction's read version is too old")]
    TooOld,
    /// FDB 1009: the read version lies in the future.
    #[error("the transaction's read version lies in the future")]
    FutureVersion,
    /// FDB 2101: over [`limits::TRANSACTION_BYTES_MAX`].
    #[error("the transaction has {bytes} bytes, more than {}", limits::TRANSACTION_BYTES_MAX)]
    TransactionTooLarge {
        /// Bytes of keys, values and conflict ranges.
        bytes: usize,
    },
    /// FDB 2102: over [`limits::KEY_BYTES_MAX`].
    #[error("a key has {bytes} bytes, more than {}", limits::KEY_BYTES_MAX)]
    KeyTooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// FDB 2103: over [`limits::VALUE_BYTES_MAX`].
    #[error("a value has {bytes} bytes, more than {}", limits::VALUE_BYTES_MAX)]
    ValueTooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// FDB 2005: a range whose begin lies behind its end.
    #[error("a range ends before it begins")]
    InvertedRange,
    /// FDB 2007 and kin: an operand that the operation can't take.
    #[error("an operand of {bytes} bytes doesn't fit the operation")]
    InvalidOperand {
        /// Its bytes.
        bytes: usize,
    },
    /// FDB 1036: the transaction read a key to which it gave a versionstamp, which exists only once it is committed.
    #[error("the transaction reads a key or value that gets its versionstamp at commit")]
    Unreadable,
    /// FDB 2004: a key from 0xff on, where the engines keep their own.
    #[error("a key lies outside the range that transactions may use: keys begin with a byte below 0xff")]
    KeyOutsideRange,
    /// This engine's process may not serve: another master leads.
    #[error("this master doesn't lead the region")]
    NotLeader,
    /// The engine can't work: a disk failed, or bytes on it are damaged.
    #[error("the store failed: {0}")]
    Failed(String),
}

impl StoreError {
    /// Nothing was committed, and the same transaction may be run again.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Conflict | Self::TooOld | Self::FutureVersion)
    }
    /// The transaction may have been committed, or may yet be.
    pub fn is_maybe_committed(&self) -> bool {
        matches!(self, Self::CommitUnknown)
    }
}

/// A store. Clones share it.
pub trait Store: Clone + Send + Sync + 'static {
    /// Its transactions.
    type Transaction: Transaction;
    /// Begins a transaction; its read version is taken at the first read.
    fn begin(&self) -> Self::Transaction;
}

/// A transaction: strictly serializable, and it reads its own writes (as FDB's default has it). Methods take `&self`, so that reads may run
/// side by side. Dropping it aborts it.
pub trait Transaction: Send + Sync {
    /// The version that reads see; taken now if it wasn't.
    fn read_version(&self) -> impl Future<Output = Result<ReadVersion, StoreError>> + Send;
    /// Sets the version that reads see, before the first read.
    fn set_read_version(&self, version: ReadVersion);
    /// A key's value.
    fn get(&self, key: &[u8], read: Read) -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send;
    /// A page of a range. Conflicts cover what the page covers.
    fn get_range(
        &self,
        range: KeyRange,
        limit: RangeLimit,
        read: Read,
    ) -> impl Future<Output = Result<RangePage, StoreError>> + Send;
    /// Sets a key.
    fn set(&self, key: &[u8], value: &[u8]);
    /// Clears a key.
    fn clear(&self, key: &[u8]);
    /// Clears a range.
    fn clear_range(&self, range: KeyRange);
    /// Changes a key's value at commit, without a read conflict.
    fn atomic(&self, key: &[u8], operand: &[u8], operation: Atomic);
    /// Sets a key in which the ten bytes at `offset` become the versionstamp.
    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]);
    /// Sets a value in which the ten bytes at `offset` become the versionstamp.
    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize);
    /// Adds a read conflict range, as if it had been read.
    fn add_read_conflict(&self, range: KeyRange);
    /// Adds a write conflict range, as if it had been written.
    fn add_write_conflict(&self, range: KeyRange);
    /// Completes when the key's value differs from what this transaction saw, once it committed. Spurious completions are allowed.
    fn watch(&self, key: &[u8]) -> impl Future<Output = Result<(), StoreError>> + Send + 'static;
    /// Raises the transaction's limit to [`limits::LARGE_TRANSACTION_BYTES_MAX`]: for replaying what another store took as one transaction,
    /// and what has to be kept of it besides.
    fn allow_large(&self);
    /// Bytes that the commit would count.
    fn approximate_size(&self) -> usize;
    /// Commits. Errors in the arguments of earlier calls (sizes, ranges) come out here at the latest.
    fn commit(self) -> impl Future<Output = Result<Committed, StoreError>> + Send;
}

/// The range of all keys that begin with `prefix`.
pub fn prefix_range(prefix: &[u8]) -> KeyRange {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < 0xff {
            *last += 1;
            break;
        }
        end.pop();
    }
    if end.is_empty() {
        end = vec![0xff];
    }
    KeyRange { begin: Bytes::copy_from_slice(prefix), end: end.into() }
}

/// The range of one key.
pub fn key_range(key: &[u8]) -> KeyRange {
    let mut end = key.to_vec();
    end.push(0);
    KeyRange { begin: Bytes::copy_from_slice(key), end: end.into() }
}
