//! How bytes come that weren't sent as they were appended, and where a home has them from that has lost them.

use std::path::PathBuf;

use mooseng_chunkserver::ChunkserverServer;
use mooseng_master::geo::ROOT_VOLUME;
use mooseng_namespace::upkeep;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_ports::disk::{Disk, OpenMode};
use mooseng_store::Store;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::write_piece::Data;
use mooseng_wire::fs::{Write, WritePiece};
use mooseng_wire::method::Method;

use super::common::until;
use super::pushed::{
    FILE_BYTES, both, create, done, file, file_after, is_compared, is_complete, metric, sending, start,
};
use super::sync::synced;
use super::{client, serving};

/// How many requests of that kind they have answered.
fn requests(servers: &[ChunkserverServer], method: Method) -> u64 {
    let name = format!("mooseng_chunkserver_requests_total{{method=\"{}\"}} ", method.as_str());
    let of = |server: &ChunkserverServer| {
        let text = server.metrics().encode();
        text.lines().find_map(|line| line.strip_prefix(name.as_str())?.parse::<u64>().ok())
    };
    servers.iter().filter_map(of).sum()
}

/// Found by reading: what wasn't sent was asked for before it was read, also where the log had told where it is, and took two round trips.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_wasnt_sent_is_read_where_the_log_says_and_compared_afterwards() {
    let regions = synced().await;
    let home = client(&regions, "a", "a");
    let _here = both(&regions, "a", &Default::default()).await;
    let mut there = Vec::new();
    // When it is allocated there is nobody yet who takes its bytes.
    let chunk = file_after(&home, "f", async |_, _| {
        there = both(&regions, "b", &Default::default()).await;
    })
    .await;
    until("all of it is there", async || is_complete(&regions)).await;
    until("it is compared with what it is to be", async || is_compared(&regions, chunk).await).await;
    assert_eq!(requests(&there, Method::ChunkPull), 0, "what it is to be was asked for first");
    for server in &there {
        assert!(server.store().read(chunk, 0, FILE_BYTES as u64).unwrap() == vec![7_u8; FILE_BYTES]);
    }
}

/// What house-keeping at the home makes of small writes is sent to the other region, too, and needn't be read at home.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_house_keeping_makes_is_sent() {
    const PIECES: u64 = 30;
    const PIECE_BYTES: u64 = 16 << 10;
    let regions = synced().await;
    let (_here, there, home) = sending(&regions, &Default::default()).await;
    let inode = create(&home, "small-writes").await;
    let before = metric(&there, "mooseng_chunkserver_pulled_bytes_total");
    for n in 0..3 {
        let piece = |i: u64| WritePiece {
            offset: (1 << 20) + (n * PIECES + i) * PIECE_BYTES,
            data: Some(Data::Inline(vec![9_u8; PIECE_BYTES as usize].into())),
        };
        let pieces = (0..PIECES).map(piece).collect();
        done(&home, Op::Write(Write { inode, pieces, ..Write::default() })).await;
    }
    let master = serving(&regions, "a").unwrap();
    let made = async || {
        let tx = master.store.begin();
        let (chunks, _) = upkeep::list_chunks(&tx, ROOT_VOLUME, None, 1_000).await.unwrap();
        let of_it = |of: &upkeep::ChunkListing| of.record.inode == inode && of.used.extents > 0;
        chunks.into_iter().find(of_it).map(|of| (of.chunk, of.record.length))
    };
    until("it is in a chunk", async || made().await.is_some()).await;
    let (chunk, length) = made().await.unwrap();
    until("it is compared with what it is to be", async || is_compared(&regions, chunk).await).await;
    let pulled = metric(&there, "mooseng_chunkserver_pulled_bytes_total") - before;
    // What comes late may have been read.
    assert!(pulled <= length / 2, "{pulled} of {length} bytes were read at home, or from each other");
}

/// Found by review: a home all of whose copies of a chunk were bad had it from no other region.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_whose_copies_are_all_corrupt_has_the_chunk_from_another_region() {
    let regions = synced().await;
    let disks: [SimDisk; 2] = Default::default();
    let (here, _there, home) = sending(&regions, &disks).await;
    let chunk = file(&home, "f").await;
    until("the other region has it", async || is_compared(&regions, chunk).await).await;
    let path = PathBuf::from(format!("/data/chunks/{:02x}/{:016x}", chunk.0 & 0xff, chunk.0));
    for (disk, server) in disks.iter().zip(&here) {
        let file = disk.open(&path, OpenMode::Existing).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, 4096 + 100).unwrap();
        file.write_at(&[byte[0] ^ 4], 4096 + 100).unwrap();
        assert!(server.store().read(chunk, 0, FILE_BYTES as u64).is_err(), "whoever reads it notices");
    }
    for server in &here {
        until("its copy is a good one", async || {
            let read = server.store().read(chunk, 0, FILE_BYTES as u64);
            read.is_ok_and(|bytes| bytes == vec![7_u8; FILE_BYTES])
        })
        .await;
    }
    let master = serving(&regions, "a").unwrap();
    until("they are on record", async || {
        let listing = upkeep::load_chunk(&master.store.begin(), chunk).await.unwrap();
        let location = listing.unwrap().location.unwrap();
        location.copies.len() == 2 && location.partial.is_none()
    })
    .await;
}

/// Found by review: what a replica's region had on chunkservers that were all given up it had from nowhere again, for it may come back, and the region counted as having it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_copies_are_all_lost_has_the_chunk_from_its_home_again() {
    let mut regions = synced().await;
    // Its masters give chunkservers up soon.
    let there = regions.of("b")[0];
    regions.kill(there).await;
    regions.sites[there].config.house.grace_ms = 500;
    regions.run(there).await;
    let (_here, there, home) = sending(&regions, &Default::default()).await;
    let chunk = file(&home, "f").await;
    until("the other region has it", async || is_compared(&regions, chunk).await).await;
    drop(there);
    let mut others = Vec::new();
    for name in ["b-c3", "b-c4"] {
        others.push(start(&regions, "b", name, SimDisk::default()).await);
    }
    let master = serving(&regions, "b").unwrap();
    until("it lies on others", async || {
        let listing = upkeep::load_chunk(&master.store.begin(), chunk).await.unwrap();
        let mut location = listing.unwrap().location.unwrap();
        location.copies.sort();
        location.partial.is_none() && location.copies == ["b-c3", "b-c4"]
    })
    .await;
    for server in &others {
        assert!(server.store().read(chunk, 0, FILE_BYTES as u64).unwrap() == vec![7_u8; FILE_BYTES]);
    }
}
