//! What is well-formed and what was found, cut off everywhere, with flipped bits and other mutations, through every target.

use std::path::{Path, PathBuf};

use mooseng_fuzz::{TARGETS, Target};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Mutations of each input.
const MUTATIONS: usize = 60;
/// Places at which the inputs of a target are cut off, all inputs together: every one unless there are more.
const CUTS_MAX: usize = 1_000;
/// Bits of them that are flipped, one at a time.
const FLIPS_MAX: usize = 400;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// What was found by `scripts/fuzz`, or is worth keeping. Each target has some: a directory that is missing would pass for one in which nothing is wrong.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let dir = corpora().join(target.name);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{} can't be read: {e}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a name in the corpus").path()).collect();
    assert!(!paths.is_empty(), "{} holds nothing", dir.display());
    paths.sort();
    let read = |path: &PathBuf| {
        std::fs::read(path).unwrap_or_else(|e| panic!("{} can't be read: {e}", path.display()))
    };
    paths.iter().map(read).collect()
}

/// Places in the inputs, so many to a byte: all, or evenly spread ones where there are more than `most`.
fn places(inputs: &[Vec<u8>], to_a_byte: usize, most: usize) -> impl Iterator<Item = (&[u8], usize)> {
    let all = inputs.iter().map(|input| input.len() * to_a_byte).sum::<usize>();
    // An odd step doesn't come to the same bit of every byte.
    let step = all.div_ceil(most).max(1) | 1;
    inputs
        .iter()
        .flat_map(move |input| (0..input.len() * to_a_byte).map(move |place| (input.as_slice(), place)))
        .step_by(step)
}

fn mutated(input: &[u8], others: &[Vec<u8>], rng: &mut SmallRng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < bytes.len() => {
                bytes[at] = *[0, 1, 0x7f, 0x80, 0xff].get(rng.random_range(0..5)).unwrap_or(&0)
            }
            2 => bytes.truncate(at),
            3 => bytes.insert(at, rng.random()),
            4 if at < bytes.len() => drop(bytes.remove(at)),
            _ => {
                let other = &others[rng.random_range(0..others.len())];
                let from = rng.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    let mut inputs = (target.seeds)();
    assert!(!inputs.is_empty(), "{name} has nothing to begin with");
    inputs.extend(corpus(target));
    for (input, at) in places(&inputs, 1, CUTS_MAX) {
        (target.run)(&input[..at]);
    }
    for (input, bit) in places(&inputs, 8, FLIPS_MAX) {
        let mut bytes = input.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        (target.run)(&bytes);
    }
    let mut rng = SmallRng::seed_from_u64(1);
    for input in &inputs {
        (target.run)(input);
        for _ in 0..MUTATIONS {
            (target.run)(&mutated(input, &inputs, &mut rng));
        }
    }
}

macro_rules! replayed {
    ($($name:ident)*) => {
        $(#[test] fn $name() { replay(stringify!($name)); })*
        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|target| target.name), replayed);
        }
    };
}

replayed! {
    frames batch log chunk dump records ticket texts requests acls
    join revocations wan lineage entries position journal events state identity
}

#[test]
fn the_script_searches_every_target() {
    let script = include_str!("../../scripts/fuzz");
    let list = script.lines().find_map(|line| line.strip_prefix("all=(")?.strip_suffix(')'));
    let named: Vec<_> = list.expect("a line with all targets").split_whitespace().collect();
    assert_eq!(named, TARGETS.map(|target| target.name));
}

#[test]
fn the_corpus_is_of_targets_only() {
    for entry in std::fs::read_dir(corpora()).expect("the corpus") {
        let name = entry.expect("a name in the corpus").file_name();
        assert!(TARGETS.iter().any(|target| name == target.name), "{name:?} isn't a target");
    }
}

/// `scripts/fuzz` begins with them: writes the seeds of each target below the directory that FUZZ_SEEDS names.
#[test]
#[ignore = "not a test: writes files for scripts/fuzz"]
fn seeds_are_written() {
    let below = PathBuf::from(std::env::var_os("FUZZ_SEEDS").expect("FUZZ_SEEDS names a directory"));
    for target in &TARGETS {
        let dir = below.join(target.name);
        std::fs::create_dir_all(&dir).expect("a directory for seeds");
        for (n, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{n:03}")), seed).expect("a seed is written");
        }
    }
}
