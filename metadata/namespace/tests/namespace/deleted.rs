//! What is left of a deleted volume, and how it goes.

use mooseng_namespace::clearing::Progress;
use mooseng_namespace::deleted::{clear, note, take_back};
use mooseng_namespace::trash::Terms;
use mooseng_namespace::{OpError, format};
use mooseng_schema::deleted::{self, DeletedRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::log::{self, LoggedRecord};
use mooseng_schema::{Record, inode, trash};
use mooseng_store::memory::{MemoryStore, MemoryTransaction};
use mooseng_store::{RangeLimit, Read, Store, Transaction};
use mooseng_wire::{ChunkId, Epoch, InodeId, VolumeId};

use crate::harness::HASH_KEY;

const GONE: VolumeId = VolumeId(3);
const THERE: VolumeId = VolumeId(4);

/// A volume that keeps deleted files for an hour, with more records than go at once.
async fn fill(store: &MemoryStore, volume: VolumeId) {
    let tx = store.begin();
    let trash = Terms { retention_s: 3_600, min_age_s: 0 };
    assert!(format(&tx, volume, Epoch(1), HASH_KEY, 1, trash).await.unwrap());
    tx.set(&log::logged_key(volume), &LoggedRecord::default().to_value());
    for n in 2..2_500 {
        tx.set(&inode::key(InodeId::new(volume, n)), &[1]);
        tx.set(&location::key(ChunkId::new(volume, n)), &LocationRecord::default().to_value());
    }
    tx.commit().await.unwrap();
}

async fn keys_of(store: &MemoryStore, volume: VolumeId) -> usize {
    let tx = store.begin();
    let mut keys = 0;
    for range in deleted::ranges(volume) {
        keys += tx.get_range(range, RangeLimit::default(), Read::Snapshot).await.unwrap().pairs.len();
    }
    keys
}

async fn noted(store: &MemoryStore, volume: VolumeId, now_ns: i64) -> DeletedRecord {
    let tx = store.begin();
    let known = note(&tx, volume, now_ns, 7).await.unwrap();
    tx.commit().await.unwrap();
    known
}

async fn part(tx: MemoryTransaction, progress: Progress) -> Result<Option<Progress>, OpError> {
    let more = clear(&tx, GONE, progress).await?;
    tx.commit().await?;
    Ok(more)
}

/// Clears all of it, and answers in how many parts.
async fn cleared(store: &MemoryStore) -> usize {
    let (mut progress, mut parts) = (Progress::default(), 0);
    while let Some(more) = part(store.begin(), progress).await.unwrap() {
        (progress, parts) = (more, parts + 1);
    }
    parts
}

#[tokio::test]
async fn a_deleted_volume_goes_in_parts_and_no_other_one() {
    let store = MemoryStore::new();
    fill(&store, GONE).await;
    fill(&store, THERE).await;
    let whole = keys_of(&store, THERE).await;
    let refused = part(store.begin(), Progress::default()).await;
    assert!(matches!(refused, Err(OpError::NoVolume(3))), "nobody has said that it is deleted: {refused:?}");

    let known = noted(&store, GONE, 5).await;
    assert_eq!(known, DeletedRecord { since_ns: 5, keep_s: 3_600, cleared: false });
    assert_eq!(noted(&store, GONE, 9_000).await, known, "it counts from the first time on");
    assert_eq!(keys_of(&store, GONE).await, whole, "nothing has gone yet");
    let parts = cleared(&store).await;
    assert!(parts > 4, "{parts} parts");
    assert_eq!((keys_of(&store, GONE).await, keys_of(&store, THERE).await), (0, whole));
    assert_eq!(noted(&store, GONE, 9_000).await, DeletedRecord { cleared: true, ..known });
    assert_eq!(cleared(&store).await, 0, "once more does no harm");
    // What a late writer brings goes, too, whatever is on record.
    let tx = store.begin();
    tx.set(&log::logged_key(GONE), &LoggedRecord::default().to_value());
    tx.commit().await.unwrap();
    assert_eq!((cleared(&store).await, keys_of(&store, GONE).await), (1, 0));
    // A volume that is there all the same isn't one that was deleted.
    let tx = store.begin();
    assert!(take_back(&tx, GONE).await.unwrap() && !take_back(&tx, GONE).await.unwrap());
    tx.commit().await.unwrap();
    assert!(part(store.begin(), Progress::default()).await.is_err());
}

#[tokio::test]
async fn what_comes_to_where_it_was_looked_already_goes_too() {
    let store = MemoryStore::new();
    fill(&store, GONE).await;
    noted(&store, GONE, 5).await;
    let mut progress = part(store.begin(), Progress::default()).await.unwrap();
    for _ in 0..3 {
        progress = part(store.begin(), progress.unwrap()).await.unwrap();
    }
    let tx = store.begin();
    tx.set(&log::logged_key(GONE), &LoggedRecord::default().to_value());
    tx.commit().await.unwrap();
    while let Some(more) = progress {
        progress = part(store.begin(), more).await.unwrap();
    }
    assert_eq!(keys_of(&store, GONE).await, 0);
}

#[tokio::test]
async fn it_stays_as_long_as_the_newest_file_in_its_trash_was_to() {
    let store = MemoryStore::new();
    fill(&store, GONE).await;
    let tx = store.begin();
    for until_s in [500, 9_000] {
        let key = trash::key(until_s * 1_000_000_000, InodeId::new(GONE, 7));
        tx.set(&key, &trash::TrashRecord::default().to_value());
    }
    tx.commit().await.unwrap();
    assert_eq!(noted(&store, GONE, 1_000_000_000).await.keep_s, 8_999);
}

#[tokio::test]
async fn a_change_that_was_begun_before_is_not_committed_behind_it() {
    let store = MemoryStore::new();
    fill(&store, GONE).await;
    noted(&store, GONE, 5).await;
    let late = store.begin();
    // As each change of a volume does.
    late.get(&mooseng_schema::volume::key(GONE), Read::Conflicting).await.unwrap();
    late.set(&inode::key(InodeId::new(GONE, 9_999)), &[1]);
    cleared(&store).await;
    assert!(late.commit().await.is_err());
    assert_eq!(keys_of(&store, GONE).await, 0);
}

#[tokio::test]
async fn of_one_that_was_never_here_nothing_is_left_to_do() {
    let store = MemoryStore::new();
    assert_eq!(noted(&store, GONE, 5).await, DeletedRecord { since_ns: 5, keep_s: 7, cleared: true });
}
