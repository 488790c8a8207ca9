//! Which inodes are open here, and how often the master may believe so.
//!
//! Opens keep an unlinked file alive. `Open` and `Release` aren't changes - no outcome is recorded for a retry. Instead each attempt has a
//! place in the session's order, and the master keeps the newest open of an inode until a release of a higher order: repeated or late
//! messages do no harm. Nothing is released until nobody here has the inode open.
//!
//! ```text
//!   last close -> waiting -> taken along by an attempt -> released
//!                    |            |  (no answer)
//!                    |            +-> waiting again
//!                    +-> opened again: nothing was ever said
//! ```

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooseng_wire::session::OpenInode;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::rhythm::Rhythm;

/// Closed files of which a failure is remembered that nobody has heard of.
const UNHEARD_MAX: usize = 4096;

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
    /// Until then locks are the region's to give.
    locks_shared_until: Option<Instant>,
    /// Until then small data goes to chunks, too: the region has as much of it inline as it may.
    chunks_until: Option<Instant>,
    /// Failed write-backs so far, and the last one's error number.
    failures: u64,
    errno: i32,
    /// Up to which of them somebody has heard.
    heard: u64,
    /// How it is written and synced.
    rhythm: Rhythm,
}

#[derive(Debug, Default)]
struct Counts {
    local: u64,
    /// The master may believe that it is open.
    told: bool,
    /// The master has said so.
    held: bool,
    /// It is closed since that place in the session's order, and waits for an attempt that takes that along.
    closed: Option<u64>,
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
    /// Whether others locked it, too, or had it open, a moment ago.
    pub fn shares_locks(&self) -> bool {
        self.writing(|w| w.locks_shared_until.is_some_and(|until| Instant::now() < until))
    }
    pub fn share_locks_for(&self, time: Duration) {
        self.writing(|w| w.locks_shared_until = Some(Instant::now() + time));
    }
    /// Whether the region refused small data inline a moment ago.
    pub fn goes_to_chunks(&self) -> bool {
        self.writing(|w| w.chunks_until.is_some_and(|until| Instant::now() < until))
    }
    pub fn go_to_chunks_for(&self, time: Duration) {
        self.writing(|w| w.chunks_until = Some(Instant::now() + time));
    }
    /// So many bytes of it were buffered.
    pub fn written(&self, bytes: usize) {
        self.writing(|w| w.rhythm.written(bytes, Instant::now()));
    }
    /// Fsync of it was called.
    pub fn synced(&self) {
        self.writing(|w| w.rhythm.synced(Instant::now()));
    }
    /// Whether what is buffered of it is to be sent now, for fsync is about to be called. True once, and for what goes in the change itself alone: a chunk would
    /// keep what a wrong guess puts there.
    pub fn goes_ahead(&self) -> bool {
        self.writing(|w| w.rhythm.take_due()) && !self.goes_to_chunks()
    }
    /// Buffered data was given up.
    pub fn failed(&self, errno: i32) {
        self.writing(|w| (w.failures, w.errno) = (w.failures + 1, errno));
    }
    /// How many times that has happened, and the last error number.
    pub fn failures(&self) -> (u64, i32) {
        self.writing(|w| (w.failures, w.errno))
    }
    /// A handle was told of all failures up to there: who opens the file later isn't.
    pub fn heard(&self, failures: u64) {
        self.writing(|w| w.heard = w.heard.max(failures));
    }
    /// Up to which failure somebody has heard: those behind are told to whoever opens the file, too.
    pub fn heard_up_to(&self) -> u64 {
        self.writing(|w| w.heard)
    }
    /// The error number of a failure that nobody has heard of.
    fn unheard(&self) -> Option<i32> {
        self.writing(|w| (w.heard < w.failures).then_some(w.errno))
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
    /// It was made here, and the master will be told of it as open.
    pub fn held_untold(&self) {
        self.counts(|c| c.held = true);
    }
    /// The master has answered that it holds it open.
    pub fn held(&self) {
        self.counts(|c| (c.told, c.held) = (true, true));
    }
}

/// Failures of closed files that nobody has heard of. The oldest go when they become too many: the log has them.
#[derive(Debug, Default)]
struct Unheard {
    /// Error numbers, and when they came, by inode.
    by_inode: BTreeMap<u64, (u64, i32)>,
    last: u64,
}

impl Unheard {
    fn keep(&mut self, inode: u64, errno: i32) {
        self.last += 1;
        self.by_inode.insert(inode, (self.last, errno));
        if self.by_inode.len() > UNHEARD_MAX {
            let oldest = self.by_inode.iter().min_by_key(|(_, (at, _))| *at).map(|(&inode, _)| inode);
            if let Some(oldest) = oldest {
                self.by_inode.remove(&oldest);
            }
        }
    }
}

/// All open inodes.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    by_inode: Mutex<BTreeMap<u64, Arc<OpenInodeState>>>,
    /// Closed inodes that the master may hold open, and the session's order when they were closed: it ascends. Taken inside `by_inode`.
    closed: Mutex<VecDeque<(u64, u64)>>,
    /// Taken inside `by_inode`.
    unheard: Mutex<Unheard>,
    waiting: Notify,
}

