//! `mooseng fsck`: the check of [`mooseng_namespace::fsck`] over a consistent view of this master's store, the copies against what chunkservers
//! report, and joins against what the regions agreed on. It runs on a follower as well as on a leader, which repairs. It is about the volumes that are at
//! home in this region: a replica lacks what is still to come.
//!
//! ```text
//!   view of one version --pages--> Check, a part of the ids in each pass --> findings --> paths --> the caller
//!                                     \--> chunks and locations --> registry --> doubts, looked at again --/
//! ```
//! What contradicts itself within one version is wrong whatever happens meanwhile. Copies aren't part of that version: a doubt about one is told
//! only if it stands after several looks at the newest records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mooseng_embedded::View;
use mooseng_namespace::fsck::{Check, Checked, Finding, Kind, Outcome, Part, compare_totals};
use mooseng_namespace::upkeep;
use mooseng_transport::call_error;
use mooseng_wire::VolumeId;
use mooseng_wire::admin::fsck_news::News;
use mooseng_wire::admin::{FsckDone, FsckFinding, FsckNews, FsckProgress, FsckVolume};
use mooseng_wire::call::{CallError, ErrorCode};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::geo::{self, ROOT_VOLUME, Whereabouts};
use crate::master::Master;
use crate::{classes, tree};

mod copies;
mod joins;
mod mend;
pub(crate) mod paths;

/// Bytes of one page.
const PAGE_BYTES: usize = 256 << 10;
/// How long a page, or a look at one finding, may take.
const STEP_WITHIN: Duration = Duration::from_secs(10);
/// Inodes of one pass: some hundred bytes of memory each, chunks besides.
const INODES_PER_PASS: u64 = 500_000;
const PASSES_MAX: u64 = 256;
/// Findings that are told one by one.
const TOLD_MAX: usize = 1_000;
/// News that wait for the caller; the check waits then.
const NEWS_WAITING_MAX: usize = 64;
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Where news go. A caller that has gone ends the check.
pub struct Teller(Option<mpsc::Sender<Result<FsckNews, Status>>>);

impl Teller {
    /// Tells nobody.
    pub fn silent() -> Self {
        Self(None)
    }

    async fn tell(&self, news: News) -> Result<(), CallError> {
        let Some(to) = &self.0 else { return Ok(()) };
        let gone = |_| call_error(ErrorCode::Unavailable, "nobody listens to the check any more");
        to.send(Ok(FsckNews { news: Some(news) })).await.map_err(gone)
    }
}

fn failed(what: impl std::fmt::Display) -> CallError {
    call_error(ErrorCode::Unavailable, format!("the check can't go on: {what}"))
}

/// Checks in the background, and streams the news. Nobody reading ends it.
pub fn stream(master: Arc<Master>, repair: bool) -> ReceiverStream<Result<FsckNews, Status>> {
    let (to, news) = mpsc::channel(NEWS_WAITING_MAX);
    tokio::spawn(async move {
        let teller = Teller(Some(to.clone()));
        let outcome = tokio::select! {
            () = master.shutdown.cancelled() => Err(failed("this master stops")),
            outcome = run(&master, repair, &teller) => outcome,
        };
        if let Err(error) = outcome {
            let status = match error.code() {
                ErrorCode::DeadlineExceeded => Status::deadline_exceeded(error.message),
                ErrorCode::Busy | ErrorCode::NotHome => Status::failed_precondition(error.message),
                _ => Status::unavailable(error.message),
            };
            let _ = to.send(Err(status)).await;
        }
    });
    ReceiverStream::new(news)
}

