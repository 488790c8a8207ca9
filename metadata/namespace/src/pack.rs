//! Packing: inline data of small files goes to chunks that many of them share. What the rewriter reads of them, and the swap.
//!
//! ```text
//!   packable_files() -> packable_pieces() --> bytes go to a new chunk, durably --> rewrite::record() --> pack(), some files at a time
//! ```
//! As with staged data ([`crate::rewrite::destage`]) a swap names the chunk where the same bytes are still inline, and nobody has to give up a promise: what
//! is known of these extents stays as true as it was, and depends on no chunk.

use mooseng_ports::plant::{self, Plant};
use mooseng_schema::Record;
use mooseng_schema::extent;
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::packable;
use mooseng_schema::staged::is_staged;
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::{ChunkId, INLINE_FILE_BYTES_MAX, InodeId, VolumeId};

use crate::error::OpError;
use crate::extents::{Data, Pieces};
use crate::rewrite::{Destaged, StagedPiece, Swap, Swapped, Target, exchange, still_inline};
use crate::window;

/// Pieces of one file that are packed at a time.
const PIECES_MAX: usize = 256;

/// A file that has something packable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackableFile {
    /// Which.
    pub inode: InodeId,
    /// The storage class of its data.
    pub storage_class: u32,
    /// About how many bytes.
    pub bytes: u64,
    /// When it was changed last, by the clock of whoever did.
    pub changed_ns: i64,
}

/// Files that are to go, or that a truncation has left dead extents of, aren't worth it.
fn stays(record: &InodeRecord) -> bool {
    !record.orphan && record.trash_until_ns.is_none() && record.trim_from.is_none()
}

/// A page of a volume's files that have something packable, from about so many pieces, in the order of their ids; and behind which there may be more.
/// Read without conflicts.
pub async fn packable_files<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<InodeId>,
    pieces_max: usize,
) -> Result<(Vec<PackableFile>, Option<InodeId>), OpError> {
    let limit = RangeLimit { pairs_max: pieces_max, ..Default::default() };
    let page = tx.get_range(packable::range_after(volume, after), limit, Read::Snapshot).await?;
    let places = page.pairs.iter().map(|(key, _)| packable::parse_key(volume, key));
    let mut inodes: Vec<InodeId> = places.map(|place| Ok(place?.0)).collect::<Result<_, OpError>>()?;
    inodes.dedup();
    let next = inodes.last().copied().filter(|_| page.more);
    let keys: Vec<Vec<u8>> = inodes.iter().map(|inode| inode::key(*inode)).collect();
    let values = futures::future::try_join_all(keys.iter().map(|key| tx.get(key, Read::Snapshot))).await?;
    let mut files = Vec::new();
    for (inode, value) in inodes.into_iter().zip(values) {
        let Some(record) = value.map(|value| InodeRecord::from_value(&value)).transpose()? else { continue };
        if stays(&record) {
            files.push(PackableFile {
                inode,
                storage_class: record.storage_class,
                bytes: record.size.min(record.allocated).min(INLINE_FILE_BYTES_MAX),
                changed_ns: record.ctime_ns,
            });
        }
    }
    Ok((files, next))
}

/// What a file has inline within its first 64 KiB, in order, small pieces too; and the storage class of its data. Read without conflicts. None if the
/// file is gone, or goes.
pub async fn packable_pieces<T: Transaction>(
    tx: &T,
    inode: InodeId,
) -> Result<Option<(Vec<StagedPiece>, u32)>, OpError> {
    let Some(value) = tx.get(&inode::key(inode), Read::Snapshot).await? else { return Ok(None) };
    let record = InodeRecord::from_value(&value)?;
    if !stays(&record) {
        return Ok(None);
    }
    let limit = RangeLimit { pairs_max: PIECES_MAX, ..Default::default() };
    let page =
        tx.get_range(extent::range_between(inode, 0, INLINE_FILE_BYTES_MAX), limit, Read::Snapshot).await?;
    let mut all = Pieces::default();
    window::read_page(inode, &page, &mut all)?;
    let piece = |(offset, data): (u64, &Data)| match data {
        Data::Inline(bytes) if !is_staged(offset + data.length()) => {
            Some(StagedPiece { inode, offset, bytes: bytes.clone() })
        }
        _ => None,
    };
    Ok(Some((all.iter().filter_map(piece).collect(), record.storage_class)))
}

/// Names the new chunk where the same bytes of these files are still inline. A file that has another storage class than the chunk by then is left as it
/// is. Running twice does no harm.
pub async fn pack<T: Transaction>(tx: &T, to: ChunkId, moved: &[Destaged]) -> Result<Swapped, OpError> {
    let mut sum = Swapped::default();
    for file in moved.chunk_by(|a, b| a.piece.inode == b.piece.inode) {
        let Some(inode) = file.first().map(|m| m.piece.inode) else { continue };
        let targets: Vec<Target> = file.iter().map(Target::of_inline).collect();
        let unchanged = |now: &Pieces, i: usize| {
            let piece = &file[i].piece;
            match plant::is(Plant::PackUnchecked) {
                true => vec![(piece.offset, piece.bytes.len() as u64)],
                false => still_inline(now, piece),
            }
        };
        // Files that are packed are quiet: a conflict with whoever changes one of them is rare, and keeps files of several classes apart.
        let swap = Swap { touched: None, read: Read::Conflicting, same_class: true };
        let swapped = exchange(tx, inode, to, &targets, swap, unchanged).await?;
        sum.bytes += swapped.bytes;
        sum.left += swapped.left;
    }
    Ok(sum)
}

/// Lists a file's packable pieces anew. Running twice does no harm.
pub(crate) async fn list_anew<T: Transaction>(tx: &T, inode: InodeId) -> Result<(), OpError> {
    tx.clear_range(packable::range(inode));
    let range = extent::range_between(inode, 0, INLINE_FILE_BYTES_MAX);
    let mut page = tx.get_range(range.clone(), RangeLimit::default(), Read::Conflicting).await?;
    loop {
        let mut pieces = Pieces::default();
        window::read_page(inode, &page, &mut pieces)?;
        for (offset, data) in pieces.iter() {
            if let Some(list @ crate::extents::List::Packable) = data.list(offset + data.length()) {
                tx.set(&list.key(inode, offset), &[]);
            }
        }
        let Some((last, _)) = page.pairs.last().filter(|_| page.more) else { return Ok(()) };
        page = tx.get_range(window::behind(&range, last), RangeLimit::default(), Read::Conflicting).await?;
    }
}
