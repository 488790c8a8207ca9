//! Making a new chunk of pieces of sealed ones, as a master orders it: the rewriter's work. Pieces are read here where a copy lies here, else from
//! a chunkserver that has one, verified either way, or come with the order; they are written one behind the other, flushed, and only then taken up. Whatever stops it
//! leaves nothing; a chunk that no master puts on record is deleted.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use mooseng_chunk::{ChunkError, Import};
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Build, BuildPiece, BuildSource, Built, Read};
use mooseng_wire::{BULK_BYTES_MAX, CHUNK_BYTES_MAX, ChunkId, Epoch};
use tokio::time::{Instant, sleep};

use crate::members::Members;
use crate::pull::{PIECE_WITHIN, Pulls};

/// Pieces of one order.
const PIECES_MAX: usize = 20_000;
/// Pieces read at a time.
const AT_ONCE: usize = 16;

impl Pulls {
    /// Makes a new chunk. Given up in between, it leaves nothing.
    pub async fn build(&self, build: Build, members: &Members, now_s: u64) -> Result<Built, CallError> {
        let _permit = self.permit()?;
        let length = checked(&build)?;
        let (chunk, epoch, custody) = (ChunkId(build.chunk), Epoch(build.epoch), build.custody);
        let mut import = self
            .work(chunk, move |store| {
                store.see_custody(custody)?;
                store.build(chunk, epoch, length)
            })
            .await?;
        let begun = Instant::now();
        for window in windows(&build.pieces) {
            let bytes = self.gather(&build, window, members).await?;
            self.metrics.bytes_pulled.inc_by(bytes.len() as u64);
            import = self
                .work(chunk, move |_| -> Result<Import, ChunkError> {
                    import.write(&bytes)?;
                    Ok(import)
                })
                .await?;
            if let Some(due_ms) = (import.written() * 1000).checked_div(build.bytes_per_s) {
                sleep(Duration::from_millis(due_ms).saturating_sub(begun.elapsed())).await;
            }
        }
        let digest = self.work(chunk, move |store| store.install_built(import, custody, now_s)).await?;
        tracing::info!(
            chunk = chunk.0,
            pieces = build.pieces.len(),
            bytes = length,
            "made a chunk of pieces of others"
        );
        Ok(Built { length, digest: Bytes::copy_from_slice(&digest) })
    }

    /// The bytes of some pieces, in order.
    async fn gather(
        &self,
        build: &Build,
        window: Vec<BuildPiece>,
        members: &Members,
    ) -> Result<Bytes, CallError> {
        let total: u64 = window.iter().map(|piece| piece.length).sum();
        let reads = stream::iter(window).map(|piece| async move {
            let source = &build.sources[piece.source as usize];
            self.piece(source, &piece, &build.ticket, members).await
        });
        let mut read: Vec<Bytes> = reads.buffered(AT_ONCE).try_collect().await?;
        if read.len() == 1 {
            return Ok(read.remove(0));
        }
        let mut bytes = BytesMut::with_capacity(total as usize);
        read.iter().for_each(|piece| bytes.extend_from_slice(piece));
        Ok(bytes.freeze())
    }

