//! The directory tree, and every operation on it.

use bytes::Bytes;
use mooseng_wire::InodeId;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{
    Allocated, Attr, Created, Description, DirEntry, DirLink, DirPage, Done, Entry, FileKind, FsReply,
    FsStat, Names, ReservedInodes, SeekTo, SeekWhence, SetAttr, Told, Value,
};

use super::data::truncate;
use super::{Node, State, errno};

impl State {
    pub(super) fn entry(&self, inode: u64) -> Reply {
        self.nodes
            .get(&inode)
            .map_or_else(|| errno(libc::ENOENT), |n| Reply::Entry(Entry { attr: Some(n.attr) }))
    }

    pub(super) fn child(&self, parent: u64, name: &Bytes) -> Option<u64> {
        self.nodes.get(&parent)?.entries.get(name).copied()
    }

    #[allow(clippy::result_large_err, reason = "the reply is the answer either way")]
    pub(super) fn make(&mut self, parent: u64, name: Bytes, kind: FileKind, mode: u32) -> Result<u64, Reply> {
        let now = self.now();
        let inode = self.id();
        let directory = self.nodes.get_mut(&parent).ok_or_else(|| errno(libc::ENOENT))?;
        if directory.entries.contains_key(&name) {
            return Err(errno(libc::EEXIST));
        }
        directory.entries.insert(name, inode);
        directory.attr.mtime_ns = now;
        let nlink = if kind == FileKind::Directory { 2 } else { 1 };
        let attr = Attr {
            inode,
            kind: kind.into(),
            mode,
            nlink,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            ..Attr::default()
        };
        let no_acls = kind == FileKind::Directory;
        let attr = Attr { no_xattrs: true, no_acls, ..attr };
        self.nodes.insert(inode, Node { attr, ..Node::default() });
        Ok(inode)
    }

