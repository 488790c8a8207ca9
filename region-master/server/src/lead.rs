//! What a leader does besides answering: it reads its records before it serves, then keeps house until it leads no more.
//!
//! ```text
//!  leadership(term) -> format, founding mark, ticket keys, ids, sessions -> serving(term) -> every tick: lapse, expire, reap, forget (`reap`); ids; house
//!        \--> lost: forget everything that only a leader may know
//! ```
//!
//! Chunks and their copies are looked after by [`crate::house`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use mooseng_global::View;
use mooseng_namespace::trash as namespace_trash;
use mooseng_namespace::upkeep;
use mooseng_namespace::{OpError, format, found};
use mooseng_region::sessions::Recorded;
use mooseng_schema::dirent::HashKey;
use mooseng_schema::ids::IdKind;
use mooseng_transport::CallFailure;
use mooseng_wire::call::CallError;
use mooseng_wire::founding::{FOUNDING_BYTES, Founding};
use mooseng_wire::method::Method;
use mooseng_wire::session::{Renew, Renewed};
use mooseng_wire::{Epoch, Incarnation, Role, VolumeId};
use rand::{Rng, RngCore};

use crate::errors::record_failed;
use crate::geo::{self, ROOT_VOLUME, Whereabouts};
use crate::ids::IdPool;
use crate::master::{HOME_EPOCH, Master, custody_of};
use crate::records::transact;
use crate::sessions::recorded;
use crate::tickets;
use crate::{classes, house, locks, quotas, reap};

/// How long sessions that outlived a lost home are waited for: their clients ask each master of the region every second.
const FOLLOW_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked whether the region holds its lease, where its volume has to be made.
const LEASE_LOOK: Duration = Duration::from_millis(20);
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);

/// Follows leadership until shutdown.
pub async fn run(master: Arc<Master>) {
    let mut leadership = master.raft.leadership();
    loop {
        let leading = leadership.borrow_and_update().leading;
        if let Some(term) = leading {
            tokio::select! {
                () = lead(&master, term) => {}
                () = changed(&mut leadership, term) => {}
                () = master.shutdown.cancelled() => {}
            }
            master.desk(crate::desk::Desk::follow);
            master.geo.unseal_all();
            master.metrics.leading.set(0);
            tracing::info!(term, "this master leads no more");
        } else {
            tokio::select! {
                ended = leadership.changed() => if ended.is_err() { return },
                () = master.shutdown.cancelled() => {}
            }
        }
        if master.shutdown.is_cancelled() {
            return;
        }
    }
}

async fn changed(leadership: &mut tokio::sync::watch::Receiver<mooseng_raft::Leadership>, term: u64) {
    // An error says that the node ended, which is a change, too.
    let _ = leadership.wait_for(|now| now.leading != Some(term)).await;
}

/// Serves all volumes of the region.
async fn lead(master: &Arc<Master>, term: u64) {
    let Some(cluster) = master.geo.cluster.clone() else {
        let work = lead_home(master, ROOT_VOLUME, term, HOME_EPOCH);
        tokio::join!(work, geo::chunks::run(master, term));
        return;
    };
    let view = cluster.borrow().clone();
    master.desk(|desk| {
        desk.serving_since = master.clock.boot();
        desk.keep_volumes(|volume| view.volumes.contains_key(&volume));
    });
    drop(view);
    tokio::join!(
        lead_volume(master, cluster.clone(), ROOT_VOLUME, term),
        lead_others(master, cluster.clone(), term),
        geo::deleted::run(master, cluster),
        geo::chunks::run(master, term)
    );
}

/// Serves the volumes besides the root, each for itself, from when the regions have agreed on it until it is deleted.
async fn lead_others(master: &Arc<Master>, mut cluster: Cluster, term: u64) {
    let mut led = BTreeSet::new();
    let mut leading = FuturesUnordered::new();
    loop {
        let view = cluster.borrow_and_update().clone();
        for volume in view.volumes.keys().filter(|volume| **volume != ROOT_VOLUME) {
            if led.insert(*volume) {
                let cluster = cluster.clone();
                let volume = *volume;
                leading.push(Box::pin(async move {
                    lead_volume(master, cluster, volume, term).await;
                    volume
                }));
            }
        }
        tokio::select! {
            Some(volume) = leading.next(), if !leading.is_empty() => drop(led.remove(&volume)),
            changed = cluster.changed() => if changed.is_err() { return },
        }
    }
}

/// What the regions have agreed on, as it changes.
type Cluster = tokio::sync::watch::Receiver<Arc<View>>;

