//! fuser's callbacks: convert, call, answer. Nothing is decided here.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use mooseng_client::{Caller, RenameMode, SeekWhence, SetAttr, WriteMode, WriteOptions, is_acl};

use crate::answers::{Adapter, GONE, are_apart, open_flags, show_attr, uncovered};
use crate::convert;
use crate::locks::KernelLock;
use crate::operations::{About, Operation};
use crate::told::How;
use crate::waiting::groups_of;

const MAX_WRITE: u32 = 1 << 20;
/// Reads ahead, and reads and writes beside the page cache, that the kernel has under way at once. Those of a volume that doesn't answer keep others waiting.
const MAX_BACKGROUND: u16 = 512;

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
        let began = Instant::now();
        let Some((parent, fs)) = self.at(parent) else { return reply.error(GONE) };
        // What is known is answered on this thread: a wake-up costs more than the answer.
        if self.trusts(&fs, req)
            && let Some(found) = self.tree.known(parent, name.as_bytes())
        {
            let _known = self.operations.known(Operation::Lookup, began);
            return self.shows().found((parent, name.as_bytes()), found.as_ref(), reply);
        }
        let (tree, caller, name, shows) =
            (self.tree.clone(), self.caller(&fs, req), owned(name), self.shows());
        let asked = name.clone();
        let work = async move { tree.lookup(&caller, parent, &asked).await };
        let about = About::named(parent, &name);
        self.run(Operation::Lookup, req.pid(), about, work, move |outcome| match outcome {
            Ok(found) => shows.found((parent, &name), found.as_ref(), reply),
            Err(errno) => reply.error(errno),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.notifier.given_back(self.inode(ino), nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let began = Instant::now();
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        if let Some(attr) = fs.attr_at_once(ino) {
            let _known = self.operations.known(Operation::GetAttr, began);
            return match uncovered(attr) {
                Ok(attr) => show_attr(&fs, &self.notifier, &attr, reply),
                Err(error) => reply.error(Errno::from_i32(error.errno())),
            };
        }
        let (whole, caller) = (fs.clone(), self.caller(&fs, req));
        let work = async move { uncovered(fs.getattr(&caller, ino).await?) };
        self.attr(Operation::GetAttr, req, (ino, whole), work, reply);
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
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let given = |time: Option<TimeOrNow>| match time {
            Some(TimeOrNow::SpecificTime(time)) => (Some(convert::nanoseconds_to_set(time)), false),
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
        let caller = self.caller(&fs, req);
        let work = async move {
            match fh.filter(|_| size.is_some()) {
                Some(handle) => fs.setattr_open(&caller, handle.0, change).await,
                None => fs.setattr(&caller, change).await,
            }
        };
        self.run(Operation::SetAttr, req.pid(), ino, work, move |outcome| match outcome {
            // For no time: older kernels believe it although they were told to forget it meanwhile.
            Ok(attr) => reply.attr(&Duration::ZERO, &convert::attr(&attr)),
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let caller = self.caller(&fs, req);
        self.run(
            Operation::ReadLink,
            req.pid(),
            ino,
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
        let Some((parent, fs)) = self.at(parent) else { return reply.error(GONE) };
        let Some(kind) = convert::kind_of_mode(mode) else { return reply.error(Errno::EINVAL) };
        let (whole, caller, name) = (fs.clone(), self.maker(&fs, req, umask), owned(name));
        let made = name.clone();
        self.entry(
            Operation::MakeNode,
            req,
            (parent, whole),
            name,
            async move { fs.mknod(&caller, parent, &made, kind, mode & 0o7777, rdev).await },
            reply,
        );
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let Some((parent, fs)) = self.at(parent) else { return reply.error(GONE) };
        let (whole, caller, name) = (fs.clone(), self.maker(&fs, req, umask), owned(name));
        let made = name.clone();
        let work = async move { fs.mkdir(&caller, parent, &made, mode & 0o7777).await };
        self.entry(Operation::MakeDirectory, req, (parent, whole), name, work, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((parent, fs)) = self.at(parent) else { return reply.error(GONE) };
        let (caller, name) = (self.caller(&fs, req), owned(name));
        self.notifier.changing(parent);
        self.empty(
            Operation::Unlink,
            req,
            About::named(parent, &name),
            async move { fs.unlink(&caller, parent, &name).await },
            reply,
        );
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((parent, fs)) = self.at(parent) else { return reply.error(GONE) };
        let (caller, name) = (self.caller(&fs, req), owned(name));
        self.notifier.changing(parent);
        self.empty(
            Operation::RemoveDirectory,
            req,
            About::named(parent, &name),
            async move { fs.rmdir(&caller, parent, &name).await },
            reply,
        );
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let Some((parent, fs)) = self.at(parent) else { return reply.error(GONE) };
        let (whole, caller) = (fs.clone(), self.caller(&fs, req));
        let (name, target) = (owned(link_name), owned(target.as_os_str()));
        let made = name.clone();
        let work = async move { fs.symlink(&caller, parent, &made, &target).await };
        self.entry(Operation::Symlink, req, (parent, whole), name, work, reply);
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
        let Some((parent, fs)) = self.at(parent) else { return reply.error(GONE) };
        let newparent = self.inode(newparent);
        if are_apart(parent, newparent) {
            return reply.error(Errno::EXDEV);
        }
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (caller, name, newname) = (self.caller(&fs, req), owned(name), owned(newname));
        self.notifier.changing(parent);
        self.notifier.changing(newparent);
        self.empty(
            Operation::Rename,
            req,
            About::named(parent, &name),
            async move { fs.rename(&caller, parent, &name, newparent, &newname, mode).await },
            reply,
        );
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let Some((newparent, fs)) = self.at(newparent) else { return reply.error(GONE) };
        let ino = self.inode(ino);
        if are_apart(ino, newparent) {
            return reply.error(Errno::EXDEV);
        }
        let (whole, caller, name) = (fs.clone(), self.caller(&fs, req), owned(newname));
        let made = name.clone();
        let work = async move { fs.link(&caller, ino, newparent, &made).await };
        self.entry(Operation::Link, req, (newparent, whole), name, work, reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let caller = self.caller(&fs, req);
        let (whole, notifier) = (fs.clone(), self.notifier.clone());
        self.run(
            Operation::Open,
            req.pid(),
            ino,
            async move { fs.open(&caller, ino, flags.0).await },
            move |outcome| match outcome {
                Ok(opened) => {
                    notifier.mappings.opened(ino, flags.0);
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
        let Some((parent, fs)) = self.at(parent) else { return reply.error(GONE) };
        let (whole, caller, name) = (fs.clone(), self.maker(&fs, req, umask), owned(name));
        let (notifier, made) = (self.notifier.clone(), name.clone());
        self.notifier.changing(parent);
        self.run(
            Operation::Create,
            req.pid(),
            About::named(parent, &name),
            async move {
                fs.create_as(&caller, || groups_of(caller.pid), (parent, &made), mode & 0o7777, flags).await
            },
            move |outcome| match outcome {
                Ok(created) => {
                    let _showing = notifier.showing();
                    let inode = created.attr.inode;
                    notifier.mappings.opened(inode, flags);
                    let how = open_flags(flags, &notifier, inode, whole.hold(inode));
                    let validity = whole.validity(Some(&created.attr), Some((parent, &name)));
                    // One time for both.
                    let both = validity.entry.min(validity.attr);
                    let validity = notifier.telling_entry(parent, both, validity.listed);
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
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let caller = self.caller(&fs, req);
        let (whole, notifier) = (fs.clone(), self.notifier.clone());
        notifier.giving_pages(ino);
        self.run(
            Operation::Read,
            req.pid(),
            ino,
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
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        // Pages of a shared mapping go where they belong, also through a handle for appending. The flags are today's: fcntl may have
        // changed them since the open.
        let append = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let mode = if append { WriteMode::Append } else { WriteMode::At };
        let of_mapping = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kill_suidgid = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let options = WriteOptions { mode, kill_suidgid, of_mapping };
        let (caller, data) = (self.caller(&fs, req), Bytes::copy_from_slice(data));
        let length = data.len() as u32;
        let (whole, notifier) = (fs.clone(), self.notifier.clone());
        // Pages that are written whole the kernel has without a read.
        notifier.giving_pages(ino);
        let writing = (!of_mapping).then(|| notifier.mappings.writing(ino));
        let answered = fs.clone();
        self.run_then(
            Operation::Write,
            req.pid(),
            ino,
            async move { fs.write(&caller, fh.0, offset, data, options).await },
            move |outcome| {
                match outcome {
                    Ok(_) => {
                        let _showing = notifier.showing();
                        notifier.gives_pages(ino, whole.hold(ino));
                        reply.written(length);
                    }
                    Err(errno) => reply.error(errno),
                }
                drop(writing);
            },
            move || answered.write_answered(fh.0),
        );
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        self.close_descriptor(req, (ino, fs), fh, lock_owner, reply);
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let lock = KernelLock { start, end, kind: typ, pid };
        self.get_lock(req, (ino, fs), (fh, lock_owner), lock, reply);
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
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let lock = KernelLock { start, end, kind: typ, pid };
        self.set_lock(req, (ino, fs), (fh, lock_owner), lock, sleep, reply);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.notifier.mappings.closed(self.inode(ino), flags.0);
        // Nobody waits for it: an answer that came after an unmount would only be one to nobody. And it must not be given up: pid 0.
        reply.ok();
        let Some((ino, fs)) = self.at(ino) else { return };
        self.run(Operation::Release, 0, ino, async move { fs.release(fh.0).await }, |_| ());
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        self.empty(Operation::Sync, req, ino, async move { fs.fsync(fh.0, datasync).await }, reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let Some((_, fs)) = self.at(ino) else { return reply.error(GONE) };
        reply.opened(FileHandle(self.directories.open(fs.losses())), FopenFlags::empty());
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let Some(at) = self.at(ino) else { return reply.error(GONE) };
        self.list(req, at, fh, offset, reply);
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
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let heard = self.directories.heard(fh.0);
        let synced = async move { fs.fsync_open_directory(ino, &heard).await };
        self.empty(Operation::SyncDirectory, req, ino, synced, reply);
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let caller = self.caller(&fs, req);
        self.run(
            Operation::StatFs,
            req.pid(),
            ino,
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
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        if !is_answered(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (create, replace) = (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0);
        let mut caller = self.caller(&fs, req);
        if is_acl(name.as_bytes()) && caller.uid != 0 {
            // Whether setgid stays is for us to say, and depends on them: fuser doesn't know FUSE_SETXATTR_ACL_KILL_SGID.
            caller.groups = groups_of(req.pid());
        }
        let (name, value) = (owned(name), value.to_vec());
        self.empty(
            Operation::SetXattr,
            req,
            ino,
            async move { fs.setxattr(&caller, ino, &name, &value, create, replace).await },
            reply,
        );
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        if !is_answered(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        if is_acl(name.as_bytes()) {
            return self.acl(req, (ino, fs), owned(name), size, reply);
        }
        let (caller, name) = (self.caller(&fs, req), owned(name));
        self.xattr(
            Operation::GetXattr,
            req,
            ino,
            size,
            async move { fs.getxattr(&caller, ino, &name).await },
            reply,
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let caller = self.caller(&fs, req);
        let work = async move {
            let names = fs.listxattr(&caller, ino).await?;
            Ok(names.iter().flat_map(|name| name.iter().copied().chain([0])).collect())
        };
        self.xattr(Operation::ListXattr, req, ino, size, work, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        if !is_answered(name) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let (caller, name) = (self.caller(&fs, req), owned(name));
        self.empty(
            Operation::RemoveXattr,
            req,
            ino,
            async move { fs.removexattr(&caller, ino, &name).await },
            reply,
        );
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let caller = Caller { kernel_checked: false, ..self.caller(&fs, req) };
        self.empty(
            Operation::Access,
            req,
            ino,
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
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        let whence = match whence {
            libc::SEEK_DATA => SeekWhence::Data,
            libc::SEEK_HOLE => SeekWhence::Hole,
            // The kernel answers the others itself.
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let caller = self.caller(&fs, req);
        self.run(
            Operation::Seek,
            req.pid(),
            ino,
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
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some((ino, fs)) = self.at(ino) else { return reply.error(GONE) };
        // The kernel sends dirty pages of the range before it asks, and drops what it has of it after a success.
        let caller = self.caller(&fs, req);
        self.empty(
            Operation::Allocate,
            req,
            ino,
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
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel sends dirty pages of both ranges before it asks, and drops what it has of the target's after a success. Where it hears EXDEV it
        // copies through its pages.
        let Some((ino_out, fs)) = self.at(ino_out) else { return reply.error(GONE) };
        if are_apart(self.inode(ino_in), ino_out) {
            return reply.error(Errno::EXDEV);
        }
        let caller = self.caller(&fs, req);
        let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
        // The answer has room for 32 bits.
        let length = len.min(u64::from(u32::MAX));
        let work = async move { fs.copy_range(&caller, from, to, length).await };
        self.run(Operation::CopyRange, req.pid(), ino_out, work, move |outcome| match outcome {
            Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        });
    }
}

/// Of the system's attributes there are the access control lists.
fn is_answered(name: &OsStr) -> bool {
    !name.as_bytes().starts_with(b"system.") || is_acl(name.as_bytes())
}
