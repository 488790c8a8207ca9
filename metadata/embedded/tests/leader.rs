//! The leader's side, step by step, over a log that the test drives by hand.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use mooseng_embedded::*;
use mooseng_ports::disk::sim::{Fault, SimDisk};
use mooseng_store::{Atomic, Committed, Read, ReadVersion, Store, StoreError, Transaction};
use tokio::sync::oneshot;

type Answer = oneshot::Sender<Result<ApplyOutcome, ProposeError>>;

/// Proposals wait until the test decides.
#[derive(Default)]
struct Hand {
    proposals: Mutex<VecDeque<(u64, Bytes, Answer)>>,
    forbids_reads: AtomicBool,
}

#[async_trait]
impl CommitLog for Hand {
    async fn propose(&self, term: u64, batch: Bytes) -> Result<ApplyOutcome, ProposeError> {
        let (answer, outcome) = oneshot::channel();
        self.proposals.lock().unwrap().push_back((term, batch, answer));
        outcome.await.unwrap_or(Err(ProposeError::Unknown))
    }
    fn may_read(&self) -> bool {
        !self.forbids_reads.load(Ordering::SeqCst)
    }
}

struct Bench {
    engine: Embedded,
    log: Arc<Hand>,
}

impl Bench {
    fn new(options: Options) -> Self {
        Self::over(MemoryBase::new(), options)
    }

    fn over(base: MemoryBase, options: Options) -> Self {
        let engine = Embedded::open(Arc::new(base), options).unwrap();
        let log = Arc::new(Hand::default());
        engine.set_log(log.clone());
        engine.lead(1);
        Self { engine, log }
    }

