//! openraft's state machine over the embedded engine.
//!
//! openraft counts entries from 0, the engine from 1 (0 is "nothing yet"): the engine's index is openraft's plus one.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use mooseng_embedded::{ApplyOutcome, BaseError, Embedded, LogEntry, Payload, Position};
use mooseng_ports::plant::{self, Plant};
use mooseng_transport::Blocking;
use mooseng_wire::raft as wire;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, Snapshot, SnapshotMeta, StorageError,
    StorageIOError, StoredMembership,
};

use crate::codec::{self, RaftEntry, RaftLogId};
use crate::flushing::Flushing;
use crate::log::Health;
use crate::settings::OnAppend;
use crate::snapshot::SnapshotSource;
use crate::types::{Node, Outcome, TypeConfig};

/// The state machine; clones share it.
#[derive(Clone)]
pub(crate) struct Machine {
    pub embedded: Embedded,
    pub flushing: Flushing,
    pub blocking: Blocking,
    pub health: Arc<Health>,
    pub on_append: Option<OnAppend>,
}

fn failed(verb: ErrorVerb, error: &BaseError) -> StorageError<u64> {
    StorageError::IO {
        source: StorageIOError::new(ErrorSubject::StateMachine, verb, AnyError::error(error.to_string())),
    }
}

/// The last applied entry in openraft's counting.
pub(crate) fn applied(position: &Position) -> Option<RaftLogId> {
    let index = position.index.checked_sub(1)?;
    Some(codec::from_log_id(&wire::LogId { term: position.term, node: position.node, index }))
}

impl Machine {
    fn stored(&self, meta: Bytes) -> Result<StoredMembership<u64, Node>, StorageError<u64>> {
        codec::from_stored_bytes(meta).map_err(|e| StorageError::IO {
            source: StorageIOError::read_state_machine(AnyError::error(e.to_string())),
        })
    }

    fn meta(&self, position: &Position) -> Result<SnapshotMeta<u64, Node>, StorageError<u64>> {
        Ok(SnapshotMeta {
            last_log_id: applied(position),
            last_membership: self.stored(position.meta.clone())?,
            snapshot_id: format!("{}-{}-{}", position.term, position.node, position.index),
        })
    }

    async fn pinned(&self) -> Result<Snapshot<TypeConfig>, StorageError<u64>> {
        let embedded = self.embedded.clone();
        let pin = self.blocking.run(move || embedded.pin()).await.map_err(|e| failed(ErrorVerb::Read, &e))?;
        let meta = self.meta(&pin.position)?;
        Ok(Snapshot { meta, snapshot: Box::new(SnapshotSource::Pinned(Arc::new(Mutex::new(Some(pin))))) })
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    /// Flushes first: openraft purges the log below a snapshot, and what is purged must be in the store for good.
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError<u64>> {
        if !plant::is(Plant::PurgeUnflushed) {
            self.embedded.flush().await.map_err(|e| failed(ErrorVerb::Write, &e))?;
        }
        self.pinned().await
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<RaftLogId>, StoredMembership<u64, Node>), StorageError<u64>> {
        let position = self.embedded.position();
        Ok((applied(&position), self.stored(position.meta)?))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError<u64>>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut holds_batch = Vec::new();
        let entries: Vec<LogEntry> = entries
            .into_iter()
            .map(|entry| {
                let id = entry.log_id;
                holds_batch.push(matches!(entry.payload, EntryPayload::Normal(_)));
                let payload = match entry.payload {
                    EntryPayload::Blank => Payload::Blank,
                    EntryPayload::Normal(batch) => Payload::Batch(batch.bytes),
                    EntryPayload::Membership(m) => {
                        Payload::Meta(codec::stored_bytes(&StoredMembership::new(Some(id), m)))
                    }
                };
                LogEntry { index: id.index + 1, term: id.leader_id.term, node: id.leader_id.node_id, payload }
            })
            .collect();
        if let Some(last) = entries.last().filter(|_| !plant::is(Plant::ApplyUnflushed)) {
            let flushed = self.flushing.reach(last.index.saturating_sub(1)).await;
            flushed
                .map_err(|e| StorageError::IO { source: StorageIOError::write_logs(AnyError::error(e)) })?;
            // Whom it is sent to from now on hasn't taken part in its commit.
            self.flushing.traced().forget(last.index);
        }
        let outcomes = self.embedded.apply(entries).map_err(|e| failed(ErrorVerb::Write, &e))?;
        let outcome = |(outcome, batch)| match (outcome, batch) {
            (_, false) => Outcome::Nothing,
            (ApplyOutcome::Applied, true) => Outcome::Applied,
            (ApplyOutcome::Mismatch, true) => Outcome::Mismatch,
        };
        Ok(outcomes.into_iter().zip(holds_batch).map(outcome).collect())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotSource>, StorageError<u64>> {
        Ok(Box::new(SnapshotSource::Received))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, Node>,
        snapshot: Box<SnapshotSource>,
    ) -> Result<(), StorageError<u64>> {
        if !matches!(*snapshot, SnapshotSource::Received) {
            let misuse = BaseError::Misuse("only a received snapshot can be installed".into());
            return Err(failed(ErrorVerb::Write, &misuse));
        }
        if let Some(OnAppend(hear)) = &self.on_append {
            hear(None);
        }
        let id = meta.last_log_id.map(|id| codec::log_id(&id)).unwrap_or_default();
        let position = Position {
            index: meta.last_log_id.map_or(0, |id| id.index + 1),
            term: id.term,
            node: id.node,
            meta: codec::stored_bytes(&meta.last_membership),
        };
        let embedded = self.embedded.clone();
        let installed = self.blocking.run(move || embedded.install_end(position)).await;
        installed.map_err(|e| {
            self.health.install_failed.store(true, Ordering::Release);
            failed(ErrorVerb::Write, &e)
        })
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError<u64>> {
        if self.embedded.position().index == 0 {
            return Ok(None);
        }
        // Any state is as good as one that was pinned long ago, and the newest saves replay.
        self.pinned().await.map(Some)
    }
}
