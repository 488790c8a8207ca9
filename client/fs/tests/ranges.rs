//! Holes and copies against a region in memory, which does a little of a range at a time. Time is paused.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_client::fake::{FakeRegion, Fault};
use mooseng_client::{Caller, ClientConfig, FileSystem, FsError, HandleId, WriteOptions};
use mooseng_ports::clock::{Clock, ManualClock};
use mooseng_wire::method::Method;

const ROOT: u64 = 1;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

fn me() -> Caller {
    Caller { kernel_checked: true, ..Caller::default() }
}

async fn start() -> (Arc<FakeRegion>, FileSystem) {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| s.exclusive = true);
    let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
    let clock = Arc::new(ManualClock::default()) as Arc<dyn Clock>;
    let fs = FileSystem::connect_through(config, region.clone(), clock).await.unwrap();
    (region, fs)
}

async fn create(fs: &FileSystem, name: &str, flags: i32) -> (u64, HandleId) {
    let created = fs.create(&me(), ROOT, name.as_bytes(), 0o644, flags).await.unwrap();
    (created.attr.inode, created.handle)
}

async fn write(fs: &FileSystem, handle: HandleId, data: &[u8]) {
    fs.write(&me(), handle, 0, Bytes::copy_from_slice(data), WriteOptions::default()).await.unwrap();
}

async fn read(fs: &FileSystem, handle: HandleId) -> Vec<u8> {
    fs.read(&me(), handle, 0, 1 << 20).await.unwrap().to_vec()
}

/// Starts some work while no master answers, has it sent, and gives it up as for a process that is killed. Then they answer again.
async fn kill<F>(region: &FakeRegion, work: F)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    region.masters().iter().for_each(|m| region.fault(m, Some(Fault::Hung)));
    let working = tokio::spawn(work);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!working.is_finished());
    working.abort();
    tokio::time::sleep(Duration::from_millis(10)).await;
    region.masters().iter().for_each(|m| region.fault(m, None));
}

/// Appends and reads that chunkservers have been asked for.
fn data_calls(region: &FakeRegion) -> u64 {
    let methods = [Method::ChunkAppend, Method::ChunkRead];
    region.with(|s| methods.iter().filter_map(|method| s.calls.get(method.as_str())).sum())
}

#[tokio::test(start_paused = true)]
async fn a_hole_is_made_in_what_was_written_before_step_by_step() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f", libc::O_RDWR).await;
    let mut expected = vec![7; 10_000];
    write(&fs, file, &expected).await;
    let before = region.with(|s| s.executed);
    fs.fallocate(&me(), file, PUNCH, 1_500, 5_000).await.unwrap();
    expected[1_500..6_500].fill(0);
    assert_eq!(read(&fs, file).await, expected);
    assert_eq!(region.with(|s| s.executed), before + 1 + 5, "one flush, five steps");
    fs.fallocate(&me(), file, 0, 9_000, 3_000).await.unwrap();
    expected.resize(12_000, 0);
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().size, 12_000);
    assert_eq!(read(&fs, file).await, expected);
    fs.fallocate(&me(), file, libc::FALLOC_FL_KEEP_SIZE, 0, 90_000).await.unwrap();
    fs.fallocate(&me(), file, libc::FALLOC_FL_ZERO_RANGE, 11_000, 2_000).await.unwrap();
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().size, 13_000);
}

#[tokio::test(start_paused = true)]
async fn ranges_that_make_no_sense_are_refused_before_the_region_hears_of_them() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f", libc::O_RDWR).await;
    let readable = fs.open(&me(), inode, libc::O_RDONLY).await.unwrap().handle;
    let before = region.with(|s| s.executed);
    for (handle, mode, offset, length, errno) in [
        (file, 0, 5, 0, libc::EINVAL),
        (file, 0, u64::MAX, 2, libc::EFBIG),
        (file, 0, 1 << 60, 1, libc::EFBIG),
        (file, libc::FALLOC_FL_PUNCH_HOLE, 0, 1, libc::EOPNOTSUPP),
        (file, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 1, libc::EOPNOTSUPP),
        (file, PUNCH | libc::FALLOC_FL_ZERO_RANGE, 0, 1, libc::EOPNOTSUPP),
        (readable, 0, 0, 1, libc::EBADF),
        (99, 0, 0, 1, libc::EBADF),
    ] {
        let refused = fs.fallocate(&me(), handle, mode, offset, length).await.unwrap_err();
        assert_eq!(refused.errno(), errno, "{mode} {offset} {length}: {refused}");
    }
    assert_eq!(region.with(|s| s.executed), before);
}

