//! What a replica's leader does: it copies the volume, range by range, until its log is pushed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_replica::unsynced::Unsynced;
use mooseng_replica::{Entry, read};
use mooseng_schema::log::{LogPosition, ReplicaRecord};
use mooseng_wire::geo::{AskLog, AskPage, Log, Page};
use mooseng_wire::method::Method;
use mooseng_wire::{Epoch, VolumeId};

use super::receive::Change;
use super::{ask, home_of, pause, place, position, receive};
use crate::master::Master;

/// After a failure.
const AGAIN: Duration = Duration::from_millis(500);

/// Copies the volume where it isn't here, as long as this is its replica.
pub async fn run(master: &Arc<Master>, volume: VolumeId) {
    let mut moved = master.geo.moved(volume);
    loop {
        moved.borrow_and_update();
        match step(master, volume).await {
            Ok(true) => {}
            Ok(false) => {
                // Until it has to be copied anew.
                let _ = moved.changed().await;
            }
            Err(trouble) => {
                tracing::info!(trouble, "the volume can't be copied from its home yet; trying on");
                tokio::time::sleep(pause(AGAIN)).await;
            }
        }
    }
}

/// Bytes of a range, and of entries, that are asked for at a time.
fn bytes_max(master: &Master) -> u32 {
    master.config.house.copy_kib.saturating_mul(1024)
}

/// Copies one range. Answers whether there was anything to copy.
async fn step(master: &Master, volume: VolumeId) -> Result<bool, String> {
    let seat = master.geo.seat(volume);
    let record = {
        let _applying = seat.applying.lock().await;
        receive::record(master, volume).await.map_err(|e| e.message)?
    };
    let Some(from) = receive::from_of(&record) else { return Ok(false) };
    let home = home_of(master, volume)?;
    let message = AskPage { volume: volume.0.into(), from: from.clone(), bytes_max: bytes_max(master) };
    let page: Page = ask(master, &home, Method::VolumePage, &message).await?;
    let epoch = page.epoch;
    let page = read::Page {
        at: position(page.at.as_ref()),
        pairs: page.pairs.into_iter().map(|pair| (pair.key, pair.value)).collect(),
        next: (!page.next.is_empty()).then_some(page.next),
    };
    let _applying = seat.applying.lock().await;
    if !reach(master, volume, &home, &from, page.at).await? {
        return Ok(true);
    }
    of_present_home(master, volume, epoch)?;
    // What a range tells was changed in entries that aren't looked at here: all of it counts as changed lately.
    master.geo.tail.unsynced(volume, Unsynced::reset);
    let record =
        receive::change(master, volume, Change::Install(&from, &page)).await.map_err(|e| e.message)?;
    if record.copied_before.is_none() {
        tracing::info!(at = %record.position(), "the volume is copied; its log is replayed from here on");
    }
    Ok(true)
}

/// Replays the log up to the place at which the next range was read. Answers whether that range can be taken in.
async fn reach(
    master: &Master,
    volume: VolumeId,
    home: &str,
    from: &Bytes,
    at: LogPosition,
) -> Result<bool, String> {
    loop {
        let record: ReplicaRecord = receive::record(master, volume).await.map_err(|e| e.message)?;
        if record.copied_before.as_ref() != Some(from) {
            return Ok(false);
        }
        let is_at = record.position();
        if is_at == at || is_at == LogPosition::default() {
            return Ok(true);
        }
        let message = AskLog { volume: volume.0.into(), after: place(is_at), bytes_max: bytes_max(master) };
        let log: Log = ask(master, home, Method::LogAsk, &message).await?;
        let epoch = of_present_home(master, volume, log.epoch)?;
        if log.trimmed {
            tracing::warn!(at = %is_at, "what follows isn't in the home's log, which doesn't reach back so far or hasn't that place: the volume is copied anew");
            receive::change(master, volume, Change::BeginAnew).await.map_err(|e| e.message)?;
            return Ok(false);
        }
        let entries: Vec<Entry> =
            log.entries.into_iter().map(receive::entry).take_while(|entry| entry.at <= at).collect();
        if entries.is_empty() {
            return Err(format!("the home's log doesn't lead from {is_at} to {at}"));
        }
        receive::replay(master, volume, record, entries, epoch).await.map_err(|e| e.message)?;
    }
}

/// The epoch of the home that has answered, which is to be the present one: a home that doesn't know yet that its epoch is over may tell what is of no log.
/// Those of earlier releases don't say which it is.
fn of_present_home(master: &Master, volume: VolumeId, told: u64) -> Result<Epoch, String> {
    let epoch = master.epoch(volume);
    match told {
        0 => Ok(epoch),
        told if Epoch(told) == epoch => Ok(epoch),
        told => Err(format!("a home of epoch {told} has answered, and the volume's is {}", epoch.0)),
    }
}
