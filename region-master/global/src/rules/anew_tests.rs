//! Regions that were made anew.
#![allow(clippy::unwrap_used, reason = "tests")]

use mooseng_store::Store;
use mooseng_wire::Epoch;

use super::tests::{founded, names, ruled, run, seen};
use super::*;

/// The root volume is a `geo` one whose sync set is both regions with data, and both have told their marks.
async fn synced() -> mooseng_store::memory::MemoryStore {
    let store = founded().await;
    for (region, mark) in [("a", 1), ("b", 2)] {
        assert!(!ruled!(&store, tx, renew(&tx, region, &[], 0, &[mark; 16])).unwrap().anew);
    }
    let change = &VolumeChange {
        durability: Some(Durability::Geo),
        sync_set: Some(names(&["a", "b"])),
        ..VolumeChange::default()
    };
    ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(1), change)).unwrap();
    store
}

#[tokio::test]
async fn a_home_that_was_made_anew_gets_no_lease_before_another_region_has_taken_over() {
    let store = synced().await;
    let again = ruled!(&store, tx, renew(&tx, "a", &[], 0, &[1; 16])).unwrap();
    let refused = ruled!(&store, tx, renew(&tx, "a", &[], 0, &[9; 16]));
    assert_eq!(refused, Err(RuleError::MadeAnew { region: "a".into(), volume: ROOT }));
    // Its lease runs out from the last one that counted.
    assert_eq!(leases(&store.begin()).await.unwrap()["a"], again.sequence);
    // Masters of an earlier release say nothing of it.
    assert!(!ruled!(&store, tx, renew(&tx, "a", &[], 0, &[])).unwrap().anew);
    ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(1), None)).unwrap();
    assert!(ruled!(&store, tx, renew(&tx, "a", &[], 0, &[9; 16])).is_err(), "nobody has taken over yet");
    let cut = mooseng_schema::log::LogPosition::new(Epoch(1), 7);
    ruled!(&store, tx, open_epoch(&tx, ROOT, Epoch(1), "b", Some(cut))).unwrap();
    assert!(ruled!(&store, tx, renew(&tx, "a", &[], 0, &[9; 16])).unwrap().anew);
    assert!(!ruled!(&store, tx, renew(&tx, "a", &[], 0, &[9; 16])).unwrap().anew, "once");
    let root = &seen(&store).await.volumes[&ROOT];
    assert_eq!((root.home.as_str(), root.sync_set.clone()), ("b", names(&["b"])));
    assert!(root.regions.contains("a"), "it gets a copy as ever");
}

#[tokio::test]
async fn a_replica_that_was_made_anew_is_counted_on_no_more() {
    let store = synced().await;
    let before = seen(&store).await.version;
    let renewal = ruled!(&store, tx, renew(&tx, "b", &[], 0, &[9; 16])).unwrap();
    let now = seen(&store).await;
    assert_eq!((renewal.anew, renewal.version, now.version), (true, before + 1, before + 1));
    assert_eq!(now.volumes[&ROOT].sync_set, names(&["a"]));
    // A witness has nothing.
    for mark in [3, 4] {
        ruled!(&store, tx, renew(&tx, "w", &[], 0, &[mark; 16])).unwrap();
    }
    assert_eq!(seen(&store).await, now);
}

/// Its terms begin anew: the sync set of a volume that moves there later couldn't be changed ever again.
#[tokio::test]
async fn a_region_that_was_made_anew_changes_the_sync_set_of_a_volume_that_comes_to_it() {
    let store = synced().await;
    let set = async |epoch: u64, custody: u64, of: &[&str]| {
        let sync_set = Some(names(of));
        let change = &VolumeChange { sync_set, custody: Some(custody), ..VolumeChange::default() };
        ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(epoch), change))
    };
    ruled!(&store, tx, renew(&tx, "b", &[], 9, &[2; 16])).unwrap();
    assert!(ruled!(&store, tx, renew(&tx, "b", &[], 2, &[9; 16])).unwrap().anew);
    let version = set(1, 0, &["a", "b"]).await.unwrap();
    let cut = mooseng_schema::log::LogPosition::new(Epoch(1), 7);
    ruled!(&store, tx, move_home(&tx, ROOT, Epoch(1), ("a", "b"), cut, version)).unwrap();
    set(2, 2, &["b"]).await.unwrap();
    // Of one founding a later leader counts as ever.
    ruled!(&store, tx, renew(&tx, "b", &[], 4, &[9; 16])).unwrap();
    ruled!(&store, tx, renew(&tx, "b", &[], 3, &[9; 16])).unwrap();
    let late = set(2, 3, &["a", "b"]).await;
    assert_eq!(late, Err(RuleError::Deposed { region: "b".into(), asked: 3, present: 4 }));
    set(2, 4, &["a", "b"]).await.unwrap();
}

/// What its leader had proposed before it lost its disks is of an epoch that is over.
#[tokio::test]
async fn what_a_home_had_proposed_before_it_was_made_anew_is_refused() {
    let store = synced().await;
    ruled!(&store, tx, renew(&tx, "a", &[], 9, &[1; 16])).unwrap();
    ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(1), None)).unwrap();
    let cut = mooseng_schema::log::LogPosition::new(Epoch(1), 7);
    ruled!(&store, tx, open_epoch(&tx, ROOT, Epoch(1), "b", Some(cut))).unwrap();
    assert!(ruled!(&store, tx, renew(&tx, "a", &[], 2, &[9; 16])).unwrap().anew);
    let version = seen(&store).await.version;
    let both = &VolumeChange { sync_set: Some(names(&["a", "b"])), ..VolumeChange::default() };
    let version = ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(2), both)).unwrap().max(version);
    ruled!(&store, tx, move_home(&tx, ROOT, Epoch(2), ("b", "a"), cut, version)).unwrap();
    let late = VolumeChange { sync_set: Some(names(&["a"])), custody: Some(9), ..VolumeChange::default() };
    let late = ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(1), &late));
    assert!(matches!(late, Err(RuleError::OtherEpoch { .. })), "{late:?}");
}

#[tokio::test]
async fn what_no_other_region_has_keeps_nobody_from_beginning_anew() {
    let store = synced().await;
    let alone = &VolumeChange {
        durability: Some(Durability::Region),
        regions: Some(names(&["a"])),
        sync_set: Some(names(&["a"])),
        ..VolumeChange::default()
    };
    ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(1), alone)).unwrap();
    assert!(ruled!(&store, tx, renew(&tx, "a", &[], 0, &[9; 16])).unwrap().anew);
}
