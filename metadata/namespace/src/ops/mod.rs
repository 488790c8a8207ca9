//! The operations, a file for each group of kin. An operation never commits.

mod attributes;
mod chunks;
mod copy;
mod data;
mod describe;
mod directories;
mod extended;
mod fallocate;
mod handles;
mod link;
mod locks;
mod make;
mod reap;
mod rename;
mod tell;
mod unlink;

use mooseng_store::{Read, Transaction};
use mooseng_wire::InodeId;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, Done, FsReply, FsRequest, Lock};

use crate::confine;
use crate::context::OpContext;
use crate::error::OpError;
use crate::request::{is_change, is_internal, names_volumes};
use crate::touched::Touched;
use crate::view::View;

/// Runs one request in a transaction and answers what its reply will be once the transaction commits. After an error
/// the transaction must be dropped: it may hold half of the changes.
pub async fn execute<T: Transaction>(
    tx: &T,
    ctx: &OpContext,
    request: &FsRequest,
) -> Result<FsReply, OpError> {
    execute_noting(tx, ctx, request, &Touched::default()).await
}

/// [`execute`], which also notes the facts that the request changes.
pub async fn execute_noting<T: Transaction>(
    tx: &T,
    ctx: &OpContext,
    request: &FsRequest,
    touched: &Touched,
) -> Result<FsReply, OpError> {
    let nobody = Caller::default();
    let by_master = ctx.session.0 == 0;
    let caller = match &request.caller {
        Some(caller) => caller,
        // The master works for itself with root's rights; a session always says for whom it asks.
        None if by_master => &nobody,
        None => return Err(OpError::Malformed("it doesn't say who is calling")),
    };
    if is_internal(request) && !by_master {
        return Err(crate::Errno::EPERM.into());
    }
    let op = request.op.as_ref().ok_or(OpError::Malformed("it has no operation"))?;
    if names_volumes(request) {
        return Err(crate::Errno::EXDEV.into());
    }
    let read = if is_change(request) { Read::Conflicting } else { Read::Snapshot };
    let view = View { tx, ctx, caller, read, touched };
    confine::admit(&view, request).await?;
    let mut reply = match op {
        Op::Lookup(r) => Reply::Entry(directories::lookup(&view, InodeId(r.parent), &r.name).await?),
        Op::GetAttr(r) => Reply::Entry(attributes::get(&view, InodeId(r.inode)).await?),
        Op::ReadLink(r) => Reply::Value(link::read(&view, InodeId(r.inode)).await?),
        Op::ReadDir(r) => Reply::DirPage(directories::read(&view, r).await?),
        Op::ReadExtents(r) => Reply::Extents(data::read_extents(&view, r).await?),
        Op::Seek(r) => Reply::Seek(data::seek(&view, r).await?),
        Op::GetXattr(r) => Reply::Value(extended::get(&view, InodeId(r.inode), &r.name).await?),
        Op::ListXattr(r) => Reply::Names(extended::list(&view, InodeId(r.inode)).await?),
        Op::StatFs(r) => Reply::StatFs(describe::stat_fs(&view, InodeId(r.inode)).await?),
        Op::Access(r) => done(handles::access(&view, InodeId(r.inode), r.mask).await?),
        Op::Open(r) => Reply::Entry(handles::open(&view, InodeId(r.inode), r.flags).await?),
        Op::Release(_) => Reply::Done(Done {}),
        Op::Describe(r) => Reply::Description(describe::describe(&view, InodeId(r.inode)).await?),
        // The level is the custodian's affair; the operation itself is a look at the attributes.
        Op::Acquire(r) => Reply::Entry(attributes::get(&view, InodeId(r.inode)).await?),
        // What is granted of an account is the custodian's affair alone.
        Op::Reserve(_) => return Err(OpError::Malformed("only a custodian grants escrow")),
        // Both are the custodian's affair; the second looks at the attributes.
        Op::ReserveInodes(_) => return Err(OpError::Malformed("only a custodian reserves ids")),
        Op::Sync(_) | Op::Pace(_) => {
            return Err(OpError::Malformed("only a custodian waits for other regions"));
        }
        Op::HoldAlone(r) => {
            let entry = attributes::get(&view, InodeId(r.inode)).await?;
            // There is nothing to have alone where another volume's entries are.
            if entry.attr.is_some_and(|attr| attr.joined != 0) {
                return Err(crate::Errno::EREMOTE.into());
            }
            Reply::Entry(entry)
        }
        // As with Acquire.
        Op::HoldFiles(r) => Reply::DirPage(attributes::of_files(&view, r).await?),
        Op::TestLock(r) => Reply::LockHolder(locks::test(&view, r).await?),
        Op::SetAttr(r) => Reply::Entry(attributes::set(&view, r).await?),
        Op::Create(r) => Reply::Created(make::create(&view, r).await?),
        Op::Mknod(r) => Reply::Entry(make::mknod(&view, r).await?),
        Op::Mkdir(r) => Reply::Entry(make::mkdir(&view, r).await?),
        Op::Symlink(r) => Reply::Entry(make::symlink(&view, r).await?),
        Op::Link(r) => Reply::Entry(link::link(&view, r).await?),
        Op::Unlink(r) => done(unlink::unlink(&view, InodeId(r.parent), &r.name).await?),
        Op::Rmdir(r) => done(unlink::rmdir(&view, InodeId(r.parent), &r.name).await?),
        Op::Rename(r) => done(rename::rename(&view, r).await?),
        Op::SetXattr(r) => done(extended::set(&view, r).await?),
        Op::RemoveXattr(r) => done(extended::remove(&view, InodeId(r.inode), &r.name).await?),
        Op::Write(r) => Reply::Written(data::write(&view, r).await?),
        Op::Fallocate(r) => Reply::Ranged(fallocate::fallocate(&view, r).await?),
        Op::CopyRange(r) => Reply::Ranged(copy::copy(&view, r).await?),
        Op::TouchAtime(r) => done(attributes::touch(&view, &r.touches).await?),
        Op::AllocateChunk(r) => Reply::Allocated(chunks::allocate(&view, InodeId(r.inode)).await?),
        Op::SealChunk(r) => done(chunks::seal(&view, r).await?),
        Op::Lock(r) => Reply::Locked(locks::lock(&view, r).await?),
        Op::Unlock(r) => done(locks::unlock(&view, r).await?),
        Op::CancelLock(r) => Reply::Locked(locks::cancel(&view, r).await?),
        Op::HoldLocks(r) => Reply::Locked(locks::hold(&view, InodeId(r.inode)).await?),
        Op::RecordLocks(r) => done(locks::record(&view, r).await?),
        Op::Tell(r) => Reply::Told(tell::tell(&view, r).await?),
        Op::Reap(r) => Reply::Reaped(reap::reap(&view, &r.inodes).await?),
    };
    confine::redact(&view, &mut reply).await?;
    Ok(FsReply { reply: Some(reply) })
}

/// Takes a session's locks of one inode, in their order and without waiting, whatever it held of it. Answers the places of those that it can't have.
pub(crate) async fn take_locks<T: Transaction>(
    tx: &T,
    ctx: &OpContext,
    inode: InodeId,
    locks: &[(u32, Lock)],
) -> Result<Vec<u32>, OpError> {
    let (caller, touched) = (Caller::default(), Touched::default());
    let view = View { tx, ctx, caller: &caller, read: Read::Conflicting, touched: &touched };
    let any = FsRequest { caller: None, op: locks.first().map(|(_, lock)| Op::Lock(*lock)) };
    match confine::admit(&view, &any).await {
        Ok(()) => locks::take_all(&view, inode, locks).await,
        Err(OpError::Errno(_)) => Ok(locks.iter().map(|(place, _)| *place).collect()),
        Err(error) => Err(error),
    }
}

fn done((): ()) -> Reply {
    Reply::Done(Done {})
}
