//! A region that is taken out of a volume's regions: what it has goes, and nothing that is needed.

use std::sync::Arc;
use std::time::Duration;

use mooseng_master::geo::{ROOT_VOLUME, let_go, losses, verify};
use mooseng_master::master::Master;
use mooseng_namespace::let_go::places;
use mooseng_schema::Record;
use mooseng_schema::chunk::{self, ChunkRecord, ChunkUse};
use mooseng_schema::extent::{self, ExtentRecord};
use mooseng_schema::let_go as records;
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::log::{self, LogPosition};
use mooseng_store::{RangeLimit, Read, Store, Transaction};
use mooseng_transport::CallFailure;
use mooseng_wire::admin::chunkserver_command::Command;
use mooseng_wire::admin::{ChunkReport, HeartbeatRequest};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::geo::{NearRead, NearReply, Place};
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{Regions as Names, SetVolume};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Epoch, InodeId};
use tokio::time::Instant;

use super::common::regions::Regions;
use super::common::until;
use super::giving_up::by_command_only;
use super::volumes::leads;
use super::{change, client, ledger, lookup, mkdir, near, salvage_of, serves_as_home, serving};

const FIRST: ChunkId = ChunkId(900_000);
const SECOND: ChunkId = ChunkId(900_001);

/// The root volume is to be in these regions.
async fn set_regions(regions: &Regions, epoch: u64, of: &[&str]) {
    let names = of.iter().map(|name| (*name).to_owned()).collect();
    let change = SetVolume { epoch, regions: Some(Names { names }), ..SetVolume::default() };
    let deadline = Instant::now() + Duration::from_secs(20);
    // Whoever leads is asked: of the regions that are cut off here, none is the witness.
    regions.global(regions.of("w")[0]).change(Change::SetVolume(change), deadline).await.unwrap();
}

/// A heartbeat with all that a chunkserver has.
fn beat(master: &Arc<Master>, name: &str, chunks: &[ChunkId]) {
    let report = |chunk: &ChunkId| ChunkReport { chunk: chunk.0, length: 10, sealed: true, epoch: 1 };
    let request = HeartbeatRequest {
        chunkserver: name.into(),
        incarnation: 1,
        inventory_page: true,
        inventory: chunks.iter().map(report).collect(),
        ..HeartbeatRequest::default()
    };
    master.desk(|desk| desk.beat(master.clock.boot(), request)).unwrap();
}

/// It is on record here that copies of a chunk lie there.
async fn place(master: &Arc<Master>, chunk: ChunkId, copies: &[&str]) {
    let tx = master.store.begin();
    let copies = copies.iter().map(|&copy| copy.to_owned()).collect();
    let held = LocationRecord { layout: 1, copies, epoch: 1, partial: None };
    tx.set(&location::key(chunk), &held.to_value());
    tx.commit().await.unwrap();
}

/// The home has a file in a sealed chunk.
async fn use_chunk(home: &Arc<Master>, named: ChunkId) {
    let file = InodeId(named.0);
    let tx = home.store.begin();
    let record = ChunkRecord { length: 10, sealed: true, birth: 1, ..ChunkRecord::default() };
    tx.set(&chunk::key(named), &record.to_value());
    tx.set(&chunk::reference_key(named, file), &ChunkUse { extents: 1, bytes: 10 }.to_value());
    let extent = ExtentRecord { chunk: named.0, length: 10, ..ExtentRecord::default() };
    tx.set(&extent::key(file, 0), &extent.to_value());
    tx.commit().await.unwrap();
}

/// Records that go, without those that say where chunks lie; as many as there can be where a master that doesn't lead yet is asked.
async fn left(master: &Arc<Master>) -> usize {
    let tx = master.store.begin();
    let mut left = 0;
    for range in records::ranges(ROOT_VOLUME) {
        match tx.get_range(range, RangeLimit::default(), Read::Snapshot).await {
            Ok(page) => left += page.pairs.len(),
            Err(_) => return usize::MAX,
        }
    }
    left
}

async fn placed(master: &Arc<Master>) -> Vec<ChunkId> {
    places(&master.store.begin(), ROOT_VOLUME, None, 99).await.unwrap()
}

