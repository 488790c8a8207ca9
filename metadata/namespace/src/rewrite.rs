//! The rewriter's transactions: where files' bytes lie in chunks that are to be emptied, the new chunk's record, and the swap.
//!
//! ```text
//!   pieces() of the old chunks --> bytes are copied into a new chunk, durably --> record() --> swap(), some extents at a time
//! ```
//! Between the three anything may happen. A swap changes only what still is as it was read: bytes of the same place of the same old chunk. The rest
//! is left as it is. Sizes, times and what a file shows aren't touched; whoever knows its extents must be told all the same, for the old
//! chunks go once nothing names them.

use std::collections::BTreeSet;

use mooseng_ports::plant::{self, Plant};
use mooseng_schema::chunk::{self, ChunkRecord};
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::{Record, extent};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::fact::Fact;
use mooseng_wire::{ChunkId, InodeId};

use crate::error::OpError;
use crate::extents::{Data, Pieces};
use crate::touched::Touched;
use crate::window;

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

/// A page of a file's pieces in those chunks, from an offset on, and where the next page begins. Read without conflicts.
pub async fn pieces<T: Transaction>(
    tx: &T,
    inode: InodeId,
    from: u64,
    chunks: &BTreeSet<ChunkId>,
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
            && chunks.contains(chunk)
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
    let all: u64 = moved.iter().map(|m| m.piece.length).sum();
    let nothing = Swapped { bytes: 0, left: all };
    let key = inode::key(inode);
    // Without a conflict: each write changes it, and a swap may go on beside writes of other bytes. Whoever frees the inode, or makes it shorter,
    // frees the extents that are read below.
    let Some(value) = tx.get(&key, Read::Snapshot).await? else { return Ok(nothing) };
    let mut record = InodeRecord::from_value(&value)?;
    // Dead extents wait to be freed, and mustn't merge with living ones.
    if record.trim_from.is_some() {
        return Ok(nothing);
    }
    let Some(chunk) = tx.get(&chunk::key(to), Read::Conflicting).await? else { return Ok(nothing) };
    let chunk = ChunkRecord::from_value(&chunk)?;
    let end = moved.iter().map(|m| m.to_offset.saturating_add(m.piece.length)).max().unwrap_or(0);
    if !chunk.sealed || end > chunk.length || moved.len() > SWAP_EXTENTS_MAX {
        return Err(OpError::Malformed("a swap names what its chunk doesn't have, or too much"));
    }
    let mut before = Pieces::default();
    for Moved { piece, .. } in moved {
        window::load(tx, inode, piece.offset, piece.offset + piece.length, &mut before).await?;
    }
    let mut after = before.clone();
    let mut swapped = nothing;
    for moved in moved {
        for (offset, length) in unchanged(&before, &moved.piece) {
            let to_offset = moved.to_offset + (offset - moved.piece.offset);
            after.put(offset, Data::Run { chunk: to, offset: to_offset, length });
            swapped.bytes += length;
            swapped.left -= length;
        }
    }
    if swapped.bytes > 0 {
        touched.note(Fact::Inode(inode));
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
    for (offset, data) in now.iter().skip_while(|(offset, data)| offset + data.length() <= piece.offset) {
        if offset >= end {
            break;
        }
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
