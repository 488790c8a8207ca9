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
//! - [`moving`]: planned moves of the home.
//! - [`losses`]: account of what failovers lost, and of what is put aside here.
//! - [`verify`]: home and replica compared by hashes, and [`verify_data`] the bytes of their chunks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mooseng_global::View;
use mooseng_ports::clock::BootTime;
use mooseng_replica::needs::Needs;
use mooseng_replica::unsynced::Unsynced;
use mooseng_replica::{ReplicaError, Tail};
use mooseng_schema::log::{LogPosition, ReplicaRecord};
use mooseng_store::StoreError;
use mooseng_transport::{CallFailure, Peer, call_error};
use mooseng_wire::admin;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::geo::{Hint, Home, Place, PutAside};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Epoch, Role, VolumeId};
use prost::Message;
use tokio::sync::{Notify, watch};

use crate::errors::denied;
use crate::master::{HOME_EPOCH, Master};

pub mod chunks;
pub mod complete;
pub mod copy;
mod fetch;
pub mod losses;
pub mod moving;
pub mod near;
pub mod near_promises;
pub mod push;
pub mod receive;
pub mod serve;
pub mod ship;
pub mod stand;
pub mod sync;
pub mod verify;
pub mod verify_data;

/// The one volume so far.
pub const ROOT_VOLUME: VolumeId = VolumeId(0);

/// Bytes of the newest entries that are kept in memory.
pub const TAIL_BYTES_MAX: usize = 16 << 20;

/// Addresses of other regions' masters that a client is told at most.
const ELSEWHERE_MAX: usize = 32;

/// Chunks that wait to be fetched at most.
const WANTED_MAX: usize = 100_000;

/// Chunks whose whereabouts at home are remembered at most.
const HINTS_MAX: usize = 4_096;

/// A master of another region gets this long to answer what takes a look into its memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a home's leader knows of a region that has a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shipped {
    /// It is here at least, durably.
    pub at: Option<LogPosition>,
    /// And the data that entries up to this place name is there, too.
    pub complete: Option<LogPosition>,
    /// When it was heard of last.
    pub heard: Option<BootTime>,
    /// It copies the volume still.
    pub copying: bool,
    /// Since when something waits for its acknowledgement; none while it has everything.
    pub behind_since: Option<BootTime>,
    /// Why it wasn't reached at last; empty where it was.
    pub trouble: String,
}

/// What a replica's leader knows of its volume.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// As it is on record; none before that was read.
    pub record: Option<ReplicaRecord>,
    /// The home's newest place, as far as it was told.
    pub newest: LogPosition,
    /// When the home was heard last.
    pub heard: Option<BootTime>,
    /// When everything that the home had told of was here last.
    pub whole_at: Option<BootTime>,
}

impl Replica {
    /// Where it can be read at; none while it is copied.
    pub fn readable(&self) -> Option<LogPosition> {
        let whole = |record: &&ReplicaRecord| record.copied_before.is_none() && !record.undoing;
        self.record.as_ref().filter(whole).map(ReplicaRecord::position)
    }
}

