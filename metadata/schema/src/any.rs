//! Every kind of record from its bytes: for whoever looks at a whole store, as the check of its consistency does.

use std::borrow::Cow;

use bytes::Bytes;
use foundationdb_tuple::{PackResult, TupleDepth, TupleUnpack, unpack};
use mooseng_wire::{ChunkId, InodeId, VolumeId};

use crate::chunk::{ChunkRecord, ChunkUse};
use crate::dead::DeadRecord;
use crate::dirent::{Cookie, DirentRecord};
use crate::extent::ExtentRecord;
use crate::inode::{InodeRecord, LinkName};
use crate::location::LocationRecord;
use crate::number;
use crate::quota::{self, Account, QuotaRecord, Usage, WorkRecord};
use crate::record::{Record, SchemaError};
use crate::staged::Staged;
use crate::storage_class::StorageClassRecord;
use crate::tag::{RegionTag, VolumeTag};
use crate::trash::TrashRecord;
use crate::volume::VolumeRecord;

/// A record with what its key says.
#[derive(Clone, Debug, PartialEq)]
pub enum Any {
    /// A volume.
    Volume(VolumeId, VolumeRecord),
    /// An inode.
    Inode(InodeId, InodeRecord),
    /// A further name of an inode.
    Link(InodeId, LinkName),
    /// An entry of a directory.
    Dirent(InodeId, Cookie, DirentRecord),
    /// A directory's counter, by its number ([`crate::directory::Counter`]).
    Counter(InodeId, u64, u64),
    /// An extent, with its offset.
    Extent(InodeId, u64, ExtentRecord),
    /// An extended attribute, with the bytes of its name.
    Xattr(InodeId, usize),
    /// A chunk.
    Chunk(ChunkId, ChunkRecord),
    /// An inode's use of a chunk.
    ChunkRef(ChunkId, InodeId, ChunkUse),
    /// The mark of an orphan.
    Orphan(InodeId),
    /// The mark of a file with dead extents.
    Trim(InodeId),
    /// An inode in the trash, with the time in its key until which it is there.
    Trash(InodeId, i64),
    /// What a file counts as staged.
    Staged(InodeId, Staged),
    /// A staged piece that a file lists, by its offset.
    StagedPiece(InodeId, u64),
    /// A packable piece that a file lists, by its offset.
    Packable(InodeId, u64),
    /// A shard of a volume's statistic, by its number ([`crate::statistics::Statistic`]).
    Statistic(VolumeId, u64, u64),
    /// What a shard counts for an account.
    QuotaUsage(VolumeId, Account, Usage),
    /// An account's limits.
    Quota(VolumeId, Account, QuotaRecord),
    /// A storage class, by its id.
    StorageClass(VolumeId, u32, StorageClassRecord),
    /// Where a chunk lies.
    Location(ChunkId, LocationRecord),
    /// A dead chunk.
    Dead(ChunkId, DeadRecord),
    /// The next id of a kind ([`crate::ids::IdKind`]) to give in a volume.
    Ids(VolumeId, u64, u64),
    /// A record of another kind: sessions, secrets, and what a newer release keeps.
    Other,
}

/// What is left of a key behind its head.
struct Tail<'k>(&'k [u8]);

impl<'k> TupleUnpack<'k> for Tail<'k> {
    fn unpack(input: &'k [u8], _: TupleDepth) -> PackResult<(&'k [u8], Self)> {
        Ok((&[], Tail(input)))
    }
}

/// The elements of a tail, of that type.
fn tail<'k, T: TupleUnpack<'k>>(tag: u16, Tail(rest): &Tail<'k>) -> Result<T, SchemaError> {
    unpack(rest).map_err(|_| SchemaError::Key { tag: tag as u8 })
}

impl Any {
    /// The volume that it is of, or is about; none for one of another kind.
    pub fn volume(&self) -> Option<VolumeId> {
        Some(match self {
            Self::Volume(volume, _)
            | Self::Statistic(volume, ..)
            | Self::QuotaUsage(volume, ..)
            | Self::Quota(volume, ..)
            | Self::StorageClass(volume, ..)
            | Self::Ids(volume, ..) => *volume,
            Self::Inode(inode, _)
            | Self::Link(inode, _)
            | Self::Dirent(inode, ..)
            | Self::Counter(inode, ..)
            | Self::Extent(inode, ..)
            | Self::Xattr(inode, _)
            | Self::Orphan(inode)
            | Self::Trim(inode)
            | Self::Trash(inode, _)
            | Self::Staged(inode, _)
            | Self::StagedPiece(inode, _)
            | Self::Packable(inode, _) => inode.volume(),
            Self::Chunk(chunk, _)
            | Self::ChunkRef(chunk, ..)
            | Self::Location(chunk, _)
            | Self::Dead(chunk, _) => chunk.volume(),
            Self::Other => return None,
        })
    }

