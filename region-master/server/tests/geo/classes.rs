//! Storage classes of the cluster: agreed on by the regions, the same in each volume, gone when nothing has them in any.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_master::geo::ROOT_VOLUME;
use mooseng_master::own::{self, Repeat};
use mooseng_namespace::classes as records;
use mooseng_schema::storage_class::{CLUSTER_FIRST, StorageClassRecord};
use mooseng_store::{Read, Store};
use mooseng_wire::VolumeId;
use mooseng_wire::admin::assign_class_request::Which;
use mooseng_wire::admin::*;
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{DeleteClass, LeaveClass, VolumeEpoch};
use tokio::time::Instant;
use tonic::{Code, Response, Status};

use super::commands::{SECOND, admin, text, two};
use super::common::regions::Regions;
use super::common::until;
use super::moving::Mount;
use super::sessions::{WITHIN, file, of_volume, volume};
use super::volumes::{is_home, leads};

async fn create(regions: &Regions, at: &str, name: &str, copies: u32) -> Result<StorageClass, Status> {
    let labels = BTreeMap::from([("media".to_owned(), "ssd".to_owned())]);
    let request = CreateClassRequest {
        name: name.into(),
        copies,
        min_copies: 1,
        labels,
        ..CreateClassRequest::default()
    };
    admin(regions, at).await.create_class(request).await.map(Response::into_inner)
}

async fn set(regions: &Regions, at: &str, name: &str, copies: u32) -> Result<StorageClass, Status> {
    let request = SetClassRequest { name: name.into(), copies: Some(copies), ..SetClassRequest::default() };
    admin(regions, at).await.set_class(request).await.map(Response::into_inner)
}

async fn delete(regions: &Regions, at: &str, name: &str) -> Result<(), Status> {
    let request = DeleteClassRequest { name: name.into(), ..DeleteClassRequest::default() };
    admin(regions, at).await.delete_class(request).await.map(drop)
}

async fn list(regions: &Regions, at: &str) -> ListClassesReply {
    let reply = admin(regions, at).await.list_classes(ListClassesRequest::default()).await;
    reply.unwrap().into_inner()
}

/// As a volume has them.
async fn list_of(regions: &Regions, at: &str, volume: u32) -> Vec<StorageClass> {
    let request = ListClassesRequest { volume, of_volume: true };
    admin(regions, at).await.list_classes(request).await.unwrap().into_inner().classes
}

async fn assign(
    regions: &Regions,
    (at, volume): (&str, u32),
    name: &str,
    which: Which,
    entries: bool,
) -> Result<AssignClassReply, Status> {
    let request = AssignClassRequest { name: name.into(), which: Some(which), entries, after: 0, volume };
    admin(regions, at).await.assign_class(request).await.map(Response::into_inner)
}

fn path(path: &str) -> Which {
    Which::Path(text(path))
}

/// Gives what lies at a path of a volume a class.
async fn given(regions: &Regions, at: (&str, u32), name: &str, to: &str) -> Result<u64, Status> {
    assign(regions, at, name, path(to), false).await.map(|reply| reply.changed)
}

async fn of(regions: &Regions, at: &str, volume: u32, path: &str) -> StorageClass {
    let request = ClassOfRequest { path: text(path), volume };
    admin(regions, at).await.class_of(request).await.unwrap().into_inner().class.unwrap()
}

/// What is on record of a volume in a region, whatever that is to the volume.
async fn on_record(regions: &Regions, region: &str, volume: VolumeId) -> Vec<(u32, StorageClassRecord)> {
    let Some(master) = leads(regions, region, volume) else { return Vec::new() };
    records::list(&master.store.begin(), volume, Read::Snapshot).await.unwrap()
}

/// Waits until a class is on record nowhere.
async fn is_gone(regions: &Regions, id: u32) {
    for (region, volume) in [("a", ROOT_VOLUME), ("b", ROOT_VOLUME), ("a", SECOND), ("b", SECOND)] {
        until(&format!("{region} has no copy of it in volume {volume}"), async || {
            on_record(regions, region, volume).await.iter().all(|(known, _)| *known != id)
        })
        .await;
    }
}

