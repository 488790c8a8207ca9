//! Chunkservers in this process, over plain TCP and simulated disks.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_chunk::checksum;
use mooseng_chunk::ticket::{self, APPEND, Claims, Key, READ};
use mooseng_chunkserver::{ChunkserverConfig, ChunkserverServer};
use mooseng_ports::clock::{Clock, OsClock};
use mooseng_ports::disk::sim::SimDisk;
use mooseng_transport::{Answer, Blocking, CallFailure, Link, LinkOptions, PlainNetwork};
use mooseng_wire::admin::TicketKey;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Append, Appended, ChainFailure, ChainMember, Read, ReadDone, Seal, Sealed};
use mooseng_wire::method::Method;
use mooseng_wire::{Epoch, Identity, Role};
use prost::Message;
use tokio_util::sync::CancellationToken;

pub const WAIT: Duration = Duration::from_secs(20);

pub fn id(role: &str, name: &str) -> Identity {
    Identity::parse(&format!("spiffe://test/eu/{role}/{name}")).unwrap()
}

/// Somebody of another region.
pub fn abroad(role: &str, name: &str) -> Identity {
    Identity::parse(&format!("spiffe://test/us/{role}/{name}")).unwrap()
}

pub fn key() -> Key {
    Key { id: 1, secret: vec![7; 32] }
}

pub fn ticket_with(key: &Key, rights: u32, expires_in_ms: i64) -> Bytes {
    let now_ms = OsClock.unix_ns() / 1_000_000;
    let expires_ms = u64::try_from(now_ms + expires_in_ms).unwrap();
    ticket::sign(key, &Claims { session: 1, volume: 0, chunk: 0, rights, expires_ms }).into()
}

pub fn ticket() -> Bytes {
    ticket_with(&key(), READ | APPEND, 60_000)
}

pub struct Running {
    pub server: ChunkserverServer,
    pub disk: SimDisk,
    pub stop: CancellationToken,
}

pub fn config(name: &str, masters: Vec<String>) -> ChunkserverConfig {
    ChunkserverConfig::parse(&format!(
        "name = \"{name}\"\nregion = \"eu\"\ncluster = \"test\"\nlisten = \"127.0.0.1:0\"\ndata_dirs = [\"/data\"]\nstate_dir = \"/state\"\nmasters = {masters:?}\nreserve_bytes = 0\nchain_timeout_ms = 500\n"
    ))
    .unwrap()
}

pub async fn start_on(disk: SimDisk, config: ChunkserverConfig) -> Running {
    let network = Arc::new(PlainNetwork::new(id("chunkserver", &config.name)));
    let stop = CancellationToken::new();
    let server = ChunkserverServer::start(
        config,
        network,
        Arc::new(disk.clone()),
        Blocking::Pool,
        Arc::new(OsClock),
        stop.clone(),
    )
    .await
    .unwrap();
    Running { server, disk, stop }
}

/// One that knows the ticket key and the first epoch without a master (nobody listens on port 1).
pub async fn start(name: &str) -> Running {
    let running = start_on(SimDisk::default(), config(name, vec!["127.0.0.1:1".into()])).await;
    running.server.store().see_epoch(0, Epoch(1)).unwrap();
    running.server.keys().learn(&[TicketKey { id: key().id, key: key().secret.into() }]);
    running
}

pub fn member(name: &str, address: &str) -> ChainMember {
    ChainMember { chunkserver: name.into(), address: address.into() }
}

/// A client or master that calls one chunkserver.
#[derive(Clone)]
pub struct Caller(Link);

pub type Called<T> = Result<T, CallError>;

fn remote<T>(result: Result<T, CallFailure>) -> Called<T> {
    result.map_err(|failure| match failure {
        CallFailure::Remote(error) => error,
        other => panic!("no answer: {other}"),
    })
}

impl Caller {
    pub fn new(who: Identity, address: &str) -> Self {
        Self::with(who, address, LinkOptions::default())
    }

    pub fn with(who: Identity, address: &str, options: LinkOptions) -> Self {
        let network = Arc::new(PlainNetwork::new(who));
        Self(Link::new(network, address.to_owned(), Role::Chunkserver, options))
    }

    pub fn client(running: &Running) -> Self {
        Self::new(id("client", "c1"), running.server.address())
    }

    pub async fn call(&self, method: Method, message: &impl Message, bulk: Bytes) -> Called<Answer> {
        remote(self.0.call(method, message.encode_to_vec().into(), bulk, WAIT).await)
    }

    pub async fn append(&self, append: Append, bytes: &[u8]) -> Called<Appended> {
        let append = Append { crc: if append.crc == 0 { checksum(bytes) } else { append.crc }, ..append };
        let answer = self.call(Method::ChunkAppend, &append, Bytes::copy_from_slice(bytes)).await?;
        Ok(Appended::decode(answer.body).unwrap())
    }

    pub async fn read(&self, chunk: u64, offset: u64, length: u32, ticket: Bytes) -> Called<Bytes> {
        let answer =
            self.call(Method::ChunkRead, &Read { chunk, offset, length, ticket }, Bytes::new()).await?;
        assert_eq!(ReadDone::decode(answer.body).unwrap().crc, checksum(&answer.bulk));
        Ok(answer.bulk)
    }

    pub async fn seal(&self, chunk: u64, epoch: u64, length: u64, ticket: Bytes) -> Called<u64> {
        let answer =
            self.call(Method::ChunkSeal, &Seal { chunk, epoch, length, ticket }, Bytes::new()).await?;
        Ok(Sealed::decode(answer.body).unwrap().length)
    }
}

/// A flushed append of epoch 1 with a good ticket.
pub fn append(chunk: u64, offset: u64, chain: Vec<ChainMember>) -> Append {
    Append { chunk, epoch: 1, offset, flush: true, ticket: ticket(), chain, crc: 0 }
}

pub fn named(error: &CallError) -> String {
    assert_eq!(error.code(), ErrorCode::ChainFailed, "{}", error.message);
    ChainFailure::decode(&error.detail[..]).unwrap().chunkserver
}

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + WAIT;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
