//! Metrics: names, units and meanings in one place.

use std::sync::atomic::{AtomicI64, AtomicU64};

use mooseng_transport::observe;
use mooseng_wire::call::ErrorCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// One metric: its name and what it counts.
pub struct Name(pub &'static str, pub &'static str);

/// All metrics of a chunkserver. Counters get `_total` behind their name.
pub const NAMES: &[Name] = &[
    REQUESTS,
    ERRORS,
    SECONDS,
    BYTES_WRITTEN,
    BYTES_READ,
    FLUSHES,
    CHAIN_FAILURES,
    CORRUPT,
    CHUNKS,
    DISKS_WRITABLE,
    DISKS,
    BYTES_FREE,
    BYTES_USED,
    HEARTBEATS,
    HEARTBEAT_FAILURES,
    BYTES_PULLED,
    BYTES_PUSHED,
    BYTES_SCRUBBED,
    SCRUB_PASSES,
    LENT,
    BYTES_SHARED,
    OTHER_FOUNDINGS,
];

const BYTES_PULLED: Name =
    Name("mooseng_chunkserver_pulled_bytes", "Bytes of chunks copied from other chunkservers");
const BYTES_PUSHED: Name = Name(
    "mooseng_chunkserver_pushed_bytes",
    "Bytes of growing chunks sent on to other regions as they were appended",
);
const BYTES_SCRUBBED: Name =
    Name("mooseng_chunkserver_scrubbed_bytes", "Bytes of chunks read and verified by the scrub");
const SCRUB_PASSES: Name =
    Name("mooseng_chunkserver_scrub_passes", "Times that the scrub has been through all chunks");

const LENT: Name = Name(
    "mooseng_chunkserver_lent",
    "Sealed chunks' files lent to clients on this host, which read them themselves",
);
const BYTES_SHARED: Name = Name(
    "mooseng_chunkserver_shared_bytes",
    "Bytes that processes on this host wrote through memory that they share with this chunkserver",
);
const OTHER_FOUNDINGS: Name = Name(
    "mooseng_chunkserver_other_foundings",
    "Masters whose last answer told another founding mark than the chunks': the region was made anew",
);

const REQUESTS: Name = Name("mooseng_chunkserver_requests", "Requests on framed streams, by method");
const ERRORS: Name =
    Name("mooseng_chunkserver_errors", "Requests that were answered with an error, by method and code");
const SECONDS: Name =
    Name("mooseng_chunkserver_request_seconds", "Seconds from a request's receipt to its answer, by method");
const BYTES_WRITTEN: Name =
    Name("mooseng_chunkserver_written_bytes", "Bytes of chunks written to this chunkserver's disks");
const BYTES_READ: Name = Name("mooseng_chunkserver_read_bytes", "Bytes of chunks read and verified");
const FLUSHES: Name =
    Name("mooseng_chunkserver_flushes", "Flushes of chunk files; appends that wait share one");
const CHAIN_FAILURES: Name =
    Name("mooseng_chunkserver_chain_failures", "Appends that a later member of the chain failed");
const CORRUPT: Name =
    Name("mooseng_chunkserver_corrupt", "Requests that met bytes which don't match their checksum");
const CHUNKS: Name = Name("mooseng_chunkserver_chunks", "Chunks on this chunkserver's disks");
const DISKS_WRITABLE: Name =
    Name("mooseng_chunkserver_disks_writable", "Data directories that take new chunks");
const DISKS: Name = Name("mooseng_chunkserver_disks", "Data directories that are configured");
const BYTES_FREE: Name =
    Name("mooseng_chunkserver_free_bytes", "Free bytes above the reserve, on all disks that take new chunks");
const BYTES_USED: Name = Name("mooseng_chunkserver_used_bytes", "Bytes that chunk files take");
const HEARTBEATS: Name = Name("mooseng_chunkserver_heartbeats", "Heartbeats that a master answered");
const HEARTBEAT_FAILURES: Name =
    Name("mooseng_chunkserver_heartbeat_failures", "Heartbeats that no master answered");

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodCode {
    method: &'static str,
    code: &'static str,
}

