//! Changes: the gate that each passes before it commits, and what its session is promised with the answer.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use mooseng_namespace::touched::Charges;
use mooseng_namespace::{Admission, Errno, Gate, Room, reads_from};
use mooseng_ports::plant::{self, Plant};
use mooseng_region::promises::{ChangeId, PromiseTable};
use mooseng_region::quotas::{Amount, FlightId, Ledger, Verdict};
use mooseng_schema::ids::IdKind;
use mooseng_schema::quota::Account;
use mooseng_store::{Store, Transaction};
use mooseng_wire::fact::{Fact, Level};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, FileKind, FsReply, FsRequest, LockState, Tell, Told};
use mooseng_wire::session::Granted;
use mooseng_wire::{InodeId, RequestNumber, SessionId, VolumeId};
use tokio::time::Instant;

use super::{Beside, send, untold};
use crate::desk::Desk;
use crate::master::Master;
use crate::{geo, quotas};

/// A change that fits but for what others were promised of its quotas waits so long for them to give it back: twice as long as that takes.
const ESCROW_WAIT: Duration = Duration::from_secs(5);
/// And looks so often whether they have.
const ESCROW_LOOK: Duration = Duration::from_millis(50);

/// The gate of one change: recalls what it touches before it commits.
pub struct ChangeGate {
    master: Arc<Master>,
    term: u64,
    session: SessionId,
    number: RequestNumber,
    /// It brings what its session had buffered: the session's escrow is there for that.
    covered: bool,
    /// It tells what its session made alone.
    tells: bool,
    state: Mutex<GateState>,
}

#[derive(Debug, Default)]
struct GateState {
    /// When the run began that is to be admitted, by the count of what was given back.
    tick: u64,
    changes: Vec<ChangeId>,
    /// It was let through: it may have committed.
    through: bool,
    /// What the last run would add to limited accounts.
    flight: Option<FlightId>,
    /// Everybody has told what they made alone since the change came.
    all_told: bool,
    /// What its refusal rests on.
    looked: BTreeSet<Fact>,
}

impl ChangeGate {
    /// A gate for a session's change. The master's own changes of a volume are those of the volume's session 0.
    pub fn new(master: Arc<Master>, term: u64, session: SessionId, number: RequestNumber) -> Self {
        Self { master, term, session, number, covered: false, tells: false, state: Mutex::default() }
    }

    /// A gate for that change: also one that brings what its session had buffered, or made alone.
    pub fn for_request(
        master: Arc<Master>,
        term: u64,
        (session, number): (SessionId, RequestNumber),
        request: &FsRequest,
    ) -> Self {
        let (covered, tells) = (brings_buffered(request), matches!(request.op, Some(Op::Tell(_))));
        Self { master, term, session, number, covered, tells, state: Mutex::default() }
    }

    /// Compares what the change would add with limits. Where others may still use up the room, and may as well not, it waits a while for that.
    async fn admit_charges(&self, charges: &Charges) -> Admission {
        self.land(false);
        let covered_by = self.covered.then_some(self.session);
        let adds = charges
            .iter()
            .map(|(account, usage)| (*account, Amount { bytes: usage.bytes, inodes: usage.inodes }));
        let Some(flight) = self.master.desk(|desk| self.ledger(desk).take_off(covered_by, adds)) else {
            return Admission::Commit;
        };
        self.state(|state| state.flight = Some(flight));
        let until = Instant::now() + ESCROW_WAIT;
        loop {
            let verdict = quotas::judge(&self.master, self.session.volume(), self.term, flight).await;
            match verdict {
                None => return Admission::Deposed,
                Some(Verdict::Fits) => return Admission::Commit,
                Some(Verdict::Later) if Instant::now() < until => {}
                Some(Verdict::Later | Verdict::Over) => {
                    self.land(false);
                    self.master.metrics.quota_refusals.inc();
                    return Admission::Refused(Errno::EDQUOT);
                }
            }
            tokio::time::sleep(ESCROW_LOOK).await;
        }
    }

    /// Whether it was let through: it may have committed, whatever became of who asked for it.
    pub fn may_have_committed(&self) -> bool {
        self.state(|state| state.through)
    }

    fn land(&self, committed: bool) {
        if let Some(flight) = self.state(|state| state.flight.take()) {
            self.master.desk(|desk| self.ledger(desk).land(flight, committed));
        }
    }

