//! The rewriter's transactions: where files' bytes lie in chunks that are to be emptied, the new chunk's record, and the swap.
//!
//! ```text
//!   pieces() of the old chunks --> bytes are copied into a new chunk, durably --> record() --> swap(), some extents at a time
//! ```
//! Between the three anything may happen. A swap changes only what still is as it was read: bytes of the same place of the same old chunk. The rest
//! is left as it is. Staged data ([`mooseng_schema::staged`]) goes the same way, only that its bytes are in the store: [`staged_pieces`], [`destage`];
//! so does that of small files ([`crate::pack`]).
//! Sizes, times and what a file shows aren't touched; whoever knows its extents must be told all the same, for
//! the old chunks go once nothing names them.

use std::collections::BTreeSet;

use mooseng_ports::plant::{self, Plant};
use mooseng_schema::Record;
use mooseng_schema::chunk::{self, ChunkRecord};
use mooseng_schema::extent::{self, ExtentRecord};
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::staged::{self, Staged};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::fact::Fact;
use mooseng_wire::{ChunkId, InodeId, VolumeId};

use crate::error::OpError;
use crate::extents::{Data, Pieces};
use crate::touched::Touched;
use crate::window::{self, Beside};

/// Extents of one swap at most: its transaction stays far from the store's limits.
pub const SWAP_EXTENTS_MAX: usize = 512;

/// A piece of a file in an old chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// The file.
    pub inode: InodeId,
    /// Where in it.
    pub offset: u64,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where in that.
    pub chunk_offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// What of a file's record the rewriter looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The storage class of its data.
    pub storage_class: u32,
    /// When it was changed last, by the clock of whoever did.
    pub changed_ns: i64,
    /// It has no name, or lies in the trash, or waits for dead extents to be freed.
    pub goes: bool,
}

/// A file as it is; none if it is gone. Read without conflicts.
pub async fn standing<T: Transaction>(tx: &T, inode: InodeId) -> Result<Option<Standing>, OpError> {
    let Some(value) = tx.get(&inode::key(inode), Read::Snapshot).await? else { return Ok(None) };
    let record = InodeRecord::from_value(&value)?;
    Ok(Some(Standing {
        storage_class: record.storage_class,
        changed_ns: record.ctime_ns.max(record.mtime_ns),
        goes: record.orphan || record.trash_until_ns.is_some() || record.trim_from.is_some(),
    }))
}

/// A page of a file's pieces in those chunks, or in any, from an offset on, and where the next page begins. Read without conflicts.
pub async fn pieces<T: Transaction>(
    tx: &T,
    inode: InodeId,
    from: u64,
    chunks: Option<&BTreeSet<ChunkId>>,
    max: usize,
) -> Result<(Vec<Piece>, Option<u64>), OpError> {
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let range = extent::range_between(inode, from, mooseng_wire::FILE_SIZE_MAX);
    let page = tx.get_range(range, limit, Read::Snapshot).await?;
    let mut all = Pieces::default();
    window::read_page(inode, &page, &mut all)?;
    let mut found = Vec::new();
    let mut last = None;
    for (offset, data) in all.iter() {
        last = Some(offset);
        if let Data::Run { chunk, offset: chunk_offset, length } = data
            && chunks.is_none_or(|chunks| chunks.contains(chunk))
        {
            found.push(Piece { inode, offset, chunk: *chunk, chunk_offset: *chunk_offset, length: *length });
        }
    }
    Ok((found, last.filter(|_| page.more).map(|offset| offset + 1)))
}

/// Puts a new chunk on record, sealed: its copies are durable. It mustn't be done again after an unknown outcome: by then the chunk may have been
/// taken for an unused one, and its copies be on their way out. Given up, it is collected, with a record or without.
pub fn record<T: Transaction>(tx: &T, chunk: ChunkId, record: &ChunkRecord, location: &LocationRecord) {
    tx.set(&chunk::key(chunk), &record.to_value());
    tx.set(&location::key(chunk), &location.to_value());
}

/// A piece whose bytes have been copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// As it was read.
    pub piece: Piece,
    /// Where in the new chunk its bytes lie.
    pub to_offset: u64,
}

/// What a swap did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swapped {
    /// Bytes that the new chunk has been named for.
    pub bytes: u64,
    /// Bytes that were left as they are, for they aren't what they were.
    pub left: u64,
}

/// Names the new chunk for the pieces of one file that are still what was read. Nothing is swapped once the new chunk is gone: it was taken for
/// one that nobody uses. Running twice does no harm.
pub async fn swap<T: Transaction>(
    tx: &T,
    touched: &Touched,
    inode: InodeId,
    to: ChunkId,
    moved: &[Moved],
) -> Result<Swapped, OpError> {
    let targets: Vec<Target> = moved
        .iter()
        .map(|m| Target { offset: m.piece.offset, length: m.piece.length, to_offset: m.to_offset })
        .collect();
    let swap = Swap { touched: Some(touched), ..Swap::BESIDE_WRITES };
    exchange(tx, inode, to, &targets, swap, |now, i| unchanged(now, &moved[i].piece)).await
}

