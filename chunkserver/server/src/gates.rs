//! Who may work on which disk: a thread that waits for a disk which hangs is gone until that answers, and there are only so many.
//!
//! Each data directory has its share of the threads. Whoever finds it used up waits without one, until there is one again, or the disk is known to hang: from then on a
//! few wait for it, and everybody else is refused at once and goes to another copy.

use std::sync::Arc;
use std::time::Duration;

use mooseng_chunk::{ChunkError, ChunkStore};
use mooseng_transport::Blocking;
use mooseng_wire::ChunkId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Threads that work on disks at a time. Tokio has 512: heartbeats, probes and the scrub need some, whatever the disks do.
const THREADS: usize = 384;
/// Of which each data directory has so many at least.
const SHARE_MIN: usize = 16;
/// So many calls may wait for a disk that hangs, for it may answer again.
const WAITING_MAX: usize = 8;
/// How often whoever waits looks whether the disk hangs.
const LOOK: Duration = Duration::from_millis(250);

/// The threads of each data directory, and of chunks that lie in none yet.
pub struct Gates {
    store: Arc<ChunkStore>,
    blocking: Blocking,
    share: usize,
    of: Vec<Arc<Semaphore>>,
    nowhere: Arc<Semaphore>,
}

impl Gates {
    /// Of that store's disks.
    pub fn new(store: Arc<ChunkStore>, blocking: Blocking) -> Self {
        let share = (THREADS / (store.places() + 1)).max(SHARE_MIN);
        let gate = || Arc::new(Semaphore::new(share));
        let of = std::iter::repeat_with(gate).take(store.places()).collect();
        Self { store, blocking, share, of, nowhere: gate() }
    }

    /// Runs work on a chunk where it may block.
    pub async fn run<T: Send + 'static>(
        &self,
        chunk: ChunkId,
        work: impl FnOnce(&ChunkStore) -> Result<T, ChunkError> + Send + 'static,
    ) -> Result<T, ChunkError> {
        let turn = self.enter(chunk).await?;
        let store = self.store.clone();
        let work = move || {
            // Until the thread is free again, which may be long after whoever asked has given up.
            let _turn = turn;
            work(&store)
        };
        self.blocking.run(work).await
    }

    async fn enter(&self, chunk: ChunkId) -> Result<OwnedSemaphorePermit, ChunkError> {
        let place = self.store.place_of(chunk);
        let gate = place.and_then(|place| self.of.get(place)).unwrap_or(&self.nowhere);
        let answers = || {
            let at_work = self.share.saturating_sub(gate.available_permits());
            match place {
                Some(place) if at_work >= WAITING_MAX => self.store.answers(chunk, place),
                _ => Ok(()),
            }
        };
        answers()?;
        // At once where there is one: what follows is under way before anything can end the call.
        if let Ok(turn) = gate.clone().try_acquire_owned() {
            return Ok(turn);
        }
        let turn = gate.clone().acquire_owned();
        tokio::pin!(turn);
        loop {
            match timeout(LOOK, &mut turn).await {
                Ok(Ok(turn)) => return Ok(turn),
                Ok(Err(closed)) => return Err(ChunkError::Lacking { chunk, reason: closed.to_string() }),
                Err(_) => answers()?,
            }
        }
    }
}
