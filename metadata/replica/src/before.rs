//! Before-images: they are written as entries are replayed whose data isn't here yet, let go of once it is, and taken in when the entries are undone.
//!
//! Most images fit into the transaction that replays their entry. One that doesn't - a cleared range may hold anything - is written by several before
//! it, which change nothing else; and undone by several, during which the replica says that its newest entry is being undone.

use bytes::{Bytes, BytesMut};
use mooseng_ports::plant::{self, Plant};
use mooseng_schema::before;
use mooseng_schema::log::{self, LogPosition};
use mooseng_schema::{SchemaError, chunk, dead, location};
use mooseng_store::mvcc::codec::{put_changes, room_for, take_changes};
use mooseng_store::mvcc::{Change, after};
use mooseng_store::{KeyRange, RangeLimit, Read, Transaction, key_range};
use mooseng_wire::VolumeId;

use crate::ReplicaError;

/// Bytes of a block, of which one pair more may come.
const BLOCK_BYTES: usize = 200_000;
/// A transaction that has so many bytes takes in no further entry, and no further block. What an entry and a block have at most fits in besides.
pub(crate) const ENOUGH_BYTES: usize = 1_200_000;

/// The keys that changes touch, in order: each once.
fn touched(changes: &[Change]) -> Vec<KeyRange> {
    let mut ranges: Vec<KeyRange> = changes
        .iter()
        .map(|change| match change {
            Change::Set(key, _) | Change::Clear(key) => key_range(key),
            Change::ClearRange(range) => range.clone(),
        })
        .collect();
    ranges.sort_by(|a, b| a.begin.cmp(&b.begin));
    let mut merged: Vec<KeyRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.begin < last.end => last.end = range.end.max(std::mem::take(&mut last.end)),
            _ => merged.push(range),
        }
    }
    merged
}

fn is_one_key(range: &KeyRange) -> bool {
    range.end.len() == range.begin.len() + 1
        && range.end.ends_with(&[0])
        && range.end.starts_with(&range.begin)
}

/// What an entry's image is made of, and where it is written.
pub(crate) struct Image<'a, T> {
    tx: &'a T,
    volume: VolumeId,
    at: LogPosition,
    block: u32,
    pending: Vec<Change>,
    bytes: usize,
}

impl<'a, T: Transaction> Image<'a, T> {
    /// Goes on behind the blocks that were written before.
    pub(crate) async fn of(tx: &'a T, volume: VolumeId, at: LogPosition) -> Result<Self, ReplicaError> {
        let block = last(tx, before::range_of(volume, at)).await?.map_or(0, |(_, block, _)| block + 1);
        Ok(Self { tx, volume, at, block, pending: Vec::new(), bytes: 0 })
    }

    /// Some of it was written before.
    pub(crate) fn is_begun(&self) -> bool {
        self.block > 0
    }

    /// Keeps what the keys hold that these changes touch, from a key on. Answers from which key on more is to be kept, in another transaction.
    pub(crate) async fn keep(
        &mut self,
        changes: &[Change],
        from: Option<&Bytes>,
    ) -> Result<Option<Bytes>, ReplicaError> {
        let mut ranges = touched(changes);
        if let Some(from) = from {
            ranges.retain(|range| range.end > *from);
            if let Some(first) = ranges.first_mut().filter(|first| first.begin < *from) {
                first.begin = from.clone();
            }
        }
        let count = ranges.len();
        for (i, mut range) in ranges.into_iter().enumerate() {
            loop {
                let reached = self.keep_some(&range).await?;
                let finished = reached == range.end;
                if self.bytes >= BLOCK_BYTES {
                    self.write_block();
                    if !(finished && i + 1 == count) && self.tx.approximate_size() > ENOUGH_BYTES {
                        return Ok(Some(reached));
                    }
                }
                if finished {
                    break;
                }
                range.begin = reached;
            }
        }
        Ok(None)
    }

    /// Keeps what a range holds, or its beginning. Answers the key behind it.
    async fn keep_some(&mut self, range: &KeyRange) -> Result<Bytes, ReplicaError> {
        if is_one_key(range) {
            let held = self.tx.get(&range.begin, Read::Snapshot).await?;
            self.add(match held {
                Some(value) => Change::Set(range.begin.clone(), value),
                None => Change::Clear(range.begin.clone()),
            });
            return Ok(range.end.clone());
        }
        let limit = RangeLimit { bytes_max: BLOCK_BYTES - self.bytes, ..RangeLimit::default() };
        let page = self.tx.get_range(range.clone(), limit, Read::Snapshot).await?;
        let last = page.pairs.last().filter(|_| page.more).map(|(key, _)| after(key));
        let end = last.unwrap_or_else(|| range.end.clone());
        self.add(Change::ClearRange(KeyRange { begin: range.begin.clone(), end: end.clone() }));
        for (key, value) in page.pairs {
            self.add(Change::Set(key, value));
        }
        Ok(end)
    }

