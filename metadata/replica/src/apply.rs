//! What a region does with the log of a volume whose home is elsewhere.
//!
//! Its records are copied range by range while the log goes on: whatever is here is always as it was at one place of the log, kept with it. A
//! range that was read at a later place is taken in only once the log was replayed up to that place for what was copied before.

use bytes::Bytes;
use mooseng_schema::before as images;
use mooseng_schema::dead::{self, DeadRecord};
use mooseng_schema::key::whole_volume;
use mooseng_schema::let_go::{self, LetGoRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::log::{self, LogPosition, ReplicaRecord};
use mooseng_schema::{Record, chunk};
use mooseng_store::mvcc::Change;
use mooseng_store::{KeyRange, RangeLimit, Read, Transaction};
use mooseng_wire::{ChunkId, Epoch, VolumeId};

use crate::before::Image;
use crate::entry::{logged_ranges, within};
use crate::read::Page;
use crate::{Entry, ReplicaError, before};

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
    is_to_have(tx, volume).await?;
    tx.clear_range(log::range(volume));
    tx.clear_range(images::range(volume));
    let copied_before = Some(whole_volume(volume).begin);
    put(tx, volume, ReplicaRecord { copied_before, refuses, ..Default::default() });
    Ok(())
}

/// Refuses where this region lets go of the volume: what is here of it is about to go, or has begun to. What goes by the replica's own record needs no more
/// than that, for it goes with the first that goes.
pub(crate) async fn is_to_have<T: Transaction>(tx: &T, volume: VolumeId) -> Result<(), ReplicaError> {
    let value = tx.get(&let_go::key(volume), Read::Conflicting).await?;
    let known = value.map(|value| LetGoRecord::from_value(&value)).transpose()?;
    if known.is_some_and(|known| !known.over) { Err(ReplicaError::LetGo) } else { Ok(()) }
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

/// Replays entries of the home of epoch `from` that follow `after`, as far as what they change was copied, and keeps them in the log here. Copies of chunks
/// that die by it are to be deleted, from `now_ns` on.
///
/// The data that entries up to `whole` name is here: as long as everything before is complete, they are as they come. With all others what they change
/// is kept as it was before, in this transaction, so that they can be undone; and the copies of chunks that die by them stay.
///
/// Answers the place behind, which may be before the last entry: what has to be kept takes room, and for one entry it may take several transactions,
/// all but the last of which leave the place as it is. The caller goes on from where the record is then.
pub async fn entries<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: LogPosition,
    entries: &[Entry],
    from: Epoch,
    now_ns: i64,
    whole: LogPosition,
) -> Result<LogPosition, ReplicaError> {
    let mut record = state(tx, volume, Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    // A later home may have been heard whose predecessor's end wasn't: behind its entries nothing of an earlier one is of the log.
    if from.0 <= record.refuses || from < record.of_log() {
        return Err(ReplicaError::Refused(record.refuses.max(record.of_log().0.saturating_sub(1))));
    }
    if record.undoing {
        return Err(ReplicaError::Senseless("an entry was being undone: that has to be ended first"));
    }
    if is_empty(&record, volume) || record.position() != after {
        return Err(ReplicaError::Gap { at: record.position(), after });
    }
    tx.allow_large();
    let own = logged_ranges(volume);
    for entry in entries {
        let at = record.position();
        if entry.at <= at {
            return Err(ReplicaError::Senseless("its entries don't ascend"));
        }
        let changes = entry.changes()?;
        // What a home writes lies in the volume, and in one of its two parts.
        if !changes
            .iter()
            .all(|change| own.iter().any(|range| within(change, range).as_ref() == Some(change)))
        {
            return Err(ReplicaError::Senseless("an entry names keys outside of the volume"));
        }
        if at != after && tx.approximate_size() > before::ENOUGH_BYTES {
            break;
        }
        if record.copied_before.is_some() {
            // Nothing is complete, and nothing of it can be undone.
            replay(tx, volume, &record, &changes, now_ns, None).await?;
        } else if record.complete() == at && entry.at <= whole {
            replay(tx, volume, &record, &changes, now_ns, None).await?;
            if record.imaged_before.is_some() {
                tx.clear_range(images::range_after(volume, at));
            }
            record = completed_to(record, entry.at);
        } else {
            let mut image = Image::of(tx, volume, entry.at).await?;
            if record.imaged_before.is_some() && !image.is_begun() {
                // What was begun was of another home's entry.
                tx.clear_range(images::range_after(volume, at));
                record.imaged_before = None;
            }
            if let Some(more) = image.keep(&changes, record.imaged_before.as_ref()).await? {
                record.imaged_before = Some(more);
                break;
            }
            replay(tx, volume, &record, &changes, now_ns, Some((entry.at, &mut image))).await?;
            image.end();
        }
        for (key, value) in log::parts(volume, entry.at, &entry.bytes) {
            tx.set(&key, &value);
        }
        record = ReplicaRecord { imaged_before: None, ..moved(record, entry.at) };
    }
    let at = record.position();
    // They follow the place: it is one of that home's log.
    record.confirmed = record.confirmed.max(from.0);
    put(tx, volume, record);
    Ok(at)
}

/// The home of an epoch has said that a place is one of its log: taken note of where the replica is there.
pub async fn confirm<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    at: LogPosition,
    from: Epoch,
) -> Result<(), ReplicaError> {
    let record = state(tx, volume, Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    let is_there = record.copied_before.is_none() && !record.undoing && record.position() == at;
    if is_there && from.0 > record.refuses && from > record.of_log() {
        put(tx, volume, ReplicaRecord { confirmed: from.0, ..record });
    }
    Ok(())
}

/// Makes an entry's changes, as far as what they change was copied.
async fn replay<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    record: &ReplicaRecord,
    changes: &[Change],
    now_ns: i64,
    mut undoable: Option<(LogPosition, &mut Image<'_, T>)>,
) -> Result<(), ReplicaError> {
    let copied = KeyRange {
        begin: whole_volume(volume).begin,
        end: record.copied_before.clone().unwrap_or_else(|| whole_volume(volume).end),
    };
    for change in changes {
        match within(change, &copied) {
            Some(Change::Set(key, value)) => tx.set(&key, &value),
            Some(Change::Clear(key)) => {
                tx.clear(&key);
                let Ok(chunk) = chunk::parse_key(volume, &key) else { continue };
                let mut died = LogPosition::default();
                if let Some((at, image)) = &mut undoable {
                    died = *at;
                    before::of_burial(tx, chunk)
                        .await?
                        .into_iter()
                        .flatten()
                        .for_each(|change| image.add(change));
                }
                bury(tx, chunk, now_ns, died).await?;
            }
            Some(Change::ClearRange(range)) => tx.clear_range(range),
            None => {}
        }
    }
    Ok(())
}

/// A chunk is no more: its copies in this region are remembered until they are deleted; with a place, not before the region is complete up to there.
async fn bury<T: Transaction>(
    tx: &T,
    chunk: ChunkId,
    now_ns: i64,
    died: LogPosition,
) -> Result<(), ReplicaError> {
    let key = location::key(chunk);
    let Some(value) = tx.get(&key, Read::Conflicting).await? else { return Ok(()) };
    let LocationRecord { copies, epoch, .. } = LocationRecord::from_value(&value)?;
    tx.clear(&key);
    if !copies.is_empty() {
        let (died_epoch, died_version) = (died.epoch.0, died.version);
        let dead = DeadRecord { copies, epoch, since_ns: now_ns, died_epoch, died_version };
        tx.set(&dead::key(chunk), &dead.to_value());
    }
    Ok(())
}

/// The data that entries up to `upto` name is here by now: what was kept to undo them is let go of, as much as one transaction takes. Answers whether
/// there is more.
///
/// It is as far as entries that can be undone go: of a volume that was just copied it takes everything up to the end of the copy at once.
pub async fn completed<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    upto: LogPosition,
) -> Result<bool, ReplicaError> {
    let record = state(tx, volume, Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    if record.copied_before.is_some() || record.undoing {
        return Ok(false);
    }
    let upto = upto.min(record.position());
    if upto <= record.complete() {
        return Ok(false);
    }
    let limit = RangeLimit { bytes_max: COMPLETED_BYTES, ..RangeLimit::default() };
    let page = tx.get_range(images::range_upto(volume, upto), limit, Read::Snapshot).await?;
    let mut places = Vec::new();
    for (key, _) in &page.pairs {
        places.push(images::parse_key(key)?.0);
    }
    places.dedup();
    // The last one's image may go on behind the page.
    if page.more && places.len() > 1 {
        places.pop();
    }
    let Some(reached) = places.last().copied() else {
        let base = undoable_down_to(tx, volume, &record).await?;
        if base > record.complete() && base <= upto {
            put(tx, volume, completed_to(record, base));
        }
        return Ok(false);
    };
    tx.clear_range(images::range_upto(volume, reached));
    put(tx, volume, completed_to(record, reached));
    Ok(page.more)
}

/// Bytes of images that are looked at in one transaction.
const COMPLETED_BYTES: usize = 400_000;

fn completed_to(record: ReplicaRecord, to: LogPosition) -> ReplicaRecord {
    ReplicaRecord { complete_epoch: to.epoch.0, complete_version: to.version, ..record }
}

/// The place before the first entry that can be undone.
pub(crate) async fn undoable_down_to<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    record: &ReplicaRecord,
) -> Result<LogPosition, ReplicaError> {
    match before::first_after(tx, volume, LogPosition::default()).await? {
        Some(first) if first <= record.position() => before_place(tx, volume, record, first).await,
        _ => Ok(record.position()),
    }
}

