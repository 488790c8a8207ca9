//! Which chunks changed since somebody looked: what masters are told between two inventories. Bounded; whoever falls behind takes a whole
//! inventory instead.

use std::collections::VecDeque;

use mooseng_wire::ChunkId;

/// Most changes that are remembered.
const CHANGES_MAX: usize = 65_536;

/// The newest changes, numbered.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The number of the next change.
    next: u64,
    newest: VecDeque<ChunkId>,
}

impl Changes {
    /// The number of the next change.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// A chunk was sealed, copied here, deleted, or found damaged.
    pub(crate) fn note(&mut self, chunk: ChunkId) {
        if self.newest.len() == CHANGES_MAX {
            self.newest.pop_front();
        }
        self.newest.push_back(chunk);
        self.next += 1;
    }

    /// So much changed that everybody has to look at everything.
    pub(crate) fn forget(&mut self) {
        self.newest.clear();
        self.next += 1;
    }

    /// The chunks that changed from number `from` on, at most `most`, and the number to go on from; none where that isn't remembered.
    pub(crate) fn since(&self, from: u64, most: usize) -> Option<(Vec<ChunkId>, u64)> {
        let first = self.next - self.newest.len() as u64;
        let skip = from.checked_sub(first)?;
        let page: Vec<ChunkId> =
            self.newest.iter().skip(usize::try_from(skip).ok()?).take(most).copied().collect();
        let to = from + page.len() as u64;
        Some((page, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_in_pages_until_they_are_too_many() {
        let mut changes = Changes::default();
        assert_eq!(changes.since(0, 9), Some((vec![], 0)));
        for n in 1..=5 {
            changes.note(ChunkId(n));
        }
        assert_eq!(changes.since(0, 2), Some((vec![ChunkId(1), ChunkId(2)], 2)));
        assert_eq!(changes.since(2, 9), Some((vec![ChunkId(3), ChunkId(4), ChunkId(5)], 5)));
        assert_eq!(changes.since(5, 9), Some((vec![], 5)));
        changes.forget();
        assert_eq!(changes.since(5, 9), None);
        assert_eq!(changes.since(changes.next(), 9), Some((vec![], 6)));
        for n in 0..CHANGES_MAX as u64 + 1 {
            changes.note(ChunkId(n));
        }
        assert_eq!(changes.since(6, 9), None);
        assert_eq!(changes.since(7, 1), Some((vec![ChunkId(1)], 8)));
    }
}
