//! Which transactions conflict, and which don't.

use super::*;
use crate::{Atomic, key_range};

pub(super) async fn run<H: Harness>(make: &impl AsyncFn() -> H) {
    let store = make().await.store();
    for key in ["a", "b", "c", "d", "e"] {
        put(&store, key, "0").await;
    }
    table(&store).await;
    ranges_as_far_as_they_were_read(&store).await;
    lost_update(&store).await;
    write_skew(&store).await;
    phantoms(&store).await;
}

/// Runs a transaction, with another one that commits between its reads and its commit.
async fn between<S: Store>(
    store: &S,
    reads: impl AsyncFn(&S::Transaction),
    other: impl Fn(&S::Transaction),
) -> Result<(), StoreError> {
    let tx = store.begin();
    tx.read_version().await.unwrap();
    reads(&tx).await;
    let rival = store.begin();
    other(&rival);
    rival.commit().await.unwrap();
    tx.set(b"out", b"1");
    tx.commit().await.map(|_| ())
}

async fn table<S: Store>(store: &S) {
    let read_c = async |tx: &S::Transaction| drop(tx.get(b"c", Read::Conflicting).await.unwrap());
    let conflict = Err(StoreError::Conflict);
    assert_eq!(between(store, read_c, |tx| tx.set(b"c", b"1")).await, conflict, "set");
    assert_eq!(between(store, read_c, |tx| tx.set(b"c", b"1")).await, conflict, "set to the same value");
    assert_eq!(between(store, read_c, |tx| tx.atomic(b"c", b"1", Atomic::Add)).await, conflict, "atomic");
    assert_eq!(
        between(store, read_c, |tx| tx.atomic(b"c", b"", Atomic::ByteMax)).await,
        conflict,
        "idle atomic"
    );
    assert_eq!(between(store, read_c, |tx| tx.clear_range(range("b", "d"))).await, conflict, "range clear");
    assert_eq!(between(store, read_c, |tx| tx.clear(b"c")).await, conflict, "clear of nothing");
    assert_eq!(
        between(store, read_c, |tx| tx.add_write_conflict(key_range(b"c"))).await,
        conflict,
        "explicit write"
    );
    let stamped = |tx: &S::Transaction| tx.set_versionstamped_value(b"c", b"0123456789", 0);
    assert_eq!(between(store, read_c, stamped).await, conflict, "versionstamped value");
    assert_eq!(between(store, read_c, |tx| tx.set(b"b", b"1")).await, Ok(()), "the key before");
    assert_eq!(between(store, read_c, |tx| tx.set(b"c\0", b"1")).await, Ok(()), "the key behind");
    assert_eq!(between(store, read_c, |tx| tx.clear_range(range("a", "c"))).await, Ok(()), "up to it");
    let snapshot = async |tx: &S::Transaction| {
        tx.get(b"c", Read::Snapshot).await.unwrap();
        tx.get_range(range("a", "z"), limit(9, false), Read::Snapshot).await.unwrap();
    };
    assert_eq!(between(store, snapshot, |tx| tx.set(b"c", b"1")).await, Ok(()), "snapshot reads");
    let nothing = async |_: &S::Transaction| {};
    assert_eq!(between(store, nothing, |tx| tx.set(b"out", b"1")).await, Ok(()), "writes alone");
    let add = async |tx: &S::Transaction| tx.atomic(b"c", b"1", Atomic::Add);
    assert_eq!(between(store, add, |tx| tx.set(b"c", b"1")).await, Ok(()), "atomics don't read");
    let explicit = async |tx: &S::Transaction| tx.add_read_conflict(range("b", "d"));
    assert_eq!(between(store, explicit, |tx| tx.set(b"c", b"1")).await, conflict, "explicit read");
    let absent = async |tx: &S::Transaction| drop(tx.get(b"nothing", Read::Conflicting).await.unwrap());
    assert_eq!(
        between(store, absent, |tx| tx.set(b"nothing", b"1")).await,
        conflict,
        "an absent key that came up"
    );
    // A rival that failed or only read doesn't matter.
    let tx = store.begin();
    tx.get(b"c", Read::Conflicting).await.unwrap();
    let rival = store.begin();
    rival.get(b"c", Read::Conflicting).await.unwrap();
    rival.commit().await.unwrap();
    drop({
        let rival = store.begin();
        rival.set(b"c", b"9");
        rival
    });
    tx.set(b"out", b"2");
    tx.commit().await.unwrap();
}

async fn ranges_as_far_as_they_were_read<S: Store>(store: &S) {
    for key in ["a", "b", "c", "d", "e"] {
        put(store, key, "0").await;
    }
    let page = |most: usize, reverse: bool| {
        async move |tx: &S::Transaction| {
            tx.get_range(range("a", "f"), limit(most, reverse), Read::Conflicting).await.unwrap();
        }
    };
    let conflict = Err(StoreError::Conflict);
    assert_eq!(
        between(store, page(9, false), |tx| tx.set(b"bb", b"1")).await,
        conflict,
        "a key came up inside"
    );
    assert_eq!(between(store, page(9, false), |tx| tx.set(b"f", b"1")).await, Ok(()), "behind the range");
    assert_eq!(between(store, page(2, false), |tx| tx.set(b"a", b"1")).await, conflict);
    assert_eq!(between(store, page(2, false), |tx| tx.set(b"d", b"1")).await, Ok(()), "behind the page");
    assert_eq!(between(store, page(2, true), |tx| tx.set(b"e", b"1")).await, conflict);
    assert_eq!(between(store, page(2, true), |tx| tx.set(b"a", b"1")).await, Ok(()), "before the page");
}

async fn lost_update<S: Store>(store: &S) {
    let (one, two) = (store.begin(), store.begin());
    for tx in [&one, &two] {
        tx.get(b"a", Read::Conflicting).await.unwrap();
        tx.set(b"a", b"mine");
    }
    one.commit().await.unwrap();
    assert_eq!(two.commit().await, Err(StoreError::Conflict));
}

async fn write_skew<S: Store>(store: &S) {
    let (one, two) = (store.begin(), store.begin());
    for (tx, key) in [(&one, b"a"), (&two, b"b")] {
        tx.get(b"a", Read::Conflicting).await.unwrap();
        tx.get(b"b", Read::Conflicting).await.unwrap();
        tx.set(key, b"skew");
    }
    one.commit().await.unwrap();
    assert_eq!(two.commit().await, Err(StoreError::Conflict));
}

async fn phantoms<S: Store>(store: &S) {
    let (one, two) = (store.begin(), store.begin());
    for (tx, key) in [(&one, b"ph1"), (&two, b"ph2")] {
        let page = tx.get_range(range("ph", "pi"), limit(9, false), Read::Conflicting).await.unwrap();
        assert!(page.pairs.is_empty());
        tx.set(key, b"1");
    }
    one.commit().await.unwrap();
    assert_eq!(two.commit().await, Err(StoreError::Conflict));
}
