//! What a region's house-keeping asks of a chunkserver: copies, digests, ends; scrub and trash.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use std::path::Path;

use bytes::Bytes;
use common::*;
use mooseng_chunkserver::ChunkserverConfig;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_ports::disk::{Disk, OpenMode};
use mooseng_wire::ChunkId;
use mooseng_wire::admin::TicketKey;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::chunk::{
    AskDigest, Build, BuildPiece, BuildSource, Built, Close, Digested, Follow, Followed, Pull, Pulled, Sealed,
};
use mooseng_wire::method::Method;
use prost::Message;

const CHUNK: u64 = 0x1234;

async fn digest(master: &Caller, length: u64) -> Bytes {
    let asked = AskDigest { chunk: CHUNK, length, ..AskDigest::default() };
    let answer = master.call(Method::ChunkDigest, &asked, Bytes::new()).await.unwrap();
    Digested::decode(answer.body).unwrap().digest
}

async fn pull(master: &Caller, pull: &Pull) -> Called<Pulled> {
    let answer = master.call(Method::ChunkPull, pull, Bytes::new()).await?;
    Ok(Pulled::decode(answer.body).unwrap())
}

/// The file of `CHUNK`, with one bit flipped.
fn rot(disk: &SimDisk) {
    let file = disk.open(Path::new("/data/chunks/34/0000000000001234"), OpenMode::Existing).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, 4096 * 3).unwrap();
    file.write_at(&[byte[0] ^ 4], 4096 * 3).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_has_chunks_ended_and_copied() {
    let (a, b) = (start("a").await, start("b").await);
    let client = Caller::client(&a);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 + n / 4096) as u8).collect();
    for (n, part) in bytes.chunks(1 << 20).enumerate() {
        client.append(append(CHUNK, (n as u64) << 20, vec![]), part).await.unwrap();
    }
    let master = |of: &Running| Caller::new(id("master", "m1"), of.server.address());
    let (at_a, at_b) = (master(&a), master(&b));
    let close = Close { chunk: CHUNK, epoch: 1 };
    let answer = at_a.call(Method::ChunkClose, &close, Bytes::new()).await.unwrap();
    assert_eq!(Sealed::decode(answer.body).unwrap().length, 3_000_000);
    let refused = client.append(append(CHUNK, 3_000_000, vec![]), b"more").await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::ChunkSealed);

    let order = Pull {
        chunk: CHUNK,
        epoch: 1,
        length: 3_000_000,
        digest: digest(&at_a, 3_000_000).await,
        custody: 5,
        source: Some(member("a", a.server.address())),
        ticket: ticket(),
        bytes_per_s: 0,
    };
    let forged = Pull { digest: Bytes::from_static(&[0; 32]), ..order.clone() };
    assert_eq!(pull(&at_b, &forged).await.unwrap_err().code(), ErrorCode::Corrupt);
    let ticketless = Pull { ticket: Bytes::new(), ..order.clone() };
    assert_eq!(pull(&at_b, &ticketless).await.unwrap_err().code(), ErrorCode::PermissionDenied);
    let nowhere = Pull { source: Some(member("x", "127.0.0.1:1")), ..order.clone() };
    assert_eq!(pull(&at_b, &nowhere).await.unwrap_err().code(), ErrorCode::Unavailable);
    assert!(b.server.store().inventory(None, 9).0.is_empty(), "nothing stays of what failed");
    assert!(!pull(&at_b, &order).await.unwrap().was_here);
    assert!(pull(&at_b, &order).await.unwrap().was_here);
    let stale = Pull { custody: 4, ..order.clone() };
    assert_eq!(pull(&at_b, &stale).await.unwrap_err().code(), ErrorCode::StaleEpoch);
    assert_eq!(pull(&Caller::client(&b), &order).await.unwrap_err().code(), ErrorCode::PermissionDenied);
    let read = Caller::client(&b).read(CHUNK, 1_999_000, 10_000, ticket()).await.unwrap();
    assert_eq!(read, bytes[1_999_000..2_009_000]);

    // Masters and chunkservers of another region see with a ticket whether their copy is the same, and order nothing.
    for role in ["master", "chunkserver"] {
        let afar = Caller::new(abroad(role, "x"), a.server.address());
        let asked = AskDigest { chunk: CHUNK, length: 3_000_000, ticket: ticket(), read: false };
        let answer = afar.call(Method::ChunkDigest, &asked, Bytes::new()).await.unwrap();
        assert_eq!(Digested::decode(answer.body).unwrap().digest, order.digest);
        let ticketless = AskDigest { ticket: Bytes::new(), ..asked };
        let refused = afar.call(Method::ChunkDigest, &ticketless, Bytes::new()).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::PermissionDenied);
        assert_eq!(pull(&afar, &order).await.unwrap_err().code(), ErrorCode::PermissionDenied);
    }

    // A source that has rotten gives no copy, and knows of itself from then on.
    b.server.store().delete(ChunkId(CHUNK), mooseng_wire::Epoch(1), 5, 0).unwrap();
    rot(&a.disk);
    // Its checksums are what they were; it notices where its bytes are read.
    let afar = Caller::new(abroad("master", "x"), a.server.address());
    let mut asked = AskDigest { chunk: CHUNK, length: 3_000_000, ticket: ticket(), read: false };
    assert!(afar.call(Method::ChunkDigest, &asked, Bytes::new()).await.is_ok());
    asked.read = true;
    let refused = afar.call(Method::ChunkDigest, &asked, Bytes::new()).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Corrupt);
    assert_eq!(pull(&at_b, &order).await.unwrap_err().code(), ErrorCode::Corrupt);
    assert!(!a.server.store().inventory(None, 9).0[0].sound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_grows_elsewhere_grows_here() {
    let (a, b) = (start("a").await, start("b").await);
    let client = Caller::client(&a);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 + n / 4096) as u8).collect();
    let master = |of: &Running| Caller::new(id("master", "m1"), of.server.address());
    let (at_a, at_b) = (master(&a), master(&b));
    let follow = async |order: &Follow| {
        let answer = at_b.call(Method::ChunkFollow, order, Bytes::new()).await?;
        Ok::<_, mooseng_wire::call::CallError>(Followed::decode(answer.body).unwrap())
    };
    let order = |upto: u64| Follow {
        chunk: CHUNK,
        epoch: 1,
        upto,
        custody: 5,
        source: Some(member("a", a.server.address())),
        ticket: ticket(),
        digest: Bytes::new(),
        expected_ms: 0,
    };
    client.append(append(CHUNK, 0, vec![]), &bytes[..1_000_001]).await.unwrap();
    let refused = follow(&order(1_000_002)).await.unwrap_err();
    assert_ne!(refused.code(), ErrorCode::Internal, "{refused:?}");
    assert_eq!(follow(&order(700_000)).await.unwrap(), Followed { length: 700_000, sealed: false });
    assert_eq!(follow(&order(1_000_001)).await.unwrap().length, 1_000_001);
    client.append(append(CHUNK, 1_000_001, vec![]), &bytes[1_000_001..2_000_000]).await.unwrap();
    client.append(append(CHUNK, 2_000_000, vec![]), &bytes[2_000_000..]).await.unwrap();
    assert_eq!(follow(&order(2_500_000)).await.unwrap().length, 2_500_000);
    assert_eq!(follow(&order(5)).await.unwrap().length, 5, "it has that");
    // What is flushed stays.
    let stat = b.server.store().stat(mooseng_wire::ChunkId(CHUNK)).unwrap();
    assert_eq!((stat.length, stat.flushed, stat.sealed), (2_500_000, 2_500_000, false));
    // What is being sent there is waited for, also before any of it has come.
    let awaited = Follow { source: None, expected_ms: 10_000, ..order(2_500_010) };
    let sent = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let bytes = &bytes[2_500_000..2_500_010];
        Caller::client(&b).append(append(CHUNK, 2_500_000, vec![]), bytes).await.unwrap();
    };
    let (followed, ()) = tokio::join!(follow(&awaited), sent);
    assert_eq!(followed.unwrap().length, 2_500_010);
    let not_sent = Follow { source: None, ..order(2_500_020) };
    assert_eq!(follow(&not_sent).await.unwrap_err().code(), ErrorCode::NotFound);
    let stale = Follow { custody: 4, ..order(2_600_000) };
    assert_eq!(follow(&stale).await.unwrap_err().code(), ErrorCode::StaleEpoch);

    // It ended before what is here already.
    client.seal(CHUNK, 1, 2_400_000, ticket()).await.unwrap();
    let digest = digest(&at_a, 2_400_000).await;
    let forged = Follow { digest: Bytes::from_static(&[0; 32]), ..order(2_400_000) };
    assert_eq!(follow(&forged).await.unwrap_err().code(), ErrorCode::Corrupt);
    let sealed = Follow { digest, ..order(2_400_000) };
    assert_eq!(follow(&sealed).await.unwrap(), Followed { length: 2_400_000, sealed: true });
    assert_eq!(follow(&sealed).await.unwrap(), Followed { length: 2_400_000, sealed: true });
    // One may have been sealed by its length alone: it is compared all the same.
    assert_eq!(follow(&forged).await.unwrap_err().code(), ErrorCode::Corrupt);
    assert_eq!(follow(&order(2_400_001)).await.unwrap_err().code(), ErrorCode::ChunkSealed);
    let read = Caller::client(&b).read(CHUNK, 999_000, 10_000, ticket()).await.unwrap();
    assert_eq!(read, bytes[999_000..1_009_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_is_made_of_pieces_from_here_and_elsewhere() {
    let (a, b) = (start("a").await, start("b").await);
    let content = |chunk: u64, n: u64| (n * 7 + n / 4096 + chunk) as u8;
    for (on, chunk) in [(&a, CHUNK), (&b, CHUNK + 1)] {
        let bytes: Vec<u8> = (0..1_500_000).map(|n| content(chunk, n)).collect();
        let client = Caller::client(on);
        client.append(append(chunk, 0, vec![]), &bytes[..1 << 20]).await.unwrap();
        client.append(append(chunk, 1 << 20, vec![]), &bytes[1 << 20..]).await.unwrap();
        client.seal(chunk, 1, 1_500_000, ticket()).await.unwrap();
    }
    let at_b = Caller::new(id("master", "m1"), b.server.address());
    let build = async |build: &Build| {
        let answer = at_b.call(Method::ChunkBuild, build, Bytes::new()).await?;
        Ok::<_, mooseng_wire::call::CallError>(Built::decode(answer.body).unwrap())
    };
    let nowhere = member("x", "127.0.0.1:1");
    let mut pieces = Vec::new();
    let mut expected = Vec::new();
    let mut piece = |source: u32, offset: u64, length: u64| {
        pieces.push(BuildPiece { source, offset, length });
        expected.extend((offset..offset + length).map(|n| content(CHUNK + u64::from(source), n)));
    };
    (0..300).for_each(|n| piece((n % 2) as u32, n * 4_500, 4_096 - n % 3));
    piece(0, 0, 1_400_000);
    // What comes with the order.
    piece(2, 100, 9_900);
    let order = Build {
        chunk: CHUNK + 7,
        epoch: 1,
        custody: 5,
        sources: vec![
            BuildSource {
                chunk: CHUNK,
                holders: vec![nowhere, member("a", a.server.address())],
                ..BuildSource::default()
            },
            BuildSource { chunk: CHUNK + 1, ..BuildSource::default() },
            BuildSource {
                data: (0..10_000).map(|n| content(CHUNK + 2, n)).collect(),
                ..BuildSource::default()
            },
        ],
        pieces,
        ticket: ticket(),
        bytes_per_s: 0,
    };
    let missing = Build {
        sources: vec![
            order.sources[0].clone(),
            BuildSource { chunk: 77, ..BuildSource::default() },
            order.sources[2].clone(),
        ],
        ..order.clone()
    };
    assert_eq!(build(&missing).await.unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(b.server.store().inventory(None, 9).0.len(), 1, "nothing stays of what failed");
    let built = build(&order).await.unwrap();
    assert_eq!(built.length, expected.len() as u64);
    let stat = b.server.store().stat(ChunkId(CHUNK + 7)).unwrap();
    assert!(stat.sealed && stat.length == built.length && stat.flushed == built.length);
    let mut read = Vec::new();
    while read.len() < expected.len() {
        let bytes = (expected.len() - read.len()).min(1 << 20);
        let offset = read.len() as u64;
        read.extend(Caller::client(&b).read(CHUNK + 7, offset, bytes as u32, ticket()).await.unwrap());
    }
    assert!(read == expected);
    // Others take it over as any chunk, by its digest.
    let copy = Pull {
        chunk: CHUNK + 7,
        epoch: 1,
        length: built.length,
        digest: built.digest,
        custody: 5,
        source: Some(member("b", b.server.address())),
        ticket: ticket(),
        bytes_per_s: 0,
    };
    pull(&Caller::new(id("master", "m1"), a.server.address()), &copy).await.unwrap();
    // An id is used once, and only by the newest leader.
    assert_eq!(build(&order).await.unwrap_err().code(), ErrorCode::Corrupt);
    let stale = Build { chunk: CHUNK + 8, custody: 4, ..order.clone() };
    assert_eq!(build(&stale).await.unwrap_err().code(), ErrorCode::StaleEpoch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_pull_is_paced() {
    let (a, b) = (start("a").await, start("b").await);
    let bytes = vec![7; 1 << 20];
    Caller::client(&a).append(append(CHUNK, 0, vec![]), &bytes).await.unwrap();
    Caller::client(&a).seal(CHUNK, 1, 1 << 20, ticket()).await.unwrap();
    let order = Pull {
        chunk: CHUNK,
        epoch: 1,
        length: 1 << 20,
        digest: digest(&Caller::new(id("master", "m"), a.server.address()), 1 << 20).await,
        custody: 1,
        source: Some(member("a", a.server.address())),
        ticket: ticket(),
        bytes_per_s: 2 << 20,
    };
    let begun = std::time::Instant::now();
    pull(&Caller::new(id("master", "m"), b.server.address()), &order).await.unwrap();
    assert!(begun.elapsed() >= std::time::Duration::from_millis(490), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrub_finds_what_nobody_reads_and_the_trash_empties() {
    let config =
        ChunkserverConfig { scrub_period_s: 1, trash_s: 1, ..config("a", vec!["127.0.0.1:1".into()]) };
    let disk = SimDisk::default();
    let a = start_on(disk.clone(), config).await;
    a.server.store().see_epoch(0, mooseng_wire::Epoch(1)).unwrap();
    a.server.keys().learn(&[TicketKey { id: key().id, key: key().secret.into() }]);
    let client = Caller::client(&a);
    for chunk in [CHUNK, CHUNK + 1] {
        client.append(append(chunk, 0, vec![]), &[7; 20_000]).await.unwrap();
        client.seal(chunk, 1, 20_000, ticket()).await.unwrap();
    }
    let store = a.server.store().clone();
    let at = store.next_change();
    let passes = || a.server.metrics().encode();
    until("a pass ends", async || !passes().contains("scrub_passes_total 0")).await;
    assert!(store.changes(at, 9).unwrap().0.is_empty());
    rot(&disk);
    until("the scrub finds it", async || !store.changes(at, 9).unwrap().0.is_empty()).await;
    let sound: Vec<bool> = store.inventory(None, 9).0.iter().map(|c| c.sound).collect();
    assert_eq!(sound, [false, true]);
    store.delete(ChunkId(CHUNK), mooseng_wire::Epoch(1), 1, 0).unwrap();
    until("the trash is empty", async || disk.list(Path::new("/data/trash")).unwrap().is_empty()).await;
}
