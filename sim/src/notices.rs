//! Notices (recalls, locks that are granted) on their way to a client: some are lost, some come late, behind answers that were sent after them.
//! On a live connection the daemons' own transport loses one only where its reader is too slow; but nothing may rest on that.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use mooseng_wire::frame::{FRAME_BYTES_MAX, Frame, Kind};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Of twenty notices so many are lost.
const LOST: u32 = 2;
/// And so many come late.
const LATE: u32 = 6;
/// How late at most.
const LATE_MAX_MS: u64 = 400;

/// A client's connection.
pub struct Noticing<T> {
    io: T,
    arrived: BytesMut,
    ready: BytesMut,
    /// What comes late, and when.
    held: VecDeque<(Instant, Bytes)>,
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl<T> Noticing<T> {
    pub fn new(io: T) -> Self {
        let (arrived, ready) = (BytesMut::new(), BytesMut::new());
        Self { io, arrived, ready, held: VecDeque::new(), timer: None, ended: false }
    }

    /// Passes on what has arrived whole.
    fn sort(&mut self) -> io::Result<()> {
        loop {
            let malformed = |e: mooseng_wire::frame::FrameError| io::Error::other(e.to_string());
            let Some(frame) = Frame::decode(&mut self.arrived, FRAME_BYTES_MAX).map_err(malformed)? else {
                return Ok(());
            };
            let fate = if frame.kind == Kind::Notify { rand::random_range(0..20) } else { u32::MAX };
            if fate < LOST {
                continue;
            }
            let mut bytes = BytesMut::new();
            frame.encode_head(&mut bytes);
            bytes.extend_from_slice(&frame.bulk);
            if fate < LOST + LATE {
                let late = Duration::from_millis(rand::random_range(1..=LATE_MAX_MS));
                self.held.push_back((Instant::now() + late, bytes.freeze()));
            } else {
                self.ready.unsplit(bytes);
            }
        }
    }

    /// What was held back and is due. Wakes the task for the rest.
    fn release(&mut self, cx: &mut Context<'_>) {
        let now = Instant::now();
        let ready = &mut self.ready;
        self.held.retain(|(due, bytes)| {
            if *due <= now {
                ready.extend_from_slice(bytes);
            }
            *due > now
        });
        self.timer =
            self.held.iter().map(|(due, _)| *due).min().map(|due| Box::pin(tokio::time::sleep_until(due)));
        if let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            cx.waker().wake_by_ref();
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Noticing<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            self.release(cx);
            if !self.ready.is_empty() {
                let n = self.ready.len().min(buffer.remaining());
                buffer.put_slice(&self.ready[..n]);
                self.ready.advance(n);
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            let mut room = [0; 16 << 10];
            let mut piece = ReadBuf::new(&mut room);
            std::task::ready!(Pin::new(&mut self.io).poll_read(cx, &mut piece))?;
            self.ended = piece.filled().is_empty();
            self.arrived.extend_from_slice(piece.filled());
            self.sort()?;
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Noticing<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
