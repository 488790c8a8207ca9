//! Which masters vote in the global group, and what a set of voters survives.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::view::{MasterAt, Region};

/// Voters of one region at most: more make a majority slower to reach, and with three regions nothing is gained by them.
const VOTERS_OF_REGION_MAX: usize = 3;

/// A master's number in the global group: its region's in the upper 32 bits, its own, which must be below 2^32, in the lower.
pub fn node_id(region: u16, master: u64) -> u64 {
    (u64::from(region) << 32) | (master & u64::from(u32::MAX))
}

/// The number of the region that a member of the global group is of.
pub fn region_of(node: u64) -> u16 {
    u16::try_from(node >> 32).unwrap_or(u16::MAX)
}

/// All members that there are to be.
pub fn members(regions: &BTreeMap<String, Region>) -> BTreeMap<u64, MasterAt> {
    let of_region = |region: &Region| {
        region.masters.clone().into_iter().map(|m| (node_id(region.number, m.id), m)).collect::<Vec<_>>()
    };
    regions.values().flat_map(of_region).collect()
}

/// What a set of voters survives, by how many of each region vote and how many of those are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Voters {
    /// By the region's number: voters, and those of them that are up.
    regions: BTreeMap<u16, (usize, usize)>,
}

impl Voters {
    /// These, all of them up.
    pub fn new(voters: impl IntoIterator<Item = u64>) -> Self {
        Self::with(voters, |_| true)
    }

    /// These, of which some are up.
    pub fn with(voters: impl IntoIterator<Item = u64>, is_up: impl Fn(u64) -> bool) -> Self {
        let mut regions: BTreeMap<u16, (usize, usize)> = BTreeMap::new();
        for node in voters {
            let (all, up) = regions.entry(region_of(node)).or_default();
            *all += 1;
            *up += usize::from(is_up(node));
        }
        Self { regions }
    }

    fn all(&self) -> usize {
        self.regions.values().map(|(all, _)| all).sum()
    }

    fn up(&self) -> usize {
        self.regions.values().map(|(_, up)| up).sum()
    }

    fn quorum(&self) -> usize {
        self.all() / 2 + 1
    }

    /// Whether there is a majority now.
    pub fn has_majority(&self) -> bool {
        self.up() >= self.quorum()
    }

    fn left_without(&self, region: u16) -> usize {
        self.up() - self.regions.get(&region).map_or(0, |(_, up)| *up)
    }

    /// The regions whose loss would leave no majority.
    pub fn fatal(&self) -> Vec<u16> {
        let fatal = self.regions.keys().filter(|region| self.left_without(**region) < self.quorum());
        fatal.copied().collect()
    }

    /// Whether any region may be lost.
    pub fn survives_a_region(&self) -> bool {
        self.has_majority() && self.fatal().is_empty()
    }

    /// Whether any region may be lost, and one more master with it.
    pub fn survives_a_region_and_a_master(&self) -> bool {
        self.has_majority() && self.fatal_pairs() == 0
    }

    /// The losses of a region and one more master that would leave no majority.
    fn fatal_pairs(&self) -> usize {
        let others = |region: u16| self.regions.keys().copied().filter(move |other| *other != region);
        let pairs = self.regions.keys().map(|region| match self.left_without(*region) {
            left if left < self.quorum() => self.left_without(*region),
            left if left == self.quorum() => others(*region).map(|other| self.regions[&other].1).sum(),
            _ => 0,
        });
        pairs.sum()
    }

    /// Less is better: what can't be lost; then, as long as the loss of a region and a master can stop the group, what else may fail; then its size.
    fn rank(&self) -> (usize, usize, Reverse<usize>, usize) {
        let pairs = self.fatal_pairs();
        let spare = if pairs == 0 { 0 } else { self.all().saturating_sub(self.quorum()) };
        (self.fatal().len(), pairs, Reverse(spare), self.all())
    }
}

/// The masters of a region that vote if `most` of them may: of different zones as far as there are.
fn of_region(region: &Region, most: usize) -> Vec<u64> {
    let mut left: Vec<&MasterAt> = region.masters.iter().collect();
    left.sort_by_key(|m| m.id);
    let (mut chosen, mut zones) = (Vec::new(), BTreeSet::new());
    while chosen.len() < most && !left.is_empty() {
        let next = left.iter().position(|m| !zones.contains(m.zone.as_str())).unwrap_or_else(|| {
            zones.clear();
            0
        });
        let master = left.remove(next);
        zones.insert(master.zone.as_str());
        chosen.push(node_id(region.number, master.id));
    }
    chosen
}

