//! A FUSE filesystem that passes everything on to a directory: what a filesystem in user space can reach on this machine.
//!
//! It is served by the same library as MooseNG's mount, with everything cached by the kernel that the kernel can cache, since nobody else
//! changes the directory: entries (absent ones too) and attributes for a day, pages across opens, directory listings, symlinks. Requests
//! and threads are sized generously. It holds an O_PATH descriptor for each inode that the kernel holds, as libfuse's passthrough_ll does.
//!
//! - [`Passthrough`] answers the requests; each is one or two system calls, made by the thread that read it.
//! - `inodes` is what the kernel holds, `directory` an open directory, `convert` stat(2)'s words in FUSE's.
//!
//! The writeback cache is off, as it is in MooseNG's mount. Extended attributes and locks aren't passed on.

mod convert;
mod directory;
mod inodes;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};

use directory::Directory;
use inodes::Inodes;

/// Nobody else changes the directory.
const TTL: Duration = Duration::from_secs(86_400);
const GENERATION: Generation = Generation(0);
const MAX_WRITE: u32 = 1 << 20;
const MAX_BACKGROUND: u16 = 128;
/// A request blocks its thread: enough for what four jobs keep under way, read-ahead included.
const THREADS: usize = 8;
/// Above libfuse's default, and the same as MooseNG's mount has.
const READ_AHEAD_KB: u32 = 4096;
/// Shown behind `fuse.` in the table of mounts.
pub const SUBTYPE: &str = "mooseng-passthrough";

/// As in MooseNG's mount one by one, for fuser drops a whole set in which one is missing.
/// No AUTO_INVAL_DATA: pages are never dropped. No HANDLE_KILLPRIV_V2: the kernel clears setuid itself, and asks for no extended
/// attribute first once the first such request was answered ENOSYS.
const CAPABILITIES: [InitFlags; 8] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
];

type Result<T> = std::result::Result<T, Errno>;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The filesystem.
#[derive(Debug)]
pub struct Passthrough {
    inodes: Inodes,
    files: Handles<File>,
    directories: Handles<Mutex<Directory>>,
}

/// What is open, by handle.
#[derive(Debug)]
struct Handles<T> {
    last: AtomicU64,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { last: AtomicU64::new(0), open: RwLock::default() }
    }
}

impl<T> Handles<T> {
    fn add(&self, value: T) -> FileHandle {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(value));
        FileHandle(handle)
    }
    fn get(&self, handle: FileHandle) -> Result<Arc<T>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }
    fn remove(&self, handle: FileHandle) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
    }
}

/// Serves `dir` on `mount` until that is unmounted.
pub fn serve(dir: &Path, mount: &Path) -> io::Result<()> {
    raise_descriptor_limit();
    rustix::process::umask(Mode::empty());
    let filesystem = Passthrough::new(dir)?;
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config.mount_options = vec![
        MountOption::FSName(dir.display().to_string()),
        MountOption::Subtype(SUBTYPE.into()),
        MountOption::DefaultPermissions,
    ];
    let session = Session::new(filesystem, mount, &config)?;
    // stat(2) of the mount would need a server that runs: the device's number is in the table of mounts.
    if let Some(device) = crate::mounts::device_of(mount)? {
        std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KB.to_string())?;
    }
    session.run()
}

/// A descriptor for each inode that the kernel holds.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const WANTED: u64 = 1 << 20;
    let raised = Rlimit { current: Some(WANTED), maximum: Some(WANTED) };
    if setrlimit(Resource::Nofile, raised).is_err() {
        // Not root: as far as it goes.
        let hard = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard });
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

/// The way around O_PATH descriptors where a call doesn't take them.
fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn mode_of(mode: u32) -> Mode {
    Mode::from_raw_mode((mode & 0o7777) as RawMode)
}

/// The kernel sends offsets, also of appends: the backing file is written where it says.
fn open_flags(flags: i32) -> OFlags {
    let dropped = libc::O_APPEND | libc::O_NOFOLLOW | libc::O_CREAT | libc::O_EXCL;
    OFlags::from_bits_retain((flags & !dropped) as u32) | OFlags::CLOEXEC
}

