//! One chunk's file: append, flush, read, seal. What lies where, and why a crash can't hurt, is in [`crate::layout`];
//! reading with verification and recovery after a restart are in [`verify`] and [`recovery`].

use std::io;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use bytes::Bytes;
use mooseng_ports::disk::lent::FileIdentity;
use mooseng_ports::disk::{DiskFile, OpenMode};
use mooseng_ports::plant::{self, Plant};
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, Epoch};

use crate::digest::{Digest, Digester};
use crate::directory::Directory;
use crate::error::{ChunkError, is_full, is_ours};
use crate::files::{OpenFiles, lock};
use crate::layout::{
    BLOCK, ENTRY_BYTES, FORMAT, GROUP_BLOCKS, Header, RECORD_AT, Record, entry_at, entry_crc, file_bytes,
};
use crate::lent::{Loan, Terms};
use crate::sums::Sums;

pub mod import;
pub mod recovery;
pub mod verify;
mod write;

use recovery::Recovered;
use verify::{View, Wrong, read_blocks};
use write::{entries, write_pieces};

/// A chunk's length, and how much of it is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes written.
    pub length: u64,
    /// Bytes of them on stable storage.
    pub flushed: u64,
}

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkStat {
    /// Bytes written.
    pub length: u64,
    /// Bytes of them on stable storage.
    pub flushed: u64,
    /// No more appends.
    pub sealed: bool,
    /// The newest epoch that changed it.
    pub epoch: Epoch,
}

#[derive(Default)]
struct State {
    /// The file exists.
    created: bool,
    /// The file's name is flushed.
    named: bool,
    length: u64,
    flushed: u64,
    /// Of the bytes in the last, partial block at `length`.
    tail_crc: u32,
    epoch: Epoch,
    sealed: bool,
    sequence: u64,
    /// The slot that the next record goes to: the older one.
    slot: usize,
    /// Set by a failed write or flush: what isn't flushed is unknown from then on (FAILURES 5).
    poisoned: Option<Arc<str>>,
    /// Set when the file can't be used at all.
    damaged: Option<Arc<str>>,
    /// A sealed chunk's block didn't verify, or couldn't be read. The other blocks still can be.
    corrupt: bool,
    removed: bool,
    /// Held while bytes are unflushed: a file closed with dirty pages might lose the report of a failed write-back.
    writer: Option<Arc<dyn DiskFile>>,
}

impl State {
    fn seen(&self) -> Seen {
        Seen {
            created: self.created,
            length: self.length,
            flushed: self.flushed,
            epoch: self.epoch,
            sealed: self.sealed,
            poisoned: self.poisoned.clone(),
            damaged: self.damaged.clone(),
            corrupt: self.corrupt,
            removed: self.removed,
        }
    }
}

/// What of the state others ask for, as the last step left it: the state itself is held while a step waits for the disk, and a disk may hang.
#[derive(Default)]
struct Seen {
    created: bool,
    length: u64,
    flushed: u64,
    epoch: Epoch,
    sealed: bool,
    poisoned: Option<Arc<str>>,
    damaged: Option<Arc<str>>,
    corrupt: bool,
    removed: bool,
}

/// The state, held. What it is in the end is seen before anybody else holds it.
struct Held<'a> {
    state: MutexGuard<'a, State>,
    seen: &'a Mutex<Seen>,
}

impl Deref for Held<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *lock(self.seen) = self.state.seen();
    }
}

/// The file, and what of the state a read of it goes by.
struct Readable {
    file: Arc<dyn DiskFile>,
    view: View,
    sealed: bool,
}

/// One chunk of a data directory.
pub(crate) struct Chunk {
    pub(crate) id: ChunkId,
    pub(crate) directory: Arc<Directory>,
    path: PathBuf,
    state: Mutex<State>,
    /// Never held while somebody waits.
    seen: Mutex<Seen>,
    /// Held over a flush: one at a time, so that the slot it writes is never the only durable one.
    flush: Mutex<()>,
    /// A read of it has failed, which counts against its disk once: whoever reads a bad sector tries it again and again.
    read_failed: AtomicBool,
}

