//! Small files share chunks, small chunks are merged, and files get few long extents: behind the backs of those who read and write.

use super::classes::{assign, create as create_class};
use super::rewrite::content;
use super::trash::anew;
use super::*;

const BLOCK: usize = 4096;

/// Packs whatever is there, at once, and merges nothing.
fn eager(config: &mut MasterConfig) {
    config.house.pack_after_ms = 0;
    config.house.pack_fill_kib = 0;
    config.house.merge_chunks = 0;
    config.house.join_above_extents = 0;
    config.house.rewrite_after_ms = 0;
    config.house.rewrite_gain_kib = 0;
    config.house.rewrite_mib_per_s = 0;
}

async fn write(region: &Region, inode: u64, offset: usize, bytes: &[u8]) {
    let pieces = (0..).zip(bytes.chunks(16 << 10));
    let pieces = pieces.map(|(n, part)| WritePiece {
        offset: (offset + n * (16 << 10)) as u64,
        data: Some(Data::Inline(Bytes::copy_from_slice(part))),
    });
    let write = Write { inode, pieces: pieces.collect(), ..Write::default() };
    let written = region.client.change_alone(Op::Write(write)).await.unwrap();
    assert!(matches!(written, Reply::Written(_)), "{written:?}");
}

/// Files of 4 to 60 KiB, inline.
async fn small_files(region: &Region, names: std::ops::Range<usize>) -> BTreeMap<u64, (String, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for n in names {
        let bytes = pattern(4_096 + n * 7_919 % 57_000, n as u8);
        let inode = region.create(&format!("f{n}")).await;
        write(region, inode, 0, &bytes).await;
        files.insert(inode, (format!("f{n}"), bytes));
    }
    files
}

/// The chunks that a file's extents name; 0 for inline ones.
async fn named(region: &Region, inode: u64) -> Vec<u64> {
    let read = Op::ReadExtents(ReadExtents { inode, offset: 0, length: u64::from(u32::MAX) });
    let Reply::Extents(map) = region.client.read(read).await.unwrap() else { panic!("no extents") };
    let chunk = |extent: &mooseng_wire::fs::Extent| match extent.data.as_ref().unwrap() {
        mooseng_wire::fs::extent::Data::Run(run) => run.chunk,
        mooseng_wire::fs::extent::Data::Inline(_) => 0,
    };
    map.extents.iter().map(chunk).collect()
}

async fn all_named(region: &Region, files: &BTreeMap<u64, (String, Vec<u8>)>) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    for inode in files.keys() {
        all.extend(named(region, *inode).await);
    }
    all
}

async fn have_their_bytes(region: &Region, files: &BTreeMap<u64, (String, Vec<u8>)>) {
    for (inode, (name, bytes)) in files {
        assert!(content(region, *inode).await == *bytes, "{name} has other bytes");
    }
}

