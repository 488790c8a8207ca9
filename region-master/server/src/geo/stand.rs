//! How this region stands with the volume when its home is lost, and how homes follow each other.
//!
//! ```text
//!  epoch closed:  replica's leader: refuses that epoch, durably, and says how far it is   (refuse_when_closed)
//!                 home's leader, if it is there: closes its own log, and says likewise    (close)
//!  next opened:   here -> undo beyond the cut, take_over, then it serves      elsewhere -> a home of before becomes a replica (rejoin)
//! ```
//! The leader of the global group decides ([`crate::global`]).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mooseng_embedded::Seal;
use mooseng_global::failover::Standing;
use mooseng_namespace::OpError;
use mooseng_ports::plant::{self, Plant};
use mooseng_replica::{ReplicaError, apply, logged_ranges, turn};
use mooseng_schema::ids::{self as id_records, IdKind, IdsUptoRecord};
use mooseng_schema::log::{self, LogPosition, ReplicaRecord};
use mooseng_schema::loss::LossRecord;
use mooseng_schema::{Record, number};
use mooseng_store::{RangeLimit, Read, Store, StoreError, Transaction};
use mooseng_transport::call_error;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::{Epoch, VolumeId};
use tokio::time::Instant;

use super::receive::{Change, change};
use super::{Whereabouts, failed, losses, pause, place_of, receive};
use crate::errors::record_failed;
use crate::ids;
use crate::master::Master;
use crate::records::RecordFailure;

/// After a failure.
const AGAIN: Duration = Duration::from_millis(200);
/// Tries of one transaction.
const TRIES: u32 = 20;
/// Ids that a home is given at a time for its epoch: 65,536 homes use them up.
const IDS: u64 = 1 << 32;
/// How long the global group may take to give them.
const IDS_WITHIN: Duration = Duration::from_secs(10);
/// How often a region says how far it is.
const SAY_EVERY: Duration = Duration::from_millis(500);

/// As long as it lives, nothing but the volume's log changes the volume's records here: what was under way while this region was the home, be it a session's,
/// house-keeping's or an administrator's, and comes to its commit only now, is refused. Behind the transaction by which the region rejoins it would be in
/// no log, and the replica would differ from its home. Each transaction that replays, copies or undoes moves the replica's place, and passes.
pub struct KeptToTheLog<'a>(&'a Master, VolumeId);

impl<'a> KeptToTheLog<'a> {
    /// From now on.
    pub fn put_on(master: &'a Master, volume: VolumeId) -> Self {
        if !plant::is(Plant::CommitEpochUnchecked) {
            let pass = log::replica_key(volume).into();
            master.store.seal(Seal { ranges: logged_ranges(volume).into(), pass });
        }
        Self(master, volume)
    }
}

impl Drop for KeptToTheLog<'_> {
    fn drop(&mut self) {
        self.0.store.unseal(&log::replica_key(self.1));
    }
}

/// Says how far a replica is, and refuses epochs that are closed, as long as this is one.
pub async fn refuse_when_closed(master: &Arc<Master>, volume: VolumeId) {
    let (Some(global), Some(mut cluster)) = (&master.global, master.geo.cluster.clone()) else { return };
    loop {
        // That an epoch is open says that the one before is closed, should that have been missed.
        let closed = cluster.borrow_and_update().volumes.get(&volume).map(|volume| match volume.open {
            true => Epoch(volume.epoch.0.saturating_sub(1)),
            false => volume.epoch,
        });
        if let Some(record) = master.geo.replica(volume).record {
            let whole = record.copied_before.is_none();
            let refused = match closed.filter(|epoch| whole && record.refuses < epoch.0) {
                None => Ok(record),
                Some(epoch) => {
                    let seat = master.geo.seat(volume);
                    let _applying = seat.applying.lock().await;
                    change(master, volume, Change::Refuse(epoch)).await
                }
            };
            match refused {
                Ok(record) => {
                    let known = cluster.borrow().volumes.get(&volume).cloned();
                    match known.and_then(|known| Standing::of_replica(&record, &known)) {
                        Some(standing) => global.stands_here(volume, standing),
                        None => global.stands_no_more(volume),
                    }
                }
                Err(error) => {
                    tracing::info!(error = %error.message, "a closed epoch can't be refused yet; trying on");
                    tokio::time::sleep(pause(AGAIN)).await;
                    continue;
                }
            }
        }
        tokio::select! {
            changed = cluster.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(SAY_EVERY) => {}
        }
    }
}

