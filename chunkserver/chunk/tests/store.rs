//! A chunk store on simulated disks: order of appends, seals, rot, wrong disks, full and failing ones.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use bytes::Bytes;
use common::{TornDisk, open, open_with, options};
use mooseng_chunk::directory::{DirectoryStatus, IDENTITY_FILE};
use mooseng_chunk::layout::{RECORD_AT, block_at, entry_at};
use mooseng_chunk::{Admission, Append, Change, ChunkError, ChunkStore, StoreOptions, Written};
use mooseng_ports::disk::os::OsDisk;
use mooseng_ports::disk::sim::{Fault, SimDisk};
use mooseng_ports::disk::{Disk, DiskFile, OpenMode, read_all};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::{ChunkId, Epoch};

const ONE: ChunkId = ChunkId(0x01);
const EPOCH: Epoch = Epoch(1);

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn append(store: &ChunkStore, chunk: ChunkId, offset: u64, bytes: &[u8]) -> Result<Written, ChunkError> {
    store.write(&Append { chunk, epoch: EPOCH, offset, bytes: Bytes::copy_from_slice(bytes) })?;
    store.flush(chunk)
}

fn path(chunk: ChunkId) -> String {
    format!("/data/chunks/{:02x}/{:016x}", chunk.0 & 0xff, chunk.0)
}

#[test]
fn appends_of_all_sizes_are_read_back_on_a_real_filesystem() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let options = StoreOptions { state_dir: dir.path().join("state"), data_dirs: vec![data], ..options(&[]) };
    let all = pattern(1_500_000);
    let mut at = 0;
    let store = open_with(&OsDisk, options.clone());
    for n in [1usize, 4095, 4096, 4097, 100, 300_000, 1 << 20, 7].into_iter().cycle() {
        let n = n.min(all.len() - at);
        if n == 0 {
            break;
        }
        let done = append(&store, ONE, at as u64, &all[at..at + n]).unwrap();
        at += n;
        assert_eq!(done, Written { length: at as u64, flushed: at as u64 });
    }
    for store in [store, open_with(&OsDisk, options)] {
        for (offset, n) in [
            (0, 1),
            (0, 4096),
            (4095, 2),
            (262_143, 2),
            (1_000_000, 400_001),
            (1_499_999, 1),
            (5, 0),
            (300_000, 1 << 20),
        ] {
            let n = n.min(all.len() - offset);
            assert_eq!(store.read(ONE, offset as u64, n as u64).unwrap(), all[offset..offset + n]);
        }
        assert!(matches!(store.read(ONE, 1_499_999, 2), Err(ChunkError::TooShort { length: 1_500_000, .. })));
    }
}

#[test]
fn appends_come_in_order_and_repetitions_are_answered_again() {
    let store = open(&SimDisk::default(), &["/data"]);
    append(&store, ONE, 0, b"hello ").unwrap();
    assert_eq!(store.admit(ONE, EPOCH, 6, 5), Ok(Admission::Next));
    assert_eq!(store.admit(ONE, EPOCH, 11, 5), Ok(Admission::Early { length: 6 }));
    assert_eq!(store.admit(ONE, EPOCH, 0, 6), Ok(Admission::Again));
    assert_eq!(append(&store, ONE, 0, b"hello ").unwrap().length, 6);
    assert_eq!(append(&store, ONE, 2, b"llo").unwrap().length, 6);
    for (offset, bytes) in [(0, &b"HELLO "[..]), (7, b"x"), (4, b"o world")] {
        assert!(
            matches!(append(&store, ONE, offset, bytes), Err(ChunkError::OffsetMismatch { length: 6, .. })),
            "{offset}"
        );
    }
    append(&store, ONE, 6, b"world").unwrap();
    assert_eq!(store.read(ONE, 0, 11).unwrap(), &b"hello world"[..]);
    assert!(matches!(append(&store, ChunkId(9), 5, b"x"), Err(ChunkError::NotFound { .. })));
    assert!(matches!(append(&store, ONE, 64 << 20, b"x"), Err(ChunkError::TooLong { .. })));
}