/// A chunkserver's metrics.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<Method, Counter>,
    errors: Family<MethodCode, Counter>,
    seconds: Family<Method, Histogram>,
    /// Bytes written.
    pub bytes_written: Counter,
    /// Bytes read.
    pub bytes_read: Counter,
    /// Flushes.
    pub flushes: Counter,
    chain_failures: Counter,
    corrupt: Counter,
    /// Chunks.
    pub chunks: Gauge,
    /// Writable disks.
    pub disks_writable: Gauge,
    /// Disks.
    pub disks: Gauge,
    /// Free bytes.
    pub bytes_free: Gauge,
    /// Used bytes.
    pub bytes_used: Gauge,
    /// Heartbeats answered.
    pub heartbeats: Counter,
    /// Heartbeats not answered.
    pub heartbeat_failures: Counter,
    /// Bytes copied from others.
    pub bytes_pulled: Counter,
    /// Bytes sent on to other regions.
    pub bytes_pushed: Counter,
    /// Bytes scrubbed.
    pub bytes_scrubbed: Counter,
    /// Scrubs.
    pub scrub_passes: Counter,
    /// Files lent.
    pub lent: Counter,
    /// Bytes that came in shared memory.
    pub bytes_shared: Counter,
    /// Masters of another founding.
    pub other_foundings: Gauge,
}

impl Metrics {
    /// Registers them.
    pub fn new(exposed: &observe::Metrics) -> Self {
        let m = Self {
            requests: Family::default(),
            errors: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_05, 2.0, 18))),
            bytes_written: Counter::<u64, AtomicU64>::default(),
            bytes_read: Counter::default(),
            flushes: Counter::default(),
            chain_failures: Counter::default(),
            corrupt: Counter::default(),
            chunks: Gauge::<i64, AtomicI64>::default(),
            disks_writable: Gauge::default(),
            disks: Gauge::default(),
            bytes_free: Gauge::default(),
            bytes_used: Gauge::default(),
            heartbeats: Counter::default(),
            heartbeat_failures: Counter::default(),
            bytes_pulled: Counter::default(),
            bytes_pushed: Counter::default(),
            bytes_scrubbed: Counter::default(),
            scrub_passes: Counter::default(),
            lent: Counter::default(),
            bytes_shared: Counter::default(),
            other_foundings: Gauge::default(),
        };
        exposed.register(|registry| m.register(registry));
        m
    }

    fn register(&self, registry: &mut Registry) {
        let m = self;
        registry.register(REQUESTS.0, REQUESTS.1, m.requests.clone());
        registry.register(ERRORS.0, ERRORS.1, m.errors.clone());
        registry.register(SECONDS.0, SECONDS.1, m.seconds.clone());
        let counters = [
            (BYTES_WRITTEN, &m.bytes_written),
            (BYTES_READ, &m.bytes_read),
            (FLUSHES, &m.flushes),
            (CHAIN_FAILURES, &m.chain_failures),
            (CORRUPT, &m.corrupt),
            (HEARTBEATS, &m.heartbeats),
            (HEARTBEAT_FAILURES, &m.heartbeat_failures),
            (BYTES_PULLED, &m.bytes_pulled),
            (BYTES_PUSHED, &m.bytes_pushed),
            (BYTES_SCRUBBED, &m.bytes_scrubbed),
            (SCRUB_PASSES, &m.scrub_passes),
            (LENT, &m.lent),
            (BYTES_SHARED, &m.bytes_shared),
        ];
        for (name, counter) in counters {
            registry.register(name.0, name.1, counter.clone());
        }
        let gauges = [
            (CHUNKS, &m.chunks),
            (DISKS_WRITABLE, &m.disks_writable),
            (DISKS, &m.disks),
            (BYTES_FREE, &m.bytes_free),
            (OTHER_FOUNDINGS, &m.other_foundings),
            (BYTES_USED, &m.bytes_used),
        ];
        for (name, gauge) in gauges {
            registry.register(name.0, name.1, gauge.clone());
        }
    }

    /// A request was answered.
    pub fn answered(&self, method: &'static str, error: Option<ErrorCode>, seconds: f64) {
        self.requests.get_or_create(&Method { method }).inc();
        self.seconds.get_or_create(&Method { method }).observe(seconds);
        let Some(code) = error else { return };
        self.errors.get_or_create(&MethodCode { method, code: code.as_str_name() }).inc();
        match code {
            ErrorCode::ChainFailed => drop(self.chain_failures.inc()),
            ErrorCode::Corrupt => drop(self.corrupt.inc()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_and_documented() {
        let exposed = observe::Metrics::default();
        let metrics = Metrics::new(&exposed);
        metrics.answered("ChunkRead", Some(ErrorCode::Corrupt), 0.1);
        let text = exposed.encode();
        let page = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/metrics/chunkserver.md"
        ))
        .unwrap();
        for Name(name, meaning) in NAMES {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name} isn't registered");
            assert!(
                page.contains(&format!("| `{name}` | {meaning} |")),
                "{name} isn't in docs/metrics/chunkserver.md"
            );
        }
        assert_eq!(text.matches("# TYPE ").count(), NAMES.len());
        assert_eq!(page.lines().filter(|l| l.starts_with("| `")).count(), NAMES.len());
    }
}
