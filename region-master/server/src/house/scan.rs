//! The scan over all chunks, a page in each tick.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mooseng_namespace::OpError;
use mooseng_namespace::classes;
use mooseng_namespace::upkeep::{self, ChunkListing};
use mooseng_ports::clock::BootTime;
use mooseng_ports::plant::{self, Plant};
use mooseng_region::registry::CopyFacts;
use mooseng_region::repair::{
    self, Condition, CopyState, Decision, Member, Need, OpenFacts, Server, Servers,
};
use mooseng_schema::location::LocationRecord;
use mooseng_wire::call::CallError;
use mooseng_wire::chunk::{Close, Sealed};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Role, SessionId};

use super::Keeper;
use super::elsewhere::Compared;
use crate::desk::{ChunkCounts, Desk, Seal};
use crate::errors::record_failed;
use crate::records::transact;
use crate::seals;
use crate::tickets::TICKET_LIFE_MS;

/// Chunks looked at in one tick.
const PAGE: usize = 256;
/// Unsealed copies of inventories looked at in one tick.
const UNSEALED_MAX: usize = 64;
/// Files of one chunk whose storage classes are compared with its own in one scan; the others have their turn in later ones.
const COMPARED_MAX: usize = 256;
/// Chunks that get their files' storage class in one transaction.
const FOLLOWING_MAX: usize = 64;
/// Open chunks that are ended in one page: each is a call, or some.
const ENDED_MAX: usize = 8;
const END_WITHIN: Duration = Duration::from_secs(2);
/// An end that failed is remembered for so long, so that others have their turn before.
const UNENDED_FOR: Duration = Duration::from_secs(3600);
/// Chunks at most for which it is remembered since when it is known that their times are still to come.
const AHEAD_MAX: usize = 10_000;
/// Troubles of one page that are told: where the store is away each item has one.
const TROUBLES_MAX: usize = 8;

/// Where the scan is, and what it has seen in this pass.
#[derive(Default)]
pub(super) struct Scan {
    after: Option<ChunkId>,
    /// Not before.
    next: Option<BootTime>,
    counts: ChunkCounts,
    loads: BTreeMap<String, u64>,
    located: BTreeMap<String, u64>,
    /// What the desk said when this pass began.
    drainings_set: u64,
    endangered: BTreeSet<ChunkId>,
    /// As in [`Keeper::ahead`].
    ahead: BTreeMap<ChunkId, BootTime>,
    /// Chunks that need a copy for which there is no place.
    stuck: u64,
    bytes: u64,
    bytes_live: u64,
}

/// What a page asks for.
#[derive(Default)]
struct Page {
    /// Open chunks whose session isn't in the table.
    abandoned: Vec<ChunkListing>,
    /// Open chunks to be ended, each on one of these members.
    ended: Vec<(ChunkListing, Vec<String>)>,
    /// Each with the time by which it must have been sealed.
    unused: Vec<(ChunkId, i64)>,
    /// Chunks whose files have another storage class.
    reclassed: Vec<ChunkId>,
    drops: Vec<(ChunkListing, String)>,
    /// Of a replica: sealed chunks of which no copy here is of any use.
    useless: Vec<ChunkListing>,
    /// Sealed chunks of an earlier home of which a part is here.
    parts: Vec<ChunkListing>,
    /// Copies that don't know yet that their chunk is sealed, and at which length.
    unsealed: Vec<(String, ChunkId, u64)>,
}

/// What failed of a page: it keeps nothing else of it from being done.
#[derive(Default)]
struct Troubles {
    told: Vec<CallError>,
}

impl Troubles {
    fn note<T>(&mut self, outcome: Result<T, CallError>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                if self.told.len() < TROUBLES_MAX {
                    self.told.push(error);
                }
                None
            }
        }
    }
}

