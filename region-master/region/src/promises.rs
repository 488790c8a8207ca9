//! What a custodian has promised to sessions, and what has to be recalled before a fact may change (DESIGN section 6).
//!
//! ```text
//!   read:    run -> facts -> blockers? recall, wait, run again -> grant (unless it changed meanwhile) -> answer
//!   change:  run -> facts -> begin: nothing more is granted on them, recalls leave -> all answered -> commit -> end: grants of the new values
//! ```
//! Rules that everything rests on:
//! - **One numbering.** The grants and recalls of a session count one sequence, so that a recall that overtakes its grant cancels it. A grant is
//!   never given while a recall of the same fact is unanswered, and an answer that changed facts takes the session's own older grants on them
//!   back under its own number.
//! - **No grant of an old value.** A fact that is being changed isn't granted, nor one that changed after the read's version. The versions
//!   are kept in a table of fixed size, by the fact's hash: a collision denies a grant that would have been well, never the other way round.
//! - **A changer holds what it changes.** Between the commit and the moment at which its own session has digested the answer, that session may
//!   still show the old value to its host. A read by another session recalls it first (`unsettled`), so that nobody sees the new value before.
//! - **A directory that a session has alone** (exclusive) hides all of it: its attributes, its entries, their absence. Whoever's answer would rest
//!   on any of that - a refusal, too - recalls the directory first. An answer that was found while a session gave something exclusive back is
//!   found again: it may have been looked for before that session told what it had changed (`tick`, [`PromiseTable::given_back_since`]).
//! - **A list that changes as such** takes all of the directory with it: where another volume is joined, each name in it stands for something else, also
//!   those that stood for nothing.
//! - **The locks of an inode** are promised exclusively or not at all ([`Fact::Locks`]): then none is on record, and the session gives them by itself. Whoever
//!   changes them recalls that as any fact that it changes; whoever only tests them has them recorded first ([`PromiseTable::hidden`]).
//! - **What nobody has heard of** may yet be there: a session made it alone, and hasn't told. Before somebody hears that there is no such inode, everybody
//!   else who has a directory alone gives one back, and so tells everything ([`PromiseTable::untold`]).
//!
//! Sessions are of volumes, as their ids say, and each volume has a custodian of its own. A change of the master's own is that of the session without a number,
//! of its volume.
//!
//! No clock in here: a session that has gone is [`PromiseTable::drop_session`]'s, when its lease is over.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use mooseng_wire::fact::{Fact, Level};
use mooseng_wire::{InodeId, RequestNumber, SessionId, VolumeId};

use crate::together::Together;

mod alone;

/// Slots of the table of versions.
const VERSION_SLOTS: usize = 1 << 16;
/// Entries taken out of one session's promise on a directory, one by one, before the whole of it is recalled.
const CARVED_MAX: u32 = 16;

/// What a session is asked to give back, under a number of its sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recall {
    /// Who is asked.
    pub session: SessionId,
    /// Its number.
    pub number: u64,
    /// About what.
    pub fact: Fact,
    /// What the session may keep, after it has sent what it buffered.
    pub keep: Option<Level>,
}

/// A change between its first run and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeId(u64);

