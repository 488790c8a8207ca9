//! Appends of one chunk, in the order of their offsets. They arrive on several tasks: one that overtook its forerunner waits for it
//! a little, one that has its turn writes alone, and flushes are shared.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mooseng_wire::ChunkId;
use tokio::sync::{Mutex as AsyncMutex, Notify};

/// Most appends of one chunk at a time.
pub const IN_FLIGHT_MAX: usize = 64;

/// One chunk's turns.
#[derive(Debug, Default)]
pub struct Turns {
    /// Held by the append that is looked at or written.
    pub write: AsyncMutex<()>,
    /// Held by the one that flushes, for all that wait.
    pub flush: AsyncMutex<()>,
    /// Rings when the chunk grew.
    pub grown: Notify,
}

/// The chunks that are being appended to.
#[derive(Debug, Default)]
pub struct Order(Arc<Mutex<InUse>>);

/// How many appends of each chunk there are, and the chunk's turns.
type InUse = BTreeMap<ChunkId, (usize, Arc<Turns>)>;

/// A place in a chunk's order; given back when it is dropped.
#[derive(Debug)]
pub struct Entered {
    order: Order,
    chunk: ChunkId,
    /// The chunk's turns.
    pub turns: Arc<Turns>,
}

impl Order {
    fn chunks(&self) -> MutexGuard<'_, InUse> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place among a chunk's appends; none if there are too many.
    pub fn enter(&self, chunk: ChunkId) -> Option<Entered> {
        let mut chunks = self.chunks();
        let (count, turns) = chunks.entry(chunk).or_default();
        if *count >= IN_FLIGHT_MAX {
            return None;
        }
        *count += 1;
        Some(Entered { order: Order(self.0.clone()), chunk, turns: turns.clone() })
    }

    /// How many chunks are being appended to.
    pub fn busy(&self) -> usize {
        self.chunks().len()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut chunks = self.order.chunks();
        if let Some((count, _)) = chunks.get_mut(&self.chunk) {
            *count -= 1;
            if *count == 0 {
                chunks.remove(&self.chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let order = Order::default();
        let held: Vec<Entered> = (0..IN_FLIGHT_MAX).map(|_| order.enter(ChunkId(1)).unwrap()).collect();
        assert!(order.enter(ChunkId(1)).is_none());
        assert!(order.enter(ChunkId(2)).is_some());
        assert_eq!(order.busy(), 1);
        drop(held);
        assert_eq!(order.busy(), 0);
    }
}
