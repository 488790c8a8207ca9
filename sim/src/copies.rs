//! What must hold of copies at any instant: a chunkserver that a chunk's record names has, durably, what was promised of the chunk. It is looked
//! at whenever records or disks change, for repair mends later what is wrong now.
//!
//! - **Named bytes.** What extents name lies on every copy that the location names, flushed and readable: an extent is committed only once the whole
//!   chain has acknowledged, and a copy is taken into the location only once it is whole.
//! - **Seals.** A copy that is sealed ends where the record says. And every copy reaches up to there. Both hold unless house-keeping may
//!   have ended the chunk: then one member is sealed where it happens to end, and the record follows, or the owner's own end.
//!
//! A disk that loses bits is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mooseng_chunk::{ChunkStore, StoreOptions};
use mooseng_master::geo::ROOT_VOLUME;
use mooseng_master::master::Master;
use mooseng_namespace::upkeep::{self, ChunkListing};
use mooseng_ports::clock::BootTime;
use mooseng_ports::disk::sim::SimDisk;
use mooseng_region::repair::{Condition, OpenCopy, condition, open_copy};
use mooseng_schema::Record;
use mooseng_schema::extent::{self, ExtentRecord};
use mooseng_store::{RangeLimit, Read, Store, Transaction};
use mooseng_wire::{ChunkId, InodeId, VolumeId};

use crate::hosts;

/// Chunks in one page.
const PAGE: usize = 500;
/// Files of one chunk.
const USERS_MAX: usize = 1_000;
/// House-keeping's times are read so much too short: it may come between two looks.
const MARGIN: Duration = Duration::from_millis(100);

/// A chunk as a master's store has it.
pub struct Known {
    /// Its records.
    pub listing: ChunkListing,
    /// The end of what extents name of it.
    pub named: u64,
}

/// All chunks of a volume in a master's applied state.
pub fn known(master: &Master, volume: VolumeId) -> Result<Vec<Known>, String> {
    futures::executor::block_on(read(master, volume)).map_err(|e| format!("the chunks can't be listed: {e}"))
}

async fn read(master: &Master, volume: VolumeId) -> Result<Vec<Known>, String> {
    let tx = master.store.begin();
    tx.set_read_version(master.store.applied_version());
    let mut all: Vec<ChunkListing> = Vec::new();
    loop {
        let after = all.last().map(|listing| listing.chunk);
        let (page, more) = upkeep::list_chunks(&tx, volume, after, PAGE).await.map_err(|e| e.to_string())?;
        all.extend(page);
        if !more {
            break;
        }
    }
    let mut named = BTreeMap::<u64, u64>::new();
    let mut inodes: BTreeSet<InodeId> = BTreeSet::new();
    for listing in &all {
        let users = upkeep::chunk_users(&tx, listing.chunk, USERS_MAX).await.map_err(|e| e.to_string())?;
        inodes.extend(users.into_iter().map(|(inode, _)| inode));
    }
    for inode in inodes {
        let mut range = extent::range(inode);
        loop {
            let page = tx.get_range(range.clone(), RangeLimit::default(), Read::Snapshot);
            let page = page.await.map_err(|e| e.to_string())?;
            for (key, value) in &page.pairs {
                let extent = ExtentRecord::from_value(value).map_err(|e| e.to_string())?;
                let end = named.entry(extent.chunk).or_default();
                *end = (*end).max(extent.chunk_offset + extent.length);
                let mut next = key.to_vec();
                next.push(0);
                range.begin = next.into();
            }
            if !page.more {
                break;
            }
        }
    }
    let named_of = |chunk: ChunkId| named.get(&chunk.0).copied().unwrap_or_default();
    Ok(all.into_iter().map(|listing| Known { named: named_of(listing.chunk), listing }).collect())
}

