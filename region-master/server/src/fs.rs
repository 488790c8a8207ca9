//! Filesystem requests of sessions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mooseng_namespace::{
    Ids, OpContext, OpError, Room, SessionCall, Within, is_change, needs_chunk, needs_inode, reads_from,
    sessions, upkeep, within,
};
use mooseng_region::placement::{self, TooFew, Wish};
use mooseng_region::sessions::{Refusal, Registered};
use mooseng_schema::ids::IdKind;
use mooseng_schema::log::LogPosition;
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{
    AllocateChunk, Done, FsReply, FsRequest, GetAttr, ReserveInodes, ReservedInodes, Tell,
};
use mooseng_wire::session::{Request, Response};
use mooseng_wire::{
    CHUNK_BYTES_MAX, ChunkId, Epoch, Identity, Incarnation, InodeId, RequestNumber, SessionId, VolumeId,
};
use tokio::time::Instant;

use crate::config::MountRule;
use crate::errors::{denied, driver_failed, record_failed, refused};
use crate::ids::Given;
use crate::master::Master;
use crate::promises::{self, Beside, ChangeGate};
use crate::records::transact;
use crate::{classes, geo, locks, places, quotas, rights, seals};

/// Linux' EIO.
const EIO: u32 = 5;
/// Linux' EAGAIN.
const EAGAIN: u32 = 11;
/// Linux' ETIMEDOUT.
const ETIMEDOUT: u32 = 110;
/// Linux' EXDEV.
const EXDEV: u32 = 18;
/// Linux' ESTALE.
const ESTALE: u32 = 116;

/// Inode ids that a session is given at a time.
const INODES_RESERVED_MAX: u64 = 1024;

