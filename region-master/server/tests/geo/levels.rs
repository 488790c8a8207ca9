//! The feature level: a cluster is upgraded master by master, raised by command, and hears no earlier release from then on.

use std::sync::Arc;

use mooseng_master::StartError;
use mooseng_master::geo::ROOT_VOLUME;
use mooseng_transport::{CallFailure, Link, LinkOptions, PlainNetwork};
use mooseng_wire::Role;
use mooseng_wire::admin::*;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{Changed, Renew, Renewed, SetVolume};
use mooseng_wire::level::{FeatureLevel, Levels};
use mooseng_wire::method::Method;
use mooseng_wire::raft::{VoteAnswer, VoteRequest};
use mooseng_wire::session;
use prost::Message;
use tonic::{Code, Response, Status};

use super::WITHIN;
use super::commands::admin;
use super::common::regions::{LEASE_MS, Regions, identity_of};
use super::common::until;
use super::giving_up::agree;

/// What a release from before levels tells.
const BEFORE: Levels = Levels { lowest: FeatureLevel(0), highest: FeatureLevel(0) };
const ONE_EACH: [(&str, u64); 3] = [("a", 1), ("b", 1), ("w", 1)];

async fn raise(regions: &Regions, at: &str, plan: bool) -> Result<RaiseLevelReply, Status> {
    let request = RaiseLevelRequest { to: None, plan };
    admin(regions, at).await.raise_level(request).await.map(Response::into_inner)
}

async fn class(regions: &Regions, at: &str) -> Result<(), Status> {
    let request = CreateClassRequest { name: "fast".into(), copies: 2, ..CreateClassRequest::default() };
    admin(regions, at).await.create_class(request).await.map(drop)
}

/// Why something is refused for good, whatever passes before.
async fn refusal<T>(asked: impl AsyncFn() -> Result<T, Status>) -> String {
    let mut says = String::new();
    until("it is refused", async || {
        if let Err(status) = asked().await
            && status.code() == Code::InvalidArgument
        {
            status.message().clone_into(&mut says);
        }
        !says.is_empty()
    })
    .await;
    says
}

/// What a master's status finds of levels: codes, with what they are about.
fn found(regions: &Regions, i: usize) -> Vec<(String, String)> {
    let findings = regions.running[i].as_ref().unwrap().status().findings;
    let of_levels =
        |f: &Finding| ["LEVELS_DIFFER", "LEVEL_RAISABLE", "MASTER_OUTDATED"].contains(&f.code.as_str());
    findings.into_iter().filter(of_levels).map(|f| (f.code, f.subject)).collect()
}