/// What a master keeps in memory about volumes that several regions have.
pub struct Geo {
    /// The newest entries of the logs that this region writes.
    pub tail: Arc<Tail>,
    /// What is agreed on about regions and volumes, where there is a global group.
    pub cluster: Option<watch::Receiver<Arc<View>>>,
    shipped: Mutex<BTreeMap<(VolumeId, String), Shipped>>,
    replicas: Mutex<BTreeMap<VolumeId, Replica>>,
    /// Of volumes at home here: the newest place before this leader, and up to where their logs were trimmed.
    logs: Mutex<BTreeMap<VolumeId, (LogPosition, LogPosition)>>,
    /// Changes with each replica's place.
    moved: watch::Sender<u64>,
    /// Who changes a replica: one at a time, in the order of asking.
    applying: tokio::sync::Mutex<()>,
    /// Something that was cut off is kept here, and with it whatever chunkservers have that no record names.
    salvaged: AtomicBool,
    /// What the home is told of it.
    put_aside: Mutex<Vec<PutAside>>,
    /// Chunks whose bytes aren't in this region.
    wanted: Mutex<BTreeSet<ChunkId>>,
    wanting: Notify,
    /// Of a replica: what its log names and isn't here; none until that was looked at.
    needs: Mutex<Option<Needs>>,
    /// Where the home has said that chunks can be read which grow still.
    hints: Mutex<BTreeMap<ChunkId, Hint>>,
    /// Of a home: where bytes are sent as they are appended.
    pushing: Mutex<push::Pushing>,
    /// Changes with each of them.
    needed: watch::Sender<u64>,
    /// Changes with what regions acknowledge.
    acknowledged: watch::Sender<u64>,
    /// Of a home: regions that are to be in the sync set. They are waited for like its members.
    joining: Mutex<BTreeSet<String>>,
    /// Of a replica: up to where the sync set has everything, as its home has told.
    told_synced: Mutex<LogPosition>,
    /// The home answers nothing, for it is about to be moved: it isn't known here who is the home.
    sealed: watch::Sender<bool>,
    /// Since when, the last time.
    stopped: Mutex<Option<tokio::time::Instant>>,
    /// Where moves are asked for, while this master leads the home.
    moves: Mutex<Option<tokio::sync::mpsc::Sender<moving::Ordered>>>,
    /// Of a replica: what readers of this region are promised.
    pub near: near_promises::NearPromises,
    /// The leaders of other regions, as far as they were found.
    leaders: Mutex<BTreeMap<String, String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Geo {
    /// Nothing is known yet.
    pub fn new(tail: Arc<Tail>, cluster: Option<watch::Receiver<Arc<View>>>) -> Self {
        Self {
            tail,
            cluster,
            shipped: Mutex::default(),
            replicas: Mutex::default(),
            logs: Mutex::default(),
            moved: watch::channel(0).0,
            applying: tokio::sync::Mutex::default(),
            salvaged: false.into(),
            put_aside: Mutex::default(),
            wanted: Mutex::default(),
            wanting: Notify::new(),
            needs: Mutex::default(),
            hints: Mutex::default(),
            pushing: Mutex::default(),
            needed: watch::channel(0).0,
            acknowledged: watch::channel(0).0,
            joining: Mutex::default(),
            told_synced: Mutex::default(),
            sealed: watch::channel(false).0,
            stopped: Mutex::default(),
            moves: Mutex::default(),
            near: near_promises::NearPromises::default(),
            leaders: Mutex::default(),
        }
    }

    /// What is agreed on now.
    pub fn view(&self) -> Option<Arc<View>> {
        self.cluster.as_ref().map(|cluster| cluster.borrow().clone())
    }

    /// What is known of the regions that have a volume of ours.
    pub fn shipped(&self) -> BTreeMap<(VolumeId, String), Shipped> {
        lock(&self.shipped).clone()
    }

    /// What is known of a replica here.
    pub fn replica(&self, volume: VolumeId) -> Replica {
        lock(&self.replicas).get(&volume).cloned().unwrap_or_default()
    }

    /// A new leadership: what another one knew may be wrong.
    pub fn forget(&self) {
        self.near.end();
        lock(&self.shipped).clear();
        lock(&self.replicas).clear();
        lock(&self.logs).clear();
        lock(&self.wanted).clear();
        lock(&self.joining).clear();
        lock(&self.hints).clear();
        *lock(&self.pushing) = push::Pushing::default();
        *lock(&self.needs) = None;
        *lock(&self.told_synced) = LogPosition::default();
        self.tail.unsynced(ROOT_VOLUME, Unsynced::reset);
        self.moved.send_modify(|count| *count += 1);
    }

    /// Whether nothing of a home may be answered, for it is about to be moved.
    pub fn is_sealed(&self) -> bool {
        *self.sealed.borrow()
    }

    /// This master isn't the leader of a home: others answer, or nobody.
    pub fn unseal(&self) {
        self.sealed.send_replace(false);
    }

    /// Whether something that was cut off is kept here.
    pub fn has_salvage(&self) -> bool {
        self.salvaged.load(Ordering::Acquire)
    }

    /// A sealed chunk's bytes aren't in this region. Beyond the bound the scan finds it again.
    pub fn want(&self, chunk: ChunkId) {
        let mut wanted = lock(&self.wanted);
        if wanted.len() < WANTED_MAX && wanted.insert(chunk) {
            self.wanting.notify_one();
        }
    }

    /// The newest of them, by its number.
    fn take_wanted(&self) -> Option<ChunkId> {
        lock(&self.wanted).pop_last()
    }

    /// How many there are.
    pub fn wanted(&self) -> usize {
        lock(&self.wanted).len()
    }

    /// The newest place of a log that this leader writes.
    pub fn newest(&self, volume: VolumeId) -> LogPosition {
        let before = lock(&self.logs).get(&volume).map(|(newest, _)| *newest).unwrap_or_default();
        self.tail.newest(volume).unwrap_or_default().max(before)
    }

    /// What an answer of the home may show; nothing in particular where there is one region.
    pub fn shown(&self, volume: VolumeId) -> LogPosition {
        if self.cluster.is_some() { self.newest(volume) } else { LogPosition::default() }
    }

    /// Whether this leader knows where the log that it writes was when it began.
    fn begun(&self, volume: VolumeId) -> bool {
        lock(&self.logs).contains_key(&volume)
    }

    fn trimmed(&self, volume: VolumeId) -> LogPosition {
        lock(&self.logs).get(&volume).map(|(_, trimmed)| *trimmed).unwrap_or_default()
    }

    fn note_newest(&self, volume: VolumeId, newest: LogPosition) {
        lock(&self.logs).entry(volume).or_default().0 = newest;
    }

    fn note_trimmed(&self, volume: VolumeId, trimmed: LogPosition) {
        lock(&self.logs).entry(volume).or_default().1 = trimmed;
    }

    fn note_shipped(&self, volume: VolumeId, region: &str, section: impl FnOnce(&mut Shipped)) {
        section(lock(&self.shipped).entry((volume, region.to_owned())).or_default());
        self.acknowledged.send_modify(|count| *count += 1);
    }

    /// What a replica lacks; none while that isn't known.
    fn needs<T>(&self, section: impl FnOnce(&mut Needs) -> T) -> Option<T> {
        lock(&self.needs).as_mut().map(section)
    }

    /// The home has said where chunks can be read. The oldest are forgotten first: new ones are written now.
    fn note_hints(&self, hints: Vec<Hint>) {
        let mut known = lock(&self.hints);
        for hint in hints {
            if hint.source.is_some() {
                known.insert(ChunkId(hint.chunk), hint);
            }
        }
        while known.len() > HINTS_MAX {
            known.pop_first();
        }
    }

    fn needs_changed(&self) {
        self.needed.send_modify(|count| *count += 1);
        self.wanting.notify_one();
    }

    fn note_replica(&self, volume: VolumeId, section: impl FnOnce(&mut Replica)) {
        section(lock(&self.replicas).entry(volume).or_default());
        self.moved.send_modify(|count| *count += 1);
    }

    /// Changes with each replica's place.
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }
}

