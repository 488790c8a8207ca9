//! Locks. What waits is the custodian's to remember; the store knows what is held, but for what a session gives by itself, nobody else being there
//! ([`Fact::Locks`], docs/decisions/0048-locks-alone.md): whoever takes, gives up or tests a lock notes that fact, so that it is on record first.

use mooseng_schema::{inode, lock as schema};
use mooseng_store::{Read, Transaction};
use mooseng_wire::InodeId;
use mooseng_wire::fact::Fact;
use mooseng_wire::fs::{
    CancelLock, Lock, LockHolder, LockSpec, LockState, Locked, RecordLocks, TestLock, Unlock,
};

use crate::errno::Errno;
use crate::error::OpError;
use crate::held::Held;
use crate::locks::{LOCKS_PER_INODE_MAX, Want};
use crate::reclaim;
use crate::view::View;

pub async fn test<T: Transaction>(view: &View<'_, T>, r: &TestLock) -> Result<LockHolder, OpError> {
    let want = want(view, r.lock.as_ref(), 0)?;
    view.touched.look(Fact::Locks(InodeId(r.inode)));
    let held = load(view, r.inode).await?;
    let in_the_way = held.table.conflicts(&want).min_by_key(|(_, start, _)| *start);
    Ok(match in_the_way {
        None => LockHolder::default(),
        Some((owner, at, record)) => {
            let (start, end) = held.table.joined(owner, at).unwrap_or((at, record.end));
            let (exclusive, pid) = (record.exclusive, record.pid);
            let lock = LockSpec { kind: owner.kind.into(), owner: owner.owner, start, end, exclusive, pid };
            LockHolder { session: owner.session.0, lock: Some(lock) }
        }
    })
}

pub async fn lock<T: Transaction>(view: &View<'_, T>, r: &Lock) -> Result<Locked, OpError> {
    let want = want(view, r.lock.as_ref(), r.wait)?;
    let id = InodeId(r.inode);
    // Without a conflict: a file's writers don't disturb those who lock it.
    if view.tx.get(&inode::key(id), Read::Snapshot).await?.is_none() {
        return Err(Errno::ESTALE.into());
    }
    changes_locks(view, id).await?;
    let mut held = load(view, r.inode).await?;
    if held.table.is_held(&want) {
        return Ok(state(LockState::Held));
    }
    let given_up = held.table.give_up_other_level(&want);
    if held.table.conflicts(&want).next().is_none() {
        held.table.lock(&want);
        if held.table.len() > LOCKS_PER_INODE_MAX {
            return Err(Errno::ENOLCK.into());
        }
        held.store(view.tx);
        return Ok(state(LockState::Held));
    }
    if r.wait == 0 && !given_up {
        return Err(Errno::EAGAIN.into());
    }
    if given_up {
        held.store(view.tx);
    }
    Ok(state(if r.wait == 0 { LockState::Gone } else { LockState::Queued }))
}

/// Takes several in their order, without waiting: the table is read and written once, for there may be thousands. Answers the places of those that
/// can't be had.
pub async fn take_all<T: Transaction>(
    view: &View<'_, T>,
    inode: InodeId,
    locks: &[(u32, Lock)],
) -> Result<Vec<u32>, OpError> {
    if view.tx.get(&inode::key(inode), Read::Snapshot).await?.is_none() {
        return Ok(locks.iter().map(|(place, _)| *place).collect());
    }
    let mut held = load(view, inode.0).await?;
    let mut refused = Vec::new();
    for (place, lock) in locks {
        let Ok(want) = want(view, lock.lock.as_ref(), 0) else {
            refused.push(*place);
            continue;
        };
        if held.table.is_held(&want) {
            continue;
        }
        if held.table.conflicts(&want).next().is_some() || held.table.len() >= LOCKS_PER_INODE_MAX {
            refused.push(*place);
            continue;
        }
        held.table.give_up_other_level(&want);
        held.table.lock(&want);
    }
    held.store(view.tx);
    Ok(refused)
}

pub async fn unlock<T: Transaction>(view: &View<'_, T>, r: &Unlock) -> Result<(), OpError> {
    let want = want(view, r.lock.as_ref(), 0)?;
    changes_locks(view, InodeId(r.inode)).await?;
    let mut held = load(view, r.inode).await?;
    held.table.unlock(want.owner, want.start, want.end);
    // One that is cut in two makes one more.
    if held.table.len() > LOCKS_PER_INODE_MAX + 1 {
        return Err(Errno::ENOLCK.into());
    }
    held.store(view.tx);
    Ok(())
}

pub async fn cancel<T: Transaction>(view: &View<'_, T>, r: &CancelLock) -> Result<Locked, OpError> {
    let want = want(view, r.lock.as_ref(), r.wait)?;
    let held = load(view, r.inode).await?;
    Ok(state(if held.table.came_by_wait(&want) { LockState::Held } else { LockState::Gone }))
}

/// Looks whether nobody's locks of an inode are on record: then the custodian may have the session give them by itself.
pub async fn hold<T: Transaction>(view: &View<'_, T>, id: InodeId) -> Result<Locked, OpError> {
    changes_locks(view, id).await?;
    if !Held::load(view.tx, id, view.read).await?.table.is_empty() {
        return Ok(state(LockState::Gone));
    }
    // What looked at them before and comes to its commit only after this one, of whoever has gone since, conflicts with it.
    view.tx.add_write_conflict(schema::range(id));
    Ok(state(LockState::Held))
}

/// Records what the session has given by itself. Nobody else had any then, so that nothing conflicts; if something does, nothing is recorded.
pub async fn record<T: Transaction>(view: &View<'_, T>, r: &RecordLocks) -> Result<(), OpError> {
    let id = InodeId(r.inode);
    if view.tx.get(&inode::key(id), Read::Snapshot).await?.is_none() {
        return Err(Errno::ESTALE.into());
    }
    changes_locks(view, id).await?;
    let mut held = load(view, r.inode).await?;
    for spec in &r.locks {
        let want = want(view, Some(spec), 0)?;
        if held.table.is_held(&want) {
            continue;
        }
        if held.table.conflicts(&want).next().is_some() {
            return Err(Errno::EAGAIN.into());
        }
        held.table.give_up_other_level(&want);
        held.table.lock(&want);
        if held.table.len() > LOCKS_PER_INODE_MAX {
            return Err(Errno::ENOLCK.into());
        }
    }
    held.store(view.tx);
    Ok(())
}

/// The session changes what is held of an inode, or is to give it by itself.
async fn changes_locks<T: Transaction>(view: &View<'_, T>, inode: InodeId) -> Result<(), OpError> {
    view.touched.note(Fact::Locks(inode));
    reclaim::close(view.tx, view.ctx.session).await
}

fn want<T: Transaction>(view: &View<'_, T>, spec: Option<&LockSpec>, wait: u64) -> Result<Want, OpError> {
    Want::new(view.ctx.session, view.ctx.incarnation, spec, wait)
}

/// The inode's locks, without those of the session's earlier lives.
async fn load<T: Transaction>(view: &View<'_, T>, inode: u64) -> Result<Held, OpError> {
    let mut held = Held::load(view.tx, InodeId(inode), view.read).await?;
    let lives = view.ctx.incarnation;
    held.table.drop_dead(view.ctx.session, |incarnation| incarnation < lives);
    Ok(held)
}

fn state(state: LockState) -> Locked {
    Locked { state: state.into(), custody_epoch: 0 }
}
