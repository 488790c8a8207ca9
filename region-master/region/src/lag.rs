//! How old the tail of a `region` volume is that no other region has, and whether writers wait for it: the bound is the volume's `lag_max` (DESIGN section 3).
//!
//! ```text
//!  away --heard, and within half of the bound--> counted --silent, or behind without coming on--> away
//! ```
//! What the home alone has is what a failover would lose, so the region that has most decides. Writers wait where that is older than the bound, or will be: where
//! what is missing there takes longer than the bound at the pace at which the region comes on. By its age alone it would be noticed too late, for however long
//! what was written fast takes to get there, its age grows meanwhile. A region that was away for long, and catches up, lets nobody wait:
//! what it lacks was never within the bound. While no region counts the home is alone, and goes on so, or, of a volume that is set to wait then
//! (`--on-sync-loss block`), lets writers wait: there regions count whatever is heard of them. Places are anything ordered.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use mooseng_ports::clock::BootTime;

use crate::sync_set::{CLOSE, Seen};

/// A region that isn't heard of for so long doesn't count.
pub const SILENT: Duration = Duration::from_secs(10);
/// Nor does one that has been behind for so long without having come any further.
pub const STUCK: Duration = Duration::from_secs(30);
/// Where there is no bound, ages are measured as if it were this.
const UNBOUNDED: Duration = Duration::from_secs(600);
/// The newest place is taken note of so often while a bound goes by, at most.
const SAMPLES: u32 = 256;
/// So many are kept: ages up to four times the bound are known, and none beyond is taken for less than that.
const SAMPLES_MAX: usize = 4 * SAMPLES as usize;
/// No oftener than this.
const SAMPLE: Duration = Duration::from_millis(50);

/// The pace of a region is measured over so long while it is behind.
const PACE_OVER: Duration = Duration::from_secs(6);
/// And over this at least: whatever is written in the meantime isn't held.
const PACE_AFTER: Duration = Duration::from_secs(1);

/// What is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a, P> {
    /// What is known of the other regions that have the volume.
    pub regions: &'a BTreeMap<String, Seen<P>>,
    /// The newest place of the log.
    pub newest: P,
    /// None: there is no bound.
    pub lag_max: Option<Duration>,
    /// Writers wait while the home is alone, too.
    pub blocks_alone: bool,
    /// How many changes lie between a place and an earlier one; none where they can't be counted.
    pub changes: fn(P, P) -> Option<u64>,
}

/// How it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    /// How old the oldest change is that the home alone has, to [`SAMPLE`] or a [`SAMPLES`]th of the bound; none where no region counts.
    pub age: Option<Duration>,
    /// Writers wait.
    pub held: bool,
    /// A region is heard of and comes on: where writers wait, that ends by itself.
    pub follows: bool,
}

#[derive(Clone, Copy, Debug)]
struct Counted<P> {
    complete: Option<P>,
    /// When it had come further than before, or had everything, last.
    came_on: BootTime,
}

/// A home's account of it, from when its leader began.
#[derive(Clone, Debug)]
pub struct Lag<P> {
    /// The newest place, with when it was first seen.
    samples: VecDeque<(BootTime, P)>,
    counted: BTreeMap<String, Counted<P>>,
    /// Where the region that has most was, for as long as it has been behind.
    came: VecDeque<(BootTime, P)>,
}

impl<P> Default for Lag<P> {
    fn default() -> Self {
        Self { samples: VecDeque::new(), counted: BTreeMap::new(), came: VecDeque::new() }
    }
}

impl<P: Copy + Ord> Lag<P> {
    /// Looks at how things are.
    pub fn step(&mut self, now: BootTime, facts: &Facts<'_, P>) -> Tail {
        let bound = facts.lag_max.unwrap_or(UNBOUNDED);
        self.sample(now, facts.newest, bound);
        let follows = self.count(now, facts, bound);
        let Some(most) = self.counted.values().map(|counted| counted.complete).max() else {
            return Tail::default();
        };
        let age = self.age(now, most, facts.newest);
        let takes = self.takes(now, most, facts);
        let longest = takes.map_or(age, |takes| takes.max(age));
        Tail { age: Some(age), held: facts.lag_max.is_some_and(|bound| longest > bound), follows }
    }

