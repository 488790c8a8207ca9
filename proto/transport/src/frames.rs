//! Frames on their way in of one connection.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use mooseng_wire::frame::{FRAME_BYTES_MAX, Frame, HELLO_BYTES_MAX, Head, Kind};
use mooseng_wire::method::Lane;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use crate::ended::Ended;
use crate::inbound::{Announced, Full, Inbound};

/// Room that each read finds at least: many small frames arrive in one.
const READ_BYTES_MIN: usize = 16 << 10;
const READ_BYTES: usize = 64 << 10;
/// Bytes a second: how slowly a frame may come that takes room. Slower is no network over which anybody mounts.
const SLOWEST: u64 = 64 << 10;
/// Silences beside that: it waits behind others on a network that is bad for a while.
const SILENCES: u32 = 4;
/// Why a connection ends on which it comes more slowly.
const LATE: &str = "the peer takes too long to send a frame";

/// A frame that is no call: no lane but control, no method.
pub(crate) fn plain(kind: Kind, body: Bytes) -> Frame {
    Frame {
        kind,
        lane: Lane::Control as u8,
        method: 0,
        call: 0,
        meta: Bytes::new(),
        body,
        bulk: Bytes::new(),
    }
}

/// What came of a frame.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// It is whole. What it took when it was announced is the caller's.
    Whole(Frame, Option<Announced>),
    /// There is no room for it: its bytes are dropped as they come.
    Dropped(Head, Full),
}

/// A frame whose header was looked at and that isn't whole.
struct Arriving {
    /// Until when it must be.
    until: Instant,
    announced: Option<Announced>,
}

