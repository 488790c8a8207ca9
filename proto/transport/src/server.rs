//! The serving side: accepts, authenticates, and runs the calls of each connection within bounds.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::{AbortHandle, Abortable};
use futures::stream::{FuturesUnordered, StreamExt};
use mooseng_wire::call::{CallError, CallMeta, ErrorCode, Hello};
use mooseng_wire::frame::{FRAME_BYTES_MAX, Frame, HELLO_BYTES_MAX, Kind};
use mooseng_wire::method::{LANES, Lane, Method};
use mooseng_wire::version;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, ReadHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::network::{Connection, Io, Listener, Peer, Protocol};
use crate::outbox::{Closed, Outbox};

/// A call that arrived.
pub struct Incoming {
    /// Which.
    pub method: Method,
    /// The encoded message.
    pub body: Bytes,
    /// Bytes beside it.
    pub bulk: Bytes,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Who calls.
    pub peer: Arc<Peer>,
    /// W3C trace context, or empty.
    pub trace: Bytes,
    /// The connection that it came on.
    pub connection: ConnectionHandle,
}

impl Incoming {
    /// Decodes the message.
    pub fn decode<M: Message + Default>(&self) -> Result<M, CallError> {
        M::decode(self.body.clone()).map_err(|e| {
            crate::call_error(ErrorCode::InvalidRequest, format!("a {} message is malformed: {e}", self.method.as_str()))
        })
    }
}

/// A call's answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The encoded message.
    pub body: Bytes,
    /// Bytes beside it.
    pub bulk: Bytes,
}

impl Answer {
    /// An answer without bulk.
    pub fn of(message: &impl Message) -> Self {
        Self { body: message.encode_to_vec().into(), bulk: Bytes::new() }
    }
    /// An answer with bulk.
    pub fn with_bulk(message: &impl Message, bulk: Bytes) -> Self {
        Self { body: message.encode_to_vec().into(), bulk }
    }
}

/// Answers calls. Whether the peer may make a call is checked by the service, call by call.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Answers one call. Dropped when the caller cancels or its deadline passes.
    async fn call(&self, incoming: Incoming) -> Result<Answer, CallError>;
    /// A connection was made.
    fn connected(&self, _connection: &ConnectionHandle) {}
    /// A connection ended.
    fn disconnected(&self, _connection: u64) {}
}

/// A connection as its service sees it.
#[derive(Clone)]
pub struct ConnectionHandle {
    /// Unique in this process.
    pub id: u64,
    /// Who is at the other end.
    pub peer: Arc<Peer>,
    outbox: Arc<Outbox>,
}

/// A message couldn't be sent: the connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed")]
pub struct ConnectionClosed;

impl ConnectionHandle {
    /// Sends a message that has no answer.
    pub fn notify(&self, method: Method, body: Bytes) -> Result<(), ConnectionClosed> {
        let frame = Frame {
            kind: Kind::Notify,
            lane: Lane::Control as u8,
            method: method as u16,
            call: 0,
            meta: Bytes::new(),
            body,
            bulk: Bytes::new(),
        };
        self.outbox.push_now(frame).map_err(|Closed| ConnectionClosed)
    }
    /// Ends the connection.
    pub fn close(&self) {
        self.outbox.close();
    }
}

/// Bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Connections whose peer isn't known yet, at once.
    pub handshakes_max: usize,
    /// How long a handshake and the hello may take.
    pub handshake_timeout: Duration,
    /// Calls at once of one connection in one lane.
    pub calls_per_lane_max: usize,
    /// Silence after which a peer is taken for dead.
    pub silence_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            handshakes_max: 256,
            handshake_timeout: Duration::from_secs(5),
            calls_per_lane_max: 512,
            silence_max: Duration::from_secs(30),
        }
    }
}

/// What a port serves.
pub struct Services {
    /// Framed calls.
    pub stream: Arc<dyn Service>,
    /// gRPC.
    pub grpc: Option<tonic::service::Routes>,
    /// Whether a peer may connect at all, with the reason if not.
    pub allow: fn(&Peer, Protocol) -> Result<(), String>,
}

