//! A region in memory, for tests of the client and of the mount: masters, of which one leads, and chunkservers, behind the port
//! [`Peers`]. It keeps one directory tree by simple means and has the faults that the client must survive. It checks what the
//! client owes: numbers used once, chunks appended at their end, nothing but acknowledged bytes named by metadata.

mod data;
mod tree;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Append, ChunkStat, Read, StatChunk};
use mooseng_wire::founding::Founding;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, Created, Extent, FileKind, FsReply, LockState, extent};
use mooseng_wire::method::Method;
use mooseng_wire::session::{
    CloseSession, Fact, FactKind, Granted, OpenSession, Renew, Renewed, Request, Response, SessionClosed,
    SessionOpened,
};
use mooseng_wire::{InodeId, Role, VolumeId};
use prost::Message;

pub use crate::fake_locks::FakeLocks;
use crate::peers::{Answered, Failure, Peers, Unconnected};

/// What goes wrong, by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Connections are refused.
    Down,
    /// Nothing is answered and nothing done.
    Hung,
    /// Everything is done, and the answer is lost.
    Deaf,
    /// Changes are refused for an inner failure.
    Broken,
    /// Bytes read are wrong.
    Corrupt,
}

#[derive(Default)]
struct Node {
    attr: Attr,
    entries: BTreeMap<Bytes, u64>,
    extents: BTreeMap<u64, Extent>,
    target: Bytes,
    xattrs: BTreeMap<Bytes, Bytes>,
}

#[derive(Default)]
struct Session {
    incarnation: u64,
    lapsed: bool,
    opens: BTreeMap<u64, u64>,
    outcomes: BTreeMap<u64, FsReply>,
    oldest_unanswered: u64,
}

/// The inner state, open to tests.
#[derive(Default)]
pub struct State {
    leader: String,
    /// The region's founding mark.
    founding: Option<Founding>,
    /// Masters that were made anew beside the rest, and lead a region of their own.
    pub strangers: BTreeSet<String>,
    faults: BTreeMap<String, Fault>,
    nodes: BTreeMap<u64, Node>,
    sessions: BTreeMap<u64, Session>,
    chunks: BTreeMap<(String, u64), Vec<u8>>,
    places: BTreeMap<u64, Vec<String>>,
    sealed: BTreeMap<u64, u64>,
    last_id: u64,
    clock: i64,
    /// Whoever asks is promised the inode that the answer is about exclusively; there is nobody else.
    pub exclusive: bool,
    /// And directories alone: it takes what is told of what was made there.
    pub alone: bool,
    /// And inodes' locks, of which none is on record, where nobody else has the file open.
    pub locks_alone: bool,
    /// The inodes of which sessions said last, when they were taken up again, that they have given locks by themselves.
    pub locks_claimed: Vec<u64>,
    /// The id of the next inode, where the client gives it.
    given_id: Option<u64>,
    /// Volumes besides the root, and which master leads where each is at home.
    volumes: BTreeMap<VolumeId, String>,
    /// Whose request is answered now.
    volume: VolumeId,
    /// Whoever looks a name up is promised what it leads to.
    pub names_promised: bool,
    /// Masters are of a release that knows of the root alone.
    pub one_volume: bool,
    /// Locks.
    pub locks: FakeLocks,
    /// Written data is refused with this error number.
    pub refuse_writes: Option<i32>,
    /// Changes of sizes are refused with this error number.
    pub refuse_sizes: Option<i32>,
    /// They are neither done nor answered.
    pub sizes_hang: bool,
    /// Nothing more is taken inline behind the first 64 KiB of a file.
    pub staging_closed: bool,
    /// All users together may have so many bytes.
    pub quota: Option<u64>,
    /// What was granted of that, and spent, as the client says.
    pub escrow: (u64, u64),
    grants: u64,
    /// Sessions that are opened lapse again at once, so often.
    pub short_leases: u32,
    /// Changes run, without repetitions.
    pub executed: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Questions whether all other regions have something.
    pub syncs: u64,
    /// Bytes that were read of chunks.
    pub chunk_bytes: u64,
    /// Changes whose recorded outcome was answered again.
    pub repeated: u64,
    /// The volume's home epoch.
    pub home: u64,
    /// There are other regions, and a new home lets sessions reclaim their locks.
    pub reclaims: bool,
    /// Calls by method.
    pub calls: BTreeMap<&'static str, u64>,
    /// What the client did that it must not.
    pub violations: Vec<String>,
}

