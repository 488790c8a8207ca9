//! A small POSIX filesystem in memory: what the namespace is compared with.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mooseng_namespace::quota::{Account, Usage};
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;

use crate::harness::chunk_byte;
use crate::model_acl::{self, ACCESS, DEFAULT};

pub const EPERM: u32 = 1;
pub const ENOENT: u32 = 2;
pub const ENXIO: u32 = 6;
pub const EACCES: u32 = 13;
pub const EBUSY: u32 = 16;
pub const EEXIST: u32 = 17;
pub const EXDEV: u32 = 18;
pub const ENODEV: u32 = 19;
pub const ENOTDIR: u32 = 20;
pub const EISDIR: u32 = 21;
pub const EINVAL: u32 = 22;
pub const ENAMETOOLONG: u32 = 36;
pub const ENOTEMPTY: u32 = 39;
pub const ELOOP: u32 = 40;
pub const ENODATA: u32 = 61;
pub const EREMOTE: u32 = 66;
pub const ENOTSUP: u32 = 95;
pub const ESTALE: u32 = 116;
pub const EDQUOT: u32 = 122;

#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    Attr(Attr),
    Created(Attr, bool),
    Written(Attr, u64),
    /// With how many bytes are done, and whether more remains.
    Ranged(Attr, u64, bool),
    Value(Bytes),
    Names(BTreeSet<Bytes>),
    Offset(u64),
    Done,
    /// The model has no opinion.
    Whatever,
}

type Answer = Result<Expect, u32>;

#[derive(Clone, Debug, Default)]
pub struct Node {
    pub kind: i32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// None is a byte of a hole.
    pub content: Vec<Option<u8>>,
    pub target: Bytes,
    pub entries: BTreeMap<Vec<u8>, u64>,
    pub xattrs: BTreeMap<Bytes, Bytes>,
    pub times: [i64; 3],
    /// Names of anything but a directory.
    pub names: u32,
    pub parent: u64,
    pub removed: bool,
    /// Until when it is in the trash.
    pub trash_until: Option<i64>,
    /// Where and as what it was removed, and when.
    pub deletion: (u64, Vec<u8>, i64),
    /// It waits for the reaper.
    pub orphan: bool,
    /// The directory quota that it counts for.
    pub quota: u64,
    /// The storage class.
    pub class: u32,
    /// Bytes that count for nobody since it went to the trash.
    pub let_off: Option<i64>,
    /// Access control lists.
    pub access: Option<Vec<model_acl::Entry>>,
    pub default: Option<Vec<model_acl::Entry>>,
    /// The volume that is joined at a directory.
    pub joined: u32,
}

#[derive(Default)]
pub struct Model {
    pub nodes: BTreeMap<u64, Node>,
    pub retention_s: i64,
    /// Bytes and inodes that accounts may have at most.
    pub limits: BTreeMap<Account, (i64, i64)>,
    /// Directories with quotas that aren't being cleared.
    pub quotas: BTreeSet<u64>,
    /// What counted before the operation, for whom there is a limit.
    before: BTreeMap<Account, Usage>,
}

const DIR: i32 = FileKind::Directory as i32;
const FILE: i32 = FileKind::Regular as i32;
const LINK: i32 = FileKind::Symlink as i32;

fn member(who: &Caller, gid: u32) -> bool {
    who.gid == gid || who.groups.contains(&gid)
}

/// One request's surroundings.
pub struct At<'a> {
    pub who: &'a Caller,
    pub now: i64,
    /// The id that a made inode got.
    pub id: u64,
}

impl Node {
    fn bytes(&self) -> i64 {
        self.content.iter().flatten().count() as i64
    }
    pub fn is_living_directory(&self) -> bool {
        self.kind == DIR && !self.removed
    }
    pub fn is_directory(&self) -> bool {
        self.kind == DIR
    }
    fn can(&self, who: &Caller, mask: u32) -> bool {
        if who.uid == 0 {
            return mask & 1 == 0 || self.kind == DIR || self.mode & 0o111 != 0;
        }
        let bits = match () {
            () if who.uid == self.uid => self.mode >> 6,
            () if self.access.is_some() => {
                return self.access.as_ref().is_some_and(|list| self.list_allows(list, who, mask));
            }
            () if member(who, self.gid) => self.mode >> 3,
            () => self.mode,
        };
        bits & mask == mask
    }
    fn need(&self, who: &Caller, mask: u32) -> Result<(), u32> {
        if who.kernel_checked || self.can(who, mask) { Ok(()) } else { Err(EACCES) }
    }
    pub fn owned(&self, who: &Caller) -> bool {
        who.kernel_checked || who.uid == 0 || who.uid == self.uid
    }
    fn uncovered(&self) -> Result<(), u32> {
        if self.joined == 0 { Ok(()) } else { Err(EREMOTE) }
    }
    fn idle(&self) -> Result<(), u32> {
        if self.joined == 0 { Ok(()) } else { Err(EBUSY) }
    }
    fn strip(&mut self) {
        if self.kind != DIR {
            self.mode &= !0o4000;
            if self.mode & 0o010 != 0 {
                self.mode &= !0o2000;
            }
            self.xattrs.remove(&b"security.capability"[..]);
        }
    }
    fn strip_for(&mut self, who: &Caller, asked: bool) {
        if asked || (who.uid != 0 && !who.kernel_checked) {
            self.strip();
        }
    }
    fn resize(&mut self, size: u64, now: i64) {
        self.orphan |= self.trash_until.is_some() && size == 0 && !self.content.is_empty();
        self.content.resize(size as usize, None);
        self.times[1] = now;
        self.times[2] = now;
    }
}

