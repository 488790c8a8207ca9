//! Which seeds have what came to the simulation later than the rest, and what draws it.
//!
//! What is added changes what else is drawn, and with it which planted bug a seed finds. So it is in a share of the seeds, none of which `docs/simulation.md` has
//! as the one that found a bug last; the others run as they did, to the byte. Each kind is drawn by a generator of its own.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Whether clients append to common files, and list the directories that they work in.
pub fn appends(seed: u64) -> bool {
    matches!(seed % 7, 3 | 6)
}

/// Whether what goes wrong in a run of one region goes wrong in those of three, too.
pub fn faults_within(seed: u64) -> bool {
    matches!(seed % 11, 3 | 7 | 8 | 10)
}

/// Whether chunkservers come up with each other's data disks.
pub fn swaps(seed: u64) -> bool {
    matches!(seed % 11, 0 | 3 | 8)
}

/// What draws one kind of choices in a seed: others aren't shifted by it.
pub fn draws(seed: u64, label: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ label)
}
