//! Sealing chunks: the decision in the store first, then the chunkservers are told - at once where they are reached, else with their next
//! heartbeat or inventory.
//!
//! A client's request is worked on in two steps, for the namespace knows nothing of `min_copies`: the master seals the chunk itself, as decided
//! by [`mooseng_region::seal`], then the request runs and finds the chunk sealed; its outcome is recorded under its number as ever.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_namespace::upkeep::{self, ChunkListing};
use mooseng_namespace::{OpError, SessionCall, abandon, execute};
use mooseng_region::seal::{SealFacts, decide};
use mooseng_schema::Record;
use mooseng_schema::chunk::{self, ChunkRecord};
use mooseng_schema::extent::{self, ExtentRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_store::{RangeLimit, Read, Transaction};
use mooseng_transport::CallFailure;
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{Seal as SealMessage, Sealed};
use mooseng_wire::fs::fs_request::Op;
use mooseng_wire::fs::{FsRequest, SealChunk};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Epoch, InodeId, Role, SessionId};
use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::desk::Seal;
use crate::errors::{driver_failed, record_failed};
use crate::fs::context;
use crate::master::Master;
use crate::records::transact;

/// Seals that wait to be told at once. Beyond it heartbeats carry them.
pub const WAITING_MAX: usize = 1_024;
/// Chunkservers told at the same time.
const AT_ONCE: usize = 16;
/// Tries before the heartbeat takes over.
const TRIES: u32 = 3;
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Inodes that use one chunk, looked at for its committed length.
const USERS_MAX: usize = 10_000;

/// A seal and whom to tell of it.
#[derive(Clone, Debug)]
pub struct Told {
    chunk: ChunkId,
    seal: Seal,
    members: Vec<String>,
}

impl Told {
    fn of(listing: &ChunkListing, length: u64, epoch: Epoch) -> Self {
        let location = listing.location.as_ref();
        Self {
            chunk: listing.chunk,
            seal: Seal { length, epoch: epoch.0 },
            members: location.map(|l| l.copies.clone()).unwrap_or_default(),
        }
    }
}

/// Seals a chunk as its owner asks, before the owner's request itself runs, and answers it. None where that request will be refused anyway.
pub async fn before_change(
    master: &Master,
    session: SessionId,
    request: &SealChunk,
    deadline: Instant,
) -> Result<Option<ChunkId>, CallError> {
    let Some(listing) = load(master, ChunkId(request.chunk)).await? else { return Ok(None) };
    if listing.record.owner != session.0 {
        return Ok(None);
    }
    if listing.record.sealed {
        return Ok(Some(ChunkId(request.chunk)));
    }
    // House-keeping ends it: what was acknowledged under an earlier home may be there alone.
    if listing.record.birth < master.epoch(listing.chunk.volume()).0 {
        return Ok(None);
    }
    // The owner counts what it committed as acknowledged; the namespace lets nobody else write into the chunk.
    seal(master, &listing, request.acknowledged, &request.failed, deadline).await?;
    Ok(Some(listing.chunk))
}

