//! One chunk that is wanted here: chunkservers of this region get it, as many as a chunk that is written needs at least (`min_copies`). One of them reads
//! it in the other region, the others from that one. Only then it counts: what the sync set has is to survive the loss of the home and of one more
//! chunkserver.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use mooseng_namespace::upkeep::ChunkListing;
use mooseng_region::class::Class;
use mooseng_region::placement::{self, Wish};
use mooseng_region::registry::CopyFacts;
use mooseng_region::repair::{self, Condition, CopyState};
use mooseng_schema::location::{Layout, LocationRecord};
use mooseng_wire::chunk::{ChainMember, Pull, Pulled};
use mooseng_wire::geo::{AskSource, Hint, Source};
use mooseng_wire::method::Method;
use mooseng_wire::{CHUNK_BYTES_MAX, ChunkId, Role, VolumeId};

use super::chunks::{load, source_of};
use super::growing::Growing;
use super::{Whereabouts, place_of, sync};
use crate::master::Master;
use crate::{house, tickets};

/// How long a chunk may take beyond what 1 MiB a second allows.
pub(super) const PULL_WITHIN: Duration = Duration::from_secs(60);
/// How fast it comes at least, in bytes per second.
pub(super) const PACE_MIN: u64 = 1 << 20;
/// How long chunkservers may take to say whether they have what was sent.
const ARRIVED_WITHIN: Duration = Duration::from_millis(50);
/// How long bytes are waited for that are sent here as they are appended: the log that names them may be faster by what it takes to write them here. Reading them
/// in the other region takes a round trip, and sends them twice.
const EXPECTED_MS: u32 = 100;
/// How often it is begun again at once where the chunk changed meanwhile.
const TRIES: usize = 5;
/// Chunkservers that are tried in place of those that fail, at a time.
const REPLACED_MAX: usize = 2;

/// Why it isn't here yet.
enum Failed {
    /// The chunk has grown, or was sealed: it is looked at again.
    Changed,
    /// For that reason.
    For(String),
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self::For(reason)
    }
}

/// What became of a chunk that was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    /// All of it is here that was asked for.
    Here,
    /// Its bytes are; it is sealed, and wasn't compared with what it is to be yet. Nobody waits for that: it is to be asked for again.
    Uncompared,
}

/// Fetches a chunk: all of one that is sealed; of one that grows still what is needed of it.
pub(super) async fn fetch(
    master: &Master,
    term: u64,
    chunk: ChunkId,
    upto: Option<u64>,
) -> Result<Fetched, String> {
    for _ in 0..TRIES {
        match try_fetch(master, term, chunk, upto).await {
            Ok(fetched) => return Ok(fetched),
            Err(Failed::Changed) => {}
            Err(Failed::For(reason)) => return Err(reason),
        }
    }
    Err("the chunk changes all the time".into())
}

