//! Copies under way, bounded: house-keeping must not take the disks and the network from those whose data it is.

use std::collections::BTreeMap;

use mooseng_wire::ChunkId;

use super::Need;

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Copies that one chunkserver gives or takes at a time.
    pub copies_per_server: usize,
    /// Bytes of them. One copy is always let through.
    pub bytes_per_server: u64,
    /// Copies at a time in all.
    pub copies_max: usize,
    /// Of these, copies for the sake of order: rebalancing, and other places for copies that are too close.
    pub tidying_max: usize,
    /// By how many percent a chunkserver must be emptier than another to get some of its copies.
    pub spread_percent: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            copies_per_server: 2,
            bytes_per_server: 256 << 20,
            copies_max: 64,
            tidying_max: 8,
            spread_percent: 10,
        }
    }
}

/// A copy under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flight {
    /// Why.
    pub need: Need,
    /// From.
    pub source: String,
    /// To.
    pub target: String,
    /// How much.
    pub bytes: u64,
}

/// All copies under way.
#[derive(Clone, Debug, Default)]
pub struct Flights {
    limits: Limits,
    flights: BTreeMap<ChunkId, Flight>,
    servers: BTreeMap<String, (usize, u64)>,
}

impl Flights {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.flights.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Whether a copy of the chunk is under way.
    pub fn has(&self, chunk: ChunkId) -> bool {
        self.flights.contains_key(&chunk)
    }

    /// Copies that a chunkserver gives and takes.
    pub fn at(&self, server: &str) -> usize {
        self.servers.get(server).map_or(0, |(copies, _)| *copies)
    }

    /// Bytes on their way to a chunkserver.
    pub fn bytes_to(&self, server: &str) -> u64 {
        self.flights.values().filter(|f| f.target == server).map(|f| f.bytes).sum()
    }

    /// Whether a chunkserver may give or take one more.
    pub fn has_room(&self, server: &str, bytes: u64) -> bool {
        let (copies, under_way) = self.servers.get(server).copied().unwrap_or_default();
        copies == 0
            || (copies < self.limits.copies_per_server
                && under_way.saturating_add(bytes) <= self.limits.bytes_per_server)
    }

    /// Whether one more for that reason fits in all.
    pub fn takes(&self, need: Need) -> bool {
        let tidies = |need: Need| matches!(need, Need::Apart | Need::Balance);
        let tidying = || self.flights.values().filter(|f| tidies(f.need)).count();
        self.flights.len() < self.limits.copies_max && (!tidies(need) || tidying() < self.limits.tidying_max)
    }

    /// A copy begins.
    pub fn begin(&mut self, chunk: ChunkId, flight: Flight) {
        self.end(chunk);
        for server in [&flight.source, &flight.target] {
            let (copies, bytes) = self.servers.entry(server.clone()).or_default();
            *copies += 1;
            *bytes += flight.bytes;
        }
        self.flights.insert(chunk, flight);
    }

    /// It ended, well or not.
    pub fn end(&mut self, chunk: ChunkId) {
        let Some(flight) = self.flights.remove(&chunk) else { return };
        for server in [&flight.source, &flight.target] {
            if let Some((copies, bytes)) = self.servers.get_mut(server) {
                *copies -= 1;
                *bytes -= flight.bytes;
                if *copies == 0 {
                    self.servers.remove(server);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(source: &str, target: &str, bytes: u64, need: Need) -> Flight {
        Flight { need, source: source.into(), target: target.into(), bytes }
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let limits = Limits {
            copies_per_server: 2,
            bytes_per_server: 100,
            copies_max: 3,
            tidying_max: 1,
            ..Limits::default()
        };
        let mut flights = Flights::new(limits);
        assert!(flights.has_room("a", 1_000), "one is always let through");
        flights.begin(ChunkId(1), flight("a", "b", 60, Need::Balance));
        assert!(flights.has_room("a", 40) && !flights.has_room("b", 41) && flights.has_room("c", 41));
        assert!(!flights.takes(Need::Apart) && flights.takes(Need::Draining));
        flights.begin(ChunkId(2), flight("a", "c", 10, Need::Draining));
        assert!(!flights.has_room("a", 1) && flights.has_room("c", 1));
        flights.begin(ChunkId(3), flight("b", "c", 10, Need::Draining));
        assert!(!flights.takes(Need::Endangered { good: 1 }));
        assert_eq!((flights.len(), flights.at("c"), flights.bytes_to("c")), (3, 2, 20));
        for chunk in 1..=4 {
            flights.end(ChunkId(chunk));
        }
        assert!(flights.is_empty() && flights.servers.is_empty());
    }
}
