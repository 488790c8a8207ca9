//! The model's access control lists: entry by entry, as their extended attribute has them.

use mooseng_wire::fs::Caller;

use crate::model::*;

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Tag, permissions, id.
pub type Entry = (u16, u16, u32);

const OWNER: u16 = 1;
const USER: u16 = 2;
const GROUP_OF_INODE: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// A list of these permissions for owner, group, mask, others, and for one user and one group each where that is given.
pub fn list(
    classes: [u16; 4],
    masked: bool,
    user: Option<(u32, u16)>,
    group: Option<(u32, u16)>,
) -> Vec<Entry> {
    let [owner, of_inode, mask, other] = classes;
    let mut list = vec![(OWNER, owner, u32::MAX)];
    list.extend(user.map(|(id, bits)| (USER, bits, id)));
    list.push((GROUP_OF_INODE, of_inode, u32::MAX));
    list.extend(group.map(|(id, bits)| (GROUP, bits, id)));
    if masked || user.is_some() || group.is_some() {
        list.push((MASK, mask, u32::MAX));
    }
    list.push((OTHER, other, u32::MAX));
    list
}

pub fn to_value(list: &[Entry]) -> Vec<u8> {
    let mut value = vec![2, 0, 0, 0];
    for (tag, bits, id) in list {
        value.extend(tag.to_le_bytes());
        value.extend(bits.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Of lists that [`list`] makes; anything else isn't one.
fn from_value(value: &[u8]) -> Result<Vec<Entry>, u32> {
    if value.len() >= 4 && value[..4] != [2, 0, 0, 0] {
        return Err(ENOTSUP);
    }
    if value.len() < 28 || value.len() % 8 != 4 {
        return Err(EINVAL);
    }
    let half = |bytes: &[u8]| u16::from_le_bytes(bytes.try_into().unwrap());
    let entry = |e: &[u8]| (half(&e[..2]), half(&e[2..4]), u32::from_le_bytes(e[4..].try_into().unwrap()));
    Ok(value[4..].chunks(8).map(entry).collect())
}

fn bits(list: &[Entry], tag: u16) -> Option<u32> {
    list.iter().find(|e| e.0 == tag).map(|e| u32::from(e.1))
}

fn put(list: &mut [Entry], tag: u16, bits: u32) {
    list.iter_mut().filter(|e| e.0 == tag).for_each(|e| e.1 = bits as u16 & 7);
}

fn class(list: &[Entry]) -> u16 {
    if bits(list, MASK).is_some() { MASK } else { GROUP_OF_INODE }
}

impl Node {
    /// The mode and the list that it is part of.
    pub fn set_mode(&mut self, mode: u32) {
        self.mode = mode;
        if let Some(list) = &mut self.access {
            put(list, OWNER, mode >> 6);
            put(list, MASK, mode >> 3);
            put(list, OTHER, mode);
        }
    }

    fn set_access(&mut self, list: Vec<Entry>) {
        let [owner, class, other] = [OWNER, class(&list), OTHER].map(|tag| bits(&list, tag).unwrap());
        self.mode = self.mode & 0o7000 | owner << 6 | class << 3 | other;
        self.access = (list.len() > 3).then_some(list);
    }

    /// What a new node gets of its directory.
    pub fn inherit(&mut self, directory: &Node, umask: u32) {
        let Some(default) = &directory.default else {
            self.mode &= !umask;
            return;
        };
        let mut list = default.clone();
        for (tag, asked) in [(OWNER, self.mode >> 6), (class(default), self.mode >> 3), (OTHER, self.mode)] {
            let given = bits(&list, tag).unwrap();
            put(&mut list, tag, given & asked);
        }
        self.set_access(list);
        if self.is_living_directory() {
            self.default = directory.default.clone();
        }
    }

    /// What its list says to who doesn't own it.
    pub fn list_allows(&self, list: &[Entry], who: &Caller, mask: u32) -> bool {
        let most = bits(list, MASK).unwrap_or(7);
        let of =
            |tag: u16, id: u32| list.iter().filter(move |e| e.0 == tag && e.2 == id).map(|e| u32::from(e.1));
        if let Some(user) = of(USER, who.uid).next() {
            return user & most & mask == mask;
        }
        let groups: Vec<u32> = std::iter::once(who.gid)
            .chain(who.groups.iter().copied())
            .flat_map(|gid| {
                let own = (gid == self.gid).then(|| bits(list, GROUP_OF_INODE).unwrap());
                of(GROUP, gid).chain(own).collect::<Vec<_>>()
            })
            .collect();
        match groups.is_empty() {
            true => bits(list, OTHER).unwrap() & mask == mask,
            false => groups.iter().any(|group| group & most & mask == mask),
        }
    }

    pub fn get_list(&self, name: &[u8]) -> Result<Vec<u8>, u32> {
        if self.target.is_empty() {
            let list = if name == ACCESS { &self.access } else { &self.default };
            list.as_deref().map(to_value).ok_or(ENODATA)
        } else {
            Err(ENOTSUP)
        }
    }

    /// Whether it may be set so, by whom, and then it is.
    pub fn set_list(&mut self, name: &[u8], list: Option<Vec<Entry>>, who: &Caller) -> Result<(), u32> {
        if !self.target.is_empty() {
            return Err(ENOTSUP);
        }
        if !self.owned(who) {
            return Err(EPERM);
        }
        match (name == ACCESS, list) {
            (true, None) => self.access = None,
            (true, Some(list)) => {
                self.set_access(list);
                if who.uid != 0 && who.gid != self.gid && !who.groups.contains(&self.gid) {
                    self.mode &= !0o2000;
                }
            }
            (false, list) if self.is_directory() => self.default = list,
            (false, None) => {}
            (false, Some(_)) => return Err(EACCES),
        }
        Ok(())
    }
}

/// The list in an attribute's value.
pub fn parse(value: &[u8]) -> Result<Option<Vec<Entry>>, u32> {
    if value == [2, 0, 0, 0] { Ok(None) } else { from_value(value).map(Some) }
}
