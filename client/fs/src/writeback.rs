//! Writing: buffered under the exclusive promise of an inode, through to the region otherwise (DESIGN section 6).
//!
//! ```text
//!   write -> exclusive? -> buffer -> flush (age, size, fsync, recall, close, truncate, ...) -> chunks -> commit
//!               | no, nor given when asked for
//!               +-> flush, then through at once
//! ```
//! Bytes are buffered only while the inode is promised exclusively and the lease stands; both are looked at in the section that adds them. A
//! recall closes the buffer, flushes it, and only then gives the promise up. Under a new custodian the session claims the inodes of which
//! it holds bytes. After a lapse of the lease others may have changed the file: what is buffered is sent only if nobody has.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use mooseng_transport::trace;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Acquire, Attr, Caller, ChunkRun, FileKind, SetAttr, Write, WritePiece, write_piece};
use mooseng_wire::{FILE_SIZE_MAX, INLINE_EXTENT_BYTES_MAX, INLINE_FILE_BYTES_MAX};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::append::Appenders;
use crate::dirty::{BATCH_BYTES, Dirty, SETTINGS_BYTES, Segment};
use crate::error::FsError;
use crate::facts::{Facts, Level};
use crate::fs::daemon;
use crate::opens::Opens;
use crate::read::unexpected;
use crate::region::Region;
use crate::settings::Settings;

/// What is older than this is flushed: with a slow flush nothing stays dirty for 5 s.
const AGE_MAX: Duration = Duration::from_secs(2);
/// How often ages are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Inodes flushed at once.
pub(crate) const FLUSHES: usize = 64;
/// How often a flush looks anew whether the file is still as it was, when the lease lapses beneath it.
const LAPSES_MAX: u32 = 20;
/// And the pause between.
const LAPSE_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether changes that were given up are over.
const FENCE_LOOK: Duration = Duration::from_millis(20);
/// A session that wasn't given an inode exclusively doesn't ask again for so long: another one has it open.
const SHARED_FOR: Duration = Duration::from_secs(1);
/// After a failed write-back writes go through for so long, so that whoever writes hears of it.
const THROUGH_FOR: Duration = Duration::from_secs(5);

/// One inode's buffer.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// Held by whoever sends.
    sender: tokio::sync::Mutex<()>,
    dirty: Mutex<Dirty>,
}

