//! What a volume's home answers to a region that was taken out of the volume's regions: what of it isn't needed there any more ([`super::let_go`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mooseng_global::Volume;
use mooseng_namespace::let_go::{self, Known};
use mooseng_namespace::upkeep;
use mooseng_ports::clock::BootTime;
use mooseng_region::letting_go::{AtHome, Other, is_spare, lacking};
use mooseng_region::repair::{self, CopyState};
use mooseng_replica::read;
use mooseng_schema::chunk::ChunkRecord;
use mooseng_schema::location::LocationRecord;
use mooseng_schema::log::LogPosition;
use mooseng_store::Store;
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::geo::{AskLetGo, LetGo};
use mooseng_wire::{ChunkId, VolumeId};

use super::{allow_master, at_home, failed, lock, losses, place, position};
use crate::desk::Desk;
use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;

/// Chunks that are looked up for one answer at most.
pub(super) const CHUNKS_MAX: usize = 256;

/// Answers a region that isn't to have the volume any more.
pub async fn answer(master: &Arc<Master>, peer: &Peer, ask: AskLetGo) -> Result<LetGo, CallError> {
    allow_master(master, peer, None)?;
    let volume = VolumeId(u16::try_from(ask.volume).unwrap_or(u16::MAX));
    at_home(master, volume)?;
    let term = master.serving_of(volume)?;
    let region = &peer.identity.region;
    let view = master.geo.view();
    let known = view.as_ref().and_then(|view| view.volumes.get(&volume));
    let Some((view, known)) = view.as_ref().zip(known).filter(|(view, _)| view.version >= ask.agreed) else {
        let message = "this master doesn't know yet what the regions have agreed on; try again";
        return Err(call_error(ErrorCode::Unavailable, message));
    };
    if known.epoch.0 != ask.epoch {
        return Err(call_error(ErrorCode::StaleEpoch, format!("the volume's epoch is {}", known.epoch.0)));
    }
    if known.regions.contains(region) {
        let message = format!(
            "the region {region} is one of the volume's, by what was agreed on up to {}",
            view.version
        );
        return Err(call_error(ErrorCode::InvalidRequest, message));
    }
    let seat = master.geo.seat(volume);
    // What it said while it was one of the volume's regions doesn't count should it be added again.
    lock(&seat.shipped).remove(region);
    match ask.stage.is_empty() {
        true => drop(lock(&seat.letting_go).remove(region)),
        false => drop(lock(&seat.letting_go).insert(region.clone(), ask.stage.clone())),
    }
    let answered = may_go(master, (volume, known), region, &ask).await?;
    master.is_home(volume)?;
    holds_lease(master)?;
    master.may_answer(term)?;
    Ok(answered)
}

/// Whatever the volume's failover is left to: what another region throws away by this word, this one must be the home for.
fn holds_lease(master: &Master) -> Result<(), CallError> {
    match &master.global {
        Some(global) if global.lease_valid() => Ok(()),
        _ => Err(call_error(ErrorCode::Unavailable, "this region doesn't hold its lease; try again")),
    }
}

