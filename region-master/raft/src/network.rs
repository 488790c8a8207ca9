//! openraft's network over our links, and the send times that the lease counts from.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use mooseng_ports::clock::{BootTime, Clock};
use mooseng_ports::plant::{self, Plant};
use mooseng_transport::{Blocking, CallFailure, Link, LinkOptions, Network, TRACE};
use mooseng_wire::Role;
use mooseng_wire::call::ErrorCode;
use mooseng_wire::method::Method;
use mooseng_wire::raft as wire;
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend, RaftMetrics, Snapshot, Vote};
use prost::Message;
use tokio::sync::watch;

use crate::calls::Calls;
use crate::codec::{self, RaftLogId};
use crate::deferring::{self, Deferring};
use crate::flushing::Flushing;
use crate::lease::Acknowledged;
use crate::lineage::{Line, Lineage};
use crate::log::Health;
use crate::snapshot::{PAGE_BYTES, PagesDigest, SnapshotSource, lock};
use crate::standing::Room;
use crate::types::{Node, TypeConfig};

/// How long one page of a snapshot may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the installation of a received snapshot may take.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(60);

/// One link to each peer, for everything that is said to it.
pub(crate) struct Links {
    network: Arc<dyn Network>,
    open: Mutex<BTreeMap<u64, Link>>,
}

impl Links {
    pub fn new(network: Arc<dyn Network>) -> Self {
        Self { network, open: Mutex::default() }
    }

    /// The link to a peer. A peer that moved gets another one.
    pub fn to(&self, peer: u64, address: &str) -> Link {
        let mut open = lock(&self.open);
        if let Some(link) = open.get(&peer).filter(|link| link.address() == address) {
            return link.clone();
        }
        // A connection that died without a word is noticed within an election timeout or so.
        let options = LinkOptions {
            backoff: Duration::from_millis(20),
            ping_interval: Duration::from_millis(250),
            silence_max: Duration::from_secs(1),
            ..LinkOptions::default()
        };
        let link = Link::new(self.network.clone(), address.to_owned(), Role::Master, options);
        open.insert(peer, link.clone());
        link
    }

    /// Ends all connections.
    pub fn close(&self) {
        for link in std::mem::take(&mut *lock(&self.open)).into_values() {
            link.close();
        }
    }
}

/// Makes openraft's clients of peers.
pub(crate) struct Peers {
    pub links: Arc<Links>,
    pub group: u32,
    pub lineage: Arc<Lineage>,
    pub health: Arc<Health>,
    pub clock: Arc<dyn Clock>,
    pub blocking: Blocking,
    pub acknowledged: Arc<Mutex<Acknowledged>>,
    /// Members that have acknowledged committed entries to this one.
    pub stored: Arc<Mutex<BTreeSet<u64>>>,
    /// Members that didn't answer when they were asked last, or refused.
    pub troubled: Arc<Mutex<BTreeSet<u64>>>,
    /// This member, and how long its lease is.
    pub id: u64,
    pub lease: Duration,
    /// What openraft knows; none before it has started.
    pub metrics: Metrics,
    /// What peers say of the room that they have.
    pub room: Arc<Room>,
    /// What this member has flushed itself.
    pub flushing: Flushing,
    /// How soon after an acknowledged append one without entries is left out.
    pub quiet: Duration,
    /// Which followers a commit needs.
    pub deferring: Arc<Mutex<Deferring>>,
    /// How long the others' entries wait at most.
    pub defer: Duration,
}

/// What a member knows of its group, once openraft has started.
pub(crate) type Metrics = Arc<OnceLock<watch::Receiver<RaftMetrics<u64, Node>>>>;

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = PeerLink;
    async fn new_client(&mut self, target: u64, node: &Node) -> PeerLink {
        PeerLink {
            target,
            link: self.links.to(target, &node.address),
            group: self.group,
            lineage: self.lineage.clone(),
            health: self.health.clone(),
            clock: self.clock.clone(),
            blocking: self.blocking,
            acknowledged: self.acknowledged.clone(),
            stored: self.stored.clone(),
            troubled: self.troubled.clone(),
            id: self.id,
            lease: self.lease,
            metrics: self.metrics.clone(),
            room: self.room.clone(),
            flushing: self.flushing.clone(),
            quiet: self.quiet,
            deferring: self.deferring.clone(),
            defer: self.defer,
            acknowledged_last: None,
        }
    }
}

