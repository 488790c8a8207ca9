//! Locks of the region in memory: a list, looked through from one end to the other.

use std::collections::BTreeSet;

use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Done, Lock, LockHolder, LockKind, LockSpec, LockState, Locked};

/// What is held, and who waits. Nobody is told of a grant: who waits has to ask again.
#[derive(Debug, Default)]
pub struct FakeLocks {
    held: Vec<Held>,
    /// Sessions and the numbers of their waits.
    pub waits: BTreeSet<(u64, u64)>,
}

#[derive(Clone, Debug)]
struct Held {
    inode: u64,
    session: u64,
    wait: u64,
    lock: LockSpec,
}

impl Held {
    fn is_of(&self, inode: u64, session: u64, lock: &LockSpec) -> bool {
        let same = self.inode == inode && self.session == session;
        same && self.lock.kind == lock.kind && self.lock.owner == lock.owner
    }

    fn overlaps(&self, lock: &LockSpec) -> bool {
        self.lock.start <= lock.end && lock.start <= self.lock.end
    }
}

impl FakeLocks {
    /// All sessions' lives are over.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many ranges are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// What a session had at the home before. Answers the places of what it can't have.
    pub fn reclaim(&mut self, session: u64, locks: &[Lock]) -> Vec<u32> {
        let mut lost = Vec::new();
        for (place, lock) in locks.iter().enumerate() {
            let answer = self.answer(session, &Op::Lock(Lock { wait: 0, ..*lock }));
            if !matches!(answer, Some(Reply::Locked(_))) {
                lost.extend(u32::try_from(place));
            }
        }
        lost
    }

    /// Answers a request about locks; none for others.
    pub fn answer(&mut self, session: u64, op: &Op) -> Option<Reply> {
        let locked = |state: LockState| Some(Reply::Locked(Locked { state: state.into(), custody_epoch: 1 }));
        match op {
            Op::TestLock(r) => {
                let lock = self.in_the_way(r.inode, session, &r.lock?).map(|held| held.lock);
                Some(Reply::LockHolder(LockHolder { lock, session: 0 }))
            }
            Op::Lock(r) => {
                let lock = r.lock?;
                // flock gives up the other level before it takes one.
                let other_level = |held: &Held| {
                    held.is_of(r.inode, session, &lock) && held.lock.exclusive != lock.exclusive
                };
                let given_up = lock.kind() == LockKind::File && self.held.iter().any(other_level);
                if given_up {
                    self.give_up(r.inode, session, &lock);
                }
                if self.in_the_way(r.inode, session, &lock).is_none() {
                    self.give_up(r.inode, session, &lock);
                    self.held.push(Held { inode: r.inode, session, wait: r.wait, lock });
                    self.waits.remove(&(session, r.wait));
                    return locked(LockState::Held);
                }
                if r.wait == 0 {
                    let refused = Some(Reply::Errno(libc::EAGAIN as u32));
                    return if given_up { locked(LockState::Gone) } else { refused };
                }
                self.waits.insert((session, r.wait));
                locked(LockState::Queued)
            }
            Op::Unlock(r) => {
                self.give_up(r.inode, session, &r.lock?);
                Some(Reply::Done(Done {}))
            }
            Op::CancelLock(r) => {
                self.waits.remove(&(session, r.wait));
                let lock = r.lock?;
                let came = |held: &Held| held.is_of(r.inode, session, &lock) && held.wait == r.wait;
                locked(if self.held.iter().any(came) { LockState::Held } else { LockState::Gone })
            }
            Op::HoldLocks(r) => {
                let is_free = self.waits.is_empty() && self.held.iter().all(|held| held.inode != r.inode);
                locked(if is_free { LockState::Held } else { LockState::Gone })
            }
            Op::RecordLocks(r) => {
                let taken = |lock: &LockSpec| self.in_the_way(r.inode, session, lock).is_some();
                if r.locks.iter().any(taken) {
                    return Some(Reply::Errno(libc::EAGAIN as u32));
                }
                for lock in &r.locks {
                    self.give_up(r.inode, session, lock);
                    self.held.push(Held { inode: r.inode, session, wait: 0, lock: *lock });
                }
                Some(Reply::Done(Done {}))
            }
            _ => None,
        }
    }

    fn in_the_way(&self, inode: u64, session: u64, lock: &LockSpec) -> Option<&Held> {
        self.held.iter().find(|held| {
            let same = held.inode == inode && held.lock.kind == lock.kind;
            let other = held.session != session || held.lock.owner != lock.owner;
            same && other && held.overlaps(lock) && (held.lock.exclusive || lock.exclusive)
        })
    }

    fn give_up(&mut self, inode: u64, session: u64, lock: &LockSpec) {
        let mine = |held: &Held| held.is_of(inode, session, lock) && held.overlaps(lock);
        let (cut, mut left): (Vec<Held>, Vec<Held>) =
            std::mem::take(&mut self.held).into_iter().partition(mine);
        for held in cut {
            if held.lock.start < lock.start {
                let lock = LockSpec { end: lock.start - 1, ..held.lock };
                left.push(Held { lock, ..held.clone() });
            }
            if held.lock.end > lock.end {
                let lock = LockSpec { start: lock.end + 1, ..held.lock };
                left.push(Held { lock, ..held });
            }
        }
        self.held = left;
    }
}
