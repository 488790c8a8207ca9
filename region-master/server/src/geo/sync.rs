//! What waits for the sync set of a `geo` volume, and who is in the set (the decisions are [`mooseng_region::sync_set`]'s).
//!
//! fsync waits for all that its session had changed; any other answer waits for what others had changed of what it tells. So nobody but who changed it
//! hears of anything that a failover might take back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mooseng_global::{Durability, View, Volume};
use mooseng_ports::plant::{self, Plant};
use mooseng_region::sync_set::{self, Facts, Seen, SyncSet};
use mooseng_replica::Entry;
use mooseng_schema::log::LogPosition;
use mooseng_store::Store;
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::fact::Fact;
use mooseng_wire::global::change::Change as Asked;
use mooseng_wire::global::{Regions, SetVolume, StayHome};
use mooseng_wire::{Epoch, SessionId, VolumeId};
use tokio::time::Instant;

use super::{Whereabouts, leased, lock, losses, pause, place_of};
use crate::master::Master;

/// How often the set is looked at, where nothing happens.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long the global group may take for a change of the set.
const CHANGE_WITHIN: Duration = Duration::from_secs(5);
/// A leader that begins looks up where the log is.
const BEGINNING: Duration = Duration::from_millis(10);
/// After a failure.
const AGAIN: Duration = Duration::from_millis(300);

/// The volume, if it is a `geo` one.
fn geo_volume(view: Option<&View>, volume: VolumeId) -> Option<&Volume> {
    view?.volumes.get(&volume).filter(|known| known.durability == Durability::Geo)
}

/// Whether an earlier leader of the home here knew of more than this one does: that the volume is a `geo` one, and who might come into its sync set.
fn knows_less(master: &Master, view: Option<&View>, volume: VolumeId) -> bool {
    let (Some(view), Some(global)) = (view, &master.global) else { return false };
    let is_home = view.volumes.get(&volume).is_some_and(|known| known.home == master.config.region);
    is_home && global.set_was_known(volume, view.version + 1)
}

/// The other regions of a `geo` volume's sync set.
pub(super) fn others(master: &Master, volume: VolumeId) -> Vec<String> {
    let view = master.geo.view();
    let known = geo_volume(view.as_deref(), volume);
    let ours = &master.config.region;
    known.into_iter().flat_map(|known| &known.sync_set).filter(|region| *region != ours).cloned().collect()
}

/// The other regions of a `geo` volume that what is acknowledged waits for: those of its sync set, and those that may come into it.
pub(super) fn waited_for(master: &Master, volume: VolumeId) -> BTreeSet<String> {
    let view = master.geo.view();
    let Some(known) = geo_volume(view.as_deref(), volume) else { return BTreeSet::new() };
    let seat = master.geo.seat(volume);
    let joining = lock(&seat.joining);
    let members =
        sync_set::waited_for(&master.config.region, &known.sync_set, joining.as_ref(), &known.regions);
    members.into_iter().cloned().collect()
}

/// Whether a region is in the sync set of a `geo` volume.
pub(super) fn is_member(master: &Master, volume: VolumeId, region: &str) -> bool {
    geo_volume(master.geo.view().as_deref(), volume).is_some_and(|known| known.sync_set.contains(region))
}

/// Up to where the sync set has everything; none where nothing is to be waited for.
pub fn synced(master: &Master, volume: VolumeId) -> Option<LogPosition> {
    let view = master.geo.view();
    // Whatever the volume is as far as is known here: members of the set may count on it that nobody is answered without them.
    if knows_less(master, view.as_deref(), volume) {
        return Some(LogPosition::default());
    }
    let known = geo_volume(view.as_deref(), volume)?;
    let ours = &master.config.region;
    if known.home != *ours {
        return Some(synced_here(master, volume, known));
    }
    let seat = master.geo.seat(volume);
    let joining = lock(&seat.joining);
    let members = sync_set::waited_for(ours, &known.sync_set, joining.as_ref(), &known.regions);
    if members.is_empty() {
        return known.blocks_alone.then(LogPosition::default);
    }
    let shipped = lock(&seat.shipped);
    let complete = |region: &String| shipped.get(region).and_then(|known| known.complete);
    members.into_iter().map(|region| complete(region).unwrap_or_default()).min()
}

/// Whether answers may have to wait for other regions at all: then what they tell is to be looked at ([`admit`]).
pub fn holds_back(master: &Master, volume: VolumeId) -> bool {
    master.geo.cluster.is_some() && synced(master, volume).is_some()
}

