//! Where a replica is *complete*: which entries name data that isn't in its region yet.
//!
//! An entry that names bytes of a chunk holds back its own place and all behind it until these bytes are here. If the chunk dies by a later entry first,
//! its bytes won't come any more: then the places between the two are never complete, and those from its death on may be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mooseng_schema::extent::{self, ExtentRecord};
use mooseng_schema::log::LogPosition;
use mooseng_schema::{Record, chunk};
use mooseng_store::mvcc::Change;
use mooseng_wire::{ChunkId, VolumeId};

/// Bytes that are waited for, each kept with the entry that names them first: at most so many.
pub const NEEDS_MAX: usize = 200_000;
/// Chunks that readers wait for, of a volume: those that come while there are so many take their turn.
pub const AWAITED_MAX: usize = 64;

/// What an entry says about chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// It names bytes of them, up to there.
    pub upto: BTreeMap<ChunkId, u64>,
    /// They are no more.
    pub gone: BTreeSet<ChunkId>,
}

impl Named {
    /// By an entry's changes.
    pub fn by(volume: VolumeId, changes: &[Change]) -> Self {
        let mut named = Self::default();
        let extents = extent::whole_range(volume);
        for change in changes {
            match change {
                Change::Set(key, value) if extents.begin <= *key && *key < extents.end => {
                    let Ok(record) = ExtentRecord::from_value(value) else { continue };
                    if record.chunk != 0 {
                        let end = record.chunk_offset.saturating_add(record.length);
                        let upto = named.upto.entry(ChunkId(record.chunk)).or_default();
                        *upto = (*upto).max(end);
                    }
                }
                Change::Clear(key) => {
                    if let Ok(chunk) = chunk::parse_key(volume, key) {
                        named.gone.insert(chunk);
                    }
                }
                Change::Set(..) | Change::ClearRange(_) => {}
            }
        }
        named.upto.retain(|chunk, _| !named.gone.contains(chunk));
        named
    }
}

/// Bytes of a chunk that an entry names first.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// The entry.
    at: LogPosition,
    /// The place before it.
    before: LogPosition,
    /// Up to there.
    upto: u64,
}

/// What isn't here yet.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Entries up to here were looked at.
    noted: LogPosition,
    /// What is waited for of each chunk: with each entry more bytes.
    chunks: BTreeMap<ChunkId, VecDeque<Step>>,
    /// Of those, what is here for certain.
    here: BTreeMap<ChunkId, u64>,
    /// The first entry that each of them holds back.
    first: BTreeSet<(LogPosition, ChunkId)>,
    /// Places that never are complete: from an entry on, whose chunk died before its bytes were here, and before the entry by which it died. By the first.
    never: BTreeMap<LogPosition, (LogPosition, LogPosition)>,
    count: usize,
    /// What readers missed, and up to where: the first that missed something first.
    awaited: VecDeque<(ChunkId, u64)>,
}

impl Needs {
    /// Everything up to `complete` is here, and what comes behind wasn't looked at yet.
    pub fn from(complete: LogPosition) -> Self {
        Self { noted: complete, ..Self::default() }
    }

    /// A volume that was looked through from `begun` to `ended`, two places of its log: these bytes aren't here. What chunks that died meanwhile
    /// had isn't known, so no place before `ended` counts as complete.
    pub fn of_scan(
        begun: LogPosition,
        missing: impl IntoIterator<Item = (ChunkId, u64)>,
        ended: LogPosition,
    ) -> Self {
        let mut needs = Self::from(begun);
        let before = LogPosition::default();
        for (chunk, upto) in missing {
            needs.chunks.insert(chunk, VecDeque::from([Step { at: begun, before, upto }]));
            needs.first.insert((begun, chunk));
            needs.count += 1;
        }
        needs.never.insert(begun, (before, ended));
        needs
    }

    /// Entries up to here were looked at.
    pub fn noted(&self) -> LogPosition {
        self.noted
    }

    /// There is no room for more: what follows is looked at later.
    pub fn is_full(&self) -> bool {
        self.count >= NEEDS_MAX
    }

