//! Sessions that are confined to a subtree: whatever a request names must lie in it.
//!
//! An inode carries the names that lead to it, so that the way up is a read for each directory on it. One that has lost its last name, and is open
//! still, lies where it had that name.

use mooseng_schema::Record;
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::lock;
use mooseng_schema::orphan::{self, OrphanRecord};
use mooseng_store::{Read, Transaction};
use mooseng_wire::InodeId;
use mooseng_wire::fs::FsRequest;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;

use crate::errno::Errno;
use crate::error::OpError;
use crate::trash;
use crate::view::View;

/// Names of one inode that are looked at, beyond those in its record.
const LINKS_MAX: usize = 256;
/// Directories on the way up. What lies deeper, no confined session sees.
const DEPTH_MAX: usize = 4_096;

/// The inodes that a request names.
pub fn inodes_named(request: &FsRequest) -> Vec<InodeId> {
    let Some(op) = &request.op else { return Vec::new() };
    let ids = match op {
        Op::Lookup(r) => vec![r.parent],
        Op::GetAttr(r) => vec![r.inode],
        Op::ReadLink(r) => vec![r.inode],
        Op::ReadDir(r) => vec![r.inode],
        Op::ReadExtents(r) => vec![r.inode],
        Op::Seek(r) => vec![r.inode],
        Op::GetXattr(r) => vec![r.inode],
        Op::ListXattr(r) => vec![r.inode],
        Op::StatFs(r) => vec![r.inode],
        Op::Access(r) => vec![r.inode],
        Op::Open(r) => vec![r.inode],
        // It takes nothing that the session doesn't have.
        Op::Release(_) => vec![],
        Op::Describe(r) => vec![r.inode],
        Op::Acquire(r) => vec![r.inode],
        // Names accounts, not inodes.
        Op::Reserve(_) | Op::ReserveInodes(_) | Op::Sync(_) | Op::Pace(_) => vec![],
        Op::HoldAlone(r) => vec![r.inode],
        Op::HoldFiles(r) => std::iter::once(r.directory).chain(r.inodes.iter().copied()).collect(),
        // Each of its changes is looked at when its turn comes: what one names may have been made by the one before.
        Op::Tell(_) => vec![],
        Op::TestLock(r) => vec![r.inode],
        Op::Lock(r) => vec![r.inode],
        Op::Unlock(r) => vec![r.inode],
        Op::CancelLock(r) => vec![r.inode],
        Op::HoldLocks(r) => vec![r.inode],
        Op::RecordLocks(r) => vec![r.inode],
        Op::SetAttr(r) => vec![r.inode],
        Op::Create(r) => vec![r.parent],
        Op::Mknod(r) => vec![r.parent],
        Op::Mkdir(r) => vec![r.parent],
        Op::Symlink(r) => vec![r.parent],
        Op::Link(r) => vec![r.inode, r.new_parent],
        Op::Unlink(r) => vec![r.parent],
        Op::Rmdir(r) => vec![r.parent],
        Op::Rename(r) => vec![r.parent, r.new_parent],
        Op::SetXattr(r) => vec![r.inode],
        Op::RemoveXattr(r) => vec![r.inode],
        Op::Write(r) => vec![r.inode],
        Op::Fallocate(r) => vec![r.inode],
        Op::CopyRange(r) => vec![r.source, r.inode],
        Op::TouchAtime(r) => r.touches.iter().map(|touch| touch.inode).collect(),
        Op::AllocateChunk(r) => vec![r.inode],
        // A chunk belongs to the session that fills it.
        Op::SealChunk(_) => vec![],
        Op::Reap(r) => r.inodes.clone(),
    };
    ids.into_iter().map(InodeId).collect()
}

/// Refuses a request that names what lies outside of its session's subtree, as if it weren't there.
pub async fn admit<T: Transaction>(view: &View<'_, T>, request: &FsRequest) -> Result<(), OpError> {
    let Some(root) = view.ctx.confined else { return Ok(()) };
    for id in inodes_named(request) {
        if !is_within(view, id, root).await? && !gives_up(view, request, id).await? {
            return Err(Errno::ESTALE.into());
        }
    }
    Ok(())
}

/// Whether the session gives up a lock that it has of an inode. It may have been moved out since it was locked: nobody could lock it any more as long as the session
/// lives.
async fn gives_up<T: Transaction>(
    view: &View<'_, T>,
    request: &FsRequest,
    id: InodeId,
) -> Result<bool, OpError> {
    if !matches!(&request.op, Some(Op::Unlock(_) | Op::CancelLock(_))) {
        return Ok(false);
    }
    let held = view.tx.get(&lock::held_key(view.ctx.session, id), Read::Snapshot).await?;
    Ok(held.is_some())
}

/// Takes out of an answer what lies outside.
pub async fn redact<T: Transaction>(view: &View<'_, T>, reply: &mut Reply) -> Result<(), OpError> {
    let Some(root) = view.ctx.confined else { return Ok(()) };
    if let Reply::Description(description) = reply {
        let mut inside = Vec::new();
        for link in std::mem::take(&mut description.links) {
            if is_within(view, InodeId(link.parent), root).await? {
                inside.push(link);
            }
        }
        description.links = inside;
    }
    Ok(())
}

async fn is_within<T: Transaction>(view: &View<'_, T>, id: InodeId, root: InodeId) -> Result<bool, OpError> {
    if id == root {
        return Ok(true);
    }
    let Some(record) = read(view, id).await? else { return Ok(false) };
    if record.orphan {
        return leads_up_to(view, id, root).await;
    }
    for link in view.links(id, &record, LINKS_MAX).await? {
        if leads_up_to(view, InodeId(link.parent), root).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the way up by first names meets `root`.
async fn leads_up_to<T: Transaction>(
    view: &View<'_, T>,
    from: InodeId,
    root: InodeId,
) -> Result<bool, OpError> {
    let mut at = from;
    for _ in 0..DEPTH_MAX {
        if at == root {
            return Ok(true);
        }
        let parent = match read(view, at).await? {
            Some(record) if record.orphan => last_parent(view, at, &record).await?,
            Some(record) => record.links.first().map(|link| link.parent),
            None => None,
        };
        match parent {
            Some(parent) => at = InodeId(parent),
            None => return Ok(false),
        }
    }
    Ok(false)
}

/// The directory in which an inode had its last name.
async fn last_parent<T: Transaction>(
    view: &View<'_, T>,
    id: InodeId,
    record: &InodeRecord,
) -> Result<Option<u64>, OpError> {
    if let Some(deletion) = trash::deletion(view.tx, id, record, Read::Snapshot).await? {
        return Ok(Some(deletion.parent));
    }
    let value = view.tx.get(&orphan::key(id), Read::Snapshot).await?;
    let orphan = value.map(|value| OrphanRecord::from_value(&value)).transpose()?;
    Ok(orphan.map(|orphan| orphan.parent))
}

/// Without a conflict: a directory that is moved out at the same moment was inside a moment ago.
async fn read<T: Transaction>(view: &View<'_, T>, id: InodeId) -> Result<Option<InodeRecord>, OpError> {
    let value = view.tx.get(&inode::key(id), Read::Snapshot).await?;
    Ok(value.map(|value| InodeRecord::from_value(&value)).transpose()?)
}
