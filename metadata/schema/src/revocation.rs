//! A certificate that is refused, by its serial number or its owner's SPIFFE id: a record of the region where the cluster has no global group, and one of
//! that group's store, under keys of its own, where it has.

use mooseng_store::{KeyRange, prefix_range};

use crate::key::{parse_region_key, region_key};
use crate::record::{Record, SchemaError};
use crate::tag::RegionTag;

/// Why it is refused, and until when that matters. What is refused is its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// In an administrator's words.
    pub reason: String,
    /// The administrator's SPIFFE id.
    pub by: String,
    /// When, in seconds since the Unix epoch.
    pub at_unix: i64,
    /// When the certificate ends; none of a SPIFFE id, and where that wasn't known.
    pub expires_unix: Option<i64>,
}

/// The record of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RevocationRecord {
    /// See [`Revocation::reason`].
    #[prost(string, tag = "1")]
    pub reason: String,
    /// See [`Revocation::by`].
    #[prost(string, tag = "2")]
    pub by: String,
    /// See [`Revocation::at_unix`].
    #[prost(int64, tag = "3")]
    pub at_unix: i64,
    /// See [`Revocation::expires_unix`].
    #[prost(int64, optional, tag = "4")]
    pub expires_unix: Option<i64>,
}

impl Record for RevocationRecord {
    const NAME: &'static str = "revocation";
}

impl From<&Revocation> for RevocationRecord {
    fn from(revocation: &Revocation) -> Self {
        let Revocation { reason, by, at_unix, expires_unix } = revocation.clone();
        Self { reason, by, at_unix, expires_unix }
    }
}

impl From<RevocationRecord> for Revocation {
    fn from(record: RevocationRecord) -> Self {
        let RevocationRecord { reason, by, at_unix, expires_unix } = record;
        Self { reason, by, at_unix, expires_unix }
    }
}

/// The key of what is refused in a region.
pub fn key(what: &str) -> Vec<u8> {
    region_key(RegionTag::Revocation, &(what,))
}

/// All of the region's.
pub fn keys() -> KeyRange {
    prefix_range(&region_key(RegionTag::Revocation, &()))
}

/// What a key of [`keys`] refuses.
pub fn parse_key(key: &[u8]) -> Result<String, SchemaError> {
    parse_region_key(RegionTag::Revocation, key).map(|(what,)| what)
}

/// The key of the version of the region's revocations ([`crate::number`]).
pub fn version_key() -> Vec<u8> {
    region_key(RegionTag::RevocationsVersion, &())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let record =
            RevocationRecord { reason: "r".into(), by: "b".into(), at_unix: 300, expires_unix: Some(2) };
        golden(&record, "010a017212016218ac022002");
        golden(&RevocationRecord { expires_unix: None, ..record }, "010a017212016218ac02");
        assert_eq!(hex(&key("5a")), "0272001517 02356100".replace(' ', ""));
        assert_eq!(hex(&version_key()), "0272001518");
        assert_eq!(parse_key(&key("spiffe://c/r/client/x")).unwrap(), "spiffe://c/r/client/x");
        assert!(parse_key(&version_key()).is_err());
        assert!(keys().begin <= key("0") && keys().end > key("spiffe://z") && keys().end <= version_key());
    }

    proptest! {
        #[test]
        fn round_trips(reason: String, by: String, at_unix: i64, expires_unix: Option<i64>) {
            let revocation = Revocation { reason, by, at_unix, expires_unix };
            let record = RevocationRecord::from(&revocation);
            round_trip(&record);
            prop_assert_eq!(Revocation::from(record), revocation);
        }
    }
}
