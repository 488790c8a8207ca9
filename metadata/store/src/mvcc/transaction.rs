//! A transaction over an engine: it buffers writes, keeps conflict ranges and enforces limits.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::channel::oneshot;

use super::{Own, Page, RangeSet, ReadLease, WriteBuffer, covered, rest};
use crate::limits::{KEY_BYTES_MAX, LARGE_TRANSACTION_BYTES_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX};
use crate::{
    Atomic, Committed, KeyRange, RangeLimit, RangePage, Read, ReadVersion, StoreError, Transaction, key_range,
};

/// Told when a watch completes.
pub type WatchSender = oneshot::Sender<Result<(), StoreError>>;

/// What a transaction asks its engine to commit. It changes something or has write conflict ranges.
#[derive(Clone, Debug, Default)]
pub struct CommitRequest {
    /// What `reads` were read at; without meaning if there are none.
    pub read_version: u64,
    /// What must not have changed since.
    pub reads: Vec<KeyRange>,
    /// Write conflict ranges besides those of the changes.
    pub conflicts: Vec<KeyRange>,
    /// The changes.
    pub writes: WriteBuffer,
    /// Bytes of all of it.
    pub bytes: usize,
}

/// The engine under [`Buffered`].
pub trait Engine: Clone + Send + Sync + 'static {
    /// The newest version that may be read, held.
    fn newest(&self) -> impl Future<Output = Result<ReadLease, StoreError>> + Send;
    /// Holds the given version.
    fn hold(&self, version: u64) -> Result<ReadLease, StoreError>;
    /// A key at a version.
    fn get(&self, version: u64, key: &[u8])
    -> impl Future<Output = Result<Option<Bytes>, StoreError>> + Send;
    /// A page of a range at a version. Beyond the limits it may give more, but not without bound; a page without pairs has a boundary
    /// that makes progress.
    fn page(
        &self,
        version: u64,
        range: &KeyRange,
        limit: RangeLimit,
    ) -> impl Future<Output = Result<Page, StoreError>> + Send;
    /// Commits.
    fn commit(&self, request: CommitRequest) -> impl Future<Output = Result<Committed, StoreError>> + Send;
    /// Completes `sender` once the key is changed after `version`.
    fn watch(&self, key: Bytes, version: u64, sender: WatchSender);
}

/// A transaction over an engine.
pub struct Buffered<E: Engine> {
    engine: E,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lease: Option<ReadLease>,
    wanted: Option<u64>,
    writes: WriteBuffer,
    reads: RangeSet,
    conflicts: RangeSet,
    /// Bytes of the calls that wrote.
    written: usize,
    /// Its limit is the higher one.
    large: bool,
    /// The first error in the arguments of a call.
    error: Option<StoreError>,
    watches: Vec<(Bytes, WatchSender)>,
}

impl State {
    fn bytes(&self) -> usize {
        self.written + self.reads.bytes() + self.conflicts.bytes()
    }

    fn bytes_max(&self) -> usize {
        if self.large { LARGE_TRANSACTION_BYTES_MAX } else { TRANSACTION_BYTES_MAX }
    }

    /// Counts bytes; over the limit nothing is buffered any more, so that memory stays bounded.
    fn count(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.written += bytes;
        match self.bytes() {
            bytes if bytes > self.bytes_max() => Err(StoreError::TransactionTooLarge { bytes }),
            _ => Ok(()),
        }
    }
}

fn check_key(key: &[u8]) -> Result<(), StoreError> {
    if key.len() > KEY_BYTES_MAX {
        return Err(StoreError::KeyTooLarge { bytes: key.len() });
    }
    if key.first() == Some(&0xff) {
        return Err(StoreError::KeyOutsideRange);
    }
    Ok(())
}

fn check_value(value: &[u8]) -> Result<(), StoreError> {
    if value.len() > VALUE_BYTES_MAX { Err(StoreError::ValueTooLarge { bytes: value.len() }) } else { Ok(()) }
}

/// Ends of ranges may be as long as a key and its successor byte, and as high as 0xff.
fn check_range(range: &KeyRange) -> Result<(), StoreError> {
    if range.begin > range.end {
        return Err(StoreError::InvertedRange);
    }
    for bound in [&range.begin, &range.end] {
        if bound.len() > KEY_BYTES_MAX + 1 {
            return Err(StoreError::KeyTooLarge { bytes: bound.len() });
        }
        if &bound[..] > b"\xff".as_slice() {
            return Err(StoreError::KeyOutsideRange);
        }
    }
    Ok(())
}

