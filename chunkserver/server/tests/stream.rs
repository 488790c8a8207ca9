//! The chunk data stream: chains, order, seals, epochs, tickets.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::*;
use mooseng_chunk::ticket::{APPEND, Key, READ};
use mooseng_ports::disk::sim::Fault;
use mooseng_transport::{Answer, Incoming, Limits, Network, PlainNetwork, Service, Services, serve};
use mooseng_wire::Epoch;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Append, ChunkStat, StatChunk};
use mooseng_wire::method::Method;
use prost::Message;
use tokio_util::sync::CancellationToken;

fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 + i / 4096) as u8).collect()
}

async fn three() -> [Running; 3] {
    [start("a").await, start("b").await, start("c").await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_three_takes_pipelined_appends_and_gives_them_back() {
    let [a, b, c] = three().await;
    let chain = vec![member("b", b.server.address()), member("c", c.server.address())];
    let client = Caller::client(&a);
    let all = pattern(1_000_000);
    // All in flight at once, the later ones sent first.
    let sizes = [70_000usize, 1, 4096, 300_000, 100_000, 525_903];
    let mut offset = 0;
    let mut calls = Vec::new();
    for size in sizes {
        let (client, append, bytes) =
            (client.clone(), append(7, offset as u64, chain.clone()), all[offset..offset + size].to_vec());
        offset += size;
        calls.push((offset as u64, async move { client.append(append, &bytes).await }));
    }
    assert_eq!(offset, all.len());
    let answers = futures::future::join_all(
        calls.into_iter().rev().map(|(end, call)| async move { (end, call.await.unwrap()) }),
    )
    .await;
    for (end, appended) in answers {
        assert!(appended.length >= end && appended.flushed >= end, "{appended:?} doesn't cover {end}");
    }
    for (name, running) in [("a", &a), ("b", &b), ("c", &c)] {
        // Power loss right after the answer.
        running.stop.cancel();
        running.disk.crash(|_| 0);
        let again = start_on(running.disk.clone(), config(name, vec!["127.0.0.1:1".into()])).await;
        let master = Caller::new(id("master", "m1"), again.server.address());
        let mut read = Vec::new();
        for at in [0, 400_000, 800_000] {
            read.extend_from_slice(
                &master.read(7, at, 400_000.min(1_000_000 - at as u32), Bytes::new()).await.unwrap(),
            );
        }
        assert!(read == all);
    }
}

#[tokio::test]
async fn a_repeated_append_is_answered_again_and_another_is_refused() {
    let [a, b, _c] = three().await;
    let chain = vec![member("b", b.server.address())];
    let client = Caller::client(&a);
    for _ in 0..2 {
        assert_eq!(client.append(append(1, 0, chain.clone()), b"hello").await.unwrap().flushed, 5);
    }
    let refused = client.append(append(1, 0, chain.clone()), b"HELLO").await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::OffsetMismatch);
    let gap = client.append(append(1, 100, chain), b"x").await.unwrap_err();
    assert_eq!(gap.code(), ErrorCode::OffsetMismatch, "an append whose forerunner never comes");
}

/// Answers nothing, ever.
struct Hung;

#[async_trait]
impl Service for Hung {
    async fn call(&self, _: Incoming) -> Result<Answer, CallError> {
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_or_hung_or_failing_middle_member_is_named_and_the_rest_seals() {
    let [a, b, c] = three().await;
    let client = Caller::client(&a);
    let good = vec![member("b", b.server.address()), member("c", c.server.address())];
    client.append(append(1, 0, good.clone()), b"acknowledged ").await.unwrap();

    // Nobody listens.
    let dead = vec![member("b", "127.0.0.1:1"), member("c", c.server.address())];
    assert_eq!(named(&client.append(append(1, 13, dead), b"x").await.unwrap_err()), "b");

    // Connected, and silent.
    let network = PlainNetwork::new(id("chunkserver", "b"));
    let listener = network.listen("127.0.0.1:0").await.unwrap();
    let hung = vec![member("b", &listener.local_address()), member("c", c.server.address())];
    let stop = CancellationToken::new();
    tokio::spawn(serve(
        listener,
        Services { stream: Arc::new(Hung), grpc: None, allow: |_, _| Ok(()) },
        Limits::default(),
        stop.clone(),
    ));
    assert_eq!(named(&client.append(append(2, 0, hung), b"x").await.unwrap_err()), "b");

    // The last one is dead: the middle one names it.
    let last = vec![member("b", b.server.address()), member("c", "127.0.0.1:1")];
    assert_eq!(named(&client.append(append(3, 0, last), b"x").await.unwrap_err()), "c");

    // The middle one's disk fails.
    b.disk.set_fault(Fault::Failing);
    assert_eq!(named(&client.append(append(1, 13, good.clone()), b"x").await.unwrap_err()), "b");

    // The others are sealed at what was acknowledged; late appends are refused.
    for running in [&a, &c] {
        let master = Caller::new(id("master", "m1"), running.server.address());
        assert_eq!(master.seal(1, 1, 13, Bytes::new()).await.unwrap(), 13);
        let client = Caller::client(running);
        assert_eq!(
            client.append(append(1, 13, vec![]), b"x").await.unwrap_err().code(),
            ErrorCode::ChunkSealed
        );
        assert_eq!(client.read(1, 0, 13, ticket()).await.unwrap(), &b"acknowledged "[..]);
        assert!(client.read(1, 0, 14, ticket()).await.is_err());
    }
    stop.cancel();
}

#[tokio::test]
async fn our_own_disks_failure_is_ours() {
    let a = start("a").await;
    let client = Caller::client(&a);
    client.append(append(1, 0, vec![]), b"x").await.unwrap();
    a.disk.set_fault(Fault::Full);
    assert_eq!(client.append(append(1, 1, vec![]), b"x").await.unwrap_err().code(), ErrorCode::NoSpace);
    a.disk.set_fault(Fault::Failing);
    assert_eq!(client.append(append(1, 1, vec![]), b"x").await.unwrap_err().code(), ErrorCode::DiskFailed);
    a.disk.set_fault(Fault::None);
    assert_eq!(
        client.append(append(1, 1, vec![]), b"x").await.unwrap_err().code(),
        ErrorCode::DiskFailed,
        "a copy in doubt stays so"
    );
}

#[tokio::test]
async fn a_stale_epoch_is_refused_down_the_chain() {
    let [a, b, _c] = three().await;
    let client = Caller::client(&a);
    let chain = vec![member("b", b.server.address())];
    client.append(append(1, 0, chain.clone()), b"x").await.unwrap();
    // Only the second member has heard of epoch 5.
    b.server.store().see_epoch(0, Epoch(5)).unwrap();
    let refused = client.append(append(1, 1, chain), b"x").await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::StaleEpoch, "the writer is at fault, not the member");
    let master = Caller::new(id("master", "m1"), b.server.address());
    assert_eq!(master.seal(1, 1, 1, Bytes::new()).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    assert_eq!(b.server.store().highest_epoch().0, 5);
}

/// An epoch that counts ends all before it, for good: whoever has a ticket to write may not name one.
#[tokio::test]
async fn an_epoch_that_no_master_has_told_of_is_refused() {
    let a = start("a").await;
    let (client, peer) = (Caller::client(&a), Caller::new(id("chunkserver", "b"), a.server.address()));
    client.append(append(1, 0, vec![]), b"x").await.unwrap();
    for caller in [&client, &peer] {
        let invented = Append { epoch: u64::MAX, ..append(1, 1, vec![]) };
        let refused = caller.append(invented, b"x").await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Unavailable, "{refused:?}");
        assert!(refused.message.contains("no master has told"), "{refused:?}");
    }
    let refused = client.seal(1, u64::MAX, 1, ticket()).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Unavailable, "{refused:?}");
    assert_eq!(a.server.store().highest_epoch().0, 1);
    client.append(append(1, 1, vec![]), b"y").await.unwrap();

    // One that a master tells of while the call waits is taken.
    let later = Append { epoch: 2, ..append(2, 0, vec![]) };
    let told = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        a.server.store().see_epoch(0, Epoch(2)).unwrap();
    };
    let (appended, ()) = tokio::join!(client.append(later, b"x"), told);
    appended.unwrap();
}