fn name_ok(name: &[u8]) -> Result<(), u32> {
    match name.len() {
        0 => Err(ENOENT),
        256.. => Err(ENAMETOOLONG),
        _ if name.contains(&b'/') || name.contains(&0) => Err(EINVAL),
        _ => Ok(()),
    }
}

fn dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

impl Model {
    pub fn new() -> Self {
        let root = Node { kind: DIR, mode: 0o755, times: [1; 3], parent: 1, ..Default::default() };
        Self { nodes: BTreeMap::from([(1, root)]), ..Self::default() }
    }

    pub fn attr(&self, id: u64) -> Attr {
        let node = &self.nodes[&id];
        let subdirectories = node.entries.values().filter(|e| self.nodes[e].kind == DIR).count() as u32;
        Attr {
            inode: id,
            kind: node.kind,
            mode: node.mode,
            nlink: match (node.kind, node.removed) {
                (_, true) => 0,
                (DIR, false) => 2 + subdirectories,
                _ => node.names,
            },
            uid: node.uid,
            gid: node.gid,
            rdev: node.rdev,
            size: match node.kind {
                DIR => 4096,
                LINK => node.target.len() as u64,
                _ => node.content.len() as u64,
            },
            // Counted from scratch elsewhere.
            blocks: 0,
            atime_ns: node.times[0],
            mtime_ns: node.times[1],
            ctime_ns: node.times[2],
            generation: 0,
            no_xattrs: node.xattrs.is_empty(),
            no_acls: node.access.is_none() && node.default.is_none(),
            quota: node.quota,
            joined: node.joined,
        }
    }

    /// What counts for an account.
    pub fn usage(&self, account: Account) -> Usage {
        let mut sum = Usage::default();
        for node in self.nodes.values() {
            let counts = match account {
                Account::Class(class) => {
                    // Also what is let off elsewhere.
                    let whole = Usage { bytes: node.bytes(), inodes: 1 };
                    sum = if node.class == class { sum.plus(whole) } else { sum };
                    false
                }
                Account::Directory(id) => node.quota == id,
                Account::User(uid) => node.uid == uid,
            };
            if counts {
                let bytes = node.bytes() - node.let_off.unwrap_or(0);
                sum = sum.plus(Usage { bytes: bytes.max(0), inodes: i64::from(node.let_off.is_none()) });
            }
        }
        sum
    }

    /// Whether something of an account that is over its limit became more.
    fn grew_too_much(&self, before: &BTreeMap<Account, Usage>) -> bool {
        before.iter().any(|(account, before)| {
            let (after, (bytes, inodes)) = (self.usage(*account), self.limits[account]);
            (after.bytes > before.bytes && after.bytes > bytes)
                || (after.inodes > before.inodes && after.inodes > inodes)
        })
    }

    fn usages(&self) -> BTreeMap<Account, Usage> {
        self.limits.keys().map(|account| (*account, self.usage(*account))).collect()
    }

    /// [`Self::apply`], within the limits.
    pub fn apply_within(&mut self, at: &At<'_>, op: &Op) -> Answer {
        if self.limits.is_empty() {
            return self.apply(at, op);
        }
        self.before = self.usages();
        let nodes = self.nodes.clone();
        let answer = self.apply(at, op);
        if answer.is_ok() && self.grew_too_much(&self.before) {
            self.nodes = nodes;
            return Err(EDQUOT);
        }
        answer
    }

