//! Storage classes: made, changed, removed; inherited, assigned; followed by chunks.

use std::collections::BTreeMap;

use mooseng_namespace::classes::{self, Assigned, Change, Copied, Label, Refused, StorageClassRecord, Unfit};
use mooseng_namespace::quota::Usage;
use mooseng_namespace::touched::Touched;
use mooseng_namespace::{trash, upkeep};
use mooseng_schema::storage_class::CLUSTER_FIRST;
use mooseng_store::{Read, Store, Transaction};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{ChunkId, InodeId, VolumeId};

use crate::harness::*;
use crate::model::EXDEV;

const VOLUME: VolumeId = VolumeId(0);

pub fn class(name: &str, copies: u32) -> StorageClassRecord {
    let labels = vec![Label { key: "media".into(), value: "ssd".into() }];
    StorageClassRecord { name: name.into(), copies, min_copies: 1, labels, set_ns: 1, leaving: false }
}

pub async fn made(volume: &Volume, name: &str) -> u32 {
    let tx = volume.store.inner.begin();
    let id = classes::create(&tx, VOLUME, &class(name, 2)).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    id
}

pub async fn assign(volume: &Volume, inode: u64, name: &str) -> Result<bool, Refused> {
    let tx = volume.store.inner.begin();
    let assigned = classes::assign(&tx, &Touched::default(), InodeId(inode), name).await.unwrap();
    tx.commit().await.unwrap();
    assigned
}

async fn of(volume: &Volume, inode: u64) -> u32 {
    let tx = volume.store.inner.begin();
    classes::of_inode(&tx, InodeId(inode), Read::Snapshot).await.unwrap().unwrap()
}

async fn usage(volume: &Volume, class: u32) -> Usage {
    classes::usage(&volume.store.inner.begin(), VOLUME, class, Read::Snapshot).await.unwrap()
}

async fn remove(volume: &Volume, name: &str) -> Result<(), Refused> {
    let tx = volume.store.inner.begin();
    let removed = classes::remove(&tx, VOLUME, name).await.unwrap();
    tx.commit().await.unwrap();
    removed
}

#[tokio::test]
async fn classes_are_made_changed_and_removed() {
    let volume = Volume::new().await;
    let (fast, other) = (made(&volume, "fast").await, made(&volume, "other").await);
    assert_eq!((fast, other), (1, 2));
    let tx = volume.store.inner.begin();
    let again = classes::create(&tx, VOLUME, &class("fast", 3)).await.unwrap();
    assert_eq!(again, Err(Refused::Exists("fast".into())));
    assert_eq!(
        classes::create(&tx, VOLUME, &class("default", 3)).await.unwrap(),
        Err(Refused::Unfit(Unfit::Default))
    );
    let change = Change { copies: Some(3), labels: Some(vec![]), ..Change::default() };
    assert_eq!(classes::change(&tx, VOLUME, 7, "fast", &change).await.unwrap(), Ok(fast));
    let none = classes::change(&tx, VOLUME, 7, "none", &change).await.unwrap();
    assert_eq!(none, Err(Refused::NotThere("none".into())));
    let bad = Change { min_copies: Some(4), ..Change::default() };
    let bad = classes::change(&tx, VOLUME, 7, "fast", &bad).await.unwrap();
    assert_eq!(bad, Err(Refused::Unfit(Unfit::BadCopies { copies: 3, min_copies: 4 })));
    tx.commit().await.unwrap();
    let all = classes::list(&volume.store.inner.begin(), VOLUME, Read::Snapshot).await.unwrap();
    let changed = StorageClassRecord { copies: 3, labels: vec![], set_ns: 7, ..class("fast", 3) };
    assert_eq!(all, [(fast, changed), (other, class("other", 2))]);
    assert_eq!(remove(&volume, "default").await, Err(Refused::Unfit(Unfit::Default)));
    assert_eq!(remove(&volume, "other").await, Ok(()));
    assert_eq!(remove(&volume, "other").await, Err(Refused::NotThere("other".into())));
    // Chunks may remember the old one's id.
    assert_eq!(made(&volume, "other").await, 3);
    volume.check();
}

