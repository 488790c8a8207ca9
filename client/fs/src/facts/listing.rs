//! What is known of which names a directory has.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mooseng_wire::fs::DirEntry;

/// Entries of a directory that are kept as a complete list at most.
pub(super) const LISTING_MAX: usize = 50_000;

/// From so many names on a list that grows one by one is weighed anew, each time that it has doubled.
const WEIGHED_ANEW_FROM: usize = 64;

/// A directory's entries, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) names: BTreeMap<Bytes, u64>,
    /// In the directory's order, as long as nothing was changed here.
    pub(super) pages: Vec<DirEntry>,
    pub(super) in_order: bool,
    /// The tick at which it was promised.
    pub(super) since: u64,
    /// Where the next page must continue.
    pub(super) next: u64,
    pub(super) complete: bool,
    /// Names that were taken out of the promise.
    pub(super) holes: BTreeSet<Bytes>,
    /// This session has the directory alone.
    pub(super) alone: bool,
}

impl Listing {
    /// Adds a page. Of names that are `known_better` what is known stays: they were changed after the page was asked for.
    pub(super) fn add(&mut self, entries: &[DirEntry], end: bool, known_better: impl Fn(&Bytes) -> bool) {
        for entry in entries {
            if known_better(&entry.name) {
                self.in_order &= self.names.get(&entry.name) == Some(&entry.inode);
            } else if !self.holes.contains(&entry.name) {
                self.names.insert(entry.name.clone(), entry.inode);
            }
        }
        if self.in_order {
            self.pages.extend(entries.iter().map(|e| DirEntry { attr: None, ..e.clone() }));
        }
        self.next = entries.last().map_or(self.next, |entry| entry.cookie);
        self.complete = end;
    }

    /// A name stands for that inode. Answers what it stood for before, and whether the list is to be weighed anew.
    pub(super) fn put(&mut self, name: &Bytes, inode: u64) -> (Option<u64>, bool) {
        let before = self.names.insert(name.clone(), inode);
        let names = self.names.len();
        (before, before.is_none() && names >= WEIGHED_ANEW_FROM && names.is_power_of_two())
    }
}