#[test]
fn one_flush_an_append_and_none_twice() {
    let disk = SimDisk::default();
    let store = open(&disk, &["/data"]);
    append(&store, ONE, 0, &pattern(5000)).unwrap();
    let before = disk.flushes();
    append(&store, ONE, 5000, &pattern(9000)).unwrap();
    assert_eq!(disk.flushes() - before, 1);
    for n in 0..3u64 {
        store
            .write(&Append { chunk: ONE, epoch: EPOCH, offset: 14_000 + n, bytes: Bytes::from_static(b"x") })
            .unwrap();
    }
    for _ in 0..3 {
        assert_eq!(store.flush(ONE).unwrap().flushed, 14_003);
    }
    assert_eq!(disk.flushes() - before, 2, "waiting appends share a flush");
}

#[test]
fn a_seal_cuts_and_ends_the_chunk() {
    let disk = SimDisk::default();
    let store = open(&disk, &["/data"]);
    let all = pattern(10_000);
    append(&store, ONE, 0, &all).unwrap();
    assert!(matches!(store.seal(ONE, EPOCH, 10_001), Err(ChunkError::TooShort { .. })));
    store.seal(ONE, EPOCH, 9000).unwrap();
    store.seal(ONE, EPOCH, 9000).unwrap();
    assert!(matches!(store.seal(ONE, EPOCH, 8999), Err(ChunkError::Sealed { length: 9000, .. })));
    assert!(matches!(append(&store, ONE, 9000, b"x"), Err(ChunkError::Sealed { .. })));
    let never_seen = ChunkId(0x02);
    store.seal(never_seen, EPOCH, 0).unwrap();
    disk.crash(|_| 0);
    let flushes = disk.flushes();
    let store = open(&disk, &["/data"]);
    assert_eq!(
        disk.flushes() - flushes,
        2,
        "sealed chunks are neither reread nor flushed at a start, only the count of starts is, here and on the disk"
    );
    assert_eq!(store.read(ONE, 0, 9000).unwrap(), all[..9000]);
    assert!(store.read(ONE, 8999, 2).is_err());
    assert!(matches!(append(&store, ONE, 9000, b"x"), Err(ChunkError::Sealed { .. })));
    assert!(matches!(append(&store, never_seen, 0, b"x"), Err(ChunkError::Sealed { length: 0, .. })));
}

#[test]
fn stale_epochs_are_refused_after_a_restart_too() {
    let disk = SimDisk::default();
    let store = open(&disk, &["/data"]);
    append(&store, ONE, 0, b"abc").unwrap();
    store.see_epoch(0, Epoch(5)).unwrap();
    disk.crash(|_| 0);
    let store = open(&disk, &["/data"]);
    let stale = append(&store, ONE, 3, b"x").unwrap_err();
    assert_eq!(stale.code(), ErrorCode::StaleEpoch);
    assert_eq!(store.seal(ONE, EPOCH, 3).unwrap_err().code(), ErrorCode::StaleEpoch);
    assert_eq!(store.delete(ONE, EPOCH, 1, 0).unwrap_err().code(), ErrorCode::StaleEpoch);
    assert!(store.see_epoch(7, EPOCH).is_ok(), "another volume has epochs of its own");
    assert_eq!(store.incarnation(), 2);
}

/// Found by review: a chunkserver without its state directory began at 1 again, and every master refused it as a process of before.
#[test]
fn starts_are_counted_on_where_the_state_directory_is_lost() {
    let disk = SimDisk::default();
    for n in 1..=3 {
        assert_eq!(open(&disk, &["/data"]).incarnation(), n);
    }
    disk.crash(|_| 0);
    let elsewhere = StoreOptions { state_dir: "/state2".into(), ..options(&["/data"]) };
    assert_eq!(open_with(&disk, elsewhere).incarnation(), 4);
    let now_s = 1_700_000_000;
    let from = |disk: &SimDisk| {
        let mut id = || "disk-1".to_owned();
        ChunkStore::open_from(Arc::new(disk.clone()), options(&["/data"]), now_s, &mut id)
            .unwrap()
            .incarnation()
    };
    assert_eq!(from(&disk), 5, "the state directory of before comes back, and the disk knows better");
    let fresh = SimDisk::default();
    assert_eq!(
        (from(&fresh), from(&fresh)),
        (now_s, now_s + 1),
        "nothing knows: more than all that were counted"
    );
}

