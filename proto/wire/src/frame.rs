//! The layout of frames on a framed, multiplexed stream, sans I/O.
//!
//! ```text
//! 0       4      5      6        8           16         20         24
//! | total | kind | lane | method | call      | meta len | body len | meta | body | bulk |
//! ```
//! All numbers are little-endian. `total` counts the bytes after itself; `bulk` is what remains after meta and body. `meta` is a
//! `CallMeta` (requests) or empty, `body` the method's message, a `CallError`, or a hello.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::words::BULK_BYTES_MAX;

/// Bytes before a frame's meta.
pub const HEADER_BYTES: usize = 24;
/// Most bytes of meta and body together.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Most bytes of a frame before the hello was answered: a stranger gets no large buffer.
pub const HELLO_BYTES_MAX: usize = 4096;
/// Most bytes of a frame.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + MESSAGE_BYTES_MAX + BULK_BYTES_MAX;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The first frame of whoever connected.
    Hello = 1,
    /// The first frame of whoever accepted.
    HelloAnswer = 2,
    /// A call.
    Request = 3,
    /// A call's result.
    Response = 4,
    /// A call's failure: the body is a `CallError`.
    Error = 5,
    /// A message without an answer.
    Notify = 6,
    /// The caller waits no longer.
    Cancel = 7,
    /// Asks for a pong, so that a dead peer is noticed.
    Ping = 8,
    /// Answers a ping.
    Pong = 9,
}

impl Kind {
    fn from_u8(n: u8) -> Option<Self> {
        use Kind::*;
        [Hello, HelloAnswer, Request, Response, Error, Notify, Cancel, Ping, Pong]
            .into_iter()
            .find(|k| *k as u8 == n)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The lane's number.
    pub lane: u8,
    /// The method's number.
    pub method: u16,
    /// Pairs a response with its request.
    pub call: u64,
    /// An encoded `CallMeta`, or empty.
    pub meta: Bytes,
    /// The encoded message.
    pub body: Bytes,
    /// Bytes that travel beside the message.
    pub bulk: Bytes,
}

/// What a frame's header says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the whole frame.
    pub bytes: usize,
    /// What it is.
    pub kind: Kind,
    /// The lane's number.
    pub lane: u8,
    /// The method's number.
    pub method: u16,
    /// Pairs a response with its request.
    pub call: u64,
}

/// Why bytes aren't a frame. The stream can't be continued after it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The frame announces more bytes than are allowed.
    #[error("a frame of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Announced.
        bytes: usize,
        /// Allowed.
        limit: usize,
    },
    /// The lengths in the header contradict each other, or the kind is unknown.
    #[error("a frame's header is malformed: {0}")]
    Malformed(&'static str),
}

impl Frame {
    /// Appends the header, meta and body to `out`; the caller writes `bulk` after it (so that bulk isn't copied).
    pub fn encode_head(&self, out: &mut BytesMut) {
        let total = HEADER_BYTES - 4 + self.meta.len() + self.body.len() + self.bulk.len();
        out.reserve(HEADER_BYTES + self.meta.len() + self.body.len());
        out.put_u32_le(total as u32);
        out.put_u8(self.kind as u8);
        out.put_u8(self.lane);
        out.put_u16_le(self.method);
        out.put_u64_le(self.call);
        out.put_u32_le(self.meta.len() as u32);
        out.put_u32_le(self.body.len() as u32);
        out.put_slice(&self.meta);
        out.put_slice(&self.body);
    }

    /// Bytes of the whole frame when encoded.
    pub fn encoded_len(&self) -> usize {
        HEADER_BYTES + self.meta.len() + self.body.len() + self.bulk.len()
    }

    /// Bytes of the frame at the front of `buffer`, once they are said.
    fn announced(buffer: &[u8], limit: usize) -> Result<Option<usize>, FrameError> {
        let Some(&total) = buffer.first_chunk::<4>() else { return Ok(None) };
        let bytes = u32::from_le_bytes(total) as usize + 4;
        if bytes > limit {
            return Err(FrameError::TooLarge { bytes, limit });
        }
        if bytes < HEADER_BYTES {
            return Err(FrameError::Malformed("shorter than a header"));
        }
        Ok(Some(bytes))
    }

