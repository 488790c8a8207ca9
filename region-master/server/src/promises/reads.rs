//! Reads: which facts an answer tells of, who must have given back what before it leaves, and what of it is promised.

use std::collections::BTreeSet;

use mooseng_namespace::Room;
use mooseng_region::promises::{PromiseTable, Recall};
use mooseng_wire::call::CallError;
use mooseng_wire::fact::{Fact, Level};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, FsReply, FsRequest};
use mooseng_wire::session::Granted;
use mooseng_wire::{InodeId, SessionId};
use tokio::time::Instant;

use super::{Beside, send, untold, wait_until};
use crate::master::Master;

/// Linux' ENOENT and ESTALE.
const ENOENT: u32 = 2;
const ESTALE: u32 = 116;
/// Linux' O_ACCMODE and O_RDONLY.
const OPEN_ACCESS_MODE: u32 = 3;
const OPEN_READ_ONLY: u32 = 0;

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
    let what = "another session hasn't told yet what it has written to the file that is copied";
    given_up(master, (term, id), deadline, what, |table| table.read_blockers(id, &facts, false)).await
}

/// Has another session record the locks of an inode that it has given by itself: all that are held are on record from then on, until one is let give them
/// by itself again.
pub async fn admit_locks(
    master: &Master,
    term: u64,
    id: SessionId,
    inode: InodeId,
    deadline: Instant,
) -> Result<(), CallError> {
    let facts = BTreeSet::from([Fact::Locks(inode)]);
    let what = "another session hasn't recorded yet the locks that it has given by itself";
    given_up(master, (term, id), deadline, what, |table| table.hidden(id, &facts)).await
}

/// Sends recalls, and waits for their answers, until there are none to be sent.
async fn given_up(
    master: &Master,
    (term, id): (u64, SessionId),
    deadline: Instant,
    what: &str,
    mut blockers: impl FnMut(&mut PromiseTable) -> Vec<Recall>,
) -> Result<(), CallError> {
    loop {
        let recalls = master.desk(|desk| {
            let is_custodian = desk.is_custodian(id.volume(), term);
            is_custodian.then(|| blockers(&mut desk.promises))
        });
        let recalls = recalls.ok_or_else(|| master.not_leader())?;
        if recalls.is_empty() {
            return Ok(());
        }
        send(master, term, &recalls);
        wait_until(master, deadline, what, |desk| desk.promises.answered(&recalls)).await?;
    }
}
