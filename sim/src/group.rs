//! What goes wrong with the masters of a region's group, besides what goes wrong with any host.

use std::time::Duration;

use rand::Rng;

use crate::machines::{Machines, Undo};

impl Machines {
    /// A master can't reach the others; clients and chunkservers still reach it.
    pub fn isolate(&mut self, sim: &mut turmoil::Sim<'_>, one: &str, group: &[String], until: Duration) {
        let both_ways = self.rng.random_range(0..4) > 0;
        for other in group {
            self.cut(sim, one, other, until, both_ways);
        }
    }

    /// The leader and one follower are cut, and the other follower restarts quickly: whoever forgets a promise over that elects a second leader.
    pub fn quick_restart(
        &mut self,
        sim: &mut turmoil::Sim<'_>,
        leader: &str,
        group: &[String],
        now: Duration,
    ) {
        let mut followers: Vec<&String> = group.iter().filter(|master| *master != leader).collect();
        if self.rng.random() {
            followers.reverse();
        }
        let [cut_off, restarts] = followers[..] else { return };
        let until = now + self.between(1500, 4000);
        self.cut(sim, leader, cut_off, until, true);
        // Again and again while the cut lasts.
        let mut at = now + self.between(300, 900);
        while at < until {
            self.later(at, Undo::Kill(restarts.clone()));
            at += self.between(400, 1200);
        }
    }

    /// All but the leader restart at once: it leads nobody for a while, and then goes on in its term with what it had in flight.
    pub fn orphan(&mut self, sim: &mut turmoil::Sim<'_>, leader: &str, group: &[String], now: Duration) {
        for follower in group.iter().filter(|master| *master != leader) {
            let until = now + self.between(20, 400);
            self.crash(sim, follower, until);
        }
    }
}
