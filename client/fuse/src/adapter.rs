//! fuser's callbacks: convert, call, answer. Nothing is decided here.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use futures::FutureExt;
use mooseng_client::{
    Attr, Caller, FileSystem, FsError, RenameMode, SeekWhence, SetAttr, WriteMode, WriteOptions, is_acl,
};
use mooseng_transport::{directly, trace};
use tokio::sync::Semaphore;

use crate::convert;
use crate::directories::Directories;
use crate::kernel::ROOT;
use crate::lock_kind::LockKinds;
use crate::locks::KernelLock;
use crate::notify::Notifier;
use crate::operations::{Operation, Operations};
use crate::told::How;
use crate::waiting::{for_process, groups_of};

const MAX_WRITE: u32 = 1 << 20;
const MAX_BACKGROUND: u16 = 128;

/// Asked for where the kernel has them; one by one, for fuser drops a whole set in which one is missing.
/// - HANDLE_KILLPRIV_V2: clearing setuid and setgid happens in the region, in the same transaction as the write.
/// - AUTO_INVAL_DATA: before a read from its pages the kernel asks whether the file has changed.
/// - No ATOMIC_O_TRUNC: with it the kernel cuts a running program's pages before it looks whether somebody runs it, and the program dies (an open
///   for reading with O_TRUNC).
/// - POSIX_LOCKS, FLOCK_LOCKS: locks are the region's.
/// - POSIX_ACL: the kernel reads access control lists and judges by them; DONT_MASK: a directory that hands one down overrules the umask.
/// - No DO_READDIRPLUS: what it tells the kernel of inodes that it doesn't have yet can't be taken back before `ls` has run on.
/// - Never WRITEBACK_CACHE: the kernel would own sizes and times.
const CAPABILITIES: [InitFlags; 11] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
];

/// How the kernel is to treat an open file. It keeps the pages that it has of it if all of them were read under the promise that stands now.
///
/// With O_APPEND nothing goes through its cache: it would cut a record where a page ends that it doesn't hold whole, and other mounts'
/// records could come in between; and it would cache the record where it believes the end of the file to be.
fn open_flags(flags: i32, notifier: &Notifier, inode: u64, hold: Option<u64>) -> FopenFlags {
    if flags & libc::O_APPEND != 0 {
        return FopenFlags::FOPEN_DIRECT_IO;
    }
    if notifier.keeps_pages(inode, hold) { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}

pub(crate) struct Adapter {
    pub(crate) fs: FileSystem,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) lock_kinds: LockKinds,
    permits: Arc<Semaphore>,
    pub(crate) directories: Arc<Directories>,
    pub(crate) notifier: Arc<Notifier>,
    pub(crate) operations: Arc<Operations>,
}

/// An operation that is answered with an error number says so in its span.
pub(crate) fn failed<T>(outcome: &Result<T, i32>, span: &mut trace::Span) {
    if let Err(errno) = outcome {
        span.fail(|| std::io::Error::from_raw_os_error(*errno).to_string());
    }
}

impl Adapter {
    pub fn new(
        fs: FileSystem,
        runtime: tokio::runtime::Handle,
        requests_max: usize,
        notifier: Arc<Notifier>,
    ) -> Self {
        Self {
            fs,
            runtime,
            lock_kinds: LockKinds::new(),
            permits: Arc::new(Semaphore::new(requests_max)),
            directories: Arc::default(),
            notifier,
            operations: Arc::default(),
        }
    }

