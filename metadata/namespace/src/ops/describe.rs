//! statfs, and where a file's data lies.

use std::collections::BTreeSet;

use mooseng_schema::inode::InodeRecord;
use mooseng_schema::statistics::{self, Statistics};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::fs::{Description, DirLink, FsStat};
use mooseng_wire::{BLOCK_BYTES, InodeId, LOCAL_ID_BITS, NAME_BYTES_MAX};

use super::data::{EXTENTS_MAX, pieces_between};
use crate::error::OpError;
use crate::extents::Data;
use crate::quota::{self, Account, State};
use crate::view::{View, is_regular};

/// Names in one answer, beyond those in the inode's record.
const LINKS_MAX: usize = 256;

pub async fn stat_fs<T: Transaction>(view: &View<'_, T>, id: InodeId) -> Result<FsStat, OpError> {
    let volume = id.volume();
    let page = view.tx.get_range(statistics::range(volume), RangeLimit::default(), Read::Snapshot).await?;
    let statistics = Statistics::read(volume, &page.pairs)?;
    let capacity = view.ctx.capacity;
    let files = 1u64 << LOCAL_ID_BITS;
    let mut stat = FsStat {
        // Where nobody says what the chunkservers hold, at least what is there is shown.
        bytes_total: capacity.bytes_total.max(statistics.bytes),
        bytes_free: capacity.bytes_free,
        bytes_available: capacity.bytes_available,
        files,
        files_free: files.saturating_sub(statistics.inodes),
        name_max: NAME_BYTES_MAX as u32,
        block_size: BLOCK_BYTES as u32,
    };
    // Below a directory with a quota what is shown is what fits there.
    if let Some(InodeRecord { quota, .. }) = view.inode_if(id).await?
        && quota != 0
        && let Some(limits) = quota::find(view.tx, volume, Account::Directory(quota), Read::Snapshot).await?
        && limits.state() == State::Enforced
    {
        let used = quota::usage(view.tx, volume, Account::Directory(quota)).await?;
        let (bytes, inodes) = (used.bytes.max(0) as u64, used.inodes.max(0) as u64);
        if let Some(max) = limits.bytes_max {
            let left = max.saturating_sub(bytes);
            stat.bytes_total = max.min(stat.bytes_total);
            stat.bytes_free = left.min(stat.bytes_free);
            stat.bytes_available = left.min(stat.bytes_available);
        }
        if let Some(max) = limits.inodes_max {
            stat.files = max;
            stat.files_free = max.saturating_sub(inodes);
        }
    }
    Ok(stat)
}

pub async fn describe<T: Transaction>(view: &View<'_, T>, id: InodeId) -> Result<Description, OpError> {
    let record = view.inode(id).await?;
    let mut description = Description { attr: Some(view.attr(id, &record).await?), ..Default::default() };
    for link in view.links(id, &record, LINKS_MAX).await? {
        description.links.push(DirLink { parent: link.parent, name: link.name });
    }
    if is_regular(record.kind) {
        let (pieces, _) = pieces_between(view, id, 0, record.size).await?;
        let mut chunks = BTreeSet::new();
        for (offset, data) in pieces.iter().take(EXTENTS_MAX) {
            if let Data::Run { chunk, .. } = data {
                chunks.insert(*chunk);
            }
            description.extents.push(data.to_wire(offset));
        }
        let places = chunks.into_iter().map(|chunk| view.place(chunk));
        description.chunks = futures::future::try_join_all(places).await?;
    }
    Ok(description)
}
