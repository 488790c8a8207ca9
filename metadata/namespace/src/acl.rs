//! POSIX access control lists (POSIX 1003.1e draft 17, as Linux' local filesystems have them), on values.
//!
//! The list that governs access is part of the mode: owner, others and the mask *are* the mode's three classes, so that a chmod changes the
//! list, and a list that says no more than a mode does is dropped. What a directory hands down is a list of its own.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mooseng_schema::acl::{AclEntry, AclRecord};
use mooseng_schema::inode::InodeRecord;
use mooseng_wire::fs::{Caller, FileKind};

use crate::errno::Errno;
use crate::permission::{SETGID, in_group};

/// Most entries of a list: what fits into the 4 KiB that the kernel's FUSE hands on.
const ENTRIES_MAX: usize = 511;
/// The encoding's version.
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
/// The id of entries that are nobody's in particular.
const NOBODY: u32 = u32::MAX;

// Tags, in the order in which entries stand.
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OF_INODE: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Reads a list as it is the value of an extended attribute (`linux/posix_acl_xattr.h`). None for one without entries, which is no list.
pub fn decode(mut value: &[u8]) -> Result<Option<AclRecord>, Errno> {
    if value.len() < HEADER_BYTES {
        return Err(Errno::EINVAL);
    }
    if value.get_u32_le() != VERSION {
        return Err(Errno::ENOTSUP);
    }
    if !value.len().is_multiple_of(ENTRY_BYTES) {
        return Err(Errno::EINVAL);
    }
    if value.len() / ENTRY_BYTES > ENTRIES_MAX {
        return Err(Errno::E2BIG);
    }
    if value.is_empty() {
        return Ok(None);
    }
    let mut acl = AclRecord::default();
    let (mut last, mut once) = (0, 0);
    while value.has_remaining() {
        let (tag, permissions, id) = (value.get_u16_le(), value.get_u16_le(), value.get_u32_le());
        if permissions > 7 || tag < last {
            return Err(Errno::EINVAL);
        }
        last = tag;
        let permissions = u32::from(permissions);
        match tag {
            USER | GROUP => {
                if id == NOBODY {
                    return Err(Errno::EINVAL);
                }
                let list = if tag == USER { &mut acl.users } else { &mut acl.groups };
                list.push(AclEntry { id, permissions });
                continue;
            }
            OWNER => acl.owner = permissions,
            GROUP_OF_INODE => acl.group = permissions,
            MASK => acl.mask = Some(permissions),
            OTHER => acl.other = permissions,
            _ => return Err(Errno::EINVAL),
        }
        if once & tag != 0 {
            return Err(Errno::EINVAL);
        }
        once |= tag;
    }
    // Ids stand in any order; none twice, for it would be open which one counts.
    for list in [&mut acl.users, &mut acl.groups] {
        list.sort_unstable_by_key(|entry| entry.id);
        if list.windows(2).any(|two| two[0].id == two[1].id) {
            return Err(Errno::EINVAL);
        }
    }
    match find_fault(&acl).is_none() && once | MASK == OWNER | GROUP_OF_INODE | MASK | OTHER {
        true => Ok(Some(acl)),
        false => Err(Errno::EINVAL),
    }
}

/// The value of the extended attribute that is a list.
pub fn encode(acl: &AclRecord) -> Bytes {
    let mut value = BytesMut::with_capacity(HEADER_BYTES + ENTRY_BYTES * acl.entries());
    value.put_u32_le(VERSION);
    let mut put = |tag: u16, permissions: u32, id: u32| {
        value.put_u16_le(tag);
        value.put_u16_le((permissions & 7) as u16);
        value.put_u32_le(id);
    };
    put(OWNER, acl.owner, NOBODY);
    acl.users.iter().for_each(|user| put(USER, user.permissions, user.id));
    put(GROUP_OF_INODE, acl.group, NOBODY);
    acl.groups.iter().for_each(|group| put(GROUP, group.permissions, group.id));
    if let Some(mask) = acl.mask {
        put(MASK, mask, NOBODY);
    }
    put(OTHER, acl.other, NOBODY);
    value.freeze()
}

