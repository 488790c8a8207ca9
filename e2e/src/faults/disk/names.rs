//! Directories, and which of their unflushed names survive a power loss: a prefix of the changes, in the order in which they were made, as
//! on filesystems with a journal. A rename is one change, also between two directories.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

/// A file's or directory's number.
pub type Id = u64;
/// The root directory's.
pub const ROOT: Id = 1;

/// One name gets another meaning, or none.
type Step = (Id, OsString, Option<Id>);

/// Names of directories.
type Directories = BTreeMap<Id, BTreeMap<OsString, Id>>;

/// All directories.
#[derive(Debug)]
pub struct Names {
    now: Directories,
    flushed: Directories,
    /// Changes that aren't flushed, oldest first.
    pending: Vec<Vec<Step>>,
}

impl Default for Names {
    fn default() -> Self {
        let root = Directories::from([(ROOT, BTreeMap::new())]);
        Self { now: root.clone(), flushed: root, pending: Vec::new() }
    }
}

impl Names {
    /// The names in a directory; none if it isn't one.
    pub fn of(&self, dir: Id) -> Option<&BTreeMap<OsString, Id>> {
        self.now.get(&dir)
    }

    /// What a name means.
    pub fn get(&self, dir: Id, name: &OsStr) -> Option<Id> {
        self.now.get(&dir)?.get(name).copied()
    }

    /// A directory comes into being, without a name as yet.
    pub fn add_directory(&mut self, id: Id) {
        self.now.insert(id, BTreeMap::new());
        self.flushed.insert(id, BTreeMap::new());
    }

    /// Changes names, together or not at all.
    pub fn change(&mut self, steps: Vec<Step>) {
        for step in &steps {
            apply(&mut self.now, step);
        }
        self.pending.push(steps);
    }

    /// Flushes a directory. What was changed together with its names, and before that in the same directories, is flushed with it.
    pub fn flush(&mut self, dir: Id) {
        let mut dirs = BTreeSet::from([dir]);
        loop {
            let before = dirs.len();
            for change in &self.pending {
                if change.iter().any(|(d, _, _)| dirs.contains(d)) {
                    dirs.extend(change.iter().map(|(d, _, _)| *d));
                }
            }
            if dirs.len() == before {
                break;
            }
        }
        let (flushed, left) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|change: &Vec<Step>| change.iter().any(|(d, _, _)| dirs.contains(d)));
        self.pending = left;
        for change in Vec::from_iter::<Vec<Vec<Step>>>(flushed) {
            change.iter().for_each(|step| apply(&mut self.flushed, step));
        }
    }

    /// Changes that a power loss may undo.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The power goes: of the pending changes, the `kept` oldest survive. Answers the names that the others were about.
    pub fn lose_power(&mut self, kept: usize) -> Vec<OsString> {
        let mut pending = std::mem::take(&mut self.pending);
        let lost = pending.split_off(kept.min(pending.len()));
        for change in &pending {
            change.iter().for_each(|step| apply(&mut self.flushed, step));
        }
        self.now = self.flushed.clone();
        lost.into_iter().flatten().map(|(_, name, _)| name).collect()
    }

    /// Every file and directory that has a name, or may get one back by a power loss.
    pub fn referenced(&self) -> BTreeSet<Id> {
        let named =
            |dirs: &Directories| -> Vec<Id> { dirs.values().flat_map(|d| d.values().copied()).collect() };
        let mut all = BTreeSet::from([ROOT]);
        all.extend(named(&self.now));
        all.extend(named(&self.flushed));
        all.extend(self.pending.iter().flatten().filter_map(|(_, _, id)| *id));
        all
    }

    /// Forgets a directory that is referenced no more.
    pub fn forget(&mut self, id: Id) {
        self.now.remove(&id);
        self.flushed.remove(&id);
    }
}

fn apply(dirs: &mut Directories, (dir, name, id): &Step) {
    let Some(names) = dirs.get_mut(dir) else { return };
    match id {
        Some(id) => names.insert(name.clone(), *id),
        None => names.remove(name),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: &Names, dir: Id) -> Vec<String> {
        n.of(dir).unwrap().keys().map(|k| k.to_string_lossy().into_owned()).collect()
    }

    fn set(n: &mut Names, dir: Id, name: &str, id: Id) {
        n.change(vec![(dir, name.into(), Some(id))]);
    }

    #[test]
    fn a_prefix_survives() {
        let mut n = Names::default();
        set(&mut n, ROOT, "a", 2);
        n.flush(ROOT);
        set(&mut n, ROOT, "b", 3);
        n.change(vec![(ROOT, "a".into(), None), (ROOT, "c".into(), Some(2))]);
        assert_eq!(names(&n, ROOT), ["b", "c"]);
        assert_eq!(n.pending(), 2);
        n.lose_power(1);
        assert_eq!(names(&n, ROOT), ["a", "b"]);
        assert_eq!(n.referenced(), BTreeSet::from([ROOT, 2, 3]));
    }

    #[test]
    fn a_rename_between_directories_is_flushed_by_either_with_what_went_before() {
        let mut n = Names::default();
        n.add_directory(10);
        n.add_directory(11);
        set(&mut n, ROOT, "x", 10);
        set(&mut n, ROOT, "y", 11);
        n.flush(ROOT);
        set(&mut n, 10, "f", 3);
        set(&mut n, ROOT, "unrelated", 4);
        n.change(vec![(10, "f".into(), None), (11, "f".into(), Some(3))]);
        n.flush(11);
        n.lose_power(0);
        assert_eq!((names(&n, 10).len(), names(&n, 11)), (0, vec!["f".to_owned()]));
        assert_eq!(names(&n, ROOT), ["x", "y"]);
    }
}