/// The place of the log here that comes before one.
pub(crate) async fn before_place<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    record: &ReplicaRecord,
    at: LogPosition,
) -> Result<LogPosition, ReplicaError> {
    let range = KeyRange { begin: log::range(volume).begin, end: log::key(volume, at, 0).into() };
    let last = RangeLimit { pairs_max: 1, reverse: true, ..RangeLimit::default() };
    let page = tx.get_range(range, last, Read::Snapshot).await?;
    match page.pairs.first() {
        Some((key, _)) => Ok(log::parse_key(volume, key)?.0),
        None => Ok(record.log_behind()),
    }
}

/// Lets go of the entries up to a place; those that can be undone stay.
pub async fn trim<T: Transaction>(tx: &T, volume: VolumeId, upto: LogPosition) -> Result<(), ReplicaError> {
    let record = state(tx, volume, Read::Conflicting).await?.ok_or(ReplicaError::NotLogged)?;
    let upto = upto.min(record.complete());
    if upto <= record.log_behind() || upto > record.position() {
        return Ok(());
    }
    tx.clear_range(log::range_upto(volume, upto));
    let record = ReplicaRecord { log_behind_epoch: upto.epoch.0, log_behind_version: upto.version, ..record };
    put(tx, volume, record);
    Ok(())
}
