//! Buffered writes against a region in memory that promises every inode exclusively. Time is paused.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "buffers/ahead.rs"]
mod ahead;
#[path = "buffers/cut.rs"]
mod cut;
#[path = "buffers/own.rs"]
mod own;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_client::fake::{FakeRegion, Fault};
use mooseng_client::{
    Caller, ClientConfig, FileSystem, FsError, HandleId, Invalidate, RenameMode, SetAttr, WriteOptions,
};
use mooseng_ports::clock::{Clock, ManualClock};

const ROOT: u64 = 1;

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

async fn create(fs: &FileSystem, name: &str) -> (u64, HandleId) {
    let created = fs.create(&me(), ROOT, name.as_bytes(), 0o644, libc::O_RDWR).await.unwrap();
    (created.attr.inode, created.handle)
}

async fn write(fs: &FileSystem, handle: HandleId, offset: u64, data: &[u8]) -> Result<(), FsError> {
    fs.write(&me(), handle, offset, Bytes::copy_from_slice(data), WriteOptions::default()).await.map(drop)
}

fn changes(region: &FakeRegion) -> u64 {
    region.with(|s| s.executed)
}

#[tokio::test(start_paused = true)]
async fn writes_wait_and_are_shown_and_fsync_sends_them_in_one_change() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    let before = changes(&region);
    for n in 0..20_u64 {
        write(&fs, file, n * 3, &[n as u8; 5]).await.unwrap();
    }
    assert_eq!(changes(&region), before);
    assert_eq!(fs.status().dirty_bytes, 62);
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().size, 62);
    assert_eq!(&fs.read(&me(), file, 57, 100).await.unwrap()[..], &[19; 5]);
    assert_eq!(&fs.read(&me(), file, 56, 3).await.unwrap()[..], &[18, 19, 19]);
    fs.fsync(file, false).await.unwrap();
    assert_eq!((changes(&region), fs.status().dirty_bytes), (before + 1, 0));
    assert_eq!(&fs.read(&me(), file, 56, 3).await.unwrap()[..], &[18, 19, 19]);
    fs.fsync(file, false).await.unwrap();
    assert_eq!(changes(&region), before + 1, "there is nothing left to send");
}

