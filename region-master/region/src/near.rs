//! What a replica's leader has promised to readers of its region, and what it takes back as it takes the log in (DESIGN section 6).
//!
//! ```text
//!   read:   begin -> run -> promise (unless an entry has touched it since) -> answer, with the news that come before it
//!   entry:  coming: what it touches is taken back, under numbers -> commit -> applied
//! ```
//! A replica is a past state, so nobody has to agree before it moves on: what is taken back is taken back at once, and nothing waits for an answer.
//! Rules that everything rests on:
//! - **News come before answers.** What is taken back of a session is numbered, and kept until the session says that it has it. Every answer to the session
//!   carries what it hasn't, up to a number: so whatever an answer shows of an entry, the session has given up before what that entry made untrue.
//! - **Taken back before it can be seen.** An entry is announced before the transaction that replays it ([`NearTable::coming`]).
//! - **No grant of an old value.** A read that began before an entry was in sight grants nothing that the entry touched. When facts were touched is kept in
//!   a table of fixed size, by their hash: a collision denies a grant that would have been well, never the other way round.
//! - **The place goes along.** News name a place of the log: what is promised up to their number is true there.
//! - **Everything ends at once** where the replica goes back, or is led by another ([`NearTable::end`]): sessions aren't known any more.
//!
//! No clock in here: leases are told as times that [`NearTable::lapse`] compares.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mooseng_ports::clock::BootTime;
use mooseng_wire::InodeId;
use mooseng_wire::fact::Fact;

/// Slots of the table of touches.
const SLOTS: usize = 1 << 16;
/// Entries taken out of one session's promise on a directory, one by one, before the whole of it is taken back.
const CARVED_MAX: u32 = 16;

/// Names a session with a replica's leader. Drawn so that no two leaders give the same.
pub type NearId = u64;

/// What an entry of the log touches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Touch {
    /// An inode, or an entry and with it its directory's list.
    One(Fact),
    /// Any entries of a directory.
    Entries(InodeId),
}

/// Bounds of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at most.
    pub sessions_max: usize,
    /// Facts that one session is promised at most. Beyond it old ones are taken back.
    pub facts_per_session_max: usize,
    /// Promises at most, to all sessions.
    pub facts_max: usize,
    /// News that one session may leave untaken. Beyond it the session ends.
    pub news_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sessions_max: 4_096, facts_per_session_max: 1 << 18, facts_max: 2 << 20, news_max: 1 << 14 }
    }
}

/// What the tables of all volumes hold together: the bounds are those of all of them.
#[derive(Debug, Default)]
pub struct Totals {
    sessions: AtomicUsize,
    promises: AtomicUsize,
}

impl Totals {
    /// Sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Facts that are promised, counted for each session.
    pub fn promises(&self) -> usize {
        self.promises.load(Ordering::Relaxed)
    }
}

/// The tables hold as many sessions as they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} sessions of readers are open, as many as there may be")]
pub struct Full(pub usize);

/// When a read began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    life: u64,
    visible: u64,
}

/// What a session is to forget, and where it is then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News<P> {
    /// All numbers up to here are in here, or the session has them.
    pub upto: u64,
    /// In order of their numbers.
    pub recalls: Vec<(u64, Fact)>,
    /// What is promised still is true here.
    pub at: P,
}

#[derive(Debug)]
struct Session {
    identity: String,
    until: BootTime,
    last: u64,
    held: BTreeSet<Fact>,
    carved: BTreeMap<InodeId, u32>,
    recalls: VecDeque<(u64, Fact)>,
    /// Up to here they were sent without being asked for.
    sent: u64,
    /// Where the next search for facts to take back begins.
    cursor: Option<Fact>,
}

/// The promises of one volume's replica. `P` is a place of the log.
#[derive(Debug)]
pub struct NearTable<P> {
    limits: Limits,
    sessions: BTreeMap<NearId, Session>,
    holders: BTreeMap<Fact, BTreeSet<NearId>>,
    promises: usize,
    totals: Arc<Totals>,
    /// Counts the ends of everything.
    life: u64,
    /// Counts announcements of entries.
    announced: u64,
    /// All up to this one are seen by whoever begins to read.
    visible: u64,
    /// Where the newest of them leads to.
    at: P,
    touched: Vec<u64>,
}

fn slot(touch: &Touch) -> usize {
    // A fixed hash: simulation replays.
    (BuildHasherDefault::<DefaultHasher>::default().hash_one(touch) as usize) % SLOTS
}

impl<P: Copy + Ord + Default> NearTable<P> {
    /// No sessions. Within the limits together with those that have the same totals.
    pub fn new(limits: Limits, totals: Arc<Totals>) -> Self {
        Self {
            limits,
            sessions: BTreeMap::new(),
            holders: BTreeMap::new(),
            promises: 0,
            totals,
            life: 0,
            announced: 0,
            visible: 0,
            at: P::default(),
            touched: vec![0; SLOTS],
        }
    }

