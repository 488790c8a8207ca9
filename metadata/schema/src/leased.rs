//! That a volume's home needs its region's lease, whatever it knows of the volume's settings (records of the region).
//!
//! Another region takes over by itself once they are agreed on, and from then on the home may go on only under its lease. It may not hear of that agreement;
//! nor may the next leader of its region, whose copy of what is agreed on is older. So it puts this down before it asks for it.

use mooseng_wire::VolumeId;

use crate::key::region_key;
use crate::tag::RegionTag;

/// The key of the version of what is agreed on ([`crate::number`]) at which the home has asked last that other regions may take over by themselves. Whoever
/// knows of a later one knows whether that was agreed on; whoever doesn't goes by its being so.
pub fn key(volume: VolumeId) -> Vec<u8> {
    region_key(RegionTag::Leased, &(volume.0,))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::hex;

    #[test]
    fn bytes_stay_as_they_were() {
        assert_eq!(hex(&key(VolumeId(3))), "02720015191503");
    }
}