/// The region.
pub struct FakeRegion {
    masters: Vec<String>,
    chunkservers: Vec<String>,
    copies: usize,
    state: Mutex<State>,
}

fn errno(number: i32) -> Reply {
    Reply::Errno(number as u32)
}

/// Whether it is a change of a file's size.
fn sets_size(method: Method, body: &Bytes) -> bool {
    let request = || Request::decode(body.clone()).ok()?.op?.op;
    method == Method::FsChange && matches!(request(), Some(Op::SetAttr(set)) if set.size.is_some())
}

fn refuse(code: ErrorCode, leader: &str) -> Failure {
    Failure::Refused(CallError {
        code: code.into(),
        message: format!("the fake says {}", code.as_str_name()),
        leader: leader.to_owned(),
        detail: Bytes::new(),
    })
}

impl FakeRegion {
    /// Three masters `m1`.. of which the first leads, and three chunkservers `c1`.. with two copies of each chunk.
    pub fn new() -> Self {
        let name = |prefix: &str| (1..=3).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>();
        let state = Mutex::new(State::founded(Founding([1; 16])));
        Self { masters: name("m"), chunkservers: name("c"), copies: 2, state }
    }
    /// The masters lose everything, and make the region anew under that mark. Answers the state that was lost.
    pub fn make_anew(&self, founding: Founding) -> State {
        self.with(|s| std::mem::replace(s, State::founded(founding)))
    }
    /// The masters' addresses.
    pub fn masters(&self) -> Vec<String> {
        self.masters.clone()
    }
    /// Looks at, or changes, the state.
    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// Another master leads.
    pub fn elect(&self, leader: &str) {
        self.with(|s| s.leader = leader.to_owned());
    }
    /// Sets or ends a fault.
    pub fn fault(&self, address: &str, fault: Option<Fault>) {
        self.with(|s| match fault {
            Some(fault) => drop(s.faults.insert(address.to_owned(), fault)),
            None => drop(s.faults.remove(address)),
        });
    }
    /// Every session's lease runs out. Their chunks are sealed where metadata's knowledge of them ends.
    pub fn lapse(&self) {
        self.with(|s| {
            s.sessions.values_mut().for_each(|session| session.lapsed = true);
            s.locks.clear();
            let open: Vec<u64> =
                s.places.keys().copied().filter(|chunk| !s.sealed.contains_key(chunk)).collect();
            for chunk in open {
                let committed = s.committed(chunk);
                s.seal(chunk, committed);
            }
        });
    }

    /// Another region is the volume's home now, under another leader: sessions live on, and locks only where they are reclaimed.
    pub fn move_home(&self, leader: &str) {
        self.with(|s| {
            s.home += 1;
            s.leader = leader.to_owned();
            s.locks.clear();
        });
    }

    fn master(&self, address: &str, method: Method, body: Bytes) -> Result<Bytes, Failure> {
        self.with(|s| {
            if s.strangers.contains(address) {
                return Err(refuse(ErrorCode::OtherFounding, ""));
            }
            let malformed = |_| refuse(ErrorCode::InvalidRequest, "");
            s.volume = if s.one_volume { VolumeId(0) } else { volumes::asked(method, &body)? };
            let leader = s.leader_of(s.volume)?;
            if leader != address {
                return Err(refuse(ErrorCode::NotLeader, &leader));
            }
            Ok(match method {
                Method::OpenSession => {
                    let open = OpenSession::decode(body).map_err(malformed)?;
                    s.let_in(&open.founding)?;
                    s.open_session(&open).encode_to_vec()
                }
                Method::Renew => {
                    let renew = Renew::decode(body).map_err(malformed)?;
                    s.let_in(&renew.founding)?;
                    s.session(renew.session, renew.incarnation)?;
                    Renewed { lease_ms: 10_000, custody_epoch: 1, ..Renewed::default() }.encode_to_vec()
                }
                Method::CloseSession => {
                    s.sessions.remove(&CloseSession::decode(body).map_err(malformed)?.session);
                    SessionClosed {}.encode_to_vec()
                }
                Method::FsRead | Method::FsChange => {
                    let request = Request::decode(body).map_err(malformed)?;
                    let op = request.op.clone().and_then(|request| request.op);
                    let reply = s.request(request, &self.chunkservers, self.copies)?;
                    s.response(reply, op.as_ref()).encode_to_vec()
                }
                _ => return Err(refuse(ErrorCode::InvalidRequest, "")),
            }
            .into())
        })
    }

