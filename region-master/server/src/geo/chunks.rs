//! How the bytes come that the log names: a chunkserver of this region pulls each sealed chunk from one of the home's. Further copies are made from
//! that one, as in any region ([`crate::house`]).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_namespace::upkeep::{self, ChunkListing};
use mooseng_region::placement::{self, Wish};
use mooseng_region::registry::CopyFacts;
use mooseng_region::repair::{self, Condition};
use mooseng_replica::Entry;
use mooseng_replica::needs::Named;
use mooseng_schema::location::{Layout, LocationRecord};
use mooseng_transport::{CallFailure, Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{AskDigest, ChainMember, Digested, Follow, Followed, Pull, Pulled};
use mooseng_wire::geo::{AskSource, Hint, Source};
use mooseng_wire::method::Method;
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, Role};

use super::{ROOT_VOLUME, ask, pause, serve};
use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;
use crate::{house, tickets};

/// Chunks that a region was told of at most, before it is told again.
const HINTED_MAX: usize = 4_096;
/// Chunks fetched at a time.
const AT_ONCE: usize = 8;
/// After a failure; the scan finds the chunk again.
const AGAIN: Duration = Duration::from_millis(400);
/// How long a chunkserver may take to say what it has.
const DIGEST_WITHIN: Duration = Duration::from_secs(5);
/// How long a chunk may take beyond what 1 MiB a second allows.
const PULL_WITHIN: Duration = Duration::from_secs(60);
const PACE_MIN: u64 = 1 << 20;

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
pub(super) async fn hints(master: &Master, entries: &[Entry], known: &mut BTreeSet<ChunkId>) -> Vec<Hint> {
    let mut hints = Vec::new();
    let named = entries
        .iter()
        .filter_map(|entry| entry.changes().ok())
        .map(|changes| Named::by(ROOT_VOLUME, &changes));
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
        hints.push(Hint { chunk: chunk.0, source: Some(source) });
    }
    hints
}

