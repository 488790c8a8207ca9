//! What a volume holds, counted atomically in shards, so that no key is hot.

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::{InodeId, VolumeId};

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::number;
use crate::record::SchemaError;
use crate::tag::VolumeTag;

/// How many keys a statistic is spread over.
pub const SHARDS: u64 = 16;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Statistic {
    /// Inodes, of every kind.
    Inodes = 0,
    /// Bytes that extents cover.
    Bytes = 1,
    /// Files in the trash. They are among the inodes.
    TrashFiles = 2,
    /// Bytes that the extents of files in the trash cover. They are among the bytes.
    TrashBytes = 3,
}

/// A volume's statistics as read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Inodes, of every kind.
    pub inodes: u64,
    /// Bytes that extents cover.
    pub bytes: u64,
    /// Files in the trash, which are among the inodes.
    pub trash_files: u64,
    /// Bytes that their extents cover, which are among the bytes.
    pub trash_bytes: u64,
}

/// The key of the shard in which an inode is counted.
pub fn key(inode: InodeId, statistic: Statistic) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::Statistic, &(statistic as u16, inode.0 % SHARDS))
}

/// All shards of a volume's statistics.
pub fn range(volume: VolumeId) -> KeyRange {
    volume_range(volume, VolumeTag::Statistic, &())
}

impl Statistics {
    /// Adds up the pairs of [`range`].
    pub fn read(volume: VolumeId, pairs: &[(Bytes, Bytes)]) -> Result<Self, SchemaError> {
        let mut sum = Self::default();
        for (key, value) in pairs {
            let (which, _, _): (u16, u64, u64) = parse_volume_key(volume, VolumeTag::Statistic, key)?;
            // A shard alone may be negative in two's complement: the sum isn't.
            let value = number::decode(Some(value))?;
            match which {
                0 => sum.inodes = sum.inodes.wrapping_add(value),
                1 => sum.bytes = sum.bytes.wrapping_add(value),
                2 => sum.trash_files = sum.trash_files.wrapping_add(value),
                3 => sum.trash_bytes = sum.trash_bytes.wrapping_add(value),
                // A later release counts more.
                _ => {}
            }
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::hex;

    #[test]
    fn shards_add_up() {
        let pair = |inode, s, n| {
            (Bytes::from(key(InodeId(inode), s)), Bytes::copy_from_slice(&number::encode_signed(n)))
        };
        let pairs = [
            pair(1, Statistic::Inodes, 5),
            pair(2, Statistic::Inodes, -2),
            pair(1, Statistic::Bytes, 100),
            pair(3, Statistic::Bytes, -30),
            pair(3, Statistic::TrashFiles, 2),
            pair(4, Statistic::TrashFiles, -1),
            pair(4, Statistic::TrashBytes, 9),
            (
                volume_key(VolumeId(0), VolumeTag::Statistic, &(99_u16, 0_u64)).into(),
                Bytes::from_static(&[1; 8]),
            ),
        ];
        let sum = Statistics { inodes: 3, bytes: 70, trash_files: 1, trash_bytes: 9 };
        assert_eq!(Statistics::read(VolumeId(0), &pairs), Ok(sum));
        assert_eq!(hex(&key(InodeId(18), Statistic::Bytes)), "02760014150f1501150214");
    }
}
