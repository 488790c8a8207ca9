//! Promises at work: which facts a request is about, recalls on their way, the gate before a commit (DESIGN section 6; the decisions are
//! [`mooseng_region::promises`]').

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use mooseng_namespace::touched::Charges;
use mooseng_namespace::{Admission, Errno, Gate, Room, reads_from};
use mooseng_ports::plant::{self, Plant};
use mooseng_region::debts::Debts;
use mooseng_region::promises::{ChangeId, PromiseTable, Recall};
use mooseng_region::quotas::{Amount, FlightId, Ledger, Verdict};
use mooseng_schema::ids::IdKind;
use mooseng_schema::quota::Account;
use mooseng_store::{Store, Transaction};
use mooseng_transport::{ConnectionHandle, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fact::{Fact, Level};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, FileKind, FsReply, FsRequest, Tell, Told};
use mooseng_wire::method::Method;
use mooseng_wire::session::{self, AnswerRecalls, Granted, Notice, RecallsAnswered};
use mooseng_wire::{Incarnation, InodeId, RequestNumber, SessionId, VolumeId};
use prost::Message;
use tokio::time::Instant;

use crate::desk::Desk;
use crate::errors::refused;
use crate::master::Master;
use crate::{geo, quotas};

/// Unanswered recalls are sent again so often: the connection on which they left may have broken.
const REPEAT_EVERY: Duration = Duration::from_millis(300);
/// A session that has owed an answer for so long isn't renewed any more. What a mount can't send it gives up, and answers, once it has tried for a minute.
const OWED_AT_MOST: Duration = Duration::from_secs(90);
/// Recalls in one notice.
const RECALLS_PER_NOTICE: usize = 256;
/// Facts taken back at a time from a session that is promised nearly all it may be.
const ROOM_MADE: usize = 256;
/// A change that fits but for what others were promised of its quotas waits so long for them to give it back: twice as long as that takes.
const ESCROW_WAIT: Duration = Duration::from_secs(5);
/// And looks so often whether they have.
const ESCROW_LOOK: Duration = Duration::from_millis(50);
/// Linux' ENOENT and ESTALE.
const ENOENT: u32 = 2;
const ESTALE: u32 = 116;
/// Linux' O_ACCMODE and O_RDONLY.
const OPEN_ACCESS_MODE: u32 = 3;
const OPEN_READ_ONLY: u32 = 0;

/// Sessions' connections, by which notices travel.
#[derive(Default)]
pub struct Connections(Mutex<BTreeMap<SessionId, ConnectionHandle>>);

impl Connections {
    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<SessionId, ConnectionHandle>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A session spoke on this connection.
    pub fn note(&self, session: SessionId, connection: &ConnectionHandle) {
        self.map(|map| match map.get(&session) {
            Some(known) if known.id == connection.id => {}
            _ => drop(map.insert(session, connection.clone())),
        });
    }

    /// A connection ended.
    pub fn forget(&self, connection: u64) {
        self.map(|map| map.retain(|_, known| known.id != connection));
    }

    /// Those of a volume's sessions.
    pub fn of(&self, volume: VolumeId) -> Vec<(SessionId, ConnectionHandle)> {
        self.map(|map| {
            let of_it = map.range(SessionId::all_of(volume));
            of_it.map(|(session, connection)| (*session, connection.clone())).collect()
        })
    }

    /// The connection of a session.
    pub fn get(&self, session: SessionId) -> Option<ConnectionHandle> {
        self.map(|map| map.get(&session).cloned())
    }
}

/// Sends recalls to whom they concern. One that can't be sent is repeated later.
pub fn send(master: &Master, custody_epoch: u64, recalls: &[Recall]) {
    let mut by_session: BTreeMap<SessionId, Vec<session::Recall>> = BTreeMap::new();
    for recall in recalls {
        by_session.entry(recall.session).or_default().push(session::Recall {
            number: recall.number,
            fact: Some(recall.fact.to_message()),
            keep_shared: recall.keep == Some(Level::Shared),
        });
    }
    for (id, recalls) in by_session {
        let Some(connection) = master.connections.get(id) else { continue };
        master.metrics.recalls.inc_by(recalls.len() as u64);
        for page in recalls.chunks(RECALLS_PER_NOTICE) {
            let notice = Notice { session: id.0, custody_epoch, recalls: page.to_vec(), ..Notice::default() };
            if connection.notify(Method::Notice, notice.encode_to_vec().into()).is_err() {
                break;
            }
        }
    }
}