#[tokio::test(start_paused = true)]
async fn nothing_stays_dirty_for_five_seconds() {
    let (region, fs) = start().await;
    let (_, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"x").await.unwrap();
    let before = changes(&region);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(changes(&region), before);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((changes(&region), fs.status().dirty_bytes), (before + 1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_a_write_finds_it_done() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"0123456789").await.unwrap();
    fs.setattr(&me(), SetAttr { inode, size: Some(4), ..SetAttr::default() }).await.unwrap();
    assert_eq!(fs.status().dirty_bytes, 0);
    assert_eq!(&fs.read(&me(), file, 0, 100).await.unwrap()[..], b"0123");
    write(&fs, file, 4, b"4").await.unwrap();
    let before = changes(&region);
    fs.rename(&me(), ROOT, b"f", ROOT, b"g", RenameMode::Replace).await.unwrap();
    assert_eq!((changes(&region), fs.status().dirty_bytes), (before + 2, 0), "data first, then the name");
    write(&fs, file, 5, b"5").await.unwrap();
    fs.release(file).await.unwrap();
    assert_eq!((fs.status().dirty_bytes, fs.status().open_inodes), (0, 0));
}

/// They change the file's time of change, by which it is seen after a lapse whether somebody else has changed it.
#[tokio::test(start_paused = true)]
async fn an_own_link_or_extended_attribute_comes_after_the_data() {
    let (_region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"0").await.unwrap();
    fs.setxattr(&me(), inode, b"user.colour", b"green", false, false).await.unwrap();
    assert_eq!(fs.status().dirty_bytes, 0, "setxattr");
    write(&fs, file, 1, b"1").await.unwrap();
    fs.removexattr(&me(), inode, b"user.colour").await.unwrap();
    assert_eq!(fs.status().dirty_bytes, 0, "removexattr");
    write(&fs, file, 2, b"2").await.unwrap();
    assert_eq!(fs.link(&me(), inode, ROOT, b"g").await.unwrap().size, 3);
    assert_eq!(fs.status().dirty_bytes, 0, "link");
}

fn refused(errno: i32) -> Result<(), FsError> {
    Err(FsError::Answered(errno))
}

/// The region takes nothing more for that reason, or everything again.
fn refuse(region: &FakeRegion, errno: Option<i32>) {
    region.with(|s| s.refuse_writes = errno);
}

async fn open(fs: &FileSystem, inode: u64, flags: i32) -> HandleId {
    fs.open(&me(), inode, flags).await.unwrap().handle
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_back_is_told_to_each_handle_once_and_then_to_whoever_writes() {
    let (region, fs) = start().await;
    let (inode, first) = create(&fs, "f").await;
    let second = open(&fs, inode, libc::O_RDWR).await;
    write(&fs, first, 0, b"lost").await.unwrap();
    // Nothing that passes.
    refuse(&region, Some(libc::EPERM));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fs.status().dirty_bytes, 0);
    let later = open(&fs, inode, libc::O_RDWR).await;
    for handle in [first, second, later] {
        assert_eq!(fs.fsync(handle, false).await, refused(libc::EPERM));
        assert_eq!(fs.fsync(handle, false).await, Ok(()));
    }
    let clean = open(&fs, inode, libc::O_RDWR).await;
    assert_eq!(fs.fsync(clean, false).await, Ok(()), "somebody had heard of it before it was opened");
    assert_eq!(write(&fs, first, 0, b"more").await, refused(libc::EPERM), "it goes through");
    refuse(&region, None);
    write(&fs, first, 0, b"more").await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let before = changes(&region);
    write(&fs, first, 0, b"buffered").await.unwrap();
    assert_eq!(changes(&region), before);
}

/// It was given up at once: a copy of small files into a full region ended well, and was gone.
#[tokio::test(start_paused = true)]
async fn data_without_room_is_kept_and_told_each_time_until_there_is_room() {
    for errno in [libc::ENOSPC, libc::EDQUOT, libc::EIO] {
        let (region, fs) = start().await;
        let (inode, first) = create(&fs, "f").await;
        let second = open(&fs, inode, libc::O_RDWR).await;
        write(&fs, first, 0, b"kept").await.unwrap();
        refuse(&region, Some(errno));
        tokio::time::sleep(Duration::from_secs(3)).await;
        for handle in [first, second, first, second] {
            assert_eq!(fs.fsync(handle, false).await, refused(errno), "it isn't stored");
        }
        assert_eq!(write(&fs, first, 4, b"more").await, refused(errno), "whoever writes hears of it");
        assert_eq!(fs.status().dirty_bytes, 4);
        assert_eq!(&fs.read(&me(), second, 0, 9).await.unwrap()[..], b"kept");
        let before = changes(&region);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let tries = changes(&region) - before;
        assert!((1..=3).contains(&tries), "{tries} tries in a minute");
        refuse(&region, None);
        tokio::time::sleep(Duration::from_secs(40)).await;
        assert_eq!(fs.status().dirty_bytes, 0, "nobody asked for it");
        for handle in [first, second] {
            assert_eq!(fs.fsync(handle, false).await, Ok(()), "nothing was lost");
        }
        assert_eq!(&at_the_region(&region, inode).await[..], b"kept");
        let before = changes(&region);
        write(&fs, first, 4, b"more").await.unwrap();
        assert_eq!(changes(&region), before, "it is buffered again");
    }
}

#[tokio::test(start_paused = true)]
async fn close_tells_once_of_a_failure_that_is_known_and_fsync_still_does() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"lost").await.unwrap();
    assert_eq!(fs.flush(file).await, Ok(()));
    assert_eq!(fs.status().dirty_bytes, 4, "it waits for nothing");
    refuse(&region, Some(libc::EPERM));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let reader = open(&fs, inode, libc::O_RDONLY).await;
    assert_eq!(fs.flush(reader).await, Ok(()), "it has written nothing");
    assert_eq!(fs.flush(file).await, refused(libc::EPERM));
    assert_eq!(fs.flush(file).await, Ok(()));
    assert_eq!(fs.fsync(file, false).await, refused(libc::EPERM));
    assert_eq!((fs.fsync(file, false).await, fs.flush(file).await), (Ok(()), Ok(())));

    refuse(&region, None);
    tokio::time::sleep(Duration::from_secs(6)).await;
    write(&fs, file, 0, b"kept").await.unwrap();
    refuse(&region, Some(libc::ENOSPC));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fs.flush(file).await, refused(libc::ENOSPC));
    assert_eq!(fs.flush(file).await, Ok(()));
    assert_eq!(fs.fsync(file, false).await, refused(libc::ENOSPC));
    let other = open(&fs, inode, libc::O_WRONLY).await;
    assert_eq!(fs.flush(other).await, refused(libc::ENOSPC));
    // It looks once more before it says so.
    refuse(&region, None);
    let third = open(&fs, inode, libc::O_WRONLY).await;
    assert_eq!(fs.flush(third).await, Ok(()));
    assert_eq!(fs.status().dirty_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_opens_the_file_next_hears_of_a_failure_that_nobody_has_heard_of() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"lost").await.unwrap();
    refuse(&region, Some(libc::EPERM));
    fs.release(file).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((fs.status().dirty_bytes, fs.status().open_inodes), (0, 0));
    let next = open(&fs, inode, libc::O_RDWR).await;
    assert_eq!(fs.fsync(next, false).await, refused(libc::EPERM));
    assert_eq!(fs.fsync(next, false).await, Ok(()));
    let later = open(&fs, inode, libc::O_RDWR).await;
    assert_eq!(fs.fsync(later, false).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn while_the_region_is_known_to_be_full_write_itself_says_so() {
    let (region, fs) = start().await;
    refuse(&region, Some(libc::ENOSPC));
    let (inode, first) = create(&fs, "f").await;
    write(&fs, first, 0, b"kept").await.unwrap();
    fs.release(first).await.unwrap();
    let (_, second) = create(&fs, "g").await;
    for _ in 0..2 {
        assert_eq!(write(&fs, second, 0, b"x").await, refused(libc::ENOSPC));
    }
    assert_eq!(fs.status().dirty_bytes, 4, "of the second nothing is buffered");
    refuse(&region, None);
    let before = changes(&region);
    write(&fs, second, 0, b"x").await.unwrap();
    assert_eq!(changes(&region), before + 1, "it goes through");
    write(&fs, second, 1, b"y").await.unwrap();
    assert_eq!(changes(&region), before + 1, "and is buffered once one did");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(fs.status().dirty_bytes, 0);
    assert_eq!(&at_the_region(&region, inode).await[..], b"kept");
}

/// Then somebody else needs the file: they are given up, and whoever opens it next hears of that.
#[tokio::test(start_paused = true)]
async fn data_without_room_outlives_a_lapse_only_if_nobody_has_changed_the_file() {
    for changed in [false, true] {
        let (region, fs) = start().await;
        let (inode, file) = create(&fs, "f").await;
        write(&fs, file, 0, b"old").await.unwrap();
        fs.fsync(file, false).await.unwrap();
        write(&fs, file, 0, b"new").await.unwrap();
        refuse(&region, Some(libc::ENOSPC));
        fs.release(file).await.unwrap();
        region.lapse();
        if changed {
            region.with(|s| s.change_elsewhere(inode));
        }
        fs.mkdir(&me(), ROOT, b"d", 0o755).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(fs.status().dirty_bytes, if changed { 0 } else { 3 });
        refuse(&region, None);
        let next = open(&fs, inode, libc::O_RDWR).await;
        let synced = fs.fsync(next, false).await;
        assert_eq!(synced, if changed { refused(libc::EIO) } else { Ok(()) });
        assert_eq!(fs.fsync(next, false).await, Ok(()));
        assert_eq!(&at_the_region(&region, inode).await[..], if changed { b"old" } else { b"new" });
    }
}

#[tokio::test(start_paused = true)]
async fn data_without_room_is_read_over_the_regions_and_can_be_truncated_away() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"0123456789").await.unwrap();
    fs.fsync(file, false).await.unwrap();
    write(&fs, file, 4, b"abcd").await.unwrap();
    refuse(&region, Some(libc::ENOSPC));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fs.fsync(file, false).await, refused(libc::ENOSPC));
    let before = changes(&region);
    for _ in 0..5 {
        assert_eq!(&fs.read(&me(), file, 0, 100).await.unwrap()[..], b"0123abcd89");
    }
    assert_eq!(changes(&region), before, "it isn't sent again for who only reads");
    assert_eq!(fs.seek(&me(), inode, 2, mooseng_client::SeekWhence::Data).await, Ok(2));
    let set = fs.setxattr(&me(), inode, b"user.a", b"b", false, false).await;
    assert_eq!(set, refused(libc::ENOSPC), "it would come after the data");
    let cut = |size| SetAttr { inode, size: Some(size), ..SetAttr::default() };
    assert_eq!(fs.setattr(&me(), cut(6)).await.unwrap().size, 6);
    assert_eq!(fs.status().dirty_bytes, 2);
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().size, 6);
    assert_eq!(&fs.read(&me(), file, 0, 100).await.unwrap()[..], b"0123ab");
    fs.setattr(&me(), SetAttr { inode, mode: Some(0o600), ..SetAttr::default() }).await.unwrap();
    fs.setattr(&me(), cut(0)).await.unwrap();
    assert_eq!(fs.fsync(file, false).await, Ok(()), "nothing is left that needs room");
    assert_eq!(fs.status().dirty_bytes, 0);
    assert_eq!(&at_the_region(&region, inode).await[..], b"");
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().mode & 0o7777, 0o600);
}

