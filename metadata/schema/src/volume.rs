//! Volumes.

use bytes::Bytes;
use mooseng_wire::VolumeId;

use crate::dirent::HashKey;
use crate::key::volume_key;
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// A volume.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeRecord {
    /// Its home epoch. Every change reads it.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// The secret of [`HashKey`].
    #[prost(bytes = "bytes", tag = "2")]
    pub hash_key: Bytes,
    /// The inode of its root directory.
    #[prost(uint64, tag = "3")]
    pub root: u64,
    /// When it was made.
    #[prost(sfixed64, tag = "4")]
    pub born_ns: i64,
    /// How long deleted files are kept, in seconds; 0 for not at all. Each file keeps what was set when it was deleted.
    #[prost(uint64, tag = "5")]
    pub trash_retention_s: u64,
    /// A file that loses its last name sooner after it was made, in seconds, isn't kept.
    #[prost(uint64, tag = "6")]
    pub trash_min_age_s: u64,
    /// The home epoch that a planned move of the home ends: nothing is changed under it any more; 0 for none. What sets it is the last entry of that
    /// epoch's log, unless the move comes to nothing.
    #[prost(uint64, tag = "7")]
    pub moving_from: u64,
}

impl Record for VolumeRecord {
    const NAME: &'static str = "volume";
}

impl VolumeRecord {
    /// The secret for hashing names.
    pub fn hash_key(&self) -> Result<HashKey, SchemaError> {
        let key: [u8; 16] = self.hash_key.as_ref().try_into().map_err(|_| {
            SchemaError::damaged(
                Self::NAME,
                format!("its hash key has {} bytes instead of 16", self.hash_key.len()),
            )
        })?;
        Ok(HashKey(key))
    }
}

/// A volume's key.
pub fn key(volume: VolumeId) -> Vec<u8> {
    volume_key(volume, VolumeTag::Volume, &())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let volume = VolumeRecord {
            epoch: 1,
            hash_key: Bytes::from_static(&[7; 16]),
            root: 1,
            born_ns: 2,
            trash_retention_s: 0,
            trash_min_age_s: 0,
            moving_from: 0,
        };
        golden(
            &volume,
            "010801121007070707070707070707070707070707180121020000000000 0000".replace(' ', "").as_str(),
        );
        golden(
            &VolumeRecord { trash_retention_s: 86_400, trash_min_age_s: 60, ..volume.clone() },
            "010801121007070707070707070707070707070707180121020000000000 000028 80a305303c"
                .replace(' ', "")
                .as_str(),
        );
        golden(
            &VolumeRecord { moving_from: 3, ..volume.clone() },
            "010801121007070707070707070707070707070707180121020000000000 0000 3803"
                .replace(' ', "")
                .as_str(),
        );
        assert_eq!(hex(&key(VolumeId(0))), "0276001415011 4".replace(' ', ""));
        assert!(VolumeRecord { hash_key: Bytes::new(), ..volume }.hash_key().is_err());
    }

    proptest! {
        #[test]
        fn round_trips(epoch: u64, secret: [u8; 16], root: u64, born_ns: i64, trash_retention_s: u64, trash_min_age_s: u64, moving_from: u64) {
            let hash_key = Bytes::copy_from_slice(&secret);
            let volume = VolumeRecord { epoch, hash_key, root, born_ns, trash_retention_s, trash_min_age_s, moving_from };
            round_trip(&volume);
            prop_assert_eq!(volume.hash_key().unwrap(), HashKey(secret));
        }
    }
}
