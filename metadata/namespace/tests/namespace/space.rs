//! Data in chunks, large truncations, reaping.

use mooseng_namespace::upkeep;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, FILE_SIZE_MAX, VolumeId};

use crate::harness::*;
use crate::model::*;

const EFBIG: u32 = 27;

async fn allocate(client: &Client<'_>, inode: u64) -> u64 {
    match client.ask(Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] })).await {
        Reply::Allocated(a) => a.place.unwrap().chunk,
        other => panic!("{other:?}"),
    }
}

fn run(offset: u64, chunk: u64, chunk_offset: u64, length: u64) -> WritePiece {
    let run = ChunkRun { chunk, chunk_offset, length };
    WritePiece { offset, data: Some(write_piece::Data::Run(run)) }
}

fn write(inode: u64, pieces: Vec<WritePiece>) -> Op {
    Op::Write(Write { inode, pieces, ..Default::default() })
}

/// A file of many extents: runs of one chunk with holes between.
async fn scattered(client: &Client<'_>, text: &str, extents: u64) -> (u64, u64) {
    let inode = client.create(ROOT, text).await;
    let chunk = allocate(client, inode).await;
    for first in (0..extents).step_by(250) {
        let pieces = (first..extents.min(first + 250)).map(|i| run(i * 20, chunk, i * 10, 10)).collect();
        assert_eq!(client.errno(write(inode, pieces)).await, 0);
    }
    (inode, chunk)
}

/// A write of several pieces loads the parts of the file around each; what lies between them is none of its business.
#[tokio::test]
async fn a_write_in_several_places_leaves_what_lies_between() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    for gap in [0, 10] {
        let inode = client.create(ROOT, &format!("f{gap}")).await;
        let (chunk, newer) = (allocate(&client, inode).await, allocate(&client, inode).await);
        let step = 10 + gap;
        for i in 0..300 {
            // Backwards in the chunk, so that neighbours stay extents of their own.
            assert_eq!(client.errno(write(inode, vec![run(i * step, chunk, (300 - i) * 10, 10)])).await, 0);
        }
        let mut expected = client.read(inode).await;
        let part = 100 * step;
        let pieces = vec![run(0, newer, 0, part), run(2 * part, newer, part, part - gap)];
        assert_eq!(client.errno(write(inode, pieces)).await, 0);
        for (at, i) in (0..part).zip(0..).chain((2 * part..3 * part - gap).zip(part..)) {
            expected[at as usize] = chunk_byte(newer, i);
        }
        assert!(client.read(inode).await == expected, "gap {gap}");
        volume.check();
    }
}

fn size(inode: u64, size: u64) -> Op {
    Op::SetAttr(SetAttr { inode, size: Some(size), ..Default::default() })
}

#[tokio::test]
async fn a_large_truncation_is_worked_off_in_pieces() {
    let volume = Volume::with_faults(9, 0.1).await;
    let client = volume.client(1).await;
    let (inode, chunk) = scattered(&client, "f", 2_000).await;
    volume.check();
    assert_eq!(attr(client.ask(size(inode, 15)).await).size, 15);
    volume.check();
    let trims = async || {
        let list = volume
            .driver
            .transact(deadline(), |tx| Box::pin(upkeep::list_trims(tx, VolumeId(0), None, 10)))
            .await;
        list.unwrap().0
    };
    assert_eq!(trims().await.len(), 1);
    assert_eq!(client.read(inode).await.len(), 15);
    // Seeking sees nothing of what is dead.
    let hole = client.ask(Op::Seek(Seek { inode, offset: 0, whence: SeekWhence::Hole as i32 })).await;
    assert_eq!(hole, Reply::Seek(SeekTo { offset: 10 }));
    volume.own(Op::Reap(Reap { inodes: vec![inode] })).await;
    assert!(trims().await.is_empty());
    volume.check();
    assert_eq!(client.attr(inode).await.blocks, 1);
    let (users, _) = volume
        .driver
        .transact(deadline(), |tx| Box::pin(upkeep::chunk_users(tx, ChunkId(chunk), 10)))
        .await
        .unwrap();
    assert_eq!(users, [(mooseng_wire::InodeId(inode), 1)]);
}

