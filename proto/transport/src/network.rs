//! The network port: authenticated connections, whatever lies below.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use mooseng_wire::admin::CredentialReport;
use mooseng_wire::level::Levels;
use mooseng_wire::revocations::Agreed;
use mooseng_wire::{Identity, Role};
use tokio::io::{AsyncRead, AsyncWrite};

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Our frames.
    Stream,
    /// gRPC on HTTP/2.
    Grpc,
}

impl Protocol {
    /// The ALPN name.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Protocol::Stream => b"mooseng/1",
            Protocol::Grpc => b"h2",
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What its certificate says it is.
    pub identity: Identity,
    /// The same in one word, made once for a connection: sessions are compared by it with each request.
    pub uri: String,
    /// Its certificate's serial number in hexadecimal digits.
    pub serial: String,
    /// When its certificate ends, in seconds since the Unix epoch.
    pub not_after_unix: i64,
}

impl Peer {
    /// Who has that identity, by that certificate.
    pub fn new(identity: Identity, serial: String, not_after_unix: i64) -> Self {
        Self { uri: identity.to_string(), identity, serial, not_after_unix }
    }
}

/// A stream of bytes in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// An authenticated connection.
pub struct Connection {
    /// The bytes.
    pub io: Box<dyn Io>,
    /// Who is at the other end.
    pub peer: Arc<Peer>,
    /// What is spoken.
    pub protocol: Protocol,
    /// When to move to a new connection, because the certificate of one of both ends soon after; the old one drains.
    pub retire_at: Option<tokio::time::Instant>,
}

/// Why a connection couldn't be made. Nothing was sent on it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection to the address.
    #[error("can't connect to {address}: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// The other end refused us, or we refuse it.
    #[error("the connection to {address} was refused: {reason}")]
    Refused {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// The other end doesn't take our certificate, or its own is another cluster's: with these two there will never be a connection.
    #[error("the connection to {address} was refused: {reason}")]
    Certificate {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// Calls that were made before fill the lane.
    #[error("the call to {address} wasn't sent: too many calls in its lane wait for an answer")]
    Crowded {
        /// Where.
        address: String,
    },
    /// It took too long.
    #[error("the connection to {address} wasn't made within {seconds} s")]
    Timeout {
        /// Where.
        address: String,
        /// The limit.
        seconds: u64,
    },
}

/// Why an accepted connection came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("the peer at {address} was refused: {reason}")]
pub struct HandshakeError {
    /// Where it came from.
    pub address: String,
    /// Why, in words; a code may precede them (`PEER_EXPIRED: ...`).
    pub reason: String,
}

impl HandshakeError {
    /// With a code of [`crate::refusal`].
    pub fn new(address: &str, code: &str, sentence: &str) -> Self {
        Self { address: address.to_owned(), reason: format!("{code}: {sentence}") }
    }
    /// The code that precedes the reason.
    pub fn code(&self) -> &str {
        let is_code = |word: &str| word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        match self.reason.split_once(": ") {
            Some((word, _)) if is_code(word) => word,
            _ => crate::refusal::OTHER,
        }
    }
}

/// Makes and takes connections.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Connects to a peer that must have `role`.
    async fn connect(
        &self,
        address: &str,
        protocol: Protocol,
        role: Role,
    ) -> Result<Connection, ConnectError>;
    /// Listens.
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>>;
    /// Who we are.
    fn identity(&self) -> Identity;
    /// The feature levels that this daemon supports, as its hellos tell: those of this release, but in tests.
    fn levels(&self) -> Levels {
        Levels::OURS
    }
    /// Our certificate and revocation list, where there are any.
    fn credentials(&self) -> Option<CredentialReport> {
        None
    }
    /// Takes up whom the cluster has agreed to refuse, besides those whom the daemon's own list names: no new connections with them, and those that there
    /// are end. Answers whether it was newer than what is in force; nothing changes where it isn't. Networks without certificates refuse nobody.
    fn refuse(&self, _agreed: Agreed) -> bool {
        false
    }
    /// The version of what was taken up last, 0 for nothing yet; none of a network that takes up nothing.
    fn refusing(&self) -> Option<u64> {
        None
    }
}

/// Takes connections.
#[async_trait]
pub trait Listener: Send {
    /// The address it listens on.
    fn local_address(&self) -> String;
    /// The next one, not authenticated yet, so that a slow handshake holds nobody up.
    async fn accept(&mut self) -> io::Result<Box<dyn Handshake>>;
}

/// An accepted connection before its peer is known.
#[async_trait]
pub trait Handshake: Send {
    /// Where it comes from.
    fn remote_address(&self) -> String;
    /// Authenticates the peer.
    async fn finish(self: Box<Self>) -> Result<Connection, HandshakeError>;
}
