//! The calling side: one connection to one address, made when needed and made again when it broke.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mooseng_wire::Role;
use mooseng_wire::call::{CallError, CallMeta, HelloAnswer};
use mooseng_wire::frame::{FRAME_BYTES_MAX, Frame, HELLO_BYTES_MAX, Kind};
use mooseng_wire::method::{LANES, Method};
use mooseng_wire::version;
use prost::Message;
use tokio::sync::{Semaphore, broadcast, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::network::{ConnectError, Connection, Io, Network, Protocol};
use crate::outbox::Outbox;
use crate::server::{Answer, plain, read_frame};

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
    /// Least pause after a failed connection attempt; it doubles up to sixteen times this.
    pub backoff: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            ping_interval: Duration::from_secs(1),
            silence_max: Duration::from_secs(3),
            calls_per_lane_max: 256,
            backoff: Duration::from_millis(50),
        }
    }
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

struct Live {
    outbox: Outbox,
    pending: Mutex<Option<BTreeMap<u64, oneshot::Sender<Result<Answer, CallError>>>>>,
    retire_at: Option<Instant>,
}

impl Live {
    fn pending(&self) -> MutexGuard<'_, Option<BTreeMap<u64, oneshot::Sender<Result<Answer, CallError>>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn is_usable(&self) -> bool {
        !self.outbox.is_closed() && self.retire_at.is_none_or(|at| Instant::now() < at)
    }
    fn end(&self) {
        self.outbox.close();
        // Dropping the senders tells every waiting call that it was lost.
        *self.pending() = None;
    }
}

struct Attempt {
    failures: u32,
    not_before: Option<Instant>,
    error: Option<ConnectError>,
}

struct Inner {
    network: Arc<dyn Network>,
    address: String,
    role: Role,
    options: LinkOptions,
    live: Mutex<Option<Arc<Live>>>,
    connecting: tokio::sync::Mutex<Attempt>,
    next_call: AtomicU64,
    lanes: [Semaphore; LANES.len()],
    notices: broadcast::Sender<(Method, Bytes)>,
    closed: std::sync::atomic::AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(live) = self.live.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
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
            live: Mutex::new(None),
            connecting: tokio::sync::Mutex::new(Attempt { failures: 0, not_before: None, error: None }),
            next_call: AtomicU64::new(1),
            lanes: std::array::from_fn(|_| Semaphore::new(options.calls_per_lane_max)),
            notices: broadcast::channel(1024).0,
            closed: false.into(),
        }))
    }

    /// Where it leads.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Messages without an answer that the peer sends, from now on, on whatever connection is live.
    pub fn notices(&self) -> broadcast::Receiver<(Method, Bytes)> {
        self.0.notices.subscribe()
    }

    /// Ends the connection for good: calls in flight are lost, later ones aren't sent.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.reset();
    }

    /// Ends the connection; the next call makes another.
    pub fn reset(&self) {
        if let Some(live) = self.live_slot().take() {
            live.end();
        }
    }

    fn live_slot(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable(&self) -> Option<Arc<Live>> {
        self.live_slot().as_ref().filter(|live| live.is_usable()).cloned()
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
                mooseng_wire::call::ErrorCode::Internal,
                format!("{}'s answer to {} is malformed: {e}", self.0.address, method.as_str()),
            ))
        })
    }

    /// Calls and waits for the answer, `wait` at most. Dropping the future cancels the call at the peer.
    pub async fn call(&self, method: Method, body: Bytes, bulk: Bytes, wait: Duration) -> Result<Answer, CallFailure> {
        let deadline = Instant::now() + wait;
        let late = || CallFailure::Timeout(self.0.address.clone());
        let lane = method.lane();
        let unsent = || {
            CallFailure::Connect(ConnectError::Timeout { address: self.0.address.clone(), seconds: wait.as_secs() })
        };
        let slot = timeout_at(deadline, self.0.lanes[lane as usize].acquire()).await;
        let Ok(Ok(_slot)) = slot else { return Err(unsent()) };
        let live = match self.usable() {
            Some(live) => live,
            None => timeout_at(deadline, self.connect()).await.map_err(|_| unsent())??,
        };
        let lost = || CallFailure::Lost(self.0.address.clone());
        let call = self.0.next_call.fetch_add(1, Ordering::Relaxed);
        let (answered, answer) = oneshot::channel();
        match live.pending().as_mut() {
            Some(pending) => pending.insert(call, answered),
            None => return Err(lost()),
        };
        let mut guard = CancelOnDrop { live: &live, call, lane: lane as u8, armed: true };
        let left = deadline.saturating_duration_since(Instant::now());
        let meta = CallMeta { deadline_ms: left.as_millis().min(u128::from(u32::MAX)) as u32, trace: crate::trace_context() };
        let frame = Frame {
            kind: Kind::Request,
            lane: lane as u8,
            method: method as u16,
            call,
            meta: meta.encode_to_vec().into(),
            body,
            bulk,
        };
        match timeout_at(deadline, live.outbox.push(frame)).await {
            Err(_) => return Err(late()),
            Ok(Err(_)) => return Err(lost()),
            Ok(Ok(())) => {}
        }
        let result = timeout_at(deadline, answer).await.map_err(|_| late())?;
        guard.armed = false;
        match result {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(CallFailure::Remote(error)),
            Err(_) => Err(lost()),
        }
    }

    /// Makes the connection, once for all who wait for it.
    async fn connect(&self) -> Result<Arc<Live>, ConnectError> {
        let inner = &self.0;
        let mut attempt = inner.connecting.lock().await;
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        let refused =
            |reason: &str| ConnectError::Refused { address: inner.address.clone(), reason: reason.to_owned() };
        if inner.closed.load(Ordering::Acquire) {
            return Err(refused("this side closed the link"));
        }
        // A peer that just refused isn't asked again by everyone who waits: they get the same answer.
        if attempt.not_before.is_some_and(|at| Instant::now() < at)
            && let Some(error) = &attempt.error
        {
            return Err(error.clone());
        }
        let made = timeout(inner.options.connect_timeout, self.greet()).await.unwrap_or_else(|_| {
            Err(ConnectError::Timeout {
                address: inner.address.clone(),
                seconds: inner.options.connect_timeout.as_secs().max(1),
            })
        });
        match made {
            Ok(live) => {
                *attempt = Attempt { failures: 0, not_before: None, error: None };
                // An older connection that is merely due for retirement drains by itself.
                *self.live_slot() = Some(live.clone());
                Ok(live)
            }
            Err(error) => {
                attempt.failures += 1;
                let pause = inner.options.backoff * (1 << (attempt.failures - 1).min(4));
                let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
                attempt.not_before = Some(Instant::now() + jittered);
                attempt.error = Some(error.clone());
                Err(error)
            }
        }
    }

    async fn greet(&self) -> Result<Arc<Live>, ConnectError> {
        let inner = &self.0;
        let refused = |reason: String| ConnectError::Refused { address: inner.address.clone(), reason };
        let connection = inner.network.connect(&inner.address, Protocol::Stream, inner.role).await?;
        let Connection { mut io, retire_at, .. } = connection;
        let mut head = BytesMut::new();
        plain(Kind::Hello, version::hello().encode_to_vec().into()).encode_head(&mut head);
        let written = async {
            tokio::io::AsyncWriteExt::write_all(&mut io, &head).await?;
            tokio::io::AsyncWriteExt::flush(&mut io).await
        };
        written.await.map_err(|e| refused(e.to_string()))?;
        let mut buffer = BytesMut::new();
        let frame = read_frame(&mut io, &mut buffer, HELLO_BYTES_MAX).await.map_err(&refused)?;
        let Some(Frame { kind: Kind::HelloAnswer, body, .. }) = frame else {
            return Err(refused("the peer closed the connection instead of answering the hello".into()));
        };
        let answer = HelloAnswer::decode(body).map_err(|e| refused(e.to_string()))?;
        if !answer.refused.is_empty() {
            return Err(refused(answer.refused));
        }
        let live = Arc::new(Live { outbox: Outbox::new(), pending: Mutex::new(Some(BTreeMap::new())), retire_at });
        tokio::spawn(run(live.clone(), io, buffer, inner.notices.clone(), inner.options));
        Ok(live)
    }
}

