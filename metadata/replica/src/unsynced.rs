//! What changed in entries that the sync set doesn't have all of yet: of a `geo` volume others than who changed it are told of it only then, for a
//! failover might take it back.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mooseng_schema::Record;
use mooseng_schema::dirent::DirentRecord;
use mooseng_schema::key::fact_of;
use mooseng_schema::log::LogPosition;
use mooseng_schema::session;
use mooseng_store::mvcc::Change;
use mooseng_wire::fact::Fact;
use mooseng_wire::{InodeId, SessionId, VolumeId};

/// Facts that are kept apart; beyond it everything that changed up to there counts as changed.
pub const FACTS_MAX: usize = 100_000;

/// What changed. Of an entry that went only its directory is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Inode(InodeId),
    Entry(InodeId, Bytes),
    SomeEntry(InodeId),
    List(InodeId),
}

/// When it changed.
#[derive(Clone, Copy, Debug)]
struct When {
    /// Last.
    at: LogPosition,
    by: Option<SessionId>,
    /// And last by another one.
    other: Option<LogPosition>,
}

/// The changes that aren't in the whole sync set yet.
#[derive(Clone, Debug, Default)]
pub struct Unsynced {
    on: bool,
    facts: BTreeMap<What, When>,
    /// What each entry changed, in order.
    order: VecDeque<(LogPosition, Vec<What>)>,
    newest: LogPosition,
    synced: LogPosition,
    /// Up to here anything may have changed, by anybody.
    anything: LogPosition,
}

impl Unsynced {
    /// Changes are taken note of, or nothing is held back. What had changed up to `newest`, before they were taken note of, may be anything.
    pub fn turn(&mut self, on: bool, newest: LogPosition) {
        if self.on != on {
            let newest = self.newest.max(newest);
            *self = Self { on, newest, anything: newest, synced: self.synced, ..Self::default() };
        }
    }

    /// The log is another one, or read by another leader: nothing is held back until it is turned on.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// An entry that is about to be seen.
    pub fn note(&mut self, volume: VolumeId, at: LogPosition, changes: &[Change]) {
        self.newest = self.newest.max(at);
        if !self.on || at <= self.synced {
            return;
        }
        let by = changes.iter().find_map(|change| match change {
            Change::Set(key, _) => session::parse_outcome_key(volume, key).ok().map(|(session, _)| session),
            _ => None,
        });
        let mut changed = Vec::new();
        for change in changes {
            let (key, value) = match change {
                Change::Set(key, value) => (key, Some(value)),
                Change::Clear(key) => (key, None),
                Change::ClearRange(range) => (&range.begin, None),
            };
            match fact_of(volume, key) {
                Some(Fact::Inode(inode)) => changed.push(What::Inode(inode)),
                Some(Fact::Directory(directory)) => {
                    let name = value
                        .and_then(|value| DirentRecord::from_value(value).ok())
                        .map(|record| record.name);
                    changed
                        .push(name.map_or(What::SomeEntry(directory), |name| What::Entry(directory, name)));
                    changed.push(What::List(directory));
                }
                Some(Fact::Entry(..) | Fact::Locks(_)) | None => {}
            }
        }
        changed.sort_unstable();
        changed.dedup();
        for what in &changed {
            match self.facts.get_mut(what) {
                Some(when) => {
                    if when.by != by || by.is_none() {
                        when.other = Some(when.at);
                    }
                    (when.at, when.by) = (at, by);
                }
                None => drop(self.facts.insert(what.clone(), When { at, by, other: None })),
            }
        }
        self.order.push_back((at, changed));
        if self.facts.len() > FACTS_MAX {
            self.facts.clear();
            self.order.clear();
            self.anything = at;
        }
    }

    /// The sync set has everything up to here.
    pub fn synced(&mut self, upto: LogPosition) {
        self.synced = self.synced.max(upto);
        while self.order.front().is_some_and(|(at, _)| *at <= upto) {
            let Some((at, changed)) = self.order.pop_front() else { return };
            for what in changed {
                if self.facts.get(&what).is_some_and(|when| when.at <= at) {
                    self.facts.remove(&what);
                }
            }
        }
    }

    /// What the sync set must have before `session` may be told of these facts; none where they may be told.
    pub fn hold<'f>(
        &self,
        facts: impl IntoIterator<Item = &'f Fact>,
        session: Option<SessionId>,
    ) -> Option<LogPosition> {
        if !self.on {
            return None;
        }
        let when = |what: What| {
            let when = self.facts.get(&what)?;
            if session.is_some() && when.by == session { when.other } else { Some(when.at) }
        };
        let of = |fact: &Fact| match fact {
            Fact::Inode(inode) => when(What::Inode(*inode)),
            Fact::Entry(directory, name) => {
                when(What::Entry(*directory, name.clone())).max(when(What::SomeEntry(*directory)))
            }
            Fact::Directory(directory) => when(What::List(*directory)),
            // They aren't in the log.
            Fact::Locks(_) => None,
        };
        let changed = facts.into_iter().filter_map(of).max();
        let anything = (self.anything > self.synced).then_some(self.anything);
        changed.max(anything).filter(|at| *at > self.synced)
    }
}

