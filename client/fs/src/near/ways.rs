//! How far masters of other regions are from this host, as far as that was measured.

use std::collections::BTreeMap;
use std::time::Duration;

/// Masters remembered at most: for another one that is forgotten which wasn't asked about for longest.
const REMEMBERED_MAX: usize = 256;

/// What is known of the way to a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// A round trip there takes so long.
    Takes(Duration),
    /// Nobody has asked yet.
    Unknown,
    /// It didn't answer when it was asked last.
    Lost,
}

/// The ways to masters.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    /// By their addresses, each with the count at which it was used last.
    of: BTreeMap<String, (Way, u64)>,
    /// Counts uses.
    used: u64,
}

impl Ways {
    fn of(&mut self, address: &str) -> Way {
        self.used += 1;
        match self.of.get_mut(address) {
            Some((way, used)) => {
                *used = self.used;
                *way
            }
            None => Way::Unknown,
        }
    }

    fn note(&mut self, address: &str, way: Way) {
        self.used += 1;
        if self.of.len() >= REMEMBERED_MAX && !self.of.contains_key(address) {
            let oldest = self.of.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(address, _)| address.clone()) {
                self.of.remove(&oldest);
            }
        }
        self.of.insert(address.to_owned(), (way, self.used));
    }

    /// A question that takes no time there was answered after so long.
    pub fn measured(&mut self, address: &str, took: Duration) {
        self.note(address, Way::Takes(took));
    }

    /// Something was answered after so long, with whatever it took there and to connect: the way takes no longer.
    pub fn answered(&mut self, address: &str, took: Duration) {
        let way = Way::Takes(took).min(self.of(address));
        self.note(address, way);
    }

    /// It wasn't reached.
    pub fn lost(&mut self, address: &str) {
        self.note(address, Way::Lost);
    }

    /// Puts the nearest in front. Those of which nothing is known stay in their order, before those that weren't reached.
    pub fn nearest_first(&mut self, addresses: &mut [String]) {
        addresses.sort_by_cached_key(|address| self.of(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_in_front_and_who_wasnt_reached_comes_last() {
        let mut ways = Ways::default();
        let ordered = |ways: &mut Ways| {
            let mut addresses = ["a", "b", "c", "d", "e"].map(String::from);
            ways.nearest_first(&mut addresses);
            addresses.concat()
        };
        assert_eq!(ordered(&mut ways), "abcde", "as they were told");
        let ms = Duration::from_millis;
        ways.lost("a");
        ways.measured("d", ms(80));
        ways.answered("c", ms(120));
        assert_eq!(ordered(&mut ways), "dcbea");
        // What took long there says nothing of the way, and less than was measured makes it shorter.
        ways.answered("d", ms(900));
        ways.answered("c", ms(70));
        ways.answered("a", ms(75));
        assert_eq!(ordered(&mut ways), "cadbe");
        ways.measured("c", ms(100));
        ways.lost("d");
        assert_eq!(ordered(&mut ways), "acbed");
    }

    /// Found by review: once so many were known, nobody else's way was.
    #[test]
    fn who_wasnt_used_for_longest_makes_room() {
        let mut ways = Ways::default();
        let ms = Duration::from_millis;
        ways.measured("used", ms(80));
        ways.measured("noted", ms(70));
        ways.measured("forgotten", ms(10));
        for n in 0..1_000 {
            ways.lost(&n.to_string());
            if n % 100 == 0 {
                assert_eq!(ways.of("used"), Way::Takes(ms(80)));
                ways.answered("noted", ms(900));
            }
        }
        assert_eq!(ways.of.len(), REMEMBERED_MAX);
        let mut addresses = ["new", "forgotten", "used", "noted"].map(String::from);
        ways.measured("new", ms(75));
        ways.nearest_first(&mut addresses);
        assert_eq!(addresses, ["noted", "new", "used", "forgotten"]);
        assert_eq!(ways.of.len(), REMEMBERED_MAX);
    }
}
