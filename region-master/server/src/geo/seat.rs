//! What a master keeps in memory about one volume that several regions have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mooseng_ports::clock::BootTime;
use mooseng_region::age::Age;
use mooseng_region::lag::Tail;
use mooseng_region::near::Totals;
use mooseng_replica::needs::Needs;
use mooseng_schema::log::{LogPosition, ReplicaRecord};
use mooseng_wire::geo::PutAside;
use tokio::sync::watch;

use super::near_promises::NearPromises;
use super::{lock, moving, push};

/// What a home's leader knows of a region that has a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shipped {
    /// It is here at least, durably.
    pub at: Option<LogPosition>,
    /// And the data that entries up to this place name is there, too.
    pub complete: Option<LogPosition>,
    /// When it was heard of last.
    pub heard: Option<BootTime>,
    /// It copies the volume still.
    pub copying: bool,
    /// Since when something waits for its acknowledgement; none while it has everything.
    pub behind_since: Option<BootTime>,
    /// Why it wasn't reached at last; empty where it was.
    pub trouble: String,
}

/// What a replica's leader knows of its volume.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// As it is on record; none before that was read.
    pub record: Option<ReplicaRecord>,
    /// The home's newest place, as far as it was told.
    pub newest: LogPosition,
    /// When the home was heard last.
    pub heard: Option<BootTime>,
    /// How old what it shows is.
    pub age: Age<LogPosition>,
}

impl Replica {
    /// Where it can be read at; none while it is copied.
    pub fn readable(&self) -> Option<LogPosition> {
        let whole = |record: &&ReplicaRecord| record.copied_before.is_none() && !record.undoing;
        self.record.as_ref().filter(whole).map(ReplicaRecord::position)
    }
}

/// One volume's part of [`super::Geo`], whatever this region is to the volume.
pub(super) struct Seat {
    /// Of a home: what is known of the regions that have the volume.
    pub shipped: Mutex<BTreeMap<String, Shipped>>,
    pub replica: Mutex<Replica>,
    /// Of a home: the newest place before this leader, and up to where the log was trimmed; none before that was looked up.
    pub log: Mutex<Option<(LogPosition, LogPosition)>>,
    /// Changes with the replica's place.
    pub moved: watch::Sender<u64>,
    /// Who changes the replica: one at a time, in the order of asking.
    pub applying: tokio::sync::Mutex<()>,
    /// Of a home: who asks that the volume fail over by itself, until it is known what came of it.
    pub setting: tokio::sync::Mutex<()>,
    /// Something that was cut off is kept here, and with it whatever chunkservers have that no record names.
    pub salvaged: AtomicBool,
    /// What the home is told of it.
    pub put_aside: Mutex<Vec<PutAside>>,
    /// Of a replica: what its log names and isn't here; none until that was looked at.
    pub needs: Mutex<Option<Needs>>,
    /// Changes with it.
    pub needed: watch::Sender<u64>,
    /// Of a home: where bytes are sent as they are appended.
    pub pushing: Mutex<push::Pushing>,
    /// Changes with what regions acknowledge.
    pub acknowledged: watch::Sender<u64>,
    /// Of a home: regions that are to be in the sync set. They are waited for like its members. None while what an earlier account of the set proposed may still be
    /// agreed on: all regions that have the volume are waited for then.
    pub joining: Mutex<Option<BTreeSet<String>>>,
    /// Of a replica: what readers of this region are promised.
    pub near: NearPromises,
    /// Of a replica: up to where the sync set has everything, as its home has told.
    pub told_synced: Mutex<LogPosition>,
    /// The home answers nothing, for it is about to be moved: it isn't known here who is the home.
    pub sealed: watch::Sender<bool>,
    /// Since when, the last time.
    pub stopped: Mutex<Option<tokio::time::Instant>>,
    /// Regions that have something of the volume and aren't to have it any more, with what they say of that.
    pub letting_go: Mutex<BTreeMap<String, String>>,
    /// Of the home of a `region` volume: how old what no other region has is.
    pub tail: watch::Sender<Tail>,
    /// Where moves are asked for, while this master leads the home.
    pub moves: Mutex<Option<tokio::sync::mpsc::Sender<moving::Ordered>>>,
}

impl Seat {
    /// Nothing is known. What is promised of the volume to readers of this region counts with what is promised of others.
    pub fn new(near_totals: &Arc<Totals>) -> Self {
        Self {
            near: NearPromises::new(near_totals.clone()),
            shipped: Mutex::default(),
            replica: Mutex::default(),
            log: Mutex::default(),
            moved: watch::channel(0).0,
            applying: tokio::sync::Mutex::default(),
            setting: tokio::sync::Mutex::default(),
            salvaged: false.into(),
            put_aside: Mutex::default(),
            needs: Mutex::default(),
            needed: watch::channel(0).0,
            pushing: Mutex::default(),
            acknowledged: watch::channel(0).0,
            joining: Mutex::default(),
            told_synced: Mutex::default(),
            sealed: watch::channel(false).0,
            stopped: Mutex::default(),
            letting_go: Mutex::default(),
            tail: watch::channel(Tail::default()).0,
            moves: Mutex::default(),
        }
    }

    /// A new leadership, or another part in the volume: what was known may be wrong.
    pub fn forget(&self) {
        lock(&self.shipped).clear();
        *lock(&self.replica) = Replica::default();
        *lock(&self.log) = None;
        *lock(&self.joining) = None;
        *lock(&self.pushing) = push::Pushing::default();
        *lock(&self.needs) = None;
        *lock(&self.told_synced) = LogPosition::default();
    }

    pub fn has_salvage(&self) -> bool {
        self.salvaged.load(Ordering::Acquire)
    }

    pub fn note_shipped(&self, region: &str, section: impl FnOnce(&mut Shipped)) {
        section(lock(&self.shipped).entry(region.to_owned()).or_default());
        self.acknowledged.send_modify(|count| *count += 1);
    }

    pub fn note_replica(&self, section: impl FnOnce(&mut Replica)) {
        section(&mut lock(&self.replica));
        self.moved.send_modify(|count| *count += 1);
    }
}
