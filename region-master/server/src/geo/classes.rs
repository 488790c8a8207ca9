//! Volumes' copies of the storage classes that the regions have agreed on, at the leader of their home (docs/decisions/0039-classes-of-the-cluster.md).
//!
//! ```text
//!  what is agreed on --bring_up--> records of each volume that is at home here --its log--> its replicas
//!  who deletes a class, in whichever region --ClassUse--> the same, and what has the class then
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use mooseng_namespace::classes::{self as records, Copied, DEFAULT_NAME, StorageClassRecord, is_of_cluster};
use mooseng_store::Read;
use mooseng_transport::{Peer, call_error};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::geo::{AskClassUse, ClassUse, UsedClass, VolumeClassUse};
use mooseng_wire::{Epoch, VolumeId};
use tokio::time::{Instant, timeout_at};

use super::{NEWS_WITHIN, Whereabouts, agreed, allow_master, at_home, pause, place_of, sync};
use crate::errors::record_failed;
use crate::master::Master;
use crate::own::{self, Repeat};
use crate::records::transact;

/// How long bringing a volume's copies up to date may take.
const BRING_UP_WITHIN: Duration = Duration::from_secs(5);
/// After a failure.
const AGAIN: Duration = Duration::from_millis(500);
/// How often it is looked whether a class that the cluster doesn't have any more can go here.
const KEPT_EVERY: Duration = Duration::from_secs(10);
/// How long a look at all volumes that are at home here may take: less than whoever asks waits.
const LOOK_WITHIN: Duration = Duration::from_secs(3);

/// Keeps a volume's copies up to date, as long as this master leads its home.
pub async fn run(master: &Arc<Master>, volume: VolumeId, custody: u64) {
    let Some(mut cluster) = master.geo.cluster.clone().filter(|_| master.global.is_some()) else { return };
    let (mut done, mut kept) = (0, false);
    loop {
        let version = cluster.borrow_and_update().classes_version;
        let mut failed = false;
        if version != done || kept {
            match bring_up(master, volume, custody, Instant::now() + BRING_UP_WITHIN).await {
                Ok(copied) => {
                    if !copied.kept.is_empty() && !kept {
                        tracing::warn!(
                            volume = volume.0,
                            classes = ?copied.kept,
                            "storage classes that were deleted are in use again, for a failover took changes back: they stay in this volume until nothing has them"
                        );
                    }
                    (done, kept) = (version, !copied.kept.is_empty());
                }
                Err(error) => {
                    tracing::info!(volume = volume.0, error = %error.message, "the volume's storage classes aren't up to date yet; trying on");
                    failed = true;
                }
            }
        }
        let wait = if failed { AGAIN } else { KEPT_EVERY };
        tokio::select! {
            () = tokio::time::sleep(pause(wait)), if failed || kept => {}
            changed = cluster.changed() => if changed.is_err() { return },
        }
    }
}

/// Has a volume's copies be what this master knows was agreed on, and placement go by them.
async fn bring_up(
    master: &Arc<Master>,
    volume: VolumeId,
    custody: u64,
    deadline: Instant,
) -> Result<Copied, CallError> {
    let view = master.geo.view().unwrap_or_default();
    let version = view.classes_version;
    let classes = view.classes.iter().map(|(id, of)| (*id, of.class.clone()));
    let classes: Arc<BTreeMap<u32, StorageClassRecord>> = Arc::new(classes.collect());
    let copied = own::change(master, volume, custody, Repeat::Harmless, deadline, |tx, _| {
        let classes = classes.clone();
        Box::pin(async move { records::take_over(tx, volume, version, &classes).await })
    });
    let copied = copied.await?;
    // Also where nothing changed: the change may have been made by a try of which the outcome wasn't known.
    crate::classes::publish(master, volume, custody).await?;
    Ok(copied)
}

/// Brings a volume's copies up to date if they aren't. From then on no class is assigned here that this master knows to be leaving.
async fn catch_up(
    master: &Arc<Master>,
    volume: VolumeId,
    custody: u64,
    deadline: Instant,
) -> Result<(), CallError> {
    let Some(view) = master.geo.view().filter(|view| view.classes_version > 0) else { return Ok(()) };
    let copied = transact(&master.store, |tx| async move {
        let copied = records::copied(&tx, volume, Read::Snapshot).await?;
        Ok((tx, copied))
    });
    if copied.await.map_err(|e| record_failed(&e))? >= view.classes_version {
        return Ok(());
    }
    bring_up(master, volume, custody, deadline).await.map(drop)
}

