//! Atomic operations and versionstamps.

use super::*;
use crate::Atomic;

pub(super) async fn run<H: Harness>(make: &impl AsyncFn() -> H) {
    atomics(&make().await).await;
    concurrent_adds(&make().await.store()).await;
    stamps(&make().await.store()).await;
    stamps_under_clears(&make().await.store()).await;
}

async fn atomics<H: Harness>(harness: &H) {
    let store = harness.store();
    let run = async |key: &str, operand: &[u8], operation: Atomic| {
        let tx = store.begin();
        tx.atomic(key.as_bytes(), operand, operation);
        tx.commit().await.unwrap();
        store.begin().get(key.as_bytes(), Read::Snapshot).await.unwrap().unwrap().to_vec()
    };
    assert_eq!(run("add", &[1, 0], Atomic::Add).await, [1, 0]);
    assert_eq!(run("add", &[255, 0], Atomic::Add).await, [0, 1]);
    harness.expire().await;
    assert_eq!(run("add", &[0, 255], Atomic::Add).await, [0, 0], "wraps");
    assert_eq!(run("add", &[7], Atomic::Add).await, [7], "at the operand's width");
    assert_eq!(run("max", &[3], Atomic::Max).await, [3]);
    assert_eq!(run("max", &[2, 0], Atomic::Max).await, [3, 0]);
    assert_eq!(run("max", &[0, 1], Atomic::Max).await, [0, 1]);
    assert_eq!(run("min", &[3, 0], Atomic::Min).await, [3, 0], "absent takes the operand");
    assert_eq!(run("min", &[0, 1], Atomic::Min).await, [3, 0]);
    assert_eq!(run("min", &[2, 0], Atomic::Min).await, [2, 0]);
    assert_eq!(run("bytes", b"b", Atomic::ByteMax).await, b"b");
    assert_eq!(run("bytes", b"az", Atomic::ByteMax).await, b"b");
    assert_eq!(run("bytes", b"ba", Atomic::ByteMax).await, b"ba");
    // Several in one transaction, over a clear and a set.
    let tx = store.begin();
    tx.atomic(b"add", &[1], Atomic::Add);
    tx.atomic(b"add", &[1], Atomic::Max);
    tx.atomic(b"add", &[100], Atomic::Add);
    tx.clear(b"max");
    tx.atomic(b"max", &[5], Atomic::Add);
    tx.clear_range(range("mi", "mj"));
    tx.atomic(b"min", &[9, 9], Atomic::Min);
    tx.commit().await.unwrap();
    let get = async |key: &[u8]| store.begin().get(key, Read::Snapshot).await.unwrap().unwrap().to_vec();
    assert_eq!((get(b"add").await, get(b"max").await, get(b"min").await), (vec![108], vec![5], vec![9, 9]));
}

async fn concurrent_adds<S: Store>(store: &S) {
    let commits = (0..50u64).map(|_| async {
        let tx = store.begin();
        tx.atomic(b"sum", &3u64.to_le_bytes(), Atomic::Add);
        tx.commit().await.unwrap().version
    });
    let versions = futures::future::join_all(commits).await;
    let sum = store.begin().get(b"sum", Read::Snapshot).await.unwrap().unwrap();
    assert_eq!(sum[..], 150u64.to_le_bytes());
    assert_eq!(versions.len(), 50);
}

async fn stamps<S: Store>(store: &S) {
    let mut stamps = Vec::new();
    for n in 0..5u8 {
        let tx = store.begin();
        tx.set_versionstamped_key(b"log/0123456789/x", 4, &[n]);
        tx.set_versionstamped_value(b"last", b"<0123456789>", 1);
        assert_eq!(tx.get(b"last", Read::Snapshot).await, Err(StoreError::Unreadable));
        let committed = tx.commit().await.unwrap();
        let stamp = committed.versionstamp.unwrap();
        assert_eq!(stamp.0[..8], committed.version.0.to_be_bytes(), "a stamp begins with the version");
        stamps.push(stamp);
        let last = store.begin().get(b"last", Read::Snapshot).await.unwrap().unwrap();
        assert_eq!(last[..], [b"<".as_slice(), &stamp.0, b">"].concat());
    }
    assert!(stamps.is_sorted_by(|a, b| a < b), "later commits have later stamps");
    let page = store.begin().get_range(range("log/", "log0"), limit(9, false), Read::Snapshot).await.unwrap();
    let expected: Vec<_> = stamps
        .iter()
        .zip(0u8..)
        .map(|(stamp, n)| (Bytes::from([b"log/".as_slice(), &stamp.0, b"/x"].concat()), Bytes::from(vec![n])))
        .collect();
    assert_eq!(page.pairs, expected);
}

async fn stamps_under_clears<S: Store>(store: &S) {
    let tx = store.begin();
    tx.set_versionstamped_key(b"gone/0123456789", 5, b"1");
    tx.clear_range(range("gone/", "gone0"));
    tx.set_versionstamped_key(b"gone/0123456789", 5, b"2");
    tx.commit().await.unwrap();
    let page =
        store.begin().get_range(range("gone/", "gone0"), limit(9, false), Read::Snapshot).await.unwrap();
    assert_eq!(page.pairs.len(), 1, "what comes behind a clear stays");
    assert_eq!(page.pairs[0].1[..], *b"2");
}
