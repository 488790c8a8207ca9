//! What a region has of a volume that it was taken out of goes: after a while, and only what the volume's home says is elsewhere.
//!
//! ```text
//!  taken out (confirmed) --> on record --> kept for a while --> own tail put aside --> home: all is elsewhere? --> records --> home: spare? --> copies
//!        \------------------------------------- added again: taken back, copied from nothing if anything went ------------------------------/
//! ```
//! - That the region isn't to have the volume is confirmed: by the region's lease, which it holds by a renewal that was sent since this began, and which counts
//!   only where this master knows of everything that was agreed on before it. With that renewal the leader of the global group hears, too, that this region
//!   can't take the volume over.
//! - What is decided when [`mooseng_region::letting_go`] says; how records go [`mooseng_namespace::let_go`]; what the home answers [`super::may_go`].
//! - What was put aside stays, and the chunks that it names. So do chunks of which the home doesn't know what became of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mooseng_global::View;
use mooseng_namespace::OpError;
use mooseng_namespace::clearing::{PART, Progress};
use mooseng_namespace::let_go::{self, Here};
use mooseng_ports::clock::BootTime;
use mooseng_region::Liveness;
use mooseng_region::letting_go::{Facts, Next, next};
use mooseng_replica::needs::Named;
use mooseng_replica::read;
use mooseng_schema::let_go::LetGoRecord;
use mooseng_schema::log::{LogPosition, ReplicaRecord};
use mooseng_schema::volume::VolumeRecord;
use mooseng_store::Store;
use mooseng_wire::admin;
use mooseng_wire::call::CallError;
use mooseng_wire::founding::FOUNDING_BYTES;
use mooseng_wire::geo::{AskLetGo, LetGo};
use mooseng_wire::method::Method;
use mooseng_wire::{ChunkId, Epoch, VolumeId};

use super::may_go::CHUNKS_MAX;
use super::stand::{self, KeptToTheLog};
use super::{ask, lock, pause, place, position};
use crate::errors::record_failed;
use crate::global::Global;
use crate::lead;
use crate::master::Master;
use crate::records::transact;

/// How often it is looked whether something is to do.
const EVERY: Duration = Duration::from_secs(5);
/// After a failure: at first, and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// While only that is left which stays.
const REST: Duration = Duration::from_secs(60);
/// Before the next step, where one follows.
const SOON: Duration = Duration::from_millis(100);
/// Between two parts: others want to read, too.
const PAUSE: Duration = Duration::from_millis(10);
/// Bytes of what was put aside that are looked at in one go.
const PAGE_BYTES: usize = 1 << 20;
/// Chunks that what was put aside names: beyond it everything stays.
const NAMED_MAX: usize = 1_000_000;
/// How often it is looked whether a chunkserver still deletes what it was told before.
const OBEYING: Duration = Duration::from_millis(50);

/// The mark of a volume, which tells it from any other, wherever it is. A hash of its secret tells nothing of that.
pub(crate) fn mark_of(record: &VolumeRecord) -> [u8; FOUNDING_BYTES] {
    let hash = blake3::derive_key("mooseng 2026-11 the mark of a volume", &record.hash_key);
    let mut mark = [0; FOUNDING_BYTES];
    mark.copy_from_slice(&hash[..FOUNDING_BYTES]);
    mark
}

pub(super) fn mark(record: &VolumeRecord) -> Bytes {
    Bytes::copy_from_slice(&mark_of(record))
}

/// This region is to have the volume, as its home or with a replica: what was on record of letting it go is taken back, before anything is begun. Of a
/// home nothing can have gone.
pub async fn take_back(master: &Master, volume: VolumeId, as_home: bool) -> Result<(), CallError> {
    let known = transact(&master.store, |tx| async move {
        let known = let_go::take_back(&tx, volume).await?;
        if as_home && known.as_ref().is_some_and(|known| known.clearing) {
            return Err(OpError::LetGo(volume.0));
        }
        Ok((tx, known))
    });
    if let Some(known) = known.await.map_err(|e| record_failed(&e))? {
        tracing::info!(
            volume = volume.0,
            cleared = known.clearing,
            "this region is to have a volume again that it was letting go of"
        );
    }
    // What a chunkserver was told to delete before it may delete still: nothing is placed there until that is over, or what is placed there says that it is.
    let is_obeying = || {
        let custody = master.orders(master.raft.term());
        master.desk(|desk| desk.is_obeying(volume, master.clock.boot(), custody))
    };
    while is_obeying() {
        tokio::time::sleep(OBEYING).await;
    }
    Ok(())
}

