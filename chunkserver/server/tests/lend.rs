//! Lending files and memory to processes on this host: who is given some, with real files and a real socket.
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
use mooseng_transport::{Blocking, LinkOptions, PlainNetwork};
use mooseng_wire::admin::TicketKey;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::chunk::{AskMemory, Lend, LendRefusal, Lent, MemoryLent};
use mooseng_wire::method::Method;
use prost::Message;
use tokio_util::sync::CancellationToken;

struct OnDisk {
    server: ChunkserverServer,
    stop: CancellationToken,
}

async fn start_in(dir: &Path, lends: bool) -> OnDisk {
    start_as("a", dir, lends).await
}

async fn start_as(name: &str, dir: &Path, lends: bool) -> OnDisk {
    let config = ChunkserverConfig {
        data_dirs: vec![dir.join("data")],
        state_dir: dir.join("state"),
        same_host_reads: lends,
        same_host_writes: lends,
        ..config(name, vec!["127.0.0.1:1".into()])
    };
    let network = Arc::new(PlainNetwork::new(id("chunkserver", name)));
    let (stop, clock) = (CancellationToken::new(), Arc::new(OsClock));
    let server =
        ChunkserverServer::start(config, network, Arc::new(OsDisk), Blocking::Pool, clock, stop.clone())
            .await
            .unwrap();
    server.keys().learn(&[TicketKey { id: key().id, key: key().secret.into() }]);
    server.store().see_epoch(0, mooseng_wire::Epoch(1)).unwrap();
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

/// A caller whose large bulk goes through shared memory, if there is some.
fn writer(on: &OnDisk) -> Caller {
    Caller::with(
        id("client", "c1"),
        on.server.address(),
        LinkOptions { shares_memory: true, ..LinkOptions::default() },
    )
}

fn shared_bytes(on: &OnDisk) -> u64 {
    let text = on.server.metrics().encode();
    let line = text.lines().find(|line| line.starts_with("mooseng_chunkserver_shared_bytes_total ")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_on_one_host_goes_through_shared_memory_along_the_whole_chain() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (a, b) = (start_as("a", dirs[0].path(), true).await, start_as("b", dirs[1].path(), true).await);
    let client = writer(&a);
    let chain = || vec![member("b", b.server.address())];
    let (mut whole, until) = (Vec::new(), std::time::Instant::now() + WAIT);
    // The first goes over the network, for memory is asked for beside it.
    while shared_bytes(&a) == 0 || shared_bytes(&b) == 0 {
        assert!(std::time::Instant::now() < until, "nothing went through shared memory");
        let piece: Vec<u8> = (0..300_000).map(|n| (n + whole.len()) as u8 ^ (n >> 8) as u8).collect();
        client.append(append(1, whole.len() as u64, chain()), &piece).await.unwrap();
        whole.extend(piece);
    }
    let before = [shared_bytes(&a), shared_bytes(&b)];
    // Many at once, each with a slot of its own.
    let pieces: Vec<Vec<u8>> = (0..24u8).map(|n| vec![n; 200_000 + usize::from(n)]).collect();
    let at: Vec<usize> =
        pieces.iter().scan(whole.len(), |at, piece| Some(std::mem::replace(at, *at + piece.len()))).collect();
    let appends =
        pieces.iter().zip(at).map(|(piece, at)| client.append(append(1, at as u64, chain()), piece));
    futures::future::join_all(appends).await.into_iter().for_each(|appended| assert!(appended.is_ok()));
    whole.extend(pieces.concat());
    for (on, before) in [&a, &b].into_iter().zip(before) {
        let reader = caller(on);
        for offset in (0..whole.len()).step_by(1 << 20) {
            let end = whole.len().min(offset + (1 << 20));
            let read =
                reader.read(1, offset as u64, (end - offset) as u32, ticket_with(&key(), READ, 60_000));
            assert!(read.await.unwrap() == whole[offset..end], "bytes from {offset} on");
        }
        // What finds no slot is sent.
        assert!(shared_bytes(on) - before >= 16 * 200_000, "{}", shared_bytes(on) - before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_shared_once_with_a_connection_and_with_nobody_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let on = start_in(dir.path(), true).await;
    let share = async |caller: &Caller, boot_id: Bytes| {
        let answer = caller.call(Method::ChunkMemory, &AskMemory { boot_id }, Bytes::new()).await.unwrap();
        MemoryLent::decode(answer.body).unwrap()
    };
    let here = || Bytes::from(boot_id().unwrap());
    for stranger in [id("master", "m1"), abroad("client", "c1"), abroad("chunkserver", "b")] {
        let stranger = Caller::new(stranger, on.server.address());
        assert_eq!(share(&stranger, here()).await.refused(), LendRefusal::NotHere);
    }
    let client = caller(&on);
    assert_eq!(share(&client, Bytes::from_static(b"another")).await.refused(), LendRefusal::NotHere);
    let lent = share(&client, here()).await;
    assert_eq!(lent.refused(), LendRefusal::Unspecified);
    let token = Token(lent.token[..].try_into().unwrap());
    let descriptor = fetch(Path::new(&lent.socket), &token, lent.uid, WAIT).await.unwrap();
    assert_eq!(share(&client, here()).await.refused(), LendRefusal::NotHere, "it has some");
    drop(descriptor);

    // Bounded, for each and for all. What nobody fetches is given back in a moment, and the rest with its connection.
    let of = |name: String, n: usize| -> Vec<Caller> {
        (0..n).map(|_| Caller::new(id("client", &name), on.server.address())).collect()
    };
    let shared = async |callers: &[Caller]| {
        let mut shared = 0;
        for caller in callers {
            match share(caller, here()).await.refused() {
                LendRefusal::Unspecified => shared += 1,
                LendRefusal::TooMuchLent => {}
                why => panic!("{why:?}"),
            }
        }
        shared
    };
    let one = of("c2".into(), 6);
    assert_eq!(shared(&one).await, 4);
    let others: Vec<Vec<Caller>> = (0..10).map(|n| of(format!("d{n}"), 4)).collect();
    let mut all = 0;
    for callers in &others {
        all += shared(callers).await;
    }
    assert_eq!(all, 32 - 4 - 1);
    drop((client, one, others));
    let until = std::time::Instant::now() + WAIT;
    while share(&caller(&on), here()).await.refused() != LendRefusal::Unspecified {
        assert!(std::time::Instant::now() < until, "what nobody fetched is kept");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunkserver_that_was_told_not_to_shares_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let on = start_in(dir.path(), false).await;
    let asked = AskMemory { boot_id: boot_id().unwrap().into() };
    let answer = caller(&on).call(Method::ChunkMemory, &asked, Bytes::new()).await.unwrap();
    assert_eq!(MemoryLent::decode(answer.body).unwrap().refused(), LendRefusal::NotHere);
    let client = writer(&on);
    for n in 0..5 {
        client.append(append(1, n * 200_000, vec![]), &vec![n as u8; 200_000]).await.unwrap();
    }
    assert_eq!(shared_bytes(&on), 0);
}
