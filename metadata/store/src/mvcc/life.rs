//! How long read versions live.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::limits::READ_VERSION_LIFE;

/// Which versions are too old, from the times that [`tick`](Self::tick) is told. It has no clock of its own.
#[derive(Debug)]
pub struct Life {
    /// When each version was the newest one, oldest first.
    samples: VecDeque<(Duration, u64)>,
    held_max: Duration,
}

impl Life {
    /// Versions that a running transaction holds live for up to `held_max`, others for [`READ_VERSION_LIFE`].
    pub fn new(held_max: Duration) -> Self {
        Self { samples: VecDeque::new(), held_max }
    }

    /// At time `now` (of any monotonic clock), `version` is the newest. The floor: versions below it may be forgotten. `held` is the
    /// oldest version that a transaction reads at.
    pub fn tick(&mut self, now: Duration, version: u64, held: Option<u64>) -> u64 {
        if self.samples.back().is_none_or(|(time, _)| now.saturating_sub(*time) >= Duration::from_millis(100))
        {
            self.samples.push_back((now, version));
        }
        let unheld = self.newest_before(now.checked_sub(READ_VERSION_LIFE));
        let forced = self.newest_before(now.checked_sub(self.held_max));
        while self.samples.get(1).is_some_and(|(time, _)| time.saturating_add(self.held_max) < now) {
            self.samples.pop_front();
        }
        unheld.min(held.unwrap_or(u64::MAX).max(forced))
    }

    fn newest_before(&self, time: Option<Duration>) -> u64 {
        let Some(time) = time else { return 0 };
        self.samples.iter().rev().find(|(at, _)| *at <= time).map_or(0, |(_, version)| *version)
    }
}

/// The read versions of running transactions.
#[derive(Clone, Debug, Default)]
pub struct Leases(Arc<Mutex<BTreeMap<u64, usize>>>);

impl Leases {
    /// A transaction reads at `version`, until the lease is dropped.
    pub fn take(&self, version: u64) -> ReadLease {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(version).or_default() += 1;
        ReadLease { version, leases: self.clone() }
    }

    /// The oldest version that is read at.
    pub fn oldest(&self) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().next().copied()
    }
}

/// Holds a read version.
#[derive(Debug)]
pub struct ReadLease {
    version: u64,
    leases: Leases,
}

impl ReadLease {
    /// The version.
    pub fn version(&self) -> u64 {
        self.version
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        let mut leases = self.leases.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = leases.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                leases.remove(&self.version);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_live_for_five_seconds_and_longer_while_held() {
        let mut life = Life::new(Duration::from_secs(20));
        let mut floors = Vec::new();
        for second in 0..30u64 {
            floors.push(life.tick(Duration::from_secs(second), second * 10, (second < 12).then_some(30)));
        }
        assert_eq!(floors[4], 0);
        assert_eq!(floors[6], 10);
        assert_eq!(floors[11], 30, "a held version stays");
        assert_eq!(floors[12], 70, "and goes once it isn't held");
        assert_eq!(life.tick(Duration::from_secs(60), 600, Some(30)), 290, "but not for ever");
        assert!(life.samples.len() < 300);
    }

    #[test]
    fn leases_count() {
        let leases = Leases::default();
        let (a, b) = (leases.take(3), leases.take(3));
        let c = leases.take(5);
        drop(a);
        assert_eq!(leases.oldest(), Some(3));
        drop(b);
        assert_eq!(leases.oldest(), Some(5));
        drop(c);
        assert_eq!(leases.oldest(), None);
    }
}
