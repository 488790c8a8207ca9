//! A region's founding mark: made once, and never changed or removed. Whoever carries another one is of a region that was made before under this
//! region's name, or after it.

use bytes::Bytes;
use mooseng_wire::founding::{FOUNDING_BYTES, Founding};

use crate::key::region_key;
use crate::record::{Record, SchemaError};
use crate::tag::RegionTag;

/// The record of the mark.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FoundingRecord {
    /// The mark's bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub mark: Bytes,
}

impl Record for FoundingRecord {
    const NAME: &'static str = "founding";
}

impl FoundingRecord {
    /// The record of that mark.
    pub fn new(mark: Founding) -> Self {
        Self { mark: Founding::tell(Some(mark)) }
    }

    /// The mark. A record without one is damaged.
    pub fn mark(&self) -> Result<Founding, SchemaError> {
        Founding::told(&self.mark).ok().flatten().ok_or_else(|| {
            let found = self.mark.len();
            SchemaError::damaged(
                Self::NAME,
                format!("its mark has {found} bytes instead of {FOUNDING_BYTES}"),
            )
        })
    }
}

/// The record's key: there is one in a region.
pub fn key() -> Vec<u8> {
    region_key(RegionTag::Founding, &())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let record = FoundingRecord::new(Founding([7; 16]));
        golden(&record, "010a1007070707070707070707070707070707");
        assert_eq!(hex(&key()), "027200150 8".replace(' ', ""));
        assert!(FoundingRecord::default().mark().is_err());
        assert!(FoundingRecord { mark: Bytes::from_static(&[1; 15]) }.mark().is_err());
    }

    proptest! {
        #[test]
        fn round_trips(mark: [u8; 16]) {
            let record = FoundingRecord::new(Founding(mark));
            round_trip(&record);
            prop_assert_eq!(record.mark().unwrap(), Founding(mark));
        }
    }
}
