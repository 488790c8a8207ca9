//! Extended attributes, by inode and name.

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::InodeId;

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// An extended attribute's value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct XattrRecord {
    /// Its bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub value: Bytes,
}

impl Record for XattrRecord {
    const NAME: &'static str = "extended attribute";
}

/// An attribute's key.
pub fn key(inode: InodeId, name: &[u8]) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::Xattr, &(inode.0, name))
}

/// All attributes of an inode.
pub fn range(inode: InodeId) -> KeyRange {
    volume_range(inode.volume(), VolumeTag::Xattr, &(inode.0,))
}

/// The name in an attribute's key.
pub fn parse_key(inode: InodeId, key: &[u8]) -> Result<Bytes, SchemaError> {
    let (_, name, _): (u64, Vec<u8>, u64) = parse_volume_key(inode.volume(), VolumeTag::Xattr, key)?;
    Ok(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use mooseng_wire::ROOT_INODE;
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        golden(&XattrRecord { value: Bytes::from_static(b"v") }, "010a0176");
        assert_eq!(hex(&key(ROOT_INODE, b"user.a")), "0276001415071501 01757365722e6100 14".replace(' ', ""));
    }

    proptest! {
        #[test]
        fn round_trips(inode: u64, name in prop::collection::vec(any::<u8>(), 1..255), value in prop::collection::vec(any::<u8>(), 0..64)) {
            let inode = InodeId(inode);
            prop_assert_eq!(parse_key(inode, &key(inode, &name)).unwrap(), Bytes::from(name));
            round_trip(&XattrRecord { value: value.into() });
        }
    }
}
