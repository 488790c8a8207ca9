//! From an extent map to the pieces of one read: pure arithmetic.

use bytes::Bytes;
use mooseng_wire::fs::{ExtentMap, extent};

use crate::error::FsError;

/// A part of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Inline(Bytes),
    /// A run in the chunk at this index of the map's `chunks`.
    Chunk {
        chunk: u64,
        offset: u64,
    },
}

/// Where bytes [at, at + length) of the answer come from. Holes have no piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub at: u64,
    pub length: u64,
    pub source: Source,
}

/// The pieces of [offset, offset + length), cut at the end of the file, and how many bytes the answer has.
pub(crate) fn pieces(map: &ExtentMap, offset: u64, length: u64) -> Result<(u64, Vec<Piece>), FsError> {
    let end = offset.saturating_add(length).min(map.size);
    let total = end.saturating_sub(offset);
    let mut pieces = Vec::new();
    for extent in &map.extents {
        let extent_end = extent.offset.checked_add(extent.length).ok_or_else(|| {
            FsError::Malformed(format!("an extent of {} bytes at {}", extent.length, extent.offset))
        })?;
        let from = extent.offset.max(offset);
        let to = extent_end.min(end);
        if from >= to {
            continue;
        }
        let skip = from - extent.offset;
        let source = match &extent.data {
            Some(extent::Data::Inline(bytes)) => {
                let (skip, length) = (
                    usize::try_from(skip).unwrap_or(usize::MAX),
                    usize::try_from(to - from).unwrap_or(usize::MAX),
                );
                let bytes = skip
                    .checked_add(length)
                    .filter(|&last| last <= bytes.len())
                    .map(|last| bytes.slice(skip..last));
                Source::Inline(bytes.ok_or_else(|| {
                    FsError::Malformed(format!(
                        "an inline extent at {} is shorter than it says",
                        extent.offset
                    ))
                })?)
            }
            Some(extent::Data::Run(run)) => {
                Source::Chunk { chunk: run.chunk, offset: run.chunk_offset.saturating_add(skip) }
            }
            None => return Err(FsError::Malformed(format!("an extent at {} has no data", extent.offset))),
        };
        pieces.push(Piece { at: from - offset, length: to - from, source });
    }
    Ok((total, pieces))
}

#[cfg(test)]
mod tests {
    use mooseng_wire::fs::{ChunkRun, Extent};

    use super::*;

    fn run(offset: u64, length: u64, chunk: u64, chunk_offset: u64) -> Extent {
        Extent { offset, length, data: Some(extent::Data::Run(ChunkRun { chunk, chunk_offset, length })) }
    }

    #[test]
    fn reads_are_cut_at_extents_and_at_the_end_of_the_file() {
        let inline =
            Extent { offset: 0, length: 4, data: Some(extent::Data::Inline(Bytes::from_static(b"abcd"))) };
        let map = ExtentMap {
            size: 100,
            extents: vec![inline, run(10, 20, 7, 1000), run(50, 50, 8, 0)],
            ..ExtentMap::default()
        };
        let (total, found) = pieces(&map, 2, 1000).unwrap();
        assert_eq!(total, 98);
        assert_eq!(
            found,
            [
                Piece { at: 0, length: 2, source: Source::Inline(Bytes::from_static(b"cd")) },
                Piece { at: 8, length: 20, source: Source::Chunk { chunk: 7, offset: 1000 } },
                Piece { at: 48, length: 50, source: Source::Chunk { chunk: 8, offset: 0 } },
            ]
        );
        let (total, found) = pieces(&map, 15, 5).unwrap();
        assert_eq!(
            (total, &found[..]),
            (5, &[Piece { at: 0, length: 5, source: Source::Chunk { chunk: 7, offset: 1005 } }][..])
        );
        assert_eq!(pieces(&map, 100, 5).unwrap(), (0, vec![]));
        assert_eq!(pieces(&map, u64::MAX, 5).unwrap(), (0, vec![]));
    }

    #[test]
    fn an_extent_that_lies_about_itself_is_refused() {
        let short =
            Extent { offset: 0, length: 9, data: Some(extent::Data::Inline(Bytes::from_static(b"abcd"))) };
        assert!(pieces(&ExtentMap { size: 9, extents: vec![short], ..ExtentMap::default() }, 0, 9).is_err());
        assert!(
            pieces(
                &ExtentMap { size: 9, extents: vec![run(u64::MAX, 9, 1, 0)], ..ExtentMap::default() },
                0,
                9
            )
            .is_err()
        );
    }
}
