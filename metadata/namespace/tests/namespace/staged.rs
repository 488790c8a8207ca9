//! Small writes of large files: kept inline, within bounds, until they are moved into chunks.

use bytes::Bytes;
use mooseng_namespace::rewrite;
use mooseng_namespace::{Errno, OpContext, STAGED_BYTES_MAX, STAGED_PIECES_MAX};
use mooseng_schema::staged::Staged;
use mooseng_store::{Store, StoreError, Transaction};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{ChunkId, InodeId};
use tokio::time::Instant;

use crate::faulty::Reads;
use crate::harness::*;

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;

/// A file of so many bytes in one sealed chunk.
async fn large(volume: &Volume, client: &Client<'_>, text: &str, size: u64) -> u64 {
    let inode = client.create(ROOT, text).await;
    let Reply::Allocated(a) = client.ask(Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] })).await
    else {
        panic!("no chunk")
    };
    let chunk = a.place.unwrap().chunk;
    let run = ChunkRun { chunk, chunk_offset: 0, length: size };
    let piece = WritePiece { offset: 0, data: Some(write_piece::Data::Run(run)) };
    let written = client.ask(Op::Write(Write { inode, pieces: vec![piece], ..Default::default() })).await;
    assert!(matches!(written, Reply::Written(_)), "{written:?}");
    volume.own(Op::SealChunk(SealChunk { chunk, acknowledged: size, failed: vec![] })).await;
    inode
}

fn staged(bytes: u64, pieces: i64) -> Staged {
    Staged { bytes: bytes as i64, pieces }
}

fn block(n: u64) -> Vec<u8> {
    (0..BLOCK).map(|i| (n * 37 + i) as u8).collect()
}

#[tokio::test]
async fn blocks_of_a_large_file_are_staged_and_moved_to_a_chunk_unless_they_are_others_by_then() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = large(&volume, &client, "f", MIB).await;
    let mut bytes = client.read(inode).await;
    for n in 0..20 {
        let at = n * 7 % 64 * BLOCK;
        client.write(inode, at, &block(n)).await;
        bytes[at as usize..][..BLOCK as usize].copy_from_slice(&block(n));
    }
    assert!(client.read(inode).await == bytes);
    // Those in the first 64 KiB stay.
    let behind = (0..20).filter(|n| n * 7 % 64 >= 16).count() as u64;
    assert_eq!(volume.staged(inode).await, staged(behind * BLOCK, behind as i64));
    volume.check();
    let (chunk, moved) = volume.copy_staged(inode, 100).await.unwrap();
    assert_eq!(moved.len() as u64, behind);
    // Meanwhile: one is overwritten, one in part, one with the same bytes, and one is cut off by a hole.
    let at = |i: usize| moved[i].piece.offset;
    for (i, from, length) in [(0, 0, BLOCK), (1, 100, 50)] {
        let new = vec![0xEE; length as usize];
        client.write(inode, at(i) + from, &new).await;
        bytes[(at(i) + from) as usize..][..length as usize].copy_from_slice(&new);
    }
    client.write(inode, at(2), &moved[2].piece.bytes).await;
    let hole = Fallocate {
        inode,
        offset: at(3) + 96,
        length: 4000,
        zero: true,
        keep_size: true,
        ..Default::default()
    };
    client.ask(Op::Fallocate(hole)).await;
    bytes[at(3) as usize + 96..][..4000].fill(0);
    let before = client.attr(inode).await;
    let swapped = volume.destage(chunk, &moved).await;
    assert_eq!(swapped.left, BLOCK + BLOCK + 4000, "{swapped:?}");
    assert!(client.read(inode).await == bytes);
    assert_eq!(client.attr(inode).await, before);
    assert_eq!(volume.staged(inode).await, staged(2 * BLOCK, 2));
    volume.check();
    // The rest, once more.
    let (chunk, moved) = volume.copy_staged(inode, 100).await.unwrap();
    assert_eq!(volume.destage(chunk, &moved).await.left, 0);
    assert!(client.read(inode).await == bytes);
    assert!(volume.staged(inode).await.is_zero());
    assert_eq!(volume.destage(chunk, &moved).await.bytes, 0);
    volume
        .driver
        .transact(deadline(), |tx| Box::pin(rewrite::forget_staged(tx, InodeId(inode))))
        .await
        .unwrap();
    let none = rewrite::staged_files(&volume.store.inner.begin(), mooseng_wire::VolumeId(0), None, 10).await;
    assert_eq!(none.unwrap(), vec![]);
    volume.check();
}