/// One peer.
pub(crate) struct PeerLink {
    target: u64,
    link: Link,
    group: u32,
    lineage: Arc<Lineage>,
    health: Arc<Health>,
    clock: Arc<dyn Clock>,
    blocking: Blocking,
    acknowledged: Arc<Mutex<Acknowledged>>,
    stored: Arc<Mutex<BTreeSet<u64>>>,
    troubled: Arc<Mutex<BTreeSet<u64>>>,
    id: u64,
    lease: Duration,
    metrics: Metrics,
    room: Arc<Room>,
    flushing: Flushing,
    quiet: Duration,
    deferring: Arc<Mutex<Deferring>>,
    defer: Duration,
    /// When the last append was sent that the peer acknowledged, under which vote, and where its log ended then.
    acknowledged_last: Option<(BootTime, Vote<u64>, Option<RaftLogId>)>,
}

/// Every failure is *unreachable*: openraft then pauses before it tries again, where it would spin on other errors.
fn unreachable<E: std::error::Error>(failure: CallFailure) -> RPCError<u64, Node, E> {
    RPCError::Unreachable(Unreachable::new(&failure))
}

fn malformed<E: std::error::Error>(what: impl ToString) -> RPCError<u64, Node, E> {
    RPCError::Network(NetworkError::new(&AnyError::error(what.to_string())))
}

/// Whether it is news that a call to a peer failed, or that it didn't.
fn is_news(troubled: &mut BTreeSet<u64>, peer: u64, failed: bool) -> bool {
    if failed { troubled.insert(peer) } else { troubled.remove(&peer) }
}

/// Whether a peer refuses this member as one of a line that the group has left.
fn is_superseded(failure: &CallFailure, line: Line, group: u32) -> bool {
    let CallFailure::Remote(error) = failure else { return false };
    let theirs = error.detail.as_ref().try_into().ok().map(u32::from_be_bytes);
    error.code() == ErrorCode::OtherFounding
        && theirs.is_some_and(|word| Line(word.wrapping_sub(group)) > line)
}

type RpcResult<T> = Result<T, RPCError<u64, Node, RaftError<u64>>>;

impl RaftNetwork<TypeConfig> for PeerLink {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<u64>> {
        if self.says_nothing_new(&rpc) {
            return Ok(AppendEntriesResponse::Success);
        }
        // openraft gives up on the whole call in time, and with it what is learned from it here: the call itself is over before.
        let begun = tokio::time::Instant::now();
        self.let_others_go_first(&rpc).await;
        let within = option.hard_ttl().saturating_sub(begun.elapsed());
        let commit = self.committed_for_good(rpc.leader_commit);
        let message = wire::AppendEntries {
            group: self.word(),
            vote: Some(codec::vote(&rpc.vote)),
            prev: rpc.prev_log_id.as_ref().map(codec::log_id),
            commit: commit.as_ref().map(codec::log_id),
            entries: rpc.entries.iter().map(codec::entry).collect(),
            to: self.target,
            stored: self.has_stored(),
            held: self.holds_without_it(rpc.vote.leader_id.term),
        };
        let sent = self.clock.boot();
        // An append is a part of the trace of its first entry that has one; the call carries it.
        let context = self.flushing.traced().context(rpc.entries.iter().map(|entry| entry.log_id));
        let asked = self.link.request(Calls::of(self.group).append, &message, within);
        let answered: Result<wire::AppendAnswer, CallFailure> = TRACE.scope(context, asked).await;
        self.tell_of(&answered);
        self.learn_of(&rpc, &answered, self.clock.boot().since(sent));
        let answer = answered.map_err(|f| self.refused(f))?;
        self.room.tell(self.target, answer.short_of_room, self.clock.boot());
        use wire::append_answer::Outcome;
        let response = match answer.outcome {
            Some(Outcome::Success(_)) => AppendEntriesResponse::Success,
            Some(Outcome::Partial(id)) => {
                AppendEntriesResponse::PartialSuccess(Some(codec::from_log_id(&id)))
            }
            Some(Outcome::Conflict(_)) => AppendEntriesResponse::Conflict,
            Some(Outcome::HigherVote(vote)) => {
                return Ok(AppendEntriesResponse::HigherVote(codec::from_vote(&vote)));
            }
            None if answer.partial_none => AppendEntriesResponse::PartialSuccess(None),
            None => return Err(malformed("an answer to AppendEntries has no outcome")),
        };
        let last = rpc.entries.last().map(|e| e.log_id).or(rpc.prev_log_id);
        let kept = match &response {
            AppendEntriesResponse::Success => last.min(commit),
            AppendEntriesResponse::PartialSuccess(id) => (*id).min(commit),
            _ => None,
        };
        // Only what is committed is never cut off again; entry 0, the first members, isn't told from a group that is being made.
        if kept.is_some_and(|id| id.index > 0) {
            lock(&self.stored).insert(self.target);
        }
        if matches!(response, AppendEntriesResponse::Success) {
            self.acknowledged_last = Some((sent, rpc.vote, last));
        }
        // A conflict, too, comes from a follower that took this leader's vote for good.
        lock(&self.acknowledged).record(rpc.vote.leader_id.term, self.target, sent);
        Ok(response)
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, option: RPCOption) -> RpcResult<VoteResponse<u64>> {
        let message = wire::VoteRequest {
            group: self.word(),
            vote: Some(codec::vote(&rpc.vote)),
            last: rpc.last_log_id.as_ref().map(codec::log_id),
            to: self.target,
            stored: self.has_stored(),
        };
        let asked = self.link.request(Calls::of(self.group).vote, &message, option.hard_ttl());
        let answered: Result<wire::VoteAnswer, CallFailure> = asked.await;
        self.tell_of(&answered);
        let answer = answered.map_err(|f| self.refused(f))?;
        let vote = answer.vote.ok_or_else(|| malformed("an answer to a vote request has no vote"))?;
        Ok(VoteResponse {
            vote: codec::from_vote(&vote),
            vote_granted: answer.granted,
            last_log_id: answer.last.as_ref().map(codec::from_log_id),
        })
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        tokio::select! {
            sent = self.send(vote, snapshot) => sent,
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(100)))
    }
}

