//! A store in memory, which commits at once. For tests, and as the simplest reading of the port's semantics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::mvcc::bounds;
use crate::mvcc::{
    Buffered, Change, CommitRequest, Conflicts, Engine, Leases, Life, Page, ReadLease, Seen, WatchSender,
    Watches, Window, covered, stamp,
};
use crate::{Committed, KeyRange, RangeLimit, ReadVersion, Store, StoreError};

/// How long a transaction's read version lives while it runs.
const HELD_MAX: Duration = Duration::from_secs(20);
/// Above this much, older versions are given up early.
const WINDOW_BYTES_MAX: usize = 256 << 20;

/// A store in memory. Clones share it.
#[derive(Clone)]
pub struct MemoryStore(Arc<Mutex<State>>);

/// A transaction of [`MemoryStore`].
pub type MemoryTransaction = Buffered<MemoryStore>;

struct State {
    base: BTreeMap<Bytes, Bytes>,
    /// The base's version.
    floor: u64,
    version: u64,
    window: Window,
    conflicts: Conflicts,
    leases: Leases,
    life: Life,
    watches: Watches,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            base: BTreeMap::new(),
            floor: 1,
            version: 1,
            window: Window::default(),
            conflicts: Conflicts::new(1),
            leases: Leases::default(),
            life: Life::new(HELD_MAX),
            watches: Watches::default(),
        })))
    }

    /// Tells the time, of any monotonic clock: read versions older than five seconds die, those of running transactions after twenty.
    /// Without it they live until the store holds too much.
    pub fn tick(&self, now: Duration) {
        let mut state = self.state();
        let (version, held) = (state.version, state.leases.oldest());
        let floor = state.life.tick(now, version, held);
        state.raise_floor(floor);
    }

    /// Makes every read version but the newest too old.
    pub fn expire(&self) {
        let mut state = self.state();
        let version = state.version;
        state.raise_floor(version);
    }

    /// All pairs, at the newest version.
    pub fn dump(&self) -> BTreeMap<Bytes, Bytes> {
        let state = self.state();
        let mut all = state.base.clone();
        for change in state.window.fold(u64::MAX) {
            apply(&mut all, change);
        }
        all
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self, version: u64) -> Result<(), StoreError> {
        match version {
            v if v > self.version => Err(StoreError::FutureVersion),
            v if v < self.floor => Err(StoreError::TooOld),
            _ => Ok(()),
        }
    }

    fn raise_floor(&mut self, floor: u64) {
        if floor <= self.floor {
            return;
        }
        for change in self.window.fold(floor) {
            apply(&mut self.base, change);
        }
        self.window.prune(floor);
        self.conflicts.raise_floor(floor);
        self.floor = floor;
    }

    fn get(&self, version: u64, key: &[u8]) -> Option<Bytes> {
        match self.window.get(key, version) {
            Seen::Value(value) => Some(value),
            Seen::Absent => None,
            Seen::Base => self.base.get(key).cloned(),
        }
    }

    fn commit(&mut self, request: &CommitRequest) -> Result<Committed, StoreError> {
        if !request.reads.is_empty() {
            self.check(request.read_version)?;
            if request.reads.iter().any(|range| self.conflicts.newest(range) > request.read_version) {
                return Err(StoreError::Conflict);
            }
        }
        let version = self.version + 1;
        let changes = request.writes.resolve(version, |key| self.get(version - 1, key));
        for range in changes.iter().map(Change::range).chain(request.conflicts.iter().cloned()) {
            self.conflicts.write(&range, version);
        }
        self.watches.changed(&changes);
        self.window.insert(version, changes);
        self.version = version;
        if self.window.bytes() > WINDOW_BYTES_MAX {
            self.raise_floor(version);
        }
        Ok(Committed { version: ReadVersion(version), versionstamp: Some(stamp(version)) })
    }
}

fn apply(pairs: &mut BTreeMap<Bytes, Bytes>, change: Change) {
    match change {
        Change::Set(key, value) => drop(pairs.insert(key, value)),
        Change::Clear(key) => drop(pairs.remove(&key)),
        Change::ClearRange(range) => {
            let inside = pairs.range::<[u8], _>(bounds::between(&range.begin, &range.end));
            for key in inside.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
                pairs.remove(&key);
            }
        }
    }
}

/// A page of an ordered map, for engines whose base is one.
pub fn map_page(map: &BTreeMap<Bytes, Bytes>, range: &KeyRange, limit: RangeLimit) -> Page {
    let mut page = Page::default();
    if range.begin >= range.end {
        return page;
    }
    let mut inside = map.range::<[u8], _>(bounds::between(&range.begin, &range.end));
    let mut bytes = 0;
    while let Some((key, value)) = if limit.reverse { inside.next_back() } else { inside.next() } {
        bytes += key.len() + value.len();
        page.pairs.push((key.clone(), value.clone()));
        if page.pairs.len() >= limit.pairs_max || bytes >= limit.bytes_max {
            page.boundary = Some(if limit.reverse { key.clone() } else { crate::mvcc::after(key) });
            break;
        }
    }
    page
}

impl Store for MemoryStore {
    type Transaction = MemoryTransaction;
    fn begin(&self) -> MemoryTransaction {
        Buffered::new(self.clone())
    }
}

impl Engine for MemoryStore {
    async fn newest(&self) -> Result<ReadLease, StoreError> {
        let state = self.state();
        Ok(state.leases.take(state.version))
    }

    fn hold(&self, version: u64) -> Result<ReadLease, StoreError> {
        let state = self.state();
        state.check(version)?;
        Ok(state.leases.take(version))
    }

    async fn get(&self, version: u64, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let state = self.state();
        state.check(version)?;
        Ok(state.get(version, key))
    }

    async fn page(&self, version: u64, range: &KeyRange, limit: RangeLimit) -> Result<Page, StoreError> {
        let state = self.state();
        state.check(version)?;
        let most = (limit.pairs_max, limit.pairs_max.saturating_add(16));
        let slice = state.window.slice(range, version, most, limit.reverse);
        let part = covered(range, slice.boundary.as_ref(), limit.reverse);
        let base = map_page(&state.base, &part, limit);
        Ok(slice.over(range, base, limit.reverse))
    }

    async fn commit(&self, request: CommitRequest) -> Result<Committed, StoreError> {
        self.state().commit(&request)
    }

    fn watch(&self, key: Bytes, version: u64, sender: WatchSender) {
        let mut state = self.state();
        if version < state.floor || state.window.changed_since(&key, version) {
            let _ = sender.send(Ok(()));
        } else {
            state.watches.add(key, sender);
        }
    }
}
