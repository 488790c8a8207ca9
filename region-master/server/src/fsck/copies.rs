//! Locations against the copies that chunkservers report to this master.

use std::collections::BTreeMap;
use std::time::Duration;

use mooseng_namespace::fsck::{Finding, Kind, Placed, Subject};
use mooseng_namespace::upkeep;
use mooseng_region::Liveness;
use mooseng_region::class::{self, Class, Classes};
use mooseng_region::repair::{self, Condition, CopyState};
use mooseng_wire::call::CallError;
use mooseng_wire::{ChunkId, InodeId, VolumeId};

use super::{failed, paths};
use crate::desk::Desk;
use crate::master::Master;

/// Chunks compared at a time: the desk is everybody's.
const AT_A_TIME: usize = 128;
/// Doubts that are looked at again at most.
const DOUBTS_MAX: usize = 10_000;
/// A doubt must stand so often, with so much time between: reports and records of one change come at different times.
pub(super) const LOOKS: usize = 4;
pub(super) const BETWEEN: Duration = Duration::from_millis(750);

/// What a comparison came to.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) findings: Vec<Finding>,
    pub(super) copies: u64,
    pub(super) unknown: u64,
    /// Chunks with a copy on a chunkserver without the labels of their storage class.
    pub(super) misplaced: u64,
}

/// The storage classes of the volumes that are looked at.
pub(super) type ByVolume = BTreeMap<VolumeId, Classes>;

pub(super) async fn compare(
    master: &Master,
    classes: &ByVolume,
    placed: Vec<Placed>,
) -> Result<Compared, CallError> {
    let mut compared = Compared::default();
    let mut doubts: Vec<(ChunkId, InodeId)> = Vec::new();
    for page in placed.chunks(AT_A_TIME) {
        master.desk(|desk| {
            for placed in page {
                let states = states(master, desk, placed);
                compared.misplaced += u64::from(is_misplaced(desk, classes, placed));
                compared.copies += states.len() as u64;
                let unknown =
                    |s: &&(String, CopyState)| matches!(s.1, CopyState::Unknown | CopyState::Silent);
                compared.unknown += states.iter().filter(unknown).count() as u64;
                if let Some(file) = placed.file
                    && !judge(classes, placed, &states).is_empty()
                    && doubts.len() < DOUBTS_MAX
                {
                    doubts.push((placed.chunk, file));
                }
            }
        });
        tokio::task::yield_now().await;
    }
    for look in 0..LOOKS {
        if doubts.is_empty() {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
        let last = look + 1 == LOOKS;
        let mut left = Vec::new();
        for (chunk, file) in std::mem::take(&mut doubts) {
            let findings = again(master, classes, chunk, file).await?;
            if findings.is_empty() {
                continue;
            }
            left.push((chunk, file));
            if last {
                compared.findings.extend(findings);
            }
        }
        doubts = left;
    }
    Ok(compared)
}

/// A second look, at the newest records.
async fn again(
    master: &Master,
    classes: &ByVolume,
    chunk: ChunkId,
    file: InodeId,
) -> Result<Vec<Finding>, CallError> {
    let tx = paths::reading(master);
    let listing = upkeep::load_chunk(&tx, chunk).await.map_err(failed)?;
    let Some(listing) = listing.filter(|listing| listing.used.extents > 0) else { return Ok(Vec::new()) };
    let Some(location) = listing.location else { return Ok(Vec::new()) };
    let placed = Placed { chunk, record: listing.record, location, file: Some(file) };
    Ok(master.desk(|desk| judge(classes, &placed, &states(master, desk, &placed))))
}

/// Of a sealed chunk; while one is appended to its copies differ.
fn states(master: &Master, desk: &Desk, placed: &Placed) -> Vec<(String, CopyState)> {
    let record = &placed.record;
    if !record.sealed || record.length == 0 {
        return Vec::new();
    }
    let settle_ns =
        i64::try_from(master.config.house.settle_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let settled = record.sealed_ns.saturating_add(settle_ns) < master.clock.unix_ns();
    let now = master.clock.boot();
    let state = |name: &String| {
        let condition = match desk.registry.liveness(name, now) {
            Liveness::Alive => Condition::Here,
            _ => Condition::Silent,
        };
        (
            name.clone(),
            repair::copy_state(&desk.registry, name, condition, placed.chunk, record.length, settled),
        )
    };
    placed.location.copies.iter().map(state).collect()
}

/// The class of a chunk; none of a volume that isn't looked at.
fn class_of<'a>(classes: &'a ByVolume, placed: &Placed) -> Option<&'a Class> {
    Some(classes.get(&placed.chunk.volume())?.get(placed.record.storage_class))
}

fn is_misplaced(desk: &Desk, classes: &ByVolume, placed: &Placed) -> bool {
    let Some(Class { labels, .. }) = class_of(classes, placed) else { return false };
    let lacks = |name: &String| desk.registry.get(name).is_some_and(|s| !class::has(&s.labels(), labels));
    !labels.is_empty() && placed.location.copies.iter().any(lacks)
}

fn judge(classes: &ByVolume, placed: &Placed, states: &[(String, CopyState)]) -> Vec<Finding> {
    let Some(&Class { copies: wanted, .. }) = class_of(classes, placed).filter(|_| !states.is_empty()) else {
        return Vec::new();
    };
    let subject = Subject::Chunk(placed.chunk, placed.file);
    let finding = |kind, detail: String| Finding { kind, subject: subject.clone(), detail, fix: None };
    let is = |wanted: &[CopyState]| states.iter().filter(|(_, s)| wanted.contains(s)).count();
    let mut findings: Vec<Finding> = states
        .iter()
        .filter(|(_, state)| *state == CopyState::Bad)
        .map(|(name, _)| {
            finding(Kind::CopyBad, format!("its copy on {name} is missing, damaged or too short"))
        })
        .collect();
    let there = is(&[CopyState::Good, CopyState::Unknown]);
    let hoped = is(&[CopyState::Silent]);
    if there == 0 {
        let detail = format!("no copy is left on a chunkserver that is here; {hoped} are on silent ones");
        findings.push(finding(Kind::CopiesNone, detail));
    } else if there + hoped < wanted {
        let detail =
            format!("it has {there} copies, and {hoped} on silent chunkservers, instead of {wanted}");
        findings.push(finding(Kind::CopiesFew, detail));
    }
    findings
}