/// A session says that it has given up what it was asked for.
pub fn answered(
    master: &Master,
    identity: &str,
    request: &AnswerRecalls,
) -> Result<RecallsAnswered, CallError> {
    let id = SessionId(request.session);
    let term = master.serving_of(id.volume())?;
    // Numbers of an earlier custodian mean other recalls.
    if request.custody_epoch != term {
        return Ok(RecallsAnswered {});
    }
    let woken = master.desk(|desk| {
        let now = master.clock.boot();
        desk.sessions
            .check(now, id, Incarnation(request.incarnation), identity)
            .map_err(|refusal| refused(&refusal))?;
        let settled = desk.sessions.settle(id, RequestNumber(request.oldest_unanswered));
        desk.promises.settle(id, settled);
        let mut woken = false;
        for number in &request.numbers {
            woken |= desk.promises.acknowledge(id, *number);
        }
        for wait in &request.locks {
            desk.lock_waits.told((id, *wait));
        }
        Ok::<_, CallError>(woken)
    })?;
    if woken {
        master.recalls_answered.notify_waiters();
    }
    Ok(RecallsAnswered {})
}

/// Waits until `ready` says yes to the desk, at most until the deadline.
async fn wait_until(
    master: &Master,
    deadline: Instant,
    what: &str,
    mut ready: impl FnMut(&mut Desk) -> bool,
) -> Result<(), CallError> {
    loop {
        let woken = master.recalls_answered.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if master.desk(&mut ready) {
            return Ok(());
        }
        tokio::select! {
            () = woken => {}
            () = tokio::time::sleep_until(deadline) => {
                return Err(call_error(ErrorCode::Unavailable, format!("{what}; try again")));
            }
            () = master.shutdown.cancelled() => return Err(master.not_leader()),
        }
    }
}

/// A new custodian of a volume answers nothing of it until every session on record has said that it shows nothing any more that an earlier
/// custodian promised, or has run out: what it holds exclusively nobody else knows.
pub async fn custody_settled(master: &Master, volume: VolumeId, deadline: Instant) -> Result<(), CallError> {
    if master.desk(|desk| desk.is_settled(volume)) {
        return Ok(());
    }
    let what = "this master is new in office and still waits for sessions to answer or to run out";
    wait_until(master, deadline, what, |desk| desk.is_settled(volume)).await
}

/// What a read's answer told, so that it may be promised.
fn facts_read(request: &FsRequest, reply: &FsReply) -> BTreeSet<Fact> {
    let mut facts = BTreeSet::new();
    let inode = |id: u64| Fact::Inode(InodeId(id));
    let attr_of = |attr: &Option<Attr>| attr.as_ref().map(|attr| Fact::Inode(InodeId(attr.inode)));
    let (Some(op), Some(reply)) = (&request.op, &reply.reply) else { return facts };
    match (op, reply) {
        (Op::Lookup(r), Reply::Entry(entry)) => {
            // "." and ".." are no entries.
            if r.name.as_ref() != b"." && r.name.as_ref() != b".." {
                facts.insert(Fact::Entry(InodeId(r.parent), r.name.clone()));
            }
            facts.extend(attr_of(&entry.attr));
        }
        (Op::Lookup(r), Reply::Errno(ENOENT)) => {
            facts.insert(Fact::Entry(InodeId(r.parent), r.name.clone()));
        }
        (Op::ReadDir(r), Reply::DirPage(page)) => {
            facts.insert(Fact::Directory(InodeId(r.inode)));
            facts.extend(page.entries.iter().filter_map(|entry| attr_of(&entry.attr)));
        }
        (Op::GetAttr(r), Reply::Entry(_)) => drop(facts.insert(inode(r.inode))),
        (Op::HoldAlone(r), Reply::Entry(_)) => drop(facts.insert(inode(r.inode))),
        (Op::HoldFiles(_), Reply::DirPage(page)) => {
            facts.extend(page.entries.iter().filter_map(|entry| attr_of(&entry.attr)));
        }
        (Op::Acquire(r), Reply::Entry(_)) => drop(facts.insert(inode(r.inode))),
        (Op::Open(r), Reply::Entry(_)) => drop(facts.insert(inode(r.inode))),
        (Op::ReadExtents(r), Reply::Extents(_)) => drop(facts.insert(inode(r.inode))),
        (Op::ReadLink(r), Reply::Value(_)) => drop(facts.insert(inode(r.inode))),
        (Op::Seek(r), _) => drop(facts.insert(inode(r.inode))),
        (Op::Describe(r), _) => drop(facts.insert(inode(r.inode))),
        (Op::GetXattr(r), _) => drop(facts.insert(inode(r.inode))),
        (Op::ListXattr(r), _) => drop(facts.insert(inode(r.inode))),
        (Op::Access(r), _) => drop(facts.insert(inode(r.inode))),
        _ => {}
    }
    facts
}