impl Opens {
    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Arc<OpenInodeState>>) -> T) -> T {
        f(&mut self.by_inode.lock().unwrap_or_else(PoisonError::into_inner))
    }
    fn closed<T>(&self, f: impl FnOnce(&mut VecDeque<(u64, u64)>) -> T) -> T {
        f(&mut self.closed.lock().unwrap_or_else(PoisonError::into_inner))
    }
    fn unheard<T>(&self, f: impl FnOnce(&mut Unheard) -> T) -> T {
        f(&mut self.unheard.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// The state of an inode that has none, with what nobody has heard of it.
    fn begun(&self, inode: u64) -> Arc<OpenInodeState> {
        let state = OpenInodeState::new();
        if let Some((_, errno)) = self.unheard(|unheard| unheard.by_inode.remove(&inode)) {
            state.failed(errno);
        }
        Arc::new(state)
    }
    /// Takes the state of an inode away, but for what nobody has heard of it.
    fn end(&self, map: &mut BTreeMap<u64, Arc<OpenInodeState>>, inode: u64) {
        if let Some(errno) = map.remove(&inode).and_then(|state| state.unheard()) {
            self.unheard(|unheard| unheard.keep(inode, errno));
        }
    }
    /// Buffered data of an inode was given up: each open handle hears of it, and if none does, whoever opens it next.
    pub fn failed(&self, inode: u64, errno: i32) {
        self.map(|map| match map.get(&inode) {
            Some(state) => state.failed(errno),
            None => self.unheard(|unheard| unheard.keep(inode, errno)),
        });
    }
    /// Counts an open. The caller takes the gate and tells the master.
    pub fn add(&self, inode: u64) -> Arc<OpenInodeState> {
        self.map(|map| {
            let state = map.entry(inode).or_insert_with(|| self.begun(inode)).clone();
            // Whoever opens it again before the master has heard of the close needn't tell it anything.
            state.counts(|c| (c.local, c.closed) = (c.local + 1, None));
            state
        })
    }
    /// The master is about to be told of a file that was made here: true if it is open still, then it counts once more until that is answered. If it
    /// isn't, who opens it again tells the master.
    pub fn tell_open(&self, inode: u64) -> bool {
        self.map(|map| {
            map.get(&inode).is_some_and(|state| {
                state.counts(|c| {
                    let open = c.local > 0;
                    c.local += u64::from(open);
                    (c.told, c.held) = (c.told || open, c.held && open);
                    open
                })
            })
        })
    }
    /// Takes an open back; true if it was the last one. The entry stays until [`Self::close`].
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
    /// Nobody here has the inode open any more, unless somebody has opened it since. The master hears of it with one of the next attempts, if
    /// it may believe that it is open. `order`: the session's, by now.
    pub fn close(&self, inode: u64, order: u64) {
        self.map(|map| {
            let Some(state) = map.get(&inode) else { return };
            let told = state.counts(|c| {
                c.closed = (c.local == 0 && c.told).then_some(order);
                (c.local == 0).then_some(c.told)
            });
            match told {
                Some(true) => {
                    self.closed(|closed| closed.push_back((inode, order)));
                    self.waiting.notify_one();
                }
                Some(false) => self.end(map, inode),
                None => {}
            }
        });
    }
    /// The closes that an attempt of that order takes along. Only those from before the order was given out: an inode may have been opened
    /// under a higher one since, and the master would take the release for a late one.
    pub fn take_closed(&self, order: u64, at_most: usize) -> Vec<u64> {
        if self.closed(|closed| closed.is_empty()) {
            return Vec::new();
        }
        self.map(|map| {
            let mut taken = Vec::new();
            while taken.len() < at_most
                && let Some((inode, at)) = self.closed(|closed| closed.pop_front_if(|(_, at)| *at < order))
            {
                // Unless it was opened, or opened and closed, again since.
                if map.get(&inode).is_some_and(|state| state.counts(|c| c.closed == Some(at))) {
                    self.end(map, inode);
                    taken.push(inode);
                }
            }
            taken
        })
    }
    /// An attempt that took closes along wasn't answered: they wait again, but for what was opened since.
    pub fn put_back_closed(&self, inodes: Vec<u64>, order: u64) {
        self.map(|map| {
            for inode in inodes {
                if let Entry::Vacant(vacant) = map.entry(inode) {
                    let state = vacant.insert(self.begun(inode));
                    state.counts(|c| (c.told, c.closed) = (true, Some(order)));
                    self.closed(|closed| closed.push_back((inode, order)));
                    self.waiting.notify_one();
                }
            }
        });
    }
    /// Whether closes wait.
    pub fn any_closed(&self) -> bool {
        self.closed(|closed| !closed.is_empty())
    }
    /// Waits until a close waits; perhaps a little longer than necessary, never shorter.
    pub async fn closing(&self) {
        while !self.any_closed() {
            self.waiting.notified().await;
        }
    }
    pub fn get(&self, inode: u64) -> Option<Arc<OpenInodeState>> {
        self.map(|map| map.get(&inode).cloned())
    }
    /// Each open inode.
    pub fn each(&self, section: impl Fn(&OpenInodeState)) {
        self.map(|map| map.values().for_each(|state| section(state)));
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
                    // What isn't declared isn't held: who opens it again tells the master.
                    c.held &= c.local > 0;
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
        opens.close(5, 7);
        assert!(opens.take_closed(7, 10).is_empty(), "it may have been opened under the attempt's order");
        assert_eq!(opens.take_closed(8, 10), vec![5]);
        assert!(opens.take_closed(9, 10).is_empty());
        assert!(opens.get(5).is_none());
        opens.add(6);
        assert!(opens.remove(6));
        opens.close(6, 10);
        assert!(opens.get(6).is_none() && !opens.any_closed(), "the master never heard of it");
    }

    #[test]
    fn who_opens_again_before_the_release_left_holds_it_still() {
        let opens = Opens::default();
        opens.add(5).held();
        assert!(opens.remove(5));
        opens.close(5, 1);
        assert!(opens.add(5).is_held());
        assert!(opens.take_closed(9, 10).is_empty());
        // A release that left and wasn't answered.
        assert!(opens.remove(5));
        opens.close(5, 2);
        assert_eq!(opens.take_closed(9, 10), vec![5]);
        assert!(!opens.add(5).is_held(), "the release may have arrived");
        opens.put_back_closed(vec![5], 9);
        assert!(opens.take_closed(20, 10).is_empty(), "it is open");
        assert!(opens.remove(5));
        opens.put_back_closed(vec![5], 9);
        assert!(opens.take_closed(20, 10).is_empty(), "its own close tells");
    }

    #[test]
    fn a_failure_that_nobody_heard_of_outlives_the_close_and_what_was_heard_doesnt() {
        let opens = Opens::default();
        let close = |inode| {
            assert!(opens.remove(inode));
            opens.close(inode, 1);
            assert!(opens.get(inode).is_none());
        };
        let unheard = |state: &OpenInodeState| state.failures().0 > state.heard_up_to();
        let state = opens.add(5);
        opens.failed(5, libc::EIO);
        assert!(unheard(&state));
        close(5);
        // Closed when it happened.
        opens.failed(6, libc::ENOSPC);
        for (inode, errno) in [(5, libc::EIO), (6, libc::ENOSPC)] {
            let state = opens.add(inode);
            assert!(unheard(&state));
            assert_eq!(state.failures().1, errno);
            state.heard(state.failures().0);
            close(inode);
            assert!(!unheard(&opens.add(inode)));
        }
        for inode in 100..=100 + UNHEARD_MAX as u64 {
            opens.failed(inode, libc::EIO);
        }
        assert!(!unheard(&opens.add(100)), "bounded, and the oldest goes");
        assert!(unheard(&opens.add(101)));
    }

    #[test]
    fn what_a_declaration_leaves_out_is_not_held() {
        let opens = Opens::default();
        opens.add(5).held();
        assert!(opens.remove(5));
        opens.close(5, 1);
        assert!(opens.declare().is_empty());
        assert!(!opens.add(5).is_held());
    }
}
