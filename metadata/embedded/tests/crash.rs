//! After a crash, replaying the log from the base's position gives the same state.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{made_up_log, reference};
use mooseng_embedded::*;
use mooseng_ports::disk::sim::{Fault, SimDisk};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const DIRECTORY: &str = "MOOSENG_TEST_CRASH_DIRECTORY";
const LOG_SEED: u64 = 5;

fn replay(base: Arc<dyn Base>, entries: &[LogEntry]) -> Embedded {
    let engine = Embedded::open(base, Options::default()).unwrap();
    let from = engine.position().index as usize;
    engine.apply(entries[from..].to_vec()).unwrap();
    engine
}

/// Not a test of its own: the process that `killed_at_any_moment` kills.
#[test]
#[ignore = "runs only as the child of killed_at_any_moment"]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let base = Arc::new(FjallBase::open(Path::new(&directory)).unwrap());
    let engine = Embedded::open(base, Options::default()).unwrap();
    let from = engine.position().index;
    println!("\nfrom {from}");
    for entry in made_up_log(LOG_SEED, 100_000).into_iter().skip(from as usize) {
        let index = entry.index;
        engine.apply(vec![entry]).unwrap();
        if index % 3 == 0 {
            engine.expire().unwrap();
            println!("moved {index}");
        }
    }
}

#[test]
fn killed_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let entries = made_up_log(LOG_SEED, 100_000);
    let mut dice = SmallRng::seed_from_u64(9);
    let mut last = 0;
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut moved = last;
        let lines = dice.random_range(20..300);
        for line in BufReader::new(child.stdout.take().unwrap()).lines().take(lines) {
            if let Some(index) = line.unwrap().strip_prefix("moved ") {
                moved = index.parse().unwrap();
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let base = Arc::new(FjallBase::open(directory.path()).unwrap());
        let at = base.position().position.index;
        assert!(at >= moved && at > last, "round {round}: at {at}, although {moved} was reached");
        last = at;
        // What the base holds is the state at its position, nothing more and nothing less.
        let whole = Embedded::open(base.clone(), Options::default()).unwrap();
        assert_eq!((whole.state_digest().unwrap(), whole.position()), reference(&entries[..at as usize]));
        drop(whole);
        let more = &entries[..at as usize + 40];
        let engine = replay(base, more);
        assert_eq!((engine.state_digest().unwrap(), engine.position()), reference(more));
    }
}

#[tokio::test(start_paused = true)]
async fn memory_base_after_power_cuts() {
    for seed in 0..30 {
        let mut dice = SmallRng::seed_from_u64(seed);
        let disk = SimDisk::default();
        let entries = made_up_log(seed, 300);
        let mut flushed = 0;
        let mut done = 0;
        while done < entries.len() {
            let base = MemoryBase::on_disk(Arc::new(disk.clone()), Path::new("/state")).unwrap();
            let at = base.position().position.index;
            assert!(at >= flushed, "seed {seed}: at {at} after a crash, although {flushed} was flushed");
            let engine = replay(Arc::new(base), &entries[..at as usize]);
            assert_eq!(
                (engine.state_digest().unwrap(), engine.position()),
                reference(&entries[..at as usize])
            );
            done = at as usize;
            for _ in 0..dice.random_range(1..6) {
                let next = (done + dice.random_range(1..30)).min(entries.len());
                engine.apply(entries[done..next].to_vec()).unwrap();
                done = next;
                match dice.random_range(0..3) {
                    0 => flushed = engine.flush().await.unwrap(),
                    1 => engine.expire().unwrap(),
                    _ => {}
                }
            }
            disk.crash(|n| dice.random_range(0..=n));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_flush_is_the_end() {
    let disk = SimDisk::default();
    let base = MemoryBase::on_disk(Arc::new(disk.clone()), Path::new("/state")).unwrap();
    let engine = Embedded::open(Arc::new(base), Options::default()).unwrap();
    let entries = made_up_log(1, 20);
    engine.apply(entries[..10].to_vec()).unwrap();
    let flushed = engine.flush().await.unwrap();
    engine.apply(entries[10..].to_vec()).unwrap();
    disk.set_fault(Fault::Failing);
    assert!(engine.flush().await.is_err());
    disk.set_fault(Fault::None);
    assert_eq!(engine.flushed_index(), flushed, "nothing may be purged that isn't safe");
    let tx = mooseng_store::Store::begin(&engine);
    mooseng_store::Transaction::set_read_version(&tx, engine.applied_version());
    let read = mooseng_store::Transaction::get(&tx, b"key", mooseng_store::Read::Snapshot).await;
    assert!(matches!(read, Err(mooseng_store::StoreError::Failed(_))), "{read:?}");
}

#[test]
fn damaged_dumps_are_refused() {
    let disk = SimDisk::default();
    let open = || MemoryBase::on_disk(Arc::new(disk.clone()), Path::new("/state"));
    let engine = Embedded::open(Arc::new(open().unwrap()), Options::default()).unwrap();
    engine.apply(made_up_log(1, 20)).unwrap();
    engine.expire().unwrap();
    futures::executor::block_on(engine.flush()).unwrap();
    open().unwrap();
    disk.flip_bit(Path::new("/state/base"), 100);
    assert!(matches!(open(), Err(BaseError::Damaged { .. })));
}
