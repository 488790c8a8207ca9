//! A region's masters as clients, chunkservers and administrators meet them.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;
#[path = "region/lapsed.rs"]
mod lapsed;
#[path = "region/owner.rs"]
mod owner;
#[path = "region/revocations.rs"]
mod revocations;

use std::sync::Arc;
use std::time::Duration;

use common::{Cluster, identity, until};
use mooseng_ports::clock::{ManualClock, OsClock};
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::grpc::registry_client::RegistryClient;
use mooseng_transport::{CallFailure, Link, LinkOptions, PlainNetwork, grpc_channel};
use mooseng_wire::admin::chunkserver_command::Command;
use mooseng_wire::admin::{ChunkReport, HeartbeatRequest, StatusRequest, TransferLeaderRequest};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::write_piece::Data;
use mooseng_wire::fs::{
    AllocateChunk, ChunkRun, CopyRange, Create, GetAttr, Lock, LockKind, LockSpec, LockState, Lookup, Mkdir,
    Open, Reap, Release, SealChunk, TestLock, Unlink, Unlock, Write, WritePiece,
};
use mooseng_wire::method::Method;
use mooseng_wire::session::{CloseSession, OpenSession, Request, Response, SessionClosed, SessionOpened};
use mooseng_wire::{Identity, ROOT_INODE, Role};

fn mkdir(name: &str) -> Op {
    Op::Mkdir(Mkdir { parent: ROOT_INODE.0, name: name.to_owned().into(), mode: 0o755, alone: false })
}

fn create(name: &str) -> Op {
    let name = name.to_owned().into();
    Op::Create(Create { parent: ROOT_INODE.0, name, mode: 0o644, exclusive: true, truncate: false })
}

fn lookup(name: &str) -> Op {
    Op::Lookup(Lookup { parent: ROOT_INODE.0, name: name.to_owned().into() })
}

fn unlink(name: &str) -> Op {
    Op::Unlink(Unlink { parent: ROOT_INODE.0, name: name.to_owned().into() })
}

fn created(reply: Reply) -> u64 {
    match reply {
        Reply::Created(created) => created.attr.unwrap().inode,
        other => panic!("not created: {other:?}"),
    }
}

