//! A group of masters: elections, failovers, crashes, replaced members, and the store's conformance through all of it.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::Group;
use mooseng_store::{Read, Store, StoreError, Transaction};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_through_three_masters() {
    let group = Group::new(3).await;
    // Each test of the suite begins on an empty store: a group of its own would cost an election each.
    mooseng_store::conformance::run_all(async || {
        let tx = group.begin();
        tx.clear_range(mooseng_store::KeyRange { begin: "".into(), end: bytes::Bytes::from_static(b"\xff") });
        tx.commit().await.unwrap();
        group.clone()
    })
    .await;
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_histories_are_serializable_while_leaders_change_and_power_fails() {
    let group = Group::new(3).await;
    let changing = tokio::spawn({
        let group = group.clone();
        async move {
            for round in 0u64.. {
                tokio::time::sleep(Duration::from_millis(900)).await;
                let leader = group.leader().await;
                match round % 3 {
                    0 => drop(group.master(leader).raft.transfer_leader(Duration::from_secs(5)).await),
                    n => {
                        group.kill(leader, n == 1).await;
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        group.start(leader).await;
                    }
                }
            }
        }
    });
    mooseng_store::conformance::run_random(
        async |_| {
            group.leader().await;
            loop {
                let tx = group.begin();
                tx.clear_range(mooseng_store::KeyRange { begin: "".into(), end: bytes::Bytes::from_static(b"\xff") });
                if tx.commit().await.is_ok() {
                    return group.clone();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        },
        0..3,
    )
    .await;
    assert!(!changing.is_finished(), "the changes of leader went on to the end");
    changing.abort();
    let _ = changing.await;
    for id in 1..=3 {
        if group.slots.read().unwrap()[id as usize - 1].running.is_none() {
            group.start(id).await;
        }
    }
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_leader_between_read_and_commit_commits_nothing() {
    let group = Group::new(3).await;
    group.put("a", "1").await;
    let old = group.leader().await;
    let tx = group.begin();
    assert_eq!(tx.get(b"a", Read::Conflicting).await.unwrap().unwrap(), "1");
    tx.set(b"a", b"2");
    group.master(old).raft.transfer_leader(Duration::from_secs(10)).await.unwrap();
    group.put("a", "3").await;
    let error = tx.commit().await.unwrap_err();
    assert!(matches!(error, StoreError::NotLeader | StoreError::TooOld | StoreError::Conflict), "{error}");
    let new = group.leader().await;
    assert_ne!(new, old);
    assert_eq!(group.begin().get(b"a", Read::Snapshot).await.unwrap().unwrap(), "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_survives_the_power_loss_of_all_at_once() {
    let group = Group::with(3, 40).await;
    for i in 0..150 {
        group.put(&format!("k{i}"), &"v".repeat(i)).await;
        if i % 50 == 49 {
            for id in 1..=3 {
                group.kill(id, true).await;
            }
            for id in 1..=3 {
                group.start(id).await;
            }
            group.leader().await;
        }
    }
    for i in 0..150 {
        let value = group.begin().get(format!("k{i}").as_bytes(), Read::Snapshot).await.unwrap();
        assert_eq!(value.map(|v| v.len()), Some(i), "k{i}");
    }
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_master_catches_up_by_a_snapshot_and_the_group_goes_on_without_the_old_one() {
    let group = Group::with(3, 30).await;
    for i in 0..200 {
        group.put(&format!("k{i}"), "v").await;
    }
    let leader = group.leader().await;
    let lost = (1..=3).find(|id| *id != leader).unwrap();
    group.kill(lost, true).await;
    let (new, member) = group.add().await;
    let voters = group
        .master(leader)
        .raft
        .change_members(BTreeMap::from([(new, member)]), BTreeSet::from([lost]))
        .await
        .unwrap();
    assert!(voters.contains(&new) && !voters.contains(&lost), "{voters:?}");
    group.converge().await;
    // The new one carries the quorum together with the other survivor.
    let other = group.leader().await;
    group.kill(other, true).await;
    group.put("after", "1").await;
    group.start(other).await;
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_quorum_lets_its_lease_run_out() {
    let group = Group::new(3).await;
    let leader = group.leader().await;
    for id in (1..=3).filter(|id| *id != leader) {
        group.kill(id, false).await;
    }
    let lone = group.master(leader).raft;
    while lone.lease_valid() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!lone.is_leading());
}
