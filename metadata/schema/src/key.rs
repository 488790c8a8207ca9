//! Building and taking apart keys.

use foundationdb_tuple::{TuplePack, TupleUnpack, pack, pack_into, unpack};
use mooseng_store::{KeyRange, prefix_range};
use mooseng_wire::VolumeId;

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

/// The range of everything that belongs to a volume.
pub fn whole_volume(volume: VolumeId) -> KeyRange {
    prefix_range(&pack(&("v", volume.0)))
}

/// The range of everything that belongs to the region itself.
pub fn whole_region() -> KeyRange {
    prefix_range(&pack(&("r",)))
}
