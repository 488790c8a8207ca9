//! What a request is about: the inodes that put it in order with what was made alone and with what is under way.

use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{FsRequest, fs_reply::Reply};

/// What a request that is sent the usual way is about, and whether it must come after all that is untold, or only after what is about the same.
pub(crate) fn about(op: &Op) -> (Vec<u64>, bool) {
    match op {
        Op::Lookup(r) => (vec![r.parent], true),
        Op::ReadDir(r) => (vec![r.inode], true),
        Op::HoldAlone(r) => (vec![r.inode], true),
        Op::HoldFiles(r) => (r.inodes.clone(), false),
        Op::Create(r) => (vec![r.parent], true),
        Op::Mknod(r) => (vec![r.parent], true),
        Op::Mkdir(r) => (vec![r.parent], true),
        Op::Symlink(r) => (vec![r.parent], true),
        Op::Link(r) => (vec![r.inode, r.new_parent], true),
        Op::Unlink(r) => (vec![r.parent], true),
        Op::Rmdir(r) => (vec![r.parent], true),
        Op::Rename(r) => (vec![r.parent, r.new_parent], true),
        Op::CopyRange(r) => (vec![r.source, r.inode], true),
        Op::TouchAtime(r) => (r.touches.iter().map(|touch| touch.inode).collect(), false),
        Op::GetAttr(r) => (vec![r.inode], false),
        Op::ReadLink(r) => (vec![r.inode], false),
        Op::ReadExtents(r) => (vec![r.inode], false),
        Op::Seek(r) => (vec![r.inode], false),
        Op::GetXattr(r) => (vec![r.inode], false),
        Op::ListXattr(r) => (vec![r.inode], false),
        Op::Access(r) => (vec![r.inode], false),
        Op::Open(r) => (vec![r.inode], false),
        Op::Describe(r) => (vec![r.inode], true),
        Op::Acquire(r) => (vec![r.inode], false),
        Op::TestLock(r) => (vec![r.inode], false),
        Op::SetAttr(r) => (vec![r.inode], false),
        Op::SetXattr(r) => (vec![r.inode], false),
        Op::RemoveXattr(r) => (vec![r.inode], false),
        Op::Write(r) => (vec![r.inode], false),
        Op::Fallocate(r) => (vec![r.inode], false),
        Op::AllocateChunk(r) => (vec![r.inode], false),
        Op::Lock(r) => (vec![r.inode], false),
        Op::Unlock(r) => (vec![r.inode], false),
        Op::CancelLock(r) => (vec![r.inode], false),
        Op::HoldLocks(r) => (vec![r.inode], false),
        Op::RecordLocks(r) => (vec![r.inode], false),
        Op::StatFs(_)
        | Op::Release(_)
        | Op::Reserve(_)
        | Op::Sync(_)
        | Op::Pace(_)
        | Op::ReserveInodes(_)
        | Op::SealChunk(_)
        | Op::Tell(_)
        | Op::Reap(_) => (Vec::new(), false),
    }
}

/// Whether it matters that a change comes before a later one: it shows in files or names, and isn't put in order by others, as locks are.
pub(crate) fn comes_in_order(op: &Op) -> bool {
    !matches!(
        op,
        Op::TouchAtime(_)
            | Op::AllocateChunk(_)
            | Op::SealChunk(_)
            | Op::TestLock(_)
            | Op::Lock(_)
            | Op::Unlock(_)
            | Op::CancelLock(_)
            | Op::HoldLocks(_)
            | Op::RecordLocks(_)
            | Op::Tell(_)
            | Op::Reap(_)
    )
}

/// The inodes whose fsync stands for a change: those that it is about, and the one that it has made.
pub(crate) fn changed_by(request: &FsRequest, reply: Option<&Reply>) -> Vec<u64> {
    let of = |request: &FsRequest| request.op.as_ref().map(|op| about(op).0).unwrap_or_default();
    let mut inodes = of(request);
    if let Some(Op::Tell(tell)) = &request.op {
        for change in &tell.changes {
            inodes.extend(change.request.as_ref().map(of).unwrap_or_default());
            inodes.extend((change.inode != 0).then_some(change.inode));
        }
    }
    let made = match reply {
        Some(Reply::Created(made)) => made.attr.as_ref(),
        Some(Reply::Entry(made)) => made.attr.as_ref(),
        _ => None,
    };
    inodes.extend(made.map(|attr| attr.inode));
    inodes.sort_unstable();
    inodes.dedup();
    inodes
}