    /// Ends all sessions: the replica goes back, is copied anew, or is led anew.
    pub fn end(&mut self) {
        self.life += 1;
        self.totals.sessions.fetch_sub(self.sessions.len(), Ordering::Relaxed);
        self.sessions.clear();
        self.holders.clear();
        self.let_go_of(self.promises);
        self.at = P::default();
    }

    /// Opens a session of who has that identity.
    pub fn open(&mut self, id: NearId, identity: &str, until: BootTime) -> Result<(), Full> {
        let open = self.totals.sessions();
        if open >= self.limits.sessions_max {
            return Err(Full(open));
        }
        let session = Session {
            identity: identity.to_owned(),
            until,
            last: 0,
            held: BTreeSet::new(),
            carved: BTreeMap::new(),
            recalls: VecDeque::new(),
            sent: 0,
            cursor: None,
        };
        if self.sessions.insert(id, session).is_none() {
            self.totals.sessions.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// So many promises less.
    fn let_go_of(&mut self, promises: usize) {
        self.promises -= promises;
        self.totals.promises.fetch_sub(promises, Ordering::Relaxed);
    }

    /// The lease of a session lasts until then. False where there is no such session of that identity.
    pub fn renew(&mut self, id: NearId, identity: &str, until: BootTime) -> bool {
        match self.sessions.get_mut(&id).filter(|session| session.identity == identity) {
            Some(session) => {
                session.until = session.until.max(until);
                true
            }
            None => false,
        }
    }

    /// Whether there is such a session of that identity.
    pub fn is_of(&self, id: NearId, identity: &str) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.identity == identity)
    }

    /// Forgets sessions whose leases are over. Answers them.
    pub fn lapse(&mut self, now: BootTime) -> Vec<NearId> {
        let over: Vec<NearId> =
            self.sessions.iter().filter(|(_, session)| session.until <= now).map(|(id, _)| *id).collect();
        over.iter().for_each(|id| self.drop_session(*id));
        over
    }

    /// A session is gone.
    pub fn drop_session(&mut self, id: NearId) {
        let Some(gone) = self.sessions.remove(&id) else { return };
        self.totals.sessions.fetch_sub(1, Ordering::Relaxed);
        self.let_go_of(gone.held.len());
        for fact in &gone.held {
            self.let_go(fact, id);
        }
    }

    fn let_go(&mut self, fact: &Fact, id: NearId) {
        if let Some(holders) = self.holders.get_mut(fact) {
            holders.remove(&id);
            if holders.is_empty() {
                self.holders.remove(fact);
            }
        }
    }

    /// To be called before a read begins.
    pub fn begin(&self) -> Begun {
        Begun { life: self.life, visible: self.visible }
    }

    /// Whether the replica has gone back since, or is led anew: then what was read may never have been.
    pub fn has_ended_since(&self, begun: Begun) -> bool {
        begun.life != self.life
    }

    /// Whether anybody is promised anything of a directory's entries: only then it matters which of them an entry of the log touches.
    pub fn knows_of(&self, directory: InodeId) -> bool {
        let first = Fact::Entry(directory, Default::default());
        let entry = self.holders.range(first..).next();
        entry.is_some_and(|(fact, _)| matches!(fact, Fact::Entry(of, _) if *of == directory))
            || self.holders.contains_key(&Fact::Directory(directory))
    }

    /// Entries that lead to that place are about to be replayed. Answers the sessions for which there are news.
    pub fn coming(&mut self, at: P, touches: &BTreeSet<Touch>) -> BTreeSet<NearId> {
        self.announced += 1;
        self.at = self.at.max(at);
        let mut concerned = BTreeSet::new();
        for touch in touches {
            self.touched[slot(touch)] = self.announced;
            match touch {
                Touch::One(fact) => {
                    if let Some(directory) = fact.directory() {
                        let list = Fact::Directory(directory);
                        self.touched[slot(&Touch::One(list.clone()))] = self.announced;
                        self.carve(directory, fact, &list, &mut concerned);
                    }
                    self.take_back(fact, &mut concerned);
                }
                Touch::Entries(directory) => {
                    let list = Fact::Directory(*directory);
                    self.touched[slot(&Touch::One(list.clone()))] = self.announced;
                    let first = Fact::Entry(*directory, Default::default());
                    let of = |fact: &&Fact| matches!(fact, Fact::Entry(of, _) if of == directory);
                    let entries: Vec<Fact> =
                        self.holders.range(first..).map(|(fact, _)| fact).take_while(of).cloned().collect();
                    for fact in entries.iter().chain([&list]) {
                        self.take_back(fact, &mut concerned);
                    }
                }
            }
        }
        let news_max = self.limits.news_max;
        let late: Vec<NearId> = concerned
            .iter()
            .filter(|id| self.sessions.get(id).is_some_and(|session| session.recalls.len() > news_max))
            .copied()
            .collect();
        // It takes nothing in: what it was promised ends with its lease.
        late.into_iter().for_each(|id| self.drop_session(id));
        concerned
    }

