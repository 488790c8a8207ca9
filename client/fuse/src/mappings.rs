//! Which files may have been written through mappings without having come as a write yet: neither mmap(2) nor a fault of a page asks anybody, so what can be
//! known is who could.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug, Default)]
struct Of {
    /// How often it is open for reading and writing: nothing else is mapped to be written. A mapping keeps its file open.
    open: u64,
    /// Writes under way that aren't a mapping's.
    writes: u64,
}

/// By inode.
#[derive(Debug, Default)]
pub(crate) struct Mappings(Mutex<BTreeMap<u64, Of>>);

/// A write is under way, until this is dropped.
pub(crate) struct Writing {
    mappings: Arc<Mappings>,
    inode: u64,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.mappings.change(self.inode, |of| of.writes = of.writes.saturating_sub(1));
    }
}

fn may_map(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_RDWR
}

impl Mappings {
    fn change(&self, inode: u64, change: impl FnOnce(&mut Of)) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = map.entry(inode).or_default();
        change(of);
        if of.open == 0 && of.writes == 0 {
            map.remove(&inode);
        }
    }

    /// A file is about to be open with these flags of open(2).
    pub fn opened(&self, inode: u64, flags: i32) {
        if may_map(flags) {
            self.change(inode, |of| of.open += 1);
        }
    }

    /// It is closed again: the kernel has written what was mapped.
    pub fn closed(&self, inode: u64, flags: i32) {
        if may_map(flags) {
            self.change(inode, |of| of.open = of.open.saturating_sub(1));
        }
    }

    /// A write of a file has come that isn't a mapping's.
    pub fn writing(self: &Arc<Self>, inode: u64) -> Writing {
        self.change(inode, |of| of.writes += 1);
        Writing { mappings: self.clone(), inode }
    }

    /// Whether what was written to mappings of a file is worth waiting for. Not while a write of it is under way: the kernel may keep its page locked until that is
    /// answered, and two mounts that write the file would each wait for the other's recall.
    pub fn may_be_dirty(&self, inode: u64) -> bool {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(&inode).is_some_and(|of| of.open > 0 && of.writes == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_that_are_open_to_be_mapped_and_not_being_written() {
        let mappings = Arc::new(Mappings::default());
        mappings.opened(1, libc::O_RDONLY);
        mappings.opened(1, libc::O_WRONLY);
        assert!(!mappings.may_be_dirty(1));
        mappings.opened(1, libc::O_RDWR | libc::O_CLOEXEC);
        mappings.opened(1, libc::O_RDWR);
        assert!(mappings.may_be_dirty(1) && !mappings.may_be_dirty(2));
        let (first, second) = (mappings.writing(1), mappings.writing(1));
        drop(first);
        assert!(!mappings.may_be_dirty(1));
        drop(second);
        mappings.closed(1, libc::O_RDONLY);
        mappings.closed(1, libc::O_RDWR);
        assert!(mappings.may_be_dirty(1));
        mappings.closed(1, libc::O_RDWR);
        assert!(!mappings.may_be_dirty(1));
        mappings.closed(1, libc::O_RDWR);
        drop(mappings.writing(2));
        assert!(mappings.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty());
    }
}
