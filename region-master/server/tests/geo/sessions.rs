//! Sessions of volumes besides the root: each with requests, locks, promises and a lease of its own, which follow their volume's home.

use std::time::Duration;

use mooseng_master::geo::joins::{create, delete};
use mooseng_master::geo::{ROOT_VOLUME, Whereabouts, moving, place_of};
use mooseng_master::{MountRule, Squash};
use mooseng_transport::CallFailure;
use mooseng_wire::admin::delete_volume_request::Which;
use mooseng_wire::admin::{CreateVolumeRequest, DeleteVolumeRequest, MoveHomeRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fact::{Fact, Level};
use mooseng_wire::fs::extent::Data;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::write_piece::Data as Written;
use mooseng_wire::fs::{
    Create, FsRequest, GetAttr, Link, Lock, LockKind, LockSpec, LockState, Lookup, ReadExtents, Rename,
    Rmdir, Unlink, Write, WritePiece,
};
use mooseng_wire::geo::{Home, NearRead, NearReply, Place};
use mooseng_wire::method::Method;
use mooseng_wire::session::{CloseSession, OpenSession, SessionClosed, SessionOpened};
use mooseng_wire::{InodeId, SessionId, VolumeId};
use prost::Message;
use tokio::time::Instant;

use super::common::Client;
use super::common::regions::Regions;
use super::common::{unlapsed, until};
use super::moving::Mount;
use super::near_promises::Reader;
use super::volumes::{follows, is_home, leads, make};
use super::{Caller, change, client, mkdir, serves_as_home};

const SECOND: VolumeId = VolumeId(1);
const THIRD: VolumeId = VolumeId(2);
pub(super) const WITHIN: Duration = Duration::from_secs(20);
const EXDEV: u32 = 18;

fn root(volume: VolumeId) -> u64 {
    InodeId::root_of(volume).0
}

/// Makes a volume in the root, whose home is the region a.
pub(super) async fn volume(regions: &Regions, path: &str, home: &str, of: &[&str]) -> VolumeId {
    change(&client(regions, "a", "a"), mkdir(&path[1..])).await;
    let asked = CreateVolumeRequest {
        path: path.to_owned().into(),
        home: home.into(),
        regions: of.iter().map(|region| (*region).to_owned()).collect(),
        ..CreateVolumeRequest::default()
    };
    let master = leads(regions, "a", ROOT_VOLUME).unwrap().clone();
    let made = create(&master, asked, Instant::now() + WITHIN).await.unwrap().volume.unwrap();
    let id = VolumeId(made.id as u16);
    is_home(regions, home, id, 1).await;
    id
}

pub(super) async fn gone(regions: &Regions, path: &str) -> Result<(), CallError> {
    let master = leads(regions, "a", ROOT_VOLUME).unwrap().clone();
    let which = Some(Which::Path(path.to_owned().into()));
    delete(&master, DeleteVolumeRequest { which, ..DeleteVolumeRequest::default() }, Instant::now() + WITHIN)
        .await
        .map(drop)
}

/// Opens a session of a volume as it is asked there, once.
async fn opened(at: &Client, volume: u32) -> Result<SessionOpened, (ErrorCode, String)> {
    let open = OpenSession { host: "h".into(), mount_path: "/m".into(), volume, ..OpenSession::default() };
    at.call(Method::OpenSession, &open).await
}

pub(super) async fn done(mount: &mut Mount, op: Op) -> Reply {
    mount.number += 1;
    mount.call(Method::FsChange, mount.number, op).await.reply.unwrap().reply.unwrap()
}

async fn read(mount: &mut Mount, op: Op) -> Reply {
    mount.call(Method::FsRead, 0, op).await.reply.unwrap().reply.unwrap()
}

pub(super) fn errno(reply: &Reply) -> u32 {
    match reply {
        Reply::Errno(errno) => *errno,
        _ => 0,
    }
}

/// A small file with that in it.
pub(super) async fn file(mount: &mut Mount, name: &str, bytes: &'static [u8]) -> u64 {
    let parent = root(mount.volume);
    let make = Create { parent, name: name.to_owned().into(), mode: 0o644, exclusive: true, truncate: false };
    let Reply::Created(made) = done(mount, Op::Create(make)).await else { panic!("it is made") };
    let inode = made.attr.unwrap().inode;
    let piece = WritePiece { offset: 0, data: Some(Written::Inline(bytes.into())) };
    let write = Write { inode, pieces: vec![piece], ..Write::default() };
    assert!(matches!(done(mount, Op::Write(write)).await, Reply::Written(_)));
    inode
}

async fn contents(mount: &mut Mount, inode: u64) -> Vec<u8> {
    let Reply::Extents(map) =
        read(mount, Op::ReadExtents(ReadExtents { inode, offset: 0, length: 100 })).await
    else {
        panic!("it is a file")
    };
    let of = |data: Option<Data>| match data {
        Some(Data::Inline(bytes)) => bytes.to_vec(),
        other => panic!("{other:?}"),
    };
    map.extents.into_iter().flat_map(|extent| of(extent.data)).collect()
}

pub(super) fn of_volume(regions: &Regions, name: &str, of: &[&str], volume: VolumeId) -> Mount {
    let mut mount = Mount::new(regions, name, of);
    mount.volume = volume;
    mount
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volumes_sessions_are_its_own() {
    unlapsed(sessions_are_its_own).await;
}

async fn sessions_are_its_own() -> Option<()> {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    assert_eq!(volume(&regions, "/d", "b", &["a", "b"]).await, SECOND);
    assert_eq!(volume(&regions, "/e", "a", &["a", "b"]).await, THIRD);

    // Where it isn't at home, it is said where it is; what isn't there is said, too.
    let at_a = client(&regions, "a", "a");
    let open = OpenSession { host: "h".into(), volume: 1, ..OpenSession::default() };
    let elsewhere = at_a.link().request::<_, SessionOpened>(Method::OpenSession, &open, WITHIN).await;
    let Err(CallFailure::Remote(elsewhere)) = elsewhere else { panic!("{elsewhere:?}") };
    assert_eq!(elsewhere.code(), ErrorCode::NotHome);
    assert_eq!(Home::decode(elsewhere.detail).unwrap().region, "b");
    // Of a number that no volume has had yet a master can't know that: it may be behind, and whoever is told that there is none gives up what it has of it.
    for (none, code) in [(3, ErrorCode::Unavailable), (u32::from(u16::MAX) + 2, ErrorCode::NoVolume)] {
        let open = OpenSession { host: "h".into(), volume: none, ..OpenSession::default() };
        let refused = at_a.link().request::<_, SessionOpened>(Method::OpenSession, &open, WITHIN).await;
        let Err(CallFailure::Remote(refused)) = refused else { panic!("{refused:?}") };
        assert_eq!(refused.code(), code, "{none}");
    }

    let mut second = of_volume(&regions, "c", &["b"], SECOND);
    let mut third = of_volume(&regions, "c", &["a"], THIRD);
    let mut mount = Mount::new(&regions, "c", &["a"]);
    let mut files = Vec::new();
    for (mount, bytes) in [(&mut second, &b"two"[..]), (&mut third, b"three"), (&mut mount, b"root")] {
        let inode = file(mount, "f", bytes).await;
        assert_eq!(contents(mount, inode).await, bytes);
        let session = mount.session.clone();
        assert_eq!(SessionId(session.session).volume(), mount.volume);
        assert_eq!(InodeId(inode).volume(), mount.volume);
        assert_eq!((session.root, session.home_epoch), (root(mount.volume), 1));
        files.push(inode);
    }
    assert_ne!(second.session.founding, mount.session.founding, "each volume is known by a mark of its own");
    assert_eq!(third.find("d").await, None);
    assert!(mount.find("d").await.is_some());

    // What lies in another volume isn't a session's to ask for.
    for (mount, foreign) in [(&mut third, files[2]), (&mut mount, files[1])] {
        let own = root(mount.volume);
        let rename = Rename {
            parent: own,
            name: "f".into(),
            new_parent: root(InodeId(foreign).volume()),
            new_name: "g".into(),
            ..Rename::default()
        };
        let link = Link { inode: foreign, new_parent: own, new_name: "g".into() };
        assert_eq!(errno(&done(mount, Op::Rename(rename)).await), EXDEV);
        assert_eq!(errno(&done(mount, Op::Link(link)).await), EXDEV);
    }
    let at = client(&regions, "a", "a");
    at.open(&[]).await.unwrap();
    let into = Op::Rmdir(Rmdir { parent: root(THIRD), name: "x".into() });
    let foreign = [
        at.read(Op::GetAttr(GetAttr { inode: files[1] })).await.unwrap_err(),
        at.change(into).await.unwrap_err(),
    ];
    if foreign.iter().any(|refused| refused.0 == ErrorCode::SessionExpired) {
        return None;
    }
    assert!(foreign.iter().all(|refused| refused.0 == ErrorCode::InvalidRequest), "{foreign:?}");

    // Closed, or out of time: the other one of the same master goes on.
    mount.open_until().await;
    third.open_until().await;
    let (root_life, third_life) = (mount.session.clone(), third.session.clone());
    let master = leads(&regions, "a", THIRD).unwrap().clone();
    let lapsed = until("the third one's lease has run out", async || {
        master.desk(|desk| !desk.sessions.holds(SessionId(third_life.session)))
    });
    mount.renewing(&[], lapsed).await;
    mount.lasts(root_life.incarnation).await?;
    assert_eq!(third.find("f").await, Some(files[1]), "it comes back");
    third.lasts(third_life.incarnation + 1).await?;
    assert_eq!(third.session.session, third_life.session);
    let close = CloseSession { session: root_life.session, incarnation: root_life.incarnation };
    third.open_until().await;
    let _: SessionClosed = at.call(Method::CloseSession, &close).await.unwrap();
    assert!(mount.renew().await.is_err());
    third.kept().await?;
    assert_eq!(contents(&mut third, files[1]).await, b"three");
    assert_eq!(contents(&mut second, files[0]).await, b"two");

    // Below the directory the parent says nothing of it.
    let mut mount = Mount::new(&regions, "c", &["a"]);
    let inside = Op::Lookup(Lookup { parent: mount.find("e").await.unwrap(), name: "f".into() });
    assert_eq!(errno(&read(&mut mount, inside).await), 66);
    Some(())
}

/// A client whose rule names a subtree enters those volumes that are joined in that; other rules count in each of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_for_mounts_count_in_each_volume() {
    // Nobody takes over while its home begins anew with its rules.
    let mut regions = Regions::start_of(&[("a", 1), ("b", 1), ("w", 1)], 20_000).await;
    serves_as_home(&regions, "a", 1).await;
    volume(&regions, "/d", "b", &["a", "b"]).await;
    let above = is_home(&regions, "b", SECOND, 1).await;
    make(&above, SECOND, "s").await.unwrap();
    let below = CreateVolumeRequest {
        path: "/s".into(),
        home: "b".into(),
        parent: SECOND.0.into(),
        ..CreateVolumeRequest::default()
    };
    create(&above, below, Instant::now() + WITHIN).await.unwrap();
    drop(above);
    let third = VolumeId(SECOND.0 + 1);
    is_home(&regions, "b", third, 1).await;
    let rule = |client: &str, subtree: &str, read_only| MountRule {
        clients: vec![client.into()],
        subtree: subtree.into(),
        read_only,
        squash: Squash::None,
        squash_uid: 65_534,
        squash_gid: 65_534,
    };
    let b = regions.of("b")[0];
    regions.kill(b).await;
    regions.sites[b].config.mounts =
        vec![rule("c", "/", true), rule("web", "/srv", false), rule("team", "/d", false)];
    regions.run(b).await;
    is_home(&regions, "b", SECOND, 1).await;
    let mut reader = of_volume(&regions, "c", &["b"], SECOND);
    assert_eq!(reader.find("x").await, None);
    assert!(reader.session.read_only);
    let make = Create { parent: root(SECOND), name: "x".into(), mode: 0o644, ..Create::default() };
    assert_eq!(errno(&done(&mut reader, Op::Create(make)).await), 30);
    let mut confined = of_volume(&regions, "web", &["b"], SECOND);
    let Err(CallFailure::Remote(refused)) = confined.open().await else { panic!("it is refused") };
    assert!(
        refused.code() == ErrorCode::PermissionDenied && refused.message.contains("isn't joined"),
        "{refused:?}"
    );
    let mut team = of_volume(&regions, "team", &["b"], third);
    assert_eq!(team.find("x").await, None);
    let make = Create { parent: root(third), name: "x".into(), mode: 0o644, ..Create::default() };
    assert_eq!(errno(&done(&mut team, Op::Create(make)).await), 0);
    let mut nobody = of_volume(&regions, "nobody", &["b"], SECOND);
    let Err(CallFailure::Remote(refused)) = nobody.open().await else { panic!("it is refused") };
    assert_eq!(refused.code(), ErrorCode::PermissionDenied, "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_follow_their_volumes_home_and_those_of_others_stay() {
    unlapsed(sessions_follow).await;
}

async fn sessions_follow() -> Option<()> {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    volume(&regions, "/d", "b", &["a", "b"]).await;
    let home = leads(&regions, "b", SECOND).unwrap().clone();
    let mut mount = Mount::new(&regions, "one", &["a"]);
    let mut one = of_volume(&regions, "one", &["b", "a"], SECOND);
    let mut two = of_volume(&regions, "two", &["b", "a"], SECOND);
    // Another one, which never comes back.
    let mut lost = of_volume(&regions, "lost", &["b"], SECOND);
    lost.open_until().await;
    mount.make("m").await;
    let (inode, epoch) = one.make("d").await;
    assert_eq!(epoch, 1);
    let made = one.number;
    let spec =
        LockSpec { kind: LockKind::File.into(), owner: 7, end: u64::MAX, exclusive: true, ..<_>::default() };
    let lock = Lock { inode, lock: Some(spec), wait: 0 };
    let take = async |mount: &mut Mount| match done(mount, Op::Lock(lock)).await {
        Reply::Locked(locked) => locked.state() == LockState::Held,
        _ => false,
    };
    assert!(take(&mut one).await);
    let both = take(&mut two).await;
    one.kept().await?;
    assert!(!both, "it is the other one's");
    one.locks = vec![lock];
    let life = one.session.clone();
    let root_life = mount.session.clone();
    // Renewals write nothing.
    mount.renewing(&[&one, &two, &lost], follows(&regions, "a", &home, SECOND)).await;
    one.lasts(life.incarnation).await?;
    two.kept().await?;
    lost.kept().await?;
    drop(home);
    regions.kill_region("b").await;
    let begins = until("the volume is at home here", async || {
        let master = leads(&regions, "a", SECOND);
        master.is_some_and(|m| matches!(place_of(m, SECOND), Whereabouts::Here(epoch) if epoch.0 == 2))
    });
    mount.renewing(&[], begins).await;
    let new = leads(&regions, "a", SECOND).unwrap().clone();
    let all = until("it reads its sessions", async || new.desk(|desk| desk.sessions.of(SECOND).len() == 3));
    mount.renewing(&[], all).await;
    mount.lasts(root_life.incarnation).await?;
    // While that one is waited for, which it is for a lease, requests on other volumes are answered.
    let unsettled = || new.desk(|desk| !desk.is_settled(SECOND) && desk.is_settled(ROOT_VOLUME));
    unsettled().then_some(())?;
    let begun = Instant::now();
    mount.make("n").await;
    if begun.elapsed() >= Duration::from_secs(1) && !unsettled() {
        return None;
    }
    mount.lasts(root_life.incarnation).await?;
    assert_eq!(mount.session, root_life, "the root's goes on all the time");

    // The first outcome again, in the same life; the lock is its own still.
    one.open_until().await;
    two.open_until().await;
    assert_eq!((one.session.session, one.session.home_epoch), (life.session, 2));
    if one.session.incarnation == life.incarnation {
        let (lost, both) = (one.lost.clone(), take(&mut two).await);
        one.lasts(life.incarnation).await?;
        assert_eq!(lost, Some(vec![]), "its locks are its own again");
        assert!(!both);
    } else {
        assert!(one.session.lapsed, "it came too late on a slow machine, and is told so");
    }
    let again = Op::Mkdir(mooseng_wire::fs::Mkdir {
        parent: root(SECOND),
        name: "d".into(),
        mode: 0o755,
        alone: false,
    });
    let again = one.call(Method::FsChange, made, again).await.reply.unwrap().reply.unwrap();
    let Reply::Entry(again) = again else { panic!("{again:?}") };
    assert_eq!(again.attr.unwrap().inode, inode);
    let (later, epoch) = one.make("e").await;
    assert!(epoch == 2 && InodeId(later).volume() == SECOND && InodeId(later).local() > u64::from(u32::MAX));
    let mut three = of_volume(&regions, "three", &["a"], SECOND);
    three.open_until().await;
    assert_ne!(three.session.session, life.session, "ids of a later home are others");
    Some(())
}

/// What sessions of one volume are promised isn't touched by another volume's change of its home.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promises_outlive_another_volumes_change_of_home() {
    unlapsed(promises_outlive_it).await;
}

async fn promises_outlive_it() -> Option<()> {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    volume(&regions, "/d", "a", &["a", "b"]).await;
    let home = leads(&regions, "a", SECOND).unwrap().clone();
    let mut second = of_volume(&regions, "c", &["a"], SECOND);
    let mut mount = Mount::new(&regions, "c", &["a", "b"]);
    let theirs = Fact::Inode(InodeId(file(&mut second, "f", b"x").await));
    let ours = Fact::Inode(InodeId(file(&mut mount, "f", b"y").await));
    let (its, own) = (SessionId(second.session.session), SessionId(mount.session.session));
    // Each in its first incarnation: what it was promised before it came back once it has no more.
    let lives = (1, 1);
    let level = |session, fact: &Fact| home.desk(|desk| desk.promises.level(session, fact));
    let levels = (level(its, &theirs), level(own, &ours));
    second.lasts(lives.0).await?;
    mount.lasts(lives.1).await?;
    assert_eq!(levels, (Some(Level::Exclusive), Some(Level::Exclusive)));
    let custody = home.serving_of(SECOND).unwrap();
    let near = until("the other region is near", async || {
        let near =
            |volume| home.geo.shipped(volume).get("b").is_some_and(|b| !b.copying && b.complete.is_some());
        near(ROOT_VOLUME) && near(SECOND)
    });
    second.renewing(&[&mount], near).await;
    second.lasts(lives.0).await?;
    mount.lasts(lives.1).await?;
    let keep = async {
        while second.kept().await.is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let request = MoveHomeRequest { volume: 0, to: "b".into(), ..MoveHomeRequest::default() };
    let moved = moving::order(&home, request, Instant::now() + WITHIN);
    let moved = tokio::select! {
        moved = moved => Some(moved),
        () = keep => None,
    };
    moved?.unwrap();
    let mut kept = true;
    until("this region is a replica of the root", async || {
        kept &= second.kept().await.is_some();
        // Nothing is answered from when it is elsewhere, and what was promised goes once this leader has become its replica's.
        let is_replica =
            place_of(&home, ROOT_VOLUME) == Whereabouts::Elsewhere && home.serving_of(ROOT_VOLUME).is_ok();
        !kept || (is_replica && level(own, &ours).is_none())
    })
    .await;
    kept.then_some(())?;
    let after = level(its, &theirs);
    second.lasts(lives.0).await?;
    assert_eq!(after, Some(Level::Exclusive));
    assert_eq!(home.serving_of(SECOND).unwrap(), custody);
    assert!(home.desk(|desk| desk.is_settled(SECOND)));
    second.make("d").await;
    let (_, epoch) = mount.make("e").await;
    assert_eq!(epoch, 2);
    Some(())
}

fn sought(name: &str) -> FsRequest {
    let caller = Some(Caller { kernel_checked: true, ..Caller::default() });
    let lookup = Lookup { parent: root(SECOND), name: name.to_owned().into() };
    FsRequest { caller, op: Some(Op::Lookup(lookup)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volumes_replica_answers_and_promises_for_itself() {
    unlapsed(a_replica_promises_for_itself).await;
}

async fn a_replica_promises_for_itself() -> Option<()> {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    volume(&regions, "/d", "b", &["a", "b"]).await;
    let home = leads(&regions, "b", SECOND).unwrap().clone();
    let mut second = of_volume(&regions, "c", &["b"], SECOND);
    let (inode, _) = second.make("x").await;
    let replica = follows(&regions, "a", &home, SECOND).await;
    let mut reader = Reader::open_of(client(&regions, "a", "a"), 1).await;
    let Reply::Entry(found) = reader.known(sought("x"), Place::default()).await?.0 else {
        panic!("it is there")
    };
    assert_eq!(found.attr.unwrap().inode, inode);
    reader.known(sought("none"), Place::default()).await?;
    let entry = |name: &str| Fact::Entry(InodeId(root(SECOND)), name.to_owned().into());
    assert!(reader.held.contains(&entry("x")) && reader.held.contains(&entry("none")));
    let sessions = replica.geo.near_counts().0;
    reader.keep().await?;
    assert_eq!(sessions, 1);

    // What changes in another volume takes nothing back, and what changes in this one does.
    change(&client(&regions, "a", "a"), mkdir("elsewhere")).await;
    assert!(reader.renew().await?.is_empty());
    let response = {
        second.number += 1;
        let make =
            mooseng_wire::fs::Mkdir { parent: root(SECOND), name: "none".into(), mode: 0o755, alone: false };
        second.call(Method::FsChange, second.number, Op::Mkdir(make)).await
    };
    let at = Place { epoch: response.log_epoch, version: response.log_version };
    let (reply, given_up) = reader.known(sought("none"), at).await?;
    assert!(matches!(reply, Reply::Entry(_)) && given_up.contains(&entry("none")));
    reader.keep().await?;

    // Each volume at its place: the root has no replica where it is at home, nor has the second one.
    let once = async |of: &str, volume: u32, op: FsRequest| {
        let read = NearRead { op: Some(op), at_least: None, seat: None, volume };
        let link = client(&regions, of, of).link().clone();
        match link.request::<_, NearReply>(Method::NearRead, &read, WITHIN).await {
            Ok(_) => None,
            Err(CallFailure::Remote(error)) => Some(error.code()),
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(once("a", 1, sought("x")).await, None);
    assert_eq!(once("a", 1, super::lookup("d")).await, Some(ErrorCode::InvalidRequest));
    assert_eq!(once("a", 0, super::lookup("d")).await, Some(ErrorCode::Unavailable));
    assert_eq!(once("b", 1, sought("x")).await, Some(ErrorCode::Unavailable));
    assert_eq!(once("b", 0, super::lookup("d")).await, None);

    // A replica of the root that goes back, or is led anew, ends nothing of this one.
    replica.geo.forget(THIRD);
    replica.geo.forget(ROOT_VOLUME);
    assert!(reader.renew().await?.is_empty() && reader.held.contains(&entry("x")));
    replica.geo.forget(SECOND);
    assert_eq!(replica.geo.near_counts(), (0, 0));
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_volumes_sessions_hear_that_there_is_none() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    volume(&regions, "/d", "b", &["a", "b"]).await;
    let mut second = of_volume(&regions, "c", &["b"], SECOND);
    // What is in it keeps it. (So does what is open of it, which the end-to-end test of volumes sees: nobody answers recalls here, and the session lapses.)
    file(&mut second, "f", b"x").await;
    assert!(gone(&regions, "/d").await.unwrap_err().message.contains("rm -r"));
    done(&mut second, Op::Unlink(Unlink { parent: root(SECOND), name: "f".into() })).await;
    gone(&regions, "/d").await.unwrap();
    let code = |failure: Option<CallFailure>| match failure {
        Some(CallFailure::Remote(error)) => Some(error.code()),
        _ => None,
    };
    until("it is known that it is gone", async || {
        code(second.renew().await.err()) == Some(ErrorCode::NoVolume)
    })
    .await;
    let session = second.session.clone();
    assert_eq!(code(second.open().await.err()), Some(ErrorCode::NoVolume));
    let at_b = client(&regions, "b", "b");
    assert_eq!(opened(&at_b, 1).await.unwrap_err().0, ErrorCode::NoVolume);
    let master = leads(&regions, "b", ROOT_VOLUME).unwrap();
    until("nothing is kept of its sessions", async || {
        master.desk(|desk| !desk.sessions.holds(SessionId(session.session)))
    })
    .await;
}