/// Who shows what is promised, and is told to look anew.
#[derive(Default)]
struct Kernel {
    told: Mutex<Vec<u64>>,
    entries: Mutex<Vec<(u64, Bytes)>>,
}

#[async_trait]
impl Invalidate for Kernel {
    async fn entry(&self, directory: u64, name: &Bytes) {
        self.entries.lock().unwrap().push((directory, name.clone()));
    }
    async fn inode(&self, inode: u64) {
        self.told.lock().unwrap().push(inode);
    }
    async fn directory(&self, _directory: u64) {}
    async fn everything(&self) {}
}

/// Its pages have the bytes, and nothing that it compares them by has changed: it would show for ever what was never stored.
#[tokio::test(start_paused = true)]
async fn whoever_has_pages_of_what_was_given_up_is_told() {
    for with_settings in [false, true] {
        let (region, fs) = start().await;
        let kernel = Arc::new(Kernel::default());
        fs.show_through(kernel.clone());
        let (inode, file) = create(&fs, "f").await;
        write(&fs, file, 0, b"old").await.unwrap();
        fs.fsync(file, false).await.unwrap();
        let before = fs.getattr(&me(), inode).await.unwrap();
        write(&fs, file, 0, b"new").await.unwrap();
        if with_settings {
            fs.setattr(&me(), SetAttr { inode, mtime_ns: Some(7), ..SetAttr::default() }).await.unwrap();
            assert!(fs.status().dirty_bytes > 0, "it is buffered with the data");
        }
        refuse(&region, Some(libc::EFBIG));
        assert!(kernel.told.lock().unwrap().is_empty(), "nothing is lost yet");
        assert_eq!(fs.fsync(file, false).await, refused(libc::EFBIG));
        assert_eq!(*kernel.told.lock().unwrap(), [inode]);
        let after = fs.getattr(&me(), inode).await.unwrap();
        assert_eq!(after.size, before.size);
        assert_eq!(after.mtime_ns, if with_settings { 7 } else { before.mtime_ns });
        assert_eq!(&fs.read(&me(), file, 0, 9).await.unwrap()[..], b"old");
    }
}