/// Answers a read.
pub async fn read(
    master: &Master,
    peer: &Peer,
    mut request: Request,
    deadline: Instant,
) -> Result<Response, CallError> {
    let identity = peer.uri.as_str();
    let (term, call) = admitted(master, identity, &request)?;
    let (rule, denied_by_rule) = rights_on(master, &peer.identity, &mut request)?;
    let fs = request_of(&request)?;
    if is_change(fs) {
        let message = "a change was sent as a read; changes have a method, a lane and numbers of their own";
        return Err(call_error(ErrorCode::InvalidRequest, message));
    }
    let (id, incarnation, order) = (call.session, call.incarnation, request.order);
    let volume = id.volume();
    let at = At { master, volume, term };
    if let Some(refusal) = refused_elsewhere(volume, fs)? {
        return at.answer(refusal, 0, Beside::default());
    }
    let now = master.clock.boot();
    let mut context = context(master, volume);
    if rule.is_some() {
        master
            .desk(|desk| desk.sessions.check(now, id, incarnation, identity))
            .map_err(|refusal| refused(&refusal))?;
        if let Some(refusal) = denied_by_rule {
            return at.answer(refusal, 0, Beside::default());
        }
        context.confined = confined(master, id, rule).await?;
    }
    if let (Some(_), Some(Op::Open(open))) = (context.confined, &fs.op) {
        // Before it counts as open: what a session holds open isn't freed.
        let look =
            FsRequest { op: Some(Op::GetAttr(GetAttr { inode: open.inode })), caller: fs.caller.clone() };
        let (reply, version) = master
            .driver
            .run(call, &context, &look, deadline)
            .await
            .map_err(|e| driver_failed(&e, || master.not_leader()))?;
        if let Some(Reply::Errno(_)) = &reply.reply {
            return at.answer(reply, version.0, Beside::default());
        }
    }
    let opened = match &fs.op {
        Some(Op::Open(open)) => {
            let inode = InodeId(open.inode);
            match master.desk(|desk| desk.sessions.open(now, id, incarnation, identity, inode, order)) {
                Ok(registered) => Some(registered),
                Err(Refusal::Reaping(_)) => return at.answer(errno(ESTALE), 0, Beside::default()),
                Err(refusal) => return Err(refused(&refusal)),
            }
        }
        _ => {
            master
                .desk(|desk| desk.sessions.check(now, id, incarnation, identity))
                .map_err(|refusal| refused(&refusal))?;
            None
        }
    };
    release_closed(master, id, &request);
    if let Some(Op::Release(release)) = &fs.op {
        master.desk(|desk| desk.sessions.release(id, InodeId(release.inode), order));
    }
    // An open is taken back unless the answer that confirms it leaves: also where this future is dropped.
    let mut opened = opened.map(|registered| Opened { master, id, registered: Some(registered), by: None });
    if matches!(fs.op, Some(Op::StatFs(_))) {
        context.capacity = master.capacity();
    }
    promises::custody_settled(master, volume, deadline).await?;
    if let Some(Op::Reserve(reserve)) = &fs.op {
        let reserved = quotas::reserve(master, term, id, reserve).await?;
        let reply = FsReply { reply: Some(Reply::Reserved(reserved)) };
        return at.answer(reply, 0, Beside::default());
    }
    if let Some(Op::Sync(sync)) = &fs.op {
        let changed = LogPosition::new(Epoch(sync.epoch), sync.version);
        let reply = match geo::sync::is_lost(master, volume, changed).await? {
            true => errno(EIO),
            false => {
                geo::sync::everything(master, volume, deadline).await?;
                FsReply { reply: Some(Reply::Done(Done {})) }
            }
        };
        return at.answer(reply, 0, Beside::default());
    }
    if let Some(Op::Pace(_)) = &fs.op {
        let tail = geo::lag::let_through(master, volume, deadline).await;
        let reply = match (tail.held, tail.follows) {
            (false, _) => FsReply { reply: Some(Reply::Done(Done {})) },
            (true, true) => errno(EAGAIN),
            (true, false) => errno(ETIMEDOUT),
        };
        return at.answer(reply, 0, Beside::default());
    }
    if let Some(Op::ReserveInodes(reserve)) = &fs.op {
        let reserved = reserve_inodes(master, id, reserve).await?;
        let reply = FsReply { reply: Some(Reply::ReservedInodes(reserved)) };
        return at.answer(reply, 0, Beside::default());
    }
    let mut rests_on = promises::RestsOn::default();
    let (mut reply, version, beside, tells) = loop {
        rests_on.tick = master.tick();
        let (mut reply, version, looked) = master
            .driver
            .look(call, &context, fs, deadline)
            .await
            .map_err(|e| driver_failed(&e, || master.not_leader()))?;
        let holds_back = geo::sync::holds_back(master, volume);
        let tells = holds_back.then(|| promises::told_by_read(fs, &reply, &looked));
        rests_on.looked = looked;
        if let Some(beside) =
            promises::admit_read(master, term, id, fs, (&mut reply, version.0), &mut rests_on, deadline)
                .await?
        {
            break (reply, version, beside, tells);
        }
    };
    if let Some(tells) = tells {
        geo::sync::admit(master, volume, &tells, Some(id), deadline).await?;
    }
    complete(master, &mut reply, id);
    locks::hide_pid(master, id, &mut reply);
    let answer = at.answer(reply, version.0, beside)?;
    let refused = matches!(answer.reply.as_ref().and_then(|r| r.reply.as_ref()), Some(Reply::Errno(_)));
    if let Some(opened) = &mut opened
        && !refused
    {
        opened.registered = None;
    }
    Ok(answer)
}

/// Takes an open back when it is dropped with one.
struct Opened<'a> {
    master: &'a Master,
    id: SessionId,
    registered: Option<Registered>,
    /// The change that makes the file, as long as it isn't known what became of it.
    by: Option<&'a ChangeGate>,
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        // A change that may commit yet may make the file, and remove its name: without the open it would be freed before its session has heard of it. Where
        // nothing was made the open is of nothing, and the session's next declaration leaves it out.
        if let Some(registered) = self.registered
            && self.by.is_none_or(|gate| !gate.may_have_committed())
        {
            self.master.desk(|desk| desk.sessions.take_back(self.id, registered));
        }
    }
}

