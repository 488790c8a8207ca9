//! Packable data: inline pieces within the first 64 KiB of a file that are large enough to be worth a place in a chunk that many files share. They are
//! listed, so that the rewriter finds the files without reading every inode. What lies behind is staged ([`crate::staged`]) and listed there.

use mooseng_store::KeyRange;
use mooseng_wire::{BLOCK_BYTES, InodeId, VolumeId};

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::record::SchemaError;
use crate::staged::is_staged;
use crate::tag::VolumeTag;

/// An inline piece of fewer bytes isn't listed: in a chunk it would cost two chunkservers a read, and the metadata store would hardly be smaller, for
/// the file's inode, name, extent and use of the chunk stay there.
pub const PACKABLE_BYTES_MIN: u64 = BLOCK_BYTES as u64;

/// Whether an inline piece of that length, which ends there in its file, is listed. That depends on the piece alone, so that it can be found out again.
pub fn is_packable(end: u64, length: u64) -> bool {
    length >= PACKABLE_BYTES_MIN && !is_staged(end)
}

/// The key that lists the packable piece which begins at `offset`. Its value is empty.
pub fn key(inode: InodeId, offset: u64) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::Packable, &(inode.0, offset))
}

/// The list of one file.
pub fn range(inode: InodeId) -> KeyRange {
    volume_range(inode.volume(), VolumeTag::Packable, &(inode.0,))
}

/// The lists of a volume's files with ids above `after`.
pub fn range_after(volume: VolumeId, after: Option<InodeId>) -> KeyRange {
    let all = volume_range(volume, VolumeTag::Packable, &());
    let Some(after) = after else { return all };
    KeyRange { begin: range(after).end, end: all.end }
}

/// The inode and the offset in such a key.
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<(InodeId, u64), SchemaError> {
    let (inode, offset, _): (u64, u64, u64) = parse_volume_key(volume, VolumeTag::Packable, key)?;
    Ok((InodeId(inode), offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::hex;
    use mooseng_wire::INLINE_FILE_BYTES_MAX;
    use proptest::prelude::*;

    #[test]
    fn what_is_listed() {
        assert_eq!(hex(&key(InodeId(2), 4096)), "02760014151815021610 0014".replace(' ', ""));
        assert!(is_packable(4096, 4096) && is_packable(INLINE_FILE_BYTES_MAX, 16 << 10));
        assert!(!is_packable(4095, 4095) && !is_packable(INLINE_FILE_BYTES_MAX + 1, 16 << 10));
    }

    proptest! {
        #[test]
        fn keys_are_read_and_keep_their_order(a: u64, b: u64, offset: u64) {
            let (a, b) = (InodeId(a), InodeId(b));
            prop_assert_eq!(parse_key(a.volume(), &key(a, offset)).unwrap(), (a, offset));
            let rest = range_after(a.volume(), Some(a));
            let place = key(b, offset);
            prop_assert_eq!(a < b && a.volume() == b.volume(), rest.begin[..] <= place[..] && place[..] < rest.end[..]);
            prop_assert!(range(a).begin[..] <= key(a, offset)[..] && key(a, offset)[..] < range(a).end[..]);
        }
    }
}
