//! Writing: buffered under the exclusive promise of an inode, through to the region otherwise (DESIGN section 6).
//!
//! ```text
//!   write -> exclusive? -> buffer -> flush (age, size, fsync or shortly before it, recall, close, truncate, ...) -> chunks -> commit
//!               | no, nor given when asked for
//!               +-> flush, then through at once
//! ```
//! Bytes are buffered only while the inode is promised exclusively and the lease stands; both are looked at in the section that adds them. A
//! recall closes the buffer, flushes it, and only then gives the promise up. Under a new custodian the session claims the inodes of which
//! it holds bytes. After a lapse of the lease others may have changed the file: what is buffered is sent only if nobody has.
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use mooseng_transport::trace;
use mooseng_wire::FILE_SIZE_MAX;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Acquire, Attr, Caller, FileKind, SetAttr};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::append::Appenders;
use crate::buffers::Buffers;
use crate::dirty::{BEGIN_BYTES, Dirty, SETTINGS_BYTES};
use crate::error::FsError;
use crate::escrow::{Account, Accounts, Taken, accounts_of};
use crate::facts::{Facts, Level};
use crate::fs::daemon;
use crate::full::Full;
use crate::opens::Opens;
use crate::owners::Tenure;
use crate::read::unexpected;
use crate::recalls::Recalls;
use crate::region::Region;
use crate::settings::Settings;
use crate::waits::{self, What};

/// A session that wasn't given an inode exclusively doesn't ask again for so long: another one has it open.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    At(u64),
    End,
}

/// How a write is done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct How {
    /// Clears setuid and setgid.
    pub kill_suidgid: bool,
    /// The only tenure of locks in which it may be done.
    pub tenure: Option<Tenure>,
}

/// Questions for escrow before one write goes through.
const ASKS_MAX: u32 = 4;

/// What became of a wish to buffer.
enum Put {
    /// Where it begins, and the attributes afterwards.
    Buffered(u64, Attr),
    /// It has to go through.
    Not,
    /// The region has to be asked for escrow of these accounts.
    Ask(Accounts),
}

/// Writes files.
pub(crate) struct WriteBack {
    pub region: Arc<Region>,
    pub appenders: Arc<Appenders>,
    pub facts: Arc<Facts>,
    pub opens: Arc<Opens>,
    pub buffers: Arc<Buffers>,
    pub recalls: Arc<Recalls>,
    /// Flushes that nobody waits for, at once.
    pub slots: Arc<Semaphore>,
    /// Whether the region has room.
    pub full: Full,
    /// Runs of failures so far.
    pub refusals: AtomicU64,
}

impl WriteBack {
    /// Buffers a write if the inode is, or can be, promised exclusively. Answers where it begins and the attributes afterwards.
    pub async fn buffer(
        self: &Arc<Self>,
        caller: &Caller,
        inode: u64,
        place: Place,
        data: &Bytes,
        how: How,
    ) -> Result<Option<(u64, Attr)>, FsError> {
        let Some(open) = self.opens.get(inode) else { return Ok(None) };
        if data.len() > self.buffers.room.bytes_max || open.is_shared() {
            return Ok(None);
        }
        // Where it is likely to be refused, whoever writes is to hear of it himself.
        if self.full.is_known(Instant::now()) || self.is_kept(inode) {
            return Ok(None);
        }
        if !self.wait_for_room(inode, data.len()).await? {
            return Ok(None);
        }
        if let Some(put) = self.put_covered(inode, place, data, how).await? {
            return Ok(Some(put));
        }
        if self.is_exclusive(inode) {
            return Ok(None);
        }
        match self.region.read(caller, Op::Acquire(Acquire { inode })).await? {
            Reply::Entry(_) => {}
            other => return Err(unexpected("acquire", &other)),
        }
        let put = self.put_covered(inode, place, data, how).await?;
        if put.is_none() && !self.is_exclusive(inode) {
            open.share_for(SHARED_FOR);
        }
        Ok(put)
    }

    /// [`Self::put`], with what a quota asks for. Where there is no room, nothing is buffered: the region decides about the write.
    async fn put_covered(
        self: &Arc<Self>,
        inode: u64,
        place: Place,
        data: &Bytes,
        how: How,
    ) -> Result<Option<(u64, Attr)>, FsError> {
        for _ in 0..ASKS_MAX {
            match self.put(inode, place, data, how)? {
                Put::Buffered(at, attr) => {
                    let accounts = accounts_of(&attr);
                    if self.buffers.escrow.is_stale(accounts) && self.buffers.escrow.asking.try_lock().is_ok()
                    {
                        let writer = self.clone();
                        self.region.spawn(async move {
                            if let Err(error) = writer.ask(accounts, 0).await {
                                tracing::debug!(%error, "it isn't known yet whether there is a quota");
                            }
                        });
                    }
                    return Ok(Some((at, attr)));
                }
                Put::Not => return Ok(None),
                // Goes on when the caller stops waiting: what is granted must be heard of.
                Put::Ask(accounts) => {
                    let (writer, bytes) = (self.clone(), data.len() as u64);
                    let asked =
                        tokio::spawn(trace::carried(async move { writer.ask(accounts, bytes).await }));
                    asked.await.unwrap_or_else(|e| {
                        Err(FsError::Internal(format!("asking for room in a quota: {e}")))
                    })?;
                }
            }
        }
        Ok(None)
    }

