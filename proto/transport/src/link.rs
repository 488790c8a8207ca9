//! The calling side: one connection to one address, made when needed and made again when it broke.
//!
//! A connection attempt belongs to the link, not to the call that began it: a call with a short deadline doesn't undo it. When a
//! certificate is about to end, a new connection is made beside the old one, which carries calls until then and drains after.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use mooseng_ports::disk::lent::FileIdentity;
use mooseng_wire::Role;
use mooseng_wire::call::{CallError, CallMeta, ErrorCode};
use mooseng_wire::chunk::{AskMemory, LendRefusal, MemoryLent};
use mooseng_wire::frame::{Frame, HEADER_BYTES, Kind};
use mooseng_wire::level::Levels;
use mooseng_wire::method::{LANES, Method};
use prost::Message;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::{Instant, timeout, timeout_at};

use crate::descriptors::{self, Token};
use crate::live::Live;
use crate::network::{ConnectError, Network, Protocol};
use crate::server::Answer;
use crate::shared::{BULK_MIN, BorrowedMemory, Slot, UNREADABLE};

/// Connections that a call tries when they break before it was sent.
const TRIES: usize = 3;
/// How long a peer may take to share memory.
const MEMORY_WITHIN: Duration = Duration::from_secs(2);
/// When one that had none to share is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Notices that wait for a reader at most; one that reads too slowly is told that it missed some.
const NOTICES_MAX: usize = 1024;

/// How a link behaves.
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions {
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How often a quiet peer is asked for a sign of life.
    pub ping_interval: Duration,
    /// Silence after which the peer is taken for dead.
    pub silence_max: Duration,
    /// Calls in flight in each lane.
    pub calls_per_lane_max: usize,
    /// Bytes of the calls in flight in each lane.
    pub bytes_per_lane_max: usize,
    /// Least pause after a failed connection attempt; it doubles up to sixteen times this.
    pub backoff: Duration,
    /// Whether large bulk goes through memory that both ends share, where the peer is on this host and lends some (a chunkserver does). The messages beside
    /// such bulk must say a checksum of it: a request that is read very late, behind its caller's back, may find other bytes there.
    pub shares_memory: bool,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            ping_interval: Duration::from_secs(1),
            silence_max: Duration::from_secs(3),
            calls_per_lane_max: 256,
            bytes_per_lane_max: 32 << 20,
            backoff: Duration::from_millis(50),
            shares_memory: false,
        }
    }
}

/// Why a connection shares no memory.
enum NotShared {
    /// It may later.
    Passing(String),
    Final(String),
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallFailure {
    /// It was never sent.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It was sent, or may have been, and the connection broke: whether it was done isn't known.
    #[error("the connection to {0} broke while a call was in flight")]
    Lost(String),
    /// It was sent, or may have been, and no answer came in time: whether it was done isn't known.
    #[error("{0} didn't answer in time")]
    Timeout(String),
    /// The peer answered with an error.
    #[error("the peer answered: {}", .0.message)]
    Remote(CallError),
}

type Attempt = Shared<BoxFuture<'static, Result<Arc<Live>, ConnectError>>>;

#[derive(Default)]
struct State {
    live: Option<Arc<Live>>,
    attempt: Option<Attempt>,
    failures: u32,
    not_before: Option<Instant>,
    error: Option<ConnectError>,
    closed: bool,
}

struct Inner {
    network: Arc<dyn Network>,
    address: String,
    role: Role,
    options: LinkOptions,
    state: Mutex<State>,
    next_call: AtomicU64,
    calls: [Semaphore; LANES.len()],
    bytes: [Semaphore; LANES.len()],
    notices: broadcast::Sender<(Method, Bytes)>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(live) = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).live.take() {
            live.end();
        }
    }
}

/// A connection to one address that is made again when it breaks. Clones share it.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

