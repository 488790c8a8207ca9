//! The chunkservers that report to this master.
//!
//! Every master keeps a registry of its own from the heartbeats it gets, so that a new leader's is warm. It is never persisted: where a
//! chunk's copies lie is in the store, what a chunkserver says of itself is here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_wire::{ChunkId, VolumeId};

use crate::class::Labels;
use crate::placement::Candidate;

/// Bounds and times of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Alive while the last heartbeat is younger.
    pub alive_within: Duration,
    /// Lost once it is older; between the two a chunkserver is suspect.
    pub lost_after: Duration,
    /// Most chunkservers.
    pub chunkservers_max: usize,
    /// Most chunks of one chunkserver that are remembered.
    pub inventory_max: usize,
    /// How often an inventory is asked for again.
    pub inventory_every: Duration,
    /// A chunkserver gone for longer is forgotten.
    pub forget_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            alive_within: Duration::from_secs(3),
            lost_after: Duration::from_secs(30),
            chunkservers_max: 1_000,
            inventory_max: 4_000_000,
            inventory_every: Duration::from_secs(600),
            forget_after: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// How a chunkserver stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// Its heartbeats come.
    Alive,
    /// Some are missing.
    Suspect,
    /// None has come for long.
    Lost,
}

/// A data directory, as its chunkserver reports it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DiskFacts {
    /// Where.
    pub path: String,
    /// Its identity file's id.
    pub id: String,
    /// All bytes.
    pub bytes_total: u64,
    /// Bytes that chunks may still take, the reserve taken off.
    pub bytes_free: u64,
    /// Bytes in chunks.
    pub bytes_used: u64,
    /// Chunks on it.
    pub chunks: u64,
    /// Takes new chunks.
    pub writable: bool,
    /// What is wrong with it; empty where nothing is.
    pub error: String,
    /// For how many seconds it hasn't answered, where it hangs; 0 where it does.
    pub hangs_s: u64,
}

impl DiskFacts {
    /// Whether new chunks may go there.
    fn takes(&self) -> bool {
        self.writable && self.hangs_s == 0
    }
}

/// A heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Beat {
    /// The chunkserver's name.
    pub name: String,
    /// Where it serves.
    pub address: String,
    /// Its zone.
    pub zone: String,
    /// Its rack.
    pub rack: String,
    /// Its labels; `host` names its machine where several chunkservers share one.
    pub labels: BTreeMap<String, String>,
    /// Its data directories.
    pub disks: Vec<DiskFacts>,
    /// Counts its starts.
    pub incarnation: u64,
    /// The newest home epoch that it has seen.
    pub highest_epoch: u64,
    /// Its certificate and revocation list, if it tells.
    pub credentials: Option<Credentials>,
}

/// A daemon's certificate, and the revocation list that it goes by.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Credentials {
    /// The certificate's start, in seconds since the Unix epoch.
    pub not_before_unix: i64,
    /// Its end.
    pub not_after_unix: i64,
    /// Of whom the list refuses.
    pub revocations_digest: String,
    /// How many that are.
    pub revocations: u64,
    /// Whether it is configured with a list.
    pub revocations_configured: bool,
    /// The version of those that the cluster has agreed on.
    pub agreed_version: u64,
    /// How many those are.
    pub agreed_revocations: u64,
}

/// A chunk's copy, as its chunkserver reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFacts {
    /// Bytes.
    pub length: u64,
    /// No more appends.
    pub sealed: bool,
    /// The epoch of its last append.
    pub epoch: u64,
    /// It can't be trusted: a block doesn't verify, or its file is damaged.
    pub corrupt: bool,
}

/// What changed with a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beaten {
    /// The chunkserver is new here, was restarted, or comes back from suspect or lost.
    pub came_back: bool,
    /// An inventory is wanted with the next heartbeat.
    pub want_inventory: bool,
}

