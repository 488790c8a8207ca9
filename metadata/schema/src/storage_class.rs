//! Storage classes: how many copies data gets, and on which chunkservers. Class 0, the default, has no record: it is what the masters'
//! configuration says.

use mooseng_store::KeyRange;
use mooseng_wire::VolumeId;

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// The id of the class that the masters' configuration describes.
pub const DEFAULT: u32 = 0;
/// Its name.
pub const DEFAULT_NAME: &str = "default";

/// A storage class. Its id is its key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StorageClassRecord {
    /// What people call it, unique within its volume.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Copies of a chunk.
    #[prost(uint32, tag = "2")]
    pub copies: u32,
    /// Fewer than these won't do for a chunk that is written.
    #[prost(uint32, tag = "3")]
    pub min_copies: u32,
    /// Labels that a chunkserver must have, all of them, to hold a copy. In the order of their keys.
    #[prost(message, repeated, tag = "4")]
    pub labels: Vec<Label>,
    /// When it was made or changed last.
    #[prost(sfixed64, tag = "5")]
    pub set_ns: i64,
}

/// A label.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Label {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

impl Record for StorageClassRecord {
    const NAME: &'static str = "storage class";
}

/// A class' key.
pub fn key(volume: VolumeId, class: u32) -> Vec<u8> {
    volume_key(volume, VolumeTag::StorageClass, &(class,))
}

/// All classes of a volume.
pub fn range(volume: VolumeId) -> KeyRange {
    volume_range(volume, VolumeTag::StorageClass, &())
}

/// The class in a key of [`range`].
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<u32, SchemaError> {
    let (class, _): (u32, u64) = parse_volume_key(volume, VolumeTag::StorageClass, key)?;
    Ok(class)
}

/// The key of the highest id that was ever given to a class of the volume ([`crate::number`]): ids aren't given twice, for chunks remember theirs.
pub fn highest_key(volume: VolumeId) -> Vec<u8> {
    volume_key(volume, VolumeTag::StorageClassHighest, &())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let label = Label { key: "m".into(), value: "ssd".into() };
        let class = StorageClassRecord {
            name: "fast".into(),
            copies: 3,
            min_copies: 2,
            labels: vec![label],
            set_ns: 1,
        };
        golden(&class, "010a04666173741003180222080a016d1203737364290100000000000000");
        assert_eq!(hex(&key(VolumeId(0), 7)), "02760014151615071 4".replace(' ', ""));
        assert_eq!(hex(&highest_key(VolumeId(0))), "0276001415171 4".replace(' ', ""));
    }

    proptest! {
        #[test]
        fn round_trips(name in "[a-z]{1,9}", copies: u32, min_copies: u32, set_ns: i64, class: u32, labels in prop::collection::vec(("[a-z]{1,9}", "[a-z]{1,9}"), 0..4)) {
            let labels = labels.into_iter().map(|(key, value)| Label { key, value }).collect();
            round_trip(&StorageClassRecord { name, copies, min_copies, labels, set_ns });
            prop_assert_eq!(parse_key(VolumeId(3), &key(VolumeId(3), class)).unwrap(), class);
        }
    }
}
