//! Bugs that are planted on purpose, to see whether tests find them: a simulation is believed only after it has caught them.
//!
//! A site in the code reads `if plant::is(Plant::VoteUnflushed) { .. }`. Without the cargo feature `plants`, which no daemon that is
//! delivered has, [`is`] is a constant `false` and the site costs nothing. With it, one bug may be planted in a process: by [`set`], or
//! by the environment variable [`VARIABLE`]. `docs/simulation.md` lists them, each with the check that finds it.

use std::fmt;
use std::str::FromStr;

/// The environment variable that names the bug to plant.
pub const VARIABLE: &str = "MOOSENG_PLANT";

macro_rules! plants {
    ($($(#[$doc:meta])* $plant:ident = $name:literal,)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Plant {
            $($(#[$doc])* $plant,)*
        }

        impl Plant {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$plant,)*];

            /// Its name on command lines and in the docs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$plant => $name,)*
                }
            }
        }
    };
}

plants! {
    /// Flushes of disks answer well and do nothing.
    LostFlush = "lost-flush",
    /// The Raft log answers an append before it is flushed.
    AppendUnflushed = "append-unflushed",
    /// A leader applies, and answers, what its own log hasn't flushed.
    ApplyUnflushed = "apply-unflushed",
    /// A leader tells followers that something is committed which its own log hasn't flushed.
    CommitUnflushed = "commit-unflushed",
    /// A vote is answered while it is in memory only.
    VoteUnflushed = "vote-unflushed",
    /// Recovery of the Raft log takes a torn frame for a whole one.
    TornTailAccepted = "torn-tail-accepted",
    /// A snapshot is taken, and the Raft log purged behind it, without a flush of the store.
    PurgeUnflushed = "purge-unflushed",
    /// Whoever leads believes in its lease without looking.
    LeaseUnchecked = "lease-unchecked",
    /// A restarted master forgets that it promised its vote, and votes at once.
    RestartWaitSkipped = "restart-wait-skipped",
    /// A restarted leader goes on in its old term.
    LeadershipResumed = "leadership-resumed",
    /// A snapshot lacks what isn't in the base yet.
    SnapshotWithoutWindow = "snapshot-without-window",
    /// A batch is applied whatever it was resolved against.
    MismatchApplied = "mismatch-applied",
    /// The engine's leader doesn't look for conflicts.
    ConflictUnchecked = "conflict-unchecked",
    /// A change's outcome isn't recorded.
    OutcomeMissing = "outcome-missing",
    /// A chunkserver takes appends of any epoch.
    EpochUnchecked = "epoch-unchecked",
    /// The tail of a chain answers before its flush.
    AnswerBeforeTailFlush = "answer-before-tail-flush",
    /// A chunkserver answers a failed flush as a good one.
    FsyncErrorSwallowed = "fsync-error-swallowed",
    /// A member seals a chunk at its own length, whatever was agreed.
    SealLength = "seal-length",
    /// A chunkserver reads blocks without a look at their checksums.
    BlockUnverified = "block-unverified",
    /// A client answers recalls and goes on showing what was recalled.
    RecallSkipped = "recall-skipped",
    /// A client answers recalls with changes untold that it made alone.
    RecallAnsweredUntold = "recall-answered-untold",
    /// A client answers the recall of a file's locks with those unrecorded that it gave by itself.
    RecallAnsweredUnrecorded = "recall-answered-unrecorded",
    /// A custodian commits changes without recalling what others were promised.
    CommitUnrecalled = "commit-unrecalled",
    /// The rewriter swaps extents without a look at what they are by now.
    SwapUnchecked = "swap-unchecked",
    /// Small files are packed without a look at what they are by now.
    PackUnchecked = "pack-unchecked",
    /// Freeing the locks of ended sessions takes those of living ones, too.
    LivingLocksFreed = "living-locks-freed",
    /// Chunks are collected without a look at what files still name of them.
    CollectionUnchecked = "collection-unchecked",
    /// A region goes on as a home without a look at its lease.
    RegionLeaseUnchecked = "region-lease-unchecked",
    /// Changes commit whatever home epoch the volume has by now.
    CommitEpochUnchecked = "commit-epoch-unchecked",
    /// fsync of a `geo` volume doesn't wait for the sync set.
    GeoWaitSkipped = "geo-wait-skipped",
    /// Answers tell at once what other sessions changed of a `geo` volume.
    HoldBackSkipped = "hold-back-skipped",
    /// A `geo` volume is taken over by a region that isn't in its sync set.
    SyncSetUnchecked = "sync-set-unchecked",
    /// A home begins with ids that the one before may have given.
    IdRangesReused = "id-ranges-reused",
    /// A new home says that it has given sessions their locks back, and hasn't.
    ReclaimSkipped = "reclaim-skipped",
    /// What a replica has beyond the cut is taken out of its log, and its records stay as they are.
    UndoSkipped = "undo-skipped",
    /// A replica's leader takes nothing back of what it promised when it replays the log.
    NearRecallSkipped = "near-recall-skipped",
    /// A master that takes over one volume forgets what it promised of the others.
    TakeoverForgetsAll = "takeover-forgets-all",
}

