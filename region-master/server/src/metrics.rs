//! Metrics: names, units and meanings in one place.

use std::sync::atomic::{AtomicI64, AtomicU64};

use mooseng_wire::VolumeId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// One metric: its name and what it counts.
pub struct Name(pub &'static str, pub &'static str);

/// All metrics of a master. Counters get `_total` behind their name.
pub const NAMES: &[Name] = &[
    REQUESTS,
    ERRORS,
    SECONDS,
    LEADING,
    TERM,
    GLOBAL_LEADING,
    GLOBAL_TERM,
    AGREED_VERSION,
    FEATURE_LEVEL,
    REVOCATIONS,
    REVOCATIONS_VERSION,
    LEASE_HELD,
    SESSIONS,
    CHUNKSERVERS_ALIVE,
    CHUNKS,
    CHUNKS_ENDANGERED,
    CHUNKS_MISPLACED,
    CHUNKS_UNAVAILABLE,
    SEALS_WAITING,
    COPIES_WAITING,
    COPIES_UNDER_WAY,
    ENDANGERED_OLDEST_SECONDS,
    CHUNKS_DEAD,
    CHUNK_BYTES,
    CHUNK_BYTES_LIVE,
    COPIES_MADE,
    COPIED_BYTES,
    COPIES_FAILED,
    COPIES_DROPPED,
    CHUNKS_BURIED,
    CHUNKS_REWRITTEN,
    REWRITTEN_BYTES,
    REWRITES_FAILED,
    REWRITES_UNDER_WAY,
    REAPED,
    TRASH_FILES,
    TRASH_BYTES,
    TRASH_EXPIRED,
    TRASH_RESTORED,
    LAPSED,
    LEADERSHIPS,
    RECALLS,
    LOCK_WAITS,
    STATE_BYTES_FREE,
    QUOTAS,
    QUOTA_REFUSALS,
    ESCROW_BYTES,
    STAGED_BYTES,
    DESTAGED_BYTES,
    DESTAGED_CHUNKS,
    DESTAGES_FAILED,
    CHUNKS_MERGED,
    JOINED_EXTENTS,
    JOINED_BYTES,
    PARTED_BYTES,
    PACKED_BYTES,
    PACKED_CHUNKS,
    PACKS_FAILED,
    PACKABLE_FILES,
    PACKABLE_BYTES,
    LOG_REPLAYED,
    HELD_BACK,
    NEAR_SESSIONS,
    NEAR_PROMISES,
    NEAR_GRANTED,
    NEAR_RECALLS,
    CHUNKS_FETCHED,
    BYTES_FETCHED,
    REPLICA_AGE_SECONDS,
    REPLICA_LOG_BYTES,
];

const REPLICA_AGE_SECONDS: Name = Name(
    "mooseng_master_replica_age_seconds",
    "Seconds for which a region has lacked what it lacks of a volume, data included, by volume and region: of volumes whose home this master leads, 0 where nothing is lacking; none while that isn't known: until the region has said where it is, and, of what was lacking before this master began to lead, until it has that",
);
const REPLICA_LOG_BYTES: Name = Name(
    "mooseng_master_replica_log_bytes",
    "About how many bytes of a volume's log lie behind where a region is complete, by volume and region: of volumes whose home this master leads; none while that isn't known",
);
const REQUESTS: Name = Name("mooseng_master_requests", "Requests on framed streams, by method");
const ERRORS: Name = Name(
    "mooseng_master_errors",
    "Requests on framed streams that were answered with an error, by method and code",
);
const SECONDS: Name =
    Name("mooseng_master_request_seconds", "Seconds from a request's receipt to its answer, by method");
const LEADING: Name = Name("mooseng_master_leading", "1 while this master leads and serves, else 0");
const TERM: Name = Name("mooseng_master_term", "Raft's term");
const GLOBAL_LEADING: Name =
    Name("mooseng_master_global_leading", "1 while this master leads the global group, else 0");
