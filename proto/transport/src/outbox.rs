//! Frames on their way out of one connection: a queue for each lane, written in order of precedence and in batches.
//!
//! Each lane has room of its own, so that a full one never keeps another waiting. Control goes first; the other lanes take turns
//! within a batch, so that none starves.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mooseng_wire::frame::Frame;
use mooseng_wire::method::{LANES, Lane};
use tokio::io::AsyncWrite;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::io::poll_write_buf;
use tokio_util::sync::CancellationToken;

use crate::answers::Held;

/// Bytes that wait in a lane at most; a sender waits for room.
const LANE_BYTES_MAX: usize = 4 << 20;
/// Bytes that wait at most though their sender didn't wait for room: past it the peer is too slow to be served.
const URGENT_BYTES_MAX: usize = 4 << 20;
/// Bytes that are joined into one write.
const BATCH_BYTES: usize = 256 << 10;
/// Bytes that a lane puts into a batch before it is another's turn.
const TURN_BYTES: usize = 64 << 10;
/// Bulk from this size on is written from where it lies; smaller bulk is copied beside its header.
const COPY_BYTES_MAX: usize = 16 << 10;
/// A peer that takes so many bytes takes some, however many wait.
const PROGRESS_BYTES: u64 = 64 << 10;
/// How often it is looked at before it is given up.
const LOOKS: u32 = 4;

struct Queued {
    frame: Frame,
    /// Room that it takes up in its lane; 0 for one that didn't wait.
    room: usize,
    /// What it takes up until it is written.
    held: Held,
}

#[derive(Default)]
struct Queues {
    lanes: [VecDeque<Queued>; LANES.len()],
    urgent_bytes: usize,
    turn: usize,
    closed: bool,
}

thread_local! {
    static DIRECTLY: Cell<bool> = const { Cell::new(false) };
}

/// Calls that `f` makes on this thread are written to their connection on it, as far as that needs no waiting, instead of by the connection's
/// task: for threads that aren't the runtime's, to which a wake-up of it costs more than the write. Must be called within the runtime's context.
pub fn directly<T>(f: impl FnOnce() -> T) -> T {
    /// Put back however `f` ends.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            DIRECTLY.set(self.0);
        }
    }
    let _before = Before(DIRECTLY.replace(true));
    f()
}

/// Writes batches; whoever has it is the only one who does.
struct Pump {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    batch: Batch,
    unflushed: bool,
}

/// The outgoing side of a connection.
pub(crate) struct Outbox {
    queues: Mutex<Queues>,
    /// There from when the connection's task writes until it ends.
    pump: Mutex<Option<Pump>>,
    room: [Semaphore; LANES.len()],
    filled: Notify,
    closed: CancellationToken,
    /// Bytes that were ever queued.
    queued: AtomicU64,
    /// Of these, those that were written.
    written: AtomicU64,
}

/// The connection is closed, or its peer takes nothing any more.
#[derive(Debug)]
pub(crate) struct Closed;

