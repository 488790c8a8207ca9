//! How far masters of other regions are from this host, as far as that was measured.

use std::collections::BTreeMap;
use std::time::Duration;

/// Masters remembered at most.
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

/// The ways to masters, by their addresses.
#[derive(Debug, Default)]
pub(crate) struct Ways(BTreeMap<String, Way>);

impl Ways {
    fn of(&self, address: &str) -> Way {
        self.0.get(address).copied().unwrap_or(Way::Unknown)
    }

    fn note(&mut self, address: &str, way: Way) {
        if self.0.len() < REMEMBERED_MAX || self.0.contains_key(address) {
            self.0.insert(address.to_owned(), way);
        }
    }

    /// A question that takes no time there was answered after so long.
    pub fn measured(&mut self, address: &str, took: Duration) {
        self.note(address, Way::Takes(took));
    }

    /// Something was answered after so long, with whatever it took there and to connect: the way takes no longer.
    pub fn answered(&mut self, address: &str, took: Duration) {
        self.note(address, Way::Takes(took).min(self.of(address)));
    }

    /// It wasn't reached.
    pub fn lost(&mut self, address: &str) {
        self.note(address, Way::Lost);
    }

    /// Puts the nearest in front. Those of which nothing is known stay in their order, before those that weren't reached.
    pub fn nearest_first(&self, addresses: &mut [String]) {
        addresses.sort_by_key(|address| self.of(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_in_front_and_who_wasnt_reached_comes_last() {
        let mut ways = Ways::default();
        let ordered = |ways: &Ways| {
            let mut addresses = ["a", "b", "c", "d", "e"].map(String::from);
            ways.nearest_first(&mut addresses);
            addresses.concat()
        };
        assert_eq!(ordered(&ways), "abcde", "as they were told");
        let ms = Duration::from_millis;
        ways.lost("a");
        ways.measured("d", ms(80));
        ways.answered("c", ms(120));
        assert_eq!(ordered(&ways), "dcbea");
        // What took long there says nothing of the way, and less than was measured makes it shorter.
        ways.answered("d", ms(900));
        ways.answered("c", ms(70));
        ways.answered("a", ms(75));
        assert_eq!(ordered(&ways), "cadbe");
        ways.measured("c", ms(100));
        ways.lost("d");
        assert_eq!(ordered(&ways), "acbed");
        (0..1_000).for_each(|n| ways.lost(&n.to_string()));
        assert!(ways.0.len() <= REMEMBERED_MAX);
        assert_eq!(ordered(&ways), "acbed");
    }
}