/// The facts that a read's answer tells something of: a refusal tells of all that was looked at.
pub fn told_by_read(request: &FsRequest, reply: &FsReply, looked: &BTreeSet<Fact>) -> BTreeSet<Fact> {
    let facts = facts_read(request, reply);
    if facts.is_empty() || matches!(reply.reply, Some(Reply::Errno(_))) { looked.clone() } else { facts }
}

/// Which of a read's facts its answer holds entirely, so that a client can keep them.
fn grantable(request: &FsRequest, fact: &Fact) -> bool {
    match &request.op {
        Some(Op::Seek(_) | Op::Describe(_) | Op::GetXattr(_) | Op::ListXattr(_) | Op::Access(_)) => false,
        // Exclusively, or not at all.
        Some(Op::HoldFiles(_)) => false,
        // A listing is complete from its first page on, or not at all.
        Some(Op::ReadDir(r)) => !matches!(fact, Fact::Directory(_)) || r.cookie == 0,
        _ => true,
    }
}

/// What of a read's answer may be promised at the shared level.
pub fn promised_by_read(request: &FsRequest, reply: &FsReply) -> BTreeSet<Fact> {
    facts_read(request, reply).into_iter().filter(|fact| grantable(request, fact)).collect()
}

/// The inode that a request opens to write to it.
fn opened_to_write(request: &FsRequest) -> Option<InodeId> {
    match &request.op {
        Some(Op::Open(r)) if r.flags & OPEN_ACCESS_MODE != OPEN_READ_ONLY => Some(InodeId(r.inode)),
        _ => None,
    }
}

/// What goes beside an answer.
#[derive(Debug, Default)]
pub struct Beside {
    /// Its place in the session's sequence.
    pub number: u64,
    /// What is promised.
    pub granted: Vec<Granted>,
    /// What the session changed of what it was promised.
    pub changed: Vec<session::Fact>,
}

/// What an answer rests on: the facts that were looked at, and when that began.
#[derive(Debug, Default)]
pub struct RestsOn {
    /// By the count of what was given back.
    pub tick: u64,
    /// The facts.
    pub looked: BTreeSet<Fact>,
    /// Everybody has told what they made alone since the request came: what isn't there now, isn't there.
    pub all_told: bool,
    /// What others were promised of a directory that is asked for alone was taken back: that is done once.
    pub taken: bool,
}

/// Before the first answer that an inode isn't there: who has to tell first what it made alone. None: the answer stands.
fn untold(desk: &mut Desk, id: SessionId, tick: u64) -> Option<Vec<Recall>> {
    let recalls = desk.promises.untold(id);
    // What was given back since the run began may have been told since.
    (!recalls.is_empty() || desk.promises.tick() != tick).then_some(recalls)
}

/// Of a list, what its answer rests on is the list: the attributes in it that somebody holds back are left out.
fn rests_on(request: &FsRequest, looked: BTreeSet<Fact>) -> BTreeSet<Fact> {
    match &request.op {
        Some(Op::ReadDir(r)) => {
            let directory = InodeId(r.inode);
            looked
                .into_iter()
                .filter(|f| *f == Fact::Directory(directory) || *f == Fact::Inode(directory))
                .collect()
        }
        _ => looked,
    }
}

