//! The feature level, over a store in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

use mooseng_schema::revocation::Revocation;
use mooseng_schema::storage_class::StorageClassRecord as Asked;
use mooseng_store::memory::MemoryStore;
use mooseng_store::{Store, StoreError};
use mooseng_wire::InodeId;
use mooseng_wire::level::{Feature, FeatureLevel, Levels};
use proptest::prelude::*;

use super::joins::Making;
use super::level::{Lacking, LevelError, Told, plan, raise};
use super::revocations::{Space, revoke};
use super::tests::{founded, founding, region, ruled, run, seen};
use super::*;
use crate::view::Place;

/// What all masters of [`founding`] tell.
fn all_tell(levels: Levels) -> Told {
    let of = |(name, region): (&String, &Region)| {
        region.masters.iter().map(|m| ((name.clone(), m.id), levels)).collect::<Vec<_>>()
    };
    founding().regions.iter().flat_map(of).collect()
}

fn lacking(region: &str, master: &str, told: Option<Levels>) -> Lacking {
    Lacking { region: region.into(), master: master.into(), told }
}

/// Founded by a release from before levels: nothing of them is on record.
async fn before_levels() -> MemoryStore {
    let store = founded().await;
    ruled!(&store, tx, async {
        tx.clear(&key::level());
        Ok::<_, RuleError>(())
    })
    .unwrap();
    store
}

#[tokio::test]
async fn a_cluster_begins_with_the_level_of_who_founds_it_and_one_from_before_levels_is_at_0() {
    assert_eq!(seen(&founded().await).await.level, Levels::OURS.highest);
    let store = MemoryStore::new();
    ruled!(&store, tx, found(&tx, &Founding { level: FeatureLevel(7), ..founding() })).unwrap();
    assert_eq!(seen(&store).await.level, FeatureLevel(7));
    assert_eq!(seen(&before_levels().await).await.level, FeatureLevel(0));
    let unfounded = ruled!(&MemoryStore::new(), tx, raise(&tx, None, &Told::new()));
    assert_eq!(unfounded, Err(RuleError::NotFounded));
}

#[tokio::test]
async fn it_is_raised_once_all_masters_support_it_and_never_goes_down() {
    let store = before_levels().await;
    let before = seen(&store).await.version;
    let raised =
        async |asked: Option<u32>, told: &Told| ruled!(&store, tx, raise(&tx, asked.map(FeatureLevel), told));
    // One is down and never told; one told that it is of an earlier release.
    let mut told = all_tell(Levels::told(0, 1));
    told.remove(&("w".to_owned(), 1));
    told.insert(("a".to_owned(), 2), Levels::told(0, 0));
    let in_the_way = vec![lacking("a", "m2", Some(Levels::told(0, 0))), lacking("w", "m1", None)];
    let (present, to) = (FeatureLevel(0), FeatureLevel(1));
    let refused = LevelError::Lacking { present, to, lacking: in_the_way };
    assert_eq!(raised(None, &told).await, Err(RuleError::Level(refused.clone())));
    let says = refused.to_string();
    assert!(says.contains("a/m2 supports feature level 0; w/m1 doesn't answer"), "{says}");
    assert_eq!((seen(&store).await.level, seen(&store).await.version), (FeatureLevel(0), before));
    // Nobody supports a higher one.
    assert_eq!(raised(None, &all_tell(Levels::told(0, 0))).await, Ok((FeatureLevel(0), before)));
    let told = all_tell(Levels::told(0, 2));
    assert_eq!(raised(Some(1), &told).await, Ok((FeatureLevel(1), before + 1)), "one step, as it is asked");
    assert_eq!(raised(Some(1), &told).await, Ok((FeatureLevel(1), before + 1)), "done already");
    assert_eq!(raised(None, &told).await, Ok((FeatureLevel(2), before + 2)), "as far as all can");
    // Whatever is asked for, and whatever masters there are by then.
    for (asked, levels) in
        [(Some(0), Levels::told(0, 2)), (Some(1), Levels::default()), (None, Levels::default())]
    {
        assert_eq!(raised(asked, &all_tell(levels)).await, Ok((FeatureLevel(2), before + 2)));
    }
    assert!(raised(Some(3), &told).await.is_err());
    assert!(raised(Some(u32::MAX), &told).await.is_err());
}

#[tokio::test]
async fn a_master_that_comes_in_between_counts() {
    let store = before_levels().await;
    let told = &all_tell(Levels::told(0, 1));
    let raising = store.begin();
    raise(&raising, None, told).await.unwrap();
    ruled!(&store, tx, add_region(&tx, "c", &region(4, 1, false), &[])).unwrap();
    assert_eq!(raising.commit().await, Err(StoreError::Conflict));
    let again = ruled!(&store, tx, raise(&tx, None, told));
    assert!(
        matches!(again, Err(RuleError::Level(LevelError::Lacking { lacking, .. })) if lacking[0].region == "c")
    );
}

