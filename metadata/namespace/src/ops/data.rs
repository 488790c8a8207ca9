//! A file's data: reading extents, writing pieces, seeking data and holes. Whether the caller may read or write was
//! checked when it opened the file.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_schema::Record;
use mooseng_schema::chunk::ChunkRecord;
use mooseng_schema::directory::Counters;
use mooseng_schema::extent;
use mooseng_schema::inode::InodeRecord;
use mooseng_schema::location::{self, LocationRecord};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::fs::write_piece::Data as WireData;
use mooseng_wire::fs::{ExtentMap, ReadExtents, Seek, SeekTo, SeekWhence, Write, WritePiece, Written};
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, FILE_SIZE_MAX, INLINE_EXTENT_BYTES_MAX, InodeId};

use crate::errno::Errno;
use crate::error::OpError;
use crate::extents::{Data, Pieces};
use crate::ops::attributes;
use crate::together::InOrder;
use crate::view::{View, attr_of, is_directory, is_regular, later};
use crate::window::{self, Beside, behind, piece_before, read_page};

/// Extents in one answer.
pub const EXTENTS_MAX: usize = 1024;
/// Inline bytes in one answer, about.
const ANSWER_BYTES_MAX: usize = 512 << 10;
/// Pieces of one write.
const PIECES_MAX: usize = 256;
/// Inline bytes of one write: its transaction must stay well under the store's limit.
const WRITE_INLINE_BYTES_MAX: usize = 512 << 10;

/// A file's record: EISDIR of a directory, EINVAL of anything else.
pub async fn regular<T: Transaction>(view: &View<'_, T>, id: InodeId) -> Result<InodeRecord, OpError> {
    let record = view.inode(id).await?;
    if is_directory(record.kind) {
        return Err(Errno::EISDIR.into());
    }
    if !is_regular(record.kind) {
        return Err(Errno::EINVAL.into());
    }
    Ok(record)
}

pub async fn read_extents<T: Transaction>(view: &View<'_, T>, r: &ReadExtents) -> Result<ExtentMap, OpError> {
    let id = InodeId(r.inode);
    let record = regular(view, id).await?;
    let end = r.offset.saturating_add(r.length).min(record.size);
    let (pieces, covered) = pieces_between(view, id, r.offset, end).await?;
    let mut chunks = BTreeSet::new();
    let mut extents = Vec::with_capacity(pieces.len());
    for (offset, data) in pieces.iter() {
        if let Data::Run { chunk, .. } = data {
            chunks.insert(*chunk);
        }
        extents.push(data.to_wire(offset));
    }
    let places = chunks.into_iter().map(|chunk| view.place(chunk));
    Ok(ExtentMap {
        size: record.size,
        extents,
        chunks: futures::future::try_join_all(places).await?,
        attr: Some(attr_of(id, &record, &Counters::default())),
        covered,
    })
}

/// The pieces within [from, to), cut to it, and up to where they are all.
pub async fn pieces_between<T: Transaction>(
    view: &View<'_, T>,
    id: InodeId,
    from: u64,
    to: u64,
) -> Result<(Pieces, u64), OpError> {
    let mut pieces = Pieces::default();
    if from >= to {
        return Ok((pieces, from));
    }
    let limit = RangeLimit { pairs_max: EXTENTS_MAX, bytes_max: ANSWER_BYTES_MAX, reverse: false };
    let (before, page) = futures::join!(
        async {
            match from {
                0 => Ok(None),
                _ => piece_before(view.tx, id, from, view.read).await,
            }
        },
        async { Ok(view.tx.get_range(extent::range_between(id, from, to), limit, view.read).await?) }
    )
    .in_order()?;
    if let Some((offset, data)) = before {
        pieces.load(offset, data)?;
    }
    read_page(id, &page, &mut pieces)?;
    let last = pieces.iter().next_back().map_or(to, |(offset, data)| offset + data.length());
    let covered = if page.more { last.min(to) } else { to };
    pieces.cut(0, from);
    pieces.cut(to, FILE_SIZE_MAX);
    Ok((pieces, covered))
}

