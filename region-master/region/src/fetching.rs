//! Chunks that come from other regions: who gets the next of the places that there are for fetching, and in which order those have their turn that nobody waits for.
//!
//! ```text
//!   readers wait for it --------\
//!   it holds completeness back ---> Places: so many at a time, a share of them for each --> fetched
//!   nobody waits for it: Aside -/           \--> not fetched: Failed, tried again in its turn
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mooseng_wire::{ChunkId, VolumeId};

/// Chunks fetched at a time.
pub const AT_ONCE: usize = 8;
/// So many of the places only what holds completeness back may take: a home's fsyncs wait for that, however much is read or compared here.
pub const FOR_HELD: usize = 2;
/// And so many more only that and what readers wait for: what is compared takes a round trip each.
pub const FOR_AWAITED: usize = 1;
/// So many of those are tried again at a time that couldn't be fetched when they were tried last: what can't be had at all holds completeness back furthest, and would take
/// all places for good.
pub const FOR_FAILED: usize = 3;
/// Chunks of which is remembered that they couldn't be fetched. Those beyond count like others.
pub const FAILED_MAX: usize = 4_096;
/// Chunks that wait aside at most.
pub const ASIDE_MAX: usize = 100_000;

/// What a chunk is fetched for. Who goes first comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Readers wait for it.
    Awaited,
    /// It holds back the place at which a replica is complete.
    Held,
    /// Nobody waits for it: it is to be compared with what it is to be, or no log lacks it.
    Aside,
}

impl Purpose {
    /// All of them, in the order in which they are looked at for the next place.
    pub const ALL: [Self; 3] = [Self::Awaited, Self::Held, Self::Aside];
}

/// The places that are taken, each by a chunk.
#[derive(Clone, Debug, Default)]
pub struct Places {
    taken: BTreeMap<ChunkId, Purpose>,
}

impl Places {
    /// Whether a chunk has one.
    pub fn has(&self, chunk: ChunkId) -> bool {
        self.taken.contains_key(&chunk)
    }

    /// Whether a chunk that is fetched for that may take a place now. What readers wait for and what nobody waits for have one bound together: what the one leaves of it
    /// the other may take, but for the share of those that go before it.
    pub fn may_take(&self, purpose: Purpose) -> bool {
        let besides = self.taken.values().filter(|taken| **taken != Purpose::Held).count();
        let free = match purpose {
            Purpose::Held => true,
            Purpose::Awaited => besides < AT_ONCE - FOR_HELD,
            Purpose::Aside => besides < AT_ONCE - FOR_HELD - FOR_AWAITED,
        };
        free && self.taken.len() < AT_ONCE
    }

    /// A chunk takes a place. [`Self::may_take`] has said that there is one.
    pub fn take(&mut self, chunk: ChunkId, purpose: Purpose) {
        debug_assert!(self.may_take(purpose) && !self.has(chunk), "there is a place, and no chunk takes two");
        self.taken.insert(chunk, purpose);
    }

    /// It gives its place back.
    pub fn give_back(&mut self, chunk: ChunkId) {
        self.taken.remove(&chunk);
    }
}

/// What holds completeness back and couldn't be fetched when it was tried last.
#[derive(Clone, Debug, Default)]
pub struct Failed {
    /// Each with the number of its last failure.
    last: BTreeMap<ChunkId, u64>,
    count: u64,
}

impl Failed {
    /// Whether a chunk couldn't be.
    pub fn has(&self, chunk: ChunkId) -> bool {
        self.last.contains_key(&chunk)
    }

    /// A chunk couldn't be fetched.
    pub fn note(&mut self, chunk: ChunkId) {
        if self.last.len() < FAILED_MAX || self.has(chunk) {
            self.count += 1;
            self.last.insert(chunk, self.count);
        }
    }

    /// A chunk was fetched. If it couldn't be before, its source answers again, and others' may, too: nothing is kept behind others any more.
    pub fn fetched(&mut self, chunk: ChunkId) {
        if self.has(chunk) {
            self.last.clear();
        }
    }

