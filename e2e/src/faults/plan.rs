//! What goes wrong when: follows from the seed alone, so that a failure is repeated by `SEED=S ROUNDS=N`.

use std::fmt;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Chunkservers of the region under test.
pub const CHUNKSERVERS: usize = 3;
/// Mounts that applications work on.
pub const MOUNTS: usize = 2;

/// Whom a fault strikes. Who leads is known only when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The leading master.
    Leader,
    /// A master that follows.
    Follower,
    /// A chunkserver, counted from 1.
    Chunkserver(usize),
    /// A mount, counted from 1.
    Mount(usize),
}

impl Who {
    /// What it is, without its number.
    pub fn role(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Chunkserver(_) => "chunkserver",
            Self::Mount(_) => "mount",
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader | Self::Follower => f.write_str(self.role()),
            Self::Chunkserver(n) | Self::Mount(n) => write!(f, "{}-{n}", self.role()),
        }
    }
}

/// What a failing disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFailure {
    /// Reads answer EIO.
    Reads,
    /// Writes answer EIO.
    Writes,
    /// Flushes answer EIO, and what they were to write is lost.
    Flushes,
    /// There is no room.
    Full,
    /// It takes no changes: EROFS.
    ReadOnly,
}

/// What happens to one file of a stopped daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A bit of a chunk flips.
    Flip,
    /// A chunk loses its second half.
    Truncate,
    /// A chunk is gone.
    Missing,
    /// Two chunks have each other's bytes.
    Swapped,
    /// A chunk is as it was some seconds ago.
    Old,
    /// Half a frame stands behind the last one of the Raft log.
    TornLog,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// kill -9, and a start.
    Kill,
    /// kill -9, what it hadn't flushed is lost, and a start.
    PowerLoss,
    /// SIGSTOP for less than a lease.
    StopShort,
    /// SIGSTOP for longer than a lease.
    StopLong,
    /// All masters lose their power at once.
    AllMasters,
    /// All daemons lose their power at once.
    Everything,
    /// A chunkserver loses its power and comes back, while another one is gone: everything must be readable from what is left.
    LastCopy,
    /// Flushes of a chunkserver fail for a while; later it loses its power while another one is gone.
    LastCopyAfterBadFlushes,
    /// The disk fails for a while.
    Disk(DiskFailure),
    /// A file is damaged while its daemon is stopped.
    Damage(Damage),
    /// The two can't reach each other.
    Cut(Who),
    /// What it sends to that one is lost; the other way everything arrives.
    CutOneWay(Who),
    /// It reaches nobody, for longer than a lease.
    CutOff,
}

impl Kind {
    /// Whether all copies of everything must be whole before it, and no other fault may be near.
    pub fn needs_whole_copies(self) -> bool {
        matches!(self, Self::LastCopy | Self::LastCopyAfterBadFlushes | Self::Damage(_))
    }
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// Whom it strikes; the first of them where it strikes many.
    pub who: Who,
    /// When, since the round began.
    pub after_ms: u64,
    /// For how long.
    pub for_ms: u64,
    /// Where its own random choices start.
    pub seed: u64,
}

impl Fault {
    /// The row of the summary that it counts in.
    pub fn label(&self) -> String {
        let role = self.who.role();
        match self.kind {
            Kind::Kill => format!("kill -9 of the {role}"),
            Kind::PowerLoss => format!("power loss of the {role}"),
            Kind::StopShort => format!("the {role} hangs, short"),
            Kind::StopLong => format!("the {role} hangs, long"),
            Kind::AllMasters => "power loss of all masters".into(),
            Kind::Everything => "power loss of all daemons".into(),
            Kind::LastCopy => "power loss beside a lost chunkserver".into(),
            Kind::LastCopyAfterBadFlushes => "the same after failed flushes".into(),
            Kind::Disk(failure) => {
                let what = match failure {
                    DiskFailure::Reads => "EIO for reads",
                    DiskFailure::Writes => "EIO for writes",
                    DiskFailure::Flushes => "EIO for flushes",
                    DiskFailure::Full => "full disk",
                    DiskFailure::ReadOnly => "read-only disk",
                };
                format!("{what}, {role}")
            }
            Kind::Damage(damage) => {
                let what = match damage {
                    Damage::Flip => "a flipped bit",
                    Damage::Truncate => "a truncated chunk",
                    Damage::Missing => "a missing chunk",
                    Damage::Swapped => "two swapped chunks",
                    Damage::Old => "an old chunk",
                    Damage::TornLog => "a torn log",
                };
                format!("{what}, {role}")
            }
            Kind::Cut(other) => format!("cut of {role} and {}", other.role()),
            Kind::CutOneWay(other) => format!("what the {role} sends the {} is lost", other.role()),
            Kind::CutOff => format!("the {role} is cut off from all"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, who, after_ms, for_ms, .. } = self;
        write!(f, "{kind:?} of {who} at {after_ms} ms for {for_ms} ms")
    }
}

/// A round: faults, healing, checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// One or two.
    pub faults: Vec<Fault>,
    /// Whether `mooseng fsck` looks at the end.
    pub fsck: bool,
}

