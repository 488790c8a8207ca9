//! Staged data: inline pieces behind the first 64 KiB of a file, which are small fsyncs of a large one. They are moved into chunks later, so each
//! file counts them, and lists where they begin: neither has to be looked for among all its extents.

use bytes::Bytes;
use mooseng_store::KeyRange;
use mooseng_wire::{INLINE_FILE_BYTES_MAX, InodeId, VolumeId};

use crate::key::{parse_volume_key, volume_key, volume_range};
use crate::number;
use crate::record::SchemaError;
use crate::tag::VolumeTag;

/// Bits of the count that are bytes; pieces lie above.
const BYTES_BITS: u32 = 40;

/// Whether an inline piece that ends there is staged. What lies before stays inline, as a small file's bytes do.
pub fn is_staged(end: u64) -> bool {
    end > INLINE_FILE_BYTES_MAX
}

/// What a file has staged, or by how much that grows. The store adds to it atomically: bytes and pieces in one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    /// Bytes.
    pub bytes: i64,
    /// Pieces.
    pub pieces: i64,
}

impl Staged {
    /// Nothing.
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.wrapping_add(other.bytes), pieces: self.pieces.wrapping_add(other.pieces) }
    }

    /// What is more here than there.
    pub fn minus(self, other: Self) -> Self {
        self.plus(Self { bytes: other.bytes.wrapping_neg(), pieces: other.pieces.wrapping_neg() })
    }

    /// The operand that adds it, and its value where neither is negative.
    pub fn encode(self) -> [u8; 8] {
        number::encode_signed((self.pieces << BYTES_BITS).wrapping_add(self.bytes))
    }

    /// Reads a value. Absent for nothing.
    pub fn decode(value: Option<&Bytes>) -> Result<Self, SchemaError> {
        let sum = number::decode(value)? as i64;
        let half = 1_i64 << (BYTES_BITS - 1);
        // The low part with its sign, for a count that is off and negative.
        let bytes = ((sum & ((1 << BYTES_BITS) - 1)) ^ half) - half;
        Ok(Self { bytes, pieces: sum.wrapping_sub(bytes) >> BYTES_BITS })
    }
}

/// The key of a file's count.
pub fn key(inode: InodeId) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::Staged, &(inode.0,))
}

/// The counts of a volume's files with ids above `after`.
pub fn range_after(volume: VolumeId, after: Option<InodeId>) -> KeyRange {
    let all = volume_range(volume, VolumeTag::Staged, &());
    let Some(mut begin) = after.map(key) else { return all };
    begin.push(0);
    KeyRange { begin: begin.into(), end: all.end }
}

/// The inode in a key of [`range_after`].
pub fn parse_key(volume: VolumeId, key: &[u8]) -> Result<InodeId, SchemaError> {
    let (inode, _): (u64, u64) = parse_volume_key(volume, VolumeTag::Staged, key)?;
    Ok(InodeId(inode))
}

/// The key that lists the staged piece which begins at `offset`. Its value is empty.
pub fn piece_key(inode: InodeId, offset: u64) -> Vec<u8> {
    volume_key(inode.volume(), VolumeTag::StagedPiece, &(inode.0, offset))
}

/// The list of a file's staged pieces that begin at `from` or behind it.
pub fn pieces_from(inode: InodeId, from: u64) -> KeyRange {
    let all = volume_range(inode.volume(), VolumeTag::StagedPiece, &(inode.0,));
    KeyRange { begin: piece_key(inode, from).into(), end: all.end }
}

/// The offset in a key of [`pieces_from`].
pub fn parse_piece_key(inode: InodeId, key: &[u8]) -> Result<u64, SchemaError> {
    let (_, offset, _): (u64, u64, u64) = parse_volume_key(inode.volume(), VolumeTag::StagedPiece, key)?;
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::hex;
    use proptest::prelude::*;

    fn value(staged: Staged) -> Bytes {
        Bytes::copy_from_slice(&staged.encode())
    }

    #[test]
    fn bytes_stay_as_they_were() {
        assert_eq!(hex(&Staged { bytes: 4096, pieces: 3 }.encode()), "0010000000030000");
        assert_eq!(hex(&key(InodeId(2))), "027600141514150214");
        assert_eq!(hex(&piece_key(InodeId(2), 4096)), "02760014151515021610 0014".replace(' ', ""));
    }

    proptest! {
        #[test]
        fn sums_of_what_is_added_are_read(deltas in prop::collection::vec((-1_000_000_000_i64..1_000_000_000, -1_000_i64..1_000), 0..20)) {
            let mut sum = Staged::default();
            let mut stored = 0_u64;
            for (bytes, pieces) in deltas {
                let delta = Staged { bytes, pieces };
                sum = sum.plus(delta);
                stored = stored.wrapping_add(u64::from_le_bytes(delta.encode()));
                prop_assert_eq!(Staged::decode(Some(&Bytes::copy_from_slice(&number::encode(stored)))).unwrap(), sum);
            }
            prop_assert_eq!(Staged::decode(Some(&value(sum))).unwrap(), sum);
            prop_assert!(sum.minus(sum).is_zero());
        }

        #[test]
        fn keys_are_read(inode: u64, offset: u64) {
            let inode = InodeId(inode);
            prop_assert_eq!(parse_key(inode.volume(), &key(inode)).unwrap(), inode);
            prop_assert_eq!(parse_piece_key(inode, &piece_key(inode, offset)).unwrap(), offset);
            prop_assert!(range_after(inode.volume(), Some(inode)).begin > key(inode));
            prop_assert_eq!(pieces_from(inode, offset).begin, piece_key(inode, offset));
        }
    }
}
