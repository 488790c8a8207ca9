//! What lies between TLS and whoever reads: the peer is checked again while its connection lives.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{CHECK_INTERVAL, TlsNetwork};
use crate::ended::Ended;
use crate::network::{Io, Peer};

/// A stream that ends with an error once its peer's certificate ends or is revoked.
pub(super) struct Guarded {
    io: Box<dyn Io>,
    network: TlsNetwork,
    peer: Arc<Peer>,
    check: Interval,
}

impl Guarded {
    pub(super) fn new(io: impl Io, network: TlsNetwork, peer: Arc<Peer>) -> Self {
        let mut check = interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { io: Box::new(io), network, peer, check }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.check.poll_tick(cx).is_ready() {
            if let Some((code, reason)) = self.network.current().objection(&self.peer) {
                tracing::warn!(code, peer = %self.peer.identity, reason, "a connection was ended");
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!("{}: {reason}", self.peer.identity),
                ));
            }
        }
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf).map_err(explained)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A refusal by the peer arrives as an alert at the first read: it is put into words here, for whoever reads.
fn explained(error: io::Error) -> io::Error {
    if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
        return io::Error::new(error.kind(), Ended::of_io(&error));
    }
    error
}
