//! Sending written data: to chunks, and then to the region, which names them in the file.

use std::time::Duration;

use bytes::Bytes;
use mooseng_wire::fs::fs_reply::Reply;
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{Attr, Caller, FsRequest, Write, WritePiece};
use mooseng_wire::{FILE_SIZE_MAX, INLINE_FILE_BYTES_MAX};
use tokio::time::Instant;

use crate::buffers::Buffer;
use crate::dirty::Segment;
use crate::error::FsError;
use crate::fs::daemon;
use crate::journal::Change;
use crate::owners::{Homes, Tenure, Within};
use crate::packets::Packets;
use crate::pieces::{chunk_of, inline_pieces, lay_out};
use crate::read::unexpected;
use crate::writeback::{How, Place, WriteBack};

/// Bytes that go inline in the change, wherever in a file: one durable round instead of two. Where it stops paying, up to 64 KiB,
/// isn't measured yet (docs/decisions/0017-small-writes.md).
pub(crate) const SMALL_BYTES_MAX: usize = 16 << 10;
/// Separate places of them.
const SMALL_SEGMENTS_MAX: usize = 16;
/// How long small data of a file goes to chunks after the region has taken no more of it inline.
const CHUNKS_FOR: Duration = Duration::from_millis(500);

impl WriteBack {
    /// Whether these are all in the change itself: of small files, and what is small of large ones. The size is a hint.
    pub fn goes_inline(&self, inode: u64, batch: &[Segment], size: u64) -> bool {
        let end = batch.last().map_or(0, |segment| segment.at + segment.data.len() as u64);
        let bytes: usize = batch.iter().map(|segment| segment.data.len()).sum();
        let small = bytes <= SMALL_BYTES_MAX && batch.len() <= SMALL_SEGMENTS_MAX;
        end.max(size) <= INLINE_FILE_BYTES_MAX
            || (small && !self.opens.get(inode).is_some_and(|open| open.goes_to_chunks()))
    }

    /// The region doesn't take this inline: it has enough of the file, or somebody else has made the file larger.
    fn not_inline(&self, inode: u64, outcome: &Result<(u64, Option<Attr>), FsError>) -> bool {
        if !is_too_large_for_inline(outcome) {
            return false;
        }
        tracing::debug!(inode, "the region takes no more of this file inline; for a while it goes to chunks");
        if let Some(open) = self.opens.get(inode) {
            open.go_to_chunks_for(CHUNKS_FOR);
        }
        true
    }

    /// Appends a batch of what is buffered to chunks.
    pub async fn append(&self, inode: u64, batch: &[Segment]) -> Result<Vec<WritePiece>, FsError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + self.region.patience();
        self.chunk_pieces(&daemon(), inode, batch, deadline).await.map_err(|e| e.on_handle(inode))
    }

    /// Names appended bytes in the file. Where the region has sealed their chunk without them, they are appended anew.
    pub async fn commit(
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
        let life = within(buffer);
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

    /// Sends a batch of what is buffered within the change.
    pub async fn send_inline(
        &self,
        inode: u64,
        batch: &[Segment],
        buffer: &Buffer,
    ) -> Result<Option<Attr>, FsError> {
        let write = as_buffered(inode, buffer, true);
        let life = Some(within(buffer));
        let mut outcome = self.send_once(&daemon(), batch, true, write.clone(), life).await;
        if self.not_inline(inode, &outcome) {
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
        let How { kill_suidgid, tenure } = how;
        let life = tenure.map(Tenure::under_locks);
        let append = place == Place::End;
        let at = match place {
            Place::At(at) => at,
            Place::End => size,
        };
        at.checked_add(data.len() as u64).filter(|&end| end <= FILE_SIZE_MAX).ok_or(FsError::FileTooLarge)?;
        let write = Write { inode, append, kill_suidgid, ..Write::default() };
        let batch = [Segment { at, data }];
        let inline = self.goes_inline(inode, &batch, size);
        let mut outcome = self.send_once(caller, &batch, inline, write.clone(), life).await;
        if inline && self.not_inline(inode, &outcome) {
            outcome = self.send_once(caller, &batch, false, write, life).await;
        }
        self.full.sent(inline, outcome.as_ref().err(), Instant::now());
        outcome.map_err(|e| e.on_handle(inode))
    }

    /// Sends a batch, in a certain life of the session if it was buffered.
    async fn send_once(
        &self,
        caller: &Caller,
        batch: &[Segment],
        inline: bool,
        write: Write,
        life: Option<Within>,
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
                // What a lock guards goes by itself where there may be another home: what was made alone outlives one.
                Some(life)
                    if inline
                        && (life.home.is_none() || !self.region.session.has_elsewhere())
                        && self.is_exclusive(inode) =>
                {
                    self.along(caller, op, life).await?
                }
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

    /// Has a buffered write told with what was made alone, if something waits to be told; else it goes by itself.
    async fn along(&self, caller: &Caller, op: Op, within: Within) -> Result<Reply, FsError> {
        let (request, now) =
            (FsRequest { caller: Some(caller.clone()), op: Some(op) }, self.region.session.clock.unix_ns());
        let inode = match &request.op {
            Some(Op::Write(write)) => write.inode,
            _ => 0,
        };
        match self.region.session.journal.join(within.life, Change::new(request, 0, now, vec![inode])) {
            Ok(answer) => answer.await.unwrap_or(Err(FsError::Lapsed)),
            Err(Change { request: FsRequest { op: Some(op), .. }, .. }) => {
                self.region.change_in_life(caller, op, within).await
            }
            Err(_) => Err(FsError::Closed),
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
        let data = Packets::of(batch.iter().map(|segment| segment.data.clone()));
        let runs = self.appenders.append(caller, inode, data, deadline).await?;
        Ok(lay_out(batch, &runs))
    }
}

/// When buffered bytes may be sent.
fn within(buffer: &Buffer) -> Within {
    buffer.dirty(|dirty| Within { life: dirty.life, home: dirty.locked.map(Homes::From) })
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

fn is_too_large_for_inline(outcome: &Result<(u64, Option<Attr>), FsError>) -> bool {
    matches!(
        outcome,
        Err(FsError::Answered(libc::EINVAL | libc::EFBIG | libc::EMSGSIZE) | FsError::Invalid(_))
    )
}