/// The chunkservers of a chunk that are known here.
fn members(master: &Master, location: &LocationRecord) -> Vec<ChainMember> {
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
    loop {
        while fetching.len() < AT_ONCE {
            let needed = master.geo.needs(|needs| needs.next(|chunk| busy.contains(&chunk))).flatten();
            let next = needed.map(|(chunk, upto)| (chunk, Some(upto)));
            let Some((chunk, upto)) = next.or_else(|| master.geo.take_wanted().map(|chunk| (chunk, None)))
            else {
                break;
            };
            if !busy.insert(chunk) {
                // It is under way, and what is lacking behind is asked for again.
                continue;
            }
            fetching.push(async move {
                if let Err(reason) = fetch(master, term, chunk, upto).await {
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

async fn load(master: &Master, chunk: ChunkId) -> Result<Option<ChunkListing>, CallError> {
    transact(&master.store, |tx| async move {
        let listing = upkeep::load_chunk(&tx, chunk).await?;
        Ok((tx, listing))
    })
    .await
    .map_err(|e| record_failed(&e))
}

/// Fetches a chunk: all of one that is sealed; of one that grows still what is needed of it.
async fn fetch(master: &Master, term: u64, chunk: ChunkId, upto: Option<u64>) -> Result<(), String> {
    let Some(listing) = load(master, chunk).await.map_err(|e| e.message)? else { return Ok(()) };
    let record = &listing.record;
    let sealed = record.sealed && record.length > 0;
    let partial = match &listing.location {
        Some(location) => match location.partial {
            // By another leader, or under a home before.
            None => {
                met(master, chunk, u64::MAX);
                return Ok(());
            }
            Some(partial) => Some((location.clone(), partial)),
        },
        None => None,
    };
    let wanted = if sealed { record.length } else { upto.unwrap_or(0) };
    if wanted == 0 {
        return Ok(());
    }
    match partial {
        None if sealed => fetch_whole(master, term, &listing).await,
        None => {
            let target = target(master, &listing)?;
            let location = LocationRecord {
                layout: Layout::Copies as u32,
                copies: vec![target],
                epoch: record.birth,
                partial: Some(0),
            };
            // On record before there is anything, so that nothing is taken for a stray.
            if !relocate(master, &listing, &location).await? {
                return Err("the chunk isn't as it was any more".into());
            }
            let listing = ChunkListing { location: Some(location.clone()), ..listing };
            follow(master, term, &listing, location, wanted).await
        }
        Some((_, partial)) if !sealed && partial >= wanted => {
            met(master, chunk, partial);
            Ok(())
        }
        Some((location, _)) => follow(master, term, &listing, location, wanted).await,
    }
}

async fn relocate(
    master: &Master,
    listing: &ChunkListing,
    location: &LocationRecord,
) -> Result<bool, String> {
    house::relocate(master, listing, location.clone()).await.map_err(|e| e.message)
}

fn met(master: &Master, chunk: ChunkId, upto: u64) {
    if master.geo.needs(|needs| needs.met(chunk, upto)).is_some() {
        master.geo.needs_changed();
    }
}

/// Which chunkserver of this region takes a chunk.
fn target(master: &Master, listing: &ChunkListing) -> Result<String, String> {
    let record = &listing.record;
    let (class, candidates) = master.desk(|desk| {
        let class = desk.classes.get(record.storage_class).clone();
        (class, desk.registry.candidates(master.clock.boot()))
    });
    let none = BTreeSet::new();
    let bytes_wanted = if record.sealed { record.length } else { CHUNK_BYTES_MAX };
    let wish = Wish { class: &class, bytes_wanted, exclude: &none, seed: rand::random() };
    let placed = placement::place(&candidates, wish).map_err(|too_few| too_few.to_string())?;
    placed.into_iter().next().ok_or_else(|| "no chunkserver of this region has room".into())
}

fn address_of(master: &Master, chunkserver: &str) -> Option<String> {
    master.desk(|desk| desk.registry.get(chunkserver).map(|server| server.beat.address.clone()))
}

/// Whether a chunkserver is given up, as house-keeping sees it. A leader that has just begun may not have heard of it yet.
fn is_lost(master: &Master, chunkserver: &str) -> bool {
    let (now, grace) = (master.clock.boot(), Duration::from_millis(master.config.house.grace_ms));
    master.desk(|desk| {
        let condition = repair::condition(&desk.registry, chunkserver, now, desk.serving_since, grace);
        condition == Condition::Lost
    })
}

async fn fetch_whole(master: &Master, term: u64, listing: &ChunkListing) -> Result<(), String> {
    let (chunk, length) = (listing.chunk, listing.record.length);
    let target = target(master, listing)?;
    let address = address_of(master, &target).ok_or("the chunkserver isn't known any more")?;
    let source = source_of(master, &AskSource { chunk: chunk.0, length, grows: false }).await?;
    pull(master, term, chunk, length, &source, &address).await?;
    let location = LocationRecord {
        layout: Layout::Copies as u32,
        copies: vec![target.clone()],
        epoch: source.epoch,
        partial: None,
    };
    if !relocate(master, listing, &location).await? {
        return Err("the chunk isn't as it was any more".into());
    }
    fetched(master, chunk, &target, (length, 0), source.epoch);
    met(master, chunk, u64::MAX);
    Ok(())
}

/// A chunk of which `had` bytes were here is here, whole.
fn fetched(master: &Master, chunk: ChunkId, target: &str, (length, had): (u64, u64), epoch: u64) {
    let copy = CopyFacts { length, sealed: true, epoch, corrupt: false };
    master.desk(|desk| desk.registry.changed(target, &[(chunk, copy)], &[]));
    master.metrics.chunks_fetched.inc();
    master.metrics.bytes_fetched.inc_by(length.saturating_sub(had));
    tracing::debug!(chunk = chunk.0, target, "a chunk was fetched from the home");
}

/// Has the copy here grow: up to what is needed, or, of a sealed chunk, to its end.
async fn follow(
    master: &Master,
    term: u64,
    listing: &ChunkListing,
    location: LocationRecord,
    upto: u64,
) -> Result<(), String> {
    let (chunk, sealed) = (listing.chunk, listing.record.sealed);
    let had = location.partial.unwrap_or(0);
    let target = location.copies.first().cloned().unwrap_or_default();
    // One that is only down is waited for: what it has this region has said that it has.
    if is_lost(master, &target) {
        // And given up only for one that can be had: it may come back with the only bytes that there are.
        source_of(master, &AskSource { chunk: chunk.0, length: upto, grows: !sealed }).await?;
        let why = "the chunkserver that has a part of it is lost";
        return begin_elsewhere(master, listing, location, why).await;
    }
    let Some(address) = address_of(master, &target) else {
        return Err(format!("{target}, which has a part of it, hasn't reported to this leader yet"));
    };
    let hint = super::lock(&master.geo.hints).remove(&chunk).filter(|_| !sealed);
    let hinted = hint.is_some();
    let source = match hint {
        Some(source) => source,
        None => source_of(master, &AskSource { chunk: chunk.0, length: upto, grows: !sealed }).await?,
    };
    let (mut last, mut useless) = ("the home names nobody who has it".to_owned(), false);
    for holder in &source.holders {
        let order = Follow {
            chunk: chunk.0,
            epoch: master.epoch().0,
            upto,
            custody: term,
            source: Some(holder.clone()),
            ticket: Bytes::clone(&source.ticket),
            digest: if sealed { source.digest.clone() } else { Bytes::new() },
        };
        let within = PULL_WITHIN + Duration::from_secs(upto / PACE_MIN);
        let link = master.link(Role::Chunkserver, &address);
        match link.request::<_, Followed>(Method::ChunkFollow, &order, within).await {
            Ok(followed) => {
                let partial = if sealed { None } else { Some(followed.length) };
                let grown = LocationRecord { partial, ..location };
                if !relocate(master, listing, &grown).await? {
                    return Err("the chunk isn't as it was any more".into());
                }
                match sealed {
                    true => fetched(master, chunk, &target, (upto, had), source.epoch),
                    false => drop(master.metrics.bytes_fetched.inc_by(followed.length.saturating_sub(had))),
                }
                met(master, chunk, if sealed { u64::MAX } else { followed.length });
                if !sealed {
                    // It grows on: as long as it can be read there, nobody is asked.
                    master.geo.note_hints(vec![Hint { chunk: chunk.0, source: Some(source.clone()) }]);
                }
                return Ok(());
            }
            Err(error) => {
                use ErrorCode::{ChunkSealed, Corrupt, DiskFailed};
                useless |= matches!(&error, CallFailure::Remote(e) if matches!(e.code(), ChunkSealed | Corrupt | DiskFailed));
                last = format!("{target} from {}: {error}", holder.chunkserver);
            }
        }
    }
    if hinted {
        // What the home has said then may not be so any more: the next try asks.
        return Err(last);
    }
    // Another source would have done if it were the source's fault.
    if useless { begin_elsewhere(master, listing, location, &last).await } else { Err(last) }
}

/// What is here of a chunk is of no use: it is begun anew on another chunkserver, if there is one.
async fn begin_elsewhere(
    master: &Master,
    listing: &ChunkListing,
    location: LocationRecord,
    why: &str,
) -> Result<(), String> {
    let target = target(master, listing)?;
    tracing::warn!(
        chunk = listing.chunk.0,
        target,
        why,
        "what is here of a chunk is of no use, and it is fetched anew"
    );
    let anew = LocationRecord { copies: vec![target], partial: Some(0), ..location };
    relocate(master, listing, &anew).await?;
    Err(format!("what was here of the chunk was of no use: {why}"))
}

/// From the home; the home itself asks the others, one after the other.
async fn source_of(master: &Master, asked: &AskSource) -> Result<Source, String> {
    let home = super::home_of(master, ROOT_VOLUME)?;
    if home != master.config.region {
        return ask(master, &home, Method::ChunkSource, asked).await;
    }
    let view = master.geo.view();
    let others: Vec<String> =
        view.iter().flat_map(|view| view.replicas_of(ROOT_VOLUME)).map(str::to_owned).collect();
    let mut last = "no other region has the volume".to_owned();
    for region in others {
        match ask(master, &region, Method::ChunkSource, asked).await {
            Ok(source) => return Ok(source),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn pull(
    master: &Master,
    term: u64,
    chunk: ChunkId,
    length: u64,
    source: &Source,
    target: &str,
) -> Result<(), String> {
    let mut last = "the home names nobody who has it".to_owned();
    for holder in &source.holders {
        let pull = Pull {
            chunk: chunk.0,
            // Of the order: chunkservers obey none of an epoch that is over. The chunk may be older.
            epoch: master.epoch().0,
            length,
            digest: source.digest.clone(),
            custody: term,
            source: Some(holder.clone()),
            ticket: Bytes::clone(&source.ticket),
            bytes_per_s: 0,
        };
        let within = PULL_WITHIN + Duration::from_secs(length / PACE_MIN);
        let link = master.link(Role::Chunkserver, target);
        match link.request::<_, Pulled>(Method::ChunkPull, &pull, within).await {
            Ok(_) => return Ok(()),
            Err(error) => last = format!("{} from {}: {error}", target, holder.chunkserver),
        }
    }
    Err(last)
}
