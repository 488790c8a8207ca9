//! The leader's lease (DESIGN section 5): as long as a quorum's promise not to elect anyone else holds.
//!
//! A follower that acknowledged an append elects nobody for an election timeout after it *received* it, so for at least as long
//! after the leader *sent* it. The leader therefore leads until `lease` after the latest moment by which a quorum's appends had been sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_ports::clock::BootTime;

/// When each follower's latest acknowledged append was sent, in one term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    term: u64,
    sent: BTreeMap<u64, BootTime>,
    /// This member's own vote: term and candidate.
    vote: Option<(u64, u64)>,
}

impl Acknowledged {
    /// A follower acknowledged an append of `term` that was sent then.
    pub fn record(&mut self, term: u64, follower: u64, sent: BootTime) {
        if term < self.term {
            return;
        }
        if term > self.term {
            *self = Self { term, sent: BTreeMap::new(), vote: self.vote };
        }
        let latest = self.sent.entry(follower).or_insert(sent);
        *latest = (*latest).max(sent);
    }

    /// This member votes so from now on. A leader that grants its vote to another ends its own lease with it, before the grant is answered:
    /// its vote may be the one that elects.
    pub fn saw_vote(&mut self, term: u64, candidate: u64) {
        self.vote = Some((term, candidate));
    }

    /// Forgets everything: a planned hand-over drops the lease first.
    pub fn forget(&mut self) {
        self.sent.clear();
    }

    /// The same without what `follower` acknowledged.
    pub fn without(&self, follower: u64) -> Self {
        let mut others = self.clone();
        others.sent.remove(&follower);
        others
    }

    /// Until when `leader` holds the lease of `term`, under every one of the voter sets; none if some set has no quorum of acknowledgements.
    pub fn until(
        &self,
        term: u64,
        leader: u64,
        voters: &[BTreeSet<u64>],
        now: BootTime,
        lease: Duration,
    ) -> Option<BootTime> {
        if self.vote.is_some_and(|vote| vote != (term, leader)) {
            return None;
        }
        if term != self.term && voters.iter().any(|set| set.len() > 1) {
            return None;
        }
        voters
            .iter()
            .map(|set| {
                let mut sent: Vec<BootTime> = set
                    .iter()
                    .filter_map(|id| if *id == leader { Some(now) } else { self.sent.get(id).copied() })
                    .collect();
                sent.sort_unstable_by(|a, b| b.cmp(a));
                sent.get(set.len() / 2).map(|quorum| quorum.after(lease))
            })
            .collect::<Option<Vec<BootTime>>>()?
            .into_iter()
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(500);

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    #[test]
    fn a_quorum_counts_from_its_slowest_needed_member() {
        let mut acknowledged = Acknowledged::default();
        acknowledged.record(3, 2, at(100));
        assert_eq!(acknowledged.until(3, 1, &[set(&[1, 2, 3])], at(900), LEASE), Some(at(600)));
        acknowledged.record(3, 3, at(700));
        assert_eq!(acknowledged.until(3, 1, &[set(&[1, 2, 3])], at(900), LEASE), Some(at(1200)));
        assert_eq!(acknowledged.until(3, 1, &[set(&[1, 2, 3, 4, 5])], at(900), LEASE), Some(at(600)));
        assert_eq!(acknowledged.without(3).until(3, 1, &[set(&[1, 2, 3])], at(900), LEASE), Some(at(600)));
        assert_eq!(acknowledged.without(3).until(3, 1, &[set(&[1, 3])], at(900), LEASE), None);
    }

    #[test]
    fn acknowledgements_of_another_term_or_of_outsiders_count_for_nothing() {
        let mut acknowledged = Acknowledged::default();
        acknowledged.record(3, 2, at(100));
        assert_eq!(acknowledged.until(4, 1, &[set(&[1, 2, 3])], at(200), LEASE), None);
        assert_eq!(acknowledged.until(3, 1, &[set(&[1, 4, 5])], at(200), LEASE), None);
        acknowledged.record(2, 3, at(200));
        assert_eq!(acknowledged.until(3, 1, &[set(&[1, 3, 4])], at(200), LEASE), None);
    }

    #[test]
    fn a_vote_for_another_ends_the_lease_at_once() {
        let mut acknowledged = Acknowledged::default();
        acknowledged.saw_vote(3, 1);
        acknowledged.record(3, 2, at(100));
        assert_eq!(acknowledged.until(3, 1, &[set(&[1, 2, 3])], at(200), LEASE), Some(at(600)));
        acknowledged.saw_vote(4, 3);
        assert_eq!(acknowledged.until(3, 1, &[set(&[1, 2, 3])], at(200), LEASE), None);
        acknowledged.record(3, 2, at(200));
        assert_eq!(acknowledged.until(3, 1, &[set(&[1, 2, 3])], at(200), LEASE), None);
        assert_eq!(acknowledged.until(3, 1, &[set(&[1])], at(200), LEASE), None);
    }

    #[test]
    fn a_joint_configuration_needs_both_quorums_and_a_single_master_needs_nobody() {
        let mut acknowledged = Acknowledged::default();
        acknowledged.record(3, 2, at(100));
        let joint = [set(&[1, 2, 3]), set(&[1, 4, 5])];
        assert_eq!(acknowledged.until(3, 1, &joint, at(200), LEASE), None);
        acknowledged.record(3, 4, at(50));
        assert_eq!(acknowledged.until(3, 1, &joint, at(200), LEASE), Some(at(550)));
        assert_eq!(Acknowledged::default().until(1, 1, &[set(&[1])], at(200), LEASE), Some(at(700)));
    }
}
