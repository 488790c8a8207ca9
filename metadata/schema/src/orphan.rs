//! Work for the reaper: inodes without a name that don't wait in the trash alone ([`crate::trash`]), and files with dead extents behind their end.

use mooseng_store::KeyRange;
use mooseng_wire::{InodeId, VolumeId};

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// An inode without a name.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OrphanRecord {
    /// Since when.
    #[prost(sfixed64, tag = "1")]
    pub since_ns: i64,
    /// The directory in which it had its last name.
    #[prost(uint64, tag = "2")]
    pub parent: u64,
}

impl Record for OrphanRecord {
    const NAME: &'static str = "orphan";
}

/// An orphan's key.
pub fn key(inode: InodeId) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::Orphan, &(inode.0,))
}

/// The key under which a file waits for its dead extents to be freed ([`crate::inode::InodeRecord::trim_from`]).
/// Its value is empty.
pub fn trim_key(inode: InodeId) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::Trim, &(inode.0,))
}

/// The orphans of a volume with ids above `after`.
pub fn range_after(volume: VolumeId, after: Option<InodeId>) -> KeyRange {
    behind(volume_range(volume, VolumeTag::Orphan, &()), after.map(key))
}

/// The files of a volume that wait to be trimmed with ids above `after`.
pub fn trim_range_after(volume: VolumeId, after: Option<InodeId>) -> KeyRange {
    behind(volume_range(volume, VolumeTag::Trim, &()), after.map(trim_key))
}

fn behind(all: KeyRange, after: Option<Vec<u8>>) -> KeyRange {
    let Some(mut begin) = after else { return all };
    begin.push(0);
    KeyRange { begin: begin.into(), end: all.end }
}

/// The inode in a key of [`range_after`].
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<InodeId, SchemaError> {
    let (inode, _): (u64, u64) = parse_volume_key(volume, VolumeTag::Orphan, key)?;
    Ok(InodeId(inode))
}

/// The inode in a key of [`trim_range_after`].
pub fn parse_trim_key(volume: VolumeId, key: &[u8]) -> Result<InodeId, SchemaError> {
    let (inode, _): (u64, u64) = parse_volume_key(volume, VolumeTag::Trim, key)?;
    Ok(InodeId(inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        golden(&OrphanRecord { since_ns: 1, parent: 0 }, "01090100000000000000");
        golden(&OrphanRecord { since_ns: 1, parent: 3 }, "010901000000000000001003");
        assert_eq!(hex(&key(InodeId(2))), "02760014150a150214");
        assert_eq!(hex(&trim_key(InodeId(2))), "02760014150b150214");
    }

    proptest! {
        #[test]
        fn round_trips(inode: u64, since_ns: i64, parent: u64) {
            let inode = InodeId(inode);
            round_trip(&OrphanRecord { since_ns, parent });
            prop_assert_eq!(parse_key(inode.volume(), &key(inode)).unwrap(), inode);
            prop_assert_eq!(parse_trim_key(inode.volume(), &trim_key(inode)).unwrap(), inode);
            prop_assert!(range_after(inode.volume(), Some(inode)).begin > key(inode));
        }
    }
}