/// The kernel was told that the change failed, and may have looked since, before it was done.
#[tokio::test(start_paused = true)]
async fn whoever_shows_what_a_killed_process_has_changed_is_told() {
    let (region, fs) = start().await;
    let kernel = Arc::new(Kernel::default());
    fs.show_through(kernel.clone());
    let (inode, _file) = create(&fs, "f").await;
    let hold = fs.hold(inode);
    assert!(hold.is_some());
    region.masters().iter().for_each(|m| region.fault(m, Some(Fault::Hung)));
    let of = fs.clone();
    let linking = tokio::spawn(async move { of.link(&me(), inode, ROOT, b"g").await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    linking.abort();
    tokio::time::sleep(Duration::from_millis(10)).await;
    region.masters().iter().for_each(|m| region.fault(m, None));
    assert!(kernel.entries.lock().unwrap().is_empty());
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(region.with(|s| s.named(ROOT, b"g")), Some(inode), "it was under way");
    assert_eq!(*kernel.entries.lock().unwrap(), [(ROOT, Bytes::from_static(b"g"))]);
    assert_eq!(*kernel.told.lock().unwrap(), [ROOT, inode]);
    assert_ne!(fs.hold(inode), hold, "what was kept by it may be older");
}

/// What is promised isn't asked for: it showed the old time for good, and each read was sent again.
#[tokio::test(start_paused = true)]
async fn an_access_time_is_shown_once_it_was_sent_and_sent_once() {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| s.exclusive = true);
    let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
    let clock = ManualClock::default();
    let fs =
        FileSystem::connect_through(config, region.clone(), Arc::new(clock.clone()) as Arc<dyn Clock>).await;
    let fs = fs.unwrap();
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"x").await.unwrap();
    fs.fsync(file, false).await.unwrap();
    clock.advance(Duration::from_secs(1));
    let read = || async { fs.read(&me(), file, 0, 9).await.unwrap() };
    assert_eq!(&read().await[..], b"x");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let shown = fs.getattr(&me(), inode).await.unwrap();
    assert_eq!(shown.atime_ns, region.with(|s| s.atime(inode)));
    assert!(shown.atime_ns > shown.mtime_ns);
    let before = changes(&region);
    read().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(changes(&region), before);
}

