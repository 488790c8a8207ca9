//! Random sequences of operations by several clients, with retries and faults, against the model.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use mooseng_namespace::quota::{self, Account, QuotaRecord, State};
use mooseng_namespace::rewrite::Destaged;
use mooseng_namespace::touched::Touched;
use mooseng_namespace::{Errno, is_change, joins, trash};
use mooseng_schema::Record;
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_store::{Store, Transaction};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{InodeId, VolumeId};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::harness::*;
use crate::model::{At, EREMOTE, EXDEV, Expect, Model, Node};
use crate::model_acl;

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

impl Run {
    /// A place in a file: often behind what always stays inline.
    fn place(&mut self) -> u64 {
        let from = if self.rng.random_bool(0.4) { 60_000 } else { 0 };
        self.rng.random_range(from..from + 60_000)
    }

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

    /// Mostly a file in the trash.
    fn trashed(&mut self) -> u64 {
        let nodes = &self.model.nodes;
        let trashed: Vec<u64> =
            nodes.iter().filter(|(_, n)| n.trash_until.is_some()).map(|(id, _)| *id).collect();
        if trashed.is_empty() || self.rng.random_bool(0.05) {
            return self.inode();
        }
        *trashed.choose(&mut self.rng).unwrap()
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
            ["user.a", "user.b", "trusted.t", "security.capability", "system.sockprotoname", "weird"]
                .choose(&mut self.rng)
                .unwrap(),
        )
    }

    /// An access control list, mostly a good one.
    fn list(&mut self) -> Bytes {
        if self.rng.random_bool(0.1) {
            return name(if self.rng.random_bool(0.5) { "value" } else { "" });
        }
        let mut bits = || *[7, 7, 6, 5, 4, 0].choose(&mut self.rng).unwrap();
        let (classes, of_user, of_group) = ([bits(), bits(), bits(), bits()], bits(), bits());
        let user = self.maybe(0.4, |s| (*[1000, 1001, 7].choose(&mut s.rng).unwrap(), of_user));
        let group = self.maybe(0.4, |s| (*[100, 101, 200].choose(&mut s.rng).unwrap(), of_group));
        model_acl::to_value(&model_acl::list(classes, self.rng.random_bool(0.2), user, group)).into()
    }

    fn list_name(&mut self) -> Bytes {
        Bytes::from_static(if self.rng.random_bool(0.5) { model_acl::ACCESS } else { model_acl::DEFAULT })
    }

    fn list_op(&mut self) -> Op {
        match self.rng.random_range(0..10) {
            0 | 1 => Op::GetXattr(GetXattr { inode: self.inode(), name: self.list_name() }),
            2 => Op::RemoveXattr(RemoveXattr { inode: self.inode(), name: self.list_name() }),
            _ => {
                let (name, value) = (self.list_name(), self.list());
                let inode = if name == model_acl::DEFAULT { self.directory() } else { self.inode() };
                Op::SetXattr(SetXattr { inode, name, value, ..Default::default() })
            }
        }
    }

    fn set_attr(&mut self) -> SetAttr {
        let size_too = self.rng.random_bool(0.3);
        let inode = if size_too { self.file() } else { self.inode() };
        SetAttr {
            inode,
            mode: self.maybe(0.3, Self::mode),
            uid: self.maybe(0.15, |s| *[0, 1000, 1001].choose(&mut s.rng).unwrap()),
            gid: self.maybe(0.15, |s| *[0, 100, 200].choose(&mut s.rng).unwrap()),
            size: if size_too { Some(self.rng.random_range(0..130_000)) } else { None },
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
        let mut offset = self.place();
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
            offset: self.place(),
            length: *[0, 1, 100, 4_096, 10_000, 40_000].choose(&mut self.rng).unwrap(),
            zero: self.rng.random_bool(0.8),
            keep_size: self.rng.random_bool(0.7),
            kill_suidgid: self.rng.random_bool(0.2),
        }
    }

    fn copy_range(&mut self) -> CopyRange {
        CopyRange {
            source: self.file(),
            source_offset: self.place(),
            inode: self.file(),
            offset: self.place(),
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
        match self.rng.random_range(0..if self.lists { 116 } else { 110 }) {
            110..116 => self.list_op(),
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
            42..51 => Op::Mkdir(Mkdir {
                parent: self.directory(),
                name: self.name(),
                mode: self.mode() | 0o300,
                alone: false,
            }),
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
const RETENTION_NS: i64 = RETENTION_S * 1_000_000_000;

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

/// What an administrator does with the trash. The store's faults are left out: these changes aren't retried.
async fn administer(run: &mut Run, volume: &Volume, at: &str) {
    let tx = volume.store.inner.begin();
    let now = volume.now.fetch_add(1, Ordering::Relaxed);
    let id = run.trashed();
    match run.rng.random_range(0..10) {
        0..5 => {
            let to = if run.rng.random_bool(0.5) { Some((run.directory(), run.name())) } else { None };
            // A path leads to a living directory only. With a slash in the name it would lead somewhere else.
            let leads = |parent: &u64| run.model.nodes.get(parent).is_some_and(Node::is_living_directory);
            let to = to.filter(|(parent, name)| {
                leads(parent) && !name.contains(&b'/') && run.model.path(*parent).len() < 3_000
            });
            let path = to.as_ref().map(|(parent, name)| trash::joined(&run.model.path(*parent), name));
            let touched = Touched::default();
            let restored = trash::restore(&tx, &touched, now, InodeId(id), path.as_deref()).await.unwrap();
            let sane = |name: &Bytes| !name.is_empty() && name.len() < 256 && !name.starts_with(b".");
            if to.as_ref().is_some_and(|(_, name)| !sane(name)) {
                assert!(restored.is_err(), "{at}: {restored:?}");
                return;
            }
            let expected = run.model.restore(id, to.as_ref().map(|(parent, name)| (*parent, &name[..])), now);
            let is = restored.as_ref().map(|_| ()).map_err(|refused| Errno::from(refused).0);
            assert_eq!(is, expected, "{at}: inode {id} to {path:?}: {restored:?}");
            if restored.is_err() {
                return;
            }
            assert!(touched.into_facts().len() >= 3, "{at}: the file, the entry and the directory change");
        }
        5..7 => {
            let purged = trash::purge(&tx, now, InodeId(id)).await.unwrap().unwrap_or_default();
            assert_eq!(purged.files, run.model.purge(|other, _| other == id), "{at}");
        }
        7 => {
            let deleted_ns = now - run.rng.random_range(0..200);
            let mut purged = trash::Purged::default();
            let (mut after, mut first) = (None, true);
            while first || after.is_some() {
                let tx = volume.store.inner.begin();
                let (part, next) = trash::purge_page(&tx, VOLUME, now, deleted_ns, after, 3).await.unwrap();
                tx.commit().await.unwrap();
                purged.add(part);
                (after, first) = (next, false);
            }
            assert_eq!(purged.files, run.model.purge(|_, n| n.deletion.2 <= deleted_ns), "{at}");
            return;
        }
        8 => {
            let then = now + RETENTION_NS - run.rng.random_range(0..300);
            let expired = trash::expire(&tx, VOLUME, then, 1_000).await.unwrap();
            assert_eq!(expired as u64, run.model.purge(|_, n| n.trash_until <= Some(then)), "{at}");
        }
        _ => {
            run.model.retention_s = if run.rng.random_bool(0.8) { RETENTION_S } else { 0 };
            trash::set_terms(&tx, VOLUME, Some(run.model.retention_s as u64), None).await.unwrap();
            assert_eq!(trash::terms(&tx, VOLUME).await.unwrap().retention_s as i64, run.model.retention_s);
        }
    }
    tx.commit().await.unwrap();
}

/// What the rewriter does with staged data: copies what is there, and swaps it some time later. Nobody sees a difference.
async fn destage(run: &mut Run, volume: &Volume) {
    if run.destaging.is_empty() || run.rng.random_bool(0.5) {
        let inode = run.file();
        let max = run.rng.random_range(1..6);
        run.destaging.extend(volume.copy_staged(inode, max).await);
        return;
    }
    let i = run.rng.random_range(0..run.destaging.len());
    let (chunk, moved) = run.destaging.swap_remove(i);
    run.destaged += volume.destage(chunk, &moved).await.bytes;
}

/// Likewise with what several files have packable.
async fn pack(run: &mut Run, volume: &Volume) {
    if run.packing.is_empty() || run.rng.random_bool(0.5) {
        let inodes: BTreeSet<u64> = (0..run.rng.random_range(1..8)).map(|_| run.file()).collect();
        let inodes: Vec<u64> = inodes.into_iter().collect();
        let class = run.model.nodes.get(&inodes[0]).map_or(0, |node| node.class);
        run.packing.extend(volume.copy_packable(&inodes, class).await);
        return;
    }
    let i = run.rng.random_range(0..run.packing.len());
    let (chunk, moved) = run.packing.swap_remove(i);
    run.packed += volume.pack(chunk, &moved).await.bytes;
}

/// Joins a volume at some directory, or lets go of one.
async fn join(run: &mut Run, volume: &Volume, at: &str) {
    let tx = volume.store.inner.begin();
    let touched = Touched::default();
    let now = volume.now.fetch_add(1, Ordering::Relaxed);
    let joined: Vec<u64> =
        run.model.nodes.iter().filter(|(_, node)| node.joined != 0).map(|(id, _)| *id).collect();
    if let Some(id) = joined.choose(&mut run.rng)
        && (joined.len() > 5 || run.rng.random_bool(0.5))
    {
        let node = run.model.nodes.get_mut(id).unwrap();
        let (other, of) = (VolumeId(u16::MAX), VolumeId(node.joined as u16));
        assert!(!joins::let_go(&tx, &touched, now, InodeId(*id), other).await.unwrap(), "{at}");
        assert!(joins::let_go(&tx, &touched, now, InodeId(*id), of).await.unwrap(), "{at}");
        (node.joined, node.times[2]) = (0, now);
    } else {
        let id = run.directory();
        run.joined += 1;
        let again = run.model.nodes.get(&id).map(|node| node.joined).filter(|_| run.rng.random_bool(0.5));
        let number = again.filter(|number| *number != 0).unwrap_or(run.joined);
        let of = VolumeId(number as u16);
        let may = joins::may_join(&tx, InodeId(id), Some(of)).await.unwrap();
        let is = joins::join(&tx, &touched, now, InodeId(id), of).await.unwrap();
        assert_eq!(may.is_ok(), is.is_ok(), "{at}: {may:?}, {is:?}");
        assert_eq!(is.clone().ok(), run.model.join(id, number, now), "{at}: volume {of} at {id}: {is:?}");
    }
    tx.commit().await.unwrap();
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

/// Storage classes, whose ids count from 1.
const CLASSES: [&str; 2] = ["one", "two"];

/// Assigns some inode a class, and has some chunk follow its files.
async fn classify(run: &mut Run, volume: &Volume) {
    let (inode, class) = (run.inode(), run.rng.random_range(0..=CLASSES.len()));
    let name = if class == 0 { "default" } else { CLASSES[class - 1] };
    let assigned = crate::classes::assign(volume, inode, name).await;
    match run.model.nodes.get_mut(&inode) {
        Some(node) if node.joined != 0 => assert!(assigned.is_err(), "inode {inode} has another volume"),
        Some(node) => {
            assert_eq!(assigned, Ok(node.class != class as u32), "inode {inode}, class {class}");
            node.class = class as u32;
        }
        None => assert!(assigned.is_err(), "inode {inode} is gone"),
    }
    if let Some(chunk) = run.chunks.choose(&mut run.rng) {
        let tx = volume.store.inner.begin();
        mooseng_namespace::classes::follow(&tx, mooseng_wire::ChunkId(chunk.id)).await.unwrap();
        tx.commit().await.unwrap();
    }
}

/// Who has quotas in the model's volume at present, with what of it.
async fn quotas(volume: &Volume) -> Vec<(Account, QuotaRecord)> {
    quota::list(&volume.store.inner.begin(), VOLUME, None, 1_000).await.unwrap()
}

/// What an administrator does with quotas, and a step of counting. Which inodes are marked by then the model learns from the store.
async fn limit(run: &mut Run, volume: &Volume) {
    let tx = volume.store.inner.begin();
    let touched = Touched::default();
    let all = quotas(volume).await;
    let account = match run.rng.random_range(0..4) {
        0 => Account::User(*[0, 1000, 1001].choose(&mut run.rng).unwrap()),
        _ => Account::Directory(run.directory()),
    };
    match run.rng.random_range(0..10) {
        0 | 1 => {
            let used = run.model.usage(account);
            let bytes = (used.bytes + run.rng.random_range(-10_000..60_000)).max(0) as u64;
            let inodes = (used.inodes + run.rng.random_range(-2..10)).max(0) as u64;
            let (bytes, inodes) = (run.maybe(0.8, |_| bytes), run.maybe(0.8, |_| inodes));
            drop(quota::set(&tx, &touched, 1, VOLUME, account, bytes, inodes).await.unwrap());
        }
        2 => {
            if let Some((account, _)) = all.choose(&mut run.rng) {
                quota::clear(&tx, &touched, VOLUME, *account).await.unwrap().unwrap();
            }
        }
        _ => {
            let directories = all.iter().filter_map(|(account, _)| match account {
                Account::Directory(id) => Some(InodeId(*id)),
                Account::User(_) | Account::Class(_) => None,
            });
            if let Some(id) = directories.collect::<Vec<_>>().choose(&mut run.rng) {
                let step = quota::step(&tx, &touched, *id, run.rng.random_range(1..4)).await.unwrap();
                if step == quota::Step::Done {
                    tx.commit().await.unwrap();
                    all_counted(run, volume, *id).await;
                    return learn(run, volume).await;
                }
            }
        }
    }
    assert!(touched.charges().is_empty(), "what is there is there");
    tx.commit().await.unwrap();
    learn(run, volume).await;
}

async fn learn(run: &mut Run, volume: &Volume) {
    let dump = volume.store.inner.dump();
    for (id, node) in &mut run.model.nodes {
        let record = InodeRecord::from_value(&dump[&inode::key(InodeId(*id))[..]]).unwrap();
        node.quota = record.quota;
    }
    let most = |max: Option<u64>| max.map_or(i64::MAX, |max| max as i64);
    let all = quotas(volume).await;
    let stay = all.iter().filter(|(_, record)| record.state() != State::Clearing);
    let of_directory = |account: Account| match account {
        Account::Directory(id) => Some(id),
        Account::User(_) | Account::Class(_) => None,
    };
    run.model.quotas = stay.filter_map(|(account, _)| of_directory(*account)).collect();
    let enforced = all.into_iter().filter(|(_, record)| record.state() == State::Enforced);
    run.model.limits =
        enforced.map(|(account, r)| (account, (most(r.bytes_max), most(r.inodes_max)))).collect();
}

/// A directory's quota is enforced: everything below counts for it, and nothing else that is named. Or it is gone, and nothing does.
async fn all_counted(run: &mut Run, volume: &Volume, directory: InodeId) {
    learn(run, volume).await;
    let all = quotas(volume).await;
    let model = &run.model;
    // The nearest directory above that has a quota; a quota's directory may get below another one while that is counted.
    let nearest = |mut id: u64| loop {
        if all.iter().any(|(account, r)| *account == Account::Directory(id) && r.state() != State::Clearing) {
            return id;
        }
        if id == ROOT {
            return 0;
        }
        id = model.nodes[&id].parent;
    };
    for (id, node) in model.nodes.iter().filter(|(_, node)| node.is_living_directory()) {
        let below = nearest(*id) == directory.0;
        assert_eq!(node.quota == directory.0, below, "directory {id} and the quota of {directory}");
        for child in node.entries.values().map(|child| &model.nodes[child]) {
            // What has names in two trees counts for one of them.
            let counts = child.kind == FileKind::Directory as i32 || child.names > 1;
            assert!(
                counts || (child.quota == directory.0) == below,
                "a file in {id} counts for {}, that one for {}, and {directory} is enforced or gone; {all:?}",
                child.quota,
                node.quota
            );
        }
    }
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