/// The home's epoch is closed: it says how far its log is, from which it takes nothing back and to which nothing is added that is acknowledged. It says so
/// again and again: this master forgets it while the region's lease of leadership lapses, and who leads the global group next hasn't heard it.
pub async fn close(master: &Master, volume: VolumeId, epoch: Epoch) {
    let Some(global) = &master.global else { return std::future::pending().await };
    let at = loop {
        match commit(master, Turn::Close(volume, epoch)).await {
            Ok(Turned::At(at)) => break at,
            Ok(Turned::Done(_)) => {}
            // No other region ever had it.
            Err(ReplicaError::NotLogged) => return std::future::pending().await,
            Err(error) => tracing::info!(%error, "the closed epoch can't be ended here yet; trying on"),
        }
        tokio::time::sleep(pause(AGAIN)).await;
    };
    loop {
        global.stands_here(volume, Standing { refuses: epoch, complete: at, newest: at });
        tokio::time::sleep(SAY_EVERY).await;
    }
}

/// This region is the home from now on, under that epoch: before it serves. Answers whether it has just become so because the lease of the home before
/// ran out, and with it those of all its sessions.
pub async fn take_over(master: &Master, volume: VolumeId, epoch: Epoch) -> Result<bool, CallError> {
    let view = master.geo.view();
    let known = view.as_ref().and_then(|view| view.volumes.get(&volume)).filter(|v| v.epoch == epoch);
    let (cut, lost_home) = known.map(|v| (v.cut, v.lost_home.clone())).unwrap_or_default();
    let mut loss = None;
    if let Some(cut) = cut {
        let seat = master.geo.seat(volume);
        let _applying = seat.applying.lock().await;
        match undo(master, volume, cut).await {
            Ok(()) => {
                if let Some(lost_home) = lost_home {
                    let of_it = losses::of_failover(master, volume, epoch, cut, lost_home).await;
                    loss = Some(of_it.map_err(|e| failed(master, &e))?);
                }
            }
            // It is the home already.
            Err(ReplicaError::NotLogged) => {}
            Err(error) => return Err(failed(master, &error)),
        }
        note_salvage(master, volume).await?;
    }
    // Where a home was given up, it may have heard of that while its sessions went on.
    let ran_out = known
        .is_some_and(|known| known.automatic && known.lost_home.is_some() && known.forced_home.is_none());
    let begins = match commit(master, Turn::TakeOver(volume, epoch, cut, loss.as_ref())).await {
        Ok(Turned::Done(begins)) => begins,
        Ok(Turned::At(_)) => false,
        Err(error) => return Err(failed(master, &error)),
    };
    if begins {
        tracing::info!(epoch = epoch.0, ?cut, "this region is the volume's home from now on");
    }
    // What this region put aside as an earlier home: the home in between may have had that in the ledger behind the cut alone.
    let archives = losses::archives(&master.store.begin(), volume).await.map_err(|e| failed(master, &e))?;
    let own = losses::told(&archives, usize::MAX);
    losses::name(master, volume, epoch, &master.config.region, &own, true)
        .await
        .map_err(|trouble| call_error(ErrorCode::Unavailable, trouble))?;
    // Each may take a round trip to another region, or two.
    tokio::try_join!(
        take_ids(master, volume, IdKind::Inode, epoch),
        take_ids(master, volume, IdKind::Chunk, epoch),
        take_ids(master, volume, IdKind::Session, epoch)
    )?;
    Ok(begins && ran_out)
}

/// Where this region was the home of an epoch before, it is a replica from now on.
pub async fn rejoin(master: &Master, volume: VolumeId, epoch: Epoch) -> Result<(), CallError> {
    match commit(master, Turn::Rejoin(volume, epoch)).await {
        Ok(Turned::Done(true)) => {
            tracing::info!("this region was the volume's home before: it is a replica now")
        }
        Ok(_) => {}
        Err(error) => return Err(failed(master, &error)),
    }
    note_salvage(master, volume).await
}

