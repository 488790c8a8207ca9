//! Which owners on this host may hold locks, through which handles, and in which tenure they got them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooseng_namespace::reclaim::RECLAIMED_MAX;
use mooseng_wire::fs::{Lock, LockKind, LockSpec};
use tokio::sync::{Notify, OwnedMutexGuard};

use crate::error::FsError;
use crate::facts::AskingLocks;
use crate::files::HandleId;
use crate::fs::FileSystem;
use crate::held::{Held, Level};

mod here;

pub(crate) use here::{Release, Test, ToRecord, Wish};

/// How long a lock that is in the way of a process waits for the release of a descriptor that was closed before.
const LEAVING_WAITS: Duration = Duration::from_secs(2);

/// What locks are held under. In any other life of the session somebody else may have them; and under any other home of the volume, unless they were
/// reclaimed there: locks are records of the home's region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tenure {
    /// The session and its incarnation.
    pub life: (u64, u64),
    /// The volume's home epoch.
    pub home: u64,
}

/// When a change may be done: in one life of the session, and perhaps not under any home of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Within {
    /// The session and its incarnation.
    pub life: (u64, u64),
    /// Under which homes, where what it rests on may not outlive one.
    pub home: Option<Homes>,
}

/// Homes of the volume under which a change may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Homes {
    /// Of that epoch alone. A change of locks: what it did at one home, its outcome included, the next one has only as far as it was reclaimed.
    Only(u64),
    /// Of that epoch and later ones, as long as all locks were reclaimed at each. What is done under a lock.
    From(u64),
}

impl Homes {
    /// Whether a home of epoch `home` is one of them, where locks were kept since `locks_from`.
    pub fn contain(self, home: u64, locks_from: u64) -> bool {
        match self {
            Self::Only(only) => only == home,
            Self::From(from) => (locks_from..=home).contains(&from),
        }
    }
}

impl From<(u64, u64)> for Within {
    fn from(life: (u64, u64)) -> Self {
        Self { life, home: None }
    }
}

impl Tenure {
    /// For a change of locks.
    pub fn for_locks(self) -> Within {
        Within { life: self.life, home: Some(Homes::Only(self.home)) }
    }

    /// For what is done under locks.
    pub fn under_locks(self) -> Within {
        Within { life: self.life, home: Some(Homes::From(self.home)) }
    }
}

/// An owner on an inode.
pub(crate) type Key = (u64, LockKind, u64);

/// An owner of locks on an inode.
#[derive(Debug, Default)]
pub(crate) struct Owner {
    /// Held by the request that is under way.
    order: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<OwnerState>,
    /// Rung when an abandoned wait was undone.
    pub quiet: Notify,
}

/// What is known of an owner.
#[derive(Debug, Default)]
pub(crate) struct OwnerState {
    /// The tenure in which the owner may hold something.
    pub held_in: Option<Tenure>,
    /// What it holds isn't known.
    pub lost: bool,
    /// What it was told that it holds. It may hold more: what is being granted, or undone.
    pub held: Held,
    /// Through which they were taken.
    pub handles: BTreeSet<HandleId>,
    /// Waits whose process is gone and that aren't undone yet.
    pub abandoned: usize,
    /// How often the home was asked to take something away from it. A grant of which it heard meanwhile may have gone with that.
    pub taken_away: u64,
}

