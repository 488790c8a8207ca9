//! Transfers between accounts: the sum stays, for every reader at every time.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const ACCOUNTS: u32 = 8;
const START: i64 = 100;

fn account(n: u32) -> Vec<u8> {
    format!("account/{n}").into_bytes()
}

fn amount(value: Option<Bytes>) -> i64 {
    i64::from_le_bytes(value.expect("an account is gone")[..].try_into().unwrap())
}

pub(super) async fn run<S: Store>(store: &S, seed: u64) {
    retry(|| async {
        let tx = store.begin();
        for n in 0..ACCOUNTS {
            tx.set(&account(n), &START.to_le_bytes());
        }
        tx.commit().await.map(|_| ())
    })
    .await;
    let writers: Vec<_> = (0..4).map(|n| tokio::spawn(transfers(store.clone(), seed ^ (n << 32)))).collect();
    let readers: Vec<_> = (0..2).map(|_| tokio::spawn(sums(store.clone()))).collect();
    for task in writers.into_iter().chain(readers) {
        task.await.expect("a client failed");
    }
}

/// Runs it until it works. Only for what may be done twice.
async fn retry<F: Future<Output = Result<(), StoreError>>>(run: impl Fn() -> F) {
    for _ in 0..10_000 {
        match run().await {
            Ok(()) => return,
            Err(error) => assert!(passing(&error), "{error}"),
        }
        pause().await;
    }
    panic!("a transaction came to nothing in 10,000 tries");
}

async fn transfers<S: Store>(store: S, seed: u64) {
    let mut dice = SmallRng::seed_from_u64(seed);
    for _ in 0..20 {
        let (from, to) = (dice.random_range(0..ACCOUNTS), dice.random_range(0..ACCOUNTS));
        let sum = dice.random_range(1..30);
        // A transfer that is made twice keeps the sum, so that unknown outcomes may be tried again.
        retry(|| async {
            let tx = store.begin();
            let has = amount(tx.get(&account(from), Read::Conflicting).await?);
            if has >= sum && from != to {
                let had = amount(tx.get(&account(to), Read::Conflicting).await?);
                tokio::task::yield_now().await;
                tx.set(&account(from), &(has - sum).to_le_bytes());
                tx.set(&account(to), &(had + sum).to_le_bytes());
            }
            tx.commit().await.map(|_| ())
        })
        .await;
    }
}

async fn sums<S: Store>(store: S) {
    for round in 0..30 {
        retry(|| async {
            let tx = store.begin();
            let mut sum = 0;
            if round % 2 == 0 {
                for n in 0..ACCOUNTS {
                    let has = amount(tx.get(&account(n), Read::Snapshot).await?);
                    assert!(has >= 0, "account {n} is overdrawn");
                    sum += has;
                    tokio::task::yield_now().await;
                }
            } else {
                let all = range("account/", "account0");
                for (_, value) in tx.get_range(all, limit(100, true), Read::Snapshot).await?.pairs {
                    sum += amount(Some(value));
                }
            }
            assert_eq!(sum, START * i64::from(ACCOUNTS), "a reader saw half a transfer");
            Ok(())
        })
        .await;
    }
}
