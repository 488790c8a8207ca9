//! What a client knows about itself, for `/readyz`, metrics and `mooseng status`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::caches::{CacheCounts, Caches};
use crate::fs::FileSystem;

/// A snapshot of a [`crate::FileSystem`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FsStatus {
    /// The session's id; 0 before the first one.
    pub session: u64,
    /// The session's incarnation.
    pub incarnation: u64,
    /// The newest custody epoch that a master told us.
    pub custody_epoch: u64,
    /// The newest place of the volume's log, by home epoch and version, that answers may have shown; 0 and 0 where one region alone has the volume.
    pub log_seen: (u64, u64),
    /// Whether this host's region promises what its replica of the volume tells.
    pub near_promises: bool,
    /// What remains of the lease, in milliseconds; none when it has run out.
    pub lease_left_ms: Option<u64>,
    /// The leader's address while we are connected to it.
    pub leader: Option<String>,
    /// Times that the lease lapsed and a new incarnation began.
    pub lapses: u64,
    /// Times that another master was taken as leader, the first one included.
    pub leader_changes: u64,
    /// Changes without an answer yet.
    pub unanswered: usize,
    /// Inodes held open.
    pub open_inodes: usize,
    /// Chunks open for appends.
    pub open_chunks: usize,
    /// Bytes of chunk data in memory.
    pub cache_bytes: usize,
    /// Written bytes that aren't at the region yet.
    pub dirty_bytes: usize,
    /// Changes that were made alone and aren't told to the region yet.
    pub untold: usize,
    /// Changes made alone so far.
    pub made_alone: u64,
    /// Requests that told the region of them.
    pub tellings: u64,
    /// Of them, changes that were lost or refused after they had been answered.
    pub untold_lost: u64,
    /// Attributes that the region had otherwise than they were shown.
    pub alone_corrected: u64,
    /// Locks given without a request, of files that nobody else had open.
    pub locks_alone: u64,
    /// Attempts that had to be repeated.
    pub retries: u64,
    /// Changes that waited because what no other region has was older than the volume's `lag_max`.
    pub paced: u64,
    /// Operations that failed because nobody answered in time.
    pub timeouts: u64,
    /// Chunks replaced because a chunkserver failed.
    pub chunks_replaced: u64,
    /// Replicas that answered with wrong bytes.
    pub corrupt_replicas: u64,
    /// Reads for which a second replica was asked because the first was slow or failed.
    pub hedges: u64,
    /// Reads of files that chunkservers on this host lent.
    pub same_host_reads: u64,
    /// Bytes of those.
    pub same_host_bytes: u64,
    /// Those that failed, and were done over the network.
    pub same_host_failures: u64,
    /// Files that are lent now.
    pub lent_files: usize,
    /// How often caches had what was asked of them, by name.
    pub caches: BTreeMap<&'static str, CacheCounts>,
    /// Latency by operation.
    pub latencies: BTreeMap<String, Latency>,
    /// Chunkservers that this client has used lately.
    pub chunkservers: BTreeMap<String, ChunkserverStatus>,
    /// The newest obstacle on the way to a leader, empty when all is well.
    pub last_error: String,
}

/// Latency of one kind of operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Operations.
    pub count: u64,
    /// Their durations together, in microseconds.
    pub total_us: u64,
    /// An average in which newer ones weigh more, in microseconds.
    pub recent_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

impl Latency {
    pub(crate) fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.recent_us =
            if self.count == 0 { us } else { (self.recent_us.saturating_mul(7).saturating_add(us)) / 8 };
        self.count += 1;
        self.total_us = self.total_us.saturating_add(us);
        self.max_us = self.max_us.max(us);
    }
}

impl Latency {
    fn add(&mut self, other: &Self) {
        if other.count > self.count {
            self.recent_us = other.recent_us;
        }
        self.count += other.count;
        self.total_us = self.total_us.saturating_add(other.total_us);
        self.max_us = self.max_us.max(other.max_us);
    }
}

/// A chunkserver as this client sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ChunkserverStatus {
    /// Latency of reads and appends.
    pub latency: Latency,
    /// Failures seen.
    pub failures: u64,
    /// Avoided for the moment because it failed.
    pub suspect: bool,
}

/// Counters behind [`FsStatus`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    counts: Mutex<Counts>,
    pub caches: Caches,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub retries: u64,
    pub paced: u64,
    pub timeouts: u64,
    pub chunks_replaced: u64,
    pub corrupt_replicas: u64,
    pub hedges: u64,
    pub same_host_reads: u64,
    pub same_host_bytes: u64,
    pub same_host_failures: u64,
    pub latencies: BTreeMap<&'static str, Latency>,
}

