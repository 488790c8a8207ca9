//! A group of engines over an in-process log that can delay, lose, and change leaders.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_embedded::*;
use mooseng_store::conformance::Harness;
use mooseng_store::mvcc::Change;
use mooseng_store::{KeyRange, Store};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mode {
    /// Applied before the proposal answers, at once.
    Immediate,
    /// Applied after random delays, in order.
    Delayed,
    /// Delayed, with changes of leadership, and proposals of unknown outcome: lost, applied, or applied later.
    Flaky,
}

struct Log {
    entries: Vec<LogEntry>,
    outcomes: BTreeMap<u64, ApplyOutcome>,
    /// Entries that every member has applied.
    committed: usize,
    term: u64,
    leader: usize,
    dice: SmallRng,
}

pub struct GroupInner {
    pub members: Vec<Embedded>,
    mode: Mode,
    log: Mutex<Log>,
    directories: Vec<PathBuf>,
}

/// Engines over one log; the store of whoever leads.
#[derive(Clone)]
pub struct Group(pub Arc<GroupInner>);

struct Member {
    group: std::sync::Weak<GroupInner>,
    number: usize,
}

impl Group {
    pub fn new(mode: Mode, seed: u64, bases: Vec<Arc<dyn Base>>) -> Self {
        let options = Options { move_interval: Duration::from_millis(7), ..Options::default() };
        let members = bases.into_iter().map(|base| Embedded::open(base, options.clone()).unwrap()).collect();
        let dice = SmallRng::seed_from_u64(seed);
        let log = Log { entries: vec![], outcomes: BTreeMap::new(), committed: 0, term: 1, leader: 0, dice };
        let group =
            Self(Arc::new(GroupInner { members, mode, log: Mutex::new(log), directories: Vec::new() }));
        for (number, member) in group.0.members.iter().enumerate() {
            member.set_log(Arc::new(Member { group: Arc::downgrade(&group.0), number }));
        }
        group.0.members[0].lead(1);
        group
    }

    pub fn memory(mode: Mode, seed: u64) -> Self {
        Self::new(mode, seed, (0..3).map(|_| Arc::new(MemoryBase::new()) as Arc<dyn Base>).collect())
    }

    pub fn leader(&self) -> Embedded {
        let log = self.0.log.lock().unwrap();
        self.0.members[log.leader].clone()
    }

    pub fn entries(&self) -> Vec<LogEntry> {
        self.0.log.lock().unwrap().entries.clone()
    }

    /// Batches that changed nothing.
    pub fn mismatches(&self) -> usize {
        let log = self.0.log.lock().unwrap();
        log.outcomes.values().filter(|outcome| **outcome == ApplyOutcome::Mismatch).count()
    }

    pub fn change_leader(&self) {
        self.0.change_leader(&mut self.0.log.lock().unwrap());
    }

    /// All members have the same state.
    pub fn check(&self) {
        let mut log = self.0.log.lock().unwrap();
        let all = log.entries.len();
        self.0.commit(&mut log, all);
        let digests: Vec<_> = self.0.members.iter().map(|member| member.state_digest().unwrap()).collect();
        assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
        // And so has one that starts now.
        let fresh = Embedded::open(Arc::new(MemoryBase::new()), Options::default()).unwrap();
        fresh.apply(log.entries.clone()).unwrap();
        assert_eq!(fresh.state_digest().unwrap(), digests[0]);
        assert_eq!(fresh.position(), self.0.members[0].position());
    }
}

impl Store for Group {
    type Transaction = EmbeddedTransaction;
    fn begin(&self) -> EmbeddedTransaction {
        self.leader().begin()
    }
}

impl Harness for Group {
    type Store = Self;
    fn store(&self) -> Self {
        self.clone()
    }
    async fn expire(&self) {
        for member in &self.0.members {
            member.expire().unwrap();
        }
    }
}

impl GroupInner {
    fn append(&self, log: &mut Log, payload: Payload) -> usize {
        let (index, term, node) = (log.entries.len() as u64 + 1, log.term, log.leader as u64 + 1);
        log.entries.push(LogEntry { index, term, node, payload });
        log.entries.len()
    }

    /// Applies everything up to `count` entries, on every member.
    fn commit(&self, log: &mut Log, count: usize) {
        if count <= log.committed {
            return;
        }
        let new = log.entries[log.committed..count].to_vec();
        for member in &self.members {
            let outcomes = member.apply(new.clone()).unwrap();
            for (entry, outcome) in new.iter().zip(outcomes) {
                let known = *log.outcomes.entry(entry.index).or_insert(outcome);
                assert_eq!(known, outcome, "members disagree on entry {}", entry.index);
            }
        }
        log.committed = count;
    }

