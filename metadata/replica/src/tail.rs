//! The newest entries of all logs in memory, so that sending them on costs no look into the store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mooseng_schema::log::LogPosition;
use mooseng_wire::VolumeId;
use tokio::sync::watch;

use crate::Entry;
use crate::unsynced::Unsynced;

/// The newest entries, within a bound of bytes.
pub struct Tail {
    inner: Mutex<Inner>,
    unsynced: Mutex<BTreeMap<VolumeId, Unsynced>>,
    bytes_max: usize,
    pushed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    entries: VecDeque<(VolumeId, Entry)>,
    bytes: usize,
    /// For each volume a place behind which all entries are here.
    whole_behind: BTreeMap<VolumeId, LogPosition>,
    newest: BTreeMap<VolumeId, LogPosition>,
}

impl Inner {
    /// Of an earlier time as the home: what another one wrote since isn't here, and between the two nothing may be skipped.
    fn forget(&mut self, volume: VolumeId) {
        self.whole_behind.remove(&volume);
        self.entries.retain(|(of, _)| *of != volume);
        self.bytes = self.entries.iter().map(|(_, entry)| entry.bytes.len()).sum();
    }
}

impl Tail {
    /// Keeps so many bytes of entries at most, and the newest one in any case.
    pub fn new(bytes_max: usize) -> Self {
        Self { inner: Mutex::default(), unsynced: Mutex::default(), bytes_max, pushed: watch::channel(0).0 }
    }

    /// What of a volume isn't in its sync set yet.
    pub fn unsynced<T>(&self, volume: VolumeId, section: impl FnOnce(&mut Unsynced) -> T) -> T {
        section(self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).entry(volume).or_default())
    }

    /// Counts what was put here; changes with each entry.
    pub fn pushed(&self) -> watch::Receiver<u64> {
        self.pushed.subscribe()
    }

    /// The newest place of a volume's log, where an entry was put here.
    pub fn newest(&self, volume: VolumeId) -> Option<LogPosition> {
        self.inner().newest.get(&volume).copied()
    }

    /// What follows a place, in order, up to so many bytes and one entry at least; none where that isn't known here.
    pub fn after(&self, volume: VolumeId, after: LogPosition, bytes_max: usize) -> Option<Vec<Entry>> {
        let inner = self.inner();
        if inner.whole_behind.get(&volume).is_none_or(|from| after < *from) {
            return None;
        }
        let mut bytes = 0;
        let behind =
            inner.entries.iter().rev().take_while(|(of, entry)| *of != volume || entry.at > after).count();
        let mut found = Vec::new();
        for (_, entry) in inner.entries.range(inner.entries.len() - behind..).filter(|(of, _)| *of == volume)
        {
            bytes += entry.bytes.len();
            if bytes > bytes_max && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Some(found)
    }

    pub(crate) fn push(&self, volume: VolumeId, entry: Entry) {
        let mut inner = self.inner();
        if inner.newest.get(&volume).is_some_and(|newest| newest.epoch != entry.at.epoch) {
            inner.forget(volume);
        }
        // Nothing lies between the version before it and its own.
        let before = LogPosition::new(entry.at.epoch, entry.at.version.saturating_sub(1));
        inner.whole_behind.entry(volume).or_insert(before);
        inner.newest.insert(volume, entry.at);
        inner.bytes += entry.bytes.len();
        inner.entries.push_back((volume, entry));
        while inner.bytes > self.bytes_max && inner.entries.len() > 1 {
            if let Some((of, dropped)) = inner.entries.pop_front() {
                inner.bytes -= dropped.bytes.len();
                inner.whole_behind.insert(of, dropped.at);
            }
        }
        drop(inner);
        self.pushed.send_modify(|count| *count += 1);
    }

    pub(crate) fn reset(&self) {
        *self.inner() = Inner::default();
        self.pushed.send_modify(|count| *count += 1);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::Epoch;
    use proptest::prelude::*;

    use super::*;

    /// A region that is the home for the second time sent a replica what it had written itself, and nothing of what the home in between had
    /// (found by the simulation of three regions, seed 26): they differed from then on.
    #[test]
    fn what_another_home_wrote_between_two_epochs_isnt_skipped() {
        let tail = Tail::new(1_000);
        let at = |epoch, version| LogPosition::new(Epoch(epoch), version);
        let push = |epoch, version| {
            tail.push(VolumeId(0), Entry { at: at(epoch, version), bytes: vec![7; 9].into() })
        };
        push(2, 5);
        push(2, 6);
        // 3/7 came from elsewhere, and is in the store alone.
        push(4, 8);
        assert_eq!(tail.after(VolumeId(0), at(2, 6), 100), None);
        assert_eq!(
            tail.after(VolumeId(0), at(3, 7), 100),
            None,
            "what is known is that all from 4/8 on is here"
        );
        push(4, 9);
        assert_eq!(tail.after(VolumeId(0), at(4, 8), 100).map(|found| found.len()), Some(1));
        assert_eq!(tail.newest(VolumeId(0)), Some(at(4, 9)));
    }

    proptest! {
        #[test]
        fn what_it_answers_is_what_follows(
            pushes in prop::collection::vec((0u16..3, 1u64..4, 0usize..60), 0..60),
            ask in (0u16..3, 0u64..120, 1usize..200),
        ) {
            let tail = Tail::new(300);
            let (mut version, mut all) = (10, Vec::new());
            for (volume, step, bytes) in pushes {
                version += step;
                let at = LogPosition::new(Epoch(1), version);
                let entry = Entry { at, bytes: vec![7; bytes].into() };
                all.push((VolumeId(volume), entry.clone()));
                tail.push(VolumeId(volume), entry);
            }
            let volume = VolumeId(ask.0);
            let after = LogPosition::new(Epoch(1), ask.1);
            let expected: Vec<&Entry> =
                all.iter().filter(|(of, entry)| *of == volume && entry.at > after).map(|(_, entry)| entry).collect();
            if let Some(found) = tail.after(volume, after, ask.2) {
                prop_assert!(found.len() <= expected.len());
                prop_assert!(found.iter().eq(expected.iter().copied().take(found.len())));
                prop_assert!(!found.is_empty() || expected.is_empty());
                prop_assert!(found.len() < 2 || found.iter().map(|e| e.bytes.len()).sum::<usize>() <= ask.2);
            }
            let newest = all.iter().rev().find(|(of, _)| *of == volume).map(|(_, entry)| entry.at);
            prop_assert_eq!(tail.newest(volume), newest);
        }
    }
}
