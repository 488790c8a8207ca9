//! unlink and rmdir.

use mooseng_store::Transaction;
use mooseng_wire::InodeId;

use crate::errno::Errno;
use crate::error::OpError;
use crate::joins;
use crate::permission;
use crate::together::InOrder;
use crate::view::{View, check_name, is_directory, is_dots};

pub async fn unlink<T: Transaction>(view: &View<'_, T>, parent: InodeId, name: &[u8]) -> Result<(), OpError> {
    check_name(name)?;
    if is_dots(name) {
        return Err(Errno::EISDIR.into());
    }
    let (directory, slot) =
        futures::join!(view.writable_directory(parent), view.slot(parent, name)).in_order()?;
    let found = slot.found.ok_or(Errno::ENOENT)?;
    let mut record = view.named_inode(&found).await?;
    permission::check_sticky(&directory, &record, view.caller)?;
    if is_directory(record.kind) {
        return Err(Errno::EISDIR.into());
    }
    view.unname(found.inode, &mut record, parent, name).await?;
    view.clear_entry(parent, found.cookie, name);
    view.count_entries(parent, -1, 0);
    Ok(())
}

pub async fn rmdir<T: Transaction>(view: &View<'_, T>, parent: InodeId, name: &[u8]) -> Result<(), OpError> {
    match name {
        b"." => return Err(Errno::EINVAL.into()),
        b".." => return Err(Errno::ENOTEMPTY.into()),
        _ => check_name(name)?,
    }
    let (directory, slot) =
        futures::join!(view.writable_directory(parent), view.slot(parent, name)).in_order()?;
    let found = slot.found.ok_or(Errno::ENOENT)?;
    let mut record = view.named_inode(&found).await?;
    permission::check_sticky(&directory, &record, view.caller)?;
    if !is_directory(record.kind) {
        return Err(Errno::ENOTDIR.into());
    }
    joins::not_busy(&record)?;
    if !view.is_empty(found.inode).await? {
        return Err(Errno::ENOTEMPTY.into());
    }
    view.unname(found.inode, &mut record, parent, name).await?;
    view.clear_entry(parent, found.cookie, name);
    view.count_entries(parent, -1, -1);
    Ok(())
}
