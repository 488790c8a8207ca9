//! Files that are synced after each write: what was written is sent before fsync asks for it.

use super::*;

/// A write that was answered, as a mount does it.
async fn answer(fs: &FileSystem, file: HandleId, offset: u64, data: &[u8]) {
    write(fs, file, offset, data).await.unwrap();
    fs.write_answered(file);
}

/// What was begun is done.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// So many turns of a write and an fsync, in which nothing is sent before it is asked for.
async fn learn(region: &FakeRegion, fs: &FileSystem, file: HandleId, turns: u64) {
    for n in 0..turns {
        let before = changes(region);
        answer(fs, file, 0, b"0").await;
        settle().await;
        assert_eq!(changes(region), before, "turn {n} of {turns}");
        fs.fsync(file, false).await.unwrap();
        assert_eq!(changes(region), before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_synced_each_time_is_sent_before_fsync_asks_and_once() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    learn(&region, &fs, file, 3).await;
    for data in [b"1", b"2", b"3"] {
        let before = changes(&region);
        answer(&fs, file, 0, data).await;
        settle().await;
        assert_eq!((changes(&region), fs.status().dirty_bytes), (before + 1, 0), "nobody has asked for it");
        fs.fsync(file, false).await.unwrap();
        assert_eq!(changes(&region), before + 1, "there was nothing left to send");
        assert_eq!(&at_the_region(&region, inode).await[..], data);
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_few_writes_that_are_synced_together_the_last_one_sends_them() {
    let (region, fs) = start().await;
    let (_, file) = create(&fs, "f").await;
    for n in 0..6_u64 {
        let before = changes(&region);
        answer(&fs, file, 0, b"a").await;
        settle().await;
        assert_eq!(changes(&region), before, "turn {n}");
        answer(&fs, file, 1, b"b").await;
        settle().await;
        assert_eq!(changes(&region) - before, u64::from(n >= 3), "turn {n}");
        fs.fsync(file, false).await.unwrap();
        assert_eq!(changes(&region), before + 1);
    }
}

/// Who appends, or overwrites here and there, mustn't pay a change for each write.
#[tokio::test(start_paused = true)]
async fn a_further_write_before_fsync_ends_that() {
    let (region, fs) = start().await;
    let (_, file) = create(&fs, "f").await;
    learn(&region, &fs, file, 3).await;
    let before = changes(&region);
    for n in 0..50_u64 {
        answer(&fs, file, n, b"x").await;
        settle().await;
        assert_eq!(changes(&region), before + 1, "the first one, by a wrong guess");
    }
    assert_eq!(fs.status().dirty_bytes, 49);
    fs.fsync(file, false).await.unwrap();
    assert_eq!((changes(&region), fs.status().dirty_bytes), (before + 2, 0));
    // It takes twice as long then.
    learn(&region, &fs, file, 6).await;
    let before = changes(&region);
    answer(&fs, file, 0, b"1").await;
    settle().await;
    assert_eq!(changes(&region), before + 1);
}

/// Times that are set over each write would need a change of their own.
#[tokio::test(start_paused = true)]
async fn attributes_that_are_set_before_fsync_end_that_too() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    for n in 0..8 {
        let before = changes(&region);
        answer(&fs, file, 0, b"x").await;
        settle().await;
        fs.setattr(&me(), SetAttr { inode, mtime_ns: Some(n), ..SetAttr::default() }).await.unwrap();
        assert_eq!(changes(&region), before, "turn {n}");
        fs.fsync(file, false).await.unwrap();
        assert_eq!(changes(&region), before + 1, "both in one");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_what_was_sent_ahead_is_told_by_the_next_fsync_of_each_handle_once() {
    let (region, fs) = start().await;
    let (inode, first) = create(&fs, "f").await;
    let second = open(&fs, inode, libc::O_RDWR).await;
    learn(&region, &fs, first, 3).await;
    refuse(&region, Some(libc::EPERM));
    let before = changes(&region);
    answer(&fs, first, 0, b"lost").await;
    settle().await;
    assert_eq!((changes(&region), fs.status().dirty_bytes), (before + 1, 0), "it was given up");
    for handle in [first, second] {
        assert_eq!(fs.fsync(handle, false).await, refused(libc::EPERM));
        assert_eq!(fs.fsync(handle, false).await, Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_no_room_ahead_of_fsync_is_kept_and_told_each_time() {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    learn(&region, &fs, file, 3).await;
    refuse(&region, Some(libc::ENOSPC));
    answer(&fs, file, 0, b"kept").await;
    settle().await;
    for _ in 0..2 {
        assert_eq!(fs.fsync(file, false).await, refused(libc::ENOSPC), "it isn't stored");
    }
    refuse(&region, None);
    assert_eq!(fs.fsync(file, false).await, Ok(()));
    assert_eq!(&at_the_region(&region, inode).await[..], b"kept");
}

#[tokio::test(start_paused = true)]
async fn fsync_waits_for_what_is_on_its_way_and_whoever_is_killed_meanwhile_stops_nothing() {
    for is_killed in [false, true] {
        let (region, fs) = start().await;
        let (inode, file) = create(&fs, "f").await;
        learn(&region, &fs, file, 3).await;
        region.masters().iter().for_each(|m| region.fault(m, Some(Fault::Hung)));
        let before = changes(&region);
        answer(&fs, file, 0, b"new").await;
        let of = fs.clone();
        let syncing = tokio::spawn(async move { of.fsync(file, false).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!syncing.is_finished(), "it isn't at the region");
        region.masters().iter().for_each(|m| region.fault(m, None));
        if is_killed {
            syncing.abort();
            tokio::time::sleep(Duration::from_secs(30)).await;
        } else {
            syncing.await.unwrap().unwrap();
        }
        assert_eq!((changes(&region), fs.status().dirty_bytes), (before + 1, 0));
        assert_eq!(&at_the_region(&region, inode).await[..], b"new");
    }
}