static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// Serves a port until `shutdown`.
pub async fn serve(mut listener: Box<dyn Listener>, services: Services, limits: Limits, shutdown: CancellationToken) {
    let connections = Arc::new(Semaphore::new(limits.connections_max));
    let handshakes = Arc::new(Semaphore::new(limits.handshakes_max));
    let Services { stream, grpc, allow } = services;
    let grpc_connections = grpc.map(|routes| crate::rpc::serve(routes, shutdown.clone()));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let handshake = match accepted {
            Ok(handshake) => handshake,
            Err(error) => {
                tracing::warn!(%error, "a connection couldn't be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (Ok(slot), Ok(unfinished)) =
            (connections.clone().try_acquire_owned(), handshakes.clone().try_acquire_owned())
        else {
            tracing::warn!(address = handshake.remote_address(), "a connection was turned away: too many are open");
            continue;
        };
        let (stream, grpc_connections) = (stream.clone(), grpc_connections.clone());
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let address = handshake.remote_address();
            let connection = match timeout(limits.handshake_timeout, handshake.finish()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => return tracing::warn!(%error, "a peer was refused"),
                Err(_) => return tracing::debug!(address, "a handshake took too long"),
            };
            if let Err(reason) = allow(&connection.peer, connection.protocol) {
                return tracing::warn!(identity = %connection.peer.identity, reason, "a peer was refused");
            }
            drop(unfinished);
            match (connection.protocol, grpc_connections) {
                (Protocol::Stream, _) => tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = serve_stream(connection, stream, limits) => {}
                },
                (Protocol::Grpc, Some(queue)) => crate::rpc::hand_over(&queue, connection).await,
                (Protocol::Grpc, None) => tracing::warn!(address, "a peer was refused: this port has no gRPC"),
            }
        });
    }
}

/// Reads one frame.
pub(crate) async fn read_frame(
    io: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    limit: usize,
) -> Result<Option<Frame>, String> {
    loop {
        if let Some(frame) = Frame::decode(buffer, limit).map_err(|e| e.to_string())? {
            return Ok(Some(frame));
        }
        if buffer.capacity() - buffer.len() < 16 << 10 {
            buffer.reserve(64 << 10);
        }
        if io.read_buf(buffer).await.map_err(|e| e.to_string())? == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err("the peer closed in the middle of a frame".into()) };
        }
    }
}

pub(crate) fn plain(kind: Kind, body: Bytes) -> Frame {
    Frame { kind, lane: Lane::Control as u8, method: 0, call: 0, meta: Bytes::new(), body, bulk: Bytes::new() }
}


async fn serve_stream(connection: Connection, service: Arc<dyn Service>, limits: Limits) {
    let outbox = Arc::new(Outbox::new());
    let handle = ConnectionHandle {
        id: CONNECTIONS.fetch_add(1, Ordering::Relaxed),
        peer: connection.peer.clone(),
        outbox: outbox.clone(),
    };
    let (mut reader, mut writer) = tokio::io::split(connection.io);
    let mut buffer = BytesMut::new();
    let hello = timeout(limits.handshake_timeout, read_frame(&mut reader, &mut buffer, HELLO_BYTES_MAX)).await;
    let Ok(Ok(Some(Frame { kind: Kind::Hello, body, .. }))) = hello else {
        return tracing::debug!(peer = %handle.peer.identity, "a peer said no hello");
    };
    let Ok(theirs) = Hello::decode(body) else { return };
    let answer = version::agree(&version::hello(), &theirs);
    let refused = !answer.refused.is_empty();
    if refused {
        tracing::warn!(peer = %handle.peer.identity, reason = answer.refused, "a peer was refused");
    }
    let _ = outbox.push(plain(Kind::HelloAnswer, answer.encode_to_vec().into())).await;
    service.connected(&handle);
    let calls = async {
        if refused {
            tokio::time::sleep(Duration::from_millis(100)).await;
            return Ok(());
        }
        run_calls(&mut reader, buffer, &handle, &*service, limits).await
    };
    let ended = tokio::select! {
        ended = calls => ended,
        written = outbox.write_all(&mut writer) => written.map_err(|e| e.to_string()),
    };
    outbox.close();
    if let Err(reason) = ended {
        tracing::debug!(peer = %handle.peer.identity, reason, "a connection ended");
    }
    service.disconnected(handle.id);
}