impl Round {
    /// The mount, counted from 0, that is away for longer than its lease, where that is all that goes wrong.
    pub fn away(&self) -> Option<usize> {
        match self.faults.as_slice() {
            [Fault { kind: Kind::StopLong | Kind::CutOff, who: Who::Mount(n), .. }] => Some(n - 1),
            _ => None,
        }
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(Fault::to_string).collect();
        write!(f, "{}{}", faults.join("; "), if self.fsck { "; fsck" } else { "" })
    }
}

/// Every so many rounds come from a deck of their own. By random numbers of their own, too: what comes else is the same without them, so that the seeds which
/// find planted bugs (docs/faults.md) go on finding them.
const APART_EVERY: usize = 7;

/// The plan of a campaign.
pub fn plan(seed: u64, rounds: usize) -> Vec<Round> {
    let (mut rng, mut rng_apart) = (SmallRng::seed_from_u64(seed), SmallRng::seed_from_u64(!seed));
    let (mut deck, mut deck_apart) = (Vec::new(), Vec::new());
    let next = |n: usize| match (n + 1) % APART_EVERY {
        0 => round_apart(&mut rng_apart, &mut deck_apart, n),
        _ => round(&mut rng, &mut deck, n),
    };
    let mut rounds: Vec<Round> = (0..rounds).map(next).collect();
    if let Some(last) = rounds.last_mut() {
        last.fsck = true;
    }
    rounds
}

fn round(rng: &mut SmallRng, deck: &mut Vec<(Kind, Who)>, n: usize) -> Round {
    // Each kind comes once before any comes again.
    if deck.is_empty() {
        *deck = kinds(rng);
        deck.shuffle(rng);
    }
    let Some((kind, who)) = deck.pop() else { return Round { faults: Vec::new(), fsck: false } };
    let mut faults = vec![fault(rng, kind, who)];
    if !kind.needs_whole_copies() && rng.random_bool(0.3) {
        let second = [Kind::Kill, Kind::StopShort, Kind::PowerLoss][rng.random_range(0..3)];
        let who = any(rng);
        let second = if matches!(who, Who::Mount(_)) { Kind::Kill } else { second };
        faults.push(fault(rng, second, who));
    }
    Round { faults, fsck: has_fsck(n) }
}

fn has_fsck(n: usize) -> bool {
    n % 5 == 4
}

/// Nothing else strikes beside it.
fn round_apart(rng: &mut SmallRng, deck: &mut Vec<(Kind, Who)>, n: usize) -> Round {
    if deck.is_empty() {
        *deck = kinds_apart(rng);
        deck.shuffle(rng);
    }
    let faults = deck.pop().map(|(kind, who)| fault(rng, kind, who)).into_iter().collect();
    Round { faults, fsck: has_fsck(n) }
}

fn kinds_apart(rng: &mut SmallRng) -> Vec<(Kind, Who)> {
    let server = Who::Chunkserver(rng.random_range(1..=CHUNKSERVERS));
    vec![
        (Kind::Cut(Who::Follower), Who::Follower),
        (Kind::Cut(server), Who::Follower),
        (Kind::CutOneWay(Who::Follower), Who::Leader),
        (Kind::CutOneWay(Who::Leader), Who::Follower),
        (Kind::CutOff, Who::Mount(rng.random_range(1..=MOUNTS))),
    ]
}

fn any(rng: &mut SmallRng) -> Who {
    match rng.random_range(0..4) {
        0 => Who::Leader,
        1 => Who::Follower,
        2 => Who::Chunkserver(rng.random_range(1..=CHUNKSERVERS)),
        _ => Who::Mount(rng.random_range(1..=MOUNTS)),
    }
}

fn kinds(rng: &mut SmallRng) -> Vec<(Kind, Who)> {
    let mut chunkserver = || Who::Chunkserver(rng.random_range(1..=CHUNKSERVERS));
    let servers = [chunkserver(), chunkserver(), chunkserver()];
    let mut kinds = Vec::new();
    for who in [Who::Leader, Who::Follower, servers[0]] {
        kinds.extend([Kind::Kill, Kind::PowerLoss, Kind::StopShort, Kind::StopLong].map(|kind| (kind, who)));
        for failure in [
            DiskFailure::Writes,
            DiskFailure::Flushes,
            DiskFailure::Full,
            DiskFailure::ReadOnly,
            DiskFailure::Reads,
        ] {
            kinds.push((Kind::Disk(failure), who));
        }
    }
    let mount = Who::Mount(rng.random_range(1..=MOUNTS));
    kinds.extend([Kind::Kill, Kind::StopShort, Kind::StopLong].map(|kind| (kind, mount)));
    // What is most likely to show a broken promise comes twice.
    for _ in 0..2 {
        kinds.push((Kind::AllMasters, Who::Leader));
        kinds.push((Kind::LastCopy, servers[1]));
        kinds.push((Kind::Kill, Who::Leader));
    }
    kinds.push((Kind::Everything, Who::Leader));
    kinds.push((Kind::LastCopyAfterBadFlushes, servers[2]));
    for damage in [Damage::Flip, Damage::Truncate, Damage::Missing, Damage::Swapped, Damage::Old] {
        kinds.push((Kind::Damage(damage), Who::Chunkserver(rng.random_range(1..=CHUNKSERVERS))));
    }
    kinds.push((Kind::Damage(Damage::TornLog), Who::Follower));
    let next = Who::Chunkserver(server_beside(servers[0]));
    kinds.extend(
        [
            (Who::Leader, Who::Follower),
            (Who::Leader, servers[0]),
            (servers[0], next),
            (mount, Who::Leader),
            (mount, servers[1]),
            (mount, Who::Follower),
        ]
        .map(|(one, other)| (Kind::Cut(other), one)),
    );
    kinds
}

