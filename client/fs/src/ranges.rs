//! What the region does to a range of a file without its bytes passing here: holes, sizes, copies.
//!
//! One change does a bounded number of extents; it is asked for anew until the whole range is done, or nobody waits for it any more: a step that is under way
//! then goes on, and what comes later waits for it, as for any change whose caller has gone; no further one is begun. What was buffered is sent before, as it
//! is before a truncation.

use mooseng_transport::trace;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, CopyRange, Fallocate, Ranged};
use mooseng_wire::{FILE_SIZE_MAX, INLINE_FILE_BYTES_MAX};

use crate::error::FsError;
use crate::files::HandleId;
use crate::fs::{FileSystem, daemon};
use crate::owners::Tenure;
use crate::read::unexpected;

/// Steps of one copy; then the caller is told how far it came, and asks for the rest.
const COPY_STEPS_MAX: u32 = 64;

/// A place in an open file.
type Place = (HandleId, u64);

impl FileSystem {
    /// fallocate(2): `mode` as that has it. 0 makes the file reach at least to the end of the range, and FALLOC_FL_KEEP_SIZE alone does nothing:
    /// nothing can be reserved, as every write goes to a new place. FALLOC_FL_PUNCH_HOLE and FALLOC_FL_ZERO_RANGE make a hole. EOPNOTSUPP for
    /// anything else.
    pub async fn fallocate(
        &self,
        caller: &Caller,
        handle: HandleId,
        mode: i32,
        offset: u64,
        length: u64,
    ) -> Result<(), FsError> {
        if length == 0 {
            return Err(FsError::Invalid("the range to allocate has no bytes".into()));
        }
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let zero = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => false,
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => true,
            libc::FALLOC_FL_ZERO_RANGE => true,
            _ => return Err(FsError::Answered(libc::EOPNOTSUPP)),
        };
        let open = self.inner.handles.get(handle)?;
        if open.flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Err(FsError::BadHandle(handle));
        }
        let end = offset.checked_add(length).filter(|&end| end <= FILE_SIZE_MAX);
        if end.is_none() {
            return Err(FsError::FileTooLarge);
        }
        if keep_size && !zero {
            return Ok(());
        }
        self.paced(0).await?;
        let (inode, kill_suidgid) = (open.inode, caller.uid != 0);
        let whole = Fallocate { inode, offset, length, zero, keep_size, kill_suidgid };
        self.in_steps(inode, self.fallocate_all(caller, handle, whole)).await?;
        self.written_durably(handle, open.flags).await
    }

    async fn fallocate_all(
        &self,
        caller: &Caller,
        handle: HandleId,
        mut left: Fallocate,
    ) -> Result<(), FsError> {
        let guarded = self.guard(handle)?;
        // Under locks no step waits by itself.
        self.inner.region.behind_abandoned("fallocate", &[left.inode]).await?;
        self.inner.writer.flush_before(left.inode).await?;
        loop {
            let ranged = self.ranged(caller, "fallocate", Op::Fallocate(left), guarded).await;
            let ranged = ranged.map_err(|e| e.on_handle(left.inode))?;
            self.still_guarded(handle, guarded)?;
            let done = ranged.done.min(left.length);
            (left.offset, left.length) = (left.offset + done, left.length - done);
            if !ranged.more || left.length == 0 {
                return Ok(());
            }
        }
    }

    /// copy_file_range(2): from an offset of one open file to one of another, of the same volume. Answers how many bytes were copied: fewer than asked
    /// for at the source's end, where it took long, or where the rest can't be shared. EXDEV if nothing can be shared at present, or it isn't worth a
    /// change of its own: then the bytes are to be copied.
    pub async fn copy_range(
        &self,
        caller: &Caller,
        from: Place,
        to: Place,
        length: u64,
    ) -> Result<u64, FsError> {
        let inner = &self.inner;
        let (source, target) = (inner.handles.get(from.0)?, inner.handles.get(to.0)?);
        if source.flags & libc::O_ACCMODE == libc::O_WRONLY {
            return Err(FsError::BadHandle(from.0));
        }
        if target.flags & libc::O_ACCMODE == libc::O_RDONLY || target.flags & libc::O_APPEND != 0 {
            return Err(FsError::BadHandle(to.0));
        }
        let size = self.known_attr(source.inode).map(|attr| attr.size).or_else(|| source.state.size());
        let few = |size: u64| {
            let there = length.min(size.saturating_sub(from.1));
            there > 0 && there <= INLINE_FILE_BYTES_MAX
        };
        // So few bytes are read and buffered at once; sharing them costs a commit for which the caller waits.
        if size.is_some_and(few) {
            return Err(FsError::Answered(libc::EXDEV));
        }
        self.paced(length).await?;
        let inode = target.inode;
        let whole = CopyRange {
            source: source.inode,
            source_offset: from.1,
            inode,
            offset: to.1,
            length,
            kill_suidgid: caller.uid != 0,
        };
        let copied = self.in_steps(inode, self.copy_all(caller, (from.0, to.0), whole)).await?;
        self.written_durably(to.0, target.flags).await?;
        Ok(copied)
    }

    async fn copy_all(
        &self,
        caller: &Caller,
        (from, to): (HandleId, HandleId),
        mut left: CopyRange,
    ) -> Result<u64, FsError> {
        let inner = &self.inner;
        let guarded = self.guard(from)?.or(self.guard(to)?);
        inner.region.behind_abandoned("copy_range", &[left.source, left.inode]).await?;
        inner.writer.flush_before(left.source).await?;
        inner.writer.flush_before(left.inode).await?;
        let (mut copied, mut sealed) = (0, false);
        for _ in 0..COPY_STEPS_MAX {
            let step = match self.ranged(caller, "copy_range", Op::CopyRange(left), guarded).await {
                // The chunk to which this host appends; another host's stays as it is.
                Err(FsError::Answered(libc::EXDEV)) if !sealed && inner.appenders.has(left.source) => {
                    sealed = true;
                    self.seal_own(left.source).await?;
                    continue;
                }
                // What was copied is told; who asks for the rest hears why it can't be.
                Err(FsError::Answered(_)) if copied > 0 => break,
                step => step.map_err(|e| e.on_handle(left.inode))?,
            };
            self.still_guarded(from, guarded)?;
            self.still_guarded(to, guarded)?;
            let done = step.done.min(left.length);
            copied += done;
            left.source_offset = left.source_offset.saturating_add(done);
            left.offset = left.offset.saturating_add(done);
            left.length -= done;
            if !step.more || left.length == 0 {
                break;
            }
        }
        Ok(copied)
    }

    /// One step, under locks only in the tenure in which they were taken: in the next one somebody else may have them.
    async fn ranged(
        &self,
        caller: &Caller,
        what: &str,
        op: Op,
        guarded: Option<Tenure>,
    ) -> Result<Ranged, FsError> {
        let region = &self.inner.region;
        let reply = match guarded {
            Some(tenure) => region.change_in_life(caller, op, tenure.under_locks()).await?,
            None => region.change(caller, op).await?,
        };
        match reply {
            Reply::Ranged(ranged) if ranged.more && ranged.done == 0 => {
                Err(FsError::Malformed(format!("a step of {what} that did nothing, and isn't the last")))
            }
            Reply::Ranged(ranged) => {
                if let Some(attr) = &ranged.attr {
                    self.inner.opens.saw_size(attr.inode, attr.size);
                }
                Ok(ranged)
            }
            other => Err(unexpected(what, &other)),
        }
    }

    /// Seals the chunk to which this host appends. Goes on when the caller stops waiting: nobody else would seal it once it is taken from its place.
    async fn seal_own(&self, inode: u64) -> Result<(), FsError> {
        let fs = self.clone();
        let sealing = trace::carried(async move { fs.inner.appenders.close(&daemon(), inode).await });
        let sealed = tokio::spawn(sealing).await;
        sealed.map_err(|e| FsError::Internal(format!("sealing the chunk of inode {inode}: {e}")))
    }

    /// Does work that changes an inode step by step. Who shows the inode's contents (a kernel) drops what it has of the range when it hears that the work was
    /// done; if it hears of a failure, or of nothing, part of it may be done all the same, and it is told to forget.
    async fn in_steps<T>(
        &self,
        inode: u64,
        work: impl Future<Output = Result<T, FsError>>,
    ) -> Result<T, FsError> {
        let mut untold = Untold { fs: self, inode, is_over: false };
        let done = work.await;
        if done.as_ref().is_err_and(|error| *error != FsError::Answered(libc::EXDEV)) {
            self.inner.recalls.forget(inode).await;
        }
        untold.is_over = true;
        done
    }
}

/// Work in steps, of which nobody hears if it is dropped before it is over.
struct Untold<'a> {
    fs: &'a FileSystem,
    inode: u64,
    is_over: bool,
}

impl Drop for Untold<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // For the steps that were done. Of the one that is under way it is told when that is over.
        let (fs, inode) = (self.fs.clone(), self.inode);
        self.fs.inner.region.spawn(async move { fs.inner.recalls.forget(inode).await });
    }
}
