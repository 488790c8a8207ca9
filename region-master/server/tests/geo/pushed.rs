//! Bytes of a `geo` volume go to the other regions of its sync set as they are appended: nobody reads them at home again.

use std::sync::Arc;

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
use mooseng_wire::{ChunkId, ROOT_INODE, Role};
use prost::Message;
use tokio_util::sync::CancellationToken;

use super::common::regions::{Regions, identity_of};
use super::common::{Client, WAIT, until};
use super::sync::synced;
use super::{addresses, client, serving};

const FILES: usize = 12;
const FILE_BYTES: usize = 50_000;

async fn start(regions: &Regions, region: &str, name: &str) -> ChunkserverServer {
    let text = format!(
        "name = \"{name}\"\nregion = \"{region}\"\ncluster = \"test\"\nzone = \"zone-{name}\"\nlisten = \"127.0.0.1:0\"\ndata_dirs = [\"/data\"]\nstate_dir = \"/state\"\nmasters = {:?}\nreserve_bytes = 0\n",
        addresses(regions, region)
    );
    let server = ChunkserverServer::start(
        ChunkserverConfig::parse(&text).unwrap(),
        Arc::new(PlainNetwork::new(identity_of(region, Role::Chunkserver, name))),
        Arc::new(SimDisk::default()),
        Blocking::Pool,
        Arc::new(OsClock),
        CancellationToken::new(),
    );
    server.await.unwrap()
}

fn metric(servers: &[ChunkserverServer], name: &str) -> u64 {
    let of = |server: &ChunkserverServer| {
        let text = server.metrics().encode();
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.parse::<u64>().unwrap()
    };
    servers.iter().map(of).sum()
}

async fn done(home: &Client, op: Op) -> Reply {
    // It renews nothing by itself.
    home.open(&[]).await.unwrap();
    let reply = home.change_alone(op).await.unwrap();
    assert!(!matches!(reply, Reply::Errno(_)), "{reply:?}");
    reply
}

/// A file of one chunk, which is sealed before it is named.
async fn file(home: &Client, name: &str) -> ChunkId {
    let name = name.to_owned().into();
    let create = Create { parent: ROOT_INODE.0, name, mode: 0o644, exclusive: true, truncate: false };
    let Reply::Created(created) = done(home, Op::Create(create)).await else { panic!("not created") };
    let inode = created.attr.unwrap().inode;
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
    // Its key may not have come yet.
    until("the append is taken", async || {
        let sent = link.call(Method::ChunkAppend, append.encode_to_vec().into(), bytes.clone(), WAIT).await;
        sent.is_ok_and(|sent| Appended::decode(sent.body).unwrap().flushed == FILE_BYTES as u64)
    })
    .await;
    let length = FILE_BYTES as u64;
    let seal = SealChunk { chunk: place.chunk, acknowledged: length, failed: vec![] };
    done(home, Op::SealChunk(seal)).await;
    let run = ChunkRun { chunk: place.chunk, chunk_offset: 0, length };
    let piece = WritePiece { offset: 0, data: Some(Data::Run(run)) };
    done(home, Op::Write(Write { inode, pieces: vec![piece], ..Write::default() })).await;
    ChunkId(place.chunk)
}

/// Found by measuring: a small file's chunk is sealed by the time that the log names it, and was then read at home, whole, after two more round trips.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_isnt_read_at_home_though_the_chunk_is_sealed_by_then() {
    let regions = synced().await;
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for n in 1..=2 {
        here.push(start(&regions, "a", &format!("a-c{n}")).await);
        there.push(start(&regions, "b", &format!("b-c{n}")).await);
    }
    for (region, servers) in [("a", 2), ("b", 2)] {
        let known = || {
            serving(&regions, region)
                .map(|master| master.desk(|desk| desk.registry.candidates(master.clock.boot()).len()))
        };
        until("its chunkservers are known", async || known() == Some(servers)).await;
    }
    let home = client(&regions, "a", "a");
    let mut tried = 0;
    until("bytes are sent", async || {
        tried += 1;
        file(&home, &format!("before{tried}")).await;
        metric(&here, "mooseng_chunkserver_pushed_bytes_total") > 0
    })
    .await;
    let complete = async || {
        let master = serving(&regions, "b").unwrap();
        let newest = serving(&regions, "a").unwrap().geo.newest(ROOT_VOLUME);
        master.geo.replica(ROOT_VOLUME).record.is_some_and(|record| record.complete() == newest)
    };
    until("all of it is there", async || complete().await).await;
    let before = metric(&there, "mooseng_chunkserver_pulled_bytes_total");
    let mut chunks = Vec::new();
    for n in 0..FILES {
        chunks.push(file(&home, &format!("f{n}")).await);
    }
    until("all of it is there", async || complete().await).await;
    let master = serving(&regions, "b").unwrap();
    for chunk in chunks {
        until("it is compared with what it is to be", async || {
            let listing = upkeep::load_chunk(&master.store.begin(), chunk).await.unwrap();
            listing
                .is_some_and(|of| of.location.is_some_and(|at| at.partial.is_none() && at.copies.len() == 2))
        })
        .await;
    }
    let pulled = metric(&there, "mooseng_chunkserver_pulled_bytes_total") - before;
    // What comes late may have been read.
    assert!(
        pulled <= (FILES * FILE_BYTES / 2) as u64,
        "{pulled} bytes were read at home, or from each other"
    );
}
