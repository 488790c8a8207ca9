//! Makes a group of one member out of what is on its disk, where the majority of the others is lost for good.
//!
//! Raft has no such step: whoever takes it says that the lost members never come back. What they had acknowledged without this one is gone. All that
//! this one's log holds is kept, whether it was acknowledged or not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mooseng_embedded::Position;
use mooseng_ports::disk::Disk;
use mooseng_wal::{self as wal, Wal, WalError};
use openraft::{EntryPayload, Membership, StoredMembership};
use prost::Message;

use crate::codec;
use crate::lineage::{Line, Lineage};
use crate::types::Node;

/// The next term is so far above the last one that is known here: a member that was cut off stood for election again and again, each time
/// in a later term. At one election a second this takes 136 years.
const TERMS_AHEAD: u64 = 1 << 32;
/// And each second by which a line is later is so many terms: two groups that begin with the same disk, or the same dump, aren't in the same terms.
const TERMS_PER_LINE: u64 = 1 << 30;
/// Bytes of log that are read at a time.
const READ_BYTES: usize = 4 << 20;

/// What is on a master's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// The members of the group, as far as this one knows.
    pub members: BTreeMap<u64, Node>,
    /// Who votes: a majority of each of these decides.
    pub voters: Vec<BTreeSet<u64>>,
    /// The last entry of the log, or of the store where that is ahead of it: its term and index.
    pub last: (u64, u64),
    /// The store's last entry, where it is ahead of the log: a snapshot was installed there, and the log wasn't let go of yet that it takes the place of.
    pub ahead: Option<wal::LogId>,
    /// The last entry that it is known to be acknowledged by a majority.
    pub committed: Option<u64>,
    /// The last entry that the store on the disk has.
    pub applied: u64,
    /// The newest term that it has heard of.
    pub term: u64,
    /// The log began empty and still lacks acknowledged entries; up to which, where that is known.
    pub lacking: Option<u64>,
    /// Its line.
    pub line: Line,
}

impl Remains {
    /// Whether these members could still decide without the others.
    pub fn can_decide(&self, left: &BTreeSet<u64>) -> bool {
        !self.voters.is_empty()
            && self.voters.iter().all(|voters| voters.intersection(left).count() * 2 > voters.len())
    }
}

/// Why a group can't be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The log can't be read or written.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The line can't be read or written.
    #[error("{}: {source}", .path.display())]
    Lineage {
        /// The log's directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The log holds something else.
    #[error(transparent)]
    Malformed(#[from] codec::Malformed),
    /// There is nothing to recover from.
    #[error(
        "this master's disk holds no log of a group: there is nothing that a region could be recovered from"
    )]
    Empty,
    /// Entries that the log no longer has aren't in the store either.
    #[error(
        "the store on this master's disk ends at entry {store}, and its log begins behind entry {purged}: what lies between is lost with the store, so that nothing can be recovered from here"
    )]
    StoreLost {
        /// The last entry in the store.
        store: u64,
        /// The last entry that the log has given up.
        purged: u64,
    },
    /// It only copied the log.
    #[error("master {0} isn't a voting member of the group on its own disk: recover from one that is")]
    NoVoter(u64),
}

/// Makes a group of this member alone that begins with a store from elsewhere, made under an earlier term, instead of a log: the place at which that
/// store is to be installed, once this has returned. For an empty log.
pub fn begin_with_store(
    disk: &dyn Disk,
    dir: &Path,
    log: &Wal,
    member: (u64, Node),
    earlier_term: u64,
    unix_s: u64,
) -> Result<(Position, Recovered), RecoverError> {
    let (id, node) = member;
    let lineage = lineage(disk, dir)?;
    let line = lineage.line().after(unix_s);
    lineage.enter(disk, line).map_err(|source| RecoverError::Lineage { path: dir.to_owned(), source })?;
    let term = first_term(earlier_term, line);
    log.save_vote(wal::Vote { term, node: id, committed: false })?;
    // As if everything up to here had been in the log. Not 0: that is where an empty log stands.
    let place = wal::LogId { term, node: id, index: 1 };
    log.purge(place)?;
    let alone = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, node)]));
    let log_id = codec::from_log_id(&mooseng_wire::raft::LogId { term, node: id, index: place.index });
    let meta = codec::stored_bytes(&StoredMembership::new(Some(log_id), alone));
    let position = Position { index: place.index + 1, term, node: id, meta };
    Ok((position, Recovered { term, line, index: place.index }))
}