    /// Asks the region for escrow.
    pub async fn ask(&self, accounts: Accounts, bytes: u64) -> Result<(), FsError> {
        let escrow = &self.buffers.escrow;
        let before = escrow.asking.try_lock();
        let _asking = match before {
            Ok(asking) => asking,
            Err(_) => {
                // Somebody asks: perhaps there is enough for both.
                drop(escrow.asking.lock().await);
                return Ok(());
            }
        };
        let question = escrow.question(accounts, bytes);
        let reserved = match self.region.read(&daemon(), Op::Reserve(question.reserve.clone())).await {
            Ok(Reply::Reserved(reserved)) => reserved,
            Ok(other) => return Err(unexpected("reserve", &other)),
            // A master of an earlier release, while the region is renewed: it knows of no limits.
            Err(FsError::Invalid(_) | FsError::NotBuilt(_)) => question.unlimited(),
            Err(error) => return Err(error),
        };
        escrow.answered(&question, &reserved, Instant::now());
        Ok(())
    }

    pub fn is_exclusive(&self, inode: u64) -> bool {
        self.facts.inode(inode).is_some_and(|(known, _)| known.level == Level::Exclusive)
    }

    fn put(self: &Arc<Self>, inode: u64, place: Place, data: &Bytes, how: How) -> Result<Put, FsError> {
        let (now, now_ns) = (Instant::now(), self.region.session.clock.unix_ns());
        let tenure = self.region.session.tenure();
        let life = tenure.life;
        if how.tenure.is_some_and(|of| !self.region.session.keeps(of)) {
            return Err(FsError::Lapsed);
        }
        let mut full = false;
        let put = self.buffers.change(inode, |dirty| {
            let Some(mut attr) = self.ours(inode, dirty, life) else { return Ok(Put::Not) };
            // File capabilities, an extended attribute, end with a write, too.
            if how.kill_suidgid && (!attr.no_xattrs || attr.mode & 0o6000 != 0) {
                return Ok(Put::Not);
            }
            let base = attr;
            dirty.show(&mut attr);
            let at = match place {
                Place::At(at) => at,
                Place::End => attr.size,
            };
            let end = at.checked_add(data.len() as u64);
            if end.is_none_or(|end| end > FILE_SIZE_MAX) {
                return Err(FsError::FileTooLarge);
            }
            let accounts = accounts_of(&attr);
            let length = data.len() as u64;
            let covering = match self.buffers.escrow.take(accounts, length, now) {
                Taken::Covered(covering) => covering,
                Taken::Ask => return Ok(Put::Ask(accounts)),
                Taken::Through => return Ok(Put::Not),
            };
            if !dirty.may_cover(&covering) {
                // The file counts for others now than what is buffered of it: that leaves first.
                self.buffers.escrow.settle(&covering, 0, length);
                return Ok(Put::Not);
            }
            if dirty.is_clean() {
                (dirty.base, dirty.life, dirty.locked) = (Some(base), life, None);
            }
            // The oldest counts: what was written under it mustn't go to a later home that doesn't have the lock.
            dirty.locked = dirty.locked.or(how.tenure.map(|tenure| tenure.home));
            dirty.cover(covering, length);
            dirty.put(at, data.clone(), now, now_ns);
            dirty.show(&mut attr);
            full = dirty.waiting_bytes() >= BEGIN_BYTES;
            Ok(Put::Buffered(at, attr))
        })?;
        if full {
            self.start(inode);
        }
        Ok(put)
    }

