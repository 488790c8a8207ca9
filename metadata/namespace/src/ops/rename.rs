//! rename, with replacement, RENAME_NOREPLACE and RENAME_EXCHANGE.

use mooseng_schema::SchemaError;
use mooseng_schema::inode::InodeRecord;
use mooseng_store::Transaction;
use mooseng_wire::InodeId;
use mooseng_wire::fs::Rename;

use crate::errno::Errno;
use crate::error::OpError;
use crate::joins;
use crate::permission::{self, WRITE};
use crate::quota;
use crate::together::InOrder;
use crate::view::{Found, Slot, View, check_name, is_directory, is_dots};

/// How deep a tree may be for a directory to move in it. No path leads that deep.
const DEPTH_MAX: usize = 16_384;

/// An entry that moves.
struct Side {
    parent: InodeId,
    directory: InodeRecord,
    found: Found,
    record: InodeRecord,
}

pub async fn rename<T: Transaction>(view: &View<'_, T>, r: &Rename) -> Result<(), OpError> {
    check_name(&r.name)?;
    check_name(&r.new_name)?;
    if r.no_replace && r.exchange {
        return Err(Errno::EINVAL.into());
    }
    if is_dots(&r.name) || is_dots(&r.new_name) {
        return Err(Errno::EBUSY.into());
    }
    let (from, to) = (InodeId(r.parent), InodeId(r.new_parent));
    let (directory, new_directory, slot, new_slot) = futures::join!(
        view.writable_directory(from),
        view.writable_directory(to),
        view.slot(from, &r.name),
        view.slot(to, &r.new_name)
    )
    .in_order()?;
    let found = slot.found.ok_or(Errno::ENOENT)?;
    if directory.quota != new_directory.quota {
        return Err(Errno::EXDEV.into());
    }
    let quota = directory.quota;
    let record = view.named_inode(&found).await?;
    let source = Side { parent: from, directory, found, record };
    if r.no_replace && new_slot.found.is_some() {
        return Err(Errno::EEXIST.into());
    }
    if r.exchange && new_slot.found.is_none() {
        return Err(Errno::ENOENT.into());
    }
    if is_directory(source.record.kind) && from != to {
        check_not_below(view, to, source.found.inode, Errno::EINVAL).await?;
    }
    let Slot { found: Some(found), .. } = new_slot else {
        let cookie = new_slot.free.ok_or(Errno::ENOSPC)?;
        may_leave(view, &source, from != to)?;
        joins::not_busy(&source.record)?;
        return move_entry(view, r, source, cookie, quota).await;
    };
    // Both names are of one inode (or are one name): POSIX has it that nothing happens.
    if found.inode == source.found.inode {
        return Ok(());
    }
    let record = view.named_inode(&found).await?;
    let target = Side { parent: to, directory: new_directory, found, record };
    if r.exchange { exchange(view, r, source, target).await } else { replace(view, r, source, target).await }
}

/// Whether the caller may take an entry from its directory, and a directory to another parent: that changes its "..".
fn may_leave<T: Transaction>(view: &View<'_, T>, side: &Side, changes_parent: bool) -> Result<(), Errno> {
    permission::check_sticky(&side.directory, &side.record, view.caller)?;
    if changes_parent && is_directory(side.record.kind) {
        permission::check(&side.record, view.caller, WRITE)?;
    }
    Ok(())
}

/// Refuses when `directory` is `ancestor` or lies below it. Every step up is a conflicting read, so that two renames
/// can't make a loop together.
async fn check_not_below<T: Transaction>(
    view: &View<'_, T>,
    directory: InodeId,
    ancestor: InodeId,
    errno: Errno,
) -> Result<(), OpError> {
    let mut at = directory;
    for _ in 0..DEPTH_MAX {
        if at == ancestor {
            return Err(errno.into());
        }
        let record = view.inode(at).await?;
        let Some(link) = record.links.first() else {
            // The root has no name. Nor has a removed directory, in which nothing can be made.
            return if record.orphan { Err(Errno::ENOENT.into()) } else { Ok(()) };
        };
        if link.parent == at.0 {
            return Err(SchemaError::damaged("inode", "a directory is its own parent").into());
        }
        at = InodeId(link.parent);
    }
    Err(Errno::ELOOP.into())
}

fn subdirectories(kind: u32) -> i64 {
    i64::from(is_directory(kind))
}

