//! Who may do what, by mode bits, access control lists, ownership and groups.

use mooseng_schema::inode::InodeRecord;
use mooseng_wire::fs::{Caller, FileKind};

use crate::acl;
use crate::errno::Errno;

pub const SETUID: u32 = 0o4000;
pub const SETGID: u32 = 0o2000;
pub const STICKY: u32 = 0o1000;
pub const GROUP_EXECUTE: u32 = 0o010;
pub const MODE_BITS: u32 = 0o7777;

pub const READ: u32 = 4;
pub const WRITE: u32 = 2;
pub const EXECUTE: u32 = 1;

/// Whether the caller is of a group.
pub fn in_group(caller: &Caller, gid: u32) -> bool {
    caller.gid == gid || caller.groups.contains(&gid)
}

/// Whether mode bits and access control list give the caller all rights in `mask`, whoever else has checked before.
pub fn allows(record: &InodeRecord, caller: &Caller, mask: u32) -> bool {
    if caller.uid == 0 {
        // root reads and writes everything, and executes what anybody may execute.
        let executable = record.kind == FileKind::Directory as u32 || record.mode & 0o111 != 0;
        return mask & EXECUTE == 0 || executable;
    }
    let shift = match &record.access_acl {
        _ if caller.uid == record.uid => 6,
        Some(list) => return acl::allows(list, record.mode, record.gid, caller, mask),
        None if in_group(caller, record.gid) => 3,
        None => 0,
    };
    (record.mode >> shift) & mask == mask
}

/// Checks mode bits and access control list, unless the caller's kernel did.
pub fn check(record: &InodeRecord, caller: &Caller, mask: u32) -> Result<(), Errno> {
    if caller.kernel_checked || allows(record, caller, mask) { Ok(()) } else { Err(Errno::EACCES) }
}

/// Checks that the caller owns the inode, unless its kernel did.
pub fn check_owner(record: &InodeRecord, caller: &Caller) -> Result<(), Errno> {
    if caller.kernel_checked || caller.uid == 0 || caller.uid == record.uid {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// In a sticky directory only root and the owners of directory and entry may take the entry away.
pub fn check_sticky(directory: &InodeRecord, victim: &InodeRecord, caller: &Caller) -> Result<(), Errno> {
    let free = directory.mode & STICKY == 0
        || caller.kernel_checked
        || [0, directory.uid, victim.uid].contains(&caller.uid);
    if free { Ok(()) } else { Err(Errno::EPERM) }
}

/// What a mode becomes when somebody without privilege writes the file, or its owner changes.
pub fn without_suidgid(kind: u32, mode: u32) -> u32 {
    if kind == FileKind::Directory as u32 {
        return mode;
    }
    // Without execution by the group, setgid means mandatory locking, not privilege.
    let setgid = if mode & GROUP_EXECUTE != 0 { SETGID } else { 0 };
    mode & !(SETUID | setgid)
}

/// The mode that a caller may set: setgid only for groups that it is of.
pub fn settable_mode(mode: u32, gid: u32, caller: &Caller) -> u32 {
    if caller.uid == 0 || in_group(caller, gid) { mode } else { mode & !SETGID }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mode: u32) -> InodeRecord {
        InodeRecord { kind: FileKind::Regular as u32, mode, uid: 10, gid: 20, ..Default::default() }
    }
    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec(), ..Default::default() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        // The owner has less than others here, and gets less.
        assert!(!allows(&file(0o077), &caller(10, 20, &[]), READ));
        assert!(allows(&file(0o070), &caller(11, 99, &[20]), READ | WRITE | EXECUTE));
        assert!(!allows(&file(0o707), &caller(11, 20, &[]), READ));
        assert!(allows(&file(0o007), &caller(11, 99, &[]), WRITE));
        assert!(allows(&file(0), &caller(0, 0, &[]), READ | WRITE));
        assert!(!allows(&file(0o666), &caller(0, 0, &[]), EXECUTE));
        assert!(allows(&file(0o100), &caller(0, 0, &[]), EXECUTE));
    }

    #[test]
    fn privilege_bits_go() {
        let regular = FileKind::Regular as u32;
        assert_eq!(without_suidgid(regular, 0o6755), 0o755);
        assert_eq!(without_suidgid(regular, 0o6745), 0o2745);
        assert_eq!(without_suidgid(FileKind::Directory as u32, 0o2755), 0o2755);
        assert_eq!(settable_mode(0o2755, 5, &caller(1, 6, &[])), 0o755);
        assert_eq!(settable_mode(0o2755, 5, &caller(1, 6, &[5])), 0o2755);
    }

    #[test]
    fn sticky_directories_keep_what_others_own() {
        let directory = InodeRecord { mode: 0o1777, uid: 1, ..Default::default() };
        assert_eq!(check_sticky(&directory, &file(0), &caller(5, 5, &[])), Err(Errno::EPERM));
        for uid in [0, 1, 10] {
            assert_eq!(check_sticky(&directory, &file(0), &caller(uid, 5, &[])), Ok(()));
        }
    }
}
