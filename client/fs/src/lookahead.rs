//! Which directories are read as a whole because one name after the other is looked up in them. No sending.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Unknown names asked for until the directory is read: one may be all that somebody wants to know.
const ASKED_MIN: u32 = 3;
/// And within this time.
const WITHIN: Duration = Duration::from_secs(1);
/// A directory isn't read again sooner: somebody else may be changing it all the time.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Entries read of one directory at most: as many as are kept of one.
const ENTRIES_MAX: usize = 50_000;
/// Entries read for each name that was asked for in the meantime, beyond the first page.
const ENTRIES_PER_NAME: usize = 512;
/// Directories remembered.
const DIRECTORIES_MAX: usize = 256;

#[derive(Debug)]
struct Directory {
    since: Instant,
    asked: u32,
    /// Entries read by now, while it is being read.
    reading: Option<usize>,
    not_before: Instant,
}

/// The directories in which names are looked up.
#[derive(Debug, Default)]
pub(crate) struct LookAhead(Mutex<BTreeMap<u64, Directory>>);

impl LookAhead {
    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Directory>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An unknown name was asked for. True if the caller is to read the directory now.
    pub fn asked(&self, directory: u64, now: Instant) -> bool {
        self.map(|map| {
            if map.len() >= DIRECTORIES_MAX && !map.contains_key(&directory) {
                map.retain(|_, d| d.reading.is_some() || now.saturating_duration_since(d.since) < WITHIN);
                if map.len() >= DIRECTORIES_MAX {
                    return false;
                }
            }
            let fresh = || Directory { since: now, asked: 0, reading: None, not_before: now };
            let known = map.entry(directory).or_insert_with(fresh);
            if known.reading.is_none() && now.saturating_duration_since(known.since) > WITHIN {
                (known.since, known.asked) = (now, 0);
            }
            known.asked += 1;
            let begin = known.reading.is_none() && known.asked >= ASKED_MIN && now >= known.not_before;
            if begin {
                (known.reading, known.asked) = (Some(0), 0);
            }
            begin
        })
    }

    /// So many more entries were read. True if the next page is wanted, too: a few names out of a great directory don't pay for all of it.
    pub fn go_on(&self, directory: u64, entries: usize) -> bool {
        self.map(|map| {
            let Some(known) = map.get_mut(&directory) else { return false };
            let read = known.reading.unwrap_or(0) + entries;
            known.reading = Some(read);
            read < ENTRIES_MAX && read <= ENTRIES_PER_NAME * (2 + known.asked as usize)
        })
    }

    /// It is read, as far as it was to be.
    pub fn ended(&self, directory: u64, now: Instant) {
        self.map(|map| {
            if let Some(known) = map.get_mut(&directory) {
                (known.reading, known.asked, known.since) = (None, 0, now);
                known.not_before = now + AGAIN_AFTER;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_once_several_names_were_asked_for_and_not_again_at_once() {
        let (ahead, start) = (LookAhead::default(), Instant::now());
        let second = Duration::from_secs(1);
        // Now and then one isn't several.
        for n in 0..10 {
            assert!(!ahead.asked(1, start + second * 2 * n));
        }
        let now = start + second * 60;
        assert!(!ahead.asked(1, now) && !ahead.asked(1, now) && ahead.asked(1, now));
        assert!((0..10).all(|_| !ahead.asked(1, now)), "it is being read");
        ahead.ended(1, now);
        assert!((0..10).all(|_| !ahead.asked(1, now + second)));
        assert!((0..3).any(|_| ahead.asked(1, now + second * 3)));
    }

    #[test]
    fn a_great_directory_is_read_as_far_as_names_are_asked_for() {
        let (ahead, now) = (LookAhead::default(), Instant::now());
        assert!((0..3).any(|_| ahead.asked(1, now)));
        assert!(ahead.go_on(1, 512) && ahead.go_on(1, 512) && !ahead.go_on(1, 512));
        ahead.asked(1, now);
        assert!(!ahead.go_on(1, 512));
        for _ in 0..1000 {
            ahead.asked(1, now);
        }
        assert!((0..90).all(|_| ahead.go_on(1, 512)));
        assert!((0..10).any(|_| !ahead.go_on(1, 512)), "no more than is kept");
    }

    #[test]
    fn no_more_directories_are_remembered_than_that() {
        let (ahead, now) = (LookAhead::default(), Instant::now());
        for directory in 0..10_000 {
            ahead.asked(directory, now);
        }
        assert!(ahead.map(|map| map.len()) <= DIRECTORIES_MAX);
        assert!((0..3).any(|_| ahead.asked(20_000, now + WITHIN * 2)));
    }
}