#[tokio::test(start_paused = true)]
async fn a_copy_sends_what_was_written_seals_its_chunk_and_no_more_data() {
    let (region, fs) = start().await;
    let (source, from) = create(&fs, "f", libc::O_RDWR).await;
    let (_, to) = create(&fs, "g", libc::O_RDWR).await;
    let data: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    write(&fs, from, &data).await;
    write(&fs, to, b"this comes first, and is overwritten").await;
    assert_eq!(fs.copy_range(&me(), (from, 0), (to, 0), 1 << 30).await, Ok(200_000));
    assert_eq!(fs.status().dirty_bytes, 0);
    assert_eq!(read(&fs, to).await, data);
    let before = data_calls(&region);
    let (_, third) = create(&fs, "h", libc::O_RDWR).await;
    assert_eq!(fs.copy_range(&me(), (to, 0), (third, 0), 200_000).await, Ok(200_000));
    assert_eq!(data_calls(&region), before);
    assert_eq!(read(&fs, third).await, data);
    assert_eq!(fs.copy_range(&me(), (from, 200_000), (to, 0), 10).await, Ok(0), "the end");

    let few = fs.copy_range(&me(), (from, 0), (to, 0), 65_536).await;
    assert_eq!(few, Err(FsError::Answered(libc::EXDEV)), "these are buffered faster than shared");
    let readable = fs.open(&me(), source, libc::O_RDONLY).await.unwrap().handle;
    let writable = fs.open(&me(), source, libc::O_WRONLY).await.unwrap().handle;
    let append = fs.open(&me(), source, libc::O_RDWR | libc::O_APPEND).await.unwrap().handle;
    for (from, to) in [(from, readable), (writable, to), (from, append)] {
        let refused = fs.copy_range(&me(), (from, 0), (to, 0), 200_000).await.unwrap_err();
        assert_eq!(refused.errno(), libc::EBADF);
    }
}

/// Whoever waits for a process that was killed has its changes behind him.
#[tokio::test(start_paused = true)]
async fn of_a_killed_hole_nothing_comes_after_a_later_write() {
    let (region, fs) = start().await;
    let (_, file) = create(&fs, "f", libc::O_RDWR).await;
    let mut expected = vec![7; 10_000];
    write(&fs, file, &expected).await;
    fs.fsync(file, false).await.unwrap();
    let before = region.with(|s| s.executed);
    let of = fs.clone();
    kill(&region, async move { of.fallocate(&me(), file, PUNCH, 1_500, 5_000).await }).await;
    let later = Bytes::from_static(&[9; 100]);
    fs.write(&me(), file, 1_500, later, WriteOptions::default()).await.unwrap();
    fs.fsync(file, false).await.unwrap();
    assert_eq!(region.with(|s| s.executed), before + 2, "the step that was under way, and the write");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(region.with(|s| s.executed), before + 2, "no further step was begun");
    expected[1_500..2_500].fill(0);
    expected[1_500..1_600].fill(9);
    assert_eq!(read(&fs, file).await, expected);
}

#[tokio::test(start_paused = true)]
async fn of_a_killed_copy_nothing_comes_after_a_later_write() {
    let (region, fs) = start().await;
    let (_, from) = create(&fs, "f", libc::O_RDWR).await;
    let (_, sealed) = create(&fs, "g", libc::O_RDWR).await;
    let (_, to) = create(&fs, "h", libc::O_RDWR).await;
    let mut expected = vec![7; 200_000];
    write(&fs, from, &expected).await;
    assert_eq!(fs.copy_range(&me(), (from, 0), (sealed, 0), 200_000).await, Ok(200_000));
    let of = fs.clone();
    kill(&region, async move { of.copy_range(&me(), (from, 0), (to, 0), 200_000).await }).await;
    write(&fs, to, &[9; 100]).await;
    fs.fsync(to, false).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    expected[..100].fill(9);
    assert_eq!(read(&fs, to).await, expected);
    assert_eq!(fs.status().unanswered, 0);
}
