//! What a region's house-keeping does to a store: copies made, deleted, found corrupt; orders of leaders that lead no more.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::{FaultyDisk, Planted, TornDisk, open, open_with, options};
use mooseng_chunk::directory::IDENTITY_FILE;
use mooseng_chunk::layout::block_at;
use mooseng_chunk::state::STATE_FILE;
use mooseng_chunk::{Append, Change, ChunkError, ChunkStore, OpenError, StoreOptions};
use mooseng_ports::disk::sim::{Fault, SimDisk};
use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, Epoch};

const ONE: ChunkId = ChunkId(0x101);
const EPOCH: Epoch = Epoch(1);

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 7 + n / 4096) as u8).collect()
}

fn sealed(store: &ChunkStore, chunk: ChunkId, bytes: &[u8]) {
    let append = Append { chunk, epoch: EPOCH, offset: 0, bytes: Bytes::copy_from_slice(bytes) };
    store.write(&append).unwrap();
    store.seal(chunk, EPOCH, bytes.len() as u64).unwrap();
}

/// Copies as a pull does.
fn copy(
    from: &ChunkStore,
    to: &ChunkStore,
    chunk: ChunkId,
    length: u64,
    custody: u64,
) -> Result<bool, ChunkError> {
    let digest = from.digest(chunk, length)?;
    let Some(mut import) = to.import(chunk, EPOCH, length, &digest)? else { return Ok(false) };
    while import.left() > 0 {
        let bytes = import.left().min(100_000);
        import.write(&from.read(chunk, import.written(), bytes)?)?;
    }
    to.install(import, &digest, custody, 50)?;
    Ok(true)
}

#[test]
fn a_copy_is_the_same_and_survives() {
    for length in [0, 1, 4096, 4097, 299_000, 64 * 4096, 600_001] {
        let (disks, all) = ((SimDisk::default(), SimDisk::default()), pattern(length));
        let (from, to) = (open(&disks.0, &["/data"]), open(&disks.1, &["/data"]));
        sealed(&from, ONE, &all);
        assert!(copy(&from, &to, ONE, length as u64, 1).unwrap());
        assert!(!copy(&from, &to, ONE, length as u64, 1).unwrap(), "once is enough");
        disks.1.crash(|_| 0);
        let to = open(&disks.1, &["/data"]);
        assert_eq!((to.scan().chunks, to.scan().damaged), (1, 0));
        let stat = to.stat(ONE).unwrap();
        assert!(stat.sealed && stat.length == length as u64 && to.inventory(None, 9).0[0].sound);
        assert_eq!(to.read(ONE, 0, length as u64).unwrap(), all);
        assert_eq!(to.digest(ONE, length as u64).unwrap(), from.digest(ONE, length as u64).unwrap());
    }
}

#[test]
fn a_copy_up_to_the_length_that_was_agreed_has_the_shorter_ones_digest() {
    let (disks, all) = ((SimDisk::default(), SimDisk::default(), SimDisk::default()), pattern(10_000));
    let (long, short, new) =
        (open(&disks.0, &["/data"]), open(&disks.1, &["/data"]), open(&disks.2, &["/data"]));
    sealed(&long, ONE, &all);
    for length in [9_000, 8192] {
        let other = ChunkId(ONE.0 + length);
        sealed(&long, other, &all);
        sealed(&short, other, &all[..length as usize]);
        assert_eq!(long.digest(other, length).unwrap(), short.digest(other, length).unwrap());
        assert!(copy(&long, &new, other, length, 1).unwrap());
        assert_eq!(new.digest(other, length).unwrap(), short.digest(other, length).unwrap());
        assert!(short.digest(other, length + 1).is_err());
    }
}

