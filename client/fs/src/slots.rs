//! Things under way, where those who look find them: put in when they begin, taken out when they end.
//!
//! They lie in shards, each behind a lock of its own that is held for some tens of nanoseconds. Whoever puts something in names the shard, by
//! a number that differs from one to the next (a count, a random id): so hardly ever two meet at one lock, and nobody waits behind who looks but for
//! the time that a copy takes. There is room for a bounded number; what comes beyond isn't seen.

use std::sync::{Mutex, PoisonError};

/// Shards: more than there are threads on most hosts that put something in at one moment.
const SHARDS: usize = 16;
/// Things in one shard at most.
const SHARD_MAX: usize = 256;

/// Where a thing is. It isn't copied, so that nothing is taken out twice.
#[derive(Debug)]
#[must_use = "what isn't taken out stays"]
pub struct Slot {
    shard: usize,
    at: usize,
}

#[derive(Debug)]
struct Held<T> {
    things: Vec<Option<T>>,
    free: Vec<usize>,
}

/// On cache lines of its own, for others are at the neighbours.
#[derive(Debug)]
#[repr(align(64))]
struct Shard<T>(Mutex<Held<T>>);

/// Things under way.
#[derive(Debug)]
pub struct Slots<T>([Shard<T>; SHARDS]);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Slots<T> {
    /// None yet.
    pub const fn new() -> Self {
        Self([const { Shard(Mutex::new(Held { things: Vec::new(), free: Vec::new() })) }; SHARDS])
    }

    fn shard<R>(&self, number: usize, f: impl FnOnce(&mut Held<T>) -> R) -> R {
        f(&mut self.0[number % SHARDS].0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a thing into the shard of that number, of which there may be any; none where that is full.
    pub fn put(&self, number: usize, thing: T) -> Option<Slot> {
        let at = self.shard(number, |held| {
            if let Some(at) = held.free.pop() {
                held.things[at] = Some(thing);
                return Some(at);
            }
            (held.things.len() < SHARD_MAX).then(|| {
                held.things.push(Some(thing));
                held.things.len() - 1
            })
        });
        at.map(|at| Slot { shard: number % SHARDS, at })
    }

    /// Changes a thing.
    pub fn change(&self, slot: &Slot, f: impl FnOnce(&mut T)) {
        self.shard(slot.shard, |held| {
            if let Some(Some(thing)) = held.things.get_mut(slot.at) {
                f(thing);
            }
        });
    }

    /// Takes a thing out.
    pub fn take(&self, slot: Slot) -> Option<T> {
        self.shard(slot.shard, |held| {
            let thing = held.things.get_mut(slot.at)?.take();
            if thing.is_some() {
                held.free.push(slot.at);
            }
            thing
        })
    }

    /// Looks at all of them, in no order. Not at one moment: some may come and go meanwhile.
    pub fn each(&self, mut look: impl FnMut(&T)) {
        (0..SHARDS).for_each(|shard| self.each_in(shard, &mut look));
    }

    /// Looks at those of the shard of that number.
    pub fn each_in(&self, number: usize, look: impl FnMut(&T)) {
        self.shard(number, |held| held.things.iter().flatten().for_each(look));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(slots: &Slots<u32>) -> Vec<u32> {
        let mut seen = Vec::new();
        slots.each(|thing| seen.push(*thing));
        seen.sort_unstable();
        seen
    }

    #[test]
    fn what_was_put_in_is_seen_until_it_is_taken_out() {
        let slots = Slots::new();
        let (first, second) = (slots.put(3, 10).unwrap(), slots.put(3 + SHARDS, 20).unwrap());
        let third = slots.put(4, 30).unwrap();
        slots.change(&second, |thing| *thing += 1);
        assert_eq!(all(&slots), [10, 21, 30]);
        let mut of_one = Vec::new();
        slots.each_in(3, |thing| of_one.push(*thing));
        assert_eq!(of_one, [10, 21]);
        assert_eq!(slots.take(first), Some(10));
        // Its place is another one's.
        let fourth = slots.put(3, 40).unwrap();
        assert_eq!(all(&slots), [21, 30, 40]);
        for slot in [second, third, fourth] {
            assert!(slots.take(slot).is_some());
        }
        assert_eq!(all(&slots), [0_u32; 0]);
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more_memory_is_taken() {
        let slots = Slots::new();
        let mut held: Vec<Slot> = (0..SHARD_MAX as u32).map(|n| slots.put(5, n).unwrap()).collect();
        assert!(slots.put(5, 0).is_none());
        let beside = slots.put(6, 7).unwrap();
        assert_eq!(slots.take(held.pop().unwrap()), Some(SHARD_MAX as u32 - 1));
        held.push(slots.put(5, 1).unwrap());
        assert!(slots.put(5, 0).is_none());
        for slot in held.into_iter().chain([beside]) {
            slots.take(slot);
        }
        for _ in 0..10 * SHARD_MAX {
            let slot = slots.put(5, 1).unwrap();
            slots.take(slot);
        }
        assert_eq!(slots.shard(5, |held| held.things.len()), SHARD_MAX);
    }

    /// Whoever does the work and whoever looks go on side by side.
    #[test]
    fn many_threads_put_in_and_take_out_while_one_looks() {
        let slots = Slots::new();
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let slots = &slots;
                scope.spawn(move || {
                    for n in 0..10_000_usize {
                        let slot = slots.put(thread + n, (thread, n)).unwrap();
                        assert_eq!(slots.take(slot), Some((thread, n)));
                    }
                });
            }
            for _ in 0..100 {
                slots.each(|(thread, n)| assert!(*thread < 4 && *n < 10_000));
            }
        });
        slots.each(|left| panic!("{left:?} was left"));
    }
}
