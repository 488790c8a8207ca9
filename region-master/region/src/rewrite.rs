//! The rewriter's choice: which chunks of which little is still used are made into a new one, so that their space comes free. Pure functions of
//! what a scan has seen.
//!
//! ```text
//!   scan: every sealed chunk -> Gathering (bounded) -> Choice -> next(): a group of chunks whose live bytes fill one new chunk
//! ```
//! - Worth it is a chunk of which less than `sparse_percent` is live. While the region holds more than `spread_percent` of what is live, also one
//!   of which less than `pressed_percent` is: else it could stay at twice the live bytes with every chunk just above the half.
//! - The order is that of log-structured filesystems, benefit to cost: the space that comes free times the age, over the bytes that have to be
//!   moved. A chunk that was sealed a moment ago, or that lost live bytes since the last scan, is left alone: what is being overwritten will be
//!   worth more soon, and whoever overwrites it would be disturbed for nothing. Only once hardly anything of it is left it is rewritten all the same.
//! - A group prefers chunks of one file, whose extents are then read once, and never mixes storage classes.
//! - What is under way is bounded, in rewrites; each moves at most one chunk's bytes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, InodeId};

/// What a move costs beside its bytes, in bytes.
const OVERHEAD: u64 = 64 << 10;
/// Older than this is as good as this.
const AGE_MAX_S: u64 = 24 * 3600;

/// Bounds of the rewriter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A chunk of which fewer percent are live is rewritten.
    pub sparse_percent: u64,
    /// One that is being overwritten only below so many percent.
    pub hot_percent: u64,
    /// So is one of which fewer percent than these are live, while the region holds too much.
    pub pressed_percent: u64,
    /// That is, more percent than these of what is live.
    pub spread_percent: u64,
    /// A chunk must have been sealed for so long.
    pub quiet: Duration,
    /// A rewrite must set so many bytes free, unless its group is full.
    pub gain_min: u64,
    /// Bytes of the new chunk.
    pub bytes_max: u64,
    /// Its extents.
    pub extents_max: u64,
    /// Chunks of one group.
    pub victims_max: usize,
    /// Rewrites at a time.
    pub at_once: usize,
    /// Chunks that are remembered between two scans.
    pub candidates_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sparse_percent: 50,
            hot_percent: 10,
            pressed_percent: 75,
            spread_percent: 130,
            quiet: Duration::from_secs(10),
            gain_min: 1 << 20,
            bytes_max: CHUNK_BYTES_MAX,
            extents_max: 16_384,
            victims_max: 64,
            at_once: 2,
            candidates_max: 4_096,
        }
    }
}

/// A sealed chunk that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Which.
    pub chunk: ChunkId,
    /// The file that it was made for.
    pub inode: InodeId,
    /// Its storage class.
    pub storage_class: u32,
    /// Its bytes.
    pub length: u64,
    /// Those that extents name.
    pub live: u64,
    /// The extents.
    pub extents: u64,
    /// How long ago it was sealed.
    pub sealed_for: Duration,
}

impl Used {
    fn dead(&self) -> u64 {
        self.length.saturating_sub(self.live)
    }

    fn is_below(&self, percent: u64) -> bool {
        u128::from(self.live) * 100 < u128::from(self.length) * u128::from(percent)
    }

    /// Benefit to cost.
    fn worth(&self) -> u128 {
        let age = self.sealed_for.as_secs().min(AGE_MAX_S) + 1;
        u128::from(self.dead()) * u128::from(age) * 1_000 / u128::from(self.live + OVERHEAD)
    }
}

/// The live bytes of chunks that are candidates, or may become some.
pub type Seen = BTreeMap<ChunkId, u64>;

/// What a scan gathers.
#[derive(Debug, Default)]
pub struct Gathering {
    /// As of the scan before.
    before: Seen,
    seen: Seen,
    /// The most worthwhile chunks, least first.
    best: BTreeMap<(u128, Reverse<ChunkId>), Used>,
    bytes: u64,
    live: u64,
}

impl Gathering {
    /// A scan begins, behind one that has seen that.
    pub fn after(before: Seen) -> Self {
        Self { before, ..Self::default() }
    }

    /// The scan comes across a sealed chunk that is in use.
    pub fn see(&mut self, used: Used, limits: &Limits) {
        self.bytes = self.bytes.saturating_add(used.length);
        self.live = self.live.saturating_add(used.live.min(used.length));
        let fits = used.live <= limits.bytes_max && used.extents <= limits.extents_max;
        if !fits || !used.is_below(limits.pressed_percent) {
            return;
        }
        if self.seen.len() < limits.candidates_max {
            self.seen.insert(used.chunk, used.live);
        }
        let steady = self.before.get(&used.chunk) == Some(&used.live);
        if used.sealed_for < limits.quiet || !(steady || used.is_below(limits.hot_percent)) {
            return;
        }
        self.best.insert((used.worth(), Reverse(used.chunk)), used);
        if self.best.len() > limits.candidates_max {
            self.best.pop_first();
        }
    }

