//! Open files, at most so many at a time.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mooseng_ports::disk::{Disk, DiskFile, OpenMode};
use mooseng_wire::ChunkId;

/// Locks, and goes on after a panic elsewhere: what our locks guard is whole between statements that may panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Cached {
    files: BTreeMap<ChunkId, (u64, Arc<dyn DiskFile>)>,
    by_use: BTreeMap<u64, ChunkId>,
    uses: u64,
}

/// Keeps the most recently used files open.
pub(crate) struct OpenFiles {
    disk: Arc<dyn Disk>,
    most: usize,
    cached: Mutex<Cached>,
}

impl OpenFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>, most: usize) -> Self {
        Self { disk, most: most.max(1), cached: Mutex::default() }
    }

    /// The chunk's file, opened if it wasn't open.
    pub(crate) fn get(&self, chunk: ChunkId, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.touch(chunk) {
            return Ok(file);
        }
        let file = self.disk.open(path, OpenMode::Existing)?;
        self.put(chunk, file.clone());
        Ok(file)
    }

    fn touch(&self, chunk: ChunkId) -> Option<Arc<dyn DiskFile>> {
        let cached = &mut *lock(&self.cached);
        let (used, file) = cached.files.get_mut(&chunk)?;
        cached.by_use.remove(used);
        cached.uses += 1;
        *used = cached.uses;
        cached.by_use.insert(*used, chunk);
        Some(file.clone())
    }

    /// Keeps a file that was just opened.
    pub(crate) fn put(&self, chunk: ChunkId, file: Arc<dyn DiskFile>) {
        let cached = &mut *lock(&self.cached);
        cached.uses += 1;
        if let Some((used, _)) = cached.files.insert(chunk, (cached.uses, file)) {
            cached.by_use.remove(&used);
        }
        cached.by_use.insert(cached.uses, chunk);
        while cached.files.len() > self.most {
            let Some((_, oldest)) = cached.by_use.pop_first() else { break };
            cached.files.remove(&oldest);
        }
    }

    /// Closes a chunk's file once its users are done.
    pub(crate) fn forget(&self, chunk: ChunkId) {
        let cached = &mut *lock(&self.cached);
        if let Some((used, _)) = cached.files.remove(&chunk) {
            cached.by_use.remove(&used);
        }
    }

    #[cfg(test)]
    fn open_now(&self) -> usize {
        lock(&self.cached).files.len()
    }
}

#[cfg(test)]
mod tests {
    use mooseng_ports::disk::sim::SimDisk;

    use super::*;

    #[test]
    fn the_least_recently_used_file_is_closed() {
        let disk = SimDisk::default();
        for n in 0..4 {
            disk.open(Path::new(&format!("/{n}")), OpenMode::Create).unwrap();
        }
        let files = OpenFiles::new(Arc::new(disk), 2);
        for n in [0u64, 1, 0, 2] {
            files.get(ChunkId(n), Path::new(&format!("/{n}"))).unwrap();
        }
        assert_eq!(files.open_now(), 2);
        assert!(files.touch(ChunkId(1)).is_none());
        assert!(files.touch(ChunkId(0)).is_some());
        files.forget(ChunkId(0));
        assert_eq!(files.open_now(), 1);
    }
}
