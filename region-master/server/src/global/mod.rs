//! The global group on this master: the masters of all regions, which agree on regions, leases and homes (DESIGN sections 5 and 8).
//!
//! ```text
//!  other masters --Global* (Raft)--> RaftNode --apply--> Embedded --copy--> View, receipts of leases
//!                --GlobalRenew, GlobalChange--> serve (as the leader) --transaction--^
//!  this master   --ask--> the leader, here or elsewhere
//! ```
//! - [`Global`]: what the rest of the master asks. [`config`]: the setting `[global]`.
//! - [`ask`]: to the leader, wherever it is, with a deadline. [`serve`]: what the leader answers.
//! - [`copy`]: this master's copy, read after each applied entry. [`renew`]: the region's lease.
//! - [`status`]: what administrators see. [`settings`]: how they change a volume. `volumes`: how volumes are made and deleted. `classes`: the same of storage
//!   classes.
//! - `revocations`: whom the cluster refuses. `level`: which releases must be able to read what is written.
//! - [`failover`]: what the leader decides where a volume's home is lost.
//! - [`lead`]: what the leader does by itself: founds the cluster, gives votes to the right masters.

pub mod ask;
mod classes;
pub mod config;
mod copy;
mod failover;
mod lead;
mod level;
mod renew;
mod revocations;
mod serve;
mod settings;
pub mod status;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use mooseng_embedded::{Base, CommitBatch, Embedded, Options};
use mooseng_global::failover::Standing;
use mooseng_global::lease::{Appended, Holder, Receipts};
use mooseng_global::{View, Volume, rules, voters};
use mooseng_ports::clock::{BootTime, Clock};
use mooseng_ports::disk::Disk;
use mooseng_ports::plant::{self, Plant};
use mooseng_raft::{GLOBAL_GROUP, OnAppend, RaftConfig as NodeConfig, RaftError, RaftNode, Timings};
use mooseng_transport::{Answer, Blocking, Incoming, Link, LinkOptions, Network, Peer, call_error};
use mooseng_wal::Options as WalOptions;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::{Epoch, Role, VolumeId};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::config::MasterConfig;
use crate::errors::denied;
use crate::server::{StartError, offload};
use config::GlobalConfig;
pub(crate) use serve::transact;

/// Bytes of one file of the global group's log: it grows by a few hundred bytes a second.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Bytes of its log after which it is cut.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// Entries that stay behind a snapshot: those of some minutes of renewals.
const ENTRIES_KEPT: u64 = 1_000;

/// What the global group stands on.
pub struct GlobalPorts {
    /// The network.
    pub network: Arc<dyn Network>,
    /// The disk of its Raft log.
    pub disk: Arc<dyn Disk>,
    /// Where disk work runs.
    pub blocking: Blocking,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What its store lies on.
    pub base: Arc<dyn Base>,
}

/// The global group on this master.
pub struct Global {
    config: GlobalConfig,
    /// This master's region.
    region: String,
    /// Its id in its region.
    id: u64,
    /// Where others reach it.
    address: String,
    clock: Arc<dyn Clock>,
    network: Arc<dyn Network>,
    store: Embedded,
    /// Set once it takes part: a member that was one before waits for an election's time first.
    raft: OnceLock<RaftNode>,
    started: watch::Sender<bool>,
    failure: watch::Sender<Option<String>>,
    view: watch::Sender<Arc<View>>,
    lease: Mutex<Duration>,
    receipts: Mutex<Receipts>,
    /// When renewals came into this member's log.
    appended: Arc<Mutex<Appended>>,
    holder: Mutex<Holder>,
    /// What the home here has put down of its volumes.
    put_down: Mutex<BTreeMap<VolumeId, PutDown>>,
    links: Mutex<BTreeMap<String, Link>>,
    /// How this region stands with its copies of volumes, as long as this master leads it; none where it can't take a volume over any more.
    standings: Mutex<BTreeMap<VolumeId, Option<Standing>>>,
    /// Rung when that is to be told at once.
    stood: Notify,
    /// As the leader: how all regions stand.
    told: Mutex<BTreeMap<VolumeId, BTreeMap<String, Standing>>>,
    /// Regions that were taken in, and whose masters haven't shown their join token yet.
    awaited: Mutex<BTreeSet<String>>,
    /// Why the region isn't let in, as this master, its leader, was told last.
    kept_out: Mutex<Option<String>>,
    /// What probes of the other members came to.
    probed: Mutex<BTreeMap<u64, status::Probed>>,
    shutdown: CancellationToken,
}

