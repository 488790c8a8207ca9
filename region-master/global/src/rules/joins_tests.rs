//! Making and deleting volumes, over a store in memory.

use mooseng_schema::log::LogPosition;
use mooseng_store::memory::MemoryStore;
use mooseng_store::{Store, StoreError};
use mooseng_wire::InodeId;
use proptest::prelude::*;

use super::joins::{Making, VOLUMES_MAX};
use super::tests::{founded, founding, names, region, ruled, run, seen};
use super::*;
use crate::view::{Join, Place, Stage};

/// A volume at an inode of another one, with the home `a`.
fn making(parent: u16, inode: u64) -> Making {
    let place = Place { directory: InodeId::new(VolumeId(parent), inode), path: format!("/d{inode}") };
    Making { place, home: "a".into(), durability: Durability::Region, regions: BTreeSet::new() }
}

fn stage(volume: &Volume) -> Stage {
    volume.join.as_ref().unwrap().stage
}

#[tokio::test]
async fn a_volume_is_made_joined_left_and_deleted_and_each_may_be_repeated() {
    let store = founded().await;
    let create = async |making: &Making| ruled!(&store, tx, create_volume(&tx, making));
    let (first, version) = create(&making(0, 9)).await.unwrap();
    assert_eq!((first, version), (VolumeId(1), 2));
    assert_eq!(create(&making(0, 9)).await.unwrap(), (first, version), "done already");
    let made = seen(&store).await.volumes[&first].clone();
    let root = seen(&store).await.volumes[&ROOT].clone();
    let join = Some(Join { place: making(0, 9).place, stage: Stage::Made });
    // By default it is where its parent is.
    assert_eq!(made, Volume { join, ..root });
    // Nobody but the home of its parent knows that a directory names it.
    assert!(matches!(ruled!(&store, tx, join_volume(&tx, first, "b")), Err(RuleError::NotHome { .. })));
    let joined = ruled!(&store, tx, join_volume(&tx, first, "a")).unwrap();
    assert_eq!(ruled!(&store, tx, join_volume(&tx, first, "a")).unwrap(), joined, "done already");
    assert_eq!(create(&making(0, 9)).await.unwrap(), (first, joined), "the same one");
    assert_eq!(ruled!(&store, tx, delete_volume(&tx, first, "a")), Err(RuleError::StillJoined(first)));
    let left = ruled!(&store, tx, leave_volume(&tx, first)).unwrap();
    assert_eq!(ruled!(&store, tx, leave_volume(&tx, first)).unwrap(), left, "done already");
    assert_eq!(create(&making(0, 9)).await, Err(RuleError::Leaving(first)));
    assert_eq!(ruled!(&store, tx, join_volume(&tx, first, "a")), Err(RuleError::Leaving(first)));
    assert!(matches!(ruled!(&store, tx, delete_volume(&tx, first, "b")), Err(RuleError::NotHome { .. })));
    let ids = ruled!(&store, tx, take_ids(&tx, IdKind::Inode, first, "a", Epoch(1), (10, 0))).unwrap();
    assert_eq!(ids, 0..10);
    let deleted = ruled!(&store, tx, delete_volume(&tx, first, "a")).unwrap();
    assert_eq!(ruled!(&store, tx, delete_volume(&tx, first, "a")).unwrap(), deleted, "done already");
    assert_eq!(ruled!(&store, tx, leave_volume(&tx, first)).unwrap(), deleted, "done already");
    assert_eq!(seen(&store).await.volumes.len(), 1);
    let nobody = ruled!(&store, tx, take_ids(&tx, IdKind::Inode, first, "a", Epoch(1), (10, 0)));
    assert_eq!(nobody, Err(RuleError::NoVolume(first)));
    // Its number isn't given again: ids of it may still be about.
    assert_eq!(create(&making(0, 9)).await.unwrap().0, VolumeId(2));
}