#[tokio::test]
async fn what_was_cut_off_never_comes_back() {
    for grow in [true, false] {
        let volume = Volume::new().await;
        let client = volume.client(1).await;
        let (inode, _) = scattered(&client, "f", 2_000).await;
        client.ask(size(inode, 10)).await;
        if grow {
            client.ask(size(inode, 40_000)).await;
        } else {
            client.write(inode, 39_999, b"x").await;
        }
        let mut expected: Vec<u8> = (0..10).map(|i| chunk_byte(1, i)).collect();
        expected.resize(40_000, 0);
        if !grow {
            expected[39_999] = b'x';
        }
        assert!(client.read(inode).await == expected);
        volume.check();
        // Twice, ever shorter, without a break.
        let (inode, _) = scattered(&client, "g", 2_000).await;
        client.ask(size(inode, 1_000)).await;
        client.ask(size(inode, 5)).await;
        client.ask(size(inode, 30_000)).await;
        let read = client.read(inode).await;
        assert!(read[5..].iter().all(|b| *b == 0) && read.len() == 30_000);
        volume.check();
    }
}

#[tokio::test]
async fn large_orphans_are_freed_in_pieces() {
    let volume = Volume::with_faults(4, 0.1).await;
    let client = volume.client(1).await;
    let (one, _) = scattered(&client, "one", 3_000).await;
    let (two, chunk) = scattered(&client, "two", 900).await;
    client.ask(Op::SetXattr(SetXattr { inode: one, name: name("user.x"), ..Default::default() })).await;
    for text in ["one", "two"] {
        client.ask(Op::Unlink(Unlink { parent: ROOT, name: name(text) })).await;
    }
    let orphans = volume.orphans().await;
    assert_eq!(orphans, [one, two]);
    volume.own(Op::Reap(Reap { inodes: orphans })).await;
    volume.check();
    assert!(volume.orphans().await.is_empty());
    assert_eq!(client.errno(Op::GetAttr(GetAttr { inode: one })).await, ESTALE);
    // The chunks have no users left; sealed, they may go.
    assert!(!bury(&volume, chunk, i64::MAX).await, "an open chunk is buried");
    volume.own(Op::SealChunk(SealChunk { chunk, acknowledged: 9_000, failed: vec![] })).await;
    assert!(bury(&volume, chunk, i64::MAX).await);
    let listed = listed(&volume).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].location.as_ref().unwrap().copies, ["cs-1", "cs-2"]);
    volume.check();
}

async fn bury(volume: &Volume, chunk: u64, sealed_before_ns: i64) -> bool {
    let bury = volume
        .driver
        .transact(deadline(), |tx| Box::pin(upkeep::bury_chunk(tx, ChunkId(chunk), 5, sealed_before_ns)));
    bury.await.unwrap().0
}

async fn listed(volume: &Volume) -> Vec<upkeep::ChunkListing> {
    let list =
        volume.driver.transact(deadline(), |tx| Box::pin(upkeep::list_chunks(tx, VolumeId(0), None, 10)));
    list.await.unwrap().0
}

async fn dead(volume: &Volume) -> Vec<(ChunkId, Vec<String>)> {
    let list = volume.driver.transact(deadline(), |tx| Box::pin(upkeep::list_dead(tx, None, 10)));
    list.await.unwrap().0.into_iter().map(|(chunk, record)| (chunk, record.copies)).collect()
}

