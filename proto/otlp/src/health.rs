//! What becomes of exports: counted, and told the log at a bounded rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mooseng_trace::Lost;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use tokio::time::Instant;

/// How often the log says that the collector takes nothing.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// The figures, as `/metrics` shows them; `docs/metrics/otlp.md` lists the same.
#[derive(Debug)]
pub(crate) struct Figures {
    pub lost: Lost,
    pub spans: AtomicU64,
    pub failures: AtomicU64,
}

impl Figures {
    pub fn new(lost: Lost) -> Arc<Self> {
        Arc::new(Self { lost, spans: AtomicU64::new(0), failures: AtomicU64::new(0) })
    }
}

/// Name, help and value of each.
type Row = (&'static str, &'static str, fn(&Figures) -> u64);

pub(crate) const ROWS: [Row; 3] = [
    ("mooseng_otlp_spans", "Spans that the collector has taken", |f| f.spans.load(Ordering::Relaxed)),
    (
        "mooseng_otlp_spans_lost",
        "Spans that were lost: the queue was full, or the collector didn't take them",
        |f| f.lost.count(),
    ),
    ("mooseng_otlp_export_failures", "Exports of spans or metrics that the collector didn't take", |f| {
        f.failures.load(Ordering::Relaxed)
    }),
];

#[derive(Debug)]
pub(crate) struct Shown(pub Arc<Figures>);

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for (name, help, value) in ROWS {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value(&self.0)).encode(metric)?;
        }
        Ok(())
    }
}

/// Tells the log of failures: the first, then one a minute at most, and the end of them.
pub(crate) struct Said {
    what: &'static str,
    failing: Option<Instant>,
    since: u64,
}

impl Said {
    pub fn new(what: &'static str) -> Self {
        Self { what, failing: None, since: 0 }
    }

    pub fn failed(&mut self, endpoint: &str, reason: &str) {
        if let Some(exports) = self.note() {
            tracing::warn!(
                endpoint,
                reason,
                exports,
                what = self.what,
                "the OTLP collector takes nothing; operations go on, and what it doesn't take is lost"
            );
        }
    }

    /// Counts a failure; if it is time to tell of it, says how many there were since the last time.
    fn note(&mut self) -> Option<u64> {
        self.since += 1;
        if self.failing.is_some_and(|said| said.elapsed() < SAID_EVERY) {
            return None;
        }
        self.failing = Some(Instant::now());
        Some(std::mem::take(&mut self.since))
    }

    pub fn taken(&mut self, endpoint: &str) {
        if self.failing.take().is_some() {
            self.since = 0;
            tracing::info!(endpoint, what = self.what, "the OTLP collector takes it again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_at_once_and_then_once_a_minute() {
        let mut said = Said::new("spans");
        assert_eq!(said.note(), Some(1));
        for _ in 0..59 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(said.note(), None);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(said.note(), Some(60));
        said.taken("http://collector");
        assert_eq!(said.note(), Some(1), "after it worked, at once again");
    }
}
