//! Random histories with power cuts: what was flushed is there, what wasn't is whole or gone.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use mooseng_ports::disk::sim::{Fault, SimDisk};
use mooseng_ports::disk::{Disk, DiskFile, OpenMode, Space};
use mooseng_wal::{Appended, Entry, LogId, Options, Vote, Wal, WalError};
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
            let (index, (term, _)) =
                model.entries.iter().nth(rng.random_range(0..model.entries.len())).unwrap();
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

/// Entries that are appended early are there as far as the log says that they are flushed, whatever order the disk writes in; of later ones any
/// number may be, but none behind a gap.
#[test]
fn early_entries_survive_as_far_as_they_are_said_to_be_flushed() {
    let mut holes = 0;
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::default();
        let mut wal = open(&disk);
        let (mut model, mut term) = (Model::default(), 1);
        for _ in 0..80 {
            match rng.random_range(0..6) {
                0 => wal.flush().unwrap(),
                1 => step(&mut rng, &wal, &mut model, &mut term).unwrap(),
                _ => {
                    let index = model.last().map_or(0, |l| l + 1);
                    let payload = Bytes::from(vec![rng.random(); rng.random_range(0..3000)]);
                    model.entries.insert(index, (term, payload.clone()));
                    let entry = Entry { id: LogId { term, node: 1, index }, payload };
                    wal.append_early(vec![entry]).unwrap();
                }
            }
            assert_eq!(observe(&wal), model, "seed {seed}");
            if rng.random_ratio(1, 8) {
                let flushed = wal.flushed().map(|id| id.index);
                disk.crash(|n| rng.random_range(0..=n));
                wal = open(&disk);
                let seen = observe(&wal);
                let last = seen.last();
                assert!(last >= flushed, "seed {seed}: {last:?} of {flushed:?}");
                holes += usize::from(last < model.last());
                model.entries.retain(|index, _| Some(*index) <= last);
                assert_eq!(seen, model, "seed {seed}");
                assert_eq!(wal.flushed().map(|id| id.index), last, "seed {seed}");
            }
        }
    }
    assert!(holes > 100, "{holes}");
}

#[test]
fn entries_begin_in_pages_of_their_own_and_votes_take_little() {
    let disk = SimDisk::default();
    let options = Options { segment_bytes: 1 << 20, ..OPTIONS };
    let open = |disk: &SimDisk| Wal::open(Arc::new(disk.clone()), Path::new(DIR), options).unwrap();
    let wal = open(&disk);
    let mut index = 0;
    let mut append = |bytes: usize| {
        let entry = Entry { id: LogId { term: 1, node: 1, index }, payload: vec![1; bytes].into() };
        wal.append(vec![entry]).unwrap();
        index += 1;
        wal.bytes()
    };
    assert_eq!(append(10), 4096);
    assert_eq!(append(4096), 3 * 4096);
    // Whatever is left of the page: a padding has five bytes at least.
    for left in 0..12 {
        let before = append(10);
        let after = append(4096 - 28 - 29 - left);
        assert!(after.is_multiple_of(4096) && [1, 2].contains(&((after - before) / 4096)), "{left}: {after}");
    }
    let before = wal.bytes();
    wal.save_vote(Vote { term: 2, node: 2, committed: false }).unwrap();
    assert!(wal.bytes() - before < 100);
    let seen = observe(&wal);
    disk.crash(|_| 0);
    assert_eq!(observe(&open(&disk)), seen);
}

#[test]
fn a_hole_in_what_was_flushed_is_still_damage() {
    let entry = |index| Entry { id: LogId { term: 1, node: 1, index }, payload: vec![1; 500].into() };
    // Frames of a page each; the flush covers the first three.
    for (flipped, damage) in [(4_300, true), (12_400, false), (16_500, false)] {
        let disk = SimDisk::default();
        let wal = open(&disk);
        for index in 0..5 {
            wal.append_early(vec![entry(index)]).unwrap();
            if index == 2 {
                wal.flush().unwrap();
            }
        }
        disk.crash(|n| n);
        disk.flip_bit(Path::new("/raft/0000000000000001.wal"), flipped);
        match Wal::open(Arc::new(disk), Path::new(DIR), OPTIONS) {
            Ok(wal) => {
                assert!(!damage, "{flipped}");
                assert_eq!(wal.last().unwrap().index, if flipped < 16_000 { 2 } else { 3 });
            }
            Err(error) => {
                assert!(damage && matches!(error, WalError::Corrupt { .. }), "{flipped}: {error}");
            }
        }
    }
}

