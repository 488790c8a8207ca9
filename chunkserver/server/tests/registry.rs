//! Heartbeats: readiness, keys, inventories, commands.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use common::*;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_chunk::Append as StoreAppend;
use mooseng_chunk::layout::RECORD_AT;
use mooseng_ports::disk::sim::{Fault, SimDisk};
use mooseng_ports::disk::{Disk, OpenMode};
use mooseng_transport::grpc::registry_server::{Registry, RegistryServer};
use mooseng_transport::{
    Answer, Incoming, Limits, Network, PlainNetwork, Service, Services, call_error, serve,
};
use mooseng_wire::admin::chunkserver_command::Command;
use mooseng_wire::admin::{
    ChunkReport, ChunkserverCommand, DeleteCommand, HeartbeatReply, HeartbeatRequest, SealCommand, TicketKey,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::founding::Founding;
use mooseng_wire::{ChunkId, Epoch};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

#[derive(Default)]
struct Seen {
    beats: Vec<HeartbeatRequest>,
    chunks: Vec<ChunkReport>,
    complete: u64,
    commands: Vec<ChunkserverCommand>,
    keys: Vec<TicketKey>,
    epoch: u64,
    want_inventory: bool,
    founding: Option<Founding>,
    refuses: bool,
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
        let theirs = Founding::told(&beat.founding).unwrap();
        seen.beats.push(HeartbeatRequest { inventory: vec![], ..beat });
        if seen.refuses && theirs.is_some() && theirs != seen.founding {
            let error = call_error(ErrorCode::OtherFounding, "another founding");
            let error = CallError { detail: Founding::tell(seen.founding), ..error };
            let details = error.encode_to_vec().into();
            return Err(Status::with_details(Code::FailedPrecondition, error.message, details));
        }
        Ok(Response::new(HeartbeatReply {
            want_inventory: std::mem::take(&mut seen.want_inventory),
            commands: std::mem::take(&mut seen.commands),
            ticket_keys: seen.keys.clone(),
            epoch: seen.epoch,
            interval_ms: 100,
            custody: 1,
            founding: Founding::tell(seen.founding),
            others: Vec::new(),
            revocations: None,
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
            ("a", store.incarnation(), a.server.address())
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

/// Masters take a chunkserver that they don't hear of for lost, with all of its disks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_go_on_while_a_command_waits_for_a_disk_that_hangs() {
    let (master, address, _stop) = fake_master().await;
    let a = start_on(SimDisk::default(), config("a", vec![address])).await;
    let store = a.server.store().clone();
    store.write(&StoreAppend { chunk: ChunkId(1), epoch: Epoch(1), offset: 0, bytes: "abc".into() }).unwrap();
    store.flush(ChunkId(1)).unwrap();
    until("a heartbeat came", || async { !master.0.lock().unwrap().beats.is_empty() }).await;
    a.disk.set_fault(Fault::Hanging);
    let seal = command(Command::Seal(SealCommand { chunk: 1, epoch: 1, length: 3 }));
    for _ in 0..2 {
        master.0.lock().unwrap().commands = vec![seal];
        until("the command is taken", || async { master.0.lock().unwrap().commands.is_empty() }).await;
        let before = master.0.lock().unwrap().beats.len();
        until("more heartbeats came", || async { master.0.lock().unwrap().beats.len() > before + 4 }).await;
        assert!(!store.stat(ChunkId(1)).unwrap().sealed, "the disk hangs");
    }
    a.disk.set_fault(Fault::None);
    until("the command is carried out", || async { store.stat(ChunkId(1)).unwrap().sealed }).await;
}

/// Found by review: of a disk that hung only /readyz told, and each call that waited for it took a thread, until heartbeats had none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_is_told_of_and_only_a_few_calls_wait_for_it() {
    let (master, address, _stop) = fake_master().await;
    master.0.lock().unwrap().keys = vec![TicketKey { id: 1, key: key().secret.into() }];
    let a = start_on(SimDisk::default(), config("a", vec![address])).await;
    a.server.store().see_epoch(0, Epoch(1)).unwrap();
    until("it is ready", || async { a.server.ready().is_ok() }).await;
    let client = Caller::client(&a);
    for chunk in 1..=20 {
        client.append(append(chunk, 0, vec![]), b"abc").await.unwrap();
    }
    a.disk.set_fault(Fault::Hanging);
    until("the master hears of it", || async {
        let seen = master.0.lock().unwrap();
        seen.beats.last().is_some_and(|beat| beat.disks[0].hangs_s > 0 && !beat.disks[0].writable)
    })
    .await;
    let why = a.server.ready().unwrap_err();
    assert!(why.contains("/data hasn't answered"), "{why}");
    let more = |chunk| {
        let client = client.clone();
        async move { client.append(append(chunk, 3, vec![]), b"def").await }
    };
    let mut appends: FuturesUnordered<_> = (1..=20).map(more).collect();
    for _ in 0..8 {
        let refused = appends.next().await.unwrap().unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Busy, "{}", refused.message);
    }
    // Those that wait for it are served once it is back.
    a.disk.set_fault(Fault::None);
    let done: Vec<bool> = appends.map(|appended| appended.is_ok()).collect().await;
    assert!(done.contains(&true), "nobody waited");
    until("it is ready again", || async { a.server.ready().is_ok() }).await;
    client.append(append(21, 0, vec![]), b"abc").await.unwrap();
}

/// Found by review: a deletion waited for its turn behind a copy of its chunk that was being taken up, and was carried out long after its master had heard heartbeats by which
/// it took it for done or left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_has_its_turn_too_late_is_left() {
    let (master, address, _stop) = fake_master().await;
    let a = start_on(SimDisk::default(), config("a", vec![address])).await;
    let store = a.server.store().clone();
    for chunk in [1, 2].map(ChunkId) {
        store.write(&StoreAppend { chunk, epoch: Epoch(1), offset: 0, bytes: "abc".into() }).unwrap();
        store.flush(chunk).unwrap();
    }
    until("a heartbeat came", || async { !master.0.lock().unwrap().beats.is_empty() }).await;
    let digest = store.digest(ChunkId(1), 3).unwrap();
    a.disk.set_fault(Fault::Hanging);
    let on = store.clone();
    let taken_up = std::thread::spawn(move || {
        let mut import = on.import(ChunkId(1), Epoch(1), 3, &digest).unwrap().unwrap();
        import.write(&"abc".into()).unwrap();
        on.install(import, &digest, 0, 0).unwrap();
    });
    // Its record is written while it has the turn, before it is flushed.
    until("a copy is being taken up", || async {
        let files = a.disk.files();
        let Some((path, _)) = files.iter().find(|(path, _)| path.to_string_lossy().ends_with(".pull")) else {
            return false;
        };
        let mut record = [0; 4];
        a.disk.open(path, OpenMode::ReadOnly).unwrap().read_at(&mut record, RECORD_AT[1]).unwrap();
        record != [0; 4]
    })
    .await;
    let commands = |list: Vec<Command>| list.into_iter().map(command).collect::<Vec<_>>();
    master.0.lock().unwrap().commands = commands(vec![Command::Delete(DeleteCommand { chunk: 1, epoch: 1 })]);
    until("the command is taken", || async { master.0.lock().unwrap().commands.is_empty() }).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    a.disk.set_fault(Fault::None);
    taken_up.join().unwrap();
    // Commands are carried out one answer's after the other's: behind the first one.
    until("a later command is carried out", || async {
        master.0.lock().unwrap().commands =
            commands(vec![Command::Delete(DeleteCommand { chunk: 2, epoch: 1 })]);
        store.stat(ChunkId(2)).is_err()
    })
    .await;
    assert!(store.stat(ChunkId(1)).is_ok(), "its master may have thought better of it");
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
    let first = a.server.store().incarnation();
    assert!(first > 1_000_000_000, "as many as no chunkserver has started before");
    a.stop.cancel();
    a.server.stopped().await;
    let again = start_on(disk, config("a", vec![address])).await;
    until("the restart is reported", || async {
        master.0.lock().unwrap().beats.last().is_some_and(|b| b.incarnation == first + 1)
    })
    .await;
    stop.cancel();
    drop(again);
}

const OURS: Founding = Founding([7; 16]);
const OTHER: Founding = Founding([8; 16]);

/// A master's first mark is kept, and whoever tells another one has nothing done: whether it refuses the chunkserver, as it should, or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_was_made_anew_has_nothing_done() {
    for refuses in [false, true] {
        let (master, address, _stop) = fake_master().await;
        {
            let mut seen = master.0.lock().unwrap();
            seen.keys = vec![TicketKey { id: 1, key: key().secret.into() }];
            (seen.founding, seen.refuses) = (Some(OURS), refuses);
        }
        let disk = SimDisk::default();
        let a = start_on(disk.clone(), config("a", vec![address.clone()])).await;
        let store = a.server.store().clone();
        for n in 1..=3 {
            let append = StoreAppend { chunk: ChunkId(n), epoch: Epoch(1), offset: 0, bytes: "abc".into() };
            store.write(&append).unwrap();
            store.flush(ChunkId(n)).unwrap();
        }
        until("the mark is kept and told", || async {
            let told = master.0.lock().unwrap().beats.last().map(|b| b.founding.clone());
            store.founding() == Some(OURS) && told.as_deref() == Some(&OURS.0[..])
        })
        .await;
        until("it is ready", || async { a.server.ready().is_ok() }).await;
        a.stop.cancel();
        a.server.stopped().await;
        // The region is made anew, with everything that it may order.
        {
            let mut seen = master.0.lock().unwrap();
            seen.founding = Some(OTHER);
            seen.keys = vec![TicketKey { id: 1, key: vec![9; 32].into() }];
            seen.epoch = 9;
            seen.commands = vec![
                command(Command::Seal(SealCommand { chunk: 1, epoch: 9, length: 2 })),
                command(Command::Delete(DeleteCommand { chunk: 2, epoch: 9 })),
            ];
            seen.beats.clear();
            seen.want_inventory = true;
        }
        let a = start_on(disk, config("a", vec![address])).await;
        let store = a.server.store().clone();
        until("it says what is wrong", || async {
            a.server
                .ready()
                .is_err_and(|why| why.starts_with("OTHER_FOUNDING") && why.contains(&OTHER.to_string()))
        })
        .await;
        let beats = master.0.lock().unwrap().beats.len();
        until("it has reported again", || async { master.0.lock().unwrap().beats.len() > beats + 1 }).await;
        let metrics = a.server.metrics().encode();
        assert!(metrics.contains("mooseng_chunkserver_other_foundings 1\n"), "{metrics}");
        {
            let seen = master.0.lock().unwrap();
            let last = seen.beats.last().unwrap();
            assert!(!last.inventory_page && last.changed.is_empty(), "it tells of no chunks");
            assert_eq!(last.founding, OURS.0[..]);
        }
        assert!(a.server.keys().is_empty(), "foreign keys aren't learned");
        assert_eq!(store.highest_epoch(), Epoch(1));
        assert!((1..=3).all(|n| store.stat(ChunkId(n)).is_ok_and(|s| !s.sealed && s.length == 3)));
        // The old region's master is there again.
        master.0.lock().unwrap().founding = Some(OURS);
        until("it is ready again", || async { a.server.ready().is_ok() }).await;
        until("the inventory is told", || async { master.0.lock().unwrap().complete > 0 }).await;
    }
}