    /// The scan has seen everything. Answers what the next one is to know, too.
    pub fn finish(self, limits: &Limits) -> (Choice, Seen) {
        let pressed =
            u128::from(self.bytes) * 100 > u128::from(self.live) * u128::from(limits.spread_percent);
        let percent = if pressed { limits.pressed_percent } else { limits.sparse_percent };
        let candidates = self.best.into_values().rev().filter(|used| used.is_below(percent));
        (Choice { candidates: candidates.collect() }, self.seen)
    }
}

/// Chunks worth rewriting, the most worthwhile first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    candidates: Vec<Used>,
}

/// Chunks to be made into one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The chunks.
    pub victims: Vec<Used>,
    /// Of that class.
    pub storage_class: u32,
}

impl Group {
    /// Bytes to be moved.
    pub fn live(&self) -> u64 {
        self.victims.iter().map(|used| used.live).sum()
    }

    /// Bytes that come free.
    pub fn gain(&self) -> u64 {
        self.victims.iter().map(Used::dead).sum()
    }
}

/// Chunks whose group failed. One that can't be read, or a file that can't be changed, mustn't keep the others of its group from being
/// rewritten: they are tried again in groups of half the size, until whoever is to blame is alone.
#[derive(Clone, Debug, Default)]
pub struct Suspects(BTreeMap<ChunkId, usize>);

impl Suspects {
    /// More aren't remembered.
    const MAX: usize = 4_096;

    /// The rewrite of a group failed. Answers whether smaller groups may do better.
    pub fn failed(&mut self, group: &Group) -> bool {
        let half = (group.victims.len() / 2).max(1);
        for used in &group.victims {
            if self.0.len() < Self::MAX || self.0.contains_key(&used.chunk) {
                self.0.insert(used.chunk, half);
            }
        }
        group.victims.len() > 1
    }

    /// It didn't.
    pub fn done(&mut self, group: &Group) {
        for used in &group.victims {
            self.0.remove(&used.chunk);
        }
    }

    /// The most chunks that a group with this one has, where that is bounded.
    fn group_max(&self, chunk: ChunkId) -> Option<usize> {
        self.0.get(&chunk).copied()
    }
}

impl Choice {
    /// How many chunks wait.
    pub fn len(&self) -> usize {
        self.candidates.len()
    }

    /// None waits.
    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// The next group, if another rewrite may begin beside `under_way` and one is worth it. Chunks of `left_alone` aren't touched. What is
    /// chosen is taken out.
    pub fn next(
        &mut self,
        under_way: usize,
        left_alone: &BTreeSet<ChunkId>,
        suspects: &Suspects,
        limits: &Limits,
    ) -> Option<Group> {
        if under_way >= limits.at_once {
            return None;
        }
        let open = |used: &&Used| !left_alone.contains(&used.chunk);
        let mut tried = BTreeSet::new();
        let classes: Vec<(u32, InodeId)> = self
            .candidates
            .iter()
            .filter(open)
            .filter(|used| tried.insert(used.storage_class))
            .map(|used| (used.storage_class, used.inode))
            .collect();
        let group = classes
            .into_iter()
            .find_map(|(class, inode)| self.group(class, inode, left_alone, suspects, limits))?;
        let chosen: BTreeSet<ChunkId> = group.victims.iter().map(|used| used.chunk).collect();
        self.candidates.retain(|used| !chosen.contains(&used.chunk));
        Some(group)
    }

