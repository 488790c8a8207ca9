//! What the kernel was told to keep, and which of that it may not have taken in yet.
//!
//! An answer is taken in by the thread that asked, once that runs again. The kernel numbers its invalidations, so that an answer to a LOOKUP or
//! GETATTR that came before one is void - if it has the inode by then. Two kinds of answers aren't covered:
//!
//! - the one with which it *meets* an inode: there is nothing yet that could be invalidated, and it says ENOENT;
//! - the one to a request that *made* an entry (CREATE, MKDIR, LINK...): it is believed whatever came in between.
//!
//! The second kind is taken in under the directory's lock, exclusively held: once another request that needs this lock has come, or
//! somebody else has had the lock, it is done.
//!
//! Each answer of both kinds counts in the kernel as one lookup of the inode once it is taken in, and when the kernel drops the inode it gives
//! them back (FORGET). Where all were given back, nothing is on its way.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use mooseng_wire::{InodeId, LOCAL_ID_BITS, VolumeId};
use tokio::time::Instant;

/// How often it is looked what time has taken from the kernel.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A thread whose answer was written so long ago has run since.
pub(crate) const TAKEN_IN_WITHIN: Duration = Duration::from_secs(1);
/// Directories whose last change is remembered. Of others a change proves nothing.
const CHANGED_MAX: usize = 4096;
/// Inodes of the kernel's of which lookups are counted: more than its memory holds on most hosts.
const LOOKUPS_MAX: usize = 4 << 20;

/// The ids of a volume's inodes.
pub(crate) fn inodes_of(volume: VolumeId) -> RangeInclusive<u64> {
    let first = InodeId::new(volume, 0).0;
    first..=first | ((1 << LOCAL_ID_BITS) - 1)
}

/// How the kernel was told of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// It asked about an inode that it has.
    Known,
    /// It looked up a name, and may not have had the inode.
    Met,
    /// It had an entry made in this directory.
    Made(u64),
}

/// What may not be taken in yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fresh {
    /// Since when it is on its way.
    pub since: Instant,
    /// The directory in which the entry was made; none for one that was looked up.
    pub made_in: Option<u64>,
}

#[derive(Debug)]
struct Kept {
    until: Instant,
    /// Since when an answer that isn't only about a known inode is on its way, and where its entry was made; 0 nowhere.
    fresh: Option<Instant>,
    made_in: u64,
}

/// What the kernel was told to keep, and until when.
#[derive(Debug)]
pub(crate) struct Told {
    most: usize,
    kept: BTreeMap<u64, Kept>,
    swept: Option<Instant>,
    /// Answers from before may have been written as late as this.
    late: Option<Instant>,
    /// When a request came for which the kernel holds the directory's lock exclusively.
    changed: BTreeMap<u64, Instant>,
    /// Answers that count as a lookup, and that the kernel hasn't given back.
    lookups: BTreeMap<u64, u64>,
    /// More inodes than those were looked up: of others it isn't known.
    uncounted: bool,
}