    /// What the frame at the front of `buffer` says of itself, once its header is there. `limit` bounds its size in bytes.
    pub fn head(buffer: &[u8], limit: usize) -> Result<Option<Head>, FrameError> {
        let Some(bytes) = Self::announced(buffer, limit)? else { return Ok(None) };
        let Some(mut header) = buffer.get(4..HEADER_BYTES) else { return Ok(None) };
        let kind = Kind::from_u8(header.get_u8()).ok_or(FrameError::Malformed("unknown kind"))?;
        let lane = header.get_u8();
        let method = header.get_u16_le();
        let call = header.get_u64_le();
        Ok(Some(Head { bytes, kind, lane, method, call }))
    }

    /// Takes one frame off the front of `buffer`, if a whole one is there. `limit` bounds its size in bytes.
    pub fn decode(buffer: &mut BytesMut, limit: usize) -> Result<Option<Frame>, FrameError> {
        let Some(bytes) = Self::announced(buffer, limit)? else { return Ok(None) };
        if buffer.len() < bytes {
            buffer.reserve(bytes - buffer.len());
            return Ok(None);
        }
        let mut frame = buffer.split_to(bytes).freeze();
        frame.advance(4);
        let kind = Kind::from_u8(frame.get_u8()).ok_or(FrameError::Malformed("unknown kind"))?;
        let lane = frame.get_u8();
        let method = frame.get_u16_le();
        let call = frame.get_u64_le();
        let meta_len = frame.get_u32_le() as usize;
        let body_len = frame.get_u32_le() as usize;
        if meta_len.saturating_add(body_len) > frame.len() {
            return Err(FrameError::Malformed("meta and body exceed the frame"));
        }
        let meta = frame.split_to(meta_len);
        let body = frame.split_to(body_len);
        Ok(Some(Frame { kind, lane, method, call, meta, body, bulk: frame }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_round_trip_through_any_split(
            meta in proptest::collection::vec(any::<u8>(), 0..40),
            body in proptest::collection::vec(any::<u8>(), 0..200),
            bulk in proptest::collection::vec(any::<u8>(), 0..200),
            call: u64, method: u16, lane: u8, split in 0usize..500,
        ) {
            let frame = Frame { kind: Kind::Request, lane, method, call, meta: meta.into(), body: body.into(), bulk: bulk.into() };
            let mut bytes = BytesMut::new();
            frame.encode_head(&mut bytes);
            bytes.extend_from_slice(&frame.bulk);
            prop_assert_eq!(bytes.len(), frame.encoded_len());
            let head = Head { bytes: bytes.len(), kind: Kind::Request, lane, method, call };
            let tail = bytes.split_off(split.min(bytes.len()));
            let said = (bytes.len() >= HEADER_BYTES).then_some(head);
            prop_assert_eq!(Frame::head(&bytes, FRAME_BYTES_MAX).unwrap(), said);
            let early = Frame::decode(&mut bytes, FRAME_BYTES_MAX).unwrap();
            if !tail.is_empty() {
                prop_assert!(early.is_none());
                bytes.extend_from_slice(&tail);
                prop_assert_eq!(Frame::decode(&mut bytes, FRAME_BYTES_MAX).unwrap(), Some(frame));
            } else {
                prop_assert_eq!(early, Some(frame));
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::head(&bytes, FRAME_BYTES_MAX);
            let _ = Frame::decode(&mut BytesMut::from(&bytes[..]), FRAME_BYTES_MAX);
        }
    }

    #[test]
    fn oversized_frames_are_refused_before_their_bytes_arrive() {
        let mut bytes = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(Frame::decode(&mut bytes, FRAME_BYTES_MAX), Err(FrameError::TooLarge { .. })));
    }
}
