//! gRPC on the port that also takes framed streams.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mooseng_transport::grpc::registry_client::RegistryClient;
use mooseng_transport::grpc::registry_server::{Registry, RegistryServer};
use mooseng_transport::{
    Answer, ConnectError, Connection, Incoming, Limits, Listener, Network, Peer, PlainNetwork, Protocol,
    Service, Services, TRACE, call_error, grpc_channel, grpc_request, peer_of, serve, trace,
};
use mooseng_wire::admin::{HeartbeatReply, HeartbeatRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::{Identity, Role};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

fn identity(role: Role) -> Identity {
    Identity { cluster: "test".into(), region: "here".into(), role, name: "one".into() }
}

struct NoFrames;
#[async_trait]
impl Service for NoFrames {
    async fn call(&self, _: Incoming) -> Result<Answer, CallError> {
        Err(call_error(ErrorCode::NotBuilt, "not here"))
    }
}

/// Hands back the caller's identity and trace; a large `incarnation` is answered late.
struct Mirror;
#[tonic::async_trait]
impl Registry for Mirror {
    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let peer = peer_of(&request)?;
        let pause = request.get_ref().incarnation;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let mut reply = Response::new(HeartbeatReply::default());
        let words = [
            ("peer", peer.identity.to_string()),
            ("trace", trace::to_header(&trace::current()).unwrap_or_default()),
        ];
        for (name, word) in words {
            reply.metadata_mut().insert(name, word.parse().map_err(|_| Status::internal("not ASCII"))?);
        }
        Ok(reply)
    }
}

/// Plain connections that are due for retirement after a while.
struct Aging(PlainNetwork);
struct AgingListener(Box<dyn Listener>);
struct AgingHandshake(Box<dyn mooseng_transport::Handshake>);

#[async_trait]
impl Network for Aging {
    async fn connect(
        &self,
        address: &str,
        protocol: Protocol,
        role: Role,
    ) -> Result<Connection, ConnectError> {
        self.0.connect(address, protocol, role).await
    }
    async fn listen(&self, address: &str) -> std::io::Result<Box<dyn Listener>> {
        Ok(Box::new(AgingListener(self.0.listen(address).await?)))
    }
    fn identity(&self) -> Identity {
        self.0.identity()
    }
}
#[async_trait]
impl Listener for AgingListener {
    fn local_address(&self) -> String {
        self.0.local_address()
    }
    async fn accept(&mut self) -> std::io::Result<Box<dyn mooseng_transport::Handshake>> {
        Ok(Box::new(AgingHandshake(self.0.accept().await?)))
    }
}
#[async_trait]
impl mooseng_transport::Handshake for AgingHandshake {
    fn remote_address(&self) -> String {
        self.0.remote_address()
    }
    async fn finish(self: Box<Self>) -> Result<Connection, mooseng_transport::HandshakeError> {
        let mut connection = self.0.finish().await?;
        connection.retire_at = Some(tokio::time::Instant::now() + Duration::from_millis(200));
        Ok(connection)
    }
}

async fn start(
    network: impl Network,
    allow: fn(&Peer, Protocol) -> Result<(), String>,
) -> RegistryClient<tonic::transport::Channel> {
    let listener = network.listen("127.0.0.1:0").await.unwrap();
    let address = listener.local_address();
    let routes = tonic::service::Routes::new(RegistryServer::new(Mirror));
    let services = Services { stream: Arc::new(NoFrames), grpc: Some(routes), allow };
    tokio::spawn(serve(listener, services, Limits::default(), CancellationToken::new()));
    let ours = Arc::new(PlainNetwork::new(identity(Role::Chunkserver)));
    RegistryClient::new(grpc_channel(ours, &address, Role::Master).await)
}

fn after(pause_ms: u64) -> HeartbeatRequest {
    HeartbeatRequest { incarnation: pause_ms, ..Default::default() }
}

const WAIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn identity_deadline_and_trace_travel() {
    let mut client = start(PlainNetwork::new(identity(Role::Master)), |_, _| Ok(())).await;
    let context = trace::fresh();
    let reply = TRACE
        .scope(context.clone(), async { client.heartbeat(grpc_request(after(0), WAIT)).await })
        .await
        .unwrap();
    assert_eq!(reply.metadata().get("peer").unwrap(), "spiffe://test/here/chunkserver/one");
    assert_eq!(reply.metadata().get("trace").unwrap(), trace::to_header(&context).unwrap().as_str());
    let late =
        client.heartbeat(grpc_request(after(3_600_000), Duration::from_millis(200))).await.unwrap_err();
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late}");
    client.heartbeat(grpc_request(after(0), WAIT)).await.unwrap();
}

#[tokio::test]
async fn who_may_not_connect_is_told_why() {
    let refuse = |peer: &Peer, _| Err(format!("a {} has no business here", peer.identity.role));
    let mut client = start(PlainNetwork::new(identity(Role::Master)), refuse).await;
    let status = client.heartbeat(grpc_request(after(0), WAIT)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "a chunkserver has no business here");
}

#[tokio::test]
async fn a_retired_connection_costs_no_request() {
    let mut client = start(Aging(PlainNetwork::new(identity(Role::Master))), |_, _| Ok(())).await;
    // Ten lives of a connection, with a request in flight at each end.
    for _ in 0..20 {
        client.heartbeat(grpc_request(after(100), WAIT)).await.unwrap();
    }
}
