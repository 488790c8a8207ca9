//! Sequences of changes that one mount makes in a directory of its own, and what others may see of them.
//!
//! A sequence belongs to one home epoch: once its writer sees another one, it asks fsync whether anything was taken back, and begins the next
//! sequence in a new directory. Step after step it makes a name and removes an older one, so that a listing tells how many steps it shows; and it
//! writes a file whose record counts up. What must hold of what is seen:
//! - It is a state that the sequence was in: names come and go in order (a *prefix* of the changes), a record is one that was written, whole.
//! - No mount sees less of it than it saw before; unless a failover took back what the mount had changed itself, or, of a `region` volume, anything.
//! - At home a look shows everything that was acknowledged before it, and all that was seen there before.
//! - A home that is moved takes everything along: epochs that follow each other so are one.
//! - Everything up to a good fsync survives, in a `region` volume as long as the epoch lasts; and what a mount other than the writer's has seen of a
//!   `geo` volume does, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Names that are there at a time.
pub const WINDOW: u64 = 5;

/// What counts up: steps of the names, or the record.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    /// Begun.
    pub issued: u64,
    /// Answered well.
    pub acked: u64,
    /// Up to which fsync has answered well, and the newest epoch in which one did.
    pub synced: (u64, u64),
    /// An fsync has said that something was lost: later ones say nothing of what came before.
    pub told_lost: bool,
    /// The most that others than the writer's mount have seen.
    pub shown: u64,
    /// What was answered for.
    pub places: Vec<Answered>,
    /// What each mount saw last, and in which newest epoch.
    seen: BTreeMap<u8, (u64, u64)>,
    /// What was seen at home last, and in which epoch.
    at_home: (u64, u64),
}

/// A number that was answered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answered {
    /// The number.
    pub n: u64,
    /// Up to where of the log it may lie: epoch and version.
    pub place: (u64, u64),
    /// When that was.
    pub at: Duration,
}

/// What was known of a counter when a look at it began.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    acked: u64,
    synced: (u64, u64),
    shown: u64,
    seen: (u64, u64),
    at_home: (u64, u64),
}

/// A look at a counter.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// The mount that looked.
    pub mount: u8,
    /// Whether it is the writer's.
    pub own: bool,
    /// What it saw.
    pub value: u64,
    /// The epoch as whose home its region has answered, if it did.
    pub at_home: Option<u64>,
    /// The newest epoch.
    pub epoch: u64,
}

/// What is wrong with a look.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// What.
    pub what: String,
    /// A record that its mount had in memory only is lost with the mount's lease: then nothing is wrong.
    pub unless_lapsed: bool,
}

impl Wrong {
    fn in_any_case(what: String) -> Self {
        Self { what, unless_lapsed: false }
    }
}

impl Counter {
    /// What is known of it now, for a look by that mount.
    pub fn before(&self, mount: u8) -> Before {
        Before {
            acked: self.acked,
            synced: self.synced,
            shown: self.shown,
            seen: self.seen.get(&mount).copied().unwrap_or_default(),
            at_home: self.at_home,
        }
    }

    /// Takes note of a look. An error says what is wrong with it. `kept`: whether nothing was lost from one epoch to another.
    pub fn look(
        &mut self,
        before: Before,
        look: Look,
        (of_epoch, geo): (u64, bool),
        kept: impl Fn(u64, u64) -> bool,
    ) -> Result<(), Wrong> {
        let Look { mount, own, value, epoch, .. } = look;
        if value > self.issued {
            return Err(Wrong::in_any_case(format!("shows {value}, though {} were begun", self.issued)));
        }
        let (seen, seen_in) = before.seen;
        if value < seen && (kept(seen_in, epoch) || (geo && !own)) {
            let what = format!(
                "goes back in time: it showed {seen} in epoch {seen_in}, and {value} in epoch {epoch}"
            );
            return Err(Wrong { what, unless_lapsed: own });
        }
        self.seen.insert(mount, (value, epoch));
        if !own {
            self.shown = self.shown.max(value);
        }
        let Some(home) = look.at_home else { return Ok(()) };
        if kept(of_epoch, home) && value < before.acked {
            let what = format!("shows {value} at home, though {} were acknowledged before", before.acked);
            return Err(Wrong { what, unless_lapsed: true });
        }
        let (synced, synced_in) = before.synced;
        if value < synced && (geo || kept(synced_in, home)) {
            return Err(Wrong::in_any_case(format!(
                "shows {value} at home in epoch {home}, though fsync was answered for {synced}, last in epoch {synced_in}"
            )));
        }
        // The changer's own host may show the old value until its answer is there; at home, that is, not elsewhere, nobody else sees the new one before.
        if geo && value < before.shown && !(own && kept(of_epoch, home)) {
            return Err(Wrong::in_any_case(format!(
                "shows {value} at home in epoch {home}, though others saw {} before",
                before.shown
            )));
        }
        let (seen_at_home, seen_in) = before.at_home;
        if kept(seen_in, home) && value < seen_at_home {
            let what = format!("shows {value} at home, where {seen_at_home} were seen in epoch {seen_in}");
            return Err(Wrong { what, unless_lapsed: true });
        }
        self.at_home = (value, home);
        Ok(())
    }

    /// Fsync has answered well for that many.
    pub fn sync(&mut self, upto: u64, epoch: u64) {
        if self.told_lost {
            return;
        }
        self.synced = (self.synced.0.max(upto), self.synced.1.max(epoch));
    }
}

