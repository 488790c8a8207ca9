//! The next ids to give (records of the region). Masters reserve ranges, so that giving one costs no commit.

use mooseng_store::{KeyRange, prefix_range};
use mooseng_wire::VolumeId;

use crate::key::{parse_region_key, region_key};
use crate::record::{Record, SchemaError};
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

/// The numbers that the global group gave to this region for one epoch of a volume.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IdsUptoRecord {
    /// The epoch.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// Numbers below this one.
    #[prost(uint64, tag = "2")]
    pub end: u64,
}

impl Record for IdsUptoRecord {
    const NAME: &'static str = "range of ids";
}

/// The key of [`IdsUptoRecord`].
pub fn upto_key(kind: IdKind, volume: VolumeId) -> Vec<u8> {
    region_key(RegionTag::IdsUpto, &(kind as u16, volume.0))
}

/// The key of a gap: numbers from `first` on that this store hasn't given, up to its value ([`crate::number`]), and that may have been given all the
/// same: by entries of the log that were lost when the region was recovered.
pub fn gap_key(kind: IdKind, volume: VolumeId, first: u64) -> Vec<u8> {
    region_key(RegionTag::IdGap, &(kind as u16, volume.0, first))
}

/// All gaps of a kind.
pub fn gaps(kind: IdKind, volume: VolumeId) -> KeyRange {
    prefix_range(&region_key(RegionTag::IdGap, &(kind as u16, volume.0)))
}

/// The first number of a gap, from its key.
pub fn parse_gap_key(key: &[u8]) -> Result<u64, SchemaError> {
    let (_, _, first): (u16, u16, u64) = parse_region_key(RegionTag::IdGap, key)?;
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex};

    #[test]
    fn bytes_stay_as_they_were() {
        assert_eq!(hex(&key(IdKind::Chunk, VolumeId(3))), "0272001502 15021503".replace(' ', ""));
        assert_eq!(hex(&upto_key(IdKind::Chunk, VolumeId(3))), "027200150c15021503");
        golden(&IdsUptoRecord { epoch: 2, end: 300 }, "01080210ac02");
        let gap = gap_key(IdKind::Chunk, VolumeId(3), 500);
        assert_eq!(hex(&gap), "0272001510 15021503 1601f4".replace(' ', ""));
        assert_eq!(parse_gap_key(&gap), Ok(500));
        let range = gaps(IdKind::Chunk, VolumeId(3));
        assert!(range.begin <= gap && range.end > gap);
        assert!(parse_gap_key(&key(IdKind::Chunk, VolumeId(3))).is_err());
    }
}