async fn finds(regions: &Regions, i: usize, code: &str, subject: &str) {
    let wanted = vec![(code.to_owned(), subject.to_owned())];
    until("its status finds it", async || found(regions, i) == wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_upgraded_master_by_master_and_raised_once_all_support_it() {
    let mut regions = Regions::start_at(&ONE_EACH, LEASE_MS, BEFORE).await;
    assert_eq!(regions.agreed().await.level, FeatureLevel(0));
    let says = refusal(async || class(&regions, "b").await).await;
    assert!(
        says.contains("take feature level 1") && says.contains("`mooseng cluster level --raise`"),
        "{says}"
    );
    let revoke = |plan| RevokeRequest {
        revocations: vec![Revocation { what: "5aff".into(), ..Revocation::default() }],
        plan,
        ..RevokeRequest::default()
    };
    for plan in [true, false] {
        let says = refusal(async || admin(&regions, "b").await.revoke(revoke(plan)).await).await;
        assert!(says.contains("take feature level 1") && says.contains("tls.revocations"), "{says}");
    }
    let nothing = raise(&regions, "b", false).await.unwrap();
    assert_eq!((nothing.before, nothing.level), (0, 0), "nobody supports a higher one");
    for i in [0, 1] {
        regions.kill(i).await;
        regions.run_at(i, Levels::OURS).await.unwrap();
        regions.agreed().await;
    }
    finds(&regions, 1, "LEVELS_DIFFER", "cluster").await;
    let says = refusal(async || raise(&regions, "b", false).await).await;
    assert!(says.contains("w/w1 supports feature level 0"), "{says}");
    // Whoever is down counts: nobody knows as what it comes back.
    regions.kill(2).await;
    let says = refusal(async || raise(&regions, "a", true).await).await;
    assert!(says.contains("w/w1 doesn't answer"), "{says}");
    regions.run_at(2, Levels::OURS).await.unwrap();
    finds(&regions, 0, "LEVEL_RAISABLE", "cluster").await;
    let shown = admin(&regions, "b").await.cluster_level(ClusterLevelRequest {}).await.unwrap().into_inner();
    assert_eq!((shown.level, shown.asked.as_str(), shown.masters.len()), (0, "b", 3));
    let plan = raise(&regions, "b", true).await.unwrap();
    assert_eq!((plan.before, plan.level), (0, 1));
    assert!(plan.allows.contains(&"volumes besides the root".to_owned()), "{:?}", plan.allows);
    assert_eq!(regions.agreed().await.level, FeatureLevel(0), "a plan changes nothing");

    let raised = raise(&regions, "b", false).await.unwrap();
    assert_eq!((raised.before, raised.level), (0, 1));
    until("all know", async || regions.agreed().await.level == FeatureLevel(1)).await;
    assert_eq!(raise(&regions, "a", false).await.unwrap().level, 1, "done already");
    until("what takes the level is taken", async || class(&regions, "b").await.is_ok()).await;
    until("and so is the other", async || admin(&regions, "b").await.revoke(revoke(false)).await.is_ok())
        .await;
    until("it is told of", async || {
        let events = admin(&regions, "a").await.list_events(ListEventsRequest::default()).await;
        events.unwrap().into_inner().events.iter().any(|event| event.event == "LEVEL_RAISED")
    })
    .await;
    until("nothing is left to do", async || found(&regions, 0).is_empty()).await;

    // Nothing was replayed yet, and nobody was asked.
    regions.kill(1).await;
    let refused = regions.run_at(1, BEFORE).await.unwrap_err();
    assert!(matches!(refused, StartError::Outdated(_)), "{refused}");
    let says = refused.to_string();
    assert!(says.contains("supports feature level 0, and the cluster is at 1"), "{says}");
    regions.run_at(1, Levels::OURS).await.unwrap();
    assert_eq!(regions.agreed().await.level, FeatureLevel(1), "its disk is as it was");
}

/// Asks a master as one of that region, of a release from before levels.
async fn as_before<Q: Message, A: Message + Default>(
    regions: &Regions,
    of: &str,
    at: usize,
    (method, question): (Method, &Q),
) -> Result<A, CallError> {
    let network = PlainNetwork::new(identity_of(of, Role::Master, &format!("{of}1"))).with_levels(BEFORE);
    let address = regions.sites[at].config.advertise.clone();
    let link = Link::new(Arc::new(network), address, Role::Master, LinkOptions::default());
    link.request(method, question, WITHIN).await.map_err(|failure| match failure {
        CallFailure::Remote(error) => error,
        other => panic!("{other}"),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_of_an_earlier_release_isnt_heard_and_not_let_in() {
    let mut regions = Regions::start(&ONE_EACH).await;
    assert_eq!(regions.agreed().await.level, Levels::OURS.highest, "it begins with that of who founds it");
    let master = regions.prepare("c", 4);
    let seat = MemberToAdd { id: 1, name: master.name, address: master.address, zone: master.zone };
    let add = AddRegionRequest { name: "c".into(), masters: vec![seat], ..AddRegionRequest::default() };
    admin(&regions, "a").await.add_region(add).await.unwrap();
    until("all know of it", async || {
        regions.up().into_iter().all(|i| regions.global(i).view().regions.contains_key("c"))
    })
    .await;
    // It has nothing on its disk that says so.
    regions.run_at(3, BEFORE).await.unwrap();
    let leader = regions.leader().await;
    finds(&regions, leader, "MASTER_OUTDATED", "master c/c1").await;
    let renew = Renew { region: "c".into(), ..Renew::default() };
    let renewal = (Method::GlobalRenew, &renew);
    let refused = as_before::<_, Renewed>(&regions, "c", leader, renewal).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::PermissionDenied);
    assert!(refused.message.contains("supports feature level 0, and the cluster is at 1"), "{refused:?}");
    // Nor is a master of any region that was started with it: nobody votes for it.
    let vote = (Method::GlobalVote, &VoteRequest::default());
    let refused = as_before::<_, VoteAnswer>(&regions, "b", leader, vote).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::PermissionDenied);
    let vote = (Method::RaftVote, &VoteRequest::default());
    let refused = as_before::<_, VoteAnswer>(&regions, "b", 1, vote).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::PermissionDenied);
    let change = (Method::GlobalChange, &mooseng_wire::global::Change::default());
    let refused = as_before::<_, Changed>(&regions, "b", leader, change).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::PermissionDenied);
    // That somebody is there it is told.
    let probe = (Method::Renew, &session::Renew::default());
    as_before::<_, session::Renewed>(&regions, "b", leader, probe).await.unwrap();
    let members = |at: usize| regions.global(at).raft().unwrap().status().members.len();
    assert_eq!(members(leader), 3, "it was never taken in");
    assert!(!regions.global(3).lease_valid());
    regions.kill(3).await;
    regions.run_at(3, Levels::OURS).await.unwrap();
    regions.holder("c").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_learns_that_it_is_left_behind_stops() {
    let regions = Regions::start(&ONE_EACH).await;
    regions.holder("a").await;
    until("it serves", async || regions.global(0).may_change(ROOT_VOLUME).is_some()).await;
    let release = |i: usize, levels: Levels| *regions.sites[i].levels.lock().unwrap() = levels;
    release(0, BEFORE);
    assert_eq!(regions.global(0).may_change(ROOT_VOLUME), None, "nothing is answered as the home");
    release(0, Levels::OURS);
    // One that has learned of the level only now is as one that finds itself below it with the next thing that is agreed on.
    release(2, BEFORE);
    let manual = SetVolume { volume: 0, epoch: 1, automatic: Some(false), ..SetVolume::default() };
    agree(&regions, Change::SetVolume(manual)).await.unwrap();
    let witness = regions.running[2].as_ref().unwrap();
    let why = tokio::time::timeout(WITHIN, witness.failed()).await.expect("it ends");
    assert!(why.contains("supports feature level 0, and the cluster is at 1"), "{why}");
    assert!(witness.outdated().is_some());
    assert!(regions.running[1].as_ref().unwrap().outdated().is_none());
}
