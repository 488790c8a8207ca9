//! Flushing: what is buffered leaves in its order, batch by batch; what can't be stored is put back, or given up and told.
//!
//! ```text
//!   sent -> stored
//!    | no answer, no room, EIO -> kept, sent again; close, fsync and the next write say why it isn't stored yet
//!    |                              \-> a recall, or another host's change after a lapse -> given up
//!    +-> anything else -> given up: the next fsync of each handle says so, or that of whoever opens the file next
//! ```

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};
use mooseng_transport::trace;
use mooseng_wire::fs::Acquire;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::buffers::Buffer;
use crate::dirty::{Dirty, Refused, Segment};
use crate::error::FsError;
use crate::fs::daemon;
use crate::owners::Tenure;
use crate::read::unexpected;
use crate::waits::{self, What};
use crate::writeback::WriteBack;

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
/// After written data was given up writes go through for so long, so that whoever writes hears of it.
const THROUGH_FOR: Duration = Duration::from_secs(5);
/// What the region refused is sent again after so long, and after twice as long each time.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest of these pauses: each try may append bytes to chunks that stay there until they are collected.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// So long close(2) waits for a further try to store what was refused.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

impl WriteBack {
    /// Begins to flush an inode, unless somebody does already, or it is too early to try again.
    pub fn start(self: &Arc<Self>, inode: u64) {
        // Without a slot it is begun at the next look.
        let Some(slot) = self.slot_for(inode) else { return };
        let writer = self.clone();
        self.region.spawn(async move {
            let _slot = slot;
            if let Err(error) = writer.flush_along(inode).await {
                tracing::debug!(inode, %error, "buffered data couldn't be sent");
            }
        });
    }

    /// [`Self::start`] for an fsync that is about to be called: the request leaves on this thread, as fsync's own would, and waits for nothing to go along with.
    pub fn start_ahead(self: &Arc<Self>, inode: u64) {
        let Some(slot) = self.slot_for(inode) else { return };
        let (writer, hurry) = (self.clone(), self.region.session.journal.hurry());
        let mut flushing = Box::pin(async move {
            let _held = (slot, hurry);
            if let Err(error) = writer.flush_on(inode, false).await {
                tracing::debug!(inode, %error, "data couldn't be sent before fsync asks for it");
            }
        });
        if (&mut flushing).now_or_never().is_none() {
            self.region.spawn(flushing);
        }
    }

    /// The right to flush an inode for which nobody waits; none where somebody does already, it is too early to try again, or enough is under way.
    fn slot_for(&self, inode: u64) -> Option<OwnedSemaphorePermit> {
        let now = Instant::now();
        let is_idle = |buffer: &Arc<Buffer>| {
            buffer.sender.try_lock().is_ok() && !buffer.dirty(|dirty| dirty.pauses(now))
        };
        let idle = self.buffers.map(|map| map.get(&inode).is_some_and(is_idle));
        idle.then(|| self.slots.clone().try_acquire_owned().ok()).flatten()
    }

    /// Sends what is buffered of an inode. What can never be stored is given up, and remembered for the handles' next fsync; what can't be
    /// stored at present stays, be it that nobody answers or that there is no room. Goes on when the caller stops waiting: a part that was sent must be known to be over before it is sent again.
    pub async fn flush(self: &Arc<Self>, inode: u64) -> Result<(), FsError> {
        if !self.buffers.has(inode) {
            return Ok(());
        }
        let _hurry = self.region.session.journal.hurry();
        self.flush_along(inode).await
    }

    /// [`Self::flush`] where nobody waits for it: data that joins what was made alone goes when that is told.
    pub async fn flush_along(self: &Arc<Self>, inode: u64) -> Result<(), FsError> {
        self.flush_or(inode, false).await
    }

    /// [`Self::flush`] for those who come after the written data and not for its sake: data that was given up is the next fsync's to tell. Behind data that
    /// can't be stored at present they can't come.
    pub async fn flush_before(self: &Arc<Self>, inode: u64) -> Result<(), FsError> {
        match self.flush(inode).await {
            Err(error) if is_for_now(&error) || self.is_kept(inode) => Err(error),
            _ => Ok(()),
        }
    }

