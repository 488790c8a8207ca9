//! Tests of the choice.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn used(chunk: u64, inode: u64, length: u64, live: u64, sealed_for_s: u64) -> Used {
    Used {
        chunk: ChunkId(chunk),
        inode: InodeId(inode),
        storage_class: 0,
        length,
        live,
        extents: live.div_ceil(4096),
        users: 1,
        sealed_for: Duration::from_secs(sealed_for_s),
    }
}

fn choice(all: &[Used], limits: &Limits) -> Choice {
    let mut gathering = Gathering::after(all.iter().map(|used| (used.chunk, used.live)).collect());
    all.iter().for_each(|used| gathering.see(*used, limits));
    gathering.finish(limits).0
}

fn chosen(all: &[Used], limits: &Limits) -> Vec<u64> {
    let group = choice(all, limits).next(0, &BTreeSet::new(), &Suspects::default(), limits);
    group.map_or_else(Vec::new, |group| group.victims.iter().map(|used| used.chunk.0).collect())
}

#[test]
fn the_sparsest_and_oldest_come_first_and_fill_one_chunk() {
    let limits = Limits::default();
    let full = used(1, 1, 64 * MIB, 64 * MIB, 100);
    let half = used(2, 1, 64 * MIB, 31 * MIB, 100);
    let sparse = used(3, 1, 64 * MIB, 5 * MIB, 100);
    let young = used(4, 1, 64 * MIB, 5 * MIB, 3);
    assert_eq!(chosen(&[full, half, sparse, young], &limits), [3, 2]);
    let older = used(5, 2, 64 * MIB, 5 * MIB, 1_000);
    assert_eq!(chosen(&[half, sparse, older], &limits), [5, 3, 2]);
    // A chunk of the same file before a better one of another.
    let same = used(6, 2, 64 * MIB, 30 * MIB, 100);
    assert_eq!(chosen(&[half, sparse, older, same], &limits), [5, 6, 3]);
}

#[test]
fn what_is_over_the_half_is_rewritten_only_under_pressure() {
    let limits = Limits::default();
    let most = used(1, 1, 64 * MIB, 40 * MIB, 100);
    let full = |n| used(n, 1, 64 * MIB, 64 * MIB, 100);
    assert_eq!(chosen(&[most], &limits), [1]);
    assert!(chosen(&[most, full(2), full(3)], &limits).is_empty());
}

#[test]
fn little_gain_waits_unless_it_is_the_same_everywhere() {
    let limits = Limits::default();
    let tiny = |n| used(n, n, 8192, 100, 100);
    assert!(chosen(&[tiny(1), tiny(2)], &limits).is_empty());
    let many: Vec<Used> = (0..100).map(tiny).collect();
    assert_eq!(chosen(&many, &limits).len(), limits.victims_max);
}

#[test]
fn what_is_under_way_is_bounded_and_left_alone() {
    let limits = Limits { at_once: 1, ..Limits::default() };
    let mut choice = choice(&[used(1, 1, 64 * MIB, MIB, 100), used(2, 1, 64 * MIB, MIB, 100)], &limits);
    assert_eq!(choice.next(1, &BTreeSet::new(), &Suspects::default(), &limits), None);
    let group = choice.next(0, &BTreeSet::from([ChunkId(1)]), &Suspects::default(), &limits).unwrap();
    assert_eq!(group.victims.len(), 1);
    assert_eq!((choice.len(), group.gain(), group.live()), (1, 63 * MIB, MIB));
}

#[test]
fn what_is_being_overwritten_is_left_alone_until_hardly_anything_is_left() {
    let limits = Limits::default();
    let scan = |before: Seen, live: u64| {
        let mut gathering = Gathering::after(before);
        gathering.see(used(1, 1, 64 * MIB, live, 100), &limits);
        let (choice, seen) = gathering.finish(&limits);
        (choice.len(), seen)
    };
    let (chosen, seen) = scan(Seen::new(), 30 * MIB);
    assert_eq!(chosen, 0, "it isn't known yet");
    let (chosen, seen) = scan(seen, 20 * MIB);
    assert_eq!(chosen, 0, "it shrinks");
    let (chosen, seen) = scan(seen, 20 * MIB);
    assert_eq!((chosen, seen.len()), (1, 1), "it doesn't any more");
    assert_eq!(scan(seen, 6 * MIB).0, 1, "it shrinks, and is nearly gone");
}

