//! The custodian's table of promises against clients that keep what they are granted, over a network that reorders, loses and repeats:
//! nobody shows a value that somebody else has seen replaced.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mooseng_region::promises::{ChangeId, Fact, Level, Limits, PromiseTable, Recall};
use mooseng_wire::{InodeId, RequestNumber, SessionId};
use proptest::prelude::*;

const SESSIONS: u64 = 3;
const NAMES: usize = 3;

fn directory() -> Fact {
    Fact::Directory(InodeId(1))
}

fn entry(n: usize) -> Fact {
    Fact::Entry(InodeId(1), Bytes::from(vec![b'a' + n as u8]))
}

fn fact(n: u8) -> Fact {
    match n % 6 {
        0 | 1 => Fact::Inode(InodeId(10 + u64::from(n % 2))),
        2 => directory(),
        _ => entry(usize::from(n % 3)),
    }
}

/// A value of a fact: the version of its last change. A directory's is its entries'.
type Value = BTreeMap<Fact, u64>;

#[derive(Debug)]
enum Message {
    Answer { number: u64, granted: Vec<(Fact, Value)>, changed: Vec<Fact>, settles: Option<u64> },
    Recall(Recall),
}

#[derive(Debug, Default)]
struct Client {
    /// What it shows without asking.
    shown: BTreeMap<Fact, Value>,
    recalled: BTreeMap<Fact, u64>,
    inbox: Vec<Message>,
    unanswered: BTreeSet<u64>,
    last: u64,
}

impl Client {
    fn forget(&mut self, fact: &Fact) {
        self.shown.remove(fact);
        if let Fact::Entry(inode, _) = fact
            && let Some(listing) = self.shown.get_mut(&Fact::Directory(*inode))
        {
            listing.remove(fact);
        }
    }

    /// Whether it would show this entry's value.
    fn shows(&self, fact: &Fact) -> Option<u64> {
        let of = |key: &Fact| self.shown.get(key).and_then(|value| value.get(fact)).copied();
        let listed = match fact {
            Fact::Entry(inode, _) => of(&Fact::Directory(*inode)),
            _ => None,
        };
        of(fact).max(listed)
    }
}

#[derive(Debug)]
struct Pending {
    session: SessionId,
    fact: Fact,
    value: Value,
    version: u64,
}

#[derive(Debug)]
struct Running {
    session: SessionId,
    number: u64,
    facts: BTreeSet<Fact>,
    id: ChangeId,
    committed: Option<u64>,
}

struct World {
    table: PromiseTable,
    version: u64,
    values: Value,
    clients: BTreeMap<SessionId, Client>,
    reads: Vec<Pending>,
    changes: Vec<Running>,
    acknowledgements: Vec<(SessionId, u64)>,
}

impl World {
    fn new() -> Self {
        let mut table = PromiseTable::new(Limits::default());
        let clients: BTreeMap<SessionId, Client> =
            (1..=SESSIONS).map(|id| (SessionId(id), Client::default())).collect();
        clients.keys().for_each(|id| table.add_session(*id));
        Self {
            table,
            version: 1,
            values: Value::new(),
            clients,
            reads: Vec::new(),
            changes: Vec::new(),
            acknowledgements: Vec::new(),
        }
    }

    fn value(&self, fact: &Fact) -> Value {
        let of = |fact: Fact| {
            let value = self.values.get(&fact).copied().unwrap_or(0);
            (fact, value)
        };
        match fact {
            Fact::Directory(_) => (0..NAMES).map(|n| of(entry(n))).collect(),
            other => [of(other.clone())].into(),
        }
    }

    fn send(&mut self, recalls: Vec<Recall>) {
        for recall in recalls {
            if let Some(client) = self.clients.get_mut(&recall.session) {
                client.inbox.push(Message::Recall(recall));
            }
        }
    }

    fn read(&mut self, session: SessionId, fact: Fact) {
        let value = self.value(&fact);
        self.reads.push(Pending { session, fact, value, version: self.version });
    }

