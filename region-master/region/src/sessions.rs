//! Sessions: leases, incarnations, and what is held open.
//!
//! A session on record is in one of three states at the leader:
//!
//! ```text
//!             lead                      open                    lease over
//!  (store) --------> Awaited(until) ----------> Live(until) ------------------> lapsed (not in the table)
//!                        \------------------------- lease over --------------------^
//! ```
//!
//! *Awaited* is a session of which the store knows and that hasn't answered this leader yet: for one lease after a failover it may come back
//! and declare its opens, so nothing that it may hold is freed before. A lapsed session leaves the table; when it comes back it gets the next
//! incarnation, which the caller writes to the store first.
//!
//! Sessions are of volumes, as their ids say. Each volume is led for itself; the bounds are those of all together.
//!
//! Freeing an open-unlinked inode and opening it are ordered by this table alone: an open is registered before the inode is looked up, and
//! an inode is put into `reaping` before its transaction starts. Whoever comes second is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_wire::{Incarnation, InodeId, RequestNumber, SessionId, VolumeId};

mod counts;

use counts::OpenCounts;

/// Bounds of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a session lives without a renewal.
    pub lease: Duration,
    /// Most sessions, awaited ones included.
    pub sessions_max: usize,
    /// Most sessions that one identity opens, which is one host's: of all its mounts, in all volumes.
    pub sessions_per_identity_max: usize,
    /// Most different inodes that one session holds open.
    pub opens_per_session_max: usize,
    /// Most inodes that the sessions of one identity hold open, each counted for itself.
    pub opens_per_identity_max: usize,
    /// Most inodes that all sessions hold open, each counted for itself: about 50 bytes for each.
    pub opens_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            sessions_max: 10_000,
            sessions_per_identity_max: 1_000,
            opens_per_session_max: 1 << 20,
            opens_per_identity_max: 1 << 22,
            opens_max: 1 << 24,
        }
    }
}

/// A session as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its id.
    pub session: SessionId,
    /// Its newest incarnation.
    pub incarnation: Incarnation,
    /// The SPIFFE id that opened it.
    pub identity: String,
    /// The mounting host, as it calls itself.
    pub host: String,
    /// Where it is mounted.
    pub mount_path: String,
}

/// Why a session's request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not in the table: never opened, or lapsed.
    #[error(
        "session {0} isn't open at this master: its lease has lapsed, or it was never opened. Open it again"
    )]
    Expired(SessionId),
    /// On record, but it hasn't declared its opens to this leader yet.
    #[error("session {0} hasn't been opened at this master since it became the leader. Open it again")]
    Awaited(SessionId),
    /// It belongs to another identity.
    #[error("session {session} belongs to another identity than {identity}")]
    Foreign {
        /// The session.
        session: SessionId,
        /// Who asked.
        identity: String,
    },
    /// The request names an incarnation that isn't the newest.
    #[error("session {session} is at incarnation {newest}, the request is of incarnation {asked}")]
    Incarnation {
        /// The session.
        session: SessionId,
        /// The request's.
        asked: Incarnation,
        /// The table's.
        newest: Incarnation,
    },
    /// No room for another session.
    #[error("{0} sessions are open, which is the limit; unmount some, or wait until lapsed ones are gone")]
    SessionsMax(usize),
    /// No room for another session of this identity.
    #[error("{identity} has {sessions} sessions open, which is the limit for one host; unmount some")]
    SessionsOfOne {
        /// Who asked.
        identity: String,
        /// Its sessions.
        sessions: usize,
    },
    /// No room for another open.
    #[error("session {session} holds {opens} files open, which is the limit")]
    OpensMax {
        /// The session.
        session: SessionId,
        /// Its opens.
        opens: usize,
    },
    /// No room for another open of this identity.
    #[error(
        "{identity} holds {opens} files open with all its sessions; with more it would be beyond the limit for one host"
    )]
    OpensOfOne {
        /// Who asked.
        identity: String,
        /// The opens of its sessions.
        opens: usize,
    },
    /// No room for another open of anybody.
    #[error(
        "{0} files are held open by all sessions together; with more it would be beyond the limit. Close some"
    )]
    OpensOfAll(usize),
    /// The inode is being freed.
    #[error("inode {0} was removed and is being freed")]
    Reaping(InodeId),
    /// Others have waited for it for too long.
    #[error(
        "session {0} hasn't given up for too long what others wait for: its lease isn't renewed until it has, or has run out"
    )]
    Owes(SessionId),
}

