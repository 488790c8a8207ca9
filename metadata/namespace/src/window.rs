//! A file's pieces between the store and [`crate::extents`].

use std::collections::BTreeMap;

use mooseng_schema::chunk::ChunkUse;
use mooseng_schema::extent::{self, ExtentRecord};
use mooseng_schema::inode::InodeRecord;
use mooseng_schema::staged::{self, Staged};
use mooseng_schema::statistics::{self, Statistic};
use mooseng_schema::{Record, SchemaError, chunk, number, orphan};
use mooseng_store::{Atomic, KeyRange, RangeLimit, RangePage, Read, Transaction};
use mooseng_wire::{ChunkId, FILE_SIZE_MAX, InodeId};

use crate::errno::Errno;
use crate::error::OpError;
use crate::extents::{Changes, Data, Pieces, References};
use crate::together::InOrder;

/// Extents that one transaction frees at most, so that it stays far from the store's limits.
pub const FREE_PAGE_EXTENTS: usize = 512;

/// Extents that one write may replace.
const REPLACED_EXTENTS_MAX: usize = 16_384;

/// Bytes that a file may have staged, and pieces. Beyond it whoever writes is told to write to chunks: they are moved there more slowly than
/// they come, or not at all at present.
pub const STAGED_BYTES_MAX: i64 = 4 << 20;
/// See [`STAGED_BYTES_MAX`].
pub const STAGED_PIECES_MAX: i64 = 1_024;

/// More cleared extents that follow each other without a gap are cleared as a range.
const CLEARED_ONE_BY_ONE_MAX: usize = 32;

/// Reads the pieces of a page into `pieces`.
pub fn read_page(inode: InodeId, page: &RangePage, pieces: &mut Pieces) -> Result<(), SchemaError> {
    for (key, value) in &page.pairs {
        let data = Data::from_record(ExtentRecord::from_value(value)?)?;
        pieces.load(extent::parse_key(inode, key)?, data)?;
    }
    Ok(())
}

/// The last piece that begins before `offset`.
pub async fn piece_before<T: Transaction>(
    tx: &T,
    inode: InodeId,
    offset: u64,
    read: Read,
) -> Result<Option<(u64, Data)>, OpError> {
    let limit = RangeLimit { pairs_max: 1, reverse: true, ..Default::default() };
    let page = tx.get_range(extent::range_between(inode, 0, offset), limit, read).await?;
    let Some((key, value)) = page.pairs.first() else { return Ok(None) };
    let data = Data::from_record(ExtentRecord::from_value(value)?)?;
    Ok(Some((extent::parse_key(inode, key)?, data)))
}

/// What lies beside a range that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// What is put there may become one piece with what it touches.
    Joins,
    /// It won't, so that only what overlaps the range matters.
    Apart,
}

/// Loads the pieces that overlap [from, to) into `pieces`, and those that touch it where they may be joined.
///
/// A block that is written all the while is one read of a key, in which most often nothing older than the last seconds is looked at: ranges ask every
/// level of a store's tree. It is enough, also as a read conflict. Pieces don't overlap, so whoever puts or cuts another one where a piece was found
/// changes the record of that.
pub async fn load<T: Transaction>(
    tx: &T,
    inode: InodeId,
    (from, to): (u64, u64),
    beside: Beside,
    pieces: &mut Pieces,
) -> Result<(), OpError> {
    // Up to here everything is known; what is read begins here.
    let mut at = from;
    if beside == Beside::Apart {
        if let Some(value) = tx.get(&extent::key(inode, from), Read::Conflicting).await? {
            let data = Data::from_record(ExtentRecord::from_value(&value)?)?;
            let length = data.length();
            pieces.load(from, data)?;
            at = from + length;
            if at >= to {
                return Ok(());
            }
        } else {
            match piece_before(tx, inode, to, Read::Conflicting).await? {
                None => return Ok(()),
                Some((offset, data)) if offset < from => {
                    if offset + data.length() > from {
                        pieces.load(offset, data)?;
                    }
                    return Ok(());
                }
                Some(_) => {}
            }
        }
    }
    let touching = u64::from(beside == Beside::Joins);
    let whole = extent::range_between(inode, at, to.saturating_add(touching));
    let (before, page) = futures::join!(
        async {
            match at > from {
                true => Ok(None),
                false => piece_before(tx, inode, from, Read::Conflicting).await,
            }
        },
        async { Ok(tx.get_range(whole.clone(), RangeLimit::default(), Read::Conflicting).await?) }
    )
    .in_order()?;
    if let Some((offset, data)) = before
        && offset + data.length() >= from
    {
        pieces.load(offset, data)?;
    }
    let mut page = page;
    loop {
        read_page(inode, &page, pieces)?;
        let Some((last, _)) = page.pairs.last().filter(|_| page.more) else { return Ok(()) };
        if pieces.len() > REPLACED_EXTENTS_MAX {
            // A single write over so many tiny pieces isn't worth a transaction of its own size class.
            return Err(Errno::EFBIG.into());
        }
        let rest = behind(&whole, last);
        page = tx.get_range(rest, RangeLimit::default(), Read::Conflicting).await?;
    }
}

