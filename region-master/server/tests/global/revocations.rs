//! What is revoked in one region is refused in all, whatever is cut off or restarts.

use std::sync::Arc;
use std::time::Duration;

use mooseng_schema::revocation::{self, Revocation, RevocationRecord};
use mooseng_schema::{Record, number};
use mooseng_store::{Store, Transaction};
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::{PlainNetwork, grpc_channel};
use mooseng_wire::Role;
use mooseng_wire::admin::{ListRevocationsRequest, Revocation as Told, RevokeRequest, UnrevokeRequest};
use mooseng_wire::global::Revoke;
use mooseng_wire::global::change::Change;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::WITHIN;
use crate::common::regions::{Regions, identity_of};
use crate::common::until;

const THIEF: &str = "spiffe://test/a/client/thief";

fn of(what: &str) -> Vec<Told> {
    vec![Told { what: what.into(), reason: "stolen".into(), ..Told::default() }]
}

async fn admin(regions: &Regions, region: &str, at: usize) -> AdministrationClient<Channel> {
    let network = Arc::new(PlainNetwork::new(identity_of(region, Role::Admin, "x")));
    AdministrationClient::new(grpc_channel(network, &regions.sites[at].config.advertise, Role::Master).await)
}

fn known(regions: &Regions, i: usize) -> (u64, Vec<String>) {
    let known = regions.running[i].as_ref().unwrap().master().revoked.now();
    (known.version, known.revoked.keys().cloned().collect())
}

