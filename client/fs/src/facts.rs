//! What the region has promised to keep true, and what is kept of it here (DESIGN section 6).
//!
//! ```text
//!   begin -> Flight -> answer -> digest: facts that this session changed are forgotten, granted ones are kept
//!   recall -> forgotten (or lowered), remembered as long as an answer that it overtook may still come
//!   renounce -> everything is forgotten: another custodian, another life of the session
//! ```
//! A value is shown only while its promise stands and the session's lease does: both are looked at in one section, at the time of the answer.
//! Grants and recalls of a session are numbered by the custodian in one sequence; a grant that is older than the newest recall of its fact is void,
//! as is one that was asked for under an earlier custodian or an earlier life of the session.
//!
//! How an answer is taken in is in `digest`; what is changed without one, because this session has it alone, in `alone`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use moka::sync::Cache;
use mooseng_ports::clock::{BootTime, Clock};
use mooseng_wire::fact::Fact;
pub(crate) use mooseng_wire::fact::Level;
use mooseng_wire::fs::{Attr, DirEntry};

mod alone;
mod digest;
mod extents;
mod listing;

pub(crate) use alone::Alone;
pub(crate) use digest::attrs_of;
use extents::Extents;
use listing::Listing;

/// Subtracted from what is left of the lease before somebody else counts it: he starts later than we did.
const MARGIN: Duration = Duration::from_millis(100);

/// Inodes whose locks are promised, that are remembered at once.
const LOCKS_MAX: usize = 1 << 16;

/// Where the holds of a replica's facts begin.
const HOLDS_OF_REPLICA: u64 = 1 << 62;

/// How long an answer may be kept by who asked (a kernel, say), if at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    /// The attributes.
    pub attr: Duration,
    /// The entry, or its absence.
    pub entry: Duration,
    /// That is known of the entry from its directory's list alone: it goes with the promise of the list ([`Invalidate::directory`]).
    pub listed: bool,
}

/// An inode of which something is promised.
#[derive(Clone, Debug)]
pub(crate) struct InodeFact {
    pub attr: Attr,
    pub level: Level,
    pub target: Option<Bytes>,
    /// Parts of the file whose extents are known.
    pub extents: Arc<Mutex<Extents>>,
    /// Names the time since which it has been promised without a break, changes of this session's own included.
    pub hold: u64,
}

#[derive(Debug, Default)]
struct Memo {
    /// Grows when everything is renounced.
    life: u64,
    tick: u64,
    /// Requests under way, by the tick at which they began.
    flights: BTreeMap<u64, usize>,
    /// The newest recall of facts, and when it came.
    recalled: BTreeMap<Fact, (u64, u64)>,
    /// How many of them were left when they were last looked through.
    recalled_kept: usize,
    /// The last hold.
    holds: u64,
    /// When this session changed something of an inode or a directory alone: answers that were under way then know less than what is here.
    changed_alone: BTreeMap<u64, u64>,
    /// Inodes that were made alone and aren't this session's alone any more.
    unconfirmed: Vec<u64>,
}

/// Inodes whose locks this session gives by itself.
#[derive(Debug, Default)]
struct OwnLocks {
    inodes: BTreeSet<u64>,
    /// Questions to a next home that are under way.
    asking: usize,
}

/// A next home is asked for what is held of locks: as long as this is there, none is this session's to give, whatever the home before has promised meanwhile.
pub(crate) struct AskingLocks(Arc<Facts>);

impl std::fmt::Debug for AskingLocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AskingLocks")
    }
}

impl Drop for AskingLocks {
    fn drop(&mut self) {
        self.0.locks(|locks| locks.asking -= 1);
    }
}

/// The promises of this client's session.
pub(crate) struct Facts {
    clock: Arc<dyn Clock>,
    memo: Mutex<Memo>,
    /// Nanoseconds of CLOCK_BOOTTIME; 0 without a lease.
    lease_until_ns: AtomicU64,
    inodes: Cache<u64, InodeFact>,
    entries: Cache<(u64, Bytes), Option<u64>>,
    listings: Cache<u64, Arc<Mutex<Listing>>>,
    locks: Mutex<OwnLocks>,
    /// Of a replica: those of the home, whose lease these don't outlast.
    home: Option<Arc<Facts>>,
}

/// A request under way.
pub(crate) struct Flight<'a> {
    facts: &'a Facts,
    tick: u64,
    life: u64,
    /// From when on what this session changed alone may be missing in its answer.
    since: u64,
    /// It may have been done when it was sent before.
    is_repeat: bool,
}