/// Serves a volume as what the region is to it - its home, or one of its replicas - and goes on as another once that changes. Returns once there is no such
/// volume any more.
async fn lead_volume(master: &Arc<Master>, mut cluster: Cluster, volume: VolumeId, term: u64) {
    loop {
        let is = geo::place_of(master, volume);
        master.geo.forget(volume);
        master.desk(|desk| desk.note_here(volume, is != Whereabouts::Nowhere));
        if volume != ROOT_VOLUME && !master.geo.view().is_some_and(|view| view.volumes.contains_key(&volume))
        {
            return master.geo.drop_seat(volume);
        }
        let epoch = match is {
            Whereabouts::Here(epoch) | Whereabouts::Closed(epoch) => epoch,
            Whereabouts::Elsewhere | Whereabouts::Nowhere => master.epoch(volume),
        };
        let Some(custody) = custody_of(epoch, term) else {
            tracing::error!(
                term,
                "this region's group was recovered from one master's disk: such a group can't take part in a cluster of several regions yet (docs/not-built.md)"
            );
            return std::future::pending().await;
        };
        let serving = async {
            match is {
                Whereabouts::Here(epoch) => lead_home(master, volume, custody, epoch).await,
                Whereabouts::Elsewhere => lead_replica(master, volume, custody).await,
                Whereabouts::Closed(epoch) => geo::stand::close(master, volume, epoch).await,
                Whereabouts::Nowhere => geo::let_go::run(master, volume, custody).await,
            }
        };
        tokio::select! {
            // A move of the home that came to nothing: it is taken up anew.
            () = serving => {}
            changed = cluster.wait_for(|view| {
                geo::place_of(master, volume) != is || (volume != ROOT_VOLUME && !view.volumes.contains_key(&volume))
            }) => if changed.is_err() { return },
        }
        tracing::info!(volume = volume.0, term, "what this region is to the volume has changed");
        master.desk(|desk| desk.unseat(volume));
        if !matches!(geo::place_of(master, volume), Whereabouts::Here(_)) {
            master.geo.unseal(volume);
            if matches!(is, Whereabouts::Here(_)) {
                geo::moving::say_so(master, volume, custody);
            }
        }
    }
}