async fn run_calls(
    reader: &mut ReadHalf<Box<dyn Io>>,
    buffer: BytesMut,
    handle: &ConnectionHandle,
    service: &dyn Service,
    limits: Limits,
) -> Result<(), String> {
    // Frames are read by a future of its own that is never dropped half-way.
    let (frames_in, mut frames) = mpsc::channel(64);
    let reading = async move {
        let mut buffer = buffer;
        loop {
            let frame = timeout(limits.silence_max, read_frame(reader, &mut buffer, FRAME_BYTES_MAX)).await;
            match frame {
                Err(_) => return Err("the peer was silent for too long".to_owned()),
                Ok(Err(reason)) => return Err(reason),
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(frame))) => {
                    if frames_in.send(frame).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    };
    tokio::pin!(reading);
    let mut running: FuturesUnordered<RunningCall<'_>> = FuturesUnordered::new();
    let mut aborts: BTreeMap<u64, AbortHandle> = BTreeMap::new();
    let mut in_flight = [0usize; LANES.len()];
    loop {
        tokio::select! {
            ended = &mut reading => return ended,
            Some((call, lane)) = running.next(), if !running.is_empty() => {
                aborts.remove(&call);
                in_flight[lane] -= 1;
            }
            Some(frame) = frames.recv() => match frame.kind {
                Kind::Request => {
                    let lane = usize::from(frame.lane).min(LANES.len() - 1);
                    if in_flight[lane] >= limits.calls_per_lane_max {
                        let busy = crate::call_error(ErrorCode::Busy, "too many calls are in flight on this connection");
                        reply(&handle.outbox, &frame, Err(busy)).await;
                        continue;
                    }
                    in_flight[lane] += 1;
                    let (abort, registration) = AbortHandle::new_pair();
                    let call = frame.call;
                    aborts.insert(call, abort);
                    let answering = answer(frame, handle, service);
                    running.push(Box::pin(async move {
                        let _ = Abortable::new(answering, registration).await;
                        (call, lane)
                    }));
                }
                Kind::Cancel => {
                    if let Some(abort) = aborts.get(&frame.call) {
                        abort.abort();
                    }
                }
                Kind::Ping => {
                    handle.outbox.push_now(plain(Kind::Pong, Bytes::new())).map_err(|Closed| "the peer is too slow")?;
                }
                Kind::Pong | Kind::Notify => {}
                _ => return Err("the peer sent a frame that only a server sends".into()),
            },
        }
    }
}

type RunningCall<'a> = Pin<Box<dyn Future<Output = (u64, usize)> + Send + 'a>>;

async fn answer(frame: Frame, handle: &ConnectionHandle, service: &dyn Service) {
    let result = dispatch(&frame, handle, service).await;
    reply(&handle.outbox, &frame, result).await;
}

async fn dispatch(frame: &Frame, handle: &ConnectionHandle, service: &dyn Service) -> Result<Answer, CallError> {
    let invalid = |what: String| crate::call_error(ErrorCode::InvalidRequest, what);
    let meta = CallMeta::decode(frame.meta.clone()).map_err(|e| invalid(format!("a call's metadata is malformed: {e}")))?;
    let method = Method::from_u16(frame.method)
        .ok_or_else(|| crate::call_error(ErrorCode::NotBuilt, format!("this server doesn't know method {}", frame.method)))?;
    let deadline = Instant::now() + Duration::from_millis(u64::from(meta.deadline_ms).min(600_000));
    let incoming = Incoming {
        method,
        body: frame.body.clone(),
        bulk: frame.bulk.clone(),
        deadline,
        peer: handle.peer.clone(),
        trace: meta.trace,
        connection: handle.clone(),
    };
    match timeout_at(deadline, service.call(incoming)).await {
        Ok(result) => result,
        Err(_) => Err(crate::call_error(ErrorCode::DeadlineExceeded, format!("{} took longer than the caller waits", method.as_str()))),
    }
}

async fn reply(outbox: &Outbox, request: &Frame, result: Result<Answer, CallError>) {
    let (kind, answer) = match result {
        Ok(answer) => (Kind::Response, answer),
        Err(error) => (Kind::Error, Answer::of(&error)),
    };
    let frame = Frame {
        kind,
        lane: request.lane,
        method: request.method,
        call: request.call,
        meta: Bytes::new(),
        body: answer.body,
        bulk: answer.bulk,
    };
    let _ = outbox.push(frame).await;
}
