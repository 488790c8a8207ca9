//! All chunks of one chunkserver, over its data directories. Calls block on the disk; servers run them on threads made for that.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use mooseng_ports::disk::{Disk, OpenMode};
use mooseng_ports::plant::{self, Plant};
use mooseng_wire::founding::Founding;
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, Epoch};

use crate::changes::Changes;
use crate::chunk::Chunk;
use crate::chunk::import::{Import, SUFFIX};
use crate::chunk::recovery::{Recovered, recover};
pub use crate::chunk::{ChunkStat, Written};
use crate::digest::Digest;
use crate::directory::{DIRECTORY_FORMAT, Directory, DirectoryError, DirectoryStatus, DiskIdentity};
use crate::error::ChunkError;
use crate::files::{OpenFiles, lock};
use crate::layout::file_bytes;
use crate::lent::Loan;
use crate::state::StateFile;
use crate::sums::Sums;

/// Where a disk has less above its reserve, what is in its trash gives way. Masters place no chunk where a whole one hasn't room, so a disk never
/// comes down to the reserve itself.
const ROOM_BYTES: u64 = 2 * CHUNK_BYTES_MAX;

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

/// Why a store can't be opened at all. A data directory that can't be used doesn't stop the others: see [`ChunkStore::directories`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state directory isn't usable.
    #[error("the state directory {} can't be used: {source}", path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// What the disk answered.
        source: io::Error,
    },
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

/// A chunk, for inventories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkInfo {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its state; all zero where its file can't be used.
    pub stat: ChunkStat,
    /// The copy can be trusted: it is neither damaged, nor in doubt since a failed write or flush, nor has it a block that doesn't verify.
    pub sound: bool,
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is so now.
    Is(ChunkInfo),
    /// It isn't here.
    Gone(ChunkId),
}

enum Place {
    Used(Arc<Directory>),
    Refused(PathBuf, String),
}

/// What the startup scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Usable chunks.
    pub chunks: u64,
    /// Files of which nothing was ever flushed: removed.
    pub uncommitted: u64,
    /// Files that can't be used: kept.
    pub damaged: u64,
}

/// All chunks of one chunkserver.
pub struct ChunkStore {
    options: StoreOptions,
    places: Vec<Place>,
    files: OpenFiles,
    chunks: Mutex<BTreeMap<ChunkId, Arc<Chunk>>>,
    state: Mutex<StateFile>,
    changes: Mutex<Watched>,
    /// Held while a chunk is deleted or a copy installed, so that an order is compared with the newest leader's term up to its end.
    orders: Mutex<()>,
    scan: Scan,
}

#[derive(Default)]
struct Watched {
    changes: Changes,
    /// Disks that were dropped when somebody last looked.
    dropped: usize,
}

