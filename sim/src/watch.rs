//! What must hold at any instant, seen from outside of all hosts; and what must hold of masters and chunks in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mooseng_chunk::ChunkStore;
use mooseng_master::geo::ROOT_VOLUME;
use mooseng_master::master::Master;
use mooseng_wire::{ChunkId, VolumeId};

use crate::copies::{Copies, known};
use crate::whole;

/// States that are remembered, to compare masters that reach them later.
const STATES_MAX: usize = 4096;

/// What the rewriter did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rewritten {
    /// Sparse chunks that were made into others.
    pub sparse: u64,
    /// Small ones.
    pub merged: u64,
    /// Chunks that were made of small files.
    pub packs: u64,
    /// Extents that were joined.
    pub joined: u64,
}

impl Rewritten {
    fn by(master: &Master) -> Self {
        let m = &master.metrics;
        Self {
            sparse: m.chunks_rewritten.get(),
            merged: m.chunks_merged.get(),
            packs: m.packed_chunks.get(),
            joined: m.joined_extents.get(),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            sparse: self.sparse + other.sparse,
            merged: self.merged + other.merged,
            packs: self.packs + other.packs,
            joined: self.joined + other.joined,
        }
    }
}

#[derive(Default)]
struct Seen {
    masters: BTreeMap<String, Arc<Master>>,
    chunkservers: BTreeMap<String, Arc<ChunkStore>>,
    /// Counts the lives of each host.
    lives: BTreeMap<String, u64>,
    /// Who led in a term, as which member: a vote counts once.
    led: BTreeMap<(u64, u64), (String, u64)>,
    /// What masters rewrote in lives that are over.
    rewritten: Rewritten,
    /// The state at a log index, and who had it first.
    states: BTreeMap<u64, (u64, String)>,
}

/// Sees into the running daemons. Clones share it.
#[derive(Clone, Default)]
pub struct Watch(Arc<Mutex<Seen>>);

impl Watch {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A master runs.
    pub fn master_is_up(&self, name: &str, master: Arc<Master>) {
        let mut seen = self.seen();
        *seen.lives.entry(name.to_owned()).or_default() += 1;
        seen.masters.insert(name.to_owned(), master);
    }

    /// A chunkserver runs.
    pub fn chunkserver_is_up(&self, name: &str, store: Arc<ChunkStore>) {
        self.seen().chunkservers.insert(name.to_owned(), store);
    }

    /// A host crashes.
    pub fn is_down(&self, name: &str) {
        // Dropped behind the lock: what goes with them mustn't come back to it.
        let (master, store) = {
            let mut seen = self.seen();
            let (master, store) = (seen.masters.remove(name), seen.chunkservers.remove(name));
            let more = master.as_deref().map(Rewritten::by).unwrap_or_default();
            seen.rewritten = seen.rewritten.plus(more);
            (master, store)
        };
        drop((master, store));
    }

    /// What the rewriter did.
    pub fn rewritten(&self) -> Rewritten {
        let seen = self.seen();
        seen.masters.values().map(|master| Rewritten::by(master)).fold(seen.rewritten, Rewritten::plus)
    }

    /// Whether chunks are being made of others now.
    pub fn is_rewriting(&self) -> bool {
        self.seen().masters.values().any(|m| m.serving().is_ok() && m.metrics.rewrites_under_way.get() > 0)
    }

    /// Looks at each master that runs.
    pub fn each_master(&self, mut look: impl FnMut(&str, &Arc<Master>)) {
        self.seen().masters.iter().for_each(|(name, master)| look(name, master));
    }

    /// Looks at each chunkserver that runs.
    pub fn each_chunkserver(&self, mut look: impl FnMut(&str, &Arc<ChunkStore>)) {
        self.seen().chunkservers.iter().for_each(|(name, store)| look(name, store));
    }

    /// The master that serves, if one does.
    pub fn leader(&self) -> Option<String> {
        self.seen().masters.iter().find(|(_, master)| master.serving().is_ok()).map(|(name, _)| name.clone())
    }

    /// Masters whose Raft has stopped, and why.
    pub fn failed(&self) -> Vec<(String, String)> {
        let failure = |master: &Master| {
            master
                .raft
                .failure()
                .filter(|reason| !reason.starts_with("the disk under this master's log is full"))
        };
        let seen = self.seen();
        seen.masters.iter().filter_map(|(name, master)| Some((name.clone(), failure(master)?))).collect()
    }

    /// At most one master serves; each member leads a term in one life only.
    pub fn check_leaders(&self) -> Result<(), String> {
        let seen = &mut *self.seen();
        let serving: Vec<String> = seen
            .masters
            .iter()
            .filter_map(|(name, master)| Some(format!("{name} in term {}", master.serving().ok()?)))
            .collect();
        if serving.len() > 1 {
            return Err(format!("two masters serve at the same instant: {}", serving.join(" and ")));
        }
        for (name, master) in &seen.masters {
            let Some(term) = master.raft.leadership().borrow().leading else { continue };
            let life = seen.lives.get(name).copied().unwrap_or_default();
            let first = seen.led.entry((term, master.config.id)).or_insert_with(|| (name.clone(), life));
            if *first != (name.clone(), life) {
                return Err(format!(
                    "{name} leads term {term} in its life {life}, and led it before in its life {}",
                    first.1
                ));
            }
        }
        Ok(())
    }

