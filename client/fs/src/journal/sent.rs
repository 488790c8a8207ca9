//! Changes that are sent the usual way: as long as one is under way nothing about the same is made alone. One whose caller has gone is abandoned, and goes on:
//! what changes the same later waits until it is over. What becomes of it the region's side sees to (`region::abandoned`).

use std::sync::Arc;

use mooseng_wire::fs::fs_request::Op;

use super::concerns::{about, comes_in_order};
use super::{Journal, count_down};

/// A change under way that was sent the usual way.
#[derive(Debug)]
pub(crate) struct SentOwned {
    journal: Arc<Journal>,
    about: Vec<u64>,
    in_order: bool,
    abandoned: bool,
}

impl SentOwned {
    /// Its caller has gone, and it goes on: whoever changes the same later waits for it. Its caller may have been waited for, and was killed.
    pub fn abandon(&mut self) {
        if self.in_order && !self.abandoned {
            self.abandoned = true;
            self.journal.state(|s| {
                for inode in &self.about {
                    *s.abandoned.entry(*inode).or_default() += 1;
                }
            });
        }
    }
}

impl Drop for SentOwned {
    fn drop(&mut self) {
        if !self.about.is_empty() {
            self.journal.state(|s| {
                for inode in &self.about {
                    count_down(&mut s.sent, *inode);
                    if self.abandoned {
                        count_down(&mut s.abandoned, *inode);
                    }
                }
            });
            self.journal.moved.notify_waiters();
        }
    }
}

impl Journal {
    /// Before a change leaves the usual way. Nothing about the same is made alone until it has ended.
    pub async fn enter_owned(self: &Arc<Self>, op: &Op) -> SentOwned {
        let (about, all) = about(op);
        let mark = self.state(|s| {
            for inode in &about {
                *s.sent.entry(*inode).or_default() += 1;
            }
            s.mark(&about, all)
        });
        let sent = SentOwned { journal: self.clone(), about, in_order: comes_in_order(op), abandoned: false };
        if let Some(mark) = mark {
            self.resolved(mark).await;
        }
        sent
    }

    /// Whether a change of one of these inodes is under way whose caller has gone.
    pub fn is_abandoned(&self, inodes: &[u64]) -> bool {
        self.state(|s| inodes.iter().any(|inode| s.abandoned.contains_key(inode)))
    }

    /// Waits until none is. What a later change of the same would do mustn't be undone by one that came before it.
    pub async fn behind_abandoned(&self, inodes: &[u64]) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if !self.is_abandoned(inodes) {
                return;
            }
            moved.await;
        }
    }

    /// [`Self::behind_abandoned`] for a change that is sent the usual way.
    pub async fn behind_abandoned_of(&self, op: &Op) {
        if comes_in_order(op) {
            self.behind_abandoned(&about(op).0).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::fs::{AtimeTouch, TouchAtime, Unlink};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_waits_for_those_of_the_same_whose_callers_have_gone() {
        let journal = Arc::new(Journal::default());
        let op = Op::Unlink(Unlink { parent: 1, name: "x".into() });
        let (mut first, mut second) = (journal.enter_owned(&op).await, journal.enter_owned(&op).await);
        assert!(!journal.is_abandoned(&[1]), "somebody waits for it, and may judge for himself");
        first.abandon();
        second.abandon();
        second.abandon();
        let mut later = Box::pin(journal.behind_abandoned_of(&op));
        assert!(futures::poll!(&mut later).is_pending());
        assert!(!journal.is_abandoned(&[2]));
        drop(first);
        assert!(futures::poll!(&mut later).is_pending());
        drop(second);
        later.await;
        let touch = Op::TouchAtime(TouchAtime { touches: vec![AtimeTouch { inode: 1, atime_ns: 5 }] });
        let mut touching = journal.enter_owned(&touch).await;
        touching.abandon();
        assert!(!journal.is_abandoned(&[1]), "nothing rests on it");
    }
}
