//! How a replica's leader takes the log in: in order, exactly once, with its place in the same transaction.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_embedded::EmbeddedTransaction;
use mooseng_replica::read::Page;
use mooseng_replica::{Entry, ReplicaError, apply, turn};
use mooseng_schema::log::{LogPosition, ReplicaRecord};
use mooseng_store::{Read, Store, StoreError, Transaction};
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::geo::{LogEntry, Push, Pushed};
use mooseng_wire::{Epoch, VolumeId};
use tokio::time::Instant;

use super::{allow_master, chunks, complete, failed, near_promises, place, position, stand, sync};
use crate::master::Master;

/// Entries of one push are taken in by transactions of so many bytes, or of one entry.
const TRANSACTION_BYTES: usize = 400_000;
/// A push whose predecessor hasn't come waits so long for it.
const PREDECESSOR_WITHIN: Duration = Duration::from_secs(1);
/// Tries of one transaction.
const TRIES: u32 = 20;

/// Takes a push.
pub async fn push(
    master: &Arc<Master>,
    peer: &Peer,
    push: Push,
    deadline: Instant,
) -> Result<Pushed, CallError> {
    let volume = VolumeId(u16::try_from(push.volume).unwrap_or(u16::MAX));
    from_home(master, peer, volume, push.epoch)?;
    let term = master.serving_of(volume)?;
    let (after, newest) = (position(push.after.as_ref()), position(push.newest.as_ref()));
    let entries: Vec<Entry> = push.entries.into_iter().map(entry).collect();
    if entries.iter().any(|entry| entry.at.epoch.0 > push.epoch) {
        return Err(call_error(ErrorCode::InvalidRequest, "an entry is of a later epoch than its home"));
    }
    let now = master.clock.boot();
    master.geo.note_replica(volume, |replica| {
        replica.newest = replica.newest.max(newest);
        replica.heard = Some(now);
        replica.age.heard(newest, now);
    });
    sync::told(master, volume, position(push.synced.as_ref()));
    master.geo.note_hints(push.hints);
    if push.begin_anew {
        let told = stand::Differs {
            was_at: push.was_at.as_ref().map(|at| position(Some(at))),
            common: after,
            trimmed: position(push.trimmed.as_ref()),
            epoch: Epoch(push.epoch),
        };
        // Whatever it takes: where it ended with this call, what takes longer than the home waits would never be done.
        let master = master.clone();
        let begun = tokio::spawn(async move { stand::begin_anew(&master, volume, told).await });
        begun.await.unwrap_or_else(|end| Err(call_error(ErrorCode::Internal, end.to_string())))?;
    }
    let mut record = take(master, volume, after, entries, Epoch(push.epoch), deadline).await?;
    // Who is refused isn't told where this region is, either: a home whose disks were put back may have come to a place of the same name since, and would count
    // on what is here.
    if record.refuses >= push.epoch {
        return Err(failed(master, &ReplicaError::Refused(record.refuses)));
    }
    let agreed = push.agreed.as_ref().map(|at| position(Some(at)));
    if let Some(at) = agreed.filter(|at| *at == record.position() && record.of_log().0 < push.epoch) {
        let seat = master.geo.seat(volume);
        let _applying = seat.applying.lock().await;
        record = change(master, volume, Change::Confirm(at, Epoch(push.epoch))).await?;
    }
    if record.copied_before.is_none() {
        master.geo.note_replica(volume, |replica| replica.age.reached(record.position()));
    }
    trim(master, volume, &record, position(push.trimmed.as_ref())).await?;
    master.may_answer(term)?;
    Ok(Pushed {
        at: place(record.position()),
        copying: record.copied_before.is_some(),
        complete: place(record.complete()),
        put_aside: super::lock(&master.geo.seat(volume).put_aside).clone(),
    })
}

/// Only the home of the epoch that is known here is listened to.
fn from_home(master: &Master, peer: &Peer, volume: VolumeId, epoch: u64) -> Result<(), CallError> {
    let view = master.geo.view();
    let known = view.as_ref().and_then(|view| view.volumes.get(&volume));
    let Some(known) = known else {
        return Err(call_error(ErrorCode::Unavailable, "this master doesn't know the volume yet; try again"));
    };
    allow_master(master, peer, None)?;
    if epoch < known.epoch.0 {
        let message = format!("the volume's epoch is {} and its home {}", known.epoch.0, known.home);
        return Err(call_error(ErrorCode::StaleEpoch, message));
    }
    // A later epoch's home is known there before it is here.
    if epoch > known.epoch.0 {
        let message = "this master hasn't heard of the volume's new epoch yet; try again";
        return Err(call_error(ErrorCode::Unavailable, message));
    }
    allow_master(master, peer, Some(&known.home))
}

