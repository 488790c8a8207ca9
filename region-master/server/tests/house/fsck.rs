//! The check of the whole store, asked of a master over gRPC.

use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::{Record, chunk};
use mooseng_store::{Read as Reading, Store, Transaction};
use mooseng_wire::admin::fsck_news::News;
use mooseng_wire::admin::{FsckDone, FsckFinding, FsckRequest};
use mooseng_wire::{ChunkId, InodeId};

use super::*;

pub async fn check(
    region: &Region,
    who: Role,
    at: usize,
    repair: bool,
) -> Result<(Vec<FsckFinding>, FsckDone), tonic::Status> {
    let network = Arc::new(PlainNetwork::new(identity(who, "root")));
    let address = region.cluster.addresses().remove(at);
    let mut admin = AdministrationClient::new(grpc_channel(network, &address, Role::Master).await);
    let mut news = admin.fsck(FsckRequest { repair }).await?.into_inner();
    let mut findings = vec![];
    while let Some(next) = news.message().await? {
        match next.news {
            Some(News::Finding(finding)) => findings.push(finding),
            Some(News::Done(done)) => return Ok((findings, done)),
            _ => {}
        }
    }
    panic!("the check ended without a word")
}

pub async fn finds_nothing(region: &Region) {
    let (findings, done) = check(region, Role::Admin, region.cluster.leader().await, false).await.unwrap();
    assert_eq!((findings, done.found), (vec![], 0));
    assert!(done.inodes > 1 && done.copies > 0, "{done:?}");
}

fn kinds(findings: &[FsckFinding]) -> Vec<&str> {
    findings.iter().map(|f| f.kind.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_named_by_a_follower_and_counters_are_set_right_by_the_leader() {
    let region = Region::start(3, 2, |config| config.house.settle_ms = 0).await;
    let (inode, place) = region.file("file", &pattern(300_000, 1)).await;
    region.file("another", &pattern(1_000, 2)).await;
    finds_nothing(&region).await;
    assert_eq!(
        check(&region, Role::Client, 0, false).await.unwrap_err().code(),
        tonic::Code::PermissionDenied
    );
    let leader = region.cluster.leader().await;
    let follower = (leader + 1) % 3;
    assert_eq!(
        check(&region, Role::Admin, follower, true).await.unwrap_err().code(),
        tonic::Code::Unavailable
    );

    // Who is promised something, and doesn't answer, would hold the repair up for its lease.
    close(&region.client).await;
    // A counter is off, and a chunk's record is gone.
    let store = region.cluster.running[leader].as_ref().unwrap().master().store.clone();
    let (inode_key, chunk_key) = (inode::key(InodeId(inode)), chunk::key(ChunkId(place.chunk)));
    let tx = store.begin();
    let mut record =
        InodeRecord::from_value(&tx.get(&inode_key, Reading::Conflicting).await.unwrap().unwrap()).unwrap();
    record.allocated += 5;
    tx.set(&inode_key, &record.to_value());
    tx.clear(&chunk_key);
    tx.commit().await.unwrap();
    let expected = ["ALLOCATED", "CHUNK_MISSING", "CHUNK_PLACE"];
    until("the follower names both", async || {
        let (findings, done) = check(&region, Role::Admin, follower, false).await.unwrap();
        let mut kinds = kinds(&findings);
        kinds.sort_unstable();
        kinds == expected
            && done.found == 3
            && findings.iter().all(|f| f.paths.first().is_some_and(|path| path == &b"/file"[..]))
    })
    .await;
    let (findings, done) = check(&region, Role::Admin, leader, true).await.unwrap();
    assert_eq!((done.found, done.repaired), (3, 1));
    for finding in findings {
        let repaired = finding.kind == "ALLOCATED";
        assert_eq!(finding.repaired == "repaired", repaired, "{finding:?}");
    }
    let (findings, _) = check(&region, Role::Admin, leader, false).await.unwrap();
    assert_eq!(kinds(&findings), ["CHUNK_MISSING", "CHUNK_PLACE"]);
}

/// A copy that is missing on a chunkserver that is here is named with its file, unless it is replaced while the check looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_copy_is_named() {
    // Repair doesn't look in this time.
    let mut region = Region::start(1, 2, |config| {
        config.house.settle_ms = 0;
        config.house.scan_every_ms = 600_000;
    })
    .await;
    let (_, place) = region.file("file", &pattern(300_000, 1)).await;
    finds_nothing(&region).await;
    region.stop(1).await;
    let name = format!("/data/chunks/{:02x}/{:016x}", place.chunk & 0xff, place.chunk);
    region.disks[1].remove(Path::new(&name)).unwrap();
    region.run(1).await;
    let mut findings = vec![];
    until("the missing copy is told", async || {
        findings = check(&region, Role::Admin, 0, false).await.unwrap().0;
        !findings.is_empty()
    })
    .await;
    assert!(kinds(&findings).contains(&"COPY_BAD"), "{findings:?}");
    assert!(findings.iter().all(|f| f.paths == [Bytes::from_static(b"/file")]), "{findings:?}");
}
