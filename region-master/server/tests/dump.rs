//! Dumps between engines: what was loaded is dumped again as the same, and a bad dump leaves everything as it was.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mooseng_embedded::{Base, Embedded, FjallBase, MemoryBase, Options, Position};
use mooseng_master::MasterConfig;
use mooseng_master::dump::{LoadError, Making, fill, load};
use mooseng_ports::disk::os::OsDisk;
use mooseng_store::dump::{Header, Reader, Totals, Writer, verify};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

fn header() -> Header {
    Header {
        cluster: "c".into(),
        region: "r".into(),
        founding: vec![3; 16],
        version: 4711,
        term: 5,
        taken_unix_s: 1_800_000_000,
    }
}

fn records(seed: u64, count: usize) -> BTreeMap<Bytes, Bytes> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut bytes = |most: usize| -> Bytes {
        (0..random.random_range(0..most)).map(|_| random.random_range(0..0xff_u8)).collect::<Vec<u8>>().into()
    };
    (0..count).map(|_| (bytes(40), bytes(3000))).collect()
}

fn encoded(records: &BTreeMap<Bytes, Bytes>) -> (Vec<u8>, Totals) {
    let pairs: Vec<(Bytes, Bytes)> = records.clone().into_iter().collect();
    let mut bytes = Vec::new();
    let mut writer = Writer::begin(&mut bytes, &header()).unwrap();
    for block in pairs.chunks(100) {
        writer.block(block).unwrap();
    }
    let totals = writer.end().unwrap();
    (bytes, totals)
}

fn position() -> Position {
    Position { index: 2, term: 6, node: 1, meta: Bytes::from_static(b"") }
}

fn filled(base: Arc<dyn Base>, dump: &[u8]) -> Embedded {
    let store = Embedded::open(base, Options::default()).unwrap();
    fill(&store, &mut Reader::begin(dump).unwrap(), position()).unwrap();
    store
}

fn dumped(store: &Embedded) -> Vec<u8> {
    let pin = store.pin().unwrap();
    assert_eq!(pin.version().0, header().version, "the version isn't kept");
    let mut making = Making::begin(pin, &header());
    let mut bytes = Vec::new();
    while let (back, Some(piece)) = making.next().unwrap() {
        making = back;
        bytes.extend(piece);
    }
    bytes
}

#[test]
fn the_dump_of_what_was_loaded_is_the_dump_whatever_the_engine() {
    for seed in 0..4 {
        let records = records(seed, 400 * seed as usize);
        let (original, totals) = encoded(&records);
        let dir = tempfile::tempdir().unwrap();
        let memory = filled(Arc::new(MemoryBase::default()), &original);
        let from_memory = dumped(&memory);
        let fjall = filled(Arc::new(FjallBase::open(dir.path()).unwrap()), &from_memory);
        let from_fjall = dumped(&fjall);
        assert_eq!(from_memory, from_fjall, "seed {seed}");
        let (told, read) = verify(&from_fjall[..]).unwrap();
        assert_eq!(told, header());
        assert_eq!((read.pairs, read.bytes, read.digest), (totals.pairs, totals.bytes, totals.digest));
        let mut reader = Reader::begin(&from_fjall[..]).unwrap();
        let mut back = BTreeMap::new();
        while let Some(block) = reader.block().unwrap() {
            back.extend(block);
        }
        assert_eq!(back, records);
    }
}

#[test]
fn a_store_keeps_its_content_where_a_dump_breaks_off() {
    let (old, _) = encoded(&records(7, 50));
    let (new, _) = encoded(&records(8, 500));
    let store = filled(Arc::new(MemoryBase::default()), &old);
    let before = dumped(&store);
    let cut = &new[..new.len() - 1];
    assert!(fill(&store, &mut Reader::begin(cut).unwrap(), position()).is_err());
    assert_eq!(dumped(&store), before);
}

fn config(dir: &std::path::Path) -> MasterConfig {
    let text = format!(
        "name = \"m1\"\nid = 1\nregion = \"r\"\ncluster = \"c\"\nzone = \"z\"\nlisten = \"127.0.0.1:0\"\n\
         advertise = \"127.0.0.1:1\"\nstate_dir = {:?}\n[[members]]\nid = 1\nname = \"m1\"\n\
         address = \"127.0.0.1:1\"\nzone = \"z\"\n",
        dir.display().to_string()
    );
    MasterConfig::parse(&text).unwrap()
}

#[test]
fn only_a_whole_dump_of_this_region_is_loaded_and_only_into_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (good, totals) = encoded(&records(1, 300));
    let file = dir.path().join("dump");
    let state = dir.path().join("state");
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    let attempt = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        load(&config(&state), Arc::new(OsDisk), &file, now)
    };
    let mut random = SmallRng::seed_from_u64(3);
    for _ in 0..50 {
        let mut bad = good.clone();
        let at = random.random_range(0..bad.len());
        if random.random() {
            bad.truncate(at);
        } else {
            bad[at] ^= 1 << random.random_range(0..8);
        }
        assert!(matches!(attempt(&bad), Err(LoadError::Dump { .. })), "at {at}");
        assert!(!state.exists(), "a bad dump left something behind");
    }
    let mut other = Vec::new();
    let foreign = Header { region: "elsewhere".into(), ..header() };
    Writer::begin(&mut other, &foreign).unwrap().end().unwrap();
    assert!(matches!(attempt(&other), Err(LoadError::OtherRegion { .. })));
    let loaded = attempt(&good).unwrap();
    assert_eq!(loaded.totals, totals);
    assert!(loaded.group.term > header().term && loaded.group.line.0 > 0);
    // Not over what is there, were it only this.
    assert!(matches!(attempt(&good), Err(LoadError::NotEmpty(_))));
    let store =
        Embedded::open(Arc::new(FjallBase::open(&state.join("store")).unwrap()), Options::default()).unwrap();
    assert_eq!(verify(&dumped(&store)[..]).unwrap().1.digest, totals.digest);
}