impl fmt::Display for Plant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No bug has that name.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("no bug that can be planted is called {name:?}; there are {}", names())]
pub struct UnknownPlant {
    /// What was asked for.
    pub name: String,
}

fn names() -> String {
    Plant::ALL.iter().map(|plant| plant.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for Plant {
    type Err = UnknownPlant;
    fn from_str(name: &str) -> Result<Self, UnknownPlant> {
        let found = Self::ALL.iter().find(|plant| plant.name() == name);
        found.copied().ok_or_else(|| UnknownPlant { name: name.to_owned() })
    }
}

/// Why a bug can't be planted.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlantError {
    /// Its name is unknown.
    #[error(transparent)]
    Unknown(#[from] UnknownPlant),
    /// One process has one bug, from its beginning on.
    #[error("{planted:?} was planted already, or the time for it is over; plant {asked} in a new process")]
    TooLate {
        /// What is planted.
        planted: Option<Plant>,
        /// What was asked for.
        asked: Plant,
    },
    /// This build has no sites.
    #[error("this program can't plant {asked}: it was built without the cargo feature `plants`")]
    NotBuiltIn {
        /// What was asked for.
        asked: Plant,
    },
}

#[cfg(feature = "plants")]
mod planted {
    use std::sync::{Mutex, OnceLock, PoisonError};

    use super::{Plant, PlantError, VARIABLE};

    static PLANTED: OnceLock<Option<Plant>> = OnceLock::new();
    static BROKEN: Mutex<Option<String>> = Mutex::new(None);

    /// Looks at an invariant at the moment of an effect that rests on it, for what can't be seen afterwards from outside. Only in builds with plants.
    pub fn look(invariant: impl FnOnce() -> Result<(), String>) {
        if let Err(what) = invariant() {
            BROKEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
        }
    }

    /// What the first [`look`] of this process saw that found an invariant broken.
    pub fn broken() -> Option<String> {
        BROKEN.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn named() -> Result<Option<Plant>, PlantError> {
        match std::env::var(VARIABLE) {
            Ok(name) => Ok(Some(name.parse()?)),
            Err(_) => Ok(None),
        }
    }

    /// Whether this bug is planted.
    pub fn is(plant: Plant) -> bool {
        let planted = PLANTED.get_or_init(|| match named() {
            Ok(planted) => planted,
            // Only a build for tests gets here: a test that runs without the bug that it was to have proves nothing.
            Err(error) => panic!("{VARIABLE} is wrong: {error}"),
        });
        *planted == Some(plant)
    }

    /// Plants a bug in this process, once, before anything asked for one.
    pub fn set(plant: Plant) -> Result<(), PlantError> {
        let planted = *PLANTED.get_or_init(|| Some(plant));
        if planted == Some(plant) { Ok(()) } else { Err(PlantError::TooLate { planted, asked: plant }) }
    }

    /// Plants what the environment names, and answers it so that a daemon can shout it at its start.
    pub fn from_environment() -> Result<Option<Plant>, PlantError> {
        let plant = named()?;
        if let Some(plant) = plant {
            set(plant)?;
        }
        Ok(plant)
    }
}

#[cfg(not(feature = "plants"))]
mod planted {
    use super::{Plant, PlantError, VARIABLE};

    /// Whether this bug is planted: never in this build.
    #[inline(always)]
    pub const fn is(_plant: Plant) -> bool {
        false
    }

    /// Doesn't look: this build is no test of plants.
    #[inline(always)]
    pub fn look(_invariant: impl FnOnce() -> Result<(), String>) {}

    /// Nobody looked.
    pub const fn broken() -> Option<String> {
        None
    }

    /// Refuses: this build has no sites.
    pub fn set(plant: Plant) -> Result<(), PlantError> {
        Err(PlantError::NotBuiltIn { asked: plant })
    }

    /// Refuses if the environment asks for a bug: whoever set it expects one.
    pub fn from_environment() -> Result<Option<Plant>, PlantError> {
        match std::env::var(VARIABLE) {
            Ok(name) => Err(PlantError::NotBuiltIn { asked: name.parse()? }),
            Err(_) => Ok(None),
        }
    }
}

pub use planted::{broken, from_environment, is, look, set};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_parse() {
        for plant in Plant::ALL {
            assert_eq!(plant.name().parse(), Ok(*plant));
        }
        let error = "no-such-bug".parse::<Plant>().unwrap_err().to_string();
        assert!(error.contains("no-such-bug") && error.contains("lost-flush"), "{error}");
    }

    #[test]
    #[cfg(not(feature = "plants"))]
    fn a_build_without_sites_says_so() {
        assert!(Plant::ALL.iter().all(|plant| !is(*plant)));
        assert_eq!(set(Plant::LostFlush), Err(PlantError::NotBuiltIn { asked: Plant::LostFlush }));
    }

    /// The table in docs/simulation.md names each plant once, in this order.
    #[test]
    fn the_docs_list_every_plant() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/simulation.md");
        let text = std::fs::read_to_string(path).unwrap();
        let listed: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(name, _)| name)
            .collect();
        let built: Vec<&str> = Plant::ALL.iter().map(|plant| plant.name()).collect();
        assert_eq!(listed, built, "docs/simulation.md's table and the enum Plant differ");
    }
}
