//! All chunks of one chunkserver, over its data directories. Calls block on the disk; servers run them on threads made for that.
//!
//! Here is what a chunk goes through: appends, flushes, the seal, reads. How a store is opened is in `opening`, who is refused in `fences`, what leaders
//! order in `orders`, and what masters are told in `reports`.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mooseng_ports::plant;
use mooseng_wire::{ChunkId, Epoch};

use crate::chunk::Chunk;
pub use crate::chunk::{ChunkStat, Written};
use crate::digest::Digest;
use crate::directory::Directory;
use crate::error::ChunkError;
use crate::files::{OpenFiles, lock};
use crate::lent::Loan;
use crate::state::StateFile;
use crate::sums::Sums;

mod fences;
mod opening;
mod orders;
mod reports;

pub use opening::{OpenError, Scan};
use reports::Watched;
pub use reports::{Change, ChunkInfo};

/// Where and whose a store is.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The cluster's name.
    pub cluster: String,
    /// The chunkserver's name.
    pub chunkserver: String,
    /// Where epochs and the list of disks are kept.
    pub state_dir: PathBuf,
    /// Where chunks lie, one directory a disk.
    pub data_dirs: Vec<PathBuf>,
    /// Bytes of each disk that are left free.
    pub reserve_bytes: u64,
    /// Most files kept open.
    pub open_files_max: usize,
    /// Files of deleted chunks wait in the trash until [`ChunkStore::purge_trash`].
    pub trash: bool,
}

/// An append.
#[derive(Clone, Debug)]
pub struct Append {
    /// The chunk; the append at offset 0 creates it.
    pub chunk: ChunkId,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// The chunk's length before it.
    pub offset: u64,
    /// What to append.
    pub bytes: Bytes,
}

/// Whether an append may be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is the next one.
    Next,
    /// Its range stands already: a repetition, if the bytes are the same.
    Again,
    /// Earlier ones are missing, which may still be on their way.
    Early {
        /// The chunk's length now.
        length: u64,
    },
}

enum Place {
    Used(Arc<Directory>),
    Refused(PathBuf, String),
}

/// All chunks of one chunkserver.
pub struct ChunkStore {
    options: StoreOptions,
    places: Vec<Place>,
    files: OpenFiles,
    chunks: Mutex<BTreeMap<ChunkId, Arc<Chunk>>>,
    state: Mutex<StateFile>,
    changes: Mutex<Watched>,
    /// By chunk, held while it is deleted or a copy of it installed, so that an order is compared with the newest leader's term up to its end.
    orders: Mutex<BTreeMap<ChunkId, Arc<Mutex<()>>>>,
    scan: Scan,
}

impl ChunkStore {
    fn used(&self) -> impl Iterator<Item = &Arc<Directory>> {
        self.places.iter().filter_map(|p| match p {
            Place::Used(directory) => Some(directory),
            Place::Refused(..) => None,
        })
    }

    /// What the startup scan found.
    pub fn scan(&self) -> Scan {
        self.scan
    }

    /// Counts starts of this chunkserver.
    pub fn incarnation(&self) -> u64 {
        lock(&self.state).facts.incarnation
    }

    /// How many data directories there are, those that aren't used among them.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// The number of the data directory that a chunk lies in, from 0 on; none where it isn't here.
    pub fn place_of(&self, chunk: ChunkId) -> Option<usize> {
        let found = self.find(chunk).ok()?;
        let is_its = |place: &Place| matches!(place, Place::Used(d) if Arc::ptr_eq(d, &found.directory));
        self.places.iter().position(is_its)
    }

    /// Refuses a call for a chunk if the disk of that data directory hangs.
    pub fn answers(&self, chunk: ChunkId, place: usize) -> Result<(), ChunkError> {
        let Some(Place::Used(directory)) = self.places.get(place) else { return Ok(()) };
        directory.hangs().map_or(Ok(()), |since| {
            let path = directory.path.clone();
            Err(ChunkError::DiskHangs { chunk, path, seconds: since.as_secs() })
        })
    }

