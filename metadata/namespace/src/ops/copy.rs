//! copy_file_range: one file names what another one names (docs/decisions/0010-shared-extents.md).
//!
//! Only sealed chunks get a second file. They never change, and nothing that is decided about a chunk before it is sealed - its length, by the
//! furthest extent; whose it is - has to look at more than its own file. From then on a chunk lives as long as any file counts a use of it, and
//! each file counts its own: in the transaction that reads the source's extents with conflicts the chunk can't have been given up.

use std::collections::BTreeSet;

use mooseng_store::{RangeLimit, Transaction};
use mooseng_wire::fs::{CopyRange, Ranged};
use mooseng_wire::{ChunkId, FILE_SIZE_MAX, InodeId};

use crate::errno::Errno;
use crate::error::OpError;
use crate::extents::{Data, Pieces};
use crate::ops::data::regular;
use crate::view::{View, attr_of};
use crate::window;

/// What is read of either file in one step, at most, so that the transaction stays far from the store's limits.
const STEP: RangeLimit = RangeLimit { pairs_max: 512, bytes_max: 256 << 10, reverse: false };

pub async fn copy<T: Transaction>(view: &View<'_, T>, r: &CopyRange) -> Result<Ranged, OpError> {
    let (from, id) = (InodeId(r.source), InodeId(r.inode));
    let source = regular(view, from).await?;
    let mut record = regular(view, id).await?;
    // Chunks lie as their class says.
    if source.storage_class != record.storage_class {
        return Err(Errno::EXDEV.into());
    }
    let length = r.length.min(source.size.saturating_sub(r.source_offset));
    let end = r.offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Errno::EFBIG)?;
    if from == id && r.offset < r.source_offset.saturating_add(length) && r.source_offset < end {
        return Err(Errno::EINVAL.into());
    }
    if length == 0 {
        return Ok(Ranged { attr: Some(attr_of(id, &record, &<_>::default())), done: 0, more: false });
    }
    window::need_trimmed(id, &record)?;
    let (pieces, known) = shareable(view, from, (r.source_offset, r.source_offset + length)).await?;
    let mut before = Pieces::default();
    let range = (r.offset, r.offset + known);
    let loaded = window::load_some(view.tx, id, range, STEP, &mut before).await?;
    let done = loaded - r.offset;
    let mut after = before.clone();
    after.cut(r.offset, loaded);
    for (offset, data) in pieces.between(r.source_offset, r.source_offset + done).iter() {
        after.put(r.offset + (offset - r.source_offset), data.clone());
    }
    if !window::may_stage(view.tx, id, &before, &after).await? {
        return Err(Errno::EXDEV.into());
    }
    window::store(view.tx, id, &mut record, &before, &after).await?;
    record.size = record.size.max(loaded);
    record.mtime_ns = view.ctx.now_ns;
    record.ctime_ns = view.later(record.ctime_ns);
    if view.kills_privileges(r.kill_suidgid) {
        view.kill_privileges(id, &mut record).await?;
    }
    view.put_inode(id, &record);
    Ok(Ranged { attr: Some(attr_of(id, &record, &<_>::default())), done, more: done < length })
}

/// The pieces from the begin of the range on that may be shared or copied now, and how many bytes of the range they say everything about. EXDEV
/// if that is none.
async fn shareable<T: Transaction>(
    view: &View<'_, T>,
    id: InodeId,
    (from, to): (u64, u64),
) -> Result<(Pieces, u64), OpError> {
    let mut loaded = Pieces::default();
    let mut known = window::load_some(view.tx, id, (from, to), STEP, &mut loaded).await?;
    let pieces = loaded.between(from, known);
    let chunks: BTreeSet<ChunkId> = pieces.iter().filter_map(|(_, data)| chunk_of(data)).collect();
    let reads =
        chunks.iter().map(|chunk| async move { Ok::<_, OpError>((*chunk, view.chunk(*chunk).await?)) });
    let records = futures::future::try_join_all(reads).await?;
    let open: BTreeSet<ChunkId> =
        records.into_iter().filter(|(_, record)| !record.sealed).map(|(chunk, _)| chunk).collect();
    let first = pieces.iter().find(|(_, data)| chunk_of(data).is_some_and(|chunk| open.contains(&chunk)));
    if let Some((offset, _)) = first {
        known = offset;
    }
    if known <= from {
        return Err(Errno::EXDEV.into());
    }
    Ok((pieces, known - from))
}

fn chunk_of(data: &Data) -> Option<ChunkId> {
    match data {
        Data::Run { chunk, .. } => Some(*chunk),
        Data::Inline(_) => None,
    }
}
