//! Entries that are replayed, refused and undone, by hand; and what becomes of the chunks that they let die.

use bytes::Bytes;
use mooseng_embedded::Embedded;
use mooseng_replica::{Entry, ReplicaError, apply, read, turn};
use mooseng_schema::Record;
use mooseng_schema::key::whole_volume;
use mooseng_schema::log::{self, LogPosition};
use mooseng_store::{KeyRange, Read, Store, Transaction};
use mooseng_wire::{Epoch, VolumeId};

use super::{VOLUME, commit, records, store, volume_key};

#[tokio::test]
async fn what_isnt_of_the_volume_is_refused() {
    let (store, _) = store();
    let tx = store.begin();
    apply::begin(&tx, VOLUME).await.unwrap();
    let page = read::Page { at: LogPosition::new(Epoch(1), 5), pairs: Vec::new(), next: None };
    apply::install(&tx, VOLUME, &whole_volume(VOLUME).begin, &page).await.unwrap();
    commit(tx).await;
    use mooseng_store::mvcc::Change;
    let at = LogPosition::new(Epoch(1), 6);
    for change in [
        Change::Set(Bytes::from_static(b"\x02r\x00"), Bytes::new()),
        Change::Set(log::key(VOLUME, at, 0).into(), Bytes::new()),
        Change::ClearRange(whole_volume(VOLUME)),
        Change::Clear(whole_volume(VolumeId(1)).begin),
    ] {
        let entry = Entry::new(at, &[change]);
        let refused =
            apply::entries(&store.begin(), VOLUME, page.at, &[entry], Epoch(1), 7, LogPosition::default())
                .await;
        assert!(matches!(refused, Err(ReplicaError::Senseless(_))), "{refused:?}");
    }
    let garbage = Entry { at, bytes: Bytes::from_static(&[1, 1, 200]) };
    assert!(
        apply::entries(&store.begin(), VOLUME, page.at, &[garbage], Epoch(1), 7, LogPosition::default())
            .await
            .is_err()
    );
    let early = Entry::new(LogPosition::new(Epoch(1), 5), &[]);
    assert!(
        apply::entries(&store.begin(), VOLUME, page.at, &[early], Epoch(1), 7, LogPosition::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_chunk_that_dies_leaves_its_copies_to_be_deleted() {
    use mooseng_schema::chunk;
    use mooseng_schema::dead::{self, DeadRecord};
    use mooseng_schema::location::{self, LocationRecord};
    use mooseng_store::mvcc::Change;
    use mooseng_wire::ChunkId;
    let (store, _) = store();
    let (here, elsewhere) = (ChunkId(5), ChunkId(6));
    let tx = store.begin();
    apply::begin(&tx, VOLUME).await.unwrap();
    let pairs = vec![
        (Bytes::from(chunk::key(here)), Bytes::from_static(b"\x01")),
        (chunk::key(elsewhere).into(), Bytes::from_static(b"\x01")),
    ];
    let page = read::Page { at: LogPosition::new(Epoch(1), 5), pairs, next: None };
    apply::install(&tx, VOLUME, &whole_volume(VOLUME).begin, &page).await.unwrap();
    let location =
        LocationRecord { layout: 1, copies: vec!["a".into(), "b".into()], epoch: 1, partial: None };
    tx.set(&location::key(here), &location.to_value());
    commit(tx).await;
    let changes = [here, elsewhere].map(|chunk| Change::Clear(chunk::key(chunk).into()));
    let entry = Entry::new(LogPosition::new(Epoch(1), 6), &changes);
    let tx = store.begin();
    apply::completed(&tx, VOLUME, page.at).await.unwrap();
    apply::entries(&tx, VOLUME, page.at, &[entry], Epoch(1), 7, LogPosition::new(Epoch(1), 6)).await.unwrap();
    commit(tx).await;
    let tx = store.begin();
    assert_eq!(tx.get(&location::key(here), Read::Snapshot).await.unwrap(), None);
    let dead = tx.get(&dead::key(here), Read::Snapshot).await.unwrap().unwrap();
    assert_eq!(
        DeadRecord::from_value(&dead).unwrap(),
        DeadRecord { copies: location.copies, epoch: 1, since_ns: 7, ..DeadRecord::default() }
    );
    assert_eq!(tx.get(&dead::key(elsewhere), Read::Snapshot).await.unwrap(), None);
}

/// A replica at 1/5 with those records, complete up to there.
async fn whole_replica(pairs: Vec<(Bytes, Bytes)>) -> (Embedded, LogPosition) {
    let (store, _) = store();
    let at = LogPosition::new(Epoch(1), 5);
    let tx = store.begin();
    apply::begin(&tx, VOLUME).await.unwrap();
    commit(tx).await;
    let (mut from, mut pairs) = (whole_volume(VOLUME).begin, pairs);
    while !pairs.is_empty() {
        let rest = pairs.split_off(pairs.len().min(8));
        let next = rest.first().map(|(key, _)| key.clone());
        let tx = store.begin();
        apply::install(&tx, VOLUME, &from, &read::Page { at, pairs, next: next.clone() }).await.unwrap();
        commit(tx).await;
        (from, pairs) = (next.unwrap_or_default(), rest);
    }
    let tx = store.begin();
    assert!(!apply::completed(&tx, VOLUME, at).await.unwrap());
    commit(tx).await;
    (store, at)
}

/// Replays until the last of them is taken in. Answers how many transactions it took.
async fn replay_all(store: &Embedded, entries: &[Entry], whole: LogPosition) -> usize {
    for count in 0..1_000 {
        let tx = store.begin();
        let record = apply::state(&tx, VOLUME, Read::Snapshot).await.unwrap().unwrap();
        let rest: Vec<Entry> = entries.iter().filter(|entry| entry.at > record.position()).cloned().collect();
        if rest.is_empty() {
            return count;
        }
        apply::entries(&tx, VOLUME, record.position(), &rest, Epoch(1), 7, whole).await.unwrap();
        commit(tx).await;
    }
    panic!("they are never taken in");
}

#[tokio::test]
async fn an_entry_that_clears_more_than_a_transaction_holds_is_undone_all_the_same() {
    use mooseng_store::mvcc::Change;
    let value = |n: u16| Bytes::from(vec![n as u8; 90_000]);
    let pairs: Vec<_> = (0..60).map(|n| (Bytes::from(volume_key(2 * n)), value(n))).collect();
    let (store, at) = whole_replica(pairs.clone()).await;
    let clear = Change::ClearRange(KeyRange { begin: volume_key(4).into(), end: volume_key(118).into() });
    let [first, second] = [6, 7].map(|version| LogPosition::new(Epoch(1), version));
    let entries = [
        Entry::new(first, &[clear, Change::Set(volume_key(6).into(), Bytes::from_static(b"new"))]),
        Entry::new(second, &[Change::Clear(volume_key(0).into())]),
    ];
    let took = replay_all(&store, &entries, at).await;
    assert!(took > 3, "{took}");
    assert_eq!(records(&store).await.len(), 3);
    // It is undone in several transactions, between which anything may die.
    let mut more = true;
    let mut between = 0;
    while more {
        let tx = store.begin();
        turn::undo(&tx, VOLUME, at).await.unwrap();
        drop(tx);
        let tx = store.begin();
        more = turn::undo(&tx, VOLUME, at).await.unwrap();
        commit(tx).await;
        let record = apply::state(&store.begin(), VOLUME, Read::Snapshot).await.unwrap().unwrap();
        if record.undoing {
            between += 1;
            assert_eq!(record.position(), first);
            // It can't become the home, nor follow one, as it is.
            let tx = store.begin();
            assert!(
                turn::take_over(&tx, VOLUME, Epoch(2), None, None).await.is_ok_and(|done| !done),
                "there is no volume record"
            );
            let refused = apply::entries(&tx, VOLUME, first, &entries[1..], Epoch(1), 7, at).await;
            assert!(matches!(refused, Err(ReplicaError::Senseless(_))), "{refused:?}");
        }
    }
    assert!(between > 1, "{between}");
    assert_eq!(read::records(&store.begin(), VOLUME, None, 10 << 20).await.unwrap().0, pairs);
    // What was begun with is ended before another home is followed.
    replay_all(&store, &entries[..1], at).await;
    let tx = store.begin();
    assert!(turn::undo(&tx, VOLUME, at).await.unwrap());
    commit(tx).await;
    let mut steps = 0;
    loop {
        let tx = store.begin();
        if !turn::end_undo(&tx, VOLUME).await.unwrap() {
            break;
        }
        commit(tx).await;
        steps += 1;
    }
    assert!(steps > 0);
    assert_eq!(read::records(&store.begin(), VOLUME, None, 10 << 20).await.unwrap().0, pairs);
    // What was kept for an entry that another home never had isn't taken for another one's.
    let tx = store.begin();
    assert_eq!(apply::entries(&tx, VOLUME, at, &entries[..1], Epoch(1), 7, at).await.unwrap(), at);
    commit(tx).await;
    let other = Entry::new(LogPosition::new(Epoch(1), 9), &[Change::Clear(volume_key(0).into())]);
    replay_all(&store, &[other], at).await;
    let tx = store.begin();
    assert!(!turn::undo(&tx, VOLUME, at).await.unwrap());
    commit(tx).await;
    assert_eq!(read::records(&store.begin(), VOLUME, None, 10 << 20).await.unwrap().0, pairs);
}

#[tokio::test]
async fn the_death_of_a_chunk_is_undone_and_its_copies_stay_until_it_cant_be() {
    use mooseng_schema::dead::{self, DeadRecord};
    use mooseng_schema::location::{self, LocationRecord};
    use mooseng_schema::{chunk, log::salvaged_chunk_key};
    use mooseng_store::mvcc::Change;
    use mooseng_wire::ChunkId;
    let (old, born) = (ChunkId(5), ChunkId(9));
    let record = Bytes::from_static(b"\x01");
    let (store, at) = whole_replica(vec![(chunk::key(old).into(), record.clone())]).await;
    let location = LocationRecord { layout: 1, copies: vec!["a".into()], epoch: 1, partial: None };
    let tx = store.begin();
    tx.set(&location::key(old), &location.to_value());
    commit(tx).await;
    let next = LogPosition::new(Epoch(1), 6);
    let entry = Entry::new(
        next,
        &[Change::Clear(chunk::key(old).into()), Change::Set(chunk::key(born).into(), record)],
    );
    let get = async |key: Vec<u8>| store.begin().get(&key, Read::Snapshot).await.unwrap();
    replay_all(&store, std::slice::from_ref(&entry), at).await;
    let tx = store.begin();
    tx.set(&location::key(born), &location.to_value());
    commit(tx).await;
    let dead = DeadRecord::from_value(&get(dead::key(old)).await.unwrap()).unwrap();
    assert_eq!((dead.died(), &dead.copies), (next, &location.copies));
    assert_eq!(get(location::key(old)).await, None);
    let tx = store.begin();
    assert!(!turn::undo(&tx, VOLUME, at).await.unwrap());
    commit(tx).await;
    // It lives where it did, and what was born is put aside.
    assert_eq!(get(dead::key(old)).await, None);
    assert_eq!(get(location::key(old)).await, Some(location.to_value().into()));
    assert!(get(chunk::key(old)).await.is_some() && get(chunk::key(born)).await.is_none());
    assert_eq!(get(location::key(born)).await, None);
    assert_eq!(get(salvaged_chunk_key(born)).await, Some(location.to_value().into()));
    // Once the region is complete, nothing brings it back.
    replay_all(&store, &[entry], at).await;
    let tx = store.begin();
    assert!(!apply::completed(&tx, VOLUME, next).await.unwrap());
    commit(tx).await;
    let refused = turn::undo(&store.begin(), VOLUME, at).await;
    assert_eq!(refused, Err(ReplicaError::NotUndoable { to: at, down_to: next }));
}
