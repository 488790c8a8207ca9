//! The numbers of a session's changes: a bounded window of unanswered ones.

use std::collections::BTreeSet;

/// Most numbers between the oldest unanswered change and the newest. A session record keeps 1,024 outcomes at most.
pub const UNANSWERED_MAX: u64 = 256;
/// Of these, numbers kept for changes that others wait for: what is buffered must reach the region also when all other changes of this
/// host wait for recalls.
pub const URGENT: u64 = 32;

/// Hands out numbers from 1 and knows which are unanswered.
#[derive(Debug, Default)]
pub struct Window {
    last: u64,
    unanswered: BTreeSet<u64>,
}

impl Window {
    /// The next number, unless the window is full. It bounds the span and not only the count: one change that hangs must
    /// not let the others run on until its outcome is forgotten.
    pub fn begin(&mut self, urgent: bool) -> Option<u64> {
        let room = if urgent { UNANSWERED_MAX } else { UNANSWERED_MAX - URGENT };
        if self.last + 1 - self.oldest_unanswered() >= room {
            return None;
        }
        self.last += 1;
        self.unanswered.insert(self.last);
        Some(self.last)
    }
    /// The change was answered, or is given up.
    pub fn finish(&mut self, number: u64) {
        self.unanswered.remove(&number);
    }
    /// Every change below this number was answered.
    pub fn oldest_unanswered(&self) -> u64 {
        self.unanswered.first().copied().unwrap_or(self.last + 1)
    }
    /// The last number handed out.
    pub fn last(&self) -> u64 {
        self.last
    }
    /// How many are unanswered.
    pub fn unanswered(&self) -> usize {
        self.unanswered.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_from_one_and_the_oldest_holds_the_window() {
        let mut window = Window::default();
        assert_eq!(window.oldest_unanswered(), 1);
        assert_eq!(window.begin(false), Some(1));
        for n in 2..=UNANSWERED_MAX {
            let urgent = n > UNANSWERED_MAX - URGENT;
            assert_eq!(window.begin(false).is_none(), urgent);
            assert!(!urgent || window.begin(true) == Some(n));
            window.finish(n);
        }
        assert_eq!(window.oldest_unanswered(), 1);
        assert_eq!(window.begin(true), None, "number 1 still hangs");
        window.finish(1);
        assert_eq!(window.oldest_unanswered(), UNANSWERED_MAX + 1);
        assert_eq!(window.begin(false), Some(UNANSWERED_MAX + 1));
        assert_eq!(window.unanswered(), 1);
    }
}
