//! Clocks. Leases run on time since boot, which counts suspended time (CLOCK_BOOTTIME); wall time is for timestamps only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Time since the machine booted, suspended time included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootTime(pub Duration);

impl BootTime {
    /// This moment and `duration` later.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
    /// How long ago `earlier` was; zero if it is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Time since boot.
    fn boot(&self) -> BootTime;
    /// Wall time in nanoseconds since the Unix epoch.
    fn unix_ns(&self) -> i64;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsClock;

impl Clock for OsClock {
    fn boot(&self) -> BootTime {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        BootTime(Duration::new(t.tv_sec as u64, t.tv_nsec as u32))
    }
    fn unix_ns(&self) -> i64 {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        t.tv_sec.saturating_mul(1_000_000_000).saturating_add(t.tv_nsec)
    }
}

/// A clock that a test sets by hand.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Moves time forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn boot(&self) -> BootTime {
        BootTime(Duration::from_nanos(self.0.load(Ordering::SeqCst)))
    }
    fn unix_ns(&self) -> i64 {
        1_700_000_000_000_000_000 + self.0.load(Ordering::SeqCst) as i64
    }
}
