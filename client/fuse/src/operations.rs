//! What the kernel asks of a mount, counted: how often, how long it took, and what was answered without asking anybody; and what is under way.
//!
//! A request is entered when it begins and left when it ends: that takes no lock that another one is likely to want. What is answered at once isn't
//! entered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use mooseng_client::waits::{self, TraceId};
use mooseng_client::{Slot, Slots};

use crate::latency::{Latencies, Spread};

macro_rules! operations {
    ($($variant:ident $name:literal)*) => {
        /// What is asked for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "they are FUSE's own")]
        pub enum Operation { $($variant),* }

        impl Operation {
            /// All of them.
            pub const ALL: &[Operation] = &[$(Operation::$variant),*];

            /// FUSE's word for it.
            pub fn name(self) -> &'static str {
                match self { $(Operation::$variant => $name),* }
            }
        }
    };
}

operations! {
    Lookup "lookup" GetAttr "getattr" SetAttr "setattr" ReadLink "readlink" MakeNode "mknod" MakeDirectory "mkdir"
    Unlink "unlink" RemoveDirectory "rmdir" Symlink "symlink" Rename "rename" Link "link" Open "open" Create "create"
    Read "read" Write "write" Flush "flush" Release "release" Sync "fsync" SyncDirectory "fsyncdir"
    ReadDirectory "readdir" StatFs "statfs" SetXattr "setxattr" GetXattr "getxattr" ListXattr "listxattr"
    RemoveXattr "removexattr" Access "access" SetLock "setlk" GetLock "getlk" Allocate "fallocate" Seek "lseek"
    CopyRange "copy_file_range"
}

#[derive(Default)]
struct Counter {
    begun: AtomicU64,
    waited: AtomicU64,
    failed: AtomicU64,
    ended: AtomicU64,
    total_us: AtomicU64,
    latencies: Latencies,
}

impl Counter {
    /// One took the time since then.
    fn took(&self, began: Instant) {
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.total_us.fetch_add(us, Ordering::Relaxed);
        self.latencies.took(us);
    }
}

/// The figures of one operation, since the mount was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// How often it was answered.
    pub answered: u64,
    /// How often others had to be asked for that: the region, a chunkserver. The rest came from what this mount knew.
    pub waited: u64,
    /// How often the answer was an error number (ENOENT, too).
    pub failed: u64,
    /// How many are under way.
    pub running: u64,
    /// How long all of them took together, in microseconds.
    pub total_us: u64,
}

/// What a request is about: an inode, or a name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    pub inode: u64,
    pub name: Option<Box<[u8]>>,
}

impl From<u64> for About {
    fn from(inode: u64) -> Self {
        Self { inode, name: None }
    }
}

impl About {
    /// A name in a directory.
    pub fn named(directory: u64, name: &[u8]) -> Self {
        Self { inode: directory, name: Some(name.into()) }
    }
}

/// A request of the kernel that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// For what.
    pub operation: Operation,
    /// The thread that asks; 0 where the kernel asks by itself.
    pub pid: u32,
    /// About which inode; with a name, the directory's.
    pub inode: u64,
    /// About which name in it.
    pub name: Option<Box<[u8]>>,
    /// When it came.
    pub began: Instant,
    /// The trace that it is; none before its work has begun.
    pub trace: Option<TraceId>,
}

/// Counters of a mount's operations, and those under way.
#[derive(Default)]
pub struct Operations {
    counters: [Counter; Operation::ALL.len()],
    under_way: Slots<Asked>,
}

impl std::fmt::Debug for Operations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Operations")
    }
}

impl Operations {
    fn of(&self, operation: Operation) -> &Counter {
        &self.counters[operation as usize]
    }

    /// One was asked for by a thread.
    pub(crate) fn begin(self: &Arc<Self>, operation: Operation, pid: u32, about: About) -> Running {
        let before = self.of(operation).begun.fetch_add(1, Ordering::Relaxed);
        let (began, About { inode, name }) = (Instant::now(), about);
        let asked = Asked { operation, pid, inode, name, began, trace: None };
        // The count differs from one to the next, and so does the shard. Kinds don't begin at the same one.
        let slot = self.under_way.put((before as usize).wrapping_add(operation as usize), asked);
        Running { operations: self.clone(), operation, began, failed: false, slot }
    }

    /// One that came at `began` is answered at once from what is known. Its time ends with the value.
    pub(crate) fn known(&self, operation: Operation, began: Instant) -> Known<'_> {
        let counter = self.of(operation);
        counter.begun.fetch_add(1, Ordering::Relaxed);
        counter.ended.fetch_add(1, Ordering::Relaxed);
        Known { counter, began }
    }

    /// The requests under way, `most` of them at most: those that have been for longest, the longest first. Not as of one moment, and of thousands at once
    /// not all are known.
    pub fn under_way(&self, most: usize) -> Vec<Asked> {
        let mut all = Vec::new();
        self.under_way.each(|asked| all.push(asked.clone()));
        all.sort_by_key(|asked| asked.began);
        all.truncate(most);
        all
    }

    /// How many requests are under way, of all kinds.
    pub fn running(&self) -> u64 {
        Operation::ALL.iter().map(|operation| self.figures(*operation).running).sum()
    }

    /// How long those of one kind took.
    pub fn spread(&self, operation: Operation) -> Spread {
        self.of(operation).latencies.spread()
    }

    /// One has to wait for others.
    pub(crate) fn waits(&self, operation: Operation) {
        self.of(operation).waited.fetch_add(1, Ordering::Relaxed);
    }

    /// The figures of one.
    pub fn figures(&self, operation: Operation) -> Figures {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let counter = self.of(operation);
        // Before what was begun, so that none is counted as ended that isn't as begun.
        let answered = get(&counter.ended);
        Figures {
            answered,
            waited: get(&counter.waited),
            failed: get(&counter.failed),
            running: get(&counter.begun).saturating_sub(answered),
            total_us: get(&counter.total_us),
        }
    }
}

