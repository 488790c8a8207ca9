//! Reading small files that share a chunk.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use bytes::Bytes;
use mooseng_client::fake::FakeRegion;
use mooseng_client::{Caller, ClientConfig, FileSystem, WriteOptions};
use mooseng_ports::clock::{Clock, ManualClock};
use mooseng_wire::method::Method;

const ROOT: u64 = 1;
const FILES: usize = 200;
const BYTES: usize = 10_000;

async fn mount(region: &Arc<FakeRegion>) -> FileSystem {
    let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
    let clock = Arc::new(ManualClock::default()) as Arc<dyn Clock>;
    FileSystem::connect_through(config, region.clone(), clock).await.unwrap()
}

fn content(n: usize) -> Vec<u8> {
    (0..BYTES).map(|i| (n * 31 + i * 7 + i / 256) as u8).collect()
}

/// Reads a part of a file. Answers what chunkservers were asked for: how often, and bytes.
async fn read(fs: &FileSystem, region: &FakeRegion, n: usize, offset: u64, length: u32) -> (u64, u64) {
    let asked = || {
        let calls = |s: &mooseng_client::fake::State| s.calls.get(Method::ChunkRead.as_str()).copied();
        region.with(|s| (calls(s).unwrap_or(0), s.chunk_bytes))
    };
    let (calls, bytes) = asked();
    let me = Caller { kernel_checked: true, ..Caller::default() };
    let attr = fs.lookup(&me, ROOT, format!("f{n}").as_bytes()).await.unwrap();
    let handle = fs.open(&me, attr.inode, libc::O_RDONLY).await.unwrap().handle;
    let found = fs.read(&me, handle, offset, length).await.unwrap();
    let end = BYTES.min(offset as usize + length as usize);
    assert!(found == content(n)[offset as usize..end], "file {n} has other bytes");
    fs.release(handle).await.unwrap();
    let (calls_now, bytes_now) = asked();
    (calls_now - calls, bytes_now - bytes)
}

#[tokio::test(start_paused = true)]
async fn a_single_file_is_fetched_alone_and_a_tree_in_blocks() {
    let region = Arc::new(FakeRegion::new());
    let writer = mount(&region).await;
    let me = Caller { kernel_checked: true, ..Caller::default() };
    for n in 0..FILES {
        let created =
            writer.create(&me, ROOT, format!("f{n}").as_bytes(), 0o644, libc::O_RDWR).await.unwrap();
        let bytes = Bytes::from(content(n));
        writer.write(&me, created.handle, 0, bytes, WriteOptions::default()).await.unwrap();
        writer.fsync(created.handle, false).await.unwrap();
        writer.release(created.handle).await.unwrap();
    }
    region.with(|s| s.pack());
    let reader = mount(&region).await;
    assert_eq!(read(&reader, &region, 77, 4_096, 4_096).await, (1, 4_096), "a part of a file");
    assert_eq!(read(&reader, &region, 150, 0, 131_072).await, (1, BYTES as u64), "a file");
    // A tree is read in no order in particular: in that of names' hashes.
    let (mut calls, mut bytes) = (0, 0);
    for i in 0..FILES {
        let (c, b) = read(&reader, &region, i * 83 % FILES, 0, 131_072).await;
        (calls, bytes) = (calls + c, bytes + b);
    }
    assert!(calls < 15, "{calls} reads for {FILES} files");
    assert!(bytes < (FILES * BYTES) as u64 + 200_000, "{bytes} bytes for {FILES} files of {BYTES}");
}
