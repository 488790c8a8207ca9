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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use moka::sync::Cache;
use mooseng_ports::clock::{BootTime, Clock};
use mooseng_wire::InodeId;
use mooseng_wire::fact::Fact;
pub(crate) use mooseng_wire::fact::Level;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, DirEntry, ExtentMap, FileKind, FsRequest, Tell, Told};
use mooseng_wire::session::Response;

/// Entries of a directory that are kept as a complete list at most.
const LISTING_MAX: usize = 50_000;
/// Bytes that a known extent takes, about.
const EXTENT_BYTES: usize = 200;
/// Extents of one inode that are kept at most.
const EXTENTS_MAX: usize = 4_096;
/// Subtracted from what is left of the lease before somebody else counts it: he starts later than we did.
const MARGIN: Duration = Duration::from_millis(100);

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

/// Known extents: parts that don't overlap, by their start.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    parts: BTreeMap<u64, ExtentMap>,
    count: usize,
}

impl Extents {
    /// The map of the part that covers the beginning of [offset, offset + length).
    pub fn find(&self, offset: u64) -> Option<ExtentMap> {
        let (_, part) = self.parts.range(..=offset).next_back()?;
        (offset < part.covered).then(|| part.clone())
    }

    fn add(&mut self, offset: u64, map: &ExtentMap) {
        let end = if map.covered == 0 { return } else { map.covered };
        if end <= offset {
            return;
        }
        let more = map.extents.iter().map(weight).sum();
        self.count += more;
        if self.count > EXTENTS_MAX {
            self.parts.clear();
            self.count = more;
        }
        self.parts.insert(offset, ExtentMap { attr: None, ..map.clone() });
    }
}

/// As how many extents one counts: some hundred bytes each, and what it has inline.
fn weight(known: &mooseng_wire::fs::Extent) -> usize {
    match &known.data {
        Some(mooseng_wire::fs::extent::Data::Inline(bytes)) => 1 + bytes.len() / EXTENT_BYTES,
        _ => 1,
    }
}

/// A directory's entries, as far as they are known.
#[derive(Debug, Default)]
struct Listing {
    names: BTreeMap<Bytes, u64>,
    /// In the directory's order, as long as nothing was changed here.
    pages: Vec<DirEntry>,
    in_order: bool,
    /// The tick at which it was promised.
    since: u64,
    /// Where the next page must continue.
    next: u64,
    complete: bool,
    /// Names that were taken out of the promise.
    holes: BTreeSet<Bytes>,
    /// This session has the directory alone.
    alone: bool,
}

impl Listing {
    fn add(&mut self, entries: &[DirEntry], end: bool) {
        for entry in entries {
            if !self.holes.contains(&entry.name) {
                self.names.insert(entry.name.clone(), entry.inode);
            }
        }
        if self.in_order {
            self.pages.extend(entries.iter().map(|e| DirEntry { attr: None, ..e.clone() }));
        }
        self.next = entries.last().map_or(self.next, |entry| entry.cookie);
        self.complete = end;
    }
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

/// What is promised, for who changes it alone: nothing else changes while he looks and changes.
pub(crate) struct Alone<'a> {
    facts: &'a Facts,
    memo: &'a mut Memo,
}

