//! Data in chunks, large truncations, reaping.

use mooseng_namespace::upkeep;
use mooseng_schema::ids::IdKind;
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
    list.await.unwrap().0.0
}

async fn dead(volume: &Volume) -> Vec<(ChunkId, Vec<String>)> {
    let list =
        volume.driver.transact(deadline(), |tx| Box::pin(upkeep::list_dead(tx, VolumeId(0), None, 10)));
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
    // A region that was recovered gives ids from far above on: what may have been given by what it lost is left alone, too.
    let reserved = volume.driver.transact(deadline(), |tx| {
        Box::pin(upkeep::reserve_ids_from(tx, IdKind::Chunk, VolumeId(0), 1, 1 << 41))
    });
    assert_eq!(reserved.await.unwrap().0, 1 << 41..(1 << 41) + 1);
    assert_eq!(stands(1 << 40, "cs-3").await, upkeep::Standing::Unknown);
    assert_eq!(stands(1 << 41, "cs-3").await, upkeep::Standing::Gone);
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

/// Asks until a range is done; answers in how many steps, and the last attributes.
async fn punch(client: &Client<'_>, inode: u64, offset: u64, length: u64, keep_size: bool) -> (u64, Attr) {
    let (mut at, mut steps) = (offset, 0);
    loop {
        let left = offset + length - at;
        let op = Fallocate { inode, offset: at, length: left, zero: true, keep_size, ..Default::default() };
        let Reply::Ranged(ranged) = client.ask(Op::Fallocate(op)).await else { panic!("not done") };
        (at, steps) = (at + ranged.done, steps + 1);
        if !ranged.more {
            assert_eq!(ranged.done, left);
            return (steps, ranged.attr.unwrap());
        }
    }
}

#[tokio::test]
async fn a_hole_through_many_extents_is_made_in_steps_and_frees_them() {
    let volume = Volume::with_faults(3, 0.1).await;
    let client = volume.client(1).await;
    let (inode, chunk) = scattered(&client, "f", 2_000).await;
    let mut expected = client.read(inode).await;
    expected[35..39_005].fill(0);
    let (steps, after) = punch(&client, inode, 35, 38_970, true).await;
    assert_eq!((steps, after.size), (4, expected.len() as u64));
    assert!(client.read(inode).await == expected);
    // Extents from 0 and 20 on, and 50 behind the hole, the first of which begins within it.
    assert_eq!(after.blocks, (20_u64 + 49 * 10 + 5).div_ceil(512));
    volume.check();
    let hole = client.ask(Op::Seek(Seek { inode, offset: 31, whence: SeekWhence::Data as i32 })).await;
    assert_eq!(hole, Reply::Seek(SeekTo { offset: 39_005 }));
    // The file grows with the last step only.
    let (steps, after) = punch(&client, inode, 0, 50_000, false).await;
    assert_eq!((steps, after.size, after.blocks), (1, 50_000, 0));
    let users =
        volume.driver.transact(deadline(), |tx| Box::pin(upkeep::chunk_users(tx, ChunkId(chunk), 10))).await;
    assert_eq!(users.unwrap().0, []);
    volume.check();
}

#[tokio::test]
async fn ranges_have_limits_and_belong_to_files() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let op = |inode, offset, length| Op::Fallocate(Fallocate { inode, offset, length, ..Default::default() });
    assert_eq!(client.errno(op(inode, 0, 0)).await, EINVAL);
    assert_eq!(client.errno(op(inode, u64::MAX, 2)).await, EFBIG);
    assert_eq!(client.errno(op(inode, FILE_SIZE_MAX, 1)).await, EFBIG);
    assert_eq!(client.errno(op(ROOT, 0, 1)).await, EISDIR);
    let fifo = Mknod { parent: ROOT, name: name("p"), kind: FileKind::Fifo as i32, ..Default::default() };
    let fifo = attr(client.ask(Op::Mknod(fifo)).await).inode;
    assert_eq!(client.errno(op(fifo, 0, 1)).await, ENODEV);
    assert_eq!(client.errno(op(inode, FILE_SIZE_MAX - 1, 1)).await, 0);
    assert_eq!(client.attr(inode).await.size, FILE_SIZE_MAX);
}

/// What a truncation left dead behind the end doesn't come back with a longer file.
#[tokio::test]
async fn allocating_behind_a_truncation_shows_zeros() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let (inode, _) = scattered(&client, "f", 2_000).await;
    client.ask(size(inode, 10)).await;
    let (_, hole) = punch(&client, inode, 5, 30_000, true).await;
    assert_eq!(hole.size, 10);
    let grow = Fallocate { inode, offset: 20_000, length: 20_000, ..Default::default() };
    assert_eq!(attr(client.ask(Op::Fallocate(grow)).await).size, 40_000);
    let mut expected: Vec<u8> = (0..5).map(|i| chunk_byte(1, i)).collect();
    expected.resize(40_000, 0);
    assert!(client.read(inode).await == expected);
    volume.check();
}

async fn seal(volume: &Volume, chunk: u64, length: u64) {
    volume.own(Op::SealChunk(SealChunk { chunk, acknowledged: length, failed: vec![] })).await;
}

fn copy(source: u64, source_offset: u64, inode: u64, offset: u64, length: u64) -> CopyRange {
    CopyRange { source, source_offset, inode, offset, length, kill_suidgid: false }
}

/// Asks until all is copied; answers in how many steps.
async fn copy_all(client: &Client<'_>, mut r: CopyRange) -> u64 {
    let mut steps = 0;
    loop {
        let Reply::Ranged(ranged) = client.ask(Op::CopyRange(r)).await else { panic!("not copied") };
        steps += 1;
        r.source_offset += ranged.done;
        r.offset += ranged.done;
        r.length -= ranged.done;
        if !ranged.more {
            return steps;
        }
    }
}