    fn admit(&mut self, at: usize) {
        if self.reads.is_empty() {
            return;
        }
        let read = self.reads.remove(at % self.reads.len());
        let recalls = self.table.read_blockers(read.session, &[read.fact.clone()].into(), false);
        if !recalls.is_empty() {
            self.send(recalls);
            return;
        }
        // The answer leaves now: nobody else shows anything older.
        for (id, client) in self.clients.iter().filter(|(id, _)| **id != read.session) {
            for (fact, version) in &read.value {
                if let Some(shown) = client.shows(fact) {
                    assert!(
                        shown >= *version,
                        "{id} shows {fact:?} of {shown}, {} is told of {version}",
                        read.session
                    );
                }
            }
        }
        let mut granted = Vec::new();
        if self.table.grant(read.session, &read.fact, Level::Shared, read.version) {
            granted.push((read.fact, read.value));
        }
        let number = self.table.next_number(read.session).unwrap();
        let answer = Message::Answer { number, granted, changed: Vec::new(), settles: None };
        self.clients.get_mut(&read.session).unwrap().inbox.push(answer);
    }

    fn begin(&mut self, session: SessionId, facts: BTreeSet<Fact>) {
        // The master itself is no client.
        let number = self.clients.get_mut(&session).map_or(0, |client| {
            client.last += 1;
            client.unanswered.insert(client.last);
            client.last
        });
        let (id, recalls) = self.table.begin(session, RequestNumber(number), facts.clone());
        self.send(recalls);
        self.changes.push(Running { session, number, facts, id, committed: None });
    }

    fn commit(&mut self, at: usize) {
        if self.changes.is_empty() {
            return;
        }
        let at = at % self.changes.len();
        let change = &mut self.changes[at];
        if change.committed.is_some() || !self.table.is_ready(change.id) {
            return;
        }
        let whole = change.facts.contains(&directory());
        let changed: BTreeSet<Fact> =
            if whole { (0..NAMES).map(entry).collect() } else { change.facts.clone() };
        for (id, client) in self.clients.iter().filter(|(id, _)| **id != change.session) {
            for fact in &changed {
                assert_eq!(client.shows(fact), None, "{id} still shows {fact:?}, which changes");
            }
        }
        self.version += 1;
        change.committed = Some(self.version);
        let version = self.version;
        self.values.extend(changed.into_iter().map(|fact| (fact, version)));
    }

    fn end(&mut self, at: usize) {
        if self.changes.is_empty() {
            return;
        }
        let at = at % self.changes.len();
        let Some(version) = self.changes[at].committed else { return };
        let change = self.changes.remove(at);
        let (mut number, changed) = self.table.end(change.id, Some(version));
        if !self.clients.contains_key(&change.session) {
            return;
        }
        let mut granted = Vec::new();
        for fact in &change.facts {
            if self.table.grant(change.session, fact, Level::Shared, version) {
                granted.push((fact.clone(), [(fact.clone(), version)].into()));
            }
        }
        if changed.is_empty() {
            number = self.table.next_number(change.session).unwrap();
        }
        let answer = Message::Answer { number, granted, changed, settles: Some(change.number) };
        self.clients.get_mut(&change.session).unwrap().inbox.push(answer);
    }

    fn deliver(&mut self, session: SessionId, at: usize, keep: bool) {
        let client = self.clients.get_mut(&session).unwrap();
        if client.inbox.is_empty() {
            return;
        }
        let at = at % client.inbox.len();
        match client.inbox.swap_remove(at) {
            Message::Answer { number, granted, changed, settles } => {
                for fact in changed {
                    let newest = client.recalled.entry(fact.clone()).or_default();
                    *newest = (*newest).max(number);
                    client.forget(&fact);
                }
                for (fact, value) in granted {
                    if client.recalled.get(&fact).is_some_and(|newest| *newest > number) {
                        continue;
                    }
                    if let (Fact::Entry(inode, _), Some(version)) = (&fact, value.get(&fact))
                        && let Some(listing) = client.shown.get_mut(&Fact::Directory(*inode))
                    {
                        listing.insert(fact.clone(), *version);
                    }
                    // Of a list, entries that were taken out of it on the way stay out.
                    let value = value
                        .into_iter()
                        .filter(|(part, _)| client.recalled.get(part).is_none_or(|newest| *newest <= number))
                        .collect();
                    client.shown.insert(fact, value);
                }
                if let Some(settled) = settles {
                    client.unanswered.remove(&settled);
                }
                let below = client.unanswered.first().copied().unwrap_or(client.last + 1);
                self.table.settle(session, RequestNumber(below));
            }
            Message::Recall(recall) => {
                let newest = client.recalled.entry(recall.fact.clone()).or_default();
                *newest = (*newest).max(recall.number);
                client.forget(&recall.fact);
                self.acknowledgements.push((session, recall.number));
                if keep {
                    // The network repeats it.
                    client.inbox.push(Message::Recall(recall));
                }
            }
        }
    }

