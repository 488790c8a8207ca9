//! Account of what was lost: the ledger of failovers, which is the volume's own, and archives of what this region put aside.
//!
//! ```text
//!  here, before entries are undone or put aside:  archive -> ArchiveRecord, the paths that they concern
//!  new home:  undo -> take_over, with a LossRecord (what was undone, whose it was)
//!  old home comes back:  archive, salvage -> Pushed.put_aside -> new home: named
//! ```

use std::collections::BTreeMap;

use mooseng_embedded::EmbeddedTransaction;
use mooseng_namespace::OpError;
use mooseng_replica::{Content, ReplicaError, about, apply, read};
use mooseng_schema::Record;
use mooseng_schema::inode::{self, InodeRecord};
use mooseng_schema::location::{self, LocationRecord};
use mooseng_schema::log::{self, LogPosition};
use mooseng_schema::loss::{self, ArchiveRecord, LossRecord, LossSession, NamedLoss, SalvagedPath};
use mooseng_schema::volume::{self, VolumeRecord};
use mooseng_store::{RangeLimit, Read, Store, StoreError, Transaction};
use mooseng_wire::admin;
use mooseng_wire::geo::PutAside;
use mooseng_wire::{Epoch, InodeId, VolumeId};

use tonic::Status;

use super::{place, position};
use crate::errors::record_failed;
use crate::fsck;
use crate::master::Master;
use crate::records::{RecordFailure, transact};
use crate::steady;

/// Paths that are named of an archive at most.
pub const PATHS_MAX: usize = 1_000;
/// Sessions that are named of a loss at most.
const SESSIONS_MAX: usize = 64;
/// Paths that are written in one transaction.
const PATHS_AT_ONCE: usize = 100;
/// Bytes of a path that are kept.
const PATH_BYTES_MAX: usize = 4_000;
/// Bytes of entries that are looked at in one transaction.
const PAGE_BYTES: usize = 1 << 20;
/// Entries that are looked at for the time of a place of the log: what the master does by itself gives files none.
const TIMES_LOOKED_AT: usize = 32;
/// Archives that a home is told of: the newest ones.
pub(super) const TOLD_MAX: usize = 4;

/// Before the entries of the log here behind `cut` are undone or put aside: takes down how many they are, and which paths they concern, as those are
/// called now; and up to where they are gone already, should the log have been trimmed beyond `cut`. Doing it again changes nothing.
pub(super) async fn archive(
    master: &Master,
    volume: VolumeId,
    cut: LogPosition,
    was_home: bool,
) -> Result<(), ReplicaError> {
    let tx = master.store.begin();
    let record = apply::state(&tx, volume, Read::Snapshot).await?.ok_or(ReplicaError::NotLogged)?;
    let known = load_archive(&tx, volume, cut).await?;
    let done_upto = known.as_ref().map_or(cut, ArchiveRecord::upto);
    let mut archive = known.unwrap_or_default();
    let mut first: BTreeMap<InodeId, LogPosition> = BTreeMap::new();
    let mut at = done_upto.max(record.log_behind());
    let begun = at;
    // The log was trimmed for another region's sake, or for want of room, before the cut was known.
    let is_short = begun > done_upto && record.copied_before.is_none();
    if is_short {
        (archive.gone_epoch, archive.gone_version) = (begun.epoch.0, begun.version);
        tracing::warn!(%cut, upto = %begun, "the log here doesn't go back to the cut: what lies between can't be put aside");
    }
    loop {
        let entries = read::kept(&master.store.begin(), volume, at, PAGE_BYTES).await?;
        let Some(last) = entries.last() else { break };
        at = last.at;
        for entry in &entries {
            archive.entries += 1;
            archive.bytes += entry.bytes.len() as u64;
            for inode in about(volume, &entry.changes()?).inodes {
                match first.len() < PATHS_MAX || first.contains_key(&inode) {
                    true => drop(first.entry(inode).or_insert(entry.at)),
                    false => archive.more_paths = true,
                }
            }
        }
    }
    if at == begun && !is_short {
        return Ok(());
    }
    archive.paths += first.len() as u64;
    archive.at_ns = master.clock.unix_ns();
    archive.was_home |= was_home;
    (archive.upto_epoch, archive.upto_version) = (at.epoch.0, at.version);
    let first: Vec<(InodeId, LogPosition)> = first.into_iter().collect();
    for some in first.chunks(PATHS_AT_ONCE) {
        let named = transact(&master.store, |tx| async move {
            for (inode, at) in some {
                let path = path_now(&tx, *inode, *at).await?;
                tx.set(&loss::path_key(volume, cut, inode.0), &path.to_value());
            }
            Ok((tx, ()))
        });
        named.await.map_err(|e| untold(&e))?;
    }
    let archive = &archive;
    let kept = transact(&master.store, |tx| async move {
        tx.set(&loss::archive_key(volume, cut), &archive.to_value());
        Ok((tx, ()))
    });
    kept.await.map_err(|e| untold(&e))
}

