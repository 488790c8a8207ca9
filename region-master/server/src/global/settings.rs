//! An administrator changes a volume's settings.

use std::collections::BTreeSet;
use std::time::Duration;

use mooseng_global::{Durability, Volume};
use mooseng_transport::call_error;
use mooseng_wire::VolumeId;
use mooseng_wire::admin::{SetVolumeReply, SetVolumeRequest};
use mooseng_wire::call::{CallError, ErrorCode};
use mooseng_wire::global::change::Change;
use mooseng_wire::global::{Regions, SetVolume};
use tokio::time::Instant;

use super::Global;
use super::status::told;

impl Global {
    /// Changes a volume's settings, in whichever epoch it is, or finds out whether it could. Only at that version, if one is named.
    pub async fn set_settings(
        &self,
        asked: &SetVolumeRequest,
        at_version: Option<u64>,
        deadline: Instant,
    ) -> Result<SetVolumeReply, CallError> {
        let (id, before) = self.volume_of(asked.volume)?;
        let regions = (!asked.regions.is_empty()).then(|| Regions { names: asked.regions.clone() });
        let change = SetVolume {
            volume: asked.volume,
            epoch: before.epoch.0,
            regions,
            sync_set: None,
            geo: asked.geo,
            automatic: asked.automatic,
            blocks_alone: asked.blocks_alone,
            lag_max_ms: asked.lag_max_ms,
            at_version,
            custody: None,
        };
        let change = if asked.plan { Change::CheckVolume(change) } else { Change::SetVolume(change) };
        let changed = self.change(change, deadline).await?;
        Ok(SetVolumeReply {
            version: changed.version,
            before: Some(told(id, &before)),
            after: Some(told(id, &with(&before, asked))),
        })
    }

    pub(crate) fn volume_of(&self, number: u32) -> Result<(VolumeId, Volume), CallError> {
        let view = self.view();
        if view.version == 0 {
            let message = "this master doesn't know yet what the regions agreed on; try again";
            return Err(call_error(ErrorCode::Unavailable, message));
        }
        let found =
            u16::try_from(number).ok().map(VolumeId).and_then(|id| Some((id, view.volumes.get(&id)?)));
        let missing = || {
            let message =
                format!("there is no volume {number}; `mooseng volume list` names those that there are");
            call_error(ErrorCode::NotFound, message)
        };
        found.map(|(id, volume)| (id, volume.clone())).ok_or_else(missing)
    }
}

/// The volume with what was asked for.
fn with(before: &Volume, asked: &SetVolumeRequest) -> Volume {
    let mut after = before.clone();
    if !asked.regions.is_empty() {
        after.regions = asked.regions.iter().cloned().collect::<BTreeSet<_>>();
        after.sync_set.retain(|region| asked.regions.contains(region));
    }
    if let Some(geo) = asked.geo {
        after.durability = if geo { Durability::Geo } else { Durability::Region };
    }
    after.automatic = asked.automatic.unwrap_or(after.automatic);
    after.blocks_alone = asked.blocks_alone.unwrap_or(after.blocks_alone);
    if let Some(ms) = asked.lag_max_ms {
        after.lag_max = (ms > 0).then(|| Duration::from_millis(ms));
    }
    after
}
