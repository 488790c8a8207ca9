//! Random sequences of operations by several clients, with retries and faults, against the model.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use mooseng_namespace::quota::{self, Account};
use mooseng_namespace::rewrite::Destaged;
use mooseng_namespace::{is_change, trash};
use mooseng_store::Store;
use mooseng_wire::VolumeId;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::harness::*;
use crate::model::{At, EREMOTE, EXDEV, Expect, Model, Node};

mod besides;
mod choosing;

use besides::{CLASSES, administer, classify, destage, join, limit, pack};

struct Chunk {
    id: u64,
    client: usize,
    /// Bytes that the test takes as appended.
    length: u64,
}

struct Run {
    rng: SmallRng,
    model: Model,
    /// Every inode that ever was, freed ones too.
    inodes: Vec<u64>,
    chunks: Vec<Chunk>,
    /// Chunks made of what was staged, before the swap.
    destaging: Vec<(u64, Vec<Destaged>)>,
    /// Bytes that such swaps moved.
    destaged: u64,
    /// Chunks made of what several files had packable, before the swap.
    packing: Vec<(u64, Vec<Destaged>)>,
    /// Bytes that such swaps moved.
    packed: u64,
    /// Whether access control lists are set.
    lists: bool,
    /// The highest number of a volume that was joined.
    joined: u32,
}

fn without_blocks(attr: Option<Attr>) -> Attr {
    Attr { blocks: 0, ..attr.unwrap() }
}

/// The reply in the model's words.
fn observed(reply: &Reply) -> Result<Expect, u32> {
    Ok(match reply.clone() {
        Reply::Errno(errno) => return Err(errno),
        Reply::Entry(e) => {
            let attr = e.attr.unwrap();
            let blocks = if attr.kind == FileKind::Directory as i32 { 8 } else { attr.blocks };
            assert_eq!(attr.blocks, blocks);
            Expect::Attr(without_blocks(Some(attr)))
        }
        Reply::Created(c) => Expect::Created(without_blocks(c.attr), c.created),
        Reply::Written(w) => Expect::Written(without_blocks(w.attr), w.offset),
        Reply::Ranged(r) => Expect::Ranged(without_blocks(r.attr), r.done, r.more),
        Reply::Value(v) => Expect::Value(v.value),
        Reply::Names(n) => {
            let names: BTreeSet<Bytes> = n.names.iter().cloned().collect();
            assert_eq!(names.len(), n.names.len());
            Expect::Names(names)
        }
        Reply::Seek(s) => Expect::Offset(s.offset),
        Reply::Done(_) => Expect::Done,
        other => panic!("unexpected {other:?}"),
    })
}

/// A copy that met a chunk which isn't sealed as one that was asked for up to there.
fn as_far(op: &Op, reply: &Reply) -> (Op, Reply) {
    match (op, reply) {
        (Op::CopyRange(r), Reply::Ranged(ranged)) if ranged.more => (
            Op::CopyRange(CopyRange { length: ranged.done, ..*r }),
            Reply::Ranged(Ranged { more: false, ..*ranged }),
        ),
        _ => (op.clone(), reply.clone()),
    }
}

async fn compare_trees(client: &Client<'_>, model: &Model) {
    for (id, node) in &model.nodes {
        assert_eq!(without_blocks(Some(client.attr(*id).await)), model.attr(*id), "inode {id}");
        match FileKind::try_from(node.kind).unwrap() {
            FileKind::Directory if node.joined != 0 => {
                let read = ReadDir { inode: *id, cookie: 0, entries_max: 3, plus: true };
                assert_eq!(client.errno(Op::ReadDir(read)).await, EREMOTE, "directory {id}");
            }
            FileKind::Directory => {
                let entries = client.list(*id, 3, true).await;
                let names: BTreeSet<_> = entries.iter().map(|e| (e.name.to_vec(), e.inode)).collect();
                let expected: BTreeSet<_> = node.entries.iter().map(|(n, i)| (n.clone(), *i)).collect();
                assert_eq!(names, expected, "directory {id}");
                for entry in entries {
                    assert_eq!(without_blocks(entry.attr), model.attr(entry.inode));
                }
            }
            FileKind::Regular => {
                let expected: Vec<u8> = node.content.iter().map(|b| b.unwrap_or(0)).collect();
                assert!(client.read(*id).await == expected, "file {id} has other bytes");
            }
            _ => {}
        }
    }
}

/// The volume these tests are about.
const VOLUME: VolumeId = VolumeId(0);
const RETENTION_S: i64 = 1;

/// All of the trash, as an administrator lists it, in pages.
async fn listed(volume: &Volume) -> Vec<trash::Listed> {
    let (mut all, mut before) = (Vec::new(), None);
    loop {
        let (page, next) = trash::list(&volume.store.inner.begin(), VOLUME, before, 3).await.unwrap();
        all.extend(page);
        before = next;
        if before.is_none() {
            return all;
        }
    }
}

async fn compare_trash(volume: &Volume, model: &Model) {
    let of_node = |(id, n): (&u64, &Node)| n.trash_until.map(|until| (until, *id, n.content.len() as u64));
    let mut expected: Vec<_> =
        model.nodes.iter().filter_map(of_node).filter(|(_, _, size)| *size > 0).collect();
    expected.sort_unstable();
    expected.reverse();
    let listed = listed(volume).await;
    let is: Vec<_> = listed.iter().map(|l| (l.until_ns, l.inode.0, l.size)).collect();
    assert_eq!(is, expected);
    for file in listed {
        let (parent, name, deleted_ns) = &model.nodes[&file.inode.0].deletion;
        let entry = &file.deletion;
        assert_eq!((entry.parent, &entry.name[..], entry.deleted_ns), (*parent, &name[..], *deleted_ns));
    }
}