#[tokio::test]
async fn no_ticket_no_chunk() {
    let [a, b, _c] = three().await;
    let client = Caller::client(&a);
    client.append(append(1, 0, vec![]), b"x").await.unwrap();
    let foreign = Key { id: 1, secret: vec![8; 32] };
    let unknown = Key { id: 9, secret: vec![7; 32] };
    let table = [
        (Bytes::new(), ErrorCode::PermissionDenied),
        (Bytes::from_static(b"nonsense"), ErrorCode::PermissionDenied),
        (ticket_with(&key(), READ | APPEND, -40_000), ErrorCode::PermissionDenied),
        (ticket_with(&foreign, READ | APPEND, 60_000), ErrorCode::PermissionDenied),
        (ticket_with(&unknown, READ | APPEND, 60_000), ErrorCode::Unavailable),
    ];
    for (ticket, code) in table {
        let with = Append { ticket: ticket.clone(), ..append(1, 1, vec![]) };
        assert_eq!(client.append(with, b"x").await.unwrap_err().code(), code);
        assert_eq!(client.read(1, 0, 1, ticket.clone()).await.unwrap_err().code(), code);
        assert_eq!(client.seal(1, 1, 1, ticket).await.unwrap_err().code(), code);
    }
    let read_only = ticket_with(&key(), READ, 60_000);
    assert!(client.read(1, 0, 1, read_only.clone()).await.is_ok());
    assert!(client.append(Append { ticket: read_only.clone(), ..append(1, 1, vec![]) }, b"x").await.is_err());
    assert!(client.seal(1, 1, 1, read_only).await.is_err());
    // Just expired: clocks differ.
    assert!(client.read(1, 0, 1, ticket_with(&key(), READ, -10_000)).await.is_ok());
    // A chunkserver's certificate opens nothing either, nor does one of another region; a ticket does.
    let peer = Caller::new(id("chunkserver", "b"), a.server.address());
    assert!(peer.append(Append { ticket: Bytes::new(), ..append(1, 1, vec![]) }, b"x").await.is_err());
    let afar = Caller::new(abroad("client", "c1"), a.server.address());
    assert_eq!(afar.read(1, 0, 1, Bytes::new()).await.unwrap_err().code(), ErrorCode::PermissionDenied);
    assert_eq!(afar.read(1, 0, 1, ticket()).await.unwrap(), &b"x"[..]);
    // A chain that leads back is refused, so is a packet that was damaged on the way.
    let back = vec![member("b", b.server.address()), member("a", a.server.address())];
    assert_eq!(client.append(append(1, 1, back), b"x").await.unwrap_err().code(), ErrorCode::InvalidRequest);
    let damaged = Append { crc: 1, ..append(1, 1, vec![]) };
    assert_eq!(client.append(damaged, b"x").await.unwrap_err().code(), ErrorCode::InvalidRequest);
}

#[tokio::test]
async fn masters_see_a_chunks_state() {
    let a = start("a").await;
    Caller::client(&a).append(append(1, 0, vec![]), b"12345").await.unwrap();
    let master = Caller::new(id("master", "m1"), a.server.address());
    let stat = |chunk| StatChunk { chunk, ticket: Bytes::new() };
    let answer = master.call(Method::ChunkStat, &stat(1), Bytes::new()).await.unwrap();
    assert_eq!(
        ChunkStat::decode(answer.body).unwrap(),
        ChunkStat { length: 5, flushed: 5, sealed: false, epoch: 1 }
    );
    assert_eq!(
        master.call(Method::ChunkStat, &stat(2), Bytes::new()).await.unwrap_err().code(),
        ErrorCode::NotFound
    );
    assert_eq!(
        master.call(Method::Renew, &stat(2), Bytes::new()).await.unwrap_err().code(),
        ErrorCode::InvalidRequest
    );
}