fn untold(error: &RecordFailure) -> ReplicaError {
    let other = || StoreError::Failed(error.to_string());
    ReplicaError::Store(error.store().cloned().unwrap_or_else(other))
}

/// How an inode is called now, and what it is.
async fn path_now(
    tx: &EmbeddedTransaction,
    inode: InodeId,
    first: LogPosition,
) -> Result<SalvagedPath, OpError> {
    let (first_epoch, first_version) = (first.epoch.0, first.version);
    let named = SalvagedPath { first_epoch, first_version, ..SalvagedPath::default() };
    let Some(value) = tx.get(&inode::key(inode), Read::Snapshot).await? else {
        return Ok(SalvagedPath { gone: true, ..named });
    };
    let InodeRecord { size, mtime_ns, ctime_ns, .. } = InodeRecord::from_value(&value)?;
    let path = fsck::paths::path(tx, inode).await?.unwrap_or_default();
    let path = String::from_utf8_lossy(&path[..path.len().min(PATH_BYTES_MAX)]).into_owned();
    Ok(SalvagedPath { path, size, mtime_ns, ctime_ns, ..named })
}

pub(super) async fn load_archive(
    tx: &EmbeddedTransaction,
    volume: VolumeId,
    cut: LogPosition,
) -> Result<Option<ArchiveRecord>, ReplicaError> {
    let value = tx.get(&loss::archive_key(volume, cut), Read::Snapshot).await?;
    Ok(value.map(|value| ArchiveRecord::from_value(&value)).transpose()?)
}

/// The archives here, in the order of the places that their entries follow.
pub async fn archives(
    tx: &EmbeddedTransaction,
    volume: VolumeId,
) -> Result<Vec<(LogPosition, ArchiveRecord)>, ReplicaError> {
    let page = tx.get_range(loss::archive_range(volume), RangeLimit::default(), Read::Snapshot).await?;
    let read = |(key, value): &(bytes::Bytes, bytes::Bytes)| {
        Ok((loss::parse_archive_key(key)?, ArchiveRecord::from_value(value)?))
    };
    page.pairs.iter().map(read).collect()
}

/// What the home is told of them: of what this region had as a home, the newest ones.
pub(super) fn told(archives: &[(LogPosition, ArchiveRecord)], max: usize) -> Vec<PutAside> {
    let of_homes = archives.iter().rev().filter(|(_, archive)| archive.was_home).take(max);
    let tell = |(cut, archive): &(LogPosition, ArchiveRecord)| PutAside {
        cut: place(*cut),
        entries: archive.entries,
        paths: archive.paths,
        more_paths: archive.more_paths,
        gone_upto: place(archive.gone_upto()).filter(|_| archive.gone_upto() > LogPosition::default()),
    };
    of_homes.map(tell).collect()
}

