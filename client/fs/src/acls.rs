//! Access control lists, which are kept as long as their inode's promise stands.
//!
//! Whether an inode has any is among its attributes. A list itself is read when it is asked for, and true as long as the inode's hold lasts and
//! this session doesn't change it itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, GetXattr};
use mooseng_wire::{ACCESS_ACL, DEFAULT_ACL};

use crate::caches::Cache;
use crate::error::FsError;
use crate::fs::FileSystem;
use crate::read::unexpected;

/// Lists kept; each has 4 KiB at most. Where there are more, all are read again.
const LISTS_MAX: usize = 4096;

/// Whether an extended attribute is an access control list.
pub fn is_acl(name: &[u8]) -> bool {
    name == ACCESS_ACL || name == DEFAULT_ACL
}

/// A list, or that there is none, and the hold under which it was read.
#[derive(Clone, Debug)]
struct Known {
    hold: u64,
    list: Option<Bytes>,
}

/// By inode, and whether it is the default list.
#[derive(Debug, Default)]
struct Memo {
    known: BTreeMap<(u64, bool), Known>,
    /// How often this session changed a list: what was read before isn't kept after.
    changes: u64,
}

/// The lists that are known.
#[derive(Debug, Default)]
pub(crate) struct Acls(Mutex<Memo>);

impl Acls {
    fn memo<T>(&self, f: impl FnOnce(&mut Memo) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// This session is about to change an inode's list, or has.
    pub fn forget(&self, inode: u64) {
        self.memo(|memo| {
            memo.changes += 1;
            memo.known.remove(&(inode, false));
            memo.known.remove(&(inode, true));
        });
    }

    fn get(&self, of: (u64, bool), hold: u64) -> Option<Option<Bytes>> {
        self.memo(|memo| {
            memo.known.get(&of).filter(|known| known.hold == hold).map(|known| known.list.clone())
        })
    }

    fn changes(&self) -> u64 {
        self.memo(|memo| memo.changes)
    }

    fn keep(&self, of: (u64, bool), known: Known, changes: u64) {
        self.memo(|memo| {
            if memo.changes != changes {
                return;
            }
            if memo.known.len() >= LISTS_MAX {
                memo.known.clear();
            }
            memo.known.insert(of, known);
        });
    }
}

impl FileSystem {
    /// A list of an inode; ENODATA where it has none.
    pub(crate) async fn get_acl(&self, caller: &Caller, inode: u64, name: &[u8]) -> Result<Bytes, FsError> {
        let none = || FsError::Answered(libc::ENODATA);
        if self.known_attr(inode).is_some_and(|attr| attr.no_acls) {
            self.asked(Cache::AccessLists, true);
            return Err(none());
        }
        let (acls, of) = (&self.inner.acls, (inode, name == DEFAULT_ACL));
        let known = self.hold(inode).and_then(|hold| acls.get(of, hold));
        self.asked(Cache::AccessLists, known.is_some());
        if let Some(known) = known {
            return known.ok_or_else(none);
        }
        // A mode that waits with buffered data is part of the list.
        self.inner.writer.flush_beneath(inode).await?;
        let (hold, changes) = (self.hold(inode), acls.changes());
        let get = Op::GetXattr(GetXattr { inode, name: Bytes::copy_from_slice(name) });
        let list = match self.inner.region.read(caller, get).await {
            Ok(Reply::Value(value)) => Some(value.value),
            Ok(other) => return Err(unexpected("getxattr", &other)),
            // A master of an earlier release knows none: the kernel must not take that for a failure, for it asks before it lets anybody in.
            Err(FsError::Answered(libc::ENODATA | libc::ENOTSUP)) => None,
            Err(error) => return Err(error),
        };
        if let Some(hold) = hold.filter(|hold| self.hold(inode) == Some(*hold)) {
            acls.keep(of, Known { hold, list: list.clone() }, changes);
        }
        list.ok_or_else(none)
    }

    /// Sets a list, or takes it away.
    pub(crate) async fn change_acl(&self, caller: &Caller, inode: u64, op: Op) -> Result<(), FsError> {
        self.inner.acls.forget(inode);
        // A mode that was set before it comes before it.
        self.inner.writer.flush_before(inode).await?;
        let outcome = self.done(caller, "setxattr", op).await;
        self.inner.acls.forget(inode);
        outcome?;
        self.changed_durably(inode, ()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_true_under_its_hold_and_until_it_is_changed() {
        let acls = Acls::default();
        let known = |hold| Known { hold, list: Some(Bytes::from_static(b"list")) };
        acls.keep((7, false), known(1), acls.changes());
        assert!(acls.get((7, false), 1).flatten().is_some());
        assert!(acls.get((7, false), 2).is_none() && acls.get((7, true), 1).is_none());
        acls.forget(7);
        assert!(acls.get((7, false), 1).is_none());
        // What was read before a change isn't kept after it.
        let changes = acls.changes();
        acls.forget(8);
        acls.keep((7, false), known(1), changes);
        assert!(acls.get((7, false), 1).is_none());
        for inode in 0..=LISTS_MAX as u64 {
            acls.keep((inode, false), known(1), acls.changes());
        }
        assert_eq!(acls.memo(|memo| memo.known.len()), 1, "bounded");
    }
}
