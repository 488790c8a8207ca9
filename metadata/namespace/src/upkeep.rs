//! The master's own upkeep over its transactions: id ranges, secrets, orphans, dead extents, chunks.

use std::ops::Range;

use bytes::Bytes;
use mooseng_schema::chunk::{self, ChunkRecord};
use mooseng_schema::ids::{self, IdKind};
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::orphan::{self, OrphanRecord};
use mooseng_schema::statistics::{self, Statistics};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_schema::{Record, number, secret};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::{ChunkId, Epoch, InodeId, LOCAL_ID_BITS, VolumeId};

use crate::error::OpError;
use crate::together::InOrder;
use crate::window;

/// Reserves `count` numbers of a kind and answers them. Inode and chunk numbers are the lower 48 bits of an id
/// ([`InodeId::new`], [`ChunkId::new`]); sessions' are the whole id (pass [`VolumeId`] 0). Once this committed, nobody else gets them.
pub async fn reserve_ids<T: Transaction>(
    tx: &T,
    kind: IdKind,
    volume: VolumeId,
    count: u64,
) -> Result<Range<u64>, OpError> {
    let key = ids::key(kind, volume);
    let value = tx.get(&key, Read::Conflicting).await?;
    let next = number::decode(value.as_ref())?.max(1);
    let end = next.checked_add(count).filter(|end| *end <= 1 << LOCAL_ID_BITS);
    let end = end.ok_or(OpError::Malformed("the volume has given all of its ids"))?;
    tx.set(&key, &number::encode(end));
    Ok(next..end)
}

/// A secret of the region.
pub async fn load_secret<T: Transaction>(tx: &T, name: &str) -> Result<Option<Bytes>, OpError> {
    Ok(tx.get(&secret::key(name), Read::Conflicting).await?)
}

/// Sets a secret of the region.
pub fn store_secret<T: Transaction>(tx: &T, name: &str, value: &[u8]) {
    tx.set(&secret::key(name), value);
}

/// A volume's record.
pub async fn load_volume<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<VolumeRecord>, OpError> {
    match tx.get(&volume::key(volume), Read::Conflicting).await? {
        Some(value) => Ok(Some(VolumeRecord::from_value(&value)?)),
        None => Ok(None),
    }
}

/// Raises a volume's home epoch: changes under an older one can't commit any more.
pub async fn raise_epoch<T: Transaction>(tx: &T, volume: VolumeId, epoch: Epoch) -> Result<(), OpError> {
    let mut record = load_volume(tx, volume).await?.ok_or(OpError::NoVolume(volume.0))?;
    if epoch.0 < record.epoch {
        return Err(OpError::Malformed("the volume has a newer home epoch"));
    }
    record.epoch = epoch.0;
    tx.set(&volume::key(volume), &record.to_value());
    Ok(())
}

/// What a volume holds.
pub async fn statistics<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Statistics, OpError> {
    let page = tx.get_range(statistics::range(volume), RangeLimit::default(), Read::Snapshot).await?;
    Ok(Statistics::read(volume, &page.pairs)?)
}

/// Up to `max` orphans with ids above `after`, in order: inodes without a name, each since when. The master reaps
/// those that no session holds open.
pub async fn list_orphans<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<InodeId>,
    max: usize,
) -> Result<Vec<(InodeId, i64)>, OpError> {
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(orphan::range_after(volume, after), limit, Read::Snapshot).await?;
    page.pairs
        .iter()
        .map(|(key, value)| Ok((orphan::parse_key(volume, key)?, OrphanRecord::from_value(value)?.since_ns)))
        .collect()
}

/// Up to `max` files with ids above `after` that hold dead extents behind their end, in order. The master hands them
/// to Reap, open or not: what lives of them stays.
pub async fn list_trims<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<InodeId>,
    max: usize,
) -> Result<Vec<InodeId>, OpError> {
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(orphan::trim_range_after(volume, after), limit, Read::Snapshot).await?;
    page.pairs.iter().map(|(key, _)| Ok(orphan::parse_trim_key(volume, key)?)).collect()
}

