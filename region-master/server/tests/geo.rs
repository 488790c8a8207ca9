//! A volume with its home in one region and a replica in another: what is written here is read there, in order, whatever is cut off or dies.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::regions::{Regions, identity_of};
use common::{Client, until};
use mooseng_master::geo::{ROOT_VOLUME, verify};
use mooseng_master::master::Master;
use mooseng_schema::Record;
use mooseng_schema::log::{self, LogPosition, ReplicaRecord};
use mooseng_store::{Store, Transaction};
use mooseng_transport::{CallFailure, PlainNetwork};
use mooseng_wire::call::ErrorCode;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Caller, FsRequest, Lookup, Mkdir, Rename, Rmdir};
use mooseng_wire::geo::{Home, NearRead, NearReply, Place};
use mooseng_wire::method::Method;
use mooseng_wire::session::{OpenSession, Request, Response, SessionOpened};
use mooseng_wire::{Epoch, Role};
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
    Op::Mkdir(Mkdir { parent: 1, name: name.as_bytes().to_vec().into(), mode: 0o755 })
}

fn lookup(name: &str) -> FsRequest {
    let caller = Some(Caller { kernel_checked: true, ..Caller::default() });
    FsRequest { caller, op: Some(Op::Lookup(Lookup { parent: 1, name: name.as_bytes().to_vec().into() })) }
}

/// Makes a change at the home; answers up to where of the log its answer may show.
async fn change(home: &Client, op: Op) -> Place {
    // It renews nothing by itself.
    home.open(&[]).await.unwrap();
    let number = home.number.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
    let request = Request { oldest_unanswered: number, ..home.request(number, op).await };
    let response: Response = home.call(Method::FsChange, &request).await.unwrap();
    let reply = response.reply.unwrap().reply.unwrap();
    assert!(!matches!(reply, Reply::Errno(_)), "{reply:?}");
    assert!(response.log_epoch > 0 && response.log_version > 0);
    Place { epoch: response.log_epoch, version: response.log_version }
}

/// Looks a name up in a replica, which must have come so far.
async fn near(client: &Client, name: &str, at_least: &Place) -> Option<u64> {
    let request = NearRead { op: Some(lookup(name)), at_least: Some(*at_least) };
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
    let mut regions = Regions::start(&[("a", 3), ("b", 3), ("w", 1)]).await;
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
    let more = NearRead { op: Some(lookup("d2")), at_least: Some(newest) };
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
    // A home whose epoch is over has a replica that refuses it begin nothing anew.
    let replica = serving(&regions, "b").unwrap();
    let tx = replica.store.begin();
    let record = replica.geo.replica(ROOT_VOLUME).record.unwrap();
    let refusing = ReplicaRecord { refuses: 1, ..record };
    tx.set(&log::replica_key(ROOT_VOLUME), &refusing.to_value());
    tx.commit().await.unwrap();
    replica.geo.forget();
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
    let Ok(Reply::Entry(again)) = there.change_as(10, mkdir("d9")).await else { panic!("it was done") };
    assert!(again.attr.is_some());
    there.number.store(10, std::sync::atomic::Ordering::SeqCst);
    let request = Request { oldest_unanswered: 11, ..there.request(11, mkdir("e0")).await };
    let response: Response = there.call(Method::FsChange, &request).await.unwrap();
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
    assert!(!replica.geo.has_salvage());
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
    assert_eq!(replica.geo.has_salvage(), tried.is_ok());
    let compared = verify::compare(&replica, ROOT_VOLUME).await.unwrap();
    assert!(compared.different.is_empty(), "{compared:?}");
}