#[test]
fn what_differs_from_its_source_is_not_taken_up() {
    let (disk, all) = (SimDisk::default(), pattern(9_000));
    let from = open(&SimDisk::default(), &["/data"]);
    let to = open(&disk, &["/data"]);
    sealed(&from, ONE, &all);
    let digest = from.digest(ONE, 9_000).unwrap();
    let mut import = to.import(ONE, EPOCH, 9_000, &digest).unwrap().unwrap();
    assert!(matches!(to.import(ONE, EPOCH, 9_000, &digest), Err(ChunkError::Importing { .. })));
    let mut other = all.clone();
    other[5_000] ^= 1;
    import.write(&other.into()).unwrap();
    assert!(matches!(to.install(import, &digest, 1, 0), Err(ChunkError::Different { chunk: ONE })));
    let import = to.import(ONE, EPOCH, 9_000, &digest).unwrap().unwrap();
    assert!(matches!(to.install(import, &digest, 1, 0), Err(ChunkError::TooShort { .. })));
    assert!(disk.list(Path::new("/data/chunks/01")).unwrap().is_empty(), "nothing stays of what failed");
    // A crash in the middle: the start cleans up.
    let mut import = to.import(ONE, EPOCH, 9_000, &digest).unwrap().unwrap();
    import.write(&Bytes::copy_from_slice(&all[..100])).unwrap();
    std::mem::forget(import);
    let to = open(&disk, &["/data"]);
    assert!(disk.list(Path::new("/data/chunks/01")).unwrap().is_empty());
    assert!(to.inventory(None, 9).0.is_empty());
}

#[test]
fn a_flipped_bit_is_reported_once_and_a_copy_replaces_it() {
    let (rotten, all) = (TornDisk::default(), pattern(300_000));
    let (good, bad) = (open(&SimDisk::default(), &["/data"]), open(&rotten, &["/data"]));
    sealed(&good, ONE, &all);
    sealed(&bad, ONE, &all);
    let mut at = bad.next_change();
    rotten.flip(Path::new("/data/chunks/01/0000000000000101"), block_at(3) + 5);
    assert!(bad.changes(at, 9).unwrap().0.is_empty());
    assert_eq!(bad.next_sealed(None), Some((ONE, 300_000)));
    for _ in 0..2 {
        assert!(matches!(bad.read(ONE, 0, 20_000), Err(ChunkError::Corrupt { block: 3, .. })));
    }
    assert!(bad.read(ONE, 20_000, 20_000).is_ok(), "the other blocks are read");
    let (changes, to) = bad.changes(at, 9).unwrap();
    assert!(matches!(changes[..], [Change::Is(info)] if info.chunk == ONE && !info.sound));
    assert_eq!(bad.next_sealed(None), None, "it needn't be looked at again");
    at = to;
    assert!(copy(&good, &bad, ONE, 300_000, 1).unwrap());
    assert_eq!(bad.read(ONE, 0, 300_000).unwrap(), all);
    let (changes, _) = bad.changes(at, 9).unwrap();
    assert!(matches!(changes[..], [Change::Is(info)] if info.sound && info.stat.sealed));
}

/// Found by the simulation: the disk failed in the midst of it, and the bad copy, which held acknowledged bytes, was in the trash already.
#[test]
fn a_bad_copy_stays_until_another_one_has_its_place() {
    let (all, path) = (pattern(300_000), "/data/chunks/01/0000000000000101");
    let good = open(&SimDisk::default(), &["/data"]);
    sealed(&good, ONE, &all);
    let bad = || {
        let disk = SimDisk::default();
        let store = open_with(&disk, StoreOptions { trash: true, ..options(&["/data"]) });
        sealed(&store, ONE, &all);
        disk.flip_bit(Path::new(path), block_at(3) + 5);
        assert!(store.read(ONE, 0, 20_000).is_err());
        (disk, store)
    };
    let (disk, store) = bad();
    disk.set_fault(Fault::FlushFailing);
    assert!(copy(&good, &store, ONE, 300_000, 0).is_err());
    assert_eq!(store.read(ONE, 20_000, 20_000).unwrap(), all[20_000..40_000]);
    let mut replaced = false;
    for operations in 0.. {
        let (disk, store) = bad();
        disk.lose_power_after(operations);
        let made = copy(&good, &store, ONE, 300_000, 1).is_ok();
        disk.crash(|_| 0);
        let store = open(&disk, &["/data"]);
        assert_eq!(store.read(ONE, 20_000, 20_000).unwrap(), all[20_000..40_000], "cut at {operations}");
        replaced |= store.read(ONE, 0, 300_000).is_ok_and(|bytes| bytes == all);
        if made {
            break;
        }
    }
    assert!(replaced);
}

