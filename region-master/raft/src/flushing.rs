//! What a leader has flushed of its own log, and who waits for it.
//!
//! openraft 0.9 replicates an entry only after the leader's log has taken it in for good, so two flushes lie in a row on the way of every
//! commit. A leader's log therefore takes entries in before it has flushed them, while followers flush theirs (Ongaro's dissertation, section
//! 10.2.1: the leader may write to its disk in parallel with its followers). openraft then counts this member towards the quorum too early. What
//! makes that harmless is that nobody acts on it before the flush:
//! - nothing is applied here, and so nobody is answered, before it is flushed here ([`Machine`](crate::machine::Machine));
//! - no follower is told that it is committed ([`PeerLink`](crate::network::PeerLink));
//! - a leader that was deposed acknowledges nothing to its successor that it hasn't flushed: it saves the successor's vote first, and a vote is
//!   flushed together with all that was written before;
//! - changes of members are flushed first, for they count from when they are in the log ([`Log`](crate::log::Log)).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mooseng_transport::{Blocking, Lane};
use mooseng_wal::{LogId, Wal};
use tokio::sync::watch;

use crate::traced::Traced;

/// How long a flush takes in the simulation, in microseconds, at most: it has no thread where one could last.
const SIMULATED_MAX_US: u64 = 3_000;
/// One of so many flushes there takes up to so many times as long, as on disks with other work.
const SIMULATED_STALLS: (u32, u64) = (16, 40);

/// The flushes of a log; clones share them.
#[derive(Clone)]
pub(crate) struct Flushing {
    wal: Arc<Wal>,
    blocking: Blocking,
    lane: Lane,
    told: Arc<watch::Sender<()>>,
    failed: Arc<OnceLock<String>>,
    traced: Arc<Traced>,
}

impl Flushing {
    pub fn new(wal: Arc<Wal>, blocking: Blocking) -> Self {
        let lane = Lane::new(blocking, "mooseng-flush");
        Self {
            wal,
            blocking,
            lane,
            told: Arc::new(watch::Sender::new(())),
            failed: Arc::default(),
            traced: Arc::default(),
        }
    }

    /// Flushes what is written, some time from now. Several calls may end in one flush.
    pub fn begin(&self) {
        let own = self.clone();
        match self.blocking {
            Blocking::Pool => self.lane.post(move || own.flush()),
            Blocking::Inline => {
                tokio::spawn(async move {
                    let (one_of, longer) = SIMULATED_STALLS;
                    let most = SIMULATED_MAX_US * if rand::random_ratio(1, one_of) { longer } else { 1 };
                    tokio::time::sleep(Duration::from_micros(rand::random_range(0..most))).await;
                    own.flush();
                });
            }
        }
    }

    fn flush(&self) {
        if let Err(error) = self.wal.flush() {
            let _told_before = self.failed.set(error.to_string());
        }
        if let Some(last) = self.last() {
            self.traced.flushed(last.index);
        }
        self.told.send_replace(());
    }

    /// Entries of sampled traces that are on their way.
    pub fn traced(&self) -> &Traced {
        &self.traced
    }

    /// The last entry that is flushed.
    pub fn last(&self) -> Option<LogId> {
        self.wal.flushed()
    }

    fn covers(&self, index: u64) -> bool {
        // What is purged was applied.
        self.last().is_some_and(|last| last.index >= index)
    }

    /// Waits until the log is flushed up to the entry `index`, or as far as it goes if it is shorter by now. Fails where a flush has failed.
    pub async fn reach(&self, index: u64) -> Result<(), String> {
        if self.covers(index) {
            return Ok(());
        }
        let mut told = self.told.subscribe();
        loop {
            let written = self.wal.last().map_or(0, |last| last.index);
            if self.covers(index.min(written)) {
                return Ok(());
            }
            if let Some(failure) = self.failed.get() {
                return Err(failure.clone());
            }
            if told.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
