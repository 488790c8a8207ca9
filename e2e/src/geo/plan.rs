//! How the home is lost in each round: follows from the seed alone.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::network::Way;

/// How a region is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Packets between it and the others are dropped; its mount is within it.
    Cut(Way),
    /// kill -9 of all its daemons.
    Kill,
    /// SIGSTOP of all its daemons, and SIGCONT later.
    Pause,
}

/// All of them.
pub const KINDS: [Kind; 5] =
    [Kind::Cut(Way::Both), Kind::Cut(Way::Out), Kind::Cut(Way::In), Kind::Kill, Kind::Pause];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cut(Way::Both) => "cut off both ways",
            Self::Cut(Way::Out) => "cut off, what it sends is lost",
            Self::Cut(Way::In) => "cut off, what it is sent is lost",
            Self::Kill => "killed",
            Self::Pause => "paused",
        })
    }
}

/// A round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// How the home is lost.
    pub kind: Kind,
    /// How long the workload goes on before.
    pub before: Duration,
    /// How long the region stays lost once another one takes changes.
    pub after: Duration,
    /// Where the choices of the workload start.
    pub seed: u64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (self.before.as_millis(), self.after.as_millis());
        write!(f, "the home is {} after {before} ms, and back {after} ms after the takeover", self.kind)
    }
}

/// So many rounds of each kind of `kinds`, each kind once before any comes again.
pub fn plan(seed: u64, rounds: usize, kinds: &[Kind]) -> Vec<Round> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut plan = Vec::new();
    for _ in 0..rounds {
        let mut kinds = kinds.to_vec();
        kinds.shuffle(&mut rng);
        plan.extend(kinds.into_iter().map(|kind| Round {
            kind,
            before: Duration::from_millis(rng.random_range(1_500..6_000)),
            after: Duration::from_millis(rng.random_range(0..5_000)),
            seed: rng.random(),
        }));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_plan_and_each_kind_comes_as_often() {
        let rounds = plan(7, 3, &KINDS);
        assert_eq!(rounds, plan(7, 3, &KINDS));
        assert_ne!(rounds, plan(8, 3, &KINDS));
        for kind in KINDS {
            assert_eq!(rounds.iter().filter(|r| r.kind == kind).count(), 3, "{kind}");
            assert_eq!(rounds[..5].iter().filter(|r| r.kind == kind).count(), 1, "{kind}");
        }
    }
}
