//! The founding mark: which of the regions that were ever made under one name a piece of state belongs to.
//!
//! A region whose masters lost their disks can be made anew under its old name, with empty metadata. Chunks and mounts of the old one aren't known
//! there, and look like rubbish. The mark, drawn when a region is formatted and kept for ever, tells the two apart.

use std::fmt;

use bytes::Bytes;

/// Bytes of a mark.
pub const FOUNDING_BYTES: usize = 16;

/// A region's founding mark: random bytes that nobody draws twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Founding(pub [u8; FOUNDING_BYTES]);

/// Bytes that are no founding mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a founding mark of {0} bytes was told instead of one of {FOUNDING_BYTES}; compare the versions of the two programs"
)]
pub struct MalformedFounding(pub usize);

impl Founding {
    /// The mark in a message; none where the field is empty: the peer knows none.
    pub fn told(bytes: &[u8]) -> Result<Option<Self>, MalformedFounding> {
        if bytes.is_empty() {
            return Ok(None);
        }
        bytes.try_into().map(|mark| Some(Self(mark))).map_err(|_| MalformedFounding(bytes.len()))
    }

    /// The bytes for a message; empty for none.
    pub fn tell(mark: Option<Self>) -> Bytes {
        mark.map_or_else(Bytes::new, |Self(mark)| Bytes::copy_from_slice(&mark))
    }

    /// Reads what [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 2 * FOUNDING_BYTES || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|n| Self(n.to_be_bytes()))
    }
}

impl fmt::Display for Founding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Founding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Founding({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_survive_messages_and_text() {
        for mark in [Founding([0; 16]), Founding([0xa7; 16]), Founding(std::array::from_fn(|n| n as u8))] {
            assert_eq!(Founding::told(&Founding::tell(Some(mark))), Ok(Some(mark)));
            assert_eq!(Founding::parse(&mark.to_string()), Some(mark));
        }
        assert_eq!(Founding::told(&Founding::tell(None)), Ok(None));
        assert_eq!(Founding::told(&[1; 15]), Err(MalformedFounding(15)));
        for text in ["", "a7", "+7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7", "A7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7"] {
            assert_eq!(Founding::parse(text), None);
        }
    }
}
