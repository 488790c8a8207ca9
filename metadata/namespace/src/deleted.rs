//! What a region's store has of a volume that was deleted, and how it goes: after a while, in parts, each a transaction of its own.
//!
//! What says that the volume's changes are logged goes first, and with it the volume's own record, which each change of it reads: none that was begun
//! before is committed behind it.

use mooseng_schema::deleted::{self, DeletedRecord};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_schema::{Record, trash};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::VolumeId;

use crate::clearing::{self, PART, Progress};
use crate::error::OpError;

/// What is on record of a deleted volume; none where nothing is.
pub async fn state<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<DeletedRecord>, OpError> {
    let value = tx.get(&deleted::key(volume), Read::Conflicting).await?;
    Ok(value.map(|value| DeletedRecord::from_value(&value)).transpose()?)
}

/// Takes note that a volume is deleted, unless that is on record. What is here of it stays as long as the volume keeps deleted files, and as long as those
/// were to stay that are in its trash, for they are among it; `otherwise_keep_s` seconds where it has no record here.
pub async fn note<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    now_ns: i64,
    otherwise_keep_s: u64,
) -> Result<DeletedRecord, OpError> {
    if let Some(known) = state(tx, volume).await? {
        return Ok(known);
    }
    let value = tx.get(&volume::key(volume), Read::Conflicting).await?;
    let told = value.map(|value| VolumeRecord::from_value(&value)).transpose()?;
    let keep_s = told.map_or(otherwise_keep_s, |record| record.trash_retention_s);
    let last = RangeLimit { pairs_max: 1, reverse: true, ..RangeLimit::default() };
    let last = tx.get_range(trash::range(volume), last, Read::Conflicting).await?;
    let in_trash_s = match last.pairs.first() {
        Some((key, _)) => {
            let left_ns = trash::parse_key(volume, key)?.0.saturating_sub(now_ns);
            u64::try_from(left_ns).unwrap_or(0).div_ceil(1_000_000_000)
        }
        None => 0,
    };
    // One that this region never had.
    let cleared = clearing::is_nothing(tx, &deleted::ranges(volume)).await?;
    let record = DeletedRecord { since_ns: now_ns, keep_s: keep_s.max(in_trash_s), cleared };
    tx.set(&deleted::key(volume), &record.to_value());
    Ok(record)
}

/// Takes back that a volume is deleted. Answers whether that was on record.
pub async fn take_back<T: Transaction>(tx: &T, volume: VolumeId) -> Result<bool, OpError> {
    let known = state(tx, volume).await?.is_some();
    if known {
        tx.clear(&deleted::key(volume));
    }
    Ok(known)
}

/// Clears the next part of what is here of a volume that is on record as deleted, behind what was cleared before. Answers how far it is, or none once nothing
/// is left, which is on record then.
pub async fn clear<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    progress: Progress,
) -> Result<Option<Progress>, OpError> {
    // Nothing goes of a volume of which it isn't on record that it is deleted.
    let Some(record) = state(tx, volume).await? else { return Err(OpError::NoVolume(volume.0)) };
    if let Some(more) = clearing::clear(tx, &deleted::ranges(volume), progress, PART).await? {
        return Ok(Some(more));
    }
    tx.set(&deleted::key(volume), &DeletedRecord { cleared: true, ..record }.to_value());
    Ok(None)
}