/// What else an administrator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Besides {
    Nothing,
    Quotas,
    Classes,
}

/// Answers how many staged bytes, and how many packable ones, were moved into chunks on the way.
async fn run(seed: u64, steps: usize, faults: f64, besides: Besides) -> (u64, u64) {
    let (quotas, classes) = (besides == Besides::Quotas, besides == Besides::Classes);
    let volume = Volume::with_trash(seed, faults, RETENTION_S as u64).await;
    let clients = [volume.client(1).await, volume.client(2).await, volume.client(3).await];
    let mut run = Run {
        rng: SmallRng::seed_from_u64(seed),
        model: Model::new(),
        inodes: vec![ROOT],
        chunks: vec![],
        destaging: vec![],
        destaged: 0,
        packing: vec![],
        packed: 0,
        lists: !quotas,
        joined: 0,
    };
    run.model.retention_s = RETENTION_S;
    if classes {
        for name in CLASSES {
            crate::classes::made(&volume, name).await;
        }
    }
    for step in 0..steps {
        if quotas && run.rng.random_bool(0.05) {
            limit(&mut run, &volume).await;
        }
        if classes && run.rng.random_bool(0.1) {
            classify(&mut run, &volume).await;
        }
        if run.rng.random_bool(0.04) {
            administer(&mut run, &volume, &format!("seed {seed}, step {step}")).await;
        }
        if run.rng.random_bool(0.04) {
            join(&mut run, &volume, &format!("seed {seed}, step {step}")).await;
        }
        if run.rng.random_bool(0.08) {
            destage(&mut run, &volume).await;
        }
        if run.rng.random_bool(0.06) {
            pack(&mut run, &volume).await;
        }
        let which = run.rng.random_range(0..clients.len());
        let client = &clients[which];
        let op = run.op(which);
        let who = run.caller();
        let request = request(&who, op.clone());
        let number = if is_change(&request) { client.next_number() } else { 0 };
        let now = volume.now.load(Ordering::Relaxed);
        let reply = client.send(number, &request).await.unwrap();
        let at = || format!("seed {seed}, step {step}: {op:?} by {who:?} answered {reply:?}");
        if number != 0 && run.rng.random_bool(0.1) {
            // A retry, with other fresh ids and at another time, has the first answer.
            assert_eq!(client.send(number, &request).await.unwrap(), reply, "{}", at());
        }
        let id = match &reply {
            Reply::Entry(e) => e.attr.as_ref().unwrap().inode,
            Reply::Created(c) => c.attr.as_ref().unwrap().inode,
            _ => u64::MAX,
        };
        if let Reply::Allocated(a) = &reply {
            let place = a.place.as_ref().unwrap();
            assert_eq!(place.locations.len(), 2);
            run.chunks.push(Chunk { id: place.chunk, client: which, length: 0 });
            continue;
        }
        // A part of the source isn't sealed yet.
        if matches!((&op, &reply), (Op::CopyRange(_), Reply::Errno(EXDEV))) {
            continue;
        }
        let (op_done, reply_done) = as_far(&op, &reply);
        let expected = run.model.apply_within(&At { who: &who, now, id }, &op_done);
        if expected != Ok(Expect::Whatever) {
            assert_eq!(observed(&reply_done), expected, "{}", at());
        }
        if id != u64::MAX && !run.inodes.contains(&id) {
            run.inodes.push(id);
        }
        if step % 150 == 149 {
            let orphans = volume.orphans().await;
            let expected: Vec<u64> =
                run.model.nodes.iter().filter(|(_, n)| n.orphan).map(|(id, _)| *id).collect();
            assert_eq!(orphans, expected, "{}", at());
            let op = Op::Reap(Reap { inodes: orphans });
            assert!(matches!(volume.own(op.clone()).await, Reply::Reaped(_)));
            run.model.apply(&At { who: &root(), now, id: 0 }, &op).unwrap();
            compare_trees(client, &run.model).await;
            compare_trash(&volume, &run.model).await;
            compare_usage(&volume, &run.model).await;
            volume.check();
        }
    }
    compare_trees(&clients[0], &run.model).await;
    volume.check();
    (run.destaged, run.packed)
}

async fn compare_usage(volume: &Volume, model: &Model) {
    let directories = model.nodes.keys().map(|id| Account::Directory(*id));
    let classes = (1..=CLASSES.len() as u32).map(Account::Class);
    for account in directories.chain([0, 1000, 1001].map(Account::User)).chain(classes) {
        let tx = volume.store.inner.begin();
        assert_eq!(quota::usage(&tx, VOLUME, account).await.unwrap(), model.usage(account), "{account}");
    }
}

#[tokio::test]
async fn random_operations_equal_the_model_within_quotas() {
    for seed in 200..330 {
        run(seed, 1_200, if seed % 3 == 0 { 0.1 } else { 0.0 }, Besides::Quotas).await;
    }
}

#[tokio::test]
async fn random_operations_equal_the_model_with_classes() {
    for seed in 400..415 {
        run(seed, 1_200, if seed % 3 == 0 { 0.1 } else { 0.0 }, Besides::Classes).await;
    }
}

#[tokio::test]
async fn random_operations_equal_the_model() {
    let mut moved = (0, 0);
    for seed in 0..20 {
        let (destaged, packed) = run(seed, 2_000, 0.0, Besides::Nothing).await;
        moved = (moved.0 + destaged, moved.1 + packed);
    }
    assert!(moved.0 > 1 << 20 && moved.1 > 1 << 20, "{moved:?} bytes only");
}

#[tokio::test]
async fn random_operations_equal_the_model_with_conflicts_and_unknown_commits() {
    for seed in 100..115 {
        run(seed, 1_200, 0.15, Besides::Nothing).await;
    }
}
