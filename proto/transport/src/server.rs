//! The serving side: who is let in, within which bounds, and what services see of it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_wire::call::{CallError, CallMeta, ErrorCode};
use mooseng_wire::frame::{Frame, Kind};
use mooseng_wire::level::Levels;
use mooseng_wire::method::{Lane, Method};
use mooseng_wire::{Identity, Role};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::answers::{Answers, Space};
use crate::inbound::Inbound;
use crate::network::{Handshake, Listener, Peer, Protocol};
use crate::outbox::{Closed, Outbox};
use crate::refusal;
use crate::refused::Refused;
use crate::shared::{LentMemory, MemoryOffer, NotTaken, Room, UNREADABLE};
use crate::{rpc, stream};

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
    /// Whether the bulk came in the memory that the connection shares.
    pub was_shared: bool,
}

impl Incoming {
    /// Decodes the message.
    pub fn decode<M: Message + Default>(&self) -> Result<M, CallError> {
        M::decode(self.body.clone()).map_err(|e| {
            crate::call_error(
                ErrorCode::InvalidRequest,
                format!("a {} message is malformed: {e}", self.method.as_str()),
            )
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
    /// The feature levels that this daemon supports, as it answers hellos.
    fn levels(&self) -> Levels {
        Levels::OURS
    }
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
    /// The feature levels that it supports, as its hello told.
    pub levels: Levels,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) memory: Arc<OnceLock<LentMemory>>,
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

    /// Memory in which the other end may put its calls' bulk once it has its descriptor ([`crate::descriptors`]). Then it is the connection's until that ends, and
    /// `room` with it. None where the connection shares memory already.
    pub fn offer_memory(&self, room: Room) -> io::Result<Option<MemoryOffer>> {
        if self.memory.get().is_some() {
            return Ok(None);
        }
        MemoryOffer::make(&self.memory, room).map(Some)
    }

    /// The bulk that a request says to have put into it.
    pub(crate) fn take_shared(&self, meta: &CallMeta) -> Result<Bytes, CallError> {
        let Some(memory) = self.memory.get() else {
            let message = "the connection shares no memory that bulk could be in";
            return Err(crate::call_error(ErrorCode::InvalidRequest, message));
        };
        memory.take(meta.shared_at, meta.shared_bytes as usize).map_err(|why| match why {
            NotTaken::Nowhere(message) => crate::call_error(ErrorCode::InvalidRequest, message),
            NotTaken::Unreadable(error) => {
                let message = format!("the memory that this connection shares can't be read: {error}");
                let detail = Bytes::from_static(UNREADABLE);
                CallError { detail, ..crate::call_error(ErrorCode::Unavailable, message) }
            }
        })
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
    /// Connections of one identity at once, of those that aren't masters: a host's mounts and commands, or a chunkserver.
    pub connections_per_identity_max: usize,
    /// Connections whose peer isn't known yet, at once. One more ends the one that has waited longest.
    pub handshakes_max: usize,
    /// How long a handshake and the hello may take.
    pub handshake_timeout: Duration,
    /// Calls at once of one connection in one lane.
    pub calls_per_lane_max: usize,
    /// Bytes of one connection's calls at once in one lane.
    pub bytes_per_lane_max: usize,
    /// Bytes of all connections' calls at once, of large ones from when they are announced; of control only what is large and of none that is a
    /// master's.
    pub bytes_max: usize,
    /// Of these, bytes that the connections of one identity have announced and not sent yet, where it isn't a master's.
    pub unfinished_per_identity_max: usize,
    /// Bytes of all connections' answers that wait for their peers, beside the calls'; of control only what
    /// is large, and of none that is a master's.
    pub answer_bytes_max: usize,
    /// Of these, bytes of the connections of one identity, where it isn't a master's.
    pub answer_bytes_per_identity_max: usize,
    /// Bytes of one connection's answers that wait for its peer.
    pub answer_bytes_per_connection_max: usize,
    /// Silence after which a peer is taken for dead.
    pub silence_max: Duration,
    /// How long a peer may take nothing of what waits for it, whatever it sends.
    pub stuck_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_identity_max: 256,
            handshakes_max: 256,
            handshake_timeout: Duration::from_secs(5),
            calls_per_lane_max: 512,
            bytes_per_lane_max: 64 << 20,
            bytes_max: 1 << 30,
            // Each of its connections may be sending as much as a call's bulk.
            unfinished_per_identity_max: 320 << 20,
            answer_bytes_max: 1 << 30,
            answer_bytes_per_identity_max: 256 << 20,
            answer_bytes_per_connection_max: 64 << 20,
            silence_max: Duration::from_secs(30),
            stuck_max: Duration::from_secs(20),
        }
    }
}

impl Limits {
    /// The default ones, and calls and their answers take up no more than so many bytes together: half of it
    /// each. At 2 GiB they are the default ones.
    pub fn within(memory: usize) -> Self {
        let (limits, half) = (Self::default(), memory / 2);
        Self {
            bytes_max: half,
            unfinished_per_identity_max: limits.unfinished_per_identity_max.min(half / 16 * 5),
            answer_bytes_max: half,
            answer_bytes_per_identity_max: limits.answer_bytes_per_identity_max.min(half / 4),
            answer_bytes_per_connection_max: limits.answer_bytes_per_connection_max.min(half / 16),
            ..limits
        }
    }
}

/// What a port serves.
pub struct Services {
    /// Framed calls.
    pub stream: Arc<dyn Service>,
    /// gRPC.
    pub grpc: Option<tonic::service::Routes>,
    /// Whether a peer may connect at all, with the reason if not; the peer is told it.
    pub allow: fn(&Peer, Protocol) -> Result<(), String>,
}

/// Serves a port until `shutdown`.
pub async fn serve(
    mut listener: Box<dyn Listener>,
    services: Services,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let port = Arc::new(Port {
        stream: services.stream,
        grpc: services.grpc.map(tonic::service::Routes::prepare),
        allow: services.allow,
        bytes: Arc::new(Semaphore::new(limits.bytes_max.min(Semaphore::MAX_PERMITS))),
        answers: Space::new(limits.answer_bytes_max),
        refused: Mutex::default(),
        crowd: Mutex::default(),
        limits,
        shutdown,
    });
    let connections = Arc::new(Semaphore::new(limits.connections_max));
    let unfinished = Arc::new(Unfinished::new(limits.handshakes_max));
    let mut turned_away = TurnedAway::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = port.shutdown.cancelled() => return,
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
        let Ok(slot) = connections.clone().try_acquire_owned() else {
            turned_away.count(&handshake.remote_address());
            continue;
        };
        let begun = unfinished.begin();
        if begun.made_room {
            turned_away.count(&handshake.remote_address());
        }
        tokio::spawn(port.clone().receive(handshake, slot, begun));
    }
}

