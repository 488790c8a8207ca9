//! Heartbeats: readiness, keys, inventories, commands.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use common::*;
use mooseng_chunk::Append as StoreAppend;
use mooseng_ports::disk::sim::{Fault, SimDisk};
use mooseng_transport::grpc::registry_server::{Registry, RegistryServer};
use mooseng_transport::{
    Answer, Incoming, Limits, Network, PlainNetwork, Service, Services, call_error, serve,
};
use mooseng_wire::admin::chunkserver_command::Command;
use mooseng_wire::admin::{
    ChunkReport, ChunkserverCommand, DeleteCommand, HeartbeatReply, HeartbeatRequest, SealCommand, TicketKey,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::{ChunkId, Epoch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

#[derive(Default)]
struct Seen {
    beats: Vec<HeartbeatRequest>,
    chunks: Vec<ChunkReport>,
    complete: u64,
    commands: Vec<ChunkserverCommand>,
    keys: Vec<TicketKey>,
    epoch: u64,
    want_inventory: bool,
}

/// A master that only has a registry.
#[derive(Clone, Default)]
struct FakeMaster(Arc<Mutex<Seen>>);

#[async_trait]
impl Registry for FakeMaster {
    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let beat = request.into_inner();
        let mut seen = self.0.lock().unwrap();
        if beat.inventory_page {
            seen.chunks.extend(beat.inventory.iter().cloned());
            seen.complete += u64::from(!beat.more);
        }
        seen.beats.push(HeartbeatRequest { inventory: vec![], ..beat });
        Ok(Response::new(HeartbeatReply {
            want_inventory: std::mem::take(&mut seen.want_inventory),
            commands: std::mem::take(&mut seen.commands),
            ticket_keys: seen.keys.clone(),
            epoch: seen.epoch,
            interval_ms: 100,
            custody: 1,
        }))
    }
}

struct NoStream;

#[async_trait]
impl Service for NoStream {
    async fn call(&self, _: Incoming) -> Result<Answer, CallError> {
        Err(call_error(ErrorCode::NotBuilt, "a fake"))
    }
}

async fn fake_master() -> (FakeMaster, String, CancellationToken) {
    let listener = PlainNetwork::new(id("master", "m1")).listen("127.0.0.1:0").await.unwrap();
    let (master, address, stop) = (FakeMaster::default(), listener.local_address(), CancellationToken::new());
    let routes = tonic::service::Routes::new(RegistryServer::new(master.clone()));
    let services = Services { stream: Arc::new(NoStream), grpc: Some(routes), allow: |_, _| Ok(()) };
    tokio::spawn(serve(listener, services, Limits::default(), stop.clone()));
    (master, address, stop)
}

fn command(command: Command) -> ChunkserverCommand {
    ChunkserverCommand { command: Some(command) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunkserver_reports_learns_and_obeys() {
    let (master, address, _stop) = fake_master().await;
    // A second master that isn't there holds nobody up.
    let a = start_on(SimDisk::default(), config("a", vec!["127.0.0.1:1".into(), address])).await;
    let store = a.server.store().clone();
    let chunks = 5000u64;
    for n in 1..=chunks {
        store
            .write(&StoreAppend { chunk: ChunkId(n), epoch: Epoch(1), offset: 0, bytes: "abc".into() })
            .unwrap();
    }
    until("a heartbeat came", || async { !master.0.lock().unwrap().beats.is_empty() }).await;
    {
        let seen = master.0.lock().unwrap();
        let beat = &seen.beats[0];
        assert_eq!(
            (beat.chunkserver.as_str(), beat.incarnation, beat.address.as_str()),
            ("a", 1, a.server.address())
        );
        assert!(beat.disks[0].writable && beat.disks[0].bytes_total > 0 && !beat.disks[0].id.is_empty());
    }
    assert!(a.server.ready().unwrap_err().contains("ticket key"), "not ready without a key");
    {
        let mut seen = master.0.lock().unwrap();
        seen.keys = vec![TicketKey { id: 1, key: key().secret.into() }];
        seen.epoch = 3;
        seen.want_inventory = true;
        seen.chunks.clear();
        seen.complete = 0;
    }
    until("the inventory is complete", || async { master.0.lock().unwrap().complete > 0 }).await;
    {
        let seen = master.0.lock().unwrap();
        let ids: Vec<u64> = seen.chunks.iter().map(|c| c.chunk).collect();
        assert!(ids == (1..=chunks).collect::<Vec<_>>(), "{} chunks in the inventory", ids.len());
        assert!(seen.beats.iter().any(|b| b.more), "it came in pages");
    }
    until("it is ready", || async { a.server.ready().is_ok() }).await;
    until("the epoch is known", || async { store.highest_epoch() == Epoch(3) }).await;
    master.0.lock().unwrap().commands = vec![
        command(Command::Seal(SealCommand { chunk: 1, epoch: 3, length: 2 })),
        command(Command::Delete(DeleteCommand { chunk: 2, epoch: 3 })),
        command(Command::Delete(DeleteCommand { chunk: 3, epoch: 2 })),
    ];
    until("the commands are carried out", || async {
        store.stat(ChunkId(1)).unwrap().sealed && store.stat(ChunkId(2)).is_err()
    })
    .await;
    assert_eq!(store.stat(ChunkId(1)).unwrap().length, 2);
    assert!(store.stat(ChunkId(3)).is_ok(), "a deletion of an old epoch isn't obeyed");
    until("the master hears what became of them", || async {
        let seen = master.0.lock().unwrap();
        let sealed = |c: &ChunkReport| c.chunk == 1 && c.sealed && c.length == 2;
        seen.beats.iter().any(|b| b.changed.iter().any(sealed)) && seen.beats.iter().any(|b| b.gone == [2])
    })
    .await;
    until("the master hears the epoch", || async {
        master.0.lock().unwrap().beats.last().unwrap().highest_epoch == 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_the_disk_and_a_restart_counts() {
    let (master, address, stop) = fake_master().await;
    master.0.lock().unwrap().keys = vec![TicketKey { id: 1, key: key().secret.into() }];
    let disk = SimDisk::default();
    let a = start_on(disk.clone(), config("a", vec![address.clone()])).await;
    until("it is ready", || async { a.server.ready().is_ok() }).await;
    disk.set_fault(Fault::Failing);
    until("it notices the disk", || async { a.server.ready().is_err() }).await;
    until("the master hears of it", || async {
        master.0.lock().unwrap().beats.last().is_some_and(|b| !b.disks[0].writable)
    })
    .await;
    disk.set_fault(Fault::None);
    until("it is ready again", || async { a.server.ready().is_ok() }).await;
    a.stop.cancel();
    a.server.stopped().await;
    let again = start_on(disk, config("a", vec![address])).await;
    until("the restart is reported", || async {
        master.0.lock().unwrap().beats.last().is_some_and(|b| b.incarnation == 2)
    })
    .await;
    stop.cancel();
    drop(again);
}

#[tokio::test]
async fn a_certificate_of_somebody_else_stops_the_start() {
    let network = Arc::new(PlainNetwork::new(id("chunkserver", "other")));
    let started = mooseng_chunkserver::ChunkserverServer::start(
        config("a", vec!["127.0.0.1:1".into()]),
        network,
        Arc::new(SimDisk::default()),
        mooseng_transport::Blocking::Inline,
        Arc::new(mooseng_ports::clock::OsClock),
        CancellationToken::new(),
    )
    .await;
    let error = started.err().unwrap().to_string();
    assert!(error.contains("other") && error.contains("chunkserver/a"), "{error}");
}