/// Why a heartbeat is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeatRefused {
    /// A newer life of the same chunkserver reports already.
    #[error(
        "chunkserver {name} reports with start number {asked}, but start number {newest} has reported already. Two daemons share one name, or an old process still runs: stop it"
    )]
    OldIncarnation {
        /// Its name.
        name: String,
        /// The heartbeat's.
        asked: u64,
        /// The newest.
        newest: u64,
    },
    /// No room.
    #[error("{0} chunkservers are registered, which is the limit")]
    ChunkserversMax(usize),
}

/// One chunkserver.
#[derive(Clone, Debug)]
pub struct Chunkserver {
    /// Its newest heartbeat.
    pub beat: Beat,
    /// When that came.
    pub last_beat: BootTime,
    chunks: BTreeMap<ChunkId, CopyFacts>,
    /// The inventory that comes in pages, by its number.
    pages: Option<(u64, BTreeMap<ChunkId, CopyFacts>)>,
    pages_begun: BootTime,
    /// When the newest complete inventory was begun.
    inventory_at: Option<BootTime>,
}

impl Chunkserver {
    /// How it stands.
    pub fn liveness(&self, now: BootTime, limits: &Limits) -> Liveness {
        let silent = now.since(self.last_beat);
        if silent < limits.alive_within {
            Liveness::Alive
        } else if silent < limits.lost_after {
            Liveness::Suspect
        } else {
            Liveness::Lost
        }
    }

    /// Its machine: several chunkservers of one say so by a label.
    fn host(&self) -> &str {
        self.beat.labels.get("host").unwrap_or(&self.beat.name)
    }

    /// Its labels; its zone, rack and host are among them.
    pub fn labels(&self) -> Labels {
        let mut labels = self.beat.labels.clone();
        for (key, value) in [("zone", &*self.beat.zone), ("rack", &*self.beat.rack), ("host", self.host())] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        labels
    }

    /// Bytes that new chunks may take, on writable disks.
    pub fn bytes_free(&self) -> u64 {
        self.beat.disks.iter().filter(|d| d.takes()).fold(0, |sum, d| sum.saturating_add(d.bytes_free))
    }

    /// Bytes of its disks.
    pub fn bytes_total(&self) -> u64 {
        self.beat.disks.iter().fold(0, |sum, d| sum.saturating_add(d.bytes_total))
    }

    /// Chunks on its disks.
    pub fn chunks(&self) -> u64 {
        self.beat.disks.iter().fold(0, |sum, d| sum.saturating_add(d.chunks))
    }

    /// Whether any disk takes new chunks.
    pub fn writable(&self) -> bool {
        self.beat.disks.iter().any(DiskFacts::takes)
    }

    /// What its newest complete inventory says of a chunk.
    pub fn copy(&self, chunk: ChunkId) -> Option<CopyFacts> {
        self.chunks.get(&chunk).copied()
    }

    /// The copies of a volume's chunks that it reported, behind `after`.
    pub fn copies_of(
        &self,
        volume: VolumeId,
        after: Option<ChunkId>,
    ) -> impl Iterator<Item = (ChunkId, CopyFacts)> + '_ {
        let from = after.map_or(Bound::Included(ChunkId::new(volume, 0)), Bound::Excluded);
        let copies = self.chunks.range((from, Bound::Unbounded)).map(|(chunk, copy)| (*chunk, *copy));
        copies.take_while(move |(chunk, _)| chunk.volume() == volume)
    }

    /// The volumes of whose chunks it has copies.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> + '_ {
        let from = move |from: Option<VolumeId>| {
            let first = ChunkId::new(from?, 0);
            self.chunks.range(first..).next().map(|(chunk, _)| chunk.volume())
        };
        std::iter::successors(from(Some(VolumeId(0))), move |volume| {
            from(volume.0.checked_add(1).map(VolumeId))
        })
    }

    /// When its newest complete inventory was begun.
    pub fn inventory_at(&self) -> Option<BootTime> {
        self.inventory_at
    }
}

/// The chunkservers, by name.
#[derive(Debug, Default)]
pub struct Registry {
    limits: Limits,
    servers: BTreeMap<String, Chunkserver>,
    draining: BTreeSet<String>,
}

