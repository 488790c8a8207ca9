//! What is changed alone: under a directory that this session has to itself, names are made, moved and removed here, and told afterwards
//! (docs/decisions/0015-alone.md).
//!
//! ```text
//!   change -> directory alone, inode exclusive, no quota in the way -> shown and written down in one section -> answered
//!               | no                                                        \-> told in order, many at once (telling)
//!               +-> the usual way, behind what is untold
//! ```
//! Each fact that such a change touches is promised exclusively to this session. Nothing is judged here that the region would judge otherwise: what isn't
//! certain goes the usual way.

#![allow(clippy::result_large_err, reason = "what it calls an error is the other outcome, and is moved once")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mooseng_namespace::attr_of;
use mooseng_namespace::rules::{self, Kind};
use mooseng_schema::directory::Counters;
use mooseng_schema::inode::InodeRecord;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{
    Attr, Caller, Create, Created, Done, Entry, FileKind, FsRequest, HoldAlone, HoldFiles, Mkdir, Mknod,
    ReadDir, Rename, ReserveInodes, SetAttr, Symlink,
};
use mooseng_wire::session::Squash;
use mooseng_wire::{InodeId, NAME_BYTES_MAX, ROOT_INODE, SYMLINK_BYTES_MAX};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::FsError;
use crate::escrow::{Accounts, accounts_of};
use crate::facts::Alone;
use crate::files::Registration;
use crate::fs::{FileSystem, daemon};
use crate::journal::{self, Change, UnderWay};
use crate::read::unexpected;
use crate::waits::{self, What};

/// Ids that are reserved at a time.
const IDS: u32 = 1024;
/// Changes that a session makes in a directory, one after the other, before it asks for it.
const CHANGES_BEFORE: u32 = 3;
/// Files of a directory that are asked for at a time.
const FILES: usize = 256;
/// A directory that wasn't given, or no file of it, isn't asked for again for so long.
const NOT_AGAIN_FOR: Duration = Duration::from_secs(5);
/// So many changes that were made alone were worth what asking costs.
const WORTH_IT: u32 = 16;
/// A change waits so long for a directory that is asked for.
const ASKED_FOR_AT_MOST: Duration = Duration::from_secs(1);
/// So often a short list is read while other changes of this session are under way, which keep it from being promised.
const READ_AT_MOST: u32 = 3;
/// Directories of which changes are counted.
const COUNTED_MAX: usize = 1024;
/// Names of a directory that is asked for at most, and of one that is filled alone.
const NAMES_MAX: usize = 50_000;
/// Entries asked for at a time.
const PAGE: u32 = 1024;
/// So much the region's clock may be ahead of ours.
const CLOCKS_APART_NS: i64 = 2_000_000_000;
/// Questions about quotas for one change.
const ASKS_MAX: u32 = 3;

/// What became of a try to change something alone.
enum Tried {
    /// It is done, and answered so. It made that inode, or none, and is about these.
    Made {
        reply: Reply,
        made: u64,
        at: i64,
        about: Vec<u64>,
    },
    Done(Reply),
    Refused(i32),
    /// It goes the usual way.
    Usual,
    /// First it must be known whether these have limits.
    Ask(Accounts),
    /// This file's data comes first.
    Flush(u64),
    /// Others may know the file of that name in this directory: it is asked for.
    Hold(u64, Bytes),
    /// A change of this session's own about that inode is under way: first it must end.
    Behind(u64),
}

/// Counts a session's changes in directories, and knows which are asked for.
#[derive(Debug, Default)]
pub(crate) struct Eager {
    counts: Mutex<BTreeMap<u64, Count>>,
    asked: Mutex<BTreeSet<u64>>,
    answered: Notify,
    /// Directories of which no file was given, and until when none is asked for.
    no_files: Mutex<BTreeMap<u64, Instant>>,
}

/// Of a directory in which changes are made.
#[derive(Debug, Default)]
struct Count {
    /// Those that were made the usual way since it was asked for.
    usual: u32,
    /// When it may be asked for again.
    not_before: Option<Instant>,
    /// Those that were made alone since then.
    alone: u32,
}

