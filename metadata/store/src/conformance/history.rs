//! Concurrent random transactions over few keys. Their histories are replayed one after another in the order of their stamps: every read and
//! the final state must come out the same.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::{Atomic, ReadVersion, Versionstamp, mvcc};

const KEYS: u32 = 10;
const CLIENTS: u64 = 6;
const TRANSACTIONS: u64 = 25;
/// Transactions of one client that may fail before their commits.
const FAILED_MAX: u32 = 20_000;

type State = BTreeMap<Bytes, Bytes>;

#[derive(Clone, Debug)]
enum Step {
    Get(Bytes, Read, Option<Bytes>),
    Range(KeyRange, RangeLimit, Read, RangePage),
    Set(Bytes, Bytes),
    Clear(Bytes),
    ClearRange(KeyRange),
    Atomic(Bytes, Bytes, Atomic),
}

#[derive(Clone, Debug)]
struct Record {
    /// Names it; its outcome key too.
    name: String,
    read_version: ReadVersion,
    steps: Vec<Step>,
    outcome: Result<Committed, StoreError>,
}

fn key(n: u32) -> Bytes {
    format!("k{n:02}").into()
}

fn outcome_key(name: &str) -> String {
    format!("outcome/{name}")
}

pub(super) async fn run<S: Store>(store: &S, seed: u64) {
    let clients: Vec<_> =
        (0..CLIENTS).map(|client| tokio::spawn(client_run(store.clone(), seed, client))).collect();
    let mut records = Vec::new();
    for client in clients {
        records.extend(client.await.expect("a client failed"));
    }
    let (end, state, outcomes) = final_state(store).await;
    check(&records, end, &state, &outcomes);
}

async fn client_run<S: Store>(store: S, seed: u64, client: u64) -> Vec<Record> {
    let mut dice = SmallRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(client));
    let mut records = Vec::new();
    let mut failed = 0;
    while (records.len() as u64) < TRANSACTIONS {
        match transaction(&store, &mut dice, format!("{client}-{}", records.len())).await {
            Ok(record) => records.push(record),
            // It hasn't come to a commit. Where leaders change on a busy machine that may go on for as long as all transactions take elsewhere.
            Err(error) => {
                assert!(passing(&error), "a read failed: {error}");
                failed += 1;
                assert!(failed < FAILED_MAX, "reads fail again and again: {error}");
                pause().await;
            }
        }
    }
    records
}

async fn transaction<S: Store>(store: &S, dice: &mut SmallRng, name: String) -> Result<Record, StoreError> {
    let tx = store.begin();
    let read_version = tx.read_version().await?;
    let read_only = dice.random_bool(0.2);
    let mut steps = Vec::new();
    for _ in 0..dice.random_range(1..6) {
        if dice.random_bool(0.4) {
            tokio::task::yield_now().await;
        }
        steps.push(step(&tx, dice, read_only).await?);
    }
    if !read_only {
        tx.set_versionstamped_value(outcome_key(&name).as_bytes(), &[0; 10], 0);
    }
    let outcome = tx.commit().await;
    if let Err(error) = &outcome {
        assert!(passing(error), "a commit failed: {error}");
    }
    Ok(Record { name, read_version, steps, outcome })
}

async fn step<T: Transaction>(tx: &T, dice: &mut SmallRng, read_only: bool) -> Result<Step, StoreError> {
    let one = key(dice.random_range(0..KEYS));
    let mut bounds = [dice.random_range(0..=KEYS), dice.random_range(0..=KEYS)];
    bounds.sort_unstable();
    let some = KeyRange { begin: key(bounds[0]), end: key(bounds[1]) };
    let read = if dice.random_bool(0.7) { Read::Conflicting } else { Read::Snapshot };
    let operand = Bytes::copy_from_slice(&dice.random::<u32>().to_le_bytes()[..dice.random_range(1..=4)]);
    Ok(match dice.random_range(0..if read_only { 5 } else { 12 }) {
        0..3 => {
            let found = tx.get(&one, read).await?;
            Step::Get(one, read, found)
        }
        3..5 => {
            let most = limit(dice.random_range(1..12), dice.random_bool(0.5));
            let found = tx.get_range(some.clone(), most, read).await?;
            Step::Range(some, most, read, found)
        }
        5..8 => {
            tx.set(&one, &operand);
            Step::Set(one, operand)
        }
        8 => {
            tx.clear(&one);
            Step::Clear(one)
        }
        9 => {
            tx.clear_range(some.clone());
            Step::ClearRange(some)
        }
        _ => {
            let all = [Atomic::Add, Atomic::Max, Atomic::Min, Atomic::ByteMax];
            let operation = all[dice.random_range(0..all.len())];
            tx.atomic(&one, &operand, operation);
            Step::Atomic(one, operand, operation)
        }
    })
}

