//! The region keeps its own house: what the leader does about chunks and their copies, over the decisions of [`mooseng_region::repair`].
//!
//! ```text
//!   scan (all chunks) --> counts, needs, drops, open chunks to be ended, unused chunks to be buried
//!   needs, most urgent first --decide()--> copies: pull by the target, then the location, if the chunk is as it was planned
//!   strays (all inventories) --> copies that no location names: deleted, or taken up by repair
//!   dead (buried chunks)     --> copies to be deleted, until each is gone or its chunkserver lost
//!   sparse chunks --rewrite choice--> a new chunk of their live pieces, which files then name instead
//!   staged data   --destage choice--> a new chunk of it, likewise
//!   small files   --pack choice--> a new chunk that they share, likewise
//!   small chunks, files in too many extents, files of another storage class than their chunk --> new chunks, likewise
//! ```
//! All of it runs within the leader's term and ends with it; what a paused leader still says is refused by term: in the store by Raft, on
//! chunkservers by the custody that comes with each order. Nothing is remembered that isn't found again by the next scan.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mooseng_namespace::upkeep::ChunkListing;
use mooseng_ports::clock::BootTime;
use mooseng_region::class;
use mooseng_region::repair::{
    self, ChunkFacts, Condition, CopyState, Decision, Flight, Flights, Limits, Need, Queue, Server, Servers,
};
use mooseng_schema::location::LocationRecord;
use mooseng_wire::admin::HouseStatus;
use mooseng_wire::call::CallError;
use mooseng_wire::{ChunkId, VolumeId};

use crate::desk::{Desk, House};
use crate::master::Master;

mod copies;
mod dead;
mod destage;
pub mod drain;
mod elsewhere;
mod pack;
mod rewrite;
mod scan;
mod strays;

use copies::{Done, Order};

/// How often it goes on.
const TICK: Duration = Duration::from_millis(200);
/// After a longer pause between two ticks this master was stopped: what it heard before is no measure of who is silent.
const PAUSED: Duration = Duration::from_secs(3);
/// Chunks of the queue that are looked at in one tick.
const LOOKED_AT_MAX: usize = 32;
/// A chunk whose copy failed, or can't be begun, is looked at again after this.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_FAILED: Duration = Duration::from_secs(5);
/// A chunkserver to which an order failed gets none for this long.
const SHUN: Duration = Duration::from_secs(10);

/// Keeps a volume's house until this is dropped, with the leadership.
pub async fn run(master: &Arc<Master>, volume: VolumeId, term: u64) {
    let mut keeper = Keeper::new(master, volume, term);
    let mut copying = FuturesUnordered::new();
    let mut rewriting = FuturesUnordered::new();
    let mut destaging = FuturesUnordered::new();
    let mut packing = FuturesUnordered::new();
    let mut moving = FuturesUnordered::new();
    let mut next = tokio::time::Instant::now() + TICK;
    loop {
        tokio::select! {
            Some(done) = copying.next() => keeper.done(done),
            Some(done) = rewriting.next() => keeper.rewritten(done),
            Some(done) = destaging.next() => {
                keeper.destaged(done);
                // A file that is written all the while has more by now.
                if let Err(error) = keeper.look_at_staged().await {
                    tracing::info!(error = %error.message, "what is staged can't be looked at; trying on");
                }
                destaging.extend(keeper.destages().into_iter().map(|plan| destage::make(master, term, plan)));
            }
            Some(done) = moving.next() => keeper.moved(done),
            Some(done) = packing.next() => {
                keeper.packed(done);
                packing.extend(keeper.packs().into_iter().map(|plan| pack::make(master, term, plan)));
            }
            () = tokio::time::sleep_until(next) => {
                for error in keeper.tick().await {
                    tracing::info!(error = %error.message, "a piece of house-keeping failed and is tried again");
                }
                match keeper.orders().await {
                    Ok(orders) => copying.extend(orders.into_iter().map(|order| copies::make(master, term, order))),
                    Err(error) => tracing::info!(error = %error.message, "chunks that need copies can't be looked at; trying on"),
                }
                rewriting.extend(keeper.rewrites().into_iter().map(|plan| rewrite::make(master, term, plan)));
                destaging.extend(keeper.destages().into_iter().map(|plan| destage::make(master, term, plan)));
                packing.extend(keeper.packs().into_iter().map(|plan| pack::make(master, term, plan)));
                moving.extend(keeper.moves().map(|plan| elsewhere::make(master, term, plan)));
                keeper.publish();
                next = tokio::time::Instant::now() + TICK;
            }
        }
    }
}