/// A directory is asked for, until this is dropped.
struct Asking {
    fs: FileSystem,
    directory: u64,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let eager = &self.fs.inner.eager;
        eager.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.directory);
        eager.answered.notify_waiters();
    }
}

impl Eager {
    fn is_asked(&self, directory: u64) -> bool {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).contains(&directory)
    }

    /// While a directory is asked for, changes in it wait: a list that is read while one is under way isn't promised, and far from the home one always
    /// would be.
    async fn wait(&self, directory: u64) {
        let answered = async {
            loop {
                let answered = self.answered.notified();
                tokio::pin!(answered);
                answered.as_mut().enable();
                if !self.is_asked(directory) {
                    return;
                }
                answered.await;
            }
        };
        // Longer than that it isn't worth: the change goes the usual way.
        let _ = tokio::time::timeout(ASKED_FOR_AT_MOST, answered).await;
    }

    fn may_hold_files(&self, directory: u64, now: Instant) -> bool {
        let no_files = self.no_files.lock().unwrap_or_else(PoisonError::into_inner);
        no_files.get(&directory).is_none_or(|until| *until <= now)
    }

    fn no_files(&self, directory: u64, now: Instant) {
        let mut no_files = self.no_files.lock().unwrap_or_else(PoisonError::into_inner);
        no_files.retain(|_, until| *until > now);
        if no_files.len() < COUNTED_MAX {
            no_files.insert(directory, now + NOT_AGAIN_FOR);
        }
    }

    /// One more, made the usual way; true if it is time to ask for the directory.
    fn count(&self, directory: u64, now: Instant) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= COUNTED_MAX && !counts.contains_key(&directory) {
            counts.clear();
        }
        let count = counts.entry(directory).or_default();
        count.usual += 1;
        if count.usual < CHANGES_BEFORE || count.not_before.is_some_and(|until| now < until) {
            return false;
        }
        *count = Count { not_before: Some(now + NOT_AGAIN_FOR), ..Count::default() };
        true
    }

    /// One more, made alone.
    fn made(&self, directory: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&directory) {
            count.alone += 1;
        }
    }

    /// A change in a directory that is had alone goes the usual way, by which it is had alone no longer. Where that was worth it, it may be asked for again soon:
    /// nobody else has taken it.
    fn interrupted(&self, directory: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&directory).filter(|count| count.alone >= WORTH_IT) {
            *count = Count::default();
        }
    }
}

/// The time of a change in a directory: not before what the region's clock has set there. None where a time to come was set: what becomes of that only
/// the region knows.
fn after(now: i64, directory: &Attr) -> Option<i64> {
    let newest = directory.mtime_ns.max(directory.ctime_ns);
    (newest.saturating_sub(now) < CLOCKS_APART_NS).then_some(now.max(newest))
}

/// A directory after a change of its entries.
fn changed(directory: Attr, now: i64, subdirectories: i32) -> Attr {
    Attr {
        mtime_ns: directory.mtime_ns.max(now),
        ctime_ns: directory.ctime_ns.max(now),
        nlink: directory.nlink.saturating_add_signed(subdirectories),
        ..directory
    }
}

/// What is to be made.
struct Making {
    parent: u64,
    name: Bytes,
    kind: Kind,
    op: Op,
}

impl FileSystem {
    /// Whether changes of this caller may be made alone at all: its kernel has checked them, and the region takes its word.
    pub(crate) fn may_alone(&self, caller: &Caller) -> bool {
        let session = &self.inner.session;
        session.config.delegate
            && caller.kernel_checked
            && !caller.own_account
            && session.tells_alone()
            && session.squash() == Squash::None
            && !session.is_read_only()
            && session.root() == InodeId::new(session.volume(), ROOT_INODE.0).0
    }

    fn has_alone(&self, directories: &[u64]) -> bool {
        directories.iter().all(|directory| self.inner.facts.is_alone(*directory))
    }