    /// Only those of which this holds are remembered.
    pub fn retain(&mut self, is_lacked: impl Fn(ChunkId) -> bool) {
        self.last.retain(|chunk, _| is_lacked(*chunk));
    }

    /// Which one is tried again next, if one may be: of those that have no place the one whose last failure is longest ago.
    pub fn next(&self, places: &Places) -> Option<ChunkId> {
        if self.last.keys().filter(|chunk| places.has(**chunk)).count() >= FOR_FAILED {
            return None;
        }
        let waiting = self.last.iter().filter(|(chunk, _)| !places.has(**chunk));
        waiting.min_by_key(|(_, failure)| **failure).map(|(chunk, _)| *chunk)
    }
}

/// Chunks that nobody waits for, in the order in which they came: however many come behind one, it has its turn.
#[derive(Clone, Debug, Default)]
pub struct Aside {
    order: VecDeque<ChunkId>,
    known: BTreeSet<ChunkId>,
}

impl Aside {
    /// A chunk comes last, unless it waits already, or there is no room. Answers whether it does.
    pub fn put(&mut self, chunk: ChunkId) -> bool {
        let comes = self.order.len() < ASIDE_MAX && self.known.insert(chunk);
        if comes {
            self.order.push_back(chunk);
        }
        comes
    }

    /// The one that came first.
    pub fn take(&mut self) -> Option<ChunkId> {
        let chunk = self.order.pop_front()?;
        self.known.remove(&chunk);
        Some(chunk)
    }

    /// Those of a volume.
    pub fn of(&self, volume: VolumeId) -> impl Iterator<Item = ChunkId> {
        self.known.iter().copied().filter(move |chunk| chunk.volume() == volume)
    }

