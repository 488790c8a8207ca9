//! A disk that a run loses: in some seeds one, of a master of a region of three, whose place a substitute takes, or of a chunkserver, which comes back with an
//! empty one. Everything that is promised lies on another disk of its region, too.
//!
//! Whether there is one, and which, is drawn by itself: seeds without it run as they do where nobody draws.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::shape::Shape;

/// One seed in so many has it; less some of those with house-keeping that takes its time, which would make copies anew for longer than a run lasts.
const ONE_IN: u32 = 5;

/// Whose disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// A master's, by its id. It never comes back.
    Master(u64),
    /// A chunkserver's, by its place among its region's.
    Chunkserver(usize),
}

/// A disk that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostDisk {
    /// When, at the earliest.
    pub at: Duration,
    /// In which region, by its place among them.
    pub region: usize,
    /// Whose it is.
    pub of: Of,
}

impl LostDisk {
    /// A seed's.
    pub fn of(seed: u64, shape: &Shape) -> Option<Self> {
        let mut rng = StdRng::seed_from_u64(seed ^ 0xd1_5c5);
        if rng.random_range(0..ONE_IN) > 0 {
            return None;
        }
        let at = Duration::from_millis(rng.random_range(8_000..25_000));
        let (master, chunkserver) = (rng.random::<bool>(), rng.random_range(0..2));
        let groups = shape.regions.iter().enumerate().filter(|(_, region)| region.masters.len() > 1);
        let groups: Vec<usize> = groups.map(|(region, _)| region).collect();
        if master && !groups.is_empty() {
            let region = groups[rng.random_range(0..groups.len())];
            let id = rng.random_range(1..=shape.regions[region].masters.len() as u64);
            return Some(Self { at, region, of: Of::Master(id) });
        }
        let region = rng.random_range(0..shape.with_data().count());
        shape.hasty.then_some(Self { at, region, of: Of::Chunkserver(chunkserver) })
    }

    /// The master whose place is to be taken by a substitute: its region, and its id.
    pub fn master(&self) -> Option<(usize, u64)> {
        match self.of {
            Of::Master(id) => Some((self.region, id)),
            Of::Chunkserver(_) => None,
        }
    }
}
