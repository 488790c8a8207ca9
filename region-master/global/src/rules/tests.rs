//! The rules over a store in memory.

use mooseng_schema::log::LogPosition;
use mooseng_store::memory::{MemoryStore, MemoryTransaction};
use mooseng_store::{Store, StoreError};
use mooseng_wire::level::Levels;
use proptest::prelude::*;

use super::*;
use crate::view::MasterAt;

pub(super) fn region(number: u16, masters: u64, witness: bool) -> Region {
    let master = |id| MasterAt {
        id,
        name: format!("m{id}"),
        address: format!("r{number}m{id}:1"),
        zone: format!("z{id}"),
    };
    Region { number, witness, masters: (1..=masters).map(master).collect() }
}

pub(super) fn founding() -> Founding {
    let regions = [("a", region(1, 3, false)), ("b", region(2, 3, false)), ("w", region(3, 1, true))];
    Founding {
        regions: regions.map(|(name, region)| (name.to_owned(), region)).into(),
        root_home: "a".into(),
        lease_ms: 10_000,
        level: Levels::OURS.highest,
    }
}

/// Runs one transaction and commits it, unless its rule refuses.
pub(super) async fn run<T, Fut>(store: &MemoryStore, body: impl FnOnce(MemoryTransaction) -> Fut) -> Ruled<T>
where
    Fut: Future<Output = Result<(MemoryTransaction, T), RuleError>>,
{
    let (tx, value) = body(store.begin()).await?;
    tx.commit().await?;
    Ok(value)
}

/// One rule as a transaction.
macro_rules! ruled {
    ($store:expr, $tx:ident, $rule:expr) => {
        run($store, |$tx| async move {
            let value = $rule.await?;
            Ok(($tx, value))
        })
        .await
    };
}
pub(super) use ruled;

pub(super) async fn founded() -> MemoryStore {
    let store = MemoryStore::new();
    assert!(ruled!(&store, tx, found(&tx, &founding())).unwrap());
    store
}

/// A store with nothing in it but the feature level.
pub(super) async fn at_level(level: FeatureLevel) -> MemoryStore {
    let store = MemoryStore::new();
    let tx = store.begin();
    level::begin(&tx, level);
    tx.commit().await.unwrap();
    store
}

pub(super) async fn seen(store: &MemoryStore) -> View {
    view(&store.begin()).await.unwrap().unwrap()
}

pub(super) fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn a_cluster_is_founded_once() {
    let store = founded().await;
    let first = seen(&store).await;
    assert_eq!((first.version, first.regions.len()), (1, 3));
    let root = &first.volumes[&ROOT];
    assert_eq!((root.home.as_str(), root.epoch, root.open, root.automatic), ("a", Epoch(1), true, true));
    assert_eq!(root.regions, names(&["a", "b"]), "the witness has no data");
    let other = Founding { root_home: "b".into(), ..founding() };
    assert!(!ruled!(&store, tx, found(&tx, &other)).unwrap());
    assert_eq!(seen(&store).await, first);
    assert_eq!(view(&MemoryStore::new().begin()).await.unwrap(), None);
    let witness = Founding { root_home: "w".into(), ..founding() };
    assert!(matches!(ruled!(&MemoryStore::new(), tx, found(&tx, &witness)), Err(RuleError::Unfit { .. })));
    // A single region needs no lease.
    let mut alone = founding();
    alone.regions.retain(|name, _| name == "a");
    let store = MemoryStore::new();
    ruled!(&store, tx, found(&tx, &alone)).unwrap();
    assert!(!seen(&store).await.volumes[&ROOT].automatic);
}

