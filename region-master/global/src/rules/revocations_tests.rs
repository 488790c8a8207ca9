//! Revocations over a store in memory.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_schema::revocation::Revocation;
use mooseng_store::memory::MemoryStore;
use mooseng_store::{Read, Store};
use mooseng_wire::level::Levels;
use mooseng_wire::revocations::AGREED_MAX;

use super::revocations::*;
use super::tests::{at_level, ruled, run};
use super::{RuleError, Ruled};

const SPACES: [Space; 2] = [Space::Cluster, Space::Region];

fn revocation(expires_unix: Option<i64>) -> Revocation {
    Revocation { reason: "stolen".into(), by: "spiffe://c/r/admin/a".into(), at_unix: 1, expires_unix }
}

fn wanted(all: &[(&str, Option<i64>)]) -> BTreeMap<String, Revocation> {
    all.iter().map(|(what, end)| ((*what).to_owned(), revocation(*end))).collect()
}

async fn revoked(store: &MemoryStore, space: Space, all: &[(&str, Option<i64>)], now_ms: u64) -> Ruled<u64> {
    ruled!(store, tx, revoke(&tx, space, &wanted(all), (now_ms, 0)))
}

async fn is(store: &MemoryStore, space: Space) -> (u64, Vec<(String, Option<i64>)>) {
    let known = known(&store.begin(), space, Read::Snapshot).await.unwrap();
    let all = known.revoked.iter().map(|(what, revocation)| (what.clone(), revocation.expires_unix));
    (known.version, all.collect())
}

#[tokio::test]
async fn what_is_done_twice_is_done_once_and_each_store_has_its_own() {
    for (space, other) in [(Space::Cluster, Space::Region), (Space::Region, Space::Cluster)] {
        let store = at_level(Levels::OURS.highest).await;
        let all = [("77", Some(5_000)), ("spiffe://c/r/client/x", None)];
        assert_eq!(revoked(&store, space, &all, 2_000).await, Ok(2_000));
        assert_eq!(revoked(&store, space, &all, 3_000).await, Ok(2_000), "that was so already");
        let both = vec![("77".to_owned(), Some(5_000)), ("spiffe://c/r/client/x".to_owned(), None)];
        assert_eq!(is(&store, space).await, (2_000, both));
        assert_eq!(is(&store, other).await, (0, vec![]));
        let back = |what: &'static str| {
            let store = &store;
            async move { ruled!(store, tx, unrevoke(&tx, space, what, 100)) }
        };
        assert_eq!(back("00:77").await, Ok(2_001), "a clock that is behind doesn't make it lower");
        assert_eq!(back("77").await, Err(RuleError::Revocation(Refused::NotRevoked("77".into()))));
        assert!(matches!(back("king").await, Err(RuleError::Revocation(Refused::Malformed(_)))));
        assert_eq!(is(&store, space).await.0, 2_001);
    }
}

#[tokio::test]
async fn the_longer_time_counts_and_what_has_ended_goes_an_hour_later() {
    for space in SPACES {
        let store = at_level(Levels::OURS.highest).await;
        let at = |s: i64| (s * 1_000) as u64;
        revoked(&store, space, &[("77", Some(5_000)), ("78", Some(50_000))], at(10)).await.unwrap();
        revoked(&store, space, &[("77", Some(4_000))], at(11)).await.unwrap();
        assert_eq!(is(&store, space).await.0, at(10), "the shorter time changes nothing");
        revoked(&store, space, &[("77", Some(6_000))], at(12)).await.unwrap();
        let sweep = |now: i64| {
            let store = &store;
            async move { ruled!(store, tx, sweep(&tx, space, at(now))).unwrap() }
        };
        assert_eq!(sweep(6_000 + KEPT_AFTER_END_S).await, at(12), "a clock may be behind");
        let ended = 6_000 + KEPT_AFTER_END_S + 1;
        assert!(known(&store.begin(), space, Read::Snapshot).await.unwrap().has_ended(ended));
        assert_eq!(sweep(ended).await, at(ended));
        assert_eq!(is(&store, space).await, (at(ended), vec![("78".to_owned(), Some(50_000))]));
        // Without an end it stays, whatever end is given later.
        revoked(&store, space, &[("78", None)], at(ended) + 1).await.unwrap();
        revoked(&store, space, &[("78", Some(60_000))], at(ended) + 2).await.unwrap();
        assert_eq!(is(&store, space).await, (at(ended) + 1, vec![("78".to_owned(), None)]));
    }
}

