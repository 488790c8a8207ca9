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
    let (_, below, _) = grown.last()?;
    let is_longest = before.is_none_or(|before| after.longest_us > before.longest_us);
    let max_us = if is_longest { after.longest_us } else { after.longest_us.min(below.saturating_sub(1)) };
    let percentile = |percent| percentile(&grown, percent).min(max_us);
    Some(Spread { p50_us: percentile(50), p99_us: percentile(99), max_us })
}

/// The time than which so many percent, rounded up, took no longer. Of buckets in their order: where each begins, where the next does, how many are in it.
fn percentile(buckets: &[(u64, u64, u64)], percent: u64) -> u64 {
    let total: u64 = buckets.iter().map(|(.., count)| count).sum();
    let rank = total.saturating_mul(percent).div_ceil(100).max(1);
    let mut shorter = 0;
    for (from, below, count) in buckets {
        if shorter + count >= rank {
            let width = below.saturating_sub(from + 1);
            let part = width as f64 * ((rank - shorter) as f64 / *count as f64);
            return from.saturating_add(part as u64);
        }
        shorter += count;
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
