//! What the home hasn't, or doesn't give, is found in the other regions.

use mooseng_master::geo::chunks::source_of;
use mooseng_schema::Record;
use mooseng_schema::chunk::{self, ChunkRecord, ChunkUse};
use mooseng_schema::extent::{self, ExtentRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_store::{Store, Transaction};
use mooseng_wire::admin::HeartbeatRequest;
use mooseng_wire::geo::{AskSource, Place};
use mooseng_wire::{ChunkId, InodeId};

use super::common::regions::Regions;
use super::{caught_up, change, client, mkdir, near, serves_as_home, serving};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_home_lacks_or_doesnt_answer_for_is_found_in_a_third_region() {
    // Nobody takes over within the test.
    let mut regions = Regions::start_of(&[("a", 1), ("b", 1), ("c", 1), ("w", 1)], 60_000).await;
    serves_as_home(&regions, "a", 1).await;
    let home = client(&regions, "b", "a");
    let (file, chunk) = (InodeId(900_000), ChunkId(900_000));
    let tx = serving(&regions, "a").unwrap().store.begin();
    let record = ChunkRecord { length: 9, sealed: true, birth: 1, ..ChunkRecord::default() };
    tx.set(&chunk::key(chunk), &record.to_value());
    tx.set(&chunk::reference_key(chunk, file), &ChunkUse { extents: 1, bytes: 9 }.to_value());
    let extent = ExtentRecord { chunk: chunk.0, length: 9, ..ExtentRecord::default() };
    tx.set(&extent::key(file, 0), &extent.to_value());
    tx.commit().await.unwrap();
    change(&home, mkdir("d")).await;
    for region in ["b", "c"] {
        caught_up(&regions, region).await;
    }
    // A part of it, of which it says that it is there.
    let third = serving(&regions, "c").unwrap().clone();
    let held = LocationRecord { layout: 1, copies: vec!["one".into()], epoch: 1, partial: Some(8) };
    let tx = third.store.begin();
    tx.set(&location::key(chunk), &held.to_value());
    tx.commit().await.unwrap();
    let beat = HeartbeatRequest {
        chunkserver: "one".into(),
        address: "one:1".into(),
        incarnation: 1,
        ..HeartbeatRequest::default()
    };
    third.desk(|desk| desk.beat(third.clock.boot(), beat)).unwrap();

    let there = serving(&regions, "b").unwrap().clone();
    let asked = |length, grows| AskSource { chunk: chunk.0, length, grows };
    let found = async |length, grows| {
        let source = source_of(&there, &asked(length, grows)).await?;
        Ok::<_, String>(source.holders.into_iter().map(|of| of.address).collect::<Vec<_>>())
    };
    assert_eq!(found(8, true).await.unwrap(), ["one:1"]);
    // No more than that, nor all of it.
    let more = found(9, true).await.unwrap_err();
    assert!(more.contains("no such chunk") && more.contains("c: "), "{more}");
    assert!(found(9, false).await.is_err());
    regions.kill_region("a").await;
    assert_eq!(found(8, true).await.unwrap(), ["one:1"]);
    // A client whose own region can't answer reads in another one.
    let reader = client(&regions, "c", "b");
    assert!(near(&reader, "d", &Place::default()).await.is_some());
}