    fn acknowledge(&mut self, at: usize) {
        if self.acknowledgements.is_empty() {
            return;
        }
        let (session, number) = self.acknowledgements.swap_remove(at % self.acknowledgements.len());
        self.table.acknowledge(session, number);
    }

    fn repeat(&mut self) {
        for id in self.table.debtors() {
            let recalls = self.table.unanswered(id);
            self.send(recalls);
        }
    }

    fn step(&mut self, (what, who, which): (u8, u8, u8)) {
        let session = SessionId(u64::from(who) % SESSIONS + 1);
        let at = usize::from(which);
        match what % 12 {
            0 | 1 => self.read(session, fact(which)),
            2 | 3 => self.admit(at),
            4 => {
                let facts = [fact(which), fact(which / 7)];
                let facts: BTreeSet<Fact> = facts.into_iter().filter(|f| *f != directory()).collect();
                if !facts.is_empty() {
                    self.begin(session, facts);
                }
            }
            5 => self.commit(at),
            6 => self.end(at),
            7 | 8 => self.deliver(session, at, which % 5 == 0),
            9 => self.acknowledge(at),
            // Another volume is joined, and all names stand for something else.
            10 if which % 3 == 0 => self.begin(SessionId(0), one(&directory())),
            _ if which % 4 == 0 => {
                // A recall is lost.
                let client = self.clients.get_mut(&session).unwrap();
                if let Some(lost) = client.inbox.iter().position(|m| matches!(m, Message::Recall(_))) {
                    client.inbox.remove(lost);
                }
            }
            _ => self.repeat(),
        }
    }

