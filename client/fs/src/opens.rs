//! Which inodes are open here, and how often the master may believe so.
//!
//! Opens keep an unlinked file alive. `Open` and `Release` aren't changes - no outcome is recorded for a retry - so the counts are
//! kept such that a repeated message does no harm: an open that may have been counted twice is released as often, but only once nobody
//! here has the inode open; until then nothing is released at all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mooseng_wire::session::OpenInode;

/// A size that isn't known.
const UNKNOWN: u64 = u64::MAX;

/// Most releases of one inode. More can't have been counted: declarations replace the count.
const TOLD_MAX: u64 = 4;

/// One inode.
#[derive(Debug)]
pub(crate) struct OpenInodeState {
    /// Held while the master is told, so that a release can't overtake the next open.
    pub gate: tokio::sync::Mutex<()>,
    counts: Mutex<Counts>,
    /// The size that this client saw last: a hint that decides between inline and chunk, nothing more.
    size: AtomicU64,
}

#[derive(Debug, Default)]
struct Counts {
    local: u64,
    told: u64,
}

impl OpenInodeState {
    fn new() -> Self {
        Self { gate: tokio::sync::Mutex::new(()), counts: Mutex::default(), size: AtomicU64::new(UNKNOWN) }
    }
    fn counts<T>(&self, f: impl FnOnce(&mut Counts) -> T) -> T {
        f(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
    pub fn size(&self) -> Option<u64> {
        Some(self.size.load(Ordering::Relaxed)).filter(|&size| size != UNKNOWN)
    }
    pub fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }
    pub fn local(&self) -> u64 {
        self.counts(|c| c.local)
    }
    /// How often the master may believe that it is open.
    pub fn told(&self) -> u64 {
        self.counts(|c| c.told)
    }
    /// An attempt to tell the master of an open is about to leave.
    pub fn telling(&self) {
        self.counts(|c| c.told += 1);
    }
    /// That attempt certainly had no effect.
    pub fn not_told(&self) {
        self.counts(|c| c.told = c.told.saturating_sub(1));
    }
    /// How often the master must hear of the release, now that nobody here has it open.
    pub fn take_told(&self) -> u64 {
        self.counts(|c| std::mem::take(&mut c.told))
    }
}

/// All open inodes.
#[derive(Debug, Default)]
pub(crate) struct Opens(Mutex<BTreeMap<u64, Arc<OpenInodeState>>>);

impl Opens {
    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Arc<OpenInodeState>>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// Counts an open. The caller takes the gate and tells the master.
    pub fn add(&self, inode: u64) -> Arc<OpenInodeState> {
        self.map(|map| {
            let state = map.entry(inode).or_insert_with(|| Arc::new(OpenInodeState::new())).clone();
            state.counts(|c| c.local += 1);
            state
        })
    }
    /// Takes an open back; true if it was the last one. The entry stays until [`Self::forget`].
    pub fn remove(&self, inode: u64) -> bool {
        self.map(|map| {
            map.get(&inode).is_some_and(|state| {
                state.counts(|c| {
                    c.local = c.local.saturating_sub(1);
                    c.local == 0
                })
            })
        })
    }
    /// Drops the entry if nobody has the inode open.
    pub fn forget(&self, inode: u64) {
        self.map(|map| {
            if map.get(&inode).is_some_and(|state| state.local() == 0) {
                map.remove(&inode);
            }
        });
    }
    pub fn get(&self, inode: u64) -> Option<Arc<OpenInodeState>> {
        self.map(|map| map.get(&inode).cloned())
    }
    /// A size learnt from any answer.
    pub fn saw_size(&self, inode: u64, size: u64) {
        if let Some(state) = self.get(inode) {
            state.set_size(size);
        }
    }
    /// What a new leader is told. Its counts start from these.
    pub fn declare(&self) -> Vec<OpenInode> {
        self.map(|map| {
            map.iter()
                .filter_map(|(&inode, state)| {
                    let count = state.counts(|c| {
                        if c.local > 0 {
                            // The declaration replaces what was counted, but an open may be on its way beside it.
                            c.told = (c.told + 1).min(TOLD_MAX);
                        }
                        c.local
                    });
                    // One is enough: a repeated release can't bring it below what others declared for themselves.
                    (count > 0).then_some(OpenInode { inode, count: 1 })
                })
                .collect()
        })
    }
    pub fn len(&self) -> usize {
        self.map(|map| map.values().filter(|state| state.local() > 0).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_release_is_told_as_often_as_opens_may_have_counted() {
        let opens = Opens::default();
        let state = opens.add(5);
        state.telling();
        state.telling(); // a retry after a lost answer
        opens.add(5);
        assert_eq!(opens.declare(), vec![OpenInode { inode: 5, count: 1 }]);
        assert!(!opens.remove(5));
        assert!(opens.remove(5));
        assert!(opens.declare().is_empty());
        assert_eq!(state.take_told(), 3);
        opens.forget(5);
        assert!(opens.get(5).is_none());
    }
}
