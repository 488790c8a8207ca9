//! A directory that a session has alone: it changes entries without a word, and tells later. Whoever asks, over a network that reorders and repeats, hears
//! what was true at some time while he asked.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mooseng_region::promises::{ChangeId, Fact, Level, Limits, PromiseTable, Recall};
use mooseng_wire::{InodeId, RequestNumber, SessionId};
use proptest::prelude::*;

const DIRECTORY: InodeId = InodeId(1);
const SESSIONS: u64 = 3;
const NAMES: u8 = 3;

fn entry(n: u8) -> Fact {
    Fact::Entry(DIRECTORY, Bytes::from(vec![b'a' + n % NAMES]))
}

/// What an operation on that entry looks at.
fn looked(n: u8) -> BTreeSet<Fact> {
    [entry(n), Fact::Inode(DIRECTORY)].into()
}

#[derive(Debug)]
enum Message {
    /// The directory is given, under that number.
    Alone(u64),
    Recall(Recall),
}

#[derive(Debug, Default)]
struct Client {
    inbox: Vec<Message>,
    alone: bool,
    /// The newest recall of the directory or its inode.
    recalled: u64,
    untold: Vec<(u8, u64)>,
    /// Recalls that are answered once everything is told.
    owed: Vec<u64>,
    last: u64,
}

struct Asked {
    session: SessionId,
    name: u8,
    tick: u64,
    value: u64,
    /// How long the history was when it was asked.
    since: usize,
}

/// Somebody asks for what was made under a number, which he can't have from the directory.
struct Unheard {
    session: SessionId,
    value: u64,
    tick: u64,
    found: bool,
    /// It was made before he asked.
    was_made: bool,
    all_told: bool,
}

struct Running {
    session: SessionId,
    changes: Vec<(u8, u64)>,
    id: ChangeId,
    told: bool,
}

struct World {
    table: PromiseTable,
    version: u64,
    store: BTreeMap<u8, u64>,
    /// Values of names in the order in which they became true.
    history: Vec<(u8, u64)>,
    clients: BTreeMap<SessionId, Client>,
    asked: Vec<Asked>,
    unheard: Vec<Unheard>,
    /// Those who wait for others' answers first.
    waiting: Vec<(Unheard, Vec<Recall>)>,
    /// Everything that was ever stored.
    made: BTreeSet<u64>,
    running: Vec<Running>,
    values: u64,
}

impl World {
    fn new() -> Self {
        let mut table = PromiseTable::new(Limits::default());
        let clients: BTreeMap<SessionId, Client> =
            (1..=SESSIONS).map(|id| (SessionId(id), Client::default())).collect();
        clients.keys().for_each(|id| table.add_session(*id));
        let history = (0..NAMES).map(|n| (n, 0)).collect();
        Self {
            table,
            version: 1,
            store: BTreeMap::new(),
            history,
            clients,
            asked: vec![],
            unheard: vec![],
            waiting: vec![],
            made: BTreeSet::new(),
            running: vec![],
            values: 0,
        }
    }

    fn send(&mut self, recalls: Vec<Recall>) {
        for recall in recalls {
            self.clients.get_mut(&recall.session).unwrap().inbox.push(Message::Recall(recall));
        }
    }

    fn stored(&self, name: u8) -> u64 {
        self.store.get(&name).copied().unwrap_or(0)
    }

    fn ask(&mut self, session: SessionId, name: u8) {
        // A session tells before it asks.
        if !self.clients[&session].untold.is_empty() || self.running.iter().any(|r| r.session == session) {
            return;
        }
        let (tick, value, since) = (self.table.tick(), self.stored(name), self.history.len());
        self.asked.push(Asked { session, name, tick, value, since });
    }

    /// An answer, or a refusal: both rest on what was looked at.
    fn answer(&mut self, at: usize) {
        if self.asked.is_empty() {
            return;
        }
        let mut asked = self.asked.remove(at % self.asked.len());
        let mut recalls = self.table.hidden(asked.session, &looked(asked.name));
        recalls.extend(self.table.read_blockers(asked.session, &looked(asked.name), false));
        if !recalls.is_empty() || self.table.given_back_since(asked.tick, &looked(asked.name)) {
            self.send(recalls);
            (asked.tick, asked.value) = (self.table.tick(), self.stored(asked.name));
            self.asked.push(asked);
            return;
        }
        let before = self.history[..asked.since].iter().rev().find(|(name, _)| *name == asked.name);
        let since = self.history[asked.since..].iter().filter(|(name, _)| *name == asked.name);
        let true_meanwhile: BTreeSet<u64> =
            before.into_iter().chain(since).map(|(_, value)| *value).collect();
        assert!(
            true_meanwhile.contains(&asked.value),
            "{} hears {} of {}, and true were {true_meanwhile:?}",
            asked.session,
            asked.value,
            asked.name
        );
        for n in looked(asked.name) {
            self.table.grant(asked.session, &n, Level::Shared, self.version);
        }
    }

