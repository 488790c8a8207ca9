//! Attributes that are set on a file under the exclusive promise wait with its data. Against a region in memory; time is paused.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_client::fake::FakeRegion;
use mooseng_client::{Caller, ClientConfig, FileSystem, FsError, HandleId, SetAttr, WriteOptions};
use mooseng_ports::clock::{Clock, ManualClock};

fn me() -> Caller {
    Caller { kernel_checked: true, ..Caller::default() }
}

/// A file of the session's own, its inode and its handle.
async fn start() -> (Arc<FakeRegion>, FileSystem, u64, HandleId) {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| s.exclusive = true);
    let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
    let clock = Arc::new(ManualClock::default()) as Arc<dyn Clock>;
    let fs = FileSystem::connect_through(config, region.clone(), clock).await.unwrap();
    let made = fs.create(&me(), 1, b"f", 0o644, libc::O_RDWR).await.unwrap();
    (region, fs, made.attr.inode, made.handle)
}

/// Another host, which knows only what the region has.
async fn another(region: &Arc<FakeRegion>) -> FileSystem {
    let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
    FileSystem::connect_through(config, region.clone(), Arc::new(ManualClock::default())).await.unwrap()
}

async fn write(fs: &FileSystem, handle: HandleId, data: &'static [u8]) {
    fs.write(&me(), handle, 0, Bytes::from_static(data), WriteOptions::default()).await.unwrap();
}

fn changes(region: &FakeRegion) -> u64 {
    region.with(|s| s.executed)
}

fn owner(inode: u64) -> SetAttr {
    SetAttr { inode, uid: Some(7), gid: Some(8), ..SetAttr::default() }
}

