//! The chunks of sessions that are gone, or seem so.

use std::sync::atomic::Ordering;

use mooseng_namespace::abandon::{self, Over};
use mooseng_namespace::sessions;
use mooseng_wire::SessionId;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::*;

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
