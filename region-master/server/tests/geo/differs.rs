//! Regions whose place isn't one of the log of the volume's home.

use std::sync::Arc;
use std::time::Duration;

use mooseng_master::geo::{ROOT_VOLUME, losses};
use mooseng_master::master::Master;
use mooseng_ports::disk::sim::Fault;
use mooseng_replica::{apply, read, turn};
use mooseng_schema::Record;
use mooseng_schema::key::whole_volume;
use mooseng_schema::log::{self, LogPosition, ReplicaRecord};
use mooseng_store::{Read, Store, Transaction};
use mooseng_transport::{Link, LinkOptions, PlainNetwork};
use mooseng_wire::geo::{Place, Push, Pushed};
use mooseng_wire::method::Method;
use mooseng_wire::{Epoch, Role};

use super::common::regions::{Regions, identity_of};
use super::common::until;
use super::giving_up::{by_command_only, equal};
use super::{addresses, caught_up, change, client, ledger, mkdir, serves_as_home, serving};

fn place(at: LogPosition) -> Option<Place> {
    Some(Place { epoch: at.epoch.0, version: at.version })
}

/// What was copied of a tail that a failover then cut off stayed, where the copy was gone on with from the next home: behind any place of an earlier epoch
/// that one had something to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_begun_from_a_lost_home_has_nothing_of_what_was_cut_off() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("c", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let home = client(&regions, "a", "a");
    for n in 0..20 {
        change(&home, mkdir(&format!("d{n}"))).await;
    }
    caught_up(&regions, "b").await;
    regions.cut("b");
    for n in 0..5 {
        change(&home, mkdir(&format!("tail{n}"))).await;
    }
    caught_up(&regions, "c").await;
    let lost = serving(&regions, "a").unwrap().clone();
    let all = read::page(&lost.store.begin(), ROOT_VOLUME, None, 1 << 20).await.unwrap();
    let bytes: usize = all.pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
    let page = read::page(&lost.store.begin(), ROOT_VOLUME, None, bytes * 3 / 4).await.unwrap();
    assert!(page.next.is_some() && page.at > LogPosition::default());
    regions.kill_region("a").await;
    // As it was in the midst of its copy.
    let copying = serving(&regions, "c").unwrap().clone();
    let tx = copying.store.begin();
    apply::begin(&tx, ROOT_VOLUME).await.unwrap();
    apply::install(&tx, ROOT_VOLUME, &whole_volume(ROOT_VOLUME).begin, &page).await.unwrap();
    tx.commit().await.unwrap();
    copying.geo.forget(ROOT_VOLUME);
    regions.heal();
    serves_as_home(&regions, "b", 2).await;
    let next = serving(&regions, "b").unwrap().clone();
    let tx = next.store.begin();
    let mut cut_off = 0;
    for (key, value) in &page.pairs {
        cut_off += usize::from(tx.get(key, Read::Snapshot).await.unwrap().as_ref() != Some(value));
    }
    assert!(cut_off > 1, "the page has some of the tail");
    change(&client(&regions, "b", "b"), mkdir("after")).await;
    equal(&regions, "c").await;
}

/// The record of a replica, with another epoch that it refuses.
async fn refusing(master: &Master, refuses: u64) {
    let tx = master.store.begin();
    // Where it doesn't know yet that it was followed.
    turn::rejoin(&tx, ROOT_VOLUME, Epoch(2)).await.unwrap();
    let record = apply::state(&tx, ROOT_VOLUME, Read::Conflicting).await.unwrap().unwrap();
    tx.set(&log::replica_key(ROOT_VOLUME), &ReplicaRecord { refuses, ..record }.to_value());
    tx.commit().await.unwrap();
    master.geo.forget(ROOT_VOLUME);
}

