//! What a member answers its peers.

use std::future::Future;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use mooseng_transport::{Answer, Incoming, call_error, trace};
use mooseng_wire::Role;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::raft as wire;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use openraft::{ServerState, Snapshot, SnapshotMeta};
use tokio::sync::OwnedMutexGuard;

use crate::calls::Asked;
use crate::codec;
use crate::lineage::Line;
use crate::node::RaftNode;
use crate::snapshot::{PagesDigest, Receiving, SnapshotSource, lock};

/// Why a member with an empty log isn't let in, and what to do.
pub(crate) const LOST: &str = "this master's log is empty, but it had one in this group: its disk was lost or replaced. Remove it from the \
                               group, and add it under a new id (`mooseng members`)";

/// Why a member of before a recovery ends.
pub(crate) const SUPERSEDED: &str = "this master's group was recovered without it (`mooseng-master recover`): what it holds belongs to the group that \
                                     was before. Empty its state_dir and add it under a new id (`mooseng members`)";

/// What a log lacks that takes in a snapshot: more than any log has.
const LACKS_UNKNOWN: u64 = u64::MAX;

impl RaftNode {
    /// Answers a peer's call.
    pub async fn handle(&self, incoming: Incoming) -> Result<Answer, CallError> {
        let peer = &incoming.peer.identity;
        let own = &self.0.identity;
        // Group 0 is the region's own.
        let stranger = peer.cluster != own.cluster || (self.0.group == 0 && peer.region != own.region);
        if peer.role != Role::Master || stranger {
            return Err(call_error(
                ErrorCode::PermissionDenied,
                format!("{peer} may not take part in Raft: only masters of the region may"),
            ));
        }
        let Some(asked) = self.calls().asked(incoming.method) else {
            let message = format!("{} isn't a call of this group's Raft", incoming.method.as_str());
            return Err(call_error(ErrorCode::InvalidRequest, message));
        };
        match asked {
            Asked::Append => self.on_append(incoming.decode()?).await,
            Asked::Vote => self.on_vote(incoming.decode()?).await,
            Asked::SnapshotBegin => self.on_snapshot_begin(incoming.decode()?).await,
            Asked::SnapshotPage => self.on_snapshot_page(incoming.decode()?).await,
            Asked::SnapshotEnd => self.on_snapshot_end(incoming.decode()?).await,
            Asked::Found => {
                let message: wire::Found = incoming.decode()?;
                self.check_group(message.group)?;
                self.check_member(message.to, false)?;
                self.on_found(message.note).await?;
                Ok(Answer::of(&wire::FoundAnswer {}))
            }
        }
    }

    /// Whether the caller is of this member's group and line.
    fn check_group(&self, group: u32) -> Result<(), CallError> {
        let (own, line) = (self.group_word(), self.0.lineage.line());
        if group == own {
            return Ok(());
        }
        // A later line than ours: the group was recovered without this member.
        if Line(group.wrapping_sub(self.0.group)) > line && !self.is_blank() {
            self.0.health.superseded.cancel();
        }
        Err(CallError {
            detail: own.to_be_bytes().to_vec().into(),
            ..call_error(
                ErrorCode::OtherFounding,
                format!(
                    "master {} is of another line of this group (line {}): the group was recovered from one master's disk, and masters of before take no part in it. Empty the disk of the one that was left behind, and add it under a new id (`mooseng members`)",
                    self.0.id, line.0
                ),
            )
        })
    }

    /// The same for who would fill this member's log: an empty one joins the line of whoever leads by the word of others.
    async fn join_line(&self, group: u32, held: bool) -> Result<(), CallError> {
        let line = Line(group.wrapping_sub(self.0.group));
        let joins = held && self.is_blank() && self.0.wal.lacking().is_none() && line > self.0.lineage.line();
        if joins {
            let (disk, lineage) = (self.0.disk.clone(), self.0.lineage.clone());
            let entered = self.0.blocking.run(move || lineage.enter(&*disk, line)).await;
            entered.map_err(|e| {
                call_error(ErrorCode::DiskFailed, format!("the line of the group can't be kept: {e}"))
            })?;
            tracing::info!(id = self.0.id, line = line.0, "joins a group that was recovered");
        }
        self.check_group(group)
    }

