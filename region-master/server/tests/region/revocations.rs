//! A region over TLS: whom an administrator revokes loses connections and session, everybody hears of it, and a restart forgets nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mooseng_certs::Authority;
use mooseng_embedded::MemoryBase;
use mooseng_master::{MasterConfig, MasterServer, Ports};
use mooseng_ports::clock::OsClock;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_transport::grpc::administration_client::AdministrationClient;
use mooseng_transport::grpc::registry_client::RegistryClient;
use mooseng_transport::{
    Blocking, CallFailure, Link, LinkOptions, Network, TlsFiles, TlsNetwork, grpc_channel,
};
use mooseng_wire::admin::{
    HeartbeatReply, HeartbeatRequest, Revocation, RevokeRequest, StatusRequest, UnrevokeRequest,
};
use mooseng_wire::method::Method;
use mooseng_wire::revocations::Agreed;
use mooseng_wire::session::{OpenSession, Renew, Renewed, SessionOpened};
use mooseng_wire::{Identity, Role};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::common::{Cluster, until};

const DAY: Duration = Duration::from_secs(86_400);
const CALL: Duration = Duration::from_secs(5);

struct Region {
    authority: Authority,
    dir: tempfile::TempDir,
    config: MasterConfig,
    disk: SimDisk,
    base: MemoryBase,
}

impl Region {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), "test").unwrap();
        authority.region("eu").unwrap();
        // Only its configuration is of use.
        let mut plain = Cluster::start(1, Arc::new(OsClock)).await;
        plain.kill(0).await;
        let config = MasterConfig { session_lease_ms: 8_000, ..plain.sites.remove(0).config };
        let base = MemoryBase::on_disk(Arc::new(SimDisk::default()), Path::new("/store")).unwrap();
        Self { authority, dir, config, disk: SimDisk::default(), base }
    }

    fn files(&self, role: Role, name: &str) -> TlsFiles {
        let identity = Identity { cluster: "test".into(), region: "eu".into(), role, name: name.into() };
        let out = self.dir.path().join(format!("{role}-{name}"));
        if !out.exists() {
            self.authority.issue(&identity, DAY, &out, false).unwrap();
        }
        let file = |name: &str| out.join(name);
        TlsFiles { cert: file("cert.pem"), key: file("key.pem"), ca: file("ca.pem"), revocations: None }
    }

    fn network(&self, role: Role, name: &str) -> Arc<TlsNetwork> {
        Arc::new(TlsNetwork::load(self.files(role, name)).unwrap())
    }

    async fn start(&self) -> MasterServer {
        let ports = Ports {
            network: self.network(Role::Master, "m1"),
            disk: Arc::new(self.disk.clone()),
            blocking: Blocking::Pool,
            clock: Arc::new(OsClock),
            base: Arc::new(self.base.clone()),
            global_base: None,
        };
        MasterServer::start(self.config.clone(), ports, CancellationToken::new()).await.unwrap()
    }

    fn link(&self, network: Arc<TlsNetwork>) -> Link {
        Link::new(network, self.config.advertise.clone(), Role::Master, LinkOptions::default())
    }

    async fn admin(&self, name: &str) -> AdministrationClient<Channel> {
        let network = self.network(Role::Admin, name);
        AdministrationClient::new(grpc_channel(network, &self.config.advertise, Role::Master).await)
    }

    async fn beat(&self, network: Arc<TlsNetwork>) -> HeartbeatReply {
        let request = HeartbeatRequest {
            chunkserver: "cs1".into(),
            address: "cs1:1".into(),
            incarnation: 1,
            credentials: network.credentials(),
            revocations_version: network.refusing(),
            ..HeartbeatRequest::default()
        };
        let channel = grpc_channel(network, &self.config.advertise, Role::Master).await;
        RegistryClient::new(channel).heartbeat(request).await.unwrap().into_inner()
    }
}

async fn open(link: &Link) -> SessionOpened {
    let mut opened = None;
    until("a session is opened", async || {
        opened = link.request(Method::OpenSession, &OpenSession::default(), CALL).await.ok();
        opened.is_some()
    })
    .await;
    opened.unwrap()
}

async fn renew(link: &Link, of: &SessionOpened, version: u64) -> Result<Renewed, CallFailure> {
    let renew = Renew {
        session: of.session,
        incarnation: of.incarnation,
        custody_epoch: of.custody_epoch,
        founding: of.founding.clone(),
        revocations_version: Some(version),
        ..Renew::default()
    };
    link.request(Method::Renew, &renew, CALL).await
}

