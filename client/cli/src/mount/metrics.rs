//! What a mount tells Prometheus, read from the filesystem when it is asked. `docs/metrics/mount.md` lists the same.

use mooseng_client::{FileSystem, FsStatus};
use mooseng_transport::observe::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// A metric of a mount: its name, what it says, and its value.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&FsStatus) -> u64,
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&FsStatus) -> u64) -> Metric {
    Metric { name, help, kind: MetricType::Gauge, value }
}

const fn counter(name: &'static str, help: &'static str, value: fn(&FsStatus) -> u64) -> Metric {
    Metric { name, help, kind: MetricType::Counter, value }
}

/// All of them. Counters are written with the suffix `_total`.
const METRICS: &[Metric] = &[
    gauge(
        "mooseng_mount_lease_left_ms",
        "What remains of the session's lease, in milliseconds; 0 without one",
        |s| s.lease_left_ms.unwrap_or(0),
    ),
    gauge("mooseng_mount_unanswered", "Changes that wait for an answer", |s| s.unanswered as u64),
    gauge("mooseng_mount_open_inodes", "Inodes held open", |s| s.open_inodes as u64),
    gauge("mooseng_mount_open_chunks", "Chunks open for appends", |s| s.open_chunks as u64),
    gauge("mooseng_mount_cache_bytes", "Bytes of chunk data in memory", |s| s.cache_bytes as u64),
    gauge("mooseng_mount_dirty_bytes", "Written bytes that aren't at the region yet", |s| {
        s.dirty_bytes as u64
    }),
    counter("mooseng_mount_retries", "Attempts that had to be repeated", |s| s.retries),
    counter("mooseng_mount_timeouts", "Operations that failed because nobody answered in time", |s| {
        s.timeouts
    }),
    counter("mooseng_mount_chunks_replaced", "Chunks replaced because a chunkserver failed", |s| {
        s.chunks_replaced
    }),
    counter("mooseng_mount_corrupt_replicas", "Replicas that answered with wrong bytes", |s| {
        s.corrupt_replicas
    }),
    counter("mooseng_mount_hedges", "Reads for which a second replica was asked", |s| s.hedges),
    counter("mooseng_mount_lapses", "Times that the lease lapsed", |s| s.lapses),
    counter("mooseng_mount_leader_changes", "Times that another master was taken as leader", |s| {
        s.leader_changes
    }),
];

struct FromStatus(FileSystem);

impl std::fmt::Debug for FromStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FromStatus")
    }
}

impl Collector for FromStatus {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = self.0.status();
        for metric in METRICS {
            let value = (metric.value)(&status);
            let out = encoder.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
            match metric.kind {
                MetricType::Counter => ConstCounter::new(value).encode(out)?,
                _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(out)?,
            }
        }
        Ok(())
    }
}

/// Registers them.
pub fn register(metrics: &Metrics, fs: FileSystem) {
    metrics.register(|registry| registry.register_collector(Box::new(FromStatus(fs))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_metric() {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics/mount.md"))
                .unwrap();
        let wanted = METRICS.iter().map(|m| match m.kind {
            MetricType::Counter => format!("{}_total", m.name),
            _ => m.name.to_owned(),
        });
        let wanted: Vec<String> = wanted.collect();
        let documented: Vec<String> = page
            .lines()
            .filter_map(|l| l.strip_prefix("| `"))
            .filter_map(|l| l.split('`').next())
            .map(str::to_owned)
            .collect();
        assert_eq!(documented, wanted);
    }
}
