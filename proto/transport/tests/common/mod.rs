//! What tests of the framed stream share: servers that echo or count, and peers of our own making.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_transport::{
    Answer, ConnectionHandle, Incoming, Limits, Link, LinkOptions, Network, Peer, PlainNetwork, Protocol,
    Service, Services, call_error, plain, serve,
};
use mooseng_wire::call::{CallError, CallMeta, ErrorCode};
use mooseng_wire::frame::{FRAME_BYTES_MAX, Frame, Kind};
use mooseng_wire::level::Levels;
use mooseng_wire::method::Method;
use mooseng_wire::{Identity, Role, version};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

pub fn identity(role: Role) -> Identity {
    Identity { cluster: "test".into(), region: "here".into(), role, name: "one".into() }
}

/// Echoes reads and appends, never answers changes, counts what was cancelled.
#[derive(Default)]
pub struct Echo {
    dropped: Arc<AtomicUsize>,
}

struct CountDrop(Arc<AtomicUsize>);
impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Service for Echo {
    async fn call(&self, incoming: Incoming) -> Result<Answer, CallError> {
        match incoming.method {
            Method::FsRead => Ok(Answer { body: incoming.body, bulk: incoming.bulk }),
            Method::FsChange => {
                let _count = CountDrop(self.dropped.clone());
                std::future::pending().await
            }
            _ => Err(call_error(ErrorCode::NotBuilt, "not here")),
        }
    }
}

pub async fn start() -> (String, Arc<AtomicUsize>, CancellationToken) {
    let network = PlainNetwork::new(identity(Role::Master));
    let listener = network.listen("127.0.0.1:0").await.unwrap();
    let (address, shutdown, echo) = (listener.local_address(), CancellationToken::new(), Echo::default());
    let dropped = echo.dropped.clone();
    let services = Services { stream: Arc::new(echo), grpc: None, allow: |_, _| Ok(()) };
    tokio::spawn(serve(listener, services, Limits::default(), shutdown.clone()));
    (address, dropped, shutdown)
}

pub fn link(address: &str, role: Role) -> Link {
    Link::new(
        Arc::new(PlainNetwork::new(identity(Role::Client))),
        address.into(),
        role,
        LinkOptions::default(),
    )
}

pub const WAIT: Duration = Duration::from_secs(10);

/// Reads one frame from a raw peer's stream.
pub async fn raw_frame(io: &mut tokio::net::TcpStream, buffer: &mut bytes::BytesMut) -> Option<Frame> {
    loop {
        if let Some(frame) = Frame::decode(buffer, FRAME_BYTES_MAX).unwrap() {
            return Some(frame);
        }
        if io.read_buf(buffer).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

pub fn raw(kind: Kind, call: u64, body: impl Into<Bytes>) -> Vec<u8> {
    raw_with(kind, call, body.into(), CallMeta::default(), b"")
}

pub fn raw_with(kind: Kind, call: u64, body: Bytes, meta: CallMeta, bulk: &'static [u8]) -> Vec<u8> {
    let frame = Frame {
        kind,
        lane: 1,
        method: Method::FsRead as u16,
        call,
        meta: meta.encode_to_vec().into(),
        body,
        bulk: Bytes::from_static(bulk),
    };
    let mut bytes = bytes::BytesMut::new();
    frame.encode_head(&mut bytes);
    [&bytes[..], bulk].concat()
}

/// A client of our own making: greeted and past its hello.
pub async fn raw_client(address: &str) -> (tokio::net::TcpStream, bytes::BytesMut) {
    let mut io = tokio::net::TcpStream::connect(address).await.unwrap();
    plain::greet(&mut io, Protocol::Stream, &identity(Role::Client)).await.unwrap();
    plain::read_greeting(&mut io).await.unwrap();
    io.write_all(&raw(Kind::Hello, 0, version::hello(Levels::OURS).encode_to_vec())).await.unwrap();
    let mut buffer = bytes::BytesMut::new();
    assert_eq!(raw_frame(&mut io, &mut buffer).await.unwrap().kind, Kind::HelloAnswer);
    (io, buffer)
}

pub async fn start_with(
    limits: Limits,
    allow: fn(&Peer, Protocol) -> Result<(), String>,
) -> (String, Arc<Watched>, CancellationToken) {
    let listener = PlainNetwork::new(identity(Role::Master)).listen("127.0.0.1:0").await.unwrap();
    let (address, shutdown, watched) =
        (listener.local_address(), CancellationToken::new(), Arc::new(Watched::default()));
    let services = Services { stream: watched.clone(), grpc: None, allow };
    tokio::spawn(serve(listener, services, limits, shutdown.clone()));
    (address, watched, shutdown)
}

/// Counts connections; holds changes until it is dropped; tells reads their trace context. It supports feature levels 2 to 3.
#[derive(Default)]
pub struct Watched {
    /// What the last peer supports.
    pub levels: Mutex<Levels>,
    pub connected: AtomicUsize,
    pub disconnected: AtomicUsize,
}

#[async_trait]
impl Service for Watched {
    async fn call(&self, incoming: Incoming) -> Result<Answer, CallError> {
        match incoming.method {
            Method::FsChange => std::future::pending().await,
            _ => Ok(Answer { body: mooseng_transport::trace::current(), bulk: Bytes::new() }),
        }
    }
    fn levels(&self) -> Levels {
        Levels::told(2, 3)
    }
    fn connected(&self, connection: &ConnectionHandle) {
        *self.levels.lock().unwrap() = connection.levels;
        self.connected.fetch_add(1, Ordering::SeqCst);
    }
    fn disconnected(&self, _: u64) {
        self.disconnected.fetch_add(1, Ordering::SeqCst);
    }
}

pub async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
