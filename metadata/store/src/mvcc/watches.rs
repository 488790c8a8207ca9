//! Watches of keys.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Change;
use super::bounds;
use super::transaction::WatchSender;
use crate::StoreError;

/// Most watches at a time in one store, as FDB has it.
pub const WATCHES_MAX: usize = 10_000;

/// The watches of a store.
#[derive(Debug, Default)]
pub struct Watches {
    waiting: BTreeMap<Bytes, Vec<WatchSender>>,
    count: usize,
}

impl Watches {
    /// Adds one. Over the bound it fails at once.
    pub fn add(&mut self, key: Bytes, sender: WatchSender) {
        if self.count >= WATCHES_MAX {
            self.sweep();
        }
        if self.count >= WATCHES_MAX {
            let _ = sender.send(Err(StoreError::Failed(format!(
                "{WATCHES_MAX} keys are watched already; drop other watches and watch again"
            ))));
            return;
        }
        self.count += 1;
        self.waiting.entry(key).or_default().push(sender);
    }

    /// Completes the watches of keys that were changed.
    pub fn changed(&mut self, changes: &[Change]) {
        for change in changes {
            if self.waiting.is_empty() {
                return;
            }
            match change {
                Change::Set(key, _) | Change::Clear(key) => self.fire(key),
                Change::ClearRange(range) => {
                    if range.begin >= range.end {
                        continue;
                    }
                    let keys: Vec<Bytes> = self
                        .waiting
                        .range::<[u8], _>(bounds::between(&range.begin, &range.end))
                        .map(|(key, _)| key.clone())
                        .collect();
                    for key in keys {
                        self.fire(&key);
                    }
                }
            }
        }
    }

    /// Ends all of them with an error.
    pub fn fail(&mut self, error: &StoreError) {
        for sender in std::mem::take(&mut self.waiting).into_values().flatten() {
            let _ = sender.send(Err(error.clone()));
        }
        self.count = 0;
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn fire(&mut self, key: &[u8]) {
        for sender in self.waiting.remove(key).unwrap_or_default() {
            self.count -= 1;
            let _ = sender.send(Ok(()));
        }
    }

    /// Drops those that nobody waits for any more.
    fn sweep(&mut self) {
        self.waiting.retain(|_, senders| {
            senders.retain(|sender| !sender.is_canceled());
            !senders.is_empty()
        });
        self.count = self.waiting.values().map(Vec::len).sum();
    }
}