    fn ledger<'d>(&self, desk: &'d mut Desk) -> &'d mut Ledger<Account> {
        &mut desk.seat_mut(self.session.volume()).ledger
    }

    /// Whether promises are of the term in which the change came.
    fn is_in_office(&self, desk: &Desk) -> bool {
        desk.is_custodian(self.session.volume(), self.term)
    }

    fn state<T>(&self, f: impl FnOnce(&mut GateState) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The change was answered at `version`: grants its session what the answer tells.
    pub fn committed(&self, request: &FsRequest, reply: &FsReply, version: u64) -> Beside {
        self.land(true);
        let changes = self.state(|state| std::mem::take(&mut state.changes));
        let replayed = changes.is_empty();
        let id = self.session;
        // A directory is given where there is room for names in it, as one that is asked for is.
        let gives =
            matches!(&request.op, Some(Op::Mkdir(r)) if r.alone && self.master.room() == Room::Enough);
        let beside = self.master.desk(|desk| {
            let mut beside = Beside::default();
            // The answer doesn't leave in another term.
            if !self.is_in_office(desk) {
                return beside;
            }
            let mut changed: BTreeSet<Fact> = BTreeSet::new();
            for change in changes {
                let (number, own) = desk.promises.end(change, Some(version));
                beside.number = beside.number.max(number);
                changed.extend(own);
            }
            if replayed {
                // The answer that named them may not have arrived.
                changed.extend(desk.promises.unsettled(id, self.number));
            }
            if !changed.is_empty() {
                beside.number = desk.promises.next_number(id).unwrap_or(0);
            }
            // A recorded answer is old: what it says may have changed since.
            if !replayed {
                // Nobody else has heard of a new directory yet. What is promised of it below stays at this level.
                if let Some(Reply::Entry(made)) = &reply.reply
                    && let Some(attr) = made.attr.as_ref().filter(|_| gives)
                {
                    desk.promises.grant_alone(id, InodeId(attr.inode), version);
                }
                for fact in facts_changed(request, reply) {
                    if desk.promises.grant(id, &fact, Level::Shared, version) {
                        let exclusive = desk.promises.level(id, &fact) == Some(Level::Exclusive);
                        beside.granted.push(Granted { fact: Some(fact.to_message()), exclusive });
                    }
                }
                // Nobody else has heard of a new file yet.
                if let (Some(Op::Create(_)), Some(Reply::Created(created))) = (&request.op, &reply.reply)
                    && created.created
                    && let Some(attr) = &created.attr
                {
                    let fact = Fact::Inode(InodeId(attr.inode));
                    if desk.promises.grant(id, &fact, Level::Exclusive, version) {
                        beside.granted.retain(|g| g.fact.as_ref() != Some(&fact.to_message()));
                        beside.granted.push(Granted { fact: Some(fact.to_message()), exclusive: true });
                    }
                }
            }
            if let (Some(Op::Tell(tell)), Some(Reply::Told(told))) = (&request.op, &reply.reply)
                && !replayed
            {
                beside.granted.extend(grant_told(&mut desk.promises, id, (tell, told), version));
            }
            if let (Some(Op::HoldLocks(hold)), Some(Reply::Locked(locked))) = (&request.op, &reply.reply)
                && !replayed
                && locked.state() == LockState::Held
            {
                beside.granted.extend(grant_locks(desk, id, InodeId(hold.inode), version));
            }
            if beside.number == 0 && !beside.granted.is_empty() {
                beside.number = desk.promises.next_number(id).unwrap_or(0);
            }
            beside.changed = changed.iter().map(Fact::to_message).collect();
            beside
        });
        self.master.recalls_answered.notify_waiters();
        beside
    }

    /// The facts that the change's answer tells something of: a refusal tells of all that was looked at.
    pub fn told(&self, request: &FsRequest, reply: &FsReply) -> BTreeSet<Fact> {
        if matches!(reply.reply, Some(Reply::Errno(_))) {
            return self.state(|state| state.looked.clone());
        }
        let mut told = facts_changed(request, reply);
        // What it took of another file is this session's own from now on.
        told.extend(reads_from(request).map(Fact::Inode));
        if let Some(Op::Rename(r)) = &request.op {
            told.insert(Fact::Entry(InodeId(r.parent), r.name.clone()));
            told.insert(Fact::Entry(InodeId(r.new_parent), r.new_name.clone()));
        }
        told
    }

    /// The change certainly didn't commit.
    pub fn refused(&self) {
        self.land(false);
        let changes = self.state(|state| std::mem::take(&mut state.changes));
        self.end(changes);
    }

    /// These certainly didn't commit. Numbers of another term's changes mean other changes.
    fn end(&self, changes: Vec<ChangeId>) {
        self.master.desk(|desk| {
            if self.is_in_office(desk) {
                for change in changes {
                    desk.promises.end(change, None);
                }
            }
        });
    }
}

#[async_trait]
impl Gate for ChangeGate {
    fn run_begins(&self) {
        let tick = self.master.tick();
        self.state(|state| state.tick = tick);
    }