/// Looks whether a read's answer may leave as it is. None: others had to answer recalls first, and have; the read runs again.
pub async fn admit_read(
    master: &Master,
    term: u64,
    id: SessionId,
    request: &FsRequest,
    (reply, version): (&mut FsReply, u64),
    rests: &mut RestsOn,
    deadline: Instant,
) -> Result<Option<Beside>, CallError> {
    let tick = rests.tick;
    let mut looked = rests_on(request, std::mem::take(&mut rests.looked));
    let unheard_of = !rests.all_told && matches!(reply.reply, Some(Reply::Errno(ESTALE)));
    let listing = matches!(request.op, Some(Op::ReadDir(_)));
    let acquire = match &request.op {
        Some(Op::Acquire(r)) => Some(InodeId(r.inode)),
        _ => None,
    };
    // Where there is none for new names, whoever makes one is to hear so at once.
    let spacious = master.room() == Room::Enough;
    let outcome = master.desk(|desk| {
        if !desk.is_custodian(id.volume(), term) {
            return None;
        }
        if listing {
            // One look at a directory doesn't take its files from those who write them: their attributes are left out.
            if let Some(Reply::DirPage(page)) = &mut reply.reply {
                for entry in &mut page.entries {
                    let inode = entry.attr.as_ref().map_or(0, |attr| attr.inode);
                    if desk.promises.is_exclusive_elsewhere(id, InodeId(inode)) {
                        entry.attr = None;
                    }
                }
            }
        }
        if let (Some(Op::HoldFiles(r)), Some(Reply::DirPage(page))) = (&request.op, &mut reply.reply) {
            // What somebody else has open isn't taken from him: nothing is told of it, either.
            let directory = InodeId(r.directory);
            let alone = desk.promises.has_alone(id, directory);
            for entry in &mut page.entries {
                if !alone || desk.sessions.is_open_elsewhere(id, InodeId(entry.inode)) {
                    entry.attr = None;
                }
            }
            looked.clone_from(&facts_read(request, reply));
        }
        let facts = facts_read(request, reply);
        // While two sessions have a file open, both write through.
        let alone = acquire.is_some_and(|inode| !desk.sessions.is_open_elsewhere(id, inode));
        // What others are promised of files that they don't have open they give up, all at once.
        let taken = alone || matches!(request.op, Some(Op::HoldFiles(_)));
        let mut recalls = desk.promises.read_blockers(id, &facts, taken);
        recalls.extend(desk.promises.hidden(id, &looked));
        // Who changes a directory again and again takes more from the others, change by change, than he does now.
        if let (Some(Op::HoldAlone(r)), Some(Reply::Entry(_))) = (&request.op, &reply.reply)
            && spacious
            && !rests.taken
        {
            let before = recalls.len();
            recalls.extend(desk.promises.known_elsewhere(id, InodeId(r.inode)));
            rests.taken = recalls.len() > before;
        }
        if !recalls.is_empty() || desk.promises.given_back_since(tick, &looked) {
            return Some(Err(recalls));
        }
        if unheard_of && let Some(recalls) = untold(desk, id, tick) {
            rests.all_told = true;
            return Some(Err(recalls));
        }
        // Who opens a file to write gets it exclusively if that takes nothing from anybody.
        let writer =
            opened_to_write(request).is_some_and(|inode| !desk.sessions.is_open_elsewhere(id, inode));
        let levels: &[Level] = match (alone, writer) {
            (true, _) => &[Level::Exclusive],
            (false, true) => &[Level::Exclusive, Level::Shared],
            (false, false) => &[Level::Shared],
        };
        let mut beside = Beside::default();
        if let (Some(Op::HoldAlone(r)), Some(Reply::Entry(_))) = (&request.op, &reply.reply) {
            let directory = InodeId(r.inode);
            if spacious && desk.promises.grant_alone(id, directory, version) {
                let fact = Some(Fact::Directory(directory).to_message());
                beside.granted.push(Granted { fact, exclusive: true });
            }
        }
        if let Some(Op::HoldFiles(r)) = &request.op {
            for fact in &facts {
                if let Fact::Inode(file) = fact
                    && desk.promises.grant_with(id, InodeId(r.directory), *file, version)
                {
                    beside.granted.push(Granted { fact: Some(fact.to_message()), exclusive: true });
                }
            }
        }
        for fact in facts.iter().filter(|fact| grantable(request, fact)) {
            if levels.iter().any(|level| desk.promises.grant(id, fact, *level, version)) {
                // An inode that is held at a higher level already stays so.
                let exclusive = desk.promises.level(id, fact) == Some(Level::Exclusive);
                beside.granted.push(Granted { fact: Some(fact.to_message()), exclusive });
            }
        }
        if !beside.granted.is_empty() {
            beside.number = desk.promises.next_number(id).unwrap_or(0);
        }
        Some(Ok(beside))
    });
    match outcome {
        // Promises belong to the term in which the request came. Another one's table, of the same master even, knows nothing of it: a grant
        // there would stand in the way of what sessions claim before they have answered the new custodian.
        None => Err(master.not_leader()),
        Some(Ok(beside)) => Ok(Some(beside)),
        Some(Err(recalls)) => {
            send(master, term, &recalls);
            let what = "another session hasn't given up yet what it was promised of this";
            wait_until(master, deadline, what, |desk| desk.promises.answered(&recalls)).await?;
            Ok(None)
        }
    }
}

