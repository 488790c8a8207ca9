//! How the bytes come that the log names: what was sent here as it was appended is looked for; what wasn't, or is of no use, a chunkserver of this region reads from
//! one of the home's, or of another region's where the home's has it not or isn't reached. Further copies are made from that one, as in any region ([`crate::house`]).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_namespace::upkeep::{self, ChunkListing};
use mooseng_region::fetching::{Failed, Places, Purpose};
use mooseng_replica::Entry;
use mooseng_replica::needs::Named;
use mooseng_schema::Record;
use mooseng_schema::chunk::{self, ChunkRecord};
use mooseng_schema::location::LocationRecord;
use mooseng_store::mvcc::Change;
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::chunk::{AskDigest, ChainMember, Digested};
use mooseng_wire::geo::{AskSource, Hint, Source};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Role, VolumeId};

use super::fetch::{self, Fetched};
use super::{Geo, ROOT_VOLUME, ask, pause, push, serve};
use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;
use crate::tickets;

/// Chunks that a region was told of at most, before it is told again.
const HINTED_MAX: usize = 4_096;
/// After a failure; the scan finds the chunk again.
const AGAIN: Duration = Duration::from_millis(400);
/// The home gets so long to say where a chunk is before other regions are asked, too.
const HOME_FIRST: Duration = Duration::from_millis(1_500);
/// How long a chunkserver may take to say what it has.
const DIGEST_WITHIN: Duration = Duration::from_secs(5);

/// Where a chunk can be read in another region: in the home's if it has it and answers, or else in the nearest one that has the volume and the chunk.
pub async fn source_of(master: &Master, asked: &AskSource) -> Result<Source, String> {
    let volume = ChunkId(asked.chunk).volume();
    let (own, home) = (&master.config.region, super::home_of(master, volume)?);
    let mut at_home = std::pin::pin!(async {
        match home == *own {
            true => Err("no other region has the chunk".to_owned()),
            false => ask(master, &home, Method::ChunkSource, asked).await,
        }
    });
    let from_home = match tokio::time::timeout(HOME_FIRST, &mut at_home).await {
        Ok(Ok(source)) => return Ok(source),
        Ok(Err(trouble)) => Some(trouble),
        Err(_) => None,
    };
    let view = master.geo.view();
    let replicas = view.iter().flat_map(|view| view.replicas_of(volume)).map(str::to_owned);
    let way = |region: &str| master.global.as_ref().and_then(|global| global.round_trip_to(region));
    let mut others: Vec<String> = replicas.filter(|region| region != own).collect();
    others.sort_by_cached_key(|region| way(region).unwrap_or(Duration::MAX));
    let mut last = None;
    for region in others {
        match ask(master, &region, Method::ChunkSource, asked).await {
            Ok(source) => return Ok(source),
            Err(trouble) => last = Some(format!("{region}: {trouble}")),
        }
    }
    // A home that is only slow may have it still.
    let from_home = match from_home {
        Some(trouble) => trouble,
        None => match at_home.await {
            Ok(source) => return Ok(source),
            Err(trouble) => trouble,
        },
    };
    Err(last.into_iter().fold(from_home, |told, other| format!("{told}; {other}")))
}