/// Refuses what comes from the home of an epoch that is over.
pub(super) fn is_current(master: &Master, volume: VolumeId, from: Epoch) -> Result<(), CallError> {
    let view = master.geo.view();
    match view.as_ref().and_then(|view| view.volumes.get(&volume)) {
        Some(known) if from < known.epoch => {
            let message = format!("the volume's epoch is {} and its home {}", known.epoch.0, known.home);
            Err(call_error(ErrorCode::StaleEpoch, message))
        }
        _ => Ok(()),
    }
}

/// An entry from the wire.
pub(super) fn entry(entry: LogEntry) -> Entry {
    Entry { at: position(entry.at.as_ref()), bytes: entry.changes }
}

/// Takes entries in that follow a place, once the replica is there. Answers where it is then.
async fn take(
    master: &Master,
    volume: VolumeId,
    after: LogPosition,
    entries: Vec<Entry>,
    from: Epoch,
    deadline: Instant,
) -> Result<ReplicaRecord, CallError> {
    let seat = master.geo.seat(volume);
    let mut moved = seat.moved.subscribe();
    let until = deadline.min(Instant::now() + PREDECESSOR_WITHIN);
    loop {
        {
            let _applying = seat.applying.lock().await;
            moved.borrow_and_update();
            // Another home may have come while its predecessor was waited for.
            is_current(master, volume, from)?;
            let record = record(master, volume).await?;
            let at = record.position();
            if record.copied_before.is_some() || entries.is_empty() {
                return Ok(record);
            }
            let is_place = at <= after || entries.iter().any(|entry| entry.at == at);
            if after <= at && !is_place && entries.last().is_some_and(|last| at < last.at) {
                // Between two of them: what is here is of another home's log, which the home is to see.
                return Ok(record);
            }
            if after <= at {
                let rest: Vec<Entry> = entries.into_iter().filter(|entry| entry.at > at).collect();
                return replay(master, volume, record, rest, from).await;
            }
            if Instant::now() >= until {
                return Ok(record);
            }
        }
        // Its predecessor is on its way, or was lost: then the home asks where this region is.
        if tokio::time::timeout_at(until, moved.changed()).await.is_err() {
            return record(master, volume).await;
        }
    }
}

/// How far the replica is; it is begun where it wasn't.
pub(super) async fn record(master: &Master, volume: VolumeId) -> Result<ReplicaRecord, CallError> {
    if let Some(record) = master.geo.replica(volume).record {
        return Ok(record);
    }
    change(master, volume, Change::Begin).await
}

/// Replays entries that follow the replica's place. Only while `applying` is held.
pub(super) async fn replay(
    master: &Master,
    volume: VolumeId,
    mut record: ReplicaRecord,
    entries: Vec<Entry>,
    from: Epoch,
) -> Result<ReplicaRecord, CallError> {
    let mut rest = &entries[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|entry| {
            bytes += entry.bytes.len();
            bytes <= TRANSACTION_BYTES
        });
        let now = &rest[..fitting.count().max(1)];
        let after = record.position();
        let mut coming = complete::coming(master, volume, now).await.map_err(|e| failed(master, &e))?;
        complete::arrived(master, volume, now, &mut coming).await.map_err(|e| failed(master, &e))?;
        let whole = complete::whole(master, volume, after, &coming);
        sync::note(master, volume, now);
        let promised = near_promises::coming(master, volume, now).await;
        let promised = promised.map_err(|e| failed(master, &ReplicaError::Store(e)))?;
        record = change(master, volume, Change::Replay(after, now, from, whole)).await?;
        promised.applied(master, record.position());
        if record.position() < after {
            return Ok(record);
        }
        // What must be kept to undo them may have left no room for all of them, or for any.
        let taken = now.partition_point(|entry| entry.at <= record.position());
        coming.truncate(taken);
        let noted = complete::note(master, volume, after, coming);
        master.metrics.log_replayed.inc_by(taken as u64);
        want_chunks(master, volume, &now[..taken]);
        if let Some(noted) = noted {
            noted.look_again().await;
        }
        rest = &rest[taken..];
    }
    Ok(record)
}

/// Sealed chunks that entries tell of are fetched, or compared, in the order in which they come.
fn want_chunks(master: &Master, volume: VolumeId, entries: &[Entry]) {
    for changes in entries.iter().filter_map(|entry| entry.changes().ok()) {
        chunks::sealed(volume, &changes).for_each(|chunk| master.geo.want(chunk));
    }
}

