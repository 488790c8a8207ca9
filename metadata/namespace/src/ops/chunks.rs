//! Allocating and sealing chunks.

use mooseng_schema::Record;
use mooseng_schema::chunk::{self, ChunkRecord};
use mooseng_schema::location::{self, Layout, LocationRecord};
use mooseng_store::{Read, Transaction};
use mooseng_wire::fs::{Allocated, SealChunk};
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, InodeId};

use crate::errno::Errno;
use crate::error::OpError;
use crate::ops::data::is_of_earlier_home;
use crate::view::{View, is_regular, place_of};

pub async fn allocate<T: Transaction>(view: &View<'_, T>, inode: InodeId) -> Result<Allocated, OpError> {
    // Read without a conflict: other writes of the file may go on. A chunk for a file that goes meanwhile is collected.
    let value = view.tx.get(&mooseng_schema::inode::key(inode), Read::Snapshot).await?;
    let record = mooseng_schema::inode::InodeRecord::from_value(&value.ok_or(Errno::ESTALE)?)?;
    if !is_regular(record.kind) {
        return Err(Errno::EINVAL.into());
    }
    let chunk = view.ctx.ids.chunk.ok_or(OpError::Missing("a chunk id"))?;
    if chunk.volume() != inode.volume() {
        return Err(OpError::Missing("a chunk id of the inode's volume"));
    }
    if view.ctx.placement.is_empty() {
        return Err(Errno::ENOSPC.into());
    }
    let record = ChunkRecord {
        owner: view.ctx.session.0,
        storage_class: record.storage_class,
        birth: view.ctx.epoch.0,
        born_ns: view.ctx.now_ns,
        inode: inode.0,
        ..Default::default()
    };
    let location = LocationRecord {
        layout: Layout::Copies as u32,
        copies: view.ctx.placement.clone(),
        epoch: view.ctx.epoch.0,
        partial: None,
    };
    // The same again, as after an unknown outcome, does no harm; another chunk's record names bytes that are on disk.
    if view
        .tx
        .get(&chunk::key(chunk), Read::Conflicting)
        .await?
        .is_some_and(|known| known != record.to_value())
    {
        return Err(OpError::ChunkExists(chunk));
    }
    view.tx.set(&chunk::key(chunk), &record.to_value());
    view.tx.set(&location::key(chunk), &location.to_value());
    Ok(Allocated { place: Some(place_of(chunk, &record, &location)), length_max: CHUNK_BYTES_MAX })
}

/// Ends appends at the length that was acknowledged, on the members that don't fail.
pub async fn seal<T: Transaction>(view: &View<'_, T>, r: &SealChunk) -> Result<(), OpError> {
    let chunk = ChunkId(r.chunk);
    let mut record = view.chunk(chunk).await?;
    if view.ctx.session.0 != 0 && record.owner != view.ctx.session.0 {
        return Err(Errno::EPERM.into());
    }
    if r.acknowledged > CHUNK_BYTES_MAX {
        return Err(Errno::EINVAL.into());
    }
    if record.sealed {
        // Sealed before, by a retry or by the master: fine if nothing acknowledged lies behind that.
        return if r.acknowledged <= record.length { Ok(()) } else { Err(Errno::EIO.into()) };
    }
    let earlier = is_of_earlier_home(view, &record);
    if earlier && view.ctx.session.0 != 0 {
        // What was acknowledged to its owner may be in the home of before alone: the master ends it where it is named.
        return Err(Errno::ESTALE.into());
    }
    record.sealed = true;
    record.sealed_ns = view.ctx.now_ns;
    record.length = r.acknowledged;
    view.tx.set(&chunk::key(chunk), &record.to_value());
    if earlier
        && let Some(value) = view.tx.get(&location::key(chunk), Read::Conflicting).await?
        && let location = LocationRecord::from_value(&value)?
        && location.partial.is_some_and(|partial| partial >= record.length)
    {
        view.tx.set(&location::key(chunk), &LocationRecord { partial: None, ..location }.to_value());
    }
    if r.failed.is_empty() {
        return Ok(());
    }
    let Some(value) = view.tx.get(&location::key(chunk), Read::Conflicting).await? else { return Ok(()) };
    let mut location = LocationRecord::from_value(&value)?;
    let (failed, healthy): (Vec<_>, Vec<_>) = location.copies.into_iter().partition(|c| r.failed.contains(c));
    // A session that saw everything fail may be the one that is cut off: the copies stay on record.
    location.copies = if healthy.is_empty() { failed } else { healthy };
    view.tx.set(&location::key(chunk), &location.to_value());
    Ok(())
}