/// Loads the pieces that overlap [from, to), or touch `from`, into `pieces`: so many, and one that begins before `from`. Answers up to where
/// these are all.
pub async fn load_some<T: Transaction>(
    tx: &T,
    inode: InodeId,
    (from, to): (u64, u64),
    limit: RangeLimit,
    pieces: &mut Pieces,
) -> Result<u64, OpError> {
    let (before, page) = futures::join!(piece_before(tx, inode, from, Read::Conflicting), async {
        Ok(tx.get_range(extent::range_between(inode, from, to), limit, Read::Conflicting).await?)
    })
    .in_order()?;
    if let Some((offset, data)) = before
        && offset + data.length() >= from
    {
        pieces.load(offset, data)?;
    }
    read_page(inode, &page, pieces)?;
    let last = pieces.iter().next_back().map_or(from, |(offset, data)| offset + data.length());
    Ok(if page.more { last.min(to) } else { to })
}

/// The part of a range behind a key.
pub fn behind(range: &KeyRange, key: &[u8]) -> KeyRange {
    let mut begin = key.to_vec();
    begin.push(0);
    KeyRange { begin: begin.into(), end: range.end.clone() }
}

/// Writes what turns `before` into `after`, with everything that is counted.
pub async fn store<T: Transaction>(
    tx: &T,
    inode: InodeId,
    record: &mut InodeRecord,
    before: &Pieces,
    after: &Pieces,
) -> Result<(), OpError> {
    let changes = before.changes_to(after);
    for run in before.runs_of(&changes.cleared) {
        match run {
            [first, .., last] if run.len() > CLEARED_ONE_BY_ONE_MAX => {
                tx.clear_range(extent::range_between(inode, *first, last + 1));
            }
            _ => run.iter().for_each(|offset| tx.clear(&extent::key(inode, *offset))),
        }
    }
    for (offset, data) in &changes.set {
        tx.set(&extent::key(inode, *offset), &data.to_record().to_value());
    }
    changes.unlisted.iter().for_each(|(list, offset)| tx.clear(&list.key(inode, *offset)));
    changes.listed.iter().for_each(|(list, offset)| tx.set(&list.key(inode, *offset), &[]));
    count(tx, inode, record, &changes).await
}

/// Whether a file may have staged what `after` has more than `before`. It is read without a conflict: two that come at once may pass the bound
/// by what they bring.
pub async fn may_stage<T: Transaction>(
    tx: &T,
    inode: InodeId,
    before: &Pieces,
    after: &Pieces,
) -> Result<bool, OpError> {
    let more = before.changes_to(after).staged;
    if more.bytes <= 0 && more.pieces <= 0 {
        return Ok(true);
    }
    let value = tx.get(&staged::key(inode), Read::Snapshot).await?;
    let sum = Staged::decode(value.as_ref())?.plus(more);
    Ok(sum.bytes <= STAGED_BYTES_MAX && sum.pieces <= STAGED_PIECES_MAX)
}