impl Alone<'_> {
    /// The attributes of a directory that this session has alone, and knows entirely.
    pub fn directory(&self, directory: u64) -> Option<Attr> {
        let attr = self.inode(directory)?;
        let listing = self.facts.listings.get(&directory)?;
        let listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = listing.alone && listing.complete && listing.holes.is_empty();
        (whole && attr.kind() == FileKind::Directory).then_some(attr)
    }

    /// The attributes of an inode that nobody else knows.
    pub fn inode(&self, inode: u64) -> Option<Attr> {
        let known = self.facts.inodes.get(&inode)?;
        // Of a directory at which a volume is joined nothing is changed but by the region.
        let free = known.level == Level::Exclusive && known.attr.joined == 0;
        (free && !self.facts.left().is_zero()).then_some(known.attr)
    }

    /// Whether an inode may be something else than a directory, as far as is known.
    pub fn may_be_file(&self, inode: u64) -> bool {
        self.facts.inodes.get(&inode).is_none_or(|known| known.attr.kind() != FileKind::Directory)
    }

    /// What a name stands for in a directory that is had alone.
    pub fn named(&self, directory: u64, name: &Bytes) -> Option<u64> {
        let listing = self.facts.listings.get(&directory)?;
        let listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.names.get(name).copied()
    }

    /// How many names a directory has that is had alone.
    pub fn names(&self, directory: u64) -> usize {
        let names =
            |listing: Arc<Mutex<Listing>>| listing.lock().unwrap_or_else(PoisonError::into_inner).names.len();
        self.facts.listings.get(&directory).map_or(0, names)
    }

    fn mark(&mut self, inode: u64) {
        if !self.memo.flights.is_empty() {
            self.memo.tick += 1;
            self.memo.changed_alone.insert(inode, self.memo.tick);
        }
    }

    /// An inode is as this says now.
    pub fn set(&mut self, attr: Attr) {
        self.mark(attr.inode);
        if let Some(known) = self.facts.inodes.get(&attr.inode) {
            self.facts.inodes.insert(attr.inode, InodeFact { attr, ..known });
        }
    }

    /// A name stands for that inode from now on, or for nothing.
    pub fn name(&mut self, directory: u64, name: &Bytes, inode: Option<u64>) {
        self.mark(directory);
        self.facts.entries.invalidate(&(directory, name.clone()));
        let Some(listing) = self.facts.listings.get(&directory) else { return };
        let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        match inode {
            Some(inode) => drop(listing.names.insert(name.clone(), inode)),
            None => drop(listing.names.remove(name)),
        }
        listing.in_order = false;
    }

    /// This session has made an inode, of which nobody else knows.
    pub fn made(&mut self, attr: Attr, target: Option<Bytes>) {
        self.memo.holds += 1;
        let (level, extents, hold) = (Level::Exclusive, Arc::default(), self.memo.holds);
        self.facts.inodes.insert(attr.inode, InodeFact { attr, level, target, extents, hold });
        if attr.kind() == FileKind::Directory {
            let listing = Listing { in_order: true, complete: true, alone: true, ..Listing::default() };
            self.facts.listings.insert(attr.inode, Arc::new(Mutex::new(listing)));
        }
    }

    /// A directory is gone.
    pub fn gone(&mut self, directory: u64) {
        self.mark(directory);
        self.facts.listings.invalidate(&directory);
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
}

