//! Bytes of a `geo` volume go to the other regions of its sync set as they are appended: nobody reads them at home again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mooseng_chunkserver::{ChunkserverConfig, ChunkserverServer};
use mooseng_master::geo::ROOT_VOLUME;
use mooseng_namespace::upkeep;
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_store::Store;
use mooseng_transport::{Blocking, Link, LinkOptions, PlainNetwork};
use mooseng_wire::chunk::{Append, Appended, ChainMember};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::write_piece::Data;
use mooseng_wire::fs::{AllocateChunk, ChunkLocation, ChunkRun, Create, SealChunk, Write, WritePiece};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Epoch, ROOT_INODE, Role};
use prost::Message;
use tokio_util::sync::CancellationToken;

use super::common::regions::{Regions, identity_of};
use super::common::{Client, WAIT, until};
use super::sync::synced;
use super::{addresses, asked, client, serving};

const FILES: usize = 12;
pub(super) const FILE_BYTES: usize = 50_000;

pub(super) async fn start(regions: &Regions, region: &str, name: &str, disk: SimDisk) -> ChunkserverServer {
    let text = format!(
        "name = \"{name}\"\nregion = \"{region}\"\ncluster = \"test\"\nzone = \"zone-{name}\"\nlisten = \"127.0.0.1:0\"\ndata_dirs = [\"/data\"]\nstate_dir = \"/state\"\nmasters = {:?}\nreserve_bytes = 0\n",
        addresses(regions, region)
    );
    let server = ChunkserverServer::start(
        ChunkserverConfig::parse(&text).unwrap(),
        Arc::new(PlainNetwork::new(identity_of(region, Role::Chunkserver, name))),
        Arc::new(disk),
        Blocking::Pool,
        Arc::new(OsClock),
        CancellationToken::new(),
    );
    server.await.unwrap()
}

/// A region's two chunkservers, on these disks, once its master knows them.
pub(super) async fn both(regions: &Regions, region: &str, disks: &[SimDisk; 2]) -> Vec<ChunkserverServer> {
    let mut servers = Vec::new();
    for (disk, n) in disks.iter().zip(1..) {
        servers.push(start(regions, region, &format!("{region}-c{n}"), disk.clone()).await);
    }
    let known = || {
        serving(regions, region)
            .map(|master| master.desk(|desk| desk.registry.candidates(master.clock.boot()).len()))
    };
    until("its chunkservers are known", async || known() == Some(servers.len())).await;
    servers
}

pub(super) fn metric(servers: &[ChunkserverServer], name: &str) -> u64 {
    let of = |server: &ChunkserverServer| {
        let text = server.metrics().encode();
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.parse::<u64>().unwrap()
    };
    servers.iter().map(of).sum()
}

pub(super) async fn done(home: &Client, op: Op) -> Reply {
    home.open(&[]).await.unwrap();
    let number = home.number.fetch_add(1, Ordering::SeqCst) + 1;
    let reply = asked(home, Method::FsChange, number, number, op).await.reply.unwrap().reply.unwrap();
    assert!(!matches!(reply, Reply::Errno(_)), "{reply:?}");
    reply
}

/// An empty file.
pub(super) async fn create(home: &Client, name: &str) -> u64 {
    let name = name.to_owned().into();
    let create = Create { parent: ROOT_INODE.0, name, mode: 0o644, exclusive: true, truncate: false };
    let Reply::Created(created) = done(home, Op::Create(create)).await else { panic!("not created") };
    created.attr.unwrap().inode
}

/// A file of one chunk, which is sealed before it is named.
pub(super) async fn file(home: &Client, name: &str) -> ChunkId {
    file_after(home, name, async |_, _| {}).await
}