impl Link {
    /// A link to `address`, whose peer must have `role`. Nothing is connected yet.
    pub fn new(network: Arc<dyn Network>, address: String, role: Role, options: LinkOptions) -> Self {
        Self(Arc::new(Inner {
            network,
            address,
            role,
            options,
            state: Mutex::default(),
            next_call: AtomicU64::new(1),
            calls: std::array::from_fn(|_| Semaphore::new(options.calls_per_lane_max)),
            bytes: std::array::from_fn(|_| Semaphore::new(options.bytes_per_lane_max)),
            notices: broadcast::channel(NOTICES_MAX).0,
        }))
    }

    /// Where it leads.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// The feature levels that the peer of the present connection supports; none while there is no connection.
    pub fn levels(&self) -> Option<Levels> {
        self.0.state().live.as_ref().filter(|live| live.is_open()).map(|live| live.levels)
    }

    /// Messages without an answer that the peer sends, from now on, on whatever connection is live.
    pub fn notices(&self) -> broadcast::Receiver<(Method, Bytes)> {
        self.0.notices.subscribe()
    }

    /// Ends the connection for good: calls in flight are lost, later ones aren't sent.
    pub fn close(&self) {
        self.0.state().closed = true;
        self.reset();
    }

    /// Ends the connection; the next call makes another.
    pub fn reset(&self) {
        if let Some(live) = self.0.state().live.take() {
            live.end();
        }
    }

    /// Sends a message and waits for the answer's message.
    pub async fn request<Q: Message, A: Message + Default>(
        &self,
        method: Method,
        question: &Q,
        wait: Duration,
    ) -> Result<A, CallFailure> {
        let answer = self.call(method, question.encode_to_vec().into(), Bytes::new(), wait).await?;
        A::decode(answer.body).map_err(|e| {
            CallFailure::Remote(crate::call_error(
                ErrorCode::Internal,
                format!("{}'s answer to {} is malformed: {e}", self.0.address, method.as_str()),
            ))
        })
    }

    /// Calls and waits for the answer, `wait` at most. Dropping the future cancels the call at the peer.
    pub async fn call(
        &self,
        method: Method,
        body: Bytes,
        bulk: Bytes,
        wait: Duration,
    ) -> Result<Answer, CallFailure> {
        let span = crate::trace::client(method.as_str())
            .noted("peer.address", || self.0.address.clone())
            .noted("bytes", || body.len() + bulk.len());
        span.watch(self.send(method, body, bulk, wait)).await
    }

