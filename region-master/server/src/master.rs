//! A master's parts, shared by its services and tasks, and the questions they all ask: do I serve, may this answer leave.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooseng_embedded::Embedded;
use mooseng_namespace::{Capacity, Driver, Room};
use mooseng_ports::clock::Clock;
use mooseng_raft::RaftNode;
use mooseng_region::wall::Skipped;
use mooseng_transport::{Link, LinkOptions, Network, Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::{Epoch, Identity, Role, VolumeId};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::config::MasterConfig;
use crate::desk::Desk;
use crate::errors::{denied, not_leader};
use crate::geo::{self, Geo};
use crate::global::Global;
use crate::metrics::Metrics;
use crate::promises::Connections;
use crate::room::Measured;

/// The home epoch of a volume in a cluster of one region.
pub const HOME_EPOCH: Epoch = Epoch(1);

/// In a cluster of several regions a custody epoch is a home epoch and a term within it: these bits of it are the term.
const TERM_BITS: u32 = 40;
const TERM_MASK: u64 = (1 << TERM_BITS) - 1;

/// The custody epoch of a leader in that term, while a volume that several regions have is in that home epoch: later homes' are higher, whatever their
/// groups' terms are. None for terms of a group that was recovered, which leave no room.
pub fn custody_of(epoch: Epoch, term: u64) -> Option<u64> {
    let epoch = epoch.0.saturating_sub(1);
    (term <= TERM_MASK && epoch <= u64::MAX >> TERM_BITS).then_some((epoch << TERM_BITS) | term)
}

/// Connections to chunkservers and masters that are kept at most.
const LINKS_MAX: usize = 2_000;

/// Two clocks are read at the same time if no more than this goes by.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// A master's parts.
pub struct Master {
    /// Its configuration.
    pub config: MasterConfig,
    /// Who it is.
    pub identity: Identity,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The network.
    pub network: Arc<dyn Network>,
    /// Consensus.
    pub raft: RaftNode,
    /// What the regions agree on; none where there is one region.
    pub global: Option<Arc<Global>>,
    /// The metadata store.
    pub store: Embedded,
    /// Runs filesystem requests over it.
    pub driver: Driver<Embedded>,
    /// Figures.
    pub metrics: Metrics,
    /// Ends everything.
    pub shutdown: CancellationToken,
    /// Rung when reserved ids run low.
    pub ids_low: Notify,
    /// Seals to be told to chunkservers.
    pub seals: mpsc::Sender<crate::seals::Told>,
    /// Sessions' connections.
    pub connections: Connections,
    /// Rung when a recall was answered, a session went, or a change ended.
    pub recalls_answered: Notify,
    /// Those who change an inode's locks go one after the other.
    pub lock_gates: Arc<crate::locks::Gates>,
    /// Held by whoever reads limits to tell them to the ledger.
    pub limits_gate: tokio::sync::Mutex<()>,
    /// Storage classes are read and taken up by one at a time.
    pub classes_gate: tokio::sync::Mutex<()>,
    /// Volumes are made and deleted one at a time.
    pub joins_gate: tokio::sync::Mutex<()>,
    /// What the other masters told of their certificates and revocation lists.
    pub told: crate::credentials::Told,
    /// Whom the cluster refuses.
    pub revoked: crate::revocations::Copy,
    /// Masters that answered the last probe, by id.
    pub reachable: Mutex<BTreeMap<u64, bool>>,
    /// One check of the whole store at a time.
    pub checking: Semaphore,
    /// Volumes that several regions have.
    pub geo: Geo,
    /// What happened.
    pub events: crate::events::Events,
    /// One dump at a time.
    pub dumping: Arc<Semaphore>,
    measured: Mutex<Measured>,
    /// What the wall clock has skipped.
    skipped: Mutex<Skipped>,
    desk: Mutex<Desk>,
    /// The desk's count of what was given back, to be read without its lock.
    given_back: Arc<AtomicU64>,
    links: Mutex<BTreeMap<(Role, String), Link>>,
}

/// What a master is made of.
pub struct Parts {
    /// See [`Master::config`].
    pub config: MasterConfig,
    /// See [`Master::clock`].
    pub clock: Arc<dyn Clock>,
    /// See [`Master::network`].
    pub network: Arc<dyn Network>,
    /// See [`Master::raft`].
    pub raft: RaftNode,
    /// See [`Master::global`].
    pub global: Option<Arc<Global>>,
    /// See [`Master::store`].
    pub store: Embedded,
    /// See [`Master::metrics`].
    pub metrics: Metrics,
    /// See [`Master::seals`].
    pub seals: mpsc::Sender<crate::seals::Told>,
    /// See [`Master::geo`].
    pub geo: Geo,
    /// See [`Master::shutdown`].
    pub shutdown: CancellationToken,
}

impl Master {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        let limits =
            mooseng_region::sessions::Limits { lease: parts.config.session_lease(), ..Default::default() };
        let desk = Desk::new(limits, crate::classes::by_default(&parts.config));
        Self {
            identity: parts.network.identity(),
            driver: Driver::new(parts.store.clone()),
            config: parts.config,
            clock: parts.clock,
            network: parts.network,
            raft: parts.raft,
            global: parts.global,
            store: parts.store,
            metrics: parts.metrics,
            shutdown: parts.shutdown,
            ids_low: Notify::new(),
            seals: parts.seals,
            connections: Connections::default(),
            recalls_answered: Notify::new(),
            lock_gates: Arc::default(),
            limits_gate: tokio::sync::Mutex::default(),
            classes_gate: tokio::sync::Mutex::default(),
            joins_gate: tokio::sync::Mutex::default(),
            told: crate::credentials::Told::default(),
            revoked: crate::revocations::Copy::default(),
            reachable: Mutex::default(),
            geo: parts.geo,
            events: crate::events::Events::default(),
            checking: Semaphore::new(1),
            dumping: Arc::new(Semaphore::new(1)),
            measured: Mutex::default(),
            skipped: Mutex::default(),
            given_back: desk.promises.ticks(),
            desk: Mutex::new(desk),
            links: Mutex::default(),
        }
    }

    /// Works on the memory. The section must be short and can't wait.
    pub fn desk<T>(&self, section: impl FnOnce(&mut Desk) -> T) -> T {
        section(&mut self.desk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What sessions have given back so far, by count, of what they had exclusively: taken before a look into the store.
    pub fn tick(&self) -> u64 {
        self.given_back.load(Ordering::Acquire)
    }

    /// What the disk of the state directory had when it was looked at last.
    pub fn measured(&self) -> Measured {
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of it.
    pub fn measure(&self, measured: Measured) {
        *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = measured;
    }

    /// Looks whether the wall clock was set forward since the last look.
    pub fn look_at_clock(&self) {
        self.skipped(|_| ());
    }

    fn skipped<T>(&self, section: impl FnOnce(&Skipped) -> T) -> T {
        let skipped = &mut *self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, wall_ns, now) = (self.clock.boot(), self.clock.unix_ns(), self.clock.boot());
        // Between the two this thread may have waited for its turn: that is no step.
        if now.since(before) < LOOK_WITHIN {
            skipped.look(wall_ns, now);
        }
        section(skipped)
    }

    /// What the wall clock would say now if it hadn't been set forward since it said `then_ns`: times between the two are no longer than they were.
    pub fn now_since(&self, then_ns: i64) -> i64 {
        self.skipped(|skipped| skipped.without(then_ns, self.clock.unix_ns()))
    }

    /// What a leader has room for. One that is short of it makes way before long where another master isn't, and refuses nothing until then.
    pub fn room(&self) -> Room {
        match self.measured().room {
            Room::Enough => Room::Enough,
            _ if self.raft.is_room_elsewhere() => Room::Enough,
            short => short,
        }
    }

    /// The refusal that names the leader.
    pub fn not_leader(&self) -> CallError {
        let leader = self.raft.leader().map(|(_, address)| address);
        not_leader(leader.filter(|address| *address != self.config.advertise))
    }

    /// The term in a custody epoch: in a cluster of one region they are the same.
    fn term_of(&self, custody: u64) -> u64 {
        if self.global.is_some() { custody & TERM_MASK } else { custody }
    }

    /// The custody epoch in which this master serves the root volume now.
    pub fn serving(&self) -> Result<u64, CallError> {
        self.serving_of(geo::ROOT_VOLUME)
    }

    /// The custody epoch in which this master serves a volume now, as its home or with a replica of it.
    pub fn serving_of(&self, volume: VolumeId) -> Result<u64, CallError> {
        if !self.raft.is_leading() {
            return Err(self.not_leader());
        }
        let term = self.raft.term();
        let serving = self.desk(|desk| desk.serving_of(volume));
        if let Some(custody) = serving.filter(|custody| self.term_of(*custody) == term) {
            return Ok(custody);
        }
        let message = "this master has just become the leader and still reads its records; try again";
        Err(call_error(ErrorCode::Unavailable, message))
    }

    /// Asked last before an answer leaves: this master still leads in that custody epoch's term, and nobody else can.
    pub fn may_answer(&self, custody: u64) -> Result<(), CallError> {
        if self.raft.lease_valid() && self.raft.term() == self.term_of(custody) {
            return Ok(());
        }
        Err(self.not_leader())
    }

    /// The region's custody epoch, of who serves some volume in this one: chunkservers know one for all of the region's volumes, and obey none that is
    /// earlier; nor does the global group take an earlier one's word for what its leader waits for.
    pub fn orders(&self, custody: u64) -> u64 {
        if self.global.is_none() {
            return custody;
        }
        custody_of(self.epoch(geo::ROOT_VOLUME), self.term_of(custody)).unwrap_or(custody)
    }

    /// The custody epoch in which this master gives chunkservers orders now; none while it serves nothing.
    pub fn ordering(&self) -> Option<u64> {
        if !self.raft.is_leading() {
            return None;
        }
        let term = self.raft.term();
        let served = self.desk(|desk| desk.served().find(|custody| self.term_of(*custody) == term))?;
        self.may_answer(served).is_ok().then(|| self.orders(served))
    }

    /// The home epoch that a volume is in, as far as this master knows.
    pub fn epoch(&self, volume: VolumeId) -> Epoch {
        let view = self.geo.view();
        view.and_then(|view| view.volumes.get(&volume).map(|volume| volume.epoch)).unwrap_or(HOME_EPOCH)
    }

    /// Asked last, too, before an answer of a volume's home leaves: no other region can have become its home.
    pub fn is_home(&self, volume: VolumeId) -> Result<(), CallError> {
        let Some(global) = &self.global else { return Ok(()) };
        if self.geo.is_sealed(volume) {
            return Err(geo::moving::is_moving());
        }
        if global.may_change(volume).is_some() {
            return Ok(());
        }
        let message = "this region's lease ran out, or the volume's epoch ended: another region may take it over; try again";
        Err(call_error(ErrorCode::Unavailable, message))
    }

    /// Refuses a session that has answered a newer leader already.
    pub fn custody_is_ours(&self, term: u64, seen: u64) -> Result<(), CallError> {
        if seen > term { Err(not_leader(None)) } else { Ok(()) }
    }

    /// Refuses peers of other clusters, regions and roles.
    pub fn allow(&self, peer: &Peer, roles: &[Role]) -> Result<(), CallError> {
        let identity = &peer.identity;
        if identity.cluster == self.identity.cluster && identity.region != self.identity.region {
            return Err(denied(format!("{identity} is of another region than {}", self.identity.region)));
        }
        self.allow_of_cluster(peer, roles)
    }

    /// Refuses peers of other clusters and roles, and of regions that the cluster doesn't have.
    pub fn allow_of_cluster(&self, peer: &Peer, roles: &[Role]) -> Result<(), CallError> {
        let identity = &peer.identity;
        if identity.cluster != self.identity.cluster {
            return Err(denied(format!("{identity} is of another cluster than {}", self.identity.cluster)));
        }
        if identity.region != self.identity.region {
            let view = self.geo.view();
            if view.as_ref().is_some_and(|view| view.version == 0) {
                let message = "this master doesn't know yet which regions there are; try again";
                return Err(call_error(ErrorCode::Unavailable, message));
            }
            if !view.is_some_and(|view| view.regions.contains_key(&identity.region)) {
                return Err(denied(format!("{identity} is of another region than {}", self.identity.region)));
            }
        }
        if !roles.contains(&identity.role) {
            let allowed: Vec<&str> = roles.iter().map(|r| r.as_str()).collect();
            return Err(denied(format!(
                "{identity} may not ask for this; it takes the role {}",
                allowed.join(" or ")
            )));
        }
        Ok(())
    }

    /// The lease that a session is told, in milliseconds. **Invariant**: where another region may take over once this region's lease has run out, no
    /// session's lease outlasts that. So a home that follows a lost one needn't wait for the promises of that one to run out.
    pub fn lease_ms(&self, volume: VolumeId) -> u32 {
        let lease = self.config.session_lease();
        let left = self.global.as_ref().and_then(|global| global.lease_left(volume));
        u32::try_from(left.unwrap_or(lease).min(lease).as_millis()).unwrap_or(u32::MAX)
    }

    /// Fresh ids are used up faster than they are reserved.
    pub fn ids_used_up(&self) -> CallError {
        call_error(ErrorCode::Unavailable, "the reserved ids are used up, more are being reserved; try again")
    }

    /// What the chunkservers hold.
    pub fn capacity(&self) -> Capacity {
        let copies = u64::try_from(self.config.copies).unwrap_or(1).max(1);
        let (total, free) = self.desk(|desk| {
            desk.registry.iter().fold((0_u64, 0_u64), |(total, free), server| {
                (total.saturating_add(server.bytes_total()), free.saturating_add(server.bytes_free()))
            })
        });
        Capacity { bytes_total: total / copies, bytes_free: free / copies, bytes_available: free / copies }
    }

    /// The connection to a peer.
    pub fn link(&self, role: Role, address: &str) -> Link {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if links.len() >= LINKS_MAX
            && let Some((_, link)) = links.pop_first()
        {
            link.close();
        }
        links
            .entry((role, address.to_owned()))
            .or_insert_with(|| {
                Link::new(self.network.clone(), address.to_owned(), role, LinkOptions::default())
            })
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custody_epochs_of_later_homes_are_higher_and_a_recovered_groups_terms_leave_no_room() {
        assert_eq!(custody_of(Epoch(1), 7), Some(7), "as in a cluster of one region");
        assert!(custody_of(Epoch(2), 1) > custody_of(Epoch(1), TERM_MASK));
        assert_eq!(custody_of(Epoch(3), 5).map(|custody| custody & TERM_MASK), Some(5));
        assert_eq!(custody_of(Epoch(1), 1_800_000_000 << 30), None);
        assert_eq!(custody_of(Epoch(u64::MAX), 1), None);
    }
}
