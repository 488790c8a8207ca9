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
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_wire::FILE_SIZE_MAX;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Acquire, Attr, Caller, FileKind, SetAttr};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::append::Appenders;
use crate::buffers::Buffers;
use crate::dirty::{BATCH_BYTES, Dirty, SETTINGS_BYTES};
use crate::error::FsError;
use crate::facts::{Facts, Level};
use crate::opens::Opens;
use crate::read::unexpected;
use crate::region::Region;
use crate::settings::Settings;

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
            if how.kill_suidgid && (!attr.no_xattrs || attr.mode & 0o6000 != 0) {
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