    async fn send(
        &self,
        method: Method,
        body: Bytes,
        bulk: Bytes,
        wait: Duration,
    ) -> Result<Answer, CallFailure> {
        let inner = &self.0;
        let deadline = Instant::now() + wait;
        let lane = method.lane();
        let bytes = (HEADER_BYTES + body.len() + bulk.len()).min(inner.options.bytes_per_lane_max);
        let room = async {
            (
                inner.calls[lane as usize].acquire().await,
                inner.bytes[lane as usize].acquire_many(bytes as u32).await,
            )
        };
        let Ok((Ok(_call), Ok(_bytes))) = timeout_at(deadline, room).await else {
            return Err(ConnectError::Crowded { address: inner.address.clone() }.into());
        };
        let mut frame = Frame {
            kind: Kind::Request,
            lane: lane as u8,
            method: method as u16,
            call: 0,
            meta: Bytes::new(),
            body,
            bulk: Bytes::new(),
        };
        for _ in 0..TRIES {
            let connected = timeout_at(deadline, self.connection()).await;
            let unmade =
                || ConnectError::Timeout { address: inner.address.clone(), seconds: wait.as_secs().max(1) };
            let live = connected.map_err(|_| unmade())??;
            frame.call = inner.next_call.fetch_add(1, Ordering::Relaxed);
            let slot = if bulk.len() >= BULK_MIN { self.share(&live, &bulk) } else { None };
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            let mut meta = CallMeta {
                deadline_ms: u32::try_from(left).unwrap_or(u32::MAX).max(1),
                trace: crate::trace::current(),
                ..CallMeta::default()
            };
            match &slot {
                Some(slot) => {
                    frame.bulk = Bytes::new();
                    (meta.shared_at, meta.shared_bytes) = (slot.at(), bulk.len() as u32);
                }
                None => frame.bulk = bulk.clone(),
            }
            frame.meta = meta.encode_to_vec().into();
            // Whatever ends before the request was queued can be tried on another connection.
            let Some(mut expected) = live.expect(frame.call, frame.lane) else { continue };
            match timeout_at(deadline, expected.send(frame.clone())).await {
                Ok(true) => {}
                not_sent => {
                    slot.into_iter().for_each(Slot::give_back);
                    if not_sent.is_ok() {
                        continue;
                    }
                    return Err(ConnectError::Crowded { address: inner.address.clone() }.into());
                }
            }
            tracing::debug!(
                trace = crate::trace::id(&crate::trace::current()),
                method = method.as_str(),
                to = inner.address,
                "a call is sent"
            );
            return match timeout_at(deadline, expected.answer()).await {
                Err(_) => Err(CallFailure::Timeout(inner.address.clone())),
                Ok(None) => Err(CallFailure::Lost(inner.address.clone())),
                Ok(Some(outcome)) => {
                    if outcome.as_ref().err().is_some_and(|e| e.detail == UNREADABLE) {
                        live.unshare();
                    }
                    slot.into_iter().for_each(Slot::give_back);
                    outcome.map_err(CallFailure::Remote)
                }
            };
        }
        Err(inner.refused(format!("{TRIES} connections broke before the call could be sent")).into())
    }

    /// Puts bulk into the memory that a connection shares. One that shares none is asked for some, beside what goes on.
    fn share(&self, live: &Arc<Live>, bulk: &[u8]) -> Option<Slot> {
        if !self.0.options.shares_memory {
            return None;
        }
        if live.begin_asking() {
            let (inner, live) = (self.0.clone(), live.clone());
            tokio::spawn(async move {
                let asked = timeout(MEMORY_WITHIN, inner.ask_memory(&live)).await;
                let why = match asked.unwrap_or(Err(NotShared::Passing("none came in time".into()))) {
                    Ok(memory) => return live.share(memory),
                    Err(NotShared::Final(why)) => why,
                    Err(NotShared::Passing(why)) => {
                        live.ask_after(ASK_AGAIN);
                        why
                    }
                };
                tracing::debug!(to = inner.address, why, "no memory is shared: bulk is sent");
            });
        }
        live.put(bulk)
    }

    /// A connection to send on: the one there is, or a new one.
    async fn connection(&self) -> Result<Arc<Live>, ConnectError> {
        let attempt = {
            let mut state = self.0.state();
            if state.closed {
                return Err(self.0.refused("this side closed the link".into()));
            }
            let open = state.live.clone().filter(|live| live.is_open());
            if let Some(live) = &open
                && !live.is_due()
            {
                return Ok(live.clone());
            }
            let paused = state.not_before.is_some_and(|at| Instant::now() < at);
            let attempt = match (&state.attempt, &state.error) {
                (Some(attempt), _) => Some(attempt.clone()),
                // A peer that just refused isn't asked again by everyone who calls: they get the same answer.
                (None, Some(error)) if paused && open.is_none() => return Err(error.clone()),
                (None, _) if paused => None,
                (None, _) => Some(self.attempt(&mut state)),
            };
            match (open, attempt) {
                // It still carries calls while its successor is made.
                (Some(live), _) => return Ok(live),
                (None, Some(attempt)) => attempt,
                (None, None) => return Err(self.0.refused("the last attempt failed".into())),
            }
        };
        attempt.await
    }

