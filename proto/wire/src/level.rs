//! The feature level: what the masters of all regions can read, and so what any of them may write (docs/decisions/0042-feature-level.md).
//!
//! A release supports a range of levels, which its masters tell in the hello of each connection. The cluster is at one of them, which the global group holds; it
//! is raised by command once all masters support it, and never goes down. What a release brings that masters of earlier ones would lose or misread is a
//! [`Feature`] of a new level, and whoever would write it first asks [`FeatureLevel::require`].

use std::fmt;

/// A level of the cluster. 0: no release that knows of levels has founded it, or raised it since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeatureLevel(pub u32);

impl fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The levels that a release supports: it goes by any of them, as the cluster is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// The first one.
    pub lowest: FeatureLevel,
    /// The last one.
    pub highest: FeatureLevel,
}

impl Levels {
    /// Those of this release. `highest` goes up with a [`Feature`] of a new level, `lowest` once this release can't work beside masters of an earlier one any more.
    pub const OURS: Self = Self { lowest: FeatureLevel(0), highest: FeatureLevel(1) };

    /// As they are told; a release from before levels says nothing, which is 0. Of what makes no sense nothing is believed but the lowest.
    pub fn told(lowest: u32, highest: u32) -> Self {
        Self { lowest: FeatureLevel(lowest), highest: FeatureLevel(highest.max(lowest)) }
    }

    /// Whether that level is among them.
    pub fn include(self, level: FeatureLevel) -> bool {
        self.lowest <= level && level <= self.highest
    }

    /// Refuses a release that the cluster has left behind, or that has left the cluster's level behind.
    pub fn support(self, level: FeatureLevel) -> Result<(), Unsupported> {
        match self.include(level) {
            true => Ok(()),
            false => Err(Unsupported { level, levels: self }),
        }
    }
}

/// A release doesn't support the level that the cluster is at: half of a sentence about that release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("supports {levels}, and the cluster is at {level}: {}", advice(*.level, *.levels))]
pub struct Unsupported {
    /// Where the cluster is.
    pub level: FeatureLevel,
    /// What the release supports.
    pub levels: Levels,
}

fn advice(level: FeatureLevel, levels: Levels) -> &'static str {
    match level > levels.highest {
        true => {
            "others write what it would lose or misread. Start a release that supports that level, with the same state_dir"
        }
        false => {
            "it can't work beside others at that level any more. Start a release that supports that level, and raise it (`mooseng cluster level --raise`) before this one is started"
        }
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lowest == self.highest {
            true => write!(f, "feature level {}", self.highest),
            false => write!(f, "feature levels {} to {}", self.lowest, self.highest),
        }
    }
}

/// Something takes a higher level than the cluster is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} take feature level {}, and the cluster is at {level}: {}. Once all masters of all regions run a release that supports it, `mooseng cluster level --raise` allows it",
    .feature.what(), .feature.level(), .feature.without()
)]
pub struct Below {
    /// What.
    pub feature: Feature,
    /// Where the cluster is.
    pub level: FeatureLevel,
}

impl FeatureLevel {
    /// The one place that decides whether something may be written that not every release reads.
    pub fn require(self, feature: Feature) -> Result<(), Below> {
        match self >= feature.level() {
            true => Ok(()),
            false => Err(Below { feature, level: self }),
        }
    }

    /// What came with this level.
    pub fn brings(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |feature| feature.level() == self)
    }
}

macro_rules! features {
    ($($(#[$meta:meta])* $name:ident = $level:literal, $what:literal, $without:literal;)*) => {
        /// Something that masters of some releases can't do, and others rely on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Feature { $($(#[$meta])* $name),* }
        impl Feature {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];
            /// The level that it takes.
            pub fn level(self) -> FeatureLevel {
                match self { $(Self::$name => FeatureLevel($level)),* }
            }
            /// What it is, in the plural.
            pub fn what(self) -> &'static str {
                match self { $(Self::$name => $what),* }
            }
            /// What would come of it below that level: half of a sentence.
            pub fn without(self) -> &'static str {
                match self { $(Self::$name => $without),* }
            }
        }
    };
}

