//! The endpoint of metrics and health.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::observe::Metrics;

/// Connections to the endpoint of metrics and health at once.
const HTTP_CONNECTIONS_MAX: usize = 32;
/// How long each lasts at most.
const HTTP_LASTS: Duration = Duration::from_secs(5);

/// Tells whether the daemon is ready, with the reason if not.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Serves /metrics, /healthz and /readyz on a loopback address, until `shutdown`. Returns the address once it listens.
pub async fn serve_http(
    address: &str,
    metrics: Metrics,
    ready: Ready,
    shutdown: CancellationToken,
) -> io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    if !local.ip().is_loopback() {
        return Err(io::Error::other(format!(
            "http_listen = {address:?} isn't a loopback address: metrics and health are spoken in clear and stay on this machine"
        )));
    }
    let content_type = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { (content_type, metrics.encode()) }))
        .route(
            "/readyz",
            get(move || async move {
                match ready() {
                    Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
                    Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
                }
            }),
        );
    tokio::spawn(async move {
        if let Err(error) = axum::serve(Bounded::new(listener), router)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await
        {
            tracing::error!(%error, "the metrics and health endpoint ended");
        }
    });
    Ok(local)
}

/// A listener with few connections at once, none of which lasts: descriptors are for the daemon's peers.
struct Bounded {
    listener: tokio::net::TcpListener,
    slots: Arc<Semaphore>,
}

impl Bounded {
    fn new(listener: tokio::net::TcpListener) -> Self {
        Self { listener, slots: Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX)) }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Brief;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Brief, SocketAddr) {
        loop {
            let (io, address) = axum::serve::Listener::accept(&mut self.listener).await;
            if let Ok(slot) = self.slots.clone().try_acquire_owned() {
                return (Brief { io, ends: Box::pin(tokio::time::sleep(HTTP_LASTS)), _slot: slot }, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends after a while, whatever its peer does.
struct Brief {
    io: tokio::net::TcpStream,
    ends: Pin<Box<tokio::time::Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl Brief {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ends.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Brief {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Brief {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn connections_that_say_nothing_leave_room_after_a_while() {
        let (ready, shutdown): (Ready, _) = (Arc::new(|| Ok(())), CancellationToken::new());
        let address = serve_http("127.0.0.1:0", Metrics::default(), ready, shutdown.clone()).await.unwrap();
        let healthy = async || {
            let mut io = tokio::net::TcpStream::connect(address).await.unwrap();
            let _ = io.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            let mut answer = String::new();
            let _ = io.read_to_string(&mut answer).await;
            answer.contains("ok")
        };
        assert!(healthy().await);
        let mut silent = Vec::new();
        for _ in 0..2 * HTTP_CONNECTIONS_MAX {
            silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        assert!(!healthy().await, "it takes no more than so many");
        let last = silent.pop().unwrap();
        assert_eq!({ last }.read(&mut [0]).await.unwrap_or(0), 0, "turned away");
        while !healthy().await {
            tokio::time::sleep(HTTP_LASTS / 20).await;
        }
        drop(silent);
        shutdown.cancel();
    }
}
