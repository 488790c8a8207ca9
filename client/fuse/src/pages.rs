//! Whose pages the kernel may keep when a file is opened: what was read under one hold (`FileSystem::hold`) is true as long as that stands.

use std::collections::BTreeMap;

use mooseng_wire::{InodeId, VolumeId};

/// The hold under which all pages were read that the kernel has of an inode.
#[derive(Debug)]
pub(crate) struct Pages {
    most: usize,
    held: BTreeMap<u64, u64>,
}

impl Pages {
    /// Remembers so many inodes at most; of others the kernel keeps nothing.
    pub fn new(most: usize) -> Self {
        Self { most, held: BTreeMap::new() }
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

    /// The kernel is given pages of a file that is promised under this hold, or not at all.
    pub fn given(&mut self, inode: u64, hold: Option<u64>) {
        if self.held.get(&inode).copied() != hold {
            self.held.remove(&inode);
        }
    }

    /// The inode isn't promised any more.
    pub fn forget(&mut self, inode: u64) {
        self.held.remove(&inode);
    }

    /// Nothing of a volume is promised any more.
    pub fn forget_all(&mut self, volume: VolumeId) {
        self.held.retain(|inode, _| InodeId(*inode).volume() != volume);
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
    }
}