async fn all_know(regions: &Regions, version: u64, what: &[&str]) {
    until("all masters know it", async || {
        regions.up().into_iter().all(|i| {
            let (has, names) = known(regions, i);
            has == version && names == what
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_in_one_region_is_refused_in_all_once_they_are_reached() {
    let mut regions = Regions::start(&[("a", 3), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    let mut at_b = admin(&regions, "b", 3).await;
    let plan = RevokeRequest { revocations: of(THIEF), plan: true, ..RevokeRequest::default() };
    at_b.revoke(plan.clone()).await.unwrap();
    let revoke = RevokeRequest { plan: false, ..plan };
    let version = at_b.revoke(revoke.clone()).await.unwrap().into_inner().version;
    all_know(&regions, version, &[THIEF]).await;
    assert_eq!(at_b.revoke(revoke).await.unwrap().into_inner().version, version, "done already");
    let mut at_a = admin(&regions, "a", 0).await;
    let listed = at_a.list_revocations(ListRevocationsRequest {}).await.unwrap().into_inner();
    assert_eq!((listed.version, listed.region.as_str()), (version, "a"));
    let told = &listed.revocations[0];
    assert_eq!((told.what.as_str(), told.reason.as_str()), (THIEF, "stolen"));
    assert_eq!(told.by, "spiffe://test/b/admin/x", "whatever the request says");
    assert!(told.at_unix > 0 && told.expires_unix == 0);
    // A region that is cut off goes by what it knows, and hears of the rest once it is back.
    regions.cut("b");
    let mut later = 0;
    until("the others agree without it", async || {
        let asked = RevokeRequest { revocations: of("5aff"), ..RevokeRequest::default() };
        match at_a.revoke(asked).await {
            Ok(reply) => later = reply.into_inner().version,
            Err(status) => {
                let passing = [tonic::Code::Unavailable, tonic::Code::DeadlineExceeded];
                assert!(passing.contains(&status.code()), "{status}");
            }
        }
        later > 0
    })
    .await;
    assert_eq!(known(&regions, 3), (version, vec![THIEF.to_owned()]));
    regions.heal();
    all_know(&regions, later, &["5aff", THIEF]).await;
    // Before anybody is asked, a master that starts goes by what its store has on its disk, where a change comes within five seconds.
    tokio::time::sleep(Duration::from_secs(6)).await;
    regions.kill(4).await;
    regions.cut("w");
    regions.run(4).await;
    assert_eq!(known(&regions, 4), (later, vec!["5aff".to_owned(), THIEF.to_owned()]));
    regions.heal();
    let back = at_a.unrevoke(UnrevokeRequest { what: THIEF.into() }).await.unwrap().into_inner().version;
    all_know(&regions, back, &["5aff"]).await;
    let again = at_a.unrevoke(UnrevokeRequest { what: THIEF.into() }).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_revokes_the_masters_that_agree_or_anothers_name() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    let mut client = admin(&regions, "a", 0).await;
    let mut refused = async |what: &str, although: bool| {
        let asked = RevokeRequest {
            revocations: of(what),
            although_own: although,
            although_it_serves: although,
            ..RevokeRequest::default()
        };
        client.revoke(asked).await.map(|_| ()).map_err(|status| (status.code(), status.message().to_owned()))
    };
    for although in [false, true] {
        for (what, says) in [
            ("spiffe://test/b/master/b1", "takes part"),
            ("spiffe://test/a/master/a1", "takes part"),
            ("spiffe://other/a/client/x", "another cluster"),
            ("king", "neither a serial number"),
        ] {
            let (code, message) = refused(what, although).await.unwrap_err();
            assert!(code == tonic::Code::InvalidArgument && message.contains(says), "{what}: {message}");
        }
    }
    let (_, message) = refused("spiffe://test/a/admin/x", false).await.unwrap_err();
    assert!(message.contains("--although-it-is-your-own"), "{message}");
    // The leader of the group looks, too, whatever a master passes on.
    let change = Change::Revoke(Revoke { revocations: of("spiffe://test/w/master/w1"), at_least: 0 });
    let refused_there = regions.global(0).change(change, Instant::now() + WITHIN).await.unwrap_err();
    assert!(refused_there.message.contains("takes part"), "{refused_there:?}");
    assert_eq!(known(&regions, 0), (0, vec![]));
    refused("spiffe://test/a/admin/x", true).await.unwrap();
    let mut client = admin(&regions, "a", 0).await;
    let by_client = Arc::new(PlainNetwork::new(identity_of("a", Role::Client, "c")));
    let channel = grpc_channel(by_client, &regions.sites[0].config.advertise, Role::Master).await;
    let denied = AdministrationClient::new(channel).revoke(RevokeRequest::default()).await.unwrap_err();
    assert_eq!(denied.code(), tonic::Code::PermissionDenied);
    let nothing = client.revoke(RevokeRequest::default()).await.unwrap_err();
    assert_eq!(nothing.code(), tonic::Code::InvalidArgument);
}

/// A cluster of one region has become one of several: what it had revoked by itself is the cluster's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_region_had_revoked_alone_goes_to_the_cluster() {
    let regions = Regions::start(&[("a", 1), ("b", 1), ("w", 1)]).await;
    regions.agreed().await;
    let own = Revocation { reason: "alone".into(), by: "x".into(), at_unix: 5, expires_unix: None };
    let store = &regions.running[0].as_ref().unwrap().master().store;
    until("the region takes it", async || {
        let tx = store.begin();
        tx.set(&revocation::key("77"), &RevocationRecord::from(&own).to_value());
        tx.set(&revocation::version_key(), &number::encode(9));
        tx.commit().await.is_ok()
    })
    .await;
    until("every region knows it", async || {
        regions.up().into_iter().all(|i| known(&regions, i).1 == ["77"] && known(&regions, i).0 > 9)
    })
    .await;
    let left = || async { store.begin().get(&revocation::key("77"), mooseng_store::Read::Snapshot).await };
    until("it is the cluster's alone", async || left().await.is_ok_and(|left| left.is_none())).await;
    let told = regions.running[1].as_ref().unwrap().master().revoked.now().revoked["77"].clone();
    assert_eq!(told, own);
    let mut client = admin(&regions, "b", 1).await;
    let version = client.unrevoke(UnrevokeRequest { what: "77".into() }).await.unwrap().into_inner().version;
    tokio::time::timeout(Duration::from_secs(20), all_know(&regions, version, &[])).await.unwrap();
}