impl Keeper<'_> {
    /// Looks at the next page. Answers what of it couldn't be carried out: the rest was.
    pub(super) async fn scan_on(&mut self) -> Result<Vec<CallError>, CallError> {
        let now = self.master.clock.boot();
        if self.scan.next.is_some_and(|next| now < next) {
            return Ok(Vec::new());
        }
        let (volume, after) = (self.volume, self.scan.after);
        if after.is_none() {
            self.scan.drainings_set = self.master.desk(|desk| desk.drainings_set());
        }
        // A replica's chunks have the class that the home gives them.
        let several = !self.replica && self.master.desk(|desk| desk.seat(volume).classes.are_several());
        let replica = self.replica;
        let compared = self.elsewhere.compared.clone();
        let (mut listings, misfits, more) = transact(&self.master.store, |tx| {
            let compared = compared.clone();
            async move {
                let (page, more) = upkeep::list_chunks(&tx, volume, after, PAGE).await?;
                let wanted = page.iter().map(|listing| async {
                    let has = listing.record.storage_class;
                    // Where there are no classes no chunk's file has one.
                    if replica || (!several && has == classes::DEFAULT) {
                        return Ok(has);
                    }
                    Ok(classes::wanted(&tx, listing.chunk, &listing.record).await?.unwrap_or(has))
                });
                let wanted: Vec<u32> = futures::future::try_join_all(wanted).await.map_err(|e: OpError| e)?;
                let mut misfits = Vec::new();
                for (listing, class) in page.iter().zip(&wanted) {
                    let chunk = listing.chunk;
                    if several
                        && listing.users > 1
                        && listing.record.sealed
                        && listing.record.storage_class == *class
                    {
                        let from = compared.get(&chunk).copied();
                        let (found, next) = classes::misfits(&tx, chunk, *class, from, COMPARED_MAX).await?;
                        misfits.push(Compared { chunk, misfits: found, next });
                    }
                }
                let listings: Vec<_> = page.into_iter().zip(wanted).collect();
                Ok((tx, (listings, misfits, more)))
            }
        })
        .await
        .map_err(|e| record_failed(&e))?;
        self.note_misfits(misfits);
        let master = self.master;
        let page = master.desk(|desk| {
            let mut page = Page::default();
            let servers = self.servers(desk);
            for (listing, class) in &mut listings {
                self.look_at(desk, &servers, listing, *class, &mut page);
            }
            page
        });
        self.scan.after = listings.last().map(|(listing, _)| listing.chunk);
        if !more {
            self.scanned(now);
        }
        Ok(self.carry_out(page).await)
    }

    fn scanned(&mut self, now: BootTime) {
        self.unended.retain(|_, failed| now.since(*failed) < UNENDED_FOR);
        let scan = std::mem::take(&mut self.scan);
        self.scan.next = Some(now.after(Duration::from_millis(self.master.config.house.scan_every_ms)));
        self.master.desk(|desk| {
            desk.seat_mut(self.volume).counts = scan.counts;
            desk.located_as_of(self.volume, scan.drainings_set, scan.located.clone());
        });
        self.queue.scanned(|chunk| scan.endangered.contains(&chunk));
        self.loads = scan.loads;
        self.located = scan.located;
        self.stuck = scan.stuck;
        self.ahead = scan.ahead;
        if !self.replica {
            self.choose_rewrites();
            self.choose_joins();
        }
        self.figures.bytes = scan.bytes;
        self.figures.bytes_live = scan.bytes_live;
    }

    fn look_at(
        &mut self,
        desk: &Desk,
        servers: &Servers,
        listing: &mut ChunkListing,
        wanted: u32,
        page: &mut Page,
    ) {
        let reclassed = listing.record.storage_class != wanted;
        if reclassed {
            page.reclassed.push(listing.chunk);
        }
        // As it will be once this page is carried out.
        listing.record.storage_class = wanted;
        let (listing, record) = (&*listing, &listing.record);
        let names = listing.location.as_ref().map(|l| l.copies.as_slice()).unwrap_or_default();
        for name in names {
            *self.scan.located.entry(name.clone()).or_default() += 1;
            *self.scan.loads.entry(name.clone()).or_default() += record.length;
        }
        let partial = listing.location.as_ref().is_some_and(|l| l.partial.is_some());
        // One that no file uses goes at home as any other.
        if record.sealed && partial && (self.replica || listing.used.extents > 0) {
            match self.replica || record.birth >= self.master.epoch(self.volume).0 {
                true if listing.used.extents > 0 => self.master.geo.want(listing.chunk),
                true => {}
                false => page.parts.push(listing.clone()),
            }
            return;
        }
        if record.sealed && record.length > 0 {
            self.look_for_unsealed(desk, listing, page);
        }
        if self.replica {
            if record.sealed && record.length > 0 && listing.used.extents > 0 {
                match names.is_empty() {
                    true => self.master.geo.want(listing.chunk),
                    false => self.look_at_sealed(desk, servers, listing, page),
                }
            }
            return;
        }
        // A first look, without the store: burying decides.
        let held = desk.sessions.holds(SessionId(record.owner)) || record.owner == 0;
        let before_ns = self.sealed_before_ns(record.sealed_ns);
        let due = !held || record.sealed_ns <= before_ns;
        let unused = listing.used.extents == 0 || plant::is(Plant::CollectionUnchecked);
        if record.sealed && unused && due && !self.is_rewriting(listing.chunk) {
            page.unused.push((listing.chunk, before_ns));
        }
        if !record.sealed {
            self.look_at_open(desk, servers, listing, reclassed, page);
        } else if record.length > 0 {
            self.look_at_sealed(desk, servers, listing, page);
        }
    }

    /// Inventories are compared once; that the chunk is sealed may come later, with the log or a copy of the volume (found by the simulation of three regions:
    /// a copy that grew while its region was the home stayed unsealed for good).
    fn look_for_unsealed(&self, desk: &Desk, listing: &ChunkListing, page: &mut Page) {
        let (chunk, length) = (listing.chunk, listing.record.length);
        for name in listing.location.iter().flat_map(|location| &location.copies) {
            let copy = desk.registry.get(name).and_then(|server| server.copy(chunk));
            let is_unsealed = copy.is_some_and(|copy| !copy.sealed && !copy.corrupt && copy.length >= length);
            if is_unsealed && !desk.seal_waits(name, chunk) {
                page.unsealed.push((name.clone(), chunk, length));
            }
        }
    }

    /// The volume's storage classes, as they were replayed.
    pub(super) async fn load_classes(&mut self) -> Result<(), CallError> {
        if self.scan.after.is_none() && self.scan.next.is_none_or(|next| self.master.clock.boot() >= next) {
            let classes = crate::classes::load(self.master, self.volume).await?;
            self.master.desk(|desk| desk.seat_mut(self.volume).classes.set(classes));
        }
        Ok(())
    }

    /// By when a chunk that was sealed then must have been, so that nobody is about to name it.
    fn sealed_before_ns(&self, sealed_ns: i64) -> i64 {
        let after_ms = i64::try_from(self.master.config.house.collect_after_ms).unwrap_or(i64::MAX);
        let watched = self.master.clock.boot().since(self.watching_since);
        repair::sealed_by(sealed_ns, self.now_since(sealed_ns), after_ms.saturating_mul(1_000_000), watched)
    }

    /// How long ago a chunk was made or sealed. Where that is still to come by the clock: for how long this leader has known of it, or, of many such chunks, of any.
    pub(super) fn age(&mut self, chunk: ChunkId, time_ns: i64) -> Duration {
        let (now_ns, margin_ns) = (self.now_since(time_ns), self.settle_ns());
        repair::age(time_ns, now_ns, margin_ns, || {
            let (now, ahead) = (self.master.clock.boot(), &mut self.scan.ahead);
            if ahead.len() >= AHEAD_MAX && !ahead.contains_key(&chunk) {
                return now.since(self.watching_since);
            }
            let since = self.ahead.get(&chunk).copied().unwrap_or(now);
            ahead.insert(chunk, since);
            now.since(since)
        })
    }

    fn count(&mut self, desk: &Desk, servers: &Servers, listing: &ChunkListing, reachable: usize) {
        let (chunk, class) =
            (listing.chunk, desk.seat(self.volume).classes.get(listing.record.storage_class));
        let endangered = reachable < class.copies;
        let names = listing.location.iter().flat_map(|l| &l.copies);
        self.scan.counts.misplaced += u64::from(repair::is_misplaced(class, names, servers));
        self.scan.counts.chunks += 1;
        self.scan.counts.endangered += u64::from(endangered);
        self.scan.counts.unavailable += u64::from(reachable == 0);
        self.queue.endangered(chunk, endangered, self.master.clock.boot());
        if endangered {
            self.scan.endangered.insert(chunk);
        }
    }

    fn look_at_open(
        &mut self,
        desk: &Desk,
        servers: &Servers,
        listing: &ChunkListing,
        reclassed: bool,
        page: &mut Page,
    ) {
        let names = listing.location.as_ref().map(|l| l.copies.as_slice()).unwrap_or_default();
        let class = desk.seat(self.volume).classes.get(listing.record.storage_class);
        let now = self.master.clock.boot();
        let owner = SessionId(listing.record.owner);
        if !desk.sessions.in_grace(self.volume, now) && !desk.sessions.holds(owner) {
            page.abandoned.push(listing.clone());
        }
        let used = listing.used.extents > 0;
        let age = self.age(listing.chunk, listing.record.born_ns);
        let settle = Duration::from_millis(self.master.config.house.settle_ms);
        // What extents name was acknowledged by all members.
        let appended_for = used.then_some(age);
        let member = |name: &String| Member {
            name: name.clone(),
            condition: self.condition(desk, name),
            leaving: desk.registry.is_draining(name) || repair::is_misplaced(class, [name], servers),
            copy: repair::open_copy(&desk.registry, name, now, listing.chunk, appended_for, settle),
        };
        let facts = OpenFacts {
            members: names.iter().map(member).collect(),
            reclassed,
            earlier: listing.record.birth < self.master.epoch(self.volume).0,
            used,
            age,
            unused_max: Duration::from_millis(self.master.config.house.collect_after_ms),
            // Tickets are rounded up, and taken a little longer than they are valid.
            open_max: Duration::from_millis(TICKET_LIFE_MS) + Duration::from_secs(300),
        };
        let reachable = facts.members.iter().filter(|member| member.is_reachable()).count();
        // There is nothing to read of one of an earlier home, nor to keep, if no file came to use it.
        if !facts.earlier || facts.used {
            self.count(desk, servers, listing, reachable);
        }
        let members: Vec<String> = repair::end_open(&facts).into_iter().map(str::to_owned).collect();
        if !members.is_empty() {
            page.ended.push((listing.clone(), members));
        }
    }

    fn look_at_sealed(&mut self, desk: &Desk, servers: &Servers, listing: &ChunkListing, page: &mut Page) {
        let facts = self.facts(desk, listing);
        // The home has it: what is there and of no use doesn't become so, and is taken off the record at once.
        let useless = facts.copies.iter().all(|(_, state)| *state == CopyState::Bad);
        if self.replica && useless && !facts.copies.is_empty() && listing.used.extents > 0 {
            page.useless.push(listing.clone());
        }
        let there = |state: &CopyState| matches!(state, CopyState::Good | CopyState::Unknown);
        let reachable = facts.copies.iter().filter(|(_, state)| there(state)).count();
        self.count(desk, servers, listing, reachable);
        self.scan.bytes += listing.record.length;
        self.scan.bytes_live += listing.used.bytes.min(listing.record.length);
        // Another region may have it: the home of before, from which it hadn't come, one that has it from here, or a replica's home. What is lost may be back before it comes.
        let is_gone = |(_, state): &(String, CopyState)| matches!(state, CopyState::Bad | CopyState::Lost);
        let is_wanted = listing.used.extents > 0 && facts.copies.iter().all(is_gone);
        let has_others = || if self.replica { !useless } else { self.has_others() };
        if is_wanted && has_room(servers, facts.class.min_copies) && has_others() {
            self.master.geo.want(listing.chunk);
        }
        // What nothing uses isn't worth a copy.
        if listing.used.extents == 0 {
            self.queue.remove(listing.chunk);
            return;
        }
        if !self.replica {
            self.note_used(listing);
        }
        match repair::decide(&facts, servers, &self.flights) {
            // It would keep others from their turn: the next scan looks at it again.
            Decision::Stuck(need) => {
                self.queue.remove(listing.chunk);
                self.scan.stuck += u64::from(need != Need::Endangered { good: 0 });
            }
            Decision::Well | Decision::Wait(Need::Endangered { good: 0 } | Need::Apart | Need::Balance) => {
                self.queue.remove(listing.chunk);
            }
            Decision::Copy { need, .. } | Decision::Wait(need) => self.queue.put(listing.chunk, need),
            Decision::Adopt { .. } => self.queue.put(listing.chunk, Need::Endangered { good: 1 }),
            Decision::Drop { server } => page.drops.push((listing.clone(), server)),
        }
    }

    /// Whether other regions have the volume, too.
    fn has_others(&self) -> bool {
        self.master.geo.view().is_some_and(|view| view.replicas_of(self.volume).next().is_some())
    }

    async fn carry_out(&mut self, mut page: Page) -> Vec<CallError> {
        let mut troubles = Troubles::default();
        // First, for what else is decided rests on it.
        for some in page.reclassed.chunks(FOLLOWING_MAX) {
            if self.follow(some).await.is_err() {
                for chunk in some {
                    troubles.note(self.follow(&[*chunk]).await);
                }
            }
        }
        for listing in page.abandoned {
            troubles.note(seals::abandon(self.master, &listing).await);
        }
        // Those that failed last are the last to be tried again.
        page.ended.sort_by_key(|(listing, _)| self.unended.get(&listing.chunk).copied());
        page.ended.truncate(ENDED_MAX);
        let ends: Vec<_> = page.ended.iter().map(|(listing, members)| self.end(listing, members)).collect();
        let ended = futures::future::join_all(ends).await;
        for ((listing, _), ended) in page.ended.iter().zip(ended) {
            match troubles.note(ended) {
                Some(true) => drop(self.unended.remove(&listing.chunk)),
                _ => drop(self.unended.insert(listing.chunk, self.master.clock.boot())),
            }
        }
        for listing in page.parts {
            match troubles.note(seals::end_at_part(self.master, &listing).await) {
                Some(true) => tracing::info!(
                    chunk = listing.chunk.0,
                    length = listing.location.as_ref().and_then(|location| location.partial),
                    "a chunk of an earlier home ends with what is here of it: nothing names more"
                ),
                // Files have more of it, or nothing is here: another region may have it.
                Some(false) if listing.used.extents > 0 => self.master.geo.want(listing.chunk),
                _ => {}
            }
        }
        for listing in page.useless {
            let Some(location) = listing.location.clone() else { continue };
            tracing::warn!(
                chunk = listing.chunk.0,
                copies = ?location.copies,
                "no copy of a chunk is of any use here: it is fetched from the home again"
            );
            let nowhere = LocationRecord { copies: Vec::new(), partial: Some(0), ..location };
            if troubles.note(super::relocate(self.master, &listing, nowhere).await) == Some(true) {
                self.master.geo.want(listing.chunk);
            }
        }
        let epoch = self.master.epoch(self.volume).0;
        self.master.desk(|desk| {
            for (name, chunk, length) in page.unsealed {
                desk.want_seal(&name, chunk, Seal { length, epoch });
            }
        });
        for (listing, server) in page.drops {
            // What came before may have taken long: a copy that was to stay may be lost by now.
            let (still, _) = self.decide(&listing);
            if still == (Decision::Drop { server: server.clone() }) {
                troubles.note(self.drop_copy(&listing, &server).await);
            }
        }
        for (chunk, before_ns) in page.unused {
            troubles.note(self.bury(chunk, before_ns).await);
        }
        troubles.told
    }

    /// Chunks get the storage class of their files.
    async fn follow(&self, chunks: &[ChunkId]) -> Result<(), CallError> {
        transact(&self.master.store, |tx| async move {
            for chunk in chunks {
                classes::follow(&tx, *chunk).await?;
            }
            Ok((tx, ()))
        })
        .await
        .map_err(|e| record_failed(&e))
    }

    async fn bury(&mut self, chunk: ChunkId, before_ns: i64) -> Result<(), CallError> {
        let now_ns = self.now_ns();
        let buried = transact(&self.master.store, |tx| async move {
            let buried = upkeep::bury_chunk(&tx, chunk, now_ns, before_ns).await?;
            Ok((tx, buried))
        })
        .await
        .map_err(|e| record_failed(&e))?;
        if buried {
            tracing::info!(chunk = chunk.0, "nothing uses a chunk any more: its copies are deleted");
            self.master.metrics.chunks_buried.inc();
            self.queue.remove(chunk);
        }
        Ok(())
    }

    /// Ends an open chunk whose session lives: on one member first, so that nothing more is acknowledged, then in the store. Answers whether it did.
    async fn end(&self, listing: &ChunkListing, members: &[String]) -> Result<bool, CallError> {
        let epoch = self.master.epoch(self.volume).0;
        for member in members {
            let Some(length) = self.close(listing.chunk, member, epoch).await else { continue };
            let Some(sealed) = seals::end(self.master, listing.chunk, length).await? else { return Ok(true) };
            let length = sealed.record.length;
            tracing::info!(chunk = listing.chunk.0, length, member, "ended an open chunk");
            self.master.desk(|desk| {
                for name in sealed.location.iter().flat_map(|l| &l.copies) {
                    desk.want_seal(name, listing.chunk, Seal { length, epoch });
                }
            });
            return Ok(true);
        }
        // Perhaps nothing was ever appended: the owner's end seals it at last.
        Ok(false)
    }

    /// Has a member take no more appends to a chunk. Answers its length there.
    async fn close(&self, chunk: ChunkId, member: &str, epoch: u64) -> Option<u64> {
        let address = self.master.desk(|desk| desk.registry.get(member).map(|s| s.beat.address.clone()))?;
        let close = Close { chunk: chunk.0, epoch };
        let link = self.master.link(Role::Chunkserver, &address);
        match link.request::<_, Sealed>(Method::ChunkClose, &close, END_WITHIN).await {
            Ok(sealed) => Some(sealed.length),
            Err(error) => {
                tracing::debug!(chunk = chunk.0, member, %error, "an open chunk couldn't be ended there");
                None
            }
        }
    }

    /// Tells chunkservers of seals that they missed: they report a sealed chunk as unsealed.
    pub(super) async fn match_seals(&mut self) -> Result<(), CallError> {
        for (chunkserver, chunk) in self.master.desk(|desk| desk.take_unsealed(self.volume, UNSEALED_MAX)) {
            let Some(listing) = seals::load(self.master, chunk).await? else { continue };
            let seal = Seal { length: listing.record.length, epoch: self.master.epoch(self.volume).0 };
            self.master.desk(|desk| {
                let copy = desk.registry.get(&chunkserver).and_then(|server| server.copy(chunk));
                if is_to_be_sealed(&listing, copy) {
                    desk.want_seal(&chunkserver, chunk, seal);
                }
            });
        }
        Ok(())
    }
}

