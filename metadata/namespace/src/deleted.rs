//! What a region's store has of a volume that was deleted, and how it goes: after a while, in parts, each a transaction of its own.
//!
//! What says that the volume's changes are logged goes first, and with it the volume's own record, which each change of it reads: none that was begun
//! before is committed behind it.

use mooseng_schema::Record;
use mooseng_schema::deleted::{self, DeletedRecord};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_store::{KeyRange, RangeLimit, Read, Transaction, key_range};
use mooseng_wire::VolumeId;

use crate::error::OpError;

/// Records that one transaction clears.
const PART: usize = 1_000;

/// What is on record of a deleted volume; none where nothing is.
pub async fn state<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<DeletedRecord>, OpError> {
    let value = tx.get(&deleted::key(volume), Read::Conflicting).await?;
    Ok(value.map(|value| DeletedRecord::from_value(&value)).transpose()?)
}

/// Takes note that a volume is deleted, unless that is on record. What is here of it stays as long as the volume keeps deleted files, for they are among it;
/// `otherwise_keep_s` seconds where the volume can't say so any more.
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
    let told = value.and_then(|value| VolumeRecord::from_value(&value).ok());
    let keep_s = told.map_or(otherwise_keep_s, |record| record.trash_retention_s);
    // One that this region never had.
    let cleared = next_part(tx, volume).await?.is_none();
    let record = DeletedRecord { since_ns: now_ns, keep_s, cleared };
    tx.set(&deleted::key(volume), &record.to_value());
    Ok(record)
}

/// Clears the next part of what is here of a volume that is on record as deleted. Answers whether there may be more; once there isn't, that is on record.
pub async fn clear<T: Transaction>(tx: &T, volume: VolumeId) -> Result<bool, OpError> {
    // Nothing goes of a volume of which it isn't on record that it is deleted.
    let Some(record) = state(tx, volume).await? else { return Err(OpError::NoVolume(volume.0)) };
    match next_part(tx, volume).await? {
        Some(part) => {
            tx.clear_range(part);
            Ok(true)
        }
        None => {
            tx.set(&deleted::key(volume), &DeletedRecord { cleared: true, ..record }.to_value());
            Ok(false)
        }
    }
}

async fn next_part<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<KeyRange>, OpError> {
    let limit = RangeLimit { pairs_max: PART, ..RangeLimit::default() };
    for range in deleted::ranges(volume) {
        let page = tx.get_range(range, limit, Read::Snapshot).await?;
        if let (Some((first, _)), Some((last, _))) = (page.pairs.first(), page.pairs.last()) {
            return Ok(Some(KeyRange { begin: first.clone(), end: key_range(last).end }));
        }
    }
    Ok(None)
}