/// A sequence.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// The mount that makes it.
    pub writer: u8,
    /// The home epoch in which it is made.
    pub epoch: u64,
    /// Its directory's path.
    pub path: String,
    /// Its directory.
    pub directory: u64,
    /// Its file.
    pub file: u64,
    /// How often the mount's lease had lapsed before.
    pub lapses: u64,
    /// How many names that nobody was told of the mount had lost before.
    pub lost: u64,
    /// Of how many of them the directory's descriptor has heard.
    pub heard: Arc<AtomicU64>,
    /// Steps of the names.
    pub names: Counter,
    /// Records.
    pub records: Counter,
    /// Nothing is added to it any more.
    pub over: bool,
}

/// A name of a sequence.
pub fn name(number: u64) -> String {
    format!("{number:06}")
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes this name.
    Make(u64),
    /// Removes this one.
    Remove(u64),
}

/// The steps, from 1: so many names are made as there are to be, then one is made and the oldest one removed, by turns.
pub fn step(step: u64) -> Step {
    match step.checked_sub(WINDOW) {
        Some(later) if later > 0 && later % 2 == 0 => Step::Remove(later / 2),
        Some(later) if later > 0 => Step::Make(WINDOW + later.div_ceil(2)),
        _ => Step::Make(step),
    }
}

/// How many steps a listing shows; none if the sequence never was so.
pub fn steps_shown(listed: &BTreeSet<u64>) -> Option<u64> {
    let Some((&first, &last)) = listed.first().zip(listed.last()) else { return Some(0) };
    let there = listed.len() as u64;
    if there != last - first + 1 {
        return None;
    }
    match first - 1 {
        0 if there <= WINDOW => Some(last),
        removed if there == WINDOW => Some(WINDOW + 2 * removed),
        removed if there == WINDOW + 1 => Some(WINDOW + 2 * removed + 1),
        _ => None,
    }
}

/// The same where step `issued` was under way at a failover: the next home may have made it although steps before it were taken back. With the last of a few
/// names gone it looks as if there were fewer steps: the more it may be, the more it is.
pub fn steps_shown_with(mut listed: BTreeSet<u64>, issued: u64) -> Option<u64> {
    let shown = steps_shown(&listed);
    match step(issued) {
        Step::Make(name) => listed.remove(&name),
        Step::Remove(name) => listed.insert(name),
    };
    shown.max(steps_shown(&listed))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seed 20 of three regions: step 23, which removes name 9, was made by a home that had steps up to 12 alone.
    #[test]
    fn a_step_that_was_made_behind_others_that_were_taken_back_isnt_a_lost_one() {
        let twelve: BTreeSet<u64> = (4..=9).collect();
        assert_eq!((steps_shown(&twelve), step(23)), (Some(12), Step::Remove(9)));
        let listed: BTreeSet<u64> = (4..=8).collect();
        assert_eq!((steps_shown(&listed), steps_shown_with(listed, 23)), (Some(11), Some(12)));
    }

    #[test]
    fn each_step_is_told_from_its_listing() {
        let mut there = BTreeSet::new();
        for n in 1..60 {
            match step(n) {
                Step::Make(name) => assert!(there.insert(name)),
                Step::Remove(name) => assert!(there.remove(&name)),
            }
            assert_eq!(steps_shown(&there), Some(n), "{there:?}");
        }
        assert_eq!(steps_shown(&BTreeSet::from([1, 3])), None, "a hole");
        assert_eq!(steps_shown(&(1..10).collect()), None, "nothing was removed");
    }

    #[test]
    fn what_may_be_seen() {
        let look = |mount, value| Look { mount, own: false, value, at_home: None, epoch: 1 };
        let of = |geo: bool, synced: u64, looks: &[Look]| {
            let mut counter = Counter { issued: 9, acked: 5, synced: (synced, 1), ..Counter::default() };
            let is_same = |from: u64, to: u64| from == to;
            looks
                .iter()
                .try_for_each(|look| counter.look(counter.before(look.mount), *look, (1, geo), is_same))
        };
        assert!(of(true, 0, &[look(1, 3), look(2, 1), look(1, 3)]).is_ok());
        assert!(of(true, 0, &[look(1, 3), look(1, 2)]).is_err());
        assert!(of(true, 0, &[look(1, 10)]).is_err());
        let later = Look { epoch: 2, ..look(1, 2) };
        assert!(of(true, 0, &[look(1, 3), later]).is_err());
        assert!(of(false, 0, &[look(1, 3), later]).is_ok());
        let own = |look: Look| Look { own: true, ..look };
        assert!(of(true, 0, &[own(look(1, 3)), own(later)]).is_ok());
        let home = Look { at_home: Some(1), ..look(1, 4) };
        assert!(of(true, 0, &[home]).is_err());
        assert!(of(true, 0, &[Look { value: 5, ..home }]).is_ok());
        let after = Look { at_home: Some(2), epoch: 2, ..home };
        assert!(of(true, 0, &[after]).is_ok(), "what wasn't synced may be lost");
        assert!(of(true, 5, &[after]).is_err());
        assert!(of(false, 5, &[after]).is_ok());
        assert!(of(true, 0, &[look(2, 5), after]).is_err(), "another one had seen it");
        let mut moved = Counter { issued: 9, acked: 5, ..Counter::default() };
        let looked = moved.look(moved.before(1), after, (1, false), |_, _| true);
        assert!(looked.is_err(), "a move of the home loses nothing that was acknowledged");
    }
}