const GLOBAL_TERM: Name = Name("mooseng_master_global_term", "Raft's term in the global group");
const AGREED_VERSION: Name = Name(
    "mooseng_master_agreed_version",
    "Changes of what the regions have agreed on, as far as this master knows",
);
const FEATURE_LEVEL: Name = Name(
    "mooseng_master_feature_level",
    "The feature level that the cluster is at, as far as this master knows",
);
const REVOCATIONS: Name = Name(
    "mooseng_master_revocations",
    "Certificates and names that the cluster refuses, as far as this master knows",
);
const REVOCATIONS_VERSION: Name = Name(
    "mooseng_master_revocations_version",
    "The version of what the cluster refuses: grows with each change, and is the same on all masters that have heard of it",
);
const LEASE_HELD: Name = Name(
    "mooseng_master_lease_held",
    "1 while this master leads its region and the region holds its lease, else 0; looked at every two seconds",
);
const SESSIONS: Name = Name("mooseng_master_sessions", "Sessions in the leader's table");
const CHUNKSERVERS_ALIVE: Name =
    Name("mooseng_master_chunkservers_alive", "Chunkservers whose heartbeats come");
const CHUNKS: Name = Name("mooseng_master_chunks", "Chunks, as of the leader's last complete scan");
const CHUNKS_MISPLACED: Name = Name(
    "mooseng_master_chunks_misplaced",
    "Chunks with a copy on a chunkserver without the labels of their storage class, as of the last complete scan",
);
const CHUNKS_ENDANGERED: Name = Name(
    "mooseng_master_chunks_endangered",
    "Chunks with fewer reachable copies than wanted, as of the last complete scan",
);
const CHUNKS_UNAVAILABLE: Name = Name(
    "mooseng_master_chunks_unavailable",
    "Chunks without a reachable copy, as of the last complete scan",
);
const SEALS_WAITING: Name =
    Name("mooseng_master_seals_waiting", "Seals that chunkservers have yet to hear of");
const COPIES_WAITING: Name =
    Name("mooseng_master_copies_waiting", "Chunks that wait for a copy: repair, draining, rebalancing");
const COPIES_UNDER_WAY: Name = Name("mooseng_master_copies_under_way", "Copies that are being made");
const ENDANGERED_OLDEST_SECONDS: Name = Name(
    "mooseng_master_endangered_oldest_seconds",
    "Seconds for which the chunk that has been endangered longest has been so",
);
const CHUNKS_DEAD: Name =
    Name("mooseng_master_chunks_dead", "Chunks that nothing uses, whose copies are still to be deleted");
const CHUNK_BYTES: Name =
    Name("mooseng_master_chunk_bytes", "Bytes of sealed chunks, as of the last complete scan");
const CHUNK_BYTES_LIVE: Name = Name(
    "mooseng_master_chunk_bytes_live",
    "Bytes of sealed chunks that extents name, as of the last complete scan",
);
const COPIES_MADE: Name = Name("mooseng_master_copies_made", "Copies made by house-keeping");
const COPIED_BYTES: Name = Name("mooseng_master_copied_bytes", "Bytes copied by house-keeping");
const COPIES_FAILED: Name = Name("mooseng_master_copies_failed", "Copies that house-keeping couldn't make");
const COPIES_DROPPED: Name =
    Name("mooseng_master_copies_dropped", "Copies dropped by house-keeping, once there were enough others");
const CHUNKS_BURIED: Name =
    Name("mooseng_master_chunks_buried", "Chunks that nothing used any more and that were given up");
const CHUNKS_REWRITTEN: Name = Name(
    "mooseng_master_chunks_rewritten",
    "Chunks of which little was still used and that were made into others",
);
const REWRITTEN_BYTES: Name =
    Name("mooseng_master_rewritten_bytes", "Bytes of files that were moved into other chunks for that");