/// A part of a file and where in the new chunk its bytes lie.
pub(crate) struct Target {
    offset: u64,
    length: u64,
    to_offset: u64,
}

impl Target {
    /// Of a piece whose bytes were inline.
    pub(crate) fn of_inline(moved: &Destaged) -> Self {
        let Destaged { piece, to_offset } = moved;
        Self { offset: piece.offset, length: piece.bytes.len() as u64, to_offset: *to_offset }
    }

    /// What it may be joined with, where the target before it is loaded: what it continues in the new chunk. As a rule that is the target before; for the
    /// first one an earlier transaction has swapped it. What continues this one comes later. So a swap conflicts with whoever writes its own bytes, not
    /// with all who write between them, as whoever overwrites a large file here and there does all the while.
    fn beside(&self, before: Option<&Self>) -> Beside {
        let continued = |before: &Self| before.to_offset + before.length == self.to_offset;
        match self.to_offset == 0 || before.is_some_and(continued) {
            true => Beside::Apart,
            false => Beside::Joins,
        }
    }
}

/// How a swap goes.
#[derive(Clone, Copy)]
pub(crate) struct Swap<'a> {
    /// Who is told: whoever knows the extents, unless they go on saying the same without a chunk that may go.
    pub touched: Option<&'a Touched>,
    /// How the inode's record is read.
    pub read: Read,
    /// Only a file is swapped that has the chunk's storage class.
    pub same_class: bool,
}

impl Swap<'_> {
    /// Beside whoever writes other bytes of the file. Each write changes the inode's record. Whoever frees the inode, or makes it shorter, frees
    /// extents that the swap reads.
    const BESIDE_WRITES: Self = Self { touched: None, read: Read::Snapshot, same_class: false };
}

/// Names the new chunk where `unchanged` says that a target's bytes are what was copied.
pub(crate) async fn exchange<T: Transaction>(
    tx: &T,
    inode: InodeId,
    to: ChunkId,
    targets: &[Target],
    swap: Swap<'_>,
    unchanged: impl Fn(&Pieces, usize) -> Vec<(u64, u64)>,
) -> Result<Swapped, OpError> {
    let nothing = Swapped { bytes: 0, left: targets.iter().map(|t| t.length).sum() };
    let key = inode::key(inode);
    let Some(value) = tx.get(&key, swap.read).await? else { return Ok(nothing) };
    let mut record = InodeRecord::from_value(&value)?;
    // Dead extents wait to be freed, and mustn't merge with living ones.
    if record.trim_from.is_some() {
        return Ok(nothing);
    }
    let Some(chunk) = tx.get(&chunk::key(to), Read::Conflicting).await? else { return Ok(nothing) };
    let chunk = ChunkRecord::from_value(&chunk)?;
    if swap.same_class && chunk.storage_class != record.storage_class {
        return Ok(nothing);
    }
    let end = targets.iter().map(|t| t.to_offset.saturating_add(t.length)).max().unwrap_or(0);
    if !chunk.sealed || end > chunk.length || targets.len() > SWAP_EXTENTS_MAX {
        return Err(OpError::Malformed("a swap names what its chunk doesn't have, or too much"));
    }
    let mut before = Pieces::default();
    let mut last = None;
    for target in targets {
        let range = (target.offset, target.offset + target.length);
        window::load(tx, inode, range, target.beside(last), &mut before).await?;
        last = Some(target);
    }
    let mut after = before.clone();
    let mut swapped = nothing;
    for (i, target) in targets.iter().enumerate() {
        for (offset, length) in unchanged(&before, i) {
            let to_offset = target.to_offset + (offset - target.offset);
            after.put(offset, Data::Run { chunk: to, offset: to_offset, length });
            swapped.bytes += length;
            swapped.left -= length;
        }
    }
    if swapped.bytes > 0 {
        if let Some(touched) = swap.touched {
            touched.note(Fact::Inode(inode));
        }
        window::store(tx, inode, &mut record, &before, &after).await?;
    }
    Ok(swapped)
}

/// The parts of a piece that still are the bytes that were read.
fn unchanged(now: &Pieces, piece: &Piece) -> Vec<(u64, u64)> {
    let end = piece.offset + piece.length;
    if plant::is(Plant::SwapUnchecked) {
        return vec![(piece.offset, piece.length)];
    }
    let mut parts = Vec::new();
    for (offset, data) in now.overlapping(piece.offset, end) {
        let Data::Run { chunk, offset: chunk_offset, length } = data else { continue };
        let (from, to) = (offset.max(piece.offset), (offset + length).min(end));
        let same = *chunk == piece.chunk
            && chunk_offset + (from - offset) == piece.chunk_offset + (from - piece.offset);
        if same {
            parts.push((from, to - from));
        }
    }
    parts
}

