//! Two volumes: each with a home, an epoch and replicas of its own. Nobody has mounted the second one: it is changed as the master itself changes volumes.

use std::sync::Arc;
use std::time::Duration;

use mooseng_master::fs::context;
use mooseng_master::geo::{ROOT_VOLUME, Whereabouts, moving, place_of, verify};
use mooseng_master::master::Master;
use mooseng_namespace::{Ids, SessionCall};
use mooseng_schema::ids::IdKind;
use mooseng_schema::log::LogPosition;
use mooseng_wire::admin::MoveHomeRequest;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, FsRequest, Lookup, Mkdir, Rmdir};
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{CreateVolume, Regions as Names, SetVolume};
use mooseng_wire::{Epoch, InodeId, VolumeId};
use tokio::time::Instant;

use super::common::regions::Regions;
use super::common::until;
use super::{change, client, mkdir, near, serves_as_home, serving};

const SECOND: VolumeId = VolumeId(1);
const WITHIN: Duration = Duration::from_secs(10);

fn names(of: &[&str]) -> Vec<String> {
    of.iter().map(|region| (*region).to_owned()).collect()
}

fn request(op: Op) -> FsRequest {
    FsRequest { caller: Some(Caller { kernel_checked: true, ..Caller::default() }), op: Some(op) }
}

fn root_of(volume: VolumeId) -> u64 {
    InodeId::new(volume, 1).0
}

/// Makes a directory in a volume's root.
pub(super) async fn make(master: &Arc<Master>, volume: VolumeId, name: &str) -> Result<u64, String> {
    let id = master.desk(|desk| desk.seat_mut(volume).ids.take(IdKind::Inode, 1));
    let inode = id.map(|ids| InodeId::new(volume, ids[0]));
    let context =
        mooseng_namespace::OpContext { ids: Ids { inode, ..Ids::default() }, ..context(master, volume) };
    let made = request(Op::Mkdir(Mkdir {
        parent: root_of(volume),
        name: name.to_owned().into(),
        mode: 0o755,
        alone: false,
    }));
    let ran = master.driver.run(SessionCall::default(), &context, &made, Instant::now() + WITHIN).await;
    match ran.map_err(|e| e.to_string())?.0.reply {
        Some(Reply::Entry(entry)) => Ok(entry.attr.unwrap().inode),
        other => Err(format!("{other:?}")),
    }
}

/// Removes a directory from a volume's root.
pub(super) async fn unmake(master: &Arc<Master>, volume: VolumeId, name: &str) {
    let gone = request(Op::Rmdir(Rmdir { parent: root_of(volume), name: name.to_owned().into() }));
    let context = context(master, volume);
    let ran = master.driver.run(SessionCall::default(), &context, &gone, Instant::now() + WITHIN).await;
    assert!(matches!(ran.unwrap().0.reply, Some(Reply::Done(_))));
}

/// Whether a master's store has that name in a volume's root.
pub(super) async fn has(master: &Arc<Master>, volume: VolumeId, name: &str) -> bool {
    let sought = request(Op::Lookup(Lookup { parent: root_of(volume), name: name.to_owned().into() }));
    let context = context(master, volume);
    let ran = master.driver.run(SessionCall::default(), &context, &sought, Instant::now() + WITHIN).await;
    matches!(ran, Ok((reply, _)) if matches!(reply.reply, Some(Reply::Entry(_))))
}

/// The leader of a region that serves a volume.
pub(super) fn leads<'a>(regions: &'a Regions, region: &str, volume: VolumeId) -> Option<&'a Arc<Master>> {
    let of = regions.of(region).into_iter().filter_map(|i| regions.running[i].as_ref());
    of.map(|server| server.master()).find(|master| master.serving_of(volume).is_ok())
}

/// Waits until a region serves as a volume's home under that epoch.
pub(super) async fn is_home(regions: &Regions, region: &str, volume: VolumeId, epoch: u64) -> Arc<Master> {
    until("the region is the volume's home", async || {
        leads(regions, region, volume).is_some_and(|master| {
            let global = master.global.as_ref().unwrap();
            global.may_change(volume) == Some(Epoch(epoch)) && master.geo.newest(volume).epoch == Epoch(epoch)
        })
    })
    .await;
    leads(regions, region, volume).unwrap().clone()
}

