//! Mutual TLS 1.3: every peer shows a certificate of the cluster's root whose SPIFFE id says what it is.
//!
//! Names in certificates aren't host names: the peer's role, cluster and region come from its SPIFFE id, and are checked
//! after the chain was. Files are read again when they change, so that renewed leaves are taken up without a restart;
//! a connection ends when its peer's certificate ends or is revoked. TLS sessions are never resumed: resumption would skip these checks.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use mooseng_wire::{Identity, Role};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Interval};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::network::{
    ConnectError, Connection, Handshake, HandshakeError, Listener, Network, Peer, Protocol,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often files are looked at, and connections' peers checked again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Where a daemon's certificate files lie.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The leaf and the region's intermediate.
    pub cert: PathBuf,
    /// The leaf's key.
    pub key: PathBuf,
    /// The cluster's root.
    pub ca: PathBuf,
    /// Serial numbers and SPIFFE ids that are refused, one a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocations: Option<PathBuf>,
}

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// A file can't be read.
    #[error("the TLS file {path} can't be read: {source}; check the [tls] settings")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file doesn't hold what it should.
    #[error("the TLS file {path} is of no use: {reason}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

struct Credentials {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    identity: Identity,
    not_before: i64,
    not_after: i64,
    revoked: Vec<String>,
}

/// The network under mutual TLS. Clones share it.
#[derive(Clone)]
pub struct TlsNetwork {
    files: Arc<TlsFiles>,
    current: Arc<RwLock<Arc<Credentials>>>,
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // AES-128 first: the fastest on machines with AES instructions, which ours are.
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsSetupError> {
    std::fs::read(path).map_err(|source| TlsSetupError::File { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let content = |reason: String| TlsSetupError::Content { path: path.to_owned(), reason };
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|e| content(e.to_string()))?;
    if found.is_empty() { Err(content("it holds no certificate".into())) } else { Ok(found) }
}

/// What a leaf says of its owner.
fn describe(leaf: &CertificateDer<'_>) -> Result<(Peer, i64), String> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| format!("the certificate is malformed: {e}"))?;
    let names = parsed.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = names.map(|n| &n.value.general_names[..]).unwrap_or_default();
    let mut uris = names.iter().filter_map(|n| if let GeneralName::URI(uri) = n { Some(*uri) } else { None });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err("the certificate doesn't have exactly one SPIFFE id".into());
    };
    let identity = Identity::parse(uri).map_err(|e| e.to_string())?;
    let serial = parsed.raw_serial().iter().map(|b| format!("{b:02x}")).collect();
    let validity = parsed.validity();
    let peer = Peer { identity, serial, not_after_unix: validity.not_after.timestamp() };
    Ok((peer, validity.not_before.timestamp()))
}

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

impl Credentials {
    fn load(files: &TlsFiles) -> Result<Self, TlsSetupError> {
        let chain = certificates(&files.cert)?;
        let key_bytes = read(&files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key_bytes)
            .map_err(|e| TlsSetupError::Content { path: files.key.clone(), reason: e.to_string() })?;
        let content = |path: &Path, reason: String| TlsSetupError::Content { path: path.to_owned(), reason };
        let (own, not_before) = describe(&chain[0]).map_err(|reason| content(&files.cert, reason))?;
        let mut roots = RootCertStore::empty();
        for root in certificates(&files.ca)? {
            roots.add(root).map_err(|e| content(&files.ca, e.to_string()))?;
        }
        let roots = Arc::new(roots);
        let revoked = match &files.revocations {
            None => Vec::new(),
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(source) => return Err(TlsSetupError::File { path: path.clone(), source }),
            },
        };
        let provider = provider();
        let chain_verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| content(&files.ca, e.to_string()))?;
        let verifier = Arc::new(Verifier {
            chain: chain_verifier,
            provider: provider.clone(),
            cluster: own.identity.cluster.clone(),
            revoked: revoked.clone(),
        });
        let mismatched = |e: rustls::Error| content(&files.key, format!("it doesn't fit the certificate: {e}"));
        let versions = [&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(mismatched)?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(mismatched)?;
        server.alpn_protocols = vec![Protocol::Stream.alpn().to_vec(), Protocol::Grpc.alpn().to_vec()];
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(mismatched)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .map_err(mismatched)?;
        client.resumption = Resumption::disabled();
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            not_before,
            not_after: own.not_after_unix,
            identity: own.identity,
            revoked,
        })
    }

    fn is_revoked(&self, peer: &Peer) -> bool {
        let identity = peer.identity.to_string();
        self.revoked.iter().any(|line| *line == peer.serial || *line == identity)
    }

    /// Why a peer may not be talked to any more.
    fn objection(&self, peer: &Peer) -> Option<&'static str> {
        if self.is_revoked(peer) {
            Some("its certificate is revoked")
        } else if peer.not_after_unix < unix_now() {
            Some("its certificate has expired")
        } else {
            None
        }
    }
}