/// Handshakes under way, as many as may be. One more ends the oldest: whoever means it is done within milliseconds, and whoever opens
/// connections by the thousand and says nothing takes the room from himself.
struct Unfinished {
    most: usize,
    handshakes: Mutex<VecDeque<(u64, CancellationToken)>>,
    next: AtomicU64,
}

/// A handshake that has begun; it leaves the list with this.
struct Begun {
    list: Arc<Unfinished>,
    id: u64,
    /// Cancelled when it has to make room.
    ended: CancellationToken,
    /// Another one made room for it.
    made_room: bool,
}

impl Unfinished {
    fn new(most: usize) -> Self {
        Self { most: most.max(1), handshakes: Mutex::default(), next: AtomicU64::new(0) }
    }

    fn begin(self: &Arc<Self>) -> Begun {
        let (id, ended) = (self.next.fetch_add(1, Ordering::Relaxed), CancellationToken::new());
        let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = if handshakes.len() >= self.most { handshakes.pop_front() } else { None };
        handshakes.push_back((id, ended.clone()));
        drop(handshakes);
        if let Some((_, oldest)) = &oldest {
            oldest.cancel();
        }
        Begun { list: self.clone(), id, ended, made_room: oldest.is_some() }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut handshakes = self.list.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        // They begin in the order of their ids.
        if let Ok(at) = handshakes.binary_search_by_key(&self.id, |(id, _)| *id) {
            handshakes.remove(at);
        }
    }
}

/// Says at most once a second how many connections were turned away: whoever floods us doesn't flood the log.
#[derive(Default)]
struct TurnedAway {
    count: u64,
    said: Option<Instant>,
}

impl TurnedAway {
    fn count(&mut self, address: &str) {
        self.count += 1;
        if self.said.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return;
        }
        tracing::warn!(
            code = refusal::TOO_MANY,
            address,
            count = self.count,
            "connections were turned away: too many are open"
        );
        *self = Self { count: 0, said: Some(Instant::now()) };
    }
}