impl Flight<'_> {
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
                let extents = fact.extents.lock().unwrap_or_else(PoisonError::into_inner).count;
                400 + u32::try_from(extents * EXTENT_BYTES).unwrap_or(u32::MAX)
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
            Flight { facts: self, tick, life: memo.life, since: tick }
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
        });
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

    /// For a change that this session makes alone.
    pub fn alone<T>(&self, f: impl FnOnce(&mut Alone<'_>) -> T) -> T {
        self.memo(|memo| f(&mut Alone { facts: self, memo }))
    }

    /// Whether a directory is had alone.
    pub fn is_alone(&self, directory: u64) -> bool {
        self.alone(|alone| alone.directory(directory).is_some())
    }

    /// The region has an inode so. With `later`, this session has moved or removed it alone since. Answers whether something was shown otherwise.
    pub fn correct(&self, attr: &Attr, later: bool) -> bool {
        self.memo(|_| {
            let Some(known) = self.inodes.get(&attr.inode) else { return false };
            let right = match later {
                true => Attr {
                    nlink: known.attr.nlink,
                    ctime_ns: known.attr.ctime_ns.max(attr.ctime_ns),
                    ..*attr
                },
                false => *attr,
            };
            let differs = right != known.attr;
            if differs {
                self.inodes.insert(attr.inode, InodeFact { attr: right, ..known });
            }
            differs
        })
    }

    /// What goes beside the answer to what was told is known here already, and better. But what the region doesn't let this session keep to
    /// itself isn't known any more. The caller holds the memo.
    fn confirm(&self, memo: &mut Memo, tell: &Tell, told: &Told, response: &Response) {
        let granted: BTreeSet<Fact> = response
            .granted
            .iter()
            .filter(|granted| granted.exclusive)
            .filter_map(|granted| Fact::from_message(granted.fact.as_ref()?))
            .collect();
        for (change, reply) in tell.changes.iter().zip(&told.replies) {
            // Data that went along lies elsewhere than what is known of the file says.
            if let Some(Op::Write(write)) = change.request.as_ref().and_then(|request| request.op.as_ref())
                && let Some(known) = self.inodes.get(&write.inode)
            {
                self.inodes.insert(write.inode, InodeFact { extents: Arc::default(), ..known });
            }
            let is_made = change.inode != 0 && !matches!(reply.reply, Some(Reply::Errno(_)) | None);
            if !is_made {
                continue;
            }
            let (inode, list) = (Fact::Inode(InodeId(change.inode)), Fact::Directory(InodeId(change.inode)));
            if !granted.contains(&inode) {
                self.forget(&inode);
                self.forget(&list);
                memo.unconfirmed.push(change.inode);
            }
        }
    }

    /// The inodes of which nothing is known any more, since the region didn't let this session keep them.
    pub fn take_unconfirmed(&self) -> Vec<u64> {
        self.memo(|memo| std::mem::take(&mut memo.unconfirmed))
    }

    /// Files of a directory that is had alone which may be held with it, from that name on: others than this session may know them, as far as is known here.
    pub fn to_hold(&self, directory: u64, name: &Bytes, most: usize) -> Vec<u64> {
        let Some(listing) = self.listings.get(&directory) else { return Vec::new() };
        let listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        let from = listing.names.range(name.clone()..).chain(listing.names.range(..name.clone()));
        let may_be = |file: &u64| {
            self.inodes.get(file).is_none_or(|known| {
                known.level != Level::Exclusive && known.attr.kind() != FileKind::Directory
            })
        };
        from.map(|(_, file)| *file).filter(may_be).take(most).collect()
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
        }
    }

    /// Takes in what goes beside an answer. Nothing of the answer may be shown before.
    pub fn digest(&self, flight: &Flight<'_>, request: &FsRequest, response: &Response) {
        let further = match &request.op {
            Some(Op::ReadDir(r)) if r.cookie != 0 => Some(r),
            _ => None,
        };
        let tells = matches!(request.op, Some(Op::Tell(_)));
        self.doubt(flight, request, response);
        if response.granted.is_empty() && response.changed.is_empty() && further.is_none() && !tells {
            return;
        }
        if let Some(Op::Tell(tell)) = &request.op {
            return self.memo(|memo| {
                if flight.life == memo.life {
                    memo.tick += 1;
                    let came = memo.tick;
                    // What is under way of these was looked for before.
                    for fact in response.changed.iter().filter_map(Fact::from_message) {
                        let newest = memo.recalled.entry(fact).or_insert((response.grant, came));
                        *newest = (newest.0.max(response.grant), came);
                    }
                    if let Some(Reply::Told(told)) = response.reply.as_ref().and_then(|r| r.reply.as_ref()) {
                        self.confirm(memo, tell, told, response);
                    }
                }
            });
        }
        self.memo(|memo| {
            if flight.life != memo.life {
                return;
            }
            memo.tick += 1;
            let came = memo.tick;
            // What this session changed and is promised again in the same moment nobody else has changed between.
            let mut held = BTreeMap::new();
            for fact in response.changed.iter().filter_map(Fact::from_message) {
                if let Fact::Inode(inode) = &fact
                    && let Some(known) = self.inodes.get(&inode.0)
                {
                    held.insert(inode.0, known.hold);
                }
                let newest = memo.recalled.entry(fact.clone()).or_insert((response.grant, came));
                *newest = (newest.0.max(response.grant), came);
                self.forget(&fact);
            }
            let Some(reply) = response.reply.as_ref().and_then(|r| r.reply.as_ref()) else { return };
            let attrs = attrs_of(reply);
            for granted in &response.granted {
                let Some(fact) = granted.fact.as_ref().and_then(Fact::from_message) else { continue };
                if memo.recalled.get(&fact).is_some_and(|(number, _)| *number > response.grant) {
                    continue;
                }
                let (Fact::Inode(about) | Fact::Entry(about, _) | Fact::Directory(about)) = &fact;
                if memo.changed_alone.get(&about.0).is_some_and(|changed| *changed > flight.since) {
                    continue;
                }
                let level = if granted.exclusive { Level::Exclusive } else { Level::Shared };
                match &fact {
                    Fact::Inode(inode) => {
                        let attr = attrs.get(&inode.0).copied();
                        let mut fresh = || {
                            memo.holds += 1;
                            memo.holds
                        };
                        let hold = held.get(&inode.0).copied().unwrap_or_else(&mut fresh);
                        self.keep_inode(inode.0, level, request, reply, attr, hold);
                    }
                    Fact::Entry(directory, name) => self.keep_entry(directory.0, name, request, reply),
                    Fact::Directory(directory) => {
                        // Entries that were taken back while their list was on its way.
                        let overtaken = memo
                            .recalled
                            .range(Fact::Entry(*directory, Bytes::new())..)
                            .map_while(|(recalled, newest)| match recalled {
                                Fact::Entry(of, name) if of == directory => Some((name, newest.0)),
                                _ => None,
                            })
                            .filter(|(_, number)| *number > response.grant)
                            .map(|(name, _)| name.clone())
                            .collect();
                        if let Some(Op::HoldAlone(_)) = &request.op {
                            if let Some(listing) = self.listings.get(&directory.0) {
                                listing.lock().unwrap_or_else(PoisonError::into_inner).alone = true;
                            }
                            continue;
                        }
                        let alone = level == Level::Exclusive;
                        self.keep_listing(directory.0, request, reply, (came, alone), overtaken);
                    }
                }
            }
            if let (Some(r), Reply::DirPage(page)) = (further, reply)
                && memo.changed_alone.get(&r.inode).is_none_or(|changed| *changed < flight.since)
                && let Some(listing) = self.listings.get(&r.inode)
            {
                let mut known = listing.lock().unwrap_or_else(PoisonError::into_inner);
                // Read after the promise: what changed since then was taken out of it.
                if flight.tick > known.since && known.next == r.cookie && !known.complete {
                    known.add(&page.entries, page.end);
                    let (names, inode) = (known.names.len(), r.inode);
                    drop(known);
                    if names > LISTING_MAX {
                        self.listings.invalidate(&inode);
                    }
                }
            }
        });
    }

    /// An answer that says otherwise of a name than what is known comes of another change of this session, whose own answer isn't taken in yet: two
    /// answers may overtake each other. Whoever heard the one mustn't be shown what was before it.
    fn doubt(&self, flight: &Flight<'_>, request: &FsRequest, response: &Response) {
        let reply = response.reply.as_ref().and_then(|r| r.reply.as_ref());
        let Some((op, reply)) = request.op.as_ref().zip(reply) else { return };
        let Some((directory, name, is_there)) = tells_of_name(op, reply) else { return };
        if self.entry(directory, name).is_some_and(|(known, _)| known.is_some() != is_there) {
            self.memo(|memo| {
                if flight.life == memo.life {
                    self.forget(&Fact::Entry(InodeId(directory), name.clone()));
                }
            });
        }
    }

    fn keep_entry(&self, directory: u64, name: &Bytes, request: &FsRequest, reply: &Reply) {
        let Some(target) = request.op.as_ref().and_then(|op| entry_of(op, reply)) else { return };
        self.entries.insert((directory, name.clone()), target);
        if let Some(listing) = self.listings.get(&directory) {
            let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
            listing.holes.remove(name);
            let before = match target {
                Some(inode) => listing.names.insert(name.clone(), inode),
                None => listing.names.remove(name),
            };
            listing.in_order &= before == target;
        }
    }

    /// It `came` at this tick, without the `overtaken` names, and perhaps had alone.
    fn keep_listing(
        &self,
        directory: u64,
        request: &FsRequest,
        reply: &Reply,
        (came, alone): (u64, bool),
        overtaken: BTreeSet<Bytes>,
    ) {
        let mut listing =
            Listing { in_order: true, since: came, holes: overtaken, alone, ..Listing::default() };
        match (&request.op, reply) {
            (Some(Op::ReadDir(_)), Reply::DirPage(page)) => listing.add(&page.entries, page.end),
            (Some(Op::Mkdir(_)), Reply::Entry(_)) => listing.complete = true,
            _ => return,
        }
        self.listings.insert(directory, Arc::new(Mutex::new(listing)));
    }

    /// `fresh` names its hold if it wasn't promised before.
    fn keep_inode(
        &self,
        inode: u64,
        level: Level,
        request: &FsRequest,
        reply: &Reply,
        attr: Option<Attr>,
        fresh: u64,
    ) {
        let Some(op) = &request.op else { return };
        let known = self.inodes.get(&inode);
        let Some(attr) = attr.or_else(|| known.as_ref().map(|k| k.attr)) else { return };
        let hold = known.as_ref().map_or(fresh, |k| k.hold);
        let extents = known.as_ref().map(|k| k.extents.clone()).unwrap_or_default();
        let mut target = known.and_then(|k| k.target);
        match (op, reply) {
            (Op::ReadExtents(r), Reply::Extents(map)) => {
                extents.lock().unwrap_or_else(PoisonError::into_inner).add(r.offset, map);
            }
            (Op::ReadLink(_), Reply::Value(value)) => target = Some(value.value.clone()),
            _ => {}
        }
        self.inodes.insert(inode, InodeFact { attr, level, target, extents, hold });
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

/// The attributes that a reply has, by inode.
pub(crate) fn attrs_of(reply: &Reply) -> BTreeMap<u64, Attr> {
    let one = match reply {
        Reply::Entry(entry) => entry.attr.as_ref(),
        Reply::Created(created) => created.attr.as_ref(),
        Reply::Written(written) => written.attr.as_ref(),
        Reply::Ranged(ranged) => ranged.attr.as_ref(),
        Reply::Extents(map) => map.attr.as_ref(),
        Reply::DirPage(page) => {
            return page.entries.iter().filter_map(|e| e.attr.as_ref()).map(|a| (a.inode, *a)).collect();
        }
        _ => None,
    };
    one.map(|attr| (attr.inode, *attr)).into_iter().collect()
}

/// What a reply says about the entry that it is about.
#[allow(clippy::option_option, reason = "whether it says something, and whether there is an entry")]
fn entry_of(op: &Op, reply: &Reply) -> Option<Option<u64>> {
    match (op, reply) {
        (Op::Lookup(_), Reply::Errno(_)) => Some(None),
        (Op::Lookup(_) | Op::Mknod(_) | Op::Mkdir(_) | Op::Symlink(_) | Op::Link(_), Reply::Entry(entry)) => {
            entry.attr.as_ref().map(|attr| Some(attr.inode))
        }
        (Op::Create(_), Reply::Created(created)) => created.attr.as_ref().map(|attr| Some(attr.inode)),
        (Op::Unlink(_) | Op::Rmdir(_) | Op::Rename(_), Reply::Done(_)) => Some(None),
        _ => None,
    }
}

/// What the answer to a change tells of a name that it didn't change: whether there is something of that name.
fn tells_of_name<'a>(op: &'a Op, reply: &Reply) -> Option<(u64, &'a Bytes, bool)> {
    const EXISTS: u32 = libc::EEXIST as u32;
    const ABSENT: u32 = libc::ENOENT as u32;
    match (op, reply) {
        (Op::Create(r), Reply::Errno(EXISTS)) => Some((r.parent, &r.name, true)),
        (Op::Create(r), Reply::Created(found)) if !found.created => Some((r.parent, &r.name, true)),
        (Op::Mknod(r), Reply::Errno(EXISTS)) => Some((r.parent, &r.name, true)),
        (Op::Mkdir(r), Reply::Errno(EXISTS)) => Some((r.parent, &r.name, true)),
        (Op::Symlink(r), Reply::Errno(EXISTS)) => Some((r.parent, &r.name, true)),
        (Op::Link(r), Reply::Errno(EXISTS)) => Some((r.new_parent, &r.new_name, true)),
        (Op::Rename(r), Reply::Errno(EXISTS)) => Some((r.new_parent, &r.new_name, true)),
        (Op::Rename(r), Reply::Errno(ABSENT)) => Some((r.parent, &r.name, false)),
        (Op::Unlink(r), Reply::Errno(ABSENT)) => Some((r.parent, &r.name, false)),
        (Op::Rmdir(r), Reply::Errno(ABSENT)) => Some((r.parent, &r.name, false)),
        _ => None,
    }
}

