//! What happened, in a journal of each master's own: what leaders tell (docs/events.md, docs/decisions/0028-events.md).
//!
//! ```text
//!  Master, Global --every half second--> Seen --watch--> Told --journal--> state_dir/events
//!  mooseng events --ListEvents, a cursor--> page
//! ```
//! - [`watch`]: what has happened, by what is seen now and was before. Pure.
//! - [`journal`]: two files that rotate.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mooseng_global::Volume;
use mooseng_ports::disk::Disk;
use mooseng_region::{Liveness, findings};
use mooseng_transport::Blocking;
use mooseng_wire::VolumeId;
use mooseng_wire::admin::{Event, ListEventsReply, ListEventsRequest};

use crate::geo::{self, Whereabouts};
use crate::master::Master;
use crate::status;

pub mod journal;
pub mod watch;

use journal::{Entry, Journal};
use watch::{Seen, Told, Watch};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks between two at findings, which take a walk through all that there is.
const FINDINGS_EVERY: u32 = 2;
/// Events in one answer.
const PAGE_MAX: usize = 500;

/// A master's events.
#[derive(Default)]
pub struct Events {
    journal: Mutex<Option<Journal>>,
}

/// Where the journal lies.
pub struct Place {
    /// Its disk.
    pub disk: Arc<dyn Disk>,
    /// Where its calls run.
    pub blocking: Blocking,
    /// The master's state directory.
    pub state_dir: PathBuf,
}

impl Events {
    fn journal<T>(&self, section: impl FnOnce(&mut Option<Journal>) -> T) -> T {
        section(&mut self.journal.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A page of what is kept here.
    pub fn page(&self, master: &Master, asked: &ListEventsRequest) -> ListEventsReply {
        let (region, name) = (master.config.region.clone(), master.config.name.clone());
        let limit = usize::try_from(asked.limit).unwrap_or(PAGE_MAX);
        let limit = if limit == 0 { PAGE_MAX } else { limit.min(PAGE_MAX) };
        self.journal(|journal| {
            let nothing =
                ListEventsReply { region: region.clone(), master: name.clone(), ..Default::default() };
            let Some(journal) = journal else { return nothing };
            let after = if asked.journal == journal.id { asked.after } else { 0 };
            let (entries, more) = journal.page(after, asked.since_ms, limit);
            let next = entries.last().map_or(after, |entry| entry.sequence);
            let events = entries.into_iter().map(event).collect();
            ListEventsReply { journal: journal.id, next, more, events, ..nothing }
        })
    }
}

fn event(entry: Entry) -> Event {
    Event {
        sequence: entry.sequence,
        unix_ms: entry.unix_ms,
        event: entry.event,
        subject: entry.subject,
        detail: entry.detail,
        key: entry.key,
    }
}

/// Looks and writes down, until shutdown.
pub async fn keep(master: Arc<Master>, place: Place) {
    let directory = place.state_dir.join("events");
    let (disk, fresh) = (place.disk.clone(), rand::random::<u64>().max(1));
    match place.blocking.run(move || Journal::open(disk, &directory, fresh)).await {
        Ok(journal) => master.events.journal(|kept| *kept = Some(journal)),
        Err(error) => {
            // What this master tells is missing from `mooseng events`; nothing else goes by it.
            return tracing::warn!(%error, "the journal of events below `state_dir` can't be read: no events are kept");
        }
    }
    let mut watch = Watch::new(&master.config.region, &master.config.name);
    let mut view = master.geo.cluster.clone();
    let (mut looks, mut findings, mut failed) = (0_u32, BTreeMap::new(), false);
    loop {
        if looks.is_multiple_of(FINDINGS_EVERY) {
            findings = found(&master);
        }
        looks = looks.wrapping_add(1);
        let told = watch.look(seen(&master, findings.clone()));
        if !told.is_empty() {
            write(&master, place.blocking, told, &mut failed).await;
        }
        let agreed = async {
            match &mut view {
                Some(view) => view.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = master.shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
            // Each step is to be seen, not only where it led.
            true = agreed => {}
        }
    }
}

async fn write(master: &Arc<Master>, blocking: Blocking, told: Vec<Told>, failed: &mut bool) {
    let unix_ms = master.clock.unix_ns() / 1_000_000;
    for told in &told {
        tracing::info!(event = told.word.word, subject = told.subject, detail = told.detail, "an event");
    }
    let of = master.clone();
    let outcome = blocking.run(move || {
        of.events.journal(|journal| {
            let Some(journal) = journal else { return Ok(()) };
            let (id, first) = (journal.id, journal.next());
            let entry = |(told, sequence): (Told, u64)| Entry {
                journal: id,
                sequence,
                unix_ms,
                event: told.word.word.to_owned(),
                subject: told.subject,
                detail: told.detail,
                key: told.key,
            };
            journal.append(told.into_iter().zip(first..).map(entry).collect())
        })
    });
    let outcome = outcome.await;
    if let Err(error) = &outcome
        && !*failed
    {
        tracing::warn!(%error, "events can't be written down: they are kept in memory only");
    }
    *failed = outcome.is_err();
}

fn found(master: &Master) -> BTreeMap<(String, String), String> {
    if !master.raft.is_leading() {
        return BTreeMap::new();
    }
    let found = findings::findings(&status::facts_of(master)).into_iter();
    found.map(|finding| ((finding.code.code.to_owned(), finding.subject), finding.detail)).collect()
}

/// One whose group isn't made yet, or that hasn't been taken in, waits for no leader that was lost.
fn silence(master: &Master) -> Duration {
    let knows_its_group = !master.raft.status().members.is_empty();
    if knows_its_group { master.raft.silence() } else { Duration::ZERO }
}

fn seen(master: &Master, findings: BTreeMap<(String, String), String>) -> Seen {
    let global = master.global.as_deref();
    let view = master.geo.view();
    let volumes = || view.iter().flat_map(|view| view.volumes.iter());
    let elsewhere =
        volumes().map(|(id, _)| *id).filter(|id| geo::place_of(master, *id) == Whereabouts::Elsewhere);
    let copying = elsewhere.filter_map(|id| {
        let replica = master.geo.replica(id).record?;
        Some((id, replica.copied_before.is_some()))
    });
    let region = &master.config.region;
    let has_it = |(_, known): &(&VolumeId, &Volume)| known.home == *region || known.regions.contains(region);
    let kept = volumes().filter(has_it).map(|(id, _)| *id).filter(|id| master.geo.has_salvage(*id));
    let isnt_to_have = volumes().filter(|(_, known)| !known.regions.contains(region)).map(|(id, _)| *id);
    let letting_go = isnt_to_have.filter(|id| geo::let_go::has_something(master, *id));
    let now = master.clock.boot();
    Seen {
        // A witness leads its region, too, and serves nobody.
        leads: master.raft.is_leading().then(|| master.raft.term()),
        silence: silence(master),
        leads_global: global
            .and_then(|global| global.raft())
            .filter(|raft| raft.is_leading())
            .map(|raft| raft.term()),
        copying: copying.collect(),
        salvage: kept.collect(),
        letting_go: letting_go.collect(),
        view: view.clone(),
        ran_out: global.map(|global| global.ran_out()).unwrap_or_default(),
        reached: global.map(|global| global.reached()).unwrap_or_default(),
        chunkservers: master.desk(|desk| {
            let alive = |server: &mooseng_region::registry::Chunkserver| {
                server.liveness(now, desk.registry.limits()) == Liveness::Alive
            };
            desk.registry.iter().map(|server| (server.beat.name.clone(), alive(server))).collect()
        }),
        findings,
    }
}