#[test]
fn a_deleted_chunk_stays_deleted() {
    let disk = SimDisk::default();
    let store = open(&disk, &["/data"]);
    append(&store, ONE, 0, b"abc").unwrap();
    store.delete(ONE, EPOCH, 1, 0).unwrap();
    store.delete(ONE, EPOCH, 1, 0).unwrap();
    assert_eq!(store.read(ONE, 0, 1).unwrap_err().code(), ErrorCode::NotFound);
    disk.crash(|_| 0);
    assert_eq!(open(&disk, &["/data"]).inventory(None, 10).0, vec![]);
}

#[test]
fn any_flipped_bit_is_noticed_by_name() {
    let all = pattern(300_000);
    // In a whole block, in the partial last one, in a table entry of the first and the second group.
    let places = [(block_at(3) + 17, 3), (block_at(73) + 5, 73), (entry_at(5), 5), (entry_at(70) + 2, 70)];
    for (at, block) in places {
        for seal in [false, true] {
            let disk = TornDisk::default();
            let store = open(&disk, &["/data"]);
            append(&store, ONE, 0, &all[..299_000]).unwrap();
            append(&store, ONE, 299_000, &all[299_000..]).unwrap();
            if seal {
                store.seal(ONE, EPOCH, 300_000).unwrap();
            }
            disk.flip(Path::new(&path(ONE)), at);
            let error = store.read(ONE, block * 4096, 100).unwrap_err();
            assert!(
                matches!(error, ChunkError::Corrupt { chunk: ONE, block: b, .. } if b == block),
                "{error}"
            );
            assert!(error.to_string().contains("block") && error.code() == ErrorCode::Corrupt);
            assert!(store.read(ONE, 0, 100).is_ok(), "other blocks are still read");
        }
    }
}

#[test]
fn a_rotten_record_costs_no_more_than_its_append() {
    let disk = TornDisk::default();
    let store = open(&disk, &["/data"]);
    append(&store, ONE, 0, &pattern(100)).unwrap();
    append(&store, ONE, 100, &pattern(100)).unwrap();
    drop(store);
    disk.flip(Path::new(&path(ONE)), RECORD_AT[1] + 20);
    let store = open(&disk, &["/data"]);
    assert_eq!(store.stat(ONE).unwrap().length, 100);
    drop(store);
    disk.flip(Path::new(&path(ONE)), RECORD_AT[0] + 20);
    let store = open(&disk, &["/data"]);
    assert_eq!(store.scan().damaged, 1);
    assert_eq!(store.read(ONE, 0, 1).unwrap_err().code(), ErrorCode::Corrupt);
    let listed = store.inventory(None, 9).0;
    assert!(listed.len() == 1 && !listed[0].sound, "a damaged copy is reported as one");
}

#[test]
fn a_wrong_disk_is_refused_by_name_and_the_others_go_on() {
    let disk = SimDisk::default();
    let two = ["/data", "/data2"];
    drop(open(&disk, &two));
    // Another chunkserver's disk.
    let file = disk.open(&Path::new("/data2").join(IDENTITY_FILE), OpenMode::Existing).unwrap();
    let text = String::from_utf8(read_all(&*file).unwrap()).unwrap();
    let rewrite = |text: &str| {
        file.set_len(0).unwrap();
        file.write_at(text.as_bytes(), 0).unwrap();
    };
    let refused = |word: &str| {
        let store = open(&disk, &two);
        let status = store.directories();
        assert!(status[0].writable && !status[1].writable);
        assert!(status[1].error.contains(word), "{}", status[1].error);
        append(&store, ChunkId(store.incarnation()), 0, b"goes on").unwrap();
    };
    rewrite(&text.replace("chunkserver cs-1", "chunkserver cs-9"));
    refused("cs-9");
    rewrite(&text.replace("cluster test", "cluster other"));
    refused("other");
    rewrite(&text.replace("disk disk-2", "disk foreign-disk"));
    refused("foreign-disk");
    rewrite(&text.replace("disk disk-2", "disk disk-1"));
    refused("configured as another");
    rewrite(&text.replace("format 1", "format 9"));
    refused("format 9");
    rewrite("garbage");
    refused(IDENTITY_FILE);
    disk.remove(&Path::new("/data2").join(IDENTITY_FILE)).unwrap();
    refused(IDENTITY_FILE);
}