#[tokio::test]
async fn a_file_has_no_more_staged_than_it_may_whatever_is_written() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = large(&volume, &client, "f", 64 * MIB).await;
    let mut refused = 0;
    for n in 0..3_000_u64 {
        let at = MIB + n * 7919 % 15_000 * BLOCK;
        match client.write(inode, at, &block(n)).await {
            Reply::Written(_) => {}
            Reply::Errno(errno) => {
                assert_eq!(errno, Errno::EMSGSIZE.0);
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let full = volume.staged(inode).await;
    assert!(full.bytes <= STAGED_BYTES_MAX && full.pieces <= STAGED_PIECES_MAX, "{full:?}");
    assert_eq!(full.pieces, STAGED_PIECES_MAX);
    assert_eq!(refused, 3_000 - STAGED_PIECES_MAX);
    // What replaces a staged piece is taken, and so is what goes to a chunk.
    assert!(matches!(client.write(inode, MIB, &block(9)).await, Reply::Written(_)));
    // A copy of them is refused, too: its bytes have to be written.
    let copy = CopyRange {
        source: inode,
        source_offset: MIB,
        inode,
        offset: 70 * MIB,
        length: MIB,
        ..Default::default()
    };
    assert_eq!(client.errno(Op::CopyRange(copy)).await, Errno::EXDEV.0);
    volume.check();
    // A file's end takes what it has staged along.
    client.ask(Op::SetAttr(SetAttr { inode, size: Some(2 * MIB), ..Default::default() })).await;
    volume.check();
    client.ask(Op::Unlink(Unlink { parent: ROOT, name: name("f") })).await;
    volume.own(Op::Reap(Reap { inodes: vec![inode] })).await;
    assert!(volume.staged(inode).await.is_zero());
    volume.check();
}

#[tokio::test]
async fn where_the_region_stages_nothing_more_only_the_first_bytes_stay_inline() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = large(&volume, &client, "f", MIB).await;
    for (offset, expected) in [(0, 0), (60 << 10, 0), (64 << 10, Errno::EMSGSIZE.0)] {
        let piece = WritePiece { offset, data: Some(write_piece::Data::Inline(Bytes::from(block(1)))) };
        let request = request(&root(), Op::Write(Write { inode, pieces: vec![piece], ..Default::default() }));
        let ctx = OpContext { staging_closed: true, ..volume.context(&request) };
        let call = client.call_of(client.next_number());
        let answer =
            volume.driver.run(call, &ctx, &request, Instant::now() + std::time::Duration::from_secs(5)).await;
        assert_eq!(errno(&answer.unwrap().0.reply.unwrap()), expected, "at {offset}");
    }
    volume.check();
}

#[tokio::test]
async fn appends_become_pieces_of_a_block() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = large(&volume, &client, "log", MIB).await;
    for n in 0..100_u64 {
        let piece =
            WritePiece { offset: 0, data: Some(write_piece::Data::Inline(Bytes::from(vec![n as u8; 128]))) };
        let append = Write { inode, pieces: vec![piece], append: true, ..Default::default() };
        assert!(matches!(client.ask(Op::Write(append)).await, Reply::Written(_)));
    }
    assert_eq!(volume.staged(inode).await, staged(12_800, 4));
    let (chunk, moved) = volume.copy_staged(inode, 100).await.unwrap();
    assert_eq!(volume.destage(chunk, &moved).await.bytes, 12_800);
    let map = client.ask(Op::ReadExtents(ReadExtents { inode, offset: MIB, length: MIB })).await;
    let Reply::Extents(map) = map else { panic!("no extents") };
    assert_eq!(map.extents.len(), 1, "what follows each other in the file does so in the chunk: {map:?}");
    volume.check();
}

#[tokio::test]
async fn what_is_destaged_after_its_chunk_was_given_up_stays() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = large(&volume, &client, "f", MIB).await;
    client.write(inode, 512 << 10, &block(1)).await;
    let (chunk, moved) = volume.copy_staged(inode, 100).await.unwrap();
    let buried = volume.driver.transact(deadline(), move |tx| {
        Box::pin(async move { mooseng_namespace::upkeep::bury_chunk(tx, ChunkId(chunk), 5, i64::MAX).await })
    });
    assert!(buried.await.unwrap().0);
    assert_eq!(volume.destage(chunk, &moved).await.bytes, 0);
    assert_eq!(volume.staged(inode).await, staged(BLOCK, 1));
    volume.check();
}

