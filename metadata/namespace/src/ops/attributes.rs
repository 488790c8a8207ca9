//! getattr, setattr and lazy access times.

use mooseng_schema::Record;
use mooseng_schema::directory::{self, Counter};
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::number;
use mooseng_store::{Atomic, Transaction};
use mooseng_wire::fs::{AtimeTouch, DirEntry, DirPage, Entry, HoldFiles, SetAttr};
use mooseng_wire::{FILE_SIZE_MAX, InodeId};

use crate::errno::Errno;
use crate::error::OpError;
use crate::joins;
use crate::permission::{self, WRITE};
use crate::rules;
use crate::trash;
use crate::view::{View, is_directory, is_regular};
use crate::window;

/// Access times that one request brings at most.
const TOUCHES_MAX: usize = 1024;
/// Files that are asked for at a time, to be held with their directory.
const HELD_MAX: usize = 1024;

pub async fn get<T: Transaction>(view: &View<'_, T>, id: InodeId) -> Result<Entry, OpError> {
    let record = view.inode(id).await?;
    Ok(Entry { attr: Some(view.attr(id, &record).await?) })
}

/// The attributes of files that may be held with their directory: what has one name, and is no directory. Of others there is only the number.
pub async fn of_files<T: Transaction>(view: &View<'_, T>, r: &HoldFiles) -> Result<DirPage, OpError> {
    if r.inodes.len() > HELD_MAX {
        return Err(OpError::Malformed("more files are asked for at a time than may be"));
    }
    let mut entries = Vec::new();
    for &inode in &r.inodes {
        let mut entry = DirEntry { inode, ..DirEntry::default() };
        if let Some(record) = view.inode_if(InodeId(inode)).await?
            && !is_directory(record.kind)
        {
            let attr = view.attr(InodeId(inode), &record).await?;
            entry.attr = (attr.nlink == 1).then_some(attr);
        }
        entries.push(entry);
    }
    Ok(DirPage { entries, end: true })
}

pub async fn set<T: Transaction>(view: &View<'_, T>, r: &SetAttr) -> Result<Entry, OpError> {
    let id = InodeId(r.inode);
    let mut record = view.inode(id).await?;
    joins::not_covered(&record)?;
    check(view, r, &record)?;
    if let Some(size) = r.size {
        set_size(view, r, id, &mut record, size).await?;
    } else if r.kill_suidgid {
        view.kill_privileges(id, &mut record).await?;
    }
    apply(view, r, id, &mut record).await?;
    view.put_inode(id, &record);
    Ok(Entry { attr: Some(view.attr(id, &record).await?) })
}

/// Attributes that come with a write that was buffered with them. The caller stores the record.
pub async fn set_with_data<T: Transaction>(
    view: &View<'_, T>,
    r: &SetAttr,
    id: InodeId,
    record: &mut InodeRecord,
) -> Result<(), OpError> {
    if r.inode != id.0 || r.size.is_some() || r.kill_suidgid {
        return Err(Errno::EINVAL.into());
    }
    check(view, r, record)?;
    apply(view, r, id, record).await
}

fn check<T: Transaction>(view: &View<'_, T>, r: &SetAttr, record: &InodeRecord) -> Result<(), Errno> {
    check_owner_change(view, r, record)?;
    if r.mode.is_some() {
        permission::check_owner(record, view.caller)?;
    }
    check_times(view, r, record)
}

/// All but the size.
async fn apply<T: Transaction>(
    view: &View<'_, T>,
    r: &SetAttr,
    id: InodeId,
    record: &mut InodeRecord,
) -> Result<(), OpError> {
    let ctime_ns = record.ctime_ns;
    if r.uid.is_some() || r.gid.is_some() {
        view.kill_privileges(id, record).await?;
    }
    rules::set(record, r, view.caller, view.ctx.now_ns);
    if is_directory(record.kind) {
        // A directory's counter overtakes what its record says, until it is cleared.
        if r.atime_now || r.atime_ns.is_some() {
            view.tx.clear(&directory::key(id, Counter::Accessed));
        }
        if r.mtime_now || r.mtime_ns.is_some() {
            view.tx.clear(&directory::key(id, Counter::Changed));
        }
    }
    // What was buffered under an exclusive promise keeps the time that its session has shown for it. It moves on in any case: by it a session
    // whose lease lapsed sees that somebody else has changed the file.
    if let Some(changed_ns) = r.changed_ns {
        record.ctime_ns = ctime_ns.saturating_add(1).max(view.not_far_ahead(changed_ns));
    }
    Ok(())
}

