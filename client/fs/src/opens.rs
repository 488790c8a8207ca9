//! Which inodes are open here, and how often the master may believe so.
//!
//! Opens keep an unlinked file alive. `Open` and `Release` aren't changes - no outcome is recorded for a retry. Instead each attempt has a
//! place in the session's order, and the master keeps the newest open of an inode until a release of a higher order: repeated or late
//! messages do no harm. Nothing is released until nobody here has the inode open.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooseng_wire::session::OpenInode;
use tokio::time::Instant;

/// A size that isn't known.
const UNKNOWN: u64 = u64::MAX;

/// One inode.
#[derive(Debug)]
pub(crate) struct OpenInodeState {
    /// Held while the master is told, so that a release can't overtake the next open.
    pub gate: tokio::sync::Mutex<()>,
    counts: Mutex<Counts>,
    /// The size that this client saw last: a hint that decides between inline and chunk, nothing more.
    size: AtomicU64,
    writing: Mutex<Writing>,
}

#[derive(Debug, Default)]
struct Writing {
    /// Until then writes go through without asking for the inode exclusively.
    shared_until: Option<Instant>,
    /// Failed write-backs so far, and the last one's error number.
    failures: u64,
    errno: i32,
}

#[derive(Debug, Default)]
struct Counts {
    local: u64,
    /// The master may believe that it is open.
    told: bool,
    /// The master has said so.
    held: bool,
}

impl OpenInodeState {
    fn new() -> Self {
        Self {
            gate: tokio::sync::Mutex::new(()),
            counts: Mutex::default(),
            size: AtomicU64::new(UNKNOWN),
            writing: Mutex::default(),
        }
    }
    fn counts<T>(&self, f: impl FnOnce(&mut Counts) -> T) -> T {
        f(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
    fn writing<T>(&self, f: impl FnOnce(&mut Writing) -> T) -> T {
        f(&mut self.writing.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// Whether others were writing it, too, a moment ago.
    pub fn is_shared(&self) -> bool {
        self.writing(|w| w.shared_until.is_some_and(|until| Instant::now() < until))
    }
    pub fn share_for(&self, time: Duration) {
        self.writing(|w| w.shared_until = Some(Instant::now() + time));
    }
    /// Buffered data was given up.
    pub fn failed(&self, errno: i32) {
        self.writing(|w| (w.failures, w.errno) = (w.failures + 1, errno));
    }
    /// How many times that has happened, and the last error number.
    pub fn failures(&self) -> (u64, i32) {
        self.writing(|w| (w.failures, w.errno))
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
    /// Whether the master holds it open for this session.
    pub fn is_held(&self) -> bool {
        self.counts(|c| c.held)
    }
    /// The master is about to be told of an open.
    pub fn telling(&self) {
        self.counts(|c| c.told = true);
    }
    /// The master has answered that it holds it open.
    pub fn held(&self) {
        self.counts(|c| (c.told, c.held) = (true, true));
    }
    /// Whether the master must hear of the release, now that nobody here has it open.
    pub fn take_told(&self) -> bool {
        self.counts(|c| {
            c.held = false;
            std::mem::take(&mut c.told)
        })
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
    /// What a master is told with the opening of the session.
    pub fn declare(&self) -> Vec<OpenInode> {
        self.map(|map| {
            let open = |state: &OpenInodeState| {
                state.counts(|c| {
                    c.told |= c.local > 0;
                    c.local > 0
                })
            };
            map.iter().filter(|(_, state)| open(state)).map(|(&inode, _)| OpenInode { inode }).collect()
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
    fn the_master_hears_of_the_last_release_if_it_may_have_heard_of_an_open() {
        let opens = Opens::default();
        let state = opens.add(5);
        opens.add(5);
        assert_eq!(opens.declare(), vec![OpenInode { inode: 5 }]);
        assert!(!state.is_held(), "a declaration may be lost");
        assert!(!opens.remove(5));
        assert!(opens.remove(5));
        assert!(opens.declare().is_empty());
        assert!(state.take_told());
        assert!(!state.take_told());
        opens.forget(5);
        assert!(opens.get(5).is_none());
    }
}
