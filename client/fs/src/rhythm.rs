//! Whether a file is written and synced by turns: then what was just written may be sent before fsync asks for it. No clocks, no sending.
//!
//! ```text
//!   as many writes as before, soon an fsync: several turns in a row -> the next turn's last write is a guess: what was written is sent
//!                                               ^                          |-> fsync: it was right, and finds it on its way
//!                                               +--- learnt anew, longer --+-> one more write before the fsync: it was wrong
//! ```
//! Who appends or overwrites without fsync never has a turn, and who stops to sync pays one change for that.

use std::time::Duration;

use tokio::time::Instant;

use crate::send::SMALL_BYTES_MAX;

/// So many turns in a row are enough for a guess at first.
const STREAK: u32 = 3;
/// Writes of one turn at most, as of a small transaction that writes its pages one by one.
const WRITES_MAX: u32 = 4;
/// How long a turn takes at most, from its first write to fsync: as long as a wake-up waits where all processors are busy. Who waits longer may write more meanwhile.
const TURN_MAX: Duration = Duration::from_millis(4);
/// How often the streak that it takes is doubled.
const MISSES_MAX: u32 = 4;

/// How an open file is written and synced.
#[derive(Debug, Default)]
pub(crate) struct Rhythm {
    /// Writes of the last turn, and how many turns in a row have had as many.
    turn: u32,
    streak: u32,
    /// Guesses that were wrong, one after the other.
    misses: u32,
    /// Since the last fsync: writes, their bytes, and when the first of them came.
    writes: u32,
    bytes: usize,
    since: Option<Instant>,
    /// These are believed to be all before the next fsync.
    guessed: bool,
    /// And nobody has begun to send them.
    due: bool,
}

impl Rhythm {
    /// So many bytes were buffered.
    pub fn written(&mut self, bytes: usize, now: Instant) {
        if self.guessed {
            self.missed();
        }
        self.writes = self.writes.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        self.since.get_or_insert(now);
        let guess = self.writes == self.turn && self.streak >= self.needed() && self.is_turn(now);
        (self.guessed, self.due) = (guess, guess);
    }

    /// Fsync was called. One that finds nothing written says nothing.
    pub fn synced(&mut self, now: Instant) {
        if self.writes == 0 {
            return;
        }
        self.streak = match (self.is_turn(now), self.writes == self.turn) {
            (true, true) => self.streak.saturating_add(1),
            (true, false) => 1,
            (false, _) => 0,
        };
        self.turn = self.writes;
        (self.writes, self.bytes, self.since) = (0, 0, None);
        (self.guessed, self.due) = (false, false);
    }

    /// Whether what was written is to be sent now: true once for each guess.
    pub fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.due)
    }

    /// Whether what was written since the last fsync would be a turn if fsync came now.
    fn is_turn(&self, now: Instant) -> bool {
        let is_quick = self.since.is_some_and(|since| now.saturating_duration_since(since) <= TURN_MAX);
        is_quick && self.writes <= WRITES_MAX && self.bytes <= SMALL_BYTES_MAX
    }

    fn needed(&self) -> u32 {
        STREAK << self.misses
    }

    /// The guess was wrong. One that went well for as long again as it took to learn is forgiven.
    fn missed(&mut self) {
        let has_paid = self.streak >= 2 * self.needed();
        self.misses = if has_paid { 0 } else { (self.misses + 1).min(MISSES_MAX) };
        self.streak = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    /// So many writes, and an fsync. Answers which of them were followed by a guess.
    fn turn(rhythm: &mut Rhythm, writes: u32, now: Instant) -> Vec<u32> {
        let mut guessed = Vec::new();
        for n in 1..=writes {
            rhythm.written(PAGE, now);
            guessed.extend(rhythm.take_due().then_some(n));
        }
        rhythm.synced(now);
        guessed
    }

    /// Turns of so many writes without a guess, and one with it.
    fn learn(rhythm: &mut Rhythm, writes: u32, turns: u32, now: Instant) {
        for n in 0..turns {
            assert!(turn(rhythm, writes, now).is_empty(), "turn {n}");
        }
        assert_eq!(turn(rhythm, writes, now), [writes]);
    }

    #[test]
    fn after_some_turns_the_last_write_of_each_is_guessed() {
        for writes in 1..=WRITES_MAX {
            let (mut rhythm, now) = (Rhythm::default(), Instant::now());
            learn(&mut rhythm, writes, STREAK, now);
            rhythm.synced(now);
            assert_eq!(turn(&mut rhythm, writes, now), [writes], "an fsync of nothing changes nothing");
        }
    }

    #[test]
    fn a_guess_is_taken_once_and_not_after_fsync() {
        let (mut rhythm, now) = (Rhythm::default(), Instant::now());
        learn(&mut rhythm, 1, STREAK, now);
        rhythm.written(PAGE, now);
        assert!(rhythm.take_due() && !rhythm.take_due());
        rhythm.synced(now);
        rhythm.written(PAGE, now);
        rhythm.synced(now);
        assert!(!rhythm.take_due(), "fsync sends it itself");
    }

    #[test]
    fn a_further_write_ends_it_and_each_time_it_takes_longer_to_learn() {
        let (mut rhythm, now) = (Rhythm::default(), Instant::now());
        let mut streak = STREAK;
        for _ in 0..MISSES_MAX + 2 {
            learn(&mut rhythm, 1, streak, now);
            assert_eq!(turn(&mut rhythm, 2, now), [1], "wrong");
            streak = (2 * streak).min(STREAK << MISSES_MAX);
        }
        // It has paid for itself since.
        learn(&mut rhythm, 1, streak, now);
        for _ in 0..streak {
            assert_eq!(turn(&mut rhythm, 1, now), [1]);
        }
        assert_eq!(turn(&mut rhythm, 2, now), [1]);
        learn(&mut rhythm, 1, STREAK, now);
    }

    #[test]
    fn without_fsync_there_is_one_guess_at_most() {
        let (mut rhythm, now) = (Rhythm::default(), Instant::now());
        let guesses = |rhythm: &mut Rhythm| {
            let due = (0..1000).filter(|_| {
                rhythm.written(PAGE, now);
                rhythm.take_due()
            });
            due.count()
        };
        assert_eq!(guesses(&mut rhythm), 0);
        rhythm.synced(now);
        learn(&mut rhythm, 1, STREAK, now);
        assert_eq!((guesses(&mut rhythm), guesses(&mut rhythm)), (1, 0));
    }

    #[test]
    fn turns_that_differ_are_slow_or_large_teach_nothing() {
        let (mut rhythm, now) = (Rhythm::default(), Instant::now());
        for n in 0..20 {
            assert!(turn(&mut rhythm, 1 + n % 2, now).is_empty(), "they differ");
            assert!(turn(&mut rhythm, 1 + n % 3, now).is_empty(), "they differ");
        }
        for n in 0..20 {
            let now = now + TURN_MAX * 3 * n;
            rhythm.written(PAGE, now);
            assert!(!rhythm.take_due(), "fsync comes late");
            rhythm.synced(now + TURN_MAX + Duration::from_millis(1));
        }
        for _ in 0..20 {
            rhythm.written(SMALL_BYTES_MAX + 1, now);
            assert!(!rhythm.take_due(), "it doesn't go in the change");
            rhythm.synced(now);
        }
        for _ in 0..20 {
            assert!(turn(&mut rhythm, WRITES_MAX + 1, now).is_empty(), "many writes");
        }
    }
}
