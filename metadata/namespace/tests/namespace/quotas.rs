//! Quotas, by hand: which name a file counts for, and walks that pass one directory.

use mooseng_namespace::quota::{self, Account, State, Step};
use mooseng_namespace::touched::Touched;
use mooseng_store::{Read, Store, Transaction};
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{InodeId, VolumeId};

use crate::harness::{Client, ROOT, Volume, name};

const VOLUME: VolumeId = VolumeId(0);

async fn set(volume: &Volume, directory: u64) {
    let tx = volume.store.inner.begin();
    let account = Account::Directory(directory);
    quota::set(&tx, &Touched::default(), 1, VOLUME, account, Some(1 << 30), None).await.unwrap().unwrap();
    tx.commit().await.unwrap();
}

async fn clear(volume: &Volume, directory: u64) {
    let tx = volume.store.inner.begin();
    quota::clear(&tx, &Touched::default(), VOLUME, Account::Directory(directory)).await.unwrap().unwrap();
    tx.commit().await.unwrap();
}

async fn step(volume: &Volume, directory: u64, max: usize) -> Step {
    let tx = volume.store.inner.begin();
    let step = quota::step(&tx, &Touched::default(), InodeId(directory), max).await.unwrap();
    tx.commit().await.unwrap();
    step
}

async fn count(volume: &Volume, directory: u64) {
    while step(volume, directory, 100).await == Step::More {}
}

async fn state(volume: &Volume, directory: u64) -> Option<State> {
    let tx = volume.store.inner.begin();
    let found = quota::find(&tx, VOLUME, Account::Directory(directory), Read::Snapshot).await.unwrap();
    found.map(|record| record.state())
}

async fn inodes(volume: &Volume, directory: u64) -> i64 {
    let tx = volume.store.inner.begin();
    quota::usage(&tx, VOLUME, Account::Directory(directory)).await.unwrap().inodes
}

async fn link(client: &Client<'_>, inode: u64, new_parent: u64, text: &str) {
    assert_eq!(client.errno(Op::Link(Link { inode, new_parent, new_name: name(text) })).await, 0);
}

async fn rename(client: &Client<'_>, (parent, from): (u64, &str), (new_parent, to): (u64, &str)) -> u32 {
    let (name, new_name) = (name(from), name(to));
    client.errno(Op::Rename(Rename { parent, name, new_parent, new_name, ..Default::default() })).await
}

async fn unlink(client: &Client<'_>, parent: u64, text: &str) {
    assert_eq!(client.errno(Op::Unlink(Unlink { parent, name: name(text) })).await, 0);
}

/// A file with names within a quota's tree and outside of it counts there, whatever happens to the name outside; and no longer when the name inside goes.
#[tokio::test]
async fn a_file_counts_for_a_quota_as_long_as_it_has_a_name_there() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let (inside, outside) = (client.mkdir(ROOT, "inside").await, client.mkdir(ROOT, "outside").await);
    let file = client.create(inside, "f").await;
    link(&client, file, outside, "a").await;
    link(&client, file, outside, "b").await;
    set(&volume, inside).await;
    count(&volume, inside).await;
    assert_eq!(inodes(&volume, inside).await, 2);
    assert_eq!(rename(&client, (outside, "a"), (outside, "c")).await, 0);
    assert_eq!(rename(&client, (outside, "c"), (ROOT, "c")).await, 0);
    unlink(&client, outside, "b").await;
    assert_eq!((inodes(&volume, inside).await, client.attr(file).await.quota), (2, inside));
    unlink(&client, inside, "f").await;
    assert_eq!((inodes(&volume, inside).await, client.attr(file).await.quota), (1, 0));
    link(&client, file, outside, "d").await;
    volume.check();
}

/// The walk of a quota that is cleared comes first to a directory that lies below one that is being counted now.
#[tokio::test]
async fn a_quota_waits_for_what_another_ones_walk_marks_for_it() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let above = client.mkdir(ROOT, "above").await;
    let mut tree = vec![above];
    for text in ["1", "2", "3", "4"] {
        tree.push(client.mkdir(tree[tree.len() - 1], text).await);
    }
    let file = client.create(tree[4], "f").await;
    set(&volume, above).await;
    count(&volume, above).await;
    assert_eq!(inodes(&volume, above).await, 6);
    clear(&volume, above).await;
    // The walk has passed 1 and 2, and stands before 3.
    while client.attr(tree[2]).await.quota != 0 {
        assert_eq!(step(&volume, above, 1).await, Step::More);
    }
    assert_eq!(client.attr(tree[3]).await.quota, above);
    set(&volume, tree[1]).await;
    assert_eq!(step(&volume, tree[1], 1).await, Step::More);
    assert_eq!(client.attr(tree[2]).await.quota, tree[1]);
    // Now it marks 3 for the quota of 1.
    while client.attr(tree[3]).await.quota != tree[1] {
        assert_eq!(step(&volume, above, 1).await, Step::More);
    }
    count(&volume, tree[1]).await;
    assert_eq!((state(&volume, tree[1]).await, inodes(&volume, tree[1]).await), (Some(State::Enforced), 5));
    assert_eq!(client.attr(file).await.quota, tree[1]);
    count(&volume, above).await;
    assert_eq!((state(&volume, above).await, inodes(&volume, above).await), (None, 0));
    volume.check();
}

/// A directory with a quota got into a tree that was being counted: when its quota is cleared it counts for that tree's.
#[tokio::test]
async fn what_loses_its_quota_within_another_ones_tree_counts_for_that() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let around = client.mkdir(ROOT, "around").await;
    let deep = client.mkdir(around, "deep").await;
    let own = client.mkdir(ROOT, "own").await;
    client.create(own, "f").await;
    set(&volume, own).await;
    count(&volume, own).await;
    set(&volume, around).await;
    assert_eq!(rename(&client, (ROOT, "own"), (deep, "own")).await, 0);
    count(&volume, around).await;
    assert_eq!((inodes(&volume, around).await, inodes(&volume, own).await), (2, 2));
    clear(&volume, own).await;
    assert_eq!(state(&volume, around).await, Some(State::Counting));
    count(&volume, own).await;
    assert_eq!((state(&volume, own).await, inodes(&volume, own).await), (None, 0));
    count(&volume, around).await;
    assert_eq!((state(&volume, around).await, inodes(&volume, around).await), (Some(State::Enforced), 4));
    volume.check();
}