    /// Tries until it is made alone, refused, or certain to go the usual way.
    async fn try_alone(
        &self,
        caller: &Caller,
        about: &[u64],
        op: &Op,
        attempt: impl Fn(&mut Alone<'_>, &UnderWay<'_>, i64) -> Tried,
    ) -> Result<Option<Reply>, FsError> {
        let inner = &self.inner;
        let journal = &inner.session.journal;
        let deadline = Instant::now() + inner.region.patience();
        let mut asks = 0;
        loop {
            let (life, now) = (inner.session.life(), inner.session.clock.unix_ns());
            let mut waits_for = about.to_vec();
            let tried = journal.make(life, about, |under_way| {
                inner.facts.alone(|alone| match attempt(alone, under_way, now) {
                    Tried::Made { reply, made, at, about } => {
                        let request = FsRequest { caller: Some(caller.clone()), op: Some(op.clone()) };
                        Ok((Tried::Done(reply), Change::new(request, made, at, about)))
                    }
                    other => Err(other),
                })
            });
            match tried {
                Err(journal::Entry::Foreign) => return Ok(None),
                Err(journal::Entry::Wait | journal::Entry::Free) => {}
                Ok(Err(Tried::Behind(inode)) | Ok(Tried::Behind(inode))) => waits_for.push(inode),
                Ok(Ok(Tried::Done(reply)) | Err(Tried::Done(reply))) => {
                    about.iter().for_each(|directory| inner.eager.made(*directory));
                    return Ok(Some(reply));
                }
                Ok(Err(Tried::Refused(errno)) | Ok(Tried::Refused(errno))) => {
                    return Err(FsError::Answered(errno));
                }
                Ok(Err(Tried::Ask(accounts))) if asks < ASKS_MAX => {
                    asks += 1;
                    inner.writer.ask(accounts, 0).await?;
                    continue;
                }
                Ok(Err(Tried::Flush(inode))) if asks < ASKS_MAX => {
                    asks += 1;
                    inner.writer.flush(inode).await?;
                    continue;
                }
                Ok(Err(Tried::Hold(directory, name))) if asks < ASKS_MAX => {
                    asks += 1;
                    if !self.hold_files(directory, &name).await {
                        about.iter().for_each(|directory| inner.eager.interrupted(*directory));
                        return Ok(None);
                    }
                    continue;
                }
                Ok(_) => {
                    about.iter().for_each(|directory| inner.eager.interrupted(*directory));
                    return Ok(None);
                }
            }
            if !journal.moved(deadline, || journal.must_wait(life, &waits_for)).await {
                return Err(FsError::Unanswered {
                    what: "telling the region of changes".into(),
                    after: inner.region.patience(),
                    last: inner.session.last_error(),
                });
            }
        }
    }

    /// Makes an inode. With `id`, under that.
    async fn make_alone(&self, caller: &Caller, making: Making, id: u64) -> Result<Option<Attr>, FsError> {
        let Making { parent, name, kind, op } = making;
        let is_directory = kind.kind == FileKind::Directory;
        let attempt = |alone: &mut Alone<'_>, _: &UnderWay<'_>, now: i64| {
            let Some(directory) = alone.directory(parent) else { return Tried::Usual };
            let Some(now) = after(now, &directory) else { return Tried::Usual };
            // What a directory's access control list hands down the region knows.
            if directory.nlink == 0 || !directory.no_acls || alone.names(parent) >= NAMES_MAX {
                return Tried::Usual;
            }
            if alone.named(parent, &name).is_some() {
                // Which file is opened the region says.
                let opens = matches!(&op, Op::Create(create) if !create.exclusive);
                return if opens { Tried::Usual } else { Tried::Refused(libc::EEXIST) };
            }
            // Without a storage class: attributes don't tell of it.
            let record = rules::made(&rules::known(&directory), caller, &kind, now);
            let attr = attr_of(InodeId(id), &record, &Counters::default());
            let accounts = accounts_of(&attr);
            match self.inner.writer.buffers.escrow.are_unlimited(accounts) {
                None => return Tried::Ask(accounts),
                Some(false) => return Tried::Usual,
                Some(true) => {}
            }
            alone.made(attr, (kind.kind == FileKind::Symlink).then(|| kind.target.clone()));
            alone.name(parent, &name, Some(id));
            alone.set(changed(directory, now, i32::from(is_directory)));
            let reply = match kind.kind {
                FileKind::Regular => Reply::Created(Created { attr: Some(attr), created: true }),
                _ => Reply::Entry(Entry { attr: Some(attr) }),
            };
            Tried::Made { reply, made: id, at: now, about: vec![parent, id] }
        };
        let reply = self.try_alone(caller, &[parent], &op, attempt).await?;
        Ok(reply.and_then(|reply| match reply {
            Reply::Created(made) => made.attr,
            Reply::Entry(made) => made.attr,
            _ => None,
        }))
    }

