//! Exactly-once outcomes, sessions' lives, epochs.

use std::sync::atomic::Ordering;

use mooseng_namespace::OpError::ChunkExists;
use mooseng_namespace::{DriverError, OpError, driver, sessions, upkeep};
use mooseng_schema::Record;
use mooseng_schema::ids::{self, IdKind, IdsUptoRecord};
use mooseng_store::{Store, StoreError, Transaction};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{Epoch, Incarnation, RequestNumber, SessionId, VolumeId};

use crate::harness::*;

fn mkdir(text: &str) -> FsRequest {
    request(&root(), Op::Mkdir(Mkdir { parent: ROOT, name: name(text), mode: 0o755, alone: false }))
}

#[tokio::test]
async fn a_retry_returns_the_first_outcome() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let first = client.send(1, &mkdir("a")).await.unwrap();
    assert_eq!(client.send(1, &mkdir("a")).await.unwrap(), first);
    // An error is an outcome, too, even if it wouldn't be one by now.
    assert_eq!(errno(&client.send(2, &mkdir("a")).await.unwrap()), 17);
    let rmdir = request(&root(), Op::Rmdir(Rmdir { parent: ROOT, name: name("a") }));
    assert_eq!(errno(&client.send(3, &rmdir).await.unwrap()), 0);
    assert_eq!(errno(&client.send(2, &mkdir("a")).await.unwrap()), 17);
    assert_eq!(client.send(1, &mkdir("a")).await.unwrap(), first);
    assert!(client.list(ROOT, 10, false).await.is_empty());
}

#[tokio::test]
async fn a_number_stands_for_one_request() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    client.send(1, &mkdir("a")).await.unwrap();
    let other = client.send(1, &mkdir("b")).await;
    assert_eq!(other, Err(DriverError::NumberReused(RequestNumber(1))));
    assert_eq!(client.send(0, &mkdir("c")).await, Err(DriverError::NoNumber));
}

#[tokio::test]
async fn answered_outcomes_are_forgotten_and_never_run_again() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    for number in 1..=400 {
        client.send(number, &mkdir(&format!("d{number}"))).await.unwrap();
        let range = mooseng_schema::session::outcome_range(SessionId(1));
        let dump = volume.store.inner.dump();
        let kept = dump.range(range.begin..range.end).count();
        assert!(kept <= 70, "{kept} outcomes are kept");
    }
    let rmdir = request(&root(), Op::Rmdir(Rmdir { parent: ROOT, name: name("d5") }));
    client.send(401, &rmdir).await.unwrap();
    assert_eq!(client.send(5, &mkdir("d5")).await, Err(DriverError::OutcomeForgotten(RequestNumber(5))));
    // Also when the late retry itself claims nothing about what was answered.
    let mut call = client.call_of(5);
    call.oldest_unanswered = RequestNumber(1);
    let ctx = volume.context(&mkdir("d5"));
    let late = volume.driver.run(call, &ctx, &mkdir("d5"), deadline()).await;
    assert_eq!(late, Err(DriverError::OutcomeForgotten(RequestNumber(5))));
    let (floor, _) = volume
        .driver
        .transact(deadline(), |tx| Box::pin(sessions::outcome_floor(tx, SessionId(1))))
        .await
        .unwrap();
    assert!(floor.0 > 300);
}

#[tokio::test]
async fn numbers_dont_run_far_ahead() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let mut call = client.call_of(driver::NUMBERS_AHEAD_MAX + 1);
    call.oldest_unanswered = RequestNumber(1);
    let ctx = volume.context(&mkdir("a"));
    let answer = volume.driver.run(call, &ctx, &mkdir("a"), deadline()).await;
    assert!(matches!(answer, Err(DriverError::TooManyUnanswered { .. })));
}

#[tokio::test]
async fn a_new_life_keeps_outcomes_and_refuses_old_work() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let first = client.send(1, &mkdir("a")).await.unwrap();
    let session = SessionId(1);
    volume.driver.transact(deadline(), |tx| Box::pin(sessions::lapse_session(tx, session, 7))).await.unwrap();
    assert_eq!(client.send(2, &mkdir("b")).await, Err(DriverError::SessionLapsed(session)));
    let (life, _) = volume
        .driver
        .transact(deadline(), |tx| Box::pin(sessions::bump_incarnation(tx, session)))
        .await
        .unwrap();
    assert_eq!(life, Some(Incarnation(2)));
    // Who asks for it again, not having heard of it, isn't given another.
    let (again, _) = volume
        .driver
        .transact(deadline(), |tx| Box::pin(sessions::come_back(tx, session, Incarnation(1))))
        .await
        .unwrap();
    assert_eq!(again, Some(Incarnation(2)));
    assert!(matches!(client.send(2, &mkdir("b")).await, Err(DriverError::StaleIncarnation { .. })));
    // Old numbers still return their outcomes.
    assert_eq!(client.send(1, &mkdir("a")).await.unwrap(), first);
    client.incarnation.store(2, Ordering::Relaxed);
    assert_eq!(client.send(1, &mkdir("a")).await.unwrap(), first);
    assert_eq!(errno(&client.send(2, &mkdir("b")).await.unwrap()), 0);
    let listed = volume
        .driver
        .transact(deadline(), |tx| Box::pin(sessions::list_sessions(tx, VolumeId(0), None, 10)))
        .await
        .unwrap()
        .0;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].0, listed[0].1.incarnation), (session, 2));
    let closed =
        volume.driver.transact(deadline(), |tx| Box::pin(sessions::close_session(tx, session))).await;
    assert!(closed.unwrap().0);
    assert_eq!(client.send(3, &mkdir("c")).await, Err(DriverError::SessionExpired(session)));
}

