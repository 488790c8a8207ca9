//! Both exports, from start to stop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use mooseng_transport::observe::Metrics;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::{ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::resource::v1;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use crate::health::{Figures, Said, Shown};
use crate::openmetrics;
use crate::spans::{QUEUE_MAX, Sender};
use crate::{OtlpConfig, Wrong};

/// How long a daemon that stops waits for the collector to take what is left.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// Whose spans and metrics they are: the resource's attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// `service.name`, the daemon's: `mooseng-master`.
    pub service: &'static str,
    /// `service.instance.id`, its name in its certificate.
    pub instance: String,
    /// `mooseng.cluster`.
    pub cluster: String,
    /// `mooseng.region`.
    pub region: String,
}

impl Who {
    fn attributes(&self) -> [(&'static str, String); 5] {
        [
            ("service.name", self.service.to_owned()),
            ("service.instance.id", self.instance.clone()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("mooseng.cluster", self.cluster.clone()),
            ("mooseng.region", self.region.clone()),
        ]
    }
}

/// Why nothing is exported.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting can't work.
    #[error(transparent)]
    Setting(#[from] Wrong),
    /// The exporter can't be made: what it finds in the environment contradicts.
    #[error(
        "the exporter of spans can't be made with the variables OTEL_EXPORTER_OTLP_* of the environment: {0}"
    )]
    Exporter(#[from] ExporterBuildError),
    /// It was started before.
    #[error(transparent)]
    Twice(#[from] mooseng_trace::AlreadyStarted),
}

/// The exports that run. Dropped, they go on until the runtime ends.
#[derive(Debug)]
pub struct Otlp {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Otlp {
    /// Begins to record spans, and to send them and what `metrics` shows. Connects to the collector when there is something to send. Called
    /// within a runtime, once in a process.
    pub fn start(config: &OtlpConfig, who: &Who, metrics: &Metrics) -> Result<Self, StartError> {
        let channel = config.connector()?.connect_lazy();
        let metadata = config.metadata()?;
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_channel(channel.clone())
            .with_metadata(metadata.clone())
            .with_timeout(config.timeout())
            .build()?;
        let attributes = who.attributes().map(|(key, value)| KeyValue::new(key, value));
        exporter.set_resource(&Resource::builder_empty().with_attributes(attributes).build());
        let (spans, lost) = mooseng_trace::start(config.sample, QUEUE_MAX)?;
        let figures = Figures::new(lost);
        let shown = Box::new(Shown(figures.clone()));
        metrics.register(|registry| registry.register_collector(shown));
        let stop = CancellationToken::new();
        let endpoint = config.endpoint.clone();
        let sender = Sender {
            exporter,
            endpoint: endpoint.clone(),
            timeout: config.timeout(),
            figures: figures.clone(),
        };
        let mut tasks = vec![tokio::spawn(sender.run(spans, stop.clone()))];
        if config.metrics_every_s > 0 {
            let every = Duration::from_secs(config.metrics_every_s);
            let reports =
                Reports { channel, metadata, endpoint, who: who.clone(), metrics: metrics.clone(), figures };
            tasks.push(tokio::spawn(reports.run(every, stop.clone())));
        }
        tracing::info!(
            endpoint = config.endpoint,
            sample = config.sample,
            "spans and metrics go to a collector"
        );
        Ok(Self { stop, tasks })
    }

    /// Sends what is left, some seconds at most, and ends.
    pub async fn stop(self) {
        self.stop.cancel();
        let all = async {
            for task in self.tasks {
                // A task that panicked has said so.
                let _ = task.await;
            }
        };
        if timeout(FLUSH_WITHIN, all).await.is_err() {
            tracing::warn!("the OTLP collector didn't take what was left in time: it is lost");
        }
    }
}

/// What metrics are sent with.
struct Reports {
    channel: Channel,
    metadata: MetadataMap,
    endpoint: String,
    who: Who,
    metrics: Metrics,
    figures: Arc<Figures>,
}

impl Reports {
    async fn run(self, every: Duration, stop: CancellationToken) {
        let began = SystemTime::now();
        let mut said = Said::new("metrics");
        let mut due = interval(every);
        // After a collector that hung there is one report, not all that were missed.
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                _ = due.tick() => false,
                () = stop.cancelled() => true,
            };
            match self.send(began).await {
                Ok(()) => said.taken(&self.endpoint),
                Err(reason) => {
                    self.figures.failures.fetch_add(1, Ordering::Relaxed);
                    said.failed(&self.endpoint, &reason);
                }
            }
            if last {
                return;
            }
        }
    }

    /// Sends all metrics as they are. The channel bounds how long that takes.
    async fn send(&self, began: SystemTime) -> Result<(), String> {
        let text = self.metrics.encode();
        let metrics = openmetrics::to_otlp(&text, began, SystemTime::now()).map_err(|e| e.to_string())?;
        let attributes = self.who.attributes().map(|(key, value)| openmetrics::attribute(key, &value));
        let scope = InstrumentationScope { name: "mooseng".into(), ..Default::default() };
        let resource = ResourceMetrics {
            resource: Some(v1::Resource { attributes: attributes.into(), ..Default::default() }),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics, ..Default::default() }],
            ..Default::default()
        };
        let message = ExportMetricsServiceRequest { resource_metrics: vec![resource] };
        let extensions = tonic::Extensions::default();
        let request = tonic::Request::from_parts(self.metadata.clone(), extensions, message);
        let answer = MetricsServiceClient::new(self.channel.clone()).export(request).await;
        let refused = answer.map_err(|status| reason(&status))?.into_inner().partial_success;
        match refused.filter(|refused| refused.rejected_data_points > 0) {
            Some(refused) => {
                Err(format!("it refused {} figures: {}", refused.rejected_data_points, refused.error_message))
            }
            None => Ok(()),
        }
    }
}

/// What went wrong, without what a collector answers: that may repeat a secret of the headers.
fn reason(status: &tonic::Status) -> String {
    let mut reason = status.code().description().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        reason = format!("{reason}: {error}");
        source = error.source();
    }
    reason
}