    /// How many chunks are waited for.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Nothing is waited for.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The entry at `at`, which is the next one, names these bytes, of which those that are here aren't told; and these chunks are no more.
    pub fn note(
        &mut self,
        at: LogPosition,
        missing: impl IntoIterator<Item = (ChunkId, u64)>,
        gone: impl IntoIterator<Item = ChunkId>,
    ) {
        debug_assert!(at > self.noted, "entries are looked at in their order");
        let before = std::mem::replace(&mut self.noted, at);
        for (chunk, upto) in missing {
            let steps = self.chunks.entry(chunk).or_default();
            match steps.back() {
                Some(last) if last.upto >= upto => continue,
                Some(_) => {}
                None => drop(self.first.insert((at, chunk))),
            }
            steps.push_back(Step { at, before, upto });
            self.count += 1;
        }
        for chunk in gone {
            if let Some(first) = self.forget(chunk) {
                let (before, end) = self.never.get(&first.at).copied().unwrap_or((first.before, at));
                self.never.insert(first.at, (before, end.max(at)));
            }
        }
        let complete = self.complete();
        self.never.retain(|_, (_, end)| *end > complete);
    }

    /// Bytes of a chunk are here, durably.
    pub fn met(&mut self, chunk: ChunkId, upto: u64) {
        self.awaited.retain(|(awaited, wanted)| *awaited != chunk || *wanted > upto);
        let Some(steps) = self.chunks.get_mut(&chunk) else { return };
        let here = self.here.entry(chunk).or_default();
        *here = upto.max(*here);
        let Some(first) = steps.front().copied() else { return };
        while steps.front().is_some_and(|step| step.upto <= upto) {
            steps.pop_front();
            self.count -= 1;
        }
        let left = steps.front().map(|step| step.at);
        if left != Some(first.at) {
            self.first.remove(&(first.at, chunk));
        }
        match left {
            Some(at) => drop(self.first.insert((at, chunk))),
            None => {
                self.chunks.remove(&chunk);
                self.here.remove(&chunk);
            }
        }
        let complete = self.complete();
        self.never.retain(|_, (_, end)| *end > complete);
    }

    fn forget(&mut self, chunk: ChunkId) -> Option<Step> {
        self.awaited.retain(|(awaited, _)| *awaited != chunk);
        let steps = self.chunks.remove(&chunk)?;
        self.here.remove(&chunk);
        self.count -= steps.len();
        let first = steps.front().copied()?;
        self.first.remove(&(first.at, chunk));
        Some(first)
    }

    /// The furthest place of which all data is here.
    pub fn complete(&self) -> LogPosition {
        let mut complete = self.noted;
        if let Some((_, chunk)) = self.first.first()
            && let Some(step) = self.chunks.get(chunk).and_then(VecDeque::front)
        {
            complete = step.before;
        }
        // Of those that it lies between, none begins behind one that was looked at.
        for (begin, (before, end)) in self.never.iter().rev() {
            if *begin <= complete && complete < *end {
                complete = *before;
            }
        }
        complete
    }

    /// Whether bytes of a chunk up to there may be waited for still: an entry that names more of it names them, too.
    pub fn lacks(&self, chunk: ChunkId, upto: u64) -> bool {
        self.chunks.contains_key(&chunk) && self.here.get(&chunk).is_none_or(|here| *here < upto)
    }

    /// What to fetch next: what holds the completeness back first. Not those that are `busy`.
    pub fn next(&self, busy: impl Fn(ChunkId) -> bool) -> Option<(ChunkId, u64)> {
        let chunk = self.first.iter().map(|(_, chunk)| *chunk).find(|chunk| !busy(*chunk))?;
        Some((chunk, self.wanted(chunk)?))
    }

    /// Up to where bytes of a chunk are waited for, if some are.
    pub fn wanted(&self, chunk: ChunkId) -> Option<u64> {
        self.chunks.get(&chunk)?.back().map(|last| last.upto)
    }