/// A file in the root volume, and one in the volume at /d.
async fn files(regions: &Regions) {
    let mut root = Mount::new(regions, "c", &["a"]);
    root.make("dir").await;
    let mut second = of_volume(regions, "c", &["b"], SECOND);
    file(&mut second, "f", b"bytes").await;
}

fn is_leaving(regions: &Regions, name: &str) -> Option<bool> {
    let view = leads(regions, "a", ROOT_VOLUME)?.geo.view()?;
    view.class_of(name).map(|(_, of)| of.class.leaving)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_is_the_clusters_and_means_the_same_in_every_volume() {
    let regions = two().await;
    files(&regions).await;
    // Of any region, the witness included.
    let fast = create(&regions, "w", "fast", 3).await.unwrap();
    assert_eq!((fast.id, fast.copies, fast.leaving), (CLUSTER_FIRST, 3, false));
    let again = create(&regions, "b", "fast", 2).await.unwrap_err();
    assert!(again.code() == Code::InvalidArgument && again.message().contains("already"), "{again}");
    let request = CreateClassRequest { name: "own".into(), copies: 1, volume: 1, ..<_>::default() };
    let own = admin(&regions, "b").await.create_class(request).await.unwrap_err();
    assert!(own.code() == Code::InvalidArgument && own.message().contains("without --volume"), "{own}");

    // Where it is assigned it is known at once.
    assert_eq!(given(&regions, ("b", 1), "fast", "/f").await.unwrap(), 1);
    assert_eq!(given(&regions, ("a", 0), "fast", "/dir").await.unwrap(), 1);
    for (at, volume, path) in [("a", 0, "/dir"), ("b", 1, "/f")] {
        let class = of(&regions, at, volume, path).await;
        assert_eq!((class.id, class.copies, class.inodes, class.of_volume), (fast.id, 3, 1, false));
    }
    let none = given(&regions, ("b", 1), "none", "/f").await.unwrap_err();
    assert!(none.code() == Code::NotFound && none.message().contains("volume 1, at /d"), "{none}");
    // Each region counts all of it.
    for at in ["a", "b", "w"] {
        let listed = list(&regions, at).await;
        let told: Vec<_> = listed.classes.iter().map(|class| (class.name.as_str(), class.inodes)).collect();
        assert_eq!(told, [("default", 0), ("fast", 2)], "{at}");
        assert!(listed.of_cluster && listed.uncounted.is_empty(), "{listed:?}");
    }
    // It comes with a volume's log to where there is a replica, and is there in a volume that is made later.
    for (region, volume) in [("a", SECOND), ("b", ROOT_VOLUME)] {
        until("the replica has the class", async || {
            on_record(&regions, region, volume).await.iter().any(|(id, of)| *id == fast.id && of.copies == 3)
        })
        .await;
    }
    assert_eq!(volume(&regions, "/e", "b", &["a", "b"]).await, VolumeId(2));
    let root = Which::Inode(mooseng_wire::InodeId::root_of(VolumeId(2)).0);
    assert_eq!(assign(&regions, ("b", 2), "fast", root.clone(), false).await.unwrap().changed, 1);
    // A tree is gone through up to where another volume is joined.
    let page = assign(&regions, ("a", 0), "default", Which::Inode(1), true).await.unwrap();
    assert_eq!((page.changed, BTreeSet::from_iter(page.joined)), (1, BTreeSet::from([1, 2])));
    assert_eq!(given(&regions, ("a", 0), "fast", "/dir").await.unwrap(), 1);

    // What changes of it changes everywhere, and is found short once for all volumes.
    assert_eq!(set(&regions, "b", "fast", 2).await.unwrap().copies, 2);
    for (at, volume, path) in [("a", 0, "/dir"), ("b", 1, "/f")] {
        until("the change has come", async || of(&regions, at, volume, path).await.copies == 2).await;
    }
    until("it is short", async || {
        let status = admin(&regions, "b").await.status(StatusRequest {}).await.unwrap().into_inner();
        let short = status.findings.iter().filter(|f| f.code == "CLASS_SHORT").map(|f| f.subject.as_str());
        short.collect::<Vec<_>>() == ["class \"fast\""]
    })
    .await;

    // It goes once nothing has it, in no volume.
    let used = delete(&regions, "b", "fast").await.unwrap_err();
    assert_eq!(used.code(), Code::InvalidArgument);
    for part in ["1 in the root volume", "1 in volume 1, at /d", "1 in volume 2, at /e"] {
        assert!(used.message().contains(part), "{used}");
    }
    assert_eq!(is_leaving(&regions, "fast"), Some(false));
    assert_eq!(given(&regions, ("a", 0), "default", "/dir").await.unwrap(), 1);
    assert_eq!(assign(&regions, ("b", 2), "default", root, false).await.unwrap().changed, 1);
    let used = delete(&regions, "w", "fast").await.unwrap_err();
    assert!(used.message().contains("(1 in volume 1, at /d)"), "{used}");
    assert_eq!(given(&regions, ("b", 1), "default", "/f").await.unwrap(), 1);
    delete(&regions, "w", "fast").await.unwrap();
    is_gone(&regions, fast.id).await;
    let gone = delete(&regions, "a", "fast").await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    // No id is given twice.
    assert_eq!(create(&regions, "a", "fast", 1).await.unwrap().id, fast.id + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_stays_while_a_home_is_silent() {
    let regions = two().await;
    files(&regions).await;
    let id = create(&regions, "a", "fast", 2).await.unwrap().id;
    assert_eq!(given(&regions, ("b", 1), "fast", "/f").await.unwrap(), 1);
    assert_eq!(given(&regions, ("b", 1), "default", "/f").await.unwrap(), 1);
    until("the other region has the class, too", async || {
        on_record(&regions, "a", SECOND).await.iter().any(|(known, _)| *known == id)
    })
    .await;
    regions.cut("b");
    let silent = delete(&regions, "a", "fast").await.unwrap_err();
    assert_eq!(silent.code(), Code::Unavailable, "{silent}");
    assert!(silent.message().contains("volume 1, at /d: its home b isn't heard"), "{silent}");
    assert_eq!(is_leaving(&regions, "fast"), Some(false));
    let listed = list(&regions, "a").await;
    assert_eq!(listed.uncounted.iter().map(|of| of.volume).collect::<Vec<_>>(), [1]);

    // Left as by somebody who died on the way: it may have been confirmed, or not.
    let leave = Change::LeaveClass(LeaveClass { name: "fast".into() });
    let master = leads(&regions, "a", ROOT_VOLUME).unwrap().clone();
    master.global.as_ref().unwrap().change(leave, Instant::now() + WITHIN).await.unwrap();
    until("it is known here", async || is_leaving(&regions, "fast") == Some(true)).await;
    // The next home knows it before it assigns anything, whatever its copies say.
    is_home(&regions, "a", SECOND, 2).await;
    let leaving = given(&regions, ("a", 1), "fast", "/f").await.unwrap_err();
    assert!(leaving.message().contains("is being deleted"), "{leaving}");
    assert!(list(&regions, "a").await.classes.iter().any(|class| class.leaving));
    until("the deletion is gone on with", async || delete(&regions, "a", "fast").await.is_ok()).await;
    regions.heal();
    is_gone(&regions, id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_was_interrupted_is_gone_on_with_or_taken_back() {
    let regions = two().await;
    files(&regions).await;
    let id = create(&regions, "a", "fast", 2).await.unwrap().id;
    assert_eq!(given(&regions, ("b", 1), "fast", "/f").await.unwrap(), 1);
    let master = leads(&regions, "a", ROOT_VOLUME).unwrap().clone();
    let agree =
        async |change| master.global.as_ref().unwrap().change(change, Instant::now() + WITHIN).await.unwrap();
    let leave = || Change::LeaveClass(LeaveClass { name: "fast".into() });
    let left = agree(leave()).await;
    until("no home assigns it", async || {
        // Until it has heard of that, this changes nothing.
        let refused = given(&regions, ("b", 1), "fast", "/f").await;
        refused.is_err_and(|refused| refused.message().contains("is being deleted"))
    })
    .await;
    let set = set(&regions, "b", "fast", 1).await.unwrap_err();
    assert!(set.code() == Code::InvalidArgument && set.message().contains("is being deleted"), "{set}");
    // Something has it: it comes back, and whoever confirmed before has confirmed nothing.
    let used = delete(&regions, "a", "fast").await.unwrap_err();
    assert!(used.message().contains("(1 in volume 1, at /d)"), "{used}");
    assert_eq!(is_leaving(&regions, "fast"), Some(false));
    until("it is assigned again", async || given(&regions, ("b", 1), "fast", "/").await.is_ok()).await;
    assert_eq!(given(&regions, ("b", 1), "default", "/").await.unwrap(), 1);

    // Gone while something has it, as after a failover that took back what was confirmed: the volume keeps it for as long.
    let again = agree(leave()).await;
    assert!(again.version > left.version);
    let confirmed = [0, 1].map(|volume| VolumeEpoch { volume, epoch: 1 }).to_vec();
    agree(Change::DeleteClass(DeleteClass { class: id, since: again.version, confirmed })).await;
    until("the root volume hasn't it any more", async || list_of(&regions, "a", 0).await.len() == 1).await;
    until("the other one keeps it, leaving", async || {
        let kept = list_of(&regions, "b", 1).await;
        kept.iter().any(|class| class.id == id && class.leaving && class.inodes == 1)
    })
    .await;
    assert_eq!(of(&regions, "b", 1, "/f").await.id, id, "its data lies where it did");
    assert!(given(&regions, ("b", 1), "fast", "/").await.is_err());
    assert_eq!(given(&regions, ("b", 1), "default", "/f").await.unwrap(), 1);
    is_gone(&regions, id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volumes_own_classes_of_before_stay_its_own() {
    let regions = two().await;
    files(&regions).await;
    // As an earlier release made it.
    let master = leads(&regions, "a", ROOT_VOLUME).unwrap().clone();
    let custody = master.serving_of(ROOT_VOLUME).unwrap();
    let deadline = Instant::now() + WITHIN;
    let made = own::change(&master, ROOT_VOLUME, custody, Repeat::Never, deadline, |tx, _| {
        Box::pin(async move {
            let class = StorageClassRecord { name: "old".into(), copies: 3, min_copies: 1, ..<_>::default() };
            records::create(tx, ROOT_VOLUME, &class).await
        })
    });
    let old = made.await.unwrap().unwrap();
    mooseng_master::classes::publish(&master, ROOT_VOLUME, custody).await.unwrap();
    assert!(old < CLUSTER_FIRST);
    assert_eq!(given(&regions, ("a", 0), "old", "/dir").await.unwrap(), 1);
    let shown = list_of(&regions, "a", 0).await;
    assert!(shown.iter().any(|class| class.id == old && class.of_volume && class.inodes == 1), "{shown:?}");
    assert!(list(&regions, "a").await.classes.iter().all(|class| class.name != "old"));
    let hint = set(&regions, "a", "old", 2).await.unwrap_err();
    assert!(hint.code() == Code::NotFound && hint.message().contains("say --volume /"), "{hint}");
    assert_eq!(given(&regions, ("b", 1), "old", "/f").await.unwrap_err().code(), Code::NotFound);

    // The cluster's of that name goes before it; the old one is there for as long as something has it.
    let id = create(&regions, "b", "old", 2).await.unwrap().id;
    assert_eq!(given(&regions, ("a", 0), "old", "/").await.unwrap(), 1);
    let class = of(&regions, "a", 0, "/").await;
    assert_eq!((class.id, class.copies, of(&regions, "a", 0, "/dir").await.id), (id, 2, old));
    let own = |name: &str| DeleteClassRequest { name: name.into(), volume: 0, of_volume: true };
    let used = admin(&regions, "a").await.delete_class(own("old")).await.unwrap_err();
    assert!(used.message().contains("in use: 1 "), "{used}");
    let change = SetClassRequest { name: "old".into(), copies: Some(1), of_volume: true, ..<_>::default() };
    let changed = admin(&regions, "a").await.set_class(change).await.unwrap().into_inner();
    assert_eq!((changed.id, changed.copies, changed.of_volume), (old, 1, true));
    assert_eq!(given(&regions, ("a", 0), "old", "/dir").await.unwrap(), 1);
    admin(&regions, "a").await.delete_class(own("old")).await.unwrap();
    let foreign = admin(&regions, "a").await.delete_class(own("old")).await.unwrap_err();
    assert!(foreign.message().contains("is the cluster's"), "{foreign}");
    assert_eq!(of(&regions, "a", 0, "/dir").await.id, id);
}