    /// [`Self::flush_before`] for those who only look: what the region has no room for is shown over what they get, and isn't sent sooner for their sake.
    pub async fn flush_beneath(self: &Arc<Self>, inode: u64) -> Result<(), FsError> {
        let patience = self.region.patience();
        let deadline = Instant::now() + patience;
        loop {
            if self.rests(inode) {
                return Ok(());
            }
            match self.flush(inode).await {
                Err(error) if is_for_now(&error) => return Err(error),
                // Of an earlier life, and held as long as a change of the size is under way: before that is over nobody knows what the file is.
                Err(_) if self.buffers.is_foreign(inode, self.region.session.life()) => {}
                _ => return Ok(()),
            }
            if Instant::now() >= deadline {
                let last = "a change of the file's size isn't over";
                return Err(self.region.unanswered_error("flush", patience, last));
            }
            waits::on(|| What::Earlier, tokio::time::sleep(FENCE_LOOK)).await;
        }
    }

    /// Whether the region has refused what is buffered of an inode, in this life of the session, and it is too early to send it again.
    fn rests(&self, inode: u64) -> bool {
        let (now, life) = (Instant::now(), self.region.session.life());
        let rests = |buffer: &Arc<Buffer>| {
            buffer.dirty(|dirty| dirty.is_kept() && dirty.pauses(now) && !dirty.is_foreign_to(life))
        };
        self.buffers.map(|map| map.get(&inode).is_some_and(rests))
    }

    /// Others may need the file, who don't have the region take it back first: what it has no room for is tried once more, and then given up.
    pub async fn give_up_kept(self: &Arc<Self>, inode: u64) {
        if self.is_kept(inode)
            && let Err(error) = self.flush_or(inode, true).await
        {
            tracing::debug!(inode, %error, "buffered data was given up");
        }
    }

    /// Why what was written to a file isn't stored yet although it was tried, if that is still so; for close(2), which doesn't wait long.
    pub async fn failing(self: &Arc<Self>, inode: u64) -> Option<Refused> {
        let refused = self.buffers.refused(inode)?;
        if refused.answered {
            // There may be room by now. The flush goes on if it takes longer.
            let _ = tokio::time::timeout(CLOSE_WAIT, self.flush(inode)).await;
        }
        self.buffers.refused(inode)
    }

    async fn flush_or(self: &Arc<Self>, inode: u64, give_up: bool) -> Result<(), FsError> {
        if !self.buffers.has(inode) {
            return Ok(());
        }
        let writer = self.clone();
        let mut flushing = Box::pin(trace::carried(async move { writer.flush_on(inode, give_up).await }));
        // As far as it comes without waiting: its request is on its way before another thread wakes.
        if let Some(flushed) = (&mut flushing).now_or_never() {
            return flushed;
        }
        let flushed = tokio::spawn(flushing);
        flushed.await.unwrap_or_else(|e| Err(FsError::Internal(format!("flushing inode {inode}: {e}"))))
    }

    async fn flush_on(&self, inode: u64, give_up: bool) -> Result<(), FsError> {
        let Some(buffer) = self.buffers.get(inode) else { return Ok(()) };
        let sender = waits::on(|| What::Sender, buffer.sender.lock()).await;
        let mut gone = false;
        let outcome = self.flush_as_sender(inode, &buffer, give_up, &mut gone).await;
        drop(sender);
        self.buffers.give_back(inode, buffer);
        // The kernel has the bytes in its pages, and the region's time of the last write never changes for what it didn't get: nothing else has them dropped.
        if gone {
            self.recalls.forget(inode).await;
        }
        outcome
    }