    /// A reader missed bytes of a chunk up to there: [`Self::next_awaited`] picks it, whether an entry that was looked at names it or not.
    pub fn missed(&mut self, chunk: ChunkId, upto: u64) {
        if let Some((_, wanted)) = self.awaited.iter_mut().find(|(awaited, _)| *awaited == chunk) {
            *wanted = upto.max(*wanted);
        } else if self.awaited.len() < AWAITED_MAX {
            self.awaited.push_back((chunk, upto));
        }
    }

    /// What readers wait for, and is in front but once: where it can't be had, others get their turn, and whoever still wants it misses it again. Not
    /// those that are `busy`.
    pub fn next_awaited(&mut self, busy: impl Fn(ChunkId) -> bool) -> Option<(ChunkId, u64)> {
        let place = self.awaited.iter().position(|(chunk, _)| !busy(*chunk))?;
        let (chunk, wanted) = self.awaited.remove(place)?;
        let named = self.wanted(chunk).unwrap_or(0);
        Some((chunk, wanted.max(named)))
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::Epoch;
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Event {
        /// An entry names bytes of chunks.
        Name(Vec<(u64, u64)>),
        /// By an entry a chunk dies.
        Die(u64),
        /// Bytes of a chunk have come.
        Come(u64, u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        prop::collection::vec(
            prop_oneof![
                3 => prop::collection::vec((1_u64..5, 1_u64..6), 0..3).prop_map(Event::Name),
                1 => (1_u64..5).prop_map(Event::Die),
                3 => (1_u64..5, 1_u64..6).prop_map(|(chunk, upto)| Event::Come(chunk, upto)),
            ],
            0..60,
        )
    }

    fn place(n: u64) -> LogPosition {
        LogPosition::new(Epoch(1), n)
    }

    proptest! {
        /// A place is complete if of each chunk that lives there everything is here that entries up to it have named.
        #[test]
        fn complete_is_as_the_log_says(events in events()) {
            let mut needs = Needs::from(place(10));
            // For each place behind the first what is named in it, of chunks that live there. A chunk that died is another one when it is named again.
            let mut states: Vec<BTreeMap<(u64, u64), u64>> = vec![BTreeMap::new()];
            let mut here: BTreeMap<(u64, u64), u64> = BTreeMap::new();
            let mut lives = [0_u64; 5];
            let mut before = place(10);
            let id = |lives: &[u64; 5], chunk: u64| ChunkId(chunk + 10 * lives[chunk as usize]);
            for event in events {
                let at = place(10 + states.len() as u64);
                match event {
                    Event::Name(named) => {
                        let mut state = states.last().unwrap().clone();
                        let mut missing = Vec::new();
                        for (chunk, upto) in named {
                            let life = (chunk, lives[chunk as usize]);
                            let known = state.entry(life).or_default();
                            *known = (*known).max(upto);
                            if here.get(&life).is_none_or(|has| *has < upto) {
                                missing.push((id(&lives, chunk), upto));
                            }
                        }
                        states.push(state);
                        needs.note(at, missing, []);
                    }
                    Event::Die(chunk) => {
                        let mut state = states.last().unwrap().clone();
                        state.remove(&(chunk, lives[chunk as usize]));
                        states.push(state);
                        needs.note(at, [], [id(&lives, chunk)]);
                        lives[chunk as usize] += 1;
                    }
                    Event::Come(chunk, upto) => {
                        let life = (chunk, lives[chunk as usize]);
                        let has = here.entry(life).or_default();
                        *has = (*has).max(upto);
                        needs.met(id(&lives, chunk), upto);
                        prop_assert!(!needs.lacks(id(&lives, chunk), upto));
                    }
                }
                let whole = |state: &BTreeMap<(u64, u64), u64>| state.iter().all(|(life, upto)| here.get(life).is_some_and(|has| has >= upto));
                let furthest = states.iter().rposition(whole).unwrap();
                prop_assert_eq!(needs.complete(), place(10 + furthest as u64));
                prop_assert!(needs.complete() >= before);
                before = needs.complete();
                let waiting = states.last().unwrap().iter().filter(|(life, upto)| here.get(*life).is_none_or(|has| has < upto)).count();
                prop_assert_eq!(needs.len(), waiting);
                prop_assert_eq!(needs.is_empty(), needs.next(|_| false).is_none());
                prop_assert_eq!(needs.count, needs.chunks.values().map(VecDeque::len).sum::<usize>());
            }
        }
    }

    #[test]
    fn what_was_looked_through_is_complete_once_the_log_leads_there() {
        let mut needs = Needs::of_scan(place(5), [(ChunkId(1), 7), (ChunkId(2), 3)], place(7));
        needs.met(ChunkId(1), 7);
        needs.met(ChunkId(2), 3);
        assert_eq!((needs.complete(), needs.noted()), (LogPosition::default(), place(5)));
        needs.note(place(6), [], []);
        assert_eq!(needs.complete(), LogPosition::default());
        needs.note(place(7), [], []);
        assert_eq!(needs.complete(), place(7));
    }

    #[test]
    fn what_readers_miss_is_in_front_once_and_doesnt_outlive_its_bytes() {
        let mut needs = Needs::from(place(1));
        needs.note(place(2), [(ChunkId(9), 5)], []);
        needs.note(place(3), [(ChunkId(1), 5), (ChunkId(2), 3), (ChunkId(3), 3)], []);
        needs.note(place(4), [(ChunkId(1), 8)], []);
        assert_eq!(needs.next_awaited(|_| false), None);
        for (chunk, upto) in [(1, 4), (2, 3), (1, 2), (7, 6), (3, 1)] {
            needs.missed(ChunkId(chunk), upto);
        }
        // All that is named of it; of what isn't named yet what was missed.
        assert_eq!(needs.next_awaited(|chunk| chunk == ChunkId(1)), Some((ChunkId(2), 3)));
        assert_eq!(needs.next_awaited(|_| false), Some((ChunkId(1), 8)));
        assert_eq!(needs.next_awaited(|_| false), Some((ChunkId(7), 6)));
        needs.met(ChunkId(3), 1);
        assert_eq!(needs.next_awaited(|_| false), None, "that was all");
        assert_eq!(needs.next(|_| false), Some((ChunkId(9), 5)), "completeness goes by the log alone");
        needs.missed(ChunkId(2), 3);
        needs.note(place(5), [], [ChunkId(2)]);
        assert_eq!(needs.next_awaited(|_| false), None, "it is no more");
        (100..100 + 2 * AWAITED_MAX as u64).for_each(|chunk| needs.missed(ChunkId(chunk), 1));
        assert_eq!(needs.awaited.len(), AWAITED_MAX);
        assert_eq!(needs.next_awaited(|_| false), Some((ChunkId(100), 1)));
    }

    #[test]
    fn what_holds_most_back_is_fetched_first_up_to_where_it_is_named() {
        let mut needs = Needs::from(place(1));
        needs.note(place(2), [(ChunkId(9), 5)], []);
        needs.note(place(3), [(ChunkId(1), 5)], []);
        needs.note(place(4), [(ChunkId(9), 8), (ChunkId(1), 4)], []);
        assert_eq!(needs.next(|_| false), Some((ChunkId(9), 8)));
        assert_eq!(needs.next(|chunk| chunk == ChunkId(9)), Some((ChunkId(1), 5)));
        assert_eq!((needs.wanted(ChunkId(9)), needs.wanted(ChunkId(2))), (Some(8), None));
        needs.met(ChunkId(9), 4);
        // What is named up to 5 at once may be two runs of a file.
        assert!(needs.lacks(ChunkId(9), 5) && !needs.lacks(ChunkId(9), 4) && !needs.lacks(ChunkId(2), 4));
        assert!(needs.lacks(ChunkId(1), 1), "nothing is known of it");
        needs.met(ChunkId(9), 5);
        assert_eq!((needs.complete(), needs.noted()), (place(2), place(4)));
        assert_eq!(needs.next(|_| false), Some((ChunkId(1), 5)));
    }
}
