//! Leadership of a member: made known once it is confirmed, and handed over.

use std::sync::atomic::Ordering;
use std::time::Duration;

use mooseng_wire::raft as wire;
use openraft::ServerState;
use tokio::time::Instant;

use crate::codec;
use crate::node::RaftNode;
use crate::settings::RaftError;
use crate::snapshot::lock;

impl RaftNode {
    /// Watches openraft and makes leadership known: led only once everything before the term is applied and a quorum has confirmed.
    pub(crate) async fn watch_leadership(self) {
        self.follow_metrics().await;
        // However Raft ended, nothing is led any more.
        self.0.embedded.follow();
        self.0.leadership.send_modify(|l| l.leading = None);
        if let Some(failure) = self.failure().filter(|_| !self.0.shutdown.is_cancelled()) {
            tracing::error!(failure, "this master can't take part in its group any more");
        }
    }

    async fn follow_metrics(&self) {
        let inner = &self.0;
        let mut metrics = inner.raft.metrics();
        let mut held = Instant::now();
        let mut next_try = held;
        let mut unconfirmed = None;
        loop {
            let now = metrics.borrow_and_update().clone();
            let mine = now.state == ServerState::Leader && now.current_leader == Some(inner.id);
            let leading = inner.leadership.borrow().leading;
            let leads = leading.is_some() && self.lease_valid();
            if leads {
                // It has heard of a leader with a majority: itself. Whoever loses the lead is asked since when there is none.
                *lock(&inner.heard) = inner.clock.boot();
            }
            if leading.is_none() || leads {
                held = Instant::now();
            }
            // openraft 0.9 lets a leader without a quorum stay one. Those who wait for its commits had better ask another master.
            let alone = held.elapsed() > inner.timings.election_max;
            if leading.is_some() && (!mine || leading != Some(now.current_term) || alone) {
                tracing::info!(term = leading, "leads no longer");
                inner.embedded.follow();
                inner.leadership.send_modify(|l| l.leading = None);
            }
            let address =
                |id: &u64| now.membership_config.membership().get_node(id).map(|n| n.address.clone());
            let leader = now.current_leader.and_then(|id| Some((id, address(&id)?)));
            inner.leadership.send_if_modified(|l| {
                let changed = l.leader != leader;
                l.leader = leader;
                changed
            });
            let handing_over = inner.handing_over.load(Ordering::Acquire);
            let may_try = Instant::now() >= next_try;
            let well = inner.health.failed.get().is_none();
            if mine && well && !handing_over && may_try && inner.leadership.borrow().leading.is_none() {
                self.take_the_lead(now.current_term, &mut unconfirmed).await;
                // Where nobody is reached the answer comes at once, and with it a change of metrics: without a pause it would ask on and on.
                next_try = Instant::now() + inner.timings.heartbeat;
            }
            let look_again = mine || inner.leadership.borrow().leading.is_some();
            tokio::select! {
                () = inner.shutdown.cancelled() => return,
                changed = metrics.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(inner.timings.heartbeat), if look_again => {}
            }
        }
    }

    /// `unconfirmed`: the term of which it was told last that its leadership isn't confirmed. One without a majority tries on and on.
    async fn take_the_lead(&self, term: u64, unconfirmed: &mut Option<u64>) {
        let inner = &self.0;
        // Waits until this member has applied all that was committed, its own term's first entry included.
        let confirmed =
            tokio::time::timeout(inner.timings.election_max * 4, inner.raft.ensure_linearizable()).await;
        match confirmed {
            Ok(Ok(_)) if inner.raft.metrics().borrow().current_term == term => {
                inner.embedded.lead(term);
                tracing::info!(term, "leads");
                inner.leadership.send_modify(|l| l.leading = Some(term));
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) if unconfirmed.replace(term) != Some(term) => {
                tracing::info!(term, %error, "was elected, but leadership isn't confirmed yet; trying on");
            }
            Ok(Err(error)) => {
                tracing::debug!(term, %error, "was elected, but leadership isn't confirmed yet; trying on");
            }
            Err(_) => tracing::info!(term, "was elected, but leadership isn't confirmed in time"),
        }
    }

    /// Hands leadership over: this member drops its lease, stops electing and being heard until another leads, `wait` at most. The member
    /// that has the whole log is told to stand for election; should that fail, the others elect among themselves.
    pub async fn transfer_leader(&self, wait: Duration) -> Result<u64, RaftError> {
        if self.0.leadership.borrow().leading.is_none() {
            return Err(self.not_leader());
        }
        let ordering = Ordering::Release;
        self.0.handing_over.store(true, ordering);
        lock(&self.0.acknowledged).forget();
        self.0.leadership.send_modify(|l| l.leading = None);
        self.0.embedded.follow();
        self.0.raft.runtime_config().heartbeat(false);
        self.adjust_electing();
        let mut metrics = self.0.raft.metrics();
        let other = metrics.wait_for(|m| m.current_leader.is_some_and(|leader| leader != self.0.id));
        let telling = async {
            loop {
                self.tell_a_successor().await;
                tokio::time::sleep(self.0.timings.heartbeat).await;
            }
        };
        let elected = tokio::time::timeout(wait, async {
            tokio::select! { elected = other => elected, () = telling => unreachable!("it tells on and on") }
        });
        let elected = elected.await;
        let leader = elected.ok().and_then(Result::ok).and_then(|m| m.current_leader);
        self.0.raft.runtime_config().heartbeat(true);
        self.0.handing_over.store(false, ordering);
        self.adjust_electing();
        leader
            .ok_or_else(|| RaftError::Refused("no other master was elected in time; this one goes on".into()))
    }

    /// Tells a voter that has every entry to stand for election: by a vote request whose vote is this leader's own, committed one, as no
    /// candidate's is.
    async fn tell_a_successor(&self) {
        let m = self.metrics();
        if m.state != ServerState::Leader {
            return;
        }
        let membership = m.membership_config.membership();
        let has_all = |id: &u64| {
            let matched = m.replication.as_ref().and_then(|r| r.get(id).copied().flatten());
            *id != self.0.id && matched.is_some_and(|matched| Some(matched.index) >= m.last_log_index)
        };
        // One with room before one that is short of it.
        let able: Vec<u64> = membership.voter_ids().filter(has_all).collect();
        let roomy = able.iter().find(|id| self.room_of(**id) == Some(false));
        // Who makes way for one with room doesn't for another that is as short of it.
        let anybody = !(self.0.room.is_short() && self.is_room_elsewhere());
        let Some(successor) = roomy.or(able.first().filter(|_| anybody)).copied() else { return };
        let Some(node) = membership.get_node(&successor) else { return };
        let message = wire::VoteRequest {
            group: self.group_word(),
            vote: Some(codec::vote(&m.vote)),
            to: successor,
            ..Default::default()
        };
        let link = self.0.links.to(successor, &node.address);
        let told =
            link.request::<_, wire::VoteAnswer>(self.calls().vote, &message, self.0.timings.heartbeat).await;
        if let Err(error) = told {
            tracing::info!(successor, %error, "a successor couldn't be told to stand for election");
        }
    }
}
