//! What a region has of a volume that it was taken out of, and how it goes.

use bytes::Bytes;
use mooseng_namespace::clearing::{PART, Progress};
use mooseng_namespace::let_go::{
    Known, begin_clearing, clear, drop_places, known, look, note, places, state, take_back,
};
use mooseng_namespace::trash::Terms;
use mooseng_namespace::{OpError, format};
use mooseng_schema::chunk::{self, ChunkRecord};
use mooseng_schema::ids::{self, IdKind};
use mooseng_schema::let_go as records;
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::log::{self, LogPosition, LoggedRecord, ReplicaRecord};
use mooseng_schema::{Record, inode, number, volume};
use mooseng_store::memory::{MemoryStore, MemoryTransaction};
use mooseng_store::{KeyRange, RangeLimit, Read, Store, StoreError, Transaction};
use mooseng_wire::{ChunkId, Epoch, InodeId, VolumeId};
use proptest::prelude::*;

use crate::harness::HASH_KEY;

const OUT: VolumeId = VolumeId(3);
const STAYS: VolumeId = VolumeId(4);
const NONE: LogPosition = LogPosition { epoch: Epoch(0), version: 0 };

fn at() -> LogPosition {
    LogPosition::new(Epoch(2), 7)
}

fn mark(record: &volume::VolumeRecord) -> Bytes {
    record.hash_key.clone()
}

/// A replica of a volume, with what was put aside here.
async fn fill(store: &MemoryStore, of: VolumeId, inodes: u64) {
    let tx = store.begin();
    let trash = Terms { retention_s: 3_600, min_age_s: 0 };
    assert!(format(&tx, of, Epoch(1), HASH_KEY, 1, trash).await.unwrap());
    let replica = ReplicaRecord { epoch: 2, version: 7, ..ReplicaRecord::default() };
    tx.set(&log::replica_key(of), &replica.to_value());
    for n in 2..inodes {
        tx.set(&inode::key(InodeId::new(of, n)), &[1]);
    }
    for n in 0..5 {
        let copies = vec![format!("cs-{n}")];
        let held = LocationRecord { layout: 1, copies, epoch: 1, partial: None };
        tx.set(&location::key(ChunkId::new(of, n)), &held.to_value());
    }
    tx.set(&log::salvage_key(of, at(), 0), &[1]);
    tx.set(&ids::key(IdKind::Chunk, of), &number::encode(100));
    tx.commit().await.unwrap();
}

async fn keys(store: &MemoryStore) -> Vec<Bytes> {
    let all = KeyRange { begin: Bytes::new(), end: Bytes::from_static(&[0xff]) };
    let page = store.begin().get_range(all, RangeLimit::default(), Read::Snapshot).await.unwrap();
    page.pairs.into_iter().map(|(key, _)| key).collect()
}

async fn noted(store: &MemoryStore) {
    let tx = store.begin();
    note(&tx, OUT, 5, 9, mark).await.unwrap();
    tx.commit().await.unwrap();
}

async fn begun(store: &MemoryStore, expected: LogPosition) -> bool {
    let tx = store.begin();
    let begun = begin_clearing(&tx, OUT, expected, expected).await.unwrap();
    tx.commit().await.unwrap();
    begun
}

async fn part(tx: MemoryTransaction, progress: Progress, most: usize) -> Result<Option<Progress>, OpError> {
    let more = clear(&tx, OUT, progress, most).await?;
    tx.commit().await?;
    Ok(more)
}

async fn cleared(store: &MemoryStore) -> usize {
    let (mut progress, mut parts) = (Progress::default(), 0);
    while let Some(more) = part(store.begin(), progress, PART).await.unwrap() {
        (progress, parts) = (more, parts + 1);
    }
    parts
}

