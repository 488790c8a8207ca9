//! How a chunk lies in its file.
//!
//! ```text
//! page 0                 pages 1..=64       page 65            pages 66..=129
//! | header, records, T0 | blocks 0..=63   | T1               | blocks 64..=127 | ...
//!
//! page 0:  0 header | 512 record A | 1024 record B | 1536 table T0: 64 entries of 36 bytes | 3840 unused
//! T1, ...: 0 unused                                | 1536 table                            |
//! entry:   CRC-32C of the block's 4096 stored bytes (4, little-endian) | reserved (32)
//! ```
//! All of a chunk is in one file, so that one fdatasync makes an append durable: its bytes, the checksums of the blocks that it completed, and a
//! commit record. The 32 reserved bytes of each entry are for the nonce and tag of encryption by the client, over which the
//! CRC would then go as over the stored bytes.
//!
//! **The invariant.** A commit record says: *the chunk has `length` bytes; the checksum of what its last, partial block holds is
//! `tail_crc`; whole blocks have theirs in the tables.* Two slots hold the two newest records.
//! 1. Bytes below a durable record's length are never written again, nor are the table entries of its whole blocks: an append
//!    writes only behind the length. (Rewriting a sector with the same old bytes in it is assumed not to lose them.)
//! 2. A record is written only over the *older* slot, and only when the other one is durable: one flush at a time.
//! 3. A record, its bytes and its table entries are flushed together; an append is answered after that flush.
//!
//! So after a crash at least one slot holds a durable record, and no acknowledged byte lies behind it unless the newer slot's record is durable too, with
//! its bytes. Recovery takes the newer valid record, and as its flush may not have ended, verifies the blocks between the two lengths. The first block that
//! doesn't verify cuts the chunk, never below the older record. The cut is made durable by a record over the *bogus* slot before
//! anything else is written (rule 2 would otherwise overwrite the good one).
//! A sealed record is written once its bytes are durable: it needs no verification, only a look at the file's length.

use mooseng_wire::{BLOCK_BYTES, CHUNK_BYTES_MAX, ChunkId, Epoch};

use crate::checksum;

/// Bytes of a block, as u64.
pub const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks behind each table page.
pub const GROUP_BLOCKS: u64 = 64;
/// Bytes of a table entry: a CRC and 32 reserved.
pub const ENTRY_BYTES: usize = 36;
/// Where the table begins in its page.
pub const TABLE_AT: u64 = 1536;
/// Where the commit records begin in page 0.
pub const RECORD_AT: [u64; 2] = [512, 1024];
/// Bytes of the header and of a record.
pub const RECORD_BYTES: usize = 64;
/// The newest file format that this build writes and reads.
pub const FORMAT: u32 = 1;

const HEADER_MAGIC: &[u8; 8] = b"MOOSECHK";
const RECORD_MAGIC: &[u8; 8] = b"MOOSEREC";
const GROUP_PAGES: u64 = GROUP_BLOCKS + 1;

/// Where a block lies in the file.
pub fn block_at(block: u64) -> u64 {
    (block / GROUP_BLOCKS * GROUP_PAGES + 1 + block % GROUP_BLOCKS) * BLOCK
}

/// Where a block's table entry lies in the file.
pub fn entry_at(block: u64) -> u64 {
    block / GROUP_BLOCKS * GROUP_PAGES * BLOCK + TABLE_AT + block % GROUP_BLOCKS * ENTRY_BYTES as u64
}

/// Bytes of the file of a chunk of `length` bytes.
pub fn file_bytes(length: u64) -> u64 {
    match length.checked_sub(1) {
        None => BLOCK,
        Some(last) => block_at(last / BLOCK) + last % BLOCK + 1,
    }
}

/// A run of bytes that lies in one piece: within one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins in the chunk.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
    /// Where it begins in the file.
    pub at: u64,
}

/// Cuts a range of the chunk into runs that lie in one piece.
pub fn pieces(offset: u64, bytes: u64) -> impl Iterator<Item = Piece> {
    let end = offset + bytes;
    let mut from = offset;
    std::iter::from_fn(move || {
        if from >= end {
            return None;
        }
        let group_end = (from / (GROUP_BLOCKS * BLOCK) + 1) * GROUP_BLOCKS * BLOCK;
        let to = group_end.min(end);
        let piece = Piece { offset: from, bytes: to - from, at: block_at(from / BLOCK) + from % BLOCK };
        from = to;
        Some(piece)
    })
}

/// The checksum of an entry, as it lies in a table.
pub fn entry(crc: u32) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The checksum in a table entry; none where the bytes are too few.
pub fn entry_crc(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// The chunk's header: written once, at its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The file's format.
    pub format: u32,
    /// The chunk.
    pub chunk: ChunkId,
    /// The epoch that it was created in.
    pub epoch: Epoch,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = Vec::with_capacity(RECORD_BYTES);
        out.extend_from_slice(HEADER_MAGIC);
        out.extend_from_slice(&self.format.to_le_bytes());
        out.extend_from_slice(&self.chunk.0.to_le_bytes());
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        out.extend_from_slice(&(GROUP_BLOCKS as u32).to_le_bytes());
        finish(out)
    }

    /// Reads a header; none if its checksum or magic is wrong.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let fields = open(bytes, HEADER_MAGIC)?;
        Some(Self {
            format: u32_at(fields, 8)?,
            chunk: ChunkId(u64_at(fields, 12)?),
            epoch: Epoch(u64_at(fields, 20)?),
        })
    }
}

