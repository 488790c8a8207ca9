//! The buffers of a mount: one for an inode, as long as it holds something or somebody sends from it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mooseng_wire::fs::Attr;
use tokio::sync::Notify;

use crate::dirty::{Dirty, Refused};
use crate::escrow::Escrow;

/// One inode's buffer.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// Held by whoever sends.
    pub sender: tokio::sync::Mutex<()>,
    dirty: Mutex<Dirty>,
}

impl Buffer {
    pub fn dirty<T>(&self, f: impl FnOnce(&mut Dirty) -> T) -> T {
        f(&mut self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The bytes that all volumes of a mount may hold in buffers together.
#[derive(Debug)]
pub(crate) struct Room {
    pub bytes_max: usize,
    bytes: AtomicUsize,
    /// There may be more room than before.
    pub changed: Notify,
}

impl Room {
    /// Room for so many; with none, nothing is buffered.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: AtomicUsize::new(0), changed: Notify::new() }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// All buffers of a volume.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// An inode's buffer is here as long as it holds bytes, is closed, or somebody sends from it: clones are made under this lock alone, so
    /// that there is never a second one. Bytes are added under it, too.
    by_inode: Mutex<BTreeMap<u64, Arc<Buffer>>>,
    bytes: AtomicUsize,
    pub room: Arc<Room>,
    /// What covers the bytes where quotas limit them.
    pub escrow: Escrow,
}

impl Drop for Buffers {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.bytes(), Ordering::Relaxed);
        self.room.changed.notify_waiters();
    }
}

impl Buffers {
    /// Buffers that hold as many bytes at most as there is room for.
    pub fn sharing(room: Arc<Room>) -> Self {
        Self { by_inode: Mutex::default(), bytes: AtomicUsize::new(0), room, escrow: Escrow::default() }
    }