/// Undoes what the replica has of the log beyond a place. Only while `applying` is held.
async fn undo(master: &Master, volume: VolumeId, cut: LogPosition) -> Result<(), ReplicaError> {
    let record = apply::state(&master.store.begin(), volume, Read::Snapshot).await?;
    if record.is_some_and(|record| record.position() > cut && !record.undoing) {
        losses::archive(master, volume, cut, false).await?;
    }
    let mut undone = false;
    master.geo.seat(volume).near.end();
    loop {
        let more = match commit(master, Turn::Undo(volume, cut)).await? {
            Turned::Done(more) => more,
            Turned::At(_) => false,
        };
        undone |= more;
        // What is known of it in memory is of before, and what was lacking is looked for anew.
        let record = apply::state(&master.store.begin(), volume, Read::Snapshot).await?;
        *super::lock(&master.geo.seat(volume).needs) = None;
        master.geo.note_replica(volume, |replica| replica.record = record);
        // Whoever came between was promised what isn't any more.
        if undone {
            master.geo.seat(volume).near.end();
        }
        if !more {
            if undone {
                tracing::warn!(%cut, "what this region had of the volume's log beyond the cut is undone, and put aside");
            }
            return Ok(());
        }
    }
}

/// Goes on with what was being undone when this region was taken out of the volume's.
pub(super) async fn end_undo(master: &Master, volume: VolumeId) -> Result<(), CallError> {
    let seat = master.geo.seat(volume);
    let _applying = seat.applying.lock().await;
    while let Turned::Done(true) =
        commit(master, Turn::EndUndo(volume)).await.map_err(|e| failed(master, &e))?
    {}
    master.geo.note_replica(volume, |replica| replica.record = None);
    Ok(())
}

/// Looks whether anything that was cut off is kept here.
pub(super) async fn note_salvage(master: &Master, volume: VolumeId) -> Result<(), CallError> {
    let one = RangeLimit { pairs_max: 1, ..RangeLimit::default() };
    let found = master.store.begin().get_range(log::salvage_range(volume), one, Read::Snapshot).await;
    let found = found.map_err(|e| failed(master, &ReplicaError::Store(e)))?;
    let seat = master.geo.seat(volume);
    seat.salvaged.store(!found.pairs.is_empty(), Ordering::Release);
    let archives = losses::archives(&master.store.begin(), volume).await.map_err(|e| failed(master, &e))?;
    *super::lock(&seat.put_aside) = losses::told(&archives, losses::TOLD_MAX);
    Ok(())
}

/// What a home says of a replica whose place isn't one of its log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Differs {
    /// The replica had said that it is there; homes of earlier releases don't tell.
    pub was_at: Option<LogPosition>,
    /// The last place that both have, as far as the home can tell.
    pub common: LogPosition,
    /// The home's log has all entries behind this place.
    pub trimmed: LogPosition,
    /// The home's epoch.
    pub epoch: Epoch,
}

/// What this replica has of the log beyond a place is of no other region's: it is put aside. The replica goes back to that place where it can, else the
/// volume is copied anew.
pub(super) async fn begin_anew(master: &Master, volume: VolumeId, told: Differs) -> Result<(), CallError> {
    let seat = master.geo.seat(volume);
    let _applying = seat.applying.lock().await;
    // Another home may have come meanwhile.
    receive::is_current(master, volume, told.epoch)?;
    // What was said of another place comes too late.
    let record = receive::record(master, volume).await?;
    if told.was_at.is_some_and(|was| was != record.position()) {
        return Ok(());
    }
    if put_own_aside(master, volume, record, told).await? {
        return Ok(());
    }
    if let Some(global) = &master.global {
        global.stands_no_more(volume);
    }
    change(master, volume, Change::BeginAnew).await.map(drop)
}

/// The same in a region that isn't to have the volume any more: what follows on the archive is up to the caller. Answers whether the replica has gone back to
/// the place that both have; otherwise it is left without what it has put aside.
pub(super) async fn put_aside(master: &Master, volume: VolumeId, told: Differs) -> Result<bool, CallError> {
    let seat = master.geo.seat(volume);
    let _applying = seat.applying.lock().await;
    let record = receive::record(master, volume).await?;
    put_own_aside(master, volume, record, told).await
}

