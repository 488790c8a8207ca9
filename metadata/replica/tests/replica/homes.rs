//! Homes that follow each other: who is one, and what each takes of the log and the locks of the one before.

use bytes::Bytes;
use mooseng_replica::{Entry, ReplicaError, apply, read, turn};
use mooseng_schema::Record;
use mooseng_schema::key::whole_volume;
use mooseng_schema::log::{self, LogPosition, LoggedRecord};
use mooseng_store::{Read, Store, Transaction};
use mooseng_wire::Epoch;

use super::{VOLUME, commit, store};

/// A home that becomes it again would go on with locks that their owners gave up, or lost, while another region was it.
#[tokio::test]
async fn a_home_that_begins_anew_has_no_locks_of_its_time_before() {
    use mooseng_schema::lock::{self, LockOwner, LockRecord};
    use mooseng_schema::volume::{self, VolumeRecord};
    use mooseng_wire::{InodeId, SessionId};
    let (store, _) = store();
    let owner = LockOwner { kind: mooseng_wire::fs::LockKind::File, session: SessionId(3), owner: 7 };
    let key = lock::key(InodeId(9), owner, 0);
    let home = VolumeRecord { epoch: 1, ..VolumeRecord::default() };
    let logged = LoggedRecord { epoch: 1, ..LoggedRecord::default() };
    let tx = store.begin();
    tx.set(&volume::key(VOLUME), &home.to_value());
    tx.set(&log::logged_key(VOLUME), &logged.to_value());
    tx.set(&key, &LockRecord { end: 9, ..LockRecord::default() }.to_value());
    commit(tx).await;
    let turned = async |epoch: u64| {
        let tx = store.begin();
        turn::take_over(&tx, VOLUME, Epoch(epoch), None, None).await.unwrap();
        commit(tx).await;
        store.begin().get(&key, Read::Snapshot).await.unwrap().is_some()
    };
    assert!(turned(1).await, "a leader of the same home goes on with them");
    let tx = store.begin();
    assert!(turn::rejoin(&tx, VOLUME, Epoch(2)).await.unwrap());
    commit(tx).await;
    assert!(!turned(3).await);
    // Also where it is the home still, under a later epoch: of a lock that its holder never heard of nobody else would know that it may go.
    let tx = store.begin();
    tx.set(&key, &LockRecord { end: 9, ..LockRecord::default() }.to_value());
    commit(tx).await;
    assert!(turned(3).await);
    assert!(!turned(4).await);
}

/// What a home sent before another followed it may come behind what that one has sent, without that this region ever heard of the end of the first.
#[tokio::test]
async fn behind_a_later_homes_entries_none_of_an_earlier_one_is_taken() {
    use mooseng_store::mvcc::Change;
    let (store, _) = store();
    let tx = store.begin();
    apply::begin(&tx, VOLUME).await.unwrap();
    let page = read::Page { at: LogPosition::new(Epoch(5), 60), pairs: Vec::new(), next: None };
    apply::install(&tx, VOLUME, &whole_volume(VOLUME).begin, &page).await.unwrap();
    commit(tx).await;
    let key = mooseng_schema::inode::key(mooseng_wire::InodeId::new(VOLUME, 9));
    let entry = |version| {
        let change = Change::Set(key.clone().into(), Bytes::from(vec![version as u8]));
        Entry::new(LogPosition::new(Epoch(5), version), &[change])
    };
    let replay = async |after: u64, version: u64, from: u64| {
        let (tx, none) = (store.begin(), LogPosition::default());
        let after = LogPosition::new(Epoch(5), after);
        let taken = apply::entries(&tx, VOLUME, after, &[entry(version)], Epoch(from), 7, none).await;
        if taken.is_ok() {
            commit(tx).await;
        }
        taken
    };
    assert!(replay(60, 65, 5).await.is_ok());
    assert!(replay(65, 70, 6).await.is_ok(), "of the home before, sent by the next one");
    let late = replay(70, 75, 5).await;
    assert!(matches!(late, Err(ReplicaError::Refused(5))), "{late:?}");
    assert!(replay(70, 75, 6).await.is_ok());
}

/// A master that starts again knows at first what the regions had agreed on some time ago: by that, the home may be elsewhere. As a replica, complete
/// up to its newest entry, it couldn't go back to where its own epoch began, and would never serve again (regions seed 123).
#[tokio::test]
async fn a_home_that_starts_with_an_old_view_stays_one() {
    let (store, _) = store();
    let tx = store.begin();
    tx.set(&log::logged_key(VOLUME), &LoggedRecord { epoch: 2, ..LoggedRecord::default() }.to_value());
    commit(tx).await;
    for before in 1..=2 {
        let refused = turn::rejoin(&store.begin(), VOLUME, Epoch(before)).await;
        assert!(matches!(refused, Err(ReplicaError::Refused(2))), "{refused:?}");
    }
    let tx = store.begin();
    assert!(turn::rejoin(&tx, VOLUME, Epoch(3)).await.unwrap());
}

/// A region that was the home comes back when the log of that time is trimmed away: what it had behind the cut is its own, and is put aside (regions
/// seed 22).
#[tokio::test]
async fn what_is_behind_a_cut_isnt_common_where_the_log_of_that_time_is_gone() {
    use mooseng_schema::loss::{self, LossRecord};
    let (store, _) = store();
    let tx = store.begin();
    let logged = LoggedRecord { epoch: 4, trimmed_epoch: 3, trimmed_version: 754, ..LoggedRecord::default() };
    tx.set(&log::logged_key(VOLUME), &logged.to_value());
    let lost = LossRecord { opened: 3, cut_epoch: 2, cut_version: 804, ..LossRecord::default() };
    tx.set(&loss::key(VOLUME, Epoch(2)), &lost.to_value());
    commit(tx).await;
    let place = |epoch, version| LogPosition::new(Epoch(epoch), version);
    for (at, common) in [
        (place(2, 851), place(2, 804)),
        (place(2, 804), place(2, 804)),
        (place(2, 700), place(2, 700)),
        (place(1, 900), place(1, 900)),
        (place(3, 760), place(3, 754)),
    ] {
        assert_eq!(read::at_or_before(&store.begin(), VOLUME, at).await.unwrap(), common, "{at}");
    }
}