impl Chunk {
    /// A chunk without a file yet.
    pub(crate) fn fresh(id: ChunkId, directory: Arc<Directory>) -> Self {
        let path = directory.chunk_path(id);
        Self {
            id,
            directory,
            path,
            state: Mutex::default(),
            seen: Mutex::default(),
            flush: Mutex::default(),
            read_failed: AtomicBool::new(false),
        }
    }

    /// A chunk as it was found on disk; none if nothing of it was ever flushed.
    pub(crate) fn recovered(id: ChunkId, directory: Arc<Directory>, found: Recovered) -> Option<Self> {
        let chunk = Self::fresh(id, directory);
        {
            let mut state = chunk.state();
            state.created = true;
            state.named = true;
            match found {
                Recovered::Uncommitted => return None,
                Recovered::Damaged(reason) => state.damaged = Some(reason.into()),
                Recovered::Whole { record, slot, .. } => {
                    state.length = record.length;
                    state.flushed = record.length;
                    state.tail_crc = record.tail_crc;
                    state.epoch = record.epoch;
                    state.sealed = record.sealed;
                    state.sequence = record.sequence;
                    state.slot = slot;
                }
            }
        }
        Some(chunk)
    }

    fn state(&self) -> Held<'_> {
        Held { state: lock(&self.state), seen: &self.seen }
    }

    /// Length, flushed length and so on; none while there is no usable file. Waits for nobody, like all that only looks.
    pub(crate) fn stat(&self) -> Option<ChunkStat> {
        let s = lock(&self.seen);
        (s.created && !s.removed && s.damaged.is_none()).then_some(ChunkStat {
            length: s.length,
            flushed: s.flushed,
            sealed: s.sealed,
            epoch: s.epoch,
        })
    }

    /// Whether this copy counts as one: neither damaged nor in doubt since a failed write or flush.
    pub(crate) fn is_sound(&self) -> bool {
        let s = lock(&self.seen);
        s.created && !s.removed && s.damaged.is_none() && s.poisoned.is_none() && !s.corrupt
    }

    /// Whether there is a file, sound or not.
    pub(crate) fn is_there(&self) -> bool {
        let s = lock(&self.seen);
        s.created && !s.removed
    }

    /// A read met a block that doesn't verify or can't be read. Answers whether that is news. Of a chunk that isn't sealed the writer's
    /// next failure decides.
    pub(crate) fn found_corrupt(&self) -> bool {
        let mut s = self.state();
        let news = s.sealed && !s.corrupt && !s.removed;
        s.corrupt |= news;
        news
    }

    /// The digest of the first `length` bytes of a sealed chunk.
    pub(crate) fn digest(&self, files: &OpenFiles, length: u64) -> Result<Digest, ChunkError> {
        let (file, state_length, tail_crc) = {
            let state = self.state();
            self.check_present(&state.seen())?;
            if length > state.length || !state.created {
                return Err(ChunkError::TooShort { chunk: self.id, length: state.length, wanted: length });
            }
            let file = match &state.writer {
                Some(file) => file.clone(),
                None => files.get(self.id, &self.path).map_err(|e| self.wrong(Wrong::Io(e)))?,
            };
            (file, state.length, state.tail_crc)
        };
        let mut digester = Digester::new(self.id, length);
        let mut table = [0; GROUP_BLOCKS as usize * ENTRY_BYTES];
        let blocks = length / BLOCK;
        for group in (0..blocks).step_by(GROUP_BLOCKS as usize) {
            let entries = GROUP_BLOCKS.min(blocks - group) as usize;
            let part = &mut table[..entries * ENTRY_BYTES];
            part.fill(0);
            file.read_at(part, entry_at(group)).map_err(|e| self.wrong(Wrong::Io(e)))?;
            part.chunks_exact(ENTRY_BYTES).filter_map(entry_crc).for_each(|crc| digester.block(crc));
        }
        let tail = length % BLOCK;
        let tail = match tail {
            0 => None,
            _ if length == state_length => Some(tail_crc),
            _ => {
                let view = View { length: state_length, tail_crc };
                let bytes = read_blocks(&*file, length - tail, tail, view).map_err(|w| self.wrong(w))?;
                Some(crate::checksum(&bytes))
            }
        };
        Ok(digester.finish(tail))
    }

    /// Ends the chunk where it is; answers its length. All that was acknowledged is below it, for whoever acknowledges has flushed before.
    pub(crate) fn seal_here(&self, files: &OpenFiles, epoch: Epoch) -> Result<u64, ChunkError> {
        // A seal waits for flushes, not for appends: one that comes between is looked at again.
        loop {
            let length = {
                let state = self.state();
                self.check_writable(&state.seen())?;
                if state.sealed {
                    return Ok(state.length);
                }
                state.length
            };
            match self.seal_at(files, epoch, length, true) {
                Err(ChunkError::OffsetMismatch { .. }) => {}
                sealed => return sealed.map(|()| length),
            }
        }
    }

    fn file(
        &self,
        state: &mut State,
        files: &OpenFiles,
        epoch: Epoch,
    ) -> Result<Arc<dyn DiskFile>, ChunkError> {
        if let Some(file) = &state.writer {
            return Ok(file.clone());
        }
        if state.created {
            return files.get(self.id, &self.path).map_err(|e| self.not_begun(state, "opening its file", &e));
        }
        match self.create(epoch) {
            Ok(file) => {
                state.created = true;
                state.epoch = epoch;
                files.put(self.id, file.clone());
                Ok(file)
            }
            Err(e) if is_full(&e) => Err(ChunkError::NoSpace { bytes: BLOCK }),
            Err(e) => Err(self.not_begun(state, "creating its file", &e)),
        }
    }

    fn create(&self, epoch: Epoch) -> io::Result<Arc<dyn DiskFile>> {
        let disk = &self.directory.disk;
        disk.create_dir_all(&self.directory.shard_path(self.id))?;
        let file = disk.open(&self.path, OpenMode::CreateNew)?;
        let header = Header { format: FORMAT, chunk: self.id, epoch };
        if let Err(e) = file.write_at(&header.encode(), 0) {
            // Nothing was promised yet; the startup scan removes what stays behind.
            if let Err(left) = disk.remove(&self.path) {
                tracing::warn!(path = %self.path.display(), error = %left, "a file that couldn't be written wasn't removed either");
            }
            return Err(e);
        }
        Ok(file)
    }

    /// Nothing was written: what this process lacks leaves the copy as good as it was.
    fn not_begun(&self, state: &mut State, what: &str, error: &io::Error) -> ChunkError {
        if is_ours(error) { self.lacking(what, error) } else { self.poison(state, what, error) }
    }

    fn lacking(&self, what: &str, error: &io::Error) -> ChunkError {
        ChunkError::Lacking { chunk: self.id, reason: format!("{what} failed: {error}") }
    }

    /// From now on nothing is added to this copy, and only what was flushed is read.
    fn poison(&self, state: &mut State, what: &str, error: &io::Error) -> ChunkError {
        let reason = format!("{what} failed: {error}");
        tracing::error!(chunk = self.id.0, path = %self.path.display(), reason, "a chunk's copy can't be trusted any more");
        if !is_ours(error) {
            self.directory.count_failure(&reason);
        }
        state.writer = None;
        state.poisoned.get_or_insert_with(|| reason.as_str().into());
        self.disk_failed(reason)
    }

    fn disk_failed(&self, reason: String) -> ChunkError {
        ChunkError::DiskFailed { chunk: self.id, path: self.directory.path.clone(), reason }
    }

    fn check_present(&self, seen: &Seen) -> Result<(), ChunkError> {
        if seen.removed {
            return Err(ChunkError::NotFound { chunk: self.id });
        }
        match &seen.damaged {
            Some(reason) => Err(ChunkError::Damaged { chunk: self.id, reason: reason.to_string() }),
            None => Ok(()),
        }
    }

    fn check_writable(&self, seen: &Seen) -> Result<(), ChunkError> {
        self.check_present(seen)?;
        if let Some(reason) = seen.poisoned.as_deref().map(str::to_owned).or_else(|| self.directory.dropped())
        {
            return Err(self.disk_failed(reason));
        }
        Ok(())
    }

    /// Whether an append may go ahead, has to wait for earlier ones, or is one that came before.
    pub(crate) fn admit(&self, offset: u64, bytes: u64) -> Result<crate::store::Admission, ChunkError> {
        let seen = lock(&self.seen);
        self.check_writable(&seen)?;
        self.place(&seen, offset, bytes)
    }

    fn place(&self, seen: &Seen, offset: u64, bytes: u64) -> Result<crate::store::Admission, ChunkError> {
        use crate::store::Admission;
        if seen.sealed {
            return Err(ChunkError::Sealed { chunk: self.id, length: seen.length });
        }
        let end = offset.saturating_add(bytes);
        if end > CHUNK_BYTES_MAX {
            return Err(ChunkError::TooLong { chunk: self.id, end });
        }
        match offset.cmp(&seen.length) {
            std::cmp::Ordering::Equal => Ok(Admission::Next),
            std::cmp::Ordering::Greater => Ok(Admission::Early { length: seen.length }),
            std::cmp::Ordering::Less if end <= seen.length => Ok(Admission::Again),
            std::cmp::Ordering::Less => Err(self.mismatch(seen.length, offset, bytes)),
        }
    }

    fn mismatch(&self, length: u64, offset: u64, bytes: u64) -> ChunkError {
        ChunkError::OffsetMismatch { chunk: self.id, length, offset, bytes }
    }

    /// Writes an append behind the chunk's end. Nothing of it is durable yet.
    pub(crate) fn write(
        &self,
        files: &OpenFiles,
        epoch: Epoch,
        offset: u64,
        bytes: &Bytes,
        sums: &Sums,
    ) -> Result<Written, ChunkError> {
        use crate::store::Admission;
        let state = &mut *self.state();
        self.check_writable(&state.seen())?;
        match self.place(&state.seen(), offset, bytes.len() as u64)? {
            Admission::Next => {}
            Admission::Early { .. } => return Err(self.mismatch(state.length, offset, bytes.len() as u64)),
            Admission::Again => return self.again(state, files, offset, bytes),
        }
        let file = self.file(state, files, epoch)?;
        let (entries, tail_crc) = entries(state.tail_crc, offset, bytes, sums);
        match write_pieces(&*file, offset, bytes, &entries) {
            Ok(()) => {}
            // What was written lies behind the length: nothing refers to it.
            Err(e) if is_full(&e) => return Err(ChunkError::NoSpace { bytes: bytes.len() as u64 }),
            Err(e) if is_ours(&e) => return Err(self.lacking("writing", &e)),
            Err(e) => return Err(self.poison(state, "writing", &e)),
        }
        state.length = offset + bytes.len() as u64;
        state.tail_crc = tail_crc;
        state.epoch = state.epoch.max(epoch);
        state.writer = Some(file);
        Ok(Written { length: state.length, flushed: state.flushed })
    }

    /// An append that was here before: the same bytes get the same answer.
    fn again(
        &self,
        state: &mut State,
        files: &OpenFiles,
        offset: u64,
        bytes: &Bytes,
    ) -> Result<Written, ChunkError> {
        if !bytes.is_empty() {
            let file = self.file(state, files, state.epoch)?;
            let view = View { length: state.length, tail_crc: state.tail_crc };
            let stands = read_blocks(&*file, offset, bytes.len() as u64, view).map_err(|w| self.wrong(w))?;
            if stands != bytes {
                return Err(self.mismatch(state.length, offset, bytes.len() as u64));
            }
        }
        Ok(Written { length: state.length, flushed: state.flushed })
    }

    fn wrong(&self, wrong: Wrong) -> ChunkError {
        match wrong {
            Wrong::Block(block) => {
                tracing::error!(chunk = self.id.0, block, path = %self.path.display(), "a block doesn't match its checksum");
                ChunkError::Corrupt { chunk: self.id, block, path: self.path.clone() }
            }
            Wrong::Io(e) if is_ours(&e) => self.lacking("reading", &e),
            Wrong::Io(e) => {
                let reason = format!("reading failed: {e}");
                if !self.read_failed.swap(true, Ordering::Relaxed) {
                    self.directory.count_failure(&reason);
                }
                self.disk_failed(reason)
            }
        }
    }

    /// Makes everything that was written before this call durable. Calls that waited for another one's flush share the next.
    pub(crate) fn flush(&self, files: &OpenFiles) -> Result<Written, ChunkError> {
        let wanted = self.state().length;
        let _one_at_a_time = lock(&self.flush);
        let state = self.state();
        if state.named && state.flushed >= wanted && state.poisoned.is_none() && !state.removed {
            return Ok(Written { length: state.length, flushed: state.flushed });
        }
        self.flush_locked(files, state)
    }

    /// Flushes once, with the flush lock held; the state is unlocked meanwhile, so that appends go on.
    fn flush_locked(&self, files: &OpenFiles, mut state: Held<'_>) -> Result<Written, ChunkError> {
        self.check_writable(&state.seen())?;
        let epoch = state.epoch;
        let file = self.file(&mut state, files, epoch)?;
        let record = self.record(&state, state.length, state.tail_crc, false);
        let (slot, named) = (state.slot, state.named);
        drop(state);
        let done = self.commit(&*file, &record, slot, named);
        let mut state = self.state();
        if let Err(e) = done {
            return Err(self.poison(&mut state, "flushing", &e));
        }
        self.committed(&mut state, &record);
        Ok(Written { length: state.length, flushed: state.flushed })
    }

    fn record(&self, state: &State, length: u64, tail_crc: u32, sealed: bool) -> Record {
        Record { sequence: state.sequence + 1, chunk: self.id, length, epoch: state.epoch, tail_crc, sealed }
    }

    fn commit(&self, file: &dyn DiskFile, record: &Record, slot: usize, named: bool) -> io::Result<()> {
        file.write_at(&record.encode(), RECORD_AT[slot])?;
        let flush = || {
            file.sync_data()?;
            if named { Ok(()) } else { self.directory.disk.sync_dir(&self.directory.shard_path(self.id)) }
        };
        let flushed = flush();
        if plant::is(Plant::FsyncErrorSwallowed) { Ok(()) } else { flushed }
    }

    fn committed(&self, state: &mut State, record: &Record) {
        state.named = true;
        state.sequence = record.sequence;
        state.slot = 1 - state.slot;
        state.flushed = state.flushed.max(record.length);
        if state.flushed == state.length {
            state.writer = None;
        }
    }

    /// Ends the chunk at `length`: a durable record first, then what lies behind it is cut.
    pub(crate) fn seal(&self, files: &OpenFiles, epoch: Epoch, length: u64) -> Result<(), ChunkError> {
        self.seal_at(files, epoch, length, false)
    }

    /// With `uncut`, a chunk that has grown meanwhile isn't cut: it is a mismatch, and stays open.
    fn seal_at(&self, files: &OpenFiles, epoch: Epoch, length: u64, uncut: bool) -> Result<(), ChunkError> {
        let _one_at_a_time = lock(&self.flush);
        let mut length = length;
        {
            let state = self.state();
            self.check_writable(&state.seen())?;
            if plant::is(Plant::SealLength) {
                length = state.length;
            }
            if state.sealed {
                return if state.length == length {
                    Ok(())
                } else {
                    Err(ChunkError::Sealed { chunk: self.id, length: state.length })
                };
            }
            if length > state.length {
                return Err(ChunkError::TooShort { chunk: self.id, length: state.length, wanted: length });
            }
            // A sealed record isn't verified at a restart, so its bytes are durable before it is written.
            if length > state.flushed {
                self.flush_locked(files, state)?;
            }
        }
        let state = &mut *self.state();
        self.check_writable(&state.seen())?;
        if uncut && state.length != length {
            return Err(self.mismatch(state.length, length, 0));
        }
        let file = self.file(state, files, epoch)?;
        let tail_crc = self.tail_at(state, &*file, length)?;
        state.epoch = state.epoch.max(epoch);
        let record = self.record(state, length, tail_crc, true);
        self.commit(&*file, &record, state.slot, state.named)
            .map_err(|e| self.poison(state, "sealing", &e))?;
        state.length = length;
        state.flushed = length;
        state.tail_crc = tail_crc;
        state.sealed = true;
        self.committed(state, &record);
        // The other slot takes the same record, so that one rotten sector doesn't unseal the chunk.
        let cut = file
            .write_at(&record.encode(), RECORD_AT[state.slot])
            .and_then(|()| file.set_len(file_bytes(length)))
            .and_then(|()| file.sync_data());
        cut.map_err(|e| self.poison(state, "cutting what lies behind the seal", &e))
    }

    /// The checksum of the bytes that the last block holds if the chunk ends at `length`.
    fn tail_at(&self, state: &State, file: &dyn DiskFile, length: u64) -> Result<u32, ChunkError> {
        if length == state.length {
            return Ok(state.tail_crc);
        }
        let bytes = length % BLOCK;
        let view = View { length: state.length, tail_crc: state.tail_crc };
        Ok(crate::checksum(&read_blocks(file, length - bytes, bytes, view).map_err(|w| self.wrong(w))?))
    }

    /// Reads bytes, every block that they touch verified.
    pub(crate) fn read(&self, files: &OpenFiles, offset: u64, bytes: u64) -> Result<Bytes, ChunkError> {
        let end = offset.saturating_add(bytes);
        let before = self.readable(files, end)?;
        let wrong = match read_blocks(&*before.file, offset, bytes, before.view) {
            Ok(read) => return Ok(read),
            Err(wrong) => wrong,
        };
        // A seal may have cut the chunk under the read: its last block is another one then, and good. Appends change nothing below the length, and nothing
        // changes behind a seal, so that once more is enough.
        let now = self.readable(files, end)?;
        match wrong {
            Wrong::Block(_) if now.sealed && !before.sealed => {
                read_blocks(&*now.file, offset, bytes, now.view).map_err(|wrong| self.wrong(wrong))
            }
            wrong => Err(self.wrong(wrong)),
        }
    }

    /// What a read up to `end` goes by.
    fn readable(&self, files: &OpenFiles, end: u64) -> Result<Readable, ChunkError> {
        let state = self.state();
        self.check_present(&state.seen())?;
        // What a failed flush left behind `flushed` isn't anybody's any more. The tail's checksum is that of `length`, hence whole blocks only.
        let readable = if state.poisoned.is_some() { state.flushed / BLOCK * BLOCK } else { state.length };
        if end > readable || !state.created {
            return Err(ChunkError::TooShort { chunk: self.id, length: readable, wanted: end });
        }
        let file = match &state.writer {
            Some(file) => file.clone(),
            None => files.get(self.id, &self.path).map_err(|e| self.wrong(Wrong::Io(e)))?,
        };
        let view = View { length: state.length, tail_crc: state.tail_crc };
        Ok(Readable { file, view, sealed: state.sealed })
    }

    /// A descriptor of the file, if the chunk is sealed and its copy can be trusted; none where it isn't sealed yet, or the disk has no descriptors.
    pub(crate) fn lend(&self) -> Result<Option<Loan>, ChunkError> {
        // Held over the opening: what has this name now is this chunk.
        let state = self.state();
        self.check_present(&state.seen())?;
        if state.corrupt || state.poisoned.is_some() || self.directory.dropped().is_some() {
            return Err(self.disk_failed("this copy can't be trusted any more".into()));
        }
        if !state.sealed {
            return Ok(None);
        }
        let lent = self.directory.disk.lend(&self.path).and_then(|lent| {
            let Some(descriptor) = lent else { return Ok(None) };
            let file = FileIdentity::of(&descriptor)?;
            let terms = Terms {
                chunk: self.id,
                format: FORMAT,
                length: state.length,
                tail_crc: state.tail_crc,
                file,
            };
            Ok(Some(Loan { terms, descriptor }))
        });
        // Not counted against the disk: too many open files aren't its fault, and what is will be met by the next read.
        lent.map_err(|e| self.disk_failed(format!("opening its file failed: {e}")))
    }

    /// It is about to be removed. Nobody counts on it from now on, however long its disk takes.
    pub(crate) fn leaves(&self) {
        lock(&self.seen).removed = true;
    }

    /// Removes the file, durably: into the trash, where a second is given.
    pub(crate) fn remove(&self, files: &OpenFiles, trashed_s: Option<u64>) -> Result<(), ChunkError> {
        let _one_at_a_time = lock(&self.flush);
        let state = &mut *self.state();
        if state.removed || !state.created {
            state.removed = true;
            return Ok(());
        }
        let disk = &self.directory.disk;
        let trash = self.directory.trash();
        let removed = match trashed_s {
            None => disk.remove(&self.path),
            Some(now_s) => disk.create_dir_all(&trash).and_then(|()| {
                disk.rename(&self.path, &self.directory.trash_path(self.id, now_s))?;
                disk.sync_dir(&trash)
            }),
        };
        let removed = match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        removed
            .and_then(|()| disk.sync_dir(&self.directory.shard_path(self.id)))
            .map_err(|e| self.poison(state, "removing its file", &e))?;
        state.removed = true;
        state.writer = None;
        files.forget(self.id);
        Ok(())
    }

    /// Another copy takes its place, and its disk doesn't let go of the file: nobody reads it from now on.
    pub(crate) fn leave_behind(&self, files: &OpenFiles) {
        let mut state = self.state();
        state.removed = true;
        state.writer = None;
        files.forget(self.id);
    }

    /// Gives its name to a copy that is whole and flushed and lies in the same directory. It is one step: whatever stops it leaves one of the two.
    pub(crate) fn give_way(&self, files: &OpenFiles, copy: import::Import) -> Result<Chunk, ChunkError> {
        let _one_at_a_time = lock(&self.flush);
        let state = &mut *self.state();
        let installed = copy.install()?;
        state.removed = true;
        state.writer = None;
        files.forget(self.id);
        Ok(installed)
    }

    /// Whether the chunk never got a file (its first write was refused), and nobody is making one.
    pub(crate) fn is_vacant(&self) -> bool {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        !state.created && state.damaged.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use mooseng_ports::disk::sim::SimDisk;

    use super::*;
    use crate::directory::{DiskIdentity, FAILURES_MAX};

    const EIO: i32 = 5;

    /// One bad sector that was read three times took a disk of terabytes out.
    #[test]
    fn reads_of_one_chunk_that_fail_count_once_against_its_disk() {
        let disk = Arc::new(SimDisk::default());
        let ours = DiskIdentity {
            cluster: "c".into(),
            chunkserver: "cs-1".into(),
            id: "d-1".into(),
            format: 1,
            founding: None,
            incarnation: 0,
        };
        let directory =
            Directory::open(disk, Path::new("/data"), &ours, &BTreeMap::new(), Path::new("/state")).unwrap();
        let directory = Arc::new(directory);
        let chunks: Vec<Chunk> =
            (1..=u64::from(FAILURES_MAX)).map(|n| Chunk::fresh(ChunkId(n), directory.clone())).collect();
        let fails = |chunk: &Chunk, errno| chunk.wrong(Wrong::Io(io::Error::from_raw_os_error(errno)));
        let (last, others) = chunks.split_last().unwrap();
        for chunk in others.iter().cycle().take(20) {
            fails(chunk, EIO);
        }
        for errno in [12, 23, 24] {
            assert!(matches!(fails(last, errno), ChunkError::Lacking { .. }));
        }
        assert_eq!(directory.dropped(), None);
        fails(last, EIO);
        assert!(directory.dropped().is_some(), "so many places are more than a bad sector");
    }
}
