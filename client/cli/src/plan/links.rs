//! How long messages take between regions, as their masters measure it.

use std::collections::BTreeMap;

use mooseng_wire::admin::ListRegionsReply;

/// The shortest round trips that were told, in microseconds, by both ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links(BTreeMap<(String, String), u64>);

fn ends(one: &str, other: &str) -> (String, String) {
    let (first, second) = if one <= other { (one, other) } else { (other, one) };
    (first.to_owned(), second.to_owned())
}

impl Links {
    /// By what masters of several regions tell of the others, each of the ways from its own.
    pub fn of<'a>(told: impl IntoIterator<Item = &'a ListRegionsReply>) -> Self {
        let mut links = BTreeMap::new();
        for reply in told {
            for region in reply.regions.iter().filter(|region| region.name != reply.asked) {
                let Some(us) = region.masters.iter().filter_map(|m| m.round_trip_us).min() else { continue };
                let known = links.entry(ends(&reply.asked, &region.name)).or_insert(us);
                *known = us.min(*known);
            }
        }
        Self(links)
    }

    /// Between two regions; none where neither end has told.
    pub fn between(&self, one: &str, other: &str) -> Option<u64> {
        self.0.get(&ends(one, other)).copied()
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::admin::{Region, RegionMaster};

    use super::*;

    #[test]
    fn a_way_is_as_long_as_the_shortest_that_either_end_tells() {
        let told = |asked: &str, of: &[(&str, &[u64])]| ListRegionsReply {
            asked: asked.into(),
            regions: of
                .iter()
                .map(|(name, trips)| Region {
                    name: (*name).into(),
                    masters: trips
                        .iter()
                        .map(|us| RegionMaster { round_trip_us: Some(*us), ..RegionMaster::default() })
                        .collect(),
                    ..Region::default()
                })
                .collect(),
            ..ListRegionsReply::default()
        };
        let all = [
            // Masters of its own region are near, and no other region.
            told("a", &[("a", &[200]), ("b", &[60_000, 59_000]), ("c", &[])]),
            told("b", &[("a", &[61_000]), ("b", &[150]), ("c", &[9_000])]),
        ];
        let links = Links::of(&all);
        assert_eq!((links.between("a", "b"), links.between("b", "a")), (Some(59_000), Some(59_000)));
        assert_eq!((links.between("c", "b"), links.between("a", "c")), (Some(9_000), None));
        assert_eq!(links.between("a", "a"), None);
        assert_eq!(Links::default().between("a", "b"), None);
    }
}
