//! A group of masters: elections, failovers, crashes, replaced members, and the store's conformance through all of it.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Group, network};
use mooseng_ports::disk::sim::{Fault, SimDisk};
use mooseng_ports::disk::{Disk, OpenMode};
use mooseng_raft::{Member, RaftError};
use mooseng_store::{Read, Store, StoreError, Transaction};
use mooseng_transport::{Link, LinkOptions, PlainNetwork};
use mooseng_wire::method::Method;
use mooseng_wire::raft as wire;
use mooseng_wire::{Identity, Role};

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

/// The same on what daemons run on, while leadership is handed on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_through_three_masters_over_fjall() {
    let group = Group::on_files(3, 200).await;
    let changing = tokio::spawn({
        let group = group.clone();
        async move {
            loop {
                tokio::time::sleep(Duration::from_millis(700)).await;
                let leader = group.leader().await;
                drop(group.master(leader).raft.transfer_leader(Duration::from_secs(5)).await);
            }
        }
    });
    mooseng_store::conformance::run_random(
        async |_| {
            empty(&group).await;
            group.clone()
        },
        0..2,
    )
    .await;
    changing.abort();
    let _ = changing.await;
    mooseng_store::conformance::run_all(async || {
        empty(&group).await;
        group.clone()
    })
    .await;
    group.converge().await;
}