/// Counts changed pieces: the inode's and the volume's bytes, and the chunks' references.
async fn count<T: Transaction>(
    tx: &T,
    inode: InodeId,
    record: &mut InodeRecord,
    changes: &Changes,
) -> Result<(), OpError> {
    record.allocated = record
        .allocated
        .checked_add_signed(changes.allocated)
        .ok_or_else(|| SchemaError::damaged("inode", "it has more extents than it counts bytes"))?;
    if changes.allocated != 0 {
        let key = statistics::key(inode, Statistic::Bytes);
        tx.atomic(&key, &number::encode_signed(changes.allocated), Atomic::Add);
        if record.trash_until_ns.is_some() {
            let key = statistics::key(inode, Statistic::TrashBytes);
            tx.atomic(&key, &number::encode_signed(changes.allocated), Atomic::Add);
        }
    }
    if !changes.staged.is_zero() {
        tx.atomic(&staged::key(inode), &changes.staged.encode(), Atomic::Add);
    }
    refer(tx, inode, &changes.references).await
}

async fn refer<T: Transaction>(
    tx: &T,
    inode: InodeId,
    references: &BTreeMap<ChunkId, References>,
) -> Result<(), OpError> {
    let keys: Vec<(Vec<u8>, References)> =
        references.iter().map(|(c, delta)| (chunk::reference_key(*c, inode), *delta)).collect();
    let reads = keys.iter().map(|(key, _)| tx.get(key, Read::Conflicting));
    let values = futures::future::try_join_all(reads).await?;
    for ((key, delta), value) in keys.iter().zip(values) {
        let used = ChunkUse::from_value(value.as_ref())?
            .changed(delta.extents, delta.bytes)
            .filter(|used| (used.extents == 0) == (used.bytes == 0))
            .ok_or_else(|| SchemaError::damaged("chunk use", "it counts less than there is"))?;
        match used.extents {
            0 => tx.clear(key),
            _ => tx.set(key, &used.to_value()),
        }
    }
    Ok(())
}

/// Frees up to [`FREE_PAGE_EXTENTS`] extents from `from` on, and cuts one that reaches across. Answers whether that was
/// all. The caller stores the inode's record.
pub async fn free_page<T: Transaction>(
    tx: &T,
    inode: InodeId,
    record: &mut InodeRecord,
    from: u64,
) -> Result<bool, OpError> {
    free_some(tx, inode, record, from, FREE_PAGE_EXTENTS).await.map(|(done, _)| done)
}

/// As [`free_page`], with at most `max` extents; answers how many it freed, too.
pub async fn free_some<T: Transaction>(
    tx: &T,
    inode: InodeId,
    record: &mut InodeRecord,
    from: u64,
    max: usize,
) -> Result<(bool, usize), OpError> {
    let limit = RangeLimit { pairs_max: max.max(1), ..Default::default() };
    let whole = extent::range_between(inode, from, FILE_SIZE_MAX);
    let (before, page) = futures::join!(
        async {
            match from {
                0 => Ok(None),
                _ => piece_before(tx, inode, from, Read::Conflicting).await,
            }
        },
        async { Ok(tx.get_range(whole, limit, Read::Conflicting).await?) }
    )
    .in_order()?;
    let mut changes = Changes::default();
    if let Some((offset, data)) = before
        && offset + data.length() > from
    {
        let mut cut = Pieces::default();
        cut.load(offset, data)?;
        let whole = cut.clone();
        cut.cut(from, FILE_SIZE_MAX);
        changes = whole.changes_to(&cut);
        for (offset, data) in &changes.set {
            tx.set(&extent::key(inode, *offset), &data.to_record().to_value());
        }
        changes.unlisted.iter().for_each(|(list, offset)| tx.clear(&list.key(inode, *offset)));
        // What is left of a staged piece may be packable.
        changes.listed.iter().for_each(|(list, offset)| tx.set(&list.key(inode, *offset), &[]));
    }
    let mut pieces = Pieces::default();
    read_page(inode, &page, &mut pieces)?;
    for (offset, data) in pieces.iter() {
        changes.count(offset, data, -1);
        if let Some(list) = data.list(offset + data.length()) {
            tx.clear(&list.key(inode, offset));
        }
    }
    if let (Some((first, _)), Some((last, _))) = (page.pairs.first(), page.pairs.last()) {
        tx.clear_range(KeyRange { begin: first.clone(), end: mooseng_store::key_range(last).end });
    }
    changes.references.retain(|_, delta| !delta.is_zero());
    count(tx, inode, record, &changes).await?;
    Ok((!page.more, page.pairs.len()))
}

