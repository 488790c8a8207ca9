//! A collector for tests: it keeps what it is sent, and hangs when it is told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::resource::v1::Resource;
pub use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// A span, and whose it is.
#[derive(Clone, Debug)]
pub struct Taken {
    /// `service.name`.
    pub service: String,
    /// `service.instance.id`.
    pub instance: String,
    /// The span.
    pub span: Span,
}

#[derive(Default)]
struct Seen {
    spans: Vec<Taken>,
    /// The last report of each instance, with its resource.
    metrics: BTreeMap<String, (BTreeMap<String, String>, Vec<Metric>)>,
    /// The last request's header `authorization`.
    authorization: Option<String>,
}

/// It lives as long as its runtime.
#[derive(Clone)]
pub struct Collector {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    hangs: Arc<watch::Sender<bool>>,
    /// Requests that hang, or hung.
    hung: Arc<watch::Sender<u64>>,
}

/// Attributes whose value is a text.
pub fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => Some(text.clone()),
        _ => None,
    };
    attributes.iter().filter_map(|a| Some((a.key.clone(), text(&a.value)?))).collect()
}

/// An attribute whose value is a number.
pub fn number(attributes: &[KeyValue], key: &str) -> Option<i64> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::IntValue(number) => Some(*number),
        _ => None,
    }
}

fn who(resource: Option<&Resource>) -> BTreeMap<String, String> {
    resource.map(|resource| texts(&resource.attributes)).unwrap_or_default()
}

impl Collector {
    /// Listens on a free port of the loopback address; with `tls`, so.
    pub async fn start(tls: Option<ServerTlsConfig>) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let collector = Self {
            address,
            seen: Arc::default(),
            hangs: Arc::new(watch::Sender::new(false)),
            hung: Arc::new(watch::Sender::new(0)),
        };
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).map_err(std::io::Error::other)?;
        }
        let serving = server
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        Ok(collector)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its endpoint in clear.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it answers nobody, or everybody again.
    pub fn hang(&self, hangs: bool) {
        self.hangs.send_replace(hangs);
    }

    /// How many requests it has left without an answer, so far.
    pub fn hung(&self) -> u64 {
        *self.hung.borrow()
    }

    /// Waits until it has left that many requests without an answer.
    pub async fn wait_hung(&self, requests: u64) {
        // The sender is this collector's own.
        let _ = self.hung.subscribe().wait_for(|hung| *hung >= requests).await;
    }

    /// The spans that it was sent.
    pub fn spans(&self) -> Vec<Taken> {
        self.seen().spans.clone()
    }

    /// Forgets the spans that it was sent.
    pub fn forget_spans(&self) {
        self.seen().spans.clear();
    }

    /// By instance, the resource and the metrics of its last report.
    pub fn metrics(&self) -> BTreeMap<String, (BTreeMap<String, String>, Vec<Metric>)> {
        self.seen().metrics.clone()
    }

    /// The header `authorization` of the last request.
    pub fn authorization(&self) -> Option<String> {
        self.seen().authorization.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take<T>(&self, request: Request<T>) -> T {
        let authorization = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        self.seen().authorization = authorization.map(str::to_owned);
        if *self.hangs.borrow() {
            self.hung.send_modify(|hung| *hung += 1);
            // The sender is this collector's own.
            let _ = self.hangs.subscribe().wait_for(|hangs| !hangs).await;
        }
        request.into_inner()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let message = self.take(request).await;
        for resource in message.resource_spans {
            let who = who(resource.resource.as_ref());
            let of = |key: &str| who.get(key).cloned().unwrap_or_default();
            let (service, instance) = (of("service.name"), of("service.instance.id"));
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let taken =
                spans.map(|span| Taken { service: service.clone(), instance: instance.clone(), span });
            self.seen().spans.extend(taken);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let message = self.take(request).await;
        for resource in message.resource_metrics {
            let who = who(resource.resource.as_ref());
            let instance = who.get("service.instance.id").cloned().unwrap_or_default();
            let metrics = resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics).collect();
            self.seen().metrics.insert(instance, (who, metrics));
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}