/// Found by review: masters, who aren't told of what lies on a disk that was dropped, order a copy. It was taken for one that is here already, or had to wait for the
/// dead disk to remove its own.
#[test]
fn a_copy_on_a_disk_that_was_dropped_is_in_nobodys_way() {
    let (disk, all) = (FaultyDisk::default(), pattern(30_000));
    let good = open(&SimDisk::default(), &["/data"]);
    // Five are as good as those elsewhere, the last was to be cut.
    let chunks = [1, 2, 3, 4, 5].map(ChunkId);
    for (store, length) in [(&good, 20_000), (&open(&disk, &["/a"]), 30_000)] {
        for chunk in chunks {
            let bytes = if chunk == chunks[4] { &all[..length] } else { &all[..20_000] };
            let append = Append { chunk, epoch: EPOCH, offset: 0, bytes: Bytes::copy_from_slice(bytes) };
            store.write(&append).unwrap();
            store.flush(chunk).unwrap();
            if bytes.len() == 20_000 {
                store.seal(chunk, EPOCH, 20_000).unwrap();
            }
        }
    }
    let store = open(&disk, &["/a", "/b"]);
    let dead = Some(Planted { below: "/a", opens_only: false, errno: 5 });
    disk.plant(dead);
    for chunk in &chunks[1..4] {
        assert_eq!(store.read(*chunk, 0, 100).unwrap_err().code(), ErrorCode::DiskFailed);
    }
    assert!(store.directories()[0].error.contains("dropped"));
    assert!(store.inventory(None, 9).0.is_empty());
    for chunk in chunks {
        // What nobody has met an error in looks well, and is read.
        disk.plant(if chunk == chunks[0] { None } else { dead });
        assert!(copy(&good, &store, chunk, 20_000, 1).unwrap(), "chunk {chunk} isn't here");
        assert_eq!(store.read(chunk, 0, 20_000).unwrap(), all[..20_000]);
    }
    assert_eq!(store.inventory(None, 9).0.iter().filter(|info| info.sound).count(), 5);
    drop(store);
    // The disk comes back with what it had.
    disk.plant(None);
    let store = open(&disk, &["/a", "/b"]);
    assert_eq!(store.inventory(None, 9).0.len(), 5);
    for chunk in chunks {
        assert_eq!(
            store.stat(chunk).unwrap().length,
            20_000,
            "a sealed copy is better than a longer open one"
        );
        assert_eq!(store.read(chunk, 0, 20_000).unwrap(), all[..20_000]);
    }
}

/// Found by review: a copy whose checksums couldn't be read was asked for them for ever, for nobody was told.
#[test]
fn a_digest_that_cant_be_read_is_told_like_any_bad_block() {
    let disk = FaultyDisk::default();
    let store = open(&disk, &["/data"]);
    sealed(&store, ONE, &pattern(9_000));
    let at = store.next_change();
    disk.plant(Some(Planted { below: "/data/chunks", opens_only: false, errno: 5 }));
    assert_eq!(store.digest(ONE, 9_000).unwrap_err().code(), ErrorCode::DiskFailed);
    let (changes, _) = store.changes(at, 9).unwrap();
    assert!(matches!(changes[..], [Change::Is(info)] if info.chunk == ONE && !info.sound), "{changes:?}");
}