    /// How long what is missing takes to get there, at the pace of the last seconds; none where that isn't known, or it doesn't come on at all.
    fn takes(&mut self, now: BootTime, most: Option<P>, facts: &Facts<'_, P>) -> Option<Duration> {
        let Some(most) = most.filter(|most| *most < facts.newest) else {
            self.came.clear();
            return None;
        };
        if self.came.back().is_none_or(|(at, _)| now.since(*at) >= SAMPLE) {
            self.came.push_back((now, most));
        }
        while self.came.get(1).is_some_and(|(at, _)| now.since(*at) >= PACE_OVER) {
            self.came.pop_front();
        }
        let (since, was) = *self.came.front()?;
        let measured = now.since(since);
        let (came, missing) = ((facts.changes)(most, was)?, (facts.changes)(facts.newest, most)?);
        (came > 0 && measured >= PACE_AFTER).then(|| measured.mul_f64(missing as f64 / came as f64))
    }

    fn sample(&mut self, now: BootTime, newest: P, bound: Duration) {
        let apart = (bound / SAMPLES).max(SAMPLE);
        if self.samples.back().is_none_or(|(at, place)| *place < newest && now.since(*at) >= apart) {
            self.samples.push_back((now, newest));
        }
        while self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
    }

    /// How old what is missing behind a place is.
    fn age(&self, now: BootTime, complete: Option<P>, newest: P) -> Duration {
        if complete.is_some_and(|complete| complete >= newest) {
            return Duration::ZERO;
        }
        let missing =
            self.samples.iter().find(|(_, place)| complete.is_none_or(|complete| *place > complete));
        missing.map_or(Duration::ZERO, |(at, _)| now.since(*at))
    }

