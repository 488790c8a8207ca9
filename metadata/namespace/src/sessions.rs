//! Session records, over the master's transactions.

use std::ops::Range;

use mooseng_schema::session::{self, InodeRun, SessionRecord};
use mooseng_schema::{Record, number};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_wire::{Incarnation, RequestNumber, SessionId, VolumeId};

use crate::error::OpError;

/// Runs of inodes' ids that a session's record names at most. Who tells in time what it makes has the ids that it still needs among the newest.
pub const INODE_RUNS_MAX: usize = 16;

/// Records a new session. `id` comes from [`crate::upkeep::reserve_ids`]. Recording the same again is fine, as after a
/// commit whose outcome wasn't known.
pub async fn create_session<T: Transaction>(
    tx: &T,
    id: SessionId,
    record: &SessionRecord,
) -> Result<(), OpError> {
    let key = session::key(id);
    match tx.get(&key, Read::Conflicting).await? {
        None => tx.set(&key, &record.to_value()),
        Some(value) if value == record.to_value() => {}
        Some(_) => return Err(OpError::Malformed("another session with this id exists")),
    }
    Ok(())
}

/// A session's record; none when it was never made, or was closed.
pub async fn load_session<T: Transaction>(tx: &T, id: SessionId) -> Result<Option<SessionRecord>, OpError> {
    match tx.get(&session::key(id), Read::Conflicting).await? {
        Some(value) => Ok(Some(SessionRecord::from_value(&value)?)),
        None => Ok(None),
    }
}

/// Begins a session's next life: what still runs under the old incarnation can't commit any more. None when the
/// session doesn't exist.
pub async fn bump_incarnation<T: Transaction>(tx: &T, id: SessionId) -> Result<Option<Incarnation>, OpError> {
    let Some(mut record) = load_session(tx, id).await? else { return Ok(None) };
    record.incarnation += 1;
    record.lapsed_ns = None;
    tx.set(&session::key(id), &record.to_value());
    Ok(Some(Incarnation(record.incarnation)))
}

/// A session comes back whose client knows of its life `known`, and gets a new one. But if it got one already, of which the client hasn't heard, it is that one: of two
/// comebacks of one life either may be the one whose answer arrives.
pub async fn come_back<T: Transaction>(
    tx: &T,
    id: SessionId,
    known: Incarnation,
) -> Result<Option<Incarnation>, OpError> {
    match load_session(tx, id).await? {
        Some(record) if record.incarnation > known.0 && record.lapsed_ns.is_none() => {
            Ok(Some(Incarnation(record.incarnation)))
        }
        Some(_) => bump_incarnation(tx, id).await,
        None => Ok(None),
    }
}

/// Notes that a session's lease ran out: its changes are refused until [`bump_incarnation`]. Answers whether it exists.
pub async fn lapse_session<T: Transaction>(tx: &T, id: SessionId, now_ns: i64) -> Result<bool, OpError> {
    let Some(mut record) = load_session(tx, id).await? else { return Ok(false) };
    if record.lapsed_ns.is_none() {
        record.lapsed_ns = Some(now_ns);
        tx.set(&session::key(id), &record.to_value());
    }
    Ok(true)
}

/// Notes on a session's record that these numbers of inodes in its volume are its to give. Noting the same again is fine. Answers whether the
/// session exists.
pub async fn give_inodes<T: Transaction>(tx: &T, id: SessionId, run: Range<u64>) -> Result<bool, OpError> {
    let Some(mut record) = load_session(tx, id).await? else { return Ok(false) };
    let run = InodeRun { first: run.start, end: run.end };
    if !record.inode_runs.contains(&run) {
        record.inode_runs.push(run);
        let older = record.inode_runs.len().saturating_sub(INODE_RUNS_MAX);
        record.inode_runs.drain(..older);
        tx.set(&session::key(id), &record.to_value());
    }
    Ok(true)
}

/// Forgets a session and its outcomes. Answers whether it existed.
pub async fn close_session<T: Transaction>(tx: &T, id: SessionId) -> Result<bool, OpError> {
    if load_session(tx, id).await?.is_none() {
        return Ok(false);
    }
    tx.clear(&session::key(id));
    tx.clear(&session::floor_key(id));
    tx.clear_range(session::outcome_range(id));
    Ok(true)
}

/// Up to `max` sessions of a volume with ids above `after`, in order.
pub async fn list_sessions<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    after: Option<SessionId>,
    max: usize,
) -> Result<Vec<(SessionId, SessionRecord)>, OpError> {
    let limit = RangeLimit { pairs_max: max, ..Default::default() };
    let page = tx.get_range(session::range_after(volume, after), limit, Read::Snapshot).await?;
    page.pairs
        .iter()
        .map(|(key, value)| Ok((session::parse_key(volume, key)?, SessionRecord::from_value(value)?)))
        .collect()
}

/// The first number of a session whose outcome is still kept.
pub async fn outcome_floor<T: Transaction>(tx: &T, id: SessionId) -> Result<RequestNumber, OpError> {
    let value = tx.get(&session::floor_key(id), Read::Snapshot).await?;
    Ok(RequestNumber(number::decode(value.as_ref())?))
}