/// The best voters that these regions have: they survive the loss of any region and one more master, or of any region, or of as many regions as can
/// be. A single region's masters all vote.
pub fn choose(regions: &BTreeMap<String, Region>) -> BTreeSet<u64> {
    let regions: Vec<&Region> = regions.values().filter(|region| !region.masters.is_empty()).collect();
    if let [only] = regions[..] {
        return of_region(only, usize::MAX).into_iter().collect();
    }
    let as_many = |most: usize| regions.iter().flat_map(move |r| of_region(r, most)).collect();
    let balanced: Vec<BTreeSet<u64>> = (1..=VOTERS_OF_REGION_MAX).map(as_many).collect();
    // Of two regions, one is lost without harm if none of its masters votes.
    let first = regions.iter().min_by_key(|region| region.number);
    let alone = first.map(|region| of_region(region, VOTERS_OF_REGION_MAX).into_iter().collect());
    let ranked = balanced.into_iter().chain(alone).min_by_key(|voters: &BTreeSet<u64>| {
        let mut ranked = Voters::new(voters.iter().copied());
        // Who doesn't vote can be lost, too, but has to be counted as a region.
        for region in &regions {
            ranked.regions.entry(region.number).or_default();
        }
        ranked.rank()
    });
    ranked.unwrap_or_default()
}

/// Why a set of regions isn't taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "with the regions {regions} the global group couldn't lose {fatal}: whatever has to be agreed on between regions would wait from then on. Have at least three regions; a third one may be a witness, with one master and no data"
)]
pub struct CouldntLose {
    /// The regions that there would be.
    pub regions: String,
    /// One that couldn't be lost.
    pub fatal: String,
}

/// Refuses regions among which one couldn't be lost.
pub fn check(regions: &BTreeMap<String, Region>) -> Result<(), CouldntLose> {
    let fatal = Voters::new(choose(regions)).fatal();
    match regions.iter().find(|(_, region)| fatal.contains(&region.number)) {
        None => Ok(()),
        Some((name, _)) => Err(CouldntLose {
            regions: regions.keys().cloned().collect::<Vec<_>>().join(", "),
            fatal: name.clone(),
        }),
    }
}

/// One change of the group's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take this master in, without a vote.
    Add(u64),
    /// These vote, and no others.
    Vote(BTreeSet<u64>),
    /// Let go of these, which don't vote.
    Remove(BTreeSet<u64>),
}

