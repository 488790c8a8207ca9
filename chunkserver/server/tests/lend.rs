//! Lending files to clients on this host: who is given one, with real files and a real socket.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::*;
use mooseng_chunk::ticket::{APPEND, READ};
use mooseng_chunkserver::{ChunkserverConfig, ChunkserverServer};
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::os::OsDisk;
use mooseng_transport::descriptors::{Token, boot_id, fetch, our_uid};
use mooseng_transport::{Blocking, PlainNetwork};
use mooseng_wire::admin::TicketKey;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::chunk::{Lend, LendRefusal, Lent};
use mooseng_wire::method::Method;
use prost::Message;
use tokio_util::sync::CancellationToken;

struct OnDisk {
    server: ChunkserverServer,
    stop: CancellationToken,
}

async fn start_in(dir: &Path, lends: bool) -> OnDisk {
    let config = ChunkserverConfig {
        data_dirs: vec![dir.join("data")],
        state_dir: dir.join("state"),
        same_host_reads: lends,
        ..config("a", vec!["127.0.0.1:1".into()])
    };
    let network = Arc::new(PlainNetwork::new(id("chunkserver", "a")));
    let (stop, clock) = (CancellationToken::new(), Arc::new(OsClock));
    let server =
        ChunkserverServer::start(config, network, Arc::new(OsDisk), Blocking::Pool, clock, stop.clone())
            .await
            .unwrap();
    server.keys().learn(&[TicketKey { id: key().id, key: key().secret.into() }]);
    OnDisk { server, stop }
}

fn caller(on: &OnDisk) -> Caller {
    Caller::new(id("client", "c1"), on.server.address())
}

async fn lend(caller: &Caller, lend: Lend) -> Called<Lent> {
    let answer = caller.call(Method::ChunkLend, &lend, Bytes::new()).await?;
    Ok(Lent::decode(answer.body).unwrap())
}

fn ask(chunk: u64) -> Lend {
    Lend { chunk, ticket: ticket_with(&key(), READ, 60_000), boot_id: boot_id().unwrap().into() }
}

async fn take(lent: &Lent) -> std::io::Result<std::os::fd::OwnedFd> {
    let token = Token(lent.token[..].try_into().unwrap());
    fetch(Path::new(&lent.socket), &token, lent.uid, WAIT).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_on_this_host_with_a_ticket_is_lent_a_sealed_chunk_once() {
    let dir = tempfile::tempdir().unwrap();
    let on = start_in(dir.path(), true).await;
    let client = caller(&on);
    client.append(append(1, 0, vec![]), b"hello").await.unwrap();
    assert_eq!(lend(&client, ask(1)).await.unwrap().refused(), LendRefusal::NotSealed);
    client.seal(1, 1, 5, ticket()).await.unwrap();

    let lent = lend(&client, ask(1)).await.unwrap();
    assert_eq!((lent.refused(), lent.length, lent.uid), (LendRefusal::Unspecified, 5, our_uid()));
    let mut file = std::fs::File::from(take(&lent).await.unwrap());
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes.ends_with(b"hello"));
    assert!(take(&lent).await.is_err(), "a token is good once");

    // Somebody elsewhere, and somebody who doesn't say.
    for boot_id in [Bytes::from_static(b"another"), Bytes::new()] {
        let lent = lend(&client, Lend { boot_id, ..ask(1) }).await.unwrap();
        assert_eq!((lent.refused(), lent.token.len()), (LendRefusal::NotHere, 0));
    }
    on.stop.cancel();
}

#[tokio::test]
async fn without_the_right_to_read_nothing_is_lent() {
    let dir = tempfile::tempdir().unwrap();
    let on = start_in(dir.path(), true).await;
    let client = caller(&on);
    client.append(append(1, 0, vec![]), b"hello").await.unwrap();
    client.seal(1, 1, 5, ticket()).await.unwrap();
    for ticket in [
        Bytes::new(),
        Bytes::from_static(b"nonsense"),
        ticket_with(&key(), READ, -40_000),
        ticket_with(&key(), APPEND, 60_000),
    ] {
        let refused = lend(&client, Lend { ticket, ..ask(1) }).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::PermissionDenied);
    }
    for stranger in [id("chunkserver", "b"), id("master", "m1")] {
        let refused = lend(&Caller::new(stranger, on.server.address()), ask(1)).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::PermissionDenied);
    }
    // Whoever is of another region reads over the network, wherever his host is.
    let afar = Caller::new(abroad("client", "c1"), on.server.address());
    assert_eq!(lend(&afar, ask(1)).await.unwrap().refused(), LendRefusal::NotHere);
    assert_eq!(lend(&client, ask(2)).await.unwrap_err().code(), ErrorCode::NotFound);
}

#[tokio::test]
async fn a_chunkserver_that_was_told_not_to_lends_nothing_and_has_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let on = start_in(dir.path(), false).await;
    let client = caller(&on);
    client.append(append(1, 0, vec![]), b"hello").await.unwrap();
    client.seal(1, 1, 5, ticket()).await.unwrap();
    assert_eq!(lend(&client, ask(1)).await.unwrap().refused(), LendRefusal::NotHere);
    assert!(!dir.path().join("state/lend").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_starts_again_lends_again_and_no_token_outlives_it() {
    let dir = tempfile::tempdir().unwrap();
    let on = start_in(dir.path(), true).await;
    caller(&on).append(append(1, 0, vec![]), b"hello").await.unwrap();
    caller(&on).seal(1, 1, 5, ticket()).await.unwrap();
    let before = lend(&caller(&on), ask(1)).await.unwrap();
    on.stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), on.server.stopped()).await.unwrap();
    assert!(!Path::new(&before.socket).exists());
    let on = start_in(dir.path(), true).await;
    assert!(take(&before).await.is_err());
    let after = lend(&caller(&on), ask(1)).await.unwrap();
    assert!(take(&after).await.is_ok());
}