/// Reads frames, and notices a peer that sends nothing any more.
pub(crate) struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
    limit: usize,
    silence_max: Duration,
    heard: Instant,
    arriving: Option<Arriving>,
    /// Bytes of it that are still to be dropped.
    dropping: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader that takes small frames only, until [`FrameReader::welcome`].
    pub(crate) fn new(io: R, silence_max: Duration) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            limit: HELLO_BYTES_MAX,
            silence_max,
            heard: Instant::now(),
            arriving: None,
            dropping: 0,
        }
    }

    /// The hello was exchanged: frames of any allowed size may come.
    pub(crate) fn welcome(&mut self) {
        self.limit = FRAME_BYTES_MAX;
    }

    /// The next frame; none once the peer has closed. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, Ended> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer, self.limit).map_err(|e| e.to_string())? {
                return Ok(Some(frame));
            }
            if !self.read(None).await? {
                return Ok(None);
            }
        }
    }

    /// [`FrameReader::next`] of somebody who may announce more than there is room for, and take any time to send it: never after a frame that `next`
    /// has begun.
    pub(crate) async fn next_within(&mut self, inbound: &Inbound) -> Result<Option<Arrived>, Ended> {
        loop {
            if let Some(arrived) = self.look(inbound)? {
                return Ok(Some(arrived));
            }
            let until = self.arriving.as_ref().map(|arriving| arriving.until);
            if !self.read(until).await? {
                return Ok(None);
            }
        }
    }

    /// Takes what is there of the next frame, which has its room before memory is reserved for it. None where more must come.
    fn look(&mut self, inbound: &Inbound) -> Result<Option<Arrived>, Ended> {
        if self.dropping > 0 {
            let dropped = self.dropping.min(self.buffer.len());
            self.buffer.advance(dropped);
            self.dropping -= dropped;
            if self.dropping > 0 {
                return Ok(None);
            }
            self.arriving = None;
        }
        if self.arriving.is_none() {
            let head = Frame::head(&self.buffer, self.limit).map_err(|e| e.to_string())?;
            let Some(head) = head else { return Ok(None) };
            let pace = Duration::from_secs(head.bytes as u64 / SLOWEST);
            let until = self.heard + self.silence_max * SILENCES + pace;
            match inbound.announce(&head) {
                Ok(announced) => self.arriving = Some(Arriving { until, announced }),
                Err(full) => {
                    self.arriving = Some(Arriving { until, announced: None });
                    self.dropping = head.bytes;
                    return Ok(Some(Arrived::Dropped(head, full)));
                }
            }
        }
        let frame = Frame::decode(&mut self.buffer, self.limit).map_err(|e| e.to_string())?;
        Ok(frame.map(|frame| {
            let announced = self.arriving.take().and_then(|arriving| arriving.announced);
            Arrived::Whole(frame, announced)
        }))
    }

    /// Reads what comes next; of a frame, where it is said until when that must be whole. False once the peer has closed.
    async fn read(&mut self, until: Option<Instant>) -> Result<bool, Ended> {
        if until.is_some_and(|until| self.heard >= until) {
            return Err(LATE.into());
        }
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
            self.buffer.reserve(READ_BYTES);
        }
        // Silence is measured from byte to byte, not from frame to frame: a slow network isn't a dead peer.
        let silent = self.heard + self.silence_max;
        let first = until.map_or(silent, |until| until.min(silent));
        match timeout_at(first, self.io.read_buf(&mut self.buffer)).await {
            Err(_) if first < silent => return Err(LATE.into()),
            Err(_) => {
                let silence = self.silence_max.as_secs_f64();
                return Err(format!("the peer was silent for {silence:.1} s").into());
            }
            Ok(Err(error)) => return Err(Ended::of_io(&error)),
            Ok(Ok(0)) if self.buffer.is_empty() && self.dropping == 0 => return Ok(false),
            Ok(Ok(0)) => return Err("the peer closed in the middle of a frame".into()),
            Ok(Ok(_)) => self.heard = Instant::now(),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;
    use mooseng_wire::Role;
    use tokio::io::{AsyncWriteExt, DuplexStream};
    use tokio::sync::Semaphore;

    use super::*;

    fn encoded(bulk: usize) -> BytesMut {
        let mut frame = plain(Kind::Request, Bytes::new());
        frame.bulk = vec![7u8; bulk].into();
        let mut bytes = BytesMut::new();
        frame.encode_head(&mut bytes);
        bytes.extend_from_slice(&frame.bulk);
        bytes
    }

    #[tokio::test]
    async fn a_slow_frame_is_read_and_a_silent_peer_is_noticed() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut frames = FrameReader::new(far, Duration::from_millis(1500));
        let sending = async {
            for byte in &encoded(8)[..] {
                tokio::time::sleep(Duration::from_millis(60)).await;
                near.write_u8(*byte).await.unwrap();
            }
        };
        let (frame, ()) = tokio::join!(frames.next(), sending);
        assert_eq!(frame.unwrap().unwrap().bulk.len(), 8);
        assert!(frames.next().await.unwrap_err().to_string().contains("silent"));
    }

    #[tokio::test]
    async fn a_dropped_read_loses_no_bytes_and_a_stranger_sends_no_large_frame() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut frames = FrameReader::new(far, Duration::from_secs(9));
        let bytes = encoded(100);
        for half in [&bytes[..50], &bytes[50..]] {
            assert!(futures::FutureExt::now_or_never(frames.next()).is_none());
            near.write_all(half).await.unwrap();
        }
        assert_eq!(frames.next().await.unwrap().unwrap().bulk.len(), 100);
        near.write_all(&encoded(HELLO_BYTES_MAX)).await.unwrap();
        assert!(frames.next().await.unwrap_err().to_string().contains("exceeds"));
    }

    /// Room for so many bytes, and for so many of what one host has announced.
    fn room(all: usize, of_one: usize) -> (Arc<Semaphore>, Arc<Semaphore>) {
        (Arc::new(Semaphore::new(all)), Arc::new(Semaphore::new(of_one)))
    }

    fn welcomed(io: DuplexStream, silence_max: Duration) -> FrameReader<DuplexStream> {
        let mut frames = FrameReader::new(io, silence_max);
        frames.welcome();
        frames
    }

    /// The frame that comes next, with whether it took room, or none where more must come.
    fn whole(
        frames: &mut FrameReader<DuplexStream>,
        inbound: &Inbound,
    ) -> Option<(usize, Option<Announced>)> {
        match frames.next_within(inbound).now_or_never()?.unwrap().unwrap() {
            Arrived::Whole(frame, announced) => Some((frame.bulk.len(), announced)),
            Arrived::Dropped(head, full) => panic!("{head:?} was dropped: {full}"),
        }
    }

    fn dropped(frames: &mut FrameReader<DuplexStream>, inbound: &Inbound) -> Full {
        match frames.next_within(inbound).now_or_never() {
            Some(Ok(Some(Arrived::Dropped(head, full)))) => {
                assert_eq!(head.kind, Kind::Request);
                full
            }
            other => panic!("it isn't dropped: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_frame_takes_its_room_when_it_is_announced_and_is_dropped_where_there_is_none() {
        const LARGE: usize = 200_000;
        let bytes = {
            let mut bytes = encoded(LARGE);
            bytes[5] = Lane::Read as u8;
            bytes
        };
        let (all, of_one) = room(3 * LARGE, 3 * LARGE / 2);
        let inbound = Inbound::new(all.clone(), of_one.clone(), Role::Client);
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut frames = welcomed(far, Duration::from_secs(9));
        near.write_all(&encoded(100)).await.unwrap();
        assert!(matches!(whole(&mut frames, &inbound), Some((100, None))), "a small one takes none");
        near.write_all(&bytes[..30]).await.unwrap();
        assert!(whole(&mut frames, &inbound).is_none());
        assert_eq!(all.available_permits(), 3 * LARGE - bytes.len());

        // Another connection of the same host has no room beside it, and what follows there comes whole.
        let (mut near_second, far_second) = tokio::io::duplex(1 << 20);
        let mut second = welcomed(far_second, Duration::from_secs(9));
        near_second.write_all(&bytes[..70_000]).await.unwrap();
        assert!(dropped(&mut second, &inbound).contains("host"));
        assert!(whole(&mut second, &inbound).is_none());
        near_second.write_all(&bytes[70_000..]).await.unwrap();
        near_second.write_all(&encoded(200)).await.unwrap();
        assert!(matches!(whole(&mut second, &inbound), Some((200, None))));
        // Another host has some, as long as there is any, and masters' talk always.
        tokio::task::yield_now().await;
        let (mut near_third, far_third) = tokio::io::duplex(1 << 20);
        let mut third = welcomed(far_third, Duration::from_secs(9));
        let other = |all: &Arc<Semaphore>, role| Inbound::new(all.clone(), room(0, 3 * LARGE).1, role);
        near_third.write_all(&bytes).await.unwrap();
        let taken = whole(&mut third, &other(&all, Role::Client)).unwrap();
        assert!(taken.0 == LARGE && taken.1.is_some());
        near_third.write_all(&bytes).await.unwrap();
        assert!(dropped(&mut third, &other(&all, Role::Client)).contains("server"));
        near_third.write_all(&encoded(LARGE)).await.unwrap();
        assert!(matches!(whole(&mut third, &other(&all, Role::Master)), Some((LARGE, None))));

        tokio::task::yield_now().await;
        near.write_all(&bytes[30..]).await.unwrap();
        let (_, announced) = whole(&mut frames, &inbound).unwrap();
        let held = announced.unwrap().whole();
        assert_eq!(of_one.available_permits(), 3 * LARGE / 2, "it is whole");
        assert_eq!(
            all.available_permits(),
            3 * LARGE - 2 * bytes.len(),
            "and takes room until it is answered"
        );
        drop((held, taken));
        assert_eq!(all.available_permits(), 3 * LARGE);
    }

    /// A byte now and then was no silence.
    #[tokio::test(start_paused = true)]
    async fn a_frame_that_is_begun_and_not_sent_ends_its_connection() {
        let (all, of_one) = room(1 << 20, 1 << 20);
        let inbound = Inbound::new(all.clone(), of_one, Role::Client);
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let mut frames = welcomed(far, Duration::from_secs(1));
        let began = Instant::now();
        let mut bytes = encoded(200_000);
        bytes[5] = Lane::Read as u8;
        let trickle = async {
            for byte in &bytes[..] {
                near.write_u8(*byte).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let ended = tokio::select! {
            ended = frames.next_within(&inbound) => ended,
            () = trickle => unreachable!("it is whole after hours"),
        };
        assert!(ended.unwrap_err().to_string().contains("too long"));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        drop(frames);
        assert_eq!(all.available_permits(), 1 << 20);
    }
}