    fn attempt(&self, state: &mut State) -> Attempt {
        let task = tokio::spawn(self.0.clone().connect());
        let ended = self.0.refused("the attempt to connect ended early".into());
        let attempt = task.map(|made| made.unwrap_or(Err(ended))).boxed().shared();
        state.attempt = Some(attempt.clone());
        attempt
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, reason: String) -> ConnectError {
        ConnectError::Refused { address: self.address.clone(), reason }
    }

    async fn connect(self: Arc<Self>) -> Result<Arc<Live>, ConnectError> {
        let made = timeout(self.options.connect_timeout, self.greet()).await.unwrap_or_else(|_| {
            let seconds = self.options.connect_timeout.as_secs().max(1);
            Err(ConnectError::Timeout { address: self.address.clone(), seconds })
        });
        let mut state = self.state();
        state.attempt = None;
        match made {
            Ok(live) if state.closed => {
                live.end();
                Err(self.refused("this side closed the link".into()))
            }
            Ok(live) => {
                (state.failures, state.not_before, state.error) = (0, None, None);
                if let Some(old) = state.live.replace(live.clone()) {
                    old.replace();
                }
                Ok(live)
            }
            Err(error) => {
                state.failures += 1;
                let pause = self.options.backoff * (1 << (state.failures - 1).min(4));
                state.not_before = Some(Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0)));
                state.error = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Asks the peer of a connection for memory that both share. It is this connection's: on no other a request may name it.
    async fn ask_memory(&self, live: &Live) -> Result<BorrowedMemory, NotShared> {
        let ended = || NotShared::Final("the connection ended".into());
        let boot_id =
            descriptors::boot_id().ok_or_else(|| NotShared::Final("this system has no boot id".into()))?;
        let lane = Method::ChunkMemory.lane() as u8;
        let call = self.next_call.fetch_add(1, Ordering::Relaxed);
        let deadline_ms = MEMORY_WITHIN.as_millis() as u32;
        let frame = Frame {
            kind: Kind::Request,
            lane,
            method: Method::ChunkMemory as u16,
            call,
            meta: CallMeta { deadline_ms, ..CallMeta::default() }.encode_to_vec().into(),
            body: AskMemory { boot_id: boot_id.into() }.encode_to_vec().into(),
            bulk: Bytes::new(),
        };
        let mut expected = live.expect(call, lane).ok_or_else(ended)?;
        if !expected.send(frame).await {
            return Err(ended());
        }
        let answer = expected.answer().await.ok_or_else(ended)?.map_err(|error| match error.code() {
            // A peer of an earlier release, or one that shares none.
            ErrorCode::NotBuilt | ErrorCode::InvalidRequest | ErrorCode::PermissionDenied => {
                NotShared::Final(error.message)
            }
            _ => NotShared::Passing(error.message),
        })?;
        let lent = MemoryLent::decode(answer.body).map_err(|e| NotShared::Final(e.to_string()))?;
        match lent.refused() {
            LendRefusal::Unspecified => {}
            LendRefusal::TooMuchLent => return Err(NotShared::Passing("too much is lent".into())),
            why => return Err(NotShared::Final(why.as_str_name().into())),
        }
        let fetched = async {
            let token = <[u8; 32]>::try_from(&lent.token[..]).map_err(io::Error::other)?;
            let path = Path::new(&lent.socket);
            let descriptor = descriptors::fetch(path, &Token(token), lent.uid, MEMORY_WITHIN).await?;
            BorrowedMemory::adopt(descriptor, FileIdentity { device: lent.device, inode: lent.inode })
        };
        // It isn't this host after all, or not seen from here.
        fetched.await.map_err(|e| NotShared::Final(e.to_string()))
    }

    async fn greet(&self) -> Result<Arc<Live>, ConnectError> {
        let connection = self.network.connect(&self.address, Protocol::Stream, self.role).await?;
        let levels = self.network.levels();
        let live = Live::start(connection, levels, self.notices.clone(), self.options).await;
        live.map_err(|ended| ended.refused(&self.address))
    }
}