    /// The next id for what is made alone.
    async fn alone_id(&self) -> Result<u64, FsError> {
        let journal = &self.inner.session.journal;
        loop {
            if let Some(id) = journal.take_id() {
                return Ok(id);
            }
            let asking = self.inner.asking_ids.lock().await;
            if let Some(id) = journal.take_id() {
                return Ok(id);
            }
            let op = Op::ReserveInodes(ReserveInodes { count: IDS });
            match self.inner.region.read(&daemon(), op).await? {
                Reply::ReservedInodes(ids) => {
                    journal.reserved(ids.first..ids.first + u64::from(ids.count));
                }
                other => return Err(unexpected("reserve_inodes", &other)),
            }
            drop(asking);
        }
    }

    /// Whether something may be made in a directory alone, at this look; one that is asked for is waited for.
    async fn makes_alone(&self, caller: &Caller, parent: u64, name: &Bytes) -> bool {
        let possible = name.len() <= NAME_BYTES_MAX
            && name.as_ref() != b"."
            && name.as_ref() != b".."
            && self.may_alone(caller);
        if possible && self.inner.eager.is_asked(parent) {
            self.inner.eager.wait(parent).await;
        }
        possible && self.has_alone(&[parent])
    }

    /// Makes a file that is open from the start: its attributes and that open, if it was made.
    pub(crate) async fn create_alone(
        &self,
        caller: &Caller,
        create: &Create,
    ) -> Result<Option<(Attr, Registration)>, FsError> {
        if !self.makes_alone(caller, create.parent, &create.name).await {
            return Ok(None);
        }
        let id = self.alone_id().await?;
        // Open before it can be told. It isn't where the file comes not to be made, be it because nobody waits for it any more.
        let registration = Registration::new(self, id);
        registration.state.held_untold();
        let making = Making {
            parent: create.parent,
            name: create.name.clone(),
            kind: Kind::new(FileKind::Regular, create.mode),
            op: Op::Create(create.clone()),
        };
        let made = self.make_alone(caller, making, id).await?;
        Ok(made.map(|attr| (attr, registration)))
    }

    pub(crate) async fn mkdir_alone(&self, caller: &Caller, r: &Mkdir) -> Result<Option<Attr>, FsError> {
        if !self.makes_alone(caller, r.parent, &r.name).await {
            return Ok(None);
        }
        let (name, op) = (r.name.clone(), Op::Mkdir(r.clone()));
        let making = Making { parent: r.parent, name, kind: Kind::new(FileKind::Directory, r.mode), op };
        self.make_alone(caller, making, self.alone_id().await?).await
    }

    pub(crate) async fn symlink_alone(&self, caller: &Caller, r: &Symlink) -> Result<Option<Attr>, FsError> {
        let odd = r.target.is_empty() || r.target.len() > SYMLINK_BYTES_MAX || r.target.contains(&0);
        if odd || !self.makes_alone(caller, r.parent, &r.name).await {
            return Ok(None);
        }
        let (name, op) = (r.name.clone(), Op::Symlink(r.clone()));
        let making = Making { parent: r.parent, name, kind: Kind::symlink(r.target.clone()), op };
        self.make_alone(caller, making, self.alone_id().await?).await
    }

    pub(crate) async fn mknod_alone(&self, caller: &Caller, r: &Mknod) -> Result<Option<Attr>, FsError> {
        let kind = r.kind();
        if !matches!(kind, FileKind::Fifo | FileKind::Socket)
            || !self.makes_alone(caller, r.parent, &r.name).await
        {
            return Ok(None);
        }
        let (name, op) = (r.name.clone(), Op::Mknod(r.clone()));
        let making = Making { parent: r.parent, name, kind: Kind::new(kind, r.mode), op };
        self.make_alone(caller, making, self.alone_id().await?).await
    }

