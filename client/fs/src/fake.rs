//! A region in memory, for tests of the client and of the mount: masters, of which one leads, and chunkservers, behind the port
//! [`Peers`]. It keeps one directory tree by simple means and has the faults that the client must survive. It checks what the
//! client owes: numbers used once, chunks appended at their end, nothing but acknowledged bytes named by metadata.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mooseng_wire::Role;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Append, Appended, ChainFailure, ChunkStat, Read, ReadDone, StatChunk};
use mooseng_wire::founding::Founding;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{
    Allocated, Attr, ChunkLocation, ChunkPlace, ChunkRun, Created, Description, DirEntry, DirLink, DirPage,
    Done, Entry, Extent, ExtentMap, FileKind, FsReply, FsStat, Names, SeekTo, SeekWhence, SetAttr, Value,
    Written, extent, write_piece,
};
use mooseng_wire::method::Method;
use mooseng_wire::session::{
    CloseSession, Fact, FactKind, Granted, OpenSession, Renew, Renewed, Request, Response, SessionClosed,
    SessionOpened,
};
use prost::Message;

pub use crate::fake_locks::FakeLocks;
use crate::peers::{Answered, Failure, Peers};

/// What goes wrong, by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Connections are refused.
    Down,
    /// Nothing is answered and nothing done.
    Hung,
    /// Everything is done, and the answer is lost.
    Deaf,
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
    /// Locks.
    pub locks: FakeLocks,
    /// Written data is refused with this error number.
    pub refuse_writes: Option<i32>,
    grants: u64,
    /// Sessions that are opened lapse again at once, so often.
    pub short_leases: u32,
    /// Changes run, without repetitions.
    pub executed: u64,
    /// Changes whose recorded outcome was answered again.
    pub repeated: u64,
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

    fn master(&self, address: &str, method: Method, body: Bytes) -> Result<Bytes, Failure> {
        self.with(|s| {
            if s.strangers.contains(address) {
                return Err(refuse(ErrorCode::OtherFounding, ""));
            }
            if s.leader != address {
                return Err(refuse(ErrorCode::NotLeader, &s.leader));
            }
            let malformed = |_| refuse(ErrorCode::InvalidRequest, "");
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
                    Renewed { lease_ms: 10_000, custody_epoch: 1 }.encode_to_vec()
                }
                Method::CloseSession => {
                    s.sessions.remove(&CloseSession::decode(body).map_err(malformed)?.session);
                    SessionClosed {}.encode_to_vec()
                }
                Method::FsRead | Method::FsChange => {
                    let request = Request::decode(body).map_err(malformed)?;
                    let reply = s.request(request, &self.chunkservers, self.copies)?;
                    s.response(reply).encode_to_vec()
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
            s.faults.get(address).copied()
        });
        match fault {
            Some(Fault::Down) => return Err(Failure::NotSent("refused".into())),
            Some(Fault::Hung) => {
                tokio::time::sleep(timeout).await;
                return Err(Failure::Timeout);
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
            founding: Some(founding),
            last_id: 100,
            clock: 1_700_000_000_000_000_000,
            ..State::default()
        };
        let attr =
            Attr { inode: 1, kind: FileKind::Directory.into(), mode: 0o755, nlink: 2, ..Attr::default() };
        state.nodes.insert(1, Node { attr, ..Node::default() });
        state
    }

    fn let_in(&self, told: &[u8]) -> Result<(), Failure> {
        match Founding::told(told) {
            Ok(told) if told.is_none() || told == self.founding => Ok(()),
            Ok(_) => Err(refuse(ErrorCode::OtherFounding, "")),
            Err(_) => Err(refuse(ErrorCode::InvalidRequest, "")),
        }
    }

    fn id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
    fn now(&mut self) -> i64 {
        self.clock += 1000;
        self.clock
    }

    fn response(&mut self, reply: FsReply) -> Response {
        let attr = match &reply.reply {
            Some(Reply::Entry(entry)) => entry.attr.as_ref(),
            Some(Reply::Created(created)) => created.attr.as_ref(),
            Some(Reply::Written(written)) => written.attr.as_ref(),
            _ => None,
        };
        let Some(attr) = attr.filter(|_| self.exclusive) else {
            return Response { reply: Some(reply), ..Response::default() };
        };
        self.grants += 1;
        let fact = Fact { kind: FactKind::Inode.into(), inode: attr.inode, name: Bytes::new() };
        let granted = vec![Granted { fact: Some(fact), exclusive: true }];
        Response { reply: Some(reply), grant: self.grants, granted, ..Response::default() }
    }

    /// Another host changes a file.
    pub fn change_elsewhere(&mut self, inode: u64) {
        let now = self.now();
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.attr.ctime_ns = now;
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
        SessionOpened {
            session: id,
            incarnation: session.incarnation,
            lease_ms: 10_000,
            custody_epoch: 1,
            lapsed,
            root: 1,
            founding: Founding::tell(self.founding),
        }
    }

    fn request(
        &mut self,
        request: Request,
        chunkservers: &[String],
        copies: usize,
    ) -> Result<FsReply, Failure> {
        let Request { session: id, incarnation, number, oldest_unanswered, order, releases, .. } = request;
        let op = request.op.and_then(|op| op.op).ok_or_else(|| refuse(ErrorCode::InvalidRequest, ""))?;
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
        let locked = self.locks.answer(id, &op);
        let reply = FsReply { reply: Some(locked.unwrap_or_else(|| self.run(op, chunkservers, copies))) };
        if number > 0 {
            self.executed += 1;
            self.session(id, incarnation)?.outcomes.insert(number, reply.clone());
            self.hold_created(id, &reply, order);
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

    fn entry(&self, inode: u64) -> Reply {
        self.nodes
            .get(&inode)
            .map_or_else(|| errno(libc::ENOENT), |n| Reply::Entry(Entry { attr: Some(n.attr) }))
    }
    fn child(&self, parent: u64, name: &Bytes) -> Option<u64> {
        self.nodes.get(&parent)?.entries.get(name).copied()
    }

    #[allow(clippy::result_large_err, reason = "the reply is the answer either way")]
    fn make(&mut self, parent: u64, name: Bytes, kind: FileKind, mode: u32) -> Result<u64, Reply> {
        let now = self.now();
        let inode = self.id();
        let directory = self.nodes.get_mut(&parent).ok_or_else(|| errno(libc::ENOENT))?;
        if directory.entries.contains_key(&name) {
            return Err(errno(libc::EEXIST));
        }
        directory.entries.insert(name, inode);
        directory.attr.mtime_ns = now;
        let nlink = if kind == FileKind::Directory { 2 } else { 1 };
        let attr = Attr {
            inode,
            kind: kind.into(),
            mode,
            nlink,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            ..Attr::default()
        };
        self.nodes.insert(inode, Node { attr, ..Node::default() });
        Ok(inode)
    }

    fn unlink(&mut self, parent: u64, name: &Bytes, directory: bool) -> Reply {
        let Some(inode) = self.child(parent, name) else { return errno(libc::ENOENT) };
        if let Some(node) = self.nodes.get_mut(&inode) {
            let is_directory = node.attr.kind() == FileKind::Directory;
            match (directory, is_directory) {
                (true, false) => return errno(libc::ENOTDIR),
                (false, true) => return errno(libc::EISDIR),
                (true, true) if !node.entries.is_empty() => return errno(libc::ENOTEMPTY),
                _ => {}
            }
            node.attr.nlink = if is_directory { 0 } else { node.attr.nlink - 1 };
        }
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.entries.remove(name);
        }
        self.reap(inode);
        Reply::Done(Done {})
    }

    fn run(&mut self, op: Op, chunkservers: &[String], copies: usize) -> Reply {
        let made = |s: &Self, made: Result<u64, Reply>| made.map_or_else(|e| e, |inode| s.entry(inode));
        match op {
            Op::Lookup(o) => {
                self.child(o.parent, &o.name).map_or_else(|| errno(libc::ENOENT), |inode| self.entry(inode))
            }
            Op::GetAttr(o) => self.entry(o.inode),
            Op::Acquire(o) => self.entry(o.inode),
            Op::TestLock(_) | Op::Lock(_) | Op::Unlock(_) | Op::CancelLock(_) => errno(libc::EINVAL),
            Op::Open(o) => self.entry(o.inode),
            Op::Release(_) | Op::Access(_) => Reply::Done(Done {}),
            Op::ReadLink(o) => self
                .nodes
                .get(&o.inode)
                .map_or_else(|| errno(libc::ENOENT), |n| Reply::Value(Value { value: n.target.clone() })),
            Op::ReadDir(o) => self.read_dir(o.inode, o.cookie, o.entries_max, o.plus),
            Op::ReadExtents(o) => self.read_extents(o.inode, o.offset, o.length, chunkservers),
            Op::Seek(o) => match self.nodes.get(&o.inode) {
                Some(node) if o.offset >= node.attr.size => errno(libc::ENXIO),
                Some(node) => Reply::Seek(SeekTo {
                    offset: if o.whence() == SeekWhence::Hole { node.attr.size } else { o.offset },
                }),
                None => errno(libc::ENOENT),
            },
            Op::GetXattr(o) => self
                .nodes
                .get(&o.inode)
                .and_then(|n| n.xattrs.get(&o.name))
                .map_or_else(|| errno(libc::ENODATA), |v| Reply::Value(Value { value: v.clone() })),
            Op::ListXattr(o) => Reply::Names(Names {
                names: self
                    .nodes
                    .get(&o.inode)
                    .map(|n| n.xattrs.keys().cloned().collect())
                    .unwrap_or_default(),
            }),
            Op::StatFs(_) => Reply::StatFs(FsStat {
                bytes_total: 1 << 40,
                bytes_free: 1 << 39,
                bytes_available: 1 << 39,
                files: 1000,
                files_free: 900,
                name_max: 255,
                block_size: 4096,
            }),
            Op::Describe(o) => {
                let links = self.nodes.iter().flat_map(|(&parent, n)| {
                    n.entries
                        .iter()
                        .filter(|(_, i)| **i == o.inode)
                        .map(move |(name, _)| DirLink { parent, name: name.clone() })
                });
                Reply::Description(Description { links: links.collect(), ..Description::default() })
            }
            Op::SetAttr(o) => {
                let now = self.now();
                let Some(node) = self.nodes.get_mut(&o.inode) else { return errno(libc::ENOENT) };
                if let Some(size) = o.size {
                    truncate(node, size);
                    node.attr.mtime_ns = now;
                }
                set_attributes(&mut node.attr, &o, now);
                self.entry(o.inode)
            }
            Op::Create(o) => match self.child(o.parent, &o.name) {
                Some(_) if o.exclusive => errno(libc::EEXIST),
                Some(inode) => {
                    if let Some(node) = self.nodes.get_mut(&inode).filter(|_| o.truncate) {
                        truncate(node, 0);
                    }
                    Reply::Created(Created { attr: self.nodes.get(&inode).map(|n| n.attr), created: false })
                }
                None => match self.make(o.parent, o.name, FileKind::Regular, o.mode) {
                    Ok(inode) => Reply::Created(Created {
                        attr: self.nodes.get(&inode).map(|n| n.attr),
                        created: true,
                    }),
                    Err(reply) => reply,
                },
            },
            Op::Mknod(o) => {
                let inode = self.make(o.parent, o.name.clone(), o.kind(), o.mode);
                made(self, inode)
            }
            Op::Mkdir(o) => {
                let inode = self.make(o.parent, o.name, FileKind::Directory, o.mode);
                made(self, inode)
            }
            Op::Symlink(o) => {
                let inode = self.make(o.parent, o.name, FileKind::Symlink, 0o777);
                if let Some(node) = inode.as_ref().ok().and_then(|i| self.nodes.get_mut(i)) {
                    node.attr.size = o.target.len() as u64;
                    node.target = o.target;
                }
                made(self, inode)
            }
            Op::Link(o) => {
                if self.child(o.new_parent, &o.new_name).is_some() {
                    return errno(libc::EEXIST);
                }
                let Some(node) = self.nodes.get_mut(&o.inode) else { return errno(libc::ENOENT) };
                node.attr.nlink += 1;
                if let Some(parent) = self.nodes.get_mut(&o.new_parent) {
                    parent.entries.insert(o.new_name, o.inode);
                }
                self.entry(o.inode)
            }
            Op::Unlink(o) => self.unlink(o.parent, &o.name, false),
            Op::Rmdir(o) => self.unlink(o.parent, &o.name, true),
            Op::Rename(o) => {
                let Some(inode) = self.child(o.parent, &o.name) else { return errno(libc::ENOENT) };
                let target = self.child(o.new_parent, &o.new_name);
                match target {
                    Some(_) if o.no_replace => return errno(libc::EEXIST),
                    Some(same) if same == inode => return Reply::Done(Done {}),
                    Some(other) if !o.exchange => {
                        let directory =
                            self.nodes.get(&other).is_some_and(|n| n.attr.kind() == FileKind::Directory);
                        let gone = self.unlink(o.new_parent, &o.new_name, directory);
                        if matches!(gone, Reply::Errno(_)) {
                            return gone;
                        }
                    }
                    _ => {}
                }
                if let Some(parent) = self.nodes.get_mut(&o.parent) {
                    parent.entries.remove(&o.name);
                    if let Some(other) = target.filter(|_| o.exchange) {
                        parent.entries.insert(o.name, other);
                    }
                }
                if let Some(parent) = self.nodes.get_mut(&o.new_parent) {
                    parent.entries.insert(o.new_name, inode);
                }
                Reply::Done(Done {})
            }
            Op::SetXattr(o) => {
                let Some(node) = self.nodes.get_mut(&o.inode) else { return errno(libc::ENOENT) };
                match node.xattrs.contains_key(&o.name) {
                    true if o.create => errno(libc::EEXIST),
                    false if o.replace => errno(libc::ENODATA),
                    _ => {
                        node.xattrs.insert(o.name, o.value);
                        Reply::Done(Done {})
                    }
                }
            }
            Op::RemoveXattr(o) => match self.nodes.get_mut(&o.inode).and_then(|n| n.xattrs.remove(&o.name)) {
                Some(_) => Reply::Done(Done {}),
                None => errno(libc::ENODATA),
            },
            Op::Write(o) => self.write(o),
            Op::TouchAtime(o) => {
                for touch in o.touches {
                    if let Some(node) = self.nodes.get_mut(&touch.inode) {
                        node.attr.atime_ns = node.attr.atime_ns.max(touch.atime_ns);
                    }
                }
                Reply::Done(Done {})
            }
            Op::AllocateChunk(o) => {
                let fit: Vec<String> =
                    chunkservers.iter().filter(|c| !o.exclude.contains(c)).take(copies).cloned().collect();
                if fit.len() < copies {
                    return errno(libc::EAGAIN);
                }
                let chunk = self.id();
                self.places.insert(chunk, fit);
                Reply::Allocated(Allocated { place: Some(self.place(chunk)), length_max: 4 << 20 })
            }
            Op::SealChunk(o) => match self.sealed.get(&o.chunk) {
                Some(&length) if o.acknowledged > length => errno(libc::EIO),
                Some(_) => Reply::Done(Done {}),
                None => {
                    self.seal(o.chunk, o.acknowledged);
                    Reply::Done(Done {})
                }
            },
            Op::Reap(_) => errno(libc::EPERM),
        }
    }

    fn seal(&mut self, chunk: u64, length: u64) {
        self.sealed.insert(chunk, length);
        for ((_, of), bytes) in &mut self.chunks {
            if *of == chunk {
                bytes.truncate(length as usize);
            }
        }
    }

    /// Where the furthest run in a chunk that an extent names ends.
    fn committed(&self, chunk: u64) -> u64 {
        let extents = self.nodes.values().flat_map(|node| node.extents.values());
        let ends = extents.filter_map(|extent| match &extent.data {
            Some(extent::Data::Run(run)) if run.chunk == chunk => Some(run.chunk_offset + run.length),
            _ => None,
        });
        ends.max().unwrap_or(0)
    }

    fn place(&self, chunk: u64) -> ChunkPlace {
        let locations = self.places.get(&chunk).into_iter().flatten();
        let location = |name: &String| ChunkLocation {
            chunkserver: name.clone(),
            address: name.clone(),
            zone: format!("zone-{name}"),
            reachable: true,
        };
        ChunkPlace { chunk, locations: locations.map(location).collect(), epoch: 1, ..ChunkPlace::default() }
    }

    fn read_dir(&self, inode: u64, cookie: u64, entries_max: u32, plus: bool) -> Reply {
        let Some(node) = self.nodes.get(&inode) else { return errno(libc::ENOENT) };
        // An entry's inode is its cookie: entries stay where they are while others come and go.
        let mut all: Vec<(&Bytes, u64)> = node
            .entries
            .iter()
            .map(|(name, &inode)| (name, inode))
            .filter(|&(_, inode)| inode > cookie)
            .collect();
        all.sort_by_key(|&(_, inode)| inode);
        let end = all.len() <= entries_max as usize;
        let entries = all.into_iter().take(entries_max as usize).filter_map(|(name, inode)| {
            let attr = &self.nodes.get(&inode)?.attr;
            Some(DirEntry {
                name: name.clone(),
                inode,
                kind: attr.kind,
                cookie: inode,
                attr: plus.then_some(*attr),
            })
        });
        Reply::DirPage(DirPage { entries: entries.collect(), end })
    }

    fn read_extents(&self, inode: u64, offset: u64, length: u64, _chunkservers: &[String]) -> Reply {
        let Some(node) = self.nodes.get(&inode) else { return errno(libc::ENOENT) };
        let end = offset.saturating_add(length);
        // Few at a time, so that reads meet maps that don't cover all they asked for.
        let hit: Vec<Extent> = node
            .extents
            .values()
            .filter(|e| e.offset < end && e.offset + e.length > offset)
            .take(9)
            .cloned()
            .collect();
        let covered = hit.get(8).map_or(end, |e| e.offset);
        let extents: Vec<Extent> = hit.into_iter().take(8).collect();
        let chunks: BTreeSet<u64> = extents
            .iter()
            .filter_map(|e| match &e.data {
                Some(extent::Data::Run(run)) => Some(run.chunk),
                _ => None,
            })
            .collect();
        let chunks = chunks.into_iter().map(|chunk| self.place(chunk)).collect();
        Reply::Extents(ExtentMap { size: node.attr.size, extents, chunks, attr: Some(node.attr), covered })
    }

    fn write(&mut self, write: mooseng_wire::fs::Write) -> Reply {
        if let Some(refusal) = self.refuse_writes.filter(|_| !write.pieces.is_empty()) {
            return errno(refusal);
        }
        let now = self.now();
        for piece in &write.pieces {
            if let Some(write_piece::Data::Run(run)) = &piece.data {
                if self.sealed.get(&run.chunk).is_some_and(|&length| run.chunk_offset + run.length > length) {
                    return errno(libc::ESTALE);
                }
                let holders = self.places.get(&run.chunk).cloned().unwrap_or_default();
                for holder in holders {
                    let have = self.chunks.get(&(holder.clone(), run.chunk)).map_or(0, Vec::len) as u64;
                    if have < run.chunk_offset + run.length {
                        self.violations.push(format!(
                            "chunk {} is named up to {} and has {have} bytes on {holder}",
                            run.chunk,
                            run.chunk_offset + run.length
                        ));
                    }
                }
            }
        }
        let Some(node) = self.nodes.get_mut(&write.inode) else { return errno(libc::ENOENT) };
        let began = if write.append { node.attr.size } else { write.pieces.first().map_or(0, |p| p.offset) };
        let mut at = began;
        let began_any = !write.pieces.is_empty();
        for piece in write.pieces {
            let offset = if write.append { at } else { piece.offset };
            let (length, data) = match piece.data {
                Some(write_piece::Data::Inline(bytes)) => (bytes.len() as u64, extent::Data::Inline(bytes)),
                Some(write_piece::Data::Run(run)) => (run.length, extent::Data::Run(run)),
                None => return errno(libc::EINVAL),
            };
            clear(node, offset, offset + length);
            node.extents.insert(offset, Extent { offset, length, data: Some(data) });
            at = offset + length;
            node.attr.size = node.attr.size.max(at);
        }
        if began_any {
            node.attr.mtime_ns = write.written_ns.unwrap_or(now);
            node.attr.ctime_ns = node.attr.mtime_ns;
        }
        if let Some(set) = &write.set {
            set_attributes(&mut node.attr, set, now);
        }
        Reply::Written(Written { attr: Some(node.attr), offset: began })
    }

    fn append(&mut self, first: &str, append: &Append, bulk: &Bytes) -> Result<Bytes, Failure> {
        if crc32c::crc32c(bulk) != append.crc {
            self.violations.push("an append's checksum is wrong".into());
        }
        let members: Vec<String> =
            std::iter::once(first.to_owned()).chain(append.chain.iter().map(|m| m.address.clone())).collect();
        if self.places.get(&append.chunk) != Some(&members) {
            self.violations.push(format!("chunk {} is appended on {members:?}", append.chunk));
        }
        if self.sealed.contains_key(&append.chunk) {
            return Err(refuse(ErrorCode::ChunkSealed, ""));
        }
        let mut outcome = Ok(());
        for member in &members {
            let fault = self.faults.get(member).copied();
            if member != first && matches!(fault, Some(Fault::Down)) {
                let detail = ChainFailure { chunkserver: member.clone(), reason: "down".into() }
                    .encode_to_vec()
                    .into();
                outcome = Err(Failure::Refused(CallError {
                    code: ErrorCode::ChainFailed.into(),
                    detail,
                    ..CallError::default()
                }));
                continue;
            }
            if member != first && matches!(fault, Some(Fault::Hung)) {
                outcome = Err(Failure::Timeout);
                continue;
            }
            let bytes = self.chunks.entry((member.clone(), append.chunk)).or_default();
            if bytes.len() as u64 != append.offset {
                return Err(refuse(ErrorCode::OffsetMismatch, ""));
            }
            bytes.extend_from_slice(bulk);
        }
        outcome?;
        let length = append.offset + bulk.len() as u64;
        Ok(Appended { length, flushed: if append.flush { length } else { 0 } }.encode_to_vec().into())
    }

    fn read_chunk(&self, address: &str, read: &Read) -> Result<Answered, Failure> {
        let bytes = self
            .chunks
            .get(&(address.to_owned(), read.chunk))
            .ok_or_else(|| refuse(ErrorCode::NotFound, ""))?;
        let from = read.offset as usize;
        let bytes = bytes
            .get(from..from + read.length as usize)
            .ok_or_else(|| refuse(ErrorCode::InvalidRequest, ""))?;
        let crc = crc32c::crc32c(bytes);
        let mut bulk = bytes.to_vec();
        if self.faults.get(address) == Some(&Fault::Corrupt)
            && let Some(first) = bulk.first_mut()
        {
            *first ^= 1;
        }
        Ok(Answered { body: ReadDone { crc }.encode_to_vec().into(), bulk: bulk.into() })
    }
}

/// All but the size.
fn set_attributes(attr: &mut Attr, o: &SetAttr, now: i64) {
    attr.mode = o.mode.unwrap_or(attr.mode);
    attr.uid = o.uid.unwrap_or(attr.uid);
    attr.gid = o.gid.unwrap_or(attr.gid);
    attr.atime_ns = o.atime_ns.unwrap_or(if o.atime_now { now } else { attr.atime_ns });
    attr.mtime_ns = o.mtime_ns.unwrap_or(if o.mtime_now { now } else { attr.mtime_ns });
    attr.ctime_ns = o.changed_ns.unwrap_or(now);
}

fn truncate(node: &mut Node, size: u64) {
    if size < node.attr.size {
        clear(node, size, u64::MAX);
    }
    node.attr.size = size;
}

/// Cuts [from, to) out of a file's extents.
fn clear(node: &mut Node, from: u64, to: u64) {
    for (_, old) in std::mem::take(&mut node.extents) {
        let end = old.offset + old.length;
        for (a, b) in [(old.offset, end.min(from)), (old.offset.max(to), end)] {
            if a >= b {
                continue;
            }
            let skip = a - old.offset;
            let data = match &old.data {
                Some(extent::Data::Inline(bytes)) => {
                    extent::Data::Inline(bytes.slice(skip as usize..(skip + b - a) as usize))
                }
                Some(extent::Data::Run(run)) => extent::Data::Run(ChunkRun {
                    chunk_offset: run.chunk_offset + skip,
                    length: b - a,
                    ..*run
                }),
                None => continue,
            };
            node.extents.insert(a, Extent { offset: a, length: b - a, data: Some(data) });
        }
    }
}