/// Keeps a replica of the volume, whose home is elsewhere. Nothing of it is changed here but by its log.
async fn lead_replica(master: &Arc<Master>, volume: VolumeId, term: u64) {
    let _kept = geo::stand::KeptToTheLog::put_on(master, volume);
    let mut pause = Duration::from_millis(50);
    while let Err(error) = prepare_replica(master, volume, term).await {
        tracing::warn!(volume = volume.0, term, error = %error.message, "this leader can't read its records yet; trying on");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
    // What this region said of its replica it hasn't any more.
    if let Some(global) = &master.global {
        global.stands_no_more(volume);
    }
    master.metrics.leaderships.inc();
    master.metrics.leading.set(1);
    tracing::info!(volume = volume.0, term, "this master leads and keeps a replica of the volume");
    tokio::join!(
        geo::stand::refuse_when_closed(master, volume),
        geo::copy::run(master, volume),
        geo::complete::run(master, volume),
        geo::near_promises::run(master, volume),
        house::run_replica(master, volume, term)
    );
}

/// The region's founding mark. Where there is none on record yet, one is drawn.
pub async fn founding(master: &Master) -> Result<Founding, CallError> {
    if let Some(known) = master.desk(|desk| desk.founding()) {
        return Ok(known);
    }
    let mut drawn = [0; FOUNDING_BYTES];
    rand::rng().fill_bytes(&mut drawn);
    let founding = transact(&master.store, |tx| async move {
        let founding = found(&tx, Founding(drawn)).await?;
        Ok((tx, founding))
    });
    founding.await.map_err(|e| record_failed(&e))
}

/// An empty volume is made by a region that holds its lease: one whose masters lost all that they had is given none as long as another region may have the
/// volume, which an empty one in its place would take from there (docs/decisions/0041-regions-made-anew.md).
async fn may_be_made(master: &Master, volume: VolumeId) -> Result<(), CallError> {
    let Some(global) = &master.global else { return Ok(()) };
    let known = transact(&master.store, |tx| async move {
        let known = upkeep::load_volume(&tx, volume).await?;
        Ok((tx, known))
    });
    if known.await.map_err(|e| record_failed(&e))?.is_some() {
        return Ok(());
    }
    tracing::info!(
        volume = volume.0,
        "nothing of the volume is here: it is made once this region holds its lease"
    );
    while !global.lease_valid() {
        tokio::time::sleep(LEASE_LOOK).await;
    }
    Ok(())
}

/// What a leader needs for its chunkservers, whatever this region is to a volume.
pub async fn make_ready(master: &Master) -> Result<(), CallError> {
    let founding = founding(master).await?;
    let keys = tickets::load(&master.store).await.map_err(|e| record_failed(&e))?;
    let draining = house::drain::load(master).await?;
    master.desk(|desk| {
        desk.found(founding);
        desk.keys = keys;
        desk.set_draining(draining);
    });
    Ok(())
}

async fn prepare_replica(master: &Master, volume: VolumeId, term: u64) -> Result<(), CallError> {
    geo::let_go::take_back(master, volume, false).await?;
    geo::stand::rejoin(master, volume, master.epoch(volume)).await?;
    make_ready(master).await?;
    master.desk(|desk| {
        desk.unseat(volume);
        desk.serve(volume, master.clock.boot(), term, Vec::new(), BTreeMap::new());
    });
    // Who waits for recalls of the home that this region was waits in vain.
    master.recalls_answered.notify_waiters();
    Ok(())
}

/// Returns where a move of the home came to nothing, and it is to be taken up anew.
async fn lead_home(master: &Arc<Master>, volume: VolumeId, term: u64, epoch: Epoch) {
    let mut pause = Duration::from_millis(50);
    while let Err(error) = prepare(master, volume, term, epoch).await {
        tracing::warn!(volume = volume.0, term, error = %error.message, "this leader can't read its records yet; trying on");
        let share = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(share)).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
    master.metrics.leaderships.inc();
    master.metrics.leading.set(1);
    let sessions = master.desk(|desk| desk.sessions.of(volume).len());
    tracing::info!(volume = volume.0, term, sessions, "this master leads and serves");
    let work = async {
        tokio::join!(
            reap::run(master, volume),
            reserve_ids(master, volume),
            house::run(master, volume, term),
            locks::sweep(master, volume),
            quotas::count(master, volume, term),
            geo::classes::run(master, volume, term),
            geo::ship::run(master, volume, term, epoch)
        )
    };
    tokio::select! {
        _ = work => {}
        () = geo::moving::run(master, volume, epoch) => {}
    }
}

async fn prepare(master: &Master, volume: VolumeId, term: u64, epoch: Epoch) -> Result<(), CallError> {
    may_be_made(master, volume).await?;
    let hurries = match &master.global {
        Some(global) => {
            geo::leased::load(master, global, volume).await?;
            geo::let_go::take_back(master, volume, true).await?;
            let hurries = geo::stand::take_over(master, volume, epoch).await?;
            geo::moving::go_on(master, volume, epoch).await?;
            hurries
        }
        None => false,
    };
    prepare_home(master, volume, term, epoch, hurries).await
}

fn trash_terms(master: &Master) -> namespace_trash::Terms {
    let house = &master.config.house;
    namespace_trash::Terms { retention_s: house.trash_retention_s, min_age_s: house.trash_min_age_s }
}

async fn fresh_ids(
    master: &Master,
    volume: VolumeId,
) -> Result<Vec<(IdKind, std::ops::Range<u64>)>, CallError> {
    let (mut pool, mut fresh) = (IdPool::default(), Vec::new());
    for kind in pool.low() {
        // At the end of what a home was given a range may be a short one.
        while pool.is_low(kind) {
            let range = geo::stand::reserve_ids(master, volume, kind).await?;
            pool.add(kind, range.clone());
            fresh.push((kind, range));
        }
    }
    Ok(fresh)
}

/// Reads what a home goes by, and formats the volume where it is new.
async fn prepare_home(
    master: &Master,
    volume: VolumeId,
    term: u64,
    epoch: Epoch,
    hurries: bool,
) -> Result<(), CallError> {
    let mut secret = [0; 16];
    rand::rng().fill_bytes(&mut secret);
    let mut drawn = [0; FOUNDING_BYTES];
    rand::rng().fill_bytes(&mut drawn);
    let now_ns = master.clock.unix_ns();
    let trash = trash_terms(master);
    // One that is joined had records, as has one of a later epoch, whose home before has made it: where they aren't here they are lost, and an empty volume in
    // their place would be taken for it. What no other region is to have begins anew in any epoch: nothing is lost by it.
    let is_first = epoch == HOME_EPOCH || geo::is_alone(master, volume);
    let may_be_new = is_first && (volume == ROOT_VOLUME || geo::is_new(master, volume));
    let (made, founding, record) = transact(&master.store, |tx| async move {
        let made = may_be_new && format(&tx, volume, epoch, HashKey(secret), now_ns, trash).await?;
        let founding = found(&tx, Founding(drawn)).await?;
        let record = upkeep::load_volume(&tx, volume).await?.ok_or(OpError::NoVolume(volume.0))?;
        Ok((tx, (made, founding, record)))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    if made {
        tracing::info!(%founding, volume = volume.0, "made a volume");
    }
    let mark = master.global.as_ref().map(|_| Founding(geo::let_go::mark_of(&record)));
    let keys = tickets::load(&master.store).await.map_err(|e| record_failed(&e))?;
    let draining = house::drain::load(master).await?;
    let sessions = reap::all_sessions(master, volume).await?;
    let limits = quotas::limits(master, volume).await?;
    let classes = classes::load(master, volume).await?;
    let fresh = fresh_ids(master, volume).await?;
    master.desk(|desk| {
        desk.unseat(volume);
        desk.found(founding);
        desk.keys = keys;
        desk.set_draining(draining);
        let seat = desk.seat_mut(volume);
        seat.founding = mark;
        seat.classes.set(classes);
        for (kind, range) in fresh {
            seat.ids.add(kind, range);
        }
        for (id, record) in &sessions {
            for run in &record.inode_runs {
                seat.ids.bind(*id, run.first..run.end);
            }
        }
        // Lapsed ones are brought back by their next OpenSession.
        let held = sessions.into_iter().filter(|(_, record)| record.lapsed_ns.is_none());
        let held: Vec<Recorded> =
            held.map(|(id, record)| recorded(id, Incarnation(record.incarnation), record)).collect();
        let now = master.clock.boot();
        desk.serve(volume, now, term, held, limits);
        if hurries {
            desk.hurry(volume, now.after(FOLLOW_WITHIN));
        }
    });
    // Who waits for recalls of an earlier term waits in vain.
    master.recalls_answered.notify_waiters();
    Ok(())
}

async fn reserve_ids(master: &Master, volume: VolumeId) {
    loop {
        // Those of all volumes wait, and each looks for itself. What rings while it looks isn't missed.
        let low = master.ids_low.notified();
        tokio::pin!(low);
        low.as_mut().enable();
        for kind in master.desk(|desk| desk.seat(volume).ids.low()) {
            while master.desk(|desk| desk.seat(volume).ids.is_low(kind)) {
                match geo::stand::reserve_ids(master, volume, kind).await {
                    Ok(range) => master.desk(|desk| desk.seat_mut(volume).ids.add(kind, range)),
                    Err(error) => {
                        tracing::warn!(error = %error.message, "ids can't be reserved; trying on");
                        break;
                    }
                }
            }
        }
        tokio::select! {
            () = low => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Asks the other masters now and then whether they are there, for status.
pub async fn probe(master: Arc<Master>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PROBE_EVERY) => {}
            () = master.shutdown.cancelled() => return,
        }
        let others = master.raft.status().members.into_iter().filter(|m| m.id != master.config.id);
        let asked = others.map(|member| {
            let link = master.link(Role::Master, &member.node.address);
            async move {
                let answer =
                    link.request::<_, Renewed>(Method::Renew, &Renew::default(), PROBE_TIMEOUT).await;
                (member.id, matches!(answer, Ok(_) | Err(CallFailure::Remote(_))))
            }
        });
        let reachable = join_all(asked).await.into_iter().collect();
        *master.reachable.lock().unwrap_or_else(PoisonError::into_inner) = reachable;
        master.look_at_clock();
        figures(&master);
    }
}

fn figures(master: &Master) {
    let now = master.clock.boot();
    let m = &master.metrics;
    m.term.set(i64::try_from(master.raft.term()).unwrap_or(i64::MAX));
    let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    master.desk(|desk| {
        m.sessions.set(gauge(desk.sessions.len() as u64));
        m.chunkservers_alive.set(gauge(desk.alive(now).len() as u64));
        let counts = desk.counts();
        m.chunks.set(gauge(counts.chunks));
        m.chunks_endangered.set(gauge(counts.endangered));
        m.chunks_misplaced.set(gauge(counts.misplaced));
        m.chunks_unavailable.set(gauge(counts.unavailable));
        let trash = desk.trash();
        m.trash_files.set(gauge(trash.files));
        m.trash_bytes.set(gauge(trash.bytes));
        m.seals_waiting.set(gauge(desk.seals_waiting() as u64));
        m.lock_waits.set(gauge(desk.lock_waits.len() as u64));
        let (limited, escrow) = desk.promised_of_quotas();
        m.quotas.set(gauge(limited as u64));
        m.escrow_bytes.set(gauge(escrow));
    });
}
