//! What a home's leader answers to regions that copy a volume, or compare it.

use std::sync::Arc;

use mooseng_embedded::EmbeddedTransaction;
use mooseng_replica::{ReplicaError, read};
use mooseng_store::{ReadVersion, Store, Transaction};
use mooseng_transport::{Peer, call_error};
use mooseng_wire::VolumeId;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::geo::{AskDigest, AskLog, AskPage, AskServed, Digest, Log, LogEntry, Page, Pair, Served};
use tokio::time::Instant;

use super::{Whereabouts, allow_master, at_home, failed, joins, not_home, place, place_of, position};
use crate::master::Master;

/// Bytes of one answer at most.
const BYTES_MAX: u32 = 1 << 20;

/// What a range is compared in at most.
pub(super) const DIGEST_BYTES_MAX: u32 = 8 << 20;

fn of_ours(master: &Master, peer: &Peer, volume: u32) -> Result<(u64, VolumeId), CallError> {
    let (term, volume) = of_all(master, peer, volume)?;
    let Whereabouts::Here(_) = place_of(master, volume) else { return Err(not_home(master, volume)) };
    Ok((term, volume))
}

/// For masters of regions that have the volume, whatever this one is to it. Answers the custody epoch in which this master serves.
pub(super) fn of_all(master: &Master, peer: &Peer, volume: u32) -> Result<(u64, VolumeId), CallError> {
    allow_master(master, peer, None)?;
    let volume = VolumeId(u16::try_from(volume).unwrap_or(u16::MAX));
    let view = master.geo.view();
    let has = view.as_ref().and_then(|view| view.volumes.get(&volume));
    if !has.is_some_and(|volume| volume.regions.contains(&peer.identity.region)) {
        let message = format!("the region {} isn't to have this volume", peer.identity.region);
        return Err(call_error(ErrorCode::PermissionDenied, message));
    }
    Ok((master.serving_of(volume)?, volume))
}

/// For masters of any region of the cluster: whether this one serves the volume as its home, and whether anything is in it.
pub async fn served(
    master: &Arc<Master>,
    peer: &Peer,
    ask: AskServed,
    deadline: Instant,
) -> Result<Served, CallError> {
    allow_master(master, peer, None)?;
    let volume = VolumeId(u16::try_from(ask.volume).unwrap_or(u16::MAX));
    at_home(master, volume)?;
    let term = master.serving_of(volume)?;
    let not_empty = if ask.whether_empty {
        joins::not_empty(master, volume, ask.loses_put_aside, deadline).await?
    } else {
        String::new()
    };
    master.may_answer(term)?;
    Ok(Served { not_empty, looked: ask.whether_empty })
}

/// A range of a volume's records.
pub async fn page(master: &Master, peer: &Peer, ask: AskPage) -> Result<Page, CallError> {
    let (term, volume) = of_ours(master, peer, ask.volume)?;
    let from = (!ask.from.is_empty()).then_some(ask.from);
    let bytes_max = ask.bytes_max.clamp(1, BYTES_MAX) as usize;
    let tx = master.store.begin();
    let page = read::page(&tx, volume, from, bytes_max).await.map_err(|e| failed(master, &e))?;
    let epoch = written_under(master, &tx, volume).await?;
    master.may_answer(term)?;
    Ok(Page {
        at: place(page.at),
        pairs: page.pairs.into_iter().map(|(key, value)| Pair { key, value }).collect(),
        next: page.next.unwrap_or_default(),
        epoch,
    })
}

/// The epoch under which the log is written that a transaction sees.
async fn written_under(
    master: &Master,
    tx: &EmbeddedTransaction,
    volume: VolumeId,
) -> Result<u64, CallError> {
    let logged = read::logged(tx, volume).await.map_err(|e| failed(master, &e))?;
    Ok(logged.map(|logged| logged.epoch).unwrap_or_default())
}

/// Entries of a volume's log.
pub async fn log(master: &Master, peer: &Peer, ask: AskLog) -> Result<Log, CallError> {
    let (term, volume) = of_ours(master, peer, ask.volume)?;
    let bytes_max = ask.bytes_max.clamp(1, BYTES_MAX) as usize;
    let tx = master.store.begin();
    let found = read::entries(&tx, volume, position(ask.after.as_ref()), bytes_max).await;
    let epoch = written_under(master, &tx, volume).await?;
    let (entries, trimmed) = match found {
        // What was copied from a home that was lost may be behind the cut.
        Err(ReplicaError::Trimmed { .. } | ReplicaError::NotOfTheLog(_)) => (Vec::new(), true),
        found => (found.map_err(|e| failed(master, &e))?, false),
    };
    master.may_answer(term)?;
    let entry = |entry: mooseng_replica::Entry| LogEntry { at: place(entry.at), changes: entry.bytes };
    Ok(Log { entries: entries.into_iter().map(entry).collect(), trimmed, epoch })
}

/// A hash of a range as it was at a place of the log. In the home's store that is a version, which lives for some seconds.
pub async fn digest(master: &Master, peer: &Peer, ask: AskDigest) -> Result<Digest, CallError> {
    let (_, volume) = of_ours(master, peer, ask.volume)?;
    let Whereabouts::Here(epoch) = place_of(master, volume) else { return Err(not_home(master, volume)) };
    let at = position(ask.at.as_ref());
    if at.epoch != epoch {
        return Err(call_error(ErrorCode::Unavailable, "the place is of another epoch; compare again later"));
    }
    let mut tx = master.store.begin();
    // The newest place may be of a version that is long gone, where nothing has happened since.
    if read::newest(&tx, volume).await.map_err(|e| failed(master, &e))? != at {
        tx = master.store.begin();
        tx.set_read_version(ReadVersion(at.version));
    }
    let from = (!ask.from.is_empty()).then_some(ask.from);
    let bytes_max = ask.bytes_max.clamp(1, DIGEST_BYTES_MAX) as usize;
    let (pairs, next) = read::records(&tx, volume, from, bytes_max).await.map_err(|e| failed(master, &e))?;
    Ok(Digest {
        digest: read::digest(&pairs).to_vec().into(),
        pairs: pairs.len() as u64,
        next: next.unwrap_or_default(),
    })
}
