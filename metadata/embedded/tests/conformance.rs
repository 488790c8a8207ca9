//! The engine passes the store's suite over logs that work, delay, fail, and change leaders.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Group, Mode};
use mooseng_embedded::{Base, FjallBase};
use mooseng_store::conformance::{run_all, run_random};

#[tokio::test(start_paused = true)]
async fn immediate() {
    run_all(async || Group::memory(Mode::Immediate, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn delayed() {
    run_all(async || Group::memory(Mode::Delayed, 1)).await;
}

#[tokio::test]
async fn on_fjall() {
    let directory = tempfile::tempdir().unwrap();
    let number = std::cell::Cell::new(0);
    run_all(async || {
        number.set(number.get() + 1);
        let base = FjallBase::open(&directory.path().join(number.get().to_string())).unwrap();
        Group::new(Mode::Immediate, 1, vec![Arc::new(base) as Arc<dyn Base>])
    })
    .await;
}

async fn random(mode: Mode, seeds: std::ops::Range<u64>) {
    let groups = std::sync::Mutex::new(Vec::new());
    run_random(
        async |seed| {
            let group = Group::memory(mode, seed);
            groups.lock().unwrap().push(group.clone());
            group
        },
        seeds,
    )
    .await;
    let groups = groups.into_inner().unwrap();
    for group in &groups {
        group.check();
    }
    if mode == Mode::Flaky {
        // Otherwise the log wasn't as bad as it says.
        let terms: u64 = groups.iter().map(|group| group.entries().last().unwrap().term - 1).sum();
        let mismatches: usize = groups.iter().map(Group::mismatches).sum();
        assert!(terms > 10 && mismatches > 10, "{terms} changes of leadership, {mismatches} mismatches");
    }
}

#[tokio::test(start_paused = true)]
async fn random_immediate() {
    random(Mode::Immediate, 0..5).await;
}

#[tokio::test(start_paused = true)]
async fn random_delayed() {
    random(Mode::Delayed, 10..20).await;
}

#[tokio::test(start_paused = true)]
async fn random_flaky() {
    random(Mode::Flaky, 20..50).await;
}

/// Many seeds: `cargo test -p mooseng-embedded --test conformance -- --ignored`.
#[tokio::test(start_paused = true)]
#[ignore = "takes minutes"]
async fn random_flaky_long() {
    for begin in (1000..1200).step_by(50) {
        random(Mode::Flaky, begin..begin + 50).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_on_threads() {
    random(Mode::Delayed, 50..52).await;
    random(Mode::Flaky, 60..63).await;
}
