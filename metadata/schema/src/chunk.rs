//! Chunks, and which inodes use them. Where a region's copies lie is in [`crate::location`].

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::{ChunkId, InodeId, VolumeId};

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// A chunk. Its id is its key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChunkRecord {
    /// Bytes, once it is sealed.
    #[prost(uint64, tag = "1")]
    pub length: u64,
    /// Nothing is appended any more.
    #[prost(bool, tag = "2")]
    pub sealed: bool,
    /// The session that appends, or did.
    #[prost(uint64, tag = "3")]
    pub owner: u64,
    /// How many copies it gets, and where ([`crate::storage_class`]). It follows the files that name the chunk.
    #[prost(uint32, tag = "4")]
    pub storage_class: u32,
    /// The home epoch that it was made in.
    #[prost(uint64, tag = "5")]
    pub birth: u64,
    /// When it was made.
    #[prost(sfixed64, tag = "6")]
    pub born_ns: i64,
    /// The inode that it was made for. It may have no extent in it yet.
    #[prost(uint64, tag = "7")]
    pub inode: u64,
    /// When it was sealed.
    #[prost(sfixed64, tag = "8")]
    pub sealed_ns: i64,
}

impl Record for ChunkRecord {
    const NAME: &'static str = "chunk";
}

/// A chunk's key.
pub fn key(chunk: ChunkId) -> Vec<u8> {
    volume_key(chunk.volume(), VolumeTag::Chunk, &(chunk.0,))
}

/// The chunks of a volume.
pub fn range(volume: VolumeId) -> KeyRange {
    volume_range(volume, VolumeTag::Chunk, &())
}

/// The chunks of the volume of `after` that follow it.
pub fn range_after(after: ChunkId) -> KeyRange {
    let mut begin = key(after);
    begin.push(0);
    KeyRange { begin: begin.into(), end: range(after.volume()).end }
}

/// The chunk of a key in [`range`].
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<ChunkId, SchemaError> {
    let (chunk, _): (u64, u64) = parse_volume_key(volume, VolumeTag::Chunk, key)?;
    Ok(ChunkId(chunk))
}

/// What of an inode lies in a chunk: exact, for it is changed in the transaction that changes the extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkUse {
    /// Extents.
    pub extents: u64,
    /// Bytes of them. Two extents of the same bytes count twice.
    pub bytes: u64,
}

impl ChunkUse {
    /// The value's bytes: two numbers as of [`crate::number`].
    pub fn to_value(self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.extents.to_le_bytes());
        value[8..].copy_from_slice(&self.bytes.to_le_bytes());
        value
    }

    /// Reads a value; none is no use.
    pub fn from_value(value: Option<&Bytes>) -> Result<Self, SchemaError> {
        let Some(value) = value else { return Ok(Self::default()) };
        let damaged =
            || SchemaError::damaged("chunk use", format!("it has {} bytes instead of 16", value.len()));
        let (extents, bytes) = value.split_at_checked(8).ok_or_else(damaged)?;
        let number = |b: &[u8]| b.try_into().map(u64::from_le_bytes).map_err(|_| damaged());
        Ok(Self { extents: number(extents)?, bytes: number(bytes)? })
    }

    /// Grows, or shrinks; none where it would count less than nothing.
    pub fn changed(self, extents: i64, bytes: i64) -> Option<Self> {
        Some(Self {
            extents: self.extents.checked_add_signed(extents)?,
            bytes: self.bytes.checked_add_signed(bytes)?,
        })
    }
}

/// The key of what of an inode lies in a chunk ([`ChunkUse`]). It exists while something does.
pub fn reference_key(chunk: ChunkId, inode: InodeId) -> Vec<u8> {
    volume_key(chunk.volume(), VolumeTag::ChunkRef, &(chunk.0, inode.0))
}

/// All inodes' uses of a chunk.
pub fn reference_range(chunk: ChunkId) -> KeyRange {
    volume_range(chunk.volume(), VolumeTag::ChunkRef, &(chunk.0,))
}

/// The inode in a key of [`reference_range`].
pub fn parse_reference_key(chunk: ChunkId, key: &[u8]) -> Result<InodeId, SchemaError> {
    let (_, inode, _): (u64, u64, u64) = parse_volume_key(chunk.volume(), VolumeTag::ChunkRef, key)?;
    Ok(InodeId(inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let chunk = ChunkRecord {
            length: 300,
            sealed: true,
            owner: 3,
            storage_class: 1,
            birth: 1,
            born_ns: 5,
            inode: 2,
            sealed_ns: 0,
        };
        golden(&chunk, "0108ac02100118032001280131050000000000000038 02".replace(' ', "").as_str());
        let sealed = ChunkRecord { sealed_ns: 6, ..ChunkRecord::default() };
        golden(&sealed, "01410600000000000000");
        let used = ChunkUse { extents: 2, bytes: 300 };
        assert_eq!(hex(&used.to_value()), "0200000000000000 2c01000000000000".replace(' ', ""));
        assert_eq!(hex(&key(ChunkId(5))), "0276001415081505 14".replace(' ', ""));
        assert_eq!(hex(&reference_key(ChunkId(5), InodeId(6))), "02760014150915051506 14".replace(' ', ""));
    }

    proptest! {
        #[test]
        fn round_trips(chunk: u64, inode: u64, length: u64, sealed: bool, owner: u64, born_ns: i64) {
            round_trip(&ChunkRecord { length, sealed, owner, born_ns, inode, storage_class: 1, birth: 1, sealed_ns: born_ns });
            let used = ChunkUse { extents: inode, bytes: length };
            let value = Bytes::copy_from_slice(&used.to_value());
            prop_assert_eq!(ChunkUse::from_value(Some(&value)).unwrap(), used);
            prop_assert!(ChunkUse::from_value(Some(&value.slice(..15))).is_err());
            let (chunk, inode) = (ChunkId(chunk), InodeId(inode));
            prop_assert_eq!(parse_key(chunk.volume(), &key(chunk)).unwrap(), chunk);
            prop_assert_eq!(parse_reference_key(chunk, &reference_key(chunk, inode)).unwrap(), inode);
        }
    }
}
