//! A member of the group.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_embedded::{ApplyOutcome, CommitLog, Embedded, ProposeError};
use mooseng_ports::clock::{BootTime, Clock};
use mooseng_ports::disk::Disk;
use mooseng_transport::{Answer, Blocking, Incoming, Network, call_error};
use mooseng_wal::{Options as WalOptions, Wal, WalError};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::method::Method;
use mooseng_wire::raft as wire;
use mooseng_wire::{NodeId, Role};
use openraft::error::{ClientWriteError, RaftError as OpenraftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use openraft::{ChangeMembers, Config, Raft, RaftMetrics, ServerState, Snapshot, SnapshotMeta, SnapshotPolicy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::codec;
use crate::lease::Acknowledged;
use crate::log::Log;
use crate::machine::Machine;
use crate::network::Peers;
use crate::snapshot::{PagesDigest, Receiving, SnapshotSource, lock};
use crate::types::{Batch, Node, Outcome, TypeConfig};

/// Raft's timings.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// How often a leader is heard of.
    pub heartbeat: Duration,
    /// The least silence after which a follower elects.
    pub election_min: Duration,
    /// The greatest.
    pub election_max: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(600),
            election_max: Duration::from_millis(1200),
        }
    }
}

impl Timings {
    /// The leader's lease: shorter than any follower's promise by a fifth, far more than clocks differ in rate.
    pub fn lease(&self) -> Duration {
        self.election_min.mul_f64(0.8)
    }
}

/// What a member needs to know.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    /// Its number in the group.
    pub id: u64,
    /// The group's number: 0 is the region group.
    pub group: u32,
    /// Its name.
    pub name: String,
    /// Where peers reach it.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// The log's directory.
    pub dir: PathBuf,
    /// How fast.
    pub timings: Timings,
    /// The log's sizes.
    pub wal: WalOptions,
    /// Entries that are kept behind a snapshot, for followers that are a little behind.
    pub entries_kept: u64,
    /// Applied entries after which the store is flushed and the log purged.
    pub entries_between_snapshots: u64,
}

impl RaftConfig {
    /// A region group's member with the usual settings.
    pub fn new(id: u64, name: &str, address: &str, zone: &str, dir: PathBuf) -> Self {
        Self {
            id,
            group: 0,
            name: name.into(),
            address: address.into(),
            zone: zone.into(),
            dir,
            timings: Timings::default(),
            wal: WalOptions::default(),
            entries_kept: 5_000,
            entries_between_snapshots: 10_000,
        }
    }
}

/// A member as the group knows it.
pub type Member = Node;

/// Why a member can't start or change.
#[derive(Debug, thiserror::Error)]
pub enum RaftError {
    /// The log can't be opened.
    #[error(transparent)]
    Log(#[from] WalError),
    /// openraft refused.
    #[error("the group refused: {0}")]
    Refused(String),
    /// Another member must be asked.
    #[error("this master doesn't lead; the leader is {leader:?}")]
    NotLeader {
        /// Its address, if known.
        leader: Option<String>,
    },
}

/// Who leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The term in which this member leads and serves: it has applied everything before its term.
    pub leading: Option<u64>,
    /// The leader as far as this member knows: id and address.
    pub leader: Option<(u64, String)>,
}

/// One member's state, as the asked one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its number.
    pub id: u64,
    /// What it is.
    pub node: Node,
    /// It votes.
    pub voter: bool,
    /// The last entry known to be there; only a leader knows it of others.
    pub matched: Option<u64>,
}

/// The group, as the asked member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// The asked member.
    pub id: u64,
    /// The current term.
    pub term: u64,
    /// The leader, if known.
    pub leader: Option<u64>,
    /// The last entry in the asked member's log.
    pub last_log: u64,
    /// The last entry that it applied.
    pub applied: u64,
    /// All members.
    pub members: Vec<MemberStatus>,
}