    fn ask_for(&mut self, session: SessionId, which: usize) {
        let own =
            !self.clients[&session].untold.is_empty() || self.running.iter().any(|r| r.session == session);
        if own || self.values == 0 {
            return;
        }
        let value = which as u64 % self.values + 1;
        let was_made = self.history.iter().any(|(_, made)| *made == value);
        let (tick, found) = (self.table.tick(), self.made.contains(&value));
        self.unheard.push(Unheard { session, value, tick, found, was_made, all_told: false });
    }

    fn answer_for(&mut self, at: usize) {
        if self.unheard.is_empty() {
            return;
        }
        let mut asked = self.unheard.remove(at % self.unheard.len());
        if !asked.found && !asked.all_told {
            let recalls = self.table.untold(asked.session);
            if !recalls.is_empty() || self.table.tick() != asked.tick {
                self.send(recalls.clone());
                asked.all_told = true;
                self.waiting.push((asked, recalls));
                return;
            }
        }
        assert!(
            asked.found || !asked.was_made,
            "{} hears that {} was never made",
            asked.session,
            asked.value
        );
    }

    /// Whose recalls are answered looks again.
    fn look_again(&mut self) {
        for (asked, recalls) in std::mem::take(&mut self.waiting) {
            if self.table.answered(&recalls) {
                let (tick, found) = (self.table.tick(), self.made.contains(&asked.value));
                self.unheard.push(Unheard { tick, found, ..asked });
            } else {
                self.waiting.push((asked, recalls));
            }
        }
    }

    fn change(&mut self, session: SessionId, name: u8) {
        self.values += 1;
        let value = self.values;
        // One that was sent before the directory was given comes first.
        let sent = self.running.iter().any(|r| r.session == session && !r.told);
        let client = self.clients.get_mut(&session).unwrap();
        if client.alone && sent {
            return;
        }
        if client.alone {
            client.untold.push((name, value));
            self.history.push((name, value));
        } else if client.untold.is_empty() && !self.running.iter().any(|r| r.session == session) {
            self.begin(session, vec![(name, value)], false);
        }
    }

    fn begin(&mut self, session: SessionId, changes: Vec<(u8, u64)>, told: bool) {
        let client = self.clients.get_mut(&session).unwrap();
        client.last += 1;
        let number = RequestNumber(client.last);
        let facts = changes.iter().flat_map(|(name, _)| looked(*name)).collect();
        let (id, recalls) = self.table.begin(session, number, facts);
        if told {
            assert!(self.table.is_ready(id), "what is told of waits for nobody: {recalls:?}");
        }
        self.send(recalls);
        self.running.push(Running { session, changes, id, told });
    }

    fn tell(&mut self, session: SessionId) {
        let busy = self.running.iter().any(|r| r.session == session);
        let client = self.clients.get_mut(&session).unwrap();
        if !busy && !client.untold.is_empty() {
            let changes = std::mem::take(&mut client.untold);
            self.begin(session, changes, true);
        }
    }

    fn commit(&mut self, at: usize) {
        if self.running.is_empty() {
            return;
        }
        let at = at % self.running.len();
        if !self.table.is_ready(self.running[at].id) {
            return;
        }
        let done = self.running.remove(at);
        self.version += 1;
        for (name, value) in &done.changes {
            self.store.insert(*name, *value);
            self.made.insert(*value);
            if !done.told {
                self.history.push((*name, *value));
            }
        }
        self.table.end(done.id, Some(self.version));
        let last = self.clients[&done.session].last;
        self.table.settle(done.session, RequestNumber(last + 1));
    }

    fn deliver(&mut self, session: SessionId, at: usize, repeat: bool) {
        let client = self.clients.get_mut(&session).unwrap();
        if client.inbox.is_empty() {
            return;
        }
        let at = at % client.inbox.len();
        match client.inbox.swap_remove(at) {
            Message::Alone(number) => client.alone |= number > client.recalled,
            Message::Recall(recall) => {
                if !matches!(recall.fact, Fact::Entry(..)) {
                    client.recalled = client.recalled.max(recall.number);
                    client.alone = false;
                }
                client.owed.push(recall.number);
                if repeat {
                    client.inbox.push(Message::Recall(recall));
                }
            }
        }
    }