async fn empty(group: &Group) {
    loop {
        group.leader().await;
        let tx = group.begin();
        tx.clear_range(mooseng_store::KeyRange { begin: "".into(), end: bytes::Bytes::from_static(b"\xff") });
        if tx.commit().await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Of two followers one is enough for a commit. The other one hears of many entries at once, and yet of all of them; and once the first is silent nothing waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_no_commit_needs_hears_of_many_entries_at_once() {
    let group = Group::new(3).await;
    let put = async |n: u32| group.put(&format!("k{n}"), "v").await;
    for n in 0..20 {
        put(n).await;
    }
    let counted = || group.appends.lock().unwrap().clone();
    let mut rounds = Vec::new();
    let first = loop {
        let (leader, before) = (group.leader().await, counted());
        for n in 20..320 {
            put(n).await;
        }
        let after = counted();
        let mut appends: Vec<(usize, u64)> = (1..=3)
            .filter(|id| *id != leader)
            .map(|id| (after[&id] - before.get(&id).copied().unwrap_or(0), id))
            .collect();
        appends.sort_unstable();
        let [(few, _), (many, first)] = appends[..] else { panic!("{appends:?}") };
        if few * 2 < many && group.leader().await == leader {
            break first;
        }
        // A machine with much else to do may be too slow for it for a while, or have the two change places in the middle.
        rounds.push(appends);
        assert!(rounds.len() < 10, "both hear of each entry: {rounds:?}");
    };
    group.converge().await;
    group.deaf.lock().unwrap().insert(first);
    for n in 320..420 {
        put(n).await;
    }
    group.deaf.lock().unwrap().remove(&first);
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
            empty(&group).await;
            group.clone()
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
async fn followers_flush_while_the_leader_does_and_nobody_acts_before_it_has() {
    let group = Group::with_threads(3).await;
    group.put("a", "1").await;
    group.converge().await;
    let leader = group.leader().await;
    let status = |id| group.master(id).raft.status();
    let before = status(leader).applied;
    let disk = group.slots.read().unwrap()[leader as usize - 1].disk.clone();
    disk.set_fault(Fault::Hanging);
    let putting = tokio::spawn({
        let group = group.clone();
        async move { group.put("b", "1").await }
    });
    tokio::time::timeout(common::WAIT_MAX, async {
        while (1..=3).any(|id| status(id).last_log <= before) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the followers have it while the leader flushes");
    // Several heartbeats.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!putting.is_finished(), "nobody is answered before the leader's flush");
    for id in 1..=3 {
        assert_eq!(status(id).applied, before, "master {id} applied what its leader hasn't flushed");
    }
    disk.set_fault(Fault::None);
    putting.await.unwrap();
    group.converge().await;
    assert_eq!(group.begin().get(b"b", Read::Snapshot).await.unwrap().unwrap(), "1");
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
    // The entries that a new one lacks are gone everywhere, so that only a snapshot can bring them.
    let mut i = 0;
    while (1..=3).any(|id| group.master(id).raft.status().purged.is_none()) {
        group.put(&format!("k{i}"), "v").await;
        i += 1;
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
    assert!(group.master(new).raft.status().purged.is_some(), "its log begins behind the snapshot");
    // The new one carries the quorum together with the other survivor.
    let other = group.leader().await;
    group.kill(other, true).await;
    group.put("after", "1").await;
    group.start(other).await;
    group.converge().await;
    // The new one's log begins behind the snapshot, also after its power failed.
    group.kill(new, true).await;
    group.put("without it", "1").await;
    group.start(new).await;
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_lost_its_log_is_not_let_in_under_its_old_id() {
    let group = Group::new(3).await;
    group.put("k", "v").await;
    group.converge().await;
    // The first of the first members, too, which makes a group where it finds no log.
    if group.leader().await == 1 {
        group.master(1).raft.transfer_leader(Duration::from_secs(20)).await.unwrap();
        // So that the new leader knows what the others have stored.
        group.put("k", "w").await;
        group.converge().await;
    }
    let leader = group.leader().await;
    assert_ne!(leader, 1);
    for lost in (1..=3).filter(|id| *id != leader) {
        group.kill(lost, true).await;
        group.slots.write().unwrap()[lost as usize - 1].disk = SimDisk::default();
        group.start(lost).await;
        let raft = group.master(lost).raft;
        if lost == 1 {
            let refused = raft.initialize(group.members()).await.unwrap_err();
            assert!(refused.to_string().contains("has lost its own"), "{refused}");
        }
        let refused = tokio::time::timeout(Duration::from_secs(20), async {
            while raft.failure().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        refused.await.unwrap();
        assert!(raft.failure().unwrap().contains("its disk was lost"), "{:?}", raft.failure());
        // The leader goes on with the other one.
        group.put("after", &lost.to_string()).await;
        assert_eq!(group.leader().await, leader);
        group.kill(lost, true).await;
        let (new, member) = group.add().await;
        let changed = group.master(leader).raft;
        changed.change_members(BTreeMap::new(), BTreeSet::from([lost])).await.unwrap();
        changed.change_members(BTreeMap::from([(new, member)]), BTreeSet::new()).await.unwrap();
    }
    group.converge().await;
}

/// What a majority acknowledged survives the power failure of all and the loss of one disk: the emptied master, of which nobody who is up
/// knows any more that it had a log, gives its vote to nobody who lacks what it had, until it has it again itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_lost_its_log_elects_nobody_who_lacks_what_it_had() {
    let group = Group::new(3).await;
    group.put("before", "v").await;
    group.converge().await;
    let first = group.leader().await;
    let (behind, emptied) = match first {
        1 => (2, 3),
        2 => (1, 3),
        _ => (1, 2),
    };
    group.kill(behind, true).await;
    group.put("k", "acknowledged").await;
    group.kill(first, true).await;
    group.kill(emptied, true).await;
    group.slots.write().unwrap()[emptied as usize - 1].disk = SimDisk::default();
    group.start(emptied).await;
    group.start(behind).await;
    // Several election timeouts.
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(group.leader_now(), None, "elected by a vote that was forgotten");
    }
    group.start(first).await;
    group.converge().await;
    let value = group.begin().get(b"k", Read::Snapshot).await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"acknowledged"[..]));
    // The emptied one has all again, and its vote counts again, also after a restart.
    group.kill(emptied, true).await;
    group.start(emptied).await;
    group.converge().await;
    group.kill(first, true).await;
    group.put("after", "1").await;
    group.start(first).await;
    group.converge().await;
}

/// A leader that was deposed while it was cut off finds a master that has forgotten the later term, and gets no quorum by it: what that
/// master and the later leader acknowledged is in no other log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_leader_gets_no_quorum_back_from_a_master_that_lost_its_log() {
    let group = Group::unmade(3, 1_000_000, false).await;
    // The first leader mustn't know that it has stored anything.
    group.deaf.lock().unwrap().insert(3);
    group.master(1).raft.initialize(group.members()).await.unwrap();
    group.put("before", "v").await;
    group.converge_among(&[1, 2]).await;
    let deposed = group.leader().await;
    let later = 3 - deposed;
    group.cut(deposed, true);
    group.deaf.lock().unwrap().clear();
    group.until("another leads", || group.leader_now().is_some_and(|leader| leader != deposed)).await;
    group.put("k", "acknowledged").await;
    group.converge_among(&[later, 3]).await;
    for id in [later, 3] {
        group.kill(id, true).await;
    }
    group.slots.write().unwrap()[2].disk = SimDisk::default();
    group.start(3).await;
    group.cut(deposed, false);
    let raft = group.master(deposed).raft;
    for _several_election_timeouts in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(group.leader_now(), None, "led by the word of a master that has forgotten");
        assert!(!raft.lease_valid());
    }
    group.start(later).await;
    group.converge_among(&[1, 2]).await;
    let value = group.begin().get(b"k", Read::Snapshot).await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"acknowledged"[..]));
}

/// A store without the log that it came from isn't taken for one whose log was purged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_whose_log_alone_is_lost_does_not_start() {
    let group = Group::with(3, 5).await;
    let leader = group.leader().await;
    let lost = (1..=3).find(|id| *id != leader).unwrap();
    let raft = group.master(lost).raft;
    let mut puts = 0;
    while raft.status().purged.is_none() {
        group.put(&format!("k{puts}"), "v").await;
        puts += 1;
    }
    group.kill(lost, true).await;
    group.slots.write().unwrap()[lost as usize - 1].log_disk = Some(SimDisk::default());
    let refused = group.try_start(lost).await.unwrap_err();
    assert!(matches!(refused, RaftError::LogLost), "{refused}");
    group.put("after", "v").await;
}

