//! A member of the group: how it starts over its log and store, how it is, how it ends. Leadership is in `leading`, who belongs to the group in `members`.

use std::collections::BTreeSet;
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
use mooseng_wire::{Identity, NodeId};
use openraft::error::{ClientWriteError, RaftError as OpenraftError};
use openraft::{Config, Raft, RaftMetrics, SnapshotPolicy};
use tokio::sync::watch;
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
use crate::settings::{Leadership, MemberStatus, RaftConfig, RaftError, RaftStatus, Timings};
use crate::snapshot::{Receiving, lock};
use crate::standing::Room;
use crate::types::{Batch, Node, Outcome, TypeConfig};

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
            troubled: Arc::default(),
            id: own.id,
            lease: own.timings.lease(),
            metrics: metrics.clone(),
            room: room.clone(),
            flushing,
            quiet: if own.tells_commits { Duration::ZERO } else { own.timings.heartbeat / 2 },
            deferring: Arc::default(),
            defer: own.defer,
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

    pub(crate) fn not_leader(&self) -> RaftError {
        // A leader whose lease is over is one by its own word still: nobody is sent to it.
        let other = self.leader().filter(|(id, _)| id.0 != self.0.id);
        RaftError::NotLeader { leader: other.map(|(_, address)| address) }
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