#[test]
fn an_unmounted_disk_is_not_taken_for_a_new_one() {
    let disk = SimDisk::default();
    drop(open(&disk, &["/data"]));
    // The same state directory, with an empty directory where the disk was.
    let other = SimDisk::default();
    other.create_dir_all(Path::new("/state")).unwrap();
    let state =
        read_all(&*disk.open(Path::new("/state/chunkserver.state"), OpenMode::ReadOnly).unwrap()).unwrap();
    other.open(Path::new("/state/chunkserver.state"), OpenMode::Create).unwrap().write_at(&state, 0).unwrap();
    let store = open(&other, &["/data"]);
    assert!(
        store.directories()[0].error.contains("is the disk mounted?"),
        "{}",
        store.directories()[0].error
    );
    assert!(!store.is_writable());
    // What it says is to be done.
    let line = "\"disk disk-1 /data\"";
    assert!(store.directories()[0].error.contains(line), "{}", store.directories()[0].error);
    let end = "\"checksum none\"";
    assert!(store.directories()[0].error.contains(end), "{}", store.directories()[0].error);
    drop(store);
    let kept = String::from_utf8(state).unwrap();
    assert!(kept.contains("disk disk-1 /data\n"), "{kept}");
    let (lines, _) = kept.rsplit_once("checksum ").unwrap();
    let without = lines.replace("disk disk-1 /data\n", "") + "checksum none\n";
    let file = other.open(Path::new("/state/chunkserver.state"), OpenMode::Existing).unwrap();
    file.set_len(0).unwrap();
    file.write_at(without.as_bytes(), 0).unwrap();
    assert!(open(&other, &["/data"]).is_writable());
}

#[test]
fn a_full_disk_refuses_and_the_chunk_lives_on() {
    let disk = SimDisk::default();
    let store = open(&disk, &["/data"]);
    append(&store, ONE, 0, &pattern(5000)).unwrap();
    disk.set_fault(Fault::Full);
    assert_eq!(append(&store, ONE, 5000, &pattern(5000)).unwrap_err().code(), ErrorCode::NoSpace);
    assert_eq!(append(&store, ChunkId(2), 0, b"x").unwrap_err().code(), ErrorCode::NoSpace);
    assert_eq!(store.read(ONE, 0, 5000).unwrap(), pattern(5000));
    disk.set_fault(Fault::None);
    append(&store, ONE, 5000, &pattern(77)).unwrap();
    append(&store, ChunkId(2), 0, b"x").unwrap();
    assert_eq!(store.read(ONE, 5000, 77).unwrap(), pattern(77));
}

#[test]
fn the_reserve_is_left_free() {
    let disk = SimDisk::new(200_000);
    let store = open_with(&disk, StoreOptions { reserve_bytes: 100_000, ..options(&["/data"]) });
    append(&store, ONE, 0, &pattern(80_000)).unwrap();
    assert_eq!(append(&store, ONE, 80_000, &pattern(50_000)).unwrap_err().code(), ErrorCode::NoSpace);
    assert!(disk.space(Path::new("/")).unwrap().bytes_free >= 100_000);
}