/// One that is under way; it ends with the value, also where it panics.
pub(crate) struct Running {
    operations: Arc<Operations>,
    operation: Operation,
    began: Instant,
    failed: bool,
    slot: Option<Slot>,
}

impl Running {
    pub fn outcome(&mut self, failed: bool) {
        self.failed = failed;
    }

    /// Its work begins, in the trace that this task works on: under that is known what it waits for.
    pub fn begins(&self) {
        if let (Some(slot), Some(trace)) = (&self.slot, waits::here()) {
            self.operations.under_way.change(slot, |asked| asked.trace = Some(trace));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let counter = self.operations.of(self.operation);
        counter.took(self.began);
        counter.failed.fetch_add(u64::from(self.failed), Ordering::Relaxed);
        counter.ended.fetch_add(1, Ordering::Relaxed);
        // It is counted by the time at which it isn't seen any more.
        if let Some(slot) = self.slot.take() {
            self.operations.under_way.take(slot);
        }
    }
}

/// One that is being answered from what is known.
#[must_use = "its time ends when it is dropped"]
pub(crate) struct Known<'a> {
    counter: &'a Counter,
    began: Instant,
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.counter.took(self.began);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_runs_and_what_ended_is_counted_apart() {
        let operations = Arc::new(Operations::default());
        let mut first = operations.begin(Operation::Read, 1, 7_u64.into());
        let second = operations.begin(Operation::Read, 1, 7_u64.into());
        operations.waits(Operation::Read);
        first.outcome(true);
        drop(first);
        let now = operations.figures(Operation::Read);
        assert_eq!((now.answered, now.running, now.failed, now.waited), (1, 1, 1, 1));
        drop(second);
        drop(operations.known(Operation::Read, Instant::now()));
        let now = operations.figures(Operation::Read);
        assert_eq!((now.answered, now.running), (3, 0));
        assert_eq!(operations.figures(Operation::Write), Figures::default());
        let spread = operations.spread(Operation::Read);
        assert_eq!(spread.count(), 3, "what is known at once counts, too: {spread:?}");
    }

    #[test]
    fn what_is_under_way_is_seen_the_oldest_first_and_no_more_of_it_than_asked_for() {
        let operations = Arc::new(Operations::default());
        let first = operations.begin(Operation::Create, 31, About::named(7, b"name"));
        std::thread::sleep(Duration::from_millis(2));
        let others: Vec<Running> =
            (0..99).map(|pid| operations.begin(Operation::Read, pid, 9_u64.into())).collect();
        let seen = operations.under_way(64);
        assert_eq!((seen.len(), operations.running()), (64, 100));
        assert_eq!((seen[0].operation, seen[0].pid, seen[0].inode), (Operation::Create, 31, 7));
        assert_eq!((seen[0].name.as_deref(), seen[0].trace), (Some(&b"name"[..]), None));
        assert!(seen.windows(2).all(|pair| pair[0].began <= pair[1].began));
        drop(others);
        assert_eq!(operations.under_way(64), seen[..1]);
        drop(first);
        assert_eq!(operations.under_way(64), []);
    }

    #[tokio::test]
    async fn its_trace_is_known_once_its_work_begins() {
        let operations = Arc::new(Operations::default());
        let running = operations.begin(Operation::Sync, 31, 7_u64.into());
        let seen = mooseng_transport::trace::begun(async {
            running.begins();
            let trace = operations.under_way(1)[0].trace.unwrap();
            let minute = tokio::time::sleep(Duration::from_secs(60));
            let mut waiting = std::pin::pin!(waits::on(|| waits::What::Lock, minute));
            tokio::select! {
                biased;
                () = &mut waiting => None,
                () = tokio::task::yield_now() => waits::of(&trace),
            }
        });
        assert_eq!(seen.await.map(|waiting| waiting.what), Some(waits::What::Lock));
    }

    #[test]
    fn more_are_begun_than_are_kept_and_all_are_counted() {
        let operations = Arc::new(Operations::default());
        let held: Vec<Running> =
            (0..10_000).map(|_| operations.begin(Operation::SetLock, 1, 7_u64.into())).collect();
        assert_eq!(operations.running(), 10_000);
        let kept = operations.under_way(usize::MAX).len();
        assert!((1_000..10_000).contains(&kept), "{kept}");
        drop(held);
        assert_eq!((operations.running(), operations.under_way(64).len()), (0, 0));
        assert_eq!(operations.figures(Operation::SetLock).answered, 10_000);
    }

    #[test]
    fn each_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Operation::ALL.iter().map(|o| o.name()).collect();
        assert_eq!(names.len(), Operation::ALL.len());
    }
}