/// The state at a last version, and the stamps of the transactions that are in it. What is committed later doesn't matter.
async fn final_state<S: Store>(store: &S) -> (ReadVersion, State, BTreeMap<String, Versionstamp>) {
    loop {
        let tx = store.begin();
        let read = async {
            let version = tx.read_version().await?;
            let pairs = tx.get_range(range("k", "l"), limit(1000, false), Read::Snapshot).await?;
            let outcomes =
                tx.get_range(range("outcome/", "outcome0"), limit(10_000, false), Read::Snapshot).await?;
            Ok::<_, StoreError>((version, pairs, outcomes))
        };
        match read.await {
            Ok((version, pairs, outcomes)) => {
                assert!(!pairs.more && !outcomes.more);
                let stamps = outcomes.pairs.into_iter().map(|(key, value)| {
                    let name = String::from_utf8(key["outcome/".len()..].to_vec()).unwrap();
                    (name, Versionstamp(value[..].try_into().unwrap()))
                });
                return (version, pairs.pairs.into_iter().collect(), stamps.collect());
            }
            Err(error) => assert!(passing(&error), "{error}"),
        }
        pause().await;
    }
}

fn version_of(stamp: &Versionstamp) -> u64 {
    u64::from_be_bytes(stamp.0[..8].try_into().unwrap())
}

fn check(records: &[Record], end: ReadVersion, state: &State, outcomes: &BTreeMap<String, Versionstamp>) {
    for record in records {
        let found = outcomes.get(&record.name);
        match &record.outcome {
            Ok(Committed { versionstamp: Some(stamp), version }) => {
                assert_eq!(
                    found,
                    Some(stamp),
                    "{}: what was committed is there, with its stamp",
                    record.name
                );
                assert!(*version > record.read_version);
            }
            Ok(Committed { versionstamp: None, .. }) | Err(StoreError::CommitUnknown) => {}
            Err(error) => assert_eq!(found, None, "{}: {error}, and yet it was committed", record.name),
        }
    }
    // The states behind each stamp.
    let mut committed: Vec<(Versionstamp, &Record)> = records
        .iter()
        .filter_map(|record| outcomes.get(&record.name).map(|stamp| (*stamp, record)))
        .collect();
    committed.sort_by_key(|(stamp, _)| *stamp);
    let mut states: Vec<(u64, State)> = vec![(0, State::new())];
    for (stamp, record) in &committed {
        let mut after = states.last().unwrap().1.clone();
        replay(record, &mut after, &|read| read == Read::Conflicting, "before its commit");
        states.push((version_of(stamp), after));
    }
    // Every transaction read one cut: the state at its read version. Also those that weren't committed.
    for record in records {
        let at = states.partition_point(|(version, _)| *version <= record.read_version.0);
        replay(record, &mut states[at - 1].1.clone(), &|_| true, "at its read version");
    }
    let at = states.partition_point(|(version, _)| *version <= end.0);
    assert_eq!(&states[at - 1].1, state, "the final state");
    assert!(!committed.is_empty(), "nothing was committed at all");
}

/// Runs a transaction on a state, and compares those of its reads that are asked for.
fn replay(record: &Record, state: &mut State, compare: &impl Fn(Read) -> bool, when: &str) {
    for (number, step) in record.steps.iter().enumerate() {
        let told = || format!("step {number} of {} {when}, in {record:#?}", record.name);
        match step {
            Step::Get(key, read, found) => {
                if compare(*read) {
                    assert_eq!(state.get(key), found.as_ref(), "{}", told());
                }
            }
            Step::Range(range, limit, read, found) => {
                if compare(*read) {
                    let page = crate::memory::map_page(state, range, *limit);
                    assert_eq!(page.pairs, found.pairs, "{}", told());
                    assert!(
                        found.more || page.boundary.is_none() || page.pairs.len() < limit.pairs_max,
                        "{}",
                        told()
                    );
                }
            }
            Step::Set(key, value) => drop(state.insert(key.clone(), value.clone())),
            Step::Clear(key) => drop(state.remove(key)),
            Step::ClearRange(range) => state.retain(|key, _| *key < range.begin || *key >= range.end),
            Step::Atomic(key, operand, operation) => {
                let value = mvcc::apply_atomic(state.get(key), operand, *operation);
                state.insert(key.clone(), value);
            }
        }
    }
}
