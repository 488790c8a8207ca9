//! Reading, writing, reading own writes, versions, limits.

use super::*;
use crate::limits::*;
use crate::{Atomic, ReadVersion};

pub(super) async fn run<H: Harness>(make: &impl AsyncFn() -> H) {
    set_get_clear(&make().await.store()).await;
    dropped_transactions_change_nothing(&make().await.store()).await;
    own_writes(&make().await.store()).await;
    versions(&make().await.store()).await;
    too_old(&make().await).await;
    sizes(&make().await.store()).await;
    wrong_arguments(&make().await.store()).await;
}

async fn set_get_clear<S: Store>(store: &S) {
    assert_eq!(value(store, "a").await, None);
    put(store, "a", "1").await;
    put(store, "a", "2").await;
    put(store, "", "the empty key").await;
    assert_eq!(value(store, "a").await.as_deref(), Some("2"));
    assert_eq!(value(store, "").await.as_deref(), Some("the empty key"));
    let tx = store.begin();
    tx.clear(b"a");
    tx.set(b"empty", b"");
    tx.commit().await.unwrap();
    assert_eq!(value(store, "a").await, None);
    assert_eq!(value(store, "empty").await.as_deref(), Some(""));
}

async fn dropped_transactions_change_nothing<S: Store>(store: &S) {
    let tx = store.begin();
    tx.set(b"a", b"1");
    drop(tx);
    assert_eq!(value(store, "a").await, None);
}

async fn own_writes<S: Store>(store: &S) {
    for key in ["a", "b", "c", "d", "e"] {
        put(store, key, "old").await;
    }
    let add = |tx: &S::Transaction, key: &str, n: u8| tx.atomic(key.as_bytes(), &[n], Atomic::Add);
    put(store, "n", "\u{5}").await;
    let tx = store.begin();
    tx.set(b"b", b"new");
    tx.clear(b"c");
    tx.set(b"f", b"more");
    add(&tx, "n", 1);
    add(&tx, "n", 1);
    add(&tx, "m", 3);
    assert_eq!(tx.get(b"b", Read::Conflicting).await.unwrap().as_deref(), Some(b"new".as_slice()));
    assert_eq!(tx.get(b"c", Read::Snapshot).await.unwrap(), None);
    assert_eq!(tx.get(b"n", Read::Snapshot).await.unwrap().as_deref(), Some(b"\x07".as_slice()));
    assert_eq!(tx.get(b"m", Read::Snapshot).await.unwrap().as_deref(), Some(b"\x03".as_slice()));
    let all = tx.get_range(range("a", "g"), limit(100, false), Read::Snapshot).await.unwrap();
    assert_eq!(text(&all), "a=old b=new d=old e=old f=more");
    assert!(!all.more);
    let some = tx.get_range(range("a", "g"), limit(2, true), Read::Snapshot).await.unwrap();
    assert_eq!(text(&some), "f=more e=old");
    tx.clear_range(range("b", "e"));
    tx.set(b"c", b"again");
    add(&tx, "d", 9);
    assert_eq!(tx.get(b"d", Read::Snapshot).await.unwrap().as_deref(), Some(b"\x09".as_slice()));
    let all = tx.get_range(range("a", "m"), limit(100, false), Read::Snapshot).await.unwrap();
    assert_eq!(text(&all), "a=old c=again d=\u{9} e=old f=more");
    // Nobody else sees any of it before the commit, everybody all of it after.
    assert_eq!(value(store, "b").await.as_deref(), Some("old"));
    tx.commit().await.unwrap();
    let page = store.begin().get_range(range("", "z"), limit(100, false), Read::Snapshot).await.unwrap();
    assert_eq!(text(&page), "a=old c=again d=\u{9} e=old f=more m=\u{3} n=\u{7}");
}

async fn versions<S: Store>(store: &S) {
    let first = put(store, "a", "1").await;
    let early = store.begin();
    let version = early.read_version().await.unwrap();
    assert!(version >= first.version, "a read version contains the commits before it");
    let second = put(store, "a", "2").await;
    assert!(second.version > first.version);
    assert!(second.versionstamp > first.versionstamp);
    assert_eq!(
        early.get(b"a", Read::Snapshot).await.unwrap().as_deref(),
        Some(b"1".as_slice()),
        "reads are at one version"
    );
    assert_eq!(early.read_version().await.unwrap(), version);
    let given = store.begin();
    given.set_read_version(version);
    assert_eq!(given.get(b"a", Read::Snapshot).await.unwrap().as_deref(), Some(b"1".as_slice()));
    let read_only = given.commit().await.unwrap();
    assert_eq!(read_only, Committed { version, versionstamp: None });
    let future = store.begin();
    future.set_read_version(ReadVersion(second.version.0 + 1_000_000_000));
    assert_eq!(future.get(b"a", Read::Snapshot).await, Err(StoreError::FutureVersion));
}

