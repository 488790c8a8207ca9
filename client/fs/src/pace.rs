//! Writers wait while the home says that what no other region has of the volume is older than the volume's bound, `lag_max` (docs/decisions/0046-lag-max.md).
//!
//! ```text
//!  free --an answer says that writers wait--> paced: each write asks the home first, or takes of what one answer has let through
//!    ^------------ no answer has said so for a while ------------/
//! ```
//! What waits is what applications ask for, before anything is done about it. What is buffered goes on being sent, for others may wait for that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, Pace as Ask};
use tokio::time::Instant;

use crate::FileSystem;
use crate::error::FsError;
use crate::region::Region;

/// How long after the last answer that said so writers still ask.
const PACED_FOR: Duration = Duration::from_secs(10);
/// Bytes that are let through by one answer.
const LET_THROUGH: u64 = 8 << 20;
/// What a change counts beyond its bytes.
const A_CHANGE: u64 = 32 << 10;

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    /// Bytes that may go without asking.
    left: u64,
}

/// Whether writers of a session wait.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    on: AtomicBool,
    state: Mutex<State>,
    /// One asks for all.
    asking: tokio::sync::Mutex<()>,
}

impl Pace {
    /// An answer says whether writers are to wait.
    pub fn heard(&self, held: bool, now: Instant) {
        if held {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            *state = State { until: Some(now + PACED_FOR), left: 0 };
            self.on.store(true, Ordering::Release);
        }
    }

    /// Whether so many bytes may be written without asking.
    fn take(&self, bytes: u64, now: Instant) -> bool {
        if !self.on.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.until.is_none_or(|until| now >= until) {
            self.on.store(false, Ordering::Release);
            return true;
        }
        let goes = state.left > 0;
        state.left = state.left.saturating_sub(bytes + A_CHANGE);
        goes
    }

    fn let_through(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).left = LET_THROUGH;
    }

    /// Waits until so many bytes may be written; as long as operations are retried, and then the error says why it wasn't done.
    pub async fn wait(&self, region: &Region, bytes: u64) -> Result<(), FsError> {
        if self.take(bytes, Instant::now()) {
            return Ok(());
        }
        let began = Instant::now();
        region.counters.update(|c| c.paced += 1);
        let _asking = self.asking.lock().await;
        loop {
            if self.take(bytes, Instant::now()) {
                return Ok(());
            }
            match region.tell_home(&Caller::default(), Op::Pace(Ask {})).await {
                Ok(Reply::Done(_)) => self.let_through(),
                // Nothing has changed: the home was asked for as long as one request may take.
                Ok(Reply::Errno(_)) if began.elapsed() < region.patience() => {}
                Ok(_) => {
                    let last = "no other region has what was written longer ago than the volume's lag_max";
                    return Err(region.unanswered_error("write", region.patience(), last));
                }
                // Whatever is asked for next meets the same, or a home that says nothing of the kind.
                Err(_) => return Ok(()),
            }
        }
    }
}

impl FileSystem {
    /// Where writers of the volume wait for other regions, this one does, with so many bytes to write.
    pub(crate) async fn paced(&self, bytes: u64) -> Result<(), FsError> {
        self.inner.session.pace.wait(&self.inner.region, bytes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_told_to_wait_asks_again_after_so_many_bytes_and_not_for_ever() {
        let (pace, now) = (Pace::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(pace.take(1 << 30, now));
        pace.heard(true, now);
        assert!(!pace.take(0, now));
        pace.let_through();
        pace.heard(false, now);
        let taken = (0..100).take_while(|_| pace.take(1 << 20, after(1))).count();
        assert!((7..=9).contains(&taken), "{taken}");
        // Told again, it waits at once.
        pace.let_through();
        pace.heard(true, after(2));
        assert!(!pace.take(1, after(3)));
        assert!(!pace.take(1, after(11)));
        assert!(pace.take(1, after(12)) && pace.take(1, now));
    }
}
