//! How a replica becomes the home of the next epoch, and how what was a home becomes a replica.

use bytes::BytesMut;
use mooseng_schema::Record;
use mooseng_schema::before as images;
use mooseng_schema::lock;
use mooseng_schema::log::{self, LogPosition, LoggedRecord, ReplicaRecord};
use mooseng_schema::loss::{self, LossRecord};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_store::mvcc::Change;
use mooseng_store::{KeyRange, RangeLimit, Read, Transaction, limits};
use mooseng_wire::{Epoch, VolumeId};

use crate::{Entry, ReplicaError, apply, before, read};

/// Entries that are put aside in one transaction: of so many bytes.
const SALVAGE_BYTES: usize = 400_000;
/// An entry is no larger than a transaction.
const ENTRY_BYTES_MAX: usize = limits::LARGE_TRANSACTION_BYTES_MAX;

async fn logged<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<LoggedRecord>, ReplicaError> {
    let value = tx.get(&log::logged_key(volume), Read::Conflicting).await?;
    Ok(value.map(|value| LoggedRecord::from_value(&value)).transpose()?)
}

/// This region becomes the volume's home under that epoch, from where it is on, or goes on as it: what it has beyond the cut was undone before
/// ([`undo`]). Each of the volume's changes reads the record that
/// is changed here, so that none of an earlier epoch commits behind it. What is known of a loss goes into the ledger with it. Answers whether anything had to be done.
pub async fn take_over<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    epoch: Epoch,
    cut: Option<LogPosition>,
    loss: Option<&LossRecord>,
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
    apply::is_to_have(tx, volume).await?;
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
            if replica.undoing {
                return Err(ReplicaError::Senseless(
                    "an entry was being undone when this region became the volume's home",
                ));
            }
            Some(replica.log_behind())
        }
        (None, known) => known.map(|known| known.trimmed()),
    };
    tx.set(&key, &VolumeRecord { epoch: epoch.0, ..record }.to_value());
    tx.clear(&log::replica_key(volume));
    tx.clear_range(images::range(volume));
    if replica.is_some() || record.epoch > 0 {
        // Those of an epoch before, here or as it was the home an earlier time: who held them holds them anew before anybody is served, and what nobody
        // knows of any more, as a lock whose grant was never heard, mustn't stay.
        tx.clear_range(lock::range_of_volume(volume));
    }
    if let Some(behind) = behind {
        let record = LoggedRecord {
            epoch: epoch.0,
            trimmed_epoch: behind.epoch.0,
            trimmed_version: behind.version,
            closed: 0,
        };
        tx.set(&log::logged_key(volume), &record.to_value());
    }
    if let Some(loss) = loss {
        tx.set(&loss::key(volume, Epoch(epoch.0.saturating_sub(1))), &loss.to_value());
    }
    Ok(true)
}

