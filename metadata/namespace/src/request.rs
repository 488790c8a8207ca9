//! What a request is, seen from outside.

use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::write_piece::Data;
use mooseng_wire::fs::{FsReply, FsRequest};
use mooseng_wire::{ChunkId, InodeId, VolumeId};

use crate::confine::inodes_named;
use crate::context::Room;

/// Whether a replica of the volume may answer the request: a plain read, which needs no promise, session or custodian.
pub fn may_be_near(request: &FsRequest) -> bool {
    matches!(
        request.op,
        Some(
            Op::Lookup(_)
                | Op::GetAttr(_)
                | Op::ReadLink(_)
                | Op::ReadDir(_)
                | Op::ReadExtents(_)
                | Op::Seek(_)
                | Op::GetXattr(_)
                | Op::ListXattr(_)
                | Op::Access(_)
        )
    )
}

/// Whether the request changes something, so that it carries a number and ends in a commit.
pub fn is_change(request: &FsRequest) -> bool {
    match &request.op {
        None => false,
        Some(op) => match op {
            Op::Lookup(_)
            | Op::GetAttr(_)
            | Op::ReadLink(_)
            | Op::ReadDir(_)
            | Op::ReadExtents(_)
            | Op::Seek(_)
            | Op::GetXattr(_)
            | Op::ListXattr(_)
            | Op::StatFs(_)
            | Op::Access(_)
            | Op::Open(_)
            | Op::Release(_)
            | Op::Describe(_)
            | Op::Acquire(_)
            | Op::Reserve(_)
            | Op::ReserveInodes(_)
            | Op::HoldAlone(_)
            | Op::HoldFiles(_)
            | Op::Sync(_)
            | Op::Pace(_)
            | Op::TestLock(_) => false,
            Op::SetAttr(_)
            | Op::Create(_)
            | Op::Mknod(_)
            | Op::Mkdir(_)
            | Op::Symlink(_)
            | Op::Link(_)
            | Op::Unlink(_)
            | Op::Rmdir(_)
            | Op::Rename(_)
            | Op::SetXattr(_)
            | Op::RemoveXattr(_)
            | Op::Write(_)
            | Op::Fallocate(_)
            | Op::CopyRange(_)
            | Op::TouchAtime(_)
            | Op::AllocateChunk(_)
            | Op::SealChunk(_)
            | Op::Lock(_)
            | Op::Unlock(_)
            | Op::CancelLock(_)
            | Op::HoldLocks(_)
            | Op::RecordLocks(_)
            | Op::Tell(_)
            | Op::Reap(_) => true,
        },
    }
}

/// Whether a session may make such a change alone, and tell of it later. Sizes, links, locks and what lies in chunks go the usual way.
pub fn is_told(request: &FsRequest) -> bool {
    match &request.op {
        Some(
            Op::Create(_)
            | Op::Mknod(_)
            | Op::Mkdir(_)
            | Op::Symlink(_)
            | Op::Unlink(_)
            | Op::Rmdir(_)
            | Op::SetXattr(_)
            | Op::RemoveXattr(_),
        ) => true,
        Some(Op::Rename(r)) => !r.exchange,
        Some(Op::SetAttr(r)) => r.size.is_none(),
        Some(Op::Write(r)) => r.pieces.iter().all(|piece| !matches!(piece.data, Some(Data::Run(_)))),
        _ => false,
    }
}