#[tokio::test]
async fn a_renewal_counts_and_takes_note_of_masters_that_changed() {
    let store = founded().await;
    let masters = &region(1, 3, false).masters;
    let first = ruled!(&store, tx, renew(&tx, "a", masters, 0, &[])).unwrap();
    assert_eq!(first, Renewal { sequence: 1, version: 1, lease_ms: 10_000, anew: false });
    let replaced: &Vec<MasterAt> = &masters
        .iter()
        .cloned()
        .map(|m| if m.id == 3 { MasterAt { id: 4, address: "new:1".into(), ..m } } else { m })
        .collect();
    let second = ruled!(&store, tx, renew(&tx, "a", replaced, 0, &[])).unwrap();
    assert_eq!((second.sequence, second.version), (2, 2));
    assert_eq!(seen(&store).await.regions["a"].masters, *replaced);
    assert_eq!(leases(&store.begin()).await.unwrap()["a"], 2);
    // Somebody else's address isn't taken.
    let stolen = region(2, 3, false).masters;
    assert!(matches!(ruled!(&store, tx, renew(&tx, "a", &stolen, 0, &[])), Err(RuleError::Region { .. })));
    assert_eq!(ruled!(&store, tx, renew(&tx, "x", &[], 0, &[])), Err(RuleError::NoRegion("x".into())));
    let unfounded = MemoryStore::new();
    assert_eq!(ruled!(&unfounded, tx, renew(&tx, "a", &[], 0, &[])), Err(RuleError::NotFounded));
}

#[tokio::test]
async fn a_renewal_and_a_change_that_it_doesnt_know_of_dont_both_commit() {
    let store = founded().await;
    let renewing = store.begin();
    let renewal = renew(&renewing, "a", &[], 0, &[]).await.unwrap();
    ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(1), Some(0))).unwrap();
    assert_eq!(renewing.commit().await, Err(StoreError::Conflict));
    assert_eq!(renewal.version, 1);
    // And the other way round.
    let store = founded().await;
    let closing = store.begin();
    close_epoch(&closing, ROOT, Epoch(1), Some(0)).await.unwrap();
    ruled!(&store, tx, renew(&tx, "a", &[], 0, &[])).unwrap();
    assert_eq!(closing.commit().await, Err(StoreError::Conflict));
    assert_eq!(
        ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(1), Some(0))),
        Err(RuleError::Renewed("a".into()))
    );
}

#[tokio::test]
async fn a_home_hands_its_volume_over_once_and_only_where_nothing_came_in_between() {
    let store = founded().await;
    let (one, cut) = (Epoch(1), LogPosition::new(Epoch(1), 70));
    let moving = async |from: &str, to: &str, epoch: Epoch, version: u64| {
        ruled!(&store, tx, move_home(&tx, ROOT, epoch, (from, to), cut, version))
    };
    for unfit in ["w", "a"] {
        assert!(matches!(moving("a", unfit, one, 1).await, Err(RuleError::Unfit { .. })), "{unfit}");
    }
    assert_eq!(moving("a", "x", one, 1).await, Err(RuleError::NoRegion("x".into())));
    assert!(
        matches!(moving("b", "b", one, 1).await, Err(RuleError::NotHome { .. })),
        "the home itself does it"
    );
    assert!(matches!(moving("a", "b", Epoch(2), 1).await, Err(RuleError::OtherEpoch { .. })));
    // A home that goes on makes sure that what it asked for before comes no more.
    let stays = ruled!(&store, tx, stay_home(&tx, ROOT, one, "a")).unwrap();
    assert_eq!(moving("a", "b", one, 1).await, Err(RuleError::Overtaken { asked: 1, present: stays }));
    assert!(matches!(ruled!(&store, tx, stay_home(&tx, ROOT, one, "b")), Err(RuleError::NotHome { .. })));
    let moved = moving("a", "b", one, stays).await.unwrap();
    assert_eq!(moving("a", "b", one, stays).await.unwrap(), moved, "done already");
    let root = seen(&store).await.volumes[&ROOT].clone();
    assert_eq!((root.home.as_str(), root.epoch, root.open, root.cut), ("b", Epoch(2), true, Some(cut)));
    assert_eq!((root.lost_home, root.sync_set), (None, names(&["b"])));
    assert!(matches!(ruled!(&store, tx, stay_home(&tx, ROOT, one, "a")), Err(RuleError::OtherEpoch { .. })));
    // Where it was closed meanwhile, it is another's to decide.
    ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(2), Some(0))).unwrap();
    let version = seen(&store).await.version;
    assert!(matches!(moving("b", "a", Epoch(2), version).await, Err(RuleError::Closed { .. })));
}

