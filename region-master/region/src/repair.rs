//! Repair, draining and rebalancing: which copies of a chunk are made, and which are dropped. Pure functions of what is known.
//!
//! ```text
//!   facts -> need() -> queue, most endangered first -> decide() with fresh facts -> Copy | Adopt | Drop
//! ```
//! - Copies are made before copies are dropped: a chunk loses one only while as many good ones as it should have stay, on chunkservers that are
//!   here and aren't being emptied. So a move is a copy, and a drop once the copy is confirmed; nothing has to be remembered between.
//! - A chunkserver without the labels of a chunk's storage class is, for this chunk, like one that is being emptied.
//! - A chunkserver that is silent for less than the grace causes nothing: its copies are hoped for, neither counted as good nor replaced.
//! - A copy goes to where it shares least with those that stay: another zone, else another rack, else another host. Where all of these are busy it
//!   waits for one of them.
//! - What is under way is bounded, for each chunkserver and in all ([`flight`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_wire::ChunkId;

use crate::class::{self, Class};
use crate::placement::{Candidate, closeness};
use crate::registry::{Liveness, Registry};

pub mod flight;
pub mod open;
pub mod queue;

pub use flight::{Flight, Flights, Limits};
pub use open::{Member, OpenCopy, OpenFacts, end_open, open_copy};
pub use queue::Queue;

/// Whether a chunkserver's copies count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Its heartbeats come.
    Here,
    /// They don't, for less than the grace.
    Silent,
    /// It is given up.
    Lost,
}

/// How a chunkserver stands for house-keeping. `watching_since`: before it this master saw no heartbeats, because it didn't lead, or was paused.
pub fn condition(
    registry: &Registry,
    name: &str,
    now: BootTime,
    watching_since: BootTime,
    grace: Duration,
) -> Condition {
    if registry.liveness(name, now) == Liveness::Alive {
        return Condition::Here;
    }
    let heard = registry.get(name).map_or(watching_since, |s| s.last_beat.max(watching_since));
    if now.since(heard) < grace { Condition::Silent } else { Condition::Lost }
}

/// A chunkserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// As for placements.
    pub candidate: Candidate,
    /// Whether its copies count.
    pub condition: Condition,
    /// Bytes of chunks that locations put there, those under way included.
    pub bytes_used: u64,
    /// An order to it failed a moment ago: it isn't a target, and a source only where there is no other.
    pub shunned: bool,
}

impl Server {
    fn draining(&self) -> bool {
        self.candidate.draining
    }

    /// Whether `a` is fuller than `b`, by share of what they can hold, were `a` to hold `less` bytes less and `b` `more` bytes more.
    fn fuller(a: &Self, less: u64, b: &Self, more: u64) -> std::cmp::Ordering {
        let whole = |s: &Self| u128::from(s.bytes_used) + u128::from(s.candidate.bytes_free);
        let (used_a, used_b) = (a.bytes_used.saturating_sub(less), b.bytes_used.saturating_add(more));
        (u128::from(used_a) * whole(b).max(1)).cmp(&(u128::from(used_b) * whole(a).max(1)))
    }
}

/// The chunkservers, by name.
pub type Servers = BTreeMap<String, Server>;

/// What is known of a copy that a location names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Sealed, as long as it should be, on a chunkserver that is here and has said so.
    Good,
    /// Its chunkserver is here, and hasn't said yet.
    Unknown,
    /// Missing, corrupt or too short.
    Bad,
    /// Its chunkserver is silent.
    Silent,
    /// Its chunkserver is lost.
    Lost,
}

/// Whether a time is so far ahead that a clock must have been wrong: how long ago it was nobody knows.
pub fn is_ahead(time_ns: i64, now_ns: i64, margin_ns: i64) -> bool {
    time_ns > now_ns.saturating_add(margin_ns)
}