async fn users(volume: &Volume, chunk: u64) -> Vec<(u64, u64)> {
    let users =
        volume.driver.transact(deadline(), |tx| Box::pin(upkeep::chunk_users(tx, ChunkId(chunk), 10))).await;
    users.unwrap().0.into_iter().map(|(inode, extents)| (inode.0, extents)).collect()
}

#[tokio::test]
async fn a_copy_shares_the_chunk_and_outlives_its_source() {
    let volume = Volume::with_faults(5, 0.1).await;
    let (client, other) = (volume.client(1).await, volume.client(2).await);
    let (source, chunk) = scattered(&client, "f", 2_000).await;
    let target = client.create(ROOT, "g").await;
    // Another session's chunk, and not even sealed.
    assert_eq!(errno(&other.ask(Op::CopyRange(copy(source, 0, target, 0, 100))).await), EXDEV);
    seal(&volume, chunk, 20_000).await;
    let mut expected = client.read(source).await;
    let all = expected.len() as u64;
    assert_eq!(copy_all(&other, copy(source, 0, target, 0, u64::MAX)).await, 4);
    assert!(client.read(target).await == expected);
    assert_eq!(users(&volume, chunk).await, [(source, 2_000), (target, 2_000)]);
    volume.check();
    // Each goes its own way.
    client.write(source, 0, &[1; 50]).await;
    assert_eq!(client.errno(size(target, 100)).await, 0);
    assert_eq!(client.errno(size(target, all)).await, 0);
    expected[100..].fill(0);
    assert!(client.read(target).await == expected);
    client.ask(Op::Unlink(Unlink { parent: ROOT, name: name("f") })).await;
    volume.own(Op::Reap(Reap { inodes: vec![source] })).await;
    assert_eq!(users(&volume, chunk).await, [(target, 5)]);
    assert!(client.read(target).await == expected);
    let buried = async |now_ns| {
        let buried = volume
            .driver
            .transact(deadline(), |tx| Box::pin(upkeep::bury_chunk(tx, ChunkId(chunk), now_ns, now_ns)))
            .await;
        buried.unwrap().0
    };
    assert!(!buried(i64::MAX).await);
    client.ask(Op::Unlink(Unlink { parent: ROOT, name: name("g") })).await;
    volume.own(Op::Reap(Reap { inodes: vec![target] })).await;
    assert!(buried(i64::MAX).await);
    volume.check();
}

#[tokio::test]
async fn a_copy_takes_what_can_be_shared_and_says_how_far_it_came() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let source = client.create(ROOT, "f").await;
    let (done, open) = (allocate(&client, source).await, allocate(&client, source).await);
    let pieces = vec![run(0, done, 0, 1_000), run(3_000, done, 1_000, 1_000), run(5_000, open, 0, 1_000)];
    client.ask(write(source, pieces)).await;
    client.write(source, 2_000, b"inline").await;
    seal(&volume, done, 2_000).await;
    let target = client.create(ROOT, "g").await;
    client.write(target, 0, &[9; 20_000]).await;
    // Up to the open chunk: the hole before it, too.
    let r = copy(source, 500, target, 100, 5_000);
    let Reply::Ranged(ranged) = client.ask(Op::CopyRange(r)).await else { panic!() };
    assert_eq!((ranged.done, ranged.more), (4_500, true));
    assert_eq!(client.errno(Op::CopyRange(copy(source, 5_000, target, 4_600, 500))).await, EXDEV);
    let mut expected = vec![9; 20_000];
    expected[100..4_600].copy_from_slice(&client.read(source).await[500..5_000]);
    assert!(client.read(target).await == expected);
    volume.check();
    // Cut at the source's end, and nothing behind it.
    seal(&volume, open, 1_000).await;
    let Reply::Ranged(ranged) =
        client.ask(Op::CopyRange(copy(source, 5_500, target, 30_000, u64::MAX))).await
    else {
        panic!()
    };
    assert_eq!((ranged.done, ranged.more, ranged.attr.unwrap().size), (500, false, 30_500));
    for behind in [6_000, 7_000] {
        let before = client.attr(target).await;
        let r = copy(source, behind, target, 0, 10);
        let Reply::Ranged(ranged) = client.ask(Op::CopyRange(r)).await else { panic!() };
        assert_eq!((ranged.done, ranged.more, ranged.attr), (0, false, Some(before)));
    }
    volume.check();
}

#[tokio::test]
async fn copies_have_limits() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let other = client.create(ROOT, "g").await;
    client.write(inode, 0, &[1; 100]).await;
    for (offset, length, expected) in
        [(0, 50, EINVAL), (49, 50, EINVAL), (50, 50, 0), (50, u64::MAX, EINVAL), (200, u64::MAX, 0)]
    {
        let r = copy(inode, 0, inode, offset, length);
        assert_eq!(client.errno(Op::CopyRange(r)).await, expected, "{offset} {length}");
    }
    assert_eq!(client.errno(Op::CopyRange(copy(inode, 0, other, FILE_SIZE_MAX - 9, 10))).await, EFBIG);
    assert_eq!(client.errno(Op::CopyRange(copy(inode, 0, ROOT, 0, 10))).await, EISDIR);
    assert_eq!(client.errno(Op::CopyRange(copy(ROOT, 0, inode, 0, 10))).await, EISDIR);
    let fifo = Mknod { parent: ROOT, name: name("p"), kind: FileKind::Fifo as i32, ..Default::default() };
    let fifo = attr(client.ask(Op::Mknod(fifo)).await).inode;
    assert_eq!(client.errno(Op::CopyRange(copy(fifo, 0, inode, 0, 10))).await, EINVAL);
    volume.check();
}
