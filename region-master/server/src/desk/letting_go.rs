//! Volumes that this region lets go of, and deletions that chunkservers may still carry out when it is to have one again.

use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_region::Liveness;
use mooseng_wire::{ChunkId, VolumeId};

use super::Desk;

/// A chunkserver takes an answer within two seconds of its heartbeat, and begins what that tells it within another one, or never (`ANSWER_WITHIN` and `OBEY_WITHIN` in its
/// `heartbeat.rs`). A heartbeat that is made after that tells of every deletion that was begun, and is on its way for two seconds at most.
const OBEYED_WITHIN: Duration = Duration::from_secs(5);

impl Desk {
    /// This region lets go of a volume, by this master, in that custody epoch.
    pub fn let_go(&mut self, volume: VolumeId, custody: u64) {
        self.letting_go.insert(volume, custody);
    }

    /// The custody epoch in which this region lets go of a volume, if it does.
    pub fn letting_go_of(&self, volume: VolumeId) -> Option<u64> {
        self.letting_go.get(&volume).copied()
    }

    /// A volume is in that epoch: chunkservers obey no earlier one.
    pub fn raise_deletions(&mut self, volume: VolumeId, epoch: u64) {
        for (chunk, deletion) in self.deletions.values_mut().flatten() {
            if chunk.volume() == volume {
                deletion.epoch = deletion.epoch.max(epoch);
            }
        }
    }

    /// Whether all copies of a chunk that chunkservers report are to be deleted, and there are some.
    pub fn is_going(&self, chunk: ChunkId) -> bool {
        let mut holders = self.registry.iter().filter(|server| server.copy(chunk).is_some()).peekable();
        holders.peek().is_some() && holders.all(|server| self.is_deleting(&server.beat.name, chunk))
    }

    /// Whether a chunkserver may still delete copies of a volume's chunks by what it was told before this region became to the volume what it is: until it was heard of
    /// so late that it has begun it or never will. One that doesn't report has no chunks placed on it. What was told in a custody epoch before that in which it gives orders
    /// now isn't waited for: whatever has a chunkserver take a chunk comes in this one, and so does what a copy that lies there is taken up by; it fences what came in
    /// earlier ones.
    pub fn is_obeying(&mut self, volume: VolumeId, now: BootTime, custody: u64) -> bool {
        let Some(told) = self.obeying.get_mut(&volume) else { return false };
        let (registry, limits) = (&self.registry, self.registry.limits());
        told.retain(|name, (told, in_custody)| {
            let server = registry.get(name);
            let until = told.after(OBEYED_WITHIN);
            *in_custody >= custody
                && server.is_some_and(|s| s.last_beat <= until && s.liveness(now, limits) == Liveness::Alive)
        });
        if told.is_empty() {
            self.obeying.remove(&volume);
        }
        self.obeying.contains_key(&volume)
    }
}

#[cfg(test)]
mod tests {
    use mooseng_region::class::Class;
    use mooseng_region::sessions;
    use mooseng_wire::admin::{HeartbeatRequest, chunkserver_command};

    use super::*;
    use crate::geo::ROOT_VOLUME;

    /// A volume that this region was letting go of, and is to have again.
    #[test]
    fn what_was_told_before_is_waited_for_and_what_was_not_isnt_told_any_more() {
        let mut desk = Desk::new(sessions::Limits::default(), Class::by_default(1, 1));
        let at = |s| BootTime(Duration::from_secs(s));
        let beat = |name: &str| HeartbeatRequest { chunkserver: name.into(), ..HeartbeatRequest::default() };
        desk.let_go(ROOT_VOLUME, 7);
        assert_eq!(desk.served().collect::<Vec<_>>(), [7], "it commands, though it serves nothing");
        for name in ["a", "b"] {
            desk.beat(at(0), beat(name)).unwrap();
            desk.want_deletion(name, ChunkId(1), 1);
        }
        assert!(!desk.is_going(ChunkId(1)), "nobody has said that it has it");
        desk.raise_deletions(ROOT_VOLUME, 3);
        let told = desk.take_commands("a", at(0), 7);
        let Some(chunkserver_command::Command::Delete(delete)) = &told[0].command else { panic!("{told:?}") };
        assert_eq!(delete.epoch, 3);
        desk.unseat(ROOT_VOLUME);
        assert!(desk.take_commands("b", at(1), 7).is_empty() && desk.served().next().is_none());
        assert!(desk.is_obeying(ROOT_VOLUME, at(1), 7), "its answer may be on the way");
        assert!(!desk.is_obeying(VolumeId(1), at(1), 7));
        // Found by review: what waits behind other orders may be carried out behind later heartbeats, too.
        for second in 1..=5 {
            desk.beat(at(second), beat("a")).unwrap();
            assert!(desk.is_obeying(ROOT_VOLUME, at(second), 7), "after {second} s it may be about to begin");
        }
        desk.beat(at(6), beat("a")).unwrap();
        assert!(!desk.is_obeying(ROOT_VOLUME, at(6), 7), "it has begun it, and said so, or never will");
    }

    /// A planned move of the home waited for five seconds where house-keeping had just had copies deleted.
    #[test]
    fn what_was_told_in_an_earlier_custody_epoch_is_fenced_and_not_waited_for() {
        let mut desk = Desk::new(sessions::Limits::default(), Class::by_default(1, 1));
        let now = BootTime(Duration::from_secs(1));
        desk.beat(now, HeartbeatRequest { chunkserver: "a".into(), ..HeartbeatRequest::default() }).unwrap();
        desk.want_deletion("a", ChunkId(1), 1);
        assert_eq!(desk.take_commands("a", now, 7).len(), 1);
        desk.unseat(ROOT_VOLUME);
        assert!(desk.is_obeying(ROOT_VOLUME, now, 7));
        assert!(!desk.is_obeying(ROOT_VOLUME, now, 8));
    }
}
