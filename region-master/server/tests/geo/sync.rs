//! A `geo` volume: what waits for its sync set, who is in it, and what a failover takes back.

use std::sync::Arc;
use std::time::Duration;

use mooseng_global::{Durability, Volume};
use mooseng_master::geo::ROOT_VOLUME;
use mooseng_master::master::Master;
use mooseng_schema::{leased, number};
use mooseng_store::{Read, Store, Transaction};
use mooseng_transport::PlainNetwork;
use mooseng_wire::fs::Sync;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::geo::Place;
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{SetVolume, StayHome};
use mooseng_wire::{Epoch, Role};
use tokio::time::Instant;

use super::common::regions::{Regions, identity_of};
use super::common::{Client, until};
use super::giving_up::agree;
use super::{addresses, change, lookup, mkdir, near, read_home, serves_as_home, serving};

/// For so long it is looked whether something is answered that is to wait.
const WHILE: Duration = Duration::from_millis(400);
const ENOENT: u32 = 2;
const EIO: u32 = 5;

fn client(regions: &Regions, name: &str, at: &str) -> Arc<Client> {
    let network = Arc::new(PlainNetwork::new(identity_of("a", Role::Client, name)));
    Arc::new(Client::over(network, &addresses(regions, at)))
}

fn sync_set(regions: &Regions, region: &str) -> Vec<String> {
    let view = serving(regions, region).and_then(|master| master.geo.view());
    view.map(|view| view.volumes[&ROOT_VOLUME].sync_set.iter().cloned().collect()).unwrap_or_default()
}

/// Regions a and b with a `geo` volume, both in its sync set, and a witness.
pub(crate) async fn synced() -> Regions {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let geo = SetVolume { volume: 0, epoch: 1, geo: Some(true), ..SetVolume::default() };
    let leader = regions.leader().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    regions.global(leader).change(Change::SetVolume(geo), deadline).await.unwrap();
    until("both regions are in the sync set", async || sync_set(&regions, "a") == ["a", "b"]).await;
    regions
}

fn sync(place: Place) -> Op {
    Op::Sync(Sync { epoch: place.epoch, version: place.version })
}