    fn acknowledge(&mut self, session: SessionId) {
        let told = !self.running.iter().any(|r| r.session == session && r.told);
        let client = self.clients.get_mut(&session).unwrap();
        if told && client.untold.is_empty() {
            for number in std::mem::take(&mut client.owed) {
                self.table.acknowledge(session, number);
            }
        }
    }

    fn step(&mut self, (what, who, which): (u8, u8, u8)) {
        let session = SessionId(u64::from(who) % SESSIONS + 1);
        let (at, name) = (usize::from(which), which % NAMES);
        match what % 15 {
            12 => self.ask_for(session, at),
            13 => {
                self.look_again();
                self.answer_for(at);
            }
            14 => {
                let recalls = self.table.known_elsewhere(session, DIRECTORY);
                self.send(recalls);
            }
            0 | 1 => self.ask(session, name),
            2 => self.answer(at),
            3 | 4 => self.change(session, name),
            5 => {
                let busy = self.running.iter().any(|r| r.session == session);
                if !busy && self.table.grant_alone(session, DIRECTORY, self.version) {
                    let number = self.table.next_number(session).unwrap();
                    self.clients.get_mut(&session).unwrap().inbox.push(Message::Alone(number));
                }
            }
            6 => self.tell(session),
            7 | 8 => self.commit(at),
            9 | 10 => self.deliver(session, at, which % 5 == 0),
            _ => self.acknowledge(session),
        }
    }

