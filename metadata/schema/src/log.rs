//! A volume's log: its committed transactions in order, which other regions replay; and how far a region is with it.

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::{ChunkId, Epoch, VolumeId};

use crate::key::{parse_region_key, parse_volume_key, region_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::{RegionTag, VolumeTag};

/// Bytes of an entry in one pair at most: a value of the store has a bound.
pub const PART_BYTES_MAX: usize = 90_000;

const FORMAT: u8 = 1;

/// A place in a volume's log: the home epoch, and the version of a transaction in the store of that epoch's home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The epoch.
    pub epoch: Epoch,
    /// The version.
    pub version: u64,
}

impl LogPosition {
    /// The place of a version within an epoch.
    pub fn new(epoch: Epoch, version: u64) -> Self {
        Self { epoch, version }
    }
}

impl std::fmt::Display for LogPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.epoch.0, self.version)
    }
}

/// The key of a part of an entry.
pub fn key(volume: VolumeId, at: LogPosition, part: u32) -> Vec<u8> {
    volume_key(volume, VolumeTag::Log, &(at.epoch.0, at.version, part))
}

/// All entries of a volume.
pub fn range(volume: VolumeId) -> KeyRange {
    volume_range(volume, VolumeTag::Log, &())
}

/// The entries behind `after`.
pub fn range_after(volume: VolumeId, after: LogPosition) -> KeyRange {
    let begin = volume_range(volume, VolumeTag::Log, &(after.epoch.0, after.version)).end;
    KeyRange { begin, end: range(volume).end }
}

/// The entries up to `upto`, which is among them.
pub fn range_upto(volume: VolumeId, upto: LogPosition) -> KeyRange {
    KeyRange { begin: range(volume).begin, end: range_after(volume, upto).begin }
}

/// Place and part of a key of [`range`].
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<(LogPosition, u32), SchemaError> {
    let (epoch, version, part, _): (u64, u64, u32, u64) = parse_volume_key(volume, VolumeTag::Log, key)?;
    Ok((LogPosition::new(Epoch(epoch), version), part))
}

/// The pairs of an entry.
pub fn parts(volume: VolumeId, at: LogPosition, entry: &Bytes) -> Vec<(Bytes, Bytes)> {
    let pieces = pieces(entry).into_iter().zip(0..);
    pieces.map(|(value, part)| (key(volume, at, part).into(), value)).collect()
}

/// Bytes as values: each says whether more follow.
pub(crate) fn pieces(bytes: &Bytes) -> Vec<Bytes> {
    let pieces = bytes.len().div_ceil(PART_BYTES_MAX).max(1);
    (0..pieces)
        .map(|piece| {
            let begin = piece * PART_BYTES_MAX;
            let bytes = bytes.slice(begin..bytes.len().min(begin + PART_BYTES_MAX));
            let mut value = Vec::with_capacity(2 + bytes.len());
            value.push(FORMAT);
            value.push(u8::from(piece + 1 < pieces));
            value.extend_from_slice(&bytes);
            value.into()
        })
        .collect()
}

/// A part's bytes, and whether more parts follow.
pub fn part(value: &Bytes) -> Result<(Bytes, bool), SchemaError> {
    match value[..] {
        [FORMAT, more @ (0 | 1), ..] => Ok((value.slice(2..), more == 1)),
        [format, ..] if format > FORMAT => {
            Err(SchemaError::Newer { record: "log entry", format, known: FORMAT })
        }
        _ => Err(SchemaError::damaged("log entry", "it has no head")),
    }
}

/// That a volume's transactions are written to its log here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LoggedRecord {
    /// Under this epoch.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// Entries up to here aren't kept any more: their epoch.
    #[prost(uint64, tag = "2")]
    pub trimmed_epoch: u64,
    /// And their version.
    #[prost(uint64, tag = "3")]
    pub trimmed_version: u64,
    /// This region serves no epoch up to this one any more.
    #[prost(uint64, tag = "4")]
    pub closed: u64,
}

impl Record for LoggedRecord {
    const NAME: &'static str = "logged volume";
}

