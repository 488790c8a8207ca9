//! Regions that share volumes: the home sends its log, the others keep replicas and are read there.
//!
//! ```text
//!  home's leader:    Tail, store --ship--> LogPush --> replica's leader: receive --> the same records, place kept with them
//!                    serve <-- VolumePage, LogAsk ---- copy (a volume that isn't here yet)
//!  client elsewhere: NearRead --> near (what was replayed) ; changes, and reads that promise --> home (NOT_HOME says where)
//! ```
//! - [`ship`]: what a home's leader does. [`serve`]: what it answers to those who copy.
//! - [`copy`]: what a replica's leader does besides. [`receive`]: how it takes the log in.
//! - [`complete`]: where a replica is complete. [`sync`]: what waits for the sync set of a `geo` volume, and who is in it.
//! - [`chunks`]: how the bytes come that the log names.
//! - [`near`]: reads of a replica; [`near_promises`]: what is promised of it.
//! - [`stand`]: how the region stands when the volume's home is lost; a home that begins, one that ends, one that comes back.
//! - [`joins`]: volumes that are made and deleted. [`let_go`], [`may_go`]: regions that are taken out of a volume.
//! - [`classes`]: volumes' copies of the storage classes of the cluster; [`class_commands`]: what administrators ask of those.
//! - [`moving`]: planned moves of the home. [`leased`]: what a home's leader puts down for the next one: that it is to need its region's lease, that it keeps a sync set.
//! - `whereabouts`: where a volume is at home, and what is refused elsewhere.
//! - [`seat`]: what is kept in memory of one volume. [`written`]: when what its log holds was written, by which it is known how old what a region lacks is.
//! - [`losses`]: account of what failovers lost, and of what is put aside here.
//! - [`verify`]: home and replica compared by hashes, and [`verify_data`] the bytes of their chunks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mooseng_global::View;
use mooseng_ports::clock::BootTime;
use mooseng_region::fetching::Aside;
use mooseng_region::near::Totals;
use mooseng_replica::needs::Needs;
use mooseng_replica::unsynced::Unsynced;
use mooseng_replica::{ReplicaError, Tail};
use mooseng_schema::log::{LogPosition, ReplicaRecord};
use mooseng_store::StoreError;
use mooseng_transport::{CallFailure, Peer, call_error};
use mooseng_wire::admin;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::geo::{Hint, Place};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Epoch, Role, VolumeId};
use prost::Message;
use tokio::sync::{Notify, watch};

use crate::errors::denied;
use crate::master::Master;

pub mod chunks;
pub mod class_commands;
pub mod classes;
pub mod complete;
pub mod copy;
pub mod deleted;
mod fetch;
mod giving_up;
mod growing;
pub mod joins;
pub mod lag;
pub mod leased;
pub mod let_go;
pub mod losses;
pub mod may_go;
pub mod moving;
pub mod near;
pub mod near_promises;
pub mod push;
pub mod receive;
mod seat;
pub mod serve;
pub mod ship;
pub mod stand;
pub mod sync;
pub mod verify;
pub mod verify_data;
mod whereabouts;
mod written;

use seat::Seat;
pub use seat::{Replica, Shipped};
use whereabouts::{NEWS_WITHIN, agreed, home_of, known, not_home};
pub use whereabouts::{Whereabouts, at_home, elsewhere, is_alone, is_new, no_volume, place_of, there_is};
use written::Behind;

/// The volume that all others are joined in.
pub const ROOT_VOLUME: VolumeId = VolumeId(0);

/// Bytes of the newest entries that are kept in memory.
pub const TAIL_BYTES_MAX: usize = 16 << 20;

/// Chunks whose whereabouts at home are remembered at most.
const HINTS_MAX: usize = 4_096;