    /// The request's own deadline ends this wait: the driver drops it.
    async fn admit_refusal(&self, looked: BTreeSet<Fact>, errno: Errno) -> Admission {
        self.state(|state| state.looked.clone_from(&looked));
        let (tick, all_told) = self.state(|state| (state.tick, state.all_told));
        // What a session tells it must get rid of without waiting for what others tell: they may wait for it.
        let unheard_of = errno == Errno::ESTALE && !all_told && !self.tells;
        let recalls = self.master.desk(|desk| {
            if !self.is_in_office(desk) {
                return None;
            }
            let recalls = desk.promises.hidden(self.session, &looked);
            if !recalls.is_empty() || desk.promises.given_back_since(tick, &looked) {
                return Some(Some(recalls));
            }
            if !unheard_of {
                return Some(None);
            }
            let recalls = untold(desk, self.session, tick);
            self.state(|state| state.all_told = recalls.is_some());
            Some(recalls)
        });
        let recalls = match recalls {
            None => return Admission::Deposed,
            Some(None) => return Admission::Commit,
            Some(Some(recalls)) => recalls,
        };
        send(&self.master, self.term, &recalls);
        loop {
            let woken = self.master.recalls_answered.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let answered =
                self.master.desk(|desk| self.is_in_office(desk).then(|| desk.promises.answered(&recalls)));
            match answered {
                None => return Admission::Deposed,
                Some(true) => return Admission::Again,
                Some(false) => woken.await,
            }
        }
    }

    fn is_given_up(&self) -> bool {
        self.master.desk(|desk| desk.sessions.settled(self.session)) > self.number
    }

    async fn admit(&self, facts: BTreeSet<Fact>, charges: Charges) -> Admission {
        match self.admit_facts(facts).await {
            Admission::Commit => self.admit_charges(&charges).await,
            other => other,
        }
    }
}

impl ChangeGate {
    async fn admit_facts(&self, facts: BTreeSet<Fact>) -> Admission {
        let Some((changes, recalls)) = self.master.desk(|desk| {
            if !self.is_in_office(desk) && !plant::is(Plant::CommitEpochUnchecked) {
                return None;
            }
            Some(self.state(|state| {
                let mut left = facts;
                for change in &state.changes {
                    left = desk.promises.uncovered(*change, &left);
                }
                let mut recalls = Vec::new();
                if !left.is_empty() {
                    let (change, new) = desk.promises.begin(self.session, self.number, left);
                    state.changes.push(change);
                    recalls = new;
                }
                let ready = state.changes.iter().all(|change| desk.promises.is_ready(*change));
                if ready {
                    state.through = true;
                }
                (if ready { Vec::new() } else { state.changes.clone() }, recalls)
            }))
        }) else {
            return Admission::Deposed;
        };
        if changes.is_empty() || plant::is(Plant::CommitUnrecalled) {
            return Admission::Commit;
        }
        send(&self.master, self.term, &recalls);
        // The request's own deadline ends this wait: the driver drops it.
        loop {
            let woken = self.master.recalls_answered.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            let ready = self.master.desk(|desk| {
                (self.is_in_office(desk) || plant::is(Plant::CommitEpochUnchecked))
                    .then(|| changes.iter().all(|change| desk.promises.is_ready(*change)))
            });
            match ready {
                None => return Admission::Deposed,
                Some(true) => return Admission::Again,
                Some(false) => {}
            }
            woken.await;
        }
    }
}

