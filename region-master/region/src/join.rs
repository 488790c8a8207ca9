//! Which files' extents are joined: those of a part of a file that lies in too many places are written anew, one behind the other, into one chunk. Plain
//! state and pure functions.
//!
//! ```text
//!   scan: chunks with small extents -> see() -> files that may be worth a look -> next() -> the file's extents, part by part -> joints() -> joined, or not
//! ```
//! - A *joint* is where two runs of a file meet that don't follow each other in one chunk. Only joints are worth anything: what lies between holes can't be
//!   joined. A part that was joined has none, so it isn't joined again before as many have come anew.
//! - The scan of chunks tells how many extents each file has in them, and how long these are: it finds files, without reading one extent of those that are
//!   well. Whether a file is cold, and how many joints it has, is looked at then, once in a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, InodeId};

/// A part of a file is as long as a chunk may be, and begins at a multiple of that.
pub const PART_BYTES: u64 = CHUNK_BYTES_MAX;

/// Bounds of joining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A part with fewer joints stays as it is; 0 for none is ever joined.
    pub joints_min: u64,
    /// Extents that are longer on the average don't count.
    pub extent_bytes_max: u64,
    /// A file that was looked at isn't looked at again before.
    pub again: Duration,
    /// Files that are remembered.
    pub files_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { joints_min: 24, extent_bytes_max: 4 << 20, again: Duration::from_secs(600), files_max: 4_096 }
    }
}

/// Which files may have too many extents.
#[derive(Debug, Default)]
pub struct Joiner {
    counted: BTreeMap<InodeId, u64>,
    /// As of the last complete scan, the most extents first.
    due: Vec<InodeId>,
    looked_at: BTreeMap<InodeId, BootTime>,
}

impl Joiner {
    /// The scan comes across a file's extents in one chunk.
    pub fn see(&mut self, inode: InodeId, extents: u64, bytes: u64, limits: &Limits) {
        if limits.joints_min == 0 || bytes > extents.saturating_mul(limits.extent_bytes_max) {
            return;
        }
        if self.counted.len() < limits.files_max || self.counted.contains_key(&inode) {
            let sum = self.counted.entry(inode).or_default();
            *sum = sum.saturating_add(extents);
        }
    }

    /// The scan has seen all chunks.
    pub fn passed(&mut self, limits: &Limits) {
        let mut due: Vec<(u64, InodeId)> = std::mem::take(&mut self.counted)
            .into_iter()
            .filter(|(_, extents)| *extents > limits.joints_min)
            .map(|(inode, extents)| (extents, inode))
            .collect();
        due.sort_unstable();
        self.due = due.into_iter().map(|(_, inode)| inode).collect();
    }

    /// The next file to be looked at.
    pub fn next(&mut self, now: BootTime, limits: &Limits) -> Option<InodeId> {
        self.looked_at.retain(|_, at| now.since(*at) < limits.again);
        while let Some(inode) = self.due.pop() {
            if !self.looked_at.contains_key(&inode) && self.looked_at.len() < limits.files_max {
                self.looked_at.insert(inode, now);
                return Some(inode);
            }
        }
        None
    }
}

/// A run of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where in the file.
    pub offset: u64,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where in that.
    pub chunk_offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// How many joints there are between these runs of a file, in the order of their offsets.
pub fn joints(runs: &[Run]) -> u64 {
    let apart = |a: &Run, b: &Run| {
        let meet = a.offset + a.length == b.offset;
        meet && !(a.chunk == b.chunk && a.chunk_offset + a.length == b.chunk_offset)
    };
    runs.windows(2).filter(|pair| apart(&pair[0], &pair[1])).count() as u64
}

/// Where the part ends in which that offset lies.
pub fn part_end(offset: u64) -> u64 {
    (offset / PART_BYTES + 1).saturating_mul(PART_BYTES)
}

/// The chunks of these runs.
pub fn chunks(runs: &[Run]) -> BTreeSet<ChunkId> {
    runs.iter().map(|run| run.chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(seconds: u64) -> BootTime {
        BootTime::default().after(Duration::from_secs(seconds))
    }

    fn run(offset: u64, chunk: u64, chunk_offset: u64, length: u64) -> Run {
        Run { offset, chunk: ChunkId(chunk), chunk_offset, length }
    }

    #[test]
    fn files_in_many_small_extents_are_looked_at_once_in_a_while() {
        let limits = Limits::default();
        let mut joiner = Joiner::default();
        let scan = |joiner: &mut Joiner| {
            for _ in 0..32 {
                joiner.see(InodeId(1), 1, 2 * MIB, &limits);
                joiner.see(InodeId(2), 1, 64 * MIB, &limits);
            }
            joiner.see(InodeId(3), 24, 24 * 4096, &limits);
            joiner.see(InodeId(4), 500, 500 * 4096, &limits);
            joiner.passed(&limits);
        };
        scan(&mut joiner);
        assert_eq!(joiner.next(at(0), &limits), Some(InodeId(4)));
        assert_eq!(joiner.next(at(0), &limits), Some(InodeId(1)));
        assert_eq!(joiner.next(at(0), &limits), None);
        scan(&mut joiner);
        assert_eq!(joiner.next(at(599), &limits), None);
        scan(&mut joiner);
        assert_eq!(joiner.next(at(600), &limits), Some(InodeId(4)));
        let never = Limits { joints_min: 0, ..limits };
        let mut joiner = Joiner::default();
        joiner.see(InodeId(4), 500, 500 * 4096, &never);
        joiner.passed(&never);
        assert_eq!(joiner.next(at(0), &never), None);
    }

    #[test]
    fn joints_are_where_runs_meet_that_do_not_follow_each_other() {
        let runs = [
            run(0, 1, 0, 100),
            run(100, 2, 100, 50),
            run(150, 2, 0, 50),
            run(200, 2, 50, 50),
            run(251, 1, 100, 9),
        ];
        assert_eq!(
            joints(&runs),
            2,
            "before 100 and before 150; 200 goes on, and before 251 there is a hole"
        );
        assert_eq!((joints(&[]), joints(&runs[..1])), (0, 0));
        assert_eq!(
            (part_end(0), part_end(PART_BYTES - 1), part_end(PART_BYTES)),
            (64 * MIB, 64 * MIB, 128 * MIB)
        );
        assert_eq!(chunks(&runs), BTreeSet::from([ChunkId(1), ChunkId(2)]));
    }
}
