//! Unencrypted connections on loopback, for tests in one process. Daemons never use them: they have no setting for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mooseng_wire::admin::CredentialReport;
use mooseng_wire::level::Levels;
use mooseng_wire::{Identity, Role};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::network::{
    ConnectError, Connection, Handshake, HandshakeError, Listener, Network, Peer, Protocol,
};

const GREETING_BYTES_MAX: usize = 512;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Plain TCP; the first line of each connection says the protocol and who connects, the answer who accepted.
#[derive(Clone)]
pub struct PlainNetwork {
    identity: Identity,
    credentials: Option<CredentialReport>,
    levels: Levels,
}

impl PlainNetwork {
    /// The network as that identity sees it.
    pub fn new(identity: Identity) -> Self {
        Self { identity, credentials: None, levels: Levels::OURS }
    }

    /// The same, with something to tell of a certificate and a list that it doesn't have.
    pub fn with_credentials(self, credentials: CredentialReport) -> Self {
        Self { credentials: Some(credentials), ..self }
    }

    /// The same, of a release that supports those feature levels.
    pub fn with_levels(self, levels: Levels) -> Self {
        Self { levels, ..self }
    }
}

/// Whoever greets is believed: for networks without certificates (tests, the simulation).
pub fn believed(identity: Identity) -> Arc<Peer> {
    let serial = identity.to_string();
    Arc::new(Peer::new(identity, serial, i64::MAX))
}

/// Writes a greeting.
pub async fn greet(
    io: &mut (impl AsyncWrite + Unpin),
    protocol: Protocol,
    identity: &Identity,
) -> io::Result<()> {
    let line = format!("{} {identity}\n", String::from_utf8_lossy(protocol.alpn()));
    io.write_all(line.as_bytes()).await?;
    io.flush().await
}

/// Reads a greeting.
pub async fn read_greeting(io: &mut (impl AsyncRead + Unpin)) -> io::Result<(Protocol, Identity)> {
    let mut line = Vec::new();
    loop {
        match io.read_u8().await? {
            b'\n' => break,
            byte if line.len() < GREETING_BYTES_MAX => line.push(byte),
            _ => return Err(io::Error::other("the greeting is too long")),
        }
    }
    let line = String::from_utf8(line).map_err(io::Error::other)?;
    let (word, uri) = line.split_once(' ').ok_or_else(|| io::Error::other("the greeting is malformed"))?;
    let protocol = [Protocol::Stream, Protocol::Grpc].into_iter().find(|p| p.alpn() == word.as_bytes());
    let protocol = protocol.ok_or_else(|| io::Error::other("the greeting names an unknown protocol"))?;
    Ok((protocol, Identity::parse(uri).map_err(io::Error::other)?))
}

/// Finishes the connecting side of a greeting: the peer must have `role` in the same cluster.
pub async fn connect_over(
    mut io: impl crate::Io,
    address: &str,
    ours: &Identity,
    protocol: Protocol,
    role: Role,
) -> Result<Connection, ConnectError> {
    let refused = |reason: String| ConnectError::Refused { address: address.to_owned(), reason };
    greet(&mut io, protocol, ours).await.map_err(|e| refused(e.to_string()))?;
    let (_, theirs) = read_greeting(&mut io).await.map_err(|e| refused(e.to_string()))?;
    if theirs.role != role || theirs.cluster != ours.cluster {
        return Err(refused(format!(
            "a {role} of cluster {} was expected there, but {theirs} answered",
            ours.cluster
        )));
    }
    Ok(Connection { io: Box::new(io), peer: believed(theirs), protocol, retire_at: None })
}

/// Finishes the accepting side of a greeting.
pub async fn accept_over(
    mut io: impl crate::Io,
    address: &str,
    ours: &Identity,
) -> Result<Connection, HandshakeError> {
    let failed = |reason: String| HandshakeError { address: address.to_owned(), reason };
    let (protocol, theirs) = read_greeting(&mut io).await.map_err(|e| failed(e.to_string()))?;
    if theirs.cluster != ours.cluster {
        return Err(failed(format!("{theirs} belongs to another cluster than {ours}")));
    }
    greet(&mut io, protocol, ours).await.map_err(|e| failed(e.to_string()))?;
    Ok(Connection { io: Box::new(io), peer: believed(theirs), protocol, retire_at: None })
}

#[async_trait]
impl Network for PlainNetwork {
    async fn connect(
        &self,
        address: &str,
        protocol: Protocol,
        role: Role,
    ) -> Result<Connection, ConnectError> {
        let unreachable =
            |e: io::Error| ConnectError::Unreachable { address: address.to_owned(), reason: e.to_string() };
        let late =
            || ConnectError::Timeout { address: address.to_owned(), seconds: CONNECT_TIMEOUT.as_secs() };
        let connecting = async {
            let io = TcpStream::connect(address).await.map_err(unreachable)?;
            let _ = io.set_nodelay(true);
            connect_over(io, address, &self.identity, protocol, role).await
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| late())?
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(address).await?;
        Ok(Box::new(PlainListener { listener, identity: self.identity.clone() }))
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn levels(&self) -> Levels {
        self.levels
    }

    fn credentials(&self) -> Option<CredentialReport> {
        self.credentials.clone()
    }
}

struct PlainListener {
    listener: TcpListener,
    identity: Identity,
}

#[async_trait]
impl Listener for PlainListener {
    fn local_address(&self) -> String {
        self.listener.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string())
    }
    async fn accept(&mut self) -> io::Result<Box<dyn Handshake>> {
        let (io, from) = self.listener.accept().await?;
        let _ = io.set_nodelay(true);
        Ok(Box::new(PlainHandshake { io, from: from.to_string(), identity: self.identity.clone() }))
    }
}

struct PlainHandshake {
    io: TcpStream,
    from: String,
    identity: Identity,
}

#[async_trait]
impl Handshake for PlainHandshake {
    fn remote_address(&self) -> String {
        self.from.clone()
    }
    async fn finish(self: Box<Self>) -> Result<Connection, HandshakeError> {
        accept_over(self.io, &self.from, &self.identity).await
    }
}
