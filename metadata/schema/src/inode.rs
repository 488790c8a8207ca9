//! Inodes, and the names that an inode has.

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::{InodeId, VolumeId};

use crate::acl::AclRecord;
use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// So many names stay within the inode's record; further ones have records of their own, for a value has a limit.
pub const LINKS_INSIDE_MAX: usize = 16;

/// An inode. Its id is its key.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InodeRecord {
    /// A `mooseng_wire::fs::FileKind`.
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    /// Permission, setuid, setgid and sticky bits: 07777.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Owner.
    #[prost(uint32, tag = "3")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "4")]
    pub gid: u32,
    /// Hard links. A directory's isn't kept here: it has two and one for each subdirectory.
    #[prost(uint32, tag = "5")]
    pub nlink: u32,
    /// A device's number.
    #[prost(uint32, tag = "6")]
    pub rdev: u32,
    /// Bytes; a symlink's is its target's length.
    #[prost(uint64, tag = "7")]
    pub size: u64,
    /// Bytes that its extents cover.
    #[prost(uint64, tag = "8")]
    pub allocated: u64,
    /// Last access. A directory's may be overtaken by its counter.
    #[prost(sfixed64, tag = "9")]
    pub atime_ns: i64,
    /// Last change of its data. A directory's may be overtaken by its counter.
    #[prost(sfixed64, tag = "10")]
    pub mtime_ns: i64,
    /// Last change of the inode. A directory's may be overtaken by its counter.
    #[prost(sfixed64, tag = "11")]
    pub ctime_ns: i64,
    /// Its names, the first ones.
    #[prost(message, repeated, tag = "12")]
    pub links: Vec<LinkName>,
    /// A symlink's target.
    #[prost(bytes = "bytes", tag = "13")]
    pub target: Bytes,
    /// How many copies its data gets, and where; of a directory, that of what is made in it ([`crate::storage_class`]).
    #[prost(uint32, tag = "14")]
    pub storage_class: u32,
    /// Whose quota it counts for; 0 for none.
    #[prost(uint64, tag = "15")]
    pub quota: u64,
    /// It has no name any more, and lives until its last session closes it, or until it leaves the trash.
    #[prost(bool, tag = "16")]
    pub orphan: bool,
    /// Extents from here on are dead and wait to be freed.
    #[prost(uint64, optional, tag = "17")]
    pub trim_from: Option<u64>,
    /// Bytes of the names of its extended attributes, each with a terminator.
    #[prost(uint32, tag = "18")]
    pub xattr_name_bytes: u32,
    /// It is in the trash, until then at the latest: the time in the key of its entry there ([`crate::trash`]). Only
    /// a file without a name is.
    #[prost(sfixed64, optional, tag = "19")]
    pub trash_until_ns: Option<i64>,
    /// When it was made; none of an inode that an earlier release made.
    #[prost(sfixed64, optional, tag = "20")]
    pub born_ns: Option<i64>,
    /// It counts for no quota since it went to the trash, but for what was written to it since: so many bytes are let off.
    #[prost(uint64, optional, tag = "21")]
    pub let_off: Option<u64>,
    /// Who else may access it than its mode says. The mode's group class is its mask.
    #[prost(message, optional, boxed, tag = "22")]
    pub access_acl: Option<Box<AclRecord>>,
    /// What a directory hands down to what is made in it.
    #[prost(message, optional, boxed, tag = "23")]
    pub default_acl: Option<Box<AclRecord>>,
    /// Of a directory: the volume that is joined at it; 0 for none. It has no entries of its own then.
    #[prost(uint32, tag = "24")]
    pub joined: u32,
}

impl InodeRecord {
    /// The volume that is joined at it. One whose number can't be is a volume nevertheless: 65535, which nobody has.
    pub fn joined(&self) -> Option<VolumeId> {
        (self.joined != 0).then(|| VolumeId(u16::try_from(self.joined).unwrap_or(u16::MAX)))
    }
}

impl Record for InodeRecord {
    const NAME: &'static str = "inode";
}

/// A name of an inode.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct LinkName {
    /// The directory.
    #[prost(uint64, tag = "1")]
    pub parent: u64,
    /// The entry's name.
    #[prost(bytes = "bytes", tag = "2")]
    pub name: Bytes,
}

/// An inode's key.
pub fn key(inode: InodeId) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::Inode, &(inode.0,))
}

/// The inodes of the volume of `after` that follow it.
pub fn range_after(after: InodeId) -> KeyRange {
    let all = volume_range(after.volume(), VolumeTag::Inode, &());
    let mut begin = key(after);
    begin.push(0);
    KeyRange { begin: begin.into(), end: all.end }
}