/// Answers a change.
pub async fn change(
    master: &Arc<Master>,
    peer: &Peer,
    mut request: Request,
    deadline: Instant,
) -> Result<Response, CallError> {
    let identity = peer.uri.as_str();
    let (term, call) = admitted(master, identity, &request)?;
    let (rule, denied_by_rule) = rights_on(master, &peer.identity, &mut request)?;
    let order = request.order;
    let fs = request_of(&request)?;
    if !is_change(fs) {
        let message = "a read was sent as a change; reads have a method and a lane of their own";
        return Err(call_error(ErrorCode::InvalidRequest, message));
    }
    if matches!(fs.op, Some(Op::Reap(_))) {
        return Err(denied("only the master itself frees inodes"));
    }
    let volume = call.session.volume();
    let at = At { master, volume, term };
    if let Some(refusal) = refused_elsewhere(volume, fs)? {
        return at.answer(refusal, 0, Beside::default());
    }
    let now = master.clock.boot();
    let checked = master.desk(|desk| desk.sessions.check(now, call.session, call.incarnation, identity));
    let newest = match checked {
        Ok(()) => true,
        // Old numbers still return their outcomes; the driver refuses new work under an old incarnation.
        Err(Refusal::Incarnation { asked, newest, .. }) if asked < newest => false,
        Err(refusal) => return Err(refused(&refusal)),
    };
    if newest {
        release_closed(master, call.session, &request);
    }
    let mut context = context(master, volume);
    context.room = master.room();
    context.staging_closed = context.room != Room::Enough
        || master.config.house.destages_at_once == 0
        || master.desk(|desk| desk.seat(volume).house.staging_closed);
    if rule.is_some() {
        if let Some(refusal) = denied_by_rule {
            return at.answer(refusal, 0, Beside::default());
        }
        context.confined = confined(master, call.session, rule).await?;
    }
    context.ids = ids(master, volume, fs)?;
    if let Some(Op::Tell(tell)) = &fs.op {
        check_told(master, call.session, tell).await?;
    }
    let mut placed_class = 0;
    if let Some(Op::AllocateChunk(allocate)) = &fs.op
        && newest
    {
        (context.placement, placed_class) = place(master, allocate).await?;
    }
    let sealing = match &fs.op {
        Some(Op::SealChunk(seal)) if newest => {
            seals::before_change(master, call.session, seal, deadline).await?
        }
        _ => None,
    };
    promises::custody_settled(master, volume, deadline).await?;
    if let Some(source) = reads_from(fs) {
        promises::admit_source(master, term, call.session, source, deadline).await?;
    }
    let gate = ChangeGate::for_request(master.clone(), term, (call.session, call.number), fs);
    // A file that is made is open for its session before anybody else can remove it.
    let mut opened = match (&fs.op, context.ids.inode) {
        (Some(Op::Create(_)), Some(inode)) if newest => {
            let registered = master
                .desk(|desk| desk.sessions.open(now, call.session, call.incarnation, identity, inode, order))
                .map_err(|refusal| refused(&refusal))?;
            let (master, id, by) = (master.as_ref(), call.session, Some(&gate));
            Some(Opened { master, id, registered: Some(registered), by })
        }
        _ => None,
    };
    let mut told_open = match &fs.op {
        Some(Op::Tell(tell)) if newest => open_told(master, (&call, identity, order), tell, &gate)?,
        _ => Vec::new(),
    };
    let locking = locks::begin(master, term, &call, fs, deadline).await?;
    // A failure leaves the gate to its end: whether the change committed may not be known.
    let (mut reply, version) = master
        .driver
        .run_through(call, &context, fs, &gate, deadline)
        .await
        .map_err(|e| driver_failed(&e, || master.not_leader()))?;
    let beside = gate.committed(fs, &reply, version.0);
    if let Some(Reply::Allocated(allocated)) = &reply.reply
        && let Some(place) = &allocated.place
        && newest
    {
        let first = place.locations.first().map(|location| location.chunkserver.as_str());
        geo::push::begin(master, term, ChunkId(place.chunk), placed_class, first);
    }
    if geo::sync::holds_back(master, volume) {
        let tells = gate.told(fs, &reply);
        geo::sync::admit(master, volume, &tells, Some(call.session), deadline).await?;
    }
    if let Some(locking) = locking {
        locking.end(&call, fs, &mut reply, deadline).await?;
    }
    // It is known now. What was made stays open, all else is taken back.
    for open in opened.iter_mut().chain(&mut told_open) {
        open.by = None;
    }
    if let Some(Reply::Told(told)) = &reply.reply {
        let made: BTreeSet<u64> = told.replies.iter().filter_map(made_by).collect();
        for open in &mut told_open {
            if open.registered.is_some_and(|registered| made.contains(&registered.inode().0)) {
                open.registered = None;
            }
        }
    }
    if let (Some(opened), Some(Reply::Created(created))) = (&mut opened, &reply.reply)
        && created.created
    {
        let made = created.attr.as_ref().map(|attr| InodeId(attr.inode));
        if made == opened.registered.map(|registered| registered.inode()) {
            opened.registered = None;
        } else if let Some(made) = made {
            // The outcome of an earlier attempt.
            let again = master
                .desk(|desk| desk.sessions.open(now, call.session, call.incarnation, identity, made, order));
            match again {
                Ok(_) => {}
                Err(Refusal::Reaping(_)) => {
                    return at.answer(errno(ESTALE), version.0, Beside::default());
                }
                Err(refusal) => return Err(refused(&refusal)),
            }
        }
    }
    if let Some(chunk) = sealing
        && matches!(reply.reply, Some(Reply::Done(_)))
    {
        seals::tell_recorded(master, chunk).await;
    }
    complete(master, &mut reply, call.session);
    at.answer(reply, version.0, beside)
}

