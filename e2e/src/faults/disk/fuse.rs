//! The kernel's requests. Nothing is cached by the kernel, so that a power loss is seen at once.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, Session, SessionACL, TimeOrNow, WriteFlags,
};

use super::lock;
use super::names::Id;
use super::store::Store;

const TTL: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
const MAX_WRITE: u32 = 1 << 20;
const HANDLE: FileHandle = FileHandle(1);

struct Disk(Arc<Mutex<Store>>);

/// Serves it on `path`.
pub fn mount(store: Arc<Mutex<Store>>, path: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(2);
    config.mount_options =
        vec![MountOption::FSName("mooseng-faults".into()), MountOption::DefaultPermissions];
    Session::new(Disk(store), path, &config)?.spawn()
}

fn error(code: i32) -> Errno {
    Errno::from_i32(code)
}

fn attr(store: &mut Store, id: Id) -> Result<FileAttr, i32> {
    let node = store.node(id)?;
    let (kind, size, blocks) = match &node.bytes {
        Some(bytes) => (FileType::RegularFile, bytes.len(), bytes.blocks()),
        None => (FileType::Directory, 4096, 8),
    };
    Ok(FileAttr {
        ino: INodeNo(id),
        size,
        blocks,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: node.mode as u16,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

impl Disk {
    fn with<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        work(&mut lock(&self.0))
    }

    /// Answers an entry, which the kernel holds from now on.
    fn entry(&self, reply: ReplyEntry, find: impl FnOnce(&mut Store) -> Result<Id, i32>) {
        let found = self.with(|store| {
            let id = find(store)?;
            store.node(id)?.lookups += 1;
            attr(store, id)
        });
        match found {
            Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
            Err(code) => reply.error(error(code)),
        }
    }

    fn empty(&self, reply: ReplyEmpty, work: impl FnOnce(&mut Store) -> Result<(), i32>) {
        match self.with(work) {
            Ok(()) => reply.ok(),
            Err(code) => reply.error(error(code)),
        }
    }

    fn opened(&self, id: Id, by: i64) -> Result<(), i32> {
        self.with(|store| {
            let node = store.node(id)?;
            node.opens = node.opens.saturating_add_signed(by);
            Ok(())
        })
    }
}

impl Filesystem for Disk {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in [InitFlags::FUSE_BIG_WRITES, InitFlags::FUSE_ATOMIC_O_TRUNC] {
            let _ = config.add_capabilities(capability);
        }
        if let Err(nearest) = config.set_max_write(MAX_WRITE) {
            let _ = config.set_max_write(nearest);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.entry(reply, |store| store.look_up(parent.0, name));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.with(|store| {
            if let Ok(node) = store.node(ino.0) {
                node.lookups = node.lookups.saturating_sub(nlookup);
            }
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(|store| attr(store, ino.0)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(code) => reply.error(error(code)),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.with(|store| {
            if let Some(size) = size {
                store.set_len(ino.0, size)?;
            }
            if let Some(mode) = mode {
                store.node(ino.0)?.mode = mode & 0o7777;
            }
            attr(store, ino.0)
        });
        match changed {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(code) => reply.error(error(code)),
        }
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.entry(reply, |store| store.make(parent.0, name, mode, true));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, |store| store.remove(parent.0, name, false));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.empty(reply, |store| store.remove(parent.0, name, true));
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
        let no_replace = match flags.bits() {
            0 => false,
            libc::RENAME_NOREPLACE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        self.empty(reply, |store| store.rename((parent.0, name), (newparent.0, newname), no_replace));
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = match flags.0 & libc::O_TRUNC {
            0 => Ok(()),
            _ => self.with(|store| store.set_len(ino.0, 0)),
        };
        match opened.and_then(|()| self.opened(ino.0, 1)) {
            Ok(()) => reply.opened(HANDLE, FopenFlags::FOPEN_DIRECT_IO),
            Err(code) => reply.error(error(code)),
        }
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.with(|store| {
            let id = match store.look_up(parent.0, name) {
                Ok(_) if flags & libc::O_EXCL != 0 => return Err(libc::EEXIST),
                Ok(id) => id,
                Err(_) => store.make(parent.0, name, mode, false)?,
            };
            let node = store.node(id)?;
            node.lookups += 1;
            node.opens += 1;
            attr(store, id)
        });
        match made {
            Ok(attr) => reply.created(&TTL, &attr, GENERATION, HANDLE, FopenFlags::FOPEN_DIRECT_IO),
            Err(code) => reply.error(error(code)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.with(|store| store.read(ino.0, offset, size as usize)) {
            Ok(bytes) => reply.data(&bytes),
            Err(code) => reply.error(error(code)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with(|store| store.write(ino.0, offset, data)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(code) => reply.error(error(code)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _ = self.opened(ino.0, -1);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.empty(reply, |store| store.flush(ino.0));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.with(|store| store.list(ino.0)) {
            Ok(_) => reply.opened(HANDLE, FopenFlags::empty()),
            Err(code) => reply.error(error(code)),
        }
    }

    /// The offset counts names. A directory that changes while it is listed may show a name twice or not at all, as elsewhere.
    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = match self.with(|store| store.list(ino.0)) {
            Ok(listed) => listed,
            Err(code) => return reply.error(error(code)),
        };
        let dots = [(".".into(), ino.0, true), ("..".into(), ino.0, true)];
        for (n, (name, id, is_dir)) in dots.into_iter().chain(listed).enumerate().skip(offset as usize) {
            let kind = if is_dir { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(id), n as u64 + 1, kind, &name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.empty(reply, |store| store.flush(ino.0));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let space = self.with(|store| {
            let space = nix::sys::statvfs::statvfs(store.objects()).map_err(|e| e as i32)?;
            let free = if store.trouble.full { 0 } else { space.blocks_available() };
            Ok((space, free))
        });
        match space {
            Ok((s, free)) => reply.statfs(
                s.blocks(),
                free,
                free,
                s.files(),
                s.files_free(),
                s.block_size() as u32,
                255,
                s.fragment_size() as u32,
            ),
            Err(code) => reply.error(error(code)),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.empty(reply, |store| {
            let end = offset + length;
            let is = store.node(ino.0)?.bytes.as_ref().map_or(0, |b| b.len());
            if end > is { store.set_len(ino.0, end) } else { Ok(()) }
        });
    }
}
