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
use mooseng_schema::log::LogPosition;
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
    assert!(response.log_epoch == 1 && response.log_version > 0);
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
    let earlier = Push { epoch: 0, ..push };
    assert_eq!(pushed("a", Role::Master, &earlier).await, Some(ErrorCode::StaleEpoch));
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
