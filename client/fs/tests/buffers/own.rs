//! What a mount that has a file alone has written itself it knows, and doesn't ask the region for.

use super::*;

/// How often the region was asked where the bytes of a file lie.
fn asked(fs: &FileSystem) -> u64 {
    fs.status().caches["extents"].misses
}

/// A file that a mount has alone, and whose bytes it knows: "old".
async fn with_old() -> (Arc<FakeRegion>, FileSystem, u64, HandleId) {
    let (region, fs) = start().await;
    region.with(|s| s.alone = true);
    let (inode, file) = create(&fs, "f").await;
    write(&fs, file, 0, b"old").await.unwrap();
    fs.fsync(file, false).await.unwrap();
    assert_eq!(&fs.read(&me(), file, 0, 9).await.unwrap()[..], b"old");
    (region, fs, inode, file)
}

/// Found by the benchmark: each transaction of sqlite, which reads the first page of what the last one has written, asked anew.
#[tokio::test(start_paused = true)]
async fn what_was_written_alone_is_read_without_a_question() {
    let (region, fs) = start().await;
    // Whoever asks where bytes lie is promised that, too.
    region.with(|s| s.alone = true);
    let (inode, file) = create(&fs, "f").await;
    let mut bytes: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    write(&fs, file, 0, &bytes).await.unwrap();
    fs.fsync(file, false).await.unwrap();
    assert!(read_all(&fs, file, bytes.len()).await == bytes);
    let before = asked(&fs);
    for n in 1..6_u8 {
        // Over a chunk's bytes, over what the turn before wrote, in part and entirely, and behind the end.
        for (at, length) in [(100_000 - 1000 * usize::from(n), 4096), (0, 100), (bytes.len(), 300)] {
            let new = vec![n; length];
            write(&fs, file, at as u64, &new).await.unwrap();
            bytes.resize(bytes.len().max(at + length), 0);
            bytes[at..at + length].copy_from_slice(&new);
        }
        fs.fsync(file, false).await.unwrap();
        assert_eq!(fs.status().dirty_bytes, 0);
        assert!(read_all(&fs, file, bytes.len()).await == bytes, "turn {n}");
    }
    assert_eq!(asked(&fs), before);
    // What went to a chunk lies where only the region knows.
    write(&fs, file, 50, &[9; 100_000]).await.unwrap();
    bytes[50..100_050].fill(9);
    fs.fsync(file, false).await.unwrap();
    assert!(read_all(&fs, file, bytes.len()).await == bytes);
    assert!(asked(&fs) > before);
    // And a truncation takes away.
    fs.setattr(&me(), SetAttr { inode, size: Some(1_000), ..SetAttr::default() }).await.unwrap();
    fs.setattr(&me(), SetAttr { inode, size: Some(2_000), ..SetAttr::default() }).await.unwrap();
    bytes.truncate(1_000);
    bytes.resize(2_000, 0);
    assert!(read_all(&fs, file, bytes.len()).await == bytes);
    region.with(|s| assert_eq!(s.violations, Vec::<String>::new()));
}

/// What comes of a change that was sent twice is what came of it the first time, and more may lie over it by now.
#[tokio::test(start_paused = true)]
async fn after_a_lost_answer_the_region_is_asked() {
    let (region, fs, _, file) = with_old().await;
    let before = (changes(&region), asked(&fs));
    write(&fs, file, 0, b"new").await.unwrap();
    region.fault("m1", Some(Fault::Deaf));
    let of = fs.clone();
    let syncing = tokio::spawn(async move { of.fsync(file, false).await });
    while changes(&region) == before.0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    region.fault("m1", None);
    syncing.await.unwrap().unwrap();
    region.with(|s| assert!(s.repeated > 0));
    assert_eq!(&fs.read(&me(), file, 0, 9).await.unwrap()[..], b"new");
    assert_eq!(asked(&fs), before.1 + 1);
}

/// Found by review: what was known went on being shown although the attempt before the one that was refused had been done.
#[tokio::test(start_paused = true)]
async fn what_was_perhaps_done_before_it_was_refused_is_asked_for() {
    let (region, fs, inode, file) = with_old().await;
    let before = changes(&region);
    region.fault("m1", Some(Fault::Deaf));
    let of = fs.clone();
    let cutting = tokio::spawn(async move {
        of.setattr(&me(), SetAttr { inode, size: Some(1), ..SetAttr::default() }).await
    });
    while changes(&region) == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    region.fault("m1", Some(Fault::Broken));
    assert!(matches!(cutting.await.unwrap(), Err(FsError::Internal(_))));
    region.fault("m1", None);
    assert_eq!(&fs.read(&me(), file, 0, 9).await.unwrap()[..], b"o");
}

/// The same where the region doesn't take it: nothing of it is known then.
#[tokio::test(start_paused = true)]
async fn what_the_region_refused_isnt_read() {
    let (region, fs, _, file) = with_old().await;
    write(&fs, file, 0, b"new").await.unwrap();
    refuse(&region, Some(libc::EPERM));
    assert_eq!(fs.fsync(file, false).await, refused(libc::EPERM));
    assert_eq!(&fs.read(&me(), file, 0, 9).await.unwrap()[..], b"old");
}
