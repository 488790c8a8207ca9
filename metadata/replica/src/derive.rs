//! The log as a consequence of each transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mooseng_schema::Record;
use mooseng_schema::log::{self, LogPosition, LoggedRecord};
use mooseng_store::KeyRange;
use mooseng_store::mvcc::{Change, Derive};
use mooseng_wire::{Epoch, VolumeId};

use crate::Tail;
use crate::entry::{Entry, logged_ranges, within};

/// Writes the logs of all volumes that have a [`LoggedRecord`]: from the transaction on that sets it.
pub struct VolumeLogs {
    logged: BTreeMap<VolumeId, (Epoch, [KeyRange; 2])>,
    tail: Arc<Tail>,
}

impl VolumeLogs {
    /// Nothing is logged until it is said. Entries are put at the tail, too.
    pub fn new(tail: Arc<Tail>) -> Self {
        Self { logged: BTreeMap::new(), tail }
    }

    fn take_note(&mut self, key: &[u8], value: Option<&Bytes>) {
        // Every copy must take it the same way: what can't be read says that nothing is logged.
        let Ok(volume) = log::parse_logged_key(key) else { return };
        match value.and_then(|value| LoggedRecord::from_value(value).ok()) {
            Some(record) => {
                self.logged.insert(volume, (Epoch(record.epoch), logged_ranges(volume)));
            }
            None => {
                self.logged.remove(&volume);
            }
        }
    }
}

impl Derive for VolumeLogs {
    fn governed_by(&self) -> KeyRange {
        log::logged_range()
    }

    fn reset(&mut self, pairs: Vec<(Bytes, Bytes)>) {
        self.logged.clear();
        self.tail.reset();
        for (key, value) in pairs {
            self.take_note(&key, Some(&value));
        }
    }

    fn derive(&mut self, version: u64, changes: &[Change]) -> Vec<Change> {
        let governing = self.governed_by();
        for change in changes.iter().filter_map(|change| within(change, &governing)) {
            match change {
                Change::Set(key, value) => self.take_note(&key, Some(&value)),
                Change::Clear(key) => self.take_note(&key, None),
                Change::ClearRange(range) => self.logged.retain(|volume, _| {
                    let key = log::logged_key(*volume);
                    key < range.begin || key >= range.end
                }),
            }
        }
        let mut derived = Vec::new();
        for (volume, (epoch, ranges)) in &self.logged {
            let own: Vec<Change> = changes
                .iter()
                .flat_map(|change| ranges.iter().filter_map(|range| within(change, range)))
                .collect();
            if own.is_empty() {
                continue;
            }
            let entry = Entry::new(LogPosition::new(*epoch, version), &own);
            let parts = log::parts(*volume, entry.at, &entry.bytes);
            derived.extend(parts.into_iter().map(|(key, value)| Change::Set(key, value)));
            self.tail.unsynced(*volume, |unsynced| unsynced.note(*volume, entry.at, &own));
            self.tail.push(*volume, entry);
        }
        derived
    }
}