#[test]
fn a_failing_disk_poisons_its_chunks_and_is_dropped() {
    let disk = SimDisk::default();
    let store = open(&disk, &["/data"]);
    for n in 1..=4 {
        append(&store, ChunkId(n), 0, &pattern(5000)).unwrap();
    }
    store
        .write(&Append { chunk: ONE, epoch: EPOCH, offset: 5000, bytes: Bytes::from_static(b"in doubt") })
        .unwrap();
    disk.set_fault(Fault::Failing);
    assert_eq!(store.flush(ONE).unwrap_err().code(), ErrorCode::DiskFailed);
    disk.set_fault(Fault::None);
    assert_eq!(
        store.flush(ONE).unwrap_err().code(),
        ErrorCode::DiskFailed,
        "a failed flush isn't retried and believed"
    );
    assert_eq!(append(&store, ONE, 5008, b"x").unwrap_err().code(), ErrorCode::DiskFailed);
    assert!(store.read(ONE, 5000, 8).is_err(), "bytes in doubt aren't read");
    assert_eq!(store.read(ONE, 0, 4096).unwrap(), pattern(5000)[..4096]);
    let sound =
        |store: &mooseng_chunk::ChunkStore| store.inventory(None, 9).0.iter().filter(|c| c.sound).count();
    assert_eq!(sound(&store), 3, "a copy in doubt doesn't count");
    append(&store, ChunkId(2), 5000, b"others go on").unwrap();
    disk.set_fault(Fault::Failing);
    for n in 2..=3 {
        assert!(append(&store, ChunkId(n), store.stat(ChunkId(n)).unwrap().length, b"x").is_err());
    }
    disk.set_fault(Fault::None);
    assert!(!store.is_writable(), "three failures drop the disk");
    assert_eq!(append(&store, ChunkId(4), 5000, b"x").unwrap_err().code(), ErrorCode::DiskFailed);
    assert!(store.directories()[0].error.contains("dropped"));
    // Whatever a restart finds is what was acknowledged.
    let store = open(&disk, &["/data"]);
    assert_eq!(store.read(ONE, 0, 5000).unwrap(), pattern(5000));
    assert!(store.is_writable());
}

#[test]
fn a_probe_notices_a_disk_that_takes_no_writes() {
    let disk = SimDisk::default();
    let store = open(&disk, &["/data"]);
    store.probe();
    assert!(store.is_writable());
    disk.set_fault(Fault::Failing);
    store.probe();
    assert!(!store.is_writable());
    disk.set_fault(Fault::None);
    store.probe();
    assert!(store.is_writable());
}

/// Two disks of different room.
#[derive(Clone)]
struct Two(SimDisk);

impl Disk for Two {
    fn open(&self, path: &Path, mode: OpenMode) -> std::io::Result<Arc<dyn mooseng_ports::disk::DiskFile>> {
        self.0.open(path, mode)
    }
    fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        self.0.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<String>> {
        self.0.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        self.0.sync_dir(path)
    }
    fn space(&self, path: &Path) -> std::io::Result<mooseng_ports::disk::Space> {
        let bytes_free = if path.starts_with("/b") { 1 << 30 } else { 1 << 20 };
        Ok(mooseng_ports::disk::Space { bytes_total: 1 << 31, bytes_free })
    }
}

#[test]
fn a_new_chunk_goes_to_the_roomiest_disk() {
    let store = open(&Two(SimDisk::default()), &["/a", "/b"]);
    append(&store, ONE, 0, b"x").unwrap();
    let chunks: Vec<u64> = store.directories().iter().map(|d| d.chunks).collect();
    assert_eq!(chunks, [0, 1]);
}

/// A disk of two directories, of which one hangs when it is told to.
#[derive(Clone)]
struct Hanging {
    under: Two,
    hangs: Arc<AtomicBool>,
    /// How many calls have come that hang.
    hung: Arc<AtomicU64>,
}

/// A file of the directory that may hang.
struct HangingFile(Arc<dyn DiskFile>, Hanging);