/// In a replica's region: what the home has told, or, if the set is the home and this region, what is here.
fn synced_here(master: &Master, volume: VolumeId, known: &Volume) -> LogPosition {
    let told = *lock(&master.geo.seat(volume).told_synced);
    let ours = &master.config.region;
    let alone = known.sync_set.iter().all(|region| region == ours || *region == known.home);
    let here = master.geo.replica(volume).record.map(|record| record.complete());
    match here.filter(|_| alone && known.sync_set.contains(ours)) {
        Some(here) => told.max(here),
        None => told,
    }
}

/// The home has told up to where the sync set has everything.
pub(super) fn told(master: &Master, volume: VolumeId, synced: LogPosition) {
    let seat = master.geo.seat(volume);
    let mut told = lock(&seat.told_synced);
    *told = (*told).max(synced);
    drop(told);
    seat.acknowledged.send_modify(|count| *count += 1);
}

/// Whether a region that has heard of `told` is to hear how far the set is: where it can't know it by itself.
pub(super) fn is_news(master: &Master, volume: VolumeId, region: &str, told: Option<LogPosition>) -> bool {
    let view = master.geo.view();
    let Some(known) = geo_volume(view.as_deref(), volume) else { return false };
    let knows =
        known.sync_set.iter().all(|of| of == region || *of == known.home) && known.sync_set.contains(region);
    !knows && synced(master, volume) > told
}

/// Entries that are about to be replayed: what they change is held back, of a `geo` volume.
pub(super) fn note(master: &Master, volume: VolumeId, entries: &[Entry]) {
    master.geo.tail.unsynced(volume, |unsynced| {
        for entry in entries {
            match entry.changes() {
                Ok(changes) => unsynced.note(volume, entry.at, &changes),
                // It won't be replayed either.
                Err(error) => tracing::debug!(%error, "an entry can't be read"),
            }
        }
    });
}

/// Whether this is a `geo` volume may have changed, and how far its set is. What had changed up to `newest` may be anything, where it wasn't noted.
fn look(master: &Master, volume: VolumeId, newest: LogPosition) -> Option<LogPosition> {
    let (synced, on) = match synced(master, volume) {
        Some(synced) => (synced, true),
        None => (LogPosition::default(), false),
    };
    master.geo.tail.unsynced(volume, |unsynced| {
        unsynced.turn(on, newest);
        unsynced.synced(synced);
    });
    on.then_some(synced)
}

/// Waits until `session` may be told of these facts, which it hasn't changed alone.
pub async fn admit(
    master: &Master,
    volume: VolumeId,
    facts: &BTreeSet<Fact>,
    session: Option<SessionId>,
    deadline: Instant,
) -> Result<(), CallError> {
    if synced(master, volume).is_none() {
        look(master, volume, LogPosition::default());
        return Ok(());
    }
    let newest = newest(master, volume, deadline).await?;
    look(master, volume, newest);
    let held = master.geo.tail.unsynced(volume, |unsynced| unsynced.hold(facts, session));
    match held {
        Some(at) if !plant::is(Plant::HoldBackSkipped) => {
            master.metrics.held_back.inc();
            reached(master, volume, at, deadline).await
        }
        _ => Ok(()),
    }
}

/// Where the log is that this region writes, or replays, once that is known.
async fn newest(master: &Master, volume: VolumeId, deadline: Instant) -> Result<LogPosition, CallError> {
    loop {
        let known = match place_of(master, volume) {
            Whereabouts::Here(_) => master.geo.begun(volume).then(|| master.geo.newest(volume)),
            Whereabouts::Elsewhere => master.geo.replica(volume).record.map(|record| record.position()),
            Whereabouts::Closed(_) | Whereabouts::Nowhere => return Err(super::not_home(master, volume)),
        };
        if let Some(known) = known {
            return Ok(known);
        }
        if Instant::now() + BEGINNING >= deadline {
            let message =
                "this leader has just begun and doesn't know yet how far the volume's log is; try again";
            return Err(call_error(ErrorCode::Unavailable, message));
        }
        tokio::time::sleep(BEGINNING).await;
    }
}

/// Whether what a session had changed up to a place was taken back when the home was lost.
pub async fn is_lost(master: &Master, volume: VolumeId, changed: LogPosition) -> Result<bool, CallError> {
    let view = master.geo.view();
    let Some(known) = view.as_ref().and_then(|view| view.volumes.get(&volume)) else { return Ok(false) };
    if changed == LogPosition::default() || changed.epoch >= known.epoch {
        return Ok(false);
    }
    if changed.epoch.0 + 1 == known.epoch.0 {
        return Ok(known.cut.is_some_and(|cut| changed > cut));
    }
    // Of an epoch longer ago the ledger knows: the log may have been trimmed since.
    let ledger =
        losses::ledger(&master.store.begin(), volume).await.map_err(|error| super::failed(master, &error))?;
    Ok(ledger.iter().any(|(closed, loss)| *closed >= changed.epoch && changed > loss.cut()))
}

