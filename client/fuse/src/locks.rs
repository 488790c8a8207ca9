//! Locks: fuser's callbacks, and waits that a signal ends.

use std::time::Duration;

use fuser::{Errno, FileHandle, LockOwner, ReplyEmpty, ReplyLock, Request};
use mooseng_client::waits::{self, What};
use mooseng_client::{FileSystem, FsError, LockKind, LockRequest, LockWait};
use mooseng_transport::trace;

use crate::answers::{Adapter, failed};
use crate::lock_kind::Said;
use crate::operations::Operation;
use crate::waiting::{Signal, has_signal, report, signalled};

/// How long a killed process waits until it is out of a lock's queue.
const UNDONE_WITHIN: Duration = Duration::from_secs(2);

/// A lock as the kernel names it: both bytes included, F_RDLCK, F_WRLCK or F_UNLCK.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelLock {
    pub start: u64,
    pub end: u64,
    pub kind: i32,
    pub pid: u32,
}

impl KernelLock {
    fn request(self, handle: FileHandle, kind: LockKind, owner: LockOwner) -> LockRequest {
        LockRequest {
            handle: handle.0,
            kind,
            owner: owner.0,
            start: self.start,
            end: self.end,
            exclusive: self.kind == libc::F_WRLCK,
            pid: self.pid,
        }
    }
}

impl Adapter {
    pub(crate) fn set_lock(
        &self,
        req: &Request,
        (inode, fs): (u64, FileSystem),
        (handle, owner): (FileHandle, LockOwner),
        lock: KernelLock,
        waits: bool,
        reply: ReplyEmpty,
    ) {
        let said = Said {
            unique: req.unique().0,
            inode,
            handle: handle.0,
            owner: owner.0,
            start: lock.start,
            end: lock.end,
            kind: lock.kind,
            pid: lock.pid,
        };
        let request = lock.request(handle, self.lock_kinds.of(req, &said), owner);
        match lock.kind {
            libc::F_UNLCK => {
                self.empty(Operation::SetLock, req, inode, async move { fs.unlock(request).await }, reply)
            }
            libc::F_RDLCK | libc::F_WRLCK if waits => {
                self.wait_for_lock((inode, fs), req.pid(), request, reply);
            }
            libc::F_RDLCK | libc::F_WRLCK => {
                self.empty(Operation::SetLock, req, inode, async move { fs.lock(request).await }, reply)
            }
            _ => reply.error(Errno::EINVAL),
        }
    }

    /// Counts as no request under way: who holds the lock must get through to give it up.
    fn wait_for_lock(
        &self,
        (inode, fs): (u64, FileSystem),
        pid: u32,
        request: LockRequest,
        reply: ReplyEmpty,
    ) {
        let mut running = self.operations.begin(Operation::SetLock, pid, inode.into());
        self.operations.waits(Operation::SetLock);
        self.runtime.spawn(async move {
            let work = async {
                running.begins();
                loop {
                    // Made inside the runtime, for its tasks.
                    let wait = fs.lock_waiting(request).map_err(report)?;
                    if let Some(outcome) = waits::on(|| What::Lock, until_a_signal(pid, wait)).await {
                        return outcome;
                    }
                }
            };
            let outcome = trace::operation(Operation::SetLock.name(), work, failed).await;
            running.outcome(outcome.is_err());
            match outcome {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(Errno::from_i32(errno)),
            }
        });
    }

    pub(crate) fn get_lock(
        &self,
        req: &Request,
        (inode, fs): (u64, FileSystem),
        (handle, owner): (FileHandle, LockOwner),
        lock: KernelLock,
        reply: ReplyLock,
    ) {
        // The kernel asks about fcntl's only.
        let request = lock.request(handle, LockKind::Range, owner);
        let work = async move { fs.test_lock(request).await };
        self.run(Operation::GetLock, req.pid(), inode, work, move |outcome| match outcome {
            Ok(None) => reply.locked(lock.start, lock.end, libc::F_UNLCK, 0),
            Ok(Some(held)) => {
                let kind = if held.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
                reply.locked(held.start, held.end.min(i64::MAX as u64), kind, held.pid);
            }
            Err(errno) => reply.error(errno),
        });
    }

    /// A descriptor was closed: its process loses its fcntl locks of the file, whichever descriptor they came by.
    pub(crate) fn close_descriptor(
        &self,
        req: &Request,
        (inode, fs): (u64, FileSystem),
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let work = async move {
            if fs.may_hold(handle.0, LockKind::Range, owner.0) {
                fs.unlock_owner(handle.0, LockKind::Range, owner.0).await;
            }
            fs.flush(handle.0).await
        };
        self.empty(Operation::Flush, req, inode, work, reply);
    }
}

/// How a wait ended; none if it did for a signal that somebody else got then: it is to begin anew.
async fn until_a_signal(pid: u32, mut wait: LockWait) -> Option<Result<(), i32>> {
    let mut ends_for = None;
    loop {
        tokio::select! {
            biased;
            outcome = wait.outcome() => return match (outcome, ends_for) {
                // Without a signal EINTR is shown to the program as an error that doesn't exist.
                (Err(FsError::Answered(libc::EINTR)), Some(Signal::Unseen)) => Some(Err(libc::ENOLCK)),
                (Err(FsError::Answered(libc::EINTR)), _) if !has_signal(pid) => None,
                (Err(FsError::Answered(errno)), _) => Some(Err(errno)),
                (outcome, _) => Some(outcome.map_err(report)),
            },
            signal = signalled(pid, ends_for.is_some()) => match signal {
                // It goes when its wait has, so that nobody meets it in the queue; but not only when the region answers.
                Signal::Kill => {
                    let undone = tokio::time::timeout(UNDONE_WITHIN, wait.abandon()).await;
                    if undone.is_err() {
                        tracing::debug!(pid, "a killed process' wait for a lock isn't undone yet");
                    }
                    return Some(Err(libc::EINTR));
                }
                signal => {
                    wait.interrupt();
                    ends_for = Some(signal);
                }
            },
        }
    }
}
