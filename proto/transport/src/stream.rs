//! Serves one framed connection: hello, then calls, within bounds, in one task.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{AbortHandle, Abortable};
use futures::stream::{FuturesUnordered, StreamExt};
use mooseng_wire::call::{CallError, CallMeta, ErrorCode, Hello};
use mooseng_wire::frame::{Frame, Head, Kind};
use mooseng_wire::level::Levels;
use mooseng_wire::method::{LANES, Lane, Method};
use mooseng_wire::{BULK_BYTES_MAX, version};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument;

use crate::answers::{self, Answers, Held};
use crate::frames::{Arrived, FrameReader, plain};
use crate::inbound::{Announced, Full, Inbound};
use crate::network::Connection;
use crate::outbox::{Closed, Outbox, lane_of};
use crate::server::{Answer, ConnectionHandle, Incoming, Limits, Service};
use crate::trace::{self, TRACE};

/// The longest that a call may run, whatever its caller asks for.
const CALL_MAX: Duration = Duration::from_secs(600);
/// How long a peer that is refused is given to read why.
const REFUSAL_READ_WITHIN: Duration = Duration::from_secs(1);

static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// Serves a connection until it ends; with `refused` it is only told why. A peer of another version is told so, and `note_version` is.
pub(crate) async fn serve(
    connection: Connection,
    service: &dyn Service,
    refused: Option<String>,
    limits: Limits,
    (inbound, answers): (Inbound, Answers),
    note_version: impl Fn(&str),
) {
    let peer = connection.peer;
    let (reader, mut writer) = tokio::io::split(connection.io);
    let mut frames = FrameReader::new(reader, limits.silence_max);
    let greeting = greet(&mut frames, &mut writer, service.levels(), refused, note_version);
    let levels = match timeout(limits.handshake_timeout, greeting).await {
        Ok(Ok(levels)) => levels,
        Ok(Err(reason)) => {
            return tracing::debug!(peer = %peer.identity, reason, "a connection came to nothing");
        }
        Err(_) => return tracing::debug!(peer = %peer.identity, "a peer said no hello in time"),
    };
    let outbox = Arc::new(Outbox::new());
    let id = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let handle = ConnectionHandle { id, peer, levels, outbox, memory: Arc::default() };
    service.connected(&handle);
    let _ended = EndOnDrop { handle: &handle, service };
    let mut calls = Calls::new(&handle, service, limits, inbound, &answers);
    let mut writing = handle.outbox.writing(writer);
    let ended = tokio::select! {
        ended = calls.run(&mut frames) => ended,
        written = writing.run() => written.map_err(|e| e.to_string()),
        () = handle.outbox.closed() => Ok(()),
        // Whatever else it sends: nobody who is there reads nothing for so long.
        () = handle.outbox.stuck(limits.stuck_max) => Err(slow(Closed).to_owned()),
    };
    if let Err(reason) = ended {
        tracing::debug!(peer = %handle.peer.identity, reason, "a connection ended");
    }
}

/// Tells the service that a connection ended, however it did: the server's end drops its future.
struct EndOnDrop<'a> {
    handle: &'a ConnectionHandle,
    service: &'a dyn Service,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.handle.outbox.close();
        self.service.disconnected(self.handle.id);
    }
}

async fn greet<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    writer: &mut (impl AsyncWrite + Unpin),
    levels: Levels,
    refused: Option<String>,
    note_version: impl Fn(&str),
) -> Result<Levels, String> {
    let hello = match frames.next().await? {
        Some(Frame { kind: Kind::Hello, body, .. }) => {
            Hello::decode(body).map_err(|e| format!("malformed hello: {e}"))?
        }
        Some(_) => return Err("the peer didn't begin with a hello".into()),
        None => return Err("the peer left without a hello".into()),
    };
    let mut answer = version::agree(&version::hello(levels), &hello);
    if let Some(reason) = refused {
        answer.refused = reason;
    } else if !answer.refused.is_empty() {
        note_version(&answer.refused);
    }
    let mut bytes = BytesMut::new();
    plain(Kind::HelloAnswer, answer.encode_to_vec().into()).encode_head(&mut bytes);
    let sent = async {
        writer.write_all(&bytes).await?;
        writer.flush().await
    };
    sent.await.map_err(|e| e.to_string())?;
    if answer.refused.is_empty() {
        frames.welcome();
        return Ok(version::levels_of(&hello));
    }
    let _ = writer.shutdown().await;
    // Closing while bytes of theirs are unread would reset the connection, and they would lose the answer.
    let _ = timeout(REFUSAL_READ_WITHIN, frames.next()).await;
    Err(answer.refused)
}