    /// Runs a request. A panic in `work` ends its task only; fuser's reply, dropped, answers EIO.
    pub(crate) fn run<T, W>(
        &self,
        operation: Operation,
        pid: u32,
        work: W,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        let mut running = self.operations.begin(operation);
        let permits = self.permits.clone();
        let permit = match permits.clone().try_acquire_owned() {
            Ok(permit) => Ok(permit),
            // Too much is under way: this thread reads nothing more until something is done.
            Err(_) => self.runtime.block_on(permits.acquire_owned()),
        };
        let mut task = Box::pin(async move {
            // Each operation is a trace of its own: its id stands in the debug logs of whoever works on it.
            let outcome = trace::operation(operation.name(), for_process(pid, work), failed).await;
            running.outcome(outcome.is_err());
            answer(outcome.map_err(Errno::from_i32));
            drop((running, permit));
        });
        // What needs nobody else is answered on this thread: a wake-up costs more than the answer.
        let context = self.runtime.enter();
        // A panic ends the request only: its reply, dropped, answers EIO.
        let polled = catch_unwind(AssertUnwindSafe(|| directly(|| (&mut task).now_or_never())));
        drop(context);
        match polled {
            Ok(Some(())) => {}
            Ok(None) => {
                self.operations.waits(operation);
                drop(self.runtime.spawn(task));
            }
            Err(_) => tracing::error!(pid, "an operation panicked; it is answered EIO"),
        }
    }

    /// The inode that the kernel's word for one means: of a mount of a subtree the root isn't the volume's.
    pub(crate) fn inode(&self, ino: INodeNo) -> u64 {
        if ino.0 == ROOT { self.fs.root() } else { ino.0 }
    }

    /// Who asks. The kernel has, by default_permissions, checked the rights; of those whose word isn't taken they are
    /// checked by the region, for the user that it makes of them.
    pub(crate) fn caller(&self, req: &Request) -> Caller {
        Caller {
            uid: req.uid(),
            gid: req.gid(),
            groups: Vec::new(),
            pid: req.pid(),
            umask: 0,
            kernel_checked: self.fs.trusts(req.uid()),
            own_account: false,
        }
    }

    /// Who makes something. A kernel that has applied the umask itself does no harm.
    fn maker(&self, req: &Request, umask: u32) -> Caller {
        Caller { umask, ..self.caller(req) }
    }

    /// Answers an entry that was made under that name.
    fn entry<W>(
        &self,
        operation: Operation,
        req: &Request,
        parent: u64,
        name: Vec<u8>,
        work: W,
        reply: ReplyEntry,
    ) where
        W: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        self.notifier.changing(parent);
        let (fs, notifier) = (self.fs.clone(), self.notifier.clone());
        self.run(operation, req.pid(), work, move |outcome| match outcome {
            Ok(attr) => {
                let how = How::Made(parent);
                show_entry(&fs, &notifier, (parent, &name), Some(&attr), how, reply);
            }
            Err(errno) => reply.error(errno),
        });
    }

    pub(crate) fn empty<W>(&self, operation: Operation, req: &Request, work: W, reply: ReplyEmpty)
    where
        W: Future<Output = Result<(), FsError>> + Send + 'static,
    {
        self.run(operation, req.pid(), work, move |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    fn attr<W>(&self, operation: Operation, req: &Request, work: W, reply: ReplyAttr)
    where
        W: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        let (fs, notifier) = (self.fs.clone(), self.notifier.clone());
        self.run(operation, req.pid(), work, move |outcome| match outcome {
            Ok(attr) => {
                show_attr(&fs, &notifier, &attr, reply);
            }
            Err(errno) => reply.error(errno),
        });
    }

    /// A value of which the caller may want the size first.
    fn xattr<W>(&self, operation: Operation, req: &Request, size: u32, work: W, reply: ReplyXattr)
    where
        W: Future<Output = Result<Bytes, FsError>> + Send + 'static,
    {
        self.run(operation, req.pid(), work, move |outcome| show_value(outcome, size, reply));
    }

    /// An access control list, which the kernel keeps - that there is none, too - for no given time, but until it asks for the attributes anew.
    fn acl(&self, req: &Request, inode: u64, name: Vec<u8>, size: u32, reply: ReplyXattr) {
        let (fs, caller, notifier) = (self.fs.clone(), self.caller(req), self.notifier.clone());
        let (whole, before) = (self.fs.clone(), self.fs.hold(inode));
        let work = async move { fs.getxattr(&caller, inode, &name).await };
        self.run(Operation::GetXattr, req.pid(), work, move |outcome| {
            let showing = notifier.showing();
            let holds = before.is_some() && whole.hold(inode) == before;
            let kept = notifier.telling_list(inode, holds);
            show_value(outcome, size, reply);
            drop(showing);
            if !kept {
                notifier.forget_list(inode);
            }
        });
    }
}

