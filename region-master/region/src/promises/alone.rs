//! Directories that a session has alone, and files that it holds with them.

use std::collections::BTreeSet;

use mooseng_wire::fact::{Fact, Level};
use mooseng_wire::{InodeId, SessionId};

use super::{Held, Hold, PromiseTable, Recall};

/// Files that are recalled along with another one of their directory.
const ALONG_MAX: usize = 256;
/// Entries that are taken back from others, one by one, for a session that is to have their directory alone.
const ENTRIES_TAKEN_MAX: u64 = 1024;

impl PromiseTable {
    /// The same of a directory in which a session has made changes alone that it hasn't told.
    pub fn reclaim_alone(&mut self, session: SessionId, directory: InodeId) -> bool {
        if !self.sessions.contains_key(&session) || self.is_known_elsewhere(session, directory) {
            return false;
        }
        self.hold(&Fact::Directory(directory), session, Level::Exclusive);
        self.hold(&Fact::Inode(directory), session, Level::Exclusive);
        true
    }

    /// Gives a directory to a session alone, if nobody else is promised anything of it: what is known of it was true at `version`.
    pub fn grant_alone(&mut self, session: SessionId, directory: InodeId, version: u64) -> bool {
        let (list, inode) = (Fact::Directory(directory), Fact::Inode(directory));
        if self.is_busy(session, directory) || self.is_known_elsewhere(session, directory) {
            return false;
        }
        // Both or none: with one of them alone others would be kept waiting for nothing.
        let had = self.level(session, &inode);
        if !self.grant(session, &inode, Level::Exclusive, version) {
            return false;
        }
        if !self.grant(session, &list, Level::Exclusive, version) {
            match had {
                Some(level) => self.hold(&inode, session, level),
                None => self.unhold(&inode, session),
            }
            return false;
        }
        true
    }

    /// Which recalls must be answered before a session can have a directory alone: of all that others are promised of it. None where that can't be, or is more than
    /// a directory is worth: [`Self::grant_alone`] will refuse it.
    pub fn known_elsewhere(&mut self, session: SessionId, directory: InodeId) -> Vec<Recall> {
        let all = (directory, SessionId(0))..=(directory, SessionId(u64::MAX));
        let others = self.entries.range(all).filter(|((_, holder), _)| *holder != session);
        let entries: u64 = others.map(|(_, count)| count).sum();
        if self.is_busy(session, directory) || entries > ENTRIES_TAKEN_MAX {
            return Vec::new();
        }
        let mut facts = vec![Fact::Inode(directory), Fact::Directory(directory)];
        if entries > 0 {
            let first = Fact::Entry(directory, Default::default());
            let of = |fact: &&Fact| fact.directory() == Some(directory);
            facts.extend(self.facts.range(first..).map(|(fact, _)| fact).take_while(of).cloned());
        }
        facts.iter().flat_map(|fact| self.recall_from_others(session, fact)).collect()
    }

    /// Whether a directory is being changed, or to be given back by this session.
    fn is_busy(&self, session: SessionId, directory: InodeId) -> bool {
        [Fact::Directory(directory), Fact::Inode(directory)].iter().any(|fact| {
            self.facts.get(fact).is_some_and(|held| {
                let recalled = |hold: &Hold| hold.session == session && hold.recall.is_some();
                held.changing > 0 || held.holds.iter().any(recalled)
            })
        })
    }

    /// Whether another session is promised anything of a directory: its attributes, its list, an entry.
    fn is_known_elsewhere(&self, session: SessionId, directory: InodeId) -> bool {
        let elsewhere = |fact: &Fact| {
            self.facts.get(fact).is_some_and(|held| held.holds.iter().any(|h| h.session != session))
        };
        let all = (directory, SessionId(0))..=(directory, SessionId(u64::MAX));
        elsewhere(&Fact::Inode(directory))
            || elsewhere(&Fact::Directory(directory))
            || self.entries.range(all).any(|((_, holder), _)| *holder != session)
    }

    /// Whether a session has a directory alone.
    pub fn has_alone(&self, session: SessionId, directory: InodeId) -> bool {
        self.level(session, &Fact::Directory(directory)) == Some(Level::Exclusive)
    }