    /// Which regions count from now on. Answers whether one of them follows.
    fn count(&mut self, now: BootTime, facts: &Facts<'_, P>, bound: Duration) -> bool {
        let first = self.samples.front().map(|(_, place)| *place);
        let mut follows = false;
        let silent = |seen: &Seen<P>, for_: Duration| seen.heard.is_none_or(|heard| now.since(heard) >= for_);
        let mut counted = std::mem::take(&mut self.counted);
        for (region, seen) in facts.regions {
            let before = counted.remove(region);
            let whole = seen.complete.is_some_and(|complete| complete >= facts.newest);
            let came_on = match before {
                Some(before) if before.complete >= seen.complete && !whole => before.came_on,
                _ => now,
            };
            let stays = seen.complete.is_some() && !silent(seen, SILENT) && now.since(came_on) < STUCK;
            // Of what is older than this account it isn't known how old it is.
            let known = seen.complete.is_some() && seen.complete >= first;
            let comes =
                known && !silent(seen, CLOSE) && self.age(now, seen.complete, facts.newest) <= bound / 2;
            let well = if before.is_some() { stays } else { comes };
            follows |= well;
            if facts.blocks_alone || well {
                self.counted.insert(region.clone(), Counted { complete: seen.complete, came_on });
            }
        }
        follows
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    fn at(ms: u64) -> BootTime {
        BootTime::default().after(Duration::from_millis(ms))
    }

    fn seen(complete: u64, heard: u64) -> BTreeMap<String, Seen<u64>> {
        [("b".to_owned(), Seen { complete: Some(complete), heard: Some(at(heard)) })].into()
    }

    fn look(lag: &mut Lag<u64>, ms: u64, newest: u64, regions: &BTreeMap<String, Seen<u64>>) -> Tail {
        lag.step(
            at(ms),
            &Facts { regions, newest, lag_max: Some(BOUND), blocks_alone: false, changes: u64::checked_sub },
        )
    }

    fn age(tail: Tail) -> Option<u64> {
        tail.age.map(|age| age.as_secs())
    }

    #[test]
    fn the_age_is_that_of_what_the_region_that_has_most_lacks() {
        let mut lag = Lag::default();
        assert_eq!(age(look(&mut lag, 0, 5, &seen(5, 0))), Some(0));
        // A place each second, of which the region takes one in two seconds.
        for second in 1..=20 {
            let tail = look(&mut lag, second * 1_000, 5 + second, &seen(5 + second / 2, second * 1_000));
            assert_eq!(age(tail), Some(second - second / 2 - 1), "{second}");
        }
        // Another one has all of it.
        let mut both = seen(14, 24_000);
        both.insert("c".to_owned(), Seen { complete: Some(25), heard: Some(at(24_000)) });
        let tail = look(&mut lag, 24_000, 25, &both);
        assert_eq!((age(tail), tail.held), (Some(0), false));
    }

    /// However much faster writers are than the region: what is missing doesn't become much older than the bound, nobody waits for long at a time, and the region
    /// has always something to do.
    #[test]
    fn writers_are_kept_to_the_pace_of_the_region() {
        for (written, taken) in [(10_u64, 9_u64), (10, 5), (100, 5), (1_000, 5)] {
            let mut lag = Lag::default();
            let (mut newest, mut complete, mut made) = (1, 1, VecDeque::from([(1_u64, 0_u64)]));
            let (mut waits_since, mut idle) = (None, 0);
            for step in 1..3_000_u64 {
                let ms = step * 100;
                let tail = look(&mut lag, ms, newest, &seen(complete, ms));
                if tail.held {
                    assert!(tail.follows, "that ends by itself");
                    let since = *waits_since.get_or_insert(ms);
                    let most = 1_000 * (BOUND.as_secs() + 2 * written / taken);
                    assert!(
                        ms - since <= most,
                        "{written} of {taken}: they have waited for {} ms",
                        ms - since
                    );
                } else {
                    waits_since = None;
                    newest += written;
                    made.push_back((newest, ms));
                }
                idle += u64::from(step > 300 && complete == newest);
                complete = newest.min(complete + taken);
                while made.front().is_some_and(|(place, _)| *place <= complete) {
                    made.pop_front();
                }
                let oldest = made.front().map_or(0, |(_, made)| ms - made);
                // Before a pace is known they write as fast as they can.
                let most = 1_300 * BOUND.as_secs() + 2_000 * (written / taken);
                assert!(oldest <= most, "{written} of {taken}: {oldest} ms");
            }
            assert!(idle < 30, "{written} of {taken}: the region had nothing to do {idle} times");
        }
    }

    #[test]
    fn a_region_that_is_silent_or_stuck_lets_nobody_wait_and_one_that_catches_up_neither() {
        let mut lag = Lag::default();
        look(&mut lag, 0, 5, &seen(5, 0));
        assert!(!look(&mut lag, 9_000, 6, &seen(5, 0)).held);
        assert_eq!(look(&mut lag, 10_000, 7, &seen(5, 0)), Tail::default());
        // It is back, far behind.
        assert_eq!(look(&mut lag, 40_000, 90, &seen(6, 40_000)), Tail::default());
        assert_eq!(age(look(&mut lag, 41_000, 91, &seen(90, 41_000))), Some(0));
        // It answers and comes no further.
        for second in 42..71 {
            let tail = look(&mut lag, second * 1_000, 95, &seen(90, second * 1_000));
            assert_eq!(tail.held, second > 51, "{second}");
        }
        assert_eq!(look(&mut lag, 71_000, 95, &seen(90, 71_000)), Tail::default());
    }

    /// Found by review: a leader that begins doesn't know how old what a region lacks is.
    #[test]
    fn a_region_that_was_behind_before_lets_nobody_wait_until_it_has_what_there_was_then() {
        let mut lag = Lag::default();
        for second in 0..200 {
            let tail = look(&mut lag, second * 1_000, 1_000 + second, &seen(5 + second, second * 1_000));
            assert_eq!(tail, Tail::default(), "{second}");
        }
        assert!(look(&mut lag, 200_000, 1_200, &seen(1_200, 200_000)).follows);
    }

    #[test]
    fn a_volume_that_is_not_to_be_alone_has_its_writers_wait_without_any_region() {
        let mut lag = Lag::default();
        let silent: BTreeMap<String, Seen<u64>> =
            [("b".to_owned(), Seen { complete: None, heard: None })].into();
        let mut step = |ms, newest| {
            let (regions, lag_max) = (&silent, Some(BOUND));
            let facts = Facts { regions, newest, lag_max, blocks_alone: true, changes: u64::checked_sub };
            lag.step(at(ms), &facts)
        };
        assert!(!step(0, 1).held && !step(10_000, 2).held);
        for ms in [10_001, 100_000] {
            let tail = step(ms, 2);
            assert!(tail.held && !tail.follows, "{tail:?}");
        }
    }

    proptest! {
        /// Against the time of each change: what is told is never younger than it is by more than a sample, nor ever older.
        #[test]
        fn the_age_is_that_of_the_oldest_change_that_nobody_else_has(
            steps in prop::collection::vec((1_u64..400, 0_u64..3, 0_u64..3), 1..300),
        ) {
            let mut lag = Lag::default();
            let (mut now, mut newest, mut complete) = (0, 1_u64, 1_u64);
            let mut made = vec![0, 0];
            for (ms, changes, taken) in steps {
                now += ms;
                for _ in 0..changes {
                    newest += 1;
                    made.push(now);
                }
                complete = newest.min(complete + taken);
                let tail = look(&mut lag, now, newest, &seen(complete, now));
                let Some(age) = tail.age else { continue };
                let oldest = made.get(complete as usize + 1).map_or(0, |made| now - made);
                let told = age.as_millis() as u64;
                prop_assert!(told <= oldest, "{told} of {oldest}");
                prop_assert!(told + 500 >= oldest, "{told} of {oldest}");
            }
        }
    }
}