/// The next step from the members that there are (with whether they vote) to those that there are to be. Whoever doesn't answer isn't taken in, nor given
/// a vote; a voter that does keeps its vote until its successor can have it.
pub fn next_step(
    are: &BTreeMap<u64, bool>,
    regions: &BTreeMap<String, Region>,
    ready: impl Fn(u64) -> bool,
) -> Option<Step> {
    let wanted = members(regions);
    if let Some(node) = wanted.keys().find(|node| !are.contains_key(node) && ready(**node)) {
        return Some(Step::Add(*node));
    }
    let votes: BTreeSet<u64> = are.iter().filter(|(_, votes)| **votes).map(|(node, _)| *node).collect();
    let to_vote = choose(regions);
    if votes != to_vote
        && to_vote.iter().all(|node| are.contains_key(node) && (votes.contains(node) || ready(*node)))
    {
        return Some(Step::Vote(to_vote));
    }
    let gone: BTreeSet<u64> =
        are.keys().filter(|node| !wanted.contains_key(node) && !votes.contains(node)).copied().collect();
    (!gone.is_empty()).then_some(Step::Remove(gone))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn regions(masters: &[usize]) -> BTreeMap<String, Region> {
        let region = |(i, n): (usize, &usize)| {
            let master = |id: usize| MasterAt {
                id: id as u64,
                name: format!("m{id}"),
                address: format!("r{i}m{id}:1"),
                zone: format!("z{id}"),
            };
            let number = i as u16 + 1;
            let region = Region { number, witness: *n == 1, masters: (1..=*n).map(master).collect() };
            (format!("r{number}"), region)
        };
        masters.iter().enumerate().map(region).collect()
    }

    fn counts(masters: &[usize]) -> Vec<usize> {
        let chosen = choose(&regions(masters));
        (1..=masters.len() as u16)
            .map(|r| chosen.iter().filter(|node| region_of(**node) == r).count())
            .collect()
    }

    #[test]
    fn the_best_voters_of_some_clusters() {
        for (masters, expected, plus_one) in [
            (&[3, 3, 3][..], &[3, 3, 3][..], true),
            (&[3, 3, 1], &[2, 2, 1], false),
            (&[1, 1, 1], &[1, 1, 1], false),
            (&[3, 1, 1], &[1, 1, 1], false),
            (&[5, 5, 5], &[3, 3, 3], true),
            (&[3, 3, 3, 3], &[2, 2, 2, 2], true),
            (&[3, 3, 3, 3, 1], &[1, 1, 1, 1, 1], true),
        ] {
            assert_eq!(counts(masters), expected, "{masters:?}");
            let voters = Voters::new(choose(&regions(masters)));
            assert!(voters.survives_a_region());
            assert_eq!(voters.survives_a_region_and_a_master(), plus_one, "{masters:?}");
            assert_eq!(check(&regions(masters)), Ok(()));
        }
    }

    #[test]
    fn one_region_votes_as_a_whole_and_two_can_lose_the_later_one() {
        assert_eq!(counts(&[5]), [5]);
        assert_eq!(counts(&[3, 3]), [3, 0]);
        let error = check(&regions(&[3, 3])).unwrap_err();
        assert!(error.to_string().contains("r1, r2") && error.to_string().contains("a witness"), "{error}");
        assert!(check(&regions(&[3])).is_err());
    }

    #[test]
    fn zones_are_spread_over() {
        let mut all = regions(&[4, 4, 4]);
        all.get_mut("r1").unwrap().masters[1].zone = "z1".into();
        let chosen: Vec<u64> = choose(&all).into_iter().filter(|node| region_of(*node) == 1).collect();
        assert_eq!(chosen, [node_id(1, 1), node_id(1, 3), node_id(1, 4)]);
    }

    #[test]
    fn whoever_is_down_counts_as_lost() {
        let chosen = choose(&regions(&[3, 3, 1]));
        let without = |lost: &[u64]| Voters::with(chosen.clone(), |node| !lost.contains(&node));
        assert_eq!(without(&[node_id(3, 1)]).fatal(), [1, 2]);
        assert_eq!(without(&[node_id(1, 1)]).fatal(), [2]);
        let lost = without(&[node_id(1, 1), node_id(1, 2)]);
        assert!(lost.has_majority() && !lost.survives_a_region());
        assert!(!without(&[node_id(1, 1), node_id(1, 2), node_id(3, 1)]).has_majority());
    }

    #[test]
    fn members_change_step_by_step() {
        let all = regions(&[3, 3, 1]);
        let mut are: BTreeMap<u64, bool> = choose(&regions(&[3])).into_iter().map(|n| (n, true)).collect();
        let mut steps = Vec::new();
        while let Some(step) = next_step(&are, &all, |_| true) {
            match &step {
                Step::Add(node) => drop(are.insert(*node, false)),
                Step::Vote(voters) => are.iter_mut().for_each(|(node, votes)| *votes = voters.contains(node)),
                Step::Remove(gone) => are.retain(|node, _| !gone.contains(node)),
            }
            steps.push(step);
        }
        assert_eq!(steps.len(), 5);
        assert_eq!(are.len(), 7);
        // One that doesn't answer is waited for.
        let mut down = regions(&[3, 3, 1]);
        down.get_mut("r3").unwrap().masters[0].id = 2;
        let step = next_step(&are, &down, |node| node != node_id(3, 2));
        assert_eq!(step, None);
        assert_eq!(next_step(&are, &down, |_| true), Some(Step::Add(node_id(3, 2))));
    }

    proptest! {
        #[test]
        fn what_is_said_to_be_survived_is(
            masters in proptest::collection::vec(1_usize..6, 3..6), lost_region in 0_usize..6, lost_master: u8,
        ) {
            let all = regions(&masters);
            let chosen = choose(&all);
            let voters = Voters::new(chosen.iter().copied());
            prop_assert!(voters.survives_a_region(), "three regions or more always have such voters");
            let lost = (lost_region % masters.len()) as u16 + 1;
            let left: Vec<u64> = chosen.iter().copied().filter(|node| region_of(*node) != lost).collect();
            prop_assert!(left.len() > chosen.len() / 2);
            if voters.survives_a_region_and_a_master() {
                let one_more = left[usize::from(lost_master) % left.len()];
                let left = left.iter().filter(|node| **node != one_more).count();
                prop_assert!(left > chosen.len() / 2);
            }
            // Where there are three masters in each region, one more may always fail.
            if masters.iter().all(|n| *n >= 3) {
                prop_assert!(voters.survives_a_region_and_a_master());
            }
        }

        #[test]
        fn steps_come_to_an_end_at_what_is_wanted_and_keep_a_majority(
            from in proptest::collection::vec(1_usize..5, 1..5), to in proptest::collection::vec(1_usize..5, 1..5),
        ) {
            let mut are: BTreeMap<u64, bool> = members(&regions(&from)).into_keys().map(|node| (node, false)).collect();
            are.extend(choose(&regions(&from)).into_iter().map(|node| (node, true)));
            let all = regions(&to);
            for _ in 0..40 {
                match next_step(&are, &all, |_| true) {
                    Some(Step::Add(node)) => prop_assert_eq!(are.insert(node, false), None),
                    Some(Step::Vote(voters)) => are.iter_mut().for_each(|(node, votes)| *votes = voters.contains(node)),
                    Some(Step::Remove(gone)) => are.retain(|node, votes| *votes || !gone.contains(node)),
                    None => break,
                }
                prop_assert!(are.values().any(|votes| *votes));
            }
            prop_assert_eq!(are.keys().copied().collect::<Vec<_>>(), members(&all).into_keys().collect::<Vec<_>>());
            let votes: BTreeSet<u64> = are.into_iter().filter(|(_, votes)| *votes).map(|(node, _)| node).collect();
            prop_assert_eq!(votes, choose(&all));
        }
    }
}