fn entry(reply: Reply) -> u64 {
    match reply {
        Reply::Entry(entry) => entry.attr.unwrap().inode,
        other => panic!("no entry: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_master_serves_sessions_files_and_chunks() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let client = cluster.client("c").await;
    let opened = client.open(&[]).await.unwrap();
    assert_eq!((opened.incarnation, opened.lapsed, opened.lease_ms, opened.root), (1, false, 10_000, 1));

    let directory = client.request(1, mkdir("d")).await;
    let made = client.send(&directory).await.unwrap();
    assert_eq!(client.send(&directory).await.unwrap(), made, "the same number returns the first outcome");
    let again = client.change_as(2, mkdir("d")).await.unwrap();
    assert_eq!(again, Reply::Errno(17), "another number is another request");
    let inode = created(client.change_as(3, create("f")).await.unwrap());
    assert_eq!(entry(client.read(lookup("f")).await.unwrap()), inode);
    assert_eq!(client.read(lookup("nothing")).await.unwrap(), Reply::Errno(2));

    // Without chunkservers a chunk has to wait, and the error says what is missing.
    let allocate = client.request(4, Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] })).await;
    let refused = client
        .link()
        .request::<_, mooseng_wire::session::Response>(Method::FsChange, &allocate, Duration::from_secs(5))
        .await
        .unwrap_err();
    let CallFailure::Remote(refused) = refused else { panic!("{refused}") };
    assert_eq!(refused.code(), ErrorCode::Unavailable);
    assert!(refused.message.contains("only 0 of 0"), "{}", refused.message);

    for name in ["a", "b", "c"] {
        let reply = cluster.beat(name, |_| ()).await.remove(0);
        assert!(reply.want_inventory);
        assert_eq!(reply.ticket_keys.len(), 1);
    }
    let Reply::Allocated(allocated) = client.send(&allocate).await.unwrap() else { panic!("not allocated") };
    let place = allocated.place.unwrap();
    assert_eq!(place.locations.len(), 2);
    for location in &place.locations {
        assert_eq!(location.address, format!("{}:1", location.chunkserver));
        assert!(location.reachable);
    }
    let keys = cluster.beat("a", |_| ()).await.remove(0).ticket_keys;
    let key = mooseng_chunk::ticket::Key { id: keys[0].id, secret: keys[0].key.to_vec() };
    let now_ms =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let claims = mooseng_chunk::ticket::verify(
        &[key],
        &place.ticket,
        now_ms,
        place.chunk.into(),
        mooseng_chunk::ticket::APPEND,
    );
    assert_eq!(claims.unwrap().session, opened.session);

    // Sealed with a failed member: with two copies of at least two it stays on record, and both are told.
    let failed = vec![place.locations[0].chunkserver.clone()];
    let seal = Op::SealChunk(SealChunk { chunk: place.chunk, acknowledged: 4096, failed });
    let sealing = client.request(5, seal).await;
    assert!(matches!(client.send(&sealing).await.unwrap(), Reply::Done(_)));
    assert!(matches!(client.send(&sealing).await.unwrap(), Reply::Done(_)));
    let piece = |run| WritePiece { offset: 0, data: Some(Data::Run(run)) };
    let run = ChunkRun { chunk: place.chunk, chunk_offset: 0, length: 4096 };
    let write =
        Write { inode, pieces: vec![piece(run)], append: false, kill_suidgid: false, ..Write::default() };
    assert!(matches!(client.change_as(6, Op::Write(write)).await.unwrap(), Reply::Written(_)));
    let read = Op::ReadExtents(mooseng_wire::fs::ReadExtents { inode, offset: 0, length: 9999 });
    let Reply::Extents(map) = client.read(read).await.unwrap() else { panic!("no extents") };
    assert_eq!(
        (map.size, map.chunks.len(), map.chunks[0].sealed, map.chunks[0].length),
        (4096, 1, true, 4096)
    );
    assert_eq!(map.chunks[0].locations.len(), 2);
    let name = &place.locations[1].chunkserver;
    let unsealed = ChunkReport { chunk: place.chunk, length: 5000, sealed: false, epoch: 1 };
    until("the seal comes with a heartbeat", async || {
        let reply = cluster.beat(name, |r| (r.inventory, r.inventory_page) = (vec![unsealed], true)).await.remove(0);
        let seals = |c: &Option<Command>| matches!(c, Some(Command::Seal(s)) if s.chunk == place.chunk && s.length == 4096);
        reply.commands.iter().any(|c| seals(&c.command))
    })
    .await;

    let status = cluster.running[0].as_ref().unwrap().status();
    assert_eq!(
        (status.leader, status.masters.len(), status.chunkservers.len(), status.sessions.len()),
        (1, 1, 3, 1)
    );
    assert!(status.findings.iter().any(|f| f.code == "MASTERS_FEW"), "{:?}", status.findings);
    assert_eq!(cluster.running[0].as_ref().unwrap().ready(), Ok(()));
    let metrics = cluster.running[0].as_ref().unwrap().metrics().encode();
    assert!(metrics.contains("mooseng_master_requests_total{method=\"FsChange\"}"), "{metrics}");

    let s = client.session.lock().await.clone();
    let close = CloseSession { session: s.session, incarnation: s.incarnation };
    let _: SessionClosed = client.call(Method::CloseSession, &close).await.unwrap();
    assert_eq!(client.read(lookup("f")).await.unwrap_err().0, ErrorCode::SessionExpired);
    let _: SessionClosed = client.call(Method::CloseSession, &close).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lapsed_session_comes_back_as_a_new_incarnation() {
    let clock = ManualClock::default();
    let cluster = Cluster::start(1, Arc::new(clock.clone())).await;
    let client = cluster.client("c").await;
    let other = cluster.client("d").await;
    let first = client.open(&[]).await.unwrap();
    let directory = client.request(1, mkdir("d")).await;
    let made = client.send(&directory).await.unwrap();
    for name in ["a", "b"] {
        cluster.beat(name, |_| ()).await;
    }
    let file = created(client.change_as(2, create("f")).await.unwrap());
    let Reply::Allocated(allocated) =
        client.change_as(3, Op::AllocateChunk(AllocateChunk { inode: file, exclude: vec![] })).await.unwrap()
    else {
        panic!("not allocated")
    };
    let chunk = allocated.place.unwrap().chunk;
    let run = ChunkRun { chunk, chunk_offset: 0, length: 100 };
    let piece = WritePiece { offset: 0, data: Some(Data::Run(run)) };
    let write =
        Write { inode: file, pieces: vec![piece], append: false, kill_suidgid: false, ..Write::default() };
    client.change_as(4, Op::Write(write)).await.unwrap();

    // A renewal moves the end; without one the lease ends.
    clock.advance(Duration::from_secs(6));
    until("the lease is renewed", async || client.renew().await.is_ok()).await;
    clock.advance(Duration::from_secs(6));
    until("the session still reads", async || client.read(lookup("d")).await.is_ok()).await;
    clock.advance(Duration::from_secs(11));
    until("the session has lapsed", async || {
        client.read(lookup("d")).await.is_err_and(|(code, _)| code == ErrorCode::SessionExpired)
    })
    .await;
    until("the lapse is noted", async || cluster.running[0].as_ref().unwrap().status().sessions.is_empty())
        .await;
    assert_eq!(client.renew().await.unwrap_err().0, ErrorCode::SessionExpired);

    // Its chunk is sealed at what was committed.
    other.open(&[]).await.unwrap();
    until("the abandoned chunk is sealed", async || {
        // A look that comes before the lapse is on record seals nothing; the next one is due by the clock.
        clock.advance(Duration::from_millis(200));
        other.renew().await.unwrap();
        let read = Op::ReadExtents(mooseng_wire::fs::ReadExtents { inode: file, offset: 0, length: 9999 });
        match other.read(read).await {
            Ok(Reply::Extents(map)) => map.chunks[0].sealed && map.chunks[0].length == 100,
            _ => false,
        }
    })
    .await;

    let second = client.open(&[]).await.unwrap();
    assert_eq!((second.session, second.incarnation, second.lapsed), (first.session, 2, true));
    assert_eq!(client.send(&directory).await.unwrap(), made, "an old number still returns its outcome");
    let old = mooseng_wire::session::Request { number: 9, ..directory.clone() };
    assert_eq!(
        client.send(&old).await.unwrap_err().0,
        ErrorCode::StaleEpoch,
        "new work under the old life is refused"
    );
    assert!(matches!(client.change_as(10, mkdir("e")).await.unwrap(), Reply::Entry(_)));
}

