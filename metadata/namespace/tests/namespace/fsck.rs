//! The check of the whole store: it finds nothing after operations, and each kind of planted damage, by its name.

use std::collections::BTreeMap;

use bytes::Bytes;
use mooseng_namespace::fsck::{Check, Finding, Kind, Part, Subject, compare_totals, repair};
use mooseng_namespace::touched::Touched;
use mooseng_schema::acl::{AclEntry, AclRecord};
use mooseng_schema::chunk::{self, ChunkRecord, ChunkUse};
use mooseng_schema::dead::{self, DeadRecord};
use mooseng_schema::directory::{self, Counter};
use mooseng_schema::dirent::{self, Cookie, DirentRecord};
use mooseng_schema::extent::{self, ExtentRecord};
use mooseng_schema::ids::{self, IdKind};
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::packable;
use mooseng_schema::staged::{self, Staged};
use mooseng_schema::statistics::{self, Statistic};
use mooseng_schema::{Record, number, orphan, xattr};
use mooseng_store::memory::MemoryStore;
use mooseng_store::{Store, Transaction};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{ChunkId, InodeId, VolumeId};

use crate::harness::*;

pub type Dump = BTreeMap<Bytes, Bytes>;

/// Whose records aren't of the volumes that a check is about isn't looked at; what can't be read at all is told nevertheless.
#[tokio::test]
async fn a_check_of_one_volume_says_nothing_of_another() {
    let other = VolumeId(7);
    let mut dump = Dump::new();
    let stray = InodeId::new(other, 5);
    dump.insert(orphan::key(stray).into(), orphan::OrphanRecord::default().to_value().into());
    dump.insert(location::key(ChunkId::new(other, 9)).into(), LocationRecord::default().to_value().into());
    let found = |volumes: &[VolumeId], dump: &Dump| -> Vec<Kind> {
        let mut check = Check::new(Part::ALL).of(volumes.iter().copied().collect());
        dump.iter().for_each(|(key, value)| check.take(key, value));
        let mut kinds: Vec<Kind> = check.finish().findings.into_iter().map(|f| f.kind).collect();
        kinds.sort_unstable();
        kinds
    };
    assert_eq!(found(&[VolumeId(0)], &dump), []);
    assert_eq!(found(&[VolumeId(0), other], &dump), [Kind::Leftover, Kind::ChunkPlace]);
    dump.insert(inode::key(stray).into(), Bytes::from_static(b"\xff"));
    assert_eq!(found(&[VolumeId(0)], &dump), [Kind::Record]);
}

/// All findings, from a check in so many parts.
pub fn check(dump: &Dump, parts: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut totals = Vec::new();
    let mut suspects = std::collections::BTreeSet::new();
    for part in 0..parts {
        let mut check = Check::new(Part::Of { part, parts });
        dump.iter().for_each(|(key, value)| check.take(key, value));
        let outcome = check.finish();
        assert_eq!(outcome.found, outcome.findings.len() as u64);
        findings.extend(outcome.findings);
        totals.push(outcome.totals);
        suspects.extend(outcome.suspects);
    }
    findings.extend(compare_totals(&totals));
    if !suspects.is_empty() {
        let mut check = Check::new(Part::Only(suspects));
        dump.iter().for_each(|(key, value)| check.take(key, value));
        findings.extend(check.finish().findings.into_iter().filter(|f| f.kind == Kind::Names));
    }
    findings
}

struct Planted {
    dump: Dump,
    file: InodeId,
    big: InodeId,
    chunk: ChunkId,
    dir: InodeId,
    below: InodeId,
}

