//! How long operations took between two looks, from how much the counts of buckets have grown.
//!
//! A mount counts operations by how long they took, in buckets that are a quarter as wide as where they begin at most. A percentile is found in its bucket as if those
//! in it were spread evenly, so that it is off by less than the bucket is wide.

use std::collections::BTreeMap;

use crate::live::Latency;

/// How long the operations of an interval took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Half of them took no longer, in microseconds.
    pub p50_us: u64,
    /// All but a hundredth of them took no longer.
    pub p99_us: u64,
    /// None took longer. Exact where one took longer than any since the mount was made, else the end of the longest's bucket.
    pub max_us: u64,
}

/// What was counted between two looks; none if that is nothing.
pub fn between(before: Option<&Latency>, after: &Latency) -> Option<Spread> {
    let counted = before.into_iter().flat_map(|before| &before.buckets);
    let counted: BTreeMap<u64, u64> = counted.map(|(from, _, count)| (*from, *count)).collect();
    let grown = after.buckets.iter().map(|(from, below, count)| {
        (*from, *below, count.saturating_sub(counted.get(from).copied().unwrap_or(0)))
    });
    let grown: Vec<(u64, u64, u64)> = grown.filter(|(.., count)| *count > 0).collect();
    let (from, below, _) = grown.last()?;
    // The longest since the mount was made: where it isn't of this bucket it is of a time before.
    let last = if *below == u64::MAX { u64::MAX } else { below.saturating_sub(1) };
    let max_us = after.longest_us.clamp(*from, last.max(*from));
    let percentile = |percent| percentile(&grown, percent).min(max_us);
    Some(Spread { p50_us: percentile(50), p99_us: percentile(99), max_us })
}

/// The time than which so many percent, rounded up, took no longer. Of buckets in their order: where each begins, where the next does, how many are in it.
fn percentile(buckets: &[(u64, u64, u64)], percent: u64) -> u64 {
    let total = buckets.iter().fold(0_u64, |sum, (.., count)| sum.saturating_add(*count));
    let rank = total.saturating_mul(percent).div_ceil(100).max(1);
    let mut shorter = 0_u64;
    for (from, below, count) in buckets {
        let reach = shorter.saturating_add(*count);
        if reach >= rank {
            let width = below.saturating_sub(from.saturating_add(1));
            let part = width as f64 * ((rank - shorter) as f64 / *count as f64);
            return from.saturating_add(part as u64);
        }
        shorter = reach;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(longest_us: u64, buckets: &[(u64, u64, u64)]) -> Latency {
        Latency { longest_us, buckets: buckets.to_vec() }
    }

    #[test]
    fn percentiles_lie_in_the_bucket_of_the_one_that_they_name() {
        let all = latency(9_000, &[(96, 112, 98), (1_024, 1_280, 1), (8_192, 10_240, 1)]);
        let spread = between(None, &all).unwrap();
        assert_eq!(spread, Spread { p50_us: 103, p99_us: 1_279, max_us: 9_000 });
        let few = latency(9_000, &[(96, 112, 1), (8_192, 10_240, 1)]);
        let spread = between(None, &few).unwrap();
        assert_eq!(spread, Spread { p50_us: 111, p99_us: 9_000, max_us: 9_000 });
        let one = latency(3, &[(3, 4, 1)]);
        assert_eq!(between(None, &one), Some(Spread { p50_us: 3, p99_us: 3, max_us: 3 }));
    }

    /// What was slow before the first look isn't shown by the second.
    #[test]
    fn what_counts_is_what_was_counted_between_the_looks() {
        let before = latency(9_000_000, &[(96, 112, 1_000), (8_388_608, 10_485_760, 50)]);
        let after = latency(9_000_000, &[(96, 112, 1_010), (224, 256, 10), (8_388_608, 10_485_760, 50)]);
        let spread = between(Some(&before), &after).unwrap();
        assert_eq!(spread.p50_us, 111);
        assert!((224..256).contains(&spread.p99_us) && spread.max_us == 255, "{spread:?}");
        assert_eq!(between(Some(&after), &after), None);
        // A mount that was made anew counts from nothing.
        assert_eq!(between(Some(&after), &latency(0, &[])), None);
    }

    /// Found by review: a look that comes between a count and its time said that nothing took any time, and the next one that everything took so long.
    #[test]
    fn the_longest_lies_in_the_last_bucket_that_has_grown() {
        let untimed = latency(0, &[(448, 512, 1)]);
        let all = Spread { p50_us: 448, p99_us: 448, max_us: 448 };
        assert_eq!(between(None, &untimed), Some(all));
        let timed = latency(500, &[(96, 112, 4), (448, 512, 1)]);
        assert_eq!(between(Some(&untimed), &timed).unwrap().max_us, 111);
        // Whatever somebody tells.
        let absurd = latency(5, &[(u64::MAX, 0, u64::MAX), (3, 4, u64::MAX)]);
        assert_eq!(between(None, &absurd).unwrap().max_us, 3);
    }

    #[test]
    fn the_longest_is_known_exactly_where_it_is_the_longest_of_all() {
        let before = latency(250, &[(224, 256, 1)]);
        let longer = latency(1_100, &[(224, 256, 1), (1_024, 1_280, 1)]);
        assert_eq!(between(Some(&before), &longer).unwrap().max_us, 1_100);
        let another = latency(1_100, &[(224, 256, 1), (1_024, 1_280, 2)]);
        assert_eq!(between(Some(&longer), &another).unwrap().max_us, 1_100, "none was longer");
        let hour = latency(u64::MAX, &[(1 << 31, u64::MAX, 2)]);
        assert_eq!(between(None, &hour).unwrap().max_us, u64::MAX);
    }
}
