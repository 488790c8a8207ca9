//! What the log holds.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct LogId {
    /// The leader's term.
    pub term: u64,
    /// The leader.
    pub node: u64,
    /// The index.
    pub index: u64,
}

/// A vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Vote {
    /// The term voted in.
    pub term: u64,
    /// Voted for.
    pub node: u64,
    /// A quorum granted it.
    pub committed: bool,
}

/// An entry; the payload is its owner's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub id: LogId,
    /// What it holds.
    pub payload: Bytes,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The next entry.
    Entry(Entry),
    /// The vote from now on.
    Vote(Vote),
    /// Entries from this index on are gone.
    Truncate(u64),
    /// Entries up to and including this one are gone.
    Purge(LogId),
    /// Entries up to and including this one are committed: a hint, flushed with whatever comes next.
    Committed(LogId),
    /// The log began empty in a group that had committed up to this index: it isn't whole before it reaches there. 0: the log began
    /// with the group, and lacks nothing even while it is empty.
    Lacking(u64),
    /// The first record of a frame that was written while only frames up to this sequence were flushed. Without it all before were.
    Flushed(u64),
    /// So many bytes that mean nothing, so that the frame behind begins in a page of its own.
    Padding(u32),
}

/// Bytes of a [`Record::Padding`] beside what it is said to have.
pub(crate) const PADDING_BYTES_MIN: usize = 5;

/// Why bytes aren't records.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a record is malformed")]
pub struct Malformed;

fn put_id(out: &mut BytesMut, id: &LogId) {
    out.put_u64_le(id.term);
    out.put_u64_le(id.node);
    out.put_u64_le(id.index);
}

fn get_id(bytes: &mut Bytes) -> Result<LogId, Malformed> {
    let mut next = || bytes.try_get_u64_le().map_err(|_| Malformed);
    Ok(LogId { term: next()?, node: next()?, index: next()? })
}

impl Record {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Record::Entry(entry) => {
                out.put_u8(1);
                put_id(out, &entry.id);
                out.put_u32_le(entry.payload.len() as u32);
                out.put_slice(&entry.payload);
            }
            Record::Vote(vote) => {
                out.put_u8(2);
                out.put_u64_le(vote.term);
                out.put_u64_le(vote.node);
                out.put_u8(u8::from(vote.committed));
            }
            Record::Truncate(index) => {
                out.put_u8(3);
                out.put_u64_le(*index);
            }
            Record::Purge(id) => {
                out.put_u8(4);
                put_id(out, id);
            }
            Record::Committed(id) => {
                out.put_u8(5);
                put_id(out, id);
            }
            Record::Lacking(index) => {
                out.put_u8(6);
                out.put_u64_le(*index);
            }
            Record::Flushed(sequence) => {
                out.put_u8(7);
                out.put_u64_le(*sequence);
            }
            Record::Padding(bytes) => {
                out.put_u8(8);
                out.put_u32_le(*bytes);
                out.put_bytes(0, *bytes as usize);
            }
        }
    }

    /// Takes one record off the front.
    pub fn decode(bytes: &mut Bytes) -> Result<Self, Malformed> {
        let bad = |_| Malformed;
        Ok(match bytes.try_get_u8().map_err(bad)? {
            1 => {
                let id = get_id(bytes)?;
                let length = bytes.try_get_u32_le().map_err(bad)? as usize;
                if bytes.len() < length {
                    return Err(Malformed);
                }
                Record::Entry(Entry { id, payload: bytes.split_to(length) })
            }
            2 => Record::Vote(Vote {
                term: bytes.try_get_u64_le().map_err(bad)?,
                node: bytes.try_get_u64_le().map_err(bad)?,
                committed: bytes.try_get_u8().map_err(bad)? != 0,
            }),
            3 => Record::Truncate(bytes.try_get_u64_le().map_err(bad)?),
            4 => Record::Purge(get_id(bytes)?),
            5 => Record::Committed(get_id(bytes)?),
            6 => Record::Lacking(bytes.try_get_u64_le().map_err(bad)?),
            7 => Record::Flushed(bytes.try_get_u64_le().map_err(bad)?),
            8 => {
                let length = bytes.try_get_u32_le().map_err(bad)?;
                if bytes.len() < length as usize {
                    return Err(Malformed);
                }
                bytes.advance(length as usize);
                Record::Padding(length)
            }
            _ => return Err(Malformed),
        })
    }
}
