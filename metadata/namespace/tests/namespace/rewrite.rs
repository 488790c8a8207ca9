//! Swapping extents to a new chunk, beside everything else that may happen to the file.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_namespace::rewrite::{self, Moved, Piece, SWAP_EXTENTS_MAX, Swapped};
use mooseng_namespace::touched::Touched;
use mooseng_namespace::upkeep;
use mooseng_schema::chunk::ChunkRecord;
use mooseng_schema::location::LocationRecord;
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{ChunkId, InodeId};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::harness::*;

/// Where each byte of a file comes from: as whoever reads it would see it.
type Bytes = Vec<Option<(u64, u64)>>;

/// Bytes of new chunks, by what they were copied from.
type Copied = BTreeMap<(u64, u64), (u64, u64)>;

async fn allocate(client: &Client<'_>, inode: u64) -> u64 {
    match client.ask(Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] })).await {
        Reply::Allocated(a) => a.place.unwrap().chunk,
        other => panic!("{other:?}"),
    }
}

fn write(inode: u64, offset: u64, chunk: u64, chunk_offset: u64, length: u64) -> Op {
    let run = ChunkRun { chunk, chunk_offset, length };
    let piece = WritePiece { offset, data: Some(write_piece::Data::Run(run)) };
    Op::Write(Write { inode, pieces: vec![piece], ..Default::default() })
}

async fn seal(volume: &Volume, chunk: u64, length: u64) {
    volume.own(Op::SealChunk(SealChunk { chunk, acknowledged: length, failed: vec![] })).await;
}

async fn gather(volume: &Volume, inode: u64, chunks: &[u64], page: usize) -> Vec<Piece> {
    let chunks: BTreeSet<ChunkId> = chunks.iter().copied().map(ChunkId).collect();
    let (mut all, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let chunks = chunks.clone();
        let (found, next) = volume
            .driver
            .transact(deadline(), |tx| {
                let chunks = chunks.clone();
                Box::pin(async move { rewrite::pieces(tx, InodeId(inode), at, Some(&chunks), page).await })
            })
            .await
            .unwrap()
            .0;
        all.extend(found);
        from = next;
    }
    all
}

/// Copies pieces into a new chunk, one behind the other.
fn copy(pieces: &[Piece], to: u64, copied: &mut Copied) -> Vec<Moved> {
    let mut end = 0;
    pieces
        .iter()
        .map(|piece| {
            for i in 0..piece.length {
                let from = (piece.chunk.0, piece.chunk_offset + i);
                let origin = copied.get(&from).copied().unwrap_or(from);
                copied.insert((to, end + i), origin);
            }
            let moved = Moved { piece: *piece, to_offset: end };
            end += piece.length;
            moved
        })
        .collect()
}

async fn record(volume: &Volume, chunk: u64, length: u64) {
    let record = ChunkRecord { length, sealed: true, sealed_ns: 1, ..Default::default() };
    let location =
        LocationRecord { layout: 1, copies: vec!["cs-1".into(), "cs-2".into()], epoch: 1, partial: None };
    volume
        .driver
        .transact(deadline(), |tx| {
            let (record, location) = (record.clone(), location.clone());
            Box::pin(async move {
                rewrite::record(tx, ChunkId(chunk), &record, &location);
                Ok(())
            })
        })
        .await
        .unwrap();
}

async fn swap(volume: &Volume, inode: u64, to: u64, moved: &[Moved]) -> (Swapped, BTreeSet<Fact>) {
    let facts = std::sync::Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    let swapped = volume
        .driver
        .transact(deadline(), |tx| {
            let (moved, facts) = (moved.to_vec(), facts.clone());
            Box::pin(async move {
                let touched = Touched::default();
                let swapped = rewrite::swap(tx, &touched, InodeId(inode), ChunkId(to), &moved).await?;
                *facts.lock().unwrap() = touched.into_facts();
                Ok(swapped)
            })
        })
        .await
        .unwrap()
        .0;
    (swapped, std::mem::take(&mut *facts.lock().unwrap()))
}

/// What a file shows, by where its bytes were first written.
async fn shown(client: &Client<'_>, inode: u64, copied: &Copied) -> Bytes {
    let size = client.attr(inode).await.size;
    let mut bytes = vec![None; size as usize];
    let mut offset = 0;
    while offset < size {
        let ask = Op::ReadExtents(ReadExtents { inode, offset, length: size - offset });
        let Reply::Extents(map) = client.ask(ask).await else { panic!("no extents") };
        for extent in &map.extents {
            let Some(extent::Data::Run(run)) = &extent.data else { continue };
            for i in 0..extent.length {
                let at = (run.chunk, run.chunk_offset + i);
                bytes[(extent.offset + i) as usize] = Some(copied.get(&at).copied().unwrap_or(at));
            }
        }
        offset = map.covered;
    }
    bytes
}

