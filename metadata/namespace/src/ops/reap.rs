//! Freeing inodes that have no name and aren't open, and the dead ends of truncated files.

use mooseng_schema::quota::{self, Account};
use mooseng_schema::statistics::{self, Statistic};
use mooseng_schema::{directory, inode, number, orphan, xattr};
use mooseng_store::{Atomic, Transaction};
use mooseng_wire::InodeId;
use mooseng_wire::fs::Reaped;

use crate::errno::Errno;
use crate::error::OpError;
use crate::trash;
use crate::view::View;
use crate::window;

/// Inodes that one request names at most.
const INODES_MAX: usize = 256;
/// Extents that one request frees at most. Inodes with more are drained before, in transactions of their own.
const EXTENTS_MAX: usize = 1024;

pub async fn reap<T: Transaction>(view: &View<'_, T>, inodes: &[u64]) -> Result<Reaped, OpError> {
    if inodes.len() > INODES_MAX {
        return Err(Errno::EINVAL.into());
    }
    let mut budget = EXTENTS_MAX;
    let mut reaped = Reaped::default();
    for id in inodes.iter().copied().map(InodeId) {
        let Some(mut record) = view.inode_if(id).await? else { continue };
        let from = match (record.orphan, record.trim_from) {
            (true, _) => 0,
            (false, Some(from)) => from,
            // It got its name back in no way: somebody named a living inode.
            (false, None) => continue,
        };
        if record.orphan && record.trash_until_ns.is_some() {
            if record.size > 0 {
                // Something was written to it before its last close: it stays in the trash.
                view.tx.clear(&orphan::key(id));
                continue;
            }
            trash::leave(view.tx, id, &mut record);
        }
        let (done, freed) = window::free_some(view.tx, id, &mut record, from, budget).await?;
        if !done {
            return Err(OpError::Drain { inode: id, from });
        }
        budget = budget.saturating_sub(freed);
        view.tx.clear(&orphan::trim_key(id));
        if !record.orphan {
            record.trim_from = None;
            view.put_inode(id, &record);
            continue;
        }
        view.tx.clear(&orphan::key(id));
        view.clear_inode(id);
        if record.quota == id.0 {
            // Nothing is in it: all that there was has gone before.
            view.tx.clear(&quota::key(id.volume(), Account::Directory(id.0)));
            view.tx.clear_range(quota::work_range(id));
        }
        view.tx.clear_range(xattr::range(id));
        view.tx.clear_range(inode::link_range(id));
        view.tx.clear_range(directory::range(id));
        let one_less = number::encode_signed(-1);
        view.tx.atomic(&statistics::key(id, Statistic::Inodes), &one_less, Atomic::Add);
        reaped.freed += 1;
    }
    Ok(reaped)
}