    /// Masters that applied the same entries hold the same state.
    pub fn check_states(&self) -> Result<(), String> {
        let seen = &mut *self.seen();
        for (name, master) in &seen.masters {
            let index = master.store.position().index;
            if index == 0 {
                continue;
            }
            let Ok(digest) = master.store.state_digest() else { continue };
            if master.store.position().index != index {
                continue;
            }
            let (first, other) = seen.states.entry(index).or_insert_with(|| (digest, name.clone()));
            if *first != digest {
                return Err(format!("at log index {index} the states of {other} and {name} differ"));
            }
            if seen.states.len() > STATES_MAX {
                seen.states.pop_first();
            }
        }
        Ok(())
    }

    /// Nothing in a master's records contradicts itself: in the serving one's, or in `all` of them; `with_places`: locations of chunks that there aren't
    /// count. Answers how many inodes were looked at.
    pub fn check_records(&self, all: bool, with_places: bool) -> Result<u64, String> {
        let seen = self.seen();
        let mut inodes = 0;
        for master in seen.masters.values().filter(|master| all || master.serving().is_ok()) {
            inodes += whole::check(master, with_places)?.map_or(0, |checked| checked.inodes);
        }
        Ok(inodes)
    }

    /// Compares copies on disks with the records that promise them.
    pub fn check_copies(&self, copies: &mut Copies) -> Result<(), String> {
        let seen = self.seen();
        for (name, master) in &seen.masters {
            copies.note_keeper(name, master);
        }
        match seen.masters.iter().find(|(_, master)| master.serving().is_ok()) {
            Some((name, leader)) => copies.check(name, leader),
            None => Ok(()),
        }
    }

    /// Every chunk has ended, and each of its copies has all of it and no more, except those of `damaged`. An error says what is left to do,
    /// or what is wrong.
    pub fn audit_chunks(&self, damaged: &BTreeSet<String>, seen_before: &Copies) -> Result<usize, String> {
        let seen = self.seen();
        let leader = seen.masters.values().find(|master| master.serving().is_ok());
        let leader = leader.ok_or("no master serves")?;
        let chunks = known(leader, ROOT_VOLUME)?;
        for listing in chunks.iter().map(|known| &known.listing) {
            let (chunk, record) = (listing.chunk, &listing.record);
            if !record.sealed {
                return Err(format!("chunk {chunk} of inode {} isn't sealed", record.inode));
            }
            let copies = listing.location.as_ref().map(|l| l.copies.as_slice()).unwrap_or_default();
            for name in copies.iter().filter(|name| !damaged.contains(*name)) {
                let store = seen.chunkservers.get(name).ok_or_else(|| format!("{name} doesn't run"))?;
                check_copy(store, chunk, record.length, seen_before.may_have_ended(chunk))
                    .map_err(|what| format!("the copy of chunk {chunk} on {name} {what}"))?;
            }
        }
        Ok(chunks.len())
    }
}

/// Every chunk that files of a volume use has ended and lies on so many chunkservers of a region, each of which has all of it, except those of `damaged`.
pub fn audit_region(
    watch: &Watch,
    volume: VolumeId,
    copies: usize,
    damaged: &BTreeSet<String>,
) -> Result<usize, String> {
    let seen = watch.seen();
    let leader = seen.masters.values().find(|master| master.serving().is_ok());
    let leader = leader.ok_or("no master serves")?;
    let chunks = known(leader, volume)?;
    for known in chunks.iter().filter(|known| known.named > 0) {
        let (chunk, record) = (known.listing.chunk, &known.listing.record);
        if !record.sealed {
            return Err(format!("chunk {chunk} of inode {} isn't sealed", record.inode));
        }
        let location = known.listing.location.clone().unwrap_or_default();
        if location.copies.len() < copies || location.partial.is_some() {
            return Err(format!("chunk {chunk} has the copies {location:?}, and is to have {copies}"));
        }
        for name in location.copies.iter().filter(|name| !damaged.contains(*name)) {
            let store = seen.chunkservers.get(name).ok_or_else(|| format!("{name} doesn't run"))?;
            check_copy(store, chunk, record.length, true)
                .map_err(|what| format!("the copy of chunk {chunk} on {name} {what}"))?;
        }
    }
    Ok(chunks.len())
}

/// One that house-keeping ended may be longer than its record, if its owner was quicker.
fn check_copy(store: &ChunkStore, chunk: ChunkId, length: u64, ended: bool) -> Result<(), String> {
    let stat = match store.stat(chunk) {
        Ok(stat) => stat,
        // Nothing was ever appended.
        Err(_) if length == 0 => return Ok(()),
        Err(error) => return Err(format!("isn't there: {error}")),
    };
    let fits = stat.length == length || (ended && stat.length > length);
    if length > 0 && (!stat.sealed || !fits) {
        return Err(format!(
            "has {} bytes and is {}, though it was sealed at {length}",
            stat.length,
            if stat.sealed { "sealed" } else { "not sealed" }
        ));
    }
    if stat.sealed && !fits {
        return Err(format!("is sealed at {} bytes instead of {length}", stat.length));
    }
    store.read(chunk, 0, length).map(drop).map_err(|error| format!("can't be read: {error}"))
}