/// Who acts on recalls: buffers that must be sent first, and a kernel that was told something.
#[async_trait]
pub(crate) trait Recalled: Send + Sync + 'static {
    /// Whether something buffered must be sent before the fact is given up.
    fn has_buffered(&self, fact: &Fact) -> bool;
    /// Before the fact is forgotten here: sends what is buffered.
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
#[allow(clippy::unwrap_used)]
mod tests {
    use mooseng_ports::clock::ManualClock;
    use mooseng_wire::fs::{Create, DirPage, Entry, FsReply, GetAttr, Lookup, ReadDir, SetAttr, Unlink};
    use mooseng_wire::session::Granted;

    use super::*;

    const INODE: u64 = 7;

    /// An answer that promises the inode, after this session has changed it or not.
    fn answer(facts: &Facts, number: u64, changed: bool) {
        let fact = Fact::Inode(InodeId(INODE)).to_message();
        let op = if changed {
            Op::SetAttr(SetAttr { inode: INODE, ..SetAttr::default() })
        } else {
            Op::GetAttr(GetAttr { inode: INODE })
        };
        let attr = Attr { inode: INODE, ctime_ns: number as i64, ..Attr::default() };
        let response = Response {
            log_epoch: 0,
            log_version: 0,
            reply: Some(FsReply { reply: Some(Reply::Entry(Entry { attr: Some(attr) })) }),
            grant: number,
            read_version: number,
            granted: vec![Granted { fact: Some(fact.clone()), exclusive: false }],
            changed: if changed { vec![fact] } else { vec![] },
        };
        let flight = facts.begin();
        facts.digest(&flight, &FsRequest { caller: None, op: Some(op) }, &response);
    }

