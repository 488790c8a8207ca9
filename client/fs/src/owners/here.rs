//! Locks that this mount gives by itself, as long as the region promises it an inode's locks (docs/decisions/0048-locks-alone.md). Decisions alone: nothing here
//! waits, or asks anybody.
//!
//! ```text
//!   at the region --(nobody of this host holds any)--> asked for --(promised)--> idle: nothing is held
//!         ^  ^                                            |  not promised        | given  ^ released
//!         |  +--------------------------------------------+                      v        |
//!         +---------------- recorded <---- leaves: a recall, a wait <----------- here -----+
//! ```
//! Of an inode that is *here* nothing is on record: what its owners hold of it ([`super::OwnerState::held`]) is all that is held by anybody. That stays so when the
//! promise is gone otherwise than by a recall - with its custodian, say, of whom the next one has the inode told ([`Locks::held_here`]) -, but nothing is given, and nothing
//! released, before it is on record then. A recall closes the inode first, has recorded what is held, and only then gives the promise up, all of it before it is
//! answered: in this order no lock can slip in.

use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use mooseng_wire::fs::{LockKind, LockSpec};

use super::{Key, Locks, Maps, Owner, Tenure};
use crate::held::{Held, Part};
use crate::locks::LockRequest;

/// Ranges of one inode that are held here: more are the region's to count, which takes twice as many. So all that is held here can be recorded.
const RANGES_MAX: usize = 1000;

/// An inode of which something is held here.
#[derive(Debug)]
pub(super) struct Here {
    tenure: Tenure,
    /// It is being recorded.
    leaving: bool,
}

/// What becomes of a wish for a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It is given. What its owner held before.
    Given(Held),
    /// Another owner of this host has it.
    InTheWay,
    /// The region is to be asked for it; it is noted that the owner may hold something.
    Away,
    /// The region is to be asked for the inode's locks, until [`Locks::asked`].
    Ask,
    /// What is held here must be on record first.
    Leave,
    /// Somebody asks for the inode's locks, or records them: decided once that is over.
    Wait,
}

/// What becomes of something that is to be given up, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// It is.
    Done,
    /// That is the region's.
    Away,
    /// As [`Wish::Leave`].
    Leave,
    /// As [`Wish::Wait`].
    Wait,
}

/// Who is in the way of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// This one, or nobody.
    Here(Option<LockSpec>),
    /// The region knows.
    Away,
    /// As [`Wish::Leave`].
    Leave,
    /// As [`Wish::Wait`].
    Wait,
}

/// What is held of an inode, to be recorded at the region in that tenure, or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToRecord {
    pub inode: u64,
    pub tenure: Tenure,
    pub locks: Vec<LockSpec>,
}

/// What is held here of an inode, as far as that may be changed now.
enum Ground {
    Here,
    Leave,
    Wait,
    Away,
}

/// All owners on an inode.
fn owners_of(inode: u64) -> RangeInclusive<Key> {
    (inode, LockKind::Unspecified, 0)..=(inode, LockKind::File, u64::MAX)
}

impl Maps {
    /// Whether anybody holds, or may hold, anything of an inode.
    fn may_be_held(&self, inode: u64) -> bool {
        let mut owners = self.owners.range(owners_of(inode));
        owners.any(|(_, owner)| owner.state(|state| state.held_in.is_some()))
    }

    /// How many ranges of an inode are held in a tenure.
    fn ranges(&self, inode: u64, tenure: Tenure) -> usize {
        let owners = self.owners.range(owners_of(inode));
        let held = owners.map(|(_, owner)| {
            owner.state(|state| if state.held_in == Some(tenure) { state.held.len() } else { 0 })
        });
        held.sum()
    }

    /// Which other owner's lock is in the way of one that is wanted, the first: its number, and what it holds there.
    fn in_the_way(
        &self,
        key: Key,
        tenure: Tenure,
        range: (u64, u64),
        exclusive: bool,
    ) -> Option<(u64, Part)> {
        let owners = self.owners.range(owners_of(key.0));
        let others = owners.filter(|(other, _)| **other != key && other.1 == key.1);
        let conflicts = others.filter_map(|((_, _, number), owner)| {
            let part = owner.state(|state| {
                // Whoever has lost what it had has nothing.
                let holds = state.held_in == Some(tenure) && !state.lost;
                if holds { state.held.in_the_way(range, exclusive) } else { None }
            });
            Some((*number, part?))
        });
        conflicts.min_by_key(|(_, part)| part.start)
    }

    fn is_leaving(&self, inode: u64) -> bool {
        self.here.get(&inode).is_some_and(|here| here.leaving)
    }

    /// Nothing is here any more of which nothing is held.
    pub(super) fn tidy(&mut self, inode: u64) {
        let Some(here) = self.here.get(&inode) else { return };
        if !here.leaving && self.ranges(inode, here.tenure) == 0 {
            self.here.remove(&inode);
        }
    }