/// A small tree with everything in it.
async fn tree() -> Planted {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let mkdir = async |parent, text| {
        let op = Op::Mkdir(Mkdir { parent, name: name(text), mode: 0o755, alone: false });
        attr(client.ask(op).await).inode
    };
    let dir = mkdir(ROOT, "dir").await;
    let below = mkdir(dir, "below").await;
    let file = client.create(dir, "file").await;
    client.write(file, 0, &b"inline bytes".repeat(500)).await;
    for i in 0..20 {
        let op = Op::Link(Link { inode: file, new_parent: below, new_name: name(&format!("name {i}")) });
        client.ask(op).await;
    }
    client.ask(Op::SetXattr(SetXattr { inode: file, name: name("user.x"), ..Default::default() })).await;
    let big = client.create(dir, "big").await;
    let Reply::Allocated(allocated) =
        client.ask(Op::AllocateChunk(AllocateChunk { inode: big, exclude: vec![] })).await
    else {
        panic!("no chunk")
    };
    let chunk = allocated.place.unwrap().chunk;
    let run = ChunkRun { chunk, chunk_offset: 0, length: 100 };
    let piece = WritePiece { offset: 0, data: Some(write_piece::Data::Run(run)) };
    client.ask(Op::Write(Write { inode: big, pieces: vec![piece], ..Default::default() })).await;
    volume.own(Op::SealChunk(SealChunk { chunk, acknowledged: 100, failed: vec![] })).await;
    let mut dump = volume.store.inner.dump();
    let next = Bytes::copy_from_slice(&number::encode(1_000));
    dump.insert(ids::key(IdKind::Inode, VolumeId(0)).into(), next.clone());
    dump.insert(ids::key(IdKind::Chunk, VolumeId(0)).into(), next);
    Planted {
        dump,
        file: InodeId(file),
        big: InodeId(big),
        chunk: ChunkId(chunk),
        dir: InodeId(dir),
        below: InodeId(below),
    }
}

impl Planted {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.dump.insert(key.into(), value.into());
    }

    fn remove(&mut self, key: &[u8]) {
        assert!(self.dump.remove(key).is_some(), "there was nothing to remove");
    }

    fn inode(&mut self, inode: InodeId, change: impl FnOnce(&mut InodeRecord)) {
        let key = inode::key(inode);
        let mut record = InodeRecord::from_value(&self.dump[key.as_slice()]).unwrap();
        change(&mut record);
        self.put(key, record.to_value());
    }

    fn chunk(&mut self, change: impl FnOnce(&mut ChunkRecord)) {
        let key = chunk::key(self.chunk);
        let mut record = ChunkRecord::from_value(&self.dump[key.as_slice()]).unwrap();
        change(&mut record);
        self.put(key, record.to_value());
    }

    fn entry(&mut self, directory: InodeId, text: &str) -> (Vec<u8>, DirentRecord) {
        let key = dirent::key(directory, Cookie::first(&HASH_KEY, text.as_bytes()));
        let entry = DirentRecord::from_value(&self.dump[key.as_slice()]).unwrap();
        (key, entry)
    }
}