    /// A list is taken back as a whole once enough was taken out of it, and no entry's own recall comes then.
    #[test]
    fn an_entry_that_only_the_list_tells_of_says_so() {
        let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
        facts.lease(BootTime(Duration::from_secs(1000)));
        let name = Bytes::from_static(b"a");
        let granted = |fact: Fact| vec![Granted { fact: Some(fact.to_message()), exclusive: false }];
        let answer = |op: Op, reply: Reply, number: u64, fact: Fact| {
            let response = Response {
                reply: Some(FsReply { reply: Some(reply) }),
                grant: number,
                granted: granted(fact),
                ..Response::default()
            };
            let flight = facts.begin();
            facts.digest(&flight, &FsRequest { caller: None, op: Some(op) }, &response);
        };
        let entry = DirEntry { name: name.clone(), inode: INODE, ..DirEntry::default() };
        let page = DirPage { entries: vec![entry], end: true };
        let list = ReadDir { inode: 2, ..ReadDir::default() };
        answer(Op::ReadDir(list), Reply::DirPage(page), 1, Fact::Directory(InodeId(2)));
        let attr = Attr { inode: INODE, ..Attr::default() };
        let validity = facts.validity(Some(&attr), Some((2, &name)));
        assert!(validity.listed && !validity.entry.is_zero(), "{validity:?}");
        let look = Lookup { parent: 2, name: name.clone() };
        let found = Reply::Entry(Entry { attr: Some(attr) });
        answer(Op::Lookup(look), found, 2, Fact::Entry(InodeId(2), name.clone()));
        let validity = facts.validity(Some(&attr), Some((2, &name)));
        assert!(!validity.listed && !validity.entry.is_zero(), "{validity:?}");
    }

