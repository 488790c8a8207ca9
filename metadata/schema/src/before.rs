//! Before-images: what the keys that an entry of a volume's log changes held before it, in a region that replayed the entry and hasn't all of its
//! data yet. Whoever takes them in gets the state before the entry. Records of the region: other regions have their own.
//!
//! An entry's image comes in blocks, each of which is a list of changes; their order doesn't matter. A block comes in parts, as values have a bound.

use bytes::Bytes;
use mooseng_store::{KeyRange, prefix_range};
use mooseng_wire::{Epoch, VolumeId};

use crate::key::{parse_region_key, region_key};
use crate::log::{self, LogPosition};
use crate::record::SchemaError;
use crate::tag::RegionTag;

/// The key of a part of a block.
pub fn key(volume: VolumeId, at: LogPosition, block: u32, part: u32) -> Vec<u8> {
    region_key(RegionTag::Before, &(volume.0, at.epoch.0, at.version, block, part))
}

/// All images of a volume.
pub fn range(volume: VolumeId) -> KeyRange {
    prefix_range(&region_key(RegionTag::Before, &(volume.0,)))
}

/// One entry's image.
pub fn range_of(volume: VolumeId, at: LogPosition) -> KeyRange {
    prefix_range(&region_key(RegionTag::Before, &(volume.0, at.epoch.0, at.version)))
}

/// One block of it.
pub fn block_range(volume: VolumeId, at: LogPosition, block: u32) -> KeyRange {
    prefix_range(&region_key(RegionTag::Before, &(volume.0, at.epoch.0, at.version, block)))
}

/// The images of entries behind `after`.
pub fn range_after(volume: VolumeId, after: LogPosition) -> KeyRange {
    KeyRange { begin: range_of(volume, after).end, end: range(volume).end }
}

/// The images of entries up to `upto`, which is among them.
pub fn range_upto(volume: VolumeId, upto: LogPosition) -> KeyRange {
    KeyRange { begin: range(volume).begin, end: range_of(volume, upto).end }
}

/// Place, block and part of a key of [`range`].
pub fn parse_key(key: &[u8]) -> Result<(LogPosition, u32, u32), SchemaError> {
    let (_, epoch, version, block, part): (u16, u64, u64, u32, u32) =
        parse_region_key(RegionTag::Before, key)?;
    Ok((LogPosition::new(Epoch(epoch), version), block, part))
}

/// The pairs of a block. Their values are as those of an entry of the log ([`log::part`]).
pub fn parts(volume: VolumeId, at: LogPosition, block: u32, bytes: &Bytes) -> Vec<(Bytes, Bytes)> {
    let pieces = log::pieces(bytes).into_iter().zip(0..);
    pieces.map(|(value, part)| (key(volume, at, block, part).into(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{whole_region, whole_volume};
    use crate::record::testing::hex;
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let at = LogPosition::new(Epoch(2), 300);
        assert_eq!(hex(&key(VolumeId(3), at, 1, 2)), "0272001511150315021601 2c15011502".replace(' ', ""));
        assert_eq!(hex(&parts(VolumeId(3), at, 1, &Bytes::from_static(b"xy"))[0].1), "01007879");
    }

    proptest! {
        #[test]
        fn they_are_in_the_logs_order(a: (u64, u64), b: (u64, u64), block: u32, part: u32, bytes in 0usize..300_000) {
            let volume = VolumeId(5);
            let [a, b] = [a, b].map(|(epoch, version)| LogPosition::new(Epoch(epoch), version));
            let ours = key(volume, a, block, part);
            prop_assert_eq!(parse_key(&ours).unwrap(), (a, block, part));
            prop_assert_eq!(range_after(volume, b).begin <= ours, a > b);
            prop_assert_eq!(range_upto(volume, b).end > ours, a <= b);
            let has = |range: &KeyRange| range.begin <= ours && ours < range.end;
            prop_assert!(has(&range(volume)) && has(&range_of(volume, a)) && has(&block_range(volume, a, block)));
            prop_assert!(has(&whole_region()) && !has(&whole_volume(volume)) && !has(&range(VolumeId(6))));
            let whole = Bytes::from((0..bytes).map(|i| i as u8).collect::<Vec<_>>());
            let mut read = Vec::new();
            let pairs = parts(volume, a, block, &whole);
            for (i, (key, value)) in pairs.iter().enumerate() {
                let (bytes, more) = log::part(value).unwrap();
                prop_assert_eq!(more, i + 1 < pairs.len());
                prop_assert_eq!(parse_key(key).unwrap(), (a, block, i as u32));
                read.extend_from_slice(&bytes);
            }
            prop_assert_eq!(read, whole);
        }
    }
}
