//! Who is let in over real TLS sockets, and what is said to who isn't.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_certs::Authority;
use mooseng_transport::{
    Answer, CallFailure, ConnectError, Incoming, Limits, Link, LinkOptions, Network, Protocol, Service,
    Services, TlsFiles, TlsNetwork, serve,
};
use mooseng_wire::call::CallError;
use mooseng_wire::method::Method;
use mooseng_wire::revocations::{Agreed, Revocations};
use mooseng_wire::{Identity, Role};
use tokio_util::sync::CancellationToken;

struct WhoAmI;

#[async_trait]
impl Service for WhoAmI {
    async fn call(&self, incoming: Incoming) -> Result<Answer, CallError> {
        if incoming.method == Method::FsChange {
            tokio::time::sleep(Duration::from_millis(u64::from(incoming.body[0]) * 100)).await;
        }
        Ok(Answer { body: incoming.peer.identity.to_string().into(), bulk: Bytes::new() })
    }
}

struct Cluster {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Cluster {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), name).unwrap();
        authority.region("here").unwrap();
        Self { dir, authority }
    }
    fn identity(&self, role: Role, name: &str) -> Identity {
        Identity { cluster: self.authority.cluster().into(), region: "here".into(), role, name: name.into() }
    }
    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn issue(&self, role: Role, name: &str, life: Duration) -> TlsFiles {
        let out = self.out(name);
        self.authority.issue(&self.identity(role, name), life, &out, true).unwrap();
        files(&out)
    }
    async fn serve(&self) -> String {
        self.serve_over().await.0
    }
    async fn serve_over(&self) -> (String, TlsNetwork) {
        let network = TlsNetwork::load(self.issue(Role::Master, "m1", DAY)).unwrap();
        let listener = network.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address();
        let services = Services { stream: Arc::new(WhoAmI), grpc: None, allow: |_, _| Ok(()) };
        tokio::spawn(serve(listener, services, Limits::default(), CancellationToken::new()));
        (address, network)
    }
}

fn files(out: &Path) -> TlsFiles {
    TlsFiles {
        cert: out.join("cert.pem"),
        key: out.join("key.pem"),
        ca: out.join("ca.pem"),
        revocations: Some(out.join("revocations.txt")),
    }
}

const DAY: Duration = Duration::from_secs(86_400);
const WAIT: Duration = Duration::from_secs(5);

fn link(files: TlsFiles, address: &str, role: Role) -> Link {
    Link::new(Arc::new(TlsNetwork::load(files).unwrap()), address.into(), role, LinkOptions::default())
}

async fn ask(link: &Link) -> Result<String, CallFailure> {
    let answer = link.call(Method::FsRead, Bytes::new(), Bytes::new(), WAIT).await?;
    Ok(String::from_utf8(answer.body.to_vec()).unwrap())
}

async fn refusal(files: TlsFiles, address: &str, role: Role) -> String {
    ask(&link(files, address, role)).await.unwrap_err().to_string().to_lowercase()
}

#[tokio::test]
async fn the_right_certificate_is_known_by_its_identity() {
    let cluster = Cluster::new("one");
    let address = cluster.serve().await;
    let link = link(cluster.issue(Role::Client, "c1", DAY), &address, Role::Master);
    assert_eq!(ask(&link).await.unwrap(), "spiffe://one/here/client/c1");
}

