//! Protocol versions and features of the framed streams: versions N and N+1 interoperate.

use crate::call::{Hello, HelloAnswer};
use crate::level::Levels;

/// The oldest protocol version that this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// The newest protocol version that this build speaks.
pub const PROTOCOL_MAX: u32 = 1;
/// The feature bits that this build supports.
pub const FEATURES: u64 = 0;
/// The newest disk format (log, chunk files, store) that this build writes and reads.
pub const DISK_FORMAT: u32 = 1;

/// This build's hello, of a daemon that supports those feature levels.
pub fn hello(levels: Levels) -> Hello {
    Hello {
        version_min: PROTOCOL_MIN,
        version_max: PROTOCOL_MAX,
        features: FEATURES,
        software: software(),
        level_lowest: levels.lowest.0,
        level_highest: levels.highest.0,
    }
}

/// The feature levels that a peer's hello tells.
pub fn levels_of(hello: &Hello) -> Levels {
    Levels::told(hello.level_lowest, hello.level_highest)
}

/// Those that its answer to ours tells.
pub fn levels_answered(answer: &HelloAnswer) -> Levels {
    Levels::told(answer.level_lowest, answer.level_highest)
}

/// The software's name and version.
pub fn software() -> String {
    concat!("mooseng ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// The answer to a peer's hello by one that speaks `ours`: the newest version that both speak, and the features of both.
pub fn agree(ours: &Hello, theirs: &Hello) -> HelloAnswer {
    let version = ours.version_max.min(theirs.version_max);
    if version < ours.version_min || version < theirs.version_min {
        return HelloAnswer {
            version: 0,
            features: 0,
            software: ours.software.clone(),
            level_lowest: ours.level_lowest,
            level_highest: ours.level_highest,
            refused: format!(
                "the peer ({}) speaks protocol versions {} to {}, this side ({}) speaks {} to {}; upgrade the older one",
                theirs.software,
                theirs.version_min,
                theirs.version_max,
                ours.software,
                ours.version_min,
                ours.version_max
            ),
        };
    }
    HelloAnswer {
        version,
        features: ours.features & theirs.features,
        software: ours.software.clone(),
        level_lowest: ours.level_lowest,
        level_highest: ours.level_highest,
        refused: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaks(min: u32, max: u32, features: u64) -> Hello {
        Hello { version_min: min, version_max: max, features, software: "test".into(), ..Hello::default() }
    }

    #[test]
    fn neighbours_interoperate_and_strangers_are_refused() {
        assert_eq!(agree(&speaks(1, 2, 0b11), &speaks(2, 3, 0b10)).version, 2);
        assert_eq!(agree(&speaks(1, 2, 0b11), &speaks(2, 3, 0b10)).features, 0b10);
        assert!(!agree(&speaks(1, 2, 0), &speaks(3, 4, 0)).refused.is_empty());
        assert!(!agree(&speaks(3, 4, 0), &speaks(1, 2, 0)).refused.is_empty());
    }
}
