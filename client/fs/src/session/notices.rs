//! What masters send by themselves: recalls, which are acted on and answered, and locks that were given.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use mooseng_ports::plant::{self, Plant};
use mooseng_wire::Role;
use mooseng_wire::fact::{Fact, Level};
use mooseng_wire::method::Method;
use mooseng_wire::session::{AnswerRecalls, Notice};
use prost::Message;
use tokio::sync::broadcast;

use super::{RENEW_TIMEOUT, Seat, Session};
use crate::peers::Peers;

impl Session {
    pub(super) fn notice(self: &Arc<Self>, method: Method, body: &Bytes) {
        if method != Method::Notice {
            return;
        }
        let Ok(notice) = Notice::decode(body.clone()) else {
            tracing::warn!("a master sent a malformed notice");
            return;
        };
        let Some(seat) = self.seat_now() else { return };
        // Of another life, or of another custodian: what it names isn't held any more.
        if notice.session != seat.session || notice.custody_epoch != seat.custody_epoch {
            return;
        }
        if notice.moved {
            return self.gone(&seat);
        }
        if !notice.locks.is_empty() {
            self.near.saw(notice.log_epoch, notice.log_version);
            self.grants.granted(&notice.locks);
            let (session, seat) = (self.clone(), seat.clone());
            tokio::spawn(async move { session.heard(seat, notice.locks).await });
        }
        let mut quick = Vec::new();
        for recall in notice.recalls {
            let Some(fact) = recall.fact.as_ref().and_then(Fact::from_message) else { continue };
            let key = (notice.custody_epoch, recall.number);
            if !self.recalling.lock().unwrap_or_else(PoisonError::into_inner).insert(key) {
                continue;
            }
            let keep = recall.keep_shared.then_some(Level::Shared);
            let slow = self.recalls.get().is_some_and(|recalled| recalled.has_buffered(&fact));
            if slow {
                let (session, seat) = (self.clone(), seat.clone());
                tokio::spawn(async move { session.give_up(seat, vec![(recall.number, fact, keep)]).await });
            } else {
                quick.push((recall.number, fact, keep));
            }
        }
        if !quick.is_empty() {
            let session = self.clone();
            tokio::spawn(async move { session.give_up(seat, quick).await });
        }
    }

    /// Gives up what was recalled, then says so. A lost answer is made up for: the master asks again.
    async fn give_up(&self, seat: Seat, recalls: Vec<(u64, Fact, Option<Level>)>) {
        let each = recalls.iter().map(|(number, fact, keep)| async move {
            if let Some(recalled) = self.recalls.get() {
                recalled.before(fact, *keep).await;
            }
            if !plant::is(Plant::RecallSkipped) {
                self.facts.recall(*number, fact, *keep);
            }
            // What was made alone before the fact was given up: whoever asked is to find it. It waits for the region alone, never for the kernel.
            if !plant::is(Plant::RecallAnsweredUntold) {
                self.journal.told_and_still().await;
            }
            if let Some(recalled) = self.recalls.get() {
                recalled.after(fact, *keep).await;
            }
        });
        futures::future::join_all(each).await;
        let numbers: Vec<u64> = recalls.iter().map(|(number, _, _)| *number).collect();
        let answer = AnswerRecalls {
            session: seat.session,
            incarnation: seat.incarnation,
            custody_epoch: seat.custody_epoch,
            numbers: numbers.clone(),
            locks: Vec::new(),
            oldest_unanswered: self.settled.load(Ordering::Acquire),
        };
        let told = self
            .peers
            .call(
                Role::Master,
                &seat.leader,
                Method::AnswerRecalls,
                answer.encode_to_vec().into(),
                Bytes::new(),
                RENEW_TIMEOUT,
            )
            .await;
        if let Err(failure) = told {
            tracing::debug!(%failure, "an answer to recalls was lost; the master asks again");
        }
        let mut recalling = self.recalling.lock().unwrap_or_else(PoisonError::into_inner);
        for number in numbers {
            recalling.remove(&(seat.custody_epoch, number));
        }
    }
}

/// What a master sends by itself.
pub(crate) struct Notices<'a> {
    peers: &'a dyn Peers,
    leader: Option<&'a str>,
    receiver: Option<broadcast::Receiver<(Method, Bytes)>>,
}

impl<'a> Notices<'a> {
    /// What that one sends from now on. Nothing ever comes of nobody, and where nothing can come.
    pub fn of(peers: &'a dyn Peers, leader: Option<&'a str>) -> Self {
        let receiver = leader.and_then(|leader| peers.notices(Role::Master, leader));
        Self { peers, leader, receiver }
    }

    /// The next one; none where some were missed. Waits for ever where none can come.
    pub async fn next(&mut self) -> Option<(Method, Bytes)> {
        let Some(receiver) = &mut self.receiver else { return std::future::pending().await };
        match receiver.recv().await {
            Ok(notice) => Some(notice),
            // Recalls are repeated until they are answered.
            Err(broadcast::error::RecvError::Lagged(_)) => None,
            // The connection's keeper has given it up for another. What renews goes on over a new one, and so must this: promises that stand and aren't
            // taken back any more would keep others waiting without end.
            Err(broadcast::error::RecvError::Closed) => {
                *self = Self::of(self.peers, self.leader);
                None
            }
        }
    }
}
