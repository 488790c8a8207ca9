//! The random tests are trusted only because they catch planted bugs.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use mooseng_store::conformance::{Harness, run_random};
use mooseng_store::memory::MemoryStore;
use mooseng_store::mvcc::{Buffered, CommitRequest, Engine, Page, ReadLease, WatchSender};
use mooseng_store::{Committed, KeyRange, RangeLimit, Store, StoreError};

#[derive(Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// Nothing conflicts.
    NoConflicts,
    /// Conflicts of single keys are seen, those of wider ranges not.
    NoRangeConflicts,
    /// Reads see the newest version, not the transaction's.
    NewestReads,
    /// A failed commit had its effects after all.
    ConflictsCommit,
    /// An unknown commit is made twice.
    Twice,
}

#[derive(Clone)]
struct Broken(MemoryStore, Bug);

impl Store for Broken {
    type Transaction = Buffered<Broken>;
    fn begin(&self) -> Self::Transaction {
        Buffered::new(self.clone())
    }
}

impl Engine for Broken {
    async fn newest(&self) -> Result<ReadLease, StoreError> {
        self.0.newest().await
    }
    fn hold(&self, version: u64) -> Result<ReadLease, StoreError> {
        self.0.hold(version)
    }
    async fn get(&self, version: u64, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let version = if self.1 == Bug::NewestReads { self.0.newest().await?.version() } else { version };
        self.0.get(version, key).await
    }
    async fn page(&self, version: u64, range: &KeyRange, limit: RangeLimit) -> Result<Page, StoreError> {
        self.0.page(version, range, limit).await
    }
    async fn commit(&self, mut request: CommitRequest) -> Result<Committed, StoreError> {
        match self.1 {
            Bug::NoConflicts => request.reads.clear(),
            Bug::NoRangeConflicts => request.reads.retain(|range| range.end.len() == range.begin.len() + 1),
            _ => {}
        }
        let mut again = request.clone();
        again.reads.clear();
        let outcome = self.0.commit(request).await;
        if (self.1 == Bug::ConflictsCommit && outcome.is_err()) || self.1 == Bug::Twice {
            self.0.commit(again).await?;
        }
        outcome
    }
    fn watch(&self, key: Bytes, version: u64, sender: WatchSender) {
        self.0.watch(key, version, sender);
    }
}

impl Harness for Broken {
    type Store = Self;
    fn store(&self) -> Self {
        self.clone()
    }
    async fn expire(&self) {
        self.0.expire();
    }
}

fn caught(bug: Bug) -> bool {
    let run = || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run_random(async |_| Broken(MemoryStore::new(), bug), 0..8));
    };
    std::panic::catch_unwind(run).is_err()
}

#[test]
fn planted_bugs_are_caught() {
    assert!(!caught(Bug::None));
    assert!(caught(Bug::NoConflicts));
    assert!(caught(Bug::NoRangeConflicts));
    assert!(caught(Bug::NewestReads));
    assert!(caught(Bug::ConflictsCommit));
    assert!(caught(Bug::Twice));
}
