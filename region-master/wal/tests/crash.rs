//! Random histories with power cuts: what was flushed is there, what wasn't is whole or gone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use mooseng_ports::disk::sim::{Fault, SimDisk};
use mooseng_wal::{Entry, LogId, Options, Vote, Wal, WalError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const OPTIONS: Options = Options { segment_bytes: 96 << 10, cache_bytes: 2 << 10 };
const DIR: &str = "/raft";

#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, (u64, Bytes)>,
}

impl Model {
    fn last(&self) -> Option<u64> {
        self.entries.last_key_value().map(|(i, _)| *i).or(self.purged.map(|p| p.index))
    }
}

fn observe(wal: &Wal) -> Model {
    let first = wal.purged().map_or(0, |p| p.index + 1);
    let last = wal.last().map_or(0, |l| l.index);
    let mut entries = BTreeMap::new();
    let mut next = first;
    while next <= last && wal.last().is_some() {
        let read = wal.read(next..last + 1, 700).unwrap();
        if read.is_empty() {
            break;
        }
        for entry in read {
            assert_eq!(entry.id.index, next);
            entries.insert(next, (entry.id.term, entry.payload));
            next += 1;
        }
    }
    Model { vote: wal.vote(), purged: wal.purged(), entries }
}

fn open(disk: &SimDisk) -> Wal {
    Wal::open(Arc::new(disk.clone()), Path::new(DIR), OPTIONS).unwrap()
}

fn step(rng: &mut StdRng, wal: &Wal, model: &mut Model, term: &mut u64) -> Result<(), WalError> {
    let next = model.last().map_or(0, |l| l + 1);
    match rng.random_range(0..20) {
        0 => {
            *term += 1;
            let vote = Vote { term: *term, node: rng.random_range(1..4), committed: rng.random() };
            model.vote = Some(vote);
            wal.save_vote(vote)
        }
        1 if !model.entries.is_empty() => {
            let index = *model.entries.keys().nth(rng.random_range(0..model.entries.len())).unwrap();
            model.entries.split_off(&index);
            wal.truncate(index)
        }
        2 | 3 if !model.entries.is_empty() => {
            let (index, (term, _)) = model.entries.iter().nth(rng.random_range(0..model.entries.len())).unwrap();
            let id = LogId { term: *term, node: 1, index: *index };
            model.entries = model.entries.split_off(&(id.index + 1));
            model.purged = Some(id);
            wal.purge(id)
        }
        _ => {
            let entries: Vec<Entry> = (0..rng.random_range(1..5))
                .map(|i| {
                    let payload = vec![rng.random(); rng.random_range(0..3000)];
                    Entry { id: LogId { term: *term, node: 1, index: next + i }, payload: payload.into() }
                })
                .collect();
            model.entries.extend(entries.iter().map(|e| (e.id.index, (e.id.term, e.payload.clone()))));
            wal.append(entries)
        }
    }
}

#[test]
fn flushed_things_survive_power_cuts() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::default();
        let mut wal = open(&disk);
        let (mut model, mut term) = (Model::default(), 1);
        for _ in 0..120 {
            step(&mut rng, &wal, &mut model, &mut term).unwrap();
            if rng.random_ratio(1, 8) {
                disk.crash(|n| rng.random_range(0..=n));
                wal = open(&disk);
                assert_eq!(observe(&wal), model, "seed {seed}");
            }
        }
        assert_eq!(observe(&wal), model, "seed {seed}");
    }
}

#[test]
fn a_failed_flush_poisons_and_leaves_before_or_after() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::default();
        let wal = open(&disk);
        let (mut model, mut term) = (Model::default(), 1);
        for _ in 0..30 {
            step(&mut rng, &wal, &mut model, &mut term).unwrap();
        }
        let before = model.clone();
        disk.set_fault(Fault::Failing);
        assert!(step(&mut rng, &wal, &mut model, &mut term).is_err());
        disk.set_fault(Fault::None);
        let vote = wal.save_vote(Vote { term: 99, node: 1, committed: false });
        assert!(matches!(vote, Err(WalError::Poisoned { .. })), "seed {seed}: a poisoned log takes nothing");
        disk.crash(|n| rng.random_range(0..=n));
        let seen = observe(&open(&disk));
        assert!(seen == before || seen == model, "seed {seed}");
    }
}

#[test]
fn a_full_disk_refuses_entries_takes_votes_and_recovers() {
    let disk = SimDisk::new(3 * OPTIONS.segment_bytes);
    let wal = open(&disk);
    let mut index = 0;
    let entry = |index| Entry { id: LogId { term: 1, node: 1, index }, payload: vec![7; 20 << 10].into() };
    while wal.append(vec![entry(index)]).is_ok() {
        index += 1;
    }
    wal.save_vote(Vote { term: 2, node: 2, committed: false }).unwrap();
    assert_eq!(wal.vote().unwrap().term, 2);
    wal.purge(LogId { term: 1, node: 1, index: index - 1 }).unwrap();
    wal.append(vec![entry(index)]).unwrap();
    disk.crash(|_| 0);
    assert_eq!(open(&disk).last().unwrap().index, index);
}

#[test]
fn damage_before_the_end_is_an_error_that_names_the_place() {
    let disk = SimDisk::default();
    let wal = open(&disk);
    for index in 0..10 {
        wal.append(vec![Entry { id: LogId { term: 1, node: 1, index }, payload: vec![1; 500].into() }]).unwrap();
    }
    disk.flip_bit(Path::new("/raft/0000000000000001.wal"), 2000);
    let error = Wal::open(Arc::new(disk), Path::new(DIR), OPTIONS).err().unwrap();
    assert!(matches!(error, WalError::Corrupt { .. }), "{error}");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let disk = SimDisk::default();
    drop(open(&disk));
    // Format 1 becomes 1 ^ 256 by the lowest bit of its second byte.
    disk.flip_bit(Path::new("/raft/0000000000000001.wal"), 9);
    let error = Wal::open(Arc::new(disk), Path::new(DIR), OPTIONS).err().unwrap();
    assert!(matches!(error, WalError::NewerFormat { found: 257, .. }), "{error}");
}
