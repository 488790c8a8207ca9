//! A group goes on from one master's disk; the others, should they come back with theirs, are kept out.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Group, WAIT_MAX};
use mooseng_embedded::{Base, MemoryBase, Position};
use mooseng_ports::disk::sim::SimDisk;
use mooseng_raft::lineage::Line;
use mooseng_raft::recover::{RecoverError, Recovered, Remains, alone, look};
use mooseng_store::{Read, Store, Transaction};
use mooseng_wal::{LogId, Options, Wal};

const NOW_S: u64 = 1_900_000_000;

const DIR: &str = "/raft";

/// The disk of a master, which must be down: its log, and where its store is.
fn disk_of(group: &Group, id: u64) -> (SimDisk, Wal, Position) {
    let disk = group.slots.read().unwrap()[id as usize - 1].disk.clone();
    let store = MemoryBase::on_disk(Arc::new(disk.clone()), Path::new("/store")).unwrap();
    let options = Options { segment_bytes: 256 << 10, ..Options::default() };
    let log = Wal::open(Arc::new(disk.clone()), Path::new(DIR), options).unwrap();
    (disk, log, store.position().position)
}

/// Recovers on a master's disk, which must be down.
fn recover(group: &Group, id: u64) -> (Remains, Recovered) {
    let (disk, log, store) = disk_of(group, id);
    let dir = Path::new(DIR);
    let remains = look(&disk, dir, &log, &store).unwrap();
    let recovered = alone(&disk, dir, &log, &remains, id, NOW_S).unwrap();
    (remains, recovered)
}

