//! A store that fails now and then, as networks and leaders do.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::{Atomic, ReadVersion};

/// What a commit meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Fine,
    Conflict,
    NotLeader,
    /// It isn't committed, but the caller can't know.
    UnknownNot,
    /// It is committed, but the caller can't know.
    UnknownDone,
    /// It is committed later, after the caller was told that nobody knows.
    UnknownLater,
}

/// A wrapper that injects faults: conflicts, errors, delays, and commits that may have happened (in all outcomes).
#[derive(Clone)]
pub struct Faulty<S> {
    inner: S,
    dice: Arc<Mutex<SmallRng>>,
}

impl<S: Store> Faulty<S> {
    /// Wraps a store; the seed decides what goes wrong.
    pub fn new(inner: S, seed: u64) -> Self {
        Self { inner, dice: Arc::new(Mutex::new(SmallRng::seed_from_u64(seed ^ 0xfa17))) }
    }

    fn roll(&self, sides: u32) -> u32 {
        self.dice.lock().unwrap_or_else(PoisonError::into_inner).random_range(0..sides)
    }

    fn fate(&self) -> Fate {
        match self.roll(20) {
            0 => Fate::Conflict,
            1 => Fate::NotLeader,
            2 => Fate::UnknownNot,
            3 => Fate::UnknownDone,
            4 => Fate::UnknownLater,
            _ => Fate::Fine,
        }
    }

    async fn delay(&self) {
        for _ in 0..self.roll(6) {
            tokio::task::yield_now().await;
        }
    }

    async fn read_fault(&self) -> Result<(), StoreError> {
        self.delay().await;
        if self.roll(100) == 0 { Err(StoreError::TooOld) } else { Ok(()) }
    }
}

impl<S: Store> Store for Faulty<S> {
    type Transaction = FaultyTransaction<S>;
    fn begin(&self) -> FaultyTransaction<S> {
        FaultyTransaction { inner: self.inner.begin(), store: self.clone() }
    }
}

/// A transaction of [`Faulty`].
pub struct FaultyTransaction<S: Store> {
    inner: S::Transaction,
    store: Faulty<S>,
}

impl<S: Store> Transaction for FaultyTransaction<S> {
    async fn read_version(&self) -> Result<ReadVersion, StoreError> {
        self.store.read_fault().await?;
        self.inner.read_version().await
    }
    fn set_read_version(&self, version: ReadVersion) {
        self.inner.set_read_version(version);
    }
    async fn get(&self, key: &[u8], read: Read) -> Result<Option<Bytes>, StoreError> {
        self.store.read_fault().await?;
        self.inner.get(key, read).await
    }
    async fn get_range(
        &self,
        range: KeyRange,
        limit: RangeLimit,
        read: Read,
    ) -> Result<RangePage, StoreError> {
        self.store.read_fault().await?;
        self.inner.get_range(range, limit, read).await
    }
    fn set(&self, key: &[u8], value: &[u8]) {
        self.inner.set(key, value);
    }
    fn clear(&self, key: &[u8]) {
        self.inner.clear(key);
    }
    fn clear_range(&self, range: KeyRange) {
        self.inner.clear_range(range);
    }
    fn atomic(&self, key: &[u8], operand: &[u8], operation: Atomic) {
        self.inner.atomic(key, operand, operation);
    }
    fn set_versionstamped_key(&self, key: &[u8], offset: usize, value: &[u8]) {
        self.inner.set_versionstamped_key(key, offset, value);
    }
    fn set_versionstamped_value(&self, key: &[u8], value: &[u8], offset: usize) {
        self.inner.set_versionstamped_value(key, value, offset);
    }
    fn add_read_conflict(&self, range: KeyRange) {
        self.inner.add_read_conflict(range);
    }
    fn add_write_conflict(&self, range: KeyRange) {
        self.inner.add_write_conflict(range);
    }
    fn watch(&self, key: &[u8]) -> impl Future<Output = Result<(), StoreError>> + Send + 'static {
        self.inner.watch(key)
    }
    fn allow_large(&self) {
        self.inner.allow_large();
    }

    fn approximate_size(&self) -> usize {
        self.inner.approximate_size()
    }
    async fn commit(self) -> Result<Committed, StoreError> {
        let Self { inner, store } = self;
        store.delay().await;
        match store.fate() {
            Fate::Fine => {
                let outcome = inner.commit().await;
                store.delay().await;
                outcome
            }
            Fate::Conflict => Err(StoreError::Conflict),
            Fate::NotLeader => Err(StoreError::NotLeader),
            Fate::UnknownNot => Err(StoreError::CommitUnknown),
            Fate::UnknownDone => match inner.commit().await {
                Ok(_) => Err(StoreError::CommitUnknown),
                Err(error) => Err(error),
            },
            Fate::UnknownLater => {
                tokio::spawn(async move {
                    for _ in 0..20 {
                        store.delay().await;
                    }
                    // Nobody hears of its outcome any more.
                    let _ = inner.commit().await;
                });
                Err(StoreError::CommitUnknown)
            }
        }
    }
}