/// A home that came back with a tail, and couldn't put it aside at first: its place, in no log but its own, counted as what all regions had. The log was
/// trimmed up to there, and then it was a place of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_that_isnt_put_aside_yet_stays_one() {
    let regions = Regions::start_of(&[("a", 1), ("b", 1), ("w", 1)], 4_000).await;
    serves_as_home(&regions, "a", 1).await;
    let home = client(&regions, "a", "a");
    for n in 0..10 {
        change(&home, mkdir(&format!("d{n}"))).await;
    }
    caught_up(&regions, "b").await;
    let old = serving(&regions, "a").unwrap().clone();
    regions.cut("a");
    for n in 0..5 {
        change(&home, mkdir(&format!("tail{n}"))).await;
    }
    serves_as_home(&regions, "b", 2).await;
    let next = serving(&regions, "b").unwrap().clone();
    change(&client(&regions, "b", "b"), mkdir("after")).await;
    // It answers where it is, and begins nothing anew.
    let tail = read::newest(&old.store.begin(), ROOT_VOLUME).await.unwrap();
    refusing(&old, 2).await;
    regions.heal();
    let known = || next.geo.shipped(ROOT_VOLUME).get("a").cloned().unwrap_or_default();
    until("it was told to begin anew", async || known().trouble.contains("epoch 2")).await;
    // Longer than the log is left as it is.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let logged = read::logged(&next.store.begin(), ROOT_VOLUME).await.unwrap().unwrap();
    assert!(logged.trimmed() < tail, "{} of the log, and {tail} isn't of it", logged.trimmed());
    assert_eq!((known().at, known().complete), (None, None), "nothing of it is of this log");
    assert!(ledger(&next).await[0].1.named.is_none());

    // What takes longer than the home waits is done all the same.
    regions.cut("b");
    refusing(&old, 1).await;
    let common = read::at_or_before(&next.store.begin(), ROOT_VOLUME, tail).await.unwrap();
    assert!(common < tail);
    let network = Arc::new(PlainNetwork::new(identity_of("b", Role::Master, "x")));
    let link = Link::new(network, addresses(&regions, "a")[0].clone(), Role::Master, LinkOptions::default());
    let trimmed = place(logged.trimmed());
    let begin = Push { epoch: 2, after: place(common), was_at: place(tail), trimmed, ..Push::default() };
    let late = Push { begin_anew: true, was_at: place(common), ..begin.clone() };
    let answer = link.request::<_, Pushed>(Method::LogPush, &late, Duration::from_secs(5)).await.unwrap();
    assert_eq!((answer.at, answer.copying), (place(tail), false), "that was about another place");
    let disk = &regions.sites[regions.of("a")[0]].disk;
    disk.set_fault(Fault::Hanging);
    let begin = Push { begin_anew: true, ..begin };
    let answer = link.request::<_, Pushed>(Method::LogPush, &begin, Duration::from_millis(500)).await;
    assert!(answer.is_err(), "{answer:?}");
    disk.set_fault(Fault::None);
    until("the tail is put aside", async || {
        let record = old.geo.replica(ROOT_VOLUME).record;
        old.geo.has_salvage(ROOT_VOLUME) && record.is_some_and(|record| record.copied_before.is_some())
    })
    .await;
    regions.heal();
    until("the loss is named", async || {
        let known = serving(&regions, "b").cloned();
        match known {
            Some(master) => ledger(&master).await.first().is_some_and(|(_, loss)| loss.named.is_some()),
            None => false,
        }
    })
    .await;
    let named = ledger(&next).await[0].1.named.clone().unwrap();
    assert!(named.entries >= 5 && named.paths >= 5, "{named:?}");
    let archives = losses::archives(&old.store.begin(), ROOT_VOLUME).await.unwrap();
    assert!(archives.iter().any(|(cut, archive)| *cut == common && archive.upto() == tail), "{archives:?}");
    equal(&regions, "a").await;
}