/// A session may have appended what it is about to name: its sealed chunk waits, unless the session is gone.
#[tokio::test]
async fn a_chunk_dies_once_nothing_can_name_it() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let (one, two) = (allocate(&client, inode).await, allocate(&client, inode).await);
    for chunk in [one, two] {
        assert_eq!(client.errno(write(inode, vec![run(0, chunk, 0, 10)])).await, 0);
        volume.own(Op::SealChunk(SealChunk { chunk, acknowledged: 10, failed: vec![] })).await;
    }
    let sealed_ns = listed(&volume).await[0].record.sealed_ns;
    assert!(sealed_ns > 0);
    assert_eq!(listed(&volume).await[1].used.bytes, 10);
    assert!(!bury(&volume, two, i64::MAX).await, "it is in use");
    // Overwritten, the first one is of no use; its owner lives, and it was sealed just now.
    assert!(!bury(&volume, one, sealed_ns - 1).await);
    assert!(bury(&volume, one, sealed_ns).await);
    assert_eq!(client.errno(write(inode, vec![run(0, one, 0, 10)])).await, ESTALE);
    assert_eq!(dead(&volume).await, [(ChunkId(one), vec!["cs-1".to_owned(), "cs-2".to_owned()])]);
    for (gone, left) in [("cs-2", 1), ("cs-2", 1), ("cs-1", 0)] {
        let gone = [(ChunkId(one), gone.to_owned())];
        let forget = volume.driver.transact(deadline(), |tx| {
            let gone = gone.clone();
            Box::pin(async move { upkeep::forget_copies(tx, &gone).await })
        });
        forget.await.unwrap();
        assert_eq!(dead(&volume).await.len(), left);
    }
    // The second one's owner goes.
    client.ask(Op::Unlink(Unlink { parent: ROOT, name: name("f") })).await;
    volume.own(Op::Reap(Reap { inodes: vec![inode] })).await;
    assert!(!bury(&volume, two, 0).await);
    let session = mooseng_wire::SessionId(1);
    let lapse = volume
        .driver
        .transact(deadline(), |tx| Box::pin(mooseng_namespace::sessions::lapse_session(tx, session, 7)));
    lapse.await.unwrap();
    assert!(!bury(&volume, two, 0).await, "it may come back, and name what it appended");
    let close = volume
        .driver
        .transact(deadline(), |tx| Box::pin(mooseng_namespace::sessions::close_session(tx, session)));
    close.await.unwrap();
    assert!(bury(&volume, two, 0).await);
    volume.check();
}

#[tokio::test]
async fn a_stale_plan_moves_nothing() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let chunk = allocate(&client, inode).await;
    let open = listed(&volume).await.remove(0);
    volume.own(Op::SealChunk(SealChunk { chunk, acknowledged: 10, failed: vec![] })).await;
    let sealed = listed(&volume).await.remove(0);
    let to = |names: &[&str]| mooseng_schema::location::LocationRecord {
        copies: names.iter().map(|n| (*n).to_owned()).collect(),
        ..sealed.location.clone().unwrap()
    };
    let moved = async |planned: &upkeep::ChunkListing, location: mooseng_schema::location::LocationRecord| {
        let moving = volume.driver.transact(deadline(), |tx| {
            let (planned, location) = (planned.clone(), location.clone());
            Box::pin(async move { upkeep::move_chunk(tx, &planned, &location).await })
        });
        moving.await.unwrap().0
    };
    assert!(!moved(&open, to(&["cs-3"])).await, "it was sealed meanwhile");
    assert!(moved(&sealed, to(&["cs-1", "cs-2", "cs-3"])).await);
    assert!(moved(&sealed, to(&["cs-1", "cs-2", "cs-3"])).await, "a repetition");
    assert!(!moved(&sealed, to(&["cs-1", "cs-4"])).await, "it was moved meanwhile");
    let stands = async |chunk, name: &'static str| {
        let standing =
            volume.driver.transact(deadline(), |tx| Box::pin(upkeep::standing(tx, ChunkId(chunk), name)));
        standing.await.unwrap().0
    };
    assert_eq!(stands(chunk, "cs-3").await, upkeep::Standing::Placed);
    assert!(matches!(stands(chunk, "cs-4").await, upkeep::Standing::Misplaced(_)));
    assert_eq!(stands(1 << 40, "cs-3").await, upkeep::Standing::Unknown, "no such id was given");
}

