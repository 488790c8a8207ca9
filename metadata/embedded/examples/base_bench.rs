//! Measures fjall and redb as what lies below the window: batches that aren't flushed one by one, random gets, ranges.
//!
//! `cargo run --release -p mooseng-embedded --example base_bench [pairs]`

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use mooseng_embedded::{Base, BasePosition, FjallBase};
use mooseng_store::mvcc::Change;
use mooseng_store::{KeyRange, RangeLimit};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use redb::{Database, Durability, ReadableDatabase, TableDefinition};

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("pairs");
const BATCH: usize = 1000;
const GETS: usize = 200_000;
const RANGES: usize = 2_000;
const RANGE_PAIRS: usize = 100;

/// As wide as a directory entry: sixteen bytes of key after a tag, a hundred of value.
fn key(n: u64) -> Vec<u8> {
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [b"e".as_slice(), &mixed.to_be_bytes(), &n.to_be_bytes()].concat()
}

fn batches(pairs: u64) -> impl Iterator<Item = Vec<(Vec<u8>, Vec<u8>)>> {
    let mut dice = SmallRng::seed_from_u64(1);
    (0..pairs).step_by(BATCH).map(move |begin| {
        (begin..begin + BATCH as u64)
            // A quarter are changes of older keys.
            .map(|n| if n % 4 == 0 { dice.random_range(0..=n) } else { n })
            .map(|n| (key(n), vec![n as u8; 100]))
            .collect()
    })
}

struct Timer(Instant);

impl Timer {
    fn lap(&mut self, name: &str, what: &str, count: usize) {
        let seconds = self.0.elapsed().as_secs_f64();
        println!("{name:6} {what:28} {:>12.0}/s  ({seconds:.2} s)", count as f64 / seconds);
        self.0 = Instant::now();
    }
}

fn size(path: &Path) -> u64 {
    let Ok(meta) = std::fs::metadata(path) else { return 0 };
    if meta.is_file() {
        return meta.len();
    }
    std::fs::read_dir(path).map_or(0, |dir| dir.flatten().map(|entry| size(&entry.path())).sum())
}

fn fjall(directory: &Path, pairs: u64) -> anyhow::Result<()> {
    let base = FjallBase::open(directory)?;
    let mut timer = Timer(Instant::now());
    for batch in batches(pairs) {
        let changes: Vec<_> = batch.into_iter().map(|(k, v)| Change::Set(k.into(), v.into())).collect();
        base.write(&changes, &BasePosition::default())?;
    }
    timer.lap("fjall", "pairs applied, unflushed", pairs as usize);
    base.flush()?;
    timer.lap("fjall", "flush", 1);
    let mut dice = SmallRng::seed_from_u64(2);
    let mut found = 0;
    for _ in 0..GETS {
        found += usize::from(base.get(&key(dice.random_range(0..pairs)))?.is_some());
    }
    timer.lap("fjall", "random gets", GETS);
    let mut read = 0;
    for _ in 0..RANGES {
        let range = KeyRange { begin: key(dice.random()).into(), end: Bytes::from_static(b"f") };
        let limit = RangeLimit { pairs_max: RANGE_PAIRS, ..RangeLimit::default() };
        read += base.range(&range, limit)?.pairs.len();
    }
    timer.lap("fjall", "pairs of ranges of 100", read);
    println!("fjall  {found} found, {} MiB on disk", size(directory) >> 20);
    Ok(())
}

fn redb(directory: &Path, pairs: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)?;
    let database = Database::builder().set_cache_size(64 << 20).create(directory.join("base.redb"))?;
    let mut timer = Timer(Instant::now());
    for batch in batches(pairs) {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::None)?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (k, v) in &batch {
                table.insert(k.as_slice(), v.as_slice())?;
            }
        }
        transaction.commit()?;
    }
    timer.lap("redb", "pairs applied, unflushed", pairs as usize);
    database.begin_write()?.commit()?;
    timer.lap("redb", "flush", 1);
    let mut dice = SmallRng::seed_from_u64(2);
    let mut found = 0;
    for _ in 0..GETS {
        let table = database.begin_read()?.open_table(TABLE)?;
        let value = table.get(key(dice.random_range(0..pairs)).as_slice())?;
        found += usize::from(value.map(|value| Bytes::copy_from_slice(value.value())).is_some());
    }
    timer.lap("redb", "random gets", GETS);
    let mut read = 0;
    for _ in 0..RANGES {
        let table = database.begin_read()?.open_table(TABLE)?;
        let begin = key(dice.random());
        for pair in table.range(begin.as_slice()..b"f".as_slice())?.take(RANGE_PAIRS) {
            let (k, v) = pair?;
            let copy = (Bytes::copy_from_slice(k.value()), Bytes::copy_from_slice(v.value()));
            read += usize::from(!copy.0.is_empty());
        }
    }
    timer.lap("redb", "pairs of ranges of 100", read);
    println!("redb   {found} found, {} MiB on disk", size(directory) >> 20);
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let pairs = std::env::args().nth(1).map_or(Ok(1_000_000), |count| count.parse())?;
    let directory = tempfile::tempdir()?;
    println!("{pairs} pairs of 117 bytes, batches of {BATCH}, a quarter overwrites");
    for round in 0..2 {
        fjall(&directory.path().join(format!("fjall{round}")), pairs)?;
        redb(&directory.path().join(format!("redb{round}")), pairs)?;
    }
    Ok(())
}
