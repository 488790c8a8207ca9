//! Masters of several regions: what they agree on, with regions lost and cut off.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;
#[path = "global/revocations.rs"]
mod revocations;

use std::sync::Arc;
use std::time::Duration;

use common::regions::{Regions, identity_of};
use common::until;
use mooseng_global::{Durability, Join, Place, Stage, Volume, voters};
use mooseng_schema::ids::IdKind;
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::{CallFailure, Link, LinkOptions, PlainNetwork, grpc_channel};
use mooseng_wire::admin::{
    AddRegionRequest, Event, ListEventsRequest, ListRegionsRequest, ListVolumesRequest, MemberToAdd,
    RemoveRegionRequest, SetVolumeRequest,
};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{
    CloseEpoch, CreateVolume, DeleteVolume, JoinToken, JoinVolume, LeaveVolume, OpenEpoch, SetVolume,
};
use mooseng_wire::method::Method;
use mooseng_wire::raft::{AppendAnswer, AppendEntries};
use mooseng_wire::{Epoch, InodeId, Role, VolumeId, join};
use tokio::time::Instant;

const ROOT: VolumeId = VolumeId(0);
const WITHIN: Duration = Duration::from_secs(20);

/// What a master's status finds of regions.
fn found(regions: &Regions, i: usize) -> Vec<String> {
    let codes = ["GLOBAL_", "REGION_DOWN", "LEASE_LOST", "VOLUME_WAITS", "NO_CHUNKSERVERS"];
    let findings = regions.running[i].as_ref().unwrap().status().findings.into_iter().map(|f| f.code);
    findings.filter(|code| codes.iter().any(|known| code.starts_with(known))).collect()
}

