//! gRPC over the network port: tonic serves connections that our acceptor authenticated, and calls through our connector.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mooseng_wire::Role;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server, Uri};

use crate::network::{Connection, Io, Network, Peer, Protocol};

/// Connections on their way to tonic.
pub(crate) type Queue = mpsc::Sender<io::Result<Served>>;

/// A connection as tonic serves it; each request carries an `Arc<Peer>` among its extensions.
pub(crate) struct Served {
    io: Box<dyn Io>,
    peer: Arc<Peer>,
}

impl Connected for Served {
    type ConnectInfo = Arc<Peer>;
    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

impl AsyncRead for Served {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Served {
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

/// Serves connections that are handed over, until `shutdown`.
pub(crate) fn serve(routes: tonic::service::Routes, shutdown: CancellationToken) -> Queue {
    let (queue, connections) = mpsc::channel(64);
    let server = Server::builder()
        .timeout(Duration::from_secs(60))
        .concurrency_limit_per_connection(64)
        .max_frame_size(1 << 20)
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), shutdown.cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the gRPC server ended");
        }
    });
    queue
}

pub(crate) async fn hand_over(queue: &Queue, connection: Connection) {
    let _ = queue.send(Ok(Served { io: connection.io, peer: connection.peer })).await;
}

/// Who made a gRPC request.
pub fn peer_of<T>(request: &tonic::Request<T>) -> Result<Arc<Peer>, tonic::Status> {
    let unknown = || tonic::Status::unauthenticated("the peer of this request isn't known");
    request.extensions().get::<Arc<Peer>>().cloned().ok_or_else(unknown)
}

/// A gRPC channel to a peer of `role`, connected when first used and again when it broke.
pub async fn grpc_channel(network: Arc<dyn Network>, address: &str, role: Role) -> Channel {
    let address = address.to_owned();
    // The authority in the URI is only a label: names and keys are checked by the network port.
    let endpoint = Endpoint::from_static("http://mooseng.invalid")
        .connect_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(10))
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3));
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (network, address) = (network.clone(), address.clone());
        async move {
            let connection = network.connect(&address, Protocol::Grpc, role).await.map_err(io::Error::other)?;
            io::Result::Ok(TokioIo::new(connection.io))
        }
    }))
}
