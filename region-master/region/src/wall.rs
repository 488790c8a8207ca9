//! What a wall clock that is set forward may not do: make what was told before older than it is (docs/decisions/0047-clocks-that-are-set-forward.md).
//!
//! ```text
//!   each look: wall time, time since boot -- as expected --> [`Steady`]: for that much longer
//!                                         \-- beyond it --> [`Steady`]: from now on; [`Skipped`]: a stretch of time that never was
//! ```
//! [`Steady`] is for what is kept for long, over changes of the leader: what is on record of it says, too, what the leader before saw last. [`Skipped`] is for
//! minutes: what one process has seen of its own clock.

use std::collections::VecDeque;
use std::time::Duration;

use mooseng_ports::clock::BootTime;

/// A clock that is further ahead than this of where it should be was set, however long something is kept: clocks that nobody sets lose and gain less.
const BEYOND_MAX: Duration = Duration::from_secs(3_600);
/// One that is less far ahead wasn't, however short.
const BEYOND_MIN: Duration = Duration::from_secs(60);

/// Times are told in nanoseconds, and may be anything where a clock is wrong.
fn duration(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// What is on record of a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// What it said then, in nanoseconds since the Unix epoch.
    pub wall_ns: i64,
    /// For how long it had gone on steadily, at least; none where it was never seen to be set forward.
    pub steady: Option<Duration>,
    /// By how much it was set forward last.
    pub step: Duration,
}

/// For how long a wall clock has gone on as time has: what is over by it really is where it was to last for no longer than that. The time that passed without
/// a leader doesn't count, for nobody knows how long that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steady {
    /// Where the clock stood at a time, of all times since it was set the one at which it was furthest behind.
    base: (i64, BootTime),
    looked: BootTime,
    steady: Option<Duration>,
    step: Duration,
}

impl Steady {
    /// A leader begins to look. `kept`: how long what it is for is kept. Where the clock says that half of that has gone by since it was last looked at, or an
    /// hour if that is more, it was set, or nobody led for so long, which isn't told apart.
    pub fn begin(seen: Option<Seen>, kept: Duration, wall_ns: i64, now: BootTime) -> Self {
        let seen = seen.unwrap_or(Seen { wall_ns, ..Seen::default() });
        let Seen { steady, step, .. } = seen;
        let mut clock = Self { base: (wall_ns, now), looked: now, steady, step };
        let since = duration(wall_ns.saturating_sub(seen.wall_ns));
        if since > (kept / 2).max(BEYOND_MAX) {
            clock.set_forward(since, wall_ns, now);
        }
        clock
    }

    fn set_forward(&mut self, step: Duration, wall_ns: i64, now: BootTime) {
        *self = Self { base: (wall_ns, now), looked: now, steady: Some(Duration::ZERO), step };
    }

    /// Looks at it again. Answers whether it was set forward, in one step or several, since it was furthest behind.
    pub fn look(&mut self, kept: Duration, wall_ns: i64, now: BootTime) -> bool {
        let (base_ns, then) = self.base;
        let expected_ns = base_ns.saturating_add(nanoseconds(now.since(then)));
        let beyond = duration(wall_ns.saturating_sub(expected_ns));
        if beyond > (kept / 2).clamp(BEYOND_MIN, BEYOND_MAX) {
            self.set_forward(beyond, wall_ns, now);
            return true;
        }
        if wall_ns < expected_ns {
            self.base = (wall_ns, now);
        }
        let passed = now.since(self.looked);
        self.steady = self.steady.map(|steady| steady.saturating_add(passed));
        self.looked = now;
        false
    }

    /// For how long it has gone on steadily; none where it was never seen to be set forward.
    pub fn steady(&self) -> Option<Duration> {
        self.steady
    }

    /// Whether what began at `since_ns` has lasted for longer than that at `now_ns`, both by this clock: not where it was set forward in between.
    pub fn is_over(&self, since_ns: i64, lasts: Duration, now_ns: i64) -> bool {
        duration(now_ns.saturating_sub(since_ns)) > lasts && self.steady.is_none_or(|steady| steady >= lasts)
    }

    /// By how much it was set forward last.
    pub fn step(&self) -> Duration {
        self.step
    }

    /// What goes on record, where the clock says that.
    pub fn seen(&self, wall_ns: i64) -> Seen {
        Seen { wall_ns, steady: self.steady, step: self.step }
    }
}

/// A smaller step doesn't matter: clocks of one region may be apart by as much.
const STEP_MIN: Duration = Duration::from_secs(10);
/// So many steps are remembered.
const STEPS_MAX: usize = 16;