    fn change_leader(&self, log: &mut Log) {
        self.members[log.leader].follow();
        // What isn't committed survives as far as the new leader has it.
        let kept = log.dice.random_range(log.committed..=log.entries.len());
        log.entries.truncate(kept);
        log.term += log.dice.random_range(1..3);
        log.leader = log.dice.random_range(0..self.members.len());
        let blank =
            if log.dice.random_bool(0.5) { Payload::Blank } else { Payload::Meta(Bytes::from(vec![7; 3])) };
        let all = self.append(log, blank);
        self.commit(log, all);
        self.members[log.leader].lead(log.term);
    }
}

#[async_trait]
impl CommitLog for Member {
    async fn propose(&self, term: u64, batch: Bytes) -> Result<ApplyOutcome, ProposeError> {
        let group = self.group.upgrade().ok_or(ProposeError::NotLeader)?;
        let (at, delay) = {
            let mut log = group.log.lock().unwrap();
            if log.term != term || log.leader != self.number {
                return Err(ProposeError::NotLeader);
            }
            match if group.mode == Mode::Flaky { log.dice.random_range(0..40) } else { 100 } {
                0 => {
                    group.change_leader(&mut log);
                    return Err(ProposeError::NotLeader);
                }
                1 => return Err(ProposeError::Unknown),
                2 => {
                    let late = Duration::from_micros(log.dice.random_range(0..20_000));
                    let group = group.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(late).await;
                        let mut log = group.log.lock().unwrap();
                        if log.term == term {
                            let all = group.append(&mut log, Payload::Batch(batch));
                            group.commit(&mut log, all);
                        }
                    });
                    return Err(ProposeError::Unknown);
                }
                3 => {
                    group.append(&mut log, Payload::Batch(batch));
                    return Err(ProposeError::Unknown);
                }
                4 => {
                    group.append(&mut log, Payload::Batch(batch));
                    group.change_leader(&mut log);
                    return Err(ProposeError::Unknown);
                }
                _ => {}
            }
            let at = group.append(&mut log, Payload::Batch(batch));
            if group.mode == Mode::Immediate {
                group.commit(&mut log, at);
            }
            (at, Duration::from_micros(log.dice.random_range(0..5000)))
        };
        if group.mode != Mode::Immediate {
            tokio::time::sleep(delay).await;
        }
        let mut log = group.log.lock().unwrap();
        if log.entries.get(at - 1).is_none_or(|entry| entry.term != term) {
            return Err(ProposeError::Unknown);
        }
        group.commit(&mut log, at);
        Ok(log.outcomes[&(at as u64)])
    }
}

/// A log that depends on nothing but the seed: sets, clears, ranges, blanks, membership, and batches that fit nowhere.
pub fn made_up_log(seed: u64, count: u64) -> Vec<LogEntry> {
    let mut dice = SmallRng::seed_from_u64(seed);
    let mut version = 0;
    let mut entries = Vec::new();
    for index in 1..=count {
        let term = 1 + index / 50;
        let payload = match dice.random_range(0..10) {
            0 => Payload::Blank,
            1 => Payload::Meta(index.to_be_bytes().to_vec().into()),
            kind => {
                let base_version = if kind == 2 { version + 1 } else { version };
                let mut newest = base_version;
                let transactions: Vec<_> = (0..dice.random_range(1..6))
                    .map(|_| {
                        newest += dice.random_range(1..4);
                        (newest, (0..dice.random_range(0..5)).map(|_| made_up_change(&mut dice)).collect())
                    })
                    .collect();
                if kind != 2 {
                    version = newest;
                }
                Payload::Batch(CommitBatch { term, base_version, transactions }.encode())
            }
        };
        entries.push(LogEntry { index, term, node: 1 + index % 3, payload });
    }
    entries
}

fn made_up_change(dice: &mut SmallRng) -> Change {
    let mut key = || Bytes::from(format!("key{:04}", dice.random_range(0..500)));
    let (one, other) = (key(), key());
    match dice.random_range(0..12) {
        0 => Change::ClearRange(KeyRange { begin: one.clone().min(other.clone()), end: one.max(other) }),
        1 | 2 => Change::Clear(one),
        _ => Change::Set(one, vec![dice.random(); dice.random_range(0..300)].into()),
    }
}

/// The digest and position of a state that has applied all of it.
pub fn reference(entries: &[LogEntry]) -> (u64, Position) {
    let engine = Embedded::open(Arc::new(MemoryBase::new()), Options::default()).unwrap();
    engine.apply(entries.to_vec()).unwrap();
    (engine.state_digest().unwrap(), engine.position())
}
