//! A member of the group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use mooseng_embedded::{ApplyOutcome, CommitLog, Embedded, ProposeError};
use mooseng_ports::clock::{BootTime, Clock};
use mooseng_ports::disk::Disk;
use mooseng_ports::plant::{self, Plant};
use mooseng_transport::{Blocking, Lane, Network, trace};
use mooseng_wal::{Wal, WalError};
use mooseng_wire::raft as wire;
use mooseng_wire::{Identity, NodeId};
use openraft::error::{ClientWriteError, RaftError as OpenraftError};
use openraft::{ChangeMembers, Config, Raft, RaftMetrics, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answers::{LOST, SUPERSEDED};
use crate::calls::Calls;
use crate::codec;
use crate::flushing::Flushing;
use crate::lease::Acknowledged;
use crate::lineage::{Line, Lineage};
use crate::log::{Health, Log};
use crate::machine::Machine;
use crate::network::{Links, Metrics, Peers};
use crate::settings::{Leadership, Member, MemberStatus, RaftConfig, RaftError, RaftStatus, Timings};
use crate::snapshot::{Receiving, lock};
use crate::standing::Room;
use crate::types::{Batch, Node, Outcome, TypeConfig};

/// How long a member that is to be added may take to answer.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the log's size is looked at.
const PURGE_PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct Inner {
    pub id: u64,
    pub group: u32,
    pub lineage: Arc<Lineage>,
    pub disk: Arc<dyn Disk>,
    pub raft: Raft<TypeConfig>,
    pub embedded: Embedded,
    pub blocking: Blocking,
    pub clock: Arc<dyn Clock>,
    pub timings: Timings,
    pub acknowledged: Arc<Mutex<Acknowledged>>,
    pub leadership: watch::Sender<Leadership>,
    pub receiving: Arc<tokio::sync::Mutex<Option<Receiving>>>,
    pub identity: Identity,
    pub links: Arc<Links>,
    pub wal: Arc<Wal>,
    pub health: Arc<Health>,
    pub handing_over: AtomicBool,
    pub room: Arc<Room>,
    pub heard: Mutex<BootTime>,
    pub shutdown: CancellationToken,
}

/// A member of the group. Clones share it.
#[derive(Clone)]
pub struct RaftNode(pub(crate) Arc<Inner>);

struct Proposals(RaftNode);

#[async_trait]
impl CommitLog for Proposals {
    async fn propose(&self, term: u64, batch: Bytes) -> Result<ApplyOutcome, ProposeError> {
        let inner = &self.0.0;
        if inner.raft.metrics().borrow().current_term != term {
            return Err(ProposeError::NotLeader);
        }
        let span = trace::internal("raft.commit").noted("bytes", || batch.len());
        let batch = Batch { bytes: batch, context: span.context() };
        match span.watch(inner.raft.client_write(batch)).await {
            Ok(response) => match response.data {
                Outcome::Applied => Ok(ApplyOutcome::Applied),
                Outcome::Mismatch | Outcome::Nothing => Ok(ApplyOutcome::Mismatch),
            },
            // A leader that steps down answers so for entries that it had appended, too.
            Err(OpenraftError::APIError(ClientWriteError::ForwardToLeader(_)) | OpenraftError::Fatal(_)) => {
                Err(ProposeError::Unknown)
            }
            Err(OpenraftError::APIError(ClientWriteError::ChangeMembershipError(_))) => {
                Err(ProposeError::NotLeader)
            }
        }
    }

    fn may_read(&self) -> bool {
        self.0.lease_valid()
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

/// A change of members that would give one master two voices, or that names somebody who isn't there, is refused.
fn sensible(
    known: &openraft::Membership<u64, Node>,
    add: &BTreeMap<u64, Member>,
    remove: &BTreeSet<u64>,
) -> Result<(), RaftError> {
    // Where something is added, too, it may be done already: the same change, asked for again.
    if let Some(id) = remove.iter().find(|id| add.is_empty() && known.get_node(id).is_none()) {
        return Err(RaftError::NoMember(*id));
    }
    if let Some(id) = remove.iter().find(|id| add.contains_key(id)) {
        return Err(RaftError::Senseless(format!("master {id} is to be added and to be removed")));
    }
    for (id, node) in add {
        if let Some(old) = known.get_node(id).filter(|old| *old != node) {
            return Err(RaftError::Senseless(format!(
                "there is a master {id} already, {} at {}; an id is never given twice",
                old.name, old.address
            )));
        }
        let others = known.nodes().chain(add).filter(|(other, _)| *other != id && !remove.contains(other));
        for (other, member) in others {
            if member.address == node.address || member.name == node.name {
                return Err(RaftError::Senseless(format!(
                    "master {other} is {} at {} already: remove it first if {id} is to take its place",
                    member.name, member.address
                )));
            }
        }
    }
    Ok(())
}

impl RaftNode {
    /// Starts the member over its log and store. A member that may have promised its vote in an earlier life waits one election timeout
    /// first: that promise, by which a leader counts its lease, isn't on disk.
    pub fn start(
        own: RaftConfig,
        disk: Arc<dyn Disk>,
        blocking: Blocking,
        clock: Arc<dyn Clock>,
        network: Arc<dyn Network>,
        embedded: Embedded,
    ) -> BoxFuture<'static, Result<Self, RaftError>> {
        // As a value it is compiled here, once; else each program and test that starts one would compile all of it anew (docs/decisions/0005-layout.md).
        Self::start_here(own, disk, blocking, clock, network, embedded).boxed()
    }

    async fn start_here(
        own: RaftConfig,
        disk: Arc<dyn Disk>,
        blocking: Blocking,
        clock: Arc<dyn Clock>,
        network: Arc<dyn Network>,
        embedded: Embedded,
    ) -> Result<Self, RaftError> {
        let (dir, options) = (own.dir.clone(), own.wal);
        let opened = {
            let (disk, dir) = (disk.clone(), dir.clone());
            blocking
                .run(move || {
                    Ok::<_, WalError>((Wal::open(disk.clone(), &dir, options)?, Lineage::open(&*disk, &dir)))
                })
                .await?
        };
        let (wal, lineage) = (Arc::new(opened.0), opened.1);
        tracing::info!(
            id = own.id,
            term = wal.vote().map(|vote| vote.term),
            "begins to take part in its group"
        );
        let lineage = Arc::new(lineage.map_err(|source| RaftError::Lineage { path: dir, source })?);
        // What the store holds came by way of the log. openraft would take a store without a log for a log that was purged, and let this
        // member vote for whoever lacks what it had acknowledged behind the store's last flush.
        let unused = wal.last().is_none() && wal.purged().is_none() && wal.lacking().is_none();
        if unused && embedded.position().index > 0 {
            return Err(RaftError::LogLost);
        }
        // Nothing could replay what lies between.
        if let Some(purged) = wal.purged().map(|id| id.index + 1).filter(|p| *p > embedded.position().index) {
            return Err(RaftError::StoreBehind { store: embedded.position().index, purged });
        }
        if wal.vote().is_some() && !plant::is(Plant::RestartWaitSkipped) {
            tokio::time::sleep(own.timings.election_max).await;
        }
        let flushed_of = embedded.clone();
        let flushed = Arc::new(move || flushed_of.flushed_index().checked_sub(1));
        let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
        if let Some(vote) = wal.vote() {
            lock(&acknowledged).saw_vote(vote.term, vote.node);
        }
        let (health, shutdown) = (Arc::new(Health::default()), CancellationToken::new());
        let flushing = Flushing::new(wal.clone(), blocking);
        let log = Log {
            wal: wal.clone(),
            flushing: flushing.clone(),
            blocking,
            writes: Lane::new(blocking, "mooseng-log"),
            id: own.id,
            acknowledged: acknowledged.clone(),
            health: health.clone(),
            stop: shutdown.clone(),
            flushed,
            on_append: own.on_append.clone(),
        };
        let machine = Machine {
            embedded: embedded.clone(),
            flushing: flushing.clone(),
            blocking,
            health: health.clone(),
            on_append: own.on_append.clone(),
        };
        let identity = network.identity();
        let metrics = Metrics::default();
        let room = Arc::<Room>::default();
        let links = Arc::new(Links::new(network));
        let peers = Peers {
            links: links.clone(),
            group: own.group,
            lineage: lineage.clone(),
            health: health.clone(),
            clock: clock.clone(),
            blocking,
            acknowledged: acknowledged.clone(),
            stored: Arc::default(),
            id: own.id,
            lease: own.timings.lease(),
            metrics: metrics.clone(),
            room: room.clone(),
            flushing,
            quiet: own.timings.heartbeat / 2,
        };
        let raft = Raft::new(own.id, config(&own)?, peers, log, machine).await;
        let raft = raft.map_err(|e| RaftError::Refused(e.to_string()))?;
        let _first = metrics.set(raft.metrics());
        if !wal.is_whole() {
            health.lacking.store(true, Ordering::Release);
        }
        // Not before a silence; see `standing`.
        raft.runtime_config().elect(false);
        let node = Self(Arc::new(Inner {
            id: own.id,
            group: own.group,
            lineage,
            disk,
            raft,
            embedded: embedded.clone(),
            blocking,
            heard: Mutex::new(clock.boot()),
            clock,
            timings: own.timings,
            acknowledged,
            leadership: watch::channel(Leadership::default()).0,
            receiving: Arc::default(),
            identity,
            links,
            wal,
            health,
            handing_over: false.into(),
            room,
            shutdown,
        }));
        embedded.set_log(Arc::new(Proposals(node.clone())));
        tokio::spawn(node.clone().watch_leadership());
        tokio::spawn(node.clone().end_when_superseded());
        tokio::spawn(node.clone().purge_now_and_then(own));
        tokio::spawn(node.clone().watch_store());
        tokio::spawn(node.clone().mind_room());
        tokio::spawn(node.clone().mind_silence());
        Ok(node)
    }

    /// What messages name the group and its line by.
    pub(crate) fn group_word(&self) -> u32 {
        self.0.group.wrapping_add(self.0.lineage.line().0)
    }

    /// The calls of its group.
    pub(crate) fn calls(&self) -> &'static Calls {
        Calls::of(self.0.group)
    }

    pub(crate) fn metrics(&self) -> RaftMetrics<u64, Node> {
        self.0.raft.metrics().borrow().clone()
    }

    /// The leader as far as this member knows.
    pub fn leader(&self) -> Option<(NodeId, String)> {
        self.0.leadership.borrow().leader.clone().map(|(id, address)| (NodeId(id), address))
    }

    /// The line of its group ([`crate::lineage`]).
    pub fn line(&self) -> Line {
        self.0.lineage.line()
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
        if inner.handing_over.load(Ordering::Acquire) {
            return false;
        }
        if plant::is(Plant::LeaseUnchecked) {
            return true;
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

    /// Why this member can't take part, if it can't: its log or store failed, or its disk is full. All but a full disk stays so until the
    /// process starts again.
    pub fn failure(&self) -> Option<String> {
        // Behind this one Raft is stopped.
        if let Some(failure) = self.0.health.failed.get() {
            return Some(failure.clone());
        }
        if let Err(fatal) = &self.0.raft.metrics().borrow().running_state {
            return Some(format!("this master's Raft has stopped: {fatal}"));
        }
        if self.0.health.lost.load(Ordering::Acquire) {
            return Some(LOST.to_owned());
        }
        let full = self.0.health.full.load(Ordering::Acquire);
        full.then(|| {
            "the disk under this master's log is full; it takes part again once there is room".to_owned()
        })
    }

    /// A member whose store has failed can't answer, nor apply for long: it makes way, and takes no part any more.
    async fn watch_store(self) {
        let why = tokio::select! {
            why = self.0.embedded.failed() => why,
            () = self.0.shutdown.cancelled() => return,
        };
        let _told_before =
            self.0.health.failed.set(format!("this master's metadata store has failed: {why}"));
        // Its log may be well: then another one leads at once, rather than after the silence of an election.
        if self.0.leadership.borrow().leading.is_some() {
            let handed_over = self.transfer_leader(self.0.timings.election_max).await;
            tracing::info!(?handed_over, "made way, for the metadata store has failed");
        }
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "the Raft task ended badly");
        }
    }

    /// Waits until this member's Raft has stopped for good, and answers why. Pending while it runs, and when it was told to stop.
    pub async fn stopped(&self) -> String {
        let mut metrics = self.0.raft.metrics();
        let ended = metrics.wait_for(|m| m.running_state.is_err()).await.is_err();
        if self.0.shutdown.is_cancelled() {
            std::future::pending::<()>().await;
        }
        match self.failure() {
            Some(failure) => failure,
            None => {
                format!("this master's Raft has {}", if ended { "ended without a reason" } else { "stopped" })
            }
        }
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

    /// Begins a new group with these members. Only for a member that has no log yet; elsewhere it does nothing. All must answer first
    /// that their logs are empty, and then have noted that these begin with the group: from then on, an empty log without that note has
    /// been lost. Fails while one doesn't answer, and where one has a log already. May be called again.
    pub async fn initialize(&self, members: BTreeMap<u64, Member>) -> Result<(), RaftError> {
        if self.0.raft.is_initialized().await.map_err(|e| RaftError::Refused(e.to_string()))? {
            return Ok(());
        }
        if members.contains_key(&self.0.id) {
            self.found(&members).await?;
        }
        self.0.raft.initialize(members).await.map_err(|e| RaftError::Refused(e.to_string()))
    }

    /// Has all members note that their logs begin with the group. Nobody notes anything before everybody has said that its log is empty:
    /// were a single one asked to that has lost its log, in a group that is there already, it would vote as if it had lost nothing.
    async fn found(&self, members: &BTreeMap<u64, Member>) -> Result<(), RaftError> {
        for note in [false, true] {
            for (id, member) in members.iter().filter(|(id, _)| **id != self.0.id) {
                let message = wire::Found { group: self.group_word(), to: *id, note };
                let link = self.0.links.to(*id, &member.address);
                let answer: Result<wire::FoundAnswer, _> =
                    link.request(self.calls().found, &message, GREETING_TIMEOUT).await;
                answer.map_err(|e| RaftError::NotFounded {
                    id: *id,
                    address: member.address.clone(),
                    why: e.to_string(),
                })?;
            }
            self.on_found(note).await.map_err(|e| RaftError::Refused(e.message))?;
        }
        Ok(())
    }

    pub(crate) fn not_leader(&self) -> RaftError {
        RaftError::NotLeader { leader: self.leader().map(|(_, address)| address) }
    }

    /// Changes the members, new ones first as learners until they have caught up, then by joint consensus. Answers the voters.
    pub async fn change_members(
        &self,
        add: BTreeMap<u64, Member>,
        remove: BTreeSet<u64>,
    ) -> Result<Vec<u64>, RaftError> {
        if !self.is_leading() {
            return Err(self.not_leader());
        }
        let refused = |e: &dyn std::error::Error| RaftError::Refused(e.to_string());
        let known = self.metrics().membership_config;
        sensible(known.membership(), &add, &remove)?;
        for (id, node) in add.iter().filter(|(id, _)| known.membership().get_node(id).is_none()) {
            self.greet(*id, node).await?;
        }
        let mut voters: BTreeSet<u64> = known.membership().voter_ids().collect();
        voters.retain(|id| !remove.contains(id));
        voters.extend(add.keys());
        if voters.is_empty() {
            return Err(RaftError::Refused("a group needs at least one master".into()));
        }
        for (id, node) in add {
            self.0.raft.add_learner(id, node, true).await.map_err(|e| refused(&e))?;
        }
        self.0
            .raft
            .change_membership(ChangeMembers::ReplaceAllVoters(voters.clone()), false)
            .await
            .map_err(|e| refused(&e))?;
        Ok(voters.into_iter().collect())
    }

    /// Looks whether a member that is to be added is there and is who it is said to be: the group would wait for it otherwise.
    pub(crate) async fn greet(&self, id: u64, node: &Node) -> Result<(), RaftError> {
        let vote = Some(codec::vote(&self.metrics().vote));
        // Whoever asks holds the lease, by the members that there are.
        let heartbeat =
            wire::AppendEntries { group: self.group_word(), vote, to: id, held: true, ..Default::default() };
        let link = self.0.links.to(id, &node.address);
        let answer: Result<wire::AppendAnswer, _> =
            link.request(self.calls().append, &heartbeat, GREETING_TIMEOUT).await;
        let failed = |e| RaftError::Senseless(format!("master {id} at {} can't be added: {e}", node.address));
        answer.map(drop).map_err(failed)
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

    /// The group as this member sees it.
    pub fn status(&self) -> RaftStatus {
        let m = self.metrics();
        let membership = m.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let matched =
            |id: &u64| m.replication.as_ref().and_then(|r| r.get(id).copied().flatten()).map(|l| l.index);
        RaftStatus {
            id: self.0.id,
            term: m.current_term,
            leader: m.current_leader,
            last_log: m.last_log_index.unwrap_or(0),
            applied: m.last_applied.map_or(0, |l| l.index),
            purged: self.0.wal.purged().map(|id| id.index),
            log_bytes: self.0.wal.bytes(),
            members: membership
                .nodes()
                .map(|(id, node)| MemberStatus {
                    id: *id,
                    node: node.clone(),
                    voter: voters.contains(id),
                    matched: matched(id),
                    short_of_room: self.room_of(*id),
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
        self.0.links.close();
    }

    /// Watches openraft and makes leadership known: led only once everything before the term is applied and a quorum has confirmed.
    async fn watch_leadership(self) {
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
        loop {
            let now = metrics.borrow_and_update().clone();
            let mine = now.state == ServerState::Leader && now.current_leader == Some(inner.id);
            let leading = inner.leadership.borrow().leading;
            if leading.is_none() || self.lease_valid() {
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
                self.take_the_lead(now.current_term).await;
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

    async fn take_the_lead(&self, term: u64) {
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
            Ok(Err(error)) => tracing::info!(term, %error, "was elected, but leadership isn't confirmed yet"),
            Err(_) => tracing::info!(term, "was elected, but leadership isn't confirmed in time"),
        }
    }

    /// Ends this member once it has heard that its group was recovered without it.
    async fn end_when_superseded(self) {
        tokio::select! {
            () = self.0.health.superseded.cancelled() => {}
            () = self.0.shutdown.cancelled() => return,
        }
        let _told_before = self.0.health.failed.set(SUPERSEDED.to_owned());
        // What it leads it leads no longer, before anything else.
        lock(&self.0.acknowledged).forget();
        self.0.leadership.send_modify(|l| l.leading = None);
        self.0.embedded.follow();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "the Raft task ended badly");
        }
    }

    /// Flushes the store and purges the log, after so many entries or bytes.
    async fn purge_now_and_then(self, own: RaftConfig) {
        let inner = &self.0;
        while inner.raft.metrics().borrow().running_state.is_ok() {
            let (applied, snapshot, purged) = {
                let metrics = inner.raft.metrics();
                let m = metrics.borrow();
                let index = |id: Option<codec::RaftLogId>| id.map_or(0, |l| l.index);
                (index(m.last_applied), index(m.snapshot), index(m.purged))
            };
            let large = inner.wal.bytes() > own.log_bytes_max;
            if (applied >= snapshot + own.entries_between_snapshots || (large && applied > snapshot))
                && let Err(error) = inner.raft.trigger().snapshot().await
            {
                tracing::warn!(%error, "a snapshot couldn't be begun");
            }
            let flushed = inner.embedded.flushed_index().saturating_sub(1);
            let upto =
                inner.wal.purge_point(own.log_bytes_kept).map_or(0, |point| point.min(snapshot).min(flushed));
            if large
                && upto > purged
                && let Err(error) = inner.raft.trigger().purge_log(upto).await
            {
                tracing::warn!(%error, "the log couldn't be purged");
            }
            tokio::select! {
                () = inner.shutdown.cancelled() => return,
                () = tokio::time::sleep(PURGE_PAUSE) => {}
            }
        }
    }
}
