//! Pages that the kernel is to drop: by a thread that it may keep waiting, and in the end every one.
//!
//! What the kernel is read from by `read` it compares with the attributes first. Behind a mapping it asks nobody: a page stays what it is until it is
//! dropped. So none that is asked for here gets lost, however many wait; an inode's merge.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::kernel::Kernel;
use crate::notify::note;

/// How long pages stay that nothing promises: read-ahead is to be read before.
const UNPROMISED_FOR: Duration = Duration::from_millis(100);
/// How often those are dropped at most, where nothing is ever promised: what runs or is mapped there is read anew each time.
const UNPROMISED_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Waiting {
    now: BTreeSet<u64>,
    /// Of what isn't promised.
    soon: BTreeSet<u64>,
    /// When those are due, if there are any, and when the last were.
    due: Option<Instant>,
    went: Option<Instant>,
    ended: bool,
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
        let own = drops.clone();
        std::thread::Builder::new().name("mooseng-pages".into()).spawn(move || {
            while let Some(inodes) = own.next() {
                for inode in inodes {
                    if own.waiting().ended {
                        return;
                    }
                    note("an inode's pages", kernel.forget_inode(inode, true));
                }
            }
        })?;
        Ok(drops)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the kernel drop what it has by now of these.
    pub fn at_once(&self, inodes: impl IntoIterator<Item = u64>) {
        self.waiting().now.extend(inodes);
        self.wake.notify_one();
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
        waiting.soon.remove(&inode);
    }

    /// There is no mount any more.
    pub fn end(&self) {
        self.waiting().ended = true;
        self.wake.notify_one();
    }

    /// Waits for work; none once it has ended.
    fn next(&self) -> Option<BTreeSet<u64>> {
        let mut waiting = self.waiting();
        loop {
            if waiting.ended {
                return None;
            }
            let now = Instant::now();
            if waiting.due.is_some_and(|due| due <= now) {
                let soon = std::mem::take(&mut waiting.soon);
                waiting.now.extend(soon);
                (waiting.due, waiting.went) = (None, Some(now));
            }
            if !waiting.now.is_empty() {
                return Some(std::mem::take(&mut waiting.now));
            }
            waiting = match waiting.due {
                Some(due) => {
                    let woken = self.wake.wait_timeout(waiting, due.saturating_duration_since(now));
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}
