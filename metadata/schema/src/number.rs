//! Counters that the store changes atomically: eight bytes, little-endian, absent for zero.

use bytes::Bytes;

use crate::record::SchemaError;

/// A counter's value.
pub fn decode(value: Option<&Bytes>) -> Result<u64, SchemaError> {
    let Some(value) = value else { return Ok(0) };
    let bytes: [u8; 8] = value
        .as_ref()
        .try_into()
        .map_err(|_| SchemaError::damaged("counter", format!("it has {} bytes instead of 8", value.len())))?;
    Ok(u64::from_le_bytes(bytes))
}

/// The operand that adds `delta`, and the value of a counter.
pub fn encode(number: u64) -> [u8; 8] {
    number.to_le_bytes()
}

/// The operand that adds a signed number: addition wraps.
pub fn encode_signed(delta: i64) -> [u8; 8] {
    delta.to_le_bytes()
}

/// A time as a number whose unsigned order is the times' order. Zero, an absent value, is before all times in use.
pub fn from_time(ns: i64) -> u64 {
    (ns as u64) ^ (1 << 63)
}

/// The time of such a number; none for zero.
pub fn to_time(number: u64) -> Option<i64> {
    (number != 0).then_some((number ^ (1 << 63)) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_order() {
        let times = [i64::MIN + 1, -5, 0, 5, i64::MAX];
        for pair in times.windows(2) {
            assert!(from_time(pair[0]) < from_time(pair[1]));
        }
        for time in times {
            assert_eq!(to_time(from_time(time)), Some(time));
        }
        assert_eq!(to_time(0), None);
    }

    #[test]
    fn negative_numbers_subtract() {
        let five = 5u64;
        assert_eq!(five.wrapping_add(u64::from_le_bytes(encode_signed(-2))), 3);
        assert!(decode(Some(&Bytes::from_static(&[1, 2]))).is_err());
        assert_eq!(decode(Some(&Bytes::copy_from_slice(&encode(7)))), Ok(7));
        assert_eq!(decode(None), Ok(0));
    }
}