fn automatic(automatic: bool) -> Change {
    Change::SetVolume(SetVolume { volume: 0, epoch: 1, automatic: Some(automatic), ..SetVolume::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_founded_and_every_master_knows_the_same() {
    let regions = Regions::start(&[("a", 3), ("b", 1), ("w", 1)]).await;
    let view = regions.agreed().await;
    assert_eq!(view.regions.keys().collect::<Vec<_>>(), ["a", "b", "w"]);
    let root = Volume {
        home: "a".into(),
        epoch: Epoch(1),
        open: true,
        abandoned: false,
        cut: None,
        durability: Durability::Region,
        regions: ["a".to_owned(), "b".to_owned()].into(),
        sync_set: ["a".to_owned()].into(),
        automatic: true,
        blocks_alone: false,
        lag_max: Some(mooseng_global::LAG_MAX_DEFAULT),
        lost_home: None,
        forced_home: None,
        join: None,
    };
    assert_eq!(view.volumes, [(ROOT, root)].into());
    // All are members; one of each region votes, so that any region may be lost.
    let leader = regions.leader().await;
    let members = || regions.global(leader).raft().unwrap().status().members;
    until("all masters are members", async || members().len() == 5).await;
    let voting: Vec<u64> = members().iter().filter(|m| m.voter).map(|m| m.id).collect();
    assert_eq!(voting, [voters::node_id(1, 1), voters::node_id(2, 1), voters::node_id(3, 1)]);
    // Through any master, and each learns of it.
    let changed = regions.global(2).change(automatic(false), Instant::now() + WITHIN).await.unwrap();
    assert!(changed.version > view.version);
    shown(&regions, &view.regions["b"].masters[0].address).await;
    until("all know", async || regions.agreed().await.version >= changed.version).await;
    assert!(!regions.agreed().await.volumes[&ROOT].automatic);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_joins_and_leaves_while_the_cluster_runs() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    let master = regions.prepare("c", 4);
    let network = Arc::new(PlainNetwork::new(identity_of("b", Role::Admin, "x")));
    let address = &regions.sites[1].config.advertise;
    let mut client = AdministrationClient::new(grpc_channel(network, address, Role::Master).await);
    let seat = MemberToAdd { id: 1, name: master.name, address: master.address, zone: master.zone };
    let add = AddRegionRequest {
        name: "c".into(),
        number: 0,
        witness: false,
        masters: vec![seat],
        join: join::hash(&[9; 16]).to_vec().into(),
    };
    let added = client.add_region(add.clone()).await.unwrap().into_inner();
    assert_eq!(client.add_region(add.clone()).await.unwrap().into_inner(), added, "done already");
    let stolen = AddRegionRequest { name: "d".into(), ..add };
    assert_eq!(client.add_region(stolen).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let global = regions.sites[3].config.global.as_mut().unwrap();
    global.join = Some(join::to_text(&JoinToken {
        cluster: "test".into(),
        region: "c".into(),
        secret: vec![9; 16].into(),
        ..JoinToken::default()
    }));
    regions.run(3).await;
    let members = async |regions: &Regions| {
        let leader = regions.leader().await;
        regions.global(leader).raft().map(|raft| raft.status().members).unwrap_or_default()
    };
    until("it votes", async || {
        let members = members(&regions).await;
        members.len() == 4 && members.iter().all(|m| m.voter)
    })
    .await;
    assert_eq!(regions.agreed().await.regions["c"].number, 4);
    regions.holder("c").await;
    regions.kill(3).await;
    let remove = |name: &str| RemoveRegionRequest { name: name.into() };
    client.remove_region(remove("c")).await.unwrap();
    until("it is no member", async || members(&regions).await.len() == 3).await;
    assert_eq!(regions.agreed().await.regions.len(), 3);
    assert_eq!(client.remove_region(remove("c")).await.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(
        client.remove_region(remove("b")).await.unwrap_err().code(),
        tonic::Code::InvalidArgument,
        "it has the root volume"
    );
}

/// Found by review: it voted and called itself ready, while its lease was refused and shown as renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_whose_token_is_over_is_no_member_and_not_ready() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    let master = regions.prepare("c", 4);
    let network = Arc::new(PlainNetwork::new(identity_of("b", Role::Admin, "x")));
    let address = &regions.sites[1].config.advertise;
    let mut client = AdministrationClient::new(grpc_channel(network, address, Role::Master).await);
    let seat = MemberToAdd { id: 1, name: master.name, address: master.address, zone: master.zone };
    let add = |secret: u8| AddRegionRequest {
        name: "c".into(),
        number: 0,
        witness: false,
        masters: vec![seat.clone()],
        join: join::hash(&[secret; 16]).to_vec().into(),
    };
    client.add_region(add(9)).await.unwrap();
    // Another token ends the first one, which its master has.
    client.add_region(add(8)).await.unwrap();
    let global = regions.sites[3].config.global.as_mut().unwrap();
    global.join = Some(join::to_text(&JoinToken {
        cluster: "test".into(),
        region: "c".into(),
        secret: vec![9; 16].into(),
        ..JoinToken::default()
    }));
    regions.run(3).await;
    let ready = |regions: &Regions| regions.running[3].as_ref().unwrap().ready();
    until("it says that it isn't let in", async || {
        ready(&regions).is_err_and(|why| why.contains("mooseng regions add"))
    })
    .await;
    let members = async |regions: &Regions| {
        let leader = regions.leader().await;
        let all = regions.global(leader).raft().map(|raft| raft.status().members).unwrap_or_default();
        all.iter().map(|m| (voters::region_of(m.id), m.voter)).collect::<Vec<_>>()
    };
    // Several looks of the group's leader.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(members(&regions).await, [(1, true), (2, true), (3, true)]);
    let listed = client.list_regions(ListRegionsRequest {}).await.unwrap().into_inner().regions;
    let ages = listed.iter().map(|region| (region.name.as_str(), region.lease_age_ms.is_some()));
    assert_eq!(ages.collect::<Vec<_>>(), [("a", true), ("b", true), ("c", false), ("w", true)]);
    client.add_region(add(9)).await.unwrap();
    until("it votes", async || {
        let members = members(&regions).await;
        members.len() == 4 && members.iter().all(|(_, votes)| *votes)
    })
    .await;
    until("it is ready", async || ready(&regions).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volumes_settings_are_planned_and_changed_through_any_master() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let before = regions.agreed().await;
    let network = Arc::new(PlainNetwork::new(identity_of("b", Role::Admin, "x")));
    let address = &before.regions["b"].masters[0].address;
    let mut client = AdministrationClient::new(grpc_channel(network.clone(), address, Role::Master).await);
    let geo = SetVolumeRequest { geo: Some(true), blocks_alone: Some(true), ..SetVolumeRequest::default() };
    let planned =
        client.set_volume(SetVolumeRequest { plan: true, ..geo.clone() }).await.unwrap().into_inner();
    assert_eq!(planned.after.map(|v| (v.geo, v.blocks_alone)), Some((true, true)));
    assert_eq!(regions.agreed().await.volumes, before.volumes, "a plan changes nothing");
    let set = client.set_volume(geo.clone()).await.unwrap().into_inner();
    until("all know", async || regions.agreed().await.version >= set.version).await;
    let root = regions.agreed().await.volumes[&ROOT].clone();
    assert_eq!((root.durability, root.blocks_alone), (Durability::Geo, true));
    let again = client.set_volume(geo).await.unwrap().into_inner();
    assert_eq!(again.before, again.after, "done already");
    // Refused, planned or not, and said why.
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for plan in [true, false] {
        for (names, code, says) in [
            (of(&["a", "x"]), tonic::Code::NotFound, "mooseng regions list"),
            (of(&["a", "w"]), tonic::Code::InvalidArgument, "witness"),
            (of(&["b"]), tonic::Code::InvalidArgument, "home"),
            (of(&["a"]), tonic::Code::InvalidArgument, "mooseng volume set"),
        ] {
            let asked = SetVolumeRequest { regions: names.clone(), plan, ..SetVolumeRequest::default() };
            let refused = client.set_volume(asked).await.unwrap_err();
            assert!(refused.code() == code && refused.message().contains(says), "{names:?}: {refused}");
        }
    }
    let none = SetVolumeRequest { volume: 7, geo: Some(true), ..SetVolumeRequest::default() };
    assert_eq!(client.set_volume(none).await.unwrap_err().code(), tonic::Code::NotFound);
    // Only an administrator of the asked region changes something; what there is, those of other regions may know, too.
    let address = &before.regions["a"].masters[0].address;
    let mut other = AdministrationClient::new(grpc_channel(network, address, Role::Master).await);
    let refused =
        other.set_volume(SetVolumeRequest { geo: Some(false), ..SetVolumeRequest::default() }).await;
    assert_eq!(refused.unwrap_err().code(), tonic::Code::PermissionDenied);
    assert_eq!(other.list_volumes(ListVolumesRequest {}).await.unwrap().into_inner().volumes.len(), 1);
}

/// What a master tells to an administrator of the region b.
async fn events(address: &str) -> Vec<Event> {
    let network = Arc::new(PlainNetwork::new(identity_of("b", Role::Admin, "x")));
    let mut client = AdministrationClient::new(grpc_channel(network, address, Role::Master).await);
    let page =
        client.list_events(ListEventsRequest { limit: 3, ..Default::default() }).await.unwrap().into_inner();
    let mut events = page.events;
    let (mut more, mut after) = (page.more, page.next);
    while more {
        let request = ListEventsRequest { journal: page.journal, after, ..Default::default() };
        let next = client.list_events(request).await.unwrap().into_inner();
        events.extend(next.events);
        (more, after) = (next.more, next.next);
    }
    events
}

/// What an administrator sees at a master of the region b.
async fn shown(regions: &Regions, address: &str) {
    let network = Arc::new(PlainNetwork::new(identity_of("b", Role::Admin, "x")));
    let mut client = AdministrationClient::new(grpc_channel(network, address, Role::Master).await);
    let leader = regions.leader().await;
    let mut reply = Default::default();
    let whole = async || {
        reply = client.list_regions(ListRegionsRequest {}).await.unwrap().into_inner();
        let masters: Vec<_> = reply.regions.iter().flat_map(|region| &region.masters).collect();
        let leaders: Vec<_> = masters.iter().filter(|m| m.leader).map(|m| m.name.as_str()).collect();
        leaders == [regions.sites[leader].config.name.as_str()]
            && masters.iter().all(|m| m.reachable == Some(true))
            && masters.iter().filter(|m| m.voter).count() == 3
            && reply.regions.iter().all(|region| region.lease_age_ms.is_some())
    };
    until("a master of b knows who leads, and reaches all", whole).await;
    assert_eq!((reply.asked.as_str(), reply.quorum, reply.fatal.len()), ("b", true, 0));
    assert_eq!(
        reply.regions.iter().map(|r| (r.name.as_str(), r.witness)).collect::<Vec<_>>(),
        [("a", false), ("b", false), ("w", true)]
    );
    let reply = client.list_volumes(ListVolumesRequest {}).await.unwrap().into_inner();
    let root = &reply.volumes[0];
    assert_eq!((root.home.as_str(), root.epoch, root.open, root.geo), ("a", 1, true, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_given_to_the_home_alone_and_never_twice() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    let take = async |i: usize, epoch, least| {
        let deadline = Instant::now() + WITHIN;
        regions.global(i).next_ids(IdKind::Inode, ROOT, Epoch(epoch), (100, least), deadline).await
    };
    // Epochs are ended by hand here.
    regions.global(0).change(automatic(false), Instant::now() + WITHIN).await.unwrap();
    // Each home takes some for itself, too.
    let first = take(0, 1, 50).await.unwrap();
    let second = take(0, 1, 0).await.unwrap();
    assert!(first.start >= 50 && second.start >= first.end, "{first:?} {second:?}");
    assert_eq!(take(1, 1, 0).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    // The home gives it up, another one has it: what the first one takes for free it doesn't get.
    let change = async |i: usize, change| regions.global(i).change(change, Instant::now() + WITHIN).await;
    let close = || Change::CloseEpoch(CloseEpoch { volume: 0, epoch: 1 });
    let open = || Change::OpenEpoch(OpenEpoch { volume: 0, closed: 1, home: "b".into(), cut: None });
    assert_eq!(change(1, close()).await.unwrap_err().code(), ErrorCode::StaleEpoch, "it isn't the home");
    assert_eq!(change(1, open()).await.unwrap_err().code(), ErrorCode::StaleEpoch, "it isn't closed");
    change(0, close()).await.unwrap();
    assert_eq!(take(0, 1, 0).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    let opened = change(1, open()).await.unwrap();
    assert_eq!(change(1, open()).await.unwrap(), opened, "asked again it is done already");
    assert!(take(1, 2, 0).await.unwrap().start >= second.end);
    assert_eq!(take(0, 1, 0).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    let root = regions.agreed().await.volumes[&ROOT].clone();
    assert_eq!((root.home.as_str(), root.epoch, root.open), ("b", Epoch(2), true));
}

/// What no command asks for yet: the group's part of making and deleting a volume.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_agreed_on_and_let_go_of_through_any_master() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let founded = regions.agreed().await;
    let change = async |i: usize, change| regions.global(i).change(change, Instant::now() + WITHIN).await;
    let directory = InodeId::new(ROOT, 9);
    let asked = |home: &str, of: &[&str]| CreateVolume {
        directory: directory.0,
        path: "/d".into(),
        home: home.into(),
        geo: true,
        regions: of.iter().map(|region| (*region).to_owned()).collect(),
    };
    for (wrong, code) in
        [(asked("x", &[]), ErrorCode::NotFound), (asked("b", &["b"]), ErrorCode::InvalidRequest)]
    {
        assert_eq!(change(1, Change::CheckCreate(wrong.clone())).await.unwrap_err().code(), code);
        assert_eq!(change(1, Change::CreateVolume(wrong)).await.unwrap_err().code(), code);
    }
    change(1, Change::CheckCreate(asked("b", &[]))).await.unwrap();
    assert_eq!(regions.agreed().await.volumes, founded.volumes, "only asked");
    let made = change(2, Change::CreateVolume(asked("b", &[]))).await.unwrap();
    assert_eq!(made.volume, Some(1));
    let again = change(0, Change::CreateVolume(asked("b", &[]))).await.unwrap();
    assert_eq!(again.volume, made.volume, "done already");
    let volume = VolumeId(1);
    until("all know", async || regions.agreed().await.version >= made.version).await;
    let join = regions.agreed().await.volumes[&volume].join.clone();
    assert_eq!(join, Some(Join { place: Place { directory, path: "/d".into() }, stage: Stage::Made }));
    // Only the home of its parent says what a directory of that names.
    let joined = Change::JoinVolume(JoinVolume { volume: 1 });
    assert_eq!(change(1, joined.clone()).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    change(0, joined).await.unwrap();
    let root = LeaveVolume { volume: 0 };
    assert_eq!(change(0, Change::CheckLeave(root)).await.unwrap_err().code(), ErrorCode::InvalidRequest);
    change(2, Change::CheckLeave(LeaveVolume { volume: 1 })).await.unwrap();
    let deleted = Change::DeleteVolume(DeleteVolume { volume: 1 });
    assert_eq!(
        change(0, deleted.clone()).await.unwrap_err().code(),
        ErrorCode::InvalidRequest,
        "it is joined"
    );
    change(2, Change::LeaveVolume(LeaveVolume { volume: 1 })).await.unwrap();
    let gone = change(0, deleted).await.unwrap();
    until("all know", async || regions.agreed().await.version >= gone.version).await;
    assert_eq!(regions.agreed().await.volumes, founded.volumes);
}

/// In whichever epoch the volume is: a region that was lost may have been its home, and another one takes over meanwhile.
async fn set_blocks_alone(regions: &Regions, i: usize, blocks_alone: bool) {
    until("a change is agreed on", async || {
        let epoch = regions.global(i).view().volumes[&ROOT].epoch.0;
        let set = SetVolume { volume: 0, epoch, blocks_alone: Some(blocks_alone), ..SetVolume::default() };
        match regions.global(i).change(Change::SetVolume(set), Instant::now() + WITHIN).await {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::StaleEpoch, "{}", error.message);
                false
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_may_be_lost_and_two_may_not() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    let lost = regions.leader().await;
    // All that can be said of three masters that are well.
    for region in ["a", "b", "w"] {
        regions.holder(region).await;
    }
    until("a witness that is well says so", async || found(&regions, 2) == ["GLOBAL_THIN"]).await;
    regions.kill(lost).await;
    let next = regions.leader().await;
    assert_ne!(next, lost);
    let down = async || {
        let found = found(&regions, next);
        ["GLOBAL_REGION_LOSS", "REGION_DOWN"].iter().all(|code| found.iter().any(|f| f == code))
    };
    until("the loss is found", down).await;
    for i in regions.up() {
        set_blocks_alone(&regions, i, i == next).await;
    }
    regions.agreed().await;
    regions.kill(next).await;
    let left = regions.up()[0];
    let before = regions.global(left).view();
    let refused =
        regions.global(left).change(automatic(false), Instant::now() + Duration::from_secs(2)).await;
    assert_eq!(refused.unwrap_err().code(), ErrorCode::Unavailable);
    assert_eq!(regions.global(left).view(), before, "nothing is decided alone");
    assert!(!regions.global(left).is_leading());
    until("it is found", async || found(&regions, left).contains(&"GLOBAL_NO_LEADER".to_owned())).await;
    // They come back with what they had, and go on.
    regions.run(lost).await;
    regions.leader().await;
    set_blocks_alone(&regions, left, false).await;
    regions.run(next).await;
    assert!(!regions.agreed().await.volumes[&ROOT].blocks_alone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_is_cut_off_stops_before_the_others_take_its_lease_for_run_out() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    for region in ["a", "b", "w"] {
        regions.holder(region).await;
    }
    regions.cut("a");
    let ran_out = |i: usize| regions.global(i).leases()["a"].1;
    // Looked at in this order the answer can't be made wrong by what happens in between.
    let looked = async || {
        let (out, followed) = (ran_out(1) || ran_out(2), regions.global(1).may_change(ROOT).is_some());
        assert!(!(out && regions.global(0).lease_valid()), "both believe");
        assert!(!(followed && regions.global(0).may_change(ROOT).is_some()), "both are the home");
        out
    };
    until("the others take its lease for run out", looked).await;
    assert!(!regions.global(0).lease_valid());
    assert_eq!(regions.global(0).may_change(ROOT), None);
    assert!(regions.global(1).lease_valid() || regions.holder("b").await == 1, "the others go on");
    regions.heal();
    regions.holder("a").await;
    // Whoever is the home by now: b, unless it had no replica yet.
    let followed = regions.global(1).may_change(ROOT).is_some();
    assert!(!(followed && regions.global(0).may_change(ROOT).is_some()), "both are the home");
    until("the others know", async || !ran_out(1) && !ran_out(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_home_is_followed_by_a_region_that_has_the_volume() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    regions.holder("a").await;
    regions.holder("b").await;
    assert_eq!(regions.global(0).may_change(ROOT), Some(Epoch(1)));
    assert_eq!(regions.global(1).may_change(ROOT), None, "it isn't the home");
    until("b has a replica", async || regions.global(1).has_said(ROOT)).await;
    regions.kill_region("a").await;
    let root = || regions.global(1).view().volumes[&ROOT].clone();
    until("the loss is known", async || regions.global(1).leases()["a"].1).await;
    // Its replica says what it has, and refuses the epoch once that is closed.
    until("the next epoch is opened", async || root().open && root().epoch > Epoch(1)).await;
    assert_eq!((root().epoch, root().home.as_str()), (Epoch(2), "b"));
    assert_eq!((root().cut.map(|cut| cut.epoch), root().abandoned), (Some(Epoch(1)), false));
    until("it may change the volume", async || regions.global(1).may_change(ROOT) == Some(Epoch(2))).await;
    // Who is left tells of it, each fact by one key.
    let told = async |region: &str| {
        let address = regions.global(1).view().regions[region].masters[0].address.clone();
        events(&address).await
    };
    until("all of it is told", async || {
        let told = told("b").await;
        ["LEASE_LOST", "EPOCH_CLOSED", "EPOCH_OPENED", "LEADER_ELECTED"]
            .iter()
            .all(|word| told.iter().any(|e| e.event == *word))
    })
    .await;
    let keys = |told: Vec<Event>| {
        told.into_iter().filter(|e| e.event == "EPOCH_OPENED").map(|e| e.key).collect::<Vec<_>>()
    };
    until("the witness tells the same", async || keys(told("w").await) == keys(told("b").await)).await;
    assert_eq!(keys(told("b").await), ["opened/0/2"]);
    // The old home comes back, holds a lease again, and is no home.
    let a = regions.of("a")[0];
    regions.run(a).await;
    regions.holder("a").await;
    assert_eq!(regions.global(a).may_change(ROOT), None);
    assert_eq!(regions.agreed().await.volumes[&ROOT].home, "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_regions_speak_of_the_global_group_only_and_strangers_of_nothing() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    let address = regions.sites[0].config.advertise.clone();
    let say = async |region: &str, role, method| {
        let network = Arc::new(PlainNetwork::new(identity_of(region, role, "x")));
        let link = Link::new(network, address.clone(), Role::Master, LinkOptions::default());
        let message = AppendEntries::default();
        match link.request::<_, AppendAnswer>(method, &message, Duration::from_secs(5)).await {
            Err(CallFailure::Remote(error)) => error.code(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(say("b", Role::Master, Method::RaftAppend).await, ErrorCode::PermissionDenied);
    assert_eq!(say("c", Role::Master, Method::GlobalAppend).await, ErrorCode::PermissionDenied);
    assert_eq!(say("a", Role::Client, Method::GlobalAppend).await, ErrorCode::PermissionDenied);
    assert_eq!(say("a", Role::Admin, Method::GlobalChange).await, ErrorCode::PermissionDenied);
    // A word of the other group isn't this one's, whoever says it.
    assert_eq!(say("b", Role::Master, Method::GlobalAppend).await, ErrorCode::OtherFounding);
}
