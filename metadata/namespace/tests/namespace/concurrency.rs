//! Many at once.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use futures::future::join_all;
use mooseng_namespace::{SessionCall, execute};
use mooseng_schema::dirent::Cookie;
use mooseng_store::{Store, Transaction};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::harness::*;

/// All read before any commits: were there a conflict, one of the commits would say so.
#[tokio::test]
async fn creates_in_one_directory_dont_conflict() {
    let volume = Volume::new().await;
    let mut transactions = Vec::new();
    for i in 0..100 {
        let op = match i % 4 {
            0 => Op::Mkdir(Mkdir { parent: ROOT, name: name(&format!("n{i}")), mode: 0o755, alone: false }),
            _ => Op::Create(Create {
                parent: ROOT,
                name: name(&format!("n{i}")),
                mode: 0o644,
                ..Default::default()
            }),
        };
        let request = request(&root(), op);
        let tx = volume.store.begin();
        execute(&tx, &volume.context(&request), &request).await.unwrap();
        transactions.push(tx);
    }
    for tx in transactions {
        tx.commit().await.unwrap();
    }
    volume.check();
    let client = volume.client(1).await;
    assert_eq!(client.attr(ROOT).await.nlink, 2 + 25);
    // Nor do removals of different names.
    let mut transactions = Vec::new();
    for i in 0..100 {
        let op = match i % 4 {
            0 => Op::Rmdir(Rmdir { parent: ROOT, name: name(&format!("n{i}")) }),
            _ => Op::Unlink(Unlink { parent: ROOT, name: name(&format!("n{i}")) }),
        };
        let request = request(&root(), op);
        let tx = volume.store.begin();
        execute(&tx, &volume.context(&request), &request).await.unwrap();
        transactions.push(tx);
    }
    for tx in transactions {
        tx.commit().await.unwrap();
    }
    volume.check();
}

async fn both(volume: &Volume, first: Op, second: Op) -> [bool; 2] {
    let mut transactions = Vec::new();
    for op in [first, second] {
        let request = request(&root(), op);
        let tx = volume.store.begin();
        execute(&tx, &volume.context(&request), &request).await.unwrap();
        transactions.push(tx);
    }
    let mut committed = Vec::new();
    for tx in transactions {
        committed.push(tx.commit().await.is_ok());
    }
    committed.try_into().unwrap()
}

/// What must not both happen.
#[tokio::test]
async fn changes_of_one_fact_conflict() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let (a, b) = (client.mkdir(ROOT, "a").await, client.mkdir(ROOT, "b").await);
    let create = |parent, text: &str| {
        Op::Create(Create { parent, name: name(text), mode: 0o644, exclusive: true, truncate: false })
    };
    let rmdir = |text: &str| Op::Rmdir(Rmdir { parent: ROOT, name: name(text) });
    let rename = |parent, text: &str, new_parent, new: &str| {
        Op::Rename(Rename { parent, name: name(text), new_parent, new_name: name(new), ..Default::default() })
    };
    assert_eq!(both(&volume, create(ROOT, "x"), create(ROOT, "x")).await, [true, false]);
    assert_eq!(both(&volume, create(a, "x"), rmdir("a")).await, [true, false]);
    client.errno(Op::Unlink(Unlink { parent: a, name: name("x") })).await;
    assert_eq!(both(&volume, rmdir("a"), create(a, "x")).await, [true, false]);
    let a = client.mkdir(ROOT, "a").await;
    // Together these would cut a loop off the tree.
    assert_eq!(both(&volume, rename(ROOT, "a", b, "a"), rename(ROOT, "b", a, "b")).await, [true, false]);
    volume.check();
    // Deeper: a/c/d and b/e/f, a into f and b into d.
    client.errno(rename(b, "a", ROOT, "a")).await;
    let c = client.mkdir(a, "c").await;
    let d = client.mkdir(c, "d").await;
    let e = client.mkdir(b, "e").await;
    let f = client.mkdir(e, "f").await;
    assert_eq!(both(&volume, rename(ROOT, "a", f, "a"), rename(ROOT, "b", d, "b")).await, [true, false]);
    volume.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_at_once_with_faults_leave_everything_counted() {
    let volume = Volume::with_faults(11, 0.05).await;
    let setup = volume.client(1).await;
    let directories = [ROOT, setup.mkdir(ROOT, "p").await, setup.mkdir(ROOT, "q").await];
    let shared = setup.create(ROOT, "shared").await;
    let work = (2..10).map(|id| {
        let volume = &volume;
        async move {
            let client = volume.client(id).await;
            let mut rng = SmallRng::seed_from_u64(id);
            let mut appended = 0u64;
            for _ in 0..120 {
                let mut pick = || directories[rng.random_range(0..3)];
                let (parent, new_parent) = (pick(), pick());
                let mut text = || name(["a", "b", "c", "d"][rng.random_range(0..4)]);
                let (one, two) = (text(), text());
                let op = match rng.random_range(0..8) {
                    0 | 1 => Op::Create(Create { parent, name: one, mode: 0o644, ..Default::default() }),
                    2 => Op::Unlink(Unlink { parent, name: one }),
                    3 => Op::Mkdir(Mkdir { parent, name: one, mode: 0o755, alone: false }),
                    4 => Op::Rmdir(Rmdir { parent, name: one }),
                    5 | 6 => Op::Rename(Rename {
                        parent,
                        name: one,
                        new_parent,
                        new_name: two,
                        exchange: rng.random_bool(0.3),
                        no_replace: false,
                    }),
                    _ => {
                        let data = write_piece::Data::Inline(vec![id as u8; 10].into());
                        appended += 10;
                        Op::Write(Write {
                            inode: shared,
                            pieces: vec![WritePiece { offset: 0, data: Some(data) }],
                            append: true,
                            kill_suidgid: false,
                            ..Write::default()
                        })
                    }
                };
                client.ask(op).await;
            }
            (id, appended)
        }
    });
    let appended: BTreeMap<u64, u64> = join_all(work).await.into_iter().collect();
    volume.check();
    // Every append is there once, and whole.
    let bytes = setup.read(shared).await;
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    for record in bytes.chunks(10) {
        assert!(record.iter().all(|b| *b == record[0]), "an append was torn");
        *seen.entry(u64::from(record[0])).or_default() += 10;
    }
    for (id, count) in appended {
        assert_eq!(seen.get(&id).copied().unwrap_or(0), count, "client {id}");
    }
}

