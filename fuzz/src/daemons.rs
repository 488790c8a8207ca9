//! Small files in which daemons keep what they know of themselves: a chunkserver's state, the identities of its disks, a master's events.

use std::path::Path;
use std::sync::Arc;

use mooseng_chunk::directory::{self, DiskIdentity, IDENTITY_FILE};
use mooseng_chunk::state::{self, Facts, Owner, STATE_FILE};
use mooseng_master::events::journal::{EVENTS_MAX, Entry, FILES, Journal};
use mooseng_ports::disk::sim::SimDisk;
use mooseng_wire::Epoch;
use mooseng_wire::founding::Founding;

use crate::disks::{DATA_DIR, STATE_DIR, kept, put, store};

const EVENTS_DIR: &str = "/events";
/// The mark of a journal that begins.
const FRESH: u64 = 7;
/// No event has such a number: one that claims it is damaged.
const SEQUENCE_MAX: u64 = 1 << 62;

/// Names and paths that end in a carriage return don't come back from lines of text. None of ours do.
fn has_carriage_returns(input: &[u8]) -> bool {
    input.contains(&b'\r')
}

/// A chunkserver's state: what is read is written as that, and a start counts on from it.
pub fn state(input: &[u8]) {
    let Ok(facts) = state::decode(input) else { return };
    if !has_carriage_returns(input) {
        assert_eq!(state::decode(state::encode(&facts).as_bytes()).as_ref(), Ok(&facts));
    }
    let disk = SimDisk::default();
    put(&disk, &Path::new(STATE_DIR).join(STATE_FILE), input);
    if let Some(store) = store(&disk) {
        let (before, now) = (facts.incarnation, store.incarnation());
        assert!(now > before || before == u64::MAX, "start {now} comes behind start {before}");
    }
}

pub fn state_seeds() -> Vec<Vec<u8>> {
    let mut facts = Facts { incarnation: 4, custody: 6, ..Facts::default() };
    facts.epochs.insert(3, Epoch(9));
    facts.disks.insert("/a dir/x".into(), "d-1".into());
    facts.disks.insert(DATA_DIR.into(), "disk".into());
    let owner = |chunkserver: &str| Some(Owner { cluster: "c".into(), chunkserver: chunkserver.into() });
    let marked = Facts { founding: Some(Founding([0xa7; 16])), owner: owner("cs"), ..facts.clone() };
    let foreign = Facts { owner: owner("other"), ..facts.clone() };
    // As somebody has changed it, whose checksum doesn't stand in the way of what follows.
    let mut by_hand = state::encode(&marked);
    by_hand.truncate(by_hand.rfind("checksum ").unwrap_or_default());
    by_hand.push_str("checksum none\n");
    let whole = [Facts::default(), facts, marked, foreign];
    whole.iter().map(state::encode).chain([by_hand]).map(String::into_bytes).collect()
}

/// A disk's identity: what is read is written as that, and a store that opens leaves a disk that it can't tell, or that isn't its own, as it is.
pub fn identity(input: &[u8]) {
    if has_carriage_returns(input) {
        return;
    }
    let identity = directory::decode(input);
    if let Some(identity) = &identity {
        assert_eq!(directory::decode(directory::encode(identity).as_bytes()).as_ref(), Some(identity));
    }
    let disk = SimDisk::default();
    let path = Path::new(DATA_DIR).join(IDENTITY_FILE);
    put(&disk, &path, input);
    drop(store(&disk));
    let after = kept(&disk, &path);
    if after == input {
        return;
    }
    let (Some(before), Some(after)) = (identity, directory::decode(&after)) else {
        panic!("an identity that can't be read was replaced");
    };
    assert!(after.incarnation >= before.incarnation, "starts are counted from the beginning again");
    assert!(before.founding.is_none() || after.founding == before.founding, "it is of another region");
    let expected = DiskIdentity { founding: after.founding, incarnation: after.incarnation, ..before };
    assert_eq!(after, expected, "the disk is another one now");
}

pub fn identity_seeds() -> Vec<Vec<u8>> {
    let identity = |chunkserver: &str, founding, incarnation| DiskIdentity {
        cluster: "c".into(),
        chunkserver: chunkserver.into(),
        id: "d-9".into(),
        format: 1,
        founding,
        incarnation,
    };
    let mark = Some(Founding([0xa7; 16]));
    [identity("cs", None, 0), identity("cs", None, 7), identity("cs", mark, 8), identity("other", mark, 8)]
        .iter()
        .map(|identity| directory::encode(identity).into_bytes())
        .collect()
}

/// Two files of events, the first one's length in two bytes: whatever can be read of them is in order, and what is told next is there again with it.
pub fn events(input: &[u8]) {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return };
    let (first, second) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let disk = SimDisk::default();
    for (name, bytes) in FILES.into_iter().zip([first, second]) {
        put(&disk, &Path::new(EVENTS_DIR).join(name), bytes);
    }
    let mut journal = journal(&disk);
    let before: Vec<Entry> = journal.entries.iter().cloned().collect();
    assert!(before.iter().all(|entry| entry.journal == journal.id), "events of two journals are mixed");
    assert!(before.windows(2).all(|pair| pair[0].sequence < pair[1].sequence), "events are out of order");
    let next = event(journal.id, journal.next(), "and so on");
    // Where memory is full the oldest one goes.
    if next.sequence >= SEQUENCE_MAX || before.len() >= EVENTS_MAX {
        return;
    }
    assert!(journal.append(vec![next.clone()]).is_ok());
    let again = self::journal(&disk);
    assert_eq!(again.id, journal.id);
    assert!(again.entries.iter().eq(before.iter().chain([&next])), "what was told isn't what is read again");
}

fn journal(disk: &SimDisk) -> Journal {
    let opened = Journal::open(Arc::new(disk.clone()), Path::new(EVENTS_DIR), FRESH);
    opened.unwrap_or_else(|error| panic!("damaged events keep a master from starting: {error}"))
}

fn event(journal: u64, sequence: u64, detail: &str) -> Entry {
    Entry {
        journal,
        sequence,
        unix_ms: 1_800_000_000_000,
        event: "LEASE_LOST".into(),
        subject: "a".into(),
        detail: detail.into(),
        key: String::new(),
    }
}

/// The bytes of one file with events of these numbers.
fn lines(of: u64, numbers: std::ops::Range<u64>) -> Vec<u8> {
    let disk = SimDisk::default();
    let written = journal(&disk).append(numbers.map(|n| event(of, n, "it \"went\" away")).collect());
    assert!(written.is_ok());
    kept(&disk, &Path::new(EVENTS_DIR).join(FILES[0]))
}

pub fn event_seeds() -> Vec<Vec<u8>> {
    let seed =
        |first: Vec<u8>, second: Vec<u8>| [&(first.len() as u16).to_le_bytes()[..], &first, &second].concat();
    vec![
        seed(vec![], vec![]),
        seed(lines(FRESH, 1..4), vec![]),
        seed(lines(FRESH, 4..6), lines(FRESH, 1..4)),
        // Of a journal that was lost, and the one after it.
        seed(lines(FRESH, 1..3), lines(9, 3..4)),
    ]
}
