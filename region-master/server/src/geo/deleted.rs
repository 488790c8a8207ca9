//! What a region has of volumes that were deleted goes, once their deleted files would: records first, then the copies of their chunks.
//!
//! ```text
//!  the regions have agreed that it is deleted --> that is on record here --> as long as its trash is kept --> its records --> copies that chunkservers report
//! ```
//! The record stays: a chunkserver that comes back later with copies of the volume's chunks is told to delete them, too. Nothing goes of a volume that the
//! global group never gave a number: such a store is of another cluster, or newer than what was agreed on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mooseng_global::View;
use mooseng_namespace::clearing::Progress;
use mooseng_namespace::deleted;
use mooseng_wire::call::CallError;
use mooseng_wire::{Epoch, VolumeId};
use tokio::sync::watch;

use super::pause;
use crate::errors::record_failed;
use crate::master::Master;
use crate::records::transact;

/// How often it is looked whether there is something to do.
const EVERY: Duration = Duration::from_secs(5);
/// Between two parts: others want to read, too.
const PAUSE: Duration = Duration::from_millis(10);
/// Copies of a volume that each chunkserver is told to delete from one look to the next.
const COPIES_MAX: usize = 1_000;
/// No home of a deleted volume comes after this: chunkservers that have heard of it take nothing of the volume any more.
const LAST: Epoch = Epoch(u64::MAX);

/// Clears what is here of deleted volumes, as long as this master leads.
pub async fn run(master: &Arc<Master>, mut cluster: watch::Receiver<Arc<View>>) {
    let (mut cleared, mut there) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let view = cluster.borrow_and_update().clone();
        for volume in
            view.volumes.keys().filter(|volume| !there.contains(*volume)).copied().collect::<Vec<_>>()
        {
            match take_back(master, volume).await {
                Ok(()) => drop(there.insert(volume)),
                Err(error) => {
                    tracing::info!(volume = volume.0, error = %error.message, "what is on record of deleted volumes can't be read yet; trying on")
                }
            }
        }
        for volume in gone(view.volume_highest, |volume| view.volumes.contains_key(&volume)) {
            if cleared.contains(&volume) {
                continue;
            }
            match clear(master, volume).await {
                Ok(true) => drop(cleared.insert(volume)),
                Ok(false) => {}
                Err(error) => tracing::info!(
                    volume = volume.0,
                    error = %error.message,
                    "what is here of a deleted volume can't be cleared yet; trying on"
                ),
            }
        }
        delete_copies(master, &cleared);
        tokio::select! {
            () = tokio::time::sleep(pause(EVERY)) => {}
            changed = cluster.changed() => if changed.is_err() { return },
        }
    }
}

/// The volumes that were deleted: numbers grow, and none is given twice.
fn gone(highest: u32, is_there: impl Fn(VolumeId) -> bool) -> impl Iterator<Item = VolumeId> {
    let highest = u16::try_from(highest).unwrap_or(u16::MAX);
    (1..=highest).map(VolumeId).filter(move |volume| !is_there(*volume))
}

/// Clears the records of a volume once it is time for that. Answers whether none is left.
async fn clear(master: &Master, volume: VolumeId) -> Result<bool, CallError> {
    let now_ns = master.clock.unix_ns();
    let keep_s = master.config.house.trash_retention_s;
    let known = transact(&master.store, |tx| async move {
        let known = deleted::note(&tx, volume, now_ns, keep_s).await?;
        Ok((tx, known))
    });
    let known = known.await.map_err(|e| record_failed(&e))?;
    if !known.cleared && now_ns < known.until_ns() {
        return Ok(false);
    }
    // Where it is cleared already it is looked once more: an earlier leader's late writes may have come since.
    let mut progress = Progress::default();
    loop {
        let more = transact(&master.store, |tx| {
            let progress = progress.clone();
            async move {
                let more = deleted::clear(&tx, volume, progress).await?;
                Ok((tx, more))
            }
        });
        match more.await.map_err(|e| record_failed(&e))? {
            Some(more) => progress = more,
            None => break,
        }
        tokio::time::sleep(PAUSE).await;
    }
    if progress != Progress::default() {
        tracing::info!(volume = volume.0, "no records are left of a volume that was deleted");
    }
    Ok(true)
}

/// A volume that is there isn't one that was deleted, whatever is on record: its number was given a second time, which is never to be.
async fn take_back(master: &Master, volume: VolumeId) -> Result<(), CallError> {
    let known = transact(&master.store, |tx| async move {
        let known = deleted::take_back(&tx, volume).await?;
        Ok((tx, known))
    });
    if known.await.map_err(|e| record_failed(&e))? {
        tracing::error!(
            volume = volume.0,
            "the regions have a volume of which it is on record here that it was deleted; nothing more of it is cleared. Was the global group made anew? Report it"
        );
    }
    Ok(())
}

/// Has the copies of those volumes' chunks deleted: no record names them any more, nor ever will.
fn delete_copies(master: &Master, cleared: &BTreeSet<VolumeId>) {
    let now = master.clock.boot();
    let copies = master.desk(|desk| {
        // That some are gone needs no record.
        desk.drop_gone(|volume| cleared.contains(&volume));
        let alive = desk.alive(now);
        let mut copies = Vec::new();
        for server in desk.registry.iter().filter(|server| alive.contains(&server.beat.name)) {
            let name = &server.beat.name;
            let of_them = server.volumes().filter(|volume| cleared.contains(volume));
            let chunks = of_them.flat_map(|volume| server.copies_of(volume, None)).map(|(chunk, _)| chunk);
            let untold = chunks.filter(|chunk| !desk.is_deleting(name, *chunk)).take(COPIES_MAX);
            copies.extend(untold.map(|chunk| (name.clone(), chunk)));
        }
        for (name, chunk) in &copies {
            desk.want_deletion(name, *chunk, LAST.0);
        }
        copies.len()
    });
    if copies > 0 {
        tracing::info!(copies, "copies of deleted volumes' chunks are deleted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_was_deleted() {
        let is_there = |volume: VolumeId| volume == VolumeId(2);
        assert_eq!(gone(3, is_there).collect::<Vec<_>>(), [VolumeId(1), VolumeId(3)]);
        assert_eq!(gone(0, is_there).count(), 0, "nothing is said of numbers that weren't given");
    }
}
