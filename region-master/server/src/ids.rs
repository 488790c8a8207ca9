//! Fresh ids: ranges reserved durably, handed out from memory.
//!
//! A reservation moves the counter in the store before the first id of its range is given, and a leader starts with ranges of its own: none is
//! ever given twice. What a leader hasn't used when it goes is skipped.
//!
//! Inodes' ids that a session is given, to make inodes alone, are its own: they are on its record, so that the next leader knows whose they are, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mooseng_namespace::sessions::INODE_RUNS_MAX;
use mooseng_namespace::upkeep;
use mooseng_raft::lineage::Line;
use mooseng_schema::ids::IdKind;
use mooseng_store::Store;
use mooseng_wire::{SessionId, VolumeId};

use crate::records::{RecordFailure, transact};

/// Ids reserved at a time.
pub const RANGE: u64 = 4096;
/// A new range is reserved once fewer than these are left.
pub const LOW: u64 = 1024;

/// Inodes' ids that were taken one by one of which it is known that they were, the newest: many more than changes are under way.
const SINGLES_MAX: usize = 1 << 16;

const KINDS: [IdKind; 3] = [IdKind::Inode, IdKind::Chunk, IdKind::Session];

/// Whom an inode's id was given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Given {
    /// No session: it isn't reserved, or left over, or is for what this leader was asked to make.
    ToNobody,
    /// That session: nobody else makes an inode under it.
    To(SessionId),
    /// It isn't known any more to whom.
    ToSomebody,
}

/// What is left of the reserved ranges, and whose the inodes' ids are that sessions were given.
#[derive(Debug, Default)]
pub struct IdPool {
    ranges: BTreeMap<u8, Vec<std::ops::Range<u64>>>,
    /// Ids below this were reserved.
    ends: BTreeMap<u8, u64>,
    /// Inodes' ids that were taken one by one. A change may be about to make an inode under each, without a look whether another one has.
    singles: BTreeSet<u64>,
    /// Runs of inodes' ids that are sessions', by the first: the end, and whose.
    runs: BTreeMap<u64, (u64, SessionId)>,
    /// The first ids of each session's runs, in the order in which they were given.
    firsts: BTreeMap<SessionId, VecDeque<u64>>,
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
        if kind == IdKind::Inode {
            self.singles.extend(&taken);
            while self.singles.len() > SINGLES_MAX {
                self.singles.pop_first();
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

    /// A run of inodes' ids is a session's from now on. Whose its oldest runs are is forgotten, as on its record.
    pub fn bind(&mut self, session: SessionId, run: std::ops::Range<u64>) {
        if run.is_empty() {
            return;
        }
        let firsts = self.firsts.entry(session).or_default();
        if self.runs.insert(run.start, (run.end, session)).is_none() {
            firsts.push_back(run.start);
        }
        while firsts.len() > INODE_RUNS_MAX {
            let Some(oldest) = firsts.pop_front() else { break };
            self.runs.remove(&oldest);
        }
    }

    /// There is no such session any more: whoever mounted with it may go on with its ids as another one.
    pub fn unbind(&mut self, session: SessionId) {
        for first in self.firsts.remove(&session).unwrap_or_default() {
            self.runs.remove(&first);
        }
    }

    /// Whom an inode's id was given to.
    pub fn given(&self, inode: u64) -> Given {
        if let Some((_, (end, session))) = self.runs.range(..=inode).next_back()
            && inode < *end
        {
            return Given::To(*session);
        }
        match self.was_given(IdKind::Inode, inode) && !self.singles.contains(&inode) {
            true => Given::ToSomebody,
            false => Given::ToNobody,
        }
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

    #[test]
    fn what_a_session_was_given_is_its_own() {
        let (one, other) = (SessionId(1), SessionId(2));
        let mut pool = IdPool::default();
        pool.add(IdKind::Inode, 100..200);
        // On record, by a leader before.
        pool.bind(other, 40..50);
        let run = pool.take_run(IdKind::Inode, 10).unwrap();
        pool.bind(one, run);
        assert_eq!(pool.take(IdKind::Inode, 1), Some(vec![110]));
        for (id, given) in [
            (39, Given::ToSomebody),
            (40, Given::To(other)),
            (49, Given::To(other)),
            (50, Given::ToSomebody),
            (100, Given::To(one)),
            (109, Given::To(one)),
            (110, Given::ToNobody),
            (111, Given::ToNobody),
            (200, Given::ToNobody),
        ] {
            assert_eq!(pool.given(id), given, "{id}");
        }
        pool.unbind(other);
        pool.unbind(SessionId(3));
        assert_eq!((pool.given(45), pool.given(105)), (Given::ToSomebody, Given::To(one)));
    }

    #[test]
    fn of_a_session_only_the_newest_runs_are_kept() {
        let mut pool = IdPool::default();
        pool.add(IdKind::Inode, 1..1_000);
        for _ in 0..=INODE_RUNS_MAX {
            let run = pool.take_run(IdKind::Inode, 10).unwrap();
            pool.bind(SessionId(1), run.clone());
            pool.bind(SessionId(1), run);
        }
        assert_eq!(pool.given(10), Given::ToSomebody, "it isn't refused to whoever has it");
        assert_eq!(pool.given(11), Given::To(SessionId(1)));
        pool.unbind(SessionId(1));
        assert!(pool.runs.is_empty() && pool.firsts.is_empty());
    }
}