type Change = fn(&mut Planted);
type Of = fn(&Planted) -> Subject;
/// Damage, what must be found of it, and with what.
type Damage = (&'static str, Change, Kind, Of);

fn damages() -> Vec<Damage> {
    let file: Of = |p| Subject::Inode(p.file);
    let big: Of = |p| Subject::Inode(p.big);
    let dir: Of = |p| Subject::Inode(p.dir);
    let in_chunk: Of = |p| Subject::Chunk(p.chunk, Some(p.big));
    let volume: Of = |_| Subject::Volume(VolumeId(0));
    vec![
        (
            "a value is torn",
            |p| p.put(inode::key(p.file), vec![1, 0xff]),
            Kind::Record,
            |p| Subject::Key(inode::key(p.file).into()),
        ),
        (
            "an inode is lost",
            |p| p.remove(&inode::key(p.big)),
            Kind::EntryDangling,
            |p| Subject::Entry(p.dir, name("big")),
        ),
        ("what is left of it", |p| p.remove(&inode::key(p.big)), Kind::Leftover, big),
        (
            "an entry of another kind",
            |p| {
                let (key, entry) = p.entry(p.dir, "file");
                p.put(key, DirentRecord { kind: FileKind::Fifo as u32, ..entry }.to_value());
            },
            Kind::EntryKind,
            |p| Subject::Entry(p.dir, name("file")),
        ),
        (
            "an entry in the wrong place",
            |p| {
                let (key, entry) = p.entry(p.dir, "file");
                p.remove(&key);
                p.put(dirent::key(p.dir, Cookie(77 << 8)), entry.to_value());
            },
            Kind::EntryPlace,
            |p| Subject::Entry(p.dir, name("file")),
        ),
        (
            "a name twice",
            |p| {
                let (_, entry) = p.entry(p.dir, "file");
                let cookie = Cookie(Cookie::first(&HASH_KEY, b"file").0 + 1);
                p.put(dirent::key(p.dir, cookie), entry.to_value());
            },
            Kind::EntryPlace,
            |p| Subject::Entry(p.dir, name("file")),
        ),
        (
            "an entry is lost",
            |p| {
                let (key, _) = p.entry(p.dir, "file");
                p.remove(&key);
            },
            Kind::Names,
            file,
        ),
        ("a name is forgotten", |p| p.inode(p.file, |r| drop(r.links.pop())), Kind::Names, file),
        (
            "a further name is forgotten",
            |p| {
                let key = inode::link_key(p.file, p.below, b"name 19");
                p.remove(&key);
            },
            Kind::Names,
            file,
        ),
        ("names are counted wrongly", |p| p.inode(p.file, |r| r.nlink += 1), Kind::Links, file),
        (
            "entries are counted wrongly",
            |p| p.put(directory::key(p.dir, Counter::Entries), number::encode(7).to_vec()),
            Kind::Entries,
            dir,
        ),
        (
            "subdirectories are counted wrongly",
            |p| p.put(directory::key(p.dir, Counter::Subdirectories), number::encode(0).to_vec()),
            Kind::Entries,
            dir,
        ),
        ("an attribute is lost", |p| p.remove(&xattr::key(p.file, b"user.x")), Kind::Xattrs, file),
        (
            "a list without a mask",
            |p| {
                let entry = AclEntry { id: 7, permissions: 7 };
                let list = AclRecord { users: vec![entry], ..Default::default() };
                p.inode(p.dir, |r| r.default_acl = Some(Box::new(list)));
            },
            Kind::Acl,
            dir,
        ),
        (
            "a file that hands a list down",
            |p| p.inode(p.file, |r| r.default_acl = Some(Box::default())),
            Kind::Acl,
            file,
        ),
        ("bytes are counted wrongly", |p| p.inode(p.big, |r| r.allocated = 5), Kind::Allocated, big),
        ("an extent is lost", |p| p.remove(&extent::key(p.big, 0)), Kind::Allocated, big),
        ("its use is counted", |p| p.remove(&extent::key(p.big, 0)), Kind::ChunkUse, in_chunk),
        (
            "staged pieces are counted wrongly",
            |p| p.put(staged::key(p.big), Staged { bytes: 9, pieces: 1 }.encode().to_vec()),
            Kind::Staged,
            big,
        ),
        (
            "a staged piece is listed that isn't there",
            |p| p.put(staged::piece_key(p.big, 70_000), vec![]),
            Kind::StagedList,
            big,
        ),
        (
            "a packable piece is listed that isn't there",
            |p| p.put(packable::key(p.big, 4096), vec![]),
            Kind::PackableList,
            big,
        ),
        ("a packable piece isn't listed", |p| p.remove(&packable::key(p.file, 0)), Kind::PackableList, file),
        ("a living file is called an orphan", |p| p.inode(p.file, |r| r.orphan = true), Kind::Orphan, file),
        ("a mark without an orphan", |p| p.put(orphan::key(p.file), vec![1]), Kind::Orphan, file),
        ("a mark of dead extents", |p| p.put(orphan::trim_key(p.big), vec![]), Kind::Trim, big),
        (
            "extents overlap",
            |p| {
                let over =
                    ExtentRecord { chunk: p.chunk.0, chunk_offset: 0, length: 50, ..Default::default() };
                p.put(extent::key(p.big, 50), over.to_value());
            },
            Kind::Overlap,
            big,
        ),
        ("an extent behind the end", |p| p.inode(p.big, |r| r.size = 99), Kind::Beyond, big),
        ("an empty extent", |p| p.put(extent::key(p.big, 0), vec![1]), Kind::Beyond, big),
        (
            "a chunk is lost",
            |p| {
                p.remove(&chunk::key(p.chunk));
                p.remove(&location::key(p.chunk));
            },
            Kind::ChunkMissing,
            in_chunk,
        ),
        ("a location is left", |p| p.remove(&chunk::key(p.chunk)), Kind::ChunkPlace, in_chunk),
        ("a chunk is short", |p| p.chunk(|r| r.length = 99), Kind::ChunkShort, in_chunk),
        (
            "a use is counted wrongly",
            |p| {
                let used = ChunkUse { extents: 2, bytes: 100 };
                p.put(chunk::reference_key(p.chunk, p.big), used.to_value().to_vec());
            },
            Kind::ChunkUse,
            in_chunk,
        ),
        ("a location is lost", |p| p.remove(&location::key(p.chunk)), Kind::ChunkPlace, in_chunk),
        (
            "a location without copies",
            |p| p.put(location::key(p.chunk), LocationRecord::default().to_value()),
            Kind::ChunkPlace,
            in_chunk,
        ),
        (
            "a living chunk is called dead",
            |p| p.put(dead::key(p.chunk), DeadRecord::default().to_value()),
            Kind::ChunkPlace,
            in_chunk,
        ),
        (
            "an id that wasn't given",
            |p| p.put(ids::key(IdKind::Inode, VolumeId(0)), number::encode(2).to_vec()),
            Kind::IdUngiven,
            volume,
        ),
        (
            "a chunk's id that wasn't given",
            |p| p.put(ids::key(IdKind::Chunk, VolumeId(0)), number::encode(p.chunk.0).to_vec()),
            Kind::IdUngiven,
            volume,
        ),
        (
            "a total is wrong",
            |p| p.put(statistics::key(InodeId(7), Statistic::Inodes), number::encode(99).to_vec()),
            Kind::Statistics,
            volume,
        ),
        (
            "a total of bytes is wrong",
            |p| p.put(statistics::key(InodeId(7), Statistic::Bytes), number::encode(99).to_vec()),
            Kind::Statistics,
            volume,
        ),
        (
            "a directory that isn't one",
            |p| p.inode(p.below, |r| r.kind = FileKind::Regular as u32),
            Kind::EntryParent,
            |p| Subject::Inode(p.below),
        ),
        (
            "a storage class that there isn't",
            |p| {
                let dir = p.dir;
                p.inode(dir, |r| r.storage_class = 7);
            },
            Kind::ClassUnknown,
            dir,
        ),
        (
            "a volume where there are entries",
            |p| {
                let dir = p.dir;
                p.inode(dir, |r| r.joined = 3);
            },
            Kind::Joined,
            dir,
        ),
        (
            "a volume at a file",
            |p| {
                let file = p.file;
                p.inode(file, |r| r.joined = 3);
            },
            Kind::Joined,
            |p| Subject::Inode(p.file),
        ),
        (
            "a circle of directories",
            |p| {
                let below = p.below;
                p.inode(p.dir, |r| r.links[0].parent = below.0);
            },
            Kind::Unreachable,
            dir,
        ),
    ]
}

#[tokio::test]
async fn planted_damage_is_found_and_named() {
    assert_eq!(check(&tree().await.dump, 1), []);
    for (what, damage, kind, subject) in damages() {
        let mut planted = tree().await;
        damage(&mut planted);
        let expected = subject(&planted);
        for parts in [1, 3] {
            let found = check(&planted.dump, parts);
            assert!(found.iter().any(|f| f.kind == kind && f.subject == expected), "{what}: {found:#?}");
        }
    }
}

/// What is repaired is found no more, and nothing else is touched.
#[tokio::test]
async fn counters_are_set_right() {
    let mut repaired = 0;
    for (what, damage, ..) in damages() {
        let mut planted = tree().await;
        damage(&mut planted);
        let found = check(&planted.dump, 1);
        let store = MemoryStore::new();
        let tx = store.begin();
        planted.dump.iter().for_each(|(key, value)| tx.set(key, value));
        tx.commit().await.unwrap();
        let mut facts = Touched::default();
        for fix in found.iter().filter_map(|f| f.fix) {
            repaired += 1;
            let tx = store.begin();
            assert!(repair(&tx, &fix, &facts).await.unwrap(), "{what}: {fix:?}");
            tx.commit().await.unwrap();
            facts = Touched::default();
        }
        let kept: Vec<Finding> = found.into_iter().filter(|f| f.fix.is_none()).collect();
        assert_eq!(check(&store.dump(), 1), kept, "{what}");
    }
    assert!(repaired > 10, "only {repaired}");
}

#[test]
fn kinds_have_names_of_their_own_and_advice() {
    let names: std::collections::BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(names.len(), Kind::ALL.len());
    assert!(Kind::ALL.iter().all(|kind| kind.advice().len() > 10));
}
