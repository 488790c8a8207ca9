//! How requests are run and answered: each is a future of its own, and what the kernel may keep of an answer is looked up when it leaves.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fuser::{Errno, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr, Request};
use futures::FutureExt;
use mooseng_client::{Attr, Caller, FileSystem, Found, FsError, Tree};
use mooseng_transport::{directly, trace};
use mooseng_wire::InodeId;

use crate::convert;
use crate::directories::Directories;
use crate::kernel::ROOT;
use crate::lock_kind::LockKinds;
use crate::notify::Notifier;
use crate::operations::{About, Operation, Operations};
use crate::permits::Permits;
use crate::told::How;
use crate::waiting::for_process;

/// How the kernel is to treat an open file. It keeps the pages that it has of it if all of them were read under the promise that stands now.
///
/// With O_APPEND nothing goes through its cache: it would cut a record where a page ends that it doesn't hold whole, and other mounts'
/// records could come in between; and it would cache the record where it believes the end of the file to be.
pub(crate) fn open_flags(flags: i32, notifier: &Notifier, inode: u64, hold: Option<u64>) -> FopenFlags {
    if flags & libc::O_APPEND != 0 {
        return FopenFlags::FOPEN_DIRECT_IO;
    }
    if notifier.keeps_pages(inode, hold) { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}

/// What is of a volume that is gone: [`FsError::NoVolume`].
pub(crate) const GONE: Errno = Errno::ESTALE;

/// Whether two inodes are of different volumes: then nothing moves from one to the other but bytes.
pub(crate) fn are_apart(one: u64, other: u64) -> bool {
    InodeId(one).volume() != InodeId(other).volume()
}

/// Attributes, unless a volume is joined at the directory. The kernel met it before that, and is to look its name up anew: a path walk that meets ESTALE
/// is done again with LOOKUP_REVAL, and then crosses.
pub(crate) fn uncovered(attr: Attr) -> Result<Attr, FsError> {
    if attr.joined == 0 { Ok(attr) } else { Err(FsError::Joined) }
}

pub(crate) struct Adapter {
    pub(crate) tree: Tree,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) lock_kinds: LockKinds,
    permits: Arc<Permits>,
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
        tree: Tree,
        runtime: tokio::runtime::Handle,
        requests_max: usize,
        notifier: Arc<Notifier>,
    ) -> Self {
        Self {
            tree,
            runtime,
            lock_kinds: LockKinds::new(),
            permits: Permits::new(requests_max),
            directories: Arc::default(),
            notifier,
            operations: Arc::default(),
        }
    }

    /// Runs a request about an inode, or a name in a directory. A panic in `work` ends its task only; fuser's reply, dropped, answers EIO.
    pub(crate) fn run<T, W>(
        &self,
        operation: Operation,
        pid: u32,
        about: impl Into<About>,
        work: W,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        self.run_then(operation, pid, about, work, answer, || ());
    }

    /// [`Self::run`], and something more on the same thread once the request is answered and over: whoever asked doesn't wait for that.
    pub(crate) fn run_then<T, W>(
        &self,
        operation: Operation,
        pid: u32,
        about: impl Into<About>,
        work: W,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
        then: impl FnOnce() + Send + 'static,
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        let about = about.into();
        let inode = about.inode;
        let mut running = self.operations.begin(operation, pid, about);
        let volume = InodeId(inode).volume();
        let answers = || {
            let well = |fs: FileSystem| fs.ready().is_ok() && !fs.is_paced();
            self.tree.entered().is_empty() || self.tree.of(inode).is_ok_and(well)
        };
        // Too much is under way: this thread reads nothing more until something is done.
        let Some(permit) = self.permits.take(volume, answers, |room| self.runtime.block_on(room)) else {
            running.outcome(true);
            return answer(Err(Errno::ETIMEDOUT));
        };
        let mut task = Box::pin(async move {
            // Each operation is a trace of its own: its id stands in the debug logs of whoever works on it.
            let work = async {
                running.begins();
                for_process(pid, work).await
            };
            let outcome = trace::operation(operation.name(), work, failed).await;
            running.outcome(outcome.is_err());
            answer(outcome.map_err(Errno::from_i32));
            drop((running, permit));
            then();
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
        if ino.0 == ROOT { self.tree.root().root() } else { ino.0 }
    }

    /// The inode, and what has it; none where its volume is gone.
    pub(crate) fn at(&self, ino: INodeNo) -> Option<(u64, FileSystem)> {
        let inode = self.inode(ino);
        Some((inode, self.tree.of(inode).ok()?))
    }

    /// Whether what the kernel has checked counts. Mount rules are the same for all volumes, and the root's are known from the start.
    pub(crate) fn trusts(&self, fs: &FileSystem, req: &Request) -> bool {
        let root = self.tree.root();
        root.trusts(req.uid()) && (fs.volume() == root.volume() || fs.trusts(req.uid()))
    }

    /// Who asks. The kernel has, by default_permissions, checked the rights; of those whose word isn't taken they are
    /// checked by the region, for the user that it makes of them.
    pub(crate) fn caller(&self, fs: &FileSystem, req: &Request) -> Caller {
        Caller {
            uid: req.uid(),
            gid: req.gid(),
            groups: Vec::new(),
            pid: req.pid(),
            umask: 0,
            kernel_checked: self.trusts(fs, req),
            own_account: false,
        }
    }

    /// Who makes something. A kernel that has applied the umask itself does no harm.
    pub(crate) fn maker(&self, fs: &FileSystem, req: &Request, umask: u32) -> Caller {
        Caller { umask, ..self.caller(fs, req) }
    }

    /// Shows what lookups find.
    pub(crate) fn shows(&self) -> Shows {
        Shows { tree: self.tree.clone(), notifier: self.notifier.clone() }
    }

    /// Answers an entry that was made under that name.
    pub(crate) fn entry<W>(
        &self,
        operation: Operation,
        req: &Request,
        (parent, fs): (u64, FileSystem),
        name: Vec<u8>,
        work: W,
        reply: ReplyEntry,
    ) where
        W: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        self.notifier.changing(parent);
        let notifier = self.notifier.clone();
        let about = About::named(parent, &name);
        self.run(operation, req.pid(), about, work, move |outcome| match outcome {
            Ok(attr) => {
                let how = How::Made(parent);
                show_entry(&fs, &notifier, (parent, &name), Some(&attr), how, reply);
            }
            Err(errno) => reply.error(errno),
        });
    }

    pub(crate) fn empty<W>(
        &self,
        operation: Operation,
        req: &Request,
        about: impl Into<About>,
        work: W,
        reply: ReplyEmpty,
    ) where
        W: Future<Output = Result<(), FsError>> + Send + 'static,
    {
        self.run(operation, req.pid(), about, work, move |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    pub(crate) fn attr<W>(
        &self,
        operation: Operation,
        req: &Request,
        (inode, fs): (u64, FileSystem),
        work: W,
        reply: ReplyAttr,
    ) where
        W: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        let notifier = self.notifier.clone();
        self.run(operation, req.pid(), inode, work, move |outcome| match outcome {
            Ok(attr) => {
                show_attr(&fs, &notifier, &attr, reply);
            }
            Err(errno) => reply.error(errno),
        });
    }

    /// A value of which the caller may want the size first.
    pub(crate) fn xattr<W>(
        &self,
        operation: Operation,
        req: &Request,
        inode: u64,
        size: u32,
        work: W,
        reply: ReplyXattr,
    ) where
        W: Future<Output = Result<Bytes, FsError>> + Send + 'static,
    {
        self.run(operation, req.pid(), inode, work, move |outcome| show_value(outcome, size, reply));
    }

    /// An access control list, which the kernel keeps - that there is none, too - for no given time, but until it asks for the attributes anew.
    pub(crate) fn acl(
        &self,
        req: &Request,
        (inode, fs): (u64, FileSystem),
        name: Vec<u8>,
        size: u32,
        reply: ReplyXattr,
    ) {
        let (caller, notifier) = (self.caller(&fs, req), self.notifier.clone());
        let (whole, before) = (fs.clone(), fs.hold(inode));
        let work = async move { fs.getxattr(&caller, inode, &name).await };
        self.run(Operation::GetXattr, req.pid(), inode, work, move |outcome| {
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
pub(crate) fn show_value(outcome: Result<Bytes, Errno>, size: u32, reply: ReplyXattr) {
    match outcome {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

/// Answers attributes, for as long as they are promised.
pub(crate) fn show_attr(fs: &FileSystem, notifier: &Notifier, attr: &Attr, reply: ReplyAttr) {
    let _showing = notifier.showing();
    let validity = fs.validity(Some(attr), None);
    let time = notifier.telling(attr.inode, validity.attr, How::Known);
    reply.attr(&time, &convert::attr(attr));
}

/// Answers an entry, or that there is none, for as long as that is promised.
pub(crate) fn show_entry(
    fs: &FileSystem,
    notifier: &Notifier,
    (directory, name): (u64, &[u8]),
    attr: Option<&Attr>,
    how: How,
    reply: ReplyEntry,
) {
    let _showing = notifier.showing();
    let validity = fs.validity(attr, Some((directory, name)));
    let entry = notifier.telling_entry(directory, validity.entry, validity.listed);
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

/// Shows what lookups find: in the directory's volume, or across.
pub(crate) struct Shows {
    tree: Tree,
    notifier: Arc<Notifier>,
}

impl Shows {
    /// Answers what was found under a name, or that there is nothing, for as long as that is promised.
    pub fn found(&self, entry: (u64, &[u8]), found: Option<&Found>, reply: ReplyEntry) {
        let Ok(fs) = self.tree.of(entry.0) else { return reply.error(GONE) };
        match found {
            Some(Found { attr, crossed: Some(directory) }) => {
                self.crossing(&fs, entry, directory, attr, reply)
            }
            found => {
                let attr = found.map(|found| &found.attr);
                show_entry(&fs, &self.notifier, entry, attr, How::Met, reply);
            }
        }
    }

    /// Answers the root of a volume, which is joined at a directory of another one. The entry is that one's to promise, and that the volume is joined
    /// there: by the directory's attributes. The root's attributes are its own volume's.
    fn crossing(
        &self,
        fs: &FileSystem,
        entry: (u64, &[u8]),
        directory: &Attr,
        root: &Attr,
        reply: ReplyEntry,
    ) {
        let _showing = self.notifier.showing();
        let validity = fs.validity(Some(directory), Some(entry));
        let kept = validity.entry.min(validity.attr);
        let kept = self.notifier.telling_entry(entry.0, kept, validity.listed);
        let kept = self.notifier.telling_crossing(directory.inode, entry, kept);
        let of_root = self.tree.of(root.inode).map(|fs| fs.validity(Some(root), None).attr);
        let time = self.notifier.telling(root.inode, of_root.unwrap_or_default(), How::Met);
        reply.entry_with_ttls(&time, &kept, &convert::attr(root), Generation(root.generation));
    }
}
