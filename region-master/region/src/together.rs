//! Files that a session holds exclusively because it has their directory alone and changes names in it: asked for many at a time, and given back together
//! as soon as somebody else asks for one of them, who may look at all of them one after the other. Bookkeeping alone: what is held is [`crate::promises`]'.

use std::collections::{BTreeMap, BTreeSet};

use mooseng_wire::{InodeId, SessionId};

/// Which files sessions hold with their directories.
#[derive(Debug, Default)]
pub(crate) struct Together {
    directories: BTreeMap<(SessionId, InodeId), InodeId>,
    files: BTreeSet<(SessionId, InodeId, InodeId)>,
}

impl Together {
    pub fn add(&mut self, session: SessionId, directory: InodeId, file: InodeId) {
        self.remove(session, file);
        self.directories.insert((session, file), directory);
        self.files.insert((session, directory, file));
    }

    /// The session doesn't hold it so any more.
    pub fn remove(&mut self, session: SessionId, file: InodeId) {
        if let Some(directory) = self.directories.remove(&(session, file)) {
            self.files.remove(&(session, directory, file));
        }
    }

    pub fn has(&self, session: SessionId, file: InodeId) -> bool {
        self.directories.contains_key(&(session, file))
    }

    /// The others of the directory, those behind the file first.
    pub fn others(&self, session: SessionId, file: InodeId) -> impl Iterator<Item = InodeId> + '_ {
        let directory = self.directories.get(&(session, file)).copied();
        directory.into_iter().flat_map(move |directory| {
            let place = |file: InodeId| (session, directory, file);
            let behind = self.files.range(place(file)..=place(InodeId(u64::MAX))).skip(1);
            let before = self.files.range(place(InodeId(0))..place(file));
            behind.chain(before).map(|(_, _, file)| *file)
        })
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.directories.is_empty() && self.files.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_directory_and_session_go_together() {
        let (a, b) = (SessionId(1), SessionId(2));
        let mut together = Together::default();
        for file in [4, 5, 6] {
            together.add(a, InodeId(2), InodeId(file));
        }
        together.add(a, InodeId(3), InodeId(7));
        together.add(b, InodeId(2), InodeId(8));
        let others = |t: &Together, s, f| t.others(s, InodeId(f)).map(|i| i.0).collect::<Vec<_>>();
        assert_eq!(others(&together, a, 5), [6, 4]);
        assert_eq!(others(&together, a, 7), [] as [u64; 0]);
        assert_eq!(others(&together, b, 5), [] as [u64; 0], "another session's");
        // It was moved there.
        together.add(a, InodeId(3), InodeId(4));
        assert_eq!(others(&together, a, 5), [6]);
        assert_eq!(others(&together, a, 7), [4]);
        for (session, file) in [(a, 4), (a, 5), (a, 6), (a, 7), (b, 8), (b, 9)] {
            together.remove(session, InodeId(file));
        }
        assert!(together.is_empty());
    }
}