/// Only while `applying` is held.
async fn put_own_aside(
    master: &Master,
    volume: VolumeId,
    record: ReplicaRecord,
    Differs { was_at, common, trimmed, epoch: from }: Differs,
) -> Result<bool, CallError> {
    // Whatever is here of an epoch its home has sent, and had committed before. A home that doesn't know it, though its log reaches back so far, has lost
    // it, and this may be the only copy.
    let at = record.position();
    // Homes of earlier releases, which don't tell either what they answer to, don't know at first up to where their log is trimmed.
    let knows = was_at.is_some() || trimmed > LogPosition::default();
    if record.copied_before.is_none() && at.epoch == from && at >= trimmed && knows {
        // It goes on, and may come to a place of the same name, behind which this region mustn't follow.
        change(master, volume, Change::Refuse(from)).await?;
        let message = format!(
            "the home says that its log doesn't have {at}, which it sent in this same epoch: it has lost what it had. The replica here stays as it is; give the home up for this region (`mooseng volume move-home {volume} --to {} --force`)",
            master.config.region
        );
        tracing::error!(%at, %common, %trimmed, volume = volume.0, "{message}");
        return Err(call_error(ErrorCode::Internal, message));
    }
    // This region may be about to follow that home: what it has is what it said that it has.
    if from.0 <= record.refuses {
        return Err(failed(master, &ReplicaError::Refused(record.refuses)));
    }
    let can_undo = record.copied_before.is_none() && record.complete() > LogPosition::default();
    if can_undo && record.complete() <= common && common < record.position() {
        match undo(master, volume, common).await {
            Ok(()) => return note_salvage(master, volume).await.map(|()| true),
            // The place is none of the log here.
            Err(ReplicaError::Gap { .. } | ReplicaError::NotUndoable { .. }) => {}
            Err(error) => return Err(failed(master, &error)),
        }
    }
    tracing::warn!(
        at = %record.position(),
        %common,
        "what this region has of the volume's log isn't what its home has: it is put aside, and none of the rest is kept"
    );
    losses::archive(master, volume, common, true).await.map_err(|e| failed(master, &e))?;
    loop {
        match commit(master, Turn::Salvage(volume, common)).await {
            Ok(Turned::Done(true)) => {}
            Ok(_) => break,
            Err(error) => return Err(failed(master, &error)),
        }
    }
    note_salvage(master, volume).await.map(|()| false)
}

/// Ids of a kind under a new epoch are beyond all that any home before can have given.
async fn take_ids(master: &Master, volume: VolumeId, kind: IdKind, epoch: Epoch) -> Result<(), CallError> {
    let Some(global) = &master.global else { return Ok(()) };
    let read = ids_of(&master.store.begin(), volume, kind, Read::Snapshot).await;
    let (upto, next) = read.map_err(|e| failed(master, &e))?;
    if upto.is_some_and(|upto| upto.epoch == epoch.0) {
        return Ok(());
    }
    let deadline = Instant::now() + IDS_WITHIN;
    let range = global.next_ids(kind, volume, epoch, (IDS, next), deadline).await?;
    commit(master, Turn::Ids(volume, kind, epoch, range)).await.map_err(|e| failed(master, &e))?;
    Ok(())
}

/// Reserves ids of a volume. A home that has given all that it was given for its epoch is given more.
pub async fn reserve_ids(master: &Master, volume: VolumeId, kind: IdKind) -> Result<Range<u64>, CallError> {
    let line = master.raft.line();
    let reserved = match ids::reserve(&master.store, volume, kind, line).await {
        Err(RecordFailure(OpError::IdsUsedUp(end))) => {
            let (Some(global), Whereabouts::Here(epoch)) = (&master.global, place_of(master, volume)) else {
                return Err(record_failed(&RecordFailure(OpError::IdsUsedUp(end))));
            };
            // Homes of earlier releases gave ids beyond those of their epoch.
            let read = ids_of(&master.store.begin(), volume, kind, Read::Snapshot).await;
            let (_, next) = read.map_err(|e| failed(master, &e))?;
            let least = end.max(next).max(ids::least(line));
            let range =
                global.next_ids(kind, volume, epoch, (IDS, least), Instant::now() + IDS_WITHIN).await?;
            tracing::info!(volume = volume.0, ?kind, ?range, "the home is given more ids");
            let more = Turn::MoreIds(volume, kind, end, epoch, range);
            commit(master, more).await.map_err(|e| failed(master, &e))?;
            ids::reserve(&master.store, volume, kind, line).await
        }
        reserved => reserved,
    };
    reserved.map_err(|e| record_failed(&e))
}

