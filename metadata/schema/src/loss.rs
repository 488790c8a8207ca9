//! The loss ledger: what a volume lost when a region took over whose home was lost. Records of the volume, so that they follow it wherever it is at home
//! next; and what the region of the lost home put aside when it came back, which are records of that region.

use mooseng_store::{KeyRange, prefix_range};
use mooseng_wire::{Epoch, VolumeId};

use crate::key::{parse_volume_key, region_key, volume_key, volume_range};
use crate::log::LogPosition;
use crate::record::{Record, SchemaError};
use crate::tag::{RegionTag, VolumeTag};

/// What is known of a failover's loss.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LossRecord {
    /// The epoch that was opened.
    #[prost(uint64, tag = "1")]
    pub opened: u64,
    /// The home that was lost.
    #[prost(string, tag = "2")]
    pub old_home: String,
    /// The one that took over.
    #[prost(string, tag = "3")]
    pub new_home: String,
    /// What follows this place is lost: its epoch.
    #[prost(uint64, tag = "4")]
    pub cut_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "5")]
    pub cut_version: u64,
    /// The newest place that the new home knew the old one to have had; it may have had more. Its epoch.
    #[prost(uint64, tag = "6")]
    pub known_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "7")]
    pub known_version: u64,
    /// When the new home took over.
    #[prost(sfixed64, tag = "8")]
    pub at_ns: i64,
    /// Entries beyond the cut that the new home had, and undid.
    #[prost(uint64, tag = "9")]
    pub undone: u64,
    /// The newest of them: its epoch.
    #[prost(uint64, tag = "10")]
    pub undone_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "11")]
    pub undone_version: u64,
    /// The sessions that they came from.
    #[prost(message, repeated, tag = "12")]
    pub sessions: Vec<LossSession>,
    /// There were more sessions than are named here.
    #[prost(bool, tag = "13")]
    pub more_sessions: bool,
    /// What the old home had, once it came back.
    #[prost(message, optional, tag = "14")]
    pub named: Option<NamedLoss>,
    /// The latest time that the change at the cut, or one of few before it, gave a file; none where none did, or the log didn't go back there.
    #[prost(sfixed64, optional, tag = "15")]
    pub cut_ns: Option<i64>,
    /// Nothing of what is lost was written before, by the new home's clock and but for the way between the regions; none where the new home hadn't heard the old
    /// one for so long.
    #[prost(sfixed64, optional, tag = "16")]
    pub since_ns: Option<i64>,
    /// The earliest of the times that the entries gave files which the new home undid.
    #[prost(sfixed64, optional, tag = "17")]
    pub undone_from_ns: Option<i64>,
    /// And the latest.
    #[prost(sfixed64, optional, tag = "18")]
    pub undone_upto_ns: Option<i64>,
}

/// A session that changed something that was lost.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LossSession {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Entries of it.
    #[prost(uint64, tag = "2")]
    pub entries: u64,
}

/// What the old home put aside.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamedLoss {
    /// When it was told.
    #[prost(sfixed64, tag = "1")]
    pub at_ns: i64,
    /// Entries; none where it had nothing beyond the cut.
    #[prost(uint64, tag = "2")]
    pub entries: u64,
    /// Paths that they concern, as far as they were named.
    #[prost(uint64, tag = "3")]
    pub paths: u64,
    /// There were more paths than were named.
    #[prost(bool, tag = "4")]
    pub more_paths: bool,
    /// What lay up to this place was gone from its log before anything could be put aside; 0 where nothing was. Its epoch.
    #[prost(uint64, tag = "5")]
    pub gone_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "6")]
    pub gone_version: u64,
}

impl NamedLoss {
    /// What lay up to this place was gone from its log; the beginning where nothing was.
    pub fn gone_upto(&self) -> LogPosition {
        LogPosition::new(Epoch(self.gone_epoch), self.gone_version)
    }
}

impl Record for LossRecord {
    const NAME: &'static str = "loss";
}

impl LossRecord {
    /// What follows this place is lost.
    pub fn cut(&self) -> LogPosition {
        LogPosition::new(Epoch(self.cut_epoch), self.cut_version)
    }

