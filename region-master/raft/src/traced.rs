//! A leader's entries whose proposal is a part of a sampled trace, from when they are appended until they are applied. openraft's tasks know
//! nothing of traces: what is done there for such an entry finds its trace here.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use mooseng_transport::trace::{self, Span};

use crate::codec::RaftLogId;
use crate::snapshot::lock;

/// Entries kept at most; the oldest makes room.
const ENTRIES_MAX: usize = 256;

struct Entry {
    term: u64,
    context: Bytes,
    /// From the append to the flush of this leader's own log.
    flush: Span,
}

/// Entries on their way, by index.
#[derive(Default)]
pub(crate) struct Traced {
    /// How many there are, so that nobody takes the lock where there are none.
    count: AtomicUsize,
    entries: Mutex<BTreeMap<u64, Entry>>,
}

impl Traced {
    fn with(&self, f: impl FnOnce(&mut BTreeMap<u64, Entry>)) {
        let mut entries = lock(&self.entries);
        f(&mut entries);
        self.count.store(entries.len(), Ordering::Release);
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// An entry is about to be written. `context` is that of its proposal, or empty.
    pub fn append(&self, id: &RaftLogId, context: &Bytes) {
        if context.is_empty() {
            return;
        }
        let flush = trace::within("raft.log_flush", context).noted("index", || id.index);
        self.with(|entries| {
            if entries.len() >= ENTRIES_MAX {
                entries.pop_first();
            }
            let entry = Entry { term: id.leader_id.term, context: context.clone(), flush };
            entries.insert(id.index, entry);
        });
    }

    /// The log is flushed up to that index.
    pub fn flushed(&self, index: u64) {
        if !self.is_empty() {
            self.with(|entries| {
                entries.range_mut(..=index).for_each(|(_, entry)| entry.flush = Span::default())
            });
        }
    }

    /// The log is applied up to that index.
    pub fn forget(&self, index: u64) {
        if !self.is_empty() {
            self.with(|entries| *entries = entries.split_off(&index.saturating_add(1)));
        }
    }

    /// The context of the first of these entries that has one; else it is empty.
    pub fn context(&self, mut ids: impl Iterator<Item = RaftLogId>) -> Bytes {
        if self.is_empty() {
            return Bytes::new();
        }
        let entries = lock(&self.entries);
        let known = |id: RaftLogId| entries.get(&id.index).filter(|entry| entry.term == id.leader_id.term);
        ids.find_map(known).map(|entry| entry.context.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    fn id(term: u64, index: u64) -> RaftLogId {
        RaftLogId::new(CommittedLeaderId::new(term, 1), index)
    }

    #[test]
    fn an_entry_is_known_from_its_append_until_it_is_applied() {
        let traced = Traced::default();
        let context = trace::requested();
        traced.append(&id(3, 7), &Bytes::new());
        assert!(traced.is_empty(), "one without a sampled trace isn't kept");
        traced.append(&id(3, 8), &context);
        assert_eq!(traced.context([id(3, 7), id(3, 8)].into_iter()), context);
        assert_eq!(traced.context([id(3, 7)].into_iter()), Bytes::new());
        assert_eq!(traced.context([id(4, 8)].into_iter()), Bytes::new(), "another leader's entry");
        traced.flushed(8);
        traced.forget(7);
        assert_eq!(traced.context([id(3, 8)].into_iter()), context);
        traced.forget(8);
        assert!(traced.is_empty());
    }

    #[test]
    fn what_is_never_applied_makes_room() {
        let traced = Traced::default();
        for index in 0..2 * ENTRIES_MAX as u64 {
            traced.append(&id(1, index), &trace::requested());
        }
        assert_eq!(traced.count.load(Ordering::Acquire), ENTRIES_MAX);
        assert_eq!(traced.context([id(1, 0)].into_iter()), Bytes::new());
    }
}
