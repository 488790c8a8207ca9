//! Building and taking apart keys.

use foundationdb_tuple::{TuplePack, TupleUnpack, pack, pack_into, unpack};
use mooseng_store::{KeyRange, prefix_range};
use mooseng_wire::fact::Fact;
use mooseng_wire::{InodeId, VolumeId};

use crate::record::SchemaError;
use crate::tag::{RegionTag, VolumeTag};

/// The generation of every record until snapshots exist.
const GENERATION: u64 = 0;

/// The key of a volume's record: `("v", volume, tag, rest..., 0)`.
pub(crate) fn volume_key<T: TuplePack>(volume: VolumeId, tag: VolumeTag, rest: &T) -> Vec<u8> {
    let mut key = volume_prefix(volume, tag, rest);
    pack_into(&(GENERATION,), &mut key);
    key
}

/// What the keys of a volume's records with that beginning begin with.
pub(crate) fn volume_prefix<T: TuplePack>(volume: VolumeId, tag: VolumeTag, rest: &T) -> Vec<u8> {
    let mut key = pack(&("v", volume.0, tag as u16));
    pack_into(rest, &mut key);
    key
}

/// The range of a volume's records with that beginning.
pub(crate) fn volume_range<T: TuplePack>(volume: VolumeId, tag: VolumeTag, rest: &T) -> KeyRange {
    prefix_range(&volume_prefix(volume, tag, rest))
}

/// The key of a region's record: `("r", tag, rest...)`.
pub(crate) fn region_key<T: TuplePack>(tag: RegionTag, rest: &T) -> Vec<u8> {
    let mut key = pack(&("r", tag as u16));
    pack_into(rest, &mut key);
    key
}

/// The elements behind a volume key's tag, with the generation last.
pub(crate) fn parse_volume_key<'k, T: TupleUnpack<'k>>(
    volume: VolumeId,
    tag: VolumeTag,
    key: &'k [u8],
) -> Result<T, SchemaError> {
    let prefix = volume_prefix(volume, tag, &());
    let rest = key.strip_prefix(prefix.as_slice()).ok_or(SchemaError::Key { tag: tag as u8 })?;
    unpack(rest).map_err(|_| SchemaError::Key { tag: tag as u8 })
}

/// The elements behind a region key's tag.
pub(crate) fn parse_region_key<'k, T: TupleUnpack<'k>>(
    tag: RegionTag,
    key: &'k [u8],
) -> Result<T, SchemaError> {
    let prefix = region_key(tag, &());
    let rest = key.strip_prefix(prefix.as_slice()).ok_or(SchemaError::Key { tag: tag as u8 })?;
    unpack(rest).map_err(|_| SchemaError::Key { tag: tag as u8 })
}

/// The number that an encoded tuple begins with, and what follows: the library takes whole tuples apart only. A code of 0x14 is 0, and those behind it have so
/// many bytes, the highest first (FoundationDB, design/tuple.md).
fn leading_number(encoded: &[u8]) -> Option<(u64, &[u8])> {
    let (code, rest) = encoded.split_first()?;
    let bytes = usize::from(code.checked_sub(0x14)?);
    let (number, rest) = rest.split_at_checked(bytes).filter(|_| bytes <= 8)?;
    Some((number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)), rest))
}

/// What clients are told that a volume's key is about: an inode, or a directory's entries; none for other keys, and for those of other volumes.
pub fn fact_of(volume: VolumeId, key: &[u8]) -> Option<Fact> {
    let prefix = pack(&("v", volume.0));
    let (tag, rest) = leading_number(key.strip_prefix(prefix.as_slice())?)?;
    let of_inode =
        [VolumeTag::Inode, VolumeTag::Link, VolumeTag::Directory, VolumeTag::Extent, VolumeTag::Xattr];
    let is_entry = tag == VolumeTag::Dirent as u64;
    if !is_entry && !of_inode.iter().any(|of| *of as u64 == tag) {
        return None;
    }
    let (inode, _) = leading_number(rest)?;
    Some(if is_entry { Fact::Directory(InodeId(inode)) } else { Fact::Inode(InodeId(inode)) })
}

/// The range of everything that belongs to a volume.
pub fn whole_volume(volume: VolumeId) -> KeyRange {
    prefix_range(&pack(&("v", volume.0)))
}

/// The range of everything that belongs to the region itself.
pub fn whole_region() -> KeyRange {
    prefix_range(&pack(&("r",)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_say_what_they_are_about(volume: u16, inode: u64, name: Vec<u8>, offset: u64) {
            let (volume, other) = (VolumeId(volume), VolumeId(volume ^ 1));
            let about = |tag, inode| fact_of(volume, &volume_key(volume, tag, &(inode, offset)));
            prop_assert_eq!(about(VolumeTag::Extent, inode), Some(Fact::Inode(InodeId(inode))));
            prop_assert_eq!(about(VolumeTag::Dirent, inode), Some(Fact::Directory(InodeId(inode))));
            prop_assert_eq!(about(VolumeTag::Chunk, inode), None);
            let xattr = volume_key(volume, VolumeTag::Xattr, &(inode, name.as_slice()));
            prop_assert_eq!(fact_of(volume, &xattr), Some(Fact::Inode(InodeId(inode))));
            prop_assert_eq!(fact_of(other, &xattr), None);
            prop_assert_eq!(fact_of(volume, &name), None);
        }
    }
}
