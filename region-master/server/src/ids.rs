//! Fresh ids: ranges reserved durably, handed out from memory.
//!
//! A reservation moves the counter in the store before the first id of its range is given, and a leader starts with ranges of its own: none is
//! ever given twice. What a leader hasn't used when it goes is skipped.

use std::collections::BTreeMap;

use mooseng_namespace::upkeep;
use mooseng_raft::lineage::Line;
use mooseng_schema::ids::IdKind;
use mooseng_store::Store;
use mooseng_wire::VolumeId;

use crate::records::{RecordFailure, transact};

/// Ids reserved at a time.
pub const RANGE: u64 = 4096;
/// A new range is reserved once fewer than these are left.
pub const LOW: u64 = 1024;

const KINDS: [IdKind; 3] = [IdKind::Inode, IdKind::Chunk, IdKind::Session];

/// What is left of the reserved ranges.
#[derive(Debug, Default)]
pub struct IdPool {
    ranges: BTreeMap<u8, Vec<std::ops::Range<u64>>>,
    /// Ids below this were reserved.
    ends: BTreeMap<u8, u64>,
}

impl IdPool {
    /// Puts a range in.
    pub fn add(&mut self, kind: IdKind, range: std::ops::Range<u64>) {
        let end = self.ends.entry(kind as u8).or_default();
        *end = (*end).max(range.end);
        self.ranges.entry(kind as u8).or_default().push(range);
    }

    /// Takes ids out; none where the reserved ones are used up.
    pub fn take(&mut self, kind: IdKind, count: usize) -> Option<Vec<u64>> {
        let ranges = self.ranges.get_mut(&(kind as u8))?;
        let left: u64 = ranges.iter().map(|r| r.end - r.start).sum();
        if left < count as u64 {
            return None;
        }
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let range = ranges.first_mut()?;
            match range.next() {
                Some(id) => taken.push(id),
                None => {
                    ranges.remove(0);
                }
            }
        }
        Some(taken)
    }

    /// Takes ids out that follow each other: at most so many, as many as the next range has.
    pub fn take_run(&mut self, kind: IdKind, most: u64) -> Option<std::ops::Range<u64>> {
        let ranges = self.ranges.get_mut(&(kind as u8))?;
        ranges.retain(|range| !range.is_empty());
        let range = ranges.first_mut()?;
        let run = range.start..range.end.min(range.start.saturating_add(most));
        range.start = run.end;
        Some(run)
    }

    /// Whether somebody may have been given that id: it was reserved, and isn't left over.
    pub fn was_given(&self, kind: IdKind, id: u64) -> bool {
        let left =
            self.ranges.get(&(kind as u8)).is_some_and(|ranges| ranges.iter().any(|r| r.contains(&id)));
        !left && self.ends.get(&(kind as u8)).is_some_and(|end| id < *end)
    }

    /// Whether few of a kind are left.
    pub fn is_low(&self, kind: IdKind) -> bool {
        let ranges = self.ranges.get(&(kind as u8));
        ranges.map_or(0, |ranges| ranges.iter().map(|r| r.end - r.start).sum::<u64>()) < LOW
    }

    /// The kinds of which few are left.
    pub fn low(&self) -> Vec<IdKind> {
        KINDS.into_iter().filter(|kind| self.is_low(*kind)).collect()
    }
}

/// The least id that a group of that line gives. What was lost where it began may have been given already: chunkservers have chunks of such
/// names, mounts know such inodes. A line's number is at least the second since 1970 in which it began, so that ids of earlier lines are below
/// this as long as fewer than 65,536 a second were given since 1970. 48 bits last until 2106.
pub fn least(line: Line) -> u64 {
    u64::from(line.0) << 16
}

/// Reserves a range of a volume's ids, for a group of that line.
pub async fn reserve<S: Store>(
    store: &S,
    volume: VolumeId,
    kind: IdKind,
    line: Line,
) -> Result<std::ops::Range<u64>, RecordFailure> {
    transact(store, move |tx| async move {
        let range = upkeep::reserve_ids_from(&tx, kind, volume, RANGE, least(line)).await?;
        Ok((tx, range))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_used_up_in_order_and_never_partly() {
        let mut pool = IdPool::default();
        assert_eq!(pool.low().len(), 3);
        assert_eq!(pool.take(IdKind::Chunk, 1), None);
        pool.add(IdKind::Chunk, 5..7);
        pool.add(IdKind::Chunk, 100..100 + LOW);
        assert_eq!(pool.low(), vec![IdKind::Inode, IdKind::Session]);
        assert_eq!(pool.take(IdKind::Chunk, 3), Some(vec![5, 6, 100]));
        assert_eq!(pool.take(IdKind::Chunk, LOW as usize + 9), None);
        assert_eq!(pool.take(IdKind::Chunk, 1), Some(vec![101]), "a refused wish takes nothing");
        assert_eq!(pool.low().len(), 3);
    }

    #[test]
    fn a_run_is_given_once_and_known_as_given() {
        let mut pool = IdPool::default();
        assert_eq!(pool.take_run(IdKind::Inode, 5), None);
        assert!(!pool.was_given(IdKind::Inode, 3));
        pool.add(IdKind::Inode, 10..14);
        pool.add(IdKind::Inode, 20..30);
        assert!(pool.was_given(IdKind::Inode, 3), "by a leader before");
        assert_eq!(pool.take_run(IdKind::Inode, 3), Some(10..13));
        assert_eq!(pool.take_run(IdKind::Inode, 3), Some(13..14));
        assert_eq!(pool.take_run(IdKind::Inode, 3), Some(20..23));
        assert!(pool.was_given(IdKind::Inode, 12) && pool.was_given(IdKind::Inode, 22));
        assert!(!pool.was_given(IdKind::Inode, 23) && !pool.was_given(IdKind::Inode, 30));
    }
}