    fn chunkserver(
        &self,
        address: &str,
        method: Method,
        body: Bytes,
        bulk: Bytes,
    ) -> Result<Answered, Failure> {
        let malformed = |_| refuse(ErrorCode::InvalidRequest, "");
        self.with(|s| match method {
            Method::ChunkAppend => s
                .append(address, &Append::decode(body).map_err(malformed)?, &bulk)
                .map(|body| Answered { body, bulk: Bytes::new() }),
            Method::ChunkRead => s.read_chunk(address, &Read::decode(body).map_err(malformed)?),
            Method::ChunkStat => {
                let stat = StatChunk::decode(body).map_err(malformed)?;
                let length = s.chunks.get(&(address.to_owned(), stat.chunk)).map_or(0, Vec::len) as u64;
                Ok(Answered {
                    body: ChunkStat { length, flushed: length, ..ChunkStat::default() }
                        .encode_to_vec()
                        .into(),
                    bulk: Bytes::new(),
                })
            }
            _ => Err(refuse(ErrorCode::InvalidRequest, "")),
        })
    }
}

impl Default for FakeRegion {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Peers for FakeRegion {
    async fn call(
        &self,
        role: Role,
        address: &str,
        method: Method,
        body: Bytes,
        bulk: Bytes,
        timeout: Duration,
    ) -> Result<Answered, Failure> {
        tokio::task::yield_now().await;
        let fault = self.with(|s| {
            *s.calls.entry(method.as_str()).or_default() += 1;
            let hangs = s.sizes_hang && sets_size(method, &body);
            if hangs { Some(Fault::Hung) } else { s.faults.get(address).copied() }
        });
        match fault {
            Some(Fault::Down) => return Err(Failure::NotSent(Unconnected::Passing("refused".into()))),
            Some(Fault::Hung) => {
                tokio::time::sleep(timeout).await;
                return Err(Failure::Timeout);
            }
            Some(Fault::Broken) if method == Method::FsChange => {
                return Err(Failure::Refused(CallError {
                    code: ErrorCode::Internal.into(),
                    ..CallError::default()
                }));
            }
            _ => {}
        }
        let answer = if role == Role::Master {
            self.master(address, method, body).map(|body| Answered { body, bulk: Bytes::new() })
        } else {
            // As real ones do, it waits for the packets before this one.
            if method == Method::ChunkAppend
                && let Ok(append) = Append::decode(body.clone())
            {
                for _ in 0..100 {
                    let length =
                        self.with(|s| s.chunks.get(&(address.to_owned(), append.chunk)).map_or(0, Vec::len));
                    if length as u64 >= append.offset {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            let answer = self.chunkserver(address, method, body, bulk);
            // A chain that hangs further down doesn't answer.
            if let Err(Failure::Timeout) = answer {
                tokio::time::sleep(timeout).await;
            }
            answer
        };
        if fault == Some(Fault::Deaf) { Err(Failure::Lost) } else { answer }
    }
}

impl State {
    /// An empty region.
    fn founded(founding: Founding) -> Self {
        let mut state = State {
            leader: "m1".into(),
            home: 1,
            founding: Some(founding),
            last_id: 100,
            clock: 1_700_000_000_000_000_000,
            ..State::default()
        };
        let attr = Attr {
            inode: 1,
            kind: FileKind::Directory.into(),
            mode: 0o755,
            nlink: 2,
            no_acls: true,
            ..Attr::default()
        };
        state.nodes.insert(1, Node { attr, ..Node::default() });
        state
    }

    /// Masters are asked about a volume, and lead where it is at home.
    fn leader_of(&self, volume: VolumeId) -> Result<String, Failure> {
        match self.volumes.get(&volume) {
            Some(leader) => Ok(leader.clone()),
            None if volume.0 == 0 => Ok(self.leader.clone()),
            None => Err(refuse(ErrorCode::NoVolume, "")),
        }
    }

    fn let_in(&self, told: &[u8]) -> Result<(), Failure> {
        match Founding::told(told) {
            Ok(told) if told.is_none() || told == self.founding => Ok(()),
            Ok(_) => Err(refuse(ErrorCode::OtherFounding, "")),
            Err(_) => Err(refuse(ErrorCode::InvalidRequest, "")),
        }
    }

    fn id(&mut self) -> u64 {
        if let Some(given) = self.given_id.take() {
            return given;
        }
        self.last_id += 1;
        InodeId::new(self.volume, self.last_id).0
    }
    fn now(&mut self) -> i64 {
        self.clock += 1000;
        self.clock
    }

    fn response(&mut self, reply: FsReply, op: Option<&Op>) -> Response {
        let of = |kind: FactKind, inode: u64| Granted {
            fact: Some(Fact { kind: kind.into(), inode, name: Bytes::new() }),
            exclusive: true,
        };
        let mut granted = Vec::new();
        if let Some(Op::Lookup(r)) = op
            && self.names_promised
        {
            let fact = Fact { kind: FactKind::Entry.into(), inode: r.parent, name: r.name.clone() };
            granted.push(Granted { fact: Some(fact), exclusive: false });
            if let Some(inode) = self.named(r.parent, &r.name).filter(|_| self.exclusive) {
                granted.push(of(FactKind::Inode, inode));
            }
        }
        match op {
            Some(Op::ReadDir(r)) if self.alone && r.cookie == 0 => {
                granted.push(Granted { exclusive: false, ..of(FactKind::Directory, r.inode) });
            }
            Some(Op::Mkdir(r)) if self.alone && r.alone => {
                if let Some(Reply::Entry(made)) = &reply.reply
                    && let Some(attr) = &made.attr
                {
                    granted.push(of(FactKind::Inode, attr.inode));
                    granted.push(of(FactKind::Directory, attr.inode));
                }
            }
            Some(Op::HoldAlone(r)) if self.alone => {
                granted.push(of(FactKind::Inode, r.inode));
                granted.push(of(FactKind::Directory, r.inode));
            }
            Some(Op::HoldFiles(r)) if self.alone => {
                granted.extend(r.inodes.iter().map(|inode| of(FactKind::Inode, *inode)));
            }
            Some(Op::HoldLocks(r)) if self.locks_alone && self.open_count(r.inode) < 2 => {
                if let Some(Reply::Locked(locked)) = &reply.reply
                    && locked.state() == LockState::Held
                {
                    granted.push(of(FactKind::Locks, r.inode));
                }
            }
            Some(Op::ReadExtents(r)) if self.alone && self.exclusive => {
                granted.push(of(FactKind::Inode, r.inode));
            }
            Some(Op::Tell(tell)) => {
                for inode in tell.changes.iter().map(|change| change.inode).filter(|inode| *inode != 0) {
                    granted.push(of(FactKind::Inode, inode));
                    granted.push(of(FactKind::Directory, inode));
                }
            }
            _ => {}
        }
        if let Some(Op::Link(r)) = op
            && self.alone
            && matches!(reply.reply, Some(Reply::Entry(_)))
        {
            self.grants += 1;
            let name = Fact { kind: FactKind::Entry.into(), inode: r.new_parent, name: r.new_name.clone() };
            let changed = vec![name];
            return Response { reply: Some(reply), grant: self.grants, changed, ..Response::default() };
        }
        if !granted.is_empty() {
            self.grants += 1;
            return Response { reply: Some(reply), grant: self.grants, granted, ..Response::default() };
        }
        let attr = match &reply.reply {
            Some(Reply::Entry(entry)) => entry.attr.as_ref(),
            Some(Reply::Created(created)) => created.attr.as_ref(),
            Some(Reply::Written(written)) => written.attr.as_ref(),
            Some(Reply::Ranged(ranged)) => ranged.attr.as_ref(),
            _ => None,
        };
        let Some(attr) = attr.filter(|_| self.exclusive) else {
            return Response { reply: Some(reply), ..Response::default() };
        };
        self.grants += 1;
        let fact = Fact { kind: FactKind::Inode.into(), inode: attr.inode, name: Bytes::new() };
        // What was promised of it before is void.
        let changes = matches!(op, Some(Op::Write(_) | Op::SetAttr(_) | Op::Fallocate(_) | Op::CopyRange(_)));
        let changed = if changes { vec![fact.clone()] } else { Vec::new() };
        let granted = vec![Granted { fact: Some(fact), exclusive: true }];
        Response { reply: Some(reply), grant: self.grants, granted, changed, ..Response::default() }
    }

    /// Another host changes a file.
    pub fn change_elsewhere(&mut self, inode: u64) {
        let now = self.now();
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.attr.ctime_ns = now;
        }
    }

    /// Another host overwrites a file.
    pub fn write_elsewhere(&mut self, inode: u64, data: &'static [u8]) {
        self.change_elsewhere(inode);
        let length = data.len() as u64;
        let extent = Extent { offset: 0, length, data: Some(extent::Data::Inline(Bytes::from_static(data))) };
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.attr.size = length;
            node.extents = BTreeMap::from([(0, extent)]);
        }
    }

    fn session(&mut self, id: u64, incarnation: u64) -> Result<&mut Session, Failure> {
        match self.sessions.get_mut(&id) {
            Some(session) if session.lapsed => Err(refuse(ErrorCode::SessionExpired, "")),
            Some(session) if session.incarnation == incarnation => Ok(session),
            Some(_) => Err(refuse(ErrorCode::StaleEpoch, "")),
            None => Err(refuse(ErrorCode::SessionExpired, "")),
        }
    }

    fn open_session(&mut self, open: &OpenSession) -> SessionOpened {
        self.locks_claimed.clone_from(&open.locks_alone);
        let id = if self.sessions.contains_key(&open.session) { open.session } else { self.id() };
        let session =
            self.sessions.entry(id).or_insert_with(|| Session { incarnation: 1, ..Session::default() });
        let lapsed = session.lapsed;
        if lapsed {
            session.lapsed = false;
            session.incarnation += 1;
            session.opens.clear();
        } else {
            session.opens.retain(|_, held| *held > open.order);
            for declared in &open.opens {
                session.opens.entry(declared.inode).or_insert(open.order);
            }
        }
        if !lapsed && self.short_leases > 0 {
            self.short_leases -= 1;
            session.lapsed = true;
        }
        let incarnation = session.incarnation;
        let reclaims = self.reclaims && !lapsed && (1..self.home).contains(&open.locks_home);
        SessionOpened {
            locks_reclaimed: reclaims,
            locks_lost: if reclaims { self.locks.reclaim(id, &open.locks) } else { Vec::new() },
            elsewhere: if self.reclaims { vec!["elsewhere".to_owned()] } else { Vec::new() },
            session: id,
            incarnation,
            lease_ms: 10_000,
            custody_epoch: 1,
            lapsed,
            root: InodeId::new(self.volume, 1).0,
            founding: Founding::tell(self.founding),
            alone: self.alone,
            home_epoch: self.home,
            locks_alone: self.locks_alone,
            ..SessionOpened::default()
        }
    }

    fn request(
        &mut self,
        request: Request,
        chunkservers: &[String],
        copies: usize,
    ) -> Result<FsReply, Failure> {
        let Request { session: id, incarnation, number, oldest_unanswered, order, releases, .. } = request;
        let umask = request.op.as_ref().and_then(|op| op.caller.as_ref()).map_or(0, |caller| caller.umask);
        let op = request.op.and_then(|op| op.op).ok_or_else(|| refuse(ErrorCode::InvalidRequest, ""))?;
        let op = tree::masked(op, umask);
        if let Some(reply) = self.of_one_volume(&op) {
            return Ok(FsReply { reply: Some(reply) });
        }
        // The table of sessions comes before the outcomes, as at a real master.
        if self.sessions.get(&id).is_none_or(|session| session.lapsed) {
            return Err(refuse(ErrorCode::SessionExpired, ""));
        }
        if let Ok(session) = self.session(id, incarnation) {
            session.opens.retain(|inode, held| !releases.contains(inode) || *held >= order);
            releases.into_iter().for_each(|inode| self.reap(inode));
        }
        if number > 0
            && let Some(session) = self.sessions.get(&id)
            && let Some(outcome) = session.outcomes.get(&number)
        {
            let outcome = outcome.clone();
            self.repeated += 1;
            self.hold_created(id, &outcome, order);
            return Ok(outcome);
        }
        let session = self.session(id, incarnation)?;
        if number > 0 {
            if number < session.oldest_unanswered {
                return Err(refuse(ErrorCode::InvalidRequest, ""));
            }
            session.oldest_unanswered = session.oldest_unanswered.max(oldest_unanswered);
            session.outcomes.retain(|&n, _| n >= oldest_unanswered);
        }
        match &op {
            Op::Open(open) if self.nodes.contains_key(&open.inode) => {
                let held = self.session(id, incarnation)?.opens.entry(open.inode).or_default();
                *held = order.max(*held);
            }
            Op::Release(release) => {
                let opens = &mut self.session(id, incarnation)?.opens;
                opens.retain(|inode, held| *inode != release.inode || *held >= order);
                self.reap(release.inode);
            }
            _ => {}
        }
        let told_open: Vec<u64> = match &op {
            Op::Tell(tell) => tell.changes.iter().filter(|c| c.open).map(|c| c.inode).collect(),
            _ => Vec::new(),
        };
        let locked = self.locks.answer(id, &op);
        let reply = FsReply { reply: Some(locked.unwrap_or_else(|| self.run(op, chunkservers, copies))) };
        self.reads += u64::from(number == 0);
        if number > 0 {
            self.executed += 1;
            self.session(id, incarnation)?.outcomes.insert(number, reply.clone());
            self.hold_created(id, &reply, order);
        }
        for inode in told_open {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.opens.insert(inode, order);
            }
        }
        Ok(reply)
    }

