//! Chunk data in memory. Bytes that metadata names never change, so nothing here goes stale: the only question is room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::OnceCell;

/// Bytes of a chunk that are fetched and kept together.
pub(crate) const BLOCK: u64 = 1 << 20;

/// A part of a chunk: `start` is its offset in the chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub start: u64,
    pub bytes: Bytes,
}

impl Part {
    /// The bytes of [offset, offset + length), if they are all here.
    pub fn get(&self, offset: u64, length: u64) -> Option<Bytes> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        let to = from.checked_add(usize::try_from(length).ok()?)?;
        (to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }
}

/// A block that is here or on its way.
pub(crate) type Slot = Arc<OnceCell<Part>>;

#[derive(Debug, Default)]
struct Inner {
    tick: u64,
    slots: BTreeMap<(u64, u64), (u64, Slot)>,
    by_age: BTreeMap<u64, (u64, u64)>,
}

/// Blocks by (chunk, block number), the least recently used ones leave first.
#[derive(Debug)]
pub(crate) struct BlockCache {
    slots_max: usize,
    inner: Mutex<Inner>,
}

impl BlockCache {
    pub fn new(bytes_max: usize) -> Self {
        Self { slots_max: bytes_max / BLOCK as usize, inner: Mutex::default() }
    }

    fn inner<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The block's bytes if they are here and reach far enough.
    pub fn get(&self, chunk: u64, offset: u64, length: u64) -> Option<Bytes> {
        let key = (chunk, offset / BLOCK);
        self.inner(|inner| {
            let bytes = inner.slots.get(&key)?.1.get()?.get(offset, length)?;
            inner.touch(key);
            Some(bytes)
        })
    }

    /// The block's slot, made when missing. A filled one that doesn't cover the range is replaced, as its chunk has grown.
    pub fn slot(&self, chunk: u64, offset: u64, length: u64) -> Slot {
        let key = (chunk, offset / BLOCK);
        self.inner(|inner| {
            if let Some((_, slot)) = inner.slots.get(&key)
                && slot.get().is_none_or(|part| part.get(offset, length).is_some())
            {
                let slot = slot.clone();
                inner.touch(key);
                return slot;
            }
            inner.remove(key);
            while inner.slots.len() >= self.slots_max.max(1) {
                let Some((_, oldest)) = inner.by_age.first_key_value() else { break };
                let oldest = *oldest;
                inner.remove(oldest);
            }
            let slot = Slot::default();
            inner.tick += 1;
            inner.slots.insert(key, (inner.tick, slot.clone()));
            inner.by_age.insert(inner.tick, key);
            slot
        })
    }

    /// What a block holds up to `end` was given to a reader who comes in order, and whose kernel keeps it: once that is all, it goes.
    pub fn passed(&self, chunk: u64, end: u64) {
        let key = (chunk, end.saturating_sub(1) / BLOCK);
        self.inner(|inner| {
            let held = inner.slots.get(&key).and_then(|(_, slot)| slot.get());
            if held.is_some_and(|part| part.start + part.bytes.len() as u64 <= end) {
                inner.remove(key);
            }
        });
    }

    /// Bytes held, about.
    pub fn bytes(&self) -> usize {
        self.inner(|inner| {
            inner.slots.values().filter_map(|(_, slot)| slot.get()).map(|part| part.bytes.len()).sum()
        })
    }
}

impl Inner {
    fn touch(&mut self, key: (u64, u64)) {
        self.tick += 1;
        if let Some((age, _)) = self.slots.get_mut(&key) {
            self.by_age.remove(age);
            *age = self.tick;
            self.by_age.insert(self.tick, key);
        }
    }
    fn remove(&mut self, key: (u64, u64)) {
        if let Some((age, _)) = self.slots.remove(&key) {
            self.by_age.remove(&age);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(cache: &BlockCache, chunk: u64, start: u64, length: usize) {
        cache
            .slot(chunk, start, length as u64)
            .set(Part { start, bytes: Bytes::from(vec![chunk as u8; length]) })
            .unwrap();
    }

    #[test]
    fn the_least_recently_used_block_leaves() {
        let cache = BlockCache::new(2 * BLOCK as usize);
        fill(&cache, 1, 0, 100);
        fill(&cache, 2, 0, 100);
        assert!(cache.get(1, 10, 20).is_some());
        fill(&cache, 3, 0, 100);
        assert!(cache.get(2, 0, 1).is_none(), "2 was older than 1");
        assert!(cache.get(1, 0, 100).is_some() && cache.get(3, 0, 100).is_some());
        assert_eq!(cache.bytes(), 200);
    }

    #[test]
    fn a_block_that_was_passed_to_its_end_goes() {
        let cache = BlockCache::new(4 * BLOCK as usize);
        fill(&cache, 1, BLOCK, 100);
        cache.passed(1, BLOCK + 60);
        cache.passed(1, BLOCK);
        cache.passed(2, BLOCK + 100);
        assert!(cache.get(1, BLOCK + 60, 40).is_some());
        cache.passed(1, BLOCK + 100);
        assert!(cache.get(1, BLOCK + 60, 40).is_none());
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_block_that_has_grown_is_fetched_again() {
        let cache = BlockCache::new(4 * BLOCK as usize);
        fill(&cache, 1, 0, 100);
        assert!(cache.get(1, 90, 20).is_none());
        assert!(cache.slot(1, 90, 20).get().is_none());
    }
}
