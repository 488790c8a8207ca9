//! How a replica becomes the home of the next epoch, and how what was a home becomes a replica.

use mooseng_schema::Record;
use mooseng_schema::log::{self, LogPosition, LoggedRecord, ReplicaRecord};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::{Epoch, VolumeId};

use crate::{ReplicaError, apply, read};

/// Entries that are put aside in one transaction: of so many bytes.
const SALVAGE_BYTES: usize = 400_000;

async fn logged<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<LoggedRecord>, ReplicaError> {
    let value = tx.get(&log::logged_key(volume), Read::Conflicting).await?;
    Ok(value.map(|value| LoggedRecord::from_value(&value)).transpose()?)
}

/// This region becomes the volume's home under that epoch, from where it is on, or goes on as it. Each of the volume's changes reads the record that
/// is changed here, so that none of an earlier epoch commits behind it. Answers whether anything had to be done.
pub async fn take_over<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    epoch: Epoch,
    cut: Option<LogPosition>,
) -> Result<bool, ReplicaError> {
    let key = volume::key(volume);
    let replica = apply::state(tx, volume, Read::Conflicting).await?;
    let record =
        tx.get(&key, Read::Conflicting).await?.map(|value| VolumeRecord::from_value(&value)).transpose()?;
    let Some(record) = record else { return Ok(false) };
    let known = logged(tx, volume).await?;
    if record.epoch > epoch.0 || known.as_ref().is_some_and(|known| known.closed >= epoch.0) {
        return Err(ReplicaError::Refused(record.epoch.max(known.map_or(0, |known| known.closed))));
    }
    if record.epoch == epoch.0 && replica.is_none() {
        return Ok(false);
    }
    let behind = match (&replica, known) {
        (Some(replica), _) if replica.copied_before.is_some() => {
            return Err(ReplicaError::Senseless(
                "the volume was being copied when this region became its home",
            ));
        }
        (Some(replica), _) => {
            if let Some(cut) = cut.filter(|cut| *cut != replica.position()) {
                return Err(ReplicaError::Gap { at: replica.position(), after: cut });
            }
            Some(replica.log_behind())
        }
        (None, known) => known.map(|known| known.trimmed()),
    };
    tx.set(&key, &VolumeRecord { epoch: epoch.0, ..record }.to_value());
    tx.clear(&log::replica_key(volume));
    if let Some(behind) = behind {
        let record = LoggedRecord {
            epoch: epoch.0,
            trimmed_epoch: behind.epoch.0,
            trimmed_version: behind.version,
            closed: 0,
        };
        tx.set(&log::logged_key(volume), &record.to_value());
    }
    Ok(true)
}

/// The home serves no epoch up to this one any more. Answers where its log is: nothing that is acknowledged comes behind.
pub async fn close<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    epoch: Epoch,
) -> Result<LogPosition, ReplicaError> {
    let known = logged(tx, volume).await?.ok_or(ReplicaError::NotLogged)?;
    let known = LoggedRecord { closed: known.closed.max(epoch.0), ..known };
    tx.set(&log::logged_key(volume), &known.to_value());
    read::newest(tx, volume).await
}

/// What was the home of an epoch before is a replica from now on, at the end of its own log: whether that is a place of the log that there is now the
/// present home says. Answers whether anything had to be done.
pub async fn rejoin<T: Transaction>(tx: &T, volume: VolumeId, epoch: Epoch) -> Result<bool, ReplicaError> {
    let Some(known) = logged(tx, volume).await? else { return Ok(false) };
    if apply::state(tx, volume, Read::Conflicting).await?.is_some() {
        return Ok(false);
    }
    let (at, behind) = (read::newest(tx, volume).await?, known.trimmed());
    let record = ReplicaRecord {
        epoch: at.epoch.0,
        version: at.version,
        copied_before: None,
        log_behind_epoch: behind.epoch.0,
        log_behind_version: behind.version,
        refuses: epoch.0.saturating_sub(1),
        // Its own log's data is its own.
        complete_epoch: at.epoch.0,
        complete_version: at.version,
    };
    apply::put(tx, volume, record);
    tx.clear(&log::logged_key(volume));
    Ok(true)
}

/// Whether a place is one of the log here, so that what follows it can be sent to whoever is there.
pub async fn has<T: Transaction>(tx: &T, volume: VolumeId, at: LogPosition) -> Result<bool, ReplicaError> {
    let known = read::logged(tx, volume).await?.ok_or(ReplicaError::NotLogged)?;
    if at == known.trimmed() {
        return Ok(true);
    }
    Ok(tx.get(&log::key(volume, at, 0), Read::Snapshot).await?.is_some())
}

/// Puts aside entries beyond `cut` that nobody else has, as many as fit. Answers whether there are more.
pub async fn salvage<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    cut: LogPosition,
) -> Result<bool, ReplicaError> {
    let range = log::range_after(volume, cut);
    let limit = RangeLimit { bytes_max: SALVAGE_BYTES, ..RangeLimit::default() };
    let page = tx.get_range(range, limit, Read::Conflicting).await?;
    tx.allow_large();
    for (key, value) in &page.pairs {
        let (at, part) = log::parse_key(volume, key)?;
        tx.set(&log::salvage_key(volume, at, part), value);
        tx.clear(key);
    }
    Ok(page.more)
}