    /// Removes a name, of a directory or of anything else. True if that was done here.
    pub(crate) async fn remove_alone(
        &self,
        caller: &Caller,
        (parent, name): (u64, &Bytes),
        op: Op,
    ) -> Result<bool, FsError> {
        if !self.makes_alone(caller, parent, name).await {
            return Ok(false);
        }
        let of_directory = matches!(op, Op::Rmdir(_));
        let attempt = |alone: &mut Alone<'_>, under_way: &UnderWay<'_>, now: i64| {
            let Some(directory) = alone.directory(parent) else { return Tried::Usual };
            let Some(now) = after(now, &directory) else { return Tried::Usual };
            let Some(inode) = alone.named(parent, name) else { return Tried::Refused(libc::ENOENT) };
            if under_way.is_about(inode) {
                return Tried::Behind(inode);
            }
            let Some(attr) = alone.inode(inode) else {
                let may_be_held = !of_directory && alone.may_be_file(inode);
                return if may_be_held { Tried::Hold(parent, name.clone()) } else { Tried::Usual };
            };
            let is_directory = attr.kind() == FileKind::Directory;
            if is_directory != of_directory || (!is_directory && attr.nlink != 1) {
                return Tried::Usual;
            }
            if is_directory {
                if alone.directory(inode).is_none() {
                    return Tried::Usual;
                }
                if alone.names(inode) > 0 {
                    return Tried::Refused(libc::ENOTEMPTY);
                }
                alone.gone(inode);
            }
            alone.name(parent, name, None);
            alone.set(changed(directory, now, -i32::from(is_directory)));
            alone.set(Attr { nlink: 0, ctime_ns: rules::later(attr.ctime_ns, now), ..attr });
            Tried::Made { reply: Reply::Done(Done {}), made: 0, at: now, about: vec![parent, inode] }
        };
        Ok(self.try_alone(caller, &[parent], &op, attempt).await?.is_some())
    }

    /// Renames. True if that was done here.
    pub(crate) async fn rename_alone(&self, caller: &Caller, r: &Rename) -> Result<bool, FsError> {
        let (from, to) = (r.parent, r.new_parent);
        let possible = !r.exchange && self.makes_alone(caller, from, &r.name).await;
        if !possible || !self.makes_alone(caller, to, &r.new_name).await {
            return Ok(false);
        }
        let attempt = |alone: &mut Alone<'_>, under_way: &UnderWay<'_>, now: i64| {
            let (Some(directory), Some(new_directory)) = (alone.directory(from), alone.directory(to)) else {
                return Tried::Usual;
            };
            let both = after(now, &directory).zip(after(now, &new_directory));
            let Some(now) = both.map(|(one, other)| one.max(other)) else { return Tried::Usual };
            let Some(inode) = alone.named(from, &r.name) else { return Tried::Refused(libc::ENOENT) };
            let replaced = alone.named(to, &r.new_name);
            if let Some(busy) = [Some(inode), replaced].into_iter().flatten().find(|i| under_way.is_about(*i))
            {
                return Tried::Behind(busy);
            }
            let Some(attr) = alone.inode(inode) else {
                let may_be_held = alone.may_be_file(inode);
                return if may_be_held { Tried::Hold(from, r.name.clone()) } else { Tried::Usual };
            };
            let is_directory = attr.kind() == FileKind::Directory;
            if directory.quota != new_directory.quota
                || attr.quota != directory.quota
                || (is_directory && from != to)
                || attr.joined != 0
                || alone.names(to) >= NAMES_MAX
            {
                return Tried::Usual;
            }
            let mut about = vec![from, to, inode];
            if let Some(replaced) = replaced {
                if r.no_replace {
                    return Tried::Refused(libc::EEXIST);
                }
                let Some(other) = alone.inode(replaced) else { return Tried::Hold(to, r.new_name.clone()) };
                let plain = other.kind() != FileKind::Directory && other.nlink == 1 && replaced != inode;
                if is_directory || !plain {
                    return Tried::Usual;
                }
                // What replaces a file never comes before its own data.
                if self.inner.writer.buffers.has(inode) {
                    return Tried::Flush(inode);
                }
                alone.set(Attr { nlink: 0, ctime_ns: rules::later(other.ctime_ns, now), ..other });
                about.push(replaced);
            }
            about.dedup();
            alone.name(from, &r.name, None);
            alone.name(to, &r.new_name, Some(inode));
            alone.set(changed(directory, now, 0));
            if from != to {
                alone.set(changed(new_directory, now, 0));
            }
            alone.set(Attr { ctime_ns: rules::later(attr.ctime_ns, now), ..attr });
            Tried::Made { reply: Reply::Done(Done {}), made: 0, at: now, about }
        };
        Ok(self.try_alone(caller, &[from, to], &Op::Rename(r.clone()), attempt).await?.is_some())
    }

