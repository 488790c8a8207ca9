//! Volumes that a region was taken out of (records of the region): that it lets go of what it has of one, and how far that is.

use bytes::Bytes;
use mooseng_store::{KeyRange, prefix_range};
use mooseng_wire::{Epoch, VolumeId};

use crate::deleted::by_id;
use crate::key::{region_key, whole_volume};
use crate::log::LogPosition;
use crate::record::Record;
use crate::tag::RegionTag;

/// What is on record of a volume that this region lets go of. As long as it is there and not over, no replica is begun here, and nothing is made
/// in the volume's place.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LetGoRecord {
    /// When it was known first that the region isn't to have the volume any more.
    #[prost(sfixed64, tag = "1")]
    pub since_ns: i64,
    /// What the regions had agreed on then: the version of the global store.
    #[prost(uint64, tag = "2")]
    pub agreed: u64,
    /// Which volume it is, for a number may be given again where a cluster is founded anew: the mark by which its mounts know it. Empty where nothing here
    /// tells it.
    #[prost(bytes = "bytes", tag = "3")]
    pub mark: Bytes,
    /// Its records have begun to go. What is left of them is no replica.
    #[prost(bool, tag = "4")]
    pub clearing: bool,
    /// Up to this place of the volume's log everything was here then, and nothing beyond that wasn't put aside: its epoch.
    #[prost(uint64, tag = "5")]
    pub had_epoch: u64,
    /// And its version.
    #[prost(uint64, tag = "6")]
    pub had_version: u64,
    /// None of its records are left, but for where chunks lie of which copies are left.
    #[prost(bool, tag = "7")]
    pub cleared: bool,
    /// The region was to have the volume again, and nothing is let go of. What is told of it besides helps where that was by an old word, or is so no more.
    #[prost(bool, tag = "8")]
    pub over: bool,
}

impl Record for LetGoRecord {
    const NAME: &'static str = "volume that is let go of";
}

impl LetGoRecord {
    /// Up to this place of the volume's log everything was here.
    pub fn had(&self) -> LogPosition {
        LogPosition::new(Epoch(self.had_epoch), self.had_version)
    }

    /// Until when everything stays as it is, if it stays for so many seconds.
    pub fn until_ns(&self, keep_s: u64) -> i64 {
        let keep_ns = i64::try_from(keep_s.saturating_mul(1_000_000_000)).unwrap_or(i64::MAX);
        self.since_ns.saturating_add(keep_ns)
    }
}

/// The record's key.
pub fn key(volume: VolumeId) -> Vec<u8> {
    region_key(RegionTag::LetGo, &(volume.0,))
}

/// How what the region has under a tag goes when it lets go of a volume.
#[derive(PartialEq, Eq)]
enum Goes {
    /// At once with the first of its records: what says that there is a home or a replica.
    First,
    /// With its records.
    ByVolume,
    /// The same, by ids that have the volume in their upper bits.
    ById,
    /// Chunk by chunk, once the volume's home has said that the copies aren't needed.
    WithCopies,
    /// Not at all: it is the region's, or is of no other region. Ids aren't given twice, should the volume come here again; what was put aside is what
    /// nobody else has, and says where its bytes lie.
    Stays,
}

fn goes(tag: RegionTag) -> Goes {
    match tag {
        RegionTag::Logged | RegionTag::Replica => Goes::First,
        RegionTag::Before | RegionTag::Leased => Goes::ByVolume,
        // Of locks the next home's sessions tell; copies of dead chunks the chunkservers do.
        RegionTag::Dead | RegionTag::Lock | RegionTag::LockHeld | RegionTag::LockReclaim => Goes::ById,
        RegionTag::Location => Goes::WithCopies,
        RegionTag::Ids
        | RegionTag::IdsUpto
        | RegionTag::IdGap
        | RegionTag::Salvage
        | RegionTag::SalvagedChunk
        | RegionTag::SalvagedPath
        | RegionTag::Archive
        | RegionTag::LetGo
        | RegionTag::Deleted
        | RegionTag::Secret
        | RegionTag::Chunkserver
        | RegionTag::Founding
        | RegionTag::Revocation
        | RegionTag::RevocationsVersion => Goes::Stays,
    }
}

