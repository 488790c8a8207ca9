//! What leaders saw of the wall clock by which a volume's things are old: on record, for those that follow.

use mooseng_schema::Record;
use mooseng_schema::clock::{self, ClockRecord, Kept};
use mooseng_store::{Read, Transaction};
use mooseng_wire::VolumeId;

use crate::error::OpError;

/// What an earlier leader, or this one, saw of it.
pub async fn seen<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    kept: Kept,
) -> Result<Option<ClockRecord>, OpError> {
    let value = tx.get(&clock::key(volume, kept), Read::Snapshot).await?;
    Ok(value.map(|value| ClockRecord::from_value(&value)).transpose()?)
}

/// Notes what was seen of it. Doing it again does no harm.
pub fn note<T: Transaction>(tx: &T, volume: VolumeId, kept: Kept, seen: &ClockRecord) {
    tx.set(&clock::key(volume, kept), &seen.to_value());
}