    /// A file that was made is open for its session.
    fn hold_created(&mut self, id: u64, reply: &FsReply, order: u64) {
        if let Some(Reply::Created(Created { attr: Some(attr), created: true })) = &reply.reply
            && let Some(session) = self.sessions.get_mut(&id)
        {
            session.opens.insert(attr.inode, order);
        }
    }

    fn open_count(&self, inode: u64) -> u64 {
        self.sessions.values().filter(|s| s.opens.contains_key(&inode)).count() as u64
    }
    fn reap(&mut self, inode: u64) {
        if self.open_count(inode) == 0 && self.nodes.get(&inode).is_some_and(|n| n.attr.nlink == 0) {
            self.nodes.remove(&inode);
        }
    }
    /// Whether a name is there, and for which inode.
    pub fn named(&self, directory: u64, name: &[u8]) -> Option<u64> {
        self.nodes.get(&directory)?.entries.get(name).copied()
    }
    /// How many of the inodes made still exist.
    pub fn inodes(&self) -> usize {
        self.nodes.len()
    }
    /// How many chunks were ended.
    pub fn sealed_chunks(&self) -> usize {
        self.sealed.len()
    }
    /// An inode's access time.
    pub fn atime(&self, inode: u64) -> i64 {
        self.nodes.get(&inode).map_or(0, |n| n.attr.atime_ns)
    }
}