/// The regions that have something of a volume and aren't to have it any more, as far as this master knows.
pub fn told(master: &Master, volume: VolumeId) -> Vec<admin::LettingGo> {
    let view = master.geo.view();
    let known = view.as_ref().and_then(|view| view.volumes.get(&volume));
    let Some(known) = known.filter(|_| master.raft.is_leading()) else { return Vec::new() };
    let seat = master.geo.seat(volume);
    let stages = lock(&seat.letting_go);
    let gone = |region: &String| {
        known.regions.contains(region) || !view.as_ref().is_some_and(|view| view.regions.contains_key(region))
    };
    let of = stages.iter().filter(|(region, _)| !gone(region));
    of.map(|(region, stage)| admin::LettingGo { region: region.clone(), stage: stage.clone() }).collect()
}

/// Whether something was left here of a volume when it was looked last, by this master as its region's leader.
pub fn has_something(master: &Master, volume: VolumeId) -> bool {
    lock(&master.geo.seat(volume).letting_go).contains_key(&master.config.region)
}

/// Lets go of what is here of a volume, as long as this region isn't one of the volume's and this master leads it.
pub async fn run(master: &Arc<Master>, volume: VolumeId, custody: u64) {
    let (Some(global), Some(mut cluster)) = (&master.global, master.geo.cluster.clone()) else {
        return std::future::pending().await;
    };
    // Before the first word of what was agreed on nothing is known of any volume.
    if cluster.wait_for(|view| view.volumes.contains_key(&volume)).await.is_err() {
        return;
    }
    // What was under way while the region had the volume changes nothing any more.
    let _kept = KeptToTheLog::put_on(master, volume);
    global.stands_no_more(volume);
    let since = master.clock.boot();
    let stage = String::new();
    let mut letting = LettingGo { master, global, volume, since, named: None, stage, told_rest: false };
    let mut again = AGAIN;
    while let Err(error) = letting.begin(custody).await {
        tracing::info!(volume = volume.0, error = %error.message, "what is here of a volume that this region isn't to have can't be looked at yet; trying on");
        tokio::time::sleep(pause(again)).await;
    }
    loop {
        let wait = match letting.step().await {
            Ok((stage, wait)) => {
                letting.say(stage);
                again = AGAIN;
                wait
            }
            Err(trouble) => {
                letting.say(format!("it keeps what it has: {trouble}"));
                again = (again * 2).min(AGAIN_MAX);
                again
            }
        };
        tokio::time::sleep(pause(wait)).await;
    }
}

/// A step: how far it is then, for people, and when the next one is due.
type Stepped = Result<(String, Duration), String>;

struct LettingGo<'a> {
    master: &'a Arc<Master>,
    global: &'a Arc<Global>,
    volume: VolumeId,
    /// Whatever was agreed on before this moment must be known.
    since: BootTime,
    /// Chunks that what was put aside names, once that was looked up.
    named: Option<Arc<BTreeSet<ChunkId>>>,
    /// What was said last.
    stage: String,
    /// The home was told that nothing is left.
    told_rest: bool,
}

