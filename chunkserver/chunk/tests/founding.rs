//! The founding mark: a store keeps its region's for good, in the state directory and on each disk, and takes nothing of another one.
#![allow(clippy::unwrap_used, reason = "tests: helpers outside of test functions unwrap, too")]

mod common;

use std::path::{Path, PathBuf};

use common::{TornDisk, open, open_with, options};
use mooseng_chunk::directory::IDENTITY_FILE;
use mooseng_chunk::state::STATE_FILE;
use mooseng_chunk::{ChunkError, ChunkStore, StoreOptions};
use mooseng_ports::disk::sim::{Fault, SimDisk};
use mooseng_ports::disk::{Disk, OpenMode, read_all, write_atomically};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::founding::Founding;
use rand::SeedableRng;
use rand::rngs::SmallRng;

const OURS: Founding = Founding([7; 16]);
const OTHER: Founding = Founding([8; 16]);

fn text(disk: &impl Disk, path: impl AsRef<Path>) -> String {
    String::from_utf8(read_all(&*disk.open(path.as_ref(), OpenMode::ReadOnly).unwrap()).unwrap()).unwrap()
}

fn identity(disk: &impl Disk, dir: &str) -> String {
    text(disk, Path::new(dir).join(IDENTITY_FILE))
}

fn carries(disk: &impl Disk, dir: &str, mark: Founding) -> bool {
    identity(disk, dir).contains(&format!("founding {mark}\n"))
}

fn refuses(store: &ChunkStore, told: Founding) {
    let refused = store.see_founding(told).unwrap_err();
    assert_eq!(refused, ChunkError::OtherFounding { own: OURS, told });
    assert_eq!(refused.code(), ErrorCode::OtherFounding);
}

#[test]
fn the_first_mark_stays_through_restarts_and_another_is_refused() {
    let disk = SimDisk::default();
    let store = open(&disk, &["/data"]);
    assert_eq!(store.founding(), None);
    assert!(!store.knows_founding(OURS));
    store.see_founding(OURS).unwrap();
    // Flushed before it was taken: nothing of it is lost in a crash.
    disk.crash(|_| 0);
    for _ in 0..2 {
        let store = open(&disk, &["/data"]);
        assert!(store.knows_founding(OURS) && carries(&disk, "/data", OURS));
        store.see_founding(OURS).unwrap();
        refuses(&store, OTHER);
        assert_eq!(store.founding(), Some(OURS));
    }
}

#[test]
fn wherever_power_fails_the_mark_is_there_or_not_and_never_torn() {
    for budget in 0..40 {
        let disk = TornDisk::default();
        let store = open(&disk, &["/data", "/data2"]);
        disk.fail_after(Some(budget));
        let told = store.see_founding(OURS);
        disk.crash(&mut SmallRng::seed_from_u64(budget));
        let store = open(&disk, &["/data", "/data2"]);
        assert!(store.directories().iter().all(|d| d.error.is_empty()), "{:?}", store.directories());
        match store.founding() {
            None => assert!(told.is_err(), "it was taken, and forgotten in the crash"),
            Some(mark) => assert_eq!(mark, OURS),
        }
        store.see_founding(OURS).unwrap();
        assert!(store.knows_founding(OURS) && carries(&disk, "/data2", OURS));
    }
}

#[test]
fn a_state_directory_that_fails_takes_no_mark() {
    let disk = SimDisk::default();
    let store = open(&disk, &["/data"]);
    disk.set_fault(Fault::Failing);
    let failed = store.see_founding(OURS).unwrap_err();
    assert!(matches!(failed, ChunkError::FoundingFailed { told: OURS, .. }), "{failed}");
    assert_eq!(store.founding(), None);
    disk.set_fault(Fault::None);
    store.see_founding(OURS).unwrap();
}

/// Also those of an earlier version, which carry none.
#[test]
fn new_directories_get_the_mark_and_speak_for_a_lost_state_directory() {
    let disk = SimDisk::default();
    open(&disk, &["/data"]).see_founding(OURS).unwrap();
    open(&disk, &["/data", "/new"]);
    assert!(carries(&disk, "/new", OURS));
    // The state directory is lost: the disks know whose they are.
    let elsewhere = || StoreOptions { state_dir: PathBuf::from("/state2"), ..options(&["/data", "/new"]) };
    let store = open_with(&disk, elsewhere());
    assert!(store.knows_founding(OURS) && text(&disk, "/state2/chunkserver.state").contains("founding"));
    refuses(&store, OTHER);
    assert_eq!(STATE_FILE, "chunkserver.state");
    let unmarked = identity(&disk, "/new")
        .lines()
        .filter(|l| !l.starts_with("founding"))
        .fold(String::new(), |text, line| text + line + "\n");
    write_atomically(&disk, &Path::new("/new").join(IDENTITY_FILE), unmarked.as_bytes()).unwrap();
    assert!(open_with(&disk, elsewhere()).knows_founding(OURS) && carries(&disk, "/new", OURS));
}

#[test]
fn a_directory_of_another_founding_is_refused_and_its_siblings_go_on() {
    let disk = SimDisk::default();
    open(&disk, &["/data"]).see_founding(OURS).unwrap();
    let moved = StoreOptions { state_dir: PathBuf::from("/other"), ..options(&["/moved"]) };
    open_with(&disk, moved).see_founding(OTHER).unwrap();
    // Not the one that other test disks have.
    let apart = identity(&disk, "/moved").replace("disk disk-1", "disk disk-9");
    write_atomically(&disk, &Path::new("/moved").join(IDENTITY_FILE), apart.as_bytes()).unwrap();
    let store = open(&disk, &["/moved", "/data"]);
    let [refused, used] = &store.directories()[..] else { panic!("two directories") };
    assert!(used.writable && used.error.is_empty(), "{used:?}");
    assert!(!refused.writable && refused.error.contains(&OTHER.to_string()), "{refused:?}");
    assert!(refused.error.contains(&OURS.to_string()) && refused.error.contains("made apart"), "{refused:?}");
    assert!(carries(&disk, "/moved", OTHER), "nothing of it was changed");
    assert_eq!(store.founding(), Some(OURS));
}
