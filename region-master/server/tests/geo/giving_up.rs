//! A home that an administrator gives up for another region: `mooseng volume move-home --force`.

use std::sync::Arc;
use std::time::Duration;

use mooseng_master::geo::{ROOT_VOLUME, moving, verify};
use mooseng_master::master::Master;
use mooseng_schema::{leased, number};
use mooseng_store::{Read, Store, Transaction};
use mooseng_wire::Epoch;
use mooseng_wire::admin::{MoveHomeReply, MoveHomeRequest, SetVolumeRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::geo::Place;
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{MoveHome, SetVolume};
use mooseng_wire::method::Method;
use mooseng_wire::session::Response;
use tokio::time::Instant;

use super::commands::{admin, home};
use super::common::regions::Regions;
use super::common::until;
use super::{caught_up, change, client, ledger, lookup, mkdir, near, read_home, serves_as_home, serving};

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub async fn agree(regions: &Regions, change: Change) -> Result<(), CallError> {
    let leader = regions.leader().await;
    regions.global(leader).change(change, deadline()).await.map(drop)
}

/// The root volume fails over by command only.
pub async fn by_command_only(regions: &Regions) {
    let change = SetVolume { volume: 0, epoch: 1, automatic: Some(false), ..SetVolume::default() };
    agree(regions, Change::SetVolume(change)).await.unwrap();
}

pub async fn force(master: &Arc<Master>, to: &str, plan: bool) -> Result<MoveHomeReply, CallError> {
    let request = MoveHomeRequest { to: to.into(), plan, force: true, ..MoveHomeRequest::default() };
    moving::order(master, request, deadline()).await
}

pub async fn equal(regions: &Regions, region: &str) {
    until("both are the same", async || {
        let replica = serving(regions, region).unwrap().clone();
        verify::compare(&replica, ROOT_VOLUME).await.is_ok_and(|compared| compared.different.is_empty())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_waits_for_its_lost_home_goes_on_elsewhere_by_command() {
    let mut regions = Regions::start(&[("a", 3), ("b", 3), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    by_command_only(&regions).await;
    let old = client(&regions, "a", "a");
    let mut at = Place::default();
    for n in 0..10 {
        at = change(&old, mkdir(&format!("d{n}"))).await;
    }
    assert!(near(&client(&regions, "b", "b"), "d9", &at).await.is_some());
    caught_up(&regions, "b").await;

    // For a region that couldn't begin, nothing is given up.
    regions.kill_region("b").await;
    let asked = MoveHome { volume: 0, epoch: 1, to: "b".into(), ..MoveHome::default() };
    until("nobody is given up for a region that isn't heard of", async || {
        let checked = agree(&regions, Change::CheckForce(asked.clone())).await;
        checked.is_err_and(|error| error.code() == ErrorCode::InvalidRequest)
    })
    .await;
    let refused = agree(&regions, Change::ForceHome(asked)).await.unwrap_err();
    assert!(refused.message.contains("isn't heard of"), "{refused:?}");
    let at = change(&old, mkdir("still")).await;
    assert_eq!(at.epoch, 1, "the home goes on");
    for i in regions.of("b") {
        regions.run(i).await;
    }
    let there = client(&regions, "b", "b");
    assert!(near(&there, "still", &at).await.is_some());
    caught_up(&regions, "b").await;

    regions.kill_region("a").await;
    // Longer than a lease of the regions.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let next = serving(&regions, "b").unwrap().clone();
    let home = |master: &Master| master.geo.view().unwrap().volumes[&ROOT_VOLUME].clone();
    assert_eq!((home(&next).home.as_str(), home(&next).open), ("a", true), "it waits");
    let elsewhere = force(&next, "w", false).await.unwrap_err();
    assert_eq!(elsewhere.code(), ErrorCode::InvalidRequest, "{elsewhere:?}");
    until("the region could begin", async || force(&next, "b", true).await.is_ok()).await;
    let plan = force(&next, "b", true).await.unwrap();
    assert_eq!(plan.after.map(|after| (after.home, after.epoch)), Some(("b".into(), 2)));
    assert!(plan.behind_ms.is_some() && home(&next).open, "a plan changes nothing");
    let given_up = force(&next, "b", false).await.unwrap();
    assert!(given_up.cut.is_some_and(|cut| cut.epoch == 1), "{given_up:?}");
    serves_as_home(&regions, "b", 2).await;
    let at = change(&client(&regions, "b", "b"), mkdir("f0")).await;
    assert_eq!(at.epoch, 2);
    let [(closed, loss)] = &ledger(&next).await[..] else { panic!("one entry") };
    assert_eq!((*closed, loss.old_home.as_str(), loss.undone), (Epoch(1), "a", 0));
    // The old home comes back and follows.
    for i in regions.of("a") {
        regions.run(i).await;
    }
    let back = client(&regions, "a", "a");
    assert!(near(&back, "f0", &at).await.is_some() && near(&back, "still", &at).await.is_some());
    equal(&regions, "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_is_well_ends_before_the_one_for_which_it_is_given_up_begins() {
    let regions = Regions::start(&[("a", 3), ("b", 3), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    by_command_only(&regions).await;
    let old = client(&regions, "a", "a");
    let mut at = Place::default();
    for n in 0..10 {
        at = change(&old, mkdir(&format!("d{n}"))).await;
    }
    assert!(near(&client(&regions, "b", "b"), "d9", &at).await.is_some());
    caught_up(&regions, "b").await;
    let next = serving(&regions, "b").unwrap().clone();
    // With its next renewal it says how far it is.
    until("the region could begin", async || force(&next, "b", true).await.is_ok()).await;
    force(&next, "b", false).await.unwrap();
    let late = old.request(11, mkdir("late")).await;
    let late = old.link().request::<_, Response>(Method::FsChange, &late, Duration::from_secs(3)).await;
    assert!(late.is_err(), "another region is the home by now: {late:?}");
    serves_as_home(&regions, "b", 2).await;
    // Its session's lease hadn't run out: the new home waits for it, rather than two seconds.
    let view = next.geo.view().unwrap();
    assert_eq!(view.volumes[&ROOT_VOLUME].forced_home.as_deref(), Some("b"));
    let at = change(&client(&regions, "b", "b"), mkdir("f0")).await;
    assert_eq!(at.epoch, 2);
    assert!(near(&client(&regions, "a", "a"), "f0", &at).await.is_some());
    equal(&regions, "a").await;
}

/// The region for which the home is given up is lost before it begins; and what the home said of its end is forgotten: its master's lease of leadership lapsed for
/// a moment, and another master leads the global group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_was_given_up_in_vain_is_had_back_although_its_word_was_forgotten() {
    let mut regions = Regions::start_of(&[("a", 1), ("b", 1), ("w", 1)], 6_000).await;
    let [a, b, w] = ["a", "b", "w"].map(|region| regions.of(region)[0]);
    serves_as_home(&regions, "a", 1).await;
    by_command_only(&regions).await;
    change(&client(&regions, "a", "a"), mkdir("d")).await;
    loop {
        let leader = regions.leader().await;
        if leader == w {
            break;
        }
        regions.kill(leader).await;
        regions.leader().await;
        regions.run(leader).await;
    }
    serves_as_home(&regions, "a", 1).await;
    caught_up(&regions, "b").await;
    let to = |to: &str| MoveHome { volume: 0, epoch: 1, to: to.into(), ..MoveHome::default() };
    until("b could begin", async || agree(&regions, Change::CheckForce(to("b"))).await.is_ok()).await;
    regions.kill(b).await;
    agree(&regions, Change::ForceHome(to("b"))).await.unwrap();
    until("the home has said that it has ended", async || regions.global(a).has_said(ROOT_VOLUME)).await;
    regions.kill(w).await;
    regions.global(a).stands_no_more(ROOT_VOLUME);
    regions.run(w).await;
    let master = regions.running[a].as_ref().unwrap().master().clone();
    until("it says so again", async || force(&master, "a", true).await.is_ok()).await;
    force(&master, "a", false).await.unwrap();
    serves_as_home(&regions, "a", 2).await;
    let home = client(&regions, "a", "a");
    assert_eq!(change(&home, mkdir("more")).await.epoch, 2);
    let found = read_home(&home, lookup("d").op.unwrap()).await;
    assert!(matches!(found, Reply::Entry(_)), "{found:?}");
}

/// The home needed no lease, and went on; another region took over as soon as it was said that it might. Both acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_fails_over_by_itself_only_once_its_home_goes_by_its_lease() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let [a, b] = ["a", "b"].map(|region| regions.of(region)[0]);
    serves_as_home(&regions, "a", 1).await;
    by_command_only(&regions).await;
    let manual = async || !regions.agreed().await.volumes[&ROOT_VOLUME].automatic;
    until("all know", manual).await;
    let at = change(&client(&regions, "a", "a"), mkdir("d")).await;
    assert!(near(&client(&regions, "b", "b"), "d", &at).await.is_some());
    caught_up(&regions, "b").await;
    let asked = |plan| SetVolumeRequest { automatic: Some(true), plan, ..SetVolumeRequest::default() };

    regions.cut("a");
    until("its lease has run out", async || regions.global(b).leases()["a"].1).await;
    until("b hears of a leader", async || regions.global(b).raft().unwrap().leader().is_some()).await;
    for plan in [true, false] {
        let refused = admin(&regions, "b").await.set_volume(asked(plan)).await.unwrap_err();
        assert_eq!(home(&refused).as_deref(), Some("a"), "{refused}");
        assert!(refused.message().contains("mooseng volume move-home 0 --to REGION --force"), "{refused}");
    }
    // As a master of an earlier release asks for it.
    let earlier = SetVolume { volume: 0, epoch: 1, automatic: Some(true), ..SetVolume::default() };
    let refused = regions.global(b).change(Change::SetVolume(earlier), deadline()).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::InvalidRequest, "{refused:?}");
    assert!(refused.message.contains("mooseng volume move-home 0 --to REGION --force"), "{refused:?}");
    assert_eq!(regions.global(a).may_change(ROOT_VOLUME), Some(Epoch(1)), "it goes on");
    assert!(!regions.global(b).view().volumes[&ROOT_VOLUME].automatic);

    regions.heal();
    regions.holder("a").await;
    let set = admin(&regions, "a").await.set_volume(asked(false)).await.unwrap().into_inner();
    assert!(
        set.after.is_some_and(|after| after.automatic) && set.before.is_some_and(|before| !before.automatic)
    );
    until("all know", async || regions.agreed().await.volumes[&ROOT_VOLUME].automatic).await;
    by_command_only(&regions).await;
    until("all know", manual).await;
    // Of what was put down before, a later agreement has made an end.
    regions.cut("a");
    until("its lease has run out", async || !regions.global(a).lease_valid()).await;
    assert_eq!(regions.global(a).may_change(ROOT_VOLUME), Some(Epoch(1)), "it goes on");

    // Its leader is cut off behind what it put down last, and dies; the next one knows no more of it than that.
    let store = regions.running[a].as_ref().unwrap().master().store.clone();
    let tx = store.begin();
    tx.set(&leased::key(ROOT_VOLUME), &number::encode(regions.global(a).view().version));
    tx.commit().await.unwrap();
    regions.kill(a).await;
    regions.run(a).await;
    until("it serves", async || serving(&regions, "a").is_some()).await;
    assert!(!regions.global(a).view().volumes[&ROOT_VOLUME].automatic);
    assert_eq!(regions.global(a).may_change(ROOT_VOLUME), None, "another region may be the home");
    regions.heal();
    serves_as_home(&regions, "a", 1).await;
}

/// Cut off from the others, the home of a volume that fails over by command only goes on.
async fn goes_on_alone(regions: &Regions, home: usize) {
    regions.cut("a");
    until("its lease has run out", async || !regions.global(home).lease_valid()).await;
    assert_eq!(regions.global(home).may_change(ROOT_VOLUME), Some(Epoch(1)), "it needs no lease");
    regions.heal();
    regions.holder("a").await;
}

/// What was refused overtook nothing: the home, and each later leader of its region, went by its lease for good, and stopped when that ran out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_whose_failover_came_to_nothing_goes_on_without_its_lease() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let a = regions.of("a")[0];
    serves_as_home(&regions, "a", 1).await;
    by_command_only(&regions).await;
    until("all know", async || !regions.agreed().await.volumes[&ROOT_VOLUME].automatic).await;
    regions.holder("a").await;
    for plan in [true, false] {
        let asked = SetVolumeRequest {
            automatic: Some(true),
            regions: vec!["a".into(), "x".into()],
            plan,
            ..SetVolumeRequest::default()
        };
        let refused = admin(&regions, "a").await.set_volume(asked).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound, "{refused}");
    }
    let store = serving(&regions, "a").unwrap().store.clone();
    let put_down = store.begin().get(&leased::key(ROOT_VOLUME), Read::Snapshot).await.unwrap();
    assert_eq!(number::decode(put_down.as_ref()).unwrap(), 0, "nothing is put down for it");
    goes_on_alone(&regions, a).await;

    // Its leader puts it down, and dies before it asks the others.
    let version = regions.global(a).view().version;
    let tx = store.begin();
    tx.set(&leased::key(ROOT_VOLUME), &number::encode(version));
    tx.commit().await.unwrap();
    regions.kill(a).await;
    regions.run(a).await;
    until("what was asked for is overtaken", async || regions.global(a).view().version > version).await;
    serves_as_home(&regions, "a", 1).await;
    regions.holder("a").await;
    goes_on_alone(&regions, a).await;
}