    /// The caller is the sender, and stays it until what can't be sent is put back or given up: whoever comes next finds no half-sent bytes. Something of it
    /// is `gone` if it was given up.
    async fn flush_as_sender(
        &self,
        inode: u64,
        buffer: &Buffer,
        give_up: bool,
        gone: &mut bool,
    ) -> Result<(), FsError> {
        if give_up {
            *gone |= self.buffers.change(inode, Dirty::give_up_for_cut) > 0;
        } else if let Some(errno) = buffer.dirty(|dirty| dirty.held_for_cut()) {
            return Err(FsError::Answered(errno));
        }
        let mut lapses = 0;
        // Why the data couldn't be stored over which the attributes were set that are sent now.
        let mut lost = None;
        // The fence stays where it is: moved with each try, it would run ahead of the numbers for ever. Each of them ends in its time.
        let over = async {
            while self.region.oldest_unanswered() <= buffer.dirty(|dirty| dirty.fence) {
                tokio::time::sleep(FENCE_LOOK).await;
            }
        };
        waits::on(|| What::Earlier, over).await;
        loop {
            if !self.buffers.change(inode, Dirty::take) {
                return lost.map_or(Ok(()), Err);
            }
            let Err(error) = self.send_taken(inode, buffer).await else {
                self.stored(inode).await;
                return lost.map_or(Ok(()), Err);
            };
            if error == FsError::Lapsed && lapses < LAPSES_MAX {
                self.buffers.change(inode, Dirty::put_back);
                lapses += 1;
                tokio::time::sleep(LAPSE_PAUSE).await;
                continue;
            }
            let may_stay = |error: &FsError| {
                is_for_now(error) || (is_refusal(error) && buffer.dirty(|dirty| dirty.data_bytes() > 0))
            };
            // What has no room stays, as long as nobody else has changed the file.
            let error = if !give_up && may_stay(&error) && is_refusal(&error) {
                self.still_ours(inode, buffer).await.err().unwrap_or(error)
            } else {
                error
            };
            if !give_up && may_stay(&error) {
                self.keep_failed(inode, &error).await;
                return Err(error);
            }
            if lost.is_none() && is_about_data(&error) && self.lose_bytes(inode, &error) {
                (lost, *gone) = (Some(error), true);
                continue;
            }
            self.lose(inode, &error);
            *gone = true;
            return Err(error);
        }
    }

    /// What was taken is at the region.
    async fn stored(&self, inode: u64) {
        let refused = self.buffers.change(inode, |dirty| dirty.refused.take());
        if !refused.is_some_and(|refused| refused.answered) {
            return;
        }
        tracing::info!(inode, "written data that couldn't be stored before is stored");
        // The chunk that it went to is sealed by the close of the file, which may be over.
        if self.opens.get(inode).is_none_or(|open| open.local() == 0) {
            self.appenders.close(&daemon(), inode).await;
        }
    }

