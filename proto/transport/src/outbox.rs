//! Frames on their way out of one connection: a queue for each lane, written in order of precedence and in batches.
//!
//! Each lane has room of its own, so that a full one never keeps another waiting. Control goes first; the other lanes take turns
//! within a batch, so that none starves.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mooseng_wire::frame::Frame;
use mooseng_wire::method::{LANES, Lane};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

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

struct Queued {
    frame: Frame,
    /// Room that it takes up in its lane; 0 for one that didn't wait.
    room: usize,
}

#[derive(Default)]
struct Queues {
    lanes: [VecDeque<Queued>; LANES.len()],
    urgent_bytes: usize,
    turn: usize,
    closed: bool,
}

/// The outgoing side of a connection.
pub(crate) struct Outbox {
    queues: Mutex<Queues>,
    room: [Semaphore; LANES.len()],
    filled: Notify,
    closed: CancellationToken,
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
            room: std::array::from_fn(|_| Semaphore::new(LANE_BYTES_MAX)),
            filled: Notify::new(),
            closed: CancellationToken::new(),
        }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self, frame: Frame, room: usize) -> Result<(), Closed> {
        let mut queues = self.queues();
        if queues.closed {
            return Err(Closed);
        }
        if room == 0 {
            queues.urgent_bytes += frame.encoded_len();
        }
        queues.lanes[lane_of(&frame)].push_back(Queued { frame, room });
        drop(queues);
        self.filled.notify_one();
        Ok(())
    }

    /// Queues a frame, waiting for room in its lane. When this fails or is dropped, the frame wasn't queued.
    pub(crate) async fn push(&self, frame: Frame) -> Result<(), Closed> {
        let room = frame.encoded_len().min(LANE_BYTES_MAX);
        let permits = self.room[lane_of(&frame)].acquire_many(room as u32).await.map_err(|_| Closed)?;
        self.queue(frame, room)?;
        permits.forget();
        Ok(())
    }

    /// Queues a frame at once; a peer that has let too many of these wait loses the connection.
    pub(crate) fn push_now(&self, frame: Frame) -> Result<(), Closed> {
        if self.queues().urgent_bytes + frame.encoded_len() > URGENT_BYTES_MAX {
            self.close();
            return Err(Closed);
        }
        self.queue(frame, 0)
    }

    pub(crate) fn close(&self) {
        let mut queues = self.queues();
        queues.closed = true;
        queues.lanes.iter_mut().for_each(VecDeque::clear);
        drop(queues);
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
        let Some(Queued { frame, room }) = queues.lanes[lane].pop_front() else { return 0 };
        let bytes = frame.encoded_len();
        if room == 0 {
            queues.urgent_bytes -= bytes;
        }
        self.room[lane].add_permits(room);
        batch.add(frame);
        bytes
    }

    /// Writes frames until the connection closes or breaks.
    pub(crate) async fn write_all(&self, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut batch = Batch::default();
        while !self.is_closed() {
            let filled = self.filled.notified();
            self.take(&mut batch);
            if batch.bytes == 0 {
                tokio::select! {
                    () = filled => continue,
                    () = self.closed.cancelled() => return Ok(()),
                }
            }
            io.write_all_buf(&mut batch).await?;
            io.flush().await?;
        }
        Ok(())
    }
}

/// Bytes of one write, in parts: headers and small bulk joined, large bulk as it lies.
#[derive(Default)]
struct Batch {
    parts: VecDeque<Bytes>,
    joined: BytesMut,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, frame: Frame) {
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
    }
    fn chunks_vectored<'a>(&'a self, slices: &mut [io::IoSlice<'a>]) -> usize {
        let filled = slices.iter_mut().zip(&self.parts).map(|(slice, part)| *slice = io::IoSlice::new(part));
        filled.count()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let (mut near, mut far) = tokio::io::duplex(64 << 10);
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
            _ = outbox.write_all(&mut near) => unreachable!("nobody closed it"),
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

    #[tokio::test]
    async fn a_peer_that_takes_nothing_loses_the_connection() {
        let outbox = Outbox::new();
        let refused = (0..10).find(|call| outbox.push_now(frame(Lane::Control, *call, 1 << 20)).is_err());
        assert_eq!(refused, Some(3));
        assert!(outbox.is_closed());
        assert!(outbox.push(frame(Lane::Read, 1, 1)).await.is_err());
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
        outbox.write_all(&mut tokio::io::sink()).await.unwrap();
    }
}
