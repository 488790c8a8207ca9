//! The model's names: looked for, made, moved and removed.

use mooseng_wire::fs::*;

use super::*;

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
    pub(super) fn lookup(&self, r: &Lookup, who: &Caller) -> Answer {
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

    pub(super) fn make(&mut self, at: &At<'_>, parent: u64, name: &[u8], mut node: Node) -> Result<(), u32> {
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
        let trusted = at.who.kernel_checked || at.who.uid == 0 || member(at.who, node.gid);
        if node.kind != DIR && node.mode & 0o010 != 0 && !trusted {
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

    pub(super) fn create(&mut self, at: &At<'_>, r: &Create) -> Answer {
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

    pub(super) fn mknod(&mut self, at: &At<'_>, r: &Mknod) -> Answer {
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

    pub(super) fn symlink(&mut self, at: &At<'_>, r: &Symlink) -> Answer {
        if r.target.is_empty() {
            return Err(ENOENT);
        }
        let node = Node { kind: LINK, mode: 0o777, target: r.target.clone(), ..Default::default() };
        self.make(at, r.parent, &r.name, node)?;
        self.expect_attr(at.id)
    }

    pub(super) fn link(&mut self, at: &At<'_>, r: &Link) -> Answer {
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

    pub(super) fn unlink(&mut self, at: &At<'_>, parent: u64, name: &[u8]) -> Answer {
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

    pub(super) fn rmdir(&mut self, at: &At<'_>, parent: u64, name: &[u8]) -> Answer {
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

    pub(super) fn rename(&mut self, at: &At<'_>, r: &Rename) -> Answer {
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
}