    fn node(&self, id: u64) -> Result<&Node, u32> {
        self.nodes.get(&id).ok_or(ESTALE)
    }
    fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }
    fn any_dir(&self, id: u64) -> Result<&Node, u32> {
        let node = self.node(id)?;
        if node.kind == DIR { Ok(node) } else { Err(ENOTDIR) }
    }
    fn dir(&self, id: u64) -> Result<&Node, u32> {
        let node = self.any_dir(id)?;
        node.uncovered()?;
        Ok(node)
    }
    fn writable_dir(&self, id: u64, who: &Caller) -> Result<&Node, u32> {
        let node = self.dir(id)?;
        if node.removed {
            return Err(ENOENT);
        }
        node.need(who, 3)?;
        Ok(node)
    }
    fn file(&self, id: u64) -> Result<&Node, u32> {
        let node = self.node(id)?;
        match node.kind {
            FILE => Ok(node),
            DIR => Err(EISDIR),
            _ => Err(EINVAL),
        }
    }
    fn expect_attr(&self, id: u64) -> Answer {
        Ok(Expect::Attr(self.attr(id)))
    }
    fn touch_dir(&mut self, id: u64, now: i64) {
        let node = self.node_mut(id);
        node.times[1] = now;
        node.times[2] = now;
    }

    pub fn apply(&mut self, at: &At<'_>, op: &Op) -> Answer {
        let who = at.who;
        match op {
            Op::Lookup(r) => self.lookup(r, who),
            Op::GetAttr(r) => {
                self.node(r.inode)?;
                self.expect_attr(r.inode)
            }
            Op::ReadLink(r) => {
                let node = self.node(r.inode)?;
                if node.kind == LINK { Ok(Expect::Value(node.target.clone())) } else { Err(EINVAL) }
            }
            Op::Access(r) => {
                let node = self.node(r.inode)?;
                if node.can(who, r.mask) { Ok(Expect::Done) } else { Err(EACCES) }
            }
            Op::Open(r) => self.open(r, who),
            Op::Release(_) => Ok(Expect::Done),
            Op::Seek(r) => self.seek(r),
            Op::GetXattr(r) => self.get_xattr(r, who),
            Op::ListXattr(r) => {
                let names = self.node(r.inode)?.xattrs.keys();
                let seen = names.filter(|n| who.uid == 0 || !n.starts_with(b"trusted.")).cloned();
                let node = &self.nodes[&r.inode];
                let lists = [(ACCESS, &node.access), (DEFAULT, &node.default)];
                let lists = lists.into_iter().filter(|(_, list)| list.is_some());
                Ok(Expect::Names(seen.chain(lists.map(|(name, _)| Bytes::from_static(name))).collect()))
            }
            Op::SetAttr(r) => self.set_attr(at, r),
            Op::Create(r) => self.create(at, r),
            Op::Mknod(r) => self.mknod(at, r),
            Op::Mkdir(r) => {
                let node = Node { kind: DIR, mode: r.mode & 0o1777, ..Default::default() };
                self.make(at, r.parent, &r.name, node)?;
                self.expect_attr(at.id)
            }
            Op::Symlink(r) => self.symlink(at, r),
            Op::Link(r) => self.link(at, r),
            Op::Unlink(r) => self.unlink(at, r.parent, &r.name),
            Op::Rmdir(r) => self.rmdir(at, r.parent, &r.name),
            Op::Rename(r) => self.rename(at, r),
            Op::SetXattr(r) => self.set_xattr(at, r),
            Op::RemoveXattr(r) => self.remove_xattr(at, r),
            Op::Write(r) => self.write(at, r),
            Op::Fallocate(r) => self.fallocate(at, r),
            Op::CopyRange(r) => self.copy_range(at, r),
            Op::TouchAtime(r) => {
                for touch in &r.touches {
                    if let Some(node) = self.nodes.get_mut(&touch.inode) {
                        node.times[0] = node.times[0].max(touch.atime_ns);
                    }
                }
                Ok(Expect::Done)
            }
            Op::Reap(r) => {
                for inode in &r.inodes {
                    match self.nodes.get_mut(inode) {
                        Some(node) if node.trash_until.is_some() && !node.content.is_empty() => {
                            node.orphan = false;
                        }
                        Some(node) if node.removed => drop(self.nodes.remove(inode)),
                        _ => {}
                    }
                }
                Ok(Expect::Done)
            }
            _ => Ok(Expect::Whatever),
        }
    }

    fn lookup(&self, r: &Lookup, who: &Caller) -> Answer {
        name_ok(&r.name)?;
        let dir = if dots(&r.name) { self.any_dir(r.parent)? } else { self.dir(r.parent)? };
        dir.need(who, 1)?;
        let id = match &r.name[..] {
            b"." => r.parent,
            b".." if dir.removed => r.parent,
            b".." => dir.parent,
            name => *dir.entries.get(name).ok_or(ENOENT)?,
        };
        self.expect_attr(id)
    }

    fn open(&self, r: &Open, who: &Caller) -> Answer {
        let node = self.node(r.inode)?;
        let writes = r.flags & 3 == 1 || r.flags & 3 == 2 || r.flags & 0o1000 != 0;
        if node.kind == DIR && writes {
            return Err(EISDIR);
        }
        if node.kind == LINK {
            return Err(ELOOP);
        }
        node.need(who, if r.flags & 3 == 1 { 0 } else { 4 } | if writes { 2 } else { 0 })?;
        self.expect_attr(r.inode)
    }

    fn seek(&self, r: &Seek) -> Answer {
        let content = &self.file(r.inode)?.content;
        let from = r.offset as usize;
        if from >= content.len() {
            return Err(ENXIO);
        }
        let data = r.whence == SeekWhence::Data as i32;
        let place = content[from..].iter().position(|b| b.is_some() == data).map(|i| i + from);
        match (place, data) {
            (Some(place), _) => Ok(Expect::Offset(place as u64)),
            (None, true) => Err(ENXIO),
            (None, false) => Ok(Expect::Offset(content.len() as u64)),
        }
    }

    fn set_attr(&mut self, at: &At<'_>, r: &SetAttr) -> Answer {
        let who = at.who;
        let node = self.node(r.inode)?;
        node.uncovered()?;
        if (r.uid.is_some() || r.gid.is_some()) && !who.kernel_checked && who.uid != 0 {
            let mine = node.uid == who.uid && r.uid.is_none_or(|u| u == node.uid);
            if !mine || !r.gid.is_none_or(|g| g == node.gid || member(who, g)) {
                return Err(EPERM);
            }
        }
        if r.mode.is_some() && !node.owned(who) {
            return Err(EPERM);
        }
        let set_by_hand = (r.atime_ns.is_some() && !r.atime_now) || (r.mtime_ns.is_some() && !r.mtime_now);
        if set_by_hand && !node.owned(who) {
            return Err(EPERM);
        }
        if (r.atime_now || r.mtime_now) && !node.owned(who) {
            node.need(who, 2)?;
        }
        if r.size.is_some() {
            let node = self.file(r.inode)?;
            if !r.by_handle {
                node.need(who, 2)?;
            }
        }
        let node = self.node_mut(r.inode);
        if let Some(size) = r.size {
            node.resize(size, at.now);
            if r.kill_suidgid || (who.uid != 0 && !who.kernel_checked) {
                node.strip();
            }
        } else if r.kill_suidgid {
            node.strip();
        }
        if r.uid.is_some() || r.gid.is_some() {
            node.strip();
            node.uid = r.uid.unwrap_or(node.uid);
            node.gid = r.gid.unwrap_or(node.gid);
        }
        if let Some(mode) = r.mode {
            let strips = who.uid != 0 && !who.kernel_checked && !member(who, node.gid);
            node.set_mode(mode & if strips { 0o5777 } else { 0o7777 });
        }
        if let Some(time) = if r.atime_now { Some(at.now) } else { r.atime_ns } {
            node.times[0] = time;
        }
        if let Some(time) = if r.mtime_now { Some(at.now) } else { r.mtime_ns } {
            node.times[1] = time;
        }
        node.times[2] = at.now;
        self.expect_attr(r.inode)
    }

    fn make(&mut self, at: &At<'_>, parent: u64, name: &[u8], mut node: Node) -> Result<(), u32> {
        name_ok(name)?;
        if dots(name) {
            return Err(EEXIST);
        }
        let dir = self.dir(parent)?;
        dir.need(at.who, 1)?;
        if dir.entries.contains_key(name) {
            return Err(EEXIST);
        }
        let dir = self.writable_dir(parent, at.who)?;
        if node.kind != LINK {
            node.inherit(dir, at.who.umask);
        }
        node.uid = at.who.uid;
        node.gid = at.who.gid;
        (node.quota, node.class) = (dir.quota, dir.class);
        if dir.mode & 0o2000 != 0 {
            node.gid = dir.gid;
            if node.kind == DIR {
                node.mode |= 0o2000;
            }
        }
        if node.kind != DIR && node.mode & 0o010 != 0 && at.who.uid != 0 && !member(at.who, node.gid) {
            node.mode &= !0o2000;
        }
        node.times = [at.now; 3];
        node.names = 1;
        node.parent = parent;
        self.nodes.insert(at.id, node);
        self.node_mut(parent).entries.insert(name.to_vec(), at.id);
        self.touch_dir(parent, at.now);
        Ok(())
    }

    fn create(&mut self, at: &At<'_>, r: &Create) -> Answer {
        let node = Node { kind: FILE, mode: r.mode & 0o7777, ..Default::default() };
        let existing = match self.make(at, r.parent, &r.name, node) {
            Ok(()) => return Ok(Expect::Created(self.attr(at.id), true)),
            Err(EEXIST) if !r.exclusive && !dots(&r.name) => self.nodes[&r.parent].entries[&r.name[..]],
            Err(errno) => return Err(errno),
        };
        let node = self.node_mut(existing);
        match node.kind {
            DIR => return Err(EISDIR),
            LINK => return Err(ELOOP),
            FILE if r.truncate => {
                node.need(at.who, 2)?;
                node.resize(0, at.now);
                if at.who.uid != 0 && !at.who.kernel_checked {
                    node.strip();
                }
            }
            _ => {}
        }
        Ok(Expect::Created(self.attr(existing), false))
    }

    fn mknod(&mut self, at: &At<'_>, r: &Mknod) -> Answer {
        let device = [FileKind::CharDevice as i32, FileKind::BlockDevice as i32].contains(&r.kind);
        if device && at.who.uid != 0 && !at.who.kernel_checked {
            return Err(EPERM);
        }
        if r.kind == DIR || r.kind == LINK {
            return Err(EINVAL);
        }
        let rdev = if device { r.rdev } else { 0 };
        let node = Node { kind: r.kind, mode: r.mode & 0o7777, rdev, ..Default::default() };
        self.make(at, r.parent, &r.name, node)?;
        self.expect_attr(at.id)
    }

    fn symlink(&mut self, at: &At<'_>, r: &Symlink) -> Answer {
        if r.target.is_empty() {
            return Err(ENOENT);
        }
        let node = Node { kind: LINK, mode: 0o777, target: r.target.clone(), ..Default::default() };
        self.make(at, r.parent, &r.name, node)?;
        self.expect_attr(at.id)
    }

    fn link(&mut self, at: &At<'_>, r: &Link) -> Answer {
        name_ok(&r.new_name)?;
        if dots(&r.new_name) {
            return Err(EEXIST);
        }
        let node = self.node(r.inode)?;
        let dir = self.dir(r.new_parent)?;
        dir.need(at.who, 1)?;
        if dir.entries.contains_key(&r.new_name[..]) {
            return Err(EEXIST);
        }
        self.writable_dir(r.new_parent, at.who)?;
        if node.kind == DIR {
            return Err(EPERM);
        }
        if node.removed {
            return Err(ENOENT);
        }
        if node.quota != dir.quota {
            return Err(EXDEV);
        }
        let node = self.node_mut(r.inode);
        node.names += 1;
        node.times[2] = at.now;
        self.node_mut(r.new_parent).entries.insert(r.new_name.to_vec(), r.inode);
        self.touch_dir(r.new_parent, at.now);
        self.expect_attr(r.inode)
    }

    fn sticky(&self, dir: &Node, victim: &Node, who: &Caller) -> Result<(), u32> {
        let mine = who.kernel_checked || who.uid == 0 || who.uid == dir.uid || who.uid == victim.uid;
        if dir.mode & 0o1000 == 0 || mine { Ok(()) } else { Err(EPERM) }
    }

    fn drop_name(&mut self, id: u64, (parent, name): (u64, &[u8]), now: i64) {
        let retention_ns = self.retention_s * 1_000_000_000;
        let node = self.node_mut(id);
        node.names -= 1;
        node.times[2] = now;
        node.removed = node.names == 0;
        if node.removed {
            node.deletion = (parent, name.to_vec(), now);
            node.let_off = (node.kind == FILE && retention_ns > 0).then(|| node.bytes());
            node.trash_until = (node.kind == FILE && retention_ns > 0).then_some(now + retention_ns);
            node.orphan = node.trash_until.is_none() || node.content.is_empty();
        } else if node.names == 1 {
            let is_left = |(at, n): (&u64, &Node)| {
                let names = || n.entries.iter().filter(|(_, inode)| **inode == id);
                n.is_living_directory() && names().any(|(other, _)| (*at, &other[..]) != (parent, name))
            };
            let left = self.nodes.iter().find(|(at, n)| is_left((at, n))).map(|(_, n)| n.quota);
            self.node_mut(id).quota = left.unwrap();
            // What is there is there.
            self.before = self.usages();
        }
    }

    /// A name was moved in a tree that counts for a quota.
    fn recount(&mut self, id: u64, quota: u64) {
        let node = &self.nodes[&id];
        let anothers = node.kind != DIR && node.names > 1 && self.quotas.contains(&node.quota);
        if node.quota != id && !anothers {
            self.node_mut(id).quota = quota;
        }
    }

    /// A living directory's path.
    pub fn path(&self, mut id: u64) -> Vec<u8> {
        let mut path = Vec::new();
        while id != 1 {
            let parent = self.nodes[&id].parent;
            let entries = &self.nodes[&parent].entries;
            let (name, _) = entries.iter().find(|(_, inode)| **inode == id).unwrap();
            path = [b"/", name.as_slice(), &path].concat();
            id = parent;
        }
        if path.is_empty() { b"/".to_vec() } else { path }
    }

    /// Puts a file from the trash back, to a directory and a name, or where it was.
    pub fn restore(&mut self, id: u64, to: Option<(u64, &[u8])>, now: i64) -> Result<(), u32> {
        let node = self.nodes.get(&id).filter(|n| n.trash_until.is_some()).ok_or(ESTALE)?;
        let (was_in, was, _) = node.deletion.clone();
        let (parent, name) = to.map_or((was_in, was), |(parent, name)| (parent, name.to_vec()));
        let directory = self.nodes.get(&parent).filter(|n| !n.removed).ok_or(ENOENT)?;
        directory.uncovered()?;
        if directory.entries.contains_key(&name) {
            return Err(EEXIST);
        }
        let quota = directory.quota;
        let before: BTreeMap<Account, Usage> =
            self.limits.keys().map(|account| (*account, self.usage(*account))).collect();
        let node = self.node_mut(id);
        let was = (node.let_off, node.quota);
        (node.let_off, node.quota) = (None, quota);
        if self.grew_too_much(&before) {
            let node = self.node_mut(id);
            (node.let_off, node.quota) = was;
            return Err(EDQUOT);
        }
        let node = self.node_mut(id);
        (node.trash_until, node.orphan, node.removed) = (None, false, false);
        (node.names, node.parent, node.times[2]) = (1, parent, now);
        self.node_mut(parent).entries.insert(name, id);
        self.touch_dir(parent, now);
        Ok(())
    }

    /// Joins a volume at a directory. None where it can't be; false where it is.
    pub fn join(&mut self, id: u64, volume: u32, now: i64) -> Option<bool> {
        let node = self.nodes.get_mut(&id).filter(|n| n.is_living_directory() && n.entries.is_empty())?;
        if id == 1 || (node.joined != 0 && node.joined != volume) {
            return None;
        }
        if node.joined == volume {
            return Some(false);
        }
        node.joined = volume;
        node.times[2] = now;
        Some(true)
    }

    /// Takes those out of the trash for good. Answers how many there were.
    pub fn purge(&mut self, which: impl Fn(u64, &Node) -> bool) -> u64 {
        let mut purged = 0;
        for (id, node) in &mut self.nodes {
            if node.trash_until.is_some() && which(*id, node) {
                (node.trash_until, node.orphan) = (None, true);
                purged += 1;
            }
        }
        purged
    }

    fn unlink(&mut self, at: &At<'_>, parent: u64, name: &[u8]) -> Answer {
        name_ok(name)?;
        if dots(name) {
            return Err(EISDIR);
        }
        let dir = self.writable_dir(parent, at.who)?;
        let id = *dir.entries.get(name).ok_or(ENOENT)?;
        let node = &self.nodes[&id];
        self.sticky(dir, node, at.who)?;
        if node.kind == DIR {
            return Err(EISDIR);
        }
        self.node_mut(parent).entries.remove(name);
        self.touch_dir(parent, at.now);
        self.drop_name(id, (parent, name), at.now);
        Ok(Expect::Done)
    }

    fn rmdir(&mut self, at: &At<'_>, parent: u64, name: &[u8]) -> Answer {
        match name {
            b"." => return Err(EINVAL),
            b".." => return Err(ENOTEMPTY),
            _ => name_ok(name)?,
        }
        let dir = self.writable_dir(parent, at.who)?;
        let id = *dir.entries.get(name).ok_or(ENOENT)?;
        let node = &self.nodes[&id];
        self.sticky(dir, node, at.who)?;
        if node.kind != DIR {
            return Err(ENOTDIR);
        }
        node.idle()?;
        if !node.entries.is_empty() {
            return Err(ENOTEMPTY);
        }
        self.node_mut(parent).entries.remove(name);
        self.touch_dir(parent, at.now);
        self.drop_name(id, (parent, name), at.now);
        Ok(Expect::Done)
    }

    /// Whether `id` is `ancestor` or lies below it.
    pub fn below(&self, mut id: u64, ancestor: u64) -> bool {
        loop {
            if id == ancestor {
                return true;
            }
            if id == 1 {
                return false;
            }
            id = self.nodes[&id].parent;
        }
    }

    fn rename(&mut self, at: &At<'_>, r: &Rename) -> Answer {
        name_ok(&r.name)?;
        name_ok(&r.new_name)?;
        if r.no_replace && r.exchange {
            return Err(EINVAL);
        }
        if dots(&r.name) || dots(&r.new_name) {
            return Err(EBUSY);
        }
        let (from, to, who) = (r.parent, r.new_parent, at.who);
        let dir = self.writable_dir(from, who)?;
        let new_dir = self.writable_dir(to, who)?;
        let id = *dir.entries.get(&r.name[..]).ok_or(ENOENT)?;
        if dir.quota != new_dir.quota {
            return Err(EXDEV);
        }
        let quota = dir.quota;
        let target = new_dir.entries.get(&r.new_name[..]).copied();
        if r.no_replace && target.is_some() {
            return Err(EEXIST);
        }
        if r.exchange && target.is_none() {
            return Err(ENOENT);
        }
        let node = &self.nodes[&id];
        if node.kind == DIR && from != to && self.below(to, id) {
            return Err(EINVAL);
        }
        if target == Some(id) {
            return Ok(Expect::Done);
        }
        self.sticky(dir, node, who)?;
        if from != to && node.kind == DIR {
            node.need(who, 2)?;
        }
        if let Some(other) = target {
            let other_node = &self.nodes[&other];
            self.sticky(new_dir, other_node, who)?;
            if r.exchange {
                if from != to && other_node.kind == DIR {
                    other_node.need(who, 2)?;
                    if self.below(from, other) {
                        return Err(EINVAL);
                    }
                }
                node.idle()?;
                other_node.idle()?;
            } else {
                match (node.kind == DIR, other_node.kind == DIR) {
                    (true, false) => return Err(ENOTDIR),
                    (false, true) => return Err(EISDIR),
                    _ => {}
                }
                node.idle()?;
                other_node.idle()?;
                match other_node.kind == DIR {
                    true if !other_node.entries.is_empty() => return Err(ENOTEMPTY),
                    _ => self.drop_name(other, (to, &r.new_name), at.now),
                }
            }
        } else {
            node.idle()?;
        }
        self.node_mut(from).entries.remove(&r.name[..]);
        self.node_mut(to).entries.insert(r.new_name.to_vec(), id);
        let node = self.node_mut(id);
        node.parent = to;
        node.times[2] = at.now;
        self.recount(id, quota);
        if let (Some(other), true) = (target, r.exchange) {
            self.node_mut(from).entries.insert(r.name.to_vec(), other);
            self.recount(other, quota);
            let other = self.node_mut(other);
            other.parent = from;
            other.times[2] = at.now;
        }
        self.touch_dir(from, at.now);
        self.touch_dir(to, at.now);
        Ok(Expect::Done)
    }

    fn xattr_space(name: &[u8]) -> Result<&str, u32> {
        let text = std::str::from_utf8(name).unwrap();
        let space = ["user.", "trusted.", "security."].into_iter().find(|p| text.starts_with(p));
        space.ok_or(ENOTSUP)
    }

    fn get_xattr(&self, r: &GetXattr, who: &Caller) -> Answer {
        if [ACCESS, DEFAULT].contains(&&r.name[..]) {
            return Ok(Expect::Value(self.node(r.inode)?.get_list(&r.name)?.into()));
        }
        let space = Self::xattr_space(&r.name)?;
        let node = self.node(r.inode)?;
        match space {
            "user." if node.kind != FILE && node.kind != DIR => return Err(ENODATA),
            "user." => node.need(who, 4)?,
            "trusted." if who.uid != 0 => return Err(ENODATA),
            _ => {}
        }
        Ok(Expect::Value(node.xattrs.get(&r.name).ok_or(ENODATA)?.clone()))
    }

    fn may_set_xattr(&self, inode: u64, name: &[u8], who: &Caller) -> Result<(), u32> {
        let space = Self::xattr_space(name)?;
        let node = self.node(inode)?;
        node.uncovered()?;
        match space {
            "user." if node.kind != FILE && node.kind != DIR => Err(EPERM),
            "user." if node.kind == DIR && node.mode & 0o1000 != 0 && !node.owned(who) => Err(EPERM),
            "user." => node.need(who, 2),
            _ if who.uid != 0 && !who.kernel_checked => Err(EPERM),
            _ => Ok(()),
        }
    }

    fn set_list(&mut self, at: &At<'_>, inode: u64, name: &[u8], value: &[u8]) -> Answer {
        let list = model_acl::parse(value)?;
        self.node(inode)?.uncovered()?;
        let node = self.node_mut(inode);
        node.set_list(name, list, at.who)?;
        node.times[2] = at.now;
        Ok(Expect::Done)
    }

    fn set_xattr(&mut self, at: &At<'_>, r: &SetXattr) -> Answer {
        if [ACCESS, DEFAULT].contains(&&r.name[..]) {
            return self.set_list(at, r.inode, &r.name, &r.value);
        }
        self.may_set_xattr(r.inode, &r.name, at.who)?;
        let node = self.node_mut(r.inode);
        let exists = node.xattrs.contains_key(&r.name);
        if r.create && exists {
            return Err(EEXIST);
        }
        if r.replace && !exists {
            return Err(ENODATA);
        }
        node.xattrs.insert(r.name.clone(), r.value.clone());
        node.times[2] = at.now;
        Ok(Expect::Done)
    }

    fn remove_xattr(&mut self, at: &At<'_>, r: &RemoveXattr) -> Answer {
        if [ACCESS, DEFAULT].contains(&&r.name[..]) {
            return self.set_list(at, r.inode, &r.name, &[2, 0, 0, 0]);
        }
        self.may_set_xattr(r.inode, &r.name, at.who)?;
        let node = self.node_mut(r.inode);
        node.xattrs.remove(&r.name).ok_or(ENODATA)?;
        node.times[2] = at.now;
        Ok(Expect::Done)
    }

    fn fallocate(&mut self, at: &At<'_>, r: &Fallocate) -> Answer {
        if r.length == 0 {
            return Err(EINVAL);
        }
        match self.node(r.inode)?.kind {
            FILE => {}
            DIR => return Err(EISDIR),
            _ => return Err(ENODEV),
        }
        let node = self.node_mut(r.inode);
        let (from, to) = (r.offset as usize, (r.offset + r.length) as usize);
        if r.zero || !r.keep_size {
            let size = node.content.len();
            if r.zero && from < size {
                node.content[from..to.min(size)].fill(None);
            }
            node.resize(if r.keep_size { size } else { size.max(to) } as u64, at.now);
            node.strip_for(at.who, r.kill_suidgid);
        }
        Ok(Expect::Ranged(self.attr(r.inode), r.length, false))
    }

    /// Where the namespace doesn't refuse: which chunks are sealed the model doesn't know.
    fn copy_range(&mut self, at: &At<'_>, r: &CopyRange) -> Answer {
        let source = self.file(r.source)?;
        let size = source.content.len() as u64;
        self.file(r.inode)?;
        let length = r.length.min(size.saturating_sub(r.source_offset));
        if r.source == r.inode && r.offset.abs_diff(r.source_offset) < length {
            return Err(EINVAL);
        }
        if length > 0 {
            let from = r.source_offset as usize;
            let bytes = source.content[from..from + length as usize].to_vec();
            let (from, to) = (r.offset as usize, (r.offset + length) as usize);
            let node = self.node_mut(r.inode);
            node.resize(node.content.len().max(to) as u64, at.now);
            node.content[from..to].copy_from_slice(&bytes);
            node.strip_for(at.who, r.kill_suidgid);
        }
        Ok(Expect::Ranged(self.attr(r.inode), length, false))
    }

    fn write(&mut self, at: &At<'_>, r: &Write) -> Answer {
        let size = self.file(r.inode)?.content.len() as u64;
        let node = self.node_mut(r.inode);
        for piece in &r.pieces {
            let bytes: Vec<u8> = match piece.data.as_ref().unwrap() {
                write_piece::Data::Inline(bytes) => bytes.to_vec(),
                write_piece::Data::Run(run) => {
                    (0..run.length).map(|i| chunk_byte(run.chunk, run.chunk_offset + i)).collect()
                }
            };
            let offset = if r.append { node.content.len() } else { piece.offset as usize };
            let end = offset + bytes.len();
            if node.content.len() < end {
                node.content.resize(end, None);
            }
            for (place, byte) in node.content[offset..end].iter_mut().zip(bytes) {
                *place = Some(byte);
            }
        }
        node.times[1] = at.now;
        node.times[2] = at.now;
        if r.kill_suidgid || (at.who.uid != 0 && !at.who.kernel_checked) {
            node.strip();
        }
        let start = if r.append { size } else { r.pieces[0].offset };
        Ok(Expect::Written(self.attr(r.inode), start))
    }
}