impl LettingGo<'_> {
    async fn begin(&self, custody: u64) -> Result<(), CallError> {
        if !self.master.desk(|desk| desk.is_serving()) {
            lead::make_ready(self.master).await?;
        }
        stand::note_salvage(self.master, self.volume).await?;
        // Chunkservers obey whoever is in office, and this region may serve no volume.
        self.master.desk(|desk| desk.let_go(self.volume, custody));
        Ok(())
    }

    fn say(&mut self, stage: String) {
        self.told_rest &= stage.is_empty();
        let seat = self.master.geo.seat(self.volume);
        let region = &self.master.config.region;
        match stage.is_empty() {
            true => drop(lock(&seat.letting_go).remove(region)),
            false => drop(lock(&seat.letting_go).insert(region.clone(), stage.clone())),
        }
        // Figures change all the time.
        let words = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
        if words(&self.stage) != words(&stage) && !stage.is_empty() {
            tracing::info!(volume = self.volume.0, stage, "this region isn't to have a volume any more");
        }
        self.stage = stage;
    }

    /// What was agreed on, if it is certain that this region isn't to have the volume.
    fn confirmed(&self, record: Option<&LetGoRecord>) -> Result<Arc<View>, String> {
        let unsure =
            || "this region doesn't hold its lease, so it may not know what was agreed on".to_owned();
        let (view, as_of) = self.global.as_of().ok_or_else(unsure)?;
        if as_of < self.since {
            return Err("it isn't certain yet that this region isn't to have the volume".to_owned());
        }
        let known = view.volumes.get(&self.volume).ok_or("there is no such volume any more")?;
        if known.regions.contains(&self.master.config.region) {
            return Err("this region is to have the volume".to_owned());
        }
        if record.is_some_and(|record| record.agreed > view.version) {
            return Err("this region was taken out of the volume by what another global group had agreed on: was that founded anew?".to_owned());
        }
        Ok(view)
    }

    async fn step(&mut self) -> Stepped {
        let volume = self.volume;
        let here = transact(&self.master.store, |tx| async move {
            let here = let_go::look(&tx, volume).await?;
            Ok((tx, here))
        });
        let here = here.await.map_err(|e| record_failed(&e).message)?;
        let now_ns = self.master.clock.unix_ns();
        let keep_s = self.master.config.house.let_go_after_s;
        let record = here.let_go.clone();
        let facts = Facts {
            records: here.any,
            copies: !self.reported(None).is_empty(),
            since_ns: record.as_ref().map(|record| record.since_ns),
            keep_until_ns: record.as_ref().map_or(0, |record| record.until_ns(keep_s)),
            clearing: record.as_ref().is_some_and(|record| record.clearing),
            cleared: record.as_ref().is_some_and(|record| record.cleared),
        };
        let record = record.unwrap_or_default();
        match next(&facts, now_ns) {
            Next::Rest => {
                if facts.since_ns.is_some()
                    && !self.told_rest
                    && self.tell(&record, String::new()).await.is_ok()
                {
                    self.told_rest = true;
                    tracing::info!(
                        volume = volume.0,
                        "nothing is left here of a volume that this region isn't to have"
                    );
                }
                Ok((String::new(), EVERY))
            }
            Next::Note => self.note(now_ns).await,
            Next::Keep(left) => {
                let stage = format!("it keeps everything for {} s more", left.as_secs().max(1));
                // The home shows it, too; what has nobody to tell it to isn't worse for that.
                let _ = self.tell(&record, stage.clone()).await;
                Ok((stage, left.min(EVERY)))
            }
            Next::LookThrough => self.look_through(&here, &record).await,
            Next::Clear => self.clear(&record).await,
            Next::Copies => self.delete_copies(&record).await,
        }
    }

    async fn note(&self, now_ns: i64) -> Stepped {
        let agreed = self.confirmed(None)?.version;
        let volume = self.volume;
        let noted = transact(&self.master.store, |tx| async move {
            let noted = let_go::note(&tx, volume, now_ns, agreed, mark).await?;
            Ok((tx, noted))
        });
        noted.await.map_err(|e| record_failed(&e).message)?;
        Ok(("it was taken out of the volume's regions".to_owned(), SOON))
    }

    /// Asks the home.
    async fn ask(
        &self,
        record: &LetGoRecord,
        (at, had): (Option<LogPosition>, LogPosition),
        chunks: &[ChunkId],
        stage: String,
    ) -> Result<LetGo, String> {
        let view = self.confirmed(Some(record))?;
        let known = view.volumes.get(&self.volume).ok_or("there is no such volume any more")?;
        if !known.open {
            return Err(format!(
                "the volume's epoch {} is over, and its next home is being found",
                known.epoch.0
            ));
        }
        let message = AskLetGo {
            volume: self.volume.0.into(),
            epoch: known.epoch.0,
            agreed: view.version,
            mark: record.mark.clone(),
            at: at.and_then(place),
            had: place(had),
            chunks: chunks.iter().map(|chunk| chunk.0).collect(),
            put_aside: lock(&self.master.geo.seat(self.volume).put_aside).clone(),
            stage,
        };
        ask(self.master, &known.home, Method::VolumeLetGo, &message).await
    }

    async fn tell(&self, record: &LetGoRecord, stage: String) -> Result<(), String> {
        self.ask(record, (None, record.had()), &[], stage).await.map(drop)
    }

    /// The same about chunks. Answers those that may be deleted, and those that were in the question; nothing of either where nothing may go.
    async fn ask_spare(
        &self,
        record: &LetGoRecord,
        had: LogPosition,
        chunks: &[ChunkId],
    ) -> Result<(BTreeSet<ChunkId>, BTreeSet<ChunkId>), String> {
        if record.mark.is_empty() && !chunks.is_empty() {
            return Err("chunks are here and no record of the volume was, so it isn't known whether they are of this one".to_owned());
        }
        let answer = self.ask(record, (None, had), chunks, self.stage.clone()).await?;
        if !answer.trouble.is_empty() {
            return Err(answer.trouble);
        }
        let of = |ids: Vec<u64>| -> BTreeSet<ChunkId> {
            ids.into_iter().map(ChunkId).filter(|chunk| chunks.contains(chunk)).collect()
        };
        Ok((of(answer.spare), of(answer.gone)))
    }

    /// Puts aside what this region alone has, and begins to clear once everything else is elsewhere.
    async fn look_through(&mut self, here: &Here, record: &LetGoRecord) -> Stepped {
        let (master, volume) = (self.master, self.volume);
        let view = self.confirmed(Some(record))?;
        let epoch =
            view.volumes.get(&volume).map(|known| known.epoch).ok_or("there is no such volume any more")?;
        let at_once = |stage: &str| Ok((stage.to_owned(), SOON));
        if here.logged.is_some() {
            // As a home that comes back does.
            stand::rejoin(master, volume, epoch).await.map_err(|e| e.message)?;
            return at_once("it was the volume's home, and looks what it alone has");
        }
        if here.replica.is_none() && here.volume.is_some() {
            return Err(
                "its records of the volume are of no home and no replica, so it isn't known what they are"
                    .to_owned(),
            );
        }
        if here.replica.as_ref().is_some_and(|replica| replica.undoing) {
            stand::end_undo(master, volume).await.map_err(|e| e.message)?;
            return at_once("it goes on with what it was undoing");
        }
        let expected = here.replica.as_ref().map(ReplicaRecord::position).unwrap_or_default();
        // What is being copied is nobody's own.
        let is_whole = here.replica.as_ref().is_some_and(|replica| replica.copied_before.is_none());
        let at = Some(expected).filter(|at| is_whole && *at > LogPosition::default());
        let mut had = at.unwrap_or_else(|| record.had());
        let answer = self.ask(record, (at, had), &[], self.stage.clone()).await?;
        if let Some(at) = at {
            let Some(common) = answer.common.as_ref().map(|at| position(Some(at))) else {
                return Err(match answer.trouble.is_empty() {
                    true => "the home doesn't say whether it has the same log".to_owned(),
                    false => answer.trouble,
                });
            };
            if common != at {
                let trimmed = position(answer.trimmed.as_ref());
                self.named = None;
                let told = stand::Differs { was_at: Some(at), common, trimmed, epoch };
                let went_back = stand::put_aside(master, volume, told).await;
                if went_back.map_err(|e| e.message)? {
                    return at_once("it has put aside what it alone had");
                }
                had = common.min(at);
            }
        }
        self.is_elsewhere(record, had).await?;
        self.confirmed(Some(record))?;
        let begun = transact(&master.store, |tx| async move {
            let begun = let_go::begin_clearing(&tx, volume, expected, had).await?;
            Ok((tx, begun))
        });
        if !begun.await.map_err(|e| record_failed(&e).message)? {
            return Err("what it has has changed meanwhile".to_owned());
        }
        // What is in memory of a replica is of before.
        master.geo.forget(volume);
        at_once("its records of the volume go")
    }

    /// Whether the home has enough copies of all chunks that are here.
    async fn is_elsewhere(&mut self, record: &LetGoRecord, had: LogPosition) -> Result<(), String> {
        let named = self.named().await?;
        // Also where there are no chunks.
        self.ask_spare(record, had, &[]).await?;
        let (mut after, mut lacking, mut first) = (None, 0_u64, None);
        loop {
            let page = self.chunks_here(after).await?;
            let Some(last) = page.last() else { break };
            after = Some(*last);
            let asked: Vec<ChunkId> = page.into_iter().filter(|chunk| !named.contains(chunk)).collect();
            let (spare, gone) = self.ask_spare(record, had, &asked).await?;
            let mut needed =
                asked.iter().filter(|chunk| !spare.contains(chunk) && !gone.contains(chunk)).peekable();
            first = first.or(needed.peek().copied().copied());
            lacking += needed.count() as u64;
        }
        match first {
            None => Ok(()),
            Some(first) => Err(format!(
                "the home doesn't have as many healthy copies as are asked for of {lacking} chunks that are here, {first} first of all"
            )),
        }
    }

    async fn clear(&self, record: &LetGoRecord) -> Stepped {
        let volume = self.volume;
        let mut progress = Progress::default();
        loop {
            self.confirmed(Some(record))?;
            let more = transact(&self.master.store, |tx| {
                let progress = progress.clone();
                async move {
                    let more = let_go::clear(&tx, volume, progress, PART).await?;
                    Ok((tx, more))
                }
            });
            match more.await.map_err(|e| record_failed(&e).message)? {
                Some(more) => progress = more,
                None => break,
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(("its records of the volume are gone, and copies of chunks go".to_owned(), SOON))
    }

    /// Has copies deleted that the home can spare: first it is on record no more where they lie.
    async fn delete_copies(&mut self, record: &LetGoRecord) -> Stepped {
        let (master, volume) = (self.master, self.volume);
        let named = self.named().await?;
        let keeps_gone = master.geo.has_salvage(volume);
        let (mut after, mut going, mut kept, mut needed) = (None, 0_u64, 0_u64, 0_u64);
        loop {
            let page = self.chunks_here(after).await?;
            let Some(last) = page.last() else { break };
            after = Some(*last);
            let is_going = master.desk(|desk| {
                desk.drop_gone(|of| of == volume);
                page.iter().map(|chunk| desk.is_going(*chunk)).collect::<Vec<bool>>()
            });
            let mut asked = Vec::new();
            for (chunk, is_going) in page.into_iter().zip(is_going) {
                match (named.contains(&chunk), is_going) {
                    (true, _) => kept += 1,
                    (false, true) => going += 1,
                    (false, false) => asked.push(chunk),
                }
            }
            let (spare, gone) = self.ask_spare(record, record.had(), &asked).await?;
            let (go, stay): (Vec<ChunkId>, Vec<ChunkId>) = asked
                .into_iter()
                .partition(|chunk| spare.contains(chunk) || (gone.contains(chunk) && !keeps_gone));
            let of_salvage = stay.iter().filter(|chunk| gone.contains(chunk)).count() as u64;
            kept += of_salvage;
            needed += stay.len() as u64 - of_salvage;
            going += go.len() as u64;
            self.drop_chunks(record, &go).await?;
            tokio::time::sleep(PAUSE).await;
        }
        let stage = match (going, needed, kept) {
            (0, 0, kept) => {
                return Ok((
                    format!(
                        "it keeps {kept} chunks that are of what was put aside there (`mooseng salvage`)"
                    ),
                    REST,
                ));
            }
            (going, 0, _) => format!("copies of {going} chunks go"),
            (going, needed, _) => format!(
                "copies of {going} chunks go; it keeps {needed} chunks of which the home doesn't have as many healthy copies as are asked for"
            ),
        };
        Ok((stage, EVERY))
    }

    async fn drop_chunks(&self, record: &LetGoRecord, chunks: &[ChunkId]) -> Result<(), String> {
        let volume = self.volume;
        let view = self.confirmed(Some(record))?;
        let epoch = view.volumes.get(&volume).map_or(Epoch::default(), |known| known.epoch);
        if chunks.is_empty() {
            self.master.desk(|desk| desk.raise_deletions(volume, epoch.0));
            return Ok(());
        }
        let dropped = transact(&self.master.store, |tx| async move {
            let dropped = let_go::drop_places(&tx, volume, chunks).await?;
            Ok((tx, dropped))
        });
        let dropped = dropped.await.map_err(|e| record_failed(&e).message)?;
        // The volume's own epoch, not one behind all: the region may be to have chunks of it again.
        self.master.desk(|desk| {
            desk.raise_deletions(volume, epoch.0);
            for (chunk, named) in dropped {
                let reported = desk.registry.iter().filter(|server| server.copy(chunk).is_some());
                let mut servers: BTreeSet<String> = reported.map(|server| server.beat.name.clone()).collect();
                servers.extend(named.into_iter().filter(|name| desk.registry.get(name).is_some()));
                servers.iter().for_each(|server| desk.want_deletion(server, chunk, epoch.0));
            }
        });
        Ok(())
    }

    /// Some chunks with ids above `after` of which something is here, in their order: by record, and by what chunkservers report.
    async fn chunks_here(&self, after: Option<ChunkId>) -> Result<Vec<ChunkId>, String> {
        let volume = self.volume;
        let places = transact(&self.master.store, |tx| async move {
            let places = let_go::places(&tx, volume, after, CHUNKS_MAX).await?;
            Ok((tx, places))
        });
        let mut all = self.reported(after);
        all.extend(places.await.map_err(|e| record_failed(&e).message)?);
        Ok(all.into_iter().take(CHUNKS_MAX).collect())
    }

    fn reported(&self, after: Option<ChunkId>) -> BTreeSet<ChunkId> {
        let now = self.master.clock.boot();
        self.master.desk(|desk| {
            let limits = desk.registry.limits();
            let here = desk.registry.iter().filter(|server| server.liveness(now, limits) == Liveness::Alive);
            let of = here.flat_map(|server| server.copies_of(self.volume, after).take(CHUNKS_MAX));
            of.map(|(chunk, _)| chunk).collect()
        })
    }

    /// The chunks that what was put aside names: they stay, whoever else has them now.
    async fn named(&mut self) -> Result<Arc<BTreeSet<ChunkId>>, String> {
        if let Some(named) = &self.named {
            return Ok(named.clone());
        }
        let last = LogPosition::new(Epoch(u64::MAX), u64::MAX);
        let (mut named, mut at) = (BTreeSet::new(), LogPosition::default());
        loop {
            let tx = self.master.store.begin();
            let entries =
                read::put_aside(&tx, self.volume, at, last, PAGE_BYTES).await.map_err(|e| e.to_string())?;
            let Some(end) = entries.last() else { break };
            at = end.at;
            for entry in &entries {
                let changes = entry.changes().map_err(|e| e.to_string())?;
                named.extend(Named::by(self.volume, &changes).upto.into_keys());
            }
            if named.len() > NAMED_MAX {
                return Err("what was put aside names too many chunks to tell them from others".to_owned());
            }
        }
        let named = Arc::new(named);
        self.named = Some(named.clone());
        Ok(named)
    }
}