async fn found(client: &Client, name: &str) -> bool {
    match read_home(client, lookup(name).op.unwrap()).await {
        Reply::Entry(_) => true,
        Reply::Errno(ENOENT) => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_fsync_waits_for_the_sync_set_and_others_are_told_what_it_has() {
    let regions = synced().await;
    let (one, other) = (client(&regions, "one", "a"), client(&regions, "other", "a"));
    let place = change(&one, mkdir("x")).await;
    assert!(matches!(read_home(&one, sync(place)).await, Reply::Done(_)));
    let complete = serving(&regions, "b").unwrap().geo.replica(ROOT_VOLUME).record.unwrap().complete();
    assert!((complete.epoch.0, complete.version) >= (place.epoch, place.version), "{complete} of {place:?}");
    other.open(&[]).await.unwrap();

    regions.cut("b");
    // A change is answered, and seen by whoever made it; fsync and others wait.
    let place = change(&one, mkdir("y")).await;
    assert!(found(&one, "y").await);
    assert!(found(&other, "x").await, "what was there before doesn't wait");
    let (asking, asked) = (one.clone(), other.clone());
    let fsync = tokio::spawn(async move { read_home(&asking, sync(place)).await });
    let seen = tokio::spawn(async move { found(&asked, "y").await });
    tokio::time::sleep(WHILE).await;
    assert!(!fsync.is_finished() && !seen.is_finished(), "the sync set doesn't have it");
    assert_eq!(sync_set(&regions, "a"), ["a", "b"]);
    // Nobody is answered before the set is another one.
    assert!(matches!(fsync.await.unwrap(), Reply::Done(_)));
    assert_eq!(sync_set(&regions, "a"), ["a"]);
    assert!(seen.await.unwrap());

    regions.heal();
    until("the region is in the set again", async || sync_set(&regions, "a") == ["a", "b"]).await;
    let there = super::client(&regions, "b", "b");
    assert!(near(&there, "y", &place).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_took_back_is_told_by_fsync() {
    let mut regions = synced().await;
    let one = client(&regions, "one", "a");
    let kept = change(&one, mkdir("kept")).await;
    assert!(matches!(read_home(&one, sync(kept)).await, Reply::Done(_)));
    regions.cut("b");
    let lost = change(&one, mkdir("lost")).await;
    regions.kill_region("a").await;
    regions.heal();
    serves_as_home(&regions, "b", 2).await;
    let new = client(&regions, "one", "b");
    *new.session.lock().await = one.session.lock().await.clone();
    new.open(&[]).await.unwrap();
    assert!(found(&new, "kept").await && !found(&new, "lost").await);
    assert!(matches!(read_home(&new, sync(kept)).await, Reply::Done(_)));
    let told = read_home(&new, sync(lost)).await;
    assert!(matches!(told, Reply::Errno(EIO)), "{told:?}");
    assert_eq!(sync_set(&regions, "b"), ["b"]);
    assert_eq!(serving(&regions, "b").unwrap().geo.view().unwrap().volumes[&ROOT_VOLUME].epoch, Epoch(2));
    // What comes after is kept.
    new.number.store(10, std::sync::atomic::Ordering::SeqCst);
    let after = change(&new, mkdir("after")).await;
    assert!(matches!(read_home(&new, sync(after)).await, Reply::Done(_)));
}

async fn put_down(master: &Master) -> u64 {
    let found = master.store.begin().get(&leased::set_key(ROOT_VOLUME), Read::Snapshot).await.unwrap();
    number::decode(found.as_ref()).unwrap()
}

/// In what the next leader of the home knew the volume wasn't a `geo` one yet: it answered fsync alone, and the other region, which the sync set had by then,
/// could take over without that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_knows_less_than_the_one_before_answers_no_fsync_alone() {
    let mut regions = synced().await;
    let a = regions.of("a")[0];
    let home = serving(&regions, "a").unwrap().clone();
    let of_the_set = home.geo.view().unwrap().version;
    // Before the other region came into the set.
    let known = put_down(&home).await;
    assert!(0 < known && known < of_the_set, "{known} of {of_the_set}");

    // What the leaders know by now is of before: another change makes the volume a `geo` one, and a leader has heard of it.
    let change_of = |geo| SetVolume {
        volume: 0,
        epoch: 1,
        geo: Some(geo),
        automatic: Some(false),
        ..SetVolume::default()
    };
    agree(&regions, Change::SetVolume(change_of(false))).await.unwrap();
    let is_of_region = |root: &Volume| root.durability == Durability::Region && !root.automatic;
    until("all know", async || is_of_region(&regions.agreed().await.volumes[&ROOT_VOLUME])).await;
    // What was agreed on is on disk with whatever comes next: a master that is started again knows it then, though it hears of nobody.
    agree(&regions, Change::StayHome(StayHome { volume: 0, epoch: 1 })).await.unwrap();
    let place = change(&client(&regions, "one", "a"), mkdir("d")).await;
    let before = regions.agreed().await.version;
    regions.cut("a");
    let tx = home.store.begin();
    tx.set(&leased::set_key(ROOT_VOLUME), &number::encode(before + 1));
    tx.commit().await.unwrap();
    drop(home);
    regions.kill(a).await;
    regions.run(a).await;
    until("it serves", async || serving(&regions, "a").is_some()).await;
    assert!(regions.global(a).view().version <= before);
    assert_eq!(regions.global(a).may_change(ROOT_VOLUME), Some(Epoch(1)), "it goes on");
    let two = client(&regions, "two", "a");
    let fsync = tokio::spawn(async move {
        two.open(&[]).await.unwrap();
        read_home(&two, sync(place)).await
    });
    tokio::time::sleep(5 * WHILE).await;
    assert!(!fsync.is_finished(), "it can't tell whom to wait for");
    regions.heal();
    regions.holder("a").await;
    agree(&regions, Change::SetVolume(change_of(true))).await.unwrap();
    assert!(matches!(fsync.await.unwrap(), Reply::Done(_)));
    until("both regions are in the sync set", async || sync_set(&regions, "a") == ["a", "b"]).await;
    assert!(put_down(serving(&regions, "a").unwrap()).await > before);
}