fn revoke(what: &str) -> RevokeRequest {
    let revocation = Revocation { what: what.to_owned(), ..Revocation::default() };
    RevokeRequest { revocations: vec![revocation], ..RevokeRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_is_thrown_out_and_everybody_hears_of_it() {
    let region = Region::new().await;
    let server = region.start().await;
    until("it serves", async || server.is_serving()).await;
    let thief = "spiffe://test/eu/client/thief";
    let (theirs, ours) = (
        region.link(region.network(Role::Client, "thief")),
        region.link(region.network(Role::Client, "honest")),
    );
    let (their_session, our_session) = (open(&theirs).await, open(&ours).await);
    renew(&theirs, &their_session, 0).await.unwrap();
    let mut admin = region.admin("x").await;
    let chunkserver = region.network(Role::Chunkserver, "cs1");
    assert_eq!(region.beat(chunkserver.clone()).await.revocations, None, "nothing was ever revoked");

    let plan = admin.revoke(RevokeRequest { plan: true, ..revoke(thief) }).await.unwrap().into_inner();
    assert!(plan.version == 0 && plan.uses[0].contains("has 1 open sessions in eu"), "{plan:?}");
    renew(&theirs, &their_session, 0).await.expect("a plan throws nobody out");
    let began = tokio::time::Instant::now();
    let version = admin.revoke(revoke(thief)).await.unwrap().into_inner().version;
    until("its connection ends", async || {
        renew(&ours, &our_session, 0).await.unwrap();
        matches!(renew(&theirs, &their_session, 0).await, Err(CallFailure::Connect(_)))
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    // Its session ends as any other whose mount is gone.
    let sessions = async || {
        let status = admin.clone().status(StatusRequest {}).await.unwrap().into_inner();
        status.sessions.into_iter().map(|s| s.session).collect::<Vec<_>>()
    };
    until("its session lapses", async || {
        renew(&ours, &our_session, version).await.unwrap();
        sessions().await == [our_session.session]
    })
    .await;
    // Others are told once, whatever they are.
    let told = renew(&ours, &our_session, 0).await.unwrap().revocations.unwrap();
    assert_eq!((told.version, &told.revoked[..]), (version, &[thief.to_owned()][..]));
    assert_eq!(renew(&ours, &our_session, version).await.unwrap().revocations, None);
    let of_an_earlier_release = Renew {
        session: our_session.session,
        incarnation: our_session.incarnation,
        founding: our_session.founding.clone(),
        ..Renew::default()
    };
    let answer: Renewed = ours.request(Method::Renew, &of_an_earlier_release, CALL).await.unwrap();
    assert_eq!(answer.revocations, None, "it would be told with each renewal");
    let list = region.beat(chunkserver.clone()).await.revocations.unwrap();
    assert!(chunkserver.refuse(Agreed::from_told(&list).unwrap()));
    assert_eq!(region.beat(chunkserver.clone()).await.revocations, None);
    let status = admin.status(StatusRequest {}).await.unwrap().into_inner();
    let master = status.masters[0].credentials.clone().unwrap();
    let server_of = status.chunkservers[0].credentials.clone().unwrap();
    for told in [master, server_of] {
        assert_eq!((told.agreed_version, told.agreed_revocations), (version, 1));
    }
    // A restart forgets nothing: from the first moment on.
    server.master().shutdown.cancel();
    server.stopped().await;
    let server = region.start().await;
    until("it is told why", async || match renew(&theirs, &their_session, 0).await {
        answer @ (Ok(_) | Err(CallFailure::Remote(_))) => panic!("it is let in: {answer:?}"),
        Err(failure) => failure.to_string().contains("revoked"),
    })
    .await;
    let mut admin = region.admin("x").await;
    until("it is taken back", async || admin.unrevoke(UnrevokeRequest { what: thief.into() }).await.is_ok())
        .await;
    until("it is let in again", async || {
        !matches!(renew(&theirs, &their_session, 0).await, Err(CallFailure::Connect(_)))
    })
    .await;
    server.master().shutdown.cancel();
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_hurt_its_own_side_takes_another_word() {
    let region = Region::new().await;
    let server = region.start().await;
    until("it serves", async || server.is_serving()).await;
    let mut admin = region.admin("x").await;
    let chunkserver = region.network(Role::Chunkserver, "cs1");
    region.beat(chunkserver.clone()).await;
    let refused = async |request: RevokeRequest| {
        let mut message = String::new();
        until("it is refused", async || {
            let status = region.admin("x").await.revoke(request.clone()).await.unwrap_err();
            message = status.message().to_owned();
            status.code() == tonic::Code::InvalidArgument
        })
        .await;
        message
    };
    let serial =
        mooseng_certs::inspect::file(&region.files(Role::Admin, "x").cert).unwrap()[0].serial.clone();
    for own in ["spiffe://test/eu/admin/x", serial.as_str()] {
        let message = refused(revoke(own)).await;
        assert!(message.contains("--although-it-is-your-own"), "{message}");
    }
    let (name, master) = ("spiffe://test/eu/chunkserver/cs1", "spiffe://test/eu/master/m1");
    let serves = refused(revoke(name)).await;
    assert!(serves.contains("drain") && serves.contains("--although-it-serves"), "{serves}");
    let all = RevokeRequest { although_own: true, although_it_serves: true, ..revoke(master) };
    assert!(refused(all).await.contains("takes part"));
    until("it serves", async || {
        admin.revoke(RevokeRequest { although_it_serves: true, ..revoke(name) }).await.is_ok()
    })
    .await;
    let channel = async || grpc_channel(chunkserver.clone(), &region.config.advertise, Role::Master).await;
    until("it is thrown out", async || {
        let request = HeartbeatRequest { chunkserver: "cs1".into(), ..HeartbeatRequest::default() };
        RegistryClient::new(channel().await).heartbeat(request).await.is_err()
    })
    .await;
    server.master().shutdown.cancel();
    server.stopped().await;
}
