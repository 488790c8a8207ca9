//! The recent versions of keys, over a base that holds older ones.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use super::{Change, Page, bounds, covered};
use crate::KeyRange;

/// What a window knows of a key at a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It has this value.
    Value(Bytes),
    /// It has none.
    Absent,
    /// Nothing changed it in the window: the base tells.
    Base,
}

/// Bytes that a version of a key costs besides its key and value, roughly.
const OVERHEAD_BYTES: usize = 128;

/// Versions above a floor, in order of insertion; the base below it has everything up to the floor.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Versions and values of each key, ascending.
    keys: BTreeMap<Bytes, Vec<(u64, Option<Bytes>)>>,
    /// From this key on, up to the next one: the versions of the range clears that cover it, ascending.
    clears: BTreeMap<Bytes, Vec<u64>>,
    /// What was inserted, so that folding and pruning cost as much as what they remove.
    log: VecDeque<(u64, Vec<Change>)>,
    bytes: usize,
}

/// What a window knows of a part of a range at a version.
#[derive(Clone, Debug, Default)]
pub struct Slice {
    /// Keys that it decides on; none means absent.
    pub keys: BTreeMap<Bytes, Option<Bytes>>,
    /// Ranges in which the base's keys are gone.
    pub clears: Vec<KeyRange>,
    /// As [`Page::boundary`].
    pub boundary: Option<Bytes>,
}

impl Window {
    /// Adds a version's changes. Versions ascend.
    pub fn insert(&mut self, version: u64, changes: Vec<Change>) {
        let mut points = false;
        for change in &changes {
            self.bytes += change.bytes() + OVERHEAD_BYTES;
            match change {
                Change::Set(key, value) => self.insert_key(key, version, Some(value.clone())),
                Change::Clear(key) => self.insert_key(key, version, None),
                Change::ClearRange(range) => {
                    if points {
                        self.clear_points(range, version);
                    }
                    self.insert_clear(range, version);
                }
            }
            points |= !matches!(change, Change::ClearRange(_));
        }
        self.log.push_back((version, changes));
    }

    fn insert_key(&mut self, key: &Bytes, version: u64, value: Option<Bytes>) {
        let versions = self.keys.entry(key.clone()).or_default();
        match versions.last_mut() {
            Some(last) if last.0 == version => last.1 = value,
            _ => versions.push((version, value)),
        }
    }

    /// Within a version a key's own change counts, so a range that is cleared behind it must change it again.
    fn clear_points(&mut self, range: &KeyRange, version: u64) {
        if range.begin >= range.end {
            return;
        }
        for (_, versions) in self.keys.range_mut::<[u8], _>(bounds::between(&range.begin, &range.end)) {
            if let Some(last) = versions.last_mut().filter(|last| last.0 == version) {
                last.1 = None;
            }
        }
    }

    fn insert_clear(&mut self, range: &KeyRange, version: u64) {
        if range.begin >= range.end {
            return;
        }
        for bound in [&range.begin, &range.end] {
            if !self.clears.contains_key(bound) {
                let versions = self.clears_at(bound).to_vec();
                self.clears.insert(bound.clone(), versions);
            }
        }
        for (_, versions) in self.clears.range_mut::<[u8], _>(bounds::between(&range.begin, &range.end)) {
            if versions.last() != Some(&version) {
                versions.push(version);
            }
        }
    }

    fn clears_at(&self, key: &[u8]) -> &[u64] {
        self.clears.range::<[u8], _>(bounds::up_to(key)).next_back().map_or(&[], |(_, versions)| versions)
    }

    /// A key at a version.
    pub fn get(&self, key: &[u8], version: u64) -> Seen {
        let point = self.keys.get(key).and_then(|versions| newest(versions, version));
        self.decide(key, point, version)
    }