impl Passthrough {
    /// Passes on to `dir`.
    pub fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self { inodes: Inodes::new(dir)?, files: Handles::default(), directories: Handles::default() })
    }

    fn fd(&self, ino: INodeNo) -> Result<Arc<OwnedFd>> {
        self.inodes.get(ino).map_err(errno)
    }

    fn attr(&self, stat: &Stat) -> FileAttr {
        convert::attr(self.inodes.number(stat.st_ino), stat)
    }

    fn entry(&self, parent: &OwnedFd, name: &OsStr) -> Result<FileAttr> {
        self.inodes.look_up(parent, name).map(|stat| self.attr(&stat)).map_err(errno)
    }

    /// Makes a name with `make`, gives it to whoever asks, and answers its attributes.
    fn made(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        make: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
    ) -> Result<FileAttr> {
        let parent = self.fd(parent)?;
        make(&parent).map_err(errno)?;
        self.give(req, &parent, name)?;
        self.entry(&parent, name)
    }

    fn give(&self, req: &Request, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        if (req.uid(), req.gid()) == (0, 0) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(req.uid()), Gid::from_raw(req.gid()));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(errno)
    }

    fn open_file(&self, ino: INodeNo, flags: i32) -> Result<FileHandle> {
        let path = proc_path(&*self.fd(ino)?);
        let fd = rustix::fs::openat(CWD, path, open_flags(flags), Mode::empty()).map_err(errno)?;
        Ok(self.files.add(File::from(fd)))
    }

    fn create_file(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(FileAttr, FileHandle)> {
        let parent = self.fd(parent)?;
        let exclusive = OFlags::from_bits_retain((flags & libc::O_EXCL) as u32);
        let how = open_flags(flags) | exclusive | OFlags::CREATE | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&parent, name, how, mode_of(mode)).map_err(errno)?;
        self.give(req, &parent, name)?;
        let attr = self.entry(&parent, name)?;
        Ok((attr, self.files.add(File::from(fd))))
    }

    fn change(&self, ino: INodeNo, fh: Option<FileHandle>, change: Change) -> Result<FileAttr> {
        let fd = self.fd(ino)?;
        if let Some(mode) = change.mode {
            rustix::fs::chmodat(CWD, proc_path(&fd), mode_of(mode), AtFlags::empty()).map_err(errno)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            rustix::fs::chownat(&fd, "", uid, gid, AtFlags::EMPTY_PATH).map_err(errno)?;
        }
        if let Some(size) = change.size {
            match fh {
                Some(fh) => self.files.get(fh)?.set_len(size)?,
                None => File::options().write(true).open(proc_path(&fd))?.set_len(size)?,
            }
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps {
                last_access: time_to_set(change.atime),
                last_modification: time_to_set(change.mtime),
            };
            rustix::fs::utimensat(&fd, "", &times, AtFlags::EMPTY_PATH).map_err(errno)?;
        }
        self.inodes.stat(ino).map(|stat| self.attr(&stat)).map_err(errno)
    }

    fn open_directory(&self, ino: INodeNo) -> Result<FileHandle> {
        let fd = self.fd(ino)?;
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::openat(&fd, ".", how, Mode::empty()).map_err(errno)?;
        Ok(self.directories.add(Mutex::new(Directory::new(open))))
    }

    fn list(&self, fh: FileHandle, offset: u64, take: impl FnMut(&directory::Entry) -> bool) -> Result<()> {
        let directory = self.directories.get(fh)?;
        let mut directory = directory.lock().unwrap_or_else(PoisonError::into_inner);
        directory.each(offset, take).map_err(errno)
    }

    /// Attributes of an entry for READDIRPLUS, and whether the kernel holds the inode by it. Dots are passed without.
    fn entry_plus(&self, ino: INodeNo, entry: &directory::Entry) -> Result<Option<(FileAttr, bool)>> {
        if matches!(entry.name.as_bytes(), b"." | b"..") {
            let attr = self.inodes.stat(ino).map(|stat| self.attr(&stat)).map_err(errno)?;
            return Ok(Some((FileAttr { ino: self.inodes.number(entry.ino), ..attr }, false)));
        }
        match self.entry(&*self.fd(ino)?, &entry.name) {
            Ok(attr) => Ok(Some((attr, true))),
            // Removed meanwhile.
            Err(error) if error.code() == libc::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What SETATTR asks for.
struct Change {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
}

fn time_to_set(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => convert::timespec(time),
    }
}

/// An entry that says for how long a name is absent.
fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn reply_entry(outcome: Result<FileAttr>, reply: ReplyEntry) {
    match outcome {
        Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
        Err(error) => reply.error(error),
    }
}

fn reply_empty(outcome: Result<()>, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn reply_attr(outcome: Result<FileAttr>, reply: ReplyAttr) {
    match outcome {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            let _ = config.add_capabilities(capability);
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

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.fd(parent).and_then(|parent| self.entry(&parent, name)) {
            Err(error) if error.code() == libc::ENOENT => reply.entry(&TTL, &absent(), GENERATION),
            outcome => reply_entry(outcome, reply),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.inodes.forget(ino, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(self.inodes.stat(ino).map(|stat| self.attr(&stat)).map_err(errno), reply);
    }

    fn setattr(
        &self,
        _req: &Request,
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
        reply_attr(self.change(ino, fh, Change { mode, uid, gid, size, atime, mtime }), reply);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.fd(ino).and_then(|fd| rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(errno));
        match target {
            Ok(target) => reply.data(target.to_bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = rustix::fs::FileType::from_raw_mode(mode as RawMode);
        let made = self.made(req, parent, name, |parent| {
            rustix::fs::mknodat(parent, name, kind, mode_of(mode), u64::from(rdev))
        });
        reply_entry(made, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let made = self.made(req, parent, name, |parent| rustix::fs::mkdirat(parent, name, mode_of(mode)));
        reply_entry(made, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let gone = self
            .fd(parent)
            .and_then(|parent| rustix::fs::unlinkat(&parent, name, AtFlags::empty()).map_err(errno));
        reply_empty(gone, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let gone = self
            .fd(parent)
            .and_then(|parent| rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR).map_err(errno));
        reply_empty(gone, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made =
            self.made(req, parent, link_name, |parent| rustix::fs::symlinkat(target, parent, link_name));
        reply_entry(made, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        let renamed = self.fd(parent).and_then(|from| {
            let to = self.fd(newparent)?;
            rustix::fs::renameat_with(&from, name, &to, newname, flags).map_err(errno)
        });
        reply_empty(renamed, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let linked = self.fd(ino).and_then(|fd| {
            let parent = self.fd(newparent)?;
            rustix::fs::linkat(CWD, proc_path(&fd), &parent, newname, AtFlags::SYMLINK_FOLLOW)
                .map_err(errno)?;
            self.entry(&parent, newname)
        });
        reply_entry(linked, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_file(ino, flags.0) {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.create_file(req, parent, name, mode, flags) {
            Ok((attr, handle)) => {
                reply.created(&TTL, &attr, GENERATION, handle, FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let read = self.files.get(fh).and_then(|file| Ok(file.read_at(&mut buffer[..size], offset)?));
            match read {
                Ok(count) => reply.data(&buffer[..count]),
                Err(error) => reply.error(error),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.files.get(fh).and_then(|file| Ok(file.write_all_at(data, offset)?)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    /// The backing file may have an error to tell at a close: closed is a duplicate, as passthrough_ll does.
    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let closed = self.files.get(fh).and_then(|file| {
            let duplicate = file.as_fd().try_clone_to_owned()?;
            nix::unistd::close(duplicate).map_err(|e| Errno::from_i32(e as i32))
        });
        reply_empty(closed, reply);
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
        self.files.remove(fh);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let synced = self.files.get(fh).and_then(|file| {
            let outcome = if datasync { file.sync_data() } else { file.sync_all() };
            outcome.map_err(Errno::from)
        });
        reply_empty(synced, reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.open_directory(ino) {
            Ok(handle) => {
                reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.list(fh, offset, |entry| {
            let ino = self.inodes.number(entry.ino);
            !reply.add(ino, entry.next, convert::kind(entry.kind), &entry.name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut failed = None;
        let listed = self.list(fh, offset, |entry| match self.entry_plus(ino, entry) {
            Ok(Some((attr, held))) => {
                let full = reply.add(attr.ino, entry.next, &entry.name, &TTL, &attr, GENERATION);
                if full && held {
                    self.inodes.forget(attr.ino, 1);
                }
                !full
            }
            Ok(None) => true,
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        match listed.and(failed.map_or(Ok(()), Err)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.directories.remove(fh);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let synced = self.directories.get(fh).and_then(|directory| {
            let directory = directory.lock().unwrap_or_else(PoisonError::into_inner);
            let sync = if datasync { rustix::fs::fdatasync } else { rustix::fs::fsync };
            sync(directory.fd().as_fd()).map_err(errno)
        });
        reply_empty(synced, reply);
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.fd(ino).and_then(|fd| rustix::fs::fstatvfs(&fd).map_err(errno)) {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(error) => reply.error(error),
        }
    }
}