    /// The data directories whose disks hang, and for how long they haven't answered.
    pub fn hanging(&self) -> Vec<(PathBuf, Duration)> {
        self.used().filter_map(|d| Some((d.path.clone(), d.hangs()?))).collect()
    }

    fn find(&self, chunk: ChunkId) -> Result<Arc<Chunk>, ChunkError> {
        lock(&self.chunks).get(&chunk).cloned().ok_or(ChunkError::NotFound { chunk })
    }

    fn find_or_create(&self, chunk: ChunkId, bytes: u64) -> Result<Arc<Chunk>, ChunkError> {
        if let Ok(found) = self.find(chunk) {
            return Ok(found);
        }
        let directory = self.roomiest(bytes)?;
        Ok(lock(&self.chunks)
            .entry(chunk)
            .or_insert_with(|| Arc::new(Chunk::fresh(chunk, directory)))
            .clone())
    }

    /// The writable disk with the most free bytes.
    fn roomiest(&self, bytes: u64) -> Result<Arc<Directory>, ChunkError> {
        let mut best: Option<(u64, &Arc<Directory>)> = None;
        for directory in self.used().filter(|d| d.unwritable().is_none()) {
            let free = self.free(directory);
            if free >= bytes && best.is_none_or(|(most, _)| free > most) {
                best = Some((free, directory));
            }
        }
        best.map(|(_, directory)| directory.clone()).ok_or(ChunkError::NoSpace { bytes })
    }

    /// Free bytes above the reserve; none where the disk can't say.
    fn free(&self, directory: &Directory) -> u64 {
        directory.space().map_or(0, |s| s.bytes_free.saturating_sub(self.options.reserve_bytes))
    }

    /// Whether an append may be written now; a quick look without touching the disk, except to keep a new epoch.
    pub fn admit(
        &self,
        chunk: ChunkId,
        epoch: Epoch,
        offset: u64,
        bytes: u64,
    ) -> Result<Admission, ChunkError> {
        self.see_epoch(chunk.volume().0, epoch)?;
        match self.find(chunk) {
            Ok(found) => found.admit(offset, bytes),
            Err(_) if offset == 0 => Ok(Admission::Next),
            // The append that creates it may still be on its way.
            Err(_) => Ok(Admission::Early { length: 0 }),
        }
    }

    /// Writes an append behind its chunk's end; the one at offset 0 creates the chunk. Not durable until [`ChunkStore::flush`].
    pub fn write(&self, append: &Append) -> Result<Written, ChunkError> {
        self.write_summed(append, &Sums::of(&append.bytes))
    }

    /// The same where the checksums of its bytes are known.
    pub fn write_summed(&self, append: &Append, sums: &Sums) -> Result<Written, ChunkError> {
        self.see_epoch(append.chunk.volume().0, append.epoch)?;
        let bytes = append.bytes.len() as u64;
        let chunk = if append.offset == 0 {
            self.find_or_create(append.chunk, bytes)?
        } else {
            self.find(append.chunk)?
        };
        if self.free(&chunk.directory) < bytes {
            self.drop_vacant(&chunk);
            return Err(ChunkError::NoSpace { bytes });
        }
        let written = chunk
            .write(&self.files, append.epoch, append.offset, &append.bytes, sums)
            .inspect_err(|_| self.drop_vacant(&chunk))?;
        plant::look(|| {
            let highest = self.epoch_of(append.chunk.volume().0);
            let Append { chunk, epoch, offset, .. } = append;
            (*epoch >= highest).then_some(()).ok_or_else(|| {
                format!("bytes from {offset} on of chunk {chunk} were taken in epoch {epoch}, behind epoch {highest}")
            })
        });
        Ok(written)
    }

    /// Forgets a chunk whose first write was refused, so that a later try may go to another disk.
    fn drop_vacant(&self, chunk: &Arc<Chunk>) {
        let mut chunks = lock(&self.chunks);
        if chunk.is_vacant() && chunks.get(&chunk.id).is_some_and(|c| Arc::ptr_eq(c, chunk)) {
            chunks.remove(&chunk.id);
        }
    }