impl Drop for ChangeGate {
    fn drop(&mut self) {
        let (changes, through, flight) =
            self.state(|state| (std::mem::take(&mut state.changes), state.through, state.flight.take()));
        if !through || (changes.is_empty() && flight.is_none()) {
            if let Some(flight) = flight {
                self.master.desk(|desk| self.ledger(desk).land(flight, false));
            }
            return self.end(changes);
        }
        // It may commit yet. Commits are decided in order: once a later one is, this one is, too. Until then nothing is promised on its facts.
        let (master, term, volume) = (self.master.clone(), self.term, self.session.volume());
        tokio::spawn(async move {
            let mut pause = Duration::from_millis(10);
            // Also through an interruption within the term, which the promises outlive.
            while master.desk(|desk| desk.is_custodian(volume, term)) && !master.shutdown.is_cancelled() {
                if let Some(version) = decided(&master, volume).await {
                    master.desk(|desk| {
                        if let Some(flight) = flight {
                            desk.seat_mut(volume).ledger.land(flight, false);
                        }
                        if desk.is_custodian(volume, term) {
                            for change in changes {
                                desk.promises.end(change, Some(version));
                            }
                        }
                    });
                    return;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        });
    }
}

/// What a session made alone it keeps alone: nobody else has heard of it yet.
fn grant_told(
    promises: &mut PromiseTable,
    id: SessionId,
    (tell, told): (&Tell, &Told),
    version: u64,
) -> Vec<Granted> {
    let mut granted = Vec::new();
    let mut grant = |fact: Fact| granted.push(Granted { fact: Some(fact.to_message()), exclusive: true });
    for (change, reply) in tell.changes.iter().zip(&told.replies) {
        let inode = InodeId(change.inode);
        match &reply.reply {
            _ if change.inode == 0 => {}
            Some(Reply::Entry(made))
                if made.attr.as_ref().is_some_and(|attr| attr.kind() == FileKind::Directory) =>
            {
                let both = promises.grant_alone(id, inode, version);
                let facts = both.then_some([Fact::Inode(inode), Fact::Directory(inode)]);
                facts.into_iter().flatten().for_each(&mut grant);
            }
            Some(Reply::Entry(_) | Reply::Created(_)) => {
                let fact = Fact::Inode(inode);
                if promises.grant(id, &fact, Level::Exclusive, version) {
                    grant(fact);
                }
            }
            _ => {}
        }
    }
    granted
}

/// A session gives an inode's locks by itself, of which none was on record at `version`, as long as nobody else is there: who waits is to get what is free, and
/// who has the file open is likely to lock it, too. Whoever asks has passed the inode's gate ([`crate::locks`]), so that nobody comes to wait meanwhile.
fn grant_locks(desk: &mut Desk, id: SessionId, inode: InodeId, version: u64) -> Option<Granted> {
    let fact = Fact::Locks(inode);
    let alone = !desk.sessions.is_open_elsewhere(id, inode) && !desk.lock_waits.is_waited_for(inode);
    let given = alone && desk.promises.grant(id, &fact, Level::Exclusive, version);
    given.then(|| Granted { fact: Some(fact.to_message()), exclusive: true })
}

/// Whether a change brings what its session had buffered.
fn brings_buffered(request: &FsRequest) -> bool {
    match &request.op {
        Some(Op::Write(write)) => write.written_ns.is_some(),
        Some(Op::Tell(tell)) => {
            tell.changes.iter().filter_map(|change| change.request.as_ref()).any(brings_buffered_itself)
        }
        _ => false,
    }
}

fn brings_buffered_itself(request: &FsRequest) -> bool {
    matches!(&request.op, Some(Op::Write(write)) if write.written_ns.is_some())
}

/// A version at which every commit that was proposed before is decided.
async fn decided(master: &Master, volume: VolumeId) -> Option<u64> {
    geo::stand::reserve_ids(master, volume, IdKind::Session).await.ok()?;
    master.store.begin().read_version().await.ok().map(|version| version.0)
}

/// What a change's answer tells of the facts that it made.
fn facts_changed(request: &FsRequest, reply: &FsReply) -> BTreeSet<Fact> {
    let mut facts = BTreeSet::new();
    let (Some(op), Some(reply)) = (&request.op, &reply.reply) else { return facts };
    let inode = |attr: &Option<Attr>| attr.as_ref().map(|attr| Fact::Inode(InodeId(attr.inode)));
    let entry = |parent: u64, name: &bytes::Bytes| Fact::Entry(InodeId(parent), name.clone());
    match (op, reply) {
        (Op::Create(r), Reply::Created(made)) => {
            facts.extend(inode(&made.attr));
            facts.insert(entry(r.parent, &r.name));
        }
        (Op::Mknod(r), Reply::Entry(made)) => {
            facts.extend(inode(&made.attr));
            facts.insert(entry(r.parent, &r.name));
        }
        (Op::Mkdir(r), Reply::Entry(made)) => {
            facts.extend(inode(&made.attr));
            facts.insert(entry(r.parent, &r.name));
            // It is empty.
            facts.extend(made.attr.as_ref().map(|attr| Fact::Directory(InodeId(attr.inode))));
        }
        (Op::Symlink(r), Reply::Entry(made)) => {
            facts.extend(inode(&made.attr));
            facts.insert(entry(r.parent, &r.name));
        }
        (Op::Link(r), Reply::Entry(made)) => {
            facts.extend(inode(&made.attr));
            facts.insert(entry(r.new_parent, &r.new_name));
        }
        (Op::Unlink(r), Reply::Done(_)) => drop(facts.insert(entry(r.parent, &r.name))),
        (Op::Rmdir(r), Reply::Done(_)) => drop(facts.insert(entry(r.parent, &r.name))),
        (Op::Rename(r), Reply::Done(_)) if !r.exchange => drop(facts.insert(entry(r.parent, &r.name))),
        (Op::SetAttr(_), Reply::Entry(set)) => facts.extend(inode(&set.attr)),
        (Op::Write(_), Reply::Written(written)) => facts.extend(inode(&written.attr)),
        (Op::Fallocate(_) | Op::CopyRange(_), Reply::Ranged(ranged)) => facts.extend(inode(&ranged.attr)),
        _ => {}
    }
    facts
}