impl PeerLink {
    fn word(&self) -> u32 {
        self.group.wrapping_add(self.lineage.line().0)
    }

    /// Tells once that the peer isn't reached, and once that it is again. openraft tells of each attempt, ten in a second, which the daemons' log leaves out.
    fn tell_of<T>(&self, answered: &Result<T, CallFailure>) {
        let (master, address, group) = (self.target, self.link.address(), self.group);
        let is_news = is_news(&mut lock(&self.troubled), master, answered.is_err());
        match answered {
            Err(error) if is_news => {
                tracing::warn!(
                    master,
                    address,
                    group,
                    %error,
                    "a master isn't reached, or takes nothing; trying on"
                );
            }
            Ok(_) if is_news => tracing::info!(master, address, group, "a master is reached again"),
            _ => {}
        }
    }

    fn refused<E: std::error::Error>(&self, failure: CallFailure) -> RPCError<u64, Node, E> {
        if is_superseded(&failure, self.lineage.line(), self.group) {
            self.health.superseded.cancel();
        }
        unreachable(failure)
    }

    /// Whether an append without entries would only tell the peer what was committed, a moment after it acknowledged all before. openraft
    /// sends one behind each commit, and keeps the next entries waiting for its answer; the next append or heartbeat tells the same, unless followers are to
    /// hear at once ([`RaftConfig::tells_commits`](crate::RaftConfig::tells_commits)).
    /// The success that it is answered with was the peer's own answer, to a request that the lease counted.
    fn says_nothing_new(&self, rpc: &AppendEntriesRequest<TypeConfig>) -> bool {
        let Some((sent, vote, last)) = &self.acknowledged_last else { return false };
        rpc.entries.is_empty()
            && (*vote, *last) == (rpc.vote, rpc.prev_log_id)
            && self.clock.boot().since(*sent) < self.quiet
    }

    /// Keeps entries back that others acknowledge meanwhile; see [`Deferring`].
    async fn let_others_go_first(&self, rpc: &AppendEntriesRequest<TypeConfig>) {
        let Some(last) = rpc.entries.last().filter(|_| !self.defer.is_zero()) else { return };
        let Some(metrics) = self.metrics.get() else { return };
        let (voters, newest) = {
            let metrics = metrics.borrow();
            (metrics.membership_config.membership().get_joint_config().clone(), metrics.last_log_index)
        };
        if !deferring::keeps_up(newest, last.log_id.index) {
            return;
        }
        let term = rpc.vote.leader_id.term;
        let patience = lock(&self.deferring).patience(term, self.id, self.target, &voters, self.defer);
        let Some(patience) = patience else { return };
        tokio::time::sleep(patience).await;
        if lock(&self.deferring).have(term, last.log_id.index) {
            tokio::time::sleep(self.defer - patience).await;
        }
    }

    fn learn_of(
        &self,
        rpc: &AppendEntriesRequest<TypeConfig>,
        answered: &Result<wire::AppendAnswer, CallFailure>,
        took: Duration,
    ) {
        let term = rpc.vote.leader_id.term;
        match answered.as_ref().map(|answer| &answer.outcome) {
            Ok(Some(wire::append_answer::Outcome::Success(_))) => {
                if let Some(last) = rpc.entries.last() {
                    lock(&self.deferring).answered(term, self.target, last.log_id.index, took);
                }
            }
            _ => lock(&self.deferring).failed(term, self.target),
        }
    }

