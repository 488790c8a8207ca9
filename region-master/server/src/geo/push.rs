//! Data goes to the other regions of a `geo` volume's sync set as it is appended, and not only once the log names it.
//!
//! ```text
//!  region of the set: chains of its chunkservers, placed as it places chunks, and a ticket    (receivers)
//!  home: a chunk is allocated -> the first of its chain is told to send on what comes          (begin)
//!        house-keeping has made a chunk -> likewise, and files name it a little later         (go_ahead)
//!        the log names the chunk -> the hint says where its bytes were sent to               (pushed_to)
//!  region: those have them already, mostly, and are asked to flush                           (fetch)
//! ```
//! Nothing rests on it: what isn't there is read at home, as of chunks that aren't pushed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_region::class::{self, Class};
use mooseng_region::placement::{self, Candidate, TooFew, Wish};
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{ChainMember, Push, PushBegun};
use mooseng_wire::geo::{AskReceivers, Chain, ClassChains, Receivers};
use mooseng_wire::method::Method;
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, Epoch, Role, VolumeId};

use super::{Whereabouts, ask, lock, pause, place_of, serve, sync};
use crate::master::Master;
use crate::tickets;

/// Chains that a region names at a time for the default storage class.
const CHAINS: usize = 8;
/// And for each of the others, of which there may be many.
const CHAINS_OF_OTHERS: usize = 4;
/// How often a region is asked anew: chunkservers come and go.
const ASK_EVERY: Duration = Duration::from_secs(20);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a chunkserver may take to begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(2);
/// How long a chunk that house-keeping has made goes ahead of what names it: at least, and at most.
const AHEAD_MIN: Duration = Duration::from_millis(20);
const AHEAD_MAX: Duration = Duration::from_secs(2);
/// Bytes that come in a millisecond, about.
const AHEAD_PACE: u64 = 32 << 10;
/// Chunks of which is remembered where they are sent.
const PUSHED_MAX: usize = 4_096;

/// What a home's leader knows of regions that take bytes, and of where it has them sent.
#[derive(Default)]
pub(super) struct Pushing {
    receivers: BTreeMap<String, (Receivers, usize)>,
    pushed: BTreeMap<ChunkId, BTreeMap<String, Vec<String>>>,
}

