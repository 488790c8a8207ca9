//! The next ids to give (records of the region). Masters reserve ranges, so that giving one costs no commit.

use mooseng_wire::VolumeId;

use crate::key::region_key;
use crate::tag::RegionTag;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IdKind {
    /// Inodes of a volume: numbers below 2^48. The root has 1.
    Inode = 1,
    /// Chunks of a volume: numbers below 2^48.
    Chunk = 2,
    /// Sessions.
    Session = 3,
}

/// The key of the next number of a kind ([`crate::number`]); absent while none was given.
pub fn key(kind: IdKind, volume: VolumeId) -> Vec<u8> {
    region_key(RegionTag::Ids, &(kind as u16, volume.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::hex;

    #[test]
    fn bytes_stay_as_they_were() {
        assert_eq!(hex(&key(IdKind::Chunk, VolumeId(3))), "0272001502 15021503".replace(' ', ""));
    }
}
