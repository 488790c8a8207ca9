//! Whose pages the kernel may keep when a file is opened: what was read under one hold (`FileSystem::hold`) is true as long as that stands. And whose
//! it may have at all: a recall takes those back, whatever else it was told of the inode.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_wire::{InodeId, VolumeId};

use crate::told::inodes_of;

/// The hold under which all pages were read that the kernel has of an inode, and of which inodes it may have any.
#[derive(Debug)]
pub(crate) struct Pages {
    most: usize,
    held: BTreeMap<u64, u64>,
    /// Given since they were last taken back.
    given: BTreeSet<u64>,
}

impl Pages {
    /// Remembers so many inodes at most; of others the kernel keeps nothing.
    pub fn new(most: usize) -> Self {
        Self { most, held: BTreeMap::new(), given: BTreeSet::new() }
    }

    /// A file is opened that is promised under this hold, or not at all. Answers whether the kernel may keep its pages: if not, it drops them
    /// with the open, and what it reads from then on is of this hold.
    pub fn opened(&mut self, inode: u64, hold: Option<u64>) -> bool {
        match hold {
            Some(hold) if self.held.len() < self.most || self.held.contains_key(&inode) => {
                self.held.insert(inode, hold) == Some(hold)
            }
            _ => {
                self.held.remove(&inode);
                false
            }
        }
    }

    /// A request came by which the kernel gets pages of a file. It waits with them until it is answered, and drops them then if a recall comes between:
    /// their bytes may be older than it.
    pub fn giving(&mut self, inode: u64) {
        self.remember(inode);
    }

    /// The kernel is given pages of a file that is promised under this hold, or not at all. Answers whether a recall will take them back.
    pub fn given(&mut self, inode: u64, hold: Option<u64>) -> bool {
        if self.held.get(&inode).copied() != hold {
            self.held.remove(&inode);
        }
        self.remember(inode) && hold.is_some()
    }

    fn remember(&mut self, inode: u64) -> bool {
        let room = self.given.len() < self.most || self.given.contains(&inode);
        room.then(|| self.given.insert(inode)).is_some()
    }

    /// Whether the kernel may have pages of an inode.
    pub fn are_given(&self, inode: u64) -> bool {
        self.given.contains(&inode)
    }

    /// The inode isn't promised any more. Answers whether the kernel may have pages of it.
    pub fn forget(&mut self, inode: u64) -> bool {
        self.held.remove(&inode);
        self.given.remove(&inode)
    }

    /// Nothing of a volume is promised any more. Answers of which inodes the kernel may have pages.
    pub fn forget_all(&mut self, volume: VolumeId) -> Vec<u64> {
        self.held.retain(|inode, _| InodeId(*inode).volume() != volume);
        self.given.extract_if(inodes_of(volume), |_| true).collect()
    }

    /// The kernel has dropped the inode.
    pub fn gone(&mut self, inode: u64) {
        self.given.remove(&inode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_kept_over_opens_under_one_hold() {
        let mut pages = Pages::new(10);
        assert!(!pages.opened(1, Some(5)), "older pages are dropped with the first open");
        pages.given(1, Some(5));
        assert!(pages.opened(1, Some(5)));
        assert!(!pages.opened(1, Some(6)), "it wasn't promised for a while");
        assert!(pages.opened(1, Some(6)));
    }

    #[test]
    fn pages_that_were_read_without_a_promise_or_under_another_are_not() {
        for hold in [None, Some(6)] {
            let mut pages = Pages::new(10);
            pages.opened(1, Some(5));
            pages.given(1, hold);
            assert!(!pages.opened(1, Some(5)), "{hold:?}");
        }
        let mut pages = Pages::new(10);
        assert!(!pages.opened(1, None) && !pages.opened(1, None));
        pages.opened(1, Some(5));
        pages.forget(1);
        assert!(!pages.opened(1, Some(5)));
        pages.forget_all(VolumeId(1));
        assert!(pages.opened(1, Some(5)), "it is of another volume");
        pages.forget_all(VolumeId(0));
        assert!(!pages.opened(1, Some(5)));
    }

    #[test]
    fn no_more_are_remembered_than_that() {
        let mut pages = Pages::new(2);
        for inode in 0..10 {
            pages.opened(inode, Some(1));
        }
        assert_eq!((0..10).filter(|inode| pages.opened(*inode, Some(1))).count(), 2);
        assert_eq!((0..10).filter(|inode| pages.given(*inode, Some(1))).count(), 2);
        pages.gone(0);
        assert!(pages.given(9, Some(1)) && !pages.given(0, Some(1)));
    }

    #[test]
    fn what_was_given_is_taken_back_once_and_what_isnt_promised_never() {
        let mut pages = Pages::new(10);
        assert!(!pages.forget(1));
        assert!(pages.given(1, Some(5)) && !pages.given(2, None));
        assert!(pages.forget(1) && !pages.forget(1));
        pages.giving(1);
        pages.given(InodeId::new(VolumeId(7), 3).0, Some(5));
        assert_eq!(pages.forget_all(VolumeId(0)), [1, 2]);
        assert_eq!(pages.forget_all(VolumeId(7)).len(), 1);
    }
}