#[test]
fn one_that_fails_is_alone_in_the_end_and_the_others_are_done() {
    let limits = Limits::default();
    let mut left: Vec<Used> = (0..9).map(|n| used(n, n, 8 * MIB, 100_000, 100)).collect();
    let mut suspects = Suspects::default();
    let mut failures = vec![];
    while failures.last() != Some(&1) {
        // As one scan after the other.
        let group = choice(&left, &limits).next(0, &BTreeSet::new(), &suspects, &limits).unwrap();
        if group.victims.iter().any(|used| used.chunk == ChunkId(4)) {
            failures.push(group.victims.len());
            assert_eq!(suspects.failed(&group), group.victims.len() > 1);
        } else {
            suspects.done(&group);
            left.retain(|used| group.victims.iter().all(|victim| victim.chunk != used.chunk));
        }
    }
    assert_eq!(failures, [9, 4, 2, 1]);
    let alone = choice(&left, &limits).next(0, &BTreeSet::from([ChunkId(4)]), &suspects, &limits);
    assert!(alone.is_none_or(|group| group.victims.iter().all(|used| used.chunk != ChunkId(4))));
    assert!(left.len() < 6, "{} are left", left.len());
}

#[test]
fn storage_classes_stay_apart() {
    let limits = Limits::default();
    let other = Used { storage_class: 1, ..used(2, 1, 64 * MIB, MIB, 100) };
    assert_eq!(chosen(&[used(1, 1, 64 * MIB, 2 * MIB, 100), other], &limits), [2]);
}

fn small(chunk: u64, users: u64, length: u64, sealed_for_s: u64) -> Used {
    Used { users, ..used(chunk, chunk, length, length, sealed_for_s) }
}

#[test]
fn small_chunks_are_merged_once_they_are_old_and_it_pays() {
    let limits = Limits::default();
    let packs = |n: u64| (0..n).map(|i| small(i, 200, 2 * MIB, 600)).collect::<Vec<_>>();
    assert_eq!(chosen(&packs(7), &limits), [0; 0], "too few");
    assert_eq!(chosen(&packs(8), &limits), (0..8).collect::<Vec<_>>());
    assert_eq!(chosen(&packs(40), &limits).len(), 20, "4,000 files are about what one may have");
    let mut young = packs(8);
    young[3].sealed_for = Duration::from_secs(599);
    assert_eq!(chosen(&young, &limits), [0; 0]);
    let mut others = packs(8);
    others[3].storage_class = 1;
    assert_eq!(chosen(&others, &limits), [0; 0]);
    // A single file's are smaller, or left alone; and tiny ones are merged when there are as many as one group takes.
    let singles = |n: u64, length: u64| (0..n).map(|i| small(i, 1, length, 600)).collect::<Vec<_>>();
    assert_eq!(chosen(&singles(63, 100_000), &limits), [0; 0]);
    assert_eq!(chosen(&singles(70, 100_000), &limits).len(), 64);
    assert_eq!(chosen(&singles(12, 1_000_000), &limits).len(), 12);
    assert_eq!(chosen(&singles(70, 2 * MIB), &limits), [0; 0]);
    // What is sparse comes first.
    let mut all = packs(8);
    all.push(used(99, 99, 64 * MIB, MIB, 600));
    let mut choice = choice(&all, &limits);
    let mut next = || choice.next(0, &BTreeSet::new(), &Suspects::default(), &limits).unwrap();
    let group = next();
    assert_eq!((group.victims[0].chunk, group.merges), (ChunkId(99), false));
    assert!(next().merges);
}

#[test]
fn a_small_chunk_that_can_not_be_read_keeps_no_others_from_being_merged() {
    let limits = Limits::default();
    let mut left: Vec<Used> = (0..64).map(|n| small(n, 100, MIB, 600)).collect();
    let mut suspects = Suspects::default();
    let mut failed = 0;
    while let Some(group) = choice(&left, &limits).next(0, &BTreeSet::new(), &suspects, &limits) {
        if group.victims.iter().any(|used| used.chunk == ChunkId(4)) {
            suspects.failed(&group);
            failed += 1;
        } else {
            suspects.done(&group);
            left.retain(|used| group.victims.iter().all(|victim| victim.chunk != used.chunk));
        }
        assert!(failed < 10, "it goes on and on");
    }
    assert!(left.len() < 20, "{} are left", left.len());
}