/// What an overwrite with an fsync costs its region's leader is what it reads, for the most part.
#[tokio::test]
async fn a_block_that_is_overwritten_is_read_by_its_key() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = large(&volume, &client, "f", MIB).await;
    let at = 512 << 10;
    let read = |keys, ranges| Reads { keys, ranges };
    volume.store.take_extent_reads();
    client.write(inode, at, &block(1)).await;
    assert_eq!(volume.store.take_extent_reads(), read(1, 1), "a part of a run, which begins elsewhere");
    client.write(inode, at, &block(2)).await;
    assert_eq!(volume.store.take_extent_reads(), read(1, 0), "a staged block");
    let (chunk, moved) = volume.copy_staged(inode, 10).await.unwrap();
    volume.destage(chunk, &moved).await;
    assert_eq!(volume.store.take_extent_reads(), read(1, 0), "one that is swapped");
    client.write(inode, at, &block(3)).await;
    assert_eq!(volume.store.take_extent_reads(), read(1, 0), "a block in a chunk of its own");
    client.write(inode, at, &[4; 4 * BLOCK as usize]).await;
    assert_eq!(volume.store.take_extent_reads(), read(1, 1), "more than what begins there");
    client.write(inode, at + 100, &[5; 100]).await;
    assert_eq!(volume.store.take_extent_reads(), read(0, 2), "what may be joined with its neighbours");
    let mut expected = [4_u8; 4 * BLOCK as usize];
    expected[100..200].fill(5);
    assert!(client.read(inode).await[at as usize..][..expected.len()] == expected[..]);
    volume.check();
}

fn write(inode: u64, offset: u64, length: u64) -> Op {
    let data = write_piece::Data::Inline(vec![0xEE; length as usize].into());
    let pieces = vec![WritePiece { offset, data: Some(data) }];
    Op::Write(Write { inode, pieces, ..Default::default() })
}

fn hole(inode: u64, offset: u64, length: u64) -> Op {
    let hole = Fallocate { inode, offset, length, zero: true, keep_size: true, ..Default::default() };
    Op::Fallocate(hole)
}

#[tokio::test]
async fn a_swap_conflicts_with_changes_of_its_pieces_and_not_with_those_beside_them() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let file = async |text: &str| {
        let inode = large(&volume, &client, text, MIB).await;
        for n in [20, 30, 31, 90] {
            client.write(inode, n * BLOCK, &block(n)).await;
        }
        let (chunk, moved) = volume.copy_staged(inode, 100).await.unwrap();
        let tx = volume.store.inner.begin();
        let swapped = rewrite::destage(&tx, InodeId(inode), ChunkId(chunk), &moved).await.unwrap();
        assert_eq!((swapped.bytes, swapped.left), (4 * BLOCK, 0));
        (inode, tx)
    };
    let changes: [fn(u64) -> Op; 7] = [
        |inode| write(inode, 20 * BLOCK, BLOCK),
        |inode| write(inode, 20 * BLOCK + 100, 50),
        |inode| write(inode, 30 * BLOCK - 100, 200),
        |inode| write(inode, 29 * BLOCK, 4 * BLOCK),
        |inode| write(inode, 91 * BLOCK - 1, 2),
        |inode| hole(inode, 31 * BLOCK + 96, 10),
        |inode| Op::SetAttr(SetAttr { inode, size: Some(31 * BLOCK + 1), ..Default::default() }),
    ];
    for (case, change) in changes.into_iter().enumerate() {
        let (inode, tx) = file(&format!("f{case}")).await;
        assert_eq!(errno(&client.ask(change(inode)).await), 0);
        assert_eq!(tx.commit().await, Err(StoreError::Conflict), "change {case}");
    }
    let (inode, tx) = file("f").await;
    let mut bytes = client.read(inode).await;
    for n in [19, 21, 25, 29, 32, 60, 89, 91] {
        client.write(inode, n * BLOCK, &block(n)).await;
        bytes[(n * BLOCK) as usize..][..BLOCK as usize].copy_from_slice(&block(n));
    }
    tx.commit().await.unwrap();
    assert!(client.read(inode).await == bytes);
    assert_eq!(volume.staged(inode).await, staged(8 * BLOCK, 8));
    volume.check();
}

#[tokio::test]
async fn what_follows_each_other_is_one_piece_whichever_transactions_swapped_it() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = large(&volume, &client, "f", MIB).await;
    for n in 40..46 {
        client.write(inode, n * BLOCK, &block(n)).await;
    }
    let (chunk, moved) = volume.copy_staged(inode, 100).await.unwrap();
    assert_eq!(moved.len(), 6);
    for part in [&moved[..1], &moved[1..4], &moved[4..]] {
        assert_eq!(volume.destage(chunk, part).await.bytes, part.len() as u64 * BLOCK);
    }
    let (offset, length) = (40 * BLOCK, 6 * BLOCK);
    let map = client.ask(Op::ReadExtents(ReadExtents { inode, offset, length })).await;
    let Reply::Extents(map) = map else { panic!("no extents") };
    assert_eq!(map.extents.len(), 1, "{map:?}");
    volume.check();
}
