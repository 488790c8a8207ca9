//! The framed stream between real sockets, without TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use mooseng_transport::{
    Answer, CallFailure, Incoming, Limits, Link, LinkOptions, Network, PlainNetwork, Service, Services, call_error, serve,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::method::Method;
use mooseng_wire::{Identity, Role};
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
    Link::new(Arc::new(PlainNetwork::new(identity(Role::Client))), address.into(), role, LinkOptions::default())
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
            let answer = link.call(Method::FsRead, Bytes::from(i.to_le_bytes().to_vec()), bulk.clone(), WAIT).await.unwrap();
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
    assert!(matches!(&stuck, Err(CallFailure::Timeout(_))) || matches!(&stuck, Err(CallFailure::Remote(e)) if code(e)));
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
    let failure = link(&address, Role::Chunkserver).call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await.unwrap_err();
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