/// Checks both sides' chains: against the root, for validity, for the cluster, and against the revocation list.
#[derive(Debug)]
struct Verifier {
    chain: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    cluster: String,
    revoked: Vec<String>,
}

impl Verifier {
    fn verify(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>], now: UnixTime) -> Result<(), rustls::Error> {
        self.chain.verify_client_cert(leaf, others, now)?;
        let (peer, _) = describe(leaf).map_err(rustls::Error::General)?;
        let id = peer.identity.to_string();
        if peer.identity.cluster != self.cluster {
            return Err(rustls::Error::General(format!("{id} belongs to another cluster than {}", self.cluster)));
        }
        if self.revoked.iter().any(|line| *line == peer.serial || *line == id) {
            return Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked));
        }
        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, others, now).map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 isn't spoken here".into()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, others, now).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 isn't spoken here".into()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl TlsNetwork {
    /// Loads the files, and again whenever they change. A renewed set that is of no use is logged and the old one kept.
    /// Must be called within a tokio runtime.
    pub fn load(files: TlsFiles) -> Result<Self, TlsSetupError> {
        let credentials = Credentials::load(&files)?;
        let now = unix_now();
        if now < credentials.not_before || credentials.not_after < now {
            tracing::warn!(cert = %files.cert.display(), "our own certificate isn't valid now: peers will refuse us until it is renewed");
        }
        let network = Self { files: Arc::new(files), current: Arc::new(RwLock::new(Arc::new(credentials))) };
        tokio::spawn(watch(network.files.clone(), Arc::downgrade(&network.current)));
        Ok(network)
    }

    fn current(&self) -> Arc<Credentials> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn guard(&self, io: impl crate::Io, peer: Arc<Peer>) -> Guarded {
        Guarded { io: Box::new(io), network: self.clone(), peer, check: tokio::time::interval(CHECK_INTERVAL) }
    }
}

/// Takes up changed files until the network is dropped.
async fn watch(files: Arc<TlsFiles>, current: std::sync::Weak<RwLock<Arc<Credentials>>>) {
    let stamp = || {
        let paths = [Some(&files.cert), Some(&files.key), Some(&files.ca), files.revocations.as_ref()];
        paths.map(|p| p.and_then(|p| std::fs::metadata(p).ok()).and_then(|m| Some((m.modified().ok()?, m.len()))))
    };
    let mut seen = stamp();
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let now = stamp();
        if now == seen {
            continue;
        }
        let Some(current) = current.upgrade() else { return };
        match Credentials::load(&files) {
            Ok(credentials) => {
                tracing::info!(identity = %credentials.identity, not_after_unix = credentials.not_after, "took up changed TLS files");
                *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(credentials);
                seen = now;
            }
            // Certificate and key may be seen between their replacements: it's tried again, the old pair serves on.
            Err(error) => tracing::warn!(%error, "changed TLS files are of no use yet; the old ones stay in force"),
        }
    }
}

/// A stream that ends with an error once its peer's certificate ends or is revoked.
struct Guarded {
    io: Box<dyn crate::Io>,
    network: TlsNetwork,
    peer: Arc<Peer>,
    check: Interval,
}

