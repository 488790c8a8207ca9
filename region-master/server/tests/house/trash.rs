//! Deleted files, as an administrator lists, restores and purges them over gRPC, and as they expire by themselves.

use mooseng_store::Store;
use mooseng_wire::VolumeId;
use mooseng_wire::admin::purge_trash_request::Which;
use mooseng_wire::admin::{
    ListTrashReply, ListTrashRequest, PurgeTrashReply, PurgeTrashRequest, RestoreTrashRequest,
    TrashRetentionRequest,
};
use mooseng_wire::fs::{Attr, Lookup, Open};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::*;

const KEPT_S: u64 = 3_600;

fn kept(config: &mut MasterConfig) {
    config.house.trash_retention_s = KEPT_S;
    config.house.trash_min_age_s = 0;
}

async fn admin(region: &Region, who: Role, at: usize) -> AdministrationClient<Channel> {
    let network = Arc::new(PlainNetwork::new(identity(who, "root")));
    AdministrationClient::new(grpc_channel(network, &region.cluster.addresses()[at], Role::Master).await)
}

pub async fn leader(region: &Region) -> AdministrationClient<Channel> {
    admin(region, Role::Admin, region.cluster.leader().await).await
}

async fn list(region: &Region) -> ListTrashReply {
    leader(region).await.list_trash(ListTrashRequest::default()).await.unwrap().into_inner()
}

async fn restore(region: &Region, inode: u64, to: Option<&str>) -> Result<Bytes, Status> {
    let to = to.map(|path| Bytes::copy_from_slice(path.as_bytes()));
    let request = RestoreTrashRequest { inode, to };
    leader(region).await.restore_trash(request).await.map(|reply| reply.into_inner().path)
}

async fn purge(region: &Region, which: Which) -> Result<PurgeTrashReply, Status> {
    let request = PurgeTrashRequest { which: Some(which), ..PurgeTrashRequest::default() };
    leader(region).await.purge_trash(request).await.map(tonic::Response::into_inner)
}

async fn unlink(region: &Region, file: &str) {
    let unlink = Unlink { parent: ROOT_INODE.0, name: file.to_owned().into() };
    assert!(matches!(region.client.change(Op::Unlink(unlink)).await.unwrap(), Reply::Done(_)));
}

async fn lookup(region: &Region, file: &str) -> Option<Attr> {
    let lookup = Lookup { parent: ROOT_INODE.0, name: file.to_owned().into() };
    match region.client.read(Op::Lookup(lookup)).await.unwrap() {
        Reply::Entry(entry) => entry.attr,
        _ => None,
    }
}