impl Hanging {
    fn wait(&self) {
        self.hung.fetch_add(u64::from(self.hangs.load(SeqCst)), SeqCst);
        while self.hangs.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    fn wait_until_it_hangs(&self, calls: u64) {
        while self.hung.load(SeqCst) < calls {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Disk for Hanging {
    fn open(&self, path: &Path, mode: OpenMode) -> std::io::Result<Arc<dyn DiskFile>> {
        let file = self.under.open(path, mode)?;
        if path.starts_with("/b") { Ok(Arc::new(HangingFile(file, self.clone()))) } else { Ok(file) }
    }
    fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        self.under.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<String>> {
        self.under.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.under.rename(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        if path.starts_with("/b") {
            self.wait();
        }
        self.under.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        self.under.sync_dir(path)
    }
    fn space(&self, path: &Path) -> std::io::Result<mooseng_ports::disk::Space> {
        self.under.space(path)
    }
}

impl DiskFile for HangingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.1.wait();
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.1.wait();
        self.0.write_at(bytes, offset)
    }
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, length: u64) -> std::io::Result<()> {
        self.0.set_len(length)
    }
    fn allocate(&self, length: u64) -> std::io::Result<()> {
        self.0.allocate(length)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.1.wait();
        self.0.sync_data()
    }
}

/// Found by review: a chunk's lock was held over the write, and the map of all chunks by whoever waited for that to tell masters how the chunk is. Every
/// other disk's chunks stood still, and then the heartbeats.
#[test]
fn a_disk_that_hangs_keeps_no_other_and_no_report_waiting() {
    let (hangs, hung) = Default::default();
    let disk = Hanging { under: Two(SimDisk::default()), hangs, hung };
    let other = ChunkId(9);
    // Where there is one directory, it goes there.
    append(&open_with(&disk, options(&["/a"])), other, 0, b"well").unwrap();
    let store = Arc::new(open_with(&disk, options(&["/a", "/b"])));
    for chunk in [1, 2, 3] {
        append(&store, ChunkId(chunk), 0, b"hello").unwrap();
    }
    assert!(store.directories().iter().map(|d| d.chunks).eq([1, 3]));
    disk.hangs.store(true, SeqCst);
    let on = store.clone();
    let appends = std::thread::spawn(move || append(&on, ChunkId(1), 5, b" world"));
    disk.wait_until_it_hangs(1);
    let on = store.clone();
    let seals = std::thread::spawn(move || on.seal(ChunkId(2), EPOCH, 5));
    disk.wait_until_it_hangs(2);
    let on = store.clone();
    let deletes = std::thread::spawn(move || on.delete(ChunkId(3), EPOCH, 1, 0));
    disk.wait_until_it_hangs(3);
    let (done, told) = std::sync::mpsc::channel();
    let on = store.clone();
    std::thread::spawn(move || {
        assert_eq!(on.inventory(None, 9).0.len(), 3);
        assert!(on.directories().iter().map(|d| d.chunks).eq([1, 2]));
        let (changes, _) = on.changes(0, 9).unwrap();
        assert_eq!(changes, [Change::Gone(ChunkId(3))], "nobody may count on it any more");
        assert_eq!((on.sealed_bytes(), on.next_sealed(None)), (0, None));
        assert_eq!(on.stat(ChunkId(1)).unwrap().length, 5, "as far as it is known");
        assert_eq!(on.admit(ChunkId(1), EPOCH, 5, 6), Ok(Admission::Next));
        assert_eq!(on.admit(ChunkId(2), EPOCH, 6, 1), Ok(Admission::Early { length: 5 }));
        assert_eq!(append(&on, other, 4, b" again").unwrap().flushed, 10);
        assert_eq!(on.read(other, 0, 10).unwrap(), "well again");
        assert_eq!(on.delete(other, EPOCH, 1, 0), Ok(()), "the other deletion waits for another disk");
        done.send(()).unwrap();
    });
    let outcome = told.recv_timeout(Duration::from_secs(10));
    disk.hangs.store(false, SeqCst);
    outcome.expect("somebody waits for the disk that hangs");
    assert_eq!(appends.join().unwrap().unwrap().flushed, 11);
    seals.join().unwrap().unwrap();
    deletes.join().unwrap().unwrap();
    assert_eq!(store.stat(ChunkId(1)).unwrap().length, 11);
    assert!(store.stat(ChunkId(2)).unwrap().sealed);
}

/// A disk of two directories, of which one says that it hangs when it is told to. Whoever calls it then fails.
#[derive(Clone)]
struct Hung(Two, Arc<AtomicBool>);

const HUNG_FOR: Duration = Duration::from_secs(7);

impl Hung {
    fn under(&self, path: &Path) -> &Two {
        assert_eq!(self.hangs(path), None, "somebody waits for it");
        &self.0
    }
}

impl Disk for Hung {
    fn open(&self, path: &Path, mode: OpenMode) -> std::io::Result<Arc<dyn DiskFile>> {
        self.under(path).open(path, mode)
    }
    fn create_dir_all(&self, path: &Path) -> std::io::Result<()> {
        self.under(path).create_dir_all(path)
    }
    fn list(&self, path: &Path) -> std::io::Result<Vec<String>> {
        self.under(path).list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.under(from).rename(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.under(path).remove(path)
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        self.under(path).sync_dir(path)
    }
    fn space(&self, path: &Path) -> std::io::Result<mooseng_ports::disk::Space> {
        self.under(path).space(path)
    }
    fn hangs(&self, path: &Path) -> Option<Duration> {
        (path.starts_with("/b") && self.1.load(SeqCst)).then_some(HUNG_FOR)
    }
}

#[test]
fn nothing_new_goes_to_a_disk_that_hangs_and_it_is_told_of() {
    let (two, hangs) = (Two(SimDisk::default()), Arc::new(AtomicBool::new(false)));
    let store = open_with(&Hung(two, hangs.clone()), options(&["/a", "/b"]));
    append(&store, ONE, 0, b"on the roomier one").unwrap();
    let before = store.directories();
    let told = |disks: &[DirectoryStatus]| -> Vec<(bool, Option<Duration>, u64)> {
        disks.iter().map(|d| (d.writable, d.hangs, d.chunks)).collect()
    };
    assert_eq!(told(&before), [(true, None, 0), (true, None, 1)]);
    assert_eq!((store.places(), store.place_of(ONE), store.place_of(ChunkId(2))), (2, Some(1), None));
    assert_eq!((store.answers(ONE, 1), store.hanging()), (Ok(()), vec![]));

    hangs.store(true, SeqCst);
    let now = store.directories();
    assert_eq!(told(&now), [(true, None, 0), (false, Some(HUNG_FOR), 1)]);
    assert_eq!((now[1].bytes_total, now[1].bytes_free), (before[1].bytes_total, before[1].bytes_free));
    assert!(now[1].error.contains("hasn't answered for 7 s"), "{}", now[1].error);
    assert_eq!(store.hanging(), [(Path::new("/b").to_owned(), HUNG_FOR)]);
    let refused = store.answers(ONE, 1).unwrap_err();
    assert!(matches!(refused, ChunkError::DiskHangs { chunk: ONE, seconds: 7, .. }), "{refused}");
    assert_eq!(refused.code(), ErrorCode::Busy);
    assert_eq!(store.answers(ONE, 0), Ok(()));
    append(&store, ChunkId(2), 0, b"on the other one").unwrap();
    assert_eq!(store.place_of(ChunkId(2)), Some(0));
    assert!(store.is_writable());
    // House-keeping leaves it alone.
    assert_eq!((store.purge_trash(9, 0), store.is_short_of_room()), (0, true));

    hangs.store(false, SeqCst);
    assert_eq!(told(&store.directories()), [(true, None, 1), (true, None, 1)]);
    assert_eq!(store.read(ONE, 0, 2).unwrap(), "on");
}

#[test]
fn inventories_come_in_pages() {
    let store = open(&SimDisk::default(), &["/data"]);
    for n in 1..=5 {
        append(&store, ChunkId(n), 0, &pattern(n as usize)).unwrap();
    }
    let (first, more) = store.inventory(None, 3);
    assert!(more && first.len() == 3);
    let (rest, more) = store.inventory(Some(first[2].chunk), 3);
    assert!(!more && rest.iter().map(|c| c.stat.length).eq([4, 5]));
}
