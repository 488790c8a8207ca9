//! A stream of bytes that takes as long as the way between two regions, and stalls where that is cut.
//!
//! Each direction is a queue of pieces with the time when they arrive. Bytes of the other side are queued as they are read from below;
//! ours are taken from the queue by a task of the connection's, for a writer doesn't come back only because time has passed.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;

use super::rules::{WanRules, Way};
use crate::network::Io;

/// Bytes on their way in one direction at most: more than bandwidth times delay of any link that is imitated here.
pub(super) const IN_FLIGHT_MAX: usize = 16 << 20;
/// Bytes that are read from below at a time.
const PIECE_BYTES: usize = 64 << 10;
/// How long bytes that were written before a connection was closed are kept for a way that is cut.
const LINGER: Duration = Duration::from_secs(30);

type Rules = watch::Receiver<Arc<WanRules>>;

/// A stream whose other end is in another region.
pub(super) struct Delayed {
    inward: Inward,
    outward: Arc<Outward>,
}

impl Delayed {
    /// Over a connection from a region to another. Must be called within a tokio runtime.
    pub(super) fn new(io: Box<dyn Io>, rules: Rules, ours: &str, theirs: &str) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let outward = Arc::new(Outward::default());
        outward.queue().delay = rules.borrow().way(ours, theirs).delay;
        tokio::spawn(carry(outward.clone(), writer, rules.clone(), ours.to_owned(), theirs.to_owned()));
        Self { inward: Inward::new(reader, rules, theirs.to_owned(), ours.to_owned()), outward }
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        self.outward.queue().closed = true;
        self.outward.filled.notify_one();
        self.outward.dropped.cancel();
    }
}

impl AsyncRead for Delayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.inward.poll_read(cx, buf)
    }
}

impl AsyncWrite for Delayed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.outward.poll_write(cx, &[io::IoSlice::new(buf)])
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.outward.poll_write(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    /// What was taken is on its way, as with a socket.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.outward.queue().failure())
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut queue = self.outward.queue();
        queue.closed = true;
        self.outward.filled.notify_one();
        Poll::Ready(queue.failure())
    }
}

/// Bytes of the other side.
struct Inward {
    io: ReadHalf<Box<dyn Io>>,
    from: String,
    to: String,
    rules: WatchStream<Arc<WanRules>>,
    way: Way,
    queue: VecDeque<(Instant, Bytes)>,
    in_flight: usize,
    /// When and how the stream below ended.
    ended: Option<(Instant, io::Result<()>)>,
    timer: Pin<Box<Sleep>>,
    space: BytesMut,
}

impl Inward {
    fn new(io: ReadHalf<Box<dyn Io>>, rules: Rules, from: String, to: String) -> Self {
        let way = rules.borrow().way(&from, &to);
        let (queue, space) = (VecDeque::new(), BytesMut::new());
        let (rules, timer) = (WatchStream::from_changes(rules), Box::pin(sleep(Duration::ZERO)));
        Self { io, from, to, rules, way, queue, in_flight: 0, ended: None, timer, space }
    }