/// Bounds of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Facts that one session is promised at most.
    pub facts_per_session_max: usize,
    /// Facts that are promised at most, to all sessions.
    pub facts_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { facts_per_session_max: 1 << 20, facts_max: 4 << 20 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Hold {
    session: SessionId,
    level: Level,
    /// This session's own change of that number may not have been digested yet.
    unsettled: Option<RequestNumber>,
    /// The unanswered recall, and what it lets the session keep.
    recall: Option<(u64, Option<Level>)>,
    carved: u32,
}

#[derive(Debug, Default)]
struct Held {
    holds: Vec<Hold>,
    changing: u32,
}

#[derive(Debug, Default)]
struct Session {
    last: u64,
    held: BTreeSet<Fact>,
    recalls: BTreeMap<u64, Fact>,
    unsettled: BTreeMap<RequestNumber, Vec<Fact>>,
    /// Changes numbered below this have been digested.
    settled_below: RequestNumber,
    /// Where the next search for facts to take back starts.
    cursor: Option<Fact>,
}

#[derive(Debug)]
struct Change {
    session: SessionId,
    facts: BTreeSet<Fact>,
    /// The directories of which everything changes.
    whole: BTreeSet<InodeId>,
    own: Vec<Fact>,
    waits: BTreeSet<(SessionId, u64)>,
}

/// The directory of which a fact is the list.
fn list_of(fact: &Fact) -> Option<InodeId> {
    match fact {
        Fact::Directory(directory) => Some(*directory),
        Fact::Inode(_) | Fact::Entry(..) | Fact::Locks(_) => None,
    }
}

/// The custodian's promises.
#[derive(Debug)]
pub struct PromiseTable {
    limits: Limits,
    facts: BTreeMap<Fact, Held>,
    sessions: BTreeMap<SessionId, Session>,
    /// The highest number of sessions that have gone: the next life of one goes on behind it, so that an answer to a late recall of the last one answers none of its own.
    gone_last: u64,
    changes: BTreeMap<ChangeId, Change>,
    last_change: u64,
    /// The directories of which everything is being changed, and by how many changes.
    whole: BTreeMap<InodeId, u32>,
    versions: Vec<u64>,
    /// How many entries of a directory a session is promised one by one, where there are any.
    entries: BTreeMap<(InodeId, SessionId), u64>,
    /// The directories that sessions have alone.
    alone: BTreeMap<SessionId, BTreeSet<InodeId>>,
    /// The files that they hold with those.
    together: Together,
    /// Counts what was exclusive and was given back. Raised in here alone; who reads it elsewhere reads at most the present count.
    tick: Arc<AtomicU64>,
    /// When something of such a hash was given back last.
    given_back: Vec<u64>,
}

impl PromiseTable {
    /// No promises.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            facts: BTreeMap::new(),
            sessions: BTreeMap::new(),
            gone_last: 0,
            changes: BTreeMap::new(),
            last_change: 0,
            whole: BTreeMap::new(),
            versions: vec![0; VERSION_SLOTS],
            entries: BTreeMap::new(),
            alone: BTreeMap::new(),
            together: Together::default(),
            tick: Arc::default(),
            given_back: vec![0; VERSION_SLOTS],
        }
    }

    /// Forgets everything of a volume: promises end with their custodian. When facts changed, or were given back, stays known: of an earlier time, that
    /// denies nothing that is true.
    pub fn forget(&mut self, volume: VolumeId) {
        self.sessions_of(volume).into_iter().for_each(|id| self.drop_session(id));
        let of_it = self.changes.iter().filter(|(_, change)| change.session.volume() == volume);
        let changes: Vec<ChangeId> = of_it.map(|(id, _)| *id).collect();
        for change in changes {
            self.end(change, None);
        }
    }

    /// The sessions of a volume that may be promised something.
    pub fn sessions_of(&self, volume: VolumeId) -> Vec<SessionId> {
        self.sessions.range(SessionId::all_of(volume)).map(|(id, _)| *id).collect()
    }

    /// A session may be promised something from now on. One that was known keeps what it has.
    pub fn add_session(&mut self, session: SessionId) {
        let last = self.gone_last;
        self.sessions.entry(session).or_insert_with(|| Session { last, ..Session::default() });
    }

    /// A session is gone, with its lease or by its own word: nobody waits for it.
    pub fn drop_session(&mut self, session: SessionId) {
        let Some(gone) = self.sessions.remove(&session) else { return };
        self.gone_last = self.gone_last.max(gone.last);
        for fact in &gone.held {
            self.unhold(fact, session);
        }
        for change in self.changes.values_mut() {
            change.waits.retain(|(waited, _)| *waited != session);
        }
    }

    /// A session that comes back to a new custodian still holds an inode exclusively: it buffers changes of it.
    /// Must come before anything is answered to anybody else.
    pub fn reclaim(&mut self, session: SessionId, inode: InodeId) -> bool {
        self.reclaim_fact(session, &Fact::Inode(inode))
    }

    /// The same of an inode of which a session has given locks by itself that aren't on record.
    pub fn reclaim_locks(&mut self, session: SessionId, inode: InodeId) -> bool {
        self.reclaim_fact(session, &Fact::Locks(inode))
    }

    fn reclaim_fact(&mut self, session: SessionId, fact: &Fact) -> bool {
        let foreign =
            self.facts.get(fact).is_some_and(|held| held.holds.iter().any(|h| h.session != session));
        if foreign || !self.sessions.contains_key(&session) {
            return false;
        }
        self.hold(fact, session, Level::Exclusive);
        true
    }

    /// Counts what was given back of what was exclusive: whoever begins to look for an answer takes note of it.
    pub fn tick(&self) -> u64 {
        self.tick.load(Ordering::Acquire)
    }

    /// The count itself, to be read without whatever guards this table.
    pub fn ticks(&self) -> Arc<AtomicU64> {
        self.tick.clone()
    }

    /// Whether any of these facts may have been given back, by a session that had it exclusively, since that tick.
    pub fn given_back_since(&self, tick: u64, looked: &BTreeSet<Fact>) -> bool {
        looked.iter().any(|fact| {
            let of = |fact: &Fact| self.given_back[Self::slot(fact)] > tick;
            of(fact) || fact.directory().is_some_and(|directory| of(&Fact::Directory(directory)))
        })
    }

    fn hold(&mut self, fact: &Fact, session: SessionId, level: Level) {
        let held = self.facts.entry(fact.clone()).or_default();
        let new = !held.holds.iter().any(|h| h.session == session);
        match held.holds.iter_mut().find(|h| h.session == session) {
            Some(hold) => *hold = Hold { level, unsettled: hold.unsettled, recall: None, carved: 0, ..*hold },
            None => held.holds.push(Hold { session, level, unsettled: None, recall: None, carved: 0 }),
        }
        if let Some(s) = self.sessions.get_mut(&session) {
            s.held.insert(fact.clone());
        }
        if let (true, Fact::Entry(directory, _)) = (new, fact) {
            *self.entries.entry((*directory, session)).or_default() += 1;
        }
        self.note_alone(fact, session);
    }

    fn unhold(&mut self, fact: &Fact, session: SessionId) {
        if let Some(held) = self.facts.get_mut(fact) {
            let before = held.holds.len();
            held.holds.retain(|h| h.session != session);
            if let Fact::Entry(directory, _) = fact
                && held.holds.len() < before
                && let Some(count) = self.entries.get_mut(&(*directory, session))
            {
                *count -= 1;
                if *count == 0 {
                    self.entries.remove(&(*directory, session));
                }
            }
            if held.holds.is_empty() && held.changing == 0 {
                self.facts.remove(fact);
            }
        }
        if let Some(s) = self.sessions.get_mut(&session) {
            s.held.remove(fact);
        }
        self.note_alone(fact, session);
    }

    fn slot(fact: &Fact) -> usize {
        // The same in every process: which grants are denied by a collision must follow from the run, not from a seed.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(fact);
        (hash % VERSION_SLOTS as u64) as usize
    }

    /// Which recalls must be answered before a read of these facts by `session` may be answered. With `exclusive`, the facts are wanted at
    /// that level, so that others must give them up. Empty when there is nothing to wait for. A recall that is under way is
    /// answered again, for whoever waits.
    pub fn read_blockers(
        &mut self,
        session: SessionId,
        facts: &BTreeSet<Fact>,
        exclusive: bool,
    ) -> Vec<Recall> {
        let mut recalls = Vec::new();
        // A list shows its entries, too.
        let lists: BTreeSet<Fact> = facts.iter().filter_map(Fact::directory).map(Fact::Directory).collect();
        for fact in lists.difference(facts) {
            let unsettled: Vec<SessionId> = self
                .facts
                .get(fact)
                .into_iter()
                .flat_map(|held| held.holds.iter())
                .filter(|h| h.session != session && h.unsettled.is_some())
                .map(|h| h.session)
                .collect();
            recalls.extend(unsettled.into_iter().filter_map(|from| self.recall(fact, from, fact, None)));
            if let Some(directory) = list_of(fact)
                && let Some(from) = self.alone_elsewhere(session, directory)
            {
                recalls.extend(self.recall(fact, from, fact, Some(Level::Shared)));
            }
        }
        // And a list that is read tells of its entries.
        let told: BTreeSet<(Fact, SessionId)> = self
            .sessions
            .range(SessionId::all_of(session.volume()))
            .filter(|(id, _)| **id != session)
            .flat_map(|(id, s)| s.unsettled.values().flatten().map(|fact| (fact.clone(), *id)))
            .filter(|(fact, _)| {
                fact.directory().is_some_and(|directory| facts.contains(&Fact::Directory(directory)))
            })
            .collect();
        for (fact, from) in told {
            let unsettled = self
                .facts
                .get(&fact)
                .is_some_and(|held| held.holds.iter().any(|h| h.session == from && h.unsettled.is_some()));
            if unsettled {
                recalls.extend(self.recall(&fact, from, &fact, None));
            }
        }
        for fact in facts {
            let others: Vec<(SessionId, Option<Level>)> = self
                .facts
                .get(fact)
                .into_iter()
                .flat_map(|held| held.holds.iter())
                .filter(|h| h.session != session)
                .filter_map(|h| match (exclusive, h.unsettled, h.level) {
                    (true, _, _) | (_, Some(_), _) => Some((h.session, None)),
                    (false, None, Level::Exclusive) => Some((h.session, Some(Level::Shared))),
                    (false, None, Level::Shared) => None,
                })
                .collect();
            recalls.extend(others.into_iter().filter_map(|(from, keep)| self.recall(fact, from, fact, keep)));
        }
        self.along(recalls)
    }

    /// Asks a session for what it holds on `fact`; `named` is what the recall says (an entry, where a directory is carved).
    fn recall(&mut self, fact: &Fact, from: SessionId, named: &Fact, keep: Option<Level>) -> Option<Recall> {
        let hold = self.facts.get_mut(fact)?.holds.iter_mut().find(|h| h.session == from)?;
        let session = self.sessions.get_mut(&from)?;
        if fact == named
            && let Some((number, kept)) = hold.recall
            // One that lets the session keep more than is needed now doesn't do.
            && kept <= keep
        {
            return Some(Recall { session: from, number, fact: fact.clone(), keep: kept });
        }
        session.last += 1;
        let number = session.last;
        session.recalls.insert(number, named.clone());
        if fact == named {
            hold.recall = Some((number, keep));
        }
        Some(Recall { session: from, number, fact: named.clone(), keep })
    }

    /// A change of `session` with that number touches these facts: nothing is granted on them from now on until [`Self::end`], and what
    /// others hold on them is recalled. The change commits once [`Self::is_ready`].
    pub fn begin(
        &mut self,
        session: SessionId,
        number: RequestNumber,
        facts: BTreeSet<Fact>,
    ) -> (ChangeId, Vec<Recall>) {
        self.last_change += 1;
        let id = ChangeId(self.last_change);
        let mut recalls = Vec::new();
        let whole: BTreeSet<InodeId> = facts.iter().filter_map(list_of).collect();
        let mut facts = facts;
        for directory in &whole {
            *self.whole.entry(*directory).or_default() += 1;
            let of = |fact: &&Fact| fact.directory() == Some(*directory);
            let first = Fact::Entry(*directory, Default::default());
            facts.extend(self.facts.range(first..).map(|(fact, _)| fact).take_while(of).cloned());
        }
        // A session tells of hundreds of changes at once.
        let mut own = BTreeSet::new();
        let mut by_directory: BTreeMap<Fact, Vec<&Fact>> = BTreeMap::new();
        for fact in &facts {
            if let Some(directory) = fact.directory() {
                by_directory.entry(Fact::Directory(directory)).or_default().push(fact);
            }
        }
        let directories: BTreeSet<Fact> =
            facts.iter().filter_map(Fact::directory).map(Fact::Directory).collect();
        for fact in facts.iter().chain(directories.difference(&facts)) {
            self.facts.entry(fact.clone()).or_default().changing += 1;
        }
        for fact in &facts {
            recalls.extend(self.recall_from_others(session, fact));
            if self.mark_unsettled(session, number, fact) {
                own.insert(fact.clone());
            }
        }
        for directory in &directories {
            // Its own listing: the session's client keeps it up to date, but its host's kernel may show the old one until then.
            self.mark_unsettled(session, number, directory);
            let listed = self.level(session, directory).is_some();
            for fact in by_directory.get(directory).into_iter().flatten() {
                let carved = self.carve(session, directory, fact);
                recalls.extend(carved);
                if listed {
                    own.insert((*fact).clone());
                }
            }
        }
        let waits = recalls.iter().map(|r| (r.session, r.number)).collect();
        let own = own.into_iter().collect();
        let facts = facts.into_iter().chain(directories).collect();
        self.changes.insert(id, Change { session, facts, whole, own, waits });
        (id, self.along(recalls))
    }

    fn recall_from_others(&mut self, session: SessionId, fact: &Fact) -> Vec<Recall> {
        let others: Vec<SessionId> = self
            .facts
            .get(fact)
            .into_iter()
            .flat_map(|held| held.holds.iter())
            .map(|h| h.session)
            .filter(|s| *s != session)
            .collect();
        others.into_iter().filter_map(|from| self.recall(fact, from, fact, None)).collect()
    }

    fn mark_unsettled(&mut self, session: SessionId, number: RequestNumber, fact: &Fact) -> bool {
        let Some(hold) =
            self.facts.get_mut(fact).and_then(|held| held.holds.iter_mut().find(|h| h.session == session))
        else {
            return false;
        };
        if let Some(s) = self.sessions.get_mut(&session)
            && number >= s.settled_below
        {
            hold.unsettled = hold.unsettled.max(Some(number));
            s.unsettled.entry(number).or_default().push(fact.clone());
        }
        true
    }

    /// Takes one entry out of others' promises on its directory.
    fn carve(&mut self, session: SessionId, directory: &Fact, entry: &Fact) -> Vec<Recall> {
        let others: Vec<(SessionId, bool)> = self
            .facts
            .get_mut(directory)
            .into_iter()
            .flat_map(|held| held.holds.iter_mut())
            .filter(|h| h.session != session)
            .map(|h| {
                h.carved += 1;
                // What a session has alone, it has whole.
                let whole = h.carved > CARVED_MAX || h.recall.is_some() || h.level == Level::Exclusive;
                (h.session, whole)
            })
            .collect();
        others
            .into_iter()
            .filter_map(|(from, whole)| {
                self.recall(directory, from, if whole { directory } else { entry }, None)
            })
            .collect()
    }

    /// Whether all recalls of a change are answered.
    pub fn is_ready(&self, change: ChangeId) -> bool {
        self.changes.get(&change).is_none_or(|c| c.waits.is_empty())
    }

    /// Which of these facts a change that runs again touches beside those that it began with.
    pub fn uncovered(&self, change: ChangeId, facts: &BTreeSet<Fact>) -> BTreeSet<Fact> {
        match self.changes.get(&change) {
            Some(c) => facts.difference(&c.facts).cloned().collect(),
            None => facts.clone(),
        }
    }

    /// A change has ended: committed at `version`, or certainly not (`None`). Answers the number under which its session hears of it, and the
    /// facts that the session held and must look at anew. What it may keep is granted afterwards, under the same number.
    pub fn end(&mut self, change: ChangeId, version: Option<u64>) -> (u64, Vec<Fact>) {
        let Some(ended) = self.changes.remove(&change) else { return (0, Vec::new()) };
        for directory in &ended.whole {
            match self.whole.get_mut(directory) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.whole.remove(directory)),
            }
        }
        if let (Some(version), false) = (version, ended.whole.is_empty()) {
            // Names that nobody was promised have changed, too, and which ones isn't known. It is rare.
            self.versions.iter_mut().for_each(|slot| *slot = (*slot).max(version));
        }
        for fact in &ended.facts {
            if let Some(version) = version {
                let slot = &mut self.versions[Self::slot(fact)];
                *slot = (*slot).max(version);
            }
            if let Some(held) = self.facts.get_mut(fact) {
                held.changing = held.changing.saturating_sub(1);
                if held.changing == 0 && held.holds.is_empty() {
                    self.facts.remove(fact);
                }
            }
        }
        let Some(session) = self.sessions.get_mut(&ended.session) else { return (0, Vec::new()) };
        if version.is_none() || ended.own.is_empty() {
            return (session.last, Vec::new());
        }
        session.last += 1;
        let number = session.last;
        (number, ended.own)
    }

    /// How many changes are under way.
    pub fn changes(&self) -> usize {
        self.changes.len()
    }

    /// The session has digested the answers of all its changes below this number.
    pub fn settle(&mut self, session: SessionId, below: RequestNumber) {
        let Some(s) = self.sessions.get_mut(&session) else { return };
        if below <= s.settled_below {
            return;
        }
        s.settled_below = below;
        let later = s.unsettled.split_off(&below);
        let settled = std::mem::replace(&mut s.unsettled, later);
        for fact in settled.into_values().flatten() {
            if let Some(held) = self.facts.get_mut(&fact)
                && let Some(hold) = held.holds.iter_mut().find(|h| h.session == session)
                && hold.unsettled.is_some_and(|number| number < below)
            {
                hold.unsettled = None;
            }
        }
    }

    /// What a session's own change touched of what it was promised, as long as the change isn't settled.
    pub fn unsettled(&self, session: SessionId, number: RequestNumber) -> Vec<Fact> {
        self.sessions.get(&session).and_then(|s| s.unsettled.get(&number)).cloned().unwrap_or_default()
    }

    /// The number under which an answer to `session` carries grants; those of one answer share it.
    pub fn next_number(&mut self, session: SessionId) -> Option<u64> {
        let s = self.sessions.get_mut(&session)?;
        s.last += 1;
        Some(s.last)
    }

    /// Promises a fact that was true at `version`, unless it may have changed since or others hold more of it.
    pub fn grant(&mut self, session: SessionId, fact: &Fact, level: Level, version: u64) -> bool {
        let Some(s) = self.sessions.get(&session) else { return false };
        let known = s.held.contains(fact);
        if !known
            && (s.held.len() >= self.limits.facts_per_session_max
                || self.facts.len() >= self.limits.facts_max)
        {
            return false;
        }
        if self.versions[Self::slot(fact)] > version {
            return false;
        }
        let directory = match fact {
            Fact::Inode(inode) | Fact::Entry(inode, _) | Fact::Directory(inode) | Fact::Locks(inode) => {
                *inode
            }
        };
        if self.alone_elsewhere(session, directory).is_some() || self.whole.contains_key(&directory) {
            return false;
        }
        if let Some(held) = self.facts.get(fact) {
            if held.changing > 0 {
                return false;
            }
            for hold in &held.holds {
                let fits = if hold.session == session {
                    hold.recall.is_none()
                } else {
                    level == Level::Shared && hold.level == Level::Shared
                };
                if !fits {
                    return false;
                }
            }
        }
        let now = self.level(session, fact);
        self.hold(fact, session, now.map_or(level, |now| now.max(level)));
        true
    }

    /// What a session is promised of a fact.
    pub fn level(&self, session: SessionId, fact: &Fact) -> Option<Level> {
        self.facts.get(fact)?.holds.iter().find(|h| h.session == session).map(|h| h.level)
    }

    /// Whether somebody else is promised an inode exclusively.
    pub fn is_exclusive_elsewhere(&self, session: SessionId, inode: InodeId) -> bool {
        self.facts.get(&Fact::Inode(inode)).is_some_and(|held| {
            held.holds.iter().any(|h| h.session != session && h.level == Level::Exclusive)
        })
    }

    /// A session has answered a recall: what it held is gone, or lowered to what the recall let it keep. Answers whether
    /// somebody may have waited for it. An answer that comes twice does no harm.
    pub fn acknowledge(&mut self, session: SessionId, number: u64) -> bool {
        let Some(s) = self.sessions.get_mut(&session) else { return false };
        let Some(fact) = s.recalls.remove(&number) else { return false };
        let hold =
            self.facts.get_mut(&fact).and_then(|held| held.holds.iter_mut().find(|h| h.session == session));
        if let Some(hold) = hold
            && let Some((recalled, keep)) = hold.recall
            && recalled == number
        {
            if hold.level == Level::Exclusive {
                let tick = self.tick.fetch_add(1, Ordering::AcqRel) + 1;
                self.given_back[Self::slot(&fact)] = tick;
            }
            match keep {
                Some(level) => {
                    // A change of its own that the session hasn't digested stays unsettled: this is no answer to that.
                    hold.level = level;
                    hold.recall = None;
                }
                None => self.unhold(&fact, session),
            }
            self.note_alone(&fact, session);
        }
        for change in self.changes.values_mut() {
            change.waits.remove(&(session, number));
        }
        true
    }

    /// Whether these recalls are all answered.
    pub fn answered(&self, recalls: &[Recall]) -> bool {
        recalls
            .iter()
            .all(|r| !self.sessions.get(&r.session).is_some_and(|s| s.recalls.contains_key(&r.number)))
    }

    /// A session's unanswered recalls, to be sent again: the connection they left on may have broken.
    pub fn unanswered(&self, session: SessionId) -> Vec<Recall> {
        let Some(s) = self.sessions.get(&session) else { return Vec::new() };
        s.recalls
            .iter()
            .map(|(number, fact)| {
                let keep = self
                    .facts
                    .get(fact)
                    .and_then(|held| held.holds.iter().find(|h| h.session == session))
                    .and_then(|h| h.recall)
                    .and_then(|(recalled, keep)| if recalled == *number { keep } else { None });
                Recall { session, number: *number, fact: fact.clone(), keep }
            })
            .collect()
    }

    /// Sessions that owe answers to recalls.
    pub fn debtors(&self) -> Vec<SessionId> {
        self.sessions.iter().filter(|(_, s)| !s.recalls.is_empty()).map(|(id, _)| *id).collect()
    }

    /// Recalls up to `most` facts of each session that is promised nearly all that it may be, so that there is room for new ones.
    pub fn make_room(&mut self, most: usize) -> Vec<Recall> {
        let full = self.limits.facts_per_session_max / 8 * 7;
        let crowded = self.facts.len() >= self.limits.facts_max / 8 * 7;
        let sessions: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.recalls.len() < most && (crowded || s.held.len() >= full.max(1)))
            .map(|(id, _)| *id)
            .collect();
        let mut recalls = Vec::new();
        for id in sessions {
            let Some(s) = self.sessions.get_mut(&id) else { continue };
            let start = s.cursor.take();
            let chosen: Vec<Fact> = match &start {
                Some(cursor) => s.held.range(cursor.clone()..).take(most).cloned().collect(),
                None => s.held.iter().take(most).cloned().collect(),
            };
            s.cursor = if chosen.len() == most { chosen.last().cloned() } else { None };
            recalls.extend(chosen.into_iter().filter_map(|fact| self.recall(&fact, id, &fact, None)));
        }
        recalls
    }

    /// Facts that are promised or being changed.
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    /// Whether nothing is promised.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }
}