/// Else the home alone would answer fsync until another region is in the set.
#[tokio::test]
async fn the_last_region_besides_the_home_stays_in_a_geo_volumes_sync_set() {
    let store = founded().await;
    let c = &Region { number: 0, ..region(9, 3, false) };
    ruled!(&store, tx, add_region(&tx, "c", c, &[])).unwrap();
    let set = async |change: VolumeChange| {
        let change = &change;
        ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(1), change))
    };
    let regions = |of: &[&str]| VolumeChange { regions: Some(names(of)), ..VolumeChange::default() };
    let sync_set = |of: &[&str]| VolumeChange { sync_set: Some(names(of)), ..VolumeChange::default() };
    set(VolumeChange { durability: Some(Durability::Geo), ..regions(&["a", "b"]) }).await.unwrap();
    set(sync_set(&["a", "b"])).await.unwrap();
    let refused = set(regions(&["a", "c"])).await.unwrap_err().to_string();
    assert!(refused.contains("alone would answer") && refused.contains("--regions a,b,c`"), "{refused}");
    set(regions(&["a", "b", "c"])).await.unwrap();
    let refused = set(regions(&["a", "c"])).await.unwrap_err().to_string();
    assert!(refused.contains("Wait until"), "{refused}");
    set(sync_set(&["a", "b", "c"])).await.unwrap();
    set(regions(&["a", "c"])).await.unwrap();
    assert_eq!(seen(&store).await.volumes[&ROOT].sync_set, names(&["a", "c"]));
    // One that is away has left the set before.
    set(sync_set(&["a"])).await.unwrap();
    set(regions(&["a", "b"])).await.unwrap();
}

#[tokio::test]
async fn a_geo_volume_moves_within_its_sync_set_and_keeps_it() {
    let store = founded().await;
    let geo = VolumeChange { durability: Some(Durability::Geo), ..VolumeChange::default() };
    let version = ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(1), &geo)).unwrap();
    let cut = LogPosition::new(Epoch(1), 70);
    let refused = ruled!(&store, tx, move_home(&tx, ROOT, Epoch(1), ("a", "b"), cut, version));
    assert!(matches!(refused, Err(RuleError::Unfit { .. })), "it may lack what was acknowledged");
    let joined = VolumeChange { sync_set: Some(names(&["a", "b"])), ..VolumeChange::default() };
    let version = ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(1), &joined)).unwrap();
    ruled!(&store, tx, move_home(&tx, ROOT, Epoch(1), ("a", "b"), cut, version)).unwrap();
    assert_eq!(seen(&store).await.volumes[&ROOT].sync_set, names(&["a", "b"]));
    // One that doesn't have the volume is told how it gets it.
    let only = VolumeChange {
        regions: Some(names(&["b"])),
        durability: Some(Durability::Region),
        ..VolumeChange::default()
    };
    let version = ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(2), &only)).unwrap();
    let refused = ruled!(&store, tx, move_home(&tx, ROOT, Epoch(2), ("b", "a"), cut, version)).unwrap_err();
    assert!(refused.to_string().contains("mooseng volume set / --regions b,a"), "{refused}");
}

