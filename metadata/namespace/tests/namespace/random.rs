//! Random sequences of operations by several clients, with retries and faults, against the model.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use mooseng_namespace::is_change;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::harness::*;
use crate::model::{At, EXDEV, Expect, Model};

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
}

impl Run {
    fn inode(&mut self) -> u64 {
        *self.inodes.choose(&mut self.rng).unwrap()
    }

    fn directory(&mut self) -> u64 {
        let directories: Vec<u64> = self
            .inodes
            .iter()
            .copied()
            .filter(|i| {
                self.model.nodes.get(i).is_some_and(|n| n.kind == FileKind::Directory as i32 && !n.removed)
            })
            .collect();
        if self.rng.random_bool(0.05) { self.inode() } else { *directories.choose(&mut self.rng).unwrap() }
    }

    fn file(&mut self) -> u64 {
        let files: Vec<u64> = self
            .inodes
            .iter()
            .copied()
            .filter(|i| self.model.nodes.get(i).is_some_and(|n| n.kind == FileKind::Regular as i32))
            .collect();
        if files.is_empty() || self.rng.random_bool(0.05) {
            return self.inode();
        }
        *files.choose(&mut self.rng).unwrap()
    }

    fn name(&mut self) -> Bytes {
        match self.rng.random_range(0..200) {
            0 => name("."),
            1 => name(".."),
            2 => Bytes::new(),
            3 => vec![b'x'; 256].into(),
            4 => vec![b'y'; 255].into(),
            5 => name("a/b"),
            _ => name(["a", "b", "c", "d", "e", "f", "g"].choose(&mut self.rng).unwrap()),
        }
    }

    fn mode(&mut self) -> u32 {
        *[0o644, 0o600, 0o755, 0o777, 0o6755, 0o2770, 0o1777, 0o2775, 0o4711, 0o077]
            .choose(&mut self.rng)
            .unwrap()
    }

    fn caller(&mut self) -> Caller {
        let mut caller = match self.rng.random_range(0..4) {
            0 | 1 => root(),
            2 => user(1000, 100, &[200]),
            _ => user(1001, 101, &[]),
        };
        caller.umask = *[0, 0o022, 0o077].choose(&mut self.rng).unwrap();
        caller.kernel_checked = self.rng.random_bool(0.2);
        caller
    }

    fn maybe<V>(&mut self, share: f64, value: impl FnOnce(&mut Self) -> V) -> Option<V> {
        if self.rng.random_bool(share) { Some(value(self)) } else { None }
    }

    fn xattr_name(&mut self) -> Bytes {
        name(
            ["user.a", "user.b", "trusted.t", "security.capability", "system.posix_acl_access", "weird"]
                .choose(&mut self.rng)
                .unwrap(),
        )
    }

    fn set_attr(&mut self) -> SetAttr {
        let size_too = self.rng.random_bool(0.3);
        let inode = if size_too { self.file() } else { self.inode() };
        SetAttr {
            inode,
            mode: self.maybe(0.3, Self::mode),
            uid: self.maybe(0.15, |s| *[0, 1000, 1001].choose(&mut s.rng).unwrap()),
            gid: self.maybe(0.15, |s| *[0, 100, 200].choose(&mut s.rng).unwrap()),
            size: if size_too { Some(self.rng.random_range(0..70_000)) } else { None },
            atime_ns: self.maybe(0.1, |s| s.rng.random_range(-1_000..1_000_000)),
            mtime_ns: self.maybe(0.1, |s| s.rng.random_range(-1_000..1_000_000)),
            atime_now: self.rng.random_bool(0.1),
            mtime_now: self.rng.random_bool(0.1),
            kill_suidgid: self.rng.random_bool(0.1),
            by_handle: self.rng.random_bool(0.3),
            changed_ns: None,
        }
    }