impl Pushing {
    /// The next chain of a region for a storage class, with the ticket; none where the region names none for it.
    fn next(&mut self, region: &str, storage_class: u32) -> Option<(Vec<ChainMember>, Bytes)> {
        let (receivers, turn) = self.receivers.get_mut(region)?;
        let chains = if storage_class == class::DEFAULT {
            &receivers.chains
        } else {
            &receivers.classes.iter().find(|of| of.storage_class == storage_class)?.chains
        };
        let chain = chains.get(*turn % chains.len().max(1))?;
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

    /// A chunk isn't sent to a region after all: nobody there is to wait for it.
    fn forget(&mut self, chunk: ChunkId, region: &str) {
        if let Some(of) = self.pushed.get_mut(&chunk) {
            of.remove(region);
            if of.is_empty() {
                self.pushed.remove(&chunk);
            }
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
    let (candidates, classes, addresses, ticket) = master.desk(|desk| {
        let candidates = desk.registry.candidates(master.clock.boot());
        let classes: Vec<Class> = desk.seat(volume).classes.iter().cloned().collect();
        let addresses: BTreeMap<String, String> = candidates
            .iter()
            .filter_map(|of| Some((of.name.clone(), desk.registry.get(&of.name)?.beat.address.clone())))
            .collect();
        // For any of them: the home gives ids to its chunks.
        let ticket = tickets::for_chunk(&desk.keys, 0, volume.0.into(), 0, true, now_ns);
        (candidates, classes, addresses, ticket)
    });
    let (chains, classes) = placed(&candidates, &classes, &addresses)
        .map_err(|too_few| call_error(ErrorCode::NoSpace, too_few.to_string()))?;
    master.may_answer(term)?;
    Ok(Receivers { chains, ticket: ticket.into(), classes })
}

/// Chains for chunks of the default class, which comes first, and of the others that can be placed.
fn placed(
    candidates: &[Candidate],
    classes: &[Class],
    addresses: &BTreeMap<String, String>,
) -> Result<(Vec<Chain>, Vec<ClassChains>), TooFew> {
    let exclude = BTreeSet::new();
    let chain = |class: &Class| {
        let wish = Wish { class, bytes_wanted: CHUNK_BYTES_MAX, exclude: &exclude, seed: rand::random() };
        let names = placement::place(candidates, wish)?;
        let member = |name: &String| {
            Some(ChainMember { chunkserver: name.clone(), address: addresses.get(name)?.clone() })
        };
        let members = names.iter().take(class.min_copies.max(1)).filter_map(member).collect();
        Ok::<_, TooFew>(Chain { members })
    };
    let (mut of_default, mut of_others) = (Vec::new(), Vec::new());
    for class in classes {
        if class.id == class::DEFAULT {
            of_default = (0..CHAINS).map(|_| chain(class)).collect::<Result<Vec<_>, _>>()?;
        } else if let Ok(chains) = (0..CHAINS_OF_OTHERS).map(|_| chain(class)).collect::<Result<Vec<_>, _>>()
        {
            of_others.push(ClassChains { storage_class: class.id, chains });
        }
    }
    Ok((of_default, of_others))
}

/// A chunk was allocated here, or made: what is appended to it, or has been, is to be sent to the sync set. Nobody waits for that.
pub fn begin(master: &Arc<Master>, term: u64, chunk: ChunkId, storage_class: u32, first: Option<&str>) {
    let volume = chunk.volume();
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
            let Some(next) = pushing.next(&region, storage_class) else { continue };
            pushing.note(chunk, &region, &next.0);
            next
        };
        let order = Push { chunk: chunk.0, epoch, custody: master.orders(term), chain, ticket };
        let (link, seat) = (master.link(Role::Chunkserver, &address), seat.clone());
        tokio::spawn(async move {
            let begun = link.request::<_, PushBegun>(Method::ChunkPush, &order, BEGIN_WITHIN).await;
            if let Err(failure) = begun {
                tracing::debug!(chunk = chunk.0, region, %failure, "a chunk isn't sent on as it is appended");
                lock(&seat.pushing).forget(chunk, &region);
            }
        });
    }
}

/// Waits, before files name a chunk that house-keeping has made, until the sync set may have it: what names bytes that aren't there yet keeps all fsyncs behind it
/// waiting, and nobody waits for house-keeping.
pub async fn go_ahead(master: &Master, chunk: ChunkId, length: u64) {
    let regions = sync::others(master, chunk.volume());
    if regions.is_empty() {
        return;
    }
    let way = |region: &String| master.global.as_ref().and_then(|global| global.round_trip_to(region));
    let longest = regions.iter().filter_map(way).max().unwrap_or_default();
    tokio::time::sleep(ahead(longest, length)).await;
}

/// So long it may take: to hear of the chunk, to ask where it is, where it isn't sent, and for its bytes.
fn ahead(round_trip: Duration, length: u64) -> Duration {
    (AHEAD_MIN + round_trip * 3 + Duration::from_millis(length / AHEAD_PACE)).min(AHEAD_MAX)
}

/// Where a chunk's bytes are sent in a region.
pub(super) fn pushed_to(master: &Master, chunk: ChunkId, region: &str) -> Vec<String> {
    let seat = master.geo.seat(chunk.volume());
    let pushing = lock(&seat.pushing);
    pushing.pushed.get(&chunk).and_then(|of| of.get(region)).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use mooseng_region::Liveness;
    use mooseng_region::class::Labels;

    use super::*;

    fn candidate(name: &str, media: &str) -> Candidate {
        Candidate {
            name: name.into(),
            zone: format!("zone-{name}"),
            rack: String::new(),
            host: name.into(),
            bytes_free: 1 << 40,
            writable: true,
            draining: false,
            liveness: Liveness::Alive,
            labels: Labels::from([("media".into(), media.into())]),
        }
    }

    fn of(chain: &[ChainMember]) -> Vec<&str> {
        chain.iter().map(|member| member.chunkserver.as_str()).collect()
    }

    #[test]
    fn what_isnt_sent_after_all_is_told_to_nobody() {
        let mut pushing = Pushing::default();
        let member = |name: &str| ChainMember { chunkserver: name.into(), address: "a:1".into() };
        pushing.note(ChunkId(1), "r", &[member("a")]);
        pushing.note(ChunkId(1), "s", &[member("b")]);
        pushing.forget(ChunkId(1), "r");
        pushing.forget(ChunkId(2), "r");
        assert_eq!(pushing.pushed[&ChunkId(1)].keys().collect::<Vec<_>>(), ["s"]);
        pushing.forget(ChunkId(1), "s");
        assert!(pushing.pushed.is_empty());
    }

    #[test]
    fn a_chunk_goes_ahead_of_its_names_for_as_long_as_it_takes_within_bounds() {
        let ms = Duration::from_millis;
        assert_eq!(ahead(Duration::ZERO, 0), AHEAD_MIN);
        assert_eq!(ahead(ms(60), 2 << 20), AHEAD_MIN + ms(180 + 64));
        assert_eq!(ahead(ms(200), CHUNK_BYTES_MAX), AHEAD_MAX);
    }

    #[test]
    fn chunks_of_each_class_are_sent_to_where_that_class_lies() {
        let labelled = |id, name: &str, media: &str| Class {
            id,
            name: name.into(),
            labels: Labels::from([("media".into(), media.into())]),
            ..Class::by_default(1, 1)
        };
        let classes = [Class::by_default(2, 2), labelled(7, "fast", "ssd"), labelled(8, "cold", "tape")];
        let candidates = [candidate("a", "disk"), candidate("b", "ssd")];
        let addresses: BTreeMap<String, String> =
            ["a", "b"].map(|name| (name.to_owned(), format!("{name}:1"))).into();
        let (chains, classes) = placed(&candidates, &classes, &addresses).unwrap();
        // Of what can't be placed there nothing is sent, and the rest is all the same.
        assert_eq!(classes.iter().map(|of| of.storage_class).collect::<Vec<_>>(), [7]);
        let mut pushing = Pushing::default();
        let receivers = Receivers { chains, ticket: Bytes::from_static(b"t"), classes };
        // A region of an earlier release names none but those of the default class.
        let earlier = Receivers { classes: Vec::new(), ..receivers.clone() };
        pushing.receivers = [("r".to_owned(), (receivers, 5)), ("s".to_owned(), (earlier, 0))].into();
        for _ in 0..2 * CHAINS {
            assert_eq!(of(&pushing.next("r", 7).unwrap().0), ["b"]);
            assert_eq!(pushing.next("r", class::DEFAULT).unwrap().0.len(), 2);
        }
        assert_eq!((pushing.next("r", 8), pushing.next("s", 7)), (None, None));
        assert_eq!(pushing.next("s", class::DEFAULT).unwrap().0.len(), 2);
        let none = placed(&candidates[..1], &[Class::by_default(2, 2)], &addresses);
        assert!(none.is_err());
    }
}
