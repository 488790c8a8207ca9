//! Data goes to the other regions of a `geo` volume's sync set as it is appended, and not only once the log names it.
//!
//! ```text
//!  region of the set: chains of its chunkservers, placed as it places chunks, and a ticket    (receivers)
//!  home: a chunk is allocated -> the first of its chain is told to send on what comes          (begin)
//!        the log names the chunk -> the hint says where its bytes were sent to               (pushed_to)
//!  region: those have them already, mostly, and are asked to flush                           (fetch)
//! ```
//! Nothing rests on it: what isn't there is read at home, as of chunks that aren't pushed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_region::class;
use mooseng_region::placement::{self, Wish};
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{ChainMember, Push, PushBegun};
use mooseng_wire::geo::{AskReceivers, Chain, Receivers};
use mooseng_wire::method::Method;
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, Epoch, Role, VolumeId};

use super::{Whereabouts, ask, lock, pause, place_of, serve, sync};
use crate::master::Master;
use crate::tickets;

/// Chains that a region names at a time.
const CHAINS: usize = 8;
/// How often a region is asked anew: chunkservers come and go.
const ASK_EVERY: Duration = Duration::from_secs(20);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a chunkserver may take to begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);
/// Chunks of which is remembered where they are sent.
const PUSHED_MAX: usize = 4_096;

/// What a home's leader knows of regions that take bytes, and of where it has them sent.
#[derive(Default)]
pub(super) struct Pushing {
    receivers: BTreeMap<String, (Receivers, usize)>,
    pushed: BTreeMap<ChunkId, BTreeMap<String, Vec<String>>>,
}

impl Pushing {
    /// The next chain of a region, with the ticket.
    fn next(&mut self, region: &str) -> Option<(Vec<ChainMember>, Bytes)> {
        let (receivers, turn) = self.receivers.get_mut(region)?;
        let chain = receivers.chains.get(*turn % receivers.chains.len().max(1))?;
        *turn += 1;
        Some((chain.members.clone(), receivers.ticket.clone()))
    }

    fn note(&mut self, chunk: ChunkId, region: &str, chain: &[ChainMember]) {
        let names = chain.iter().map(|member| member.chunkserver.clone()).collect();
        self.pushed.entry(chunk).or_default().insert(region.to_owned(), names);
        while self.pushed.len() > PUSHED_MAX {
            self.pushed.pop_first();
        }
    }
}

/// Asks a region who takes bytes there, as long as this is the home.
pub(super) async fn ask_receivers(master: &Master, volume: VolumeId, epoch: Epoch, region: &str) {
    let seat = master.geo.seat(volume);
    loop {
        let mut wait = ASK_EVERY;
        if sync::is_member(master, volume, region) {
            let asked = AskReceivers { volume: volume.0.into(), epoch: epoch.0 };
            match ask::<_, Receivers>(master, region, Method::ChunkReceivers, &asked).await {
                Ok(receivers) => {
                    let turn = rand::random::<u8>().into();
                    lock(&seat.pushing).receivers.insert(region.to_owned(), (receivers, turn));
                }
                Err(trouble) => {
                    tracing::debug!(region, trouble, "a region doesn't say yet who takes bytes there");
                    lock(&seat.pushing).receivers.remove(region);
                    wait = AGAIN;
                }
            }
        } else {
            lock(&seat.pushing).receivers.remove(region);
            wait = AGAIN;
        }
        tokio::time::sleep(pause(wait)).await;
    }
}

/// A region that has the volume says who takes bytes of growing chunks.
pub async fn receivers(master: &Master, peer: &Peer, asked: AskReceivers) -> Result<Receivers, CallError> {
    let (term, volume) = serve::of_all(master, peer, asked.volume)?;
    let home = super::home_of(master, volume);
    if place_of(master, volume) != Whereabouts::Elsewhere
        || home.as_deref() != Ok(peer.identity.region.as_str())
        || Epoch(asked.epoch) != master.epoch(volume)
    {
        return Err(call_error(ErrorCode::StaleEpoch, "the region that asks isn't the volume's home here"));
    }
    let now_ns = master.clock.unix_ns();
    let (candidates, class, addresses, ticket) = master.desk(|desk| {
        let candidates = desk.registry.candidates(master.clock.boot());
        let class = desk.seat(volume).classes.get(class::DEFAULT).clone();
        let addresses: BTreeMap<String, String> = candidates
            .iter()
            .filter_map(|of| Some((of.name.clone(), desk.registry.get(&of.name)?.beat.address.clone())))
            .collect();
        // For any of them: the home gives ids to its chunks.
        let ticket = tickets::for_chunk(&desk.keys, 0, volume.0.into(), 0, true, now_ns);
        (candidates, class, addresses, ticket)
    });
    let mut chains = Vec::new();
    for _ in 0..CHAINS {
        let exclude = Default::default();
        let wish =
            Wish { class: &class, bytes_wanted: CHUNK_BYTES_MAX, exclude: &exclude, seed: rand::random() };
        let placed = placement::place(&candidates, wish)
            .map_err(|too_few| call_error(ErrorCode::NoSpace, too_few.to_string()))?;
        let member = |name: &String| {
            Some(ChainMember { chunkserver: name.clone(), address: addresses.get(name)?.clone() })
        };
        let members = placed.iter().take(class.min_copies.max(1)).filter_map(member).collect();
        chains.push(Chain { members });
    }
    master.may_answer(term)?;
    Ok(Receivers { chains, ticket: ticket.into() })
}

/// A chunk was allocated here: what is appended to it is to be sent to the sync set. Nobody waits for that.
pub fn begin(master: &Arc<Master>, term: u64, chunk: ChunkId, storage_class: u32, first: Option<&str>) {
    let volume = chunk.volume();
    if storage_class != class::DEFAULT {
        return;
    }
    let regions = sync::others(master, volume);
    let Some(address) = first.filter(|_| !regions.is_empty()).and_then(|name| {
        master.desk(|desk| desk.registry.get(name).map(|server| server.beat.address.clone()))
    }) else {
        return;
    };
    let epoch = master.epoch(volume).0;
    let seat = master.geo.seat(volume);
    for region in regions {
        let (chain, ticket) = {
            let mut pushing = lock(&seat.pushing);
            let Some(next) = pushing.next(&region) else { continue };
            pushing.note(chunk, &region, &next.0);
            next
        };
        let order = Push { chunk: chunk.0, epoch, custody: master.orders(term), chain, ticket };
        let link = master.link(Role::Chunkserver, &address);
        tokio::spawn(async move {
            let begun = link.request::<_, PushBegun>(Method::ChunkPush, &order, BEGIN_WITHIN).await;
            if let Err(failure) = begun {
                tracing::debug!(chunk = chunk.0, region, %failure, "a chunk isn't sent on as it is appended");
            }
        });
    }
}

/// Where a chunk's bytes are sent in a region.
pub(super) fn pushed_to(master: &Master, chunk: ChunkId, region: &str) -> Vec<String> {
    let seat = master.geo.seat(chunk.volume());
    let pushing = lock(&seat.pushing);
    pushing.pushed.get(&chunk).and_then(|of| of.get(region)).cloned().unwrap_or_default()
}