/// Where a volume is at home, for a master of any region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// In this region, under that epoch.
    Here(Epoch),
    /// In another one, and this region has a replica.
    Elsewhere,
    /// In this region, but the epoch is closed: another home is being found.
    Closed(Epoch),
    /// This region doesn't have the volume, or it isn't known yet who has.
    Nowhere,
}

/// Where a volume is at home.
pub fn place_of(master: &Master, volume: VolumeId) -> Whereabouts {
    let Some(view) = master.geo.view() else { return Whereabouts::Here(HOME_EPOCH) };
    let Some(known) = view.volumes.get(&volume) else { return Whereabouts::Nowhere };
    if known.home == master.config.region {
        if known.open { Whereabouts::Here(known.epoch) } else { Whereabouts::Closed(known.epoch) }
    } else if known.regions.contains(&master.config.region) {
        Whereabouts::Elsewhere
    } else {
        Whereabouts::Nowhere
    }
}

/// How far the regions are that have the volume and aren't its home, as far as this master knows.
pub fn replicas(master: &Master, volume: VolumeId) -> Vec<admin::Replica> {
    let now = master.clock.boot();
    let millis = |since: BootTime| u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
    if master.serving().is_err() {
        return Vec::new();
    }
    match place_of(master, volume) {
        Whereabouts::Here(_) => {
            let shipped = master.geo.shipped();
            let of_volume = shipped.into_iter().filter(|((of, _), _)| *of == volume);
            let replica = |((_, region), known): ((VolumeId, String), Shipped)| admin::Replica {
                region,
                epoch: known.at.map_or(0, |at| at.epoch.0),
                version: known.at.map_or(0, |at| at.version),
                copying: known.copying,
                behind_ms: known.behind_since.map(millis),
                trouble: known.trouble,
                ..admin::Replica::default()
            };
            of_volume.map(replica).collect()
        }
        Whereabouts::Elsewhere => {
            let replica = master.geo.replica(volume);
            let at = replica.record.as_ref().map(ReplicaRecord::position).unwrap_or_default();
            vec![admin::Replica {
                region: master.config.region.clone(),
                epoch: at.epoch.0,
                version: at.version,
                copying: replica.readable().is_none(),
                behind_ms: replica.whole_at.filter(|_| at < replica.newest).map(millis),
                chunks_awaited: master.geo.wanted() as u64,
                trouble: String::new(),
            }]
        }
        Whereabouts::Closed(_) | Whereabouts::Nowhere => Vec::new(),
    }
}