    /// Gives a file of which nobody else is promised anything to a session that has its directory alone: what is known of it was true at `version`. It is recalled along
    /// with others of the directory.
    pub fn grant_with(
        &mut self,
        session: SessionId,
        directory: InodeId,
        file: InodeId,
        version: u64,
    ) -> bool {
        let given = self.has_alone(session, directory)
            && self.grant(session, &Fact::Inode(file), Level::Exclusive, version);
        if given {
            self.together.add(session, directory, file);
        }
        given
    }

    /// Recalls what sessions hold together with these: who looks at one of them may look at all.
    pub(super) fn along(&mut self, mut recalls: Vec<Recall>) -> Vec<Recall> {
        let mut files = BTreeSet::new();
        for recall in &recalls {
            if let Fact::Inode(file) = recall.fact {
                let others = self.together.others(recall.session, file).take(ALONG_MAX);
                files.extend(others.map(|other| (recall.session, other)));
            }
        }
        for (session, file) in files.into_iter().take(ALONG_MAX) {
            let fact = Fact::Inode(file);
            let holds =
                |held: &Held| held.holds.iter().any(|hold| hold.session == session && hold.recall.is_none());
            if self.facts.get(&fact).is_some_and(holds) {
                recalls.extend(self.recall(&fact, session, &fact, Some(Level::Shared)));
            }
        }
        recalls
    }

    /// Who else has a directory alone.
    pub(super) fn alone_elsewhere(&self, session: SessionId, directory: InodeId) -> Option<SessionId> {
        let held = self.facts.get(&Fact::Directory(directory))?;
        held.holds.iter().find(|h| h.session != session && h.level == Level::Exclusive).map(|h| h.session)
    }

    /// Which recalls must be answered before `session` hears an answer that rests on these facts, whatever it says: what others have alone, or
    /// hold exclusively, may be otherwise by now.
    pub fn hidden(&mut self, session: SessionId, looked: &BTreeSet<Fact>) -> Vec<Recall> {
        let mut recalls = Vec::new();
        let mut asked = BTreeSet::new();
        for fact in looked {
            let directory = match fact {
                Fact::Inode(inode) | Fact::Entry(inode, _) | Fact::Directory(inode) | Fact::Locks(inode) => {
                    *inode
                }
            };
            if asked.insert(directory)
                && let Some(from) = self.alone_elsewhere(session, directory)
            {
                let list = Fact::Directory(directory);
                recalls.extend(self.recall(&list, from, &list, Some(Level::Shared)));
            }
            let keep = match fact {
                Fact::Inode(_) => Some(Level::Shared),
                // Of what is on record, and so known to all, nothing is left to promise.
                Fact::Locks(_) => None,
                Fact::Entry(..) | Fact::Directory(_) => continue,
            };
            let exclusive = |hold: &&Hold| hold.session != session && hold.level == Level::Exclusive;
            let from = self.facts.get(fact).and_then(|held| held.holds.iter().find(exclusive));
            if let Some(from) = from.map(|hold| hold.session) {
                recalls.extend(self.recall(fact, from, fact, keep));
            }
        }
        self.along(recalls)
    }

    /// Which recalls must be answered before `session` hears that an inode isn't there that it asks for by its number: each other session that has
    /// a directory alone may have made it, and not told. Who answers one of them has told everything.
    pub fn untold(&mut self, session: SessionId) -> Vec<Recall> {
        let others: Vec<(SessionId, InodeId)> = self
            .alone
            .range(SessionId::all_of(session.volume()))
            .filter(|(holder, _)| **holder != session)
            .filter_map(|(holder, directories)| Some((*holder, *directories.first()?)))
            .collect();
        others
            .into_iter()
            .filter_map(|(from, directory)| {
                let list = Fact::Directory(directory);
                self.recall(&list, from, &list, Some(Level::Shared))
            })
            .collect()
    }

    /// Keeps account of who has a directory alone, and files with it.
    pub(super) fn note_alone(&mut self, fact: &Fact, session: SessionId) {
        if let Fact::Inode(file) = fact
            && self.together.has(session, *file)
            && self.level(session, fact) != Some(Level::Exclusive)
        {
            self.together.remove(session, *file);
        }
        let Fact::Directory(directory) = fact else { return };
        if self.level(session, fact) == Some(Level::Exclusive) {
            self.alone.entry(session).or_default().insert(*directory);
        } else if let Some(directories) = self.alone.get_mut(&session) {
            directories.remove(directory);
            if directories.is_empty() {
                self.alone.remove(&session);
            }
        }
    }
}