struct Inner {
    id: u64,
    group: u32,
    raft: Raft<TypeConfig>,
    embedded: Embedded,
    blocking: Blocking,
    clock: Arc<dyn Clock>,
    timings: Timings,
    acknowledged: Arc<Mutex<Acknowledged>>,
    leadership: watch::Sender<Leadership>,
    receiving: Mutex<Option<Receiving>>,
    handing_over: std::sync::atomic::AtomicBool,
    heard: Mutex<BootTime>,
    shutdown: CancellationToken,
}

/// A member of the group. Clones share it.
#[derive(Clone)]
pub struct RaftNode(Arc<Inner>);

struct Proposals(RaftNode);

#[async_trait]
impl CommitLog for Proposals {
    async fn propose(&self, term: u64, batch: Bytes) -> Result<ApplyOutcome, ProposeError> {
        let inner = &self.0.0;
        if inner.raft.metrics().borrow().current_term != term {
            return Err(ProposeError::NotLeader);
        }
        match inner.raft.client_write(Batch(batch)).await {
            Ok(response) => match response.data {
                Outcome::Applied => Ok(ApplyOutcome::Applied),
                Outcome::Mismatch | Outcome::Nothing => Ok(ApplyOutcome::Mismatch),
            },
            // A leader that steps down answers so for entries that it had appended, too.
            Err(OpenraftError::APIError(ClientWriteError::ForwardToLeader(_)) | OpenraftError::Fatal(_)) => {
                Err(ProposeError::Unknown)
            }
            Err(OpenraftError::APIError(ClientWriteError::ChangeMembershipError(_))) => Err(ProposeError::NotLeader),
        }
    }
}

fn config(own: &RaftConfig) -> Result<Arc<Config>, RaftError> {
    let ms = |d: Duration| d.as_millis() as u64;
    let config = Config {
        cluster_name: format!("group-{}", own.group),
        heartbeat_interval: ms(own.timings.heartbeat),
        election_timeout_min: ms(own.timings.election_min),
        election_timeout_max: ms(own.timings.election_max),
        install_snapshot_timeout: 60_000,
        max_payload_entries: 64,
        replication_lag_threshold: own.entries_kept.max(2),
        // Snapshots are taken by us, after a flush of the store.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: own.entries_kept,
        purge_batch_size: 256,
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|e| RaftError::Refused(e.to_string()))
}

impl RaftNode {
    /// Starts the member over its log and store. A member that may have promised its vote in an earlier life waits one election timeout
    /// first: that promise, by which a leader counts its lease, isn't on disk.
    pub async fn start(
        own: RaftConfig,
        disk: Arc<dyn Disk>,
        blocking: Blocking,
        clock: Arc<dyn Clock>,
        network: Arc<dyn Network>,
        embedded: Embedded,
    ) -> Result<Self, RaftError> {
        let (dir, options) = (own.dir.clone(), own.wal);
        let wal = Arc::new(blocking.run(move || Wal::open(disk, &dir, options)).await?);
        if wal.vote().is_some() {
            tokio::time::sleep(own.timings.election_max).await;
        }
        let flushed_of = embedded.clone();
        let flushed = Arc::new(move || flushed_of.flushed_index().checked_sub(1));
        let log = Log { wal, blocking, flushed };
        let machine = Machine { embedded: embedded.clone(), blocking };
        let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
        let peers = Peers {
            network,
            group: own.group,
            clock: clock.clone(),
            blocking,
            acknowledged: acknowledged.clone(),
        };
        let raft = Raft::new(own.id, config(&own)?, peers, log, machine).await;
        let raft = raft.map_err(|e| RaftError::Refused(e.to_string()))?;
        let node = Self(Arc::new(Inner {
            id: own.id,
            group: own.group,
            raft,
            embedded: embedded.clone(),
            blocking,
            heard: Mutex::new(clock.boot()),
            clock,
            timings: own.timings,
            acknowledged,
            leadership: watch::channel(Leadership::default()).0,
            receiving: Mutex::new(None),
            handing_over: false.into(),
            shutdown: CancellationToken::new(),
        }));
        embedded.set_log(Arc::new(Proposals(node.clone())));
        tokio::spawn(node.clone().watch_leadership());
        tokio::spawn(node.clone().purge_now_and_then(own.entries_between_snapshots));
        Ok(node)
    }

