//! A region whose masters lost all of their disks, and that was made anew under its name.

use std::time::Duration;

use mooseng_global::Durability;
use mooseng_master::geo::ROOT_VOLUME;
use mooseng_namespace::upkeep;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_replica::read;
use mooseng_store::Store;
use mooseng_wire::Epoch;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::geo::Place;
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{AddRegion, CloseEpoch, Master as Seat, OpenEpoch, Regions as Names, SetVolume};
use tokio::time::Instant;

use super::common::regions::{LEASE_MS, Regions};
use super::common::until;
use super::giving_up::{agree, by_command_only, equal, force};
use super::{caught_up, change, client, lookup, mkdir, near, read_home, serves_as_home, serving};

/// All of a region's masters die, and are started again with empty disks.
async fn lose_disks(regions: &mut Regions, region: &str) {
    regions.kill_region(region).await;
    for i in regions.of(region) {
        let site = &mut regions.sites[i];
        (site.disk, site.store) = (SimDisk::default(), SimDisk::default());
    }
    for i in regions.of(region) {
        regions.run(i).await;
    }
}

/// Three regions, and directories in the root volume, which its replica has.
async fn with_directories(lease_ms: u64) -> (Regions, Place) {
    let regions = Regions::start_of(&[("a", 3), ("b", 3), ("w", 1)], lease_ms).await;
    serves_as_home(&regions, "a", 1).await;
    let home = client(&regions, "a", "a");
    let mut at = Place::default();
    for n in 0..10 {
        at = change(&home, mkdir(&format!("d{n}"))).await;
    }
    assert!(near(&client(&regions, "b", "b"), "d9", &at).await.is_some());
    caught_up(&regions, "b").await;
    (regions, at)
}

/// An empty volume was made in the place of the one that was lost, by its home, in the same epoch; and the replica followed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_lost_its_disks_takes_nothing_from_the_region_that_has_the_volume() {
    let (mut regions, at) = with_directories(LEASE_MS).await;
    by_command_only(&regions).await;
    let replica = serving(&regions, "b").unwrap().clone();
    let has = || replica.geo.replica(ROOT_VOLUME).record.unwrap().position();
    let before = has();
    lose_disks(&mut regions, "a").await;
    // Twice as long as a lease.
    tokio::time::sleep(Duration::from_millis(2 * LEASE_MS)).await;
    assert_eq!(has(), before, "what is here stays");
    assert!(near(&client(&regions, "b", "b"), "d9", &at).await.is_some());
    let a = regions.of("a");
    assert!(a.iter().all(|i| !regions.global(*i).lease_valid()), "it is refused");
    let home = replica.geo.view().unwrap().volumes[&ROOT_VOLUME].clone();
    assert_eq!((home.home.as_str(), home.open), ("a", true), "it waits for a person");
    until("the region could begin", async || force(&replica, "b", true).await.is_ok()).await;
    force(&replica, "b", false).await.unwrap();
    serves_as_home(&regions, "b", 2).await;
    let at = change(&client(&regions, "b", "b"), mkdir("more")).await;
    // Nobody's home, it is taken in as it is, and gets a copy.
    regions.holder("a").await;
    let back = client(&regions, "a", "a");
    assert!(near(&back, "more", &at).await.is_some() && near(&back, "d9", &at).await.is_some());
    equal(&regions, "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lost_its_disks_isnt_in_the_sync_set_and_gets_a_copy() {
    // The home outlasts the loss of its leader.
    let (mut regions, at) = with_directories(4 * LEASE_MS).await;
    let geo = SetVolume { volume: 0, epoch: 1, geo: Some(true), ..SetVolume::default() };
    agree(&regions, Change::SetVolume(geo)).await.unwrap();
    let home = serving(&regions, "a").unwrap().clone();
    until("the replica is in the sync set", async || {
        let root = home.geo.view().unwrap().volumes[&ROOT_VOLUME].clone();
        root.durability == Durability::Geo && root.sync_set.contains("b")
    })
    .await;
    let marks = regions.agreed().await.version;
    lose_disks(&mut regions, "b").await;
    // One that has heard of a member's log doesn't fill it anew: another must lead the global group.
    let leader = regions.leader().await;
    regions.kill(leader).await;
    regions.run(leader).await;
    regions.holder("b").await;
    serves_as_home(&regions, "a", 1).await;
    let home = serving(&regions, "a").unwrap().clone();
    let set = || home.geo.view().unwrap().volumes[&ROOT_VOLUME].sync_set.clone();
    assert!(home.geo.view().unwrap().version > marks, "it left the set by the renewal");
    let there = client(&regions, "b", "b");
    assert!(near(&there, "d9", &at).await.is_some());
    equal(&regions, "b").await;
    until("it has come into the sync set again", async || set().contains("b")).await;
}

