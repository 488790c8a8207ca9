//! Requests of a client that may send anything that is a message: the namespace answers, and stays consistent.

use std::collections::BTreeMap;

use bytes::Bytes;
use mooseng_namespace::acl;
use mooseng_namespace::fsck::{Check, Part, compare_totals};
use mooseng_namespace::trash::Terms;
use mooseng_namespace::{Ids, OpContext, OpError, execute, format, needs_chunk, needs_inode, sessions};
use mooseng_schema::acl::{AclEntry, AclRecord};
use mooseng_schema::dirent::HashKey;
use mooseng_schema::session::SessionRecord;
use mooseng_store::memory::MemoryStore;
use mooseng_store::{Store, Transaction};
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::write_piece::Data;
use mooseng_wire::fs::*;
use mooseng_wire::{ChunkId, DEFAULT_ACL, Epoch, Incarnation, InodeId, SessionId, VolumeId};
use prost::Message;

/// Requests that one input holds at most.
const REQUESTS_MAX: usize = 24;
/// Changes of one `Tell` that may be refused.
const TOLD_MAX: usize = 16;
const SESSION: SessionId = SessionId(1);

/// Runs a future that waits for nothing but memory.
fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.unwrap_or_else(|e| panic!("no runtime: {e}")).block_on(work)
}

async fn volume() -> MemoryStore {
    let store = MemoryStore::new();
    let tx = store.begin();
    let made = format(&tx, VolumeId(0), Epoch(1), HashKey([3; 16]), 1, Terms::default()).await;
    assert!(matches!(made, Ok(true)));
    let record = SessionRecord { incarnation: 1, identity: "client".into(), ..SessionRecord::default() };
    assert!(sessions::create_session(&tx, SESSION, &record).await.is_ok());
    assert!(tx.commit().await.is_ok());
    store
}

async fn apply(store: &MemoryStore, number: u64, request: &FsRequest) {
    let mut ids = Ids::default();
    if needs_inode(request) {
        ids.inode = Some(InodeId(1 + number));
    }
    if needs_chunk(request) {
        ids.chunk = Some(ChunkId(number));
    }
    let mut context = OpContext {
        now_ns: 1_000 + number as i64,
        ids,
        session: SESSION,
        incarnation: Incarnation(1),
        epoch: Epoch(1),
        placement: vec!["cs-1".into(), "cs-2".into()],
        ..OpContext::default()
    };
    // Each run leaves one more of what a session tells out, as the driver does.
    for _ in 0..TOLD_MAX {
        let tx = store.begin();
        match execute(&tx, &context, request).await {
            // Dropped, as it must be behind an error.
            Err(OpError::Schema(damaged)) => panic!("a request finds the store damaged: {damaged}"),
            Err(OpError::Told { at, errno }) => drop(context.refused.insert(at, errno)),
            Err(_) => return,
            Ok(_) => return drop(tx.commit().await),
        }
    }
}

/// A row of requests, each behind its length in two bytes.
pub fn requests(input: &[u8]) {
    run(async {
        let store = volume().await;
        let mut rest = input;
        for number in 1..=REQUESTS_MAX as u64 {
            let Some((length, behind)) = rest.split_first_chunk::<2>() else { break };
            let (request, behind) =
                behind.split_at(usize::from(u16::from_le_bytes(*length)).min(behind.len()));
            rest = behind;
            if let Ok(request) = FsRequest::decode(request) {
                apply(&store, number, &request).await;
            }
        }
        check(&store.dump());
    });
}

/// What `mooseng fsck` would say.
fn check(dump: &BTreeMap<Bytes, Bytes>) {
    let mut check = Check::new(Part::Of { part: 0, parts: 1 });
    let ids = mooseng_schema::ids::key(mooseng_schema::ids::IdKind::Inode, VolumeId(0));
    // Ids are given by this harness.
    dump.iter()
        .filter(|(key, _)| key.as_ref() != ids.as_slice())
        .for_each(|(key, value)| check.take(key, value));
    let outcome = check.finish();
    let mut findings = outcome.findings;
    findings.extend(compare_totals(&[outcome.totals]));
    assert!(findings.is_empty(), "requests left the store inconsistent: {:?}", findings.first());
}

fn untold(op: Op, inode: u64) -> Untold {
    let request = FsRequest { op: Some(op), ..FsRequest::default() };
    Untold { request: Some(request), inode, at_ns: 5, open: false }
}