    /// Whether a call is for [`handle`](Self::handle).
    pub fn is_raft(method: Method) -> bool {
        use Method::*;
        matches!(method, RaftAppend | RaftVote | RaftSnapshotBegin | RaftSnapshotPage | RaftSnapshotEnd)
    }

    fn metrics(&self) -> RaftMetrics<u64, Node> {
        self.0.raft.metrics().borrow().clone()
    }

    /// The leader as far as this member knows.
    pub fn leader(&self) -> Option<(NodeId, String)> {
        self.0.leadership.borrow().leader.clone().map(|(id, address)| (NodeId(id), address))
    }

    /// The current term.
    pub fn term(&self) -> u64 {
        self.0.raft.metrics().borrow().current_term
    }

    /// Whether this member leads, serves, and holds the lease now.
    pub fn is_leading(&self) -> bool {
        self.0.leadership.borrow().leading.is_some() && self.lease_valid()
    }

    /// Whether no other member can lead now. Check it last before an answer leaves.
    pub fn lease_valid(&self) -> bool {
        let inner = &self.0;
        let Some(term) = inner.leadership.borrow().leading else { return false };
        if inner.handing_over.load(std::sync::atomic::Ordering::Acquire) {
            return false;
        }
        let now = inner.clock.boot();
        let voters = {
            let metrics = inner.raft.metrics();
            let metrics = metrics.borrow();
            metrics.membership_config.membership().get_joint_config().clone()
        };
        let until = lock(&inner.acknowledged).until(term, inner.id, &voters, now, inner.timings.lease());
        until.is_some_and(|until| now < until)
    }

    /// How long ago this member led or heard of a leader.
    pub fn silence(&self) -> Duration {
        if self.is_leading() {
            return Duration::ZERO;
        }
        self.0.clock.boot().since(*lock(&self.0.heard))
    }

