//! When a member stands for election: not while it is short of room on its disk and another may win, nor on waking.
//!
//! openraft elects once its timer has run out, which it has when a process wakes that was stopped: before it takes in what its leader has sent
//! meanwhile. That costs the group a leader that is well. So openraft may elect only after a silence through which this process ran.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use tokio::time::Instant;

use crate::node::RaftNode;
use crate::snapshot::lock;

/// A member that is short of room stands for election only after so long a silence: several elections in which another could have won.
const STANDS_BACK: Duration = Duration::from_secs(3);
/// How often a leader that is short of room looks whether it can make way.
const LOOK: Duration = Duration::from_millis(250);
/// Looks at the silence in one heartbeat's time.
const LOOKS_PER_HEARTBEAT: u32 = 3;
/// The share of the shortest election timeout that must have been heard to be silent: less than the whole, for it delays no election.
const HEARD_SHARE: f64 = 0.6;
/// After an attempt, the next one comes so much later: each may cost as much as an election.
const MAKES_WAY_EVERY: Duration = Duration::from_secs(5);

/// A follower that lacks no more entries than that has them all in a moment.
const ENTRIES_BEHIND: u64 = 1_000;

/// What is known of it.
#[derive(Default)]
pub(crate) struct Room {
    short: AtomicBool,
    /// What followers said with their latest acknowledgement, and when.
    told: Mutex<BTreeMap<u64, (bool, BootTime)>>,
    /// The silence has lasted long enough, as far as this process has run through it.
    silent: AtomicBool,
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

/// How long nothing was heard, counting only time in which this process ran.
#[derive(Debug, Default)]
struct Silence {
    heard: Option<BootTime>,
    lasted: Duration,
}

impl Silence {
    /// A look, so long after the one before, where `pause` was meant. A process that was stopped counts no more than two of these.
    fn look(&mut self, heard: BootTime, passed: Duration, pause: Duration) -> Duration {
        if self.heard != Some(heard) {
            *self = Self { heard: Some(heard), lasted: Duration::ZERO };
        } else {
            self.lasted += passed.min(pause * 2);
        }
        self.lasted
    }
}

impl RaftNode {
    /// Says whether this member is short of room on its disk. One that is makes way as leader where another has room, and stands for
    /// election only when no other does.
    pub fn set_short_of_room(&self, short: bool) {
        self.0.room.short.store(short, Ordering::Release);
        self.adjust_electing();
    }

    /// As the leader: whether another voter that answers has room, and nearly all entries, so that it may lead instead.
    pub fn is_room_elsewhere(&self) -> bool {
        let m = self.metrics();
        let nearly = |id: u64| {
            let matched = m.replication.as_ref().and_then(|r| r.get(&id).copied().flatten());
            matched.is_some_and(|matched| Some(matched.index + ENTRIES_BEHIND) >= m.last_log_index)
        };
        let mut voters = m.membership_config.membership().voter_ids();
        voters.any(|id| id != self.0.id && self.room_of(id) == Some(false) && nearly(id))
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
        inner.raft.runtime_config().elect(able && !stands_back && inner.room.silent.load(Ordering::Acquire));
    }

    /// Listens for silence, as long as this member runs.
    pub(crate) async fn mind_silence(self) {
        let pause = self.0.timings.heartbeat / LOOKS_PER_HEARTBEAT;
        let enough = self.0.timings.election_min.mul_f64(HEARD_SHARE);
        let (mut silence, mut before) = (Silence::default(), self.0.clock.boot());
        loop {
            tokio::select! {
                biased;
                () = self.0.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let now = self.0.clock.boot();
            let lasted = silence.look(*lock(&self.0.heard), now.since(before), pause);
            before = now;
            self.0.room.silent.store(lasted >= enough, Ordering::Release);
            self.adjust_electing();
        }
    }

    /// Makes way where that is better, as long as this member runs.
    pub(crate) async fn mind_room(self) {
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = self.0.shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            if Instant::now() < next || !self.0.room.is_short() {
                continue;
            }
            if self.is_leading() && self.is_room_elsewhere() {
                match self.transfer_leader(self.0.timings.election_max).await {
                    Ok(leader) => tracing::info!(leader, "made way for a master with room on its disk"),
                    Err(error) => tracing::info!(%error, "couldn't make way for a master with room"),
                }
                next = Instant::now() + MAKES_WAY_EVERY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the campaign of faults: a follower that had hung deposed its leader on waking, and everything waited for a second.
    #[test]
    fn a_process_that_was_stopped_has_not_heard_the_silence() {
        let ms = Duration::from_millis;
        let at = |n| BootTime(ms(n));
        let mut silence = Silence::default();
        silence.look(at(0), ms(50), ms(50));
        assert_eq!(silence.look(at(0), ms(9_000), ms(50)), ms(100));
        assert_eq!(silence.look(at(0), ms(50), ms(50)), ms(150));
        assert_eq!(silence.look(at(9_100), ms(50), ms(50)), ms(0));
        assert_eq!(silence.look(at(9_100), ms(60), ms(50)), ms(60));
    }
}