    /// Reads a pair of the store.
    pub fn read(key: &[u8], value: &Bytes) -> Result<Self, SchemaError> {
        let (space, rest): (Cow<'_, str>, Tail<'_>) = match unpack(key) {
            Ok(head) => head,
            Err(_) => return Err(SchemaError::Key { tag: 0 }),
        };
        match &*space {
            "v" => {
                let (volume, tag, rest): (u16, u16, Tail<'_>) = tail(0, &rest)?;
                Self::of_volume(VolumeId(volume), tag, &rest, value)
            }
            "r" => {
                let (tag, rest): (u16, Tail<'_>) = tail(0, &rest)?;
                Self::of_region(tag, &rest, value)
            }
            _ => Ok(Self::Other),
        }
    }

    fn of_volume(volume: VolumeId, tag: u16, rest: &Tail<'_>, value: &Bytes) -> Result<Self, SchemaError> {
        let is = |kind: VolumeTag| tag == kind as u16;
        let inode = || tail::<(u64, u64)>(tag, rest).map(|(inode, _)| InodeId(inode));
        let pair = || tail::<(u64, u64, u64)>(tag, rest).map(|(first, second, _)| (first, second));
        Ok(if is(VolumeTag::Volume) {
            Self::Volume(volume, VolumeRecord::from_value(value)?)
        } else if is(VolumeTag::Inode) {
            Self::Inode(inode()?, InodeRecord::from_value(value)?)
        } else if is(VolumeTag::Link) {
            let (inode, parent, name, _): (u64, u64, Vec<u8>, u64) = tail(tag, rest)?;
            Self::Link(InodeId(inode), LinkName { parent, name: name.into() })
        } else if is(VolumeTag::Dirent) {
            let (directory, cookie) = pair()?;
            Self::Dirent(InodeId(directory), Cookie(cookie), DirentRecord::from_value(value)?)
        } else if is(VolumeTag::Directory) {
            let (directory, counter) = pair()?;
            Self::Counter(InodeId(directory), counter, number::decode(Some(value))?)
        } else if is(VolumeTag::Extent) {
            let (inode, offset) = pair()?;
            Self::Extent(InodeId(inode), offset, ExtentRecord::from_value(value)?)
        } else if is(VolumeTag::Xattr) {
            let (inode, name, _): (u64, Vec<u8>, u64) = tail(tag, rest)?;
            Self::Xattr(InodeId(inode), name.len())
        } else if is(VolumeTag::Chunk) {
            let (chunk, _): (u64, u64) = tail(tag, rest)?;
            Self::Chunk(ChunkId(chunk), ChunkRecord::from_value(value)?)
        } else if is(VolumeTag::ChunkRef) {
            let (chunk, inode) = pair()?;
            Self::ChunkRef(ChunkId(chunk), InodeId(inode), ChunkUse::from_value(Some(value))?)
        } else if is(VolumeTag::Orphan) {
            Self::Orphan(inode()?)
        } else if is(VolumeTag::Trim) {
            Self::Trim(inode()?)
        } else if is(VolumeTag::Trash) {
            let (until_ns, inode, _): (i64, u64, u64) = tail(tag, rest)?;
            TrashRecord::from_value(value)?;
            Self::Trash(InodeId(inode), until_ns)
        } else if is(VolumeTag::QuotaUsage) {
            let (kind, id, what, _, _): (u16, u64, u16, u64, u64) = tail(tag, rest)?;
            let usage = quota::usage_of((kind, id, what), value)?;
            usage.map_or(Self::Other, |(account, usage)| Self::QuotaUsage(volume, account, usage))
        } else if is(VolumeTag::Quota) {
            let (kind, id, _): (u16, u64, u64) = tail(tag, rest)?;
            let record = QuotaRecord::from_value(value)?;
            Account::of_pair(kind, id).map_or(Self::Other, |account| Self::Quota(volume, account, record))
        } else if is(VolumeTag::QuotaWork) {
            pair()?;
            WorkRecord::from_value(value)?;
            Self::Other
        } else if is(VolumeTag::StorageClass) {
            let (class, _): (u32, u64) = tail(tag, rest)?;
            Self::StorageClass(volume, class, StorageClassRecord::from_value(value)?)
        } else if is(VolumeTag::Staged) {
            Self::Staged(inode()?, Staged::decode(Some(value))?)
        } else if is(VolumeTag::StagedPiece) {
            let (inode, offset) = pair()?;
            Self::StagedPiece(InodeId(inode), offset)
        } else if is(VolumeTag::Packable) {
            let (inode, offset) = pair()?;
            Self::Packable(InodeId(inode), offset)
        } else if is(VolumeTag::Statistic) {
            let (which, _) = pair()?;
            Self::Statistic(volume, which, number::decode(Some(value))?)
        } else {
            Self::Other
        })
    }

    fn of_region(tag: u16, rest: &Tail<'_>, value: &Bytes) -> Result<Self, SchemaError> {
        let is = |kind: RegionTag| tag == kind as u16;
        let chunk = || tail::<(u64,)>(tag, rest).map(|(chunk,)| ChunkId(chunk));
        Ok(if is(RegionTag::Location) {
            Self::Location(chunk()?, LocationRecord::from_value(value)?)
        } else if is(RegionTag::Dead) {
            Self::Dead(chunk()?, DeadRecord::from_value(value)?)
        } else if is(RegionTag::Ids) {
            let (kind, volume): (u64, u16) = tail(tag, rest)?;
            Self::Ids(VolumeId(volume), kind, number::decode(Some(value))?)
        } else {
            Self::Other
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Counter;
    use crate::statistics::Statistic;
    use crate::{
        chunk, dead, directory, dirent, extent, ids, inode, location, orphan, packable, session, staged,
        statistics,
    };
    use crate::{storage_class, trash, volume, xattr};
    use mooseng_wire::SessionId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_record_is_read_as_what_it_is(id: u64, other: u64, n: u64, name in prop::collection::vec(any::<u8>(), 1..9)) {
            let (i, c) = (InodeId(id), ChunkId(id));
            let counted = Bytes::copy_from_slice(&number::encode(n));
            let name = Bytes::from(name);
            let entry = DirentRecord { name: name.clone(), inode: other, kind: 1 };
            let used = ChunkUse { extents: n, bytes: other };
            let pairs: Vec<(Vec<u8>, Bytes, Any)> = vec![
                (volume::key(VolumeId(7)), VolumeRecord::default().to_value().into(), Any::Volume(VolumeId(7), VolumeRecord::default())),
                (inode::key(i), InodeRecord { size: n, ..Default::default() }.to_value().into(), Any::Inode(i, InodeRecord { size: n, ..Default::default() })),
                (inode::link_key(i, InodeId(other), &name), Bytes::new(), Any::Link(i, LinkName { parent: other, name: name.clone() })),
                (dirent::key(i, Cookie(n)), entry.to_value().into(), Any::Dirent(i, Cookie(n), entry)),
                (directory::key(i, Counter::Subdirectories), counted.clone(), Any::Counter(i, 1, n)),
                (extent::key(i, n), ExtentRecord { chunk: other, ..Default::default() }.to_value().into(), Any::Extent(i, n, ExtentRecord { chunk: other, ..Default::default() })),
                (xattr::key(i, &name), Bytes::from_static(b"\x01"), Any::Xattr(i, name.len())),
                (chunk::key(c), ChunkRecord { length: n, ..Default::default() }.to_value().into(), Any::Chunk(c, ChunkRecord { length: n, ..Default::default() })),
                (chunk::reference_key(c, InodeId(other)), Bytes::copy_from_slice(&used.to_value()), Any::ChunkRef(c, InodeId(other), used)),
                (orphan::key(i), Bytes::from_static(b"\x01"), Any::Orphan(i)),
                (orphan::trim_key(i), Bytes::new(), Any::Trim(i)),
                (trash::key(n as i64, i), TrashRecord::default().to_value().into(), Any::Trash(i, n as i64)),
                (staged::key(i), Bytes::copy_from_slice(&Staged { bytes: 9, pieces: 2 }.encode()), Any::Staged(i, Staged { bytes: 9, pieces: 2 })),
                (staged::piece_key(i, n), Bytes::new(), Any::StagedPiece(i, n)),
                (packable::key(i, n), Bytes::new(), Any::Packable(i, n)),
                (storage_class::key(VolumeId(7), n as u32), StorageClassRecord { copies: 3, ..Default::default() }.to_value().into(), Any::StorageClass(VolumeId(7), n as u32, StorageClassRecord { copies: 3, ..Default::default() })),
                (statistics::key(i, Statistic::Bytes), counted.clone(), Any::Statistic(i.volume(), 1, n)),
                (location::key(c), LocationRecord { epoch: n, ..Default::default() }.to_value().into(), Any::Location(c, LocationRecord { epoch: n, ..Default::default() })),
                (dead::key(c), DeadRecord { epoch: n, ..Default::default() }.to_value().into(), Any::Dead(c, DeadRecord { epoch: n, ..Default::default() })),
                (ids::key(ids::IdKind::Chunk, VolumeId(3)), counted, Any::Ids(VolumeId(3), 2, n)),
                (session::key(SessionId(id)), Bytes::from_static(b"\x01"), Any::Other),
            ];
            for (key, value, expected) in pairs {
                prop_assert_eq!(Any::read(&key, &value).unwrap(), expected);
            }
        }

        #[test]
        fn nonsense_is_an_error_or_nothing(key in prop::collection::vec(any::<u8>(), 0..40), value in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Any::read(&key, &value.into());
        }
    }
}