/// The inode of a key in [`range_after`].
pub fn parse_key(like: InodeId, key: &[u8]) -> Result<InodeId, SchemaError> {
    let (inode, _): (u64, u64) = parse_volume_key(like.volume(), VolumeTag::Inode, key)?;
    Ok(InodeId(inode))
}

/// The key of a name that the inode's record has no room for. Its value is empty.
pub fn link_key(inode: InodeId, parent: InodeId, name: &[u8]) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::Link, &(inode.0, parent.0, name))
}

/// All of an inode's names of that kind.
pub fn link_range(inode: InodeId) -> KeyRange {
    volume_range(inode.volume(), VolumeTag::Link, &(inode.0,))
}

/// The name in such a key.
pub fn parse_link_key(inode: InodeId, key: &[u8]) -> Result<LinkName, SchemaError> {
    let (_, parent, name, _): (u64, u64, Vec<u8>, u64) =
        parse_volume_key(inode.volume(), VolumeTag::Link, key)?;
    Ok(LinkName { parent, name: name.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl::AclEntry;
    use crate::record::testing::{golden, hex, round_trip};
    use mooseng_wire::{ROOT_INODE, VolumeId};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let inode = InodeRecord {
            kind: 1,
            mode: 0o644,
            uid: 1000,
            gid: 100,
            nlink: 1,
            size: 5,
            allocated: 5,
            atime_ns: 1,
            mtime_ns: 2,
            ctime_ns: -3,
            links: vec![LinkName { parent: 1, name: Bytes::from_static(b"a") }],
            storage_class: 1,
            trim_from: Some(0),
            ..Default::default()
        };
        golden(
            &inode,
            "01080110a40318e80720642801380540054901000000000000005102000000000000005 9fdffffffffffffff6205080112016170018801 00"
                .replace(' ', "")
                .as_str(),
        );
        assert_eq!(hex(&key(ROOT_INODE)), "02760014150215011 4".replace(' ', ""));
    }

    #[test]
    fn access_control_lists_stay_as_they_were() {
        let entry = |id, permissions| AclEntry { id, permissions };
        let access = AclRecord { group: 5, users: vec![entry(1000, 6)], ..Default::default() };
        let default = AclRecord {
            owner: 7,
            group: 5,
            other: 1,
            mask: Some(0),
            users: vec![],
            groups: vec![entry(100, 4), entry(200, 0)],
        };
        let inode = InodeRecord {
            kind: 2,
            mode: 0o770,
            access_acl: Some(Box::new(access)),
            default_acl: Some(Box::new(default)),
            ..Default::default()
        };
        golden(&inode, "01080210f803b2010910052a0508e8071006ba01130807100518012000320408641004320308c801");
    }

    #[test]
    fn directories_with_a_volume_stay_as_they_were() {
        let inode = InodeRecord { kind: 2, mode: 0o755, joined: 3, ..Default::default() };
        golden(&inode, "01080210ed03c00103");
        assert_eq!(inode.joined(), Some(VolumeId(3)));
        assert_eq!(InodeRecord::default().joined(), None);
        assert_eq!(InodeRecord { joined: 1 << 16, ..inode }.joined(), Some(VolumeId(u16::MAX)));
    }

    proptest! {
        #[test]
        fn round_trips(mode in 0u32..0o10000, size: u64, ctime_ns: i64, orphan: bool, trim_from: Option<u64>,
                       trash_until_ns: Option<i64>, born_ns: Option<i64>, let_off: Option<u64>, names in prop::collection::vec((1u64.., prop::collection::vec(any::<u8>(), 1..255)), 0..4)) {
            let links = names.into_iter().map(|(parent, name)| LinkName { parent, name: name.into() }).collect();
            round_trip(&InodeRecord { mode, size, ctime_ns, orphan, trim_from, trash_until_ns, born_ns, let_off, links, ..Default::default() });
        }

        #[test]
        fn keys_keep_the_order_of_numbers(volume: u16, a in 0u64..1 << 48, b in 0u64..1 << 48) {
            let (a, b) = (InodeId::new(VolumeId(volume), a), InodeId::new(VolumeId(volume), b));
            prop_assert_eq!(key(a).cmp(&key(b)), a.cmp(&b));
            prop_assert_eq!(parse_key(a, &key(a)).unwrap(), a);
        }

        #[test]
        fn link_keys_round_trip(inode: u64, parent: u64, name in prop::collection::vec(any::<u8>(), 1..255)) {
            let parsed = parse_link_key(InodeId(inode), &link_key(InodeId(inode), InodeId(parent), &name)).unwrap();
            prop_assert_eq!(parsed, LinkName { parent, name: name.into() });
        }
    }
}