#[tokio::test]
async fn chunks_belong_to_their_sessions_and_end_at_their_seal() {
    let volume = Volume::new().await;
    let (client, other) = (volume.client(1).await, volume.client(2).await);
    let inode = client.create(ROOT, "f").await;
    let chunk = allocate(&client, inode).await;
    assert_eq!(other.errno(write(inode, vec![run(0, chunk, 0, 10)])).await, ESTALE);
    assert_eq!(client.errno(write(inode, vec![run(0, 999, 0, 10)])).await, ESTALE);
    assert_eq!(client.errno(write(inode, vec![run(0, chunk, CHUNK_BYTES_MAX, 1)])).await, EINVAL);
    assert_eq!(client.errno(write(inode, vec![run(0, chunk, u64::MAX, 2)])).await, EINVAL);
    let seal = |acknowledged, failed: &[&str]| {
        let failed = failed.iter().map(|f| f.to_string()).collect();
        Op::SealChunk(SealChunk { chunk, acknowledged, failed })
    };
    assert_eq!(other.errno(seal(10, &[])).await, EPERM);
    assert_eq!(client.errno(seal(10, &["cs-1"])).await, 0);
    assert_eq!(client.errno(seal(10, &["cs-1"])).await, 0);
    assert_eq!(client.errno(seal(11, &[])).await, 5);
    assert_eq!(client.errno(write(inode, vec![run(0, chunk, 0, 11)])).await, ESTALE);
    assert_eq!(client.errno(write(inode, vec![run(0, chunk, 0, 10)])).await, 0);
    let Reply::Description(described) = client.ask(Op::Describe(Describe { inode })).await else { panic!() };
    assert_eq!(described.extents.len(), 1);
    assert_eq!(described.links, [DirLink { parent: ROOT, name: name("f") }]);
    let place = &described.chunks[0];
    assert!(place.sealed && place.length == 10 && place.epoch == 1);
    assert_eq!(place.locations.iter().map(|l| &l.chunkserver[..]).collect::<Vec<_>>(), ["cs-2"]);
    volume.check();
}

#[tokio::test]
async fn files_are_sparse_to_their_largest_size() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    assert_eq!(client.errno(size(inode, FILE_SIZE_MAX + 1)).await, EFBIG);
    client.write(inode, FILE_SIZE_MAX - 3, b"end").await;
    assert_eq!(errno(&client.write(inode, FILE_SIZE_MAX - 2, b"end").await), EFBIG);
    assert_eq!(errno(&client.write(inode, u64::MAX, b"end").await), EFBIG);
    let attr = client.attr(inode).await;
    assert_eq!((attr.size, attr.blocks), (FILE_SIZE_MAX, 1));
    let seek = |offset, whence: SeekWhence| Op::Seek(Seek { inode, offset, whence: whence as i32 });
    let data = client.ask(seek(0, SeekWhence::Data)).await;
    assert_eq!(data, Reply::Seek(SeekTo { offset: FILE_SIZE_MAX - 3 }));
    assert_eq!(client.ask(seek(5, SeekWhence::Hole)).await, Reply::Seek(SeekTo { offset: 5 }));
    assert_eq!(client.errno(seek(FILE_SIZE_MAX, SeekWhence::Hole)).await, ENXIO);
    let Reply::StatFs(stat) = client.ask(Op::StatFs(StatFs { inode: ROOT })).await else { panic!() };
    assert_eq!((stat.bytes_total, stat.files - stat.files_free), (3, 2));
    volume.check();
}

/// The answer says how far it reaches.
#[tokio::test]
async fn many_extents_come_in_several_answers() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let (inode, chunk) = scattered(&client, "f", 2_500).await;
    let ask = Op::ReadExtents(ReadExtents { inode, offset: 0, length: u64::MAX });
    let Reply::Extents(map) = client.ask(ask).await else { panic!() };
    assert!(map.covered < map.size && map.extents.len() <= 1024 && map.chunks.len() == 1);
    let bytes = client.read(inode).await;
    assert_eq!(bytes.len(), 2_499 * 20 + 10);
    for (i, byte) in bytes.iter().enumerate() {
        let expected = if i % 20 < 10 { chunk_byte(chunk, (i / 20 * 10 + i % 20) as u64) } else { 0 };
        assert_eq!(*byte, expected);
    }
    // A window in the middle is cut at both ends.
    let ask = Op::ReadExtents(ReadExtents { inode, offset: 25, length: 20 });
    let Reply::Extents(map) = client.ask(ask).await else { panic!() };
    let lies: Vec<_> = map.extents.iter().map(|e| (e.offset, e.length)).collect();
    assert_eq!((lies, map.covered), (vec![(25, 5), (40, 5)], 45));
}