#[tokio::test]
async fn a_home_that_is_given_up_is_followed_by_the_region_that_was_named() {
    let store = founded().await;
    let one = Epoch(1);
    let geo = VolumeChange { durability: Some(Durability::Geo), ..VolumeChange::default() };
    ruled!(&store, tx, set_volume(&tx, ROOT, one, &geo)).unwrap();
    for (to, says) in [("w", "witness"), ("a", "its home already"), ("x", "x")] {
        let refused = ruled!(&store, tx, force_home(&tx, ROOT, one, to, true)).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
    }
    let late = ruled!(&store, tx, force_home(&tx, ROOT, Epoch(2), "b", true));
    assert!(matches!(late, Err(RuleError::OtherEpoch { .. })), "{late:?}");
    // It isn't in the sync set: that is what the administrator takes upon himself.
    let refused = ruled!(&store, tx, force_home(&tx, ROOT, one, "b", false)).unwrap_err().to_string();
    assert!(refused.contains("sync set (a)") && refused.contains("--although-it-loses"), "{refused}");
    let given_up = ruled!(&store, tx, force_home(&tx, ROOT, one, "b", true)).unwrap();
    assert_eq!(ruled!(&store, tx, force_home(&tx, ROOT, one, "b", true)).unwrap(), given_up, "done already");
    let root = seen(&store).await.volumes[&ROOT].clone();
    assert_eq!((root.open, root.abandoned, root.forced_home.as_deref()), (false, true, Some("b")));
    let cut = Some(LogPosition::new(one, 70));
    let other = ruled!(&store, tx, open_epoch(&tx, ROOT, one, "a", cut)).unwrap_err().to_string();
    assert!(other.contains("for b"), "{other}");
    // Another one is named, and it may be the home of before.
    ruled!(&store, tx, force_home(&tx, ROOT, one, "a", false)).unwrap();
    ruled!(&store, tx, force_home(&tx, ROOT, one, "b", true)).unwrap();
    ruled!(&store, tx, open_epoch(&tx, ROOT, one, "b", cut)).unwrap();
    let root = seen(&store).await.volumes[&ROOT].clone();
    assert_eq!((root.home.as_str(), root.epoch, root.cut), ("b", Epoch(2), cut));
    assert_eq!((root.lost_home.as_deref(), root.forced_home.as_deref()), (Some("a"), Some("b")));
    assert_eq!(root.sync_set, names(&["b"]), "nobody is known to have what it has");
    // It counts for that epoch alone.
    ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(2), Some(0))).unwrap();
    assert_eq!(seen(&store).await.volumes[&ROOT].forced_home, None);
}

#[tokio::test]
async fn epochs_are_closed_and_opened_in_turn() {
    let store = founded().await;
    let one = Epoch(1);
    assert!(matches!(ruled!(&store, tx, open_epoch(&tx, ROOT, one, "b", None)), Err(RuleError::Open { .. })));
    let closed = ruled!(&store, tx, close_epoch(&tx, ROOT, one, None)).unwrap();
    assert_eq!(ruled!(&store, tx, close_epoch(&tx, ROOT, one, None)).unwrap(), closed, "done already");
    for unfit in ["w", "x"] {
        let opened = ruled!(&store, tx, open_epoch(&tx, ROOT, one, unfit, None));
        assert!(matches!(opened, Err(RuleError::Unfit { .. })), "{unfit}");
    }
    let opened = ruled!(&store, tx, open_epoch(&tx, ROOT, one, "b", None)).unwrap();
    assert_eq!(ruled!(&store, tx, open_epoch(&tx, ROOT, one, "b", None)).unwrap(), opened, "done already");
    let lost = ruled!(&store, tx, open_epoch(&tx, ROOT, one, "a", None));
    assert!(matches!(lost, Err(RuleError::OtherEpoch { present: Epoch(2), .. })), "{lost:?}");
    let late = ruled!(&store, tx, close_epoch(&tx, ROOT, one, None));
    assert!(matches!(late, Err(RuleError::OtherEpoch { present: Epoch(2), .. })), "{late:?}");
    let root = seen(&store).await.volumes[&ROOT].clone();
    assert_eq!((root.home.as_str(), root.epoch, root.sync_set), ("b", Epoch(2), names(&["b"])));
    let nobody = ruled!(&store, tx, close_epoch(&tx, VolumeId(9), one, None));
    assert_eq!(nobody, Err(RuleError::NoVolume(VolumeId(9))));
}

#[tokio::test]
async fn a_geo_volume_goes_to_a_member_of_its_sync_set_only() {
    let store = founded().await;
    let one = Epoch(1);
    let geo = VolumeChange { durability: Some(Durability::Geo), ..VolumeChange::default() };
    ruled!(&store, tx, set_volume(&tx, ROOT, one, &geo)).unwrap();
    ruled!(&store, tx, close_epoch(&tx, ROOT, one, None)).unwrap();
    let early = ruled!(&store, tx, open_epoch(&tx, ROOT, one, "b", None));
    assert!(early.unwrap_err().to_string().contains("sync set"));
    ruled!(&store, tx, open_epoch(&tx, ROOT, one, "a", None)).unwrap();
    let both = VolumeChange { sync_set: Some(names(&["a", "b"])), ..VolumeChange::default() };
    ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(2), &both)).unwrap();
    ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(2), None)).unwrap();
    ruled!(&store, tx, open_epoch(&tx, ROOT, Epoch(2), "b", None)).unwrap();
    assert_eq!(seen(&store).await.volumes[&ROOT].sync_set, names(&["a", "b"]));
}

