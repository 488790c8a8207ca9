//! Frames: a group of records under one checksum.
//!
//! `| magic 4 | body bytes 4 | crc32 4 | segment 8 | sequence 8 | body |`, little-endian, padded with zeros to 8 bytes. The checksum covers
//! everything behind itself. Frames start at multiples of 8, so that a scan for frames behind a damaged one is cheap.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use mooseng_ports::plant::{self, Plant};

use crate::record::{PADDING_BYTES_MIN, Record};

const MAGIC: u32 = 0x4c57_474d;
/// Bytes before a frame's body.
pub const HEADER_BYTES: usize = 28;
/// Bytes of the pages in which the kernel writes files.
pub const PAGE_BYTES: usize = 4096;
/// Most bytes of a frame's body.
pub const BODY_BYTES_MAX: usize = 64 << 20;

/// One frame's place and contents.
pub struct Frame {
    /// Counts frames of the whole log.
    pub sequence: u64,
    /// The records.
    pub body: Bytes,
    /// Bytes with header and padding.
    pub length: usize,
}

/// Where a frame ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Behind its records.
    Anywhere,
    /// At the end of a page, if it begins at this place of its file. The page that a frame ends in would be written again with the next one, and
    /// flushing what is being written takes half as long again (docs/decisions/0022-zeros-ahead.md).
    PageOf(u64),
}

/// The bytes of a frame.
pub fn encode<'a>(
    segment: u64,
    sequence: u64,
    records: impl IntoIterator<Item = &'a Record>,
    end: End,
) -> BytesMut {
    let mut out = BytesMut::zeroed(HEADER_BYTES);
    for record in records {
        record.encode(&mut out);
    }
    if let End::PageOf(at) = end {
        let over = (at as usize + out.len()) % PAGE_BYTES;
        if over != 0 {
            let mut room = PAGE_BYTES - over;
            if room < PADDING_BYTES_MIN {
                room += PAGE_BYTES;
            }
            Record::Padding((room - PADDING_BYTES_MIN) as u32).encode(&mut out);
        }
    }
    let body = (out.len() - HEADER_BYTES) as u32;
    let mut header = &mut out[..HEADER_BYTES];
    header.put_u32_le(MAGIC);
    header.put_u32_le(body);
    header.put_u32_le(0);
    header.put_u64_le(segment);
    header.put_u64_le(sequence);
    let crc = crc32fast::hash(&out[12..]) ^ body;
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// The frame at the front of `bytes`, if one is there and whole.
pub fn decode(bytes: &Bytes, segment: u64) -> Option<Frame> {
    let mut header = bytes.get(..HEADER_BYTES)?;
    let (magic, body, crc) = (header.get_u32_le(), header.get_u32_le(), header.get_u32_le());
    let (of_segment, sequence) = (header.get_u64_le(), header.get_u64_le());
    let end = HEADER_BYTES + body as usize;
    if magic != MAGIC || of_segment != segment || body as usize > BODY_BYTES_MAX || bytes.len() < end {
        return None;
    }
    if crc32fast::hash(&bytes[12..end]) ^ body != crc && !plant::is(Plant::TornTailAccepted) {
        return None;
    }
    Some(Frame { sequence, body: bytes.slice(HEADER_BYTES..end), length: end.next_multiple_of(8) })
}

/// Whether a whole frame stands anywhere behind the front that was written after the frame behind `above` had been flushed: then that one was
/// there, and is damaged. A frame that was written while earlier ones were unflushed says up to where they weren't; any other one was
/// written when all before it was.
pub fn any_behind(bytes: &Bytes, segment: u64, above: u64) -> bool {
    let magic = MAGIC.to_le_bytes();
    (8..bytes.len())
        .step_by(8)
        .filter(|at| bytes[*at..].starts_with(&magic))
        .filter_map(|at| decode(&bytes.slice(at..), segment))
        .any(|frame| vouched_for(&frame) > above)
}

/// The newest frame that must be on disk where this one is.
fn vouched_for(frame: &Frame) -> u64 {
    match Record::decode(&mut frame.body.clone()) {
        Ok(Record::Flushed(sequence)) => sequence,
        _ => frame.sequence,
    }
}

/// The records of a body.
pub fn records(mut body: Bytes) -> Result<Vec<Record>, crate::record::Malformed> {
    let mut records = Vec::new();
    while !body.is_empty() {
        records.push(Record::decode(&mut body)?);
    }
    Ok(records)
}
