//! Small files go to chunks that they share, beside everything else that may happen to them.

use mooseng_namespace::upkeep;
use mooseng_wire::ChunkId;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;

use crate::harness::*;

fn content(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (seed as usize * 41 + i * 7 + i / 256) as u8).collect()
}

/// How many extents each file has in a chunk.
async fn users(volume: &Volume, chunk: u64) -> Vec<(u64, u64)> {
    let users =
        volume.driver.transact(deadline(), |tx| Box::pin(upkeep::chunk_users(tx, ChunkId(chunk), 99)));
    users.await.unwrap().0.into_iter().map(|(inode, extents)| (inode.0, extents)).collect()
}

async fn bury(volume: &Volume, chunk: u64) -> bool {
    let buried = volume.driver.transact(deadline(), move |tx| {
        Box::pin(async move { upkeep::bury_chunk(tx, ChunkId(chunk), 5, i64::MAX).await })
    });
    buried.await.unwrap().0
}

#[tokio::test]
async fn files_share_a_chunk_unless_they_are_others_by_then() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let sizes = [100, 4_095, 4_096, 5_000, 20_000, 65_536, 4_100, 9_000, 9_001, 9_002];
    let mut files = vec![];
    for (i, size) in sizes.into_iter().enumerate() {
        let inode = client.create(ROOT, &format!("f{i}")).await;
        client.write(inode, 0, &content(i as u64, size)).await;
        files.push((inode, content(i as u64, size)));
    }
    let inode = |i: usize| files[i].0;
    assert_eq!(volume.packable().await, (2..10).map(inode).collect::<Vec<_>>(), "what is tiny stays");
    let all: Vec<u64> = (2..10).map(inode).collect();
    let (chunk, moved) = volume.copy_packable(&all, 0).await.unwrap();
    // Meanwhile: one is overwritten in part, one by the same bytes, one is cut off, one deleted, and one grows.
    client.write(inode(3), 1_000, &[0xEE; 50]).await;
    client.write(inode(6), 0, &content(6, 4_100)).await;
    client.ask(Op::SetAttr(SetAttr { inode: inode(7), size: Some(10), ..Default::default() })).await;
    client.ask(Op::Unlink(Unlink { parent: ROOT, name: name("f8") })).await;
    volume.own(Op::Reap(Reap { inodes: vec![inode(8)] })).await;
    client.write(inode(9), 9_002, &[3; 10]).await;
    let mut expected: Vec<Vec<u8>> = files.iter().map(|(_, bytes)| bytes.clone()).collect();
    expected[3][1_000..1_050].fill(0xEE);
    expected[7].truncate(10);
    expected[9].extend([3; 10]);
    let before = client.attr(inode(4)).await;
    let swapped = volume.pack(chunk, &moved).await;
    assert_eq!(swapped.left, 5_000 + 8_990 + 9_001, "{swapped:?}");
    assert_eq!(client.attr(inode(4)).await, before, "what a file shows isn't touched");
    for (i, bytes) in expected.iter().enumerate().filter(|(i, _)| *i != 8) {
        assert!(client.read(inode(i)).await == *bytes, "file {i}");
    }
    volume.check();
    // A file's pieces lie side by side: one extent is enough.
    let of = |i: usize, extents: u64| (inode(i), extents);
    let named = [of(2, 1), of(4, 1), of(5, 1), of(6, 1), of(7, 1), of(9, 1)];
    assert_eq!(users(&volume, chunk).await, named);
    assert_eq!(volume.packable().await, [inode(3)], "it was written anew");
    // Doing it once more changes nothing.
    assert_eq!(volume.pack(chunk, &moved).await.bytes, 0);
    volume.check();
    // Deleting all but one leaves the chunk to that one.
    for i in [2, 3, 4, 5, 6, 7] {
        client.ask(Op::Unlink(Unlink { parent: ROOT, name: name(&format!("f{i}")) })).await;
    }
    volume.own(Op::Reap(Reap { inodes: (2..8).map(inode).collect() })).await;
    assert_eq!(users(&volume, chunk).await, [of(9, 1)]);
    assert!(!bury(&volume, chunk).await, "it is in use");
    assert!(client.read(inode(9)).await == expected[9]);
    volume.check();
}

#[tokio::test]
async fn a_file_of_another_storage_class_stays_out_and_so_does_what_is_deleted() {
    let volume = Volume::with_trash(1, 0.0, 3_600).await;
    let client = volume.client(1).await;
    crate::classes::made(&volume, "one").await;
    let mut inodes = vec![];
    for text in ["a", "b", "c"] {
        let inode = client.create(ROOT, text).await;
        client.write(inode, 0, &content(inode, 6_000)).await;
        inodes.push(inode);
    }
    let (chunk, moved) = volume.copy_packable(&inodes, 0).await.unwrap();
    crate::classes::assign(&volume, inodes[1], "one").await.unwrap();
    let swapped = volume.pack(chunk, &moved).await;
    assert_eq!((swapped.bytes, swapped.left), (12_000, 6_000));
    assert_eq!(volume.packable().await, [inodes[1]]);
    assert_eq!(users(&volume, chunk).await, [(inodes[0], 1), (inodes[2], 1)]);
    client.ask(Op::Unlink(Unlink { parent: ROOT, name: name("b") })).await;
    volume.check();
}

#[tokio::test]
async fn what_is_packed_after_its_chunk_was_given_up_stays() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    client.write(inode, 0, &content(1, 5_000)).await;
    let (chunk, moved) = volume.copy_packable(&[inode], 0).await.unwrap();
    assert!(bury(&volume, chunk).await);
    assert_eq!(volume.pack(chunk, &moved).await.bytes, 0);
    assert!(client.read(inode).await == content(1, 5_000));
    assert_eq!(volume.packable().await, [inode]);
    volume.check();
}
