//! Every decoder of ours that is written by hand, as a function of bytes that may be anything: from a disk, from the network, from a user.
//!
//! A target panics where the code under it is wrong: it mustn't panic itself, must not answer bytes that nobody wrote, and what it takes in
//! must leave the whole as consistent as before. `cargo test -p mooseng-fuzz` replays the corpus and thousands of mutations of it on any
//! toolchain; `scripts/fuzz` searches on with libFuzzer (docs/fuzzing.md).

mod daemons;
mod disks;
mod raft;
mod requests;
mod texts;

use bytes::{Bytes, BytesMut};
use mooseng_wire::frame::{Frame, HEADER_BYTES};

/// A target: what it is called, what it does with bytes, and inputs that are as they should be, to begin with.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and its directory's in the corpus.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Well-formed inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 20] = [
    Target { name: "frames", run: frames, seeds: frame_seeds },
    Target { name: "batch", run: batch, seeds: batch_seeds },
    Target { name: "log", run: disks::log, seeds: disks::log_seeds },
    Target { name: "chunk", run: disks::chunk, seeds: disks::chunk_seeds },
    Target { name: "dump", run: disks::dump, seeds: disks::dump_seeds },
    Target { name: "records", run: records, seeds: record_seeds },
    Target { name: "ticket", run: texts::ticket, seeds: texts::ticket_seeds },
    Target { name: "texts", run: texts::texts, seeds: texts::text_seeds },
    Target { name: "requests", run: requests::requests, seeds: requests::seeds },
    Target { name: "acls", run: requests::lists, seeds: requests::list_seeds },
    Target { name: "join", run: texts::join, seeds: texts::join_seeds },
    Target { name: "revocations", run: texts::revocations, seeds: texts::revocation_seeds },
    Target { name: "wan", run: texts::wan, seeds: texts::wan_seeds },
    Target { name: "lineage", run: raft::lineage, seeds: raft::lineage_seeds },
    Target { name: "entries", run: raft::entries, seeds: raft::entry_seeds },
    Target { name: "position", run: disks::position, seeds: disks::position_seeds },
    Target { name: "journal", run: disks::journal, seeds: disks::journal_seeds },
    Target { name: "events", run: daemons::events, seeds: daemons::event_seeds },
    Target { name: "state", run: daemons::state, seeds: daemons::state_seeds },
    Target { name: "identity", run: daemons::identity, seeds: daemons::identity_seeds },
];

/// Frames of a connection, in whatever pieces they come.
fn frames(input: &[u8]) {
    let Some((piece, stream)) = input.split_first() else { return };
    let limit = 1 << 16;
    let mut buffer = BytesMut::new();
    for bytes in stream.chunks(usize::from(*piece).max(1)) {
        buffer.extend_from_slice(bytes);
        loop {
            match Frame::decode(&mut buffer, limit) {
                Ok(Some(frame)) => {
                    assert!(frame.encoded_len() <= limit && frame.encoded_len() >= HEADER_BYTES);
                    let mut again = BytesMut::new();
                    frame.encode_head(&mut again);
                    again.extend_from_slice(&frame.bulk);
                    let read = Frame::decode(&mut again, limit);
                    assert_eq!(read.ok().flatten().map(|f| f.call), Some(frame.call));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(buffer.capacity() <= 2 * limit + stream.len(), "one frame makes a connection hold more");
    }
}

fn frame_seeds() -> Vec<Vec<u8>> {
    use mooseng_wire::frame::Kind;
    let frame = |kind| {
        let mut out = BytesMut::from(&[3_u8][..]);
        let (meta, body) = (Bytes::from_static(b"meta"), Bytes::from_static(b"body"));
        Frame { kind, lane: 1, method: 2, call: 3, meta, body, bulk: Bytes::from_static(b"bulk") }
            .encode_head(&mut out);
        out.extend_from_slice(b"bulk");
        out.to_vec()
    };
    [Kind::Request, Kind::Response].map(frame).to_vec()
}

/// A batch of the embedded engine, as followers take it out of their logs.
fn batch(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(batch) = mooseng_embedded::CommitBatch::decode(&bytes) {
        let again = batch.encode();
        assert_eq!(
            mooseng_embedded::CommitBatch::decode(&again),
            Ok(batch),
            "what was read is written otherwise"
        );
    }
}

fn batch_seeds() -> Vec<Vec<u8>> {
    use mooseng_store::mvcc::Change;
    let transactions = vec![
        (5, vec![Change::Set(Bytes::from_static(b"k"), Bytes::from_static(b"v"))]),
        (6, vec![Change::ClearRange(mooseng_store::KeyRange { begin: "a".into(), end: "b".into() })]),
    ];
    let batch = mooseng_embedded::CommitBatch { term: 3, base_version: 4, transactions };
    vec![batch.encode().to_vec()]
}

/// A key and a value of the store, told apart by the length in the first two bytes.
fn records(input: &[u8]) {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return };
    let key = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let (key, value) = rest.split_at(key);
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    let _ = mooseng_schema::any::Any::read(&key, &value);
    // The check of a whole store takes them from a disk that may be damaged.
    use mooseng_namespace::fsck::{Check, Part};
    let mut check = Check::new(Part::Of { part: 0, parts: 1 });
    check.take(&key, &value);
    let _ = check.finish();
}

fn record_seeds() -> Vec<Vec<u8>> {
    let dump = requests::a_small_volume();
    let record = |(key, value): (Bytes, Bytes)| {
        let mut input = (key.len() as u16).to_le_bytes().to_vec();
        input.extend_from_slice(&key);
        input.extend_from_slice(&value);
        input
    };
    dump.into_iter().map(record).collect()
}
