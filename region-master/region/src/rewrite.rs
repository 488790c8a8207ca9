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
//! - Small chunks are merged, once they are old: those that files share, as the rewriter makes them of small files and small writes, and those of files that
//!   are little larger than what goes inline. Each costs every scan, every inventory and every drain as much as a full one. It pays where many become one that
//!   isn't small any more: so no byte is merged often. They go in the order of their ids, so that what was written together stays together.
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
    /// Files that use it.
    pub users_max: u64,
    /// Chunks of one group.
    pub victims_max: usize,
    /// A chunk of one file is merged with others while it has fewer bytes.
    pub small_alone: u64,
    /// One that files share.
    pub small_shared: u64,
    /// A chunk isn't merged before it has been sealed for so long.
    pub merge_quiet: Duration,
    /// So many chunks are merged at least.
    pub merge_chunks_min: usize,
    /// And so many bytes, unless their group is full.
    pub merge_bytes_min: u64,
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
            users_max: 4_096,
            victims_max: 64,
            small_alone: 1 << 20,
            small_shared: 4 << 20,
            merge_quiet: Duration::from_secs(600),
            merge_chunks_min: 8,
            merge_bytes_min: 8 << 20,
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
    /// The files that these are of.
    pub users: u64,
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

    fn is_small(&self, limits: &Limits) -> bool {
        self.length < if self.users > 1 { limits.small_shared } else { limits.small_alone }
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
    /// Small chunks, by their ids.
    small: BTreeMap<ChunkId, Used>,
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
        if used.live > limits.bytes_max || used.extents > limits.extents_max || used.users > limits.users_max
        {
            return;
        }
        let is_old = used.sealed_for >= limits.merge_quiet;
        if is_old && used.is_small(limits) && self.small.len() < limits.candidates_max {
            self.small.insert(used.chunk, used);
        }
        if !used.is_below(limits.pressed_percent) {
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
        let candidates: Vec<Used> = candidates.collect();
        let mut small = self.small;
        for used in &candidates {
            small.remove(&used.chunk);
        }
        (Choice { candidates, small: small.into_values().collect() }, self.seen)
    }
}

/// Chunks worth rewriting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Sparse ones, the most worthwhile first.
    candidates: Vec<Used>,
    /// Small ones, in the order of their ids.
    small: Vec<Used>,
}

/// Chunks to be made into one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The chunks.
    pub victims: Vec<Used>,
    /// Of that class.
    pub storage_class: u32,
    /// They are merged because they are small, not because they are sparse.
    pub merges: bool,
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
    /// How many sparse chunks wait.
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
            .find_map(|(class, inode)| self.group(class, inode, left_alone, suspects, limits))
            .or_else(|| self.merge(left_alone, suspects, limits))?;
        let chosen: BTreeSet<ChunkId> = group.victims.iter().map(|used| used.chunk).collect();
        self.candidates.retain(|used| !chosen.contains(&used.chunk));
        self.small.retain(|used| !chosen.contains(&used.chunk));
        Some(group)
    }

    /// Small chunks to be merged.
    fn merge(&self, left_alone: &BTreeSet<ChunkId>, suspects: &Suspects, limits: &Limits) -> Option<Group> {
        let classes: BTreeSet<u32> = self.small.iter().map(|used| used.storage_class).collect();
        classes.into_iter().find_map(|class| {
            let mut group = Group { victims: Vec::new(), storage_class: class, merges: true };
            let mut sum = Sum::default();
            let (mut victims_max, mut full) = (limits.victims_max, false);
            let of_class = self.small.iter().filter(|used| used.storage_class == class);
            for used in of_class.filter(|used| !left_alone.contains(&used.chunk)) {
                let fewest = suspects.group_max(used.chunk).unwrap_or(victims_max).min(victims_max);
                // Nothing depends on it: a suspect that others can't be merged with stays as it is.
                if fewest < limits.merge_chunks_min || group.victims.len() >= fewest {
                    continue;
                }
                if group.victims.len() >= victims_max || !sum.fits(used, limits) {
                    full = true;
                    break;
                }
                victims_max = fewest;
                sum.add(used);
                group.victims.push(*used);
            }
            full |= group.victims.len() >= victims_max;
            let pays = group.victims.len() >= limits.merge_chunks_min;
            (pays && (full || sum.bytes >= limits.merge_bytes_min)).then_some(group)
        })
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
        let mut group = Group { victims: Vec::new(), storage_class, merges: false };
        let (mut sum, mut full) = (Sum::default(), false);
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
            if !sum.fits(&used, limits) {
                // A smaller one may still fit.
                full = true;
                continue;
            }
            sum.add(&used);
            victims_max = fewest;
            group.victims.push(used);
        }
        // A suspect doesn't wait for company.
        full |= group.victims.len() >= victims_max;
        (full || group.gain() >= limits.gain_min).then_some(group)
    }
}

/// What a group has.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    bytes: u64,
    extents: u64,
    users: u64,
}

impl Sum {
    fn fits(&self, used: &Used, limits: &Limits) -> bool {
        self.bytes + used.live <= limits.bytes_max
            && self.extents + used.extents <= limits.extents_max
            && self.users + used.users <= limits.users_max
    }

    fn add(&mut self, used: &Used) {
        self.bytes += used.live;
        self.extents += used.extents;
        self.users += used.users;
    }
}

#[cfg(test)]
mod tests;
