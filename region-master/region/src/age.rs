//! How old what a replica shows is, at most.
//!
//! With each message the home says which place of its log was the newest. Once the replica is there, what it shows was the home's own when that was heard,
//! a one-way trip before: whatever the home has changed since is younger. While more comes all the time a replica is never at the newest place that it heard of, so
//! that what was said is kept with when it was heard.

use std::collections::VecDeque;
use std::time::Duration;

use mooseng_ports::clock::BootTime;

/// What was said and not reached yet is kept at most so often; what comes then replaces the last, which makes the answer coarser and never too young.
const KEPT_MAX: usize = 64;

/// A replica's age. Places are anything ordered.
#[derive(Clone, Debug)]
pub struct Age<P> {
    /// Places beyond which the home had nothing when that was heard, in both orders.
    said: VecDeque<(P, BootTime)>,
    /// What is shown was the home's own then.
    as_of: Option<BootTime>,
}

impl<P> Default for Age<P> {
    fn default() -> Self {
        Self { said: VecDeque::new(), as_of: None }
    }
}

impl<P: Copy + Ord> Age<P> {
    /// The home has said that this was its newest place.
    pub fn heard(&mut self, newest: P, now: BootTime) {
        let full = self.said.len() >= KEPT_MAX;
        match self.said.back_mut() {
            // An earlier message that came later.
            Some((last, _)) if newest < *last => {}
            Some(last) if newest == last.0 => last.1 = now,
            Some(last) if full => *last = (newest, now),
            _ => self.said.push_back((newest, now)),
        }
    }

    /// The replica is there.
    pub fn reached(&mut self, at: P) {
        while let Some((_, heard)) = self.said.pop_front_if(|(newest, _)| *newest <= at) {
            self.as_of = Some(heard);
        }
    }

    /// What is shown was the home's own then, at the latest and but for the way from there; none before that is known.
    pub fn as_of(&self) -> Option<BootTime> {
        self.as_of
    }

    /// How long ago what is shown was the home's own, at most and but for the way from there; none before that is known.
    pub fn at_most(&self, now: BootTime) -> Option<Duration> {
        self.as_of.map(|as_of| now.since(as_of))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime::default().after(Duration::from_millis(ms))
    }

    fn age(age: &Age<u64>, now: u64) -> Option<u64> {
        age.at_most(at(now)).map(|age| age.as_millis() as u64)
    }

    #[test]
    fn a_replica_that_never_is_at_the_newest_place_has_an_age_still() {
        let mut of = Age::default();
        of.reached(3);
        assert_eq!(age(&of, 5), None);
        for n in 0..1_000 {
            of.heard(n, at(10 * n));
            of.reached(n.saturating_sub(5));
            assert!(n < 10 || age(&of, 10 * n) == Some(50), "{n}: {:?}", age(&of, 10 * n));
        }
        of.reached(999);
        assert_eq!(age(&of, 10_000), Some(10));
        of.heard(999, at(10_500));
        of.reached(999);
        assert_eq!(age(&of, 10_500), Some(0));
    }

    proptest! {
        /// Against all that was ever said: never younger than it is, and exact where not much is under way.
        #[test]
        fn it_is_never_too_young(steps in prop::collection::vec((0..5_u64, 0..4_u64, any::<bool>()), 1..400)) {
            let (mut of, mut all) = (Age::default(), Vec::new());
            let (mut newest, mut here, mut as_of, mut missed) = (0, 0, None, false);
            for (now, (made, taken, late)) in (0..).zip(steps) {
                newest += made;
                let said = if late { newest.saturating_sub(3) } else { newest };
                all.push((said, now));
                of.heard(said, at(now));
                missed |= all.iter().filter(|(place, _)| *place > here).count() >= KEPT_MAX;
                here = newest.min(here + taken);
                of.reached(here);
                as_of = all.iter().filter(|(place, _)| *place <= here).map(|(_, heard)| *heard).max().or(as_of);
                let (told, real) = (age(&of, now), as_of.map(|as_of| now - as_of));
                prop_assert!(real.is_none() || told >= real || told.is_none());
                let ordered = all.is_sorted_by_key(|(place, _)| *place);
                if !missed && ordered {
                    prop_assert_eq!(told, real);
                }
            }
        }
    }
}
