//! create, mknod, mkdir and symlink: everything that makes an inode.

use bytes::Bytes;
use mooseng_schema::directory::Counters;
use mooseng_schema::inode::InodeRecord;
use mooseng_schema::number;
use mooseng_schema::statistics::{self, Statistic};
use mooseng_store::{Atomic, Transaction};
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::{Attr, Create, Created, Entry, FileKind, Mkdir, Mknod, Symlink};
use mooseng_wire::{InodeId, SYMLINK_BYTES_MAX};

use super::attributes::resize;
use crate::errno::Errno;
use crate::error::OpError;
use crate::permission::{self, EXECUTE, WRITE};
use crate::rules::{self, Kind};
use crate::together::InOrder;
use crate::view::{Found, Slot, View, attr_of, check_name, is_directory, is_dots, is_regular};

pub async fn create<T: Transaction>(view: &View<'_, T>, r: &Create) -> Result<Created, OpError> {
    check_name(&r.name)?;
    if is_dots(&r.name) {
        return Err(Errno::EEXIST.into());
    }
    let parent = InodeId(r.parent);
    let (directory, slot) = futures::join!(view.directory(parent), view.slot(parent, &r.name)).in_order()?;
    permission::check(&directory, view.caller, EXECUTE)?;
    if let Some(found) = &slot.found {
        if r.exclusive {
            return Err(Errno::EEXIST.into());
        }
        let attr = open_existing(view, found, r.truncate).await?;
        return Ok(Created { attr: Some(attr), created: false });
    }
    let attr = insert(view, parent, &directory, slot, &r.name, Kind::new(FileKind::Regular, r.mode))?;
    Ok(Created { attr: Some(attr), created: true })
}

/// Another client made the file in between: it is opened as if the caller had found it.
async fn open_existing<T: Transaction>(
    view: &View<'_, T>,
    found: &Found,
    truncate: bool,
) -> Result<Attr, OpError> {
    let mut record = view.named_inode(found).await?;
    // Its attributes go into the answer: who buffers changes of it must send them first.
    view.touched.note(Fact::Inode(found.inode));
    if is_directory(record.kind) {
        return Err(Errno::EISDIR.into());
    }
    if record.kind == FileKind::Symlink as u32 {
        return Err(Errno::ELOOP.into());
    }
    if truncate && is_regular(record.kind) {
        permission::check(&record, view.caller, WRITE)?;
        resize(view, found.inode, &mut record, 0).await?;
        if view.kills_privileges(false) {
            view.kill_privileges(found.inode, &mut record).await?;
        }
        view.put_inode(found.inode, &record);
    }
    view.attr(found.inode, &record).await
}

pub async fn mknod<T: Transaction>(view: &View<'_, T>, r: &Mknod) -> Result<Entry, OpError> {
    let kind = FileKind::try_from(r.kind).unwrap_or(FileKind::Unspecified);
    let mut made = Kind::new(kind, r.mode);
    match kind {
        FileKind::Regular | FileKind::Fifo | FileKind::Socket => {}
        FileKind::CharDevice | FileKind::BlockDevice => {
            if view.caller.uid != 0 && !view.caller.kernel_checked {
                return Err(Errno::EPERM.into());
            }
            made.rdev = r.rdev;
        }
        FileKind::Unspecified | FileKind::Directory | FileKind::Symlink => return Err(Errno::EINVAL.into()),
    }
    make(view, InodeId(r.parent), &r.name, made).await
}

pub async fn mkdir<T: Transaction>(view: &View<'_, T>, r: &Mkdir) -> Result<Entry, OpError> {
    make(view, InodeId(r.parent), &r.name, Kind::new(FileKind::Directory, r.mode)).await
}

pub async fn symlink<T: Transaction>(view: &View<'_, T>, r: &Symlink) -> Result<Entry, OpError> {
    if r.target.is_empty() {
        return Err(Errno::ENOENT.into());
    }
    if r.target.len() > SYMLINK_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG.into());
    }
    if r.target.contains(&0) {
        return Err(Errno::EINVAL.into());
    }
    make(view, InodeId(r.parent), &r.name, Kind::symlink(r.target.clone())).await
}

async fn make<T: Transaction>(
    view: &View<'_, T>,
    parent: InodeId,
    name: &Bytes,
    kind: Kind,
) -> Result<Entry, OpError> {
    check_name(name)?;
    if is_dots(name) {
        return Err(Errno::EEXIST.into());
    }
    let (directory, slot) = futures::join!(view.directory(parent), view.slot(parent, name)).in_order()?;
    permission::check(&directory, view.caller, EXECUTE)?;
    if slot.found.is_some() {
        return Err(Errno::EEXIST.into());
    }
    Ok(Entry { attr: Some(insert(view, parent, &directory, slot, name, kind)?) })
}

/// Makes the inode and its entry. The directory's own record stays as it is, so that makers of different names don't
/// conflict; having read it makes a removal of the directory conflict.
fn insert<T: Transaction>(
    view: &View<'_, T>,
    parent: InodeId,
    directory: &InodeRecord,
    slot: Slot,
    name: &Bytes,
    kind: Kind,
) -> Result<Attr, OpError> {
    if directory.orphan {
        return Err(Errno::ENOENT.into());
    }
    permission::check(directory, view.caller, WRITE | EXECUTE)?;
    let cookie = slot.free.ok_or(Errno::ENOSPC)?;
    let id = view.ctx.ids.inode.ok_or(OpError::Missing("an inode id"))?;
    if id.volume() != parent.volume() {
        return Err(OpError::Missing("an inode id of the parent's volume"));
    }
    let mut record = rules::made(directory, view.caller, &kind, view.ctx.now_ns);
    view.add_link(id, &mut record, parent, name);
    view.put_inode(id, &record);
    view.put_entry(parent, cookie, name, id, record.kind);
    view.count_entries(parent, 1, i64::from(is_directory(record.kind)));
    view.tx.atomic(&statistics::key(id, Statistic::Inodes), &number::encode(1), Atomic::Add);
    Ok(attr_of(id, &record, &Counters::default()))
}
