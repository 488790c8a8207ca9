//! The locks on one inode, as values: which ranges whose owner holds, what conflicts, what taking and giving up makes of them.
//!
//! As Linux has it (fs/locks.c): locks of one owner never conflict with each other, a new one replaces what its owner held of the range,
//! neighbours of one level become one. Range locks and file locks know nothing of each other. Who asks is granted what nobody holds,
//! also where others wait for more: a reader that waited behind a waiting writer could wait for itself, through a child or a second lock.

use std::collections::BTreeMap;

use mooseng_schema::lock::{LockOwner, LockRecord};
use mooseng_wire::fs::{LockKind, LockSpec};
use mooseng_wire::{Incarnation, SessionId};

use crate::error::OpError;

/// Locks on one inode at most.
pub const LOCKS_PER_INODE_MAX: usize = 2000;

/// A lock that somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// For whom.
    pub owner: LockOwner,
    /// The life of the owner's session.
    pub incarnation: Incarnation,
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
    /// Whether nobody else may hold any of it.
    pub exclusive: bool,
    /// The process that asks.
    pub pid: u32,
    /// The session's number for the wait, if it waits; else 0.
    pub wait: u64,
}

impl Want {
    /// What a request asks for.
    pub fn new(
        session: SessionId,
        incarnation: Incarnation,
        spec: Option<&LockSpec>,
        wait: u64,
    ) -> Result<Self, OpError> {
        let spec = spec.ok_or(OpError::Malformed("it names no lock"))?;
        let kind = spec.kind();
        if kind == LockKind::Unspecified {
            return Err(OpError::Malformed("it names no kind of lock"));
        }
        // A file lock is a lock on everything.
        let (start, end) = if kind == LockKind::File { (0, u64::MAX) } else { (spec.start, spec.end) };
        if start > end {
            return Err(crate::Errno::EINVAL.into());
        }
        let owner = LockOwner { kind, session, owner: spec.owner };
        Ok(Self { owner, incarnation, start, end, exclusive: spec.exclusive, pid: spec.pid, wait })
    }

    fn record(&self, end: u64) -> LockRecord {
        let Self { exclusive, pid, wait, .. } = *self;
        LockRecord { end, exclusive, pid, incarnation: self.incarnation.0, wait }
    }
}

/// The locks on an inode, by owner and first byte. One owner's ranges don't overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockTable(BTreeMap<(LockOwner, u64), LockRecord>);

impl LockTable {
    /// A table of these locks.
    pub fn new(held: impl IntoIterator<Item = (LockOwner, u64, LockRecord)>) -> Self {
        Self(held.into_iter().map(|(owner, start, record)| ((owner, start), record)).collect())
    }

    /// The locks.
    pub fn held(&self) -> impl Iterator<Item = (LockOwner, u64, &LockRecord)> {
        self.0.iter().map(|((owner, start), record)| (*owner, *start, record))
    }

    /// How many ranges are held.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a session holds anything.
    pub fn has_session(&self, session: SessionId) -> bool {
        self.0.keys().any(|(owner, _)| owner.session == session)
    }

    /// What stands in the way of a lock.
    pub fn conflicts(&self, want: &Want) -> impl Iterator<Item = (LockOwner, u64, &LockRecord)> {
        let Want { owner, start, end, exclusive, .. } = *want;
        self.held().filter(move |(holder, from, held)| {
            *holder != owner
                && holder.kind == owner.kind
                && *from <= end
                && held.end >= start
                && (exclusive || held.exclusive)
        })
    }

    /// All that one lock covers together with what touches it: the owner's of the same level, which are kept apart for having come by
    /// other waits, and which whoever asks is told of as one.
    pub fn joined(&self, owner: LockOwner, start: u64) -> Option<(u64, u64)> {
        let (mut from, mut until) = (start, self.0.get(&(owner, start))?.end);
        let exclusive = self.0.get(&(owner, start))?.exclusive;
        let same: Vec<(u64, u64)> =
            self.of(owner).filter(|(_, r)| r.exclusive == exclusive).map(|(at, r)| (at, r.end)).collect();
        for (at, end) in same.iter().rev().filter(|(at, _)| *at < start) {
            if end.checked_add(1) != Some(from) {
                break;
            }
            from = *at;
        }
        for (at, end) in same.iter().filter(|(at, _)| *at > start) {
            if until.checked_add(1) != Some(*at) {
                break;
            }
            until = *end;
        }
        Some((from, until))
    }

    /// Whether the owner holds all of the range in that way.
    pub fn is_held(&self, want: &Want) -> bool {
        let mut next = Some(want.start);
        for (start, record) in self.of(want.owner) {
            let Some(from) = next else { break };
            if start <= from && from <= record.end && record.exclusive == want.exclusive {
                if record.end >= want.end {
                    return true;
                }
                next = record.end.checked_add(1);
            }
        }
        false
    }