impl ChunkStore {
    /// Opens the data directories, and looks at every chunk in them. `new_id` makes an id for a disk that is used for the first time.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        new_id: &mut dyn FnMut() -> String,
    ) -> Result<Self, OpenError> {
        let state_error = |source| OpenError::State { path: options.state_dir.clone(), source };
        let mut state = StateFile::open(disk.clone(), &options.state_dir).map_err(state_error)?;
        let mut facts = state.facts.clone();
        facts.incarnation += 1;
        let mut places = Vec::new();
        for path in &options.data_dirs {
            let ours = DiskIdentity {
                cluster: options.cluster.clone(),
                chunkserver: options.chunkserver.clone(),
                id: new_id(),
                format: DIRECTORY_FORMAT,
                founding: facts.founding,
            };
            let opened = Directory::open(disk.clone(), path, &ours, &state.facts.disks, &state.path)
                .and_then(|d| only_once(d, &places));
            places.push(match opened {
                Ok(directory) => {
                    facts.disks.insert(path.clone(), directory.id.clone());
                    // The directories' mark counts where the state directory was lost.
                    facts.founding = facts.founding.or(directory.founding());
                    Place::Used(Arc::new(directory))
                }
                Err(e) => {
                    tracing::error!(path = %path.display(), error = %e, "a data directory isn't used");
                    Place::Refused(path.clone(), e.to_string())
                }
            });
        }
        let founding = facts.founding;
        state.keep(facts).map_err(state_error)?;
        let files = OpenFiles::new(disk, options.open_files_max);
        let mut store = Self {
            options,
            places,
            files,
            chunks: Mutex::default(),
            state: Mutex::new(state),
            changes: Mutex::default(),
            orders: Mutex::default(),
            scan: Scan::default(),
        };
        if let Some(founding) = founding {
            store.mark_all(founding);
        }
        store.scan = store.scan_all();
        Ok(store)
    }

    fn used(&self) -> impl Iterator<Item = &Arc<Directory>> {
        self.places.iter().filter_map(|p| match p {
            Place::Used(directory) => Some(directory),
            Place::Refused(..) => None,
        })
    }

    fn scan_all(&self) -> Scan {
        let mut scan = Scan::default();
        for directory in self.used() {
            if let Err(e) = self.scan_directory(directory, &mut scan) {
                directory.count_failure(&format!("the startup scan failed: {e}"));
                tracing::error!(path = %directory.path.display(), error = %e, "the startup scan of a data directory failed; chunks that it didn't reach are missing");
            }
        }
        scan
    }

    fn scan_directory(&self, directory: &Arc<Directory>, scan: &mut Scan) -> io::Result<()> {
        for shard in directory.shards()? {
            let mut unsettled = false;
            for name in directory.disk.list(&shard)? {
                if name.ends_with(SUFFIX) {
                    // A copy that wasn't finished when the process ended.
                    directory.disk.remove(&shard.join(&name))?;
                    unsettled = true;
                }
                let Some(id) = chunk_name(&name) else { continue };
                unsettled |= self.scan_chunk(directory, id, &shard.join(name), scan);
            }
            if unsettled {
                directory.disk.sync_dir(&shard)?;
            }
        }
        Ok(())
    }

    /// Takes one file up; answers whether its directory's names may be unflushed.
    fn scan_chunk(&self, directory: &Arc<Directory>, id: ChunkId, path: &Path, scan: &mut Scan) -> bool {
        let found = directory
            .disk
            .open(path, OpenMode::Existing)
            .and_then(|file| recover(&*file, id))
            .unwrap_or_else(|e| {
                let reason = format!("looking at its file failed: {e}");
                directory.count_failure(&reason);
                Recovered::Damaged(reason)
            });
        let unsettled = !matches!(found, Recovered::Whole { settled: true, .. });
        match &found {
            Recovered::Whole { record, .. } => {
                scan.chunks += 1;
                // The records' epochs count, too: the state directory may have been lost.
                let facts = &mut lock(&self.state).facts;
                let highest = facts.epochs.entry(id.volume().0).or_default();
                *highest = record.epoch.max(*highest);
            }
            Recovered::Uncommitted => {
                scan.uncommitted += 1;
                if let Err(e) = directory.disk.remove(path) {
                    tracing::warn!(path = %path.display(), error = %e, "a chunk file without a flushed byte wasn't removed");
                }
            }
            Recovered::Damaged(reason) => {
                scan.damaged += 1;
                tracing::error!(chunk = id.0, path = %path.display(), reason, "a chunk's copy is damaged");
            }
        }
        if let Some(chunk) = Chunk::recovered(id, directory.clone(), found) {
            self.take_up(chunk);
        }
        unsettled
    }

    /// Two disks may hold one chunk, if somebody copied it: the better copy counts.
    fn take_up(&self, chunk: Chunk) {
        let mut chunks = lock(&self.chunks);
        let rank = |c: &Chunk| c.stat().map(|s| (s.sealed, s.length));
        match chunks.get(&chunk.id) {
            Some(other) if rank(other) >= rank(&chunk) => {
                tracing::warn!(chunk = chunk.id.0, path = %chunk.directory.path.display(), "a chunk lies on two disks; this copy is ignored");
            }
            _ => {
                chunks.insert(chunk.id, Arc::new(chunk));
            }
        }
    }

    /// What the startup scan found.
    pub fn scan(&self) -> Scan {
        self.scan
    }

    /// Counts starts of this chunkserver.
    pub fn incarnation(&self) -> u64 {
        lock(&self.state).facts.incarnation
    }

    /// The newest epoch seen of any volume.
    pub fn highest_epoch(&self) -> Epoch {
        lock(&self.state).facts.epochs.values().copied().max().unwrap_or_default()
    }

    /// Whether an epoch is the newest seen of its volume: then [`ChunkStore::see_epoch`] does nothing.
    pub fn knows_epoch(&self, volume: u16, epoch: Epoch) -> bool {
        lock(&self.state).facts.epochs.get(&volume) == Some(&epoch)
    }

    /// The newest epoch seen of a volume.
    pub fn epoch_of(&self, volume: u16) -> Epoch {
        lock(&self.state).facts.epochs.get(&volume).copied().unwrap_or_default()
    }

    /// Refuses an epoch that is over, and makes a newer one durable.
    pub fn see_epoch(&self, volume: u16, epoch: Epoch) -> Result<(), ChunkError> {
        let mut state = lock(&self.state);
        let highest = state.facts.epochs.get(&volume).copied().unwrap_or_default();
        if epoch < highest && !plant::is(Plant::EpochUnchecked) {
            return Err(ChunkError::StaleEpoch { volume, epoch, highest });
        }
        if epoch > highest {
            let mut facts = state.facts.clone();
            facts.epochs.insert(volume, epoch);
            state.keep(facts).map_err(|e| ChunkError::StateFailed { epoch, reason: e.to_string() })?;
        }
        Ok(())
    }

    /// The founding mark of the region that the chunks are of; none before any leader has told one.
    pub fn founding(&self) -> Option<Founding> {
        lock(&self.state).facts.founding
    }

    /// Whether a mark is the chunks' region's and every directory carries it: then [`ChunkStore::see_founding`] does nothing.
    pub fn knows_founding(&self, told: Founding) -> bool {
        self.founding() == Some(told) && self.used().all(|d| d.founding().is_some())
    }

    /// Takes a leader's founding mark: the first one becomes the store's own for good, durably, and any other is refused.
    pub fn see_founding(&self, told: Founding) -> Result<(), ChunkError> {
        {
            let mut state = lock(&self.state);
            match state.facts.founding {
                Some(own) if own != told => return Err(ChunkError::OtherFounding { own, told }),
                Some(_) => {}
                None => {
                    let facts = crate::state::Facts { founding: Some(told), ..state.facts.clone() };
                    state
                        .keep(facts)
                        .map_err(|e| ChunkError::FoundingFailed { told, reason: e.to_string() })?;
                }
            }
        }
        self.mark_all(told);
        Ok(())
    }

    /// Has each directory carry the mark. One that can't take it now gets it with a later heartbeat or start: the state directory has it already.
    fn mark_all(&self, founding: Founding) {
        for directory in self.used().filter(|d| d.dropped().is_none()) {
            if let Err(e) = directory.mark(founding) {
                // Whether the disk takes writes at all is told by its probe.
                tracing::debug!(path = %directory.path.display(), error = %e, "a data directory doesn't take the founding mark yet");
            }
        }
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
        let read = found.read(&self.files, offset, bytes);
        if let Err(ChunkError::Corrupt { .. } | ChunkError::DiskFailed { .. }) = &read
            && found.found_corrupt()
        {
            tracing::error!(
                chunk = chunk.0,
                "this copy of a chunk is corrupt; masters are told, and have it replaced"
            );
            self.note(chunk);
        }
        read
    }

    /// A descriptor of a sealed chunk's file, for somebody on this host; none where it isn't sealed yet.
    pub fn lend(&self, chunk: ChunkId) -> Result<Option<Loan>, ChunkError> {
        self.find(chunk)?.lend()
    }

    /// The digest of a chunk's first `length` bytes.
    pub fn digest(&self, chunk: ChunkId, length: u64) -> Result<Digest, ChunkError> {
        self.find(chunk)?.digest(&self.files, length)
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

    /// Refuses a leader whose term is over, and makes a newer term durable. 0 is nobody's.
    pub fn see_custody(&self, custody: u64) -> Result<(), ChunkError> {
        let mut state = lock(&self.state);
        let newest = state.facts.custody;
        if custody < newest {
            return Err(ChunkError::StaleCustody { custody, newest });
        }
        if custody > newest {
            let mut facts = state.facts.clone();
            facts.custody = custody;
            state.keep(facts).map_err(|e| ChunkError::CustodyFailed { custody, reason: e.to_string() })?;
        }
        Ok(())
    }

    /// Begins a copy of a chunk that another chunkserver has; none where a sound, sealed copy of that digest is here already.
    pub fn import(
        &self,
        chunk: ChunkId,
        epoch: Epoch,
        length: u64,
        digest: &Digest,
    ) -> Result<Option<Import>, ChunkError> {
        self.see_epoch(chunk.volume().0, epoch)?;
        if let Ok(found) = self.find(chunk)
            && found.is_sound()
            && found.stat().is_some_and(|s| s.sealed && s.length == length)
            && found.digest(&self.files, length)? == *digest
        {
            return Ok(None);
        }
        Import::begin(chunk, epoch, length, self.roomiest(length)?).map(Some)
    }

    /// Begins a chunk that is made here first, of others' bytes. Its id was never given before.
    pub fn build(&self, chunk: ChunkId, epoch: Epoch, length: u64) -> Result<Import, ChunkError> {
        self.see_epoch(chunk.volume().0, epoch)?;
        if self.find(chunk).is_ok() {
            return Err(ChunkError::Different { chunk });
        }
        Import::begin(chunk, epoch, length, self.roomiest(length)?)
    }

    /// Takes up a chunk that was made here, whole, and answers its digest.
    pub fn install_built(&self, import: Import, custody: u64, now_s: u64) -> Result<Digest, ChunkError> {
        let digest = import.digest()?;
        self.install(import, &digest, custody, now_s)?;
        Ok(digest)
    }

    /// Takes up a whole copy, if it is what it was made from and the leader that ordered it is the newest. What was here of the chunk stays until
    /// the copy is flushed, for it may be bad and yet the last that holds some block; then the copy takes its place, or it goes into the trash where it lies
    /// in another directory.
    pub fn install(
        &self,
        import: Import,
        digest: &Digest,
        custody: u64,
        now_s: u64,
    ) -> Result<(), ChunkError> {
        let chunk = import.chunk();
        if import.digest()? != *digest {
            return Err(ChunkError::Different { chunk });
        }
        let _one_at_a_time = lock(&self.orders);
        self.see_custody(custody)?;
        import.finish()?;
        let installed = match self.find(chunk) {
            Ok(found) if import.lies_in(&found.directory) => found.give_way(&self.files, import),
            Ok(found) => {
                found.remove(&self.files, self.options.trash.then_some(now_s))?;
                lock(&self.chunks).remove(&chunk);
                import.install()
            }
            Err(_) => import.install(),
        };
        let installed = installed.map(|copy| drop(lock(&self.chunks).insert(chunk, Arc::new(copy))));
        self.note(chunk);
        installed
    }

    /// What is known of a chunk.
    pub fn stat(&self, chunk: ChunkId) -> Result<ChunkStat, ChunkError> {
        self.find(chunk)?.stat().ok_or(ChunkError::NotFound { chunk })
    }

    /// Removes a chunk, durably, if the leader of term `custody` is the newest that gave orders. An unknown one is well.
    pub fn delete(&self, chunk: ChunkId, epoch: Epoch, custody: u64, now_s: u64) -> Result<(), ChunkError> {
        self.see_epoch(chunk.volume().0, epoch)?;
        let _one_at_a_time = lock(&self.orders);
        self.see_custody(custody)?;
        if let Ok(found) = self.find(chunk) {
            found.remove(&self.files, self.options.trash.then_some(now_s))?;
            lock(&self.chunks).remove(&chunk);
        }
        // Also for a repetition: then the master has missed that it is gone.
        self.note(chunk);
        Ok(())
    }

    /// Unlinks what came into the trash `keep_s` or longer before `now_s`, and the oldest of it sooner where a disk has little room for new chunks.
    /// Answers how many files went.
    pub fn purge_trash(&self, now_s: u64, keep_s: u64) -> usize {
        self.used().map(|directory| self.purge_directory(directory, now_s, keep_s)).sum()
    }

    /// Whether some disk has so little room that its trash gives way.
    pub fn is_short_of_room(&self) -> bool {
        self.used().any(|directory| self.free(directory) < ROOM_BYTES)
    }

    fn purge_directory(&self, directory: &Directory, now_s: u64, keep_s: u64) -> usize {
        let mut trashed = match directory.trashed() {
            Ok(trashed) => trashed,
            Err(e) => {
                tracing::warn!(path = %directory.path.display(), error = %e, "the trash can't be looked at");
                return 0;
            }
        };
        trashed.sort_by_key(|(_, since)| *since);
        let mut gone = 0;
        for (path, since) in trashed {
            if now_s.saturating_sub(since) < keep_s && self.free(directory) >= ROOM_BYTES {
                break;
            }
            if let Err(e) = directory.disk.remove(&path) {
                tracing::warn!(path = %path.display(), error = %e, "a file in the trash can't be removed");
                break;
            }
            gone += 1;
        }
        gone
    }

    /// The number of the next change, for [`ChunkStore::changes`].
    pub fn next_change(&self) -> u64 {
        lock(&self.changes).changes.next()
    }

    /// What became of the chunks that were changed from number `from` on, at most `most`, and the number to go on from. None where an inventory
    /// is needed instead: because that isn't remembered any more, or because a disk was dropped.
    pub fn changes(&self, from: u64, most: usize) -> Option<(Vec<Change>, u64)> {
        let dropped = self.used().filter(|d| d.dropped().is_some()).count();
        let (page, to) = {
            let watched = &mut *lock(&self.changes);
            if std::mem::replace(&mut watched.dropped, dropped) != dropped {
                watched.changes.forget();
            }
            watched.changes.since(from, most)?
        };
        let chunks = lock(&self.chunks);
        let is = |chunk: &ChunkId| match chunks.get(chunk).and_then(|c| info(c)) {
            Some(info) => Change::Is(info),
            None => Change::Gone(*chunk),
        };
        Some((page.iter().map(is).collect(), to))
    }

    /// A page of the chunks behind `after`, at most `most`, and whether there may be more. Those on dropped disks aren't among them.
    pub fn inventory(&self, after: Option<ChunkId>, most: usize) -> (Vec<ChunkInfo>, bool) {
        let chunks = lock(&self.chunks);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page: Vec<ChunkInfo> = chunks
            .range((from, Bound::Unbounded))
            .filter_map(|(_, c)| info(c))
            .take(most.saturating_add(1))
            .collect();
        let more = page.len() > most;
        page.truncate(most);
        (page, more)
    }

    /// Writes and flushes a little on each disk, to see whether it still takes it.
    pub fn probe(&self) {
        self.used().for_each(|directory| directory.probe());
    }

    /// The data directories, those that aren't used among them.
    pub fn directories(&self) -> Vec<DirectoryStatus> {
        let mut totals: BTreeMap<&Path, (u64, u64)> = BTreeMap::new();
        let chunks = lock(&self.chunks);
        for chunk in chunks.values() {
            if let Some(stat) = chunk.stat() {
                let (count, bytes) = totals.entry(&chunk.directory.path).or_default();
                *count += 1;
                *bytes += file_bytes(stat.length);
            }
        }
        let status = |place: &Place| match place {
            Place::Used(directory) => {
                let (chunks, bytes_used) = totals.get(&*directory.path).copied().unwrap_or_default();
                let space = directory.space();
                let error = directory
                    .unwritable()
                    .or_else(|| space.as_ref().err().map(|e| format!("its free space is unknown: {e}")));
                DirectoryStatus {
                    path: directory.path.clone(),
                    id: directory.id.clone(),
                    bytes_total: space.as_ref().map_or(0, |s| s.bytes_total),
                    bytes_free: space
                        .as_ref()
                        .map_or(0, |s| s.bytes_free.saturating_sub(self.options.reserve_bytes)),
                    bytes_used,
                    chunks,
                    writable: error.is_none(),
                    error: error.unwrap_or_default(),
                }
            }
            Place::Refused(path, error) => DirectoryStatus {
                path: path.clone(),
                id: String::new(),
                bytes_total: 0,
                bytes_free: 0,
                bytes_used: 0,
                chunks: 0,
                writable: false,
                error: error.clone(),
            },
        };
        self.places.iter().map(status).collect()
    }

    /// Whether any disk takes new chunks.
    pub fn is_writable(&self) -> bool {
        self.used().any(|d| d.unwritable().is_none())
    }
}

fn info(chunk: &Chunk) -> Option<ChunkInfo> {
    if !chunk.is_there() || chunk.directory.dropped().is_some() {
        return None;
    }
    let nothing = ChunkStat { length: 0, flushed: 0, sealed: false, epoch: Epoch::default() };
    let stat = chunk.stat().unwrap_or(nothing);
    Some(ChunkInfo { chunk: chunk.id, stat, sound: chunk.is_sound() })
}

fn only_once(directory: Directory, places: &[Place]) -> Result<Directory, DirectoryError> {
    let ids: BTreeSet<&str> = places
        .iter()
        .filter_map(|p| if let Place::Used(d) = p { Some(d.id.as_str()) } else { None })
        .collect();
    if ids.contains(directory.id.as_str()) {
        return Err(DirectoryError::Twice { path: directory.path.clone(), id: directory.id.clone() });
    }
    Ok(directory)
}

fn chunk_name(name: &str) -> Option<ChunkId> {
    if name.len() != 16 || name.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    u64::from_str_radix(name, 16).ok().map(ChunkId)
}