async fn may_go(
    master: &Arc<Master>,
    (volume, known): (VolumeId, &Volume),
    region: &str,
    ask: &AskLetGo,
) -> Result<LetGo, CallError> {
    holds_lease(master)?;
    let own = transact(&master.store, |tx| async move {
        let own = upkeep::load_volume(&tx, volume).await?;
        Ok((tx, own))
    });
    let Some(own) = own.await.map_err(|e| record_failed(&e))? else {
        return Err(call_error(ErrorCode::Unavailable, "the volume has no records here yet; try again"));
    };
    let no = |trouble: String| Ok(LetGo { trouble, ..LetGo::default() });
    if !ask.mark.is_empty() && ask.mark != super::let_go::mark(&own) {
        return no("what it has is of another volume than the one that has its number now".to_owned());
    }
    let mut answer = LetGo::default();
    if let Some(at) = ask.at.as_ref().map(|at| position(Some(at))) {
        if at.epoch > known.epoch {
            return no(format!("it is at {at} of the log, which is of a later epoch than this home's"));
        }
        let tx = master.store.begin();
        let has = read::has(&tx, volume, at).await.map_err(|e| failed(master, &e))?;
        let common = match has {
            true => at,
            false => read::at_or_before(&tx, volume, at).await.map_err(|e| failed(master, &e))?,
        };
        let trimmed = read::logged(&tx, volume).await.map_err(|e| failed(master, &e))?;
        let trimmed = trimmed.map(|logged| logged.trimmed()).unwrap_or_default();
        (answer.common, answer.trimmed) = (place(common), place(trimmed));
        losses::name(master, volume, known.epoch, region, &ask.put_aside, has)
            .await
            .map_err(|trouble| call_error(ErrorCode::Unavailable, trouble))?;
    } else if !ask.put_aside.is_empty() {
        losses::name(master, volume, known.epoch, region, &ask.put_aside, false)
            .await
            .map_err(|trouble| call_error(ErrorCode::Unavailable, trouble))?;
    }
    let others = others(master, volume, known);
    if let Some((other, why)) = lacking(&others, position(ask.had.as_ref()), master.clock.boot()) {
        answer.trouble = format!("the region {other}, which is to have the volume, {why}");
        return Ok(answer);
    }
    // Chunks of another volume of that number may have the same ids.
    if !ask.mark.is_empty() {
        (answer.spare, answer.gone) = look_up(master, volume, &ask.chunks).await?;
    }
    Ok(answer)
}

/// What is known of the regions that have the volume besides this one, its home.
fn others(master: &Master, volume: VolumeId, known: &Volume) -> BTreeMap<String, Option<Other<LogPosition>>> {
    let shipped = master.geo.shipped(volume);
    let of = |region: &String| {
        let other = shipped.get(region).map(|of| Other {
            complete: of.complete,
            copying: of.copying,
            heard: of.heard,
        });
        (region.clone(), other)
    };
    known.regions.iter().filter(|region| **region != known.home).map(of).collect()
}

/// Of these chunks, those of which this region has enough, and those that are no more.
async fn look_up(
    master: &Master,
    volume: VolumeId,
    asked: &[u64],
) -> Result<(Vec<u64>, Vec<u64>), CallError> {
    let of_volume = asked.iter().map(|chunk| ChunkId(*chunk)).filter(|chunk| chunk.volume() == volume);
    let chunks: Vec<ChunkId> = of_volume.take(CHUNKS_MAX).collect();
    let chunks = &chunks;
    let known = transact(&master.store, |tx| async move {
        let mut all = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            all.push((*chunk, let_go::known(&tx, *chunk).await?));
        }
        Ok((tx, all))
    });
    let known = known.await.map_err(|e| record_failed(&e))?;
    let (now, grace) = (master.clock.boot(), Duration::from_millis(master.config.house.grace_ms));
    let (mut spare, mut gone) = (Vec::new(), Vec::new());
    master.desk(|desk| {
        for (chunk, known) in known {
            match known {
                Known::Record(record, location) => {
                    if is_spare(&here(desk, (now, grace), chunk, &record, location.as_ref())) {
                        spare.push(chunk.0);
                    }
                }
                Known::Gone => gone.push(chunk.0),
                Known::Unknown => {}
            }
        }
    });
    Ok((spare, gone))
}

fn here(
    desk: &Desk,
    (now, grace): (BootTime, Duration),
    chunk: ChunkId,
    record: &ChunkRecord,
    location: Option<&LocationRecord>,
) -> AtHome {
    let is_good = |name: &&String| {
        let condition = repair::condition(&desk.registry, name, now, desk.serving_since, grace);
        let state = repair::copy_state(&desk.registry, name, condition, chunk, record.length, true);
        state == CopyState::Good && !desk.is_deleting(name, chunk)
    };
    AtHome {
        sealed: record.sealed,
        length: record.length,
        whole: location.is_some_and(|location| location.partial.is_none()),
        good: location.iter().flat_map(|location| &location.copies).filter(is_good).count(),
        copies: desk.seat(chunk.volume()).classes.get(record.storage_class).copies,
    }
}