/// Keeps house in a region that has a replica of the volume: the copies of its chunks, and no record of the volume's.
pub async fn run_replica(master: &Arc<Master>, volume: VolumeId, term: u64) {
    let mut keeper = Keeper { replica: true, ..Keeper::new(master, volume, term) };
    let mut copying = FuturesUnordered::new();
    let mut next = tokio::time::Instant::now() + TICK;
    loop {
        tokio::select! {
            Some(done) = copying.next() => keeper.done(done),
            () = tokio::time::sleep_until(next) => {
                next = tokio::time::Instant::now() + TICK;
                // Records that aren't copied yet look like such that are gone.
                if master.geo.replica(volume).readable().is_none() {
                    continue;
                }
                for error in keeper.tick().await {
                    tracing::info!(error = %error.message, "a piece of house-keeping failed and is tried again");
                }
                match keeper.orders().await {
                    Ok(orders) => copying.extend(orders.into_iter().map(|order| copies::make(master, term, order))),
                    Err(error) => tracing::info!(error = %error.message, "chunks that need copies can't be looked at; trying on"),
                }
                keeper.publish();
            }
        }
    }
}

/// Changes where a chunk's copies lie, unless it isn't as it was planned any more. Answers whether it did.
pub async fn relocate(
    master: &Master,
    planned: &ChunkListing,
    location: LocationRecord,
) -> Result<bool, CallError> {
    copies::relocate(master, planned, location).await
}

/// What house-keeping knows within a term.
struct Keeper<'a> {
    master: &'a Arc<Master>,
    volume: VolumeId,
    term: u64,
    /// The volume's home is elsewhere: nothing of its records is changed.
    replica: bool,
    /// Before it this master saw no heartbeats.
    watching_since: BootTime,
    ticked: BootTime,
    queue: Queue,
    flights: Flights,
    /// Bytes that locations put on each chunkserver, as of the last complete scan and what was moved since.
    loads: BTreeMap<String, u64>,
    /// Chunks that aren't looked at before.
    waits: BTreeMap<ChunkId, BootTime>,
    /// Chunkservers that get no orders before.
    shunned: BTreeMap<String, BootTime>,
    /// Open chunks whose end failed, and when it did.
    unended: BTreeMap<ChunkId, BootTime>,
    /// Chunks that were made or sealed at a time that is still to come by the clock, and since when that is known.
    ahead: BTreeMap<ChunkId, BootTime>,
    scan: scan::Scan,
    strays: strays::Strays,
    dead: dead::Dead,
    rewriter: rewrite::Rewriter,
    stage: destage::Stage,
    packs: pack::Packs,
    elsewhere: elsewhere::Elsewhere,
    figures: HouseStatus,
    located: BTreeMap<String, u64>,
    /// Chunks that need a copy for which there is no place, as of the last complete scan.
    stuck: u64,
}

