//! The memory store passes the suite.

use mooseng_store::conformance::{run_all, run_random};
use mooseng_store::memory::MemoryStore;

#[tokio::test(start_paused = true)]
async fn conformance() {
    run_all(async || MemoryStore::new()).await;
}

#[tokio::test(start_paused = true)]
async fn random() {
    run_random(async |_| MemoryStore::new(), 0..20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_on_threads() {
    run_random(async |_| MemoryStore::new(), 100..105).await;
}
