//! What goes on besides the operations: administrators with the trash, quotas, storage classes and joined volumes, and the rewriter.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use mooseng_namespace::quota::{self, Account, QuotaRecord, State};
use mooseng_namespace::touched::Touched;
use mooseng_namespace::{Errno, joins, trash};
use mooseng_schema::Record;
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_store::{Store, Transaction};
use mooseng_wire::fs::FileKind;
use mooseng_wire::{InodeId, VolumeId};
use rand::Rng;
use rand::seq::IndexedRandom;

use super::{RETENTION_S, Run, VOLUME};
use crate::harness::*;
use crate::model::Node;

const RETENTION_NS: i64 = RETENTION_S * 1_000_000_000;

/// What an administrator does with the trash. The store's faults are left out: these changes aren't retried.
pub(super) async fn administer(run: &mut Run, volume: &Volume, at: &str) {
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
            let expired = trash::expire(&tx, VOLUME, then, None, None, 1_000).await.unwrap();
            assert_eq!(expired.files as u64, run.model.purge(|_, n| n.trash_until <= Some(then)), "{at}");
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
pub(super) async fn destage(run: &mut Run, volume: &Volume) {
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
pub(super) async fn pack(run: &mut Run, volume: &Volume) {
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
pub(super) async fn join(run: &mut Run, volume: &Volume, at: &str) {
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

/// Storage classes, whose ids count from 1.
pub(super) const CLASSES: [&str; 2] = ["one", "two"];

/// Assigns some inode a class, and has some chunk follow its files.
pub(super) async fn classify(run: &mut Run, volume: &Volume) {
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
pub(super) async fn limit(run: &mut Run, volume: &Volume) {
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
