//! Sets of key ranges.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::bounds;
use crate::KeyRange;

/// A set of keys, as ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default)]
pub struct RangeSet {
    /// Begin to end.
    ranges: BTreeMap<Bytes, Bytes>,
    bytes: usize,
}

impl RangeSet {
    /// Adds a range; an empty or inverted one adds nothing.
    pub fn insert(&mut self, range: KeyRange) {
        let KeyRange { mut begin, mut end } = range;
        if begin >= end {
            return;
        }
        if let Some((first, last)) = self.ranges.range::<[u8], _>(bounds::up_to(&begin)).next_back()
            && *last >= begin
        {
            if *last >= end {
                return;
            }
            begin = first.clone();
        }
        while let Some((first, last)) = self
            .ranges
            .range::<[u8], _>(bounds::closed(&begin, &end))
            .next()
            .map(|(a, b)| (a.clone(), b.clone()))
        {
            self.bytes -= first.len() + last.len();
            self.ranges.remove(&first);
            end = end.max(last);
        }
        self.bytes += begin.len() + end.len();
        self.ranges.insert(begin, end);
    }

    /// Whether a key is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.ranges.range::<[u8], _>(bounds::up_to(key)).next_back().is_some_and(|(_, end)| &end[..] > key)
    }

    /// The parts that lie in `range`.
    pub fn within(&self, range: &KeyRange) -> RangeSet {
        let mut found = RangeSet::default();
        if range.begin >= range.end {
            return found;
        }
        let before = self.ranges.range::<[u8], _>(bounds::before(&range.begin)).next_back();
        let inside = self.ranges.range::<[u8], _>(bounds::between(&range.begin, &range.end));
        for (begin, end) in before.into_iter().chain(inside) {
            found.insert(KeyRange {
                begin: begin.max(&range.begin).clone(),
                end: end.min(&range.end).clone(),
            });
        }
        found
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = KeyRange> + '_ {
        self.ranges.iter().map(|(begin, end)| KeyRange { begin: begin.clone(), end: end.clone() })
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes of the keys that bound it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(a: u8, b: u8) -> KeyRange {
        KeyRange { begin: Bytes::copy_from_slice(&[a]), end: Bytes::copy_from_slice(&[b]) }
    }

    proptest! {
        #[test]
        fn same_as_a_set_of_keys(parts in proptest::collection::vec((0u8..20, 0u8..20), 0..20), cut in (0u8..20, 0u8..20)) {
            let mut set = RangeSet::default();
            let mut model = [false; 20];
            for (a, b) in parts {
                set.insert(range(a, b));
                for key in a..b { model[key as usize] = true; }
            }
            let part = set.within(&range(cut.0, cut.1));
            for key in 0..20u8 {
                prop_assert_eq!(set.contains(&[key]), model[key as usize]);
                prop_assert_eq!(part.contains(&[key]), model[key as usize] && key >= cut.0 && key < cut.1);
            }
            prop_assert_eq!(set.bytes(), set.iter().map(|r| r.begin.len() + r.end.len()).sum::<usize>());
            let all: Vec<_> = set.iter().collect();
            prop_assert!(all.windows(2).all(|w| w[0].end < w[1].begin));
        }
    }
}