impl<'a> Keeper<'a> {
    fn new(master: &'a Arc<Master>, volume: VolumeId, term: u64) -> Self {
        let (config, now) = (&master.config.house, master.clock.boot());
        let limits = Limits {
            copies_per_server: config.copies_per_chunkserver,
            spread_percent: config.spread_percent,
            ..Limits::default()
        };
        Self {
            master,
            volume,
            term,
            replica: false,
            watching_since: now,
            ticked: now,
            queue: Queue::default(),
            flights: Flights::new(limits),
            loads: BTreeMap::new(),
            waits: BTreeMap::new(),
            shunned: BTreeMap::new(),
            unended: BTreeMap::new(),
            ahead: BTreeMap::new(),
            scan: scan::Scan::default(),
            strays: strays::Strays::default(),
            dead: dead::Dead::default(),
            rewriter: rewrite::Rewriter::default(),
            stage: destage::Stage::default(),
            packs: pack::Packs::default(),
            elsewhere: elsewhere::Elsewhere::default(),
            figures: HouseStatus::default(),
            located: BTreeMap::new(),
            stuck: 0,
        }
    }

    async fn tick(&mut self) -> Vec<CallError> {
        let now = self.master.clock.boot();
        if now.since(self.ticked) > PAUSED {
            tracing::info!("house-keeping was paused: chunkservers get their grace anew");
            self.watching_since = now;
        }
        self.ticked = now;
        self.waits.retain(|_, until| *until > now);
        self.shunned.retain(|_, until| *until > now);
        self.forget_deletions_of_lost();
        let mut troubles = Vec::new();
        match self.scan_on().await {
            Ok(some) => troubles.extend(some),
            Err(error) => troubles.push(error),
        }
        troubles.extend(self.match_seals().await.err());
        troubles.extend(self.look_at_strays().await.err());
        troubles.extend(self.clear_dead().await.err());
        if self.replica {
            troubles.extend(self.load_classes().await.err());
        } else {
            troubles.extend(self.look_at_staged().await.err());
            troubles.extend(self.look_at_packable().await.err());
        }
        // A tick may have waited for the store: that isn't a pause of this process.
        self.ticked = self.master.clock.boot();
        troubles
    }

    /// What is to be deleted was decided by what there was when it was: by the time that a chunkserver returns its copy may be the last. Strays and dead chunks
    /// are found again.
    fn forget_deletions_of_lost(&self) {
        self.master.desk(|desk| {
            let is_lost = |name: &&String| self.condition(desk, name) == Condition::Lost;
            let lost: Vec<String> = desk.with_deletions().filter(is_lost).cloned().collect();
            lost.iter().for_each(|name| desk.forget_deletions(self.volume, name));
        });
    }

    fn now_ns(&self) -> i64 {
        self.master.clock.unix_ns()
    }

    /// Now, for whoever asks how long ago that was: what the clock has skipped since doesn't count.
    fn now_since(&self, then_ns: i64) -> i64 {
        self.master.now_since(then_ns)
    }

    fn settle_ns(&self) -> i64 {
        i64::try_from(self.master.config.house.settle_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000)
    }

    fn condition(&self, desk: &Desk, name: &str) -> Condition {
        let grace = Duration::from_millis(self.master.config.house.grace_ms);
        repair::condition(&desk.registry, name, self.master.clock.boot(), self.watching_since, grace)
    }

    fn servers(&self, desk: &Desk) -> Servers {
        let candidates = desk.registry.candidates(self.master.clock.boot());
        let server = |candidate: mooseng_region::placement::Candidate| {
            let name = candidate.name.clone();
            let under_way = self.flights.bytes_to(&name);
            let server = Server {
                condition: self.condition(desk, &name),
                bytes_used: self.loads.get(&name).copied().unwrap_or(0) + under_way,
                shunned: self.shunned.contains_key(&name),
                candidate,
            };
            (name, server)
        };
        candidates.into_iter().map(server).collect()
    }

