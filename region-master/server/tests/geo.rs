//! A volume with its home in one region and a replica in another: what is written here is read there, in order, whatever is cut off or dies.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

#[path = "geo/classes.rs"]
mod classes;
#[path = "geo/commands.rs"]
mod commands;
mod common;
#[path = "geo/differs.rs"]
mod differs;
#[path = "geo/elsewhere.rs"]
mod elsewhere;
#[path = "geo/fetched.rs"]
mod fetched;
#[path = "geo/giving_up.rs"]
mod giving_up;
#[path = "geo/joins.rs"]
mod joins;
#[path = "geo/lag.rs"]
mod lag;
#[path = "geo/let_go.rs"]
mod let_go;
#[path = "geo/levels.rs"]
mod levels;
#[path = "geo/made_anew.rs"]
mod made_anew;
#[path = "geo/moving.rs"]
mod moving;
#[path = "geo/near.rs"]
mod near_promises;
#[path = "geo/pushed.rs"]
mod pushed;
#[path = "geo/sessions.rs"]
mod sessions;
#[path = "geo/sync.rs"]
mod sync;
#[path = "geo/volumes.rs"]
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::regions::{Regions, identity_of};
use common::{Client, until};
use mooseng_master::geo::{ROOT_VOLUME, losses, stand, verify};
use mooseng_master::master::Master;
use mooseng_ports::clock::{Clock, OsClock};
use mooseng_schema::chunk::{self, ChunkRecord, ChunkUse};
use mooseng_schema::extent::{self, ExtentRecord};
use mooseng_schema::ids::{self, IdKind, IdsUptoRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::log::{self, LogPosition, ReplicaRecord};
use mooseng_schema::loss::LossRecord;
use mooseng_schema::{Record, number};
use mooseng_store::{Read, Store, StoreError, Transaction};
use mooseng_transport::{CallFailure, PlainNetwork};
use mooseng_wire::admin::{
    self, ChunkReport, HeartbeatRequest, LogPlace, MoveHomeRequest, ShowSalvageRequest,
};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, FsRequest, Lookup, Mkdir, Rename, Rmdir};
use mooseng_wire::geo::{Home, NearRead, NearReply, Place};
use mooseng_wire::method::Method;
use mooseng_wire::session::{OpenSession, Request, Response, SessionOpened};
use mooseng_wire::{ChunkId, Epoch, InodeId, LOCAL_ID_BITS, Role};
use prost::Message;

const WITHIN: Duration = Duration::from_secs(5);

fn addresses(regions: &Regions, region: &str) -> Vec<String> {
    regions.of(region).into_iter().map(|i| regions.sites[i].config.advertise.clone()).collect()
}

fn client(regions: &Regions, of: &str, at: &str) -> Client {
    let network = Arc::new(PlainNetwork::new(identity_of(of, Role::Client, "c")));
    Client::over(network, &addresses(regions, at))
}

fn mkdir(name: &str) -> Op {
    Op::Mkdir(Mkdir { parent: 1, name: name.as_bytes().to_vec().into(), mode: 0o755, alone: false })
}

fn lookup(name: &str) -> FsRequest {
    let caller = Some(Caller { kernel_checked: true, ..Caller::default() });
    FsRequest { caller, op: Some(Op::Lookup(Lookup { parent: 1, name: name.as_bytes().to_vec().into() })) }
}

/// Asks the home for something. The session is opened anew where its lease ran out before: it lasts a second here, a client renews nothing by itself, and a
/// home that has just begun, or a busy machine, may take longer than that.
async fn asked(home: &Client, method: Method, number: u64, oldest_unanswered: u64, op: Op) -> Response {
    let deadline = tokio::time::Instant::now() + common::WAIT;
    loop {
        let request = Request { oldest_unanswered, ..home.request(number, op.clone()).await };
        match home.call(method, &request).await {
            Err((ErrorCode::SessionExpired, _)) if tokio::time::Instant::now() < deadline => {
                home.open(&[]).await.unwrap();
            }
            answered => return answered.unwrap(),
        }
    }
}

/// Makes a change at the home; answers up to where of the log its answer may show.
async fn change(home: &Client, op: Op) -> Place {
    home.open(&[]).await.unwrap();
    let number = home.number.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
    let response = asked(home, Method::FsChange, number, number, op).await;
    let reply = response.reply.unwrap().reply.unwrap();
    assert!(!matches!(reply, Reply::Errno(_)), "{reply:?}");
    assert!(response.log_epoch > 0 && response.log_version > 0);
    Place { epoch: response.log_epoch, version: response.log_version }
}

