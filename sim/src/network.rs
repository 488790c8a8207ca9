//! The network port over turmoil's simulated sockets. A greeting carries the SPIFFE ids that certificates carry in the daemons: TLS isn't
//! simulated, who may do what is.
//!
//! A host that stalls ([`Gate`]) neither takes a byte from its sockets nor lets one out until the stall is over; answers that were ready, their
//! leases checked, leave then.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use mooseng_transport::plain::{accept_over, connect_over};
use mooseng_transport::{ConnectError, Connection, Handshake, HandshakeError, Listener, Network, Protocol};
use mooseng_wire::{Identity, Role};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use turmoil::net::{TcpListener, TcpStream};

use crate::notices::Noticing;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Until when a host stalls, in simulated nanoseconds. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<AtomicU64>);

impl Gate {
    /// Closes until then.
    pub fn close(&self, until: Duration) {
        self.0.store(until.as_nanos() as u64, Ordering::Relaxed);
    }
    /// Opens.
    pub fn open(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
    /// How long it stays closed; asked on its host.
    fn left(&self) -> Option<Duration> {
        let until = Duration::from_nanos(self.0.load(Ordering::Relaxed));
        until.checked_sub(turmoil::sim_elapsed()?).filter(|left| !left.is_zero())
    }
}

/// A socket behind a gate.
struct Gated {
    io: TcpStream,
    gate: Gate,
    /// One for each direction: each wakes its own task.
    pauses: [Option<Pin<Box<Sleep>>>; 2],
}

impl Gated {
    fn new(io: TcpStream, gate: Gate) -> Self {
        Self { io, gate, pauses: [None, None] }
    }

    fn poll_open(&mut self, direction: usize, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(left) = self.gate.left() {
            // Looked at again now and then: a stall may end early.
            let left = left.min(Duration::from_millis(20));
            let pause = self.pauses[direction].get_or_insert_with(|| Box::pin(tokio::time::sleep(left)));
            ready!(pause.as_mut().poll(cx));
            self.pauses[direction] = None;
        }
        self.pauses[direction] = None;
        Poll::Ready(())
    }
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(0, cx));
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(1, cx));
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A host's view of the simulated network.
pub struct SimNetwork {
    identity: Identity,
    gate: Gate,
}

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
            while let Some(left) = self.gate.left() {
                tokio::time::sleep(left.min(Duration::from_millis(20))).await;
            }
            let io = TcpStream::connect(address).await.map_err(unreachable)?;
            let io = Gated::new(io, self.gate.clone());
            let made = connect_over(io, address, &self.identity, protocol, role).await?;
            if self.identity.role != Role::Client || protocol != Protocol::Stream {
                return Ok(made);
            }
            Ok(Connection { io: Box::new(Noticing::new(made.io)), ..made })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| late())?
    }

    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let port = address.rsplit(':').next().unwrap_or("0");
        let listener = TcpListener::bind(format!("0.0.0.0:{port}")).await?;
        let (identity, gate) = (self.identity.clone(), self.gate.clone());
        Ok(Box::new(SimListener { listener, identity, gate, address: address.to_owned() }))
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }
}

struct SimListener {
    listener: TcpListener,
    identity: Identity,
    gate: Gate,
    address: String,
}

#[async_trait]
impl Listener for SimListener {
    fn local_address(&self) -> String {
        self.address.clone()
    }
    async fn accept(&mut self) -> io::Result<Box<dyn Handshake>> {
        let (io, from) = self.listener.accept().await?;
        let io = Gated::new(io, self.gate.clone());
        Ok(Box::new(SimHandshake { io, from: from.to_string(), identity: self.identity.clone() }))
    }
}

struct SimHandshake {
    io: Gated,
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
pub fn network(region: &str, role: Role, name: &str, gate: &Gate) -> Arc<dyn Network> {
    let identity =
        Identity { cluster: crate::hosts::CLUSTER.into(), region: region.into(), role, name: name.into() };
    Arc::new(SimNetwork { identity, gate: gate.clone() })
}