const REWRITES_FAILED: Name =
    Name("mooseng_master_rewrites_failed", "Rewrites that failed and are tried again");
const REWRITES_UNDER_WAY: Name =
    Name("mooseng_master_rewrites_under_way", "Chunks that are being made of others");
const STAGED_BYTES: Name = Name(
    "mooseng_master_staged_bytes",
    "Bytes of small writes to large files that wait to be moved into chunks",
);
const DESTAGED_BYTES: Name =
    Name("mooseng_master_destaged_bytes", "Bytes of those that were moved into chunks");
const DESTAGED_CHUNKS: Name = Name("mooseng_master_destaged_chunks", "Chunks that were made of them");
const DESTAGES_FAILED: Name =
    Name("mooseng_master_destages_failed", "Chunks that couldn't be made of them and are tried again");
const CHUNKS_MERGED: Name =
    Name("mooseng_master_chunks_merged", "Small chunks that were made into larger ones");
const JOINED_EXTENTS: Name =
    Name("mooseng_master_joined_extents", "Extents of files that had too many and that were joined");
const JOINED_BYTES: Name = Name("mooseng_master_joined_bytes", "Bytes of files that were moved for that");
const PARTED_BYTES: Name = Name(
    "mooseng_master_parted_bytes",
    "Bytes of files that were moved because they shared a chunk of another storage class",
);
const PACKABLE_FILES: Name = Name(
    "mooseng_master_packable_files",
    "Files whose data is inline and may be packed into shared chunks, as of the last complete scan",
);
const PACKABLE_BYTES: Name = Name("mooseng_master_packable_bytes", "About how many bytes these have");
const PACKED_BYTES: Name =
    Name("mooseng_master_packed_bytes", "Bytes of small files that were packed into shared chunks");
const PACKED_CHUNKS: Name = Name("mooseng_master_packed_chunks", "Chunks that were made of them");
const PACKS_FAILED: Name =
    Name("mooseng_master_packs_failed", "Chunks that couldn't be made of them and are tried again");
const REAPED: Name = Name("mooseng_master_inodes_reaped", "Inodes without name or open that were freed");
const TRASH_FILES: Name = Name("mooseng_master_trash_files", "Deleted files that can still be restored");
const TRASH_BYTES: Name = Name("mooseng_master_trash_bytes", "Bytes that their extents cover");
const TRASH_EXPIRED: Name =
    Name("mooseng_master_trash_expired", "Files that left the trash because their time there was over");
const TRASH_RESTORED: Name = Name("mooseng_master_trash_restored", "Files that were restored from the trash");
const LAPSED: Name = Name("mooseng_master_sessions_lapsed", "Sessions whose lease ran out");
const LOG_REPLAYED: Name = Name(
    "mooseng_master_log_replayed",
    "Entries of volumes' logs that came from their home and were replayed here",
);
const HELD_BACK: Name = Name(
    "mooseng_master_held_back",
    "Answers that waited until what others had changed was in the volume's sync set",
);
const NEAR_SESSIONS: Name =
    Name("mooseng_master_near_sessions", "Mounts of this region that read its replica under promises");
const NEAR_PROMISES: Name =
    Name("mooseng_master_near_promises", "Facts of the replica that they are promised, counted for each");
const NEAR_GRANTED: Name =
    Name("mooseng_master_near_granted", "Facts of the replica that were promised with an answer");
const NEAR_RECALLS: Name = Name(
    "mooseng_master_near_recalls",
    "Promises on the replica that were taken back by a notice, for entries of the log that were replayed",
);
const CHUNKS_FETCHED: Name =
    Name("mooseng_master_chunks_fetched", "Chunks that were copied here from their volume's home");
const BYTES_FETCHED: Name = Name("mooseng_master_bytes_fetched", "Bytes of those chunks");
const LEADERSHIPS: Name =
    Name("mooseng_master_leaderships", "Times that this master began to serve as the leader");

