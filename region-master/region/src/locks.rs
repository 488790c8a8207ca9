//! Who waits for locks: queues by inode, who keeps whom waiting, and waits that can never end. In memory, for a session that waits says so
//! again to each new custodian; what is held is in the store.
//!
//! ```text
//!   conflict -> queue -> judged (these owners are in the way) -> granted -> told
//!                  \-> removed: cancelled, given up, session over, would wait for itself
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mooseng_wire::fs::{LockKind, LockSpec};
use mooseng_wire::{Incarnation, InodeId, SessionId, VolumeId};

/// Owners of locks: kind, session, the session's word for the owner.
pub type Owner = (LockKind, SessionId, u64);
/// A wait: the session, and the number that it gave it.
pub type WaitId = (SessionId, u64);

/// Waits looked at in a search for one that waits for itself.
const SEARCH_MAX: usize = 10_000;

/// Bounds of the queues.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Waits of one session.
    pub per_session_max: usize,
    /// Waits of all.
    pub waits_max: usize,
    /// Owners remembered to be in the way of waits, together: two thousand readers of a file for each of a hundred thousand who want to write
    /// would be too many.
    pub blockers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_session_max: 4096, waits_max: 100_000, blockers_max: 1_000_000 }
    }
}

/// Of each wait so many owners are remembered whatever there is of others.
const BLOCKERS_MIN: usize = 4;

/// Something that is waited for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    /// Who waits.
    pub id: WaitId,
    /// In which of its lives.
    pub incarnation: Incarnation,
    /// On which inode.
    pub inode: InodeId,
    /// For which lock.
    pub lock: LockSpec,
}

impl Wait {
    /// For whom the lock is.
    pub fn owner(&self) -> Owner {
        (self.lock.kind(), self.id.0, self.lock.owner)
    }
}

#[derive(Debug)]
struct Waiting {
    wait: Wait,
    blockers: Vec<Owner>,
}

/// No room for another wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// All waits at a custodian.
#[derive(Debug)]
pub struct LockWaits {
    limits: Limits,
    waits: BTreeMap<WaitId, Waiting>,
    /// In order of arrival.
    queues: BTreeMap<InodeId, VecDeque<WaitId>>,
    by_owner: BTreeMap<Owner, BTreeSet<u64>>,
    /// Granted, and the session hasn't said that it knows.
    untold: BTreeMap<SessionId, BTreeSet<u64>>,
    /// All blockers of all waits.
    blockers: usize,
}

