//! The session: its keeper finds the leader, holds the lease, takes the session up again after a failover.
//!
//! One task ([`Session::keep`]) looks for leaders and renews; everybody else waits for it. A caller works with a [`Seat`] - who leads and
//! which session we are - and hands back its doubts ([`Session::doubt`], [`Session::gone`]); the keeper answers each with a newer seat.
//! What it does is in `keeper`, how it searches in `search`, when there is nobody to wait for in `refusals`, what masters send by themselves in `notices`.
//!
//! ```text
//!   call fails / is slow -> doubt(seat) -> renew now -> confirmed + 1        (the leader is well: send again)
//!                        -> gone(seat)  -> OpenSession at every master -> confirmed + 1 (perhaps another leader)
//! ```

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mooseng_ports::clock::{BootTime, Clock};
use mooseng_wire::founding::Founding;
use mooseng_wire::method::Method;
use mooseng_wire::session::{CloseSession, SessionClosed, Squash};
use mooseng_wire::{InodeId, ROOT_INODE, Role, VolumeId};
use prost::Message;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::buffers::Buffers;
use crate::config::ClientConfig;
use crate::error::FsError;
use crate::facts::{Facts, Recalled};
use crate::grants::Grants;
use crate::journal::Journal;
use crate::near::Near;
use crate::opens::Opens;
use crate::owners::{Homes, Locks, Tenure};
use crate::pace::Pace;
use crate::peers::{Failure, Peers};
use crate::retry::{Backoff, Budget};

mod keeper;
mod notices;
mod refusals;
mod search;

pub(crate) use notices::Notices;

/// A master gets this long to answer about a session.
const OPEN_TIMEOUT: Duration = Duration::from_millis(1500);
/// A leader gets this long to renew.
const RENEW_TIMEOUT: Duration = Duration::from_millis(700);

/// Who leads, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    pub leader: String,
    pub session: u64,
    pub incarnation: u64,
    pub custody_epoch: u64,
    /// The volume's home epoch; 0 where an older master doesn't tell.
    pub home: u64,
    /// Since which home epoch all locks were reclaimed at each home.
    pub locks_from: u64,
    /// Grows each time that the keeper has heard from a leader.
    pub confirmed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    None,
    /// Ask the leader.
    Ask,
    /// Search for a leader.
    Search,
}

#[derive(Debug)]
struct State {
    seat: Option<Seat>,
    session: u64,
    incarnation: u64,
    /// The volume's home epoch.
    home: u64,
    /// Since which one all locks were reclaimed at each home.
    locks_from: u64,
    custody_epoch: u64,
    /// The custody epoch, session and incarnation that were answered: nothing is shown any more that was promised before.
    answered: (u64, u64, u64),
    root: u64,
    read_only: bool,
    squash: Squash,
    /// The custodian takes what is told of what was made alone.
    alone: bool,
    /// And has sessions give locks by themselves.
    locks_alone: bool,
    confirmed: u64,
    doubt: Doubt,
    lease_until: Option<BootTime>,
    last_leader: Option<String>,
    last_error: String,
    lapses: u64,
    leader_changes: u64,
    /// Masters of other regions, for when none of this one answers.
    elsewhere: Vec<String>,
    /// The founding mark of the region that was mounted.
    founding: Option<Founding>,
    /// Why the last search found nobody who lets this host in, where that was said.
    refused: Option<FsError>,
    /// There is no such volume any more.
    is_gone: bool,
    /// Since when masters of another founding answer, and no leader of ours.
    other_since: Option<Instant>,
    /// The region was made anew: who says so. Until a leader of the old one is found.
    made_anew: Option<String>,
}

/// Why a search found no leader.
struct NoLeader {
    error: String,
    /// Why a master doesn't let this host in.
    refused: Option<FsError>,
    /// A master knows that there is no such volume.
    no_volume: bool,
    /// A master that is of another founding of the region, with what it says.
    other: Option<String>,
}

/// A session with the region, of one volume.
pub(crate) struct Session {
    pub config: ClientConfig,
    pub peers: Arc<dyn Peers>,
    pub clock: Arc<dyn Clock>,
    pub opens: Arc<Opens>,
    pub facts: Arc<Facts>,
    pub buffers: Arc<Buffers>,
    /// What was made alone and isn't told.
    pub journal: Arc<Journal>,
    /// This host's region, where the volume's home is another one.
    pub near: Near,
    /// Whether writers wait for other regions.
    pub pace: Pace,
    /// Locks that are waited for.
    pub grants: Arc<Grants>,
    /// Locks that are held.
    pub locks: Arc<Locks>,
    /// Every change numbered below this is answered, and its answer digested.
    pub settled: AtomicU64,
    /// The last place that was given in the order of attempts.
    order: AtomicU64,
    /// The place of the newest declaration of opens.
    declared: AtomicU64,
    recalls: OnceLock<Arc<dyn Recalled>>,
    recalling: Mutex<BTreeSet<(u64, u64)>>,
    state: Mutex<State>,
    confirmed: watch::Sender<u64>,
    doubted: Notify,
    budget: Mutex<Budget>,
    random: Mutex<SmallRng>,
    shutdown: CancellationToken,
}