    fn decide(&self, key: &[u8], point: Option<&(u64, Option<Bytes>)>, version: u64) -> Seen {
        let clear = self.clears_at(key).iter().rev().find(|at| **at <= version);
        match (point, clear) {
            (Some((at, _)), Some(clear)) if clear > at => Seen::Absent,
            (Some((_, Some(value))), _) => Seen::Value(value.clone()),
            (Some((_, None)), _) | (None, Some(_)) => Seen::Absent,
            (None, None) => Seen::Base,
        }
    }

    /// A part of a range at a version, from its begin or (`reverse`) from its end: with at most `pairs_max` keys that have a value, for a page
    /// of so many pairs has use for no more, and at most `keys_max` in all.
    pub fn slice(
        &self,
        range: &KeyRange,
        version: u64,
        (pairs_max, keys_max): (usize, usize),
        reverse: bool,
    ) -> Slice {
        let mut slice = Slice::default();
        let mut pairs = 0;
        if range.begin >= range.end {
            return slice;
        }
        let mut inside = self.keys.range::<[u8], _>(bounds::between(&range.begin, &range.end));
        while let Some((key, versions)) = if reverse { inside.next_back() } else { inside.next() } {
            let seen = match self.decide(key, newest(versions, version), version) {
                Seen::Base => continue,
                Seen::Value(value) => Some(value),
                Seen::Absent => None,
            };
            pairs += usize::from(seen.is_some());
            slice.keys.insert(key.clone(), seen);
            if pairs >= pairs_max || slice.keys.len() >= keys_max {
                slice.boundary = Some(if reverse { key.clone() } else { super::after(key) });
                break;
            }
        }
        let part = covered(range, slice.boundary.as_ref(), reverse);
        let before = self.clears.range::<[u8], _>(bounds::before(&part.begin)).next_back();
        let mut steps = before
            .into_iter()
            .chain(self.clears.range::<[u8], _>(bounds::between(&part.begin, &part.end)))
            .peekable();
        while let Some((begin, versions)) = steps.next() {
            if versions.iter().any(|at| *at <= version) {
                let end = steps.peek().map_or(&part.end, |(next, _)| next);
                slice.clears.push(KeyRange {
                    begin: begin.max(&part.begin).clone(),
                    end: end.min(&part.end).clone(),
                });
            }
        }
        slice
    }

    /// Whether a key was changed after a version.
    pub fn changed_since(&self, key: &[u8], version: u64) -> bool {
        self.keys.get(key).is_some_and(|versions| versions.last().is_some_and(|(at, _)| *at > version))
            || self.clears_at(key).last().is_some_and(|at| *at > version)
    }

