//! The framed stream between real sockets, without TLS: many calls on one connection, who is at its ends, and connections that end and come back.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{Echo, WAIT, identity, link, raw, raw_frame, start, start_with, until};
use futures::future::join_all;
use mooseng_transport::descriptors::{Counter, Token, our_uid};
use mooseng_transport::{
    Answer, CallFailure, ConnectError, Connection, Incoming, Limits, Link, LinkOptions, Listener,
    MemoryOffer, Network, PlainNetwork, Protocol, Service, Services, plain, serve,
};
use mooseng_wire::call::{CallError, ErrorCode, Hello, HelloAnswer};
use mooseng_wire::chunk::MemoryLent;
use mooseng_wire::frame::Kind;
use mooseng_wire::level::Levels;
use mooseng_wire::method::Method;
use mooseng_wire::{Identity, Role, version};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

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
