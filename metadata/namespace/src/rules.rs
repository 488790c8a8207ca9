//! What becomes of an inode's record by an operation, as values: operations apply these to what the store holds, and a client to what it knows of a
//! directory that it has alone. What they don't do, for it isn't in the record: entries, counts, sizes, extended attributes.

use bytes::Bytes;
use mooseng_schema::inode::InodeRecord;
use mooseng_wire::fs::{Attr, Caller, FileKind, SetAttr};

use crate::acl;
use crate::permission::{self, GROUP_EXECUTE, MODE_BITS, SETGID, STICKY};
pub use crate::view::later;

/// What a new inode is to be.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Its kind.
    pub kind: FileKind,
    /// Mode bits, as asked for and allowed for that kind.
    pub mode: u32,
    /// A device's number.
    pub rdev: u32,
    /// A symbolic link's target.
    pub target: Bytes,
}

impl Kind {
    /// A kind with the mode that was asked for.
    pub fn new(kind: FileKind, mode: u32) -> Self {
        let mode = match kind {
            FileKind::Directory => mode & (0o777 | STICKY),
            FileKind::Symlink => 0o777,
            _ => mode & MODE_BITS,
        };
        Self { kind, mode, rdev: 0, target: Bytes::new() }
    }

    /// A symbolic link.
    pub fn symlink(target: Bytes) -> Self {
        Self { target, ..Self::new(FileKind::Symlink, 0) }
    }
}

/// The record of what a caller makes in a directory.
pub fn made(directory: &InodeRecord, caller: &Caller, kind: &Kind, now_ns: i64) -> InodeRecord {
    let inherits = directory.mode & SETGID != 0;
    let gid = if inherits { directory.gid } else { caller.gid };
    let mut record = InodeRecord {
        kind: kind.kind as u32,
        mode: kind.mode,
        uid: caller.uid,
        gid,
        nlink: u32::from(kind.kind != FileKind::Directory),
        rdev: kind.rdev,
        size: kind.target.len() as u64,
        atime_ns: now_ns,
        mtime_ns: now_ns,
        ctime_ns: now_ns,
        target: kind.target.clone(),
        storage_class: directory.storage_class,
        quota: directory.quota,
        born_ns: Some(now_ns),
        ..Default::default()
    };
    acl::inherit(directory, &mut record, caller.umask);
    match kind.kind {
        FileKind::Directory if inherits => record.mode |= SETGID,
        // A setgid program of a group that its maker isn't of would be a way into the group. A kernel has looked at that itself, and knows all groups of whom
        // it asks for.
        _ if record.mode & GROUP_EXECUTE != 0 && !caller.kernel_checked => {
            record.mode = permission::settable_mode(record.mode, gid, caller);
        }
        _ => {}
    }
    record
}

/// Sets owner, mode and times, as far as they are asked for: all but the size. Capabilities, which go with the owner, are the caller's business.
pub fn set(record: &mut InodeRecord, r: &SetAttr, caller: &Caller, now_ns: i64) {
    if r.uid.is_some() || r.gid.is_some() {
        // Privileges belong to the old owner, so they go whoever changes it.
        record.mode = permission::without_suidgid(record.kind, record.mode);
        record.uid = r.uid.unwrap_or(record.uid);
        record.gid = r.gid.unwrap_or(record.gid);
    }
    if let Some(mode) = r.mode {
        // A kernel has looked at setgid itself, and knows all groups of whom it asks for.
        record.mode = match caller.kernel_checked {
            true => mode & MODE_BITS,
            false => permission::settable_mode(mode & MODE_BITS, record.gid, caller),
        };
    }
    let pick = |at_once: bool, given: Option<i64>| if at_once { Some(now_ns) } else { given };
    record.atime_ns = pick(r.atime_now, r.atime_ns).unwrap_or(record.atime_ns);
    record.mtime_ns = pick(r.mtime_now, r.mtime_ns).unwrap_or(record.mtime_ns);
    record.ctime_ns = later(record.ctime_ns, now_ns);
}

/// As much of a record as attributes tell; of one without access control lists and extended attributes it is what these rules look at.
pub fn known(attr: &Attr) -> InodeRecord {
    InodeRecord {
        kind: attr.kind() as u32,
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        nlink: attr.nlink,
        rdev: attr.rdev,
        size: attr.size,
        atime_ns: attr.atime_ns,
        mtime_ns: attr.mtime_ns,
        ctime_ns: attr.ctime_ns,
        quota: attr.quota,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setgid_of_what_is_made_goes_by_who_knows_the_groups() {
        let directory = InodeRecord { mode: 0o2775, gid: 20, ..InodeRecord::default() };
        let kind = Kind::new(FileKind::Regular, 0o2755);
        let mode = |caller: Caller| made(&directory, &caller, &kind, 0).mode;
        let member = Caller { uid: 1, gid: 1, groups: vec![20], ..Caller::default() };
        let stranger = Caller { groups: vec![], ..member.clone() };
        assert_eq!((mode(member), mode(stranger.clone())), (0o2755, 0o755));
        // Its groups aren't told where its kernel has looked.
        assert_eq!(mode(Caller { kernel_checked: true, ..stranger }), 0o2755);
    }
}