impl Registry {
    /// An empty registry.
    pub fn new(limits: Limits) -> Self {
        Self { limits, servers: BTreeMap::new(), draining: BTreeSet::new() }
    }

    /// Sets which chunkservers are being emptied: the store knows, a leader has read it.
    pub fn set_draining(&mut self, draining: BTreeSet<String>) {
        self.draining = draining;
    }

    /// Whether a chunkserver is being emptied.
    pub fn is_draining(&self, name: &str) -> bool {
        self.draining.contains(name)
    }

    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes a heartbeat in.
    pub fn beat(&mut self, now: BootTime, beat: Beat) -> Result<Beaten, BeatRefused> {
        self.forget(now);
        let known = self.servers.len();
        let Some(server) = self.servers.get_mut(&beat.name) else {
            if known >= self.limits.chunkservers_max {
                return Err(BeatRefused::ChunkserversMax(known));
            }
            let name = beat.name.clone();
            let server = Chunkserver {
                beat,
                last_beat: now,
                chunks: BTreeMap::new(),
                pages: None,
                pages_begun: now,
                inventory_at: None,
            };
            self.servers.insert(name, server);
            return Ok(Beaten { came_back: true, want_inventory: true });
        };
        let newest = server.beat.incarnation;
        if beat.incarnation < newest {
            return Err(BeatRefused::OldIncarnation { name: beat.name, asked: beat.incarnation, newest });
        }
        let restarted = beat.incarnation > newest;
        let came_back = restarted || server.liveness(now, &self.limits) != Liveness::Alive;
        if restarted {
            server.inventory_at = None;
            server.pages = None;
        }
        server.beat = beat;
        server.last_beat = now;
        let stale = |at: BootTime| now.since(at) >= self.limits.inventory_every;
        Ok(Beaten { came_back, want_inventory: server.inventory_at.is_none_or(stale) })
    }

    fn forget(&mut self, now: BootTime) {
        let after = self.limits.forget_after;
        self.servers.retain(|_, s| now.since(s.last_beat) < after);
    }

    /// Takes a page of an inventory in. Answers whether that completed it. What came of another `pass` before counts for nothing: it broke off, and what it told of may
    /// be gone since.
    pub fn inventory(
        &mut self,
        now: BootTime,
        name: &str,
        pass: u64,
        page: impl IntoIterator<Item = (ChunkId, CopyFacts)>,
        more: bool,
    ) -> bool {
        let most = self.limits.inventory_max;
        let Some(server) = self.servers.get_mut(name) else { return false };
        if server.pages.as_ref().is_none_or(|(of, _)| *of != pass) {
            server.pages = Some((pass, BTreeMap::new()));
            server.pages_begun = now;
        }
        let Some((_, pages)) = &mut server.pages else { return false };
        for (chunk, copy) in page {
            if pages.len() < most {
                pages.insert(chunk, copy);
            }
        }
        if more {
            return false;
        }
        server.chunks = server.pages.take().map(|(_, pages)| pages).unwrap_or_default();
        server.inventory_at = Some(server.pages_begun);
        true
    }

    /// Takes in what changed on a chunkserver since its last heartbeat. It is newer than the pages that came before.
    pub fn changed(&mut self, name: &str, copies: &[(ChunkId, CopyFacts)], gone: &[ChunkId]) {
        let most = self.limits.inventory_max;
        let Some(server) = self.servers.get_mut(name) else { return };
        let pages = server.pages.as_mut().map(|(_, pages)| pages);
        for chunks in std::iter::once(&mut server.chunks).chain(pages) {
            for (chunk, copy) in copies {
                if chunks.len() < most || chunks.contains_key(chunk) {
                    chunks.insert(*chunk, *copy);
                }
            }
            for chunk in gone {
                chunks.remove(chunk);
            }
        }
    }

    /// A chunkserver.
    pub fn get(&self, name: &str) -> Option<&Chunkserver> {
        self.servers.get(name)
    }

    /// How a chunkserver stands; an unknown one is lost.
    pub fn liveness(&self, name: &str, now: BootTime) -> Liveness {
        self.servers.get(name).map_or(Liveness::Lost, |s| s.liveness(now, &self.limits))
    }

