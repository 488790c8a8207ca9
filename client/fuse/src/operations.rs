//! What the kernel asks of a mount, counted: how often, how long it took, and what was answered without asking anybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

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

/// Counters of a mount's operations.
#[derive(Default)]
pub struct Operations([Counter; Operation::ALL.len()]);

impl std::fmt::Debug for Operations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Operations")
    }
}

impl Operations {
    fn of(&self, operation: Operation) -> &Counter {
        &self.0[operation as usize]
    }

    /// One was asked for.
    pub(crate) fn begin(self: &Arc<Self>, operation: Operation) -> Running {
        self.of(operation).begun.fetch_add(1, Ordering::Relaxed);
        Running { operations: self.clone(), operation, began: Instant::now(), failed: false }
    }

    /// One was answered at once from what is known.
    pub(crate) fn known(&self, operation: Operation) {
        let counter = self.of(operation);
        counter.begun.fetch_add(1, Ordering::Relaxed);
        counter.ended.fetch_add(1, Ordering::Relaxed);
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
}

impl Running {
    pub fn outcome(&mut self, failed: bool) {
        self.failed = failed;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let counter = self.operations.of(self.operation);
        let us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        counter.total_us.fetch_add(us, Ordering::Relaxed);
        counter.failed.fetch_add(u64::from(self.failed), Ordering::Relaxed);
        counter.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_and_what_ended_is_counted_apart() {
        let operations = Arc::new(Operations::default());
        let mut first = operations.begin(Operation::Read);
        let second = operations.begin(Operation::Read);
        operations.waits(Operation::Read);
        first.outcome(true);
        drop(first);
        let now = operations.figures(Operation::Read);
        assert_eq!((now.answered, now.running, now.failed, now.waited), (1, 1, 1, 1));
        drop(second);
        operations.known(Operation::Read);
        let now = operations.figures(Operation::Read);
        assert_eq!((now.answered, now.running), (3, 0));
        assert_eq!(operations.figures(Operation::Write), Figures::default());
    }

    #[test]
    fn each_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Operation::ALL.iter().map(|o| o.name()).collect();
        assert_eq!(names.len(), Operation::ALL.len());
    }
}