async fn all_are_packed(region: &Region, files: &BTreeMap<u64, (String, Vec<u8>)>) {
    until("all are packed", async || {
        region.metric("mooseng_master_packable_files").await == 0
            && !all_named(region, files).await.contains(&0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_share_chunks_until_most_of_them_are_deleted() {
    let mut region = Region::start(3, 2, |config| {
        eager(config);
        config.house.pack_fill_kib = 200;
    })
    .await;
    let mut files = small_files(&region, 0..70).await;
    // What was changed since it was read stays inline, until the next time.
    for (inode, (_, bytes)) in files.iter_mut().take(20) {
        let newer = pattern(1_000, 99);
        write(&region, *inode, 2_000, &newer).await;
        bytes[2_000..3_000].copy_from_slice(&newer);
    }
    // The writer was promised the files all the while, and nobody asks it.
    until("what is left is too little for a chunk", async || {
        // Nothing is left if the last scan found enough for a chunk right after the last write.
        let left = region.metric("mooseng_master_packable_bytes").await;
        left < 200 << 10 && region.metric("mooseng_master_packed_chunks_total").await > 0
    })
    .await;
    let more = small_files(&region, 70..80).await;
    files.extend(more);
    let inline = |names: &Vec<u64>| names.contains(&0);
    until("most are packed", async || {
        let mut left = 0;
        // On a slow machine the first 20 were packed before they were changed, and what was changed is too small ever to be packed.
        for inode in files.keys().skip(20) {
            left += usize::from(inline(&named(&region, *inode).await));
        }
        left < 12
    })
    .await;
    close(&region.client).await;
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    have_their_bytes(&region, &files).await;
    let chunks = all_named(&region, &files).await;
    assert!(chunks.len() < 15, "80 files are in {chunks:?}");
    super::fsck::finds_nothing(&region).await;
    let house = region.status().await.house.unwrap();
    assert!(house.packed_bytes > 1 << 20 && house.packed_chunks > 0, "{house:?}");

    // One in ten stays: what is nearly empty is rewritten, and the space comes back.
    let gone: Vec<u64> =
        files.keys().copied().enumerate().filter(|(i, _)| i % 10 != 0).map(|(_, f)| f).collect();
    for inode in gone {
        let (name, _) = files.remove(&inode).unwrap();
        let unlink = Unlink { parent: ROOT_INODE.0, name: name.into() };
        region.client.change(Op::Unlink(unlink)).await.unwrap();
    }
    anew(&mut region).await;
    let live: usize = files.values().map(|(_, bytes)| bytes.len()).sum();
    until("what was deleted is gone", async || {
        let house = region.status().await.house.unwrap();
        house.bytes_live <= live as u64 && house.bytes < 2 * live as u64 && house.dead == 0
    })
    .await;
    have_their_bytes(&region, &files).await;
    super::fsck::finds_nothing(&region).await;
}

/// Leaders are killed all the while; chunks that were made for nothing are collected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaders_death_leaves_only_chunks_that_are_collected() {
    let mut region = Region::start(3, 2, eager).await;
    let mut files = BTreeMap::new();
    for round in 0..4 {
        files.extend(small_files(&region, round * 15..round * 15 + 15).await);
        let leader = region.cluster.leader().await;
        region.cluster.kill(leader).await;
        region.client.open(&[]).await.unwrap();
        region.cluster.run(leader).await;
    }
    all_are_packed(&region, &files).await;
    anew(&mut region).await;
    have_their_bytes(&region, &files).await;
    let chunks = all_named(&region, &files).await;
    until("only what is named is left", async || {
        let status = region.status().await;
        let listed = status.chunks == chunks.len() as u64 && status.house.unwrap().dead == 0;
        listed && (0..2).all(|i| region.files(i).len() == chunks.len())
    })
    .await;
    super::fsck::finds_nothing(&region).await;
}

/// Packs are merged, with small chunks of single files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_chunks_are_merged() {
    let mut region = Region::start(1, 2, |config| {
        eager(config);
        config.house.merge_chunks = 4;
        config.house.merge_after_ms = 1_000;
        config.house.merge_fill_kib = 0;
    })
    .await;
    let mut files = BTreeMap::new();
    for n in 0..12 {
        files.extend(small_files(&region, n..n + 1).await);
        let bytes = pattern(70_000 + n * 1_000, n as u8);
        let name = format!("alone{n}");
        files.insert(region.file(&name, &bytes).await.0, (name, bytes));
    }
    all_are_packed(&region, &files).await;
    close(&region.client).await;
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    until("few chunks are left", async || region.status().await.chunks < 4).await;
    assert!(region.metric("mooseng_master_chunks_merged_total").await >= 8);
    anew(&mut region).await;
    have_their_bytes(&region, &files).await;
    super::fsck::finds_nothing(&region).await;
}

/// Whether files of a class lie on its chunkservers, in chunks that the others aren't in.
async fn have_parted(region: &Region, fast: &[u64], others: &[u64]) -> bool {
    let mut chunks = BTreeSet::new();
    for inode in fast {
        chunks.extend(named(region, *inode).await);
        if region.names(*inode).await != BTreeSet::from([name(0), name(1)]) {
            return false;
        }
    }
    for inode in others {
        if named(region, *inode).await.iter().any(|chunk| chunks.contains(chunk)) {
            return false;
        }
    }
    true
}

/// Of files that share a chunk some are assigned another storage class: they leave it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_assigned_another_class_leave_their_pack() {
    let mut region = Region::start(1, 0, |config| {
        eager(config);
        config.house.pack_fill_kib = 100;
    })
    .await;
    for i in 0..4 {
        let on = if i < 2 { "ssd" } else { "hdd" };
        region.labels.insert(i, format!("media = \"{on}\""));
        region.add().await;
    }
    create_class(&region, "fast", 2, "ssd").await.unwrap();
    let files = small_files(&region, 0..30).await;
    until("files share a chunk", async || all_named(&region, &files).await.iter().any(|chunk| *chunk != 0))
        .await;
    let mut packed = vec![];
    for inode in files.keys() {
        if !named(&region, *inode).await.contains(&0) {
            packed.push(*inode);
        }
    }
    anew(&mut region).await;
    let (fast, others) = packed.split_at(packed.len() / 2);
    for inode in fast {
        assign(&region, "fast", &format!("/{}", files[inode].0)).await.unwrap();
    }
    until("some leave", async || region.metric("mooseng_master_parted_bytes_total").await > 0).await;
    // Whoever looks is promised what it sees, and would have to be asked.
    let deadline = tokio::time::Instant::now() + WAIT;
    while !have_parted(&region, fast, others).await {
        assert!(tokio::time::Instant::now() < deadline, "files of two classes still share a chunk");
        anew(&mut region).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    have_their_bytes(&region, &files).await;
    super::fsck::finds_nothing(&region).await;
}

/// A file of many extents gets a long one, once; holes stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extents_of_a_cold_file_are_joined() {
    let mut region = Region::start(3, 2, |config| {
        eager(config);
        config.house.destage_above_kib = 0;
        config.house.join_above_extents = 10;
        config.house.join_after_ms = 1_000;
    })
    .await;
    let mut bytes = pattern(900_000, 1);
    let (inode, _) = region.file("f", &bytes).await;
    for n in 0..40 {
        let at = 100_000 + n * 5 * BLOCK % 640_000;
        write(&region, inode, at, &pattern(BLOCK, n as u8)).await;
        bytes[at..at + BLOCK].copy_from_slice(&pattern(BLOCK, n as u8));
    }
    // Behind a hole, which nobody can join.
    write(&region, inode, 2_000_000, &pattern(BLOCK, 7)).await;
    bytes.resize(2_000_000, 0);
    bytes.extend(pattern(BLOCK, 7));
    close(&region.client).await;
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    until("its extents are joined", async || region.metric("mooseng_master_joined_extents_total").await > 20)
        .await;
    let joined = region.metric("mooseng_master_joined_extents_total").await;
    let names = named(&region, inode).await;
    assert!(names.len() == 2 && names[0] == names[1], "{names:?}");
    assert!(content(&region, inode).await == bytes);
    close(&region.client).await;
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    until("what it lay in is gone", async || region.status().await.chunks == 1).await;
    super::fsck::finds_nothing(&region).await;
    assert_eq!(region.metric("mooseng_master_joined_extents_total").await, joined, "once is enough");
}