/// How long ago a time was. One that is ahead is of a clock that was wrong: it was as long ago as this leader has `known` of it, at least.
pub fn age(time_ns: i64, now_ns: i64, margin_ns: i64, known: impl FnOnce() -> Duration) -> Duration {
    if is_ahead(time_ns, now_ns, margin_ns) {
        return known();
    }
    Duration::from_nanos(u64::try_from(now_ns.saturating_sub(time_ns)).unwrap_or(0))
}

/// By which time a chunk must have been sealed so that nobody is about to name it any more: `after_ns` ago. One whose time is ahead was sealed by a leader before
/// this one, which has `watched` for so long; then its own time will do.
pub fn sealed_by(sealed_ns: i64, now_ns: i64, after_ns: i64, watched: Duration) -> i64 {
    let waited = watched.as_nanos() >= u128::try_from(after_ns).unwrap_or(0);
    match is_ahead(sealed_ns, now_ns, after_ns) && waited {
        true => sealed_ns,
        false => now_ns.saturating_sub(after_ns),
    }
}

/// Whether a seal is so long ago that its chunkservers have reported it. One of a time to come is of a clock that was wrong: how long ago it is nobody knows, and what
/// is missing is missing.
pub fn is_settled(sealed_ns: i64, now_ns: i64, settle_ns: i64) -> bool {
    sealed_ns.saturating_add(settle_ns) < now_ns || is_ahead(sealed_ns, now_ns, settle_ns)
}

/// What the registry knows of a copy of a sealed chunk. `settled`: the seal is so long ago that its chunkservers have reported it.
pub fn copy_state(
    registry: &Registry,
    name: &str,
    condition: Condition,
    chunk: ChunkId,
    length: u64,
    settled: bool,
) -> CopyState {
    match condition {
        Condition::Silent => return CopyState::Silent,
        Condition::Lost => return CopyState::Lost,
        Condition::Here => {}
    }
    let Some(server) = registry.get(name).filter(|s| s.inventory_at().is_some()) else {
        return CopyState::Unknown;
    };
    match server.copy(chunk) {
        Some(copy) if copy.corrupt => CopyState::Bad,
        Some(copy) if copy.sealed && copy.length >= length => CopyState::Good,
        // It was told of the seal, and will be again.
        Some(copy) if copy.length >= length || !settled => CopyState::Unknown,
        None if !settled => CopyState::Unknown,
        Some(_) | None => CopyState::Bad,
    }
}

/// A sealed chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkFacts {
    /// Which.
    pub chunk: ChunkId,
    /// Its bytes.
    pub length: u64,
    /// Its storage class: how many copies it should have, and where.
    pub class: Class,
    /// The copies that its location names.
    pub copies: Vec<(String, CopyState)>,
    /// Chunkservers with a good copy that the location doesn't name.
    pub strays: Vec<String>,
    /// Chunkservers that are told to delete their copy.
    pub deleting: BTreeSet<String>,
    /// Those of them that haven't heard of it: the order can be taken back.
    pub untold: BTreeSet<String>,
}

/// Why a chunk needs a copy, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// It has fewer good copies than it should.
    Endangered {
        /// How many it has.
        good: usize,
    },
    /// One of its copies is on a chunkserver that is being emptied.
    Draining,
    /// One of its copies is on a chunkserver that lacks labels of its storage class.
    Misplaced,
    /// Two of its copies share more of a failure domain than they have to.
    Apart,
    /// One of its copies is on a chunkserver that is fuller than others.
    Balance,
}

/// What to do about a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Well,
    /// Nothing now: chunkservers are awaited or busy.
    Wait(Need),
    /// Nothing, until another chunkserver comes or has room: none can take a copy.
    Stuck(Need),
    /// Make a copy.
    Copy {
        /// Why.
        need: Need,
        /// From.
        source: String,
        /// To.
        target: String,
    },
    /// Take a copy into the location that is there already.
    Adopt {
        /// Where.
        server: String,
    },
    /// Take a copy out of the location; then it may be deleted.
    Drop {
        /// Where.
        server: String,
    },
}

struct View<'a> {
    facts: &'a ChunkFacts,
    servers: &'a Servers,
}

