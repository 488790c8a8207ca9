//! How many inodes all sessions together hold open.

use std::collections::BTreeMap;

/// Opens, counted once for each session that holds the inode open.
#[derive(Debug, Default)]
pub(super) struct OpenCounts {
    all: usize,
    of: BTreeMap<String, usize>,
}

impl OpenCounts {
    /// Those of all sessions.
    pub fn all(&self) -> usize {
        self.all
    }

    /// Those of an identity's sessions.
    pub fn of(&self, identity: &str) -> usize {
        self.of.get(identity).copied().unwrap_or(0)
    }

    /// A session of that identity has so many more.
    pub fn add(&mut self, identity: &str, opens: usize) {
        if opens == 0 {
            return;
        }
        self.all += opens;
        match self.of.get_mut(identity) {
            Some(count) => *count += opens,
            None => drop(self.of.insert(identity.to_owned(), opens)),
        }
    }

    /// A session of that identity has so many fewer.
    pub fn take(&mut self, identity: &str, opens: usize) {
        let Some(count) = self.of.get_mut(identity) else { return };
        *count -= opens;
        self.all -= opens;
        if *count == 0 {
            self.of.remove(identity);
        }
    }
}
