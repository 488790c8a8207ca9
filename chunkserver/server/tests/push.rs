//! What is appended to a chunk is sent on to chunkservers of another region, also after those were away.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use bytes::Bytes;
use common::*;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::chunk::{ChainMember, ChunkStat, Push, StatChunk};
use mooseng_wire::method::Method;
use prost::Message;

fn pattern(from: usize, n: usize) -> Vec<u8> {
    (from..from + n).map(|i| (i * 31 + i / 4096) as u8).collect()
}

async fn push(to: &Running, chunk: u64, chain: Vec<ChainMember>) -> Called<()> {
    let master = Caller::new(id("master", "m1"), to.server.address());
    let push = Push { chunk, epoch: 1, custody: 1, chain, ticket: ticket() };
    master.call(Method::ChunkPush, &push, Bytes::new()).await.map(|_| ())
}

async fn length(of: &Running, chunk: u64) -> Option<ChunkStat> {
    let master = Caller::new(id("master", "m1"), of.server.address());
    let stat = StatChunk { chunk, ticket: Bytes::new() };
    let answer = master.call(Method::ChunkStat, &stat, Bytes::new()).await.ok()?;
    Some(ChunkStat::decode(answer.body).unwrap())
}

async fn has(of: &Running, chunk: u64, flushed: u64) {
    until(&format!("{flushed} bytes are there"), || async {
        length(of, chunk).await.is_some_and(|is| is.length == flushed && is.flushed == flushed)
    })
    .await;
}

async fn again(disk: SimDisk, name: &str, address: &str) -> Running {
    let mut config = config(name, vec!["127.0.0.1:1".into()]);
    config.listen = address.to_owned();
    let running = start_on(disk, config).await;
    running.server.store().see_epoch(0, mooseng_wire::Epoch(1)).unwrap();
    running.server.keys().learn(&[mooseng_wire::admin::TicketKey { id: key().id, key: key().secret.into() }]);
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_on_goes_on_where_a_chunkserver_that_was_away_is() {
    let (home, near, far) = (start("a").await, start("b").await, start("c").await);
    let chain = vec![member("b", near.server.address()), member("c", far.server.address())];
    push(&home, 7, chain).await.unwrap();
    let client = Caller::client(&home);
    client.append(append(7, 0, vec![]), &pattern(0, 100_000)).await.unwrap();
    has(&near, 7, 100_000).await;
    has(&far, 7, 100_000).await;

    // The second of the chain is away for two appends, which the first may take or not.
    let (disk, address) = (far.disk.clone(), far.server.address().to_owned());
    far.stop.cancel();
    far.server.stopped().await;
    client.append(append(7, 100_000, vec![]), &pattern(100_000, 50_000)).await.unwrap();
    client.append(append(7, 150_000, vec![]), &pattern(150_000, 1_000)).await.unwrap();
    let far = again(disk, "c", &address).await;
    client.append(append(7, 151_000, vec![]), &pattern(151_000, 500)).await.unwrap();
    has(&near, 7, 151_500).await;
    has(&far, 7, 151_500).await;
    let read = Caller::new(id("master", "m1"), far.server.address()).read(7, 0, 151_500, Bytes::new()).await;
    assert!(read.unwrap() == pattern(0, 151_500));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_names_nobody_or_too_many_is_refused() {
    let home = start("a").await;
    for members in [0, 10] {
        let chain = (0..members).map(|n| member(&format!("x{n}"), "127.0.0.1:1")).collect();
        assert_eq!(push(&home, 7, chain).await.unwrap_err().code(), ErrorCode::InvalidRequest);
    }
}

/// Found by reading: nobody says a second time that a chunk has ended, and so one that had ended before the order came counted as being sent for a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_is_sealed_already_is_sent_and_then_done() {
    let (home, near) = (start("a").await, start("b").await);
    let client = Caller::client(&home);
    client.append(append(7, 0, vec![]), &pattern(0, 5_000)).await.unwrap();
    client.seal(7, 1, 5_000, ticket()).await.unwrap();
    // To more chains, one after the other, than one chunk is sent to at a time.
    for n in 0..10 {
        let chain = vec![member(&format!("b{n}"), near.server.address())];
        until("it may be sent to another one", || async { push(&home, 7, chain.clone()).await.is_ok() })
            .await;
        has(&near, 7, 5_000).await;
    }
}