/// A commit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Counts records: the newer one has the larger number.
    pub sequence: u64,
    /// The chunk, so that a record alone says whose it is.
    pub chunk: ChunkId,
    /// The chunk's length in bytes.
    pub length: u64,
    /// The newest epoch that changed the chunk.
    pub epoch: Epoch,
    /// The checksum of the bytes in the last, partial block; 0 if there is none.
    pub tail_crc: u32,
    /// No more appends.
    pub sealed: bool,
}

impl Record {
    /// The record's bytes.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = Vec::with_capacity(RECORD_BYTES);
        out.extend_from_slice(RECORD_MAGIC);
        out.extend_from_slice(&u32::from(self.sealed).to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.chunk.0.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.tail_crc.to_le_bytes());
        finish(out)
    }

    /// Reads a record of `chunk`; none if it isn't a whole, valid one.
    pub fn decode(bytes: &[u8], chunk: ChunkId) -> Option<Self> {
        let fields = open(bytes, RECORD_MAGIC)?;
        let record = Self {
            sealed: u32_at(fields, 8)? & 1 == 1,
            sequence: u64_at(fields, 12)?,
            chunk: ChunkId(u64_at(fields, 20)?),
            length: u64_at(fields, 28)?,
            epoch: Epoch(u64_at(fields, 36)?),
            tail_crc: u32_at(fields, 44)?,
        };
        (record.chunk == chunk && record.length <= CHUNK_BYTES_MAX).then_some(record)
    }
}

fn finish(mut out: Vec<u8>) -> [u8; RECORD_BYTES] {
    out.resize(RECORD_BYTES - 4, 0);
    out.extend_from_slice(&checksum(&out).to_le_bytes());
    let mut bytes = [0; RECORD_BYTES];
    bytes.copy_from_slice(&out);
    bytes
}

fn open<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> Option<&'a [u8]> {
    let (fields, crc) = bytes.get(..RECORD_BYTES)?.split_at(RECORD_BYTES - 4);
    (fields.starts_with(magic) && entry_crc(crc)? == checksum(fields)).then_some(fields)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    entry_crc(bytes.get(at..)?)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_and_tables_never_overlap() {
        let mut end = 0;
        for block in 0..CHUNK_BYTES_MAX / BLOCK {
            if block % GROUP_BLOCKS == 0 {
                assert!(entry_at(block) >= end);
                assert!(entry_at(block + GROUP_BLOCKS - 1) + ENTRY_BYTES as u64 <= block_at(block));
            }
            assert!(block_at(block) >= end);
            end = block_at(block) + BLOCK;
            assert_eq!(file_bytes((block + 1) * BLOCK), end);
        }
    }

    #[test]
    fn the_format_of_records_is_kept() {
        // Golden bytes of format 1: a change here is a new format.
        let record = Record {
            sequence: 3,
            chunk: ChunkId(7),
            length: 4100,
            epoch: Epoch(1),
            tail_crc: 0xAABB_CCDD,
            sealed: true,
        };
        let hex: String = record.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            &hex[..120],
            concat!(
                "4d4f4f5345524543",
                "01000000",
                "0300000000000000",
                "0700000000000000",
                "0410000000000000",
                "0100000000000000",
                "ddccbbaa",
                "000000000000000000000000"
            )
        );
        let header = Header { format: 1, chunk: ChunkId(7), epoch: Epoch(1) };
        assert_eq!(Header::decode(&header.encode()), Some(header));
    }

    proptest! {
        #[test]
        fn records_round_trip_and_any_flip_is_seen(sequence: u64, length in 0..=CHUNK_BYTES_MAX, epoch: u64, tail_crc: u32, sealed: bool, flip in 0usize..RECORD_BYTES * 8) {
            let record = Record { sequence, chunk: ChunkId(9), length, epoch: Epoch(epoch), tail_crc, sealed };
            let mut bytes = record.encode();
            prop_assert_eq!(Record::decode(&bytes, ChunkId(9)), Some(record));
            prop_assert_eq!(Record::decode(&bytes, ChunkId(8)), None);
            bytes[flip / 8] ^= 1 << (flip % 8);
            prop_assert_eq!(Record::decode(&bytes, ChunkId(9)), None);
        }

        #[test]
        fn pieces_cover_a_range_once(offset in 0..CHUNK_BYTES_MAX, bytes in 0u64..2_000_000) {
            let mut next = offset;
            for piece in pieces(offset, bytes) {
                prop_assert_eq!(piece.offset, next);
                prop_assert_eq!(piece.at, block_at(next / BLOCK) + next % BLOCK);
                prop_assert_eq!(piece.at + piece.bytes, file_bytes(next + piece.bytes));
                next += piece.bytes;
            }
            prop_assert_eq!(next, offset + bytes);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Record::decode(&bytes, ChunkId(1));
            let _ = Header::decode(&bytes);
        }
    }
}
