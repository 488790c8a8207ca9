//! Ended spans, to the collector in batches.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mooseng_trace::{Ended, Kind, Value};
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::health::{Figures, Said};

/// Spans that wait for the collector at most.
pub(crate) const QUEUE_MAX: usize = 8192;
/// Spans in one request.
const BATCH_MAX: usize = 512;
/// How long the first span of a batch waits for others.
const BATCH_WAIT: Duration = Duration::from_secs(1);

/// How spans are sent.
pub(crate) struct Sender {
    pub exporter: SpanExporter,
    pub endpoint: String,
    pub timeout: Duration,
    pub figures: Arc<Figures>,
}

impl Sender {
    /// Sends what arrives, until `stop`; then what is left.
    pub async fn run(self, mut spans: mpsc::Receiver<Ended>, stop: CancellationToken) {
        let mut said = Said::new("spans");
        let mut batch = Vec::new();
        loop {
            let more = tokio::select! {
                more = spans.recv_many(&mut batch, BATCH_MAX) => more,
                () = stop.cancelled(), if !spans.is_closed() => {
                    // What ends from now on is lost, and counted; what has ended is sent.
                    spans.close();
                    continue;
                }
            };
            if more == 0 {
                return;
            }
            let gathered = async {
                while batch.len() < BATCH_MAX && spans.recv_many(&mut batch, BATCH_MAX).await > 0 {}
            };
            tokio::select! {
                () = stop.cancelled() => {}
                _ = timeout(BATCH_WAIT, gathered) => {}
            }
            self.send(std::mem::take(&mut batch), &mut said).await;
        }
    }

    async fn send(&self, batch: Vec<Ended>, said: &mut Said) {
        let count = batch.len() as u64;
        // Counted as lost until the collector has taken them: this may be dropped.
        let mut sending = Sending { figures: &self.figures, count, taken: false };
        let data = batch.into_iter().map(data).collect();
        // Each try has an end of its own; together they have one, too.
        match timeout(2 * self.timeout, self.exporter.export(data)).await {
            Ok(Ok(())) => {
                sending.taken = true;
                said.taken(&self.endpoint);
            }
            Ok(Err(error)) => said.failed(&self.endpoint, &error.to_string()),
            Err(_) => said.failed(&self.endpoint, "it doesn't answer in time"),
        }
    }
}

struct Sending<'a> {
    figures: &'a Figures,
    count: u64,
    taken: bool,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if self.taken {
            self.figures.spans.fetch_add(self.count, Ordering::Relaxed);
        } else {
            self.figures.lost.add(self.count);
            self.figures.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn context(trace: [u8; 16], span: [u8; 8]) -> SpanContext {
    let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE)
}

fn attribute((key, value): (&'static str, Value)) -> KeyValue {
    match value {
        Value::Number(number) => KeyValue::new(key, number),
        Value::Text(text) => KeyValue::new(key, text),
        Value::Bool(yes) => KeyValue::new(key, yes),
    }
}

/// A span as OpenTelemetry has it.
fn data(span: Ended) -> SpanData {
    let mut links = SpanLinks::default();
    links.links = span.links.iter().map(|link| Link::with_context(context(link.trace, link.span))).collect();
    SpanData {
        span_context: context(span.trace, span.id),
        parent_span_id: SpanId::from_bytes(span.parent),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: match span.kind {
            Kind::Internal => SpanKind::Internal,
            Kind::Client => SpanKind::Client,
            Kind::Server => SpanKind::Server,
        },
        name: span.name.into(),
        start_time: span.began,
        end_time: span.ended,
        attributes: span.attributes.into_iter().map(attribute).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links,
        status: span.failure.map_or(Status::Unset, Status::error),
        instrumentation_scope: InstrumentationScope::builder("mooseng").build(),
    }
}
