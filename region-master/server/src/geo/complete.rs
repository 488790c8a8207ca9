//! Where a replica is *complete*: each entry of the log is looked at for the data that it names, and the home is told once that is here.
//!
//! ```text
//!  receive: entries -> named, missing -> whole? -> replayed -> noted        catch_up: entries from the store, for a new leader
//!  chunks: data comes -> met -> complete -> on record, before-images go -> LogComplete -> home
//! ```
//! The home hears of no place that isn't on record: whoever leads here next begins from the record.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_namespace::upkeep;
use mooseng_replica::needs::{Named, Needs};
use mooseng_replica::{Entry, ReplicaError, read};
use mooseng_schema::Record;
use mooseng_schema::chunk::{self as chunk_records, ChunkRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::log::{LogPosition, ReplicaRecord};
use mooseng_store::{Read, Store, Transaction};
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::geo::{Complete, CompleteHeard};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Epoch, VolumeId};

use super::receive::{self, Change};
use super::{Whereabouts, ask, fetch, home_of, pause, place, place_of, position};
use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;
use crate::seals;

/// Bytes of the log that are looked at in one go.
const READ_BYTES: usize = 1 << 20;
/// Chunks that are looked at in one go.
const PAGE: usize = 256;
/// Chunks of one transaction of which is looked whether their bytes are here already.
const ARRIVED_MAX: usize = 16;
/// After a failure.
const AGAIN: Duration = Duration::from_millis(200);
/// While there is no room for more that is lacking.
const FULL: Duration = Duration::from_secs(1);
/// Messages to the home under way at most. The next one tells what they didn't.
const TELLING_MAX: usize = 8;

/// What an entry that comes means for completeness.
pub(super) struct Coming {
    at: LogPosition,
    missing: Vec<(ChunkId, u64)>,
    /// What is here of those.
    here: Vec<(ChunkId, u64)>,
    gone: Vec<ChunkId>,
}

/// What entries name that isn't here.
pub(super) async fn coming(
    master: &Master,
    volume: VolumeId,
    entries: &[Entry],
) -> Result<Vec<Coming>, ReplicaError> {
    let tx = master.store.begin();
    let mut all = Vec::with_capacity(entries.len());
    for entry in entries {
        let named = Named::by(volume, &entry.changes()?);
        let (mut missing, mut here) = (Vec::new(), Vec::new());
        for (chunk, upto) in named.upto {
            let has = here_of(master, &tx, chunk).await?;
            if has < upto {
                missing.push((chunk, upto));
                here.push((chunk, has));
            }
        }
        all.push(Coming { at: entry.at, missing, here, gone: named.gone.into_iter().collect() });
    }
    Ok(all)
}

/// What entries name may be here already, for it was sent as it was appended: then they are complete as they come. Nobody is waited for.
pub(super) async fn arrived(
    master: &Master,
    volume: VolumeId,
    entries: &[Entry],
    coming: &mut Vec<Coming>,
) -> Result<(), ReplicaError> {
    let mut missing = BTreeMap::new();
    for (chunk, upto) in coming.iter().flat_map(|entry| &entry.missing) {
        let most = missing.entry(*chunk).or_insert(*upto);
        *most = (*most).max(*upto);
    }
    // More is a backlog, which is fetched as ever.
    if missing.is_empty() || missing.len() > ARRIVED_MAX {
        return Ok(());
    }
    let Ok(term) = master.serving_of(volume) else { return Ok(()) };
    let looked = missing.into_iter().map(|(chunk, upto)| fetch::arrived(master, term, chunk, upto));
    if futures::future::join_all(looked).await.contains(&true) {
        *coming = self::coming(master, volume, entries).await?;
    }
    Ok(())
}