fn check_stamp(bytes: usize, offset: usize) -> Result<(), StoreError> {
    if offset.checked_add(10).is_none_or(|end| end > bytes) {
        return Err(StoreError::InvalidOperand { bytes });
    }
    Ok(())
}

impl<E: Engine> Buffered<E> {
    /// Begins.
    pub fn new(engine: E) -> Self {
        Self { engine, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a call that writes; its error comes out at commit.
    fn write(&self, call: impl FnOnce(&mut State) -> Result<(), StoreError>) {
        let mut state = self.state();
        if state.error.is_none() {
            state.error = call(&mut state).err();
        }
    }

    async fn version(&self) -> Result<u64, StoreError> {
        let wanted = {
            let state = self.state();
            if let Some(lease) = &state.lease {
                return Ok(lease.version());
            }
            state.wanted
        };
        let lease = match wanted {
            Some(version) => self.engine.hold(version)?,
            None => self.engine.newest().await?,
        };
        // A read beside this one may have been faster: all use the same version.
        Ok(self.state().lease.get_or_insert(lease).version())
    }

    fn read_conflict(&self, range: KeyRange, read: Read) {
        if read == Read::Conflicting {
            self.state().reads.insert(range);
        }
    }
}

impl<E: Engine> Transaction for Buffered<E> {
    async fn read_version(&self) -> Result<ReadVersion, StoreError> {
        self.version().await.map(ReadVersion)
    }

    fn set_read_version(&self, version: ReadVersion) {
        self.state().wanted = Some(version.0);
    }

    async fn get(&self, key: &[u8], read: Read) -> Result<Option<Bytes>, StoreError> {
        check_key(key)?;
        let own = self.state().writes.get(key);
        match own {
            Some(Own::Known(value)) => return Ok(value),
            Some(Own::Stamped { .. }) => return Err(StoreError::Unreadable),
            Some(Own::Atomics(_)) | None => {}
        }
        let version = self.version().await?;
        self.read_conflict(key_range(key), read);
        let stored = self.engine.get(version, key).await?;
        match own {
            Some(own) => own.over(stored),
            None => Ok(stored),
        }
    }

    async fn get_range(
        &self,
        range: KeyRange,
        limit: RangeLimit,
        read: Read,
    ) -> Result<RangePage, StoreError> {
        check_range(&range)?;
        let version = self.version().await?;
        let mut page = RangePage::default();
        let mut bytes = 0;
        let mut left = range.clone();
        while left.begin < left.end {
            if page.pairs.len() >= limit.pairs_max {
                page.more = true;
                break;
            }
            let most = RangeLimit {
                pairs_max: limit.pairs_max - page.pairs.len(),
                bytes_max: limit.bytes_max.saturating_sub(bytes),
                reverse: limit.reverse,
            };
            let stored = self.engine.page(version, &left, most).await?;
            let part = covered(&left, stored.boundary.as_ref(), limit.reverse);
            for (key, value) in self.merge(&part, stored.pairs, limit.reverse)? {
                bytes += key.len() + value.len();
                page.pairs.push((key, value));
                if page.pairs.len() >= limit.pairs_max || bytes >= limit.bytes_max {
                    page.more = true;
                    break;
                }
            }
            match stored.boundary {
                Some(boundary) if !page.more => left = rest(&left, &boundary, limit.reverse),
                _ => break,
            }
        }
        let last = page.pairs.last().filter(|_| page.more).map(|(key, _)| key);
        let read_part = match (last, limit.reverse) {
            (None, _) if page.more => return Ok(page),
            (None, _) => range,
            (Some(key), false) => KeyRange { begin: range.begin, end: super::after(key) },
            (Some(key), true) => KeyRange { begin: key.clone(), end: range.end },
        };
        self.read_conflict(read_part, read);
        Ok(page)
    }

    fn set(&self, key: &[u8], value: &[u8]) {
        self.write(|state| {
            check_key(key)?;
            check_value(value)?;
            state.count(key.len() + value.len())?;
            state.writes.put(Bytes::copy_from_slice(key), Some(Bytes::copy_from_slice(value)));
            Ok(())
        });
    }

    fn clear(&self, key: &[u8]) {
        self.write(|state| {
            check_key(key)?;
            state.count(key.len())?;
            state.writes.put(Bytes::copy_from_slice(key), None);
            Ok(())
        });
    }

    fn clear_range(&self, range: KeyRange) {
        self.write(|state| {
            check_range(&range)?;
            state.count(range.begin.len() + range.end.len())?;
            state.writes.clear_range(range);
            Ok(())
        });
    }

    fn atomic(&self, key: &[u8], operand: &[u8], operation: Atomic) {
        self.write(|state| {
            check_key(key)?;
            check_value(operand)?;
            state.count(key.len() + operand.len())?;
            state.writes.atomic(Bytes::copy_from_slice(key), Bytes::copy_from_slice(operand), operation)
        });
    }

    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]) {
        self.write(|state| {
            // A stamp in the first byte stays below 0xff: versions are counted from zero.
            check_key(if offset == 0 { &key[key.len().min(1)..] } else { key })?;
            check_value(value)?;
            check_stamp(key.len(), offset)?;
            state.count(key.len() + value.len())?;
            state.writes.stamp_key(Bytes::copy_from_slice(key), offset, Bytes::copy_from_slice(value));
            Ok(())
        });
    }

    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize) {
        self.write(|state| {
            check_key(key)?;
            check_value(value)?;
            check_stamp(value.len(), offset)?;
            state.count(key.len() + value.len())?;
            state.writes.stamp_value(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value), offset);
            Ok(())
        });
    }

    fn add_read_conflict(&self, range: KeyRange) {
        self.write(|state| {
            check_range(&range)?;
            state.reads.insert(range);
            state.count(0)
        });
    }

    fn add_write_conflict(&self, range: KeyRange) {
        self.write(|state| {
            check_range(&range)?;
            state.conflicts.insert(range);
            state.count(0)
        });
    }

    fn watch(&self, key: &[u8]) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
        let (sender, receiver) = oneshot::channel();
        self.write(|state| {
            check_key(key)?;
            if state.watches.len() >= super::WATCHES_MAX {
                return Err(StoreError::Failed(format!(
                    "one transaction watches more than {} keys; watch fewer",
                    super::WATCHES_MAX
                )));
            }
            state.watches.push((Bytes::copy_from_slice(key), sender));
            Ok(())
        });
        async move {
            receiver.await.unwrap_or_else(|_| {
                Err(StoreError::Failed(
                    "the transaction or the store that watched a key ended; read the key and watch it again"
                        .into(),
                ))
            })
        }
    }

    fn allow_large(&self) {
        self.state().large = true;
    }

    fn approximate_size(&self) -> usize {
        self.state().bytes()
    }

    async fn commit(self) -> Result<Committed, StoreError> {
        let watching = {
            let state = self.state();
            if let Some(error) = &state.error {
                return Err(error.clone());
            }
            !state.watches.is_empty()
        };
        let reads_only = {
            let state = self.state();
            state.writes.is_empty() && state.conflicts.is_empty()
        };
        // A watch sees the value at the read version, and explicit read conflicts count from it, so either takes one.
        let needs_version = reads_only || watching || !self.state().reads.is_empty();
        let version = if needs_version { self.version().await? } else { 0 };
        let Self { engine, state } = self;
        let mut state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let bytes = state.bytes();
        if bytes > state.bytes_max() {
            return Err(StoreError::TransactionTooLarge { bytes });
        }
        let watches = std::mem::take(&mut state.watches);
        if reads_only {
            for (key, sender) in watches {
                engine.watch(key, version, sender);
            }
            return Ok(Committed { version: ReadVersion(version), versionstamp: None });
        }
        let own: Vec<bool> = watches.iter().map(|(key, _)| state.writes.get(key).is_some()).collect();
        let request = CommitRequest {
            read_version: version,
            reads: state.reads.iter().collect(),
            conflicts: state.conflicts.iter().collect(),
            writes: state.writes,
            bytes,
        };
        let outcome = engine.commit(request).await;
        for ((key, sender), own) in watches.into_iter().zip(own) {
            match &outcome {
                // What this transaction wrote itself, it saw at its commit version.
                Ok(committed) => engine.watch(key, if own { committed.version.0 } else { version }, sender),
                Err(error) => drop(sender.send(Err(error.clone()))),
            }
        }
        drop(state.lease);
        outcome
    }
}

impl<E: Engine> Buffered<E> {
    /// Lays the transaction's own writes over stored pairs of `part`.
    fn merge(
        &self,
        part: &KeyRange,
        stored: Vec<(Bytes, Bytes)>,
        reverse: bool,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let (clears, keys) = self.state().writes.slice(part);
        if clears.is_empty() && keys.is_empty() {
            return Ok(stored);
        }
        let mut merged: std::collections::BTreeMap<Bytes, Bytes> =
            stored.into_iter().filter(|(key, _)| !clears.contains(key)).collect();
        for (key, own) in keys {
            match own.over(merged.get(&key).cloned())? {
                Some(value) => drop(merged.insert(key, value)),
                None => drop(merged.remove(&key)),
            }
        }
        let mut pairs: Vec<_> = merged.into_iter().collect();
        if reverse {
            pairs.reverse();
        }
        Ok(pairs)
    }
}