    /// Whether something that the owner holds of the range came by that wait. What it took since is another lock.
    pub fn came_by_wait(&self, want: &Want) -> bool {
        self.of(want.owner).any(|(start, held)| {
            held.wait == want.wait && want.wait != 0 && start <= want.end && held.end >= want.start
        })
    }

    /// Takes a lock that conflicts with nothing.
    pub fn lock(&mut self, want: &Want) {
        debug_assert!(self.conflicts(want).next().is_none(), "a lock that conflicts is taken");
        self.unlock(want.owner, want.start, want.end);
        let (mut start, mut end) = (want.start, want.end);
        let touching: Vec<(u64, u64)> = self
            .of(want.owner)
            // Not with what came by another wait, which can be taken back by itself, nor with what an earlier life left, which is freed.
            .filter(|(_, held)| {
                **held == LockRecord { end: held.end, pid: held.pid, ..want.record(held.end) }
            })
            .filter(|(from, held)| {
                held.end.checked_add(1) == Some(want.start) || want.end.checked_add(1) == Some(*from)
            })
            .map(|(from, held)| (from, held.end))
            .collect();
        for (from, until) in touching {
            self.0.remove(&(want.owner, from));
            (start, end) = (start.min(from), end.max(until));
        }
        self.0.insert((want.owner, start), want.record(end));
    }

    /// Gives up what the owner holds of a range.
    pub fn unlock(&mut self, owner: LockOwner, start: u64, end: u64) {
        let over: Vec<(u64, LockRecord)> = self
            .of(owner)
            .filter(|(from, held)| *from <= end && held.end >= start)
            .map(|(from, held)| (from, held.clone()))
            .collect();
        for (from, held) in over {
            self.0.remove(&(owner, from));
            if from < start {
                self.0.insert((owner, from), LockRecord { end: start - 1, ..held.clone() });
            }
            if held.end > end {
                self.0.insert((owner, end + 1), held);
            }
        }
    }

    /// flock: an open file has one lock. Another level isn't exchanged for it but taken anew, so that two readers that both want to write
    /// don't wait for each other. Answers whether something was given up.
    pub fn give_up_other_level(&mut self, want: &Want) -> bool {
        let key = (want.owner, 0);
        let other = want.owner.kind == LockKind::File
            && self.0.get(&key).is_some_and(|held| held.exclusive != want.exclusive);
        other && self.0.remove(&key).is_some()
    }

    /// Drops a session's locks of which `is_dead` says so by their incarnation.
    pub fn drop_dead(&mut self, session: SessionId, is_dead: impl Fn(Incarnation) -> bool) {
        self.0.retain(|(owner, _), held| owner.session != session || !is_dead(Incarnation(held.incarnation)));
    }

