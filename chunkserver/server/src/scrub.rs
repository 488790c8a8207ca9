//! Reading everything again, slowly: a block that rots while nobody reads it would be found only when its good copies are gone. Also what
//! empties the trash.
//!
//! A pass over all sealed chunks takes the configured period; how far it is survives restarts. What doesn't verify is reported with the next
//! heartbeat, by the store's own notes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mooseng_chunk::{ChunkError, ChunkStore};
use mooseng_ports::clock::Clock;
use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};
use mooseng_transport::Blocking;
use mooseng_wire::ChunkId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Read at a time.
const PIECE: u64 = 1 << 20;
/// Longest pause between two pieces, and between two looks at an empty store.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// How often the position is kept.
const KEEP_EVERY: Duration = Duration::from_secs(10);
/// The file that keeps it, in the state directory.
const CURSOR_FILE: &str = "scrub.cursor";

/// Scrubs one store.
pub struct Scrub {
    /// The chunks.
    pub store: Arc<ChunkStore>,
    /// Where disk work is done.
    pub blocking: Blocking,
    /// The disk of the state directory.
    pub disk: Arc<dyn Disk>,
    /// The state directory.
    pub state_dir: PathBuf,
    /// How long a pass takes.
    pub period: Duration,
    /// Counters.
    pub metrics: Metrics,
}

impl Scrub {
    /// Scrubs until told to stop.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.forever() => {}
        }
    }

    async fn forever(&self) {
        let (disk, path) = (self.disk.clone(), self.state_dir.join(CURSOR_FILE));
        let mut cursor = self.blocking.run(move || load(&*disk, &path)).await;
        let mut kept = Instant::now();
        loop {
            let store = self.store.clone();
            let next = self.blocking.run(move || (store.next_sealed(cursor), store.sealed_bytes())).await;
            match next {
                (Some((chunk, length)), bytes) => {
                    self.chunk(chunk, length, bytes).await;
                    cursor = Some(chunk);
                }
                (None, bytes) => {
                    self.metrics.scrub_passes.inc_by(u64::from(bytes > 0));
                    cursor = None;
                    tokio::time::sleep(self.pause(PIECE, bytes)).await;
                }
            }
            if kept.elapsed() >= KEEP_EVERY.min(self.period) {
                kept = Instant::now();
                let (disk, path) = (self.disk.clone(), self.state_dir.join(CURSOR_FILE));
                self.blocking.run(move || keep(&*disk, &path, cursor)).await;
            }
        }
    }

    async fn chunk(&self, chunk: ChunkId, length: u64, of: u64) {
        let mut at = 0;
        while at < length {
            let bytes = PIECE.min(length - at);
            let store = self.store.clone();
            let read = self.blocking.run(move || store.read(chunk, at, bytes).map(drop)).await;
            match read {
                Ok(()) => self.metrics.bytes_scrubbed.inc_by(bytes),
                Err(ChunkError::NotFound { .. } | ChunkError::TooShort { .. }) => return,
                Err(ChunkError::Lacking { .. }) => {
                    tokio::time::sleep(self.pause(bytes, of)).await;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(chunk = chunk.0, %error, "the scrub found a copy that can't be read");
                    return;
                }
            };
            at += bytes;
            tokio::time::sleep(self.pause(bytes, of)).await;
        }
    }

    /// A piece's share of the period.
    fn pause(&self, bytes: u64, of: u64) -> Duration {
        if of == 0 {
            return PAUSE_MAX.min(self.period).max(PAUSE_MIN);
        }
        let share = (bytes as f64 / of as f64).min(1.0);
        self.period.mul_f64(share).clamp(PAUSE_MIN, PAUSE_MAX)
    }
}

fn load(disk: &dyn Disk, path: &Path) -> Option<ChunkId> {
    let read = disk.open(path, OpenMode::ReadOnly).and_then(|file| read_all(&*file));
    match read {
        // What can't be understood begins a new pass.
        Ok(bytes) => {
            std::str::from_utf8(&bytes).ok()?.trim().strip_prefix("chunk ")?.parse().ok().map(ChunkId)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            tracing::warn!(path = %path.display(), error = %e, "the scrub's position can't be read; it begins anew");
            None
        }
    }
}

fn keep(disk: &dyn Disk, path: &Path, cursor: Option<ChunkId>) {
    let text = cursor.map_or_else(|| "begin\n".to_owned(), |chunk| format!("chunk {}\n", chunk.0));
    if let Err(e) = write_atomically(disk, path, text.as_bytes()) {
        tracing::warn!(path = %path.display(), error = %e, "the scrub's position can't be kept");
    }
}

/// While there is little room somebody waits for what is being deleted.
const EMPTIED_WHEN_SHORT_EVERY: Duration = Duration::from_secs(5);

/// Unlinks what has been in the trash long enough, until told to stop.
pub async fn empty_trash(
    store: Arc<ChunkStore>,
    blocking: Blocking,
    clock: Arc<dyn Clock>,
    keep: Duration,
    shutdown: CancellationToken,
) {
    let every = (keep / 4).clamp(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let (store, now_s) = (store.clone(), unix_s(&*clock));
        let work = move || (store.purge_trash(now_s, keep.as_secs()), store.is_short_of_room());
        let (gone, short) = blocking.run(work).await;
        if gone > 0 {
            tracing::info!(files = gone, "emptied the trash of deleted chunks");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(if short { every.min(EMPTIED_WHEN_SHORT_EVERY) } else { every }) => {}
        }
    }
}

/// Seconds since the Unix epoch.
pub fn unix_s(clock: &dyn Clock) -> u64 {
    u64::try_from(clock.unix_ns() / 1_000_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use mooseng_ports::disk::sim::SimDisk;

    use super::*;

    #[test]
    fn the_position_survives() {
        let (disk, path) = (SimDisk::default(), Path::new("/state/scrub.cursor"));
        disk.create_dir_all(Path::new("/state")).unwrap();
        assert_eq!(load(&disk, path), None);
        for cursor in [Some(ChunkId(77)), None] {
            keep(&disk, path, cursor);
            disk.crash(|_| 0);
            assert_eq!(load(&disk, path), cursor);
        }
    }
}