/// A process that was killed leaves what it wrote in the kernel's memory, flushed or not, and the next one reads it.
#[test]
fn what_a_restarted_log_shows_survives_a_power_loss_behind_it() {
    let entry = |index| Entry { id: LogId { term: 1, node: 1, index }, payload: vec![1; 500].into() };
    for flush_fails in [false, true] {
        let disk = SimDisk::default();
        let wal = open(&disk);
        wal.append(vec![entry(0)]).unwrap();
        wal.append_early(vec![entry(1)]).unwrap();
        if flush_fails {
            disk.set_fault(Fault::FlushFailing);
            assert!(wal.flush().is_err());
            disk.set_fault(Fault::None);
        }
        drop(wal);
        let wal = open(&disk);
        assert_eq!((wal.last().unwrap().index, wal.flushed().unwrap().index), (1, 1));
        drop(wal);
        disk.crash(|_| 0);
        assert_eq!(open(&disk).last().unwrap().index, 1, "the flush failed: {flush_fails}");
    }
}

#[test]
fn a_failed_flush_of_early_entries_poisons() {
    let disk = SimDisk::default();
    let wal = open(&disk);
    let entry = Entry { id: LogId { term: 1, node: 1, index: 0 }, payload: vec![1; 500].into() };
    assert_eq!(wal.append_early(vec![entry]).unwrap(), Appended::Written);
    disk.set_fault(Fault::FlushFailing);
    assert!(wal.flush().is_err());
    disk.set_fault(Fault::None);
    assert_eq!(wal.flushed(), None);
    assert!(matches!(wal.flush(), Err(WalError::Poisoned { .. })));
    assert!(matches!(wal.save_vote(Vote::default()), Err(WalError::Poisoned { .. })));
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

/// Filesystems that write elsewhere than before, or on thin volumes, may have no room for bytes that were allocated.
#[test]
fn no_room_within_a_segment_is_waited_over_and_leaves_nothing_behind() {
    let disk = SimDisk::default();
    let wal = open(&disk);
    let entry =
        |index, bytes| Entry { id: LogId { term: 1, node: 1, index }, payload: vec![7; bytes].into() };
    wal.append(vec![entry(0, 100)]).unwrap();
    disk.set_fault(Fault::Full);
    let refused = wal.append(vec![entry(1, 9_000)]).unwrap_err();
    assert!(refused.is_full(), "{refused}");
    disk.set_fault(Fault::None);
    // What fits of a write that fails is written all the same.
    let path = Path::new(DIR).join("0000000000000001.wal");
    let segment = disk.open(&path, OpenMode::Existing).unwrap();
    let mut bytes = vec![0; OPTIONS.segment_bytes as usize];
    segment.read_at(&mut bytes, 0).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() as u64 + 1;
    segment.write_at(&[9; 5_000], end.next_multiple_of(4096)).unwrap();
    // A shorter frame takes its place.
    let vote = Vote { term: 2, node: 2, committed: false };
    wal.save_vote(vote).unwrap();
    disk.crash(|n| n);
    let wal = open(&disk);
    assert_eq!((wal.vote(), wal.last().map(|id| id.index)), (Some(vote), Some(0)));
    wal.append(vec![entry(1, 9_000)]).unwrap();
    disk.crash(|_| 0);
    assert_eq!(open(&disk).last().unwrap().index, 1);
}

/// A disk whose flushes of files can be made to fail, after the writes before them went through.
struct Brittle {
    disk: SimDisk,
    failing: Arc<AtomicBool>,
}

struct BrittleFile(Arc<dyn DiskFile>, Arc<AtomicBool>);

impl Disk for Brittle {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(BrittleFile(self.disk.open(path, mode)?, self.failing.clone())))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.disk.space(path)
    }
}

