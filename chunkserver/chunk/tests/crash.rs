//! Power loss at every change of every operation: what was answered as flushed is there, what is there is what was written, a seal stays.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{TornDisk, open};
use mooseng_chunk::{Append, ChunkError, ChunkStore};
use mooseng_wire::{ChunkId, Epoch};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

#[derive(Clone, Debug, Default)]
struct Model {
    /// What was written, answered or not.
    written: Vec<u8>,
    flushed: usize,
    /// Set when a seal was asked for, and whether it was answered.
    sealed: Option<(usize, bool)>,
}

const CHUNKS: u64 = 3;
const EPOCH: Epoch = Epoch(1);

/// One random operation; an error means that the power is gone.
fn step(
    store: &ChunkStore,
    models: &mut BTreeMap<u64, Model>,
    dice: &mut SmallRng,
) -> Result<(), ChunkError> {
    let mut id = dice.random_range(1..=CHUNKS);
    // A sealed chunk's successor takes its place.
    while let Some(Model { sealed: Some(_), written, .. }) = models.get(&id) {
        let late = Append {
            chunk: ChunkId(id),
            epoch: EPOCH,
            offset: written.len() as u64,
            bytes: Bytes::from_static(b"x"),
        };
        assert!(store.write(&late).is_err(), "a sealed chunk took an append");
        id += CHUNKS;
    }
    let model = models.entry(id).or_default();
    let chunk = ChunkId(id);
    match dice.random_range(0..20) {
        0..3 => {
            let least = if dice.random_bool(0.5) { model.flushed } else { model.flushed / 2 };
            let length = dice.random_range(least..=model.written.len());
            model.sealed = Some((length, false));
            store.seal(chunk, EPOCH, length as u64)?;
            model.sealed = Some((length, true));
            Ok(())
        }
        n => {
            let most = if n % 4 == 0 { 300_000 } else { 9000 };
            let mut bytes = vec![0; dice.random_range(1..most)];
            dice.fill_bytes(&mut bytes);
            let offset = model.written.len() as u64;
            model.written.extend_from_slice(&bytes);
            store.write(&Append { chunk, epoch: EPOCH, offset, bytes: bytes.into() })?;
            if n % 3 != 0 {
                let done = store.flush(chunk)?;
                assert_eq!(done.flushed, model.written.len() as u64);
                model.flushed = model.written.len();
            }
            Ok(())
        }
    }
}

/// Compares a reopened store with what must and what may be there, and takes over what is.
fn check(store: &ChunkStore, models: &mut BTreeMap<u64, Model>, context: &str) {
    for (id, model) in models {
        let stat = match store.stat(ChunkId(*id)) {
            Ok(stat) => stat,
            Err(e) => {
                assert!(matches!(e, ChunkError::NotFound { .. }), "{context}: {e}");
                assert!(
                    model.flushed == 0 && !matches!(model.sealed, Some((_, true))),
                    "{context}: chunk {id} is lost: {model:?}",
                    model = model.flushed
                );
                // What is left of a file that was never flushed may look damaged.
                store.delete(ChunkId(*id), EPOCH, 0, 0).unwrap();
                *model = Model::default();
                continue;
            }
        };
        let length = stat.length as usize;
        let floor = model
            .sealed
            .map_or(model.flushed, |(l, answered)| if answered { l } else { l.min(model.flushed) });
        assert!(length >= floor, "{context}: chunk {id} has {length} bytes, {floor} were answered");
        assert!(
            length <= model.written.len(),
            "{context}: chunk {id} has {length} bytes, more than were ever written"
        );
        if let Some((sealed_at, answered)) = model.sealed {
            assert!(stat.sealed || !answered, "{context}: the seal of chunk {id} is lost");
            assert!(
                !stat.sealed || length == sealed_at,
                "{context}: chunk {id} is sealed at {length}, not {sealed_at}"
            );
        } else {
            assert!(!stat.sealed);
        }
        let mut at = 0;
        while at < length {
            let n = (length - at).min(1 << 20);
            let read =
                store.read(ChunkId(*id), at as u64, n as u64).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert!(read == model.written[at..at + n], "{context}: chunk {id} has other bytes");
            at += n;
        }
        model.written.truncate(length);
        model.flushed = length;
        model.sealed = stat.sealed.then_some((length, true));
    }
}

/// Runs a scenario of `rounds` lives; in each the power fails after a number of changes that `cut` chooses.
fn run(seed: u64, rounds: u64, mut cut: impl FnMut(u64, &mut SmallRng) -> u64) -> u64 {
    let mut dice = SmallRng::seed_from_u64(seed);
    let disk = TornDisk::default();
    let mut store = open(&disk, &["/data"]);
    let mut models = BTreeMap::new();
    for round in 0..rounds {
        let limit = cut(round, &mut dice);
        disk.fail_after(Some(limit));
        for _ in 0..40 {
            if step(&store, &mut models, &mut dice).is_err() {
                break;
            }
        }
        let context = format!("seed {seed}, round {round}, cut after {limit} changes");
        // At times the process dies alone; what its next life finds counts as flushed, and survives the power loss that follows.
        if dice.random_bool(0.3) {
            disk.kill();
            check(&open(&disk, &["/data"]), &mut models, &format!("{context}, killed"));
        }
        disk.crash(&mut dice);
        // Recovery may be cut short by a power failure, too.
        if dice.random_range(0..3) == 0 {
            disk.fail_after(Some(dice.random_range(6..18)));
            drop(mooseng_chunk::ChunkStore::open(
                std::sync::Arc::new(disk.clone()),
                common::options(&["/data"]),
                &mut || "disk-1".into(),
            ));
            disk.crash(&mut dice);
        }
        store = open(&disk, &["/data"]);
        check(&store, &mut models, &context);
    }
    disk.changes()
}

#[test]
fn power_loss_at_every_change_of_a_scenario() {
    for seed in 0..4 {
        for cut in 0..60 {
            run(seed, 2, |round, _| if round == 0 { cut } else { 3 });
        }
    }
}

#[test]
fn many_lives_with_power_losses_anywhere() {
    for seed in 100..400 {
        run(seed, 12, |_, dice| dice.random_range(1..60));
    }
}

#[test]
fn epochs_survive_once_answered() {
    for cut in 0..12 {
        let mut dice = SmallRng::seed_from_u64(cut);
        let disk = TornDisk::default();
        let store = open(&disk, &["/data"]);
        store.see_epoch(0, Epoch(3)).unwrap();
        disk.fail_after(Some(cut));
        let answered = store.see_epoch(0, Epoch(7)).is_ok();
        disk.crash(&mut dice);
        let store = open(&disk, &["/data"]);
        let highest = store.highest_epoch();
        assert!(highest == Epoch(7) || (!answered && highest == Epoch(3)), "{highest}, answered {answered}");
        assert!(matches!(store.see_epoch(0, Epoch(2)), Err(ChunkError::StaleEpoch { .. })));
    }
}