    fn ground(&self, inode: u64, tenure: Tenure, promised: bool) -> Ground {
        if self.asking.contains(&inode) {
            return Ground::Wait;
        }
        match self.here.get(&inode) {
            Some(here) if here.leaving => Ground::Wait,
            // Of another tenure, which is over, or has begun since: the region refuses what is asked in that one.
            Some(here) if here.tenure != tenure => Ground::Away,
            Some(_) if !promised || self.closed.contains_key(&inode) => Ground::Leave,
            Some(_) => Ground::Here,
            None => Ground::Away,
        }
    }

    /// Whether that many ranges are held here that no more may be.
    fn is_full(&self, inode: u64, tenure: Tenure) -> bool {
        self.ranges(inode, tenure) >= RANGES_MAX
    }

    fn give(
        &mut self,
        key: Key,
        owner: &Owner,
        request: &LockRequest,
        (tenure, waits): (Tenure, bool),
    ) -> Wish {
        let (range, level) = (request.range(), request.level());
        if self.in_the_way(key, tenure, range, level.exclusive).is_some() {
            // flock gives up the other level before it takes one; who waits does that where it waits.
            if request.kind == LockKind::File && !waits {
                self.clear(key, owner);
            }
            return Wish::InTheWay;
        }
        if self.is_full(key.0, tenure) {
            return Wish::Leave;
        }
        self.note(key, owner, request.handle, tenure);
        let Some(before) = owner.take(range, level, tenure) else { return Wish::Away };
        self.here.entry(key.0).or_insert(Here { tenure, leaving: false });
        Wish::Given(before)
    }
}

impl Locks {
    /// Somebody wants a lock, and may wait for it. `promised` says whether the inode's locks are promised at this moment, under a lease that stands. The caller has
    /// the owner's order.
    pub fn wish(
        &self,
        key: Key,
        owner: &Owner,
        request: &LockRequest,
        (tenure, waits, may_ask): (Tenure, bool, bool),
        promised: impl FnOnce() -> bool,
    ) -> Wish {
        let inode = key.0;
        let wish = self.map(|maps| {
            let promised = promised();
            match maps.ground(inode, tenure, promised) {
                Ground::Here => return maps.give(key, owner, request, (tenure, waits)),
                Ground::Leave => return Wish::Leave,
                Ground::Wait => return Wish::Wait,
                Ground::Away => {}
            }
            let is_free = !maps.closed.contains_key(&inode) && !maps.may_be_held(inode);
            if is_free && promised {
                return maps.give(key, owner, request, (tenure, waits));
            }
            if is_free && may_ask {
                maps.asking.insert(inode);
                return Wish::Ask;
            }
            maps.note(key, owner, request.handle, tenure);
            Wish::Away
        });
        if matches!(wish, Wish::Given(_)) {
            self.given.fetch_add(1, Ordering::Relaxed);
        }
        wish
    }

    /// The region was asked for the inode's locks.
    pub fn asked(&self, inode: u64) {
        self.map(|maps| maps.asking.remove(&inode));
        self.moved.notify_waiters();
    }

    /// An owner gives a range up.
    pub fn release_here(
        &self,
        key: Key,
        owner: &Owner,
        range: (u64, u64),
        tenure: Tenure,
        promised: impl FnOnce() -> bool,
    ) -> Release {
        self.map(|maps| match maps.ground(key.0, tenure, promised()) {
            Ground::Here => {
                // What is in the middle of a range leaves two.
                if owner.state(|state| state.held.is_cut(range)) && maps.is_full(key.0, tenure) {
                    return Release::Leave;
                }
                let is_empty = owner.state(|state| {
                    state.held.give_up(range);
                    state.held.is_empty()
                });
                if is_empty {
                    maps.clear(key, owner);
                }
                Release::Done
            }
            Ground::Leave => Release::Leave,
            Ground::Wait => Release::Wait,
            Ground::Away => Release::Away,
        })
    }

    /// A lock of that range that was given isn't wanted: its owner has again what it had before. If somebody else has got that meanwhile, it has lost all.
    pub fn take_back_here(
        &self,
        key: Key,
        owner: &Owner,
        range: (u64, u64),
        before: &Held,
        promised: impl FnOnce() -> bool,
    ) -> Release {
        self.map(|maps| {
            let Some(tenure) = owner.state(|state| state.held_in) else { return Release::Away };
            match maps.ground(key.0, tenure, promised()) {
                Ground::Here => {}
                Ground::Leave => return Release::Leave,
                Ground::Wait => return Release::Wait,
                Ground::Away => return Release::Away,
            }
            let is_free = before.parts(range).into_iter().all(|part| {
                let range = (part.start, part.end);
                let taken = |exclusive: bool| maps.in_the_way(key, tenure, range, exclusive).is_some();
                part.level.is_none_or(|level| !taken(level.exclusive))
            });
            if !is_free {
                owner.state(|state| (state.held, state.lost) = (Held::default(), true));
                maps.tidy(key.0);
            } else if before.is_empty() {
                maps.clear(key, owner);
            } else {
                owner.state(|state| state.held = before.clone());
            }
            Release::Done
        })
    }