/// A leader of an earlier version tells no mark; neither does one of a region that was made anew by such a version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_without_a_mark_wait_once_there_is_one() {
    let (master, address, _stop) = fake_master().await;
    let a = start_on(SimDisk::default(), config("a", vec![address])).await;
    let store = a.server.store().clone();
    for n in 1..=2 {
        let append = StoreAppend { chunk: ChunkId(n), epoch: Epoch(1), offset: 0, bytes: "abc".into() };
        store.write(&append).unwrap();
    }
    let delete = |chunk| vec![command(Command::Delete(DeleteCommand { chunk, epoch: 1 }))];
    master.0.lock().unwrap().commands = delete(1);
    until("without any mark it is obeyed", || async { store.stat(ChunkId(1)).is_err() }).await;
    master.0.lock().unwrap().founding = Some(OURS);
    until("the mark is kept", || async { store.founding() == Some(OURS) }).await;
    {
        let mut seen = master.0.lock().unwrap();
        (seen.founding, seen.commands) = (None, delete(2));
        seen.beats.clear();
    }
    until("it has answered", || async { master.0.lock().unwrap().beats.len() > 3 }).await;
    assert!(store.stat(ChunkId(2)).is_ok());
    master.0.lock().unwrap().founding = Some(OURS);
    master.0.lock().unwrap().commands = delete(2);
    until("with the mark it is obeyed", || async { store.stat(ChunkId(2)).is_err() }).await;
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
