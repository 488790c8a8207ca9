//! The rewriter at work: sparse chunks are made into a new one, behind the backs of those who read.

use super::*;
use mooseng_wire::fs::{CopyRange, GetAttr};

fn eager(config: &mut MasterConfig) {
    config.house.rewrite_after_ms = 0;
    config.house.rewrite_gain_kib = 0;
    config.house.rewrite_mib_per_s = 0;
}

async fn seal(region: &Region, place: &ChunkPlace, length: usize) {
    let seal = SealChunk { chunk: place.chunk, acknowledged: length as u64, failed: vec![] };
    assert!(matches!(region.client.change(Op::SealChunk(seal)).await.unwrap(), Reply::Done(_)));
}

/// A file's bytes, as its extents say, each piece read from every chunkserver that is named for it.
pub async fn content(region: &Region, inode: u64) -> Vec<u8> {
    let (mut bytes, mut offset) = (vec![], 0);
    loop {
        let read = Op::ReadExtents(ReadExtents { inode, offset, length: u64::from(u32::MAX) });
        let Reply::Extents(map) = region.client.read(read).await.unwrap() else { panic!("no extents") };
        bytes.resize(map.size as usize, 0);
        put_extents(region, &map, &mut bytes).await;
        offset = map.covered;
        if offset >= map.size {
            return bytes;
        }
    }
}

async fn put_extents(region: &Region, map: &mooseng_wire::fs::ExtentMap, bytes: &mut [u8]) {
    for extent in &map.extents {
        let run = match extent.data.as_ref().unwrap() {
            mooseng_wire::fs::extent::Data::Run(run) => run,
            mooseng_wire::fs::extent::Data::Inline(inline) => {
                bytes[extent.offset as usize..][..inline.len()].copy_from_slice(inline);
                continue;
            }
        };
        let place = map.chunks.iter().find(|place| place.chunk == run.chunk).unwrap();
        assert_eq!(place.locations.len(), 2, "{place:?}");
        for location in &place.locations {
            let link = region.link(&location.address);
            for from in (0..run.length).step_by(1 << 20) {
                let (offset, length) = (run.chunk_offset + from, (run.length - from).min(1 << 20) as u32);
                let read = Read { chunk: run.chunk, offset, length, ticket: place.ticket.clone() };
                let body = read.encode_to_vec().into();
                let answer = link.call(Method::ChunkRead, body, Bytes::new(), WAIT).await.unwrap();
                let at = (extent.offset + from) as usize;
                bytes[at..at + answer.bulk.len()].copy_from_slice(&answer.bulk);
            }
        }
    }
}

async fn attr(region: &Region, inode: u64) -> mooseng_wire::fs::Attr {
    match region.client.read(Op::GetAttr(GetAttr { inode })).await.unwrap() {
        Reply::Entry(entry) => entry.attr.unwrap(),
        other => panic!("no attributes: {other:?}"),
    }
}