    fn group(
        &self,
        storage_class: u32,
        inode: InodeId,
        left_alone: &BTreeSet<ChunkId>,
        suspects: &Suspects,
        limits: &Limits,
    ) -> Option<Group> {
        let of_class =
            |used: &&Used| used.storage_class == storage_class && !left_alone.contains(&used.chunk);
        let (own, others): (Vec<Used>, Vec<Used>) =
            self.candidates.iter().filter(of_class).partition(|used| used.inode == inode);
        let mut group = Group { victims: Vec::new(), storage_class };
        let (mut bytes, mut extents, mut full) = (0, 0, false);
        let mut victims_max = limits.victims_max;
        for used in own.into_iter().chain(others) {
            if group.victims.len() >= victims_max {
                full = true;
                break;
            }
            let fewest = suspects.group_max(used.chunk).unwrap_or(victims_max).min(victims_max);
            if group.victims.len() >= fewest {
                continue;
            }
            if bytes + used.live > limits.bytes_max || extents + used.extents > limits.extents_max {
                // A smaller one may still fit.
                full = true;
                continue;
            }
            bytes += used.live;
            extents += used.extents;
            victims_max = fewest;
            group.victims.push(used);
        }
        // A suspect doesn't wait for company.
        full |= group.victims.len() >= victims_max;
        (full || group.gain() >= limits.gain_min).then_some(group)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn used(chunk: u64, inode: u64, length: u64, live: u64, sealed_for_s: u64) -> Used {
        Used {
            chunk: ChunkId(chunk),
            inode: InodeId(inode),
            storage_class: 0,
            length,
            live,
            extents: live.div_ceil(4096),
            sealed_for: Duration::from_secs(sealed_for_s),
        }
    }

    fn choice(all: &[Used], limits: &Limits) -> Choice {
        let mut gathering = Gathering::after(all.iter().map(|used| (used.chunk, used.live)).collect());
        all.iter().for_each(|used| gathering.see(*used, limits));
        gathering.finish(limits).0
    }

    fn chosen(all: &[Used], limits: &Limits) -> Vec<u64> {
        let group = choice(all, limits).next(0, &BTreeSet::new(), &Suspects::default(), limits);
        group.map_or_else(Vec::new, |group| group.victims.iter().map(|used| used.chunk.0).collect())
    }

    #[test]
    fn the_sparsest_and_oldest_come_first_and_fill_one_chunk() {
        let limits = Limits::default();
        let full = used(1, 1, 64 * MIB, 64 * MIB, 100);
        let half = used(2, 1, 64 * MIB, 31 * MIB, 100);
        let sparse = used(3, 1, 64 * MIB, 5 * MIB, 100);
        let young = used(4, 1, 64 * MIB, 5 * MIB, 3);
        assert_eq!(chosen(&[full, half, sparse, young], &limits), [3, 2]);
        let older = used(5, 2, 64 * MIB, 5 * MIB, 1_000);
        assert_eq!(chosen(&[half, sparse, older], &limits), [5, 3, 2]);
        // A chunk of the same file before a better one of another.
        let same = used(6, 2, 64 * MIB, 30 * MIB, 100);
        assert_eq!(chosen(&[half, sparse, older, same], &limits), [5, 6, 3]);
    }

    #[test]
    fn what_is_over_the_half_is_rewritten_only_under_pressure() {
        let limits = Limits::default();
        let most = used(1, 1, 64 * MIB, 40 * MIB, 100);
        let full = |n| used(n, 1, 64 * MIB, 64 * MIB, 100);
        assert_eq!(chosen(&[most], &limits), [1]);
        assert!(chosen(&[most, full(2), full(3)], &limits).is_empty());
    }

    #[test]
    fn little_gain_waits_unless_it_is_the_same_everywhere() {
        let limits = Limits::default();
        let tiny = |n| used(n, n, 8192, 100, 100);
        assert!(chosen(&[tiny(1), tiny(2)], &limits).is_empty());
        let many: Vec<Used> = (0..100).map(tiny).collect();
        assert_eq!(chosen(&many, &limits).len(), limits.victims_max);
    }

    #[test]
    fn what_is_under_way_is_bounded_and_left_alone() {
        let limits = Limits { at_once: 1, ..Limits::default() };
        let mut choice = choice(&[used(1, 1, 64 * MIB, MIB, 100), used(2, 1, 64 * MIB, MIB, 100)], &limits);
        assert_eq!(choice.next(1, &BTreeSet::new(), &Suspects::default(), &limits), None);
        let group = choice.next(0, &BTreeSet::from([ChunkId(1)]), &Suspects::default(), &limits).unwrap();
        assert_eq!(group.victims.len(), 1);
        assert_eq!((choice.len(), group.gain(), group.live()), (1, 63 * MIB, MIB));
    }

    #[test]
    fn what_is_being_overwritten_is_left_alone_until_hardly_anything_is_left() {
        let limits = Limits::default();
        let scan = |before: Seen, live: u64| {
            let mut gathering = Gathering::after(before);
            gathering.see(used(1, 1, 64 * MIB, live, 100), &limits);
            let (choice, seen) = gathering.finish(&limits);
            (choice.len(), seen)
        };
        let (chosen, seen) = scan(Seen::new(), 30 * MIB);
        assert_eq!(chosen, 0, "it isn't known yet");
        let (chosen, seen) = scan(seen, 20 * MIB);
        assert_eq!(chosen, 0, "it shrinks");
        let (chosen, seen) = scan(seen, 20 * MIB);
        assert_eq!((chosen, seen.len()), (1, 1), "it doesn't any more");
        assert_eq!(scan(seen, 6 * MIB).0, 1, "it shrinks, and is nearly gone");
    }

    #[test]
    fn one_that_fails_is_alone_in_the_end_and_the_others_are_done() {
        let limits = Limits::default();
        let mut left: Vec<Used> = (0..9).map(|n| used(n, n, 8 * MIB, 100_000, 100)).collect();
        let mut suspects = Suspects::default();
        let mut failures = vec![];
        while failures.last() != Some(&1) {
            // As one scan after the other.
            let group = choice(&left, &limits).next(0, &BTreeSet::new(), &suspects, &limits).unwrap();
            if group.victims.iter().any(|used| used.chunk == ChunkId(4)) {
                failures.push(group.victims.len());
                assert_eq!(suspects.failed(&group), group.victims.len() > 1);
            } else {
                suspects.done(&group);
                left.retain(|used| group.victims.iter().all(|victim| victim.chunk != used.chunk));
            }
        }
        assert_eq!(failures, [9, 4, 2, 1]);
        let alone = choice(&left, &limits).next(0, &BTreeSet::from([ChunkId(4)]), &suspects, &limits);
        assert!(alone.is_none_or(|group| group.victims.iter().all(|used| used.chunk != ChunkId(4))));
        assert!(left.len() < 6, "{} are left", left.len());
    }

    #[test]
    fn storage_classes_stay_apart() {
        let limits = Limits::default();
        let other = Used { storage_class: 1, ..used(2, 1, 64 * MIB, MIB, 100) };
        assert_eq!(chosen(&[used(1, 1, 64 * MIB, 2 * MIB, 100), other], &limits), [2]);
    }

    fn any_used(n: u64) -> impl Strategy<Value = Used> {
        (1..5_u64, 0..2_u32, 1..CHUNK_BYTES_MAX, 0..=100_u64, 0..1_000_u64).prop_map(
            move |(inode, storage_class, length, percent, age)| Used {
                storage_class,
                ..used(n, inode, length, (length * percent / 100).max(1), age)
            },
        )
    }

    fn many() -> impl Strategy<Value = Vec<Used>> {
        (1..60_u64).prop_flat_map(|n| (0..n).map(any_used).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn groups_keep_to_their_bounds(all in many(), busy in prop::collection::btree_set(0..60_u64, 0..10)) {
            let limits = Limits { victims_max: 7, extents_max: 20_000, ..Limits::default() };
            let busy: BTreeSet<ChunkId> = busy.into_iter().map(ChunkId).collect();
            let mut choice = choice(&all, &limits);
            let mut seen = BTreeSet::new();
            while let Some(group) = choice.next(0, &busy, &Suspects::default(), &limits) {
                prop_assert!(!group.victims.is_empty() && group.victims.len() <= 7);
                prop_assert!(group.live() <= limits.bytes_max);
                prop_assert!(group.victims.iter().map(|u| u.extents).sum::<u64>() <= limits.extents_max);
                for victim in &group.victims {
                    prop_assert!(seen.insert(victim.chunk), "a chunk was chosen twice");
                    prop_assert!(!busy.contains(&victim.chunk));
                    prop_assert_eq!(victim.storage_class, group.storage_class);
                    prop_assert!(victim.is_below(limits.pressed_percent) && victim.sealed_for >= limits.quiet);
                }
            }
        }

        /// Carried out until nothing is left to do, it comes to an end, and the region holds little more than what is live.
        #[test]
        fn rewriting_comes_to_an_end_and_is_worth_it(all in many()) {
            let limits = Limits::default();
            let mut chunks: Vec<Used> = all.into_iter().map(|u| Used { sealed_for: limits.quiet, ..u }).collect();
            let mut next = 1_000;
            let mut rounds = 0;
            while let Some(group) = choice(&chunks, &limits).next(0, &BTreeSet::new(), &Suspects::default(), &limits) {
                let live = group.live();
                chunks.retain(|u| !group.victims.iter().any(|v| v.chunk == u.chunk));
                let made = used(next, group.victims[0].inode.0, live, live, 10);
                chunks.push(Used { storage_class: group.storage_class, ..made });
                next += 1;
                rounds += 1;
                prop_assert!(rounds < 200, "it goes on and on");
            }
            let (bytes, live): (u64, u64) =
                chunks.iter().fold((0, 0), |(bytes, live), u| (bytes + u.length, live + u.live));
            prop_assert!(bytes <= live / 3 * 4 + 2 * limits.gain_min + 4, "{bytes} for {live}");
        }
    }
}
