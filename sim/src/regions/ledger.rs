//! What was lost, against what is said of it: nothing up to where a failover cut is missing, and of what is missing the ledger has the place and the
//! archive of the region that had it the entry and the path. Nor is it older than what the home said last of its tail, and the time since.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_wire::admin::{Archive, ListLossesReply, LogPlace, Loss};

use super::contents::Contents;
use super::homes::Homes;
use super::sequence::{self, Answered, Counter, Sequence};
use super::volumes::Moves;

/// By epoch and version.
type Place = (u64, u64);

/// What a region put aside at once.
pub struct PutAside {
    /// What it says of it.
    pub archive: Archive,
    /// The inodes that it names.
    pub files: BTreeSet<u64>,
    /// Which inodes each entry concerns, by its place.
    pub entries: BTreeMap<Place, Vec<u64>>,
}

fn place(at: Option<&LogPlace>) -> Place {
    at.map_or((0, 0), |at| (at.epoch, at.version))
}

/// The names in a directory that are numbers.
fn listed(contents: &Contents, directory: &str) -> Option<BTreeSet<u64>> {
    contents.get(directory)?;
    let prefix = format!("{directory}/");
    let name = |path: &String| path.strip_prefix(&prefix)?.parse().ok();
    Some(contents.keys().filter_map(name).collect())
}

/// A loss that may have taken something of that epoch: of that failover, or of a later one that cut further back.
fn covers(loss: &Loss, epoch: u64) -> bool {
    loss.closed >= epoch && place(loss.cut.as_ref()).0 <= epoch
}

/// Each failover is in the ledger, and no move: of those nothing is lost.
pub fn check_tenures(homes: &Homes, ledger: &ListLossesReply, moves: &Moves) -> Result<(), String> {
    if let Some(loss) = ledger.losses.iter().find(|loss| moves.made.contains(&loss.closed)) {
        return Err(format!("the home was moved from epoch {}, and the ledger has {loss:?}", loss.closed));
    }
    for pair in homes.tenures().windows(2) {
        let [before, after] = pair else { continue };
        let is_moved = moves.ordered > 0 && !homes.was_lost(before.epoch, after.epoch);
        let is_lost = before.region != after.region && !is_moved;
        if is_lost && !ledger.losses.iter().any(|loss| covers(loss, before.epoch)) {
            return Err(format!(
                "the ledger doesn't say what was lost between {before:?} and {after:?}: {ledger:?}"
            ));
        }
    }
    Ok(())
}

/// What is said of losses.
pub struct Said<'a> {
    /// The ledger.
    pub losses: &'a [Loss],
    /// What regions put aside.
    pub put_aside: &'a [PutAside],
    /// By epoch: of what was made by then its home has said that another region has it.
    pub safe: &'a BTreeMap<u64, Duration>,
}

/// What a sequence lacks in the end is what the ledger says that is lost, and was put aside.
pub fn check_sequence(
    (at, sequence): (usize, &Sequence),
    contents: &Contents,
    said: &Said<'_>,
) -> Result<(), String> {
    let names = match listed(contents, &sequence.path) {
        Some(listed) if sequence.names.issued != sequence.names.acked => {
            sequence::steps_shown_with(listed, sequence.names.issued)
        }
        Some(listed) => sequence::steps_shown(&listed),
        None => Some(0),
    };
    if let Some(names) = names {
        check_counter(sequence, &sequence.names, names, (sequence.directory, said))
            .map_err(|what| format!("of sequence {at}, names {what}"))?;
    }
    let file = contents.get(&format!("{}/f", sequence.path)).cloned().flatten();
    let record = file.filter(|file| file.inode == sequence.file).map_or(0, |file| file.record);
    check_counter(sequence, &sequence.records, record, (sequence.file, said))
        .map_err(|what| format!("of sequence {at}, records {what}"))
}

fn check_counter(
    sequence: &Sequence,
    counter: &Counter,
    value: u64,
    (inode, Said { losses, put_aside, safe }): (u64, &Said<'_>),
) -> Result<(), String> {
    let missing = || counter.places.iter().filter(|answered| answered.n > value);
    let Some(Answered { n: first, place: at, .. }) = missing().min() else { return Ok(()) };
    let was_safe = |of: &&Answered| safe.get(&of.place.0).is_some_and(|safe| of.at < *safe);
    if let Some(Answered { n, place, at }) = missing().find(was_safe) {
        return Err(format!(
            "end with {value} though {n} at {place:?} was answered for at {at:?}, and the home had said that another region has what was made up to {:?}",
            safe[&place.0]
        ));
    }
    let epoch = sequence.epoch;
    let cuts: BTreeSet<Place> =
        losses.iter().filter(|loss| covers(loss, epoch)).map(|loss| place(loss.cut.as_ref())).collect();
    let Some(cut) = cuts.first() else {
        return Err(format!(
            "end with {value} though {first} at {at:?} was answered for, and no loss is in the ledger"
        ));
    };
    if at <= cut {
        return Err(format!(
            "end with {value} though {first} at {at:?} was answered for, and the cut is {cut:?}"
        ));
    }
    let of_cut = || put_aside.iter().filter(|of| cuts.contains(&place(of.archive.cut.as_ref())));
    let is_named = of_cut().any(|of| of.archive.more_paths || of.files.contains(&inode));
    let entries: BTreeSet<Place> = of_cut()
        .flat_map(|of| of.entries.iter())
        .filter(|(_, inodes)| inodes.contains(&inode))
        .map(|(at, _)| *at)
        .collect();
    if !is_named || entries.is_empty() {
        return Err(format!(
            "end with {value} though {first} at {at:?} was answered for, the cut is {cut:?}, and no archive has inode {inode} ({} entries do)",
            entries.len()
        ));
    }
    Ok(())
}