fn any_used(n: u64) -> impl Strategy<Value = Used> {
    (1..5_u64, 0..2_u32, 1..CHUNK_BYTES_MAX, 0..=100_u64, 0..1_000_u64).prop_map(
        move |(inode, storage_class, length, percent, age)| Used {
            storage_class,
            ..used(n, inode, length, (length * percent / 100).max(1), age)
        },
    )
}

fn many() -> impl Strategy<Value = Vec<Used>> {
    (1..60_u64).prop_flat_map(|n| (0..n).map(any_used).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn groups_keep_to_their_bounds(all in many(), busy in prop::collection::btree_set(0..60_u64, 0..10)) {
        let limits = Limits { victims_max: 7, extents_max: 20_000, ..Limits::default() };
        let busy: BTreeSet<ChunkId> = busy.into_iter().map(ChunkId).collect();
        let mut choice = choice(&all, &limits);
        let mut seen = BTreeSet::new();
        while let Some(group) = choice.next(0, &busy, &Suspects::default(), &limits) {
            prop_assert!(!group.victims.is_empty() && group.victims.len() <= 7);
            prop_assert!(group.live() <= limits.bytes_max);
            prop_assert!(group.victims.iter().map(|u| u.extents).sum::<u64>() <= limits.extents_max);
            for victim in &group.victims {
                prop_assert!(seen.insert(victim.chunk), "a chunk was chosen twice");
                prop_assert!(!busy.contains(&victim.chunk));
                prop_assert_eq!(victim.storage_class, group.storage_class);
                prop_assert!(victim.is_below(limits.pressed_percent) && victim.sealed_for >= limits.quiet);
            }
        }
    }

    /// Carried out until nothing is left to do, it comes to an end, and the region holds little more than what is live.
    #[test]
    fn rewriting_comes_to_an_end_and_is_worth_it(all in many()) {
        let limits = Limits::default();
        let mut chunks: Vec<Used> = all.into_iter().map(|u| Used { sealed_for: limits.quiet, ..u }).collect();
        let mut next = 1_000;
        let mut rounds = 0;
        while let Some(group) = choice(&chunks, &limits).next(0, &BTreeSet::new(), &Suspects::default(), &limits) {
            let live = group.live();
            chunks.retain(|u| !group.victims.iter().any(|v| v.chunk == u.chunk));
            let made = used(next, group.victims[0].inode.0, live, live, 10);
            chunks.push(Used { storage_class: group.storage_class, ..made });
            next += 1;
            rounds += 1;
            prop_assert!(rounds < 200, "it goes on and on");
        }
        let (bytes, live): (u64, u64) =
            chunks.iter().fold((0, 0), |(bytes, live), u| (bytes + u.length, live + u.live));
        prop_assert!(bytes <= live / 3 * 4 + 2 * limits.gain_min + 4, "{bytes} for {live}");
    }

    /// Until nothing is left to merge, no byte is moved often, and few small chunks are left.
    #[test]
    fn merging_comes_to_an_end_and_is_cheap(all in prop::collection::vec((1..400_u64, 1..2 * MIB), 1..300)) {
        let limits = Limits::default();
        let mut chunks: Vec<Used> = (0..).zip(all).map(|(n, (users, length))| small(n, users, length, 600)).collect();
        let total: u64 = chunks.iter().map(|u| u.live).sum();
        let (mut next, mut moved) = (1_000, 0);
        while let Some(group) = choice(&chunks, &limits).next(0, &BTreeSet::new(), &Suspects::default(), &limits) {
            let (bytes, users) = (group.live(), group.victims.iter().map(|u| u.users).sum::<u64>());
            prop_assert!(group.merges && group.victims.len() >= 8 && bytes <= limits.bytes_max && users <= limits.users_max);
            chunks.retain(|u| !group.victims.iter().any(|v| v.chunk == u.chunk));
            chunks.push(small(next, users, bytes, 600));
            next += 1;
            moved += bytes;
        }
        prop_assert!(moved <= 3 * total, "{moved} bytes were moved for {total}");
        let small = chunks.iter().filter(|u| u.is_small(&limits)).count();
        prop_assert!(small < limits.victims_max, "{small} small chunks are left");
    }
}