struct CancelOnDrop<'a> {
    live: &'a Live,
    call: u64,
    lane: u8,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Some(pending) = self.live.pending().as_mut() {
            pending.remove(&self.call);
        }
        let mut frame = plain(Kind::Cancel, Bytes::new());
        (frame.call, frame.lane) = (self.call, self.lane);
        let _ = self.live.outbox.push_now(frame);
    }
}

/// Owns one connection until it ends or is retired and drained.
async fn run(
    live: Arc<Live>,
    io: Box<dyn Io>,
    mut buffer: BytesMut,
    notices: broadcast::Sender<(Method, Bytes)>,
    options: LinkOptions,
) {
    let (mut reader, mut writer) = tokio::io::split(io);
    let reading = async {
        loop {
            let frame = timeout(options.silence_max, read_frame(&mut reader, &mut buffer, FRAME_BYTES_MAX)).await;
            let Ok(Ok(Some(frame))) = frame else { return };
            let take = |call| live.pending().as_mut().and_then(|pending| pending.remove(&call));
            match frame.kind {
                Kind::Response => {
                    if let Some(waiting) = take(frame.call) {
                        let _ = waiting.send(Ok(Answer { body: frame.body, bulk: frame.bulk }));
                    }
                }
                Kind::Error => {
                    if let Some(waiting) = take(frame.call) {
                        let error = CallError::decode(frame.body).unwrap_or_else(|e| {
                            crate::call_error(mooseng_wire::call::ErrorCode::Internal, e.to_string())
                        });
                        let _ = waiting.send(Err(error));
                    }
                }
                Kind::Notify => {
                    if let Some(method) = Method::from_u16(frame.method) {
                        let _ = notices.send((method, frame.body));
                    }
                }
                Kind::Ping => {
                    let _ = live.outbox.push_now(plain(Kind::Pong, Bytes::new()));
                }
                Kind::Pong => {}
                _ => return,
            }
        }
    };
    let pinging = async {
        loop {
            tokio::time::sleep(options.ping_interval).await;
            let drained = live.pending().as_ref().is_none_or(BTreeMap::is_empty);
            if live.retire_at.is_some_and(|at| Instant::now() >= at) && drained {
                return;
            }
            if live.outbox.push_now(plain(Kind::Ping, Bytes::new())).is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = pinging => {}
        _ = live.outbox.write_all(&mut writer) => {}
    }
    live.end();
}
