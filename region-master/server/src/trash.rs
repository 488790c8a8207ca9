//! The trash, for administrators: listing, restoring, purging, and how long it keeps files. The leader answers.
//!
//! What expires leaves it by the leader's own house-keeping (`expiry`).

use std::sync::Arc;
use std::time::Duration;

use mooseng_namespace::trash::{self, Listed, Place, Purged, RETENTION_S_MAX, Refused, Terms};
use mooseng_namespace::{OpError, upkeep};
use mooseng_wire::admin::purge_trash_request::Which;
use mooseng_wire::admin::{
    ListTrashReply, ListTrashRequest, PurgeTrashReply, PurgeTrashRequest, RestoreTrashReply,
    RestoreTrashRequest, TrashEntry, TrashPlace, TrashRetentionReply, TrashRetentionRequest, TrashStatus,
};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::{InodeId, VolumeId};
use tokio::time::Instant;
use tonic::Status;

use crate::errors::record_failed;
use crate::expiry;
use crate::master::Master;
use crate::own::{self, Repeat};
use crate::records::transact;
use crate::tree::Asked;

/// Files looked at for one page of a listing.
const LIST_PAGE: usize = 500;
/// Files purged in one transaction.
const PURGE_AT_ONCE: usize = 256;
/// Transactions of one call.
const PURGES_PER_CALL: usize = 16;
/// A session that is gone delays a restoration by its lease.
const BEYOND_LEASE: Duration = Duration::from_secs(5);

fn refused(error: CallError) -> Status {
    match error.code() {
        ErrorCode::DeadlineExceeded | ErrorCode::OutcomeUnknown => Status::deadline_exceeded(error.message),
        ErrorCode::Internal => Status::internal(error.message),
        _ => Status::unavailable(error.message),
    }
}

/// What a volume's trash holds, as of now.
pub async fn status(master: &Master, volume: VolumeId) -> Result<TrashStatus, CallError> {
    let (held, terms) = transact(&master.store, |tx| async move {
        let held = upkeep::statistics(&tx, volume).await?;
        let terms = trash::terms(&tx, volume).await?;
        Ok((tx, (held, terms)))
    })
    .await
    .map_err(|e| record_failed(&e))?;
    let Terms { retention_s, min_age_s } = terms;
    Ok(TrashStatus { files: held.trash_files, bytes: held.trash_bytes, retention_s, min_age_s })
}

fn of_wire(place: Option<TrashPlace>) -> Option<Place> {
    place.map(|place| (place.until_ns, InodeId(place.inode)))
}

fn to_wire((until_ns, inode): Place) -> TrashPlace {
    TrashPlace { until_ns, inode: inode.0 }
}

/// Places of another volume aren't of this trash, whoever names them.
fn in_volume(volume: VolumeId, place: Option<Place>) -> Result<Option<Place>, Status> {
    match place {
        Some((_, inode)) if inode.volume() != volume => {
            Err(Status::invalid_argument("the place isn't one in the volume's trash"))
        }
        place => Ok(place),
    }
}

fn entry(listed: Listed) -> TrashEntry {
    let Listed { inode, until_ns, size, deletion, .. } = listed;
    TrashEntry {
        path: trash::joined(&deletion.directory, &deletion.name).into(),
        place: Some(to_wire((until_ns, inode))),
        size,
        deleted_by: deletion.uid,
        deleted_ns: deletion.deleted_ns,
    }
}

