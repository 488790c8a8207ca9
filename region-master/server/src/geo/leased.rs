//! What a home's leader puts down for whoever leads its region next, whose copy of what is agreed on may be older: that the home may need its lease, for its
//! volume is made to fail over by itself, which is its alone to ask for (docs/decisions/0045-failover-turned-on.md); and that others may be in the sync
//! set (docs/decisions/0029-geo.md).
//!
//! ```text
//!  SetVolume with automatic --ask--> the home's leader: would it be agreed on? puts down that it needs its lease --> global: SetVolume, at that version
//!  what came to nothing -------------------------------------------------------------------------------------------> global: StayHome
//!  `geo`, with a sync set to keep --> puts down at which version ---> global: StayHome, or the set, at that version
//! ```

use std::time::Duration;

use mooseng_schema::{leased, number};
use mooseng_store::{Read, Transaction};
use mooseng_transport::call_error;
use mooseng_wire::admin::{SetVolumeReply, SetVolumeRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::{Epoch, VolumeId};
use tokio::time::Instant;

use super::{at_home, pause, sync};
use crate::errors::record_failed;
use crate::global::Global;
use crate::master::Master;
use crate::records::transact;

/// Before a change is made anew that another one has overtaken.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How often it is looked whether what was asked for came to nothing.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Changes a volume's settings, or finds out whether it could.
pub async fn set(
    master: &Master,
    global: &Global,
    asked: &SetVolumeRequest,
    deadline: Instant,
) -> Result<SetVolumeReply, CallError> {
    loop {
        match try_to_set(master, global, asked, deadline).await {
            // A failover came in between, or another change, or this master's copy lags.
            Err(error)
                if error.code() == ErrorCode::StaleEpoch && Instant::now() + AGAIN_AFTER < deadline =>
            {
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            set => return set,
        }
    }
}

async fn try_to_set(
    master: &Master,
    global: &Global,
    asked: &SetVolumeRequest,
    deadline: Instant,
) -> Result<SetVolumeReply, CallError> {
    let (volume, known) = global.volume_of(asked.volume)?;
    if asked.automatic != Some(true) || known.automatic {
        return global.set_settings(asked, None, deadline).await;
    }
    let seat = master.geo.seat(volume);
    // What is asked for isn't made an end of before it is known what came of it.
    let _setting = seat.setting.lock().await;
    let version = may_need_its_lease(master, global, volume)?;
    // A refusal overtakes nothing: the home would need its lease for good.
    let plan = SetVolumeRequest { plan: true, ..asked.clone() };
    let planned = global.set_settings(&plan, Some(version), deadline).await?;
    if asked.plan {
        return Ok(planned);
    }
    write(master, &leased::key(volume), version).await?;
    global.lease_is_needed(volume, version);
    global.set_settings(asked, Some(version), deadline).await
}

/// Whether this is the home, which could go on under its lease; and the version at which it asks then.
fn may_need_its_lease(master: &Master, global: &Global, volume: VolumeId) -> Result<u64, CallError> {
    at_home(master, volume).map_err(|error| match error.code() {
        ErrorCode::NotHome => {
            let message = format!(
                "{}, and only the home makes the volume fail over by itself: as long as it doesn't know of that, it goes on without a lease. Where it can't be reached, give it up for another region first (`mooseng volume move-home {volume} --to REGION --force`)",
                error.message
            );
            CallError { message, ..error }
        }
        _ => error,
    })?;
    master.serving_of(volume)?;
    let version = global.view().version;
    if !global.lease_valid() {
        let message = "this region doesn't hold its lease now, and couldn't go on without one as the home of a volume that fails over by itself; try again";
        return Err(call_error(ErrorCode::Unavailable, message));
    }
    Ok(version)
}

/// Puts a version down: whoever leads this region next reads it before it serves.
async fn write(master: &Master, key: &[u8], version: u64) -> Result<(), CallError> {
    let written = transact(&master.store, |tx| async move {
        let known = number::decode(tx.get(key, Read::Conflicting).await?.as_ref())?;
        tx.set(key, &number::encode(known.max(version)));
        Ok((tx, ()))
    });
    written.await.map_err(|e| record_failed(&e))
}

/// The volume is a `geo` one at that version, at which the home is about to say who is in its sync set.
pub(super) async fn set_is_kept(master: &Master, volume: VolumeId, version: u64) -> Result<(), CallError> {
    let Some(global) = master.global.as_ref().filter(|global| !global.set_was_known(volume, version)) else {
        return Ok(());
    };
    write(master, &leased::set_key(volume), version).await?;
    global.set_is_known(volume, version);
    Ok(())
}

/// Makes an end of what the home asked for and came to nothing: it was refused, or whoever asked is gone and wasn't answered. As long as no later version is
/// known, it may be agreed on still, and the home needs its lease.
pub(super) async fn keep(master: &Master, volume: VolumeId, epoch: Epoch) {
    let Some(global) = &master.global else { return std::future::pending().await };
    loop {
        let came_to_nothing = {
            let seat = master.geo.seat(volume);
            let _setting = seat.setting.lock().await;
            global.lease_is_asked_for(volume)
        };
        if came_to_nothing && let Err(error) = sync::count_up(master, volume, epoch).await {
            tracing::debug!(error = %error.message, "it can't be made sure yet that the volume doesn't fail over by itself");
        }
        tokio::time::sleep(pause(LOOK_EVERY)).await;
    }
}

/// What an earlier leader of the home has put down.
pub async fn load(master: &Master, global: &Global, volume: VolumeId) -> Result<(), CallError> {
    let read = transact(&master.store, |tx| async move {
        let lease = number::decode(tx.get(&leased::key(volume), Read::Conflicting).await?.as_ref())?;
        let set = number::decode(tx.get(&leased::set_key(volume), Read::Conflicting).await?.as_ref())?;
        Ok((tx, (lease, set)))
    });
    let (lease, set) = read.await.map_err(|e| record_failed(&e))?;
    global.lease_is_needed(volume, lease);
    global.set_is_known(volume, set);
    Ok(())
}
