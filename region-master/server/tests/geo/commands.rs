//! What administrators ask about a volume by its number, over gRPC: its home answers, with paths as the one tree shows them.

use std::sync::Arc;

use bytes::Bytes;
use mooseng_master::geo::ROOT_VOLUME;
use mooseng_master::own::{self, Repeat};
use mooseng_namespace::joins as records;
use mooseng_schema::directory::{self, Counter};
use mooseng_schema::number;
use mooseng_store::{Atomic, Store, Transaction};
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::{PlainNetwork, grpc_channel};
use mooseng_wire::admin::fsck_news::News;
use mooseng_wire::admin::quota_target::Whose;
use mooseng_wire::admin::*;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Create, Rename, Unlink};
use mooseng_wire::geo::Home;
use mooseng_wire::{InodeId, Role, VolumeId};
use prost::Message;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::common::regions::{Regions, identity_of};
use super::common::until;
use super::joins::{directory as made, inside};
use super::moving::Mount;
use super::sessions::{WITHIN, done, errno, file, gone, of_volume, volume};
use super::volumes::{follows, is_home, leads};
use super::{addresses, change, client, serves_as_home};

pub(super) const SECOND: VolumeId = VolumeId(1);
const EDQUOT: u32 = 122;

/// An administrator of a region at a master of another one.
async fn admin_of(regions: &Regions, of: &str, who: Role, at: &str) -> AdministrationClient<Channel> {
    let network = Arc::new(PlainNetwork::new(identity_of(of, who, "root")));
    AdministrationClient::new(grpc_channel(network, &addresses(regions, at)[0], Role::Master).await)
}

pub(super) async fn admin(regions: &Regions, at: &str) -> AdministrationClient<Channel> {
    admin_of(regions, "a", Role::Admin, at).await
}

pub(super) fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// The region that a refusal names.
pub(super) fn home(refused: &Status) -> Option<String> {
    let error = CallError::decode(refused.details()).unwrap();
    (error.code() == ErrorCode::NotHome).then(|| Home::decode(error.detail).unwrap().region)
}

async fn crossing(regions: &Regions, at: &str, volume: u32, path: &str) -> Result<CrossingReply, Status> {
    let request = CrossingRequest { volume, path: text(path) };
    admin(regions, at).await.find_crossing(request).await.map(tonic::Response::into_inner)
}

async fn trash(regions: &Regions, at: &str, volume: u32, under: &str) -> ListTrashReply {
    let request = ListTrashRequest { volume, under: text(under), before: None };
    admin(regions, at).await.list_trash(request).await.unwrap().into_inner()
}

fn whose(volume: u32, path: &str) -> QuotaTarget {
    QuotaTarget { whose: Some(Whose::Path(text(path))), volume }
}

async fn quotas(regions: &Regions, at: &str, volume: u32) -> Vec<Quota> {
    let request = ListQuotasRequest { volume, ..ListQuotasRequest::default() };
    admin(regions, at).await.list_quotas(request).await.unwrap().into_inner().quotas
}

/// The root volume in a, and one in b that is joined at /d.
pub(super) async fn two() -> Regions {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    assert_eq!(volume(&regions, "/d", "b", &["a", "b"]).await, SECOND);
    regions
}