    fn of(&self, owner: LockOwner) -> impl Iterator<Item = (u64, &LockRecord)> {
        self.0.range((owner, 0)..=(owner, u64::MAX)).map(|((_, start), record)| (*start, record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: usize = 12;
    const OWNERS: usize = 3;

    fn want(owner: u64, start: u64, end: u64, exclusive: bool) -> Want {
        let owner = LockOwner { kind: LockKind::Range, session: SessionId(1 + owner % 2), owner };
        Want { owner, incarnation: Incarnation(1), start, end, exclusive, pid: owner.owner as u32, wait: 0 }
    }

    /// By owner and byte: nothing, shared, exclusive.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    struct Model([[Option<bool>; BYTES]; OWNERS]);

    impl Model {
        fn conflicts(&self, owner: usize, start: usize, end: usize, exclusive: bool) -> bool {
            self.0.iter().enumerate().any(|(other, bytes)| {
                other != owner
                    && bytes[start..=end].iter().any(|held| held.is_some_and(|held| held || exclusive))
            })
        }
        fn set(&mut self, owner: usize, start: usize, end: usize, to: Option<bool>) {
            self.0[owner][start..=end].fill(to);
        }
        /// The fewest ranges that say the same.
        fn ranges(&self) -> Vec<(u64, u64, u64, bool)> {
            let mut all = Vec::new();
            for (owner, bytes) in self.0.iter().enumerate() {
                let mut at = 0;
                while at < BYTES {
                    let Some(exclusive) = bytes[at] else {
                        at += 1;
                        continue;
                    };
                    let end = (at..BYTES).take_while(|i| bytes[*i] == Some(exclusive)).last().unwrap();
                    all.push((owner as u64, at as u64, end as u64, exclusive));
                    at = end + 1;
                }
            }
            all.sort();
            all
        }
    }

    fn ranges(table: &LockTable) -> Vec<(u64, u64, u64, bool)> {
        let mut all: Vec<_> =
            table.held().map(|(owner, start, held)| (owner.owner, start, held.end, held.exclusive)).collect();
        all.sort();
        all
    }

    proptest! {
        #[test]
        fn a_table_is_what_each_byte_says(
            steps in prop::collection::vec((0..OWNERS, 0..BYTES, 0..BYTES, 0..3u8), 1..60)
        ) {
            let (mut table, mut model) = (LockTable::default(), Model::default());
            for (owner, a, b, what) in steps {
                let (start, end) = (a.min(b), a.max(b));
                let want = want(owner as u64, start as u64, end as u64, what == 1);
                if what == 2 {
                    table.unlock(want.owner, want.start, want.end);
                    model.set(owner, start, end, None);
                } else {
                    let conflicts = model.conflicts(owner, start, end, want.exclusive);
                    prop_assert_eq!(table.conflicts(&want).next().is_some(), conflicts);
                    if !conflicts {
                        table.lock(&want);
                        model.set(owner, start, end, Some(want.exclusive));
                    }
                }
                prop_assert_eq!(ranges(&table), model.ranges());
                let held = model.0[owner][start..=end].iter().all(|held| *held == Some(want.exclusive));
                prop_assert_eq!(table.is_held(&want), held);
            }
        }
    }

    #[test]
    fn the_ends_of_the_numbers_are_no_neighbours() {
        let mut table = LockTable::default();
        table.lock(&want(1, 0, 0, true));
        table.lock(&want(1, u64::MAX, u64::MAX, true));
        assert_eq!(table.len(), 2);
        table.lock(&want(1, 0, u64::MAX, true));
        assert_eq!(ranges(&table), [(1, 0, u64::MAX, true)]);
        assert!(table.is_held(&want(1, 5, u64::MAX, true)));
        table.unlock(want(1, 0, 0, true).owner, 1, u64::MAX - 1);
        assert_eq!(ranges(&table), [(1, 0, 0, true), (1, u64::MAX, u64::MAX, true)]);
    }

    #[test]
    fn a_lock_remembers_the_wait_by_which_it_came_until_another_takes_its_place() {
        let mut table = LockTable::default();
        let waited = Want { wait: 7, ..want(1, 0, 9, true) };
        assert!(!table.came_by_wait(&waited));
        table.lock(&waited);
        assert!(table.came_by_wait(&waited) && !table.came_by_wait(&Want { wait: 8, ..waited }));
        table.lock(&want(1, 0, 9, true));
        assert!(!table.came_by_wait(&waited) && !table.came_by_wait(&want(1, 0, 9, true)));
    }

    #[test]
    fn kinds_know_nothing_of_each_other() {
        let mut table = LockTable::default();
        let range = want(1, 0, u64::MAX, true);
        let file = Want { owner: LockOwner { kind: LockKind::File, owner: 2, ..range.owner }, ..range };
        table.lock(&range);
        assert!(table.conflicts(&file).next().is_none());
        table.lock(&file);
        assert!(!table.give_up_other_level(&file));
        assert!(!table.give_up_other_level(&Want { exclusive: false, ..range }), "only flock does");
        assert!(table.give_up_other_level(&Want { exclusive: false, ..file }));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_later_life_has_no_lock_of_an_earlier_one() {
        let mut table = LockTable::default();
        table.lock(&want(0, 0, 9, true));
        table.lock(&Want { incarnation: Incarnation(2), ..want(2, 20, 29, true) });
        table.lock(&want(1, 40, 49, true));
        table.drop_dead(SessionId(1), |incarnation| incarnation < Incarnation(2));
        assert_eq!(ranges(&table), [(1, 40, 49, true), (2, 20, 29, true)]);
        assert!(table.has_session(SessionId(1)) && table.has_session(SessionId(2)));
    }

    #[test]
    fn what_touches_is_told_as_one() {
        let mut table = LockTable::default();
        for (wait, start, end) in [(1, 40, 59), (2, 60, 99), (3, 0, 39), (4, 101, 110)] {
            table.lock(&Want { wait, ..want(1, start, end, true) });
        }
        table.lock(&Want { wait: 5, ..want(1, 100, 100, false) });
        let owner = want(1, 0, 0, true).owner;
        for start in [0, 40, 60] {
            assert_eq!(table.joined(owner, start), Some((0, 99)));
        }
        assert_eq!(
            (table.joined(owner, 100), table.joined(owner, 101)),
            (Some((100, 100)), Some((101, 110)))
        );
        assert_eq!(table.joined(owner, 7), None);
    }

    #[test]
    fn what_can_be_taken_back_by_itself_stays_by_itself() {
        let mut table = LockTable::default();
        table.lock(&Want { wait: 7, ..want(1, 0, 9, true) });
        table.lock(&want(1, 10, 19, true));
        assert!(table.came_by_wait(&Want { wait: 7, ..want(1, 0, 9, true) }));
        assert!(table.is_held(&want(1, 0, 19, true)));
        let mut table = LockTable::default();
        table.lock(&want(1, 0, 9, true));
        table.lock(&Want { incarnation: Incarnation(2), ..want(1, 10, 19, true) });
        table.drop_dead(SessionId(2), |incarnation| incarnation < Incarnation(2));
        assert!(!table.is_held(&want(1, 0, 9, true)), "an earlier life's came back to life");
        assert!(table.is_held(&want(1, 10, 19, true)));
    }
}