/// Moves the source to a free place.
async fn move_entry<T: Transaction>(
    view: &View<'_, T>,
    r: &Rename,
    source: Side,
    cookie: mooseng_schema::dirent::Cookie,
    quota: u64,
) -> Result<(), OpError> {
    let Side { parent, found, mut record, .. } = source;
    let to = InodeId(r.new_parent);
    view.clear_entry(parent, found.cookie, &r.name);
    view.put_entry(to, cookie, &r.new_name, found.inode, record.kind);
    let directory = subdirectories(record.kind);
    if parent == to {
        view.count_entries(parent, 0, 0);
    } else {
        view.count_entries(parent, -1, -directory);
        view.count_entries(to, 1, directory);
    }
    relink(view, &found, &mut record, (parent, &r.name), (to, &r.new_name), quota).await
}

/// Records an inode's new name.
async fn relink<T: Transaction>(
    view: &View<'_, T>,
    found: &Found,
    record: &mut InodeRecord,
    (from, name): (InodeId, &bytes::Bytes),
    (to, new_name): (InodeId, &bytes::Bytes),
    quota: u64,
) -> Result<(), OpError> {
    // Not yet, or still, marked: what is looked at one by one mustn't be moved out of the way. A quota's directory keeps its own, and a file with
    // a name in another quota's tree that of it.
    if record.quota != quota
        && record.quota != found.inode.0
        && !quota::is_anothers(view.tx, found.inode, record).await?
    {
        let from = std::mem::replace(&mut record.quota, quota);
        if is_directory(record.kind) {
            quota::queue_for_both(view.tx, from, quota, found.inode);
        }
    }
    view.remove_link(found.inode, record, from, name);
    view.add_link(found.inode, record, to, new_name);
    record.ctime_ns = view.later(record.ctime_ns);
    view.put_inode(found.inode, record);
    Ok(())
}

/// Moves the source over the target, which loses that name.
async fn replace<T: Transaction>(
    view: &View<'_, T>,
    r: &Rename,
    source: Side,
    target: Side,
) -> Result<(), OpError> {
    may_leave(view, &source, source.parent != target.parent)?;
    permission::check_sticky(&target.directory, &target.record, view.caller)?;
    let victim_is_directory = is_directory(target.record.kind);
    match (is_directory(source.record.kind), victim_is_directory) {
        (true, false) => return Err(Errno::ENOTDIR.into()),
        (false, true) => return Err(Errno::EISDIR.into()),
        _ => {}
    }
    joins::not_busy(&source.record)?;
    joins::not_busy(&target.record)?;
    match victim_is_directory {
        // A target that holds the source isn't empty, so that it needs no check of its own.
        true if !view.is_empty(target.found.inode).await? => return Err(Errno::ENOTEMPTY.into()),
        _ => {}
    }
    let Side { parent: to, found: victim, record: mut victim_record, .. } = target;
    view.unname(victim.inode, &mut victim_record, to, &r.new_name).await?;
    view.count_entries(to, -1, -subdirectories(victim_record.kind));
    // The name keeps its place, and a reader of the directory its position.
    let quota = source.directory.quota;
    move_entry(view, r, source, victim.cookie, quota).await
}

/// Swaps two entries.
async fn exchange<T: Transaction>(
    view: &View<'_, T>,
    r: &Rename,
    source: Side,
    target: Side,
) -> Result<(), OpError> {
    let apart = source.parent != target.parent;
    may_leave(view, &source, apart)?;
    may_leave(view, &target, apart)?;
    if apart && is_directory(target.record.kind) {
        check_not_below(view, source.parent, target.found.inode, Errno::EINVAL).await?;
    }
    joins::not_busy(&source.record)?;
    joins::not_busy(&target.record)?;
    let quota = source.directory.quota;
    let Side { parent: from, found, mut record, .. } = source;
    let Side { parent: to, found: other, record: mut other_record, .. } = target;
    view.put_entry(from, found.cookie, &r.name, other.inode, other_record.kind);
    view.put_entry(to, other.cookie, &r.new_name, found.inode, record.kind);
    let comes = subdirectories(record.kind) - subdirectories(other_record.kind);
    if apart {
        view.count_entries(from, 0, -comes);
        view.count_entries(to, 0, comes);
    } else {
        view.count_entries(from, 0, 0);
    }
    relink(view, &found, &mut record, (from, &r.name), (to, &r.new_name), quota).await?;
    relink(view, &other, &mut other_record, (to, &r.new_name), (from, &r.name), quota).await
}
