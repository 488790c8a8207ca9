//! What was seen of the wall clock that says of something in a volume that its time is over, so that a later leader knows whether it was set forward.

use mooseng_wire::VolumeId;

use crate::key::volume_key;
use crate::record::Record;
use crate::tag::VolumeTag;

/// What the clock is looked at for: a volume has a record for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Deleted files.
    Trash,
    /// What is kept of sessions whose leases ran out.
    Lapsed,
}

/// What was seen of the clock.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ClockRecord {
    /// What it said when it was looked at last, in nanoseconds since the Unix epoch.
    #[prost(sfixed64, tag = "1")]
    pub seen_ns: i64,
    /// For how many nanoseconds it had gone on steadily by then, at least; none where it was never seen to be set forward.
    #[prost(uint64, optional, tag = "2")]
    pub steady_ns: Option<u64>,
    /// By how many nanoseconds it was set forward last.
    #[prost(uint64, tag = "3")]
    pub step_ns: u64,
}

impl Record for ClockRecord {
    const NAME: &'static str = "clock";
}

/// The key of what was seen of a volume's clock.
pub fn key(volume: VolumeId, kept: Kept) -> Vec<u8> {
    let tag = match kept {
        Kept::Trash => VolumeTag::TrashClock,
        Kept::Lapsed => VolumeTag::LapsedClock,
    };
    volume_key(volume, tag, &())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{golden, hex, round_trip};
    use proptest::prelude::*;

    #[test]
    fn bytes_stay_as_they_were() {
        let clock = ClockRecord { seen_ns: 1, steady_ns: None, step_ns: 0 };
        golden(&clock, "01090100000000000000");
        golden(&ClockRecord { steady_ns: Some(0), step_ns: 7, ..clock }, "0109010000000000000010001807");
        assert_eq!(hex(&key(VolumeId(0), Kept::Trash)), "02760014151c14");
        assert_eq!(hex(&key(VolumeId(0), Kept::Lapsed)), "02760014151d14");
    }

    proptest! {
        #[test]
        fn round_trips(seen_ns: i64, steady_ns: Option<u64>, step_ns: u64) {
            round_trip(&ClockRecord { seen_ns, steady_ns, step_ns });
        }
    }
}