async fn too_old<H: Harness>(harness: &H) {
    let store = harness.store();
    put(&store, "a", "1").await;
    let (reader, writer) = (store.begin(), store.begin());
    let version = reader.read_version().await.unwrap();
    writer.get(b"a", Read::Conflicting).await.unwrap();
    writer.set(b"b", b"1");
    let blind = store.begin();
    blind.set(b"c", b"1");
    put(&store, "a", "2").await;
    put(&store, "z", "2").await;
    harness.expire().await;
    assert_eq!(reader.get(b"a", Read::Snapshot).await, Err(StoreError::TooOld));
    assert_eq!(
        reader.get_range(range("a", "b"), limit(9, false), Read::Snapshot).await,
        Err(StoreError::TooOld)
    );
    let given = store.begin();
    given.set_read_version(version);
    assert_eq!(given.get(b"a", Read::Snapshot).await, Err(StoreError::TooOld));
    let error = writer.commit().await.unwrap_err();
    assert!(matches!(error, StoreError::TooOld | StoreError::Conflict), "{error}");
    blind.commit().await.expect("without reads nothing is too old");
    assert_eq!(value(&store, "a").await.as_deref(), Some("2"));
    assert_eq!(value(&store, "b").await, None);
}

async fn failing<S: Store>(store: &S, prepare: impl Fn(&S::Transaction)) -> StoreError {
    let tx = store.begin();
    prepare(&tx);
    tx.set(b"witness", b"1");
    let error = tx.commit().await.expect_err("a limit was passed");
    assert_eq!(value(store, "witness").await, None, "nothing of it was committed");
    assert!(!error.is_retryable() && !error.is_maybe_committed());
    error
}

async fn sizes<S: Store>(store: &S) {
    let tx = store.begin();
    tx.set(&vec![b'k'; KEY_BYTES_MAX], &vec![0; VALUE_BYTES_MAX]);
    assert!(tx.approximate_size() >= KEY_BYTES_MAX + VALUE_BYTES_MAX);
    tx.commit().await.expect("as large as is allowed");
    let long = vec![b'k'; KEY_BYTES_MAX + 1];
    assert_eq!(
        store.begin().get(&long, Read::Snapshot).await,
        Err(StoreError::KeyTooLarge { bytes: long.len() })
    );
    assert_eq!(failing(store, |tx| tx.set(&long, b"")).await, StoreError::KeyTooLarge { bytes: long.len() });
    assert_eq!(failing(store, |tx| tx.clear(&long)).await, StoreError::KeyTooLarge { bytes: long.len() });
    let large = vec![0; VALUE_BYTES_MAX + 1];
    assert_eq!(
        failing(store, |tx| tx.set(b"a", &large)).await,
        StoreError::ValueTooLarge { bytes: large.len() }
    );
    let full = failing(store, |tx| {
        for n in 0..12 {
            tx.set(format!("key{n}").as_bytes(), &vec![0; VALUE_BYTES_MAX]);
        }
    });
    assert!(matches!(full.await, StoreError::TransactionTooLarge { bytes } if bytes > TRANSACTION_BYTES_MAX));
    let tx = store.begin();
    tx.allow_large();
    for n in 0..12 {
        tx.set(format!("key{n}").as_bytes(), &vec![0; VALUE_BYTES_MAX]);
    }
    assert!(tx.commit().await.is_ok(), "a transaction that asked for it may be larger");
    let larger = failing(store, |tx| {
        tx.allow_large();
        for n in 0..50 {
            tx.set(format!("key{n}").as_bytes(), &vec![0; VALUE_BYTES_MAX]);
        }
    });
    assert!(matches!(larger.await, StoreError::TransactionTooLarge { .. }), "but not without a bound");
    let ranges = failing(store, |tx| {
        for n in 0..120u32 {
            let mut key = format!("{n:04}").into_bytes();
            key.resize(KEY_BYTES_MAX, b'x');
            tx.add_read_conflict(crate::key_range(&key));
        }
    });
    assert!(matches!(ranges.await, StoreError::TransactionTooLarge { .. }), "conflict ranges count");
}

async fn wrong_arguments<S: Store>(store: &S) {
    let inverted = || range("b", "a");
    assert_eq!(failing(store, |tx| tx.clear_range(inverted())).await, StoreError::InvertedRange);
    assert_eq!(failing(store, |tx| tx.add_read_conflict(inverted())).await, StoreError::InvertedRange);
    assert_eq!(failing(store, |tx| tx.add_write_conflict(inverted())).await, StoreError::InvertedRange);
    let read = store.begin().get_range(inverted(), limit(1, false), Read::Snapshot).await;
    assert_eq!(read, Err(StoreError::InvertedRange));
    let empty = store.begin().get_range(range("a", "a"), limit(1, false), Read::Snapshot).await;
    assert_eq!(empty, Ok(RangePage::default()));
    assert_eq!(failing(store, |tx| tx.set(b"\xffmine", b"")).await, StoreError::KeyOutsideRange);
    let stamped =
        |key: &'static [u8], offset| failing(store, move |tx| tx.set_versionstamped_key(key, offset, b""));
    assert_eq!(stamped(b"short", 0).await, StoreError::InvalidOperand { bytes: 5 });
    assert_eq!(stamped(b"0123456789", usize::MAX).await, StoreError::InvalidOperand { bytes: 10 });
    let valued = failing(store, |tx| tx.set_versionstamped_value(b"a", b"0123456789", 1)).await;
    assert_eq!(valued, StoreError::InvalidOperand { bytes: 10 });
}