/// So many bytes of a chunk are here, on as many chunkservers as are needed; of one that is whole, as many as there are.
async fn here_of<T: Transaction>(master: &Master, tx: &T, chunk: ChunkId) -> Result<u64, ReplicaError> {
    let Some(value) = tx.get(&location::key(chunk), Read::Snapshot).await? else { return Ok(0) };
    let location = LocationRecord::from_value(&value)?;
    let Some(value) = tx.get(&chunk_records::key(chunk), Read::Snapshot).await? else { return Ok(0) };
    let class = ChunkRecord::from_value(&value)?.storage_class;
    Ok(if fetch::suffices(master, chunk.volume(), class, &location) {
        location.partial.unwrap_or(u64::MAX)
    } else {
        0
    })
}

/// Up to where entries that follow `after` are complete as they come.
pub(super) fn whole(master: &Master, volume: VolumeId, after: LogPosition, coming: &[Coming]) -> LogPosition {
    let complete =
        master.geo.needs(volume, |needs| (needs.noted() == after).then(|| needs.complete())).flatten();
    if complete != Some(after) {
        return LogPosition::default();
    }
    coming.iter().take_while(|entry| entry.missing.is_empty()).last().map_or(after, |entry| entry.at)
}

/// Entries were noted. Whoever waits for what they name is told once this goes, also where the call that brought them is given up before its end.
pub(super) struct Noted<'a> {
    master: &'a Master,
    volume: VolumeId,
    lacking: BTreeSet<ChunkId>,
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.master.geo.needs_changed(self.volume);
    }
}

impl Noted<'_> {
    /// Bytes may have come while the entry that names them was replayed: behind what was looked up before, and told of when nothing was known to lack them. Whoever fetches
    /// such a chunk may be busy with it for a round trip, to compare it, and would find out only then.
    pub(super) async fn look_again(mut self) {
        let lacking = std::mem::take(&mut self.lacking);
        if let Err(error) = look_again(self.master, self.volume, lacking).await {
            tracing::debug!(%error, "whether what entries name has come meanwhile can't be looked up: it is fetched");
        }
    }
}

/// The entries that follow `after` are replayed.
pub(super) fn note(
    master: &Master,
    volume: VolumeId,
    after: LogPosition,
    coming: Vec<Coming>,
) -> Option<Noted<'_>> {
    if coming.is_empty() {
        return None;
    }
    let lacking: BTreeSet<ChunkId> =
        coming.iter().flat_map(|entry| &entry.missing).map(|(chunk, _)| *chunk).collect();
    {
        // What is no more nobody reads.
        let mut hints = super::lock(&master.geo.hints);
        coming.iter().flat_map(|entry| &entry.gone).for_each(|chunk| drop(hints.remove(chunk)));
    }
    let noted = master.geo.needs(volume, |needs| {
        if needs.noted() != after || needs.is_full() {
            return false;
        }
        for entry in coming {
            needs.note(entry.at, entry.missing, entry.gone);
            for (chunk, upto) in entry.here {
                needs.met(chunk, upto);
            }
        }
        true
    });
    if noted != Some(true) {
        return None;
    }
    Some(Noted { master, volume, lacking })
}

async fn look_again(
    master: &Master,
    volume: VolumeId,
    lacking: BTreeSet<ChunkId>,
) -> Result<(), ReplicaError> {
    if lacking.is_empty() {
        return Ok(());
    }
    let tx = master.store.begin();
    for chunk in lacking {
        let here = here_of(master, &tx, chunk).await?;
        if here > 0 {
            master.geo.needs(volume, |needs| needs.met(chunk, here));
        }
    }
    Ok(())
}

/// Keeps account of it, as long as this region has a replica.
pub async fn run(master: &Master, volume: VolumeId) {
    tokio::join!(catch_up(master, volume), move_on(master, volume));
}