    /// What was taken and couldn't be stored waits to be sent again.
    async fn keep_failed(&self, inode: u64, error: &FsError) {
        let answered = is_refusal(error);
        let (last, now) = (self.region.last_number(), Instant::now());
        let number = self.refusals.fetch_add(1, Ordering::Relaxed) + 1;
        let (bytes, before) = self.buffers.change(inode, |dirty| {
            dirty.put_back();
            let before = dirty.refused.take();
            // A request that was given up may be on its way still, until the region is told that all numbers below the next are over.
            if !answered {
                dirty.fence = last;
            }
            let longer = |before: Refused| (before.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            let pause = if answered { before.map_or(PAUSE_MIN, longer) } else { Duration::ZERO };
            let number = before.map_or(number, |before| before.number);
            // After a lapse it is soon tried again, and may go well: nothing has failed.
            if *error != FsError::Lapsed {
                let (errno, until) = (error.errno(), now + pause);
                dirty.refused = Some(Refused { number, errno, answered, until, pause });
            }
            (dirty.bytes(), before)
        });
        if !answered {
            return;
        }
        if !before.is_some_and(|before| before.answered) {
            tracing::warn!(
                inode,
                bytes,
                %error,
                "written data couldn't be stored, and is kept and sent again as long as nobody else needs the file; close, fsync and write report it until it is stored"
            );
        }
        // What was appended and isn't named is collected with its chunk, where nothing else is in it.
        if self.appenders.has(inode) {
            self.appenders.close(&daemon(), inode).await;
        }
    }

    /// Sends what was taken, batch by batch; the next one's data travels while the one before is committed.
    async fn send_taken(&self, inode: u64, buffer: &Buffer) -> Result<(), FsError> {
        let next = |from: u64| buffer.dirty(|dirty| dirty.batch(from));
        let batch = next(0);
        if batch.is_empty() {
            // Attributes alone.
            self.still_ours(inode, buffer).await?;
            let attr = self.commit(inode, &batch, Vec::new(), buffer, true).await?;
            self.buffers.change(inode, |dirty| dirty.sent(&batch, true, attr));
            return Ok(());
        }
        let size = buffer.dirty(|dirty| dirty.base.map_or(0, |attr| attr.size));
        let inline = self.goes_inline(inode, &batch, size) && next(end_of(&batch)).is_empty();
        let sent = if inline {
            self.send_taken_inline(inode, &batch, buffer).await
        } else {
            self.send_taken_to_chunks(inode, batch, buffer).await
        };
        self.full.sent(inline, sent.as_ref().err(), Instant::now());
        sent
    }

    async fn send_taken_inline(&self, inode: u64, batch: &[Segment], buffer: &Buffer) -> Result<(), FsError> {
        self.still_ours(inode, buffer).await?;
        let attr = self.send_inline(inode, batch, buffer).await?;
        self.buffers.change(inode, |dirty| dirty.sent(batch, true, attr));
        Ok(())
    }

    async fn send_taken_to_chunks(
        &self,
        inode: u64,
        mut batch: Vec<Segment>,
        buffer: &Buffer,
    ) -> Result<(), FsError> {
        let mut pieces = self.append(inode, &batch).await?;
        while !batch.is_empty() {
            self.still_ours(inode, buffer).await?;
            let following = buffer.dirty(|dirty| dirty.batch(end_of(&batch)));
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

    /// Gives up what data is buffered, if there are attributes set over it that may be stored without. Answers whether there are.
    fn lose_bytes(&self, inode: u64, error: &FsError) -> bool {
        let kept = self.buffers.change(inode, |dirty| {
            let bytes = dirty.discard_bytes();
            // As in `lose`, before anybody finds that nothing is left.
            if bytes > 0 {
                self.note_loss(inode, error);
            }
            bytes
        });
        if kept > 0 {
            tracing::error!(inode, bytes = kept, %error, "written data couldn't be stored and is given up; its file keeps the owner, mode and times that were set");
        }
        kept > 0
    }

    /// Gives up what is buffered; each open handle's next fsync says so, or that of whoever opens the file next. Noted first: an fsync that finds nothing left
    /// must find the note.
    fn lose(&self, inode: u64, error: &FsError) {
        // Nobody will read it any more.
        let is_gone = matches!(error.errno(), libc::ENOENT | libc::ESTALE) && self.opens.get(inode).is_none();
        if !is_gone {
            self.note_loss(inode, error);
        }
        let bytes = self.buffers.change(inode, Dirty::discard);
        if is_gone {
            return;
        }
        tracing::error!(inode, bytes, %error, "written data couldn't be stored and is given up; the next fsync of each open handle reports it, or else of the next one that is opened");
    }

    /// Each open handle's next fsync is to say so, or that of whoever opens the file next.
    pub fn note_loss(&self, inode: u64, error: &FsError) {
        self.opens.failed(inode, error.errno());
        if let Some(open) = self.opens.get(inode) {
            open.share_for(THROUGH_FOR);
        }
    }

    /// Whether the buffered bytes may still be sent. After a lapse of the lease only if nobody has changed the file since.
    async fn still_ours(&self, inode: u64, buffer: &Buffer) -> Result<(), FsError> {
        let life = self.region.session.life();
        let (written_under, base, locked) = buffer.dirty(|dirty| (dirty.life, dirty.base, dirty.locked));
        let is_kept = |home| self.region.session.keeps(Tenure { life: written_under, home });
        // Others may have the lock by now, and have read what these bytes would change.
        if locked.is_some_and(|home| !is_kept(home)) {
            return Err(FsError::Overtaken(inode));
        }
        if written_under == life {
            return Ok(());
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
        let hurry = self.region.session.journal.hurry();
        let flushed = self.flush_or(inode, true).await;
        drop(hurry);
        if let Err(error) = flushed {
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
}

fn end_of(batch: &[Segment]) -> u64 {
    batch.last().map_or(0, |segment| segment.at + segment.data.len() as u64)
}

/// Whether the region has refused data for a reason that may pass: no room, or an error of its own.
fn is_refusal(error: &FsError) -> bool {
    matches!(error, FsError::Answered(libc::ENOSPC | libc::EDQUOT | libc::EIO))
}

/// Whether an error may be about the data alone, as of a full disk or a quota, and not about the file or its attributes.
fn is_about_data(error: &FsError) -> bool {
    matches!(error, FsError::Answered(libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::EIO))
}

/// Whether what couldn't be sent may be sent later.
fn is_for_now(error: &FsError) -> bool {
    matches!(error, FsError::Unanswered { .. } | FsError::Data { .. } | FsError::Lapsed)
}