/// While a region was away the log went on, and the home's disks filled up with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_isnt_kept_for_ever_for_a_region_that_is_away() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("c", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    by_command_only(&regions).await;
    let [a] = regions.of("a")[..] else { panic!("one master") };
    regions.kill(a).await;
    regions.sites[a].config.house.log_kept_mib = 1;
    regions.run(a).await;
    serves_as_home(&regions, "a", 1).await;
    let home = client(&regions, "a", "a");
    change(&home, mkdir("d")).await;
    caught_up(&regions, "b").await;
    caught_up(&regions, "c").await;
    let master = serving(&regions, "a").unwrap().clone();
    let has = |region: &str| {
        let record = serving(&regions, region).and_then(|master| master.geo.replica(ROOT_VOLUME).record);
        record.map(|record| record.position()).unwrap_or_default()
    };
    let trimmed = async || {
        let logged = read::logged(&master.store.begin(), ROOT_VOLUME).await.unwrap().unwrap();
        logged.trimmed()
    };
    regions.cut("b");
    let left = has("b");
    let write = async |from: u8, upto: u8| {
        for n in from..upto {
            let tx = master.store.begin();
            let name = format!("user.{n}");
            tx.set(&mooseng_schema::xattr::key(mooseng_wire::ROOT_INODE, name.as_bytes()), &[n; 60_000]);
            tx.commit().await.unwrap();
        }
    };
    write(0, 8).await;
    // Twice as long as until the log is trimmed.
    tokio::time::sleep(Duration::from_secs(21)).await;
    assert!(trimmed().await <= left, "it is kept for the region while there isn't more");
    write(8, 40).await;
    let kept = async || {
        let kept = read::entries(&master.store.begin(), ROOT_VOLUME, trimmed().await, 8 << 20).await;
        kept.map_or(0, |kept| kept.iter().map(|entry| entry.bytes.len()).sum::<usize>())
    };
    until("it isn't kept", async || (200_000..=1 << 20).contains(&kept().await)).await;
    assert!(trimmed().await > left);
    assert!(has("c") > left, "another one goes on");
    regions.heal();
    equal(&regions, "b").await;
    equal(&regions, "c").await;
    change(&home, mkdir("e")).await;
    caught_up(&regions, "b").await;
}

/// A home has let its log go beyond the cut of the failover that follows, and comes back.
async fn comes_back_without_its_log(all: bool) {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let a = regions.of("a")[0];
    serves_as_home(&regions, "a", 1).await;
    let home = client(&regions, "a", "a");
    change(&home, mkdir("d")).await;
    caught_up(&regions, "b").await;
    let complete = || {
        let record = serving(&regions, "b")?.geo.replica(ROOT_VOLUME).record?;
        Some(record.complete() == record.position())
    };
    until("the replica is complete", async || complete() == Some(true)).await;
    regions.cut("b");
    let mut at = Place::default();
    for n in 0..6 {
        let made = change(&home, mkdir(&format!("tail{n}"))).await;
        if n < 3 || all {
            at = made;
        }
    }
    let old = serving(&regions, "a").unwrap().clone();
    // As where more of it would be kept than `house.log_kept_mib`.
    let tx = old.store.begin();
    let upto = match all {
        true => read::newest(&tx, ROOT_VOLUME).await.unwrap(),
        false => LogPosition::new(Epoch(at.epoch), at.version),
    };
    let trimmed = turn::trim(&tx, ROOT_VOLUME, upto).await.unwrap();
    tx.commit().await.unwrap();
    drop(old);
    regions.kill(a).await;
    regions.heal();
    serves_as_home(&regions, "b", 2).await;
    let next = serving(&regions, "b").unwrap().clone();
    let (_, loss) = ledger(&next).await.remove(0);
    assert!(loss.cut() < trimmed, "{} and {trimmed}", loss.cut());
    change(&client(&regions, "b", "b"), mkdir("after")).await;
    regions.run(a).await;
    until("the loss is named", async || ledger(&next).await[0].1.named.is_some()).await;
    let named = ledger(&next).await[0].1.named.clone().unwrap();
    assert_eq!(named.gone_upto(), trimmed, "{named:?}");
    assert!(all || named.entries >= 3, "{named:?}");
    equal(&regions, "a").await;
    let back = serving(&regions, "a").unwrap().clone();
    let kept = losses::archives(&back.store.begin(), ROOT_VOLUME).await.unwrap();
    let [(cut, archive)] = &kept[..] else { panic!("one archive: {kept:?}") };
    assert_eq!((*cut, archive.gone_upto(), archive.entries), (loss.cut(), trimmed, named.entries));
    let told = losses::list_losses(&next, 0).await.unwrap();
    let gone = told.losses[0].named.as_ref().and_then(|named| named.gone_upto);
    assert_eq!(gone.map(|at| (at.epoch, at.version)), Some((trimmed.epoch.0, trimmed.version)));
}

/// The ledger gave for all that was lost what was left of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_says_what_a_home_that_comes_back_cant_name() {
    comes_back_without_its_log(false).await;
}

/// It said that nothing was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_comes_back_without_any_of_its_log_doesnt_count_as_one_that_had_nothing() {
    comes_back_without_its_log(true).await;
}