#[tokio::test]
async fn what_is_made_inherits_and_what_is_moved_keeps() {
    let volume = Volume::with_trash(0, 0.0, 1_000).await;
    let client = volume.client(1).await;
    let (fast, slow) = (made(&volume, "fast").await, made(&volume, "slow").await);
    let (d, e) = (client.mkdir(ROOT, "d").await, client.mkdir(ROOT, "e").await);
    let before = client.create(d, "before").await;
    assert_eq!(assign(&volume, d, "fast").await, Ok(true));
    assert_eq!(assign(&volume, d, "fast").await, Ok(false));
    assert_eq!(assign(&volume, d, "none").await, Err(Refused::NotThere("none".into())));
    assert_eq!(assign(&volume, 99, "fast").await, Err(Refused::NoInode));
    assert_eq!(assign(&volume, e, "slow").await, Ok(true));
    let inner = client.mkdir(d, "inner").await;
    let symlink = Symlink { parent: d, name: name("link"), target: name("x") };
    let link = attr(client.ask(Op::Symlink(symlink)).await).inode;
    let file = client.create(inner, "file").await;
    client.write(file, 0, &[1; 5_000]).await;
    for (inode, class) in [(before, 0), (d, fast), (inner, fast), (link, fast), (file, fast), (e, slow)] {
        assert_eq!(of(&volume, inode).await, class, "inode {inode}");
    }
    assert_eq!(usage(&volume, fast).await, Usage { bytes: 5_000, inodes: 4 });

    let moved = Rename {
        parent: inner,
        name: name("file"),
        new_parent: e,
        new_name: name("file"),
        ..Default::default()
    };
    assert_eq!(client.errno(Op::Rename(moved)).await, 0);
    let other_name = Link { inode: file, new_parent: ROOT, new_name: name("other") };
    assert_eq!(client.errno(Op::Link(other_name)).await, 0);
    assert_eq!(of(&volume, file).await, fast);
    // What is copied is shared only within a class.
    let copy = client.create(e, "copy").await;
    let range = CopyRange { source: file, inode: copy, length: 5_000, ..Default::default() };
    assert_eq!(client.errno(Op::CopyRange(range)).await, EXDEV);

    // A class is in use for as long as a file in the trash has it.
    for (parent, text) in [(ROOT, "other"), (e, "file")] {
        assert_eq!(client.errno(Op::Unlink(Unlink { parent, name: name(text) })).await, 0);
    }
    for (inode, path) in [(d, "/d"), (inner, "/d/inner"), (link, "/d/link")] {
        let tx = volume.store.inner.begin();
        let at = upkeep::inode_at(&tx, VOLUME, path.as_bytes()).await.unwrap();
        assert_eq!(at, Some(InodeId(inode)));
        assert_eq!(assign(&volume, inode, "default").await, Ok(true));
    }
    assert_eq!(usage(&volume, fast).await, Usage { bytes: 5_000, inodes: 1 });
    assert_eq!(remove(&volume, "fast").await, Err(Refused::InUse { name: "fast".into(), inodes: 1 }));
    let tx = volume.store.inner.begin();
    trash::restore(&tx, &Touched::default(), 5, InodeId(file), None).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    assert_eq!(of(&volume, file).await, fast);
    volume.check();
    assert_eq!(assign(&volume, file, "slow").await, Ok(true));
    assert_eq!(remove(&volume, "fast").await, Ok(()));
    volume.check();
}

#[tokio::test]
async fn a_directorys_entries_are_assigned_page_by_page() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let fast = made(&volume, "fast").await;
    let d = client.mkdir(ROOT, "d").await;
    let mut made = vec![client.mkdir(d, "inner").await];
    for i in 0..20 {
        made.push(client.create(d, &format!("f{i}")).await);
    }
    let deep = client.create(made[0], "deep").await;
    let (mut after, mut changed, mut directories, mut pages) = (0, 0, vec![], 0);
    loop {
        let tx = volume.store.inner.begin();
        let page = classes::assign_entries(&tx, &Touched::default(), InodeId(d), after, 6, "fast").await;
        let Assigned { changed: some, directories: found, next, .. } = page.unwrap().unwrap();
        tx.commit().await.unwrap();
        (changed, pages) = (changed + some, pages + 1);
        directories.extend(found);
        let Some(next) = next else { break };
        after = next;
    }
    assert_eq!((changed, directories, pages), (21, vec![InodeId(made[0])], 4));
    for inode in made {
        assert_eq!(of(&volume, inode).await, fast);
    }
    assert_eq!((of(&volume, d).await, of(&volume, deep).await), (0, 0), "only entries");
    let tx = volume.store.inner.begin();
    let gone = classes::assign_entries(&tx, &Touched::default(), InodeId(99), 0, 6, "fast").await.unwrap();
    assert_eq!(gone, Ok(Assigned::default()));
    volume.check();
}

