//! Pieces of files, by inode and offset: inline bytes, or a run of a chunk.

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::{InodeId, VolumeId};

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// An extent: a run of a chunk where `chunk` isn't 0, else inline bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExtentRecord {
    /// The bytes themselves.
    #[prost(bytes = "bytes", tag = "1")]
    pub inline: Bytes,
    /// The chunk.
    #[prost(uint64, tag = "2")]
    pub chunk: u64,
    /// Where in it.
    #[prost(uint64, tag = "3")]
    pub chunk_offset: u64,
    /// How many bytes of it.
    #[prost(uint64, tag = "4")]
    pub length: u64,
}

impl Record for ExtentRecord {
    const NAME: &'static str = "extent";
}

/// The key of the extent that begins at `offset`.
pub fn key(inode: InodeId, offset: u64) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::Extent, &(inode.0, offset))
}

/// All extents of a volume.
pub fn whole_range(volume: VolumeId) -> KeyRange {
    volume_range(volume, VolumeTag::Extent, &())
}

/// All extents of an inode.
pub fn range(inode: InodeId) -> KeyRange {
    volume_range(inode.volume(), VolumeTag::Extent, &(inode.0,))
}

/// The extents that begin at `begin` or behind it, and before `end`.
pub fn range_between(inode: InodeId, begin: u64, end: u64) -> KeyRange {
    KeyRange { begin: key(inode, begin).into(), end: key(inode, end.max(begin)).into() }
}

/// The offset in an extent's key.
pub fn parse_key(inode: InodeId, key: &[u8]) -> Result<u64, SchemaError> {
    let (_, offset, _): (u64, u64, u64) = parse_volume_key(inode.volume(), VolumeTag::Extent, key)?;
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use mooseng_wire::ROOT_INODE;
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        golden(&ExtentRecord { inline: Bytes::from_static(b"hi"), ..Default::default() }, "010a026869");
        golden(
            &ExtentRecord { chunk: 9, chunk_offset: 4096, length: 300, ..Default::default() },
            "01100918802020ac02",
        );
        assert_eq!(hex(&key(ROOT_INODE, 4096)), "0276001415061501161000 14".replace(' ', ""));
    }

    proptest! {
        #[test]
        fn round_trips(inline in prop::collection::vec(any::<u8>(), 0..64), chunk: u64, chunk_offset: u64, length: u64) {
            round_trip(&ExtentRecord { inline: inline.into(), chunk, chunk_offset, length });
        }

        #[test]
        fn keys_keep_the_order_of_offsets(inode: u64, a: u64, b: u64) {
            let inode = InodeId(inode);
            prop_assert_eq!(key(inode, a).cmp(&key(inode, b)), a.cmp(&b));
            prop_assert_eq!(parse_key(inode, &key(inode, a)).unwrap(), a);
        }
    }
}