#[tokio::test]
async fn what_cant_be_made_is_refused() {
    let store = founded().await;
    let refused = async |making: Making| {
        let making = &making;
        ruled!(&store, tx, create_volume(&tx, making)).unwrap_err().to_string()
    };
    let of =
        |home: &str, regions: &[&str]| Making { home: home.into(), regions: names(regions), ..making(0, 9) };
    let at = |path: &str| {
        let mut making = making(0, 9);
        making.place.path = path.to_owned();
        making
    };
    let before = seen(&store).await;
    for (making, says) in [
        (of("x", &[]), "there is no region \"x\""),
        (of("a", &["a", "x"]), "there is no region \"x\""),
        (of("w", &[]), "a witness"),
        (of("a", &["a", "w"]), "a witness"),
        (of("a", &["b"]), "say --regions b,a"),
        (making(7, 9), "there is no volume 7"),
        (making(0, 1), "root directory of a volume already"),
        (making(0, 0), "isn't an inode"),
        (at("d"), "begins with /"),
        (at(&format!("/{}", "d".repeat(5_000))), "4096 bytes at most"),
    ] {
        let error = refused(making.clone()).await;
        assert!(error.contains(says), "{error} {making:?}");
    }
    assert_eq!(seen(&store).await, before, "none of them changed anything");
    let nowhere = MemoryStore::new();
    let making = &making(0, 9);
    assert_eq!(ruled!(&nowhere, tx, create_volume(&tx, making)), Err(RuleError::NotFounded));
}

#[tokio::test]
async fn a_place_has_one_volume() {
    let store = founded().await;
    let geo = &Making { durability: Durability::Geo, regions: names(&["a", "b"]), ..making(0, 9) };
    ruled!(&store, tx, create_volume(&tx, geo)).unwrap();
    for other in [
        Making { home: "b".into(), ..geo.clone() },
        Making { durability: Durability::Region, ..geo.clone() },
        Making { regions: names(&["a"]), durability: Durability::Geo, ..geo.clone() },
    ] {
        let other = &other;
        let error = ruled!(&store, tx, create_volume(&tx, other)).unwrap_err().to_string();
        assert!(error.contains("volume 1 is there, with the home a, the durability geo and the regions a,b"));
        assert!(error.contains("mooseng volume delete /d9"), "{error}");
    }
    let beside = &making(0, 10);
    assert_eq!(ruled!(&store, tx, create_volume(&tx, beside)).unwrap().0, VolumeId(2));
    // Another region took it over meanwhile: the command that made it is the same command still.
    let both = VolumeChange { sync_set: Some(names(&["a", "b"])), ..VolumeChange::default() };
    let both = &both;
    ruled!(&store, tx, set_volume(&tx, VolumeId(1), Epoch(1), both)).unwrap();
    ruled!(&store, tx, close_epoch(&tx, VolumeId(1), Epoch(1), None)).unwrap();
    ruled!(&store, tx, open_epoch(&tx, VolumeId(1), Epoch(1), "b", None)).unwrap();
    assert_eq!(ruled!(&store, tx, create_volume(&tx, geo)).unwrap().0, VolumeId(1));
}