    /// The changes of all versions up to `floor`, collapsed: what brings the base to `floor`.
    pub fn fold(&self, floor: u64) -> Vec<Change> {
        let mut keys: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        let mut cleared = super::RangeSet::default();
        for (_, changes) in self.log.iter().take_while(|(version, _)| *version <= floor) {
            for change in changes {
                match change {
                    Change::Set(key, value) => drop(keys.insert(key.clone(), Some(value.clone()))),
                    Change::Clear(key) => drop(keys.insert(key.clone(), None)),
                    Change::ClearRange(range) if range.begin < range.end => {
                        cleared.insert(range.clone());
                        let inside = keys.range::<[u8], _>(bounds::between(&range.begin, &range.end));
                        for key in inside.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
                            keys.remove(&key);
                        }
                    }
                    Change::ClearRange(_) => {}
                }
            }
        }
        let clears = cleared.iter().map(Change::ClearRange);
        let keys = keys.into_iter().map(|(key, value)| match value {
            Some(value) => Change::Set(key, value),
            None => Change::Clear(key),
        });
        clears.chain(keys).collect()
    }

    /// Drops all versions up to `floor`; the base has them by now.
    pub fn prune(&mut self, floor: u64) {
        while self.log.front().is_some_and(|(version, _)| *version <= floor) {
            let Some((_, changes)) = self.log.pop_front() else { break };
            for change in &changes {
                self.bytes = self.bytes.saturating_sub(change.bytes() + OVERHEAD_BYTES);
                match change {
                    Change::Set(key, _) | Change::Clear(key) => self.prune_key(key, floor),
                    Change::ClearRange(range) => self.prune_clear(range, floor),
                }
            }
        }
    }

    fn prune_key(&mut self, key: &Bytes, floor: u64) {
        if let Some(versions) = self.keys.get_mut(key) {
            versions.retain(|(version, _)| *version > floor);
            if versions.is_empty() {
                self.keys.remove(key);
            }
        }
    }

    fn prune_clear(&mut self, range: &KeyRange, floor: u64) {
        if range.begin >= range.end {
            return;
        }
        for (_, versions) in self.clears.range_mut::<[u8], _>(bounds::between(&range.begin, &range.end)) {
            versions.retain(|version| *version > floor);
        }
        // A step that doesn't differ from the one before it is none.
        let mut before = match self.clears.range::<[u8], _>(bounds::before(&range.begin)).next_back() {
            Some((_, versions)) => versions.clone(),
            None => Vec::new(),
        };
        let mut needless = Vec::new();
        // The first step behind the range is looked at, too: the step at its end may have been merged away earlier.
        let steps = (Bound::Included(&range.begin[..]), Bound::Unbounded);
        for (key, versions) in self.clears.range::<[u8], _>(steps) {
            if *versions == before {
                needless.push(key.clone());
            } else {
                before.clone_from(versions);
            }
            if *key >= range.end {
                break;
            }
        }
        for key in needless {
            self.clears.remove(&key);
        }
    }

    /// The bytes that it holds, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The newest version up to which folding moves at most `bytes_max` (or one version, if that alone has more).
    pub fn fold_limit(&self, bytes_max: usize) -> Option<u64> {
        let mut bytes = 0;
        let mut limit = None;
        for (version, changes) in &self.log {
            bytes += changes.iter().map(|change| change.bytes() + OVERHEAD_BYTES).sum::<usize>();
            if limit.is_some() && bytes > bytes_max {
                break;
            }
            limit = Some(*version);
        }
        limit
    }

    /// Whether it holds no change.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
    }
}

fn newest(versions: &[(u64, Option<Bytes>)], version: u64) -> Option<&(u64, Option<Bytes>)> {
    versions.iter().rev().find(|(at, _)| *at <= version)
}