    /// Follows who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.subscribe()
    }

    /// Begins a new group with these members. Only for a member that has no log yet; elsewhere it does nothing.
    pub async fn initialize(&self, members: BTreeMap<u64, Member>) -> Result<(), RaftError> {
        if self.0.raft.is_initialized().await.map_err(|e| RaftError::Refused(e.to_string()))? {
            return Ok(());
        }
        self.0.raft.initialize(members).await.map_err(|e| RaftError::Refused(e.to_string()))
    }

    fn not_leader(&self) -> RaftError {
        RaftError::NotLeader { leader: self.leader().map(|(_, address)| address) }
    }

    /// Changes the members, new ones first as learners until they have caught up, then by joint consensus. Answers the voters.
    pub async fn change_members(&self, add: BTreeMap<u64, Member>, remove: BTreeSet<u64>) -> Result<Vec<u64>, RaftError> {
        if !self.is_leading() {
            return Err(self.not_leader());
        }
        let refused = |e: &dyn std::error::Error| RaftError::Refused(e.to_string());
        let mut voters: BTreeSet<u64> = self.metrics().membership_config.membership().voter_ids().collect();
        voters.retain(|id| !remove.contains(id));
        voters.extend(add.keys());
        if voters.is_empty() {
            return Err(RaftError::Refused("a group needs at least one master".into()));
        }
        for (id, node) in add {
            self.0.raft.add_learner(id, node, true).await.map_err(|e| refused(&e))?;
        }
        self.0.raft.change_membership(ChangeMembers::ReplaceAllVoters(voters.clone()), false).await.map_err(|e| refused(&e))?;
        Ok(voters.into_iter().collect())
    }

    /// Hands leadership over: this member drops its lease, stops electing and being heard until another leads, `wait` at most.
    /// openraft 0.9 can't name the successor, so the other members elect among themselves.
    pub async fn transfer_leader(&self, wait: Duration) -> Result<u64, RaftError> {
        if !self.is_leading() {
            return Err(self.not_leader());
        }
        let ordering = std::sync::atomic::Ordering::Release;
        self.0.handing_over.store(true, ordering);
        lock(&self.0.acknowledged).forget();
        self.0.leadership.send_modify(|l| l.leading = None);
        self.0.embedded.follow();
        self.0.raft.runtime_config().heartbeat(false);
        self.0.raft.runtime_config().elect(false);
        let mut metrics = self.0.raft.metrics();
        let other = metrics.wait_for(|m| m.current_leader.is_some_and(|leader| leader != self.0.id));
        let elected = tokio::time::timeout(wait, other).await;
        let leader = elected.ok().and_then(Result::ok).and_then(|m| m.current_leader);
        self.0.raft.runtime_config().heartbeat(true);
        self.0.raft.runtime_config().elect(true);
        self.0.handing_over.store(false, ordering);
        leader.ok_or_else(|| RaftError::Refused("no other master was elected in time; this one goes on".into()))
    }

    /// The group as this member sees it.
    pub fn status(&self) -> RaftStatus {
        let m = self.metrics();
        let membership = m.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let matched = |id: &u64| m.replication.as_ref().and_then(|r| r.get(id).copied().flatten()).map(|l| l.index);
        RaftStatus {
            id: self.0.id,
            term: m.current_term,
            leader: m.current_leader,
            last_log: m.last_log_index.unwrap_or(0),
            applied: m.last_applied.map_or(0, |l| l.index),
            members: membership
                .nodes()
                .map(|(id, node)| MemberStatus {
                    id: *id,
                    node: node.clone(),
                    voter: voters.contains(id),
                    matched: matched(id),
                })
                .collect(),
        }
    }

    /// Stops the member. What was acknowledged is on disk.
    pub async fn shutdown(&self) {
        self.0.shutdown.cancel();
        self.0.embedded.close();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "the Raft task ended badly");
        }
    }

    /// Watches openraft and makes leadership known: led only once everything before the term is applied and a quorum has confirmed.
    async fn watch_leadership(self) {
        let inner = &self.0;
        let mut metrics = inner.raft.metrics();
        loop {
            let now = metrics.borrow_and_update().clone();
            let mine = now.state == ServerState::Leader && now.current_leader == Some(inner.id);
            let leading = inner.leadership.borrow().leading;
            if leading.is_some() && (!mine || leading != Some(now.current_term)) {
                tracing::info!(term = leading, "leads no longer");
                inner.embedded.follow();
                inner.leadership.send_modify(|l| l.leading = None);
            }
            let address = |id: &u64| now.membership_config.membership().get_node(id).map(|n| n.address.clone());
            let leader = now.current_leader.and_then(|id| Some((id, address(&id)?)));
            inner.leadership.send_if_modified(|l| {
                let changed = l.leader != leader;
                l.leader = leader;
                changed
            });
            let handing_over = inner.handing_over.load(std::sync::atomic::Ordering::Acquire);
            if mine && !handing_over && inner.leadership.borrow().leading.is_none() {
                self.take_the_lead(now.current_term).await;
            }
            let retry = mine && inner.leadership.borrow().leading.is_none();
            tokio::select! {
                () = inner.shutdown.cancelled() => return,
                changed = metrics.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(inner.timings.heartbeat), if retry => {}
            }
        }
    }

    async fn take_the_lead(&self, term: u64) {
        let inner = &self.0;
        // Waits until this member has applied all that was committed, its own term's first entry included.
        let confirmed = tokio::time::timeout(inner.timings.election_max * 4, inner.raft.ensure_linearizable()).await;
        match confirmed {
            Ok(Ok(_)) if inner.raft.metrics().borrow().current_term == term => {
                inner.embedded.lead(term);
                tracing::info!(term, "leads");
                inner.leadership.send_modify(|l| l.leading = Some(term));
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(term, %error, "was elected, but leadership isn't confirmed yet"),
            Err(_) => tracing::info!(term, "was elected, but leadership isn't confirmed in time"),
        }
    }

    /// Flushes the store and lets openraft purge the log, after so many entries.
    async fn purge_now_and_then(self, every: u64) {
        let mut metrics = self.0.raft.metrics();
        loop {
            let due = {
                let m = metrics.borrow_and_update();
                let applied = m.last_applied.map_or(0, |l| l.index);
                applied >= m.snapshot.map_or(0, |l| l.index) + every
            };
            if due && let Err(error) = self.0.raft.trigger().snapshot().await {
                tracing::warn!(%error, "a snapshot couldn't be begun");
            }
            tokio::select! {
                () = self.0.shutdown.cancelled() => return,
                changed = metrics.changed() => if changed.is_err() { return },
            }
            // Metrics change with every entry; looking at them a few times a second is enough.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Answers a peer's call.
    pub async fn handle(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let peer = &incoming.peer.identity;
        if peer.role != Role::Master {
            return Err(call_error(
                ErrorCode::PermissionDenied,
                format!("{peer} may not take part in Raft: only masters of the region may"),
            ));
        }
        match incoming.method {
            Method::RaftAppend => self.on_append(incoming.decode()?).await,
            Method::RaftVote => self.on_vote(incoming.decode()?).await,
            Method::RaftSnapshotBegin => self.on_snapshot_begin(incoming.decode()?).await,
            Method::RaftSnapshotPage => self.on_snapshot_page(incoming.decode()?).await,
            Method::RaftSnapshotEnd => self.on_snapshot_end(incoming.decode()?).await,
            other => Err(call_error(ErrorCode::InvalidRequest, format!("{} isn't a call of Raft", other.as_str()))),
        }
    }

    fn check_group(&self, group: u32) -> Result<(), CallError> {
        let other = || format!("group {group} isn't this member's, which is {}", self.0.group);
        if group == self.0.group { Ok(()) } else { Err(call_error(ErrorCode::InvalidRequest, other())) }
    }

    async fn on_append(&self, message: wire::AppendEntries) -> Result<Answer, CallError> {
        self.check_group(message.group)?;
        let entries: Result<Vec<_>, _> = message.entries.into_iter().map(codec::from_entry).collect();
        let request = AppendEntriesRequest {
            vote: codec::from_vote(&message.vote.ok_or_else(|| invalid(codec::missing("vote")))?),
            prev_log_id: message.prev.as_ref().map(codec::from_log_id),
            leader_commit: message.commit.as_ref().map(codec::from_log_id),
            entries: entries.map_err(invalid)?,
        };
        let response = self.0.raft.append_entries(request).await.map_err(fatal)?;
        use wire::append_answer::Outcome;
        let mut answer = wire::AppendAnswer::default();
        answer.outcome = match response {
            AppendEntriesResponse::Success => Some(Outcome::Success(wire::Blank {})),
            AppendEntriesResponse::PartialSuccess(Some(id)) => Some(Outcome::Partial(codec::log_id(&id))),
            AppendEntriesResponse::PartialSuccess(None) => {
                answer.partial_none = true;
                None
            }
            AppendEntriesResponse::Conflict => Some(Outcome::Conflict(wire::Blank {})),
            AppendEntriesResponse::HigherVote(vote) => Some(Outcome::HigherVote(codec::vote(&vote))),
        };
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            *lock(&self.0.heard) = self.0.clock.boot();
        }
        Ok(Answer::of(&answer))
    }

    async fn on_vote(&self, message: wire::VoteRequest) -> Result<Answer, CallError> {
        self.check_group(message.group)?;
        let request = VoteRequest {
            vote: codec::from_vote(&message.vote.ok_or_else(|| invalid(codec::missing("vote")))?),
            last_log_id: message.last.as_ref().map(codec::from_log_id),
        };
        let response = self.0.raft.vote(request).await.map_err(fatal)?;
        Ok(Answer::of(&wire::VoteAnswer {
            vote: Some(codec::vote(&response.vote)),
            granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(codec::log_id),
        }))
    }

    fn snapshot_answer(&self, accepted: bool) -> Answer {
        let vote = self.0.raft.metrics().borrow().vote;
        Answer::of(&wire::SnapshotAnswer { vote: Some(codec::vote(&vote)), accepted })
    }

    async fn on_snapshot_begin(&self, message: wire::SnapshotBegin) -> Result<Answer, CallError> {
        self.check_group(message.group)?;
        let theirs = codec::from_vote(message.vote.as_ref().ok_or_else(|| invalid(codec::missing("vote")))?);
        if theirs < self.0.raft.metrics().borrow().vote {
            return Ok(self.snapshot_answer(false));
        }
        let embedded = self.0.embedded.clone();
        self.0.blocking.run(move || embedded.install_begin()).await.map_err(disk_failed)?;
        tracing::info!(id = message.id, "receiving a snapshot");
        // A later beginning takes the place of an earlier one, whose pages are then refused.
        *lock(&self.0.receiving) =
            Some(Receiving { id: message.id.clone(), next_page: 0, digest: PagesDigest::new(), begin: message });
        Ok(self.snapshot_answer(true))
    }

    async fn on_snapshot_page(&self, message: wire::SnapshotPage) -> Result<Answer, CallError> {
        self.check_group(message.group)?;
        let pairs: Vec<(Bytes, Bytes)> = message.pairs.into_iter().map(|p| (p.key, p.value)).collect();
        {
            let mut receiving = lock(&self.0.receiving);
            let current = receiving.as_mut().filter(|r| r.id == message.id && r.next_page == message.sequence);
            let Some(current) = current else {
                return Err(call_error(ErrorCode::InvalidRequest, "this snapshot isn't being received, or its pages are out of order"));
            };
            current.next_page += 1;
            current.digest.take(&pairs);
        }
        let embedded = self.0.embedded.clone();
        self.0.blocking.run(move || embedded.install_page(pairs)).await.map_err(disk_failed)?;
        Ok(self.snapshot_answer(true))
    }

    async fn on_snapshot_end(&self, message: wire::SnapshotEnd) -> Result<Answer, CallError> {
        self.check_group(message.group)?;
        let received = lock(&self.0.receiving).take();
        let whole = received.filter(|r| r.id == message.id && r.next_page == message.pages && r.digest.value() == message.digest);
        let Some(Receiving { begin, .. }) = whole else {
            return Err(call_error(ErrorCode::Corrupt, "the snapshot's pages don't add up to what was sent"));
        };
        let vote = codec::from_vote(&message.vote.ok_or_else(|| invalid(codec::missing("vote")))?);
        let meta = SnapshotMeta {
            last_log_id: begin.last.as_ref().map(codec::from_log_id),
            last_membership: codec::from_stored_membership(begin.membership.unwrap_or_default()),
            snapshot_id: begin.id,
        };
        let snapshot = Snapshot { meta, snapshot: Box::new(SnapshotSource::Received) };
        let response = self.0.raft.install_full_snapshot(vote, snapshot).await;
        let response = response.map_err(|e| call_error(ErrorCode::Internal, e.to_string()))?;
        Ok(Answer::of(&wire::SnapshotAnswer { vote: Some(codec::vote(&response.vote)), accepted: true }))
    }
}

fn invalid(error: codec::Malformed) -> CallError {
    call_error(ErrorCode::InvalidRequest, error.to_string())
}

fn fatal(error: openraft::error::RaftError<u64>) -> CallError {
    call_error(ErrorCode::Unavailable, format!("this master's Raft has stopped: {error}"))
}

fn disk_failed(error: mooseng_embedded::BaseError) -> CallError {
    call_error(ErrorCode::DiskFailed, error.to_string())
}
