//! A store whose reads and commits take turns, and whose commits conflict or end unknown now and then: committed, lost,
//! or committed later, while the retry runs.

use std::future::Future;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use mooseng_schema::extent;
use mooseng_store::memory::MemoryStore;
use mooseng_store::{
    Atomic, Committed, KeyRange, RangeLimit, RangePage, Read, ReadVersion, Store, StoreError, Transaction,
};
use mooseng_wire::VolumeId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[derive(Clone)]
pub struct Faulty {
    pub inner: MemoryStore,
    plan: Arc<Mutex<Plan>>,
}

struct Plan {
    rng: SmallRng,
    share: f64,
    /// Commits that are still on their way.
    late: Vec<<MemoryStore as Store>::Transaction>,
    extent_reads: Reads,
}

/// How often extents were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// One by its key.
    pub keys: u64,
    /// Pages of ranges.
    pub ranges: u64,
}

impl Faulty {
    /// A share of the commits conflicts, and as many end unknown.
    pub fn new(seed: u64, share: f64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        let plan = Plan { rng, share, late: vec![], extent_reads: Reads::default() };
        Self { inner: MemoryStore::new(), plan: Arc::new(Mutex::new(plan)) }
    }

    /// How often extents were read since it was asked last.
    pub fn take_extent_reads(&self) -> Reads {
        std::mem::take(&mut self.plan.lock().unwrap().extent_reads)
    }
}

impl Store for Faulty {
    type Transaction = FaultyTransaction;
    fn begin(&self) -> FaultyTransaction {
        FaultyTransaction { inner: self.inner.begin(), plan: self.plan.clone() }
    }
}

pub struct FaultyTransaction {
    inner: <MemoryStore as Store>::Transaction,
    plan: Arc<Mutex<Plan>>,
}

enum Fault {
    None,
    Conflict,
    UnknownCommitted,
    UnknownLost,
    UnknownLate,
}

impl FaultyTransaction {
    /// Lets others run now and then, and late commits land.
    async fn turn(&self) {
        let (others, late) = {
            let mut plan = self.plan.lock().unwrap();
            let late = if plan.rng.random_bool(0.2) { plan.late.pop() } else { None };
            (plan.rng.random_bool(0.2), late)
        };
        if others {
            tokio::task::yield_now().await;
        }
        if let Some(late) = late {
            // Nobody learns how it ended.
            drop(late.commit().await);
        }
    }

    /// Counts a read that begins there, if it is one of extents.
    fn count(&self, begin: &[u8], count: impl FnOnce(&mut Reads)) {
        let extents = extent::whole_range(VolumeId(0));
        if &extents.begin[..] <= begin && begin < &extents.end[..] {
            count(&mut self.plan.lock().unwrap().extent_reads);
        }
    }
}

impl Transaction for FaultyTransaction {
    fn read_version(&self) -> impl Future<Output = Result<ReadVersion, StoreError>> + Send {
        self.inner.read_version()
    }
    fn set_read_version(&self, version: ReadVersion) {
        self.inner.set_read_version(version);
    }
    async fn get(&self, key: &[u8], read: Read) -> Result<Option<Bytes>, StoreError> {
        self.turn().await;
        self.count(key, |reads| reads.keys += 1);
        self.inner.get(key, read).await
    }
    async fn get_range(
        &self,
        range: KeyRange,
        limit: RangeLimit,
        read: Read,
    ) -> Result<RangePage, StoreError> {
        self.turn().await;
        if range.begin < range.end {
            self.count(&range.begin, |reads| reads.ranges += 1);
        }
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
        self.turn().await;
        let fault = {
            let mut plan = self.plan.lock().unwrap();
            let (roll, share): (f64, f64) = (plan.rng.random(), plan.share);
            match roll {
                r if r < share => Fault::Conflict,
                r if r < share * 1.5 => Fault::UnknownCommitted,
                r if r < share * 1.75 => Fault::UnknownLost,
                r if r < share * 2.0 => Fault::UnknownLate,
                _ => Fault::None,
            }
        };
        match fault {
            Fault::None => self.inner.commit().await,
            Fault::Conflict => Err(StoreError::Conflict),
            Fault::UnknownLost => Err(StoreError::CommitUnknown),
            Fault::UnknownLate => {
                self.plan.lock().unwrap().late.push(self.inner);
                Err(StoreError::CommitUnknown)
            }
            Fault::UnknownCommitted => match self.inner.commit().await {
                Ok(_) => Err(StoreError::CommitUnknown),
                Err(error) => Err(error),
            },
        }
    }
}
