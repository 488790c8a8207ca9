//! What chunkservers take: nothing of an epoch of a volume that is over, once they have seen a later one of it.
//!
//! What a home of before has under way - a client's append whose bytes were on their way, a push to another region that was held back - would lengthen a
//! copy behind the next home's back. It would go unnoticed mostly, for nothing names the bytes; so it is looked for where it happens.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use mooseng_chunk::{ChunkInfo, ChunkStore};
use mooseng_ports::disk::sim::SimDisk;
use mooseng_wire::{ChunkId, Epoch, VolumeId};

use crate::watch::Watch;

/// Chunks that are looked at in one go: more than there are.
const ALL: usize = 100_000;

/// What a chunkserver had when it was looked at last.
struct Seen {
    store: Weak<ChunkStore>,
    /// Changes of its disk.
    changes: u64,
    highest: BTreeMap<VolumeId, Epoch>,
    lengths: BTreeMap<ChunkId, u64>,
}

/// What all chunkservers have seen.
pub struct Epochs {
    disks: BTreeMap<String, SimDisk>,
    volumes: Vec<VolumeId>,
    seen: BTreeMap<String, Seen>,
}

/// Whether a chunk that was so long before has taken what it mustn't.
fn judge(info: &ChunkInfo, before: u64, highest: Epoch) -> Result<(), String> {
    let (chunk, stat) = (info.chunk, info.stat);
    // One that is sealed was installed whole, perhaps, as of when its copying began.
    if stat.sealed || stat.length <= before || stat.epoch >= highest {
        return Ok(());
    }
    Err(format!(
        "took bytes {before} to {} of chunk {chunk} in epoch {} although it had seen epoch {}",
        stat.length, stat.epoch.0, highest.0
    ))
}

impl Epochs {
    /// Of the chunkservers with these disks, on which are chunks of these volumes.
    pub fn new(disks: BTreeMap<String, SimDisk>, volumes: Vec<VolumeId>) -> Self {
        Self { disks, volumes, seen: BTreeMap::new() }
    }

    /// Looks at a region's, each millisecond.
    pub fn check(&mut self, watch: &Watch) -> Result<(), String> {
        let mut wrong = Ok(());
        watch.each_chunkserver(|name, store| {
            if let Err(what) = self.check_one(name, store) {
                wrong = Err(format!("chunkserver {name} {what}"));
            }
        });
        wrong
    }

    fn check_one(&mut self, name: &str, store: &Arc<ChunkStore>) -> Result<(), String> {
        let Some(changes) = self.disks.get(name).map(SimDisk::changes) else { return Ok(()) };
        let known = self.seen.get(name).filter(|seen| std::ptr::eq(seen.store.as_ptr(), Arc::as_ptr(store)));
        if known.is_some_and(|seen| seen.changes == changes) {
            return Ok(());
        }
        let all = store.inventory(None, ALL).0;
        // One that has just begun its life has what it had.
        for info in all.iter().filter(|_| known.is_some()) {
            let before = known.and_then(|seen| seen.lengths.get(&info.chunk)).copied().unwrap_or_default();
            let highest = known.and_then(|seen| seen.highest.get(&info.chunk.volume())).copied();
            judge(info, before, highest.unwrap_or_default())?;
        }
        let lengths = all.iter().map(|info| (info.chunk, info.stat.length)).collect();
        let highest = self.volumes.iter().map(|volume| (*volume, store.epoch_of(volume.0))).collect();
        let seen = Seen { store: Arc::downgrade(store), changes, highest, lengths };
        self.seen.insert(name.to_owned(), seen);
        Ok(())
    }
}
