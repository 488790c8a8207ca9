//! One connection of a link: what was sent on it and waits for an answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mooseng_wire::call::{CallError, ErrorCode, HelloAnswer};
use mooseng_wire::frame::{Frame, Kind};
use mooseng_wire::level::Levels;
use mooseng_wire::method::Method;
use mooseng_wire::version;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{broadcast, oneshot};
use tokio::time::Instant;

use crate::ended::Ended;
use crate::frames::{FrameReader, plain};
use crate::link::LinkOptions;
use crate::network::Connection;
use crate::outbox::Outbox;
use crate::server::Answer;
use crate::shared::{BorrowedMemory, Slot};

/// What a call comes to.
pub(crate) type Outcome = Result<Answer, CallError>;
type Pending = Option<BTreeMap<u64, oneshot::Sender<Outcome>>>;

/// A connection that took the hello.
pub(crate) struct Live {
    pub(crate) outbox: Outbox,
    /// What the peer supports.
    pub(crate) levels: Levels,
    pending: Mutex<Pending>,
    retire_at: Option<Instant>,
    replaced: AtomicBool,
    /// A call was made since it was last looked at.
    used: AtomicBool,
    memory: Mutex<Memory>,
}

/// The memory that a connection shares.
enum Memory {
    /// None, and it isn't asked for any before that moment.
    NotBefore(Instant),
    /// It is asked for, or there is none to be had.
    None,
    Shared(Arc<BorrowedMemory>),
}

/// Ping intervals without a call after which a connection counts as idle.
const QUIET_TICKS: u32 = 3;

impl Live {
    /// Exchanges hellos, of which ours tells `levels`, and starts the connection's task; or says why that can't be.
    pub(crate) async fn start(
        connection: Connection,
        levels: Levels,
        notices: broadcast::Sender<(Method, Bytes)>,
        options: LinkOptions,
    ) -> Result<Arc<Self>, Ended> {
        let (reader, mut writer) = tokio::io::split(connection.io);
        let mut frames = FrameReader::new(reader, options.silence_max);
        let levels = greet(&mut frames, &mut writer, levels).await?;
        let live = Arc::new(Self {
            outbox: Outbox::new(),
            levels,
            pending: Mutex::new(Some(BTreeMap::new())),
            retire_at: connection.retire_at,
            replaced: AtomicBool::new(false),
            used: AtomicBool::new(true),
            memory: Mutex::new(Memory::NotBefore(Instant::now())),
        });
        tokio::spawn(live.clone().run(frames, writer, notices, options));
        Ok(live)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether calls can be sent on it.
    pub(crate) fn is_open(&self) -> bool {
        !self.outbox.is_closed()
    }

    /// Whether another should take its place soon.
    pub(crate) fn is_due(&self) -> bool {
        self.retire_at.is_some_and(|at| Instant::now() >= at)
    }

    /// Another took its place: it ends once everything was answered.
    pub(crate) fn replace(&self) {
        self.replaced.store(true, Ordering::Release);
    }

    /// Ends it: whoever waits for an answer is told that it was lost.
    pub(crate) fn end(&self) {
        self.outbox.close();
        self.unshare();
        *self.pending() = None;
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts bulk into the memory that the connection shares, if it shares any and there is room.
    pub(crate) fn put(&self, bulk: &[u8]) -> Option<Slot> {
        let memory = match &*self.memory() {
            Memory::Shared(memory) => memory.clone(),
            Memory::NotBefore(_) | Memory::None => return None,
        };
        memory.put(bulk)
    }

    /// Whether it is time that somebody asks it for memory, who is the caller then.
    pub(crate) fn begin_asking(&self) -> bool {
        let mut memory = self.memory();
        let begins = matches!(&*memory, Memory::NotBefore(moment) if Instant::now() >= *moment);
        if begins {
            *memory = Memory::None;
        }
        begins
    }

    /// It may be asked again after that time.
    pub(crate) fn ask_after(&self, time: Duration) {
        *self.memory() = Memory::NotBefore(Instant::now() + time);
    }

    /// Bulk goes that way from now on.
    pub(crate) fn share(&self, shared: BorrowedMemory) {
        let mut memory = self.memory();
        // Closed before that is looked at: whoever ends the connection finds what there is.
        if self.is_open() {
            *memory = Memory::Shared(Arc::new(shared));
        }
    }

    /// Bulk goes that way no more.
    pub(crate) fn unshare(&self) {
        *self.memory() = Memory::None;
    }

    /// Expects an answer; none if the connection has ended.
    pub(crate) fn expect(&self, call: u64, lane: u8) -> Option<Expected<'_>> {
        let (answered, answer) = oneshot::channel();
        self.pending().as_mut()?.insert(call, answered);
        self.used.store(true, Ordering::Release);
        Some(Expected { live: self, call, lane, sent: false, answer })
    }

    async fn run<R: AsyncRead + Unpin>(
        self: Arc<Self>,
        mut frames: FrameReader<R>,
        writer: impl AsyncWrite + Send + Unpin + 'static,
        notices: broadcast::Sender<(Method, Bytes)>,
        options: LinkOptions,
    ) {
        let reading = async {
            while let Some(frame) = frames.next().await? {
                self.take(frame, &notices)?;
            }
            Ok::<_, String>("the peer closed it".to_owned())
        };
        let mut writing = self.outbox.writing(writer);
        let why: Result<String, String> = tokio::select! {
            ended = reading => ended,
            ended = self.keep_alive(options) => Ok(ended.to_owned()),
            written = writing.run() => written.map(|()| "this side closed it".into()).map_err(|e| e.to_string()),
            () = self.outbox.closed() => Ok("this side closed it".into()),
        };
        let reason = why.unwrap_or_else(|e| e);
        tracing::debug!(reason, "a link's connection ended");
        self.end();
        let _ = tokio::time::timeout(options.ping_interval, writing.shutdown()).await;
    }

    async fn keep_alive(&self, options: LinkOptions) -> &'static str {
        let mut quiet = 0;
        loop {
            tokio::time::sleep(options.ping_interval).await;
            let drained = self.pending().as_ref().is_none_or(BTreeMap::is_empty);
            if self.replaced.load(Ordering::Acquire) && drained {
                return "another took its place";
            }
            // An idle connection isn't kept until a certificate's end cuts it off: the next call makes another.
            quiet = if drained && !self.used.swap(false, Ordering::AcqRel) { quiet + 1 } else { 0 };
            if self.is_due() && quiet >= QUIET_TICKS {
                return "it is due for retirement, and nobody uses it";
            }
            if self.outbox.push_now(plain(Kind::Ping, Bytes::new())).is_err() {
                return "the peer takes nothing";
            }
        }
    }