/// Frees one page of an inode's extents from `from` on, for [`OpError::Drain`]. Answers whether that was all. Of an
/// inode that lives only extents that a truncation left dead are freed.
pub async fn drain<T: Transaction>(tx: &T, inode: InodeId, from: u64) -> Result<bool, OpError> {
    let key = inode::key(inode);
    let Some(value) = tx.get(&key, Read::Conflicting).await? else { return Ok(true) };
    let mut record = InodeRecord::from_value(&value)?;
    let from = if record.orphan { from } else { record.trim_from.unwrap_or(u64::MAX) };
    if from == u64::MAX {
        return Ok(true);
    }
    // An orphan's data goes for good once its reaping began: nobody has it open.
    let done = window::free_page(tx, inode, &mut record, from).await?;
    if record.orphan && record.size > from {
        record.size = from;
    }
    if done && record.trim_from.is_some_and(|t| t >= from) {
        record.trim_from = None;
        tx.clear(&orphan::trim_key(inode));
    }
    tx.set(&key, &record.to_value());
    Ok(done)
}

/// A chunk with where it lies and how many inodes use it.
#[derive(Clone, Debug, PartialEq)]
pub struct ChunkListing {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its record.
    pub record: ChunkRecord,
    /// Where its copies lie; none when this region never had any.
    pub location: Option<LocationRecord>,
}

/// Up to `max` chunks with ids above `after`, in order.
pub async fn list_chunks<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<ChunkId>,
    max: usize,
) -> Result<Vec<ChunkListing>, OpError> {
    let range = after.map_or_else(|| chunk::range(volume), chunk::range_after);
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(range, limit, Read::Snapshot).await?;
    let listings = page.pairs.iter().map(|(key, value)| async move {
        let chunk = chunk::parse_key(volume, key)?;
        let location = tx.get(&location::key(chunk), Read::Snapshot).await?;
        let location = location.map(|v| LocationRecord::from_value(&v)).transpose()?;
        Ok::<_, OpError>(ChunkListing { chunk, record: ChunkRecord::from_value(value)?, location })
    });
    futures::future::try_join_all(listings).await
}

/// A chunk's record and location.
pub async fn load_chunk<T: Transaction>(tx: &T, chunk: ChunkId) -> Result<Option<ChunkListing>, OpError> {
    let (chunk_key, location_key) = (chunk::key(chunk), location::key(chunk));
    let (record, location) =
        futures::join!(tx.get(&chunk_key, Read::Conflicting), tx.get(&location_key, Read::Conflicting))
            .in_order()?;
    let Some(record) = record else { return Ok(None) };
    let location = location.map(|v| LocationRecord::from_value(&v)).transpose()?;
    Ok(Some(ChunkListing { chunk, record: ChunkRecord::from_value(&record)?, location }))
}

/// The inodes with extents in a chunk, and how many each has; at most `max`.
pub async fn chunk_users<T: Transaction>(
    tx: &T,
    chunk: ChunkId,
    max: usize,
) -> Result<Vec<(InodeId, u64)>, OpError> {
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(chunk::reference_range(chunk), limit, Read::Conflicting).await?;
    page.pairs
        .iter()
        .map(|(key, value)| Ok((chunk::parse_reference_key(chunk, key)?, number::decode(Some(value))?)))
        .collect()
}

/// Sets where a chunk's copies lie, after a repair. The chunk must exist.
pub async fn set_location<T: Transaction>(
    tx: &T,
    chunk: ChunkId,
    location: &LocationRecord,
) -> Result<(), OpError> {
    if tx.get(&chunk::key(chunk), Read::Conflicting).await?.is_none() {
        return Err(OpError::Malformed("the chunk doesn't exist"));
    }
    tx.set(&location::key(chunk), &location.to_value());
    Ok(())
}

/// Forgets a sealed chunk that no inode uses. Answers whether it did: then its copies may be deleted.
pub async fn forget_chunk<T: Transaction>(tx: &T, chunk: ChunkId) -> Result<bool, OpError> {
    let Some(listing) = load_chunk(tx, chunk).await? else { return Ok(true) };
    if !listing.record.sealed || !chunk_users(tx, chunk, 1).await?.is_empty() {
        return Ok(false);
    }
    tx.clear(&chunk::key(chunk));
    tx.clear(&location::key(chunk));
    Ok(true)
}