    /// What is known of a sealed chunk.
    fn facts(&self, desk: &Desk, listing: &ChunkListing) -> ChunkFacts {
        let (chunk, length) = (listing.chunk, listing.record.length);
        let sealed_ns = listing.record.sealed_ns;
        let settled = repair::is_settled(sealed_ns, self.now_since(sealed_ns), self.settle_ns());
        let names = listing.location.as_ref().map(|l| l.copies.as_slice()).unwrap_or_default();
        let state = |name: &String| {
            let condition = self.condition(desk, name);
            (name.clone(), repair::copy_state(&desk.registry, name, condition, chunk, length, settled))
        };
        let copies: Vec<(String, CopyState)> = names.iter().map(state).collect();
        let class = desk.seat(self.volume).classes.get(listing.record.storage_class).clone();
        let is_in_place = |name: &String| {
            let labels = || desk.registry.get(name).map(mooseng_region::registry::Chunkserver::labels);
            class.labels.is_empty() || labels().is_some_and(|labels| class::has(&labels, &class.labels))
        };
        let in_place =
            copies.iter().filter(|(name, state)| *state == CopyState::Good && is_in_place(name)).count();
        let (deleting, untold) = (desk.deleting(chunk), desk.untold(chunk));
        let stray = |server: &&mooseng_region::registry::Chunkserver| {
            let copy = server.copy(chunk);
            copy.is_some_and(|copy| copy.sealed && !copy.corrupt && copy.length >= length)
                && !names.contains(&server.beat.name)
        };
        // Looked for only where they may help.
        let strays = match in_place < class.copies {
            true => desk.registry.iter().filter(stray).map(|s| s.beat.name.clone()).collect(),
            false => Vec::new(),
        };
        ChunkFacts { chunk, length, class, copies, strays, deleting, untold }
    }

    /// Begins what is most urgent, as far as the bounds allow.
    async fn orders(&mut self) -> Result<Vec<Order>, CallError> {
        let mut orders = Vec::new();
        let now = self.master.clock.boot();
        let due = |chunk: &ChunkId| !self.flights.has(*chunk) && !self.waits.contains_key(chunk);
        let first = self.queue.first(10 * LOOKED_AT_MAX).into_iter().map(|(chunk, _)| chunk);
        let looked_at: Vec<ChunkId> = first.filter(due).take(LOOKED_AT_MAX).collect();
        for chunk in looked_at {
            let Some(listing) = crate::seals::load(self.master, chunk).await? else {
                self.queue.remove(chunk);
                continue;
            };
            let (decision, _) = self.decide(&listing);
            match decision {
                Decision::Well => self.queue.remove(chunk),
                Decision::Wait(Need::Apart | Need::Balance) | Decision::Stuck(_) => self.queue.remove(chunk),
                Decision::Wait(_) => drop(self.waits.insert(chunk, now.after(AGAIN))),
                Decision::Drop { server } => {
                    self.queue.remove(chunk);
                    self.drop_copy(&listing, &server).await?;
                }
                Decision::Copy { need, source, target } => {
                    orders.extend(self.order(listing, need, source, target, false));
                }
                Decision::Adopt { server } => {
                    // It may have been told since.
                    if !self.master.desk(|desk| desk.take_back_deletion(&server, chunk)) {
                        self.waits.insert(chunk, now.after(AGAIN));
                        continue;
                    }
                    let good = self.compared_with(&listing).unwrap_or_else(|| server.clone());
                    orders.extend(self.order(listing, Need::Endangered { good: 1 }, good, server, true));
                }
            }
        }
        Ok(orders)
    }

    /// What to do about a sealed chunk, and the facts.
    fn decide(&self, listing: &ChunkListing) -> (Decision, ChunkFacts) {
        self.master.desk(|desk| {
            let facts = self.facts(desk, listing);
            (repair::decide(&facts, &self.servers(desk), &self.flights), facts)
        })
    }

    fn compared_with(&self, listing: &ChunkListing) -> Option<String> {
        self.master.desk(|desk| {
            let facts = self.facts(desk, listing);
            repair::compared_with(&facts, &self.servers(desk), &self.flights)
        })
    }