/// Waits until everything that was committed up to now is in the sync set.
pub async fn everything(master: &Master, volume: VolumeId, deadline: Instant) -> Result<(), CallError> {
    if synced(master, volume).is_none() || plant::is(Plant::GeoWaitSkipped) {
        return Ok(());
    }
    let newest = newest(master, volume, deadline).await?;
    reached(master, volume, newest, deadline).await
}

/// Waits until the sync set has everything up to a place.
async fn reached(
    master: &Master,
    volume: VolumeId,
    at: LogPosition,
    deadline: Instant,
) -> Result<(), CallError> {
    let mut acknowledged = master.geo.seat(volume).acknowledged.subscribe();
    let mut moved = master.geo.moved(volume);
    let mut cluster = master.geo.cluster.clone();
    let is = place_of(master, volume);
    loop {
        acknowledged.borrow_and_update();
        moved.borrow_and_update();
        if synced(master, volume).is_none_or(|synced| synced >= at) {
            return Ok(());
        }
        if place_of(master, volume) != is {
            return Err(super::not_home(master, volume));
        }
        let cluster_changed = async {
            match &mut cluster {
                Some(cluster) => drop(cluster.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = acknowledged.changed() => {}
            _ = moved.changed() => {}
            () = cluster_changed => {}
            () = tokio::time::sleep_until(deadline) => return Err(late(master, volume, at)),
            () = master.shutdown.cancelled() => return Err(master.not_leader()),
        }
    }
}

fn late(master: &Master, volume: VolumeId, at: LogPosition) -> CallError {
    let view = master.geo.view();
    let members = geo_volume(view.as_deref(), volume).map(|known| known.sync_set.clone()).unwrap_or_default();
    let shipped = master.geo.shipped(volume);
    let missing: Vec<&str> = members
        .iter()
        .filter(|region| **region != master.config.region)
        .filter(|region| shipped.get(*region).is_none_or(|known| known.complete < Some(at)))
        .map(String::as_str)
        .collect();
    let is_known = lock(&master.geo.seat(volume).joining).is_some();
    let message = match missing.as_slice() {
        _ if knows_less(master, view.as_deref(), volume) => "this master hasn't heard yet of all that the leader before it knew of the volume's sync set, and so not of whom to wait for"
            .to_owned(),
        [] if !is_known => "the regions haven't agreed yet that the volume's home, which has just begun, goes on with the sync set that there is"
            .to_owned(),
        [] => "the volume's home is alone in its sync set, and the volume is set to wait for another region"
            .to_owned(),
        missing => {
            format!("what was written isn't in {} yet, which the volume's sync set has", missing.join(", "))
        }
    };
    call_error(ErrorCode::Unavailable, format!("{message}; try again"))
}

/// Keeps a home's sync set: who stalls leaves it, and who has caught up comes into it.
///
/// What was proposed before this began - by an earlier leader, or by this one before a move of the home that came to nothing - may be agreed on still, with members
/// that nobody waits for by now. So all regions are waited for until the version of what is agreed on was counted up, after which none of it is taken.
///
/// A later leader may know of an earlier version, in which the volume isn't a `geo` one yet, or has fewer regions: it is told of this one beforehand
/// ([`leased`]).
pub(super) async fn keep(master: &Arc<Master>, volume: VolumeId, custody: u64, epoch: Epoch) {
    let mut decider = SyncSet::<LogPosition>::default();
    let mut acknowledged = master.geo.seat(volume).acknowledged.subscribe();
    let mut refused = String::new();
    let mut is_known = false;
    loop {
        acknowledged.borrow_and_update();
        let view = master.geo.view();
        let is_geo = |view: &View| {
            geo_volume(Some(view), volume).is_some_and(|known| known.epoch == epoch && known.open)
        };
        if !is_known && view.as_deref().is_some_and(is_geo) {
            let version = view.as_ref().map_or(0, |view| view.version);
            match begin(master, volume, epoch, version).await {
                Ok(()) => {
                    is_known = true;
                    lock(&master.geo.seat(volume).joining).get_or_insert_default();
                    master.geo.seat(volume).acknowledged.send_modify(|count| *count += 1);
                }
                Err(error) => {
                    tracing::info!(error = %error.message, "the volume's sync set can't be kept yet; trying on");
                    tokio::time::sleep(pause(AGAIN)).await;
                }
            }
            continue;
        }
        let known = geo_volume(view.as_deref(), volume).filter(|known| known.epoch == epoch && known.open);
        if let (Some(view), Some(known)) = (&view, known) {
            look(master, volume, master.geo.newest(volume));
            let regions = seen(master, volume, known);
            let facts = Facts {
                home: &known.home,
                agreed: &known.sync_set,
                regions: &regions,
                newest: master.geo.newest(volume),
                blocks_alone: known.blocks_alone,
            };
            let proposed = decider.step(master.clock.boot(), &facts);
            // Waited for from now on, before anything else is answered.
            *lock(&master.geo.seat(volume).joining) = Some(decider.joining().map(str::to_owned).collect());
            if let Some(proposed) = proposed {
                let (from, to) = (known.sync_set.clone(), proposed.clone());
                match propose(master, volume, (custody, epoch), view.version, proposed).await {
                    Ok(()) => {
                        refused.clear();
                        tracing::info!(?from, ?to, "the volume's sync set has changed");
                    }
                    Err(error) => {
                        if refused != error.message {
                            tracing::info!(?from, ?to, error = %error.message, "the volume's sync set couldn't be changed; trying on");
                        }
                        refused = error.message;
                        tokio::time::sleep(pause(AGAIN)).await;
                    }
                }
                continue;
            }
        } else {
            (decider, is_known) = (SyncSet::default(), false);
            *lock(&master.geo.seat(volume).joining) = None;
            look(master, volume, master.geo.newest(volume));
        }
        let _ = tokio::time::timeout(LOOK_EVERY, acknowledged.changed()).await;
    }
}

async fn begin(master: &Master, volume: VolumeId, epoch: Epoch, version: u64) -> Result<(), CallError> {
    leased::set_is_kept(master, volume, version).await?;
    count_up(master, volume, epoch).await
}

/// Counts the version up, and hears of it: whatever was proposed before at an earlier one, and isn't known to be agreed on, never is.
pub(super) async fn count_up(master: &Master, volume: VolumeId, epoch: Epoch) -> Result<(), CallError> {
    let Some(global) = &master.global else { return Ok(()) };
    let deadline = Instant::now() + CHANGE_WITHIN;
    let stay = StayHome { volume: volume.0.into(), epoch: epoch.0 };
    let changed = global.change(Asked::StayHome(stay), deadline).await?;
    let late = || call_error(ErrorCode::Unavailable, "this master hasn't heard yet of what it has asked for");
    super::agreed(master, changed.version, deadline).await.map(drop).ok_or_else(late)
}

/// What is known of the other regions that have a volume which is at home here.
pub(super) fn seen(master: &Master, volume: VolumeId, known: &Volume) -> BTreeMap<String, Seen<LogPosition>> {
    let shipped = master.geo.shipped(volume);
    let others = known.regions.iter().filter(|region| **region != known.home);
    let of = |region: &String| {
        let of = shipped.get(region);
        let complete = of.and_then(|of| of.complete).filter(|complete| *complete > LogPosition::default());
        (region.clone(), Seen { complete, heard: of.and_then(|of| of.heard) })
    };
    others.map(of).collect()
}

async fn propose(
    master: &Master,
    volume: VolumeId,
    (custody, epoch): (u64, Epoch),
    at_version: u64,
    set: BTreeSet<String>,
) -> Result<(), CallError> {
    let Some(global) = &master.global else { return Ok(()) };
    leased::set_is_kept(master, volume, at_version).await?;
    let change = SetVolume {
        volume: volume.0.into(),
        epoch: epoch.0,
        sync_set: Some(Regions { names: set.into_iter().collect() }),
        at_version: Some(at_version),
        // A later leader doesn't wait for those that this one proposes. The region renews its lease with one custody epoch, whatever its volumes' are.
        custody: Some(master.orders(custody)),
        ..SetVolume::default()
    };
    let deadline = Instant::now() + CHANGE_WITHIN;
    let changed = global.change(Asked::SetVolume(change), deadline).await?;
    // What was agreed on is known here before anything is decided by it.
    if let Some(mut cluster) = master.geo.cluster.clone() {
        let known = cluster.wait_for(|view| view.version >= changed.version);
        let _ = tokio::time::timeout_at(deadline, known).await;
    }
    Ok(())
}
