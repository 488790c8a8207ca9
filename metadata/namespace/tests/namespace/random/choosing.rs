//! What is done next, of anything that clients may do, and to what.

use bytes::Bytes;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::Run;
use crate::harness::*;
use crate::model_acl;

impl Run {
    /// A place in a file: often behind what always stays inline.
    fn place(&mut self) -> u64 {
        let from = if self.rng.random_bool(0.4) { 60_000 } else { 0 };
        self.rng.random_range(from..from + 60_000)
    }

    pub(super) fn inode(&mut self) -> u64 {
        *self.inodes.choose(&mut self.rng).unwrap()
    }

    pub(super) fn directory(&mut self) -> u64 {
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
    pub(super) fn trashed(&mut self) -> u64 {
        let nodes = &self.model.nodes;
        let trashed: Vec<u64> =
            nodes.iter().filter(|(_, n)| n.trash_until.is_some()).map(|(id, _)| *id).collect();
        if trashed.is_empty() || self.rng.random_bool(0.05) {
            return self.inode();
        }
        *trashed.choose(&mut self.rng).unwrap()
    }

    pub(super) fn file(&mut self) -> u64 {
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

    pub(super) fn name(&mut self) -> Bytes {
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

    pub(super) fn caller(&mut self) -> Caller {
        let mut caller = match self.rng.random_range(0..4) {
            0 | 1 => root(),
            2 => user(1000, 100, &[200]),
            _ => user(1001, 101, &[]),
        };
        caller.umask = *[0, 0o022, 0o077].choose(&mut self.rng).unwrap();
        caller.kernel_checked = self.rng.random_bool(0.2);
        caller
    }

    pub(super) fn maybe<V>(&mut self, share: f64, value: impl FnOnce(&mut Self) -> V) -> Option<V> {
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

    pub(super) fn op(&mut self, client: usize) -> Op {
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