/// What was buffered has its room: what hasn't is refused by write() itself, and nothing by fsync.
#[tokio::test(start_paused = true)]
async fn a_write_beyond_a_quota_says_so_and_room_mends_it() {
    let (region, fs) = start().await;
    region.with(|s| s.quota = Some(10_000));
    let (_, file) = create(&fs, "f").await;
    let before = changes(&region);
    write(&fs, file, 0, &[1; 6_000]).await.unwrap();
    write(&fs, file, 0, &[2; 4_000]).await.unwrap();
    assert_eq!(changes(&region), before, "it is buffered");
    assert_eq!(write(&fs, file, 6_000, &[3; 5_000]).await, Err(FsError::Answered(libc::EDQUOT)));
    fs.fsync(file, false).await.unwrap();
    // In its full quota a file can be overwritten.
    write(&fs, file, 6_000, &[3; 4_000]).await.unwrap();
    write(&fs, file, 0, &[4; 10_000]).await.unwrap();
    assert_eq!(write(&fs, file, 10_000, &[5]).await, Err(FsError::Answered(libc::EDQUOT)));
    fs.fsync(file, false).await.unwrap();
    region.with(|s| s.quota = Some(20_000));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = changes(&region);
    write(&fs, file, 10_000, &[5; 6_000]).await.unwrap();
    assert_eq!(changes(&region), before, "it is buffered again");
    fs.fsync(file, false).await.unwrap();
    // What isn't used goes back.
    tokio::time::sleep(Duration::from_secs(6)).await;
    region.with(|s| assert!(s.escrow.0 >= 16_000, "{:?}", s.escrow));
}

#[tokio::test(start_paused = true)]
async fn data_waits_for_a_region_that_is_away() {
    let (region, fs) = start().await;
    let (_, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"kept").await.unwrap();
    region.masters().iter().for_each(|m| region.fault(m, Some(Fault::Down)));
    let syncing = tokio::spawn({
        let fs = fs.clone();
        async move { fs.fsync(file, false).await }
    });
    tokio::time::sleep(Duration::from_secs(30)).await;
    // A change that is still under way when the flush is given up: what is sent again waits for it.
    let making = tokio::spawn({
        let fs = fs.clone();
        async move { fs.mkdir(&me(), ROOT, b"d", 0o755).await }
    });
    let error = syncing.await.unwrap().unwrap_err();
    assert!(matches!(error, FsError::Unanswered { .. }), "{error}");
    assert_eq!(fs.status().dirty_bytes, 4);
    region.masters().iter().for_each(|m| region.fault(m, None));
    fs.fsync(file, false).await.unwrap();
    making.await.unwrap().unwrap();
    assert_eq!(&fs.read(&me(), file, 0, 9).await.unwrap()[..], b"kept");
}

