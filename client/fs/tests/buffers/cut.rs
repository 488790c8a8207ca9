//! Truncations of files of which data is kept, for the region has no room for it.

use super::*;

/// A file with ten bytes that are kept.
async fn kept() -> (Arc<FakeRegion>, FileSystem, u64, HandleId) {
    let (region, fs) = start().await;
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"0123456789").await.unwrap();
    refuse(&region, Some(libc::ENOSPC));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fs.status().dirty_bytes, 10);
    (region, fs, inode, file)
}

/// Found by review: what lay behind the new end went before the region was asked.
#[tokio::test(start_paused = true)]
async fn a_truncation_that_the_region_refuses_leaves_what_is_kept() {
    let (region, fs, inode, file) = kept().await;
    region.with(|s| s.refuse_sizes = Some(libc::EPERM));
    let cut = SetAttr { inode, size: Some(4), ..SetAttr::default() };
    assert_eq!(fs.setattr(&me(), cut).await.map(drop), refused(libc::EPERM));
    assert_eq!(fs.setattr_open(&me(), file, cut).await.map(drop), refused(libc::EPERM));
    assert_eq!(fs.status().dirty_bytes, 10);
    assert_eq!(fs.getattr(&me(), inode).await.unwrap().size, 10);
    assert_eq!(&fs.read(&me(), file, 0, 100).await.unwrap()[..], b"0123456789");
    assert_eq!(fs.fsync(file, false).await, refused(libc::ENOSPC), "as before");
    refuse(&region, None);
    assert_eq!(fs.fsync(file, false).await, Ok(()), "nothing was lost");
    assert_eq!(&at_the_region(&region, inode).await[..], b"0123456789");
}

/// Found by review: what was written before the truncation came to the region after it, with its older time.
#[tokio::test(start_paused = true)]
async fn what_is_kept_of_a_file_doesnt_take_back_the_time_of_its_truncation() {
    for mtime_ns in [None, Some(7)] {
        let (region, fs, inode, file) = kept().await;
        let written = fs.getattr(&me(), inode).await.unwrap().mtime_ns;
        let change = SetAttr { inode, size: Some(4), mtime_ns, ..SetAttr::default() };
        let cut = fs.setattr(&me(), change).await.unwrap();
        assert_eq!(cut.size, 4);
        assert!(mtime_ns.map_or(cut.mtime_ns > written, |set| cut.mtime_ns == set), "{cut:?}");
        assert_eq!(fs.getattr(&me(), inode).await.unwrap().mtime_ns, cut.mtime_ns);
        refuse(&region, None);
        fs.fsync(file, false).await.unwrap();
        assert_eq!(fs.status().dirty_bytes, 0);
        assert_eq!(fs.getattr(&me(), inode).await.unwrap().mtime_ns, cut.mtime_ns, "as the region has it");
        assert_eq!(&at_the_region(&region, inode).await[..], b"0123");
    }
}

/// A truncation that is under way at the region, which would store what is kept by now.
async fn under_way(
    region: &Arc<FakeRegion>,
    fs: &FileSystem,
    inode: u64,
) -> tokio::task::JoinHandle<Result<u64, FsError>> {
    region.with(|s| s.sizes_hang = true);
    let fs = fs.clone();
    let cutting = tokio::spawn(async move {
        let cut = SetAttr { inode, size: Some(4), ..SetAttr::default() };
        fs.setattr(&me(), cut).await.map(|attr| attr.size)
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    refuse(region, None);
    cutting
}

/// Found by review: whoever read the file spun until the truncation was over, and what another host had written before it was overwritten.
#[tokio::test(start_paused = true)]
async fn a_lapse_beneath_a_truncation_doesnt_overwrite_what_others_wrote_since() {
    for changed in [false, true] {
        let (region, fs, inode, file) = kept().await;
        let cutting = under_way(&region, &fs, inode).await;
        region.lapse();
        if changed {
            region.with(|s| s.write_elsewhere(inode, b"theirs"));
        }
        fs.mkdir(&me(), ROOT, b"d", 0o755).await.unwrap();
        assert_eq!(fs.status().lapses, 1);
        let of = fs.clone();
        let reading = tokio::spawn(async move { of.read(&me(), file, 0, 100).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!reading.is_finished() && !cutting.is_finished());
        region.with(|s| s.sizes_hang = false);
        assert_eq!(cutting.await.unwrap(), Ok(4));
        let left = if changed { b"thei" } else { &[0; 4] };
        assert_eq!(&reading.await.unwrap().unwrap()[..], left);
        assert_eq!(fs.fsync(file, false).await, refused(libc::EIO), "nobody knows whose change it was");
        assert_eq!(fs.status().dirty_bytes, 0);
        assert_eq!(&at_the_region(&region, inode).await[..], left);
    }
}

/// Whose process was killed: what is kept is sent once it is over, and no sooner.
#[tokio::test(start_paused = true)]
async fn a_truncation_that_nobody_waits_for_holds_what_is_kept_until_it_is_over() {
    let (region, fs, inode, file) = kept().await;
    let cutting = under_way(&region, &fs, inode).await;
    cutting.abort();
    assert!(cutting.await.unwrap_err().is_cancelled());
    let of = fs.clone();
    let syncing = tokio::spawn(async move { of.fsync(file, false).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!syncing.is_finished());
    assert_eq!(&fs.read(&me(), file, 0, 100).await.unwrap()[..], b"0123456789");
    region.with(|s| s.sizes_hang = false);
    assert_eq!(syncing.await.unwrap(), Ok(()));
    assert_eq!(&at_the_region(&region, inode).await[..], b"0123456789", "nobody was told that it was cut");
}
