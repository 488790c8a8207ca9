//! Mutual TLS 1.3: every peer shows a certificate of the cluster's root whose SPIFFE id says what it is.
//!
//! Names in certificates aren't host names: the peer's role, cluster and region come from its SPIFFE id, and are checked
//! after the chain was. Files are read again when they change, so that renewed leaves are taken up without a restart;
//! a connection ends when its peer's certificate ends or is revoked, by the file's list or by the one that the cluster has agreed on. TLS sessions are never resumed: resumption would skip these checks.

mod agreed;
mod credentials;
mod guard;
mod near;

use std::io;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use mooseng_wire::admin::CredentialReport;
use mooseng_wire::revocations::Agreed;
use mooseng_wire::{Identity, Role};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::ended::Ended;
use crate::network::{
    ConnectError, Connection, Handshake, HandshakeError, Io, Listener, Network, Peer, Protocol,
};
use crate::refusal;
use agreed::InForce;
use credentials::{Credentials, describe, unix_now};
use guard::Guarded;
use near::Near;

pub use credentials::{TlsFiles, TlsSetupError, root_sha256};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often files are looked at, and connections' peers checked again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The part of the shorter certificate's life left after which a connection is retired: well before an end that would cut calls off,
/// and late enough that renewed leaves are there (they come at half of a life).
const RETIRE_AFTER: f64 = 0.75;
/// Certificate and key are two files: a moment when they don't fit each other is waited over.
const LOAD_TRIES: u32 = 10;
const LOAD_PAUSE: Duration = Duration::from_millis(50);
/// Looks at files of no use in a row before somebody must be told.
const BAD_LOOKS_MAX: u32 = 3;

/// The network under mutual TLS. Clones share it.
#[derive(Clone)]
pub struct TlsNetwork {
    current: Arc<RwLock<Arc<Credentials>>>,
    agreed: InForce,
    near: Arc<Near>,
}

impl TlsNetwork {
    /// Loads the files, and again whenever they change. A renewed set that is of no use is logged and the old one kept.
    /// Must be called within a tokio runtime.
    pub fn load(files: TlsFiles) -> Result<Self, TlsSetupError> {
        // Looked at before they are read: a change in between is seen as one.
        let mut seen = stamp(&files);
        let agreed = InForce::default();
        let mut credentials = Credentials::load(&files, &agreed);
        for _ in 1..LOAD_TRIES {
            if !matches!(credentials, Err(TlsSetupError::Content { .. })) {
                break;
            }
            std::thread::sleep(LOAD_PAUSE);
            seen = stamp(&files);
            credentials = Credentials::load(&files, &agreed);
        }
        let credentials = credentials?;
        let now = unix_now();
        if now < credentials.not_before || credentials.not_after < now {
            tracing::warn!(cert = %files.cert.display(), "our own certificate isn't valid now: peers will refuse us until it is renewed");
        }
        let current = Arc::new(RwLock::new(Arc::new(credentials)));
        tokio::spawn(watch(files, seen, Arc::downgrade(&current), agreed.clone()));
        let network = Self { current, agreed, near: Arc::default() };
        Ok(network)
    }

    fn current(&self) -> Arc<Credentials> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn guard(&self, io: impl Io, peer: Arc<Peer>) -> Guarded {
        Guarded::new(io, self.clone(), peer)
    }

    /// Shows certificates to the peer at the other end of `io`, and has it show its own.
    async fn greet(
        &self,
        io: Box<dyn Io>,
        address: &str,
        protocol: Protocol,
        role: Role,
    ) -> Result<Connection, ConnectError> {
        let refused = |reason: String| ConnectError::Refused { address: address.to_owned(), reason };
        let credentials = self.current();
        let mut config = (*credentials.client).clone();
        config.alpn_protocols = vec![protocol.alpn().to_vec()];
        // The name is never checked: the SPIFFE id is.
        let name = ServerName::try_from("mooseng.invalid").map_err(|e| refused(e.to_string()))?;
        let io = TlsConnector::from(Arc::new(config)).connect(name, io).await;
        let io = io.map_err(|e| Ended::of_io(&e).refused(address))?;
        let session = io.get_ref().1;
        let peer = peer_in(session.peer_certificates()).map_err(refused)?;
        protocol_of(session.alpn_protocol()).map_err(refused)?;
        if peer.identity.role != role {
            return Err(refused(format!(
                "a {role} was expected there, but the certificate says {}",
                peer.identity
            )));
        }
        let retire_at = retirement(&peer, &credentials);
        let peer = Arc::new(peer);
        Ok(Connection { io: Box::new(self.guard(io, peer.clone())), peer, protocol, retire_at })
    }

    /// A connection past TCP, if its peer is on this host; none where that leads nowhere.
    async fn greet_near(&self, address: &str, protocol: Protocol, role: Role) -> Option<Connection> {
        let socket = tokio::net::lookup_host(address).await.ok()?.next()?;
        let io = self.near.connect(socket).await?;
        let greeted =
            timeout(near::HANDSHAKE_WITHIN, self.greet(Box::new(io), address, protocol, role)).await;
        match greeted {
            Ok(Ok(connection)) => Some(connection),
            // Over TCP it comes to the same, if it is the same process, and is told to whoever asked.
            Ok(Err(_)) | Err(_) => {
                self.near.avoid(socket);
                None
            }
        }
    }
}

type Stamp = [Option<(SystemTime, u64)>; 4];

/// Tells whether files changed.
fn stamp(files: &TlsFiles) -> Stamp {
    let paths = [Some(&files.cert), Some(&files.key), Some(&files.ca), files.revocations.as_ref()];
    paths.map(|path| {
        let found = std::fs::metadata(path?).ok()?;
        Some((found.modified().ok()?, found.len()))
    })
}

