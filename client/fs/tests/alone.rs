//! Names made alone, and told afterwards. Against a region in memory; time is paused.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use mooseng_client::fake::{FakeRegion, Fault};
use mooseng_client::{Caller, ClientConfig, FileSystem, FsError, RenameMode, SetAttr, WriteOptions};
use mooseng_ports::clock::ManualClock;

fn me() -> Caller {
    Caller { kernel_checked: true, ..Caller::default() }
}

/// A mount with a directory of its own.
async fn start() -> (Arc<FakeRegion>, FileSystem, u64) {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| (s.exclusive, s.alone) = (true, true));
    let config = ClientConfig { masters: region.masters(), delegate: true, ..ClientConfig::default() };
    let clock = Arc::new(ManualClock::default());
    let fs = FileSystem::connect_through(config, region.clone(), clock).await.unwrap();
    let directory = fs.mkdir(&me(), 1, b"d", 0o755).await.unwrap().inode;
    (region, fs, directory)
}

fn changes(region: &FakeRegion) -> u64 {
    region.with(|s| s.executed)
}

fn named(region: &FakeRegion, directory: u64, name: &[u8]) -> Option<u64> {
    region.with(|s| s.named(directory, name))
}

async fn make(fs: &FileSystem, directory: u64, name: &[u8]) -> u64 {
    let made = fs.create(&me(), directory, name, 0o644, libc::O_RDWR | libc::O_EXCL).await.unwrap();
    let options = WriteOptions::default();
    fs.write(&me(), made.handle, 0, Bytes::from_static(b"data"), options).await.unwrap();
    fs.release(made.handle).await.unwrap();
    made.attr.inode
}