#[tokio::test]
async fn there_is_a_most() {
    let store = at_level(Levels::OURS.highest).await;
    let all: Vec<String> = (0..AGREED_MAX).map(|n| format!("{:04x}", n + 0x1000)).collect();
    let all: Vec<(&str, Option<i64>)> = all.iter().map(|what| (what.as_str(), Some(1))).collect();
    revoked(&store, Space::Cluster, &all, 10).await.unwrap();
    let more = revoked(&store, Space::Cluster, &[("77", None)], 20).await;
    assert_eq!(more, Err(RuleError::Revocation(Refused::TooMany)));
    assert_eq!(is(&store, Space::Cluster).await.0, 10, "nothing of it is left");
    // All of them end.
    let later = u64::try_from(KEPT_AFTER_END_S + 2).unwrap() * 1_000;
    assert_eq!(revoked(&store, Space::Cluster, &[("77", None)], later).await, Ok(later));
    assert_eq!(is(&store, Space::Cluster).await.1, [("77".to_owned(), None)]);
}

#[tokio::test]
async fn a_regions_revocations_go_to_the_global_group_without_a_gap() {
    let store = at_level(Levels::OURS.highest).await;
    revoked(&store, Space::Region, &[("77", None), ("78", None)], 9_000).await.unwrap();
    let region = known(&store.begin(), Space::Region, Read::Snapshot).await.unwrap();
    let told = async || {
        let tx = store.begin();
        let region = known(&tx, Space::Region, Read::Snapshot).await.unwrap();
        known(&tx, Space::Cluster, Read::Snapshot).await.unwrap().and(region).agreed()
    };
    let before = told().await;
    assert_eq!((before.version, before.revoked.len()), (9_000, 2));
    // The clock of the group's leader is behind.
    let taken = ruled!(&store, tx, revoke(&tx, Space::Cluster, &region.revoked, (500, region.version)));
    assert_eq!(taken, Ok(9_001));
    let names: BTreeSet<String> = ["77".to_owned(), "78".to_owned()].into();
    // One more came in between.
    revoked(&store, Space::Region, &[("79", None)], 9_500).await.unwrap();
    ruled!(&store, tx, hand_over(&tx, Space::Region, &names)).unwrap();
    let after = told().await;
    assert_eq!((after.version, after.revoked.iter().collect::<Vec<_>>()), (9_500, vec!["77", "78", "79"]));
    ruled!(&store, tx, unrevoke(&tx, Space::Cluster, "77", 500)).unwrap();
    assert_eq!(told().await.revoked.iter().collect::<Vec<_>>(), ["78", "79"]);
}

#[test]
fn what_would_stop_the_masters_or_says_nothing_is_refused() {
    let takes_part: BTreeSet<String> = ["spiffe://c/r/master/m1".to_owned()].into();
    let may = |what: &str, revocation: &Revocation| may_revoke(what, revocation, &takes_part, 1_000);
    assert_eq!(may("00:5A:ff", &revocation(None)), Ok("5aff".to_owned()));
    assert_eq!(may("5aff", &revocation(Some(1_000))), Ok("5aff".to_owned()));
    assert_eq!(may("5aff", &revocation(Some(999))), Err(Refused::Ended("5aff".into())));
    let name = "spiffe://c/r/client/x";
    assert_eq!(may(name, &revocation(None)), Ok(name.to_owned()));
    assert_eq!(may(name, &revocation(Some(9_000))), Err(Refused::NameWithEnd(name.into())));
    let master = "spiffe://c/r/master/m1";
    assert_eq!(may(master, &revocation(None)), Err(Refused::TakesPart(master.into())));
    assert!(may("spiffe://c/r/master/m2", &revocation(None)).is_ok(), "it takes no part");
    assert!(matches!(may("king", &revocation(None)), Err(Refused::Malformed(_))));
    let long = Revocation { reason: "x".repeat(REASON_BYTES_MAX + 1), ..revocation(None) };
    assert_eq!(may("5aff", &long), Err(Refused::Reason(REASON_BYTES_MAX + 1)));
}