#[tokio::test(start_paused = true)]
async fn after_a_lapse_data_is_sent_only_if_nobody_has_changed_the_file() {
    for changed in [false, true] {
        let (region, fs) = start().await;
        let (inode, file) = create(&fs, "f").await;
        write(&fs, file, 0, b"old").await.unwrap();
        fs.fsync(file, false).await.unwrap();
        write(&fs, file, 0, b"new").await.unwrap();
        region.lapse();
        if changed {
            region.with(|s| s.change_elsewhere(inode));
        }
        fs.mkdir(&me(), ROOT, b"d", 0o755).await.unwrap();
        assert_eq!(fs.status().lapses, 1);
        let synced = fs.fsync(file, false).await;
        assert_eq!(synced, if changed { Err(FsError::Answered(libc::EIO)) } else { Ok(()) });
        let seen = fs.read(&me(), file, 0, 9).await.unwrap();
        assert_eq!(&seen[..], if changed { b"old" } else { b"new" });
    }
}

#[tokio::test(start_paused = true)]
async fn the_buffer_is_bounded_and_large_files_stream() {
    let (region, fs) = start().await;
    let (_, file) = create(&fs, "f").await;
    let piece = vec![7; 1 << 20];
    for n in 0..200_u64 {
        write(&fs, file, n << 20, &piece).await.unwrap();
        assert!(fs.status().dirty_bytes <= 64 << 20);
    }
    fs.fsync(file, false).await.unwrap();
    assert_eq!(fs.read(&me(), file, 137 << 20, 1 << 20).await.unwrap(), &piece[..]);
    region.with(|s| assert_eq!(s.violations, Vec::<String>::new()));
}

#[tokio::test(start_paused = true)]
async fn closing_the_filesystem_sends_what_was_written_also_what_is_being_sent() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    let (_, other) = create(&fs, "g").await;
    write(&fs, other, 0, b"waits").await.unwrap();
    let data = vec![3; 40 << 20];
    for (n, piece) in data.chunks(1 << 20).enumerate() {
        write(&fs, file, (n as u64) << 20, piece).await.unwrap();
    }
    region.fault("c1", Some(Fault::Hung));
    tokio::task::yield_now().await;
    fs.close().await;
    assert_eq!(fs.status().dirty_bytes, 0);
    let again = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
    let clock = Arc::new(ManualClock::default()) as Arc<dyn Clock>;
    let fs = FileSystem::connect_through(again, region.clone(), clock).await.unwrap();
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().size, 40 << 20);
}