    /// Everything that is under way comes to its end.
    fn settle(&mut self) {
        for round in 0..400 {
            self.repeat();
            for n in 1..=SESSIONS {
                while !self.clients[&SessionId(n)].inbox.is_empty() {
                    self.deliver(SessionId(n), 0, false);
                }
            }
            while !self.acknowledgements.is_empty() {
                self.acknowledge(0);
            }
            for at in 0..self.changes.len() {
                self.commit(at);
            }
            self.end(round);
            self.admit(round);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn nobody_shows_what_was_replaced(steps in prop::collection::vec(any::<(u8, u8, u8)>(), 0..400)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.settle();
        prop_assert!(world.changes.is_empty(), "a change waits for ever: {:?}", world.changes);
        prop_assert_eq!(world.table.changes(), 0);
        for (id, client) in &world.clients {
            for (fact, version) in client.shown.values().flatten() {
                prop_assert_eq!(
                    *version,
                    world.values.get(fact).copied().unwrap_or(0),
                    "{} shows an old {:?} when all is quiet", id, fact
                );
            }
        }
    }
}

fn one(fact: &Fact) -> BTreeSet<Fact> {
    [fact.clone()].into()
}

#[test]
fn an_exclusive_inode_is_lowered_for_a_reader_and_given_up_for_a_writer() {
    let mut table = PromiseTable::new(Limits::default());
    let (a, b) = (SessionId(1), SessionId(2));
    table.add_session(a);
    table.add_session(b);
    let file = Fact::Inode(InodeId(7));
    assert!(table.grant(a, &file, Level::Exclusive, 1));
    assert!(!table.grant(b, &file, Level::Shared, 1));
    let recalls = table.read_blockers(b, &one(&file), false);
    assert_eq!(recalls.iter().map(|r| r.keep).collect::<Vec<_>>(), [Some(Level::Shared)]);
    // A writer needs more than a reader asked for.
    let (change, more) = table.begin(b, RequestNumber(1), one(&file));
    assert_eq!(more.iter().map(|r| r.keep).collect::<Vec<_>>(), [None]);
    table.acknowledge(a, recalls[0].number);
    assert!(!table.is_ready(change));
    table.acknowledge(a, more[0].number);
    assert!(table.is_ready(change));
    assert_eq!(table.level(a, &file), None);
}

#[test]
fn a_session_that_goes_is_waited_for_no_longer() {
    let mut table = PromiseTable::new(Limits::default());
    let (a, b) = (SessionId(1), SessionId(2));
    table.add_session(a);
    table.add_session(b);
    let file = Fact::Inode(InodeId(7));
    assert!(table.grant(a, &file, Level::Shared, 1));
    let (change, recalls) = table.begin(b, RequestNumber(1), one(&file));
    assert_eq!(recalls.len(), 1);
    assert!(!table.is_ready(change));
    table.drop_session(a);
    assert!(table.is_ready(change) && table.answered(&recalls));
    table.end(change, Some(9));
    assert!(!table.grant(b, &file, Level::Shared, 8), "it changed after version 8");
    assert!(table.grant(b, &file, Level::Shared, 9));
}

/// A recall of a life that is over may arrive in the next one, and be answered.
#[test]
fn an_answer_to_a_recall_of_an_earlier_life_answers_none_of_this_one() {
    let mut table = PromiseTable::new(Limits::default());
    let (a, b) = (SessionId(1), SessionId(2));
    table.add_session(a);
    table.add_session(b);
    let (file, other) = (Fact::Inode(InodeId(7)), Fact::Inode(InodeId(8)));
    assert!(table.grant(a, &file, Level::Exclusive, 1));
    let (_, recalls) = table.begin(b, RequestNumber(1), one(&file));
    table.drop_session(a);
    table.add_session(a);
    assert!(table.grant(a, &other, Level::Exclusive, 1));
    let (change, _) = table.begin(b, RequestNumber(2), one(&other));
    table.acknowledge(a, recalls[0].number);
    assert!(!table.is_ready(change));
}

#[test]
fn room_is_made_before_a_session_is_full() {
    let mut table = PromiseTable::new(Limits { facts_per_session_max: 16, facts_max: 100 });
    let a = SessionId(1);
    table.add_session(a);
    let granted = (0..20).filter(|n| table.grant(a, &Fact::Inode(InodeId(*n)), Level::Shared, 1)).count();
    assert_eq!(granted, 16);
    let recalls = table.make_room(4);
    assert_eq!(recalls.len(), 4);
    for recall in &recalls {
        assert!(table.acknowledge(a, recall.number));
    }
    assert_eq!(table.len(), 12);
}

#[test]
fn an_inodes_locks_are_recalled_by_whoever_changes_or_tests_them() {
    let mut table = PromiseTable::new(Limits::default());
    let (a, b) = (SessionId(1), SessionId(2));
    table.add_session(a);
    table.add_session(b);
    let locks = Fact::Locks(InodeId(7));
    assert!(table.grant(a, &locks, Level::Exclusive, 1));
    assert!(!table.grant(b, &locks, Level::Exclusive, 1));
    assert!(table.grant(b, &Fact::Inode(InodeId(7)), Level::Shared, 1), "of the file itself it says nothing");
    let tested = table.hidden(b, &one(&locks));
    assert_eq!(tested.iter().map(|r| (r.session, r.keep)).collect::<Vec<_>>(), [(a, None)]);
    assert!(table.hidden(a, &one(&locks)).is_empty());
    let (change, recalls) = table.begin(b, RequestNumber(1), one(&locks));
    assert_eq!(recalls, tested, "one answer does for both");
    // What it has given by itself it records while others wait for that.
    let (record, none) = table.begin(a, RequestNumber(1), one(&locks));
    assert!(none.is_empty() && table.is_ready(record) && !table.is_ready(change));
    table.end(record, Some(5));
    assert!(table.acknowledge(a, tested[0].number) && table.is_ready(change));
    table.end(change, Some(6));
    assert!(!table.grant(b, &locks, Level::Exclusive, 5), "what was found empty then isn't now");
    assert!(table.grant(b, &locks, Level::Exclusive, 6));

    let mut next = PromiseTable::new(Limits::default());
    next.add_session(a);
    next.add_session(b);
    assert!(next.reclaim_locks(b, InodeId(7)) && next.reclaim_locks(b, InodeId(7)));
    assert!(!next.reclaim_locks(a, InodeId(7)));
    let (change, recalls) = next.begin(a, RequestNumber(2), one(&locks));
    assert!(recalls.len() == 1 && !next.is_ready(change), "a next custodian waits for it, too");
}