impl DiskFile for BrittleFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.0.allocate(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.1.load(Ordering::Relaxed) { Err(io::Error::from_raw_os_error(5)) } else { self.0.sync_data() }
    }
}

#[test]
fn the_vote_survives_power_loss_at_any_point_of_a_new_segment() {
    let entry = |index| Entry { id: LogId { term: 1, node: 1, index }, payload: vec![7; 9000].into() };
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = SimDisk::default();
        let failing = Arc::new(AtomicBool::new(false));
        let brittle = Arc::new(Brittle { disk: disk.clone(), failing: failing.clone() });
        let wal = Wal::open(brittle, Path::new(DIR), OPTIONS).unwrap();
        let vote = Vote { term: 9, node: 2, committed: true };
        wal.save_vote(vote).unwrap();
        // Three entries fit into a segment of 96 KiB besides its reserve.
        let mut last = 0;
        for index in 0..3 {
            wal.append(vec![entry(index)]).unwrap();
            last = index;
        }
        failing.store(true, Ordering::Relaxed);
        assert!(wal.append(vec![entry(last + 1)]).is_err());
        failing.store(false, Ordering::Relaxed);
        let later = wal.append(vec![entry(last + 1)]);
        assert!(
            matches!(later, Err(WalError::Poisoned { .. })),
            "seed {seed}: nobody knows which segment would be found"
        );
        disk.crash(|n| rng.random_range(0..=n));
        let wal = open(&disk);
        assert_eq!(wal.vote(), Some(vote), "seed {seed}");
        let first_free = wal.last().unwrap().index + 1;
        assert!(first_free == last + 1 || first_free == last + 2, "seed {seed}");
        let more = rng.random_range(1..12);
        for index in first_free..first_free + more {
            wal.append(vec![entry(index)]).unwrap();
        }
        let purged = LogId { term: 1, node: 1, index: first_free + more - 1 };
        wal.purge(purged).unwrap();
        disk.crash(|n| rng.random_range(0..=n));
        let wal = open(&disk);
        assert_eq!(wal.vote(), Some(vote), "seed {seed}");
        assert_eq!(wal.purged(), Some(purged), "seed {seed}");
    }
}

#[test]
fn the_purge_point_leaves_about_as_many_bytes_as_asked() {
    let wal = open(&SimDisk::default());
    for index in 0..60 {
        wal.append(vec![Entry { id: LogId { term: 1, node: 1, index }, payload: vec![7; 9000].into() }])
            .unwrap();
    }
    assert!(wal.purge_point(u64::MAX).is_none());
    let before = wal.bytes();
    let point = wal.purge_point(3 * OPTIONS.segment_bytes).unwrap();
    wal.purge(LogId { term: 1, node: 1, index: point }).unwrap();
    assert!(wal.bytes() < before, "segments went");
    assert!(wal.bytes() >= 2 * OPTIONS.segment_bytes, "{}", wal.bytes());
}

#[test]
fn more_than_a_frame_holds_is_refused_before_anything_is_written() {
    let disk = SimDisk::default();
    let wal = open(&disk);
    let huge = vec![Entry { id: LogId { term: 1, node: 1, index: 0 }, payload: vec![0; 65 << 20].into() }];
    assert!(matches!(wal.append(huge), Err(WalError::TooLarge { .. })));
    wal.append(vec![Entry { id: LogId { term: 1, node: 1, index: 0 }, payload: Bytes::new() }]).unwrap();
    assert_eq!(open(&disk).last().unwrap().index, 0);
}

#[test]
fn damage_before_the_end_is_an_error_that_names_the_place() {
    let disk = SimDisk::default();
    let wal = open(&disk);
    for index in 0..10 {
        wal.append(vec![Entry { id: LogId { term: 1, node: 1, index }, payload: vec![1; 500].into() }])
            .unwrap();
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
