//! What a mount tells Prometheus, read from the filesystem when it is asked: of all volumes together, but for the lease, which is the root's, and for what is
//! labelled by volume. `docs/metrics/mount.md` lists the same.

use std::sync::Arc;

use mooseng_client::{CacheCounts, FsStatus, Tree};
use mooseng_fuse::{Figures, Operation, Operations, Spread};
use mooseng_transport::observe::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
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
        "What remains of the lease of the root volume's session, in milliseconds; 0 without one",
        |s| s.lease_left_ms.unwrap_or(0),
    ),
    gauge("mooseng_mount_unanswered", "Changes that wait for an answer", |s| s.unanswered as u64),
    gauge("mooseng_mount_open_inodes", "Inodes held open", |s| s.open_inodes as u64),
    gauge("mooseng_mount_open_chunks", "Chunks open for appends", |s| s.open_chunks as u64),
    gauge("mooseng_mount_cache_bytes", "Bytes of chunk data in memory", |s| s.cache_bytes as u64),
    gauge("mooseng_mount_dirty_bytes", "Written bytes that aren't at the region yet", |s| {
        s.dirty_bytes as u64
    }),
    gauge(
        "mooseng_mount_untold",
        "Changes of names that were made alone and aren't told to the region yet",
        |s| s.untold as u64,
    ),
    counter("mooseng_mount_made_alone", "Changes of names that were made alone", |s| s.made_alone),
    counter("mooseng_mount_tellings", "Requests that told the region of them", |s| s.tellings),
    counter(
        "mooseng_mount_untold_lost",
        "Changes of names that were lost or refused after they had been answered",
        |s| s.untold_lost,
    ),
    counter(
        "mooseng_mount_alone_corrected",
        "Attributes of what was made alone that the region had otherwise than they were shown",
        |s| s.alone_corrected,
    ),
    counter(
        "mooseng_mount_locks_alone",
        "Locks given without a request, of files that nobody else had open",
        |s| s.locks_alone,
    ),
    counter(
        "mooseng_mount_paced",
        "Changes that waited because what no other region has was older than the volume's lag_max",
        |s| s.paced,
    ),
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
    counter(
        "mooseng_mount_same_host_reads",
        "Reads of chunks from files that chunkservers on this host lent",
        |s| s.same_host_reads,
    ),
    counter("mooseng_mount_same_host_bytes", "Bytes read so", |s| s.same_host_bytes),
    counter(
        "mooseng_mount_same_host_failures",
        "Reads of such files that failed, and were done over the network",
        |s| s.same_host_failures,
    ),
    gauge("mooseng_mount_lent_files", "Files of chunks that are lent to this mount now", |s| {
        s.lent_files as u64
    }),
    counter("mooseng_mount_lapses", "Times that the lease lapsed", |s| s.lapses),
    counter("mooseng_mount_leader_changes", "Times that another master was taken as leader", |s| {
        s.leader_changes
    }),
];

/// A figure of each volume that the mount is in, labelled `volume`.
struct OfVolume {
    name: &'static str,
    help: &'static str,
    value: fn(&FsStatus) -> u64,
}

/// All of those.
const VOLUMES: &[OfVolume] = &[
    OfVolume {
        name: "mooseng_mount_volume_lease_left_ms",
        help: "What remains of the lease of a volume's session, in milliseconds, by `volume`; 0 without one",
        value: |s| s.lease_left_ms.unwrap_or(0),
    },
    OfVolume {
        name: "mooseng_mount_volume_unanswered",
        help: "Changes of a volume that wait for an answer, by `volume`",
        value: |s| s.unanswered as u64,
    },
    OfVolume {
        name: "mooseng_mount_volume_dirty_bytes",
        help: "Written bytes of a volume that aren't at its region yet, by `volume`",
        value: |s| s.dirty_bytes as u64,
    },
];

/// A counter of each cache, labelled `cache`.
struct OfCache {
    name: &'static str,
    help: &'static str,
    value: fn(&CacheCounts) -> u64,
}

/// All of those.
const CACHES: &[OfCache] = &[
    OfCache {
        name: "mooseng_mount_cache_hits",
        help: "How often a cache of the mount had what was asked of it, by `cache`",
        value: |c| c.hits,
    },
    OfCache {
        name: "mooseng_mount_cache_misses",
        help: "How often it hadn't, and others were asked, by `cache`",
        value: |c| c.misses,
    },
];

/// A counter of each kind of operation, labelled `operation`.
struct OfOperation {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&Figures) -> u64,
}

/// All of those.
const OPERATIONS: &[OfOperation] = &[
    OfOperation {
        name: "mooseng_mount_operations",
        help: "Requests of the kernel that were answered, by `operation`",
        kind: MetricType::Counter,
        value: |f| f.answered,
    },
    OfOperation {
        name: "mooseng_mount_operations_waited",
        help: "Those for which others had to be asked; the rest was answered from what the mount knew",
        kind: MetricType::Counter,
        value: |f| f.waited,
    },
    OfOperation {
        name: "mooseng_mount_operations_failed",
        help: "Those that were answered with an error number, ENOENT included",
        kind: MetricType::Counter,
        value: |f| f.failed,
    },
    OfOperation {
        name: "mooseng_mount_operations_us",
        help: "How long all of them took together, in microseconds",
        kind: MetricType::Counter,
        value: |f| f.total_us,
    },
    OfOperation {
        name: "mooseng_mount_operations_running",
        help: "Requests of the kernel under way",
        kind: MetricType::Gauge,
        value: |f| f.running,
    },
];

