//! Chunks that wait for a copy, most endangered first, and since when each chunk has been endangered. Bounded: what doesn't fit is found by the
//! next scan.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_ports::clock::BootTime;
use mooseng_wire::ChunkId;

use super::Need;

/// Most chunks that wait.
const WAITING_MAX: usize = 10_000;
/// Most endangered chunks whose time is remembered.
const ENDANGERED_MAX: usize = 100_000;

/// Chunks that wait.
#[derive(Debug, Default)]
pub struct Queue {
    needs: BTreeMap<ChunkId, Need>,
    order: BTreeSet<(Need, ChunkId)>,
    endangered: BTreeMap<ChunkId, BootTime>,
}

impl Queue {
    /// A chunk needs a copy. A less urgent one may have to go for it.
    pub fn put(&mut self, chunk: ChunkId, need: Need) {
        self.remove(chunk);
        if self.needs.len() >= WAITING_MAX {
            match self.order.last().copied() {
                Some((least, last)) if least > need => self.remove(last),
                _ => return,
            }
        }
        self.needs.insert(chunk, need);
        self.order.insert((need, chunk));
    }

    /// It doesn't any more.
    pub fn remove(&mut self, chunk: ChunkId) {
        if let Some(need) = self.needs.remove(&chunk) {
            self.order.remove(&(need, chunk));
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.needs.len()
    }

    /// None waits.
    pub fn is_empty(&self) -> bool {
        self.needs.is_empty()
    }

    /// The most urgent ones.
    pub fn first(&self, most: usize) -> Vec<(ChunkId, Need)> {
        self.order.iter().take(most).map(|(need, chunk)| (*chunk, *need)).collect()
    }

    /// Notes whether a chunk has fewer reachable copies than it should.
    pub fn endangered(&mut self, chunk: ChunkId, is: bool, now: BootTime) {
        if !is {
            self.endangered.remove(&chunk);
        } else if self.endangered.len() < ENDANGERED_MAX {
            self.endangered.entry(chunk).or_insert(now);
        }
    }

    /// Since when the chunk that has been endangered longest has been so.
    pub fn oldest(&self) -> Option<BootTime> {
        self.endangered.values().min().copied()
    }

    /// A scan has seen all chunks: others than `seen` are no more.
    pub fn scanned(&mut self, seen: impl Fn(ChunkId) -> bool) {
        self.endangered.retain(|chunk, _| seen(*chunk));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_most_endangered_comes_first_and_stays() {
        let mut queue = Queue::default();
        queue.put(ChunkId(1), Need::Balance);
        queue.put(ChunkId(2), Need::Endangered { good: 2 });
        queue.put(ChunkId(3), Need::Draining);
        queue.put(ChunkId(4), Need::Endangered { good: 1 });
        let order = |q: &Queue| q.first(9).iter().map(|(c, _)| c.0).collect::<Vec<_>>();
        assert_eq!(order(&queue), [4, 2, 3, 1]);
        queue.put(ChunkId(1), Need::Endangered { good: 1 });
        assert_eq!(order(&queue), [1, 4, 2, 3]);
        queue.remove(ChunkId(4));
        for n in 0..2 * WAITING_MAX as u64 {
            queue.put(ChunkId(100 + n), Need::Balance);
        }
        assert_eq!(queue.len(), WAITING_MAX);
        queue.put(ChunkId(5), Need::Endangered { good: 0 });
        assert_eq!((queue.len(), queue.first(2)[0].0), (WAITING_MAX, ChunkId(5)));
    }

    #[test]
    fn the_oldest_danger_is_known() {
        let (mut queue, at) = (Queue::default(), |s| BootTime(Duration::from_secs(s)));
        queue.endangered(ChunkId(1), true, at(5));
        queue.endangered(ChunkId(2), true, at(7));
        queue.endangered(ChunkId(1), true, at(9));
        assert_eq!(queue.oldest(), Some(at(5)));
        queue.endangered(ChunkId(1), false, at(10));
        assert_eq!(queue.oldest(), Some(at(7)));
        queue.scanned(|chunk| chunk != ChunkId(2));
        assert_eq!(queue.oldest(), None);
    }
}
