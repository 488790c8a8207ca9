//! Which ranges of an inode an owner holds, as far as the region has said so.

use std::collections::BTreeMap;
use std::ops::Bound;

/// A range that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    /// Whether nobody else may hold any of it.
    pub exclusive: bool,
    /// The process that took it.
    pub pid: u32,
}

/// A part of a range, both bytes included, and how it is held, if it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub start: u64,
    pub end: u64,
    pub level: Option<Level>,
}

/// Ranges that don't overlap, by their first byte, with their last. As many as the region lets an inode have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held(BTreeMap<u64, (u64, Level)>);

impl Held {
    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges are held.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether giving a range up cuts another one in two.
    pub fn is_cut(&self, (start, end): (u64, u64)) -> bool {
        self.overlapping((start, end)).iter().any(|part| part.start < start && part.end > end)
    }

    /// The first that stands in the way of a lock on that range, with what touches it and is held in the same way.
    pub fn in_the_way(&self, range: (u64, u64), exclusive: bool) -> Option<Part> {
        let conflicts = |part: &Part| exclusive || part.level.is_some_and(|level| level.exclusive);
        let found = self.overlapping(range).into_iter().find(conflicts)?;
        Some(self.joined(found))
    }

    fn joined(&self, part: Part) -> Part {
        let same = |level: &Level| part.level.is_some_and(|own| own.exclusive == level.exclusive);
        let Part { mut start, mut end, level } = part;
        for (from, (until, level)) in self.0.range(..part.start).rev() {
            if !same(level) || until.checked_add(1) != Some(start) {
                break;
            }
            start = *from;
        }
        for (from, (until, level)) in self.0.range((Bound::Excluded(part.start), Bound::Unbounded)) {
            if !same(level) || end.checked_add(1) != Some(*from) {
                break;
            }
            end = *until;
        }
        Part { start, end, level }
    }

    /// All that is held: first bytes, last bytes, and how.
    pub fn all(&self) -> impl Iterator<Item = (u64, u64, Level)> {
        self.0.iter().map(|(start, (end, level))| (*start, *end, *level))
    }

    /// The range is held in that way from now on, whatever was held of it.
    pub fn take(&mut self, (start, end): (u64, u64), level: Level) {
        self.give_up((start, end));
        self.0.insert(start, (end, level));
    }

    /// Nothing of the range is held any more.
    pub fn give_up(&mut self, (start, end): (u64, u64)) {
        for part in self.overlapping((start, end)) {
            self.0.remove(&part.start);
            let Some(level) = part.level else { continue };
            if part.start < start {
                self.0.insert(part.start, (start - 1, level));
            }
            if part.end > end {
                self.0.insert(end + 1, (part.end, level));
            }
        }
    }

    /// The range, cut where it is held in different ways, or not.
    pub fn parts(&self, (start, end): (u64, u64)) -> Vec<Part> {
        let (mut parts, mut next) = (Vec::new(), Some(start));
        for held in self.overlapping((start, end)) {
            let Some(from) = next else { break };
            if held.start > from {
                parts.push(Part { start: from, end: held.start - 1, level: None });
            }
            parts.push(Part { start: held.start.max(start), end: held.end.min(end), level: held.level });
            next = held.end.checked_add(1).filter(|next| *next <= end);
        }
        parts.extend(next.map(|from| Part { start: from, end, level: None }));
        parts
    }

    /// Held ranges that have a byte in common with this one, whole and in order.
    fn overlapping(&self, (start, end): (u64, u64)) -> Vec<Part> {
        let of = |(from, (until, level)): (&u64, &(u64, Level))| Part {
            start: *from,
            end: *until,
            level: Some(*level),
        };
        self.0.range(..=end).map(of).filter(|part| part.end >= start).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: Level = Level { exclusive: false, pid: 1 };
    const EXCLUSIVE: Level = Level { exclusive: true, pid: 2 };

    fn parts(held: &Held, start: u64, end: u64) -> Vec<(u64, u64, Option<bool>)> {
        let parts = held.parts((start, end));
        parts.iter().map(|part| (part.start, part.end, part.level.map(|level| level.exclusive))).collect()
    }

    #[test]
    fn ranges_replace_what_they_cover_and_leave_the_rest() {
        let mut held = Held::default();
        assert_eq!(parts(&held, 5, 9), [(5, 9, None)]);
        held.take((0, 99), SHARED);
        held.take((10, 19), EXCLUSIVE);
        let all = [(0, 9, Some(false)), (10, 19, Some(true)), (20, 99, Some(false))];
        assert_eq!(parts(&held, 0, 99), all);
        assert_eq!(parts(&held, 15, 30), [(15, 19, Some(true)), (20, 30, Some(false))]);
        for (range, is_cut) in [((11, 18), true), ((10, 18), false), ((0, 99), false), ((5, 24), false)] {
            assert_eq!(held.is_cut(range), is_cut, "{range:?}");
        }
        held.give_up((5, 24));
        assert_eq!(
            parts(&held, 0, u64::MAX),
            [(0, 4, Some(false)), (5, 24, None), (25, 99, Some(false)), (100, u64::MAX, None)]
        );
        held.give_up((0, u64::MAX));
        assert!(held.is_empty());
        held.take((0, u64::MAX), EXCLUSIVE);
        assert_eq!(parts(&held, 0, u64::MAX), [(0, u64::MAX, Some(true))]);
    }

    #[test]
    fn what_is_in_the_way_is_told_with_what_touches_it() {
        let mut held = Held::default();
        held.take((0, 9), SHARED);
        held.take((10, 19), Level { pid: 7, ..SHARED });
        held.take((20, 29), EXCLUSIVE);
        held.take((31, 39), EXCLUSIVE);
        held.take((u64::MAX, u64::MAX), EXCLUSIVE);
        assert_eq!(held.len(), 5);
        let found = |start: u64, end: u64, exclusive: bool| {
            let found = held.in_the_way((start, end), exclusive);
            found.map(|part| (part.start, part.end, part.level.is_some_and(|level| level.exclusive)))
        };
        assert_eq!(found(5, 15, false), None, "readers beside readers");
        assert_eq!(found(12, 15, true), Some((0, 19, false)));
        assert_eq!(found(5, 40, false), Some((20, 29, true)), "of another level, and with a gap behind it");
        assert_eq!(found(30, 30, true), None);
        assert_eq!(found(40, u64::MAX, false), Some((u64::MAX, u64::MAX, true)));
    }
}
