//! What a master keeps in memory about one volume that several regions have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mooseng_ports::clock::BootTime;
use mooseng_region::age::Age;
use mooseng_region::lag::Tail;
use mooseng_region::near::Totals;
use mooseng_replica::needs::Needs;
use mooseng_schema::log::{LogPosition, ReplicaRecord};
use mooseng_wire::geo::PutAside;
use tokio::sync::watch;

use super::near_promises::NearPromises;
use super::written::Written;
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
    /// Why it wasn't reached at last; empty where it was.
    pub trouble: String,
}

impl Shipped {
    /// Where it is complete; none while it copies the volume, or that isn't known.
    pub fn complete_at(&self) -> Option<LogPosition> {
        self.complete.filter(|_| !self.copying)
    }
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
    /// How old what it has is.
    pub age: Ages,
}

/// How old what a replica has is at most, by what its home has said: what it shows, and what it has the data of, too, which is what it would begin with as the home.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    shown: Age<LogPosition>,
    complete: Age<LogPosition>,
}

impl Ages {
    /// The home has said that this was its newest place.
    pub fn heard(&mut self, newest: LogPosition, now: BootTime) {
        self.shown.heard(newest, now);
        self.complete.heard(newest, now);
    }

    /// The replica is there.
    pub fn reached(&mut self, at: LogPosition) {
        self.shown.reached(at);
    }

    /// And here with the data.
    fn completed(&mut self, at: LogPosition) {
        self.complete.reached(at);
    }

    /// How long ago what is shown was the home's own, as [`Age::at_most`] says.
    pub fn at_most(&self, now: BootTime) -> Option<Duration> {
        self.shown.at_most(now)
    }

    /// The same of what is here with its data.
    pub fn complete_at_most(&self, now: BootTime) -> Option<Duration> {
        self.complete.at_most(now)
    }
}

/// What this leader had heard of a volume's home while that was elsewhere: this region may be the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HeardBefore {
    /// The home's newest place.
    pub newest: LogPosition,
    /// Where the replica was complete, and when that was all that the home had.
    pub complete: Option<(LogPosition, BootTime)>,
}

impl Replica {
    fn heard_before(&self) -> HeardBefore {
        HeardBefore { newest: self.newest, complete: self.complete().zip(self.age.complete.as_of()) }
    }

    /// Where it can be read at; none while it is copied.
    pub fn readable(&self) -> Option<LogPosition> {
        let whole = |record: &&ReplicaRecord| record.copied_before.is_none() && !record.undoing;
        self.record.as_ref().filter(whole).map(ReplicaRecord::position)
    }

    /// Up to where it has the data that entries name, too; none while it is copied.
    pub fn complete(&self) -> Option<LogPosition> {
        let whole = |record: &&ReplicaRecord| record.copied_before.is_none();
        self.record.as_ref().filter(whole).map(ReplicaRecord::complete)
    }

    /// Something of it has changed.
    fn noted(&mut self) {
        if let Some(complete) = self.complete() {
            self.age.completed(complete);
        }
    }
}

/// One volume's part of [`super::Geo`], whatever this region is to the volume.
pub(super) struct Seat {
    /// Of a home: what is known of the regions that have the volume.
    pub shipped: Mutex<BTreeMap<String, Shipped>>,
    /// Of a home that other regions follow: when what its log holds was written.
    pub written: Mutex<Written>,
    pub replica: Mutex<Replica>,
    /// What was heard in the part of before: of a home that has just begun, of the one before.
    pub heard_before: Mutex<HeardBefore>,
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
            written: Mutex::default(),
            replica: Mutex::default(),
            heard_before: Mutex::default(),
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
        *lock(&self.written) = Written::default();
        let replica = std::mem::take(&mut *lock(&self.replica));
        *lock(&self.heard_before) = replica.heard_before();
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
        {
            let mut replica = lock(&self.replica);
            section(&mut replica);
            replica.noted();
        }
        self.moved.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use mooseng_wire::Epoch;

    use super::*;

    #[test]
    fn a_replica_whose_bytes_lag_is_as_old_as_what_it_is_complete_at() {
        let seat = Seat::new(&Arc::default());
        let at = |version| LogPosition::new(Epoch(1), version);
        let time = |secs| BootTime::default().after(Duration::from_secs(secs));
        let hear = |newest, now, applied: u64, complete: u64| {
            let record = ReplicaRecord {
                epoch: 1,
                version: applied,
                complete_epoch: 1,
                complete_version: complete,
                ..ReplicaRecord::default()
            };
            seat.note_replica(|replica| {
                replica.age.heard(at(newest), time(now));
                replica.record = Some(record);
                replica.age.reached(at(applied));
            });
        };
        let ages = |now| {
            let replica = lock(&seat.replica).clone();
            (replica.age.at_most(time(now)), replica.age.complete_at_most(time(now)))
        };
        let secs = |secs| Some(Duration::from_secs(secs));
        hear(5, 1, 5, 3);
        assert_eq!(ages(2), (secs(1), None));
        hear(6, 3, 6, 5);
        assert_eq!(ages(4), (secs(1), secs(3)), "5 was the newest place when that was heard");
        hear(6, 7, 6, 6);
        assert_eq!(ages(7), (secs(0), secs(0)));
        // Whoever is the home then knows of what was heard in the part of before, and of nothing from before that.
        lock(&seat.replica).newest = at(8);
        seat.forget();
        let heard = HeardBefore { newest: at(8), complete: Some((at(6), time(7))) };
        assert_eq!(*lock(&seat.heard_before), heard);
        assert_eq!(lock(&seat.replica).newest, LogPosition::default());
        seat.forget();
        assert_eq!(*lock(&seat.heard_before), HeardBefore::default());
        let copied = ReplicaRecord { copied_before: Some(bytes::Bytes::new()), ..ReplicaRecord::default() };
        seat.note_replica(|replica| replica.record = Some(copied));
        assert_eq!(lock(&seat.replica).complete(), None);
    }
}