fn give(tx: &impl Transaction, volume: VolumeId, kind: IdKind, epoch: Epoch, range: &Range<u64>) {
    tx.set(&id_records::key(kind, volume), &number::encode(range.start));
    let upto = IdsUptoRecord { epoch: epoch.0, end: range.end };
    tx.set(&id_records::upto_key(kind, volume), &upto.to_value());
}

async fn ids_of(
    tx: &impl Transaction,
    volume: VolumeId,
    kind: IdKind,
    read: Read,
) -> Result<(Option<IdsUptoRecord>, u64), ReplicaError> {
    let upto = tx.get(&id_records::upto_key(kind, volume), read).await?;
    let next = tx.get(&id_records::key(kind, volume), read).await?;
    let upto = upto.map(|value| IdsUptoRecord::from_value(&value)).transpose()?;
    Ok((upto, number::decode(next.as_ref())?.max(1)))
}

/// A transaction of this file. Each may run again after it was committed.
#[derive(Clone)]
enum Turn<'a> {
    Close(VolumeId, Epoch),
    TakeOver(VolumeId, Epoch, Option<LogPosition>, Option<&'a LossRecord>),
    Rejoin(VolumeId, Epoch),
    Undo(VolumeId, LogPosition),
    EndUndo(VolumeId),
    Salvage(VolumeId, LogPosition),
    Ids(VolumeId, IdKind, Epoch, Range<u64>),
    /// Where those up to that one are still all that there are.
    MoreIds(VolumeId, IdKind, u64, Epoch, Range<u64>),
}

enum Turned {
    Done(bool),
    At(LogPosition),
}

impl Turn<'_> {
    async fn make(&self, tx: &mooseng_embedded::EmbeddedTransaction) -> Result<Turned, ReplicaError> {
        Ok(match self {
            Self::Close(volume, epoch) => Turned::At(turn::close(tx, *volume, *epoch).await?),
            Self::TakeOver(volume, epoch, cut, loss) => {
                Turned::Done(turn::take_over(tx, *volume, *epoch, *cut, *loss).await?)
            }
            Self::Rejoin(volume, epoch) => Turned::Done(turn::rejoin(tx, *volume, *epoch).await?),
            Self::Undo(volume, cut) => Turned::Done(turn::undo(tx, *volume, *cut).await?),
            Self::EndUndo(volume) => Turned::Done(turn::end_undo(tx, *volume).await?),
            Self::Salvage(volume, common) => Turned::Done(turn::salvage(tx, *volume, *common).await?),
            Self::MoreIds(volume, kind, used_up, epoch, range) => {
                let (upto, _) = ids_of(tx, *volume, *kind, Read::Conflicting).await?;
                let is_so = upto == Some(IdsUptoRecord { epoch: epoch.0, end: *used_up });
                if is_so {
                    give(tx, *volume, *kind, *epoch, range);
                }
                Turned::Done(is_so)
            }
            Self::Ids(volume, kind, epoch, range) => {
                give(tx, *volume, *kind, *epoch, range);
                Turned::Done(true)
            }
        })
    }
}

async fn commit(master: &Master, turn: Turn<'_>) -> Result<Turned, ReplicaError> {
    let mut tries = 0;
    loop {
        let tx = master.store.begin();
        let error = match turn.make(&tx).await {
            Ok(turned) => match tx.commit().await {
                Ok(_) => return Ok(turned),
                Err(error) => ReplicaError::Store(error),
            },
            Err(error) => error,
        };
        tries += 1;
        let again =
            matches!(&error, ReplicaError::Store(e) if e.is_retryable() || *e == StoreError::CommitUnknown);
        if !again || tries >= TRIES {
            return Err(error);
        }
        tokio::time::sleep(pause(Duration::from_millis(1 << tries.min(6)))).await;
    }
}