#[tokio::test]
async fn another_epoch_cant_change_the_volume() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    volume
        .driver
        .transact(deadline(), |tx| Box::pin(upkeep::raise_epoch(tx, VolumeId(0), Epoch(2))))
        .await
        .unwrap();
    let answer = client.send(1, &mkdir("a")).await;
    assert_eq!(answer, Err(DriverError::StaleEpoch { asked: Epoch(1), current: Epoch(2) }));
}

#[tokio::test]
async fn a_life_that_ends_in_mid_change_stops_the_commit() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    // The change read the session, then the session began its next life, then the change commits.
    let tx = volume.store.begin();
    let key = mooseng_schema::session::key(SessionId(1));
    tx.get(&key, mooseng_store::Read::Conflicting).await.unwrap();
    tx.set(b"x", b"y");
    volume
        .driver
        .transact(deadline(), |tx| Box::pin(sessions::bump_incarnation(tx, SessionId(1))))
        .await
        .unwrap();
    assert_eq!(tx.commit().await, Err(StoreError::Conflict));
    drop(client);
}

#[tokio::test]
async fn id_ranges_never_overlap() {
    let volume = Volume::with_faults(5, 0.2).await;
    let mut seen = std::collections::BTreeSet::from([1]);
    for _ in 0..50 {
        let (range, _) = volume
            .driver
            .transact(deadline(), |tx| Box::pin(upkeep::reserve_ids(tx, IdKind::Inode, VolumeId(0), 10)))
            .await
            .unwrap();
        for id in range {
            assert!(seen.insert(id), "{id} was given twice");
        }
    }
}

/// Whoever leads next knows by that whose they are.
#[tokio::test]
async fn a_sessions_record_names_the_newest_ids_that_it_was_given() {
    const RUNS: u64 = 20;
    let volume = Volume::new().await;
    let _client = volume.client(1).await;
    let give = async |session: u64, run: u64| {
        let giving = volume.driver.transact(deadline(), move |tx| {
            Box::pin(sessions::give_inodes(tx, SessionId(session), 10 * run..10 * run + 10))
        });
        giving.await.unwrap().0
    };
    for run in 0..RUNS {
        assert!(give(1, run).await);
        assert!(give(1, run).await, "as where the outcome isn't known");
    }
    assert!(!give(2, RUNS).await, "there is no such session");
    // Its next life goes on with them.
    let lives = volume
        .driver
        .transact(deadline(), |tx| Box::pin(sessions::bump_incarnation(tx, SessionId(1))))
        .await
        .unwrap();
    assert_eq!(lives.0, Some(Incarnation(2)));
    let (record, _) = volume
        .driver
        .transact(deadline(), |tx| Box::pin(sessions::load_session(tx, SessionId(1))))
        .await
        .unwrap();
    let firsts: Vec<u64> = record.unwrap().inode_runs.iter().map(|run| run.first).collect();
    let newest: Vec<u64> = (RUNS - sessions::INODE_RUNS_MAX as u64..RUNS).map(|run| 10 * run).collect();
    assert_eq!(firsts, newest);
}

/// What is beyond is another home's to give.
#[tokio::test]
async fn ids_end_where_those_of_the_epoch_end() {
    let volume = Volume::with_faults(6, 0.2).await;
    let reserve = async || {
        let reserving = volume
            .driver
            .transact(deadline(), |tx| Box::pin(upkeep::reserve_ids(tx, IdKind::Inode, VolumeId(0), 3_000)));
        reserving.await.map(|(range, _)| range)
    };
    let give = async |end: u64| {
        let giving = volume.driver.transact(deadline(), |tx| {
            let upto = IdsUptoRecord { epoch: 1, end };
            tx.set(&ids::upto_key(IdKind::Inode, VolumeId(0)), &upto.to_value());
            Box::pin(async { Ok(()) })
        });
        giving.await.unwrap();
    };
    let until_used_up = async || {
        let mut given = 0;
        loop {
            match reserve().await {
                Ok(range) => given = range.end,
                Err(error) => return (given, error),
            }
        }
    };
    for end in [8_192, 20_000] {
        give(end).await;
        assert_eq!(until_used_up().await, (end, DriverError::Op(OpError::IdsUsedUp(end))));
    }
}

#[tokio::test]
async fn a_chunk_isnt_allocated_in_anothers_place() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let request = request(&root(), Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] }));
    let first = volume.context(&request);
    let run = async |number, ctx| volume.driver.run(client.call_of(number), ctx, &request, deadline()).await;
    run(10, &first).await.unwrap();
    // Another home was given the same ids.
    let second = mooseng_namespace::OpContext { ids: first.ids, ..volume.context(&request) };
    let taken = ChunkExists(first.ids.chunk.unwrap());
    assert_eq!(run(11, &second).await.unwrap_err(), DriverError::Op(taken));
    volume.check();
}

#[tokio::test]
async fn only_the_master_reaps_and_everybody_says_who_asks() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    assert_eq!(client.errno(Op::Reap(Reap { inodes: vec![ROOT] })).await, 1);
    let nobody = FsRequest { caller: None, ..mkdir("a") };
    assert!(matches!(client.send(9, &nobody).await, Err(DriverError::Op(_))));
    let reply = volume.own(Op::Reap(Reap { inodes: vec![ROOT, 77] })).await;
    assert!(matches!(reply, Reply::Reaped(_)));
    volume.check();
}
