//! Locks that a session had under the volume's home before (DESIGN section 8). They are records of the region that was the home then, so a new home
//! knows of none, and takes them from their holders, before it changes anything else for anybody.

use std::collections::BTreeMap;

use mooseng_schema::Record;
use mooseng_schema::lock::{self, ReclaimRecord};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_store::{Read, Transaction};
use mooseng_wire::fs::Lock;
use mooseng_wire::{InodeId, SessionId, VolumeId};

use crate::context::OpContext;
use crate::error::OpError;
use crate::ops::take_locks;
use crate::sessions::load_session;

/// Locks that a session gets back at most; what it had beyond is lost.
pub const RECLAIMED_MAX: usize = 4096;

/// Gives the session of the context the locks that it had under an earlier home. Answers the places of those that it can't have, because somebody else has
/// them, or because their inode isn't there any more; none where nothing was done: the session's life is over, the context's home isn't the
/// volume's, or the session has changed its locks here since, so that the request is old.
///
/// Only while nobody is served yet: a lock may be free that its holder is about to reclaim.
pub async fn reclaim<T: Transaction>(
    tx: &T,
    volume: VolumeId,
    ctx: &OpContext,
    locks: &[Lock],
) -> Result<Option<Vec<u32>>, OpError> {
    let value = tx.get(&volume::key(volume), Read::Conflicting).await?;
    let home = VolumeRecord::from_value(&value.ok_or(OpError::NoVolume(volume.0))?)?;
    if home.epoch != ctx.epoch.0 || home.moving_from == ctx.epoch.0 {
        return Ok(None);
    }
    let session = load_session(tx, ctx.session).await?;
    if session.is_none_or(|s| s.incarnation != ctx.incarnation.0 || s.lapsed_ns.is_some()) {
        return Ok(None);
    }
    if let Some(known) = load(tx, ctx.session).await?
        && (known.epoch > ctx.epoch.0 || (known.epoch == ctx.epoch.0 && known.closed))
    {
        return Ok(None);
    }
    let mut lost = Vec::new();
    let mut of_inodes: BTreeMap<u64, Vec<(u32, Lock)>> = BTreeMap::new();
    for (place, lock) in (0..).zip(locks).take(RECLAIMED_MAX) {
        of_inodes.entry(lock.inode).or_default().push((place, *lock));
    }
    for (inode, locks) in &of_inodes {
        lost.extend(take_locks(tx, ctx, InodeId(*inode), locks).await?);
    }
    lost.extend((RECLAIMED_MAX..locks.len()).filter_map(|place| u32::try_from(place).ok()));
    let record = ReclaimRecord { epoch: ctx.epoch.0, closed: false };
    tx.set(&lock::reclaim_key(ctx.session), &record.to_value());
    Ok(Some(lost))
}

/// The session takes or gives up locks here: what it says from now on that it had before is old.
pub(crate) async fn close<T: Transaction>(tx: &T, session: SessionId) -> Result<(), OpError> {
    if let Some(known) = load(tx, session).await?
        && !known.closed
    {
        tx.set(&lock::reclaim_key(session), &ReclaimRecord { closed: true, ..known }.to_value());
    }
    Ok(())
}

async fn load<T: Transaction>(tx: &T, session: SessionId) -> Result<Option<ReclaimRecord>, OpError> {
    let value = tx.get(&lock::reclaim_key(session), Read::Conflicting).await?;
    Ok(value.map(|value| ReclaimRecord::from_value(&value)).transpose()?)
}