fn script() -> Vec<Op> {
    let name = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let inline = |offset, bytes: &'static [u8]| WritePiece { offset, data: Some(Data::Inline(bytes.into())) };
    vec![
        Op::Create(Create { parent: 1, name: name("f"), mode: 0o644, ..Create::default() }),
        Op::Write(Write {
            inode: 2,
            pieces: vec![inline(0, b"hello"), inline(100, b"there")],
            ..Write::default()
        }),
        Op::Mkdir(Mkdir { parent: 1, name: name("d"), mode: 0o755, alone: false }),
        Op::AllocateChunk(AllocateChunk { inode: 2, exclude: vec![] }),
        Op::Write(Write {
            inode: 2,
            pieces: vec![WritePiece {
                offset: 50,
                data: Some(Data::Run(ChunkRun { chunk: 4, chunk_offset: 0, length: 60 })),
            }],
            ..Write::default()
        }),
        Op::Link(Link { inode: 2, new_parent: 4, new_name: name("g") }),
        Op::Rename(Rename {
            parent: 1,
            name: name("f"),
            new_parent: 4,
            new_name: name("h"),
            ..Rename::default()
        }),
        Op::SetXattr(SetXattr { inode: 2, name: name("user.a"), value: name("v"), ..SetXattr::default() }),
        Op::SetAttr(SetAttr { inode: 2, size: Some(70), ..SetAttr::default() }),
        Op::Symlink(Symlink { parent: 1, name: name("s"), target: name("d/h") }),
        Op::SealChunk(SealChunk { chunk: 4, acknowledged: 60, failed: vec![] }),
        Op::Unlink(Unlink { parent: 4, name: name("g") }),
        // Far out in a file inline data is staged.
        Op::Write(Write {
            inode: 2,
            pieces: vec![inline(100_000, b"staged"), inline(100_003, b"over it"), inline(200_000, b"far")],
            ..Write::default()
        }),
        Op::SetAttr(SetAttr { inode: 2, size: Some(100_002), ..SetAttr::default() }),
        Op::SetXattr(SetXattr {
            inode: 4,
            name: DEFAULT_ACL.into(),
            value: acl::encode(&list()),
            ..SetXattr::default()
        }),
        Op::Create(Create { parent: 4, name: name("i"), mode: 0o644, ..Create::default() }),
        Op::SetAttr(SetAttr { inode: 15, mode: Some(0o600), ..SetAttr::default() }),
        // What a session made alone, one part of which is refused.
        Op::Tell(Tell {
            changes: vec![
                untold(Op::Mkdir(Mkdir { parent: 4, name: name("alone"), mode: 0o755, alone: false }), 1000),
                untold(
                    Op::Create(Create { parent: 1000, name: name("f"), mode: 0o644, ..Create::default() }),
                    1001,
                ),
                untold(
                    Op::Write(Write {
                        inode: 1001,
                        pieces: vec![inline(0, b"along")],
                        written_ns: Some(5),
                        ..Write::default()
                    }),
                    0,
                ),
                untold(Op::Rmdir(Rmdir { parent: 4, name: name("alone") }), 0),
            ],
        }),
    ]
}

fn list() -> AclRecord {
    let entry = |id, permissions| AclEntry { id, permissions };
    AclRecord {
        owner: 7,
        group: 5,
        other: 0,
        mask: Some(7),
        users: vec![entry(1000, 6)],
        groups: vec![entry(100, 4), entry(200, 1)],
    }
}

/// An access control list as a client sets it: what is taken in is one that can be, and reads back as itself.
pub fn lists(input: &[u8]) {
    if let Ok(Some(list)) = acl::decode(input) {
        assert_eq!(acl::find_fault(&list), None);
        assert_eq!(acl::decode(&acl::encode(&list)), Ok(Some(list)));
    }
}

pub fn list_seeds() -> Vec<Vec<u8>> {
    let plain = AclRecord { owner: 6, group: 4, ..AclRecord::default() };
    [list(), plain].iter().map(|list| acl::encode(list).to_vec()).collect()
}

fn encoded(ops: &[Op]) -> Vec<u8> {
    let mut input = Vec::new();
    for op in ops {
        let request = FsRequest { caller: Some(Caller::default()), op: Some(op.clone()) }.encode_to_vec();
        input.extend_from_slice(&(request.len() as u16).to_le_bytes());
        input.extend_from_slice(&request);
    }
    input
}

pub fn seeds() -> Vec<Vec<u8>> {
    let script = script();
    (1..=script.len()).map(|n| encoded(&script[..n])).collect()
}

/// The store behind a few operations.
pub fn a_small_volume() -> BTreeMap<Bytes, Bytes> {
    run(async {
        let store = volume().await;
        for (number, op) in (1..).zip(script()) {
            apply(&store, number, &FsRequest { caller: Some(Caller::default()), op: Some(op) }).await;
        }
        store.dump()
    })
}