#[tokio::test]
async fn a_reader_sees_each_entry_that_stayed_exactly_once() {
    for seed in 0..20 {
        let volume = Volume::new().await;
        let client = volume.client(1).await;
        let mut rng = SmallRng::seed_from_u64(seed);
        let stay: Vec<String> = (0..60).map(|i| format!("stay{i}")).collect();
        for (i, text) in stay.iter().enumerate() {
            client.create(ROOT, text).await;
            client.create(ROOT, &format!("go{i}")).await;
        }
        let mut seen: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        let mut cookie = 0;
        loop {
            let op = Op::ReadDir(ReadDir {
                inode: ROOT,
                cookie,
                entries_max: rng.random_range(1..9),
                plus: rng.random_bool(0.5),
            });
            let Reply::DirPage(page) = client.ask(op).await else { panic!() };
            for entry in &page.entries {
                assert!(entry.cookie > cookie && entry.cookie >= 256, "cookies rise");
                cookie = entry.cookie;
                *seen.entry(entry.name.to_vec()).or_default() += 1;
            }
            if page.end {
                break;
            }
            for _ in 0..4 {
                let i = rng.random_range(0..60);
                match rng.random_range(0..4) {
                    0 => drop(
                        client.ask(Op::Unlink(Unlink { parent: ROOT, name: name(&format!("go{i}")) })).await,
                    ),
                    1 => {
                        let op =
                            Create { parent: ROOT, name: name(&format!("new{i}")), ..Default::default() };
                        client.ask(Op::Create(op)).await;
                    }
                    2 => {
                        // The name stays, whatever it names.
                        client
                            .ask(Op::Rename(Rename {
                                parent: ROOT,
                                name: name(&format!("go{i}")),
                                new_parent: ROOT,
                                new_name: name(&stay[i]),
                                ..Default::default()
                            }))
                            .await;
                    }
                    _ => {
                        client
                            .ask(Op::Rename(Rename {
                                parent: ROOT,
                                name: name(&stay[i]),
                                new_parent: ROOT,
                                new_name: name(&stay[(i + 1) % 60]),
                                exchange: true,
                                ..Default::default()
                            }))
                            .await;
                    }
                }
            }
        }
        for text in &stay {
            assert_eq!(seen.get(text.as_bytes()), Some(&1), "seed {seed}: {text}");
        }
        assert!(seen.values().all(|n| *n == 1), "seed {seed}: an entry was seen twice");
    }
}