/// An empty volume was made in the place of the one that the home before had made, should a region without it ever come to be the home.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_of_a_later_epoch_makes_no_volume() {
    let (mut regions, _) = with_directories(LEASE_MS).await;
    by_command_only(&regions).await;
    let master = regions.prepare("c", 4);
    let seat = Seat { id: 1, name: master.name, address: master.address, zone: master.zone };
    let add = AddRegion { name: "c".into(), number: 4, masters: vec![seat], ..AddRegion::default() };
    agree(&regions, Change::AddRegion(add)).await.unwrap();
    let names = ["a", "b", "c"].map(str::to_owned).into();
    let regions_of =
        SetVolume { volume: 0, epoch: 1, regions: Some(Names { names }), ..SetVolume::default() };
    agree(&regions, Change::SetVolume(regions_of)).await.unwrap();
    // No decision of the regions' makes it the home as it is.
    let at_a = regions.holder("a").await;
    let close = |epoch| Change::CloseEpoch(CloseEpoch { volume: 0, epoch });
    let open =
        |closed, home: &str| Change::OpenEpoch(OpenEpoch { volume: 0, closed, home: home.into(), cut: None });
    let deadline = || Instant::now() + Duration::from_secs(20);
    regions.global(at_a).change(close(1), deadline()).await.unwrap();
    agree(&regions, open(1, "c")).await.unwrap();
    let c = regions.of("c")[0];
    regions.run(c).await;
    regions.holder("c").await;
    until("it would be the home", async || regions.global(c).may_change(ROOT_VOLUME) == Some(Epoch(2))).await;
    // For so long it has held its lease, without which it makes nothing.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let store = regions.running[c].as_ref().unwrap().master().store.clone();
    assert_eq!(upkeep::load_volume(&store.begin(), ROOT_VOLUME).await.unwrap(), None);
    assert!(serving(&regions, "c").is_none());
    regions.global(c).change(close(2), deadline()).await.unwrap();
    agree(&regions, open(2, "a")).await.unwrap();
    serves_as_home(&regions, "a", 3).await;
    let at = change(&client(&regions, "a", "a"), mkdir("more")).await;
    let there = client(&regions, "c", "c");
    until("it follows", async || {
        serving(&regions, "c").is_some_and(|master| master.geo.replica(ROOT_VOLUME).readable().is_some())
    })
    .await;
    assert!(near(&there, "more", &at).await.is_some() && near(&there, "d9", &at).await.is_some());
}

/// The mark is the right one, and the epoch is: only that the replica has more tells it. What its log reaches back to the home knew once it had trimmed it,
/// ten seconds after it began; until then the replica took its word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_whose_disks_were_put_back_takes_nothing_from_the_region_that_has_more() {
    let (mut regions, _) = with_directories(LEASE_MS).await;
    by_command_only(&regions).await;
    regions.kill_region("a").await;
    let copy = |disk: &SimDisk| disk.durable_copy(|_| true);
    let sites = |i: usize| (copy(&regions.sites[i].disk), copy(&regions.sites[i].store));
    let before: Vec<_> = regions.of("a").into_iter().map(|i| (i, sites(i))).collect();
    for i in regions.of("a") {
        regions.run(i).await;
    }
    serves_as_home(&regions, "a", 1).await;
    let home = client(&regions, "a", "a");
    let mut at = Place::default();
    for n in 0..10 {
        at = change(&home, mkdir(&format!("more{n}"))).await;
    }
    assert!(near(&client(&regions, "b", "b"), "more9", &at).await.is_some());
    caught_up(&regions, "b").await;
    let had = serving(&regions, "b").unwrap().geo.replica(ROOT_VOLUME).record.unwrap().position();
    regions.kill_region("a").await;
    // Whoever has heard of a member's log in the global group doesn't fill it anew.
    for i in ["b", "w"].iter().flat_map(|region| regions.of(region)).collect::<Vec<_>>() {
        regions.kill(i).await;
        regions.run(i).await;
    }
    until("the replica serves", async || serving(&regions, "b").is_some()).await;
    let replica = serving(&regions, "b").unwrap().clone();
    let has = || replica.geo.replica(ROOT_VOLUME).record.map(|record| record.position());
    for (i, (disk, store)) in before {
        (regions.sites[i].disk, regions.sites[i].store) = (disk, store);
        regions.run(i).await;
    }
    serves_as_home(&regions, "a", 1).await;
    let put_back = serving(&regions, "a").unwrap().clone();
    let trouble = || put_back.geo.shipped(ROOT_VOLUME).get("b").map(|known| known.trouble.clone());
    // That it has lost what it had is said once; from then on the replica refuses that home's epoch.
    until("it is said", async || trouble().is_some_and(|trouble| !trouble.is_empty())).await;
    assert_eq!(has(), Some(had), "what is here stays");
    // Whatever its log comes to then is another one.
    let other = client(&regions, "a", "a");
    let mut made = 0;
    while read::newest(&put_back.store.begin(), ROOT_VOLUME).await.unwrap() < had {
        change(&other, mkdir(&format!("other{made}"))).await;
        made += 1;
    }
    // Longer than until the log is trimmed for the first time.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(has(), Some(had), "what is here stays");
    assert!(trouble().is_some_and(|trouble| !trouble.is_empty()), "{:?}", trouble());
    let complete = put_back.geo.shipped(ROOT_VOLUME).get("b").and_then(|known| known.complete);
    assert_eq!(complete, None, "it counts for nothing");
    assert!(near(&client(&regions, "b", "b"), "more9", &at).await.is_some());
    until("the region could begin", async || force(&replica, "b", true).await.is_ok()).await;
    force(&replica, "b", false).await.unwrap();
    serves_as_home(&regions, "b", 2).await;
    let home = client(&regions, "b", "b");
    change(&home, mkdir("on")).await;
    for name in ["on", "more9"] {
        let found = read_home(&home, lookup(name).op.unwrap()).await;
        assert!(matches!(found, Reply::Entry(_)), "{name}: {found:?}");
    }
}