#[tokio::test]
async fn wrong_roles_expired_foreign_and_missing_certificates_are_refused_with_the_reason() {
    let cluster = Cluster::new("one");
    let address = cluster.serve().await;
    let wrong = refusal(cluster.issue(Role::Client, "c1", DAY), &address, Role::Chunkserver).await;
    assert!(wrong.contains("a chunkserver was expected"), "{wrong}");

    let expired = cluster.issue(Role::Client, "c2", Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let expired = refusal(expired, &address, Role::Master).await;
    assert!(expired.contains("expired"), "{expired}");

    let other = Cluster::new("two");
    let foreign = other.issue(Role::Client, "c3", DAY);
    let here = refusal(foreign.clone(), &address, Role::Master).await;
    assert!(here.contains("belongs to another cluster"), "{here}");
    // One of another authority, of the same name, that believes this cluster's root: it is the server that refuses it.
    let twin = Cluster::new("one");
    let foreign = twin.issue(Role::Client, "c3", DAY);
    let there =
        refusal(TlsFiles { ca: cluster.out("m1").join("ca.pem"), ..foreign }, &address, Role::Master).await;
    assert!(there.contains("the peer refused us") && there.contains("another cluster"), "{there}");

    // A client that trusts the server but shows nothing.
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(cluster.out("m1").join("ca.pem")).unwrap();
    roots.add(rustls_pki_types::pem::PemObject::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    for alpn in [&b"mooseng/1"[..], b"h2"] {
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = tokio::net::TcpStream::connect(&address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("x.invalid").unwrap();
        let mut io =
            tokio_rustls::TlsConnector::from(Arc::new(config.clone())).connect(name, tcp).await.unwrap();
        let error = tokio::io::AsyncReadExt::read_u8(&mut io).await.unwrap_err().to_string();
        assert!(error.to_lowercase().contains("certificaterequired"), "{error}");
    }
}

/// A mount doesn't wait for masters that will never let it in.
#[tokio::test]
async fn who_will_never_be_let_in_for_certificates_is_told_so_by_the_kind_of_error() {
    let cluster = Cluster::new("one");
    let address = cluster.serve().await;
    let expired = cluster.issue(Role::Client, "c1", Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (other, twin) = (Cluster::new("two"), Cluster::new("one"));
    // The one is refused by this side, the other by the server, whose word comes after the handshake.
    let ca = cluster.out("m1").join("ca.pem");
    let (foreign, twins) =
        (other.issue(Role::Client, "c2", DAY), TlsFiles { ca, ..twin.issue(Role::Client, "c3", DAY) });
    for files in [expired, foreign, twins] {
        let error = ask(&link(files, &address, Role::Master)).await.unwrap_err();
        assert!(matches!(error, CallFailure::Connect(ConnectError::Certificate { .. })), "{error}");
    }
    let sound = cluster.issue(Role::Client, "c4", DAY);
    let error = ask(&link(sound, &address, Role::Chunkserver)).await.unwrap_err();
    assert!(matches!(error, CallFailure::Connect(ConnectError::Refused { .. })), "{error}");
}

/// What the server notes of one attempt to connect: code and reason.
async fn noted(server: TlsFiles, client: TlsFiles, protocol: Protocol) -> (String, String) {
    let mut listener = TlsNetwork::load(server).unwrap().listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address();
    tokio::spawn(async move {
        let network = TlsNetwork::load(client).unwrap();
        let connection = network.connect(&address, protocol, Role::Master).await;
        tokio::time::sleep(WAIT).await;
        drop(connection);
    });
    let error = listener.accept().await.unwrap().finish().await.err().expect("it is refused");
    (error.code().to_owned(), error.to_string())
}

#[tokio::test]
async fn the_server_notes_code_and_reason_for_either_protocol() {
    let cluster = Cluster::new("one");
    let server = cluster.issue(Role::Master, "m1", DAY);
    let expired = cluster.issue(Role::Client, "c1", Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let twin = Cluster::new("one");
    let foreign = TlsFiles { ca: server.ca.clone(), ..twin.issue(Role::Client, "c2", DAY) };
    for protocol in [Protocol::Stream, Protocol::Grpc] {
        let (code, reason) = noted(server.clone(), expired.clone(), protocol).await;
        assert_eq!(code, "PEER_EXPIRED", "{reason}");
        let (code, reason) = noted(server.clone(), foreign.clone(), protocol).await;
        assert_eq!(code, "PEER_OTHER_CLUSTER", "{reason}");
    }
    let revoked = cluster.issue(Role::Client, "c4", DAY);
    cluster.authority.revoke("spiffe://one/here/client/c4").unwrap();
    cluster.authority.distribute_revocations().unwrap();
    // Its own list is none of its business here: it is the server's that counts.
    let revoked = TlsFiles { revocations: None, ..revoked };
    let (code, reason) = noted(server.clone(), revoked, Protocol::Stream).await;
    assert_eq!(code, "PEER_REVOKED", "{reason}");
    // Whoever merely looks whether the port is open isn't refused: it left.
    let mut listener = TlsNetwork::load(server).unwrap().listen("127.0.0.1:0").await.unwrap();
    drop(tokio::net::TcpStream::connect(listener.local_address()).await.unwrap());
    let error = listener.accept().await.unwrap().finish().await.err().unwrap();
    assert_eq!(error.code(), "PEER_LEFT", "{error}");
}

#[tokio::test]
async fn a_vanished_revocation_list_lets_nobody_in_again() {
    let cluster = Cluster::new("one");
    let address = cluster.serve().await;
    let revoked = TlsFiles { revocations: None, ..cluster.issue(Role::Client, "c1", DAY) };
    cluster.authority.revoke("spiffe://one/here/client/c1").unwrap();
    cluster.authority.distribute_revocations().unwrap();
    let link = link(revoked, &address, Role::Master);
    while ask(&link).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    std::fs::remove_file(cluster.out("m1").join("revocations.txt")).unwrap();
    // Longer than the files are looked at twice.
    for _ in 0..30 {
        assert!(ask(&link).await.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_list_that_is_configured_and_missing_or_malformed_keeps_a_daemon_from_starting() {
    let cluster = Cluster::new("one");
    let files = cluster.issue(Role::Master, "m1", DAY);
    let list = files.revocations.clone().unwrap();
    TlsNetwork::load(files.clone()).unwrap();
    let refused = |files: &TlsFiles| TlsNetwork::load(files.clone()).err().unwrap().to_string();
    std::fs::remove_file(&list).unwrap();
    let missing = refused(&files);
    assert!(missing.contains("isn't there") && missing.contains("an empty file refuses nobody"), "{missing}");
    std::fs::write(&list, "# x\nrevoke c1\n").unwrap();
    let malformed = refused(&files);
    assert!(malformed.contains("line 2") && malformed.contains("revoke c1"), "{malformed}");
    std::fs::write(&list, [0xff, 0xfe]).unwrap();
    assert!(refused(&files).contains("isn't text"));
    std::fs::write(&list, "").unwrap();
    TlsNetwork::load(files).unwrap();
}

#[tokio::test]
async fn a_daemon_tells_its_certificates_end_and_which_list_it_goes_by() {
    let cluster = Cluster::new("one");
    let network = TlsNetwork::load(cluster.issue(Role::Master, "m1", DAY)).unwrap();
    let before = network.credentials().unwrap();
    assert!(before.revocations_configured && before.revocations == 0);
    assert!(before.not_after_unix - before.not_before_unix >= 86_400);
    cluster.authority.revoke("spiffe://one/here/client/c1").unwrap();
    cluster.authority.distribute_revocations().unwrap();
    let digest = cluster.authority.revocations().unwrap().digest();
    assert_ne!(before.revocations_digest, digest);
    let taken_up = async {
        while network.credentials().unwrap().revocations_digest != digest {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken_up).await.expect("taken up within 10 s");
    assert_eq!(network.credentials().unwrap().revocations, 1);
    // Renewed and freshly issued leaves come with the list as it is.
    let other = TlsNetwork::load(cluster.issue(Role::Chunkserver, "cs1", DAY)).unwrap();
    assert_eq!(other.credentials().unwrap().revocations_digest, digest);
    let without = TlsFiles { revocations: None, ..files(&cluster.out("cs1")) };
    let none = TlsNetwork::load(without).unwrap().credentials().unwrap();
    assert_eq!((none.revocations_digest, none.revocations_configured), (before.revocations_digest, false));
}

#[derive(Debug)]
struct Anybody;
impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn a_revoked_identity_loses_its_connection_and_gets_no_other() {
    let cluster = Cluster::new("one");
    let address = cluster.serve().await;
    let link = link(cluster.issue(Role::Client, "c1", DAY), &address, Role::Master);
    let id = ask(&link).await.unwrap();
    let lacking = cluster.authority.revoke(&id).unwrap();
    assert_eq!(lacking.len(), 1, "the master lacks the list");
    cluster.authority.distribute_revocations().unwrap();
    assert!(cluster.authority.renew(&cluster.out("c1")).is_err());
    let refused = async {
        loop {
            if let Err(CallFailure::Connect(error)) = ask(&link).await {
                return error.to_string().to_lowercase();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let reason = tokio::time::timeout(Duration::from_secs(10), refused).await.expect("dropped within 10 s");
    assert!(reason.contains("revoked"), "{reason}");
}

/// What the cluster has agreed on, at that version.
fn agreed(version: u64, text: &str) -> Agreed {
    Agreed { version, revoked: Revocations::parse(text).unwrap() }
}

async fn refused_within(link: &Link, within: Duration) -> String {
    let refused = async {
        loop {
            if let Err(CallFailure::Connect(error)) = ask(link).await {
                return error.to_string().to_lowercase();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(within, refused).await.expect("its connection ends in time")
}

#[tokio::test]
async fn whom_the_cluster_agrees_to_refuse_loses_its_connection_at_once_and_beside_the_files_list() {
    let cluster = Cluster::new("one");
    let (address, network) = cluster.serve_over().await;
    let [by_name, by_serial, by_file, other] = ["c1", "c2", "c3", "c4"]
        .map(|name| TlsFiles { revocations: None, ..cluster.issue(Role::Client, name, DAY) });
    let serial = mooseng_certs::inspect::file(&by_serial.cert).unwrap()[0].serial.clone();
    let [by_name, by_serial, by_file, other] =
        [by_name, by_serial, by_file, other].map(|files| link(files, &address, Role::Master));
    for link in [&by_name, &by_serial, &by_file, &other] {
        ask(link).await.unwrap();
    }
    assert!(network.refuse(agreed(5, &format!("spiffe://one/here/client/c1\n{serial}"))));
    assert!(!network.refuse(agreed(4, "")), "an older one changes nothing");
    for link in [&by_name, &by_serial] {
        // Its peers look each second.
        let reason = refused_within(link, Duration::from_secs(3)).await;
        assert!(reason.contains("revoked"), "{reason}");
    }
    let told = network.credentials().unwrap();
    assert_eq!((told.agreed_version, told.agreed_revocations, told.revocations), (5, 2, 0));
    // A new list in the file is in force beside it, and the other way round: files that are read anew forget nothing that was agreed on.
    cluster.authority.revoke("spiffe://one/here/client/c3").unwrap();
    cluster.authority.distribute_revocations().unwrap();
    refused_within(&by_file, Duration::from_secs(10)).await;
    assert!(ask(&by_name).await.is_err());
    ask(&other).await.unwrap();
    assert!(network.refuse(agreed(6, &serial)));
    // A link that was refused pauses before it tries again.
    let let_in = async {
        while ask(&by_name).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), let_in).await.expect("it is let in again");
    assert!(ask(&by_serial).await.is_err() && ask(&by_file).await.is_err());
}

#[tokio::test]
async fn a_client_ends_its_connection_to_a_server_that_the_cluster_refuses() {
    let cluster = Cluster::new("one");
    let address = cluster.serve().await;
    let network = TlsNetwork::load(cluster.issue(Role::Client, "c1", DAY)).unwrap();
    let link = Link::new(Arc::new(network.clone()), address, Role::Master, LinkOptions::default());
    ask(&link).await.unwrap();
    assert!(network.refuse(agreed(1, "spiffe://one/here/master/m1")));
    let reason = refused_within(&link, Duration::from_secs(3)).await;
    assert!(reason.contains("revoked"), "{reason}");
}

#[tokio::test]
async fn renewed_leaves_are_taken_up_without_an_error_or_a_lost_call() {
    let cluster = Cluster::new("one");
    let life = Duration::from_secs(6);
    let network = TlsNetwork::load(cluster.issue(Role::Master, "m1", life)).unwrap();
    let listener = network.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address();
    let services = Services { stream: Arc::new(WhoAmI), grpc: None, allow: |_, _| Ok(()) };
    tokio::spawn(serve(listener, services, Limits::default(), CancellationToken::new()));
    let link = link(cluster.issue(Role::Client, "c1", life), &address, Role::Master);
    // Three lives of the leaves, with calls that are always in flight.
    let end = tokio::time::Instant::now() + 3 * life;
    while tokio::time::Instant::now() < end {
        for out in ["m1", "c1"] {
            cluster.authority.renew_if_due(&cluster.out(out)).unwrap();
        }
        let slow = link.call(Method::FsChange, Bytes::from_static(&[2]), Bytes::new(), WAIT);
        let (slow, quick) = tokio::join!(slow, ask(&link));
        slow.unwrap();
        quick.unwrap();
    }
}
