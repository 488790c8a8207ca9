//! The framed stream between real sockets, without TLS.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use mooseng_transport::descriptors::{Counter, Token, our_uid};
use mooseng_transport::{
    Answer, CallFailure, ConnectError, Connection, ConnectionHandle, Incoming, Limits, Link, LinkOptions,
    Listener, MemoryOffer, Network, Peer, PlainNetwork, Protocol, Service, Services, call_error, plain,
    serve,
};
use mooseng_wire::call::{CallError, CallMeta, ErrorCode, Hello, HelloAnswer};
use mooseng_wire::chunk::{MemoryLent, Read};
use mooseng_wire::frame::{FRAME_BYTES_MAX, Frame, Kind};
use mooseng_wire::level::Levels;
use mooseng_wire::method::Method;
use mooseng_wire::{Identity, Role, version};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

fn identity(role: Role) -> Identity {
    Identity { cluster: "test".into(), region: "here".into(), role, name: "one".into() }
}

/// Echoes reads and appends, never answers changes, counts what was cancelled.
#[derive(Default)]
struct Echo {
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

async fn start() -> (String, Arc<AtomicUsize>, CancellationToken) {
    let network = PlainNetwork::new(identity(Role::Master));
    let listener = network.listen("127.0.0.1:0").await.unwrap();
    let (address, shutdown, echo) = (listener.local_address(), CancellationToken::new(), Echo::default());
    let dropped = echo.dropped.clone();
    let services = Services { stream: Arc::new(echo), grpc: None, allow: |_, _| Ok(()) };
    tokio::spawn(serve(listener, services, Limits::default(), shutdown.clone()));
    (address, dropped, shutdown)
}

fn link(address: &str, role: Role) -> Link {
    Link::new(
        Arc::new(PlainNetwork::new(identity(Role::Client))),
        address.into(),
        role,
        LinkOptions::default(),
    )
}

const WAIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn many_calls_get_their_own_answers() {
    let (address, _, _shutdown) = start().await;
    let link = link(&address, Role::Master);
    let calls = (0..2000u32).map(|i| {
        let link = link.clone();
        async move {
            let bulk = Bytes::from(vec![i as u8; (i as usize * 37) % 70_000]);
            let answer = link
                .call(Method::FsRead, Bytes::from(i.to_le_bytes().to_vec()), bulk.clone(), WAIT)
                .await
                .unwrap();
            assert_eq!(answer.body[..], i.to_le_bytes());
            assert_eq!(answer.bulk, bulk);
        }
    });
    join_all(calls).await;
}

#[tokio::test]
async fn a_stuck_change_holds_up_no_read_and_its_deadline_cancels_it() {
    let (address, dropped, _shutdown) = start().await;
    let link = link(&address, Role::Master);
    let stuck = link.call(Method::FsChange, Bytes::new(), Bytes::new(), Duration::from_millis(300));
    let read = link.call(Method::FsRead, Bytes::from_static(b"x"), Bytes::new(), WAIT);
    let (stuck, read) = tokio::join!(stuck, read);
    assert_eq!(&read.unwrap().body[..], b"x");
    let code = |e: &CallError| e.code == ErrorCode::DeadlineExceeded as i32;
    assert!(
        matches!(&stuck, Err(CallFailure::Timeout(_)))
            || matches!(&stuck, Err(CallFailure::Remote(e)) if code(e))
    );
    while dropped.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_at_the_server() {
    let (address, dropped, _shutdown) = start().await;
    let link = link(&address, Role::Master);
    let call = tokio::time::timeout(
        Duration::from_millis(100),
        link.call(Method::FsChange, Bytes::new(), Bytes::new(), Duration::from_secs(100)),
    );
    assert!(call.await.is_err());
    while dropped.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_peer_of_another_role_is_refused_with_the_reason() {
    let (address, _, _shutdown) = start().await;
    let failure = link(&address, Role::Chunkserver)
        .call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT)
        .await
        .unwrap_err();
    assert!(matches!(failure, CallFailure::Connect(_)), "{failure}");
    assert!(failure.to_string().contains("chunkserver"), "{failure}");
}

#[tokio::test]
async fn calls_in_flight_are_lost_when_the_server_goes_and_the_link_comes_back() {
    let (address, _, shutdown) = start().await;
    let link = link(&address, Role::Master);
    link.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
    let waiting = tokio::spawn({
        let link = link.clone();
        async move { link.call(Method::FsChange, Bytes::new(), Bytes::new(), WAIT).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    shutdown.cancel();
    assert!(matches!(waiting.await.unwrap(), Err(CallFailure::Lost(_))));
    let network = PlainNetwork::new(identity(Role::Master));
    let listener = network.listen(&address).await.unwrap();
    let services = Services { stream: Arc::new(Echo::default()), grpc: None, allow: |_, _| Ok(()) };
    tokio::spawn(serve(listener, services, Limits::default(), CancellationToken::new()));
    while link.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_oversized_frame_ends_its_connection_and_no_other() {
    let (address, _, _shutdown) = start().await;
    let mut hostile = tokio::net::TcpStream::connect(&address).await.unwrap();
    let hello = format!("mooseng/1 {}\n", identity(Role::Client));
    hostile.write_all(hello.as_bytes()).await.unwrap();
    hostile.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let _ = hostile.read_to_end(&mut rest).await;
    link(&address, Role::Master).call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
}

/// Reads one frame from a raw peer's stream.
async fn raw_frame(io: &mut tokio::net::TcpStream, buffer: &mut bytes::BytesMut) -> Option<Frame> {
    loop {
        if let Some(frame) = Frame::decode(buffer, FRAME_BYTES_MAX).unwrap() {
            return Some(frame);
        }
        if io.read_buf(buffer).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

fn raw(kind: Kind, call: u64, body: impl Into<Bytes>) -> Vec<u8> {
    raw_with(kind, call, body.into(), CallMeta::default(), b"")
}

fn raw_with(kind: Kind, call: u64, body: Bytes, meta: CallMeta, bulk: &'static [u8]) -> Vec<u8> {
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
async fn raw_client(address: &str) -> (tokio::net::TcpStream, bytes::BytesMut) {
    let mut io = tokio::net::TcpStream::connect(address).await.unwrap();
    plain::greet(&mut io, Protocol::Stream, &identity(Role::Client)).await.unwrap();
    plain::read_greeting(&mut io).await.unwrap();
    io.write_all(&raw(Kind::Hello, 0, version::hello(Levels::OURS).encode_to_vec())).await.unwrap();
    let mut buffer = bytes::BytesMut::new();
    assert_eq!(raw_frame(&mut io, &mut buffer).await.unwrap().kind, Kind::HelloAnswer);
    (io, buffer)
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_noticed_long_before_the_call_ends() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        plain::read_greeting(&mut io).await.unwrap();
        plain::greet(&mut io, Protocol::Stream, &identity(Role::Master)).await.unwrap();
        let mut buffer = bytes::BytesMut::new();
        let hello = raw_frame(&mut io, &mut buffer).await.unwrap();
        let answer = version::agree(&version::hello(Levels::OURS), &Hello::decode(hello.body).unwrap());
        io.write_all(&raw(Kind::HelloAnswer, 0, answer.encode_to_vec())).await.unwrap();
        std::future::pending::<()>().await;
        drop(io);
    });
    let call = link(&address, Role::Master)
        .call(Method::FsRead, Bytes::new(), Bytes::new(), Duration::from_secs(3600))
        .await;
    assert!(matches!(call, Err(CallFailure::Lost(_))), "{call:?}");
}

async fn start_with(
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
struct Watched {
    /// What the last peer supports.
    levels: Mutex<Levels>,
    connected: AtomicUsize,
    disconnected: AtomicUsize,
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

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn who_may_not_connect_is_told_why() {
    let (address, watched, _shutdown) = start_with(Limits::default(), |peer, _| {
        Err(format!("a {} has no business here", peer.identity.role))
    })
    .await;
    let failure = link(&address, Role::Master)
        .call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT)
        .await
        .unwrap_err();
    assert!(matches!(failure, CallFailure::Connect(_)), "{failure}");
    assert!(failure.to_string().contains("a client has no business here"), "{failure}");
    assert_eq!(watched.connected.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn both_ends_tell_which_feature_levels_they_support() {
    let (address, watched, _shutdown) = start_with(Limits::default(), |_, _| Ok(())).await;
    let network = PlainNetwork::new(identity(Role::Client)).with_levels(Levels::told(1, 4));
    let link = Link::new(Arc::new(network), address.clone(), Role::Master, LinkOptions::default());
    assert_eq!(link.levels(), None, "nothing is connected yet");
    link.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
    assert_eq!(link.levels(), Some(Levels::told(2, 3)));
    assert_eq!(*watched.levels.lock().unwrap(), Levels::told(1, 4));
    link.reset();
    assert_eq!(link.levels(), None, "whoever answers next may be of another release");
    // A release from before levels.
    let mut io = tokio::net::TcpStream::connect(&address).await.unwrap();
    plain::greet(&mut io, Protocol::Stream, &identity(Role::Client)).await.unwrap();
    plain::read_greeting(&mut io).await.unwrap();
    io.write_all(&raw(Kind::Hello, 0, vec![8_u8, 1, 16, 1])).await.unwrap();
    let mut buffer = bytes::BytesMut::new();
    assert_eq!(raw_frame(&mut io, &mut buffer).await.unwrap().kind, Kind::HelloAnswer);
    until(|| *watched.levels.lock().unwrap() == Levels::default()).await;
}

#[tokio::test]
async fn a_peer_of_a_foreign_version_is_told_both_versions() {
    let (address, _, _shutdown) = start().await;
    let mut io = tokio::net::TcpStream::connect(&address).await.unwrap();
    plain::greet(&mut io, Protocol::Stream, &identity(Role::Client)).await.unwrap();
    plain::read_greeting(&mut io).await.unwrap();
    let hello = Hello { version_min: 98, version_max: 99, software: "tomorrow".into(), ..Hello::default() };
    io.write_all(&raw(Kind::Hello, 0, hello.encode_to_vec())).await.unwrap();
    let mut buffer = bytes::BytesMut::new();
    let answer = raw_frame(&mut io, &mut buffer).await.unwrap();
    let refused = HelloAnswer::decode(answer.body).unwrap().refused;
    assert!(refused.contains("98 to 99"), "{refused}");
    assert!(raw_frame(&mut io, &mut buffer).await.is_none(), "the connection ends");
}

#[tokio::test]
async fn services_learn_of_every_end_also_when_the_server_stops() {
    let (address, watched, shutdown) = start_with(Limits::default(), |_, _| Ok(())).await;
    let (stays, leaves) = (link(&address, Role::Master), link(&address, Role::Master));
    for link in [&stays, &leaves] {
        link.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
    }
    leaves.close();
    until(|| watched.disconnected.load(Ordering::SeqCst) == 1).await;
    shutdown.cancel();
    until(|| watched.disconnected.load(Ordering::SeqCst) == 2).await;
    assert_eq!(watched.connected.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn calls_and_bytes_past_the_bounds_are_answered_busy_and_other_lanes_go_on() {
    let limits = Limits { calls_per_lane_max: 2, ..Limits::default() };
    let (address, _, _shutdown) = start_with(limits, |_, _| Ok(())).await;
    let link = link(&address, Role::Master);
    let change = |wait| link.call(Method::FsChange, Bytes::new(), Bytes::new(), wait);
    let mut stuck: Vec<_> = (0..2).map(|_| Box::pin(change(Duration::from_secs(3600)))).collect();
    for call in &mut stuck {
        assert!(tokio::time::timeout(Duration::from_millis(50), call).await.is_err());
    }
    let is_busy = |r: &Result<Answer, CallFailure>| matches!(r, Err(CallFailure::Remote(e)) if e.code == ErrorCode::Busy as i32);
    let third = change(WAIT).await;
    assert!(is_busy(&third), "{third:?}");
    link.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
    drop(stuck);

    let (address, _, _shutdown) =
        start_with(Limits { bytes_max: 1000, ..Limits::default() }, |_, _| Ok(())).await;
    let link = self::link(&address, Role::Master);
    let large = link.call(Method::FsChange, Bytes::new(), Bytes::from(vec![0; 2000]), WAIT).await;
    assert!(is_busy(&large), "{large:?}");
    link.call(Method::Renew, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
}

/// Whatever of a request stays in memory counts, also what no message has a use for.
#[tokio::test]
async fn a_calls_metadata_counts() {
    let limits = Limits { bytes_per_lane_max: 100_000, ..Limits::default() };
    let (address, _, _shutdown) = start_with(limits, |_, _| Ok(())).await;
    let (mut io, mut buffer) = raw_client(&address).await;
    for call in [5, 6] {
        let meta = CallMeta { deadline_ms: 60_000, trace: vec![1; 60_000].into(), ..CallMeta::default() };
        let mut frame = raw_with(Kind::Request, call, Bytes::new(), meta, b"");
        frame[6..8].copy_from_slice(&(Method::FsChange as u16).to_le_bytes());
        io.write_all(&frame).await.unwrap();
    }
    let answer = raw_frame(&mut io, &mut buffer).await.unwrap();
    assert_eq!((answer.kind, answer.call), (Kind::Error, 6));
    assert_eq!(CallError::decode(answer.body).unwrap().code, ErrorCode::Busy as i32);
}

/// Shares memory; echoes reads, and says whether their bulk came in it; lets changes wait.
struct Sharing {
    socket: std::path::PathBuf,
    offers: std::sync::Mutex<std::collections::BTreeMap<Token, MemoryOffer>>,
}

#[async_trait]
impl Service for Sharing {
    async fn call(&self, incoming: Incoming) -> Result<Answer, CallError> {
        match incoming.method {
            Method::ChunkMemory => {
                let offer = incoming.connection.offer_memory(Box::new(())).unwrap().unwrap();
                let (token, identity) = (Token::random(), offer.identity().unwrap());
                self.offers.lock().unwrap().insert(token, offer);
                Ok(Answer::of(&MemoryLent {
                    socket: self.socket.to_str().unwrap().into(),
                    token: token.0.to_vec().into(),
                    uid: our_uid(),
                    device: identity.device,
                    inode: identity.inode,
                    ..MemoryLent::default()
                }))
            }
            Method::FsChange => std::future::pending().await,
            _ => Ok(Answer { body: vec![u8::from(incoming.was_shared)].into(), bulk: incoming.bulk }),
        }
    }
}

/// A slot whose call nobody waits for rests, for its request may be read later; one whose call was answered is used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_goes_through_shared_memory_as_long_as_there_are_slots_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("lend/socket");
    let shutdown = CancellationToken::new();
    let sharing = Arc::new(Sharing { socket: socket.clone(), offers: std::sync::Mutex::default() });
    let taking = sharing.clone();
    let take: mooseng_transport::descriptors::Take = Arc::new(move |token| {
        let offer = taking.offers.lock().unwrap().remove(token);
        offer.and_then(MemoryOffer::hand_over)
    });
    tokio::spawn(Counter::bind(&socket).unwrap().serve(take, shutdown.clone()));
    let listener = PlainNetwork::new(identity(Role::Master)).listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address();
    let services = Services { stream: sharing, grpc: None, allow: |_, _| Ok(()) };
    tokio::spawn(serve(listener, services, Limits::default(), shutdown.clone()));
    let link = Link::new(
        Arc::new(PlainNetwork::new(identity(Role::Client))),
        address,
        Role::Master,
        LinkOptions { shares_memory: true, ..LinkOptions::default() },
    );
    let mut n = 0_u8;
    let mut was_shared = async || {
        n = n.wrapping_add(1);
        let bulk = Bytes::from(vec![n; 100_000 + usize::from(n)]);
        let answer = link.call(Method::FsRead, Bytes::new(), bulk.clone(), WAIT).await.unwrap();
        assert!(answer.bulk == bulk);
        answer.body[0] == 1
    };
    let until = std::time::Instant::now() + WAIT;
    while !was_shared().await {
        assert!(std::time::Instant::now() < until, "no memory is shared");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..50 {
        assert!(was_shared().await, "slots are used again");
    }
    // Fifteen calls whose answers nobody waits for leave one slot, one more leaves none.
    let stuck = |count: usize| {
        join_all((0..count).map(|_| {
            let (link, bulk) = (link.clone(), Bytes::from(vec![0xee; 100_000]));
            async move {
                let call = link.call(Method::FsChange, Bytes::new(), bulk, WAIT);
                assert!(tokio::time::timeout(Duration::from_millis(100), call).await.is_err());
            }
        }))
    };
    stuck(15).await;
    assert!(was_shared().await);
    stuck(1).await;
    assert!(!was_shared().await, "a slot is used whose request may be read yet");
    shutdown.cancel();
}

#[tokio::test]
async fn the_trace_context_travels() {
    let (address, _, _shutdown) = start_with(Limits::default(), |_, _| Ok(())).await;
    let trace = mooseng_transport::trace::fresh();
    let link = link(&address, Role::Master);
    let call = link.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT);
    assert_eq!(mooseng_transport::TRACE.scope(trace.clone(), call).await.unwrap().body, trace);
}

#[tokio::test]
async fn bulk_in_memory_that_isnt_shared_or_at_two_places_is_refused_and_the_connection_goes_on() {
    let (address, _, _shutdown) = start().await;
    let (mut io, mut buffer) = raw_client(&address).await;
    let meta =
        |shared_bytes| CallMeta { deadline_ms: 9_000, shared_at: 0, shared_bytes, ..CallMeta::default() };
    for (call, shared_bytes, bulk) in [(5, 70_000, &b""[..]), (6, u32::MAX, b""), (7, 2, b"xx")] {
        io.write_all(&raw_with(Kind::Request, call, Bytes::new(), meta(shared_bytes), bulk)).await.unwrap();
        let answer = raw_frame(&mut io, &mut buffer).await.unwrap();
        assert_eq!((answer.kind, answer.call), (Kind::Error, call));
        assert_eq!(CallError::decode(answer.body).unwrap().code, ErrorCode::InvalidRequest as i32);
    }
    io.write_all(&raw_with(Kind::Request, 8, Bytes::new(), meta(0), b"xx")).await.unwrap();
    let answer = raw_frame(&mut io, &mut buffer).await.unwrap();
    assert_eq!((answer.kind, &answer.bulk[..]), (Kind::Response, &b"xx"[..]));
}

#[tokio::test]
async fn unknown_methods_and_malformed_calls_are_answered_and_garbage_ends_only_its_connection() {
    let (address, _, _shutdown) = start().await;
    let (mut io, mut buffer) = raw_client(&address).await;
    let mut unknown = raw(Kind::Request, 5, &b"x"[..]);
    unknown[6..8].copy_from_slice(&60_000u16.to_le_bytes());
    io.write_all(&unknown).await.unwrap();
    let answer = raw_frame(&mut io, &mut buffer).await.unwrap();
    assert_eq!((answer.kind, answer.call), (Kind::Error, 5));
    assert_eq!(CallError::decode(answer.body).unwrap().code, ErrorCode::NotBuilt as i32);
    io.write_all(&raw(Kind::Cancel, 999, Bytes::new())).await.unwrap();
    io.write_all(&raw(Kind::HelloAnswer, 0, Bytes::new())).await.unwrap();
    assert!(raw_frame(&mut io, &mut buffer).await.is_none());
    link(&address, Role::Master).call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
}

#[tokio::test]
async fn strangers_that_say_nothing_are_dropped_and_connections_are_bounded() {
    let limits =
        Limits { connections_max: 2, handshake_timeout: Duration::from_millis(300), ..Limits::default() };
    let (address, _, _shutdown) = start_with(limits, |_, _| Ok(())).await;
    let mut silent = [
        tokio::net::TcpStream::connect(&address).await.unwrap(),
        tokio::net::TcpStream::connect(&address).await.unwrap(),
    ];
    let mut third = tokio::net::TcpStream::connect(&address).await.unwrap();
    assert_eq!(third.read(&mut [0]).await.unwrap_or(0), 0, "turned away");
    for io in &mut silent {
        assert_eq!(io.read(&mut [0]).await.unwrap_or(0), 0, "dropped after its time");
    }
    while link(&address, Role::Master).call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn one_host_doesnt_take_all_connections_nor_all_memory() {
    let limits = Limits { connections_per_identity_max: 2, bytes_max: 1 << 20, ..Limits::default() };
    let (address, _, _shutdown) = start_with(limits, |_, _| Ok(())).await;
    let link_of = |role: Role, name: &str| {
        let identity = Identity { name: name.into(), ..identity(role) };
        Link::new(
            Arc::new(PlainNetwork::new(identity)),
            address.clone(),
            Role::Master,
            LinkOptions::default(),
        )
    };
    let asks = async |link: &Link, body: Bytes| link.call(Method::FsRead, body, Bytes::new(), WAIT).await;
    let mut open: Vec<Link> = (0..3).map(|_| link_of(Role::Client, "greedy")).collect();
    for (n, link) in open.iter().enumerate() {
        assert_eq!(asks(link, Bytes::new()).await.is_ok(), n < 2, "connection {n}");
    }
    asks(&link_of(Role::Client, "other"), Bytes::new()).await.unwrap();
    // Masters among each other aren't bounded so.
    let masters: Vec<Link> = (0..3).map(|_| link_of(Role::Master, "m")).collect();
    for link in &masters {
        asks(link, Bytes::new()).await.unwrap();
    }
    // One that went makes room.
    let gone = open.remove(0);
    gone.close();
    let again = link_of(Role::Client, "greedy");
    while asks(&again, Bytes::new()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Of a frame that was announced nothing was counted until it was whole: a host announced any number of them, and sent a byte now and then.
#[tokio::test]
async fn what_a_host_announces_and_does_not_send_takes_its_own_room() {
    const LARGE: usize = 200_000;
    let limits =
        Limits { unfinished_per_identity_max: LARGE * 3 / 2, bytes_max: 1 << 20, ..Limits::default() };
    let (address, _, _shutdown) = start_with(limits, |_, _| Ok(())).await;
    let bulk: &'static [u8] = vec![7; LARGE].leak();
    let request = |call, bulk| {
        let meta = CallMeta { deadline_ms: 9_000, ..CallMeta::default() };
        raw_with(Kind::Request, call, Bytes::new(), meta, bulk)
    };
    let (mut first, mut of_first) = raw_client(&address).await;
    first.write_all(&request(5, bulk)[..1000]).await.unwrap();
    let (mut second, mut of_second) = raw_client(&address).await;
    let mut asks = async |call: u64, bulk| {
        second.write_all(&request(call, bulk)).await.unwrap();
        let answer = raw_frame(&mut second, &mut of_second).await.unwrap();
        assert_eq!(answer.call, call);
        (answer.kind == Kind::Error).then(|| CallError::decode(answer.body).unwrap())
    };
    let mut call = 0;
    let refused = loop {
        call += 1;
        // As long as the server hasn't read what was announced.
        if let Some(refused) = asks(call, bulk).await {
            break refused;
        }
    };
    assert!(refused.code == ErrorCode::Busy as i32 && refused.message.contains("host"), "{refused:?}");
    assert_eq!(asks(call + 1, &b"small"[..]).await, None, "what was dropped doesn't disturb what follows");
    let other = Identity { name: "other".into(), ..identity(Role::Client) };
    let network = Arc::new(PlainNetwork::new(other));
    let other = Link::new(network, address.clone(), Role::Master, LinkOptions::default());
    other.call(Method::FsRead, Bytes::new(), Bytes::from_static(bulk), WAIT).await.unwrap();

    first.write_all(&request(5, bulk)[1000..]).await.unwrap();
    let answer = raw_frame(&mut first, &mut of_first).await.unwrap();
    assert_eq!((answer.kind, answer.call), (Kind::Response, 5));
    assert_eq!(asks(call + 2, bulk).await, None, "there is room again");
}

/// Answers reads with as many bytes as they ask for, and counts those as long as they are there.
#[derive(Default)]
struct Bulky {
    there: Arc<AtomicUsize>,
    most: AtomicUsize,
    disconnected: AtomicUsize,
}

struct Counted {
    bytes: Vec<u8>,
    there: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.there.fetch_sub(self.bytes.len(), Ordering::SeqCst);
    }
}

#[async_trait]
impl Service for Bulky {
    async fn call(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let length = incoming.decode::<Read>()?.length as usize;
        let there = self.there.fetch_add(length, Ordering::SeqCst) + length;
        self.most.fetch_max(there, Ordering::SeqCst);
        let counted = Counted { bytes: vec![7; length], there: self.there.clone() };
        Ok(Answer { body: Bytes::new(), bulk: Bytes::from_owner(counted) })
    }
    fn disconnected(&self, _: u64) {
        self.disconnected.fetch_add(1, Ordering::SeqCst);
    }
}

const MIB: usize = 1 << 20;

async fn start_bulky(stuck_max: Duration) -> (String, Arc<Bulky>) {
    let limits = Limits {
        answer_bytes_max: 64 * MIB,
        answer_bytes_per_identity_max: 32 * MIB,
        answer_bytes_per_connection_max: 8 * MIB,
        stuck_max,
        ..Limits::default()
    };
    let listener = PlainNetwork::new(identity(Role::Master)).listen("127.0.0.1:0").await.unwrap();
    let (address, bulky) = (listener.local_address(), Arc::new(Bulky::default()));
    let services = Services { stream: bulky.clone(), grpc: None, allow: |_, _| Ok(()) };
    tokio::spawn(serve(listener, services, limits, CancellationToken::new()));
    (address, bulky)
}

/// Requests to read 1 MiB each.
fn reads(method: Method, calls: std::ops::Range<u64>) -> Vec<u8> {
    let body = Bytes::from(Read { length: MIB as u32, ..Read::default() }.encode_to_vec());
    let read = |call| {
        let meta = CallMeta { deadline_ms: 60_000, ..CallMeta::default() };
        let mut frame = raw_with(Kind::Request, call, body.clone(), meta, b"");
        frame[6..8].copy_from_slice(&(method as u16).to_le_bytes());
        frame
    };
    calls.flat_map(read).collect()
}

/// A call's answer was counted nowhere, and waited for its caller however long that took: one ticket was enough
/// to fill a chunkserver's memory.
#[tokio::test]
async fn who_asks_for_much_and_reads_nothing_holds_no_more_than_its_room_and_is_ended() {
    let (address, bulky) = start_bulky(Duration::from_secs(2)).await;
    let (mut greedy, _) = raw_client(&address).await;
    greedy.write_all(&reads(Method::ChunkRead, 0..300)).await.unwrap();
    let other = Identity { name: "other".into(), ..identity(Role::Client) };
    let network = Arc::new(PlainNetwork::new(other));
    let other = Link::new(network, address, Role::Master, LinkOptions::default());
    let body = Bytes::from(Read { length: MIB as u32, ..Read::default() }.encode_to_vec());
    let goes_on = async {
        while bulky.disconnected.load(Ordering::SeqCst) == 0 {
            // It is there, and says so.
            let _ended = greedy.write_all(&raw(Kind::Notify, 0, Bytes::new())).await;
            let answer = other.call(Method::ChunkRead, body.clone(), Bytes::new(), WAIT).await.unwrap();
            assert_eq!(answer.bulk.len(), MIB);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), goes_on).await.expect("it is never ended");
    let most = bulky.most.load(Ordering::SeqCst);
    assert!(most > 4 * MIB && most <= 10 * MIB, "{most} bytes were there");
    until(|| bulky.there.load(Ordering::SeqCst) == 0).await;
}

/// What an answer comes to isn't always known before: then there is another one where there is no room.
#[tokio::test]
async fn answers_that_nobody_expected_to_be_large_are_busy_where_there_is_no_room() {
    const READS: u64 = 100;
    let (address, bulky) = start_bulky(Duration::from_secs(60)).await;
    let (mut greedy, mut buffer) = raw_client(&address).await;
    greedy.write_all(&reads(Method::FsRead, 0..READS)).await.unwrap();
    until(|| bulky.most.load(Ordering::SeqCst) >= 6 * MIB).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (mut whole, mut refused) = (0, 0);
    for _ in 0..READS {
        let answer = raw_frame(&mut greedy, &mut buffer).await.unwrap();
        match answer.kind {
            Kind::Response => whole += usize::from(answer.bulk.len() == MIB),
            _ => {
                let error = CallError::decode(answer.body).unwrap();
                assert_eq!(error.code, ErrorCode::Busy as i32, "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(whole >= 6 && refused > 0 && whole + refused == READS as usize, "{whole}, {refused} refused");
    assert!(bulky.most.load(Ordering::SeqCst) <= 9 * MIB);
    greedy.write_all(&reads(Method::FsRead, READS..READS + 1)).await.unwrap();
    let again = raw_frame(&mut greedy, &mut buffer).await.unwrap();
    assert_eq!((again.kind, again.bulk.len()), (Kind::Response, MIB), "there is room again");
    drop(again);
}

/// The control lane takes no room, and its name is its caller's word: changes there do take some.
#[tokio::test]
async fn what_is_no_control_takes_room_on_the_control_lane() {
    let (address, _, _shutdown) =
        start_with(Limits { bytes_max: 1000, ..Limits::default() }, |_, _| Ok(())).await;
    let (mut io, mut buffer) = raw_client(&address).await;
    let request = |call, method: Method| {
        let meta = CallMeta { deadline_ms: 9_000, ..CallMeta::default() };
        let mut frame = raw_with(Kind::Request, call, vec![0; 2000].into(), meta, b"");
        frame[5] = 0;
        frame[6..8].copy_from_slice(&(method as u16).to_le_bytes());
        frame
    };
    for (call, method, kind) in [(5, Method::FsChange, Kind::Error), (6, Method::Renew, Kind::Response)] {
        io.write_all(&request(call, method)).await.unwrap();
        let answer = raw_frame(&mut io, &mut buffer).await.unwrap();
        assert_eq!((answer.call, answer.kind), (call, kind));
    }
}

#[tokio::test]
async fn strangers_by_the_hundred_keep_nobody_out() {
    let limits =
        Limits { handshakes_max: 8, handshake_timeout: Duration::from_secs(600), ..Limits::default() };
    let (address, _, _shutdown) = start_with(limits, |_, _| Ok(())).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    link(&address, Role::Master).call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
    let mut open = 0;
    for io in &mut silent {
        let read = tokio::time::timeout(Duration::from_millis(20), io.read(&mut [0])).await;
        open += usize::from(read.is_err());
    }
    assert!(open <= 8, "{open} that said nothing are still there");
}

/// Connections that are due for retirement after a while; making one takes a while, or fails.
struct Aging {
    network: PlainNetwork,
    made: AtomicUsize,
    life: Duration,
    delay: Duration,
    broken: std::sync::atomic::AtomicBool,
}

impl Aging {
    fn new(life: Duration, delay: Duration) -> Arc<Self> {
        Arc::new(Self {
            network: PlainNetwork::new(identity(Role::Client)),
            made: 0.into(),
            life,
            delay,
            broken: false.into(),
        })
    }
}

#[async_trait]
impl Network for Aging {
    async fn connect(
        &self,
        address: &str,
        protocol: Protocol,
        role: Role,
    ) -> Result<Connection, ConnectError> {
        tokio::time::sleep(self.delay).await;
        if self.broken.load(Ordering::SeqCst) {
            return Err(ConnectError::Unreachable { address: address.into(), reason: "it is broken".into() });
        }
        let mut connection = self.network.connect(address, protocol, role).await?;
        connection.retire_at = Some(tokio::time::Instant::now() + self.life);
        self.made.fetch_add(1, Ordering::SeqCst);
        Ok(connection)
    }
    async fn listen(&self, address: &str) -> std::io::Result<Box<dyn Listener>> {
        self.network.listen(address).await
    }
    fn identity(&self) -> Identity {
        self.network.identity()
    }
}

#[tokio::test]
async fn a_connection_due_for_retirement_carries_calls_until_its_successor_is_made() {
    let (address, watched, _shutdown) = start_with(Limits::default(), |_, _| Ok(())).await;
    let aging = Aging::new(Duration::from_millis(100), Duration::ZERO);
    let link = Link::new(
        aging.clone(),
        address,
        Role::Master,
        LinkOptions { ping_interval: Duration::from_millis(50), ..LinkOptions::default() },
    );
    let read = || link.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT);
    read().await.unwrap();
    let old = tokio::spawn({
        let link = link.clone();
        async move { link.call(Method::FsChange, Bytes::new(), Bytes::new(), Duration::from_secs(2)).await }
    });
    aging.broken.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..20 {
        read().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    aging.broken.store(false, Ordering::SeqCst);
    while aging.made.load(Ordering::SeqCst) < 2 {
        read().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The call in flight on the old connection isn't cut off, and the old connection goes once that call has ended.
    let old = old.await.unwrap();
    let late = |e: &CallError| e.code == ErrorCode::DeadlineExceeded as i32;
    assert!(
        matches!(&old, Err(CallFailure::Timeout(_)))
            || matches!(&old, Err(CallFailure::Remote(e)) if late(e)),
        "{old:?}"
    );
    until(|| watched.disconnected.load(Ordering::SeqCst) >= 1).await;
    read().await.unwrap();
}

#[tokio::test]
async fn a_call_with_a_short_deadline_does_not_undo_the_attempt_to_connect() {
    let (address, _, _shutdown) = start_with(Limits::default(), |_, _| Ok(())).await;
    let slow = Aging::new(Duration::from_secs(3600), Duration::from_millis(300));
    let link = Link::new(slow, address, Role::Master, LinkOptions::default());
    for _ in 0..200 {
        if link.call(Method::FsRead, Bytes::new(), Bytes::new(), Duration::from_millis(100)).await.is_ok() {
            return;
        }
    }
    panic!("no call got through");
}

#[tokio::test]
async fn an_idle_connection_goes_when_it_is_due_instead_of_being_cut_off() {
    let (address, watched, _shutdown) = start_with(Limits::default(), |_, _| Ok(())).await;
    let link = Link::new(
        Aging::new(Duration::from_millis(100), Duration::ZERO),
        address,
        Role::Master,
        LinkOptions { ping_interval: Duration::from_millis(20), ..LinkOptions::default() },
    );
    link.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
    until(|| watched.disconnected.load(Ordering::SeqCst) == 1).await;
    link.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap();
}