/// Another chunkserver than this one.
fn server_beside(who: Who) -> usize {
    match who {
        Who::Chunkserver(n) => n % CHUNKSERVERS + 1,
        _ => 1,
    }
}

fn fault(rng: &mut SmallRng, kind: Kind, who: Who) -> Fault {
    let for_ms = match (kind, who) {
        (Kind::Kill | Kind::PowerLoss | Kind::AllMasters | Kind::Everything, _) => 50..3_000,
        // A session's lease is 10 s, a leader's below one.
        (Kind::StopShort, Who::Mount(_)) => 500..6_000,
        (Kind::StopShort, Who::Chunkserver(_)) => 500..4_000,
        (Kind::StopShort, _) => 100..500,
        (Kind::StopLong, Who::Mount(_)) => 12_000..15_000,
        (Kind::StopLong, _) => 4_000..9_000,
        (Kind::Disk(_), _) => 2_000..5_000,
        (Kind::Cut(_), Who::Mount(_)) => 1_000..5_000,
        (Kind::Cut(_) | Kind::CutOneWay(_), _) => 1_000..8_000,
        // Longer than a lease, and what it takes to note its end.
        (Kind::CutOff, _) => 13_000..15_000,
        (Kind::LastCopy | Kind::LastCopyAfterBadFlushes | Kind::Damage(_), _) => 1_000..2_000,
    };
    Fault {
        kind,
        who,
        after_ms: rng.random_range(300..1_500),
        for_ms: rng.random_range(for_ms),
        seed: rng.random(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed_and_begins_alike_whatever_its_length() {
        assert_eq!(plan(7, 40), plan(7, 40));
        assert_ne!(plan(7, 40), plan(8, 40));
        assert_eq!(plan(7, 40)[..9], plan(7, 10)[..9]);
        assert!(plan(7, 10)[9].fsck);
    }

    #[test]
    fn a_hundred_rounds_have_every_kind() {
        let labels = |rounds: &[Round]| -> BTreeSet<String> {
            rounds.iter().filter_map(|r| r.faults.first()).map(Fault::label).collect()
        };
        let all = labels(&plan(1, 100));
        assert!(all.len() >= 50, "{}: {all:#?}", all.len());
        assert_eq!(all, labels(&plan(2, 100)));
    }

    #[test]
    fn every_seventh_round_is_of_a_deck_apart_with_nothing_beside_it() {
        let mut seen = BTreeSet::new();
        for (n, round) in (1_usize..).zip(&plan(3, 100)) {
            let apart = |f: &Fault| {
                matches!(
                    (f.who, f.kind),
                    (_, Kind::CutOneWay(_) | Kind::CutOff)
                        | (Who::Follower, Kind::Cut(Who::Follower | Who::Chunkserver(_)))
                )
            };
            assert_eq!(round.faults.iter().any(apart), n % APART_EVERY == 0, "round {n}: {round}");
            if n % APART_EVERY == 0 {
                assert_eq!(round.faults.len(), 1, "round {n}: {round}");
                seen.insert(round.faults[0].label());
            }
        }
        assert_eq!(seen.len(), 5, "{seen:#?}");
    }

    #[test]
    fn a_mount_is_away_if_nothing_else_goes_wrong() {
        let fault = |kind, who| Fault { kind, who, after_ms: 0, for_ms: 13_000, seed: 1 };
        let alone = |kind, who| Round { faults: vec![fault(kind, who)], fsck: false };
        assert_eq!(alone(Kind::CutOff, Who::Mount(2)).away(), Some(1));
        assert_eq!(alone(Kind::StopLong, Who::Mount(1)).away(), Some(0));
        assert_eq!(alone(Kind::StopShort, Who::Mount(1)).away(), None);
        assert_eq!(alone(Kind::StopLong, Who::Leader).away(), None);
        let mut two = alone(Kind::CutOff, Who::Mount(2));
        two.faults.push(fault(Kind::Kill, Who::Leader));
        assert_eq!(two.away(), None);
    }
}
