//! A volume's settings, of which one is its home's alone to turn on: that another region takes over by itself (docs/decisions/0045-failover-turned-on.md).
//!
//! ```text
//!  SetVolume with automatic --ask--> the home's leader: puts down that it needs its lease --> global: SetVolume, at the version that was put down
//! ```

use std::time::Duration;

use mooseng_schema::{leased, number};
use mooseng_store::{Read, Transaction};
use mooseng_transport::call_error;
use mooseng_wire::VolumeId;
use mooseng_wire::admin::{SetVolumeReply, SetVolumeRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use tokio::time::Instant;

use super::at_home;
use crate::errors::record_failed;
use crate::global::Global;
use crate::master::Master;
use crate::records::transact;

/// Before a change is made anew that another one has overtaken.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Changes a volume's settings, or finds out whether it could.
pub async fn set(
    master: &Master,
    global: &Global,
    asked: &SetVolumeRequest,
    deadline: Instant,
) -> Result<SetVolumeReply, CallError> {
    loop {
        let (volume, known) = global.volume_of(asked.volume)?;
        let at_version = match asked.automatic {
            Some(true) if !known.automatic => Some(put_down(master, global, volume, asked.plan).await?),
            _ => None,
        };
        match global.set_settings(asked, at_version, deadline).await {
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

/// The home puts down that it needs its lease, should what it asks for at this version be agreed on. Whoever leads this region next reads that before it
/// serves.
async fn put_down(master: &Master, global: &Global, volume: VolumeId, plan: bool) -> Result<u64, CallError> {
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
    let asked = global.view().version;
    if !global.lease_valid() {
        let message = "this region doesn't hold its lease now, and couldn't go on without one as the home of a volume that fails over by itself; try again";
        return Err(call_error(ErrorCode::Unavailable, message));
    }
    if plan {
        return Ok(asked);
    }
    let written = transact(&master.store, |tx| async move {
        let key = leased::key(volume);
        let known = number::decode(tx.get(&key, Read::Conflicting).await?.as_ref())?;
        tx.set(&key, &number::encode(known.max(asked)));
        Ok((tx, ()))
    });
    written.await.map_err(|e| record_failed(&e))?;
    global.lease_is_needed(volume, asked);
    Ok(asked)
}

/// What an earlier leader of the home has put down.
pub async fn load(master: &Master, global: &Global, volume: VolumeId) -> Result<(), CallError> {
    let read = transact(&master.store, |tx| async move {
        let asked = number::decode(tx.get(&leased::key(volume), Read::Conflicting).await?.as_ref())?;
        Ok((tx, asked))
    });
    global.lease_is_needed(volume, read.await.map_err(|e| record_failed(&e))?);
    Ok(())
}
