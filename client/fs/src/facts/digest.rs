//! Taking an answer in: what goes beside it is promised or was changed, and what it says of that is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mooseng_wire::InodeId;
use mooseng_wire::fact::{Fact, Level};
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, FsRequest};
use mooseng_wire::session::Response;

use super::extents::Extents;
use super::listing::{LISTING_MAX, Listing};
use super::{Facts, Flight, InodeFact, LOCKS_MAX};

/// What stays of an inode that isn't known at present: what was known until this session's own change was answered, or nothing, under a fresh hold.
struct Before {
    hold: u64,
    extents: Arc<Mutex<Extents>>,
}

impl Facts {
    /// Takes in what goes beside an answer. Nothing of the answer may be shown before.
    pub fn digest(&self, flight: &Flight<'_>, request: &FsRequest, response: &Response) {
        let further = match &request.op {
            Some(Op::ReadDir(r)) if r.cookie != 0 => Some(r),
            _ => None,
        };
        let tells = matches!(request.op, Some(Op::Tell(_)));
        self.doubt(flight, request, response);
        if response.granted.is_empty() && response.changed.is_empty() && further.is_none() && !tells {
            return;
        }
        if let Some(Op::Tell(tell)) = &request.op {
            return self.memo(|memo| {
                if flight.life == memo.life {
                    memo.tick += 1;
                    let came = memo.tick;
                    // What is under way of these was looked for before.
                    for fact in response.changed.iter().filter_map(Fact::from_message) {
                        let newest = memo.recalled.entry(fact).or_insert((response.grant, came));
                        *newest = (newest.0.max(response.grant), came);
                    }
                    if let Some(Reply::Told(told)) = response.reply.as_ref().and_then(|r| r.reply.as_ref()) {
                        self.confirm(memo, (tell, told), response, flight.is_repeat);
                    }
                }
            });
        }
        self.memo(|memo| {
            if flight.life != memo.life {
                return;
            }
            memo.tick += 1;
            let came = memo.tick;
            // What this session changed and is promised again in the same moment nobody else has changed between.
            let mut held = BTreeMap::new();
            for fact in response.changed.iter().filter_map(Fact::from_message) {
                if let Fact::Inode(inode) = &fact
                    && let Some(known) = self.inodes.get(&inode.0)
                {
                    held.insert(inode.0, known);
                }
                let newest = memo.recalled.entry(fact.clone()).or_insert((response.grant, came));
                *newest = (newest.0.max(response.grant), came);
                self.forget(&fact);
            }
            let Some(reply) = response.reply.as_ref().and_then(|r| r.reply.as_ref()) else { return };
            let attrs = attrs_of(reply);
            for granted in &response.granted {
                let Some(fact) = granted.fact.as_ref().and_then(Fact::from_message) else { continue };
                if memo.recalled.get(&fact).is_some_and(|(number, _)| *number > response.grant) {
                    continue;
                }
                let level = if granted.exclusive { Level::Exclusive } else { Level::Shared };
                let about = match &fact {
                    Fact::Inode(about) | Fact::Entry(about, _) | Fact::Directory(about) => about,
                    // Nothing that is changed alone is about locks.
                    Fact::Locks(inode) => {
                        self.keep_locks(inode.0, level);
                        continue;
                    }
                };
                if memo.changed_alone.get(&about.0).is_some_and(|changed| *changed > flight.since) {
                    continue;
                }
                match &fact {
                    Fact::Locks(_) => {}
                    Fact::Inode(inode) => {
                        let attr = attrs.get(&inode.0).copied();
                        let before = match held.get(&inode.0) {
                            Some(known) => {
                                let extents = (level == Level::Exclusive && !flight.is_repeat)
                                    .then(|| known.extents_after(request, reply, response.grant));
                                Before { hold: known.hold, extents: extents.flatten().unwrap_or_default() }
                            }
                            None => {
                                memo.holds += 1;
                                Before { hold: memo.holds, extents: Arc::default() }
                            }
                        };
                        self.keep_inode(inode.0, level, request, (reply, response.grant), attr, before);
                    }
                    Fact::Entry(directory, name) => self.keep_entry(directory.0, name, request, reply),
                    Fact::Directory(directory) => {
                        // Entries that were taken back while their list was on its way.
                        let overtaken = memo
                            .recalled
                            .range(Fact::Entry(*directory, Bytes::new())..)
                            .map_while(|(recalled, newest)| match recalled {
                                Fact::Entry(of, name) if of == directory => Some((name, newest.0)),
                                _ => None,
                            })
                            .filter(|(_, number)| *number > response.grant)
                            .map(|(name, _)| name.clone())
                            .collect();
                        if let Some(Op::HoldAlone(_)) = &request.op {
                            if let Some(listing) = self.listings.get(&directory.0) {
                                listing.lock().unwrap_or_else(PoisonError::into_inner).alone = true;
                            }
                            continue;
                        }
                        let alone = level == Level::Exclusive;
                        self.keep_listing(directory.0, request, reply, (came, alone), overtaken);
                    }
                }
            }
            if let (Some(r), Reply::DirPage(page)) = (further, reply)
                && memo.changed_alone.get(&r.inode).is_none_or(|changed| *changed < flight.since)
                && let Some(listing) = self.listings.get(&r.inode)
            {
                let mut known = listing.lock().unwrap_or_else(PoisonError::into_inner);
                // Read after the promise: what changed since then was taken out of it.
                if flight.tick > known.since && known.next == r.cookie && !known.complete {
                    // A name that was taken out since the page was asked for may be known again by now, and better than the page knows it.
                    let directory = InodeId(r.inode);
                    known.add(&page.entries, page.end, |name| {
                        let newest = memo.recalled.get(&Fact::Entry(directory, name.clone()));
                        newest.is_some_and(|(_, came)| *came > flight.tick)
                    });
                    let names = known.names.len();
                    drop(known);
                    if names > LISTING_MAX {
                        self.listings.invalidate(&r.inode);
                    } else {
                        self.weigh_anew(r.inode, listing);
                    }
                }
            }
        });
    }

