//! Frames on their way in of one connection.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mooseng_wire::frame::{FRAME_BYTES_MAX, Frame, HELLO_BYTES_MAX, Kind};
use mooseng_wire::method::Lane;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

/// Room that each read finds at least: many small frames arrive in one.
const READ_BYTES_MIN: usize = 16 << 10;
const READ_BYTES: usize = 64 << 10;

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

/// Reads frames, and notices a peer that sends nothing any more.
pub(crate) struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
    limit: usize,
    silence_max: Duration,
    heard: Instant,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader that takes small frames only, until [`FrameReader::welcome`].
    pub(crate) fn new(io: R, silence_max: Duration) -> Self {
        Self { io, buffer: BytesMut::new(), limit: HELLO_BYTES_MAX, silence_max, heard: Instant::now() }
    }

    /// The hello was exchanged: frames of any allowed size may come.
    pub(crate) fn welcome(&mut self) {
        self.limit = FRAME_BYTES_MAX;
    }

    /// The next frame; none once the peer has closed. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, String> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer, self.limit).map_err(|e| e.to_string())? {
                return Ok(Some(frame));
            }
            if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
                self.buffer.reserve(READ_BYTES);
            }
            // Silence is measured from byte to byte, not from frame to frame: a slow network isn't a dead peer.
            let read = timeout_at(self.heard + self.silence_max, self.io.read_buf(&mut self.buffer)).await;
            match read {
                Err(_) => {
                    return Err(format!("the peer was silent for {:.1} s", self.silence_max.as_secs_f64()));
                }
                Ok(Err(error)) => return Err(error.to_string()),
                Ok(Ok(0)) if self.buffer.is_empty() => return Ok(None),
                Ok(Ok(0)) => return Err("the peer closed in the middle of a frame".into()),
                Ok(Ok(_)) => self.heard = Instant::now(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

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
        assert!(frames.next().await.unwrap_err().contains("silent"));
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
        assert!(frames.next().await.unwrap_err().contains("exceeds"));
    }
}