impl Buffer {
    fn dirty<T>(&self, f: impl FnOnce(&mut Dirty) -> T) -> T {
        f(&mut self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All buffers of a mount.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// An inode's buffer is here as long as it holds bytes, is closed, or somebody sends from it: clones are made under this lock alone, so
    /// that there is never a second one. Bytes are added under it, too.
    by_inode: Mutex<BTreeMap<u64, Arc<Buffer>>>,
    bytes: AtomicUsize,
    bytes_max: usize,
    room: Notify,
}

impl Buffers {
    /// Buffers that hold that many bytes together at most; with none, nothing is buffered.
    pub fn new(bytes_max: usize) -> Self {
        Self { by_inode: Mutex::default(), bytes: AtomicUsize::new(0), bytes_max, room: Notify::new() }
    }

    fn map<T>(&self, f: impl FnOnce(&mut BTreeMap<u64, Arc<Buffer>>) -> T) -> T {
        f(&mut self.by_inode.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, inode: u64) -> Option<Arc<Buffer>> {
        self.map(|map| map.get(&inode).cloned())
    }

    /// Whether an inode has one.
    pub fn has(&self, inode: u64) -> bool {
        self.map(|map| map.contains_key(&inode))
    }

    /// The inodes that have one.
    pub fn inodes(&self) -> Vec<u64> {
        self.map(|map| map.keys().copied().collect())
    }

    /// The inodes of which this life of the session holds bytes.
    pub fn held_by(&self, life: (u64, u64)) -> Vec<u64> {
        self.map(|map| {
            let held = |buffer: &Buffer| buffer.dirty(|dirty| !dirty.is_clean() && dirty.life == life);
            map.iter().filter(|(_, buffer)| held(buffer)).map(|(&inode, _)| inode).collect()
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn change<T>(&self, inode: u64, f: impl FnOnce(&mut Dirty) -> T) -> T {
        self.map(|map| {
            let buffer = map.entry(inode).or_default().clone();
            let result = buffer.dirty(|dirty| {
                let before = dirty.bytes();
                let result = f(dirty);
                self.bytes.fetch_add(dirty.bytes(), Ordering::Relaxed);
                self.bytes.fetch_sub(before, Ordering::Relaxed);
                result
            });
            drop(buffer);
            Self::drop_idle(map, inode);
            self.room.notify_waiters();
            result
        })
    }

    fn drop_idle(map: &mut BTreeMap<u64, Arc<Buffer>>, inode: u64) {
        let idle = |buffer: &Arc<Buffer>| {
            Arc::strong_count(buffer) == 1 && buffer.dirty(|dirty| dirty.is_clean() && dirty.closed == 0)
        };
        if map.get(&inode).is_some_and(idle) {
            map.remove(&inode);
        }
    }

    /// A sender is done with its clone.
    fn give_back(&self, inode: u64, buffer: Arc<Buffer>) {
        self.map(|map| {
            drop(buffer);
            Self::drop_idle(map, inode);
        });
    }

    /// Shows attributes as they are with what is buffered.
    pub fn show(&self, attr: &mut Attr) {
        self.map(|map| {
            if let Some(buffer) = map.get(&attr.inode) {
                buffer.dirty(|dirty| dirty.show(attr));
            }
        });
    }

    /// What `known` says of an inode, as it is with what is buffered: in one section, so that bytes that reach the region meanwhile aren't
    /// missed in both.
    pub fn show_known(&self, inode: u64, known: impl FnOnce() -> Option<Attr>) -> Option<Attr> {
        self.map(|map| {
            let mut attr = known()?;
            if let Some(buffer) = map.get(&inode) {
                buffer.dirty(|dirty| dirty.show(&mut attr));
            }
            Some(attr)
        })
    }
}

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
    /// The only life of the session in which it may be done.
    pub life: Option<(u64, u64)>,
}

/// Writes files.
pub(crate) struct WriteBack {
    pub region: Arc<Region>,
    pub appenders: Arc<Appenders>,
    pub facts: Arc<Facts>,
    pub opens: Arc<Opens>,
    pub buffers: Arc<Buffers>,
    /// Flushes that nobody waits for, at once.
    pub slots: Arc<Semaphore>,
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
        if data.len() > self.buffers.bytes_max || open.is_shared() {
            return Ok(None);
        }
        self.wait_for_room(inode, data.len()).await?;
        if let Some(put) = self.put(inode, place, data, how)? {
            return Ok(Some(put));
        }
        if self.is_exclusive(inode) {
            return Ok(None);
        }
        match self.region.read(caller, Op::Acquire(Acquire { inode })).await? {
            Reply::Entry(_) => {}
            other => return Err(unexpected("acquire", &other)),
        }
        let put = self.put(inode, place, data, how)?;
        if put.is_none() {
            open.share_for(SHARED_FOR);
        }
        Ok(put)
    }

    fn is_exclusive(&self, inode: u64) -> bool {
        self.facts.inode(inode).is_some_and(|(known, _)| known.level == Level::Exclusive)
    }

    fn put(
        self: &Arc<Self>,
        inode: u64,
        place: Place,
        data: &Bytes,
        how: How,
    ) -> Result<Option<(u64, Attr)>, FsError> {
        let (now, now_ns) = (Instant::now(), self.region.session.clock.unix_ns());
        let life = self.region.session.life();
        if how.life.is_some_and(|only| only != life) {
            return Err(FsError::Lapsed);
        }
        let put = self.buffers.change(inode, |dirty| {
            let Some(mut attr) = self.ours(inode, dirty, life) else { return Ok(None) };
            // File capabilities, an extended attribute, end with a write, too.
            if how.kill_suidgid && (attr.has_xattrs || attr.mode & 0o6000 != 0) {
                return Ok(None);
            }
            if dirty.is_clean() {
                (dirty.base, dirty.life, dirty.locked) = (Some(attr), life, false);
            }
            dirty.locked |= how.life.is_some();
            dirty.show(&mut attr);
            let at = match place {
                Place::At(at) => at,
                Place::End => attr.size,
            };
            let end = at.checked_add(data.len() as u64);
            if end.is_none_or(|end| end > FILE_SIZE_MAX) {
                return Err(FsError::FileTooLarge);
            }
            dirty.put(at, data.clone(), now, now_ns);
            dirty.show(&mut attr);
            Ok(Some((at, attr, dirty.waiting_bytes())))
        })?;
        Ok(put.map(|(at, attr, waiting)| {
            if waiting >= BATCH_BYTES {
                self.start(inode);
            }
            (at, attr)
        }))
    }

    /// Buffers attributes that are set on a file, if it is promised exclusively: they go with its data. Answers them as they are shown from now
    /// on. For callers whose rights are checked.
    pub async fn buffer_settings(self: &Arc<Self>, change: &SetAttr) -> Result<Option<Attr>, FsError> {
        let inode = change.inode;
        // Somebody must be there who hears of a failure.
        let Some(open) = self.opens.get(inode).filter(|open| open.local() > 0) else { return Ok(None) };
        if open.is_shared() || self.buffers.bytes_max == 0 || !self.is_exclusive(inode) {
            return Ok(None);
        }
        self.wait_for_room(inode, SETTINGS_BYTES).await?;
        let (now, now_ns) = (Instant::now(), self.region.session.clock.unix_ns());
        let life = self.region.session.life();
        Ok(self.buffers.change(inode, |dirty| {
            let mut attr = self.ours(inode, dirty, life)?;
            let base = attr;
            dirty.show(&mut attr);
            let settings = Settings::of(change, &attr, now_ns)?;
            if dirty.is_clean() {
                (dirty.base, dirty.life, dirty.locked) = (Some(base), life, false);
            }
            dirty.set(settings, now);
            attr = base;
            dirty.show(&mut attr);
            Some(attr)
        }))
    }

    /// The region's attributes of a file of which something may be buffered now. To be called, and used, in the section that changes the
    /// buffer: a recall closes the buffer before it gives the promise up.
    fn ours(&self, inode: u64, dirty: &Dirty, life: (u64, u64)) -> Option<Attr> {
        if dirty.closed > 0 || (!dirty.is_clean() && dirty.life != life) {
            return None;
        }
        let (known, _) = self.facts.inode(inode)?;
        let exclusive = known.level == Level::Exclusive && known.attr.kind() == FileKind::Regular;
        exclusive.then_some(known.attr)
    }

    async fn wait_for_room(self: &Arc<Self>, inode: u64, bytes: usize) -> Result<(), FsError> {
        let patience = self.region.patience();
        let deadline = Instant::now() + patience;
        loop {
            let room = self.buffers.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.buffers.bytes() + bytes <= self.buffers.bytes_max {
                return Ok(());
            }
            self.buffers.inodes().into_iter().for_each(|inode| self.start(inode));
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                let last = "the buffer for written data stays full".to_owned();
                return Err(FsError::Data { inode, what: "written", after: patience, last });
            }
        }
    }

    /// Begins to flush an inode, unless somebody does already.
    fn start(self: &Arc<Self>, inode: u64) {
        let idle = self.buffers.map(|map| map.get(&inode).is_some_and(|b| b.sender.try_lock().is_ok()));
        // Without a slot it is begun at the next look.
        if idle && let Ok(slot) = self.slots.clone().try_acquire_owned() {
            let writer = self.clone();
            self.region.spawn(async move {
                let _slot = slot;
                if let Err(error) = writer.flush(inode).await {
                    tracing::debug!(inode, %error, "buffered data couldn't be sent");
                }
            });
        }
    }

    /// Sends what is buffered of an inode. What can never be stored is given up, and remembered for the handles' next fsync; what can't be
    /// stored at present stays. Goes on when the caller stops waiting: a part that was sent must be known to be over before it is sent again.
    pub async fn flush(self: &Arc<Self>, inode: u64) -> Result<(), FsError> {
        self.flush_or(inode, false).await
    }

    /// [`Self::flush`] for those who come after the written data and not for its sake: data that was given up is the next fsync's to tell.
    pub async fn flush_before(self: &Arc<Self>, inode: u64) -> Result<(), FsError> {
        match self.flush(inode).await {
            Err(error) if is_for_now(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn flush_or(self: &Arc<Self>, inode: u64, give_up: bool) -> Result<(), FsError> {
        if !self.buffers.has(inode) {
            return Ok(());
        }
        let writer = self.clone();
        let flushed = tokio::spawn(trace::carried(async move { writer.flush_on(inode, give_up).await }));
        flushed.await.unwrap_or_else(|e| Err(FsError::Internal(format!("flushing inode {inode}: {e}"))))
    }

    async fn flush_on(&self, inode: u64, give_up: bool) -> Result<(), FsError> {
        let Some(buffer) = self.buffers.get(inode) else { return Ok(()) };
        let sender = buffer.sender.lock().await;
        let outcome = self.flush_as_sender(inode, &buffer, give_up).await;
        drop(sender);
        self.buffers.give_back(inode, buffer);
        outcome
    }

    /// The caller is the sender, and stays it until what can't be sent is put back or given up: whoever comes next finds no half-sent bytes.
    async fn flush_as_sender(&self, inode: u64, buffer: &Buffer, give_up: bool) -> Result<(), FsError> {
        let mut lapses = 0;
        // Why the data couldn't be stored over which the attributes were set that are sent now.
        let mut lost = None;
        // The fence stays where it is: moved with each try, it would run ahead of the numbers for ever. Each of them ends in its time.
        while self.region.oldest_unanswered() <= buffer.dirty(|dirty| dirty.fence) {
            tokio::time::sleep(FENCE_LOOK).await;
        }
        loop {
            if !self.buffers.change(inode, Dirty::take) {
                return lost.map_or(Ok(()), Err);
            }
            let Err(error) = self.send_taken(inode, buffer).await else {
                return lost.map_or(Ok(()), Err);
            };
            if error == FsError::Lapsed && lapses < LAPSES_MAX {
                self.buffers.change(inode, Dirty::put_back);
                lapses += 1;
                tokio::time::sleep(LAPSE_PAUSE).await;
                continue;
            }
            if lost.is_none() && is_about_data(&error) && self.lose_bytes(inode, &error) {
                lost = Some(error);
                continue;
            }
            if !is_for_now(&error) || give_up {
                self.lose(inode, &error);
            } else {
                // A request that was given up may be on its way still, until the region is told that all numbers below the next are over.
                let last = self.region.last_number();
                self.buffers.change(inode, |dirty| {
                    dirty.put_back();
                    dirty.fence = last;
                });
            }
            return Err(error);
        }
    }

    /// Sends what was taken, batch by batch; the next one's data travels while the one before is committed.
    async fn send_taken(&self, inode: u64, buffer: &Buffer) -> Result<(), FsError> {
        let end_of = |batch: &[Segment]| batch.last().map_or(0, |s| s.at + s.data.len() as u64);
        let next = |from: u64| buffer.dirty(|dirty| dirty.batch(from));
        let mut batch = next(0);
        if batch.is_empty() {
            // Attributes alone.
            self.still_ours(inode, buffer).await?;
            let attr = self.commit(inode, &batch, Vec::new(), buffer, true).await?;
            self.buffers.change(inode, |dirty| dirty.sent(&batch, true, attr));
            return Ok(());
        }
        let size = buffer.dirty(|dirty| dirty.base.map_or(0, |attr| attr.size));
        if end_of(&batch).max(size) <= INLINE_FILE_BYTES_MAX && next(end_of(&batch)).is_empty() {
            self.still_ours(inode, buffer).await?;
            let attr = self.send_inline(inode, &batch, buffer).await?;
            self.buffers.change(inode, |dirty| dirty.sent(&batch, true, attr));
            return Ok(());
        }
        let mut pieces = self.append(inode, &batch).await?;
        while !batch.is_empty() {
            self.still_ours(inode, buffer).await?;
            let following = next(end_of(&batch));
            let last = following.is_empty();
            let (committed, appended) = futures::join!(
                self.commit(inode, &batch, pieces, buffer, last),
                self.append(inode, &following)
            );
            let attr = committed?;
            self.buffers.change(inode, |dirty| dirty.sent(&batch, last, attr));
            (batch, pieces) = (following, appended?);
        }
        Ok(())
    }

    async fn append(&self, inode: u64, batch: &[Segment]) -> Result<Vec<WritePiece>, FsError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + self.region.patience();
        self.chunk_pieces(&daemon(), inode, batch, deadline).await.map_err(|e| e.on_handle(inode))
    }

    /// Names appended bytes in the file. Where the region has sealed their chunk without them, they are appended anew.
    async fn commit(
        &self,
        inode: u64,
        batch: &[Segment],
        pieces: Vec<WritePiece>,
        buffer: &Buffer,
        last: bool,
    ) -> Result<Option<Attr>, FsError> {
        let write = as_buffered(inode, buffer, last);
        let chunks: Vec<u64> = pieces.iter().filter_map(chunk_of).collect();
        let op = Op::Write(Write { pieces, ..write.clone() });
        let life = buffer.dirty(|dirty| dirty.life);
        let outcome = match self.region.change_in_life(&daemon(), op, life).await? {
            Reply::Written(written) => Ok((0, written.attr)),
            Reply::Errno(errno) if errno == libc::ESTALE as u32 => {
                self.appenders.disown(inode, &chunks).await;
                self.send_once(&daemon(), batch, false, write, Some(life)).await
            }
            other => Err(unexpected("write", &other)),
        };
        outcome.map(|(_, attr)| attr).map_err(|e| e.on_handle(inode))
    }

    /// Gives up what data is buffered, if there are attributes set over it that may be stored without. Answers whether there are.
    fn lose_bytes(&self, inode: u64, error: &FsError) -> bool {
        // Noted first, as in `lose`.
        let open = self.opens.get(inode);
        let kept = self.buffers.change(inode, |dirty| {
            let bytes = dirty.discard_bytes();
            if bytes > 0
                && let Some(open) = &open
            {
                open.failed(error.errno());
                open.share_for(THROUGH_FOR);
            }
            bytes
        });
        if kept > 0 {
            tracing::error!(inode, bytes = kept, %error, "written data couldn't be stored and is given up; its file keeps the owner, mode and times that were set");
        }
        kept > 0
    }

    /// Gives up what is buffered; each open handle's next fsync says so. Noted first: an fsync that finds nothing left must find the note.
    fn lose(&self, inode: u64, error: &FsError) {
        let open = self.opens.get(inode);
        if let Some(open) = &open {
            open.failed(error.errno());
            open.share_for(THROUGH_FOR);
        }
        let bytes = self.buffers.change(inode, Dirty::discard);
        // Nobody will read it any more.
        if open.is_none() && matches!(error.errno(), libc::ENOENT | libc::ESTALE) {
            return;
        }
        tracing::error!(inode, bytes, %error, "written data couldn't be stored and is given up; the next fsync of each open handle reports it");
    }

    /// Whether the buffered bytes may still be sent. After a lapse of the lease only if nobody has changed the file since.
    async fn still_ours(&self, inode: u64, buffer: &Buffer) -> Result<(), FsError> {
        let life = self.region.session.life();
        let (written_under, base, locked) = buffer.dirty(|dirty| (dirty.life, dirty.base, dirty.locked));
        if written_under == life {
            return Ok(());
        }
        // Others may have the lock by now, and have read what these bytes would change.
        if locked {
            return Err(FsError::Overtaken(inode));
        }
        let now = match self.region.read(&daemon(), Op::Acquire(Acquire { inode })).await? {
            Reply::Entry(entry) => entry.attr,
            other => return Err(unexpected("acquire", &other).on_handle(inode)),
        };
        let same = matches!((base, now), (Some(base), Some(now)) if base.size == now.size && base.ctime_ns == now.ctime_ns);
        if !same {
            return Err(FsError::Overtaken(inode));
        }
        // Under a promise, of whatever level, a change by others waits for a recall, and that for whoever sends.
        if self.region.session.life() != life || self.facts.inode(inode).is_none() {
            return Err(FsError::Lapsed);
        }
        buffer.dirty(|dirty| dirty.life = life);
        Ok(())
    }

    async fn send_inline(
        &self,
        inode: u64,
        batch: &[Segment],
        buffer: &Buffer,
    ) -> Result<Option<Attr>, FsError> {
        let write = as_buffered(inode, buffer, true);
        let life = Some(buffer.dirty(|dirty| dirty.life));
        let mut outcome = self.send_once(&daemon(), batch, true, write.clone(), life).await;
        if is_too_large_for_inline(&outcome) {
            outcome = self.send_once(&daemon(), batch, false, write, life).await;
        }
        outcome.map(|(_, attr)| attr).map_err(|e| e.on_handle(inode))
    }

    /// Writes through. Answers where the data begins and the attributes afterwards.
    pub async fn through(
        &self,
        caller: &Caller,
        inode: u64,
        place: Place,
        size: u64,
        data: Bytes,
        how: How,
    ) -> Result<(u64, Option<Attr>), FsError> {
        let How { kill_suidgid, life } = how;
        let append = place == Place::End;
        let at = match place {
            Place::At(at) => at,
            Place::End => size,
        };
        let end = at
            .checked_add(data.len() as u64)
            .filter(|&end| end <= FILE_SIZE_MAX)
            .ok_or(FsError::FileTooLarge)?;
        let inline = end.max(size) <= INLINE_FILE_BYTES_MAX;
        let write = Write { inode, append, kill_suidgid, ..Write::default() };
        let batch = [Segment { at, data }];
        let mut outcome = self.send_once(caller, &batch, inline, write.clone(), life).await;
        if inline && is_too_large_for_inline(&outcome) {
            // The size was a hint, and somebody else has made the file larger than inline data may be.
            outcome = self.send_once(caller, &batch, false, write, life).await;
        }
        outcome.map_err(|e| e.on_handle(inode))
    }

    /// Sends a batch, in a certain life of the session if it was buffered.
    async fn send_once(
        &self,
        caller: &Caller,
        batch: &[Segment],
        inline: bool,
        write: Write,
        life: Option<(u64, u64)>,
    ) -> Result<(u64, Option<Attr>), FsError> {
        let deadline = Instant::now() + self.region.patience();
        let inode = write.inode;
        loop {
            let pieces = if inline {
                batch.iter().flat_map(|segment| inline_pieces(segment.at, &segment.data)).collect()
            } else {
                self.chunk_pieces(caller, inode, batch, deadline).await?
            };
            let chunks: Vec<u64> = pieces.iter().filter_map(chunk_of).collect();
            let op = Op::Write(Write { pieces, ..write.clone() });
            let reply = match life {
                Some(life) => self.region.change_in_life(caller, op, life).await?,
                None => self.region.change(caller, op).await?,
            };
            match reply {
                Reply::Written(written) => {
                    let at = if write.append { written.offset } else { batch.first().map_or(0, |s| s.at) };
                    return Ok((at, written.attr));
                }
                // The session's lease lapsed between append and commit, and the region has sealed the chunk without these bytes. That is
                // this change's outcome for good, so the bytes may be appended and committed again. A file that is gone answers the same,
                // and says so again when the fresh chunk is asked for.
                Reply::Errno(errno)
                    if errno == libc::ESTALE as u32 && !chunks.is_empty() && Instant::now() < deadline =>
                {
                    tracing::info!(
                        inode,
                        ?chunks,
                        "a chunk is no longer this session's; its bytes go to a fresh one"
                    );
                    self.region.counters.update(|c| c.chunks_replaced += 1);
                    self.appenders.disown(inode, &chunks).await;
                }
                other => return Err(unexpected("write", &other)),
            }
        }
    }

    /// Appends the bytes of all segments, one behind the other, and says where each lies.
    async fn chunk_pieces(
        &self,
        caller: &Caller,
        inode: u64,
        batch: &[Segment],
        deadline: Instant,
    ) -> Result<Vec<WritePiece>, FsError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let data = match batch {
            [one] => one.data.clone(),
            many => many.iter().flat_map(|segment| segment.data.iter().copied()).collect(),
        };
        let runs = self.appenders.append(caller, inode, data, deadline).await?;
        Ok(lay_out(batch, &runs))
    }

    /// Flushes everything, also what is being sent already. The first failure, if there was one.
    pub async fn flush_all(self: &Arc<Self>) -> Result<(), FsError> {
        let flushes = self.buffers.inodes().into_iter().map(|inode| self.flush(inode));
        let flushed: Vec<Result<(), FsError>> =
            stream::iter(flushes).buffer_unordered(FLUSHES).collect().await;
        flushed.into_iter().collect()
    }

    /// Begins to flush what is older than `age`. Waits for none of it: one that can't be sent mustn't keep the others.
    fn start_older(self: &Arc<Self>, age: Duration) {
        let now = Instant::now();
        let due = self.buffers.map(|map| {
            let is_due = |buffer: &Buffer| {
                buffer.dirty(|d| d.since.is_some_and(|since| now.saturating_duration_since(since) >= age))
            };
            map.iter().filter(|(_, buffer)| is_due(buffer)).map(|(&inode, _)| inode).collect::<Vec<u64>>()
        });
        due.into_iter().for_each(|inode| self.start(inode));
    }

    /// Flushes what has waited long enough, as long as the mount lives.
    pub async fn keep(writer: Weak<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            let Some(writer) = writer.upgrade() else { return };
            writer.start_older(AGE_MAX);
        }
    }

    /// A recall of the inode: nothing is buffered any more until [`Self::reopen`], and what was is sent. What the region doesn't take is
    /// given up, for whoever waits for the recall is about to see the file without it.
    pub async fn close_for_recall(self: &Arc<Self>, inode: u64) {
        self.buffers.change(inode, |dirty| dirty.closed += 1);
        if let Err(error) = self.flush_or(inode, true).await {
            tracing::debug!(inode, %error, "buffered data was given up for a recall");
        }
    }

    /// The recall has been acted on.
    pub fn reopen(&self, inode: u64) {
        self.buffers.change(inode, |dirty| dirty.closed = dirty.closed.saturating_sub(1));
    }

    /// Everything promised was taken back: what is buffered leaves soon.
    pub fn start_all(self: &Arc<Self>) {
        self.start_older(Duration::ZERO);
    }

    /// The bytes of [offset, offset + length), cut at the file's end, if all of them are buffered.
    pub fn read(&self, inode: u64, offset: u64, length: u64) -> Option<Bytes> {
        self.buffers.map(|map| {
            let buffer = map.get(&inode)?;
            let (known, _) = self.facts.inode(inode)?;
            buffer.dirty(|dirty| {
                let mut attr = known.attr;
                dirty.show(&mut attr);
                let end = offset.saturating_add(length).min(attr.size);
                if end <= offset { None } else { dirty.read(offset, end) }
            })
        })
    }
}

/// A write of what was taken from the buffer, without its pieces yet. With the `last` of them go the attributes that were set over them.
fn as_buffered(inode: u64, buffer: &Buffer, last: bool) -> Write {
    buffer.dirty(|dirty| Write {
        inode,
        written_ns: Some(dirty.taken_written_ns()),
        set: if last { dirty.taken_set().to_wire(inode) } else { None },
        ..Write::default()
    })
}

/// Whether an error may be about the data alone, as of a full disk or a quota, and not about the file or its attributes.
fn is_about_data(error: &FsError) -> bool {
    matches!(error, FsError::Answered(libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::EIO))
}

/// Whether what couldn't be sent may be sent later.
fn is_for_now(error: &FsError) -> bool {
    matches!(error, FsError::Unanswered { .. } | FsError::Data { .. } | FsError::Lapsed)
}

fn is_too_large_for_inline(outcome: &Result<(u64, Option<Attr>), FsError>) -> bool {
    matches!(
        outcome,
        Err(FsError::Answered(libc::EINVAL | libc::EFBIG | libc::EMSGSIZE) | FsError::Invalid(_))
    )
}

fn chunk_of(piece: &WritePiece) -> Option<u64> {
    match &piece.data {
        Some(write_piece::Data::Run(run)) => Some(run.chunk),
        Some(write_piece::Data::Inline(_)) | None => None,
    }
}

/// Which part of the runs, which hold the segments' bytes one behind the other, is each segment's.
fn lay_out(batch: &[Segment], runs: &[ChunkRun]) -> Vec<WritePiece> {
    let mut pieces = Vec::with_capacity(batch.len() + runs.len());
    let mut runs = runs.iter();
    let mut run = runs.next().copied();
    for segment in batch {
        let (mut at, mut left) = (segment.at, segment.data.len() as u64);
        while left > 0 {
            let Some(current) = &mut run else { return pieces };
            let length = left.min(current.length);
            let part = ChunkRun { chunk: current.chunk, chunk_offset: current.chunk_offset, length };
            pieces.push(WritePiece { offset: at, data: Some(write_piece::Data::Run(part)) });
            current.chunk_offset += length;
            current.length -= length;
            if current.length == 0 {
                run = runs.next().copied();
            }
            at += length;
            left -= length;
        }
    }
    pieces
}

/// Cuts data at multiples of the largest inline extent, so that rewritten parts of a file meet the extents that they replace.
fn inline_pieces(offset: u64, data: &Bytes) -> Vec<WritePiece> {
    let mut pieces = Vec::new();
    let mut rest = data.clone();
    let mut at = offset;
    while !rest.is_empty() {
        let room = INLINE_EXTENT_BYTES_MAX - at % INLINE_EXTENT_BYTES_MAX;
        let piece = rest.split_to(rest.len().min(room as usize));
        let length = piece.len() as u64;
        pieces.push(WritePiece { offset: at, data: Some(write_piece::Data::Inline(piece)) });
        at += length;
    }
    pieces
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// With a second buffer beside it, a sender would take bytes from one and call them sent in the other.
    #[test]
    fn an_inode_has_one_buffer_as_long_as_somebody_sends_from_it() {
        let buffers = Buffers::new(100);
        let put = |dirty: &mut Dirty| dirty.put(0, Bytes::from_static(b"x"), Instant::now(), 1);
        buffers.change(1, put);
        let (first, second) = (buffers.get(1).unwrap(), buffers.get(1).unwrap());
        buffers.change(1, Dirty::discard);
        buffers.change(1, put);
        assert!(Arc::ptr_eq(&first, &buffers.get(1).unwrap()));
        buffers.change(1, Dirty::discard);
        buffers.give_back(1, first);
        assert!(buffers.has(1));
        buffers.give_back(1, second);
        assert!(!buffers.has(1));
        assert_eq!(buffers.bytes(), 0);
    }

    #[test]
    fn inline_data_is_cut_at_fixed_borders() {
        let data = Bytes::from(vec![1; 40_000]);
        let pieces = inline_pieces(10_000, &data);
        let cuts: Vec<(u64, usize)> = pieces
            .iter()
            .map(|p| match &p.data {
                Some(write_piece::Data::Inline(bytes)) => (p.offset, bytes.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(cuts, [(10_000, 6_384), (16_384, 16_384), (32_768, 16_384), (49_152, 848)]);
    }

    #[test]
    fn segments_are_found_in_the_runs_that_hold_them() {
        let segment = |at, length: usize| Segment { at, data: Bytes::from(vec![0; length]) };
        let run = |chunk, chunk_offset, length| ChunkRun { chunk, chunk_offset, length };
        let pieces = lay_out(&[segment(0, 10), segment(100, 10)], &[run(1, 50, 15), run(2, 0, 5)]);
        let laid: Vec<(u64, ChunkRun)> = pieces
            .into_iter()
            .map(|p| match p.data {
                Some(write_piece::Data::Run(run)) => (p.offset, run),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(laid, [(0, run(1, 50, 10)), (100, run(1, 60, 5)), (105, run(2, 0, 5))]);
    }
}