/// Whether this master's house-keeping, at work since then, may end an open chunk on one of its members.
fn may_be_ended(master: &Master, since: BootTime, listing: &ChunkListing) -> bool {
    let house = &master.config.house;
    let now = master.clock.boot();
    let grace = Duration::from_millis(house.grace_ms).saturating_sub(MARGIN);
    // Its storage class may change, or have changed.
    let classified = master.desk(|desk| desk.root.classes.are_several());
    let mut names = listing.location.iter().flat_map(|l| &l.copies);
    let age_ns = master.clock.unix_ns().saturating_sub(listing.record.born_ns);
    let age = Duration::from_nanos(u64::try_from(age_ns).unwrap_or(0));
    let appended_for = (listing.used.extents > 0).then_some(age + MARGIN);
    let settle = Duration::from_millis(house.settle_ms).saturating_sub(MARGIN);
    let lost = master.desk(|desk| {
        let registry = &desk.registry;
        names.any(|name| {
            condition(registry, name, now, since, grace) == Condition::Lost
                || open_copy(registry, name, now, listing.chunk, appended_for, settle) == OpenCopy::Lost
        })
    });
    let unused = listing.used.extents == 0 && age + MARGIN >= Duration::from_millis(house.collect_after_ms);
    lost || unused || classified
}

/// What a copy would be after a power loss at this instant.
#[derive(Clone, Debug)]
struct Durable {
    length: u64,
    sealed: bool,
    /// Why it can't be read, if so.
    wrong: Option<String>,
}

fn look(server: &str, disk: &SimDisk, chunk: ChunkId, path: &Path) -> Option<Durable> {
    let data = PathBuf::from(hosts::DATA_DIR);
    let copy =
        disk.durable_copy(|p| p == path || p.parent() == Some(&data) || p.starts_with(hosts::STATE_DIR));
    let options = StoreOptions {
        cluster: hosts::CLUSTER.into(),
        chunkserver: server.into(),
        state_dir: hosts::STATE_DIR.into(),
        data_dirs: vec![data],
        reserve_bytes: 0,
        open_files_max: 4,
        trash: false,
    };
    // Nothing that happens to the copy of the disk belongs into the run's log.
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
        let store = ChunkStore::open(Arc::new(copy), options, &mut || "none".into()).ok()?;
        let stat = store.stat(chunk).ok()?;
        let wrong = store.read(chunk, 0, stat.length).err().map(|error| error.to_string());
        Some(Durable { length: stat.length, sealed: stat.sealed, wrong })
    })
}

/// Where a chunk lies on a chunkserver's disk.
pub fn path(chunk: ChunkId) -> PathBuf {
    Path::new(hosts::DATA_DIR).join(format!("chunks/{:02x}/{:016x}", chunk.0 & 0xff, chunk.0))
}

type Looked = (Option<u64>, Option<Durable>);

/// The chunks in a master's state at a log index.
struct Listed {
    index: u64,
    chunks: Arc<Vec<Known>>,
}

/// Looks at copies, and remembers what it has seen.
pub struct Copies {
    disks: BTreeMap<String, SimDisk>,
    listed: BTreeMap<String, Listed>,
    looked: BTreeMap<(ChunkId, String), Looked>,
    ended: BTreeSet<ChunkId>,
    /// Since when a master keeps house in a term.
    keeping: BTreeMap<(String, u64), BootTime>,
    seen: BTreeSet<ChunkId>,
    looks: usize,
    /// What the last look depended on.
    last: Option<(String, u64, u64)>,
}

impl Copies {
    /// On these chunkservers' disks.
    pub fn new(disks: BTreeMap<String, SimDisk>) -> Self {
        let (listed, looked, ended, keeping, seen) = Default::default();
        Self { disks, listed, looked, ended, keeping, seen, looks: 0, last: None }
    }

    /// Chunks that extents named at some time, and how often one of their copies was looked at.
    pub fn seen(&self) -> (usize, usize) {
        (self.seen.len(), self.looks)
    }

    /// Whether house-keeping may have ended this chunk.
    pub fn may_have_ended(&self, chunk: ChunkId) -> bool {
        self.ended.contains(&chunk)
    }