/// What it proposes late would bring in a region that the later leader doesn't wait for.
#[tokio::test]
async fn a_leader_that_leads_no_more_changes_no_sync_set() {
    let store = founded().await;
    let geo = VolumeChange { durability: Some(Durability::Geo), ..VolumeChange::default() };
    ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(1), &geo)).unwrap();
    let both = |custody| VolumeChange {
        sync_set: Some(names(&["a", "b"])),
        custody: Some(custody),
        ..VolumeChange::default()
    };
    ruled!(&store, tx, renew(&tx, "a", &[], 5, &[])).unwrap();
    ruled!(&store, tx, renew(&tx, "a", &[], 6, &[])).unwrap();
    ruled!(&store, tx, renew(&tx, "a", &[], 5, &[])).unwrap();
    let late = ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(1), &both(5)));
    assert_eq!(late, Err(RuleError::Deposed { region: "a".into(), asked: 5, present: 6 }));
    ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(1), &both(6))).unwrap();
    assert_eq!(seen(&store).await.volumes[&ROOT].sync_set, names(&["a", "b"]));
}

/// Who was in the set before the volume was answered for by its home alone may lack what was acknowledged since.
#[tokio::test]
async fn a_volume_that_is_made_geo_again_begins_with_its_home_alone() {
    let store = founded().await;
    let one = Epoch(1);
    let made = async |durability: Durability| {
        let change = &VolumeChange {
            durability: Some(durability),
            blocks_alone: Some(true),
            ..VolumeChange::default()
        };
        ruled!(&store, tx, set_volume(&tx, ROOT, one, change)).unwrap();
    };
    made(Durability::Geo).await;
    let both = VolumeChange { sync_set: Some(names(&["a", "b"])), ..VolumeChange::default() };
    ruled!(&store, tx, set_volume(&tx, ROOT, one, &both)).unwrap();
    made(Durability::Region).await;
    made(Durability::Geo).await;
    assert_eq!(seen(&store).await.volumes[&ROOT].sync_set, names(&["a"]));
}

/// A home that isn't reached, or whose next leader knows only of what was agreed on before, goes on without a lease; and another region would be the home beside it.
#[tokio::test]
async fn a_volume_fails_over_by_itself_only_once_its_home_knows_that_it_needs_a_lease() {
    let store = founded().await;
    let automatic = |on, by_home, at_version| VolumeChange {
        automatic: Some(on),
        by_home,
        at_version,
        ..VolumeChange::default()
    };
    let set = async |change: VolumeChange| {
        let change = &change;
        ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(1), change))
    };
    // It does so already: nothing is to be known.
    let before = seen(&store).await.version;
    assert_eq!(set(automatic(true, false, None)).await, Ok(before));
    // That it needs none any more anybody may decide.
    let version = set(automatic(false, false, None)).await.unwrap();
    // What was judged before is of no account then.
    let late = ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(1), Some(0)));
    assert_eq!(late, Err(RuleError::ByCommand(ROOT)));
    let only_home = RuleError::OnlyHome { volume: ROOT, home: "a".into() };
    assert!(only_home.to_string().contains("mooseng volume move-home 0 --to REGION --force"));
    for (by_home, at_version) in [(false, None), (false, Some(version)), (true, None)] {
        assert_eq!(set(automatic(true, by_home, at_version)).await, Err(only_home.clone()));
    }
    let late = set(automatic(true, true, Some(version - 1))).await;
    assert_eq!(late, Err(RuleError::Overtaken { asked: version - 1, present: version }));
    assert_eq!(set(automatic(true, true, Some(version))).await, Ok(version + 1));
    ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(1), Some(0))).unwrap();
}