    /// Those of a volume don't wait any more.
    pub fn forget(&mut self, volume: VolumeId) {
        self.order.retain(|chunk| chunk.volume() != volume);
        self.known.retain(|chunk| chunk.volume() != volume);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives places to whom they are due, of those that wait, until there is none.
    fn fill(places: &mut Places, waiting: &BTreeSet<Purpose>, next: &mut u64) {
        while let Some(purpose) =
            Purpose::ALL.into_iter().find(|purpose| waiting.contains(purpose) && places.may_take(*purpose))
        {
            *next += 1;
            places.take(ChunkId(*next), purpose);
        }
    }

    fn count(places: &Places, purpose: Purpose) -> usize {
        places.taken.values().filter(|taken| **taken == purpose).count()
    }

    proptest! {
        /// Whatever has come and gone before: who begins to wait finds a place at once, as long as its own share isn't used up.
        #[test]
        fn a_share_of_the_places_stays_for_whom_it_is(
            steps in prop::collection::vec((prop::collection::btree_set(0_usize..3, 0..4), prop::collection::vec(0_usize..8, 0..8)), 0..60),
        ) {
            let (mut places, mut next) = (Places::default(), 0);
            for (waiting, ended) in steps {
                let waiting: BTreeSet<Purpose> = waiting.into_iter().map(|n| Purpose::ALL[n]).collect();
                fill(&mut places, &waiting, &mut next);
                prop_assert!(places.taken.len() <= AT_ONCE);
                let (awaited, held) = (count(&places, Purpose::Awaited), count(&places, Purpose::Held));
                let besides = places.taken.len() - held;
                // Who waits and has none of what is left has had all of its share.
                if waiting.contains(&Purpose::Held) {
                    prop_assert!(places.taken.len() == AT_ONCE && held >= FOR_HELD);
                }
                if waiting.contains(&Purpose::Awaited) && held <= FOR_HELD {
                    prop_assert!(besides == AT_ONCE - FOR_HELD && awaited >= FOR_AWAITED);
                }
                if held < FOR_HELD {
                    prop_assert!(places.may_take(Purpose::Held));
                }
                if held <= FOR_HELD && awaited == 0 {
                    prop_assert!(places.may_take(Purpose::Awaited));
                }
                // Nothing is left free for those that don't wait, beyond the shares.
                if waiting.len() == 1 && waiting.contains(&Purpose::Aside) {
                    prop_assert!(besides >= AT_ONCE - FOR_HELD - FOR_AWAITED || places.taken.len() == AT_ONCE);
                }
                for place in ended {
                    if let Some(chunk) = places.taken.keys().nth(place).copied() {
                        places.give_back(chunk);
                    }
                }
            }
        }

        /// Each has its turn before those that came behind it, and waits once.
        #[test]
        fn who_came_first_has_its_turn_first(chunks in prop::collection::vec(0_u64..12, 0..60)) {
            let (mut aside, mut expected) = (Aside::default(), VecDeque::new());
            for chunk in chunks {
                let chunk = ChunkId(chunk);
                if chunk.0 < 4 {
                    prop_assert_eq!(aside.take(), expected.pop_front());
                } else {
                    prop_assert_eq!(aside.put(chunk), !expected.contains(&chunk));
                    if !expected.contains(&chunk) {
                        expected.push_back(chunk);
                    }
                }
            }
            let rest: VecDeque<ChunkId> = std::iter::from_fn(|| aside.take()).collect();
            prop_assert_eq!(rest, expected);
        }
    }

    /// Found by review: what readers wait for and what is compared were bounded each for itself, and together took all places.
    #[test]
    fn readers_and_comparisons_together_leave_room_for_what_holds_completeness_back() {
        let (mut places, mut next) = (Places::default(), 0);
        fill(&mut places, &[Purpose::Aside].into(), &mut next);
        assert_eq!(count(&places, Purpose::Aside), AT_ONCE - FOR_HELD - FOR_AWAITED);
        fill(&mut places, &[Purpose::Awaited, Purpose::Aside].into(), &mut next);
        assert_eq!(count(&places, Purpose::Awaited), FOR_AWAITED);
        fill(&mut places, &Purpose::ALL.into(), &mut next);
        assert_eq!((count(&places, Purpose::Held), places.taken.len()), (FOR_HELD, AT_ONCE));
        // What is left free what holds completeness back may have, all of it.
        let mut places = Places::default();
        fill(&mut places, &[Purpose::Held].into(), &mut next);
        assert_eq!(count(&places, Purpose::Held), AT_ONCE);
    }

    #[test]
    fn what_failed_is_tried_again_in_turn_and_a_few_at_a_time() {
        let (mut failed, mut places) = (Failed::default(), Places::default());
        [5, 1, 3, 2].into_iter().for_each(|chunk| failed.note(ChunkId(chunk)));
        // Once more, behind the others.
        failed.note(ChunkId(5));
        for chunk in [1, 3, 2] {
            assert_eq!(failed.next(&places), Some(ChunkId(chunk)));
            places.take(ChunkId(chunk), Purpose::Held);
        }
        assert_eq!(failed.next(&places), None);
        places.give_back(ChunkId(3));
        assert_eq!(failed.next(&places), Some(ChunkId(3)));
        failed.retain(|chunk| chunk != ChunkId(3));
        assert_eq!(failed.next(&places), Some(ChunkId(5)));
        failed.fetched(ChunkId(9));
        assert!(failed.has(ChunkId(5)), "it never failed");
        failed.fetched(ChunkId(1));
        assert!(!failed.has(ChunkId(5)) && failed.next(&places).is_none());
        (0..2 * FAILED_MAX as u64).for_each(|chunk| failed.note(ChunkId(chunk)));
        assert_eq!(failed.last.len(), FAILED_MAX);
    }

    #[test]
    fn what_waits_aside_is_bounded_and_forgotten_by_volume() {
        let mut aside = Aside::default();
        let second = VolumeId(1);
        assert!((1..=ASIDE_MAX as u64 - 2).all(|n| aside.put(ChunkId(n))));
        assert!(aside.put(ChunkId::new(second, 1)) && aside.put(ChunkId::new(second, 2)));
        assert!(!aside.put(ChunkId(0)), "there is no room");
        assert_eq!(aside.of(second).collect::<Vec<_>>(), [ChunkId::new(second, 1), ChunkId::new(second, 2)]);
        aside.forget(VolumeId(0));
        assert_eq!(aside.take(), Some(ChunkId::new(second, 1)));
        assert!(aside.put(ChunkId(0)) && aside.of(VolumeId(0)).eq([ChunkId(0)]));
    }
}
