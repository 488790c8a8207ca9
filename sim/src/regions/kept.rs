//! What a region has of a volume is what the log made of it: at one place of the log the region has the same records, be it as the home whose log ends there
//! or as the replica that it becomes. What was under way at the home and is committed only behind the transaction by which the region rejoins is in no log;
//! a copy of the volume that is made anew covers it up mostly, so it is looked for where it happens.
//!
//! Looked at are the leaders of regions that may answer for the volume as its home no more, and of those with a replica of it: the former at each change of
//! theirs, and the latter, too, when they have just become so; afterwards now and then.

use std::collections::BTreeMap;
use std::time::Duration;

use mooseng_master::master::Master;
use mooseng_replica::{ReplicaError, apply, read};
use mooseng_schema::log::LogPosition;
use mooseng_store::{Read, Store, Transaction};
use mooseng_wire::VolumeId;

use crate::watch::Watch;

/// Bytes that are read at a time.
const PAGE_BYTES: usize = 1 << 20;
/// So long a replica is looked at at each change.
const CLOSELY: Duration = Duration::from_millis(300);
/// And then so often.
const EVERY: Duration = Duration::from_millis(500);
/// Places of a region that are remembered of a volume.
const PLACES_MAX: usize = 1_024;

/// What a master had when it was looked at last.
#[derive(Clone, Copy)]
struct Looked {
    version: u64,
    at: Duration,
    /// Since when it is seen with a replica.
    replica_since: Option<Duration>,
}

/// A hash over a volume's records at a place of its log.
struct Found {
    place: LogPosition,
    is_replica: bool,
    digest: u32,
}

/// What regions had.
pub struct Kept {
    volumes: Vec<VolumeId>,
    looked: BTreeMap<(String, VolumeId), Looked>,
    /// Of each region and volume: the digest at a place, and which master was the first to have it.
    had: BTreeMap<(String, VolumeId), BTreeMap<LogPosition, (u32, String)>>,
}

/// None where nothing is logged, or what is there isn't as it was at one place.
async fn find(master: &Master, volume: VolumeId) -> Result<Option<Found>, ReplicaError> {
    let tx = master.store.begin();
    tx.set_read_version(master.store.applied_version());
    let (place, is_replica) = match apply::state(&tx, volume, Read::Snapshot).await? {
        Some(record) if record.copied_before.is_some() || record.undoing => return Ok(None),
        Some(record) => (record.position(), true),
        None if read::logged(&tx, volume).await?.is_some() => (read::newest(&tx, volume).await?, false),
        None => return Ok(None),
    };
    // What came before the first entry has no place.
    if place == LogPosition::default() {
        return Ok(None);
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut from = None;
    loop {
        let (pairs, next) = read::records(&tx, volume, from, PAGE_BYTES).await?;
        for (key, value) in &pairs {
            hasher.update(&(key.len() as u64).to_be_bytes());
            hasher.update(key);
            hasher.update(&(value.len() as u64).to_be_bytes());
            hasher.update(value);
        }
        from = next;
        if from.is_none() {
            return Ok(Some(Found { place, is_replica, digest: hasher.finalize() }));
        }
    }
}

impl Kept {
    /// Of these volumes.
    pub fn new(volumes: Vec<VolumeId>) -> Self {
        Self { volumes, looked: BTreeMap::new(), had: BTreeMap::new() }
    }

    /// Looks at a region's masters, each millisecond.
    pub fn check(&mut self, region: &str, watch: &Watch, now: Duration) -> Result<(), String> {
        let mut wrong = Ok(());
        watch.each_master(|name, master| {
            for volume in self.volumes.clone() {
                if wrong.is_ok() {
                    wrong = self.look((region, name), master, volume, now);
                }
            }
        });
        wrong
    }

    fn look(
        &mut self,
        (region, name): (&str, &str),
        master: &Master,
        volume: VolumeId,
        now: Duration,
    ) -> Result<(), String> {
        let looker = (name.to_owned(), volume);
        let leads = master.raft.leadership().borrow().leading.is_some();
        let answers = master.global.as_ref().is_none_or(|global| global.may_change(volume).is_some());
        if !leads || answers {
            self.looked.remove(&looker);
            return Ok(());
        }
        let version = master.store.applied_version().0;
        let before = self.looked.get(&looker).copied();
        let is_due = before.is_none_or(|before| {
            let closely = before.replica_since.is_none_or(|since| now < since + CLOSELY);
            before.version != version && (closely || now >= before.at + EVERY)
        });
        if !is_due {
            return Ok(());
        }
        // A disk that fails says nothing of what is there.
        let found = futures::executor::block_on(find(master, volume)).ok().flatten();
        let is_replica = found.as_ref().is_some_and(|found| found.is_replica);
        let since = before.and_then(|before| before.replica_since).unwrap_or(now);
        let looked = Looked { version, at: now, replica_since: is_replica.then_some(since) };
        self.looked.insert(looker, looked);
        let Some(Found { place, is_replica, digest }) = found else { return Ok(()) };
        let had = self.had.entry((region.to_owned(), volume)).or_default();
        let (first, other) = had.entry(place).or_insert_with(|| (digest, name.to_owned())).clone();
        while had.len() > PLACES_MAX {
            had.pop_first();
        }
        if first == digest {
            return Ok(());
        }
        let what = if is_replica { "a replica" } else { "a home that answers no more" };
        Err(format!(
            "{name}, {what} of volume {volume}, has other records at {place} of its log than {other} had: something has changed them that isn't in the log"
        ))
    }
}