/// Makes a file shorter, at once for whoever reads it; extents that are too many for this transaction are left for the
/// reaper. The caller stores the inode's record.
pub async fn shrink<T: Transaction>(
    tx: &T,
    inode: InodeId,
    record: &mut InodeRecord,
    size: u64,
) -> Result<(), OpError> {
    let done = free_page(tx, inode, record, size).await?;
    record.size = size;
    // What lies behind `size` includes what an earlier truncation left.
    match (done, record.trim_from) {
        (true, None) => {}
        (true, Some(_)) => {
            record.trim_from = None;
            tx.clear(&orphan::trim_key(inode));
        }
        (false, _) => {
            record.trim_from = Some(size);
            tx.set(&orphan::trim_key(inode), &[]);
        }
    }
    Ok(())
}

/// Writing and growing need the dead extents gone: they would come to life, or merge with the living.
pub fn need_trimmed(inode: InodeId, record: &InodeRecord) -> Result<(), OpError> {
    match record.trim_from {
        Some(from) => Err(OpError::Drain { inode, from }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use mooseng_store::memory::{MemoryStore, MemoryTransaction};
    use mooseng_store::{Store, StoreError};
    use proptest::prelude::*;

    use super::*;

    const INODE: InodeId = InodeId(7);
    const KIB: u64 = 1 << 10;

    /// Somewhere around where inline bytes begin to be staged, at the same places again and again.
    fn piece() -> impl Strategy<Value = (u64, Data)> {
        let bytes = |length: u64, byte: u8| Data::Inline(vec![byte; length as usize].into());
        let block = (10u64..25, any::<u8>()).prop_map(move |(at, byte)| (at * 4 * KIB, bytes(4 * KIB, byte)));
        let inline = (40u64..100, 1u64..=16, any::<u8>())
            .prop_map(move |(at, length, byte)| (at * KIB, bytes(length * KIB, byte)));
        let run = (40u64..100, 1u64..3, 0u64..8, 1u64..20).prop_map(|(at, chunk, offset, length)| {
            (at * KIB, Data::Run { chunk: ChunkId(chunk), offset: offset * KIB, length: length * KIB })
        });
        prop_oneof![block, inline, run]
    }

    /// A transaction that puts a piece, before its commit.
    async fn put(memory: &MemoryStore, at: u64, data: &Data) -> MemoryTransaction {
        let (tx, end) = (memory.begin(), at + data.length());
        let beside = if data.may_join(end) { Beside::Joins } else { Beside::Apart };
        let mut before = Pieces::default();
        load(&tx, INODE, (at, end), beside, &mut before).await.unwrap();
        let mut after = before.clone();
        after.put(at, data.clone());
        let mut record = InodeRecord { allocated: 1 << 40, ..Default::default() };
        store(&tx, INODE, &mut record, &before, &after).await.unwrap();
        tx
    }

    fn stored(memory: &MemoryStore) -> Pieces {
        let tx = memory.begin();
        let page = block_on(tx.get_range(extent::range(INODE), RangeLimit::default(), Read::Snapshot));
        let mut pieces = Pieces::default();
        read_page(INODE, &page.unwrap(), &mut pieces).unwrap();
        pieces
    }

    proptest! {
        /// What is loaded is enough to put a piece as if all were known; and enough of a conflict where two are put at once, without the inode's record.
        #[test]
        fn same_as_if_all_pieces_were_loaded(
            pieces in prop::collection::vec(piece(), 0..20), first in piece(), second in piece(),
        ) {
            let memory = MemoryStore::new();
            let mut model = Pieces::default();
            for (at, data) in pieces {
                let tx = block_on(put(&memory, at, &data));
                block_on(tx.commit()).unwrap();
                model.put(at, data);
                prop_assert_eq!(&stored(&memory), &model);
            }
            let late = block_on(put(&memory, first.0, &first.1));
            let early = block_on(put(&memory, second.0, &second.1));
            block_on(early.commit()).unwrap();
            model.put(second.0, second.1);
            match block_on(late.commit()) {
                Ok(_) => model.put(first.0, first.1),
                Err(error) => {
                    prop_assert_eq!(error, StoreError::Conflict);
                }
            }
            prop_assert_eq!(&stored(&memory), &model);
        }
    }
}