async fn try_fetch(master: &Master, term: u64, chunk: ChunkId, upto: Option<u64>) -> Result<Fetched, Failed> {
    use Fetched::{Here, Uncompared};
    let Some(listing) = load(master, chunk).await.map_err(|e| e.message)? else {
        forget_hint(master, chunk);
        return Ok(Here);
    };
    let record = &listing.record;
    let sealed = record.sealed && record.length > 0;
    let wanted = if sealed { record.length } else { upto.unwrap_or(0) };
    // Bytes that are sent here are here, or about to be. What a sealed chunk is to be is asked for afterwards: that takes a round trip, and whoever waits for the
    // bytes needn't. Those of a chunk that grows aren't compared before it is sealed either.
    let bytes = if sealed { Uncompared } else { Here };
    // So is what isn't sent here of a volume whose fsyncs wait for this region, or may soon, where the home has said along with the log where it can be read: its bytes
    // take one round trip then, and not another one before it.
    let is_told = || {
        let is_geo = sync::synced(master, chunk.volume()).is_some();
        is_geo && super::lock(&master.geo.hints).contains_key(&chunk)
    };
    match listing.location.clone() {
        Some(location) if is_of_no_use(master, &listing, &location) => {
            fetch_whole(master, term, &listing).await?;
            let copies = &location.copies;
            tracing::info!(
                chunk = chunk.0,
                ?copies,
                "no copy of a chunk was of any use here: it was fetched from another region"
            );
            Ok(Here)
        }
        // By another leader, or under a home before.
        Some(location) if location.partial.is_none() => {
            if suffices(master, chunk.volume(), record.storage_class, &location) {
                met(master, chunk, u64::MAX);
                forget_hint(master, chunk);
                return Ok(Here);
            }
            Err(format!("house-keeping makes more copies of it than the {} here", location.copies.len())
                .into())
        }
        _ if wanted == 0 => Ok(Here),
        Some(location) if sealed && location.copies.is_empty() => {
            fetch_whole(master, term, &listing).await.map(|()| Here)
        }
        None => {
            let mut location = LocationRecord {
                layout: Layout::Copies as u32,
                copies: Vec::new(),
                epoch: record.birth,
                partial: Some(0),
            };
            // What was sent here as it was appended lies there already.
            location.copies = pushed(master, chunk);
            if suffices(master, chunk.volume(), record.storage_class, &location) {
                match follow(master, term, &listing, location.clone(), (wanted, false)).await {
                    Err(Failed::For(reason)) => {
                        tracing::debug!(chunk = chunk.0, reason, "what was sent isn't there")
                    }
                    done => return done.map(|()| bytes),
                }
                // It comes there all the same, as does whatever is appended later: elsewhere each byte of the chunk would have to be read.
            } else {
                location.copies = targets(master, &listing, &BTreeSet::new())?;
            }
            if sealed && !is_told() {
                return fetch_whole(master, term, &listing).await.map(|()| Here);
            }
            // On record before there is anything, so that nothing is taken for a stray.
            relocate(master, &listing, &location).await?;
            let listing = ChunkListing { location: Some(location.clone()), ..listing };
            follow(master, term, &listing, location, (wanted, false)).await.map(|()| bytes)
        }
        Some(location) if suffices(master, chunk.volume(), record.storage_class, &location) => {
            let partial = location.partial.unwrap_or(0);
            // What is named may be here, although the chunk has more by now.
            met(master, chunk, partial);
            if partial < wanted && (is_told() || is_sent(master, chunk, &location)) {
                return follow(master, term, &listing, location, (wanted, false)).await.map(|()| bytes);
            }
            if !sealed && partial >= wanted {
                return Ok(Here);
            }
            follow(master, term, &listing, location, (wanted, sealed)).await.map(|()| Here)
        }
        Some(location) => follow(master, term, &listing, location, (wanted, sealed)).await.map(|()| Here),
    }
}

/// Whether bytes of a chunk are here that were sent as they were appended: then that is put on record, unless it is already. Asks this region's chunkservers only, and
/// these not for long.
pub(super) async fn arrived(master: &Master, term: u64, chunk: ChunkId, upto: u64) -> bool {
    let Ok(Some(listing)) = load(master, chunk).await else { return false };
    let record = &listing.record;
    let location = listing.location.clone().unwrap_or_else(|| LocationRecord {
        layout: Layout::Copies as u32,
        copies: pushed(master, chunk),
        epoch: record.birth,
        partial: Some(0),
    });
    let grows = location.partial.is_some_and(|partial| partial < upto);
    if !grows || !suffices(master, chunk.volume(), record.storage_class, &location) {
        return false;
    }
    let order = Growing { term, chunk, upto, digest: Bytes::new() };
    let follow = location.copies.iter().map(|copy| order.follow(master, copy, None, 0));
    let followed = tokio::time::timeout(ARRIVED_WITHIN, futures::future::join_all(follow)).await;
    let lengths: Option<Vec<u64>> = followed.ok().and_then(|all| all.into_iter().map(Result::ok).collect());
    let Some(least) = lengths.and_then(|lengths| lengths.into_iter().min()) else { return false };
    let (had, grown) = (location.partial.unwrap_or(0), LocationRecord { partial: Some(least), ..location });
    match relocate(master, &listing, &grown).await {
        Ok(()) => {
            master.metrics.bytes_fetched.inc_by(least.saturating_sub(had));
            true
        }
        // Whoever fetches it has put on record meanwhile what is here, perhaps all of it.
        Err(Failed::Changed) => true,
        Err(Failed::For(_)) => false,
    }
}

/// Nobody asks any more where a chunk can be read.
fn forget_hint(master: &Master, chunk: ChunkId) {
    super::lock(&master.geo.hints).remove(&chunk);
}

