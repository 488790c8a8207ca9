//! What may be promised to a session, and how much of it (DESIGN section 6), as plain words and as messages carry them.

use bytes::Bytes;

use crate::session::{self, FactKind};
use crate::words::InodeId;

/// Something that may be promised.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// An inode's attributes, extended attributes, link target, data.
    Inode(InodeId),
    /// What a name in a directory stands for, or that it stands for nothing.
    Entry(InodeId, Bytes),
    /// A directory's complete list of entries.
    Directory(InodeId),
    /// An inode's locks: none of them is on record. Promised exclusively alone, to a session that gives them by itself then.
    Locks(InodeId),
}

/// How much is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The fact stays true.
    Shared,
    /// And nobody else reads or writes it: the session may change it and tell later. Of inodes, of their locks, and of directories, which the session
    /// then has alone: nobody else is promised any of their entries either.
    Exclusive,
}

impl Fact {
    /// The directory whose completeness a change of this fact concerns.
    pub fn directory(&self) -> Option<InodeId> {
        match self {
            Self::Entry(directory, _) => Some(*directory),
            Self::Inode(_) | Self::Directory(_) | Self::Locks(_) => None,
        }
    }

    /// As messages carry it.
    pub fn to_message(&self) -> session::Fact {
        let (kind, inode, name) = match self {
            Self::Inode(inode) => (FactKind::Inode, inode, Bytes::new()),
            Self::Entry(directory, name) => (FactKind::Entry, directory, name.clone()),
            Self::Directory(directory) => (FactKind::Directory, directory, Bytes::new()),
            Self::Locks(inode) => (FactKind::Locks, inode, Bytes::new()),
        };
        session::Fact { kind: kind.into(), inode: inode.0, name }
    }

    /// From a message; none of a kind that this version doesn't know.
    pub fn from_message(message: &session::Fact) -> Option<Self> {
        let inode = InodeId(message.inode);
        match message.kind() {
            FactKind::Unspecified => None,
            FactKind::Inode => Some(Self::Inode(inode)),
            FactKind::Entry => Some(Self::Entry(inode, message.name.clone())),
            FactKind::Directory => Some(Self::Directory(inode)),
            FactKind::Locks => Some(Self::Locks(inode)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_travel() {
        let name = Bytes::from_static(b"n\xff");
        let id = InodeId(7);
        for fact in [Fact::Inode(id), Fact::Entry(id, name), Fact::Directory(id), Fact::Locks(id)] {
            assert_eq!(Fact::from_message(&fact.to_message()), Some(fact));
        }
        assert_eq!(Fact::from_message(&session::Fact::default()), None);
    }
}