/// What is wrong with a list, if something is. Of the one that governs access the mask is in the mode.
pub fn find_fault(acl: &AclRecord) -> Option<&'static str> {
    let named = || acl.users.iter().chain(&acl.groups);
    let all = || [acl.owner, acl.group, acl.other, acl.mask.unwrap_or(0)].into_iter();
    let ascends = |list: &[AclEntry]| list.windows(2).all(|two| two[0].id < two[1].id);
    match () {
        () if acl.entries() > ENTRIES_MAX => Some("it has too many entries"),
        () if all().chain(named().map(|entry| entry.permissions)).any(|bits| bits > 7) => {
            Some("it gives permissions that there aren't")
        }
        () if !ascends(&acl.users) || !ascends(&acl.groups) => Some("its ids aren't in order"),
        () if named().any(|entry| entry.id == NOBODY) => Some("an entry is nobody's"),
        () if acl.mask.is_none() && named().next().is_some() => Some("it has no mask"),
        () => None,
    }
}

/// What is wrong with an inode's lists, if something is.
pub fn find_fault_of(record: &InodeRecord) -> Option<&'static str> {
    let fault = [access(record), record.default_acl.as_deref().cloned()];
    match fault.iter().flatten().find_map(find_fault) {
        None if record.default_acl.is_some() && record.kind != FileKind::Directory as u32 => {
            Some("what isn't a directory has nothing to hand down")
        }
        None if record.access_acl.is_some() && record.kind == FileKind::Symlink as u32 => {
            Some("a symbolic link has none")
        }
        fault => fault,
    }
}

/// The list that governs access to an inode, whole; none where the mode alone does.
pub fn access(record: &InodeRecord) -> Option<AclRecord> {
    let kept = record.access_acl.as_deref()?;
    let mode = record.mode;
    Some(AclRecord { owner: mode >> 6 & 7, mask: Some(mode >> 3 & 7), other: mode & 7, ..kept.clone() })
}

/// Gives an inode the list that governs access to it, as `caller` sets it: with it goes the mode. Without one the mode stays as it is. Setgid stays
/// only with who is of the group.
pub fn set_access(record: &mut InodeRecord, acl: Option<AclRecord>, caller: &Caller) {
    let Some(acl) = acl else {
        record.access_acl = None;
        return;
    };
    put_access(record, acl);
    // What is asked here isn't in the request that the kernel sends, whatever it has checked.
    if caller.uid != 0 && !in_group(caller, record.gid) {
        record.mode &= !SETGID;
    }
}

fn put_access(record: &mut InodeRecord, acl: AclRecord) {
    let class = acl.mask.unwrap_or(acl.group);
    record.mode = record.mode & !0o777 | acl.owner << 6 | class << 3 | acl.other;
    record.access_acl =
        acl.is_extended().then(|| Box::new(AclRecord { owner: 0, mask: None, other: 0, ..acl }));
}

/// What a new inode gets of its directory: mode and lists. `record` has its kind and the mode that was asked for.
pub fn inherit(directory: &InodeRecord, record: &mut InodeRecord, umask: u32) {
    if record.kind == FileKind::Symlink as u32 {
        return;
    }
    let Some(default) = directory.default_acl.as_deref() else {
        record.mode &= !(umask & 0o777);
        return;
    };
    let mode = record.mode;
    let mut acl = default.clone();
    acl.owner &= mode >> 6;
    acl.other &= mode;
    match &mut acl.mask {
        Some(mask) => *mask &= mode >> 3,
        None => acl.group &= mode >> 3,
    }
    put_access(record, acl);
    if record.kind == FileKind::Directory as u32 {
        record.default_acl = directory.default_acl.clone();
    }
}

/// Whether a list gives somebody who doesn't own the inode all rights in `wanted`. It governs access; owner, mask and others are the mode's.
pub fn allows(acl: &AclRecord, mode: u32, gid: u32, caller: &Caller, wanted: u32) -> bool {
    let mask = mode >> 3 & 7;
    if let Some(user) = acl.users.iter().find(|user| user.id == caller.uid) {
        return user.permissions & mask & wanted == wanted;
    }
    let of_inode = AclEntry { id: gid, permissions: acl.group };
    let mut any = false;
    for group in std::iter::once(&of_inode).chain(&acl.groups).filter(|group| in_group(caller, group.id)) {
        any = true;
        // One entry must give everything: two halves don't make a whole.
        if group.permissions & mask & wanted == wanted {
            return true;
        }
    }
    !any && mode & wanted == wanted
}

#[cfg(test)]
#[path = "acl_tests.rs"]
mod tests;
