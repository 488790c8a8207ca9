//! What is read of a volume for its replicas: entries of the log, ranges of records, digests of ranges.

use bytes::{Bytes, BytesMut};
use mooseng_schema::log::{self, LogPosition, LoggedRecord};
use mooseng_schema::loss::{self, LossRecord};
use mooseng_schema::{Record, SchemaError};
use mooseng_store::{KeyRange, RangeLimit, Read, Transaction};
use mooseng_wire::VolumeId;

use crate::entry::logged_ranges;
use crate::{Entry, ReplicaError, apply};

/// Pairs of a page at most.
const PAIRS_MAX: usize = 10_000;

/// The entries behind `after`, up to so many bytes and one entry at least. Refused where `after` is no place of the log here: whoever is there has
/// something else, which they don't follow.
pub async fn entries<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: LogPosition,
    bytes_max: usize,
) -> Result<Vec<Entry>, ReplicaError> {
    let logged = logged(tx, volume).await?.ok_or(ReplicaError::NotLogged)?;
    if after < logged.trimmed() {
        return Err(ReplicaError::Trimmed { after, trimmed: logged.trimmed() });
    }
    if !has(tx, volume, after).await? {
        return Err(ReplicaError::NotOfTheLog(after));
    }
    assemble(tx, log::range_after(volume, after), bytes_max, |key| log::parse_key(volume, key)).await
}

/// The same of the log that a replica keeps.
pub async fn kept<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: LogPosition,
    bytes_max: usize,
) -> Result<Vec<Entry>, ReplicaError> {
    let record = apply::state(tx, volume, Read::Snapshot).await?.ok_or(ReplicaError::NotLogged)?;
    if after < record.log_behind() {
        return Err(ReplicaError::Trimmed { after, trimmed: record.log_behind() });
    }
    assemble(tx, log::range_after(volume, after), bytes_max, |key| log::parse_key(volume, key)).await
}

/// Entries that were put aside, behind `after` and up to `upto`; up to so many bytes and one entry at least.
pub async fn put_aside<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: LogPosition,
    upto: LogPosition,
    bytes_max: usize,
) -> Result<Vec<Entry>, ReplicaError> {
    assemble(tx, log::salvage_between(volume, after, upto), bytes_max, log::parse_salvage_key).await
}

async fn assemble<T: Transaction>(
    tx: &T,
    mut range: KeyRange,
    bytes_max: usize,
    place: impl Fn(&[u8]) -> Result<(LogPosition, u32), SchemaError>,
) -> Result<Vec<Entry>, ReplicaError> {
    let mut found: Vec<Entry> = Vec::new();
    let mut begun: Option<(LogPosition, BytesMut)> = None;
    let mut bytes = 0;
    loop {
        let limit = RangeLimit { bytes_max: bytes_max.saturating_sub(bytes).max(1), ..RangeLimit::default() };
        let page = tx.get_range(range.clone(), limit, Read::Snapshot).await?;
        for (key, value) in &page.pairs {
            let (at, number) = place(key)?;
            let (part, more) = log::part(value)?;
            bytes += part.len();
            let mut entry = match begun.take() {
                None if number == 0 => BytesMut::new(),
                Some((of, entry)) if of == at && number > 0 => entry,
                _ => return Err(SchemaError::damaged("log entry", "a part of it is missing").into()),
            };
            entry.extend_from_slice(&part);
            if more {
                begun = Some((at, entry));
            } else {
                found.push(Entry { at, bytes: entry.freeze() });
            }
        }
        let Some((last, _)) = page.pairs.last().filter(|_| page.more) else { break };
        if bytes >= bytes_max && begun.is_none() {
            return Ok(found);
        }
        range.begin = mooseng_store::mvcc::after(last);
    }
    match begun {
        None => Ok(found),
        Some(_) => Err(SchemaError::damaged("log entry", "its end is missing").into()),
    }
}

/// That a volume is logged, if it is.
pub async fn logged<T: Transaction>(tx: &T, volume: VolumeId) -> Result<Option<LoggedRecord>, ReplicaError> {
    let value = tx.get(&log::logged_key(volume), Read::Snapshot).await?;
    Ok(value.map(|value| LoggedRecord::from_value(&value)).transpose()?)
}

/// The place that the volume is at, as the transaction sees it.
pub async fn newest<T: Transaction>(tx: &T, volume: VolumeId) -> Result<LogPosition, ReplicaError> {
    let logged = logged(tx, volume).await?.ok_or(ReplicaError::NotLogged)?;
    let last = RangeLimit { pairs_max: 1, reverse: true, ..RangeLimit::default() };
    let page = tx.get_range(log::range(volume), last, Read::Snapshot).await?;
    match page.pairs.first() {
        Some((key, _)) => Ok(log::parse_key(volume, key)?.0.max(logged.trimmed())),
        None => Ok(logged.trimmed()),
    }
}