    /// What is committed although openraft counts entries of this member that aren't flushed yet.
    fn committed_for_good(&self, commit: Option<RaftLogId>) -> Option<RaftLogId> {
        let flushed = self.flushing.last().map(codec::from_wal);
        if plant::is(Plant::CommitUnflushed) { commit } else { commit.min(flushed) }
    }

    fn has_stored(&self) -> bool {
        lock(&self.stored).contains(&self.target)
    }

    /// Whether this member holds the lease of `term` now, even if the peer had acknowledged nothing. Not looked into for a peer that has
    /// stored what this member sent it: such a one must have a log.
    fn holds_without_it(&self, term: u64) -> bool {
        let Some(metrics) = self.metrics.get().filter(|_| !self.has_stored()) else { return false };
        let voters = metrics.borrow().membership_config.membership().get_joint_config().clone();
        let now = self.clock.boot();
        let others = lock(&self.acknowledged).without(self.target);
        others.until(term, self.id, &voters, now, self.lease).is_some_and(|until| now < until)
    }

    async fn call(
        &self,
        method: Method,
        message: &impl Message,
        timeout: Duration,
    ) -> Result<wire::SnapshotAnswer, StreamingError<TypeConfig, Fatal<u64>>> {
        let failed = |f: CallFailure| {
            tracing::info!(master = self.target, error = %f, "a part of a snapshot wasn't taken; trying on");
            StreamingError::Unreachable(Unreachable::new(&f))
        };
        self.link.request(method, message, timeout).await.map_err(failed)
    }

    async fn send(
        &self,
        vote: Vote<u64>,
        snapshot: Snapshot<TypeConfig>,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let failed = |what: String| StreamingError::Network(NetworkError::new(&AnyError::error(what)));
        let SnapshotSource::Pinned(pin) = *snapshot.snapshot else {
            return Err(failed("a received snapshot can't be sent on".into()));
        };
        let mut pin = lock(&pin).take().ok_or_else(|| failed("the snapshot was sent before".into()))?;
        let answered = |answer: wire::SnapshotAnswer| {
            let vote = answer.vote.map(|v| codec::from_vote(&v)).unwrap_or_default();
            (SnapshotResponse { vote }, answer.accepted)
        };
        let begin = wire::SnapshotBegin {
            group: self.word(),
            vote: Some(codec::vote(&vote)),
            last: snapshot.meta.last_log_id.as_ref().map(codec::log_id),
            membership: Some(codec::stored_membership(&snapshot.meta.last_membership)),
            // Each transfer is one of its own: pages of an earlier one that are still on their way mustn't count for it.
            id: format!("{}-{:08x}", snapshot.meta.snapshot_id, rand::random::<u32>()),
            to: self.target,
            stored: self.has_stored(),
            held: self.holds_without_it(vote.leader_id.term),
        };
        let calls = Calls::of(self.group);
        tracing::info!(target = self.target, id = begin.id, "sending a snapshot");
        let (response, accepted) = answered(self.call(calls.snapshot_begin, &begin, PAGE_TIMEOUT).await?);
        if !accepted {
            return Ok(response);
        }
        let mut digest = PagesDigest::new();
        let mut pages = 0;
        loop {
            let (back, page) = self
                .blocking
                .run(move || {
                    let page = pin.page(PAGE_BYTES);
                    (pin, page)
                })
                .await;
            pin = back;
            let page: Vec<(Bytes, Bytes)> = page.map_err(|e| failed(e.to_string()))?;
            if page.is_empty() {
                break;
            }
            digest.take(&page);
            let pairs = page.into_iter().map(|(key, value)| wire::Pair { key, value }).collect();
            let message =
                wire::SnapshotPage { group: self.word(), id: begin.id.clone(), sequence: pages, pairs };
            pages += 1;
            let (response, accepted) =
                answered(self.call(calls.snapshot_page, &message, PAGE_TIMEOUT).await?);
            if !accepted {
                return Ok(response);
            }
        }
        let end = wire::SnapshotEnd {
            group: self.word(),
            id: begin.id.clone(),
            pages,
            digest: digest.value(),
            vote: Some(codec::vote(&vote)),
        };
        let (response, accepted) = answered(self.call(calls.snapshot_end, &end, INSTALL_TIMEOUT).await?);
        tracing::info!(target = self.target, id = end.id, pages, accepted, "sent a snapshot");
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_peer_is_not_reached_is_news_once_and_that_it_is_again_too() {
        let mut troubled = BTreeSet::new();
        let calls =
            [(2, false), (2, true), (2, true), (3, true), (2, false), (2, false), (3, true), (2, true)];
        let news = calls.map(|(peer, failed)| is_news(&mut troubled, peer, failed));
        assert_eq!(news, [false, true, false, true, true, false, false, true]);
    }
}