    fn order(
        &mut self,
        listing: ChunkListing,
        need: Need,
        source: String,
        target: String,
        adopt: bool,
    ) -> Option<Order> {
        let address =
            |name: &str| self.master.desk(|desk| desk.registry.get(name).map(|s| s.beat.address.clone()));
        let (source_address, target_address) = (address(&source)?, address(&target)?);
        let bytes = if adopt { 0 } else { listing.record.length };
        let flight = Flight { need, source: source.clone(), target: target.clone(), bytes };
        self.flights.begin(listing.chunk, flight);
        Some(Order { listing, source, source_address, target, target_address, adopt })
    }

    fn done(&mut self, done: Done) {
        let (chunk, now) = (done.order.listing.chunk, self.master.clock.boot());
        self.flights.end(chunk);
        let metrics = &self.master.metrics;
        match done.result {
            Ok(bytes) => {
                self.queue.remove(chunk);
                *self.loads.entry(done.order.target).or_default() += done.order.listing.record.length;
                self.figures.copied += 1;
                self.figures.copied_bytes += bytes;
                metrics.copies_made.inc();
                metrics.copied_bytes.inc_by(bytes);
            }
            Err(failure) => {
                tracing::info!(
                    chunk = chunk.0,
                    source = done.order.source,
                    target = done.order.target,
                    reason = failure.reason,
                    "a copy of a chunk wasn't made; trying on"
                );
                self.waits.insert(chunk, now.after(AGAIN_FAILED));
                for name in failure.blamed {
                    self.shunned.insert(name, now.after(SHUN));
                }
                self.figures.copies_failed += 1;
                metrics.copies_failed.inc();
            }
        }
    }

    /// Takes a copy out of a location, and has it deleted. The others are there: [`repair::decide`] said so of the same location.
    async fn drop_copy(&mut self, listing: &ChunkListing, server: &str) -> Result<(), CallError> {
        let Some(mut location) = listing.location.clone() else { return Ok(()) };
        location.copies.retain(|name| name != server);
        if location.copies.is_empty() || !copies::relocate(self.master, listing, location).await? {
            return Ok(());
        }
        tracing::info!(chunk = listing.chunk.0, server, "dropped a copy of a chunk");
        self.master.metrics.copies_dropped.inc();
        self.figures.dropped += 1;
        if let Some(load) = self.loads.get_mut(server) {
            *load = load.saturating_sub(listing.record.length);
        }
        let epoch = self.master.epoch(self.volume).0;
        self.master.desk(|desk| {
            // One that is lost is looked at when it comes back.
            if self.condition(desk, server) != Condition::Lost {
                desk.want_deletion(server, listing.chunk, epoch);
            }
        });
        Ok(())
    }

    fn publish(&mut self) {
        let now = self.master.clock.boot();
        self.figures.waiting = self.queue.len() as u64 + self.stuck;
        self.figures.copying = self.flights.len() as u64;
        self.figures.rewriting = self.rewrites_under_way();
        self.figures.endangered_oldest_s = self.queue.oldest().map_or(0, |since| now.since(since).as_secs());
        self.tell_under_way();
        let (staged_bytes, staging_closed) = self.staged();
        let located = self.located.clone();
        let house = House { status: self.figures, located, staged_bytes, staging_closed };
        let (f, staged_bytes) = self.master.desk(|desk| {
            let seat = desk.seat_mut(self.volume);
            if seat.serving == Some(self.term) {
                seat.house = house;
            }
            (desk.house_status(), desk.staged_bytes())
        });
        let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let m = &self.master.metrics;
        m.copies_waiting.set(gauge(f.waiting));
        m.copies_under_way.set(gauge(f.copying));
        m.endangered_oldest_seconds.set(gauge(f.endangered_oldest_s));
        m.chunks_dead.set(gauge(f.dead));
        m.chunk_bytes.set(gauge(f.bytes));
        m.chunk_bytes_live.set(gauge(f.bytes_live));
        m.staged_bytes.set(gauge(staged_bytes));
    }
}
