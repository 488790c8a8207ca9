//! Transport: authenticated connections, the framed multiplexed stream over them, and gRPC on the same port.
//!
//! ```text
//!  Link (calls) --frames--> Connection <--frames-- serve (Service)       one port per daemon,
//!  grpc_channel --HTTP/2--> Connection <--HTTP/2-- serve (tonic routes)  told apart by ALPN
//!                               |
//!                      Network: [wan] -> TlsNetwork | PlainNetwork (tests) | the simulation's
//! ```
//! This crate knows no business logic: who may make which call is decided by services, by [`Incoming::peer`].

mod answers;
mod blocking;
pub mod descriptors;
mod ended;
mod frames;
mod health;
mod inbound;
mod link;
mod live;
mod network;
pub mod observe;
mod outbox;
pub mod plain;
pub mod refusal;
mod refused;
mod rpc;
mod server;
mod shared;
mod stream;
mod tls;
pub mod trace;
pub mod wan;

use bytes::Bytes;
use mooseng_wire::call::{CallError, ErrorCode};

pub use blocking::{Blocking, Lane, daemon_runtime, run_daemon};
pub use link::{CallFailure, Link, LinkOptions};
pub use network::{
    ConnectError, Connection, Handshake, HandshakeError, Io, Listener, Network, Peer, Protocol,
};
pub use outbox::directly;
pub use plain::PlainNetwork;
pub use rpc::{grpc_channel, grpc_request, peer_of};
pub use server::{Answer, ConnectionClosed, ConnectionHandle, Incoming, Limits, Service, Services, serve};
pub use shared::{MemoryOffer, Room};
pub use tls::{TlsFiles, TlsNetwork, TlsSetupError, root_sha256};
pub use trace::TRACE;

/// Generated gRPC services over `mooseng_wire::admin`.
#[allow(missing_docs, reason = "generated: the .proto file is the documentation")]
pub mod grpc {
    tonic::include_proto!("mooseng.admin.v1");
}

/// A call's error.
pub fn call_error(code: ErrorCode, message: impl Into<String>) -> CallError {
    CallError { code: code as i32, message: message.into(), leader: String::new(), detail: Bytes::new() }
}