    /// An answer that says otherwise of a name than what is known comes of another change of this session, whose own answer isn't taken in yet: two
    /// answers may overtake each other. Whoever heard the one mustn't be shown what was before it.
    fn doubt(&self, flight: &Flight<'_>, request: &FsRequest, response: &Response) {
        let reply = response.reply.as_ref().and_then(|r| r.reply.as_ref());
        let Some((op, reply)) = request.op.as_ref().zip(reply) else { return };
        let Some((directory, name, is_there)) = tells_of_name(op, reply) else { return };
        if self.entry(directory, name).is_some_and(|(known, _)| known.is_some() != is_there) {
            self.memo(|memo| {
                if flight.life == memo.life {
                    self.forget(&Fact::Entry(InodeId(directory), name.clone()));
                }
            });
        }
    }

    fn keep_locks(&self, inode: u64, level: Level) {
        if level != Level::Exclusive {
            return;
        }
        self.locks(|locks| {
            if locks.asking > 0 {
                return;
            }
            // Those that are forgotten are asked for again.
            if locks.inodes.len() >= LOCKS_MAX {
                locks.inodes.clear();
            }
            locks.inodes.insert(inode);
        });
    }

    fn keep_entry(&self, directory: u64, name: &Bytes, request: &FsRequest, reply: &Reply) {
        let Some(target) = request.op.as_ref().and_then(|op| entry_of(op, reply)) else { return };
        self.entries.insert((directory, name.clone()), target);
        if let Some(listing) = self.listings.get(&directory) {
            let mut known = listing.lock().unwrap_or_else(PoisonError::into_inner);
            known.holes.remove(name);
            let (before, grew) = match target {
                Some(inode) => known.put(name, inode),
                None => (known.names.remove(name), false),
            };
            known.in_order &= before == target;
            drop(known);
            if grew {
                self.weigh_anew(directory, listing);
            }
        }
    }

    /// It `came` at this tick, without the `overtaken` names, and perhaps had alone.
    fn keep_listing(
        &self,
        directory: u64,
        request: &FsRequest,
        reply: &Reply,
        (came, alone): (u64, bool),
        overtaken: BTreeSet<Bytes>,
    ) {
        let mut listing =
            Listing { in_order: true, since: came, holes: overtaken, alone, ..Listing::default() };
        match (&request.op, reply) {
            (Some(Op::ReadDir(_)), Reply::DirPage(page)) => listing.add(&page.entries, page.end, |_| false),
            (Some(Op::Mkdir(_)), Reply::Entry(_)) => listing.complete = true,
            _ => return,
        }
        self.listings.insert(directory, Arc::new(Mutex::new(listing)));
    }