    /// Sets attributes, but for the size, of an inode that nobody else knows.
    pub(crate) async fn set_alone(&self, caller: &Caller, r: &SetAttr) -> Result<Option<Attr>, FsError> {
        let inode = r.inode;
        let exclusive = || self.inner.facts.alone(|alone| alone.inode(inode).is_some());
        let buffered = || self.inner.writer.buffers.has(inode);
        let possible = r.size.is_none() && !r.kill_suidgid && r.changed_ns.is_none();
        // What it sets outlives nobody: of a file in a directory that others know it goes at once, as ever.
        let untold = self.inner.session.journal.has(inode) || self.inner.facts.is_alone(inode);
        if !possible || !untold || !self.may_alone(caller) || buffered() || !exclusive() {
            return Ok(None);
        }
        let attempt = |alone: &mut Alone<'_>, _: &UnderWay<'_>, now: i64| {
            let Some(mut attr) = alone.inode(inode).filter(|_| !buffered()) else { return Tried::Usual };
            let is_directory = attr.kind() == FileKind::Directory;
            let now = if is_directory { after(now, &attr) } else { Some(now) };
            let Some(now) = now else { return Tried::Usual };
            if r.uid.is_some() || r.gid.is_some() {
                let owner = Attr { uid: r.uid.unwrap_or(attr.uid), ..attr };
                let accounts = accounts_of(&owner);
                match self.inner.writer.buffers.escrow.are_unlimited(accounts) {
                    None => return Tried::Ask(accounts),
                    Some(false) => return Tried::Usual,
                    Some(true) => {}
                }
                // Privileges go with the owner; which of them there are in attributes only the region knows.
                if !is_directory && !attr.no_xattrs {
                    return Tried::Usual;
                }
            }
            let mut record = rules::known(&attr);
            rules::set(&mut record, r, caller, now);
            let InodeRecord { mode, uid, gid, atime_ns, mtime_ns, ctime_ns, .. } = record;
            attr = Attr { mode, uid, gid, atime_ns, mtime_ns, ctime_ns, ..attr };
            alone.set(attr);
            Tried::Made {
                reply: Reply::Entry(Entry { attr: Some(attr) }),
                made: 0,
                at: now,
                about: vec![inode],
            }
        };
        let reply = self.try_alone(caller, &[inode], &Op::SetAttr(*r), attempt).await?;
        Ok(reply.and_then(|reply| match reply {
            Reply::Entry(entry) => entry.attr,
            _ => None,
        }))
    }

    // ---- getting directories ----

    /// A change was made in a directory the usual way. After some in a row the directory is asked for.
    pub(crate) fn changed_in(&self, caller: &Caller, directory: u64) {
        if self.may_alone(caller)
            && !self.inner.facts.is_alone(directory)
            && self.inner.eager.count(directory, Instant::now())
        {
            self.ask_alone(directory);
        }
    }

    /// A directory was made the usual way: it is empty, and nobody else knows it yet. It wasn't given with the answer where a master doesn't know how, or
    /// where the answer came from what was recorded.
    pub(crate) fn made_directory(&self, caller: &Caller, directory: u64) {
        if self.may_alone(caller) && !self.inner.facts.is_alone(directory) {
            self.ask_alone(directory);
        }
    }

    fn ask_alone(&self, directory: u64) {
        let mut asked = self.inner.eager.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= COUNTED_MAX || !asked.insert(directory) {
            return;
        }
        drop(asked);
        let asking = Asking { fs: self.clone(), directory };
        self.inner.region.spawn(async move {
            if let Err(error) = asking.fs.hold_alone(directory).await {
                tracing::debug!(directory, %error, "a directory wasn't given to this session alone");
            }
        });
    }

