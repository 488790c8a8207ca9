//! Attributes that were set on top of buffered data, and wait with it. No clocks, no sending.

use mooseng_wire::fs::{Attr, FileKind, SetAttr};

/// Set-user-id and set-group-id: who may set them, and what takes them away, the region decides.
const PRIVILEGED: u32 = 0o6000;
/// The bits of a mode that a change of it sets.
const MODE_BITS: u32 = 0o7777;

/// What was set. Absolute values: sent twice they do no harm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    atime_ns: Option<i64>,
    mtime_ns: Option<i64>,
    /// When the newest was set, by the wall clock in nanoseconds; 0 if nothing was.
    changed_ns: i64,
}

impl Settings {
    /// What `change` sets on a file that is shown with these attributes; none where the region must be asked: sizes, privileges, anything
    /// but a file.
    pub fn of(change: &SetAttr, shown: &Attr, now_ns: i64) -> Option<Self> {
        // File capabilities are an extended attribute, which goes with the owner.
        let capable = !shown.no_xattrs && (change.uid.is_some() || change.gid.is_some());
        let privileged = capable || (shown.mode | change.mode.unwrap_or(0)) & PRIVILEGED != 0;
        if change.size.is_some() || change.kill_suidgid || privileged || shown.kind() != FileKind::Regular {
            return None;
        }
        let time = |now: bool, given: Option<i64>| if now { Some(now_ns) } else { given };
        Some(Self {
            mode: change.mode.map(|mode| mode & MODE_BITS),
            uid: change.uid,
            gid: change.gid,
            atime_ns: time(change.atime_now, change.atime_ns),
            mtime_ns: time(change.mtime_now, change.mtime_ns),
            changed_ns: now_ns,
        })
    }

    /// The file was modified then, by a change of that time that comes to the region before these do.
    pub fn modified(mtime_ns: i64, changed_ns: i64) -> Self {
        Self { mtime_ns: Some(mtime_ns), changed_ns: changed_ns.max(1), ..Self::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.changed_ns == 0
    }

    /// These, and `newer` over them.
    pub fn and(self, newer: Self) -> Self {
        Self {
            mode: newer.mode.or(self.mode),
            uid: newer.uid.or(self.uid),
            gid: newer.gid.or(self.gid),
            atime_ns: newer.atime_ns.or(self.atime_ns),
            mtime_ns: newer.mtime_ns.or(self.mtime_ns),
            changed_ns: self.changed_ns.max(newer.changed_ns),
        }
    }

    /// The file was written after all of this.
    pub fn written_after(&mut self) {
        self.mtime_ns = None;
    }

    /// Attributes with these over them.
    pub fn show(&self, attr: &mut Attr) {
        if let Some(mode) = self.mode {
            attr.mode = attr.mode & !MODE_BITS | mode;
        }
        attr.uid = self.uid.unwrap_or(attr.uid);
        attr.gid = self.gid.unwrap_or(attr.gid);
        attr.atime_ns = self.atime_ns.unwrap_or(attr.atime_ns);
        attr.mtime_ns = self.mtime_ns.unwrap_or(attr.mtime_ns);
        if !self.is_empty() {
            attr.ctime_ns = attr.ctime_ns.saturating_add(1).max(self.changed_ns);
        }
    }

    /// As the region is told of it.
    pub fn to_wire(self, inode: u64) -> Option<SetAttr> {
        (!self.is_empty()).then(|| SetAttr {
            inode,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            atime_ns: self.atime_ns,
            mtime_ns: self.mtime_ns,
            changed_ns: Some(self.changed_ns),
            ..SetAttr::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_goes_to_the_region_unless_it_is_certain_that_there_are_no_capabilities() {
        let owner = SetAttr { uid: Some(7), ..SetAttr::default() };
        let nothing_said = Attr { kind: FileKind::Regular.into(), ..Attr::default() };
        assert_eq!(Settings::of(&owner, &nothing_said, 1), None);
        assert!(Settings::of(&owner, &Attr { no_xattrs: true, ..nothing_said }, 1).is_some());
        let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        assert!(Settings::of(&mode, &nothing_said, 1).is_some());
    }
}