/// What the session looks like from outside.
pub(crate) struct SessionView {
    pub session: u64,
    pub incarnation: u64,
    pub custody_epoch: u64,
    pub leader: Option<String>,
    pub lease_left: Option<Duration>,
    pub lapses: u64,
    pub leader_changes: u64,
    pub last_error: String,
}

impl Session {
    pub fn new(
        config: ClientConfig,
        peers: Arc<dyn Peers>,
        clock: Arc<dyn Clock>,
        opens: Arc<Opens>,
        facts: Arc<Facts>,
        buffers: Arc<Buffers>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let state = State {
            seat: None,
            session: 0,
            incarnation: 0,
            custody_epoch: 0,
            home: 0,
            locks_from: 0,
            answered: (0, 0, 0),
            root: InodeId::new(VolumeId(config.volume), ROOT_INODE.0).0,
            read_only: false,
            squash: Squash::None,
            alone: false,
            locks_alone: false,
            confirmed: 0,
            doubt: Doubt::None,
            lease_until: None,
            last_leader: None,
            last_error: String::new(),
            lapses: 0,
            leader_changes: 0,
            elsewhere: Vec::new(),
            founding: None,
            refused: None,
            is_gone: false,
            other_since: None,
            made_anew: None,
        };
        let near = Near::new(&config, clock.clone(), facts.clone());
        Arc::new(Self {
            config,
            peers,
            clock,
            opens,
            facts,
            buffers,
            journal: Arc::default(),
            near,
            pace: Pace::default(),
            grants: Arc::default(),
            locks: Arc::default(),
            settled: AtomicU64::new(0),
            order: AtomicU64::new(0),
            declared: AtomicU64::new(0),
            recalls: OnceLock::new(),
            recalling: Mutex::default(),
            state: Mutex::new(state),
            confirmed: watch::Sender::new(0),
            doubted: Notify::new(),
            budget: Mutex::default(),
            random: Mutex::new(SmallRng::from_os_rng()),
            shutdown,
        })
    }

