//! openraft's log storage over the write-ahead log.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use mooseng_ports::plant::{self, Plant};
use mooseng_transport::{Blocking, Lane};
use mooseng_wal as wal;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, EntryPayload, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError};
use prost::Message;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::codec::{self, RaftEntry, RaftLogId, RaftVote, from_wal, to_wal};
use crate::flushing::Flushing;
use crate::lease::Acknowledged;
use crate::settings::OnAppend;
use crate::snapshot::lock;
use crate::types::TypeConfig;

/// Bytes of entries in one read for replication.
const READ_BYTES_MAX: usize = 2 << 20;

/// How often a full disk is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(200);
/// How long the purge behind a snapshot waits for its installation.
const INSTALL_MAX: Duration = Duration::from_secs(120);

type Write = Box<dyn FnOnce() -> Result<(), wal::WalError> + Send>;

/// What the log's owner knows of it.
#[derive(Default)]
pub(crate) struct Health {
    /// The disk is full: an append waits for room.
    pub full: AtomicBool,
    /// The log that this member had is lost: it takes no part any more.
    pub lost: AtomicBool,
    /// The log began empty and hasn't got yet all that was committed: this member doesn't stand for election.
    pub lacking: AtomicBool,
    /// A snapshot's installation failed.
    pub install_failed: AtomicBool,
    /// The group was recovered without this member, which takes no part any more.
    pub superseded: CancellationToken,
    /// Why the log takes nothing in any more, where it was not openraft that wrote.
    pub failed: OnceLock<String>,
}

/// The log; clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    pub wal: Arc<wal::Wal>,
    pub flushing: Flushing,
    pub blocking: Blocking,
    /// Where it is written: one write after the other anyway.
    pub writes: Lane,
    /// This member.
    pub id: u64,
    /// Hears of each vote before anybody else does.
    pub acknowledged: Arc<Mutex<Acknowledged>>,
    pub health: Arc<Health>,
    pub stop: CancellationToken,
    /// The highest index that the store has flushed: the log is purged no further, whatever is asked.
    pub flushed: Arc<dyn Fn() -> Option<u64> + Send + Sync>,
    /// Hears of each batch before it is written.
    pub on_append: Option<OnAppend>,
}

fn decode(entry: wal::Entry) -> Result<RaftEntry, StorageError<u64>> {
    let malformed = |e: &dyn std::error::Error| StorageError::IO {
        source: StorageIOError::read_logs(AnyError::error(e.to_string())),
    };
    let decoded = mooseng_wire::raft::LogEntry::decode(entry.payload).map_err(|e| malformed(&e))?;
    codec::from_entry(decoded).map_err(|e| malformed(&e))
}

impl Log {
    /// Writes, and waits for room where there is none. Waiting stops this member's heartbeats and answers, so that a leader with a full
    /// disk makes way for another one.
    async fn write(
        &self,
        f: impl Fn(&wal::Wal) -> Result<(), wal::WalError> + Send + Sync + 'static,
    ) -> Result<(), wal::WalError> {
        self.write_by(|writes, f| writes.run(f).boxed(), f).await
    }

    /// The same of what is appended: usually done by the time that another thread would have woken. A disk that hangs holds up this member's
    /// worker, and with it all that it could say to others, as a disk that hangs has to.
    async fn append_quickly(
        &self,
        f: impl Fn(&wal::Wal) -> Result<(), wal::WalError> + Send + Sync + 'static,
    ) -> Result<(), wal::WalError> {
        self.write_by(|writes, f| writes.run_quick(f).boxed(), f).await
    }

    async fn write_by(
        &self,
        run: impl for<'a> Fn(&'a Lane, Write) -> BoxFuture<'a, Result<(), wal::WalError>>,
        f: impl Fn(&wal::Wal) -> Result<(), wal::WalError> + Send + Sync + 'static,
    ) -> Result<(), wal::WalError> {
        let f = Arc::new(f);
        loop {
            let (wal, f) = (self.wal.clone(), f.clone());
            match run(&self.writes, Box::new(move || f(&wal))).await {
                Err(error) if error.is_full() && !self.stop.is_cancelled() => {
                    if !self.health.full.swap(true, Ordering::AcqRel) {
                        tracing::error!(%error, "the log's disk is full: this master takes part again once there is room");
                    }
                    tokio::select! {
                        () = self.stop.cancelled() => {}
                        () = tokio::time::sleep(FULL_PAUSE) => {}
                    }
                }
                written => {
                    if written.is_ok() {
                        self.health.full.store(false, Ordering::Release);
                    }
                    return written;
                }
            }
        }
    }

    async fn read(&self, start: u64, end: u64) -> Result<Vec<RaftEntry>, StorageError<u64>> {
        // What was appended a moment ago is in memory: that needs no other thread.
        if let Some(cached) = self.wal.read_cached(start..end, usize::MAX) {
            return cached.into_iter().map(decode).collect();
        }
        let wal = self.wal.clone();
        let read = self.blocking.run(move || wal.read(start..end, usize::MAX)).await;
        read.map_err(|e| read_failed(&e))?.into_iter().map(decode).collect()
    }
}

