//! Having a chunk here that grows in another region: as a master orders it, what is missing up to a length is read there, appended and flushed. Once
//! the chunk is sealed there it is sealed here, if its bytes are the same.

use std::time::Duration;

use futures::{StreamExt, stream};
use mooseng_chunk::{Append, ChunkError, Digest};
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Follow, Followed, Read};
use mooseng_wire::{BULK_BYTES_MAX, CHUNK_BYTES_MAX, ChunkId, Epoch};

use tokio::time::Instant;

use crate::members::Members;
use crate::pull::{PIECE_WITHIN, Pulls};

/// Pieces that are asked for before those before them were written: a source in another region is a round trip away.
const AHEAD: usize = 8;
/// How often is looked whether bytes come.
const ARRIVING_LOOK: Duration = Duration::from_millis(10);
/// How long at most, as long as some do.
const ARRIVING_MAX: Duration = Duration::from_secs(2);

impl Pulls {
    /// Appends what is missing. Given up in between, it leaves what was appended, from where the next order goes on.
    pub async fn follow(&self, follow: Follow, members: &Members) -> Result<Followed, CallError> {
        let _permit = self.permit_to_follow()?;
        let (chunk, epoch) = (ChunkId(follow.chunk), Epoch(follow.epoch));
        let (digest, source) = checked(&follow)?;
        let within = if source.is_some() { ARRIVING_MAX } else { ARRIVING_LOOK };
        let expected = Duration::from_millis(follow.expected_ms.into()).min(ARRIVING_MAX);
        self.arriving(chunk, epoch, follow.upto, (within, expected)).await;
        let (custody, upto) = (follow.custody, follow.upto);
        let begin = move |store: &mooseng_chunk::ChunkStore| {
            store.see_epoch(chunk.volume().0, epoch)?;
            store.see_custody(custody)?;
            match store.stat(chunk) {
                Ok(stat) => Ok(stat),
                Err(ChunkError::NotFound { .. }) => {
                    Ok(mooseng_chunk::ChunkStat { length: 0, flushed: 0, sealed: false, epoch })
                }
                Err(error) => Err(error),
            }
        };
        let stat = self.work(chunk, begin).await?;
        if stat.sealed {
            if stat.length < upto || (digest.is_some() && stat.length != upto) {
                let message =
                    format!("chunk {chunk} ends here at {}, and {upto} bytes of it are wanted", stat.length);
                return Err(call_error(ErrorCode::ChunkSealed, message));
            }
            // Whoever sealed it may have known its length alone.
            if let Some(digest) = digest {
                self.work(chunk, move |store| compare(store, chunk, upto, &digest)).await?;
            }
            return Ok(Followed { length: stat.length, sealed: true });
        }
        let source = match source {
            Some(source) => source,
            None if stat.length >= upto => String::new(),
            None => {
                let message =
                    format!("{} bytes of chunk {chunk} are here, and {upto} are wanted", stat.length);
                return Err(call_error(ErrorCode::NotFound, message));
            }
        };
        let pieces = (stat.length..upto).step_by(BULK_BYTES_MAX).map(|offset| {
            let length = (upto - offset).min(BULK_BYTES_MAX as u64) as u32;
            let read = Read { chunk: chunk.0, offset, length, ticket: follow.ticket.clone() };
            let source = &source;
            async move {
                let read = members.read(source, &read, PIECE_WITHIN).await;
                // What is wrong with the copy there says nothing of the one here.
                read.map(|bytes| (offset, bytes)).map_err(|error| {
                    call_error(
                        ErrorCode::Unavailable,
                        format!("it can't be read at {source}: {}", error.message),
                    )
                })
            }
        });
        let mut pieces = std::pin::pin!(stream::iter(pieces).buffered(AHEAD));
        while let Some(piece) = pieces.next().await {
            let (offset, bytes) = piece?;
            self.metrics.bytes_pulled.inc_by(bytes.len() as u64);
            self.work(chunk, move |store| store.write(&Append { chunk, epoch, offset, bytes })).await?;
        }
        if stat.flushed < upto {
            self.work(chunk, move |store| store.flush(chunk)).await?;
        }
        let Some(digest) = digest else { return Ok(Followed { length: upto, sealed: false }) };
        let seal = move |store: &mooseng_chunk::ChunkStore| {
            compare(store, chunk, upto, &digest)?;
            store.see_custody(custody)?;
            store.seal(chunk, epoch, upto)
        };
        self.work(chunk, seal).await?;
        Ok(Followed { length: upto, sealed: true })
    }
}

impl Pulls {
    /// Bytes may be on their way here ([`crate::push`]): as long as some come, those are waited for rather than fetched, too; where they are `expected`, so long
    /// also before any have come.
    async fn arriving(
        &self,
        chunk: ChunkId,
        epoch: Epoch,
        upto: u64,
        (within, expected): (Duration, Duration),
    ) {
        let begun = Instant::now();
        let mut before = None;
        while begun.elapsed() < within.max(expected) {
            let is = match self.store.stat(chunk) {
                Ok(stat) if stat.length < upto && !stat.sealed && stat.epoch <= epoch => Some(stat.length),
                Err(ChunkError::NotFound { .. }) => None,
                _ => return,
            };
            let stands = before.replace(is).map_or(is.is_none(), |before| before == is);
            if stands && begun.elapsed() >= expected {
                return;
            }
            tokio::time::sleep(ARRIVING_LOOK).await;
        }
    }
}

/// Refuses a copy whose first bytes aren't what they are to be.
fn compare(
    store: &mooseng_chunk::ChunkStore,
    chunk: ChunkId,
    length: u64,
    digest: &Digest,
) -> Result<(), ChunkError> {
    if store.digest(chunk, length)? != *digest {
        return Err(ChunkError::Different { chunk });
    }
    Ok(())
}

fn checked(follow: &Follow) -> Result<(Option<Digest>, Option<String>), CallError> {
    let wrong = |what: &str| {
        call_error(ErrorCode::InvalidRequest, format!("the order to follow chunk {} {what}", follow.chunk))
    };
    if follow.upto == 0 || follow.upto > CHUNK_BYTES_MAX {
        return Err(wrong("names no bytes, or more than a chunk may have"));
    }
    let digest = match &follow.digest[..] {
        [] => None,
        bytes => Some(Digest::try_from(bytes).map_err(|_| wrong("has a digest that isn't one of 32 bytes"))?),
    };
    Ok((digest, follow.source.as_ref().map(|source| source.address.clone())))
}