/// A write's piece, checked.
fn checked(piece: &WritePiece, at: u64) -> Result<(u64, Data), Errno> {
    let data = match &piece.data {
        Some(WireData::Inline(bytes)) if bytes.len() as u64 <= INLINE_EXTENT_BYTES_MAX => {
            Data::Inline(bytes.clone())
        }
        Some(WireData::Run(run)) if run.chunk != 0 => {
            let end = run.chunk_offset.checked_add(run.length);
            if end.is_none_or(|end| end > CHUNK_BYTES_MAX) {
                return Err(Errno::EINVAL);
            }
            Data::Run { chunk: ChunkId(run.chunk), offset: run.chunk_offset, length: run.length }
        }
        Some(WireData::Inline(_) | WireData::Run(_)) | None => return Err(Errno::EINVAL),
    };
    let end = at.checked_add(data.length()).filter(|end| *end <= FILE_SIZE_MAX);
    if end.is_none() {
        return Err(Errno::EFBIG);
    }
    Ok((at, data))
}

pub async fn write<T: Transaction>(view: &View<'_, T>, r: &Write) -> Result<Written, OpError> {
    let id = InodeId(r.inode);
    if r.pieces.len() > PIECES_MAX {
        return Err(Errno::EINVAL.into());
    }
    let mut record = regular(view, id).await?;
    let mut pieces = Vec::with_capacity(r.pieces.len());
    let mut end = record.size;
    let mut inline_bytes = 0;
    for piece in &r.pieces {
        let (at, data) = checked(piece, if r.append { end } else { piece.offset })?;
        if data.length() == 0 {
            continue;
        }
        if let Data::Inline(bytes) = &data {
            inline_bytes += bytes.len();
        }
        end = end.max(at + data.length());
        pieces.push((at, data));
    }
    if inline_bytes > WRITE_INLINE_BYTES_MAX {
        return Err(Errno::EINVAL.into());
    }
    let start = if r.append { record.size } else { r.pieces.first().map_or(record.size, |p| p.offset) };
    if !pieces.is_empty() {
        check_chunks(view, id, &pieces).await?;
        window::need_trimmed(id, &record)?;
        apply(view, id, &mut record, &pieces).await?;
        record.size = end;
        // What was buffered under an exclusive promise keeps the time that its session has shown for it.
        let written_ns = view.not_far_ahead(r.written_ns.unwrap_or(view.ctx.now_ns));
        record.mtime_ns = written_ns;
        record.ctime_ns = later(record.ctime_ns, written_ns);
        if view.kills_privileges(r.kill_suidgid) {
            view.kill_privileges(id, &mut record).await?;
        }
    }
    if let Some(set) = &r.set {
        attributes::set_with_data(view, set, id, &mut record).await?;
    }
    if !pieces.is_empty() || r.set.is_some() {
        view.put_inode(id, &record);
    }
    Ok(Written { attr: Some(attr_of(id, &record, &Counters::default())), offset: start })
}

/// A file may only name runs of chunks that its session appended, as far as they reach. ESTALE where it may not: a chunk is sealed
/// behind the back of a session whose lease lapsed, or is gone by then, and the session must append its bytes anew.
async fn check_chunks<T: Transaction>(
    view: &View<'_, T>,
    id: InodeId,
    pieces: &[(u64, Data)],
) -> Result<(), OpError> {
    let mut ends: BTreeMap<ChunkId, u64> = BTreeMap::new();
    for (_, data) in pieces {
        if let Data::Run { chunk, offset, length } = data {
            let end = ends.entry(*chunk).or_default();
            *end = (*end).max(offset + length);
        }
    }
    let reads = ends.iter().map(|(chunk, end)| async move {
        if chunk.volume() != id.volume() {
            return Err(OpError::Errno(Errno::EINVAL));
        }
        let record: ChunkRecord = view.chunk(*chunk).await?;
        if view.ctx.session.0 != 0 && record.owner != view.ctx.session.0 {
            return Err(Errno::ESTALE.into());
        }
        if record.sealed && *end > record.length {
            return Err(Errno::ESTALE.into());
        }
        // What was appended under an earlier home may be in that region alone: also of a chunk that is sealed, as long as its log named no more of it.
        if is_of_earlier_home(view, &record) {
            let location = view.tx.get(&location::key(*chunk), Read::Conflicting).await?;
            let location = location.map(|value| LocationRecord::from_value(&value)).transpose()?;
            let here = location.is_some_and(|l| l.partial.is_none_or(|partial| partial >= *end));
            if !record.sealed || !here {
                return Err(Errno::ESTALE.into());
            }
        }
        Ok(())
    });
    futures::future::try_join_all(reads).await?;
    Ok(())
}

