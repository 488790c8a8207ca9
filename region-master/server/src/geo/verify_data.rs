//! The bytes of a replica's chunks compared with the home's, copy by copy: by digests of the checksums that chunkservers keep beside each block, and,
//! if that is asked for, with each byte read and compared with its checksum first.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use mooseng_namespace::upkeep;
use mooseng_store::Store;
use mooseng_transport::CallFailure;
use mooseng_wire::admin::{ChunkDifference, VerifyDataReply, VerifyDataRequest};
use mooseng_wire::chunk::{AskDigest, ChainMember, ChunkStat, Digested, StatChunk};
use mooseng_wire::geo::{AskSource, Source};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Role};
use tokio::time::Instant;
use tonic::Status;

use super::{ask, chunks, pause, verify};
use crate::master::Master;
use crate::seals;

/// Chunks of one answer at most.
const PAGE: usize = 256;
/// None is begun after so long: the administrator asks for the rest.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// Chunks at a time.
const AT_ONCE: usize = 4;
/// A chunk that changes while it is looked at is looked at again, so often.
const TRIES: u32 = 8;
/// And so often one that differs: what was appended a moment ago arrives.
const DIFFERENT_TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_millis(300);
/// How long a chunkserver may take for the digest of a chunk.
const DIGEST_WITHIN: Duration = Duration::from_secs(5);
/// And for reading it: a slow disk's pace, bytes/s.
const READ_PACE_MIN: u64 = 4 << 20;

/// What is found of a chunk.
enum Found {
    /// It died meanwhile, or is about to.
    Gone,
    /// The region doesn't have all of it yet.
    Lacking,
    /// So many copies were compared up to that length; these differ, or can't be read.
    Compared { copies: u64, length: u64, different: Vec<ChunkDifference> },
    /// It can't be said now, for that reason.
    Unsettled(String),
}

/// Compares a page of chunks.
pub async fn answer(master: &Master, asked: VerifyDataRequest) -> Result<VerifyDataReply, Status> {
    let (volume, home) = verify::home_of_replica(master, asked.volume)?;
    let after = (asked.after != 0).then_some(ChunkId(asked.after));
    let tx = master.store.begin();
    let listed = upkeep::list_chunks(&tx, volume, after, PAGE).await;
    let (listings, more) = listed.map_err(|e| Status::unavailable(e.to_string()))?;
    let ids: Vec<ChunkId> = listings.into_iter().map(|listing| listing.chunk).collect();
    let mut reply = VerifyDataReply { region: master.config.region.clone(), ..VerifyDataReply::default() };
    let (begun, mut comparing, mut next, mut last) = (Instant::now(), FuturesOrdered::new(), 0, None);
    loop {
        // One at least, so that each page comes nearer to the end.
        while next < ids.len() && comparing.len() < AT_ONCE && (next == 0 || begun.elapsed() < BEGIN_WITHIN) {
            let chunk = ids[next];
            let home = home.as_str();
            comparing.push_back(async move { (chunk, compare(master, home, chunk, asked.read).await) });
            next += 1;
        }
        let Some((chunk, found)) = comparing.next().await else { break };
        last = Some(chunk);
        match found {
            Found::Gone => {}
            Found::Lacking => reply.lacking += 1,
            Found::Compared { copies, length, different } => {
                reply.chunks += 1;
                reply.copies += copies;
                reply.bytes += length;
                reply.different.extend(different);
            }
            Found::Unsettled(reason) => {
                reply.unsettled += 1;
                reply.why_unsettled = format!("chunk {chunk}: {reason}");
            }
        }
    }
    drop(comparing);
    reply.home = home;
    if let Some(last) = last.filter(|last| more || ids.last() != Some(last)) {
        reply.next = last.0;
    }
    Ok(reply)
}

async fn compare(master: &Master, home: &str, chunk: ChunkId, read: bool) -> Found {
    let (mut differed, mut last) = (0, "it changes all the time".to_owned());
    for _ in 0..TRIES {
        match once(master, home, chunk, read).await {
            Ok(Found::Compared { copies, length, different }) => {
                differed += u32::from(!different.is_empty());
                if different.is_empty() || differed >= DIFFERENT_TRIES {
                    return Found::Compared { copies, length, different };
                }
            }
            Ok(found) => return found,
            Err(reason) => last = reason,
        }
        tokio::time::sleep(pause(AGAIN)).await;
    }
    Found::Unsettled(last)
}