impl Owner {
    pub fn state<T>(&self, f: impl FnOnce(&mut OwnerState) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of a lock that was given in that tenure. Answers what was held before; none if the owner holds something at a later home by now, which
    /// doesn't know of it.
    pub fn take(&self, range: (u64, u64), level: Level, tenure: Tenure) -> Option<Held> {
        self.state(|state| {
            let before = state.held.clone();
            // At one moment: the next home is asked for what is held, and whoever is there already was given what was held before.
            (state.held_in == Some(tenure)).then(|| state.held.take(range, level))?;
            Some(before)
        })
    }

    pub async fn order(&self) -> OwnedMutexGuard<()> {
        self.order.clone().lock_owned().await
    }

    /// [`Self::order`], once no wait of a process that is gone is left: what it might still get is undone, and mustn't be what comes now.
    pub async fn quiet_order(&self) -> OwnedMutexGuard<()> {
        loop {
            self.quiet().await;
            let order = self.order().await;
            if self.state(|state| state.abandoned == 0) {
                return order;
            }
        }
    }

    /// Waits until no wait of a process that is gone is left.
    pub async fn quiet(&self) {
        loop {
            let quiet = self.quiet.notified();
            tokio::pin!(quiet);
            quiet.as_mut().enable();
            if self.state(|state| state.abandoned == 0) {
                return;
            }
            quiet.await;
        }
    }
}

#[derive(Debug, Default)]
struct Maps {
    owners: BTreeMap<Key, Arc<Owner>>,
    by_handle: BTreeMap<HandleId, BTreeSet<Key>>,
    /// Inodes of which all that is held is held here alone: none of it is on record at the region.
    here: BTreeMap<u64, here::Here>,
    /// Recalls of inodes' locks that are being answered, by inode: nothing is given here meanwhile.
    closed: BTreeMap<u64, usize>,
    /// Inodes whose locks the region is being asked for.
    asking: BTreeSet<u64>,
}

impl Maps {
    /// The owner may hold something, through that handle.
    fn note(&mut self, key: Key, owner: &Owner, handle: HandleId, tenure: Tenure) {
        self.by_handle.entry(handle).or_default().insert(key);
        owner.state(|state| {
            // What was reclaimed meanwhile stays so.
            let later = state.held_in.filter(|held| held.life == tenure.life && held.home > tenure.home);
            state.held_in = Some(later.unwrap_or(tenure));
            state.handles.insert(handle);
        });
    }

    /// The owner holds nothing.
    fn clear(&mut self, key: Key, owner: &Owner) {
        let handles = owner.state(|state| {
            (state.held_in, state.lost) = (None, false);
            state.held = Held::default();
            std::mem::take(&mut state.handles)
        });
        for handle in handles {
            if let Some(keys) = self.by_handle.get_mut(&handle) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.by_handle.remove(&handle);
                }
            }
        }
        self.tidy(key.0);
    }
}

/// Locks that are asked of a new home, as its session had them under the one before.
#[derive(Debug, Default)]
pub(crate) struct Reclaim {
    /// As they are asked for.
    pub locks: Vec<Lock>,
    tenure: Option<Tenure>,
    /// Whose they are, with all that each held then, and the places of it in `locks`.
    owners: Vec<(Key, Held, Range<usize>)>,
    _asking: Option<AskingLocks>,
}

impl Reclaim {
    /// As long as it is there, this mount gives no locks by itself.
    pub fn while_asking(mut self, asking: AskingLocks) -> Self {
        self._asking = Some(asking);
        self
    }

    /// Whether it asks for what was held in that tenure.
    pub fn is_of(&self, tenure: Tenure) -> bool {
        self.tenure == Some(tenure)
    }
}

/// What may be held on this host.
#[derive(Debug, Default)]
pub(crate) struct Locks {
    maps: Mutex<Maps>,
    /// Owners who may have more at the home than they know of.
    strays: Mutex<BTreeSet<Key>>,
    /// Whose locks were asked of a next home, by requests of which none was answered yet, and in which tenure they were held.
    named: Mutex<(Option<Tenure>, BTreeSet<Key>)>,
    /// Rung when there are any.
    pub strayed: Notify,
    /// Handles with locks: reads and writes of others needn't look.
    handles: AtomicUsize,
    /// Inodes of which closed descriptors' locks are being given up, with how many.
    leaving: Mutex<BTreeMap<u64, usize>>,
    gone: Notify,
    /// Rung when an inode's locks were asked for, or are on record.
    moved: Notify,
    /// Locks that were given here.
    given: AtomicU64,
}

/// Locks of a closed descriptor are being given up.
pub(crate) struct Leaving {
    fs: FileSystem,
    inode: u64,
}

impl Leaving {
    pub fn new(fs: &FileSystem, inode: u64) -> Self {
        fs.inner.locks.leaving(|leaving| *leaving.entry(inode).or_default() += 1);
        Self { fs: fs.clone(), inode }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let locks = &self.fs.inner.locks;
        locks.leaving(|leaving| {
            if let Some(count) = leaving.get_mut(&self.inode) {
                *count -= 1;
                if *count == 0 {
                    leaving.remove(&self.inode);
                }
            }
        });
        locks.gone.notify_waiters();
    }
}