/// A log that fails while it notes what it lacks fails the member, as any other failure of it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_fails_while_a_group_is_made_fails_the_master() {
    let group = Group::unmade(3, 1_000_000, false).await;
    let disk = group.slots.read().unwrap()[2].disk.clone();
    disk.set_fault(Fault::FlushFailing);
    let refused = group.master(1).raft.initialize(group.members()).await.unwrap_err().to_string();
    assert!(refused.contains("master 3"), "{refused}");
    let raft = group.master(3).raft;
    let why = tokio::time::timeout(Duration::from_secs(20), raft.stopped()).await.unwrap();
    assert!(why.contains("this master's log can't be written any more"), "{why}");
    assert_eq!(raft.failure(), Some(why));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_senseless_change_of_members_is_refused_at_once() {
    let group = Group::new(3).await;
    let raft = group.master(group.leader().await).raft;
    let (four, member) = group.add().await;
    let of =
        |name: &str, address: &str| Member { name: name.into(), address: address.into(), ..member.clone() };
    let one = group.members()[&1].clone();
    for (id, member, words) in [
        (5, of("m5", &one.address), "master 1 is m1"),
        (5, of("m1", &member.address), "master 1 is m1"),
        (1, of("m1", &member.address), "there is a master 1 already"),
        // The master there has another id.
        (5, of("m5", &member.address), "this is master 4, the call is for master 5"),
        (5, of("m5", "127.0.0.1:1"), "can't connect"),
    ] {
        let refused = raft.change_members(BTreeMap::from([(id, member)]), BTreeSet::new()).await.unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
    }
    let refused = raft.change_members(BTreeMap::new(), BTreeSet::from([9])).await.unwrap_err();
    assert!(refused.to_string().contains("no master 9"), "{refused}");
    assert_eq!(raft.status().members.len(), 3);
    for _asked_again in 0..2 {
        let added = raft.change_members(BTreeMap::from([(four, member.clone())]), BTreeSet::new()).await;
        assert_eq!(added.unwrap(), [1, 2, 3, 4]);
    }
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_quorum_lets_its_lease_run_out() {
    let group = Group::new(3).await;
    // Well beyond what the silence may be afterwards.
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        group.put("while it leads", "1").await;
    }
    let leader = group.leader().await;
    for id in (1..=3).filter(|id| *id != leader) {
        group.kill(id, false).await;
    }
    let lone = group.master(leader).raft;
    group.until("the lease of the leader is over", || !lone.lease_valid()).await;
    assert!(!lone.is_leading());
    let silence = lone.silence();
    assert!(silence < Duration::from_secs(3), "it counts from when it led last, and is {silence:?}");
    // By its own word it is the leader still, to whom nobody is to be sent.
    let refused = lone.change_members(BTreeMap::new(), BTreeSet::new()).await.unwrap_err();
    assert!(matches!(refused, RaftError::NotLeader { leader: None }), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_loses_its_lease_before_another_leads() {
    let group = Group::new(3).await;
    for round in 0..4 {
        let old = group.leader().await;
        group.put("round", &round.to_string()).await;
        group.cut(old, true);
        let lone = group.master(old);
        group.until("the lease of the leader is over", || !lone.raft.lease_valid()).await;
        let error = lone.embedded.begin().get(b"round", Read::Snapshot).await.unwrap_err();
        assert_eq!(error, StoreError::NotLeader, "nothing is read once the lease is over");
        group.until("another leads", || group.leader_now().is_some_and(|leader| leader != old)).await;
        group.put("round", "new").await;
        group.cut(old, false);
        group.converge().await;
    }
}

/// A new group loses its leader before its third member has heard of anything: that one's log, empty as it is, began with the group, and
/// its vote counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_group_elects_with_a_member_that_has_heard_of_nothing_yet() {
    let group = Group::unmade(3, 1_000_000, false).await;
    group.deaf.lock().unwrap().insert(3);
    group.master(1).raft.initialize(group.members()).await.unwrap();
    group.put("k", "acknowledged").await;
    let leader = group.leader().await;
    group.kill(leader, true).await;
    // What the founding noted is on its disk.
    group.kill(3, true).await;
    group.start(3).await;
    group.deaf.lock().unwrap().clear();
    group.put("after", "v").await;
    let value = group.begin().get(b"k", Read::Snapshot).await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"acknowledged"[..]));
    group.start(leader).await;
    group.converge().await;
}

