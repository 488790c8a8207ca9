//! Home epochs that are new here: masters tell them, and whoever writes is believed nothing beyond that. An epoch that counts makes all before it refused, for
//! good: a client that could name one would end all writing to its volume.
//!
//! ```text
//!   append, seal in an epoch that isn't known -> every master is asked at once -> told (goes on) | not in time (refused, to be tried again)
//! ```

use std::sync::Arc;
use std::time::Duration;

use mooseng_chunk::ChunkStore;
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::{ChunkId, Epoch};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

/// A master gets so long to tell of it. Heartbeats are half a second apart where nobody asks.
const TOLD_WITHIN: Duration = Duration::from_millis(700);
/// And is asked again so often.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Calls that wait for it at a time: they hold up others' work.
const WAITING_MAX: usize = 64;

/// What writers wait for.
pub struct Epochs {
    store: Arc<ChunkStore>,
    asked: watch::Sender<u64>,
    told: Notify,
    waiting: Semaphore,
}

impl Epochs {
    /// Of these chunks' volumes.
    pub fn new(store: Arc<ChunkStore>) -> Self {
        Self {
            store,
            asked: watch::Sender::new(0),
            told: Notify::new(),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }

    /// Changes whenever masters are to be asked at once.
    pub fn asked(&self) -> watch::Receiver<u64> {
        self.asked.subscribe()
    }

    /// A master has told what it knows.
    pub fn told(&self) {
        self.told.notify_waiters();
    }

    /// Waits until masters have told of an epoch of a chunk's volume, or of a later one.
    ///
    /// # Errors
    /// *Unavailable*: none has in time, or too many wait.
    pub async fn known(&self, chunk: ChunkId, epoch: Epoch) -> Result<(), CallError> {
        let volume = chunk.volume().0;
        let is_known = || epoch <= self.store.epoch_of(volume);
        if is_known() {
            return Ok(());
        }
        let unknown = || {
            let text = format!(
                "no master has told this chunkserver that volume {volume} is in epoch {}; try again",
                epoch.0
            );
            call_error(ErrorCode::Unavailable, text)
        };
        let _waiting = self.waiting.try_acquire().map_err(|_| unknown())?;
        let deadline = Instant::now() + TOLD_WITHIN;
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if is_known() {
                return Ok(());
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(unknown());
            }
            self.asked.send_modify(|times| *times += 1);
            tokio::select! {
                () = told => {}
                () = sleep_until(deadline.min(now + ASK_EVERY)) => {}
            }
        }
    }
}
