//! Which followers hear of entries a little later, because no commit needs them.
//!
//! A commit needs a quorum: of three members the leader and one follower. The other follower's flush decides nothing, and yet takes its time from the same leader, the
//! same network and, where members share a machine, the same disk. So the followers that have answered soonest of late are sent each entry at once, as many as a quorum
//! needs, and the others some milliseconds later, when many entries share one append and one flush. Nothing that Raft promises depends on when a follower is sent an entry.
//!
//! What a slow or dead follower may cost is bounded: the others are sent an entry as soon as those that have it haven't answered within twice their usual time. Until they
//! do answer nobody is kept waiting. Where followers are slow as such - other machines, another disk at work - nobody is kept waiting either: a moment of somebody's processor is little
//! there, and the sooner of two answers is worth more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What one is given beyond twice its usual time: timers are as coarse.
const PATIENCE: Duration = Duration::from_millis(1);
/// How much an answer counts in what is usual: one part of so many.
const SHARE: u32 = 8;

/// How many entries behind the leader's newest one an append may end that is kept back.
const BEHIND_MAX: u64 = 32;

/// Whether a follower that is to get the entries up to `last` is about as far as the leader, whose newest entry is `newest`. One append carries so many entries
/// at most: a follower that is behind would have no more of them in each wait, and might never catch up.
pub(crate) fn keeps_up(newest: Option<u64>, last: u64) -> bool {
    newest.is_none_or(|newest| newest.saturating_sub(last) <= BEHIND_MAX)
}

/// What a leader knows of one follower.
#[derive(Clone, Copy, Debug)]
struct Follower {
    /// How long it takes to answer an append, smoothed.
    usual: Duration,
    /// The last entry that it has answered for.
    has: u64,
    /// It failed, or is late with an answer.
    late: bool,
}

/// What a leader knows of its followers, in one term.
#[derive(Debug, Default)]
pub(crate) struct Deferring {
    term: u64,
    followers: BTreeMap<u64, Follower>,
    /// Who was sent entries at once when that was last decided. Another one takes its place where it is twice as fast.
    first: BTreeSet<u64>,
}

impl Deferring {
    fn enter(&mut self, term: u64) {
        if term != self.term {
            *self = Self { term, ..Self::default() };
        }
    }

    /// A follower has answered in `took` that it has everything up to the entry `has`.
    pub fn answered(&mut self, term: u64, follower: u64, has: u64, took: Duration) {
        self.enter(term);
        let known = self.followers.entry(follower).or_insert(Follower { usual: took, has, late: false });
        known.usual = (known.usual * (SHARE - 1) + took) / SHARE;
        known.has = known.has.max(has);
        known.late = false;
    }

    /// A follower hasn't answered, or not as it should.
    pub fn failed(&mut self, term: u64, follower: u64) {
        self.enter(term);
        if let Some(known) = self.followers.get_mut(&follower) {
            known.late = true;
        }
    }

    /// How long a follower's next entries may wait for the others to answer for them, less than `most`; none if they may not. `voters` are the sets of which each
    /// needs a quorum.
    pub fn patience(
        &mut self,
        term: u64,
        leader: u64,
        follower: u64,
        voters: &[BTreeSet<u64>],
        most: Duration,
    ) -> Option<Duration> {
        self.enter(term);
        // While members change every answer may be needed; a learner is to come up.
        let [voters] = voters else { return None };
        if !voters.contains(&leader) || !voters.contains(&follower) {
            return None;
        }
        let needed = voters.len() / 2;
        let mut others = Vec::new();
        for id in voters.iter().filter(|id| **id != leader) {
            let known = self.followers.get(id).filter(|known| !known.late)?;
            let cost = if self.first.contains(id) { known.usual / 2 } else { known.usual };
            others.push((cost, *id, known.usual));
        }
        others.sort_unstable();
        others.truncate(needed);
        self.first = others.iter().map(|(_, id, _)| *id).collect();
        let slowest = others.iter().map(|(_, _, usual)| *usual).max()?;
        let patience = 2 * slowest + PATIENCE;
        (!self.first.contains(&follower) && patience < most).then_some(patience)
    }

