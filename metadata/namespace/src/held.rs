//! The locks on an inode in the store: read as a table, written back where it changed; what waits granted, what a dead session held freed.

use std::collections::BTreeMap;

use mooseng_ports::plant::{self, Plant};
use mooseng_schema::lock::{self, LockOwner, LockRecord};
use mooseng_schema::{Record, SchemaError};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::{InodeId, SessionId};

use crate::error::OpError;
use crate::locks::{LOCKS_PER_INODE_MAX, LockTable, Want};
use crate::sessions::load_session;

/// Inodes of which one transaction frees a session's locks.
const INODES_PER_TRANSACTION: usize = 32;

/// An inode's locks as a transaction found them, and as it leaves them.
pub struct Held {
    inode: InodeId,
    before: BTreeMap<Vec<u8>, Vec<u8>>,
    sessions: Vec<SessionId>,
    /// The table, to be changed.
    pub table: LockTable,
}

impl Held {
    /// Reads an inode's locks, such that any change of them conflicts.
    pub async fn load<T: Transaction>(tx: &T, inode: InodeId, read: Read) -> Result<Self, OpError> {
        // More than may be held, for a change of the bound.
        let limit = RangeLimit { pairs_max: 2 * LOCKS_PER_INODE_MAX, ..RangeLimit::default() };
        let page = tx.get_range(lock::range(inode), limit, read).await?;
        if page.more {
            return Err(SchemaError::damaged("lock", format!("inode {inode} has more than allowed")).into());
        }
        let mut before = BTreeMap::new();
        let mut held = Vec::with_capacity(page.pairs.len());
        for (key, value) in &page.pairs {
            let (_, owner, start) = lock::parse_key(key)?;
            held.push((owner, start, LockRecord::from_value(value)?));
            before.insert(key.to_vec(), value.to_vec());
        }
        let table = LockTable::new(held);
        let mut sessions: Vec<SessionId> = table.held().map(|(owner, _, _)| owner.session).collect();
        sessions.dedup();
        Ok(Self { inode, before, sessions, table })
    }

    /// Writes what has changed.
    pub fn store<T: Transaction>(mut self, tx: &T) {
        for (owner, start, record) in self.table.held() {
            let (key, value) = (lock::key(self.inode, owner, start), record.to_value());
            if self.before.remove(&key).as_ref() != Some(&value) {
                tx.set(&key, &value);
            }
            if !self.sessions.contains(&owner.session) {
                tx.set(&lock::held_key(owner.session, self.inode), &[]);
                self.sessions.push(owner.session);
            }
        }
        for key in self.before.keys() {
            tx.clear(key);
        }
        for session in self.sessions {
            if !self.table.has_session(session) {
                tx.clear(&lock::held_key(session, self.inode));
            }
        }
    }
}

/// What came of a wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its owner has the lock.
    Granted,
    /// These stand in the way.
    Blocked(Vec<LockOwner>),
    /// Its session's life is over.
    Dead,
}

/// Grants what can be granted of the locks that are waited for on an inode, the first first.
pub async fn grant<T: Transaction>(tx: &T, inode: InodeId, waits: &[Want]) -> Result<Vec<Verdict>, OpError> {
    let mut held = Held::load(tx, inode, Read::Conflicting).await?;
    let mut verdicts = Vec::with_capacity(waits.len());
    let mut granted = false;
    for want in waits {
        // Its owner got it in another way: that isn't this wait's to take back.
        if held.table.is_held(want) {
            verdicts.push(Verdict::Granted);
            continue;
        }
        let blockers = blockers(&held.table, want);
        if !blockers.is_empty() {
            verdicts.push(Verdict::Blocked(blockers));
            continue;
        }
        // So that a lapse that is noted meanwhile conflicts.
        let record = load_session(tx, want.owner.session).await?;
        let lives = record.is_some_and(|r| r.incarnation == want.incarnation.0 && r.lapsed_ns.is_none());
        if !lives || held.table.len() >= LOCKS_PER_INODE_MAX {
            verdicts.push(Verdict::Dead);
            continue;
        }
        held.table.lock(want);
        granted = true;
        verdicts.push(Verdict::Granted);
    }
    if granted {
        held.store(tx);
    }
    Ok(verdicts)
}

/// Who stands in the way of a lock, each once.
pub fn blockers(table: &LockTable, want: &Want) -> Vec<LockOwner> {
    let mut owners: Vec<LockOwner> = table.conflicts(want).map(|(owner, _, _)| owner).collect();
    owners.dedup();
    owners
}

/// Whether each of these waits is kept by that owner, all at one moment.
pub async fn are_blocked<T: Transaction>(
    tx: &T,
    waits: &[(InodeId, Want, LockOwner)],
) -> Result<Vec<bool>, OpError> {
    let mut verdicts = Vec::with_capacity(waits.len());
    for (inode, want, owner) in waits {
        let held = Held::load(tx, *inode, Read::Snapshot).await?;
        verdicts.push(blockers(&held.table, want).contains(owner));
    }
    Ok(verdicts)
}

/// Frees locks of a session's earlier lives, or all where it is over: on some inodes with ids above `after`. Answers those on which
/// something was freed, and the last one that was looked at, unless that was all.
pub async fn free_dead<T: Transaction>(
    tx: &T,
    session: SessionId,
    after: Option<InodeId>,
) -> Result<(Vec<InodeId>, Option<InodeId>), OpError> {
    let record = load_session(tx, session).await?;
    let lives = record.filter(|record| record.lapsed_ns.is_none()).map(|record| record.incarnation);
    let limit = RangeLimit { pairs_max: INODES_PER_TRANSACTION, ..RangeLimit::default() };
    let page = tx.get_range(lock::held_range(session, after), limit, Read::Conflicting).await?;
    let (mut freed, mut last) = (Vec::new(), None);
    for (key, _) in &page.pairs {
        let (_, inode) = lock::parse_held_key(key)?;
        last = Some(inode);
        let mut held = Held::load(tx, inode, Read::Conflicting).await?;
        let before = held.table.len();
        let freed_too = plant::is(Plant::LivingLocksFreed);
        held.table
            .drop_dead(session, |incarnation| freed_too || lives.is_none_or(|lives| incarnation.0 < lives));
        if held.table.len() < before {
            freed.push(inode);
            held.store(tx);
        } else if !held.table.has_session(session) {
            // Of a time when this region was the volume's home before: the locks themselves are gone.
            tx.clear(&lock::held_key(session, inode));
        }
    }
    if lives.is_none() && !page.more {
        tx.clear(&lock::reclaim_key(session));
    }
    Ok((freed, if page.more { last } else { None }))
}

/// The sessions that hold locks, with ids above `after`, up to `max`.
pub async fn holders<T: Transaction>(
    tx: &T,
    after: Option<SessionId>,
    max: usize,
) -> Result<Vec<SessionId>, OpError> {
    let mut found: Vec<SessionId> = Vec::new();
    let mut after = after.map(|session| (session, InodeId(u64::MAX)));
    while found.len() < max {
        let limit = RangeLimit { pairs_max: 1, ..RangeLimit::default() };
        let page = tx.get_range(lock::all_held_range(after), limit, Read::Snapshot).await?;
        let Some((key, _)) = page.pairs.first() else { break };
        let (session, _) = lock::parse_held_key(key)?;
        found.push(session);
        after = Some((session, InodeId(u64::MAX)));
    }
    Ok(found)
}