/// The file may be promised again while what was buffered before the lapse is still being sent.
#[tokio::test(start_paused = true)]
async fn after_a_lapse_nothing_is_shown_of_the_buffer_before_it_is_known_to_stand() {
    const BYTES: usize = 100_000;
    for changed in [false, true] {
        let (region, fs) = start().await;
        let (inode, file) = create(&fs, "f").await;
        write(&fs, file, 0, &[1; BYTES]).await.unwrap();
        region.lapse();
        if changed {
            region.with(|s| s.write_elsewhere(inode, b"theirs"));
        }
        ["c1", "c2", "c3"].iter().for_each(|name| region.fault(name, Some(Fault::Hung)));
        fs.mkdir(&me(), ROOT, b"d", 0o755).await.unwrap();
        assert_eq!(fs.status().lapses, 1);
        // What the region answers comes with a promise.
        let (looking, reading) = (fs.clone(), fs.clone());
        let looking = tokio::spawn(async move { looking.lookup(&me(), ROOT, b"f").await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(fs.hold(inode).is_some() && fs.status().dirty_bytes > 0);
        let reading = tokio::spawn(async move { reading.read(&me(), file, 0, 6).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(fs.known_attr(inode), None);
        assert!(!looking.is_finished() && !reading.is_finished());
        ["c1", "c2", "c3"].iter().for_each(|name| region.fault(name, None));
        let (looked, read) = (looking.await.unwrap().unwrap(), reading.await.unwrap().unwrap());
        assert_eq!(looked.size, if changed { 6 } else { BYTES as u64 });
        assert_eq!(&read[..], if changed { b"theirs" } else { &[1; 6] });
    }
}

/// What the region has of a file's beginning.
async fn at_the_region(region: &Arc<FakeRegion>, inode: u64) -> Bytes {
    let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
    let clock = Arc::new(ManualClock::default()) as Arc<dyn Clock>;
    let fs = FileSystem::connect_through(config, region.clone(), clock).await.unwrap();
    let file = fs.open(&me(), inode, libc::O_RDONLY).await.unwrap().handle;
    let bytes = fs.read(&me(), file, 0, 100).await.unwrap();
    fs.close().await;
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_lapse_beneath_a_flush_doesnt_overwrite_what_others_wrote_since() {
    for changed in [false, true] {
        let (region, fs) = start().await;
        let (inode, file) = create(&fs, "f").await;
        write(&fs, file, 0, b"old").await.unwrap();
        fs.fsync(file, false).await.unwrap();
        write(&fs, file, 0, b"new").await.unwrap();
        region.masters().iter().for_each(|m| region.fault(m, Some(Fault::Hung)));
        let syncing = tokio::spawn({
            let fs = fs.clone();
            async move { fs.fsync(file, false).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        region.lapse();
        if changed {
            region.with(|s| s.change_elsewhere(inode));
        }
        region.masters().iter().for_each(|m| region.fault(m, None));
        let synced = syncing.await.unwrap();
        assert_eq!(synced, if changed { Err(FsError::Answered(libc::EIO)) } else { Ok(()) });
        assert_eq!(&at_the_region(&region, inode).await[..], if changed { b"old" } else { b"new" });
    }
}

/// One round for a small fsync, wherever in a file of whatever size; larger data, and what the region refuses, goes to chunks.
#[tokio::test(start_paused = true)]
async fn small_data_of_a_large_file_goes_in_the_change_itself_while_the_region_takes_it() {
    let (region, fs) = start().await;
    let (_, file) = create(&fs, "f").await;
    let mut bytes = vec![7; 1 << 20];
    write(&fs, file, 0, &bytes).await.unwrap();
    fs.fsync(file, false).await.unwrap();
    let appends = || region.with(|s| s.calls.get("ChunkAppend").copied().unwrap_or(0));
    let (at_first, before) = (appends(), changes(&region));
    // Several pieces, over a chunk's bytes, over each other and behind the end.
    for (at, length) in [(500_000, 4096), (502_048, 4096), (600_001, 1), (bytes.len() - 10, 100)] {
        let new = vec![at as u8; length];
        write(&fs, file, at as u64, &new).await.unwrap();
        bytes.resize(bytes.len().max(at + length), 0);
        bytes[at..at + length].copy_from_slice(&new);
    }
    fs.fsync(file, false).await.unwrap();
    assert_eq!((appends(), changes(&region)), (at_first, before + 1));
    assert!(read_all(&fs, file, bytes.len()).await == bytes);
    // Too much for it.
    write(&fs, file, 0, &[1; 100_000]).await.unwrap();
    bytes[..100_000].fill(1);
    fs.fsync(file, false).await.unwrap();
    assert!(appends() > at_first);
    // The region has enough: a round more once, and then it isn't asked for a while.
    region.with(|s| s.staging_closed = true);
    for n in 0..3_usize {
        let (appends_before, before) = (appends(), changes(&region));
        write(&fs, file, 200_000, &[n as u8; 4096]).await.unwrap();
        bytes[200_000..204_096].fill(n as u8);
        fs.fsync(file, false).await.unwrap();
        assert!(appends() > appends_before, "overwrite {n}");
        assert_eq!(changes(&region) - before, if n == 0 { 2 } else { 1 }, "overwrite {n}");
    }
    assert!(read_all(&fs, file, bytes.len()).await == bytes);
    region.with(|s| s.staging_closed = false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let appends_before = appends();
    write(&fs, file, 200_000, &[9; 4096]).await.unwrap();
    fs.fsync(file, false).await.unwrap();
    assert_eq!(appends(), appends_before);
}

async fn read_all(fs: &FileSystem, file: HandleId, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let part = fs.read(&me(), file, bytes.len() as u64, 200_000).await.unwrap();
        assert!(!part.is_empty());
        bytes.extend_from_slice(&part);
    }
    bytes
}

/// What is buffered goes before an own change of the file, which would look like somebody else's after a lapse.
#[tokio::test(start_paused = true)]
async fn a_link_shows_what_is_buffered() {
    let (_region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"0123456789").await.unwrap();
    let linked = fs.link(&me(), inode, ROOT, b"g").await.unwrap();
    assert_eq!((linked.size, linked.nlink), (10, 2));
    assert_eq!(fs.getattr(&me(), inode).await.unwrap(), linked);
}
