//! Keys of the global store: FoundationDB tuples `("g", tag, ...)`.

use foundationdb_tuple::{TuplePack, TupleUnpack, pack, pack_into, unpack};
use mooseng_schema::SchemaError;
use mooseng_schema::ids::IdKind;
use mooseng_store::{KeyRange, prefix_range};
use mooseng_wire::VolumeId;

/// The registry of key tags. A number is never given to another kind of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GlobalTag {
    /// What holds for the whole cluster ([`crate::record::ClusterRecord`]).
    Cluster = 1,
    /// A region ([`crate::record::RegionRecord`]).
    Region = 2,
    /// A volume ([`crate::record::VolumeRecord`]).
    Volume = 3,
    /// A region's lease ([`crate::record::LeaseRecord`]).
    Lease = 4,
    /// The next id to give of a kind, for a volume ([`mooseng_schema::number`]).
    Ids = 5,
    /// The number of changes so far, renewals of leases and ids not counted ([`mooseng_schema::number`]).
    Version = 6,
    /// A storage class of the cluster ([`crate::record::StorageClassRecord`]).
    StorageClass = 8,
    /// What holds for all of them ([`crate::record::StorageClassesRecord`]).
    StorageClasses = 9,
    /// A certificate that is refused ([`mooseng_schema::revocation::RevocationRecord`]).
    Revocation = 10,
    /// The version of what is refused ([`mooseng_schema::number`]).
    RevocationsVersion = 11,
    /// The feature level ([`mooseng_schema::number`]).
    Level = 40,
}

fn tagged<T: TuplePack>(tag: GlobalTag, rest: &T) -> Vec<u8> {
    let mut key = pack(&("g", tag as u16));
    pack_into(rest, &mut key);
    key
}

fn parse<'k, T: TupleUnpack<'k>>(tag: GlobalTag, key: &'k [u8]) -> Result<T, SchemaError> {
    let damaged = SchemaError::Key { tag: tag as u8 };
    let prefix = tagged(tag, &());
    let rest = key.strip_prefix(prefix.as_slice()).ok_or_else(|| damaged.clone())?;
    unpack(rest).map_err(|_| damaged)
}

/// The key of what holds for the whole cluster.
pub fn cluster() -> Vec<u8> {
    tagged(GlobalTag::Cluster, &())
}

/// The key of the number of changes.
pub fn version() -> Vec<u8> {
    tagged(GlobalTag::Version, &())
}

/// A region's key.
pub fn region(name: &str) -> Vec<u8> {
    tagged(GlobalTag::Region, &(name,))
}

/// All regions.
pub fn regions() -> KeyRange {
    prefix_range(&tagged(GlobalTag::Region, &()))
}

/// The region's name in a key of [`regions`].
pub fn parse_region(key: &[u8]) -> Result<String, SchemaError> {
    parse(GlobalTag::Region, key).map(|(name,)| name)
}

/// A volume's key.
pub fn volume(volume: VolumeId) -> Vec<u8> {
    tagged(GlobalTag::Volume, &(volume.0,))
}

/// All volumes.
pub fn volumes() -> KeyRange {
    prefix_range(&tagged(GlobalTag::Volume, &()))
}

/// The volume in a key of [`volumes`].
pub fn parse_volume(key: &[u8]) -> Result<VolumeId, SchemaError> {
    parse(GlobalTag::Volume, key).map(|(volume,)| VolumeId(volume))
}

/// The key of a region's lease.
pub fn lease(region: &str) -> Vec<u8> {
    tagged(GlobalTag::Lease, &(region,))
}

/// All leases.
pub fn leases() -> KeyRange {
    prefix_range(&tagged(GlobalTag::Lease, &()))
}

/// The region's name in a key of [`leases`].
pub fn parse_lease(key: &[u8]) -> Result<String, SchemaError> {
    parse(GlobalTag::Lease, key).map(|(name,)| name)
}

/// The key of the next id to give of a kind.
pub fn ids(kind: IdKind, volume: VolumeId) -> Vec<u8> {
    tagged(GlobalTag::Ids, &(kind as u16, volume.0))
}

/// A storage class' key.
pub fn storage_class(class: u32) -> Vec<u8> {
    tagged(GlobalTag::StorageClass, &(class,))
}

/// All storage classes.
pub fn all_storage_classes() -> KeyRange {
    prefix_range(&tagged(GlobalTag::StorageClass, &()))
}

/// The class in a key of [`all_storage_classes`].
pub fn parse_storage_class(key: &[u8]) -> Result<u32, SchemaError> {
    parse(GlobalTag::StorageClass, key).map(|(class,)| class)
}

/// The key of what holds for all storage classes.
pub fn storage_classes() -> Vec<u8> {
    tagged(GlobalTag::StorageClasses, &())
}

/// The key of a certificate that is refused, by its serial number or its owner's SPIFFE id.
pub fn revocation(what: &str) -> Vec<u8> {
    tagged(GlobalTag::Revocation, &(what,))
}

/// All of them.
pub fn revocations() -> KeyRange {
    prefix_range(&tagged(GlobalTag::Revocation, &()))
}

/// What a key of [`revocations`] refuses.
pub fn parse_revocation(key: &[u8]) -> Result<String, SchemaError> {
    parse(GlobalTag::Revocation, key).map(|(what,)| what)
}

/// The key of the feature level.
pub fn level() -> Vec<u8> {
    tagged(GlobalTag::Level, &())
}

/// The key of the version of what is refused.
pub fn revocations_version() -> Vec<u8> {
    tagged(GlobalTag::RevocationsVersion, &())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::hex;

    #[test]
    fn bytes_stay_as_they_were() {
        let table = [
            (cluster(), "0267001501"),
            (region("eu"), "02670015020265750 0"),
            (volume(VolumeId(0)), "0267001503 14"),
            (volume(VolumeId(700)), "0267001503 1602bc"),
            (lease("eu"), "0267001504 02657500"),
            (ids(IdKind::Chunk, VolumeId(3)), "0267001505 1502 1503"),
            (version(), "0267001506"),
            (storage_class(65_536), "0267001508 17010000"),
            (storage_classes(), "0267001509"),
            (revocation("5a"), "026700150a 02356100"),
            (revocations_version(), "026700150b"),
            (level(), "0267001528"),
        ];
        for (key, expected) in table {
            assert_eq!(hex(&key), expected.replace(' ', ""));
        }
    }

    #[test]
    fn names_and_numbers_come_back() {
        assert_eq!(parse_region(&region("eu-1")).unwrap(), "eu-1");
        assert_eq!(parse_revocation(&revocation("5a")).unwrap(), "5a");
        assert_eq!(parse_lease(&lease("eu-1")).unwrap(), "eu-1");
        assert_eq!(parse_volume(&volume(VolumeId(700))).unwrap(), VolumeId(700));
        assert_eq!(parse_storage_class(&storage_class(65_537)).unwrap(), 65_537);
        assert!(parse_region(&lease("eu-1")).is_err());
        assert!(parse_volume(&volume(VolumeId(7))[..4]).is_err());
        let range = regions();
        assert!(range.begin <= region("a") && range.end > region("z") && range.end <= volume(VolumeId(0)));
    }
}
