//! What masters are told: what became of chunks, inventories, how the data directories are.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use mooseng_wire::{ChunkId, Epoch};

use super::{ChunkStore, Place};
use crate::changes::Changes;
use crate::chunk::{Chunk, ChunkStat};
use crate::directory::{Directory, DirectoryStatus};
use crate::files::lock;
use crate::layout::file_bytes;

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

#[derive(Default)]
pub(super) struct Watched {
    pub(super) changes: Changes,
    /// Disks that were dropped when somebody last looked.
    dropped: usize,
}

impl ChunkStore {
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

    /// The data directories, those that aren't used among them. Of a disk that hangs it is what was known before.
    pub fn directories(&self) -> Vec<DirectoryStatus> {
        let mut totals: BTreeMap<*const Directory, (u64, u64)> = BTreeMap::new();
        // Let go of before the disks are asked for their room.
        for chunk in lock(&self.chunks).values() {
            if let Some(stat) = chunk.stat() {
                let (count, bytes) = totals.entry(Arc::as_ptr(&chunk.directory)).or_default();
                *count += 1;
                *bytes += file_bytes(stat.length);
            }
        }
        let status = |place: &Place| match place {
            Place::Used(directory) => {
                let (chunks, bytes_used) = totals.get(&Arc::as_ptr(directory)).copied().unwrap_or_default();
                let space = directory.space_at_once();
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
                    hangs: directory.hangs(),
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
                hangs: None,
            },
        };
        self.places.iter().map(status).collect()
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