/// root gives files away; an owner may give them to groups that it is of.
fn check_owner_change<T: Transaction>(
    view: &View<'_, T>,
    r: &SetAttr,
    record: &InodeRecord,
) -> Result<(), Errno> {
    let caller = view.caller;
    if caller.kernel_checked || caller.uid == 0 || (r.uid.is_none() && r.gid.is_none()) {
        return Ok(());
    }
    let same_owner = caller.uid == record.uid && r.uid.is_none_or(|uid| uid == record.uid);
    let own_group = r.gid.is_none_or(|gid| gid == record.gid || permission::in_group(caller, gid));
    if same_owner && own_group { Ok(()) } else { Err(Errno::EPERM) }
}

/// Any time may be set by the owner; the present one by whoever may write.
fn check_times<T: Transaction>(view: &View<'_, T>, r: &SetAttr, record: &InodeRecord) -> Result<(), Errno> {
    let any = (r.atime_ns.is_some() && !r.atime_now) || (r.mtime_ns.is_some() && !r.mtime_now);
    if any {
        return permission::check_owner(record, view.caller);
    }
    if (r.atime_now || r.mtime_now) && permission::check_owner(record, view.caller).is_err() {
        return permission::check(record, view.caller, WRITE);
    }
    Ok(())
}

async fn set_size<T: Transaction>(
    view: &View<'_, T>,
    r: &SetAttr,
    id: InodeId,
    record: &mut InodeRecord,
    size: u64,
) -> Result<(), OpError> {
    if is_directory(record.kind) {
        return Err(Errno::EISDIR.into());
    }
    if !is_regular(record.kind) {
        return Err(Errno::EINVAL.into());
    }
    if size > FILE_SIZE_MAX {
        return Err(Errno::EFBIG.into());
    }
    if !r.by_handle {
        permission::check(record, view.caller, WRITE)?;
    }
    resize(view, id, record, size).await?;
    if view.kills_privileges(r.kill_suidgid) {
        view.kill_privileges(id, record).await?;
    }
    Ok(())
}

/// Sets a file's size and the times that go with it. The caller stores the record.
pub async fn resize<T: Transaction>(
    view: &View<'_, T>,
    id: InodeId,
    record: &mut InodeRecord,
    size: u64,
) -> Result<(), OpError> {
    if size < record.size {
        window::shrink(view.tx, id, record, size).await?;
        trash::emptied(view, id, record).await?;
    } else if size > record.size {
        window::need_trimmed(id, record)?;
        record.size = size;
    }
    record.mtime_ns = view.ctx.now_ns;
    record.ctime_ns = view.later(record.ctime_ns);
    Ok(())
}

/// Moves access times forward. Inodes that are gone are left out: nobody waits for this.
pub async fn touch<T: Transaction>(view: &View<'_, T>, touches: &[AtimeTouch]) -> Result<(), OpError> {
    if touches.len() > TOUCHES_MAX {
        return Err(Errno::EINVAL.into());
    }
    for touch in touches {
        let id = InodeId(touch.inode);
        let Some(mut record) = view.inode_if(id).await? else { continue };
        if is_directory(record.kind) {
            let time = number::encode(number::from_time(touch.atime_ns));
            view.tx.atomic(&directory::key(id, Counter::Accessed), &time, Atomic::Max);
        } else if touch.atime_ns > record.atime_ns {
            record.atime_ns = touch.atime_ns;
            // Not noted as a change: access times are lazy, and nobody's cached attributes are recalled for them.
            view.tx.set(&inode::key(id), &record.to_value());
        }
    }
    Ok(())
}
