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
use crate::waits::{self, What};

/// How long after the last answer that said so writers still ask.
const PACED_FOR: Duration = Duration::from_secs(10);
/// How often those look that wait for another one's answer.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Bytes that are let through by one answer.
const LET_THROUGH: u64 = 8 << 20;
/// What a change counts beyond its bytes.
const A_CHANGE: u64 = 32 << 10;

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    /// Bytes that may go without asking.
    left: u64,
    /// Since when the home has said that no region follows.
    alone_since: Option<Instant>,
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
            (state.until, state.left) = (Some(now + PACED_FOR), 0);
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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.left, state.alone_since) = (LET_THROUGH, None);
    }

    /// Whether any region follows that is waited for, as the home says.
    fn follows(&self, follows: bool, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.alone_since = if follows { None } else { Some(state.alone_since.unwrap_or(now)) };
    }

    /// Whether one that has waited since `began` has done so for `patience` without that any region followed.
    fn is_for_nothing(&self, began: Instant, patience: Duration, now: Instant) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.alone_since.is_some_and(|since| now.saturating_duration_since(since.max(began)) >= patience)
    }

    /// Waits until so many bytes may be written: for as long as a region follows that may come on. Where none does, only as long as operations are retried, and
    /// then the error says why it wasn't done.
    pub async fn wait(&self, region: &Region, bytes: u64) -> Result<(), FsError> {
        let began = Instant::now();
        if self.take(bytes, began) {
            return Ok(());
        }
        region.counters.update(|c| c.paced += 1);
        loop {
            // Whoever asks may be let through, or hear that it is for nothing, for all.
            let asking = tokio::time::timeout(LOOK_EVERY, self.asking.lock()).await;
            if self.take(bytes, Instant::now()) {
                return Ok(());
            }
            if self.is_for_nothing(began, region.patience(), Instant::now()) {
                let last = "no other region has what was written longer ago than the volume's lag_max";
                return Err(region.unanswered_error("write", region.patience(), last));
            }
            let Ok(_asking) = asking else { continue };
            match region.tell_home(&Caller::default(), Op::Pace(Ask {})).await {
                Ok(Reply::Done(_)) => self.let_through(),
                Ok(Reply::Errno(errno)) => {
                    self.follows(errno != libc::ETIMEDOUT as u32, Instant::now());
                    // A home that is about to end answers at once.
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                // Whatever is asked for next meets the same, or a home that says nothing of the kind.
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }
}

impl FileSystem {
    /// Where writers of the volume wait for other regions, this one does, with so many bytes to write.
    pub(crate) async fn paced(&self, bytes: u64) -> Result<(), FsError> {
        waits::on(|| What::Lag, self.inner.session.pace.wait(&self.inner.region, bytes)).await
    }

    /// Whether writers of the volume wait for other regions, or did a moment ago.
    pub fn is_paced(&self) -> bool {
        self.inner.session.pace.on.load(Ordering::Acquire)
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

    #[test]
    fn waiting_is_for_nothing_only_while_no_region_follows() {
        let (pace, now, patience) = (Pace::default(), Instant::now(), Duration::from_secs(60));
        let after = |seconds| now + Duration::from_secs(seconds);
        assert!(!pace.is_for_nothing(now, patience, after(1_000)), "one that follows is waited for");
        pace.follows(false, after(10));
        pace.follows(false, after(65));
        assert!(!pace.is_for_nothing(now, patience, after(69)));
        assert!(pace.is_for_nothing(now, patience, after(70)));
        assert!(!pace.is_for_nothing(after(20), patience, after(79)), "who came later waits as long");
        pace.follows(true, after(80));
        assert!(!pace.is_for_nothing(now, patience, after(1_000)));
    }
}