/// Takes up changed files until the network is dropped.
async fn watch(files: TlsFiles, mut seen: Stamp, current: Weak<RwLock<Arc<Credentials>>>, agreed: InForce) {
    let mut bad_looks = 0;
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let Some(current) = current.upgrade() else { return };
        let now = stamp(&files);
        if now == seen {
            continue;
        }
        match Credentials::load(&files, &agreed) {
            Ok(credentials) => {
                tracing::info!(identity = %credentials.identity, not_after_unix = credentials.not_after, "took up changed TLS files");
                *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(credentials);
                (seen, bad_looks) = (now, 0);
            }
            // Certificate and key may be seen between their replacements: it's tried again, the old pair serves on.
            Err(reason) => {
                bad_looks += 1;
                if bad_looks == BAD_LOOKS_MAX {
                    tracing::warn!(%reason, "changed TLS files are of no use; the old ones stay in force");
                }
            }
        }
    }
}

/// When to move to another connection: before a certificate of either side ends.
fn retirement(peer: &Peer, ours: &Credentials) -> Option<Instant> {
    let left = u64::try_from(peer.not_after_unix.min(ours.not_after) - unix_now()).unwrap_or(0);
    Instant::now().checked_add(Duration::from_secs(left).mul_f64(RETIRE_AFTER))
}

fn peer_in(certificates: Option<&[CertificateDer<'static>]>) -> Result<Peer, String> {
    let leaf =
        certificates.and_then(<[_]>::first).ok_or_else(|| "the peer showed no certificate".to_owned())?;
    describe(leaf).map(|(peer, _)| peer)
}

fn protocol_of(alpn: Option<&[u8]>) -> Result<Protocol, String> {
    let found = [Protocol::Stream, Protocol::Grpc].into_iter().find(|p| alpn == Some(p.alpn()));
    found.ok_or_else(|| "the peer speaks neither mooseng/1 nor h2 (ALPN)".to_owned())
}

#[async_trait]
impl Network for TlsNetwork {
    async fn connect(
        &self,
        address: &str,
        protocol: Protocol,
        role: Role,
    ) -> Result<Connection, ConnectError> {
        let connecting = async {
            if let Some(connection) = self.greet_near(address, protocol, role).await {
                return Ok(connection);
            }
            let tcp = TcpStream::connect(address).await.map_err(|e| ConnectError::Unreachable {
                address: address.to_owned(),
                reason: e.to_string(),
            })?;
            let _ = tcp.set_nodelay(true);
            self.greet(Box::new(tcp), address, protocol, role).await
        };
        let late =
            |_| ConnectError::Timeout { address: address.to_owned(), seconds: CONNECT_TIMEOUT.as_secs() };
        timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)?
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(address).await?;
        let near = listener.local_addr().ok().and_then(near::listen);
        Ok(Box::new(TlsListener { listener, near, network: self.clone() }))
    }

    fn identity(&self) -> Identity {
        self.current().identity.clone()
    }

    fn credentials(&self) -> Option<CredentialReport> {
        Some(self.current().report())
    }

    fn refuse(&self, agreed: Agreed) -> bool {
        let (version, revoked) = (agreed.version, agreed.revoked.len());
        let taken = self.agreed.take(agreed);
        if taken {
            tracing::info!(version, revoked, "took up whom the cluster refuses");
        }
        taken
    }

    fn refusing(&self) -> Option<u64> {
        Some(self.agreed.now().version)
    }
}

struct TlsListener {
    listener: TcpListener,
    /// For processes on this host.
    near: Option<UnixListener>,
    network: TlsNetwork,
}

#[async_trait]
impl Listener for TlsListener {
    fn local_address(&self) -> String {
        self.listener.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string())
    }
    async fn accept(&mut self) -> io::Result<Box<dyn Handshake>> {
        let near = async {
            match &self.near {
                Some(near) => near.accept().await,
                None => std::future::pending().await,
            }
        };
        let (io, from): (Box<dyn Io>, String) = tokio::select! {
            accepted = self.listener.accept() => {
                let (tcp, from) = accepted?;
                let _ = tcp.set_nodelay(true);
                (Box::new(tcp), from.to_string())
            }
            accepted = near => (Box::new(accepted?.0), "this host".to_owned()),
        };
        Ok(Box::new(TlsHandshake { io, from, network: self.network.clone() }))
    }
}

struct TlsHandshake {
    io: Box<dyn Io>,
    from: String,
    network: TlsNetwork,
}

#[async_trait]
impl Handshake for TlsHandshake {
    fn remote_address(&self) -> String {
        self.from.clone()
    }
    async fn finish(self: Box<Self>) -> Result<Connection, HandshakeError> {
        let failed = |(code, sentence): (&str, String)| HandshakeError::new(&self.from, code, &sentence);
        let credentials = self.network.current();
        let io = TlsAcceptor::from(credentials.server.clone()).accept(self.io).await;
        let io = io.map_err(|e| failed(refusal::of_io(&e)))?;
        let session = io.get_ref().1;
        let protocol = protocol_of(session.alpn_protocol()).map_err(|why| failed((refusal::VERSION, why)))?;
        let peer =
            peer_in(session.peer_certificates()).map_err(|why| failed((refusal::BAD_CERTIFICATE, why)))?;
        let retire_at = retirement(&peer, &credentials);
        let peer = Arc::new(peer);
        Ok(Connection { io: Box::new(self.network.guard(io, peer.clone())), peer, protocol, retire_at })
    }
}