/// Two files, of each of which a third is left in its first chunk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sparse_chunks_are_made_into_one_once_nobody_is_promised_otherwise() {
    let mut region = Region::start(3, 2, eager).await;
    let mut files = vec![];
    for seed in [1, 2] {
        let mut bytes = pattern(900_000, seed);
        let (inode, old) = region.file(&format!("f{seed}"), &bytes).await;
        let newer = pattern(600_000, seed + 10);
        let place = region.append(inode, &newer).await;
        seal(&region, &place, newer.len()).await;
        bytes[..newer.len()].copy_from_slice(&newer);
        files.push((inode, old.chunk, bytes, attr(&region, inode).await));
    }
    // The writer is promised what it was told, and doesn't answer: its maps may still name the old chunks.
    until("a rewrite waits", async || region.metric("mooseng_master_rewrites_under_way").await > 0).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    for (inode, old, ..) in &files {
        let read = Op::ReadExtents(ReadExtents { inode: *inode, offset: 700_000, length: 10 });
        let Reply::Extents(map) = region.client.read(read).await.unwrap() else { panic!("no extents") };
        assert_eq!(map.chunks[0].chunk, *old, "swapped under a promise");
    }
    assert_eq!(region.metric("mooseng_master_chunks_rewritten_total").await, 0);
    close(&region.client).await;
    until("the old chunks are gone everywhere", async || {
        let file = |chunk: u64| format!("{chunk:016x}");
        (0..2).all(|i| files.iter().all(|(_, old, ..)| !region.files(i).contains(&file(*old))))
    })
    .await;
    assert_eq!(region.metric("mooseng_master_chunks_rewritten_total").await, 2);
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    let mut chunks = BTreeSet::new();
    for (inode, _, bytes, before) in &files {
        assert!(content(&region, *inode).await == *bytes, "file {inode} has other bytes");
        assert_eq!(attr(&region, *inode).await, *before, "a rewrite shows in the attributes");
        let read = Op::ReadExtents(ReadExtents { inode: *inode, offset: 700_000, length: 10 });
        let Reply::Extents(map) = region.client.read(read).await.unwrap() else { panic!("no extents") };
        chunks.insert(map.chunks[0].chunk);
    }
    assert_eq!(chunks.len(), 1, "both are in one new chunk");
    let status = region.status().await;
    assert_eq!(status.house.unwrap().rewritten, 2);
    until("the scan has seen it", async || {
        let house = region.status().await.house.unwrap();
        house.bytes == house.bytes_live && house.bytes == 1_800_000
    })
    .await;
    super::fsck::finds_nothing(&region).await;
}

/// Found by review: what was sealed by a clock that was ahead wasn't rewritten before that time had come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sealed_at_a_time_that_is_still_to_come_is_rewritten() {
    let clock = SetClock::default();
    clock.step(30 * DAY_S);
    let region = Region::start_by(Arc::new(clock.clone()), 1, 2, |config| {
        eager(config);
        config.house.rewrite_after_ms = 500;
    })
    .await;
    let (inode, old) = region.file("f", &pattern(900_000, 1)).await;
    let newer = pattern(600_000, 11);
    let place = region.append(inode, &newer).await;
    seal(&region, &place, newer.len()).await;
    clock.step(-30 * DAY_S);
    close(&region.client).await;
    until("it is rewritten", async || region.metric("mooseng_master_chunks_rewritten_total").await == 1)
        .await;
    let file = format!("{:016x}", old.chunk);
    until("the old one goes", async || (0..2).all(|i| !region.files(i).contains(&file))).await;
}

/// A sparse chunk's last bytes, which two files name: they are copied once, and shared from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_files_share_they_share_after_a_rewrite() {
    let mut region = Region::start(3, 2, eager).await;
    let mut bytes = pattern(900_000, 1);
    let (inode, old) = region.file("f", &bytes).await;
    let twin = region.create("g").await;
    let left = 700_000;
    let copy =
        CopyRange { source: inode, source_offset: left, inode: twin, length: 200_000, ..Default::default() };
    let Reply::Ranged(ranged) = region.client.change(Op::CopyRange(copy)).await.unwrap() else { panic!() };
    assert_eq!((ranged.done, ranged.more), (200_000, false));
    let newer = pattern(left as usize, 11);
    let place = region.append(inode, &newer).await;
    seal(&region, &place, newer.len()).await;
    bytes[..newer.len()].copy_from_slice(&newer);
    close(&region.client).await;
    let file = format!("{:016x}", old.chunk);
    until("the old chunk is gone", async || (0..2).all(|i| !region.files(i).contains(&file))).await;
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    assert!(content(&region, inode).await == bytes);
    assert!(content(&region, twin).await == bytes[left as usize..]);
    let read = Op::ReadExtents(ReadExtents { inode, offset: left, length: 10 });
    let Reply::Extents(map) = region.client.read(read).await.unwrap() else { panic!("no extents") };
    let shared = region.place(twin).await;
    assert_eq!((shared.chunk, shared.length), (map.chunks[0].chunk, 200_000));
    super::fsck::finds_nothing(&region).await;
}