async fn once(master: &Master, home: &str, chunk: ChunkId, read: bool) -> Result<Found, String> {
    let Some(listing) = chunks::load(master, chunk).await.map_err(|e| e.message)? else {
        return Ok(Found::Gone);
    };
    if listing.users == 0 {
        // No file has a byte of it: nobody fetches it, and it is collected soon.
        return Ok(Found::Gone);
    }
    let Some(location) = listing.location else { return Ok(Found::Lacking) };
    let sealed = listing.record.sealed;
    // Of one that grows a replica has what is named of it, or more; one that is sealed is whole only once it was compared with what it is to be.
    let named = match location.partial {
        None => None,
        Some(partial) if !sealed => {
            let named = seals::committed(master, chunk).await.map_err(|e| e.message)?;
            if named > partial {
                return Ok(Found::Lacking);
            }
            Some(named)
        }
        Some(_) => return Ok(Found::Lacking),
    };
    let here = chunks::members(master, &location);
    if here.len() < location.copies.len() {
        return Err("a chunkserver that has it here isn't known to this region's masters".to_owned());
    }
    let length = match named {
        Some(named) => named,
        None if sealed => listing.record.length,
        None => common(master, chunk, &here).await?,
    };
    let asked = AskSource { chunk: chunk.0, length, grows: !sealed };
    let there: Source = ask(master, home, Method::ChunkSource, &asked).await?;
    let region = &master.config.region;
    let of_home = there.holders.iter().map(|member| (home, member, there.ticket.clone()));
    let of_here = here.iter().map(|member| (region.as_str(), member, Bytes::new()));
    let copies: Vec<_> = of_home.chain(of_here).collect();
    let digests = copies.iter().map(|(_, member, ticket)| {
        let asked = AskDigest { chunk: chunk.0, length, ticket: ticket.clone(), read };
        digest(master, member, asked)
    });
    let digests = futures::future::join_all(digests).await;
    let mut reference: Option<(&str, &str, Bytes)> = None;
    let mut different = Vec::new();
    for ((region, member, _), digest) in copies.iter().zip(digests) {
        let name = member.chunkserver.as_str();
        let what = match digest {
            Ok(digest) => match &reference {
                None => {
                    reference = Some((*region, name, digest));
                    continue;
                }
                Some((_, _, first)) if *first == digest => continue,
                Some((region, name, _)) => {
                    format!("its first {length} bytes aren't those that chunkserver {name} of {region} has")
                }
            },
            Err(CallFailure::Remote(error)) => error.message,
            Err(failure) => return Err(format!("chunkserver {name} of {region} doesn't answer: {failure}")),
        };
        different.push(ChunkDifference {
            chunk: chunk.0,
            region: (*region).to_owned(),
            chunkserver: name.to_owned(),
            what,
        });
    }
    Ok(Found::Compared { copies: copies.len() as u64, length, different })
}

/// What all copies here have of a chunk that grows.
async fn common(master: &Master, chunk: ChunkId, here: &[ChainMember]) -> Result<u64, String> {
    let mut length = u64::MAX;
    for member in here {
        let link = master.link(Role::Chunkserver, &member.address);
        let stat = StatChunk { chunk: chunk.0, ticket: Bytes::new() };
        let stat = link.request::<_, ChunkStat>(Method::ChunkStat, &stat, DIGEST_WITHIN).await;
        let name = &member.chunkserver;
        length =
            length.min(stat.map_err(|e| format!("chunkserver {name} doesn't say what it has: {e}"))?.flushed);
    }
    Ok(length)
}

async fn digest(master: &Master, member: &ChainMember, asked: AskDigest) -> Result<Bytes, CallFailure> {
    let within =
        DIGEST_WITHIN + Duration::from_secs(if asked.read { asked.length / READ_PACE_MIN } else { 0 });
    let link = master.link(Role::Chunkserver, &member.address);
    link.request::<_, Digested>(Method::ChunkDigest, &asked, within).await.map(|digested| digested.digest)
}