/// A master of another region gets this long to answer what takes a look into its memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a master keeps in memory about volumes that several regions have.
pub struct Geo {
    /// The newest entries of the logs that this region writes.
    pub tail: Arc<Tail>,
    /// What is agreed on about regions and volumes, where there is a global group.
    pub cluster: Option<watch::Receiver<Arc<View>>>,
    /// The root volume's seat, which each request looks at: none of them waits for a lock to find it.
    root: Arc<Seat>,
    /// Those of other volumes.
    others: Mutex<BTreeMap<VolumeId, Arc<Seat>>>,
    /// Chunks whose bytes aren't in this region, or weren't compared yet, and that nothing waits for.
    wanted: Mutex<Aside>,
    wanting: Notify,
    /// Where the home has said that chunks can be read, and where their bytes were sent here, until they are whole.
    hints: Mutex<BTreeMap<ChunkId, Hint>>,
    /// What readers of this region are promised of all replicas.
    near_totals: Arc<Totals>,
    /// The leaders of other regions, as far as they were found.
    leaders: Mutex<BTreeMap<String, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Geo {
    /// Nothing is known yet.
    pub fn new(tail: Arc<Tail>, cluster: Option<watch::Receiver<Arc<View>>>) -> Self {
        let near_totals = Arc::default();
        Self {
            tail,
            cluster,
            root: Arc::new(Seat::new(&near_totals)),
            others: Mutex::default(),
            wanted: Mutex::default(),
            wanting: Notify::new(),
            hints: Mutex::default(),
            near_totals,
            leaders: Mutex::default(),
        }
    }

    /// What is kept of a volume. For volumes that there are: whoever is asked by others looks first.
    fn seat(&self, volume: VolumeId) -> Arc<Seat> {
        match volume {
            ROOT_VOLUME => self.root.clone(),
            other => {
                let mut others = lock(&self.others);
                others.entry(other).or_insert_with(|| Arc::new(Seat::new(&self.near_totals))).clone()
            }
        }
    }

    /// How many readers of this region have sessions with its replicas, and how many promises they hold.
    pub fn near_counts(&self) -> (usize, usize) {
        (self.near_totals.sessions(), self.near_totals.promises())
    }

    /// What is agreed on now.
    pub fn view(&self) -> Option<Arc<View>> {
        self.cluster.as_ref().map(|cluster| cluster.borrow().clone())
    }

    /// What is known of the regions that have a volume of ours.
    pub fn shipped(&self, volume: VolumeId) -> BTreeMap<String, Shipped> {
        lock(&self.seat(volume).shipped).clone()
    }

    /// What is known of a replica here.
    pub fn replica(&self, volume: VolumeId) -> Replica {
        lock(&self.seat(volume).replica).clone()
    }

    /// A new leadership, or another part of this region in the volume: what another one knew may be wrong.
    pub fn forget(&self, volume: VolumeId) {
        let seat = self.seat(volume);
        seat.near.end();
        seat.forget();
        lock(&self.wanted).forget(volume);
        lock(&self.hints).retain(|chunk, _| chunk.volume() != volume);
        self.tail.unsynced(volume, Unsynced::reset);
        seat.moved.send_modify(|count| *count += 1);
    }

    /// Whether nothing of a home may be answered, for it is about to be moved.
    pub fn is_sealed(&self, volume: VolumeId) -> bool {
        *self.seat(volume).sealed.borrow()
    }

    /// This master isn't the leader of a home: others answer, or nobody.
    pub fn unseal(&self, volume: VolumeId) {
        self.seat(volume).sealed.send_replace(false);
    }

    /// This master isn't the leader of any home.
    pub fn unseal_all(&self) {
        self.root.sealed.send_replace(false);
        for seat in lock(&self.others).values() {
            seat.sealed.send_replace(false);
        }
    }

    /// There is no such volume any more.
    pub fn drop_seat(&self, volume: VolumeId) {
        if let Some(seat) = lock(&self.others).remove(&volume) {
            seat.near.end();
        }
    }

    /// Whether something of a volume that was cut off is kept here.
    pub fn has_salvage(&self, volume: VolumeId) -> bool {
        self.seat(volume).has_salvage()
    }

    /// A sealed chunk's bytes aren't in this region, or weren't compared with what they are to be. Beyond the bound the scan finds it again.
    pub fn want(&self, chunk: ChunkId) {
        if lock(&self.wanted).put(chunk) {
            self.wanting.notify_one();
        }
    }

    /// The one of them that came first: where they come faster than they are looked at, each is all the same.
    fn take_wanted(&self) -> Option<ChunkId> {
        lock(&self.wanted).take()
    }

    /// Of how many chunks of a volume a replica here lacks bytes, or hasn't compared them yet: of those that are sealed, and of those that its log names, whether they
    /// grow still or not.
    pub fn awaited(&self, volume: VolumeId) -> usize {
        let wanted: Vec<ChunkId> = lock(&self.wanted).of(volume).collect();
        let named = self.needs(volume, |needs| {
            // Some are both.
            let others = wanted.iter().filter(|chunk| !needs.lacks(**chunk, u64::MAX)).count();
            needs.len() + others
        });
        named.unwrap_or(wanted.len())
    }

    /// The newest place of a log that this leader writes.
    pub fn newest(&self, volume: VolumeId) -> LogPosition {
        let before = lock(&self.seat(volume).log).map(|(newest, _)| newest).unwrap_or_default();
        self.tail.newest(volume).unwrap_or_default().max(before)
    }

    /// What an answer of the home may show; nothing in particular where there is one region.
    pub fn shown(&self, volume: VolumeId) -> LogPosition {
        if self.cluster.is_some() { self.newest(volume) } else { LogPosition::default() }
    }

    /// Whether this leader knows where the log that it writes was when it began.
    fn begun(&self, volume: VolumeId) -> bool {
        lock(&self.seat(volume).log).is_some()
    }

    fn trimmed(&self, volume: VolumeId) -> LogPosition {
        lock(&self.seat(volume).log).map(|(_, trimmed)| trimmed).unwrap_or_default()
    }

    fn note_log(&self, volume: VolumeId, newest: LogPosition, trimmed: LogPosition) {
        *lock(&self.seat(volume).log) = Some((newest, trimmed));
    }

    /// Where it is known where the log was.
    fn note_trimmed(&self, volume: VolumeId, to: LogPosition) {
        if let Some((_, trimmed)) = lock(&self.seat(volume).log).as_mut() {
            *trimmed = to;
        }
    }

    fn note_shipped(&self, volume: VolumeId, region: &str, section: impl FnOnce(&mut Shipped)) {
        self.seat(volume).note_shipped(region, section);
    }

    /// What a replica lacks; none while that isn't known.
    fn needs<T>(&self, volume: VolumeId, section: impl FnOnce(&mut Needs) -> T) -> Option<T> {
        lock(&self.seat(volume).needs).as_mut().map(section)
    }

    /// What this picks of what some replica lacks, of each volume in its turn from the one behind `after` on.
    fn next_need(
        &self,
        after: VolumeId,
        pick: impl Fn(&mut Needs) -> Option<(ChunkId, u64)>,
    ) -> Option<(ChunkId, u64)> {
        let others: Vec<VolumeId> = lock(&self.others).keys().copied().collect();
        let all = std::iter::once(ROOT_VOLUME).chain(others);
        let (before, behind): (Vec<_>, Vec<_>) = all.partition(|volume| *volume <= after);
        let mut in_turn = behind.into_iter().chain(before);
        in_turn.find_map(|volume| self.needs(volume, &pick).flatten())
    }

    /// The home has said where chunks can be read. Of the volume of which most is known the oldest are forgotten first: new ones are written now.
    fn note_hints(&self, hints: Vec<Hint>) {
        let mut known = lock(&self.hints);
        for hint in hints {
            if hint.source.is_some() {
                known.insert(ChunkId(hint.chunk), hint);
            }
        }
        while let Some(beyond) = known.len().checked_sub(HINTS_MAX).filter(|beyond| *beyond > 0) {
            let mut of: BTreeMap<VolumeId, usize> = BTreeMap::new();
            known.keys().for_each(|chunk| *of.entry(chunk.volume()).or_default() += 1);
            let most = of.into_iter().max_by_key(|(_, count)| *count).map(|(volume, _)| volume);
            let is_of_it = |chunk: &&ChunkId| Some(chunk.volume()) == most;
            let oldest: Vec<ChunkId> = known.keys().filter(is_of_it).take(beyond).copied().collect();
            oldest.iter().for_each(|chunk| drop(known.remove(chunk)));
        }
    }

    fn needs_changed(&self, volume: VolumeId) {
        self.seat(volume).needed.send_modify(|count| *count += 1);
        self.wanting.notify_one();
    }

    fn note_replica(&self, volume: VolumeId, section: impl FnOnce(&mut Replica)) {
        self.seat(volume).note_replica(section);
    }

    /// Changes with a replica's place.
    pub fn moved(&self, volume: VolumeId) -> watch::Receiver<u64> {
        self.seat(volume).moved.subscribe()
    }
}

/// How far the regions are that have the volume and aren't its home, as far as this master knows.
pub fn replicas(master: &Master, volume: VolumeId) -> Vec<admin::Replica> {
    let now = master.clock.boot();
    if master.serving_of(volume).is_err() {
        return Vec::new();
    }
    match place_of(master, volume) {
        Whereabouts::Here(_) => {
            let replica = |(region, known): (String, Shipped)| {
                let complete = known.complete_at();
                let lacking = lacking(master, volume, &known, now);
                // Also while it isn't known where it is.
                let behind = behind(master, volume, known.at.unwrap_or_default(), now);
                admin::Replica {
                    region,
                    epoch: known.at.map_or(0, |at| at.epoch.0),
                    version: known.at.map_or(0, |at| at.version),
                    copying: known.copying,
                    behind_ms: behind.map(|behind| moving::millis(behind.age)),
                    chunks_awaited: 0,
                    trouble: known.trouble,
                    complete: complete.map(log_place),
                    complete_behind_ms: lacking.map(|lacking| moving::millis(lacking.age)),
                    complete_behind_longer: lacking.is_some_and(|lacking| lacking.longer),
                    log_bytes_behind: complete.map(|_| lacking.map_or(0, |lacking| lacking.bytes)),
                    log_bytes_more: lacking.is_some_and(|lacking| lacking.more),
                }
            };
            master.geo.shipped(volume).into_iter().map(replica).collect()
        }
        Whereabouts::Elsewhere => {
            let replica = master.geo.replica(volume);
            let at = replica.record.as_ref().map(ReplicaRecord::position).unwrap_or_default();
            let complete = replica.complete();
            let lacks = complete.is_some_and(|complete| complete < replica.newest);
            let age = replica.age.complete_at_most(now).filter(|_| lacks);
            vec![admin::Replica {
                region: master.config.region.clone(),
                epoch: at.epoch.0,
                version: at.version,
                copying: replica.readable().is_none(),
                behind_ms: replica.age.at_most(now).filter(|_| at < replica.newest).map(moving::millis),
                chunks_awaited: master.geo.awaited(volume) as u64,
                trouble: String::new(),
                complete: complete.map(log_place),
                complete_behind_ms: lacks.then(|| age.map_or(0, moving::millis)),
                // What it had when its home was heard first isn't known to be of any time.
                complete_behind_longer: lacks && age.is_none(),
                log_bytes_behind: None,
                log_bytes_more: false,
            }]
        }
        Whereabouts::Closed(_) | Whereabouts::Nowhere => Vec::new(),
    }
}

/// What lies behind a place of a log that this leader writes; none where nothing does.
fn behind(master: &Master, volume: VolumeId, at: LogPosition, now: BootTime) -> Option<Behind> {
    let newest = master.geo.newest(volume);
    lock(&master.geo.seat(volume).written).behind(now, at, newest)
}

/// What a region lacks of a volume that is at home here, data included: what would be lost if it were the next home. None where it lacks nothing, or nobody
/// knows where it is complete.
fn lacking(master: &Master, volume: VolumeId, known: &Shipped, now: BootTime) -> Option<Behind> {
    behind(master, volume, known.complete_at()?, now)
}

/// Refuses a peer that isn't a master of a region of this cluster; with a region, of that one.
fn allow_master(master: &Master, peer: &Peer, region: Option<&str>) -> Result<(), CallError> {
    let identity = &peer.identity;
    if identity.cluster != master.identity.cluster || identity.role != Role::Master {
        return Err(denied(format!("{identity} isn't a master of the cluster {}", master.identity.cluster)));
    }
    let known = master.geo.view().is_some_and(|view| view.regions.contains_key(&identity.region));
    if !known {
        return Err(denied(format!("the cluster has no region {}, of which {identity} is", identity.region)));
    }
    match region {
        Some(region) if region != identity.region => {
            Err(denied(format!("only masters of {region} may ask for this, and {identity} is none")))
        }
        _ => Ok(()),
    }
}

/// Asks the leader of another region.
async fn ask<Q: Message, A: Message + Default>(
    master: &Master,
    region: &str,
    method: Method,
    message: &Q,
) -> Result<A, String> {
    let view = master.geo.view().ok_or("there is no global group")?;
    let masters = view.regions.get(region).ok_or_else(|| format!("there is no region {region}"))?;
    let known = lock(&master.geo.leaders).get(region).cloned();
    let mut candidates: Vec<String> =
        known.into_iter().chain(masters.masters.iter().map(|m| m.address.clone())).collect();
    let (mut tried, mut last) = (Vec::new(), format!("the region {region} has no masters"));
    // Whoever was found to lead may have been named twice.
    while !candidates.is_empty() && tried.len() <= masters.masters.len() + 1 {
        let address = candidates.remove(0);
        if tried.contains(&address) {
            continue;
        }
        let link = master.link(Role::Master, &address);
        match link.request::<Q, A>(method, message, ANSWER_WITHIN).await {
            Ok(answer) => {
                lock(&master.geo.leaders).insert(region.to_owned(), address);
                return Ok(answer);
            }
            Err(CallFailure::Remote(error)) if error.code() == ErrorCode::NotLeader => {
                last = format!("{address}: {}", error.message);
                if !error.leader.is_empty() {
                    candidates.insert(0, error.leader);
                }
            }
            Err(failure) => last = format!("{address}: {failure}"),
        }
        tried.push(address);
    }
    lock(&master.geo.leaders).remove(region);
    Err(last)
}

fn log_place(at: LogPosition) -> admin::LogPlace {
    admin::LogPlace { epoch: at.epoch.0, version: at.version }
}

fn place(at: LogPosition) -> Option<Place> {
    Some(Place { epoch: at.epoch.0, version: at.version })
}

fn position(place: Option<&Place>) -> LogPosition {
    place.map_or_else(LogPosition::default, |place| LogPosition::new(Epoch(place.epoch), place.version))
}

fn failed(master: &Master, error: &ReplicaError) -> CallError {
    let code = match error {
        ReplicaError::Store(StoreError::NotLeader | StoreError::Failed(_)) => return master.not_leader(),
        ReplicaError::Store(StoreError::CommitUnknown) => ErrorCode::OutcomeUnknown,
        ReplicaError::Store(_) | ReplicaError::Gap { .. } | ReplicaError::NotLogged | ReplicaError::LetGo => {
            ErrorCode::Unavailable
        }
        ReplicaError::Trimmed { .. } | ReplicaError::NotOfTheLog(_) => ErrorCode::NotFound,
        ReplicaError::Refused(_) => ErrorCode::StaleEpoch,
        ReplicaError::Schema(_) | ReplicaError::NotUndoable { .. } => ErrorCode::Internal,
        ReplicaError::Senseless(_) => ErrorCode::InvalidRequest,
    };
    call_error(code, error.to_string())
}

/// Where a jittered pause is due before something is tried again.
fn pause(least: Duration) -> Duration {
    least.mul_f64(rand::Rng::random_range(&mut rand::rng(), 1.0..1.5))
}