impl LockWaits {
    /// Nobody waits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            waits: BTreeMap::new(),
            queues: BTreeMap::new(),
            by_owner: BTreeMap::new(),
            untold: BTreeMap::new(),
            blockers: 0,
        }
    }

    /// Forgets everything of a volume: another custodian is told anew.
    pub fn forget(&mut self, volume: VolumeId) {
        let ids = SessionId::all_of(volume);
        let its = self.waits.range((*ids.start(), 0)..=(*ids.end(), u64::MAX)).map(|(id, _)| *id);
        for id in its.collect::<Vec<_>>() {
            self.remove(id);
        }
        self.untold.retain(|session, _| session.volume() != volume);
    }

    /// Puts a wait at the end of its queue. One that is there already keeps its place.
    pub fn queue(&mut self, wait: Wait) -> Result<(), Full> {
        let id = wait.id;
        if let Some(there) = self.waits.get_mut(&id) {
            if there.wait.inode == wait.inode && there.wait.owner() == wait.owner() {
                there.wait = wait;
                return Ok(());
            }
            self.remove(id);
        }
        let of_session = self.waits.range((id.0, 0)..=(id.0, u64::MAX)).count();
        if self.waits.len() >= self.limits.waits_max || of_session >= self.limits.per_session_max {
            return Err(Full);
        }
        // It waits again: what was granted was given up since.
        self.told(id);
        self.queues.entry(wait.inode).or_default().push_back(id);
        self.by_owner.entry(wait.owner()).or_default().insert(id.1);
        self.waits.insert(id, Waiting { wait, blockers: Vec::new() });
        Ok(())
    }

    /// A wait, if it isn't over.
    pub fn of_id(&self, id: WaitId) -> Option<&Wait> {
        self.waits.get(&id).map(|waiting| &waiting.wait)
    }

    /// Whether anybody waits on the inode.
    pub fn is_waited_for(&self, inode: InodeId) -> bool {
        self.queues.contains_key(&inode)
    }

    /// All waits on an inode, in order.
    pub fn ids(&self, inode: InodeId) -> Vec<WaitId> {
        self.queues.get(&inode).into_iter().flatten().copied().collect()
    }

    /// Those of these waits that aren't over.
    pub fn of_ids(&self, ids: &[WaitId]) -> Vec<Wait> {
        ids.iter().filter_map(|id| self.of_id(*id)).cloned().collect()
    }

    /// Up to `max` inodes behind `after` on which somebody waits.
    pub fn inodes_behind(&self, after: InodeId, max: usize) -> Vec<InodeId> {
        self.queues.range(InodeId(after.0.saturating_add(1))..).map(|(inode, _)| *inode).take(max).collect()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waits.len()
    }

    /// Whether nobody does.
    pub fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    /// These were found in the way of a wait. Where there is no room for all, some: a circle through the others isn't found, and ends as
    /// one through several threads does, by a signal.
    pub fn judged(&mut self, id: WaitId, mut blockers: Vec<Owner>) {
        if let Some(waiting) = self.waits.get_mut(&id) {
            self.blockers -= waiting.blockers.len();
            let room = self.limits.blockers_max.saturating_sub(self.blockers);
            blockers.truncate(room.max(BLOCKERS_MIN));
            blockers.shrink_to_fit();
            self.blockers += blockers.len();
            waiting.blockers = blockers;
        }
    }

    /// A wait is over: its owner has the lock. Answers whether its session is to be told.
    pub fn granted(&mut self, id: WaitId) -> bool {
        let waited = self.remove(id);
        if waited {
            let untold = self.untold.entry(id.0).or_default();
            untold.insert(id.1);
            // A session that answers nothing: it hears of the oldest when it asks again.
            if untold.len() > self.limits.per_session_max {
                untold.pop_first();
            }
        }
        waited
    }

    /// The session knows.
    pub fn told(&mut self, id: WaitId) {
        if let Some(untold) = self.untold.get_mut(&id.0) {
            untold.remove(&id.1);
            if untold.is_empty() {
                self.untold.remove(&id.0);
            }
        }
    }

    /// What was granted and sessions haven't said that they know.
    pub fn untold(&self) -> Vec<(SessionId, Vec<u64>)> {
        self.untold.iter().map(|(session, waits)| (*session, waits.iter().copied().collect())).collect()
    }

    /// A wait is over without a lock. Answers whether there was one.
    pub fn remove(&mut self, id: WaitId) -> bool {
        let Some(Waiting { wait, blockers }) = self.waits.remove(&id) else { return false };
        self.blockers -= blockers.len();
        if let Some(queue) = self.queues.get_mut(&wait.inode) {
            queue.retain(|other| *other != id);
            if queue.is_empty() {
                self.queues.remove(&wait.inode);
            }
        }
        if let Some(waits) = self.by_owner.get_mut(&wait.owner()) {
            waits.remove(&id.1);
            if waits.is_empty() {
                self.by_owner.remove(&wait.owner());
            }
        }
        true
    }

    /// A session's life is over.
    pub fn drop_session(&mut self, session: SessionId) {
        self.untold.remove(&session);
        let its: Vec<WaitId> =
            self.waits.range((session, 0)..=(session, u64::MAX)).map(|(id, _)| *id).collect();
        for id in its {
            self.remove(id);
        }
    }

    /// A chain of waits from this one on whose last is kept by this one's owner: each of them with the owner in its way. What was judged a
    /// moment ago may have changed since: look at all of them at one moment. For range locks only, as POSIX has it; an owner is
    /// taken for one thread.
    pub fn cycle(&self, id: WaitId) -> Option<Vec<(Wait, Owner)>> {
        let start = self.waits.get(&id)?;
        let own = start.wait.owner();
        if own.0 != LockKind::Range {
            return None;
        }
        // Each wait with the wait and the owner over which it was found.
        let mut found: BTreeMap<WaitId, Option<(WaitId, Owner)>> = BTreeMap::from([(id, None)]);
        let mut open = VecDeque::from([id]);
        while let Some(at) = open.pop_front() {
            let Some(waiting) = self.waits.get(&at) else { continue };
            for blocker in &waiting.blockers {
                if *blocker == own {
                    return Some(self.path(&found, at, *blocker));
                }
                for wait in self.by_owner.get(blocker).into_iter().flatten() {
                    let next = (blocker.1, *wait);
                    if found.len() < SEARCH_MAX && !found.contains_key(&next) {
                        found.insert(next, Some((at, *blocker)));
                        open.push_back(next);
                    }
                }
            }
        }
        None
    }

    fn path(
        &self,
        found: &BTreeMap<WaitId, Option<(WaitId, Owner)>>,
        last: WaitId,
        blocker: Owner,
    ) -> Vec<(Wait, Owner)> {
        let (mut path, mut at) = (Vec::new(), Some((last, blocker)));
        while let Some((id, blocker)) = at {
            path.extend(self.waits.get(&id).map(|waiting| (waiting.wait.clone(), blocker)));
            at = found.get(&id).copied().flatten();
        }
        path.reverse();
        path
    }

    /// That owner isn't in the way of that wait.
    pub fn not_blocked_by(&mut self, id: WaitId, blocker: Owner) {
        if let Some(waiting) = self.waits.get_mut(&id) {
            self.blockers -= waiting.blockers.len();
            waiting.blockers.retain(|other| *other != blocker);
            self.blockers += waiting.blockers.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(number: u64) -> Owner {
        (LockKind::Range, SessionId(1 + number % 2), number)
    }

    fn wait(inode: u64, number: u64, wait: u64) -> Wait {
        let lock = LockSpec { kind: LockKind::Range.into(), owner: number, ..LockSpec::default() };
        Wait { id: (owner(number).1, wait), incarnation: Incarnation(1), inode: InodeId(inode), lock }
    }

    fn ids(waits: &[Wait]) -> Vec<u64> {
        waits.iter().map(|wait| wait.id.1).collect()
    }

    #[test]
    fn waits_are_in_order_until_they_are_over_and_told_until_that_is_answered() {
        let mut waits = LockWaits::new(Limits { per_session_max: 2, waits_max: 3, ..Limits::default() });
        for (number, id) in [(1, 11), (2, 12), (3, 13)] {
            waits.queue(wait(5, number, id)).unwrap();
        }
        assert_eq!(waits.queue(wait(6, 2, 14)), Err(Full), "no more of all");
        assert_eq!(waits.queue(wait(5, 1, 11)), Ok(()), "said again");
        assert_eq!(ids(&waits.of_ids(&waits.ids(InodeId(5)))), [11, 12, 13]);
        assert!(waits.granted((owner(1).1, 11)) && !waits.granted((owner(1).1, 11)));
        assert!(waits.remove((owner(2).1, 12)));
        assert_eq!(waits.queue(wait(6, 1, 15)), Ok(()));
        assert_eq!(waits.queue(wait(6, 1, 16)), Err(Full), "no more of one session");
        assert_eq!(waits.untold(), [(owner(1).1, vec![11])]);
        waits.told((owner(1).1, 11));
        assert!(waits.untold().is_empty());
        for id in 21..30 {
            waits.queue(wait(7, 2, id)).unwrap();
            waits.granted((owner(2).1, id));
        }
        assert_eq!(waits.untold(), [(owner(2).1, vec![28, 29])], "what nobody answers isn't kept for ever");
        assert_eq!(waits.inodes_behind(InodeId(0), 9), [InodeId(5), InodeId(6)]);
        waits.drop_session(owner(1).1);
        assert!(waits.is_empty() && !waits.is_waited_for(InodeId(5)));
    }

    #[test]
    fn what_is_forgotten_of_a_volume_is_there_of_the_others() {
        let mut waits = LockWaits::new(Limits::default());
        let second = VolumeId(1);
        let theirs = |number: u64| {
            let id = (SessionId::new(second, 1), number);
            Wait { id, inode: InodeId::new(second, 5), ..wait(5, 2, number) }
        };
        for number in [11, 12] {
            waits.queue(wait(5, 2, number)).unwrap();
            waits.queue(theirs(number)).unwrap();
        }
        waits.granted(theirs(11).id);
        waits.granted((owner(2).1, 11));
        waits.forget(second);
        assert!(!waits.is_waited_for(InodeId::new(second, 5)) && waits.is_waited_for(InodeId(5)));
        assert_eq!(waits.untold(), [(owner(2).1, vec![11])]);
        waits.queue(theirs(12)).unwrap();
        waits.forget(VolumeId(0));
        assert!(waits.untold().is_empty() && waits.of_id(theirs(12).id).is_some());
        assert_eq!(waits.len(), 1);
    }

    #[test]
    fn whoever_would_wait_for_itself_is_found_with_the_chain() {
        let mut waits = LockWaits::new(Limits::default());
        for (inode, from, to) in [(1, 1, 2), (2, 2, 3), (3, 3, 1)] {
            waits.queue(wait(inode, from, from)).unwrap();
            waits.judged((owner(from).1, from), vec![owner(9), owner(to)]);
        }
        let cycle = waits.cycle((owner(3).1, 3)).unwrap();
        let chain: Vec<(u64, u64)> = cycle.iter().map(|(wait, owner)| (wait.id.1, owner.2)).collect();
        assert_eq!(chain, [(3, 1), (1, 2), (2, 3)]);
        waits.not_blocked_by((owner(2).1, 2), owner(3));
        assert_eq!(waits.cycle((owner(3).1, 3)), None);
    }

    #[test]
    fn no_more_blockers_are_remembered_than_that() {
        let mut waits = LockWaits::new(Limits { blockers_max: 30, ..Limits::default() });
        let many = || (100..120).map(owner).collect::<Vec<_>>();
        for number in 1..=9 {
            waits.queue(wait(number, number, number)).unwrap();
            waits.judged((owner(number).1, number), many());
        }
        assert_eq!(waits.blockers, 20 + 10 + 7 * BLOCKERS_MIN);
        waits.judged((owner(2).1, 2), vec![owner(3)]);
        waits.not_blocked_by((owner(1).1, 1), owner(100));
        waits.queue(wait(1, 1, 1)).unwrap();
        let counted: usize = waits.waits.values().map(|waiting| waiting.blockers.len()).sum();
        assert_eq!(waits.blockers, counted);
        for number in 1..=9 {
            waits.remove((owner(number).1, number));
        }
        assert_eq!(waits.blockers, 0);
    }

    proptest! {
        #[test]
        fn a_chain_is_found_where_there_is_one(edges in prop::collection::vec((0..8u64, 0..8u64), 0..20)) {
            let mut waits = LockWaits::new(Limits::default());
            let mut blockers: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for (from, to) in edges.into_iter().filter(|(from, to)| from != to) {
                blockers.entry(from).or_default().push(to);
            }
            for (from, to) in &blockers {
                waits.queue(wait(1, *from, *from)).unwrap();
                waits.judged((owner(*from).1, *from), to.iter().map(|to| owner(*to)).collect());
            }
            for from in blockers.keys() {
                let mut reached: BTreeSet<u64> = blockers[from].iter().copied().collect();
                for _ in 0..8 {
                    let more: Vec<u64> = reached.iter().filter_map(|at| blockers.get(at)).flatten().copied().collect();
                    reached.extend(more);
                }
                let cycle = waits.cycle((owner(*from).1, *from));
                prop_assert_eq!(cycle.is_some(), reached.contains(from));
                for (wait, owner) in cycle.into_iter().flatten() {
                    prop_assert!(blockers[&wait.id.1].contains(&owner.2));
                }
            }
        }
    }
}