/// What the master does about an OpenSession for a session id that was given earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comeback {
    /// It goes on under its incarnation.
    Resume(Incarnation),
    /// It came back too late once, got this incarnation, and didn't hear of it: the answer is repeated.
    Repeat(Incarnation),
    /// It isn't in the table: the store's record decides, and a found one gets the next incarnation.
    Lapsed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Awaited(BootTime),
    Live(BootTime),
}

impl State {
    fn until(self) -> BootTime {
        match self {
            Self::Awaited(until) | Self::Live(until) => until,
        }
    }
}

#[derive(Clone, Debug)]
struct Session {
    recorded: Recorded,
    state: State,
    /// What it holds open, and the order of the newest open or declaration of each.
    opens: BTreeMap<InodeId, u64>,
    /// Its changes numbered below this are over.
    settled: RequestNumber,
}

/// A session as status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// What the store has.
    pub recorded: Recorded,
    /// Until the lease ends.
    pub lease_left: Duration,
    /// Different inodes held open.
    pub opens: usize,
    /// Whether it has been opened at this leader.
    pub live: bool,
}

/// An open that was registered, for [`SessionTable::take_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    inode: InodeId,
    order: u64,
    before: Option<u64>,
}

impl Registered {
    /// Of which inode.
    pub fn inode(&self) -> InodeId {
        self.inode
    }
}

/// The leader's table of sessions.
#[derive(Debug)]
pub struct SessionTable {
    limits: Limits,
    sessions: BTreeMap<SessionId, Session>,
    /// How many sessions hold each inode open.
    holders: BTreeMap<InodeId, usize>,
    counts: OpenCounts,
    reaping: BTreeSet<InodeId>,
    /// Whose leases aren't renewed.
    owing: BTreeSet<SessionId>,
}

