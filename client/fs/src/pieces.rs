//! Written data as the pieces of a change: inline, or as runs of chunks that hold it. No sending.

use bytes::Bytes;
use mooseng_wire::INLINE_EXTENT_BYTES_MAX;
use mooseng_wire::fs::{ChunkRun, WritePiece, write_piece};

use crate::dirty::Segment;

/// The chunk of a piece that isn't inline.
pub(crate) fn chunk_of(piece: &WritePiece) -> Option<u64> {
    match &piece.data {
        Some(write_piece::Data::Run(run)) => Some(run.chunk),
        Some(write_piece::Data::Inline(_)) | None => None,
    }
}

/// Which part of the runs, which hold the segments' bytes one behind the other, is each segment's.
pub(crate) fn lay_out(batch: &[Segment], runs: &[ChunkRun]) -> Vec<WritePiece> {
    let mut pieces = Vec::with_capacity(batch.len() + runs.len());
    let mut runs = runs.iter();
    let mut run = runs.next().copied();
    for segment in batch {
        let (mut at, mut left) = (segment.at, segment.data.len() as u64);
        while left > 0 {
            let Some(current) = &mut run else { return pieces };
            let length = left.min(current.length);
            let part = ChunkRun { chunk: current.chunk, chunk_offset: current.chunk_offset, length };
            push(&mut pieces, at, part);
            current.chunk_offset += length;
            current.length -= length;
            if current.length == 0 {
                run = runs.next().copied();
            }
            at += length;
            left -= length;
        }
    }
    pieces
}

/// Adds a run, joined with the one before it where it goes on in the file and in the chunk.
fn push(pieces: &mut Vec<WritePiece>, at: u64, run: ChunkRun) {
    if let Some(WritePiece { offset, data: Some(write_piece::Data::Run(last)) }) = pieces.last_mut()
        && *offset + last.length == at
        && last.chunk == run.chunk
        && last.chunk_offset + last.length == run.chunk_offset
    {
        last.length += run.length;
        return;
    }
    pieces.push(WritePiece { offset: at, data: Some(write_piece::Data::Run(run)) });
}

/// Cuts data at multiples of the largest inline extent, so that rewritten parts of a file meet the extents that they replace.
pub(crate) fn inline_pieces(offset: u64, data: &Bytes) -> Vec<WritePiece> {
    let mut pieces = Vec::new();
    let mut rest = data.clone();
    let mut at = offset;
    while !rest.is_empty() {
        let room = INLINE_EXTENT_BYTES_MAX - at % INLINE_EXTENT_BYTES_MAX;
        let piece = rest.split_to(rest.len().min(room as usize));
        let length = piece.len() as u64;
        pieces.push(WritePiece { offset: at, data: Some(write_piece::Data::Inline(piece)) });
        at += length;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_data_is_cut_at_fixed_borders() {
        let data = Bytes::from(vec![1; 40_000]);
        let pieces = inline_pieces(10_000, &data);
        let cuts: Vec<(u64, usize)> = pieces
            .iter()
            .map(|p| match &p.data {
                Some(write_piece::Data::Inline(bytes)) => (p.offset, bytes.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(cuts, [(10_000, 6_384), (16_384, 16_384), (32_768, 16_384), (49_152, 848)]);
    }

    #[test]
    fn segments_are_found_in_the_runs_that_hold_them() {
        let segment = |at, length: usize| Segment { at, data: Bytes::from(vec![0; length]) };
        let run = |chunk, chunk_offset, length| ChunkRun { chunk, chunk_offset, length };
        let pieces = lay_out(&[segment(0, 10), segment(100, 10)], &[run(1, 50, 15), run(2, 0, 5)]);
        let laid: Vec<(u64, ChunkRun)> = pieces
            .into_iter()
            .map(|p| match p.data {
                Some(write_piece::Data::Run(run)) => (p.offset, run),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(laid, [(0, run(1, 50, 10)), (100, run(1, 60, 5)), (105, run(2, 0, 5))]);
        // What adjoins in the file is one run, in however many parts it was buffered.
        let pieces =
            lay_out(&[segment(0, 10), segment(10, 5), segment(15, 5)], &[run(1, 0, 12), run(2, 0, 8)]);
        assert_eq!(pieces.iter().map(|p| p.offset).collect::<Vec<_>>(), [0, 12]);
    }
}