/// Before a class is assigned: the volume's copies are up to date, and one of that name that was just made in another region is waited for a moment.
pub async fn ready(
    master: &Arc<Master>,
    volume: VolumeId,
    custody: u64,
    name: &str,
    deadline: Instant,
) -> Result<(), CallError> {
    let Some(mut cluster) = master.geo.cluster.clone().filter(|_| master.global.is_some()) else {
        return Ok(());
    };
    catch_up(master, volume, custody, deadline).await?;
    let is_known = || master.desk(|desk| desk.seat(volume).classes.iter().any(|class| class.name == name));
    if name == DEFAULT_NAME || is_known() {
        return Ok(());
    }
    let until = deadline.min(Instant::now() + NEWS_WITHIN);
    let heard = timeout_at(until, cluster.wait_for(|view| view.class_of(name).is_some())).await;
    let is_there = heard.is_ok_and(|heard| heard.is_ok());
    if is_there { catch_up(master, volume, custody, deadline).await } else { Ok(()) }
}

/// What has the cluster's classes in the volumes that are at home here, for a master of any region.
pub async fn used(
    master: &Arc<Master>,
    peer: &Peer,
    ask: AskClassUse,
    deadline: Instant,
) -> Result<ClassUse, CallError> {
    allow_master(master, peer, None)?;
    Ok(ClassUse { volumes: in_volumes(master, ask.since, deadline).await? })
}

/// The same for this master. With `since`, what was agreed on at that version is in their copies before, and stays there when another region takes over a `geo` one.
pub(super) async fn in_volumes(
    master: &Arc<Master>,
    since: u64,
    deadline: Instant,
) -> Result<Vec<VolumeClassUse>, CallError> {
    if !master.raft.is_leading() {
        return Err(master.not_leader());
    }
    let deadline = deadline.min(Instant::now() + LOOK_WITHIN);
    let Some(view) = agreed(master, since, deadline).await else {
        let message = "this master doesn't know yet what the regions agreed on; try again";
        return Err(call_error(ErrorCode::Unavailable, message));
    };
    let here = view.volumes.iter().filter(|(_, known)| known.home == master.config.region);
    let looks = here.map(|(volume, _)| async move {
        let late = || call_error(ErrorCode::DeadlineExceeded, "its home took too long to look");
        let looked = timeout_at(deadline, look(master, *volume, since, deadline)).await;
        let (epoch, classes, trouble) = match looked.unwrap_or_else(|_| Err(late())) {
            Ok((epoch, classes)) => (epoch.0, classes, String::new()),
            Err(error) => (0, Vec::new(), error.message),
        };
        VolumeClassUse { volume: volume.0.into(), epoch, classes, trouble }
    });
    Ok(join_all(looks).await)
}

/// What has the cluster's classes in a volume, and the epoch in which that was so.
async fn look(
    master: &Arc<Master>,
    volume: VolumeId,
    since: u64,
    deadline: Instant,
) -> Result<(Epoch, Vec<UsedClass>), CallError> {
    at_home(master, volume)?;
    let here = place_of(master, volume);
    let Whereabouts::Here(epoch) = here else { return Err(super::not_home(master, volume)) };
    let custody = master.serving_of(volume)?;
    if since > 0 {
        catch_up(master, volume, custody, deadline).await?;
    }
    // Later than what was brought up: from then on nothing is assigned a class that is leaving, and nothing inherits one that nothing has.
    let used = transact(&master.store, |tx| async move {
        let mut used = Vec::new();
        for (class, _) in records::list(&tx, volume, Read::Snapshot).await? {
            if is_of_cluster(class) {
                let of = records::usage(&tx, volume, class, Read::Snapshot).await?;
                used.push(UsedClass { class, inodes: of.inodes, bytes: of.bytes });
            }
        }
        Ok((tx, used))
    });
    let used = used.await.map_err(|e| record_failed(&e))?;
    if since > 0 {
        // What was brought up, and whatever left nothing with a class.
        sync::everything(master, volume, deadline).await?;
    }
    master.may_answer(custody)?;
    if place_of(master, volume) != here {
        return Err(super::not_home(master, volume));
    }
    Ok((epoch, used))
}