/// Stretches of time that a process' wall clock skipped, for it was set forward.
#[derive(Clone, Debug, Default)]
pub struct Skipped {
    looked: Option<(i64, BootTime)>,
    /// Each from what it said before the step to what it said after.
    steps: VecDeque<(i64, i64)>,
}

impl Skipped {
    /// Looks at the clock.
    pub fn look(&mut self, wall_ns: i64, now: BootTime) {
        let (last_ns, then) = *self.looked.get_or_insert((wall_ns, now));
        let expected_ns = last_ns.saturating_add(nanoseconds(now.since(then)));
        // A step that was taken back: what was skipped is to come.
        self.steps.retain(|(_, after)| *after <= wall_ns);
        if duration(wall_ns.saturating_sub(expected_ns)) > STEP_MIN {
            self.steps.push_back((expected_ns, wall_ns));
            if self.steps.len() > STEPS_MAX {
                self.steps.pop_front();
            }
        }
        self.looked = Some((wall_ns, now));
    }

    /// What the clock would say instead of `now_ns` if it hadn't skipped anything since it said `then_ns`. What another clock said then is younger by it than it
    /// is, if at all: by no more than the steps.
    pub fn without(&self, then_ns: i64, now_ns: i64) -> i64 {
        let skipped = |(before, after): &(i64, i64)| after.saturating_sub(then_ns.max(*before)).max(0);
        let skipped = self.steps.iter().map(skipped).fold(0, i64::saturating_add);
        now_ns.saturating_sub(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const HOUR: Duration = Duration::from_secs(3_600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn at(boot: Duration) -> BootTime {
        BootTime(boot)
    }

    fn ns(duration: Duration) -> i64 {
        nanoseconds(duration)
    }

    #[test]
    fn a_clock_that_is_set_forward_is_steady_from_then_on() {
        let mut clock = Steady::begin(None, DAY, 0, at(HOUR));
        assert!(!clock.look(DAY, ns(5 * DAY), at(HOUR + 5 * DAY)));
        assert_eq!(clock.steady(), None, "it was never set");
        assert!(!clock.look(DAY, ns(5 * DAY + HOUR), at(HOUR + 5 * DAY)), "within the bound");
        assert!(clock.look(DAY, ns(35 * DAY), at(HOUR + 5 * DAY + MINUTE)));
        assert_eq!((clock.steady(), clock.step()), (Some(Duration::ZERO), 30 * DAY - MINUTE));
        assert!(!clock.look(DAY, ns(35 * DAY + HOUR), at(HOUR + 5 * DAY + MINUTE + HOUR)));
        assert_eq!(clock.steady(), Some(HOUR));
        // Set right again: nothing is younger for that. Set forward once more: it counts anew.
        let now = at(HOUR + 5 * DAY + MINUTE + 2 * HOUR);
        assert!(!clock.look(DAY, ns(5 * DAY + 2 * HOUR), now));
        assert_eq!(clock.steady(), Some(2 * HOUR));
        assert!(clock.look(DAY, ns(9 * DAY), now));
        assert_eq!(clock.steady(), Some(Duration::ZERO));
    }

    #[test]
    fn what_lasts_for_a_time_isnt_over_before_the_clock_has_been_steady_for_as_long() {
        let mut clock = Steady::begin(None, DAY, 0, at(HOUR));
        assert!(!clock.is_over(0, DAY, ns(DAY)) && clock.is_over(0, DAY, ns(DAY) + 1));
        assert!(!clock.is_over(ns(DAY), DAY, 0), "it is still to come");
        assert!(clock.look(DAY, ns(30 * DAY), at(HOUR)));
        assert!(!clock.is_over(0, DAY, ns(30 * DAY)));
        assert!(!clock.look(DAY, ns(30 * DAY + 23 * HOUR), at(24 * HOUR)));
        assert!(!clock.is_over(0, DAY, ns(30 * DAY + 23 * HOUR)));
        assert!(clock.is_over(0, 23 * HOUR, ns(30 * DAY + 23 * HOUR)), "what is kept for less");
        assert!(!clock.look(DAY, ns(31 * DAY), at(25 * HOUR)));
        assert!(clock.is_over(0, DAY, ns(31 * DAY)));
        assert!(!clock.is_over(ns(30 * DAY), DAY, ns(31 * DAY)), "told since");
        assert!(clock.is_over(i64::MIN, DAY, i64::MAX), "what is wrong stays within bounds");
    }

    #[test]
    fn small_steps_add_up_and_what_is_kept_for_minutes_has_a_smaller_bound() {
        let mut clock = Steady::begin(None, DAY, 0, at(MINUTE));
        let looks = (1..=3_u32).map(|n| clock.look(DAY, ns(n * 25 * MINUTE), at(MINUTE)));
        assert_eq!(looks.collect::<Vec<_>>(), [false, false, true]);
        let set = |kept, step| Steady::begin(None, kept, 0, at(MINUTE)).look(kept, ns(step), at(MINUTE));
        assert!(set(10 * MINUTE, 6 * MINUTE) && !set(10 * MINUTE, 5 * MINUTE));
        assert!(!set(Duration::from_secs(2), MINUTE) && set(Duration::from_secs(2), 2 * MINUTE));
    }

    #[test]
    fn a_leader_goes_by_what_the_one_before_has_seen() {
        let seen = Seen { wall_ns: ns(9 * DAY), steady: Some(HOUR), step: 2 * DAY };
        let begin = |kept, wall: Duration| Steady::begin(Some(seen), kept, ns(wall), at(MINUTE));
        let mut next = begin(DAY, 9 * DAY + 10 * MINUTE);
        assert_eq!(next.steady(), Some(HOUR), "what passed in between isn't known");
        assert!(!next.look(DAY, ns(9 * DAY + 11 * MINUTE), at(2 * MINUTE)));
        let noted = Seen { wall_ns: 77, steady: Some(HOUR + MINUTE), step: 2 * DAY };
        assert_eq!(next.seen(77), noted);
        // Half of what is kept, or an hour.
        assert_eq!(begin(DAY, 9 * DAY + 12 * HOUR).steady(), Some(HOUR));
        let set = begin(DAY, 9 * DAY + 13 * HOUR);
        assert_eq!((set.steady(), set.step()), (Some(Duration::ZERO), 13 * HOUR));
        assert_eq!(begin(MINUTE, 9 * DAY + HOUR).steady(), Some(HOUR));
        assert_eq!(begin(MINUTE, 9 * DAY + 2 * HOUR).steady(), Some(Duration::ZERO));
        // A clock that is behind the last one makes nothing older.
        assert_eq!(begin(DAY, DAY).steady(), Some(HOUR));
        assert_eq!(Steady::begin(None, DAY, i64::MAX, at(MINUTE)).steady(), None, "nothing is known");
        assert_eq!(Steady::begin(Some(Seen::default()), DAY, i64::MIN, at(MINUTE)).steady(), None);
    }

    #[test]
    fn what_was_skipped_makes_nothing_older() {
        let mut skipped = Skipped::default();
        skipped.look(ns(100 * MINUTE), at(MINUTE));
        skipped.look(ns(101 * MINUTE), at(2 * MINUTE));
        let since = |skipped: &Skipped, then: Duration, now: Duration| {
            duration(skipped.without(ns(then), ns(now)).saturating_sub(ns(then)))
        };
        assert_eq!(since(&skipped, 90 * MINUTE, 101 * MINUTE), 11 * MINUTE);
        // An hour forward within a minute.
        skipped.look(ns(162 * MINUTE), at(3 * MINUTE));
        assert_eq!(since(&skipped, 90 * MINUTE, 162 * MINUTE), 12 * MINUTE);
        assert_eq!(since(&skipped, 162 * MINUTE, 163 * MINUTE), MINUTE, "told since");
        assert_eq!(since(&skipped, 130 * MINUTE, 163 * MINUTE), MINUTE, "told by another clock");
        assert_eq!(since(&skipped, 170 * MINUTE, 163 * MINUTE), Duration::ZERO);
        // And another day.
        skipped.look(ns(162 * MINUTE + DAY), at(3 * MINUTE));
        assert_eq!(since(&skipped, 90 * MINUTE, 162 * MINUTE + DAY), 12 * MINUTE);
        // That day is taken back: it is to come.
        skipped.look(ns(163 * MINUTE), at(4 * MINUTE));
        assert_eq!(since(&skipped, 90 * MINUTE, 163 * MINUTE), 13 * MINUTE);
        assert_eq!(since(&skipped, 162 * MINUTE, 163 * MINUTE + DAY), DAY + MINUTE);
        for n in 1..=40_u32 {
            skipped.look(ns(163 * MINUTE + n * DAY), at(4 * MINUTE));
        }
        assert_eq!(skipped.steps.len(), STEPS_MAX);
        skipped.look(i64::MAX, at(4 * MINUTE));
        assert!(skipped.without(i64::MIN, i64::MAX) >= 0, "what is wrong stays within bounds");
    }
}