/// Waits until a replica has all of its home's log.
pub(super) async fn follows(
    regions: &Regions,
    region: &str,
    home: &Arc<Master>,
    volume: VolumeId,
) -> Arc<Master> {
    until("the replica has everything", async || {
        let newest = home.geo.newest(volume);
        let there = leads(regions, region, volume);
        let complete =
            |master: &Arc<Master>| master.geo.replica(volume).record.map(|record| record.complete());
        newest > LogPosition::default() && there.and_then(complete) == Some(newest)
    })
    .await;
    leads(regions, region, volume).unwrap().clone()
}

async fn agree(regions: &Regions, change: Change) -> Option<u32> {
    let leader = regions.leader().await;
    let changed = regions.global(leader).change(change, Instant::now() + WITHIN).await.unwrap();
    until("all know", async || {
        regions.up().into_iter().all(|i| regions.global(i).view().version >= changed.version)
    })
    .await;
    changed.volume
}

/// A volume besides the root, with these regions.
async fn second(regions: &Regions, home: &str, of: &[&str]) {
    let directory = InodeId::new(ROOT_VOLUME, 9).0;
    let made =
        CreateVolume { directory, path: "/d".into(), home: home.into(), geo: false, regions: names(of) };
    assert_eq!(agree(regions, Change::CreateVolume(made)).await, Some(u32::from(SECOND.0)));
}

