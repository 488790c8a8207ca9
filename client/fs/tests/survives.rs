//! The client against a region in memory: what must work, and what it must survive. Time is paused, so that waiting costs nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_client::fake::{FakeRegion, Fault};
use mooseng_client::{
    Caller, ClientConfig, FileSystem, FsError, HandleId, RenameMode, SetAttr, WriteMode, WriteOptions,
};
use mooseng_ports::clock::{Clock, ManualClock};
use mooseng_wire::founding::Founding;

const ROOT: u64 = 1;

fn me() -> Caller {
    Caller { kernel_checked: true, ..Caller::default() }
}

async fn connect(region: &Arc<FakeRegion>) -> FileSystem {
    let config = ClientConfig { masters: region.masters(), ..ClientConfig::default() };
    FileSystem::connect_through(config, region.clone(), Arc::new(ManualClock::default()) as Arc<dyn Clock>)
        .await
        .unwrap()
}

async fn create(fs: &FileSystem, name: &str) -> (u64, HandleId) {
    let created = fs.create(&me(), ROOT, name.as_bytes(), 0o644, libc::O_RDWR).await.unwrap();
    (created.attr.inode, created.handle)
}

async fn write(fs: &FileSystem, handle: HandleId, offset: u64, data: &[u8]) {
    fs.write(&me(), handle, offset, Bytes::copy_from_slice(data), WriteOptions::default()).await.unwrap();
}

async fn read(fs: &FileSystem, handle: HandleId, offset: u64, length: u32) -> Bytes {
    fs.read(&me(), handle, offset, length).await.unwrap()
}

/// Bytes that differ from place to place.
fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed).collect()
}

fn clean(region: &FakeRegion) {
    region.with(|s| assert_eq!(s.violations, Vec::<String>::new()));
}

#[tokio::test(start_paused = true)]
async fn small_files_are_inline_large_ones_in_chunks_and_holes_are_zeros() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (_, small) = create(&fs, "small").await;
    write(&fs, small, 0, b"hello").await;
    write(&fs, small, 40_000, b"world").await;
    region.with(|s| assert_eq!(s.calls.get("ChunkAppend"), None));
    assert_eq!(&read(&fs, small, 0, 5).await[..], b"hello");
    assert_eq!(&read(&fs, small, 39_999, 100).await[..], b"\0world");

    let (inode, large) = create(&fs, "large").await;
    // More than one chunk of the fake's 4 MiB.
    let data = pattern(9 << 20, 3);
    write(&fs, large, 0, &data).await;
    write(&fs, large, 20 << 20, b"far").await;
    for offset in [0usize, 1, 4095, (4 << 20) - 7, (8 << 20) + 13] {
        assert_eq!(
            read(&fs, large, offset as u64, 200_000).await,
            &data[offset..offset + 200_000],
            "at {offset}"
        );
    }
    assert!(read(&fs, large, 10 << 20, 1 << 20).await.iter().all(|&b| b == 0));
    assert_eq!(&read(&fs, large, 20 << 20, 100).await[..], b"far");
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().size, (20 << 20) + 3);
    fs.release(large).await.unwrap();
    fs.release(small).await.unwrap();
    assert_eq!(fs.status().open_inodes, 0);
    clean(&region);
}

#[tokio::test(start_paused = true)]
async fn many_small_writes_read_back_in_order_and_at_random() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (_, file) = create(&fs, "log").await;
    let data = pattern(600_000, 9);
    // Pieces that cross the border between inline and chunks, in an order that isn't the file's.
    let mut parts: Vec<(usize, usize)> = (0..60).map(|n| (n * 10_000, 10_000)).collect();
    parts.rotate_left(3);
    for (at, length) in &parts {
        write(&fs, file, *at as u64, &data[*at..at + length]).await;
    }
    assert_eq!(read(&fs, file, 0, 600_000).await, &data[..]);
    let mut at = 0;
    while at < data.len() {
        let part = read(&fs, file, at as u64, 7_001).await;
        assert_eq!(part, &data[at..(at + 7_001).min(data.len())]);
        at += part.len();
    }
    assert!(read(&fs, file, 600_000, 10).await.is_empty());
    clean(&region);
}