    fn write(&mut self, client: usize) -> Write {
        let mut pieces = Vec::new();
        let mut offset = self.rng.random_range(0..60_000);
        for _ in 0..self.rng.random_range(1..4) {
            let length = *[1, 100, 4096, 10_000].choose(&mut self.rng).unwrap();
            let mine = self.chunks.iter_mut().rfind(|c| c.client == client);
            let data = match mine {
                Some(chunk) if self.rng.random_bool(0.5) => {
                    let run = ChunkRun { chunk: chunk.id, chunk_offset: chunk.length, length };
                    chunk.length += length;
                    write_piece::Data::Run(run)
                }
                _ => {
                    let byte: u8 = self.rng.random();
                    write_piece::Data::Inline((0..length).map(|i| byte.wrapping_add(i as u8)).collect())
                }
            };
            pieces.push(WritePiece { offset, data: Some(data) });
            // Mostly side by side, now and then with a hole or over each other.
            offset = match self.rng.random_range(0..6) {
                0 => offset + length + 500,
                1 => offset + length / 2,
                _ => offset + length,
            };
        }
        let inode = self.file();
        Write {
            inode,
            pieces,
            append: self.rng.random_bool(0.3),
            kill_suidgid: self.rng.random_bool(0.2),
            ..Write::default()
        }
    }

    fn fallocate(&mut self) -> Fallocate {
        Fallocate {
            inode: self.file(),
            offset: self.rng.random_range(0..60_000),
            length: *[0, 1, 100, 4_096, 10_000, 40_000].choose(&mut self.rng).unwrap(),
            zero: self.rng.random_bool(0.8),
            keep_size: self.rng.random_bool(0.7),
            kill_suidgid: self.rng.random_bool(0.2),
        }
    }

    fn copy_range(&mut self) -> CopyRange {
        CopyRange {
            source: self.file(),
            source_offset: self.rng.random_range(0..60_000),
            inode: self.file(),
            offset: self.rng.random_range(0..60_000),
            length: *[0, 1, 100, 4_096, 10_000, 40_000].choose(&mut self.rng).unwrap(),
            kill_suidgid: self.rng.random_bool(0.2),
        }
    }

    /// Seals a chunk at what has been appended to it.
    fn seal(&mut self, client: usize) -> Option<Op> {
        let place = self.chunks.iter().rposition(|c| c.client == client)?;
        let chunk = self.chunks.remove(place);
        Some(Op::SealChunk(SealChunk { chunk: chunk.id, acknowledged: chunk.length, failed: vec![] }))
    }