async fn equal(replica: &Arc<Master>, volume: VolumeId) {
    let compared = verify::compare(replica, volume).await.unwrap();
    assert!(compared.pairs > 5 && compared.different.is_empty(), "{compared:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_volumes_are_kept_in_one_replica_each_by_its_own_log() {
    let mut regions = Regions::start(&[("a", 1), ("b", 3), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let mount = client(&regions, "a", "a");
    change(&mount, mkdir("d")).await;
    second(&regions, "a", &["a", "b"]).await;
    let home = is_home(&regions, "a", SECOND, 1).await;
    for n in 0..10 {
        assert_eq!(InodeId(make(&home, SECOND, &format!("s{n}")).await.unwrap()).volume(), SECOND);
    }
    let at = change(&mount, mkdir("e")).await;
    let replica = follows(&regions, "b", &home, SECOND).await;
    follows(&regions, "b", &home, ROOT_VOLUME).await;
    assert!(has(&replica, SECOND, "s9").await && !has(&replica, SECOND, "e").await);
    assert!(has(&replica, ROOT_VOLUME, "e").await && !has(&replica, ROOT_VOLUME, "s9").await);
    for volume in [ROOT_VOLUME, SECOND] {
        equal(&replica, volume).await;
        assert!(make(&replica, volume, "no").await.is_err(), "a replica changes by its volume's log alone");
    }
    let there = client(&regions, "b", "b");
    assert!(near(&there, "e", &at).await.is_some());

    // Another leader there goes on where that one was, with both.
    let led = |i: &usize| regions.running[*i].as_ref().is_some_and(|server| server.is_serving());
    let leader = regions.of("b").into_iter().find(led).unwrap();
    regions.kill(leader).await;
    make(&home, SECOND, "t").await.unwrap();
    let at = change(&mount, mkdir("f")).await;
    assert!(near(&there, "f", &at).await.is_some());
    let replica = follows(&regions, "b", &home, SECOND).await;
    assert!(has(&replica, SECOND, "t").await);
    equal(&replica, SECOND).await;
    equal(&replica, ROOT_VOLUME).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_volumes_of_a_lost_region_go_to_two_others() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("c", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let root =
        SetVolume { epoch: 1, regions: Some(Names { names: names(&["a", "b"]) }), ..SetVolume::default() };
    agree(&regions, Change::SetVolume(root)).await;
    second(&regions, "a", &["a", "c"]).await;
    let home = is_home(&regions, "a", SECOND, 1).await;
    let mount = client(&regions, "a", "a");
    change(&mount, mkdir("d")).await;
    make(&home, SECOND, "s").await.unwrap();
    follows(&regions, "b", &home, ROOT_VOLUME).await;
    follows(&regions, "c", &home, SECOND).await;
    assert_eq!(place_of(leads(&regions, "c", SECOND).unwrap(), ROOT_VOLUME), Whereabouts::Nowhere);
    drop(home);

    regions.kill_region("a").await;
    let (b, c) = (is_home(&regions, "b", ROOT_VOLUME, 2).await, is_home(&regions, "c", SECOND, 2).await);
    assert!(has(&b, ROOT_VOLUME, "d").await && has(&c, SECOND, "s").await);
    make(&c, SECOND, "t").await.unwrap();
    let after = client(&regions, "b", "b");
    after.number.store(10, std::sync::atomic::Ordering::SeqCst);
    change(&after, mkdir("e")).await;

    // The old home follows both, each in its region.
    for i in regions.of("a") {
        regions.run(i).await;
    }
    let back = follows(&regions, "a", &c, SECOND).await;
    follows(&regions, "a", &b, ROOT_VOLUME).await;
    assert!(has(&back, SECOND, "t").await && has(&back, ROOT_VOLUME, "e").await);
    equal(&back, SECOND).await;
    equal(&back, ROOT_VOLUME).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_volumes_home_moves_and_the_others_stays() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    second(&regions, "a", &["a", "b"]).await;
    let home = is_home(&regions, "a", SECOND, 1).await;
    let mount = client(&regions, "a", "a");
    change(&mount, mkdir("d")).await;
    make(&home, SECOND, "s").await.unwrap();
    follows(&regions, "b", &home, SECOND).await;
    until("the home has heard so", async || {
        home.geo.shipped(SECOND).get("b").is_some_and(|b| !b.copying && b.complete.is_some())
    })
    .await;
    let request = MoveHomeRequest { volume: SECOND.0.into(), to: "b".into(), ..MoveHomeRequest::default() };
    moving::order(&home, request, Instant::now() + Duration::from_secs(30)).await.unwrap();
    let new = is_home(&regions, "b", SECOND, 2).await;
    make(&new, SECOND, "t").await.unwrap();
    let old = follows(&regions, "a", &new, SECOND).await;
    assert!(has(&old, SECOND, "t").await && make(&old, SECOND, "no").await.is_err());
    equal(&old, SECOND).await;
    // In a later epoch than the root: who leads the home is the same for both.
    synced(&regions, "b", SECOND, 2).await;
    // Here as there the root is what it was.
    assert_eq!(place_of(&old, ROOT_VOLUME), Whereabouts::Here(Epoch(1)));
    let at = change(&mount, mkdir("e")).await;
    assert!(near(&client(&regions, "b", "b"), "e", &at).await.is_some());
    equal(serving(&regions, "b").unwrap(), ROOT_VOLUME).await;
}

/// Makes a volume a `geo` one, and waits until both regions are in its sync set.
async fn synced(regions: &Regions, home: &str, volume: VolumeId, epoch: u64) {
    let geo = SetVolume { volume: volume.0.into(), epoch, geo: Some(true), ..SetVolume::default() };
    agree(regions, Change::SetVolume(geo)).await;
    until("both regions are in the sync set", async || {
        let view = leads(regions, home, volume).and_then(|master| master.geo.view());
        view.is_some_and(|view| view.volumes[&volume].sync_set.len() == 2)
    })
    .await;
}

/// What a region's leader says of one volume is of its custody, not of how many homes that volume has had: a volume of an early epoch never got its sync set
/// where the root was in a later one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_an_earlier_epoch_than_the_root_gets_its_sync_set() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    second(&regions, "a", &["a", "b"]).await;
    let home = is_home(&regions, "a", SECOND, 1).await;
    make(&home, SECOND, "s").await.unwrap();
    for (from, to, epoch) in [("a", "b", 2), ("b", "a", 3)] {
        let home = is_home(&regions, from, ROOT_VOLUME, epoch - 1).await;
        until("the home has heard of the other region", async || {
            home.geo.shipped(ROOT_VOLUME).get(to).is_some_and(|of| !of.copying && of.complete.is_some())
        })
        .await;
        let request = MoveHomeRequest { volume: 0, to: to.into(), ..MoveHomeRequest::default() };
        moving::order(&home, request, Instant::now() + Duration::from_secs(30)).await.unwrap();
    }
    is_home(&regions, "a", ROOT_VOLUME, 3).await;
    assert_eq!(place_of(&home, SECOND), Whereabouts::Here(Epoch(1)));
    synced(&regions, "a", SECOND, 1).await;
}
