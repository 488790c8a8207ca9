//! The master's own small transactions: retried on conflict, and where the outcome isn't known. Only for transactions that may run twice.

use std::future::Future;
use std::time::Duration;

use mooseng_namespace::OpError;
use mooseng_store::{Store, StoreError, Transaction};
use rand::Rng;

/// Tries of one transaction.
const TRIES: u32 = 20;

/// Why a transaction failed for good.
#[derive(Debug, thiserror::Error)]
#[error("the metadata store doesn't take a record of the master's own: {0}")]
pub struct RecordFailure(#[from] pub OpError);

impl RecordFailure {
    /// The store's error, where it is one.
    pub fn store(&self) -> Option<&StoreError> {
        match &self.0 {
            OpError::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// Runs `body` until it commits. It may commit more than once, where the first outcome stays unknown.
pub async fn transact<S, T, F, Fut>(store: &S, mut body: F) -> Result<T, RecordFailure>
where
    S: Store,
    F: FnMut(S::Transaction) -> Fut,
    Fut: Future<Output = Result<(S::Transaction, T), OpError>>,
{
    let mut tries = 0;
    loop {
        let outcome = match body(store.begin()).await {
            Ok((tx, value)) => tx.commit().await.map(|_| value).map_err(OpError::Store),
            Err(error) => Err(error),
        };
        let error = match outcome {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        tries += 1;
        let again = matches!(&error, OpError::Store(e) if e.is_retryable() || e.is_maybe_committed());
        if tries >= TRIES || !again {
            return Err(error.into());
        }
        let most = 2_u64 << tries.min(7);
        let pause = rand::rng().random_range(1..=most);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}
