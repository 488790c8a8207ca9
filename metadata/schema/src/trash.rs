//! The trash: deleted files that can still be restored, by the time at which they cease to be.

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::{InodeId, VolumeId};

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// What is remembered of a deletion. The file itself is still an inode, which says until when
/// ([`crate::inode::InodeRecord::trash_until_ns`]).
#[derive(Clone, PartialEq, prost::Message)]
pub struct TrashRecord {
    /// The directory that its last name was in.
    #[prost(uint64, tag = "1")]
    pub parent: u64,
    /// That name.
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
    /// The directory's path at that time. It begins with `/`, unless it was too long: then with `...`, and only its end is known.
    #[prost(bytes = "bytes", tag = "3")]
    pub directory: Bytes,
    /// Who deleted it.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// When.
    #[prost(sfixed64, tag = "5")]
    pub deleted_ns: i64,
}

impl Record for TrashRecord {
    const NAME: &'static str = "trash";
}

/// The key of a file that is in the trash until then.
pub fn key(until_ns: i64, inode: InodeId) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::Trash, &(until_ns, inode.0))
}

/// All of a volume's trash, in the order in which it expires.
pub fn range(volume: VolumeId) -> KeyRange {
    volume_range(volume, VolumeTag::Trash, &())
}

/// What has expired by `now_ns`: what was there until then, or until before.
pub fn range_expired(volume: VolumeId, now_ns: i64) -> KeyRange {
    KeyRange { begin: range(volume).begin, end: volume_range(volume, VolumeTag::Trash, &(now_ns,)).end }
}

/// What follows that file.
pub fn range_after(until_ns: i64, inode: InodeId) -> KeyRange {
    let mut begin = key(until_ns, inode);
    begin.push(0);
    KeyRange { begin: begin.into(), end: range(inode.volume()).end }
}

/// What precedes that file.
pub fn range_before(until_ns: i64, inode: InodeId) -> KeyRange {
    KeyRange { begin: range(inode.volume()).begin, end: key(until_ns, inode).into() }
}

/// The time and the inode in a key of [`range`].
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<(i64, InodeId), SchemaError> {
    let (until_ns, inode, _): (i64, u64, u64) = parse_volume_key(volume, VolumeTag::Trash, key)?;
    Ok((until_ns, InodeId(inode)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let trash = TrashRecord {
            parent: 7,
            name: Bytes::from_static(b"name"),
            directory: Bytes::from_static(b"/d"),
            uid: 1000,
            deleted_ns: 1,
        };
        golden(&trash, "01080712046e616d651a022f6420e807290100000000000000");
        assert_eq!(hex(&key(256, InodeId(2))), "027600141510160100150214");
    }

    proptest! {
        #[test]
        fn round_trips(parent: u64, name in prop::collection::vec(any::<u8>(), 1..255), uid: u32, deleted_ns: i64) {
            let name = Bytes::from(name);
            round_trip(&TrashRecord { parent, directory: name.clone(), name, uid, deleted_ns });
        }

        #[test]
        fn keys_are_in_the_order_of_times(a: i64, b: i64, inode in 1u64..1 << 48, now: i64) {
            let inode = InodeId(inode);
            let (first, second) = (key(a, inode), key(b, inode));
            prop_assert_eq!(first.cmp(&second), a.cmp(&b));
            prop_assert_eq!(parse_key(inode.volume(), &first).unwrap(), (a, inode));
            let all = range(inode.volume());
            prop_assert!(all.begin <= first && first < all.end);
            let expired = range_expired(inode.volume(), now);
            prop_assert_eq!(expired.begin <= first && first < expired.end, a <= now);
            prop_assert!(range_after(a, inode).begin > first);
            prop_assert!(range_before(a, inode).end <= first);
        }
    }
}
