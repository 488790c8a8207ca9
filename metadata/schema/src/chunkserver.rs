//! What an administrator decided about a chunkserver (records of the region). What a chunkserver says of itself isn't here: it comes with its
//! heartbeats. A chunkserver about which nothing was decided has no record.

use mooseng_store::{KeyRange, prefix_range};

use crate::key::{parse_region_key, region_key};
use crate::record::{Record, SchemaError};
use crate::tag::RegionTag;

/// A decision about a chunkserver.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChunkserverRecord {
    /// Since when it is being drained; none when it isn't.
    #[prost(sfixed64, optional, tag = "1")]
    pub draining_since_ns: Option<i64>,
}

impl Record for ChunkserverRecord {
    const NAME: &'static str = "chunkserver";
}

/// A chunkserver's key.
pub fn key(name: &str) -> Vec<u8> {
    region_key(RegionTag::Chunkserver, &(name,))
}

/// All of them.
pub fn range() -> KeyRange {
    prefix_range(&region_key(RegionTag::Chunkserver, &()))
}

/// The name in a key of [`range`].
pub fn parse_key(key: &[u8]) -> Result<String, SchemaError> {
    let (name,): (String,) = parse_region_key(RegionTag::Chunkserver, key)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        golden(&ChunkserverRecord { draining_since_ns: Some(7) }, "01090700000000000000");
        assert_eq!(hex(&key("a")), "02720015050261 00".replace(' ', ""));
    }

    proptest! {
        #[test]
        fn round_trips(name in "[a-z0-9.-]{1,20}", draining_since_ns: Option<i64>) {
            round_trip(&ChunkserverRecord { draining_since_ns });
            prop_assert_eq!(parse_key(&key(&name)).unwrap(), name);
        }
    }
}