/// Versions of what is agreed on that a home's leaders have put down of a volume ([`mooseng_schema::leased`]).
#[derive(Clone, Copy, Debug, Default)]
struct PutDown {
    /// It needs its lease as long as no later one is known.
    lease: u64,
    /// It can't tell who is in its sync set before this one is known.
    set: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Global {
    /// Opens its store and begins to take part, in the background. None where the configuration names no regions. Refused where what lies in the store says that the
    /// cluster is at a feature level that this release doesn't support.
    pub async fn start(
        own: &MasterConfig,
        ports: GlobalPorts,
        shutdown: CancellationToken,
    ) -> Result<Option<Arc<Self>>, StartError> {
        let Some(config) = own.global.clone() else { return Ok(None) };
        let GlobalPorts { network, disk, blocking, clock, base } = ports;
        let options = Options { offload: offload(blocking), ..Options::default() };
        let store = blocking.run(move || Embedded::open(base, options)).await?;
        let appended = Arc::<Mutex<Appended>>::default();
        let node = NodeConfig {
            on_append: Some(note_renewals(appended.clone(), clock.clone())),
            ..node_config(own, &config)
        };
        let global = Arc::new(Self {
            lease: Mutex::new(config.lease()),
            config,
            region: own.region.clone(),
            id: own.id,
            address: own.advertise.clone(),
            clock: clock.clone(),
            network: network.clone(),
            store: store.clone(),
            raft: OnceLock::new(),
            started: watch::channel(false).0,
            failure: watch::channel(None).0,
            view: watch::channel(Arc::default()).0,
            receipts: Mutex::default(),
            appended: appended.clone(),
            holder: Mutex::default(),
            put_down: Mutex::default(),
            links: Mutex::default(),
            standings: Mutex::default(),
            stood: Notify::new(),
            told: Mutex::default(),
            awaited: Mutex::default(),
            kept_out: Mutex::default(),
            probed: Mutex::default(),
            shutdown,
        });
        global.supports_stored().await?;
        let starting = global.clone();
        tokio::spawn(async move {
            let start = RaftNode::start(node, disk, blocking, clock, network, store);
            tokio::select! {
                started = start => starting.take_part(started),
                () = starting.shutdown.cancelled() => {}
            }
        });
        Ok(Some(global))
    }

    fn take_part(&self, started: Result<RaftNode, RaftError>) {
        match started {
            Ok(raft) => {
                let _first = self.raft.set(raft);
                self.started.send_replace(true);
            }
            Err(error) => {
                tracing::error!(%error, "this master can't take part in the global group");
                self.failure
                    .send_replace(Some(format!("this master can't take part in the global group: {error}")));
            }
        }
    }

    /// What the regions have agreed on, as far as this master knows. Its version is 0 before the cluster is founded.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// The same, and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// Whether this region holds its lease now, by what this master renewed itself: false on masters that don't lead the region. Checked last before
    /// anything leaves that no other region may contradict.
    pub fn lease_valid(&self) -> bool {
        let version = self.view.borrow().version;
        lock(&self.holder).is_valid(self.clock.boot(), version)
    }

    /// What the regions have agreed on, and a moment: whatever was agreed on before it is in there. None while this region doesn't hold its lease.
    pub fn as_of(&self) -> Option<(Arc<View>, BootTime)> {
        let view = self.view();
        let holder = lock(&self.holder);
        let sent = holder.sent(view.version).filter(|_| holder.is_valid(self.clock.boot(), view.version))?;
        Some((view, sent))
    }

    /// The epoch in which this region may change a volume now: it is its home, and no other region can take over, or only by somebody's command. Checked
    /// last before anything leaves that no other region may contradict.
    pub fn may_change(&self, volume: VolumeId) -> Option<Epoch> {
        let view = self.view.borrow();
        let known = view.volumes.get(&volume).filter(|known| known.open && known.home == self.region)?;
        self.supports_view(&view).ok()?;
        // Of the same view: one that is older than the lease's says nothing.
        let held = || lock(&self.holder).is_valid(self.clock.boot(), view.version);
        (!self.needs_lease(&view, volume, known) || held() || plant::is(Plant::RegionLeaseUnchecked))
            .then_some(known.epoch)
    }

    /// Whether a home goes on under its region's lease only: another region takes over by itself without it, or may, as far as is known here.
    fn needs_lease(&self, view: &View, volume: VolumeId, known: &Volume) -> bool {
        known.automatic || view.version <= self.put_down(volume).lease
    }

    fn put_down(&self, volume: VolumeId) -> PutDown {
        lock(&self.put_down).get(&volume).copied().unwrap_or_default()
    }

    /// This region has put down that it needs its lease as the volume's home, as long as it knows of no later version.
    pub fn lease_is_needed(&self, volume: VolumeId, asked: u64) {
        let mut put_down = lock(&self.put_down);
        let known = put_down.entry(volume).or_default();
        known.lease = asked.max(known.lease);
    }

    /// Whether what was put down so may be agreed on still, as far as is known here.
    pub fn lease_is_asked_for(&self, volume: VolumeId) -> bool {
        self.view.borrow().version <= self.put_down(volume).lease
    }

    /// A leader of this region has put down that at that version the volume was a `geo` one, whose sync set it kept as its home.
    pub fn set_is_known(&self, volume: VolumeId, version: u64) {
        let mut put_down = lock(&self.put_down);
        let known = put_down.entry(volume).or_default();
        known.set = version.max(known.set);
    }

    /// Whether that was put down of this version, or a later one.
    pub fn set_was_known(&self, volume: VolumeId, version: u64) -> bool {
        version <= self.put_down(volume).set
    }

    /// How long this region may go on to answer for a volume that another region could take over then; none where nobody does so by itself.
    pub fn lease_left(&self, volume: VolumeId) -> Option<Duration> {
        let view = self.view.borrow();
        view.volumes.get(&volume).filter(|known| self.needs_lease(&view, volume, known))?;
        let until = lock(&self.holder).until(view.version);
        let now = self.clock.boot();
        Some(until.filter(|until| now < *until).map(|until| until.since(now)).unwrap_or_default())
    }

    /// How this region stands with its copy of a volume, said by its leader: goes to the leader of the global group with each renewal, and at once
    /// where it newly refuses an epoch. Only who has a whole copy says it.
    pub fn stands_here(&self, volume: VolumeId, standing: Standing) {
        let before = lock(&self.standings).insert(volume, Some(standing));
        if before.flatten().is_none_or(|before| before.refuses != standing.refuses) {
            self.stood.notify_one();
        }
    }

    /// This region can't take a volume over, whatever it said before.
    pub fn stands_no_more(&self, volume: VolumeId) {
        if lock(&self.standings).insert(volume, None).flatten().is_some() {
            self.stood.notify_one();
        }
    }

    /// Whether this master has said how the region stands with its copy of a volume.
    pub fn has_said(&self, volume: VolumeId) -> bool {
        lock(&self.standings).get(&volume).is_some_and(Option::is_some)
    }

    /// Whether the cluster lets this region in, or why not: one that comes with a join token has to show it first, and one that is over opens nothing. Only the
    /// region's leader is told why; the others know nothing of what the regions have agreed on until then.
    pub fn is_let_in(&self) -> Result<(), String> {
        if self.config.join.is_none() {
            return Ok(());
        }
        if let Some(why) = lock(&self.kept_out).clone() {
            return Err(format!("this region isn't let into the cluster: {why}"));
        }
        if self.raft().is_some() && self.view.borrow().version == 0 {
            return Err("this region hasn't come into the cluster yet: its masters know of nothing that the regions have agreed on; their leader's log says why".to_owned());
        }
        Ok(())
    }

    /// How long a region's lease lasts.
    pub fn lease(&self) -> Duration {
        *lock(&self.lease)
    }

    /// How long ago each region renewed its lease, at least, by this master's clock; and whether that is so long that the lease has run out.
    pub fn leases(&self) -> BTreeMap<String, (Duration, bool)> {
        let (now, lease) = (self.clock.boot(), self.lease());
        let receipts = lock(&self.receipts);
        let of = |region: &String| {
            let age = receipts.age(region, now)?;
            Some((region.clone(), (age, receipts.ran_out(region, now, lease).is_some())))
        };
        self.view.borrow().regions.keys().filter_map(of).collect()
    }

    /// Consensus, once this master takes part.
    pub fn raft(&self) -> Option<&RaftNode> {
        self.raft.get()
    }

    /// Consensus; waits until this master takes part.
    async fn taking_part(&self) -> &RaftNode {
        let mut started = self.started.subscribe();
        // An error says that the sender is gone, which it is with this.
        let _ = started.wait_for(|started| *started).await;
        match self.raft.get() {
            Some(raft) => raft,
            None => std::future::pending().await,
        }
    }

    /// Whether this master leads the global group.
    pub fn is_leading(&self) -> bool {
        self.raft().is_some_and(RaftNode::is_leading)
    }

    /// Waits until this master can't take part any more, and says why. Pending while it can, and while it is told to end.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let at_start = async {
            match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
                Ok(Some(failure)) => failure,
                _ => std::future::pending().await,
            }
        };
        let later = async { self.taking_part().await.stopped().await };
        tokio::select! {
            failure = at_start => failure,
            failure = later => format!("the global group: {failure}"),
        }
    }

    /// Hands leadership over if it leads.
    pub(crate) async fn hand_over(&self, within: Duration) {
        if let Some(raft) = self.raft()
            && raft.is_leading()
            && raft.status().members.len() > 1
        {
            match raft.transfer_leader(within).await {
                Ok(leader) => tracing::info!(leader, "handed leadership of the global group over"),
                Err(error) => tracing::info!(%error, "leadership of the global group wasn't handed over"),
            }
        }
    }

    /// Stops taking part.
    pub(crate) async fn stop(&self) {
        if let Some(raft) = self.raft() {
            raft.shutdown().await;
        }
        for link in std::mem::take(&mut *lock(&self.links)).into_values() {
            link.close();
        }
    }

    /// Lets in masters of all regions of this cluster, and nobody else.
    pub fn allow(&self, peer: &Peer) -> Result<(), CallError> {
        let (identity, own) = (&peer.identity, self.network.identity());
        if identity.cluster != own.cluster {
            return Err(denied(format!("{identity} is of another cluster than {}", own.cluster)));
        }
        if identity.role != Role::Master {
            return Err(denied(format!("{identity} may not ask for this; it takes the role master")));
        }
        let known = self.view.borrow().regions.contains_key(&identity.region)
            || self.config.regions.iter().any(|region| region.name == identity.region);
        if known {
            Ok(())
        } else {
            Err(denied(format!("{identity} is of a region that this cluster doesn't have")))
        }
    }

    /// Answers a call of the group's Raft.
    pub async fn handle(&self, incoming: Incoming) -> Result<Answer, CallError> {
        self.allow(&incoming.peer)?;
        match self.raft() {
            Some(raft) => raft.handle(incoming).await,
            None => Err(call_error(
                ErrorCode::Unavailable,
                "this master doesn't take part in the global group yet; try again",
            )),
        }
    }

    fn link(&self, address: &str) -> Link {
        let options = LinkOptions::default();
        let mut links = lock(&self.links);
        let new = || Link::new(self.network.clone(), address.to_owned(), Role::Master, options);
        links.entry(address.to_owned()).or_insert_with(new).clone()
    }

    /// The members that there are to be, by their numbers, with where they are: as agreed on, or as configured before that.
    fn members(&self) -> BTreeMap<u64, mooseng_global::MasterAt> {
        let view = self.view();
        if view.version > 0 {
            voters::members(&view.regions)
        } else {
            voters::members(&self.config.regions())
        }
    }
}