/// Reads at the home.
async fn read_home(home: &Client, op: Op) -> Reply {
    asked(home, Method::FsRead, 0, 1, op).await.reply.unwrap().reply.unwrap()
}

/// Looks a name up in a replica, which must have come so far.
async fn near(client: &Client, name: &str, at_least: &Place) -> Option<u64> {
    let request = NearRead { op: Some(lookup(name)), at_least: Some(*at_least), seat: None, volume: 0 };
    let reply: NearReply = client.call(Method::NearRead, &request).await.unwrap();
    let at = reply.at.unwrap();
    assert!((at.epoch, at.version) >= (at_least.epoch, at_least.version));
    match reply.reply.unwrap().reply.unwrap() {
        Reply::Entry(entry) => entry.attr.map(|attr| attr.inode),
        Reply::Errno(_) => None,
        other => panic!("{other:?}"),
    }
}

fn serving<'a>(regions: &'a Regions, region: &str) -> Option<&'a Arc<Master>> {
    let of = regions.of(region).into_iter().filter_map(|i| regions.running[i].as_ref());
    of.filter(|server| server.is_serving()).map(|server| server.master()).next()
}

/// The replica is at the home's newest place.
async fn caught_up(regions: &Regions, region: &str) {
    until("the replica has everything", async || {
        let (Some(home), Some(replica)) = (serving(regions, "a"), serving(regions, region)) else {
            return false;
        };
        let newest = home.geo.newest(ROOT_VOLUME);
        newest > LogPosition::default() && replica.geo.replica(ROOT_VOLUME).readable() == Some(newest)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_at_home_is_read_elsewhere_in_its_order() {
    // The region outlives its leader on a slow machine, too: the next one renews what would last a second and a half otherwise.
    let mut regions = Regions::start_of(&[("a", 3), ("b", 3), ("w", 1)], 60_000).await;
    let home = client(&regions, "b", "a");
    let there = client(&regions, "b", "b");
    // Before the replica is copied, and while it is.
    let mut newest = Place::default();
    for n in 0..40 {
        newest = change(&home, mkdir(&format!("d{n}"))).await;
    }
    for n in 0..40 {
        assert!(near(&there, &format!("d{n}"), &newest).await.is_some());
    }
    assert_eq!(near(&there, "d40", &newest).await, None);

    // Changes go to the home: whoever asks elsewhere is told where that is.
    let link = there.link().clone();
    let open = OpenSession { host: "h".into(), ..OpenSession::default() };
    let refused = loop {
        match link.request::<_, SessionOpened>(Method::OpenSession, &open, WITHIN).await {
            Err(CallFailure::Remote(error)) if error.code() == ErrorCode::NotHome => break error,
            Err(CallFailure::Remote(error)) if error.code() == ErrorCode::NotLeader => {
                let _ = near(&there, "d1", &newest).await;
            }
            other => panic!("{other:?}"),
        }
    };
    let told = Home::decode(refused.detail).unwrap();
    assert_eq!((told.region.as_str(), told.epoch), ("a", 1));
    assert_eq!(told.masters, addresses(&regions, "a"));

    // A new leader of the replica goes on where the old one was, and one of the home sends on.
    for region in ["b", "a"] {
        let leads = |i: &usize| regions.running[*i].as_ref().is_some_and(|server| server.is_serving());
        let leader = regions.of(region).into_iter().find(leads).unwrap();
        regions.kill(leader).await;
        let moved = Rename {
            parent: 1,
            name: Bytes::from("d1"),
            new_parent: 1,
            new_name: Bytes::from("e1"),
            ..Rename::default()
        };
        let back = Rename { name: moved.new_name.clone(), new_name: moved.name.clone(), ..moved.clone() };
        let at = change(&home, Op::Rename(moved)).await;
        assert!(near(&there, "e1", &at).await.is_some());
        assert_eq!(near(&there, "d1", &at).await, None);
        newest = change(&home, Op::Rename(back)).await;
        assert!(near(&there, "d1", &newest).await.is_some());
        regions.run(leader).await;
    }

    // Cut off, it shows what it had, and nothing to whoever has seen more; then it catches up.
    caught_up(&regions, "b").await;
    let before = newest;
    regions.cut("b");
    let home = client(&regions, "a", "a");
    newest = change(&home, Op::Rmdir(Rmdir { parent: 1, name: "d2".into() })).await;
    assert!(near(&there, "d2", &before).await.is_some());
    let more = NearRead { op: Some(lookup("d2")), at_least: Some(newest), seat: None, volume: 0 };
    let refused = there.link().request::<_, NearReply>(Method::NearRead, &more, WITHIN).await;
    let Err(CallFailure::Remote(refused)) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.code(), ErrorCode::Unavailable);
    regions.heal();
    assert_eq!(near(&there, "d2", &newest).await, None);
    caught_up(&regions, "b").await;

    // Both are the same; and where they aren't, that is found.
    let replica = serving(&regions, "b").unwrap().clone();
    let compared = verify::compare(&replica, ROOT_VOLUME).await.unwrap();
    assert!(compared.pairs > 80 && compared.different.is_empty(), "{compared:?}");
    // What keeps a replica to its log keeps this from it, too.
    replica.store.unseal(&log::replica_key(ROOT_VOLUME));
    let tx = replica.store.begin();
    tx.set(&mooseng_schema::xattr::key(mooseng_wire::ROOT_INODE, b"user.planted"), b"\x01");
    tx.commit().await.unwrap();
    assert_eq!(verify::compare(&replica, ROOT_VOLUME).await.unwrap().different.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_home_is_listened_to_and_only_regions_of_the_cluster_are_let_in() {
    use mooseng_transport::{Link, LinkOptions};
    use mooseng_wire::geo::{AskPage, Page, Push, Pushed};
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let home = client(&regions, "a", "a");
    let at = change(&home, mkdir("d")).await;
    let there = client(&regions, "b", "b");
    assert!(near(&there, "d", &at).await.is_some());
    let from = |region: &str, role, to: &str| {
        let network = Arc::new(PlainNetwork::new(identity_of(region, role, "x")));
        Link::new(network, addresses(&regions, to)[0].clone(), Role::Master, LinkOptions::default())
    };
    let push = Push { epoch: 1, newest: Some(at), ..Push::default() };
    let code = |answer: Result<Pushed, CallFailure>| match answer {
        Ok(_) => None,
        Err(CallFailure::Remote(error)) => Some(error.code()),
        Err(other) => panic!("{other}"),
    };
    let pushed = async |region: &str, role, push: &Push| {
        code(from(region, role, "b").request(Method::LogPush, push, WITHIN).await)
    };
    assert_eq!(pushed("a", Role::Master, &push).await, None);
    assert_eq!(pushed("w", Role::Master, &push).await, Some(ErrorCode::PermissionDenied));
    assert_eq!(pushed("b", Role::Master, &push).await, Some(ErrorCode::PermissionDenied));
    assert_eq!(pushed("else", Role::Master, &push).await, Some(ErrorCode::PermissionDenied));
    let later = Push { epoch: 2, ..push.clone() };
    assert_eq!(pushed("a", Role::Master, &later).await, Some(ErrorCode::Unavailable));
    let earlier = Push { epoch: 0, ..push.clone() };
    assert_eq!(pushed("a", Role::Master, &earlier).await, Some(ErrorCode::StaleEpoch));
    let replica = serving(&regions, "b").unwrap();
    // What was under way while it was the home, and commits only now, is in no log: it is refused, whoever it is of.
    let late = replica.store.begin();
    late.set(&mooseng_schema::session::key(mooseng_wire::SessionId(7)), b"late");
    assert_eq!(late.commit().await.unwrap_err(), StoreError::NotLeader);
    // A home whose epoch is over has a replica that refuses it begin nothing anew.
    let tx = replica.store.begin();
    let record = replica.geo.replica(ROOT_VOLUME).record.unwrap();
    let refusing = ReplicaRecord { refuses: 1, ..record };
    tx.set(&log::replica_key(ROOT_VOLUME), &refusing.to_value());
    tx.commit().await.unwrap();
    replica.geo.forget(ROOT_VOLUME);
    let anew = Push { begin_anew: true, ..push };
    assert_eq!(pushed("a", Role::Master, &anew).await, Some(ErrorCode::StaleEpoch));
    // A witness isn't to have the volume.
    let ask = AskPage { bytes_max: 1000, ..AskPage::default() };
    let paged = async |region: &str, to: &str| match from(region, Role::Master, to)
        .request::<_, Page>(Method::VolumePage, &ask, WITHIN)
        .await
    {
        Ok(page) => Ok(page.pairs.len()),
        Err(CallFailure::Remote(error)) => Err(error.code()),
        Err(other) => panic!("{other}"),
    };
    assert!(paged("b", "a").await.unwrap() > 0);
    assert_eq!(paged("w", "a").await, Err(ErrorCode::PermissionDenied));
    assert_eq!(paged("a", "b").await, Err(ErrorCode::NotHome));
    assert_eq!(Epoch(1), serving(&regions, "a").unwrap().geo.view().unwrap().volumes[&ROOT_VOLUME].epoch);
}

/// Waits until a region serves as the volume's home.
async fn serves_as_home(regions: &Regions, region: &str, epoch: u64) {
    until("the region is the home", async || {
        serving(regions, region).is_some_and(|master| {
            master.global.as_ref().is_some_and(|global| global.may_change(ROOT_VOLUME) == Some(Epoch(epoch)))
                && master.geo.newest(ROOT_VOLUME).epoch == Epoch(epoch)
        })
    })
    .await;
}

/// The home gave ids beyond those of its epoch, which the next home gave again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_has_given_all_ids_of_its_epoch_is_given_more() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    giving_up::by_command_only(&regions).await;
    let mut used_up = 0;
    let home = serving(&regions, "a").unwrap().clone();
    let tx = home.store.begin();
    for kind in [IdKind::Inode, IdKind::Chunk, IdKind::Session] {
        let next = tx.get(&ids::key(kind, ROOT_VOLUME), Read::Conflicting).await.unwrap();
        let end = number::decode(next.as_ref()).unwrap();
        let upto = ids::upto_key(kind, ROOT_VOLUME);
        let known =
            IdsUptoRecord::from_value(&tx.get(&upto, Read::Conflicting).await.unwrap().unwrap()).unwrap();
        assert_eq!((known.epoch, known.end), (1, known.end.max(end)));
        used_up = known.end.max(used_up);
        // A few are left.
        tx.set(&upto, &IdsUptoRecord { epoch: 1, end: end + 10 }.to_value());
    }
    tx.commit().await.unwrap();
    let a = regions.of("a")[0];
    regions.kill(a).await;
    regions.run(a).await;
    serves_as_home(&regions, "a", 1).await;
    let (old, there) = (client(&regions, "a", "a"), client(&regions, "b", "b"));
    let mut locals = Vec::new();
    for n in 0..12 {
        let name = format!("d{n}");
        let at = change(&old, mkdir(&name)).await;
        locals.push(InodeId(near(&there, &name, &at).await.unwrap()).0 & ((1 << LOCAL_ID_BITS) - 1));
    }
    assert!(locals[9] < used_up && locals[10] >= used_up, "{locals:?}, {used_up}");
}

/// Homes of earlier releases gave ids beyond those of their epoch. Their numbers were given a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_were_given_beyond_those_of_an_epoch_arent_given_again() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    serves_as_home(&regions, "a", 1).await;
    let home = serving(&regions, "a").unwrap().clone();
    let kind = IdKind::Chunk;
    let tx = home.store.begin();
    let upto = tx.get(&ids::upto_key(kind, ROOT_VOLUME), Read::Conflicting).await.unwrap().unwrap();
    let given = IdsUptoRecord::from_value(&upto).unwrap().end + 5_000;
    tx.set(&ids::key(kind, ROOT_VOLUME), &number::encode(given));
    tx.commit().await.unwrap();
    let reserved = stand::reserve_ids(&home, ROOT_VOLUME, kind).await.unwrap();
    assert!(reserved.start >= given, "{reserved:?} after {given}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_home_is_followed_and_a_home_that_comes_back_follows() {
    let mut regions = Regions::start(&[("a", 3), ("b", 3), ("w", 1)]).await;
    let old = client(&regions, "b", "a");
    let mut at = Place::default();
    for n in 0..10 {
        at = change(&old, mkdir(&format!("d{n}"))).await;
    }
    let there = client(&regions, "b", "b");
    assert!(near(&there, "d9", &at).await.is_some());
    caught_up(&regions, "b").await;
    let session = old.session.lock().await.clone();
    regions.kill_region("a").await;
    serves_as_home(&regions, "b", 2).await;
    // The session goes on where it was: a change that was answered before is answered so again, and not done anew.
    *there.session.lock().await = session;
    there.open(&[]).await.unwrap();
    let again = asked(&there, Method::FsChange, 10, 1, mkdir("d9")).await.reply.unwrap();
    let Some(Reply::Entry(again)) = again.reply else { panic!("it was done") };
    assert!(again.attr.is_some());
    there.number.store(10, std::sync::atomic::Ordering::SeqCst);
    let response = asked(&there, Method::FsChange, 11, 11, mkdir("e0")).await;
    let Some(Reply::Entry(made)) = response.reply.unwrap().reply else { panic!("it is made") };
    assert!(made.attr.unwrap().inode > u64::from(u32::MAX), "ids of a later home are others");
    assert_eq!(response.log_epoch, 2);
    let newest = Place { epoch: 2, version: response.log_version };
    for i in regions.of("a") {
        regions.run(i).await;
    }
    // It had nothing of its own: it goes on from where it was.
    let back = client(&regions, "a", "a");
    assert!(near(&back, "e0", &newest).await.is_some());
    let replica = serving(&regions, "a").unwrap().clone();
    assert!(!replica.geo.has_salvage(ROOT_VOLUME));
    let compared = verify::compare(&replica, ROOT_VOLUME).await.unwrap();
    assert!(compared.pairs > 20 && compared.different.is_empty(), "{compared:?}");

    // Cut off, the home goes on for a while with what nobody else has. It comes back, puts that aside, and has what the others have.
    regions.cut("b");
    let alone = there.request(12, mkdir("alone")).await;
    let tried = there.link().request::<_, Response>(Method::FsChange, &alone, Duration::from_secs(3)).await;
    serves_as_home(&regions, "a", 3).await;
    let late = there.request(13, mkdir("late")).await;
    let late = there.link().request::<_, Response>(Method::FsChange, &late, Duration::from_secs(3)).await;
    assert!(late.is_err(), "another region is the home by now: {late:?}");
    let at = change(&back, mkdir("f0")).await;
    assert_eq!(at.epoch, 3);
    regions.heal();
    assert!(near(&there, "f0", &at).await.is_some());
    assert_eq!(near(&there, "late", &at).await, None);
    assert_eq!(near(&there, "alone", &at).await, None);
    let replica = serving(&regions, "b").unwrap().clone();
    assert_eq!(replica.geo.has_salvage(ROOT_VOLUME), tried.is_ok());
    let compared = verify::compare(&replica, ROOT_VOLUME).await.unwrap();
    assert!(compared.different.is_empty(), "{compared:?}");
}

/// The ledger, as a region has it.
async fn ledger(master: &Master) -> Vec<(Epoch, LossRecord)> {
    losses::ledger(&master.store.begin(), ROOT_VOLUME).await.unwrap()
}

/// A file has bytes that no chunkserver has: whatever follows isn't complete.
async fn names(home: &Master, file: InodeId, lacking: ChunkId) {
    let tx = home.store.begin();
    let record = ChunkRecord { length: 10, sealed: true, ..ChunkRecord::default() };
    tx.set(&chunk::key(lacking), &record.to_value());
    let held =
        LocationRecord { layout: 1, copies: vec!["gone".into()], epoch: 1, ..LocationRecord::default() };
    tx.set(&location::key(lacking), &held.to_value());
    let used = ChunkUse { extents: 1, bytes: 10 };
    tx.set(&chunk::reference_key(lacking, file), &used.to_value());
    let extent = ExtentRecord { chunk: lacking.0, length: 10, ..ExtentRecord::default() };
    tx.set(&extent::key(file, 0), &extent.to_value());
    tx.commit().await.unwrap();
}

/// What a failover would lose is what isn't complete elsewhere, however new what is shown there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_whose_bytes_lag_is_told_to_lag_and_no_move_to_it_is_planned() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let mount = client(&regions, "b", "a");
    change(&mount, mkdir("d")).await;
    caught_up(&regions, "b").await;
    let (home, replica) = (serving(&regions, "a").unwrap().clone(), serving(&regions, "b").unwrap().clone());
    let told = |master: &Master| {
        mooseng_master::geo::replicas(master, ROOT_VOLUME).into_iter().find(|of| of.region == "b")
    };
    until("it lacks nothing", async || {
        let whole = |of: admin::Replica| of.complete.is_some() && of.complete_behind_ms.is_none();
        told(&home).is_some_and(whole) && told(&replica).is_some_and(whole)
    })
    .await;
    let whole = told(&home).unwrap();
    assert_eq!((whole.log_bytes_behind, whole.log_bytes_more), (Some(0), false));
    assert_eq!(told(&replica).unwrap().chunks_awaited, 0);
    let complete = |of: &admin::Replica| of.complete.map(|at| (at.epoch, at.version));
    let cut = complete(&whole);

    names(&home, InodeId(900_000), ChunkId(900_000)).await;
    for n in 0..3 {
        change(&mount, mkdir(&format!("e{n}"))).await;
    }
    caught_up(&regions, "b").await;
    until("the home knows that the log is there, and the bytes aren't", async || {
        told(&home).is_some_and(|of| of.behind_ms.is_none() && of.complete_behind_ms > Some(50))
    })
    .await;
    let of = told(&home).unwrap();
    assert!(complete(&of) >= cut && complete(&of) < Some((of.epoch, of.version)), "{of:?}");
    assert!(!of.complete_behind_longer && of.log_bytes_behind > Some(0) && !of.log_bytes_more, "{of:?}");
    let own = told(&replica).unwrap();
    assert!(own.complete == of.complete && own.complete_behind_ms.is_some(), "{own:?} {of:?}");
    assert!(own.chunks_awaited >= 1, "{own:?}");
    let asked = MoveHomeRequest { to: "b".into(), plan: true, ..MoveHomeRequest::default() };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let refused = mooseng_master::geo::moving::order(&home, asked, deadline).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::InvalidRequest, "{refused:?}");
    assert!(refused.message.contains("doesn't keep up"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_begins_where_its_data_is_and_says_what_was_lost() {
    let began_ns = OsClock.unix_ns();
    let mut regions = Regions::start(&[("a", 3), ("b", 3), ("w", 1)]).await;
    let old = client(&regions, "b", "a");
    for n in 0..5 {
        change(&old, mkdir(&format!("d{n}"))).await;
    }
    caught_up(&regions, "b").await;
    let complete = async |regions: &Regions| {
        let record = serving(regions, "b")?.geo.replica(ROOT_VOLUME).record?;
        Some((record.complete(), record.position()))
    };
    until("the replica is complete", async || complete(&regions).await.is_some_and(|(c, at)| c == at)).await;
    // It hears by greetings, too, that this is all that the home has.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let (cut, _) = complete(&regions).await.unwrap();
    let (file, lacking) = (InodeId(900_000), ChunkId(900_000));
    names(serving(&regions, "a").unwrap(), file, lacking).await;
    let mut at = Place::default();
    for n in 0..3 {
        at = change(&old, mkdir(&format!("e{n}"))).await;
    }
    let session = old.session.lock().await.session;
    let there = client(&regions, "b", "b");
    assert!(near(&there, "e2", &at).await.is_some(), "it is read there, all the same");
    caught_up(&regions, "b").await;
    let (still, applied) = complete(&regions).await.unwrap();
    assert!(still == cut && applied > cut, "{still} of {applied}");
    let heard_by = serving(&regions, "b").unwrap().clone();
    let heard_in = heard_by.raft.term();

    regions.kill_region("a").await;
    serves_as_home(&regions, "b", 2).await;
    let new = client(&regions, "b", "b");
    let after = change(&new, mkdir("f0")).await;
    assert_eq!(after.epoch, 2);
    let master = serving(&regions, "b").unwrap().clone();
    let found = async |name: &str| {
        let directory = format!("/{name}");
        let tx = master.store.begin();
        mooseng_namespace::upkeep::inode_at(&tx, ROOT_VOLUME, directory.as_bytes()).await.unwrap().is_some()
    };
    assert!(found("d4").await && found("f0").await);
    let began = master.geo.view().unwrap().volumes[&ROOT_VOLUME].cut;
    assert_eq!(began, Some(cut), "{:?}", ledger(&master).await);
    assert!(!found("e0").await && !found("e2").await, "it is as it was at the cut");
    let [(closed, loss)] = &ledger(&master).await[..] else { panic!("one failover") };
    assert_eq!((*closed, loss.opened), (Epoch(1), 2));
    assert_eq!((loss.old_home.as_str(), loss.new_home.as_str()), ("a", "b"));
    assert_eq!((loss.cut(), loss.undone_upto(), loss.known() >= applied), (cut, applied, true));
    assert!(loss.undone >= 4 && loss.named.is_none(), "{loss:?}");
    assert!(loss.sessions.iter().any(|of| of.session == session && of.entries >= 3), "{loss:?}");
    // Of when what is lost is, at once: from when the next home had all, to when that began; and of when what it undid is.
    let (from, upto) = (loss.undone_from_ns.unwrap(), loss.undone_upto_ns.unwrap());
    assert!(began_ns <= from && from <= upto && upto <= loss.at_ns, "{loss:?}");
    // Another leader wouldn't have heard it, nor the same one that begins anew.
    let goes_on = Arc::ptr_eq(&heard_by, &master) && master.raft.term() == heard_in;
    assert!(loss.since_ns.is_some() || !goes_on, "{loss:?}");
    let way = 1_000_000_000;
    assert!(loss.since_ns.is_none_or(|since| began_ns <= since && since <= from + way), "{loss:?}");
    let told = losses::list_losses(&master, 0).await.unwrap().losses.remove(0);
    assert_eq!((told.since_ns, told.undone_from_ns), (loss.since_ns, loss.undone_from_ns));
    assert!(told.cut_ns.is_none_or(|cut| cut <= from), "{told:?}");
    // What was undone is kept, with the paths as they were.
    let [(of, archive)] = &losses::archives(&master.store.begin(), ROOT_VOLUME).await.unwrap()[..] else {
        panic!("one archive")
    };
    assert_eq!((*of, archive.upto(), archive.entries, archive.was_home), (cut, applied, loss.undone, false));
    let shown = losses::show_salvage(&master, salvage_of(cut)).await.unwrap();
    assert!(shown.files.iter().any(|file| file.path == "/e1"), "{:?}", shown.files);
    assert_eq!(shown.entries.len() as u64, loss.undone);
    let content = shown.entries.iter().flat_map(|entry| &entry.contents).find(|c| c.chunk == lacking.0);
    assert!(content.is_some_and(|content| content.inode == file.0 && !content.here));

    // The old home comes back: it puts aside what it had, names it, and follows.
    for i in regions.of("a") {
        regions.run(i).await;
    }
    let back = client(&regions, "a", "a");
    assert!(near(&back, "f0", &after).await.is_some());
    assert_eq!(near(&back, "e0", &after).await, None);
    until("the loss is named", async || ledger(&master).await[0].1.named.is_some()).await;
    let named = ledger(&master).await[0].1.named.clone().unwrap();
    assert!(named.entries >= loss.undone && named.paths >= 3 && !named.more_paths, "{named:?}");
    let replica = serving(&regions, "a").unwrap().clone();
    let shown = losses::show_salvage(&replica, salvage_of(cut)).await.unwrap();
    assert!(shown.archive.unwrap().was_home && shown.files.iter().any(|file| file.path == "/e2"));
    // The ledger follows the volume.
    until("the ledger is there, too", async || ledger(&replica).await == ledger(&master).await).await;
    let compared = verify::compare(&replica, ROOT_VOLUME).await.unwrap();
    assert!(compared.different.is_empty(), "{compared:?}");
    let told = losses::list_losses(&replica, 0).await.unwrap();
    assert_eq!((told.home.as_str(), told.region.as_str(), told.losses.len()), ("b", "a", 1));
    assert_eq!(losses::list_losses(&replica, 7).await.unwrap_err().code(), tonic::Code::NotFound);
    // Each region names the files of which it has put something aside.
    for (master, file) in [(&master, "/e1"), (&replica, "/e2")] {
        let told = losses::list_losses(master, 0).await.unwrap().losses.remove(0);
        assert!(told.files.iter().any(|of| of.path == file) && !told.more_files, "{told:?}");
        assert!(told.cut_ns.is_none_or(|cut| cut <= told.at_ns), "{told:?}");
    }
    let mut n = 0;
    until("the time of a change is told", async || {
        n += 1;
        let at = change(&new, mkdir(&format!("g{n}"))).await;
        let at = LogPosition::new(Epoch(at.epoch), at.version);
        let time = losses::time_at(&master.store.begin(), ROOT_VOLUME, at).await.unwrap();
        time.is_some_and(|ns| ns.abs_diff(master.clock.unix_ns()) < 60_000_000_000)
    })
    .await;
    let nothing = ShowSalvageRequest { cut: Some(LogPlace { epoch: 9, version: 9 }), ..Default::default() };
    assert_eq!(losses::show_salvage(&replica, nothing).await.unwrap_err().code(), tonic::Code::NotFound);
}

/// What the sync set has is to survive the loss of the home and of one more chunkserver: a single copy doesn't count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_counts_a_chunk_that_lies_on_as_many_chunkservers_as_a_written_one_needs() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let old = client(&regions, "b", "a");
    change(&old, mkdir("d")).await;
    caught_up(&regions, "b").await;
    let complete = async || {
        let record = serving(&regions, "b")?.geo.replica(ROOT_VOLUME).record?;
        Some((record.complete(), record.position()))
    };
    until("the replica is complete", async || complete().await.is_some_and(|(c, at)| c == at)).await;
    let (before, _) = complete().await.unwrap();
    let there = serving(&regions, "b").unwrap().clone();
    let (file, named) = (InodeId(900_000), ChunkId(900_000));
    let held = |copies: &[&str]| LocationRecord {
        layout: 1,
        copies: copies.iter().map(|&copy| copy.to_owned()).collect(),
        epoch: 1,
        ..LocationRecord::default()
    };
    let place = async |copies: &[&str]| {
        let tx = there.store.begin();
        tx.set(&location::key(named), &held(copies).to_value());
        tx.commit().await.unwrap();
    };
    place(&["one"]).await;
    let tx = serving(&regions, "a").unwrap().store.begin();
    let record = ChunkRecord { length: 10, sealed: true, ..ChunkRecord::default() };
    tx.set(&chunk::key(named), &record.to_value());
    let used = ChunkUse { extents: 1, bytes: 10 };
    tx.set(&chunk::reference_key(named, file), &used.to_value());
    let extent = ExtentRecord { chunk: named.0, length: 10, ..ExtentRecord::default() };
    tx.set(&extent::key(file, 0), &extent.to_value());
    tx.commit().await.unwrap();
    change(&old, mkdir("e")).await;
    caught_up(&regions, "b").await;
    let (still, applied) = complete().await.unwrap();
    assert!(still == before && applied > before, "{still} of {applied}");
    place(&["one", "two"]).await;
    until("it counts", async || complete().await.is_some_and(|(c, at)| c == at)).await;
}

/// Found by the simulation of three regions: a copy that grew while its region was the home stayed unsealed for good, for that the chunk is sealed came
/// later than the inventory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_hears_of_a_seal_that_came_after_its_inventory() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let old = client(&regions, "b", "a");
    change(&old, mkdir("d")).await;
    caught_up(&regions, "b").await;
    let there = serving(&regions, "b").unwrap().clone();
    let (file, named) = (InodeId(900_000), ChunkId(900_000));
    let tx = there.store.begin();
    let held = LocationRecord { layout: 1, copies: vec!["one".into()], epoch: 1, partial: None };
    tx.set(&location::key(named), &held.to_value());
    tx.commit().await.unwrap();
    let beat = |inventory: Vec<ChunkReport>| {
        let request = HeartbeatRequest {
            chunkserver: "one".into(),
            incarnation: 1,
            inventory_page: !inventory.is_empty(),
            inventory,
            ..HeartbeatRequest::default()
        };
        there.desk(|desk| desk.beat(there.clock.boot(), request)).unwrap()
    };
    beat(vec![ChunkReport { chunk: named.0, length: 10, sealed: false, epoch: 1 }]);
    until("what it has was compared", async || {
        !beat(Vec::new()) && there.desk(|desk| desk.take_unsealed(ROOT_VOLUME, 1).is_empty())
    })
    .await;
    let tx = serving(&regions, "a").unwrap().store.begin();
    let record = ChunkRecord { length: 8, sealed: true, birth: 1, ..ChunkRecord::default() };
    tx.set(&chunk::key(named), &record.to_value());
    tx.set(&chunk::reference_key(named, file), &ChunkUse { extents: 1, bytes: 8 }.to_value());
    let extent = ExtentRecord { chunk: named.0, length: 8, ..ExtentRecord::default() };
    tx.set(&extent::key(file, 0), &extent.to_value());
    tx.commit().await.unwrap();
    change(&old, mkdir("e")).await;
    caught_up(&regions, "b").await;
    until("it is told where the chunk ends", async || {
        beat(Vec::new());
        let told = there.desk(|desk| desk.take_seals("one"));
        told.iter().any(|seal| (seal.chunk, seal.length) == (named.0, 8))
    })
    .await;
}

/// Found by the simulation of three regions: the rest of such a chunk was collected by the home of before, and other regions waited for it for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_chunk_of_which_a_part_is_here_ends_there_under_the_next_home() {
    let mut regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    let old = client(&regions, "b", "a");
    change(&old, mkdir("d")).await;
    caught_up(&regions, "b").await;
    let (file, named) = (InodeId(900_000), ChunkId(900_000));
    let there = serving(&regions, "b").unwrap().clone();
    let tx = there.store.begin();
    let part =
        LocationRecord { layout: 1, copies: vec!["one".into(), "two".into()], epoch: 1, partial: Some(6) };
    tx.set(&location::key(named), &part.to_value());
    tx.commit().await.unwrap();
    drop(there);
    let tx = serving(&regions, "a").unwrap().store.begin();
    let record = ChunkRecord { length: 10, sealed: true, birth: 1, ..ChunkRecord::default() };
    tx.set(&chunk::key(named), &record.to_value());
    let used = ChunkUse { extents: 1, bytes: 6 };
    tx.set(&chunk::reference_key(named, file), &used.to_value());
    let extent = ExtentRecord { chunk: named.0, length: 6, ..ExtentRecord::default() };
    tx.set(&extent::key(file, 0), &extent.to_value());
    tx.commit().await.unwrap();
    change(&old, mkdir("e")).await;
    caught_up(&regions, "b").await;
    regions.kill_region("a").await;
    serves_as_home(&regions, "b", 2).await;
    let master = serving(&regions, "b").unwrap().clone();
    until("it ends where its part ends", async || {
        let tx = master.store.begin();
        let listing = mooseng_namespace::upkeep::load_chunk(&tx, named).await.unwrap();
        listing.is_some_and(|is| is.record.length == 6 && is.location.is_some_and(|l| l.partial.is_none()))
    })
    .await;
}

fn salvage_of(cut: LogPosition) -> ShowSalvageRequest {
    let cut = Some(LogPlace { epoch: cut.epoch.0, version: cut.version });
    ShowSalvageRequest { cut, ..ShowSalvageRequest::default() }
}
