//! The checksums of a run of bytes, block by block and of the whole, in one pass over them.

use std::sync::LazyLock;

use crate::layout::BLOCK;

/// What a checksum becomes when a block's worth of bytes follows: its four bytes, each looked up, xored. (CRCs are linear: the checksum of
/// `a` and `b` joined is that of `a`, shifted by the length of `b`, xor that of `b`.)
static SHIFTED: LazyLock<[[u32; 256]; 4]> = LazyLock::new(|| {
    std::array::from_fn(|byte| {
        std::array::from_fn(|value| crc32c::crc32c_combine((value as u32) << (8 * byte), 0, BLOCK as usize))
    })
});

fn shift(crc: u32) -> u32 {
    crc.to_le_bytes()
        .into_iter()
        .zip(SHIFTED.iter())
        .fold(0, |sum, (byte, table)| sum ^ table[usize::from(byte)])
}

/// Checksums of a run of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Of its whole blocks.
    pub(crate) blocks: Vec<u32>,
    /// Of the bytes behind them.
    pub(crate) tail: u32,
    tail_bytes: usize,
}

impl Sums {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let whole = bytes.chunks_exact(BLOCK as usize);
        let tail = whole.remainder();
        Self {
            tail: crate::checksum(tail),
            tail_bytes: tail.len(),
            blocks: whole.map(crate::checksum).collect(),
        }
    }

    /// Of all bytes together.
    pub fn total(&self) -> u32 {
        let whole = self.blocks.iter().fold(0, |sum, block| shift(sum) ^ block);
        crc32c::crc32c_combine(whole, self.tail, self.tail_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_of_blocks_make_up_that_of_all_bytes() {
        let bytes: Vec<u8> = (0..70_000_u32).map(|n| (n * 7 % 253) as u8).collect();
        for length in [0, 1, 4095, 4096, 4097, 8192, 65_536, 69_999] {
            assert_eq!(Sums::of(&bytes[..length]).total(), crate::checksum(&bytes[..length]), "{length}");
        }
    }
}
