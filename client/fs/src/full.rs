//! Whether the region has room for data, as far as this mount knows from what it sent. No sending.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::FsError;

/// What was heard longer ago says nothing any more.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// That the region has no room.
#[derive(Clone, Copy, Debug)]
struct Heard {
    until: Instant,
    /// Of data within a change. Else of data in chunks, and then the other may go on.
    inline: bool,
}

/// What was heard last of the region's room.
#[derive(Debug, Default)]
pub(crate) struct Full {
    heard: Mutex<Option<Heard>>,
}

impl Full {
    fn heard<T>(&self, f: impl FnOnce(&mut Option<Heard>) -> T) -> T {
        f(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Data was sent, within the change itself (`inline`) or to chunks, and was stored, or wasn't for that reason.
    pub fn sent(&self, inline: bool, failure: Option<&FsError>, now: Instant) {
        self.heard(|heard| match failure {
            Some(FsError::Answered(libc::ENOSPC)) => {
                let of_chunks = heard.is_some_and(|heard| !heard.inline);
                *heard = Some(Heard { until: now + KNOWN_FOR, inline: inline && !of_chunks });
            }
            Some(_) => {}
            // Little data is kept elsewhere than much: that there is room for it says nothing of the rest.
            None if inline && heard.is_some_and(|heard| !heard.inline) => {}
            None => *heard = None,
        });
    }

    /// Whether the last data that was sent had no room, and none has been stored since.
    pub fn is_known(&self, now: Instant) -> bool {
        self.heard(|heard| heard.is_some_and(|heard| now < heard.until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_region_is_known_until_data_of_the_kind_is_stored_or_for_a_while() {
        let (full, now) = (Full::default(), Instant::now());
        let refused = FsError::Answered(libc::ENOSPC);
        assert!(!full.is_known(now));
        full.sent(false, Some(&FsError::Answered(libc::EDQUOT)), now);
        assert!(!full.is_known(now), "one account's");
        full.sent(false, Some(&refused), now);
        full.sent(true, None, now);
        assert!(full.is_known(now), "chunks have no room still");
        full.sent(false, None, now);
        assert!(!full.is_known(now));
        full.sent(true, Some(&refused), now);
        assert!(full.is_known(now));
        full.sent(true, None, now);
        assert!(!full.is_known(now));
        full.sent(false, Some(&refused), now);
        assert!(!full.is_known(now + KNOWN_FOR));
    }
}