// The table: what each level brings. A row is never taken out, and its level never changed; docs/operations.md shows the same.
features! {
    /// docs/decisions/0039-classes-of-the-cluster.md
    ClusterClasses = 1, "storage classes of the cluster",
        "a master of an earlier release has volumes without them, and could assign one after it was deleted";
    /// docs/decisions/0032-volumes.md
    Volumes = 1, "volumes besides the root",
        "a master of an earlier release that writes a volume's record, or that of the directory which it is joined at, loses where it is joined";
    /// docs/decisions/0040-revocations.md
    Revocations = 1, "revocations that the cluster agrees on",
        "a master of an earlier release would go on to let in whom the others refuse, and they would be thought to be shut out. Until then revoke in the daemons' files (`mooseng-certs revoke`, and the setting `tls.revocations`)";
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::call::{Hello, HelloAnswer};
    use crate::version;

    #[test]
    fn what_a_level_lacks_is_refused_with_what_it_takes() {
        assert_eq!(FeatureLevel(1).require(Feature::Volumes), Ok(()));
        assert_eq!(FeatureLevel(2).require(Feature::Volumes), Ok(()));
        let below = FeatureLevel(0).require(Feature::Volumes).unwrap_err();
        let says = below.to_string();
        assert!(says.starts_with("volumes besides the root take feature level 1, and the cluster is at 0: "));
        assert!(says.contains("`mooseng cluster level --raise`"), "{says}");
    }

    #[test]
    fn each_level_up_to_the_highest_brings_something_and_none_beyond_it_does() {
        let (lowest, highest) = (Levels::OURS.lowest.0, Levels::OURS.highest.0);
        assert!(lowest <= highest);
        assert!((1..=highest).all(|level| FeatureLevel(level).brings().next().is_some()));
        assert!(Feature::ALL.iter().all(|feature| feature.level() <= Levels::OURS.highest));
        assert_eq!(FeatureLevel(1).brings().count(), 3);
    }

    #[test]
    fn operators_are_shown_the_same_table() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
        let page = std::fs::read_to_string(page).unwrap();
        for level in (1..=Levels::OURS.highest.0).map(FeatureLevel) {
            let what: Vec<&str> = level.brings().map(Feature::what).collect();
            let row = format!("| {level} | {} |", what.join(", "));
            assert!(page.contains(&row), "docs/operations.md lacks: {row}");
        }
    }

    #[test]
    fn a_release_from_before_levels_supports_none_but_the_first() {
        // The bytes of such a release's hello: versions 1 to 1, no features, its name.
        let hello = Hello::decode(&[8, 1, 16, 1, 34, 3, b'o', b'l', b'd'][..]).unwrap();
        assert_eq!(version::levels_of(&hello), Levels::default());
        assert_eq!(Levels::default(), Levels::told(0, 0));
        let answer = HelloAnswer::decode(&[8, 1, 26, 3, b'o', b'l', b'd'][..]).unwrap();
        assert_eq!(version::levels_answered(&answer), Levels::default());
        // And ours, by itself and through an answer.
        let ours = version::hello(Levels::OURS);
        let ours = Hello::decode(&ours.encode_to_vec()[..]).unwrap();
        assert_eq!(version::levels_of(&ours), Levels::OURS);
        let answer = version::agree(&version::hello(Levels::told(2, 3)), &ours);
        assert_eq!(version::levels_answered(&answer), Levels::told(2, 3), "the answerer's own");
    }

    #[test]
    fn ranges_are_said_and_nonsense_counts_as_the_lowest() {
        assert_eq!(Levels::told(1, 3).to_string(), "feature levels 1 to 3");
        assert_eq!(Levels::told(2, 2).to_string(), "feature level 2");
        assert_eq!(Levels::told(5, 1), Levels::told(5, 5));
        let levels = Levels::told(1, 2);
        assert!(levels.include(FeatureLevel(1)) && levels.include(FeatureLevel(2)));
        assert!(!levels.include(FeatureLevel(0)) && !levels.include(FeatureLevel(3)));
        assert_eq!(levels.support(FeatureLevel(2)), Ok(()));
        let left_behind = levels.support(FeatureLevel(3)).unwrap_err().to_string();
        assert!(
            left_behind.starts_with("supports feature levels 1 to 2, and the cluster is at 3: others write")
        );
        let too_new = levels.support(FeatureLevel(0)).unwrap_err().to_string();
        assert!(too_new.contains("before this one is started"), "{too_new}");
    }
}