/// A client that hears nothing asks again, and the first question may still be under way, or be dropped when it has raised the life on record: whichever
/// answer arrives, it names the life that the session is in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comebacks_of_one_life_come_to_the_same_new_one() {
    let clock = ManualClock::default();
    let cluster = Cluster::start(1, Arc::new(clock.clone())).await;
    let client = cluster.client("c").await;
    let mut life = client.open(&[]).await.unwrap();
    for n in 0..10 {
        clock.advance(Duration::from_secs(11));
        until("the lapse is noted", async || {
            cluster.running[0].as_ref().unwrap().status().sessions.is_empty()
        })
        .await;
        let open = mooseng_wire::session::OpenSession {
            session: life.session,
            incarnation: life.incarnation,
            host: "host".into(),
            mount_path: "/mnt".into(),
            founding: life.founding.clone(),
            ..Default::default()
        };
        // Two that nobody waits for, a moment apart.
        for wait in [0, 2] {
            let asked = client.link().request::<_, SessionOpened>(Method::OpenSession, &open, common::WAIT);
            let _ = tokio::time::timeout(Duration::from_millis(wait), asked).await;
        }
        let ask = || client.call::<_, SessionOpened>(Method::OpenSession, &open);
        let (one, other) = tokio::join!(ask(), ask());
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!((one.incarnation, other.incarnation), (life.incarnation + 1, life.incarnation + 1));
        life = client.open(&[]).await.unwrap();
        assert_eq!((life.incarnation, life.lapsed), (n + 2, true));
        assert!(matches!(client.change_as(n + 1, mkdir(&format!("d{n}"))).await.unwrap(), Reply::Entry(_)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlinked_file_lives_while_it_is_open() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let client = cluster.client("c").await;
    client.open(&[]).await.unwrap();
    let open = created(client.change(create("open")).await.unwrap());
    let closed = created(client.change(create("closed")).await.unwrap());
    // Who makes a file has it open.
    client.read(Op::Release(Release { inode: closed })).await.unwrap();
    client.change(unlink("open")).await.unwrap();
    client.change(unlink("closed")).await.unwrap();
    let get = |inode| Op::GetAttr(GetAttr { inode });
    let gone = async |inode| matches!(client.read(get(inode)).await.unwrap(), Reply::Errno(_));
    until("the closed one is freed", async || gone(closed).await).await;
    assert_eq!(entry(client.read(get(open)).await.unwrap()), open);
    assert!(matches!(
        client.read(Op::Open(Open { inode: closed, flags: 0 })).await.unwrap(),
        Reply::Errno(_)
    ));
    client.read(Op::Release(Release { inode: open })).await.unwrap();
    until("the released one is freed", async || gone(open).await).await;
    let refused = client.change(Op::Reap(Reap { inodes: vec![1] })).await.unwrap_err();
    assert_eq!(refused.0, ErrorCode::PermissionDenied);
}

/// The namespace's part of a copy is tested there. Here: who may hold back data of the source is asked for it first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_waits_for_what_others_hold_back_of_its_source() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let (writer, copier) = (cluster.client("w").await, cluster.client("c").await);
    writer.open(&[]).await.unwrap();
    copier.open(&[]).await.unwrap();
    // Who makes a file is promised it exclusively, and may buffer what it writes.
    let source = created(writer.change(create("f")).await.unwrap());
    let inode = created(copier.change_as(1, create("g")).await.unwrap());
    let copy = Op::CopyRange(CopyRange { source, inode, length: 10, ..CopyRange::default() });
    let waits = tokio::time::timeout(Duration::from_millis(700), copier.change_as(2, copy.clone())).await;
    assert!(waits.is_err(), "{waits:?}");
    let s = writer.session.lock().await.clone();
    let close = CloseSession { session: s.session, incarnation: s.incarnation };
    let _: SessionClosed = writer.call(Method::CloseSession, &close).await.unwrap();
    let Reply::Ranged(ranged) = copier.change_as(2, copy).await.unwrap() else { panic!("not copied") };
    assert_eq!((ranged.done, ranged.more), (0, false));
}

/// A close waits for the next request, whatever that is about; one that arrives late closes nothing that was opened since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closes_come_along_with_reads_and_changes() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let client = cluster.client("c").await;
    client.open(&[]).await.unwrap();
    let gone =
        async |inode| matches!(client.read(Op::GetAttr(GetAttr { inode })).await.unwrap(), Reply::Errno(_));
    let files = [("read", false), ("changed", true)];
    for (name, change) in files {
        let inode = created(client.change(create(name)).await.unwrap());
        let op = if change { mkdir("d") } else { Op::GetAttr(GetAttr { inode: 1 }) };
        let mut late = client.request(if change { 50 } else { 0 }, op).await;
        late.releases = vec![inode, 77];
        client.read(Op::Open(Open { inode, flags: 0 })).await.unwrap();
        client.change(unlink(name)).await.unwrap();
        let method = if change { Method::FsChange } else { Method::FsRead };
        let _: Response = client.call(method, &late).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!gone(inode).await, "it was opened after the close");
        let order = client.request(0, Op::GetAttr(GetAttr { inode: 1 })).await.order;
        let closing = mooseng_wire::session::Request { order, ..late };
        let _: Response = client.call(method, &closing).await.unwrap();
        until("it is freed", async || gone(inode).await).await;
    }
}