    /// A change that leads back.
    pub(crate) fn add(&mut self, change: Change) {
        self.bytes += change.bytes();
        self.pending.push(change);
    }

    fn write_block(&mut self) {
        let mut bytes = BytesMut::with_capacity(room_for(&self.pending));
        put_changes(&mut bytes, &self.pending);
        for (key, value) in before::parts(self.volume, self.at, self.block, &bytes.freeze()) {
            self.tx.set(&key, &value);
        }
        (self.block, self.bytes) = (self.block + 1, 0);
        self.pending.clear();
    }

    /// Ends it: an entry that changes nothing has an image, too.
    pub(crate) fn end(mut self) {
        if !self.pending.is_empty() || self.block == 0 {
            self.write_block();
        }
    }
}

/// The last key of a range, taken apart.
pub(crate) async fn last<T: Transaction>(
    tx: &T,
    range: KeyRange,
) -> Result<Option<(LogPosition, u32, u32)>, ReplicaError> {
    let limit = RangeLimit { pairs_max: 1, reverse: true, ..RangeLimit::default() };
    let page = tx.get_range(range, limit, Read::Snapshot).await?;
    Ok(page.pairs.first().map(|(key, _)| before::parse_key(key)).transpose()?)
}

/// The place of the first image behind `after`.
pub(crate) async fn first_after<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: LogPosition,
) -> Result<Option<LogPosition>, ReplicaError> {
    let limit = RangeLimit { pairs_max: 1, ..RangeLimit::default() };
    let page = tx.get_range(before::range_after(volume, after), limit, Read::Snapshot).await?;
    Ok(page.pairs.first().map(|(key, _)| before::parse_key(key)).transpose()?.map(|(at, ..)| at))
}

/// Takes an entry's image in, the last block first, and lets go of it. Answers whether there is more of it, for another transaction.
pub(crate) async fn take_in<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    at: LogPosition,
) -> Result<bool, ReplicaError> {
    let mut found = false;
    while let Some((_, block, _)) = last(tx, before::range_of(volume, at)).await? {
        if found && tx.approximate_size() > ENOUGH_BYTES {
            return Ok(true);
        }
        let changes = read_block(tx, volume, at, block).await?;
        for change in changes.into_iter().filter(|_| !plant::is(Plant::UndoSkipped)) {
            match change {
                Change::Set(key, value) => tx.set(&key, &value),
                Change::Clear(key) => tx.clear(&key),
                Change::ClearRange(range) => tx.clear_range(range),
            }
        }
        tx.clear_range(before::block_range(volume, at, block));
        found = true;
    }
    match found {
        true => Ok(false),
        false => Err(SchemaError::damaged("before-image", "it is missing").into()),
    }
}

async fn read_block<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    at: LogPosition,
    block: u32,
) -> Result<Vec<Change>, ReplicaError> {
    let page =
        tx.get_range(before::block_range(volume, at, block), RangeLimit::default(), Read::Snapshot).await?;
    let (mut bytes, mut open) = (BytesMut::new(), true);
    for (i, (key, value)) in page.pairs.iter().enumerate() {
        let (.., part) = before::parse_key(key)?;
        let (piece, more) = log::part(value)?;
        if part as usize != i || !open {
            return Err(SchemaError::damaged("before-image", "a part of it is missing").into());
        }
        bytes.extend_from_slice(&piece);
        open = more;
    }
    if open || page.more {
        return Err(SchemaError::damaged("before-image", "its end is missing").into());
    }
    let mut left = bytes.freeze();
    let changes = take_changes(&mut left).map_err(|e| SchemaError::damaged("before-image", e.0))?;
    match left.is_empty() {
        true => Ok(changes),
        false => Err(SchemaError::damaged("before-image", "bytes follow its end").into()),
    }
}

/// What leads back from a chunk's burial: where its copies lie. None where it had none here.
pub(crate) async fn of_burial<T: Transaction>(
    tx: &T,
    chunk: mooseng_wire::ChunkId,
) -> Result<Option<[Change; 2]>, ReplicaError> {
    let key = location::key(chunk);
    let Some(value) = tx.get(&key, Read::Snapshot).await? else { return Ok(None) };
    Ok(Some([Change::Set(key.into(), value), Change::Clear(dead::key(chunk).into())]))
}

/// Where copies lie of chunks that an undone entry made is kept apart from where those of living ones do.
pub(crate) async fn put_aside_chunks<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    changes: &[Change],
) -> Result<(), ReplicaError> {
    for change in changes {
        let Change::Set(key, _) = change else { continue };
        let Ok(chunk) = chunk::parse_key(volume, key) else { continue };
        let at = location::key(chunk);
        if tx.get(key, Read::Snapshot).await?.is_none()
            && let Some(value) = tx.get(&at, Read::Conflicting).await?
        {
            tx.set(&log::salvaged_chunk_key(chunk), &value);
            tx.clear(&at);
        }
    }
    Ok(())
}