fn stage(master: &Arc<Master>) -> String {
    let told = let_go::told(master, ROOT_VOLUME);
    told.first().map(|of| format!("{}: {}", of.region, of.stage)).unwrap_or_default()
}

fn position(master: &Arc<Master>) -> Option<(LogPosition, LogPosition)> {
    let record = master.geo.replica(ROOT_VOLUME).record?;
    record.copied_before.is_none().then(|| (record.position(), record.complete()))
}

async fn complete(home: &Arc<Master>, replica: &Arc<Master>) {
    until("the replica is complete", async || {
        let newest = home.geo.newest(ROOT_VOLUME);
        position(replica).is_some_and(|(at, complete)| at == newest && complete == newest)
    })
    .await;
}

/// Three regions with directories and a chunk each of which has two copies of, and the masters of a, b and c.
async fn three(second: bool) -> (Regions, [Arc<Master>; 3], Place) {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("c", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let mount = client(&regions, "a", "a");
    for n in 0..10 {
        change(&mount, mkdir(&format!("d{n}"))).await;
    }
    let of = |region: &str| serving(&regions, region).unwrap().clone();
    until("all regions have it", async || ["b", "c"].iter().all(|name| serving(&regions, name).is_some()))
        .await;
    let masters = [of("a"), of("b"), of("c")];
    for master in &masters[1..] {
        complete(&masters[0], master).await;
    }
    let mut chunks = vec![FIRST];
    if second {
        chunks.push(SECOND);
    }
    for chunk in &chunks {
        place(&masters[1], *chunk, &["b1", "b2"]).await;
        place(&masters[2], *chunk, &["c1", "c2"]).await;
        place(&masters[0], *chunk, if *chunk == FIRST { &["a1", "a2"] } else { &["a1", "gone"] }).await;
        use_chunk(&masters[0], *chunk).await;
    }
    let at = change(&mount, mkdir("last")).await;
    for master in &masters[1..] {
        complete(&masters[0], master).await;
    }
    (regions, masters, at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_is_taken_out_lets_go_and_gets_a_copy_once_it_is_added_again() {
    let (regions, [home, _, out], at) = three(false).await;
    let there = client(&regions, "c", "c");
    assert!(near(&there, "d9", &at).await.is_some());
    let beat_all = || {
        ["a1", "a2"].iter().for_each(|name| beat(&home, name, &[FIRST]));
        ["c1", "c2"].iter().for_each(|name| beat(&out, name, &[FIRST]));
    };
    beat_all();
    set_regions(&regions, 1, &["a", "b"]).await;
    let (mut told, mut by_home, mut deleted) = (false, false, Vec::new());
    until("nothing is left but what is to be deleted", async || {
        beat_all();
        told |= !stage(&out).is_empty();
        by_home |= stage(&home).starts_with("c: ");
        let now = out.clock.boot();
        for command in out.desk(|desk| desk.take_commands("c1", now, u64::MAX)) {
            if let Some(Command::Delete(delete)) = command.command {
                deleted.push((delete.chunk, delete.epoch));
            }
        }
        left(&out).await == 0 && placed(&out).await.is_empty() && !deleted.is_empty()
    })
    .await;
    assert!(told && by_home, "it was shown: {told}, {by_home}");
    assert_eq!(deleted[0], (FIRST.0, 1), "in the volume's own epoch");
    // It isn't read there any more.
    let read = NearRead { op: Some(lookup("d9")), at_least: Some(at), seat: None, volume: 0 };
    let refused = there.link().request::<_, NearReply>(Method::NearRead, &read, Duration::from_secs(5)).await;
    assert!(
        matches!(&refused, Err(CallFailure::Remote(error)) if error.code() == ErrorCode::Unavailable),
        "{refused:?}"
    );
    let global = out.global.as_ref().unwrap();
    assert!(!global.has_said(ROOT_VOLUME), "it can't take the volume over");
    until("that nothing is left is shown", async || {
        ["a1", "a2"].iter().for_each(|name| beat(&home, name, &[FIRST]));
        ["c1", "c2"].iter().for_each(|name| beat(&out, name, &[]));
        stage(&out).is_empty() && stage(&home).is_empty()
    })
    .await;

    set_regions(&regions, 1, &["a", "b", "c"]).await;
    until("it is copied", async || {
        let newest = home.geo.newest(ROOT_VOLUME);
        position(&out).is_some_and(|(at, _)| at == newest)
    })
    .await;
    let compared = verify::compare(&out, ROOT_VOLUME).await.unwrap();
    assert!(compared.pairs > 20 && compared.different.is_empty(), "{compared:?}");
    let newest = change(&client(&regions, "a", "a"), mkdir("after")).await;
    assert!(near(&there, "after", &newest).await.is_some() && near(&there, "d9", &newest).await.is_some());
    assert!(stage(&out).is_empty() && stage(&home).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_while_the_home_is_away_or_lacks_anything_of_what_is_here() {
    let (regions, [home, _, out], _) = three(true).await;
    by_command_only(&regions).await;
    let all = [FIRST, SECOND];
    let beat_out = || ["c1", "c2"].iter().for_each(|name| beat(&out, name, &all));
    beat_out();
    regions.cut("a");
    set_regions(&regions, 1, &["a", "b"]).await;
    let whole = async || {
        let tx = out.store.begin();
        let replica = tx.get(&log::replica_key(ROOT_VOLUME), Read::Snapshot).await.unwrap();
        replica.is_some() && left(&out).await > 30 && placed(&out).await == all
    };
    until("it says why it keeps everything", async || {
        beat_out();
        stage(&out).contains("it keeps what it has")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(whole().await, "{}", stage(&out));
    regions.heal();
    // One of two copies of the second chunk isn't there.
    let beat_home = |second: bool| {
        beat(&home, "a1", &all);
        beat(&home, "a2", if second { &all } else { &all[..1] });
    };
    until("it says that the home lacks a copy", async || {
        beat_out();
        beat_home(false);
        stage(&out).contains("healthy copies as are asked for of 1 chunks")
    })
    .await;
    assert!(whole().await, "{}", stage(&out));
    assert!(out.desk(|desk| desk.take_commands("c1", out.clock.boot(), u64::MAX)).is_empty());
    place(&home, SECOND, &["a1", "a2"]).await;
    let mut deleted = 0;
    until("it lets go", async || {
        beat_out();
        beat_home(true);
        deleted += out.desk(|desk| desk.take_commands("c1", out.clock.boot(), u64::MAX)).len();
        left(&out).await == 0 && placed(&out).await.is_empty() && deleted >= 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_while_another_region_of_the_volume_lacks_it_and_it_is_taken_back_whole() {
    let (mut regions, [home, _, out], _) = three(false).await;
    let beat_all = || {
        ["a1", "a2"].iter().for_each(|name| beat(&home, name, &[FIRST]));
        ["c1", "c2"].iter().for_each(|name| beat(&out, name, &[FIRST]));
    };
    regions.kill_region("b").await;
    beat_all();
    // What only the home and this region have.
    change(&client(&regions, "a", "a"), mkdir("more")).await;
    complete(&home, &out).await;
    let before = position(&out).unwrap();
    set_regions(&regions, 1, &["a", "b"]).await;
    until("it says who lacks it", async || {
        beat_all();
        stage(&out).contains("the region b, which is to have the volume,")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    beat_all();
    assert!(left(&out).await > 30 && placed(&out).await == [FIRST], "{}", stage(&out));
    assert!(stage(&out).contains("the region b, which is to have the volume,"), "{}", stage(&out));
    let tx = out.store.begin();
    let copied = tx.get(&log::replica_key(ROOT_VOLUME), Read::Snapshot).await.unwrap();
    // A mistake: it goes on from where it was.
    set_regions(&regions, 1, &["a", "b", "c"]).await;
    until("it follows", async || position(&out).is_some_and(|(at, _)| at >= before.0)).await;
    assert!(copied.is_some() && stage(&out).is_empty());
    assert_eq!(placed(&out).await, [FIRST]);
    let compared = verify::compare(&out, ROOT_VOLUME).await.unwrap();
    assert!(compared.different.is_empty(), "{compared:?}");
}

/// A home that was lost with a tail of its own, and is taken out before it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_home_that_is_taken_out_puts_its_tail_aside_before_it_lets_go() {
    let (mut regions, [home, _, _], _) = three(false).await;
    let old = client(&regions, "a", "a");
    let cut = position(serving(&regions, "b").unwrap()).unwrap().1;
    // Bytes that no other region can get: whatever follows isn't complete there.
    place(&home, SECOND, &["alone"]).await;
    use_chunk(&home, SECOND).await;
    for n in 0..3 {
        change(&old, mkdir(&format!("e{n}"))).await;
    }
    drop(home);
    regions.kill_region("a").await;
    let next = async |regions: &Regions| {
        let mut next = None;
        until("another region is the home", async || {
            next = ["b", "c"].into_iter().find(|region| {
                leads(regions, region, ROOT_VOLUME).is_some_and(|master| {
                    master.global.as_ref().unwrap().may_change(ROOT_VOLUME) == Some(Epoch(2))
                        && master.geo.newest(ROOT_VOLUME).epoch == Epoch(2)
                })
            });
            next.is_some()
        })
        .await;
        serving(regions, next.unwrap()).unwrap().clone()
    };
    let next = next(&regions).await;
    set_regions(&regions, 2, &["b", "c"]).await;
    for i in regions.of("a") {
        regions.run(i).await;
    }
    let back = regions.running[regions.of("a")[0]].as_ref().unwrap().master().clone();
    let beat_all = || {
        ["b1", "b2", "c1", "c2"].iter().for_each(|name| {
            if name.starts_with(&next.config.region) {
                beat(&next, name, &[FIRST]);
            }
        });
        beat(&back, "alone", &[SECOND]);
    };
    until("its records are gone", async || {
        beat_all();
        left(&back).await == 0 && stage(&back).contains("put aside")
    })
    .await;
    until("the loss is named", async || ledger(&next).await[0].1.named.is_some()).await;
    let [(of, archive)] = &losses::archives(&back.store.begin(), ROOT_VOLUME).await.unwrap()[..] else {
        panic!("one archive")
    };
    assert!(*of >= cut && archive.was_home && archive.entries >= 4, "{of} {archive:?}");
    let shown = losses::show_salvage(&back, salvage_of(*of)).await.unwrap();
    assert!(shown.files.iter().any(|file| file.path == "/e2"), "{:?}", shown.files);
    let content = shown.entries.iter().flat_map(|entry| &entry.contents).find(|of| of.chunk == SECOND.0);
    assert!(
        content.is_some_and(|content| content.here),
        "its bytes are there, and it is known where: {content:?}"
    );
    assert_eq!(losses::list_salvage(&back, 0).await.unwrap().archives.len(), 1);
    assert_eq!(placed(&back).await, [SECOND]);
    let told = back.desk(|desk| desk.take_commands("alone", back.clock.boot(), 1));
    assert!(told.is_empty(), "{told:?}");
}

/// A volume that was in several regions, and is in one by now: its log went on, and nothing of it was ever let go of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_a_volume_that_one_region_has_is_let_go_of() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    by_command_only(&regions).await;
    let old = client(&regions, "a", "a");
    let at = change(&old, mkdir("d")).await;
    assert!(near(&client(&regions, "b", "b"), "d", &at).await.is_some());
    set_regions(&regions, 1, &["a"]).await;
    let at = change(&old, mkdir("alone")).await;
    let home = serving(&regions, "a").unwrap().clone();
    let kept = async || {
        let upto = log::range_upto(ROOT_VOLUME, LogPosition::new(Epoch(at.epoch), at.version));
        home.store.begin().get_range(upto, RangeLimit::default(), Read::Snapshot).await.unwrap().pairs.len()
    };
    assert!(kept().await > 0);
    until("it goes", async || kept().await == 0).await;
    // It is logged still, from there on: a region that comes to it copies it.
    set_regions(&regions, 1, &["a", "b"]).await;
    let at = change(&old, mkdir("together")).await;
    assert!(near(&client(&regions, "b", "b"), "together", &at).await.is_some());
    let replica = serving(&regions, "b").unwrap().clone();
    let compared = verify::compare(&replica, ROOT_VOLUME).await.unwrap();
    assert!(compared.pairs > 10 && compared.different.is_empty(), "{compared:?}");
}
