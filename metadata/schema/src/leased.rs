//! What a volume's home goes by, whatever its leader knows of the volume's settings: versions of what is agreed on (records of the region, each a
//! [`crate::number`]). The next leader of the region may have an older copy of what is agreed on.
//!
//! - That it needs its region's lease. Another region takes over by itself once that is agreed on, and from then on the home may go on only under its
//!   lease. It may not hear of that agreement, so it puts this down before it asks for it.
//! - That others may be in its sync set. Once they are, it answers no fsync without them. Only the home takes others in, so it puts this down before it
//!   proposes that.

use mooseng_wire::VolumeId;

use crate::key::region_key;
use crate::tag::RegionTag;

/// The key of the version at which the home has asked last that other regions may take over by themselves. Whoever knows of a later one knows whether that
/// was agreed on; whoever doesn't goes by its being so.
pub fn key(volume: VolumeId) -> Vec<u8> {
    region_key(RegionTag::Leased, &(volume.0,))
}

/// The key of the newest version at which the home knew that the volume is a `geo` one, and may have proposed who is in its sync set. Whoever doesn't know
/// of that version can't tell whom fsync waits for.
pub fn set_key(volume: VolumeId) -> Vec<u8> {
    region_key(RegionTag::Leased, &(volume.0, SET))
}

/// What the key of the sync set's version ends with.
const SET: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::hex;

    #[test]
    fn bytes_stay_as_they_were() {
        assert_eq!(hex(&key(VolumeId(3))), "02720015191503");
        assert_eq!(hex(&set_key(VolumeId(3))), "027200151915031501");
    }
}