async fn unlink(mount: &mut Mount, name: &str) {
    let parent = InodeId::root_of(mount.volume).0;
    let reply = done(mount, Op::Unlink(Unlink { parent, name: text(name) })).await;
    assert_eq!(errno(&reply), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_is_followed_into_the_volume_that_it_leads_into() {
    let regions = two().await;
    for (path, joined, walked) in
        [("/d/x/y", 1, 2), ("/d", 1, 2), ("//d/x", 1, 3), ("/", 0, 0), ("/none/x", 0, 0)]
    {
        let told = crossing(&regions, "a", 0, path).await.unwrap();
        assert_eq!((told.joined, told.walked, told.at), (joined, walked, Bytes::new()), "{path}");
    }
    // Where it isn't at home, it is said where it is; what isn't there is said, too.
    assert_eq!(home(&crossing(&regions, "a", 1, "/").await.unwrap_err()).as_deref(), Some("b"));
    assert_eq!(home(&crossing(&regions, "b", 0, "/").await.unwrap_err()).as_deref(), Some("a"));
    let told = crossing(&regions, "b", 1, "/x").await.unwrap();
    assert_eq!((told.joined, told.at), (0, text("/d")));
    for none in [u32::from(u16::MAX) + 1, u32::MAX] {
        assert_eq!(crossing(&regions, "a", none, "/").await.unwrap_err().code(), Code::NotFound);
    }
    // Administrators of any region may ask, and nobody else.
    let request = CrossingRequest { volume: 1, path: text("/") };
    admin_of(&regions, "b", Role::Admin, "b").await.find_crossing(request.clone()).await.unwrap();
    for (of, who) in [("a", Role::Client), ("b", Role::Client), ("nowhere", Role::Admin)] {
        let refused = admin_of(&regions, of, who, "b").await.find_crossing(request.clone()).await;
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied, "{of} {who:?}");
    }

    // The tree shows it elsewhere once a directory above it has another name, which the home knows, for it has the root volume, too.
    let mount = client(&regions, "a", "a");
    let up = made(&mount, "up").await;
    change(&mount, inside(up)).await;
    let path = text("/up/x");
    let asked = CreateVolumeRequest { path, home: "b".into(), ..CreateVolumeRequest::default() };
    let master = leads(&regions, "a", ROOT_VOLUME).unwrap().clone();
    mooseng_master::geo::joins::create(&master, asked, Instant::now() + WITHIN).await.unwrap();
    is_home(&regions, "b", VolumeId(2), 1).await;
    let rename =
        Rename { parent: 1, name: "up".into(), new_parent: 1, new_name: "moved".into(), ..Rename::default() };
    change(&mount, Op::Rename(rename)).await;
    until("its home tells the new path", async || {
        crossing(&regions, "b", 2, "/").await.unwrap().at == "/moved/x"
    })
    .await;
    let told = crossing(&regions, "a", 0, "/moved/x/y").await.unwrap();
    assert_eq!((told.joined, told.walked), (2, 8));

    // It goes with its home, and with itself.
    gone(&regions, "/d").await.unwrap();
    until("the region has heard of it", async || {
        crossing(&regions, "b", 1, "/").await.is_err_and(|refused| refused.code() == Code::NotFound)
    })
    .await;
    assert_eq!(crossing(&regions, "a", 0, "/d/x").await.unwrap().joined, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_volume_has_a_trash_and_quotas_of_its_own() {
    let regions = two().await;
    let mut mount = of_volume(&regions, "c", &["b"], SECOND);
    let mut at_b = admin(&regions, "b").await;
    let kept = TrashRetentionRequest { set_s: Some(3_600), set_min_age_s: Some(0), volume: 1 };
    let refused = admin(&regions, "a").await.trash_retention(kept).await.unwrap_err();
    assert_eq!(home(&refused).as_deref(), Some("b"), "nothing is done elsewhere");
    assert_eq!(at_b.trash_retention(kept).await.unwrap().into_inner().retention_s, 3_600);
    let terms = admin(&regions, "a").await.trash_retention(TrashRetentionRequest::default()).await;
    assert_eq!(terms.unwrap().into_inner().retention_s, 0, "the root's is what it was");

    let inode = file(&mut mount, "f", b"bytes").await;
    unlink(&mut mount, "f").await;
    let listed = trash(&regions, "b", 1, "").await;
    let [entry] = &listed.entries[..] else { panic!("{listed:?}") };
    assert_eq!((entry.place.unwrap().inode, &entry.path[..]), (inode, &b"/d/f"[..]));
    assert_eq!(trash(&regions, "b", 1, "/f").await.entries.len(), 1, "asked by the path in the volume");
    assert_eq!(trash(&regions, "b", 1, "/d").await.entries, []);
    assert_eq!(trash(&regions, "a", 0, "").await.entries, []);
    let restore = |to: Option<&str>| RestoreTrashRequest { inode, to: to.map(text) };
    let refused = at_b.restore_trash(restore(Some("/no/where"))).await.unwrap_err();
    assert!(refused.code() == Code::NotFound && refused.message().contains("/d/no isn't there"), "{refused}");
    let elsewhere = admin(&regions, "a").await.restore_trash(restore(None)).await.unwrap_err();
    assert_eq!(home(&elsewhere).as_deref(), Some("b"), "its id says of which volume it is");
    assert_eq!(at_b.restore_trash(restore(None)).await.unwrap().into_inner().path, "/d/f");
    assert_eq!(mount.find("f").await, Some(inode));
    unlink(&mut mount, "f").await;
    let all = |volume| PurgeTrashRequest {
        which: Some(purge_trash_request::Which::OlderThanS(0)),
        volume,
        ..PurgeTrashRequest::default()
    };
    assert_eq!(admin(&regions, "a").await.purge_trash(all(0)).await.unwrap().into_inner().files, 0);
    assert_eq!(at_b.purge_trash(all(1)).await.unwrap().into_inner().files, 1);
    assert_eq!(trash(&regions, "b", 1, "").await.entries, []);

    // Of the volume's root directory: what is made there is refused from then on, and the root volume has no quota.
    let set =
        |path: &str| SetQuotaRequest { target: Some(whose(1, path)), inodes_max: Some(2), bytes_max: None };
    let none = at_b.set_quota(set("/none")).await.unwrap_err();
    assert!(none.code() == Code::NotFound && none.message().starts_with("/d/none isn't"), "{none}");
    assert_eq!(at_b.set_quota(set("/")).await.unwrap().into_inner().path, "/d");
    until("it is counted", async || quotas(&regions, "b", 1).await[0].state() == QuotaState::Enforced).await;
    file(&mut mount, "first", b"x").await;
    let parent = InodeId::root_of(SECOND).0;
    let create = Create { parent, name: "second".into(), mode: 0o644, exclusive: true, truncate: false };
    assert_eq!(errno(&done(&mut mount, Op::Create(create)).await), EDQUOT);
    let shown = quotas(&regions, "b", 1).await;
    assert_eq!((shown.len(), &shown[0].path[..], shown[0].inodes), (1, &b"/d"[..], 2));
    assert_eq!(quotas(&regions, "a", 0).await, []);
    let mut root = Mount::new(&regions, "c", &["a"]);
    root.make("e").await;
    root.make("f").await;
    let only = ListQuotasRequest { only: Some(whose(1, "/")), ..ListQuotasRequest::default() };
    assert_eq!(at_b.list_quotas(only).await.unwrap().into_inner().quotas, shown);
    assert_eq!(at_b.clear_quota(whose(1, "/")).await.unwrap().into_inner().path, "/d");
    until("it is given up", async || quotas(&regions, "b", 1).await.is_empty()).await;
    // An id of another volume isn't one of this.
    let foreign = QuotaTarget { whose: Some(Whose::Directory(1)), volume: 1 };
    assert_eq!(at_b.clear_quota(foreign).await.unwrap_err().code(), Code::NotFound);
}

async fn fsck(regions: &Regions, at: &str, repair: bool) -> Result<(Vec<FsckFinding>, FsckDone), Status> {
    let mut news =
        admin_of(regions, at, Role::Admin, at).await.fsck(FsckRequest { repair }).await?.into_inner();
    let mut findings = Vec::new();
    while let Some(next) = news.message().await? {
        match next.news {
            Some(News::Finding(finding)) => findings.push(finding),
            Some(News::Done(done)) => return Ok((findings, done)),
            _ => {}
        }
    }
    panic!("the check ended without a word")
}

/// Kinds, each with the first path that is named.
fn told(findings: &[FsckFinding]) -> Vec<(String, String)> {
    let path = |f: &FsckFinding| {
        f.paths.first().map_or_else(String::new, |path| String::from_utf8_lossy(path).into_owned())
    };
    let mut told: Vec<_> = findings.iter().map(|f| (f.kind.clone(), path(f))).collect();
    told.sort_unstable();
    told
}

fn volumes(of: &[FsckVolume]) -> Vec<(u32, &str, &str)> {
    of.iter().map(|of| (of.volume, of.path.as_str(), of.home.as_str())).collect()
}

/// Has a directory of the root name a volume, or not any more.
async fn name_it(regions: &Regions, directory: u64, id: VolumeId, named: bool) {
    let master = leads(regions, "a", ROOT_VOLUME).unwrap().clone();
    let custody = master.serving_of(ROOT_VOLUME).unwrap();
    let (directory, deadline) = (InodeId(directory), Instant::now() + WITHIN);
    let done = own::change(&master, ROOT_VOLUME, custody, Repeat::Harmless, deadline, |tx, touched| {
        Box::pin(async move {
            match named {
                true => Ok(records::join(tx, touched, 1, directory, id).await?.unwrap()),
                false => records::let_go(tx, touched, 1, directory, id).await,
            }
        })
    });
    assert!(done.await.unwrap(), "it is new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsck_looks_at_the_volumes_that_are_at_home_and_at_their_joins() {
    let regions = two().await;
    let mut mount = of_volume(&regions, "c", &["b"], SECOND);
    mount.make("inner").await;
    file(&mut mount, "f", b"bytes").await;
    let (found, done) = fsck(&regions, "a", false).await.unwrap();
    assert_eq!((told(&found), done.found), (vec![], 0));
    assert_eq!(volumes(&done.volumes), [(0, "/", "a")]);
    assert_eq!(volumes(&done.elsewhere), [(1, "/d", "b")]);
    let (found, done) = fsck(&regions, "b", false).await.unwrap();
    assert_eq!((told(&found), done.found, done.inodes), (vec![], 0, 3));
    assert_eq!(
        (volumes(&done.volumes), volumes(&done.elsewhere)),
        (vec![(1, "/d", "b")], vec![(0, "/", "a")])
    );
    let nobody = fsck(&regions, "w", false).await.unwrap_err();
    assert!(nobody.message().contains("ask with a configuration of a or b"), "{nobody}");

    // Damage is named at the volume's home, where its replica has it, too, by the path in the one tree; and a counter is set right there.
    let home = is_home(&regions, "b", SECOND, 1).await;
    let inner = mount.find("inner").await.unwrap();
    let tx = home.store.begin();
    tx.atomic(&directory::key(InodeId(inner), Counter::Entries), &number::encode(3), Atomic::Add);
    tx.commit().await.unwrap();
    follows(&regions, "a", &home, SECOND).await;
    let damage = vec![("DIRECTORY_COUNT".to_owned(), "/d/inner".to_owned())];
    assert_eq!(told(&fsck(&regions, "b", false).await.unwrap().0), damage);
    assert_eq!(told(&fsck(&regions, "a", false).await.unwrap().0), []);
    let (found, done) = fsck(&regions, "b", true).await.unwrap();
    assert_eq!((told(&found), done.repaired), (damage, 1));
    assert_eq!(told(&fsck(&regions, "b", false).await.unwrap().0), []);

    // A directory that names a volume which there isn't, and a volume that no directory names: told where the directory lies.
    let (third, fourth) =
        (volume(&regions, "/e", "b", &["a", "b"]).await, volume(&regions, "/g", "b", &["a", "b"]).await);
    let (e, g) = (inode_in_root(&regions, "e").await, inode_in_root(&regions, "g").await);
    gone(&regions, "/e").await.unwrap();
    name_it(&regions, e, third, true).await;
    name_it(&regions, g, fourth, false).await;
    let found = fsck(&regions, "a", false).await.unwrap().0;
    let expected = [("JOIN_DANGLING", "/e"), ("JOIN_LOST", "/g")];
    assert_eq!(told(&found), expected.map(|(kind, path)| (kind.to_owned(), path.to_owned())));
    assert_eq!(told(&fsck(&regions, "b", false).await.unwrap().0), [], "the directory's home tells it");
    // By the commands that are advised.
    gone(&regions, "/e").await.unwrap();
    let master = leads(&regions, "a", ROOT_VOLUME).unwrap().clone();
    let asked = CreateVolumeRequest {
        path: text("/g"),
        home: "b".into(),
        regions: vec!["a".into(), "b".into()],
        ..CreateVolumeRequest::default()
    };
    mooseng_master::geo::joins::create(&master, asked, Instant::now() + WITHIN).await.unwrap();
    assert_eq!(told(&fsck(&regions, "a", false).await.unwrap().0), []);
}

/// A directory in the root.
async fn inode_in_root(regions: &Regions, name: &str) -> u64 {
    Mount::new(regions, "c", &["a"]).find(name).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_of_which_volume_a_session_is() {
    let regions = two().await;
    let mut mount = of_volume(&regions, "c", &["b"], SECOND);
    mount.make("inner").await;
    until("the session is told, and no other one", async || {
        // Its lease may have run out meanwhile.
        mount.find("inner").await;
        let status = admin(&regions, "b").await.status(StatusRequest {}).await.unwrap().into_inner();
        let told = |s: &SessionStatus| (s.host.clone(), s.volume, s.volume_path.clone());
        let sessions: Vec<_> = status.sessions.iter().map(told).collect();
        sessions == [("host".to_owned(), 1, "/d".to_owned())]
    })
    .await;
}