    fn list(&mut self, name: &str, master: &Master) -> Option<Arc<Vec<Known>>> {
        let index = master.store.position().index;
        if let Some(listed) = self.listed.get(name).filter(|listed| listed.index == index) {
            return Some(listed.chunks.clone());
        }
        // Its disk may have failed under its store: then it won't lead on.
        let chunks = Arc::new(known(master, ROOT_VOLUME).ok()?);
        self.listed.insert(name.to_owned(), Listed { index, chunks: chunks.clone() });
        Some(chunks)
    }

    /// Notes what a master's house-keeping may do, if it keeps house: also one whose lease has run out, for it may not know.
    pub fn note_keeper(&mut self, name: &str, master: &Master) {
        let Some(term) = master.desk(|desk| desk.root.serving) else { return };
        let since = *self.keeping.entry((name.to_owned(), term)).or_insert_with(|| master.clock.boot());
        let chunks = self.list(name, master).unwrap_or_default();
        let open = chunks.iter().map(|known| &known.listing).filter(|l| !l.record.sealed);
        self.ended.extend(open.filter(|l| may_be_ended(master, since, l)).map(|l| l.chunk));
    }

    /// Compares what the serving master's records promise with what the disks hold.
    pub fn check(&mut self, name: &str, leader: &Master) -> Result<(), String> {
        let changes = self.disks.values().map(SimDisk::changes).sum();
        let is = (name.to_owned(), leader.store.position().index, changes);
        if self.last.as_ref() == Some(&is) {
            return Ok(());
        }
        let Some(all) = self.list(name, leader) else { return Ok(()) };
        let alive: BTreeSet<ChunkId> = all.iter().map(|known| known.listing.chunk).collect();
        self.looked.retain(|(chunk, _), _| alive.contains(chunk));
        for known in all.iter() {
            self.check_chunk(known)?;
        }
        self.last = Some(is);
        Ok(())
    }

    fn check_chunk(&mut self, known: &Known) -> Result<(), String> {
        let chunk = known.listing.chunk;
        if known.named > 0 {
            self.seen.insert(chunk);
        }
        for server in known.listing.location.iter().flat_map(|l| &l.copies) {
            let Some(disk) = self.disks.get(server) else { continue };
            let path = path(chunk);
            let version = disk.durable_version(&path);
            let looked = self.looked.entry((chunk, server.clone()));
            let looked = looked.or_insert((None, None));
            if looked.0 != version {
                self.looks += 1;
                *looked = (version, look(server, disk, chunk, &path));
            }
            judge(known, looked.1.as_ref(), self.ended.contains(&chunk))
                .map_err(|what| self.told(known, server, &what))?;
        }
        Ok(())
    }

    fn told(&self, known: &Known, server: &str, what: &str) -> String {
        let Known { listing, named } = known;
        let ended = if self.ended.contains(&listing.chunk) { "may have ended" } else { "didn't end" };
        format!(
            "the copy of chunk {} on {server} {what}; extents name {named} bytes, house-keeping {ended} it, its records: {:?}, {:?}",
            listing.chunk, listing.record, listing.location
        )
    }
}

fn judge(known: &Known, durable: Option<&Durable>, ended: bool) -> Result<(), String> {
    let record = &known.listing.record;
    let promised = if record.sealed && !ended { record.length.max(known.named) } else { known.named };
    let length = durable.map_or(0, |d| d.length);
    if length < promised {
        return Err(format!("has {length} bytes on disk, though {promised} were acknowledged"));
    }
    let Some(durable) = durable else { return Ok(()) };
    if let Some(wrong) = &durable.wrong {
        return Err(format!("can't be read: {wrong}"));
    }
    if record.sealed && durable.sealed && durable.length != record.length && !ended {
        return Err(format!("is sealed at {} bytes instead of {}", durable.length, record.length));
    }
    Ok(())
}