#[tokio::test]
async fn a_volume_goes_in_parts_then_where_its_chunks_lie_and_what_was_put_aside_stays() {
    let store = MemoryStore::new();
    fill(&store, STAYS, 10).await;
    let other = keys(&store).await;
    fill(&store, OUT, 2_500).await;
    assert!(
        part(store.begin(), Progress::default(), PART).await.is_err(),
        "nobody has said that it is to go"
    );
    let refused = begin_clearing(&store.begin(), OUT, at(), at()).await;
    assert!(refused.is_err(), "{refused:?}");
    noted(&store).await;
    assert!(part(store.begin(), Progress::default(), PART).await.is_err(), "nor that all of it is elsewhere");
    let tx = store.begin();
    let again = note(&tx, OUT, 900, 90, mark).await.unwrap();
    assert_eq!(
        (again.since_ns, again.agreed, &again.mark[..]),
        (5, 9, &HASH_KEY.0[..]),
        "it counts from the first time on"
    );
    // It isn't where it was when the others were asked.
    assert!(!begun(&store, LogPosition::new(Epoch(2), 6)).await && !begun(&store, NONE).await);
    assert!(begun(&store, at()).await && begun(&store, at()).await);
    let here = look(&store.begin(), OUT).await.unwrap();
    assert!(here.replica.is_none() && here.logged.is_none() && here.volume.is_none() && here.any);
    assert_eq!(here.let_go.unwrap().had(), at());
    let early = drop_places(&store.begin(), OUT, &[ChunkId::new(OUT, 1)]).await;
    assert!(early.is_err(), "records that name the chunk may be here still: {early:?}");
    assert!(cleared(&store).await > 2);
    assert!(state(&store.begin(), OUT).await.unwrap().unwrap().cleared);
    let of = places(&store.begin(), OUT, None, 3).await.unwrap();
    assert_eq!(of, [0, 1, 2].map(|n| ChunkId::new(OUT, n)));
    assert_eq!(places(&store.begin(), OUT, Some(of[2]), 9).await.unwrap().len(), 2);
    let tx = store.begin();
    let foreign = ChunkId::new(STAYS, 1);
    let dropped = drop_places(&tx, OUT, &[of[1], foreign, ChunkId::new(OUT, 77)]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(dropped, [(of[1], vec!["cs-1".to_owned()]), (ChunkId::new(OUT, 77), vec![])]);
    let mut left = other;
    left.extend([0, 2, 3, 4].map(|n| location::key(ChunkId::new(OUT, n)).into()));
    left.extend([
        log::salvage_key(OUT, at(), 0).into(),
        ids::key(IdKind::Chunk, OUT).into(),
        ids::key(IdKind::Inode, OUT).into(),
        records::key(OUT).into(),
    ]);
    left.sort();
    assert_eq!(keys(&store).await, left);
}

#[tokio::test]
async fn what_isnt_known_to_be_a_replica_stays() {
    let store = MemoryStore::new();
    fill(&store, OUT, 10).await;
    noted(&store).await;
    // It was the home, and hasn't looked yet what it alone has.
    let tx = store.begin();
    tx.set(&log::logged_key(OUT), &LoggedRecord::default().to_value());
    tx.commit().await.unwrap();
    assert!(!begun(&store, at()).await);
    let tx = store.begin();
    tx.clear(&log::logged_key(OUT));
    // An entry is being undone.
    let undoing = ReplicaRecord { epoch: 2, version: 7, undoing: true, ..ReplicaRecord::default() };
    tx.set(&log::replica_key(OUT), &undoing.to_value());
    tx.commit().await.unwrap();
    assert!(!begun(&store, at()).await);
    // Records without anything that says whose log they are of.
    let tx = store.begin();
    tx.clear(&log::replica_key(OUT));
    tx.commit().await.unwrap();
    assert!(!begun(&store, NONE).await);
}

#[tokio::test]
async fn what_is_taken_back_tells_the_next_time_which_volume_it_was() {
    let store = MemoryStore::new();
    fill(&store, OUT, 10).await;
    noted(&store).await;
    assert!(begun(&store, at()).await);
    let take = async || {
        let tx = store.begin();
        let known = take_back(&tx, OUT).await.unwrap();
        tx.commit().await.unwrap();
        known
    };
    assert!(take().await.unwrap().clearing);
    assert_eq!((take().await, state(&store.begin(), OUT).await.unwrap()), (None, None));
    // Taken out again before its copy has begun.
    let tx = store.begin();
    let again = note(&tx, OUT, 6, 10, mark).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((again.since_ns, again.clearing, again.over), (6, false, false));
    assert_eq!((&again.mark[..], again.had()), (&HASH_KEY.0[..], at()));
}

#[tokio::test]
async fn nothing_is_made_in_the_place_of_what_goes() {
    let store = MemoryStore::new();
    fill(&store, OUT, 10).await;
    noted(&store).await;
    assert!(begun(&store, at()).await);
    let trash = Terms { retention_s: 0, min_age_s: 0 };
    let made = format(&store.begin(), OUT, Epoch(3), HASH_KEY, 1, trash).await;
    assert_eq!(made, Err(OpError::LetGo(3)));
}

#[tokio::test]
async fn a_home_knows_chunks_that_there_are_that_there_were_and_no_others() {
    let store = MemoryStore::new();
    fill(&store, OUT, 10).await;
    let tx = store.begin();
    let record = ChunkRecord { length: 9, sealed: true, ..ChunkRecord::default() };
    tx.set(&chunk::key(ChunkId::new(OUT, 1)), &record.to_value());
    tx.set(&chunk::key(ChunkId::new(OUT, 50)), &record.to_value());
    tx.commit().await.unwrap();
    let tx = store.begin();
    let of = async |n| known(&tx, ChunkId::new(OUT, n)).await.unwrap();
    assert!(matches!(of(1).await, Known::Record(found, Some(_)) if found == record));
    assert!(matches!(of(50).await, Known::Record(_, None)));
    assert_eq!((of(2).await, of(99).await, of(100).await), (Known::Gone, Known::Gone, Known::Unknown));
}

/// A transaction that was begun before the region is to have the volume again, and commits behind that.
#[derive(Clone, Copy, Debug)]
enum Late {
    Note,
    Begin,
    Clear,
    Drop,
}

proptest! {
    /// Nothing that clears commits behind what takes it back, however far it was; nor is it taken note of by a word of before.
    #[test]
    fn nothing_goes_once_it_is_taken_back(stage in 0u8..4, late in prop::sample::select(&[Late::Note, Late::Begin, Late::Clear, Late::Drop])) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let store = MemoryStore::new();
            fill(&store, OUT, 40).await;
            if stage > 0 {
                noted(&store).await;
            }
            if stage > 1 {
                assert!(begun(&store, at()).await);
                part(store.begin(), Progress::default(), 7).await.unwrap();
            }
            if stage > 2 {
                cleared(&store).await;
            }
            let tx = store.begin();
            let made = match late {
                Late::Note => note(&tx, OUT, 8, 9, mark).await.map(drop),
                Late::Begin => begin_clearing(&tx, OUT, at(), at()).await.map(drop),
                Late::Clear => clear(&tx, OUT, Progress::default(), 7).await.map(drop),
                Late::Drop => drop_places(&tx, OUT, &[ChunkId::new(OUT, 1)]).await.map(drop),
            };
            let back = store.begin();
            take_back(&back, OUT).await.unwrap();
            back.commit().await.unwrap();
            let before = keys(&store).await;
            let committed = tx.commit().await;
            // Refused, or there was nothing to do for it at that stage, so that it changes nothing.
            let changes_something = made.is_ok()
                && match late {
                    Late::Note => stage == 0,
                    Late::Begin => stage == 1,
                    Late::Clear | Late::Drop => true,
                };
            assert!(!changes_something || matches!(committed, Err(StoreError::Conflict)), "{committed:?}");
            assert_eq!(keys(&store).await, before);
            assert_eq!(state(&store.begin(), OUT).await.unwrap(), None);
        });
    }
}
