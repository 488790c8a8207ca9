//! How long operations took, as counts of buckets: four for each doubling, from a microsecond to an hour, whatever there is to count.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of one doubling: a bucket is at most a quarter wider than where it begins.
const PARTS: u64 = 4;
const PARTS_BITS: u32 = PARTS.trailing_zeros();
/// The last doubling that is told apart begins at 2^31 microseconds, some 36 minutes.
const BITS: u32 = 32;
const BUCKETS: usize = ((BITS - PARTS_BITS + 1) as usize) * PARTS as usize;

/// The bucket of so many microseconds. The first four are one wide.
fn bucket_of(us: u64) -> usize {
    if us < PARTS {
        return us as usize;
    }
    let doubling = us.ilog2();
    let part = (us >> (doubling - PARTS_BITS)) & (PARTS - 1);
    let at = u64::from(doubling - PARTS_BITS + 1) * PARTS + part;
    (at as usize).min(BUCKETS - 1)
}

/// Where a bucket begins.
fn begin_of(bucket: usize) -> u64 {
    let (doubling, part) = (bucket as u64 / PARTS, bucket as u64 % PARTS);
    if doubling == 0 { part } else { (PARTS + part) << (doubling - 1) }
}

/// The operations whose time lay between two bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// They took so many microseconds at least,
    pub from_us: u64,
    /// and less than so many.
    pub below_us: u64,
    /// How many they are.
    pub count: u64,
}

/// How long the operations of one kind took, since the mount was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// The longest took so many microseconds.
    pub longest_us: u64,
    /// Buckets in which there are any, the shortest first.
    pub buckets: Vec<Bucket>,
}

impl Spread {
    /// How many operations that are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.count).sum()
    }
}

/// The counts of one kind of operation.
#[derive(Debug)]
pub(crate) struct Latencies {
    counts: [AtomicU64; BUCKETS],
    longest_us: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), longest_us: AtomicU64::new(0) }
    }
}

impl Latencies {
    /// One took so long.
    pub fn took(&self, us: u64) {
        // Hardly ever one is the longest: the line isn't written for the others.
        if us > self.longest_us.load(Ordering::Relaxed) {
            self.longest_us.fetch_max(us, Ordering::Relaxed);
        }
        // Last, so that whoever finds it counted finds how long it took.
        self.counts[bucket_of(us)].fetch_add(1, Ordering::Release);
    }

    /// The counts as they are.
    pub fn spread(&self) -> Spread {
        let counted = self.counts.iter().enumerate().map(|(at, count)| (at, count.load(Ordering::Acquire)));
        let buckets = counted.filter(|(_, count)| *count > 0).map(|(at, count)| {
            // Whatever takes longer is in the last one.
            let below_us = if at + 1 == BUCKETS { u64::MAX } else { begin_of(at + 1) };
            Bucket { from_us: begin_of(at), below_us, count }
        });
        let buckets = buckets.collect();
        Spread { longest_us: self.longest_us.load(Ordering::Relaxed), buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_one_bucket_that_is_a_quarter_wide_at_most() {
        for at in 0..BUCKETS - 1 {
            let (from, below) = (begin_of(at), begin_of(at + 1));
            assert!(from < below && (below - from) * PARTS <= from.max(PARTS), "{at}: {from} to {below}");
            assert_eq!((bucket_of(from), bucket_of(below - 1)), (at, at));
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert!(begin_of(BUCKETS - 1) > 3_600_000_000, "{}", begin_of(BUCKETS - 1));
    }

    #[test]
    fn the_counts_say_how_many_took_how_long() {
        let latencies = Latencies::default();
        assert_eq!(latencies.spread(), Spread::default());
        for us in [0, 100, 110, 100, u64::MAX, 5_000_000] {
            latencies.took(us);
        }
        let spread = latencies.spread();
        assert_eq!((spread.count(), spread.longest_us), (6, u64::MAX));
        let counts: Vec<u64> = spread.buckets.iter().map(|bucket| bucket.count).collect();
        assert_eq!(counts, [1, 3, 1, 1]);
        assert_eq!(spread.buckets[1], Bucket { from_us: 96, below_us: 112, count: 3 });
        assert!(spread.buckets[2].from_us <= 5_000_000 && spread.buckets[2].below_us > 5_000_000);
        assert_eq!(spread.buckets[3].below_us, u64::MAX);
    }
}