    /// Buffers attributes that are set on a file, if it is promised exclusively: they go with its data. Answers them as they are shown from now
    /// on. For callers whose rights are checked.
    pub async fn buffer_settings(self: &Arc<Self>, change: &SetAttr) -> Result<Option<Attr>, FsError> {
        let inode = change.inode;
        // Somebody must be there who hears of a failure. Or else there is data that can't be stored at present: without it these don't go.
        let open = self.opens.get(inode).filter(|open| open.local() > 0);
        if open.is_none() && !self.is_kept(inode) {
            return Ok(None);
        }
        let is_shared = open.as_ref().is_some_and(|open| open.is_shared());
        if is_shared || self.buffers.room.bytes_max == 0 || !self.is_exclusive(inode) {
            return Ok(None);
        }
        if let Some(uid) = change.uid {
            if self.buffers.escrow.is_unlimited(uid).is_none() {
                self.ask([None, Some(Account::User(uid))], 0).await?;
            }
            // The file may be too much for its new owner's quota: that is the region's to say.
            if self.buffers.escrow.is_unlimited(uid) != Some(true) {
                return Ok(None);
            }
        }
        if !self.wait_for_room(inode, SETTINGS_BYTES).await? {
            return Ok(None);
        }
        let (now, now_ns) = (Instant::now(), self.region.session.clock.unix_ns());
        let life = self.region.session.life();
        let set = self.buffers.change(inode, |dirty| {
            let mut attr = self.ours(inode, dirty, life)?;
            let base = attr;
            dirty.show(&mut attr);
            let settings = Settings::of(change, &attr, now_ns)?;
            if dirty.is_clean() {
                (dirty.base, dirty.life, dirty.locked) = (Some(base), life, None);
            }
            dirty.set(settings, now);
            attr = base;
            dirty.show(&mut attr);
            Some(attr)
        });
        // They are one more thing that fsync has to send: what left without them would cost a change of its own.
        if let (Some(open), Some(_)) = (open, &set) {
            open.written(SETTINGS_BYTES);
        }
        Ok(set)
    }

    /// The region's attributes of a file of which something may be buffered now. To be called, and used, in the section that changes the
    /// buffer: a recall closes the buffer before it gives the promise up.
    fn ours(&self, inode: u64, dirty: &Dirty, life: (u64, u64)) -> Option<Attr> {
        if dirty.closed > 0 || dirty.is_foreign_to(life) {
            return None;
        }
        let (known, _) = self.facts.inode(inode)?;
        let exclusive = known.level == Level::Exclusive && known.attr.kind() == FileKind::Regular;
        exclusive.then_some(known.attr)
    }

    /// Whether the region has refused what is buffered of an inode, which is kept until it takes it.
    pub fn is_kept(&self, inode: u64) -> bool {
        self.buffers.refused(inode).is_some_and(|refused| refused.answered)
    }

    /// False where other volumes hold all of the room, or what the region has no room for: this isn't to wait for them.
    async fn wait_for_room(self: &Arc<Self>, inode: u64, bytes: usize) -> Result<bool, FsError> {
        let patience = self.region.patience();
        let deadline = Instant::now() + patience;
        loop {
            let room = self.buffers.room.changed.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.buffers.room.bytes() + bytes <= self.buffers.room.bytes_max {
                return Ok(true);
            }
            let leaving = self.buffers.leaving_bytes();
            // Others may write so steadily that something always leaves: beside what stays there must be room at all.
            let kept = self.buffers.bytes().saturating_sub(leaving);
            if leaving == 0 || kept + bytes > self.buffers.room.bytes_max {
                return Ok(false);
            }
            self.buffers.inodes().into_iter().for_each(|inode| self.start(inode));
            let room = waits::on(|| What::Room, room);
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                let last = "the buffer for written data stays full".to_owned();
                return Err(FsError::Data { inode, what: "written", after: patience, last });
            }
        }
    }

    /// What lies in [offset, offset + length) of what is buffered, the oldest first, and how far what is buffered of the file reaches. For who reads the rest
    /// at the region, after this. None where it was written in another life of the session: nobody knows yet what becomes of it.
    pub fn over(&self, inode: u64, offset: u64, length: u64) -> Option<(Vec<(u64, Bytes)>, u64)> {
        self.buffers.map(|map| {
            let Some(buffer) = map.get(&inode) else { return Some((Vec::new(), 0)) };
            let life = self.region.session.life();
            buffer.dirty(|dirty| {
                (!dirty.is_foreign_to(life)).then(|| dirty.over(offset, offset.saturating_add(length)))
            })
        })
    }

    /// The bytes of [offset, offset + length), cut at the file's end, if all of them are buffered: in this life of the session. What is left of an earlier one
    /// is sent only if nobody has changed the file since, and shown once that is known.
    pub fn read(&self, inode: u64, offset: u64, length: u64) -> Option<Bytes> {
        self.buffers.map(|map| {
            let buffer = map.get(&inode)?;
            let (known, _) = self.facts.inode(inode)?;
            // Looked at after the promise, which is of this life then.
            let life = self.region.session.life();
            buffer.dirty(|dirty| {
                if dirty.is_foreign_to(life) {
                    return None;
                }
                let mut attr = known.attr;
                dirty.show(&mut attr);
                let end = offset.saturating_add(length).min(attr.size);
                if end <= offset { None } else { dirty.read(offset, end) }
            })
        })
    }
}
