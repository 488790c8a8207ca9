//! Locks that sessions hold on inodes (records of the region). A record holds one range of one owner; ranges of one owner and level that
//! touch are one record. Beside them, so that an ended session's locks are found, the inodes on which each session holds any.

use bytes::Bytes;
use mooseng_store::{KeyRange, prefix_range};
use mooseng_wire::fs::LockKind;
use mooseng_wire::{InodeId, LOCAL_ID_BITS, SessionId, VolumeId};

use crate::key::{parse_region_key, region_key};
use crate::record::{Record, SchemaError};
use crate::tag::RegionTag;

/// Whose lock it is: an owner of a session, as the session tells them apart. An owner's range locks and file locks know nothing of each
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockOwner {
    /// Ranges or whole files.
    pub kind: LockKind,
    /// The session.
    pub session: SessionId,
    /// The session's word for the owner.
    pub owner: u64,
}

/// A held range.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LockRecord {
    /// Its last byte.
    #[prost(fixed64, tag = "1")]
    pub end: u64,
    /// Whether nobody else may hold any of it.
    #[prost(bool, tag = "2")]
    pub exclusive: bool,
    /// The process that took it.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// The life of the session in which it was taken. A later life doesn't have it.
    #[prost(uint64, tag = "4")]
    pub incarnation: u64,
    /// The session's number for the wait by which it came; 0 without one.
    #[prost(uint64, tag = "5")]
    pub wait: u64,
}

impl Record for LockRecord {
    const NAME: &'static str = "lock";
}

/// That a session which lived under an earlier home has its locks here, too.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReclaimRecord {
    /// The home epoch under which it reclaimed them.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// It has taken or given up locks since: what it says that it had before is old.
    #[prost(bool, tag = "2")]
    pub closed: bool,
}

impl Record for ReclaimRecord {
    const NAME: &'static str = "reclaim of locks";
}

/// The key of a session's [`ReclaimRecord`].
pub fn reclaim_key(session: SessionId) -> Vec<u8> {
    region_key(RegionTag::LockReclaim, &(session.0,))
}

/// The key of the range that begins at `start`.
pub fn key(inode: InodeId, owner: LockOwner, start: u64) -> Vec<u8> {
    let LockOwner { kind, session, owner } = owner;
    region_key(RegionTag::Lock, &(inode.0, kind as u16, session.0, owner, start))
}

/// All locks on an inode.
pub fn range(inode: InodeId) -> KeyRange {
    prefix_range(&region_key(RegionTag::Lock, &(inode.0,)))
}

/// All locks on inodes of a volume.
pub fn range_of_volume(volume: VolumeId) -> KeyRange {
    let all = prefix_range(&region_key(RegionTag::Lock, &()));
    let from = |volume: u64| Bytes::from(region_key(RegionTag::Lock, &(volume << LOCAL_ID_BITS,)));
    let end = if volume.0 == u16::MAX { all.end } else { from(u64::from(volume.0) + 1) };
    KeyRange { begin: from(volume.0.into()), end }
}

/// Owner and start of a key in [`range`].
pub fn parse_key(key: &[u8]) -> Result<(InodeId, LockOwner, u64), SchemaError> {
    let (inode, kind, session, owner, start): (u64, u16, u64, u64, u64) =
        parse_region_key(RegionTag::Lock, key)?;
    let kind = LockKind::try_from(i32::from(kind)).unwrap_or_default();
    Ok((InodeId(inode), LockOwner { kind, session: SessionId(session), owner }, start))
}

/// The key that says that a session holds locks on an inode. Its value is empty.
pub fn held_key(session: SessionId, inode: InodeId) -> Vec<u8> {
    region_key(RegionTag::LockHeld, &(session.0, inode.0))
}

/// What a session holds locks on, from the inode behind `after` on.
pub fn held_range(session: SessionId, after: Option<InodeId>) -> KeyRange {
    let all = prefix_range(&region_key(RegionTag::LockHeld, &(session.0,)));
    behind(all, after.map(|inode| held_key(session, inode)))
}

/// What sessions hold locks on, from the pair behind `after` on.
pub fn all_held_range(after: Option<(SessionId, InodeId)>) -> KeyRange {
    let all = prefix_range(&region_key(RegionTag::LockHeld, &()));
    behind(all, after.map(|(session, inode)| held_key(session, inode)))
}

/// Session and inode of a key in [`held_range`] or [`all_held_range`].
pub fn parse_held_key(key: &[u8]) -> Result<(SessionId, InodeId), SchemaError> {
    let (session, inode): (u64, u64) = parse_region_key(RegionTag::LockHeld, key)?;
    Ok((SessionId(session), InodeId(inode)))
}

fn behind(all: KeyRange, after: Option<Vec<u8>>) -> KeyRange {
    let Some(mut begin) = after else { return all };
    begin.push(0);
    KeyRange { begin: begin.into(), end: all.end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    fn owner(session: u64, owner: u64) -> LockOwner {
        LockOwner { kind: LockKind::File, session: SessionId(session), owner }
    }

    #[test]
    fn a_volumes_locks_are_those_on_its_inodes() {
        for volume in [0, 7, u16::MAX] {
            let range = range_of_volume(VolumeId(volume));
            let is_in = |volume: u16, local: u64| {
                let key = key(InodeId::new(VolumeId(volume), local), owner(3, 4), 5);
                range.begin.as_ref() <= key.as_slice() && key.as_slice() < range.end.as_ref()
            };
            assert!(is_in(volume, 0) && is_in(volume, (1 << LOCAL_ID_BITS) - 1));
            assert!(
                !is_in(volume.wrapping_add(1), 0) && !is_in(volume.wrapping_sub(1), (1 << LOCAL_ID_BITS) - 1)
            );
        }
    }

    #[test]
    fn bytes_stay_as_they_were() {
        let record = LockRecord { end: 9, exclusive: true, pid: 7, incarnation: 2, wait: 0 };
        golden(&record, "01090900000000000000100118072002");
        assert_eq!(hex(&key(InodeId(2), owner(3, 4), 5)), "02720015061502150215031504 1505".replace(' ', ""));
        assert_eq!(hex(&held_key(SessionId(3), InodeId(2))), "027200150715031502");
        golden(&ReclaimRecord { epoch: 4, closed: true }, "0108041001");
        assert_eq!(hex(&reclaim_key(SessionId(3))), "0272001515 1503".replace(' ', ""));
    }

    proptest! {
        #[test]
        fn round_trips(inode: u64, session: u64, number: u64, start: u64, end: u64, exclusive: bool, pid: u32, incarnation: u64, wait: u64) {
            round_trip(&LockRecord { end, exclusive, pid, incarnation, wait });
            let (inode, session) = (InodeId(inode), SessionId(session));
            let made = key(inode, owner(session.0, number), start);
            prop_assert_eq!(parse_key(&made).unwrap(), (inode, owner(session.0, number), start));
            let held = held_key(session, inode);
            prop_assert_eq!(parse_held_key(&held).unwrap(), (session, inode));
            prop_assert!(held_range(session, Some(inode)).begin > held);
        }
    }
}