    /// Found by the simulation: one task made a file, another heard EEXIST before that answer was taken in, and then was shown that there is none.
    #[test]
    fn who_heard_that_a_name_exists_is_not_shown_that_it_does_not() {
        let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
        facts.lease(BootTime(Duration::from_secs(1000)));
        let name = Bytes::from_static(b"a");
        let digest = |op: Op, reply: Reply, granted: Vec<Granted>| {
            let reply = Some(FsReply { reply: Some(reply) });
            let response = Response { reply, grant: 1, granted, ..Response::default() };
            let flight = facts.begin();
            facts.digest(&flight, &FsRequest { caller: None, op: Some(op) }, &response);
        };
        let absent = || {
            let fact = Some(Fact::Entry(InodeId(2), name.clone()).to_message());
            let look = Op::Lookup(Lookup { parent: 2, name: name.clone() });
            digest(look, Reply::Errno(libc::ENOENT as u32), vec![Granted { fact, exclusive: false }]);
            assert!(facts.entry(2, &name).is_some_and(|(known, _)| known.is_none()));
        };
        absent();
        let create = Create { parent: 2, name: name.clone(), exclusive: true, ..Create::default() };
        digest(Op::Create(create.clone()), Reply::Errno(libc::EACCES as u32), vec![]);
        assert!(facts.entry(2, &name).is_some(), "that says nothing of the name");
        digest(Op::Create(create), Reply::Errno(libc::EEXIST as u32), vec![]);
        assert!(facts.entry(2, &name).is_none());
        absent();
        let unlink = Op::Unlink(Unlink { parent: 2, name: name.clone() });
        digest(unlink, Reply::Errno(libc::ENOENT as u32), vec![]);
        assert!(facts.entry(2, &name).is_some(), "that is what is known");
    }