impl SessionTable {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: BTreeMap::new(),
            holders: BTreeMap::new(),
            counts: OpenCounts::default(),
            reaping: BTreeSet::new(),
            owing: BTreeSet::new(),
        }
    }

    /// The bounds.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Starts a leadership over a volume: every session of it on record has one lease to come back.
    pub fn lead(&mut self, volume: VolumeId, now: BootTime, recorded: impl IntoIterator<Item = Recorded>) {
        let until = now.after(self.limits.lease);
        self.forget(volume);
        for recorded in recorded {
            self.expect_until(until, recorded);
        }
    }

    /// A session on record that isn't in the table gets one lease to come back.
    pub fn expect(&mut self, now: BootTime, recorded: Recorded) {
        self.expect_until(now.after(self.limits.lease), recorded);
    }

    fn expect_until(&mut self, until: BootTime, recorded: Recorded) {
        self.sessions.entry(recorded.session).or_insert_with(|| Session {
            recorded,
            state: State::Awaited(until),
            opens: BTreeMap::new(),
            settled: RequestNumber(0),
        });
    }

    /// Whether this leader still waits for a session to come.
    pub fn is_awaited(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|session| matches!(session.state, State::Awaited(_)))
    }

    /// A session that this leader still waits for has a new incarnation on record: if it comes, it is as that.
    pub fn begin_anew(&mut self, id: SessionId, incarnation: Incarnation) {
        if let Some(session) = self.sessions.get_mut(&id) {
            debug_assert!(
                matches!(session.state, State::Awaited(_)),
                "only one that hasn't come is given up"
            );
            session.recorded.incarnation = session.recorded.incarnation.max(incarnation);
        }
    }

    /// Forgets all that it knows of a volume.
    pub fn forget(&mut self, volume: VolumeId) {
        for id in self.of(volume) {
            self.remove(id);
        }
        self.reaping.retain(|inode| inode.volume() != volume);
    }

    /// The sessions of a volume.
    pub fn of(&self, volume: VolumeId) -> Vec<SessionId> {
        self.sessions.range(SessionId::all_of(volume)).map(|(id, _)| *id).collect()
    }

    /// What the store has of a session in the table.
    pub fn recorded(&self, id: SessionId) -> Option<&Recorded> {
        self.sessions.get(&id).map(|s| &s.recorded)
    }

    /// Whether another session may be opened, by that identity.
    pub fn has_room(&self, identity: &str) -> Result<(), Refusal> {
        if self.sessions.len() >= self.limits.sessions_max {
            return Err(Refusal::SessionsMax(self.sessions.len()));
        }
        // One host may not keep all others out.
        let sessions = self.sessions.values().filter(|session| session.recorded.identity == identity).count();
        if sessions >= self.limits.sessions_per_identity_max {
            return Err(Refusal::SessionsOfOne { identity: identity.to_owned(), sessions });
        }
        Ok(())
    }

    /// Whether a new session of that identity may declare so many opens.
    pub fn has_room_for_opens(&self, identity: &str, opens: usize) -> Result<(), Refusal> {
        self.has_room_for_more(identity, (0, opens))
    }

    /// Whether a session of that identity that holds so many inodes open may hold so many instead. One that holds no more than before isn't refused.
    fn has_room_for_more(&self, identity: &str, (before, opens): (usize, usize)) -> Result<(), Refusal> {
        let more = opens.saturating_sub(before);
        let of_one = self.counts.of(identity);
        if more > 0 && of_one.saturating_add(more) > self.limits.opens_per_identity_max {
            return Err(Refusal::OpensOfOne { identity: identity.to_owned(), opens: of_one });
        }
        let of_all = self.counts.all();
        if more > 0 && of_all.saturating_add(more) > self.limits.opens_max {
            return Err(Refusal::OpensOfAll(of_all));
        }
        Ok(())
    }

    /// Decides about an OpenSession for a session id that was given earlier.
    pub fn comeback(
        &self,
        now: BootTime,
        id: SessionId,
        incarnation: Incarnation,
        identity: &str,
    ) -> Result<Comeback, Refusal> {
        let Some(session) = self.sessions.get(&id).filter(|s| now < s.state.until()) else {
            return Ok(Comeback::Lapsed);
        };
        if session.recorded.identity != identity {
            return Err(Refusal::Foreign { session: id, identity: identity.to_owned() });
        }
        if self.owing.contains(&id) {
            return Err(Refusal::Owes(id));
        }
        let newest = session.recorded.incarnation;
        match incarnation.cmp(&newest) {
            std::cmp::Ordering::Equal => Ok(Comeback::Resume(newest)),
            std::cmp::Ordering::Less => Ok(Comeback::Repeat(newest)),
            std::cmp::Ordering::Greater => {
                Err(Refusal::Incarnation { session: id, asked: incarnation, newest })
            }
        }
    }

    /// Puts a session into the table whose record is in the store, with its declared opens in place of earlier ones. What the same
    /// life opened under a higher order stays: the declaration is older. Inodes that are being freed aren't registered; they are
    /// answered, for their opens are lost.
    pub fn admit(
        &mut self,
        now: BootTime,
        recorded: Recorded,
        order: u64,
        opens: impl IntoIterator<Item = InodeId>,
    ) -> Result<Vec<InodeId>, Refusal> {
        let id = recorded.session;
        let mut kept = BTreeMap::new();
        let mut settled = RequestNumber(0);
        match self.sessions.get(&id) {
            None => self.has_room(&recorded.identity)?,
            // Two comebacks overtook each other: the newer life is the one on record.
            Some(there) if there.recorded.incarnation > recorded.incarnation => {
                let newest = there.recorded.incarnation;
                return Err(Refusal::Incarnation { session: id, asked: recorded.incarnation, newest });
            }
            Some(there) => {
                settled = there.settled;
                if there.recorded.incarnation == recorded.incarnation {
                    kept.extend(there.opens.iter().filter(|(_, held)| **held > order));
                }
            }
        }
        let mut lost = Vec::new();
        for inode in opens {
            if self.reaping.contains(&inode) {
                lost.push(inode);
            } else {
                kept.entry(inode).or_insert(order);
            }
            if kept.len() > self.limits.opens_per_session_max {
                return Err(Refusal::OpensMax { session: id, opens: kept.len() });
            }
        }
        let before = self.sessions.get(&id).map_or(0, |there| there.opens.len());
        self.has_room_for_more(&recorded.identity, (before, kept.len()))?;
        self.remove(id);
        for inode in kept.keys() {
            *self.holders.entry(*inode).or_default() += 1;
        }
        self.counts.add(&recorded.identity, kept.len());
        let state = State::Live(now.after(self.limits.lease));
        self.sessions.insert(id, Session { recorded, state, opens: kept, settled });
        Ok(lost)
    }

    fn live_mut(
        &mut self,
        now: BootTime,
        id: SessionId,
        incarnation: Incarnation,
        identity: &str,
    ) -> Result<&mut Session, Refusal> {
        let session = self.sessions.get_mut(&id).ok_or(Refusal::Expired(id))?;
        if session.recorded.identity != identity {
            return Err(Refusal::Foreign { session: id, identity: identity.to_owned() });
        }
        match session.state {
            State::Awaited(_) => return Err(Refusal::Awaited(id)),
            State::Live(until) if now >= until => return Err(Refusal::Expired(id)),
            State::Live(_) => {}
        }
        let newest = session.recorded.incarnation;
        if newest != incarnation {
            return Err(Refusal::Incarnation { session: id, asked: incarnation, newest });
        }
        Ok(session)
    }

    /// Whether a request of this session and incarnation, from this identity, may be worked on now.
    pub fn check(
        &mut self,
        now: BootTime,
        id: SessionId,
        incarnation: Incarnation,
        identity: &str,
    ) -> Result<(), Refusal> {
        self.live_mut(now, id, incarnation, identity).map(|_| ())
    }

    /// Renews a lease, from the renewal's receipt on, and answers what is left of it. The lease of one that owes stays as it is: it works on until then,
    /// for without a seat at the master it could give nothing up.
    pub fn renew(
        &mut self,
        now: BootTime,
        id: SessionId,
        incarnation: Incarnation,
        identity: &str,
    ) -> Result<Duration, Refusal> {
        let (lease, owes) = (self.limits.lease, self.owing.contains(&id));
        let session = self.live_mut(now, id, incarnation, identity)?;
        if !owes {
            session.state = State::Live(now.after(lease));
        }
        Ok(session.state.until().since(now))
    }

    /// Registers an open. The caller then looks whether the inode exists, and calls [`take_back`](Self::take_back) with the answer where
    /// it doesn't.
    pub fn open(
        &mut self,
        now: BootTime,
        id: SessionId,
        incarnation: Incarnation,
        identity: &str,
        inode: InodeId,
        order: u64,
    ) -> Result<Registered, Refusal> {
        if self.reaping.contains(&inode) {
            return Err(Refusal::Reaping(inode));
        }
        let opens_max = self.limits.opens_per_session_max;
        let room = self.has_room_for_more(identity, (0, 1));
        let session = self.live_mut(now, id, incarnation, identity)?;
        let before = session.opens.get(&inode).copied();
        if before.is_none() {
            if session.opens.len() >= opens_max {
                return Err(Refusal::OpensMax { session: id, opens: session.opens.len() });
            }
            room?;
        }
        session.opens.insert(inode, before.unwrap_or(0).max(order));
        if before.is_none() {
            *self.holders.entry(inode).or_default() += 1;
            self.counts.add(identity, 1);
        }
        Ok(Registered { inode, order, before })
    }

    /// The session has closed what it had opened under lower orders. A newer open stays, for the release is late; one that isn't
    /// registered is well: the release is repeated, or the open was lost.
    pub fn release(&mut self, id: SessionId, inode: InodeId, order: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.opens.get(&inode).is_some_and(|held| *held < order) {
            session.opens.remove(&inode);
            self.counts.take(&session.recorded.identity, 1);
            self.unhold(inode);
        }
    }

    /// An open came to nothing: what was registered before it stands again, unless a newer one has come.
    pub fn take_back(&mut self, id: SessionId, registered: Registered) {
        let Registered { inode, order, before } = registered;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.opens.get(&inode) != Some(&order) {
            return;
        }
        match before {
            Some(before) => drop(session.opens.insert(inode, before)),
            None => {
                session.opens.remove(&inode);
                self.counts.take(&session.recorded.identity, 1);
                self.unhold(inode);
            }
        }
    }

    /// The session's changes numbered below this are answered or given up. Answers the highest such number that it ever named to this
    /// table: what is still on its way of them must not be done any more.
    pub fn settle(&mut self, id: SessionId, oldest_unanswered: RequestNumber) -> RequestNumber {
        let Some(session) = self.sessions.get_mut(&id) else { return oldest_unanswered };
        session.settled = session.settled.max(oldest_unanswered);
        session.settled
    }

    /// The number named to [`settle`](Self::settle).
    pub fn settled(&self, id: SessionId) -> RequestNumber {
        self.sessions.get(&id).map_or(RequestNumber(0), |s| s.settled)
    }

    fn unhold(&mut self, inode: InodeId) {
        if let Some(holders) = self.holders.get_mut(&inode) {
            *holders -= 1;
            if *holders == 0 {
                self.holders.remove(&inode);
            }
        }
    }

    /// Only these sessions' leases aren't renewed from now on, because others have waited for them for too long. Each ends with its lease, or answers before.
    /// Answers those of which that is new.
    pub fn only_these_owe(&mut self, sessions: impl IntoIterator<Item = SessionId>) -> Vec<Recorded> {
        let owing: BTreeSet<SessionId> =
            sessions.into_iter().filter(|id| self.sessions.contains_key(id)).collect();
        let new = owing.difference(&self.owing).filter_map(|id| self.recorded(*id).cloned()).collect();
        self.owing = owing;
        new
    }

    /// Takes a session out: it was closed.
    pub fn remove(&mut self, id: SessionId) -> bool {
        self.owing.remove(&id);
        let Some(session) = self.sessions.remove(&id) else { return false };
        self.counts.take(&session.recorded.identity, session.opens.len());
        for inode in session.opens.keys() {
            self.unhold(*inode);
        }
        true
    }

    /// Takes out the sessions of a volume whose lease is over, and answers them.
    pub fn lapse(&mut self, volume: VolumeId, now: BootTime) -> Vec<Recorded> {
        let of_it = self.sessions.range(SessionId::all_of(volume));
        let over: Vec<SessionId> = of_it.filter(|(_, s)| now >= s.state.until()).map(|(id, _)| *id).collect();
        let mut lapsed = Vec::with_capacity(over.len());
        for id in over {
            if let Some(session) = self.sessions.get(&id) {
                lapsed.push(session.recorded.clone());
            }
            self.remove(id);
        }
        lapsed
    }

    /// Whether sessions of a volume may still come back that held opens under the leader before.
    pub fn in_grace(&self, volume: VolumeId, now: BootTime) -> bool {
        let mut of_it = self.sessions.range(SessionId::all_of(volume));
        of_it.any(|(_, s)| matches!(s.state, State::Awaited(until) if now < until))
    }

    /// Chooses those of a volume's orphans that nobody holds open, up to `most`, and keeps opens away from them until [`reaped`](Self::reaped).
    pub fn begin_reap(
        &mut self,
        volume: VolumeId,
        now: BootTime,
        orphans: impl IntoIterator<Item = InodeId>,
        most: usize,
    ) -> Vec<InodeId> {
        if self.in_grace(volume, now) {
            return Vec::new();
        }
        let mut chosen = Vec::new();
        for inode in orphans {
            if chosen.len() >= most {
                break;
            }
            if !self.holders.contains_key(&inode) && self.reaping.insert(inode) {
                chosen.push(inode);
            }
        }
        chosen
    }

    /// The reap of these inodes was tried: gone or not, opens are judged by the store again.
    pub fn reaped(&mut self, inodes: &[InodeId]) {
        for inode in inodes {
            self.reaping.remove(inode);
        }
    }

    /// Whether some session holds the inode open.
    pub fn is_open(&self, inode: InodeId) -> bool {
        self.holders.contains_key(&inode)
    }

    /// Whether another session than this one holds the inode open.
    pub fn is_open_elsewhere(&self, id: SessionId, inode: InodeId) -> bool {
        let own = self.sessions.get(&id).is_some_and(|s| s.opens.contains_key(&inode));
        self.holders.get(&inode).copied().unwrap_or(0) > usize::from(own)
    }

    /// Whether the session is in the table: live, or awaited after a failover.
    pub fn holds(&self, id: SessionId) -> bool {
        self.sessions.contains_key(&id)
    }

    /// How many sessions the table has.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// The sessions, by id.
    pub fn views(&self, now: BootTime) -> Vec<View> {
        let view = |s: &Session| View {
            recorded: s.recorded.clone(),
            lease_left: s.state.until().since(now),
            opens: s.opens.len(),
            live: matches!(s.state, State::Live(_)),
        };
        self.sessions.values().map(view).collect()
    }
}

#[cfg(test)]
mod tests;