/// Found by review: a process without descriptors had its good copies replaced, and dropped its disks.
#[test]
fn what_the_process_lacks_condemns_no_copy_and_no_disk() {
    let all = pattern(9_000);
    let open_chunk = ChunkId(5);
    for errno in [12, 23, 24] {
        let disk = FaultyDisk::default();
        let append = |store: &ChunkStore, chunk, offset| {
            let bytes = Bytes::copy_from_slice(&all);
            store.write(&Append { chunk, epoch: EPOCH, offset, bytes })?;
            store.flush(chunk)
        };
        let digest = {
            let store = open(&disk, &["/data"]);
            (1..=4).for_each(|n| sealed(&store, ChunkId(n), &all));
            append(&store, open_chunk, 0).unwrap();
            store.digest(ChunkId(1), 9_000).unwrap()
        };
        // With no file open.
        let store = open(&disk, &["/data"]);
        let at = store.next_change();
        disk.plant(Some(Planted { below: "/data/chunks", opens_only: true, errno }));
        let lacks = |error: ChunkError| {
            assert!(matches!(error, ChunkError::Lacking { .. }), "{error}");
            assert_eq!(error.code(), ErrorCode::Busy);
        };
        for n in 1..=4 {
            lacks(store.read(ChunkId(n), 0, 100).unwrap_err());
            lacks(store.digest(ChunkId(n), 9_000).unwrap_err());
        }
        lacks(append(&store, open_chunk, 9_000).unwrap_err());
        for n in 6..=9 {
            lacks(append(&store, ChunkId(n), 0).unwrap_err());
            lacks(store.import(ChunkId(n), EPOCH, 9_000, &digest).map(drop).unwrap_err());
        }
        // Chunks that aren't seen at the start would be missing ones.
        let opened = ChunkStore::open(Arc::new(disk.clone()), options(&["/data"]), &mut || "d".into());
        assert!(matches!(opened, Err(OpenError::Lacking { .. })));
        disk.plant(None);
        assert!(store.changes(at, 99).unwrap().0.is_empty());
        assert!(store.is_writable());
        append(&store, open_chunk, 9_000).unwrap();
        append(&store, ChunkId(6), 0).unwrap();
        assert_eq!(store.inventory(None, 9).0.iter().filter(|info| info.sound).count(), 6);
        assert_eq!(store.read(ChunkId(1), 0, 9_000).unwrap(), all);
    }
}

/// Found by review: the read's view of the last block was that of before the cut, and the copy, which is as good as any, was replaced.
#[test]
fn a_seal_that_cuts_a_chunk_under_a_read_makes_no_copy_bad() {
    let disk = FaultyDisk::default();
    let store = Arc::new(open(&disk, &["/data"]));
    let all = pattern(10_000);
    let append = Append { chunk: ONE, epoch: EPOCH, offset: 0, bytes: Bytes::copy_from_slice(&all) };
    store.write(&append).unwrap();
    store.flush(ONE).unwrap();
    let on = store.clone();
    disk.before_read(move || on.seal(ONE, EPOCH, 9_000).unwrap());
    assert_eq!(store.read(ONE, 8_192, 100).unwrap(), all[8_192..8_292]);
    assert!(store.inventory(None, 9).0[0].sound);
    assert!(matches!(store.read(ONE, 8_192, 900), Err(ChunkError::TooShort { length: 9_000, .. })));
}

/// Found by review: an order that waited behind another was carried out after heartbeats by which its master took it for done or left.
#[test]
fn a_deletion_whose_time_is_over_is_left() {
    let store = open(&SimDisk::default(), &["/data"]);
    sealed(&store, ONE, &pattern(100));
    let at = store.next_change();
    assert!(!store.delete_while(ONE, EPOCH, 1, 0, || false).unwrap());
    assert!(store.changes(at, 9).unwrap().0.is_empty());
    assert!(store.stat(ONE).unwrap().sealed);
    assert!(store.delete_while(ONE, EPOCH, 1, 0, || true).unwrap());
    assert_eq!(store.changes(at, 9).unwrap().0, [Change::Gone(ONE)]);
}