/// The refusal of a request that names anything of another volume than its session's. Where it names both, that is EXDEV; else whoever sent it took one
/// session for another.
fn refused_elsewhere(volume: VolumeId, fs: &FsRequest) -> Result<Option<FsReply>, CallError> {
    match within(volume, fs) {
        Within::All => Ok(None),
        Within::Across => Ok(Some(errno(EXDEV))),
        Within::Not(other) => {
            let message = format!(
                "the session is of volume {volume}, and the request names something of volume {other}; each volume has a session of its own"
            );
            Err(call_error(ErrorCode::InvalidRequest, message))
        }
    }
}

/// Ids for what a session makes alone. They are its own, also at the next leader: its record says so before it hears of them.
async fn reserve_inodes(
    master: &Master,
    session: SessionId,
    reserve: &ReserveInodes,
) -> Result<ReservedInodes, CallError> {
    let volume = session.volume();
    let most = u64::from(reserve.count).clamp(1, INODES_RESERVED_MAX);
    let (run, low) = master.desk(|desk| {
        let ids = &mut desk.seat_mut(volume).ids;
        let run = ids.take_run(IdKind::Inode, most);
        if let Some(run) = &run {
            ids.bind(session, run.clone());
        }
        (run, ids.is_low(IdKind::Inode))
    });
    if low {
        master.ids_low.notify_waiters();
    }
    let run = run.ok_or_else(|| master.ids_used_up())?;
    let (first, end, epoch) = (run.start, run.end, master.epoch(volume));
    let noted = transact(&master.store, move |tx| async move {
        let record = upkeep::load_volume(&tx, volume).await?.ok_or(OpError::NoVolume(volume.0))?;
        // A home whose epoch ends gives nothing any more.
        if record.epoch != epoch.0 || record.moving_from == epoch.0 {
            return Ok((tx, None));
        }
        let noted = sessions::give_inodes(&tx, session, first..end).await?;
        Ok((tx, Some(noted)))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    match noted {
        Some(true) => {
            let count = u32::try_from(end - first).unwrap_or(0);
            Ok(ReservedInodes { first: InodeId::new(volume, first).0, count })
        }
        Some(false) => Err(refused(&Refusal::Expired(session))),
        None => Err(geo::moving::is_moving()),
    }
}

/// Inodes are made only under ids that were given to the session, or of which it isn't known any more whose they are.
async fn check_told(master: &Master, session: SessionId, tell: &Tell) -> Result<(), CallError> {
    let volume = session.volume();
    let refusal = |message: &str| Err(call_error(ErrorCode::InvalidRequest, message));
    let made = tell.changes.iter().map(|change| change.inode).filter(|inode| *inode != 0);
    let given: BTreeSet<Given> = master.desk(|desk| {
        let ids = &desk.seat(volume).ids;
        let given = |inode: InodeId| match inode.volume() == volume {
            true => ids.given(inode.local()),
            false => Given::ToNobody,
        };
        made.map(InodeId).map(given).collect()
    });
    for given in given {
        let other = match given {
            Given::ToNobody => {
                return refusal("the session tells of an inode under an id that wasn't reserved for anybody");
            }
            Given::To(other) if other != session => other,
            Given::To(_) | Given::ToSomebody => continue,
        };
        // A mount whose session is gone has another one now, and the ids of that still.
        let is_there = transact(&master.store, move |tx| async move {
            let record = sessions::load_session(&tx, other).await?;
            Ok((tx, record.is_some()))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        if is_there {
            return refusal(
                "the session tells of an inode under an id that was reserved for another session",
            );
        }
        master.desk(|desk| desk.seat_mut(volume).ids.unbind(other));
    }
    Ok(())
}

/// What was made alone and is open still is so before anybody else can remove it. What is being freed can't be held any more: it was made by an earlier attempt,
/// whose outcome is the answer. A refusal would have the session tell the same again under other numbers.
fn open_told<'a>(
    master: &'a Master,
    (call, identity, order): (&SessionCall, &str, u64),
    tell: &Tell,
    gate: &'a ChangeGate,
) -> Result<Vec<Opened<'a>>, CallError> {
    let now = master.clock.boot();
    let mut opened = Vec::new();
    for change in tell.changes.iter().filter(|change| change.open && change.inode != 0) {
        let inode = InodeId(change.inode);
        let registered = master
            .desk(|desk| desk.sessions.open(now, call.session, call.incarnation, identity, inode, order));
        match registered {
            Ok(registered) => {
                let (id, registered) = (call.session, Some(registered));
                opened.push(Opened { master, id, registered, by: Some(gate) });
            }
            Err(Refusal::Reaping(_)) => {}
            Err(refusal) => return Err(refused(&refusal)),
        }
    }
    Ok(opened)
}

/// The inode that a change has made, as its answer says.
fn made_by(reply: &FsReply) -> Option<u64> {
    match reply.reply.as_ref()? {
        Reply::Created(made) => made.attr.as_ref().map(|attr| attr.inode),
        Reply::Entry(made) => made.attr.as_ref().map(|attr| attr.inode),
        _ => None,
    }
}

/// The rule that a session's client is under, put on its request; and the refusal of what that forbids.
fn rights_on<'a>(
    master: &'a Master,
    identity: &Identity,
    request: &mut Request,
) -> Result<(Option<&'a MountRule>, Option<FsReply>), CallError> {
    let rule = rights::of(master, identity)?;
    let refusal = match (rule, &mut request.op) {
        (Some(rule), Some(op)) => rights::put_on(rule, op),
        _ => None,
    };
    Ok((rule, refusal))
}

/// The root of the subtree that a session is confined to.
async fn confined(
    master: &Master,
    session: SessionId,
    rule: Option<&MountRule>,
) -> Result<Option<InodeId>, CallError> {
    let root = rights::root(master, session, rule).await?;
    Ok((root != InodeId::root_of(session.volume())).then_some(root))
}

fn admitted(master: &Master, identity: &str, request: &Request) -> Result<(u64, SessionCall), CallError> {
    let session = SessionId(request.session);
    let term = master.serving_of(session.volume())?;
    master.custody_is_ours(term, request.custody_epoch)?;
    let settled = master.desk(|desk| {
        // What others say of a session counts for nothing; they are refused further on.
        if desk.sessions.recorded(session).is_none_or(|recorded| recorded.identity != identity) {
            return RequestNumber(request.oldest_unanswered);
        }
        let settled = desk.sessions.settle(session, RequestNumber(request.oldest_unanswered));
        desk.promises.settle(session, settled);
        settled
    });
    // Session 0 is the master itself, for which no rights are checked.
    if request.session == 0 {
        return Err(call_error(ErrorCode::InvalidRequest, "the request names no session; open one first"));
    }
    let call = SessionCall {
        session,
        incarnation: Incarnation(request.incarnation),
        number: RequestNumber(request.number),
        oldest_unanswered: settled,
    };
    Ok((term, call))
}

/// Takes note of what a session that was checked has closed.
fn release_closed(master: &Master, id: SessionId, request: &Request) {
    if request.releases.is_empty() {
        return;
    }
    master.desk(|desk| {
        for inode in &request.releases {
            desk.sessions.release(id, InodeId(*inode), request.order);
        }
    });
}

fn request_of(request: &Request) -> Result<&FsRequest, CallError> {
    let missing = || call_error(ErrorCode::InvalidRequest, "the request has no operation");
    request.op.as_ref().filter(|fs| fs.op.is_some()).ok_or_else(missing)
}

/// The surroundings of a request that is about a volume.
pub fn context(master: &Master, volume: VolumeId) -> OpContext {
    OpContext { now_ns: master.clock.unix_ns(), epoch: master.epoch(volume), ..OpContext::default() }
}

fn errno(number: u32) -> FsReply {
    FsReply { reply: Some(Reply::Errno(number)) }
}

fn complete(master: &Master, reply: &mut FsReply, session: SessionId) {
    let (now, now_ns) = (master.clock.boot(), master.clock.unix_ns());
    if places::names_chunks(reply) {
        master.desk(|desk| places::complete(desk, reply, session.0, now, now_ns));
    }
}

/// Where an answer comes from.
struct At<'a> {
    master: &'a Master,
    volume: VolumeId,
    /// The custody epoch in which the request came.
    term: u64,
}