async fn chunk_class(volume: &Volume, chunk: u64) -> u32 {
    let tx = volume.store.inner.begin();
    upkeep::load_chunk(&tx, ChunkId(chunk)).await.unwrap().unwrap().record.storage_class
}

async fn follow(volume: &Volume, chunk: u64) -> Option<u32> {
    let tx = volume.store.inner.begin();
    let followed = classes::follow(&tx, ChunkId(chunk)).await.unwrap();
    tx.commit().await.unwrap();
    followed
}

/// A file with a sealed chunk.
async fn filled(client: &Client<'_>, text: &str) -> (u64, u64) {
    let inode = client.create(ROOT, text).await;
    let allocate = AllocateChunk { inode, ..Default::default() };
    let Reply::Allocated(allocated) = client.ask(Op::AllocateChunk(allocate)).await else { panic!() };
    let chunk = allocated.place.unwrap().chunk;
    let run = write_piece::Data::Run(ChunkRun { chunk, chunk_offset: 0, length: 100_000 });
    let pieces = vec![WritePiece { offset: 0, data: Some(run) }];
    attr(client.ask(Op::Write(Write { inode, pieces, ..Default::default() })).await);
    let seal = SealChunk { chunk, acknowledged: 100_000, failed: vec![] };
    assert_eq!(client.errno(Op::SealChunk(seal)).await, 0);
    (inode, chunk)
}

#[tokio::test]
async fn chunks_follow_their_files() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let (fast, slow) = (made(&volume, "fast").await, made(&volume, "slow").await);
    let (file, chunk) = filled(&client, "file").await;
    assert_eq!((chunk_class(&volume, chunk).await, follow(&volume, chunk).await), (0, None));
    assert_eq!(assign(&volume, file, "fast").await, Ok(true));
    assert_eq!((follow(&volume, chunk).await, follow(&volume, chunk).await), (Some(fast), None));
    assert_eq!(chunk_class(&volume, chunk).await, fast);

    // Shared with a file that is then assigned another class: it stays as one of them has it.
    let copy = client.create(ROOT, "copy").await;
    assert_eq!(assign(&volume, copy, "fast").await, Ok(true));
    let range = CopyRange { source: file, inode: copy, length: 100_000, ..Default::default() };
    assert_eq!(client.errno(Op::CopyRange(range)).await, 0);
    assert_eq!(assign(&volume, copy, "slow").await, Ok(true));
    assert_eq!(follow(&volume, chunk).await, None);
    assert_eq!(assign(&volume, file, "default").await, Ok(true));
    assert_eq!(follow(&volume, chunk).await, Some(0), "the first of those that it has");
    assert_eq!(client.errno(Op::Unlink(Unlink { parent: ROOT, name: name("file") })).await, 0);
    volume.own(Op::Reap(Reap { inodes: vec![file] })).await;
    assert_eq!(follow(&volume, chunk).await, Some(slow));

    // Before anything names it, it follows the file that it is made for; a chunk that is gone follows nobody.
    let allocate = AllocateChunk { inode: copy, ..Default::default() };
    let Reply::Allocated(fresh) = client.ask(Op::AllocateChunk(allocate)).await else { panic!() };
    let fresh = fresh.place.unwrap().chunk;
    assert_eq!(chunk_class(&volume, fresh).await, slow);
    assert_eq!(assign(&volume, copy, "fast").await, Ok(true));
    assert_eq!(follow(&volume, fresh).await, Some(fast));
    assert_eq!(follow(&volume, 12_345).await, None);
    volume.check();
}