impl Log {
    fn is_flushed(&self, index: u64) -> bool {
        plant::is(Plant::PurgeUnflushed) || (self.flushed)().is_some_and(|flushed| flushed >= index)
    }

    async fn wait_flushed(&self, index: u64) -> Result<(), StorageError<u64>> {
        let deadline = Instant::now() + INSTALL_MAX;
        while !self.is_flushed(index) {
            let ended = self.stop.is_cancelled() || self.health.install_failed.load(Ordering::Acquire);
            if ended || Instant::now() > deadline {
                let error =
                    AnyError::error("the log can't be purged behind a snapshot that wasn't installed");
                return Err(StorageError::IO { source: StorageIOError::write_logs(error) });
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

fn read_failed(error: &wal::WalError) -> StorageError<u64> {
    StorageError::IO { source: StorageIOError::read_logs(AnyError::new(error)) }
}

fn failed(error: &wal::WalError) -> StorageError<u64> {
    StorageError::IO { source: StorageIOError::write_logs(AnyError::new(error)) }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<RaftEntry>, StorageError<u64>> {
        let start = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => i + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(i) => i + 1,
            Bound::Excluded(i) => *i,
            Bound::Unbounded => u64::MAX,
        };
        let start = start.max(self.wal.purged().map_or(0, |p| p.index + 1));
        self.read(start, end).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<RaftEntry>, StorageError<u64>> {
        if let Some(cached) = self.wal.read_cached(start..end, READ_BYTES_MAX) {
            return cached.into_iter().map(decode).collect();
        }
        let wal = self.wal.clone();
        match self.blocking.run(move || wal.read(start..end, READ_BYTES_MAX)).await {
            Ok(read) => read.into_iter().map(decode).collect(),
            // openraft 0.9 leaves a deposed leader's replication running until that leads again. What such a stream asks for may be
            // purged behind an installed snapshot, or cut off by the new leader. An error would stop this member for good; nothing makes a
            // heartbeat of the old term of it, which is refused and ends the stream.
            Err(error @ wal::WalError::Missing { .. }) => {
                if self.wal.vote().is_some_and(|vote| vote.node == self.id && vote.committed) {
                    tracing::warn!(%error, "a leader was asked to replicate what its log doesn't hold any more");
                }
                Ok(Vec::new())
            }
            Err(error) => Err(read_failed(&error)),
        }
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError<u64>> {
        Ok(LogState {
            last_purged_log_id: self.wal.purged().map(from_wal),
            last_log_id: self.wal.last().map(from_wal),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), StorageError<u64>> {
        // The lease ends before the vote is answered.
        lock(&self.acknowledged).saw_vote(vote.leader_id.term, vote.leader_id.node_id);
        let vote =
            wal::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed };
        let saved = self.write(move |wal| wal.save_vote(vote)).await;
        saved.map_err(|e| StorageError::IO { source: StorageIOError::write_vote(AnyError::new(&e)) })
    }

    /// A leader that restarts isn't the leader any more: openraft would let it go on in its old term, beside batches of its earlier life
    /// that are still on their way and that carry the same versions. Without the mark it stands for election in a new term.
    async fn read_vote(&mut self) -> Result<Option<RaftVote>, StorageError<u64>> {
        let vote = |v: wal::Vote| {
            let ours = v.node == self.id && !plant::is(Plant::LeadershipResumed);
            let committed = v.committed && !ours && !plant::is(Plant::RestartWaitSkipped);
            codec::from_vote(&mooseng_wire::raft::Vote { term: v.term, node: v.node, committed })
        };
        Ok(self.wal.vote().map(vote))
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), StorageError<u64>> {
        if let Some(id) = committed {
            self.wal.note_committed(to_wal(&id));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, StorageError<u64>> {
        Ok(self.wal.committed().map(from_wal))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut changes_members = false;
        let entries: Vec<wal::Entry> = entries
            .into_iter()
            .map(|e| {
                changes_members |= matches!(e.payload, EntryPayload::Membership(_));
                if let EntryPayload::Normal(batch) = &e.payload {
                    self.flushing.traced().append(&e.log_id, &batch.context);
                    if let Some(OnAppend(hear)) = &self.on_append {
                        hear(Some(&batch.bytes));
                    }
                }
                wal::Entry { id: to_wal(&e.log_id), payload: codec::entry(&e).encode_to_vec().into() }
            })
            .collect();
        let leads = self.wal.vote().is_some_and(|vote| vote.node == self.id && vote.committed);
        let appended = if leads && !changes_members {
            let flushing = self.flushing.clone();
            let append = move |wal: &wal::Wal| {
                if wal.append_early(entries.clone())? == wal::Appended::Written {
                    flushing.begin();
                }
                Ok(())
            };
            self.append_quickly(append).await
        } else {
            self.append_quickly(move |wal| wal.append(entries.clone())).await
        };
        match appended {
            Ok(()) => {
                // openraft counts this member towards the quorum from now on. Where that isn't flushed yet, see `flushing`.
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(io::Error::other(error.to_string())));
                Err(failed(&error))
            }
        }
    }

    async fn truncate(&mut self, id: RaftLogId) -> Result<(), StorageError<u64>> {
        if let Some(OnAppend(hear)) = &self.on_append {
            hear(None);
        }
        self.write(move |wal| wal.truncate(id.index)).await.map_err(|e| failed(&e))
    }

    async fn purge(&mut self, id: RaftLogId) -> Result<(), StorageError<u64>> {
        // Never beyond what the store has flushed: those entries may be needed for replay.
        if self.wal.last().is_none_or(|last| last.index < id.index) {
            // A snapshot beyond the log. openraft asks for this purge while the store still installs it, and then appends behind it: left
            // out, it would leave a hole in the log; done now, a crash would leave neither entries nor snapshot.
            self.wait_flushed(id.index).await?;
        } else if !self.is_flushed(id.index) {
            tracing::debug!(index = id.index, "the log isn't purged: the store hasn't flushed that far");
            return Ok(());
        }
        self.write(move |wal| wal.purge(to_wal(&id))).await.map_err(|e| failed(&e))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use mooseng_ports::disk::sim::SimDisk;

    use super::*;

    /// Found by the simulation: a deposed leader's replication woke from its pause, read what a snapshot had replaced meanwhile, and the
    /// error stopped the member.
    #[tokio::test]
    async fn a_stale_replication_finds_nothing_where_the_log_was_purged_or_cut_off() {
        let wal = Arc::new(
            wal::Wal::open(Arc::new(SimDisk::default()), Path::new("/raft"), Default::default()).unwrap(),
        );
        let mut log = Log {
            wal: wal.clone(),
            flushing: Flushing::new(wal.clone(), Blocking::Inline),
            blocking: Blocking::Inline,
            writes: Lane::new(Blocking::Inline, "log"),
            id: 1,
            acknowledged: Arc::default(),
            health: Arc::default(),
            stop: CancellationToken::new(),
            flushed: Arc::new(|| Some(u64::MAX)),
            on_append: None,
        };
        let id = |index| wal::LogId { term: 1, node: 1, index };
        let entry = |index| {
            let entry = RaftEntry { log_id: from_wal(id(index)), payload: openraft::EntryPayload::Blank };
            wal::Entry { id: id(index), payload: codec::entry(&entry).encode_to_vec().into() }
        };
        wal.append((0..10).map(entry).collect()).unwrap();
        wal.purge(id(4)).unwrap();
        wal.truncate(8).unwrap();
        assert_eq!(log.limited_get_log_entries(3, 7).await.unwrap().len(), 0);
        assert_eq!(log.limited_get_log_entries(5, 7).await.unwrap().len(), 2);
        assert_eq!(log.limited_get_log_entries(8, 9).await.unwrap().len(), 0);
        // What is applied must be there.
        assert!(log.try_get_log_entries(5..8).await.unwrap().len() == 3);
    }
}