async fn users(volume: &Volume, chunk: u64) -> Vec<(InodeId, u64)> {
    let users =
        volume.driver.transact(deadline(), |tx| Box::pin(upkeep::chunk_users(tx, ChunkId(chunk), 10)));
    users.await.unwrap().0
}

#[tokio::test]
async fn what_was_overwritten_meanwhile_is_left_and_the_rest_moves() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let (old, newer, to) = (allocate(&client, inode).await, allocate(&client, inode).await, 900);
    client.ask(write(inode, 0, old, 0, 100)).await;
    client.ask(write(inode, 200, old, 200, 100)).await;
    seal(&volume, old, 300).await;
    let pieces = gather(&volume, inode, &[old], 10).await;
    assert_eq!(pieces.len(), 2);
    let mut copied = Copied::new();
    let moved = copy(&pieces, to, &mut copied);
    record(&volume, to, 200).await;
    // Meanwhile the middle of the first piece is overwritten.
    client.ask(write(inode, 40, newer, 0, 20)).await;
    let before = (client.attr(inode).await, shown(&client, inode, &copied).await);
    let (swapped, facts) = swap(&volume, inode, to, &moved).await;
    assert_eq!(swapped, Swapped { bytes: 180, left: 20 });
    assert_eq!(facts, BTreeSet::from([Fact::Inode(InodeId(inode))]), "whoever knows the extents is told");
    assert_eq!((client.attr(inode).await, shown(&client, inode, &copied).await), before);
    assert_eq!((users(&volume, old).await, users(&volume, to).await), (vec![], vec![(InodeId(inode), 3)]));
    // Once more: nothing is left to do.
    let (again, facts) = swap(&volume, inode, to, &moved).await;
    assert_eq!((again, facts), (Swapped { bytes: 0, left: 200 }, BTreeSet::new()));
    volume.check();
}

#[tokio::test]
async fn neither_a_file_nor_a_chunk_that_is_gone_comes_back() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let (old, to) = (allocate(&client, inode).await, 900);
    client.ask(write(inode, 0, old, 0, 100)).await;
    seal(&volume, old, 100).await;
    let moved = copy(&gather(&volume, inode, &[old], 10).await, to, &mut Copied::new());
    // Without a record, as before it was written or after it was collected.
    assert_eq!(swap(&volume, inode, to, &moved).await.0.bytes, 0);
    record(&volume, to, 100).await;
    let bury = |chunk, before_ns| {
        volume.driver.transact(deadline(), move |tx| {
            Box::pin(async move { upkeep::bury_chunk(tx, ChunkId(chunk), 5, before_ns).await })
        })
    };
    assert!(!bury(to, 0).await.unwrap().0, "its swap may be about to begin");
    assert!(bury(to, i64::MAX).await.unwrap().0);
    assert_eq!(swap(&volume, inode, to, &moved).await.0.bytes, 0);
    let to = 901;
    record(&volume, to, 100).await;
    client.ask(Op::Unlink(Unlink { parent: ROOT, name: name("f") })).await;
    assert_eq!(swap(&volume, inode, to, &moved).await.0.bytes, 100, "it may be open");
    volume.check();
    volume.own(Op::Reap(Reap { inodes: vec![inode] })).await;
    assert_eq!(swap(&volume, inode, to, &moved).await.0.bytes, 0);
    assert!(users(&volume, to).await.is_empty());
    volume.check();
}

#[tokio::test]
async fn what_a_truncation_left_dead_is_not_touched() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let (old, to) = (allocate(&client, inode).await, 900);
    for i in 0..1_200 {
        client.ask(write(inode, i * 20, old, i * 10, 10)).await;
    }
    seal(&volume, old, 12_000).await;
    let pieces = gather(&volume, inode, &[old], 100).await;
    assert_eq!(pieces.len(), 1_200);
    let mut copied = Copied::new();
    let moved = copy(&pieces, to, &mut copied);
    record(&volume, to, 12_000).await;
    client.ask(Op::SetAttr(SetAttr { inode, size: Some(15), ..Default::default() })).await;
    for part in moved.chunks(SWAP_EXTENTS_MAX) {
        assert_eq!(swap(&volume, inode, to, part).await.0.bytes, 0);
    }
    volume.own(Op::Reap(Reap { inodes: vec![inode] })).await;
    assert_eq!(swap(&volume, inode, to, &moved[..SWAP_EXTENTS_MAX]).await.0.bytes, 10);
    assert_eq!(users(&volume, to).await, [(InodeId(inode), 1)]);
    volume.check();
}

