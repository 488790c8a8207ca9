//! What a region has of a volume that it was taken out of, and how that goes: its records in parts, each a transaction of its own; then, chunk by chunk, where
//! copies lie that the volume's home doesn't need.
//!
//! ```text
//!  note --> (as it was, for a while) --> begin_clearing --> clear ... --> places, drop_places ...
//!     \----------------------------------------\---------------\-------------\--> take_back
//! ```
//! The first transaction that clears takes what says that a home or a replica is here, with the volume's own record: whatever is left behind it is no state of
//! the volume, and a replica that is begun later is copied from nothing. Each of these transactions reads the record of what is let go of, and writes it: none
//! commits behind [`take_back`].

use bytes::Bytes;
use mooseng_schema::Record;
use mooseng_schema::chunk::{self, ChunkRecord};
use mooseng_schema::let_go::{self, LetGoRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::log::{self, LogPosition, LoggedRecord, ReplicaRecord};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::{ChunkId, VolumeId};

use crate::clearing::{self, Progress};
use crate::error::OpError;
use crate::upkeep;

/// What is on record of a volume that this region lets go of; none where it doesn't.
pub async fn state<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<LetGoRecord>, OpError> {
    Ok(load(tx, volume).await?.filter(|record| !record.over))
}

async fn load<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<LetGoRecord>, OpError> {
    let value = tx.get(&let_go::key(volume), Read::Conflicting).await?;
    Ok(value.map(|value| LetGoRecord::from_value(&value)).transpose()?)
}

fn put<T: Transaction>(tx: &T, volume: VolumeId, record: &LetGoRecord) {
    tx.set(&let_go::key(volume), &record.to_value());
}

/// What a region has of a volume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Here {
    /// That it lets go of it.
    pub let_go: Option<LetGoRecord>,
    /// Its replica.
    pub replica: Option<ReplicaRecord>,
    /// It was the home, and hasn't become a replica since.
    pub logged: Option<LoggedRecord>,
    /// The volume's own record.
    pub volume: Option<VolumeRecord>,
    /// Any record that goes.
    pub any: bool,
}

/// Looks what is here of a volume.
pub async fn look<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Here, OpError> {
    let replica = tx.get(&log::replica_key(volume), Read::Conflicting).await?;
    let logged = tx.get(&log::logged_key(volume), Read::Conflicting).await?;
    let own = tx.get(&volume::key(volume), Read::Conflicting).await?;
    let first = RangeLimit { pairs_max: 1, ..RangeLimit::default() };
    let mut any = replica.is_some() || logged.is_some();
    let ranges = let_go::ranges(volume).into_iter().chain([location::range_after(volume, None)]);
    for range in ranges {
        any = any || !tx.get_range(range, first, Read::Snapshot).await?.pairs.is_empty();
    }
    Ok(Here {
        let_go: state(tx, volume).await?,
        replica: replica.map(|value| ReplicaRecord::from_value(&value)).transpose()?,
        logged: logged.map(|value| LoggedRecord::from_value(&value)).transpose()?,
        volume: own.map(|value| VolumeRecord::from_value(&value)).transpose()?,
        any,
    })
}

/// Takes note that this region isn't to have a volume any more, as of a version of the global store, unless that is on record. `mark` tells the volume by its
/// record.
pub async fn note<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    now_ns: i64,
    agreed: u64,
    mark: impl Fn(&VolumeRecord) -> Bytes,
) -> Result<LetGoRecord, OpError> {
    let known = load(tx, volume).await?;
    if let Some(known) = known.as_ref().filter(|known| !known.over) {
        return Ok(known.clone());
    }
    // Where all that told it went before, that record does.
    let before = known.unwrap_or_default();
    let own = upkeep::load_volume(tx, volume).await?;
    let mark = own.as_ref().map_or(before.mark, mark);
    let (had_epoch, had_version) = (before.had_epoch, before.had_version);
    let record =
        LetGoRecord { since_ns: now_ns, agreed, mark, had_epoch, had_version, ..LetGoRecord::default() };
    put(tx, volume, &record);
    Ok(record)
}

/// This region is to have the volume again. Answers what was on record. Whatever was cleared, what is left is no replica from here on, unless nothing was.
///
/// It writes in any case, so that nothing that was begun before, and hasn't committed, commits behind it: neither [`note`] nor what clears.
pub async fn take_back<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<LetGoRecord>, OpError> {
    let known = load(tx, volume).await?;
    match &known {
        // What went doesn't tell any more which volume it was of: the next note does, by this.
        Some(known) => put(tx, volume, &LetGoRecord { over: true, ..known.clone() }),
        None => tx.clear(&let_go::key(volume)),
    }
    let known = known.filter(|known| !known.over);
    if known.as_ref().is_some_and(|known| known.clearing) {
        clear_heads(tx, volume);
    }
    Ok(known)
}