    /// Whether those that are sent everything at once have the entry `index`. Who hasn't got it is late: it is asked when their time is over.
    pub fn have(&mut self, term: u64, index: u64) -> bool {
        self.enter(term);
        let mut all = !self.first.is_empty();
        for id in &self.first {
            if let Some(known) = self.followers.get_mut(id).filter(|known| known.has < index) {
                known.late = true;
                all = false;
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_millis(5);

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// Member 1 leads; each follower has answered for entry 5 in so many microseconds.
    fn known(followers: &[(u64, u64)]) -> Deferring {
        let mut deferring = Deferring::default();
        for (id, took) in followers {
            deferring.answered(3, *id, 5, us(*took));
        }
        deferring
    }

    #[test]
    fn a_quorums_fastest_followers_are_sent_everything_at_once() {
        let mut three = known(&[(2, 300), (3, 200)]);
        let voters = [set(&[1, 2, 3])];
        assert_eq!(three.patience(3, 1, 3, &voters, MOST), None);
        assert_eq!(three.patience(3, 1, 2, &voters, MOST), Some(us(400) + PATIENCE));
        let mut five = known(&[(2, 300), (3, 200), (4, 900), (5, 400)]);
        let kept: Vec<u64> =
            (2..6).filter(|id| five.patience(3, 1, *id, &[set(&[1, 2, 3, 4, 5])], MOST).is_some()).collect();
        assert_eq!(kept, [4, 5]);
        // Four members need three of them.
        let mut four = known(&[(2, 300), (3, 200), (4, 900)]);
        let kept: Vec<u64> =
            (2..5).filter(|id| four.patience(3, 1, *id, &[set(&[1, 2, 3, 4])], MOST).is_some()).collect();
        assert_eq!(kept, [4]);
    }

    #[test]
    fn nobody_is_kept_waiting_where_every_answer_may_be_needed() {
        let mut deferring = known(&[(2, 300), (3, 200), (4, 250)]);
        assert_eq!(deferring.patience(3, 1, 2, &[set(&[1, 2])], MOST), None);
        for id in [2, 3] {
            // Two quorums; an outsider that leads; a learner.
            assert_eq!(deferring.patience(3, 1, id, &[set(&[1, 2, 3]), set(&[1, 3, 4])], MOST), None);
            assert_eq!(deferring.patience(3, 1, id, &[set(&[2, 3, 4])], MOST), None);
            assert_eq!(deferring.patience(3, 1, id, &[set(&[1, 4, 5])], MOST), None);
        }
        // One of whom nothing is known.
        assert_eq!(deferring.patience(3, 1, 2, &[set(&[1, 2, 5])], MOST), None);
        assert_eq!(known(&[(2, 300)]).patience(3, 1, 2, &[set(&[1, 2, 3])], MOST), None);
        // Far away, all of them; one of them only.
        assert_eq!(known(&[(2, 9_000), (3, 8_000)]).patience(3, 1, 2, &[set(&[1, 2, 3])], MOST), None);
        assert!(known(&[(2, 9_000), (3, 200)]).patience(3, 1, 2, &[set(&[1, 2, 3])], MOST).is_some());
        // Another term says nothing about this one.
        assert_eq!(deferring.patience(4, 1, 2, &[set(&[1, 2, 3])], MOST), None);
    }

    #[test]
    fn who_is_behind_waits_for_nothing() {
        assert!(keeps_up(Some(7), 7) && keeps_up(Some(7 + BEHIND_MAX), 7));
        assert!(!keeps_up(Some(8 + BEHIND_MAX), 7));
        // Figures that are older than the append.
        assert!(keeps_up(Some(5), 7) && keeps_up(None, 7));
    }

    #[test]
    fn who_is_late_is_waited_for_no_more_until_it_answers() {
        let voters = [set(&[1, 2, 3])];
        let mut deferring = known(&[(2, 300), (3, 200)]);
        assert!(deferring.patience(3, 1, 2, &voters, MOST).is_some());
        assert!(deferring.have(3, 5));
        assert!(!deferring.have(3, 6), "the fast one hasn't got it");
        assert_eq!(deferring.patience(3, 1, 2, &voters, MOST), None);
        deferring.answered(3, 2, 6, us(300));
        assert_eq!(deferring.patience(3, 1, 2, &voters, MOST), None);
        deferring.answered(3, 3, 6, us(200));
        assert!(deferring.patience(3, 1, 2, &voters, MOST).is_some());
        deferring.failed(3, 3);
        assert_eq!(deferring.patience(3, 1, 2, &voters, MOST), None);
    }

    #[test]
    fn another_one_takes_over_where_it_is_twice_as_fast_and_not_before() {
        let voters = [set(&[1, 2, 3])];
        let mut deferring = known(&[(2, 300), (3, 290)]);
        assert!(deferring.patience(3, 1, 2, &voters, MOST).is_some());
        for _ in 0..50 {
            deferring.answered(3, 2, 6, us(200));
        }
        assert!(deferring.patience(3, 1, 2, &voters, MOST).is_some(), "a little faster");
        for _ in 0..50 {
            deferring.answered(3, 3, 6, us(600));
        }
        assert_eq!(deferring.patience(3, 1, 2, &voters, MOST), None);
        assert!(deferring.patience(3, 1, 3, &voters, MOST).is_some());
    }
}