/// Has others tell what they hold back of an inode that a change reads: data that was written before the change came is in what it reads. Others
/// may begin to write while the change is under way; it sees of that what it happens to see, as any read does.
pub async fn admit_source(
    master: &Master,
    term: u64,
    id: SessionId,
    inode: InodeId,
    deadline: Instant,
) -> Result<(), CallError> {
    let facts = BTreeSet::from([Fact::Inode(inode)]);
    loop {
        let recalls = master.desk(|desk| {
            desk.is_custodian(id.volume(), term).then(|| desk.promises.read_blockers(id, &facts, false))
        });
        let recalls = recalls.ok_or_else(|| master.not_leader())?;
        if recalls.is_empty() {
            return Ok(());
        }
        send(master, term, &recalls);
        let what = "another session hasn't told yet what it has written to the file that is copied";
        wait_until(master, deadline, what, |desk| desk.promises.answered(&recalls)).await?;
    }
}

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

/// Repeats unanswered recalls, and makes room where sessions are promised nearly all they may be. Whoever owes an answer for too long isn't waited for any longer
/// than its lease.
pub async fn keep(master: Arc<Master>) {
    let mut debts = Debts::new(OWED_AT_MOST);
    loop {
        tokio::select! {
            () = tokio::time::sleep(REPEAT_EVERY) => {}
            () = master.shutdown.cancelled() => return,
        }
        let by_custody = master.desk(|desk| {
            let mut by_custody: BTreeMap<u64, Vec<Recall>> = BTreeMap::new();
            if !desk.is_serving() {
                return by_custody;
            }
            let mut recalls = desk.promises.make_room(ROOM_MADE);
            let mut oldest = Vec::new();
            for id in desk.promises.debtors() {
                let unanswered = desk.promises.unanswered(id);
                // Nobody asks for what is owed of a volume that isn't served.
                if desk.serving_of(id.volume()).is_some() {
                    oldest.extend(unanswered.first().map(|recall| (id, recall.number)));
                }
                recalls.extend(unanswered);
            }
            let overdue = debts.look(master.clock.boot(), oldest);
            for of in desk.sessions.only_these_owe(overdue) {
                tracing::warn!(
                    session = of.session.0,
                    host = of.host,
                    mount = of.mount_path,
                    "a mount doesn't give up what others wait for: its lease isn't renewed"
                );
            }
            // What a volume's sessions owe that isn't served is asked for once it is again.
            for recall in recalls {
                if let Some(custody) = desk.serving_of(recall.session.volume()) {
                    by_custody.entry(custody).or_default().push(recall);
                }
            }
            by_custody
        });
        for (custody, recalls) in by_custody {
            send(&master, custody, &recalls);
        }
    }
}