    fn state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A seat that is newer than `after`, once there is one; none when `until` comes first or the session ends.
    pub async fn seat(&self, after: u64, until: Instant) -> Option<Seat> {
        let mut confirmed = self.confirmed.subscribe();
        loop {
            if let Some(seat) = self.newer(after) {
                return Some(seat);
            }
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                changed = confirmed.changed() => if changed.is_err() { return None },
                () = tokio::time::sleep_until(until) => return None,
            }
        }
    }

    /// The volume that it is of.
    pub fn volume(&self) -> VolumeId {
        VolumeId(self.config.volume)
    }

    fn newer(&self, after: u64) -> Option<Seat> {
        self.state(|s| s.seat.clone().filter(|seat| seat.confirmed > after))
    }

    /// The current seat, if there is one.
    pub fn seat_now(&self) -> Option<Seat> {
        self.newer(0)
    }

    /// Returns once another leader than that seat's has been found.
    pub async fn replaced(&self, seat: &Seat) {
        let mut confirmed = self.confirmed.subscribe();
        loop {
            if self
                .newer(seat.confirmed)
                .is_some_and(|now| now.leader != seat.leader || now.incarnation != seat.incarnation)
            {
                return;
            }
            if confirmed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Something took long: is that leader still one?
    pub fn doubt(&self, seat: &Seat) {
        self.raise(seat, Doubt::Ask);
    }

    /// That seat is certainly no good any more.
    pub fn gone(&self, seat: &Seat) {
        self.raise(seat, Doubt::Search);
    }

    fn raise(&self, seat: &Seat, doubt: Doubt) {
        let raised = self.state(|s| {
            let current = s.seat.as_ref().is_some_and(|now| now.confirmed == seat.confirmed);
            if !current || s.doubt == Doubt::Search {
                return false;
            }
            s.doubt = doubt;
            true
        });
        if raised {
            self.doubted.notify_one();
        }
    }

    /// The pause before a retry.
    pub fn pause(&self, backoff: &mut Backoff) -> Duration {
        let unit = self.random.lock().unwrap_or_else(PoisonError::into_inner).random::<f64>();
        let budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner).spend();
        backoff.pause(unit, budget)
    }

    /// An operation succeeded.
    pub fn earned(&self) {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).earn();
    }

    pub fn root(&self) -> u64 {
        self.state(|s| s.root)
    }

    /// Whether the region lets this client change nothing.
    pub fn is_read_only(&self) -> bool {
        self.state(|s| s.read_only)
    }

    /// Whose word the region doesn't take from this client.
    pub fn squash(&self) -> Squash {
        self.state(|s| s.squash)
    }

    /// Whether the custodian takes what is told of what was made alone.
    pub fn tells_alone(&self) -> bool {
        self.state(|s| s.alone && s.seat.is_some())
    }

    /// Whether the custodian has sessions give locks by themselves.
    pub fn knows_locks_alone(&self) -> bool {
        self.state(|s| s.locks_alone && s.seat.is_some())
    }

    pub fn last_error(&self) -> String {
        self.state(|s| s.last_error.clone())
    }

    /// The session and its incarnation.
    pub fn life(&self) -> (u64, u64) {
        self.state(|s| (s.session, s.incarnation))
    }

    /// What locks are held under now.
    pub fn tenure(&self) -> Tenure {
        self.state(|s| Tenure { life: (s.session, s.incarnation), home: s.home })
    }

    /// Whether locks of that tenure are held still, as far as that is for the session to say.
    pub fn keeps(&self, tenure: Tenure) -> bool {
        let is_kept = |s: &State| Homes::From(tenure.home).contain(s.home, s.locks_from);
        self.state(|s| tenure.life == (s.session, s.incarnation) && is_kept(s))
    }

    /// A place for the next attempt in the session's order.
    pub fn next_order(&self) -> u64 {
        self.order.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The last place that was given out.
    pub fn order(&self) -> u64 {
        self.order.load(Ordering::SeqCst)
    }

    /// Whether the newest declaration of opens came before that place. One that comes later names what is in [`Opens`] by then.
    pub fn declared_before(&self, order: u64) -> bool {
        self.declared.load(Ordering::SeqCst) < order
    }

    /// Whether the cluster has several regions.
    pub fn has_elsewhere(&self) -> bool {
        self.state(|s| !s.elsewhere.is_empty())
    }

    /// Masters of other regions.
    pub fn elsewhere(&self) -> Vec<String> {
        self.state(|s| s.elsewhere.clone())
    }

    /// There are masters of other regions at these addresses, as far as is known before anybody is asked.
    pub fn hear_of(&self, elsewhere: Vec<String>) {
        self.state(|s| {
            if s.elsewhere.is_empty() {
                s.elsewhere = elsewhere;
            }
        });
    }

    /// Returns once it ends.
    pub async fn shut_down(&self) {
        self.shutdown.cancelled().await;
    }

    pub fn is_shut_down(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    pub fn view(&self) -> SessionView {
        let now = self.clock.boot();
        self.state(|s| SessionView {
            session: s.session,
            incarnation: s.incarnation,
            custody_epoch: s.custody_epoch,
            leader: s.seat.as_ref().map(|seat| seat.leader.clone()),
            lease_left: s.lease_until.filter(|&until| until > now).map(|until| until.since(now)),
            lapses: s.lapses,
            leader_changes: s.leader_changes,
            last_error: s.last_error.clone(),
        })
    }

    /// Whoever acts on recalls: set once, before the first operation.
    pub fn on_recall(&self, recalled: Arc<dyn Recalled>) {
        // A second one would mean two caches over one session.
        if self.recalls.set(recalled).is_err() {
            tracing::error!("recalls of this session are handled already; the later handler is left out");
        }
    }

    /// Everything that was promised may be untrue: a change whose outcome never came.
    pub fn renounce(self: &Arc<Self>) {
        self.facts.renounce();
        if self.recalls.get().is_some() {
            let session = self.clone();
            tokio::spawn(async move {
                if let Some(recalled) = session.recalls.get() {
                    recalled.everything().await;
                }
            });
        }
    }

    fn publish(&self) {
        let confirmed = self.state(|s| s.confirmed);
        self.confirmed.send_replace(confirmed);
    }

    /// Tells the master that the session ends, so that nobody waits for its lease.
    pub async fn close(&self) -> Result<(), Failure> {
        let Some(seat) = self.state(|s| s.seat.take()) else { return Ok(()) };
        self.close_at(&seat.leader, seat.session, seat.incarnation).await
    }

    /// Ends another session of this host, whose process is dead.
    pub async fn end_other(&self, session: u64, incarnation: u64) -> Result<(), Failure> {
        let Some(seat) = self.seat_now() else { return Err(Failure::Lost) };
        if seat.session == session {
            return Ok(());
        }
        self.close_at(&seat.leader, session, incarnation).await
    }

    async fn close_at(&self, leader: &str, session: u64, incarnation: u64) -> Result<(), Failure> {
        let close = CloseSession { session, incarnation };
        let body = self
            .peers
            .call(
                Role::Master,
                leader,
                Method::CloseSession,
                close.encode_to_vec().into(),
                Bytes::new(),
                OPEN_TIMEOUT,
            )
            .await?
            .body;
        SessionClosed::decode(body).map(|_| ()).map_err(|_| Failure::Lost)
    }
}
