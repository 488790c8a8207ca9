//! What readers see of the log: where its entries are, the recent ones themselves, and what it says besides.

use std::collections::{BTreeMap, VecDeque};

use super::WalError;
use crate::record::{Entry, LogId, Record, Vote};

#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) frame: u64,
    pub(super) id: LogId,
}

/// What the log holds, as readers see it. Votes and marks are flushed; of entries, those that [`super::Wal::append_early`] wrote may not be yet.
pub(crate) struct View {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub committed: Option<LogId>,
    pub lacking: Option<u64>,
    /// The last entry that is flushed, with all before it.
    pub(super) flushed: Option<LogId>,
    pub(super) entries: BTreeMap<u64, Place>,
    pub(super) cache: VecDeque<Entry>,
    cache_used: usize,
    cache_bytes: usize,
}

impl View {
    pub fn new(cache_bytes: usize) -> Self {
        let (entries, cache) = (BTreeMap::new(), VecDeque::new());
        let lacking = None;
        Self {
            vote: None,
            purged: None,
            committed: None,
            lacking,
            flushed: None,
            entries,
            cache,
            cache_used: 0,
            cache_bytes,
        }
    }

    pub(super) fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, place)| place.id).or(self.purged)
    }

    /// All that was read is on disk.
    pub fn all_flushed(&mut self) {
        self.flushed = self.last();
    }

    pub(super) fn missing(&self, index: u64) -> WalError {
        let first = self.purged.map_or(0, |p| p.index + 1);
        WalError::Missing { index, first, last: self.last().map_or(0, |l| l.index) }
    }

    /// Takes up the records of a frame that was written.
    pub fn take_frame(&mut self, records: Vec<Record>, segment: u64, frame: u64) {
        for record in records {
            match record {
                Record::Entry(entry) => {
                    self.entries.insert(entry.id.index, Place { segment, frame, id: entry.id });
                    self.cache_used += entry.payload.len();
                    self.cache.push_back(entry);
                    while self.cache_used > self.cache_bytes
                        && let Some(old) = self.cache.pop_front()
                    {
                        self.cache_used -= old.payload.len();
                    }
                }
                Record::Vote(vote) => self.vote = Some(vote),
                Record::Truncate(index) => {
                    self.entries.split_off(&index);
                    self.forget(|cached| cached >= index);
                }
                Record::Purge(id) => {
                    self.entries = self.entries.split_off(&(id.index + 1));
                    self.forget(|cached| cached <= id.index);
                    self.purged = Some(id);
                }
                Record::Committed(id) => self.committed = Some(id),
                Record::Lacking(index) => self.lacking = Some(index),
                Record::Flushed(_) | Record::Padding(_) => {}
            }
        }
    }

    fn forget(&mut self, gone: impl Fn(u64) -> bool) {
        self.cache.retain(|entry| !gone(entry.id.index));
        self.cache_used = self.cache.iter().map(|e| e.payload.len()).sum();
    }
}