const STATE_BYTES_FREE: Name =
    Name("mooseng_master_state_bytes_free", "Free bytes on the disk of `state_dir`");
const LOCK_WAITS: Name = Name("mooseng_master_lock_waits", "Locks that are waited for");
const QUOTAS: Name = Name("mooseng_master_quotas", "Accounts whose limits are enforced");
const QUOTA_REFUSALS: Name =
    Name("mooseng_master_quota_refusals", "Changes that were refused for want of room in a quota");
const ESCROW_BYTES: Name = Name(
    "mooseng_master_escrow_bytes",
    "Bytes of limited accounts that mounts are promised for what they buffer",
);
const RECALLS: Name =
    Name("mooseng_master_recalls", "Recalls of promises that were sent, repeated ones included");

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodCode {
    method: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeRegion {
    volume: u32,
    region: String,
}

/// A master's metrics.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<Method, Counter>,
    errors: Family<MethodCode, Counter>,
    seconds: Family<Method, Histogram>,
    replica_age: Family<VolumeRegion, Gauge<f64, AtomicU64>>,
    replica_log_bytes: Family<VolumeRegion, Gauge>,
    /// 1 while serving as the leader.
    pub leading: Gauge,
    /// Raft's term.
    pub term: Gauge,
    /// Whether this master leads the global group.
    pub global_leading: Gauge,
    /// The global group's term.
    pub global_term: Gauge,
    /// The version of what is agreed on.
    pub agreed_version: Gauge,
    /// The cluster's feature level.
    pub feature_level: Gauge,
    /// See [`crate::revocations`].
    pub revocations: Gauge,
    /// Its version.
    pub revocations_version: Gauge,
    /// Whether the region holds its lease.
    pub lease_held: Gauge,
    /// Sessions.
    pub sessions: Gauge,
    /// Chunkservers alive.
    pub chunkservers_alive: Gauge,
    /// Chunks.
    pub chunks: Gauge,
    /// Endangered ones.
    pub chunks_endangered: Gauge,
    /// Chunks with a copy on a chunkserver without the labels of their storage class.
    pub chunks_misplaced: Gauge,
    /// Unavailable ones.
    pub chunks_unavailable: Gauge,
    /// Locks that are waited for.
    pub lock_waits: Gauge,
    /// Free bytes on the disk of `state_dir`.
    pub state_bytes_free: Gauge,
    /// Accounts with limits.
    pub quotas: Gauge,
    /// Changes that a quota refused.
    pub quota_refusals: Counter,
    /// Bytes promised to mounts.
    pub escrow_bytes: Gauge,
    /// Seals waiting.
    pub seals_waiting: Gauge,
    /// Chunks that wait for a copy.
    pub copies_waiting: Gauge,
    /// Copies being made.
    pub copies_under_way: Gauge,
    /// Age of the oldest danger.
    pub endangered_oldest_seconds: Gauge,
    /// Dead chunks.
    pub chunks_dead: Gauge,
    /// Bytes of sealed chunks.
    pub chunk_bytes: Gauge,
    /// Those that are used.
    pub chunk_bytes_live: Gauge,
    /// Copies made.
    pub copies_made: Counter,
    /// Their bytes.
    pub copied_bytes: Counter,
    /// Copies that failed.
    pub copies_failed: Counter,
    /// Copies dropped.
    pub copies_dropped: Counter,
    /// Chunks buried.
    pub chunks_buried: Counter,
    /// Chunks rewritten.
    pub chunks_rewritten: Counter,
    /// Bytes moved for that.
    pub rewritten_bytes: Counter,
    /// Rewrites that failed.
    pub rewrites_failed: Counter,
    /// Rewrites under way.
    pub rewrites_under_way: Gauge,
    /// Bytes of small writes to large files that wait for a chunk.
    pub staged_bytes: Gauge,
    /// Bytes moved into chunks.
    pub destaged_bytes: Counter,
    /// Chunks made of them.
    pub destaged_chunks: Counter,
    /// Chunks that couldn't be made.
    pub destages_failed: Counter,
    /// Small chunks merged.
    pub chunks_merged: Counter,
    /// Extents joined.
    pub joined_extents: Counter,
    /// Bytes moved for that.
    pub joined_bytes: Counter,
    /// Bytes that left a chunk of another storage class.
    pub parted_bytes: Counter,
    /// Bytes of small files packed.
    pub packed_bytes: Counter,
    /// Chunks made of them.
    pub packed_chunks: Counter,
    /// Those that failed.
    pub packs_failed: Counter,
    /// Files that may be packed.
    pub packable_files: Gauge,
    /// Their bytes.
    pub packable_bytes: Gauge,
    /// Inodes reaped.
    pub reaped: Counter,
    /// Files in the trash.
    pub trash_files: Gauge,
    /// Their bytes.
    pub trash_bytes: Gauge,
    /// Files that expired there.
    pub trash_expired: Counter,
    /// Files restored.
    pub trash_restored: Counter,
    /// Sessions lapsed.
    pub lapsed: Counter,
    /// Leaderships begun.
    pub leaderships: Counter,
    /// Entries of other regions' logs that were replayed here.
    pub log_replayed: Counter,
    /// Answers that waited for the sync set, for others' sake.
    pub held_back: Counter,
    /// Readers of the replica.
    pub near_sessions: Gauge,
    /// What they are promised.
    pub near_promises: Gauge,
    /// What was promised to them.
    pub near_granted: Counter,
    /// What was taken back from them.
    pub near_recalls: Counter,
    /// Chunks that were copied here from their volume's home.
    pub chunks_fetched: Counter,
    /// Their bytes.
    pub bytes_fetched: Counter,
    /// Recalls sent.
    pub recalls: Counter,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            errors: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_05, 2.0, 18))),
            replica_age: Family::default(),
            replica_log_bytes: Family::default(),
            leading: Gauge::<i64, AtomicI64>::default(),
            term: Gauge::default(),
            global_leading: Gauge::default(),
            global_term: Gauge::default(),
            agreed_version: Gauge::default(),
            feature_level: Gauge::default(),
            revocations: Gauge::default(),
            revocations_version: Gauge::default(),
            lease_held: Gauge::default(),
            sessions: Gauge::default(),
            chunkservers_alive: Gauge::default(),
            chunks: Gauge::default(),
            chunks_endangered: Gauge::default(),
            chunks_misplaced: Gauge::default(),
            chunks_unavailable: Gauge::default(),
            seals_waiting: Gauge::default(),
            lock_waits: Gauge::default(),
            state_bytes_free: Gauge::default(),
            quotas: Gauge::default(),
            quota_refusals: Counter::default(),
            escrow_bytes: Gauge::default(),
            copies_waiting: Gauge::default(),
            copies_under_way: Gauge::default(),
            endangered_oldest_seconds: Gauge::default(),
            chunks_dead: Gauge::default(),
            chunk_bytes: Gauge::default(),
            chunk_bytes_live: Gauge::default(),
            copies_made: Counter::default(),
            copied_bytes: Counter::default(),
            copies_failed: Counter::default(),
            copies_dropped: Counter::default(),
            chunks_buried: Counter::default(),
            chunks_rewritten: Counter::default(),
            rewritten_bytes: Counter::default(),
            rewrites_failed: Counter::default(),
            rewrites_under_way: Gauge::default(),
            staged_bytes: Gauge::default(),
            destaged_bytes: Counter::default(),
            destaged_chunks: Counter::default(),
            destages_failed: Counter::default(),
            chunks_merged: Counter::default(),
            joined_extents: Counter::default(),
            joined_bytes: Counter::default(),
            parted_bytes: Counter::default(),
            packed_bytes: Counter::default(),
            packed_chunks: Counter::default(),
            packs_failed: Counter::default(),
            packable_files: Gauge::default(),
            packable_bytes: Gauge::default(),
            reaped: Counter::<u64, AtomicU64>::default(),
            trash_files: Gauge::default(),
            trash_bytes: Gauge::default(),
            trash_expired: Counter::default(),
            trash_restored: Counter::default(),
            lapsed: Counter::default(),
            leaderships: Counter::default(),
            log_replayed: Counter::default(),
            held_back: Counter::default(),
            near_sessions: Gauge::default(),
            near_promises: Gauge::default(),
            near_granted: Counter::default(),
            near_recalls: Counter::default(),
            chunks_fetched: Counter::default(),
            bytes_fetched: Counter::default(),
            recalls: Counter::default(),
        };
        let m = metrics.clone();
        registry.register(REQUESTS.0, REQUESTS.1, m.requests);
        registry.register(ERRORS.0, ERRORS.1, m.errors);
        registry.register(SECONDS.0, SECONDS.1, m.seconds);
        registry.register(REPLICA_AGE_SECONDS.0, REPLICA_AGE_SECONDS.1, m.replica_age);
        registry.register(REPLICA_LOG_BYTES.0, REPLICA_LOG_BYTES.1, m.replica_log_bytes);
        let gauges = [
            (LEADING, m.leading),
            (TERM, m.term),
            (GLOBAL_LEADING, m.global_leading),
            (GLOBAL_TERM, m.global_term),
            (AGREED_VERSION, m.agreed_version),
            (FEATURE_LEVEL, m.feature_level),
            (REVOCATIONS, m.revocations),
            (REVOCATIONS_VERSION, m.revocations_version),
            (LEASE_HELD, m.lease_held),
            (NEAR_SESSIONS, m.near_sessions),
            (NEAR_PROMISES, m.near_promises),
            (SESSIONS, m.sessions),
            (CHUNKSERVERS_ALIVE, m.chunkservers_alive),
            (CHUNKS, m.chunks),
            (CHUNKS_ENDANGERED, m.chunks_endangered),
            (CHUNKS_MISPLACED, m.chunks_misplaced),
            (CHUNKS_UNAVAILABLE, m.chunks_unavailable),
            (LOCK_WAITS, m.lock_waits),
            (STATE_BYTES_FREE, m.state_bytes_free),
            (QUOTAS, m.quotas),
            (ESCROW_BYTES, m.escrow_bytes),
            (SEALS_WAITING, m.seals_waiting),
            (COPIES_WAITING, m.copies_waiting),
            (COPIES_UNDER_WAY, m.copies_under_way),
            (ENDANGERED_OLDEST_SECONDS, m.endangered_oldest_seconds),
            (CHUNKS_DEAD, m.chunks_dead),
            (CHUNK_BYTES, m.chunk_bytes),
            (CHUNK_BYTES_LIVE, m.chunk_bytes_live),
            (REWRITES_UNDER_WAY, m.rewrites_under_way),
            (STAGED_BYTES, m.staged_bytes),
            (PACKABLE_FILES, m.packable_files),
            (PACKABLE_BYTES, m.packable_bytes),
            (TRASH_FILES, m.trash_files),
            (TRASH_BYTES, m.trash_bytes),
        ];
        let house = [
            (COPIES_MADE, m.copies_made),
            (COPIED_BYTES, m.copied_bytes),
            (COPIES_FAILED, m.copies_failed),
            (COPIES_DROPPED, m.copies_dropped),
            (CHUNKS_BURIED, m.chunks_buried),
            (CHUNKS_REWRITTEN, m.chunks_rewritten),
            (REWRITTEN_BYTES, m.rewritten_bytes),
            (REWRITES_FAILED, m.rewrites_failed),
            (DESTAGED_BYTES, m.destaged_bytes),
            (DESTAGED_CHUNKS, m.destaged_chunks),
            (DESTAGES_FAILED, m.destages_failed),
            (CHUNKS_MERGED, m.chunks_merged),
            (JOINED_EXTENTS, m.joined_extents),
            (JOINED_BYTES, m.joined_bytes),
            (PARTED_BYTES, m.parted_bytes),
            (PACKED_BYTES, m.packed_bytes),
            (PACKED_CHUNKS, m.packed_chunks),
            (PACKS_FAILED, m.packs_failed),
        ];
        for (name, counter) in house {
            registry.register(name.0, name.1, counter);
        }
        for (name, gauge) in gauges {
            registry.register(name.0, name.1, gauge);
        }
        let counters = [
            (REAPED, m.reaped),
            (TRASH_EXPIRED, m.trash_expired),
            (TRASH_RESTORED, m.trash_restored),
            (LAPSED, m.lapsed),
            (LEADERSHIPS, m.leaderships),
            (LOG_REPLAYED, m.log_replayed),
            (HELD_BACK, m.held_back),
            (NEAR_GRANTED, m.near_granted),
            (NEAR_RECALLS, m.near_recalls),
            (CHUNKS_FETCHED, m.chunks_fetched),
            (BYTES_FETCHED, m.bytes_fetched),
            (RECALLS, m.recalls),
            (QUOTA_REFUSALS, m.quota_refusals),
        ];
        for (name, counter) in counters {
            registry.register(name.0, name.1, counter);
        }
        metrics
    }

    /// For how many seconds a region has lacked what it lacks of a volume, and how many bytes of the log that is; none where nobody knows, or others are to tell.
    pub fn replica_behind(&self, volume: VolumeId, region: &str, age: Option<f64>, bytes: Option<u64>) {
        let of = VolumeRegion { volume: volume.0.into(), region: region.to_owned() };
        match age {
            Some(age) => {
                self.replica_age.get_or_create(&of).set(age);
            }
            None => {
                self.replica_age.remove(&of);
            }
        }
        match bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)) {
            Some(bytes) => {
                self.replica_log_bytes.get_or_create(&of).set(bytes);
            }
            None => {
                self.replica_log_bytes.remove(&of);
            }
        }
    }

    /// A request was answered.
    pub fn answered(&self, method: &'static str, error: Option<&'static str>, seconds: f64) {
        self.requests.get_or_create(&Method { method }).inc();
        self.seconds.get_or_create(&Method { method }).observe(seconds);
        if let Some(code) = error {
            self.errors.get_or_create(&MethodCode { method, code }).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_and_documented() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.answered("Renew", Some("BUSY"), 0.1);
        metrics.replica_behind(VolumeId(7), "b", Some(1.5), Some(300));
        metrics.replica_behind(VolumeId(7), "c", Some(1.5), Some(300));
        metrics.replica_behind(VolumeId(7), "c", None, None);
        metrics.replica_behind(VolumeId(7), "d", Some(2.5), Some(300));
        metrics.replica_behind(VolumeId(7), "d", None, Some(400));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics/master.md"))
                .unwrap();
        for Name(name, meaning) in NAMES {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name} isn't registered");
            assert!(
                page.contains(&format!("| `{name}` | {meaning} |")),
                "{name} isn't in docs/metrics/master.md"
            );
        }
        let age = "mooseng_master_replica_age_seconds{volume=\"7\",region=\"b\"} 1.5";
        assert!(text.contains(age) && !text.contains("region=\"c\""), "{text}");
        let bytes = "mooseng_master_replica_log_bytes{volume=\"7\",region=\"d\"} 400";
        let unknown = "mooseng_master_replica_age_seconds{volume=\"7\",region=\"d\"}";
        assert!(text.contains(bytes) && !text.contains(unknown), "{text}");
        assert_eq!(text.matches("# TYPE ").count(), NAMES.len());
        assert_eq!(page.lines().filter(|l| l.starts_with("| `")).count(), NAMES.len());
    }
}