    fn take(&self, frame: Frame, notices: &broadcast::Sender<(Method, Bytes)>) -> Result<(), String> {
        match frame.kind {
            Kind::Response => self.answered(frame.call, Ok(Answer { body: frame.body, bulk: frame.bulk })),
            Kind::Error => {
                let malformed = |e: prost::DecodeError| {
                    crate::call_error(ErrorCode::Internal, format!("an error answer is malformed: {e}"))
                };
                self.answered(frame.call, Err(CallError::decode(frame.body).unwrap_or_else(malformed)));
            }
            Kind::Notify => {
                if let Some(method) = Method::from_u16(frame.method) {
                    let _ = notices.send((method, frame.body));
                }
            }
            Kind::Ping => {
                let _ = self.outbox.push_now(plain(Kind::Pong, Bytes::new()));
            }
            Kind::Pong => {}
            Kind::Hello | Kind::HelloAnswer | Kind::Request | Kind::Cancel => {
                return Err(format!("the peer sent a frame that has no place here: {:?}", frame.kind));
            }
        }
        Ok(())
    }

    /// An answer that nobody waits for any more is dropped.
    fn answered(&self, call: u64, outcome: Outcome) {
        let waiting = self.pending().as_mut().and_then(|pending| pending.remove(&call));
        if let Some(waiting) = waiting {
            let _ = waiting.send(outcome);
        }
    }
}

async fn greet<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    writer: &mut (impl AsyncWrite + Unpin),
    levels: Levels,
) -> Result<Levels, Ended> {
    let mut bytes = BytesMut::new();
    plain(Kind::Hello, version::hello(levels).encode_to_vec().into()).encode_head(&mut bytes);
    let sent = async {
        writer.write_all(&bytes).await?;
        writer.flush().await
    };
    let sent = sent.await;
    // A peer that refuses our certificate says so only now (TLS 1.3), perhaps after our write failed: what it said is the better reason.
    let frame = match (frames.next().await, sent) {
        (Ok(None), Err(error)) => return Err(Ended::of_io(&error)),
        (read, _) => read?,
    };
    let Some(Frame { kind: Kind::HelloAnswer, body, .. }) = frame else {
        return Err("the peer closed the connection instead of answering the hello".into());
    };
    let answer =
        HelloAnswer::decode(body).map_err(|e| format!("the answer to our hello is malformed: {e}"))?;
    if !answer.refused.is_empty() {
        return Err(answer.refused.into());
    }
    frames.welcome();
    Ok(version::levels_answered(&answer))
}

/// A call that waits for its answer. When it is dropped before, the peer is told that nobody waits any more.
pub(crate) struct Expected<'a> {
    live: &'a Live,
    call: u64,
    lane: u8,
    sent: bool,
    answer: oneshot::Receiver<Outcome>,
}

impl Expected<'_> {
    /// Sends the request; answers false if it certainly wasn't sent.
    pub(crate) async fn send(&mut self, frame: Frame) -> bool {
        self.sent = self.live.outbox.push(frame).await.is_ok();
        self.sent
    }

    /// The answer; none if the connection ended before it came.
    pub(crate) async fn answer(&mut self) -> Option<Outcome> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        let waits = self.live.pending().as_mut().is_some_and(|pending| pending.remove(&self.call).is_some());
        if waits && self.sent {
            let mut frame = plain(Kind::Cancel, Bytes::new());
            (frame.call, frame.lane) = (self.call, self.lane);
            let _ = self.live.outbox.push_now(frame);
        }
    }
}