impl Flight<'_> {
    /// The same of a request that was sent before, or not: if it was, the answer may be the one that is on record, which says nothing of what came after it.
    pub fn repeated(mut self, is_repeat: bool) -> Self {
        self.is_repeat = is_repeat;
        self
    }

    /// When it began.
    pub fn tick(&self) -> u64 {
        self.tick
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.facts.memo(|memo| {
            if let Some(count) = memo.flights.get_mut(&self.tick) {
                *count -= 1;
                if *count == 0 {
                    memo.flights.remove(&self.tick);
                }
            }
            // A recall is remembered only for answers that were under way when it came. While one of them hangs many gather, so they are
            // looked through only when they have doubled.
            let oldest = memo.flights.first_key_value().map_or(u64::MAX, |(tick, _)| *tick);
            if oldest == u64::MAX {
                memo.changed_alone.clear();
                memo.recalled.clear();
            } else if memo.changed_alone.len() > 4096 {
                memo.changed_alone.retain(|_, came| *came >= oldest);
            } else if memo.recalled.len() > 2 * memo.recalled_kept.max(64) {
                memo.recalled.retain(|_, (_, came)| *came >= oldest);
                memo.recalled_kept = memo.recalled.len();
            }
        });
    }
}

impl Facts {
    pub fn new(clock: Arc<dyn Clock>, bytes_max: usize) -> Self {
        let share = (bytes_max as u64 / 4).max(1 << 16);
        let inodes = Cache::builder()
            .max_capacity(share * 2)
            .weigher(|_, fact: &InodeFact| {
                let extents = fact.extents.lock().unwrap_or_else(PoisonError::into_inner).bytes();
                400 + u32::try_from(extents).unwrap_or(u32::MAX)
            })
            .build();
        let entries = Cache::builder()
            .max_capacity(share)
            .weigher(|(_, name): &(u64, Bytes), _| 150 + u32::try_from(name.len()).unwrap_or(255))
            .build();
        let listings = Cache::builder()
            .max_capacity(share)
            .weigher(|_, listing: &Arc<Mutex<Listing>>| {
                let names = listing.lock().unwrap_or_else(PoisonError::into_inner).names.len();
                200 + u32::try_from(names * 250).unwrap_or(u32::MAX)
            })
            .build();
        Self {
            clock,
            memo: Mutex::default(),
            lease_until_ns: AtomicU64::new(0),
            inodes,
            entries,
            listings,
            locks: Mutex::default(),
            home: None,
        }
    }

    /// Those of a replica: their holds are told apart from the home's. They are shown only while the session's lease at the home stands, too: it ends
    /// before another region may take over, which may be the replica's, and then what its mounts are shown is no past state any more.
    pub fn of_replica(clock: Arc<dyn Clock>, bytes_max: usize, home: Arc<Self>) -> Self {
        let facts = Self { home: Some(home), ..Self::new(clock, bytes_max) };
        facts.memo(|memo| memo.holds = HOLDS_OF_REPLICA);
        facts
    }

    /// Whether the lease is over.
    pub fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    fn memo<T>(&self, f: impl FnOnce(&mut Memo) -> T) -> T {
        f(&mut self.memo.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The session's lease was renewed.
    pub fn lease(&self, until: BootTime) {
        let ns = u64::try_from(until.0.as_nanos()).unwrap_or(u64::MAX);
        self.lease_until_ns.store(ns, Ordering::Release);
    }

    /// What is left of the lease for others to count on.
    fn left(&self) -> Duration {
        let until = BootTime(Duration::from_nanos(self.lease_until_ns.load(Ordering::Acquire)));
        let now = self.clock.boot().after(MARGIN);
        let left = if until > now { until.since(now) } else { Duration::ZERO };
        self.home.as_ref().map_or(left, |home| home.left().min(left))
    }

    /// A request leaves, or is about to.
    pub fn begin(&self) -> Flight<'_> {
        self.memo(|memo| {
            memo.tick += 1;
            let tick = memo.tick;
            *memo.flights.entry(tick).or_default() += 1;
            Flight { facts: self, tick, life: memo.life, since: tick, is_repeat: false }
        })
    }

    /// A request leaves that was about to since `since`, which is kept until its answer is taken in: behind what was untold by then, and perhaps before
    /// what was changed alone while it waited for that, or to be sent.
    pub fn begin_behind(&self, since: Option<u64>) -> Flight<'_> {
        let mut flight = self.begin();
        flight.since = since.unwrap_or(flight.since);
        flight
    }