    /// Whether all that owners hold of an inode in that tenure is held here, so that nothing of it is at the region to be given up. None while that is being decided.
    pub fn is_here(&self, inode: u64, tenure: Tenure) -> Option<bool> {
        self.map(|maps| match maps.ground(inode, tenure, true) {
            Ground::Here | Ground::Leave => Some(true),
            Ground::Away => Some(false),
            Ground::Wait => None,
        })
    }

    /// Who is in the way of a lock.
    pub fn test_here(
        &self,
        key: Key,
        request: &LockRequest,
        tenure: Tenure,
        promised: impl FnOnce() -> bool,
    ) -> Test {
        let inode = key.0;
        self.map(|maps| {
            let promised = promised();
            match maps.ground(inode, tenure, promised) {
                Ground::Here => {}
                Ground::Leave => return Test::Leave,
                Ground::Wait => return Test::Wait,
                Ground::Away => {
                    let is_free = promised && !maps.closed.contains_key(&inode) && !maps.may_be_held(inode);
                    return if is_free { Test::Here(None) } else { Test::Away };
                }
            }
            let found = maps.in_the_way(key, tenure, request.range(), request.exclusive);
            Test::Here(found.map(|(owner, Part { start, end, level })| LockSpec {
                kind: key.1.into(),
                owner,
                start,
                end,
                exclusive: level.is_some_and(|level| level.exclusive),
                pid: level.map_or(0, |level| level.pid),
            }))
        })
    }

    /// What is held here of an inode is to be recorded. None if nothing is held, or somebody else sees to that. Then comes [`Self::end_recording`].
    pub fn begin_recording(&self, inode: u64) -> Option<ToRecord> {
        self.map(|maps| {
            let here = maps.here.get_mut(&inode).filter(|here| !here.leaving)?;
            here.leaving = true;
            let tenure = here.tenure;
            let mut locks = Vec::new();
            for ((_, kind, number), owner) in maps.owners.range(owners_of(inode)) {
                owner.state(|state| {
                    if state.held_in == Some(tenure) && !state.lost {
                        locks.extend(state.held.all().map(|(start, end, level)| LockSpec {
                            kind: (*kind).into(),
                            owner: *number,
                            start,
                            end,
                            exclusive: level.exclusive,
                            pid: level.pid,
                        }));
                    }
                });
            }
            Some(ToRecord { inode, tenure, locks })
        })
    }

    /// It is on record, or, where that can't be, `lost` to its owners.
    pub fn end_recording(&self, record: &ToRecord, lost: bool) {
        let ToRecord { inode, tenure, .. } = *record;
        self.map(|maps| {
            if maps.here.get(&inode).is_some_and(|here| here.tenure == tenure) {
                maps.here.remove(&inode);
            }
            for (_, owner) in maps.owners.range(owners_of(inode)).filter(|_| lost) {
                owner.state(|state| state.lost |= state.held_in == Some(tenure));
            }
        });
        self.moved.notify_waiters();
    }

    /// Returns once nobody asks for the inode's locks, or records them.
    pub async fn rest(&self, inode: u64) {
        self.until(|maps| !maps.asking.contains(&inode) && !maps.is_leaving(inode)).await;
    }

    /// Returns once what was held here of an inode is on record, or lost. Whoever answers a recall waits for no more: who asks for the inode's locks may wait for that
    /// answer.
    pub async fn recorded(&self, inode: u64) {
        self.until(|maps| !maps.is_leaving(inode)).await;
    }

    async fn until(&self, is_over: impl Fn(&Maps) -> bool) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.map(|maps| is_over(&*maps)) {
                return;
            }
            moved.await;
        }
    }

    /// The inode's locks are recalled: nothing is given here until [`Self::open`].
    pub fn close(&self, inode: u64) {
        self.map(|maps| *maps.closed.entry(inode).or_default() += 1);
    }

    /// The recall has been acted on.
    pub fn open(&self, inode: u64) {
        self.map(|maps| {
            if let Some(count) = maps.closed.get_mut(&inode) {
                *count -= 1;
                if *count == 0 {
                    maps.closed.remove(&inode);
                }
            }
        });
    }

    /// The inodes of which something is held here in that tenure, for a new custodian.
    pub fn held_here(&self, tenure: Tenure) -> Vec<u64> {
        self.map(|maps| {
            let of_it = maps.here.iter().filter(|(_, here)| here.tenure == tenure);
            of_it.map(|(inode, _)| *inode).collect()
        })
    }

    /// What was held here in another tenure than that is held no more, or was reclaimed as a record.
    pub fn begin_tenure(&self, tenure: Tenure) {
        let over = self.map(|maps| {
            let before = maps.here.len();
            maps.here.retain(|_, here| here.tenure == tenure);
            maps.here.len() < before
        });
        if over {
            self.moved.notify_waiters();
        }
    }

    /// How many locks were given here.
    pub fn given_here(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests;