    /// Keeps what was answered under that number.
    fn keep_inode(
        &self,
        inode: u64,
        level: Level,
        request: &FsRequest,
        (reply, number): (&Reply, u64),
        attr: Option<Attr>,
        before: Before,
    ) {
        let Some(op) = &request.op else { return };
        let known = self.inodes.get(&inode);
        let Some(attr) = attr.or_else(|| known.as_ref().map(|k| k.attr)) else { return };
        let Before { hold, extents } = match &known {
            Some(known) => Before { hold: known.hold, extents: known.extents.clone() },
            None => before,
        };
        let mut target = known.and_then(|k| k.target);
        match (op, reply) {
            (Op::ReadExtents(r), Reply::Extents(map)) => {
                extents.lock().unwrap_or_else(PoisonError::into_inner).add(r.offset, map, number);
            }
            (Op::ReadLink(_), Reply::Value(value)) => target = Some(value.value.clone()),
            _ => {}
        }
        self.inodes.insert(inode, InodeFact { attr, level, target, extents, hold });
    }
}

impl InodeFact {
    /// Its extents after a change of this session's own, which was answered under that number: what it has written where nobody else may change the file is
    /// known from what was sent. None where the region must be asked.
    pub(super) fn extents_after(
        &self,
        request: &FsRequest,
        reply: &Reply,
        number: u64,
    ) -> Option<Arc<Mutex<Extents>>> {
        let (Some(Op::Write(write)), Reply::Written(_)) = (&request.op, reply) else { return None };
        // What is appended lies where the region has put it.
        if self.level != Level::Exclusive || write.append {
            return None;
        }
        let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        extents.written(&write.pieces, number).then(|| self.extents.clone())
    }
}

/// The attributes that a reply has, by inode.
pub(crate) fn attrs_of(reply: &Reply) -> BTreeMap<u64, Attr> {
    let one = match reply {
        Reply::Entry(entry) => entry.attr.as_ref(),
        Reply::Created(created) => created.attr.as_ref(),
        Reply::Written(written) => written.attr.as_ref(),
        Reply::Ranged(ranged) => ranged.attr.as_ref(),
        Reply::Extents(map) => map.attr.as_ref(),
        Reply::DirPage(page) => {
            return page.entries.iter().filter_map(|e| e.attr.as_ref()).map(|a| (a.inode, *a)).collect();
        }
        _ => None,
    };
    one.map(|attr| (attr.inode, *attr)).into_iter().collect()
}

/// What a reply says about the entry that it is about.
#[allow(clippy::option_option, reason = "whether it says something, and whether there is an entry")]
fn entry_of(op: &Op, reply: &Reply) -> Option<Option<u64>> {
    match (op, reply) {
        (Op::Lookup(_), Reply::Errno(_)) => Some(None),
        (Op::Lookup(_) | Op::Mknod(_) | Op::Mkdir(_) | Op::Symlink(_) | Op::Link(_), Reply::Entry(entry)) => {
            entry.attr.as_ref().map(|attr| Some(attr.inode))
        }
        (Op::Create(_), Reply::Created(created)) => created.attr.as_ref().map(|attr| Some(attr.inode)),
        (Op::Unlink(_) | Op::Rmdir(_) | Op::Rename(_), Reply::Done(_)) => Some(None),
        _ => None,
    }
}

/// What the answer to a change tells of a name that it didn't change: whether there is something of that name.
fn tells_of_name<'a>(op: &'a Op, reply: &Reply) -> Option<(u64, &'a Bytes, bool)> {
    const EXISTS: u32 = libc::EEXIST as u32;
    const ABSENT: u32 = libc::ENOENT as u32;
    match (op, reply) {
        (Op::Create(r), Reply::Errno(EXISTS)) => Some((r.parent, &r.name, true)),
        (Op::Create(r), Reply::Created(found)) if !found.created => Some((r.parent, &r.name, true)),
        (Op::Mknod(r), Reply::Errno(EXISTS)) => Some((r.parent, &r.name, true)),
        (Op::Mkdir(r), Reply::Errno(EXISTS)) => Some((r.parent, &r.name, true)),
        (Op::Symlink(r), Reply::Errno(EXISTS)) => Some((r.parent, &r.name, true)),
        (Op::Link(r), Reply::Errno(EXISTS)) => Some((r.new_parent, &r.new_name, true)),
        (Op::Rename(r), Reply::Errno(EXISTS)) => Some((r.new_parent, &r.new_name, true)),
        (Op::Rename(r), Reply::Errno(ABSENT)) => Some((r.parent, &r.name, false)),
        (Op::Unlink(r), Reply::Errno(ABSENT)) => Some((r.parent, &r.name, false)),
        (Op::Rmdir(r), Reply::Errno(ABSENT)) => Some((r.parent, &r.name, false)),
        _ => None,
    }
}
