//! A region whose masters lost their disks is made anew: what chunkservers and sessions of the old one meet there.

use mooseng_embedded::MemoryBase;
use mooseng_wire::call::ErrorCode;

use super::*;

/// The only founding master loses its disk, and makes the region anew with empty metadata. To that one the chunkservers' chunks are orphans, which
/// house-keeping collects.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_was_made_anew_deletes_nothing_of_the_old_one() {
    let mut region = Region::start(1, 2, |_| ()).await;
    let bytes = pattern(50_000, 3);
    let (inode, _) = region.file("f", &bytes).await;
    let mark = region.client.session.lock().await.founding.clone();
    assert_eq!(mark.len(), 16);
    for running in region.chunkservers.iter().flatten() {
        let store = running.server.store();
        until("the chunkserver has the mark", async || {
            store.founding().is_some_and(|own| own.0[..] == mark[..])
        })
        .await;
    }

    region.cluster.kill(0).await;
    let site = &mut region.cluster.sites[0];
    let old = (site.disk.clone(), site.base.clone());
    (site.disk, site.base) = (SimDisk::default(), MemoryBase::new());
    region.cluster.run(0).await;
    region.cluster.leader().await;
    let refused = region.client.open(&[]).await.unwrap_err();
    assert_eq!(refused.0, ErrorCode::OtherFounding, "{refused:?}");
    let refused = region.client.renew().await.unwrap_err();
    assert_eq!(refused.0, ErrorCode::OtherFounding, "{refused:?}");
    until("status names everybody", async || {
        let status = region.status().await;
        let named =
            |who: &str| status.findings.iter().any(|f| f.code == "OTHER_FOUNDING" && f.subject.contains(who));
        named("chunkserver c0") && named("chunkserver c1") && named("/client/writer")
    })
    .await;
    // A chunkserver that begins anew is taken in, and nothing but what it has is seen.
    region.add().await;
    // Longer than it takes to scan, to collect and to tell (`quick`).
    tokio::time::sleep(Duration::from_secs(4)).await;
    let status = region.status().await;
    let names: Vec<&str> = status.chunkservers.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["c2"], "chunkservers of the old region are neither registered nor placed on");
    assert_eq!(status.house.unwrap().dead, 0);
    for i in 0..2 {
        assert_eq!(region.files(i).len(), 1, "the only copies of the old region's data");
        let running = region.chunkservers[i].as_ref().unwrap();
        until("its readiness says why", async || {
            running.server.ready().is_err_and(|why| why.starts_with("OTHER_FOUNDING"))
        })
        .await;
        assert_eq!(running.server.store().founding().map(|own| own.0.to_vec()), Some(mark.to_vec()));
    }

    // The old disk is found: everything goes on.
    region.cluster.kill(0).await;
    let site = &mut region.cluster.sites[0];
    (site.disk, site.base) = old;
    region.stop(2).await;
    region.cluster.run(0).await;
    region.client.open(&[]).await.unwrap();
    assert_eq!(region.client.session.lock().await.founding, mark);
    for i in 0..2 {
        until("it is ready again", async || region.chunkservers[i].as_ref().unwrap().server.ready().is_ok())
            .await;
    }
    until("the places are known", async || region.names(inode).await.len() == 2).await;
    region.check(inode, &bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mark_is_kept_by_every_leader() {
    let mut region = Region::start(3, 2, |_| ()).await;
    let bytes = pattern(20_000, 5);
    let (inode, _) = region.file("f", &bytes).await;
    let mark = region.client.session.lock().await.founding.clone();
    let leader = region.cluster.leader().await;
    region.cluster.kill(leader).await;
    let opened = region.client.open(&[]).await.unwrap();
    assert_eq!(opened.founding, mark);
    for i in 0..2 {
        region.stop(i).await;
        region.run(i).await;
        let server = &region.chunkservers[i].as_ref().unwrap().server;
        until("it is ready", async || server.ready().is_ok()).await;
        assert_eq!(server.store().founding().map(|own| own.0.to_vec()), Some(mark.to_vec()));
    }
    until("both places are known", async || region.names(inode).await.len() == 2).await;
    region.check(inode, &bytes).await;
}
