//! Pages that the kernel is to drop: by threads that it may keep waiting, and in the end every one.
//!
//! What the kernel is read from by `read` it compares with the attributes first. Behind a mapping it asks nobody: a page stays what it is until it is
//! dropped. So none that is asked for here gets lost, however many wait; an inode's merge. What was written to a mapping comes as a write before its page
//! is dropped: whoever is to come after that is told ([`Drops::at_once_and_tell`]).
//!
//! One inode is dropped after the other, but none waits for long for one that hangs: where all that are under way have been so for a while, a
//! further thread takes the next.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::kernel::Kernel;
use crate::notify::note;

/// How long pages stay that nothing promises: read-ahead is to be read before.
const UNPROMISED_FOR: Duration = Duration::from_millis(100);
/// How often those are dropped at most, where nothing is ever promised: what runs or is mapped there is read anew each time.
const UNPROMISED_EVERY: Duration = Duration::from_secs(1);
/// An inode that takes longer keeps others waiting no more.
const HANGS_AFTER: Duration = Duration::from_millis(100);
/// Threads at most: those that hang, one that works and one that waits for it to hang.
const THREADS_MAX: usize = 8;
/// Threads that wait for work at most; a further one ends.
const IDLE_MAX: usize = 2;

#[derive(Default)]
struct Waiting {
    now: BTreeSet<u64>,
    /// Who is told once an inode of `now` is dropped.
    told: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
    /// Of what isn't promised.
    soon: BTreeSet<u64>,
    /// When those are due, if there are any, and when the last were.
    due: Option<Instant>,
    went: Option<Instant>,
    /// What is being dropped, and since when.
    under_way: BTreeMap<u64, Instant>,
    threads: usize,
    /// When a thread that waits for work looks by itself whether there is any.
    looks: Option<Instant>,
    ended: bool,
}

/// An inode that a thread has taken to drop it.
struct Taken {
    inode: u64,
    told: Vec<oneshot::Sender<()>>,
    /// Nobody was left who would take the next if this one hangs: a further thread is to be started, and is counted already.
    was_last: bool,
}

impl Waiting {
    fn idle(&self) -> usize {
        self.threads - self.under_way.len()
    }

    /// Takes the next inode that nobody is on, if there is one. What hangs keeps it waiting until then.
    fn take(&mut self, now: Instant) -> Result<Taken, Option<Instant>> {
        // Recalls wait for those that are told of.
        let mut first = self.told.keys().chain(&self.now);
        let next = first.find(|inode| !self.under_way.contains_key(*inode)).copied();
        let Some(inode) = next else { return Err(None) };
        let free_at = self.under_way.values().max().map(|youngest| *youngest + HANGS_AFTER);
        if let Some(free_at) = free_at.filter(|free_at| *free_at > now) {
            return Err(Some(free_at));
        }
        self.now.remove(&inode);
        self.under_way.insert(inode, now);
        let was_last = self.idle() == 0 && self.threads < THREADS_MAX;
        self.threads += usize::from(was_last);
        Ok(Taken { inode, told: self.told.remove(&inode).unwrap_or_default(), was_last })
    }
}

/// Inodes whose pages are to be dropped. No more than the kernel was told of.
#[derive(Default)]
pub(crate) struct Drops {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl Drops {
    /// Begins to drop pages, until [`Self::end`].
    pub fn begin(kernel: Arc<dyn Kernel>) -> io::Result<Arc<Self>> {
        let drops = Arc::new(Self::default());
        drops.waiting().threads = 1;
        drops.start(kernel)?;
        Ok(drops)
    }

    /// Starts a thread that is counted already.
    fn start(self: &Arc<Self>, kernel: Arc<dyn Kernel>) -> io::Result<()> {
        let own = self.clone();
        let started =
            std::thread::Builder::new().name("mooseng-pages".into()).spawn(move || own.work(&kernel));
        if started.is_err() {
            self.waiting().threads -= 1;
        }
        started.map(drop)
    }