    /// Whether the call is for this member, with the log that it has now. A member that has lost its log has forgotten whom it voted for
    /// and what it acknowledged: were it to take part, a majority could elect a leader that lacks what a majority had acknowledged.
    fn check_member(&self, to: u64, stored: bool) -> Result<(), CallError> {
        let own = self.0.id;
        if to != 0 && to != own {
            return Err(call_error(
                ErrorCode::InvalidRequest,
                format!("this is master {own}, the call is for master {to}"),
            ));
        }
        if !stored || !self.is_blank() {
            return Ok(());
        }
        if !self.0.health.lost.swap(true, Ordering::AcqRel) {
            tracing::error!(id = own, "MASTER_FAILED: {LOST}");
            // It may have made a group for itself, as the first of the first members.
            self.adjust_electing();
        }
        Err(call_error(ErrorCode::PermissionDenied, format!("master {own}: {LOST}")))
    }

    /// Whether an empty log may be filled by this sender. A master that has lost its log has forgotten which terms it has seen: a leader
    /// that was deposed with its help would get back the quorum that it had lost, and acknowledge beside what the later one
    /// acknowledged. A leader that is one without it is no such. Once something was taken in, the vote that came with it keeps older
    /// leaders out.
    fn check_held(&self, held: bool) -> Result<(), CallError> {
        if held || !self.is_blank() || self.0.wal.lacking().is_some() {
            return Ok(());
        }
        Err(call_error(
            ErrorCode::Unavailable,
            format!(
                "master {}'s log is empty: it follows nobody who doesn't lead by the word of others",
                self.0.id
            ),
        ))
    }

    /// Whether the log holds nothing but, perhaps, the first members.
    pub(crate) fn is_blank(&self) -> bool {
        self.0.wal.last().is_none_or(|last| last.index == 0) && self.0.wal.purged().is_none()
    }

    /// Whether this member's word counts in an election by a candidate whose log ends at `last`. A log that began empty in a group that had
    /// committed entries may be what is left of one that had acknowledged them: until it has them again, a majority with it could elect
    /// a leader that lacks them. A log that began with the group lacks nothing. The first election of a group, by candidates with nothing
    /// but the first members, is open to empty logs.
    fn may_elect(&self, last: Option<u64>) -> bool {
        let founder = self.0.wal.lacking() == Some(0);
        self.0.wal.is_whole() && (founder || !self.is_blank() || last.is_none_or(|index| index == 0))
    }

    /// Answers whether this log is empty, and as far as is known hasn't been anything else; with `note`, writes down that it begins with
    /// the group.
    pub(crate) async fn on_found(&self, note: bool) -> Result<(), CallError> {
        let lacking = self.0.wal.lacking();
        if !self.is_blank() || lacking.is_some_and(|index| index != 0) {
            return Err(call_error(
                ErrorCode::InvalidRequest,
                format!(
                    "master {} has a log of a group already: whoever would make it anew has lost its own",
                    self.0.id
                ),
            ));
        }
        if !note || lacking.is_some() {
            return Ok(());
        }
        self.save_lacking(0).await
    }

    /// A log that failed here has failed for good, as it has where openraft writes it.
    async fn save_lacking(&self, index: u64) -> Result<(), CallError> {
        let wal = self.0.wal.clone();
        let saved = self.0.blocking.run(move || wal.save_lacking(index)).await;
        let Err(error) = saved else { return Ok(()) };
        if !error.is_full() {
            let _told_before =
                self.0.health.failed.set(format!("this master's log can't be written any more: {error}"));
            // Not awaited: a caller that goes away mustn't keep it from stopping.
            let raft = self.0.raft.clone();
            tokio::spawn(async move { raft.shutdown().await });
        }
        Err(call_error(ErrorCode::DiskFailed, error.to_string()))
    }

    /// Takes note, before anything is taken in, of what an empty log lacks.
    async fn note_lacking(&self, index: u64) -> Result<(), CallError> {
        tracing::info!(id = self.0.id, index, "catching up from an empty log; no vote until then");
        self.0.health.lacking.store(true, Ordering::Release);
        self.adjust_electing();
        self.save_lacking(index).await
    }

    /// What is called while a write of the log waits for room would pile up behind it.
    fn check_full(&self) -> Result<(), CallError> {
        match self.0.health.full.load(Ordering::Acquire) {
            true => Err(call_error(ErrorCode::NoSpace, "the disk under this master's log is full")),
            false => Ok(()),
        }
    }