#[cfg(test)]
mod tests {
    use mooseng_schema::inode;
    use mooseng_wire::{Epoch, RequestNumber};
    use proptest::prelude::*;

    use super::*;

    const VOLUME: VolumeId = VolumeId(0);

    fn at(n: u64) -> LogPosition {
        LogPosition::new(Epoch(1), n)
    }

    fn change(inodes: &[u64], by: u64) -> Vec<Change> {
        let mut changes: Vec<Change> =
            inodes.iter().map(|n| Change::Set(inode::key(InodeId(*n)).into(), Bytes::new())).collect();
        if by > 0 {
            changes.push(Change::Set(
                session::outcome_key(SessionId(by), RequestNumber(1)).into(),
                Bytes::new(),
            ));
        }
        changes
    }

    #[derive(Clone, Debug)]
    enum Event {
        Change(Vec<u64>, u64),
        Synced(u64),
    }

    proptest! {
        /// A fact may be told where all changes of it by others are in the sync set.
        #[test]
        fn held_is_what_others_changed(events in prop::collection::vec(prop_oneof![
            3 => (prop::collection::vec(1_u64..4, 1..3), 0_u64..3).prop_map(|(inodes, by)| Event::Change(inodes, by)),
            1 => (0_u64..4).prop_map(Event::Synced),
        ], 0..40)) {
            let mut unsynced = Unsynced::default();
            unsynced.turn(true, LogPosition::default());
            let (mut all, mut synced) = (Vec::new(), 0_u64);
            for event in events {
                match event {
                    Event::Change(inodes, by) => {
                        let n = all.len() as u64 + 1;
                        unsynced.note(VOLUME, at(n), &change(&inodes, by));
                        all.push((n, inodes, by));
                    }
                    Event::Synced(more) => {
                        synced = (synced + more).min(all.len() as u64);
                        unsynced.synced(at(synced));
                    }
                }
                for inode in 1_u64..4 {
                    for session in 0_u64..3 {
                        let changed = all.iter().rev().find(|(n, inodes, by)| *n > synced && inodes.contains(&inode) && (*by != session || *by == 0));
                        let asked = (session > 0).then_some(SessionId(session));
                        let held = unsynced.hold(&[Fact::Inode(InodeId(inode))], asked);
                        // What one session changed before and behind another's change is held up to the other's, at least.
                        prop_assert_eq!(held, changed.map(|(n, ..)| at(*n)));
                    }
                }
            }
        }
    }

    #[test]
    fn entries_are_told_apart_where_their_names_are_known() {
        use mooseng_schema::dirent::{self, Cookie};
        let mut unsynced = Unsynced::default();
        unsynced.turn(true, LogPosition::default());
        let directory = InodeId(7);
        let entry = |n: u8| Fact::Entry(directory, Bytes::from(vec![n]));
        let record = DirentRecord { name: Bytes::from_static(&[1]), ..DirentRecord::default() };
        let key = Bytes::from(dirent::key(directory, Cookie(5)));
        unsynced.note(VOLUME, at(1), &[Change::Set(key.clone(), record.to_value().into())]);
        assert_eq!(unsynced.hold(&[entry(1)], None), Some(at(1)));
        assert_eq!(unsynced.hold(&[entry(2)], None), None);
        assert_eq!(unsynced.hold(&[Fact::Directory(directory)], None), Some(at(1)));
        assert_eq!(unsynced.hold(&[Fact::Inode(directory)], None), None);
        unsynced.note(VOLUME, at(2), &[Change::Clear(key)]);
        assert_eq!(unsynced.hold(&[entry(2)], None), Some(at(2)), "it may be this one that went");
        unsynced.synced(at(2));
        assert_eq!(unsynced.hold(&[entry(1), entry(2)], None), None);
    }

    #[test]
    fn what_isnt_known_counts_as_changed() {
        let mut unsynced = Unsynced::default();
        unsynced.note(VOLUME, at(3), &change(&[1], 1));
        assert_eq!(unsynced.hold(&[Fact::Inode(InodeId(1))], None), None, "nothing is held back");
        unsynced.turn(true, LogPosition::default());
        assert_eq!(unsynced.hold(&[Fact::Inode(InodeId(2))], Some(SessionId(1))), Some(at(3)));
        let many: Vec<u64> = (0..=FACTS_MAX as u64).collect();
        unsynced.note(VOLUME, at(4), &change(&many, 1));
        assert_eq!(unsynced.hold(&[Fact::Inode(InodeId(1 << 40))], Some(SessionId(1))), Some(at(4)));
        unsynced.synced(at(4));
        assert_eq!(unsynced.hold(&[Fact::Inode(InodeId(1))], None), None);
    }
}
