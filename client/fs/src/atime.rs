//! Access times: which reads count (relatime), and those not yet sent.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use mooseng_wire::fs::{AtimeTouch, Attr};

/// Touches kept at most; further ones are dropped, for access times are a courtesy.
const PENDING_MAX: usize = 4096;
/// Touches in one message.
pub(crate) const BATCH: usize = 512;
const DAY_NS: i64 = 86_400_000_000_000;

/// Whether a read at `now_ns` moves the access time, as Linux' relatime has it.
pub(crate) fn moves(attr: &Attr, now_ns: i64) -> bool {
    attr.atime_ns <= attr.mtime_ns
        || attr.atime_ns <= attr.ctime_ns
        || now_ns.saturating_sub(attr.atime_ns) >= DAY_NS
}

/// Touches that wait to be sent together.
#[derive(Debug, Default)]
pub(crate) struct Touches(Mutex<BTreeMap<u64, i64>>);

impl Touches {
    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, i64>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
    pub fn add(&self, inode: u64, now_ns: i64) {
        self.map(|map| {
            if map.len() < PENDING_MAX || map.contains_key(&inode) {
                map.insert(inode, now_ns);
            }
        });
    }
    /// The application set the time itself: what was read before no longer counts.
    pub fn drop_inode(&self, inode: u64) {
        self.map(|map| map.remove(&inode));
    }
    pub fn take(&self) -> Vec<AtimeTouch> {
        self.map(|map| {
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && let Some((inode, atime_ns)) = map.pop_first()
            {
                batch.push(AtimeTouch { inode, atime_ns });
            }
            batch
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relatime() {
        let attr = |atime_ns, mtime_ns, ctime_ns| Attr { atime_ns, mtime_ns, ctime_ns, ..Attr::default() };
        assert!(moves(&attr(5, 5, 4), 6));
        assert!(moves(&attr(5, 4, 9), 6));
        assert!(!moves(&attr(5, 4, 4), 6));
        assert!(moves(&attr(5, 4, 4), 5 + DAY_NS));
    }

    #[test]
    fn touches_are_joined_bounded_and_forgotten() {
        let touches = Touches::default();
        touches.add(1, 10);
        touches.add(1, 20);
        touches.add(2, 30);
        touches.drop_inode(2);
        assert_eq!(touches.take(), vec![AtimeTouch { inode: 1, atime_ns: 20 }]);
        for inode in 0..10_000 {
            touches.add(inode, 1);
        }
        let mut sent = 0;
        while let batch = touches.take()
            && !batch.is_empty()
        {
            assert!(batch.len() <= BATCH);
            sent += batch.len();
        }
        assert_eq!(sent, PENDING_MAX);
    }
}
