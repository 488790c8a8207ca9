//! Values: a format byte, then a protobuf message.

use bytes::Bytes;
use prost::Message;

/// Why bytes from the store can't be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    /// A newer release wrote it.
    #[error(
        "the {record} record has format {format}, but this release knows formats up to {known}; use a newer release"
    )]
    Newer {
        /// What kind of record.
        record: &'static str,
        /// Its format.
        format: u8,
        /// The newest format known here.
        known: u8,
    },
    /// It isn't what its kind looks like.
    #[error("the {record} record is damaged: {reason}")]
    Damaged {
        /// What kind of record.
        record: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A key isn't of its tag's form.
    #[error("a key with the tag {tag} is damaged")]
    Key {
        /// The tag that was expected.
        tag: u8,
    },
}

impl SchemaError {
    /// A record that breaks one of its own rules.
    pub fn damaged(record: &'static str, reason: impl Into<String>) -> Self {
        Self::Damaged { record, reason: reason.into() }
    }
}

/// A value of the store: a format byte, then a protobuf message.
pub trait Record: Message + Default {
    /// What errors call it.
    const NAME: &'static str;
    /// The format that is written, and the newest that is read.
    const FORMAT: u8 = 1;

    /// The value's bytes.
    fn to_value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(1 + self.encoded_len());
        value.push(Self::FORMAT);
        self.encode(&mut value).expect("a Vec grows as needed");
        value
    }

    /// Reads a value's bytes.
    fn from_value(value: &Bytes) -> Result<Self, SchemaError> {
        let Some(&format) = value.first() else {
            return Err(SchemaError::damaged(Self::NAME, "it is empty"));
        };
        if format > Self::FORMAT {
            return Err(SchemaError::Newer { record: Self::NAME, format, known: Self::FORMAT });
        }
        if format == 0 {
            return Err(SchemaError::damaged(Self::NAME, "its format is 0"));
        }
        Self::decode(value.slice(1..)).map_err(|e| SchemaError::damaged(Self::NAME, e.to_string()))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A record survives its encoding, and the bytes are those that were once written.
    pub fn golden<R: Record + PartialEq + std::fmt::Debug>(record: &R, hex: &str) {
        let value = record.to_value();
        let text: String = value.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(text, hex, "{} changed its encoding", R::NAME);
        assert_eq!(&R::from_value(&value.into()).unwrap(), record);
    }

    pub fn round_trip<R: Record + PartialEq + std::fmt::Debug>(record: &R) {
        assert_eq!(&R::from_value(&record.to_value().into()).unwrap(), record);
    }

    pub fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::VolumeRecord;

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let error = VolumeRecord::from_value(&Bytes::from_static(&[9, 8, 1])).unwrap_err();
        assert_eq!(error, SchemaError::Newer { record: "volume", format: 9, known: 1 });
    }

    #[test]
    fn damaged_values_are_errors() {
        for bytes in [&[][..], &[0], &[1, 0xff], &[1, 0x0a, 0x7f]] {
            assert!(VolumeRecord::from_value(&Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
    }
}