/// Whether a path is that one, or lies below it.
fn is_under(path: &[u8], under: &[u8]) -> bool {
    let under = under.strip_suffix(b"/").unwrap_or(under);
    path.strip_prefix(under).is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

/// A page of the listing.
pub async fn list(
    master: &Master,
    asked: &Asked,
    request: ListTrashRequest,
) -> Result<ListTrashReply, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(refused)?;
    let before = in_volume(volume, of_wire(request.before))?;
    let (files, next) = transact(&master.store, |tx| async move {
        let page = trash::list(&tx, volume, before, LIST_PAGE).await?;
        Ok((tx, page))
    })
    .await
    .map_err(|e| refused(record_failed(&e)))?;
    let status = status(master, volume).await.map_err(refused)?;
    let entries = files.into_iter().map(entry).filter(|entry| is_under(&entry.path, &request.under));
    let entries = entries.map(|entry| TrashEntry { path: asked.shown(&entry.path), ..entry });
    let reply = ListTrashReply { entries: entries.collect(), next: next.map(to_wire), status: Some(status) };
    master.may_answer(term).map_err(refused)?;
    Ok(reply)
}

/// Restores a file, once whoever was promised that its new name is absent has given that up.
pub async fn restore(
    master: &Arc<Master>,
    asked: &Asked,
    request: RestoreTrashRequest,
) -> Result<RestoreTrashReply, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(refused)?;
    let RestoreTrashRequest { inode, to } = request;
    let inode = InodeId(inode);
    if inode.volume() != volume {
        return Err(told(&Refused::NotThere(inode.0)));
    }
    let now_ns = master.clock.unix_ns();
    let deadline = Instant::now() + master.config.session_lease() + BEYOND_LEASE;
    let outcome = own::change(master, volume, term, Repeat::Never, deadline, |tx, touched| {
        let to = to.clone();
        Box::pin(async move { trash::restore(tx, touched, now_ns, inode, to.as_deref()).await })
    })
    .await
    .map_err(refused)?;
    match outcome {
        Ok(path) => {
            master.metrics.trash_restored.inc();
            Ok(RestoreTrashReply { path: asked.shown(&path) })
        }
        Err(why) => Err(told(&why.shown(|path| asked.told(path.as_bytes())))),
    }
}

fn told(why: &Refused) -> Status {
    let message = why.to_string();
    match why {
        Refused::NotThere(_) | Refused::DirectoryGone(_) | Refused::NoDirectory(_) => {
            Status::not_found(message)
        }
        Refused::Exists(_) => Status::already_exists(message),
        Refused::NotADirectory(_)
        | Refused::OtherVolume(_)
        | Refused::BadPath(_)
        | Refused::Full(_)
        | Refused::Quota(_) => Status::invalid_argument(message),
    }
}

/// Purges one file, or a part of what is old enough.
pub async fn purge(
    master: &Arc<Master>,
    asked: &Asked,
    request: PurgeTrashRequest,
) -> Result<PurgeTrashReply, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(refused)?;
    let after = in_volume(volume, of_wire(request.after))?;
    let (purged, next) = match request.which {
        None => return Err(Status::invalid_argument("the request doesn't say what is to be purged")),
        Some(Which::Inode(inode)) => (purge_one(master, (volume, term), InodeId(inode)).await?, None),
        Some(Which::OlderThanS(seconds)) => purge_some(master, (volume, term), seconds, after).await?,
    };
    let Purged { files, bytes } = purged;
    Ok(PurgeTrashReply { files, bytes, next: next.map(to_wire) })
}

async fn purge_one(master: &Arc<Master>, served: (VolumeId, u64), inode: InodeId) -> Result<Purged, Status> {
    if inode.volume() != served.0 {
        return Err(told(&Refused::NotThere(inode.0)));
    }
    let now_ns = master.clock.unix_ns();
    // A second run would say that it isn't there.
    let purged = change(master, served, Repeat::Never, |tx| {
        Box::pin(async move { trash::purge(tx, now_ns, inode).await })
    });
    purged.await?.ok_or_else(|| told(&Refused::NotThere(inode.0)))
}