    fn work(self: &Arc<Self>, kernel: &Arc<dyn Kernel>) {
        while let Some(taken) = self.next() {
            if taken.was_last
                && let Err(error) = self.start(kernel.clone())
            {
                tracing::debug!(%error, "pages of other files wait for those of one that may hang");
            }
            note("an inode's pages", kernel.forget_inode(taken.inode, true));
            self.waiting().under_way.remove(&taken.inode);
            for told in taken.told {
                // Whoever waited may have gone.
                let _ = told.send(());
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the kernel drop what it has by now of these.
    pub fn at_once(&self, inodes: impl IntoIterator<Item = u64>) {
        self.waiting().now.extend(inodes);
        self.wake.notify_one();
    }

    /// Has the kernel drop what it has by now of an inode. What it answers is told once that is done, and what was written to mappings of it
    /// has been answered as a write; or that it won't be known, once there is no mount, or the kernel has no such inode, any more.
    pub fn at_once_and_tell(&self, inode: u64) -> oneshot::Receiver<()> {
        let (told, done) = oneshot::channel();
        let waiting = &mut *self.waiting();
        if !waiting.ended {
            waiting.now.insert(inode);
            waiting.told.entry(inode).or_default().push(told);
            self.wake.notify_one();
        }
        done
    }

    /// Has it drop what it was given without a promise, once that was read.
    pub fn soon(&self, inode: u64) {
        let waiting = &mut *self.waiting();
        waiting.soon.insert(inode);
        if waiting.due.is_none() {
            let (soon, next) =
                (Instant::now() + UNPROMISED_FOR, waiting.went.map(|at| at + UNPROMISED_EVERY));
            waiting.due = Some(next.map_or(soon, |next| next.max(soon)));
            self.wake.notify_one();
        }
    }

    /// The kernel has dropped the inode itself.
    pub fn gone(&self, inode: u64) {
        let waiting = &mut *self.waiting();
        waiting.now.remove(&inode);
        waiting.told.remove(&inode);
        waiting.soon.remove(&inode);
    }

    /// There is no mount any more.
    pub fn end(&self) {
        let waiting = &mut *self.waiting();
        waiting.ended = true;
        waiting.told.clear();
        self.wake.notify_all();
    }

    /// Waits for work; none once it has ended, or enough others wait for it.
    fn next(&self) -> Option<Taken> {
        let mut waiting = self.waiting();
        loop {
            let now = Instant::now();
            if waiting.due.is_some_and(|due| due <= now) {
                let soon = std::mem::take(&mut waiting.soon);
                waiting.now.extend(soon);
                (waiting.due, waiting.went) = (None, Some(now));
            }
            if waiting.ended {
                waiting.threads -= 1;
                return None;
            }
            let free_at = match waiting.take(now) {
                Ok(taken) => {
                    // If it hangs, somebody is to notice.
                    let noticed = waiting.looks.is_some_and(|at| at <= now + HANGS_AFTER);
                    if !noticed && (!waiting.now.is_empty() || waiting.due.is_some()) {
                        self.wake.notify_one();
                    }
                    return Some(taken);
                }
                Err(_) if waiting.idle() > IDLE_MAX => {
                    waiting.threads -= 1;
                    // Whoever stays looks when there is something to do, in place of this one.
                    self.wake.notify_one();
                    return None;
                }
                Err(free_at) => free_at,
            };
            waiting = match waiting.due.into_iter().chain(free_at).min() {
                Some(until) => {
                    waiting.looks = Some(waiting.looks.map_or(until, |at| at.min(until)));
                    let woken = self.wake.wait_timeout(waiting, until.saturating_duration_since(now));
                    let mut waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
                    waiting.looks = None;
                    waiting
                }
                None => self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    /// A kernel that drops no page of an inode before it may.
    #[derive(Default)]
    struct Hanging {
        hangs: Mutex<BTreeSet<u64>>,
        freed: Condvar,
        /// What it was told to drop, and what it has dropped.
        told: Mutex<Vec<u64>>,
        dropped: Mutex<Vec<u64>>,
    }

    impl Hanging {
        fn free(&self) {
            self.hangs.lock().unwrap().clear();
            self.freed.notify_all();
        }

        fn wait_for_drops(&self, count: usize) -> Vec<u64> {
            let begun = Instant::now();
            loop {
                let dropped = self.dropped.lock().unwrap().clone();
                if dropped.len() >= count {
                    return dropped;
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "of {count} drops came {dropped:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    impl Kernel for Hanging {
        fn forget_entry(&self, _directory: u64, _name: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn forget_inode(&self, inode: u64, _pages: bool) -> io::Result<()> {
            self.told.lock().unwrap().push(inode);
            let hangs = self.hangs.lock().unwrap();
            drop(self.freed.wait_while(hangs, |hangs| hangs.contains(&inode)).unwrap());
            self.dropped.lock().unwrap().push(inode);
            Ok(())
        }
        fn raise_epoch(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn rig(hangs: impl IntoIterator<Item = u64>) -> (Arc<Hanging>, Arc<Drops>) {
        let kernel =
            Arc::new(Hanging { hangs: Mutex::new(hangs.into_iter().collect()), ..Hanging::default() });
        let drops = Drops::begin(kernel.clone()).unwrap();
        (kernel, drops)
    }

    /// A read of one volume that never comes kept all others' mappings as they were.
    #[test]
    fn an_inode_that_hangs_keeps_no_other_waiting() {
        let (kernel, drops) = rig([1, 2]);
        drops.at_once([1, 2, 3, 4]);
        assert_eq!(kernel.wait_for_drops(2), [3, 4]);
        drops.at_once([1, 5]);
        assert_eq!(kernel.wait_for_drops(3), [3, 4, 5]);
        assert_eq!(*kernel.told.lock().unwrap(), [1, 2, 3, 4, 5], "one that hangs isn't taken twice");
        kernel.free();
        let mut dropped = kernel.wait_for_drops(6);
        dropped.sort_unstable();
        assert_eq!(dropped, [1, 1, 2, 3, 4, 5]);
        drops.end();
    }

    #[test]
    fn no_more_threads_hang_than_that_and_no_drop_gets_lost() {
        let (kernel, drops) = rig(1..=20);
        drops.at_once(1..=20);
        let begun = Instant::now();
        while drops.waiting().under_way.len() < THREADS_MAX && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(HANGS_AFTER * 2);
        let under_way = drops.waiting().under_way.len();
        assert_eq!((under_way, drops.waiting().threads), (THREADS_MAX, THREADS_MAX));
        kernel.free();
        assert_eq!(kernel.wait_for_drops(20).len(), 20);
        while drops.waiting().threads > IDLE_MAX && begun.elapsed() < Duration::from_secs(40) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(drops.waiting().threads, IDLE_MAX, "the others have ended");
        drops.end();
    }

    #[tokio::test]
    async fn who_asked_is_told_by_the_drop_that_came_after_and_by_none_that_was_under_way() {
        let (kernel, drops) = rig([1]);
        drops.at_once([1]);
        while drops.waiting().under_way.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut done = drops.at_once_and_tell(1);
        assert!(done.try_recv().is_err());
        kernel.free();
        done.await.unwrap();
        assert_eq!(kernel.wait_for_drops(2), [1, 1]);
        drops.end();
        assert!(drops.at_once_and_tell(1).await.is_err(), "there is no mount any more");
    }
}
