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
use mooseng_schema::location::{Layout, LocationRecord};
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{AskDigest, ChainMember, Digested, Pull, Pulled};
use mooseng_wire::geo::{AskSource, Source};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Role};

use super::{ROOT_VOLUME, ask, pause, serve};
use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;
use crate::{house, tickets};

/// Chunks fetched at a time.
const AT_ONCE: usize = 4;
/// After a failure; the scan finds the chunk again.
const AGAIN: Duration = Duration::from_secs(1);
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
    if !listing.record.sealed || listing.record.length != asked.length {
        return Err(call_error(
            ErrorCode::Unavailable,
            "the chunk is another one by now; look at the log first",
        ));
    }
    let member = |name: &String| {
        let address = master.desk(|desk| desk.registry.get(name).map(|server| server.beat.address.clone()));
        address.map(|address| ChainMember { chunkserver: name.clone(), address })
    };
    let mut members: Vec<ChainMember> = location.copies.iter().filter_map(member).collect();
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

/// Fetches what is wanted: in a replica's region what its log names, at home what was at the home of before alone.
pub async fn run(master: &Master, term: u64) {
    let mut fetching = FuturesUnordered::new();
    loop {
        while fetching.len() < AT_ONCE
            && let Some(chunk) = master.geo.take_wanted()
        {
            fetching.push(async move {
                if let Err(reason) = fetch(master, term, chunk).await {
                    tracing::info!(
                        chunk = chunk.0,
                        reason,
                        "a chunk couldn't be fetched from the home yet; trying on"
                    );
                    tokio::time::sleep(pause(AGAIN)).await;
                }
            });
        }
        tokio::select! {
            Some(()) = fetching.next(), if !fetching.is_empty() => {}
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

async fn fetch(master: &Master, term: u64, chunk: ChunkId) -> Result<(), String> {
    let Some(listing) = load(master, chunk).await.map_err(|e| e.message)? else { return Ok(()) };
    let record = &listing.record;
    if !record.sealed || record.length == 0 || listing.location.is_some() {
        return Ok(());
    }
    let (class, candidates) = master.desk(|desk| {
        let class = desk.classes.get(record.storage_class).clone();
        (class, desk.registry.candidates(master.clock.boot()))
    });
    let none = BTreeSet::new();
    let wish = Wish { class: &class, bytes_wanted: record.length, exclude: &none, seed: rand::random() };
    let placed = placement::place(&candidates, wish).map_err(|too_few| too_few.to_string())?;
    let target = placed.into_iter().next().ok_or("no chunkserver of this region has room")?;
    let address = master.desk(|desk| desk.registry.get(&target).map(|server| server.beat.address.clone()));
    let address = address.ok_or("the chunkserver isn't known any more")?;
    let asked = AskSource { chunk: chunk.0, length: record.length };
    let source = source_of(master, &asked).await?;
    pull(master, term, chunk, record.length, &source, &address).await?;
    let location =
        LocationRecord { layout: Layout::Copies as u32, copies: vec![target.clone()], epoch: source.epoch };
    if !house::relocate(master, &listing, location).await.map_err(|e| e.message)? {
        return Err("the chunk isn't as it was any more".into());
    }
    let copy = CopyFacts { length: record.length, sealed: true, epoch: source.epoch, corrupt: false };
    master.desk(|desk| desk.registry.changed(&target, &[(chunk, copy)], &[]));
    master.metrics.chunks_fetched.inc();
    master.metrics.bytes_fetched.inc_by(record.length);
    tracing::debug!(chunk = chunk.0, target, "a chunk was fetched from the home");
    Ok(())
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
