//! gRPC over the network port: tonic's services on connections that our acceptor authenticated, and calls through our connector.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mooseng_wire::Role;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Uri};
use tracing::Instrument;

use crate::network::{Connection, Network, Peer, Protocol};
use crate::trace::{self, TRACE};

/// The longest that a call may take, whatever it asks for: the copy of a store to a new master is the longest there is.
const CALL_MAX: Duration = Duration::from_secs(180);
/// Requests at once on one connection.
const REQUESTS_MAX: u32 = 64;
/// How long requests in flight may take to end when their connection is retired, or the server stops.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// How long a peer that is refused may stay to be told why.
const REFUSAL_READ_WITHIN: Duration = Duration::from_secs(5);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_WITHIN: Duration = Duration::from_secs(20);

const TRACE_HEADER: &str = "traceparent";

/// Serves a connection until it ends; with `refused`, each request is told why.
pub(crate) async fn serve(
    connection: Connection,
    routes: Option<Routes>,
    refused: Option<String>,
    shutdown: &CancellationToken,
) {
    let Connection { io, peer, retire_at, .. } = connection;
    let is_refused = refused.is_some();
    let answerer = match (refused, routes) {
        (Some(reason), _) => Err(Status::permission_denied(reason)),
        (None, Some(routes)) => Ok(routes),
        (None, None) => Err(Status::unimplemented("this port has no gRPC")),
    };
    let who = peer.identity.to_string();
    let service = hyper::service::service_fn(move |request| answer(request, peer.clone(), answerer.clone()));
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(REQUESTS_MAX)
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_WITHIN)
        .serve_connection(TokioIo::new(io), service);
    tokio::pin!(serving);
    let retired = async {
        match retire_at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    let refusal_read = async {
        if !is_refused {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(REFUSAL_READ_WITHIN).await;
    };
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = async { tokio::select! {
            () = retired => {}
            () = refusal_read => {}
            () = shutdown.cancelled() => {}
        } } => {
            // The peer is asked to send new requests elsewhere, and those in flight are answered still.
            serving.as_mut().graceful_shutdown();
            timeout(DRAIN_WITHIN, serving.as_mut()).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        let error = &error as &dyn std::error::Error;
        tracing::debug!(peer = who, error, "a gRPC connection ended");
    }
}

async fn answer(
    mut request: http::Request<hyper::body::Incoming>,
    peer: Arc<Peer>,
    answerer: Result<Routes, Status>,
) -> Result<http::Response<Body>, Infallible> {
    let mut routes = match answerer {
        Ok(routes) => routes,
        Err(status) => return Ok(status.into_http()),
    };
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let wait = text("grpc-timeout").and_then(parse_timeout).unwrap_or(CALL_MAX).min(CALL_MAX);
    let trace = text(TRACE_HEADER).and_then(trace::from_header).unwrap_or_default();
    let span = tracing::debug_span!("request", trace = trace::id(&trace), path = request.uri().path());
    span.in_scope(|| tracing::debug!(peer = %peer.identity, "a request arrived"));
    let who = peer.clone();
    request.extensions_mut().insert(peer);
    let served = trace::server("request", &trace)
        .noted("rpc.path", || request.uri().path().to_owned())
        .noted("peer", || who.identity.to_string());
    let context = if served.is_recorded() { served.context() } else { trace };
    let call = async {
        let late = "the request took longer than the caller waits";
        let answered = timeout(wait, TRACE.scope(context, routes.call(request)).instrument(span)).await;
        answered.unwrap_or_else(|_| Ok(Status::deadline_exceeded(late).into_http()))
    };
    served.run(call, failed).await
}

/// A request that is refused at once says so in its headers.
fn failed(answer: &Result<http::Response<Body>, Infallible>, span: &mut trace::Span) {
    let Ok(answer) = answer else { return };
    if let Some(status) = Status::from_header_map(answer.headers())
        && status.code() != tonic::Code::Ok
    {
        span.note("code", || status.code().description());
        span.fail(|| status.message().to_owned());
    }
}

/// A duration as the header `grpc-timeout` has it: at most 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Who made a gRPC request.
pub fn peer_of<T>(request: &tonic::Request<T>) -> Result<Arc<Peer>, Status> {
    let unknown = || Status::unauthenticated("the peer of this request isn't known");
    request.extensions().get::<Arc<Peer>>().cloned().ok_or_else(unknown)
}

/// A request that carries its deadline and the trace context of the call that this task works on.
pub fn grpc_request<T>(message: T, wait: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(wait);
    tracing::debug!(
        trace = trace::id(&trace::current()),
        request = std::any::type_name::<T>(),
        "a request is sent"
    );
    if let Some(header) = trace::to_header(&trace::current()).and_then(|header| header.parse().ok()) {
        request.metadata_mut().insert(TRACE_HEADER, header);
    }
    request
}

/// A gRPC channel to a peer of `role`, connected when first used and again when it broke. Requests made by [`grpc_request`] have
/// a deadline of their own; others end after a general one.
pub async fn grpc_channel(network: Arc<dyn Network>, address: &str, role: Role) -> Channel {
    let address = address.to_owned();
    // The authority in the URI is only a label: names and keys are checked by the network port.
    let endpoint = Endpoint::from_static("http://mooseng.invalid")
        .connect_timeout(Duration::from_secs(2))
        .timeout(CALL_MAX)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3));
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (network, address) = (network.clone(), address.clone());
        async move {
            let connection =
                network.connect(&address, Protocol::Grpc, role).await.map_err(io::Error::other)?;
            io::Result::Ok(TokioIo::new(connection.io))
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_and_nonsense_is_not() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("2S"), Some(Duration::from_secs(2)));
        for bad in ["", "5", "m", "123456789S", "-1S", "1é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
