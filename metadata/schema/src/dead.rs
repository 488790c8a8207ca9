//! Chunks that are no more, whose copies are still to be deleted (records of the region). A chunk's record goes and its dead record comes in
//! one transaction; it goes once every copy is known to be gone. Chunk ids are never given twice, so what is dead stays dead.

use mooseng_store::{KeyRange, prefix_range};
use mooseng_wire::{ChunkId, Epoch, VolumeId};

use crate::key::{parse_region_key, region_key};
use crate::log::LogPosition;
use crate::record::{Record, SchemaError};
use crate::tag::RegionTag;

/// A dead chunk.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeadRecord {
    /// The chunkservers that may still have a copy.
    #[prost(string, repeated, tag = "1")]
    pub copies: Vec<String>,
    /// The home epoch of its appends.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Since when.
    #[prost(sfixed64, tag = "3")]
    pub since_ns: i64,
    /// In a region that replayed its death before the region was complete up to there: at this place of the log. Its copies stay until the region is,
    /// for the death may be undone. The place's epoch.
    #[prost(uint64, tag = "4")]
    pub died_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "5")]
    pub died_version: u64,
}

impl DeadRecord {
    /// Its copies stay until the region is complete up to this place.
    pub fn died(&self) -> LogPosition {
        LogPosition::new(Epoch(self.died_epoch), self.died_version)
    }
}

impl Record for DeadRecord {
    const NAME: &'static str = "dead chunk";
}

/// A dead chunk's key.
pub fn key(chunk: ChunkId) -> Vec<u8> {
    region_key(RegionTag::Dead, &(chunk.0,))
}

/// All dead chunks of a volume with ids above `after`.
pub fn range_after(volume: VolumeId, after: Option<ChunkId>) -> KeyRange {
    let mut range = prefix_range(&region_key(RegionTag::Dead, &()));
    range.begin = key(ChunkId::new(volume, 0)).into();
    if let Some(next) = volume.0.checked_add(1) {
        range.end = key(ChunkId::new(VolumeId(next), 0)).into();
    }
    if let Some(after) = after {
        let mut begin = key(after);
        begin.push(0);
        range.begin = begin.into();
    }
    range
}

/// The chunk of a key in [`range_after`].
pub fn parse_key(key: &[u8]) -> Result<ChunkId, SchemaError> {
    let (chunk,): (u64,) = parse_region_key(RegionTag::Dead, key)?;
    Ok(ChunkId(chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let dead = DeadRecord { copies: vec!["cs-1".into()], epoch: 1, since_ns: 7, ..DeadRecord::default() };
        golden(&dead, "010a0463732d31100119 0700000000000000".replace(' ', "").as_str());
        golden(&DeadRecord { died_epoch: 2, died_version: 300, ..DeadRecord::default() }, "01200228ac02");
        assert_eq!(hex(&key(ChunkId(5))), "02720015041505");
    }

    proptest! {
        #[test]
        fn round_trips(copies in prop::collection::vec("[a-z]{1,9}", 0..4), epoch: u64, since_ns: i64, chunk: u64) {
            round_trip(&DeadRecord { copies, epoch, since_ns, died_epoch: epoch, died_version: chunk });
            prop_assert_eq!(parse_key(&key(ChunkId(chunk))).unwrap(), ChunkId(chunk));
            let range = range_after(ChunkId(chunk).volume(), Some(ChunkId(chunk)));
            prop_assert!(key(ChunkId(chunk)).as_slice() < &range.begin[..]);
        }
    }
}
