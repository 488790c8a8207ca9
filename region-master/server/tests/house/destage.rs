//! Small writes to large files are moved into chunks, beneath whoever goes on writing.

use super::rewrite::content;
use super::*;

const BLOCK: usize = 4096;

fn block(n: usize) -> Vec<u8> {
    (0..BLOCK).map(|i| (n * 31 + i * 7 + i / 256) as u8).collect()
}

/// Overwrites inline, as a client does for an fsync of little; what the region doesn't take goes to a chunk. Answers whether it was inline.
async fn overwrite(region: &Region, inode: u64, offset: usize, bytes: &[u8]) -> bool {
    let data = Some(Data::Inline(Bytes::copy_from_slice(bytes)));
    let piece = WritePiece { offset: offset as u64, data };
    let write = Write { inode, pieces: vec![piece], ..Write::default() };
    match region.client.change_alone(Op::Write(write)).await.unwrap() {
        Reply::Written(_) => true,
        Reply::Errno(errno) => {
            assert_eq!(errno, 90, "EMSGSIZE: it is to go to a chunk");
            false
        }
        other => panic!("not written: {other:?}"),
    }
}

/// Thousands of fsyncs of one file: what the store keeps of it stays bounded, nobody has to give up a promise for that, and the bytes are right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_overwritten_all_the_while_has_little_inline() {
    let mut region = Region::start(3, 2, |config| config.house.destage_above_kib = 256).await;
    let mut bytes = pattern(8_000_000, 1);
    let (inode, _) = {
        let inode = region.create("f").await;
        let place = region.append(inode, &bytes[..1_000_000]).await;
        for at in (1_000_000..bytes.len()).step_by(1_000_000) {
            region.append_at(inode, &place, at as u64, &bytes[at..at + 1_000_000]).await;
        }
        (inode, place)
    };
    let (mut most, mut refused) = (0, 0);
    for n in 0..3_000 {
        let at = 100_000 + n * 7919 % 1_900 * BLOCK;
        if overwrite(&region, inode, at, &block(n)).await {
            bytes[at..at + BLOCK].copy_from_slice(&block(n));
        } else {
            refused += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        most = most.max(region.metric("mooseng_master_staged_bytes").await);
    }
    assert!(most <= 4 << 20, "{most} bytes were staged at a time");
    assert!(refused < 1_000, "destaging doesn't keep up at all: {refused} overwrites were refused");
    until("little is left", async || region.metric("mooseng_master_staged_bytes").await <= 256 << 10).await;
    assert!(region.metric("mooseng_master_destaged_bytes_total").await >= 1 << 20);
    assert_eq!(region.metric("mooseng_master_destages_failed_total").await, 0);
    // The writer was promised the file all the while, and nobody asked it.
    close(&region.client).await;
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    assert!(content(&region, inode).await == bytes, "the file has other bytes");
    super::fsck::finds_nothing(&region).await;
}

/// What nobody writes any more goes, however little it is; several files share a chunk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_alone_goes_to_a_chunk_that_files_share() {
    let mut region = Region::start(3, 2, |config| config.house.destage_after_ms = 3_000).await;
    let mut files = vec![];
    for seed in [1, 2, 3] {
        let mut bytes = pattern(300_000, seed);
        let (inode, _) = region.file(&format!("f{seed}"), &bytes).await;
        for n in 0..3 {
            let at = 100_000 + n * 3 * BLOCK;
            assert!(overwrite(&region, inode, at, &block(n)).await);
            bytes[at..at + BLOCK].copy_from_slice(&block(n));
        }
        files.push((inode, bytes));
    }
    until("it is staged", async || region.metric("mooseng_master_staged_bytes").await == 9 * 4096).await;
    until("it is in a chunk", async || {
        region.metric("mooseng_master_destaged_bytes_total").await == 9 * 4096
    })
    .await;
    until("nothing is staged", async || region.metric("mooseng_master_staged_bytes").await == 0).await;
    close(&region.client).await;
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    for (inode, bytes) in &files {
        assert!(content(&region, *inode).await == *bytes, "file {inode} has other bytes");
    }
    super::fsck::finds_nothing(&region).await;
}

/// Without enough chunkservers it stays where it is, readable, and goes once they are back; also under another leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_moved_stays() {
    let mut region = Region::start(3, 2, |config| config.house.destage_above_kib = 0).await;
    let mut bytes = pattern(300_000, 1);
    let (inode, _) = region.file("f", &bytes).await;
    region.stop(1).await;
    assert!(overwrite(&region, inode, 200_000, &block(1)).await);
    bytes[200_000..200_000 + BLOCK].copy_from_slice(&block(1));
    until("it was tried", async || region.metric("mooseng_master_destages_failed_total").await > 0).await;
    assert_eq!(region.metric("mooseng_master_destaged_bytes_total").await, 0);
    region.cluster.kill(region.cluster.leader().await).await;
    region.client.open(&[]).await.unwrap();
    region.run(1).await;
    until("it is moved", async || region.metric("mooseng_master_destaged_bytes_total").await == 4096).await;
    close(&region.client).await;
    region.client = region.cluster.client("reader").await;
    region.client.open(&[]).await.unwrap();
    assert!(content(&region, inode).await == bytes);
    super::fsck::finds_nothing(&region).await;
}

/// A region that moves nothing takes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_destaging_small_writes_of_large_files_go_to_chunks_at_once() {
    let region = Region::start(1, 2, |config| config.house.destages_at_once = 0).await;
    let (inode, _) = region.file("f", &pattern(300_000, 1)).await;
    assert!(!overwrite(&region, inode, 200_000, &block(1)).await);
    assert!(overwrite(&region, inode, 0, &block(1)).await, "the first bytes are as of a small file");
}