/// Seals a chunk whose owner is gone, at the length that extents name. Leaves it alone if the owner is back, or comes back meanwhile.
pub async fn abandon(master: &Master, listing: &ChunkListing) -> Result<(), CallError> {
    let owner = SessionId(listing.record.owner);
    let over = transact(&master.store, move |tx| async move {
        let over = abandon::over(&tx, owner).await?;
        Ok((tx, over))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    let Some(over) = over else { return Ok(()) };
    let committed = committed(master, listing.chunk).await?;
    let (own, told) = decided(master, listing, None, committed, &[])?;
    let (own, context) = (&own, &context(master, listing.chunk.volume()));
    let sealed = transact(&master.store, move |tx| async move {
        let sealed = abandon::seal(&tx, context, owner, over, own.clone()).await?;
        Ok((tx, sealed))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    if sealed {
        tracing::info!(
            chunk = listing.chunk.0,
            length = committed,
            owner = owner.0,
            "sealed a chunk whose session is gone"
        );
        tell(master, told);
    }
    Ok(())
}

/// Ends an open chunk in the store at the length at which one member was ended before, so that no append is acknowledged any more. Answers
/// the length; none for a chunk that is gone.
///
/// It never ends before what extents name. That member may be shorter: a block that went bad before the chunk was sealed looks like a torn
/// tail after a restart, and is cut. The other members have it, and cutting them, too, would destroy it.
pub async fn end(master: &Master, chunk: ChunkId, length: u64) -> Result<Option<ChunkListing>, CallError> {
    let context = &context(master, chunk.volume());
    transact(&master.store, move |tx| async move {
        let Some(mut listing) = upkeep::load_chunk(&tx, chunk).await? else { return Ok((tx, None)) };
        // Its owner may have been quicker, at another length.
        if !listing.record.sealed {
            let acknowledged = length.max(named(&tx, chunk).await?);
            let seal = Op::SealChunk(SealChunk { chunk: chunk.0, acknowledged, failed: vec![] });
            execute(&tx, context, &FsRequest { caller: None, op: Some(seal) }).await?;
            (listing.record.sealed, listing.record.length) = (true, acknowledged);
        }
        Ok((tx, Some(listing)))
    })
    .await
    .map_err(|e| record_failed(&e))
}

/// Ends a sealed chunk of an earlier home, of which only a part is here, where that part ends. Extents name no more of it, for this home began where all
/// that its log names was here; what the earlier home had beyond may be gone with it, and other regions would wait for it in vain. Answers whether it did.
pub async fn end_at_part(master: &Master, planned: &ChunkListing) -> Result<bool, CallError> {
    let chunk = planned.chunk;
    let Some(location) = planned.location.clone() else { return Ok(false) };
    let Some(partial) = location.partial.filter(|partial| *partial > 0) else { return Ok(false) };
    let (whole, length) = (&LocationRecord { partial: None, ..location }, partial);
    let ended = transact(&master.store, move |tx| async move {
        let as_planned = upkeep::load_chunk(&tx, chunk)
            .await?
            .filter(|is| is.record == planned.record && is.location == planned.location);
        let Some(listing) = as_planned else { return Ok((tx, false)) };
        if named(&tx, chunk).await? > length {
            return Ok((tx, false));
        }
        tx.set(&chunk::key(chunk), &ChunkRecord { length, ..listing.record }.to_value());
        tx.set(&location::key(chunk), &whole.to_value());
        Ok((tx, true))
    });
    let ended = ended.await.map_err(|e| record_failed(&e))?;
    if ended {
        let seal = Seal { length, epoch: master.epoch(chunk.volume()).0 };
        master.desk(|desk| whole.copies.iter().for_each(|name| desk.want_seal(name, chunk, seal)));
    }
    Ok(ended)
}

/// The end of the furthest run that an extent has in the chunk, read with conflicts: nobody names more until this transaction commits.
async fn named<T: Transaction>(tx: &T, chunk: ChunkId) -> Result<u64, OpError> {
    let mut end = 0;
    for (inode, _) in upkeep::chunk_users(tx, chunk, USERS_MAX).await? {
        let mut range = extent::range(inode);
        loop {
            let page = tx.get_range(range.clone(), RangeLimit::default(), Read::Conflicting).await?;
            end = end.max(end_in(chunk, &page.pairs)?);
            let Some((last, _)) = page.pairs.last().filter(|_| page.more) else { break };
            range.begin = behind(last);
        }
    }
    Ok(end)
}

fn end_in(chunk: ChunkId, pairs: &[(Bytes, Bytes)]) -> Result<u64, OpError> {
    let mut end = 0;
    for (_, value) in pairs {
        let extent = ExtentRecord::from_value(value)?;
        if extent.chunk == chunk.0 {
            end = end.max(extent.chunk_offset.saturating_add(extent.length));
        }
    }
    Ok(end)
}

fn behind(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// Has the members of a chunk told that was sealed by its owner's request, at the length that the record has: house-keeping may have been
/// quicker, at a greater one.
pub async fn tell_recorded(master: &Master, chunk: ChunkId) {
    match load(master, chunk).await {
        Ok(Some(listing)) if listing.record.sealed => {
            let length = listing.record.length;
            tell(master, Told::of(&listing, length, master.epoch(chunk.volume())));
        }
        Ok(_) => {}
        // This master leads no more; who does tells the members when they report the chunk open.
        Err(error) => tracing::debug!(
            chunk = chunk.0,
            error = error.message,
            "the members of a sealed chunk weren't told"
        ),
    }
}

/// What to write into the store, and whom to tell then.
fn decided(
    master: &Master,
    listing: &ChunkListing,
    acknowledged: Option<u64>,
    committed: u64,
    failed: &[String],
) -> Result<(SealChunk, Told), CallError> {
    let members = listing.location.as_ref().map(|l| l.copies.clone()).unwrap_or_default();
    let failed: BTreeSet<String> = failed.iter().cloned().collect();
    let classed = (listing.chunk.volume(), listing.record.storage_class);
    let min_copies = master.desk(|desk| desk.seat(classed.0).classes.get(classed.1).min_copies);
    let facts = SealFacts { committed, acknowledged, members: &members, failed: &failed, min_copies };
    let decision = decide(&facts)
        .map_err(|e| mooseng_transport::call_error(ErrorCode::InvalidRequest, e.to_string()))?;
    let dropped = members.iter().filter(|m| !decision.members.contains(m)).cloned().collect();
    let own = SealChunk { chunk: listing.chunk.0, acknowledged: decision.length, failed: dropped };
    Ok((own, Told::of(listing, decision.length, master.epoch(listing.chunk.volume()))))
}

async fn seal(
    master: &Master,
    listing: &ChunkListing,
    acknowledged: u64,
    failed: &[String],
    deadline: Instant,
) -> Result<(), CallError> {
    let (own, _) = decided(master, listing, Some(acknowledged), 0, failed)?;
    let request = FsRequest { caller: None, op: Some(Op::SealChunk(own)) };
    master
        .driver
        .run(SessionCall::default(), &context(master, listing.chunk.volume()), &request, deadline)
        .await
        .map_err(|e| driver_failed(&e, || master.not_leader()))?;
    Ok(())
}

/// A chunk's record and location.
pub async fn load(master: &Master, chunk: ChunkId) -> Result<Option<ChunkListing>, CallError> {
    transact(&master.store, |tx| async move {
        let listing = upkeep::load_chunk(&tx, chunk).await?;
        Ok((tx, listing))
    })
    .await
    .map_err(|e| record_failed(&e))
}

/// The end of the furthest run that an extent has in the chunk. To end a chunk by it its owner must be unable to write any more: its session lapsed or was
/// closed in the store before. Of another one more may be named by now.
pub async fn committed(master: &Master, chunk: ChunkId) -> Result<u64, CallError> {
    let users = transact(&master.store, |tx| async move {
        let users = upkeep::chunk_users(&tx, chunk, USERS_MAX).await?;
        Ok((tx, users))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    let mut end = 0;
    for (inode, _) in users {
        end = end.max(committed_of(master, chunk, inode).await?);
    }
    Ok(end)
}

async fn committed_of(master: &Master, chunk: ChunkId, inode: InodeId) -> Result<u64, CallError> {
    let mut range = extent::range(inode);
    let mut end = 0;
    loop {
        let begin = range.clone();
        let (page_end, last) = transact(&master.store, move |tx| {
            let begin = begin.clone();
            async move {
                let page = tx.get_range(begin, RangeLimit::default(), Read::Snapshot).await?;
                let end = end_in(chunk, &page.pairs)?;
                let last = page.pairs.last().filter(|_| page.more).map(|(key, _)| key.clone());
                Ok::<_, OpError>((tx, (end, last)))
            }
        })
        .await
        .map_err(|e| record_failed(&e))?;
        end = end.max(page_end);
        let Some(last) = last else { return Ok(end) };
        range.begin = behind(&last);
    }
}

/// Has the members told: they wait in the memory for their heartbeat, and are called at once where there is room.
pub fn tell(master: &Master, told: Told) {
    master.desk(|desk| {
        for member in &told.members {
            desk.want_seal(member, told.chunk, told.seal);
        }
    });
    let _ = master.seals.try_send(told);
}

/// Tells chunkservers, until the channel closes or the master ends.
pub async fn run(master: Arc<Master>, mut waiting: mpsc::Receiver<Told>) {
    let mut calls = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = master.shutdown.cancelled() => return,
            told = waiting.recv(), if calls.len() < AT_ONCE => {
                let Some(told) = told else { return };
                for member in told.members.clone() {
                    calls.push(tell_one(master.clone(), member, told.clone()));
                }
            }
            Some(()) = calls.next() => {}
        }
    }
}

async fn tell_one(master: Arc<Master>, member: String, told: Told) {
    for attempt in 0..TRIES {
        let (address, waits) = master.desk(|desk| {
            let address = desk.registry.get(&member).map(|s| s.beat.address.clone());
            (address, desk.seal_waits(&member, told.chunk))
        });
        // A heartbeat took it along, or this master leads no more.
        let (Some(address), true) = (address, waits) else { return };
        let request = SealMessage {
            chunk: told.chunk.0,
            epoch: told.seal.epoch,
            length: told.seal.length,
            ticket: Bytes::new(),
        };
        let link = master.link(Role::Chunkserver, &address);
        match link.request::<_, Sealed>(Method::ChunkSeal, &request, CALL_TIMEOUT).await {
            Ok(_) => return master.desk(|desk| desk.sealed(&member, told.chunk)),
            // Nothing was ever appended there.
            Err(CallFailure::Remote(e)) if e.code() == ErrorCode::NotFound => {
                return master.desk(|desk| desk.sealed(&member, told.chunk));
            }
            Err(error) => {
                tracing::debug!(chunk = told.chunk.0, member, %error, "a chunkserver wasn't told of a seal");
            }
        }
        let pause = rand::rng().random_range(50..200_u64) << attempt;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}
