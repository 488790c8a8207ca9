//! What masters keep of their group and tell each other: the line that they belong to, and entries of the log.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_raft::codec;
use mooseng_raft::lineage::{FILE, Line, Lineage};
use mooseng_wire::raft::log_entry::Payload;
use mooseng_wire::raft::{Blank, LogEntry, LogId, Membership, Node, StoredMembership, VoterSet};
use prost::Message;

use crate::disks::{LOG_DIR, kept, put};

fn lineage_path() -> PathBuf {
    Path::new(LOG_DIR).join(FILE)
}

/// The file of a member's line: it is refused, or is to the byte what would be written for that line.
pub fn lineage(input: &[u8]) {
    let disk = SimDisk::default();
    put(&disk, &lineage_path(), input);
    let Ok(lineage) = Lineage::open(&disk, Path::new(LOG_DIR)) else { return };
    assert!(lineage.enter(&disk, lineage.line()).is_ok());
    assert!(kept(&disk, &lineage_path()) == input, "a line was taken in that nobody would write so");
}

pub fn lineage_seeds() -> Vec<Vec<u8>> {
    let seed = |line| {
        let disk = SimDisk::default();
        // Its directory must be there.
        put(&disk, &Path::new(LOG_DIR).join("1.wal"), b"");
        let entered = Lineage::open(&disk, Path::new(LOG_DIR)).and_then(|lineage| lineage.enter(&disk, line));
        assert!(entered.is_ok());
        kept(&disk, &lineage_path())
    };
    [Line(0), Line(0).after(1_800_000_000), Line(u32::MAX)].map(seed).to_vec()
}

/// Entries and memberships, as members send and keep them: what is read is written as that.
pub fn entries(input: &[u8]) {
    if let Ok(message) = LogEntry::decode(input)
        && let Ok(entry) = codec::from_entry(message)
    {
        let written = codec::entry(&entry);
        let again = codec::from_entry(written.clone()).map(|entry| codec::entry(&entry));
        assert_eq!(again.ok(), Some(written));
    }
    if let Ok(stored) = codec::from_stored_bytes(Bytes::copy_from_slice(input)) {
        let written = codec::stored_bytes(&stored);
        let again = codec::from_stored_bytes(written.clone()).map(|stored| codec::stored_bytes(&stored));
        assert_eq!(again.ok(), Some(written));
    }
}

pub fn entry_seeds() -> Vec<Vec<u8>> {
    let node = |name: &str| Node { name: name.into(), address: "h:7001".into(), zone: "z".into() };
    let membership = Membership {
        // In the middle of a change.
        configs: vec![VoterSet { nodes: vec![1, 2] }, VoterSet { nodes: vec![2, 3] }],
        nodes: [(1, node("m1")), (2, node("m2")), (3, node("m3"))].into_iter().collect(),
    };
    let log_id = || Some(LogId { term: 2, node: 1, index: 300 });
    let entry = |payload| LogEntry { log_id: log_id(), payload: Some(payload) }.encode_to_vec();
    let stored = StoredMembership { log_id: log_id(), membership: Some(membership.clone()) };
    vec![
        entry(Payload::Blank(Blank {})),
        entry(Payload::Batch(Bytes::from_static(b"batch"))),
        entry(Payload::Membership(membership)),
        stored.encode_to_vec(),
    ]
}