/// Whether a place is one of the log here, so that what follows it can be sent to whoever is there.
pub async fn has<T: Transaction>(tx: &T, volume: VolumeId, at: LogPosition) -> Result<bool, ReplicaError> {
    let known = logged(tx, volume).await?.ok_or(ReplicaError::NotLogged)?;
    if at == known.trimmed() {
        return Ok(true);
    }
    Ok(tx.get(&log::key(volume, at, 0), Read::Snapshot).await?.is_some())
}

/// The last place of the log that isn't behind `at`; where the log here begins behind it, `at` itself, unless a failover cut the log off before: then the cut.
pub async fn at_or_before<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    at: LogPosition,
) -> Result<LogPosition, ReplicaError> {
    let logged = logged(tx, volume).await?.ok_or(ReplicaError::NotLogged)?;
    let last = RangeLimit { pairs_max: 1, reverse: true, ..RangeLimit::default() };
    let page = tx.get_range(log::range_upto(volume, at), last, Read::Snapshot).await?;
    match page.pairs.first() {
        Some((key, _)) => Ok(log::parse_key(volume, key)?.0),
        None => {
            // The entries are gone from here, and with them the gap that a cut left.
            let lost = tx.get(&loss::key(volume, at.epoch), Read::Snapshot).await?;
            let cut = lost.map(|value| LossRecord::from_value(&value)).transpose()?.map(|lost| lost.cut());
            Ok(cut.into_iter().chain([logged.trimmed()]).fold(at, LogPosition::min))
        }
    }
}

/// The last entry of the log here that isn't behind `at`, whatever this region is to the volume; none where the log doesn't go back there.
pub async fn last_upto<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    at: LogPosition,
) -> Result<Option<Entry>, ReplicaError> {
    let last = RangeLimit { pairs_max: 1, reverse: true, ..RangeLimit::default() };
    let page = tx.get_range(log::range_upto(volume, at), last, Read::Snapshot).await?;
    let Some((key, _)) = page.pairs.first() else { return Ok(None) };
    let place = log::parse_key(volume, key)?.0;
    let Some(before) = place.version.checked_sub(1) else { return Ok(None) };
    let begin = log::range_after(volume, LogPosition::new(place.epoch, before)).begin;
    let range = KeyRange { begin, end: log::range_upto(volume, place).end };
    Ok(assemble(tx, range, 1, |key| log::parse_key(volume, key)).await?.pop())
}

/// A range of a volume's records, as they are at one place of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The place.
    pub at: LogPosition,
    /// The records.
    pub pairs: Vec<(Bytes, Bytes)>,
    /// Where the next page begins; none behind the last one.
    pub next: Option<Bytes>,
}

/// The records of a volume, without its log, from a key on; from the beginning where none is given.
pub async fn page<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    from: Option<Bytes>,
    bytes_max: usize,
) -> Result<Page, ReplicaError> {
    let at = newest(tx, volume).await?;
    let (pairs, next) = records(tx, volume, from, bytes_max).await?;
    Ok(Page { at, pairs, next })
}

/// A page's pairs, and where the next one begins.
pub type Records = (Vec<(Bytes, Bytes)>, Option<Bytes>);

/// The same, wherever the volume is at.
pub async fn records<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    from: Option<Bytes>,
    bytes_max: usize,
) -> Result<Records, ReplicaError> {
    let mut pairs = Vec::new();
    let mut bytes = 0;
    for range in logged_ranges(volume) {
        let mut left = match &from {
            Some(from) => KeyRange { begin: from.clone().max(range.begin), end: range.end },
            None => range,
        };
        while left.begin < left.end {
            if bytes >= bytes_max || pairs.len() >= PAIRS_MAX {
                return Ok((pairs, Some(left.begin)));
            }
            let limit = RangeLimit {
                pairs_max: PAIRS_MAX - pairs.len(),
                bytes_max: bytes_max - bytes,
                reverse: false,
            };
            let page = tx.get_range(left.clone(), limit, Read::Snapshot).await?;
            let last =
                page.pairs.last().filter(|_| page.more).map(|(key, _)| mooseng_store::mvcc::after(key));
            bytes += page.pairs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
            pairs.extend(page.pairs);
            left.begin = last.unwrap_or_else(|| left.end.clone());
        }
    }
    Ok((pairs, None))
}

/// A hash over pairs, in their order.
pub fn digest(pairs: &[(Bytes, Bytes)]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in pairs.iter().flat_map(|(key, value)| [key, value]) {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}
