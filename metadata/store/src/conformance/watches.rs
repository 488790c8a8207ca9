//! Watches.

use futures::FutureExt;

use super::*;

pub(super) async fn run<H: Harness>(make: &impl AsyncFn() -> H) {
    let store = make().await.store();
    put(&store, "a", "1").await;

    // Somebody changes the key.
    let tx = store.begin();
    tx.get(b"a", Read::Snapshot).await.unwrap();
    let mut watch = Box::pin(tx.watch(b"a"));
    assert!(watch.as_mut().now_or_never().is_none(), "not before the commit");
    tx.commit().await.unwrap();
    put(&store, "b", "1").await;
    assert!(watch.as_mut().now_or_never().is_none(), "another key");
    put(&store, "a", "2").await;
    watch.await.unwrap();

    // A range clear counts, and so does what came between the read and the commit.
    let tx = store.begin();
    let cleared = tx.watch(b"a");
    tx.read_version().await.unwrap();
    let early = tx.watch(b"b");
    put(&store, "b", "2").await;
    tx.set(b"c", b"1");
    tx.commit().await.unwrap();
    early.await.unwrap();
    let clear = store.begin();
    clear.clear_range(range("a", "b"));
    clear.commit().await.unwrap();
    cleared.await.unwrap();

    // One's own write is what one saw.
    let tx = store.begin();
    tx.set(b"own", b"1");
    let mut watch = Box::pin(tx.watch(b"own"));
    tx.commit().await.unwrap();
    assert!(watch.as_mut().now_or_never().is_none(), "a watch woke up by its own transaction");
    put(&store, "own", "2").await;
    watch.await.unwrap();

    // A transaction that comes to nothing.
    let tx = store.begin();
    let watch = tx.watch(b"a");
    drop(tx);
    assert!(watch.await.is_err());
}