/// The chunkservers of this region that the home has a chunk's bytes sent to, as far as they are known here. Not those that were told to delete these, which
/// nothing named before their entry came: they may do so yet.
fn pushed(master: &Master, chunk: ChunkId) -> Vec<String> {
    let hint = super::lock(&master.geo.hints).get(&chunk).map(|hint| hint.pushed.clone());
    let mut names = hint.unwrap_or_default();
    let epoch = master.epoch(chunk.volume()).0;
    master.desk(|desk| {
        let deleting = desk.take_back_deletions(chunk, epoch);
        names.retain(|name| desk.registry.get(name).is_some() && !deleting.contains(name));
    });
    names.sort();
    names.dedup();
    names
}

/// Whether the home has what is appended to a chunk sent to all who have it here.
fn is_sent(master: &Master, chunk: ChunkId, location: &LocationRecord) -> bool {
    let pushed = pushed(master, chunk);
    !pushed.is_empty() && location.copies.iter().all(|copy| pushed.contains(copy))
}

/// Whether a sealed chunk that was whole here has no copy here any more: each is missing or corrupt, or its chunkserver is given up.
fn is_of_no_use(master: &Master, listing: &ChunkListing, location: &LocationRecord) -> bool {
    let (chunk, record) = (listing.chunk, &listing.record);
    let is_kept = matches!(place_of(master, chunk.volume()), Whereabouts::Here(_) | Whereabouts::Elsewhere);
    if !is_kept || !record.sealed || record.length == 0 || location.partial.is_some() {
        return false;
    }
    let house = &master.config.house;
    let (now, grace) = (master.clock.boot(), Duration::from_millis(house.grace_ms));
    let settle_ns = i64::try_from(house.settle_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let settled = repair::is_settled(record.sealed_ns, master.now_since(record.sealed_ns), settle_ns);
    master.desk(|desk| {
        location.copies.iter().all(|name| {
            let condition = repair::condition(&desk.registry, name, now, desk.serving_since, grace);
            let state = repair::copy_state(&desk.registry, name, condition, chunk, record.length, settled);
            matches!(state, CopyState::Bad | CopyState::Lost)
        })
    })
}

fn class(master: &Master, volume: VolumeId, id: u32) -> Class {
    master.desk(|desk| desk.seat(volume).classes.get(id).clone())
}

/// Whether there are as many copies as a chunk of this class that is written needs at least.
pub(super) fn suffices(
    master: &Master,
    volume: VolumeId,
    storage_class: u32,
    location: &LocationRecord,
) -> bool {
    location.copies.len() >= class(master, volume, storage_class).min_copies.max(1)
}

async fn relocate(master: &Master, listing: &ChunkListing, location: &LocationRecord) -> Result<(), Failed> {
    match house::relocate(master, listing, location.clone()).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failed::Changed),
        Err(error) => Err(Failed::For(error.message)),
    }
}

fn met(master: &Master, chunk: ChunkId, upto: u64) {
    if master.geo.needs(chunk.volume(), |needs| needs.met(chunk, upto)).is_some() {
        master.geo.needs_changed(chunk.volume());
    }
}

/// The chunkservers of this region that take a chunk, as many as are needed at least. None that may delete its copy yet.
fn targets(
    master: &Master,
    listing: &ChunkListing,
    exclude: &BTreeSet<String>,
) -> Result<Vec<String>, String> {
    let (chunk, record) = (listing.chunk, &listing.record);
    let class = class(master, chunk.volume(), record.storage_class);
    let epoch = master.epoch(chunk.volume()).0;
    let (candidates, deleting) = master.desk(|desk| {
        let candidates = desk.registry.candidates(master.clock.boot());
        (candidates, desk.take_back_deletions(chunk, epoch))
    });
    let exclude: BTreeSet<String> = exclude.union(&deleting).cloned().collect();
    let bytes_wanted = if record.sealed { record.length } else { CHUNK_BYTES_MAX };
    let wish = Wish { class: &class, bytes_wanted, exclude: &exclude, seed: rand::random() };
    let mut placed = placement::place(&candidates, wish).map_err(|too_few| too_few.to_string())?;
    placed.truncate(class.min_copies.max(1));
    Ok(placed)
}

