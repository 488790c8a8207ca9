//! A transaction's own writes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Change, RangeSet, apply_atomic, bounds};
use crate::{Atomic, KeyRange, StoreError, Versionstamp};

/// What a transaction did to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// It has this value, or none.
    Known(Option<Bytes>),
    /// These operations, in order, on what the store holds.
    Atomics(Vec<(Atomic, Bytes)>),
    /// A value that gets its stamp at commit.
    Stamped {
        /// With room for the stamp.
        value: Bytes,
        /// Where the stamp goes.
        offset: usize,
    },
}

impl Own {
    /// What a reader of the transaction sees, over what the store holds.
    pub fn over(&self, stored: Option<Bytes>) -> Result<Option<Bytes>, StoreError> {
        match self {
            Self::Known(value) => Ok(value.clone()),
            Self::Atomics(operations) => Ok(run(stored, operations)),
            Self::Stamped { .. } => Err(StoreError::Unreadable),
        }
    }
}

fn run(stored: Option<Bytes>, operations: &[(Atomic, Bytes)]) -> Option<Bytes> {
    operations
        .iter()
        .fold(stored, |value, (operation, operand)| Some(apply_atomic(value.as_ref(), operand, *operation)))
}

#[derive(Clone, Debug)]
struct StampedKey {
    key: Bytes,
    offset: usize,
    value: Bytes,
    /// Ranges that the transaction cleared afterwards.
    cleared: RangeSet,
}

/// A transaction's own writes, as it would read them.
#[derive(Clone, Debug, Default)]
pub struct WriteBuffer {
    clears: RangeSet,
    /// Wins over `clears`.
    keys: BTreeMap<Bytes, Own>,
    stamped: Vec<StampedKey>,
}

impl WriteBuffer {
    /// Sets or clears a key.
    pub fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        self.keys.insert(key, Own::Known(value));
    }

    /// Clears a range.
    pub fn clear_range(&mut self, range: KeyRange) {
        if range.begin >= range.end {
            return;
        }
        let inside = self.keys.range::<[u8], _>(bounds::between(&range.begin, &range.end));
        for key in inside.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.keys.remove(&key);
        }
        for stamped in &mut self.stamped {
            stamped.cleared.insert(range.clone());
        }
        self.clears.insert(range);
    }

    /// An atomic change, which is computed at once where the value is known.
    pub fn atomic(&mut self, key: Bytes, operand: Bytes, operation: Atomic) -> Result<(), StoreError> {
        let known = match self.keys.get_mut(&key) {
            Some(Own::Atomics(operations)) => {
                operations.push((operation, operand));
                return Ok(());
            }
            Some(Own::Stamped { .. }) => return Err(StoreError::Unreadable),
            Some(Own::Known(value)) => Some(value.clone()),
            None if self.clears.contains(&key) => Some(None),
            None => None,
        };
        let own = match known {
            Some(value) => Own::Known(Some(apply_atomic(value.as_ref(), &operand, operation))),
            None => Own::Atomics(vec![(operation, operand)]),
        };
        self.keys.insert(key, own);
        Ok(())
    }

    /// A key whose ten bytes at `offset` become the stamp.
    pub fn stamp_key(&mut self, key: Bytes, offset: usize, value: Bytes) {
        self.stamped.push(StampedKey { key, offset, value, cleared: RangeSet::default() });
    }

    /// A value whose ten bytes at `offset` become the stamp.
    pub fn stamp_value(&mut self, key: Bytes, value: Bytes, offset: usize) {
        self.keys.insert(key, Own::Stamped { value, offset });
    }

    /// What the transaction did to a key, if anything.
    pub fn get(&self, key: &[u8]) -> Option<Own> {
        match self.keys.get(key) {
            Some(own) => Some(own.clone()),
            None => self.clears.contains(key).then_some(Own::Known(None)),
        }
    }

    /// What the transaction did in a range: cleared parts, and keys that win over them.
    pub fn slice(&self, range: &KeyRange) -> (RangeSet, BTreeMap<Bytes, Own>) {
        if range.begin >= range.end {
            return Default::default();
        }
        let keys = self.keys.range::<[u8], _>(bounds::between(&range.begin, &range.end));
        (self.clears.within(range), keys.map(|(key, own)| (key.clone(), own.clone())).collect())
    }

    /// Whether it changes, or may change, anything in a range. Of keys with a stamp, the ten bytes of it count as they were handed in.
    pub fn touches(&self, range: &KeyRange) -> bool {
        let within = |key: &Bytes| range.begin <= *key && *key < range.end;
        range.begin < range.end
            && (self.keys.range::<[u8], _>(bounds::between(&range.begin, &range.end)).next().is_some()
                || self.stamped.iter().any(|stamped| within(&stamped.key))
                || !self.clears.within(range).is_empty())
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.clears.is_empty() && self.keys.is_empty() && self.stamped.is_empty()
    }

    /// The keys whose stored values [`resolve`](Self::resolve) asks for.
    pub fn lookups(&self) -> impl Iterator<Item = &Bytes> {
        self.keys.iter().filter(|(_, own)| matches!(own, Own::Atomics(_))).map(|(key, _)| key)
    }

    /// The changes, with stamps and atomic operations computed: `stored` tells what the version before holds.
    pub fn resolve(&self, version: u64, mut stored: impl FnMut(&Bytes) -> Option<Bytes>) -> Vec<Change> {
        let stamp = stamp(version);
        let mut changes: Vec<Change> = self.clears.iter().map(Change::ClearRange).collect();
        for stamped in &self.stamped {
            let key = place(&stamped.key, stamped.offset, &stamp);
            if !stamped.cleared.contains(&key) && !self.keys.contains_key(&key) {
                changes.push(Change::Set(key, stamped.value.clone()));
            }
        }
        for (key, own) in &self.keys {
            let value = match own {
                Own::Known(value) => value.clone(),
                Own::Atomics(operations) => run(stored(key), operations),
                Own::Stamped { value, offset } => Some(place(value, *offset, &stamp)),
            };
            changes.push(match value {
                Some(value) => Change::Set(key.clone(), value),
                None => Change::Clear(key.clone()),
            });
        }
        changes
    }
}

/// The stamp of a version: engines of ours give each transaction a version of its own.
pub fn stamp(version: u64) -> Versionstamp {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&version.to_be_bytes());
    Versionstamp(bytes)
}

/// Where the stamp doesn't fit nothing is changed; transactions refuse such offsets.
fn place(bytes: &Bytes, offset: usize, stamp: &Versionstamp) -> Bytes {
    let mut placed = bytes.to_vec();
    if let Some(room) = offset.checked_add(10).and_then(|end| placed.get_mut(offset..end)) {
        room.copy_from_slice(&stamp.0);
    }
    placed.into()
}