impl<'a> View<'a> {
    fn server(&self, name: &str) -> Option<&'a Server> {
        self.servers.get(name)
    }

    fn wanted(&self) -> usize {
        self.facts.class.copies
    }

    fn fits(&self, server: &Server) -> bool {
        class::fits(&self.facts.class.labels, &server.candidate)
    }

    fn draining(&self, name: &str) -> bool {
        self.server(name).is_some_and(Server::draining)
    }

    /// Whether a copy there is to be replaced by one elsewhere. Nothing is known of the labels of one that isn't registered.
    fn leaving(&self, name: &str) -> bool {
        self.server(name).is_some_and(|server| server.draining() || !self.fits(server))
    }

    fn of(&self, states: &[CopyState]) -> Vec<&'a str> {
        let copies = self.facts.copies.iter();
        copies.filter(|(_, state)| states.contains(state)).map(|(name, _)| name.as_str()).collect()
    }

    /// Copies that stay where they are.
    fn staying(&self, states: &[CopyState]) -> Vec<&'a str> {
        self.of(states).into_iter().filter(|name| !self.leaving(name)).collect()
    }

    fn candidates(&self, names: &[&str]) -> Vec<&'a Candidate> {
        names.iter().filter_map(|name| self.server(name)).map(|s| &s.candidate).collect()
    }

    /// What the worst pair of these shares, and all pairs together.
    fn crowding(&self, names: &[&str]) -> (u8, u32) {
        let candidates = self.candidates(names);
        let pairs = candidates
            .iter()
            .enumerate()
            .flat_map(|(i, a)| candidates[..i].iter().map(|b| closeness(a, &[*b])));
        pairs.fold((0, 0), |(worst, sum), shared| (worst.max(shared), sum + u32::from(shared)))
    }

    /// The good copy that is missed least: the rest is spread best without it, or it is on the fullest chunkserver.
    fn surplus(&self, good: &[&'a str]) -> Option<&'a str> {
        let without = |name: &str| good.iter().copied().filter(|g| *g != name).collect::<Vec<_>>();
        good.iter().copied().min_by(|a, b| {
            let crowding = self.crowding(&without(a)).cmp(&self.crowding(&without(b)));
            let fullness = || match (self.server(a), self.server(b)) {
                (Some(a), Some(b)) => Server::fuller(b, 0, a, 0),
                _ => std::cmp::Ordering::Equal,
            };
            crowding.then_with(fullness).then_with(|| a.cmp(b))
        })
    }

    /// Whether a copy may be made there at all. A bad copy may be replaced in its place.
    fn takes(&self, server: &Server) -> bool {
        let name = &server.candidate.name;
        let held = self.facts.copies.iter().find(|(n, _)| n == name).map(|(_, state)| *state);
        server.condition == Condition::Here
            && server.candidate.writable
            && !server.draining()
            && self.fits(server)
            && !server.shunned
            && server.candidate.bytes_free > self.facts.length
            && held.is_none_or(|state| state == CopyState::Bad)
            && !self.facts.deleting.contains(name)
    }

    fn holds_bad(&self, name: &str) -> bool {
        self.of(&[CopyState::Bad]).contains(&name)
    }

    /// Where a copy shares least with the ones that stay, emptiest first.
    fn targets(&self, staying: &[&str]) -> Vec<&'a Server> {
        let beside = self.candidates(staying);
        let open: Vec<&Server> = self.servers.values().filter(|s| self.takes(s)).collect();
        // The place of a bad copy is the last choice: its disk may be to blame.
        let fresh = open.iter().any(|s| !self.holds_bad(&s.candidate.name));
        let open = open.into_iter().filter(|s| !fresh || !self.holds_bad(&s.candidate.name));
        let mut ranked: Vec<(u8, &Server)> = open.map(|s| (closeness(&s.candidate, &beside), s)).collect();
        let best = ranked.iter().map(|(shared, _)| *shared).min();
        ranked.retain(|(shared, _)| Some(*shared) == best);
        ranked.sort_by(|(_, a), (_, b)| {
            Server::fuller(a, 0, b, 0).then_with(|| a.candidate.name.cmp(&b.candidate.name))
        });
        ranked.into_iter().map(|(_, s)| s).collect()
    }

    fn need(&self) -> Option<Need> {
        let staying = self.staying(&[CopyState::Good]).len();
        let hoped = self.staying(&[CopyState::Unknown, CopyState::Silent]).len();
        let good = self.of(&[CopyState::Good]).len();
        if staying + hoped >= self.wanted() {
            return None;
        }
        let leaving = self.of(&[CopyState::Unknown, CopyState::Silent]).len() - hoped;
        // What is hoped for on one that is left would do, if it were here: it isn't endangered by that.
        if good >= self.wanted() || (good + hoped + leaving >= self.wanted() && good > 0) {
            let draining = self.facts.copies.iter().any(|(name, _)| self.draining(name));
            return Some(if draining { Need::Draining } else { Need::Misplaced });
        }
        Some(Need::Endangered { good })
    }

    /// A copy to drop, once there are enough others.
    fn excess(&self) -> Option<&'a str> {
        let staying = self.staying(&[CopyState::Good]);
        if staying.len() < self.wanted() || staying.is_empty() {
            return None;
        }
        let leaving = self.of(&[CopyState::Good]).into_iter().find(|name| self.leaving(name));
        let bad = self.of(&[CopyState::Bad]).first().copied();
        let lost = self.of(&[CopyState::Lost]).first().copied();
        let surplus = || if staying.len() > self.wanted() { self.surplus(&staying) } else { None };
        bad.or(lost).or(leaving).or_else(surplus)
    }

    /// A chunkserver on which a copy would share less with the others than one that there is: strictly, so that moves come to an end.
    fn apart(&self, staying: &[&'a str]) -> Option<&'a str> {
        let victim = self.surplus(staying)?;
        let mut after: Vec<&str> = staying.iter().copied().filter(|name| *name != victim).collect();
        let target = self.targets(&after).first()?.candidate.name.as_str();
        after.push(target);
        (self.crowding(&after) < self.crowding(staying)).then_some(target)
    }

    /// A chunkserver that is emptier than one of the copies', by enough, and no worse a place.
    fn balance(&self, staying: &[&'a str], percent: u32) -> Option<&'a str> {
        let mut holders: Vec<&Server> = staying.iter().filter_map(|name| self.server(name)).collect();
        holders.sort_by(|a, b| Server::fuller(b, 0, a, 0));
        holders.into_iter().find_map(|full| self.emptier(full, staying, percent))
    }

    fn emptier(&self, full: &Server, staying: &[&'a str], percent: u32) -> Option<&'a str> {
        let name = full.candidate.name.as_str();
        let rest: Vec<&str> = staying.iter().copied().filter(|n| *n != name).collect();
        let is = self.crowding(staying);
        let no_closer = |s: &Server| {
            let after: Vec<&str> = rest.iter().copied().chain([s.candidate.name.as_str()]).collect();
            self.crowding(&after) <= is
        };
        let length = self.facts.length;
        let margin = full.bytes_used / 100 * u64::from(percent);
        let open = self.servers.values().filter(|s| self.takes(s) && !self.holds_bad(&s.candidate.name));
        let emptier = |s: &&Server| {
            Server::fuller(full, margin, s, 0).is_gt()
                // The order doesn't turn around by the move: so moves come to an end.
                && Server::fuller(full, length, s, length).is_ge()
                && no_closer(s)
        };
        let target = open.filter(emptier).min_by(|a, b| Server::fuller(a, 0, b, 0))?;
        Some(target.candidate.name.as_str())
    }

    /// The good copy, of those that are wanted, on the chunkserver that answers best.
    fn best(&self, flights: &Flights, wanted: impl Fn(&str) -> bool) -> Option<&'a str> {
        let good = self.of(&[CopyState::Good]);
        let key = |name: &&str| (self.server(name).is_some_and(|s| s.shunned), flights.at(name));
        good.into_iter().filter(|name| wanted(name)).min_by_key(key)
    }

    fn source(&self, flights: &Flights) -> Option<&'a str> {
        self.best(flights, |name| flights.has_room(name, self.facts.length))
    }

    /// Whether a copy that lies about may be taken up.
    fn is_adoptable(&self, name: &str) -> bool {
        let good = self.of(&[CopyState::Good]);
        let hoped = self.of(&[CopyState::Unknown, CopyState::Silent]);
        // The last one is taken up wherever it lies, also where it was to be deleted, for others that aren't any more.
        let may_stay = !self.leaving(name) || (good.is_empty() && !self.draining(name));
        let is_last = good.is_empty() && hoped.is_empty();
        let goes = self.facts.deleting.contains(name) && !(is_last && self.facts.untold.contains(name));
        // One that couldn't be compared a moment ago keeps no other copy from being made.
        let answers = |s: &Server| s.condition == Condition::Here && !s.shunned;
        !goes && may_stay && self.server(name).is_some_and(answers)
    }

    fn copy(&self, need: Need, targets: &[&str], flights: &Flights) -> Decision {
        let length = self.facts.length;
        if targets.is_empty() {
            return Decision::Stuck(need);
        }
        let target = targets.iter().find(|name| flights.has_room(name, length));
        match (self.source(flights), target) {
            (Some(source), Some(target)) if flights.takes(need) => {
                Decision::Copy { need, source: source.to_owned(), target: (*target).to_owned() }
            }
            _ => Decision::Wait(need),
        }
    }
}

/// Whether a copy of the chunk is on a chunkserver that is known to lack labels of its class.
pub fn is_misplaced<'n>(
    class: &Class,
    copies: impl IntoIterator<Item = &'n String>,
    servers: &Servers,
) -> bool {
    let lacks = |name: &String| servers.get(name).is_some_and(|s| !class::fits(&class.labels, &s.candidate));
    copies.into_iter().any(lacks)
}

/// Why the chunk needs a copy, if it does. Rebalancing is left to [`decide`].
pub fn need(facts: &ChunkFacts, servers: &Servers) -> Option<Need> {
    View { facts, servers }.need()
}

/// What to do about a chunk now.
pub fn decide(facts: &ChunkFacts, servers: &Servers, flights: &Flights) -> Decision {
    let view = View { facts, servers };
    if flights.has(facts.chunk) {
        return view.need().map_or(Decision::Well, Decision::Wait);
    }
    if let Some(need) = view.need() {
        if let Some(server) = facts.strays.iter().find(|name| view.is_adoptable(name)) {
            return Decision::Adopt { server: server.clone() };
        }
        let staying = view.staying(&[CopyState::Good, CopyState::Unknown, CopyState::Silent]);
        let targets: Vec<&str> =
            view.targets(&staying).into_iter().map(|s| s.candidate.name.as_str()).collect();
        return view.copy(need, &targets, flights);
    }
    if let Some(server) = view.excess() {
        return Decision::Drop { server: server.to_owned() };
    }
    let staying = view.staying(&[CopyState::Good]);
    // Only a chunk that is well is moved for the sake of order.
    if staying.len() != facts.class.copies || facts.copies.len() != facts.class.copies {
        return Decision::Well;
    }
    if let Some(target) = view.apart(&staying) {
        return view.copy(Need::Apart, &[target], flights);
    }
    if let Some(target) = view.balance(&staying, flights.limits().spread_percent) {
        return view.copy(Need::Balance, &[target], flights);
    }
    Decision::Well
}

/// The good copy that others are compared with, if there is one: busy chunkservers have time for that.
pub fn compared_with(facts: &ChunkFacts, servers: &Servers, flights: &Flights) -> Option<String> {
    View { facts, servers }.best(flights, |_| true).map(str::to_owned)
}

#[cfg(test)]
mod tests;