/// The least room for which a change that had this answer may be made.
pub fn needs_room(request: &FsRequest, reply: &FsReply) -> Room {
    match &request.op {
        // One that only opened a file that was there is refused at no time.
        Some(Op::Create(_)) => match &reply.reply {
            Some(Reply::Created(created)) if !created.created => Room::Out,
            _ => Room::Enough,
        },
        Some(Op::Mknod(_) | Op::Mkdir(_) | Op::Symlink(_) | Op::Link(_) | Op::SetXattr(_)) => Room::Enough,
        Some(Op::Write(_) | Op::Fallocate(_) | Op::CopyRange(_) | Op::AllocateChunk(_)) => Room::Scarce,
        Some(Op::Tell(tell)) => {
            let replies = match &reply.reply {
                Some(Reply::Told(told)) => &told.replies[..],
                _ => &[],
            };
            let asked = tell.changes.iter().filter_map(|change| change.request.as_ref());
            asked.zip(replies).map(|(request, reply)| needs_room(request, reply)).min().unwrap_or(Room::Out)
        }
        _ => Room::Out,
    }
}

/// An inode whose data a change reads without changing it: what others hold back of that must be told before.
pub fn reads_from(request: &FsRequest) -> Option<InodeId> {
    match &request.op {
        Some(Op::CopyRange(r)) => Some(InodeId(r.source)),
        _ => None,
    }
}

/// Whether only the master itself may issue it.
pub fn is_internal(request: &FsRequest) -> bool {
    matches!(&request.op, Some(Op::Reap(_)))
}

/// Whether [`crate::Ids::inode`] must be handed in.
pub fn needs_inode(request: &FsRequest) -> bool {
    matches!(&request.op, Some(Op::Create(_) | Op::Mknod(_) | Op::Mkdir(_) | Op::Symlink(_)))
}

/// Whether [`crate::Ids::chunk`] must be handed in, and a placement.
pub fn needs_chunk(request: &FsRequest) -> bool {
    matches!(&request.op, Some(Op::AllocateChunk(_)))
}

/// Whether the request names inodes of several volumes: then it is refused with EXDEV, before anything is looked up.
pub fn names_volumes(request: &FsRequest) -> bool {
    let named = inodes_named(request);
    named.windows(2).any(|pair| pair[0].volume() != pair[1].volume())
}

/// What of a request lies in a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// All that it names.
    All,
    /// Some of it, and some lies in another one: it is refused with EXDEV.
    Across,
    /// Nothing: it is about that other volume.
    Not(VolumeId),
}

/// What of a request of a session lies in that volume. What a session tells is looked at change by change; where one of them names two volumes, that is its
/// own refusal.
pub fn within(volume: VolumeId, request: &FsRequest) -> Within {
    match &request.op {
        Some(Op::Tell(tell)) => {
            let told = tell.changes.iter().filter_map(|change| change.request.as_ref());
            let mut found = told.filter(|told| is_told(told)).map(|told| within(volume, told));
            found.find(|found| matches!(found, Within::Not(_))).unwrap_or(Within::All)
        }
        Some(Op::SealChunk(r)) => found_in(volume, &[ChunkId(r.chunk).volume()]),
        _ => {
            let named = inodes_named(request);
            match named.as_slice() {
                [only] => found_in(volume, &[only.volume()]),
                several => found_in(volume, &several.iter().map(|id| id.volume()).collect::<Vec<_>>()),
            }
        }
    }
}

fn found_in(volume: VolumeId, named: &[VolumeId]) -> Within {
    match named.iter().find(|other| **other != volume) {
        None => Within::All,
        Some(other) if named.iter().all(|of| of == other) => Within::Not(*other),
        Some(_) => Within::Across,
    }
}

