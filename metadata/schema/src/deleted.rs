//! Volumes that were deleted (records of the region): what of one is in this region's store, and whether that is gone.

use mooseng_store::{KeyRange, key_range, prefix_range};
use mooseng_wire::{LOCAL_ID_BITS, VolumeId};

use crate::ids::{self, IdKind};
use crate::key::{region_key, whole_volume};
use crate::record::Record;
use crate::tag::RegionTag;

/// What is on record about a volume that was deleted. It stays for good, for a chunkserver may come back with copies of the volume's chunks after years.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct DeletedRecord {
    /// When this region saw first that the volume is deleted.
    #[prost(sfixed64, tag = "1")]
    pub since_ns: i64,
    /// What the region has of it stays as it is so long from then on, in seconds.
    #[prost(uint64, tag = "2")]
    pub keep_s: u64,
    /// Nothing of it is in the store any more.
    #[prost(bool, tag = "3")]
    pub cleared: bool,
}

impl Record for DeletedRecord {
    const NAME: &'static str = "deleted volume";
}

impl DeletedRecord {
    /// Until when what the region has of it stays.
    pub fn until_ns(&self) -> i64 {
        let keep_ns = i64::try_from(self.keep_s.saturating_mul(1_000_000_000)).unwrap_or(i64::MAX);
        self.since_ns.saturating_add(keep_ns)
    }
}

/// The record's key.
pub fn key(volume: VolumeId) -> Vec<u8> {
    region_key(RegionTag::Deleted, &(volume.0,))
}

/// How keys of a tag say of which volume they are.
enum Of {
    /// They are the region's alone, or stay.
    Region,
    /// By its number.
    Volume,
    /// By an inode, chunk or session that has the number in its upper bits.
    Id,
    /// By the number, behind a kind of ids.
    Ids,
}

fn of(tag: RegionTag) -> Of {
    match tag {
        RegionTag::Secret
        | RegionTag::Chunkserver
        | RegionTag::Founding
        | RegionTag::Deleted
        | RegionTag::Revocation
        | RegionTag::RevocationsVersion => Of::Region,
        RegionTag::Location
        | RegionTag::Dead
        | RegionTag::Lock
        | RegionTag::LockHeld
        | RegionTag::LockReclaim
        | RegionTag::SalvagedChunk => Of::Id,
        RegionTag::Ids | RegionTag::IdsUpto | RegionTag::IdGap => Of::Ids,
        RegionTag::Logged
        | RegionTag::Replica
        | RegionTag::Salvage
        | RegionTag::Before
        | RegionTag::SalvagedPath
        | RegionTag::Archive
        | RegionTag::Leased
        | RegionTag::LetGo => Of::Volume,
    }
}

/// Of a tag whose keys begin with ids of the volume.
pub(crate) fn by_id(tag: RegionTag, volume: VolumeId) -> KeyRange {
    let from = |volume: u64| region_key(tag, &(volume << LOCAL_ID_BITS,));
    let end = match volume.0.checked_add(1) {
        Some(next) => from(next.into()).into(),
        None => prefix_range(&region_key(tag, &())).end,
    };
    KeyRange { begin: from(volume.0.into()).into(), end }
}

fn by_kind(tag: RegionTag, volume: VolumeId) -> impl Iterator<Item = KeyRange> {
    [IdKind::Inode, IdKind::Chunk, IdKind::Session].into_iter().map(move |kind| match tag {
        RegionTag::Ids => key_range(&ids::key(kind, volume)),
        RegionTag::IdsUpto => key_range(&ids::upto_key(kind, volume)),
        _ => ids::gaps(kind, volume),
    })
}

/// Everything that a region's store has of a volume, but its [`DeletedRecord`]: first of all what says that its changes are logged, then the volume's own
/// record, which each change of it reads.
pub fn ranges(volume: VolumeId) -> Vec<KeyRange> {
    let mut ranges = vec![prefix_range(&region_key(RegionTag::Logged, &(volume.0,))), whole_volume(volume)];
    for tag in RegionTag::ALL {
        match of(tag) {
            Of::Region => {}
            Of::Volume => ranges.push(prefix_range(&region_key(tag, &(volume.0,)))),
            Of::Id => ranges.push(by_id(tag, volume)),
            Of::Ids => ranges.extend(by_kind(tag, volume)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogPosition;
    use crate::record::testing::{golden, hex, round_trip};
    use crate::{
        before, chunkserver, dead, founding, inode, leased, let_go, location, lock, log, loss, session,
    };
    use mooseng_wire::fs::LockKind;
    use mooseng_wire::{ChunkId, Epoch, InodeId, SessionId};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        assert_eq!(hex(&key(VolumeId(3))), "02720015161503");
        golden(&DeletedRecord { since_ns: 2, keep_s: 300, cleared: true }, "0109020000000000000010ac021801");
    }

    #[test]
    fn what_is_kept_longer_than_there_are_times_stays_for_good() {
        let kept = DeletedRecord { since_ns: 2, keep_s: u64::MAX, cleared: false };
        assert_eq!(kept.until_ns(), i64::MAX);
        assert_eq!(DeletedRecord { keep_s: 3, ..kept }.until_ns(), 3_000_000_002);
    }

    /// A key of each kind of record of a volume.
    fn keys(volume: VolumeId, local: u64) -> Vec<Vec<u8>> {
        let inode = InodeId::new(volume, local);
        let chunk = ChunkId::new(volume, local);
        let session = SessionId::new(volume, local);
        let at = LogPosition::new(Epoch(local), local);
        let owner = lock::LockOwner { kind: LockKind::File, session, owner: local };
        let ids =
            |kind| [ids::key(kind, volume), ids::upto_key(kind, volume), ids::gap_key(kind, volume, local)];
        let mut keys = vec![
            crate::volume::key(volume),
            inode::key(inode),
            session::key(session),
            log::key(volume, at, 1),
            loss::key(volume, Epoch(local)),
            location::key(chunk),
            dead::key(chunk),
            lock::key(inode, owner, local),
            lock::held_key(session, inode),
            lock::reclaim_key(session),
            log::salvaged_chunk_key(chunk),
            log::logged_key(volume),
            log::replica_key(volume),
            log::salvage_key(volume, at, 1),
            before::key(volume, at, 1, 1),
            loss::path_key(volume, at, inode.0),
            loss::archive_key(volume, at),
            leased::key(volume),
            leased::set_key(volume),
            let_go::key(volume),
        ];
        keys.extend([IdKind::Inode, IdKind::Chunk, IdKind::Session].into_iter().flat_map(ids));
        keys
    }

    proptest! {
        #[test]
        fn a_volumes_ranges_have_all_of_it_and_nothing_else(volume: u16, other: u16, local in 0..1_u64 << LOCAL_ID_BITS) {
            prop_assume!(volume != other);
            let ranges = ranges(VolumeId(volume));
            let covered = |key: &Vec<u8>| ranges.iter().any(|range| range.begin <= *key && *key < range.end);
            for key in keys(VolumeId(volume), local) {
                prop_assert!(covered(&key), "{} isn't covered", hex(&key));
            }
            for key in keys(VolumeId(other), local) {
                prop_assert!(!covered(&key), "{} is another volume's", hex(&key));
            }
            for key in [key(VolumeId(volume)), founding::key(), chunkserver::key("a"), crate::secret::key("k")] {
                prop_assert!(!covered(&key), "{} stays", hex(&key));
            }
        }

        #[test]
        fn round_trips(since_ns: i64, keep_s: u64, cleared: bool) {
            round_trip(&DeletedRecord { since_ns, keep_s, cleared });
        }
    }
}
