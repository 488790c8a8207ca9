//! Transport: authenticated connections, the framed multiplexed stream over them, and gRPC on the same port.
//!
//! ```text
//!  Link (calls) --frames--> Connection <--frames-- serve (Service)       one port per daemon,
//!  grpc_channel --HTTP/2--> Connection <--HTTP/2-- serve (tonic routes)  told apart by ALPN
//!                               |
//!                      Network: TlsNetwork | PlainNetwork (tests) | the simulation's
//! ```
//! This crate knows no business logic: who may make which call is decided by services, by [`Incoming::peer`].

mod blocking;
mod link;
pub mod observe;
mod network;
mod outbox;
pub mod plain;
mod rpc;
mod server;
mod tls;

use bytes::Bytes;
use mooseng_wire::call::{CallError, ErrorCode};

pub use blocking::Blocking;
pub use link::{CallFailure, Link, LinkOptions};
pub use network::{ConnectError, Connection, Handshake, HandshakeError, Io, Listener, Network, Peer, Protocol};
pub use plain::PlainNetwork;
pub use rpc::{grpc_channel, peer_of};
pub use tls::{TlsFiles, TlsNetwork, TlsSetupError};
pub use server::{Answer, ConnectionClosed, ConnectionHandle, Incoming, Limits, Service, Services, serve};

/// Generated gRPC services over `mooseng_wire::admin`.
#[allow(missing_docs, reason = "generated: the .proto file is the documentation")]
pub mod grpc {
    tonic::include_proto!("mooseng.admin.v1");
}

/// A call's error.
pub fn call_error(code: ErrorCode, message: impl Into<String>) -> CallError {
    CallError { code: code as i32, message: message.into(), leader: String::new(), detail: Bytes::new() }
}

tokio::task_local! {
    /// The W3C trace context of the call that this task works on; it travels with every call made from it.
    pub static TRACE: Bytes;
}

/// The trace context that calls made here carry.
pub(crate) fn trace_context() -> Bytes {
    TRACE.try_with(Bytes::clone).unwrap_or_default()
}