    /// Takes what has come to this side, to be seen when it arrives. Whoever reads is woken by more of it.
    fn take(&mut self, cx: &mut Context<'_>) {
        while self.ended.is_none() && self.in_flight < IN_FLIGHT_MAX {
            // Small pieces share what is allocated.
            if self.space.capacity() < PIECE_BYTES / 16 {
                self.space.reserve(PIECE_BYTES);
            }
            let Poll::Ready(read) = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.space) else {
                return;
            };
            let due = Instant::now() + self.way.delay;
            match read {
                Ok(0) => self.ended = Some((due, Ok(()))),
                Ok(count) => {
                    self.in_flight += count;
                    self.queue.push_back((due, self.space.split().freeze()));
                }
                Err(error) => self.ended = Some((due, Err(error))),
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while let Poll::Ready(Some(rules)) = Pin::new(&mut self.rules).poll_next(cx) {
            self.way = rules.way(&self.from, &self.to);
        }
        let had = buf.filled().len();
        loop {
            self.take(cx);
            if self.way.cut {
                return Poll::Pending;
            }
            let now = Instant::now();
            while buf.remaining() > 0
                && let Some((due, piece)) = self.queue.front_mut()
                && *due <= now
            {
                let count = piece.len().min(buf.remaining());
                buf.put_slice(&piece[..count]);
                piece.advance(count);
                self.in_flight -= count;
                if piece.is_empty() {
                    self.queue.pop_front();
                }
            }
            if buf.filled().len() > had || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let next = match (self.queue.front(), &self.ended) {
                (Some((due, _)), _) => *due,
                (None, Some((due, _))) => *due,
                (None, None) => return Poll::Pending,
            };
            if next <= now {
                // Nothing is queued before the end: it is told once, and from then on the stream is empty.
                let how = self.ended.as_mut().map_or(Ok(()), |(_, how)| std::mem::replace(how, Ok(())));
                return Poll::Ready(how);
            }
            if self.timer.deadline() != next {
                self.timer.as_mut().reset(next);
            }
            ready!(self.timer.as_mut().poll(cx));
        }
    }
}

/// Our bytes on their way.
#[derive(Default)]
struct Outward {
    queue: Mutex<Queue>,
    filled: Notify,
    /// Nobody reads or writes here any more.
    dropped: CancellationToken,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<(Instant, Bytes)>,
    in_flight: usize,
    /// How long a piece takes that is written now.
    delay: Duration,
    /// Nothing more is written.
    closed: bool,
    failed: Option<(io::ErrorKind, String)>,
    writer: Option<Waker>,
}

impl Queue {
    fn failure(&self) -> io::Result<()> {
        match &self.failed {
            Some((kind, reason)) => Err(io::Error::new(*kind, reason.clone())),
            None => Ok(()),
        }
    }
}

impl Outward {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut queue = self.queue();
        queue.failure()?;
        if queue.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if queue.in_flight >= IN_FLIGHT_MAX {
            queue.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut room = IN_FLIGHT_MAX - queue.in_flight;
        let mut piece = BytesMut::with_capacity(bufs.iter().map(|b| b.len()).sum::<usize>().min(room));
        for buf in bufs {
            let count = buf.len().min(room);
            piece.extend_from_slice(&buf[..count]);
            room -= count;
        }
        let count = piece.len();
        if count > 0 {
            let due = Instant::now() + queue.delay;
            queue.in_flight += count;
            queue.pieces.push_back((due, piece.freeze()));
            drop(queue);
            self.filled.notify_one();
        }
        Poll::Ready(Ok(count))
    }