/// What is known of the loss by a failover whose new home this region is: once what it had beyond the cut is undone.
pub(super) async fn of_failover(
    master: &Master,
    volume: VolumeId,
    epoch: Epoch,
    cut: LogPosition,
    old_home: String,
) -> Result<LossRecord, ReplicaError> {
    let archive = load_archive(&master.store.begin(), volume, cut).await?.unwrap_or_default();
    let mut sessions: BTreeMap<u64, u64> = BTreeMap::new();
    let mut more_sessions = false;
    let mut times: Option<(i64, i64)> = None;
    let mut at = cut;
    loop {
        let entries = read::put_aside(&master.store.begin(), volume, at, archive.upto(), PAGE_BYTES).await?;
        let Some(last) = entries.last() else { break };
        at = last.at;
        for entry in &entries {
            let about = about(volume, &entry.changes()?);
            if let Some(ns) = about.time_ns {
                times = Some(times.map_or((ns, ns), |(from, upto)| (from.min(ns), upto.max(ns))));
            }
            let Some(session) = about.session else { continue };
            match sessions.len() < SESSIONS_MAX || sessions.contains_key(&session.0) {
                true => *sessions.entry(session.0).or_default() += 1,
                false => more_sessions = true,
            }
        }
    }
    let heard = *super::lock(&master.geo.seat(volume).heard_before);
    let known = heard.newest.max(archive.upto()).max(cut);
    let (at_ns, now) = steady::read(&*master.clock);
    // What the home had then is here; it can't have written anything before of what is lost.
    let since = heard.complete.filter(|(complete, _)| *complete <= cut).map(|(_, as_of)| now.since(as_of));
    let since_ns =
        since.map(|since| at_ns.saturating_sub(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)));
    Ok(LossRecord {
        opened: epoch.0,
        old_home,
        new_home: master.config.region.clone(),
        cut_epoch: cut.epoch.0,
        cut_version: cut.version,
        known_epoch: known.epoch.0,
        known_version: known.version,
        at_ns,
        undone: archive.entries,
        undone_epoch: archive.upto_epoch,
        undone_version: archive.upto_version,
        sessions: sessions.into_iter().map(|(session, entries)| LossSession { session, entries }).collect(),
        more_sessions,
        named: None,
        cut_ns: time_at(&master.store.begin(), volume, cut).await?,
        since_ns,
        undone_from_ns: times.map(|(from, _)| from),
        undone_upto_ns: times.map(|(_, upto)| upto),
    })
}

/// The ledger, in the order of the epochs that were closed.
pub async fn ledger(
    tx: &EmbeddedTransaction,
    volume: VolumeId,
) -> Result<Vec<(Epoch, LossRecord)>, ReplicaError> {
    let page = tx.get_range(loss::range(volume), RangeLimit::default(), Read::Snapshot).await?;
    let read = |(key, value): &(bytes::Bytes, bytes::Bytes)| {
        Ok((loss::parse_key(volume, key)?, LossRecord::from_value(value)?))
    };
    page.pairs.iter().map(read).collect()
}

/// A region that was the home before has come back: what it put aside is what was lost of its. None of it says that it had nothing beyond the cut.
pub(super) async fn name(
    master: &Master,
    volume: VolumeId,
    epoch: Epoch,
    region: &str,
    put_aside: &[PutAside],
    had_nothing: bool,
) -> Result<(), String> {
    let open = ledger(&master.store.begin(), volume).await.map_err(|e| e.to_string())?;
    for (closed, found) in open {
        if found.old_home != region || found.named.is_some() {
            continue;
        }
        let told = put_aside.iter().find(|told| position(told.cut.as_ref()) == found.cut());
        if told.is_none() && !had_nothing {
            continue;
        }
        let told = told.cloned().unwrap_or_default();
        let gone = position(told.gone_upto.as_ref());
        let PutAside { entries, paths, more_paths, .. } = told;
        let named = NamedLoss {
            at_ns: master.clock.unix_ns(),
            entries,
            paths,
            more_paths,
            gone_epoch: gone.epoch.0,
            gone_version: gone.version,
        };
        let record = LossRecord { named: Some(named), ..found };
        let record = &record;
        let written = transact(&master.store, |tx| async move {
            // As each change of the volume, it is one of this epoch or none.
            let held = tx.get(&volume::key(volume), Read::Conflicting).await?;
            let held = held.map(|value| VolumeRecord::from_value(&value)).transpose()?;
            if held.is_some_and(|held| held.epoch == epoch.0) {
                tx.set(&loss::key(volume, closed), &record.to_value());
            }
            Ok((tx, ()))
        });
        written.await.map_err(|e| record_failed(&e).message)?;
        tracing::info!(
            region,
            closed = closed.0,
            entries,
            paths,
            gone_upto = %gone,
            "the region that was the home before has put aside what was lost"
        );
    }
    Ok(())
}

/// The inodes that were named of an archive.
pub async fn paths(
    tx: &EmbeddedTransaction,
    volume: VolumeId,
    cut: LogPosition,
) -> Result<BTreeMap<InodeId, SalvagedPath>, ReplicaError> {
    let page = tx.get_range(loss::path_range(volume, cut), RangeLimit::default(), Read::Snapshot).await?;
    let read = |(key, value): &(bytes::Bytes, bytes::Bytes)| {
        Ok((InodeId(loss::parse_path_key(key)?), SalvagedPath::from_value(value)?))
    };
    page.pairs.iter().map(read).collect()
}

/// Files that the ledger names of a loss at most: the archive has them all.
const LOSS_FILES_SHOWN: usize = 20;
/// A page of an archive: of so many entries at most.
const ENTRIES_SHOWN: usize = 500;
/// Contents of an entry that are shown at most.
const CONTENTS_SHOWN: usize = 100;