/// Where a chunkserver of this region is reached.
pub(super) fn address_of(master: &Master, chunkserver: &str) -> Option<String> {
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

/// Where one of this region reads what another one of it has.
fn source_here(master: &Master, chunk: ChunkId, of: &Source, chunkserver: &str) -> Option<Source> {
    let address = address_of(master, chunkserver)?;
    let (volume, now_ns) = (u64::from(chunk.volume().0), master.clock.unix_ns());
    let ticket = master.desk(|desk| tickets::for_chunk(&desk.keys, 0, volume, chunk.0, false, now_ns));
    Some(Source {
        holders: vec![ChainMember { chunkserver: chunkserver.to_owned(), address }],
        ticket: ticket.into(),
        ..of.clone()
    })
}

async fn fetch_whole(master: &Master, term: u64, listing: &ChunkListing) -> Result<(), Failed> {
    let (chunk, length) = (listing.chunk, listing.record.length);
    let targets = targets(master, listing, &BTreeSet::new())?;
    let afar = source_of(master, &AskSource { chunk: chunk.0, length, grows: false }).await?;
    let mut source = afar.clone();
    for target in &targets {
        let address = address_of(master, target).ok_or_else(|| format!("{target} isn't known any more"))?;
        pull(master, term, chunk, length, &source, &address).await?;
        source = source_here(master, chunk, &afar, target).unwrap_or(source);
    }
    let location = LocationRecord {
        layout: Layout::Copies as u32,
        copies: targets.clone(),
        epoch: afar.epoch,
        partial: None,
    };
    relocate(master, listing, &location).await?;
    fetched(master, chunk, &targets, (length, 0), afar.epoch);
    met(master, chunk, u64::MAX);
    forget_hint(master, chunk);
    Ok(())
}

/// A chunk of which `had` bytes were here is here, whole.
fn fetched(master: &Master, chunk: ChunkId, targets: &[String], (length, had): (u64, u64), epoch: u64) {
    let copy = CopyFacts { length, sealed: true, epoch, corrupt: false };
    master.desk(|desk| {
        for target in targets {
            desk.registry.changed(target, &[(chunk, copy)], &[]);
        }
    });
    master.metrics.chunks_fetched.inc();
    master.metrics.bytes_fetched.inc_by(length.saturating_sub(had));
    tracing::debug!(chunk = chunk.0, ?targets, "a chunk was fetched from another region");
}

/// Has the copies here grow up to what is needed. Where that is where a sealed chunk ends, they may be ended there, too, and compared with what it is to be.
async fn follow(
    master: &Master,
    term: u64,
    listing: &ChunkListing,
    location: LocationRecord,
    (upto, ends): (u64, bool),
) -> Result<(), Failed> {
    let chunk = listing.chunk;
    let had = location.partial.unwrap_or(0);
    let need = class(master, chunk.volume(), listing.record.storage_class).min_copies.max(1);
    if ends {
        forget_hint(master, chunk);
    }
    let hint = super::lock(&master.geo.hints).get(&chunk).cloned();
    let hinted = hint.is_some();
    // What was sent here is here, or about to be.
    let mut pushed = hint.as_ref().map(|hint| hint.pushed.clone()).unwrap_or_default();
    let expected = location.copies.iter().all(|copy| pushed.contains(copy)) && !pushed.is_empty();
    let afar = match hint {
        Some(hint) => hint.source.unwrap_or_default(),
        None => source_of(master, &AskSource { chunk: chunk.0, length: upto, grows: !ends }).await?,
    };
    let order = Growing { term, chunk, upto, digest: if ends { afar.digest.clone() } else { Bytes::new() } };
    let (mut have, mut least) = (Vec::new(), u64::MAX);
    let (mut reasons, mut useless) = (Vec::new(), 0);
    // One that is only down is waited for: what it has this region has said that it has.
    let (gone, copies): (Vec<&String>, Vec<&String>) =
        location.copies.iter().partition(|copy| is_lost(master, copy));
    let none_lost = gone.is_empty();
    useless += gone.len();
    reasons.extend(gone.iter().map(|copy| format!("{copy}, which has a part of it, is lost")));
    // The first one reads it there. The others have it, too, where it was sent as it was appended; else they read it from the first.
    let mut behind = Vec::new();
    let few = futures::future::join_all(copies.iter().enumerate().map(|(place, copy)| {
        let (order, source) = (&order, (place == 0 && !expected).then_some(&afar));
        let expected_ms = if expected { EXPECTED_MS } else { 0 };
        async move { (*copy, order.follow(master, copy, source, expected_ms).await) }
    }));
    for (copy, followed) in few.await {
        match followed {
            Ok(length) => {
                have.push(copy.clone());
                least = least.min(length);
            }
            Err(failed) if failed.behind => {
                // It isn't sent any more, or too late: nobody waits for what follows. What is sent first may begin a little later.
                if had > 0 {
                    pushed.clear();
                }
                behind.push((copy, failed));
            }
            Err(failed) => {
                useless += usize::from(failed.useless);
                reasons.push(failed.reason);
            }
        }
    }
    // The one that couldn't read it there comes last: there may be a copy near by then.
    let asked_afar = copies.first().copied().filter(|_| !expected);
    behind.sort_by_key(|(copy, _)| asked_afar == Some(*copy));
    for (copy, failed) in behind {
        let near = have.first().and_then(|first: &String| source_here(master, chunk, &afar, first));
        if near.is_none() && asked_afar == Some(copy) {
            reasons.push(failed.reason);
            continue;
        }
        match order.follow(master, copy, Some(near.as_ref().unwrap_or(&afar)), 0).await {
            Ok(length) => {
                have.push(copy.clone());
                least = least.min(length);
            }
            Err(failed) => {
                useless += usize::from(failed.useless);
                reasons.push(failed.reason);
            }
        }
    }
    // Others take the place of those that fail: of some if one has it, so that it isn't the source's fault, and of all if they are of no use.
    let mut excluded: BTreeSet<String> = location.copies.iter().cloned().collect();
    let anew = useless == location.copies.len();
    let mut tried = 0;
    while have.len() < need && (anew || !have.is_empty()) && tried < REPLACED_MAX {
        tried += 1;
        let place = targets(master, listing, &excluded)
            .map(|placed| placed.into_iter().find(|p| !excluded.contains(p)));
        let Ok(Some(target)) = place else { break };
        excluded.insert(target.clone());
        let near = have.first().and_then(|first| source_here(master, chunk, &afar, first));
        match order.follow(master, &target, Some(near.as_ref().unwrap_or(&afar)), 0).await {
            Ok(length) => {
                have.push(target);
                least = least.min(length);
            }
            Err(failed) => reasons.push(failed.reason),
        }
    }
    let why = reasons.join("; ");
    if have.len() < need {
        // What the home has said some time ago may not be so any more: the next try asks. Nor is anything of use there given up by what was said then.
        forget_hint(master, chunk);
        if anew && !hinted && have.is_empty() {
            return begin_anew(master, listing, location, (why.as_str(), none_lost)).await;
        }
        return Err(Failed::For(why));
    }
    if !why.is_empty() {
        tracing::warn!(chunk = chunk.0, why, now = ?have, "copies of a chunk that is being fetched are replaced");
    }
    let partial = if ends { None } else { Some(least) };
    let grown = LocationRecord { partial, copies: have.clone(), ..location };
    // Where it was sealed meanwhile, it is looked at again, by the same hint.
    relocate(master, listing, &grown).await?;
    match ends {
        true => fetched(master, chunk, &have, (upto, had), afar.epoch),
        false => drop(master.metrics.bytes_fetched.inc_by(least.saturating_sub(had))),
    }
    met(master, chunk, if ends { u64::MAX } else { least });
    if !listing.record.sealed {
        // It grows on: as long as it can be read there, nobody is asked.
        master.geo.note_hints(vec![Hint { chunk: chunk.0, source: Some(afar), pushed }]);
    }
    Ok(())
}

/// What is here of a chunk is of no use: it is begun anew on other chunkservers, if there are some. Where there are none, a sealed one is read whole, and takes the
/// place of what lies there; unless that is lost, and may be of use once it is back.
async fn begin_anew(
    master: &Master,
    listing: &ChunkListing,
    location: LocationRecord,
    (why, none_lost): (&str, bool),
) -> Result<(), Failed> {
    let exclude: BTreeSet<String> = location.copies.iter().cloned().collect();
    let others = targets(master, listing, &exclude);
    // Placement takes those that are to be left out where there are too few without them.
    let too_few =
        others.as_ref().map_or(true, |placed| placed.iter().any(|chunkserver| exclude.contains(chunkserver)));
    let copies = if too_few && none_lost && listing.record.sealed {
        // There is room for it.
        targets(master, listing, &BTreeSet::new())?;
        Vec::new()
    } else {
        others?
    };
    tracing::warn!(
        chunk = listing.chunk.0,
        ?copies,
        why,
        "what is here of a chunk is of no use, and it is fetched anew"
    );
    let anew = LocationRecord { copies, partial: Some(0), ..location };
    relocate(master, listing, &anew).await?;
    if anew.copies.is_empty() {
        return Err(Failed::Changed);
    }
    Err(Failed::For(format!("what was here of the chunk was of no use: {why}")))
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
            epoch: master.epoch(chunk.volume()).0,
            length,
            digest: source.digest.clone(),
            custody: master.orders(term),
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
