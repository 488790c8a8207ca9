//! Where a directory names another volume (docs/decisions/0032-volumes.md): the parent's part of joining a volume.
//!
//! The name of the volume lies in the directory's own record. It stays a directory with its attributes, its name and its place, and has no entries from
//! then on: whoever asks for one is told that they are elsewhere ([`Errno::EREMOTE`]). As on Linux where something is mounted, it is neither removed nor
//! renamed, nor replaced by something else ([`Errno::EBUSY`]). Its attributes aren't changed either: they are those of the volume's root, once somebody
//! crosses.
//!
//! Both changes clear the directory's entries, of which there are none. So the log says of them what is true: whatever anybody was told of the names in
//! this directory counts no more. Replicas take it back by that, and home regions hold it back until it is in the sync set.

use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::{Record, SchemaError, dirent};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::fact::Fact;
use mooseng_wire::{InodeId, VolumeId};

use crate::errno::Errno;
use crate::error::OpError;
use crate::touched::Touched;
use crate::upkeep;
use crate::view::{is_directory, later};

/// Why no volume is joined at a directory.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// The inode isn't there, or was removed.
    #[error("there is no such directory; make it first (`mkdir`)")]
    NotThere,
    /// It is something else.
    #[error("it isn't a directory: a volume is joined at an empty directory")]
    NotADirectory,
    /// It has no name.
    #[error("it is the root directory of a volume: a volume is joined at an empty directory below it")]
    Root,
    /// It has entries.
    #[error(
        "the directory isn't empty: a volume is joined at an empty directory. Move what is in it elsewhere, join the volume, and move it back then"
    )]
    NotEmpty,
    /// Another volume is there.
    #[error("volume {0} is joined at it already (`mooseng volume info {0}`)")]
    Taken(VolumeId),
}

/// Refuses what concerns the entries or the attributes of a directory at which a volume is joined.
pub(crate) fn not_covered(record: &InodeRecord) -> Result<(), Errno> {
    if record.joined == 0 { Ok(()) } else { Err(Errno::EREMOTE) }
}

/// Refuses what would take such a directory from its place.
pub(crate) fn not_busy(record: &InodeRecord) -> Result<(), Errno> {
    if record.joined == 0 { Ok(()) } else { Err(Errno::EBUSY) }
}

async fn load<T: Transaction>(tx: &T, id: InodeId, read: Read) -> Result<Option<InodeRecord>, OpError> {
    let value = tx.get(&inode::key(id), read).await?;
    Ok(value.map(|value| InodeRecord::from_value(&value)).transpose()?)
}

/// The volume that is joined at a directory, if one is.
pub async fn joined_at<T: Transaction>(tx: &T, directory: InodeId) -> Result<Option<VolumeId>, OpError> {
    Ok(load(tx, directory, Read::Snapshot).await?.and_then(|record| record.joined()))
}

/// The volume that is joined at a directory on a path's way through `volume`, or at its end, and how many bytes of the path lead to that directory. Where it
/// leads is that volume's to say. None also for a path of which something isn't there.
pub async fn crossing<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    path: &[u8],
) -> Result<Option<(VolumeId, usize)>, OpError> {
    let (mut directory, mut walked) = (InodeId::root_of(volume), 0);
    for (nth, name) in path.split(|byte| *byte == b'/').enumerate() {
        walked += name.len() + usize::from(nth > 0);
        if name.is_empty() {
            continue;
        }
        let Some(next) = upkeep::named_in(tx, directory, name).await? else { return Ok(None) };
        if let Some(other) = joined_at(tx, next).await? {
            return Ok(Some((other, walked)));
        }
        directory = next;
    }
    Ok(None)
}

/// The volume that is joined at a directory above a path of `volume`: what lies at the path is that one's to say.
pub async fn on_the_way<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    path: &[u8],
) -> Result<Option<VolumeId>, OpError> {
    let found = crossing(tx, volume, path).await?;
    let leads_on = |walked: usize| path[walked..].iter().any(|byte| *byte != b'/');
    Ok(found.filter(|(_, walked)| leads_on(*walked)).map(|(other, _)| other))
}