impl Told {
    /// Remembers so many inodes at most.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            kept: BTreeMap::new(),
            swept: None,
            late: None,
            changed: BTreeMap::new(),
            lookups: BTreeMap::new(),
            uncounted: false,
        }
    }

    /// Remembers an inode. Answers for how long the kernel may be told to keep it: zero where that can't be remembered.
    pub fn add(&mut self, inode: u64, validity: Duration, how: How, now: Instant) -> Duration {
        if self.kept.len() >= self.most && !self.kept.contains_key(&inode) {
            if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_EVERY) {
                self.swept = Some(now);
                self.kept.retain(|_, kept| kept.until > now);
            }
            if self.kept.len() >= self.most {
                return Duration::ZERO;
            }
        }
        let kept = self.kept.entry(inode).or_insert(Kept { until: now, fresh: None, made_in: 0 });
        kept.until = kept.until.max(now + validity);
        if how != How::Known {
            let over = kept.fresh.is_none_or(|fresh| now.saturating_duration_since(fresh) > TAKEN_IN_WITHIN);
            match how {
                How::Made(directory) => kept.made_in = directory,
                // A lookup says nothing about the answer that made it.
                _ if over => kept.made_in = 0,
                _ => {}
            }
            kept.fresh = Some(now);
        }
        validity
    }

    /// An answer is about to leave that the kernel counts as a lookup.
    pub fn looked_up(&mut self, inode: u64) {
        if self.lookups.len() >= LOOKUPS_MAX && !self.lookups.contains_key(&inode) {
            self.uncounted = true;
            return;
        }
        *self.lookups.entry(inode).or_default() += 1;
    }

    /// The kernel gives lookups back.
    pub fn given_back(&mut self, inode: u64, lookups: u64) {
        if let Some(count) = self.lookups.get_mut(&inode) {
            *count = count.saturating_sub(lookups);
            if *count == 0 {
                self.lookups.remove(&inode);
            }
        }
    }

    /// Whether an answer about the inode may be on its way, or taken in and not dropped since.
    pub fn may_be_known(&self, inode: u64) -> bool {
        self.uncounted || self.lookups.contains_key(&inode)
    }

    /// An answer was written long after its inode was added.
    pub fn was_late(&mut self, now: Instant) {
        self.late = Some(now);
    }

    /// A request came for which the kernel holds this directory's lock exclusively.
    pub fn changing(&mut self, directory: u64, now: Instant) {
        if let Some(at) = self.changed.get_mut(&directory) {
            *at = now;
            return;
        }
        if self.changed.len() >= CHANGED_MAX {
            self.changed.retain(|_, at| now.saturating_duration_since(*at) <= TAKEN_IN_WITHIN);
        }
        if self.changed.len() < CHANGED_MAX {
            self.changed.insert(directory, now);
        }
    }

    /// Whether such a request has come since.
    pub fn has_changed_since(&self, directory: u64, since: Instant) -> bool {
        self.changed.get(&directory).is_some_and(|at| *at > since)
    }

    /// Takes an inode out. None if the kernel wasn't told of it; else what of it may still be on its way.
    #[allow(clippy::option_option, reason = "whether it was told, and whether that is on its way")]
    pub fn take(&mut self, inode: u64, now: Instant) -> Option<Option<Fresh>> {
        let kept = self.kept.remove(&inode)?;
        Some(self.fresh(&kept, now))
    }

    /// Takes all of a volume out.
    pub fn take_all(&mut self, volume: VolumeId, now: Instant) -> Vec<(u64, Option<Fresh>)> {
        let of_it = self.kept.extract_if(inodes_of(volume), |_, _| true);
        let kept: Vec<(u64, Kept)> = of_it.collect();
        kept.into_iter().map(|(inode, kept)| (inode, self.fresh(&kept, now))).collect()
    }

    fn fresh(&self, kept: &Kept, now: Instant) -> Option<Fresh> {
        let added = kept.fresh?;
        // That some answer was late must not make all of them seem older than a change that proves them taken in.
        let since = self.late.map_or(added, |late| late.max(added));
        let fresh = now.saturating_duration_since(since) <= TAKEN_IN_WITHIN;
        fresh.then_some(Fresh { since, made_in: (kept.made_in != 0).then_some(kept.made_in) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_cant_be_remembered_isnt_told_until_time_has_made_room() {
        let (mut told, start) = (Told::new(2), Instant::now());
        assert_eq!(told.add(1, SECOND, How::Known, start), SECOND);
        assert_eq!(told.add(2, SECOND * 9, How::Known, start), SECOND * 9);
        assert_eq!(told.add(3, SECOND, How::Known, start), Duration::ZERO);
        assert_eq!(told.add(1, SECOND * 2, How::Known, start), SECOND * 2, "it is remembered already");
        assert_eq!(
            told.add(3, SECOND, How::Known, start + SECOND * 3),
            SECOND,
            "the first one's time is over"
        );
        assert_eq!(told.kept.len(), 2);
    }

    #[test]
    fn an_answer_is_on_its_way_for_a_while() {
        let (mut told, start) = (Told::new(9), Instant::now());
        let fresh = |made_in| Some(Some(Fresh { since: start, made_in }));
        for (inode, how) in [(1, How::Known), (2, How::Met), (3, How::Made(7)), (4, How::Met)] {
            told.add(inode, SECOND * 9, how, start);
        }
        // What it asks about then, it may know by another name.
        told.add(2, SECOND, How::Known, start + SECOND / 2);
        assert_eq!(told.take(1, start), Some(None));
        assert_eq!(told.take(2, start + SECOND), fresh(None));
        assert_eq!(told.take(3, start + SECOND), fresh(Some(7)));
        assert_eq!(told.take(4, start + SECOND * 2), Some(None), "that thread has run");
        assert_eq!(told.take(4, start), None);
        told.add(5, SECOND, How::Met, start);
        told.was_late(start + SECOND * 5);
        let late = Fresh { since: start + SECOND * 5, made_in: None };
        assert_eq!(told.take_all(VolumeId(0), start + SECOND * 6), [(5, Some(late))]);
    }

    #[test]
    fn a_lookup_doesnt_hide_that_an_entry_was_made() {
        let (mut told, start) = (Told::new(9), Instant::now());
        told.add(1, SECOND, How::Made(7), start);
        told.add(1, SECOND, How::Met, start + SECOND / 2);
        let fresh = told.take(1, start + SECOND).flatten().map(|fresh| fresh.made_in);
        assert_eq!(fresh, Some(Some(7)));
    }

    #[test]
    fn nothing_is_on_its_way_once_the_kernel_has_given_all_lookups_back() {
        let mut told = Told::new(9);
        assert!(!told.may_be_known(1));
        told.looked_up(1);
        told.looked_up(1);
        told.given_back(1, 1);
        assert!(told.may_be_known(1), "one answer isn't taken in, or the inode is there");
        told.given_back(1, 1);
        assert!(!told.may_be_known(1));
        told.given_back(1, 7);
        assert!(!told.may_be_known(1));
    }

    #[test]
    fn no_more_directories_are_remembered_than_that() {
        let (mut told, start) = (Told::new(9), Instant::now());
        for directory in 0..2 * CHANGED_MAX as u64 {
            told.changing(directory, start);
        }
        assert_eq!(told.changed.len(), CHANGED_MAX);
        told.changing(1 << 20, start + SECOND * 2);
        assert_eq!(told.changed.len(), 1);
        assert!(told.has_changed_since(1 << 20, start) && !told.has_changed_since(1, start));
    }
}