/// A file that has something staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagedFile {
    /// Which.
    pub inode: InodeId,
    /// How much.
    pub staged: Staged,
}

/// A page of a volume's files that have counted something as staged, in the order of their ids. Read without conflicts.
pub async fn staged_files<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<InodeId>,
    max: usize,
) -> Result<Vec<StagedFile>, OpError> {
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(staged::range_after(volume, after), limit, Read::Snapshot).await?;
    let file = |(key, value): &(bytes::Bytes, bytes::Bytes)| {
        let staged = Staged::decode(Some(value))?;
        Ok(StagedFile { inode: staged::parse_key(volume, key)?, staged })
    };
    page.pairs.iter().map(file).collect::<Result<_, mooseng_schema::SchemaError>>().map_err(OpError::from)
}

/// Takes away a file's count that has come down to nothing. Running twice does no harm.
pub async fn forget_staged<T: Transaction>(tx: &T, inode: InodeId) -> Result<(), OpError> {
    let key = staged::key(inode);
    let value = tx.get(&key, Read::Conflicting).await?;
    if value.is_some() && Staged::decode(value.as_ref())?.is_zero() {
        tx.clear(&key);
    }
    Ok(())
}

/// A staged piece of a file, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedPiece {
    /// The file.
    pub inode: InodeId,
    /// Where in it.
    pub offset: u64,
    /// Its bytes.
    pub bytes: bytes::Bytes,
}

/// A file's staged pieces from an offset on, about so many pieces or bytes, and from where on there may be more; and the storage class of its data.
/// Read without conflicts. None if the file is gone.
pub async fn staged_pieces<T: Transaction>(
    tx: &T,
    inode: InodeId,
    from: u64,
    pieces_max: usize,
    bytes_max: u64,
) -> Result<Option<(Vec<StagedPiece>, Option<u64>, u32)>, OpError> {
    let Some(record) = tx.get(&inode::key(inode), Read::Snapshot).await? else { return Ok(None) };
    let class = InodeRecord::from_value(&record)?.storage_class;
    let limit = RangeLimit { pairs_max: pieces_max, ..Default::default() };
    let page = tx.get_range(staged::pieces_from(inode, from), limit, Read::Snapshot).await?;
    let mut found = Vec::new();
    let mut bytes_found = 0;
    for (key, _) in &page.pairs {
        let offset = staged::parse_piece_key(inode, key)?;
        if bytes_found >= bytes_max {
            return Ok(Some((found, Some(offset), class)));
        }
        let Some(value) = tx.get(&extent::key(inode, offset), Read::Snapshot).await? else { continue };
        if let Data::Inline(bytes) = Data::from_record(ExtentRecord::from_value(&value)?)? {
            bytes_found += bytes.len() as u64;
            found.push(StagedPiece { inode, offset, bytes });
        }
    }
    let last = page.pairs.last().filter(|_| page.more);
    let next = last.map(|(key, _)| staged::parse_piece_key(inode, key)).transpose()?.map(|offset| offset + 1);
    Ok(Some((found, next, class)))
}

/// A staged piece that is in a chunk by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destaged {
    /// As it was read.
    pub piece: StagedPiece,
    /// Where in the new chunk its bytes lie.
    pub to_offset: u64,
}

/// [`swap`] for staged pieces of one file: names the new chunk where the same bytes are still inline. Nobody has to be told: what is known of these
/// extents stays as true as it was, and depends on no chunk.
pub async fn destage<T: Transaction>(
    tx: &T,
    inode: InodeId,
    to: ChunkId,
    moved: &[Destaged],
) -> Result<Swapped, OpError> {
    let targets: Vec<Target> = moved.iter().map(Target::of_inline).collect();
    exchange(tx, inode, to, &targets, Swap::BESIDE_WRITES, |now, i| still_inline(now, &moved[i].piece)).await
}

/// The parts of a staged piece that are inline with the same bytes. Whether they were written once more meanwhile doesn't matter.
pub(crate) fn still_inline(now: &Pieces, piece: &StagedPiece) -> Vec<(u64, u64)> {
    let end = piece.offset + piece.bytes.len() as u64;
    if plant::is(Plant::SwapUnchecked) {
        return vec![(piece.offset, piece.bytes.len() as u64)];
    }
    let mut parts = Vec::new();
    for (offset, data) in now.overlapping(piece.offset, end) {
        let Data::Inline(bytes) = data else { continue };
        let (from, to) = (offset.max(piece.offset), (offset + data.length()).min(end));
        let is = bytes.slice((from - offset) as usize..(to - offset) as usize);
        if is == piece.bytes.slice((from - piece.offset) as usize..(to - piece.offset) as usize) {
            parts.push((from, to - from));
        }
    }
    parts
}