    fn settle(&mut self) {
        for round in 0..200 {
            let all: Vec<Recall> =
                self.table.debtors().into_iter().flat_map(|id| self.table.unanswered(id)).collect();
            self.send(all);
            for session in (1..=SESSIONS).map(SessionId) {
                while !self.clients[&session].inbox.is_empty() {
                    self.deliver(session, 0, false);
                }
                self.tell(session);
                self.commit(round);
                self.acknowledge(session);
                self.answer(round);
                self.look_again();
                self.answer_for(round);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn whoever_asks_hears_what_was_changed_alone(steps in prop::collection::vec(any::<(u8, u8, u8)>(), 0..300)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.settle();
        let waits = [world.asked.len(), world.unheard.len(), world.waiting.len(), world.running.len()];
        prop_assert_eq!(waits, [0; 4], "somebody waits for ever");
    }
}

#[test]
fn a_directory_is_given_to_one_that_takes_it_from_nobody() {
    let mut table = PromiseTable::new(Limits::default());
    let (a, b) = (SessionId(1), SessionId(2));
    table.add_session(a);
    table.add_session(b);
    assert!(table.grant(b, &entry(0), Level::Shared, 1));
    assert!(!table.grant_alone(a, DIRECTORY, 1), "somebody is promised an entry");
    let (change, recalls) = table.begin(a, RequestNumber(1), [entry(0)].into());
    table.acknowledge(b, recalls[0].number);
    table.end(change, Some(2));
    assert!(table.grant_alone(a, DIRECTORY, 2));
    for fact in [entry(1), Fact::Directory(DIRECTORY), Fact::Inode(DIRECTORY)] {
        assert!(!table.grant(b, &fact, Level::Shared, 2), "{fact:?}");
    }
    assert!(!table.reclaim_alone(b, DIRECTORY));
    // A change of one entry takes the whole.
    let (_, recalls) = table.begin(b, RequestNumber(1), [entry(2)].into());
    assert_eq!(
        recalls.iter().map(|r| (&r.fact, r.keep)).collect::<Vec<_>>(),
        [(&Fact::Directory(DIRECTORY), None)]
    );
}

#[test]
fn who_is_to_have_a_directory_alone_has_it_taken_from_all_who_only_know_it() {
    let mut table = PromiseTable::new(Limits::default());
    let (a, b, c) = (SessionId(1), SessionId(2), SessionId(3));
    [a, b, c].into_iter().for_each(|session| table.add_session(session));
    let name = |n: u32| Fact::Entry(DIRECTORY, Bytes::from(n.to_be_bytes().to_vec()));
    let elsewhere = Fact::Entry(InodeId(2), "x".into());
    for (session, fact) in [
        (a, Fact::Inode(DIRECTORY)),
        (b, Fact::Inode(DIRECTORY)),
        (b, Fact::Directory(DIRECTORY)),
        (a, name(0)),
        (c, name(0)),
        (c, name(1)),
        (c, elsewhere),
    ] {
        assert!(table.grant(session, &fact, Level::Shared, 1));
    }
    assert!(!table.grant_alone(a, DIRECTORY, 1));
    let (change, _) = table.begin(b, RequestNumber(1), [Fact::Inode(DIRECTORY)].into());
    assert!(table.known_elsewhere(a, DIRECTORY).is_empty(), "somebody is changing it: it isn't given");
    table.end(change, None);
    table.acknowledge(a, table.unanswered(a)[0].number);

    let recalls = table.known_elsewhere(a, DIRECTORY);
    let named: BTreeSet<(SessionId, Fact)> = recalls.iter().map(|r| (r.session, r.fact.clone())).collect();
    let expected = [(b, Fact::Inode(DIRECTORY)), (b, Fact::Directory(DIRECTORY)), (c, name(0)), (c, name(1))];
    assert_eq!(named, expected.into());
    assert!(recalls.iter().all(|recall| recall.keep.is_none()), "{recalls:?}");
    assert!(!table.grant_alone(a, DIRECTORY, 1), "nobody has answered");
    for recall in &recalls {
        table.acknowledge(recall.session, recall.number);
    }
    assert!(table.known_elsewhere(a, DIRECTORY).is_empty());
    assert!(table.grant_alone(a, DIRECTORY, 1));
    assert_eq!(table.level(c, &Fact::Entry(InodeId(2), "x".into())), Some(Level::Shared));

    // More names than that aren't taken for it.
    table.drop_session(a);
    table.add_session(a);
    for n in 0..2000 {
        assert!(table.grant(c, &name(n), Level::Shared, 1));
    }
    assert!(table.known_elsewhere(a, DIRECTORY).is_empty());
}

#[test]
fn files_are_given_with_their_directory_and_recalled_together() {
    let mut table = PromiseTable::new(Limits::default());
    let (a, b) = (SessionId(1), SessionId(2));
    table.add_session(a);
    table.add_session(b);
    let file = |n: u64| InodeId(100 + n);
    let fact = |n: u64| Fact::Inode(file(n));
    assert!(!table.grant_with(a, DIRECTORY, file(0), 1), "the directory isn't this session's alone");
    assert!(table.grant_alone(a, DIRECTORY, 1));
    assert!(table.grant(b, &fact(9), Level::Shared, 1));
    assert!(!table.grant_with(a, DIRECTORY, file(9), 1), "somebody else is promised it");
    for n in 0..4 {
        assert!(table.grant_with(a, DIRECTORY, file(n), 1));
    }
    // One that is exclusive for another reason stays where it is.
    assert!(table.grant(a, &fact(5), Level::Exclusive, 1));

    // Who looks at one has all given back.
    let recalls = table.read_blockers(b, &[fact(1)].into(), false);
    let named: BTreeSet<Fact> = recalls.iter().map(|recall| recall.fact.clone()).collect();
    assert_eq!(named, (0..4).map(fact).collect());
    assert!(recalls.iter().all(|recall| recall.keep == Some(Level::Shared)), "{recalls:?}");
    assert!(!table.answered(&recalls));
    for recall in &recalls {
        table.acknowledge(a, recall.number);
    }
    assert!(table.answered(&recalls));
    assert_eq!(
        [0, 1, 5].map(|n| table.level(a, &fact(n))),
        [Some(Level::Shared), Some(Level::Shared), Some(Level::Exclusive)]
    );
    // Nothing more goes along with what isn't held so any more.
    assert!(table.read_blockers(b, &[fact(1)].into(), false).is_empty());

    // A change waits for what it changes alone.
    for n in 0..4 {
        assert!(table.grant_with(a, DIRECTORY, file(n), 1));
    }
    let (change, recalls) = table.begin(b, RequestNumber(1), [fact(2)].into());
    assert_eq!(recalls.len(), 4);
    let own = recalls.iter().find(|recall| recall.fact == fact(2)).unwrap();
    assert_eq!(own.keep, None);
    table.acknowledge(a, own.number);
    assert!(table.is_ready(change));
    table.end(change, Some(2));
    // A session that goes leaves nothing behind.
    table.drop_session(a);
    assert!(table.grant(b, &fact(0), Level::Exclusive, 2));
}