impl Locks {
    fn map<T>(&self, f: impl FnOnce(&mut Maps) -> T) -> T {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut maps);
        self.handles.store(maps.by_handle.len(), Ordering::Release);
        result
    }

    fn leaving<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, usize>) -> T) -> T {
        f(&mut self.leaving.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for what is being given up of an inode. False if that is nothing, or takes long.
    pub async fn left(&self, inode: u64) -> bool {
        let mut any = false;
        loop {
            let gone = self.gone.notified();
            tokio::pin!(gone);
            gone.as_mut().enable();
            if !self.leaving(|leaving| leaving.contains_key(&inode)) {
                return any;
            }
            any = true;
            if tokio::time::timeout(LEAVING_WAITS, gone).await.is_err() {
                return false;
            }
        }
    }

    pub fn owner(&self, key: Key) -> Arc<Owner> {
        self.map(|maps| maps.owners.entry(key).or_default().clone())
    }

    pub fn known(&self, key: Key) -> Option<Arc<Owner>> {
        self.map(|maps| maps.owners.get(&key).cloned())
    }

    /// The owner may hold something, through that handle.
    pub fn note(&self, key: Key, owner: &Owner, handle: HandleId, tenure: Tenure) {
        self.map(|maps| maps.note(key, owner, handle, tenure));
    }

    /// The owner holds nothing.
    pub fn clear(&self, key: Key, owner: &Owner) {
        self.map(|maps| maps.clear(key, owner));
    }

    /// What is held in that tenure, to be reclaimed at the next home.
    pub fn reclaim(&self, tenure: Tenure) -> Reclaim {
        let mut reclaim = Reclaim { tenure: Some(tenure), ..Reclaim::default() };
        self.map(|maps| {
            for (key, owner) in &maps.owners {
                let held = owner.state(|state| {
                    let holds = state.held_in == Some(tenure) && !state.lost && !state.held.is_empty();
                    holds.then(|| state.held.clone())
                });
                let Some(held) = held else { continue };
                let (inode, kind, number) = *key;
                let first = reclaim.locks.len();
                // A home gives back no more, and a request has its bound: those left out have lost what they had.
                if first + held.all().count() > RECLAIMED_MAX {
                    continue;
                }
                reclaim.locks.extend(held.all().map(|(start, end, Level { exclusive, pid })| {
                    let lock = LockSpec { kind: kind.into(), owner: number, start, end, exclusive, pid };
                    Lock { inode, lock: Some(lock), wait: 0 }
                }));
                reclaim.owners.push((*key, held, first..reclaim.locks.len()));
            }
        });
        self.named(|(of, keys)| {
            if *of != Some(tenure) {
                keys.clear();
                *of = Some(tenure);
            }
            keys.extend(reclaim.owners.iter().map(|(key, ..)| *key));
        });
        reclaim
    }

    fn named<T>(&self, f: impl FnOnce(&mut (Option<Tenure>, BTreeSet<Key>)) -> T) -> T {
        f(&mut self.named.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next home has given the session what was asked for, but for what is at the places `lost`. Who has just what it was asked for holds it in the next tenure,
    /// without a gap; all others have lost what they had. Answers whether nobody has.
    ///
    /// What an earlier request named, whose answer didn't come, and this one doesn't, its owner has given up in between: the home may have taken it from there.
    pub fn reclaimed(&self, asked: &Reclaim, lost: &[u32], next: Tenure) -> bool {
        let mut given_up = self.named(|(of, keys)| {
            let keys = std::mem::take(keys);
            if *of == asked.tenure { keys } else { BTreeSet::new() }
        });
        for (key, ..) in &asked.owners {
            given_up.remove(key);
        }
        let mut strays = BTreeSet::new();
        let all = self.map(|maps| {
            let lost: BTreeSet<usize> =
                lost.iter().filter_map(|place| usize::try_from(*place).ok()).collect();
            for (key, held, places) in &asked.owners {
                let has_all = lost.range(places.clone()).next().is_none();
                let same = maps.owners.get(key).is_some_and(|owner| {
                    owner.state(|state| {
                        if state.held_in != asked.tenure {
                            return false;
                        }
                        state.held_in = Some(next);
                        // What was given up or taken meanwhile, at a home that isn't any more, the next one doesn't know.
                        state.lost |= !has_all || state.held != *held;
                        !state.lost
                    })
                });
                if !same {
                    strays.insert(*key);
                }
            }
            let left = |owner: &Arc<Owner>| {
                owner.state(|state| state.held_in == asked.tenure && (state.lost || !state.held.is_empty()))
            };
            strays.is_empty() && !maps.owners.values().any(left)
        });
        strays.append(&mut given_up);
        if !strays.is_empty() {
            self.strays(|all| all.append(&mut strays));
            self.strayed.notify_one();
        }
        all
    }

    fn strays<T>(&self, f: impl FnOnce(&mut BTreeSet<Key>) -> T) -> T {
        f(&mut self.strays.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Owners who may have more at the home than they know of, each once.
    pub fn take_strays(&self) -> BTreeSet<Key> {
        self.strays(std::mem::take)
    }

    /// Forgets an owner of whom nothing is known and whom nobody works for.
    pub fn forget(&self, key: Key, owner: Arc<Owner>) {
        self.map(|maps| {
            let idle = owner.state(|s| s.held_in.is_none() && s.abandoned == 0);
            drop(owner);
            // Clones are made under this lock alone.
            if idle && maps.owners.get(&key).is_some_and(|owner| Arc::strong_count(owner) == 1) {
                maps.owners.remove(&key);
            }
        });
    }

    /// A handle goes: the owners who took locks through it alone.
    pub fn release(&self, handle: HandleId) -> Vec<Key> {
        self.map(|maps| {
            let keys = maps.by_handle.remove(&handle).unwrap_or_default();
            let without = |owner: &Arc<Owner>| {
                owner.state(|state| {
                    state.handles.remove(&handle);
                    state.handles.is_empty()
                })
            };
            keys.into_iter().filter(|key| maps.owners.get(key).is_some_and(without)).collect()
        })
    }

    /// Whether locks are taken through no handle at all.
    pub fn is_unused(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 0
    }

    /// In which tenure the locks were taken that belong to a handle; none without any. An error if that is over.
    pub fn guard(&self, handle: HandleId, inode: u64, tenure: Tenure) -> Result<Option<Tenure>, FsError> {
        self.map(|maps| {
            let Some(keys) = maps.by_handle.get(&handle) else { return Ok(None) };
            let lost = keys.iter().filter_map(|key| maps.owners.get(key)).any(|owner| is_lost(owner, tenure));
            if lost { Err(FsError::LockLost(inode)) } else { Ok(Some(tenure)) }
        })
    }
}

/// Whether what the owner may hold is lost to it in that tenure. It may hold it in a later one by now.
pub(crate) fn is_lost(owner: &Owner, tenure: Tenure) -> bool {
    let over = |held: Tenure| held.life != tenure.life || held.home < tenure.home;
    owner.state(|state| state.lost || state.held_in.is_some_and(over))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next home took a lock from a request whose answer was lost, and its owner has given it up when the session asks again.
    #[test]
    fn what_an_unanswered_request_named_is_looked_after() {
        let tenure = |home| Tenure { life: (1, 1), home };
        let level = Level { exclusive: true, pid: 3 };
        let locks = Locks::default();
        let keys = [7, 8].map(|inode| (inode, LockKind::Range, 1));
        for key in keys {
            let owner = locks.owner(key);
            locks.note(key, &owner, 1, tenure(1));
            owner.take((0, 9), level, tenure(1)).unwrap();
        }
        assert_eq!(locks.reclaim(tenure(1)).locks.len(), 2);
        locks.clear(keys[0], &locks.owner(keys[0]));
        let again = locks.reclaim(tenure(1));
        assert_eq!(again.locks.len(), 1);
        assert!(locks.reclaimed(&again, &[], tenure(2)), "nobody has lost anything");
        assert_eq!(locks.take_strays(), BTreeSet::from([keys[0]]));
        assert!(!is_lost(&locks.owner(keys[1]), tenure(2)));
        // Once.
        let later = locks.reclaim(tenure(2));
        locks.reclaimed(&later, &[], tenure(3));
        assert_eq!(locks.take_strays(), BTreeSet::new());
    }

    /// The home's answer may be taken in only after the next home has given the session what was held before the request.
    #[test]
    fn what_an_earlier_home_gave_isnt_held_at_the_next_one() {
        let tenure = |home| Tenure { life: (1, 1), home };
        let (owner, level) = (Owner::default(), Level { exclusive: true, pid: 3 });
        owner.state(|state| state.held_in = Some(tenure(1)));
        assert_eq!(owner.take((0, 9), level, tenure(1)), Some(Held::default()));
        let held = owner.state(|state| state.held.clone());
        assert!(!held.is_empty());
        assert_eq!(owner.take((20, 29), level, tenure(1)), Some(held));
        let both = owner.state(|state| {
            state.held_in = Some(tenure(2));
            state.held.clone()
        });
        assert_eq!(owner.take((40, 49), level, tenure(1)), None);
        assert_eq!(owner.state(|state| state.held.clone()), both);
    }
}
