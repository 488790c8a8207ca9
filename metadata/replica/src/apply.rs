//! What a region does with the log of a volume whose home is elsewhere.
//!
//! Its records are copied range by range while the log goes on: whatever is here is always as it was at one place of the log, kept with it. A
//! range that was read at a later place is taken in only once the log was replayed up to that place for what was copied before.

use bytes::Bytes;
use mooseng_schema::dead::{self, DeadRecord};
use mooseng_schema::key::whole_volume;
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::log::{self, LogPosition, ReplicaRecord};
use mooseng_schema::{Record, chunk};
use mooseng_store::mvcc::Change;
use mooseng_store::{KeyRange, Read, Transaction};
use mooseng_wire::{ChunkId, Epoch, VolumeId};

use crate::entry::{logged_ranges, within};
use crate::read::Page;
use crate::{Entry, ReplicaError};

/// How far the replica is; none where it wasn't begun.
pub async fn state<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    read: Read,
) -> Result<Option<ReplicaRecord>, ReplicaError> {
    let value = tx.get(&log::replica_key(volume), read).await?;
    Ok(value.map(|value| ReplicaRecord::from_value(&value)).transpose()?)
}

/// Begins it, or begins it anew: nothing counts as copied, and what was kept of the log, to which a gap follows, is gone. What it refuses it goes on
/// to refuse.
pub async fn begin<T: Transaction>(tx: &T, volume: VolumeId) -> Result<(), ReplicaError> {
    let refuses = state(tx, volume, Read::Conflicting).await?.map_or(0, |record| record.refuses);
    tx.clear_range(log::range(volume));
    let copied_before = Some(whole_volume(volume).begin);
    put(tx, volume, ReplicaRecord { copied_before, refuses, ..Default::default() });
    Ok(())
}

/// From now on nothing is taken of the homes of epochs up to this one. Answers where the replica is.
pub async fn refuse<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    epoch: Epoch,
) -> Result<ReplicaRecord, ReplicaError> {
    let record = state(tx, volume, Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    let record = ReplicaRecord { refuses: record.refuses.max(epoch.0), ..record };
    put(tx, volume, record.clone());
    Ok(record)
}

pub(crate) fn put<T: Transaction>(tx: &T, volume: VolumeId, record: ReplicaRecord) {
    tx.set(&log::replica_key(volume), &record.to_value());
}

fn moved(record: ReplicaRecord, to: LogPosition) -> ReplicaRecord {
    ReplicaRecord { epoch: to.epoch.0, version: to.version, ..record }
}

/// Whether nothing was copied yet, so that any place will do.
fn is_empty(record: &ReplicaRecord, volume: VolumeId) -> bool {
    record.copied_before.as_ref().is_some_and(|before| *before <= whole_volume(volume).begin)
}

/// Takes in a range that was read from `from` on.
pub async fn install<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    from: &Bytes,
    page: &Page,
) -> Result<(), ReplicaError> {
    let record = state(tx, volume, Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    if record.copied_before.as_ref() != Some(from) {
        return Err(ReplicaError::Senseless("a range came that isn't the next one"));
    }
    let first = is_empty(&record, volume);
    if !first && record.position() != page.at {
        return Err(ReplicaError::Gap { at: record.position(), after: page.at });
    }
    let end = page.next.clone().unwrap_or_else(|| whole_volume(volume).end);
    let covered = KeyRange { begin: from.clone(), end };
    let inside = |key: &Bytes| covered.begin <= *key && *key < covered.end;
    if covered.begin > covered.end || !page.pairs.iter().all(|(key, _)| inside(key)) {
        return Err(ReplicaError::Senseless("a range has pairs outside of its bounds"));
    }
    tx.allow_large();
    // What is here may be left from an earlier copy.
    for own in logged_ranges(volume) {
        if let Some(Change::ClearRange(range)) = within(&Change::ClearRange(covered.clone()), &own) {
            tx.clear_range(range);
        }
    }
    let log = log::range(volume);
    for (key, value) in &page.pairs {
        if log.begin <= *key && *key < log.end {
            return Err(ReplicaError::Senseless("a range holds entries of the log"));
        }
        tx.set(key, value);
    }
    let mut record = ReplicaRecord { copied_before: page.next.clone(), ..record };
    if first {
        record.log_behind_epoch = page.at.epoch.0;
        record.log_behind_version = page.at.version;
    }
    put(tx, volume, moved(record, page.at));
    Ok(())
}

/// Replays entries of the home of epoch `from` that follow `after`, as far as what they change was copied, and keeps them in the log here. Copies of chunks that die by it are
/// to be deleted, from `now_ns` on. Answers the place behind.
pub async fn entries<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: LogPosition,
    entries: &[Entry],
    from: Epoch,
    now_ns: i64,
) -> Result<LogPosition, ReplicaError> {
    let record = state(tx, volume, Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    if from.0 <= record.refuses {
        return Err(ReplicaError::Refused(record.refuses));
    }
    if is_empty(&record, volume) || record.position() != after {
        return Err(ReplicaError::Gap { at: record.position(), after });
    }
    tx.allow_large();
    let copied = KeyRange {
        begin: whole_volume(volume).begin,
        end: record.copied_before.clone().unwrap_or_else(|| whole_volume(volume).end),
    };
    let own = logged_ranges(volume);
    let mut at = after;
    for entry in entries {
        if entry.at <= at {
            return Err(ReplicaError::Senseless("its entries don't ascend"));
        }
        at = entry.at;
        for change in entry.changes()? {
            // What a home writes lies in the volume, and in one of its two parts.
            if !own.iter().any(|range| within(&change, range).as_ref() == Some(&change)) {
                return Err(ReplicaError::Senseless("an entry names keys outside of the volume"));
            }
            match within(&change, &copied) {
                Some(Change::Set(key, value)) => tx.set(&key, &value),
                Some(Change::Clear(key)) => {
                    tx.clear(&key);
                    if let Ok(chunk) = chunk::parse_key(volume, &key) {
                        bury(tx, chunk, now_ns).await?;
                    }
                }
                Some(Change::ClearRange(range)) => tx.clear_range(range),
                None => {}
            }
        }
        for (key, value) in log::parts(volume, entry.at, &entry.bytes) {
            tx.set(&key, &value);
        }
    }
    put(tx, volume, moved(record, at));
    Ok(at)
}

/// A chunk is no more: its copies in this region are remembered until they are deleted.
async fn bury<T: Transaction>(tx: &T, chunk: ChunkId, now_ns: i64) -> Result<(), ReplicaError> {
    let key = location::key(chunk);
    let Some(value) = tx.get(&key, Read::Conflicting).await? else { return Ok(()) };
    let LocationRecord { copies, epoch, .. } = LocationRecord::from_value(&value)?;
    tx.clear(&key);
    if !copies.is_empty() {
        tx.set(&dead::key(chunk), &DeadRecord { copies, epoch, since_ns: now_ns }.to_value());
    }
    Ok(())
}

/// Lets go of the entries up to a place.
pub async fn trim<T: Transaction>(tx: &T, volume: VolumeId, upto: LogPosition) -> Result<(), ReplicaError> {
    let record = state(tx, volume, Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    if upto <= record.log_behind() || upto > record.position() {
        return Ok(());
    }
    tx.clear_range(log::range_upto(volume, upto));
    let record = ReplicaRecord { log_behind_epoch: upto.epoch.0, log_behind_version: upto.version, ..record };
    put(tx, volume, record);
    Ok(())
}