#[tokio::test]
async fn what_a_volume_cant_be_is_refused() {
    let store = founded().await;
    let set = async |epoch: u64, change: VolumeChange| {
        let change = &change;
        ruled!(&store, tx, set_volume(&tx, ROOT, Epoch(epoch), change))
    };
    let regions = |of: &[&str]| VolumeChange { regions: Some(names(of)), ..VolumeChange::default() };
    let sync_set = |of: &[&str]| VolumeChange { sync_set: Some(names(of)), ..VolumeChange::default() };
    assert!(matches!(set(2, regions(&["a"])).await, Err(RuleError::OtherEpoch { .. })));
    assert_eq!(set(1, regions(&["a", "x"])).await, Err(RuleError::NoRegion("x".into())));
    for (change, says) in [
        (regions(&["a", "w"]), "witness"),
        (regions(&["b"]), "home"),
        (sync_set(&["b"]), "home"),
        (sync_set(&["a", "w"]), "isn't one of"),
    ] {
        let error = set(1, change).await.unwrap_err();
        assert!(matches!(error, RuleError::Unfit { .. }) && error.to_string().contains(says), "{error}");
    }
    let before = seen(&store).await.version;
    assert_eq!(set(1, VolumeChange::default()).await, Ok(before), "nothing changes");
    set(1, regions(&["a"])).await.unwrap();
    let geo = VolumeChange { durability: Some(Durability::Geo), ..VolumeChange::default() };
    let refused = set(1, geo).await.unwrap_err();
    assert_eq!(refused, RuleError::NoFailover(ROOT));
    assert!(refused.to_string().contains("mooseng volume set"));
}

