//! Files that leave a chunk which they share: they were assigned another storage class than it has, and the others weren't. Plain state.
//!
//! A chunk follows its files while they agree. Where they don't, it keeps its class, and those of another one get a chunk of theirs: the rewriter copies
//! their bytes there, and leaves the others' where they are.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_wire::{ChunkId, InodeId};

/// Files that are remembered; the next scan finds the others.
const FILES_MAX: usize = 4_096;
/// Files that leave at a time.
const ORDER_FILES: usize = 1_024;
/// Chunks that they leave.
const ORDER_CHUNKS: usize = 64;

/// Files of one storage class that leave some chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The class.
    pub storage_class: u32,
    /// The chunks.
    pub chunks: BTreeSet<ChunkId>,
    /// The files.
    pub inodes: BTreeSet<InodeId>,
}

/// Who is to leave, as far as the scan has seen.
#[derive(Debug, Default)]
pub struct Leavers {
    by_class: BTreeMap<u32, BTreeMap<ChunkId, BTreeSet<InodeId>>>,
    files: usize,
}

impl Leavers {
    /// A file of that class shares a chunk that has another one.
    pub fn see(&mut self, chunk: ChunkId, inode: InodeId, storage_class: u32) {
        if self.files < FILES_MAX {
            let of_class = self.by_class.entry(storage_class).or_default();
            self.files += usize::from(of_class.entry(chunk).or_default().insert(inode));
        }
    }

    /// Those that leave next. Chunks of `left_alone` aren't touched.
    pub fn next(&mut self, left_alone: &BTreeSet<ChunkId>) -> Option<Leaving> {
        let open =
            |chunks: &BTreeMap<ChunkId, BTreeSet<InodeId>>| chunks.keys().any(|c| !left_alone.contains(c));
        let class = self.by_class.iter().find(|(_, chunks)| open(chunks)).map(|(class, _)| *class)?;
        let of_class = self.by_class.get_mut(&class)?;
        let mut leaving = Leaving { storage_class: class, chunks: BTreeSet::new(), inodes: BTreeSet::new() };
        let open: Vec<ChunkId> = of_class.keys().copied().filter(|c| !left_alone.contains(c)).collect();
        for chunk in open.into_iter().take(ORDER_CHUNKS) {
            if leaving.inodes.len() >= ORDER_FILES {
                break;
            }
            let inodes = of_class.remove(&chunk).unwrap_or_default();
            self.files -= inodes.len();
            leaving.chunks.insert(chunk);
            leaving.inodes.extend(inodes);
        }
        if of_class.is_empty() {
            self.by_class.remove(&class);
        }
        Some(leaving)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_class_leave_together() {
        let mut leavers = Leavers::default();
        for (chunk, inode, class) in [(1, 10, 5), (1, 11, 5), (2, 10, 5), (1, 12, 6), (3, 13, 5)] {
            leavers.see(ChunkId(chunk), InodeId(inode), class);
        }
        let next = leavers.next(&BTreeSet::from([ChunkId(3)])).unwrap();
        assert_eq!(next.storage_class, 5);
        assert_eq!(next.chunks, [1, 2].map(ChunkId).into());
        assert_eq!(next.inodes, [10, 11].map(InodeId).into());
        let next = leavers.next(&BTreeSet::from([ChunkId(3)])).unwrap();
        assert_eq!((next.storage_class, next.inodes), (6, [InodeId(12)].into()));
        assert_eq!(leavers.next(&BTreeSet::from([ChunkId(3)])), None);
        assert_eq!(leavers.next(&BTreeSet::new()).unwrap().inodes, [InodeId(13)].into());
        assert_eq!(leavers.next(&BTreeSet::new()), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut leavers = Leavers::default();
        (0..10_000).for_each(|n| leavers.see(ChunkId(n / 50), InodeId(n), 1));
        let mut all = 0;
        while let Some(next) = leavers.next(&BTreeSet::new()) {
            assert!(next.inodes.len() < ORDER_FILES + 50 && next.chunks.len() <= ORDER_CHUNKS);
            all += next.inodes.len();
        }
        assert_eq!(all, FILES_MAX);
    }
}