#[tokio::test(start_paused = true)]
async fn appends_go_to_the_end_whoever_else_has_appended() {
    let region = Arc::new(FakeRegion::new());
    let (a, b) = (connect(&region).await, connect(&region).await);
    let first = a.create(&me(), ROOT, b"f", 0o644, libc::O_WRONLY | libc::O_APPEND).await.unwrap();
    let second = b.open(&me(), first.attr.inode, libc::O_RDWR | libc::O_APPEND).await.unwrap();
    write(&a, first.handle, 0, b"one").await;
    write(&b, second.handle, 0, b"two").await;
    write(&a, first.handle, 0, b"three").await;
    assert_eq!(&read(&b, second.handle, 0, 100).await[..], b"onetwothree");
    b.write(
        &me(),
        second.handle,
        1,
        Bytes::from_static(b"X"),
        WriteOptions { mode: WriteMode::At, ..WriteOptions::default() },
    )
    .await
    .unwrap();
    assert_eq!(&read(&b, second.handle, 0, 100).await[..], b"oXetwothree");
    assert_eq!(a.read(&me(), first.handle, 0, 1).await, Err(FsError::BadHandle(first.handle)));
}

#[tokio::test(start_paused = true)]
async fn the_leader_is_found_by_hint_and_followed() {
    let region = Arc::new(FakeRegion::new());
    region.elect("m3");
    let fs = connect(&region).await;
    assert_eq!(fs.status().leader.as_deref(), Some("m3"));
    region.elect("m2");
    fs.mkdir(&me(), ROOT, b"d", 0o755).await.unwrap();
    assert_eq!(fs.status().leader.as_deref(), Some("m2"));
    region.fault("m2", Some(Fault::Down));
    region.elect("m1");
    fs.mkdir(&me(), ROOT, b"e", 0o755).await.unwrap();
    let status = fs.status();
    assert_eq!((status.leader.as_deref(), status.lapses), (Some("m1"), 0));
    assert!(fs.ready().is_ok());
    region.with(|s| assert_eq!(s.executed, 2));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_hangs_is_left_within_seconds() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    region.fault("m1", Some(Fault::Hung));
    region.elect("m2");
    let started = tokio::time::Instant::now();
    fs.mkdir(&me(), ROOT, b"d", 0o755).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_fetched_under_the_same_number() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    region.fault("m1", Some(Fault::Deaf));
    let made = tokio::spawn({
        let fs = fs.clone();
        async move { fs.mkdir(&me(), ROOT, b"once", 0o755).await }
    });
    while region.with(|s| s.executed) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    region.fault("m1", None);
    // Run twice it would be EEXIST.
    made.await.unwrap().unwrap();
    region.with(|s| assert_eq!((s.executed, s.repeated > 0), (1, true)));
    assert_eq!(fs.status().unanswered, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_change_is_settled_in_the_background() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    region.fault("m1", Some(Fault::Hung));
    let waiting = tokio::time::timeout(Duration::from_millis(300), fs.mkdir(&me(), ROOT, b"d", 0o755)).await;
    assert!(waiting.is_err());
    assert_eq!(fs.status().unanswered, 1, "its number stays taken");
    region.fault("m1", None);
    while fs.status().unanswered > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(fs.lookup(&me(), ROOT, b"d").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn without_a_region_operations_time_out_and_recover_by_themselves() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    for master in region.masters() {
        region.fault(&master, Some(Fault::Down));
    }
    let started = tokio::time::Instant::now();
    let error = fs.mkdir(&me(), ROOT, b"d", 0o755).await.unwrap_err();
    assert_eq!(error.errno(), libc::ETIMEDOUT, "{error}");
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(60) && took < Duration::from_secs(62), "{took:?}");
    assert!(fs.ready().is_err());
    for master in region.masters() {
        region.fault(&master, None);
    }
    fs.mkdir(&me(), ROOT, b"e", 0o755).await.unwrap();
    assert!(fs.ready().is_ok());
    assert_eq!(fs.status().unanswered, 0);
}

#[tokio::test(start_paused = true)]
async fn a_chunkserver_that_dies_or_hangs_costs_a_pause_and_no_byte() {
    for (member, fault) in [
        ("c1", Fault::Down),
        ("c2", Fault::Down),
        ("c1", Fault::Hung),
        ("c2", Fault::Hung),
        ("c1", Fault::Deaf),
    ] {
        let region = Arc::new(FakeRegion::new());
        let fs = connect(&region).await;
        let (_, file) = create(&fs, "f").await;
        let data = pattern(3 << 20, 5);
        write(&fs, file, 0, &data[..1 << 20]).await;
        region.fault(member, Some(fault));
        let started = tokio::time::Instant::now();
        write(&fs, file, 1 << 20, &data[1 << 20..]).await;
        assert!(started.elapsed() < Duration::from_secs(4), "{member} {fault:?}: {:?}", started.elapsed());
        assert_eq!(read(&fs, file, 0, 3 << 20).await, &data[..], "{member} {fault:?}");
        assert!(fs.status().chunks_replaced > 0);
        assert!(fs.status().chunkservers[member].failures > 0, "{member} {fault:?}");
        clean(&region);
    }
}

#[tokio::test(start_paused = true)]
async fn without_enough_chunkservers_writes_wait_and_then_say_eio() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (_, file) = create(&fs, "f").await;
    region.fault("c1", Some(Fault::Down));
    region.fault("c2", Some(Fault::Down));
    let data = Bytes::from(pattern(1 << 20, 1));
    let error = fs.write(&me(), file, 0, data.clone(), WriteOptions::default()).await.unwrap_err();
    assert_eq!(error.errno(), libc::EIO, "{error}");
    region.fault("c1", None);
    region.fault("c2", None);
    write(&fs, file, 0, &data).await;
    assert_eq!(read(&fs, file, 0, 1 << 20).await, data);
    clean(&region);
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_or_silent_replica_is_read_around() {
    for fault in [Fault::Corrupt, Fault::Down, Fault::Hung] {
        let region = Arc::new(FakeRegion::new());
        let fs = connect(&region).await;
        let (_, file) = create(&fs, "f").await;
        let data = pattern(2 << 20, 7);
        write(&fs, file, 0, &data).await;
        region.fault("c1", Some(fault));
        let started = tokio::time::Instant::now();
        assert_eq!(read(&fs, file, 0, 2 << 20).await, &data[..]);
        assert!(started.elapsed() < Duration::from_millis(1100), "{fault:?}: {:?}", started.elapsed());
        assert!(fs.status().hedges > 0);
        // The next one doesn't begin with the bad replica.
        let hedges = fs.status().hedges;
        assert_eq!(read(&fs, file, 5000, 1000).await, &data[5000..6000]);
        assert_eq!(fs.status().hedges, hedges);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unlinked_file_lives_until_its_last_close_also_over_a_failover() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (inode, first) = create(&fs, "f").await;
    let second = fs.open(&me(), inode, libc::O_RDWR).await.unwrap();
    write(&fs, first, 0, b"kept").await;
    fs.unlink(&me(), ROOT, b"f").await.unwrap();
    fs.release(first).await.unwrap();
    region.elect("m2");
    assert_eq!(&read(&fs, second.handle, 0, 10).await[..], b"kept");
    region.with(|s| assert_eq!(s.inodes(), 2));
    fs.release(second.handle).await.unwrap();
    // The region hears of it with the next request, or a moment later.
    tokio::time::sleep(Duration::from_millis(50)).await;
    region.with(|s| assert_eq!(s.inodes(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_lapsed_session_becomes_a_new_incarnation_and_goes_on() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (_, file) = create(&fs, "f").await;
    let data = pattern(1 << 20, 1);
    write(&fs, file, 0, &data).await;
    region.lapse();
    fs.mkdir(&me(), ROOT, b"d", 0o755).await.unwrap();
    let status = fs.status();
    assert_eq!((status.incarnation, status.lapses), (2, 1));
    // Its chunk belonged to the old incarnation; the next write takes another.
    write(&fs, file, 1 << 20, &data).await;
    assert_eq!(read(&fs, file, 1 << 20, 1 << 20).await, &data[..]);
    clean(&region);
}

#[tokio::test(start_paused = true)]
async fn a_change_under_way_when_the_session_lapses_happens_once() {
    for executed in [true, false] {
        let region = Arc::new(FakeRegion::new());
        let fs = connect(&region).await;
        region.fault("m1", Some(if executed { Fault::Deaf } else { Fault::Hung }));
        let made = tokio::spawn({
            let fs = fs.clone();
            async move { fs.mkdir(&me(), ROOT, b"once", 0o755).await }
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        region.lapse();
        region.fault("m1", None);
        made.await.unwrap().unwrap();
        region.with(|s| assert_eq!(s.executed, 1, "executed before: {executed}"));
        assert_eq!(fs.status().unanswered, 0);
    }
}

/// A master that says "expired" hasn't looked for the outcome: only "stale" means that the change may be sent anew.
#[tokio::test(start_paused = true)]
async fn a_change_that_was_done_two_lives_ago_isnt_done_again() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    fs.mkdir(&me(), ROOT, b"before", 0o755).await.unwrap();
    region.fault("m1", Some(Fault::Deaf));
    let made = tokio::spawn({
        let fs = fs.clone();
        async move { fs.mkdir(&me(), ROOT, b"once", 0o755).await }
    });
    while region.with(|s| s.executed) == 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    region.lapse();
    region.with(|s| s.short_leases = 3);
    region.fault("m1", None);
    // Done twice it would be EEXIST.
    made.await.unwrap().unwrap();
    region.with(|s| assert_eq!((s.executed, s.short_leases), (2, 0)));
}

#[tokio::test(start_paused = true)]
async fn bytes_appended_before_a_lapse_and_not_committed_are_appended_again() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    // Done twice, an append would show.
    let flags = libc::O_RDWR | libc::O_APPEND;
    let created = fs.create(&me(), ROOT, b"f", 0o644, flags).await.unwrap();
    let (inode, file) = (created.attr.inode, created.handle);
    let data = pattern(3 << 20, 1);
    write(&fs, file, 0, &data[..1 << 20]).await;
    let (appended, asked) = region.with(|s| (s.calls["ChunkAppend"], s.calls["FsChange"]));
    region.fault("m1", Some(Fault::Hung));
    let written = tokio::spawn({
        let (fs, rest) = (fs.clone(), Bytes::copy_from_slice(&data[1 << 20..]));
        async move { fs.write(&me(), file, 1 << 20, rest, WriteOptions::default()).await }
    });
    // The bytes are appended, and the commit (or a seal before it) is under way.
    while region.with(|s| s.calls["ChunkAppend"] < appended + 2 || s.calls["FsChange"] == asked) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    region.lapse();
    region.fault("m1", None);
    written.await.unwrap().unwrap();
    assert_eq!(read(&fs, file, 0, 3 << 20).await, &data[..]);
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().size, 3 << 20);
    // The given-up chunk's seal goes on in the background.
    let settled = async {
        while fs.status().unanswered > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), settled).await.unwrap();
    assert_eq!(fs.status().lapses, 1);
    clean(&region);
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

/// The region holds what it makes open for who asked, and nobody was left who would close it.
#[tokio::test(start_paused = true)]
async fn what_was_made_for_a_killed_process_is_not_held_open() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let of = fs.clone();
    kill(&region, async move { of.create(&me(), ROOT, b"f", 0o644, libc::O_RDWR).await }).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(region.with(|s| s.named(ROOT, b"f")).is_some(), "it was under way");
    assert_eq!(fs.status().open_inodes, 0);
    let before = region.with(|s| s.inodes());
    fs.unlink(&me(), ROOT, b"f").await.unwrap();
    assert_eq!(region.with(|s| s.inodes()), before - 1, "nobody has it open");
    clean(&region);
}

/// Whoever waits for a process that was killed has its changes behind him.
#[tokio::test(start_paused = true)]
async fn a_killed_processes_change_does_not_come_after_a_later_one() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"first").await;
    let before = region.with(|s| s.executed);
    let of = fs.clone();
    let dead = Bytes::from_static(b"dead!");
    kill(&region, async move { of.write(&me(), file, 0, dead, WriteOptions::default()).await }).await;
    write(&fs, file, 0, b"last!").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(region.with(|s| s.executed), before + 2, "both were done");
    assert_eq!(&read(&fs, file, 0, 9).await[..], b"last!");
    let of = fs.clone();
    let set = move |mode| SetAttr { inode, mode: Some(mode), ..SetAttr::default() };
    kill(&region, async move { of.setattr(&me(), set(0o600)).await }).await;
    fs.setattr(&me(), set(0o640)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().mode & 0o777, 0o640);
    clean(&region);
}

#[tokio::test(start_paused = true)]
async fn reads_touch_access_times_later_and_setattr_wins() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"x").await;
    read(&fs, file, 0, 1).await;
    let before = region.with(|s| s.atime(inode));
    fs.setattr(&me(), SetAttr { inode, atime_ns: Some(5), ..SetAttr::default() }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(region.with(|s| s.atime(inode)), 5);
    assert_ne!(before, 5);
    read(&fs, file, 0, 1).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(region.with(|s| s.atime(inode)) > 5);
}