#[tokio::test]
async fn geo_is_refused_with_the_command_that_mends_it() {
    let made = async |regions: &[(&str, u64, bool)], asked: &[&str]| {
        let numbered = (1_u16..).zip(regions);
        let of = |(number, (name, masters, witness)): (u16, &(&str, u64, bool))| {
            ((*name).to_owned(), region(number, *masters, *witness))
        };
        let founding = &Founding { regions: numbered.map(of).collect(), ..founding() };
        let store = MemoryStore::new();
        ruled!(&store, tx, found(&tx, founding)).unwrap();
        let making = &Making { durability: Durability::Geo, regions: names(asked), ..making(0, 9) };
        ruled!(&store, tx, create_volume(&tx, making)).map(drop)
    };
    let (a, b, w) = (("a", 3, false), ("b", 3, false), ("w", 1, true));
    for (regions, asked, says) in [
        (&[a][..], &["a"][..], "mooseng regions add NAME --master"),
        (&[a, w], &["a"], "mooseng regions add NAME --master"),
        (&[a, b], &["a", "b"], "mooseng regions add NAME --witness --master"),
        (&[a, b], &[], "mooseng regions add NAME --witness --master"),
        (&[a, b, w], &["a"], "mooseng volume create /d9 --home a --durability geo --regions a,b"),
    ] {
        let error = made(regions, asked).await.unwrap_err();
        assert!(matches!(error, RuleError::NowhereToGo { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    made(&[a, b, w], &[]).await.unwrap();
}

#[tokio::test]
async fn the_root_and_what_has_volumes_below_it_stay() {
    let store = founded().await;
    let create = async |parent, inode| {
        let making = &making(parent, inode);
        ruled!(&store, tx, create_volume(&tx, making))
    };
    let leave = async |id| ruled!(&store, tx, leave_volume(&tx, VolumeId(id)));
    for gone in [
        leave(0).await,
        ruled!(&store, tx, delete_volume(&tx, ROOT, "a")),
        ruled!(&store, tx, join_volume(&tx, ROOT, "a")),
    ] {
        assert_eq!(gone, Err(RuleError::Root));
    }
    assert_eq!(leave(5).await, Err(RuleError::NoVolume(VolumeId(5))));
    create(0, 9).await.unwrap();
    // What nobody sees has no place below it.
    assert!(create(1, 9).await.unwrap_err().to_string().contains("volume 1 isn't joined itself yet"));
    ruled!(&store, tx, join_volume(&tx, VolumeId(1), "a")).unwrap();
    assert_eq!(create(1, 9).await.unwrap().0, VolumeId(2));
    let below = leave(1).await.unwrap_err();
    assert_eq!(below, RuleError::Below { volume: VolumeId(1), below: VolumeId(2), path: "/d9".into() });
    assert!(below.to_string().contains("mooseng volume delete /d9"));
    leave(2).await.unwrap();
    assert!(matches!(leave(1).await, Err(RuleError::Below { .. })), "it is there still");
    ruled!(&store, tx, delete_volume(&tx, VolumeId(2), "a")).unwrap();
    leave(1).await.unwrap();
    assert_eq!(create(1, 9).await, Err(RuleError::Leaving(VolumeId(1))));
}

/// A volume that is being made below another, and that one's deletion, don't both commit.
#[tokio::test]
async fn nothing_is_joined_in_what_is_deleted_meanwhile() {
    let store = founded().await;
    let above = &making(0, 9);
    ruled!(&store, tx, create_volume(&tx, above)).unwrap();
    ruled!(&store, tx, join_volume(&tx, VolumeId(1), "a")).unwrap();
    let creating = store.begin();
    create_volume(&creating, &making(1, 9)).await.unwrap();
    ruled!(&store, tx, leave_volume(&tx, VolumeId(1))).unwrap();
    assert_eq!(creating.commit().await, Err(StoreError::Conflict));
}

#[tokio::test]
async fn there_are_so_many_volumes_at_most() {
    let store = founded().await;
    for inode in 2..=VOLUMES_MAX as u64 {
        let making = &making(0, inode);
        ruled!(&store, tx, create_volume(&tx, making)).unwrap();
    }
    let one_more = &making(0, 5_000);
    let error = ruled!(&store, tx, create_volume(&tx, one_more)).unwrap_err();
    assert!(matches!(error, RuleError::Volumes(_)), "{error}");
    // Nor is a number given beyond the last.
    ruled!(&store, tx, leave_volume(&tx, VolumeId(7))).unwrap();
    ruled!(&store, tx, delete_volume(&tx, VolumeId(7), "a")).unwrap();
    let tx = store.begin();
    let spent = ClusterRecord { volume_highest: u16::MAX.into(), ..cluster(&tx).await.unwrap() };
    tx.set(&key::cluster(), &spent.to_value());
    tx.commit().await.unwrap();
    let error = ruled!(&store, tx, create_volume(&tx, one_more)).unwrap_err();
    assert!(error.to_string().contains("none is given twice"), "{error}");
}

#[tokio::test]
async fn a_region_is_freed_of_volumes_before_it_leaves() {
    let store = founded().await;
    let c = &Region { number: 0, ..region(9, 3, false) };
    ruled!(&store, tx, add_region(&tx, "c", c, &[])).unwrap();
    let alone = &Making { home: "c".into(), regions: names(&["c"]), ..making(0, 9) };
    ruled!(&store, tx, create_volume(&tx, alone)).unwrap();
    let id = VolumeId(1);
    let refused = async || {
        let refused = ruled!(&store, tx, remove_region(&tx, "c")).unwrap_err();
        assert!(matches!(refused, RuleError::InUse { volume: VolumeId(1), .. }), "{refused}");
        refused.to_string()
    };
    let set = async |regions: &[&str]| {
        let change = &VolumeChange { regions: Some(names(regions)), ..VolumeChange::default() };
        ruled!(&store, tx, set_volume(&tx, id, Epoch(1), change))
    };
    let last = refused().await;
    assert!(last.contains("it would be gone") && last.contains("volume set 1 --regions c,OTHER"), "{last}");
    assert!(set(&[]).await.unwrap_err().to_string().contains("home"), "a volume keeps a region");
    set(&["b", "c"]).await.unwrap();
    let home = refused().await;
    assert!(home.contains("volume move-home 1 --to b") && home.contains("--regions b`"), "{home}");
    let version = seen(&store).await.version;
    let cut = LogPosition::new(Epoch(1), 70);
    ruled!(&store, tx, move_home(&tx, id, Epoch(1), ("c", "b"), cut, version)).unwrap();
    let other = refused().await;
    assert!(
        other.contains("Take it out of the volume's regions first (`mooseng volume set 1 --regions b`)"),
        "{other}"
    );
    ruled!(&store, tx, leave_volume(&tx, id)).unwrap();
    ruled!(&store, tx, delete_volume(&tx, id, "a")).unwrap();
    ruled!(&store, tx, remove_region(&tx, "c")).unwrap();
}

#[derive(Clone, Debug)]
enum Act {
    Create { parent: u16, inode: u64 },
    Join { id: u16, caller: &'static str },
    Leave { id: u16 },
    Delete { id: u16, caller: &'static str },
}

fn act() -> impl Strategy<Value = Act> {
    let caller = prop_oneof![3 => Just("a"), 1 => Just("b")];
    prop_oneof![
        3 => (0_u16..4, 2_u64..6).prop_map(|(parent, inode)| Act::Create { parent, inode }),
        3 => (0_u16..6, caller.clone()).prop_map(|(id, caller)| Act::Join { id, caller }),
        2 => (0_u16..6).prop_map(|id| Act::Leave { id }),
        2 => (0_u16..6, caller).prop_map(|(id, caller)| Act::Delete { id, caller }),
    ]
}

proptest! {
    #[test]
    fn volumes_are_a_tree_whatever_is_asked_for(acts in proptest::collection::vec(act(), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = founded().await;
            let mut highest = 0;
            for act in acts {
                let before = seen(&store).await.volumes;
                match act {
                    Act::Create { parent, inode } => {
                        let making = &making(parent, inode);
                        if let Ok((id, _)) = ruled!(&store, tx, create_volume(&tx, making)) {
                            assert!(before.contains_key(&id) || id.0 == highest + 1, "a number is given once");
                            highest = highest.max(id.0);
                        }
                    }
                    Act::Join { id, caller } => drop(ruled!(&store, tx, join_volume(&tx, VolumeId(id), caller))),
                    Act::Leave { id } => drop(ruled!(&store, tx, leave_volume(&tx, VolumeId(id)))),
                    Act::Delete { id, caller } => drop(ruled!(&store, tx, delete_volume(&tx, VolumeId(id), caller))),
                }
                let after = seen(&store).await.volumes;
                let mut places = BTreeSet::new();
                assert_eq!(after[&ROOT], before[&ROOT]);
                for (id, volume) in after.iter().filter(|(id, _)| **id != ROOT) {
                    let place = &volume.join.as_ref().unwrap().place;
                    assert!(places.insert(place.directory), "two volumes at one place");
                    assert!(place.parent() < *id && after.contains_key(&place.parent()), "above it is a volume");
                    if place.parent() != ROOT {
                        assert_eq!(stage(&after[&place.parent()]), Stage::Joined, "and it is seen");
                    }
                }
                for id in before.keys().filter(|id| !after.contains_key(id)) {
                    assert_eq!(stage(&before[id]), Stage::Leaving, "nothing goes that isn't left first");
                }
            }
        });
    }
}
