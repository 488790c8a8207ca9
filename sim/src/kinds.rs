//! Which seeds have what came to the simulation later than the rest, and what draws it.
//!
//! What is added changes what else is drawn, and with it which planted bug a seed finds. So it is in a share of the seeds, none of which `docs/simulation.md` had
//! as the one that found a bug last when it was added; the others ran on as they did, to the byte. Each kind is drawn by a generator of its own.

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

/// For how long a leader keeps entries back, in milliseconds, from followers whose answer no commit needs. Flushes and messages take their time here.
pub fn defer_ms(seed: u64) -> u64 {
    if matches!(seed % 23, 3 | 6 | 8 | 11 | 13 | 18 | 20 | 22) { 40 } else { 0 }
}

/// Whether clients lock a file, too, that is mostly one client's, so that this one gives the locks by itself (docs/decisions/0048-locks-alone.md).
pub fn locks_alone(seed: u64) -> bool {
    matches!(seed % 19, 3 | 8 | 10 | 14 | 17)
}

/// What draws one kind of choices in a seed: others aren't shifted by it.
pub fn draws(seed: u64, label: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ label)
}