    fn op(&mut self, client: usize) -> Op {
        match self.rng.random_range(0..110) {
            100..105 => Op::CopyRange(self.copy_range()),
            105..110 => match self.seal(client) {
                Some(seal) => seal,
                None => Op::AllocateChunk(AllocateChunk { inode: self.file(), exclude: vec![] }),
            },
            0..5 => Op::Lookup(Lookup { parent: self.directory(), name: self.name() }),
            5..8 => Op::GetAttr(GetAttr { inode: self.inode() }),
            8..10 => Op::ReadLink(ReadLink { inode: self.inode() }),
            10..13 => Op::Access(Access { inode: self.inode(), mask: self.rng.random_range(0..8) }),
            13..15 => {
                let flags = *[0, 1, 2, 0o1001, 0o2002].choose(&mut self.rng).unwrap();
                Op::Open(Open { inode: self.inode(), flags })
            }
            15..18 => {
                let whence = [SeekWhence::Data, SeekWhence::Hole].choose(&mut self.rng).copied().unwrap();
                let offset = self.rng.random_range(0..80_000);
                Op::Seek(Seek { inode: self.file(), offset, whence: whence as i32 })
            }
            18..20 => Op::GetXattr(GetXattr { inode: self.inode(), name: self.xattr_name() }),
            20..21 => Op::ListXattr(ListXattr { inode: self.inode() }),
            21..28 => Op::SetAttr(self.set_attr()),
            28..39 => Op::Create(Create {
                parent: self.directory(),
                name: self.name(),
                mode: self.mode(),
                exclusive: self.rng.random_bool(0.4),
                truncate: self.rng.random_bool(0.4),
            }),
            39..42 => {
                let kind = *[
                    FileKind::Fifo,
                    FileKind::CharDevice,
                    FileKind::Regular,
                    FileKind::Socket,
                    FileKind::Directory,
                ]
                .choose(&mut self.rng)
                .unwrap();
                Op::Mknod(Mknod {
                    parent: self.directory(),
                    name: self.name(),
                    kind: kind as i32,
                    mode: self.mode(),
                    rdev: 9,
                })
            }
            42..51 => {
                Op::Mkdir(Mkdir { parent: self.directory(), name: self.name(), mode: self.mode() | 0o300 })
            }
            51..54 => {
                Op::Symlink(Symlink { parent: self.directory(), name: self.name(), target: name("to/where") })
            }
            54..59 => {
                Op::Link(Link { inode: self.inode(), new_parent: self.directory(), new_name: self.name() })
            }
            59..65 => Op::Unlink(Unlink { parent: self.directory(), name: self.name() }),
            65..70 => Op::Rmdir(Rmdir { parent: self.directory(), name: self.name() }),
            70..84 => {
                let exchange = self.rng.random_bool(0.25);
                Op::Rename(Rename {
                    parent: self.directory(),
                    name: self.name(),
                    new_parent: self.directory(),
                    new_name: self.name(),
                    no_replace: self.rng.random_bool(0.1),
                    exchange,
                })
            }
            84..87 => Op::SetXattr(SetXattr {
                inode: self.inode(),
                name: self.xattr_name(),
                value: name("value"),
                create: self.rng.random_bool(0.2),
                replace: self.rng.random_bool(0.2),
            }),
            87..88 => Op::RemoveXattr(RemoveXattr { inode: self.inode(), name: self.xattr_name() }),
            88..94 => Op::Write(self.write(client)),
            94..96 => Op::Fallocate(self.fallocate()),
            96..97 => {
                let touches = (0..3)
                    .map(|_| AtimeTouch {
                        inode: self.inode(),
                        atime_ns: self.rng.random_range(0..2_000_000),
                    })
                    .collect();
                Op::TouchAtime(TouchAtime { touches })
            }
            _ => Op::AllocateChunk(AllocateChunk { inode: self.file(), exclude: vec![] }),
        }
    }
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

async fn run(seed: u64, steps: usize, faults: f64) {
    let volume = Volume::with_faults(seed, faults).await;
    let clients = [volume.client(1).await, volume.client(2).await, volume.client(3).await];
    let mut run =
        Run { rng: SmallRng::seed_from_u64(seed), model: Model::new(), inodes: vec![ROOT], chunks: vec![] };
    for step in 0..steps {
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
        let expected = run.model.apply(&At { who: &who, now, id }, &op_done);
        if expected != Ok(Expect::Whatever) {
            assert_eq!(observed(&reply_done), expected, "{}", at());
        }
        if id != u64::MAX && !run.inodes.contains(&id) {
            run.inodes.push(id);
        }
        if step % 150 == 149 {
            let orphans = volume.orphans().await;
            let expected: Vec<u64> =
                run.model.nodes.iter().filter(|(_, n)| n.removed).map(|(id, _)| *id).collect();
            assert_eq!(orphans, expected, "{}", at());
            let op = Op::Reap(Reap { inodes: orphans });
            assert!(matches!(volume.own(op.clone()).await, Reply::Done(_)));
            run.model.apply(&At { who: &root(), now, id: 0 }, &op).unwrap();
            compare_trees(client, &run.model).await;
            volume.check();
        }
    }
    compare_trees(&clients[0], &run.model).await;
    volume.check();
}

#[tokio::test]
async fn random_operations_equal_the_model() {
    for seed in 0..20 {
        run(seed, 2_000, 0.0).await;
    }
}

#[tokio::test]
async fn random_operations_equal_the_model_with_conflicts_and_unknown_commits() {
    for seed in 100..115 {
        run(seed, 1_200, 0.15).await;
    }
}