    /// Found by the simulation: a read had waited until everything was told, something was made alone before it left, and its answer, which lacked that, was
    /// kept as promised.
    #[test]
    fn what_is_made_alone_before_a_read_leaves_stays_known() {
        let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
        facts.lease(BootTime(Duration::from_secs(1000)));
        let attr = |ctime_ns| Attr { inode: INODE, ctime_ns, ..Attr::default() };
        facts.alone(|alone| alone.made(attr(1), None));
        let about_to = facts.begin();
        facts.alone(|alone| alone.set(attr(2)));
        let flight = facts.begin_behind(Some(about_to.tick()));
        let fact = Fact::Inode(InodeId(INODE)).to_message();
        let response = Response {
            reply: Some(FsReply { reply: Some(Reply::Entry(Entry { attr: Some(attr(1)) })) }),
            grant: 1,
            granted: vec![Granted { fact: Some(fact), exclusive: true }],
            ..Response::default()
        };
        let op = Some(Op::GetAttr(GetAttr { inode: INODE }));
        facts.digest(&flight, &FsRequest { caller: None, op }, &response);
        assert_eq!(facts.inode(INODE).map(|(known, _)| known.attr.ctime_ns), Some(2));
    }

    fn hold(facts: &Facts) -> Option<u64> {
        facts.inode(INODE).map(|(known, _)| known.hold)
    }

    /// What was read of a file under one hold is true under it, so it must end with each break of the promise, and with no other change.
    #[test]
    fn a_hold_outlives_changes_of_ones_own_and_nothing_else() {
        let facts = Facts::new(Arc::new(ManualClock::default()), 1 << 20);
        facts.lease(BootTime(Duration::from_secs(1000)));
        answer(&facts, 1, false);
        let first = hold(&facts).unwrap();
        answer(&facts, 2, false);
        answer(&facts, 3, true);
        assert_eq!(hold(&facts), Some(first));
        facts.recall(4, &Fact::Inode(InodeId(INODE)), None);
        assert_eq!(hold(&facts), None);
        answer(&facts, 5, true);
        let second = hold(&facts).unwrap();
        assert_ne!(second, first, "others may have changed it between");
        facts.recall(6, &Fact::Inode(InodeId(INODE)), Some(Level::Shared));
        assert_eq!(hold(&facts), Some(second), "a lower level is a promise still");
        facts.renounce();
        answer(&facts, 7, false);
        assert!(hold(&facts).is_some_and(|hold| hold != first && hold != second));
    }
}