impl At<'_> {
    fn answer(&self, reply: FsReply, read_version: u64, beside: Beside) -> Result<Response, CallError> {
        self.master.may_answer(self.term)?;
        self.master.is_home(self.volume)?;
        let Beside { number, granted, changed } = beside;
        // Everything that the answer may show is in the log by now.
        let shown = self.master.geo.shown(self.volume);
        Ok(Response {
            reply: Some(reply),
            grant: number,
            read_version,
            granted,
            changed,
            log_epoch: shown.epoch.0,
            log_version: shown.version,
            held: geo::lag::is_held(self.master, self.volume),
        })
    }
}

fn ids(master: &Master, volume: VolumeId, fs: &FsRequest) -> Result<Ids, CallError> {
    let take = |kind| {
        let (id, low) = master.desk(|desk| {
            let ids = &mut desk.seat_mut(volume).ids;
            (ids.take(kind, 1).and_then(|ids| ids.first().copied()), ids.is_low(kind))
        });
        if low {
            master.ids_low.notify_waiters();
        }
        id.ok_or_else(|| master.ids_used_up())
    };
    let inode = if needs_inode(fs) { Some(InodeId::new(volume, take(IdKind::Inode)?)) } else { None };
    let chunk = if needs_chunk(fs) { Some(ChunkId::new(volume, take(IdKind::Chunk)?)) } else { None };
    Ok(Ids { inode, chunk })
}