#[test]
fn deleted_files_wait_in_the_trash() {
    let disk = SimDisk::default();
    let with_trash = || open_with(&disk, StoreOptions { trash: true, ..options(&["/data"]) });
    let store = with_trash();
    for n in [1, 2] {
        sealed(&store, ChunkId(n), &pattern(5_000));
    }
    let at = store.next_change();
    store.delete(ChunkId(1), EPOCH, 1, 100).unwrap();
    store.delete(ChunkId(2), EPOCH, 1, 200).unwrap();
    assert_eq!(store.changes(at, 9).unwrap().0, [Change::Gone(ChunkId(1)), Change::Gone(ChunkId(2))]);
    let trash = || disk.list(Path::new("/data/trash")).unwrap();
    assert_eq!(trash().len(), 2);
    disk.crash(|_| 0);
    let store = with_trash();
    assert!(store.inventory(None, 9).0.is_empty());
    assert_eq!(store.purge_trash(159, 60), 0);
    assert_eq!((store.purge_trash(160, 60), trash().len()), (1, 1));
    assert_eq!((store.purge_trash(260, 60), trash().len()), (1, 0));
    // Space is worth more than the trash.
    sealed(&store, ChunkId(3), &pattern(5_000));
    store.delete(ChunkId(3), EPOCH, 1, 300).unwrap();
    drop(store);
    let left = |bytes| {
        let reserve_bytes = disk.space(Path::new("/data")).unwrap().bytes_free - bytes;
        StoreOptions { trash: true, reserve_bytes, ..options(&["/data"]) }
    };
    assert_eq!(open_with(&disk, left(2 * CHUNK_BYTES_MAX)).purge_trash(301, 60), 0);
    // No chunk is placed where a whole one hasn't room.
    assert_eq!(open_with(&disk, left(CHUNK_BYTES_MAX - 1)).purge_trash(301, 60), 1);
}

/// An order that a leader gave before it was paused comes after its successor's: the chunkserver knows better, also after a restart.
#[test]
fn a_leader_that_leads_no_more_deletes_nothing() {
    let disk = SimDisk::default();
    let (store, other) = (open(&disk, &["/data"]), open(&SimDisk::default(), &["/data"]));
    sealed(&other, ONE, &pattern(100));
    assert!(copy(&other, &store, ONE, 100, 7).unwrap());
    assert!(matches!(
        store.delete(ONE, EPOCH, 6, 0),
        Err(ChunkError::StaleCustody { custody: 6, newest: 7 })
    ));
    disk.crash(|_| 0);
    let store = open(&disk, &["/data"]);
    assert!(store.delete(ONE, EPOCH, 6, 0).is_err());
    assert!(copy(&other, &store, ONE, 100, 6).is_ok(), "it is there already: nothing is ordered");
    store.delete(ONE, EPOCH, 7, 0).unwrap();
    assert!(copy(&other, &store, ONE, 100, 6).is_err());
}

#[test]
fn a_chunk_is_sealed_where_it_is() {
    let store = open(&SimDisk::default(), &["/data"]);
    let append = |offset, bytes: &'static [u8]| {
        store.write(&Append { chunk: ONE, epoch: EPOCH, offset, bytes: Bytes::from_static(bytes) })
    };
    append(0, b"abc").unwrap();
    store.flush(ONE).unwrap();
    append(3, b"de").unwrap();
    assert_eq!(store.seal_here(ONE, EPOCH).unwrap(), 5);
    assert_eq!(store.seal_here(ONE, EPOCH).unwrap(), 5);
    assert!(matches!(append(5, b"f"), Err(ChunkError::Sealed { length: 5, .. })));
    assert_eq!(store.read(ONE, 0, 5).unwrap(), &b"abcde"[..]);
}

fn state(disk: &SimDisk) -> String {
    let file = disk.open(&Path::new("/state").join(STATE_FILE), OpenMode::ReadOnly).unwrap();
    String::from_utf8(read_all(&*file).unwrap()).unwrap()
}

fn put_state(disk: &SimDisk, text: &str) {
    write_atomically(disk, &Path::new("/state").join(STATE_FILE), text.as_bytes()).unwrap();
}

