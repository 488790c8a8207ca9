//! Frames on their way out of one connection: a queue for each lane, written in order of precedence and in batches.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, PoisonError};

use bytes::{BufMut, BytesMut};
use mooseng_wire::frame::Frame;
use mooseng_wire::method::LANES;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Bytes that wait at most; a sender waits for room, in the control lane it doesn't.
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Bytes of control frames that wait at most: past it the peer is too slow to be served.
const CONTROL_BYTES_MAX: usize = 4 << 20;
/// Bytes that are joined into one write.
const BATCH_BYTES: usize = 256 << 10;

struct Queues {
    lanes: [VecDeque<Frame>; LANES.len()],
    bytes: usize,
    closed: bool,
}

/// The outgoing side of a connection.
pub(crate) struct Outbox {
    queues: Mutex<Queues>,
    filled: Notify,
    drained: Notify,
}

/// The connection is closed, or its peer takes nothing any more.
#[derive(Debug)]
pub(crate) struct Closed;

impl Outbox {
    pub(crate) fn new() -> Self {
        let queues = Queues { lanes: Default::default(), bytes: 0, closed: false };
        Self { queues: Mutex::new(queues), filled: Notify::new(), drained: Notify::new() }
    }

    fn queues(&self) -> std::sync::MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_push(&self, frame: Frame, limit: usize) -> Result<Option<Frame>, Closed> {
        let mut queues = self.queues();
        if queues.closed {
            return Err(Closed);
        }
        let bytes = frame.encoded_len();
        if queues.bytes > 0 && queues.bytes + bytes > limit {
            return Ok(Some(frame));
        }
        queues.bytes += bytes;
        let lane = usize::from(frame.lane).min(LANES.len() - 1);
        queues.lanes[lane].push_back(frame);
        drop(queues);
        self.filled.notify_one();
        Ok(None)
    }

    /// Queues a frame, waiting for room.
    pub(crate) async fn push(&self, mut frame: Frame) -> Result<(), Closed> {
        loop {
            let room = self.drained.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.try_push(frame, QUEUE_BYTES_MAX)? {
                None => return Ok(()),
                Some(back) => frame = back,
            }
            room.await;
        }
    }

    /// Queues a frame at once; a peer that has let the queue fill past its bound loses the connection.
    pub(crate) fn push_now(&self, frame: Frame) -> Result<(), Closed> {
        match self.try_push(frame, QUEUE_BYTES_MAX + CONTROL_BYTES_MAX)? {
            None => Ok(()),
            Some(_) => {
                self.close();
                Err(Closed)
            }
        }
    }

    pub(crate) fn close(&self) {
        self.queues().closed = true;
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.queues().closed
    }

    /// Takes what fits into one write; none once closed.
    fn take(&self, out: &mut BytesMut) -> Option<usize> {
        let mut queues = self.queues();
        if queues.closed {
            return None;
        }
        let mut taken = 0;
        for lane in 0..LANES.len() {
            while out.len() < BATCH_BYTES
                && let Some(frame) = queues.lanes[lane].pop_front()
            {
                taken += frame.encoded_len();
                frame.encode_head(out);
                out.put_slice(&frame.bulk);
            }
        }
        queues.bytes -= taken;
        Some(taken)
    }

    /// Writes frames until the connection closes or breaks.
    pub(crate) async fn write_all(&self, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut buffer = BytesMut::with_capacity(BATCH_BYTES);
        loop {
            let filled = self.filled.notified();
            let Some(taken) = self.take(&mut buffer) else { return Ok(()) };
            if taken == 0 {
                filled.await;
                continue;
            }
            self.drained.notify_waiters();
            io.write_all(&buffer).await?;
            io.flush().await?;
            buffer.clear();
            if buffer.capacity() > 2 * BATCH_BYTES {
                buffer = BytesMut::with_capacity(BATCH_BYTES);
            }
        }
    }
}