async fn get(group: &Group, key: &str) -> Option<String> {
    let tx = group.begin();
    let value = tx.get(key.as_bytes(), Read::Snapshot).await.unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

async fn ends(group: &Group, id: u64) -> String {
    let raft = group.master(id).raft;
    let stopped = tokio::time::timeout(WAIT_MAX, raft.stopped()).await;
    let why = stopped.unwrap_or_else(|_| panic!("master {id} of before goes on"));
    group.kill(id, false).await;
    why
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_on_from_one_disk_and_the_others_are_kept_out() {
    let group = Group::new(3).await;
    group.put("kept", "1").await;
    group.converge().await;
    // What the others acknowledge without it is lost with them.
    group.cut(1, true);
    group.until("another one to lead", || group.leader_now().is_some_and(|leader| leader != 1)).await;
    group.put("lost", "2").await;
    for id in [1, 2, 3] {
        group.kill(id, false).await;
    }
    group.cut(1, false);

    let (remains, recovered) = recover(&group, 1);
    assert_eq!(remains.members.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert!(!remains.can_decide(&BTreeSet::from([1])) && remains.can_decide(&BTreeSet::from([1, 3])));
    assert_eq!(recovered.line, Line(u32::try_from(NOW_S).unwrap()));
    assert!(recovered.term > remains.term + (1 << 31));
    group.start(1).await;
    assert_eq!(group.leader().await, 1);
    assert!(group.master(1).raft.term() > recovered.term - 1);
    assert_eq!(get(&group, "kept").await.as_deref(), Some("1"));
    assert_eq!(get(&group, "lost").await, None);
    group.put("new", "3").await;

    // One after the other, and the second isn't even needed for a majority of what was.
    for id in [2, 3] {
        group.start(id).await;
        let why = ends(&group, id).await;
        assert!(why.contains("recovered without it"), "{why}");
    }
    assert_eq!(group.leader().await, 1);
    assert_eq!(get(&group, "new").await.as_deref(), Some("3"));

    // Nor is one taken in that is added with its old disk; a new one is.
    group.start(3).await;
    let member = group.members()[&3].clone();
    let added = group.master(1).raft.change_members(BTreeMap::from([(3, member)]), BTreeSet::new()).await;
    assert!(added.is_err(), "{added:?}");
    ends(&group, 3).await;
    let (four, member) = group.add().await;
    let (five, other) = group.add().await;
    let add = BTreeMap::from([(four, member), (five, other)]);
    let voters = group.master(1).raft.change_members(add, BTreeSet::new()).await.unwrap();
    assert_eq!(voters, [1, four, five]);
    group.put("with others", "4").await;
    group.converge_among(&[1, four, five]).await;

    // The line stays with them: the one that was left isn't needed.
    group.kill(1, true).await;
    group.put("without it", "5").await;
    group.kill(four, true).await;
    group.start(four).await;
    group.start(1).await;
    group.converge_among(&[1, four, five]).await;
    for key in ["kept", "new", "with others", "without it"] {
        assert!(get(&group, key).await.is_some(), "{key}");
    }
}

/// Found by review: a crash between a snapshot's installation and the purge behind it left a store ahead of its log. The entry that makes the group was put behind
/// the log, and a start let go of it with all else that the store had: the group was the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_ahead_of_its_log_is_gone_on_from() {
    for diverged in [false, true] {
        let group = Group::new(3).await;
        for n in 0..5 {
            group.put(&format!("kept {n}"), "1").await;
        }
        group.converge().await;
        let embedded = group.master(1).embedded;
        embedded.expire().unwrap();
        embedded.flush().await.unwrap();
        drop(embedded);
        for id in [1, 2, 3] {
            group.kill(id, false).await;
        }
        let (disk, log, store) = disk_of(&group, 1);
        let applied = LogId { term: store.term, node: store.node, index: store.index - 1 };
        log.truncate(applied.index - 2).unwrap();
        if diverged {
            // Entries of an earlier term, which nobody acknowledged: more of them than the store has.
            let blank = |index| {
                let id = LogId { term: 0, node: 2, index };
                mooseng_wal::Entry { id, payload: bytes::Bytes::new() }
            };
            log.append((applied.index - 2..applied.index + 3).map(blank).collect()).unwrap();
        }
        let remains = look(&disk, Path::new(DIR), &log, &store).unwrap();
        assert_eq!(remains.ahead, Some(applied));
        assert_eq!((remains.last, remains.applied), ((applied.term, applied.index), applied.index));
        assert!(remains.committed >= Some(applied.index));
        assert_eq!(remains.members.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        drop(log);

        let (_, recovered) = recover(&group, 1);
        assert_eq!(recovered.index, applied.index + 1);
        let (disk, log, store) = disk_of(&group, 1);
        assert_eq!((log.purged(), log.last().map(|last| last.index)), (Some(applied), Some(recovered.index)));
        let remains = look(&disk, Path::new(DIR), &log, &store).unwrap();
        assert_eq!((remains.ahead, remains.members.len()), (None, 1), "the same can be done again");
        drop(log);
        group.start(1).await;
        assert_eq!(group.leader().await, 1);
        for n in 0..5 {
            assert_eq!(get(&group, &format!("kept {n}")).await.as_deref(), Some("1"));
        }
        group.put("new", "2").await;
        assert_eq!(get(&group, "new").await.as_deref(), Some("2"));
    }
}

#[test]
fn a_log_without_its_store_is_refused() {
    let (disk, dir) = (SimDisk::default(), Path::new("/raft"));
    let log = Wal::open(Arc::new(disk.clone()), dir, Options::default()).unwrap();
    assert!(matches!(look(&disk, dir, &log, &Position::default()), Err(RecoverError::Empty)));
    log.purge(LogId { term: 3, node: 1, index: 70 }).unwrap();
    let store = Position { index: 70, ..Position::default() };
    for store in [Position::default(), store] {
        let refused = look(&disk, dir, &log, &store).unwrap_err();
        assert!(matches!(refused, RecoverError::StoreLost { purged: 70, .. }), "{refused}");
    }
    let store = Position { index: 71, ..Position::default() };
    assert!(look(&disk, dir, &log, &store).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_can_be_done_twice_and_each_time_begins_a_later_line() {
    let group = Group::new(1).await;
    group.put("k", "1").await;
    let mut before = Line(0);
    for round in 0..3 {
        group.kill(1, true).await;
        let (_, recovered) = recover(&group, 1);
        assert!(recovered.line > before, "round {round}");
        before = recovered.line;
        group.start(1).await;
        tokio::time::timeout(Duration::from_secs(20), group.leader()).await.unwrap();
        assert_eq!(get(&group, "k").await.as_deref(), Some("1"));
        group.put("k2", &round.to_string()).await;
    }
}