impl LoggedRecord {
    /// Entries up to here aren't kept any more.
    pub fn trimmed(&self) -> LogPosition {
        LogPosition::new(Epoch(self.trimmed_epoch), self.trimmed_version)
    }
}

/// The key of [`LoggedRecord`].
pub fn logged_key(volume: VolumeId) -> Vec<u8> {
    region_key(RegionTag::Logged, &(volume.0,))
}

/// All [`LoggedRecord`]s.
pub fn logged_range() -> KeyRange {
    mooseng_store::prefix_range(&region_key(RegionTag::Logged, &()))
}

/// The volume in a key of [`logged_range`].
pub fn parse_logged_key(key: &[u8]) -> Result<VolumeId, SchemaError> {
    let (volume,): (u16,) = parse_region_key(RegionTag::Logged, key)?;
    Ok(VolumeId(volume))
}

/// How far this region is with a volume whose home is elsewhere.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReplicaRecord {
    /// Everything that is here is as it was at this place of the log: its epoch.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// While the volume is copied: keys before this one are here. Without it, all are.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub copied_before: Option<Bytes>,
    /// The log that is kept here begins behind this place, where the copy was begun: its epoch.
    #[prost(uint64, tag = "4")]
    pub log_behind_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "5")]
    pub log_behind_version: u64,
    /// Nothing is taken any more from homes of epochs up to this one.
    #[prost(uint64, tag = "6")]
    pub refuses: u64,
    /// The data that entries up to this place name is in this region, too: its epoch. It may be further by now.
    #[prost(uint64, tag = "7")]
    pub complete_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "8")]
    pub complete_version: u64,
    /// The before-image of the entry that follows has been written for keys before this one ([`crate::before`]): it is too large for one transaction.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub imaged_before: Option<Bytes>,
    /// The newest entry is being undone, and some of its keys are as they were before it.
    #[prost(bool, tag = "10")]
    pub undoing: bool,
    /// The newest home that has said that this place is one of its log: its epoch. At least that of the place is ([`ReplicaRecord::of_log`]).
    #[prost(uint64, tag = "11")]
    pub confirmed: u64,
}

impl Record for ReplicaRecord {
    const NAME: &'static str = "replica";
}

impl ReplicaRecord {
    /// The log that is kept here begins behind this place.
    pub fn log_behind(&self) -> LogPosition {
        LogPosition::new(Epoch(self.log_behind_epoch), self.log_behind_version)
    }

    /// The place of the log.
    pub fn position(&self) -> LogPosition {
        LogPosition::new(Epoch(self.epoch), self.version)
    }

    /// The newest epoch of whose log this place is known to be one.
    pub fn of_log(&self) -> Epoch {
        Epoch(self.confirmed.max(self.epoch))
    }

    /// The data that entries up to this place name is here, too.
    pub fn complete(&self) -> LogPosition {
        LogPosition::new(Epoch(self.complete_epoch), self.complete_version)
    }
}

/// The key of a part of an entry that this region had as a home and that was cut off: it is kept for whoever wants it back.
pub fn salvage_key(volume: VolumeId, at: LogPosition, part: u32) -> Vec<u8> {
    region_key(RegionTag::Salvage, &(volume.0, at.epoch.0, at.version, part))
}

/// All parts of such entries.
pub fn salvage_range(volume: VolumeId) -> KeyRange {
    mooseng_store::prefix_range(&region_key(RegionTag::Salvage, &(volume.0,)))
}

/// Those of entries behind `after`, up to `upto`, which is among them.
pub fn salvage_between(volume: VolumeId, after: LogPosition, upto: LogPosition) -> KeyRange {
    let behind = |at: LogPosition| {
        mooseng_store::prefix_range(&region_key(RegionTag::Salvage, &(volume.0, at.epoch.0, at.version))).end
    };
    KeyRange { begin: behind(after), end: behind(upto.max(after)) }
}

/// Place and part of a key of [`salvage_range`].
pub fn parse_salvage_key(key: &[u8]) -> Result<(LogPosition, u32), SchemaError> {
    let (_, epoch, version, part): (u16, u64, u64, u32) = parse_region_key(RegionTag::Salvage, key)?;
    Ok((LogPosition::new(Epoch(epoch), version), part))
}

