//! Making a copy of a sealed chunk from another chunkserver's, as a master orders it: read piece by piece, each verified on both sides, written
//! beside, compared by digest, flushed, and only then taken up. The master changes the chunk's location once this is answered.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use mooseng_chunk::chain::refusal;
use mooseng_chunk::{ChunkError, ChunkStore, Digest, Import};
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Pull, Pulled, Read};
use mooseng_wire::{BULK_BYTES_MAX, CHUNK_BYTES_MAX, ChunkId, Epoch};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

use crate::gates::Gates;
use crate::members::Members;
use crate::metrics::Metrics;

/// Copies made at a time. A master orders fewer; this bounds what several of them can ask for.
const AT_ONCE: usize = 8;
/// Chunks followed at a time: of each file that is written and fsynced in a `geo` volume one.
const FOLLOWS_MAX: usize = 64;
/// Pieces that are asked for before those before them were written.
const AHEAD: usize = 8;
const AHEAD_PACED: usize = 2;
/// How long one piece may take.
pub(crate) const PIECE_WITHIN: Duration = Duration::from_secs(10);

/// Makes copies.
pub struct Pulls {
    pub(crate) store: Arc<ChunkStore>,
    gates: Arc<Gates>,
    pub(crate) metrics: Metrics,
    at_once: Semaphore,
    follows: Semaphore,
}

impl Pulls {
    /// Into that store.
    pub fn new(store: Arc<ChunkStore>, gates: Arc<Gates>, metrics: Metrics) -> Self {
        Self { store, gates, metrics, at_once: Semaphore::new(AT_ONCE), follows: Semaphore::new(FOLLOWS_MAX) }
    }

    /// One of the copies that may be made at a time.
    pub(crate) fn permit(&self) -> Result<SemaphorePermit<'_>, CallError> {
        self.at_once.try_acquire().map_err(|_| {
            call_error(ErrorCode::Busy, format!("{AT_ONCE} copies are being made; order this one later"))
        })
    }

    /// One of the chunks that may be followed at a time.
    pub(crate) fn permit_to_follow(&self) -> Result<SemaphorePermit<'_>, CallError> {
        self.follows.try_acquire().map_err(|_| {
            call_error(ErrorCode::Busy, format!("{FOLLOWS_MAX} chunks are followed; order this one later"))
        })
    }

    /// Makes one copy. Given up in between, it leaves nothing.
    pub async fn pull(&self, pull: Pull, members: &Members, now_s: u64) -> Result<Pulled, CallError> {
        let _permit = self.permit()?;
        let chunk = ChunkId(pull.chunk);
        let (digest, source) = checked(&pull)?;
        let begin = {
            let (epoch, custody, length) = (Epoch(pull.epoch), pull.custody, pull.length);
            move |store: &ChunkStore| {
                store.see_custody(custody)?;
                store.import(chunk, epoch, length, &digest)
            }
        };
        let Some(mut import) = self.work(chunk, begin).await? else { return Ok(Pulled { was_here: true }) };
        let begun = Instant::now();
        // A source in another region is a round trip away for each piece.
        let ahead = if pull.bytes_per_s == 0 { AHEAD } else { AHEAD_PACED };
        let pieces =
            (import.written()..import.written() + import.left()).step_by(BULK_BYTES_MAX).map(|offset| {
                let bytes = (pull.length - offset).min(BULK_BYTES_MAX as u64);
                let read = Read { chunk: chunk.0, offset, length: bytes as u32, ticket: pull.ticket.clone() };
                let source = &source;
                async move { members.read(source, &read, PIECE_WITHIN).await }
            });
        let mut pieces = std::pin::pin!(stream::iter(pieces).buffered(ahead));
        while let Some(bytes) = pieces.next().await {
            let bytes = bytes?;
            self.metrics.bytes_pulled.inc_by(bytes.len() as u64);
            import = self
                .work(chunk, move |_| -> Result<Import, ChunkError> {
                    import.write(&bytes)?;
                    Ok(import)
                })
                .await?;
            if let Some(due_ms) = (import.written() * 1000).checked_div(pull.bytes_per_s) {
                sleep(Duration::from_millis(due_ms).saturating_sub(begun.elapsed())).await;
            }
        }
        let custody = pull.custody;
        self.work(chunk, move |store| store.install(import, &digest, custody, now_s)).await?;
        tracing::info!(chunk = chunk.0, source, bytes = pull.length, "made a copy of a chunk");
        Ok(Pulled { was_here: false })
    }

    /// Runs work on a chunk where it may block.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        chunk: ChunkId,
        f: impl FnOnce(&ChunkStore) -> Result<T, ChunkError> + Send + 'static,
    ) -> Result<T, CallError> {
        self.gates.run(chunk, f).await.map_err(|e| refusal(&e))
    }
}

fn checked(pull: &Pull) -> Result<(Digest, String), CallError> {
    let wrong = |what: &str| {
        call_error(ErrorCode::InvalidRequest, format!("the order to copy chunk {} {what}", pull.chunk))
    };
    if pull.length > CHUNK_BYTES_MAX {
        return Err(wrong("names more bytes than a chunk may have"));
    }
    let digest = Digest::try_from(&pull.digest[..]).map_err(|_| wrong("has no digest of 32 bytes"))?;
    let source = pull.source.as_ref().ok_or_else(|| wrong("names no source"))?;
    Ok((digest, source.address.clone()))
}