/// Looks at what was replayed before this leader, and at what comes while there is no room for more.
async fn catch_up(master: &Master, volume: VolumeId) {
    let mut moved = master.geo.moved(volume);
    loop {
        moved.borrow_and_update();
        let wait = match look_on(master, volume).await {
            Ok(true) => continue,
            Ok(false) => None,
            Err(trouble) => {
                tracing::info!(trouble, "what the replica lacks can't be looked for yet; trying on");
                Some(pause(AGAIN))
            }
        };
        match wait {
            Some(wait) => tokio::time::sleep(wait).await,
            None if master.geo.needs(volume, |needs| needs.is_full()) == Some(true) => {
                tokio::time::sleep(pause(FULL)).await
            }
            None => drop(moved.changed().await),
        }
    }
}

/// Looks at what follows. Answers whether there may be more.
async fn look_on(master: &Master, volume: VolumeId) -> Result<bool, String> {
    let record = master.geo.replica(volume).record.filter(|record| record.copied_before.is_none());
    let Some(record) = record else {
        // What was known is of another copy.
        *super::lock(&master.geo.seat(volume).needs) = None;
        return Ok(false);
    };
    let Some((noted, full)) = master.geo.needs(volume, |needs| (needs.noted(), needs.is_full())) else {
        let needs = if record.complete() == LogPosition::default() {
            scan(master, volume).await?
        } else {
            Needs::from(record.complete())
        };
        *super::lock(&master.geo.seat(volume).needs) = Some(needs);
        master.geo.needs_changed(volume);
        return Ok(true);
    };
    if full || noted >= record.position() {
        return Ok(false);
    }
    let entries = match read::kept(&master.store.begin(), volume, noted, READ_BYTES).await {
        Ok(entries) => entries,
        // It was trimmed by a leader before, up to where it was complete by its own account.
        Err(ReplicaError::Trimmed { .. }) => {
            let needs = scan(master, volume).await?;
            *super::lock(&master.geo.seat(volume).needs) = Some(needs);
            return Ok(true);
        }
        Err(error) => return Err(error.to_string()),
    };
    if entries.is_empty() {
        return Ok(false);
    }
    let coming = coming(master, volume, &entries).await.map_err(|e| e.to_string())?;
    if let Some(noted) = note(master, volume, noted, coming) {
        noted.look_again().await;
    }
    Ok(true)
}

/// Looks through the whole volume.
async fn scan(master: &Master, volume: VolumeId) -> Result<Needs, String> {
    let at = || master.geo.replica(volume).readable().ok_or("the volume is being copied");
    let begun = at()?;
    let (mut missing, mut after) = (Vec::new(), None);
    loop {
        let (page, more) = transact(&master.store, |tx| async move {
            let found = upkeep::list_chunks(&tx, volume, after, PAGE).await?;
            Ok((tx, found))
        })
        .await
        .map_err(|e| record_failed(&e).message)?;
        after = page.last().map(|listing| listing.chunk);
        for listing in page.iter().filter(|listing| listing.used.extents > 0) {
            let class = listing.record.storage_class;
            let location = listing.location.as_ref().filter(|l| fetch::suffices(master, volume, class, l));
            if location.is_some_and(|l| l.partial.is_none()) {
                continue;
            }
            // Of one of which a part is here no more may be named than that, and the rest may come never.
            let upto = match listing.record.sealed && location.is_none() {
                true => listing.record.length,
                false => seals::committed(master, listing.chunk).await.map_err(|e| e.message)?,
            };
            let has = location.and_then(|l| l.partial).unwrap_or(0);
            if has < upto {
                missing.push((listing.chunk, upto));
            }
        }
        if !more {
            break;
        }
    }
    let ended = at()?;
    tracing::info!(%begun, %ended, chunks = missing.len(), "the replica was looked through for what isn't here yet");
    Ok(Needs::of_scan(begun, missing, ended))
}

