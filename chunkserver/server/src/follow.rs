//! Having a chunk here that grows in another region: as a master orders it, what is missing up to a length is read there, appended and flushed. Once
//! the chunk is sealed there it is sealed here, if its bytes are the same.

use std::time::Duration;

use futures::{StreamExt, stream};
use mooseng_chunk::{Append, ChunkError, Digest};
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Follow, Followed, Read};
use mooseng_wire::{BULK_BYTES_MAX, CHUNK_BYTES_MAX, ChunkId, Epoch};

use tokio::time::{Instant, timeout};

use crate::members::Members;
use crate::order::{Order, Turns};
use crate::pull::{PIECE_WITHIN, Pulls};

/// Pieces that are asked for before those before them were written: a source in another region is a round trip away.
const AHEAD: usize = 8;
/// How long after bytes have come more are waited for; and how often is looked without having been told of any.
const ARRIVING_LOOK: Duration = Duration::from_millis(10);
/// How long at most, as long as some do.
const ARRIVING_MAX: Duration = Duration::from_secs(2);

impl Pulls {
    /// Appends what is missing. Given up in between, it leaves what was appended, from where the next order goes on.
    pub async fn follow(
        &self,
        follow: Follow,
        members: &Members,
        order: &Order,
    ) -> Result<Followed, CallError> {
        let _permit = self.permit_to_follow()?;
        let (chunk, epoch) = (ChunkId(follow.chunk), Epoch(follow.epoch));
        let (digest, source) = checked(&follow)?;
        let within = if source.is_some() { ARRIVING_MAX } else { ARRIVING_LOOK };
        let expected = Duration::from_millis(follow.expected_ms.into()).min(ARRIVING_MAX);
        {
            // With too many appends under way nobody tells of them, and they are seen a little later.
            let entered = order.enter(chunk);
            let turns = entered.as_ref().map(|entered| entered.turns.clone()).unwrap_or_default();
            let look = || self.missing(chunk, epoch, follow.upto);
            arriving(Arriving::new(within, expected), look, &turns).await;
        }
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
    /// How much of a chunk is here where that is less than is wanted and more may come; nothing of it is `Some(None)`.
    fn missing(&self, chunk: ChunkId, epoch: Epoch, upto: u64) -> Option<Option<u64>> {
        match self.store.stat(chunk) {
            Ok(stat) if stat.length < upto && !stat.sealed && stat.epoch <= epoch => Some(Some(stat.length)),
            Err(ChunkError::NotFound { .. }) => Some(None),
            _ => None,
        }
    }
}

/// For how long bytes are waited for that may be on their way here ([`crate::push`]): as long as some come, those are waited for rather than fetched, too; where they
/// are expected, so long also before any have come.
#[derive(Debug)]
struct Arriving {
    within: Duration,
    expected: Duration,
    /// How much was here at the last look.
    seen: Option<u64>,
    /// When more had come, from the beginning on.
    came: Option<Duration>,
}

impl Arriving {
    fn new(within: Duration, expected: Duration) -> Self {
        Self { within, expected, seen: None, came: None }
    }

    /// So much is here after so long. Answers how long to wait for more; none where nothing is waited for any more.
    fn step(&mut self, elapsed: Duration, is: Option<u64>) -> Option<Duration> {
        if is.is_some() && is != self.seen {
            self.came = Some(elapsed);
        }
        self.seen = is;
        let more = self.came.map_or(Duration::ZERO, |came| came + ARRIVING_LOOK).min(self.within);
        more.max(self.expected).checked_sub(elapsed).filter(|left| !left.is_zero())
    }
}

/// Waits for bytes as long as [`Arriving`] says, and no longer than until all that is wanted is there: then there is nothing to look for.
async fn arriving(mut arriving: Arriving, look: impl Fn() -> Option<Option<u64>>, turns: &Turns) {
    let begun = Instant::now();
    loop {
        // Told of whatever is appended behind this look.
        let grown = turns.grown.notified();
        tokio::pin!(grown);
        grown.as_mut().enable();
        let Some(is) = look() else { return };
        let Some(left) = arriving.step(begun.elapsed(), is) else { return };
        let _ = timeout(left.min(ARRIVING_LOOK), grown).await;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_comes_is_waited_for_as_long_as_it_comes() {
        // Where there is nobody to read it from, and nothing is expected.
        let mut nothing = Arriving::new(ARRIVING_LOOK, ms(0));
        assert_eq!(nothing.step(ms(0), None), None);
        let mut part = Arriving::new(ARRIVING_LOOK, ms(0));
        assert_eq!(part.step(ms(0), Some(1)), Some(ms(10)));
        assert_eq!(part.step(ms(6), Some(2)), Some(ms(4)), "others wait for the answer");
        assert_eq!(part.step(ms(10), Some(3)), None);
        // What is expected is waited for before any of it has come.
        let mut expected = Arriving::new(ARRIVING_LOOK, ms(100));
        assert_eq!(expected.step(ms(0), None), Some(ms(100)));
        assert_eq!(expected.step(ms(99), Some(5)), Some(ms(1)));
        assert_eq!(expected.step(ms(100), Some(6)), None);
        // Rather than read there, as long as some comes.
        let mut coming = Arriving::new(ARRIVING_MAX, ms(0));
        assert_eq!(coming.step(ms(0), Some(5)), Some(ms(10)));
        assert_eq!(coming.step(ms(7), Some(6)), Some(ms(10)));
        assert_eq!(coming.step(ms(12), Some(6)), Some(ms(5)));
        assert_eq!(coming.step(ms(17), Some(6)), None);
        let mut ever = Arriving::new(ARRIVING_MAX, ms(0));
        let waited = (0..).find(|n| ever.step(ms(5 * n), Some(*n)).is_none());
        assert_eq!(waited, Some(400), "and no longer than for two seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_bytes_hears_of_them_when_they_come() {
        let (turns, length) = (Turns::default(), AtomicU64::new(0));
        let look = || {
            let is = length.load(Ordering::SeqCst);
            (is < 10).then_some((is > 0).then_some(is))
        };
        let begun = Instant::now();
        let comes = async {
            for n in [4, 10] {
                tokio::time::sleep(ms(13)).await;
                length.store(n, Ordering::SeqCst);
                turns.grown.notify_waiters();
            }
        };
        let waits = async {
            arriving(Arriving::new(ARRIVING_LOOK, ms(100)), look, &turns).await;
            begun.elapsed()
        };
        let (waited, ()) = tokio::join!(waits, comes);
        assert!((ms(26)..ms(30)).contains(&waited), "{waited:?} instead of 26 ms");
        // Nor does what comes without a word stay unseen.
        length.store(0, Ordering::SeqCst);
        let comes = async {
            tokio::time::sleep(ms(13)).await;
            length.store(10, Ordering::SeqCst);
        };
        tokio::join!(arriving(Arriving::new(ARRIVING_LOOK, ms(100)), look, &turns), comes);
        assert!(begun.elapsed() < ms(60), "{:?}", begun.elapsed());
    }
}