/// Two sparse chunks, one of which no copy of can be read: the other one is rewritten all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_cannot_be_read_does_not_keep_others_from_being_rewritten() {
    let mut region = Region::start(3, 2, eager).await;
    let mut files = vec![];
    for seed in [1, 2] {
        let mut bytes = pattern(900_000, seed);
        let (inode, old) = region.file(&format!("f{seed}"), &bytes).await;
        let file = format!("{:016x}", old.chunk);
        if seed == 1 {
            // Before anything is made of it.
            for disk in &region.disks {
                let path = Path::new("/data/chunks").join(shard_of(disk, &file)).join(&file);
                disk.flip_bit(&path, mooseng_chunk::layout::block_at(180));
            }
        }
        let newer = pattern(600_000, seed + 10);
        let place = region.append(inode, &newer).await;
        seal(&region, &place, newer.len()).await;
        bytes[..newer.len()].copy_from_slice(&newer);
        files.push((inode, file, bytes));
    }
    let (_, rotten, _) = &files[0];
    close(&region.client).await;
    let (inode, old, bytes) = &files[1];
    until("the sound chunk was rewritten", async || (0..2).all(|i| !region.files(i).contains(old))).await;
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    assert!(content(&region, *inode).await == *bytes);
    assert!((0..2).all(|i| region.files(i).contains(rotten)), "what can't be read was thrown away");
}

fn shard_of(disk: &SimDisk, file: &str) -> String {
    let shards = disk.list(Path::new("/data/chunks")).unwrap();
    let has = |shard: &&String| {
        disk.list(&Path::new("/data/chunks").join(shard)).unwrap().contains(&file.to_owned())
    };
    shards.iter().find(has).unwrap().clone()
}

/// The leader dies while chunkservers make the new chunk: nothing is lost, and nothing stays that nobody names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_that_is_cut_short_leaves_nothing() {
    let mut region = Region::start(3, 2, |config| {
        eager(config);
        // Slow enough to be cut short.
        config.house.rewrite_mib_per_s = 1;
    })
    .await;
    let mut bytes = pattern(6_000_000, 3);
    let inode = region.create("f").await;
    let mut at = 0;
    let place = region.append(inode, &bytes[..1_000_000]).await;
    while at + 1_000_000 < bytes.len() {
        at += 1_000_000;
        region.append_at(inode, &place, at as u64, &bytes[at..at + 1_000_000]).await;
    }
    seal(&region, &place, bytes.len()).await;
    let newer = pattern(1_000_000, 9);
    let other = region.append(inode, &newer).await;
    for n in 1..4_u64 {
        let run = ChunkRun { chunk: other.chunk, chunk_offset: 0, length: newer.len() as u64 };
        let piece = WritePiece { offset: n * 1_000_000, data: Some(Data::Run(run)) };
        let write = Write { inode, pieces: vec![piece], ..Write::default() };
        assert!(matches!(region.client.change(Op::Write(write)).await.unwrap(), Reply::Written(_)));
    }
    seal(&region, &other, newer.len()).await;
    for n in 0..4 {
        bytes[n * 1_000_000..][..1_000_000].copy_from_slice(&newer);
    }
    close(&region.client).await;
    until("a rewrite is under way", async || region.metric("mooseng_master_rewrites_under_way").await > 0)
        .await;
    region.cluster.kill(region.cluster.leader().await).await;
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    assert!(content(&region, inode).await == bytes);
    close(&region.client).await;
    until("the old chunk is gone everywhere, and no try is left", async || {
        let left: BTreeSet<String> = (0..2).flat_map(|i| region.files(i)).collect();
        !left.contains(&format!("{:016x}", place.chunk)) && left.len() == 2
    })
    .await;
    region.client = region.cluster.client("another").await;
    region.client.open(&[]).await.unwrap();
    assert!(content(&region, inode).await == bytes);
    super::fsck::finds_nothing(&region).await;
}
