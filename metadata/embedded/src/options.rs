//! How an engine is set up.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Runs a blocking job somewhere and resolves once it ran.
pub type OffloadFn =
    dyn Fn(Box<dyn FnOnce() + Send>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// Where calls of the base run that async code makes. The simulation has no threads, so the default runs them in place; daemons pass
/// tokio's `spawn_blocking`.
#[derive(Clone)]
pub struct Offload(Arc<OffloadFn>);

impl Offload {
    /// In place.
    pub fn inline() -> Self {
        Self(Arc::new(|job| {
            job();
            Box::pin(std::future::ready(()))
        }))
    }

    /// By `run`.
    pub fn new(
        run: impl Fn(Box<dyn FnOnce() + Send>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(run))
    }

    /// Runs a job; none if it was lost (it panicked, or the runtime is ending).
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let result = Arc::new(Mutex::new(None));
        let place = result.clone();
        (self.0)(Box::new(move || {
            let value = job();
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        }))
        .await;
        result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// How an engine is set up.
#[derive(Clone)]
pub struct Options {
    /// Where blocking calls run.
    pub offload: Offload,
    /// Commits that may wait; more wait for room.
    pub queue_max: usize,
    /// Bytes of transactions in one batch, at least one transaction.
    pub batch_bytes_max: usize,
    /// Batches in flight.
    pub proposals_max: usize,
    /// When a proposal without an answer counts as unknown.
    pub propose_timeout: Duration,
    /// How often the window is moved into the base.
    pub move_interval: Duration,
    /// How often the base is flushed, if it was moved.
    pub flush_interval: Duration,
    /// Above this much, the window moves as far as running transactions allow, without regard to the age of versions.
    pub window_bytes_soft: usize,
    /// Above this much it moves at once, and running transactions become too old.
    pub window_bytes_hard: usize,
    /// How long a running transaction holds its read version.
    pub held_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            offload: Offload::inline(),
            queue_max: 4096,
            batch_bytes_max: 1 << 20,
            proposals_max: 3,
            propose_timeout: Duration::from_secs(10),
            move_interval: Duration::from_millis(500),
            flush_interval: Duration::from_secs(5),
            window_bytes_soft: 64 << 20,
            window_bytes_hard: 256 << 20,
            held_max: Duration::from_secs(20),
        }
    }
}