/// The key of where copies lie of a chunk that entries name which were undone here ([`crate::location::LocationRecord`]): they are kept, too.
pub fn salvaged_chunk_key(chunk: ChunkId) -> Vec<u8> {
    region_key(RegionTag::SalvagedChunk, &(chunk.0,))
}

/// The key of [`ReplicaRecord`].
pub fn replica_key(volume: VolumeId) -> Vec<u8> {
    region_key(RegionTag::Replica, &(volume.0,))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::whole_volume;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let at = LogPosition::new(Epoch(2), 300);
        assert_eq!(hex(&key(VolumeId(0), at, 1)), "02760014151915021601 2c150114".replace(' ', ""));
        assert_eq!(hex(&logged_key(VolumeId(3))), "02720015091503");
        assert_eq!(hex(&replica_key(VolumeId(3))), "027200150a1503");
        let salvage = salvage_key(VolumeId(3), at, 1);
        assert_eq!(hex(&salvage), "0272 0015 0b 1503 1502 16012c 1501".replace(' ', ""));
        assert_eq!(parse_salvage_key(&salvage), Ok((at, 1)));
        assert_eq!(hex(&salvaged_chunk_key(ChunkId(5))), "02720015121505");
        assert!(salvage_range(VolumeId(3)).begin <= salvage && salvage < salvage_range(VolumeId(3)).end);
        assert_eq!(parse_logged_key(&logged_key(VolumeId(3))), Ok(VolumeId(3)));
        golden(
            &LoggedRecord { epoch: 2, trimmed_epoch: 1, trimmed_version: 300, closed: 2 },
            "010802100118ac022002",
        );
        golden(
            &ReplicaRecord {
                epoch: 2,
                version: 300,
                copied_before: Some(Bytes::from_static(b"k")),
                log_behind_epoch: 1,
                log_behind_version: 2,
                refuses: 1,
                complete_epoch: 2,
                complete_version: 299,
                imaged_before: Some(Bytes::from_static(b"l")),
                undoing: true,
                confirmed: 3,
            },
            "01080210ac021a016b200128023001380240ab024a016c50015803",
        );
        let parts = parts(VolumeId(0), at, &Bytes::from_static(b"xy"));
        assert_eq!(hex(&parts[0].1), "01007879");
        assert!(part(&Bytes::from_static(&[1])).is_err() && part(&Bytes::from_static(&[2, 0])).is_err());
    }

    proptest! {
        #[test]
        fn parts_make_the_entry_and_keys_keep_the_logs_order(
            bytes in 0usize..300_000, a: (u64, u64), b: (u64, u64), records: (u64, u64, Option<Vec<u8>>)
        ) {
            let volume = VolumeId(5);
            let [a, b] = [a, b].map(|(epoch, version)| LogPosition::new(Epoch(epoch), version));
            let entry = Bytes::from((0..bytes).map(|i| i as u8).collect::<Vec<_>>());
            let pairs = parts(volume, a, &entry);
            let mut whole = Vec::new();
            for (i, (key, value)) in pairs.iter().enumerate() {
                let (bytes, more) = part(value).unwrap();
                whole.extend_from_slice(&bytes);
                prop_assert!(value.len() <= mooseng_store::limits::VALUE_BYTES_MAX);
                prop_assert_eq!(more, i + 1 < pairs.len());
                prop_assert_eq!(parse_key(volume, key).unwrap(), (a, i as u32));
                prop_assert_eq!(range_after(volume, b).begin <= *key, a > b);
                prop_assert_eq!(range_upto(volume, b).end > *key, a <= b);
                prop_assert!(range(volume).begin <= *key && *key < range(volume).end);
                prop_assert!(whole_volume(volume).begin <= *key && *key < whole_volume(volume).end);
            }
            prop_assert_eq!(whole, entry);
            prop_assert_eq!(a < b, key(volume, a, 7) < key(volume, b, 0));
            let (epoch, version, copied_before) = records;
            let copied_before = copied_before.map(Bytes::from);
            round_trip(&ReplicaRecord { epoch, version, copied_before, ..Default::default() });
        }
    }
}
