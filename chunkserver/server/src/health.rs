//! Whether this chunkserver is ready: a disk takes writes, tickets can be checked, and the region is the one that its chunks are of.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooseng_chunk::ChunkStore;
use mooseng_chunk::directory::DirectoryStatus;
use mooseng_transport::Blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::access::KeyRing;
use crate::founding::Foundings;
use crate::metrics::Metrics;

/// How often each disk is written to a little.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A probe that takes longer means that the disks hang. Together with the above it stays below the five seconds in which /readyz must tell.
const PROBE_MAX: Duration = Duration::from_secs(3);
/// A disk on which one call takes so long hangs: masters are told, and few others may wait for it. Disks that only have much to do answer sooner, mostly.
pub(crate) const HUNG_AFTER: Duration = Duration::from_secs(5);

/// What readiness hangs on.
pub struct Health {
    store: Arc<ChunkStore>,
    keys: Arc<KeyRing>,
    foundings: Arc<Foundings>,
    /// When the last probe that ended began.
    probed: Mutex<Instant>,
}

impl Health {
    /// Counts the startup as a probe.
    pub fn new(store: Arc<ChunkStore>, keys: Arc<KeyRing>, foundings: Arc<Foundings>) -> Self {
        Self { store, keys, foundings, probed: Mutex::new(Instant::now()) }
    }

    /// Ready, or why not.
    pub fn ready(&self) -> Result<(), String> {
        if let Some((path, since)) = self.store.hanging().first() {
            return Err(format!(
                "the disk at {} hasn't answered for {} s: look at the kernel's log",
                path.display(),
                since.as_secs()
            ));
        }
        let probed = *self.probed.lock().unwrap_or_else(PoisonError::into_inner);
        if probed.elapsed() > PROBE_EVERY + PROBE_MAX {
            return Err(format!(
                "the disks haven't answered a probing write for {} s: look at the kernel's log",
                probed.elapsed().as_secs()
            ));
        }
        if !self.store.is_writable() {
            return Err("no data directory takes writes: `mooseng status` and the log say why".into());
        }
        if let Some(trouble) = self.foundings.trouble() {
            return Err(trouble);
        }
        if self.keys.is_empty() {
            return Err(
                "no master has answered a heartbeat with a ticket key yet: check `masters` and the network"
                    .into(),
            );
        }
        Ok(())
    }

    /// Probes the disks until told to stop, and keeps the disks' metrics.
    pub async fn run(&self, blocking: Blocking, metrics: Metrics, shutdown: CancellationToken) {
        loop {
            let begun = Instant::now();
            let store = self.store.clone();
            let directories = blocking
                .run(move || {
                    store.probe();
                    store.directories()
                })
                .await;
            *self.probed.lock().unwrap_or_else(PoisonError::into_inner) = begun;
            show(&metrics, &directories);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PROBE_EVERY) => {}
            }
        }
    }
}

fn show(metrics: &Metrics, directories: &[DirectoryStatus]) {
    let sum = |f: fn(&DirectoryStatus) -> u64| {
        i64::try_from(directories.iter().map(f).sum::<u64>()).unwrap_or(i64::MAX)
    };
    metrics.disks.set(sum(|_| 1));
    metrics.disks_writable.set(sum(|d| u64::from(d.writable)));
    metrics.chunks.set(sum(|d| d.chunks));
    metrics.bytes_used.set(sum(|d| d.bytes_used));
    metrics.bytes_free.set(sum(|d| if d.writable { d.bytes_free } else { 0 }));
}