/// Puts on record where the replica is complete, and tells the home.
async fn move_on(master: &Master, volume: VolumeId) {
    let (mut needed, mut moved) = (master.geo.seat(volume).needed.subscribe(), master.geo.moved(volume));
    let mut telling = FuturesUnordered::new();
    let mut told = LogPosition::default();
    loop {
        needed.borrow_and_update();
        moved.borrow_and_update();
        if let Err(error) = record(master, volume).await {
            tracing::info!(error = %error.message, "where the replica is complete can't be put on record yet; trying on");
            tokio::time::sleep(pause(AGAIN)).await;
            continue;
        }
        let complete = master.geo.replica(volume).record.map(|record| record.complete()).unwrap_or_default();
        // What moves with the entries themselves the answers to their pushes tell.
        if complete > told && telling.len() < TELLING_MAX {
            told = complete;
            telling.push(tell(master, volume));
        }
        tokio::select! {
            Some(told) = telling.next(), if !telling.is_empty() => {
                if let Err(trouble) = told {
                    tracing::debug!(trouble, "the home couldn't be told how far this replica is complete");
                }
            }
            _ = needed.changed() => {}
            _ = moved.changed() => {}
        }
    }
}

async fn record(master: &Master, volume: VolumeId) -> Result<(), CallError> {
    loop {
        let Some(complete) = master.geo.needs(volume, |needs| needs.complete()) else { return Ok(()) };
        let behind = |record: &ReplicaRecord| record.copied_before.is_none() && record.complete() < complete;
        if !master.geo.replica(volume).record.as_ref().is_some_and(behind) {
            return Ok(());
        }
        let seat = master.geo.seat(volume);
        let _applying = seat.applying.lock().await;
        let record = receive::record(master, volume).await?;
        if !behind(&record) || complete > record.position() || is_frozen(master, volume, &record) {
            return Ok(());
        }
        receive::change(master, volume, Change::Completed(complete)).await?;
    }
}

/// A region that has said how far it is, of an epoch that is over, stays there until the next one: it may be cut there. One that is the next home is cut
/// there now.
fn is_frozen(master: &Master, volume: VolumeId, record: &ReplicaRecord) -> bool {
    let view = master.geo.view();
    let known = view.as_ref().and_then(|view| view.volumes.get(&volume));
    known.is_none_or(|known| {
        !known.open || record.refuses >= known.epoch.0 || known.home == master.config.region
    })
}

async fn tell(master: &Master, volume: VolumeId) -> Result<CompleteHeard, String> {
    let home = home_of(master, volume)?;
    let epoch = master.epoch(volume).0;
    let record = master.geo.replica(volume).record.unwrap_or_default();
    let (at, complete) = (place(record.position()), place(record.complete()));
    let message = Complete { volume: volume.0.into(), epoch, at, complete };
    ask(master, &home, Method::LogComplete, &message).await
}