/// Begins to clear the records: those that say that the volume is here go. Only if the replica is at `expected` (the default place: none is here), and this
/// region isn't on record as the home; `had` is up to where the other regions are known to have everything, behind which nothing was here that isn't put aside.
/// Answers whether clearing has begun.
pub async fn begin_clearing<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    expected: LogPosition,
    had: LogPosition,
) -> Result<bool, OpError> {
    let record = state(tx, volume).await?.ok_or(OpError::NoVolume(volume.0))?;
    if record.clearing {
        return Ok(true);
    }
    let here = look(tx, volume).await?;
    let at = here.replica.as_ref().map(ReplicaRecord::position).unwrap_or_default();
    let is_undoing = here.replica.as_ref().is_some_and(|replica| replica.undoing);
    // Records of a volume that no log leads to are of nobody knows what.
    let is_replica = here.replica.is_some() || here.volume.is_none();
    if here.logged.is_some() || at != expected || is_undoing || !is_replica {
        return Ok(false);
    }
    clear_heads(tx, volume);
    let (had_epoch, had_version) = (had.epoch.0, had.version);
    put(tx, volume, &LetGoRecord { clearing: true, had_epoch, had_version, ..record });
    Ok(true)
}

/// What says that the volume is here. That none of it is here each transaction that clears says again: so it passes what keeps a replica to its log, as no
/// other change of the volume's records does.
fn clear_heads<T: Transaction>(tx: &T, volume: VolumeId) {
    tx.clear(&log::logged_key(volume));
    tx.clear(&log::replica_key(volume));
    tx.clear(&volume::key(volume));
}

/// Clears the next part of the records, so many at most, behind what was cleared before. Answers how far it is, or none once nothing is left, which is on record then.
pub async fn clear<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    progress: Progress,
    most: usize,
) -> Result<Option<Progress>, OpError> {
    let record = as_let_go(tx, volume).await?;
    clear_heads(tx, volume);
    let more = clearing::clear(tx, &let_go::ranges(volume), progress, most).await?;
    put(tx, volume, &LetGoRecord { cleared: record.cleared || more.is_none(), ..record });
    Ok(more)
}

/// Nothing goes of a volume that isn't on record as let go of, or of which something is here that counts.
async fn as_let_go<T: Transaction>(tx: &T, volume: VolumeId) -> Result<LetGoRecord, OpError> {
    let record = state(tx, volume).await?;
    record.filter(|record| record.clearing).ok_or(OpError::NoVolume(volume.0))
}

/// Up to `max` chunks with ids above `after` of which it is on record where copies lie in this region.
pub async fn places<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<ChunkId>,
    max: usize,
) -> Result<Vec<ChunkId>, OpError> {
    let limit = RangeLimit { pairs_max: max, ..RangeLimit::default() };
    let page = tx.get_range(location::range_after(volume, after), limit, Read::Snapshot).await?;
    page.pairs.iter().map(|(key, _)| Ok(location::parse_key(key)?)).collect()
}

/// It isn't on record any more where the copies of these chunks lie, which the volume's home doesn't need: once this has committed they may be deleted, as
/// long as the region isn't to have the volume again. Answers the chunkservers that were named.
pub async fn drop_places<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    chunks: &[ChunkId],
) -> Result<Vec<(ChunkId, Vec<String>)>, OpError> {
    let record = as_let_go(tx, volume).await?;
    if !record.cleared {
        return Err(OpError::Malformed(
            "records of the volume are left, of which a chunk's place is the last to go",
        ));
    }
    let mut named = Vec::with_capacity(chunks.len());
    for chunk in chunks.iter().filter(|chunk| chunk.volume() == volume) {
        let key = location::key(*chunk);
        let value = tx.get(&key, Read::Conflicting).await?;
        let location = value.map(|value| LocationRecord::from_value(&value)).transpose()?;
        tx.clear(&key);
        named.push((*chunk, location.map(|location| location.copies).unwrap_or_default()));
    }
    put(tx, volume, &record);
    Ok(named)
}

/// What a home has of a chunk of which another region has copies.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// Its record, and where its copies lie.
    Record(ChunkRecord, Option<LocationRecord>),
    /// It is no more: it was given out once, and its record is gone.
    Gone,
    /// It was never given out here: this store may be older than the chunk.
    Unknown,
}

/// Looks it up.
pub async fn known<T: Transaction>(tx: &T, id: ChunkId) -> Result<Known, OpError> {
    if let Some(value) = tx.get(&chunk::key(id), Read::Conflicting).await? {
        let location = tx.get(&location::key(id), Read::Conflicting).await?;
        let location = location.map(|value| LocationRecord::from_value(&value)).transpose()?;
        return Ok(Known::Record(ChunkRecord::from_value(&value)?, location));
    }
    Ok(if upkeep::was_given(tx, id).await? { Known::Gone } else { Known::Unknown })
}