/// A new session: the one before had been promised things, and answers no recalls.
pub async fn anew(region: &mut Region) {
    close(&region.client).await;
    region.client = region.cluster.client("writer").await;
    region.client.open(&[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_file_is_listed_restored_and_purged_over_a_leaders_death() {
    let mut region = Region::start(3, 2, kept).await;
    let bytes = pattern(300_000, 1);
    let (inode, place) = region.file("file", &bytes).await;
    let before = lookup(&region, "file").await.unwrap();
    unlink(&region, "file").await;
    let listed = list(&region).await;
    let [entry] = &listed.entries[..] else { panic!("{listed:?}") };
    assert_eq!((entry.place.unwrap().inode, entry.size, &entry.path[..]), (inode, 300_000, &b"/file"[..]));
    let status = listed.status.unwrap();
    assert_eq!((status.files, status.bytes, status.retention_s), (1, 300_000, KEPT_S));
    until("status says what it holds", async || region.status().await.trash == Some(status)).await;

    // Who may ask, and whom.
    let mut as_client = admin(&region, Role::Client, region.cluster.leader().await).await;
    let refused = as_client.list_trash(ListTrashRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = as_client.restore_trash(RestoreTrashRequest { inode, to: None }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = as_client.purge_trash(PurgeTrashRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = as_client.trash_retention(TrashRetentionRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let follower = (region.cluster.leader().await + 1) % 3;
    let mut follower = admin(&region, Role::Admin, follower).await;
    let refused = follower.list_trash(ListTrashRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);

    // The next leader has it, too.
    region.cluster.kill(region.cluster.leader().await).await;
    region.client.open(&[]).await.unwrap();
    assert_eq!(list(&region).await.entries, listed.entries);
    let taken = region.create("taken").await;
    anew(&mut region).await;
    let refused = restore(&region, inode, Some("/taken")).await.unwrap_err();
    assert!(
        refused.code() == Code::AlreadyExists && refused.message().contains("/taken exists"),
        "{refused}"
    );
    assert_eq!(restore(&region, inode, Some("/no/where")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(restore(&region, inode, Some("here")).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(restore(&region, taken, None).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(restore(&region, inode, None).await.unwrap(), "/file");
    let after = lookup(&region, "file").await.unwrap();
    assert_eq!(Attr { ctime_ns: after.ctime_ns, ..before }, after);
    region.check(inode, &bytes).await;
    assert!(list(&region).await.entries.is_empty());
    fsck::finds_nothing(&region).await;

    unlink(&region, "file").await;
    assert_eq!(purge(&region, Which::OlderThanS(600)).await.unwrap().files, 0);
    assert_eq!(region.files(0).len(), 1, "it is kept");
    let purged = purge(&region, Which::Inode(inode)).await.unwrap();
    assert_eq!((purged.files, purged.bytes), (1, 300_000));
    assert_eq!(purge(&region, Which::Inode(inode)).await.unwrap_err().code(), Code::NotFound);
    until("its chunk goes", async || region.files(0).is_empty() && region.files(1).is_empty()).await;
    until("status says so", async || region.status().await.trash.unwrap().files == 0).await;
    assert_ne!(place.chunk, 0);
}

async fn is_held(region: &Region) -> bool {
    region.status().await.findings.iter().any(|finding| finding.code == "TRASH_HELD")
}

/// Found by review: a wall clock that was set forward emptied the trash for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_forward_empties_no_trash() {
    let clock = SetClock::default();
    let mut region = Region::start_by(Arc::new(clock.clone()), 3, 2, kept).await;
    let bytes = pattern(50_000, 1);
    let (inode, _) = region.file("file", &bytes).await;
    unlink(&region, "file").await;
    until("it is known", async || region.status().await.trash.is_some_and(|trash| trash.files == 1)).await;
    assert!(!is_held(&region).await);
    clock.step(30 * DAY_S);
    until("it is held", async || is_held(&region).await).await;
    // The next leader, whose clock is as wrong, holds it, too.
    region.cluster.kill(region.cluster.leader().await).await;
    region.client.open(&[]).await.unwrap();
    until("it is held again", async || is_held(&region).await).await;
    let refused = purge(&region, Which::OlderThanS(600)).await.unwrap_err();
    assert!(
        refused.code() == Code::FailedPrecondition && refused.message().contains("TRASH_HELD"),
        "{refused}"
    );
    assert_eq!(region.metric("mooseng_master_trash_expired_total").await, 0);
    assert_eq!(list(&region).await.entries.len(), 1);
    anew(&mut region).await;
    assert_eq!(restore(&region, inode, None).await.unwrap(), "/file");
    region.check(inode, &bytes).await;
    until("nothing is held", async || !is_held(&region).await).await;
    // What is deleted by a clock that was set right again isn't held, either.
    clock.step(-30 * DAY_S);
    unlink(&region, "file").await;
    assert_eq!(purge(&region, Which::OlderThanS(0)).await.unwrap().files, 1);
}

/// Nobody led while the clock was set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_set_forward_while_the_master_was_down_empties_no_trash() {
    let clock = SetClock::default();
    let mut region = Region::start_by(Arc::new(clock.clone()), 1, 2, kept).await;
    region.file("file", &pattern(50_000, 1)).await;
    unlink(&region, "file").await;
    let seen = async |region: &Region| {
        let master = region.cluster.running[0].as_ref().unwrap().master();
        let kept = mooseng_schema::clock::Kept::Trash;
        mooseng_namespace::clock::seen(&master.store.begin(), VolumeId(0), kept).await.unwrap()
    };
    until("the clock is on record", async || seen(&region).await.is_some()).await;
    region.cluster.kill(0).await;
    clock.step(30 * DAY_S);
    region.cluster.run(0).await;
    region.cluster.leader().await;
    until("it is held", async || is_held(&region).await).await;
    assert_eq!(list(&region).await.entries.len(), 1);
    let seen = seen(&region).await.unwrap();
    assert!(seen.steady_ns.is_some() && seen.step_ns > 0, "{seen:?}");
}

/// One that is open is freed once it is closed, also after it has expired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_is_freed_and_nothing_before() {
    let region = Region::start(1, 2, |config| {
        config.house.trash_retention_s = 2;
        config.house.trash_min_age_s = 0;
    })
    .await;
    let bytes = pattern(50_000, 2);
    let (open, _) = region.file("open", &bytes).await;
    region.file("closed", &bytes).await;
    region.client.read(Op::Open(Open { inode: open, flags: 0 })).await.unwrap();
    let began = std::time::Instant::now();
    unlink(&region, "open").await;
    unlink(&region, "closed").await;
    until("they expire", async || region.metric("mooseng_master_trash_expired_total").await == 2).await;
    assert!(began.elapsed().as_secs() >= 2, "they expired after {:?}", began.elapsed());
    until("the closed one goes", async || region.files(0).len() == 1 && region.files(1).len() == 1).await;
    region.check(open, &bytes).await;
    region.client.read(Op::Release(Release { inode: open })).await.unwrap();
    until("the open one goes, too", async || region.files(0).is_empty() && region.files(1).is_empty()).await;
    assert_eq!(region.metric("mooseng_master_inodes_reaped_total").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_retention_is_set_for_what_is_deleted_from_then_on() {
    let region = Region::start(1, 2, kept).await;
    let ask = async |set_s| {
        let reply =
            leader(&region).await.trash_retention(TrashRetentionRequest { set_s, ..<_>::default() }).await;
        reply.map(|reply| reply.into_inner().retention_s)
    };
    assert_eq!(ask(None).await.unwrap(), KEPT_S);
    let bytes = pattern(50_000, 3);
    for file in ["a", "b", "c"] {
        region.file(file, &bytes).await;
    }
    unlink(&region, "a").await;
    assert_eq!(ask(Some(0)).await.unwrap(), 0);
    unlink(&region, "b").await;
    until("the second one is freed", async || region.files(0).len() == 2).await;
    assert_eq!(ask(Some(u64::MAX)).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(ask(Some(60)).await.unwrap(), 60);
    unlink(&region, "c").await;
    let paths: Vec<Bytes> = list(&region).await.entries.into_iter().map(|entry| entry.path).collect();
    assert_eq!(paths, ["/a", "/c"], "what stays longest comes first");
    assert_eq!(purge(&region, Which::OlderThanS(0)).await.unwrap().files, 2);
    until("all are freed", async || region.files(0).is_empty() && region.files(1).is_empty()).await;
}
