//! The keeper: the task that looks for a leader, answers a new custodian, and renews the lease for as long as that lasts.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mooseng_wire::Role;
use mooseng_wire::founding::Founding;
use mooseng_wire::method::Method;
use mooseng_wire::revocations::Agreed;
use mooseng_wire::session::{Renew, Renewed};
use prost::Message;
use rand::Rng;
use tokio::time::Instant;

use super::notices::Notices;
use super::{Doubt, NoLeader, RENEW_TIMEOUT, Seat, Session};
use crate::retry::Backoff;

/// The longest pause between searches, and the one where a volume besides the root doesn't let this host in.
const SEARCH_REST: Duration = Duration::from_millis(300);
const REFUSED_REST: Duration = Duration::from_secs(2);
/// A session that isn't renewed is over at the master so long after its lease has ended here: the way that its last question took, and what clocks differ by.
const OUTLIVED_BY: Duration = Duration::from_secs(3);

impl Session {
    /// Keeps the session until shutdown.
    pub async fn keep(self: Arc<Self>) {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = self.keep_on() => {}
        }
    }

    async fn keep_on(self: &Arc<Self>) {
        let mut backoff = Backoff::default();
        loop {
            match self.search().await {
                Ok(()) => backoff = Backoff::default(),
                Err(NoLeader { no_volume: true, .. }) => return self.no_volume(),
                Err(NoLeader { error, refused, other, .. }) => {
                    let refuses = refused.is_some();
                    self.state(|s| (s.last_error, s.refused) = (error, refused));
                    if refuses {
                        self.publish();
                    }
                    if let Some(other) = other {
                        self.met_another(other);
                    }
                    // The keeper's own pauses aren't drawn from the budget: it is what everybody waits for.
                    let unit = self.random.lock().unwrap_or_else(PoisonError::into_inner).random::<f64>();
                    // Where nobody is let in, nobody waits either.
                    let shut_out = refuses && self.config.volume != 0;
                    let pause =
                        if shut_out { REFUSED_REST } else { backoff.pause(unit, true).min(SEARCH_REST) };
                    tokio::time::sleep(pause).await;
                    continue;
                }
            }
            self.answer_custody().await;
            self.renew_while_it_lasts().await;
        }
    }

    /// Takes back what was shown under another custodian or in an earlier life, and says so: until then nobody gets anything
    /// from a new custodian.
    async fn answer_custody(&self) {
        // What this custodian knows of: asked later, it may be nobody's any more, and an unanswered request mustn't cost locks.
        let Some((life, seat, knows_locks_alone)) = self
            .state(|s| Some(((s.custody_epoch, s.session, s.incarnation), s.seat.clone()?, s.locks_alone)))
        else {
            return;
        };
        if self.state(|s| s.answered) == life {
            return;
        }
        // Nothing is added to the buffers since the promises of the custodian before were renounced, so the list is complete. Nobody is
        // served before this session answers, so nobody else can have been promised these inodes.
        let untold = !self.journal.held_by((life.1, life.2)).is_empty();
        let has_locks = !self.locks.held_here(self.tenure()).is_empty();
        if has_locks && !knows_locks_alone {
            return self.outlive(&seat).await;
        }
        if (untold || has_locks || !self.buffers.held_by((life.1, life.2)).is_empty())
            && let Err(failure) = self.open_as(&seat.leader, life.1, life.2, life.0).await
        {
            tracing::debug!(%failure, "what is buffered couldn't be claimed yet");
            return self.gone(&seat);
        }
        if let Some(recalled) = self.recalls.get() {
            recalled.everything().await;
        }
        self.state(|s| s.answered = life);
        if let Err(error) = self.renew(&seat).await {
            tracing::debug!(%error, "the new custodian couldn't be answered yet");
            self.gone(&seat);
        }
    }

    /// A custodian of an earlier release, which knows nothing of the locks that this mount has given by itself, would give them to others. It isn't answered, and so
    /// nobody is served, before this life of the session is over, and the locks are lost with it, as by any lapse.
    async fn outlive(&self, seat: &Seat) {
        tracing::warn!(
            leader = %seat.leader,
            "the region's leader is of an earlier release, and can't be told of locks that this mount has given: the session is left to lapse, and they are lost with it"
        );
        let (now, until) = (self.clock.boot(), self.state(|s| s.lease_until));
        let left = until.map_or(Duration::ZERO, |until| until.since(now));
        tokio::time::sleep(left + OUTLIVED_BY).await;
        self.gone(seat);
    }

    async fn renew_while_it_lasts(self: &Arc<Self>) {
        let leader = self.state(|s| s.seat.as_ref().map(|seat| seat.leader.clone()));
        let mut notices = Notices::of(&*self.peers, leader.as_deref());
        // Counted from the last renewal, whatever comes in between: recalls that keep coming mustn't keep the lease from being renewed.
        let mut renew_at = Instant::now() + self.config.renew_interval;
        loop {
            // A doubt that was raised before this point is seen in the state, a later one wakes us.
            tokio::select! {
                () = tokio::time::sleep_until(renew_at) => {}
                () = self.doubted.notified() => {}
                notice = notices.next() => {
                    if let Some((method, body)) = notice {
                        self.notice(method, &body);
                    }
                    continue;
                }
            }
            renew_at = Instant::now() + self.config.renew_interval;
            let Some((seat, doubt)) =
                self.state(|s| Some((s.seat.clone()?, std::mem::replace(&mut s.doubt, Doubt::None))))
            else {
                return;
            };
            let lost = match doubt {
                Doubt::Search => Some("the leader stepped down or its connection was lost".to_owned()),
                Doubt::None | Doubt::Ask => self.renew(&seat).await.err(),
            };
            if let Some(error) = lost {
                tracing::info!(leader = %seat.leader, session = seat.session, %error, "looking for the region's leader");
                self.state(|s| {
                    s.seat = None;
                    s.last_error = error;
                });
                return;
            }
        }
    }

    async fn renew(&self, seat: &Seat) -> Result<(), String> {
        let sent = self.clock.boot();
        let renew = Renew {
            session: seat.session,
            incarnation: seat.incarnation,
            custody_epoch: self.state(|s| s.answered.0),
            oldest_unanswered: self.settled.load(Ordering::Acquire),
            founding: Founding::tell(self.state(|s| s.founding)),
            escrow: self.buffers.escrow.tell(tokio::time::Instant::now()),
            revocations_version: self.peers.refusing(),
        };
        let answer = self
            .peers
            .call(
                Role::Master,
                &seat.leader,
                Method::Renew,
                renew.encode_to_vec().into(),
                Bytes::new(),
                RENEW_TIMEOUT,
            )
            .await;
        let body = answer.map_err(|failure| format!("{}: {failure}", seat.leader))?.body;
        let renewed = Renewed::decode(body)
            .map_err(|e| format!("{}: malformed answer to a renewal: {e}", seat.leader))?;
        match renewed.revocations.as_ref().map(Agreed::from_told) {
            Some(Ok(agreed)) => self.peers.refuse(agreed),
            Some(Err(error)) => {
                tracing::warn!(leader = %seat.leader, %error, "what a master says that the cluster has revoked isn't understood");
            }
            None => {}
        }
        let now = self.clock.boot();
        if self.state(|s| s.lease_until.is_some_and(|until| now >= until)) {
            // What was promised may have been given up in between: the session is taken up anew, with nothing.
            return Err(format!("{}: the lease ran out before its renewal came", seat.leader));
        }
        if renewed.custody_epoch != seat.custody_epoch {
            return Err(format!("{}: it is custodian for another epoch now", seat.leader));
        }
        self.buffers.escrow.renewed(renewed.quotas);
        self.pace.heard(renewed.held, Instant::now());
        self.state(|s| {
            let until = sent.after(Duration::from_millis(renewed.lease_ms.into()));
            s.lease_until = Some(until);
            self.facts.lease(until);
            s.custody_epoch = s.custody_epoch.max(renewed.custody_epoch);
            s.last_error.clear();
            s.confirmed += 1;
            let custody_epoch = s.custody_epoch;
            if let Some(now) = &mut s.seat {
                now.confirmed += 1;
                now.custody_epoch = custody_epoch;
            }
            if s.doubt == Doubt::Ask {
                s.doubt = Doubt::None;
            }
        });
        self.publish();
        Ok(())
    }
}
