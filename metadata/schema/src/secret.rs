//! Secrets of a region, such as the key of its tickets: raw bytes by name.

use crate::key::region_key;
use crate::tag::RegionTag;

/// A secret's key. The value is the secret itself.
pub fn key(name: &str) -> Vec<u8> {
    region_key(RegionTag::Secret, &(name,))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::hex;

    #[test]
    fn bytes_stay_as_they_were() {
        assert_eq!(hex(&key("k")), "02720015 0302 6b00".replace(' ', ""));
    }
}
