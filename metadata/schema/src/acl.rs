//! POSIX access control lists, as inodes carry them.

/// A list. Permissions are the three bits of a mode's class: 4 read, 2 write, 1 execute.
///
/// Of the list that governs access to an inode, the owner's, the mask's and the others' permissions are the inode's mode's, which alone has
/// them: here they are left out. Each id is in it once, in ascending order.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AclRecord {
    /// What the owner may.
    #[prost(uint32, tag = "1")]
    pub owner: u32,
    /// What the group may, as far as the mask allows it.
    #[prost(uint32, tag = "2")]
    pub group: u32,
    /// What others may.
    #[prost(uint32, tag = "3")]
    pub other: u32,
    /// The most that anybody but the owner and others may.
    #[prost(uint32, optional, tag = "4")]
    pub mask: Option<u32>,
    /// What single users may, as far as the mask allows it.
    #[prost(message, repeated, tag = "5")]
    pub users: Vec<AclEntry>,
    /// What further groups may, as far as the mask allows it.
    #[prost(message, repeated, tag = "6")]
    pub groups: Vec<AclEntry>,
}

/// What one user or group may.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct AclEntry {
    /// Who: a uid or a gid.
    #[prost(uint32, tag = "1")]
    pub id: u32,
    /// What.
    #[prost(uint32, tag = "2")]
    pub permissions: u32,
}

impl AclRecord {
    /// Whether it says what a mode can't.
    pub fn is_extended(&self) -> bool {
        self.mask.is_some() || !self.users.is_empty() || !self.groups.is_empty()
    }

    /// How many entries it has, as POSIX counts them.
    pub fn entries(&self) -> usize {
        3 + usize::from(self.mask.is_some()) + self.users.len() + self.groups.len()
    }
}