pub(crate) fn lane_of(frame: &Frame) -> usize {
    usize::from(frame.lane).min(LANES.len() - 1)
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            queues: Mutex::default(),
            pump: Mutex::default(),
            room: std::array::from_fn(|_| Semaphore::new(LANE_BYTES_MAX)),
            filled: Notify::new(),
            closed: CancellationToken::new(),
            queued: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self, frame: Frame, room: usize, held: Held) -> Result<(), Closed> {
        let mut queues = self.queues();
        if queues.closed {
            return Err(Closed);
        }
        if room == 0 {
            queues.urgent_bytes += frame.encoded_len();
        }
        self.queued.fetch_add(frame.encoded_len() as u64, Ordering::Relaxed);
        queues.lanes[lane_of(&frame)].push_back(Queued { frame, room, held });
        drop(queues);
        if !(DIRECTLY.get() && self.write_here()) {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Writes what is queued on this thread; true if all of it is written. Otherwise the connection's task goes on with it.
    fn write_here(&self) -> bool {
        let Ok(mut pump) = self.pump.try_lock() else { return false };
        let Some(pump) = pump.as_mut() else { return false };
        matches!(self.poll_write(pump, &mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    /// Queues a frame, waiting for room in its lane. When this fails or is dropped, the frame wasn't queued.
    pub(crate) async fn push(&self, frame: Frame) -> Result<(), Closed> {
        self.push_held(frame, Held::default()).await
    }

    /// [`Outbox::push`] of a frame that holds what it takes up until it is written.
    pub(crate) async fn push_held(&self, frame: Frame, held: Held) -> Result<(), Closed> {
        let room = frame.encoded_len().min(LANE_BYTES_MAX);
        let permits = self.room[lane_of(&frame)].acquire_many(room as u32).await.map_err(|_| Closed)?;
        self.queue(frame, room, held)?;
        permits.forget();
        Ok(())
    }

    /// Queues a frame at once; a peer that has let too many of these wait loses the connection.
    pub(crate) fn push_now(&self, frame: Frame) -> Result<(), Closed> {
        if self.queues().urgent_bytes + frame.encoded_len() > URGENT_BYTES_MAX {
            self.close();
            return Err(Closed);
        }
        self.queue(frame, 0, Held::default())
    }

    pub(crate) fn close(&self) {
        let mut queues = self.queues();
        queues.closed = true;
        let dropped = std::mem::take(&mut queues.lanes);
        drop(queues);
        // What they held wakes others.
        drop(dropped);
        self.room.iter().for_each(Semaphore::close);
        self.closed.cancel();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until it is closed.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// How much must be written until the peer has taken some of what waits now.
    fn mark(&self) -> u64 {
        let written = self.written.load(Ordering::Relaxed);
        self.queued.load(Ordering::Relaxed).min(written.saturating_add(PROGRESS_BYTES))
    }

    /// Waits until the peer has taken next to nothing for so long though something waited.
    pub(crate) async fn stuck(&self, most: Duration) {
        let (mut mark, mut since) = (self.mark(), Instant::now());
        loop {
            tokio::time::sleep(most / LOOKS).await;
            if self.written.load(Ordering::Relaxed) >= mark {
                (mark, since) = (self.mark(), Instant::now());
            } else if since.elapsed() >= most {
                return;
            }
        }
    }

    /// Moves the next batch of frames into `batch`.
    fn take(&self, batch: &mut Batch) {
        let mut queues = self.queues();
        let control = Lane::Control as usize;
        while batch.bytes < BATCH_BYTES && self.take_one(&mut queues, control, batch) > 0 {}
        // However busy control is, one other lane gets its turn in each batch.
        let others = LANES.len() - 1;
        let mut idle = 0;
        while idle < others {
            let lane = 1 + queues.turn % others;
            queues.turn = (queues.turn + 1) % others;
            let mut taken = 0;
            while taken < TURN_BYTES {
                match self.take_one(&mut queues, lane, batch) {
                    0 => break,
                    bytes => taken += bytes,
                }
            }
            idle = if taken == 0 { idle + 1 } else { 0 };
            if taken > 0 && batch.bytes >= BATCH_BYTES {
                break;
            }
        }
        batch.seal();
    }

    fn take_one(&self, queues: &mut Queues, lane: usize, batch: &mut Batch) -> usize {
        let Some(Queued { frame, room, held }) = queues.lanes[lane].pop_front() else { return 0 };
        let bytes = frame.encoded_len();
        if room == 0 {
            queues.urgent_bytes -= bytes;
        }
        self.room[lane].add_permits(room);
        batch.add(frame, held);
        bytes
    }

    /// Writes until nothing is queued.
    fn poll_write(&self, pump: &mut Pump, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_closed() {
            if pump.batch.bytes == 0 {
                if pump.unflushed {
                    ready!(Pin::new(&mut pump.io).poll_flush(cx))?;
                    pump.unflushed = false;
                }
                self.take(&mut pump.batch);
                if pump.batch.bytes == 0 {
                    break;
                }
            }
            let written = ready!(poll_write_buf(Pin::new(&mut pump.io), cx, &mut pump.batch))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written.fetch_add(written as u64, Ordering::Relaxed);
            pump.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    fn pump(&self) -> MutexGuard<'_, Option<Pump>> {
        self.pump.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on what is queued goes to `io`.
    pub(crate) fn writing(&self, io: impl AsyncWrite + Send + Unpin + 'static) -> Writing<'_> {
        *self.pump() = Some(Pump { io: Box::new(io), batch: Batch::default(), unflushed: false });
        Writing(self)
    }
}

/// An outbox that writes; the stream goes with this.
pub(crate) struct Writing<'a>(&'a Outbox);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        *self.0.pump() = None;
    }
}

impl Writing<'_> {
    /// Writes frames until the connection closes or breaks.
    pub(crate) async fn run(&mut self) -> io::Result<()> {
        let outbox = self.0;
        while !outbox.is_closed() {
            let (filled, closed) = (outbox.filled.notified(), outbox.closed.cancelled());
            tokio::pin!(filled, closed);
            poll_fn(|cx| {
                let written = outbox.pump().as_mut().map(|pump| outbox.poll_write(pump, cx));
                if let Some(Poll::Ready(Err(error))) = written {
                    return Poll::Ready(Err(error));
                }
                // Also while it waits for the stream: another thread that wrote meanwhile has taken this task's place there, and says so.
                let again = filled.as_mut().poll(cx).is_ready() | closed.as_mut().poll(cx).is_ready();
                if again { Poll::Ready(Ok(())) } else { Poll::Pending }
            })
            .await?;
        }
        Ok(())
    }

    /// Tells the peer that nothing more comes.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| match self.0.pump().as_mut() {
            Some(pump) => Pin::new(&mut pump.io).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        })
        .await
    }
}

/// Bytes of one write, in parts: headers and small bulk joined, large bulk as it lies.
#[derive(Default)]
struct Batch {
    parts: VecDeque<Bytes>,
    joined: BytesMut,
    bytes: usize,
    /// What its frames take up.
    held: Vec<Held>,
}

impl Batch {
    fn add(&mut self, frame: Frame, held: Held) {
        if !held.is_nothing() {
            self.held.push(held);
        }
        self.bytes += frame.encoded_len();
        frame.encode_head(&mut self.joined);
        if frame.bulk.len() <= COPY_BYTES_MAX {
            self.joined.put_slice(&frame.bulk);
        } else {
            self.seal();
            self.parts.push_back(frame.bulk);
        }
    }

    fn seal(&mut self) {
        if !self.joined.is_empty() {
            self.parts.push_back(self.joined.split().freeze());
        }
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.bytes
    }
    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| &part[..])
    }
    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(part) = self.parts.front_mut()
            && count >= part.len()
        {
            count -= part.len();
            self.parts.pop_front();
        }
        if let Some(part) = self.parts.front_mut() {
            part.advance(count);
        }
        if self.bytes == 0 {
            self.held.clear();
        }
    }
    fn chunks_vectored<'a>(&'a self, slices: &mut [io::IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.parts).map(|(slice, part)| *slice = io::IoSlice::new(part));
        filled.count()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use mooseng_wire::frame::{FRAME_BYTES_MAX, Kind};
    use tokio::io::AsyncReadExt;

    use super::*;

    fn frame(lane: Lane, call: u64, bulk: usize) -> Frame {
        let bulk = vec![call as u8; bulk].into();
        Frame {
            kind: Kind::Request,
            lane: lane as u8,
            method: 4,
            call,
            meta: Bytes::new(),
            body: Bytes::new(),
            bulk,
        }
    }

    async fn written(outbox: &Outbox, frames: usize) -> Vec<Frame> {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let mut writing = outbox.writing(near);
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        let reading = async {
            while found.len() < frames {
                match Frame::decode(&mut buffer, FRAME_BYTES_MAX).unwrap() {
                    Some(frame) => found.push(frame),
                    None => {
                        far.read_buf(&mut buffer).await.unwrap();
                    }
                }
            }
        };
        tokio::select! {
            _ = writing.run() => unreachable!("nobody closed it"),
            () = reading => {}
        }
        found
    }

    #[tokio::test]
    async fn a_full_lane_keeps_only_its_own_senders_waiting() {
        let outbox = Outbox::new();
        for call in 0..4 {
            outbox
                .push(frame(Lane::Change, call, (1 << 20) - 64))
                .now_or_never()
                .expect("room is left")
                .unwrap();
        }
        assert!(outbox.push(frame(Lane::Change, 9, 1 << 20)).now_or_never().is_none(), "the lane is full");
        outbox.push(frame(Lane::Control, 100, 10)).now_or_never().expect("another lane").unwrap();
        outbox.push(frame(Lane::Read, 101, 10)).now_or_never().expect("another lane").unwrap();
        let calls: Vec<u64> = written(&outbox, 6).await.iter().map(|f| f.call).collect();
        assert_eq!(calls[0], 100, "control goes first");
        assert!(calls[1..3].contains(&101), "a read doesn't wait for all changes: {calls:?}");
        outbox.push(frame(Lane::Change, 9, 1 << 20)).now_or_never().expect("room again").unwrap();
    }

    #[tokio::test]
    async fn busy_control_starves_nobody_and_frames_arrive_whole() {
        let outbox = Outbox::new();
        for call in 0..40 {
            outbox.push(frame(Lane::Control, call, 90_000)).now_or_never().expect("room").unwrap();
        }
        outbox.push(frame(Lane::Change, 77, 20_000)).now_or_never().expect("room").unwrap();
        let found = written(&outbox, 41).await;
        let change = found.iter().position(|f| f.call == 77).unwrap();
        assert!(change < 10, "the change waited for {change} frames of control");
        for frame in found {
            assert!(frame.bulk.iter().all(|b| *b == frame.call as u8));
            assert_eq!(frame.bulk.len(), if frame.call == 77 { 20_000 } else { 90_000 });
        }
    }

    /// Threads that write themselves, the task, and a peer that takes a little at a time: each frame arrives once, whole, in its sender's order.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn frames_written_by_other_threads_arrive_like_any_others() {
        for left_to_the_task in [false, true] {
            written_by_threads(left_to_the_task).await;
        }
    }

    async fn written_by_threads(left_to_the_task: bool) {
        const FRAMES: u64 = 300;
        let outbox = std::sync::Arc::new(Outbox::new());
        let (near, mut far) = tokio::io::duplex(700);
        let task = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.writing(near).run().await }
        });
        let sending: Vec<_> = (0..3)
            .map(|sender| {
                let (outbox, runtime) = (outbox.clone(), tokio::runtime::Handle::current());
                std::thread::spawn(move || {
                    let _context = runtime.enter();
                    for n in 0..FRAMES {
                        let frame = frame(Lane::Read, sender * FRAMES + n, (n % 40) as usize * 100);
                        let pushing = || futures::executor::block_on(outbox.push(frame));
                        if left_to_the_task && sender == 0 { pushing() } else { directly(pushing) }.unwrap();
                    }
                })
            })
            .collect();
        let (mut buffer, mut next) = (BytesMut::new(), [0, FRAMES, 2 * FRAMES]);
        let reading = async {
            while next.iter().sum::<u64>() < 6 * FRAMES {
                match Frame::decode(&mut buffer, FRAME_BYTES_MAX).unwrap() {
                    Some(frame) => {
                        let sender = (frame.call / FRAMES) as usize;
                        assert_eq!(frame.call, next[sender]);
                        next[sender] += 1;
                    }
                    None => drop(far.read_buf(&mut buffer).await.unwrap()),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reading).await.expect("a frame is stuck");
        sending.into_iter().for_each(|thread| thread.join().unwrap());
        outbox.close();
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_loses_the_connection() {
        let outbox = Outbox::new();
        let refused = (0..10).find(|call| outbox.push_now(frame(Lane::Control, *call, 1 << 20)).is_err());
        assert_eq!(refused, Some(3));
        assert!(outbox.is_closed());
        assert!(outbox.push(frame(Lane::Read, 1, 1)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_for_too_long_is_stuck() {
        const MOST: Duration = Duration::from_secs(20);
        let outbox = Outbox::new();
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let mut writing = outbox.writing(near);
        let mut is_stuck = async |within: Duration, outbox: &Outbox| {
            tokio::select! {
                _ = writing.run() => unreachable!("nobody closed it"),
                () = outbox.stuck(MOST) => true,
                () = tokio::time::sleep(within) => false,
            }
        };
        assert!(!is_stuck(MOST * 9, &outbox).await, "nothing waits");
        outbox.push(frame(Lane::Read, 1, 1 << 20)).await.unwrap();
        let slowly = async {
            let mut bytes = vec![0; 8 << 10];
            // Some of it in each second, and never all of it.
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                far.read_exact(&mut bytes).await.unwrap();
            }
        };
        tokio::select! {
            stuck = is_stuck(MOST * 9, &outbox) => panic!("{stuck}: it is slow"),
            () = slowly => {}
        }
        assert!(is_stuck(MOST * 2, &outbox).await);
    }

    #[tokio::test]
    async fn closing_ends_the_writer_and_whoever_waits_for_room() {
        let outbox = std::sync::Arc::new(Outbox::new());
        for call in 0..4 {
            outbox.push(frame(Lane::Change, call, (1 << 20) - 64)).await.unwrap();
        }
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.push(frame(Lane::Change, 5, 1 << 20)).await }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        outbox.close();
        assert!(waiting.await.unwrap().is_err());
        outbox.writing(tokio::io::sink()).run().await.unwrap();
    }
}