/// Names of one hash can't be made without the secret, so that their entries are put there by hand.
#[tokio::test]
async fn names_of_one_hash_live_side_by_side() {
    use mooseng_schema::Record;
    use mooseng_schema::dirent::{self, DirentRecord};
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "real").await;
    let first = Cookie::first(&HASH_KEY, b"late");
    let plant = async |slots: std::ops::Range<u64>| {
        let tx = volume.store.begin();
        for slot in slots {
            let entry = DirentRecord { name: format!("other{slot}").into_bytes().into(), inode, kind: 1 };
            tx.set(&dirent::key(mooseng_wire::ROOT_INODE, Cookie(first.0 + slot)), &entry.to_value());
        }
        tx.commit().await.unwrap();
    };
    plant(0..2).await;
    let made = client.create(ROOT, "late").await;
    let Reply::Entry(found) = client.ask(Op::Lookup(Lookup { parent: ROOT, name: name("late") })).await
    else {
        panic!()
    };
    assert_eq!(found.attr.unwrap().inode, made);
    let entries = client.list(ROOT, 10, false).await;
    assert!(entries.iter().any(|e| e.cookie == first.0 + 2 && e.name == "late"));
    client.ask(Op::Unlink(Unlink { parent: ROOT, name: name("late") })).await;
    assert_eq!(client.list(ROOT, 10, false).await.len(), 3);
    plant(0..256).await;
    let op = Op::Mkdir(Mkdir { parent: ROOT, name: name("late"), mode: 0o755, alone: false });
    assert_eq!(client.errno(op).await, 28);
}

#[tokio::test]
async fn a_request_that_was_sent_twice_at_once_runs_once() {
    let volume = Volume::with_faults(3, 0.1).await;
    let client = volume.client(1).await;
    for number in 1..60u64 {
        let op =
            Op::Mkdir(Mkdir { parent: ROOT, name: name(&format!("d{number}")), mode: 0o755, alone: false });
        let request = request(&root(), op);
        let answers = join_all((0..3).map(|_| client.send(number, &request))).await;
        let first = answers[0].clone().unwrap();
        assert_eq!(errno(&first), 0);
        assert!(answers.iter().all(|a| a.as_ref().unwrap() == &first));
    }
    client.number.store(60, Ordering::Relaxed);
    assert_eq!(client.list(ROOT, 100, false).await.len(), 59);
    assert_eq!(SessionCall::default().number.0, 0);
    volume.check();
}

/// Chunks of one file don't conflict, so that only the outcome record keeps a second sending from making another one.
#[tokio::test]
async fn a_chunk_that_was_asked_for_twice_at_once_is_allocated_once() {
    let volume = Volume::with_faults(8, 0.1).await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let request = request(&root(), Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] }));
    let mut chunks = std::collections::BTreeSet::new();
    for number in 10..200u64 {
        let answers = join_all((0..3).map(|_| client.send(number, &request))).await;
        for answer in answers {
            let Reply::Allocated(allocated) = answer.unwrap() else { panic!("no chunk") };
            chunks.insert((number, allocated.place.unwrap().chunk));
        }
    }
    assert_eq!(chunks.len(), 190);
}

/// What an older life of a session, or an older home of the volume, still has under way isn't committed any more.
#[tokio::test]
async fn nothing_is_committed_behind_a_new_life_or_a_new_epoch() {
    use mooseng_namespace::{sessions, upkeep};
    use mooseng_wire::{Epoch, SessionId, VolumeId};
    let mut overtaken = [0; 2];
    for seed in 0..200 {
        let by_epoch = seed % 2 == 1;
        let volume = Volume::with_faults(seed, 0.0).await;
        let client = volume.client(1).await;
        let inode = client.create(ROOT, "f").await;
        let request = request(&root(), Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] }));
        let changes = join_all((10..14u64).map(|number| {
            let (volume, client, request) = (&volume, &client, &request);
            async move {
                let ctx = volume.context(request);
                let call = client.call_of(number);
                volume.driver.run(call, &ctx, request, deadline()).await.ok().map(|(_, version)| version)
            }
        }));
        let end = async {
            tokio::task::yield_now().await;
            if by_epoch {
                let raised = volume
                    .driver
                    .transact(deadline(), |tx| Box::pin(upkeep::raise_epoch(tx, VolumeId(0), Epoch(2))));
                raised.await.unwrap().1
            } else {
                let bumped = volume
                    .driver
                    .transact(deadline(), |tx| Box::pin(sessions::bump_incarnation(tx, SessionId(1))));
                bumped.await.unwrap().1
            }
        };
        let (versions, end) = futures::join!(changes, end);
        for version in versions {
            match version {
                Some(version) => assert!(version < end, "seed {seed}: a change came behind the end"),
                None => overtaken[usize::from(by_epoch)] += 1,
            }
        }
    }
    assert!(overtaken.iter().all(|n| *n > 10), "the changes were too fast to be overtaken: {overtaken:?}");
}
