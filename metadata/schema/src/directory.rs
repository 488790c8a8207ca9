//! A directory's counters, changed atomically, so that changes of different entries of one directory don't conflict.

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::InodeId;

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::number;
use crate::record::SchemaError;
use crate::tag::VolumeTag;

/// Which counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Counter {
    /// Entries.
    Entries = 0,
    /// Those that are directories.
    Subdirectories = 1,
    /// When an entry last changed ([`number::from_time`]), unless the times were set by hand since.
    Changed = 2,
    /// When it was last read, unless the times were set by hand since.
    Accessed = 3,
}

/// A directory's counters as read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Entries.
    pub entries: u64,
    /// Those that are directories.
    pub subdirectories: u64,
    /// When an entry last changed.
    pub changed_ns: Option<i64>,
    /// When it was last read.
    pub accessed_ns: Option<i64>,
}

/// A counter's key.
pub fn key(directory: InodeId, counter: Counter) -> Vec<u8> {
    volume_key(directory.volume(), VolumeTag::Directory, &(directory.0, counter as u16))
}

/// All of a directory's counters.
pub fn range(directory: InodeId) -> KeyRange {
    volume_range(directory.volume(), VolumeTag::Directory, &(directory.0,))
}

impl Counters {
    /// Reads the pairs of [`range`].
    pub fn read(directory: InodeId, pairs: &[(Bytes, Bytes)]) -> Result<Self, SchemaError> {
        let mut counters = Self::default();
        for (key, value) in pairs {
            let (_, which, _): (u64, u16, u64) =
                parse_volume_key(directory.volume(), VolumeTag::Directory, key)?;
            let value = number::decode(Some(value))?;
            match which {
                0 => counters.entries = value,
                1 => counters.subdirectories = value,
                2 => counters.changed_ns = number::to_time(value),
                3 => counters.accessed_ns = number::to_time(value),
                _ => return Err(SchemaError::Key { tag: VolumeTag::Directory as u8 }),
            }
        }
        Ok(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::hex;
    use mooseng_wire::ROOT_INODE;

    #[test]
    fn counters_round_trip() {
        let pair = |c, n| (Bytes::from(key(ROOT_INODE, c)), Bytes::copy_from_slice(&number::encode(n)));
        let pairs = [
            pair(Counter::Entries, 4),
            pair(Counter::Subdirectories, 2),
            pair(Counter::Changed, number::from_time(-9)),
            pair(Counter::Accessed, number::from_time(8)),
        ];
        let expected = Counters { entries: 4, subdirectories: 2, changed_ns: Some(-9), accessed_ns: Some(8) };
        assert_eq!(Counters::read(ROOT_INODE, &pairs), Ok(expected));
        assert!(pairs.iter().all(|(k, _)| range(ROOT_INODE).begin <= *k && *k < range(ROOT_INODE).end));
        assert_eq!(hex(&key(ROOT_INODE, Counter::Changed)), "027600141505150115021 4".replace(' ', ""));
    }
}
