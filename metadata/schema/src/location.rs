//! Where the region's copies of a chunk lie (a record of the region: other regions have their own).

use mooseng_store::KeyRange;
use mooseng_wire::{ChunkId, VolumeId};

use crate::deleted::by_id;
use crate::key::{parse_region_key, region_key};
use crate::record::{Record, SchemaError};
use crate::tag::RegionTag;

/// How a chunk's bytes are spread over chunkservers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Layout {
    /// Whole copies, in the order of the chain. Erasure codes will have further layouts.
    Copies = 1,
}

/// Where a chunk lies.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LocationRecord {
    /// A [`Layout`].
    #[prost(uint32, tag = "1")]
    pub layout: u32,
    /// The names of its chunkservers, in the order of the chain.
    #[prost(string, repeated, tag = "2")]
    pub copies: Vec<String>,
    /// The home epoch that appends carry.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// Of a chunk that came from another region in part: so many bytes are here for certain. None where the copies are whole.
    #[prost(uint64, optional, tag = "4")]
    pub partial: Option<u64>,
}

impl Record for LocationRecord {
    const NAME: &'static str = "chunk location";
}

/// A location's key.
pub fn key(chunk: ChunkId) -> Vec<u8> {
    region_key(RegionTag::Location, &(chunk.0,))
}

/// The locations of a volume's chunks with ids above `after`.
pub fn range_after(volume: VolumeId, after: Option<ChunkId>) -> KeyRange {
    let mut range = by_id(RegionTag::Location, volume);
    if let Some(after) = after {
        range.begin = mooseng_store::key_range(&key(after)).end;
    }
    range
}

/// The chunk of a key in [`range_after`].
pub fn parse_key(key: &[u8]) -> Result<ChunkId, SchemaError> {
    let (chunk,): (u64,) = parse_region_key(RegionTag::Location, key)?;
    Ok(ChunkId(chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let location = LocationRecord {
            layout: Layout::Copies as u32,
            copies: vec!["cs-1".into(), "cs-2".into()],
            epoch: 1,
            partial: None,
        };
        golden(&location, "010801120463732d31120463732d321801");
        let partial = LocationRecord { partial: Some(0), ..location };
        golden(&partial, "010801120463732d31120463732d3218012000");
        assert_eq!(hex(&key(ChunkId(5))), "02720015011505");
    }

    proptest! {
        #[test]
        fn a_volumes_locations_follow_each_other(volume: u16, a in 0..1_u64 << 48, b in 0..1_u64 << 48, other: u16) {
            let (volume, other) = (VolumeId(volume), VolumeId(other));
            let [a, b] = [a, b].map(|local| ChunkId::new(volume, local));
            prop_assert_eq!(parse_key(&key(b)).unwrap(), b);
            let within = |range: KeyRange, chunk| range.begin <= key(chunk) && key(chunk) < range.end;
            prop_assert!(within(range_after(volume, None), b));
            prop_assert_eq!(within(range_after(volume, Some(a)), b), a < b);
            prop_assert_eq!(within(range_after(volume, None), ChunkId::new(other, 7)), volume == other);
        }

        #[test]
        fn round_trips(copies in prop::collection::vec("[a-z]{1,9}", 0..4), epoch: u64) {
            round_trip(&LocationRecord { layout: 1, copies, epoch, partial: epoch.checked_sub(1) });
        }
    }
}