/// A region tells how far it is complete.
pub fn heard(master: &Master, peer: &Peer, told: Complete) -> Result<CompleteHeard, CallError> {
    let (_, volume) = super::serve::of_all(master, peer, told.volume)?;
    let Whereabouts::Here(epoch) = place_of(master, volume) else {
        return Err(super::not_home(master, volume));
    };
    if Epoch(told.epoch) != epoch {
        return Err(call_error(ErrorCode::StaleEpoch, format!("the volume's epoch is {}", epoch.0)));
    }
    let complete = position(told.complete.as_ref());
    let now = master.clock.boot();
    master.geo.note_shipped(volume, &peer.identity.region, |known| {
        known.heard = Some(now);
        // What it said in this home's time only: one that began anew is asked how far it is first.
        if known.at.is_some_and(|at| at >= complete) {
            known.complete = known.complete.max(Some(complete));
        }
    });
    Ok(CompleteHeard {})
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use mooseng_embedded::MemoryBase;
    use mooseng_ports::clock::OsClock;
    use mooseng_ports::disk::sim::SimDisk;
    use mooseng_transport::{Blocking, PlainNetwork};
    use mooseng_wire::{Identity, Role};
    use tokio_util::sync::CancellationToken;

    use super::super::{ROOT_VOLUME, lock};
    use super::*;
    use crate::{MasterConfig, MasterServer, Ports};

    /// A region's only master, which serves.
    async fn serving() -> MasterServer {
        let address = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let config = format!(
            "name = \"m1\"\nid = 1\nregion = \"eu\"\ncluster = \"test\"\nlisten = \"{address}\"\nstate_dir = \"/state\"\nreserve_bytes = 1048576\n\
             [[members]]\nid = 1\nname = \"m1\"\naddress = \"{address}\"\n"
        );
        let identity =
            Identity { cluster: "test".into(), region: "eu".into(), role: Role::Master, name: "m1".into() };
        let base = MemoryBase::on_disk(Arc::new(SimDisk::default()), Path::new("/store")).unwrap();
        let ports = Ports {
            network: Arc::new(PlainNetwork::new(identity)),
            disk: Arc::new(SimDisk::default()),
            blocking: Blocking::Pool,
            clock: Arc::new(OsClock),
            base: Arc::new(base),
            global_base: None,
        };
        let config = MasterConfig::parse(&config).unwrap();
        let server = MasterServer::start(config, ports, CancellationToken::new()).await.unwrap();
        let serves = async {
            while !server.is_serving() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), serves).await.unwrap();
        server
    }

    /// Found by reading: what had come between the look at an entry and its note counted only once the chunk was looked at again, and its comparison with what it is to
    /// be, which takes a round trip and more, kept it from that.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_comes_while_its_entry_is_replayed_is_here() {
        let server = serving().await;
        let master = server.master();
        let at = |version| LogPosition::new(Epoch(1), version);
        let (whole, part, nothing) = (ChunkId(900_001), ChunkId(900_002), ChunkId(900_003));
        *lock(&master.geo.seat(ROOT_VOLUME).needs) = Some(Needs::from(at(1)));
        let names = |at: LogPosition, chunk: ChunkId| Coming {
            at,
            missing: vec![(chunk, 5)],
            here: vec![(chunk, 0)],
            gone: Vec::new(),
        };
        let coming = vec![names(at(2), whole), names(at(3), part), names(at(4), nothing)];
        // Somebody else has put it on record meanwhile, and told so.
        let tx = master.store.begin();
        for (chunk, upto) in [(whole, 5), (part, 4)] {
            let record = ChunkRecord { length: 5, sealed: true, ..ChunkRecord::default() };
            tx.set(&chunk_records::key(chunk), &record.to_value());
            let location = LocationRecord {
                layout: 1,
                copies: vec!["one".into(), "two".into()],
                epoch: 1,
                partial: Some(upto),
            };
            tx.set(&location::key(chunk), &location.to_value());
        }
        tx.commit().await.unwrap();
        master.geo.needs(ROOT_VOLUME, |needs| needs.met(whole, 5));
        note(master, ROOT_VOLUME, at(1), coming).unwrap().look_again().await;
        let lacks = |chunk, upto| master.geo.needs(ROOT_VOLUME, |needs| needs.lacks(chunk, upto));
        assert_eq!(master.geo.needs(ROOT_VOLUME, |needs| needs.complete()), Some(at(2)));
        assert_eq!(
            (lacks(part, 4), lacks(part, 5), lacks(nothing, 1)),
            (Some(false), Some(true), Some(true))
        );
        // Found by review: where the call that brought the entry ended before that look, nobody was told that something is lacking, and nobody fetched it.
        let mut needed = master.geo.seat(ROOT_VOLUME).needed.subscribe();
        let noted = note(master, ROOT_VOLUME, at(4), vec![names(at(5), ChunkId(900_004))]).unwrap();
        needed.borrow_and_update();
        drop(noted.look_again());
        assert!(needed.has_changed().unwrap());
        master.shutdown.cancel();
        server.stopped().await;
    }
}