    /// Forgets everything, and what answers under way may bring.
    pub fn renounce(&self) {
        self.memo(|memo| {
            memo.life += 1;
            memo.recalled.clear();
            self.inodes.invalidate_all();
            self.entries.invalidate_all();
            self.listings.invalidate_all();
            self.forget_locks();
        });
    }

    fn locks<T>(&self, f: impl FnOnce(&mut OwnLocks) -> T) -> T {
        f(&mut self.locks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An inode's locks are the region's to give from now on, until they are promised anew.
    pub fn leave_locks(&self, inode: u64) {
        self.locks(|locks| locks.inodes.remove(&inode));
    }

    /// No inode's locks are this session's to give any more.
    pub fn forget_locks(&self) {
        self.locks(|locks| locks.inodes.clear());
    }

    /// The same, and none are promised anew as long as what this answers is there: the answer of the home before may come while the next one is asked, which wouldn't
    /// know of what is given by that.
    pub fn ask_locks(self: &Arc<Self>) -> AskingLocks {
        self.locks(|locks| {
            locks.inodes.clear();
            locks.asking += 1;
        });
        AskingLocks(self.clone())
    }

    /// Whether an inode's locks are this session's to give, at this moment.
    pub fn has_locks(&self, inode: u64) -> bool {
        !self.left().is_zero() && self.locks(|locks| locks.inodes.contains(&inode))
    }

    /// A recall: true if the fact was known here.
    pub fn recall(&self, number: u64, fact: &Fact, keep: Option<Level>) {
        self.memo(|memo| {
            memo.tick += 1;
            let came = memo.tick;
            let newest = memo.recalled.entry(fact.clone()).or_insert((number, came));
            *newest = (newest.0.max(number), came);
            match (keep, fact) {
                (Some(_), Fact::Directory(directory)) => {
                    if let Some(listing) = self.listings.get(&directory.0) {
                        listing.lock().unwrap_or_else(PoisonError::into_inner).alone = false;
                    }
                }
                (Some(level), Fact::Inode(inode)) => {
                    if let Some(known) = self.inodes.get(&inode.0) {
                        self.inodes.insert(inode.0, InodeFact { level: known.level.min(level), ..known });
                    }
                }
                _ => self.forget(fact),
            }
        });
    }

    /// A list has grown in place: its weight isn't what it was when it was put in. The caller holds the memo since before it got the list: nobody has taken that
    /// back meanwhile.
    fn weigh_anew(&self, directory: u64, listing: Arc<Mutex<Listing>>) {
        self.listings.insert(directory, listing);
    }

    /// Whether the list of a directory is promised, entirely.
    pub fn is_listed(&self, directory: u64) -> bool {
        !self.left().is_zero()
            && self.listings.get(&directory).is_some_and(|listing| {
                let listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
                listing.complete && listing.holes.is_empty()
            })
    }

    /// The caller holds the memo.
    fn forget(&self, fact: &Fact) {
        match fact {
            Fact::Inode(inode) => self.inodes.invalidate(&inode.0),
            Fact::Entry(directory, name) => {
                self.entries.invalidate(&(directory.0, name.clone()));
                if let Some(listing) = self.listings.get(&directory.0) {
                    let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
                    listing.names.remove(name);
                    listing.holes.insert(name.clone());
                    listing.in_order = false;
                }
            }
            Fact::Directory(directory) => self.listings.invalidate(&directory.0),
            Fact::Locks(inode) => drop(self.locks(|locks| locks.inodes.remove(&inode.0))),
        }
    }

    /// What a name stands for, if that is promised.
    pub fn entry(&self, directory: u64, name: &Bytes) -> Option<(Option<u64>, Duration)> {
        self.entry_or_listed(directory, name).map(|(target, left, _)| (target, left))
    }

    /// The same, and whether it is promised as part of the directory's list alone.
    fn entry_or_listed(&self, directory: u64, name: &Bytes) -> Option<(Option<u64>, Duration, bool)> {
        let left = self.left();
        if left.is_zero() {
            return None;
        }
        if let Some(target) = self.entries.get(&(directory, name.clone())) {
            return Some((target, left, false));
        }
        let listing = self.listings.get(&directory)?;
        let listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        if !listing.complete || listing.holes.contains(name) {
            return None;
        }
        Some((listing.names.get(name).copied(), left, true))
    }

    /// The entries of a directory behind a cookie, in its order, if all of that is promised.
    pub fn listing(&self, directory: u64, cookie: u64, most: usize) -> Option<(Vec<DirEntry>, bool)> {
        if self.left().is_zero() {
            return None;
        }
        let listing = self.listings.get(&directory)?;
        let listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        if !listing.complete || !listing.in_order || !listing.holes.is_empty() {
            return None;
        }
        let from = listing.pages.partition_point(|entry| entry.cookie <= cookie);
        let entries: Vec<DirEntry> = listing.pages[from..].iter().take(most).cloned().collect();
        let end = from + entries.len() == listing.pages.len();
        Some((entries, end))
    }

    /// An inode, if it is promised, and for how long others may count on it.
    pub fn inode(&self, inode: u64) -> Option<(InodeFact, Duration)> {
        let left = self.left();
        if left.is_zero() {
            return None;
        }
        let fact = self.inodes.get(&inode)?;
        Some((fact, left))
    }

    /// What was kept of an inode by its hold may be older than a change of this session's own of which nobody has heard: it begins anew.
    pub fn renew_hold(&self, inode: u64) {
        self.memo(|memo| {
            if let Some(known) = self.inodes.get(&inode) {
                memo.holds += 1;
                self.inodes.insert(inode, InodeFact { hold: memo.holds, ..known });
            }
        });
    }

    /// The region has moved an inode's access time, unless it was set since it was last changed at that time: that isn't noted as a change, and nobody hears of it.
    pub fn touched(&self, inode: u64, changed_ns: i64, atime_ns: i64) {
        self.memo(|_| {
            if let Some(known) = self.inodes.get(&inode)
                && known.attr.ctime_ns == changed_ns
                && known.attr.atime_ns < atime_ns
            {
                let attr = Attr { atime_ns, ..known.attr };
                self.inodes.insert(inode, InodeFact { attr, ..known });
            }
        });
    }

    /// How long others may count on attributes that were just answered, and on the entry that led to them (`None`: to nothing).
    pub fn validity(&self, attr: Option<&Attr>, entry: Option<(u64, &Bytes)>) -> Validity {
        let left = self.left();
        if left.is_zero() {
            return Validity::default();
        }
        let mut validity = Validity::default();
        if let Some(attr) = attr
            && self.inodes.get(&attr.inode).is_some_and(|known| known.attr == *attr)
        {
            validity.attr = left;
        }
        if let Some((directory, name)) = entry
            && let Some((target, left, listed)) = self.entry_or_listed(directory, name)
            && target == attr.map(|attr| attr.inode)
        {
            (validity.entry, validity.listed) = (left, listed);
        }
        validity
    }
}

/// Who acts on recalls: buffers that must be sent first, and a kernel that was told something.
#[async_trait]
pub(crate) trait Recalled: Send + Sync + 'static {
    /// Whether something must be sent before the fact is given up: what is buffered, or may be written yet.
    fn has_buffered(&self, fact: &Fact) -> bool;
    /// Before the fact is forgotten here: sends what was written.
    async fn before(&self, fact: &Fact, keep: Option<Level>);
    /// After it: returns once nobody is shown it any more.
    async fn after(&self, fact: &Fact, keep: Option<Level>);
    /// Nothing is promised any more.
    async fn everything(&self);
}

/// Keeps a kernel, or whoever else was told something, from showing what isn't promised any more.
#[async_trait]
pub trait Invalidate: Send + Sync + 'static {
    /// Returns once the entry isn't shown any more.
    async fn entry(&self, directory: u64, name: &Bytes);
    /// Returns once the inode's attributes, its cached contents and, of a directory, its cached list aren't shown any more.
    async fn inode(&self, inode: u64);
    /// Whether an inode may have been written without that having come as a write, to a mapping: then [`Self::write_back`] may take a while.
    fn may_be_mapped(&self, _inode: u64) -> bool {
        false
    }
    /// Before an inode is given up, while it may still be written as before: returns once what was written to mappings of it has come as writes, and
    /// those were answered; or after a moment in which that couldn't be.
    async fn write_back(&self, _inode: u64) {}
    /// The same of a directory whose list isn't promised any more, and of every entry that was shown from it ([`Validity::listed`]).
    async fn directory(&self, directory: u64);
    /// Returns once nothing is shown any more that was promised before.
    async fn everything(&self);
    /// Returns once no entry is shown any more that was promised before.
    async fn entries(&self) {
        self.everything().await;
    }
}

#[cfg(test)]
mod tests;