#[tokio::test(start_paused = true)]
async fn a_tree_is_made_at_once_and_told_with_few_requests() {
    let (region, fs, directory) = start().await;
    let before = changes(&region);
    let below = fs.mkdir(&me(), directory, b"below", 0o755).await.unwrap().inode;
    let link = fs.symlink(&me(), below, b"l", b"target").await.unwrap();
    assert_eq!(changes(&region), before, "nothing was told yet");
    assert_eq!(fs.lookup(&me(), directory, b"below").await.unwrap().inode, below);
    assert_eq!(fs.readlink(&me(), link.inode).await.unwrap(), Bytes::from_static(b"target"));
    assert_eq!(fs.find(&me(), below, b"nothing").await.unwrap(), None);
    let made = fs.create(&me(), below, b"f", 0o644, libc::O_RDWR | libc::O_EXCL).await.unwrap();
    fs.write(&me(), made.handle, 0, Bytes::from_static(b"data"), WriteOptions::default()).await.unwrap();
    let again = fs.create(&me(), below, b"f", 0o644, libc::O_RDWR | libc::O_EXCL).await;
    assert_eq!(again, Err(FsError::Answered(libc::EEXIST)));
    assert_eq!(changes(&region), before);
    fs.fsync(made.handle, false).await.unwrap();
    assert!(changes(&region) <= before + 2, "all of it went with one request or two");
    assert_eq!(named(&region, below, b"f"), Some(made.attr.inode));
    assert_eq!(fs.getattr(&me(), made.attr.inode).await.unwrap().size, 4);
    fs.release(made.handle).await.unwrap();
    let status = fs.status();
    assert_eq!((status.untold, status.made_alone, status.untold_lost), (0, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_directory_comes_with_the_answer_that_made_it() {
    let (region, fs, directory) = start().await;
    let before = changes(&region);
    let asked = region.with(|s| s.reads);
    fs.mkdir(&me(), directory, b"e", 0o755).await.unwrap();
    assert_eq!(changes(&region), before, "it goes to the region later");
    // But for its ids, and its owner's limits.
    assert!(region.with(|s| s.reads) <= asked + 2, "neither the list nor the directory was asked for");
}

/// A name is being made in a directory the usual way, by somebody who was killed since, when the directory is removed: its own look at what is known must not
/// overtake that.
#[tokio::test(start_paused = true)]
async fn a_directory_is_removed_behind_what_is_under_way_in_it() {
    let (region, fs, directory) = start().await;
    let below = fs.mkdir(&me(), directory, b"below", 0o755).await.unwrap().inode;
    let file = make(&fs, directory, b"f").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fs.status().untold, 0);
    region.masters().iter().for_each(|m| region.fault(m, Some(Fault::Hung)));
    let of = fs.clone();
    let linking = tokio::spawn(async move { of.link(&me(), file, below, b"y").await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    linking.abort();
    let of = fs.clone();
    let removing = tokio::spawn(async move { of.rmdir(&me(), directory, b"below").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!removing.is_finished(), "the directory isn't known to be empty");
    region.masters().iter().for_each(|m| region.fault(m, None));
    assert_eq!(removing.await.unwrap(), Err(FsError::Answered(libc::ENOTEMPTY)));
    assert_eq!(named(&region, below, b"y"), Some(file));
}

/// The open was counted before it was known whether the file can be made, and nobody was left to count it back.
#[tokio::test(start_paused = true)]
async fn a_file_whose_maker_is_killed_before_it_is_made_isnt_open() {
    let (region, fs, directory) = start().await;
    // Ids are there from now on; the limits of another owner aren't known.
    make(&fs, directory, b"first").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    region.masters().iter().for_each(|m| region.fault(m, Some(Fault::Hung)));
    let of = fs.clone();
    let making = tokio::spawn(async move {
        let other = Caller { uid: 7, gid: 7, ..me() };
        of.create(&other, directory, b"f", 0o644, libc::O_RDWR | libc::O_EXCL).await.is_ok()
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(!making.is_finished());
    assert_eq!(fs.status().open_inodes, 1);
    making.abort();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(fs.status().open_inodes, 0);
    region.masters().iter().for_each(|m| region.fault(m, None));
    assert_eq!(fs.find(&me(), directory, b"f").await.unwrap(), None);
}

/// What was made alone is told a while later, but for who waits for it: fsync of a new file took as long.
#[tokio::test(start_paused = true)]
async fn fsync_of_a_new_file_waits_for_nothing_but_the_region() {
    let (region, fs, directory) = start().await;
    // Its ids are asked for, and its limits.
    make(&fs, directory, b"first").await;
    let made = fs.create(&me(), directory, b"f", 0o644, libc::O_RDWR | libc::O_EXCL).await.unwrap();
    fs.write(&me(), made.handle, 0, Bytes::from_static(b"data"), WriteOptions::default()).await.unwrap();
    let began = tokio::time::Instant::now();
    fs.fsync(made.handle, false).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(5), "{:?}", began.elapsed());
    assert!(region.with(|s| s.named(directory, b"f")).is_some());
    fs.release(made.handle).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_few_changes_in_a_row_make_a_directory_ones_own() {
    let (region, fs, _) = start().await;
    for n in 0..4 {
        make(&fs, 1, format!("f{n}").as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let before = changes(&region);
    fs.unlink(&me(), 1, b"f3").await.unwrap();
    fs.mkdir(&me(), 1, b"e", 0o755).await.unwrap();
    assert_eq!(changes(&region), before);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(changes(&region), before + 1);
    assert!(named(&region, 1, b"f3").is_none() && named(&region, 1, b"e").is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_and_renamed_alone_is_so_at_the_region_afterwards() {
    let (region, fs, directory) = start().await;
    let a = make(&fs, directory, b"a").await;
    let b = make(&fs, directory, b"b").await;
    fs.rename(&me(), directory, b"a", directory, b"b", RenameMode::Replace).await.unwrap();
    assert_eq!(fs.lookup(&me(), directory, b"b").await.unwrap().inode, a);
    assert_ne!(a, b);
    let below = fs.mkdir(&me(), directory, b"below", 0o755).await.unwrap().inode;
    make(&fs, below, b"x").await;
    assert_eq!(fs.rmdir(&me(), directory, b"below").await, Err(FsError::Answered(libc::ENOTEMPTY)));
    fs.unlink(&me(), below, b"x").await.unwrap();
    fs.rmdir(&me(), directory, b"below").await.unwrap();
    let set = SetAttr { inode: directory, mode: Some(0o700), ..SetAttr::default() };
    assert_eq!(fs.setattr(&me(), set).await.unwrap().mode & 0o7777, 0o700);
    fs.fsync_directory(directory).await.unwrap();
    assert_eq!(named(&region, directory, b"b"), Some(a));
    assert!(named(&region, directory, b"a").is_none() && named(&region, directory, b"below").is_none());
    assert_eq!(fs.status().untold_lost, 0);
    region.with(|s| assert_eq!(s.violations, Vec::<String>::new()));
}

#[tokio::test(start_paused = true)]
async fn what_was_written_along_with_names_is_read_afterwards() {
    let (region, fs, directory) = start().await;
    let inode = make(&fs, directory, b"f").await;
    let opened = fs.open(&me(), inode, libc::O_RDWR).await.unwrap();
    fs.fsync(opened.handle, false).await.unwrap();
    // Where it lies is known from now on.
    assert_eq!(fs.read(&me(), opened.handle, 0, 10).await.unwrap(), Bytes::from_static(b"data"));
    let new = Bytes::from_static(b"newer data");
    fs.write(&me(), opened.handle, 0, new.clone(), WriteOptions::default()).await.unwrap();
    fs.mkdir(&me(), directory, b"below", 0o755).await.unwrap();
    let before = changes(&region);
    fs.fsync(opened.handle, false).await.unwrap();
    assert_eq!(changes(&region), before + 1, "both went with one request");
    assert_eq!(fs.read(&me(), opened.handle, 0, 10).await.unwrap(), new);
    fs.release(opened.handle).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lapse_loses_what_is_untold_and_says_so_once_to_each_handle() {
    let (region, fs, directory) = start().await;
    let heard = AtomicU64::new(fs.losses());
    let made = fs.create(&me(), directory, b"f", 0o644, libc::O_RDWR | libc::O_EXCL).await.unwrap();
    region.lapse();
    assert_eq!(fs.fsync(made.handle, false).await, Err(FsError::Answered(libc::EIO)));
    assert_eq!(fs.fsync(made.handle, false).await, Ok(()));
    assert_eq!(fs.fsync_open_directory(directory, &heard).await, Err(FsError::Answered(libc::EIO)));
    assert_eq!(fs.fsync_open_directory(directory, &heard).await, Ok(()));
    assert_eq!(fs.find(&me(), directory, b"f").await.unwrap(), None);
    assert!(matches!(
        fs.getattr(&me(), made.attr.inode).await,
        Err(FsError::Answered(libc::ENOENT | libc::ESTALE))
    ));
    assert_eq!(fs.status().untold_lost, 1);
}

#[tokio::test(start_paused = true)]
async fn one_refused_change_leaves_the_others_and_is_reported() {
    let (region, fs, directory) = start().await;
    let heard = AtomicU64::new(fs.losses());
    let first = fs.create(&me(), directory, b"one", 0o644, libc::O_RDWR | libc::O_EXCL).await.unwrap();
    let taken = fs.create(&me(), directory, b"two", 0o644, libc::O_RDWR | libc::O_EXCL).await.unwrap();
    // A region that breaks its word: somebody else has made that name.
    let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
    let other =
        FileSystem::connect_through(config, region.clone(), Arc::new(ManualClock::default())).await.unwrap();
    other.mkdir(&me(), directory, b"two", 0o755).await.unwrap();
    let last = fs.create(&me(), directory, b"three", 0o644, libc::O_RDWR | libc::O_EXCL).await;
    assert_eq!(fs.fsync(first.handle, false).await, Ok(()));
    assert_eq!(fs.fsync(taken.handle, false).await, Err(FsError::Answered(libc::EEXIST)));
    assert_eq!(fs.fsync_open_directory(directory, &heard).await, Err(FsError::Answered(libc::EEXIST)));
    assert_eq!(named(&region, directory, b"one"), Some(first.attr.inode));
    assert_eq!(named(&region, directory, b"three"), Some(last.unwrap().attr.inode));
}

#[tokio::test(start_paused = true)]
async fn another_leader_is_told_what_the_first_one_was_not_and_nothing_twice() {
    let (region, fs, directory) = start().await;
    let made = fs.create(&me(), directory, b"f", 0o644, libc::O_RDWR | libc::O_EXCL).await.unwrap();
    region.elect(&region.masters()[1]);
    fs.fsync(made.handle, false).await.unwrap();
    assert_eq!(named(&region, directory, b"f"), Some(made.attr.inode));
    assert_eq!(fs.status().untold_lost, 0);
    // Opened again, it is the file that the region holds open for this session.
    let again = fs.open(&me(), made.attr.inode, libc::O_RDWR).await.unwrap();
    fs.release(made.handle).await.unwrap();
    fs.unlink(&me(), directory, b"f").await.unwrap();
    fs.write(&me(), again.handle, 0, Bytes::from_static(b"x"), WriteOptions::default()).await.unwrap();
    fs.fsync(again.handle, false).await.unwrap();
    let read = fs.read(&me(), again.handle, 0, 10).await.unwrap();
    assert_eq!(read, Bytes::from_static(b"x"));
}

#[tokio::test(start_paused = true)]
async fn a_region_that_knows_nothing_of_it_is_told_each_change_at_once() {
    let region = Arc::new(FakeRegion::new());
    region.with(|s| s.exclusive = true);
    let config = ClientConfig { masters: region.masters(), delegate: true, ..ClientConfig::default() };
    let clock = Arc::new(ManualClock::default());
    let fs = FileSystem::connect_through(config, region.clone(), clock).await.unwrap();
    let directory = fs.mkdir(&me(), 1, b"d", 0o755).await.unwrap().inode;
    for n in 0..5 {
        fs.mkdir(&me(), directory, format!("{n}").as_bytes(), 0o755).await.unwrap();
    }
    assert_eq!((changes(&region), fs.status().made_alone), (6, 0));
}
