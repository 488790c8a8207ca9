//! Bytes that say what they are: a record's whole content follows from (file, slot, generation, size).

const MAGIC: u64 = 0x4d4f_4f53_454e_4721;
/// Bytes of the header.
pub const HEADER: usize = 40;

/// Sizes of records, in bytes: inline, inline over several pieces, just below and far above what is kept inline.
pub const SIZES: [usize; 4] = [512, 6_000, 20_000, 150_000];

/// Writes the record.
pub fn record(file: u64, slot: u64, generation: u64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 8);
    for word in [MAGIC, file, slot, generation, size as u64] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    let mut state =
        file.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ slot.rotate_left(17) ^ generation.rotate_left(41);
    while bytes.len() < size {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// What found bytes say about themselves: for a failure's report.
pub fn describe(bytes: &[u8], size: usize) -> String {
    let word = |i: usize| bytes.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let (Some(MAGIC), Some(file), Some(slot), Some(generation)) = (word(0), word(1), word(2), word(3)) else {
        let zeros = bytes.iter().all(|b| *b == 0);
        return format!("{} bytes {}", bytes.len(), if zeros { "of zeros" } else { "that are no record" });
    };
    let whole = bytes == record(file, slot, generation, size);
    format!(
        "{} of file {file}, slot {slot}, generation {generation}",
        if whole { "a whole record" } else { "a TORN record" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_differ_in_every_coordinate_and_tears_are_seen() {
        let base = record(1, 2, 3, 6000);
        assert_eq!(base.len(), 6000);
        for other in [record(9, 2, 3, 6000), record(1, 9, 3, 6000), record(1, 2, 9, 6000)] {
            assert_ne!(base[HEADER..], other[HEADER..]);
        }
        assert!(describe(&base, 6000).starts_with("a whole"));
        let mut torn = base.clone();
        torn[3000..].copy_from_slice(&record(1, 2, 4, 6000)[3000..]);
        assert!(describe(&torn, 6000).contains("TORN"));
        assert!(describe(&[0; 6000], 6000).contains("zeros"));
    }
}