    async fn piece(
        &self,
        source: &BuildSource,
        piece: &BuildPiece,
        ticket: &Bytes,
        members: &Members,
    ) -> Result<Bytes, CallError> {
        let (chunk, offset, length) = (ChunkId(source.chunk), piece.offset, piece.length);
        if !source.data.is_empty() {
            // Checked: it lies within.
            return Ok(source.data.slice(offset as usize..(offset + length) as usize));
        }
        let mut failed = match self.work(chunk, move |store| store.read(chunk, offset, length)).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        for holder in &source.holders {
            let read = Read { chunk: source.chunk, offset, length: length as u32, ticket: ticket.clone() };
            match members.read(&holder.address, &read, PIECE_WITHIN).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// Some pieces at a time: about as many bytes as one message carries, none of them longer than that.
fn windows(pieces: &[BuildPiece]) -> Vec<Vec<BuildPiece>> {
    let mut windows = vec![Vec::new()];
    let mut held = 0;
    for piece in pieces {
        let (mut offset, mut left) = (piece.offset, piece.length);
        while left > 0 {
            let length = left.min(BULK_BYTES_MAX as u64 - held);
            if let Some(last) = windows.last_mut() {
                last.push(BuildPiece { source: piece.source, offset, length });
            }
            (offset, left, held) = (offset + length, left - length, held + length);
            if held == BULK_BYTES_MAX as u64 {
                windows.push(Vec::new());
                held = 0;
            }
        }
    }
    windows.retain(|window| !window.is_empty());
    windows
}

/// The length of what is to be made.
fn checked(build: &Build) -> Result<u64, CallError> {
    let wrong = |what: &str| {
        call_error(ErrorCode::InvalidRequest, format!("the order to make chunk {} {what}", build.chunk))
    };
    if build.pieces.is_empty() || build.pieces.len() > PIECES_MAX {
        return Err(wrong("has no pieces, or too many"));
    }
    let mut length: u64 = 0;
    for piece in &build.pieces {
        let end = piece.offset.checked_add(piece.length);
        if piece.length == 0 || end.is_none_or(|end| end > CHUNK_BYTES_MAX) {
            return Err(wrong("names a piece that lies in no chunk"));
        }
        let Some(source) = build.sources.get(piece.source as usize) else {
            return Err(wrong("names a source that it doesn't have"));
        };
        if !source.data.is_empty() && end.is_none_or(|end| end > source.data.len() as u64) {
            return Err(wrong("names bytes behind those that it brings"));
        }
        length = length.saturating_add(piece.length);
    }
    if length > CHUNK_BYTES_MAX {
        return Err(wrong("names more bytes than a chunk may have"));
    }
    if build.sources.iter().any(|source| source.chunk == build.chunk) {
        return Err(wrong("names the chunk as a source of itself"));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(source: u32, offset: u64, length: u64) -> BuildPiece {
        BuildPiece { source, offset, length }
    }

    #[test]
    fn pieces_come_in_windows_of_one_message() {
        let max = BULK_BYTES_MAX as u64;
        let pieces = [piece(0, 5, max - 10), piece(1, 0, 20), piece(0, 0, 2 * max)];
        let windows = windows(&pieces);
        assert_eq!(windows[0], [piece(0, 5, max - 10), piece(1, 0, 10)]);
        assert_eq!(windows[1], [piece(1, 10, 10), piece(0, 0, max - 10)]);
        assert_eq!(windows.iter().flatten().map(|p| p.length).sum::<u64>(), 3 * max + 10);
        assert!(windows.iter().all(|w| w.iter().map(|p| p.length).sum::<u64>() <= max));
    }

    #[test]
    fn nonsense_is_refused() {
        let source = |chunk| BuildSource { chunk, ..BuildSource::default() };
        let build = |pieces: &[BuildPiece]| Build {
            chunk: 9,
            sources: vec![source(1), source(2)],
            pieces: pieces.to_vec(),
            ..Build::default()
        };
        assert_eq!(checked(&build(&[piece(0, 5, 10), piece(1, 0, 7)])), Ok(17));
        for wrong in [
            vec![],
            vec![piece(2, 0, 1)],
            vec![piece(0, 0, 0)],
            vec![piece(0, u64::MAX, 2)],
            vec![piece(0, 1, CHUNK_BYTES_MAX)],
            vec![piece(0, 0, CHUNK_BYTES_MAX), piece(0, 0, 1)],
        ] {
            assert!(checked(&build(&wrong)).is_err(), "{wrong:?}");
        }
        assert!(checked(&Build { chunk: 1, ..build(&[piece(0, 0, 1)]) }).is_err());
        let brought = |piece| {
            let data = Bytes::from_static(b"0123456789");
            checked(&Build { sources: vec![BuildSource { data, ..source(0) }], ..build(&[piece]) })
        };
        assert_eq!(brought(piece(0, 3, 7)), Ok(7));
        assert!(brought(piece(0, 3, 8)).is_err());
    }
}