/// A message that was given up, or overtaken, may arrive at any time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_comes_late_doesnt_close_what_was_opened_after_it() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let client = cluster.client("c").await;
    let opened = client.open(&[]).await.unwrap();
    let inode = created(client.change(create("f")).await.unwrap());
    let late = client.request(0, Op::Release(Release { inode })).await;
    let undeclared = client.request(0, Op::Release(Release { inode })).await.order;
    client.read(Op::Open(Open { inode, flags: 0 })).await.unwrap();
    client.change(unlink("f")).await.unwrap();
    let other = created(client.change(create("g")).await.unwrap());
    client.change(unlink("g")).await.unwrap();
    client.read(Op::Release(Release { inode: other })).await.unwrap();
    let _: Response = client.call(Method::FsRead, &late).await.unwrap();
    // So may a declaration.
    let declaration = OpenSession {
        session: opened.session,
        incarnation: opened.incarnation,
        custody_epoch: opened.custody_epoch,
        order: undeclared,
        ..OpenSession::default()
    };
    let _: SessionOpened = client.call(Method::OpenSession, &declaration).await.unwrap();
    let get = |inode| Op::GetAttr(GetAttr { inode });
    until("the one that isn't open is freed", async || {
        matches!(client.read(get(other)).await.unwrap(), Reply::Errno(_))
    })
    .await;
    assert_eq!(entry(client.read(get(inode)).await.unwrap()), inode);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_its_session_has_given_up_never_happens_later() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let (client, other) = (cluster.client("c").await, cluster.client("o").await);
    client.open(&[]).await.unwrap();
    let seen = other.open(&[]).await.unwrap();
    client.change_as(1, mkdir("a")).await.unwrap();
    // The other session is promised that there is no such name, so the change waits for it.
    assert!(matches!(other.read(lookup("b")).await.unwrap(), Reply::Errno(2)));
    let waiting = client.request(2, mkdir("b")).await;
    let late = Request { number: 3, ..client.request(3, mkdir("c")).await };
    let given_up = Request { oldest_unanswered: 4, ..client.request(0, lookup("a")).await };
    let (outcome, ()) = futures::join!(client.send(&waiting), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let _: Response = client.call(Method::FsRead, &given_up).await.unwrap();
        let close = CloseSession { session: seen.session, incarnation: seen.incarnation };
        let _: SessionClosed = other.call(Method::CloseSession, &close).await.unwrap();
    });
    assert_eq!(outcome.unwrap_err().0, ErrorCode::InvalidRequest);
    assert_eq!(client.send(&late).await.unwrap_err().0, ErrorCode::InvalidRequest);
    for name in ["b", "c"] {
        assert!(matches!(client.read(lookup(name)).await.unwrap(), Reply::Errno(2)), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_at_the_next_leader() {
    let mut cluster = Cluster::start(3, Arc::new(OsClock)).await;
    let client = cluster.client("c").await;
    let first = client.open(&[]).await.unwrap();
    let directory = client.request(1, mkdir("d")).await;
    let made = client.send(&directory).await.unwrap();
    let orphan = created(client.change_as(2, create("orphan")).await.unwrap());
    client.change_as(3, unlink("orphan")).await.unwrap();
    for name in ["a", "b"] {
        assert_eq!(cluster.beat(name, |_| ()).await.len(), 3, "every master takes heartbeats");
    }

    let old = cluster.leader().await;
    cluster.kill(old).await;
    let new = cluster.leader().await;
    assert_ne!(new, old);
    // What the client doesn't know yet: the new leader wants it to declare itself.
    let unknown = client.read(lookup("d")).await.unwrap_err();
    assert_eq!(unknown.0, ErrorCode::SessionExpired);
    let second = client.open(&[orphan]).await.unwrap();
    assert_eq!((second.session, second.incarnation, second.lapsed), (first.session, 1, false));
    assert!(second.custody_epoch > first.custody_epoch);
    assert_eq!(client.send(&directory).await.unwrap(), made, "the first outcome, at another master");
    assert_eq!(entry(client.read(Op::GetAttr(GetAttr { inode: orphan })).await.unwrap()), orphan);
    let inode = created(client.change_as(4, create("f")).await.unwrap());
    assert!(inode > orphan, "ids of ranges that were given before aren't given again");
    let allocate = Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] });
    assert!(
        matches!(client.change_as(5, allocate).await.unwrap(), Reply::Allocated(_)),
        "its registry is warm"
    );
    let s = cluster.running[new].as_ref().unwrap().status();
    assert_eq!(s.leader, new as u64 + 1);
    until("the dead master is found", async || {
        let status = cluster.running[new].as_ref().unwrap().status();
        status.findings.iter().any(|f| f.code == "MASTER_DOWN")
    })
    .await;

    cluster.run(old).await;
    until("the dead master is back", async || {
        let status = cluster.running[new].as_ref().unwrap().status();
        status.masters.iter().all(|m| m.reachable)
    })
    .await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    for other in &others {
        cluster.kill(*other).await;
    }
    until("a master without quorum isn't ready", async || {
        cluster.running[leader].as_ref().unwrap().ready().is_err_and(|e| e.contains("NO_QUORUM"))
    })
    .await;
    assert!(!cluster.running[leader].as_ref().unwrap().is_serving());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_on_request_and_at_a_stop() {
    let mut cluster = Cluster::start(3, Arc::new(OsClock)).await;
    let leader = cluster.leader().await;
    let client = cluster.client("c").await;
    client.open(&[]).await.unwrap();
    let address = cluster.addresses()[leader].clone();
    let admin = Arc::new(PlainNetwork::new(identity(Role::Admin, "ops")));
    let mut administration = AdministrationClient::new(grpc_channel(admin, &address, Role::Master).await);
    let status = administration.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.leader, leader as u64 + 1);
    let named = administration.transfer_leader(TransferLeaderRequest { to: 2 }).await.unwrap_err();
    assert!(named.message().contains("NotBuilt"), "{named}");
    administration.transfer_leader(TransferLeaderRequest { to: 0 }).await.unwrap();
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    cluster.running[next].take().unwrap().stop().await;
    let last = cluster.leader().await;
    assert_ne!(last, next);
    client.open(&[]).await.unwrap();
    assert!(matches!(client.change(mkdir("d")).await.unwrap(), Reply::Entry(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_does_only_what_their_certificate_allows() {
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let address = cluster.addresses()[0].clone();
    cluster.leader().await;
    let client = cluster.client("c").await;
    client.open(&[]).await.unwrap();
    let s = client.session.lock().await.clone();

    // Another client can't use the session.
    let thief = cluster.client("thief").await;
    *thief.session.lock().await = s;
    assert_eq!(thief.read(lookup("d")).await.unwrap_err().0, ErrorCode::PermissionDenied);
    assert_eq!(thief.change_as(1, mkdir("d")).await.unwrap_err().0, ErrorCode::PermissionDenied);
    assert_eq!(thief.renew().await.unwrap_err().0, ErrorCode::PermissionDenied);
    assert_eq!(thief.open(&[]).await.unwrap_err().0, ErrorCode::PermissionDenied);

    // Session 0 is the master's own.
    *thief.session.lock().await = SessionOpened::default();
    assert_eq!(thief.change_as(1, mkdir("d")).await.unwrap_err().0, ErrorCode::InvalidRequest);

    // A client doesn't speak Raft; another region's client isn't known here; a chunkserver has no files.
    let append = client.link().call(
        Method::RaftAppend,
        bytes::Bytes::new(),
        bytes::Bytes::new(),
        Duration::from_secs(5),
    );
    let Err(CallFailure::Remote(refused)) = append.await else { panic!("Raft answered a client") };
    assert_eq!(refused.code(), ErrorCode::PermissionDenied);
    let foreign = Identity { region: "us".into(), ..identity(Role::Client, "c") };
    let link = Link::new(
        Arc::new(PlainNetwork::new(foreign)),
        address.clone(),
        Role::Master,
        LinkOptions::default(),
    );
    let ask = OpenSession::default();
    let open = link.request::<_, SessionOpened>(Method::OpenSession, &ask, Duration::from_secs(5));
    let Err(CallFailure::Remote(refused)) = open.await else { panic!("another region's client was let in") };
    assert_eq!(refused.code(), ErrorCode::PermissionDenied);

    // Heartbeats are chunkservers', each for itself; administration is for administrators.
    let as_client = Arc::new(PlainNetwork::new(identity(Role::Client, "c")));
    let channel = grpc_channel(as_client, &address, Role::Master).await;
    let beat = RegistryClient::new(channel.clone()).heartbeat(HeartbeatRequest::default()).await;
    assert_eq!(beat.unwrap_err().code(), tonic::Code::PermissionDenied);
    let mut administration = AdministrationClient::new(channel);
    assert!(administration.status(StatusRequest {}).await.is_ok());
    let transfer = administration.transfer_leader(TransferLeaderRequest { to: 0 }).await;
    assert_eq!(transfer.unwrap_err().code(), tonic::Code::PermissionDenied);
    let as_chunkserver = Arc::new(PlainNetwork::new(identity(Role::Chunkserver, "a")));
    let channel = grpc_channel(as_chunkserver, &address, Role::Master).await;
    let other = HeartbeatRequest { chunkserver: "b".into(), ..HeartbeatRequest::default() };
    let beat = RegistryClient::new(channel).heartbeat(other).await;
    assert_eq!(beat.unwrap_err().code(), tonic::Code::PermissionDenied);
}

/// Whoever waits behind hundreds that wait for another part of the file gets what becomes free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_granted_to_the_last_of_many_who_wait() {
    const MANY: u64 = 600;
    let cluster = Cluster::start(1, Arc::new(OsClock)).await;
    let client = cluster.client("c").await;
    client.open(&[]).await.unwrap();
    let inode = created(client.change_as(1, create("f")).await.unwrap());
    let spec = |owner, at| LockSpec {
        kind: LockKind::Range.into(),
        owner,
        start: at,
        end: at,
        exclusive: true,
        ..LockSpec::default()
    };
    let lock = |owner, at, wait| Op::Lock(Lock { inode, lock: Some(spec(owner, at)), wait });
    let mut number = 1;
    let mut ask = async |op| {
        number += 1;
        match client.change_as(number, op).await.unwrap() {
            Reply::Locked(locked) => Some(locked.state()),
            _ => None,
        }
    };
    assert_eq!(ask(lock(1, 0, 0)).await, Some(LockState::Held));
    assert_eq!(ask(lock(2, 5, 0)).await, Some(LockState::Held));
    for owner in 10..10 + MANY {
        assert_eq!(ask(lock(owner, 0, owner)).await, Some(LockState::Queued));
    }
    assert_eq!(ask(lock(3, 5, 3)).await, Some(LockState::Queued));
    ask(Op::Unlock(Unlock { inode, lock: Some(spec(2, 5)) })).await;
    let holder = async || {
        let asked = Op::TestLock(TestLock { inode, lock: Some(spec(4, 5)) });
        match client.read(asked).await.unwrap() {
            Reply::LockHolder(holder) => holder.lock.map(|lock| lock.owner),
            other => panic!("no holder: {other:?}"),
        }
    };
    let granted = async {
        while holder().await != Some(3) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // The wait isn't asked for anew here.
    tokio::time::timeout(Duration::from_secs(10), granted).await.unwrap();
}