/// Where masters of other regions with data are, for clients whose own region doesn't answer.
pub fn elsewhere(master: &Master) -> Vec<String> {
    let Some(view) = master.geo.view() else { return Vec::new() };
    let others =
        view.regions.iter().filter(|(name, region)| **name != master.config.region && !region.witness);
    others
        .flat_map(|(_, region)| region.masters.iter().map(|m| m.address.clone()))
        .take(ELSEWHERE_MAX)
        .collect()
}

/// Refuses what only the home of the root volume may do.
pub fn at_home(master: &Master) -> Result<(), CallError> {
    match place_of(master, ROOT_VOLUME) {
        Whereabouts::Here(_) if master.geo.is_sealed() => Err(moving::is_moving()),
        Whereabouts::Here(_) => Ok(()),
        Whereabouts::Closed(epoch) => {
            let message = format!(
                "epoch {} of the volume is over, and its next home is being found; try again",
                epoch.0
            );
            Err(call_error(ErrorCode::Unavailable, message))
        }
        Whereabouts::Elsewhere | Whereabouts::Nowhere => Err(not_home(master)),
    }
}

fn not_home(master: &Master) -> CallError {
    let view = master.geo.view();
    let home = view.as_ref().and_then(|view| {
        let volume = view.volumes.get(&ROOT_VOLUME)?;
        let mut masters: Vec<String> =
            view.regions.get(&volume.home)?.masters.iter().map(|m| m.address.clone()).collect();
        // Whoever led there last is asked first.
        let leader = lock(&master.geo.leaders).get(&volume.home).cloned();
        masters.sort_by_key(|address| Some(address) != leader.as_ref());
        Some(Home { region: volume.home.clone(), masters, epoch: volume.epoch.0 })
    });
    let Some(home) = home else {
        let message = "this master doesn't know yet which region is the home of the volume; try again";
        return call_error(ErrorCode::Unavailable, message);
    };
    let message =
        format!("the home of the volume is the region {}, not {}", home.region, master.config.region);
    CallError { detail: home.encode_to_vec().into(), ..call_error(ErrorCode::NotHome, message) }
}

/// The region that is a volume's home.
fn home_of(master: &Master, volume: VolumeId) -> Result<String, String> {
    let view = master.geo.view().ok_or("there is no global group")?;
    view.volumes
        .get(&volume)
        .map(|known| known.home.clone())
        .ok_or_else(|| "the volume isn't known".to_owned())
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
        ReplicaError::Store(_) | ReplicaError::Gap { .. } | ReplicaError::NotLogged => ErrorCode::Unavailable,
        ReplicaError::Trimmed { .. } => ErrorCode::NotFound,
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