/// Where one has a log, nobody founds a group, nor notes that its own log begins with one: two of five that have lost theirs don't vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_group_is_made_and_nothing_noted_where_one_has_a_log() {
    let group = Group::new(3).await;
    group.put("k", "v").await;
    group.converge().await;
    for id in 1..=3 {
        group.kill(id, true).await;
    }
    for lost in [1, 2] {
        group.slots.write().unwrap()[lost - 1].disk = SimDisk::default();
    }
    group.start(1).await;
    group.start(2).await;
    let raft = group.master(1).raft;
    let unreached = raft.initialize(group.members()).await.unwrap_err().to_string();
    assert!(unreached.contains("master 3"), "{unreached}");
    group.start(3).await;
    let refused = raft.initialize(group.members()).await.unwrap_err().to_string();
    assert!(refused.contains("has lost its own"), "{refused}");
    for _several_election_timeouts in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(group.leader_now(), None, "elected by votes that were forgotten");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_leader_does_not_go_on_in_its_old_term() {
    let group = Group::new(1).await;
    for _ in 0..3 {
        group.put("a", "1").await;
        let before = group.master(1).raft.term();
        group.kill(1, true).await;
        group.start(1).await;
        group.leader().await;
        assert!(group.master(1).raft.term() > before);
    }
}