/// How long operations took, as a histogram labelled `operation`. Its buckets are wide, for there is one of each bound and operation at each mount; `mooseng profile` has
/// narrower ones.
const SECONDS: (&str, &str) = (
    "mooseng_mount_operations_seconds",
    "Seconds from a request of the kernel to its answer, by `operation`; of kinds of which there were any",
);

/// Where the first of its buckets ends, in microseconds; the others four times as far each.
const FIRST_US: u64 = 64;
/// The last bound is 67 seconds.
const BOUNDS: u32 = 11;

/// The counts of a histogram's buckets, with their upper bounds in seconds.
fn buckets(spread: &Spread) -> Vec<(f64, u64)> {
    let mut rest = spread.buckets.iter().peekable();
    let mut buckets: Vec<(f64, u64)> = Vec::new();
    for bound_us in (0..BOUNDS).map(|n| FIRST_US << (2 * n)) {
        let mut count = 0;
        // Each bound is also one of theirs.
        while let Some(bucket) = rest.next_if(|bucket| bucket.below_us <= bound_us) {
            count += bucket.count;
        }
        buckets.push((bound_us as f64 / 1e6, count));
    }
    buckets.push((f64::INFINITY, rest.map(|bucket| bucket.count).sum()));
    buckets
}

struct FromOperations(Arc<Operations>);

impl std::fmt::Debug for FromOperations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FromOperations")
    }
}

impl Collector for FromOperations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let figures: Vec<(&str, Figures)> =
            Operation::ALL.iter().map(|o| (o.name(), self.0.figures(*o))).collect();
        for metric in OPERATIONS {
            let mut out = encoder.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
            for (operation, figures) in &figures {
                let value = (metric.value)(figures);
                let labels = [("operation", *operation)];
                let out = out.encode_family(&labels)?;
                match metric.kind {
                    MetricType::Counter => ConstCounter::new(value).encode(out)?,
                    _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(out)?,
                }
            }
        }
        let (name, help) = SECONDS;
        let mut out = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for operation in Operation::ALL {
            let (spread, figures) = (self.0.spread(*operation), self.0.figures(*operation));
            if spread.count() == 0 {
                continue;
            }
            let labels = [("operation", operation.name())];
            let (seconds, buckets) = (figures.total_us as f64 / 1e6, buckets(&spread));
            let mut out = out.encode_family(&labels)?;
            out.encode_histogram::<NoLabelSet>(seconds, spread.count(), &buckets, None)?;
        }
        Ok(())
    }
}

struct FromStatus(Tree);

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
        for metric in CACHES {
            let mut out = encoder.encode_descriptor(metric.name, metric.help, None, MetricType::Counter)?;
            for (cache, counts) in &status.caches {
                let labels = [("cache", *cache)];
                ConstCounter::new((metric.value)(counts)).encode(out.encode_family(&labels)?)?;
            }
        }
        let of_volumes: Vec<(String, FsStatus)> = std::iter::once(self.0.root().clone())
            .chain(self.0.entered())
            .map(|fs| (fs.volume().to_string(), fs.status()))
            .collect();
        for metric in VOLUMES {
            let mut out = encoder.encode_descriptor(metric.name, metric.help, None, MetricType::Gauge)?;
            for (volume, status) in &of_volumes {
                let labels = [("volume", volume.as_str())];
                let value = i64::try_from((metric.value)(status)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(out.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Registers what the kernel asks for.
pub fn register_operations(metrics: &Metrics, operations: Arc<Operations>) {
    metrics.register(|registry| registry.register_collector(Box::new(FromOperations(operations))));
}

/// Registers them.
pub fn register(metrics: &Metrics, tree: Tree) {
    metrics.register(|registry| registry.register_collector(Box::new(FromStatus(tree))));
}

#[cfg(test)]
mod tests {
    use mooseng_fuse::Bucket;

    use super::*;

    #[test]
    fn a_histogram_counts_each_operation_once() {
        let bucket = |from_us, below_us, count| Bucket { from_us, below_us, count };
        let spread = Spread {
            longest_us: 1 << 40,
            buckets: vec![
                bucket(3, 4, 1),
                bucket(56, 64, 2),
                bucket(64, 80, 4),
                bucket(224, 256, 8),
                bucket(256, 320, 16),
                bucket(1 << 31, u64::MAX, 32),
            ],
        };
        let buckets = buckets(&spread);
        assert_eq!(buckets.len(), 12);
        assert_eq!(buckets[..4], [(0.000_064, 3), (0.000_256, 12), (0.001_024, 16), (0.004_096, 0)]);
        assert_eq!(buckets[10..], [(67.108_864, 0), (f64::INFINITY, 32)]);
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), spread.count());
    }

    #[test]
    fn what_was_never_asked_for_has_no_buckets() {
        let metrics = Metrics::default();
        register_operations(&metrics, Arc::default());
        let text = metrics.encode();
        assert!(text.contains("# TYPE mooseng_mount_operations_seconds histogram"), "{text}");
        assert!(!text.contains("mooseng_mount_operations_seconds_bucket"), "{text}");
    }

    #[test]
    fn the_documentation_lists_every_metric() {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics/mount.md"))
                .unwrap();
        let of_volumes = VOLUMES.iter().map(|m| (m.name, MetricType::Gauge));
        let of_caches = CACHES.iter().map(|m| (m.name, MetricType::Counter));
        let of_operations = OPERATIONS.iter().map(|m| (m.name, m.kind));
        let seconds = std::iter::once((SECONDS.0, MetricType::Histogram));
        let all = METRICS.iter().map(|m| (m.name, m.kind)).chain(of_caches).chain(of_volumes);
        let all = all.chain(of_operations).chain(seconds);
        let wanted = all.map(|(name, kind)| match kind {
            MetricType::Counter => format!("{name}_total"),
            _ => name.to_owned(),
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