/// Notes when renewals of leases come into the log.
fn note_renewals(appended: Arc<Mutex<Appended>>, clock: Arc<dyn Clock>) -> OnAppend {
    OnAppend(Arc::new(move |batch| {
        let Some(batch) = batch else { return lock(&appended).forget() };
        // What can't be read isn't applied either.
        let Ok(batch) = CommitBatch::decode(batch) else { return };
        let renewed =
            batch.transactions.iter().flat_map(|(_, changes)| changes).filter_map(rules::renewed_by);
        let now = clock.boot();
        for (region, sequence) in renewed {
            lock(&appended).append(now, &region, sequence);
        }
    }))
}

/// A master's number in the group.
pub(crate) fn member(own: &MasterConfig, config: &GlobalConfig) -> u64 {
    let number = config.regions.iter().find(|r| r.name == own.region).map_or(0, |r| r.number);
    voters::node_id(number, own.id)
}

fn node_config(own: &MasterConfig, config: &GlobalConfig) -> NodeConfig {
    let raft = &config.raft;
    NodeConfig {
        group: GLOBAL_GROUP,
        timings: Timings {
            heartbeat: Duration::from_millis(raft.heartbeat_ms),
            election_min: Duration::from_millis(raft.election_min_ms),
            election_max: Duration::from_millis(raft.election_max_ms),
        },
        wal: WalOptions { segment_bytes: SEGMENT_BYTES, ..WalOptions::default() },
        entries_kept: ENTRIES_KEPT,
        entries_between_snapshots: ENTRIES_KEPT,
        log_bytes_max: LOG_BYTES_MAX,
        log_bytes_kept: LOG_BYTES_MAX / 4,
        // A home that is moved, or follows a lost one, begins when its region hears of it.
        tells_commits: true,
        // Its members are far from each other.
        defer: Duration::ZERO,
        ..NodeConfig::new(
            member(own, config),
            &format!("{}/{}", own.region, own.name),
            &own.advertise,
            &own.zone,
            raft_dir(&own.state_dir),
        )
    }
}

/// Where the global group's log lies.
pub fn raft_dir(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("global").join("raft")
}

/// Where its store lies.
pub fn store_dir(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("global").join("store")
}

/// Runs what the group asks of this master, until it ends.
pub async fn run(global: Arc<Global>, master: Arc<crate::master::Master>) {
    let running = async {
        tokio::join!(
            copy::keep(&global),
            lead::make_the_group(&global),
            lead::run(&global),
            renew::run(&global, &master),
            status::probe(&global, &master),
            failover::run(&global)
        )
    };
    tokio::select! {
        _ = running => {}
        () = global.shutdown.cancelled() => {}
    }
}
