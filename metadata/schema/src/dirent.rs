//! Directory entries, kept by cookie: 55 bits of a keyed hash of the name, then 8 bits that tell apart names of one
//! hash. So a lookup is a short range read, inserts of different names meet only by chance, and reading a directory in
//! the order of cookies shows each entry that stayed exactly once.

use std::hash::Hasher;

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::InodeId;
use siphasher::sip::SipHasher13;

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::{Record, SchemaError};
use crate::tag::VolumeTag;

/// A volume's secret for hashing names: without it nobody can make names that collide.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(..)")
    }
}

/// An entry's place in its directory: below 2^63, and at least 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cookie(pub u64);

/// Names of one hash that a directory can hold.
pub const SAME_HASH_MAX: u64 = 256;

impl Cookie {
    /// The first cookie that an entry of that name may have; the [`SAME_HASH_MAX`] from there on are its slots.
    pub fn first(key: &HashKey, name: &[u8]) -> Self {
        let mut hasher = SipHasher13::new_with_key(&key.0);
        hasher.write(name);
        // Zero would give cookies below 256, which readers use for "." and "..".
        let hash = (hasher.finish() >> 9).max(1);
        Self(hash << 8)
    }
}

/// A directory entry.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DirentRecord {
    /// Its name.
    #[prost(bytes = "bytes", tag = "1")]
    pub name: Bytes,
    /// What it names.
    #[prost(uint64, tag = "2")]
    pub inode: u64,
    /// The inode's `mooseng_wire::fs::FileKind`.
    #[prost(uint32, tag = "3")]
    pub kind: u32,
}

impl Record for DirentRecord {
    const NAME: &'static str = "directory entry";
}

/// An entry's key.
pub fn key(directory: InodeId, cookie: Cookie) -> Vec<u8> {
    volume_key(directory.volume(), VolumeTag::Dirent, &(directory.0, cookie.0))
}

/// The slots of a name, from its first cookie.
pub fn slots(directory: InodeId, first: Cookie) -> KeyRange {
    KeyRange {
        begin: key(directory, first).into(),
        end: key(directory, Cookie(first.0 + SAME_HASH_MAX)).into(),
    }
}

/// All entries.
pub fn range(directory: InodeId) -> KeyRange {
    volume_range(directory.volume(), VolumeTag::Dirent, &(directory.0,))
}

/// The entries behind a cookie.
pub fn range_after(directory: InodeId, cookie: Cookie) -> KeyRange {
    let begin = key(directory, Cookie(cookie.0.saturating_add(1)));
    KeyRange { begin: begin.into(), end: range(directory).end }
}

/// The cookie in an entry's key.
pub fn parse_key(directory: InodeId, key: &[u8]) -> Result<Cookie, SchemaError> {
    let (_, cookie, _): (u64, u64, u64) = parse_volume_key(directory.volume(), VolumeTag::Dirent, key)?;
    Ok(Cookie(cookie))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use mooseng_wire::ROOT_INODE;
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        golden(
            &DirentRecord { name: Bytes::from_static(b"name"), inode: 7, kind: 2 },
            "010a046e616d6510071802",
        );
        let cookie = Cookie::first(&HashKey([7; 16]), b"name");
        assert_eq!(cookie, Cookie(GOLDEN_COOKIE));
        assert_eq!(hex(&key(ROOT_INODE, Cookie(256))), "02760014150415011601001 4".replace(' ', ""));
    }
    const GOLDEN_COOKIE: u64 = 2666989163432347136;

    proptest! {
        #[test]
        fn cookies_fit(secret: [u8; 16], name in prop::collection::vec(any::<u8>(), 1..255), directory: u64) {
            let first = Cookie::first(&HashKey(secret), &name);
            prop_assert!(first.0 >= 256 && first.0 + SAME_HASH_MAX <= 1 << 63);
            let directory = InodeId(directory);
            let slots = slots(directory, first);
            for slot in [first.0, first.0 + SAME_HASH_MAX - 1] {
                let key = key(directory, Cookie(slot));
                prop_assert!(slots.begin <= key && key < slots.end);
                prop_assert_eq!(parse_key(directory, &key).unwrap(), Cookie(slot));
                let all = range(directory);
                prop_assert!(all.begin <= key && key < all.end);
                prop_assert!(range_after(directory, Cookie(slot)).begin > key);
            }
        }

        #[test]
        fn round_trips(name in prop::collection::vec(any::<u8>(), 1..255), inode: u64, kind in 0u32..8) {
            round_trip(&DirentRecord { name: name.into(), inode, kind });
        }
    }
}