    /// Waits for a proposal.
    async fn next(&self) -> (u64, Bytes, Answer) {
        loop {
            if let Some(proposal) = self.log.proposals.lock().unwrap().pop_front() {
                return proposal;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn apply(&self, term: u64, batch: Bytes) -> ApplyOutcome {
        let index = self.engine.position().index + 1;
        self.engine.apply(vec![LogEntry { index, term, node: 1, payload: Payload::Batch(batch) }]).unwrap()[0]
    }

    /// Applies the next proposal and answers it.
    async fn accept(&self) -> usize {
        let (term, batch, answer) = self.next().await;
        let count = CommitBatch::decode(&batch).unwrap().transactions.len();
        answer.send(Ok(self.apply(term, batch))).unwrap();
        count
    }

    fn add(&self, key: &str, n: u8) -> tokio::task::JoinHandle<Result<Committed, StoreError>> {
        let tx = self.engine.begin();
        tx.atomic(key.as_bytes(), &[n], Atomic::Add);
        tokio::spawn(tx.commit())
    }

    async fn get(&self, key: &str) -> Option<Bytes> {
        self.engine.begin().get(key.as_bytes(), Read::Snapshot).await.unwrap()
    }
}

async fn settle() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

#[tokio::test(start_paused = true)]
async fn batches_and_pipelines() {
    let bench = Bench::new(Options { proposals_max: 3, ..Options::default() });
    let first = bench.add("n", 1);
    settle().await;
    let second = bench.add("n", 2);
    settle().await;
    let third = bench.add("n", 4);
    settle().await;
    let many: Vec<_> = (0..50).map(|_| bench.add("n", 1)).collect();
    settle().await;
    assert_eq!(bench.log.proposals.lock().unwrap().len(), 3, "three are in flight, the rest waits");
    assert_eq!(bench.get("n").await, None, "what is in flight can't be read");
    assert_eq!(bench.accept().await, 1);
    settle().await;
    assert_eq!(bench.get("n").await.unwrap()[..], [1]);
    assert_eq!(bench.log.proposals.lock().unwrap().len(), 3);
    assert!(first.now_or_never().unwrap().unwrap().is_ok());
    assert_eq!(bench.accept().await, 1);
    assert_eq!(bench.accept().await, 1);
    assert_eq!(bench.accept().await, 50, "what waited went into one entry");
    for commit in [second, third].into_iter().chain(many) {
        commit.await.unwrap().unwrap();
    }
    assert_eq!(bench.get("n").await.unwrap()[..], [57], "atomics were computed over what was in flight");
}

#[tokio::test(start_paused = true)]
async fn losers_against_changes_in_flight_hear_of_it_when_it_is_applied() {
    let bench = Bench::new(Options::default());
    let read = bench.engine.begin();
    read.get(b"n", Read::Conflicting).await.unwrap();
    let winner = bench.add("n", 1);
    settle().await;
    read.set(b"m", b"");
    let mut loser = Box::pin(tokio::spawn(read.commit()));
    settle().await;
    assert!(loser.as_mut().now_or_never().is_none());
    bench.accept().await;
    assert_eq!(loser.await.unwrap(), Err(StoreError::Conflict));
    winner.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn following_ends_what_is_in_flight() {
    let bench = Bench::new(Options { proposals_max: 1, ..Options::default() });
    let watcher = bench.engine.begin();
    let watch = watcher.watch(b"n");
    watcher.commit().await.unwrap();
    let proposed = bench.add("n", 1);
    settle().await;
    let waiting = bench.add("n", 1);
    settle().await;
    bench.engine.follow();
    assert_eq!(proposed.await.unwrap(), Err(StoreError::CommitUnknown));
    assert_eq!(waiting.await.unwrap(), Err(StoreError::NotLeader));
    assert_eq!(watch.await, Err(StoreError::NotLeader));
    assert_eq!(bench.engine.begin().read_version().await, Err(StoreError::NotLeader));
    assert_eq!(bench.add("n", 1).await.unwrap(), Err(StoreError::NotLeader));
    // The old batch is applied after all: the log says when.
    let (term, batch, _) = bench.next().await;
    assert_eq!(bench.apply(term, batch), ApplyOutcome::Applied);
    let given = bench.engine.begin();
    given.set_read_version(bench.engine.applied_version());
    assert_eq!(
        given.get(b"n", Read::Snapshot).await.unwrap().unwrap()[..],
        [1],
        "followers read without a promise"
    );
}

#[tokio::test(start_paused = true)]
async fn versions_of_an_earlier_leader_are_too_old() {
    let bench = Bench::new(Options::default());
    let tx = bench.engine.begin();
    tx.get(b"n", Read::Conflicting).await.unwrap();
    tx.set(b"m", b"");
    let other = bench.add("x", 1);
    bench.accept().await;
    other.await.unwrap().unwrap();
    bench.engine.follow();
    bench.engine.lead(2);
    assert_eq!(tx.commit().await, Err(StoreError::TooOld));
    let again = bench.add("x", 1);
    let (term, batch, answer) = bench.next().await;
    assert_eq!(term, 2);
    answer.send(Ok(bench.apply(2, batch))).unwrap();
    again.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn batches_of_another_term_or_version_change_nothing() {
    let bench = Bench::new(Options::default());
    let commit = bench.add("n", 1);
    let (_, batch, answer) = bench.next().await;
    assert_eq!(bench.apply(2, batch.clone()), ApplyOutcome::Mismatch, "another term");
    assert_eq!(bench.apply(1, batch.clone()), ApplyOutcome::Applied);
    assert_eq!(bench.apply(1, batch), ApplyOutcome::Mismatch, "another version");
    answer.send(Ok(ApplyOutcome::Mismatch)).unwrap();
    assert_eq!(commit.await.unwrap(), Err(StoreError::Conflict));
}

/// A batch of unknown outcome that is applied late must not be mistaken for the one that took its place, nor let through a transaction
/// that never was checked against it.
#[tokio::test(start_paused = true)]
async fn late_batches_dont_hide_conflicts() {
    let bench = Bench::new(Options::default());
    let reader = bench.engine.begin();
    reader.get(b"n", Read::Conflicting).await.unwrap();
    let unknown = bench.add("n", 1);
    let (_, late, answer) = bench.next().await;
    answer.send(Err(ProposeError::Unknown)).unwrap();
    assert_eq!(unknown.await.unwrap(), Err(StoreError::CommitUnknown));
    // Two more batches, the second over the first, are in flight; the second read what the late one changes.
    let first = bench.add("x", 1);
    settle().await;
    reader.set(b"m", b"");
    let second = tokio::spawn(reader.commit());
    settle().await;
    assert_eq!(bench.apply(1, late), ApplyOutcome::Applied);
    bench.accept().await;
    bench.accept().await;
    assert_eq!(first.await.unwrap(), Err(StoreError::Conflict));
    assert_eq!(second.await.unwrap(), Err(StoreError::Conflict));
    assert_eq!(bench.get("m").await, None);
    let works = bench.add("n", 1);
    bench.accept().await;
    works.await.unwrap().unwrap();
    assert_eq!(bench.get("n").await.unwrap()[..], [2]);
}

/// The same without anything in flight: the next check must know that the state moved.
#[tokio::test(start_paused = true)]
async fn late_batches_are_noticed_when_idle() {
    let bench = Bench::new(Options::default());
    let reader = bench.engine.begin();
    reader.get(b"n", Read::Conflicting).await.unwrap();
    let unknown = bench.add("n", 1);
    let (_, late, answer) = bench.next().await;
    answer.send(Err(ProposeError::Unknown)).unwrap();
    unknown.await.unwrap().unwrap_err();
    settle().await;
    assert_eq!(bench.apply(1, late), ApplyOutcome::Applied);
    reader.set(b"m", b"");
    assert_eq!(reader.commit().await, Err(StoreError::TooOld));
}

#[tokio::test(start_paused = true)]
async fn a_proposal_without_an_answer_is_unknown_in_time() {
    let bench = Bench::new(Options::default());
    let commit = bench.add("n", 1);
    let _kept = bench.next().await;
    assert_eq!(commit.await.unwrap(), Err(StoreError::CommitUnknown));
}

#[tokio::test(start_paused = true)]
async fn without_a_lease_nobody_reads() {
    let bench = Bench::new(Options::default());
    bench.log.forbids_reads.store(true, Ordering::SeqCst);
    assert_eq!(bench.engine.begin().get(b"n", Read::Snapshot).await, Err(StoreError::NotLeader));
    bench.log.forbids_reads.store(false, Ordering::SeqCst);
    assert_eq!(bench.get("n").await, None);
}

#[tokio::test(start_paused = true)]
async fn read_versions_age() {
    let bench = Bench::new(Options::default());
    let held = bench.engine.begin();
    let version = held.read_version().await.unwrap();
    let commit = bench.add("n", 1);
    bench.accept().await;
    commit.await.unwrap().unwrap();
    assert_eq!(bench.engine.flushed_index(), 0);
    let reads = async |version: ReadVersion| {
        let tx = bench.engine.begin();
        tx.set_read_version(version);
        tx.get(b"n", Read::Snapshot).await
    };
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(reads(version).await, Ok(None), "five seconds at least");
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(held.get(b"n", Read::Snapshot).await, Ok(None), "longer while it is held");
    assert_eq!(bench.engine.statistics().flushed_index, 0);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(held.get(b"n", Read::Snapshot).await, Err(StoreError::TooOld), "but not for ever");
    assert_eq!(bench.engine.flushed_index(), 1, "the window went into the base, and was flushed");
    assert_eq!(bench.engine.statistics().window_bytes, 0);
    assert_eq!(bench.get("n").await.unwrap()[..], [1]);
}

#[tokio::test(start_paused = true)]
async fn the_window_is_bounded() {
    let options = Options {
        window_bytes_hard: 100_000,
        move_interval: Duration::from_secs(1000),
        ..Options::default()
    };
    let bench = Bench::new(options);
    for n in 0..50u32 {
        let tx = bench.engine.begin();
        tx.set(&n.to_be_bytes(), &[0; 10_000]);
        let commit = tokio::spawn(tx.commit());
        bench.accept().await;
        commit.await.unwrap().unwrap();
        assert!(bench.engine.statistics().window_bytes < 120_000);
    }
    let all = mooseng_store::prefix_range(b"\0");
    let page = bench.engine.begin().get_range(all, Default::default(), Read::Snapshot).await.unwrap();
    assert_eq!(page.pairs.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn batches_are_bounded() {
    let bench = Bench::new(Options { batch_bytes_max: 100_000, proposals_max: 1, ..Options::default() });
    let blocker = bench.add("n", 1);
    settle().await;
    let commits: Vec<_> = (0..30u8)
        .map(|n| {
            let tx = bench.engine.begin();
            tx.set(&[n], &[0; 20_000]);
            tokio::spawn(tx.commit())
        })
        .collect();
    settle().await;
    bench.accept().await;
    blocker.await.unwrap().unwrap();
    let mut done = 0;
    while done < 30 {
        let (term, batch, answer) = bench.next().await;
        assert!(batch.len() < 130_000, "{} bytes", batch.len());
        done += CommitBatch::decode(&batch).unwrap().transactions.len();
        answer.send(Ok(bench.apply(term, batch))).unwrap();
    }
    for commit in commits {
        commit.await.unwrap().unwrap();
    }
}

/// A leader's store that fails: what is in flight may be committed by the others, and nothing more is taken in.
#[tokio::test(start_paused = true)]
async fn a_failed_base_ends_leadership_and_leaves_what_is_in_flight_unknown() {
    let disk = SimDisk::default();
    let base = MemoryBase::on_disk(Arc::new(disk.clone()), Path::new("/store")).unwrap();
    let bench = Bench::over(base, Options { proposals_max: 1, ..Options::default() });
    let early = bench.add("n", 1);
    bench.accept().await;
    early.await.unwrap().unwrap();
    let (in_flight, waiting) = (bench.add("n", 2), {
        settle().await;
        bench.add("n", 4)
    });
    settle().await;
    disk.set_fault(Fault::Full);
    assert!(bench.engine.flush().await.is_err());
    assert_eq!(in_flight.await.unwrap(), Err(StoreError::CommitUnknown));
    assert_eq!(waiting.await.unwrap(), Err(StoreError::NotLeader), "it was never proposed");
    let reason = bench.engine.failed().now_or_never().expect("it has failed");
    assert!(reason.contains("could not flush"), "{reason}");
    disk.set_fault(Fault::None);
    assert!(matches!(bench.add("n", 1).await.unwrap(), Err(StoreError::Failed(_))), "it stays so");
    assert!(matches!(bench.engine.begin().read_version().await, Err(StoreError::Failed(_))));
}

#[tokio::test(start_paused = true)]
async fn a_seal_keeps_what_it_is_about_behind_who_passes_it() {
    let bench = Bench::new(Options::default());
    let range = mooseng_store::KeyRange { begin: "v".into(), end: "w".into() };
    let put = |keys: &'static [&'static str]| {
        let engine = bench.engine.clone();
        tokio::spawn(async move {
            let tx = engine.begin();
            keys.iter().for_each(|key| tx.set(key.as_bytes(), b"1"));
            tx.commit().await
        })
    };
    let before = put(&["v1"]);
    settle().await;
    bench.engine.seal(Seal { ranges: vec![range.clone()], pass: "pass".into() });
    let passes = put(&["v2", "pass"]);
    settle().await;
    let (kept, other) = (put(&["v3", "x"]), put(&["x"]));
    let cleared = {
        let engine = bench.engine.clone();
        tokio::spawn(async move {
            let tx = engine.begin();
            tx.clear_range(mooseng_store::KeyRange { begin: "a".into(), end: "z".into() });
            tx.commit().await
        })
    };
    settle().await;
    while !bench.log.proposals.lock().unwrap().is_empty() {
        bench.accept().await;
        settle().await;
    }
    assert_eq!(kept.await.unwrap().unwrap_err(), StoreError::NotLeader);
    assert!(cleared.await.unwrap().is_ok(), "it changes the key that lets it pass, too");
    let first = before.await.unwrap().unwrap().version;
    assert!(passes.await.unwrap().unwrap().version > first, "what came before is before");
    other.await.unwrap().unwrap();
    bench.engine.unseal(b"pass");
    let after = put(&["v4"]);
    settle().await;
    bench.accept().await;
    after.await.unwrap().unwrap();
}
