//! Commits whose outcome is unknown, tried again with an outcome record in the same transaction: each counts once.

use super::*;
use crate::Atomic;

const CLIENTS: u64 = 5;
const CHANGES: u64 = 20;

pub(super) async fn run<S: Store>(store: &S, _seed: u64) {
    let clients: Vec<_> =
        (0..CLIENTS).map(|client| tokio::spawn(client_run(store.clone(), client))).collect();
    for client in clients {
        client.await.expect("a client failed");
    }
    // Late commits of the past lose against the outcome records.
    for _ in 0..50 {
        pause().await;
    }
    let (read, blind) = loop {
        let tx = store.begin();
        let both = async {
            Ok::<_, StoreError>((
                tx.get(b"read", Read::Snapshot).await?,
                tx.get(b"blind", Read::Snapshot).await?,
            ))
        };
        match both.await {
            Ok((read, blind)) => break (number(read), number(blind)),
            Err(error) => assert!(passing(&error), "{error}"),
        }
        pause().await;
    };
    assert_eq!((read, blind), (CLIENTS * CHANGES, CLIENTS * CHANGES), "each change counts once");
}

fn number(value: Option<Bytes>) -> u64 {
    value.map_or(0, |value| u64::from_le_bytes(value[..].try_into().unwrap()))
}

async fn client_run<S: Store>(store: S, client: u64) {
    for change in 0..CHANGES {
        let outcome = format!("done/{client}/{change}");
        let mut tries = 0;
        while let Err(error) = once(&store, outcome.as_bytes()).await {
            assert!(passing(&error), "{error}");
            tries += 1;
            assert!(tries < 10_000, "a change came to nothing in {tries} tries: {error}");
            pause().await;
        }
    }
}

async fn once<S: Store>(store: &S, outcome: &[u8]) -> Result<(), StoreError> {
    let tx = store.begin();
    if tx.get(outcome, Read::Conflicting).await?.is_some() {
        return Ok(());
    }
    let count = number(tx.get(b"read", Read::Conflicting).await?);
    tokio::task::yield_now().await;
    tx.set(b"read", &(count + 1).to_le_bytes());
    tx.atomic(b"blind", &1u64.to_le_bytes(), Atomic::Add);
    tx.set(outcome, b"1");
    tx.commit().await.map(|_| ())
}