    pub(super) fn unlink(&mut self, parent: u64, name: &Bytes, directory: bool) -> Reply {
        let Some(inode) = self.child(parent, name) else { return errno(libc::ENOENT) };
        if let Some(node) = self.nodes.get_mut(&inode) {
            let is_directory = node.attr.kind() == FileKind::Directory;
            match (directory, is_directory) {
                (true, false) => return errno(libc::ENOTDIR),
                (false, true) => return errno(libc::EISDIR),
                (true, true) if !node.entries.is_empty() => return errno(libc::ENOTEMPTY),
                _ => {}
            }
            node.attr.nlink = if is_directory { 0 } else { node.attr.nlink - 1 };
        }
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.entries.remove(name);
        }
        self.reap(inode);
        Reply::Done(Done {})
    }

    pub(super) fn run(&mut self, op: Op, chunkservers: &[String], copies: usize) -> Reply {
        let made = |s: &Self, made: Result<u64, Reply>| made.map_or_else(|e| e, |inode| s.entry(inode));
        match op {
            Op::Lookup(o) => {
                self.child(o.parent, &o.name).map_or_else(|| errno(libc::ENOENT), |inode| self.entry(inode))
            }
            Op::GetAttr(o) => self.entry(o.inode),
            Op::Acquire(o) => self.entry(o.inode),
            Op::Reserve(o) => self.reserve(&o),
            Op::Sync(_) => {
                self.syncs += 1;
                Reply::Done(Done {})
            }
            Op::Pace(_) => Reply::Done(Done {}),
            Op::HoldAlone(o) => self.entry(o.inode),
            Op::HoldFiles(o) => {
                let attr = |inode: &u64| self.nodes.get(inode).map(|node| node.attr);
                let entry =
                    |inode: &u64| DirEntry { inode: *inode, attr: attr(inode), ..DirEntry::default() };
                Reply::DirPage(DirPage { entries: o.inodes.iter().map(entry).collect(), end: true })
            }
            Op::ReserveInodes(o) => {
                let first = InodeId::new(self.volume, self.last_id + 1).0;
                self.last_id += u64::from(o.count);
                Reply::ReservedInodes(ReservedInodes { first, count: o.count })
            }
            Op::Tell(o) => {
                let mut replies = Vec::new();
                for change in o.changes {
                    self.given_id = (change.inode != 0).then_some(change.inode);
                    let op = change.request.and_then(|request| request.op);
                    let reply = op.map(|op| self.run(op, chunkservers, copies));
                    self.given_id = None;
                    replies.push(FsReply { reply });
                }
                Reply::Told(Told { replies })
            }
            Op::TestLock(_)
            | Op::Lock(_)
            | Op::Unlock(_)
            | Op::CancelLock(_)
            | Op::HoldLocks(_)
            | Op::RecordLocks(_) => errno(libc::EINVAL),
            Op::Open(o) => self.entry(o.inode),
            Op::Release(_) | Op::Access(_) => Reply::Done(Done {}),
            Op::ReadLink(o) => self
                .nodes
                .get(&o.inode)
                .map_or_else(|| errno(libc::ENOENT), |n| Reply::Value(Value { value: n.target.clone() })),
            Op::ReadDir(o) => self.read_dir(o.inode, o.cookie, o.entries_max, o.plus),
            Op::ReadExtents(o) => self.read_extents(o.inode, o.offset, o.length, chunkservers),
            Op::Seek(o) => match self.nodes.get(&o.inode) {
                Some(node) if o.offset >= node.attr.size => errno(libc::ENXIO),
                Some(node) => Reply::Seek(SeekTo {
                    offset: if o.whence() == SeekWhence::Hole { node.attr.size } else { o.offset },
                }),
                None => errno(libc::ENOENT),
            },
            Op::GetXattr(o) => self
                .nodes
                .get(&o.inode)
                .and_then(|n| n.xattrs.get(&o.name))
                .map_or_else(|| errno(libc::ENODATA), |v| Reply::Value(Value { value: v.clone() })),
            Op::ListXattr(o) => Reply::Names(Names {
                names: self
                    .nodes
                    .get(&o.inode)
                    .map(|n| n.xattrs.keys().cloned().collect())
                    .unwrap_or_default(),
            }),
            Op::StatFs(_) => Reply::StatFs(FsStat {
                bytes_total: 1 << 40,
                bytes_free: 1 << 39,
                bytes_available: 1 << 39,
                files: 1000,
                files_free: 900,
                name_max: 255,
                block_size: 4096,
            }),
            Op::Describe(o) => {
                let links = self.nodes.iter().flat_map(|(&parent, n)| {
                    n.entries
                        .iter()
                        .filter(|(_, i)| **i == o.inode)
                        .map(move |(name, _)| DirLink { parent, name: name.clone() })
                });
                Reply::Description(Description { links: links.collect(), ..Description::default() })
            }
            Op::SetAttr(o) => {
                let now = self.now();
                let Some(node) = self.nodes.get_mut(&o.inode) else { return errno(libc::ENOENT) };
                if let Some(size) = o.size {
                    if let Some(refused) = self.refuse_sizes {
                        return errno(refused);
                    }
                    truncate(node, size);
                    node.attr.mtime_ns = now;
                }
                set_attributes(&mut node.attr, &o, now);
                self.entry(o.inode)
            }
            Op::Create(o) => match self.child(o.parent, &o.name) {
                Some(_) if o.exclusive => errno(libc::EEXIST),
                Some(inode) => {
                    if let Some(node) = self.nodes.get_mut(&inode).filter(|_| o.truncate) {
                        truncate(node, 0);
                    }
                    Reply::Created(Created { attr: self.nodes.get(&inode).map(|n| n.attr), created: false })
                }
                None => match self.make(o.parent, o.name, FileKind::Regular, o.mode) {
                    Ok(inode) => Reply::Created(Created {
                        attr: self.nodes.get(&inode).map(|n| n.attr),
                        created: true,
                    }),
                    Err(reply) => reply,
                },
            },
            Op::Mknod(o) => {
                let inode = self.make(o.parent, o.name.clone(), o.kind(), o.mode);
                made(self, inode)
            }
            Op::Mkdir(o) => {
                let inode = self.make(o.parent, o.name, FileKind::Directory, o.mode);
                made(self, inode)
            }
            Op::Symlink(o) => {
                let inode = self.make(o.parent, o.name, FileKind::Symlink, 0o777);
                if let Some(node) = inode.as_ref().ok().and_then(|i| self.nodes.get_mut(i)) {
                    node.attr.size = o.target.len() as u64;
                    node.target = o.target;
                }
                made(self, inode)
            }
            Op::Link(o) => {
                if self.child(o.new_parent, &o.new_name).is_some() {
                    return errno(libc::EEXIST);
                }
                let Some(node) = self.nodes.get_mut(&o.inode) else { return errno(libc::ENOENT) };
                node.attr.nlink += 1;
                if let Some(parent) = self.nodes.get_mut(&o.new_parent) {
                    parent.entries.insert(o.new_name, o.inode);
                }
                self.entry(o.inode)
            }
            Op::Unlink(o) => self.unlink(o.parent, &o.name, false),
            Op::Rmdir(o) => self.unlink(o.parent, &o.name, true),
            Op::Rename(o) => {
                let Some(inode) = self.child(o.parent, &o.name) else { return errno(libc::ENOENT) };
                let target = self.child(o.new_parent, &o.new_name);
                match target {
                    Some(_) if o.no_replace => return errno(libc::EEXIST),
                    Some(same) if same == inode => return Reply::Done(Done {}),
                    Some(other) if !o.exchange => {
                        let directory =
                            self.nodes.get(&other).is_some_and(|n| n.attr.kind() == FileKind::Directory);
                        let gone = self.unlink(o.new_parent, &o.new_name, directory);
                        if matches!(gone, Reply::Errno(_)) {
                            return gone;
                        }
                    }
                    _ => {}
                }
                if let Some(parent) = self.nodes.get_mut(&o.parent) {
                    parent.entries.remove(&o.name);
                    if let Some(other) = target.filter(|_| o.exchange) {
                        parent.entries.insert(o.name, other);
                    }
                }
                if let Some(parent) = self.nodes.get_mut(&o.new_parent) {
                    parent.entries.insert(o.new_name, inode);
                }
                Reply::Done(Done {})
            }
            Op::SetXattr(o) => {
                let Some(node) = self.nodes.get_mut(&o.inode) else { return errno(libc::ENOENT) };
                match node.xattrs.contains_key(&o.name) {
                    true if o.create => errno(libc::EEXIST),
                    false if o.replace => errno(libc::ENODATA),
                    _ => {
                        node.xattrs.insert(o.name, o.value);
                        node.attr.no_xattrs = false;
                        Reply::Done(Done {})
                    }
                }
            }
            Op::RemoveXattr(o) => match self.nodes.get_mut(&o.inode).and_then(|n| n.xattrs.remove(&o.name)) {
                Some(_) => Reply::Done(Done {}),
                None => errno(libc::ENODATA),
            },
            Op::Write(o) => self.write(o),
            Op::Fallocate(o) => self.fallocate(&o),
            Op::CopyRange(o) => self.copy_range(&o),
            Op::TouchAtime(o) => {
                for touch in o.touches {
                    if let Some(node) = self.nodes.get_mut(&touch.inode) {
                        node.attr.atime_ns = node.attr.atime_ns.max(touch.atime_ns);
                    }
                }
                Reply::Done(Done {})
            }
            Op::AllocateChunk(o) => {
                let fit: Vec<String> =
                    chunkservers.iter().filter(|c| !o.exclude.contains(c)).take(copies).cloned().collect();
                if fit.len() < copies {
                    return errno(libc::EAGAIN);
                }
                let chunk = self.id();
                self.places.insert(chunk, fit);
                Reply::Allocated(Allocated { place: Some(self.place(chunk)), length_max: 4 << 20 })
            }
            Op::SealChunk(o) => match self.sealed.get(&o.chunk) {
                Some(&length) if o.acknowledged > length => errno(libc::EIO),
                Some(_) => Reply::Done(Done {}),
                None => {
                    self.seal(o.chunk, o.acknowledged);
                    Reply::Done(Done {})
                }
            },
            Op::Reap(_) => errno(libc::EPERM),
        }
    }

    pub(super) fn read_dir(&self, inode: u64, cookie: u64, entries_max: u32, plus: bool) -> Reply {
        let Some(node) = self.nodes.get(&inode) else { return errno(libc::ENOENT) };
        // An entry's inode is its cookie: entries stay where they are while others come and go.
        let mut all: Vec<(&Bytes, u64)> = node
            .entries
            .iter()
            .map(|(name, &inode)| (name, inode))
            .filter(|&(_, inode)| inode > cookie)
            .collect();
        all.sort_by_key(|&(_, inode)| inode);
        let end = all.len() <= entries_max as usize;
        let entries = all.into_iter().take(entries_max as usize).filter_map(|(name, inode)| {
            let attr = &self.nodes.get(&inode)?.attr;
            Some(DirEntry {
                name: name.clone(),
                inode,
                kind: attr.kind,
                cookie: inode,
                attr: plus.then_some(*attr),
            })
        });
        Reply::DirPage(DirPage { entries: entries.collect(), end })
    }
}

/// The caller's umask is left to whoever makes the inode.
pub(super) fn masked(mut op: Op, umask: u32) -> Op {
    match &mut op {
        Op::Create(o) => o.mode &= !umask,
        Op::Mknod(o) => o.mode &= !umask,
        Op::Mkdir(o) => o.mode &= !umask,
        _ => {}
    }
    op
}

/// All but the size.
pub(super) fn set_attributes(attr: &mut Attr, o: &SetAttr, now: i64) {
    attr.mode = o.mode.unwrap_or(attr.mode);
    attr.uid = o.uid.unwrap_or(attr.uid);
    attr.gid = o.gid.unwrap_or(attr.gid);
    attr.atime_ns = o.atime_ns.unwrap_or(if o.atime_now { now } else { attr.atime_ns });
    attr.mtime_ns = o.mtime_ns.unwrap_or(if o.mtime_now { now } else { attr.mtime_ns });
    attr.ctime_ns = o.changed_ns.unwrap_or(now);
}
