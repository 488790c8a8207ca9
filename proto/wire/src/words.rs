//! Ids, epochs and quantities. One word for one thing, as in `docs/glossary.md`.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$meta:meta])* $name:ident($inner:ty)) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
        impl From<$name> for $inner {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

id!(
    /// A volume: 0 is the root volume. At most 65,535.
    VolumeId(u16)
);
id!(
    /// An inode, unique in the cluster and never given twice: the volume in the upper 16 bits, a number in the lower 48. It is `st_ino`.
    InodeId(u64)
);
id!(
    /// A chunk, unique in the cluster and never given twice: the volume in the upper 16 bits, a number in the lower 48.
    ChunkId(u64)
);
id!(
    /// A mounted client's session with one volume: the volume in the upper 16 bits, a number in the lower 48.
    SessionId(u64)
);
id!(
    /// Counts a session's lives: a lapsed session that comes back gets the next one.
    Incarnation(u64)
);
id!(
    /// A session's number for one change, from 1. Exactly-once retries hang on it.
    RequestNumber(u64)
);
id!(
    /// A volume's home epoch: one home region for each.
    Epoch(u64)
);
id!(
    /// Counts custodians of a volume within its region. With the embedded engine it is the Raft term of the leader.
    CustodyEpoch(u64)
);
id!(
    /// A master's Raft node id.
    NodeId(u64)
);

/// The lower 48 bits of an inode, chunk or session id.
pub const LOCAL_ID_BITS: u32 = 48;

/// The root directory of the root volume. FUSE numbers a mount's root 1, too.
pub const ROOT_INODE: InodeId = InodeId(1);

/// Largest file, in bytes: 2^60.
pub const FILE_SIZE_MAX: u64 = 1 << 60;
/// Longest name of a directory entry, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target, in bytes (Linux' PATH_MAX less its terminator).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// The extended attribute that is the access control list of an inode, in the encoding of Linux.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// The extended attribute that is the list which a directory hands down.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// A chunk's largest length, in bytes.
pub const CHUNK_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a chunk under one checksum.
pub const BLOCK_BYTES: usize = 4096;
/// Most bulk bytes in one frame: one append packet or one read answer.
pub const BULK_BYTES_MAX: usize = 1 << 20;
/// Files up to this size, in bytes, live inline in the metadata store.
pub const INLINE_FILE_BYTES_MAX: u64 = 64 << 10;
/// Largest inline extent, in bytes: a value must stay under the store's 100,000.
pub const INLINE_EXTENT_BYTES_MAX: u64 = 16 << 10;

impl InodeId {
    /// The volume that the inode belongs to.
    pub fn volume(self) -> VolumeId {
        VolumeId((self.0 >> LOCAL_ID_BITS) as u16)
    }
    /// Builds an id from a volume and a number below 2^48.
    pub fn new(volume: VolumeId, local: u64) -> Self {
        debug_assert!(local < 1 << LOCAL_ID_BITS, "inode number {local} exceeds 48 bits");
        Self((u64::from(volume.0) << LOCAL_ID_BITS) | local)
    }
    /// The inode's number within its volume.
    pub fn local(self) -> u64 {
        self.0 & ((1 << LOCAL_ID_BITS) - 1)
    }
    /// A volume's root directory.
    pub fn root_of(volume: VolumeId) -> Self {
        Self::new(volume, ROOT_INODE.0)
    }
}

impl SessionId {
    /// The volume that the session is of.
    pub fn volume(self) -> VolumeId {
        VolumeId((self.0 >> LOCAL_ID_BITS) as u16)
    }
    /// Builds an id from a volume and a number below 2^48.
    pub fn new(volume: VolumeId, local: u64) -> Self {
        debug_assert!(local < 1 << LOCAL_ID_BITS, "session number {local} exceeds 48 bits");
        Self((u64::from(volume.0) << LOCAL_ID_BITS) | local)
    }
    /// All ids that sessions of a volume may have.
    pub fn all_of(volume: VolumeId) -> RangeInclusive<Self> {
        Self::new(volume, 0)..=Self::new(volume, (1 << LOCAL_ID_BITS) - 1)
    }
}

impl ChunkId {
    /// The volume that the chunk belongs to.
    pub fn volume(self) -> VolumeId {
        VolumeId((self.0 >> LOCAL_ID_BITS) as u16)
    }
    /// Builds an id from a volume and a number below 2^48.
    pub fn new(volume: VolumeId, local: u64) -> Self {
        debug_assert!(local < 1 << LOCAL_ID_BITS, "chunk number {local} exceeds 48 bits");
        Self((u64::from(volume.0) << LOCAL_ID_BITS) | local)
    }
}

/// What a peer may be, as its certificate's SPIFFE id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A region-master.
    Master,
    /// A chunkserver.
    Chunkserver,
    /// A mounting host.
    Client,
    /// A person or script that administers the cluster.
    Admin,
}

impl Role {
    /// The word used in SPIFFE ids, configuration and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Chunkserver => "chunkserver",
            Role::Client => "client",
            Role::Admin => "admin",
        }
    }
    /// The role of that word.
    pub fn parse(word: &str) -> Option<Self> {
        [Role::Master, Role::Chunkserver, Role::Client, Role::Admin].into_iter().find(|r| r.as_str() == word)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who a peer is: `spiffe://<cluster>/<region>/<role>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// The region's name.
    pub region: String,
    /// What it may be.
    pub role: Role,
    /// Its own name, unique within region and role.
    pub name: String,
}

/// Why a SPIFFE id is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the identity {0:?} isn't of the form spiffe://<cluster>/<region>/<role>/<name>, with a role of master, chunkserver, client or admin"
)]
pub struct MalformedIdentity(pub String);

impl Identity {
    /// Parses a SPIFFE URI.
    pub fn parse(uri: &str) -> Result<Self, MalformedIdentity> {
        let malformed = || MalformedIdentity(uri.to_owned());
        let rest = uri.strip_prefix("spiffe://").ok_or_else(malformed)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [cluster, region, role, name] = parts[..] else { return Err(malformed()) };
        if [cluster, region, name].iter().any(|p| !is_identity_word(p)) {
            return Err(malformed());
        }
        let role = Role::parse(role).ok_or_else(malformed)?;
        Ok(Self { cluster: cluster.to_owned(), region: region.to_owned(), role, name: name.to_owned() })
    }
}

/// Whether a cluster, region or name may stand in a SPIFFE id: 1 to 63 letters, digits, dots, dashes, underscores.
pub fn is_identity_word(word: &str) -> bool {
    (1..=63).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}/{}/{}", self.cluster, self.region, self.role, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_round_trips() {
        let uri = "spiffe://dev/eu-1/chunkserver/cs-1";
        let id = Identity::parse(uri).unwrap();
        assert_eq!(id.to_string(), uri);
        assert_eq!(id.role, Role::Chunkserver);
    }

    #[test]
    fn identity_refuses_other_forms() {
        for bad in [
            "",
            "https://dev/a/master/x",
            "spiffe://dev/a/king/x",
            "spiffe://dev/a/master",
            "spiffe://dev//master/x",
            "spiffe://dev/a/master/x/y",
        ] {
            assert!(Identity::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_carry_their_volume() {
        let id = InodeId::new(VolumeId(7), 42);
        assert_eq!(id.volume(), VolumeId(7));
        assert_eq!(ROOT_INODE.volume(), VolumeId(0));
    }
}
