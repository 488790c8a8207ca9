//! A small POSIX filesystem in memory: what the namespace is compared with.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mooseng_namespace::quota::{Account, Usage};
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;

use crate::model_acl::{self, ACCESS, DEFAULT};

mod administered;
mod contents;
mod names;

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
}
