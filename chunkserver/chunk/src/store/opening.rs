//! Opening a store: its data directories, and every chunk in them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use mooseng_ports::disk::{Disk, OpenMode};
use mooseng_wire::ChunkId;

use super::{ChunkStore, Place, StoreOptions};
use crate::chunk::Chunk;
use crate::chunk::import::SUFFIX;
use crate::chunk::recovery::{Recovered, recover};
use crate::directory::{DIRECTORY_FORMAT, Directory, DirectoryError, DiskIdentity};
use crate::error::is_ours;
use crate::files::{OpenFiles, lock};
use crate::state::{Owner, StateFile};

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
    /// The state directory is another chunkserver's, as where disks were swapped: its epochs, starts and list of disks say nothing of this one.
    #[error(
        "the state directory {} is that of {found}, not of {ours}: mount the right disk there, or correct `state_dir`. A chunkserver that is to have another name begins anew: drain it under the old one (mooseng chunkservers drain {}), and start it under the new one with an empty state_dir and empty data_dirs",
        path.display(),
        found.chunkserver
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: Box<Owner>,
        /// We.
        ours: Box<Owner>,
    },
    /// The process lacks something. Chunks that it doesn't get to see would be taken for missing or damaged ones, and be copied anew.
    #[error(
        "the data directory {} can't be looked at, for this process or its host lacks file descriptors or memory: {source}; raise the limits (LimitNOFILE, MemoryMax) and start the chunkserver again",
        path.display()
    )]
    Lacking {
        /// The directory.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
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

impl ChunkStore {
    /// Opens the data directories, and looks at every chunk in them. `new_id` makes an id for a disk that is used for the first time.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        new_id: &mut dyn FnMut() -> String,
    ) -> Result<Self, OpenError> {
        Self::open_from(disk, options, 1, new_id)
    }

    /// The same, with a number for the first start, and for the first one of which the state directory, which was lost, doesn't know: no earlier start may have had
    /// a greater one, or masters take this one for a process of before. Disks remember starts as well.
    pub fn open_from(
        disk: Arc<dyn Disk>,
        options: StoreOptions,
        first_incarnation: u64,
        new_id: &mut dyn FnMut() -> String,
    ) -> Result<Self, OpenError> {
        let state_error = |source| OpenError::State { path: options.state_dir.clone(), source };
        let mut state = StateFile::open(disk.clone(), &options.state_dir).map_err(state_error)?;
        let owner = Owner { cluster: options.cluster.clone(), chunkserver: options.chunkserver.clone() };
        // Before anything of it is believed, or written.
        if let Some(found) = state.facts.owner.clone().filter(|found| *found != owner) {
            let path = options.state_dir.clone();
            return Err(OpenError::Foreign { path, found: Box::new(found), ours: Box::new(owner) });
        }
        let mut facts = state.facts.clone();
        let mut places = Vec::new();
        for path in &options.data_dirs {
            let ours = DiskIdentity {
                cluster: options.cluster.clone(),
                chunkserver: options.chunkserver.clone(),
                id: new_id(),
                format: DIRECTORY_FORMAT,
                founding: facts.founding,
                incarnation: 0,
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
                Err(DirectoryError::Io { path, source }) if is_ours(&source) => {
                    return Err(OpenError::Lacking { path, source });
                }
                Err(e) => {
                    tracing::error!(path = %path.display(), error = %e, "a data directory isn't used");
                    Place::Refused(path.clone(), e.to_string())
                }
            });
        }
        // A file of an earlier release doesn't say whose it is: a disk of ours that it names does.
        let known: BTreeSet<&String> = state.facts.disks.values().collect();
        let is_named = |place: &Place| matches!(place, Place::Used(d) if known.contains(&d.id));
        if known.is_empty() || places.iter().any(is_named) {
            facts.owner = Some(owner);
        }
        let carried = places.iter().map(|place| match place {
            Place::Used(directory) => directory.incarnation(),
            Place::Refused(..) => 0,
        });
        let least = if facts.incarnation == 0 { first_incarnation } else { 1 };
        let before = carried.max().unwrap_or(0).max(facts.incarnation);
        facts.incarnation = before.saturating_add(1).max(least);
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
        store.carry_all(founding);
        store.scan = store.scan_all()?;
        Ok(store)
    }

    fn scan_all(&self) -> Result<Scan, OpenError> {
        let mut scan = Scan::default();
        for directory in self.used() {
            if let Err(e) = self.scan_directory(directory, &mut scan) {
                if is_ours(&e) {
                    return Err(OpenError::Lacking { path: directory.path.clone(), source: e });
                }
                directory.count_failure(&format!("the startup scan failed: {e}"));
                tracing::error!(path = %directory.path.display(), error = %e, "the startup scan of a data directory failed; chunks that it didn't reach are missing");
            }
        }
        Ok(scan)
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
                unsettled |= self.scan_chunk(directory, id, &shard.join(name), scan)?;
            }
            if unsettled {
                directory.disk.sync_dir(&shard)?;
            }
        }
        Ok(())
    }

    /// Takes one file up; answers whether its directory's names may be unflushed.
    fn scan_chunk(
        &self,
        directory: &Arc<Directory>,
        id: ChunkId,
        path: &Path,
        scan: &mut Scan,
    ) -> io::Result<bool> {
        let looked_at = directory.disk.open(path, OpenMode::Existing).and_then(|file| recover(&*file, id));
        let found = match looked_at {
            Ok(found) => found,
            Err(e) if is_ours(&e) => return Err(e),
            Err(e) => {
                let reason = format!("looking at its file failed: {e}");
                directory.count_failure(&reason);
                Recovered::Damaged(reason)
            }
        };
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
        Ok(unsettled)
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