impl Counters {
    pub fn update(&self, f: impl FnOnce(&mut Counts)) {
        f(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }
    pub fn took(&self, operation: &'static str, took: Duration) {
        self.update(|c| c.latencies.entry(operation).or_default().record(took));
    }
    /// Something was read from a file that was lent.
    pub fn read_here(&self, bytes: u64) {
        self.update(|c| {
            c.same_host_reads += 1;
            c.same_host_bytes += bytes;
        });
    }
    pub fn get(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl FsStatus {
    /// Adds what another volume of the same mount counts by itself.
    pub(crate) fn add(&mut self, other: &Self) {
        self.unanswered += other.unanswered;
        self.open_inodes += other.open_inodes;
        self.open_chunks += other.open_chunks;
        self.dirty_bytes += other.dirty_bytes;
        self.untold += other.untold;
        for (sum, more) in [
            (&mut self.lapses, other.lapses),
            (&mut self.leader_changes, other.leader_changes),
            (&mut self.made_alone, other.made_alone),
            (&mut self.tellings, other.tellings),
            (&mut self.untold_lost, other.untold_lost),
            (&mut self.alone_corrected, other.alone_corrected),
            (&mut self.locks_alone, other.locks_alone),
            (&mut self.retries, other.retries),
            (&mut self.paced, other.paced),
            (&mut self.timeouts, other.timeouts),
            (&mut self.chunks_replaced, other.chunks_replaced),
            (&mut self.corrupt_replicas, other.corrupt_replicas),
            (&mut self.hedges, other.hedges),
            (&mut self.same_host_reads, other.same_host_reads),
            (&mut self.same_host_bytes, other.same_host_bytes),
            (&mut self.same_host_failures, other.same_host_failures),
        ] {
            *sum += more;
        }
        for (cache, counts) in &other.caches {
            self.caches.entry(*cache).or_default().add(counts);
        }
        for (operation, latency) in &other.latencies {
            self.latencies.entry(operation.clone()).or_default().add(latency);
        }
    }
}

impl FileSystem {
    /// What this client knows about itself.
    pub fn status(&self) -> FsStatus {
        let inner = &self.inner;
        let view = inner.session.view();
        let counts = inner.region.counters.get();
        let alone = inner.session.journal.counts();
        FsStatus {
            session: view.session,
            incarnation: view.incarnation,
            custody_epoch: view.custody_epoch,
            log_seen: inner.session.near.seen(),
            near_promises: inner.session.near.is_open(),
            lease_left_ms: view.lease_left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            leader: view.leader,
            lapses: view.lapses,
            leader_changes: view.leader_changes,
            unanswered: inner.region.unanswered(),
            open_inodes: inner.opens.len(),
            open_chunks: inner.appenders.open_chunks(),
            cache_bytes: inner.reader.cache.bytes(),
            dirty_bytes: inner.writer.buffers.bytes(),
            untold: inner.session.journal.len(),
            made_alone: alone.made,
            tellings: alone.tellings,
            untold_lost: alone.lost,
            alone_corrected: alone.corrected,
            locks_alone: inner.locks.given_here(),
            retries: counts.retries,
            paced: counts.paced,
            timeouts: counts.timeouts,
            chunks_replaced: counts.chunks_replaced,
            corrupt_replicas: counts.corrupt_replicas,
            hedges: counts.hedges,
            same_host_reads: counts.same_host_reads,
            same_host_bytes: counts.same_host_bytes,
            same_host_failures: counts.same_host_failures,
            lent_files: inner.chunkservers.lent_files(),
            caches: inner.region.counters.caches.counts(),
            latencies: counts
                .latencies
                .into_iter()
                .map(|(name, latency)| (name.to_owned(), latency))
                .collect(),
            chunkservers: inner.chunkservers.view(),
            last_error: view.last_error,
        }
    }

    /// Whether this client can serve: it holds a lease and is connected to a leader. The reason if not, in a sentence.
    pub fn ready(&self) -> Result<(), String> {
        let view = self.inner.session.view();
        let why = if view.last_error.is_empty() {
            "no master has answered yet".to_owned()
        } else {
            view.last_error
        };
        // A renewal comes every two seconds: a lease that is more than half spent means that several were missed.
        match (view.lease_left, view.leader) {
            (None, _) => Err(format!("the mount has no lease: {why}")),
            (Some(_), None) => Err(format!("the mount is looking for the region's leader: {why}")),
            (Some(_), Some(_)) => Ok(()),
        }
    }
}