/// What the connections of a port share.
struct Port {
    stream: Arc<dyn Service>,
    grpc: Option<tonic::service::Routes>,
    allow: fn(&Peer, Protocol) -> Result<(), String>,
    bytes: Arc<Semaphore>,
    answers: Space,
    refused: Mutex<Refused>,
    crowd: Mutex<BTreeMap<String, Crowd>>,
    limits: Limits,
    shutdown: CancellationToken,
}

/// What an identity's connections share.
struct Crowd {
    connections: usize,
    /// Room for bytes that they have announced and not sent yet.
    unfinished: Arc<Semaphore>,
    /// Room for answers that wait for them.
    answers: Space,
}

/// A connection of an identity, as long as this is kept.
struct OneOf<'a> {
    port: &'a Port,
    identity: String,
    unfinished: Arc<Semaphore>,
    answers: Space,
}

impl Drop for OneOf<'_> {
    fn drop(&mut self) {
        let mut crowd = self.port.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_it) = crowd.get_mut(&self.identity) {
            of_it.connections -= 1;
            if of_it.connections == 0 {
                crowd.remove(&self.identity);
            }
        }
    }
}

impl Port {
    /// Counts a connection of an identity; none where it has too many: one host may not take all there are.
    fn one_of(&self, identity: &Identity) -> Option<OneOf<'_>> {
        let is_master = identity.role == Role::Master;
        let most = if is_master { usize::MAX } else { self.limits.unfinished_per_identity_max };
        let mut crowd = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = crowd.entry(identity.to_string()).or_insert_with(|| Crowd {
            connections: 0,
            unfinished: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            answers: Space::new(self.limits.answer_bytes_per_identity_max),
        });
        if !is_master && of_it.connections >= self.limits.connections_per_identity_max {
            return None;
        }
        of_it.connections += 1;
        let (unfinished, answers) = (of_it.unfinished.clone(), of_it.answers.clone());
        Some(OneOf { port: self, identity: identity.to_string(), unfinished, answers })
    }

    /// Says that a peer was refused, unless that was said of it a moment ago. `peer` is empty where it isn't known.
    fn note_refusal(&self, code: &str, address: &str, peer: &str, reason: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = refused.note(Instant::now(), address, code) {
            tracing::warn!(code, peer, address, reason, suppressed, "a peer was refused");
        }
    }

    async fn receive(
        self: Arc<Self>,
        handshake: Box<dyn Handshake>,
        _slot: OwnedSemaphorePermit,
        begun: Begun,
    ) {
        let address = handshake.remote_address();
        let finished = tokio::select! {
            () = self.shutdown.cancelled() => return,
            () = begun.ended.cancelled() => return tracing::debug!(address, "a handshake made room for another"),
            finished = timeout(self.limits.handshake_timeout, handshake.finish()) => finished,
        };
        let connection = match finished {
            Ok(Ok(connection)) => connection,
            // Whoever goes away in the middle of a handshake (a probe of the port, a process that was killed) wasn't refused.
            Ok(Err(error)) if error.code() == refusal::LEFT => return tracing::debug!(%error, "a peer left"),
            Ok(Err(error)) => return self.note_refusal(error.code(), &address, "", &error.reason),
            Err(_) => return tracing::debug!(address, "a handshake took too long"),
        };
        drop(begun);
        let Some(one) = self.one_of(&connection.peer.identity) else {
            let reason =
                format!("it has {} connections open already", self.limits.connections_per_identity_max);
            return self.note_refusal(
                refusal::TOO_MANY,
                &address,
                &connection.peer.identity.to_string(),
                &reason,
            );
        };
        let refused = (self.allow)(&connection.peer, connection.protocol).err();
        if let Some(reason) = &refused {
            let peer = connection.peer.identity.to_string();
            self.note_refusal(refusal::WRONG_ROLE, &address, &peer, reason);
        }
        let (limits, shutdown) = (self.limits, &self.shutdown);
        let peer = connection.peer.identity.to_string();
        let note_version = |reason: &str| self.note_refusal(refusal::VERSION, &address, &peer, reason);
        let role = connection.peer.identity.role;
        let inbound = Inbound::new(self.bytes.clone(), one.unfinished.clone(), role);
        let of_connection = limits.answer_bytes_per_connection_max;
        let answers = Answers::new(of_connection, one.answers.clone(), self.answers.clone(), role);
        let room = (inbound, answers);
        match connection.protocol {
            Protocol::Stream => tokio::select! {
                () = shutdown.cancelled() => {}
                () = stream::serve(connection, &*self.stream, refused, limits, room, note_version) => {}
            },
            Protocol::Grpc => rpc::serve(connection, self.grpc.clone(), refused, shutdown).await,
        }
    }
}