#[tokio::test]
async fn regions_join_and_leave() {
    let store = founded().await;
    let c = &Region { number: 0, ..region(9, 3, false) };
    ruled!(&store, tx, add_region(&tx, "c", c, &[])).unwrap();
    let added = seen(&store).await;
    assert_eq!(added.regions["c"].number, 4);
    ruled!(&store, tx, add_region(&tx, "c", c, &[])).unwrap();
    assert_eq!(seen(&store).await, added, "done already");
    let at = |address: &str| {
        let mut region = region(5, 1, false);
        region.masters[0].address = address.into();
        region
    };
    let table = [
        ("c", region(9, 3, false), "another one"),
        ("d", Region { number: 3, ..region(8, 1, false) }, "aren't given twice"),
        ("d", Region { number: 5, ..region(1, 1, false) }, "another master's"),
        ("d d", region(5, 1, false), "its name"),
        ("d", region(5, 0, false), "0 masters"),
        ("d", at("1.2.3.4"), "host:port"),
        ("d", at("foo:99999"), "host:port"),
        ("d", at(":7000"), "host:port"),
    ];
    for (name, region, says) in table {
        let error = ruled!(&store, tx, add_region(&tx, name, &region, &[])).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let used = ruled!(&store, tx, remove_region(&tx, "b"));
    assert!(matches!(used, Err(RuleError::InUse { .. })), "{used:?}");
    ruled!(&store, tx, remove_region(&tx, "c")).unwrap();
    // A number isn't given again, whoever had it.
    ruled!(&store, tx, add_region(&tx, "c", c, &[])).unwrap();
    assert_eq!(seen(&store).await.regions["c"].number, 5);
    ruled!(&store, tx, remove_region(&tx, "c")).unwrap();
    let error = ruled!(&store, tx, remove_region(&tx, "w")).unwrap_err();
    assert!(matches!(error, RuleError::CouldntLose(_)), "{error}");
    assert_eq!(leases(&store.begin()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_region_that_was_given_a_token_shows_its_secret_once() {
    let store = founded().await;
    let c = &Region { number: 0, ..region(9, 1, false) };
    let token = |n: u8| mooseng_wire::join::hash(&[n; 16]);
    ruled!(&store, tx, add_region(&tx, "c", c, &token(1))).unwrap();
    // Another token before it has come: the first counts no more.
    let before = seen(&store).await;
    ruled!(&store, tx, add_region(&tx, "c", c, &token(2))).unwrap();
    assert_eq!(seen(&store).await, before);
    assert_eq!(ruled!(&store, tx, renew(&tx, "c", &[], 1, &[])), Err(RuleError::NoToken("c".into())));
    for secret in [&[][..], &[1; 16]] {
        assert_eq!(ruled!(&store, tx, admit(&tx, "c", secret)), Err(RuleError::NoToken("c".into())));
    }
    ruled!(&store, tx, async {
        admit(&tx, "c", &[2; 16]).await?;
        renew(&tx, "c", &[], 1, &[]).await
    })
    .unwrap();
    // It has come: others of its masters needn't have it.
    ruled!(&store, tx, admit(&tx, "c", &[])).unwrap();
    ruled!(&store, tx, renew(&tx, "c", &[], 2, &[])).unwrap();
    assert_eq!(
        ruled!(&store, tx, add_region(&tx, "c", c, &token(3))),
        Err(RuleError::TokenSpent("c".into()))
    );
    ruled!(&store, tx, add_region(&tx, "c", c, &[])).unwrap();
    // One without a token needs none.
    ruled!(&store, tx, admit(&tx, "a", &[5])).unwrap();
}

#[tokio::test]
async fn ids_run_out_and_senseless_wishes_are_refused() {
    let store = founded().await;
    let take = async |count, least| {
        ruled!(&store, tx, take_ids(&tx, IdKind::Chunk, ROOT, "a", Epoch(1), (count, least)))
    };
    for count in [0, IDS_MAX + 1] {
        assert!(matches!(take(count, 0).await, Err(RuleError::Ids(_))));
    }
    assert_eq!(
        take(3, (1 << LOCAL_ID_BITS) - 4).await,
        Ok((1 << LOCAL_ID_BITS) - 4..(1 << LOCAL_ID_BITS) - 1)
    );
    assert!(matches!(take(2, 0).await, Err(RuleError::Ids(_))));
    assert!(matches!(take(2, u64::MAX).await, Err(RuleError::Ids(_))));
}

#[derive(Clone, Debug)]
enum Act {
    Take { region: &'static str, epoch: u64, count: u64, least: u64, kind: bool },
    Close { epoch: u64 },
    Open { closed: u64, home: &'static str },
}

fn act() -> impl Strategy<Value = Act> {
    let home = prop_oneof![Just("a"), Just("b")];
    prop_oneof![
        4 => (home.clone(), 1_u64..5, 1_u64..50, 0_u64..500, any::<bool>())
            .prop_map(|(region, epoch, count, least, kind)| Act::Take { region, epoch, count, least, kind }),
        1 => (1_u64..5).prop_map(|epoch| Act::Close { epoch }),
        1 => (1_u64..5, home).prop_map(|(closed, home)| Act::Open { closed, home }),
    ]
}

proptest! {
    #[test]
    fn no_id_is_given_twice_and_none_but_to_the_home_of_an_open_epoch(acts in proptest::collection::vec(act(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = founded().await;
            let mut given: [Vec<Range<u64>>; 2] = Default::default();
            for act in acts {
                let before = seen(&store).await.volumes[&ROOT].clone();
                match act {
                    Act::Take { region, epoch, count, least, kind } => {
                        let of = if kind { IdKind::Inode } else { IdKind::Chunk };
                        let taken = ruled!(&store, tx, take_ids(&tx, of, ROOT, region, Epoch(epoch), (count, least)));
                        let may = before.open && before.home == region && before.epoch == Epoch(epoch);
                        assert_eq!(taken.is_ok(), may, "{taken:?}");
                        let Ok(range) = taken else { continue };
                        assert!(range.end - range.start == count && range.start >= least);
                        let given = &mut given[usize::from(kind)];
                        assert!(given.iter().all(|other| other.end <= range.start), "{range:?} {given:?}");
                        given.push(range);
                    }
                    Act::Close { epoch } => drop(ruled!(&store, tx, close_epoch(&tx, ROOT, Epoch(epoch), None))),
                    Act::Open { closed, home } => drop(ruled!(&store, tx, open_epoch(&tx, ROOT, Epoch(closed), home, None))),
                }
                let after = seen(&store).await.volumes[&ROOT].clone();
                assert!(after.epoch == before.epoch || (!before.open && after.epoch.0 == before.epoch.0 + 1));
                assert!(after.home == before.home || after.epoch > before.epoch, "one home per epoch");
            }
        });
    }
}