/// A follower gives its leader a lease by answering it, and that isn't on disk. Restarted, it votes for nobody while the leader may hold the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_follower_keeps_the_promise_of_its_earlier_life() {
    let group = Group::new(3).await;
    for round in 0..3 {
        let leader = group.leader().await;
        group.put("round", &round.to_string()).await;
        group.converge().await;
        let [follower, away] = [1, 2].map(|i| (leader - 1 + i) % 3 + 1);
        group.kill(away, false).await;
        let raft = group.master(leader).raft;
        // Answered by the one follower that is left, and by now cut off from it.
        group.put("round", "goes on").await;
        group.cut(leader, true);
        group.kill(follower, true).await;
        let restart = {
            let group = group.clone();
            tokio::spawn(async move { group.start(follower).await })
        };
        let address = group.slots.read().unwrap()[follower as usize - 1].address.clone();
        let link = Link::new(Arc::new(network(9)), address, Role::Master, LinkOptions::default());
        // Above whatever the members stand for meanwhile.
        let vote = wire::Vote { term: raft.term() + 10, node: away, committed: false };
        let last = wire::LogId { term: raft.term(), node: leader, index: 1_000_000 };
        let request =
            wire::VoteRequest { group: 0, vote: Some(vote), last: Some(last), to: follower, stored: true };
        loop {
            let asked =
                link.request::<_, wire::VoteAnswer>(Method::RaftVote, &request, Duration::from_secs(1));
            let granted = asked.await.is_ok_and(|answer| answer.granted);
            if granted {
                assert!(!raft.lease_valid(), "the follower voted while its leader held the lease");
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        restart.await.unwrap();
        group.start(away).await;
        group.cut(leader, false);
        group.converge().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_purged_but_never_beyond_what_the_store_has_flushed() {
    let group = Group::with(3, 25).await;
    let mut purged = [0; 3];
    // While a transaction reads at an old version, the leader's store flushes no further than that.
    let held = group.begin();
    held.get(b"k0", Read::Snapshot).await.unwrap();
    let mut held = Some(held);
    for i in 0..20_000 {
        if i == 1_000 {
            held = None;
        }
        if purged.iter().all(|index| *index > 600) {
            break;
        }
        group.put(&format!("k{}", i % 40), "v").await;
        for id in 1..=3 {
            let master = group.master(id);
            if let Some(index) = master.raft.status().purged {
                let flushed = master.embedded.flushed_index();
                assert!(index < flushed, "entry {index} was purged, the store has flushed {flushed}");
                purged[id as usize - 1] = index;
            }
        }
    }
    assert!(held.is_none(), "the leader's log wasn't purged while its store couldn't flush");
    assert!(purged.iter().all(|index| *index > 600), "the logs were purged up to {purged:?} only");
    for id in 1..=3 {
        group.kill(id, true).await;
        group.start(id).await;
    }
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_leaders_log_makes_it_give_way_until_there_is_room() {
    let group = Group::new(3).await;
    group.put("a", "1").await;
    let full = group.leader().await;
    // Its log's segments have 256 KiB: the disk fills up but for one.
    let disk = group.slots.read().unwrap()[full as usize - 1].disk.clone();
    let ballast = disk.open(Path::new("/ballast"), OpenMode::Create).unwrap();
    let free = disk.space(Path::new("/")).unwrap().bytes_free;
    ballast.allocate(free).unwrap();
    let value = "v".repeat(50_000);
    for i in 0..20 {
        group.put(&format!("k{}", i % 4), &value).await;
    }
    assert_ne!(group.leader().await, full);
    assert!(group.master(full).raft.failure().is_some_and(|reason| reason.contains("full")));
    ballast.set_len(0).unwrap();
    group.converge().await;
    assert_eq!(group.master(full).raft.failure(), None);
    group.kill(full, true).await;
    group.start(full).await;
    group.converge().await;
}

fn begin(id: &str) -> wire::SnapshotBegin {
    let vote = wire::Vote { term: 1_000, node: 9, committed: true };
    wire::SnapshotBegin { vote: Some(vote), id: id.into(), ..Default::default() }
}

fn page(id: &str, sequence: u64) -> wire::SnapshotPage {
    let pair = wire::Pair { key: "k".into(), value: "v".into() };
    wire::SnapshotPage { group: 0, id: id.into(), sequence, pairs: vec![pair] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_takes_no_page_of_another_transfer_and_is_refused_when_it_doesnt_add_up() {
    let group = Group::new(3).await;
    group.put("a", "1").await;
    let address = group.slots.read().unwrap()[1].address.clone();
    let link = Link::new(Arc::new(network(9)), address, Role::Master, LinkOptions::default());
    let wait = Duration::from_secs(5);
    let answered = async |method, message: &dyn Encode| {
        link.call(method, message.bytes(), bytes::Bytes::new(), wait)
            .await
            .map(drop)
            .map_err(|e| e.to_string())
    };
    answered(Method::RaftSnapshotBegin, &begin("one")).await.unwrap();
    answered(Method::RaftSnapshotPage, &page("one", 0)).await.unwrap();
    answered(Method::RaftSnapshotBegin, &begin("two")).await.unwrap();
    assert!(
        answered(Method::RaftSnapshotPage, &page("one", 1)).await.is_err(),
        "a page of an earlier transfer"
    );
    assert!(answered(Method::RaftSnapshotPage, &page("two", 1)).await.is_err(), "a page out of order");
    answered(Method::RaftSnapshotBegin, &begin("three")).await.unwrap();
    answered(Method::RaftSnapshotPage, &page("three", 0)).await.unwrap();
    let end =
        wire::SnapshotEnd { group: 0, id: "three".into(), pages: 1, digest: 7, vote: begin("three").vote };
    assert!(answered(Method::RaftSnapshotEnd, &end).await.unwrap_err().contains("add up"));
    group.put("a", "2").await;
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_masters_of_the_region_are_answered() {
    let group = Group::new(1).await;
    let address = group.slots.read().unwrap()[0].address.clone();
    for (region, role) in [("r", Role::Client), ("r", Role::Chunkserver), ("elsewhere", Role::Master)] {
        let stranger = Identity { cluster: "t".into(), region: region.into(), role, name: "x".into() };
        let network = Arc::new(PlainNetwork::new(stranger));
        let link = Link::new(network, address.clone(), Role::Master, LinkOptions::default());
        let call = link.call(
            Method::RaftSnapshotBegin,
            begin("x").bytes(),
            bytes::Bytes::new(),
            Duration::from_secs(5),
        );
        let refused = call.await.unwrap_err().to_string();
        assert!(refused.contains("may not take part in Raft"), "{refused}");
    }
}

trait Encode: Sync {
    fn bytes(&self) -> bytes::Bytes;
}

impl<M: prost::Message> Encode for M {
    fn bytes(&self) -> bytes::Bytes {
        self.encode_to_vec().into()
    }
}

thread_local! {
    static COUNTED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Counts this crate's events that hold a text, on each thread by itself. It is everyone's subscriber: one that only a test's thread has
/// may hear nothing, for tracing then asks the thread that comes to an event first whether anybody listens.
struct Counter(&'static str);

impl tracing::Subscriber for Counter {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("mooseng_raft")
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{value:?} ");
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        if message.0.contains(self.0) {
            COUNTED.set(COUNTED.get() + 1);
        }
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Found by the simulation: a leader whose followers were gone asked for confirmation over and over without a pause, for each refused
/// connection answered at once and changed the metrics that it waited on.
#[tokio::test]
async fn a_leader_that_reaches_nobody_asks_at_its_pace() {
    tracing::subscriber::set_global_default(Counter("leadership isn't confirmed")).unwrap();
    let group = Group::new(3).await;
    let leader = group.leader().await;
    for id in (1..=3).filter(|id| *id != leader) {
        group.kill(id, false).await;
    }
    // The test's runtime has no thread but this one.
    let count = || COUNTED.get();
    for _ in 0..3000 {
        if count() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(count() > 0, "the leader that was left alone asked within 30 s");
    let before = count();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // A heartbeat lasts 60 ms.
    assert!(count() - before <= 20, "{} times in a second", count() - before);
}