    /// Makes what was written to a chunk durable.
    pub fn flush(&self, chunk: ChunkId) -> Result<Written, ChunkError> {
        self.find(chunk)?.flush(&self.files).inspect_err(|_| self.note(chunk))
    }

    /// A chunk changed in a way that masters want to hear of.
    fn note(&self, chunk: ChunkId) {
        lock(&self.changes).changes.note(chunk);
    }

    /// Ends a chunk at `length`, durably. An unknown chunk sealed at 0 becomes an empty sealed one, so that an append that is
    /// still on its way is refused.
    pub fn seal(&self, chunk: ChunkId, epoch: Epoch, length: u64) -> Result<(), ChunkError> {
        self.see_epoch(chunk.volume().0, epoch)?;
        let found = if length == 0 { self.find_or_create(chunk, 0)? } else { self.find(chunk)? };
        let sealed = found.seal(&self.files, epoch, length).inspect_err(|_| self.drop_vacant(&found));
        // A failure, too: a copy that is too short won't ever be sealed at that length.
        self.note(chunk);
        sealed
    }

    /// Ends a chunk where it is, durably, and answers its length: at least what was ever acknowledged of it.
    pub fn seal_here(&self, chunk: ChunkId, epoch: Epoch) -> Result<u64, ChunkError> {
        self.see_epoch(chunk.volume().0, epoch)?;
        let sealed = self.find(chunk)?.seal_here(&self.files, epoch);
        self.note(chunk);
        sealed
    }

    /// Reads bytes of a chunk; every block that they touch is verified.
    pub fn read(&self, chunk: ChunkId, offset: u64, bytes: u64) -> Result<Bytes, ChunkError> {
        let found = self.find(chunk)?;
        self.judge(&found, found.read(&self.files, offset, bytes))
    }

    /// A look at a copy that failed, for the copy's or its disk's sake, is news for masters.
    fn judge<T>(&self, found: &Chunk, looked: Result<T, ChunkError>) -> Result<T, ChunkError> {
        if let Err(ChunkError::Corrupt { .. } | ChunkError::DiskFailed { .. }) = &looked
            && found.found_corrupt()
        {
            tracing::error!(
                chunk = found.id.0,
                "this copy of a chunk is corrupt; masters are told, and have it replaced"
            );
            self.note(found.id);
        }
        looked
    }

    /// A descriptor of a sealed chunk's file, for somebody on this host; none where it isn't sealed yet.
    pub fn lend(&self, chunk: ChunkId) -> Result<Option<Loan>, ChunkError> {
        self.find(chunk)?.lend()
    }

    /// The digest of a chunk's first `length` bytes.
    pub fn digest(&self, chunk: ChunkId, length: u64) -> Result<Digest, ChunkError> {
        let found = self.find(chunk)?;
        self.judge(&found, found.digest(&self.files, length))
    }

    /// The first sealed, sound chunk behind `after`, and its length: what a scrub looks at next.
    pub fn next_sealed(&self, after: Option<ChunkId>) -> Option<(ChunkId, u64)> {
        let chunks = lock(&self.chunks);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        chunks
            .range((from, Bound::Unbounded))
            .filter(|(_, c)| c.is_sound() && c.directory.dropped().is_none())
            .find_map(|(id, c)| c.stat().filter(|s| s.sealed).map(|s| (*id, s.length)))
    }

    /// Bytes of all sealed chunks.
    pub fn sealed_bytes(&self) -> u64 {
        let chunks = lock(&self.chunks);
        chunks.values().filter_map(|c| c.stat()).filter(|s| s.sealed).map(|s| s.length).sum()
    }

    /// What is known of a chunk.
    pub fn stat(&self, chunk: ChunkId) -> Result<ChunkStat, ChunkError> {
        self.find(chunk)?.stat().ok_or(ChunkError::NotFound { chunk })
    }

    /// Writes and flushes a little on each disk, to see whether it still takes it.
    pub fn probe(&self) {
        self.used().for_each(|directory| directory.probe());
    }

    /// Whether any disk takes new chunks.
    pub fn is_writable(&self) -> bool {
        self.used().any(|d| d.unwritable().is_none())
    }
}