    /// The newest place that the new home knew the old one to have had.
    pub fn known(&self) -> LogPosition {
        LogPosition::new(Epoch(self.known_epoch), self.known_version)
    }

    /// The newest place that the new home undid.
    pub fn undone_upto(&self) -> LogPosition {
        LogPosition::new(Epoch(self.undone_epoch), self.undone_version)
    }
}

/// The key of the loss by the failover that closed an epoch.
pub fn key(volume: VolumeId, closed: Epoch) -> Vec<u8> {
    volume_key(volume, VolumeTag::Loss, &(closed.0,))
}

/// All losses of a volume, in their order.
pub fn range(volume: VolumeId) -> KeyRange {
    volume_range(volume, VolumeTag::Loss, &())
}

/// The closed epoch of a key of [`range`].
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<Epoch, SchemaError> {
    let (closed, _): (u64, u64) = parse_volume_key(volume, VolumeTag::Loss, key)?;
    Ok(Epoch(closed))
}

/// What an entry that was put aside concerns, with what was known of it before the state that it belongs to was given up.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SalvagedPath {
    /// The inode's path then; empty where it had none.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Bytes of the file, as it was at the end of what was put aside.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// When its contents were changed last, and with that its version.
    #[prost(sfixed64, tag = "3")]
    pub mtime_ns: i64,
    /// When anything of it was.
    #[prost(sfixed64, tag = "4")]
    pub ctime_ns: i64,
    /// It was gone by then.
    #[prost(bool, tag = "5")]
    pub gone: bool,
    /// The first entry that concerns it: its epoch.
    #[prost(uint64, tag = "6")]
    pub first_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "7")]
    pub first_version: u64,
}

impl Record for SalvagedPath {
    const NAME: &'static str = "salvaged path";
}

/// Its key: by the place down to which entries were put aside, and the inode.
pub fn path_key(volume: VolumeId, cut: LogPosition, inode: u64) -> Vec<u8> {
    region_key(RegionTag::SalvagedPath, &(volume.0, cut.epoch.0, cut.version, inode))
}

/// The paths that were named when entries beyond a place were put aside.
pub fn path_range(volume: VolumeId, cut: LogPosition) -> KeyRange {
    prefix_range(&region_key(RegionTag::SalvagedPath, &(volume.0, cut.epoch.0, cut.version)))
}

/// The inode of a key of [`path_range`].
pub fn parse_path_key(key: &[u8]) -> Result<u64, SchemaError> {
    let (_, _, _, inode): (u16, u64, u64, u64) = crate::key::parse_region_key(RegionTag::SalvagedPath, key)?;
    Ok(inode)
}

/// What was put aside at once: an archive.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ArchiveRecord {
    /// The newest entry in it: its epoch.
    #[prost(uint64, tag = "1")]
    pub upto_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "2")]
    pub upto_version: u64,
    /// When it was put aside.
    #[prost(sfixed64, tag = "3")]
    pub at_ns: i64,
    /// Its entries.
    #[prost(uint64, tag = "4")]
    pub entries: u64,
    /// Bytes of them.
    #[prost(uint64, tag = "5")]
    pub bytes: u64,
    /// Paths that were named.
    #[prost(uint64, tag = "6")]
    pub paths: u64,
    /// There were more paths.
    #[prost(bool, tag = "7")]
    pub more_paths: bool,
    /// This region was the home and came back; otherwise it had replayed the entries, and undid them.
    #[prost(bool, tag = "8")]
    pub was_home: bool,
    /// What lay up to this place was gone from the log here before, and isn't in the archive; 0 where nothing was. Its epoch.
    #[prost(uint64, tag = "9")]
    pub gone_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "10")]
    pub gone_version: u64,
}

impl Record for ArchiveRecord {
    const NAME: &'static str = "archive";
}

impl ArchiveRecord {
    /// The newest entry in it.
    pub fn upto(&self) -> LogPosition {
        LogPosition::new(Epoch(self.upto_epoch), self.upto_version)
    }

    /// What lay up to this place was gone from the log here; the beginning where nothing was.
    pub fn gone_upto(&self) -> LogPosition {
        LogPosition::new(Epoch(self.gone_epoch), self.gone_version)
    }
}

