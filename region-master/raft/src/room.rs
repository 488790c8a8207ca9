//! Who has room on its disk: a member that is short of it leads only where no other can.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mooseng_ports::clock::BootTime;

use crate::node::RaftNode;
use crate::snapshot::lock;

/// A member that is short of room stands for election only after so long a silence: several elections in which another could have won.
const STANDS_BACK: Duration = Duration::from_secs(3);
/// How often it is looked whether a leader that is short of room can make way.
const LOOK: Duration = Duration::from_millis(250);
/// After an attempt, the next one comes so much later: each may cost as much as an election.
const MAKES_WAY_EVERY: Duration = Duration::from_secs(5);

/// What is known of it.
#[derive(Default)]
pub(crate) struct Room {
    short: AtomicBool,
    /// What followers said with their latest acknowledgement, and when.
    told: Mutex<BTreeMap<u64, (bool, BootTime)>>,
}

impl Room {
    /// Whether this member is short of it.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Acquire)
    }

    /// A follower acknowledged something, and said how it is.
    pub fn tell(&self, follower: u64, short: bool, now: BootTime) {
        lock(&self.told).insert(follower, (short, now));
    }

    /// Whether a follower is short of room, if it said so lately.
    pub fn of(&self, follower: u64, now: BootTime, lately: Duration) -> Option<bool> {
        lock(&self.told).get(&follower).filter(|(_, at)| now.since(*at) <= lately).map(|(short, _)| *short)
    }
}

impl RaftNode {
    /// Says whether this member is short of room on its disk. One that is makes way as leader where another has room, and stands for
    /// election only when no other does.
    pub fn set_short_of_room(&self, short: bool) {
        self.0.room.short.store(short, Ordering::Release);
        self.adjust_electing();
    }

    /// As the leader: whether another voter that answers has room, so that it may lead instead.
    pub fn is_room_elsewhere(&self) -> bool {
        let voters: Vec<u64> = self.metrics().membership_config.membership().voter_ids().collect();
        voters.into_iter().any(|id| id != self.0.id && self.room_of(id) == Some(false))
    }

    /// Whether a member is short of room, as far as this one knows.
    pub(crate) fn room_of(&self, id: u64) -> Option<bool> {
        if id == self.0.id {
            return Some(self.0.room.is_short());
        }
        // Heartbeats come far more often.
        let lately = self.0.timings.election_max * 2;
        self.0.room.of(id, self.0.clock.boot(), lately)
    }

    /// Lets openraft stand for election, or not, by all that speaks against it.
    pub(crate) fn adjust_electing(&self) {
        let inner = &self.0;
        let held_back = [&inner.health.lost, &inner.health.lacking, &inner.handing_over];
        let able = held_back.iter().all(|reason| !reason.load(Ordering::Acquire));
        let others = self.metrics().membership_config.membership().voter_ids().count() > 1;
        let stands_back = inner.room.is_short() && others && self.silence() < STANDS_BACK;
        inner.raft.runtime_config().elect(able && !stands_back);
    }

    /// As long as this member runs.
    pub(crate) async fn mind_room(self) {
        let mut pause = LOOK;
        loop {
            tokio::select! {
                biased;
                () = self.0.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = LOOK;
            if !self.0.room.is_short() {
                continue;
            }
            self.adjust_electing();
            if self.is_leading() && self.is_room_elsewhere() {
                match self.transfer_leader(self.0.timings.election_max).await {
                    Ok(leader) => tracing::info!(leader, "made way for a master with room on its disk"),
                    Err(error) => tracing::info!(%error, "couldn't make way for a master with room"),
                }
                pause = MAKES_WAY_EVERY;
            }
        }
    }
}