/// The volume that the request is about.
pub fn volume_of(request: &FsRequest) -> VolumeId {
    let Some(op) = &request.op else { return VolumeId(0) };
    let id = match op {
        Op::Lookup(r) => r.parent,
        Op::GetAttr(r) => r.inode,
        Op::ReadLink(r) => r.inode,
        Op::ReadDir(r) => r.inode,
        Op::ReadExtents(r) => r.inode,
        Op::Seek(r) => r.inode,
        Op::GetXattr(r) => r.inode,
        Op::ListXattr(r) => r.inode,
        Op::StatFs(r) => r.inode,
        Op::Access(r) => r.inode,
        Op::Open(r) => r.inode,
        Op::Release(r) => r.inode,
        Op::Describe(r) => r.inode,
        Op::Acquire(r) => r.inode,
        Op::Reserve(_) | Op::ReserveInodes(_) | Op::Sync(_) | Op::Pace(_) => 0,
        Op::HoldAlone(r) => r.inode,
        Op::HoldFiles(r) => r.directory,
        Op::TestLock(r) => r.inode,
        Op::Lock(r) => r.inode,
        Op::Unlock(r) => r.inode,
        Op::CancelLock(r) => r.inode,
        Op::HoldLocks(r) => r.inode,
        Op::RecordLocks(r) => r.inode,
        Op::SetAttr(r) => r.inode,
        Op::Create(r) => r.parent,
        Op::Mknod(r) => r.parent,
        Op::Mkdir(r) => r.parent,
        Op::Symlink(r) => r.parent,
        Op::Link(r) => r.inode,
        Op::Unlink(r) => r.parent,
        Op::Rmdir(r) => r.parent,
        Op::Rename(r) => r.parent,
        Op::SetXattr(r) => r.inode,
        Op::RemoveXattr(r) => r.inode,
        Op::Write(r) => r.inode,
        Op::Fallocate(r) => r.inode,
        Op::CopyRange(r) => r.inode,
        Op::TouchAtime(r) => r.touches.first().map_or(0, |t| t.inode),
        Op::AllocateChunk(r) => r.inode,
        // Chunks carry their volume as inodes do.
        Op::SealChunk(r) => r.chunk,
        Op::Tell(r) => {
            let first = r.changes.first().and_then(|change| change.request.as_ref());
            return first
                .map_or(VolumeId(0), |first| if is_told(first) { volume_of(first) } else { VolumeId(0) });
        }
        Op::Reap(r) => r.inodes.first().copied().unwrap_or(0),
    };
    InodeId(id).volume()
}

#[cfg(test)]
mod tests {
    use mooseng_wire::fs::{GetAttr, Rename, SealChunk, StatFs, Tell, TouchAtime, Untold};

    use super::*;

    #[test]
    fn what_a_request_names_lies_in_its_sessions_volume_in_another_or_in_both() {
        let second = VolumeId(1);
        let (here, there) = (InodeId::new(second, 5).0, 5);
        let request = |op| FsRequest { caller: None, op: Some(op) };
        let rename =
            |parent, new_parent| request(Op::Rename(Rename { parent, new_parent, ..Rename::default() }));
        let tell = |requests: Vec<FsRequest>| {
            let changes = requests.into_iter().map(|r| Untold { request: Some(r), ..Untold::default() });
            request(Op::Tell(Tell { changes: changes.collect() }))
        };
        for (asked, found) in [
            (request(Op::GetAttr(GetAttr { inode: here })), Within::All),
            (request(Op::GetAttr(GetAttr { inode: there })), Within::Not(VolumeId(0))),
            (request(Op::StatFs(StatFs { inode: there })), Within::Not(VolumeId(0))),
            (request(Op::SealChunk(SealChunk { chunk: here, ..SealChunk::default() })), Within::All),
            (
                request(Op::SealChunk(SealChunk { chunk: there, ..SealChunk::default() })),
                Within::Not(VolumeId(0)),
            ),
            (request(Op::TouchAtime(TouchAtime::default())), Within::All),
            (rename(here, here), Within::All),
            (rename(here, there), Within::Across),
            (rename(there, here), Within::Across),
            (rename(there, there), Within::Not(VolumeId(0))),
            (tell(vec![]), Within::All),
            (tell(vec![rename(here, here), rename(here, there)]), Within::All),
            (tell(vec![rename(here, here), rename(there, there)]), Within::Not(VolumeId(0))),
        ] {
            assert_eq!(within(second, &asked), found, "{asked:?}");
        }
    }
}
