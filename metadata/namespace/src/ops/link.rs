//! link and readlink.

use mooseng_store::Transaction;
use mooseng_wire::InodeId;
use mooseng_wire::fs::{Entry, FileKind, Link, Value};

use crate::LINKS_MAX;
use crate::errno::Errno;
use crate::error::OpError;
use crate::permission::{self, EXECUTE};
use crate::together::InOrder;
use crate::view::{View, check_name, is_directory, is_dots};

pub async fn read<T: Transaction>(view: &View<'_, T>, id: InodeId) -> Result<Value, OpError> {
    let record = view.inode(id).await?;
    if record.kind != FileKind::Symlink as u32 {
        return Err(Errno::EINVAL.into());
    }
    Ok(Value { value: record.target })
}

pub async fn link<T: Transaction>(view: &View<'_, T>, r: &Link) -> Result<Entry, OpError> {
    check_name(&r.new_name)?;
    if is_dots(&r.new_name) {
        return Err(Errno::EEXIST.into());
    }
    let (id, parent) = (InodeId(r.inode), InodeId(r.new_parent));
    let (mut record, directory, slot) =
        futures::join!(view.inode(id), view.directory(parent), view.slot(parent, &r.new_name)).in_order()?;
    permission::check(&directory, view.caller, EXECUTE)?;
    if slot.found.is_some() {
        return Err(Errno::EEXIST.into());
    }
    view.writable_directory(parent).await?;
    if is_directory(record.kind) {
        return Err(Errno::EPERM.into());
    }
    // An orphan stays one: it may be freed at any time.
    if record.orphan {
        return Err(Errno::ENOENT.into());
    }
    if record.nlink >= LINKS_MAX {
        return Err(Errno::EMLINK.into());
    }
    if directory.quota != record.quota {
        return Err(Errno::EXDEV.into());
    }
    let cookie = slot.free.ok_or(Errno::ENOSPC)?;
    record.nlink += 1;
    record.ctime_ns = view.later(record.ctime_ns);
    view.add_link(id, &mut record, parent, &r.new_name);
    view.put_inode(id, &record);
    view.put_entry(parent, cookie, &r.new_name, id, record.kind);
    view.count_entries(parent, 1, 0);
    Ok(Entry { attr: Some(view.attr(id, &record).await?) })
}