    async fn hold_alone(&self, directory: u64) -> Result<(), FsError> {
        let (mut cookie, mut names, mut reads) = (0, 0, 1);
        while !self.inner.facts.is_listed(directory) {
            let read = ReadDir { inode: directory, cookie, entries_max: PAGE, plus: false };
            // A replica's list says nothing of what the home promises.
            let page = match self.inner.region.read_at_home(&daemon(), Op::ReadDir(read)).await? {
                Reply::DirPage(page) => page,
                other => return Err(unexpected("readdir", &other)),
            };
            names += page.entries.len();
            match page.entries.last() {
                Some(last) if !page.end && names < NAMES_MAX => cookie = last.cookie,
                // By now those that were under way have come to their end, and others wait.
                _ if page.end && cookie == 0 && reads < READ_AT_MOST => {
                    (names, reads) = (0, reads + 1);
                }
                _ if page.end => break,
                _ => return Ok(()),
            }
        }
        // Without its list it is of no use, and others would have to take it back.
        if !self.inner.facts.is_listed(directory) {
            tracing::debug!(directory, names, reads, "a directory isn't asked for: its list isn't promised");
            return Ok(());
        }
        match self.inner.region.read(&daemon(), Op::HoldAlone(HoldAlone { inode: directory })).await? {
            Reply::Entry(_) => {
                let is_alone = self.inner.facts.is_alone(directory);
                tracing::debug!(directory, names, reads, is_alone, "a directory was asked for");
                Ok(())
            }
            other => Err(unexpected("hold_alone", &other)),
        }
    }

    /// Has the file of a name given to this session with its directory, which it has alone, and with it others whose names may come next: a directory that
    /// is emptied is a question for hundreds of them. Answers whether that file is.
    async fn hold_files(&self, directory: u64, name: &Bytes) -> bool {
        let inner = &self.inner;
        let held = || {
            inner
                .facts
                .alone(|alone| alone.named(directory, name).is_some_and(|file| alone.inode(file).is_some()))
        };
        let _asking = inner.asking_files[(directory % 16) as usize].lock().await;
        // Somebody else may have asked for it meanwhile.
        if held() {
            return true;
        }
        if !inner.eager.may_hold_files(directory, Instant::now()) {
            return false;
        }
        let inodes = inner.facts.to_hold(directory, name, FILES);
        if inodes.is_empty() {
            return false;
        }
        let op = Op::HoldFiles(HoldFiles { directory, inodes: inodes.clone() });
        let asked = inner.region.read_at_home(&daemon(), op).await;
        let given = match asked {
            Ok(Reply::DirPage(_)) => {
                inner.facts.alone(|alone| inodes.iter().any(|file| alone.inode(*file).is_some()))
            }
            // A master of an earlier release among them.
            Ok(_) => false,
            Err(error) => {
                tracing::debug!(directory, %error, "files of a directory aren't given to this session");
                false
            }
        };
        if !given {
            inner.eager.no_files(directory, Instant::now());
        }
        held()
    }

    // ---- losses ----

    /// Where an open directory begins to hear of changes that are lost: for [`Self::fsync_open_directory`].
    pub fn losses(&self) -> u64 {
        self.inner.session.journal.losses()
    }

    /// Makes a directory's changes durable. Those that were lost since `seen` are reported, once.
    pub async fn fsync_open_directory(&self, inode: u64, seen: &AtomicU64) -> Result<(), FsError> {
        self.told(self.inner.region.patience()).await?;
        self.synced(inode).await?;
        match self.inner.session.journal.loss_in(inode) {
            Some((when, errno)) if seen.fetch_max(when, Ordering::AcqRel) < when => {
                Err(FsError::Answered(errno))
            }
            _ => Ok(()),
        }
    }

    /// Waits until everything that was made alone is told, or lost.
    pub(crate) async fn told(&self, patience: Duration) -> Result<(), FsError> {
        let journal = &self.inner.session.journal;
        let told = waits::on(|| What::Earlier, journal.told());
        tokio::time::timeout(patience, told).await.map_err(|_| FsError::Unanswered {
            what: "telling the region of changes".into(),
            after: patience,
            last: self.inner.session.last_error(),
        })
    }
}