/// Random writes, copies, holes, truncations and rewrites, with swaps of pieces that were read long ago: a file shows what was written last, whatever chunk holds
/// it, and everything stays counted.
async fn run(seed: u64, faults: f64) {
    let volume = Volume::with_faults(seed, faults).await;
    let client = volume.client(1).await;
    let mut rng = SmallRng::seed_from_u64(seed);
    let files = [client.create(ROOT, "a").await, client.create(ROOT, "b").await];
    let mut models: BTreeMap<u64, Bytes> = files.iter().map(|f| (*f, Bytes::new())).collect();
    let mut copied = Copied::new();
    let mut open = (allocate(&client, files[0]).await, 0);
    let mut sealed: Vec<u64> = Vec::new();
    let mut pending: Vec<(u64, u64, Vec<Moved>)> = Vec::new();
    let mut next = 10_000;
    for step in 0..300 {
        let file = *files.choose(&mut rng).unwrap();
        match rng.random_range(0..100) {
            0..36 => {
                let (offset, length) = (rng.random_range(0..400), rng.random_range(1..60));
                client.ask(write(file, offset, open.0, open.1, length)).await;
                let model = models.get_mut(&file).unwrap();
                let end = (offset + length) as usize;
                if model.len() < end {
                    model.resize(end, None);
                }
                for i in 0..length {
                    model[(offset + i) as usize] = Some((open.0, open.1 + i));
                }
                open.1 += length;
            }
            36..44 => {
                let (source, source_offset) = (*files.choose(&mut rng).unwrap(), rng.random_range(0..400));
                let (offset, length) = (rng.random_range(0..400), rng.random_range(1..100));
                let op =
                    CopyRange { source, source_offset, inode: file, offset, length, ..Default::default() };
                // Else they overlap, or begin where a chunk isn't sealed.
                if let Reply::Ranged(ranged) = client.ask(Op::CopyRange(op)).await {
                    let (from, done) = (source_offset as usize, ranged.done as usize);
                    let bytes = models[&source].get(from..from + done).unwrap_or_default().to_vec();
                    let (to, model) = (offset as usize, models.get_mut(&file).unwrap());
                    if done > 0 {
                        model.resize(model.len().max(to + done), None);
                        model[to..to + done].copy_from_slice(&bytes);
                    }
                }
            }
            44..50 => {
                let (offset, length) = (rng.random_range(0..400), rng.random_range(1..60));
                let op = Fallocate {
                    inode: file,
                    offset,
                    length,
                    zero: true,
                    keep_size: true,
                    ..Default::default()
                };
                client.ask(Op::Fallocate(op)).await;
                let model = models.get_mut(&file).unwrap();
                let to = model.len().min((offset + length) as usize);
                if (offset as usize) < to {
                    model[offset as usize..to].fill(None);
                }
            }
            50..58 => {
                seal(&volume, open.0, open.1).await;
                sealed.push(open.0);
                open = (allocate(&client, file).await, 0);
            }
            58..64 => {
                let size = rng.random_range(0..450);
                client
                    .ask(Op::SetAttr(SetAttr { inode: file, size: Some(size), ..Default::default() }))
                    .await;
                models.get_mut(&file).unwrap().resize(size as usize, None);
            }
            64..80 if !sealed.is_empty() => {
                let victims: Vec<u64> = sealed.choose_multiple(&mut rng, 2).copied().collect();
                let page = rng.random_range(1..8);
                let pieces = gather(&volume, file, &victims, page).await;
                if !pieces.is_empty() {
                    let moved = copy(&pieces, next, &mut copied);
                    record(&volume, next, pieces.iter().map(|p| p.length).sum()).await;
                    pending.push((file, next, moved));
                    sealed.push(next);
                    next += 1;
                }
            }
            80..100 if !pending.is_empty() => {
                let which = rng.random_range(0..pending.len());
                let (file, to, moved) = pending.swap_remove(which);
                let attr = client.attr(file).await;
                for part in moved.chunks(rng.random_range(1..6)) {
                    swap(&volume, file, to, part).await;
                }
                assert_eq!(client.attr(file).await, attr, "a swap shows in the attributes");
            }
            _ => {}
        }
        for (file, model) in &models {
            assert!(shown(&client, *file, &copied).await == *model, "seed {seed}, step {step}: file {file}");
        }
        volume.check();
    }
}

#[tokio::test]
async fn random_rewrites_show_in_nothing() {
    for seed in 0..12 {
        run(seed, 0.0).await;
    }
}

#[tokio::test]
async fn random_rewrites_show_in_nothing_with_conflicts_and_unknown_commits() {
    for seed in 100..108 {
        run(seed, 0.15).await;
    }
}