#[tokio::test(start_paused = true)]
async fn owner_mode_and_times_go_with_the_data_in_one_change() {
    let (region, fs, inode, file) = start().await;
    let before = changes(&region);
    write(&fs, file, b"data").await;
    let mode = SetAttr { inode, mode: Some(0o100_600), ..SetAttr::default() };
    let times = SetAttr { inode, atime_ns: Some(5), mtime_ns: Some(6), ..SetAttr::default() };
    for change in [owner(inode), mode, times] {
        fs.setattr(&me(), change).await.unwrap();
    }
    assert_eq!(changes(&region), before);
    let shown = fs.getattr(&me(), inode).await.unwrap();
    assert_eq!((shown.uid, shown.gid, shown.mode & 0o7777, shown.mtime_ns, shown.size), (7, 8, 0o600, 6, 4));
    fs.release(file).await.unwrap();
    assert_eq!(changes(&region), before + 1);
    let stored = another(&region).await.getattr(&me(), inode).await.unwrap();
    assert_eq!((stored.uid, stored.gid, stored.mode & 0o7777), (7, 8, 0o600));
    assert_eq!((stored.atime_ns, stored.mtime_ns, stored.size), (5, 6, 4));
    assert_eq!(fs.status().dirty_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn attributes_alone_wait_too_and_fsync_and_age_and_the_end_send_them() {
    for way in 0..3 {
        let (region, fs, inode, file) = start().await;
        let before = changes(&region);
        fs.setattr(&me(), owner(inode)).await.unwrap();
        assert_eq!(changes(&region), before);
        match way {
            0 => fs.fsync(file, false).await.unwrap(),
            1 => tokio::time::sleep(Duration::from_secs(5)).await,
            _ => fs.close().await,
        }
        assert_eq!(changes(&region), before + 1, "{way}");
        assert_eq!(another(&region).await.getattr(&me(), inode).await.unwrap().uid, 7);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_moves_the_time_that_was_set_before_it_and_not_the_one_set_after() {
    let (region, fs, inode, file) = start().await;
    let time = SetAttr { inode, mtime_ns: Some(-1), ..SetAttr::default() };
    fs.setattr(&me(), time).await.unwrap();
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().mtime_ns, -1);
    write(&fs, file, b"later").await;
    assert!(fs.getattr(&me(), inode).await.unwrap().mtime_ns >= 0);
    fs.fsync(file, false).await.unwrap();
    assert!(another(&region).await.getattr(&me(), inode).await.unwrap().mtime_ns >= 0);
    write(&fs, file, b"again").await;
    fs.setattr(&me(), time).await.unwrap();
    fs.fsync(file, false).await.unwrap();
    assert_eq!(another(&region).await.getattr(&me(), inode).await.unwrap().mtime_ns, -1);
}

#[tokio::test(start_paused = true)]
async fn what_the_region_must_decide_goes_there_at_once_behind_what_waits() {
    let (region, fs, inode, file) = start().await;
    write(&fs, file, b"data").await;
    fs.setattr(&me(), owner(inode)).await.unwrap();
    let before = changes(&region);
    fs.setattr(&me(), SetAttr { inode, mode: Some(0o104_755), ..SetAttr::default() }).await.unwrap();
    assert_eq!(changes(&region), before + 2, "the data with its owner, and the mode");
    // Nobody has looked whether this caller may.
    let stranger = Caller { uid: 1000, ..Caller::default() };
    fs.setattr(&stranger, SetAttr { inode, mtime_now: true, ..SetAttr::default() }).await.unwrap();
    assert_eq!(changes(&region), before + 3);
}

/// What can never be stored is given up. Owner, mode and times don't go with it.
#[tokio::test(start_paused = true)]
async fn attributes_are_stored_though_the_data_beneath_them_isnt() {
    let (region, fs, inode, file) = start().await;
    write(&fs, file, b"data").await;
    fs.setattr(&me(), owner(inode)).await.unwrap();
    fs.setattr(&me(), SetAttr { inode, mode: Some(0o600), mtime_ns: Some(6), ..SetAttr::default() })
        .await
        .unwrap();
    region.with(|s| s.refuse_writes = Some(libc::EFBIG));
    let refused = FsError::Answered(libc::EFBIG);
    assert_eq!(fs.fsync(file, false).await, Err(refused));
    assert_eq!(fs.fsync(file, false).await, Ok(()), "said once");
    assert_eq!(fs.status().dirty_bytes, 0);
    let stored = another(&region).await.getattr(&me(), inode).await.unwrap();
    assert_eq!(
        (stored.uid, stored.gid, stored.mode & 0o7777, stored.mtime_ns, stored.size),
        (7, 8, 0o600, 6, 0)
    );
}

/// What is shown of a file that was written after its time was set into the future.
#[tokio::test(start_paused = true)]
async fn a_write_shows_its_own_time_also_after_one_in_the_future_was_set() {
    const FUTURE: i64 = i64::MAX / 2;
    let (region, fs, inode, file) = start().await;
    fs.setattr(&me(), SetAttr { inode, mtime_ns: Some(FUTURE), ..SetAttr::default() }).await.unwrap();
    fs.fsync(file, false).await.unwrap();
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().mtime_ns, FUTURE);
    write(&fs, file, b"later").await;
    let shown = fs.getattr(&me(), inode).await.unwrap().mtime_ns;
    assert!(shown < FUTURE, "{shown}");
    fs.fsync(file, false).await.unwrap();
    let stored = another(&region).await.getattr(&me(), inode).await.unwrap().mtime_ns;
    assert_eq!(shown, stored);
}

const LIST: &[u8] = b"system.posix_acl_access";

async fn list_of(fs: &FileSystem, inode: u64) -> Option<Bytes> {
    match fs.getxattr(&me(), inode, LIST).await {
        Ok(list) => Some(list),
        Err(FsError::Answered(libc::ENODATA)) => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_is_asked_for_once_and_again_after_each_change_of_the_mode() {
    let (region, fs, inode, file) = start().await;
    let asked = || region.with(|s| s.reads);
    fs.setxattr(&me(), inode, LIST, b"list", false, false).await.unwrap();
    let before = asked();
    for _ in 0..3 {
        assert_eq!(list_of(&fs, inode).await.as_deref(), Some(&b"list"[..]));
    }
    assert_eq!(asked(), before + 1);
    // A mode that waits goes before the list is read.
    write(&fs, file, b"data").await;
    fs.setattr(&me(), SetAttr { inode, mode: Some(0o600), ..SetAttr::default() }).await.unwrap();
    let (before, changed) = (asked(), changes(&region));
    assert!(list_of(&fs, inode).await.is_some());
    assert_eq!((asked(), changes(&region)), (before + 1, changed + 1));
    // And before one is set.
    fs.setattr(&me(), SetAttr { inode, mode: Some(0o640), ..SetAttr::default() }).await.unwrap();
    let changed = changes(&region);
    fs.removexattr(&me(), inode, LIST).await.unwrap();
    assert_eq!(changes(&region), changed + 2);
    assert_eq!(list_of(&fs, inode).await, None);
}