fn slow(_: Closed) -> &'static str {
    "the peer takes no answers"
}

fn busy(full: Full) -> CallError {
    crate::call_error(ErrorCode::Busy, format!("too many {full}; try again after a pause"))
}

type RunningCall<'a> = Pin<Box<dyn Future<Output = Done> + Send + 'a>>;

struct Done {
    call: u64,
    lane: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Default)]
struct Load {
    calls: usize,
    bytes: usize,
}

struct Calls<'a> {
    handle: &'a ConnectionHandle,
    service: &'a dyn Service,
    limits: Limits,
    inbound: Inbound,
    answers: &'a Answers,
    running: FuturesUnordered<RunningCall<'a>>,
    aborts: BTreeMap<u64, AbortHandle>,
    load: [Load; LANES.len()],
}

impl<'a> Calls<'a> {
    fn new(
        handle: &'a ConnectionHandle,
        service: &'a dyn Service,
        limits: Limits,
        inbound: Inbound,
        answers: &'a Answers,
    ) -> Self {
        let (running, aborts, load) = Default::default();
        Self { handle, service, limits, inbound, answers, running, aborts, load }
    }

    async fn run<R: AsyncRead + Unpin>(&mut self, frames: &mut FrameReader<R>) -> Result<(), String> {
        loop {
            tokio::select! {
                Some(done) = self.running.next(), if !self.running.is_empty() => {
                    self.aborts.remove(&done.call);
                    self.load[done.lane].calls -= 1;
                    self.load[done.lane].bytes -= done.bytes;
                }
                arrived = frames.next_within(&self.inbound) => match arrived? {
                    Some(Arrived::Whole(frame, announced)) => self.take(frame, announced)?,
                    Some(Arrived::Dropped(head, full)) => self.refuse(&head, full)?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// There is no room for a frame. Whoever waits for an answer to it has one at once.
    fn refuse(&self, head: &Head, full: Full) -> Result<(), String> {
        if head.kind == Kind::Request {
            let address = Address { lane: head.lane, method: head.method, call: head.call };
            self.handle.outbox.push_now(reply(&address, Err(busy(full)))).map_err(slow)?;
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame, announced: Option<Announced>) -> Result<(), String> {
        match frame.kind {
            Kind::Request => {
                let address = Address::of(&frame);
                if let Err(refused) = self.begin(frame, announced) {
                    self.handle.outbox.push_now(reply(&address, Err(refused))).map_err(slow)?;
                }
            }
            Kind::Cancel => {
                if let Some(abort) = self.aborts.get(&frame.call) {
                    abort.abort();
                }
            }
            Kind::Ping => self.handle.outbox.push_now(plain(Kind::Pong, Bytes::new())).map_err(slow)?,
            Kind::Pong | Kind::Notify => {}
            Kind::Hello | Kind::HelloAnswer | Kind::Response | Kind::Error => {
                return Err(format!("the peer sent a frame that has no place here: {:?}", frame.kind));
            }
        }
        Ok(())
    }

    /// Starts a call, or says why not. Its caller is told at once, for to stop reading would hold up other lanes.
    fn begin(&mut self, mut frame: Frame, announced: Option<Announced>) -> Result<(), CallError> {
        let framed = frame.encoded_len();
        let meta = CallMeta::decode(std::mem::take(&mut frame.meta)).map_err(|e| {
            crate::call_error(ErrorCode::InvalidRequest, format!("a call's metadata is malformed: {e}"))
        })?;
        if meta.shared_bytes > 0 && !frame.bulk.is_empty() {
            let message = "a call's bulk is in its frame and in shared memory as well";
            return Err(crate::call_error(ErrorCode::InvalidRequest, message));
        }
        let lane = lane_of(&frame);
        let may_share = lane != Lane::Control as usize && Method::from_u16(frame.method).is_some();
        if meta.shared_bytes > 0 && !may_share {
            let message = "a call of this method or in this lane has no bulk in shared memory";
            return Err(crate::call_error(ErrorCode::InvalidRequest, message));
        }
        let shared = (meta.shared_bytes as usize).min(BULK_BYTES_MAX);
        let bytes = framed + shared;
        let room = self.admit((lane, frame.method), (framed, shared), announced)?;
        if meta.shared_bytes > 0 {
            // Before anything is done: once it is answered there may be other bytes.
            frame.bulk = self.handle.take_shared(&meta)?;
        }
        self.start(frame, meta, bytes, room);
        Ok(())
    }

    /// Room for a call of so many bytes, in its frame and beside it, or why there is none. For its frame it may have some.
    fn admit(
        &self,
        (lane, method): (usize, u16),
        (framed, shared): (usize, usize),
        announced: Option<Announced>,
    ) -> Result<Option<OwnedSemaphorePermit>, CallError> {
        let bytes = framed + shared;
        let load = self.load[lane];
        if load.calls >= self.limits.calls_per_lane_max {
            return Err(busy("calls are in flight on this connection"));
        }
        if load.calls > 0 && load.bytes + bytes > self.limits.bytes_per_lane_max {
            return Err(busy("bytes are in flight on this connection"));
        }
        if self.inbound.is_free(lane, method, bytes) && self.inbound.is_free_beside(load.bytes) {
            return Ok(None);
        }
        let room = match announced {
            None => self.inbound.take(bytes).map_err(busy)?,
            Some(announced) => {
                let mut room = announced.whole();
                if shared > 0 {
                    room.merge(self.inbound.take(shared).map_err(busy)?);
                }
                room
            }
        };
        Ok(Some(room))
    }

    fn start(&mut self, frame: Frame, meta: CallMeta, bytes: usize, room: Option<OwnedSemaphorePermit>) {
        let done = Done { call: frame.call, lane: lane_of(&frame), bytes };
        self.load[done.lane].calls += 1;
        self.load[done.lane].bytes += done.bytes;
        let (abort, registration) = AbortHandle::new_pair();
        self.aborts.insert(frame.call, abort);
        let answering = Answering {
            handle: self.handle,
            service: self.service,
            answers: self.answers,
            kept_max: self.limits.stuck_max,
        };
        let answered = answering.answer(frame, meta, room);
        self.running.push(Box::pin(async move {
            let _ = Abortable::new(answered, registration).await;
            done
        }));
    }
}

/// What pairs an answer with its request.
struct Address {
    lane: u8,
    method: u16,
    call: u64,
}

impl Address {
    fn of(request: &Frame) -> Self {
        Self { lane: request.lane, method: request.method, call: request.call }
    }
}

/// Where a call is answered.
struct Answering<'a> {
    handle: &'a ConnectionHandle,
    service: &'a dyn Service,
    answers: &'a Answers,
    /// How long an answer is kept that its caller waits for no more.
    kept_max: Duration,
}

impl Answering<'_> {
    async fn answer(self, frame: Frame, meta: CallMeta, room: Option<OwnedSemaphorePermit>) {
        let (address, method) = (Address::of(&frame), Method::from_u16(frame.method));
        let deadline = Instant::now() + Duration::from_millis(u64::from(meta.deadline_ms)).min(CALL_MAX);
        let (result, held) = match self.expect(method, &frame, deadline).await {
            Ok(held) => (dispatch(frame, meta, deadline, self.handle, self.service).await, held),
            Err(late) => (Err(late), Held::default()),
        };
        // Of the request nothing is left. What follows may wait for a peer that doesn't read.
        drop(room);
        let keep = async {
            let (reply, held) = self.take_room(&address, method, reply(&address, result), held).await;
            let _ = self.handle.outbox.push_held(reply, held).await;
        };
        let _ = timeout_at(deadline + self.kept_max, keep).await;
    }

    /// Room for an answer that is large, before it is made.
    async fn expect(
        &self,
        method: Option<Method>,
        frame: &Frame,
        deadline: Instant,
    ) -> Result<Held, CallError> {
        let bytes = answers::expected(method, &frame.body);
        if bytes == 0 {
            return Ok(Held::default());
        }
        let taken = timeout_at(deadline, self.answers.take(bytes)).await;
        taken.map_err(|_| {
            let message = "the caller's answers took up all the room that they may for longer than it waits";
            crate::call_error(ErrorCode::DeadlineExceeded, message)
        })
    }

    /// Room for an answer that is there, or for another one in its place.
    async fn take_room(
        &self,
        address: &Address,
        method: Option<Method>,
        answer: Frame,
        mut held: Held,
    ) -> (Frame, Held) {
        let bytes = answer.encoded_len();
        if self.answers.is_free(method, bytes) || held.cut_to(bytes) {
            return (answer, held);
        }
        // Whoever waited for more with less in hand could wait for another one that does.
        drop(held);
        if let Some(held) = self.answers.take_now(bytes) {
            return (answer, held);
        }
        if answers::is_dropped(method, bytes) {
            return (reply(address, Err(busy("bytes of answers wait for the caller"))), Held::default());
        }
        let held = self.answers.take(bytes).await;
        (answer, held)
    }
}

async fn dispatch(
    frame: Frame,
    meta: CallMeta,
    deadline: Instant,
    handle: &ConnectionHandle,
    service: &dyn Service,
) -> Result<Answer, CallError> {
    let error = crate::call_error;
    let method = Method::from_u16(frame.method).ok_or_else(|| {
        error(ErrorCode::NotBuilt, format!("this server doesn't know method {}", frame.method))
    })?;
    let trace = meta.trace.clone();
    let incoming = Incoming {
        method,
        body: frame.body,
        bulk: frame.bulk,
        deadline,
        peer: handle.peer.clone(),
        trace: meta.trace,
        connection: handle.clone(),
        was_shared: meta.shared_bytes > 0,
    };
    let span = tracing::debug_span!("call", trace = trace::id(&trace), method = method.as_str());
    span.in_scope(|| tracing::debug!(peer = %handle.peer.identity, "a call arrived"));
    let late = || format!("{} took longer than the caller waits", method.as_str());
    let served = trace::server(method.as_str(), &trace).noted("peer", || handle.peer.identity.to_string());
    // The part of what runs here wins over the whole that the caller named.
    let context = if served.is_recorded() { served.context() } else { trace };
    let call = async {
        timeout_at(deadline, TRACE.scope(context, service.call(incoming)).instrument(span))
            .await
            .unwrap_or_else(|_| Err(error(ErrorCode::DeadlineExceeded, late())))
    };
    served.run(call, failed).await
}

/// A call's error is its span's.
fn failed(outcome: &Result<Answer, CallError>, span: &mut trace::Span) {
    if let Err(error) = outcome {
        span.note("code", || error.code().as_str_name());
        span.fail(|| error.message.clone());
    }
}

fn reply(address: &Address, result: Result<Answer, CallError>) -> Frame {
    let (kind, answer) = match result {
        Ok(answer) => (Kind::Response, answer),
        Err(error) => (Kind::Error, Answer::of(&error)),
    };
    let &Address { lane, method, call } = address;
    Frame { kind, lane, method, call, meta: Bytes::new(), body: answer.body, bulk: answer.bulk }
}