/// The key of an archive: by the place that its entries follow.
pub fn archive_key(volume: VolumeId, cut: LogPosition) -> Vec<u8> {
    region_key(RegionTag::Archive, &(volume.0, cut.epoch.0, cut.version))
}

/// All archives of a volume.
pub fn archive_range(volume: VolumeId) -> KeyRange {
    prefix_range(&region_key(RegionTag::Archive, &(volume.0,)))
}

/// The place that an archive's entries follow, from a key of [`archive_range`].
pub fn parse_archive_key(key: &[u8]) -> Result<LogPosition, SchemaError> {
    let (_, epoch, version): (u16, u64, u64) = crate::key::parse_region_key(RegionTag::Archive, key)?;
    Ok(LogPosition::new(Epoch(epoch), version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let at = LogPosition::new(Epoch(2), 300);
        assert_eq!(hex(&key(VolumeId(0), Epoch(2))), "0276001415 1a1502 14".replace(' ', ""));
        assert_eq!(hex(&path_key(VolumeId(3), at, 7)), "0272001513 15031502 16012c1507".replace(' ', ""));
        assert_eq!(hex(&archive_key(VolumeId(3), at)), "0272001514 15031502 16012c".replace(' ', ""));
        let loss = LossRecord {
            opened: 3,
            old_home: "a".into(),
            new_home: "b".into(),
            cut_epoch: 2,
            cut_version: 300,
            known_epoch: 2,
            known_version: 301,
            at_ns: 5,
            undone: 1,
            undone_epoch: 2,
            undone_version: 301,
            sessions: vec![LossSession { session: 9, entries: 1 }],
            more_sessions: true,
            named: Some(NamedLoss {
                at_ns: 6,
                entries: 2,
                paths: 1,
                more_paths: true,
                ..NamedLoss::default()
            }),
            ..LossRecord::default()
        };
        golden(
            &loss,
            "0108031201611a016220022 8ac0230023 8ad0241050000000000000048015002 58ad02620408091001680172 0f0906000000000000001002180120 01"
                .replace(' ', "")
                .as_str(),
        );
        let named = NamedLoss { gone_epoch: 2, gone_version: 299, ..NamedLoss::default() };
        golden(&LossRecord { named: Some(named), ..LossRecord::default() }, "017205280230ab02");
        let timed = LossRecord {
            cut_ns: Some(1),
            since_ns: Some(2),
            undone_from_ns: Some(3),
            undone_upto_ns: Some(4),
            ..LossRecord::default()
        };
        golden(
            &timed,
            "01 790100000000000000 81010200000000000000 89010300000000000000 91010400000000000000"
                .replace(' ', "")
                .as_str(),
        );
        let path = SalvagedPath {
            path: "/f".into(),
            size: 3,
            mtime_ns: 4,
            ctime_ns: 5,
            gone: true,
            first_epoch: 2,
            first_version: 300,
        };
        golden(&path, "010a022f6610031904000000000000002105000000000000002801300238ac02");
        let archive = ArchiveRecord {
            upto_epoch: 2,
            upto_version: 300,
            at_ns: 4,
            entries: 5,
            bytes: 6,
            paths: 7,
            more_paths: true,
            was_home: true,
            ..ArchiveRecord::default()
        };
        golden(&archive, "01080210ac0219040000000000000020052806300738014001");
        let short = ArchiveRecord { gone_epoch: 2, gone_version: 299, ..archive };
        golden(&short, "01080210ac0219040000000000000020052806300738014001480250ab02");
    }

    proptest! {
        #[test]
        fn round_trips(volume: u16, epoch: u64, version: u64, inode: u64, old_home in "[a-z]{0,9}") {
            let (volume, at) = (VolumeId(volume), LogPosition::new(Epoch(epoch), version));
            prop_assert_eq!(parse_key(volume, &key(volume, Epoch(epoch))).unwrap(), Epoch(epoch));
            prop_assert_eq!(parse_archive_key(&archive_key(volume, at)).unwrap(), at);
            let path = path_key(volume, at, inode);
            prop_assert_eq!(parse_path_key(&path).unwrap(), inode);
            prop_assert!(path_range(volume, at).begin <= path && path < path_range(volume, at).end);
            round_trip(&LossRecord { old_home, known_epoch: epoch, known_version: version, ..Default::default() });
        }
    }
}