/// The first term of a line, where this disk knows of that one. Later than any of an earlier line, also of one that it doesn't know of.
fn first_term(earlier: u64, line: Line) -> u64 {
    earlier.saturating_add(TERMS_AHEAD).max(u64::from(line.0) * TERMS_PER_LINE)
}

/// A new group of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Its first term; the custody epoch follows it.
    pub term: u64,
    /// Its line.
    pub line: Line,
    /// The entry that makes it.
    pub index: u64,
}

fn lineage(disk: &dyn Disk, dir: &Path) -> Result<Lineage, RecoverError> {
    Lineage::open(disk, dir).map_err(|source| RecoverError::Lineage { path: dir.to_owned(), source })
}

/// Looks at a disk: its log in `dir`, and where its store is.
pub fn look(disk: &dyn Disk, dir: &Path, log: &Wal, store: &Position) -> Result<Remains, RecoverError> {
    let last = log.last().ok_or(RecoverError::Empty)?;
    if let Some(purged) = log.purged().filter(|purged| purged.index >= store.index) {
        return Err(RecoverError::StoreLost { store: store.index.saturating_sub(1), purged: purged.index });
    }
    let mut membership = codec::from_stored_bytes(store.meta.clone())?.membership().clone();
    let applied = store.index.checked_sub(1);
    let applied = applied.map(|index| wal::LogId { term: store.term, node: store.node, index });
    // As Raft compares logs: by the term first.
    let ahead = applied.filter(|id| (id.term, id.index) > (last.term, last.index));
    let last = ahead.unwrap_or(last);
    // Of what the log holds nothing is newer than such a store.
    let mut next = match ahead {
        Some(id) => id.index + 1,
        None => log.purged().map_or(0, |purged| purged.index + 1),
    };
    let mut term = log.vote().map_or(0, |vote| vote.term).max(last.term);
    while next <= last.index {
        let entries = log.read(next..last.index + 1, READ_BYTES)?;
        let Some(newest) = entries.last() else { break };
        next = newest.id.index + 1;
        for entry in entries {
            term = term.max(entry.id.term);
            let decoded = mooseng_wire::raft::LogEntry::decode(entry.payload);
            let decoded = decoded.map_err(|e| codec::Malformed(e.to_string()))?;
            if let EntryPayload::Membership(m) = codec::from_entry(decoded)?.payload {
                membership = m;
            }
        }
    }
    Ok(Remains {
        members: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        voters: membership.get_joint_config().clone(),
        last: (last.term, last.index),
        ahead,
        // What is in a snapshot was acknowledged.
        committed: log.committed().map(|id| id.index).max(ahead.map(|id| id.index)),
        applied: store.index.saturating_sub(1),
        term,
        lacking: log.lacking().filter(|lacking| !log.is_whole() && *lacking > last.index),
        line: lineage(disk, dir)?.line(),
    })
}

/// Makes the group of this member alone. A crash on the way leaves a disk on which the same can be done again.
pub fn alone(
    disk: &dyn Disk,
    dir: &Path,
    log: &Wal,
    remains: &Remains,
    id: u64,
    unix_s: u64,
) -> Result<Recovered, RecoverError> {
    let node = remains.members.get(&id).filter(|_| remains.voters.iter().any(|voters| voters.contains(&id)));
    let node = node.ok_or(RecoverError::NoVoter(id))?.clone();
    // First of all: from here on nobody of the old line is listened to.
    let lineage = lineage(disk, dir)?;
    let line = lineage.line().after(unix_s);
    lineage.enter(disk, line).map_err(|source| RecoverError::Lineage { path: dir.to_owned(), source })?;
    let term = first_term(remains.term, line);
    log.save_vote(wal::Vote { term, node: id, committed: false })?;
    if let Some(store) = remains.ahead {
        // What a start would do, but for the entry that makes the group: that follows the store, not the log.
        if log.last().is_some_and(|last| last.index > store.index) {
            log.truncate(store.index + 1)?;
        }
        log.purge(store)?;
    }
    if !log.is_whole() {
        // Whoever asked for this was told what is lacking.
        log.save_lacking(0)?;
    }
    let place = wal::LogId { term, node: id, index: remains.last.1 + 1 };
    let alone = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, node)]));
    let entry = codec::RaftEntry {
        log_id: codec::from_log_id(&mooseng_wire::raft::LogId { term, node: id, index: place.index }),
        payload: EntryPayload::Membership(alone),
    };
    log.append(vec![wal::Entry { id: place, payload: codec::entry(&entry).encode_to_vec().into() }])?;
    Ok(Recovered { term, line, index: place.index })
}