    /// The next piece, and when it arrives; none once all is written and nothing more will be.
    async fn next(&self) -> Option<(Instant, Bytes)> {
        loop {
            {
                let mut queue = self.queue();
                if let Some(piece) = queue.pieces.pop_front() {
                    return Some(piece);
                }
                if queue.closed {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }

    fn carried(&self, count: usize) {
        let mut queue = self.queue();
        queue.in_flight -= count;
        if let Some(writer) = queue.writer.take() {
            writer.wake();
        }
    }

    fn fail(&self, error: &io::Error) {
        let mut queue = self.queue();
        queue.failed = Some((error.kind(), error.to_string()));
        queue.pieces.clear();
        if let Some(writer) = queue.writer.take() {
            writer.wake();
        }
    }
}

/// Brings what is written to the other side, until all of it is there or nobody waits for it any more.
async fn carry(
    outward: Arc<Outward>,
    mut io: WriteHalf<Box<dyn Io>>,
    mut rules: Rules,
    from: String,
    to: String,
) {
    let mut changes = rules.clone();
    let follow = async {
        while changes.changed().await.is_ok() {
            let delay = changes.borrow_and_update().way(&from, &to).delay;
            outward.queue().delay = delay;
        }
        std::future::pending::<()>().await;
    };
    let bring = async {
        while let Some((due, piece)) = outward.next().await {
            sleep_until(due).await;
            // Without a file to look at any more, what it said last counts.
            if rules.wait_for(|rules| !rules.way(&from, &to).cut).await.is_err() {
                std::future::pending::<()>().await;
            }
            io.write_all(&piece).await?;
            if outward.queue().pieces.is_empty() {
                io.flush().await?;
            }
            outward.carried(piece.len());
        }
        io.shutdown().await
    };
    let given_up = async {
        outward.dropped.cancelled().await;
        sleep(LINGER).await;
    };
    tokio::select! {
        brought = bring => if let Err(error) = brought { outward.fail(&error) },
        () = given_up => {}
        () = follow => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio::time::timeout;

    use super::super::Cut;
    use super::*;

    fn rules(round_trip_ms: u64, cut: Cut) -> Arc<WanRules> {
        let mut rules = WanRules { default_round_trip_ms: round_trip_ms, ..WanRules::default() };
        rules.pair_mut("eu", "us").cut = cut;
        Arc::new(rules)
    }

    fn pipe(capacity: usize, cut: Cut) -> (Delayed, DuplexStream, watch::Sender<Arc<WanRules>>) {
        let (sender, receiver) = watch::channel(rules(60, cut));
        let (here, there) = duplex(capacity);
        (Delayed::new(Box::new(here), receiver, "eu", "us"), there, sender)
    }

    /// Writes pieces with pauses, then ends.
    async fn write(mut io: impl AsyncWrite + Unpin, pieces: Vec<(Vec<u8>, u64)>) {
        for (piece, pause_ms) in pieces {
            io.write_all(&piece).await.unwrap();
            sleep(Duration::from_millis(pause_ms)).await;
        }
        io.shutdown().await.unwrap();
    }

    /// Reads so much at a time until the end.
    async fn read(mut io: impl AsyncRead + Unpin, sizes: Vec<usize>) -> Vec<u8> {
        let mut all = Vec::new();
        for size in sizes.iter().cycle() {
            let mut bytes = vec![0; *size];
            match io.read(&mut bytes).await.unwrap() {
                0 => break,
                count => all.extend_from_slice(&bytes[..count]),
            }
        }
        all
    }

    fn pieces() -> impl Strategy<Value = Vec<(Vec<u8>, u64)>> {
        let piece = prop_oneof![
            3 => prop::collection::vec(any::<u8>(), 0..300),
            1 => prop::collection::vec(any::<u8>(), 60_000..200_000)
        ];
        prop::collection::vec((piece, 0..50_u64), 0..12)
    }

    fn joined(pieces: &[(Vec<u8>, u64)]) -> Vec<u8> {
        pieces.iter().flat_map(|(piece, _)| piece.clone()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn bytes_and_their_order_are_kept_both_ways_through_changing_rules(
            out in pieces(),
            back in pieces(),
            sizes in prop::collection::vec(1..100_000_usize, 1..5),
            capacity in 1_000..300_000_usize,
            changes in prop::collection::vec((0..100_u64, 0..4_usize, 0..60_u64), 0..6),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let (far, there, sender) = pipe(capacity, Cut::None);
                let (far_reader, far_writer) = tokio::io::split(far);
                let (there_reader, there_writer) = tokio::io::split(there);
                let (wanted_there, wanted_here) = (joined(&out), joined(&back));
                let writers = (tokio::spawn(write(far_writer, out)), tokio::spawn(write(there_writer, back)));
                let arrived_there = tokio::spawn(read(there_reader, sizes.clone()));
                let arrived_here = tokio::spawn(read(far_reader, sizes));
                for (round_trip_ms, cut, pause_ms) in changes {
                    sender.send_replace(rules(round_trip_ms, [Cut::None, Cut::Both, Cut::AToB, Cut::BToA][cut]));
                    sleep(Duration::from_millis(pause_ms)).await;
                }
                sender.send_replace(rules(10, Cut::None));
                assert!(arrived_there.await.unwrap() == wanted_there, "what arrived there differs");
                assert!(arrived_here.await.unwrap() == wanted_here, "what arrived here differs");
                writers.0.await.unwrap();
                writers.1.await.unwrap();
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_in_flight_are_bounded_and_fill_a_fast_long_link() {
        let (mut far, mut there, sender) = pipe(1 << 20, Cut::AToB);
        let piece = vec![7; 1 << 20];
        let mut sent = 0;
        while timeout(Duration::from_secs(1), far.write_all(&piece)).await.is_ok() {
            sent += piece.len();
        }
        assert_eq!(sent, IN_FLIGHT_MAX);
        sender.send_replace(rules(60, Cut::None));
        let mut arrived = vec![0; sent];
        there.read_exact(&mut arrived).await.unwrap();
        assert!(arrived.iter().all(|b| *b == 7));
        // Sixteen megabytes within one way: they don't wait for each other.
        let began = Instant::now();
        let writing = tokio::spawn(async move {
            far.write_all(&vec![8; IN_FLIGHT_MAX]).await.unwrap();
            far
        });
        there.read_exact(&mut arrived).await.unwrap();
        assert!(began.elapsed() <= Duration::from_millis(32), "{:?}", began.elapsed());
        writing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_before_the_end_arrives_and_a_cut_is_not_waited_for_for_ever() {
        let (mut far, mut there, _sender) = pipe(1 << 20, Cut::None);
        far.write_all(b"last words").await.unwrap();
        drop(far);
        let mut words = Vec::new();
        there.read_to_end(&mut words).await.unwrap();
        assert_eq!(words, b"last words");
        let (mut far, mut there, _sender) = pipe(1 << 20, Cut::Both);
        far.write_all(b"unheard").await.unwrap();
        drop(far);
        let began = Instant::now();
        assert_eq!(there.read_to_end(&mut words).await.unwrap(), 0);
        assert!(began.elapsed() >= LINGER);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_other_side_is_told_to_whoever_writes() {
        let (mut far, there, _sender) = pipe(1 << 20, Cut::None);
        drop(there);
        far.write_all(b"x").await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(far.write_all(b"y").await.is_err());
    }
}