async fn take_over(volume: &Volume, version: u64, all: &[(u32, StorageClassRecord)]) -> Copied {
    let tx = volume.store.inner.begin();
    let all: BTreeMap<u32, StorageClassRecord> = all.iter().cloned().collect();
    let done = classes::take_over(&tx, VOLUME, version, &all).await.unwrap();
    tx.commit().await.unwrap();
    done
}

async fn listed(volume: &Volume) -> Vec<(u32, String, bool)> {
    let all = classes::list(&volume.store.inner.begin(), VOLUME, Read::Snapshot).await.unwrap();
    all.into_iter().map(|(id, record)| (id, record.name, record.leaving)).collect()
}

#[tokio::test]
async fn a_volume_has_copies_of_what_the_regions_agreed_on() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let (first, second) = (CLUSTER_FIRST, CLUSTER_FIRST + 1);
    let own = made(&volume, "fast").await;
    let d = client.mkdir(ROOT, "d").await;
    assert_eq!(assign(&volume, d, "fast").await, Ok(true));
    assert_eq!(of(&volume, d).await, own);
    let of_cluster = [(first, class("fast", 3)), (second, class("slow", 2))];
    let done = take_over(&volume, 5, &of_cluster).await;
    assert_eq!(done, Copied { changed: true, kept: vec![] });
    assert_eq!(take_over(&volume, 5, &of_cluster).await, Copied::default(), "done already");
    // What is older changes nothing, whatever it says.
    assert_eq!(take_over(&volume, 4, &[]).await, Copied::default());
    let all =
        || [(own, "fast"), (first, "fast"), (second, "slow")].map(|(id, name)| (id, name.to_owned(), false));
    assert_eq!(listed(&volume).await, all());

    // The cluster's goes before the volume's own, which is changed and removed by itself.
    assert_eq!(assign(&volume, d, "fast").await, Ok(true));
    assert_eq!(of(&volume, d).await, first);
    let tx = volume.store.inner.begin();
    let change = Change { copies: Some(1), ..Change::default() };
    assert_eq!(classes::change(&tx, VOLUME, 7, "fast", &change).await.unwrap(), Ok(own));
    let slow = classes::change(&tx, VOLUME, 7, "slow", &change).await.unwrap();
    assert_eq!(slow, Err(Refused::OfCluster("slow".into())));
    tx.commit().await.unwrap();
    assert_eq!(remove(&volume, "slow").await, Err(Refused::OfCluster("slow".into())));
    assert_eq!(remove(&volume, "fast").await, Ok(()));
    assert_eq!(remove(&volume, "fast").await, Err(Refused::OfCluster("fast".into())));
    // Its own have ids of their own.
    assert_eq!(made(&volume, "mine").await, own + 1);

    // One that is being deleted isn't assigned any more.
    let leaving = StorageClassRecord { leaving: true, ..class("slow", 2) };
    take_over(&volume, 6, &[(first, class("fast", 3)), (second, leaving)]).await;
    assert_eq!(assign(&volume, d, "slow").await, Err(Refused::Leaving("slow".into())));
    // Gone, it goes here, too; but not while something has it.
    let done = take_over(&volume, 7, &[]).await;
    assert_eq!(done, Copied { changed: true, kept: vec![first] });
    assert_eq!(listed(&volume).await, [(own + 1, "mine".into(), false), (first, "fast".into(), true)]);
    assert_eq!(take_over(&volume, 7, &[]).await, Copied { changed: false, kept: vec![first] });
    assert_eq!(assign(&volume, d, "fast").await, Err(Refused::Leaving("fast".into())));
    volume.check();
    assert_eq!(assign(&volume, d, "default").await, Ok(true));
    assert_eq!(take_over(&volume, 7, &[]).await, Copied { changed: true, kept: vec![] });
    assert_eq!(listed(&volume).await, [(own + 1, "mine".into(), false)]);
    let tx = volume.store.inner.begin();
    assert_eq!(classes::copied(&tx, VOLUME, Read::Snapshot).await.unwrap(), 7);
    volume.check();
}
