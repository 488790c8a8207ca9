//! The network port over turmoil's simulated sockets. A greeting carries the SPIFFE ids that certificates carry in the daemons: TLS isn't
//! simulated, who may do what is.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mooseng_transport::plain::{accept_over, connect_over};
use mooseng_transport::{ConnectError, Connection, Handshake, HandshakeError, Listener, Network, Protocol};
use mooseng_wire::{Identity, Role};
use turmoil::net::{TcpListener, TcpStream};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A host's view of the simulated network.
pub struct SimNetwork(pub Identity);

#[async_trait]
impl Network for SimNetwork {
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
            connect_over(io, address, &self.0, protocol, role).await
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| late())?
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let port = address.rsplit(':').next().unwrap_or("0");
        let listener = TcpListener::bind(format!("0.0.0.0:{port}")).await?;
        Ok(Box::new(SimListener { listener, identity: self.0.clone(), address: address.to_owned() }))
    }

    fn identity(&self) -> Identity {
        self.0.clone()
    }
}

struct SimListener {
    listener: TcpListener,
    identity: Identity,
    address: String,
}

#[async_trait]
impl Listener for SimListener {
    fn local_address(&self) -> String {
        self.address.clone()
    }
    async fn accept(&mut self) -> io::Result<Box<dyn Handshake>> {
        let (io, from) = self.listener.accept().await?;
        Ok(Box::new(SimHandshake { io, from: from.to_string(), identity: self.identity.clone() }))
    }
}

struct SimHandshake {
    io: TcpStream,
    from: String,
    identity: Identity,
}

#[async_trait]
impl Handshake for SimHandshake {
    fn remote_address(&self) -> String {
        self.from.clone()
    }
    async fn finish(self: Box<Self>) -> Result<Connection, HandshakeError> {
        let Self { io, from, identity } = *self;
        // The stand-in for TLS's own deadline is the server's handshake timeout.
        accept_over(io, &from, &identity).await
    }
}

/// The network of a host.
pub fn network(role: Role, name: &str) -> Arc<dyn Network> {
    let identity = Identity { cluster: "sim".into(), region: "here".into(), role, name: name.into() };
    Arc::new(SimNetwork(identity))
}