#[tokio::test(start_paused = true)]
async fn names() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let directory = fs.mkdir(&me(), ROOT, b"d", 0o755).await.unwrap().inode;
    create(&fs, "a").await;
    assert_eq!(
        fs.rename(&me(), ROOT, b"a", ROOT, b"d", RenameMode::NoReplace).await,
        Err(FsError::Answered(libc::EEXIST))
    );
    fs.rename(&me(), ROOT, b"a", directory, b"b", RenameMode::Replace).await.unwrap();
    fs.symlink(&me(), directory, b"s", b"../target").await.unwrap();
    let link = fs.lookup(&me(), directory, b"s").await.unwrap().inode;
    assert_eq!(&fs.readlink(&me(), link).await.unwrap()[..], b"../target");
    let page = fs.readdir(&me(), directory, 0, 100).await.unwrap();
    assert_eq!(page.entries.iter().map(|e| &e.name[..]).collect::<Vec<_>>(), [b"b", b"s"]);
    assert_eq!(fs.rmdir(&me(), ROOT, b"d").await, Err(FsError::Answered(libc::ENOTEMPTY)));
    assert_eq!(fs.lookup(&me(), ROOT, &[b'x'; 256]).await, Err(FsError::NameTooLong(256)));
    fs.setxattr(&me(), directory, b"user.k", b"v", true, false).await.unwrap();
    assert_eq!(&fs.getxattr(&me(), directory, b"user.k").await.unwrap()[..], b"v");
    fs.close().await;
    assert_eq!(fs.mkdir(&me(), ROOT, b"late", 0o755).await, Err(FsError::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_chunk_whose_append_was_dropped_gets_no_more_bytes() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (_, file) = create(&fs, "f").await;
    let data = pattern(1 << 20, 1);
    write(&fs, file, 0, &data).await;
    // The first of the chain has the bytes, nobody has acknowledged them.
    region.fault("c2", Some(Fault::Hung));
    let caller = me();
    let dropped = fs.write(&caller, file, 1 << 20, Bytes::from(pattern(1 << 20, 2)), WriteOptions::default());
    assert!(tokio::time::timeout(Duration::from_millis(300), dropped).await.is_err());
    region.fault("c2", None);
    write(&fs, file, 1 << 20, &data).await;
    assert_eq!(read(&fs, file, 1 << 20, 1 << 20).await, &data[..]);
    let status = fs.status();
    assert_eq!(status.chunks_replaced, 0, "it wasn't tried on the old chunk");
    region.with(|s| assert_eq!(s.sealed_chunks(), 1));
    clean(&region);
}

/// The masters lose everything and make the region anew: its empty tree isn't shown, and nothing is written there.
#[tokio::test(start_paused = true)]
async fn a_region_that_was_made_anew_is_not_taken_for_the_one_that_was_mounted() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (inode, file) = create(&fs, "old").await;
    write(&fs, file, 0, b"precious").await;
    let old = region.make_anew(Founding([2; 16]));
    region.elect("m2");
    // A new mount may have it.
    let other = connect(&region).await;
    let (_, theirs) = create(&other, "new").await;
    let opened = region.with(|s| s.executed);

    let listed = fs.lookup(&me(), ROOT, b"old").await.unwrap_err();
    assert!(matches!(listed, FsError::MadeAnew(_)), "{listed}");
    assert_eq!(listed.errno(), libc::EIO);
    for error in [
        fs.lookup(&me(), ROOT, b"new").await.unwrap_err(),
        fs.getattr(&me(), ROOT).await.unwrap_err(),
        fs.create(&me(), ROOT, b"f", 0o644, libc::O_RDWR).await.map(drop).unwrap_err(),
        fs.write(&me(), file, 0, Bytes::from_static(b"x"), WriteOptions::default())
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(error.errno(), libc::EIO, "{error}");
    }
    region.with(|s| assert_eq!(s.executed, opened, "nothing is done in the new region"));
    assert_eq!(other.status().lapses, 0);
    other.release(theirs).await.unwrap();

    // The old region's masters are there again: the mount goes on.
    region.with(|s| *s = old);
    let mut back = Err(FsError::Lapsed);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        back = fs.getattr(&me(), inode).await;
        if back.is_ok() {
            break;
        }
    }
    assert_eq!(back.unwrap().inode, inode);
    fs.open(&me(), inode, libc::O_RDONLY).await.unwrap();
}

/// One master alone was made anew beside the rest, which are in the middle of an election: operations wait for that.
#[tokio::test(start_paused = true)]
async fn a_single_master_of_another_founding_fails_nothing() {
    let region = Arc::new(FakeRegion::new());
    let fs = connect(&region).await;
    let (inode, _) = create(&fs, "f").await;
    region.fault("m1", Some(Fault::Down));
    region.with(|s| s.strangers.insert("m2".into()));
    let elect = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        region.elect("m3");
    };
    let caller = me();
    let (found, ()) = tokio::join!(fs.lookup(&caller, ROOT, b"f"), elect);
    assert_eq!(found.unwrap().inode, inode);
    clean(&region);
}
