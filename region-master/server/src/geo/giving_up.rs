//! A home that an administrator gives up for another region, whatever that lacks (docs/decisions/0038-homes-given-up.md).
//!
//! ```text
//!  MoveHome with force --ask--> the leader of the region that is to be the home --> global: ForceHome closes the epoch
//!     --> the old home hears of it and ends, or its lease has run out --> the next epoch opens here, cut where this region is complete
//! ```
//! What follows is as with a failover: what others have beyond the cut is put aside, and the ledger says what is lost.

use std::sync::Arc;

use mooseng_global::{Durability, View, Volume};
use mooseng_transport::call_error;
use mooseng_wire::admin::{LogPlace, MoveHomeReply, MoveHomeRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::global::MoveHome;
use mooseng_wire::global::change::Change;
use mooseng_wire::{Epoch, VolumeId};
use tokio::time::Instant;

use super::moving::millis;
use crate::global::status::told;
use crate::master::Master;

/// As it will be: a home that may lack what was acknowledged begins without a sync set.
fn after(before: &Volume, to: &str) -> Volume {
    let mut sync_set = before.sync_set.clone();
    if before.durability == Durability::Region || !sync_set.contains(to) {
        sync_set.clear();
    }
    sync_set.remove(&before.home);
    sync_set.insert(to.to_owned());
    Volume { home: to.to_owned(), epoch: Epoch(before.epoch.0 + 1), open: true, sync_set, ..before.clone() }
}

/// Has a volume's home given up for this master's region, or says whether that could be done now.
pub async fn order(
    master: &Master,
    request: &MoveHomeRequest,
    (volume, before): (VolumeId, &Volume),
    deadline: Instant,
) -> Result<MoveHomeReply, CallError> {
    let to = &request.to;
    if *to != master.config.region {
        let message = format!(
            "a home is given up by the masters of the region that is to be the next one: {to}, not {}",
            master.config.region
        );
        return Err(call_error(ErrorCode::InvalidRequest, message));
    }
    let (Some(global), Some(cluster)) = (&master.global, master.geo.cluster.clone()) else {
        let message = "this cluster has one region: there is no other one that could be the home";
        return Err(call_error(ErrorCode::InvalidRequest, message));
    };
    let asked = MoveHome {
        volume: request.volume,
        epoch: before.epoch.0,
        to: to.clone(),
        loses_synced: request.loses_synced,
        ..MoveHome::default()
    };
    // It would begin where it is complete.
    let age = master.geo.replica(volume).age.complete_at_most(master.clock.boot());
    let change = if request.plan { Change::CheckForce(asked) } else { Change::ForceHome(asked) };
    let agreed = global.change(change, deadline).await?;
    let reply = MoveHomeReply {
        version: agreed.version,
        before: Some(told(volume, before)),
        after: Some(told(volume, &after(before, to))),
        behind_ms: age.map(millis),
        stopped_ms: 0,
        cut: None,
    };
    if request.plan {
        return Ok(reply);
    }
    tracing::warn!(
        volume = volume.0,
        home = before.home,
        to,
        "the volume's home was given up by an administrator"
    );
    let open = opened(cluster, volume, (before.epoch, to), deadline).await?;
    let cut = open.cut.map(|cut| LogPlace { epoch: cut.epoch.0, version: cut.version });
    Ok(MoveHomeReply { after: Some(told(volume, &open)), cut, ..reply })
}

/// Waits until the next epoch is open.
async fn opened(
    mut cluster: tokio::sync::watch::Receiver<Arc<View>>,
    volume: VolumeId,
    (given_up, to): (Epoch, &str),
    deadline: Instant,
) -> Result<Volume, CallError> {
    let is_over =
        |view: &Arc<View>| view.volumes.get(&volume).is_none_or(|known| known.epoch > given_up && known.open);
    let seen = tokio::time::timeout_at(deadline, cluster.wait_for(is_over)).await;
    let late = || {
        let message = format!(
            "epoch {} is closed, and the next one isn't open yet: it opens at {to} as soon as the old home has stopped, or its lease has run out, and {to} has said how far it is. `mooseng volume info {volume}` shows it; where {to} is lost, too, repeat the command with another region",
            given_up.0
        );
        call_error(ErrorCode::OutcomeUnknown, message)
    };
    let view = seen.map_err(|_| late())?.map_err(|_| late())?.clone();
    let known = view.volumes.get(&volume).cloned();
    known.filter(|known| known.home == to).ok_or_else(|| {
        let message =
            "somebody else has decided otherwise meanwhile: `mooseng volume list` shows where homes are";
        call_error(ErrorCode::OutcomeUnknown, message)
    })
}