/// The same, with something done before there is a byte of the chunk.
pub(super) async fn file_after(
    home: &Client,
    name: &str,
    before: impl AsyncFnOnce(ChunkId, Epoch),
) -> ChunkId {
    let inode = create(home, name).await;
    let allocate = Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] });
    let Reply::Allocated(allocated) = done(home, allocate).await else { panic!("not allocated") };
    let place = allocated.place.unwrap();
    let bytes = bytes::Bytes::from(vec![7; FILE_BYTES]);
    let member =
        |l: &ChunkLocation| ChainMember { chunkserver: l.chunkserver.clone(), address: l.address.clone() };
    let append = Append {
        chunk: place.chunk,
        epoch: place.epoch,
        offset: 0,
        flush: true,
        ticket: place.ticket.clone(),
        chain: place.locations[1..].iter().map(member).collect(),
        crc: mooseng_chunk::checksum(&bytes),
    };
    let network = Arc::new(PlainNetwork::new(identity_of("a", Role::Client, "c")));
    let address = place.locations[0].address.clone();
    let link = Link::new(network, address, Role::Chunkserver, LinkOptions::default());
    let taken = async {
        before(ChunkId(place.chunk), Epoch(place.epoch)).await;
        // Its key may not have come yet.
        until("the append is taken", async || {
            let append = append.encode_to_vec().into();
            let sent = link.call(Method::ChunkAppend, append, bytes.clone(), WAIT).await;
            sent.is_ok_and(|sent| Appended::decode(sent.body).unwrap().flushed == FILE_BYTES as u64)
        })
        .await;
    };
    // What a session has allocated ends with its lease.
    let keep = async {
        loop {
            let _ = home.renew().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = taken => {}
        never = keep => never,
    }
    let length = FILE_BYTES as u64;
    let seal = SealChunk { chunk: place.chunk, acknowledged: length, failed: vec![] };
    done(home, Op::SealChunk(seal)).await;
    let run = ChunkRun { chunk: place.chunk, chunk_offset: 0, length };
    let piece = WritePiece { offset: 0, data: Some(Data::Run(run)) };
    done(home, Op::Write(Write { inode, pieces: vec![piece], ..Write::default() })).await;
    ChunkId(place.chunk)
}

/// The regions' chunkservers, of which those of the home, on these disks, send bytes to the others, and a client of the home.
pub(super) async fn sending(
    regions: &Regions,
    disks: &[SimDisk; 2],
) -> (Vec<ChunkserverServer>, Vec<ChunkserverServer>, Client) {
    let here = both(regions, "a", disks).await;
    let there = both(regions, "b", &Default::default()).await;
    let home = client(regions, "a", "a");
    let mut tried = 0;
    until("bytes are sent", async || {
        tried += 1;
        file(&home, &format!("before{tried}")).await;
        metric(&here, "mooseng_chunkserver_pushed_bytes_total") > 0
    })
    .await;
    until("all of it is there", async || is_complete(regions)).await;
    (here, there, home)
}

pub(super) fn is_complete(regions: &Regions) -> bool {
    let master = serving(regions, "b").unwrap();
    let newest = serving(regions, "a").unwrap().geo.newest(ROOT_VOLUME);
    master.geo.replica(ROOT_VOLUME).record.is_some_and(|record| record.complete() == newest)
}

/// The other region has two whole copies, which were compared with what they are to be.
pub(super) async fn is_compared(regions: &Regions, chunk: ChunkId) -> bool {
    let master = serving(regions, "b").unwrap();
    let listing = upkeep::load_chunk(&master.store.begin(), chunk).await.unwrap();
    listing.is_some_and(|of| of.location.is_some_and(|at| at.partial.is_none() && at.copies.len() == 2))
}

/// Found by measuring: a small file's chunk is sealed by the time that the log names it, and was then read at home, whole, after two more round trips.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_isnt_read_at_home_though_the_chunk_is_sealed_by_then() {
    let regions = synced().await;
    let (_here, there, home) = sending(&regions, &Default::default()).await;
    let before = metric(&there, "mooseng_chunkserver_pulled_bytes_total");
    let mut chunks = Vec::new();
    for n in 0..FILES {
        chunks.push(file(&home, &format!("f{n}")).await);
    }
    until("all of it is there", async || is_complete(&regions)).await;
    for chunk in chunks {
        until("it is compared with what it is to be", async || is_compared(&regions, chunk).await).await;
    }
    let pulled = metric(&there, "mooseng_chunkserver_pulled_bytes_total") - before;
    // What comes late may have been read.
    assert!(
        pulled <= (FILES * FILE_BYTES / 2) as u64,
        "{pulled} bytes were read at home, or from each other"
    );
}

/// Found by review: bytes that came otherwise than the home has them were taken for compared once their copies had been sealed by their length, and where no other
/// chunkservers are nothing took their place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_and_differs_is_read_anew() {
    let regions = synced().await;
    let (_here, there, home) = sending(&regions, &Default::default()).await;
    let chunk = file_after(&home, "differs", async |chunk, epoch| {
        for server in &there {
            let bytes = bytes::Bytes::from(vec![8; FILE_BYTES]);
            server.store().write(&mooseng_chunk::Append { chunk, epoch, offset: 0, bytes }).unwrap();
        }
    })
    .await;
    until("it is compared with what it is to be", async || is_compared(&regions, chunk).await).await;
    for server in &there {
        let bytes = server.store().read(chunk, 0, FILE_BYTES as u64).unwrap();
        assert!(bytes == vec![7_u8; FILE_BYTES], "{} bytes, of {:?} first", bytes.len(), bytes.first());
        assert!(server.store().stat(chunk).unwrap().sealed);
    }
}