impl Guarded {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.check.poll_tick(cx).is_ready() {
            if let Some(objection) = self.network.current().objection(&self.peer) {
                tracing::warn!(peer = %self.peer.identity, objection, "a connection was ended");
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{}: {objection}", self.peer.identity)));
            }
        }
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn leaf_of<'a>(certificates: Option<&'a [CertificateDer<'static>]>) -> Result<&'a CertificateDer<'static>, String> {
    certificates.and_then(<[_]>::first).ok_or_else(|| "the peer showed no certificate".to_owned())
}

fn protocol_of(alpn: Option<&[u8]>) -> Result<Protocol, String> {
    let found = [Protocol::Stream, Protocol::Grpc].into_iter().find(|p| alpn == Some(p.alpn()));
    found.ok_or_else(|| "the peer speaks neither mooseng/1 nor h2 (ALPN)".to_owned())
}

#[async_trait]
impl Network for TlsNetwork {
    async fn connect(&self, address: &str, protocol: Protocol, role: Role) -> Result<Connection, ConnectError> {
        let refused = |reason: String| ConnectError::Refused { address: address.to_owned(), reason };
        let credentials = self.current();
        let connecting = async {
            let tcp = TcpStream::connect(address).await.map_err(|e| ConnectError::Unreachable {
                address: address.to_owned(),
                reason: e.to_string(),
            })?;
            let _ = tcp.set_nodelay(true);
            let mut config = (*credentials.client).clone();
            config.alpn_protocols = vec![protocol.alpn().to_vec()];
            // The name is never checked: the SPIFFE id is.
            let name = ServerName::try_from("mooseng.invalid").map_err(|e| refused(e.to_string()))?;
            let io = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| refused(e.to_string()))?;
            let session = io.get_ref().1;
            let (peer, _) = leaf_of(session.peer_certificates()).and_then(|leaf| describe(leaf)).map_err(refused)?;
            if peer.identity.role != role {
                return Err(refused(format!("a {role} was expected there, but the certificate says {}", peer.identity)));
            }
            let ends = peer.not_after_unix.min(credentials.not_after);
            let left = Duration::from_secs(u64::try_from(ends - unix_now()).unwrap_or(0));
            let peer = Arc::new(peer);
            Ok(Connection {
                io: Box::new(self.guard(io, peer.clone())),
                peer,
                protocol,
                // Well before an end that would cut calls off; by then renewed leaves are there (half-life).
                retire_at: Some(Instant::now() + left.mul_f64(0.75)),
            })
        };
        let late = |_| ConnectError::Timeout { address: address.to_owned(), seconds: CONNECT_TIMEOUT.as_secs() };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)?
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(address).await?;
        Ok(Box::new(TlsListener { listener, network: self.clone() }))
    }

    fn identity(&self) -> Identity {
        self.current().identity.clone()
    }
}

struct TlsListener {
    listener: TcpListener,
    network: TlsNetwork,
}

#[async_trait]
impl Listener for TlsListener {
    fn local_address(&self) -> String {
        self.listener.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string())
    }
    async fn accept(&mut self) -> io::Result<Box<dyn Handshake>> {
        let (tcp, from) = self.listener.accept().await?;
        let _ = tcp.set_nodelay(true);
        Ok(Box::new(TlsHandshake { tcp, from: from.to_string(), network: self.network.clone() }))
    }
}

struct TlsHandshake {
    tcp: TcpStream,
    from: String,
    network: TlsNetwork,
}

#[async_trait]
impl Handshake for TlsHandshake {
    fn remote_address(&self) -> String {
        self.from.clone()
    }
    async fn finish(self: Box<Self>) -> Result<Connection, HandshakeError> {
        let failed = |reason: String| HandshakeError { address: self.from.clone(), reason };
        let credentials = self.network.current();
        let io = TlsAcceptor::from(credentials.server.clone()).accept(self.tcp).await.map_err(|e| failed(e.to_string()))?;
        let session = io.get_ref().1;
        let protocol = protocol_of(session.alpn_protocol()).map_err(failed)?;
        let (peer, _) = leaf_of(session.peer_certificates()).and_then(|leaf| describe(leaf)).map_err(failed)?;
        let peer = Arc::new(peer);
        Ok(Connection { io: Box::new(self.network.guard(io, peer.clone())), peer, protocol, retire_at: None })
    }
}
