//! Room for metadata: how much is free on the disk of `state_dir`, and what a master does when that runs low.
//!
//! Below `reserve_bytes` this master makes way as leader where another one has room. Where none has, the leader takes no new names, below half
//! of the reserve no data either, both answered with ENOSPC; what frees something it takes to the last byte. So a region comes to a stand
//! with room enough to be emptied, and not in the midst of a write of its log or its store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mooseng_namespace::Room;
use mooseng_ports::disk::{Disk, Space};
use mooseng_transport::Blocking;

use crate::master::Master;

/// How often the disk is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A small disk's reserve is this share of it at most.
const SHARE_MAX: u64 = 10;

/// What the disk has, and what that means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Free bytes; none before the disk was looked at.
    pub bytes_free: Option<u64>,
    /// The reserve in bytes.
    pub bytes_reserved: u64,
    /// What there is room for.
    pub room: Room,
}

impl Measured {
    /// What `space` means after what was measured before. A little more than the reserve must be free before it is over.
    pub fn next(self, space: Space, reserve_bytes: u64) -> Self {
        let bytes_reserved = reserve_bytes.min(space.bytes_total / SHARE_MAX);
        let free = space.bytes_free;
        let room_for = |free: u64| match free {
            free if free >= bytes_reserved => Room::Enough,
            free if free >= bytes_reserved / 2 => Room::Scarce,
            _ => Room::Out,
        };
        // The order of the levels is that of their shortage.
        let eased = room_for(free.saturating_sub(bytes_reserved / 8));
        let room = if eased < self.room { eased } else { self.room.max(room_for(free)) };
        Self { bytes_free: Some(free), bytes_reserved, room }
    }

    /// The sentence for logs and status.
    pub fn told(self) -> String {
        format!(
            "{} MiB are free on the disk of this master's `state_dir`, the reserve is {} MiB",
            self.bytes_free.unwrap_or(0) >> 20,
            self.bytes_reserved >> 20
        )
    }
}

/// A disk that is looked at.
pub struct Looker {
    /// It.
    pub disk: Arc<dyn Disk>,
    /// Where its calls run.
    pub blocking: Blocking,
    /// The directory whose disk it is.
    pub state_dir: PathBuf,
}

impl Looker {
    async fn space(&self) -> std::io::Result<Space> {
        let (disk, path) = (self.disk.clone(), self.state_dir.clone());
        self.blocking.run(move || disk.space(&path)).await
    }
}

/// Looks once, and lets the group know.
pub async fn look(master: &Master, looker: &Looker) {
    let space = match looker.space().await {
        Ok(space) => space,
        // A disk that can't say this fails the log or the store before long, which is told there.
        Err(error) => return tracing::debug!(%error, "the disk of `state_dir` doesn't say how full it is"),
    };
    let before = master.measured();
    let now = before.next(space, master.config.reserve_bytes);
    master.measure(now);
    master.metrics.state_bytes_free.set(i64::try_from(space.bytes_free).unwrap_or(i64::MAX));
    master.raft.set_short_of_room(now.room != Room::Enough);
    match (before.room, now.room) {
        (before, now) if before == now => {}
        (_, Room::Enough) => tracing::info!("this master has room again: {}", now.told()),
        (_, _) => tracing::warn!("MASTER_DISK_LOW: {}", now.told()),
    }
}

/// Looks on and on.
pub async fn keep(master: Arc<Master>, looker: Looker) {
    loop {
        tokio::select! {
            biased;
            () = master.shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        look(&master, &looker).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortage_comes_at_once_and_goes_with_a_margin() {
        let space = |bytes_free| Space { bytes_total: 100_000, bytes_free };
        let mut measured = Measured::default();
        for (free, room) in [
            (1_000, Room::Enough),
            (999, Room::Scarce),
            (1_100, Room::Scarce),
            (1_125, Room::Enough),
            (500, Room::Scarce),
            (499, Room::Out),
            (600, Room::Out),
            (625, Room::Scarce),
            (0, Room::Out),
            (5_000, Room::Enough),
        ] {
            measured = measured.next(space(free), 1_000);
            assert_eq!(measured.room, room, "{free} bytes are free");
        }
        // A tenth of a small disk, whatever is asked for.
        let small = Measured::default().next(Space { bytes_total: 1_000, bytes_free: 100 }, 1_000);
        assert_eq!((small.room, small.bytes_reserved), (Room::Enough, 100));
    }
}