/// A change of a replica. Each may run again after it was committed.
pub(super) enum Change<'a> {
    /// Begins it, where it wasn't.
    Begin,
    /// Begins it anew.
    BeginAnew,
    /// Takes in the range from that key on.
    Install(&'a Bytes, &'a Page),
    /// Replays the entries that follow that place, from the home of that epoch; up to the other place they are complete as they come.
    Replay(LogPosition, &'a [Entry], Epoch, LogPosition),
    /// The data of entries up to that place is here, too.
    Completed(LogPosition),
    /// The home of that epoch has said that this place is one of its log.
    Confirm(LogPosition, Epoch),
    /// Refuses epochs up to this one.
    Refuse(Epoch),
    /// Lets go of the log up to that place.
    Trim(LogPosition),
}

impl Change<'_> {
    async fn make(
        &self,
        tx: &EmbeddedTransaction,
        volume: VolumeId,
        now_ns: i64,
    ) -> Result<ReplicaRecord, ReplicaError> {
        match self {
            Self::Begin if apply::state(tx, volume, Read::Conflicting).await?.is_some() => {}
            Self::Begin | Self::BeginAnew => apply::begin(tx, volume).await?,
            Self::Confirm(at, from) => apply::confirm(tx, volume, *at, *from).await?,
            Self::Refuse(epoch) => drop(apply::refuse(tx, volume, *epoch).await?),
            Self::Install(from, page) => {
                if let Err(error) = apply::install(tx, volume, from, page).await {
                    // Unless the try before this one was committed after all.
                    let record = apply::state(tx, volume, Read::Conflicting).await?.unwrap_or_default();
                    if record.copied_before != page.next || record.position() != page.at {
                        return Err(error);
                    }
                }
            }
            // What is left to do of it is done by the next such change.
            Self::Completed(upto) => drop(apply::completed(tx, volume, *upto).await?),
            // Left by a turn that this region was to take and didn't.
            Self::Replay(..) if turn::end_undo(tx, volume).await? => {}
            Self::Replay(after, entries, from, whole) => {
                match apply::entries(tx, volume, *after, entries, *from, now_ns, *whole).await {
                    Err(ReplicaError::Gap { at, .. }) if entries.iter().any(|entry| entry.at == at) => {}
                    other => drop(other?),
                }
            }
            Self::Trim(upto) => apply::trim(tx, volume, *upto).await?,
        }
        Ok(apply::state(tx, volume, Read::Snapshot).await?.unwrap_or_default())
    }
}

/// Makes a change, and takes note of where the replica is behind it. Only while `applying` is held.
pub(super) async fn change(
    master: &Master,
    volume: VolumeId,
    work: Change<'_>,
) -> Result<ReplicaRecord, CallError> {
    let mut tries = 0;
    // Nobody is promised anything of what was here; before it goes, and once nothing more is read of it.
    let goes_back = matches!(work, Change::BeginAnew);
    if goes_back {
        master.geo.seat(volume).near.end();
    }
    loop {
        let tx = master.store.begin();
        let error = match work.make(&tx, volume, master.clock.unix_ns()).await {
            Ok(record) => match tx.commit().await {
                Ok(_) => {
                    master.geo.note_replica(volume, |replica| replica.record = Some(record.clone()));
                    if goes_back {
                        master.geo.seat(volume).near.end();
                    }
                    return Ok(record);
                }
                Err(error) => ReplicaError::Store(error),
            },
            Err(error) => error,
        };
        tries += 1;
        let again =
            matches!(&error, ReplicaError::Store(e) if e.is_retryable() || *e == StoreError::CommitUnknown);
        if !again || tries >= TRIES {
            master.geo.note_replica(volume, |replica| replica.record = None);
            return Err(failed(master, &error));
        }
        tokio::time::sleep(super::pause(Duration::from_millis(1 << tries.min(6)))).await;
    }
}

/// Lets go of the part of the log that nobody needs.
async fn trim(
    master: &Master,
    volume: VolumeId,
    record: &ReplicaRecord,
    trimmed: LogPosition,
) -> Result<(), CallError> {
    // What isn't here yet is needed.
    if record.copied_before.is_some() || trimmed <= record.log_behind() || trimmed > record.position() {
        return Ok(());
    }
    let seat = master.geo.seat(volume);
    let _applying = seat.applying.lock().await;
    change(master, volume, Change::Trim(trimmed)).await.map(drop)
}

/// The key behind all copied ones; none where everything is.
pub(super) fn from_of(record: &ReplicaRecord) -> Option<Bytes> {
    record.copied_before.clone()
}