    /// All chunkservers, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Chunkserver> {
        self.servers.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// The chunkservers as candidates for a placement.
    pub fn candidates(&self, now: BootTime) -> Vec<Candidate> {
        let candidate = |s: &Chunkserver| Candidate {
            labels: s.labels(),
            name: s.beat.name.clone(),
            zone: s.beat.zone.clone(),
            rack: s.beat.rack.clone(),
            host: s.host().to_owned(),
            bytes_free: s.bytes_free(),
            writable: s.writable(),
            draining: self.draining.contains(&s.beat.name),
            liveness: s.liveness(now, &self.limits),
        };
        self.servers.values().map(candidate).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn beat(name: &str, incarnation: u64) -> Beat {
        Beat { name: name.into(), incarnation, ..Beat::default() }
    }

    #[test]
    fn silence_makes_suspect_then_lost() {
        let mut r = Registry::new(Limits::default());
        r.beat(at(0), beat("a", 1)).unwrap();
        let table = [
            (0, Liveness::Alive),
            (2_999, Liveness::Alive),
            (3_000, Liveness::Suspect),
            (30_000, Liveness::Lost),
        ];
        for (ms, expected) in table {
            assert_eq!(r.liveness("a", at(ms)), expected, "after {ms} ms");
        }
        assert_eq!(r.liveness("b", at(0)), Liveness::Lost);
        assert!(r.beat(at(5_000), beat("a", 1)).unwrap().came_back);
        assert!(!r.beat(at(6_000), beat("a", 1)).unwrap().came_back);
    }

    #[test]
    fn an_inventory_is_wanted_at_first_after_a_restart_and_now_and_then() {
        let mut r = Registry::new(Limits::default());
        assert!(r.beat(at(0), beat("a", 1)).unwrap().want_inventory);
        let copy = CopyFacts { length: 5, sealed: true, epoch: 1, corrupt: false };
        assert!(!r.inventory(at(1), "a", 1, [(ChunkId(1), copy)], true));
        assert!(r.beat(at(2), beat("a", 1)).unwrap().want_inventory, "the first page isn't all");
        assert_eq!(r.get("a").unwrap().copy(ChunkId(1)), None);
        assert!(r.inventory(at(3), "a", 1, [(ChunkId(2), copy)], false));
        assert_eq!(r.get("a").unwrap().copy(ChunkId(1)), Some(copy));
        assert_eq!(r.get("a").unwrap().copy(ChunkId(2)), Some(copy));
        assert!(!r.beat(at(4), beat("a", 1)).unwrap().want_inventory);
        assert!(r.beat(at(600_001), beat("a", 1)).unwrap().want_inventory);
        assert!(r.beat(at(600_002), beat("a", 2)).unwrap().want_inventory);
        assert!(r.inventory(at(600_003), "a", 1, [], false));
        assert_eq!(r.get("a").unwrap().copy(ChunkId(1)), None, "a new inventory replaces the old one");
    }

    /// A disk was dropped in the middle of an inventory, which began anew: what was told of it before isn't there.
    #[test]
    fn an_inventory_that_broke_off_counts_for_nothing() {
        let mut r = Registry::new(Limits::default());
        r.beat(at(0), beat("a", 1)).unwrap();
        let copy = CopyFacts { length: 5, sealed: true, epoch: 1, corrupt: false };
        assert!(!r.inventory(at(1), "a", 1, [1, 2].map(|chunk| (ChunkId(chunk), copy)), true));
        assert!(!r.inventory(at(2), "a", 2, [(ChunkId(4), copy)], true));
        assert!(r.inventory(at(3), "a", 2, [(ChunkId(5), copy)], false));
        let server = r.get("a").unwrap();
        assert_eq!(
            [1, 2, 4, 5].map(|chunk| server.copy(ChunkId(chunk)).is_some()),
            [false, false, true, true]
        );
    }

    #[test]
    fn changes_between_inventories_count_at_once_and_stay() {
        let mut r = Registry::new(Limits::default());
        r.beat(at(0), beat("a", 1)).unwrap();
        let copy = |length| CopyFacts { length, sealed: true, epoch: 1, corrupt: false };
        r.inventory(at(1), "a", 1, [(ChunkId(1), copy(5)), (ChunkId(2), copy(5))], false);
        r.changed("a", &[(ChunkId(3), copy(7))], &[ChunkId(1)]);
        let known = |r: &Registry| {
            r.get("a").unwrap().copies_of(VolumeId(0), None).map(|(c, _)| c.0).collect::<Vec<_>>()
        };
        assert_eq!(known(&r), [2, 3]);
        // What changes while an inventory comes in pages is newer than the pages before, and older than none behind.
        r.inventory(at(2), "a", 1, [(ChunkId(2), copy(5)), (ChunkId(3), copy(7))], true);
        r.changed("a", &[(ChunkId(4), copy(1))], &[ChunkId(2)]);
        r.inventory(at(3), "a", 1, [(ChunkId(5), copy(1))], false);
        assert_eq!(known(&r), [3, 4, 5]);
        assert_eq!(r.get("a").unwrap().copies_of(VolumeId(0), Some(ChunkId(3))).count(), 2);
        let of = |volume| (ChunkId::new(VolumeId(volume), 5), copy(1));
        r.changed("a", &[of(2), of(u16::MAX)], &[]);
        let volumes: Vec<u16> = r.get("a").unwrap().volumes().map(|volume| volume.0).collect();
        assert_eq!(volumes, [0, 2, u16::MAX]);
        r.changed("nobody", &[], &[]);
    }

    #[test]
    fn an_older_life_is_refused() {
        let mut r = Registry::new(Limits::default());
        r.beat(at(0), beat("a", 2)).unwrap();
        assert!(matches!(r.beat(at(1), beat("a", 1)), Err(BeatRefused::OldIncarnation { .. })));
    }

    #[test]
    fn the_registry_is_bounded_and_forgets() {
        let mut r = Registry::new(Limits { chunkservers_max: 1, inventory_max: 1, ..Limits::default() });
        r.beat(at(0), beat("a", 1)).unwrap();
        assert_eq!(r.beat(at(0), beat("b", 1)), Err(BeatRefused::ChunkserversMax(1)));
        let copy = CopyFacts { length: 5, sealed: true, epoch: 1, corrupt: false };
        r.inventory(at(0), "a", 1, [(ChunkId(1), copy), (ChunkId(2), copy)], false);
        assert_eq!(r.get("a").unwrap().chunks.len(), 1);
        let late = at(Limits::default().forget_after.as_millis() as u64);
        r.beat(late, beat("b", 1)).unwrap();
        assert!(r.get("a").is_none());
    }

    #[test]
    fn only_writable_disks_count_as_free() {
        let mut r = Registry::new(Limits::default());
        let disk = |writable| DiskFacts { bytes_total: 10, bytes_free: 7, writable, ..DiskFacts::default() };
        r.beat(at(0), Beat { disks: vec![disk(true), disk(false)], ..beat("a", 1) }).unwrap();
        let a = &r.candidates(at(0))[0];
        assert_eq!((a.bytes_free, a.writable, a.host.as_str()), (7, true, "a"));
        let hangs = |hangs_s| DiskFacts { hangs_s, ..disk(true) };
        r.beat(at(0), Beat { disks: vec![hangs(0), hangs(6)], ..beat("a", 1) }).unwrap();
        assert_eq!(r.candidates(at(0))[0].bytes_free, 7);
        r.beat(at(0), Beat { disks: vec![hangs(6)], ..beat("a", 1) }).unwrap();
        assert!(!r.candidates(at(0))[0].writable, "nothing goes to a disk that hangs");
        let labels = Labels::from([("media".into(), "ssd".into()), ("zone".into(), "lies".into())]);
        r.beat(at(1), Beat { labels, zone: "1".into(), ..beat("a", 1) }).unwrap();
        let labels = r.candidates(at(1))[0].labels.clone();
        let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(pairs, ["host=a", "media=ssd", "rack=", "zone=1"]);
    }
}