/// Takes back what the replica has of the log beyond `cut`, the newest entry first, as much as one transaction takes; what is undone is put aside.
/// Answers whether there is more. Each transaction leaves the replica at a place of the log where it is as its home was; only an entry that changed more
/// than one transaction can takes several, which the record says.
///
/// Nothing is undone below where the region is complete, or where its copy ended.
pub async fn undo<T: Transaction>(tx: &T, volume: VolumeId, cut: LogPosition) -> Result<bool, ReplicaError> {
    let mut record = apply::state(tx, volume, Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    if record.position() == cut && !record.undoing {
        return Ok(false);
    }
    if record.copied_before.is_some() || record.position() <= cut {
        return Err(ReplicaError::Gap { at: record.position(), after: cut });
    }
    let down_to = apply::undoable_down_to(tx, volume, &record).await?.max(record.complete());
    if cut < down_to {
        return Err(ReplicaError::NotUndoable { to: cut, down_to });
    }
    let is_place =
        cut == record.log_behind() || tx.get(&log::key(volume, cut, 0), Read::Snapshot).await?.is_some();
    if !is_place {
        return Err(ReplicaError::Gap { at: record.position(), after: cut });
    }
    tx.allow_large();
    // Of an entry that was about to be replayed.
    tx.clear_range(images::range_after(volume, record.position()));
    record.imaged_before = None;
    while record.position() > cut && tx.approximate_size() <= before::ENOUGH_BYTES {
        let at = record.position();
        record.undoing = before::take_in(tx, volume, at).await?;
        if record.undoing {
            break;
        }
        let changes = put_entry_aside(tx, volume, at).await?;
        before::put_aside_chunks(tx, volume, &changes).await?;
        let to = apply::before_place(tx, volume, &record, at).await?;
        (record.epoch, record.version) = (to.epoch.0, to.version);
    }
    let more = record.undoing || record.position() > cut;
    apply::put(tx, volume, record);
    Ok(more)
}

/// Goes on with what [`undo`] has begun with one entry, until the replica can follow a home again. Answers whether there was anything to do.
pub async fn end_undo<T: Transaction>(tx: &T, volume: VolumeId) -> Result<bool, ReplicaError> {
    let record = apply::state(tx, volume, Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    if !record.undoing {
        return Ok(false);
    }
    let before = apply::before_place(tx, volume, &record, record.position()).await?;
    undo(tx, volume, before).await?;
    Ok(true)
}

/// One entry of the log here is put aside. Answers its changes.
async fn put_entry_aside<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    at: LogPosition,
) -> Result<Vec<Change>, ReplicaError> {
    let range = KeyRange { begin: log::key(volume, at, 0).into(), end: log::range_after(volume, at).begin };
    let limit = RangeLimit { bytes_max: ENTRY_BYTES_MAX, ..RangeLimit::default() };
    let page = tx.get_range(range, limit, Read::Snapshot).await?;
    let mut bytes = BytesMut::new();
    for (key, value) in &page.pairs {
        let (at, part) = log::parse_key(volume, key)?;
        bytes.extend_from_slice(&log::part(value)?.0);
        tx.set(&log::salvage_key(volume, at, part), value);
        tx.clear(key);
    }
    Ok(Entry { at, bytes: bytes.freeze() }.changes()?)
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

/// The home makes no change under its epoch any more, for it is to move. The transaction is the last entry of the epoch's log, if nothing comes in between;
/// it passes a seal on the volume ([`log::logged_key`]).
pub async fn end_for_move<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    epoch: Epoch,
) -> Result<(), ReplicaError> {
    let (record, known) = home_of(tx, volume, epoch).await?;
    tx.set(&volume::key(volume), &VolumeRecord { moving_from: epoch.0, ..record }.to_value());
    tx.set(&log::logged_key(volume), &known.to_value());
    Ok(())
}

/// The home goes on under its epoch, whatever it ended it for. Its commit decides about any end that was on its way, too.
pub async fn go_on<T: Transaction>(tx: &T, volume: VolumeId, epoch: Epoch) -> Result<(), ReplicaError> {
    let (record, known) = home_of(tx, volume, epoch).await?;
    if record.moving_from != 0 {
        tx.set(&volume::key(volume), &VolumeRecord { moving_from: 0, ..record }.to_value());
    }
    tx.set(&log::logged_key(volume), &known.to_value());
    Ok(())
}

/// Whether the home has ended that epoch for a move. Once its commit is known, and it hasn't, no end that was on its way before comes any more.
pub async fn is_ended_for_move<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    epoch: Epoch,
) -> Result<bool, ReplicaError> {
    let Some(known) = logged(tx, volume).await? else { return Ok(false) };
    tx.set(&log::logged_key(volume), &known.to_value());
    let value = tx.get(&volume::key(volume), Read::Conflicting).await?;
    let record = value.map(|value| VolumeRecord::from_value(&value)).transpose()?;
    Ok(record.is_some_and(|record| record.moving_from == epoch.0))
}

/// The records of a volume that is at home here under that epoch.
async fn home_of<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    epoch: Epoch,
) -> Result<(VolumeRecord, LoggedRecord), ReplicaError> {
    let known = logged(tx, volume).await?.ok_or(ReplicaError::NotLogged)?;
    let value = tx.get(&volume::key(volume), Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    let record = VolumeRecord::from_value(&value)?;
    if known.closed >= epoch.0 || record.epoch != epoch.0 {
        return Err(ReplicaError::Refused(record.epoch.max(known.closed)));
    }
    Ok((record, known))
}

/// What was the home of an epoch before is a replica from now on, at the end of its own log: whether that is a place of the log that there is now the
/// present home says. Answers whether anything had to be done. Refused where this region has been the home of that epoch, or of a later one: whoever asks has
/// started, and doesn't know yet what the regions have agreed on since.
pub async fn rejoin<T: Transaction>(tx: &T, volume: VolumeId, epoch: Epoch) -> Result<bool, ReplicaError> {
    let Some(known) = logged(tx, volume).await? else { return Ok(false) };
    if apply::state(tx, volume, Read::Conflicting).await?.is_some() {
        return Ok(false);
    }
    if known.epoch >= epoch.0 {
        return Err(ReplicaError::Refused(known.epoch));
    }
    let (at, behind) = (read::newest(tx, volume).await?, known.trimmed());
    let record = ReplicaRecord {
        epoch: at.epoch.0,
        version: at.version,
        copied_before: None,
        log_behind_epoch: behind.epoch.0,
        log_behind_version: behind.version,
        refuses: epoch.0.saturating_sub(1),
        confirmed: known.epoch,
        // Its own log's data is its own.
        complete_epoch: at.epoch.0,
        complete_version: at.version,
        ..ReplicaRecord::default()
    };
    apply::put(tx, volume, record);
    tx.clear(&log::logged_key(volume));
    Ok(true)
}

/// The home lets go of its log up to a place, or to the last one of it before: whoever asks whether it is at a place of the log takes that place for one.
/// Answers up to where it is let go of.
pub async fn trim<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    upto: LogPosition,
) -> Result<LogPosition, ReplicaError> {
    let known = logged(tx, volume).await?.ok_or(ReplicaError::NotLogged)?;
    let upto = read::at_or_before(tx, volume, upto).await?;
    if upto <= known.trimmed() {
        return Ok(known.trimmed());
    }
    tx.clear_range(log::range_upto(volume, upto));
    let known = LoggedRecord { trimmed_epoch: upto.epoch.0, trimmed_version: upto.version, ..known };
    tx.set(&log::logged_key(volume), &known.to_value());
    Ok(upto)
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