#[tokio::test]
async fn what_masters_of_earlier_releases_dont_know_takes_the_level() {
    let store = before_levels().await;
    let making = &Making {
        place: Place { directory: InodeId::new(VolumeId(0), 9), path: "/d".into() },
        home: "a".into(),
        durability: Durability::Region,
        regions: BTreeSet::new(),
    };
    let class =
        &Asked { name: "fast".into(), copies: 2, min_copies: 1, labels: vec![], set_ns: 1, leaving: false };
    let revocation = Revocation { reason: String::new(), by: String::new(), at_unix: 1, expires_unix: None };
    let revoked = &[("77".to_owned(), revocation)].into();
    let before = seen(&store).await;
    let refused = |feature| Err(RuleError::Level(FeatureLevel(0).require(feature).unwrap_err().into()));
    assert_eq!(ruled!(&store, tx, create_volume(&tx, making)).map(drop), refused(Feature::Volumes));
    assert_eq!(ruled!(&store, tx, create_class(&tx, class)).map(drop), refused(Feature::ClusterClasses));
    let to_revoke = ruled!(&store, tx, revoke(&tx, Space::Cluster, revoked, (5, 0)));
    assert_eq!(to_revoke.map(drop), refused(Feature::Revocations));
    assert_eq!(seen(&store).await, before);
    // What a region revokes for itself is nobody else's affair.
    ruled!(&store, tx, revoke(&tx, Space::Region, revoked, (5, 0))).unwrap();
    ruled!(&store, tx, raise(&tx, None, &all_tell(Levels::OURS))).unwrap();
    ruled!(&store, tx, create_volume(&tx, making)).unwrap();
    let (_, version) = ruled!(&store, tx, create_class(&tx, class)).unwrap();
    ruled!(&store, tx, revoke(&tx, Space::Cluster, revoked, (5, 0))).unwrap();
    // What there is goes on where a cluster comes from a release that had these and no levels.
    ruled!(&store, tx, async {
        tx.clear(&key::level());
        Ok::<_, RuleError>(())
    })
    .unwrap();
    assert_eq!(ruled!(&store, tx, create_class(&tx, class)).unwrap().1, version, "it is there");
    let (made, _) = ruled!(&store, tx, create_volume(&tx, making)).unwrap();
    ruled!(&store, tx, join_volume(&tx, made, "a")).unwrap();
    ruled!(&store, tx, leave_class(&tx, "fast")).unwrap();
}

#[tokio::test]
async fn masters_of_before_that_write_the_clusters_record_leave_the_level() {
    let store = founded().await;
    // As such a master writes it.
    let old = ClusterRecord { lease_ms: 10_000, region_highest: 3, volume_highest: 0 };
    ruled!(&store, tx, async {
        tx.set(&key::cluster(), &old.to_value());
        Ok::<_, RuleError>(())
    })
    .unwrap();
    assert_eq!(seen(&store).await.level, Levels::OURS.highest);
}

proptest! {
    /// Whatever masters tell, the level is raised to what each of them supports, or not at all.
    #[test]
    fn no_master_is_left_behind(
        told in proptest::collection::vec(proptest::option::of((0_u32..4, 0_u32..4)), 7),
        present in 0_u32..4, asked in proptest::option::of(0_u32..5),
    ) {
        let regions = founding().regions;
        let seats = regions.iter().flat_map(|(name, r)| r.masters.iter().map(move |m| (name.clone(), m.id)));
        let told: Told = seats.zip(told).filter_map(|(seat, told)| told.map(|(low, high)| (seat, Levels::told(low, high)))).collect();
        let present = FeatureLevel(present);
        match plan(&regions, &told, present, asked.map(FeatureLevel)) {
            Ok(to) if to == present => prop_assert!(
                asked.is_some_and(|asked| asked <= present.0) || told.values().all(|levels| levels.highest <= present)
            ),
            Ok(to) => {
                prop_assert!(to > present && told.len() == 7 && told.values().all(|levels| levels.include(to)));
                prop_assert!(asked.is_none_or(|asked| asked == to.0));
            }
            Err(LevelError::Lacking { to, lacking, .. }) => {
                prop_assert!(to > present && !lacking.is_empty());
                prop_assert!(lacking.iter().all(|of| !of.told.is_some_and(|levels| levels.include(to))));
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