/// Whether a chunk was made under a home before the present one.
pub(super) fn is_of_earlier_home<T: Transaction>(view: &View<'_, T>, record: &ChunkRecord) -> bool {
    record.birth < view.ctx.epoch.0
}

/// EMSGSIZE where the file has as much inline as it may: the same bytes in a chunk are welcome.
async fn apply<T: Transaction>(
    view: &View<'_, T>,
    id: InodeId,
    record: &mut InodeRecord,
    pieces: &[(u64, Data)],
) -> Result<(), OpError> {
    // Pieces that lie side by side are loaded together, so that what one needs isn't read again for the next.
    let range = |(at, data): &(u64, Data)| {
        let end = at + data.length();
        (*at, end, data.may_join(end))
    };
    let mut ranges: Vec<(u64, u64, bool)> = pieces.iter().map(range).collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64, bool)> = Vec::with_capacity(ranges.len());
    for (from, to, joins) in ranges {
        match joined.last_mut() {
            Some(last) if from <= last.1 => *last = (last.0, last.1.max(to), last.2 || joins),
            _ => joined.push((from, to, joins)),
        }
    }
    let mut before = Pieces::default();
    for (from, to, joins) in joined {
        let beside = if joins { Beside::Joins } else { Beside::Apart };
        window::load(view.tx, id, (from, to), beside, &mut before).await?;
    }
    let mut after = before.clone();
    for (at, data) in pieces {
        after.put(*at, data.clone());
    }
    let inline = pieces.iter().any(|(at, data)| data.is_staged(at + data.length()));
    if inline && (view.ctx.staging_closed || !window::may_stage(view.tx, id, &before, &after).await?) {
        return Err(Errno::EMSGSIZE.into());
    }
    window::store(view.tx, id, record, &before, &after).await
}

pub async fn seek<T: Transaction>(view: &View<'_, T>, r: &Seek) -> Result<SeekTo, OpError> {
    let id = InodeId(r.inode);
    let record = regular(view, id).await?;
    if r.offset >= record.size {
        return Err(Errno::ENXIO.into());
    }
    let data = match SeekWhence::try_from(r.whence) {
        Ok(SeekWhence::Data) => true,
        Ok(SeekWhence::Hole) => false,
        _ => return Err(Errno::EINVAL.into()),
    };
    let whole = extent::range_between(id, r.offset, record.size);
    let mut at = r.offset;
    if let Some((offset, piece)) = piece_before(view.tx, id, at, view.read).await? {
        let end = offset + piece.length();
        if end > at {
            if data {
                return Ok(SeekTo { offset: at });
            }
            at = end;
        }
    }
    let mut range = whole.clone();
    loop {
        let limit = RangeLimit { pairs_max: if data { 1 } else { EXTENTS_MAX }, ..Default::default() };
        let page = view.tx.get_range(range, limit, view.read).await?;
        let mut pieces = Pieces::default();
        read_page(id, &page, &mut pieces)?;
        for (offset, piece) in pieces.iter() {
            if data {
                return Ok(SeekTo { offset });
            }
            if offset > at {
                return Ok(SeekTo { offset: at });
            }
            at = offset + piece.length();
        }
        match page.pairs.last() {
            Some((last, _)) if page.more => range = behind(&whole, last),
            _ if data => return Err(Errno::ENXIO.into()),
            // A file ends in a hole.
            _ => return Ok(SeekTo { offset: at.min(record.size) }),
        }
    }
}