/// Found by review: a bit that fell over in an epoch was believed, and a home that was deposed could append again.
#[test]
fn a_state_file_that_is_damaged_stops_the_start_and_says_what_to_do() {
    let disk = SimDisk::default();
    let store = open(&disk, &["/data"]);
    store.see_epoch(3, Epoch(9)).unwrap();
    sealed(&store, ONE, &pattern(100));
    drop(store);
    let whole = state(&disk);
    put_state(&disk, &whole.replace("epoch 3 9", "epoch 3 1"));
    let opened = ChunkStore::open(Arc::new(disk.clone()), options(&["/data"]), &mut || "d".into());
    let refused = opened.map(drop).unwrap_err().to_string();
    assert!(refused.starts_with("the state directory /state can't be used: "), "{refused}");
    assert!(refused.contains(STATE_FILE) && refused.contains("set the file aside"), "{refused}");
    // What it says is to be done.
    disk.remove(&Path::new("/state").join(STATE_FILE)).unwrap();
    let store = open(&disk, &["/data"]);
    assert_eq!(store.read(ONE, 0, 100).unwrap(), pattern(100));
    assert_eq!((store.incarnation(), store.epoch_of(0)), (2, EPOCH), "the disk knows");
}

#[test]
fn a_state_file_of_an_earlier_release_is_read_once_and_written_anew() {
    let disk = SimDisk::default();
    drop(open(&disk, &["/data"]));
    let now = state(&disk);
    let begins = "format 4\ncluster test\nchunkserver cs-1\nincarnation 1\n";
    assert!(now.starts_with(begins) && now.contains("\nchecksum "), "{now}");
    put_state(&disk, "format 1\nincarnation 4\ncustody 6\nepoch 3 9\ndisk disk-1 /data\n");
    let store = open(&disk, &["/data"]);
    assert_eq!((store.incarnation(), store.epoch_of(3)), (5, Epoch(9)));
    let after = state(&disk);
    let lines = "format 4\ncluster test\nchunkserver cs-1\nincarnation 5\ncustody 6\nepoch 3 9\ndisk disk-1 /data\nchecksum ";
    assert!(after.starts_with(lines), "{after}");
}

/// Found by review: a chunkserver that was started with another one's state directory went by that one's epochs, and counted on its starts.
#[test]
fn anothers_state_directory_is_refused_and_left_as_it_is() {
    let disk = SimDisk::default();
    drop(open(&disk, &["/data"]));
    let before = state(&disk);
    for (cluster, chunkserver) in [("test", "cs-2"), ("other", "cs-1")] {
        let (cluster, chunkserver) = (cluster.to_owned(), chunkserver.to_owned());
        let says = format!(
            "the state directory /state is that of chunkserver cs-1 in cluster test, not of chunkserver {chunkserver} in cluster {cluster}: "
        );
        let other = StoreOptions { cluster, chunkserver, ..options(&["/data2"]) };
        let opened = ChunkStore::open(Arc::new(disk.clone()), other, &mut || "d".into());
        let refused = opened.map(drop).unwrap_err();
        assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}");
        let refused = refused.to_string();
        assert!(refused.starts_with(&says), "{refused}");
        // Who has renamed it is told what to do.
        assert!(refused.contains("(mooseng chunkservers drain cs-1)"), "{refused}");
    }
    assert_eq!(state(&disk), before);
    assert!(disk.open(&Path::new("/data2").join(IDENTITY_FILE), OpenMode::ReadOnly).is_err());
    assert_eq!(open(&disk, &["/data"]).incarnation(), 2);
}

#[test]
fn an_earlier_releases_state_file_gets_an_owner_once_a_disk_speaks_for_it() {
    let disk = SimDisk::default();
    drop(open(&disk, &["/data"]));
    // Another chunkserver's, whose disk had the same place.
    put_state(&disk, "format 2\nincarnation 4\ndisk disk-9 /data\n");
    let store = open(&disk, &["/data"]);
    assert!(store.directories()[0].error.contains("should be disk disk-9"), "{:?}", store.directories());
    drop(store);
    assert!(!state(&disk).contains("chunkserver"), "{}", state(&disk));
    put_state(&disk, "format 2\nincarnation 4\ndisk disk-1 /data\n");
    drop(open(&disk, &["/data"]));
    assert!(state(&disk).contains("\nchunkserver cs-1\n"), "{}", state(&disk));
}
