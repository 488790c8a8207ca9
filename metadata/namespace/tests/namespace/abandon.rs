//! The chunks of sessions that are gone, or seem so.

use std::sync::atomic::Ordering;

use mooseng_namespace::abandon::{self, Over};
use mooseng_namespace::{sessions, upkeep};
use mooseng_schema::Record;
use mooseng_schema::location::{self, LocationRecord};
use mooseng_store::Transaction;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;
use mooseng_wire::{ChunkId, Epoch, SessionId, VolumeId};

use crate::harness::*;
use crate::model::*;

async fn over(volume: &Volume, session: u64) -> Option<Over> {
    let over = volume.driver.transact(deadline(), |tx| Box::pin(abandon::over(tx, SessionId(session))));
    over.await.unwrap().0
}

async fn seal(volume: &Volume, session: u64, over: Over, seal: SealChunk) -> bool {
    let ctx = volume.context(&request(&root(), Op::SealChunk(seal.clone())));
    let sealed = volume.driver.transact(deadline(), |tx| {
        let (ctx, seal) = (ctx.clone(), seal.clone());
        Box::pin(async move { abandon::seal(tx, &ctx, SessionId(session), over, seal).await })
    });
    sealed.await.unwrap().0
}

async fn lapse(volume: &Volume, session: u64) {
    let lapse =
        volume.driver.transact(deadline(), |tx| Box::pin(sessions::lapse_session(tx, SessionId(session), 5)));
    assert!(lapse.await.unwrap().0);
}

async fn come_back(volume: &Volume, client: &Client<'_>) {
    let bump = volume
        .driver
        .transact(deadline(), |tx| Box::pin(sessions::bump_incarnation(tx, SessionId(client.id))));
    client.incarnation.store(bump.await.unwrap().0.unwrap().0, Ordering::Relaxed);
}

/// What was appended in one life may be committed in the next, unless the chunk was sealed in between; never is it cut afterwards.
#[tokio::test]
async fn a_session_that_comes_back_while_its_chunk_is_abandoned_loses_nothing() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let allocate = Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] });
    let Reply::Allocated(allocated) = client.ask(allocate).await else { panic!("not allocated") };
    let chunk = allocated.place.unwrap().chunk;
    let write = |length| {
        let run = ChunkRun { chunk, chunk_offset: 0, length };
        let piece = WritePiece { offset: 0, data: Some(write_piece::Data::Run(run)) };
        Op::Write(Write { inode, pieces: vec![piece], ..Default::default() })
    };
    let nothing = SealChunk { chunk, acknowledged: 0, failed: vec![] };
    assert_eq!(over(&volume, 1).await, None);

    lapse(&volume, 1).await;
    let first = over(&volume, 1).await.unwrap();
    // No extent names the chunk yet: zero bytes would be kept.
    come_back(&volume, &client).await;
    assert_eq!(client.errno(write(10)).await, 0);
    assert!(!seal(&volume, 1, first, nothing.clone()).await);
    // Also once the next life is over, too.
    lapse(&volume, 1).await;
    assert!(!seal(&volume, 1, first, nothing.clone()).await);

    let second = over(&volume, 1).await.unwrap();
    assert!(seal(&volume, 1, second, SealChunk { acknowledged: 10, ..nothing.clone() }).await);
    come_back(&volume, &client).await;
    assert_eq!(
        client.errno(write(20)).await,
        ESTALE,
        "what wasn't committed before the seal must be appended anew"
    );
    assert_eq!(client.errno(write(10)).await, 0);
    assert_eq!(
        over(&volume, 99).await,
        Some(over(&volume, 98).await.unwrap()),
        "a closed session doesn't come back"
    );
    volume.check();
}

/// What a chunk has beyond what the log named when its home was lost may be there alone, also where it was sealed.
#[tokio::test]
async fn a_home_takes_of_a_sealed_chunk_of_the_one_before_only_what_is_here() {
    let volume = Volume::new().await;
    let client = volume.client(1).await;
    let inode = client.create(ROOT, "f").await;
    let allocate = Op::AllocateChunk(AllocateChunk { inode, exclude: vec![] });
    let Reply::Allocated(allocated) = client.ask(allocate).await else { panic!("not allocated") };
    let chunk = allocated.place.unwrap().chunk;
    let write = |length| {
        let run = ChunkRun { chunk, chunk_offset: 0, length };
        let piece = WritePiece { offset: 0, data: Some(write_piece::Data::Run(run)) };
        Op::Write(Write { inode, pieces: vec![piece], ..Default::default() })
    };
    assert_eq!(client.errno(write(10)).await, 0);
    assert_eq!(client.errno(Op::SealChunk(SealChunk { chunk, acknowledged: 30, failed: vec![] })).await, 0);
    assert_eq!(client.errno(write(20)).await, 0, "under its own home it may be named later");

    // Of these bytes another region had 20 when it became the home.
    volume.epoch.store(2, Ordering::Relaxed);
    let raised =
        volume.driver.transact(deadline(), |tx| Box::pin(upkeep::raise_epoch(tx, VolumeId(0), Epoch(2))));
    raised.await.unwrap();
    let locate = async |location: Option<LocationRecord>| {
        let located = volume.driver.transact(deadline(), |tx| {
            let (key, location) = (location::key(ChunkId(chunk)), location.clone());
            Box::pin(async move {
                match location {
                    Some(location) => tx.set(&key, &location.to_value()),
                    None => tx.clear(&key),
                }
                Ok(())
            })
        });
        located.await.unwrap();
    };
    let of = |partial| LocationRecord { layout: 1, copies: vec!["cs-9".into()], epoch: 1, partial };
    locate(Some(of(Some(20)))).await;
    assert_eq!(client.errno(write(21)).await, ESTALE, "they must be appended anew");
    assert_eq!(client.errno(write(20)).await, 0);
    locate(None).await;
    assert_eq!(client.errno(write(5)).await, ESTALE);
    locate(Some(of(None))).await;
    assert_eq!(client.errno(write(30)).await, 0);
}