fn shown(at: LogPosition) -> Option<admin::LogPlace> {
    (at > LogPosition::default()).then_some(admin::LogPlace { epoch: at.epoch.0, version: at.version })
}

fn asked(at: Option<admin::LogPlace>) -> LogPosition {
    at.map(|at| LogPosition::new(Epoch(at.epoch), at.version)).unwrap_or_default()
}

fn of_volume(master: &Master, volume: u32) -> Result<VolumeId, Status> {
    let volume = super::known(master, volume)?;
    master.serving_of(volume).map_err(|error| Status::unavailable(error.message))?;
    Ok(volume)
}

/// The same of what is kept here: also of a volume that this region isn't to have any more.
fn of_kept(master: &Master, volume: u32) -> Result<VolumeId, Status> {
    let known = super::known(master, volume)?;
    let letting_go = master.desk(|desk| desk.letting_go_of(known));
    match letting_go.filter(|custody| master.may_answer(*custody).is_ok()) {
        Some(_) => Ok(known),
        None => of_volume(master, volume),
    }
}

fn unreadable(error: ReplicaError) -> Status {
    match error {
        ReplicaError::Store(_) => Status::unavailable(error.to_string()),
        other => Status::internal(other.to_string()),
    }
}

/// The latest time that the change at a place of the log gave a file, or where it gave none, one of few before it; none where those gave none, either, or the place
/// isn't in the log here any more.
pub async fn time_at(
    tx: &EmbeddedTransaction,
    volume: VolumeId,
    at: LogPosition,
) -> Result<Option<i64>, ReplicaError> {
    let mut upto = at;
    for _ in 0..TIMES_LOOKED_AT {
        let Some(entry) = read::last_upto(tx, volume, upto).await? else { return Ok(None) };
        if upto == at && entry.at != at {
            return Ok(None);
        }
        if let Some(ns) = about(volume, &entry.changes()?).time_ns {
            return Ok(Some(ns));
        }
        let Some(before) = entry.at.version.checked_sub(1) else { return Ok(None) };
        upto = LogPosition::new(entry.at.epoch, before);
    }
    Ok(None)
}

/// Answers an administrator: the ledger, with the files that are known of here.
pub async fn list_losses(master: &Master, volume: u32) -> Result<admin::ListLossesReply, Status> {
    let volume = of_volume(master, volume)?;
    let tx = master.store.begin();
    let ledger = ledger(&tx, volume).await.map_err(unreadable)?;
    let mut losses = Vec::with_capacity(ledger.len());
    for (closed, loss) in ledger {
        // One that an earlier release has written says nothing of the time.
        let cut_ns = match loss.cut_ns {
            Some(ns) => Some(ns),
            None => time_at(&tx, volume, loss.cut()).await.map_err(unreadable)?,
        };
        let mut files = paths(&tx, volume, loss.cut()).await.map_err(unreadable)?.into_iter();
        let first = files.by_ref().take(LOSS_FILES_SHOWN).map(tell_file).collect();
        losses.push(admin::Loss {
            cut_ns,
            files: first,
            more_files: files.next().is_some(),
            ..tell_loss(closed, loss)
        });
    }
    let region = master.config.region.clone();
    Ok(admin::ListLossesReply {
        home: super::home_of(master, volume).unwrap_or_else(|_| region.clone()),
        region,
        losses,
    })
}

/// An entry of the ledger, as far as that itself says.
fn tell_loss(closed: Epoch, loss: LossRecord) -> admin::Loss {
    admin::Loss {
        closed: closed.0,
        opened: loss.opened,
        cut: shown(loss.cut()),
        known: shown(loss.known()),
        undone_upto: shown(loss.undone_upto()),
        old_home: loss.old_home,
        new_home: loss.new_home,
        at_ns: loss.at_ns,
        undone: loss.undone,
        sessions: loss
            .sessions
            .iter()
            .map(|of| admin::LossSession { session: of.session, entries: of.entries })
            .collect(),
        more_sessions: loss.more_sessions,
        since_ns: loss.since_ns,
        undone_from_ns: loss.undone_from_ns,
        undone_upto_ns: loss.undone_upto_ns,
        named: loss.named.map(|named| admin::NamedLoss {
            at_ns: named.at_ns,
            entries: named.entries,
            paths: named.paths,
            more_paths: named.more_paths,
            gone_upto: shown(named.gone_upto()),
        }),
        ..admin::Loss::default()
    }
}