impl Slice {
    /// Lays it over the base's page of the same range. The page is one of the part that the slice covers.
    pub fn over(self, range: &KeyRange, base: Page, reverse: bool) -> Page {
        let boundary = base.boundary.or(self.boundary);
        let part = covered(range, boundary.as_ref(), reverse);
        let mut clears = super::RangeSet::default();
        for clear in self.clears {
            clears.insert(clear);
        }
        let mut merged: BTreeMap<Bytes, Bytes> =
            base.pairs.into_iter().filter(|(key, _)| !clears.contains(key)).collect();
        for (key, value) in self.keys {
            if key < part.begin || key >= part.end {
                continue;
            }
            match value {
                Some(value) => drop(merged.insert(key, value)),
                None => drop(merged.remove(&key)),
            }
        }
        let mut pairs: Vec<_> = merged.into_iter().collect();
        if reverse {
            pairs.reverse();
        }
        Page { pairs, boundary }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(k: u8) -> Bytes {
        Bytes::copy_from_slice(&[k])
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, u8),
        Clear(u8),
        Range(u8, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..10, any::<u8>()).prop_map(|(k, v)| Step::Set(k, v)),
            (0u8..10).prop_map(Step::Clear),
            (0u8..10, 0u8..10).prop_map(|(a, b)| Step::Range(a, b)),
        ]
    }

    type Model = BTreeMap<Bytes, Bytes>;

    fn change(step: &Step) -> Change {
        match step {
            Step::Set(k, v) => Change::Set(key(*k), key(*v)),
            Step::Clear(k) => Change::Clear(key(*k)),
            Step::Range(a, b) => Change::ClearRange(KeyRange { begin: key(*a), end: key(*b) }),
        }
    }

    fn apply(model: &mut Model, change: &Change) {
        match change {
            Change::Set(k, v) => drop(model.insert(k.clone(), v.clone())),
            Change::Clear(k) => drop(model.remove(k)),
            Change::ClearRange(r) => model.retain(|k, _| *k < r.begin || *k >= r.end),
        }
    }

    fn page_of(model: &Model, range: &KeyRange, pairs_max: usize, reverse: bool) -> Page {
        let mut all: Vec<_> = model
            .iter()
            .filter(|(k, _)| **k >= range.begin && **k < range.end)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if reverse {
            all.reverse();
        }
        let cut = all.len() > pairs_max;
        all.truncate(pairs_max);
        let boundary =
            all.last().filter(|_| cut).map(|(k, _)| if reverse { k.clone() } else { super::super::after(k) });
        Page { pairs: all, boundary }
    }

    proptest! {
        #[test]
        fn same_as_a_model_of_every_version(
            steps in proptest::collection::vec(proptest::collection::vec(step(), 1..4), 1..20), floor in 0usize..30, range in (0u8..10, 0u8..11), max in 1usize..6, pairs_max in 1usize..6, reverse: bool,
        ) {
            let mut window = Window::default();
            let mut models = vec![Model::new()];
            for (i, step) in steps.iter().enumerate() {
                let changes: Vec<_> = step.iter().map(change).collect();
                window.insert(i as u64 + 1, changes.clone());
                let mut model = models[i].clone();
                for change in &changes { apply(&mut model, change); }
                models.push(model);
            }
            let floor = floor.min(steps.len());
            let mut base = Model::new();
            for change in window.fold(floor as u64) { apply(&mut base, &change); }
            prop_assert_eq!(&base, &models[floor]);
            window.prune(floor as u64);
            let range = KeyRange { begin: key(range.0), end: key(range.1) };
            for (version, model) in models.iter().enumerate().skip(floor) {
                for k in 0..10 {
                    let seen = match window.get(&key(k), version as u64) {
                        Seen::Value(value) => Some(value),
                        Seen::Absent => None,
                        Seen::Base => base.get(&key(k)).cloned(),
                    };
                    prop_assert_eq!(seen.as_ref(), model.get(&key(k)));
                }
                // Page through the range and compare with the model.
                let mut found = Vec::new();
                let mut left = range.clone();
                loop {
                    let slice = window.slice(&left, version as u64, (pairs_max, max), reverse);
                    let part = covered(&left, slice.boundary.as_ref(), reverse);
                    let page = slice.over(&left, page_of(&base, &part, max, reverse), reverse);
                    found.extend(page.pairs);
                    match page.boundary {
                        Some(boundary) => left = super::super::rest(&left, &boundary, reverse),
                        None => break,
                    }
                }
                prop_assert_eq!(found, page_of(model, &range, 100, reverse).pairs);
            }
            window.prune(steps.len() as u64);
            prop_assert!(window.keys.is_empty() && window.clears.is_empty() && window.bytes == 0 && window.is_empty());
        }
    }

    /// Who reads the one key before another has the base look behind the next key of the window only, and passes no others.
    #[test]
    fn a_slice_ends_with_the_last_pair_that_a_page_has_use_for() {
        let mut window = Window::default();
        for k in 0..20 {
            window.insert(u64::from(k) + 1, vec![Change::Set(key(k), key(k))]);
        }
        window.insert(21, vec![Change::Clear(key(19))]);
        let all = KeyRange { begin: key(0), end: key(100) };
        let last = window.slice(&all, 21, (1, 17), true);
        assert_eq!(last.keys, BTreeMap::from([(key(18), Some(key(18))), (key(19), None)]));
        assert_eq!(last.boundary, Some(key(18)));
        let first = window.slice(&all, 21, (2, 18), false);
        assert_eq!(first.keys, BTreeMap::from([(key(0), Some(key(0))), (key(1), Some(key(1)))]));
        assert_eq!(first.boundary, Some(super::super::after(&key(1))));
        let few = window.slice(&all, 21, (9, 3), true);
        assert_eq!(few.keys.len(), 3);
    }
}
