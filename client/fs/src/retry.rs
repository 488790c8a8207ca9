//! How long to pause before the next attempt: exponential with jitter, and a budget that keeps a whole mount from storming
//! a region that comes back.

use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(1000);
/// Retries that a mount may have in hand.
const BUDGET_MAX: f64 = 200.0;
/// Retries that one success earns.
const BUDGET_EARNED: f64 = 0.2;

/// One operation's pauses.
#[derive(Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next pause. `unit` is random in 0..1. Without `budget` it is the longest one.
    pub fn pause(&mut self, unit: f64, budget: bool) -> Duration {
        let step = if budget {
            PAUSE_MIN.saturating_mul(1 << self.attempts.min(8)).min(PAUSE_MAX)
        } else {
            PAUSE_MAX
        };
        self.attempts = self.attempts.saturating_add(1);
        step.mul_f64(0.5 + 0.5 * unit.clamp(0.0, 1.0))
    }
    /// Pauses so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

/// The retries that all operations of a mount may make at short pauses.
#[derive(Debug)]
pub struct Budget {
    tokens: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { tokens: BUDGET_MAX }
    }
}

impl Budget {
    /// An operation succeeded.
    pub fn earn(&mut self) {
        self.tokens = (self.tokens + BUDGET_EARNED).min(BUDGET_MAX);
    }
    /// Whether a retry may come soon.
    pub fn spend(&mut self) -> bool {
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_jitter() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(0.0, true), Duration::from_millis(10));
        assert_eq!(backoff.pause(1.0, true), Duration::from_millis(40));
        for _ in 0..20 {
            assert!(backoff.pause(1.0, true) <= PAUSE_MAX);
        }
        assert_eq!(Backoff::default().pause(1.0, false), PAUSE_MAX);
    }

    #[test]
    fn a_spent_budget_recovers_with_successes() {
        let mut budget = Budget::default();
        assert_eq!((0..1000).filter(|_| budget.spend()).count(), BUDGET_MAX as usize);
        for _ in 0..5 {
            budget.earn();
        }
        assert!(budget.spend());
        assert!(!budget.spend());
    }
}
