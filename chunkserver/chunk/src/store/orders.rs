//! What leaders order: copies of chunks, chunks made of others' bytes, deletions; and the trash behind those.

use std::sync::Arc;

use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, Epoch};

use super::ChunkStore;
use crate::chunk::import::Import;
use crate::digest::Digest;
use crate::directory::Directory;
use crate::error::ChunkError;
use crate::files::lock;

/// Where a disk has less above its reserve, what is in its trash gives way. Masters place no chunk where a whole one hasn't room, so a disk never
/// comes down to the reserve itself.
const ROOM_BYTES: u64 = 2 * CHUNK_BYTES_MAX;

impl ChunkStore {
    /// Begins a copy of a chunk that another chunkserver has; none where a sound, sealed copy of that digest is here already. One on a disk that was dropped
    /// isn't here: masters aren't told of it.
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
            && found.directory.dropped().is_none()
            && found.stat().is_some_and(|s| s.sealed && s.length == length)
            && self.digest(chunk, length)? == *digest
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
        self.in_turn(chunk, || self.install_now(import, custody, now_s))
    }

    fn install_now(&self, import: Import, custody: u64, now_s: u64) -> Result<(), ChunkError> {
        let chunk = import.chunk();
        self.see_custody(custody)?;
        import.finish()?;
        let installed = match self.find(chunk) {
            Ok(found) if import.lies_in(&found.directory) => found.give_way(&self.files, import),
            Ok(found) => {
                match found.remove(&self.files, self.options.trash.then_some(now_s)) {
                    // A dead disk keeps its file, and nobody from having another. Should it come back with a restart, the better of the two counts.
                    Err(error) if found.directory.dropped().is_some() => {
                        tracing::warn!(chunk = chunk.0, %error, "a copy that is replaced stays on a disk that was dropped");
                        found.leave_behind(&self.files);
                    }
                    removed => removed?,
                }
                lock(&self.chunks).remove(&chunk);
                import.install()
            }
            Err(_) => import.install(),
        };
        let installed = installed.map(|copy| drop(lock(&self.chunks).insert(chunk, Arc::new(copy))));
        self.note(chunk);
        installed
    }

    /// Removes a chunk, durably, if the leader of term `custody` is the newest that gave orders. An unknown one is well.
    pub fn delete(&self, chunk: ChunkId, epoch: Epoch, custody: u64, now_s: u64) -> Result<(), ChunkError> {
        self.delete_while(chunk, epoch, custody, now_s, || true).map(drop)
    }

    /// The same if that is still `wanted` once it is this order's turn: one that waited too long behind another is left, for its master may have thought better of
    /// it, and tells it again if it hasn't. Answers whether it was carried out.
    pub fn delete_while(
        &self,
        chunk: ChunkId,
        epoch: Epoch,
        custody: u64,
        now_s: u64,
        wanted: impl FnOnce() -> bool,
    ) -> Result<bool, ChunkError> {
        self.see_epoch(chunk.volume().0, epoch)?;
        self.in_turn(chunk, || {
            self.see_custody(custody)?;
            if !wanted() {
                return Ok(false);
            }
            let found = self.find(chunk);
            found.iter().for_each(|found| found.leaves());
            // Before its disk is waited for. Also for a repetition: then the master has missed that it is gone.
            self.note(chunk);
            if let Ok(found) = found {
                let removed = found.remove(&self.files, self.options.trash.then_some(now_s));
                removed.inspect_err(|_| self.note(chunk))?;
                lock(&self.chunks).remove(&chunk);
            }
            Ok(true)
        })
    }

    /// Carries an order about a chunk out once those about it that came before are. None waits for one about another chunk, whose disk may hang.
    fn in_turn<T>(
        &self,
        chunk: ChunkId,
        order: impl FnOnce() -> Result<T, ChunkError>,
    ) -> Result<T, ChunkError> {
        let turn = lock(&self.orders).entry(chunk).or_default().clone();
        let done = {
            let _one_at_a_time = lock(&turn);
            order()
        };
        drop(turn);
        let mut orders = lock(&self.orders);
        // Whoever waits for it has it, too.
        if orders.get(&chunk).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            orders.remove(&chunk);
        }
        done
    }

    /// Unlinks what came into the trash `keep_s` or longer before `now_s`, and the oldest of it sooner where a disk has little room for new chunks.
    /// Answers how many files went.
    pub fn purge_trash(&self, now_s: u64, keep_s: u64) -> usize {
        self.answering().map(|directory| self.purge_directory(directory, now_s, keep_s)).sum()
    }

    /// Whether some disk has so little room that its trash gives way.
    pub fn is_short_of_room(&self) -> bool {
        self.answering().any(|directory| self.free(directory) < ROOM_BYTES)
    }

    /// The directories whose disks don't hang.
    fn answering(&self) -> impl Iterator<Item = &Arc<Directory>> {
        self.used().filter(|directory| directory.hangs().is_none())
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
}