    /// All that was announced is seen by whoever begins to read from now on. Where only a part of it was replayed, or none, this isn't said: the next that
    /// is announced and replayed says it of all.
    pub fn applied(&mut self) {
        self.visible = self.announced;
    }

    /// Where the newest entries lead to that were announced.
    pub fn at(&self) -> P {
        self.at
    }

    /// Takes one entry out of promises on its directory.
    fn carve(&mut self, directory: InodeId, entry: &Fact, list: &Fact, concerned: &mut BTreeSet<NearId>) {
        for id in self.holders.get(list).cloned().unwrap_or_default() {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let carved = session.carved.entry(directory).or_default();
            *carved += 1;
            if *carved > CARVED_MAX {
                self.take_from(list, id);
            } else if !session.held.contains(entry) {
                session.say(entry);
            }
            concerned.insert(id);
        }
    }

    fn take_back(&mut self, fact: &Fact, concerned: &mut BTreeSet<NearId>) {
        for id in self.holders.get(fact).cloned().unwrap_or_default() {
            self.take_from(fact, id);
            concerned.insert(id);
        }
    }

    fn take_from(&mut self, fact: &Fact, id: NearId) {
        self.let_go(fact, id);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let held = session.held.remove(fact);
        if let Fact::Directory(directory) = fact {
            session.carved.remove(directory);
        }
        session.say(fact);
        self.let_go_of(usize::from(held));
    }

    /// Promises facts as a read that began then has found them; those that may have changed since aren't. Answers what is promised: where there are many, the
    /// last ones may have taken the room of the first.
    pub fn promise(&mut self, id: NearId, begun: Begun, facts: impl IntoIterator<Item = Fact>) -> Vec<Fact> {
        let mut granted: Vec<Fact> = facts.into_iter().filter(|fact| self.grant(id, begun, fact)).collect();
        if let Some(session) = self.sessions.get(&id) {
            granted.retain(|fact| session.held.contains(fact));
        }
        granted
    }

    fn grant(&mut self, id: NearId, begun: Begun, fact: &Fact) -> bool {
        let is_old = |touch: &Touch| self.touched[slot(touch)] > begun.visible;
        let entries = fact.directory().map(Touch::Entries);
        if begun.life != self.life
            || is_old(&Touch::One(fact.clone()))
            || entries.is_some_and(|all| is_old(&all))
        {
            return false;
        }
        let Some(session) = self.sessions.get(&id) else { return false };
        if session.held.contains(fact) {
            return true;
        }
        if self.totals.promises() >= self.limits.facts_max {
            return false;
        }
        if session.held.len() >= self.limits.facts_per_session_max {
            self.make_room(id);
        }
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        session.held.insert(fact.clone());
        self.holders.entry(fact.clone()).or_default().insert(id);
        self.promises += 1;
        self.totals.promises.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Takes a sixteenth of what a session is promised back, another one each time.
    fn make_room(&mut self, id: NearId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let most = (session.held.len() / 16).clamp(1, self.limits.news_max / 2);
        let mut chosen: Vec<Fact> = match session.cursor.take() {
            Some(cursor) => session.held.range(cursor..).take(most).cloned().collect(),
            None => Vec::new(),
        };
        if chosen.is_empty() {
            chosen = session.held.iter().take(most).cloned().collect();
        }
        session.cursor = chosen.last().cloned();
        chosen.iter().for_each(|fact| self.take_from(fact, id));
    }

    /// What a session hasn't heard yet that has everything up to that number; none where there is no such session.
    pub fn news(&mut self, id: NearId, have: u64) -> Option<News<P>> {
        let session = self.sessions.get_mut(&id)?;
        while session.recalls.front().is_some_and(|(number, _)| *number <= have) {
            session.recalls.pop_front();
        }
        Some(News { upto: session.last, recalls: session.recalls.iter().cloned().collect(), at: self.at })
    }

    /// What is to be sent without being asked for, and wasn't yet. Where that is lost, a session finds the gap, and asks.
    pub fn unsent(&mut self, id: NearId) -> Option<News<P>> {
        let session = self.sessions.get_mut(&id)?;
        let from = session.recalls.partition_point(|(number, _)| *number <= session.sent);
        session.sent = session.last;
        let recalls = session.recalls.range(from..).cloned().collect();
        Some(News { upto: session.last, recalls, at: self.at })
    }

    /// Whether there is such a session.
    pub fn is_open(&self, id: NearId) -> bool {
        self.sessions.contains_key(&id)
    }

    /// Sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Facts that are promised, counted for each session.
    pub fn promises(&self) -> usize {
        self.promises
    }
}

impl<P> Drop for NearTable<P> {
    fn drop(&mut self) {
        self.totals.sessions.fetch_sub(self.sessions.len(), Ordering::Relaxed);
        self.totals.promises.fetch_sub(self.promises, Ordering::Relaxed);
    }
}

impl Session {
    fn say(&mut self, fact: &Fact) {
        self.last += 1;
        self.recalls.push_back((self.last, fact.clone()));
    }
}

#[cfg(test)]
#[path = "near_tests.rs"]
mod tests;