/// A master that serves for so long has heard of every chunkserver that lives and isn't cut off.
const HEARD_AFTER: Duration = Duration::from_secs(10);

/// Chooses chunkservers for a fresh chunk.
async fn place(master: &Master, allocate: &AllocateChunk) -> Result<(Vec<String>, u32), CallError> {
    let exclude: BTreeSet<String> = allocate.exclude.iter().cloned().collect();
    let class = classes::of_inode(master, InodeId(allocate.inode)).await?;
    let now = master.clock.boot();
    let (candidates, all_known) =
        master.desk(|desk| (desk.registry.candidates(now), desk.knows_all(now, HEARD_AFTER)));
    let wish = Wish { class: &class, bytes_wanted: CHUNK_BYTES_MAX, exclude: &exclude, seed: rand::random() };
    let placed = placement::place(&candidates, wish).map_err(|too_few| no_place(&too_few, all_known))?;
    Ok((placed, class.id))
}

fn no_place(too_few: &TooFew, all_known: bool) -> CallError {
    // Space doesn't come back by waiting; chunkservers do, and those with the labels may not have reported to this master yet.
    let lasts = too_few.lasts() && (!too_few.is_for_labels() || all_known);
    let code = if lasts { ErrorCode::NoSpace } else { ErrorCode::Unavailable };
    call_error(code, too_few.to_string())
}