/// Answers a value of which the caller may want the size first.
fn show_value(outcome: Result<Bytes, Errno>, size: u32, reply: ReplyXattr) {
    match outcome {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

/// Answers attributes, for as long as they are promised.
fn show_attr(fs: &FileSystem, notifier: &Notifier, attr: &Attr, reply: ReplyAttr) {
    let _showing = notifier.showing();
    let validity = fs.validity(Some(attr), None);
    let time = notifier.telling(attr.inode, validity.attr, How::Known);
    reply.attr(&time, &convert::attr(attr));
}

/// Answers an entry, or that there is none, for as long as that is promised.
fn show_entry(
    fs: &FileSystem,
    notifier: &Notifier,
    (directory, name): (u64, &[u8]),
    attr: Option<&Attr>,
    how: How,
    reply: ReplyEntry,
) {
    let _showing = notifier.showing();
    let validity = fs.validity(attr, Some((directory, name)));
    let entry = match validity.listed {
        _ if !notifier.keeps_entries() => Duration::ZERO,
        true => notifier.telling_listed(directory, validity.entry),
        false => validity.entry,
    };
    match attr {
        Some(attr) => {
            let time = notifier.telling(attr.inode, validity.attr, how);
            reply.entry_with_ttls(&time, &entry, &convert::attr(attr), Generation(attr.generation));
        }
        None if entry.is_zero() => reply.error(Errno::ENOENT),
        // Inode 0: the kernel keeps that there is none.
        None => {
            let nothing = convert::attr(&Attr::default());
            reply.entry_with_ttls(&Duration::ZERO, &entry, &nothing, Generation(0));
        }
    }
}

fn owned(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::info!(
                    ?capability,
                    "this kernel's FUSE lacks a capability; the mount works without it"
                );
            }
        }
        // Each setter answers the nearest value that is allowed: take that one.
        if let Err(nearest) = config.set_max_write(MAX_WRITE) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            let _ = config.set_max_background(nearest);
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let parent = self.inode(parent);
        // What is known is answered on this thread: a wake-up costs more than the answer.
        if self.fs.trusts(req.uid())
            && let Some(attr) = self.fs.known_entry(parent, name.as_bytes())
        {
            let entry = (parent, name.as_bytes());
            self.operations.known(Operation::Lookup);
            return show_entry(&self.fs, &self.notifier, entry, attr.as_ref(), How::Met, reply);
        }
        let (fs, caller, name, notifier) =
            (self.fs.clone(), self.caller(req), owned(name), self.notifier.clone());
        let (whole, asked) = (self.fs.clone(), name.clone());
        let work = async move { fs.find(&caller, parent, &asked).await };
        self.run(Operation::Lookup, req.pid(), work, move |outcome| match outcome {
            Ok(attr) => {
                show_entry(&whole, &notifier, (parent, &name), attr.as_ref(), How::Met, reply);
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.notifier.given_back(self.inode(ino), nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let ino = self.inode(ino);
        if let Some(attr) = self.fs.known_attr(ino) {
            self.operations.known(Operation::GetAttr);
            return show_attr(&self.fs, &self.notifier, &attr, reply);
        }
        let (fs, caller) = (self.fs.clone(), self.caller(req));
        self.attr(Operation::GetAttr, req, async move { fs.getattr(&caller, ino).await }, reply);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let ino = self.inode(ino);
        let given = |time: Option<TimeOrNow>| match time {
            Some(TimeOrNow::SpecificTime(time)) => (Some(convert::nanoseconds(time)), false),
            Some(TimeOrNow::Now) => (None, true),
            None => (None, false),
        };
        let (atime_ns, atime_now) = given(atime);
        let (mtime_ns, mtime_now) = given(mtime);
        let change = SetAttr {
            inode: ino,
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime_ns,
            mtime_ns,
            atime_now,
            mtime_now,
            // fuser drops FATTR_KILL_SUIDGID, which the kernel sets for who lacks CAP_FSETID.
            kill_suidgid: size.is_some() && req.uid() != 0,
            by_handle: fh.is_some(),
            changed_ns: None,
        };
        let (fs, caller) = (self.fs.clone(), self.caller(req));
        let work = async move {
            match fh.filter(|_| size.is_some()) {
                Some(handle) => fs.setattr_open(&caller, handle.0, change).await,
                None => fs.setattr(&caller, change).await,
            }
        };
        self.run(Operation::SetAttr, req.pid(), work, move |outcome| match outcome {
            // For no time: older kernels believe it although they were told to forget it meanwhile.
            Ok(attr) => reply.attr(&Duration::ZERO, &convert::attr(&attr)),
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let ino = self.inode(ino);
        let (fs, caller) = (self.fs.clone(), self.caller(req));
        self.run(
            Operation::ReadLink,
            req.pid(),
            async move { fs.readlink(&caller, ino).await },
            move |outcome| match outcome {
                Ok(target) => reply.data(&target),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let parent = self.inode(parent);
        let Some(kind) = convert::kind_of_mode(mode) else { return reply.error(Errno::EINVAL) };
        let (fs, caller, name) = (self.fs.clone(), self.maker(req, umask), owned(name));
        let made = name.clone();
        self.entry(
            Operation::MakeNode,
            req,
            parent,
            name,
            async move { fs.mknod(&caller, parent, &made, kind, mode & 0o7777, rdev).await },
            reply,
        );
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let parent = self.inode(parent);
        let (fs, caller, name) = (self.fs.clone(), self.maker(req, umask), owned(name));
        let made = name.clone();
        let work = async move { fs.mkdir(&caller, parent, &made, mode & 0o7777).await };
        self.entry(Operation::MakeDirectory, req, parent, name, work, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = self.inode(parent);
        let (fs, caller, name) = (self.fs.clone(), self.caller(req), owned(name));
        self.notifier.changing(parent);
        self.empty(Operation::Unlink, req, async move { fs.unlink(&caller, parent, &name).await }, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = self.inode(parent);
        let (fs, caller, name) = (self.fs.clone(), self.caller(req), owned(name));
        self.notifier.changing(parent);
        self.empty(
            Operation::RemoveDirectory,
            req,
            async move { fs.rmdir(&caller, parent, &name).await },
            reply,
        );
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let parent = self.inode(parent);
        let (fs, caller, name, target) =
            (self.fs.clone(), self.caller(req), owned(link_name), owned(target.as_os_str()));
        let made = name.clone();
        let work = async move { fs.symlink(&caller, parent, &made, &target).await };
        self.entry(Operation::Symlink, req, parent, name, work, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let parent = self.inode(parent);
        let newparent = self.inode(newparent);
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (fs, caller, name, newname) = (self.fs.clone(), self.caller(req), owned(name), owned(newname));
        self.notifier.changing(parent);
        self.notifier.changing(newparent);
        self.empty(
            Operation::Rename,
            req,
            async move { fs.rename(&caller, parent, &name, newparent, &newname, mode).await },
            reply,
        );
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let ino = self.inode(ino);
        let newparent = self.inode(newparent);
        let (fs, caller, name) = (self.fs.clone(), self.caller(req), owned(newname));
        let made = name.clone();
        let work = async move { fs.link(&caller, ino, newparent, &made).await };
        self.entry(Operation::Link, req, newparent, name, work, reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let ino = self.inode(ino);
        let (fs, caller) = (self.fs.clone(), self.caller(req));
        let (whole, notifier) = (self.fs.clone(), self.notifier.clone());
        self.run(
            Operation::Open,
            req.pid(),
            async move { fs.open(&caller, ino, flags.0).await },
            move |outcome| match outcome {
                Ok(opened) => {
                    let _showing = notifier.showing();
                    let how = open_flags(flags.0, &notifier, ino, whole.hold(ino));
                    reply.opened(FileHandle(opened.handle), how);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let parent = self.inode(parent);
        let (fs, caller, name) = (self.fs.clone(), self.maker(req, umask), owned(name));
        let (whole, notifier, made) = (self.fs.clone(), self.notifier.clone(), name.clone());
        self.notifier.changing(parent);
        self.run(
            Operation::Create,
            req.pid(),
            async move { fs.create(&caller, parent, &made, mode & 0o7777, flags).await },
            move |outcome| match outcome {
                Ok(created) => {
                    let _showing = notifier.showing();
                    let inode = created.attr.inode;
                    let how = open_flags(flags, &notifier, inode, whole.hold(inode));
                    let validity = whole.validity(Some(&created.attr), Some((parent, &name)));
                    // One time for both.
                    let validity = if notifier.keeps_entries() {
                        validity.entry.min(validity.attr)
                    } else {
                        Duration::ZERO
                    };
                    let validity = notifier.telling(created.attr.inode, validity, How::Made(parent));
                    reply.created(
                        &validity,
                        &convert::attr(&created.attr),
                        Generation(created.attr.generation),
                        FileHandle(created.handle),
                        how,
                    );
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let ino = self.inode(ino);
        let (fs, caller) = (self.fs.clone(), self.caller(req));
        let (whole, notifier) = (self.fs.clone(), self.notifier.clone());
        self.run(
            Operation::Read,
            req.pid(),
            async move { fs.read(&caller, fh.0, offset, size).await },
            move |outcome| match outcome {
                Ok(bytes) => {
                    let _showing = notifier.showing();
                    notifier.gives_pages(ino, whole.hold(ino));
                    reply.data(&bytes);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Pages of a shared mapping go where they belong, also through a handle for appending. The flags are today's: fcntl may have
        // changed them since the open.
        let append = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let mode = if append { WriteMode::Append } else { WriteMode::At };
        let options =
            WriteOptions { mode, kill_suidgid: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) };
        let (fs, caller, data) = (self.fs.clone(), self.caller(req), Bytes::copy_from_slice(data));
        let length = data.len() as u32;
        self.run(
            Operation::Write,
            req.pid(),
            async move { fs.write(&caller, fh.0, offset, data, options).await },
            move |outcome| match outcome {
                Ok(_) => reply.written(length),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn flush(&self, req: &Request, _ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        self.close_descriptor(req, fh, lock_owner, reply);
    }

    fn getlk(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        self.get_lock(req, (fh, lock_owner), KernelLock { start, end, kind: typ, pid }, reply);
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let ino = INodeNo(self.inode(ino));
        let lock = KernelLock { start, end, kind: typ, pid };
        self.set_lock(req, (ino, fh, lock_owner), lock, sleep, reply);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs.clone();
        // Nobody waits for it: an answer that came after an unmount would only be one to nobody. And it must not be given up: pid 0.
        reply.ok();
        self.run(Operation::Release, 0, async move { fs.release(fh.0).await }, |_| ());
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        self.empty(Operation::Sync, req, async move { fs.fsync(fh.0, datasync).await }, reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.directories.open(self.fs.losses())), FopenFlags::empty());
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let ino = INodeNo(self.inode(ino));
        self.list(req, ino, fh, offset, reply);
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.directories.close(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let ino = self.inode(ino);
        let (fs, heard) = (self.fs.clone(), self.directories.heard(fh.0));
        let synced = async move { fs.fsync_open_directory(ino, &heard).await };
        self.empty(Operation::SyncDirectory, req, synced, reply);
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let ino = self.inode(ino);
        let (fs, caller) = (self.fs.clone(), self.caller(req));
        self.run(
            Operation::StatFs,
            req.pid(),
            async move { fs.statfs(&caller, ino).await },
            move |outcome| match outcome {
                Ok(stat) => {
                    let block = stat.block_size.max(512);
                    let blocks = |bytes: u64| bytes / u64::from(block);
                    let (total, free, available) =
                        (blocks(stat.bytes_total), blocks(stat.bytes_free), blocks(stat.bytes_available));
                    let name_max = if stat.name_max == 0 { 255 } else { stat.name_max };
                    reply.statfs(total, free, available, stat.files, stat.files_free, block, name_max, block);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let ino = self.inode(ino);
        if !is_answered(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (create, replace) = (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0);
        let mut caller = self.caller(req);
        if is_acl(name.as_bytes()) && caller.uid != 0 {
            // Whether setgid stays is for us to say, and depends on them: fuser doesn't know FUSE_SETXATTR_ACL_KILL_SGID.
            caller.groups = groups_of(req.pid());
        }
        let (fs, name, value) = (self.fs.clone(), owned(name), value.to_vec());
        self.empty(
            Operation::SetXattr,
            req,
            async move { fs.setxattr(&caller, ino, &name, &value, create, replace).await },
            reply,
        );
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let ino = self.inode(ino);
        if !is_answered(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        if is_acl(name.as_bytes()) {
            return self.acl(req, ino, owned(name), size, reply);
        }
        let (fs, caller, name) = (self.fs.clone(), self.caller(req), owned(name));
        self.xattr(
            Operation::GetXattr,
            req,
            size,
            async move { fs.getxattr(&caller, ino, &name).await },
            reply,
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let ino = self.inode(ino);
        let (fs, caller) = (self.fs.clone(), self.caller(req));
        let work = async move {
            let names = fs.listxattr(&caller, ino).await?;
            Ok(names.iter().flat_map(|name| name.iter().copied().chain([0])).collect())
        };
        self.xattr(Operation::ListXattr, req, size, work, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let ino = self.inode(ino);
        if !is_answered(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (fs, caller, name) = (self.fs.clone(), self.caller(req), owned(name));
        self.empty(
            Operation::RemoveXattr,
            req,
            async move { fs.removexattr(&caller, ino, &name).await },
            reply,
        );
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let ino = self.inode(ino);
        let caller = Caller { kernel_checked: false, ..self.caller(req) };
        let fs = self.fs.clone();
        self.empty(
            Operation::Access,
            req,
            async move { fs.access(&caller, ino, mask.bits() as u32).await },
            reply,
        );
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let ino = self.inode(ino);
        let whence = match whence {
            libc::SEEK_DATA => SeekWhence::Data,
            libc::SEEK_HOLE => SeekWhence::Hole,
            // The kernel answers the others itself.
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let (fs, caller) = (self.fs.clone(), self.caller(req));
        self.run(
            Operation::Seek,
            req.pid(),
            async move { fs.seek(&caller, ino, offset, whence).await },
            move |outcome| match outcome {
                Ok(to) => reply.offset(i64::try_from(to).unwrap_or(i64::MAX)),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // The kernel sends dirty pages of the range before it asks, and drops what it has of it after a success.
        let (fs, caller) = (self.fs.clone(), self.caller(req));
        self.empty(
            Operation::Allocate,
            req,
            async move { fs.fallocate(&caller, fh.0, mode, offset, length).await },
            reply,
        );
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel sends dirty pages of both ranges before it asks, and drops what it has of the target's after a success. Where it hears EXDEV it
        // copies through its pages.
        let (fs, caller) = (self.fs.clone(), self.caller(req));
        let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
        // The answer has room for 32 bits.
        let length = len.min(u64::from(u32::MAX));
        let work = async move { fs.copy_range(&caller, from, to, length).await };
        self.run(Operation::CopyRange, req.pid(), work, move |outcome| match outcome {
            Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        });
    }
}

/// Of the system's attributes there are the access control lists.
fn is_answered(name: &OsStr) -> bool {
    !name.as_bytes().starts_with(b"system.") || is_acl(name.as_bytes())
}