/// Checks everything, tells what is found, and repairs if asked to.
pub async fn run(master: &Arc<Master>, repair: bool, teller: &Teller) -> Result<(), CallError> {
    let Ok(_one_at_a_time) = master.checking.try_acquire() else {
        return Err(call_error(ErrorCode::Busy, "a check runs on this master already; wait for its end"));
    };
    // One that is cut off would tell of a state that is long gone.
    crate::status::ready(master).map_err(|why| call_error(ErrorCode::Unavailable, why))?;
    let volumes = Volumes::of(master).await?;
    let custody = |volume: &VolumeId| Ok::<_, CallError>((*volume, master.serving_of(*volume)?));
    let custody = match repair {
        true => Some(volumes.here.keys().map(custody).collect::<Result<BTreeMap<_, _>, _>>()?),
        false => None,
    };
    let begun = Instant::now();
    let found = look(master, &volumes.here.keys().copied().collect(), teller).await?;
    let mut repaired = 0;
    for finding in found.findings.iter().take(TOLD_MAX) {
        let mut told = told(master, finding).await;
        if let Some(custody) = &custody {
            told.repaired = mend::repair(master, custody, finding).await?;
            repaired += u64::from(told.repaired == mend::REPAIRED);
        }
        teller.tell(News::Finding(told)).await?;
    }
    let Checked { inodes, entries, extents, bytes, chunks, uses, trash_files, trash_bytes } = found.checked;
    let done = FsckDone {
        inodes,
        entries,
        extents,
        bytes,
        chunks,
        uses,
        copies: found.copies,
        copies_unknown: found.copies_unknown,
        found: found.found,
        repaired,
        version: found.version,
        master: master.config.name.clone(),
        trash_files,
        trash_bytes,
        chunks_misplaced: found.chunks_misplaced,
        volumes: volumes.here.into_values().collect(),
        elsewhere: volumes.elsewhere,
        took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    tracing::info!(
        found = done.found,
        inodes,
        chunks,
        repaired,
        took_ms = done.took_ms,
        "checked the whole store"
    );
    teller.tell(News::Done(done)).await
}

/// The volumes that there are.
struct Volumes {
    /// At home here: these are looked at.
    here: BTreeMap<VolumeId, FsckVolume>,
    /// Those that aren't.
    elsewhere: Vec<FsckVolume>,
}

impl Volumes {
    /// As this master knows them. An error where none is at home here.
    async fn of(master: &Master) -> Result<Self, CallError> {
        let Some(view) = master.geo.view() else {
            let root = FsckVolume { volume: 0, path: "/".into(), home: String::new() };
            return Ok(Self { here: [(ROOT_VOLUME, root)].into(), elsewhere: Vec::new() });
        };
        if view.volumes.is_empty() {
            let message = "this master doesn't know yet which volumes there are; try again";
            return Err(call_error(ErrorCode::Unavailable, message));
        }
        let mut volumes = Self { here: BTreeMap::new(), elsewhere: Vec::new() };
        for (&volume, known) in &view.volumes {
            let at = tree::at(master, volume).await;
            let path = String::from_utf8_lossy(if at.is_empty() { b"/" } else { &at }).into_owned();
            let told = |home: String| FsckVolume { volume: volume.0.into(), path: path.clone(), home };
            match geo::place_of(master, volume) {
                Whereabouts::Here(_) => drop(volumes.here.insert(volume, told(known.home.clone()))),
                // Its next home is being found.
                Whereabouts::Closed(_) => volumes.elsewhere.push(told(String::new())),
                Whereabouts::Elsewhere | Whereabouts::Nowhere => {
                    volumes.elsewhere.push(told(known.home.clone()));
                }
            }
        }
        if volumes.here.is_empty() {
            let homes: BTreeSet<&str> = view.volumes.values().map(|known| known.home.as_str()).collect();
            let message = format!(
                "no volume is at home in the region {}, and only its home is checked: ask with a configuration of {}",
                master.config.region,
                homes.into_iter().collect::<Vec<_>>().join(" or ")
            );
            return Err(call_error(ErrorCode::NotHome, message));
        }
        Ok(volumes)
    }
}

/// What a check came to.
#[derive(Debug, Default)]
pub struct Found {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// How many findings there were.
    pub found: u64,
    /// What was looked at.
    pub checked: Checked,
    /// Copies that were compared with what their chunkservers report.
    pub copies: u64,
    /// Copies of which nobody could say anything.
    pub copies_unknown: u64,
    /// Chunks with a copy on a chunkserver without the labels of their storage class.
    pub chunks_misplaced: u64,
    /// The version that was looked at.
    pub version: u64,
}

impl Found {
    fn add(&mut self, outcome: &mut Outcome) {
        self.findings.append(&mut outcome.findings);
        self.findings.truncate(TOLD_MAX);
        self.found += outcome.found;
    }

    fn more(&mut self, findings: Vec<Finding>) {
        self.found += findings.len() as u64;
        self.findings.extend(findings);
        self.findings.truncate(TOLD_MAX);
    }
}

/// Ids of a volume that several regions have are given by the global group, in ranges; the counter of this region's store counts for nothing then.
fn ids_are_the_regions(outcome: &mut Outcome) {
    let before = outcome.findings.len();
    outcome.findings.retain(|finding| finding.kind != Kind::IdUngiven);
    outcome.found = outcome.found.saturating_sub((before - outcome.findings.len()) as u64);
}

/// Looks at everything of these volumes, without telling findings yet.
pub async fn look(
    master: &Master,
    volumes: &BTreeSet<VolumeId>,
    teller: &Teller,
) -> Result<Found, CallError> {
    let mut view = timeout(STEP_WITHIN, master.store.view()).await.map_err(failed)?.map_err(failed)?;
    let mut found = Found { version: view.version().0, ..Found::default() };
    let parts = passes(master, volumes).await?;
    let mut classes = copies::ByVolume::new();
    for volume in volumes {
        let of = classes::read(master, *volume, &paths::reading(master)).await.map_err(failed)?;
        classes.insert(*volume, of);
    }
    let mut joined = BTreeMap::new();
    let mut totals = Vec::new();
    let mut suspects = BTreeSet::new();
    for part in 0..parts {
        let at = (part + 1, parts);
        let mut outcome = pass(&mut view, (Part::Of { part, parts }, volumes), at, teller).await?;
        if master.global.is_some() {
            ids_are_the_regions(&mut outcome);
        }
        found.checked.add(&outcome.checked);
        found.add(&mut outcome);
        totals.push(outcome.totals);
        joined.extend(outcome.joined);
        suspects.extend(outcome.suspects);
        let compared = copies::compare(master, &classes, outcome.placed).await?;
        found.copies += compared.copies;
        found.copies_unknown += compared.unknown;
        found.chunks_misplaced += compared.misplaced;
        found.more(compared.findings);
        view.rewind();
    }
    found.more(compare_totals(&totals));
    if !suspects.is_empty() {
        let suspects: BTreeSet<_> = suspects.into_iter().take(TOLD_MAX).collect();
        let outcome = pass(&mut view, (Part::Only(suspects), volumes), (parts, parts), teller).await?;
        found.more(outcome.findings.into_iter().filter(|f| f.kind == Kind::Names).collect());
    }
    found.more(joins::compare(master, &joined, volumes).await?);
    Ok(found)
}

async fn passes(master: &Master, volumes: &BTreeSet<VolumeId>) -> Result<u64, CallError> {
    let tx = paths::reading(master);
    let mut inodes = 0_u64;
    for volume in volumes {
        let held = upkeep::statistics(&tx, *volume).await.map_err(failed)?;
        inodes = inodes.saturating_add(held.inodes);
    }
    Ok(inodes.div_ceil(INODES_PER_PASS).clamp(1, PASSES_MAX))
}

async fn pass(
    view: &mut View,
    (part, volumes): (Part, &BTreeSet<VolumeId>),
    (at, passes): (u64, u64),
    teller: &Teller,
) -> Result<Outcome, CallError> {
    let mut check = Check::new(part).of(volumes.clone());
    let mut records = 0;
    let mut told = Instant::now();
    loop {
        let page = timeout(STEP_WITHIN, view.page(PAGE_BYTES)).await.map_err(failed)?.map_err(failed)?;
        if page.is_empty() {
            return Ok(check.finish());
        }
        page.iter().for_each(|(key, value)| check.take(key, value));
        records += page.len() as u64;
        if told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            let count = |n| u32::try_from(n).unwrap_or(u32::MAX);
            let progress = FsckProgress { pass: count(at), passes: count(passes), records };
            teller.tell(News::Progress(progress)).await?;
        }
        // Others' requests come first.
        tokio::task::yield_now().await;
    }
}

/// A finding as the caller gets it: with paths. Without them where they can't be found out.
async fn told(master: &Master, finding: &Finding) -> FsckFinding {
    let paths = timeout(STEP_WITHIN, paths::of(master, &finding.subject)).await;
    FsckFinding {
        kind: finding.kind.as_str().to_owned(),
        subject: paths::shown(&finding.subject),
        paths: paths.ok().and_then(Result::ok).unwrap_or_default(),
        detail: finding.detail.clone(),
        advice: finding.kind.advice().to_owned(),
        repaired: String::new(),
    }
}
