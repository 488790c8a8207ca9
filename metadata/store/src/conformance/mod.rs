//! The suite that every engine passes.
//!
//! - [`run_all`]: what each call means, one test after another, on a store that works.
//! - [`run_random`]: concurrent random transactions, whose histories are replayed; transfers between accounts; exactly-once. Also for
//!   stores that fail now and then, and run here under [`faults::Faulty`] too.
//!
//! A failure panics; random tests print their seed with it.
#![allow(clippy::unwrap_used)]

use std::future::Future;

use bytes::Bytes;

use crate::{Committed, KeyRange, RangeLimit, RangePage, Read, Store, StoreError, Transaction};

mod accounts;
mod basics;
mod conflicts;
mod exactly_once;
pub mod faults;
mod history;
mod ranges;
mod values;
mod watches;

/// A store under test.
pub trait Harness: Send + Sync + 'static {
    /// The store's type.
    type Store: Store;
    /// The store; always the same.
    fn store(&self) -> Self::Store;
    /// Makes every read version but the newest too old.
    fn expire(&self) -> impl Future<Output = ()> + Send;
}

impl Harness for crate::memory::MemoryStore {
    type Store = Self;
    fn store(&self) -> Self {
        self.clone()
    }
    async fn expire(&self) {
        Self::expire(self);
    }
}

/// Runs everything that is certain, each test on a new store.
pub async fn run_all<H: Harness>(make: impl AsyncFn() -> H) {
    basics::run(&make).await;
    ranges::run(&make).await;
    conflicts::run(&make).await;
    values::run(&make).await;
    watches::run(&make).await;
}

/// Runs the random tests with each seed, plainly and under injected faults.
pub async fn run_random<H: Harness>(make: impl AsyncFn(u64) -> H, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let _print = Seed(seed);
        let harness = make(seed).await;
        history::run(&harness.store(), seed).await;
        let harness = make(seed).await;
        history::run(&faults::Faulty::new(harness.store(), seed), seed).await;
        let harness = make(seed).await;
        accounts::run(&harness.store(), seed).await;
        let harness = make(seed).await;
        accounts::run(&faults::Faulty::new(harness.store(), seed), seed).await;
        let harness = make(seed).await;
        exactly_once::run(&harness.store(), seed).await;
        let harness = make(seed).await;
        exactly_once::run(&faults::Faulty::new(harness.store(), seed), seed).await;
    }
}

struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the store's conformance failed with seed {}: run_random(make, {0}..{0} + 1)", self.0);
        }
    }
}

/// What may be tried again, and what nobody can know, for tests on stores that fail now and then.
fn passing(error: &StoreError) -> bool {
    error.is_retryable() || error.is_maybe_committed() || *error == StoreError::NotLeader
}

/// A pause before the next try, so that a store without a leader can find one. Under a paused clock it costs nothing.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}

async fn put<S: Store>(store: &S, key: &str, value: &str) -> Committed {
    let tx = store.begin();
    tx.set(key.as_bytes(), value.as_bytes());
    tx.commit().await.unwrap()
}

async fn value<S: Store>(store: &S, key: &str) -> Option<String> {
    let value = store.begin().get(key.as_bytes(), Read::Snapshot).await.unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn range(begin: &str, end: &str) -> KeyRange {
    KeyRange { begin: Bytes::copy_from_slice(begin.as_bytes()), end: Bytes::copy_from_slice(end.as_bytes()) }
}

fn limit(pairs_max: usize, reverse: bool) -> RangeLimit {
    RangeLimit { pairs_max, reverse, ..RangeLimit::default() }
}

/// Pairs as `key=value`, joined.
fn text(page: &RangePage) -> String {
    let pairs = page.pairs.iter();
    let texts = pairs.map(|(k, v)| format!("{}={}", String::from_utf8_lossy(k), String::from_utf8_lossy(v)));
    texts.collect::<Vec<_>>().join(" ")
}