async fn purge_some(
    master: &Arc<Master>,
    served: (VolumeId, u64),
    older_than_s: u64,
    mut after: Option<Place>,
) -> Result<(Purged, Option<Place>), Status> {
    let now_ns = master.clock.unix_ns();
    if older_than_s > 0 {
        is_known(master, served.0, Duration::from_secs(older_than_s)).await?;
    }
    let age_ns = i64::try_from(older_than_s).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
    let deleted_ns = match older_than_s {
        // Also what was deleted while another clock, ahead of this one, counted.
        0 => i64::MAX,
        _ => now_ns.saturating_sub(age_ns),
    };
    let mut sum = Purged::default();
    for _ in 0..PURGES_PER_CALL {
        let from = after;
        let (purged, next) = change(master, served, Repeat::Harmless, |tx| {
            let page = trash::purge_page(tx, served.0, now_ns, deleted_ns, from, PURGE_AT_ONCE);
            Box::pin(page)
        })
        .await?;
        sum.add(purged);
        after = next;
        if after.is_none() {
            break;
        }
    }
    Ok((sum, after))
}

/// Refuses to take by its age what nobody knows to be so old.
async fn is_known(master: &Master, volume: VolumeId, age: Duration) -> Result<(), Status> {
    let clock = expiry::clock(master, volume).await.map_err(refused)?;
    let Some(steady) = clock.steady().filter(|steady| *steady < age) else { return Ok(()) };
    Err(Status::failed_precondition(format!(
        "the clock of the master that leads was set forward by {} s, {} s ago (TRASH_HELD): of what is in the trash nobody knows whether it has been there for {} s. Purge single files by their ids, or all of it (--all); or ask for what is no older than that step",
        clock.step().as_secs(),
        steady.as_secs(),
        age.as_secs()
    )))
}

/// A change of a volume that is served in that custody epoch.
async fn change<T, F>(
    master: &Arc<Master>,
    (volume, term): (VolumeId, u64),
    repeat: Repeat,
    work: F,
) -> Result<T, Status>
where
    F: for<'t> Fn(
        &'t mooseng_embedded::EmbeddedTransaction,
    ) -> futures::future::BoxFuture<'t, Result<T, OpError>>,
{
    let deadline = Instant::now() + master.config.session_lease() + BEYOND_LEASE;
    own::change(master, volume, term, repeat, deadline, |tx, _touched| work(tx)).await.map_err(refused)
}

/// Answers how long deleted files are kept, and sets it before if asked to.
pub async fn retention(
    master: &Arc<Master>,
    asked: &Asked,
    request: TrashRetentionRequest,
) -> Result<TrashRetentionReply, Status> {
    let volume = asked.volume;
    let term = master.serving_of(volume).map_err(refused)?;
    let TrashRetentionRequest { set_s, set_min_age_s, .. } = request;
    if let Some(seconds) = set_s.max(set_min_age_s) {
        if seconds > RETENTION_S_MAX {
            return Err(Status::invalid_argument("the trash keeps files for ten years at most"));
        }
        let set = change(master, (volume, term), Repeat::Harmless, |tx| {
            Box::pin(trash::set_terms(tx, volume, set_s, set_min_age_s))
        });
        set.await?;
    }
    let TrashStatus { retention_s, min_age_s, .. } = publish(master, volume).await.map_err(refused)?;
    master.may_answer(term).map_err(refused)?;
    Ok(TrashRetentionReply { retention_s, min_age_s })
}

/// Notes what the trash holds where status and metrics find it.
pub async fn publish(master: &Master, volume: VolumeId) -> Result<TrashStatus, CallError> {
    let status = status(master, volume).await?;
    master.desk(|desk| {
        let seat = desk.seat_mut(volume);
        if seat.serving.is_some() {
            seat.trash = Some(status);
        }
    });
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_under_a_path() {
        for (path, under, is) in [
            ("/a/b", "", true),
            ("/a/b", "/", true),
            ("/a/b", "/a", true),
            ("/a/b", "/a/", true),
            ("/a/b", "/a/b", true),
            ("/ab", "/a", false),
            ("/a", "/a/b", false),
            (".../a/b", "/a", false),
        ] {
            assert_eq!(is_under(path.as_bytes(), under.as_bytes()), is, "{path} under {under}");
        }
    }
}