/// Where a chunk can be read, and if it is sealed what it must be: asked of the home's leader, and of any other's by who doesn't get it there.
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
    // Of one that grows a part may do: what a region says that it has is durable there.
    let is_whole = location.partial.is_none_or(|partial| asked.grows && partial >= asked.length);
    if !as_asked || !is_whole {
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

/// The chunks that an entry says are sealed, and have bytes.
pub(super) fn sealed(volume: VolumeId, changes: &[Change]) -> impl Iterator<Item = ChunkId> {
    changes.iter().filter_map(move |change| {
        let Change::Set(key, value) = change else { return None };
        let chunk = chunk::parse_key(volume, key).ok()?;
        ChunkRecord::from_value(value).is_ok_and(|record| record.sealed && record.length > 0).then_some(chunk)
    })
}

/// Where chunks are read that entries name, or seal, for the region that they are sent to; of those that aren't `known` there yet. Most of those of small files are sealed
/// by the time that the log is sent: their bytes were sent as they were appended all the same.
pub(super) async fn hints(
    master: &Master,
    volume: VolumeId,
    region: &str,
    entries: &[Entry],
    known: &mut BTreeSet<ChunkId>,
) -> Vec<Hint> {
    let mut hints = Vec::new();
    let changes = entries.iter().filter_map(|entry| entry.changes().ok());
    // One may be sealed before anything names it.
    let told = changes.flat_map(|changes| {
        let sealed: Vec<ChunkId> = sealed(volume, &changes).collect();
        Named::by(volume, &changes).upto.into_keys().chain(sealed)
    });
    for chunk in told {
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
        if members.is_empty() {
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

/// What is under way.
#[derive(Default)]
struct Fetching {
    places: Places,
    /// What couldn't be had, and is lacking still.
    failed: Failed,
    /// What is wanted once more and has a place.
    again: BTreeSet<ChunkId>,
    /// Whose turn it was last.
    served: Option<VolumeId>,
}

impl Fetching {
    /// What is fetched next, and up to where; nothing while all that is wanted is under way, or the places are taken.
    fn next(&mut self, geo: &Geo) -> Option<(ChunkId, Option<u64>)> {
        for purpose in Purpose::ALL {
            if self.places.may_take(purpose)
                && let Some((chunk, upto)) = self.pick(geo, purpose)
            {
                self.places.take(chunk, purpose);
                self.served = Some(chunk.volume());
                return Some((chunk, upto));
            }
        }
        None
    }

    /// What is wanted first for that, of each volume in its turn.
    fn pick(&mut self, geo: &Geo, purpose: Purpose) -> Option<(ChunkId, Option<u64>)> {
        let served = self.served.unwrap_or(ROOT_VOLUME);
        let places = &self.places;
        let is_busy = |chunk: ChunkId| places.has(chunk);
        let needed = match purpose {
            Purpose::Awaited => geo.next_need(served, |needs| needs.next_awaited(is_busy)),
            Purpose::Held => {
                let lacks = |chunk: ChunkId| geo.needs(chunk.volume(), |needs| needs.wanted(chunk)).flatten();
                self.failed.retain(|chunk| lacks(chunk).is_some());
                let failed = &self.failed;
                let again = failed.next(places).and_then(|chunk| Some((chunk, lacks(chunk)?)));
                let isnt_next = |chunk: ChunkId| is_busy(chunk) || failed.has(chunk);
                again.or_else(|| geo.next_need(served, |needs| needs.next(isnt_next)))
            }
            Purpose::Aside => loop {
                let chunk = geo.take_wanted()?;
                if !is_busy(chunk) {
                    return Some((chunk, None));
                }
                self.again.insert(chunk);
            },
        };
        needed.map(|(chunk, upto)| (chunk, Some(upto)))
    }

    /// A chunk has come. Answers whether it was asked for once more meanwhile.
    fn ended(&mut self, chunk: ChunkId) -> bool {
        self.places.give_back(chunk);
        self.failed.fetched(chunk);
        self.again.remove(&chunk)
    }

    /// It hasn't: others have their turn, too, before it is tried again.
    fn not_fetched(&mut self, chunk: ChunkId) {
        self.places.give_back(chunk);
        self.failed.note(chunk);
        self.again.remove(&chunk);
    }
}

/// Fetches what is wanted: in a replica's region what its log names, at home what no chunkserver of this region has a good copy of. First what readers wait for,
/// and what holds back the place at which the replica is complete.
pub async fn run(master: &Master, term: u64) {
    let mut fetching = FuturesUnordered::new();
    let mut under_way = Fetching::default();
    loop {
        while let Some((chunk, upto)) = under_way.next(&master.geo) {
            fetching.push(async move {
                let fetched = match fetch::fetch(master, term, chunk, upto).await {
                    Err(reason) => {
                        tracing::info!(
                            chunk = chunk.0,
                            reason,
                            "a chunk couldn't be fetched from another region yet; trying on"
                        );
                        None
                    }
                    // There is no such chunk by now, and the entry by which it died hasn't been looked at: it would be picked again at once, and for ever.
                    Ok(_) if upto.is_some_and(|upto| is_lacking(master, chunk, upto)) => None,
                    Ok(fetched) => Some(fetched),
                };
                if fetched.is_none() {
                    tokio::time::sleep(pause(AGAIN)).await;
                }
                (chunk, fetched)
            });
        }
        tokio::select! {
            Some((chunk, fetched)) = fetching.next(), if !fetching.is_empty() => match fetched {
                Some(fetched) => {
                    if under_way.ended(chunk) || fetched == Fetched::Uncompared {
                        master.geo.want(chunk);
                    }
                }
                None => under_way.not_fetched(chunk),
            },
            () = master.geo.wanting.notified() => {}
        }
    }
}

fn is_lacking(master: &Master, chunk: ChunkId, upto: u64) -> bool {
    master.geo.needs(chunk.volume(), |needs| needs.lacks(chunk, upto)) == Some(true)
}

pub(super) async fn load(master: &Master, chunk: ChunkId) -> Result<Option<ChunkListing>, CallError> {
    transact(&master.store, |tx| async move {
        let listing = upkeep::load_chunk(&tx, chunk).await?;
        Ok((tx, listing))
    })
    .await
    .map_err(|e| record_failed(&e))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mooseng_region::fetching::{AT_ONCE, FOR_AWAITED, FOR_HELD};
    use mooseng_replica::Tail;
    use mooseng_replica::needs::Needs;
    use mooseng_schema::log::LogPosition;
    use mooseng_wire::Epoch;

    use super::super::{HINTS_MAX, TAIL_BYTES_MAX, lock};
    use super::*;

    #[test]
    fn what_readers_wait_for_is_fetched_first_and_leaves_room_for_what_holds_completeness_back() {
        let at = |version| LogPosition::new(Epoch(1), version);
        let (second, begun) = (VolumeId(1), at(1));
        let geo = Geo::new(Arc::new(Tail::new(TAIL_BYTES_MAX)), None);
        let mut of_root = Needs::from(begun);
        of_root.note(at(2), (1..=20).map(|chunk| (ChunkId(chunk), 5)), []);
        let of_second = |chunk| ChunkId::new(second, chunk);
        let mut others = Needs::from(begun);
        others.note(at(2), (1..=20).map(|chunk| (of_second(chunk), 5)), []);
        (11..=20).for_each(|chunk| others.missed(of_second(chunk), 3));
        *lock(&geo.seat(ROOT_VOLUME).needs) = Some(of_root);
        *lock(&geo.seat(second).needs) = Some(others);
        geo.want(ChunkId(77));

        let mut under_way = Fetching::default();
        let next = |under_way: &mut Fetching| under_way.next(&geo);
        for chunk in 11..11 + (AT_ONCE - FOR_HELD) as u64 {
            assert_eq!(next(&mut under_way), Some((of_second(chunk), Some(5))));
        }
        // Each volume in its turn.
        assert_eq!(next(&mut under_way), Some((ChunkId(1), Some(5))));
        assert_eq!(next(&mut under_way), Some((of_second(1), Some(5))));
        assert_eq!(next(&mut under_way), None, "all places are taken");
        // Once one of those has come that readers wait for, the next of them is in front again.
        under_way.ended(of_second(11));
        assert_eq!(next(&mut under_way), Some((of_second(17), Some(5))));
        under_way.ended(of_second(1));
        assert_eq!(next(&mut under_way), Some((ChunkId(2), Some(5))));
        // What no log lacks comes last.
        for volume in [ROOT_VOLUME, second] {
            *lock(&geo.seat(volume).needs) = None;
        }
        under_way.ended(of_second(12));
        assert_eq!(next(&mut under_way), None, "the next reader finds a place");
        under_way.ended(of_second(13));
        assert_eq!(next(&mut under_way), Some((ChunkId(77), None)));
        under_way.ended(of_second(14));
        assert_eq!(next(&mut under_way), None);
    }

    #[test]
    fn what_no_log_lacks_leaves_room_for_what_holds_completeness_back() {
        let geo = Geo::new(Arc::new(Tail::new(TAIL_BYTES_MAX)), None);
        (1..=20).for_each(|chunk| geo.want(ChunkId(chunk)));
        let mut under_way = Fetching::default();
        let aside = (AT_ONCE - FOR_HELD - FOR_AWAITED) as u64;
        for n in 1..=aside {
            assert_eq!(under_way.next(&geo), Some((ChunkId(n), None)));
        }
        assert_eq!(under_way.next(&geo), None);
        let at = |version| LogPosition::new(Epoch(1), version);
        let mut needs = Needs::from(at(1));
        needs.note(at(2), [(ChunkId(90), 5)], []);
        *lock(&geo.seat(ROOT_VOLUME).needs) = Some(needs);
        assert_eq!(under_way.next(&geo), Some((ChunkId(90), Some(5))));
        under_way.ended(ChunkId(90));
        *lock(&geo.seat(ROOT_VOLUME).needs) = None;
        under_way.ended(ChunkId(3));
        assert_eq!(under_way.next(&geo), Some((ChunkId(aside + 1), None)));
    }

    /// Found by review: each of the two had a bound of its own, and together they took all places.
    #[test]
    fn readers_and_what_no_log_lacks_together_leave_room_for_what_holds_completeness_back() {
        let geo = Geo::new(Arc::new(Tail::new(TAIL_BYTES_MAX)), None);
        let at = |version| LogPosition::new(Epoch(1), version);
        let mut needs = Needs::from(at(1));
        (101..=120).for_each(|chunk| needs.missed(ChunkId(chunk), 3));
        *lock(&geo.seat(ROOT_VOLUME).needs) = Some(needs);
        (1..=20).for_each(|chunk| geo.want(ChunkId(chunk)));
        let mut under_way = Fetching::default();
        let taken = std::iter::from_fn(|| under_way.next(&geo)).count();
        assert_eq!(taken, AT_ONCE - FOR_HELD);
        geo.needs(ROOT_VOLUME, |needs| needs.note(at(2), [(ChunkId(90), 5), (ChunkId(91), 5)], []));
        assert_eq!(under_way.next(&geo), Some((ChunkId(90), Some(5))));
        assert_eq!(under_way.next(&geo), Some((ChunkId(91), Some(5))));
    }

    /// Found by review: what can't be had holds completeness back furthest, was always the next again, and took all places for good.
    #[test]
    fn what_cant_be_had_doesnt_keep_others_from_being_fetched() {
        let geo = Geo::new(Arc::new(Tail::new(TAIL_BYTES_MAX)), None);
        let at = |version| LogPosition::new(Epoch(1), version);
        let mut needs = Needs::from(at(1));
        needs.note(at(2), (1..=60).map(|chunk| (ChunkId(chunk), 5)), []);
        *lock(&geo.seat(ROOT_VOLUME).needs) = Some(needs);
        geo.want(ChunkId(77));
        let mut under_way = Fetching::default();
        let (mut tried, mut came) = ([0; 21], BTreeSet::new());
        for _ in 0..40 {
            let taken: Vec<_> = std::iter::from_fn(|| under_way.next(&geo)).collect();
            for (chunk, _) in taken {
                if chunk.0 <= 20 {
                    tried[chunk.0 as usize] += 1;
                    under_way.not_fetched(chunk);
                } else {
                    geo.needs(ROOT_VOLUME, |needs| needs.met(chunk, 5));
                    under_way.ended(chunk);
                    came.insert(chunk.0);
                }
            }
        }
        assert_eq!(came, (21..=60).chain([77]).collect::<BTreeSet<u64>>());
        assert!(tried[1..].iter().all(|tries| *tries > 2), "each is tried again: {tried:?}");
        // Once one can be had, the others may be, too: all that is lacking is fetched, what holds most back first.
        geo.needs(ROOT_VOLUME, |needs| needs.met(ChunkId(1), 5));
        under_way.ended(ChunkId(1));
        let taken: Vec<_> = std::iter::from_fn(|| under_way.next(&geo)).collect();
        let first = 2..2 + AT_ONCE as u64;
        assert_eq!(taken, first.map(|chunk| (ChunkId(chunk), Some(5))).collect::<Vec<_>>());
    }

    /// Found by review: what was wanted while it had a place was forgotten where the fetch had begun before, as that of a chunk that was sealed since.
    #[test]
    fn what_is_wanted_while_it_is_fetched_is_looked_at_again() {
        let geo = Geo::new(Arc::new(Tail::new(TAIL_BYTES_MAX)), None);
        let mut under_way = Fetching::default();
        geo.want(ChunkId(1));
        assert_eq!(under_way.next(&geo), Some((ChunkId(1), None)));
        geo.want(ChunkId(1));
        assert_eq!(under_way.next(&geo), None);
        assert!(under_way.ended(ChunkId(1)), "it is wanted once more");
        geo.want(ChunkId(1));
        assert_eq!(under_way.next(&geo), Some((ChunkId(1), None)));
        assert!(!under_way.ended(ChunkId(1)));
    }

    /// Found by review: the newest went first, and what came before it never had its turn where chunks came faster than they were compared.
    #[test]
    fn what_is_compared_later_has_its_turn_however_many_come_behind_it() {
        let geo = Geo::new(Arc::new(Tail::new(TAIL_BYTES_MAX)), None);
        geo.want(ChunkId(1));
        let mut under_way = Fetching::default();
        let mut newest = 1;
        let mut turns = std::iter::from_fn(|| {
            // Two come while one is compared.
            for _ in 0..2 {
                newest += 1;
                geo.want(ChunkId(newest));
            }
            let (chunk, _) = under_way.next(&geo)?;
            under_way.ended(chunk);
            Some(chunk.0)
        });
        assert_eq!(turns.by_ref().take(10).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    }

    /// Found by review: those of the volume with the lowest number went first, whoever had most.
    #[test]
    fn hints_of_one_volume_dont_displace_those_of_others() {
        let geo = Geo::new(Arc::new(Tail::new(TAIL_BYTES_MAX)), None);
        let of_second = |n: u64| ChunkId::new(VolumeId(1), n);
        let hint =
            |chunk: ChunkId| Hint { chunk: chunk.0, source: Some(Source::default()), pushed: Vec::new() };
        geo.note_hints((1..=HINTS_MAX as u64 + 3).map(|n| hint(of_second(n))).collect());
        assert!(!lock(&geo.hints).contains_key(&of_second(3)));
        geo.note_hints(vec![hint(ChunkId(7)), hint(ChunkId(8))]);
        let known = lock(&geo.hints);
        assert_eq!(known.len(), HINTS_MAX);
        assert!([ChunkId(7), ChunkId(8), of_second(6)].iter().all(|chunk| known.contains_key(chunk)));
        assert!(!known.contains_key(&of_second(5)));
    }
}