fn tell_file((inode, path): (InodeId, SalvagedPath)) -> admin::SalvagedFile {
    admin::SalvagedFile {
        inode: inode.0,
        first: shown(LogPosition::new(Epoch(path.first_epoch), path.first_version)),
        path: path.path,
        size: path.size,
        mtime_ns: path.mtime_ns,
        ctime_ns: path.ctime_ns,
        gone: path.gone,
    }
}

fn tell_archive(cut: LogPosition, archive: &ArchiveRecord) -> admin::Archive {
    admin::Archive {
        cut: shown(cut),
        upto: shown(archive.upto()),
        at_ns: archive.at_ns,
        entries: archive.entries,
        bytes: archive.bytes,
        paths: archive.paths,
        more_paths: archive.more_paths,
        was_home: archive.was_home,
        gone_upto: shown(archive.gone_upto()),
    }
}

/// Answers an administrator: the archives here.
pub async fn list_salvage(master: &Master, volume: u32) -> Result<admin::ListSalvageReply, Status> {
    let volume = of_kept(master, volume)?;
    let archives = archives(&master.store.begin(), volume).await.map_err(unreadable)?;
    Ok(admin::ListSalvageReply {
        region: master.config.region.clone(),
        archives: archives.iter().map(|(cut, archive)| tell_archive(*cut, archive)).collect(),
    })
}

/// Answers an administrator: a page of an archive.
pub async fn show_salvage(
    master: &Master,
    asking: admin::ShowSalvageRequest,
) -> Result<admin::ShowSalvageReply, Status> {
    let volume = of_kept(master, asking.volume)?;
    let cut = asked(asking.cut);
    let tx = master.store.begin();
    let Some(archive) = load_archive(&tx, volume, cut).await.map_err(unreadable)? else {
        return Err(Status::not_found(format!("nothing that follows {cut} was put aside in this region")));
    };
    let mut files = Vec::new();
    if asking.after.is_none() {
        files = paths(&tx, volume, cut).await.map_err(unreadable)?.into_iter().map(tell_file).collect();
    }
    let after = asked(asking.after).max(cut);
    let mut found =
        read::put_aside(&tx, volume, after, archive.upto(), PAGE_BYTES).await.map_err(unreadable)?;
    found.truncate(ENTRIES_SHOWN);
    let more = found.last().is_some_and(|last| last.at < archive.upto());
    let mut entries = Vec::with_capacity(found.len());
    for entry in &found {
        let changes = entry.changes().map_err(|e| unreadable(e.into()))?;
        let about = about(volume, &changes);
        let mut contents = Vec::new();
        for content in about.contents.iter().take(CONTENTS_SHOWN) {
            contents.push(tell_content(&tx, content).await.map_err(unreadable)?);
        }
        entries.push(admin::SalvagedEntry {
            at: shown(entry.at),
            session: about.session.map_or(0, |session| session.0),
            time_ns: about.time_ns,
            kinds: about
                .kinds
                .into_iter()
                .map(|(kind, records)| admin::SalvagedKind { kind: kind.to_owned(), records })
                .collect(),
            inodes: about.inodes.into_iter().map(|inode| inode.0).collect(),
            contents,
            more_contents: about.contents.len() > CONTENTS_SHOWN,
        });
    }
    Ok(admin::ShowSalvageReply { archive: Some(tell_archive(cut, &archive)), files, entries, more })
}

/// Bytes that an entry names, and whether they are in this region.
async fn tell_content(
    tx: &EmbeddedTransaction,
    content: &Content,
) -> Result<admin::SalvagedContent, ReplicaError> {
    let (chunk, chunk_offset) = content.chunk.map_or((0, 0), |(chunk, offset)| (chunk.0, offset));
    let mut here = content.chunk.is_none();
    if let Some((chunk, offset)) = content.chunk {
        let mut found = tx.get(&location::key(chunk), Read::Snapshot).await?;
        if found.is_none() {
            found = tx.get(&log::salvaged_chunk_key(chunk), Read::Snapshot).await?;
        }
        let location = found.map(|value| LocationRecord::from_value(&value)).transpose()?;
        here = location.is_some_and(|location| {
            let has = location.partial.is_none_or(|partial| partial >= offset.saturating_add(content.length));
            has && !location.copies.is_empty()
        });
    }
    let (inode, offset, length) = (content.inode.0, content.offset, content.length);
    Ok(admin::SalvagedContent { inode, offset, length, chunk, chunk_offset, here })
}