/// The record of a directory at which a volume may be joined, or that one is. An entry that is made there meanwhile conflicts.
async fn fit<T: Transaction>(tx: &T, directory: InodeId) -> Result<Result<InodeRecord, Refused>, OpError> {
    let Some(record) = load(tx, directory, Read::Conflicting).await?.filter(|record| !record.orphan) else {
        return Ok(Err(Refused::NotThere));
    };
    if !is_directory(record.kind) {
        return Ok(Err(Refused::NotADirectory));
    }
    if record.links.is_empty() {
        return Ok(Err(Refused::Root));
    }
    Ok(if has_entries(tx, directory).await? { Err(Refused::NotEmpty) } else { Ok(record) })
}

/// Whether a directory has entries. One that is made there meanwhile conflicts.
pub async fn has_entries<T: Transaction>(tx: &T, directory: InodeId) -> Result<bool, OpError> {
    let limit = RangeLimit { pairs_max: 1, ..RangeLimit::default() };
    let entries = tx.get_range(dirent::range(directory), limit, Read::Conflicting).await?;
    Ok(!entries.pairs.is_empty())
}

/// Whether a volume may be joined at a directory, or `volume` is.
pub async fn may_join<T: Transaction>(
    tx: &T,
    directory: InodeId,
    volume: Option<VolumeId>,
) -> Result<Result<(), Refused>, OpError> {
    Ok(fit(tx, directory).await?.and_then(|record| match record.joined() {
        Some(other) if Some(other) != volume => Err(Refused::Taken(other)),
        _ => Ok(()),
    }))
}

/// Joins a volume at an empty directory. Answers whether that is new: doing it again does no harm.
pub async fn join<T: Transaction>(
    tx: &T,
    touched: &Touched,
    now_ns: i64,
    directory: InodeId,
    volume: VolumeId,
) -> Result<Result<bool, Refused>, OpError> {
    if volume.0 == 0 || volume == directory.volume() {
        return Err(OpError::Malformed("the root volume, or a volume in itself, can't be joined"));
    }
    let record = match fit(tx, directory).await? {
        Ok(record) => record,
        Err(refused) => return Ok(Err(refused)),
    };
    match record.joined() {
        Some(there) if there == volume => Ok(Ok(false)),
        Some(other) => Ok(Err(Refused::Taken(other))),
        None => {
            put(tx, touched, directory, InodeRecord { joined: volume.0.into(), ..record }, now_ns);
            Ok(Ok(true))
        }
    }
}

/// Lets go of a volume: the directory is an ordinary one from then on, and empty. Answers whether it named the volume.
pub async fn let_go<T: Transaction>(
    tx: &T,
    touched: &Touched,
    now_ns: i64,
    directory: InodeId,
    volume: VolumeId,
) -> Result<bool, OpError> {
    let Some(record) = load(tx, directory, Read::Conflicting).await? else { return Ok(false) };
    if record.joined() != Some(volume) {
        return Ok(false);
    }
    if has_entries(tx, directory).await? {
        return Err(SchemaError::damaged("inode", "a volume is joined at it, and it has entries").into());
    }
    put(tx, touched, directory, InodeRecord { joined: 0, ..record }, now_ns);
    Ok(true)
}

/// Stores the directory's record. Whoever has been told anything of the directory, of a name in it, or of its own name, has to look again; and who has
/// its parent alone may have given it another name.
fn put<T: Transaction>(tx: &T, touched: &Touched, directory: InodeId, mut record: InodeRecord, now_ns: i64) {
    touched.note(Fact::Inode(directory));
    touched.note(Fact::Directory(directory));
    for link in &record.links {
        touched.note(Fact::Entry(InodeId(link.parent), link.name.clone()));
    }
    record.ctime_ns = later(record.ctime_ns, now_ns);
    tx.set(&inode::key(directory), &record.to_value());
    tx.clear_range(dirent::range(directory));
}
