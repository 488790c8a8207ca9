//! How the bytes come that the log names: a chunkserver of this region pulls each sealed chunk from one of the home's. Further copies are made from
//! that one, as in any region ([`crate::house`]).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_namespace::upkeep::{self, ChunkListing};
use mooseng_replica::Entry;
use mooseng_replica::needs::Named;
use mooseng_schema::location::LocationRecord;
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{AskDigest, ChainMember, Digested};
use mooseng_wire::geo::{AskSource, Hint, Source};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Role, VolumeId};

use super::{ROOT_VOLUME, fetch, pause, push, serve};
use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;
use crate::tickets;

/// Chunks that a region was told of at most, before it is told again.
const HINTED_MAX: usize = 4_096;
/// Chunks fetched at a time.
const AT_ONCE: usize = 8;
/// After a failure; the scan finds the chunk again.
const AGAIN: Duration = Duration::from_millis(400);
/// How long a chunkserver may take to say what it has.
const DIGEST_WITHIN: Duration = Duration::from_secs(5);

/// Where a sealed chunk can be read, and what it must be: asked of the home's leader, and by a home that lacks it of any other's.
pub async fn source(master: &Master, peer: &Peer, asked: AskSource) -> Result<Source, CallError> {
    let chunk = ChunkId(asked.chunk);
    let term = serve::of_all(master, peer, u32::from(chunk.volume().0))?.0;
    let listing = load(master, chunk).await?;
    let Some((listing, location)) = listing.and_then(|l| l.location.clone().map(|location| (l, location)))
    else {
        return Err(call_error(ErrorCode::NotFound, "there is no such chunk any more"));
    };
    let sealed = listing.record.sealed;
    let as_asked = if asked.grows {
        !sealed || listing.record.length >= asked.length
    } else {
        sealed && listing.record.length == asked.length
    };
    if !as_asked || location.partial.is_some() {
        return Err(call_error(
            ErrorCode::Unavailable,
            "the chunk is another one by now, or isn't whole here; look at the log first",
        ));
    }
    let mut members = members(master, &location);
    if asked.grows && !members.is_empty() {
        // Whoever reads it there compares each block.
        let (volume, now_ns) = (u64::from(chunk.volume().0), master.clock.unix_ns());
        let ticket = master.desk(|desk| tickets::for_chunk(&desk.keys, 0, volume, chunk.0, false, now_ns));
        master.may_answer(term)?;
        return Ok(Source {
            holders: members,
            ticket: ticket.into(),
            digest: Bytes::new(),
            epoch: location.epoch,
        });
    }
    let mut last = "no chunkserver that has it is known here".to_owned();
    for place in 0..members.len() {
        let link = master.link(Role::Chunkserver, &members[place].address);
        let ask = AskDigest { chunk: chunk.0, length: asked.length, ..AskDigest::default() };
        match link.request::<_, Digested>(Method::ChunkDigest, &ask, DIGEST_WITHIN).await {
            Ok(digested) => {
                // The one that is well first.
                members.swap(0, place);
                let (volume, now_ns) = (u64::from(chunk.volume().0), master.clock.unix_ns());
                let ticket =
                    master.desk(|desk| tickets::for_chunk(&desk.keys, 0, volume, chunk.0, false, now_ns));
                master.may_answer(term)?;
                return Ok(Source {
                    holders: members,
                    ticket: ticket.into(),
                    digest: digested.digest,
                    epoch: location.epoch,
                });
            }
            Err(error) => last = format!("{}: {error}", members[place].chunkserver),
        }
    }
    Err(call_error(ErrorCode::Unavailable, format!("the chunk can't be read now: {last}")))
}

/// Where chunks are read that entries name, for the region that they are sent to; of those that aren't `known` there yet.
pub(super) async fn hints(
    master: &Master,
    volume: VolumeId,
    region: &str,
    entries: &[Entry],
    known: &mut BTreeSet<ChunkId>,
) -> Vec<Hint> {
    let mut hints = Vec::new();
    let named =
        entries.iter().filter_map(|entry| entry.changes().ok()).map(|changes| Named::by(volume, &changes));
    for chunk in named.flat_map(|named| named.upto.into_keys()) {
        if known.len() >= HINTED_MAX {
            known.clear();
        }
        if !known.insert(chunk) {
            continue;
        }
        // Without one the region asks.
        let Ok(Some(listing)) = load(master, chunk).await else { continue };
        let Some(location) = listing.location.filter(|location| location.partial.is_none()) else { continue };
        let members = members(master, &location);
        if listing.record.sealed || members.is_empty() {
            continue;
        }
        let (volume, now_ns) = (u64::from(chunk.volume().0), master.clock.unix_ns());
        let ticket = master.desk(|desk| tickets::for_chunk(&desk.keys, 0, volume, chunk.0, false, now_ns));
        let source =
            Source { holders: members, ticket: ticket.into(), digest: Bytes::new(), epoch: location.epoch };
        let pushed = push::pushed_to(master, chunk, region);
        hints.push(Hint { chunk: chunk.0, source: Some(source), pushed });
    }
    hints
}

/// The chunkservers of a chunk that are known here.
pub(super) fn members(master: &Master, location: &LocationRecord) -> Vec<ChainMember> {
    let member = |name: &String| {
        let address = master.desk(|desk| desk.registry.get(name).map(|server| server.beat.address.clone()));
        address.map(|address| ChainMember { chunkserver: name.clone(), address })
    };
    location.copies.iter().filter_map(member).collect()
}

/// Fetches what is wanted: in a replica's region what its log names, at home what was at the home of before alone. First what holds back the place
/// at which the replica is complete.
pub async fn run(master: &Master, term: u64) {
    let mut fetching = FuturesUnordered::new();
    let mut busy = BTreeSet::new();
    // Whose turn it was last.
    let mut served = ROOT_VOLUME;
    loop {
        while fetching.len() < AT_ONCE {
            let needed = master.geo.next_need(served, |chunk| busy.contains(&chunk));
            let next = needed.map(|(chunk, upto)| (chunk, Some(upto)));
            let Some((chunk, upto)) = next.or_else(|| master.geo.take_wanted().map(|chunk| (chunk, None)))
            else {
                break;
            };
            if !busy.insert(chunk) {
                // It is under way, and what is lacking behind is asked for again.
                continue;
            }
            served = chunk.volume();
            fetching.push(async move {
                if let Err(reason) = fetch::fetch(master, term, chunk, upto).await {
                    tracing::info!(
                        chunk = chunk.0,
                        reason,
                        "a chunk couldn't be fetched from the home yet; trying on"
                    );
                    tokio::time::sleep(pause(AGAIN)).await;
                }
                chunk
            });
        }
        tokio::select! {
            Some(chunk) = fetching.next(), if !fetching.is_empty() => drop(busy.remove(&chunk)),
            () = master.geo.wanting.notified() => {}
        }
    }
}

pub(super) async fn load(master: &Master, chunk: ChunkId) -> Result<Option<ChunkListing>, CallError> {
    transact(&master.store, |tx| async move {
        let listing = upkeep::load_chunk(&tx, chunk).await?;
        Ok((tx, listing))
    })
    .await
    .map_err(|e| record_failed(&e))
}