    pub fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Arc<Buffer>>) -> T) -> T {
        f(&mut self.by_inode.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn get(&self, inode: u64) -> Option<Arc<Buffer>> {
        self.map(|map| map.get(&inode).cloned())
    }

    /// Whether an inode has one.
    pub fn has(&self, inode: u64) -> bool {
        self.map(|map| map.contains_key(&inode))
    }

    /// The inodes that have one.
    pub fn inodes(&self) -> Vec<u64> {
        self.map(|map| map.keys().copied().collect())
    }

    /// The inodes of which this life of the session holds bytes.
    pub fn held_by(&self, life: (u64, u64)) -> Vec<u64> {
        self.map(|map| {
            let held = |buffer: &Buffer| buffer.dirty(|dirty| !dirty.is_clean() && dirty.life == life);
            map.iter().filter(|(_, buffer)| held(buffer)).map(|(&inode, _)| inode).collect()
        })
    }

    /// Bytes held of this volume.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes held of this volume that leave by themselves: not those that the region has refused, for which it may have no room for long.
    pub fn leaving_bytes(&self) -> usize {
        let leaving =
            |buffer: &Arc<Buffer>| buffer.dirty(|dirty| if dirty.is_kept() { 0 } else { dirty.bytes() });
        self.map(|map| map.values().map(leaving).sum())
    }

    /// Why what is held of an inode couldn't be stored when it was sent last; none if it could, or nothing was sent.
    pub fn refused(&self, inode: u64) -> Option<Refused> {
        self.map(|map| map.get(&inode).and_then(|buffer| buffer.dirty(|dirty| dirty.refused)))
    }

    pub fn change<T>(&self, inode: u64, f: impl FnOnce(&mut Dirty) -> T) -> T {
        self.map(|map| {
            let buffer = map.entry(inode).or_default().clone();
            let result = buffer.dirty(|dirty| {
                let before = dirty.bytes();
                let result = f(dirty);
                for bytes in [&self.bytes, &self.room.bytes] {
                    bytes.fetch_add(dirty.bytes(), Ordering::Relaxed);
                    bytes.fetch_sub(before, Ordering::Relaxed);
                }
                let (accounts, spent, given_up) = dirty.settle();
                self.escrow.settle(&accounts, spent, given_up);
                result
            });
            drop(buffer);
            Self::drop_idle(map, inode);
            self.room.changed.notify_waiters();
            result
        })
    }

    fn drop_idle(map: &mut BTreeMap<u64, Arc<Buffer>>, inode: u64) {
        let idle = |buffer: &Arc<Buffer>| {
            Arc::strong_count(buffer) == 1 && buffer.dirty(|dirty| dirty.is_clean() && dirty.closed == 0)
        };
        if map.get(&inode).is_some_and(idle) {
            map.remove(&inode);
        }
    }

    /// A sender is done with its clone.
    pub fn give_back(&self, inode: u64, buffer: Arc<Buffer>) {
        self.map(|map| {
            drop(buffer);
            Self::drop_idle(map, inode);
        });
    }

    /// Shows attributes as they are with what is buffered.
    pub fn show(&self, attr: &mut Attr) {
        self.map(|map| {
            if let Some(buffer) = map.get(&attr.inode) {
                buffer.dirty(|dirty| dirty.show(attr));
            }
        });
    }

    /// What `known` says of an inode, as it is with what is buffered: in one section, so that bytes that reach the region meanwhile aren't
    /// missed in both. None where that is of another life than the one in which it was promised, which is `known`, too: what is shown of the file is
    /// known once it was sent or given up.
    pub fn show_known(&self, inode: u64, known: impl FnOnce() -> Option<(Attr, (u64, u64))>) -> Option<Attr> {
        self.map(|map| {
            let (mut attr, life) = known()?;
            let Some(buffer) = map.get(&inode) else { return Some(attr) };
            buffer.dirty(|dirty| {
                if dirty.is_foreign_to(life) {
                    return None;
                }
                dirty.show(&mut attr);
                Some(attr)
            })
        })
    }

    /// Whether something is buffered of an inode that was written in another life than this.
    pub fn is_foreign(&self, inode: u64, life: (u64, u64)) -> bool {
        self.map(|map| map.get(&inode).is_some_and(|buffer| buffer.dirty(|dirty| dirty.is_foreign_to(life))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;

    /// With a second buffer beside it, a sender would take bytes from one and call them sent in the other.
    #[test]
    fn an_inode_has_one_buffer_as_long_as_somebody_sends_from_it() {
        let buffers = Buffers::sharing(Arc::new(Room::new(100)));
        let put = |dirty: &mut Dirty| dirty.put(0, Bytes::from_static(b"x"), Instant::now(), 1);
        buffers.change(1, put);
        let (first, second) = (buffers.get(1).unwrap(), buffers.get(1).unwrap());
        buffers.change(1, Dirty::discard);
        buffers.change(1, put);
        assert!(Arc::ptr_eq(&first, &buffers.get(1).unwrap()));
        buffers.change(1, Dirty::discard);
        buffers.give_back(1, first);
        assert!(buffers.has(1));
        buffers.give_back(1, second);
        assert!(!buffers.has(1));
        assert_eq!(buffers.bytes(), 0);
    }

    #[test]
    fn what_one_volume_holds_another_cant_and_it_goes_with_the_volume() {
        let room = Arc::new(Room::new(100));
        let (one, other) = (Buffers::sharing(room.clone()), Buffers::sharing(room.clone()));
        let put = |dirty: &mut Dirty| dirty.put(0, Bytes::from_static(b"xyz"), Instant::now(), 1);
        one.change(1, put);
        other.change(2, put);
        assert_eq!((one.bytes(), other.bytes(), room.bytes()), (3, 3, 6));
        other.change(2, Dirty::discard);
        assert_eq!(room.bytes(), 3);
        drop(one);
        assert_eq!(room.bytes(), 0);
    }
}