    async fn on_append(&self, message: wire::AppendEntries) -> Result<Answer, CallError> {
        self.join_line(message.group, message.held).await?;
        self.check_member(message.to, message.stored)?;
        self.check_held(message.held)?;
        self.check_full()?;
        let entries: Result<Vec<_>, _> = message.entries.into_iter().map(codec::from_entry).collect();
        let entries = entries.map_err(invalid)?;
        let first = message.prev.as_ref().map_or(0, |prev| prev.index.saturating_add(1));
        if (first..).zip(&entries).any(|(index, entry)| entry.log_id.index != index) {
            return Err(invalid(codec::Malformed("its entries have a gap".into())));
        }
        // What a leader knows to be committed covers all that was acknowledged before it once it has committed an entry of its own term.
        let leads_in = message.vote.as_ref().map(|vote| vote.term);
        let committed = message.commit.as_ref().filter(|id| Some(id.term) == leads_in).map(|id| id.index);
        // 0 would mean that it lacks nothing.
        let committed = committed.map(|index| index.max(1));
        match (self.0.wal.lacking(), committed) {
            (None, _) if self.is_blank() => self.note_lacking(committed.unwrap_or(LACKS_UNKNOWN)).await?,
            (Some(LACKS_UNKNOWN), Some(index)) => self.note_lacking(index).await?,
            _ => {}
        }
        let request = AppendEntriesRequest {
            vote: codec::from_vote(&message.vote.ok_or_else(|| invalid(codec::missing("vote")))?),
            prev_log_id: message.prev.as_ref().map(codec::from_log_id),
            leader_commit: message.commit.as_ref().map(codec::from_log_id),
            entries,
        };
        let span = trace::internal("raft.append_and_flush").noted("entries", || request.entries.len());
        let response = span.watch(self.0.raft.append_entries(request)).await.map_err(fatal)?;
        use wire::append_answer::Outcome;
        let mut answer = wire::AppendAnswer { short_of_room: self.0.room.is_short(), ..Default::default() };
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
        if self.0.health.lacking.load(Ordering::Acquire) && self.0.wal.is_whole() {
            self.0.health.lacking.store(false, Ordering::Release);
            tracing::info!(id = self.0.id, "caught up: this master votes from now on");
            self.adjust_electing();
        }
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            *lock(&self.0.heard) = self.0.clock.boot();
        }
        Ok(Answer::of(&answer))
    }

    async fn on_vote(&self, message: wire::VoteRequest) -> Result<Answer, CallError> {
        self.check_group(message.group)?;
        self.check_member(message.to, message.stored)?;
        self.check_full()?;
        let vote = codec::from_vote(&message.vote.ok_or_else(|| invalid(codec::missing("vote")))?);
        if vote.committed {
            return self.stand_for_election(vote).await;
        }
        if !self.may_elect(message.last.as_ref().map(|id| id.index)) {
            let own = self.0.raft.metrics().borrow().vote;
            return Ok(Answer::of(&wire::VoteAnswer {
                vote: Some(codec::vote(&own)),
                granted: false,
                last: None,
            }));
        }
        let request = VoteRequest { vote, last_log_id: message.last.as_ref().map(codec::from_log_id) };
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

    /// The leader hands over to this member.
    async fn stand_for_election(&self, leader: codec::RaftVote) -> Result<Answer, CallError> {
        let m = self.metrics();
        let voter = m.membership_config.membership().voter_ids().any(|id| id == self.0.id);
        let granted = m.vote == leader && voter && m.state == ServerState::Follower && self.0.wal.is_whole();
        if granted {
            let elected = self.0.raft.trigger().elect().await;
            elected.map_err(|e| call_error(ErrorCode::Unavailable, e.to_string()))?;
        }
        Ok(Answer::of(&wire::VoteAnswer { vote: Some(codec::vote(&m.vote)), granted, last: None }))
    }

    /// Runs one step of receiving a snapshot. It goes on when its caller gives up, and no other one begins before it has ended: the store
    /// takes in one state at a time, and a step of an earlier transfer mustn't land in a later one.
    async fn receive<F>(
        &self,
        step: impl FnOnce(Self, OwnedMutexGuard<Option<Receiving>>) -> F,
    ) -> Result<Answer, CallError>
    where
        F: Future<Output = Result<Answer, CallError>> + Send + 'static,
    {
        let Ok(receiving) = self.0.receiving.clone().try_lock_owned() else {
            return Err(call_error(ErrorCode::Busy, "this master is still taking in a part of a snapshot"));
        };
        let step = tokio::spawn(step(self.clone(), receiving));
        step.await.unwrap_or_else(|e| {
            Err(call_error(ErrorCode::Internal, format!("receiving a snapshot ended: {e}")))
        })
    }

    async fn on_snapshot_begin(&self, message: wire::SnapshotBegin) -> Result<Answer, CallError> {
        self.join_line(message.group, message.held).await?;
        self.check_member(message.to, message.stored)?;
        self.check_held(message.held)?;
        let theirs = codec::from_vote(message.vote.as_ref().ok_or_else(|| invalid(codec::missing("vote")))?);
        if theirs < self.0.raft.metrics().borrow().vote {
            return Ok(self.snapshot_answer(false));
        }
        if self.is_blank() && self.0.wal.lacking().is_none() {
            // The snapshot doesn't say what was committed after it was made: the first append behind it does.
            self.note_lacking(LACKS_UNKNOWN).await?;
        }
        let begin = async move |node: Self, mut receiving: OwnedMutexGuard<Option<Receiving>>| {
            // A later beginning takes the place of an earlier one, whose pages are then refused.
            *receiving = None;
            let embedded = node.0.embedded.clone();
            node.0.blocking.run(move || embedded.install_begin()).await.map_err(disk_failed)?;
            tracing::info!(id = message.id, "receiving a snapshot");
            let id = message.id.clone();
            *receiving = Some(Receiving { id, next_page: 0, digest: PagesDigest::new(), begin: message });
            Ok(node.snapshot_answer(true))
        };
        self.receive(begin).await
    }

    async fn on_snapshot_page(&self, message: wire::SnapshotPage) -> Result<Answer, CallError> {
        self.check_group(message.group)?;
        let page = async move |node: Self, mut receiving: OwnedMutexGuard<Option<Receiving>>| {
            let pairs: Vec<(Bytes, Bytes)> = message.pairs.into_iter().map(|p| (p.key, p.value)).collect();
            let expected = |r: &Receiving| r.id == message.id && r.next_page == message.sequence;
            let Some(mut current) = receiving.take_if(|r| expected(r)) else {
                return Err(call_error(
                    ErrorCode::InvalidRequest,
                    "this snapshot isn't being received, or its pages are out of order",
                ));
            };
            current.next_page += 1;
            current.digest.take(&pairs);
            let embedded = node.0.embedded.clone();
            node.0.blocking.run(move || embedded.install_page(pairs)).await.map_err(disk_failed)?;
            // A page that failed ends the transfer.
            *receiving = Some(current);
            Ok(node.snapshot_answer(true))
        };
        self.receive(page).await
    }

    async fn on_snapshot_end(&self, message: wire::SnapshotEnd) -> Result<Answer, CallError> {
        self.check_group(message.group)?;
        let vote = codec::from_vote(message.vote.as_ref().ok_or_else(|| invalid(codec::missing("vote")))?);
        // Held until the store has installed it: no other transfer begins meanwhile.
        let end = async move |node: Self, mut receiving: OwnedMutexGuard<Option<Receiving>>| {
            let whole = receiving.take_if(|r| r.id == message.id);
            let whole = whole.filter(|r| r.next_page == message.pages && r.digest.value() == message.digest);
            let Some(Receiving { begin, .. }) = whole else {
                return Err(call_error(
                    ErrorCode::Corrupt,
                    "the snapshot's pages don't add up to what was sent",
                ));
            };
            let meta = SnapshotMeta {
                last_log_id: begin.last.as_ref().map(codec::from_log_id),
                last_membership: codec::from_stored_membership(begin.membership.unwrap_or_default()),
                snapshot_id: begin.id,
            };
            let snapshot = Snapshot { meta, snapshot: Box::new(SnapshotSource::Received) };
            let response = node.0.raft.install_full_snapshot(vote, snapshot).await;
            let response = response.map_err(|e| call_error(ErrorCode::Internal, e.to_string()))?;
            Ok(Answer::of(&wire::SnapshotAnswer { vote: Some(codec::vote(&response.vote)), accepted: true }))
        };
        self.receive(end).await
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
