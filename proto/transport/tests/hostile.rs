//! The framed stream between real sockets, without TLS: what hosts may hold whose program isn't good, and that they keep nobody else out.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{WAIT, identity, link, raw, raw_client, raw_frame, raw_with, start, start_with, until};
use mooseng_transport::{
    Answer, CallFailure, Incoming, Limits, Link, LinkOptions, Network, PlainNetwork, Service, Services, serve,
};
use mooseng_wire::call::{CallError, CallMeta, ErrorCode};
use mooseng_wire::chunk::Read;
use mooseng_wire::frame::Kind;
use mooseng_wire::method::Method;
use mooseng_wire::{Identity, Role};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

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