/// Whether there are chunkservers that a chunk could be fetched to.
fn has_room(servers: &Servers, min_copies: usize) -> bool {
    let takes = |server: &&Server| server.condition == Condition::Here && server.candidate.writable;
    servers.values().filter(takes).count() >= min_copies.max(1)
}

/// Whether a copy that is reported as unsealed is to be told where its chunk ends. Not one that isn't known to be all that it is to be: where it is compared with
/// that it is sealed, too ([`crate::geo`]), and one that was sealed before would look like one that was compared.
fn is_to_be_sealed(listing: &ChunkListing, copy: Option<CopyFacts>) -> bool {
    let is_whole = listing.location.as_ref().is_some_and(|location| location.partial.is_none());
    // One that is too short can't be sealed so: it is replaced.
    listing.record.sealed && is_whole && copy.is_none_or(|copy| copy.length >= listing.record.length)
}

#[cfg(test)]
mod tests {
    use mooseng_schema::chunk::{ChunkRecord, ChunkUse};
    use mooseng_transport::call_error;
    use mooseng_wire::call::ErrorCode;

    use super::*;

    /// Found by review: a replica's copy was sealed by its length before it was compared, and then taken for one that was.
    #[test]
    fn a_copy_isnt_sealed_before_it_was_compared() {
        let location = LocationRecord { layout: 1, copies: vec!["a".into()], epoch: 1, partial: Some(8) };
        let mut listing = ChunkListing {
            chunk: ChunkId(1),
            record: ChunkRecord { length: 8, sealed: true, ..ChunkRecord::default() },
            location: Some(location.clone()),
            used: ChunkUse { extents: 1, bytes: 8 },
            users: 1,
            first_users: Vec::new(),
        };
        let copy = |length| Some(CopyFacts { length, sealed: false, epoch: 1, corrupt: false });
        assert!(!is_to_be_sealed(&listing, copy(8)), "its bytes are here, and weren't compared");
        listing.location = None;
        assert!(!is_to_be_sealed(&listing, copy(8)), "nothing is known to be here");
        listing.location = Some(LocationRecord { partial: None, ..location });
        assert!(is_to_be_sealed(&listing, copy(8)) && is_to_be_sealed(&listing, None));
        assert!(!is_to_be_sealed(&listing, copy(7)));
        listing.record.sealed = false;
        assert!(!is_to_be_sealed(&listing, copy(8)));
    }

    #[test]
    fn what_fails_of_a_page_stops_nothing_and_is_told_in_part() {
        let mut troubles = Troubles::default();
        for n in 0..3 * TROUBLES_MAX {
            let failed = Err(call_error(ErrorCode::Unavailable, format!("number {n}")));
            assert_eq!(troubles.note::<usize>(failed), None);
            assert_eq!(troubles.note(Ok(n)), Some(n));
        }
        assert_eq!(troubles.told.len(), TROUBLES_MAX);
        assert_eq!(troubles.told[0].message, "number 0");
    }
}