/// The records of a volume that go, besides where its chunks lie. What says that this region has the volume isn't among them: that goes first.
pub fn ranges(volume: VolumeId) -> Vec<KeyRange> {
    let mut ranges = vec![whole_volume(volume)];
    for tag in RegionTag::ALL {
        match goes(tag) {
            Goes::ByVolume => ranges.push(prefix_range(&region_key(tag, &(volume.0,)))),
            Goes::ById => ranges.push(by_id(tag, volume)),
            Goes::First | Goes::WithCopies | Goes::Stays => {}
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{self, IdKind};
    use crate::record::testing::{golden, hex, round_trip};
    use crate::{before, dead, deleted, inode, leased, location, lock, log, loss, session, volume};
    use mooseng_wire::fs::LockKind;
    use mooseng_wire::{ChunkId, InodeId, SessionId};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        assert_eq!(hex(&key(VolumeId(3))), "027200153c1503");
        let record = LetGoRecord {
            since_ns: 2,
            agreed: 300,
            mark: Bytes::from_static(b"m"),
            clearing: true,
            had_epoch: 4,
            had_version: 5,
            cleared: true,
            over: true,
        };
        golden(
            &record,
            "010902000000000000 0010ac02 1a016d 2001 2804 3005 3801 4001".replace(' ', "").as_str(),
        );
        assert_eq!(record.until_ns(3), 3_000_000_002);
        assert_eq!(record.until_ns(u64::MAX), i64::MAX);
    }

    proptest! {
        #[test]
        fn nothing_goes_that_is_another_volumes_or_of_this_region_alone(number: u16, other: u16, local in 0..1_u64 << 48) {
            prop_assume!(number != other);
            let id = VolumeId(number);
            let ranges = ranges(id);
            let goes = |key: &[u8]| ranges.iter().any(|range| range.begin <= *key && *key < range.end);
            let at = LogPosition::new(Epoch(local), local);
            let of = |volume: VolumeId| {
                let (inode, session) = (InodeId::new(volume, local), SessionId::new(volume, local));
                let owner = lock::LockOwner { kind: LockKind::File, session, owner: local };
                [
                    volume::key(volume),
                    inode::key(inode),
                    session::key(session),
                    log::key(volume, at, 1),
                    loss::key(volume, Epoch(local)),
                    dead::key(ChunkId::new(volume, local)),
                    lock::key(inode, owner, local),
                    lock::held_key(session, inode),
                    lock::reclaim_key(session),
                    before::key(volume, at, 1, 1),
                    leased::key(volume),
                    leased::set_key(volume),
                ]
            };
            prop_assert!(of(id).iter().all(|key| goes(key)));
            prop_assert!(!of(VolumeId(other)).iter().any(|key| goes(key)));
            let stay = [
                location::key(ChunkId::new(id, local)),
                log::logged_key(id),
                log::replica_key(id),
                log::salvage_key(id, at, 1),
                log::salvaged_chunk_key(ChunkId::new(id, local)),
                loss::path_key(id, at, local),
                loss::archive_key(id, at),
                ids::key(IdKind::Chunk, id),
                ids::upto_key(IdKind::Chunk, id),
                ids::gap_key(IdKind::Chunk, id, local),
                key(id),
                deleted::key(id),
                crate::founding::key(),
                crate::secret::key("k"),
            ];
            prop_assert!(!stay.iter().any(|key| goes(key)));
        }

        #[test]
        fn round_trips(since_ns: i64, agreed: u64, clearing: bool, cleared: bool, at: (u64, u64), mark: Vec<u8>) {
            let (had_epoch, had_version) = at;
            round_trip(&LetGoRecord { since_ns, agreed, mark: mark.into(), clearing, cleared, had_epoch, had_version, over: clearing });
        }
    }
}
