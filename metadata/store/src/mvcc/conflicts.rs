//! Conflict detection: which version wrote each part of the key space last.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::bounds;
use crate::KeyRange;

/// A step function from keys to the version of their last write. What was written at or before the floor isn't told apart.
#[derive(Clone, Debug)]
pub struct Conflicts {
    /// From this key on, up to the next one: the version of the last write.
    steps: BTreeMap<Bytes, u64>,
    floor: u64,
    /// Steps that were left by the last sweep.
    swept: usize,
}

impl Conflicts {
    /// Nothing was written after `floor`.
    pub fn new(floor: u64) -> Self {
        Self { steps: BTreeMap::new(), floor, swept: 0 }
    }

    /// Reads older than this can't be checked.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// The newest write into a range, at least the floor.
    pub fn newest(&self, range: &KeyRange) -> u64 {
        if range.begin >= range.end {
            return self.floor;
        }
        let inside = self
            .steps
            .range::<[u8], _>((Bound::Excluded(&range.begin[..]), Bound::Excluded(&range.end[..])))
            .map(|(_, version)| *version)
            .max();
        self.at(&range.begin).max(inside.unwrap_or(self.floor))
    }

    /// Records a write. Versions never go back.
    pub fn write(&mut self, range: &KeyRange, version: u64) {
        if range.begin >= range.end {
            return;
        }
        let behind = self.at(&range.end);
        let inside: Vec<Bytes> = self
            .steps
            .range::<[u8], _>((Bound::Excluded(&range.begin[..]), Bound::Excluded(&range.end[..])))
            .map(|(key, _)| key.clone())
            .collect();
        for key in inside {
            self.steps.remove(&key);
        }
        self.steps.insert(range.begin.clone(), version);
        self.steps.entry(range.end.clone()).or_insert(behind);
    }

    /// Forgets what was written at or before `floor`. Sweeps only once enough has come together.
    pub fn raise_floor(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        if self.steps.len() < 2 * self.swept + 1024 {
            return;
        }
        let mut before = self.floor;
        let floor = self.floor;
        self.steps.retain(|_, version| {
            *version = (*version).max(floor);
            let needed = *version != before;
            before = *version;
            needed
        });
        self.swept = self.steps.len();
    }

    fn at(&self, key: &[u8]) -> u64 {
        let version = self
            .steps
            .range::<[u8], _>(bounds::up_to(key))
            .next_back()
            .map_or(self.floor, |(_, version)| *version);
        version.max(self.floor)
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
        fn same_as_a_table(writes in proptest::collection::vec((0u8..12, 0u8..12), 0..30), floor in 0u64..30, read in (0u8..12, 0u8..12)) {
            let mut conflicts = Conflicts::new(0);
            let mut table = [0u64; 12];
            for (version, (a, b)) in (1u64..).zip(writes) {
                conflicts.write(&range(a, b), version);
                for key in a..b { table[key as usize] = version; }
            }
            conflicts.swept = 0;
            conflicts.raise_floor(floor);
            let expected = (read.0..read.1).map(|key| table[key as usize]).max().unwrap_or(0).max(floor);
            prop_assert_eq!(conflicts.newest(&range(read.0, read.1)), expected);
        }
    }

    #[test]
    fn sweeping_keeps_what_is_above_the_floor() {
        let mut conflicts = Conflicts::new(0);
        for key in 0..2000u64 {
            conflicts.write(&crate::key_range(&key.to_be_bytes()), key + 1);
        }
        conflicts.raise_floor(1990);
        assert!(conflicts.steps.len() < 50, "{} steps are left", conflicts.steps.len());
        assert_eq!(conflicts.newest(&crate::key_range(&1995u64.to_be_bytes())), 1996);
        assert_eq!(conflicts.newest(&crate::key_range(&5u64.to_be_bytes())), 1990);
    }
}
